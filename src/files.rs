//! Files of a person's own: looked at before the work, written whole or not at all, replaced only where that was asked for. [I/O]
//!
//! What lies about while a program works is in [`temporary`].

pub mod temporary;

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::bytes::Bytes;
use crate::suggest::Hint;
use temporary::Part;

/// What must have room on a disk before the work begins, in bytes: about a document of moeplan.
const LEAST_ROOM: usize = 64 << 10;

/// Why a file is not, or cannot be, written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{}` exists already", .0.display())]
    Exists(PathBuf),
    #[error("`{}` is a folder, not a file", .0.display())]
    Folder(PathBuf),
    #[error("cannot write `{}`: there is no folder `{}`", path.display(), folder.display())]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("cannot write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::Exists(_) => "--force replaces it; or name another file",
            Self::Folder(_) => "name a file in it",
            Self::NoFolder { .. } => "make the folder first, or name another file",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some of that disk, or name a file on another one"
            }
            Self::Io { .. } => "name a file in a folder that you can write to",
        };
        Some(text.into())
    }
}

/// Whether a path is written to as it is: a device, a pipe, an open file of this process. Such a thing is never replaced.
pub fn is_stream(path: &Path) -> bool {
    let is_own = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc/self/fd"].iter().any(|own| path.starts_with(own));
    is_own || fs::metadata(path).is_ok_and(|file| !file.is_file() && !file.is_dir())
}

/// Finds out whether [`write()`] can write a file, and leaves nothing behind. A disk that fills up meanwhile is not foreseen.
pub fn check(path: &Path, replace: bool) -> Result<(), Error> {
    if is_stream(path) {
        return fs::metadata(path).map(drop).map_err(Error::io(path));
    }
    let is_folder = path.is_dir()
        || path.as_os_str().as_encoded_bytes().last().is_none_or(|end| std::path::is_separator(char::from(*end)));
    if is_folder {
        return Err(Error::Folder(path.to_path_buf()));
    }
    may_replace(path, replace)?;
    let place = resolved(path);
    // What is written and has no name is gone with this function.
    let probe = tempfile::tempfile_in(folder_of(&place, path)?);
    probe.and_then(|mut file| file.write_all(&vec![0; LEAST_ROOM])).map_err(Error::io(path))
}

/// Refuses a file that is there, unless it may be replaced. A link that leads nowhere is there.
fn may_replace(path: &Path, replace: bool) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(_) if !replace => Err(Error::Exists(path.to_path_buf())),
        // A name that no file can have is an error too.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// The file that a link leads to: that one is replaced, not the link.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The folder of a file; the error names the file as it was typed.
fn folder_of<'a>(place: &'a Path, typed: &Path) -> Result<&'a Path, Error> {
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.exists() {
        return Ok(folder);
    }
    Err(Error::NoFolder { path: typed.to_path_buf(), folder: folder.to_path_buf() })
}

/// Writes a file whole or not at all, and sees it onto the disk. One that is there is replaced where `replace` says so.
pub fn write(path: &Path, text: &[u8], replace: bool) -> Result<(), Error> {
    if is_stream(path) {
        // Appending: an open file of this process may hold something already.
        let stream = fs::File::options().append(true).open(path);
        return stream.and_then(|mut stream| stream.write_all(text)).map_err(Error::io(path));
    }
    let mut part = Part::beside(path)?;
    let file = part.as_file_mut();
    file.write_all(text).and_then(|()| file.sync_all()).map_err(Error::io(path))?;
    part.place(replace)
}

/// Finds out whether [`append`] can add to a file.
pub fn check_append(path: &Path) -> Result<(), Error> {
    if path.is_file() {
        return fs::File::options().append(true).open(path).map(drop).map_err(Error::io(path));
    }
    check(path, false)
}

/// Adds lines to the end of a file in one write, whoever else does so, and sees them onto the disk. The file and its folder are made
/// where they are not there; a last line that was torn is closed first.
pub fn append(path: &Path, lines: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
    let mut file = fs::File::options().create(true).read(true).append(true).open(path)?;
    let is_whole = file.metadata()?.len() == 0 || {
        file.seek(io::SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        last == *b"\n"
    };
    let start = if is_whole { "" } else { "\n" };
    file.write_all(format!("{start}{lines}").as_bytes())?;
    // A device has no disk to be seen onto.
    if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
}

/// Moeplan's folder for what can be had again: `$XDG_CACHE_HOME/moeplan`, or what stands for it on this system.
pub fn cache_folder() -> Option<PathBuf> {
    use etcetera::BaseStrategy as _;
    Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("moeplan"))
}

/// What a file takes on disk, where the system says.
#[cfg_attr(not(unix), expect(unused_variables, reason = "nothing is known here"))]
pub fn on_disk(file: &fs::Metadata) -> Option<Bytes> {
    #[cfg(unix)]
    return Some(Bytes(std::os::unix::fs::MetadataExt::blocks(file) * 512));
    #[cfg(not(unix))]
    return None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced_with_its_permissions() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (path, link, lost) = (folder.path().join("mine"), folder.path().join("link"), folder.path().join("lost"));
        fs::write(&path, "1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::os::unix::fs::symlink("nowhere", &lost).unwrap();
        assert!(matches!(write(&link, b"2", false), Err(Error::Exists(_))));
        write(&link, b"2", true).unwrap();
        assert!(link.is_symlink() && fs::read(&path).unwrap() == b"2");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(check(&lost, false), Err(Error::Exists(_))));
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_a_full_one_is_an_error() {
        for path in ["/dev/null", "/dev/full"].map(Path::new).into_iter().filter(|path| path.exists()) {
            check(path, false).unwrap();
            assert_eq!(write(path, b"x", false).is_ok(), path.ends_with("null"));
        }
        assert!(is_stream(Path::new("/dev/stdout")) && !is_stream(Path::new("/dev/shm")));
        assert!(matches!(check(Path::new("/dev/fd/999"), false), Err(Error::Io { .. })));
    }

    #[test]
    fn lines_are_added_and_a_torn_one_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("lines");
        append(&path, "1\n").unwrap();
        append(&path, "2\ntorn").unwrap();
        append(&path, "3\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\ntorn\n3\n");
        check_append(&path).unwrap();
        assert!(matches!(check_append(folder.path()), Err(Error::Folder(_))));
        assert!(append(folder.path(), "x").is_err());
    }
}
