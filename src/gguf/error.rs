//! What can be wrong with a GGUF file, in one line each, and what to try.

use std::fmt;
use std::path::PathBuf;

use super::ByteOrder;

/// A model that cannot be read: which file, where in it, and why.
#[derive(Debug)]
pub struct Error {
    /// The file (or directory) at fault; of a split model, the shard.
    pub path: PathBuf,
    /// Where in the file the field at fault starts, in bytes.
    pub offset: Option<u64>,
    /// What is wrong.
    pub kind: ErrorKind,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: ", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, "at byte {offset}: ")?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for Error {}

/// What is wrong with a header, before its file is known.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset}: {kind}")]
pub struct Fault {
    /// Where the field at fault starts, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub kind: ErrorKind,
}

impl Fault {
    /// The fault as an error of the file at `path`.
    pub fn in_file(self, path: impl Into<PathBuf>) -> Error {
        Error { path: path.into(), offset: Some(self.offset), kind: self.kind }
    }

    pub(super) fn in_key(self, key: &str) -> Self {
        Self { kind: ErrorKind::Key { key: shown(key), kind: Box::new(self.kind) }, ..self }
    }

    pub(super) fn in_tensor(self, name: &str) -> Self {
        Self { kind: ErrorKind::Tensor { name: shown(name), kind: Box::new(self.kind) }, ..self }
    }
}

/// A name for a message: a long one is cut.
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 100;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_string(),
    }
}

