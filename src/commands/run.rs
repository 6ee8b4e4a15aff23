//! `run`: plan, launch llama-server, and stay in front of it until Ctrl-C. [I/O]

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::launch::{Engine, EngineArgs, Fetch, Proposal};
use super::plan_options::{PlanOptions, is_plan_file};
use super::{Outcome, Output, check, interrupt, model_arg, progress};
use crate::bytes::Bytes;
use crate::cli::help::OWN;
use crate::measurement::{self, Expected, Launched, compare};
use crate::report::live::{Promise, Sample, Tier, panel, summary};
use crate::runtime::server::Server;
use crate::runtime::{Error, nvml, sampler, server};
use crate::suggest::Refusal;

/// How often the server is looked at while it serves.
const LOOK: Duration = Duration::from_millis(100);
/// How often memory is looked at for the panel.
const PANEL: Duration = Duration::from_secs(1);
/// How many looks at the cards must see another amount free before it is planned for: what comes and goes is not followed.
const SETTLED: u32 = 3;
/// How often a line is written where there is no terminal, at most.
const LINE: Duration = Duration::from_secs(10);
/// The width of a terminal that does not say it, in columns.
const WIDTH: usize = 80;

/// The bar that holds the panel while it is shown: lines of log are printed above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Plan, launch llama-server in the foreground, and compare predicted with measured memory once it is loaded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan run model.gguf --vram 24G
  moeplan run hf:owner/repo:Q4_K_M --vram 24G     llama-server downloads it
  moeplan run plan.json -- --port 8080 --jinja
  moeplan run model.gguf --vram 24G --log             llama-server's log on standard error")]
pub struct Args {
    /// A GGUF file to plan for, `hf:owner/repo[:QUANT]` or https://… for llama-server to download, or a plan (`moeplan plan --json`).
    #[arg(value_name = "MODEL|PLAN")]
    pub model: PathBuf,
    #[command(flatten)]
    pub options: PlanOptions,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Plan again and restart the server when other programs take or free more of a card's memory than the margin.
    ///
    /// NVIDIA cards only. The restart waits until no request is running; the address stays the same.
    #[arg(long, help_heading = OWN)]
    pub follow: bool,
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
    server.keeps_key = true;
    server.offline = output.global.offline;
    if args.log {
        server.watch = None;
    }
    if args.log || output.is_verbose() {
        server.echo = Some(echo_above);
    }
    let engine = Engine::Server(Box::new(server.clone()));
    let mut follow = args.follow.then(|| Follow::new(args, &engine)).transpose()?;
    let fetch = Some(Fetch { output, extra: &args.extra });
    let mut proposal = Proposal::of_model(&args.model, &args.options, &engine, fetch)?;
    proposal.beside.extend(args.extra.iter().cloned());
    server.extra.clone_from(&proposal.beside);
    if args.engine.dry_run {
        return check::told(proposal.told([(None, &proposal.launch.run)], &args.options)?, output);
    }
    loop {
        proposal.warn(output);
        let (running, promise) = start(&proposal, &server, &engine, args.tolerance, output)?;
        // Who asks the server finds the next one at the same address.
        if follow.is_some() && !server.extra.iter().any(|word| word == "--port") {
            let port = promise.endpoint.rsplit(':').next().unwrap_or_default();
            server.extra.extend(["--port".to_string(), port.to_string()]);
        }
        proposal = stay(running, &promise, &proposal, follow.as_mut(), output)?;
        nvml::replace(BTreeMap::new());
    }
}

/// Launches, and shows predicted beside measured once the server takes requests.
fn start(
    proposal: &Proposal,
    server: &Server,
    engine: &Engine,
    tolerance: f64,
    output: &Output,
) -> anyhow::Result<(server::Running, Promise)> {
    let forecast = proposal.forecast()?;
    let free = free();
    for (name, row) in &forecast.memory {
        if let Some(free) = free.get(name).filter(|free| row.total() > **free) {
            let needs = row.total();
            output.say(&format!(
                "warning: {free} of {name} is free now, but the launch needs {needs}: plan again, or close the program that holds the rest"
            ));
        }
    }
    if model_arg::is_remote(&proposal.launch.model) {
        let bytes: Bytes = proposal.model.files.iter().map(|file| file.bytes).sum();
        output.say(&format!("llama-server first downloads {bytes}, or as much of it as its cache lacks"));
    }
    output.say(&format!("loading {} in {}", proposal.launch.model.display(), engine.name()));
    let mut running = server.start(&proposal.launch).map_err(anyhow::Error::from)?;
    for note in &running.notes {
        output.say(&format!("note: {note}"));
    }
    // What the devices show grows with the first long prompts: only llama.cpp's own sums are compared here.
    let seen = running.seen()?;
    let comparison = compare(&Expected::of(&forecast, Bytes(0)), &seen, tolerance);
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
        "ready after {:.1} s at {}   (OpenAI's API under /v1; Ctrl-C stops it)",
        launched.load_seconds, launched.endpoint
    ));
    let path = &proposal.launch.model;
    let promise = Promise {
        model: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        endpoint: launched.endpoint,
        tiers: Tier::of(&forecast.memory, &proposal.launch.machine),
        speed: proposal.plan.as_ref().map(|plan| (plan.turn, plan.speed.clone())),
    };
    Ok((running, promise))
}

