//! A command line, understood; and command lines put together: the model's words, the launch's, and the quotes of a shell.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::config::RunConfig;
use super::dialect::LastBlocks;
use super::{Note, args};
use crate::bytes::Bytes;
use crate::gguf::source::{Location, Which};
use crate::machine::Backend;

#[derive(Debug, Clone, PartialEq)]
pub struct ParsedCommand {
    pub run: RunConfig,
    pub model: Option<ModelSource>,
    /// What a person should know: unknown and removed flags, what is not counted.
    pub notes: Vec<Note>,
    /// ik_llama.cpp's `-ncmoe`, which only model and machine together make overrides of.
    pub last_blocks: Option<LastBlocks>,
    /// Words of llama-server's command line that `run` does not hold: a launch takes them as they are.
    pub beside: Vec<String>,
    /// Variables that select the cards it sees.
    pub environment: BTreeMap<String, String>,
    /// What of main memory it may use, where a container or systemd limits that.
    pub memory: Option<Bytes>,
    /// The kind of devices that its container's image is built for, where the tag says so.
    pub image: Option<Backend>,
}

impl ParsedCommand {
    /// A launch of a model, in llama.cpp's own flags.
    pub fn new(run: RunConfig, model: Option<ModelSource>) -> Self {
        let (notes, beside, environment) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { run, model, notes, last_blocks: None, beside, environment, memory: None, image: None }
    }

    pub(super) fn note(&mut self, code: &'static str, message: String, hint: Option<String>) {
        self.notes.push(Note { code: code.into(), message, hint });
    }
}

/// Where the model of a command comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    Path(PathBuf),
    HuggingFace { repo: String, file: Option<String> },
    Url(String),
    Docker(String),
}

impl ModelSource {
    /// What MODEL names: llama.cpp finds a model of the hub with `-hf`, and one at an address with `-mu`.
    pub fn of_argument(model: &str) -> Self {
        match Location::parse(model) {
            Ok(Location::Hub { repo, which: Which::Default }) => Self::HuggingFace { repo, file: None },
            Ok(Location::Hub { repo, which: Which::Quant(quant) }) => {
                Self::HuggingFace { repo: format!("{repo}:{quant}"), file: None }
            }
            Ok(Location::Hub { repo, which: Which::File(file) }) => Self::HuggingFace { repo, file: Some(file) },
            Ok(Location::Address(url)) => Self::Url(url.to_string()),
            _ => Self::Path(model.into()),
        }
    }

    /// `-m FILE`, or how llama.cpp is told to fetch the model.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Path(path) => vec!["-m".into(), path.to_string_lossy().into_owned()],
            Self::Url(url) => vec!["-mu".into(), url.clone()],
            Self::Docker(repo) => vec!["-dr".into(), repo.clone()],
            Self::HuggingFace { repo, file: None } => vec!["-hf".into(), repo.clone()],
            Self::HuggingFace { repo, file: Some(file) } => {
                vec!["-hf".into(), repo.clone(), "-hff".into(), file.clone()]
            }
        }
    }
}

/// The command line of llama-server for a model and the arguments of a launch, its variables first.
pub fn server_command(model: &ModelSource, run: &RunConfig, args: &[String]) -> Vec<String> {
    let variables = run.environment().into_iter().map(|(name, value)| format!("{name}={value}"));
    variables.chain(["llama-server".to_string()]).chain(model.words()).chain(args.iter().cloned()).collect()
}

/// The command that launches `run` with a model's file, to paste into a shell.
pub fn pasteable(model: &std::path::Path, run: &RunConfig) -> String {
    let words = server_command(&ModelSource::Path(model.to_path_buf()), run, &args::args(run));
    // A path holds no NUL, the one character that no shell can quote.
    shell(&words).unwrap_or_default()
}

/// Words as one line for a POSIX shell; `None` where one has a NUL.
pub fn shell<T: AsRef<str>>(words: &[T]) -> Option<String> {
    Some(words.iter().map(|word| quoted(word.as_ref())).collect::<Option<Vec<_>>>()?.join(" "))
}

/// A word for a POSIX shell, in single quotes where it needs any: regexes stay readable. `None` for one with a NUL.
pub fn quoted(word: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+%@".contains(c);
    if word.contains(['\0', '\'']) || word.is_empty() {
        return shlex::try_quote(word).ok().map(std::borrow::Cow::into_owned);
    }
    Some(if word.chars().all(is_plain) { word.to_string() } else { format!("'{word}'") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for word in ["plain", r"blk\.1\.x=CPU,(a|b)=CPU", "it's", "", "a b", "$(x)`y`"] {
            let quoted = quoted(word).unwrap();
            assert_eq!(shlex::split(&quoted), Some(vec![word.to_string()]), "{quoted}");
        }
        assert_eq!(quoted(r"a\.b"), Some(r"'a\.b'".to_string()));
        assert_eq!(quoted("a\0b"), None);
    }
}
