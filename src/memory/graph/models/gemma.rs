//! gemma4: windows and full attention of different head sizes, shared keys, experts beside a dense part.
//!
//! Source: `src/models/gemma4.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras};
use super::super::ffn::{Act, Moe};
use super::super::inputs::Embeddings;
use super::super::ops::HEADS;
use super::super::tensor::Node;
use super::super::{Builder, Layer, Norm};
use super::plain::{Logits, PLAIN, Pick, Spec, finish};
use crate::gguf::ggml_type::i32;
use crate::memory::caches::Caches;

/// Builds the graph.
pub(super) fn gemma4<'g>(b: &'g Builder<'g>) {
    let mut rows = b.inp_embd(Embeddings { token_scaled: true, ..Embeddings::default() });
    let (positions, attn, out_ids) = (b.inp_pos(), b.inp_attn(), b.inp_out_ids());
    let per_layer = per_layer_inputs(b, rows);
    let is_early = b.pick(Pick::AfterNorm) == Pick::Early;
    for l in b.layers() {
        l.tap(rows);
        let mut x = attention(l, l.norm("attn_norm", rows), &attn, positions);
        if is_early {
            [x, rows] = l.only_outputs(out_ids, [x, rows]);
        }
        let middle = l.norm("post_attention_norm", x) + rows;
        let post_norm = l.weight("post_ffw_norm");
        rows = feed_forward(l, middle).norm(Norm::Rms, Some(post_norm), None) + middle;
        if let Some(inputs) = per_layer {
            let [width, n_tokens, ..] = inputs.shape();
            let mut own = inputs.view(&[width, n_tokens], &[4 * width], 4 * u64::from(l.il) * width * n_tokens);
            let gate = l.mm("inp_gate", rows).gelu();
            if is_early {
                [own] = l.only_outputs(out_ids, [own]);
            }
            let x = l.mm("proj", gate * own);
            rows = rows + l.norm("post_norm", x);
        }
        rows = l.maybe("layer_output_scale").map_or(rows, |scale| rows * scale);
    }
    finish(b, &Spec { pick: Pick::AfterNorm, logits: Logits::Capped, ..PLAIN }, rows, out_ids);
}

/// An embedding of each token for each layer, and a projection of the first rows.
fn per_layer_inputs<'g>(b: &'g Builder<'g>, rows: Node<'g>) -> Option<Node<'g>> {
    let width = b.hparam_or_0("embedding_length_per_layer_input");
    if width == 0 {
        return None;
    }
    let dims = [width, u64::from(b.n_layer), b.n_tokens];
    let x = b.global("per_layer_token_embd").get_rows(b.draft.input(i32(), &[b.n_tokens]));
    let x = x.reshape(&dims).scale().expand();
    let projected = b.global("per_layer_model_proj").mm(rows).scale().reshape(&dims);
    let projected = projected.norm(Norm::Rms, Some(b.global("per_layer_proj_norm")), None);
    Some((projected + x).scale().permute(HEADS).cont())
}

/// The layer whose keys and values a layer reads: the first ones own theirs, the others read those of the last of their kind.
pub(super) fn owner(caches: &Caches, il: u32, is_swa: bool) -> Option<u32> {
    match caches.hparams.n_layer_kv_from_start {
        Some(n_own) if il >= n_own => n_own.checked_sub(if is_swa { 2 } else { 1 }),
        _ => Some(il),
    }
}

fn attention<'g>(l: Layer<'g>, x: Node<'g>, attn: &AttnInputs<'g>, positions: Node<'g>) -> Node<'g> {
    let (head, n_head, n_kv, is_swa) = (l.head_k, l.n_head, l.n_kv, l.hp.is_swa);
    let by_head = |rows: Node<'g>, n| rows.reshape(&[head, n, l.n_tokens]);
    let factors = if is_swa { None } else { l.rope_factors() };
    let fused = l.has("attn_qkv").then(|| l.qkv_rows(x, [head * n_head, head * n_kv, head * n_kv]));
    let q = fused.map_or_else(|| l.mm("attn_q", x), |[q, ..]| q);
    let q = l.norm("attn_q_norm", by_head(q, n_head)).rope(positions, factors);
    let Some(owner) = owner(l.plan.caches, l.il, is_swa) else {
        return l.fail(l.key_error("attention.shared_kv_layers", None));
    };
    let kv = (owner == l.il).then(|| {
        let (k, v) = fused.map_or_else(
            || {
                let k = l.mm("attn_k", x);
                (k, if l.has("attn_v") { l.mm("attn_v", x) } else { k })
            },
            |[_, k, v]| (k, v),
        );
        (l.norm("attn_k_norm", by_head(k, n_kv)).rope(positions, factors), by_head(v, n_kv).rms())
    });
    l.mm("attn_output", l.attn_with(l.cached(attn, is_swa), q, kv, owner, Extras::default()))
}

fn feed_forward<'g>(l: Layer<'g>, middle: Node<'g>) -> Node<'g> {
    let dense = l.ffn("", l.norm("ffn_norm", middle), Act::Gelu);
    if !l.has("ffn_gate_inp") {
        return dense;
    }
    let router = middle.rms().scale() * l.need("ffn_gate_inp", "scale");
    let moe = Moe { act: Act::Gelu, logits: Some(l.raw_mm("ffn_gate_inp", router)), ..Moe::default() };
    let routed = l.moe(l.norm("pre_ffw_norm_2", middle), &moe);
    l.norm("post_ffw_norm_1", dense) + l.norm("post_ffw_norm_2", routed)
}
