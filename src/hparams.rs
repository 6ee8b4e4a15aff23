//! Hyper-parameters: the `<arch>.*` keys with llama.cpp's names, defaults and per-layer arrays.
//!
//! Source: `src/llama-model.cpp` `llama_model_base::load_hparams`, llama.cpp b11434.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use crate::arch::{Arch, Layers};
use crate::gguf::{Metadata, Value};

/// llama.cpp's `LLAMA_MAX_LAYERS` (`src/llama-hparams.h`, b11434).
pub const MAX_BLOCKS: u32 = 512;
/// llama.cpp's `LLAMA_MAX_EXPERTS` (`src/llama-hparams.h`, b11434).
pub const MAX_EXPERTS: u32 = 1024;

/// A key that llama.cpp would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A key without which llama.cpp loads nothing.
    #[error("key `{key}` is missing")]
    Missing {
        /// The full key.
        key: String,
    },
    /// A value of another kind.
    #[error("key `{key}` is {found}, not a whole number of at most 32 bits")]
    WrongType {
        /// The full key.
        key: String,
        /// What is there, in words.
        found: String,
    },
    /// A per-layer array that does not match the number of blocks.
    #[error("key `{key}` has {found} values for {expected} blocks")]
    WrongLength {
        /// The full key.
        key: String,
        /// `block_count`.
        expected: u32,
        /// Elements of the array.
        found: u64,
    },
    /// A value outside llama.cpp's limits.
    #[error("key `{key}` is {found}: llama.cpp takes {low} to {high}")]
    OutOfRange {
        /// The full key.
        key: String,
        /// What is there.
        found: u32,
        /// The smallest value that loads.
        low: u32,
        /// The largest value that loads.
        high: u32,
    },
}

/// The keys that every architecture shares, typed; the others through [`HParams::u64`] and its siblings.
/// Per-layer values (`head_count` …) have `block_count` entries, a scalar key repeated.
#[derive(Debug, Clone, Default)]
pub struct HParams {
    /// `general.architecture`: the prefix of the keys.
    pub architecture: String,
    /// `block_count`, NextN blocks included (llama.cpp: `n_layer_all`).
    pub block_count: u32,
    /// `nextn_predict_layers`: the last blocks, not loaded without MTP.
    pub nextn_predict_layers: u32,
    /// `context_length` (llama.cpp: `n_ctx_train`).
    pub context_length: u32,
    /// `embedding_length` (llama.cpp: `n_embd`).
    pub embedding_length: u32,
    /// Tokens of the vocabulary: the tokenizer's array, else `vocab_size`.
    pub vocab_size: u32,
    /// `expert_count`, 0 for a dense model.
    pub expert_count: u32,
    /// `expert_used_count` by layer.
    pub expert_used_count: Vec<u32>,
    /// `expert_shared_count`, if stated.
    pub expert_shared_count: Option<u32>,
    /// `feed_forward_length` by layer.
    pub feed_forward_length: Vec<u32>,
    /// `attention.head_count` by layer.
    pub head_count: Vec<u32>,
    /// `attention.head_count_kv` by layer; default `head_count`.
    pub head_count_kv: Vec<u32>,
    /// `attention.key_length` of full-attention layers; default `embedding_length / head_count[0]`.
    pub key_length: u32,
    /// `attention.value_length` of full-attention layers; same default.
    pub value_length: u32,
    /// `attention.key_length_swa`; default `key_length`.
    pub key_length_swa: u32,
    /// `attention.value_length_swa`; default `value_length`.
    pub value_length_swa: u32,
    /// All metadata, for the keys that one architecture alone has.
    pub metadata: Metadata,
}

