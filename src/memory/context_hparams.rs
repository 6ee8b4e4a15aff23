//! What of a model's hyper-parameters shapes its caches, by layer: windows, recurrence, head sizes, indexers.
//!
//! Source: `src/models/*.cpp` `load_arch_hparams`, `src/llama-hparams.cpp`, llama.cpp b11434.

use crate::gguf::Value;
use crate::hparams::{self, HParams};
use crate::model::Model;

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
    /// Attends to a window only.
    pub is_swa: bool,
    /// Has a recurrent state.
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

/// When an architecture has a window, and how wide.
#[derive(Clone, Copy)]
enum Window {
    /// Always; `attention.sliding_window`, else this.
    Or(u32),
    /// Where `attention.sliding_window` is above 0.
    Positive,
    /// This width, where `attention.sliding_window` is above 0.
    FixedIfPositive(u32),
    /// This width in chunks, unless `attention.sliding_window` is 0.
    ChunkedUnlessZero(u32),
    /// This width or `attention.sliding_window`, in models of exactly this many layers.
    OrIfLayers(u32, u32),
}

/// Which layers attend to the window only.
#[derive(Clone, Copy)]
enum Pattern {
    /// `attention.sliding_window_pattern`, else all but each `n`th layer.
    Every(u32),
    /// `attention.sliding_window_pattern`, else all but the first of each `n` layers.
    DenseFirst(u32),
    /// The array `attention.sliding_window_pattern`.
    Array,
    /// Every layer that is not recurrent.
    NotRecurrent,
    /// Every layer, NextN blocks included.
    All,
}

/// One row an architecture with windows (`grep swa_type src/models`, b11434).
const WINDOWS: &[(&str, Window, Pattern)] = &[
    ("afmoe", Window::Positive, Pattern::Every(4)),
    ("cohere2", Window::Or(0), Pattern::Every(4)),
    ("cohere2moe", Window::Or(0), Pattern::DenseFirst(4)),
    ("deepseek4", Window::Or(0), Pattern::All),
    ("dflash", Window::Positive, Pattern::Array),
    ("dots3note", Window::Or(0), Pattern::Array),
    ("exaone-moe", Window::Or(128), Pattern::Every(4)),
    ("exaone4", Window::OrIfLayers(4096, 64), Pattern::Every(4)),
    ("gemma2", Window::Or(4096), Pattern::Every(2)),
    ("gemma3", Window::Positive, Pattern::Every(6)),
    ("gemma3n", Window::Or(0), Pattern::Every(5)),
    ("gemma4", Window::Or(0), Pattern::Array),
    ("gpt-oss", Window::Or(0), Pattern::Every(2)),
    ("granite_swa", Window::Or(0), Pattern::Array),
    ("laguna", Window::Positive, Pattern::DenseFirst(4)),
    ("lfm2", Window::Positive, Pattern::NotRecurrent),
    ("llama4", Window::ChunkedUnlessZero(8192), Pattern::Every(4)),
    ("maple", Window::Or(0), Pattern::Array),
    ("mellum", Window::Positive, Pattern::Every(4)),
    ("mimo2", Window::Or(0), Pattern::Array),
    ("muse-glimmer", Window::Or(0), Pattern::Every(4)),
    ("olmo2", Window::Positive, Pattern::Every(4)),
    ("plamo3", Window::Positive, Pattern::Every(8)),
    ("smallthinker", Window::FixedIfPositive(4096), Pattern::DenseFirst(4)),
    ("spark2_5", Window::Or(0), Pattern::Array),
    ("step35", Window::Or(0), Pattern::Array),
];

/// Which layers are recurrent.
#[derive(Clone, Copy)]
enum Recurrence {
    /// Every layer.
    All,
    /// Layers of the trunk without key/value heads.
    NoKvHeads,
    /// Layers without key/value heads, NextN blocks included.
    NoKvHeadsAll,
    /// Layers of the trunk with neither key/value heads nor a feed-forward part.
    NoKvHeadsNoFfn,
    /// `attention.recurrent_layers`, else all but each `n`th layer, `n` = `full_attention_interval` or this.
    Interval(u32),
}

