//! One file a command: load, compute, render. [I/O]

pub mod bench;
pub mod check;
pub mod completions;
pub mod devices;
pub mod doctor;
pub mod inspect;
pub mod interrupt;
pub mod launch;
pub mod list;
pub mod machine;
pub mod man;
pub mod mcp;
pub mod measuring;
pub mod model_arg;
pub mod plan;
pub mod plan_options;
pub mod quants;
pub mod report;
pub mod rules;
pub mod run;
pub mod synth;
pub mod tune;
pub mod validate;
pub mod verify;
pub mod what_if;
pub mod worker;

use std::borrow::Cow;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anstyle::AnsiColor;
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ask;
use crate::cli::{Format, Global};
use crate::files::{self, temporary};
use crate::report::page::{Document, Report};
use crate::report::{html, markdown, text};
use crate::run::Target;
use crate::run::build::NEWEST;
use crate::runtime;
use crate::runtime::detect::installed_build;
use crate::suggest::{Hint, Refusal};

/// Plan, predict and prove where llama.cpp puts a mixture-of-experts model.
#[derive(Debug, clap::Parser)]
#[command(
    version,
    about,
    arg_required_else_help = true,
    after_help = "Start here:
  moeplan doctor                                             what is installed here
  moeplan inspect model.gguf                                 what the model is
  moeplan plan --vram 24G model.gguf                         the command for your card
  moeplan check --vram 24G -- llama-server -m model.gguf     will my command fit
  moeplan verify --vram 24G model.gguf                       was the prediction right"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show what a GGUF file contains: experts, parameters, bytes by role and type, context.
    Inspect(inspect::Args),
    /// Predict what a llama.cpp command line would do, and whether it fits.
    Check(Box<check::Args>),
    /// Find the fastest launch that fits a budget, and print its command.
    Plan(Box<plan::PlanArgs>),
    /// Plan, launch llama-server in the foreground, and compare predicted with measured.
    Run(Box<run::Args>),
    /// Launch, measure, and compare with the prediction, term by term.
    Verify(Box<verify::Args>),
    /// Measure the plan, `--fit on` and similar launches; print the fastest as a command.
    Tune(Box<tune::Args>),
    /// Measure speed, streaming, answers and memory: of a plan, of baselines, or of an endpoint.
    Bench(Box<bench::Args>),
    /// Run a whole test protocol on models, and print a checklist with evidence.
    Validate(Box<validate::Args>),
    /// Turn documents written with --json into a page with charts, or into Markdown.
    Report(report::Args),
    /// List the models in the caches of llama.cpp, Hugging Face, LM Studio and ollama.
    List(list::Args),
    /// Show this machine as `plan` sees it, measure its speeds, or describe another.
    Devices(devices::Args),
    /// Check what is installed here and what would interfere, and say how to fix it.
    Doctor(doctor::Args),
    /// Serve inspect, check, plan and devices to agents, over the Model Context Protocol.
    Mcp(mcp::Args),
    /// List, show and check placement rule files.
    Rules(rules::Args),
    /// Write a GGUF with the header of a known model: sparse, with random weights, or tiny.
    Synth(synth::Args),
    /// Print completions for a shell.
    Completions(completions::Args),
    /// Print the manual page, or write one for each command.
    Man(man::Args),
    /// Run llama.cpp for another moeplan (questions on standard input).
    #[command(hide = true)]
    Worker(worker::Args),
}

/// How a command ended when nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Yes,
    /// Exit code 1: a real no (does not fit, outside tolerance, expectation not met).
    No,
    /// Exit code 2: the answer is printed, and not a whole one.
    Untold,
}

/// Where the answer goes and how it is written.
#[derive(Debug)]
pub struct Output {
    pub global: Global,
    /// Whether the file of `-o` is this run's own: what it wrote it may write anew.
    is_own: AtomicBool,
}

impl Output {
    pub fn new(global: Global) -> Self {
        Self { global, is_own: AtomicBool::new(false) }
    }

    /// The same to standard output, where `-o` names something else than the answer.
    #[must_use]
    pub fn without_file(&self) -> Self {
        Self::new(Global { output: None, format: Some(self.format()), ..self.global.clone() })
    }

    /// The file of `-o`; `-` is standard output.
    pub fn file(&self) -> Option<&Path> {
        self.global.output.as_deref().filter(|path| *path != Path::new("-"))
    }

    /// Finds out before the work whether a file can be written, which is never a model.
    pub fn check_file(&self, path: &Path) -> anyhow::Result<()> {
        let mut magic = [0; 4];
        let is_model = !files::is_stream(path)
            && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
            && &magic == b"GGUF";
        anyhow::ensure!(!is_model, "`{}` is a GGUF file, which an answer must not replace", path.display());
        Ok(files::check(path, self.global.force)?)
    }

