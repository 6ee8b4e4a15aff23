//! Which tensors `llama-quantize` leaves as they are.
//!
//! Source: `src/llama-quant.cpp` (`tensor_allows_quantization`), llama.cpp b11434.

use crate::arch::Mix;

/// Parts of the names of tensors that are kept: norms, routers, convolutions, positions, small projections.
const PARTS: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// More of them in `glm5-next`.
const PARTS_OF_GLM5_NEXT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

/// Whole names of tensors that are kept: learned positions and token types.
const NAMES: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Whether the tensor stays as it is: a vector, no weight, or one of the small or delicate ones.
pub fn is_kept(mix: Mix, name: &str, shape: [u64; 4]) -> bool {
    let [_, rows, matrices, more] = shape;
    let is_vector = rows <= 1 && matrices <= 1 && more <= 1;
    // A name of five letters passes llama.cpp's test of the ending too: the position wraps around to "not found".
    let is_weight = name.ends_with("weight") || name.len() == 5;
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    is_vector || !is_weight || has(PARTS) || NAMES.contains(&name) || (mix == Mix::Glm5Next && has(PARTS_OF_GLM5_NEXT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_routers_and_vectors_are_kept() {
        let matrix = [64, 64, 1, 1];
        for (name, kept) in [
            ("blk.0.ffn_gate_exps.weight", false),
            ("blk.0.ffn_gate_inp.weight", true),
            ("blk.0.ffn_gate_inp_shexp.weight", false),
            ("blk.0.attn_norm.weight", true),
            ("blk.0.attn_q.bias", true),
            ("position_embd.weight", true),
            ("v.position_embd.weight", true),
            ("blk.0.hc_fn.weight", false),
        ] {
            assert_eq!(is_kept(Mix::Usual, name, matrix), kept, "{name}");
        }
        assert!(is_kept(Mix::Glm5Next, "blk.0.hc_fn.weight", matrix));
        assert!(is_kept(Mix::Usual, "rope_freqs.weight", [64, 1, 1, 1]) && !is_kept(Mix::Usual, "a.b.c", matrix));
    }
}
