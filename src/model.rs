//! A model: the header made meaningful (hyper-parameters, roles, blocks, parameter counts).

use crate::bytes::Bytes;
use crate::gguf::{ByteOrder, GgmlType, Metadata, ModelFile};
use crate::hparams::HParams;
use crate::rules::Role;

/// A model as llama.cpp would see it, without its weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, untrusted text.
    pub name: Option<String>,
    /// The files, in split order.
    pub files: Vec<ModelFile>,
    /// GGUF version.
    pub gguf_version: u32,
    /// Byte order of the files.
    pub byte_order: ByteOrder,
    /// `general.alignment`.
    pub alignment: u64,
    /// Typed `<arch>.*` keys.
    pub hparams: HParams,
    /// Every key and value.
    pub metadata: Metadata,
    /// In file order.
    pub tensors: Vec<Tensor>,
}

/// One tensor and what it is.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The full name, suffix included; untrusted text.
    pub name: String,
    /// `N` of `blk.N.`.
    pub block: Option<u32>,
    /// What it is for.
    pub role: Role,
    /// Its type.
    pub ty: GgmlType,
    /// Elements by dimension; `shape[0]` is contiguous.
    pub shape: [u64; 4],
    /// Exact bytes in the file.
    pub bytes: Bytes,
    /// Which of `Model::files`.
    pub shard: u16,
    /// From the start of that file (data section included): for file spans under mmap.
    pub file_offset: u64,
}

impl Tensor {
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