    /// Writes the answer: to the file of `-o`, or to standard output. A broken pipe is success.
    pub fn answer(&self, text: &str) -> anyhow::Result<()> {
        let text = if text.ends_with('\n') { text.to_string() } else { format!("{text}\n") };
        let Some(path) = self.file() else { return print(&text) };
        let kept = self.keep(path, &text);
        self.is_own.store(kept.is_ok(), Ordering::Relaxed);
        or_print(kept, &text)
    }

    /// Writes a file beside the answer; what cannot be kept goes to standard output, and is an error all the same.
    pub fn write(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let kept = self.keep(path, text);
        // A document has every figure of it, and stays alone.
        if self.format() == Format::Json { kept } else { or_print(kept, text) }
    }

    fn keep(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let is_own = self.is_own.load(Ordering::Relaxed) && self.file() == Some(path);
        Ok(files::write(path, text.as_bytes(), self.global.force || is_own)?)
    }

    /// Writes a document that is not whole yet to the file of `-o`, where that is to hold JSON.
    pub fn so_far(&self, document: &impl serde::Serialize) {
        let Some(path) = self.file().filter(|_| self.format() == Format::Json) else { return };
        let text = serde_json::to_string_pretty(document).map_err(anyhow::Error::from);
        match text.and_then(|text| self.keep(path, &(text + "\n"))) {
            Ok(()) => self.is_own.store(true, Ordering::Relaxed),
            Err(error) => self.say(&format!("warning: {error:#}")),
        }
    }

    pub fn json(&self, document: &impl serde::Serialize) -> anyhow::Result<()> {
        self.answer(&serde_json::to_string_pretty(document)?)
    }

    pub fn show(&self, document: &(impl serde::Serialize + Document)) -> anyhow::Result<()> {
        match self.format() {
            Format::Json => self.json(document),
            _ => self.pages(&document.report()),
        }
    }

    pub fn pages(&self, report: &Report) -> anyhow::Result<()> {
        let text = match self.format() {
            Format::Html => html::report(report),
            Format::Markdown => markdown::report(report),
            Format::Text | Format::Json => {
                let (terminal, is_file) = (console::Term::stdout(), self.file().is_some());
                let size = terminal.size_checked().filter(|_| terminal.is_term() && !is_file);
                let width = size.map_or(usize::MAX, |(_, columns)| columns.into());
                let text = text::report(report, self.is_verbose(), width);
                // A file gets no codes of colours; standard output drops them itself where it shows none.
                if is_file { anstream::adapter::strip_str(&text).to_string() } else { text }
            }
        };
        self.answer(&text)
    }

    /// Says something to the person in one line on standard error, untrusted text escaped; silent with `-q`.
    pub fn say(&self, text: &str) {
        if !self.global.quiet {
            echo(text);
        }
    }

    pub fn format(&self) -> Format {
        self.global.format()
    }

    pub fn is_verbose(&self) -> bool {
        self.global.verbose > 0
    }
}

/// The build of llama.cpp that an answer is for: what was given, that of the llama-server here, else the newest.
#[derive(Debug, Clone, Copy)]
struct Build {
    number: u32,
    /// What is said of it where nobody chose it.
    note: Option<&'static str>,
}

impl Build {
    fn of(given: Option<u32>) -> Self {
        match (given, given.map_or_else(installed_build, |_| None)) {
            (Some(number), _) => Self { number, note: None },
            (None, Some(number)) => {
                Self { number, note: Some("this computer's llama-server; --build N chooses another") }
            }
            (None, None) => Self { number: NEWEST, note: Some("the newest known; for an older one add --build N") },
        }
    }

    fn target(self) -> Target {
        Target { build: self.number, ..Target::newest() }
    }

    fn say(self, output: &Output) {
        if let Some(note) = self.note {
            output.say(&format!("assuming llama.cpp b{}, {note}", self.number));
        }
    }
}

/// Prints what could not be kept, so that it is not lost; the error stays.
fn or_print(kept: anyhow::Result<()>, text: &str) -> anyhow::Result<()> {
    if kept.is_err() {
        print(text)?;
    }
    kept
}

