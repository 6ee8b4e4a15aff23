//! Decoders with state-space layers or short convolutions, alone or beside attention.
//!
//! Source: `src/models/mamba-base.cpp`, `mamba.cpp`, `jamba.cpp`, `nemotron-h.cpp`, `granite-hybrid.cpp`,
//! `falcon-h1.cpp`, `lfm2.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras};
use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Glu, Id, Op, Unary};
use super::super::{Builder, Error, Norm};
use super::plain::{Logits, NormW, PLAIN, Pick, Spec, feed_forward, finish};
use crate::gguf::ggml_type::f32;

impl Builder<'_> {
    /// Reads states straight from the cache by way of a scan; the extra ones are copied along.
    pub(super) fn scan(&mut self, inputs: &StateInputs, states: Id, shape: [u64; 3], sources: [Id; 5]) -> Id {
        let own = *self.graph.tensor(states);
        let flat = self.graph.reshape(states, &[own.ne[0], own.ne[1]]);
        let zeroed = self.graph.view(flat, &[own.ne[0]], &[], 0);
        let zeroed = self.graph.scale_inplace(zeroed);
        self.graph.expand(zeroed);
        let all = self.graph.get_rows(flat, inputs.tail);
        let by_head = self.graph.reshape(flat, &[shape[0], shape[1], shape[2], own.ne[1]]);
        let [x, dt, a, b, c] = sources;
        let [x_ne, dt_ne, a_ne, b_ne, c_ne] = sources.map(|id| self.graph.tensor(id).ne);
        let [size, head, n_head] = shape;
        let rows = x_ne[..2] == [head, n_head] && dt_ne == [n_head, x_ne[2], x_ne[3], 1];
        let states_fit = b_ne == c_ne && [b_ne[0], b_ne[2], b_ne[3]] == [size, x_ne[2], x_ne[3]];
        if !(rows && states_fit && [1, size].contains(&a_ne[0]) && a_ne[1..] == [n_head, 1, 1]) {
            return self.graph.refuse("ggml_ssm_scan", &sources);
        }
        let n = self.graph.tensor(x).elements() + shape.iter().product::<u64>() * self.plan.batch.n_seqs;
        let result = self.graph.make(Op::SsmScan, f32(), [n, 1, 1, 1], &[by_head, x, dt, a, b, c, inputs.main]);
        self.graph.expand(result);
        self.copy_tail(inputs, states, all);
        result
    }

    /// Like `copy_extra`, where the first state was not gathered.
    fn copy_tail(&mut self, inputs: &StateInputs, states: Id, all: Id) {
        let own = *self.graph.tensor(states);
        let (n_seqs, stride) = (self.plan.batch.n_seqs, self.nb(all, 1));
        let extra = inputs.n_states - n_seqs;
        let from = self.graph.view(all, &[own.ne[0], extra], &[stride], (n_seqs - 1) * stride);
        let to = self.graph.view(states, &[own.ne[0], extra], &[own.nb[1]], n_seqs * own.nb[1]);
        let copied = self.graph.cpy(from, to);
        self.graph.expand(copied);
    }

    /// Reads the past columns and puts them before the new ones; the last become the state.
    pub(super) fn mamba_conv(&mut self, il: u32, inputs: &StateInputs, x: Id, channels: u64) -> Result<Id, Error> {
        let conv_states = self.conv_states(il)?;
        let kernel = self.hparam("ssm.conv_kernel")?;
        let past = self.read_states(inputs, conv_states);
        let past = self.graph.reshape(past, &[kernel - 1, channels, self.plan.batch.n_seqs]);
        let x = self.graph.transpose(x);
        let input = self.graph.concat(past, x, 0);
        let from = self.last_columns(input, kernel, channels);
        let n = (kernel - 1) * channels * self.plan.batch.n_seqs;
        let to = self.graph.view(conv_states, &[n], &[], 0);
        let written = self.graph.cpy(from, to);
        self.graph.expand(written);
        let weight = self.weight(il, "ssm_conv1d.weight")?;
        let x = self.ssm_conv(input, weight);
        let x = self.bias(il, "ssm_conv1d", x);
        Ok(self.graph.unary(Unary::Silu, x))
    }

    /// `build_mamba_layer`.
    fn mamba(&mut self, il: u32, inputs: &StateInputs, x: Id) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
        let (inner, state, rank) =
            (self.hparam("ssm.inner_size")?, self.hparam("ssm.state_size")?, self.hparam("ssm.time_step_rank")?);
        let x = self.by_sequence(x);
        let xz = self.mm(il, "ssm_in", x)?;
        let nb = self.graph.tensor(xz).nb;
        let x = self.graph.view(xz, &[inner, n_tokens, n_seqs], &nb[1..3], 0);
        let z = self.graph.view(xz, &[inner, n_tokens, n_seqs], &nb[1..3], 4 * inner);
        let x = self.mamba_conv(il, inputs, x, inner)?;
        let all = self.mm(il, "ssm_x", x)?;
        let nb = self.graph.tensor(all).nb;
        let mut dt = self.graph.view(all, &[rank, n_tokens, n_seqs], &nb[1..3], 0);
        let by_state = [4 * state, nb[1], nb[2]];
        let mut b = self.graph.view(all, &[state, 1, n_tokens, n_seqs], &by_state, 4 * rank);
        let mut c = self.graph.view(all, &[state, 1, n_tokens, n_seqs], &by_state, 4 * (rank + state));
        if self.flag("ssm.dt_b_c_rms") || self.weights.has(il, "ssm_dt_norm.weight") {
            dt = self.norm(il, "ssm_dt_norm", dt, Norm::Rms)?;
            b = self.norm(il, "ssm_b_norm", b, Norm::Rms)?;
            c = self.norm(il, "ssm_c_norm", c, Norm::Rms)?;
        } else {
            dt = self.graph.cont(dt);
        }
        let dt = self.linear(il, "ssm_dt", dt)?;
        let rows = x;
        let x = self.graph.reshape(x, &[1, inner, n_tokens, n_seqs]);
        let a = self.weight(il, "ssm_a")?;
        let states = self.ssm_states(il)?;
        let result = self.scan(inputs, states, [state, 1, inner], [x, dt, a, b, c]);
        let t = *self.graph.tensor(x);
        let kept = state * inner * n_seqs;
        let from = self.graph.view(result, &[kept], &[], t.nb[3] * t.ne[3]);
        let to = self.graph.view(states, &[kept], &[], 0);
        let written = self.graph.cpy(from, to);
        self.graph.expand(written);
        let y = self.graph.view(result, &[inner, n_tokens, n_seqs], &[t.nb[2], t.nb[3]], 0);
        let d = self.weight(il, "ssm_d")?;
        let skip = self.graph.mul(rows, d);
        let y = self.graph.add(y, skip);
        let z = self.graph.cont(z);
        let y = self.graph.glu_split(Glu::Swiglu, z, y);
        let rows = self.mm(il, "ssm_out", y)?;
        let width = self.ne(rows, 0);
        Ok(self.graph.reshape(rows, &[width, n_tokens * n_seqs]))
    }

    /// `build_mamba2_layer`.
    fn mamba2(&mut self, il: u32, inputs: &StateInputs, x: Id) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
        let (inner, state) = (self.hparam("ssm.inner_size")?, self.hparam("ssm.state_size")?);
        let (n_head, n_group) = (self.hparam("ssm.time_step_rank")?, self.hparam("ssm.group_count")?);
        let (head, channels) = (inner / n_head, inner + 2 * n_group * state);
        let (conv_states, states) = (self.conv_states(il)?, self.ssm_states(il)?);
        let kernel = self.hparam("ssm.conv_kernel")?;
        let past = self.read_states(inputs, conv_states);
        let past = self.graph.reshape(past, &[kernel - 1, channels, n_seqs]);
        let all = self.mm(il, "ssm_in", x)?;
        let all = self.by_sequence(all);
        let nb = self.graph.tensor(all).nb;
        let z = self.graph.view(all, &[head, n_head, n_tokens, n_seqs], &[4 * head, nb[1], nb[2]], 0);
        let xbc = self.graph.view(all, &[channels, n_tokens, n_seqs], &nb[1..3], 4 * inner);
        let dt = self.graph.view(all, &[n_head, n_tokens, n_seqs], &nb[1..3], 4 * (inner + channels));
        let xbc = self.graph.transpose(xbc);
        let input = self.graph.concat(past, xbc, 0);
        self.keep_conv_state(input, conv_states, kernel, channels);
        let weight = self.weight(il, "ssm_conv1d.weight")?;
        let xbc = self.ssm_conv(input, weight);
        let xbc = self.bias(il, "ssm_conv1d", xbc);
        let xbc = self.graph.unary(Unary::Silu, xbc);
        let nb = self.graph.tensor(xbc).nb;
        let mut part = |dim: u64, n: u64, offset: u64| {
            self.graph.view(xbc, &[dim, n, n_tokens, n_seqs], &[4 * dim, nb[1], nb[2]], 4 * offset)
        };
        let x = part(head, n_head, 0);
        let b = part(state, n_group, inner);
        let c = part(state, n_group, inner + n_group * state);
        let dt = self.graph.cont(dt);
        let dt = self.bias(il, "ssm_dt", dt);
        let a = self.weight(il, "ssm_a")?;
        let result = self.scan(inputs, states, [state, head, n_head], [x, dt, a, b, c]);
        self.keep_scanned(result, states, (state * inner, 4 * inner * n_tokens * n_seqs));
        let step = self.nb(x, 1);
        let strides = [step, n_head * step, n_tokens * n_head * step];
        let y = self.graph.view(result, &[head, n_head, n_tokens, n_seqs], &strides, 0);
        let d = self.weight(il, "ssm_d")?;
        let skip = self.graph.mul(x, d);
        let y = self.graph.add(y, skip);
        let z = self.graph.cont(z);
        let mut y = self.graph.glu_split(Glu::Swiglu, z, y);
        if self.weights.has(il, "ssm_norm.weight") {
            y = self.graph.reshape(y, &[inner / n_group, n_group, n_tokens, n_seqs]);
            y = self.norm(il, "ssm_norm", y, Norm::Rms)?;
        }
        let y = self.graph.reshape(y, &[inner, n_tokens * n_seqs]);
        self.mm(il, "ssm_out", y)
    }

    /// Stores the states behind a scan's outputs.
    fn keep_scanned(&mut self, result: Id, states: Id, (width, offset): (u64, u64)) {
        let n_seqs = self.plan.batch.n_seqs;
        let row = self.nb(states, 1);
        let from = self.graph.view(result, &[width, n_seqs, 1], &[4 * width, 4 * width * n_seqs], offset);
        let to = self.graph.view(states, &[width, n_seqs, 1], &[row, row * n_seqs], 0);
        let written = self.graph.cpy(from, to);
        self.graph.expand(written);
    }

    /// A short convolution between two gates (lfm2).
    fn shortconv(&mut self, il: u32, inputs: &StateInputs, x: Id) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let x = self.by_sequence(x);
        let bcx = self.mm(il, "shortconv.in_proj", x)?;
        let t = *self.graph.tensor(bcx);
        let width = t.ne[0] / 3;
        let [b, c, x] = [0, 1, 2].map(|i| self.graph.view(bcx, &[width, t.ne[1], t.ne[2]], &t.nb[1..3], 4 * i * width));
        let bx = self.graph.mul(b, x);
        let states = self.conv_states(il)?;
        let kernel = self.hparam("shortconv.l_cache")?;
        let input = self.conv_input(inputs, states, bx, kernel, self.n_embd);
        let weight = self.weight(il, "shortconv.conv.weight")?;
        let conv = self.ssm_conv(input, weight);
        let y = self.graph.mul(c, conv);
        let y = self.mm(il, "shortconv.out_proj", y)?;
        let width = self.ne(y, 0);
        Ok(self.graph.reshape(y, &[width, batch.n_tokens]))
    }

    /// Attention with or without positions.
    fn plain_attn(&mut self, il: u32, inputs: &AttnInputs, x: Id, positions: Option<Id>) -> Result<Id, Error> {
        let mut qkv = self.qkv(il, x)?;
        self.norm_qk(il, &mut qkv, Norm::Rms)?;
        if let Some(positions) = positions {
            let factors = self.rope_factors(il)?;
            self.rope_qk(&mut qkv, positions, factors);
        }
        self.attn_out(il, inputs, qkv, Extras::default())
    }
}

