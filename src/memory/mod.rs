//! Memory by device, in llama.cpp's words: predicted here, measured in `runtime`, one type for both.

pub mod alloc;
pub mod backend;
pub mod caches;
pub mod compute;
pub mod context;
pub mod context_hparams;
pub mod expert_cache;
mod formula;
mod fusion;
pub mod graph;
pub mod overhead;
pub mod pools;
pub mod sched;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::machine::Machine;
use crate::model::Model;
use crate::placement::{self, Placement};
use crate::run::RunConfig;
use crate::run::numbers::{ContextNumbers, numbers};
pub use caches::Caches;
pub use context::ContextPerToken;

/// The key of host memory in memory tables.
pub const HOST: &str = "Host";

/// Memory of one device (or `Host`, or another buffer type) by term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// llama.cpp's own sum of a device, which its log and its projection state.
    pub fn own(&self) -> Bytes {
        self.model + self.context + self.compute
    }

    /// The four terms together.
    pub fn total(&self) -> Bytes {
        self.own() + self.overhead
    }
}

/// A row of memory with its sum, as documents have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryRow {
    /// The four terms.
    #[serde(flatten)]
    pub terms: MemoryBreakdown,
    /// Together.
    pub total: Bytes,
}

impl From<MemoryBreakdown> for MemoryRow {
    fn from(terms: MemoryBreakdown) -> Self {
        Self { terms, total: terms.total() }
    }
}

/// Memory by device with sums.
pub fn rows(memory: &MemoryByDevice) -> BTreeMap<String, MemoryRow> {
    memory.iter().map(|(key, terms)| (key.clone(), (*terms).into())).collect()
}

/// By device name (`CUDA0`, `RPC0`), `Host`, and buffer types that llama.cpp lists apart (`CPU_REPACK`).
pub type MemoryByDevice = BTreeMap<String, MemoryBreakdown>;

/// What devices without memory of their own take of main memory.
pub fn shared_with_host(machine: &Machine, memory: &MemoryByDevice) -> Bytes {
    let shared = machine.devices.iter().filter(|device| machine.is_shared(device));
    shared.filter_map(|device| memory.get(&device.name)).map(MemoryBreakdown::total).sum()
}

/// What a launch would take, and where each figure comes from.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// A row for every device that takes part, and `Host`.
    pub memory: MemoryByDevice,
    /// The context's numbers.
    pub numbers: ContextNumbers,
    /// The caches behind the context column.
    pub caches: Caches,
    /// Whether attention is one operation (`-fa auto` resolved), where the graph was replayed.
    pub flash_attn: Option<bool>,
    /// Where the figures come from.
    pub basis: Vec<Basis>,
}

/// Where one figure of a prediction comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Basis {
    /// Which figure: `CUDA0.overhead`, `context`.
    pub quantity: String,
    /// How it was found.
    pub how: String,
}

/// Why there is no prediction: llama.cpp would refuse the launch, or moeplan cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `llama_init_from_model`: MLA models keep K and V in one cache.
    #[error(
        "llama.cpp refuses -ctk {type_k} with -ctv {type_v} for {architecture}, whose V is a view of K: give both the same type"
    )]
    DifferentTypes {
        /// `general.architecture`.
        architecture: String,
        /// `-ctk`.
        type_k: GgmlType,
        /// `-ctv`.
        type_v: GgmlType,
    },
    /// Quantized V without flash attention.
    #[error("llama.cpp refuses -ctv {type_v} without flash attention: use -fa on (not possible for grok), or -ctv f16")]
    QuantizedV {
        /// `-ctv`.
        type_v: GgmlType,
    },
    /// A head that is no whole number of a cache type's blocks.
    #[error(
        "llama.cpp refuses {ty} for the {cache} cache: its blocks of {block} do not divide this model's head size {head}; use f16"
    )]
    HeadBlock {
        /// `K` or `V`.
        cache: &'static str,
        /// The type asked for.
        ty: GgmlType,
        /// Elements of a head.
        head: u32,
        /// Elements of a block.
        block: u64,
    },
    /// A row that is no whole number of a cache type's blocks.
    #[error(
        "a cache row of {width} elements (layer {il}) is no whole number of {ty} blocks of {block}: use -ctk f16 -ctv f16"
    )]
    CacheRow {
        /// The type.
        ty: GgmlType,
        /// Elements of a row.
        width: u64,
        /// The layer.
        il: u32,
        /// Elements of a block.
        block: u64,
    },
    /// More sequences than llama.cpp has.
    #[error("llama.cpp refuses -np {n_seq_max}: it has at most {} sequences", context::MAX_SEQUENCES)]
    TooManySequences {
        /// `-np`.
        n_seq_max: u32,
    },
    /// Neither the command nor the model says how long the context is.
    #[error("the context or the batch is 0 tokens: give -c and -b")]
    NoContext,
    /// Beyond 2^64 bytes.
    #[error("the context is larger than 2^64 bytes: give a smaller -c")]
    TooLarge,
}