/// What is free of each card; what the server holds that is to be replaced counts as free.
fn free() -> BTreeMap<String, Bytes> {
    nvml::listed().into_iter().map(|card| (card.name, card.free)).collect()
}

/// `--follow`: looks at what other programs leave of the cards.
struct Follow<'a> {
    args: &'a Args,
    engine: &'a Engine,
    /// What was free for the server when it was planned.
    free: BTreeMap<String, Bytes>,
    looked: Instant,
    /// How many looks in a row saw another amount.
    seen: u32,
}

impl<'a> Follow<'a> {
    fn new(args: &'a Args, engine: &'a Engine) -> Result<Self, Refusal> {
        if is_plan_file(&args.model) {
            let hint = "name the model instead of the plan, and describe the same machine";
            return Err(Refusal::new("--follow plans again, but a plan file is one fixed plan", hint));
        }
        let free = free();
        if free.is_empty() {
            return Err(Refusal::new(
                "--follow needs an NVIDIA card with its driver, and finds none here",
                "--follow cannot watch other devices: leave it out",
            ));
        }
        Ok(Self { args, engine, free, looked: Instant::now(), seen: 0 })
    }

    /// The next launch, once another amount has stayed free for some looks, no request is running, and it is another launch. A
    /// server is not stopped for a plan that does not fit, nor for none.
    fn look(&mut self, running: &mut server::Running, now: &Proposal, output: &Output) -> Option<Proposal> {
        if self.looked.elapsed() < PANEL {
            return None;
        }
        self.looked = Instant::now();
        nvml::replace(running.held());
        let free = free();
        let margin = self.args.options.machine.margin(&now.launch.machine);
        let differs = |(name, free): &(&String, &Bytes)| {
            self.free.get(*name).is_none_or(|planned| planned.0.abs_diff(free.0) > margin.0)
        };
        let Some((name, amount)) = free.iter().find(differs) else {
            self.seen = 0;
            return None;
        };
        self.seen += 1;
        if self.seen < SETTLED || running.serving().running() > 0 {
            return None;
        }
        output.say(&format!("{amount} of {name} are free for the server now: planning again"));
        let fetch = Some(Fetch { output, extra: &self.args.extra });
        let next = Proposal::of_model(&self.args.model, &self.args.options, self.engine, fetch);
        // A request may have come meanwhile.
        if running.ended().is_some() || running.serving().running() > 0 {
            return None;
        }
        (self.free, self.seen) = (free, 0);
        match next {
            Err(error) => output.say(&format!("keeping the server: {error:#}")),
            Ok(next) if !next.fits() => output.say("keeping the server: no plan fits the memory that is free"),
            Ok(next) if next.launch.run == now.launch.run => {
                output.say("keeping the server: its plan is still the best");
            }
            Ok(next) => return Some(next),
        }
        None
    }
}

/// Stays in front of the server until Ctrl-C, or until it ends: with a panel at the lower end of a terminal that can move its cursor,
/// else with a line now and then. What comes back is the launch that takes its place.
fn stay(
    mut running: server::Running,
    promise: &Promise,
    proposal: &Proposal,
    mut follow: Option<&mut Follow<'_>>,
    output: &Output,
) -> anyhow::Result<Proposal> {
    let can_move = !output.global.quiet && std::io::stderr().is_terminal();
    let bar = Some(progress("{msg}", None)).filter(|bar| can_move && !bar.is_hidden());
    shown().clone_from(&bar);
    let since = Instant::now();
    let mut last: Option<(Instant, u64)> = None;
    let ended = loop {
        if interrupt::is_pressed() {
            break Err(None);
        }
        if let Some(end) = running.ended() {
            break Err(Some(end));
        }
        if let Some(next) = follow.as_mut().and_then(|follow| follow.look(&mut running, proposal, output)) {
            break Ok(next);
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
    if let Err(Some(end)) = ended {
        return Err(running.why_it_ended("serving", end).into());
    }
    output.say("stopping llama-server");
    running.stop();
    ended.map_err(|_| Error::interrupted().into())
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
