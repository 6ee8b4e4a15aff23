//! The plan beside a command that is checked: how fast the same service could be on the same machine.

use super::options::{Planning, Setting, kept};
use crate::bytes::Bytes;
use crate::checkup::{Checkup, Options, Verdict};
use crate::machine::Machine;
use crate::model::Model;
use crate::plan::{self, Beside, Request, Turn};
use crate::run::args::args_beside;
use crate::run::command::{server_command, shell};
use crate::run::flags::InPlan;
use crate::run::{Dialect, LoadMode, ParsedCommand, Program, RunConfig, groups, spelling, visible};

/// Flags that say where weights go and how the machine computes: these the planner chooses.
const CHOSEN: [&str; 22] = [
    "--gpu-layers",
    "--split-mode",
    "--main-gpu",
    "--tensor-split",
    "--override-tensor",
    "--cpu-moe",
    "--n-cpu-moe",
    "--n-cpu-ffn",
    "--batch-size",
    "--ubatch-size",
    "--threads",
    "--threads-batch",
    "--load-mode",
    "--lazy-mode",
    "--kv-offload",
    "--op-offload",
    "--no-host",
    "--repack",
    "--moe-cache-mib",
    "--fit",
    "--fit-target",
    "--fit-ctx",
];

/// What `moeplan plan` makes of the model of one launch of llama-server, on the same machine and for the same turn. What is served stays
/// as the command says it: the context (where llama.cpp's fitting makes the command start, the context that it then has), slots,
/// cache types, flash attention, drafts, the projector, prompt cache and checkpoints. The planner chooses all else, and
/// keeps its usual margin free where `check` was not told one, so that a command that leaves nothing free may be the faster one.
///
/// An error says why there is none. `described` are the words that describe the machine.
pub fn plan(
    (model, name): (&Model, &str),
    machine: &Machine,
    command: &ParsedCommand,
    checkup: &Checkup,
    (described, turn): (&[String], Turn),
    options: Options<'_>,
) -> Result<Beside, String> {
    none_for(machine, command, checkup).map_or(Ok(()), |why| Err(why.to_string()))?;
    let settings = kept(&served(machine, command, checkup)).map_err(|refusal| refusal.message)?;
    let planning = Planning {
        build: Some(command.run.target.build),
        prompt: turn.prompt,
        generate: turn.generate,
        depth: turn.depth,
        acceptance: turn.acceptance,
        ..Planning::default()
    };
    let why = |error: plan::Error| error.to_string();
    let mut request = planning.request(model, machine, &settings).map_err(why)?;
    if let Some(draft) = &model.draft {
        request.run.infer_speculation(draft.speculation());
    }
    let mut words = [described, &turn_words(turn)].concat();
    if options.margin > Bytes(0) {
        words.extend(["--margin".to_string(), options.margin.typed()]);
        request = Request { margin: options.margin, ..request };
    }
    let plan = plan::brief(model, name, machine, &request).map_err(why)?;
    if !plan.check.fits() || plan.check.is_refused() {
        let margin = request.margin;
        return Err(format!("none fits with the same context, slots and cache types, and {margin} left free"));
    }
    let seconds = checkup.speed.as_ref().map(|speed| speed.turn_seconds(turn));
    let unquotable = || why(plan::Error::Path);
    Ok(Beside {
        asked: shell(&asked(words, name, settings)).ok_or_else(unquotable)?,
        command: plan.command,
        memory: plan.check.memory,
        speed: plan.speed,
        turn_seconds: plan.turn_seconds,
        command_seconds: seconds,
        times_as_fast: seconds.map(|seconds| seconds / plan.turn_seconds),
    })
}

