//! `verify`: launch on the embedded llama.cpp, measure, and put it beside the prediction. [I/O]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use serde::Deserialize as _;

use super::plan::PlanOptions;
use super::{Outcome, Output, check, model_arg};
use crate::bytes::Bytes;
use crate::cli::Format;
use crate::gguf;
use crate::machine::Machine;
use crate::measurement::{Measurement, verify};
use crate::memory::{self, Prediction};
use crate::plan;
use crate::report;
use crate::run::{ModelSource, RunConfig, parse};
use crate::runtime::{
    Embedded, Launch, Prompt, RpcServer, Runtime as _, Workload, bind_software_devices, machine_of, software_machine,
};

/// Launch what a plan says on the embedded llama.cpp, measure, and compare with the prediction, term by term.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan verify model.gguf --vram 24G
  moeplan plan --json -o plan.json model.gguf --vram 24G && moeplan verify plan.json
  moeplan verify model.gguf --backend rpc --vram 8M    (a software device, for a computer without a GPU)
  moeplan verify -- llama-server -m model.gguf -ngl 99 -cmoe -c 8192")]
pub struct Args {
    /// A GGUF file to plan for, or a plan (`moeplan plan --json`).
    #[arg(value_name = "MODEL|PLAN")]
    pub model: Option<PathBuf>,
    /// What is asked of the planner.
    #[command(flatten)]
    pub options: PlanOptions,
    /// How the launch is measured.
    #[command(flatten)]
    pub how: How,
    /// A command line of llama.cpp to launch as it is, without a plan (llama-server's flags, or with its program).
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// How a launch is measured.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Measurement")]
pub struct How {
    /// How far compute buffers and totals may be off: a percentage. Weights and caches must be exact.
    #[arg(long, value_name = "PERCENT", default_value = "2%", value_parser = percentage)]
    pub tolerance: f64,
    /// What runs the launch.
    #[arg(long, value_enum, default_value_t = Runs::Embedded, value_name = "RUNTIME")]
    pub runtime: Runs,
    /// Prompt tokens to process in the measurement; fewer where the context is shorter.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub measure_prompt: u32,
    /// A text to continue instead.
    #[arg(long, value_name = "TEXT", conflicts_with = "measure_prompt")]
    pub text: Option<String>,
    /// Tokens to generate in the measurement.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub measure_generate: u32,
    /// How often, for the spread of the speed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// Threads of llama.cpp; 0 = all processors.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: u32,
    /// Stop llama.cpp after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub timeout: u64,
    /// Use N software devices (local RPC servers on the processor) with a command line after `--`.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rpc_devices: u16,
    /// Only ask llama.cpp what the launch would allocate; nothing is loaded.
    #[arg(long)]
    pub project: bool,
}

/// What can run a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runs {
    /// llama.cpp inside moeplan, in a process of its own.
    Embedded,
}

/// `2%`, `2` and `0.5%` are percentages.
fn percentage(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    match number.parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(percent / 100.0),
        _ => Err("write a percentage, for example 2%".to_string()),
    }
}

/// A launch and where it comes from.
struct Proposal {
    launch: Launch,
    /// The plan's document; null for a command line.
    plan: serde_json::Value,
    /// The software devices that were started for it.
    servers: Vec<RpcServer>,
}

/// What `verify` needs of a plan's document.
#[derive(serde::Deserialize)]
struct PlanFile {
    model: PlanModel,
    machine: Machine,
    args: Vec<String>,
}

/// The model of a plan's document.
#[derive(serde::Deserialize)]
struct PlanModel {
    path: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let how = &args.how;
    let mut runtime = Embedded::here()?;
    runtime.limit = Duration::from_secs(how.timeout);
    runtime.echo = (output.global.verbose > 0).then_some(super::echo as crate::runtime::Echo);
    let Proposal { launch, plan, servers } = proposal(args, &runtime)?;
    for server in &servers {
        output.say(&format!("software device: an RPC server of our own at {}", server.endpoint()));
    }
    if how.project {
        return project(&runtime, &launch, output);
    }
    let predicted = predict(&launch)?;
    let room = predicted.numbers.n_ctx_seq.saturating_sub(how.measure_generate).max(1);
    let prompt = how.text.clone().map_or(Prompt::Tokens(how.measure_prompt.min(room)), Prompt::Text);
    let workload = Workload { prompt, depth: 0, n_generate: how.measure_generate, repetitions: how.repetitions };
    output.say(&format!("loading {} in llama.cpp b{}", launch.model.display(), crate::runtime::EMBEDDED_BUILD));
    let fits = plan.get("fits").is_none_or(|fits| fits.as_bool() == Some(true));
    let mut measured = verify(&runtime, &launch, &workload, &predicted.memory, how.tolerance)?;
    measured.plan = plan;
    answer(&measured, output)?;
    if !fits {
        output.say("warning: the plan does not fit its budget; `moeplan plan` says by how much");
    }
    Ok(if measured.ok() && fits { Outcome::Yes } else { Outcome::No })
}

