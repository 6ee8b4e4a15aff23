//! A plan: the launch that keeps a model within a budget, what it takes, and the command that gives it.

pub mod experts;
pub mod patterns;
pub mod rule_file;
pub mod solver;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bytes::Bytes;
use crate::checkup::{self, Checkup};
use crate::gguf::source::{Location, Which};
use crate::inspection::{Inspection, Warning};
use crate::machine::{Backend, Machine};
use crate::model::Model;
use crate::placement::{self, Buffer};
use crate::rules::Role;
use crate::run::parse::ParsedCommand;
use crate::run::{self, Program, RunConfig};
pub use crate::speed::Turn;
use solver::{Candidate, Problem, Strategy};

/// What is asked of the planner.
#[derive(Debug, Clone)]
pub struct Request {
    /// The user's settings; what they left alone is llama.cpp's default.
    pub run: RunConfig,
    /// How `-c` is chosen.
    pub context: ContextChoice,
    /// The turn to plan for.
    pub turn: Turn,
    /// Kept free of every device's budget.
    pub margin: Bytes,
    /// What may be done with the routed experts.
    pub strategy: Strategy,
    /// Whether the document lists every tensor.
    pub tensors: bool,
}

/// How `-c` is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextChoice {
    /// Room for the turn, at least 8192 tokens, at most the model's own length.
    Turn,
    /// The largest that fits with every movable expert on the host.
    Max,
    /// What the user wrote.
    Fixed(u32),
}

/// The `moeplan/plan/1` document: everything of `check` for the proposed command, and the command.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// What `check` answers for the command, under this document's own schema name.
    #[serde(flatten)]
    pub check: Checkup,
    /// Which model.
    pub model: ModelSummary,
    /// On which machine; `total` of a device is its budget.
    pub machine: Machine,
    /// What to know before using it: of the model, of the machine, of the environment.
    pub warnings: Vec<Warning>,
    /// Kept free of every device's budget.
    pub margin: Bytes,
    /// What was allowed.
    pub strategy: Strategy,
    /// The arguments for `llama-server -m MODEL`.
    pub args: Vec<String>,
    /// The command to paste.
    pub command: String,
    /// Where the routed experts are.
    pub placement: ExpertSplit,
}

/// Which model a plan is for.
#[derive(Debug, Clone, Serialize)]
pub struct ModelSummary {
    /// As the user named it.
    pub path: String,
    /// `general.name`; untrusted text.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// Bytes of all tensors.
    pub bytes: Bytes,
    /// `context_length`.
    pub context_length: u32,
    /// Blocks, NextN included.
    pub block_count: u32,
}

/// Where the routed experts are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExpertSplit {
    /// On any device.
    pub routed_expert_bytes_on_devices: Bytes,
    /// On the host.
    pub routed_expert_bytes_on_host: Bytes,
    /// Blocks with at least one expert tensor on the host.
    pub blocks_with_experts_on_host: usize,
    /// Blocks with routed experts.
    pub blocks_with_experts: usize,
    /// Bytes by device.
    pub by_device: BTreeMap<String, Bytes>,
}

