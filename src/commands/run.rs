//! `run`: plan, launch llama-server, and stay in front of it until Ctrl-C. [I/O]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::launch::{Engine, EngineArgs, Proposal};
use super::plan_options::PlanOptions;
use super::{Outcome, Output, interrupt, model_arg, progress};
use crate::bytes::Bytes;
use crate::cli::help::OWN;
use crate::measurement::{self, Expected, Launched, compare};
use crate::report::live::{Promise, Sample, Tier, panel, summary};
use crate::runtime::{Error, sampler, server};

/// How often the server is looked at while it serves.
const LOOK: Duration = Duration::from_millis(100);
/// How often memory is looked at for the panel.
const PANEL: Duration = Duration::from_secs(1);
/// How often a line is written where there is no terminal, at most.
const LINE: Duration = Duration::from_secs(10);
/// The width of a terminal that does not say it, in columns.
const WIDTH: usize = 80;

/// The bar that holds the panel while it is shown: lines of log are printed above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Plan, launch llama-server, and stay in front of it: predicted beside measured once it is loaded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan run model.gguf --vram 24G
  moeplan run hf:owner/repo:Q4_K_M --vram 24G                 (llama-server fetches it)
  moeplan run plan.json -- --port 8080 --jinja
  moeplan run model.gguf --vram 24G --log            (llama-server's log on standard error)")]
pub struct Args {
    /// A GGUF file to plan for, `hf:owner/repo[:QUANT]` or https://… for llama-server to fetch, or a plan (`moeplan plan --json`).
    #[arg(value_name = "MODEL|PLAN")]
    pub model: PathBuf,
    #[command(flatten)]
    pub options: PlanOptions,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Pass llama-server's log through to standard error.
    #[arg(long, help_heading = OWN)]
    pub log: bool,
    /// Tolerance for compute buffers and totals.
    #[arg(long, help_heading = OWN, value_name = "PERCENT", default_value = "2%", value_parser = super::verify::percentage)]
    pub tolerance: f64,
    /// More arguments for llama-server; if a flag is given twice, the last one counts.
    #[arg(help_heading = OWN, last = true, value_name = "ARGUMENT")]
    pub extra: Vec<String>,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    args.options.beside_plan(&args.model, true)?;
    let mut server = args.engine.server(output)?;
    server.extra.clone_from(&args.extra);
    server.offline = output.global.offline;
    server.keeps_key = true;
    if args.log {
        server.watch = None;
    }
    if args.log || output.is_verbose() {
        server.echo = Some(echo_above);
    }
    let engine = Engine::Server(Box::new(server.clone()));
    let proposal = Proposal::of_model(&args.model, &args.options, &engine, Some(output))?;
    proposal.warn(output);
    let forecast = proposal.forecast()?;
    if model_arg::is_remote(&proposal.launch.model) {
        let bytes: Bytes = proposal.model.files.iter().map(|file| file.bytes).sum();
        output.say(&format!("llama-server fetches {bytes} first, or what its cache lacks of it"));
    }
    output.say(&format!("loading {} in {}", proposal.launch.model.display(), engine.name()));
    let mut running = server.start(&proposal.launch).map_err(anyhow::Error::from)?;
    for note in &running.notes {
        output.say(&format!("note: {note}"));
    }
    // What the devices show grows with the first long prompts: only llama.cpp's own sums are compared here.
    let seen = running.seen()?;
    let comparison = compare(&Expected::of(&forecast, Bytes(0)), &seen, args.tolerance);
    let launched = Launched {
        schema: measurement::LAUNCHED.to_string(),
        endpoint: running.client.address().to_string(),
        process: running.id(),
        command: seen.command,
        load_seconds: seen.load_seconds,
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
    stay(running, &promise, output)
}

/// Stays in front of the server until Ctrl-C, or until it ends: with a panel at the lower end of a terminal that can move its cursor,
/// else with a line now and then.
fn stay(mut running: server::Running, promise: &Promise, output: &Output) -> anyhow::Result<Outcome> {
    let can_move = !output.global.quiet && std::io::stderr().is_terminal();
    let bar = Some(progress("{msg}", None)).filter(|bar| can_move && !bar.is_hidden());
    shown().clone_from(&bar);
    let since = Instant::now();
    let mut last: Option<(Instant, u64)> = None;
    let ended = loop {
        if interrupt::is_pressed() {
            break None;
        }
        if let Some(end) = running.ended() {
            break Some(end);
        }
        let process = running.id();
        let serving = running.serving();
        let over = serving.served.saturating_add(serving.cancelled);
        let has_passed = |limit| last.is_none_or(|(time, _)| time.elapsed() >= limit);
        let is_new = over != last.map_or(0, |(_, over)| over);
        let is_time = if bar.is_some() { has_passed(PANEL) || is_new } else { has_passed(LINE) && is_new };
        if is_time && !output.global.quiet {
            last = Some((Instant::now(), over));
            let sample = Sample { uptime: since.elapsed(), held: sampler::held(process), serving: serving.clone() };
            if let Some(bar) = &bar {
                let width = console::Term::stderr().size_checked().map_or(WIDTH, |(_, columns)| columns.into());
                let text = panel(promise, &sample, width.saturating_sub(1));
                let has_color = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
                bar.set_message(if has_color { text } else { anstream::adapter::strip_str(&text).to_string() });
            } else {
                super::echo(&summary(promise, &sample));
            }
        }
        std::thread::sleep(LOOK);
    };
    // The panel goes before anything else is said.
    *shown() = None;
    bar.iter().for_each(ProgressBar::finish_and_clear);
    if let Some(end) = ended {
        return Err(running.why_it_ended("serving", end).into());
    }
    output.say("stopping llama-server");
    running.stop();
    Err(Error::interrupted().into())
}

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Shows a log line of the server on standard error, above the panel where there is one.
fn echo_above(line: &str) {
    match shown().as_ref() {
        Some(bar) => bar.suspend(|| super::echo(line)),
        None => super::echo(line),
    }
}
