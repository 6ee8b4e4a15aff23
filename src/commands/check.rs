//! `check`: what a llama.cpp command line would do, without running it. [I/O]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::machine::MachineArgs;
use super::what_if::{self, WhatIfArgs};
use super::{Build, Outcome, Output, model_arg};
use crate::ask;
use crate::ask::check::{Asked, AtOnce, CheckRow, Checks, Models, hugging_face, load, read_projector};
use crate::checkup::{Checkup, Options, Verdict};
use crate::cli::Format;
use crate::cli::help::OWN;
use crate::gguf::{self, Gguf};
use crate::inspection::Warning;
use crate::memory;
use crate::model::Model;
use crate::number::tokens;
use crate::plan::{Checked, Turn};
use crate::run::build::{REFERENCE, number};
use crate::run::held::Held;
use crate::run::sources::{self, Kind};
use crate::run::{
    Dialect, ModelSource, Note, OFFLOAD_MIN_BATCH, ParsedCommand, Program, RunConfig, Target, parse, visible,
};
use crate::runtime::projection;
use crate::runtime::server::config_files;
use crate::speed::Acceptance;
use crate::suggest::Refusal;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan check --vram 12G --ram 64G -- llama-server -m model.gguf -ngl 99 -ncmoe 12 -c 16384
  moeplan check --device Vulkan0=16G -- llama-cli -m model.gguf -ngl 20
  moeplan check --vram 24G,12G --tensors -- llama-bench -m model.gguf -ot 'exps=CPU'
  moeplan check --vram 24G -- docker run --gpus all -v /models:/models IMAGE -m /models/model.gguf
  moeplan check --vram 24G models.ini
Every warning: docs/lints.md.")]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// List every tensor: type, bytes, buffer, rule.
    #[arg(long, help_heading = OWN)]
    tensors: bool,
    /// Answer whether the launch fits without this part, if moeplan cannot count it.
    #[arg(long, help_heading = OWN, value_name = "PART", value_parser = crate::memory::PARTS)]
    ignore: Vec<String>,
    /// The llama.cpp build to check against: 11434, b11549, v0.6.0 … [default: the build of the installed llama-server, else 12032]
    #[arg(long, help_heading = OWN, value_name = "N", value_parser = number)]
    build: Option<u32>,
    /// The program whose flags the command has: llama.cpp, or its fork ik_llama.cpp.
    #[arg(long, help_heading = OWN, value_enum, default_value_t = Dialect::LlamaCpp)]
    dialect: Dialect,
    /// Prompt tokens of the turn whose speed is predicted.
    #[arg(long, help_heading = OWN, default_value_t = Turn::default().prompt, value_name = "N", value_parser = tokens)]
    prompt: u32,
    /// Tokens generated in that turn.
    #[arg(long, help_heading = OWN, default_value_t = Turn::default().generate, value_name = "N", value_parser = tokens)]
    generate: u32,
    /// Tokens in the context before that turn.
    #[arg(long, help_heading = OWN, default_value_t = Turn::default().depth, value_name = "N", value_parser = tokens)]
    depth: u32,
    /// The share of drafted tokens that the model accepts, 0 to 1. Without it, speculation is not counted.
    #[arg(long, help_heading = OWN, value_name = "P")]
    acceptance: Option<Acceptance>,
    /// Also run llama-fit-params (PROGRAM, or the one beside llama-server), and show both answers.
    #[arg(long, help_heading = OWN, value_name = "PROGRAM", num_args = 0..=1, require_equals = true)]
    #[expect(clippy::option_option, reason = "not given, given alone, given a program")]
    ask: Option<Option<PathBuf>>,
    /// What the model of the command would be otherwise.
    #[command(flatten)]
    what_if: WhatIfArgs,
    /// The command line of a llama.cpp program, after `--`; or a FILE that has one; or `-`.
    ///
    /// The command may begin with a shell prompt, sudo, numactl, `docker run` and the like. FILE is a models.ini, a YAML file of
    /// llama-swap or Compose, an env file, a systemd unit or a script; `-` reads such a file from standard input.
    #[arg(help_heading = OWN, required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What a text of commands may have at most.
const MOST_TEXT: u64 = 1 << 20;

impl Args {
    fn turn(&self) -> Turn {
        let Self { prompt, generate, depth, acceptance, .. } = *self;
        Turn { prompt, generate, depth, acceptance }
    }

    /// What is asked of a command's text ([`of_text`]).
    pub fn of(machine: MachineArgs, turn: Turn, build: Option<u32>, tensors: bool) -> Self {
        let Turn { prompt, generate, depth, acceptance } = turn;
        Self {
            machine,
            tensors,
            build,
            prompt,
            generate,
            depth,
            acceptance,
            ignore: Vec::new(),
            dialect: Dialect::LlamaCpp,
            ask: None,
            what_if: WhatIfArgs::default(),
            command: Vec::new(),
        }
    }
}

