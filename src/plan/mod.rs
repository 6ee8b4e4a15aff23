//! A plan: the launch that keeps a model within a budget, what it takes, and the command that gives it.

mod choose;
pub mod explain;
#[doc(hidden)]
pub mod patterns;
#[doc(hidden)]
pub mod rule_file;
mod search;
#[doc(hidden)]
pub mod solver;
mod split;
#[doc(hidden)]
pub mod sweep;
#[doc(hidden)]
pub mod together;
#[doc(hidden)]
pub mod want;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::checkup::{self, Checkup};
use crate::inspection::{Inspection, Warning};
use crate::machine::{Backend, Machine};
use crate::memory::{self, MemoryByDevice};
use crate::model::Model;
use crate::number::thousands;
use crate::placement;
use crate::quantize::WhatIf;
use crate::run::command::{server_command, shell};
use crate::run::numbers::padded;
use crate::run::{self, LoadMode, ModelSource, OFFLOAD_MIN_BATCH, OFFLOAD_MIN_BATCH_SINCE, Program, RunConfig, Target};
use crate::speed::Speed;
pub use crate::speed::Turn;
use crate::suggest::{Hint, Refusal};
pub use choose::ContextChoice;
use explain::{FitChoice, Rung, Subject, Why};
use solver::{Candidate, Computes, Problem};
pub use solver::{Levers, Objective, Strategy};

#[derive(Debug, Clone)]
pub struct Request {
    /// The user's settings; what they left alone is llama.cpp's default.
    pub run: RunConfig,
    /// Words of speculation, which `run` holds by their cost alone.
    pub beside: Vec<String>,
    pub context: ContextChoice,
    pub turn: Turn,
    /// Kept free of every device's budget.
    pub margin: Bytes,
    pub strategy: Strategy,
    pub objective: Objective,
    pub levers: Levers,
    pub tensors: bool,
    /// Whether the document says what every other choice would give.
    pub explain: bool,
}

/// The `moeplan/check/1` document: what a command line would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Checked {
    #[serde(flatten)]
    pub checkup: Checkup,
    pub model: ModelSummary,
    /// The command that was checked, quoted for a shell; untrusted text.
    pub command: String,
    /// Which command of a file it is: a section, a model, a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Every combination of a grid of llama-bench; the figures are those of the largest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// What `--ask` found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projected: Option<Projected>,
    /// The command with what took the place of the flags that llama.cpp refuses, quoted for a shell; untrusted text. The figures are
    /// its own. Absent where llama.cpp takes the command, or where it is not known what was meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mended: Option<String>,
    /// The least `--n-cpu-moe` with which a command fits that does not; absent where it fits, and where other rules place experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_cpu_moe: Option<u32>,
    /// What the planner makes of the same model with the same context; absent where that was not asked, or where `no_plan` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Beside>,
    /// Why there is no plan beside the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_plan: Option<String>,
}

/// The plan beside a command that was checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Beside {
    /// The `moeplan plan …` whose answer it is, quoted for a shell; untrusted text.
    pub asked: String,
    /// Quoted for a shell; untrusted text.
    pub command: String,
    pub memory: BTreeMap<String, checkup::Row>,
    pub speed: Speed,
    /// The predicted time of the turn, in seconds.
    pub turn_seconds: f64,
    /// The same with the command; absent where it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_seconds: Option<f64>,
    /// How many times as fast the turn is as with the command; absent where it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times_as_fast: Option<f64>,
}

/// What an installed llama.cpp projects for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Projected {
    pub program: String,
    /// What it says to `--version`; untrusted text.
    pub version: String,
    /// Whole MiB, rounded down, without overhead.
    pub memory: MemoryByDevice,
    /// What is predicted for that program. llama-fit-params reserves other outputs than llama-server.
    pub predicted: MemoryByDevice,
}

/// One of the launches that a command makes in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Variant {
    /// What it takes of each list.
    pub what: String,
    pub n_ctx: u32,
    pub memory: BTreeMap<String, checkup::Row>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fits: Option<bool>,
    pub shortfall: BTreeMap<String, Bytes>,
}

