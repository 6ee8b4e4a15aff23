//! Files and folders that go with their owner: when they are dropped, at a signal, and after a crash by the next run. [I/O]
//!
//! Each has a record in moeplan's cache folder, which holds its path and is locked by its owner for as long as that lives. What has a
//! record that nobody locks was left behind. Where records cannot be kept, things are removed on every way out but a crash.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use super::{Error, cache_folder, folder_of, may_replace, on_disk, resolved};
use crate::bytes::Bytes;

/// How the name of everything temporary begins: nothing else is ever removed.
const PREFIX: &str = ".moeplan-";
const RECORD: &str = "owned";

/// What this process has under way: what it is, and its record.
static UNDER_WAY: Mutex<Vec<(PathBuf, Option<PathBuf>)>> = Mutex::new(Vec::new());

fn under_way() -> MutexGuard<'static, Vec<(PathBuf, Option<PathBuf>)>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something temporary of this process. Dropped, it is gone, and then its record.
#[derive(Debug)]
struct Claim {
    item: PathBuf,
    record: Option<PathBuf>,
    // Locked until this is dropped, or the process has ended in whatever way.
    _lock: Option<File>,
}

impl Claim {
    /// Makes something at a new name in `folder`. Its record is there before it is, so that a crash in between leaves nothing unknown.
    fn make<T>(folder: &Path, suffix: &str, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(Self, T)> {
        let folder = std::path::absolute(folder)?;
        let mut claim = None;
        let mut names = tempfile::Builder::new();
        let made = names.prefix(PREFIX).suffix(suffix).make_in(folder, |item| {
            let (record, lock) = record(item).unzip();
            under_way().push((item.to_path_buf(), record.clone()));
            let of_item = claim.insert(Self { item: item.to_path_buf(), record, _lock: lock });
            // Whatever has this name already is not removed with the claim.
            make(item).inspect_err(|_| of_item.forget())
        })?;
        let (made, path) = made.into_parts();
        path.keep()?;
        Ok((claim.ok_or_else(|| io::Error::other("nothing was made"))?, made))
    }

    fn forget(&mut self) {
        if let Some(record) = self.record.take() {
            let _ = fs::remove_file(record);
        }
        under_way().retain(|(item, _)| *item != self.item);
        self.item = PathBuf::new();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.item.as_os_str().is_empty() {
            remove(&self.item);
            self.forget();
        }
    }
}

fn records() -> Option<PathBuf> {
    Some(cache_folder()?.join("temporary"))
}

/// Writes the record of `item`; `None` where that cannot be. It is locked before it can be seen as one.
fn record(item: &Path) -> Option<(PathBuf, File)> {
    let (folder, item) = (records()?, item.to_str()?);
    fs::create_dir_all(&folder).ok()?;
    let mut file = NamedTempFile::new_in(&folder).ok()?;
    file.as_file().try_lock().ok()?;
    file.write_all(item.as_bytes()).ok()?;
    let path = file.path().with_added_extension(RECORD);
    let lock = file.persist(&path).ok()?;
    Some((path, lock))
}

/// A file that is being written beside its place. Dropped before it is placed, it is gone.
#[derive(Debug)]
pub struct Part {
    file: File,
    typed: PathBuf,
    place: PathBuf,
    claim: Claim,
}

impl Part {
    /// An empty file beside `path`, or beside what that links to; with the permissions of a file that is replaced.
    pub fn beside(path: &Path) -> Result<Self, Error> {
        let place = resolved(path);
        let folder = folder_of(&place, path)?;
        // As any file that a person makes: the umask decides who may read it.
        let new = |item: &Path| File::options().read(true).write(true).create_new(true).open(item);
        let (claim, file) = Claim::make(folder, ".part", new).map_err(Error::io(path))?;
        if let Ok(replaced) = fs::metadata(&place) {
            file.set_permissions(replaced.permissions()).map_err(Error::io(path))?;
        }
        Ok(Self { file, typed: path.to_path_buf(), place, claim })
    }

    pub fn as_file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    pub fn path(&self) -> &Path {
        &self.claim.item
    }

    /// Moves it to its place; over a file that is there only where `replace` says so.
    pub fn place(self, replace: bool) -> Result<(), Error> {
        may_replace(&self.typed, replace)?;
        fs::rename(&self.claim.item, &self.place).map_err(Error::io(&self.typed))
    }
}

/// A folder for what is needed while this value lives.
#[derive(Debug)]
pub struct Folder(Claim);

impl Folder {
    /// In the system's folder for such.
    pub fn new() -> io::Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    pub fn within(place: &Path) -> io::Result<Self> {
        // Only its user may read what a launch leaves there.
        let new = |item: &Path| {
            #[cfg(unix)]
            return std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(item);
            #[cfg(not(unix))]
            return fs::create_dir(item);
        };
        Claim::make(place, "", new).map(|(claim, ())| Self(claim))
    }

    pub fn path(&self) -> &Path {
        &self.0.item
    }
}

/// Removes everything that this process has under way, for an end that drops nothing. Whoever makes or drops something from then on
/// waits for that end.
pub fn remove_all() {
    let under_way = under_way();
    for (item, record) in under_way.iter() {
        let gone = remove(item);
        if let (true, Some(record)) = (gone, record) {
            let _ = fs::remove_file(record);
        }
    }
    std::mem::forget(under_way);
}

/// Removes a file or a folder; whether it is gone.
fn remove(item: &Path) -> bool {
    let is_folder = fs::symlink_metadata(item).is_ok_and(|item| item.is_dir());
    let _ = if is_folder { fs::remove_dir_all(item) } else { fs::remove_file(item) };
    fs::symlink_metadata(item).is_err()
}

#[derive(Debug)]
pub struct Leftover {
    pub path: PathBuf,
    pub bytes: Bytes,
    record: PathBuf,
    // Held, so that no two clear the same.
    _lock: File,
}

/// Everything that runs left behind when they crashed or were killed.
pub fn leftovers() -> Vec<Leftover> {
    let entries = records().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    entries.filter_map(|entry| leftover(entry.path())).collect()
}

fn leftover(record: PathBuf) -> Option<Leftover> {
    if record.extension().is_none_or(|end| end != RECORD) {
        return None;
    }
    let lock = File::options().read(true).write(true).open(&record).ok()?;
    // Locked by its owner, or on a disk without locks, where nobody can tell.
    lock.try_lock().ok()?;
    let path = PathBuf::from(fs::read_to_string(&record).ok()?);
    let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    is_ours.then(|| Leftover { bytes: taken(&path), path, record, _lock: lock })
}

/// What a file, or everything in a folder, takes on disk.
fn taken(path: &Path) -> Bytes {
    let Ok(item) = fs::symlink_metadata(path) else { return Bytes(0) };
    if !item.is_dir() {
        // Nothing but a hole takes less than its length.
        return on_disk(&item).unwrap_or(Bytes(item.len()));
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| taken(&entry.path())).sum()
}

pub fn clear() {
    for leftover in leftovers() {
        if remove(&leftover.path) {
            let _ = fs::remove_file(&leftover.record);
        }
    }
}