/// Everything that can be wrong; the limits are those of llama.cpp's own reader (`ggml/src/gguf.cpp`, b11434).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused.
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    /// A pipe, socket or device.
    #[error("not a regular file")]
    NotAFile,
    /// Zero bytes.
    #[error("the file is empty")]
    Empty,
    /// Changed by somebody else during the reading.
    #[error("the file changed while it was read (it had {before} bytes, now {after})")]
    Changed {
        /// Length at first, in bytes.
        before: u64,
        /// Length afterwards, in bytes.
        after: u64,
    },
    /// Not a GGUF file.
    #[error("not a GGUF file: it starts with `{0}` instead of `GGUF`")]
    Magic(String),
    /// A version that llama.cpp refuses.
    #[error("GGUF version {0} is not supported, only 2 and 3")]
    Version(u32),
    /// The file is shorter than its header.
    #[error("the file ends inside its header: {what} needs {missing} more bytes")]
    Ends {
        /// The field.
        what: &'static str,
        /// How many bytes are missing for this field alone.
        missing: u64,
    },
    /// A count that the file cannot hold.
    #[error("{count} {what} cannot be: the {remaining} bytes that remain hold {most} at most")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many the file states.
        count: u64,
        /// Bytes left in the file.
        remaining: u64,
        /// How many fit.
        most: u64,
    },
    /// More than llama.cpp takes, however long the file.
    #[error("{what} of {count} is over llama.cpp's limit of {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What the file states.
        count: u64,
        /// What llama.cpp takes.
        limit: u64,
    },
    /// More than moeplan reads, which is far more than any model has.
    #[error("{count} {what} are more than any model has: moeplan reads {limit} at most")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many the file states.
        count: u64,
        /// How many are read.
        limit: u64,
    },
    /// More bytes than moeplan reads, which is far more than any model has.
    #[error("the header goes on past {0} bytes, which is longer than that of any model")]
    HeaderTooLong(u64),
    /// More tensor data than moeplan reckons with, which is far more than any model has.
    #[error("the tensor data goes on past {0} bytes, which is more than any model has")]
    TooMuchData(u64),
    /// A key longer than the GGUF specification allows.
    #[error("a key of {length} bytes is over the GGUF specification's limit of {limit}")]
    KeyTooLong {
        /// Its stated length in bytes.
        length: u64,
        /// What the specification allows.
        limit: u64,
    },
    /// A text longer than the rest of the file.
    #[error("{what} of {length} bytes cannot be: {remaining} bytes remain in the file")]
    StringPastEnd {
        /// What the text is.
        what: &'static str,
        /// Its stated length in bytes.
        length: u64,
        /// Bytes left in the file.
        remaining: u64,
    },
    /// A key without a name.
    #[error("key number {0} is empty")]
    EmptyKey(u64),
    /// A key that is there twice.
    #[error("key `{0}` is there twice")]
    DuplicateKey(String),
    /// A tensor name that is there twice.
    #[error("tensor `{0}` is there twice")]
    DuplicateTensor(String),
    /// Something about one key.
    #[error("key `{key}`: {kind}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        kind: Box<Self>,
    },
    /// Something about one tensor.
    #[error("tensor `{name}`: {kind}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        kind: Box<Self>,
    },
    /// A metadata type that does not exist.
    #[error("value type {0} does not exist")]
    ValueType(u32),
    /// An array inside an array.
    #[error("an array of arrays is not allowed")]
    NestedArray,
    /// `general.alignment` of another type.
    #[error("must be of type u32, but is {0}")]
    AlignmentType(&'static str),
    /// `general.alignment` that is no alignment.
    #[error("alignment {0} is not a power of two")]
    Alignment(u64),
    /// `GGML_MAX_NAME`.
    #[error("the name has {0} bytes, llama.cpp takes 63 at most")]
    NameTooLong(u64),
    /// `GGML_MAX_DIMS`.
    #[error("{0} dimensions, llama.cpp takes 4 at most")]
    Dimensions(u32),
    /// A negative dimension.
    #[error("dimension {index} is negative: {value}")]
    NegativeDimension {
        /// Which dimension, from 0.
        index: u32,
        /// The value as the file states it.
        value: i64,
    },
    /// Elements or bytes past 64 bits.
    #[error("shape {0:?} is too large for 64 bits")]
    TooLarge([u64; 4]),
    /// A type that ggml does not have any more.
    #[error("type id {0} was removed from ggml")]
    RemovedType(u32),
    /// A type that ggml does not have (yet).
    #[error("type id {0} is unknown")]
    UnknownType(u32),
    /// Rows that are no whole number of blocks.
    #[error("rows of {elements} elements are no multiple of the {block_size} of a {ty} block")]
    PartialBlock {
        /// Elements of a row.
        elements: u64,
        /// The type's name.
        ty: &'static str,
        /// Elements of a block.
        block_size: u64,
    },
    /// A tensor that does not follow the one before it.
    #[error("its data starts at {found} instead of {expected}, {}", gap(*found, *expected))]
    Offset {
        /// What the file states, from the start of the data section.
        found: u64,
        /// The padded sum of all tensors before it.
        expected: u64,
    },
    /// Data that is not there.
    #[error(
        "{missing} bytes of tensor data are missing at the end: the file has {found} of {expected} bytes (`{tensor}` is the first tensor that is cut)"
    )]
    DataCut {
        /// Bytes that are missing.
        missing: u64,
        /// The file's length in bytes.
        found: u64,
        /// The length that the header calls for.
        expected: u64,
        /// The first tensor that is not whole.
        tensor: String,
    },
    /// A shard whose name does not follow `<prefix>-00001-of-00003.gguf`.
    #[error("holds shard {number} of {count}, but is not named `…-{number:05}-of-{count:05}.gguf`")]
    ShardName {
        /// Which shard the metadata says it is, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A split key that is missing or is no number.
    #[error("key `{0}` is missing or is not a number, though the model is split")]
    SplitKey(&'static str),
    /// A shard that is not beside the others.
    #[error("shard {number} of {count} is missing")]
    MissingShard {
        /// Which one, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A file that is not the shard its name says, or of another model.
    #[error("this shard is of another model: {what} is {found} here and {expected} in the first shard")]
    OtherModel {
        /// What differs.
        what: &'static str,
        /// What this shard says.
        found: String,
        /// What the first shard says.
        expected: String,
    },
    /// A shard in the wrong place.
    #[error("`split.no` is {found}, but the file's name says shard {number} (`split.no` {})", number.saturating_sub(1))]
    ShardNumber {
        /// `split.no` of the file, from 0.
        found: u64,
        /// Which shard its name says, from 1.
        number: u64,
    },
    /// The shards together hold another number of tensors than the first one says.
    #[error("the shards hold {found} tensors together, `split.tensors.count` says {expected}")]
    TensorsCount {
        /// How many there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// A directory without a model.
    #[error("the directory holds no .gguf model")]
    NoModel,
    /// A directory with several models.
    #[error("the directory holds {} models", .0.len())]
    SeveralModels(Vec<String>),
}

fn gap(found: u64, expected: u64) -> String {
    if found > expected {
        format!("a gap of {} bytes", found.saturating_sub(expected))
    } else {
        format!("an overlap of {} bytes", expected.saturating_sub(found))
    }
}

impl ErrorKind {
    /// The kind without the key or tensor around it.
    pub fn root(&self) -> &Self {
        match self {
            Self::Key { kind, .. } | Self::Tensor { kind, .. } => kind.root(),
            other => other,
        }
    }
}

impl Error {
    /// What to try, where something is known to help.
    pub fn hint(&self) -> Option<String> {
        Some(match self.kind.root() {
            ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "pass a .gguf file, any shard of a split model, or a directory that holds one model".into()
            }
            ErrorKind::Magic(found) => magic_hint(found).into(),
            ErrorKind::Version(1 | 0) => "convert the model again with a current llama.cpp".into(),
            ErrorKind::Version(_) | ErrorKind::UnknownType(_) | ErrorKind::ValueType(_) => {
                "the file is damaged, or made for a newer llama.cpp: try a newer moeplan".into()
            }
            ErrorKind::RemovedType(_) => "quantize the model again with a current llama.cpp".into(),
            ErrorKind::Empty | ErrorKind::Ends { .. } | ErrorKind::DataCut { .. } | ErrorKind::Changed { .. } => {
                "the download or copy may not be finished: get the file again or wait for it".into()
            }
            ErrorKind::MissingShard { count, .. } => format!("put all {count} shards into one directory"),
            ErrorKind::ShardName { number, count } => {
                format!(
                    "give the file its name back: llama.cpp finds shards by `<model>-{number:05}-of-{count:05}.gguf`"
                )
            }
            ErrorKind::OtherModel { .. } | ErrorKind::ShardNumber { .. } | ErrorKind::TensorsCount { .. } => {
                "the shards are of different uploads or were renamed: get all of them from one place".into()
            }
            ErrorKind::SeveralModels(choices) => {
                let shown: Vec<String> = choices.iter().take(10).map(|name| format!("`{name}`")).collect();
                let more = if choices.len() > 10 { ", …" } else { "" };
                format!("name one of them: {}{more}", shown.join(", "))
            }
            ErrorKind::TooMany { .. }
            | ErrorKind::HeaderTooLong(_)
            | ErrorKind::TooMuchData(_)
            | ErrorKind::KeyTooLong { .. } => {
                "the file is damaged or made to do harm: get it from where the model was published".into()
            }
            ErrorKind::NoModel => {
                "name a .gguf file, or a folder that holds one model; `moeplan list` shows those cached".into()
            }
            ErrorKind::Io(_) | ErrorKind::NotAFile => return None,
            _ => "llama.cpp refuses this file too: convert or download the model again".into(),
        })
    }
}

fn magic_hint(found: &str) -> &'static str {
    match found {
        "lmgg" | "ggml" | "tjgg" | "fmgg" => "this is a model of before GGUF (2023): get it as GGUF",
        "vers" => "this is a Git LFS pointer: run `git lfs pull`",
        _ if found.starts_with("PK") => {
            "this is a zip or PyTorch file: convert it with llama.cpp's convert_hf_to_gguf.py"
        }
        _ if found.contains('<') => "this is a web page: the download got an answer for browsers",
        _ => "pass a .gguf file (safetensors are converted with llama.cpp's convert_hf_to_gguf.py)",
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