impl HParams {
    /// Everything that can be read, and every key that llama.cpp would refuse (the value then is 0 or the default).
    pub fn read(architecture: &str, metadata: &Metadata) -> (Self, Vec<Error>) {
        let base = Self { architecture: architecture.to_string(), metadata: metadata.clone(), ..Self::default() };
        let mut keys = Keys { hparams: &base, errors: Vec::new() };
        let context_length = keys.required("context_length");
        let embedding_length = keys.required("embedding_length");
        let stated_blocks = keys.required("block_count");
        let block_count = keys.in_range("block_count", stated_blocks, 1, MAX_BLOCKS);
        let stated_nextn = keys.scalar("nextn_predict_layers").unwrap_or(0);
        let nextn_predict_layers = keys.in_range("nextn_predict_layers", stated_nextn, 0, block_count);
        let (expert_count, expert_used_count) = keys.experts(block_count);
        let layers = |keys: &mut Keys<'_>, key| keys.per_layer(key, block_count);
        let feed_forward_length = layers(&mut keys, "feed_forward_length").unwrap_or_default();
        let head_count = layers(&mut keys, "attention.head_count").unwrap_or_default();
        let head_count_kv = layers(&mut keys, "attention.head_count_kv").unwrap_or_else(|| head_count.clone());
        let expert_shared_count = keys.scalar("expert_shared_count");
        // Models without attention heads have no head size (b11434 `load_hparams`: `n_head() > 0`).
        let first = head_count.first().copied().unwrap_or(0);
        let (mut key_length, mut value_length) = (0, 0);
        if let Some(default) = embedding_length.checked_div(first) {
            key_length = keys.scalar("attention.key_length").unwrap_or(default);
            value_length = keys.scalar("attention.value_length").unwrap_or(default);
        }
        let key_length_swa = keys.scalar("attention.key_length_swa").unwrap_or(key_length);
        let value_length_swa = keys.scalar("attention.value_length_swa").unwrap_or(value_length);
        let vocab_size = keys.vocab_size();
        let errors = keys.errors;
        let all_zero = |length: Vec<u32>| if length.is_empty() { vec![0; block_count as usize] } else { length };
        let hparams = Self {
            block_count,
            nextn_predict_layers,
            context_length,
            embedding_length,
            vocab_size,
            expert_count,
            expert_used_count,
            expert_shared_count,
            feed_forward_length: all_zero(feed_forward_length),
            head_count: all_zero(head_count),
            head_count_kv: all_zero(head_count_kv),
            key_length,
            value_length,
            key_length_swa,
            value_length_swa,
            ..base
        };
        (hparams, errors)
    }

