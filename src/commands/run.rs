//! `run`: plan, launch llama-server, and stay in front of it until Ctrl-C. [I/O]

use std::path::PathBuf;
use std::time::Duration;

use super::engine::{Engine, EngineArgs};
use super::launch::{LaunchArgs, Proposal};
use super::live::{self, Panel};
use super::{Outcome, Output, interrupt};
use crate::bytes::Bytes;
use crate::cli::help::OWN;
use crate::measurement::{self, Expected, Launched, compare};
use crate::report::live::{Promise, Tier};
use crate::runtime::{Error, Observation, server};

/// How often the server is looked at while it serves.
const LOOK: Duration = Duration::from_millis(100);

/// Plan, launch llama-server, and stay in front of it: predicted beside measured once it is loaded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan run model.gguf --vram 24G
  moeplan run plan.json -- --port 8080 --jinja
  moeplan run model.gguf --vram 24G --log            (llama-server's log on standard error)")]
pub struct Args {
    /// A GGUF file to plan for, or a plan (`moeplan plan --json`).
    #[arg(value_name = "MODEL|PLAN")]
    pub model: PathBuf,
    #[command(flatten)]
    pub launch: LaunchArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Pass llama-server's log through to standard error.
    #[arg(long, help_heading = OWN)]
    pub log: bool,
    /// How far compute buffers and totals may be off before it is said: a percentage.
    #[arg(long, help_heading = OWN, value_name = "PERCENT", default_value = "2%", value_parser = super::verify::percentage)]
    pub tolerance: f64,
    /// More arguments of llama-server; of a flag given twice the last counts.
    #[arg(help_heading = OWN, last = true, value_name = "ARGUMENT")]
    pub extra: Vec<String>,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    args.launch.beside_plan(&args.model)?;
    let mut server = args.engine.server(output)?;
    server.extra.clone_from(&args.extra);
    server.keeps_key = true;
    if args.log {
        server.watch = None;
    }
    if args.log || output.is_verbose() {
        server.echo = Some(live::echo);
    }
    let engine = Engine::Server(Box::new(server.clone()));
    let proposal = Proposal::of_model(&args.model, &args.launch, &engine)?;
    proposal.warn(output);
    let forecast = proposal.forecast()?;
    output.say(&format!("loading {} in {}", proposal.launch.model.display(), engine.name()));
    let mut running = server.start(&proposal.launch).map_err(anyhow::Error::from)?;
    for note in running.notes() {
        output.say(&format!("note: {note}"));
    }
    let log = running.log();
    if log.buffers.is_empty() {
        return Err(server::silent_log().into());
    }
    // What the devices show grows with the first long prompts: only llama.cpp's own sums are compared here.
    let (memory, resolution, mapped_span) = (log.memory(), log.resolution(), log.mapped_span());
    let seen = Observation { memory, resolution, mapped_span, ..Observation::default() };
    let comparison = compare(&Expected::of(&forecast, Bytes(0)), &seen, args.tolerance);
    let mut command = vec![server.build.program.display().to_string()];
    command.extend(running.command().iter().cloned());
    let launched = Launched {
        schema: measurement::LAUNCHED.to_string(),
        endpoint: running.url().to_string(),
        process: running.id(),
        command,
        load_seconds: running.load_time().as_secs_f64(),
        comparison,
        plan: proposal.plan.clone(),
    };
    output.show(&launched)?;
    output.say("");
    output.say(&format!(
        "ready after {:.1} s at {}   (OpenAI's interface below /v1; Ctrl-C stops it)",
        launched.load_seconds, launched.endpoint
    ));
    let path = &proposal.launch.model;
    let promise = Promise {
        model: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        endpoint: launched.endpoint,
        tiers: Tier::of(&forecast.memory, &proposal.launch.machine),
        speed: proposal.plan.as_ref().map(|plan| (plan.turn, plan.speed.clone())),
    };
    stay(running, Panel::new(promise, output), output)
}

/// Stays in front of the server until Ctrl-C, or until it ends.
fn stay(mut running: server::Running, mut panel: Panel, output: &Output) -> anyhow::Result<Outcome> {
    loop {
        if interrupt::is_pressed() {
            panel.clear();
            output.say("stopping llama-server");
            running.stop();
            return Err(Error::interrupted().into());
        }
        if let Some(end) = running.ended() {
            panel.clear();
            return Err(running.why_it_ended("serving", end).into());
        }
        panel.show(running.id(), running.serving());
        std::thread::sleep(LOOK);
    }
}
