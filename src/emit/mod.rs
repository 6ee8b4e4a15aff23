//! A plan in the form that somebody's tools read: arguments, a script, an env file, a preset, a llama-swap model, a Compose file.
//!
//! Every form is read back by code that reads as its program would, and must give the plan's launch and placement, or
//! nothing is emitted.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub(crate) mod embedded;
mod forms;
pub use forms::left_out;

use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Machine};
use crate::memory;
use crate::model::Model;
use crate::placement;
use crate::plan::Plan;
use crate::run::args::settings;
use crate::run::command::server_command;
use crate::run::flags::{self, Flag};
use crate::run::held::{self, Held};
use crate::run::sources::{self, Kind};
use crate::run::{
    Dialect, LoadMode, ModelSource, Override, ParsedCommand, Program, RunConfig, Target, args, groups, spelling,
};
use crate::speed::Turn;

/// The form to write a plan in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Form {
    /// The arguments on one line, for `llama-server -m MODEL $(…)`.
    #[default]
    Args,
    /// A shell script.
    Shell,
    /// A PowerShell script.
    #[cfg_attr(feature = "cli", value(name = "powershell"))]
    PowerShell,
    /// LLAMA_ARG_* variables, for a shell, systemd or Compose.
    Env,
    /// A section of llama.cpp's models.ini (`llama-server --models-preset FILE`).
    Ini,
    /// A model entry for llama-swap's configuration.
    LlamaSwap,
    /// A Compose file with llama.cpp's image.
    Compose,
}

/// The program that the form is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Runner {
    /// llama-server.
    #[default]
    LlamaServer,
    /// llama-bench, with the turn's prompt, generation and depth.
    LlamaBench,
    /// A program that links llama.cpp: the fields of its parameter structures, as JSON (with --emit args).
    Embedded,
}

/// What to emit; by default the arguments of llama-server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    pub form: Form,
    pub runner: Runner,
    pub turn: Turn,
}

/// What was asked for, ready to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    pub text: String,
    /// What the form or the program cannot say, for a person.
    pub notes: Vec<String>,
}

