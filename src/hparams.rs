//! Hyper-parameters: the `<arch>.*` keys with llama.cpp's names, defaults and per-layer arrays.
//!
//! Source: `src/llama-model.cpp` `llama_model_base::load_hparams`, llama.cpp b11434.

use crate::gguf::{Metadata, Value};

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
    /// The value of `<arch>.KEY`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// The scalar integer `<arch>.KEY`; `None` where it is absent, negative or not an integer.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::U64(n) => Some(*n),
            Value::I64(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The scalar integer `<arch>.KEY` as `u32`, or 0.
    pub fn u32_or_0(&self, key: &str) -> u32 {
        self.u64(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    /// `block_count` less the NextN blocks (llama.cpp: `n_layer()`).
    pub fn n_layer(&self) -> u32 {
        self.block_count - self.nextn_predict_layers.min(self.block_count)
    }
}