/// What the one command of a text would do. No file but the model's is read.
pub fn of_text(args: &Args, text: &str, output: &Output) -> anyhow::Result<Checked> {
    let mut held = sources::of_text(Kind::of("", text), text, &|_| None)?;
    let is_said = says_build(args, &mut held);
    let [only] = held.as_slice() else {
        return Err(Refusal::new(format!("{} commands", held.len()), "ask about one at a time").into());
    };
    asking(args, is_said, output, |asked| ask::check::check(only, asked, &Here { args, folder: Path::new(""), output }))
}

/// Runs `check`: exit 1 when the command does not fit, or llama.cpp would refuse it; 2 when that cannot be told.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let (folder, mut held) = commands(&args.command)?;
    let is_said = says_build(args, &mut held);
    asking(args, is_said, output, |asked| answer(args, asked, &folder, &held, output))
}

/// Whether commands say their builds themselves, by their images; `--build` is another for all.
fn says_build(args: &Args, held: &mut [Held]) -> bool {
    if args.build.is_some() {
        for held in held.iter_mut() {
            held.build = None;
        }
    }
    held.iter().all(|held| held.build.is_some())
}

/// Finds what is asked of every command, once for all of them.
fn asking<T>(
    args: &Args,
    is_said: bool,
    output: &Output,
    answer: impl FnOnce(Asked<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (machine, environment) = (args.machine.machine()?, environment(args.machine.describes_devices()));
    // Without a word about the machine it is this computer, which needs no saying.
    if args.machine.describes_devices() {
        args.machine.notes(&machine).iter().for_each(|note| output.say(note));
    }
    // ik_llama.cpp has no builds of its own here.
    let build = match args.dialect {
        Dialect::LlamaCpp => Build::of(args.build),
        Dialect::Ik => Build::of(Some(args.build.unwrap_or(REFERENCE))),
    };
    // A plan is of the file as it is.
    let words = args.what_if.recipes().is_empty().then(|| {
        let build = args.build.map(|build| ["--build".to_string(), build.to_string()]);
        args.machine.words().into_iter().chain(build.into_iter().flatten()).collect::<Vec<_>>()
    });
    let answered = answer(Asked {
        plan: words.as_deref(),
        machine: &machine,
        environment: &environment,
        target: Target { dialect: args.dialect, ..build.target() },
        options: Options {
            margin: args.machine.margin.unwrap_or_default(),
            tensors: args.tensors || output.format() == Format::Html,
            ignored: &args.ignore,
            is_plan: false,
            turn: Some(args.turn()),
        },
    })?;
    if machine.devices.is_empty() && !args.machine.describes_devices() {
        output.say("note: no GPU was found here; --gpu NAME or --vram 24G describes one");
    }
    if !is_said {
        build.say(output);
    }
    Ok(answered)
}

fn answer(args: &Args, asked: Asked<'_>, folder: &Path, held: &[Held], output: &Output) -> anyhow::Result<Outcome> {
    let here = Here { args, folder, output };
    if let [only] = held {
        let mut checked = ask::check::check(only, asked, &here)?;
        if let Some(program) = &args.ask {
            let mut command = parse::launch(only, asked.environment, asked.target)?;
            let (model, _) = here.model(&mut command)?;
            let Some(ModelSource::Path(path)) = &command.model else {
                let hint = "give the command's model as `-m FILE`";
                return Err(Refusal::new("`--ask` needs a model on this computer", hint).into());
            };
            let run = RunConfig { program: Program::FitParams, fit: false, ..command.run };
            let predict = |run: &RunConfig| Ok(memory::forecast(&model, asked.machine, run)?.target);
            checked.projected = Some(projection::of(program.as_deref(), path, &run, predict)?);
        }
        return told(vec![CheckRow::Checked(Box::new(checked))], output);
    }
    if args.ask.is_some() {
        return Err(Refusal::new("`--ask` takes one command", "check a section of the file alone").into());
    }
    // A table of many commands has no room for plans, and each would take longer than its check.
    let asked = Asked { plan: None, ..asked };
    let checks = held.iter().map(|held| row(held, asked, &here)).collect();
    told_all(&Checks::of(checks, held, asked.machine, asked.options.margin), output)
}

/// A command's check, or why there is none.
pub(super) fn row<M: Models<Error = anyhow::Error>>(held: &Held, asked: Asked<'_>, models: &M) -> CheckRow {
    match ask::check::check(held, asked, models) {
        Ok(checked) => CheckRow::Checked(Box::new(checked)),
        Err(error) => {
            CheckRow::Failed { name: held.name.clone(), command: sources::shown(held), error: format!("{error:#}") }
        }
    }
}

/// Shows checks of commands that do not run at once.
pub(super) fn told(checks: Vec<CheckRow>, output: &Output) -> anyhow::Result<Outcome> {
    told_all(&Checks { schema: "moeplan/checks/1".into(), checks, at_once: None }, output)
}

/// Shows checks, one alone as a page of its own; the worst of them is the outcome.
fn told_all(all: &Checks, output: &Output) -> anyhow::Result<Outcome> {
    let mut outcomes: Vec<Outcome> =
        all.checks.iter().map(|row| row.checked().map_or(Outcome::Untold, |row| outcome(&row.checkup))).collect();
    let is_sure = |at_once: &AtOnce| at_once.assumed_most.is_none() && !at_once.shortfall.is_empty();
    if all.at_once.as_ref().is_some_and(is_sure) {
        outcomes.push(Outcome::No);
    }
    match all.checks.as_slice() {
        [CheckRow::Checked(only)] => output.show(only.as_ref())?,
        _ => output.show(all)?,
    }
    Ok([Outcome::No, Outcome::Untold].into_iter().find(|worse| outcomes.contains(worse)).unwrap_or(Outcome::Yes))
}

/// Yes to a launch that fits and starts.
pub(super) fn outcome(checkup: &Checkup) -> Outcome {
    match checkup.fits {
        _ if checkup.verdict == Some(Verdict::AfterFit) => Outcome::Yes,
        Some(true) if !checkup.is_refused() => Outcome::Yes,
        None if !checkup.is_refused() => Outcome::Untold,
        _ => Outcome::No,
    }
}

/// The commands that words stand for: those of standard input or of a file, with its folder, or the words' own.
fn commands(words: &[String]) -> anyhow::Result<(PathBuf, Vec<Held>)> {
    let read = |path: &Path| -> anyhow::Result<String> {
        let mut text = String::new();
        let is_input = path == Path::new("-");
        let source: Box<dyn std::io::Read> =
            if is_input { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(path)?) };
        let bytes = source.take(MOST_TEXT + 1).read_to_string(&mut text)?;
        anyhow::ensure!(
            bytes as u64 <= MOST_TEXT,
            "it is larger than {} KiB, too large for a file of commands",
            MOST_TEXT >> 10
        );
        Ok(text)
    };
    let within = |folder: &Path, name: &str| read(&folder.join(name)).or_else(|_| read(Path::new(name))).ok();
    if let [name] = words {
        let path = Path::new(name);
        let is_text =
            path.is_file() && Program::of_path(name).is_none() && path.extension().is_none_or(|ext| ext != "gguf");
        if name == "-" || is_text {
            let text = read(path).with_context(|| format!("cannot read the commands of `{name}`"))?;
            let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let held = sources::of_text(Kind::of(name, &text), &text, &|file| within(&folder, file))
                .with_context(|| format!("`{name}`"))?;
            return Ok((folder, held));
        }
    }
    let folder = PathBuf::new();
    let held = sources::of_command(words, &|file| within(&folder, file))?;
    Ok((folder, held))
}

