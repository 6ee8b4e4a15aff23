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
    /// A required key is not there.
    #[error("key `{key}` is missing")]
    MissingKey {
        /// The full key.
        key: String,
    },
    /// A key of another type.
    #[error("key `{key}` is {found}, not {expected}")]
    KeyType {
        /// The full key.
        key: String,
        /// What llama.cpp reads there, in words.
        expected: String,
        /// What the file has, in words.
        found: String,
    },
    /// An array with another number of values.
    #[error("key `{key}` has {found} values, {expected} expected")]
    KeyLength {
        /// The full key.
        key: String,
        /// How many values llama.cpp wants.
        expected: i64,
        /// How many the file has.
        found: u64,
    },
    /// Numbers that llama.cpp refuses.
    #[error("{rule}{}", Known(numbers))]
    Numbers {
        /// llama.cpp's message, or the condition that does not hold.
        rule: String,
        /// The numbers in that condition.
        numbers: Vec<(String, i64)>,
    },
    /// A required tensor is not there.
    #[error("missing tensor '{tensor}'")]
    MissingTensor {
        /// Its full name.
        tensor: String,
    },
    /// A tensor of another shape.
    #[error("tensor '{tensor}' has wrong shape; expected {}, got {}", Shape(expected), Shape(found))]
    WrongShape {
        /// Its full name.
        tensor: String,
        /// What the hyper-parameters make of it.
        expected: Vec<i64>,
        /// What the file has.
        found: Vec<i64>,
    },
    /// The file has a tensor that the architecture does not have.
    #[error("wrong number of tensors; expected {expected}, got {created}: {architecture} has no tensor '{tensor}'")]
    UnusedTensor {
        /// The first such tensor.
        tensor: String,
        /// `general.architecture`.
        architecture: String,
        /// How many tensors the file has.
        expected: usize,
        /// How many of them llama.cpp takes.
        created: usize,
    },
    /// More tensors are made than the file has: one is made twice.
    #[error("too many tensors created; expected {expected}, got {created}")]
    TooManyTensors {
        /// How many tensors the file has.
        expected: usize,
        /// How many llama.cpp makes of them.
        created: usize,
    },
    /// A rule file of moeplan cannot be read.
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
        let Some(rules) = Rules::of(&self.architecture) else { return Ok(()) };
        let rules = rules.map_err(Fault::Rules)?;
        Walk::new(self, &rules).run()
    }
}
