//! Headers that came over the network, kept by address and entity tag in the user's cache directory. [I/O]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::files::cache_folder;
use crate::files::temporary::Part;

/// Longest file read back, in bytes.
const MAX_FILE: u64 = 132 << 20;
/// What the cache may hold, in bytes; the oldest entries go first.
const MAX_ALL: u64 = 1 << 30;

/// How many headers are kept in moeplan's cache folder, and the bytes that they take.
pub fn kept() -> (usize, Bytes) {
    let files = cache_folder().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let lengths = files.filter(|file| is_entry(&file.path())).filter_map(|file| Some(file.metadata().ok()?.len()));
    let lengths: Vec<Bytes> = lengths.map(Bytes).collect();
    (lengths.len(), lengths.into_iter().sum())
}

/// The start of a file, and what tells whether it is still that file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub url: String,
    pub etag: Option<String>,
    pub oid: Option<String>,
    pub file_bytes: Option<u64>,
    /// Its first bytes.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// In `directory`, which is made when something is stored.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, url: &str) -> PathBuf {
        self.directory.join(format!("{:016x}.header", fnv1a(url.as_bytes())))
    }

    /// What is kept of an address.
    pub fn load(&self, url: &str) -> Option<Entry> {
        let mut text = Vec::new();
        fs::File::open(self.path(url)).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
        let end = text.iter().position(|byte| *byte == b'\n')?;
        let mut entry: Entry = serde_json::from_slice(text.get(..end)?).ok()?;
        entry.bytes = text.split_off(end.checked_add(1)?);
        (entry.url == url).then_some(entry)
    }

    /// Keeps an entry: a line of JSON, then the bytes; whole or not at all.
    pub fn store(&self, entry: &Entry) -> std::io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let mut part = Part::beside(&self.path(&entry.url)).map_err(std::io::Error::other)?;
        let file = part.as_file_mut();
        serde_json::to_writer(&mut *file, entry)?;
        file.write_all(b"\n")?;
        file.write_all(&entry.bytes)?;
        part.place(true).map_err(std::io::Error::other)?;
        self.prune()
    }

    /// Removes the oldest entries until the rest is within the bound.
    fn prune(&self) -> std::io::Result<()> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.directory)?.flatten() {
            let meta = file.metadata()?;
            if is_entry(&file.path()) && meta.is_file() {
                entries.push((meta.modified()?, meta.len(), file.path()));
            }
        }
        entries.sort();
        let mut all: u64 = entries.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in entries {
            if all <= MAX_ALL {
                break;
            }
            fs::remove_file(path)?;
            all = all.saturating_sub(length);
        }
        Ok(())
    }
}

fn is_entry(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "header")
}

/// FNV-1a, 64 bits: a file name for an address; the address itself is compared too.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_and_only_for_its_address() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().join("new"));
        let url = "https://h/x".to_string();
        let entry =
            Entry { url, etag: Some("\"e\"".into()), oid: None, file_bytes: Some(9), bytes: b"GGUF\n\0".to_vec() };
        cache.store(&entry).unwrap();
        assert_eq!(cache.load("https://h/x"), Some(entry));
        fs::copy(cache.path("https://h/x"), cache.path("https://h/y")).unwrap();
        assert_eq!(cache.load("https://h/y"), None);
    }
}
