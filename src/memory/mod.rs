//! Memory by device, in llama.cpp's words: predicted here, measured in `runtime`, one type for both.

pub mod alloc;
pub mod backend;
pub mod caches;
pub mod compute;
pub mod context;
pub mod expert_cache;
mod fusion;
pub mod graph;
pub mod overhead;
pub mod pools;
pub mod sched;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::machine::Machine;
use crate::model::Model;
use crate::placement::{self, Placement};
use crate::run::RunConfig;
use crate::run::numbers::{ContextNumbers, numbers};
use crate::suggest::Hint;
pub use caches::Caches;
use compute::Compute;
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
    /// Whether attention is one operation (`-fa auto` resolved); `None` where compute is not counted.
    pub flash_attn: Option<bool>,
    /// Where the figures come from.
    pub basis: Vec<Basis>,
    /// The terms that are not in `memory`. [`predict`] gives none such; [`predict_as_far_as_known`] may.
    pub uncounted: Vec<Uncounted>,
}

/// A term of memory that is not counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Uncounted {
    /// Which: `context`, `compute`, `overhead`.
    pub what: Cow<'static, str>,
    /// Why.
    pub reason: String,
}

impl Uncounted {
    /// What of a model cannot be counted, for want of its architecture.
    fn of(model: &Model) -> Vec<Self> {
        let architecture = &model.architecture;
        let (terms, reason): (&[&str], _) = if Arch::named(architecture).is_none() {
            let reason = format!("llama.cpp b11434 does not know the architecture `{architecture}`");
            (&["context", "compute", "overhead"], reason)
        } else if !Arch::of(architecture).has_graph() {
            (&["compute"], format!("moeplan does not build the graph of `{architecture}`"))
        } else {
            (&[], String::new())
        };
        terms.iter().map(|what| Self { what: (*what).into(), reason: reason.clone() }).collect()
    }
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
    /// Beyond any memory.
    #[error("the context is larger than 64 PiB: give a smaller -c")]
    TooLarge,
    /// A graph that llama.cpp would not build.
    #[error(transparent)]
    Graph(#[from] graph::Error),
    /// An architecture that is not known well enough.
    #[error("no {what} can be predicted: {reason}")]
    Uncounted {
        /// Which term.
        what: Cow<'static, str>,
        /// Why.
        reason: String,
    },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Graph(error) => error.hint(),
            Self::Uncounted { .. } => Some(
                "`moeplan check` shows where its weights go; llama-fit-params of a build that loads it measures".into(),
            ),
            _ => None,
        }
    }
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
    compute: Option<&Compute>,
) -> Result<Prediction, Error> {
    if let Some(Uncounted { what, reason }) = Uncounted::of(model).pop() {
        return Err(Error::Uncounted { what, reason });
    }
    count(model, machine, run, placement, compute)
}

/// [`predict`] for any architecture: `uncounted` says which terms are missing.
pub fn predict_as_far_as_known(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: &Placement,
) -> Result<Prediction, Error> {
    count(model, machine, run, placement, None)
}

/// Counts every term but those that cannot be.
fn count(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: &Placement,
    compute: Option<&Compute>,
) -> Result<Prediction, Error> {
    let numbers = numbers(run, &model.hparams);
    let mut prediction = Prediction {
        memory: MemoryByDevice::from([(HOST.to_string(), MemoryBreakdown::default())]),
        caches: caches::caches(model, run, &numbers),
        numbers,
        flash_attn: None,
        basis: Vec::new(),
        uncounted: Uncounted::of(model),
    };
    for (device, bytes) in placement::model_bytes(placement, model, machine) {
        prediction.row(&device).model = bytes;
    }
    if prediction.counts("context") {
        prediction.add_context(model, machine, run, placement)?;
    } else {
        (prediction.caches.list, prediction.caches.mtp) = (Vec::new(), Vec::new());
    }
    if prediction.counts("compute") {
        let compute = match compute {
            Some(known) => known.clone(),
            None => compute::predict(model, machine, run, &prediction.numbers, &prediction.caches, placement)?,
        };
        for (device, bytes) in compute.by_device {
            prediction.row(&device).compute = bytes;
        }
        prediction.flash_attn = Some(compute.flash_attn);
        prediction.note("compute", "the graph laid out and allocated as llama.cpp b11434 does".to_string());
    }
    Ok(prediction)
}

impl Prediction {
    /// Whether a term is in the table.
    pub fn counts(&self, what: &str) -> bool {
        self.uncounted.iter().all(|term| term.what != what)
    }

    fn row(&mut self, device: &str) -> &mut MemoryBreakdown {
        self.memory.entry(device.to_string()).or_default()
    }

    fn note(&mut self, quantity: &str, how: String) {
        self.basis.push(Basis { quantity: quantity.to_string(), how });
    }

    /// The caches, what else the host holds for the context, and what devices hold beside the table.
    fn add_context(
        &mut self,
        model: &Model,
        machine: &Machine,
        run: &RunConfig,
        placement: &Placement,
    ) -> Result<(), Error> {
        context::check(&self.caches, model, run, &self.numbers)?;
        let contexts = context::bytes_by_device(&self.caches, machine, run, placement)?;
        let caches = self.caches.list.iter().map(context::describe).collect::<Vec<_>>().join("; ");
        self.note("context", caches);
        let growth = overhead::host_growth(run, &self.numbers, &self.caches, model.hparams.vocab_size);
        let (logits, checkpoints, cache) = (growth.logits, growth.checkpoints, growth.prompt_cache);
        let most = format!("{logits} of logits, {checkpoints} of checkpoints, {cache} of prompt cache (--cache-ram)");
        self.note("Host.uncounted", format!("up to {most}"));
        for at in &placement.devices {
            let Some(device) = machine.devices.get(usize::from(*at)) else { continue };
            let overhead = overhead::held(device, *at, model, run, placement);
            self.row(&device.name).overhead = overhead.peak;
            self.note(&format!("{}.overhead", device.name), overhead.source.to_string());
        }
        for (device, bytes) in contexts {
            self.row(&device).context = bytes;
        }
        for (device, bytes) in expert_cache::expert_cache(model, machine, run, placement).by_device {
            self.row(&device).context += bytes;
            let how =
                format!("{bytes} of it caches experts: whole slots, rounded down; checked on one measurement (b11549)");
            self.note(&format!("{device}.context"), how);
        }
        Ok(())
    }
}