/// What llama.cpp b11434 would report for `model` on `machine`, launched as `run` and placed as `placement`.
pub fn predict(model: &Model, machine: &Machine, run: &RunConfig, placement: &Placement) -> Result<Prediction, Error> {
    predict_with(model, machine, run, placement, None)
}

/// [`predict`] with the compute buffers known already: all but them is sums, so that many launches can be looked at.
pub fn predict_with(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: &Placement,
    compute: Option<&compute::Compute>,
) -> Result<Prediction, Error> {
    let numbers = numbers(run, &model.hparams);
    let caches = caches::caches(model, run, &numbers);
    context::check(&caches, model, run, &numbers)?;
    let mut memory = MemoryByDevice::from([(HOST.to_string(), MemoryBreakdown::default())]);
    let mut basis = vec![Basis {
        quantity: "context".to_string(),
        how: caches.list.iter().map(context::describe).collect::<Vec<_>>().join("; "),
    }];
    let growth = overhead::host_growth(run, &numbers, &caches, model.hparams.vocab_size);
    let (logits, checkpoints, cache) = (growth.logits, growth.checkpoints, growth.prompt_cache);
    basis.push(Basis {
        quantity: "Host.uncounted".to_string(),
        how: format!("up to {logits} of logits, {checkpoints} of checkpoints, {cache} of prompt cache (--cache-ram)"),
    });
    for at in &placement.devices {
        let Some(device) = machine.devices.get(usize::from(*at)) else { continue };
        let overhead = overhead::held(device, *at, model, run, placement);
        memory.entry(device.name.clone()).or_default().overhead = overhead.peak;
        basis.push(Basis { quantity: format!("{}.overhead", device.name), how: overhead.source.to_string() });
    }
    for (device, bytes) in placement::model_bytes(placement, model, machine) {
        memory.entry(device).or_default().model = bytes;
    }
    for (device, bytes) in context::bytes_by_device(&caches, machine, run, placement)? {
        memory.entry(device).or_default().context = bytes;
    }
    let cache = expert_cache::expert_cache(model, machine, run, placement);
    for (device, bytes) in &cache.by_device {
        memory.entry(device.clone()).or_default().context += *bytes;
        let how =
            format!("{bytes} of it caches experts: whole slots, rounded down; checked on one measurement (b11549)");
        basis.push(Basis { quantity: format!("{device}.context"), how });
    }
    let replayed = || compute::predict(model, machine, run, &numbers, &caches, placement);
    let compute = compute.cloned().unwrap_or_else(replayed);
    for (device, bytes) in compute.by_device {
        memory.entry(device).or_default().compute = bytes;
    }
    let how = match compute.basis {
        compute::Basis::Replay => "the graph laid out and allocated as llama.cpp b11434 does",
        compute::Basis::Formula => "closed forms: within some per cent on plain attention, 10 to 20% elsewhere",
        compute::Basis::Contradiction => {
            "closed forms: no graph can be laid out, the header's keys and shapes contradict each other"
        }
    };
    basis.push(Basis { quantity: "compute".to_string(), how: how.to_string() });
    Ok(Prediction { memory, numbers, caches, flash_attn: compute.flash_attn, basis })
}
