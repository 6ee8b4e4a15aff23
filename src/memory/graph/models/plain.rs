//! Decoders of attention and feed-forward layers, one after the other.

use super::super::attention::Extras;
use super::super::ffn::{Act, Moe};
use super::super::inputs::Embeddings;
use super::super::{Builder, Norm};

/// `src/models/qwen3moe.cpp`.
pub(super) fn qwen3moe(b: &mut Builder<'_>) {
    let mut rows = b.inp_embd(Embeddings::default());
    let positions = b.inp_pos();
    let inputs = b.inp_attn();
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms);
        let mut qkv = b.qkv(il, x);
        qkv.q = b.norm(il, "attn_q_norm", qkv.q, Norm::Rms);
        qkv.q = b.graph.rope(qkv.q, positions, None);
        qkv.k = b.norm(il, "attn_k_norm", qkv.k, Norm::Rms);
        qkv.k = b.graph.rope(qkv.k, positions, None);
        let mut x = b.attn_out(il, &inputs, qkv, Extras::default());
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms);
        let scaled = b.expert_weights_scaled();
        let x = b.moe(il, x, &Moe { scaled, ..Moe::default() });
        rows = b.graph.add(x, middle);
    }
    b.output(rows, Norm::Rms);
}

/// `src/models/llama.cpp`.
pub(super) fn llama(b: &mut Builder<'_>) {
    let mut rows = b.inp_embd(Embeddings::default());
    let positions = b.inp_pos();
    let inputs = b.inp_attn();
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms);
        let factors = b.rope_factors(il);
        let mut qkv = b.qkv(il, x);
        b.rope_qk(&mut qkv, positions, factors);
        let mut x = b.attn_out(il, &inputs, qkv, Extras::default());
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms);
        let x = if b.weights.has(il, "ffn_gate_inp.weight") {
            let scaled = b.expert_weights_scaled();
            b.moe(il, x, &Moe { scaled, ..Moe::default() })
        } else {
            b.ffn(il, "", x, Act::Silu)
        };
        rows = b.graph.add(x, middle);
    }
    b.output(rows, Norm::Rms);
}
