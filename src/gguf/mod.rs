//! A GGUF model's header: its files opened and joined, every check that llama.cpp makes, no tensor data read. [I/O]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

#[doc(hidden)]
pub mod cursor;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod ggml_type;
#[doc(hidden)]
pub mod reader;
#[doc(hidden)]
pub mod shards;
pub mod source;
#[doc(hidden)]
pub mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
pub use error::{At, Error, Fault};
pub use ggml_type::GgmlType;
use shards::Split;

/// One file's header, and the file.
type Shard = (Header, ModelFile);

/// Opens a model: a file, any shard of a split one (all are joined), or a directory that holds one model.
///
/// Only header bytes are read.
pub fn open(path: &Path) -> Result<Gguf, Error> {
    let chosen = path.is_dir().then(|| model_in(path)).transpose()?;
    let path = chosen.as_deref().unwrap_or(path);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    open_split(open_file(path)?, name, |split, prefix, others| {
        let open = |number: u64| {
            let path = path.with_file_name(split.name(prefix, number));
            open_file(&path).map_err(|error| match error.at.what {
                Fault::Io(std::io::ErrorKind::NotFound) => shards::missing(number, split.count).in_file(path),
                _ => error,
            })
        };
        others.into_iter().map(open).collect()
    })
}

/// The start of a file, read by someone else.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The file's path, or its name: of a shard, the name says which it is.
    pub path: &'a str,
    /// The file's length; `None` where it is not known, and then it is what the tensors need.
    pub file_bytes: Option<u64>,
    /// Its first bytes, or all of them.
    pub bytes: &'a [u8],
}

/// The length of a file where nobody says it. No file is longer, and no sum of its offsets passes 64 bits.
const UNKNOWN: u64 = 1 << 62;

impl Start<'_> {
    /// The header of the file, its tensors as shard 0. With too few bytes the fault is [`Fault::Ends`].
    fn read(&self) -> Result<Shard, Error> {
        let header = Header::read(self.bytes, self.file_bytes.unwrap_or(UNKNOWN));
        let header = header.map_err(|fault| fault.in_file(self.path))?;
        let needed = || header.tensors.last().map_or(0, |last| last.offset.saturating_add(last.bytes.0));
        let bytes = Bytes(self.file_bytes.unwrap_or_else(|| header.data_offset.saturating_add(needed())));
        let file = ModelFile { path: self.path.into(), bytes, data_offset: header.data_offset };
        Ok((header, file))
    }
}

