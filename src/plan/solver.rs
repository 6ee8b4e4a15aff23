//! The problem: which launch, within the budgets, serves the objective best; and what a launch is judged by.
//!
//! A launch that is said to fit was judged by the law and the prediction themselves (`memory::forecast`); the predicted speed only decides
//! among launches.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::search::Kept;
use super::{ExpertSplit, Request};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::memory::compute::Compute;
use crate::memory::{self, Error, Forecast};
use crate::model::Model;
use crate::placement::{Buffer, Placement};
use crate::run::{Override, RunConfig};
use crate::speed::{self, Case, Estimate};

/// What the planner may do with the routed experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// As many whole blocks on the devices as fit, then single tensors of one more; if not even that fits, dense
    /// feed-forward tensors, the output and whole layers move to the host too.
    Auto,
    /// All routed experts on the host.
    ExpertsOnHost,
    /// Those of the first blocks on the host, like `--n-cpu-moe N` with the smallest N that fits (written as `-ot`).
    FirstN,
    /// No routed experts on the host.
    AllOnDevice,
    /// Only as your rules say.
    Rules,
}

/// Speeds that differ by no more than this share are the same.
pub const TIE: f64 = 0.001;

/// What the launch is optimised for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The time of a turn: prompt ÷ pp + generated ÷ tg, at its depth.
    #[default]
    Turn,
    /// The speed of generation.
    Tg,
    /// The speed of prompt processing.
    Pp,
    /// The longest context, then the time of a turn.
    Context,
    /// All slots of the server (`-np N`) at once: the time until N such turns are answered.
    Throughput,
}

/// What the user left to the planner.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of llama.cpp that was or was not given")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levers {
    pub ubatch: bool,
    pub batch: bool,
    pub load_mode: bool,
    /// `-ctk` and `-ctv`, as far as quantized caches were allowed.
    pub cache_types: bool,
    pub threads: bool,
    pub op_offload: bool,
    pub cache_ram: bool,
    pub expert_cache: bool,
}

impl Levers {
    /// What a planner may choose without being asked: all but quantized caches and the expert cache.
    pub fn unasked() -> Self {
        Self {
            ubatch: true,
            batch: true,
            load_mode: true,
            threads: true,
            op_offload: true,
            cache_ram: true,
            ..Self::default()
        }
    }
}

/// Compute buffers that were predicted before, by all that they depend on: budgets are not among it, so a sweep shares them.
pub type Computes = Rc<RefCell<Vec<(ComputeKey, Compute)>>>;

/// What compute depends on: which parts of blocks stay with their layer, the launch, the layers' devices, the overrides of the stage.
pub type ComputeKey = (Kept, RunConfig, Vec<Option<u16>>, Vec<Override>);

/// The problem: a model, a machine whose `total`s are budgets, and what the user fixed.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    pub model: &'a Model,
    /// Where; `Device::total` is the budget.
    pub machine: &'a Machine,
    pub request: &'a Request,
    pub computes: Computes,
}

#[derive(Debug, Clone)]
pub struct Candidate {
    /// With the planner's overrides, tensor split and choices.
    pub run: RunConfig,
    pub forecast: Forecast,
    pub estimate: Estimate,
    /// By how much each device, or `Host`, is over its budget; empty when it fits.
    pub shortfall: BTreeMap<String, Bytes>,
    /// Whether the devices keep within their budgets.
    pub(super) devices_fit: bool,
    /// Whether main memory is too small for some of the launches that the search looked at.
    pub(super) is_host_tight: bool,
}

impl Candidate {
    pub fn fits(&self) -> bool {
        self.shortfall.is_empty()
    }

    pub fn devices_fit(&self) -> bool {
        self.devices_fit
    }

    /// What is short: nothing, main memory alone, devices. Nothing that moves to the host makes up for main memory; a smaller micro-batch
    /// may.
    pub(super) fn lack(&self) -> u8 {
        u8::from(!self.fits()) + u8::from(!self.devices_fit)
    }

    pub fn missing(&self) -> Bytes {
        self.shortfall.values().copied().sum()
    }

    /// Where the routed experts are.
    pub fn expert_split(&self, problem: &Problem<'_>) -> ExpertSplit {
        let mut split = ExpertSplit::default();
        let (mut on_host, mut blocks) = (BTreeSet::new(), BTreeSet::new());
        for (tensor, copy) in self.forecast.placement.experts(problem.model) {
            blocks.insert(tensor.block);
            if let Buffer::Device(at) = copy.buffer {
                split.routed_expert_bytes_on_devices += tensor.bytes;
                let name = problem.machine.devices[usize::from(at)].name.clone();
                *split.by_device.entry(name).or_default() += tensor.bytes;
            } else {
                split.routed_expert_bytes_on_host += tensor.bytes;
                on_host.insert(tensor.block);
            }
        }
        (split.blocks_with_experts_on_host, split.blocks_with_experts) = (on_host.len(), blocks.len());
        split
    }
}

impl Problem<'_> {
    pub fn judge(&self, run: RunConfig) -> Result<Candidate, Error> {
        let forecast = memory::forecast(self.model, self.machine, &run)?;
        Ok(self.candidate(run, forecast))
    }

    /// A launch whose placement and memory are known.
    pub(super) fn candidate(&self, run: RunConfig, forecast: Forecast) -> Candidate {
        let estimate = self.estimate(&run, &forecast.placement, &forecast);
        let shortfall = forecast.shortfall(self.machine, self.request.margin);
        let devices_fit = forecast.devices_short(self.machine, self.request.margin).is_empty();
        Candidate { run, forecast, estimate, shortfall, devices_fit, is_host_tight: false }
    }

    /// The predicted speed of `placement`, with the memory of a launch nearby.
    pub(super) fn estimate(&self, run: &RunConfig, placement: &Placement, forecast: &Forecast) -> Estimate {
        speed::predict(&Case { model: self.model, machine: self.machine, run, placement, forecast }, self.request.turn)
    }

    /// What the objective wants least of: seconds of a turn, or of a token. Of launches with the same speed within [`TIE`], the one
    /// whose other speed is the higher.
    pub fn cost(&self, estimate: &Estimate) -> f64 {
        let (turn, speed) = (&self.request.turn, &estimate.speed);
        // Which share of the turn that other speed takes.
        let with = |seconds: f64, tokens: u32, other: f64| {
            let share = f64::from(tokens) / other / estimate.turn_seconds;
            seconds * (1.0 + if share.is_finite() { TIE * share } else { 0.0 })
        };
        match self.request.objective {
            Objective::Turn | Objective::Context => estimate.turn_seconds,
            Objective::Tg => with(speed.tg.recip(), turn.prompt, speed.pp),
            Objective::Pp => with(speed.pp.recip(), turn.generate, speed.tg),
            Objective::Throughput => speed.together.map_or(estimate.turn_seconds, |all| all.turn_seconds),
        }
    }
}
