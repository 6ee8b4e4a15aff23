//! Hyper-parameters: what the `<arch>.*` keys say, read as llama.cpp's loader reads them (`model::load`), of a model and, by layer, of
//! its caches.
//!
//! Source: `src/llama-hparams.h`, `src/llama-model.cpp` (`llama_model_base::load_hparams`), llama.cpp b11434.

use crate::arch::Arch;
use crate::gguf::{Metadata, Value};

/// llama.cpp's `LLAMA_MAX_LAYERS`.
pub const MAX_BLOCKS: u32 = 512;
/// llama.cpp's `LLAMA_MAX_EXPERTS`.
pub const MAX_EXPERTS: u32 = 1024;

/// The keys of a model: typed, those that every architecture shares; the others through [`HParams::u64`] and its siblings.
#[derive(Debug, Clone, Default)]
pub struct HParams {
    /// The prefix of the keys.
    pub architecture: String,
    pub metadata: Metadata,
    /// NextN blocks included; 0 where llama.cpp would refuse it.
    pub block_count: u32,
    /// The last blocks, not loaded without MTP.
    pub nextn_predict_layers: u32,
    /// In tokens (llama.cpp: `n_ctx_train`).
    pub context_length: u32,
    /// llama.cpp: `n_embd`.
    pub embedding_length: u32,
    /// Tokens of the vocabulary: the tokenizer's array, else `vocab_size`.
    pub vocab_size: u32,
    /// 0 for a dense model.
    pub expert_count: u32,
    /// By block.
    pub expert_used_count: Vec<u32>,
    /// `attention.causal` is stated and false.
    pub non_causal: bool,
}

impl HParams {
    pub fn arch(&self) -> &'static Arch {
        Arch::of(&self.architecture)
    }

    /// The value of `<arch>.KEY`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// The scalar integer `<arch>.KEY`; `None` where it is absent, negative or not an integer.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.value(key)?.as_u64()
    }

    /// The scalar integer `<arch>.KEY` as `u32`, or 0.
    pub fn u32_or_0(&self, key: &str) -> u32 {
        self.u64(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    /// Elements of a row of the input, with those of the deepstack layers (llama.cpp: `n_embd_inp()`).
    pub fn n_embd_inp(&self) -> u64 {
        let n_deepstack = match self.value("deepstack_mapping") {
            Some(Value::Array(layers)) => {
                let number = |value: &Value| value.as_u64();
                layers.iter().filter_map(number).collect::<std::collections::BTreeSet<_>>().len() as u64
            }
            _ => self.u32_or_0("n_deepstack_layers").into(),
        };
        u64::from(self.embedding_length).saturating_mul(n_deepstack.saturating_add(1))
    }

    /// `block_count` less the NextN blocks (llama.cpp: `n_layer()`).
    pub fn n_layer(&self) -> u32 {
        self.block_count.saturating_sub(self.nextn_predict_layers)
    }
}

/// llama.cpp's hyper-parameters of the memory, resolved (`llama_hparams`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContextHParams {
    /// By layer, NextN and router layers included (`n_layer_all`); loops of the same blocks are unrolled.
    pub layers: Vec<LayerHParams>,
    /// The layers of the trunk (`n_layer()`): the first ones.
    pub n_layer: u32,
    /// Whether the last layer is a router's own (graniteswitch) instead of a NextN block.
    pub has_router_layer: bool,
    /// The sliding window in tokens and its kind; `None` where no layer has one.
    pub swa: Option<Swa>,
    /// Whether keys and values share one latent row, so that no V is stored.
    pub is_mla: bool,
    /// Only the first layers own keys and values, the others reuse theirs (gemma3n, gemma4).
    pub n_layer_kv_from_start: Option<u32>,
    /// `leading_dense_block_count`.
    pub n_layer_dense_lead: u32,
    /// `attention.indexer.key_length`: the width of an indexer's key.
    pub indexer_head_size: u32,
    /// `attention.indexer.top_k`.
    pub indexer_top_k: u32,
    /// Rows of an indexer's width kept by token (key, gate, pooled).
    pub indexer_rows: u32,
    /// F32 elements of a convolution state by layer and sequence (`n_embd_r`).
    pub n_embd_r: u64,
    /// F32 elements of a recurrent state by layer and sequence (`n_embd_s`).
    pub n_embd_s: u64,
    /// F32 elements of the n-gram embedding's history by sequence (qwen4exp).
    pub ple_conv_state: u64,
}

/// One layer's share of [`ContextHParams`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a layer, as llama_hparams keeps them")]
pub struct LayerHParams {
    /// `attention.head_count`.
    pub n_head: u32,
    /// `attention.head_count_kv`.
    pub n_head_kv: u32,
    /// Elements of one key head here (`n_embd_head_k(il)`).
    pub n_embd_head_k: u32,
    /// Elements of one value head here (`n_embd_head_v(il)`).
    pub n_embd_head_v: u32,
    pub is_swa: bool,
    pub is_recr: bool,
    /// Has no feed-forward part (`n_ff(il) == 0`).
    pub no_ffn: bool,
    /// Has an indexer of its own.
    pub is_indexer_full: bool,
    /// deepseek4's compression of this layer's keys; 0 = none.
    pub compress_ratio: u32,
    /// Keeps the n-gram embedding's history (qwen4exp).
    pub is_ple: bool,
}

/// A sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swa {
    /// Tokens (`n_swa`).
    pub n_swa: u32,
    /// Chunks of `n_swa` instead of a moving window (llama4).
    pub chunked: bool,
}

impl ContextHParams {
    /// How many layers in all, as `u32` (`n_layer_all`).
    pub fn n_layer_all(&self) -> u32 {
        // At most `MAX_BLOCKS`.
        u32::try_from(self.layers.len()).unwrap_or(u32::MAX)
    }
}
