//! Synthetic models on disk: a hole or random weights, by several threads, whole or not at all. [I/O]

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Synthesis;
use super::weights::Weights;
use crate::bytes::Bytes;
use crate::files::temporary::Part;
use crate::files::{self, check};
use crate::gguf::shards::Split;
use crate::gguf::writer::{NewFile, Scalar, make_sparse};
use crate::suggest::Hint;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: the file has its length and takes no disk.
    Hole,
    /// Random weights of a seed; routers choose all experts about equally often.
    Random(u64),
    /// The same, but routers choose a few experts much more often than the others, as those of real models do.
    Skewed(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} needs {needed}, but its disk has {free} free: choose another directory or --weights hole",
        path = .path.display())]
    NoRoom { path: PathBuf, needed: Bytes, free: Bytes },
    #[error(transparent)]
    File(#[from] files::Error),
    #[error("stopped; nothing was left on disk")]
    Stopped,
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let Self::File(error) = self else { return None };
        error.hint()
    }
}

#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called with the bytes just written, from several threads.
    pub wrote: &'a (dyn Fn(u64) + Sync),
    /// Writing ends soon after this becomes true.
    pub stop: &'a AtomicBool,
}

/// About how much a thread writes at once.
const CHUNK: u64 = 4 << 20;

/// The paths of the files: `path` itself, or `stem-00001-of-00003.gguf` of a split (llama.cpp: `llama_split_path`).
pub fn paths(path: &Path, shards: usize) -> Vec<PathBuf> {
    if shards == 1 {
        return vec![path.to_path_buf()];
    }
    let stem = path.with_extension("");
    let stem = stem.file_name().unwrap_or_default().to_string_lossy();
    let split = Split { number: 1, count: shards as u64 };
    (1..=split.count).map(|number| path.with_file_name(split.name(&stem, number))).collect()
}

/// The length of a file that [`write()`] would make.
pub fn file_bytes(file: &NewFile) -> u64 {
    let (header, _, data) = file.header();
    header.len() as u64 + data
}

/// Writes all files beside their places and moves them there when all are complete; returns their paths.
pub fn write(
    synthesis: &Synthesis,
    path: &Path,
    fill: Fill,
    force: bool,
    watch: Watch<'_>,
) -> Result<Vec<PathBuf>, Error> {
    let paths = paths(path, synthesis.files.len());
    paths.iter().try_for_each(|path| check(path, force))?;
    let needed: u64 = synthesis.files.iter().map(file_bytes).sum();
    // Where what is free cannot be known, writing tells.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if fill != Fill::Hole
        && let Some(free) = free_space(parent)
        && free.0 < needed
    {
        return Err(Error::NoRoom { path: path.to_path_buf(), needed: Bytes(needed), free });
    }
    let tensors = || synthesis.files.iter().flat_map(|file| &file.tensors);
    let tied = !tensors().any(|tensor| tensor.name == "output.weight");
    let routed = tensors().filter(|tensor| tensor.name.ends_with("_exps.weight"));
    let n_expert =
        routed.filter_map(|tensor| tensor.shape.get(2)).max().map_or(0, |n| usize::try_from(*n).unwrap_or(0));
    let used = synthesis.files[0].metadata.iter().find_map(|(key, value)| match value {
        Scalar::U32(used) if key.ends_with(".expert_used_count") && n_expert > 0 => {
            Some(f64::from(*used) / f64::from(u32::try_from(n_expert).unwrap_or(u32::MAX)))
        }
        _ => None,
    });
    let mut finished = Vec::with_capacity(paths.len());
    for (file, path) in synthesis.files.iter().zip(&paths) {
        let io = |source| files::Error::Io { path: path.clone(), source };
        let mut part = Part::beside(path)?;
        let (header, offsets, data) = file.header();
        let out = part.as_file_mut();
        out.write_all(&header).map_err(io)?;
        if fill == Fill::Hole {
            make_sparse(out).map_err(io)?;
        }
        out.set_len(header.len() as u64 + data).map_err(io)?;
        if let Fill::Random(seed) | Fill::Skewed(seed) = fill {
            let jobs = jobs(file, &offsets, header.len() as u64);
            let skewed = used.filter(|_| matches!(fill, Fill::Skewed(_)));
            write_random(file, &jobs, &Weights::new(seed, tied, n_expert, skewed), part.path(), watch).map_err(io)?;
        }
        if watch.stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        finished.push(part);
    }
    for part in finished {
        part.place(force)?;
    }
    Ok(paths)
}

/// What the disk of a folder has left; `None` where that cannot be known.
pub fn free_space(folder: &Path) -> Option<Bytes> {
    let folder = folder.canonicalize().ok()?;
    let disks = sysinfo::Disks::new_with_refreshed_list().ok()?;
    let of_folder = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    let nearest = of_folder.max_by_key(|disk| disk.mount_point().components().count())?;
    Some(Bytes(nearest.available_space()))
}

/// A stretch of a tensor, ends on ends of blocks.
struct Job {
    tensor: usize,
    offset: u64,
    at: u64,
    bytes: usize,
}

fn jobs(file: &NewFile, offsets: &[u64], data_offset: u64) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (tensor, (info, start)) in file.tensors.iter().zip(offsets).enumerate() {
        let total = info.bytes().expect("the header was made of it");
        // Whole blocks, and a multiple of 16 bytes so that a draw is never cut.
        let step = info.ty.block_bytes * 16;
        let step = CHUNK / step * step;
        let mut offset = 0;
        while offset < total {
            let bytes = usize::try_from(step.min(total - offset)).expect("a chunk fits in memory");
            jobs.push(Job { tensor, offset, at: data_offset + start + offset, bytes });
            offset += bytes as u64;
        }
    }
    jobs
}

/// Every thread takes the next stretch until none is left.
fn write_random(file: &NewFile, jobs: &[Job], weights: &Weights, path: &Path, watch: Watch<'_>) -> std::io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        let mut out = OpenOptions::new().write(true).open(path)?;
        let mut buffer = Vec::new();
        let mut current: Option<(usize, super::weights::TensorWeights)> = None;
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if watch.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if current.as_ref().is_none_or(|(tensor, _)| *tensor != job.tensor) {
                current = Some((job.tensor, weights.of(&file.tensors[job.tensor])));
            }
            buffer.resize(job.bytes, 0);
            if let Some((_, tensor)) = &current {
                tensor.fill(job.offset, &mut buffer);
            }
            out.seek(SeekFrom::Start(job.at))?;
            out.write_all(&buffer)?;
            (watch.wrote)(job.bytes as u64);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a writer does not panic"))
    })
}