/// Why no plan is made beside a command, where that is known before.
fn none_for(machine: &Machine, command: &ParsedCommand, checkup: &Checkup) -> Option<&'static str> {
    let has = |code: &str| checkup.lints.iter().any(|lint| lint.code == code);
    let is_counted = checkup.fits.is_some() && checkup.memory.values().all(|row| row.total.is_some());
    if command.run.target.dialect != Dialect::LlamaCpp {
        Some("plans are compared with llama.cpp's launches only")
    } else if checkup.program != Program::Server {
        Some("plans are for llama-server")
    } else if checkup.is_refused() && !checkup.is_mended() {
        Some("llama.cpp refuses the command")
    } else if !is_counted {
        Some("not everything is counted")
    } else if has("number-cut-short") {
        // `-c 32k` is a context of 32 tokens, for which nobody wants a plan.
        Some("llama.cpp reads only a part of a number in the command")
    } else if has("image-of-other-devices") {
        Some("the container's image is built for other devices")
    } else if command.memory.is_some() {
        Some("a container or a unit limits main memory")
    } else {
        let is_selected = !visible::visible(machine, &command.environment).notes.is_empty();
        is_selected.then_some("a variable selects the cards")
    }
}

/// A command as llama.cpp takes it: what it refuses is replaced by what took its place.
pub fn mended(command: &ParsedCommand) -> Option<String> {
    let words = server_command(command.model.as_ref()?, &command.run, &args_beside(&command.run, &command.beside));
    shell(&words)
}

/// What a command serves, as words that a plan keeps.
fn served(machine: &Machine, command: &ParsedCommand, checkup: &Checkup) -> Vec<String> {
    let fitted = checkup.fit.as_ref().filter(|_| checkup.verdict == Some(Verdict::AfterFit));
    let (run, slots) = (&checkup.run, checkup.run.n_seq_max());
    let is_shared = slots > 1 && run.kv_unified == Some(true);
    // Every device of the machine, in its order, is what a plan has anyhow.
    let is_all = |names: &Vec<String>| names.iter().eq(machine.devices.iter().map(|device| &device.name));
    let kept = RunConfig {
        n_ctx: fitted.map_or(run.n_ctx, |fit| fit.n_ctx),
        n_parallel: Some(slots),
        kv_unified: command.run.kv_unified.or(is_shared.then_some(true)),
        kv_unified_per_slot: None,
        load_mode: LoadMode::Auto,
        devices: command.run.devices.clone().filter(|names| !is_all(names)),
        rpc: if machine.rpc_servers(&[]) == command.run.rpc { Vec::new() } else { command.run.rpc.clone() },
        ..command.run.clone()
    };
    let words = args_beside(&kept, &command.beside);
    let is_served = |group: &&[String]| {
        let flag = group.first().and_then(|word| spelling(word));
        flag.is_none_or(|(flag, _)| !CHOSEN.contains(&flag.name()))
    };
    groups(&words).into_iter().filter(is_served).flatten().cloned().collect()
}

/// The flags that say a turn, as far as it is not the usual one.
fn turn_words(turn: Turn) -> Vec<String> {
    let usual = Turn::default();
    let said = [
        ("--prompt", turn.prompt, usual.prompt),
        ("--generate", turn.generate, usual.generate),
        ("--depth", turn.depth, usual.depth),
    ];
    let differs = said.into_iter().filter(|(_, tokens, usual)| tokens != usual);
    let acceptance = turn.acceptance.map(|share| ["--acceptance".to_string(), share.to_string()]);
    let differs = differs.map(|(flag, tokens, _)| [flag.to_string(), tokens.to_string()]);
    differs.chain(acceptance).flatten().collect()
}

/// The whole `moeplan plan`: what it has no option for goes after `--`.
fn asked(words: Vec<String>, name: &str, settings: Vec<Setting>) -> Vec<String> {
    let is_option = |(flag, _): &Setting| flag.name() == "--ctx-size" || matches!(flag.in_plan, InPlan::Option(..));
    let (options, others): (Vec<Setting>, Vec<Setting>) = settings.into_iter().partition(is_option);
    let words_of = |settings: Vec<Setting>| settings.into_iter().flat_map(|(_, words)| words).collect::<Vec<_>>();
    let dashes = if others.is_empty() { None } else { Some("--".to_string()) };
    let start = ["moeplan", "plan"].map(str::to_string).into_iter().chain(words).chain(words_of(options));
    start.chain([name.to_string()]).chain(dashes).chain(words_of(others)).collect()
}
