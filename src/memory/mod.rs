//! Memory by device, in llama.cpp's words: predicted here, measured in `runtime`, one type for both.

pub mod alloc;
pub mod backend;
pub mod caches;
pub mod compute;
pub mod context;
pub mod expert_cache;
mod fusion;
pub mod graph;
pub mod host;
pub mod overhead;
pub mod pools;
pub mod projector;
pub mod sched;
mod vulkan;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::bytes::Bytes;
use crate::gguf::{GgmlType, Value};
use crate::machine::{Device, Machine};
use crate::model::Model;
use crate::placement::{self, Mapped, Placement};
use crate::run::numbers::{ContextNumbers, numbers};
use crate::run::{Program, RunConfig, SplitMode, Target};
use crate::suggest::Hint;
pub use caches::Caches;
use compute::Compute;
pub use context::ContextPerToken;
pub use host::{HostNeeds, reserve};
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
    let shared = machine.devices.iter().filter(|device| device.integrated);
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
    pub placement: Placement,
    /// llama.cpp's own sums: without overhead.
    pub memory: MemoryByDevice,
    /// As in [`Forecast`].
    pub beyond: BTreeMap<String, i64>,
    pub caches: Caches,
    /// As in [`Forecast`].
    pub kernels: usize,
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
    /// Bytes of the target's compute buffers that the launch allocates beyond the projected ones, or fewer. In `overhead`.
    pub beyond: BTreeMap<String, i64>,
    /// Bytes that they take on top at the first prompt, of which no log tells: MTP reads every row of the last layer. In `overhead`.
    pub grown: BTreeMap<String, Bytes>,
    pub mapped: Mapped,
    pub host_needs: HostNeeds,
    pub numbers: ContextNumbers,
    pub caches: Caches,
    /// Whether the target has several micro-batches in flight (pipeline parallelism).
    pub is_pipelined: bool,
    /// What a device's compute buffer takes with pipeline parallelism, where that does not fit and the launch goes on without.
    pub retried: Option<(String, Bytes)>,
    /// Kernels that a graph of the target starts; 0 where compute is not counted.
    pub kernels: usize,
    /// The largest result of an operation on a Vulkan device, where that is more than every driver takes.
    pub beyond_vulkan: Option<Bytes>,
    /// Whether attention is one operation (`-fa auto` resolved); `None` where compute is not counted.
    pub flash_attn: Option<bool>,
    pub basis: Vec<Basis>,
    /// The terms that are not in `memory`: only [`Launch::projection`] leaves any out.
    pub uncounted: Vec<Uncounted>,
}

/// The layers of the target whose input the draft model reads (`common/speculative.cpp` `common_speculative_impl_draft_eagle3`,
/// `_dflash`, b11434).
pub fn taps(model: &Model, run: &RunConfig) -> Vec<u32> {
    let draft = model.draft.as_ref().filter(|_| run.n_draft > 0 && !run.mtp);
    let Some(Value::Array(layers)) = draft.and_then(|draft| draft.hparams.value("target_layers")) else {
        return Vec::new();
    };
    let number = |value: &Value| match value {
        Value::I64(n) => u32::try_from(*n).ok(),
        value => value.as_u64().and_then(|n| u32::try_from(n).ok()),
    };
    // eagle3 reads the last layer's output as NextN blocks do.
    let is_eagle = draft.is_some_and(|draft| draft.architecture == "eagle3");
    layers.iter().filter_map(number).filter(|il| !is_eagle || *il != model.context.n_layer).collect()
}

/// What [`Uncounted`] calls parts of a launch that are not the target.
pub const PARTS: [&str; 3] = ["drafting", "projector", "adapter"];

/// A term of memory that is not counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Uncounted {
    pub what: Cow<'static, str>,
    pub reason: String,
}

