//! What llama.cpp knows of a tensor by its name: which list of buffer types it takes, for which operation, whether it is skipped.
//!
//! Source: `src/llama-arch.cpp` `LLM_TENSOR_INFOS`, `src/models/*.cpp` `load_arch_tensors`, b11434.

use crate::arch::{Arch, NextN, Output};
use crate::model::{Model, Tensor};
use crate::run::{Rules, RunConfig};

/// Which list of buffer types a tensor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Input,
    Output,
    Block(u32),
    /// Created once for each block: a copy in every buffer type that the blocks use.
    EveryBlock,
}

/// The operation that llama.cpp probes a weight with, as far as it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    GetRows,
    MulMat,
    MulMatId,
    Other,
}

/// Names without a block number that llama.cpp gives to block 0.
const OF_BLOCK_0: &[&str] = &[
    "token_embd_norm",
    "per_layer_model_proj",
    "per_layer_proj_norm",
    "hrm.z_l_init",
    "conv1d",
    "nextn.pre_projection",
];
/// Names that are always on the host's list.
const INPUTS: &[&str] = &["token_embd", "position_embd", "token_types", "per_layer_token_embd"];
/// Names created once a block.
const SHARED_BY_BLOCKS: &[&str] = &["rope_freqs", "rope_factors_long", "rope_factors_short"];
/// Names (after the block number) whose rows are looked up.
const LOOKED_UP: &[&str] = &[
    "token_embd",
    "position_embd",
    "token_types",
    "per_layer_token_embd",
    "nextn.embed_tokens",
    "attn_compressor_ape",
    "indexer_compressor_ape",
    "ffn_gate_tid2eid",
    "attn_rel_b",
    "d2t",
    "markov_w1",
    "selector_predecessor",
    "selector_successor",
];
/// Names that llama.cpp loads nothing for (operation NONE).
const UNUSED: &[&str] = &["cross_attn_rel_b", "masked_embd_centroids", "masked_embd_ordering"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pub block: Option<u32>,
    pub base: &'a str,
    pub suffix: &'a str,
}

/// What may follow the last dot of a name; other last words belong to the name (`blk.0.ssm_a`, `hrm.z_l_init`).
const SUFFIXES: &[&str] = &["weight", "bias", "scale", "input_scale"];

/// Takes a name apart: `blk.3.ffn_up_exps.weight` is block 3's `ffn_up_exps`.
pub(super) fn name(full: &str) -> Name<'_> {
    let (stem, suffix) = full.rsplit_once('.').filter(|(_, last)| SUFFIXES.contains(last)).unwrap_or((full, ""));
    for prefix in ["blk.", "enc.blk.", "dec.blk.", "convnext.", "posnet."] {
        let Some((number, base)) = stem.strip_prefix(prefix).and_then(|rest| rest.split_once('.')) else { continue };
        if let Ok(block) = number.parse() {
            return Name { block: Some(block), base, suffix };
        }
    }
    Name { block: None, base: stem, suffix }
}

/// Which list a tensor of an architecture takes.
pub(super) fn class(arch: &Arch, name: Name<'_>, rules: Rules) -> Class {
    let is_output_norm = name.base == "token_embd_norm" && arch.embd_norm_is_output;
    match name.block {
        Some(block) => Class::Block(block),
        None if name.base == "per_layer_token_embd" && !rules.per_layer_rows_on_host => Class::Output,
        None if INPUTS.contains(&name.base) => Class::Input,
        None if SHARED_BY_BLOCKS.contains(&name.base) => Class::EveryBlock,
        None if OF_BLOCK_0.contains(&name.base) && !is_output_norm => Class::Block(0),
        None => Class::Output,
    }
}

pub(super) fn op(name: Name<'_>, tensor: &Tensor) -> Op {
    if name.suffix != "weight" || tensor.shape[1] == 1 {
        Op::Other
    } else if LOOKED_UP.contains(&name.base) {
        Op::GetRows
    } else if name.base.ends_with("_exps") || name.base.ends_with("_chexps") {
        if name.base == "ffn_norm_exps" { Op::Other } else { Op::MulMatId }
    } else {
        Op::MulMat
    }
}

