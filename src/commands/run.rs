//! `run`: plan, launch llama-server, and stay in front of it until Ctrl-C. [I/O]

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::launch::{Engine, EngineArgs, LaunchArgs, Proposal};
use super::{Outcome, Output, interrupt};
use crate::bytes::Bytes;
use crate::cli::help::OWN;
use crate::measurement::{self, Expected, Launched, compare};
use crate::report::live::{Promise, Sample, Tier, panel, summary};
use crate::runtime::log::Serving;
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
        server.echo = Some(echo_above);
    }
    let engine = Engine::Server(Box::new(server.clone()));
    let proposal = Proposal::of_model(&args.model, &args.launch, &engine)?;
    proposal.warn(output);
    let forecast = proposal.forecast()?;
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

#[derive(Debug)]
enum Place {
    Nowhere,
    /// On a terminal, at its lower end.
    Terminal(ProgressBar),
    Lines,
}

#[derive(Debug)]
struct Panel {
    promise: Promise,
    place: Place,
    since: Instant,
    shown: Option<Instant>,
    /// Requests that were over when it was last shown.
    over: u64,
}

impl Panel {
    /// A panel on standard error, below the log where that is a terminal that can move its cursor; nothing with `-q`.
    fn new(promise: Promise, output: &Output) -> Self {
        let bar = ProgressBar::new_spinner();
        let place = match ProgressStyle::with_template("{msg}") {
            _ if output.global.quiet => Place::Nowhere,
            Ok(style) if std::io::stderr().is_terminal() && !bar.is_hidden() => {
                let bar = bar.with_style(style);
                *shown() = Some(bar.clone());
                Place::Terminal(bar)
            }
            _ => Place::Lines,
        };
        Self { promise, place, since: Instant::now(), shown: None, over: 0 }
    }

    /// Shows what is seen now, where it is time to.
    fn show(&mut self, process: u32, serving: &Serving) {
        let has_passed = |limit| self.shown.is_none_or(|shown| shown.elapsed() >= limit);
        let over = serving.served.saturating_add(serving.cancelled);
        let is_time = match self.place {
            Place::Nowhere => false,
            Place::Terminal(_) => has_passed(PANEL) || over != self.over,
            Place::Lines => has_passed(LINE) && over != self.over,
        };
        if !is_time {
            return;
        }
        (self.shown, self.over) = (Some(Instant::now()), over);
        let sample = Sample { uptime: self.since.elapsed(), held: sampler::held(process), serving: serving.clone() };
        match &self.place {
            Place::Terminal(bar) => {
                let width = console::Term::stderr().size_checked().map_or(WIDTH, |(_, columns)| columns.into());
                let text = panel(&self.promise, &sample, width.saturating_sub(1));
                let has_color = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
                bar.set_message(if has_color { text } else { anstream::adapter::strip_str(&text).to_string() });
            }
            Place::Lines => super::echo(&summary(&self.promise, &sample)),
            Place::Nowhere => {}
        }
    }

    fn clear(&mut self) {
        if let Place::Terminal(bar) = &self.place {
            *shown() = None;
            bar.finish_and_clear();
        }
        self.place = Place::Nowhere;
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        self.clear();
    }
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