/// Why a plan cannot be written so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--emit {form} is not for {whom}: {instead}")]
    NoSuchForm { form: &'static str, whom: &'static str, instead: &'static str },
    #[error("`{word}` {problem}, which {form} cannot hold; {instead}")]
    Word { word: String, problem: &'static str, form: &'static str, instead: &'static str },
    #[error("{program} {lacks}; {instead}")]
    Lacks { program: &'static str, lacks: String, instead: &'static str },
    #[error("internal error: the {form} of this plan does not read back ({problem}); please report this model")]
    ReadBack { form: &'static str, problem: String },
    #[error("internal error: the {form} of this plan would launch something else ({what}); please report this model")]
    Replay { form: &'static str, what: String },
}

impl Form {
    /// As `--emit` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Args => "args",
            Self::Shell => "shell",
            Self::PowerShell => "powershell",
            Self::Env => "env",
            Self::Ini => "ini",
            Self::LlamaSwap => "llama-swap",
            Self::Compose => "compose",
        }
    }
}

/// A plan's launch as it is to be written.
struct Launch {
    head: Vec<String>,
    args: Vec<String>,
    expected: RunConfig,
    notes: Vec<String>,
}

impl Launch {
    fn words(&self) -> Vec<String> {
        self.head.iter().chain(&self.args).cloned().collect()
    }
}

/// The plan in the form wished for.
pub fn render(model: &Model, plan: &Plan, wish: Wish) -> Result<Emitted, Error> {
    let mut emitted = emit(model, &plan.machine, &command_of(plan)?.1, wish)?;
    if wish.form == Form::PowerShell {
        let left = |device: &Device| Some(format!("{}: {}", device.name, device.system_note()?));
        emitted.notes.extend(plan.machine.devices.iter().filter_map(left));
    }
    Ok(emitted)
}

/// A plan's command, and what the llama-server that it is for makes of it.
fn command_of(plan: &Plan) -> Result<(Held, ParsedCommand), Error> {
    let problem = |problem: String| Error::ReadBack { form: "command", problem };
    let words = shlex::split(&plan.command).ok_or_else(|| problem("it cannot be split into words".to_string()))?;
    let held = held::of_words(&words, &|_| None).map_err(|error| problem(error.to_string()))?;
    let command = forms::read(&held, plan.check.run.target, "command")?;
    Ok((held, command))
}

/// Plans that stay loaded together, in one file for llama-swap or for llama-server's router, with the name of each in it.
pub fn together(plans: &[(&Model, &Plan)], form: Form) -> Result<(String, Vec<String>), Error> {
    let wish = Wish { form, ..Wish::default() };
    if !matches!(form, Form::Ini | Form::LlamaSwap) {
        let instead = "use --emit llama-swap or --emit ini";
        return Err(Error::NoSuchForm { form: form.name(), whom: "several models", instead });
    }
    let mut named: Vec<(String, Held)> = Vec::new();
    for (_, plan) in plans {
        let (held, command) = command_of(plan)?;
        reads(form, Runner::LlamaServer, command.run.target.dialect)?;
        if let Some(variable) = held.environment.keys().next().filter(|_| form == Form::Ini) {
            let lacks = format!("has no place for {variable}, which one of the models needs");
            return Err(Error::Lacks { program: "a preset", lacks, instead: "use --emit llama-swap" });
        }
        let name = command.model.as_ref().map(forms::name_of).unwrap_or_default();
        forms::printable(&held.words)?;
        // Two files of one name are told apart by a number.
        let is_free = |name: &String| named.iter().all(|(known, _)| known != name);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let name = std::iter::once(name.clone()).chain(numbered).find(is_free).unwrap_or(name);
        named.push((name, held));
    }
    let (kind, text) = if form == Form::LlamaSwap {
        (Kind::LlamaSwap, forms::swap_models(&named)?)
    } else {
        let section =
            |(name, held): &(String, Held)| Ok(forms::preset(name, &held.words)? + "load-on-startup = true\n");
        let sections = named.iter().map(section).collect::<Result<Vec<_>, Error>>()?;
        (Kind::Preset, sections.join("\n"))
    };
    let problem = |problem: String| Error::ReadBack { form: form.name(), problem };
    let read = sources::of_text(kind, &text, &|_| None).map_err(|error| problem(error.to_string()))?;
    if read.len() != plans.len() {
        return Err(problem(format!("{} models of {}", read.len(), plans.len())));
    }
    for ((model, plan), (name, _)) in plans.iter().zip(&named) {
        let held = read.iter().find(|held| held.name.as_ref() == Some(name));
        let held = held.ok_or_else(|| problem(format!("no model {name}")))?;
        let (_, expected) = command_of(plan)?;
        let found = forms::read(held, expected.run.target, form.name())?;
        if found.model != expected.model {
            return Err(Error::Replay { form: form.name(), what: "its model".to_string() });
        }
        same_run(wish, &expected.run, &found.run)?;
        same_placement(model, &plan.machine, wish, [&expected.run, &found.run])?;
    }
    Ok((text, named.into_iter().map(|(name, _)| name).collect()))
}

/// A launch, whose model is named in `command`, in the form wished for.
pub fn emit(model: &Model, machine: &Machine, command: &ParsedCommand, wish: Wish) -> Result<Emitted, Error> {
    let source = command
        .model
        .as_ref()
        .ok_or(Error::ReadBack { form: wish.form.name(), problem: "it names no model".to_string() })?;
    if wish.runner == Runner::Embedded {
        return embed(model, machine, &command.run, wish);
    }
    let launch = launch(command, source, wish)?;
    forms::printable(&launch.words())?;
    let needs = of_card(model, machine, &command.run).filter(|_| matches!(wish.form, Form::Shell | Form::PowerShell));
    let (text, notes, read) = written(&launch, source, wish, needs, machine)?;
    let replay = |what: String| Err(Error::Replay { form: wish.form.name(), what });
    // The reader found nothing odd, and what was expected.
    // Whether a repository has a projector is not known here.
    if let Some(note) = read.notes.iter().find(|note| note.code != "projector") {
        return replay(note.message.clone());
    }
    same_run(wish, &launch.expected, &read.run)?;
    // `--emit args` leaves the model to the caller; its head is put back before reading. A volume may begin with `./`.
    let plain = |source: &ModelSource| match source {
        ModelSource::Path(path) => ModelSource::Path(path.strip_prefix(".").unwrap_or(path).into()),
        other => other.clone(),
    };
    if read.model.as_ref().map(plain) != Some(plain(source)) {
        return replay("its model".to_string());
    }
    same_placement(model, machine, wish, [&command.run, &read.run])?;
    let relative = matches!(source, ModelSource::Path(path) if path.is_relative())
        && matches!(wish.form, Form::Env | Form::Ini | Form::LlamaSwap | Form::Compose);
    let where_from = relative.then(|| {
        let begins = if wish.form == Form::Compose {
            "begins in the file's folder"
        } else {
            "is resolved where the server is started"
        };
        format!("the model's path is relative: it {begins}; give moeplan an absolute path")
    });
    Ok(Emitted { text, notes: launch.notes.into_iter().chain(notes).chain(where_from).collect() })
}

/// The parameters of a launch for a program that links llama.cpp.
fn embed(model: &Model, machine: &Machine, run: &RunConfig, wish: Wish) -> Result<Emitted, Error> {
    let refuse = |whom, instead| Err(Error::NoSuchForm { form: wish.form.name(), whom, instead });
    match (wish.form, run.target.dialect) {
        (Form::Args, Dialect::LlamaCpp) => {}
        (Form::Args, Dialect::Ik) => return refuse("an embedded ik_llama.cpp", "plan for llama.cpp"),
        _ => {
            return refuse("an embedded llama.cpp", "it has no command line: --emit args gives its parameters as JSON");
        }
    }
    let text = embedded::parameters(run)?;
    let read = embedded::read(&text).map_err(|problem| Error::ReadBack { form: wish.form.name(), problem })?;
    same_run(wish, &embedded::expected(run), &read)?;
    same_placement(model, machine, wish, [run, &read])?;
    Ok(Emitted { text, notes: left_to_caller(run).into_iter().collect() })
}

/// What a form without variables leaves to whoever starts llama.cpp.
fn left_to_caller(run: &RunConfig) -> Option<String> {
    let variables: Vec<String> = run.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
    (!variables.is_empty())
        .then(|| format!("start it with {} in its environment: the plan counts on it", variables.join(" ")))
}

/// Refuses the forms that a program is not known to read.
fn reads(form: Form, runner: Runner, dialect: Dialect) -> Result<(), Error> {
    let refuse = |whom, instead| Err(Error::NoSuchForm { form: form.name(), whom, instead });
    match (runner, dialect, form) {
        (Runner::LlamaBench, Dialect::Ik, _) => {
            refuse("ik_llama.cpp's llama-bench", "moeplan does not know its syntax")
        }
        (Runner::LlamaBench, _, Form::Env | Form::Ini | Form::LlamaSwap | Form::Compose) => {
            refuse("llama-bench", "it reads arguments only: use --emit args, shell or powershell")
        }
        (_, Dialect::Ik, Form::Env | Form::Ini | Form::Compose) => {
            refuse("ik_llama.cpp", "it is not known to read it: use args, shell, powershell or llama-swap")
        }
        _ => Ok(()),
    }
}

/// The launch in the words of the program.
fn launch(command: &ParsedCommand, source: &ModelSource, wish: Wish) -> Result<Launch, Error> {
    let dialect = command.run.target.dialect;
    reads(wish.form, wish.runner, dialect)?;
    if wish.runner == Runner::LlamaBench {
        return bench_launch(&command.run, source, wish.turn);
    }
    let notes = match dialect {
        Dialect::LlamaCpp => Vec::new(),
        Dialect::Ik => vec![
            "ik_llama.cpp: its flags are taken from its documentation; compute is llama.cpp's figure, not the fork's"
                .to_string(),
        ],
    };
    Ok(Launch {
        head: server_command(source, &RunConfig::default(), &[]),
        args: args::args_beside(&command.run, &command.beside),
        expected: command.run.clone(),
        notes,
    })
}

/// What a launch takes of the only card of a machine, where NVIDIA's driver can say what is free of it. Of several, the driver and
/// llama.cpp have other numbers.
fn of_card(model: &Model, machine: &Machine, run: &RunConfig) -> Option<Bytes> {
    let [card] = machine.devices.as_slice() else { return None };
    let forecast = memory::forecast(model, machine, run).ok().filter(|_| card.backend == Backend::Cuda)?;
    Some(forecast.total(&card.name))
}

/// The text, what it does not say, and the command that its reader makes of it. `needs`: of a card of `machine`.
fn written(
    launch: &Launch,
    source: &ModelSource,
    wish: Wish,
    needs: Option<Bytes>,
    machine: &Machine,
) -> Result<(String, Vec<String>, ParsedCommand), Error> {
    let (form, args) = (wish.form.name(), launch.words());
    let name = forms::name_of(source);
    let mut notes: Vec<String> = left_out(wish.form, &args).into_iter().collect();
    let environment = launch.expected.environment();
    let text = match wish.form {
        Form::Args => {
            notes.extend(left_to_caller(&launch.expected));
            forms::on_one_line(&launch.args)?
        }
        Form::Shell => forms::script(&environment, &args, needs),
        Form::PowerShell => forms::powershell(&environment, &args, needs)?,
        Form::Env => {
            let (text, left) = forms::env_file(&environment, &args)?;
            notes.extend(left);
            text
        }
        Form::Ini => {
            notes.extend(left_to_caller(&launch.expected));
            forms::preset(&name, &args)?
        }
        Form::LlamaSwap => {
            notes.extend(forms::only_posix(&args));
            forms::swap_models(&[(name, Held { words: args, environment: environment.clone(), ..Held::default() })])?
        }
        Form::Compose => {
            let run = &launch.expected;
            let own = match source {
                ModelSource::Path(path) => Some(path.display().to_string()),
                _ => None,
            };
            let beside = [&run.mmproj, &run.draft_model].into_iter().flatten().cloned();
            let files: Vec<String> = own.into_iter().chain(beside).chain(read_files(&args)).collect();
            let of_devices = machine.devices.iter().map(|device| device.backend);
            let backend = of_devices.into_iter().find(|backend| *backend != Backend::Rpc).unwrap_or(Backend::Cpu);
            forms::compose_file(&name, (&environment, &args), &files, backend, !matches!(source, ModelSource::Path(_)))?
        }
    };
    let held = match wish.form {
        Form::Args => {
            let words = launch.head.iter().cloned().chain(text.split_whitespace().map(str::to_string)).collect();
            Ok(Held { environment, words, ..Held::default() })
        }
        Form::Shell => forms::of_script(&text),
        Form::PowerShell => forms::of_powershell(&text),
        Form::Env => forms::only(Kind::Env, &text),
        Form::Ini => forms::only(Kind::Preset, &text).map(|held| Held { environment, ..held }),
        Form::LlamaSwap => forms::only(Kind::LlamaSwap, &text),
        Form::Compose => forms::only(Kind::Compose, &text),
    };
    let held = held.map_err(|problem| Error::ReadBack { form, problem })?;
    Ok((text, notes, forms::read(&held, launch.expected.target, form)?))
}

/// The files that flags name which decide nothing here.
fn read_files(args: &[String]) -> Vec<String> {
    let reads = |group: &&[String]| {
        let flag = group.first().and_then(|word| spelling(word)).map(|(flag, _)| flag);
        let name = flag.filter(|flag| flag.beside).map_or("", Flag::name);
        ["--lora", "--control-vector"].contains(&name) || (name.ends_with("-file") && name != "--log-file")
    };
    groups(args).into_iter().filter(reads).filter_map(|group| group.get(1).cloned()).collect()
}

/// Demands what was expected; which flag an override came from does not count, nor which build it was read for.
fn same_run(wish: Wish, expected: &RunConfig, read: &RunConfig) -> Result<(), Error> {
    let anonymous = |run: &RunConfig| {
        let mut run = RunConfig { target: Target::default(), ..run.clone() };
        run.overrides.iter_mut().for_each(|entry: &mut Override| entry.origin.clear());
        run
    };
    let (expected, read) = (anonymous(expected), anonymous(read));
    if expected == read {
        return Ok(());
    }
    let fields = |run: &RunConfig| serde_json::to_value(run).unwrap_or_default();
    let (expected, read) = (fields(&expected), fields(&read));
    let keys = [&expected, &read].into_iter().filter_map(|run| run.as_object()).flat_map(|run| run.keys());
    let differs = |key: &&String| expected.get(key.as_str()) != read.get(key.as_str());
    let shown =
        |run: &serde_json::Value, key: &str| run.get(key).map_or("its default".to_string(), ToString::to_string);
    let what = keys.into_iter().find(differs).map_or_else(
        || "its launch".to_string(),
        |key| format!("{key} is {} and not {}", shown(&read, key), shown(&expected, key)),
    );
    Err(Error::Replay { form: wish.form.name(), what })
}

/// Demands that every copy of every tensor is in the same buffer, with the same bytes.
fn same_placement(model: &Model, machine: &Machine, wish: Wish, runs: [&RunConfig; 2]) -> Result<(), Error> {
    let replay = |what| Error::Replay { form: wish.form.name(), what };
    let [planned, read] = runs.map(|run| placement::place(model, machine, run).map_err(|e| replay(e.to_string())));
    let (planned, read) = (planned?, read?);
    let moved = planned.first_moved(&read, model);
    moved.map_or(Ok(()), |tensor| Err(replay(format!("{} is placed elsewhere", tensor.name))))
}

/// The launch that measures the plan's placement on the turn.
/// (`tools/llama-bench/llama-bench.cpp`, b11434: a context of prompt + generation + depth tokens, one sequence.)
fn bench_launch(run: &RunConfig, source: &ModelSource, turn: Turn) -> Result<Launch, Error> {
    let lacks = |lacks: &str, instead| Err(Error::Lacks { program: "llama-bench", lacks: lacks.to_string(), instead });
    if matches!(source, ModelSource::Url(_) | ModelSource::Docker(_)) {
        return lacks("takes no address", "download the model and give the file");
    }
    if run.mtp {
        return lacks("loads no NextN blocks", "measure this plan with llama-server");
    }
    let is_locked = matches!(run.load_mode, LoadMode::Mlock | LoadMode::MmapMlock);
    if is_locked && spelling("--load-mode").is_some_and(|(flag, _)| !run.target.has(flag)) {
        return lacks("locks no memory in this build", "leave -lm to the plan");
    }
    let broken = |text: &str| text.contains([';', ',']);
    if run.overrides.iter().any(|entry| broken(&entry.pattern) || broken(&entry.buffer)) {
        return lacks("splits overrides at `,` and `;`", "write the pattern without them");
    }
    let longest = turn.prompt.max(turn.generate).saturating_add(turn.depth).max(1);
    let expected = RunConfig {
        program: Program::Bench,
        n_ctx: longest,
        n_parallel: Some(1),
        kv_unified: Some(false),
        fit: false,
        fit_ctx: RunConfig::default().fit_ctx,
        n_draft: 0,
        n_rs_seq: 0,
        ..flags::without_others(run, Flag::is_in_bench)
    };
    let tests = [("-p", turn.prompt), ("-n", turn.generate), ("-d", turn.depth)];
    let mut args: Vec<String> = tests.iter().flat_map(|(flag, n)| [(*flag).to_string(), n.to_string()]).collect();
    args.extend(settings(&expected).into_iter().flat_map(|(_, words)| words));
    let head = std::iter::once("llama-bench".to_string()).chain(source.words()).collect();
    // What of the plan llama-bench does not measure.
    let threads = run.n_threads_batch.is_some() && run.n_threads_batch != run.n_threads;
    let lost = [
        (run.n_ctx > longest, format!("a context of {longest} tokens, the plan's is {}", run.n_ctx)),
        (run.n_parallel.is_some_and(|slots| slots > 1), "one sequence in place of the plan's slots".to_string()),
        (threads, "the prompt with -t, because it has no -tb".to_string()),
        (run.swa_full, "windows at their own size, because it has no --swa-full".to_string()),
        (run.moe_cache_mib > 0, "no expert cache, because it is not known to have --moe-cache-mib".to_string()),
        (run.n_draft > 0, "no speculation".to_string()),
        (run.has_adapters, "no adapter".to_string()),
        (!run.metadata_overrides.is_empty(), "the file's own keys, because it has no --override-kv".to_string()),
    ];
    let lost = lost.into_iter().filter(|(applies, _)| *applies);
    let notes = lost.map(|(_, what)| format!("llama-bench measures {what}")).collect();
    Ok(Launch { head, args, expected, notes })
}