impl Uncounted {
    /// What of a model cannot be counted, for want of its architecture.
    fn of(model: &Model, target: Target) -> Vec<Self> {
        let architecture = &model.architecture;
        let (terms, reason): (&[&str], _) = if Arch::known_to(target.build, architecture).is_none() {
            let reason = format!("{} does not know the architecture `{architecture}`", target.name());
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
        "a cache row of {width} elements (layer {il}) is not a whole number of {ty} blocks of {block}: use -ctk f16 -ctv f16"
    )]
    CacheRow { ty: GgmlType, width: u64, il: u32, block: u64 },
    #[error("llama.cpp refuses -np {n_seq_max}: it has at most {} sequences", context::MAX_SEQUENCES)]
    TooManySequences { n_seq_max: u32 },
    #[error("llama.cpp refuses `-sm tensor` with `-fa off`: use `-fa on`, or `-sm layer`")]
    TensorSplitWithoutFlash,
    #[error("{} does not load `{tensor}`: its type {ty} is {}", target.name(), Target::with(*ty))]
    Type { tensor: String, ty: GgmlType, target: Target },
    #[error("the context or the batch is 0 tokens: give -c and -b")]
    NoContext,
    #[error("the context is larger than 64 PiB: give a smaller -c")]
    TooLarge,
    /// Fitting gives up with it (`common/fit.cpp`).
    #[error("llama_max_tensor_buft_overrides() == 4096 is insufficient for model")]
    TooManyOverrides,
    #[error(transparent)]
    Placement(#[from] placement::Error),
    #[error(transparent)]
    Graph(#[from] graph::Error),
    #[error("{what} cannot be predicted: {reason}")]
    Uncounted { what: Cow<'static, str>, reason: String },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Placement(error) => error.hint(),
            Self::Type { ty, .. } if ty.since == u32::MAX => {
                Some("`moeplan check --dialect ik` answers for ik_llama.cpp".into())
            }
            Self::Type { ty, .. } => {
                Some(format!("`--build {}` or newer answers for a build that does", ty.since).into())
            }
            Self::Graph(error) => error.hint(),
            Self::Uncounted { .. } => Some(
                "`moeplan check` shows where its weights go; llama-fit-params from a build that loads it measures the rest".into(),
            ),
            _ => None,
        }
    }
}

/// What llama.cpp b11434 would report for `model` on `machine`, launched as `run`.
pub fn forecast(model: &Model, machine: &Machine, run: &RunConfig) -> Result<Forecast, Error> {
    Launch::new(model, machine, run).forecast(placement::place(model, machine, run)?, None)
}

/// What a forecast is of.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    model: &'a Model,
    machine: &'a Machine,
    run: &'a RunConfig,
    /// What a draft model drafts for.
    other: Option<graph::Other<'a>>,
    /// Whether several micro-batches may be in flight at a time (pipeline parallelism).
    may_pipeline: bool,
}

impl<'a> Launch<'a> {
    pub fn new(model: &'a Model, machine: &'a Machine, run: &'a RunConfig) -> Self {
        Self { model, machine, run, other: None, may_pipeline: true }
    }

    /// The forecast where the placement is known, and perhaps the compute buffers: all but them is sums, so that many launches can
    /// be looked at.
    pub fn forecast(self, placement: Placement, compute: Option<&Compute>) -> Result<Forecast, Error> {
        if let Some(Uncounted { what, reason }) = Uncounted::of(self.model, self.run.target).pop() {
            return Err(Error::Uncounted { what, reason });
        }
        let forecast = self.projection(placement, compute)?;
        // Of many launches the one that is taken is looked at with compute of its own.
        if compute.is_some() { Ok(self.launched(forecast)) } else { self.started(forecast) }
    }

    /// llama.cpp's own sums, which its projection finds without allocating anything: of any architecture, `uncounted` says which terms
    /// are missing.
    pub fn projection(self, placement: Placement, compute: Option<&Compute>) -> Result<Forecast, Error> {
        let mut forecast = self.context(placement, compute)?;
        forecast.target = forecast.memory.clone();
        if self.run.has_drafting() && forecast.uncounted.is_empty() {
            self.add_drafting(&mut forecast)?;
        }
        // One that `-hf` fetches by itself is in no flag.
        if self.run.has_projector() || (self.run.mmproj_auto && self.model.projector.is_some()) {
            match compute.and_then(|known| known.projector.clone()) {
                Some(known) => forecast.take_projector(known),
                None => forecast.add_projector(self.model, self.machine, self.run)?,
            }
        }
        if self.run.has_adapters {
            let reason = "moeplan does not count LoRA adapters and control vectors; a LoRA takes about its file's size";
            forecast.leave_out("adapter", reason.to_string());
        }
        Ok(forecast)
    }

