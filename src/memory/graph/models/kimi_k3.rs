//! kimi-k3: delta attention and latents like kimi-linear's, experts in a smaller space, attention over past residuals.
//!
//! Source: `src/models/kimi-k3.cpp`, llama.cpp b11434.

use super::super::cache::CacheInputs;
use super::super::ffn::{Act, Gating, Moe, situ};
use super::super::tensor::Node;
use super::super::{Builder, Layer};
use super::plain::{PLAIN, finish};
use crate::memory::caches::CacheKind;

/// Builds the graph.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let every = b.hparams().u32_or_0("attn_res.block_size");
    let (mut sum, states, latent, out_ids) = (b.tokens(), b.inp_rs(), b.inp_k(CacheKind::Base), b.inp_out_ids());
    let mut past: Option<Node<'g>> = None;
    for l in b.layers() {
        let x = mix_past(b, sum, past, l.weight("attn_res_score"));
        let is_kept = every > 0 && l.il.is_multiple_of(every);
        if is_kept {
            // The kept residual streams, `[width, kept, tokens]`.
            let rows = sum.reshape(&[b.n_embd, 1, b.n_tokens]);
            past = Some(past.map_or(rows, |past| past.concat(rows, 1)));
        }
        let x = l.norm("attn_norm", x).expand();
        let x = if l.hp.is_recr { l.kda(x, &states) } else { attention(l, x, latent) };
        sum = if is_kept { x } else { sum + x };
        let x = l.norm("ffn_norm", mix_past(b, sum, past, l.weight("ffn_res_score")));
        sum = sum + if l.has("ffn_gate_inp") { experts(l, x) } else { dense(l, "", x) };
    }
    let rows = mix_past(b, sum, past, b.global("output_res_score"));
    finish(b, &PLAIN, rows.get_rows(out_ids), out_ids);
}

/// The kept residual streams and the current one, weighted by attention to them (`res_mix`).
fn mix_past<'g>(b: &Builder<'g>, rows: Node<'g>, past: Option<Node<'g>>, weight: Node<'g>) -> Node<'g> {
    let Some(past) = past else { return rows };
    let (n_past, n_tokens) = (past.ne(1), b.n_tokens);
    let score = |x: Node<'g>| (x.rms() * weight).sum_rows();
    let parts = score(past).reshape(&[n_past, n_tokens]).concat(score(rows), 0).soft_max();
    past.hc_pre(parts.cols(n_past, 0).cont()) + rows * parts.cols(1, n_past).cont()
}

/// MLA without positions, multiplied by a gate.
fn attention<'g>(l: Layer<'g>, x: Node<'g>, latent: CacheInputs<'g>) -> Node<'g> {
    let rows = l.attn_latent(latent, l.mla_qkv(l.mla_q(x), x, None, l.mla_sizes()), None);
    let gate = l.maybe("attn_gate");
    l.raw_mm("attn_output", gate.map_or(rows, |gate| rows * gate.mm(x).sigmoid()))
}

/// Gate, up and down of the dense layers or the shared experts.
fn dense<'g>(l: Layer<'g>, suffix: &str, x: Node<'g>) -> Node<'g> {
    let mm = |part: &str, x| l.raw_mm(&format!("ffn_{part}{suffix}"), x);
    mm("down", situ(mm("gate", x), mm("up", x)))
}

/// Routed experts between two projections; shared ones read the layer's input.
fn experts<'g>(l: Layer<'g>, x: Node<'g>) -> Node<'g> {
    let is_latent = l.has("ffn_routed_down");
    let input = if is_latent { l.raw_mm("ffn_routed_down", x) } else { x };
    let logits = Some(l.raw_mm("ffn_gate_inp", x));
    let (gating, norm_w) = (l.stated_gating(Gating::Softmax), l.flag("expert_weights_norm"));
    let scaled = l.expert_weights_scaled();
    let mut rows = l.moe(input, &Moe { act: Act::Situ, gating, norm_w, scaled, logits, ..Moe::default() });
    if l.has("ffn_routed_norm") {
        rows = l.norm("ffn_routed_norm", rows);
    }
    if is_latent {
        rows = l.raw_mm("ffn_routed_up", rows);
    }
    if l.has("ffn_gate_shexp") { rows + dense(l, "_shexp", x) } else { rows }
}
