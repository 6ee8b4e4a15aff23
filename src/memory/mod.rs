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
pub mod projector;
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
pub use projector::Projector;

pub use crate::placement::HOST;

/// Whether a key of memory tables is of host memory: buffer types that llama.cpp lists apart are.
pub fn is_host(key: &str) -> bool {
    matches!(key, HOST | "CPU_REPACK" | "AMX")
}

/// Memory of one device (or `Host`, or another buffer type) by term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryBreakdown {
    pub model: Bytes,
    pub context: Bytes,
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

    pub fn total(&self) -> Bytes {
        self.own() + self.overhead
    }
}

/// A row of memory with its sum, as documents have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryRow {
    #[serde(flatten)]
    pub terms: MemoryBreakdown,
    pub total: Bytes,
}

impl From<MemoryBreakdown> for MemoryRow {
    fn from(terms: MemoryBreakdown) -> Self {
        Self { terms, total: terms.total() }
    }
}

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

/// What a part of a launch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum What {
    Target,
    /// The context that drafts: of a draft model, or of the target's own NextN (MTP) blocks, whose weights are the target's.
    Drafting,
    /// A multimodal projector.
    Projector,
}

/// One loaded model of a launch, or one context.
#[derive(Debug, Clone)]
pub struct Part {
    pub what: What,
    pub placement: Placement,
    /// llama.cpp's own sums: without overhead.
    pub memory: MemoryByDevice,
    pub caches: Caches,
}

/// What a launch would take by llama.cpp b11434: where every tensor is, the memory, and where each figure comes from. Made by
/// [`forecast`] and carried from there.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Of the target.
    pub placement: Placement,
    /// All parts and the overhead: a row for every device that takes part, and `Host`.
    pub memory: MemoryByDevice,
    /// llama.cpp's own sums of the target.
    pub target: MemoryByDevice,
    /// What the launch loads beside the target.
    pub drafting: Option<Part>,
    pub projector: Option<Projector>,
    /// The span of the files that stays mapped; `None` where nothing is mapped.
    pub mapped_span: Option<Bytes>,
    pub numbers: ContextNumbers,
    pub caches: Caches,
    /// Whether attention is one operation (`-fa auto` resolved); `None` where compute is not counted.
    pub flash_attn: Option<bool>,
    pub basis: Vec<Basis>,
    /// The terms that are not in `memory`: only [`as_far_as_known`] leaves any out.
    pub uncounted: Vec<Uncounted>,
}

/// What [`Uncounted`] calls parts of a launch that are not the target.
pub const PARTS: [&str; 2] = ["drafting", "projector"];

/// A term of memory that is not counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Uncounted {
    pub what: Cow<'static, str>,
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
    pub quantity: String,
    pub how: String,
}

/// Why there is no prediction: llama.cpp would refuse the launch, or moeplan cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `llama_init_from_model`: MLA models keep K and V in one cache.
    #[error(
        "llama.cpp refuses -ctk {type_k} with -ctv {type_v} for {architecture}, whose V is a view of K: give both the same type"
    )]
    DifferentTypes { architecture: String, type_k: GgmlType, type_v: GgmlType },
    #[error("llama.cpp refuses -ctv {type_v} without flash attention: use -fa on (not possible for grok), or -ctv f16")]
    QuantizedV { type_v: GgmlType },
    #[error(
        "llama.cpp refuses {ty} for the {cache} cache: its blocks of {block} do not divide this model's head size {head}; use f16"
    )]
    HeadBlock { cache: &'static str, ty: GgmlType, head: u32, block: u64 },
    #[error(
        "a cache row of {width} elements (layer {il}) is no whole number of {ty} blocks of {block}: use -ctk f16 -ctv f16"
    )]
    CacheRow { ty: GgmlType, width: u64, il: u32, block: u64 },
    #[error("llama.cpp refuses -np {n_seq_max}: it has at most {} sequences", context::MAX_SEQUENCES)]
    TooManySequences { n_seq_max: u32 },
    #[error("llama.cpp refuses `-sm tensor` with `-fa off`: use `-fa on`, or `-sm layer`")]
    TensorSplitWithoutFlash,
    #[error("the context or the batch is 0 tokens: give -c and -b")]
    NoContext,
    #[error("the context is larger than 64 PiB: give a smaller -c")]
    TooLarge,
    #[error(transparent)]
    Placement(#[from] placement::Error),
    #[error(transparent)]
    Graph(#[from] graph::Error),
    #[error("no {what} can be predicted: {reason}")]
    Uncounted { what: Cow<'static, str>, reason: String },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Placement(error) => error.hint(),
            Self::Graph(error) => error.hint(),
            Self::Uncounted { .. } => Some(
                "`moeplan check` shows where its weights go; llama-fit-params of a build that loads it measures".into(),
            ),
            _ => None,
        }
    }
}