    /// One model and one context.
    fn context(self, placement: Placement, compute: Option<&Compute>) -> Result<Forecast, Error> {
        let Self { model, machine, run, .. } = self;
        if let Some(tensor) = model.tensors.iter().find(|tensor| !run.target.loads(tensor.ty)) {
            return Err(Error::Type { tensor: tensor.name.clone(), ty: tensor.ty, target: run.target });
        }
        let numbers = numbers(run, &model.hparams);
        let mut forecast = Forecast {
            memory: MemoryByDevice::from([(HOST.to_string(), MemoryBreakdown::default())]),
            target: MemoryByDevice::new(),
            drafting: None,
            projector: None,
            beyond: BTreeMap::new(),
            grown: BTreeMap::new(),
            mapped: Mapped::default(),
            host_needs: HostNeeds::default(),
            caches: caches::caches(model, run, &numbers),
            placement,
            numbers,
            flash_attn: None,
            is_pipelined: false,
            kernels: 0,
            beyond_vulkan: None,
            retried: None,
            basis: Vec::new(),
            uncounted: Uncounted::of(model, run.target),
        };
        for (device, bytes) in placement::model_bytes(&forecast.placement, model, machine) {
            forecast.row(&device).model = bytes;
        }
        if forecast.counts("context") {
            self.add_context(&mut forecast)?;
        } else {
            forecast.caches.list = Vec::new();
        }
        if forecast.counts("compute") {
            let compute = match compute {
                Some(known) => known.clone(),
                None => {
                    let Forecast { numbers, placement, .. } = &forecast;
                    let caches = &caches::of_graph(model, run, numbers);
                    compute::Context { launch: self, numbers, caches, placement }.compute(&taps(model, run))?
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
            (forecast.is_pipelined, forecast.kernels) = (compute.is_pipelined, compute.kernels);
            (forecast.beyond, forecast.grown) = (compute.beyond, compute.grown);
            forecast.beyond_vulkan = compute.beyond_vulkan;
        }
        Ok(forecast)
    }

    /// A projection with what devices and the host hold beside it, where its tensors are as the launch puts them.
    pub fn launched(self, mut forecast: Forecast) -> Forecast {
        let Self { model, machine, run, .. } = self;
        forecast.mapped = forecast.placement.mapped(model, machine, run.rules());
        if let (Some(part), Some(draft)) = (&forecast.drafting, &model.draft) {
            let of_draft = part.placement.mapped(draft, machine, run.rules());
            for (name, span) in of_draft.devices {
                *forecast.mapped.devices.entry(name).or_default() += span;
            }
            if let Some(span) = of_draft.host {
                *forecast.mapped.host.get_or_insert_default() += span;
            }
        }
        forecast.host_needs = HostNeeds::of(model, machine, run, &forecast);
        if forecast.counts("overhead") {
            self.add_overhead(&mut forecast);
        }
        for (name, bytes) in forecast.beyond() {
            let row = forecast.row(&name);
            row.overhead = Bytes(row.overhead.0.saturating_add_signed(bytes));
            let size = Bytes(bytes.unsigned_abs());
            let more = if bytes > 0 { "more" } else { "less" };
            let how = format!("compute buffers take {size} {more} than llama.cpp projects");
            forecast.note(&format!("{name}.overhead"), how);
        }
        for (name, bytes) in placement::by_size::derived_weights(model, machine, run, &forecast.placement) {
            forecast.row(&name).overhead += bytes;
            let how = format!("{bytes} of it are weights of MLA that ik_llama.cpp makes of others");
            forecast.note(&format!("{name}.overhead"), how);
        }
        for (name, bytes) in forecast.grown.clone() {
            forecast.row(&name).overhead += bytes;
            let how = format!("{bytes} of it at the first prompt: MTP reads every row of the last layer");
            forecast.note(&format!("{name}.overhead"), how);
        }
        if forecast.counts("compute") {
            forecast.note("compute", "the graph laid out and allocated as llama.cpp b11434 does".to_string());
        }
        forecast
    }

    /// [`Self::launched`]; compute buffers that cannot be allocated with several micro-batches in flight are tried again without
    /// (`src/llama-context.cpp` `sched_reserve`, b11434). Fitting looks at projections, which allocate nothing.
    pub fn started(self, projection: Forecast) -> Result<Forecast, Error> {
        let Self { model, machine, run, .. } = self;
        let forecast = self.launched(projection);
        if !forecast.is_pipelined || run.fit || run.program == Program::FitParams {
            return Ok(forecast);
        }
        let lacking = forecast.placement.taking_part(machine).find_map(|(at, device)| {
            let row = forecast.memory.get(&device.name)?;
            let loaded = overhead::held(device, at, model, run, &forecast.placement).loaded;
            (row.own() + loaded > device.total).then(|| (device.name.clone(), row.compute))
        });
        if lacking.is_none() {
            return Ok(forecast);
        }
        let again = Self { may_pipeline: false, ..self };
        Ok(Forecast { retried: lacking, ..again.launched(again.projection(forecast.placement, None)?) })
    }

    /// The context that drafts, of the draft model or of the model's own NextN blocks.
    fn add_drafting(self, forecast: &mut Forecast) -> Result<(), Error> {
        let Self { model, machine, .. } = self;
        let run = self.run.drafting(forecast.numbers.n_ctx);
        let (drafter, placement) = match &model.draft {
            Some(draft) => (draft.as_ref(), placement::place(draft, machine, &run)?),
            None if run.has_draft_model() => {
                forecast.leave_out("drafting", "the draft model is not known".to_string());
                return Ok(());
            }
            None => (model, forecast.placement.clone()),
        };
        let nextn = drafter.hparams.nextn_predict_layers;
        if run.mtp_context && (nextn == 0 || drafter.context.has_router_layer) {
            // `llama_init_from_model` refuses, which a lint says.
            return Ok(());
        }
        let other = Some(graph::Other { model, placement: &forecast.placement, caches: &forecast.caches });
        let launch = Launch { model: drafter, run: &run, other, ..self };
        let mut part = match launch.context(placement, None) {
            Ok(part) if part.uncounted.is_empty() => part,
            Ok(part) => {
                let reason = part.uncounted.into_iter().map(|term| term.reason).next();
                forecast.leave_out("drafting", reason.unwrap_or_default());
                return Ok(());
            }
            Err(Error::Graph(graph::Error::Architecture { architecture })) => {
                forecast
                    .leave_out("drafting", format!("moeplan does not build the drafting graph of `{architecture}`"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (name, row) in &mut part.memory {
            if model.draft.is_none() {
                row.model = Bytes(0);
            }
            let sum = forecast.row(name);
            (sum.model, sum.context, sum.compute) =
                (sum.model + row.model, sum.context + row.context, sum.compute + row.compute);
        }
        for basis in part.basis {
            forecast.note(&format!("drafting.{}", basis.quantity), basis.how);
        }
        let Forecast { placement, memory, beyond, caches, kernels, .. } = part;
        forecast.drafting = Some(Part { placement, memory, beyond, caches, kernels });
        Ok(())
    }

    /// The caches.
    fn add_context(self, forecast: &mut Forecast) -> Result<(), Error> {
        let Self { model, machine, run, .. } = self;
        context::check(&forecast.caches, model, run, &forecast.numbers)?;
        let contexts = context::bytes_by_device(&forecast.caches, model, machine, run, &forecast.placement)?;
        let caches = forecast.caches.list.iter().map(context::describe).collect::<Vec<_>>().join("; ");
        forecast.note("context", caches);
        for (device, bytes) in contexts {
            forecast.row(&device).context = bytes;
        }
        let cached = expert_cache::expert_cache(model, machine, run, &forecast.placement).by_device;
        for (device, bytes) in cached.into_iter().filter(|(_, bytes)| *bytes > Bytes(0)) {
            forecast.row(&device).context += bytes;
            let how =
                format!("{bytes} of it caches experts: whole slots, rounded down; checked on one measurement (b11549)");
            forecast.note(&format!("{device}.context"), how);
        }
        Ok(())
    }

    /// The cards that the launch looks at and leaves alone: with `-sm none` and without `--device` llama.cpp asks every card for its
    /// memory (`src/llama.cpp` `llama_prepare_model_devices`), which creates a context on those of CUDA's source alone
    /// (`common/common.cpp` `common_params_print_info`; `ggml-vulkan.cpp` `ggml_backend_vk_get_device_memory`, b11434).
    fn looked_at(self, forecast: &Forecast) -> Vec<&'a Device> {
        let used = forecast.devices();
        let looks = self.run.split_mode == SplitMode::None && self.run.devices.is_none();
        let cards = (0_u16..).zip(&self.machine.devices).filter(|(at, device)| {
            looks && device.backend.is_cuda_source() && !device.integrated && !used.contains(at)
        });
        cards.map(|(_, device)| device).collect()
    }

    /// What devices hold beside the table: the driver's, and of files that they use in place what lies between their tensors.
    fn add_overhead(self, forecast: &mut Forecast) {
        let Self { model, machine, run, .. } = self;
        for (at, device) in forecast.devices().into_iter().filter_map(|at| Some((at, machine.device(at)?))) {
            let row = *forecast.row(&device.name);
            let mut overhead = if row.own() == Bytes(0) {
                overhead::at_rest(device, run.n_ubatch)
            } else {
                overhead::held(device, at, model, run, &forecast.placement)
            };
            if let Some(part) = &forecast.drafting {
                let beside = forecast.target.get(&device.name).is_some_and(|row| row.own() > Bytes(0));
                let drafter = model.draft.as_deref().unwrap_or(model);
                let run = run.drafting(forecast.numbers.n_ctx);
                overhead.peak += overhead::second(device, at, drafter, &run, part, beside);
            }
            if let Some(span) = forecast.mapped.devices.get(&device.name).copied() {
                // A span ends with its last tensor, whose padding is in the table.
                overhead.peak += span.saturating_sub(row.model);
                let how = format!(
                    "{span} of the file are mapped there, {} of them its own; with -lm none only those are loaded",
                    row.model
                );
                forecast.note(&format!("{}.mapped", device.name), how);
            }
            forecast.row(&device.name).overhead = overhead.peak;
            forecast.note(&format!("{}.overhead", device.name), overhead.source.to_string());
        }
        for device in self.looked_at(forecast) {
            let idle = overhead::at_rest(device, run.n_ubatch);
            forecast.row(&device.name).overhead = idle.peak;
            forecast.note(&format!("{}.overhead", device.name), idle.source.to_string());
        }
    }
}

impl Forecast {
    /// What all compute buffers of the launch have beyond the projected ones, by device.
    pub fn beyond(&self) -> BTreeMap<String, i64> {
        let mut sum = self.beyond.clone();
        for (name, bytes) in self.drafting.iter().flat_map(|part| &part.beyond) {
            *sum.entry(name.clone()).or_default() += bytes;
        }
        sum
    }

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
        (self.host_total() + shared_with_host(machine, &self.memory)).saturating_sub(self.mapped.twice)
    }

    /// What main memory has for the host's rows of the table, devices that share it taken off; `None` where its size is not known.
    pub fn host_budget(&self, machine: &Machine) -> Option<Bytes> {
        let beside = self.in_main_memory(machine).saturating_sub(self.host_total());
        Some(machine.host.ram?.saturating_sub(self.host_needs.least() + beside))
    }

    /// By how much each device, with `margin` left free, and `Host` are over their budgets; empty where the launch fits.
    ///
    /// A device without memory of its own may be over what its system lets it use, while main memory has room, or is short as well.
    pub fn shortfall(&self, machine: &Machine, margin: Bytes) -> BTreeMap<String, Bytes> {
        let mut shortfall = self.devices_short(machine, margin);
        let needed = self.in_main_memory(machine) + self.host_needs.least();
        let over = machine.host.ram.map(|ram| needed.saturating_sub(ram)).filter(|over| *over > Bytes(0));
        shortfall.extend(over.map(|over| (HOST.to_string(), over)));
        shortfall
    }

    /// How much of the mapped file main memory has no room for, of what it is short of, and so is read from the disk again and again;
    /// `None` where the rest does not fit either: caches, buffers and repacked weights come from no file.
    pub fn paged(&self, shortfall: &BTreeMap<String, Bytes>) -> Option<Bytes> {
        let mapped = self.memory.get(HOST).filter(|_| self.mapped.host.is_some())?.model;
        shortfall.get(HOST).copied().filter(|missing| *missing <= mapped)
    }

    /// By how much each device is over its budget.
    pub fn devices_short(&self, machine: &Machine, margin: Bytes) -> BTreeMap<String, Bytes> {
        let over = |device: &Device| {
            let used = self.total(&device.name);
            let over = (used + margin).saturating_sub(device.total);
            (used > Bytes(0) && over > Bytes(0)).then(|| (device.name.clone(), over))
        };
        machine.devices.iter().filter_map(over).collect()
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
            let shares = placement.shares.iter().flat_map(|shares| &shares.devices);
            placement.devices.iter().chain(shares).copied().collect::<Vec<_>>()
        };
        placements.flat_map(of).chain(projector).collect::<BTreeSet<u16>>().into_iter().collect()
    }

    /// The target's compute column, where compute is counted.
    pub fn compute(&self) -> Compute {
        let by_device = self.target.iter().map(|(name, row)| (name.clone(), row.compute)).collect();
        let projector = self.projector.clone().filter(|_| self.counts("projector"));
        let (flash_attn, is_pipelined) = (self.flash_attn == Some(true), self.is_pipelined);
        let (beyond, grown) = (self.beyond.clone(), self.grown.clone());
        let (kernels, beyond_vulkan) = (self.kernels, self.beyond_vulkan);
        Compute { by_device, beyond, grown, flash_attn, is_pipelined, kernels, beyond_vulkan, projector }
    }

    fn row(&mut self, device: &str) -> &mut MemoryBreakdown {
        self.memory.entry(device.to_string()).or_default()
    }

    fn note(&mut self, quantity: &str, how: String) {
        self.basis.push(Basis { quantity: quantity.to_string(), how });
    }

    fn leave_out(&mut self, what: &'static str, reason: String) {
        self.uncounted.push(Uncounted { what: what.into(), reason });
    }
}
