//! Why a graph cannot be built: llama.cpp refuses such a file, or stops at an assertion.

use std::borrow::Cow;

use super::{MAX_NUMBER, MAX_TOKENS};
use crate::memory::caches::CacheKind;
use crate::suggest::Hint;

/// What is wrong with a file, or with a command for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A tensor that llama.cpp requires.
    #[error("the file has no tensor `{tensor}`, which llama.cpp requires of {architecture}")]
    Tensor {
        tensor: String,
        /// `general.architecture`; untrusted text.
        architecture: String,
    },
    /// A number that shapes are made of.
    #[error("key `{key}` is {}: a graph needs 1 to {MAX_NUMBER}", found.map_or("missing".to_string(), |n| n.to_string()))]
    Key { key: String, found: Option<u64> },
    /// An operation that does not take its sources.
    #[error(
        "the file's keys and tensors contradict each other: {what} does not take {shapes}{}",
        tensor.as_ref().map(|name| format!(", at or after `{name}`")).unwrap_or_default()
    )]
    Operation {
        what: &'static str,
        shapes: String,
        /// The nearest weight that they come from.
        tensor: Option<String>,
    },
    /// A cache that the graph reads and the keys leave out.
    #[error("the file's keys contradict each other: there is no {kind} cache{}", il.map(|il| format!(" of layer {il}")).unwrap_or_default())]
    Cache {
        kind: CacheKind,
        /// The layer; `None` where there is no such cache at all.
        il: Option<u32>,
    },
    #[error("the file's keys contradict each other: there is no layer {il}")]
    Layer { il: u32 },
    /// A value that llama.cpp has no function for.
    #[error("key `{key}` is {found}: llama.cpp knows 1 to {high}")]
    Choice { key: String, found: u32, high: u32 },
    #[error("the graph is too large for any memory: the file's keys, or -c and -ub, are too large")]
    TooLarge,
    /// A micro-batch beyond any memory.
    #[error("a micro-batch of {n_tokens} tokens is more than {MAX_TOKENS}: give a smaller -ub")]
    Batch { n_tokens: u64 },
    /// A draft model without the launch that it drafts for (`src/llama-context.cpp` `llama_context`, b11434).
    #[error("llama.cpp refuses {architecture} by itself: it drafts for another model, which {what}")]
    Alone {
        /// `general.architecture`; untrusted text.
        architecture: String,
        what: &'static str,
    },
    /// A weight of the target that no device of the draft model holds (`ggml/src/ggml-backend.cpp`
    /// `ggml_backend_sched_backend_id_from_cur`, b11434).
    #[error(
        "llama.cpp stops: the draft model reads the target's `{tensor}`, which is on a device that it does not use itself"
    )]
    Elsewhere { tensor: String },
    /// Hidden states that no graph of the target keeps (`src/llama-graph.cpp` `llm_graph_result::set_outputs`, b11434).
    #[error("llama.cpp stops: the draft model reads layers of its target that {architecture} does not show")]
    Taps {
        /// `general.architecture`; untrusted text.
        architecture: String,
    },
    /// An architecture without a graph here.
    #[error("no graph of {architecture} is built here")]
    Architecture {
        /// `general.architecture`; untrusted text.
        architecture: String,
    },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Batch { .. } | Self::TooLarge | Self::Architecture { .. } => None,
            Self::Alone { .. } => Some(Cow::Borrowed("give it with `-md`, and its target with `-m`")),
            Self::Taps { .. } => Some(Cow::Borrowed("take a draft model that was made for this one")),
            Self::Elsewhere { .. } => Some(Cow::Borrowed("give the draft model that device as well: `-devd`")),
            _ => Some(Cow::Borrowed(
                "convert the model again with a current llama.cpp, or take another file of it; if llama.cpp runs this one, \
                 please report it as a bug",
            )),
        }
    }
}