/// mamba and mamba2.
pub(super) fn mamba(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let is_first = b.plan.model.architecture == "mamba";
        let mut x = if is_first { b.mamba(il, &states, x)? } else { b.mamba2(il, &states, x)? };
        b.only_outputs(il, out_ids, &mut [&mut x, &mut rows]);
        rows = b.graph.add(x, rows);
    }
    finish(b, &PLAIN, rows, out_ids)
}

/// jamba.
pub(super) fn jamba(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { norm_w: NormW::Never, ..PLAIN };
    let mut rows = b.inp_embd(Embeddings::default())?;
    let (states, attn) = (b.inp_rs()?, b.inp_attn()?);
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let is_recurrent = b.layer(il)?.n_head_kv == 0;
        let mut x = if is_recurrent { b.mamba(il, &states, x)? } else { b.plain_attn(il, &attn, x, None)? };
        b.only_outputs(il, out_ids, &mut [&mut x, &mut rows]);
        let middle = b.graph.add(rows, x);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &spec, il, x)?;
        rows = b.graph.add(middle, x);
    }
    finish(b, &spec, rows, out_ids)
}

/// granite's hybrid.
pub(super) fn granite(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { logits: Logits::Scaled, ..PLAIN };
    let mut rows =
        b.inp_embd(Embeddings { scaled: b.f64_or_0("embedding_scale").abs() > 0.0, ..Embeddings::default() })?;
    let (states, attn) = (b.inp_rs()?, b.inp_attn()?);
    let out_ids = b.inp_out_ids();
    let turned = !matches!(b.hparams().value("rope.scaling.finetuned"), Some(crate::gguf::Value::Bool(false)));
    let positions = turned.then(|| b.inp_pos());
    let scales = b.f64_or_0("residual_scale").abs() > 0.0;
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let is_recurrent = b.layer(il)?.is_recr;
        let mut x = if is_recurrent { b.mamba2(il, &states, x)? } else { b.plain_attn(il, &attn, x, positions)? };
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        if scales {
            x = b.graph.scale(x);
        }
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let mut x = feed_forward(b, &spec, il, x)?;
        if scales {
            x = b.graph.scale(x);
        }
        rows = b.graph.add(x, middle);
    }
    finish(b, &spec, rows, out_ids)
}

