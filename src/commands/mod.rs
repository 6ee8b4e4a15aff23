//! One file a command: load, compute, render. [I/O]

pub mod calibrate;
pub mod bench;
pub mod check;
pub mod completions;
pub mod devices;
pub mod doctor;
pub mod engine;
pub mod inspect;
pub mod interrupt;
pub mod launch;
pub mod list;
pub mod live;
pub mod machine;
pub mod man;
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

use std::io::{Read as _, Write as _};
use std::path::Path;

use anstyle::AnsiColor;
use anyhow::Context as _;

use crate::cli::refusal::Refusal;
use crate::cli::{Format, Global};
use crate::synth::output::usual_permissions;

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
  moeplan verify --vram 24G model.gguf                       is that true"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say what a GGUF file is: experts, parameters, bytes by role and type, context.
    Inspect(inspect::Args),
    /// Say what a llama.cpp command line would do, and whether it fits.
    Check(Box<check::Args>),
    /// Find the launch that fits a budget and is fastest, and print its command.
    Plan(Box<plan::PlanArgs>),
    /// Plan, launch llama-server and stay in front of it, predicted beside measured.
    Run(Box<run::Args>),
    /// Launch, measure, and compare with the prediction, term by term.
    Verify(Box<verify::Args>),
    /// Measure the plan, `--fit on` and neighbours; the fastest as a command.
    Tune(Box<tune::Args>),
    /// Measure speed, streams, answers and memory beside baselines, or of an endpoint.
    Bench(Box<bench::Args>),
    /// Run a whole protocol over models: a checklist, each line with its evidence.
    Validate(Box<validate::Args>),
    /// Make a page with charts, or Markdown, of documents written with --json.
    Report(report::Args),
    /// List the models in the caches of llama.cpp, Hugging Face, LM Studio and ollama.
    List(list::Args),
    /// Show this machine as plans see it, measure its speeds, or describe another.
    Devices(devices::Args),
    /// Say what is installed and usable here, what would interfere, and what to do.
    Doctor(doctor::Args),
    /// List, show and check placement rule files.
    Rules(rules::Args),
    /// Write a GGUF with the header of a known model: a hole, random weights, or tiny.
    Synth(synth::Args),
    /// Print completions for a shell.
    Completions(completions::Args),
    /// Print the manual page, or write one for each command.
    Man(man::Args),
    /// Run llama.cpp for another moeplan (questions on standard input).
    #[command(hide = true)]
    Worker(worker::Args),
}

/// What is said of `--format html` where there is no page.
const NO_PAGE: &str =
    "this command writes no page: --format html is of report, inspect, check, plan, verify, tune, bench and validate";

impl Command {
    /// Whether `--format html` is one of its forms.
    fn has_page(&self) -> bool {
        let looks = matches!(self, Self::Report(_) | Self::Inspect(_) | Self::Check(_) | Self::Plan(_));
        looks || matches!(self, Self::Verify(_) | Self::Bench(_) | Self::Validate(_) | Self::Tune(_))
    }
}

/// How a command ended when nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Yes,
    /// Exit code 1: a real no (does not fit, outside tolerance, expectation not met).
    No,
    /// Exit code 2: the answer is printed, and not a whole one.
    Untold,
}

/// Where the answer goes and how it is written.
#[derive(Debug)]
pub struct Output {
    /// The options of every command.
    pub global: Global,
}

impl Output {
    /// Writes the answer: to the file of `-o`, or to standard output. A broken pipe is success.
    pub fn answer(&self, text: &str) -> anyhow::Result<()> {
        let mut text = text.to_string();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        if let Some(path) = &self.global.output {
            return write(path, &text);
        }
        let terminal = console::Term::stdout();
        if let Some((_, columns)) = terminal.size_checked().filter(|_| terminal.is_term()) {
            text = crate::report::bar::fitted(&text, columns.into(), console::measure_text_width);
        }
        match anstream::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("cannot write to standard output"),
        }
    }

    /// Writes a document as JSON.
    pub fn json(&self, document: &impl serde::Serialize) -> anyhow::Result<()> {
        self.answer(&serde_json::to_string_pretty(document)?)
    }

    /// Writes a document as a page of HTML: what `report` makes of its JSON.
    pub fn page(&self, document: &impl serde::Serialize) -> anyhow::Result<()> {
        self.answer(&crate::report::html::of_document(document)?)
    }

    /// Writes a document as Markdown: what `report` makes of its JSON.
    pub fn markdown(&self, document: &impl serde::Serialize) -> anyhow::Result<()> {
        self.answer(&crate::report::page::markdown::of_document(document)?)
    }

    /// Says something to the person in one line on standard error, strangers' text made safe; silent with `-q`.
    pub fn say(&self, text: &str) {
        if !self.global.quiet {
            echo(text);
        }
    }

    /// The format asked for.
    pub fn format(&self) -> Format {
        self.global.format()
    }

    /// Whether more is to be said.
    pub fn is_verbose(&self) -> bool {
        self.global.verbose > 0
    }
}

