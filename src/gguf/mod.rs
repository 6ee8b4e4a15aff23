//! A GGUF model's header: its files opened and joined, every check that llama.cpp makes, no tensor data read. [I/O]

pub mod ggml_type;
pub mod reader;
pub mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::bytes::Bytes;
pub use ggml_type::GgmlType;

/// The joined header of a model and the files it came from.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The files in split order; one for a model that is not split.
    pub files: Vec<ModelFile>,
    /// The metadata of the first file and the tensors of all, in file order.
    pub header: Header,
}

/// One file of a model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelFile {
    /// As opened.
    pub path: PathBuf,
    /// Its length.
    pub bytes: Bytes,
}

/// What a GGUF header says.
#[derive(Debug, Clone)]
pub struct Header {
    /// GGUF version: 2 or 3.
    pub version: u32,
    /// Byte order of every number in the file.
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

/// Keys and values by key.
pub type Metadata = BTreeMap<String, Value>;

/// Byte order of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// The usual one.
    Little,
    /// Loads in llama.cpp only on a big-endian host.
    Big,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer type.
    U64(u64),
    /// Any signed integer type.
    I64(i64),
    /// `f32` (widened) or `f64`.
    F64(f64),
    /// `bool`.
    Bool(bool),
    /// UTF-8; invalid bytes are replaced.
    String(String),
    /// A short array outside `tokenizer.*`.
    Array(Vec<Value>),
    /// An array that was counted, not kept.
    Counted {
        /// How many elements it has.
        len: u64,
    },
}

/// One tensor of the header.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// The full name, suffix included (`blk.3.ffn_up_exps.weight`).
    pub name: String,
    /// Its type.
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
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
