//! Whole command lines of llama.cpp's programs, read as the program would read them.
//!
//! Source: `common/arg.cpp` `common_params_parse_ex`, b11434: the environment first, in the order of the flags' definitions,
//! then the words; later words win, overrides accumulate.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::settings::{self, Speculation};
use super::values::Given;
use super::{Error, Program, RunConfig, bench, flags};

/// A command line, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedCommand {
    /// What it says about memory.
    pub run: RunConfig,
    /// The model it names.
    pub model: Option<ModelSource>,
    /// What a person should know: unknown and removed flags, what is not counted.
    pub notes: Vec<Note>,
}

impl ParsedCommand {
    /// Adds a note.
    pub(super) fn note(&mut self, code: &'static str, message: String, hint: Option<String>) {
        self.notes.push(Note { code, message, hint });
    }
}

/// Where the model of a command comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// `-m`.
    Path(PathBuf),
    /// `-hf` and `-hff`.
    HuggingFace {
        /// `owner/name[:quant]`.
        repo: String,
        /// A file of it.
        file: Option<String>,
    },
    /// `-mu`.
    Url(String),
    /// `-dr`.
    Docker(String),
}

/// Something about a command line that is no error here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A stable name: `unknown-flag`, `removed-flag` …
    pub code: &'static str,
    /// What is the matter; holds words as typed.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

/// A command while it is read.
pub(super) struct Launch {
    /// What is known so far.
    pub command: ParsedCommand,
    /// Resolved at the end.
    pub speculation: Speculation,
    /// `-fitp`.
    pub fit_print: bool,
    /// `-hf`.
    pub hf_repo: Option<String>,
    /// `-hff`.
    pub hf_file: Option<String>,
}

/// Reads a command line: the program, then its words, in the given environment. Leading `NAME=VALUE` words and `env` count
/// as a shell would count them.
pub fn command(words: &[String], env: &BTreeMap<String, String>) -> Result<ParsedCommand, Error> {
    let mut env = env.clone();
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        if let Some((name, value)) = assignment(first) {
            env.insert(name.to_string(), value.to_string());
        } else if first != "env" {
            break;
        }
        words = rest;
    }
    let (first, rest) = words.split_first().ok_or(Error::Empty)?;
    let program = program(first).ok_or_else(|| Error::UnknownProgram(first.clone()))?;
    let run = RunConfig { program, ..RunConfig::default() };
    let mut launch = Launch {
        command: ParsedCommand { run, model: None, notes: Vec::new() },
        speculation: Speculation::default(),
        fit_print: false,
        hf_repo: None,
        hf_file: None,
    };
    if program == Program::Bench {
        bench::read(&mut launch, rest)?;
    } else {
        environment(&mut launch, &env)?;
        arguments(&mut launch, rest)?;
        settings::finish(&mut launch);
    }
    if let (Some(repo), false) = (launch.hf_repo, matches!(launch.command.model, Some(ModelSource::Path(_)))) {
        launch.command.model = Some(ModelSource::HuggingFace { repo, file: launch.hf_file });
    }
    Ok(launch.command)
}

/// `NAME=VALUE` before a program.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (plain && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some((name, value))
}

/// The program of a path to it.
fn program(path: &str) -> Option<Program> {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    match name.strip_suffix(".exe").unwrap_or(name) {
        "llama-server" => Some(Program::Server),
        "llama-cli" => Some(Program::Cli),
        "llama-bench" => Some(Program::Bench),
        "llama-fit-params" => Some(Program::FitParams),
        _ => None,
    }
}

/// `LLAMA_ARG_*`, in the order of the flags' definitions.
fn environment(launch: &mut Launch, env: &BTreeMap<String, String>) -> Result<(), Error> {
    for flag in flags::FLAGS.iter() {
        let Some(name) = flag.environment else { continue };
        let negated = name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_");
        let value =
            if flag.is_switch() && env.contains_key(&negated) { Some("0") } else { env.get(name).map(String::as_str) };
        let Some(value) = value else { continue };
        let given = Given { flag: name, value };
        if flag.is_switch() {
            let on = given.switch()?;
            settings::apply(launch, flag.name(), on, given)?;
        } else if flag.values > 0 || given.truth() == Some(true) {
            settings::apply(launch, flag.name(), true, given)?;
        }
    }
    Ok(())
}

/// The words after the program.
fn arguments(launch: &mut Launch, words: &[String]) -> Result<(), Error> {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        at += 1;
        if let Some((_, values, instead)) = flags::REMOVED.iter().find(|(name, ..)| name == word) {
            at += values;
            removed(&mut launch.command, word, instead);
            continue;
        }
        let Some((flag, on)) = flags::find(word) else {
            at += unknown(&mut launch.command, word, words.get(at));
            continue;
        };
        if let Some(value) = optional_value(flag.name(), words.get(at)) {
            launch.command.note(
                "flag-needs-value",
                format!("`{word}` needs a value in llama.cpp b11434; read as `{word} {value}`"),
                Some(format!("write `{word} {value}`")),
            );
            settings::apply(launch, flag.name(), on, Given { flag: word, value })?;
            continue;
        }
        let value = if flag.values == 0 { "" } else { value_of(word, flag.name(), words.get(at))? };
        if flag.values > 1 && words.get(at + flag.values - 1).is_none() {
            return Err(Error::MissingValue { flag: word.clone(), expected: "two words".into() });
        }
        settings::apply(launch, flag.name(), on, Given { flag: word, value })?;
        at += flag.values;
    }
    Ok(())
}

/// The value that follows a flag, or the error that says what to write.
pub(super) fn value_of<'a>(word: &str, name: &str, next: Option<&'a String>) -> Result<&'a str, Error> {
    let expected = match name {
        "--gpu-layers" => "a number of layers, `auto` or `all`",
        "--override-tensor" => "PATTERN=BUFFER",
        "--model" => "a GGUF file",
        _ => "one word after it",
    };
    next.map(String::as_str).ok_or_else(|| Error::MissingValue { flag: word.into(), expected: expected.into() })
}

/// What a bare `-fa` or `-fit` of older builds means, where no fitting value follows.
fn optional_value(name: &str, next: Option<&String>) -> Option<&'static str> {
    let bare = next.is_none_or(|word| word.starts_with('-') && word != "-1");
    (bare && matches!(name, "--flash-attn" | "--fit")).then_some("on")
}

/// Notes a flag that b11434 does not have any more.
pub(super) fn removed(command: &mut ParsedCommand, word: &str, instead: &str) {
    command.note(
        "removed-flag",
        format!("`{word}` was removed: llama.cpp b11434 refuses it"),
        Some(format!("use `{instead}`")),
    );
}

/// Notes a word that no table has; how many words after it look like its value.
pub(super) fn unknown(command: &mut ParsedCommand, word: &str, next: Option<&String>) -> usize {
    command.note("unknown-flag", format!("`{word}` is no flag of llama.cpp b11434"), None);
    usize::from(word.starts_with('-') && next.is_some_and(|value| !value.starts_with('-')))
}