/// Whether llama.cpp leaves a tensor out.
pub(super) fn is_skipped(model: &Model, run: &RunConfig, name: Name<'_>) -> bool {
    let left_out = name.block.is_some_and(|block| is_left_out(model, run, block));
    let arch = model.hparams.arch();
    let anyway = run.rules().nextn_latents.map_or(arch.nextn_anyway, |names| if arch.mla { names } else { &[] });
    UNUSED.contains(&name.base) || (left_out && !anyway.contains(&name.base))
}

/// Whether a block is a NextN block that this launch does not use.
fn is_left_out(model: &Model, run: &RunConfig, block: u32) -> bool {
    let is_used = match model.hparams.arch().nextn {
        NextN::Always => true,
        NextN::WithMtp => run.mtp,
        NextN::Never => false,
    };
    !is_used && block >= model.hparams.n_layer() && block < model.hparams.block_count
}

/// Whether the token embedding serves as the output matrix too.
pub(super) fn is_tied(model: &Model) -> bool {
    let has_output = model.tensors.iter().any(|tensor| tensor.name == "output.weight");
    !has_output && model.hparams.arch().output != Output::None
}

/// Whether a tied output never shares the token embedding's copy.
pub(super) fn output_comes_first(model: &Model, run: &RunConfig) -> bool {
    model.hparams.arch().output == Output::TiedFirst && !run.rules().embeds_first
}

/// Whether the output matrix serves as the token embedding too (`src/models/codeshell.cpp`).
pub(super) fn output_embeds(model: &Model) -> bool {
    let has_embedding = || model.tensors.iter().any(|tensor| tensor.name == "token_embd.weight");
    model.hparams.arch().output == Output::OrEmbedding && !has_embedding()
}

/// The blocks that create a shared tensor such as `rope_freqs`.
pub(super) fn sharing_blocks(model: &Model, run: &RunConfig) -> Vec<u32> {
    let always = model.hparams.arch().nextn_rope;
    let loaded = |block: &u32| always || !is_left_out(model, run, *block);
    let full_attention = |block: &u32| {
        use crate::gguf::Value;
        if !model.hparams.arch().rope_on_full_attention {
            return true;
        }
        match model.hparams.value("attention.sliding_window_pattern") {
            Some(Value::Array(windowed)) => {
                let at = usize::try_from(*block).expect("a block number is small");
                !matches!(windowed.get(at), Some(Value::Bool(true) | Value::U64(1..) | Value::I64(1..)))
            }
            _ => true,
        }
    };
    (0..model.hparams.block_count).filter(loaded).filter(full_attention).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_classes() {
        let rules = Rules::of(crate::run::Target::default());
        for (full, expected) in [
            ("token_embd.weight", Class::Input),
            ("per_layer_token_embd.weight", Class::Input),
            ("token_embd_norm.weight", Class::Block(0)),
            ("output.weight", Class::Output),
            ("output_norm.weight", Class::Output),
            ("rope_freqs.weight", Class::EveryBlock),
            ("blk.12.ffn_up_exps.bias", Class::Block(12)),
            ("dec.blk.3.attn_q.weight", Class::Block(3)),
            ("blk.7.nextn.eh_proj.weight", Class::Block(7)),
        ] {
            assert_eq!(class(&Arch::PLAIN, name(full), rules), expected, "{full}");
        }
        assert_eq!(class(Arch::of("lfm2moe"), name("token_embd_norm.weight"), rules), Class::Output);
        assert_eq!(
            name("blk.3.ffn_gate_exps.input_scale"),
            Name { block: Some(3), base: "ffn_gate_exps", suffix: "input_scale" }
        );
        // Without a suffix: on its block's device, not on the output's.
        assert_eq!(name("blk.0.ssm_a"), Name { block: Some(0), base: "ssm_a", suffix: "" });
        assert_eq!(name("hrm.z_l_init"), Name { block: None, base: "hrm.z_l_init", suffix: "" });
    }
}