/// Prints to standard output. A broken pipe is success.
fn print(text: &str) -> anyhow::Result<()> {
    match anstream::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Shows a line on standard error, untrusted text escaped.
fn echo(line: &str) {
    let _ = writeln!(anstream::stderr(), "{}", crate::escape::terminal(line));
}

/// The text of a file that a person named.
fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// The text of a file, or of the `kind` that comes with moeplan under that name.
fn read_or_built_in(kind: &str, name: &str, built_in: &[(&str, &'static str)]) -> anyhow::Result<Cow<'static, str>> {
    let path = Path::new(name);
    let known = built_in.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    match known {
        _ if path.exists() && !path.is_dir() => Ok(read(path)?.into()),
        Some((_, text)) => Ok((*text).into()),
        None => Err(Refusal::unknown(kind, name, built_in.iter().map(|(known, _)| *known)).into()),
    }
}

/// Progress on standard error, for a person who watches.
fn progress(template: &str, length: Option<u64>) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style)
}

/// How long work may take before a person who watches is told that it goes on.
const SILENT: Duration = Duration::from_secs(1);

/// Works; on a terminal a line says what at, where it takes longer than a second.
fn working<T>(output: &Output, what: &'static str, work: impl FnOnce() -> T) -> T {
    let bar = if output.global.quiet { ProgressBar::hidden() } else { progress("{spinner} {msg}, {elapsed}", None) };
    if bar.is_hidden() { work() } else { shown_after(SILENT, &bar, what, work) }
}

/// Works, and shows the bar as soon as it has taken so long.
fn shown_after<T>(silent: Duration, bar: &ProgressBar, what: &'static str, work: impl FnOnce() -> T) -> T {
    let (working, is_over) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_over.recv_timeout(silent) == Err(RecvTimeoutError::Timeout) {
                bar.set_message(what);
                bar.enable_steady_tick(Duration::from_millis(100));
                let _ = is_over.recv();
                bar.finish_and_clear();
            }
        });
        // It is over as soon as this is gone, be it by a panic.
        let _working = working;
        work()
    })
}

pub fn run(command: Command, output: &Output) -> anyhow::Result<Outcome> {
    if !matches!(command, Command::Worker(_)) {
        interrupt::watch();
    }
    // A doctor looks, and changes nothing.
    if !matches!(command, Command::Worker(_) | Command::Doctor(_)) {
        temporary::clear();
    }
    // The model that `synth` writes is not an answer, and has a check of its own.
    if let Some(path) = output.file().filter(|_| !matches!(&command, Command::Synth(args) if args.spec.is_some())) {
        output.check_file(path)?;
    }
    match command {
        Command::Devices(args) => devices::run(&args, output),
        Command::Completions(args) => completions::run(&args, output),
        Command::Man(args) => man::run(&args, output),
        Command::Mcp(mcp::Args {}) => mcp::run(output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Plan(args) => plan::run(*args, output),
        Command::Run(args) => run::run(&args, output),
        Command::Bench(args) => bench::run(*args, output),
        Command::Validate(args) => validate::run(*args, output),
        Command::Verify(args) => verify::run(&args, output),
        Command::Report(args) => report::run(&args, output),
        Command::Worker(args) => worker::run(&args),
        Command::Inspect(args) => inspect::run(&args, output),
        Command::List(args) => list::run(&args, output),
        Command::Synth(args) => synth::run(&args, output),
        Command::Check(args) => check::run(&args, output),
        Command::Tune(args) => tune::run(*args, output),
        Command::Rules(args) => rules::run(&args, output),
    }
}

/// Prints an error and what caused it, untrusted text escaped, then a hint where one is known.
pub fn print_error(error: &anyhow::Error) {
    let chain: Vec<String> =
        error.chain().map(|cause| crate::escape::terminal(&cause.to_string()).into_owned()).collect();
    let (red, cyan) = (AnsiColor::Red.on_default().bold(), AnsiColor::Cyan.on_default());
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {}", chain.join(": "));
    if let Some(hint) = hint(error) {
        let _ = writeln!(anstream::stderr(), "{cyan}hint:{cyan:#} {}", crate::escape::terminal(&hint));
    }
}

/// Prints clap's own words: help and version on standard output, errors on standard error, their tips as hints.
pub fn print_usage(error: &clap::Error) {
    let text = error.render().ansi().to_string();
    let _ = if error.use_stderr() {
        anstream::stderr().write_all(text.replace("tip:", "hint:").as_bytes())
    } else {
        anstream::stdout().write_all(text.as_bytes())
    };
}

/// What to try after an error: what the first of its causes knows that knows anything.
fn hint(error: &anyhow::Error) -> Option<String> {
    let of_runtime = |cause: &'_ (dyn std::error::Error + 'static)| {
        Some(cause.downcast_ref::<runtime::Error>()?.hint()?.into_owned())
    };
    error.chain().find_map(|cause| ask::hint(cause).map(Cow::into_owned).or_else(|| of_runtime(cause)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_line_is_shown_where_work_takes_long_and_goes_with_it() {
        let bar = ProgressBar::hidden();
        let seen = shown_after(Duration::ZERO, &bar, "planning", || {
            while bar.message().is_empty() {
                std::thread::yield_now();
            }
            bar.message()
        });
        assert!(seen == "planning" && bar.is_finished());
        let bar = ProgressBar::hidden();
        assert_eq!(shown_after(Duration::MAX, &bar, "planning", || bar.message()), "");
        assert!(!bar.is_finished());
    }

    #[test]
    fn no_flag_is_defined_twice() {
        Cli::command().debug_assert();
    }
}
