//! Kimi delta attention beside MLA.
//!
//! Source: `src/models/kimi-linear.cpp`, llama.cpp b11434.

use super::super::attention::{Extras, Qkv};
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Id, Unary};
use super::super::{Builder, Error, Norm};
use super::mla::Cached;
use super::plain::{NormW, PLAIN, Pick, Spec, after_attention, feed_forward, finish};
use crate::memory::caches::CacheKind;

/// The traits shared with plain decoders.
const SPEC: Spec = Spec { gating_stated: true, ..PLAIN };

/// kimi-linear.
pub(super) fn kimi_linear(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let cached = Cached::of(b)?;
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        b.graph.expand(x);
        let x = if b.layer(il)?.is_recr { b.kda(il, x, &states)? } else { attention(b, il, x, &cached)? };
        rows = after_attention(b, &SPEC, il, (x, rows), out_ids)?;
    }
    finish(b, &SPEC, rows, out_ids)
}

/// bailingmoe3: gates on both kinds of attention, positions on MLA's.
pub(super) fn bailingmoe3(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { norm_w: NormW::Stated, pick: Pick::AfterNorm, ..SPEC };
    let mut rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let latent = b.inp_k(CacheKind::Base)?;
    let positions = b.inp_pos();
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let x = if b.layer(il)?.is_recr {
            b.kda_sigmoid(il, x, &states)?
        } else {
            let sizes = b.mla_sizes(il)?;
            let q = b.mla_q(il, x)?;
            let qkv = b.mla_qkv(il, q, x, positions, sizes)?;
            let attended = b.attn_latent(il, latent, qkv)?;
            let n_tokens = b.n_tokens;
            let gate = b.raw_mm(il, "attn_gate", x)?;
            let gate = b.graph.reshape(gate, &[1, sizes.n_head, n_tokens]);
            let gate = b.graph.unary(Unary::Sigmoid, gate);
            let attended = b.graph.reshape(attended, &[sizes.v_head, sizes.n_head, n_tokens]);
            let attended = b.graph.mul(attended, gate);
            let attended = b.graph.cont_nd(attended, &[sizes.v_head * sizes.n_head, n_tokens]);
            b.raw_mm(il, "attn_output", attended)?
        };
        let middle = b.graph.add(x, rows);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &spec, il, x)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &spec, rows, out_ids)
}

/// MLA without positions.
fn attention(b: &mut Builder<'_>, il: u32, x: Id, cached: &Cached) -> Result<Id, Error> {
    let sizes = b.mla_sizes(il)?;
    let n_tokens = b.n_tokens;
    let q = b.raw_mm(il, "attn_q", x)?;
    let rows = match cached {
        Cached::Latent(inputs) => {
            let row = 4 * sizes.k_head;
            let strides = [row, row * sizes.n_head];
            let q_nope = b.graph.view(q, &[sizes.nope, sizes.n_head, n_tokens], &strides, 0);
            let q_pe = b.graph.view(q, &[sizes.rope, sizes.n_head, n_tokens], &strides, 4 * sizes.nope);
            let kv = b.mla_kv(il, x, sizes)?;
            let qkv = b.mla_absorb(il, (q_nope, q_pe), kv, None, sizes)?;
            b.attn_latent(il, *inputs, qkv)?
        }
        Cached::Heads(inputs) => {
            let (latent, k_pe) = b.mla_kv(il, x, sizes)?;
            let q = b.graph.reshape(q, &[sizes.k_head, sizes.n_head, n_tokens]);
            let both = b.raw_mm(il, "attn_kv_b", latent)?;
            let (n_head, nope) = (sizes.n_head, sizes.nope);
            let strides = [4 * (nope + sizes.v_head), 4 * (nope + sizes.v_head) * n_head];
            let k_nope = b.graph.view(both, &[nope, n_head, n_tokens], &strides, 0);
            let v = b.graph.view(both, &[sizes.v_head, n_head, n_tokens], &strides, 4 * nope);
            let v = b.graph.cont(v);
            let k_pe = b.graph.repeat(k_pe, &[sizes.rope, n_head, n_tokens]);
            let k = b.graph.concat(k_pe, k_nope, 0);
            b.attn(il, inputs, Qkv { q, k, v }, Extras::default())?
        }
    };
    b.mm(il, "attn_output", rows)
}