/// The `moeplan/plan/1` document: everything of `check` for the proposed command, and the command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plan {
    /// What `check` answers for the command, under this document's own schema name.
    #[serde(flatten)]
    pub check: Checkup,
    pub model: ModelSummary,
    /// On which machine; `total` of a device is its budget.
    pub machine: Machine,
    /// What to know before using it: of the model, of the machine, of the environment.
    pub warnings: Vec<Warning>,
    /// Kept free of every device's budget.
    pub margin: Bytes,
    pub strategy: Strategy,
    pub objective: Objective,
    pub turn: Turn,
    pub speed: Speed,
    /// Its predicted time, in seconds.
    pub turn_seconds: f64,
    /// Variables that the launch needs beside its arguments; `command` has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    pub args: Vec<String>,
    pub command: String,
    pub placement: ExpertSplit,
    /// What llama.cpp's own fitting (`--fit on`) would choose for the same context; absent without a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit_choice: Option<FitChoice>,
    /// Plans for other contexts, the shortest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ladder: Vec<Rung>,
    /// Why it is so, and what else there is.
    #[serde(flatten)]
    pub why: Why,
    /// What `--upgrade` asks: plans for a larger machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<want::Answer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelSummary {
    pub path: String,
    /// `general.name`; untrusted text.
    pub name: Option<String>,
    pub architecture: String,
    pub bytes: Bytes,
    pub context_length: u32,
    pub block_count: u32,
    /// How it would be made, where it does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what_if: Option<WhatIf>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpertSplit {
    pub routed_expert_bytes_on_devices: Bytes,
    pub routed_expert_bytes_on_host: Bytes,
    /// Blocks with at least one expert tensor on the host.
    pub blocks_with_experts_on_host: usize,
    pub blocks_with_experts: usize,
    pub by_device: BTreeMap<String, Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Forecast(#[from] memory::Error),
    #[error("the model's path holds a NUL character, which no command line can carry")]
    Path,
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("internal error: the arguments of this plan would place `{tensor}` elsewhere; please report this model")]
    Replay { tensor: String },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Forecast(error) => error.hint(),
            Self::Run(error) => error.hint(),
            Self::Refused(refusal) => refusal.hint(),
            _ => None,
        }
    }
}

impl Request {
    /// Whether nothing is left to the planner, as where rules that fill devices were carried out ([`rule_file::pinned`]): for another context
    /// or micro-batch they would have to be carried out again.
    fn is_pinned(&self) -> bool {
        self.strategy == Strategy::Rules && self.levers == Levers::default()
    }

    /// What `moeplan plan` asks without flags: the newest build that is known, the usual turn, every choice the planner's, and free on each device what was learned
    /// of `machine`.
    pub fn of(machine: &Machine) -> Self {
        Self {
            run: RunConfig::of(Target::newest()),
            beside: Vec::new(),
            context: ContextChoice::Auto,
            turn: Turn::default(),
            margin: machine.margin(),
            strategy: Strategy::Auto,
            objective: Objective::Turn,
            levers: Levers::unasked(),
            tensors: false,
            explain: false,
        }
    }

    /// Slots of the server (`-np`): one where nobody says.
    pub fn slots(&self) -> u32 {
        self.run.n_parallel.unwrap_or(1).max(1)
    }

    pub fn problem<'a>(&'a self, model: &'a Model, machine: &'a Machine) -> Problem<'a> {
        Problem { model, machine, request: self, computes: Computes::default() }
    }

    /// The user's own settings with a plan's context, slots and cache: what llama.cpp is started with to choose the rest by itself.
    pub fn left_to_fitting(&self, plan: &RunConfig, machine: &Machine) -> RunConfig {
        let all = || machine.devices.iter().map(|device| device.name.clone()).collect();
        RunConfig {
            program: plan.program,
            target: plan.target,
            n_ctx: plan.n_ctx,
            n_parallel: plan.n_parallel,
            type_k: plan.type_k,
            type_v: plan.type_v,
            flash_attn: plan.flash_attn,
            kv_unified: plan.kv_unified,
            embeddings: plan.embeddings,
            n_gpu_layers: RunConfig::default().n_gpu_layers,
            tensor_split: Vec::new(),
            overrides: Vec::new(),
            fit: true,
            rpc: plan.rpc.clone(),
            devices: Some(self.run.devices.clone().unwrap_or_else(all)),
            ..self.run.clone()
        }
    }

    /// The launch that the search begins with: the user's settings and what every plan says.
    fn start(&self, model: &Model, machine: &Machine) -> RunConfig {
        let layers = i32::try_from(model.hparams.block_count + 1).unwrap_or(i32::MAX).max(99);
        let all_devices = || machine.devices.iter().map(|device| device.name.clone()).collect();
        RunConfig {
            program: Program::Server,
            n_parallel: Some(self.slots()),
            n_gpu_layers: if self.run.n_gpu_layers == -1 { layers } else { self.run.n_gpu_layers },
            devices: Some(self.run.devices.clone().unwrap_or_else(all_devices)),
            rpc: machine.rpc_servers(&self.run.rpc),
            fit: false,
            ..self.run.clone()
        }
    }
}

