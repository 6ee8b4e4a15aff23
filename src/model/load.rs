//! What llama.cpp's loader requires of a model before it computes anything: keys, values, tensors and their shapes.
//!
//! The rules are `rules/loader/*.txt`, one file an architecture, in the words of `load_arch_hparams` and
//! `load_arch_tensors`; `groups.txt` is what they share. Source: `src/models/*.cpp`, `src/llama-model.cpp`,
//! `src/llama-model-loader.cpp` (`create_tensor`, `check_tensor_dims`, `done_getting_tensors`), llama.cpp b11434.

mod rules;
mod walk;

use std::borrow::Cow;
use std::fmt;

use super::Model;
use crate::suggest::Hint;
use rules::Rules;
use walk::Walk;

/// Why llama.cpp does not load a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    #[error("key `{key}` is {found}, not {expected}")]
    KeyType { key: String, expected: String, found: String },
    #[error("key `{key}` has {found} values, {expected} expected")]
    KeyLength { key: String, expected: i64, found: u64 },
    #[error("{rule}{}", Known(numbers))]
    Numbers { rule: String, numbers: Vec<(String, i64)> },
    #[error("missing tensor '{tensor}'")]
    MissingTensor { tensor: String },
    #[error("tensor '{tensor}' has wrong shape; expected {}, got {}", Shape(expected), Shape(found))]
    WrongShape { tensor: String, expected: Vec<i64>, found: Vec<i64> },
    #[error("wrong number of tensors; expected {expected}, got {created}: {architecture} has no tensor '{tensor}'")]
    UnusedTensor { tensor: String, architecture: String, expected: usize, created: usize },
    #[error("too many tensors created; expected {expected}, got {created}")]
    TooManyTensors { expected: usize, created: usize },
    #[error("moeplan's loader rules: {0}")]
    Rules(String),
}

impl Hint for Fault {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::MissingTensor { tensor } if tensor.contains("_exps.") => {
                "its experts are missing or named otherwise; take a GGUF made by llama.cpp's convert_hf_to_gguf.py"
            }
            Self::MissingTensor { .. } | Self::UnusedTensor { .. } | Self::WrongShape { .. } => {
                "it is incomplete, or laid out for another program (ollama makes such files); take a GGUF made by llama.cpp's convert_hf_to_gguf.py"
            }
            Self::Rules(_) => "this is a mistake of moeplan; please report it",
            _ => "convert the model again with a current llama.cpp",
        };
        Some(text.into())
    }
}

/// Numbers of a condition, for people.
struct Known<'a>(&'a [(String, i64)]);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name} = {value}", if i == 0 { " (" } else { ", " })?;
        }
        f.write_str(if self.0.is_empty() { "" } else { ")" })
    }
}

/// A shape as llama.cpp prints it.
struct Shape<'a>(&'a [i64]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "[{}]", dims.join(", "))
    }
}

impl Model {
    /// What llama.cpp's loader would refuse first. A model whose architecture has no rules is not checked.
    ///
    /// # Errors
    /// The first fault, in the order in which llama.cpp looks.
    pub fn check_load(&self) -> Result<(), Fault> {
        let rules = Rules::of(&self.architecture).map_err(Fault::Rules)?;
        if rules.tensors.is_empty() { Ok(()) } else { Walk::new(self, &rules).run() }
    }
}

/// Reads the keys of a model, as far as they can be read; what llama.cpp would refuse among them.
pub(super) fn read(model: &mut Model) -> Vec<Fault> {
    match Rules::of(&model.architecture) {
        Ok(rules) => {
            let (hparams, context, faults) = Walk::new(model, &rules).read();
            (model.hparams, model.context) = (hparams, context);
            faults
        }
        Err(error) => vec![Fault::Rules(error)],
    }
}