/// What moeplan predicts for the launch.
fn predict(launch: &Launch) -> anyhow::Result<Prediction> {
    let model = check::load(gguf::open(&launch.model)?, &launch.run)?;
    let placement = crate::placement::place(&model, &launch.machine, &launch.run)?;
    Ok(memory::predict(&model, &launch.machine, &launch.run, &placement)?)
}

/// The launch: a command line as it is, a plan's file, or the plan for a model.
fn proposal(args: &Args, runtime: &Embedded) -> anyhow::Result<Proposal> {
    if !args.command.is_empty() {
        let mut launch = typed(args, runtime)?;
        let Launch { machine, run, n_threads, .. } = &mut launch;
        let servers = bind_software_devices(&runtime.program, machine, run, *n_threads)?;
        return Ok(Proposal { launch, plan: serde_json::Value::Null, servers });
    }
    let path = args.model.as_ref().context("nothing to verify: name a model, a plan, or a command after `--`")?;
    let (plan, mut servers) = if path.extension().is_some_and(|extension| extension == "json") {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        (serde_json::from_str(&text).with_context(|| format!("`{}` is not JSON", path.display()))?, Vec::new())
    } else {
        planned(path, args, runtime)?
    };
    let file = PlanFile::deserialize(&plan)
        .with_context(|| format!("`{}` is no plan as `moeplan plan --json` writes it", path.display()))?;
    let mut words = vec!["llama-server".to_string()];
    words.extend(file.args);
    let mut run = parse::command(&words, &BTreeMap::new())?.run;
    let mut machine = file.machine;
    servers.extend(bind_software_devices(&runtime.program, &mut machine, &mut run, args.how.threads)?);
    let launch = Launch { model: file.model.path, run, machine, n_threads: args.how.threads };
    Ok(Proposal { launch, plan, servers })
}

/// The plan for a model. Software devices are started first, since the plan names their servers.
fn planned(path: &Path, args: &Args, runtime: &Embedded) -> anyhow::Result<(serde_json::Value, Vec<RpcServer>)> {
    let path = &model_arg::local_path(path)?;
    let model = check::load(gguf::open(path)?, &RunConfig::default())?;
    let mut request = args.options.request(&model)?;
    let mut machine = args.options.machine.machine()?;
    // What is repacked is decided by what the embedded llama.cpp was built for, not by what the processor could do.
    machine.host.isa = crate::runtime::embedded_isa();
    let servers = bind_software_devices(&runtime.program, &mut machine, &mut request.run, args.how.threads)?;
    let plan = plan::plan(&model, &path.display().to_string(), &machine, &request)?;
    Ok((serde_json::to_value(plan)?, servers))
}

/// The launch that was typed, on the machine that is here or with software devices.
fn typed(args: &Args, runtime: &Embedded) -> anyhow::Result<Launch> {
    let mut words = args.command.clone();
    if words.first().is_none_or(|word| word.starts_with('-')) {
        words.insert(0, "llama-server".to_string());
    }
    let command = parse::command(&words, &BTreeMap::new())?;
    let named = match &command.model {
        Some(ModelSource::Path(path)) => Some(path.clone()),
        _ => None,
    };
    let given = args.model.as_deref().map(model_arg::local_path).transpose()?;
    let model = given.or(named).context("no model: name its file before `--` or with -m after it")?;
    let machine = if args.how.rpc_devices > 0 {
        software_machine(args.how.rpc_devices, Bytes::mib(24 * 1024))
    } else {
        machine_of(&runtime.devices(&command.run.rpc)?)
    };
    Ok(Launch { model, run: command.run, machine, n_threads: args.how.threads })
}

/// Prints a projection by buffer type.
fn project(runtime: &Embedded, launch: &Launch, output: &Output) -> anyhow::Result<Outcome> {
    let mut answers = runtime.project(std::slice::from_ref(launch));
    let projection = answers.pop().context("no projection")??;
    if output.format() == Format::Json {
        output.json(&projection)?;
    } else {
        let mut text = format!(
            "n_ctx {}\n{:<28} {:>16} {:>16} {:>16}\n",
            projection.n_ctx, "buffer", "model", "context", "compute"
        );
        for b in &projection.buffers {
            let _ = writeln!(
                text,
                "{:<28} {:>16} {:>16} {:>16}",
                crate::escape::terminal(&b.buffer),
                b.model.0,
                b.context.0,
                b.compute.0
            );
        }
        output.answer(&text)?;
    }
    Ok(Outcome::Yes)
}

/// Prints the measurement.
fn answer(measured: &Measurement, output: &Output) -> anyhow::Result<()> {
    match output.format() {
        Format::Json => output.json(measured),
        Format::Markdown => output.answer(&report::measurement::markdown(measured)),
        Format::Text => output.answer(&report::measurement::text(measured)),
    }
}

#[cfg(test)]
mod tests {
    use super::percentage;

    #[test]
    fn percentages_are_shares() {
        assert_eq!(percentage("2%"), Ok(0.02));
        assert_eq!(percentage("0.5"), Ok(0.005));
        assert!(percentage("much").is_err() && percentage("-1%").is_err() && percentage("inf").is_err());
    }
}
