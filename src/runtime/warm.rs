//! A model's pages, asked into memory before llama.cpp maps them: a cold file then loads at the disk's own speed. [I/O]

use std::fs::File;
use std::io;
use std::path::Path;

/// Asks the system to read `path` ahead into its page cache. Nothing is read here, and nothing waits.
#[cfg(unix)]
#[expect(unsafe_code, reason = "a map for the system to read ahead; none of its bytes is ever looked at")]
pub fn warm(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the map is only named in the advice and dropped; no byte behind it is read, so it does not matter whether
    // another process changes or cuts the file meanwhile.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    map.advise(memmap2::Advice::WillNeed)
}

/// Nothing to ask for on this system.
#[cfg(not(unix))]
pub fn warm(path: &Path) -> io::Result<()> {
    File::open(path).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_asked_for_and_a_missing_one_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        warm(file.path()).unwrap();
        assert_eq!(warm(Path::new("/nowhere/at/all")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
