//! The problem: which launch, within the budgets, serves the objective best; and what a launch is judged by.
//!
//! A launch that is said to fit was judged by the law and the prediction themselves (`placement::place`,
//! `memory::predict`); the predicted speed only decides among launches.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::host::{self, HostNeeds};
use crate::bytes::Bytes;
use crate::machine::{Device, Machine};
use crate::memory::compute::Compute;
use crate::memory::{self, HOST, MemoryBreakdown, Prediction};
use crate::model::Model;
use crate::placement::{self, Placement};
use crate::run::RunConfig;
use crate::speed::{self, Case, Estimate, Turn};
use crate::suggest::Hint;

/// What the planner may do with the routed experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// As many whole blocks on the devices as fit, then single tensors of one more; where even none of them fits, dense
    /// feed-forward tensors, the output and whole layers leave too.
    Auto,
    /// All on the host.
    ExpertsOnHost,
    /// Whole blocks only: the least N of `--n-cpu-moe N` that fits.
    FirstN,
    /// None on the host.
    AllOnDevice,
    /// Only what the user's rules say.
    Rules,
}

/// What the best launch is best at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The time of a turn: prompt ÷ pp + generated ÷ tg, at its depth.
    #[default]
    Turn,
    /// Generation.
    Tg,
    /// Prompt processing.
    Pp,
    /// The longest context, then the time of a turn.
    Context,
}

/// What the user left to the planner.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of llama.cpp that was or was not given")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levers {
    /// `-ub`.
    pub ubatch: bool,
    /// `-b`.
    pub batch: bool,
    /// `-lm`.
    pub load_mode: bool,
    /// `-ctk` and `-ctv`, as far as quantized caches were allowed.
    pub cache_types: bool,
    /// `-t`.
    pub threads: bool,
    /// `--no-op-offload`.
    pub op_offload: bool,
    /// `--cache-ram`.
    pub cache_ram: bool,
    /// `--moe-cache-mib`.
    pub expert_cache: bool,
}

impl Levers {
    /// What a planner may choose without being asked: all but quantized caches and the expert cache.
    pub fn unasked() -> Self {
        Self {
            ubatch: true,
            batch: true,
            load_mode: true,
            cache_types: false,
            threads: true,
            op_offload: true,
            cache_ram: true,
            expert_cache: false,
        }
    }
}

/// Compute buffers that were predicted before, by all that they depend on: budgets are not among it, so a sweep shares them.
pub type Computes = Rc<RefCell<HashMap<String, Compute>>>;

/// The problem: a model, a machine whose `total`s are budgets, and what the user fixed.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    /// What is placed.
    pub model: &'a Model,
    /// Where; `Device::total` is the budget.
    pub machine: &'a Machine,
    /// Kept free of every device's budget.
    pub margin: Bytes,
    /// What the planner may do with the experts.
    pub strategy: Strategy,
    /// What the best launch is best at.
    pub objective: Objective,
    /// The turn that is timed.
    pub turn: Turn,
    /// What the planner may choose beside.
    pub levers: Levers,
    /// Of this model.
    pub computes: Computes,
}

/// A launch and what it takes.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// With the planner's overrides, tensor split and choices.
    pub run: RunConfig,
    /// The law's answer to it.
    pub placement: Placement,
    /// The memory it takes.
    pub prediction: Prediction,
    /// Its speed, predicted.
    pub estimate: Estimate,
    /// What its process needs of the host beyond the table.
    pub needs: HostNeeds,
    /// By how much each device, or `Host`, is over its budget; empty when it fits.
    pub shortfall: BTreeMap<String, Bytes>,
}

/// What can stop the planner.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launch cannot be placed.
    #[error(transparent)]
    Placement(#[from] placement::Error),
    /// llama.cpp would refuse the launch.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Placement(error) => error.hint(),
            Self::Memory(error) => error.hint(),
        }
    }
}

impl Candidate {
    /// Whether everything is within its budget.
    pub fn fits(&self) -> bool {
        self.shortfall.is_empty()
    }

    /// Whether the devices keep within their budgets; a short host is told, but no other placement on it would help.
    pub fn devices_fit(&self) -> bool {
        self.shortfall.keys().all(|name| name == HOST)
    }

    /// Bytes missing in all.
    pub fn missing(&self) -> Bytes {
        self.shortfall.values().copied().sum()
    }
}

impl Problem<'_> {
    /// Places and predicts one launch.
    pub fn judge(&self, run: RunConfig) -> Result<Candidate, Error> {
        let placement = placement::place(self.model, self.machine, &run)?;
        let prediction = memory::predict(self.model, self.machine, &run, &placement)?;
        Ok(self.candidate(run, placement, prediction))
    }

    /// A launch whose placement and memory are known.
    pub(super) fn candidate(&self, run: RunConfig, placement: Placement, prediction: Prediction) -> Candidate {
        let estimate = self.estimate(&run, &placement, &prediction);
        let needs = host::needs(self.model, &run, &prediction);
        let mut shortfall = self.devices_short(&prediction);
        if let Some(ram) = self.machine.host.ram {
            let over = (self.in_main_memory(&prediction) + needs.least()).saturating_sub(ram);
            if over > Bytes(0) {
                shortfall.insert(HOST.to_string(), over);
            }
        }
        Candidate { run, placement, prediction, estimate, needs, shortfall }
    }

    /// What a launch takes of main memory, devices that share it included.
    pub(super) fn in_main_memory(&self, prediction: &Prediction) -> Bytes {
        host_total(prediction) + memory::shared_with_host(self.machine, &prediction.memory)
    }

    /// The predicted speed.
    pub(super) fn estimate(&self, run: &RunConfig, placement: &Placement, prediction: &Prediction) -> Estimate {
        let case = Case { model: self.model, machine: self.machine, run, placement, prediction };
        speed::predict(&case, self.turn)
    }

    /// By how much each device is over its budget.
    pub(super) fn devices_short(&self, prediction: &Prediction) -> BTreeMap<String, Bytes> {
        let over = |device: &Device| {
            let used = prediction.memory.get(&device.name).map_or(Bytes(0), MemoryBreakdown::total);
            let over = (used + self.margin).saturating_sub(device.total);
            (used > Bytes(0) && over > Bytes(0)).then(|| (device.name.clone(), over))
        };
        self.machine.devices.iter().filter_map(over).collect()
    }

    /// What the objective wants least of: seconds of a turn, or of a token.
    pub fn cost(&self, estimate: &Estimate) -> f64 {
        match self.objective {
            Objective::Turn | Objective::Context => estimate.turn_seconds,
            Objective::Tg => estimate.speed.tg.recip(),
            Objective::Pp => estimate.speed.pp.recip(),
        }
    }
}

/// The host's total: every row that is no device (`Host`, `CPU_REPACK`, `AMX`).
pub fn host_total(prediction: &Prediction) -> Bytes {
    let of_host = |name: &str| matches!(name, "Host" | "CPU_REPACK" | "AMX");
    prediction.memory.iter().filter(|(name, _)| of_host(name)).map(|(_, row)| row.total()).sum()
}