/// One row an architecture with recurrent layers (`grep is_recr_impl src/models`, b11434).
const RECURRENCES: &[(&str, Recurrence)] = &[
    ("mamba", Recurrence::All),
    ("mamba2", Recurrence::All),
    ("rwkv6", Recurrence::All),
    ("rwkv6qwen2", Recurrence::All),
    ("rwkv7", Recurrence::All),
    ("arwkv7", Recurrence::All),
    ("falcon-h1", Recurrence::All),
    ("jamba", Recurrence::NoKvHeads),
    ("plamo2", Recurrence::NoKvHeads),
    ("granitehybrid", Recurrence::NoKvHeads),
    ("lfm2", Recurrence::NoKvHeads),
    ("lfm2moe", Recurrence::NoKvHeads),
    ("kimi-linear", Recurrence::NoKvHeads),
    ("kimi-k3", Recurrence::NoKvHeads),
    ("bailingmoe3", Recurrence::NoKvHeads),
    ("glm5-next", Recurrence::NoKvHeadsAll),
    ("nemotron_h", Recurrence::NoKvHeadsNoFfn),
    ("nemotron_h_moe", Recurrence::NoKvHeadsNoFfn),
    ("qwen3next", Recurrence::Interval(4)),
    ("qwen35", Recurrence::Interval(4)),
    ("qwen35moe", Recurrence::Interval(4)),
    ("qwen4exp", Recurrence::Interval(4)),
    ("minimax-01", Recurrence::Interval(8)),
];

impl ContextHParams {
    /// The hyper-parameters of `model`'s caches.
    pub fn of(model: &Model) -> Self {
        let hparams = &model.hparams;
        let mut resolved = Self {
            n_layer: trunk(model),
            is_mla: hparams.u32_or_0("attention.key_length_mla") != 0
                && hparams.u32_or_0("attention.value_length_mla") != 0,
            n_layer_dense_lead: hparams.u32_or_0("leading_dense_block_count"),
            indexer_head_size: hparams.u32_or_0("attention.indexer.key_length"),
            indexer_top_k: hparams.u32_or_0("attention.indexer.top_k"),
            ..Self::default()
        };
        resolved.layers = (0..hparams.block_count).map(|il| heads(hparams, il as usize)).collect();
        resolved.unroll(hparams);
        resolved.n_layer_kv_from_start = match hparams.architecture.as_str() {
            "gemma3n" => Some(20),
            // Where more share than there are, no layer owns keys, and the graph is refused.
            "gemma4" => Some(hparams.block_count.saturating_sub(hparams.u32_or_0("attention.shared_kv_layers"))),
            _ => None,
        };
        resolved.mark_recurrent(hparams);
        resolved.mark_windows(hparams);
        resolved.mark_indexers(hparams);
        resolved.size_heads(hparams);
        resolved.size_states(hparams);
        resolved
    }

    /// How many layers in all, as `u32` (`n_layer_all`).
    pub fn n_layer_all(&self) -> u32 {
        // At most `hparams::MAX_BLOCKS`.
        u32::try_from(self.layers.len()).unwrap_or(u32::MAX)
    }

    /// Repeats the blocks that a model runs several times (nanbeige), adds the router's layer (graniteswitch).
    fn unroll(&mut self, hparams: &HParams) {
        let n_layer_all = hparams.n_layer_all() as usize;
        if hparams.architecture == "nanbeige" {
            let once = self.layers.clone();
            self.layers = once.into_iter().cycle().take(n_layer_all).collect();
            self.n_layer = self.n_layer_all();
        }
        if hparams.architecture == "graniteswitch" {
            self.layers.truncate(self.n_layer as usize);
            self.layers.push(LayerHParams { n_head: 1, n_head_kv: 1, no_ffn: true, ..LayerHParams::default() });
            self.has_router_layer = true;
        }
    }