/// What stops a plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The law or llama.cpp refuses the launch.
    #[error(transparent)]
    Solver(#[from] solver::Error),
    /// What the plan's command would do cannot be told.
    #[error(transparent)]
    Check(#[from] checkup::Error),
    /// No shell can be given the path.
    #[error("the model's path holds a NUL character, which no command line can carry")]
    Path,
    /// The emitted command cannot be read back.
    #[error(transparent)]
    Run(#[from] run::Error),
    /// The emitted command, replayed, places a tensor elsewhere: our own mistake.
    #[error("internal error: the arguments of this plan would place `{tensor}` elsewhere; please report this model")]
    Replay {
        /// The first tensor that differs.
        tensor: String,
    },
}

/// Makes the plan.
pub fn plan(model: &Model, path: &str, machine: &Machine, request: &Request) -> Result<Plan, Error> {
    let problem = Problem { model, machine, margin: request.margin, strategy: request.strategy };
    let mut run = RunConfig {
        program: Program::Server,
        n_parallel: Some(request.run.n_parallel.unwrap_or(1)),
        n_gpu_layers: i32::try_from(model.hparams.block_count + 1).unwrap_or(i32::MAX).max(99),
        devices: Some(machine.devices.iter().map(|device| device.name.clone()).collect()),
        rpc: machine.rpc_servers(&request.run.rpc),
        fit: false,
        ..request.run.clone()
    };
    run.n_ctx = match request.context {
        ContextChoice::Fixed(n_ctx) => n_ctx,
        ContextChoice::Turn => {
            let slots = request.run.n_parallel.unwrap_or(1).max(1);
            turn_context(request.turn, model.hparams.context_length).saturating_mul(slots)
        }
        ContextChoice::Max => largest_context(&problem, &run)?,
    };
    let candidate = problem.solve_with_fewer_devices(&run)?;
    let args = run::args::args(&candidate.run);
    let parsed = replay(model, path, machine, &args, &candidate)?;
    let command =
        words(path, &args).iter().map(|word| quoted(word)).collect::<Option<Vec<_>>>().ok_or(Error::Path)?.join(" ");
    let options = checkup::Options { margin: request.margin, tensors: request.tensors };
    let mut check = checkup::check(model, machine, &parsed, options)?;
    check.schema = "moeplan/plan/1";
    Ok(Plan {
        check,
        model: summary(model, path),
        machine: machine.clone(),
        warnings: warnings(model, machine, request),
        margin: request.margin,
        strategy: request.strategy,
        args,
        command,
        placement: expert_split(model, machine, &candidate),
    })
}

/// What a plan's reader should know: what is wrong with the model, a device without an address, no device at all.
fn warnings(model: &Model, machine: &Machine, request: &Request) -> Vec<Warning> {
    let mut warnings = Inspection::new(model, &[], None).warnings;
    let mut warn = |code, message: String, hint: &str| warnings.push(Warning { code, message, hint: hint.to_string() });
    if machine.devices.is_empty() {
        warn("no-device", "no device was described: all is planned for the host".into(), "--vram 24G describes a card");
    }
    for device in machine.devices.iter().filter(|d| d.backend == Backend::Rpc && d.endpoint().is_none()) {
        let hint = "write --device 'RPC0[HOST:PORT]=SIZE'; `verify` starts a local server for it";
        warn("rpc-without-address", format!("{} has no address, so the command cannot reach it", device.name), hint);
    }
    let trained = model.hparams.context_length;
    if let ContextChoice::Fixed(n_ctx) = request.context
        && trained > 0
        && n_ctx / request.run.n_parallel.unwrap_or(1).max(1) > trained
    {
        let message = format!("-c {n_ctx} is more than the model was trained on: {trained} tokens");
        warn("context-beyond-training", message, "-c max stays within it");
    }
    warnings
}

/// The command line: llama.cpp finds a model on the hub with `-hf` and at an address with `-mu`.
fn words(path: &str, args: &[String]) -> Vec<String> {
    let model = match Location::parse(path) {
        Ok(Location::Hub { repo, which: Which::Default }) => vec!["-hf".into(), repo],
        Ok(Location::Hub { repo, which: Which::Quant(quant) }) => vec!["-hf".into(), format!("{repo}:{quant}")],
        Ok(Location::Hub { repo, which: Which::File(file) }) => vec!["-hf".into(), repo, "-hff".into(), file],
        Ok(Location::Address(url)) => vec!["-mu".into(), url.to_string()],
        _ => vec!["-m".into(), path.to_string()],
    };
    ["llama-server".to_string()].into_iter().chain(model).chain(args.iter().cloned()).collect()
}

/// A word for a POSIX shell, in single quotes where it needs any: regexes stay readable. `None` for one with a NUL.
pub fn quoted(word: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+%@".contains(c);
    if word.contains(['\0', '\'']) || word.is_empty() {
        return shlex::try_quote(word).ok().map(std::borrow::Cow::into_owned);
    }
    Some(if word.chars().all(is_plain) { word.to_string() } else { format!("'{word}'") })
}

/// Room for the turn rounded up to 256, at least 8192, at most what the model was trained on.
fn turn_context(turn: Turn, context_length: u32) -> u32 {
    let wanted = (turn.prompt.saturating_add(turn.generate).saturating_add(turn.depth)).next_multiple_of(256).max(8192);
    if context_length == 0 { wanted } else { wanted.min(context_length) }
}

/// The largest multiple of 256 that fits with the experts on the host, by bisection; 256 where none does.
fn largest_context(problem: &Problem, run: &RunConfig) -> Result<u32, Error> {
    let lean = match problem.strategy {
        Strategy::AllOnDevice | Strategy::Rules => *problem,
        _ => Problem { strategy: Strategy::ExpertsOnHost, ..*problem },
    };
    let (mut fits, mut too_many) = (1, problem.model.hparams.context_length.div_ceil(256).max(1) + 1);
    while too_many - fits > 1 {
        let tried = u32::midpoint(fits, too_many);
        let candidate = lean.solve(&RunConfig { n_ctx: tried * 256, ..run.clone() })?;
        if candidate.shortfall.is_empty() { fits = tried } else { too_many = tried }
    }
    Ok(fits * 256)
}

/// Reads the arguments back as llama-server would and demands the same placement.
fn replay(
    model: &Model,
    path: &str,
    machine: &Machine,
    args: &[String],
    candidate: &Candidate,
) -> Result<ParsedCommand, Error> {
    let parsed = run::parse::command(&words(path, args), &BTreeMap::new())?;
    let placement = placement::place(model, machine, &parsed.run).map_err(solver::Error::from)?;
    let copies = |placement: &placement::Placement, at: usize| -> Vec<(Buffer, Bytes)> {
        placement.copies[at].iter().map(|copy| (copy.buffer, copy.bytes)).collect()
    };
    match (0..model.tensors.len()).find(|at| copies(&placement, *at) != copies(&candidate.placement, *at)) {
        Some(at) => Err(Error::Replay { tensor: model.tensors[at].name.clone() }),
        None => Ok(parsed),
    }
}

fn summary(model: &Model, path: &str) -> ModelSummary {
    ModelSummary {
        path: path.to_string(),
        name: model.name.clone(),
        architecture: model.architecture.clone(),
        bytes: model.tensors.iter().map(|tensor| tensor.bytes).sum(),
        context_length: model.hparams.context_length,
        block_count: model.hparams.block_count,
    }
}

/// Where the routed experts of a candidate are.
fn expert_split(model: &Model, machine: &Machine, candidate: &Candidate) -> ExpertSplit {
    let mut split = ExpertSplit::default();
    let mut on_host = std::collections::BTreeSet::new();
    let mut blocks = std::collections::BTreeSet::new();
    for (tensor, copies) in model.tensors.iter().zip(&candidate.placement.copies) {
        if tensor.role != Role::RoutedExpert {
            continue;
        }
        for copy in copies {
            blocks.insert(tensor.block);
            if let Buffer::Device(at) = copy.buffer {
                split.routed_expert_bytes_on_devices += tensor.bytes;
                *split.by_device.entry(machine.devices[usize::from(at)].name.clone()).or_default() += tensor.bytes;
            } else {
                split.routed_expert_bytes_on_host += tensor.bytes;
                on_host.insert(tensor.block);
            }
        }
    }
    split.blocks_with_experts_on_host = on_host.len();
    split.blocks_with_experts = blocks.len();
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for word in ["plain", r"blk\.1\.x=CPU,(a|b)=CPU", "it's", "", "a b", "$(x)`y`"] {
            let quoted = quoted(word).unwrap();
            assert_eq!(shlex::split(&quoted), Some(vec![word.to_string()]), "{quoted}");
        }
        assert_eq!(quoted(r"a\.b"), Some(r"'a\.b'".to_string()));
        assert_eq!(quoted("a\0b"), None);
    }

    #[test]
    fn the_context_holds_the_turn() {
        let turn = |prompt, depth| Turn { prompt, generate: 512, depth };
        assert_eq!(turn_context(turn(4096, 0), 131_072), 8192);
        assert_eq!(turn_context(turn(4096, 16384), 131_072), 20992);
        assert_eq!(turn_context(turn(4096, 16384), 4096), 4096);
    }
}
