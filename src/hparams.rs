//! Hyper-parameters: what the `<arch>.*` keys say, read as llama.cpp's loader reads them (`model::load`).
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

use crate::arch::Arch;
use crate::gguf::{Metadata, Value};

/// llama.cpp's `LLAMA_MAX_LAYERS` (`src/llama-hparams.h`, b11434).
pub const MAX_BLOCKS: u32 = 512;
/// llama.cpp's `LLAMA_MAX_EXPERTS` (`src/llama-hparams.h`, b11434).
pub const MAX_EXPERTS: u32 = 1024;

/// The keys that every architecture shares, typed; the others through [`HParams::u64`] and its siblings.
#[derive(Debug, Clone, Default)]
pub struct HParams {
    /// `general.architecture`: the prefix of the keys.
    pub architecture: String,
    /// `block_count`, NextN blocks included; 0 where llama.cpp would refuse it.
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
    /// `expert_used_count`, one a block.
    pub expert_used_count: Vec<u32>,
    /// All metadata, for the keys that one architecture alone has.
    pub metadata: Metadata,
}

impl HParams {
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
        self.block_count.saturating_sub(self.nextn_predict_layers)
    }
}
