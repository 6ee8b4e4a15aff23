//! Memory by device, in llama.cpp's words: predicted here, measured in `runtime`, one type for both.

pub mod alloc;
pub mod backend;
pub mod caches;
pub mod compute;
pub mod context_hparams;
mod formula;
mod fusion;
pub mod graph;
pub mod overhead;
pub mod sched;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// Memory of one device (or `Host`, or another buffer type) by term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBreakdown {
    /// Weights.
    pub model: Bytes,
    /// KV caches and recurrent states.
    pub context: Bytes,
    /// Temporary buffers of the graphs.
    pub compute: Bytes,
    /// What the device shows beyond llama.cpp's own sum: its context and pools.
    #[serde(default)]
    pub overhead: Bytes,
}

impl MemoryBreakdown {
    /// The four terms together.
    pub fn total(&self) -> Bytes {
        self.model + self.context + self.compute + self.overhead
    }
}

/// By device name (`CUDA0`, `RPC0`), `Host`, and buffer types that llama.cpp lists apart (`CPU_REPACK`).
pub type MemoryByDevice = BTreeMap<String, MemoryBreakdown>;