/// The model of files whose first bytes are in memory: the first of `files`, and if it is a shard, the others.
///
/// With too few bytes of a file the error's fault is [`Fault::Ends`], and its path says which: come back with more.
pub fn of_bytes(files: &[Start<'_>]) -> Result<Gguf, Error> {
    let name = |path: &str| path.rsplit(['/', '\\']).next().unwrap_or(path).to_string();
    let Some(first) = files.first() else {
        return Err(At::new(None, Fault::NoModel, "no file is given").in_file(""));
    };
    open_split(first.read()?, &name(first.path), |split, prefix, others| {
        let shard = |number: u64| {
            let wanted = split.name(prefix, number);
            let file = files.iter().find(|file| name(file.path) == wanted);
            file.ok_or_else(|| shards::missing(number, split.count).in_file(wanted.as_str()))?.read()
        };
        others.into_iter().map(shard).collect()
    })
}

/// The model of a file that is called `name`; if it is a shard, with the others, which `open` reads, given the part of their names
/// before the number, and their numbers.
fn open_split<E: From<Error>>(
    given: Shard,
    name: &str,
    open: impl FnOnce(Split, &str, Vec<u64>) -> Result<Vec<Shard>, E>,
) -> Result<Gguf, E> {
    let path = given.1.path.clone();
    let error = |at: At| at.in_file(&path);
    let Some(split) = Split::of(&given.0).map_err(error)? else {
        return Ok(Gguf { files: vec![given.1], header: given.0 });
    };
    let prefix = split.prefix(name).map_err(error)?;
    let mut shards = open(split, prefix, (1..=split.count).filter(|number| *number != split.number).collect())?;
    let at = usize::try_from(split.number.saturating_sub(1)).unwrap_or(usize::MAX);
    shards.insert(at.min(shards.len()), given);
    let (headers, files): (Vec<Header>, Vec<ModelFile>) = shards.into_iter().unzip();
    let path_of = |shard: usize| files.get(shard).map(|file| file.path.clone()).unwrap_or_default();
    match shards::join(headers) {
        Ok(header) => Ok(Gguf { files, header }),
        Err((shard, at)) => Err(at.in_file(path_of(shard)).into()),
    }
}

fn io(path: &Path, cause: &std::io::Error) -> Error {
    At::new(None, Fault::Io(cause.kind()), format!("cannot be read: {cause}")).in_file(path)
}

/// The one model in a directory: a file, or the first file of a split model that is there. Projectors and importance
/// matrices, which lie beside models and have the same ending, do not count.
fn model_in(directory: &Path) -> Result<PathBuf, Error> {
    let error = |what, message: String| At::new(None, what, message).in_file(directory);
    let io = |cause| io(directory, &cause);
    let mut models: BTreeMap<String, PathBuf> = BTreeMap::new();
    for entry in directory.read_dir().map_err(io)? {
        let path = entry.map_err(io)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_model = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
            && !name.contains("mmproj")
            && !name.contains("imatrix");
        if !is_model || !path.is_file() {
            continue;
        }
        let model = shards::parse_name(name).map_or(name.to_string(), |(prefix, split)| split.name(prefix, 1));
        models.entry(model).and_modify(|first| *first = path.clone().min(first.clone())).or_insert(path);
    }
    match models.len() {
        0 | 1 => {
            let none = || error(Fault::NoModel, "the directory holds no .gguf model".into());
            models.into_values().next().ok_or_else(none)
        }
        many => {
            let shown: Vec<String> = models.into_keys().take(10).map(|name| format!("`{name}`")).collect();
            let more = if many > 10 { ", …" } else { "" };
            let message = format!("the directory holds {many} models: {}{more}", shown.join(", "));
            Err(error(Fault::SeveralModels, message))
        }
    }
}

/// One file's header, its tensors as shard 0.
fn open_file(path: &Path) -> Result<(Header, ModelFile), Error> {
    let error = |what, message: String| At::new(None, what, message).in_file(path);
    let not_a_file = || error(Fault::NotAFile, "not a regular file".into());
    let io = |cause| io(path, &cause);
    // Asked before the file is opened too: opening a pipe waits for its other end.
    if !path.metadata().map_err(io)?.is_file() {
        return Err(not_a_file());
    }
    let file = File::open(path).map_err(io)?;
    let before = file.metadata().map_err(io)?;
    if !before.is_file() {
        return Err(not_a_file());
    }
    if before.len() == 0 {
        return Err(error(Fault::Unfinished, "the file is empty".into()));
    }
    let header = Header::read_from(&file, before.len()).map_err(|fault| fault.in_file(path));
    let after = file.metadata().map_err(io)?;
    if after.len() != before.len() || after.modified().ok() != before.modified().ok() {
        let (before, after) = (before.len(), after.len());
        let message = format!("the file changed while it was read (it had {before} bytes, now {after})");
        return Err(error(Fault::Unfinished, message));
    }
    let header = header?;
    let file = ModelFile { path: path.to_path_buf(), bytes: Bytes(before.len()), data_offset: header.data_offset };
    Ok((header, file))
}

/// The joined header of a model and the files it came from.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The files in split order; one for a model that is not split.
    pub files: Vec<ModelFile>,
    /// The metadata of the first file and the tensors of all, in file order.
    pub header: Header,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelFile {
    pub path: PathBuf,
    pub bytes: Bytes,
    #[serde(skip)]
    pub data_offset: u64,
}

#[derive(Debug, Clone)]
pub struct Header {
    pub version: u32,
    pub byte_order: ByteOrder,
    /// `general.alignment`, default 32; a power of two.
    pub alignment: u64,
    /// Where the data section starts in the (first) file.
    pub data_offset: u64,
    /// Keys and values; `tokenizer.*` arrays are counted, not kept.
    pub metadata: Metadata,
    /// In file order; of a split model, in split order.
    pub tensors: Vec<TensorInfo>,
}

pub type Metadata = BTreeMap<String, Value>;

/// Byte order of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    Little,
    /// Loads in llama.cpp only on a big-endian host.
    Big,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    U64(u64),
    I64(i64),
    /// `f32` (widened) or `f64`.
    F64(f64),
    Bool(bool),
    /// UTF-8; invalid bytes are replaced.
    String(String),
    /// A short array outside `tokenizer.*`.
    Array(Vec<Self>),
    /// An array that was counted, not kept; or a text too long to be kept.
    Counted {
        len: u64,
    },
}

impl Value {
    /// The value as a count, where it is an integer of any type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U64(value) => Some(*value),
            Self::I64(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// The full name, suffix included (`blk.3.ffn_up_exps.weight`).
    pub name: String,
    pub ty: GgmlType,
    /// How many of `shape` the file states.
    pub n_dims: u32,
    /// Elements by dimension; `shape[0]` is contiguous; missing ones are 1.
    pub shape: [u64; 4],
    /// From the start of its file's data section.
    pub offset: u64,
    /// Which of `Gguf::files`.
    pub shard: u16,
    /// From shape and type; equal to the distance to the next offset, up to padding.
    pub bytes: Bytes,
}

impl TensorInfo {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