/// The launch that serves the request best.
pub fn solve(model: &Model, machine: &Machine, request: &Request) -> Result<Candidate, Error> {
    solve_with(&request.problem(model, machine))
}

fn solve_with(problem: &Problem<'_>) -> Result<Candidate, Error> {
    Ok(problem.solve_in_context(&problem.request.start(problem.model, problem.machine))?)
}

/// Tokens of context of which a plan says that they are few: the least of its ladder.
const SHORT: u32 = explain::LADDER[0];

pub fn plan(model: &Model, path: &str, machine: &Machine, request: &Request) -> Result<Plan, Error> {
    planned(model, path, machine, request, true)
}

/// A plan without what llama.cpp's own fitting would choose and without the ladder: they take longer than everything else.
#[doc(hidden)]
pub fn brief(model: &Model, path: &str, machine: &Machine, request: &Request) -> Result<Plan, Error> {
    planned(model, path, machine, request, false)
}

fn planned(model: &Model, path: &str, machine: &Machine, request: &Request, is_whole: bool) -> Result<Plan, Error> {
    let problem = request.problem(model, machine);
    let candidate = solve_with(&problem)?;
    if let Some((machine, request, warning)) = choose::without_idle(machine, request, &candidate) {
        let mut plan = planned(model, path, &machine, &request, is_whole)?;
        plan.warnings.push(warning);
        return Ok(plan);
    }
    let args = run::args::args_beside(&candidate.run, &request.beside);
    let words = server_command(&ModelSource::of_argument(path), &candidate.run, &args);
    let command = shell(&words).ok_or(Error::Path)?;
    // What is proposed is what llama-server makes of these words.
    let parsed = run::parse::command_for(&words, &BTreeMap::new(), request.run.target)?;
    let placement = placement::place(model, machine, &parsed.run).map_err(memory::Error::from)?;
    if let Some(tensor) = placement.first_moved(&candidate.forecast.placement, model) {
        return Err(Error::Replay { tensor: tensor.name.clone() });
    }
    let options =
        checkup::Options { margin: request.margin, tensors: request.tensors, ignored: &[], is_plan: true, turn: None };
    let check = checkup::check(model, machine, &parsed, options)?;
    let subject = Subject { problem: &problem, candidate: &candidate };
    Ok(Plan {
        check,
        model: summary(model, path),
        machine: machine.clone(),
        warnings: warnings(&problem, &candidate),
        margin: request.margin,
        strategy: request.strategy,
        objective: request.objective,
        turn: request.turn,
        speed: candidate.estimate.speed.clone(),
        turn_seconds: candidate.estimate.turn_seconds,
        environment: candidate.run.environment(),
        args,
        command,
        placement: candidate.expert_split(&problem),
        fit_choice: if is_whole { subject.fit_choice()? } else { None },
        ladder: if is_whole { subject.ladder() } else { Vec::new() },
        why: subject.why()?,
        upgrades: Vec::new(),
    })
}

