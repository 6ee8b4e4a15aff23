//! Architectures as records: what tells one from another, a row each. Adding one is a row of `arch/table.rs`, its loader rules
//! (`rules/loader/NAME.txt`), a builder in `memory/graph/models` if its graph is its own, and a row of truth.
//!
//! Source: `src/llama-arch.cpp` (`LLM_ARCH_NAMES` and the switches over `llm_arch`), `src/models/*.cpp`, llama.cpp b11434.
//! What `load_arch_hparams` reads from keys (windows, recurrent layers, indexers, widths of states) is in the loader rules.

mod table;

pub use table::Graph;

/// One architecture.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Arch {
    /// `general.architecture`, the prefix of its keys.
    pub name: &'static str,
    /// The build that brought it, where b11434 does not know it.
    pub since: u32,
    /// The architecture whose loader rules it has, where they are not its own.
    pub loads_as: Option<&'static str>,
    /// The role rules (YAML) that are asked before the general ones.
    pub roles: Option<&'static str>,
    pub memory: Memory,
    /// Recurrent states can be undone (`llm_arch_supports_rs_rollback`).
    pub rollback: bool,
    pub nextn: NextN,
    /// What a NextN block that is left out loads all the same: created without llama.cpp's skip flag.
    pub nextn_anyway: &'static [&'static str],
    /// NextN blocks have rope factors even when they are left out.
    pub nextn_rope: bool,
    pub output: Output,
    /// `token_embd_norm` is the norm of the output (lfm2), not of block 0.
    pub embd_norm_is_output: bool,
    /// Rope factors are created for blocks with full attention only.
    pub rope_on_full_attention: bool,
    /// `per_layer_token_embd` may stay in the mapped file (`TENSOR_READ_LAZY`).
    pub lazy_rows: bool,
    pub mix: Mix,
    /// When llama.cpp takes it for a model of 70B (`LLM_TYPE_70B`).
    pub is_70b: Is70B,
    /// Batches are tokens or vectors, never both (`llm_arch_supports_mixed_batch`).
    pub unmixed: bool,
    /// Batches may hold as many output rows as tokens, whatever the program asks for (`llama_model_has_encoder`).
    pub has_encoder: bool,
    /// What of its layers a draft model may read (`t_layer_inp`).
    pub layer_inputs: LayerInputs,
    /// Positions by token.
    pub positions: Positions,
    /// Which layers turn by factors of the file (`get_rope_factors`), where it has them.
    pub rope_factors: RopeFactors,
    /// A launch reserves its prompts' graph for one sequence too, whose decay grows with its tokens squared
    /// (`src/llama-context.cpp` `sched_reserve`, TAG_RESERVE_DIAG_DECAY).
    pub reserves_one_sequence: bool,
    /// Scores are squashed and attention is never one operation (grok).
    pub squashed: bool,
    /// Whether `-sm tensor` has it (`src/llama-arch.cpp` `llm_arch_supports_sm_tensor`).
    pub splits_tensors: bool,
    /// Queries, keys and values are held to `attention.clamp_kqv`.
    pub clamps_qkv: bool,
    /// They are products of the weights alone: biases and scales are not read.
    pub raw_qkv: bool,
    /// Which scales of NVFP4 weights are applied (`ffn_up_exps_s` and its like).
    pub scales: Scales,
    /// `swiglu_clamp_exp` and `swiglu_clamp_shexp` act in the operation that multiplies gate and up.
    pub fused_clamps: FusedClamps,
    pub routing: Routing,
    /// `ffn_down_exps` asks for F32 sources (`ggml_prec_set_src`).
    pub precise_down: bool,
    /// ik_llama.cpp keeps latents for it (`llama_kv_cache_init`: `is_mla_attn`).
    pub mla: bool,
    pub graph: Graph,
}

/// llama.cpp's class of memory (`llama_model::create_memory`); a window makes `Kv` and `Hybrid` those of two caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    None,
    Kv,
    /// That of the target (`ctx_other`).
    Target,
    /// `llm_arch_is_recurrent`.
    Recurrent,
    /// `llm_arch_is_hybrid`.
    Hybrid(Kept),
    /// Hybrid, with an indexer in `all` attention layers, where the model has one, or in those that say so.
    HybridIdx {
        all: bool,
    },
    Dsa,
    /// [`Self::Dsa`] where `attention.indexer.top_k` is above 0, else [`Self::Kv`].
    DsaIfIndexed,
    DsaIswa,
    Msa,
    Dsv4,
}

/// Which layers of a hybrid keep keys, and which a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Keys where the layer is not recurrent, NextN blocks included.
    NotRecurrent,
    /// The same, in the trunk only.
    InTrunk,
    /// Either, where the layer has no feed-forward part.
    WithoutFfn,
    Both,
}

/// The hidden states between layers that `llama_set_embeddings_layer_inp` can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerInputs {
    None,
    /// What goes into each layer.
    All,
    /// That, and what comes out of the last one.
    WithOutput,
}