    fn mark_recurrent(&mut self, hparams: &HParams) {
        let Some((_, law)) = RECURRENCES.iter().find(|(name, _)| *name == hparams.architecture) else { return };
        let stated = flags(hparams, "attention.recurrent_layers");
        let interval = hparams.u64("full_attention_interval");
        for (il, layer) in (0u32..).zip(&mut self.layers) {
            let in_trunk = il < self.n_layer;
            layer.is_recr = match *law {
                Recurrence::All => true,
                Recurrence::NoKvHeads => in_trunk && layer.n_head_kv == 0,
                Recurrence::NoKvHeadsAll => layer.n_head_kv == 0,
                Recurrence::NoKvHeadsNoFfn => in_trunk && layer.n_head_kv == 0 && layer.no_ffn,
                Recurrence::Interval(default) => match &stated {
                    Some(stated) => stated.get(il as usize).copied().unwrap_or(false),
                    None => in_trunk && !u64::from(il + 1).is_multiple_of(interval.unwrap_or(default.into()).max(1)),
                },
            };
        }
    }

    fn mark_windows(&mut self, hparams: &HParams) {
        let Some((_, window, pattern)) = WINDOWS.iter().find(|(name, ..)| *name == hparams.architecture) else {
            return;
        };
        // A window past 32 bits is the whole context, as any wide one is.
        let stated = hparams.u64("attention.sliding_window").map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let n_swa = match *window {
            Window::Or(default) => Some(stated.unwrap_or(default)),
            Window::Positive => stated.filter(|n| *n > 0),
            Window::FixedIfPositive(n) => stated.filter(|n| *n > 0).map(|_| n),
            Window::ChunkedUnlessZero(n) => (stated != Some(0)).then_some(n),
            Window::OrIfLayers(default, n_layer) => (self.n_layer == n_layer).then_some(stated.unwrap_or(default)),
        };
        let Some(n_swa) = n_swa else { return };
        self.swa = Some(Swa { n_swa, chunked: matches!(window, Window::ChunkedUnlessZero(_)) });
        let key = "attention.sliding_window_pattern";
        let array = matches!(hparams.value(key), Some(Value::Array(_))).then(|| flags(hparams, key)).flatten();
        let every = hparams.u64(key);
        for (il, layer) in (0u32..).zip(&mut self.layers) {
            let in_trunk = il < self.n_layer;
            let stated = || array.as_ref().map(|a| a.get(il as usize).copied().unwrap_or(false));
            let il = u64::from(il);
            layer.is_swa = match *pattern {
                Pattern::Every(default) => stated().unwrap_or_else(|| {
                    let n = every.unwrap_or(default.into());
                    in_trunk && (n == 0 || il % n < n - 1)
                }),
                Pattern::DenseFirst(default) => stated().unwrap_or_else(|| {
                    let n = every.unwrap_or(default.into());
                    in_trunk && (n == 0 || il % n != 0)
                }),
                Pattern::Array => stated().unwrap_or(false),
                Pattern::NotRecurrent => in_trunk && !layer.is_recr,
                Pattern::All => true,
            };
        }
    }

