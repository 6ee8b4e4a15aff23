//! llama.cpp's law of placement: the buffer of every tensor for a launch on a machine.

use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::model::Model;
use crate::run::RunConfig;

/// A kind of buffer of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Buffer {
    /// Plain host memory, or a mapped file.
    Cpu,
    /// Host memory in a layout of its own; no op offload from it.
    CpuRepack,
    /// Pinned host memory of the first device that has it (`CUDA_Host`).
    HostPinned,
    /// `Machine::devices[i]`.
    Device(u16),
}

/// One copy of a tensor in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Where it is.
    pub buffer: Buffer,
    /// What it takes there: the buffer type's allocation size, before alignment.
    pub bytes: Bytes,
    /// Which of `RunConfig::overrides` put it there, if one did.
    pub rule: Option<usize>,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// By tensor of the model, in its order: no copy (skipped), one, or two (tied embeddings).
    pub copies: Vec<Vec<Copy>>,
    /// The device of every layer slot: blocks `0..block_count`, then the output; `None` = host.
    pub layers: Vec<Option<u16>>,
    /// `Machine::devices` that take part, in llama.cpp's order (after `--device`, `-sm none`).
    pub devices: Vec<u16>,
}

/// Why llama.cpp would not load the model so, or moeplan cannot say.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--device` or an override names a device that the machine does not have.
    #[error("`{flag}` names `{name}`, which this machine does not have; known: {known}")]
    UnknownDevice {
        /// The flag.
        flag: String,
        /// What it names.
        name: String,
        /// What could be named, comma separated.
        known: String,
    },
}

/// Where llama.cpp b11434 puts every tensor of `model` on `machine` for `run`.
pub fn place(_model: &Model, _machine: &Machine, _run: &RunConfig) -> Result<Placement, Error> {
    Ok(Placement { copies: Vec::new(), layers: Vec::new(), devices: Vec::new() })
}

/// Model bytes by memory-table key (`CUDA0`, `Host`, `CPU_REPACK`): each tensor padded to its buffer's alignment.
pub fn model_bytes(_placement: &Placement, _model: &Model, _machine: &Machine) -> BTreeMap<String, Bytes> {
    BTreeMap::new()
}