/// When NextN (MTP) blocks are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextN {
    Always,
    WithMtp,
    Never,
}

/// The output matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Its own, else the token embedding.
    Tied,
    /// The same, created before the token embedding, which is then created again.
    TiedFirst,
    /// Its own, which is created twice where the file has no token embedding.
    OrEmbedding,
    None,
}

/// What llama-quantize, or the converter, does for an architecture alone (`src/llama-quant.cpp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    Usual,
    BailingMoe3,
    Falcon,
    Glm5Next,
    /// The published experts are MXFP4 already, and stay so.
    GptOss,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is70B {
    Never,
    /// With so many layers.
    Layers(u64),
    /// With 80 layers, grouped heads and not 8 experts (llama).
    Grouped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    One,
    /// Four, by sections (M-RoPE and its interleaved kind).
    Sections,
    /// By sections where `rope.dimension_sections` is stated.
    IfStated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeFactors {
    No,
    All,
    FullAttention,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scales {
    pub experts: bool,
    pub dense: bool,
    pub shared: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedClamps {
    No,
    Experts,
    /// Shared experts too; without a clamp of their own they have the experts'.
    Shared,
}

/// What chooses experts, and when their weights are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    Usual,
    /// The sigmoid of the logits chooses (grovemoe).
    Sigmoid,
    /// The logits choose, and the weights multiply the experts' input (llama4).
    WeighsInput,
}

impl Arch {
    /// What most are; also what is taken of an architecture that llama.cpp does not know.
    pub const PLAIN: Self = Self {
        name: "",
        since: 0,
        loads_as: None,
        roles: None,
        memory: Memory::Kv,
        rollback: false,
        nextn: NextN::Always,
        nextn_anyway: &[],
        nextn_rope: false,
        output: Output::Tied,
        embd_norm_is_output: false,
        rope_on_full_attention: false,
        lazy_rows: false,
        mix: Mix::Usual,
        is_70b: Is70B::Never,
        unmixed: false,
        has_encoder: false,
        layer_inputs: LayerInputs::None,
        positions: Positions::One,
        rope_factors: RopeFactors::No,
        reserves_one_sequence: false,
        squashed: false,
        splits_tensors: true,
        clamps_qkv: false,
        raw_qkv: false,
        scales: Scales { experts: false, dense: false, shared: false },
        fused_clamps: FusedClamps::No,
        routing: Routing::Usual,
        precise_down: false,
        mla: false,
        graph: Graph::None,
    };

    /// Every architecture that llama.cpp b11434 knows, and later ones, by name.
    pub const ALL: &'static [Self] = table::ARCHITECTURES;

    /// The record of a name, where a llama.cpp knows it.
    pub fn named(name: &str) -> Option<&'static Self> {
        let at = Self::ALL.binary_search_by(|arch| arch.name.cmp(name)).ok()?;
        Self::ALL.get(at)
    }

    /// The record of a name, or the plain one.
    pub fn of(name: &str) -> &'static Self {
        static UNKNOWN: Arch = Arch::PLAIN;
        Self::named(name).unwrap_or(&UNKNOWN)
    }

    /// The record of a name, where this build of llama.cpp knows it.
    pub fn known_to(build: u32, name: &str) -> Option<&'static Self> {
        Self::named(name).filter(|arch| arch.since <= build)
    }

    /// Whether compute memory can be counted.
    pub fn has_graph(&self) -> bool {
        !matches!(self.graph, Graph::None)
    }
}

/// How a norm works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    Layer,
    Rms,
}

/// What a feed-forward part does between its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Silu,
    Gelu,
    Relu,
    /// The square of the positive part, without gate.
    ReluSqr,
    SwigluOai,
    /// kimi-k3's squashed product.
    Situ,
    /// The first half of one matrix gates the second.
    SwigluFused,
}

/// How a router's logits become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    Softmax,
    Sigmoid,
    /// Softmax over the chosen experts only.
    SoftmaxWeight,
    SqrtSoftplus,
}

/// Which layers turn queries and keys by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rope {
    All,
    Never,
    Windows,
    /// Those with a window; all where none has one.
    WindowsIfAny,
    /// Those with a window and the leading dense ones.
    WindowsOrLead,
    /// All but each `n`th, `n` given here.
    SkipEvery(u32),
    /// All, in models of this many layers.
    IfLayers(u32),
}

/// Where queries and keys are normed, if the model has the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Head by head, before they are turned.
    Before,
    After,
    /// All heads as one row, before.
    Flat,
    /// Not even where there are weights.
    Never,
}

/// What of the input a layer normalises before attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pre {
    Weighted,
    Bare,
    Raw,
}

/// What happens to the rows before the first layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Plain,
    Scaled,
    Normed,
}

/// How attention and feed-forward part come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    Sequential,
    /// The feed-forward part reads attention's input; sums with the residual first.
    Parallel,
    /// The same; sums with attention's result first.
    ParallelAttnFirst,
    /// The same, the feed-forward part added to attention's result.
    ParallelOntoAttn,
    /// Parallel where `use_parallel_residual` says so.
    ParallelIfStated,
}

