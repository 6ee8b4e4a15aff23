//! What can be wrong with a GGUF file: where, why, and what to try.

use std::borrow::Cow;
use std::path::PathBuf;
use std::{fmt, io};

use super::ByteOrder;
use crate::suggest::Hint;

/// A model that cannot be read: which file, where in it, and why.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {at}", path.display())]
pub struct Error {
    /// The file (or directory) at fault; of a split model, the shard.
    pub path: PathBuf,
    pub at: At,
}

#[derive(Debug)]
pub struct At {
    /// Where in the file the field at fault starts, in bytes; `None` where it is about the whole file.
    pub offset: Option<u64>,
    pub what: Fault,
    pub message: String,
}

/// Kinds of faults: each has one answer to what to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    Io(io::ErrorKind),
    NotAFile,
    /// The bytes end inside the header: a caller that holds only a part of the file may come back with more.
    Ends,
    /// The file is empty, cut short, or changed while it was read.
    Unfinished,
    Magic([u8; 4]),
    /// A version or type that ggml no longer has.
    Old,
    /// A version or type that ggml b11434 does not have.
    New,
    /// llama.cpp refuses it too; its limits are those of `ggml/src/gguf.cpp`, b11434.
    Refused,
    /// More than moeplan reads, which is far more than any model has.
    Excessive,
    /// The files of a split model do not belong together.
    Shards,
    ShardName,
    MissingShard,
    NoModel,
    SeveralModels,
}

impl At {
    pub(super) fn new(offset: impl Into<Option<u64>>, what: Fault, message: impl Into<String>) -> Self {
        Self { offset: offset.into(), what, message: message.into() }
    }

    pub fn in_file(self, path: impl Into<PathBuf>) -> Error {
        Error { path: path.into(), at: self }
    }

    /// The same, with the key or tensor that it is about.
    pub(super) fn within(self, kind: &str, name: &str) -> Self {
        Self { message: format!("{kind} `{}`: {}", shown(name), self.message), ..self }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(offset) = self.offset {
            write!(f, "at byte {offset}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for At {}

/// A name for a message: a long one is cut.
pub(super) fn shown(name: &str) -> Cow<'_, str> {
    const SHOWN: usize = 100;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()).into(),
        None => name.into(),
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self.at.what {
            Fault::Io(io::ErrorKind::NotFound) => {
                "pass a .gguf file, any shard of a split model, or a directory that holds one model"
            }
            Fault::Io(_) | Fault::NotAFile => return None,
            Fault::Magic([b'P', b'K', ..]) => {
                "this is a zip or PyTorch file: convert it with llama.cpp's convert_hf_to_gguf.py"
            }
            Fault::Magic(found) => match &found {
                b"lmgg" | b"ggml" | b"tjgg" | b"fmgg" => "this model predates GGUF (2023): get it as GGUF",
                b"vers" => "this is a Git LFS pointer: run `git lfs pull`",
                _ if found.contains(&b'<') => "this is a web page: the download returned a page for browsers",
                _ => "pass a .gguf file (safetensors are converted with llama.cpp's convert_hf_to_gguf.py)",
            },
            Fault::Old => "convert the model again, or quantize it again, with a current llama.cpp",
            Fault::New => "the file is damaged, or made for a newer llama.cpp: try a newer moeplan",
            Fault::Ends | Fault::Unfinished => {
                "the download or copy may not be finished: get the file again or wait for it"
            }
            Fault::Refused => "llama.cpp refuses this file too: convert or download the model again",
            Fault::Excessive => "the file is damaged or malicious: get it from where the model was published",
            Fault::Shards => "the shards come from different uploads or were renamed: get all of them from one place",
            Fault::ShardName => "restore the file's original name: llama.cpp finds shards by name",
            Fault::MissingShard => "put all shards into one directory",
            Fault::NoModel => {
                "name a .gguf file, or a folder that holds one model; `moeplan list` shows the cached ones"
            }
            Fault::SeveralModels => "name one of them",
        };
        Some(text.into())
    }
}

impl fmt::Display for ByteOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Little => "little-endian",
            Self::Big => "big-endian",
        })
    }
}
