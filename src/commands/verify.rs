//! `verify`: launch on llama-server or the embedded llama.cpp, measure, and put it beside the prediction. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;

use super::launch::{DOES_NOT_FIT, Engine, EngineArgs, Proposal, Runs};
use super::plan_options::PlanOptions;
use super::{Outcome, Output, check, measuring};
use crate::bytes::Bytes;
use crate::cli::help::OWN;
use crate::evidence;
use crate::measurement::{Expected, measurement};
use crate::run::Program;
use crate::runtime::{Error, Launch, Prompt, Workload};
use crate::speed::Turn;

/// Launch what a plan says, measure, and compare with the prediction, term by term.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan verify model.gguf --vram 24G
  moeplan plan -o plan.json model.gguf --vram 24G && moeplan verify plan.json
  moeplan verify -- llama-server -m model.gguf -ngl 99 -cmoe -c 8192
Without a GPU, on a software device:
  moeplan synth phi-3.5-moe --tiny --weights random -o tiny.gguf
  moeplan verify tiny.gguf --backend rpc --vram 9M --margin 0 -c 1024")]
pub struct Args {
    /// A GGUF file to plan for, or a plan (`moeplan plan --json`).
    #[arg(value_name = "MODEL|PLAN")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub options: PlanOptions,
    #[command(flatten)]
    pub measure: MeasureArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A llama.cpp command line to launch as it is, without a plan (flags alone, or with the program).
    ///
    /// A command that llama.cpp would refuse, according to `check`, is not launched.
    #[arg(help_heading = OWN, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Measurement")]
pub struct MeasureArgs {
    /// Tolerance for compute buffers and totals. Weights and caches must be exact.
    #[arg(long, value_name = "PERCENT", default_value = "2%", value_parser = percentage)]
    pub tolerance: f64,
    /// What runs the launch.
    #[arg(long, value_enum, default_value_t = Runs::Auto, value_name = "RUNTIME")]
    pub runtime: Runs,
    /// Prompt tokens to process in the measurement; fewer if the context is shorter.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub measure_prompt: u32,
    /// Use this text as the prompt instead.
    #[arg(long, value_name = "TEXT", conflicts_with = "measure_prompt")]
    pub text: Option<String>,
    /// Tokens in the context before the prompt.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "text")]
    pub measure_depth: u32,
    /// Tokens to generate in the measurement.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub measure_generate: u32,
    /// How many times to measure, to see how much the speed varies [default: 3 with llama-server, 1 embedded].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: Option<u32>,
    /// Run the command after `--` with N software devices (local RPC servers on the processor).
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rpc_devices: u16,
    /// Load nothing; only ask llama.cpp what the launch would allocate.
    #[arg(long)]
    pub project: bool,
}

/// `2%`, `2` and `0.5%` are percentages.
pub fn percentage(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    match number.parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(percent / 100.0),
        _ => Err("write a percentage, for example 2%".to_string()),
    }
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let ask = &args.measure;
    // What is only predicted or projected takes nothing from anybody.
    let is_run = !ask.project && !args.engine.dry_run;
    let _measuring = is_run.then(|| measuring::begin("verify", output)).transpose()?;
    let mut engine = args.engine.engine(ask.runtime, output)?;
    let mut proposal = proposal(args, &mut engine)?;
    if let Some(warning) = engine.launch_with(&proposal.beside) {
        output.say(&warning);
    }
    for server in &proposal.servers {
        output.say(&format!("software device: moeplan's own RPC server at {}", server.endpoint()));
    }
    if ask.project {
        let mut answers = engine.runtime().project(std::slice::from_ref(&proposal.launch));
        output.show(&answers.pop().context("no projection")??)?;
        return Ok(Outcome::Yes);
    }
    let launch = &mut proposal.launch;
    if matches!(engine, Engine::Server(_)) && launch.run.program == Program::Server && launch.run.fit {
        output.say("-fit off: the prediction is for the command as written");
        launch.run.fit = false;
    }
    if args.engine.dry_run {
        return check::told(proposal.told([(None, &proposal.launch.run)], &args.options)?, output);
    }
    proposal.warn_of_hole(output);
    let predicted = proposal.forecast()?;
    let margin = args.options.machine.margin(&proposal.launch.machine);
    let is_empty = |name: &str| predicted.memory.get(name).is_none_or(|row| row.own() == Bytes(0));
    let devices = proposal.launch.machine.devices.iter().filter(|device| is_empty(&device.name));
    for device in devices.filter(|_| proposal.plan.is_some()) {
        output.say(&format!(
            "note: nothing is placed on {}: after the margin of {}, its {} have no room for a layer (--vram, --margin)",
            device.name, margin, device.total
        ));
    }
    let launch = &proposal.launch;
    let workload = workload(ask, &engine, launch, proposal.slot_tokens(&predicted));
    if let Some(note) = unmeasured(args.options.planning.turn(), ask) {
        output.say(&note);
    }
    output.say(&format!("loading {} in {}", launch.model.display(), engine.name()));
    let seen = engine.runtime().generate(launch, &workload)?;
    let expected = Expected::of(&predicted, margin);
    let kept = if seen.interrupted { Ok(None) } else { evidence::store::keep(&seen, &expected, launch) };
    let mut measured = measurement(seen, &expected, ask.tolerance);
    measured.plan = proposal.plan.clone();
    let answered = output.show(&measured);
    if measured.interrupted {
        output.say(&format!("interrupted: {} of {} samples", measured.speed.pp.len(), workload.repetitions));
        return answered.and(Err(Error::interrupted().into()));
    }
    match kept {
        Ok(Some(path)) => {
            output.say(&format!("what was measured of the devices is kept for later plans in {}", path.display()));
        }
        Ok(None) => {}
        Err(error) => output.say(&format!("warning: cannot keep what was measured of the devices: {error}")),
    }
    answered?;
    if !proposal.fits() {
        output.say(DOES_NOT_FIT);
    }
    Ok(if measured.ok() && proposal.fits() { Outcome::Yes } else { Outcome::No })
}

