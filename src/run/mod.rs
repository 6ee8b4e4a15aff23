//! A launch of llama.cpp: what its flags mean, read from and printed as command lines.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::borrow::Cow;

use crate::suggest::{self, Hint};

// In reading order: each uses those before it.
mod config;
#[doc(hidden)]
pub mod behaviour;
mod values;
#[doc(hidden)]
pub mod flags;
mod speculation;
#[doc(hidden)]
pub mod args;
#[doc(hidden)]
pub mod dialect;
#[doc(hidden)]
pub mod build;
#[doc(hidden)]
pub mod command;
#[doc(hidden)]
pub mod numbers;
mod pasted;
#[doc(hidden)]
pub mod visible;
mod koboldcpp;
#[doc(hidden)]
pub mod held;
#[doc(hidden)]
pub mod sources;
pub mod parse;
#[doc(hidden)]
pub mod grid;

pub use behaviour::Rules;
pub use command::{ModelSource, ParsedCommand};
pub use config::{
    Choice, Dialect, FlashAttn, LazyMode, LoadMode, MetadataOverride, OFFLOAD_MIN_BATCH, OFFLOAD_MIN_BATCH_SINCE,
    Override, Program, RunConfig, SplitMode, Target,
};
pub use flags::{groups, is_speculation, spelling};
pub use numbers::{ContextNumbers, ResolvedRun, numbers};
pub use values::{EXPERTS, LEFT_OUT, on_host};

/// A command line that llama.cpp would refuse, or that moeplan cannot read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("no command: write it after `--`, for example `-- llama-server -m model.gguf -ngl 99`")]
    Empty,
    #[error("it contains no llama.cpp command")]
    NoCommand,
    #[error("`{0}` is not a llama.cpp program that loads a model, and none follows it")]
    UnknownProgram(String),
    #[error("`llama {0}`: `llama` has no command of this name that loads a model")]
    UnknownCommand(String),
    #[error("`{name}` is not a llama.cpp program")]
    OtherProgram { name: String, instead: &'static str },
    #[error("a quote is opened and not closed")]
    Quotes,
    #[error("cannot read `{0}`")]
    NoFile(String),
    #[error("`{line}`: expected {expected}")]
    Line { line: String, expected: &'static str },
    /// `place`: a line and a section of a file.
    #[error("{place}: {error}")]
    In { place: String, error: Box<Self> },
    #[error("cannot be read: {0}")]
    Unread(String),
    #[error("llama-bench would run {0} variants, but moeplan answers at most {1}: give fewer values")]
    TooManyVariants(usize, usize),
    #[error("`{word}` begins with a dash that is not a hyphen: type `{typed}`")]
    Dash { word: String, typed: String },
    #[error("`{word}` has curly quotes, which no shell removes: type '{typed}'")]
    CurlyQuotes { word: String, typed: String },
    #[error("`{words}` of ik_llama.cpp is not counted: {why}")]
    NotCounted { words: String, why: &'static str },
    #[error("`{flag}` takes a value: {expected}")]
    MissingValue { flag: String, expected: String },
    #[error("`{flag} {value}`: expected {expected}")]
    BadValue { flag: String, value: String, expected: String },
}

impl Error {
    /// The same with where in a file it is.
    fn of(self, place: String) -> Self {
        Self::In { place, error: Box::new(self) }
    }

    /// The same with its line, of a section.
    fn at_line(self, line: usize, section: Option<&str>) -> Self {
        self.of(format!("line {line}{}", section.map_or(String::new(), |name| format!(", [{name}]"))))
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::In { error, .. } => return error.hint(),
            Self::UnknownProgram(word) if std::path::Path::new(word).extension().is_some_and(|ext| ext == "gguf") => {
                format!("check reads a whole command: `moeplan check -- llama-server -m {word} -ngl 99`")
            }
            Self::UnknownProgram(word) if word.contains('-') => {
                let name = word.rsplit(['/', '\\']).next().unwrap_or(word);
                suggest::did_you_mean(name, Program::names())?
            }
            Self::UnknownProgram(_) => {
                "write the command of a program of llama.cpp: `moeplan check -- llama-server -m model.gguf -ngl 99`"
                    .into()
            }
            Self::OtherProgram { instead, .. } => (*instead).to_string(),
            Self::NotCounted { words, .. } if words.contains("graph") => "`-sm layer` is counted".into(),
            Self::NotCounted { .. } => "without it the command is counted".into(),
            Self::UnknownCommand(_) => {
                "`llama serve`, `cli`, `bench`, `completion`, `fit-params` and others are read".into()
            }
            Self::BadValue { value, expected, .. } => {
                let words = expected.split([',', ' ', '`']).filter(|word| !word.is_empty() && *word != value);
                suggest::did_you_mean(value, words.filter(|word| !["one", "of", "or", "a"].contains(word)))?
            }
            _ => return None,
        };
        Some(text.into())
    }
}

/// Something about a command line that is no error here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub code: Cow<'static, str>,
    /// What is the matter; holds words as typed.
    pub message: String,
    pub hint: Option<String>,
}
