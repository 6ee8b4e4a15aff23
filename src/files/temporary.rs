//! Files and folders that go with their owner: when they are dropped, at a signal, and after a crash by the next run. [I/O]
//!
//! Each has a record in moeplan's cache folder, which holds its path and is locked by its owner for as long as that lives. What has a
//! record that nobody locks was left behind. Where records cannot be kept, things are removed on every way out but a crash.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempDir};

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

/// The note that something temporary is this process's. Dropped after the thing itself is gone.
#[derive(Debug)]
struct Claim {
    item: PathBuf,
    record: Option<PathBuf>,
    // Locked until this is dropped, or the process has ended in whatever way.
    _lock: Option<File>,
}

impl Claim {
    fn of(item: &Path) -> Self {
        // A path that cannot be made absolute is of a working folder that is gone.
        let item = std::path::absolute(item).unwrap_or_else(|_| item.to_path_buf());
        let (record, lock) = record(&item).unzip();
        under_way().push((item.clone(), record.clone()));
        Self { item, record, _lock: lock }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            let _ = fs::remove_file(record);
        }
        under_way().retain(|(item, _)| *item != self.item);
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
    file: NamedTempFile,
    typed: PathBuf,
    place: PathBuf,
    _claim: Claim,
}

impl Part {
    /// An empty file beside `path`, or beside what that links to; with the permissions of a file that is replaced.
    pub fn beside(path: &Path) -> Result<Self, Error> {
        let place = resolved(path);
        let folder = folder_of(&place, path)?;
        let make = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PREFIX).suffix(".part");
            // As any file that a person makes, where tempfile's own default is for its owner alone: the umask decides.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let file = builder.tempfile_in(folder)?;
            if let Ok(replaced) = fs::metadata(&place) {
                file.as_file().set_permissions(replaced.permissions())?;
            }
            Ok(file)
        };
        let file = make().map_err(Error::io(path))?;
        let claim = Claim::of(file.path());
        Ok(Self { file, typed: path.to_path_buf(), place, _claim: claim })
    }

    pub fn as_file_mut(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Moves it to its place; over a file that is there only where `replace` says so.
    pub fn place(self, replace: bool) -> Result<(), Error> {
        may_replace(&self.typed, replace)?;
        self.file.persist(&self.place).map_err(|error| Error::io(&self.typed)(error.error))?;
        Ok(())
    }
}

/// A folder for what is needed while this value lives.
#[derive(Debug)]
pub struct Folder {
    folder: TempDir,
    _claim: Claim,
}

impl Folder {
    /// In the system's folder for such.
    pub fn new() -> io::Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    pub fn within(place: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
        let claim = Claim::of(folder.path());
        Ok(Self { folder, _claim: claim })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
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