    /// The record of its architecture.
    pub fn arch(&self) -> &'static Arch {
        Arch::of(&self.architecture)
    }

    /// The value of `<arch>.KEY`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// The scalar integer `<arch>.KEY`; `None` where it is absent, negative or not an integer.
    pub fn u64(&self, key: &str) -> Option<u64> {
        integer(self.value(key)?)
    }

    /// The scalar integer `<arch>.KEY` as `u32`, or 0.
    pub fn u32_or_0(&self, key: &str) -> u32 {
        self.u64(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    /// The scalar or array `<arch>.KEY` with one value a layer (a scalar repeated, booleans as 0 and 1);
    /// `None` where it is absent or not of integers. The array's own length is kept.
    pub fn u32_per_layer(&self, key: &str) -> Option<Vec<u32>> {
        let narrow = |value: &Value| match value {
            Value::Bool(yes) => Some(u32::from(*yes)),
            other => integer(other).and_then(|n| u32::try_from(n).ok()),
        };
        match self.value(key)? {
            Value::Array(values) => values.iter().map(narrow).collect(),
            scalar => Some(vec![narrow(scalar)?; self.block_count as usize]),
        }
    }

    /// The layers that get a device each (llama.cpp: `n_layer_all`): the blocks, as often as they run (nanbeige), or with
    /// a router's layer in place of NextN blocks (graniteswitch).
    pub fn n_layer_all(&self) -> u32 {
        match self.arch().layers {
            Layers::Blocks => self.block_count,
            Layers::Loops => {
                let loops = self.u32_or_0("num_loops").max(1);
                // llama.cpp has at most 512 layers.
                self.block_count.saturating_mul(loops).min(MAX_BLOCKS.max(self.block_count))
            }
            Layers::Router => self.n_layer().saturating_add(1),
        }
    }

    /// `block_count` less the NextN blocks (llama.cpp: `n_layer()`).
    pub fn n_layer(&self) -> u32 {
        self.block_count.saturating_sub(self.nextn_predict_layers)
    }
}

/// The non-negative integer of a value.
fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::U64(n) => Some(*n),
        Value::I64(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> String {
    match value {
        Value::U64(n) => n.to_string(),
        Value::I64(n) => n.to_string(),
        Value::F64(x) => format!("the fraction {x}"),
        Value::Bool(_) => "a boolean".to_string(),
        Value::String(_) => "text".to_string(),
        Value::Array(values) => format!("an array of {}", values.len()),
        Value::Counted { len } => format!("an array or text of {len}"),
    }
}

/// Reads keys and keeps what is wrong with them.
struct Keys<'a> {
    hparams: &'a HParams,
    errors: Vec<Error>,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.hparams.architecture)
    }

    fn refuse(&mut self, key: &str, found: &Value) {
        let error = Error::WrongType { key: self.full(key), found: kind(found) };
        self.errors.push(error);
    }

    fn scalar(&mut self, key: &str) -> Option<u32> {
        let hparams = self.hparams;
        let value = hparams.value(key)?;
        let number = integer(value).and_then(|n| u32::try_from(n).ok());
        if number.is_none() {
            self.refuse(key, value);
        }
        number
    }

    fn required(&mut self, key: &str) -> u32 {
        if self.hparams.value(key).is_none() {
            let key = self.full(key);
            self.errors.push(Error::Missing { key });
        }
        self.scalar(key).unwrap_or(0)
    }

    /// `found` where it lies in the range, else an error (unless the key is missing: that is said already) and 0.
    fn in_range(&mut self, key: &str, found: u32, low: u32, high: u32) -> u32 {
        if (low..=high).contains(&found) {
            return found;
        }
        if self.hparams.u64(key).is_some() {
            let key = self.full(key);
            self.errors.push(Error::OutOfRange { key, found, low, high });
        }
        0
    }

    /// One value a block (`get_key_or_arr` in `src/llama-model-loader.cpp`).
    fn per_layer(&mut self, key: &str, block_count: u32) -> Option<Vec<u32>> {
        let hparams = self.hparams;
        let value = hparams.value(key)?;
        let found = match value {
            Value::Array(values) => values.len() as u64,
            Value::Counted { len } => *len,
            _ => u64::from(block_count),
        };
        if found != u64::from(block_count) {
            let key = self.full(key);
            self.errors.push(Error::WrongLength { key, expected: block_count, found });
            return None;
        }
        let narrow = |value: &Value| integer(value).and_then(|n| u32::try_from(n).ok());
        let layers = match value {
            Value::Array(values) => values.iter().map(narrow).collect(),
            scalar => narrow(scalar).map(|n| vec![n; block_count as usize]),
        };
        if layers.is_none() {
            self.refuse(key, value);
        }
        layers
    }

    /// `expert_count` and `expert_used_count`, held to llama.cpp's limits.
    fn experts(&mut self, block_count: u32) -> (u32, Vec<u32>) {
        let none = vec![0; block_count as usize];
        let stated = self.scalar("expert_count").unwrap_or(0);
        let mut count = self.in_range("expert_count", stated, 0, MAX_EXPERTS);
        let mut used = self.per_layer("expert_used_count", block_count).unwrap_or_else(|| none.clone());
        if self.hparams.arch().one_expert_is_dense && count <= 1 {
            (count, used) = (0, none);
        }
        let most = used.iter().copied().max().unwrap_or(0);
        if block_count > 0 && most < u32::from(count > 0) && self.hparams.value("expert_used_count").is_none() {
            let key = self.full("expert_used_count");
            self.errors.push(Error::Missing { key });
        } else if block_count > 0 && !(u32::from(count > 0)..=count).contains(&most) {
            let key = self.full("expert_used_count");
            self.errors.push(Error::OutOfRange { key, found: most, low: u32::from(count > 0), high: count });
        }
        (count, used)
    }

    fn vocab_size(&mut self) -> u32 {
        let tokens = match self.hparams.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Counted { len }) => u32::try_from(*len).ok(),
            Some(Value::Array(values)) => u32::try_from(values.len()).ok(),
            _ => None,
        };
        tokens.or_else(|| self.scalar("vocab_size")).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(keys: &[(&str, Value)]) -> (HParams, Vec<String>) {
        let base = [
            ("x.context_length", 4096),
            ("x.embedding_length", 64),
            ("x.block_count", 3),
            ("x.attention.head_count", 4),
        ];
        let mut metadata: Metadata =
            base.into_iter().map(|(key, value)| (key.to_string(), Value::U64(value))).collect();
        for (key, value) in keys {
            metadata.insert(format!("x.{key}").replace("x.!", ""), value.clone());
        }
        let (hparams, errors) = HParams::read("x", &metadata);
        (hparams, errors.iter().map(ToString::to_string).collect())
    }

    fn array(values: &[u64]) -> Value {
        Value::Array(values.iter().map(|n| Value::U64(*n)).collect())
    }

    #[test]
    fn defaults_follow_the_loader() {
        let (hparams, errors) = read(&[]);
        assert_eq!(errors, [""; 0]);
        assert_eq!((hparams.key_length, hparams.value_length, hparams.key_length_swa), (16, 16, 16));
        assert_eq!((hparams.head_count_kv, hparams.feed_forward_length), (vec![4; 3], vec![0; 3]));
        assert_eq!((hparams.expert_count, hparams.expert_used_count, hparams.vocab_size), (0, vec![0; 3], 0));
    }

    #[test]
    fn arrays_are_by_layer_and_the_first_head_count_gives_the_head_size() {
        let (hparams, errors) = read(&[
            ("attention.head_count", array(&[8, 4, 4])),
            ("attention.head_count_kv", array(&[0, 2, 2])),
            ("attention.value_length", Value::I64(24)),
            ("attention.key_length_swa", Value::U64(32)),
            ("!tokenizer.ggml.tokens", Value::Counted { len: 999 }),
            ("vocab_size", Value::U64(7)),
            ("pattern", Value::Array(vec![Value::Bool(true), Value::Bool(false)])),
        ]);
        assert_eq!(errors, [""; 0]);
        assert_eq!((hparams.key_length, hparams.value_length), (8, 24));
        assert_eq!((hparams.key_length_swa, hparams.value_length_swa), (32, 24));
        assert_eq!((&hparams.head_count_kv, hparams.vocab_size), (&vec![0, 2, 2], 999));
        assert_eq!(hparams.u32_per_layer("pattern"), Some(vec![1, 0]));
    }

    #[test]
    fn what_llama_cpp_refuses_names_its_key() {
        for (key, value, says) in [
            ("block_count", Value::U64(513), "key `x.block_count` is 513: llama.cpp takes 1 to 512"),
            (
                "block_count",
                Value::String("3".into()),
                "key `x.block_count` is text, not a whole number of at most 32 bits",
            ),
            ("nextn_predict_layers", Value::U64(4), "key `x.nextn_predict_layers` is 4: llama.cpp takes 0 to 3"),
            ("expert_count", Value::U64(1025), "key `x.expert_count` is 1025: llama.cpp takes 0 to 1024"),
            ("expert_count", Value::U64(8), "key `x.expert_used_count` is missing"),
            ("expert_used_count", Value::U64(8), "key `x.expert_used_count` is 8: llama.cpp takes 0 to 0"),
            ("attention.head_count", array(&[1, 2]), "key `x.attention.head_count` has 2 values for 3 blocks"),
            ("feed_forward_length", Value::F64(0.5), "key `x.feed_forward_length` is the fraction 0.5"),
            ("context_length", Value::U64(1 << 40), "key `x.context_length` is 1099511627776"),
            ("context_length", Value::I64(-1), "key `x.context_length` is -1"),
        ] {
            let (_, errors) = read(&[(key, value)]);
            assert!(errors.len() == 1 && errors[0].starts_with(says), "{key}: {errors:?}");
        }
        let (_, errors) = HParams::read("x", &Metadata::new());
        assert_eq!(errors.len(), 3, "{errors:?}");
    }
}