/// What llama.cpp b11434 would report for `model` on `machine`, launched as `run`.
pub fn forecast(model: &Model, machine: &Machine, run: &RunConfig) -> Result<Forecast, Error> {
    forecast_placed(model, machine, run, placement::place(model, machine, run)?, None)
}

/// [`forecast`] of a launch whose placement is known, and perhaps its compute buffers: all but them is sums, so that many launches
/// can be looked at.
pub fn forecast_placed(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: Placement,
    compute: Option<&Compute>,
) -> Result<Forecast, Error> {
    if let Some(Uncounted { what, reason }) = Uncounted::of(model).pop() {
        return Err(Error::Uncounted { what, reason });
    }
    as_far_as_known(model, machine, run, placement, compute)
}

/// [`forecast_placed`] for any architecture: `uncounted` says which terms are missing.
pub fn as_far_as_known(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: Placement,
    compute: Option<&Compute>,
) -> Result<Forecast, Error> {
    let mut forecast = context_forecast(model, machine, run, placement, compute)?;
    forecast.target = forecast.memory.clone();
    if run.has_drafting() && forecast.uncounted.is_empty() {
        forecast.add_drafting(model, machine, run)?;
    }
    // One that `-hf` fetches by itself is in no flag.
    if run.has_projector() || (run.mmproj_auto && model.projector.is_some()) {
        match compute.and_then(|known| known.projector.clone()) {
            Some(known) => forecast.take_projector(known),
            None => forecast.add_projector(model, machine, run)?,
        }
    }
    if forecast.counts("overhead") {
        forecast.add_overhead(model, machine, run);
    }
    if forecast.counts("compute") {
        forecast.note("compute", "the graph laid out and allocated as llama.cpp b11434 does".to_string());
    }
    Ok(forecast)
}

/// One model and one context, without overhead.
fn context_forecast(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: Placement,
    compute: Option<&Compute>,
) -> Result<Forecast, Error> {
    let numbers = numbers(run, &model.hparams);
    let mut forecast = Forecast {
        memory: MemoryByDevice::from([(HOST.to_string(), MemoryBreakdown::default())]),
        target: MemoryByDevice::new(),
        drafting: None,
        projector: None,
        mapped_span: placement.mapped_span(model, run),
        caches: caches::caches(model, run, &numbers),
        placement,
        numbers,
        flash_attn: None,
        basis: Vec::new(),
        uncounted: Uncounted::of(model),
    };
    for (device, bytes) in placement::model_bytes(&forecast.placement, model, machine) {
        forecast.row(&device).model = bytes;
    }
    if forecast.counts("context") {
        forecast.add_context(model, machine, run)?;
    } else {
        forecast.caches.list = Vec::new();
    }
    if forecast.counts("compute") {
        let compute = match compute {
            Some(known) => known.clone(),
            None => {
                let Forecast { numbers, caches, placement, .. } = &forecast;
                compute::Launch { model, machine, run, numbers, caches, placement }.compute()?
            }
        };
        let shared = forecast.placement.shares.iter().flat_map(|shares| &shares.devices);
        let shared: Vec<_> = shared.filter_map(|at| Some(machine.device(*at)?.name.clone())).collect();
        for (device, bytes) in compute.by_device {
            // Each device of `-sm tensor` allocates the whole graph.
            let all = shared.iter().filter(|_| shared.first() == Some(&device));
            for name in all {
                forecast.row(name).compute = bytes;
            }
            forecast.row(&device).compute = bytes;
        }
        forecast.flash_attn = Some(compute.flash_attn);
    }
    Ok(forecast)
}

impl Forecast {
    /// Whether a term is in the table.
    pub fn counts(&self, what: &str) -> bool {
        self.uncounted.iter().all(|term| term.what != what)
    }

    /// Whether every term of the target is counted: only parts are left out, if anything is.
    pub fn is_whole(&self) -> bool {
        self.uncounted.iter().all(|term| PARTS.contains(&&*term.what))
    }

    /// All that a device or `Host` holds; nothing where it takes no part.
    pub fn total(&self, name: &str) -> Bytes {
        self.memory.get(name).map_or(Bytes(0), MemoryBreakdown::total)
    }

    /// The total of every row that is not a device's.
    pub fn host_total(&self) -> Bytes {
        self.memory.iter().filter(|(name, _)| is_host(name)).map(|(_, row)| row.total()).sum()
    }

    /// What the launch takes of main memory, devices that share it included.
    pub fn in_main_memory(&self, machine: &Machine) -> Bytes {
        self.host_total() + shared_with_host(machine, &self.memory)
    }

    /// The caches of each context.
    pub fn contexts(&self) -> impl Iterator<Item = &Caches> {
        std::iter::once(&self.caches).chain(self.drafting.iter().map(|part| &part.caches))
    }