/// Where the models of a command are: here, beside the file that holds it, or where an address says.
struct Here<'a> {
    args: &'a Args,
    folder: &'a Path,
    output: &'a Output,
}

impl Models for Here<'_> {
    type Error = anyhow::Error;

    fn note(&self, command: &mut ParsedCommand) {
        note_config_files(command);
    }

    /// The model as what-if flags would make it.
    fn model(&self, command: &mut ParsedCommand) -> anyhow::Result<(Model, String)> {
        let Self { args, folder, output } = *self;
        let (name, gguf) = match &command.model {
            Some(ModelSource::Path(path)) => (path.clone(), open_file(path, folder, output)?),
            Some(ModelSource::HuggingFace { repo, file }) => {
                let name = PathBuf::from(hugging_face(repo, file.as_deref()));
                let gguf = model_arg::open(&name, output)?;
                (name, gguf)
            }
            Some(ModelSource::Url(url)) => (url.into(), model_arg::open(url.as_ref(), output)?),
            Some(ModelSource::Docker(repo)) => bail!("`-dr {repo}`: only local files are read; give `-m FILE`"),
            None => {
                let is_folder = command.beside.iter().any(|word| word.split('=').next() == Some("--models-dir"));
                return Err(if is_folder {
                    let hint = "check each file of the folder: replace `--models-dir DIR` by `-m FILE`; `--models-preset FILE` checks all models of a preset";
                    Refusal::new("with `--models-dir` llama-server is a router, which picks a model for each request", hint)
                } else {
                    let hint = "add `-m FILE`; without a model llama-server is a router, and `--models-preset FILE` checks all of its models";
                    Refusal::new("the command names no model", hint)
                }
                .into());
            }
        };
        let first = what_if::first_file(&name, &gguf);
        let name = name.display().to_string();
        let model = load(gguf, &command.run)?;
        match args.what_if.recipes() {
            [] => Ok((model, name)),
            [recipe] => {
                let made = args.what_if.variant(&model, &name, &first, recipe)?;
                let warnings = what_if::warnings(&made.what_if, &made.path).into_iter();
                let note =
                    |warning: Warning| Note { code: warning.code, message: warning.message, hint: Some(warning.hint) };
                command.notes.extend(warnings.map(note));
                Ok((made.model, name))
            }
            _ => bail!("`check` takes one recipe: `plan --as` compares several"),
        }
    }

    fn companion(&self, path: &Path) -> anyhow::Result<Gguf> {
        open_file(path, self.folder, self.output)
    }

    /// The projector that `-hf` fetches; of one that cannot be read, the command's note stays.
    fn add_beside(&self, model: &mut Model, command: &mut ParsedCommand, name: &str) {
        let is_hub = matches!(command.model, Some(ModelSource::HuggingFace { .. }));
        if !is_hub || command.notes.iter().all(|note| note.code != "projector") {
            return;
        }
        if let Ok(projector) = projector_of_hub(name.as_ref(), &command.run, self.output) {
            model.projector = projector.map(Into::into);
            command.notes.retain(|note| note.code != "projector");
        }
    }
}