/// falcon-h1: both in every layer.
pub(super) fn falcon_h1(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let positions = b.inp_pos();
    let (states, attn) = (b.inp_rs()?, b.inp_attn()?);
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let attended = b.plain_attn(il, &attn, x, Some(positions))?;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let scanned = b.mamba2(il, &states, x)?;
        let x = b.graph.add(attended, scanned);
        let mut middle = b.graph.add(x, rows);
        b.only_outputs(il, out_ids, &mut [&mut middle]);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &PLAIN, il, x)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &PLAIN, rows, out_ids)
}

/// lfm2 and lfm2moe.
pub(super) fn lfm2(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { gating_stated: true, ..PLAIN };
    let mut rows = b.inp_embd(Embeddings::default())?;
    let (states, attn) = (b.inp_rs()?, b.inp_attn()?);
    let positions = b.inp_pos();
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let is_recurrent = b.layer(il)?.is_recr;
        let mut x =
            if is_recurrent { b.shortconv(il, &states, x)? } else { b.plain_attn(il, &attn, x, Some(positions))? };
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let middle = b.graph.add(residual, x);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &spec, il, x)?;
        rows = b.graph.add(middle, x);
    }
    let normed = match b.maybe_global("token_embd_norm.weight") {
        Some(weight) => b.norm_with(None, Some(weight), None, rows, Norm::Rms),
        None => b.output_norm(rows, Norm::Rms)?,
    };
    b.mark_output(normed);
    b.logits(normed)
}