    /// The devices that the launch uses, by their place in the machine.
    pub fn devices(&self) -> Vec<u16> {
        let placements = std::iter::once(&self.placement).chain(self.drafting.iter().map(|part| &part.placement));
        let projector = self.projector.iter().filter_map(|projector| projector.device);
        let of = |placement: &Placement| {
            [Some(&placement.devices), placement.shares.as_ref().map(|all| &all.devices)]
                .into_iter()
                .flatten()
                .flatten()
                .copied()
                .collect::<Vec<_>>()
        };
        let mut devices: Vec<u16> = placements.flat_map(of).chain(projector).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// The target's compute column, where compute is counted.
    pub fn compute(&self) -> Compute {
        let by_device = self.target.iter().map(|(name, row)| (name.clone(), row.compute)).collect();
        let projector = self.projector.clone().filter(|_| self.counts("projector"));
        Compute { by_device, flash_attn: self.flash_attn == Some(true), projector }
    }

    fn row(&mut self, device: &str) -> &mut MemoryBreakdown {
        self.memory.entry(device.to_string()).or_default()
    }

    fn note(&mut self, quantity: &str, how: String) {
        self.basis.push(Basis { quantity: quantity.to_string(), how });
    }

    /// The context that drafts, of the draft model or of the model's own NextN blocks.
    fn add_drafting(&mut self, model: &Model, machine: &Machine, run: &RunConfig) -> Result<(), Error> {
        let run = run.drafting(self.numbers.n_ctx);
        let (drafter, placement) = match &model.draft {
            Some(draft) => (draft.as_ref(), placement::place(draft, machine, &run)?),
            None if run.has_draft_model() => {
                self.leave_out("drafting", "the draft model is not known".to_string());
                return Ok(());
            }
            None => (model, self.placement.clone()),
        };
        let nextn = drafter.hparams.nextn_predict_layers;
        if run.mtp_context && (nextn == 0 || drafter.context.has_router_layer) {
            // `llama_init_from_model` refuses, which a lint says.
            return Ok(());
        }
        let mut part = match context_forecast(drafter, machine, &run, placement, None) {
            Ok(part) if part.uncounted.is_empty() => part,
            Ok(part) => {
                self.leave_out(
                    "drafting",
                    part.uncounted.into_iter().map(|term| term.reason).next().unwrap_or_default(),
                );
                return Ok(());
            }
            Err(Error::Graph(graph::Error::Architecture { architecture })) => {
                self.leave_out("drafting", format!("moeplan does not build the drafting graph of `{architecture}`"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (name, row) in &mut part.memory {
            if model.draft.is_none() {
                row.model = Bytes(0);
            }
            let sum = self.row(name);
            (sum.model, sum.context, sum.compute) =
                (sum.model + row.model, sum.context + row.context, sum.compute + row.compute);
        }
        for basis in part.basis {
            self.note(&format!("drafting.{}", basis.quantity), basis.how);
        }
        let Self { placement, memory, caches, .. } = part;
        self.drafting = Some(Part { what: What::Drafting, placement, memory, caches });
        Ok(())
    }

    fn leave_out(&mut self, what: &'static str, reason: String) {
        self.uncounted.push(Uncounted { what: what.into(), reason });
    }

    /// The caches.
    fn add_context(&mut self, model: &Model, machine: &Machine, run: &RunConfig) -> Result<(), Error> {
        context::check(&self.caches, model, run, &self.numbers)?;
        let contexts = context::bytes_by_device(&self.caches, model, machine, run, &self.placement)?;
        let caches = self.caches.list.iter().map(context::describe).collect::<Vec<_>>().join("; ");
        self.note("context", caches);
        for (device, bytes) in contexts {
            self.row(&device).context = bytes;
        }
        let cached = expert_cache::expert_cache(model, machine, run, &self.placement).by_device;
        for (device, bytes) in cached.into_iter().filter(|(_, bytes)| *bytes > Bytes(0)) {
            self.row(&device).context += bytes;
            let how =
                format!("{bytes} of it caches experts: whole slots, rounded down; checked on one measurement (b11549)");
            self.note(&format!("{device}.context"), how);
        }
        Ok(())
    }

    /// What devices hold beside the table, and what the host may come to hold.
    fn add_overhead(&mut self, model: &Model, machine: &Machine, run: &RunConfig) {
        let growth = overhead::host_growth(run, &self.numbers, self.contexts(), model.hparams.vocab_size);
        let (logits, checkpoints, cache) = (growth.logits, growth.checkpoints, growth.prompt_cache);
        let most = format!("{logits} of logits, {checkpoints} of checkpoints, {cache} of prompt cache (--cache-ram)");
        self.note("Host.uncounted", format!("up to {most}"));
        for (at, device) in self.devices().into_iter().filter_map(|at| Some((at, machine.device(at)?))) {
            let mut overhead = overhead::held(device, at, model, run, &self.placement);
            let drafts = self.drafting.as_ref().is_some_and(|part| part.placement.devices.contains(&at));
            if drafts && overhead.multiprocessors.is_some() {
                overhead.peak += overhead::SECOND_CONTEXT;
            }
            self.row(&device.name).overhead = overhead.peak;
            self.note(&format!("{}.overhead", device.name), overhead.source.to_string());
        }
    }
}