/// Writes a file whole or not at all, and never over a model.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut magic = [0; 4];
    let is_model =
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF";
    anyhow::ensure!(!is_model, "-o `{}` is a GGUF file, which an answer must not replace", path.display());
    let failed = || format!("cannot write `{}`", path.display());
    if path.exists() && !path.is_file() {
        return std::fs::write(path, text).with_context(failed);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = usual_permissions(&mut tempfile::Builder::new()).tempfile_in(folder);
    let mut file = file.with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.persist(path).map_err(|error| error.error).with_context(failed)?;
    Ok(())
}

/// Shows a line on standard error, strangers' text made safe.
fn echo(line: &str) {
    let _ = writeln!(anstream::stderr(), "{}", crate::escape::terminal(line));
}

/// Runs the command that was typed.
pub fn run(command: Command, output: &Output) -> anyhow::Result<Outcome> {
    anyhow::ensure!(output.format() != Format::Html || command.has_page(), NO_PAGE);
    match command {
        Command::Devices(args) => devices::run(&args, output),
        Command::Completions(args) => completions::run(&args, output),
        Command::Man(args) => man::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Plan(args) => plan::run(&args, output),
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

/// Prints an error and what caused it, strangers' text escaped, then a hint where one is known.
pub fn print_error(error: &anyhow::Error) {
    let chain: Vec<String> =
        error.chain().map(|cause| crate::escape::terminal(&cause.to_string()).into_owned()).collect();
    print_lines(&chain.join(": "), hint(error).as_deref());
}

/// Prints what is wrong with a command line, and what to try.
pub fn print_refusal(refusal: &Refusal) {
    print_lines(&crate::escape::terminal(&refusal.message), Some(&refusal.hint));
}

fn print_lines(message: &str, hint: Option<&str>) {
    let red = AnsiColor::Red.on_default().bold();
    let cyan = AnsiColor::Cyan.on_default();
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {message}");
    if let Some(hint) = hint {
        let _ = writeln!(anstream::stderr(), "{cyan}hint:{cyan:#} {}", crate::escape::terminal(hint));
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

/// What to try after an error, where the error knows.
fn hint(error: &anyhow::Error) -> Option<String> {
    let of_server =
        || error.chain().find_map(|cause| Some(cause.downcast_ref::<crate::runtime::server::Error>()?.hint()));
    let of_runtime = || error.chain().find_map(|cause| cause.downcast_ref::<crate::runtime::Error>()?.hint());
    let of_endpoint = || {
        let hint = error.chain().find_map(|cause| cause.downcast_ref::<crate::runtime::endpoint::Error>()?.hint());
        hint.map(str::to_string)
    };
    let of_gguf = || error.chain().find_map(|cause| cause.downcast_ref::<crate::gguf::Error>()?.hint());
    let of_source = || error.chain().find_map(|cause| cause.downcast_ref::<crate::gguf::source::Error>()?.hint());
    let of_model = || error.chain().find_map(|cause| Some(cause.downcast_ref::<crate::model::Error>()?.hint()));
    let of_quantize =
        || error.chain().find_map(|cause| Some(cause.downcast_ref::<crate::quantize::Error>()?.hint().to_string()));
    let of_name = || error.chain().find_map(|cause| cause.downcast_ref::<crate::suggest::Unknown>()?.hint());
    let of_synth = || error.chain().find_map(|cause| cause.downcast_ref::<crate::synth::spec::Error>()?.hint());
    let of_words = || error.chain().find_map(|cause| Some(cause.downcast_ref::<Refusal>()?.hint.clone()));
    let of_run = || error.chain().find_map(|cause| cause.downcast_ref::<crate::run::Error>()?.hint());
    let of_length = || error.chain().find_map(|cause| Some(cause.downcast_ref::<launch::TooLong>()?.hint()));
    let of_suite =
        || error.chain().find_map(|cause| cause.downcast_ref::<crate::suite::failure::NothingMeasured>()?.hint());
    inspect::hint(error)
        .or_else(of_words)
        .or_else(of_name)
        .or_else(of_synth)
        .or_else(of_run)
        .or_else(|| check::hint(error))
        .or_else(|| report::hint(error))
        .or_else(of_runtime)
        .or_else(of_server)
        .or_else(of_endpoint)
        .or_else(of_suite)
        .or_else(of_length)
        .or_else(of_gguf)
        .or_else(of_source)
        .or_else(of_model)
        .or_else(of_quantize)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_flag_is_defined_twice() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn a_refused_page_names_every_command_that_has_one() {
        use clap::Parser as _;
        for line in
            ["tune m.gguf", "plan m.gguf", "verify m.gguf", "bench m.gguf", "validate", "check -- x", "report x"]
        {
            let cli = super::Cli::parse_from(["moeplan"].into_iter().chain(line.split(' ')));
            let name = line.split(' ').next().unwrap();
            assert!(cli.command.has_page() && super::NO_PAGE.contains(name), "{line}");
        }
        let cli = super::Cli::parse_from(["moeplan", "doctor"]);
        assert!(!cli.command.has_page());
    }
}