/// What a plan's reader should know: what is wrong with the model, a device without an address, no device at all.
fn warnings(problem: &Problem<'_>, candidate: &Candidate) -> Vec<Warning> {
    let Problem { model, machine, request, .. } = *problem;
    let mut warnings = Inspection::new(model, &[], None).warnings;
    warnings.retain(|warning| warning.code != "nextn-not-loaded" || !candidate.run.mtp);
    let mut warn = |code: &'static str, message: String, hint: &str| {
        warnings.push(Warning { code: code.into(), message, hint: hint.to_string() });
    };
    if machine.devices.is_empty() {
        warn(
            "no-device",
            "no device was described: everything is planned for the host".into(),
            "--vram 24G describes a card",
        );
    }
    for device in machine.devices.iter().filter(|d| d.backend == Backend::Rpc && d.endpoint().is_none()) {
        let hint = "write --device 'RPC0[HOST:PORT]=SIZE'; `verify` starts a local server for it";
        warn("rpc-without-address", format!("{} has no address, so the command cannot reach it", device.name), hint);
    }
    let chosen = candidate.run.devices.as_ref().filter(|_| request.run.devices.is_none());
    for device in machine.devices.iter().filter(|device| chosen.is_some_and(|names| !names.contains(&device.name))) {
        let message = format!("{} is left out: the plan is no slower without it", device.name);
        warn("device-not-used", message, "-ts gives each device a share of the layers");
    }
    let trained = model.hparams.context_length;
    let numbers = &candidate.forecast.numbers;
    let (slot, tokens) = (numbers.n_ctx_seq, request.turn.tokens());
    if tokens > slot {
        let Turn { prompt, generate, depth, .. } = request.turn;
        let timed = if depth > 0 { format!("{depth} + ") } else { String::new() };
        let message = format!(
            "the turn is longer than a slot's context: {timed}{prompt} + {generate} tokens, but the context is {slot}"
        );
        let room = padded(tokens).saturating_mul(numbers.n_stream.max(1));
        let shorter = "--prompt, --generate and --depth describe your turns";
        let is_choice = request.context == ContextChoice::Max || (trained > 0 && tokens > trained);
        let hint = if is_choice { shorter.to_string() } else { format!("-c {room} has room for it; {shorter}") };
        warn("turn-beyond-context", message, &hint);
    }
    if request.context == ContextChoice::Auto
        && request.slots() > 1
        && candidate.fits()
        && slot < SHORT
        && (trained == 0 || trained >= SHORT)
        && tokens <= slot
    {
        let whole = SHORT.saturating_mul(numbers.n_stream.max(1));
        let message = format!(
            "each of the {} slots has {} tokens, which a long conversation exceeds",
            request.slots(),
            thousands(slot.into())
        );
        warn("short-context", message, &format!("-c {whole} plans for {} in each slot", thousands(SHORT.into())));
    }
    let table = candidate.forecast.host_total();
    if candidate.run.load_mode == LoadMode::None && machine.host.ram.is_none() {
        let message = format!(
            "-lm none needs {} of main memory, but its size was not given",
            table + candidate.forecast.host_needs.least()
        );
        warn("main-memory-unknown", message, "give --ram SIZE; or -lm auto, which maps the file and is slower");
    }
    if let Some(missing) = candidate.forecast.paged(&candidate.shortfall) {
        let message = format!(
            "{missing} of the weights do not fit into main memory and would be read from the disk again and again"
        );
        warn("disk-bound", message, "use a smaller file, or more memory");
    }
    let from = candidate.run.op_offload_min_batch.filter(|_| request.run.op_offload_min_batch.is_none());
    if let Some(rows) = from {
        let message = format!(
            "parts of a prompt that have fewer than {rows} tokens are computed on the processor: copying the host's weights to a \
             device takes longer"
        );
        let hint = format!(
            "set {OFFLOAD_MIN_BATCH} wherever the server is started; llama.cpp reads it from b{OFFLOAD_MIN_BATCH_SINCE} on"
        );
        warn("offload-from", message, &hint);
    }
    if candidate.run.cache_ram != request.run.cache_ram
        && let Some(mib) = candidate.run.cache_ram
    {
        let message = format!(
            "the plan sets --cache-ram {mib}: main memory has no room for all of llama-server's prompt cache of 8192 MiB"
        );
        warn(
            "prompt-cache",
            message,
            "more main memory or a shorter context leaves more; a --cache-ram of your own is kept",
        );
    }
    warnings
}

/// What a document says of its model, read from `path`.
pub fn summary(model: &Model, path: &str) -> ModelSummary {
    ModelSummary {
        path: path.to_string(),
        name: model.name.clone(),
        architecture: model.architecture.clone(),
        bytes: model.tensors.iter().map(|tensor| tensor.bytes).sum(),
        context_length: model.hparams.context_length,
        block_count: model.hparams.block_count,
        what_if: None,
    }
}