impl Builder<'_> {
    /// One convolution of each of queries, keys and values, their states behind each other.
    fn kda_conv(
        &mut self,
        il: u32,
        (name, part): (&str, u64),
        x: Id,
        (past, states): (Id, Id),
        (head, n_head): (u64, u64),
    ) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
        let inner = head * n_head;
        let kernel = self.hparam("ssm.conv_kernel")?;
        let size = (kernel - 1) * inner;
        let strides = [4 * (kernel - 1), 4 * 3 * size];
        let dims = [kernel - 1, inner, n_seqs];
        let past = self.graph.view(past, &dims, &strides, 4 * part * size);
        let x = self.graph.reshape(x, &[inner, n_tokens, n_seqs]);
        let x = self.graph.transpose(x);
        let input = self.graph.concat(past, x, 0);
        let from = self.last_columns(input, kernel, inner);
        let to = self.graph.view(states, &dims, &strides, 4 * part * size);
        let written = self.graph.cpy(from, to);
        self.graph.expand(written);
        let weight = self.weight(il, &format!("ssm_conv1d_{name}.weight"))?;
        let weight = self.graph.reshape(weight, &[kernel, inner]);
        let x = self.ssm_conv(input, weight);
        let x = self.graph.reshape(x, &[inner, batch.n_tokens]);
        let x = self.graph.unary(Unary::Silu, x);
        Ok(self.graph.reshape(x, &[head, n_head, n_tokens, n_seqs]))
    }

    /// The delta rule with a decay for each element of a key.
    fn kda(&mut self, il: u32, x: Id, inputs: &StateInputs) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let (n, n_tokens, n_seqs) = (batch.n_tokens, batch.n_seq_tokens(), batch.n_seqs);
        let head = self.hparam("kda.head_dim")?;
        let n_head = u64::from(self.layer(0)?.n_head);
        let inner = head * n_head;
        let (conv_states, ssm_states) = (self.conv_states(il)?, self.ssm_states(il)?);
        let past = self.read_states(inputs, conv_states);
        let rows = self.qkv_rows(il, x, (inner, inner, inner))?;
        let mut conv =
            |name: &str, part: u64, x: Id| self.kda_conv(il, (name, part), x, (past, conv_states), (head, n_head));
        let q = conv("q", 0, rows[0])?;
        let k = conv("k", 1, rows[1])?;
        let v = conv("v", 2, rows[2])?;
        let decay = self.raw_mm(il, "ssm_f_a", x)?;
        let decay = self.raw_mm(il, "ssm_f_b", decay)?;
        let decay = self.bias(il, "ssm_dt", decay);
        let decay = self.graph.unary(Unary::Softplus, decay);
        let decay = self.graph.reshape(decay, &[head, n_head, n]);
        let a = self.weight(il, "ssm_a")?;
        let a = self.graph.reshape(a, &[1, n_head, 1]);
        let decay = self.graph.mul(decay, a);
        let decay = self.graph.reshape(decay, &[head, n_head, n_tokens, n_seqs]);
        let beta = self.raw_mm(il, "ssm_beta", x)?;
        let beta = self.graph.reshape(beta, &[1, n_head, n_tokens, n_seqs]);
        let beta = self.graph.unary(Unary::Sigmoid, beta);
        let x = self.by_sequence(x);
        let state = self.read_states(inputs, ssm_states);
        let state = self.graph.reshape(state, &[head, head, n_head, n_seqs]);
        let q = self.unit_norm(q);
        let k = self.unit_norm(k);
        let (output, new_state) = self.delta_rule([q, k, v, decay, beta, state]);
        let output = self.graph.cont(output);
        let kept = self.graph.tensor(new_state).elements();
        let to = self.graph.view(ssm_states, &[kept], &[], 0);
        let written = self.graph.cpy(new_state, to);
        self.graph.expand(written);
        let width = self.ne(x, 0);
        let x = self.graph.reshape(x, &[width, n]);
        let gate = self.raw_mm(il, "ssm_g_a", x)?;
        let gate = self.raw_mm(il, "ssm_g_b", gate)?;
        let gate = self.graph.reshape(gate, &[head, n_head, n]);
        let output = self.graph.reshape(output, &[head, n_head, n]);
        let normed = self.norm(il, "ssm_norm", output, Norm::Rms)?;
        let gate = self.graph.unary(Unary::Sigmoid, gate);
        let gated = self.graph.mul(normed, gate);
        let gated = self.graph.cont_nd(gated, &[inner, n]);
        self.raw_mm(il, "attn_output", gated)
    }

    /// The same with a bounded decay and single-matrix gates (bailingmoe3, glm5-next, kimi-k3).
    pub(super) fn kda_sigmoid(&mut self, il: u32, x: Id, inputs: &StateInputs) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let (n, n_tokens, n_seqs) = (batch.n_tokens, batch.n_seq_tokens(), batch.n_seqs);
        let head = self.hparam("kda.head_dim")?;
        let n_head = u64::from(self.layer(0)?.n_head);
        let (conv_states, ssm_states) = (self.conv_states(il)?, self.ssm_states(il)?);
        let past = self.read_states(inputs, conv_states);
        let mut conv = |name: &str, part: u64| {
            let rows = self.raw_mm(il, &format!("attn_{name}"), x)?;
            self.kda_conv(il, (name, part), rows, (past, conv_states), (head, n_head))
        };
        let (q, k, v) = (conv("q", 0)?, conv("k", 1)?, conv("v", 2)?);
        let decay = self.bounded_decay(il, x, (head, n_head))?;
        let decay = self.graph.reshape(decay, &[head, n_head, n_tokens, n_seqs]);
        let beta = self.raw_mm(il, "ssm_beta", x)?;
        let beta = self.graph.reshape(beta, &[1, n_head, n_tokens, n_seqs]);
        let beta = self.graph.unary(Unary::Sigmoid, beta);
        let q = self.unit_norm(q);
        let k = self.unit_norm(k);
        let state = self.read_states(inputs, ssm_states);
        let state = self.graph.reshape(state, &[head, head, n_head, n_seqs]);
        let output = self.delta_net([q, k, v, decay, beta, state], ssm_states);
        let output = self.graph.cont(output);
        let gate = if self.weights.has(il, "ssm_g.weight") { "ssm_g" } else { "ssm_g_a" };
        let mut gate = self.raw_mm(il, gate, x)?;
        if self.plan.model.architecture == "glm5-next" {
            gate = self.raw_mm(il, "ssm_g_b", gate)?;
        }
        let gate = self.graph.reshape(gate, &[head, n_head, n]);
        let output = self.graph.reshape(output, &[head, n_head, n]);
        let output = self.norm(il, "ssm_norm", output, Norm::Rms)?;
        let gate = self.graph.unary(Unary::Sigmoid, gate);
        let output = self.graph.mul(output, gate);
        let output = self.graph.cont_nd(output, &[head * n_head, n]);
        self.raw_mm(il, "attn_output", output)
    }

    /// Decays no stronger than a bound, where one is stated (`kda.gate_lower_bound`).
    fn bounded_decay(&mut self, il: u32, x: Id, (head, n_head): (u64, u64)) -> Result<Id, Error> {
        let n_tokens = self.n_tokens;
        let may_be_free = matches!(self.plan.model.architecture.as_str(), "glm5-next" | "kimi-k3");
        let is_bounded = !may_be_free
            || self.hparams().value("kda.gate_lower_bound").is_some()
                && self.f64_or_0("kda.gate_lower_bound").is_finite();
        let mut decay = self.raw_mm(il, "ssm_f_a", x)?;
        if self.weights.has(il, "ssm_f_b.weight") {
            decay = self.raw_mm(il, "ssm_f_b", decay)?;
        }
        decay = self.bias(il, "ssm_dt", decay);
        if !is_bounded {
            decay = self.graph.unary(Unary::Softplus, decay);
        }
        decay = self.graph.reshape(decay, &[head, n_head, n_tokens]);
        let a = self.weight(il, "ssm_a")?;
        let a = self.graph.reshape(a, &[1, n_head, 1]);
        decay = self.graph.mul(decay, a);
        if !is_bounded {
            return Ok(decay);
        }
        if may_be_free {
            decay = self.graph.scale(decay);
        }
        decay = self.graph.unary(Unary::Sigmoid, decay);
        Ok(self.graph.scale(decay))
    }
}
