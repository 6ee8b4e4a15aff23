//! kimi-k3: delta attention and latents like kimi-linear's, experts in a smaller space, attention over past residuals.
//!
//! Source: `src/models/kimi-k3.cpp`, llama.cpp b11434.

use super::super::cache::CacheInputs;
use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::Embeddings;
use super::super::tensor::{Id, Unary};
use super::super::{Builder, Error, Norm};
use super::plain::{PLAIN, finish};
use crate::memory::caches::CacheKind;

/// Builds the graph.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let every = u64::from(b.hparams().u32_or_0("attn_res.block_size"));
    let mut sum = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let latent = b.inp_k(CacheKind::Base)?;
    let out_ids = b.inp_out_ids();
    let mut past = None;
    for il in 0..b.n_layer {
        let score = b.weight(il, "attn_res_score.weight")?;
        let x = b.mix_past(sum, past, score);
        let is_kept = every > 0 && u64::from(il).is_multiple_of(every);
        if is_kept {
            past = Some(b.keep_past(past, sum));
        }
        let x = b.norm(il, "attn_norm", x, Norm::Rms)?;
        b.graph.expand(x);
        let x = if b.layer(il)?.is_recr { b.kda_sigmoid(il, x, &states)? } else { attention(b, il, x, latent)? };
        sum = if is_kept { x } else { b.graph.add(sum, x) };
        let score = b.weight(il, "ffn_res_score.weight")?;
        let x = b.mix_past(sum, past, score);
        let x = b.norm(il, "ffn_norm", x, Norm::Rms)?;
        let x = if b.weights.has(il, "ffn_gate_inp.weight") { experts(b, il, x)? } else { dense(b, il, "", x)? };
        sum = b.graph.add(sum, x);
    }
    let score = b.global("output_res_score.weight")?;
    let rows = b.mix_past(sum, past, score);
    let rows = b.graph.get_rows(rows, out_ids);
    finish(b, &PLAIN, rows, out_ids)
}

impl Builder<'_> {
    /// The residual stream added to those that are kept, `[width, kept, tokens]`.
    fn keep_past(&mut self, past: Option<Id>, rows: Id) -> Id {
        let (width, n_tokens) = (self.n_embd, self.n_tokens);
        let rows = self.graph.reshape(rows, &[width, 1, n_tokens]);
        past.map_or(rows, |past| self.graph.concat(past, rows, 1))
    }

    /// The kept residual streams and the current one, weighted by attention to them (`res_mix`).
    fn mix_past(&mut self, rows: Id, past: Option<Id>, weight: Id) -> Id {
        let Some(past) = past else { return rows };
        let (n_past, n_tokens) = (self.ne(past, 1), self.n_tokens);
        let mut score = |x: Id| {
            let x = self.rms(x);
            let x = self.graph.mul(x, weight);
            self.graph.sum_rows(x)
        };
        let (of_past, own) = (score(past), score(rows));
        let of_past = self.graph.reshape(of_past, &[n_past, n_tokens]);
        let scores = self.graph.concat(of_past, own, 0);
        let parts = self.graph.soft_max(scores, None);
        let stride = self.nb(parts, 1);
        let of_past = self.graph.view(parts, &[n_past, n_tokens], &[stride], 0);
        let of_past = self.graph.cont(of_past);
        let own = self.graph.view(parts, &[1, n_tokens], &[stride], 4 * n_past);
        let own = self.graph.cont(own);
        let mixed = self.graph.hc_pre(past, of_past);
        let rows = self.graph.mul(rows, own);
        self.graph.add(mixed, rows)
    }
}

/// MLA without positions, multiplied by a gate.
fn attention(b: &mut Builder<'_>, il: u32, x: Id, latent: CacheInputs) -> Result<Id, Error> {
    let sizes = b.mla_sizes(il)?;
    let q = b.mla_q(il, x)?;
    let (row, n_tokens) = (4 * sizes.k_head, b.n_tokens);
    let strides = [row, row * sizes.n_head];
    let q_nope = b.graph.view(q, &[sizes.nope, sizes.n_head, n_tokens], &strides, 0);
    let q_pe = b.graph.view(q, &[sizes.rope, sizes.n_head, n_tokens], &strides, 4 * sizes.nope);
    let kv = b.mla_kv(il, x, sizes)?;
    let qkv = b.mla_absorb(il, (q_nope, q_pe), kv, None, sizes)?;
    let mut rows = b.attn_latent(il, latent, qkv)?;
    if b.weights.has(il, "attn_gate.weight") {
        let gate = b.raw_mm(il, "attn_gate", x)?;
        let gate = b.graph.unary(Unary::Sigmoid, gate);
        rows = b.graph.mul(rows, gate);
    }
    b.raw_mm(il, "attn_output", rows)
}

/// Gate, up and down of the dense layers or the shared experts.
fn dense(b: &mut Builder<'_>, il: u32, suffix: &str, x: Id) -> Result<Id, Error> {
    let gate = b.raw_mm(il, &format!("ffn_gate{suffix}"), x)?;
    let up = b.raw_mm(il, &format!("ffn_up{suffix}"), x)?;
    let hidden = b.situ(gate, up);
    b.raw_mm(il, &format!("ffn_down{suffix}"), hidden)
}

/// Routed experts between two projections; shared ones read the layer's input.
fn experts(b: &mut Builder<'_>, il: u32, x: Id) -> Result<Id, Error> {
    let is_latent = b.weights.has(il, "ffn_routed_down.weight");
    let input = if is_latent { b.raw_mm(il, "ffn_routed_down", x)? } else { x };
    let logits = Some(b.raw_mm(il, "ffn_gate_inp", x)?);
    let gating = b.stated_gating(Gating::Softmax)?;
    let (norm_w, scaled) = (b.flag("expert_weights_norm"), b.expert_weights_scaled());
    let mut rows = b.moe(il, input, &Moe { act: Act::Situ, gating, norm_w, scaled, logits, ..Moe::default() })?;
    if b.weights.has(il, "ffn_routed_norm.weight") {
        rows = b.norm(il, "ffn_routed_norm", rows, Norm::Rms)?;
    }
    if is_latent {
        rows = b.raw_mm(il, "ffn_routed_up", rows)?;
    }
    if !b.weights.has(il, "ffn_gate_shexp.weight") {
        return Ok(rows);
    }
    let shared = dense(b, il, "_shexp", x)?;
    Ok(b.graph.add(rows, shared))
}