/// nemotron_h and nemotron_h_moe: a state-space, an attention or a feed-forward part by layer.
pub(super) fn nemotron_h(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { pick: Pick::AfterNorm, ..PLAIN };
    let mut rows = b.inp_embd(Embeddings::default())?;
    let (states, attn) = (b.inp_rs()?, b.inp_attn()?);
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let layer = b.layer(il)?;
        let x = if layer.is_recr {
            b.mamba2(il, &states, x)?
        } else if layer.no_ffn {
            b.plain_attn(il, &attn, x, None)?
        } else {
            nemotron_ffn(b, il, x)?
        };
        rows = b.graph.add(x, rows);
    }
    finish(b, &spec, rows, out_ids)
}

fn nemotron_ffn(b: &mut Builder<'_>, il: u32, x: Id) -> Result<Id, Error> {
    if !b.weights.has(il, "ffn_gate_inp.weight") {
        return b.ffn(il, "", x, Act::ReluSqr);
    }
    let narrow = if b.weights.has(il, "ffn_latent_down.weight") { b.mm(il, "ffn_latent_down", x)? } else { x };
    let logits = b.mm(il, "ffn_gate_inp", x)?;
    let moe = Moe {
        act: Act::ReluSqr,
        gating: Gating::Sigmoid,
        norm_w: b.flag("expert_weights_norm"),
        scaled: b.expert_weights_scaled(),
        logits: Some(logits),
        ..Moe::default()
    };
    let mut routed = b.moe(il, narrow, &moe)?;
    if b.weights.has(il, "ffn_latent_up.weight") {
        routed = b.mm(il, "ffn_latent_up", routed)?;
    }
    let shared = b.ffn(il, "_shexp", x, Act::ReluSqr)?;
    Ok(b.graph.add(routed, shared))
}
