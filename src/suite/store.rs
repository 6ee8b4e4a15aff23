//! A folder of results, one file a step, each written whole as soon as the step is over and used again when it is asked for again. [I/O]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::files::{self, Error};

const SCHEMA: &str = "moeplan/validation-step/1";
/// The longest step that is read back, in bytes.
const MAX_STEP: u64 = 256 << 20;
/// The whole of a validation: a folder that holds one is a folder of results.
pub const WHOLE: &str = "validation.json";

#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
pub struct Step<T> {
    schema: String,
    /// A hash of everything that the result depends on.
    key: String,
    pub result: T,
}

impl Store {
    pub fn new(folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_path_buf(), source })?;
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Whether nothing of anybody's is overwritten in it: it is empty, or holds what an earlier validation wrote.
    pub fn is_own(&self) -> bool {
        let is_empty = std::fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_none());
        let schema = || Some(self.read::<serde_json::Value>(WHOLE)?.get("schema")?.as_str()?.to_string());
        is_empty || schema().is_some_and(|schema| schema.starts_with("moeplan/validation/"))
    }

    /// A folder in it, whether it is there or not.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self { folder: self.folder.join(name) }
    }

    /// The names of the folders in it, in alphabetical order.
    pub fn folders(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> = folders.filter_map(|folder| folder.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The result of a step, if it was written for the same key. A file that cannot be read is no result.
    pub fn found<T: DeserializeOwned>(&self, name: &str, key: &str) -> Option<T> {
        self.step(name).filter(|step| step.key == key).map(|step| step.result)
    }

    pub fn step<T: DeserializeOwned>(&self, name: &str) -> Option<Step<T>> {
        self.read(&format!("{name}.json")).filter(|step: &Step<T>| step.schema == SCHEMA)
    }

    /// A file as JSON; `None` where there is none, or something else.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.path(name);
        if std::fs::metadata(&path).ok()?.len() > MAX_STEP {
            return None;
        }
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub fn keep<T: Serialize>(&self, name: &str, key: &str, result: &T) -> Result<(), Error> {
        let step = Step { schema: SCHEMA.to_string(), key: key.to_string(), result };
        self.write(&format!("{name}.json"), &serde_json::to_string_pretty(&step).unwrap_or_default())
    }

    /// Writes a file whole or not at all.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        files::write(&self.path(name), text.as_bytes(), true)
    }
}

/// A hash of what a result depends on.
pub fn key(of: &impl Serialize) -> String {
    hexadecimal(&serde_json::to_vec(of).unwrap_or_default())
}

/// SHA-256 in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_found_again_for_the_same_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&folder.path().join("model")).unwrap();
        assert_eq!(store.found::<u32>("step", "a"), None);
        store.keep("step", "a", &7).unwrap();
        assert_eq!((store.found::<u32>("step", "a"), store.found::<u32>("step", "b")), (Some(7), None));
        std::fs::write(store.path("step.json"), "{\"schema\"").unwrap();
        assert_eq!(store.found::<u32>("step", "a"), None, "half a file is not a result");
        assert_eq!(std::fs::read_dir(folder.path().join("model")).unwrap().count(), 1, "nothing temporary stays");
        assert!(key(&["a", "b"]) != key(&["ab"]) && key(&1).len() == 64);
    }
}