/// What to say of a turn that is planned for and not measured.
fn unmeasured(turn: Turn, ask: &MeasureArgs) -> Option<String> {
    let usual = Turn::default();
    let is_set = turn.prompt != usual.prompt || turn.generate != usual.generate;
    let (prompt, generate) = (ask.measure_prompt, ask.measure_generate);
    (is_set && (turn.prompt, turn.generate) != (prompt, generate)).then(|| {
        format!(
            "note: --prompt and --generate describe the turn to plan for; {prompt} + {generate} tokens are measured \
             (--measure-prompt, --measure-generate)"
        )
    })
}

/// The launch: a command line as it is, a plan's file, or the plan for a model.
fn proposal(args: &Args, engine: &mut Engine) -> anyhow::Result<Proposal> {
    if !args.command.is_empty() {
        args.options.beside_command()?;
        let devices = args.measure.rpc_devices;
        return Proposal::of_command(&args.command, args.model.as_deref(), devices, &args.options, engine);
    }
    let path = args.model.as_ref().context("nothing to verify: name a model, a plan, or a command after `--`")?;
    args.options.beside_plan(path, true)?;
    Proposal::of_model(path, &args.options, engine, None)
}

/// What is run, cut to the context, and to one physical batch where only embeddings come out.
fn workload(ask: &MeasureArgs, engine: &Engine, launch: &Launch, n_ctx: u32) -> Workload {
    let room = n_ctx.saturating_sub(ask.measure_generate).max(1);
    let depth = ask.measure_depth.min(room.saturating_sub(1));
    let room = room.saturating_sub(depth).max(1);
    let room = if launch.run.embeddings { room.min(launch.run.n_ubatch.max(1)) } else { room };
    let prompt = ask.text.clone().map_or(Prompt::Tokens(ask.measure_prompt.min(room)), Prompt::Text);
    // A server's own clock has a spread worth showing.
    let repetitions = ask.repetitions.unwrap_or(if matches!(engine, Engine::Server(_)) { 3 } else { 1 });
    Workload { prompt, depth, n_generate: ask.measure_generate, repetitions }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{MeasureArgs, percentage, unmeasured};
    use crate::speed::Turn;

    #[test]
    fn a_turn_that_is_not_measured_is_pointed_out() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            ask: MeasureArgs,
        }
        let turn = Turn { prompt: 256, generate: 32, ..Turn::default() };
        for (line, turn, is_noted) in
            [("verify", turn, true), ("verify", Turn::default(), false), ("verify --measure-prompt 256", turn, false)]
        {
            let Line { ask } = Line::parse_from(line.split(' '));
            assert_eq!(unmeasured(turn, &ask).is_some(), is_noted, "{line}");
        }
    }

    #[test]
    fn percentages_are_shares() {
        assert_eq!(percentage("2%"), Ok(0.02));
        assert_eq!(percentage("0.5"), Ok(0.005));
        assert!(percentage("much").is_err() && percentage("-1%").is_err() && percentage("inf").is_err());
    }
}