/// When the rows to put out are picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    Early,
    BeforeNorm,
    AfterNorm,
    Never,
}

/// Whether the weights of the chosen experts are made to add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormW {
    Always,
    Never,
    /// `expert_weights_norm`.
    Stated,
}

/// What happens to the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    Plain,
    /// Multiplied where `logit_scale` is not 0.
    Scaled,
    /// Squashed by `final_logit_softcapping`, where it is not 0.
    Capped,
    ScaledCapped,
}

/// Whether scores fall with distance (`f_max_alibi_bias`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alibi {
    No,
    Always,
    /// Where `attention.max_alibi_bias` is set.
    IfStated,
}

/// The traits of a plain decoder: attention and feed-forward layers, one after the other.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "independent traits")]
pub struct Spec {
    pub norm: Norm,
    /// Rows wider than the model's come with vectors, and layers add a part of them.
    pub deepstack: bool,
    /// All rows are multiplied by `embedding_scale`, where it is set (granite).
    pub scales_embd: bool,
    /// Token rows are multiplied by a number of their own (gemma).
    pub scales_tokens: bool,
    pub input: Input,
    pub pre: Pre,
    pub rope: Rope,
    pub qk_norm: QkNorm,
    /// Queries are multiplied by a number.
    pub scales_q: bool,
    /// Queries are multiplied by a factor of their position where `attention.temperature_scale` is set.
    pub temperature: bool,
    /// Values attended to are multiplied by `attention.value_scale`, where it is set.
    pub scales_v: bool,
    /// Scores are squashed before the softmax (`attn_soft_cap`).
    pub soft_cap: bool,
    pub alibi: Alibi,
    /// The gate of attention is a softplus (laguna), not a sigmoid.
    pub softplus_gate: bool,
    /// The norm after attention, before the residual is added.
    pub attn_post_norm: Option<&'static str>,
    /// The norm before the feed-forward part; `None`: it has none.
    pub ffn_norm: Option<&'static str>,
    pub ffn_post_norm: Option<&'static str>,
    /// Both parts' results are multiplied by `residual_scale`, where it is set.
    pub scales_residual: bool,
    /// `embedding_scale` and `residual_scale` have values without being stated (minicpm).
    pub has_multipliers: bool,
    pub residual: Residual,
    /// The feed-forward part reads attention's input in layers without a norm of its own (stablelm).
    pub one_norm: bool,
    /// The sum after attention is residual plus attention's result instead of the other way round.
    pub attn_residual_first: bool,
    /// The last sum is residual plus feed-forward part instead of the other way round.
    pub residual_first: bool,
    pub act: Act,
    /// Routers are used, where a layer has one.
    pub has_experts: bool,
    pub gating: Gating,
    /// `expert_gating_func` decides where it is stated.
    pub gating_stated: bool,
    pub norm_w: NormW,
    /// `expert_weights_scale` is applied.
    pub scales_w: bool,
    pub expert_act: Act,
    /// The gate of shared experts is silu ÷ input (qwen2moe), not a sigmoid.
    pub silu_gate: bool,
    /// The sum of routed and shared experts is multiplied by a number.
    pub scales_sum: bool,
    pub pick: Pick,
    pub logits: Logits,
}

/// llama's traits: what most others share.
pub const PLAIN: Spec = Spec {
    norm: Norm::Rms,
    deepstack: false,
    scales_embd: false,
    scales_tokens: false,
    input: Input::Plain,
    pre: Pre::Weighted,
    rope: Rope::All,
    qk_norm: QkNorm::Before,
    scales_q: false,
    temperature: false,
    scales_v: false,
    soft_cap: false,
    alibi: Alibi::No,
    softplus_gate: false,
    attn_post_norm: None,
    ffn_norm: Some("ffn_norm"),
    ffn_post_norm: None,
    scales_residual: false,
    has_multipliers: false,
    residual: Residual::Sequential,
    one_norm: false,
    attn_residual_first: false,
    residual_first: false,
    act: Act::Silu,
    has_experts: true,
    gating: Gating::Softmax,
    gating_stated: false,
    norm_w: NormW::Always,
    scales_w: true,
    expert_act: Act::Silu,
    silu_gate: false,
    scales_sum: false,
    pick: Pick::Early,
    logits: Logits::Plain,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found() {
        assert!(Arch::ALL.is_sorted_by(|a, b| a.name < b.name));
        for arch in Arch::ALL {
            assert_eq!(Arch::named(arch.name).map(|found| found.name), Some(arch.name));
        }
        assert!(Arch::named("gptq9").is_none() && Arch::of("gptq9").name.is_empty());
    }

    #[test]
    fn every_file_of_loader_rules_is_of_an_architecture() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/rules/loader");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap().replace(".txt", "");
            assert!(name == "groups" || Arch::named(&name).is_some_and(|arch| arch.loads_as.is_none()), "{name}");
        }
    }
}