    fn mark_indexers(&mut self, hparams: &HParams) {
        let stated = flags(hparams, "attention.indexer.types");
        let ratios = hparams.u32_per_layer("attention.compress_ratios").unwrap_or_default();
        let architecture = hparams.architecture.as_str();
        // GLM 5 and 5.1 have an indexer in every layer, GLM 5.2 in layers 0, 1, 2, 6, 10 … 74 (glm-dsa.cpp, b11434).
        let glm_5_2 = hparams.context_length >= 1 << 20;
        for (il, layer) in (0usize..).zip(&mut self.layers) {
            let stated = stated.as_ref().map(|stated| stated.get(il).copied().unwrap_or(false));
            layer.is_indexer_full = match architecture {
                // The key is there, but nobody reads it: every layer has an indexer.
                "deepseek32" => true,
                "glm-dsa" => stated.unwrap_or(!glm_5_2 || il < 2 || (il % 4 == 2 && il <= 74)),
                "glm5-next" => stated.unwrap_or(true),
                _ => stated.unwrap_or(false),
            };
            layer.compress_ratio = ratios.get(il).copied().unwrap_or(0);
        }
        // Pooled indexers keep more than the key by token: glm5-next key, gate and pool, qwen4exp key and pool.
        self.indexer_rows = match architecture {
            "glm5-next" if hparams.u32_or_0("attention.indexer.kpool") > 0 => 3,
            "qwen4exp" if ratios.iter().any(|r| *r > 0) => 2,
            _ => 1,
        };
    }

