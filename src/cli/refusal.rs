//! What is said of words that are no command line of moeplan: clap's own words, and a hint where a habit can be told.

use std::ffi::OsString;
use std::path::Path;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{help, short_flags};
use crate::ask::options::of_llama_cpp;
use crate::run::command::shell;
use crate::run::flags::{Effect, InPlan};
use crate::run::{Program, groups, spelling};
use crate::suggest::{self, Refusal};

/// What to say of an error of clap's where a habit explains it; `None`: clap says it best. `words` are those typed.
pub fn refusal(command: &Command, error: &clap::Error, words: &[OsString]) -> Option<Refusal> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => no_command(command, &context(ContextKind::InvalidSubcommand)?, words),
        ErrorKind::ArgumentConflict => conflict(&context(ContextKind::InvalidArg)?, error),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            Some(value(&context(ContextKind::InvalidArg)?, &context(ContextKind::InvalidValue)?, error, words))
        }
        ErrorKind::UnknownArgument => unknown_flag(command, &context(ContextKind::InvalidArg)?, words),
        ErrorKind::MissingRequiredArgument => missing(command, error, words),
        _ => None,
    }
}

fn no_command(command: &Command, word: &str, words: &[OsString]) -> Option<Refusal> {
    if let Some(program) = Program::of_path(word).map(Program::name) {
        let hint = format!("`moeplan check -- {program} …` shows what that command line would do");
        return Some(Refusal::new(format!("`{word}` is a program, not a command of moeplan"), hint));
    }
    let plan = format!("`moeplan plan --vram 24G {word}` plans it for a 24 GB card");
    let hint = format!("`moeplan inspect {word}` shows what it is, and {plan}");
    if is_model(word) || Path::new(word).exists() {
        return Some(Refusal::new(format!("`{word}` is a model, not a command"), hint));
    }
    let before = words.iter().position(|other| other == word)?;
    let above = named(command, words.get(..before)?);
    let path = if above.get_name() == command.get_name() { String::new() } else { format!(" {}", above.get_name()) };
    let known = above.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name);
    let hint =
        suggest::did_you_mean(word, known).unwrap_or_else(|| format!("`moeplan{path} --help` lists the commands"));
    Some(Refusal::new(format!("`{word}` is not a command of `moeplan{path}`"), hint))
}

/// Whether a word looks like a MODEL.
fn is_model(word: &str) -> bool {
    let has_extension = Path::new(word).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    has_extension || word.starts_with("hf:") || word.starts_with("https://")
}

/// Flags that exclude each other, or one that is given twice.
fn conflict(argument: &str, error: &clap::Error) -> Option<Refusal> {
    let name = |argument: &str| argument.split(' ').next().unwrap_or_default().to_string();
    let other = match error.get(ContextKind::PriorArg)? {
        ContextValue::String(other) => name(other),
        ContextValue::Strings(others) => others.iter().map(|other| name(other)).collect::<Vec<_>>().join("` and `"),
        _ => return None,
    };
    let name = name(argument);
    Some(if other == name {
        Refusal::new(format!("`{name}` is given twice"), "give it once")
    } else {
        let is_size = [name.as_str(), &other].iter().all(|flag| ["--gpu", "--vram"].contains(flag));
        let hint =
            if is_size { "a size goes with the card's name: --gpu 'RTX 3090=23G'" } else { "leave one of them out" };
        Refusal::new(format!("`{name}` cannot be used with `{other}`"), hint)
    })
}

/// A value that an argument (`--vram <SIZE,…>`) does not take.
fn value(argument: &str, value: &str, error: &clap::Error, words: &[OsString]) -> Refusal {
    let (name, form) = argument.split_once(' ').unwrap_or((argument, ""));
    let known = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(known)) => known.as_slice(),
        _ => &[],
    };
    let why = std::error::Error::source(error).map(ToString::to_string);
    let why = why.unwrap_or_else(|| format!("expected one of {}", known.join(", ")));
    let message = match value {
        "" if known.is_empty() => format!("`{name}` needs a value: {}", form.trim_matches(['<', '>'])),
        "" => format!("`{name}` needs a value: {why}"),
        _ if name.starts_with(['<', '[']) => format!("`{value}`: {why}"),
        _ => format!("`{name} {value}`: {why}"),
    };
    // `--vram 24,5G`
    let rest = words.iter().find_map(|word| word.to_str()?.split_once(&format!("{value},")));
    let decimals = rest.filter(|(before, after)| {
        let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        is_number && !before.ends_with(|c: char| c.is_ascii_digit()) && after.starts_with(|c: char| c.is_ascii_digit())
    });
    let hint =
        decimals.map(|(_, after)| format!("a comma separates devices: a size with decimals is `{value}.{after}`"));
    let meant = || suggest::did_you_mean(value, known.iter().map(String::as_str));
    let model =
        is_model(value).then(|| format!("`{name}` needs a value before the model: {}", form.trim_matches(['<', '>'])));
    Refusal::new(message, hint.or(model).or_else(meant).unwrap_or_default())
}