/// The projector that `-hf` loads beside a MODEL of the hub (`common/arg.cpp` `common_models_handler_init`, b11434); `None` where
/// the repository has none.
pub fn projector_of_hub(model: &Path, run: &RunConfig, output: &Output) -> anyhow::Result<Option<Model>> {
    model_arg::projector_beside(model, output)?.map(|gguf| Ok(read_projector(gguf, run)?)).transpose()
}

/// A file of a command as this computer has it: beside the file that holds the command, or on the drive of Windows that is mounted
/// here. What a shell would have put in is told of where it was not.
fn open_file(path: &Path, folder: &Path, output: &Output) -> anyhow::Result<Gguf> {
    let shown = path.display().to_string();
    let drive = shown.split_once(":\\").filter(|(letter, _)| letter.len() == 1 && !cfg!(windows));
    let mounted = drive
        .map(|(letter, rest)| PathBuf::from(format!("/mnt/{}/{}", letter.to_lowercase(), rest.replace('\\', "/"))));
    let found =
        [Some(path.to_path_buf()), Some(folder.join(path)), mounted].into_iter().flatten().find(|path| path.exists());
    if let Some(found) = found {
        return Ok(gguf::open(&found)?);
    }
    let refuse = |what: &str, hint: String| Err(Refusal::new(format!("`{shown}`: {what}"), hint).into());
    if shown.starts_with("~/") || shown.starts_with('$') {
        let home = std::env::var("HOME").unwrap_or_default();
        let meant = shown.replacen('~', &home, 1).replacen("${HOME}", &home, 1).replacen("$HOME", &home, 1);
        if meant.starts_with('$') {
            let hint =
                "write the path itself, or have the file here that sets the variable (`EnvironmentFile=`, `.env`)";
            return refuse("the variable is not set in what can be read here", hint.to_string());
        }
        return refuse("only a shell expands that, and llama.cpp receives it unchanged", format!("write `{meant}`"));
    }
    if drive.is_some() || shown.starts_with("\\\\") {
        let name = shown.rsplit('\\').next().unwrap_or_default();
        return refuse(
            "a Windows path, and this computer has no such file",
            format!("give the file's path here: `-m /PATH/TO/{name}`"),
        );
    }
    model_arg::open(path, output)
}

/// Notes the configuration files that llama.cpp would read first (`common/arg.cpp` `common_params_apply_system_config`, b11434).
fn note_config_files(command: &mut ParsedCommand) {
    if command.run.program == Program::Bench || command.run.target.dialect == Dialect::Ik {
        return;
    }
    for file in config_files() {
        command.notes.push(Note {
            code: "config-file-read".into(),
            message: format!(
                "llama.cpp reads `{}` before the command line; it is not counted here",
                file.path.display()
            ),
            hint: Some("repeat its memory flags in the command; its overrides come first and win".into()),
        });
    }
}

/// `LLAMA_ARG_*` of this process, [`OFFLOAD_MIN_BATCH`], and the variables that select cards of a machine that was described: what is found here has
/// been selected already. An empty list hides the cards of this computer, not those that were described.
pub fn environment(selects_cards: bool) -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        let (name, value) = (name.into_string().ok()?, value.to_string_lossy().into_owned());
        let is_selection = selects_cards && visible::selects(&name) && !matches!(value.as_str(), "" | "-1");
        (name.starts_with("LLAMA_ARG_") || name == OFFLOAD_MIN_BATCH || is_selection).then_some((name, value))
    };
    std::env::vars_os().filter_map(text).collect()
}