    fn size_heads(&mut self, hparams: &HParams) {
        let has_heads = self.layers.first().is_some_and(|l| l.n_head > 0);
        let architecture = hparams.architecture.as_str();
        let full = |key: &str, typed: u32| match architecture {
            // plamo2 reads its key sizes even where layer 0 has no heads.
            "plamo2" if !has_heads => hparams.u32_or_0(key),
            _ if has_heads => typed,
            _ => 0,
        };
        let k = full("attention.key_length", hparams.key_length);
        let v = full("attention.value_length", hparams.value_length);
        // Heads past 32 bits are refused with the row or the graph that they make.
        let swa = |key: &str, full: u32| hparams.u64(key).map_or(full, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let k_swa = swa("attention.key_length_swa", k);
        let v_swa = swa("attention.value_length_swa", v);
        // The MLA cache of these holds the latent.
        let latent = matches!(architecture, "kimi-k3" | "glm5-next");
        let v = if latent { hparams.u32_or_0("attention.kv_lora_rank") } else { v };
        for layer in &mut self.layers {
            layer.n_embd_head_k = if layer.is_swa { k_swa } else { k };
            layer.n_embd_head_v = if layer.is_swa { v_swa } else { v };
        }
    }

    /// `n_embd_r`, `n_embd_s` and `ple_conv_state` of `src/llama-hparams.cpp`. Widths past 64 bits saturate: `Cache::tensors`
    /// refuses rows that long.
    fn size_states(&mut self, hparams: &HParams) {
        let get = |key: &str| u64::from(hparams.u32_or_0(key));
        let n_embd = u64::from(hparams.embedding_length);
        let n_head = self.layers.first().map_or(0, |l| u64::from(l.n_head));
        let conv = get("ssm.conv_kernel");
        // Each key is read by these architectures alone (`load_arch_hparams` of `src/models/*.cpp`, b11434).
        let (wkv, shortconv, kda) = match hparams.architecture.as_str() {
            "rwkv6" | "rwkv6qwen2" | "rwkv7" | "arwkv7" => (get("wkv.head_size"), 0, 0),
            "lfm2" | "lfm2moe" => (0, get("shortconv.l_cache"), 0),
            "bailingmoe3" | "glm5-next" | "kimi-linear" | "kimi-k3" => (0, 0, get("kda.head_dim")),
            _ => (0, 0, 0),
        };
        let d_inner = get("ssm.inner_size");
        let d_state = get("ssm.state_size");
        // mamba and jamba never read the group count.
        let grouped = !matches!(hparams.architecture.as_str(), "mamba" | "jamba");
        let n_group = if grouped { get("ssm.group_count") } else { 0 };
        let linear = hparams.architecture == "minimax-01";
        self.n_embd_r = if wkv != 0 {
            hparams.u64("token_shift_count").unwrap_or(2).saturating_mul(n_embd)
        } else if shortconv != 0 {
            n_embd * (shortconv - 1)
        } else if kda != 0 {
            (3 * conv.checked_sub(1).unwrap_or(3)).saturating_mul(n_head * kda)
        } else {
            // Without the key there is no convolution.
            conv.saturating_sub(1).saturating_mul((n_group * d_state).saturating_mul(2).saturating_add(d_inner))
        };
        self.n_embd_s = if wkv != 0 {
            n_embd * wkv
        } else if kda != 0 {
            (kda * kda).saturating_mul(n_head)
        } else if linear {
            let head = u64::from(hparams.key_length);
            (head * head).saturating_mul(n_head)
        } else {
            d_state * d_inner
        };
        self.size_ple(hparams);
    }

    fn size_ple(&mut self, hparams: &HParams) {
        let Some(layers) = hparams.u32_per_layer("ple.layers").filter(|_| hparams.architecture == "qwen4exp") else {
            return;
        };
        let get = |key: &str| u64::from(hparams.u32_or_0(key));
        let (kernel, ngram) = (get("ple.conv_kernel"), get("ple.ngram_size"));
        let has_heads = ngram > 1 && get("ple.heads_per_ngram") > 0;
        if !has_heads || kernel == 0 {
            return;
        }
        let wide = get("hyper_connection.count").saturating_mul(u64::from(hparams.embedding_length));
        self.ple_conv_state = (kernel - 1).saturating_mul(ngram).saturating_mul(wide);
        for il in layers {
            if let Some(layer) = self.layers.get_mut(il as usize) {
                layer.is_ple = true;
            }
        }
    }
}

/// The layers of the trunk: deepseek4 files may state NextN blocks that they do not hold.
fn trunk(model: &Model) -> u32 {
    let hparams = &model.hparams;
    let n_layer = hparams.n_layer();
    let probe = format!("blk.{n_layer}.nextn.eh_proj.weight");
    if hparams.architecture == "deepseek4" && !model.tensors.iter().any(|t| t.name == probe) {
        return hparams.block_count;
    }
    n_layer
}

fn heads(hparams: &HParams, il: usize) -> LayerHParams {
    // They have a value a block.
    let at = |values: &[u32]| values.get(il).copied().unwrap_or(0);
    LayerHParams {
        n_head: at(&hparams.head_count),
        n_head_kv: at(&hparams.head_count_kv),
        no_ffn: at(&hparams.feed_forward_length) == 0,
        ..LayerHParams::default()
    }
}

/// Refuses an array by layer of another length than llama.cpp asks for (`get_key_or_arr` in `src/llama-model-loader.cpp`,
/// b11434). Other arrays may be shorter: layers beyond them have 0 there, as here.
pub fn check(hparams: &HParams) -> Result<(), hparams::Error> {
    let (all, trunk) = (hparams.block_count, hparams.n_layer());
    let arrays: &[(&str, u32)] = match hparams.architecture.as_str() {
        "glm-dsa" | "glm5-next" | "hy_v4" => &[("attention.indexer.types", trunk)],
        "minimax-01" | "qwen35" | "qwen35moe" | "qwen3next" => &[("attention.recurrent_layers", all)],
        "qwen4exp" => &[("attention.recurrent_layers", all), ("attention.compress_ratios", all)],
        _ => &[],
    };
    for (key, expected) in arrays {
        let found = match hparams.value(key) {
            Some(Value::Array(values)) => values.len() as u64,
            Some(Value::Counted { len }) => *len,
            _ => continue,
        };
        if found != u64::from(*expected) {
            let key = format!("{}.{key}", hparams.architecture);
            return Err(hparams::Error::WrongLength { key, expected: *expected, found });
        }
    }
    Ok(())
}

/// An array key as flags, or a scalar one for every layer; `None` where it is absent.
fn flags(hparams: &HParams, key: &str) -> Option<Vec<bool>> {
    hparams.u32_per_layer(key).map(|values| values.iter().map(|n| *n != 0).collect())
}