/// The command that the words name, as far as they name one.
fn named<'a>(command: &'a Command, words: &[OsString]) -> &'a Command {
    words
        .iter()
        .skip(1)
        .take_while(|word| *word != "--")
        .fold(command, |command, word| word.to_str().and_then(|word| command.find_subcommand(word)).unwrap_or(command))
}

/// What people write for something that has another name, and that name.
const MEANT: [(&[&str], &str); 4] = [
    (
        &["--streams", "--slots", "--users", "--concurrency", "--sequences"],
        "`-np N` says how many requests are served at once",
    ),
    (&["--context", "--ctx", "--context-length", "--n-ctx"], "`-c N` is the context, in tokens"),
    (&["--quant", "--quantization", "--quantize", "--q"], "`--as Q4_K_M` gives the answer for another quantization"),
    (&["--mmap", "--no-mmap", "--mlock"], "`-lm mmap`, `-lm none`, `-lm mlock` say how the file is read"),
];

/// A flag that a command does not have, and llama.cpp perhaps does.
fn unknown_flag(command: &Command, flag: &str, words: &[OsString]) -> Option<Refusal> {
    let command = named(command, words);
    let name = command.get_name();
    // Of `-ncmo` clap names `-n`.
    let typed = words.iter().filter_map(|word| word.to_str()).find(|word| *word == flag).or_else(|| {
        let mut all = words.iter().filter_map(|word| word.to_str());
        all.find(|word| !word.starts_with("--") && word.starts_with(flag))
    })?;
    if typed.get(1..).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        let at = words.iter().position(|word| word == typed)?;
        let of = words.get(at.checked_sub(1)?)?.to_str()?;
        let is_context = spelling(of).is_some_and(|(flag, _)| flag.name() == "--ctx-size");
        let hint = if is_context { "`-c max` is the longest context that fits" } else { "write it without the sign" };
        return Some(Refusal::new(format!("`{of} {typed}`: the value cannot be negative"), hint));
    }
    let takes_model = command.get_positionals().any(|argument| argument.get_id().as_str().starts_with("model"));
    let hint = if takes_model && ["-m", "--model"].contains(&typed) {
        format!("the model is given without a flag: `moeplan {name} model.gguf`")
    } else if let Some((flag, _)) = spelling(typed).filter(|_| takes_model) {
        let is_kept = !matches!(flag.effect, Effect::Model) && matches!(flag.in_plan, InPlan::Kept);
        if name == "plan" && is_kept {
            // With its values, as it was typed.
            let at = words.iter().position(|word| word == typed);
            let rest: Vec<String> =
                words.iter().skip(at.unwrap_or(words.len())).map(|word| word.to_string_lossy().into_owned()).collect();
            let whole = groups(&rest).first().and_then(|group| shell(group)).unwrap_or_else(|| typed.to_string());
            format!("a plan keeps llama.cpp's own flags after `--`: `moeplan plan model.gguf … -- {whole}`")
        } else {
            of_llama_cpp(typed, flag)
        }
    } else if let Some((_, hint)) = MEANT.iter().find(|(words, _)| takes_model && words.contains(&typed)) {
        (*hint).to_string()
    } else {
        let long: Vec<String> = command.get_arguments().filter_map(|a| Some(format!("--{}", a.get_long()?))).collect();
        let short = short_flags().filter(|(_, name)| long.iter().any(|long| long == name)).map(|(short, _)| short);
        suggest::did_you_mean(typed, short.chain(long.iter().map(String::as_str)))?
    };
    Some(Refusal::new(format!("`moeplan {name}` has no `{typed}`"), hint))
}

fn missing(command: &Command, error: &clap::Error, words: &[OsString]) -> Option<Refusal> {
    let Some(ContextValue::Strings(what)) = error.get(ContextKind::InvalidArg) else { return None };
    let command = named(command, words);
    let example = help::examples(command).into_iter().next()?;
    let message = format!("`moeplan {}` needs {}", command.get_name(), what.join(" and "));
    // `-fa model.gguf`: the option took it.
    let mut pairs = words.windows(2).filter_map(|pair| Some((pair.first()?.to_str()?, pair.get(1)?.to_str()?)));
    let taken = pairs.find(|(flag, value)| flag.starts_with('-') && is_model(value));
    let hint =
        taken.map(|(flag, model)| format!("`{flag}` took `{model}` as its value: give `{flag}` a value of its own"));
    Some(Refusal::new(message, hint.unwrap_or_else(|| format!("for example: {example}"))))
}
