//! gemma4: windows and full attention of different head sizes, shared keys, experts beside a dense part.
//!
//! Source: `src/models/gemma4.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras};
use super::super::ffn::{Act, Moe};
use super::super::inputs::Embeddings;
use super::super::tensor::{Id, Unary};
use super::super::{Builder, Error, Norm};
use super::plain::{Logits, PLAIN, Pick, Spec, finish};
use crate::gguf::ggml_type::i32;

/// Builds the graph.
pub(super) fn gemma4(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { pick: Pick::AfterNorm, logits: Logits::Capped, ..PLAIN };
    let mut rows = b.inp_embd(Embeddings { token_scaled: true, ..Embeddings::default() })?;
    let positions = b.inp_pos();
    let attn = b.inp_attn()?;
    let out_ids = b.inp_out_ids();
    let per_layer = per_layer_inputs(b, rows)?;
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let x = attention(b, il, x, &attn, positions)?;
        let x = b.norm(il, "post_attention_norm", x, Norm::Rms)?;
        let middle = b.graph.add(x, rows);
        let x = feed_forward(b, il, middle)?;
        let weight = b.weight(il, "post_ffw_norm.weight")?;
        let x = b.norm_with(None, Some(weight), None, x, Norm::Rms);
        rows = b.graph.add(x, middle);
        if let Some(inputs) = per_layer {
            rows = add_per_layer(b, il, rows, inputs)?;
        }
        if let Some(scale) = b.maybe_weight(il, "layer_output_scale.weight") {
            rows = b.graph.mul(rows, scale);
        }
    }
    finish(b, &spec, rows, out_ids)
}

/// An embedding of each token for each layer, and a projection of the first rows.
fn per_layer_inputs(b: &mut Builder<'_>, rows: Id) -> Result<Option<Id>, Error> {
    let width = b.hparam_or_0("embedding_length_per_layer_input")?;
    if width == 0 {
        return Ok(None);
    }
    let table = b.global("per_layer_token_embd.weight")?;
    let projection = b.global("per_layer_model_proj.weight")?;
    let dims = [width, u64::from(b.n_layer), b.n_tokens];
    let tokens = b.graph.input(i32(), &[b.n_tokens]);
    let x = b.graph.get_rows(table, tokens);
    let x = b.graph.reshape(x, &dims);
    let x = b.graph.scale(x);
    b.graph.expand(x);
    let projected = b.graph.mul_mat(projection, rows);
    let projected = b.graph.scale(projected);
    let projected = b.graph.reshape(projected, &dims);
    let weight = b.global("per_layer_proj_norm.weight")?;
    let projected = b.norm_with(None, Some(weight), None, projected, Norm::Rms);
    let x = b.graph.add(projected, x);
    let x = b.graph.scale(x);
    let x = b.graph.permute(x, [0, 2, 1, 3]);
    Ok(Some(b.graph.cont(x)))
}

fn add_per_layer(b: &mut Builder<'_>, il: u32, rows: Id, inputs: Id) -> Result<Id, Error> {
    let x = b.mm(il, "inp_gate", rows)?;
    let x = b.graph.unary(Unary::Gelu, x);
    let ne = b.graph.tensor(inputs).ne;
    let own = b.graph.view(inputs, &[ne[0], ne[1]], &[4 * ne[0]], 4 * u64::from(il) * ne[0] * ne[1]);
    let x = b.graph.mul(x, own);
    let x = b.mm(il, "proj", x)?;
    let x = b.norm(il, "post_norm", x, Norm::Rms)?;
    Ok(b.graph.add(rows, x))
}

fn attention(b: &mut Builder<'_>, il: u32, x: Id, attn: &AttnInputs, positions: Id) -> Result<Id, Error> {
    let layer = b.layer(il)?;
    let (head, n_head, n_kv) = (u64::from(layer.n_embd_head_k), u64::from(layer.n_head), u64::from(layer.n_head_kv));
    let n_tokens = b.n_tokens;
    let factors = if layer.is_swa { None } else { b.rope_factors(il)? };
    let fused = b.weights.has(il, "attn_qkv.weight");
    let (q_rows, kv_rows) = if fused {
        let [q, k, v] = b.qkv_rows(il, x, (head * n_head, head * n_kv, head * n_kv))?;
        (q, Some((k, v)))
    } else {
        (b.mm(il, "attn_q", x)?, None)
    };
    let q = b.graph.reshape(q_rows, &[head, n_head, n_tokens]);
    let q = b.norm(il, "attn_q_norm", q, Norm::Rms)?;
    let q = b.graph.rope(q, positions, factors);
    // The first layers own keys and values; the others read those of the last of their kind.
    let owner = match b.plan.caches.hparams.n_layer_kv_from_start {
        Some(n_own) if il >= n_own => n_own.checked_sub(if layer.is_swa { 2 } else { 1 }),
        _ => Some(il),
    };
    let owner = owner.ok_or_else(|| b.key_error("attention.shared_kv_layers", None))?;
    let mut kv = None;
    if owner == il {
        let (k, v) = if let Some(rows) = kv_rows {
            rows
        } else {
            let k = b.mm(il, "attn_k", x)?;
            (k, if b.weights.has(il, "attn_v.weight") { b.mm(il, "attn_v", x)? } else { k })
        };
        let k = b.graph.reshape(k, &[head, n_kv, n_tokens]);
        let v = b.graph.reshape(v, &[head, n_kv, n_tokens]);
        let k = b.norm(il, "attn_k_norm", k, Norm::Rms)?;
        let v = b.rms(v);
        kv = Some((b.graph.rope(k, positions, factors), v));
    }
    let rows = b.attn_with(il, attn.cached(layer.is_swa)?, q, kv, owner, Extras::default())?;
    b.mm(il, "attn_output", rows)
}

fn feed_forward(b: &mut Builder<'_>, il: u32, middle: Id) -> Result<Id, Error> {
    let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
    let dense = b.ffn(il, "", x, Act::Gelu)?;
    if !b.weights.has(il, "ffn_gate_inp.weight") {
        return Ok(dense);
    }
    let dense = b.norm(il, "post_ffw_norm_1", dense, Norm::Rms)?;
    let x = b.norm(il, "pre_ffw_norm_2", middle, Norm::Rms)?;
    let router = b.rms(middle);
    let router = b.graph.scale(router);
    let scale = b.weight(il, "ffn_gate_inp.scale")?;
    let router = b.graph.mul(router, scale);
    let weight = b.weight(il, "ffn_gate_inp.weight")?;
    let logits = b.graph.mul_mat(weight, router);
    let routed = b.moe(il, x, &Moe { act: Act::Gelu, logits: Some(logits), ..Moe::default() })?;
    let routed = b.norm(il, "post_ffw_norm_2", routed, Norm::Rms)?;
    Ok(b.graph.add(dense, routed))
}
