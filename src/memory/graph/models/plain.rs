//! Decoders of attention and feed-forward layers, one after the other: one loop, told apart by their traits.
//!
//! Source: `src/models/*.cpp` (`graph::graph` of each architecture in the table), llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::ffn::Moe;
use super::super::inputs::Embeddings;
use super::super::tensor::{Id, Unary};
use super::super::{Builder, Error};
use crate::arch::{Act, Alibi, Input, Norm, Pre, QkNorm, Residual, Rope};
pub(super) use crate::arch::{Logits, NormW, PLAIN, Pick, Spec};

/// What every layer of a decoder reads besides its rows.
pub(super) struct Inputs {
    pub(super) positions: Id,
    pub(super) attn: AttnInputs,
    pub(super) attn_scale: Option<Id>,
    pub(super) out_ids: Id,
    /// The embeddings, for layers that add a part of them (deepstack).
    pub(super) embeddings: Id,
}

/// Builds a decoder of these traits.
pub(super) fn decoder(b: &mut Builder<'_>, spec: &Spec) -> Result<(), Error> {
    let embeddings = Embeddings {
        n_deepstack: if spec.deepstack { b.hparam_or_0("n_deepstack_layers")? } else { 0 },
        scaled: spec.scales_embd && b.has_multiplier(spec, "embedding_scale"),
        token_scaled: spec.scales_tokens,
    };
    let mut rows = b.inp_embd(embeddings)?;
    rows = match spec.input {
        Input::Plain => rows,
        Input::Scaled => b.graph.scale(rows),
        Input::Normed => b.rms(rows),
    };
    if let Some(weight) = b.maybe_global("token_embd_norm.weight") {
        let bias = b.maybe_global("token_embd_norm.bias");
        rows = b.norm_with(None, Some(weight), bias, rows, spec.norm);
    }
    if let Some(table) = b.maybe_global("position_embd.weight") {
        let positions = b.inp_pos();
        let places = b.graph.get_rows(table, positions);
        rows = b.graph.add(rows, places);
    }
    let is_tempered = spec.temperature && b.f64_or_0("attention.temperature_scale").abs() > 0.0;
    let attn_scale = is_tempered.then(|| b.inp_attn_scale());
    let positions = b.inp_pos();
    let inputs = Inputs { positions, attn: b.inp_attn()?, attn_scale, out_ids: b.inp_out_ids(), embeddings: rows };
    for il in 0..b.n_layer {
        rows = layer(b, spec, il, rows, &inputs)?;
        if embeddings.n_deepstack > 0 && u64::from(il) < embeddings.n_deepstack {
            let (width, n_tokens, stride) = (b.n_embd, b.n_tokens, b.nb(inputs.embeddings, 1));
            let part = b.graph.view(inputs.embeddings, &[width, n_tokens], &[stride], 4 * width * u64::from(il + 1));
            rows = b.graph.add(rows, part);
        }
    }
    finish(b, spec, rows, inputs.out_ids)
}

/// What follows attention `x` in a layer that got `rows`: both added, the feed-forward part of the sum's norm, added to it.
pub(super) fn after_attention(
    b: &mut Builder<'_>,
    spec: &Spec,
    il: u32,
    (mut x, mut rows): (Id, Id),
    out_ids: Id,
) -> Result<Id, Error> {
    b.only_outputs(il, out_ids, &mut [&mut x, &mut rows]);
    let middle = b.graph.add(x, rows);
    let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
    let x = feed_forward(b, spec, il, x)?;
    Ok(b.graph.add(x, middle))
}

/// The last norm and the logits.
pub(super) fn finish(b: &mut Builder<'_>, spec: &Spec, mut rows: Id, out_ids: Id) -> Result<(), Error> {
    if spec.pick == Pick::BeforeNorm {
        b.mark_output(rows);
        rows = b.graph.get_rows(rows, out_ids);
    }
    let mut rows = if spec.pre == Pre::Bare {
        b.norm_with(None, None, None, rows, spec.norm)
    } else {
        b.output_norm(rows, spec.norm)?
    };
    b.mark_output(rows);
    if spec.pick == Pick::AfterNorm {
        rows = b.graph.get_rows(rows, out_ids);
        b.mark_output(rows);
    }
    let mut logits = b.lm_head(rows)?;
    if let Some(bias) = b.maybe_global("output.bias") {
        logits = b.graph.add(logits, bias);
    }
    let is_set = |b: &Builder<'_>, key: &str| b.f64_or_0(key).abs() > 0.0;
    if matches!(spec.logits, Logits::Scaled | Logits::ScaledCapped) && is_set(b, "logit_scale") {
        logits = b.graph.scale(logits);
    }
    if matches!(spec.logits, Logits::Capped | Logits::ScaledCapped) && is_set(b, "final_logit_softcapping") {
        logits = b.graph.scale(logits);
        logits = b.graph.unary(Unary::Tanh, logits);
        logits = b.graph.scale(logits);
    }
    b.finish(logits);
    Ok(())
}

fn layer(b: &mut Builder<'_>, spec: &Spec, il: u32, mut residual: Id, inputs: &Inputs) -> Result<Id, Error> {
    let mut normed = match spec.pre {
        Pre::Weighted => b.norm(il, "attn_norm", residual, spec.norm)?,
        Pre::Bare => b.norm_with(None, None, None, residual, spec.norm),
        Pre::Raw => residual,
    };
    let own = b.weights.has(il, "attn_norm_2.weight");
    let attn_input = if own { b.norm(il, "attn_norm_2", residual, spec.norm)? } else { normed };
    let mut rows = attention(b, spec, il, attn_input, inputs)?;
    if spec.scales_v && b.f64_or_0("attention.value_scale").abs() > 0.0 {
        rows = b.graph.scale(rows);
    }
    if spec.pick == Pick::Early {
        b.only_outputs(il, inputs.out_ids, &mut [&mut rows, &mut residual]);
        if spec.residual != Residual::Sequential
            || spec.ffn_norm.is_some_and(|n| !b.weights.has(il, &format!("{n}.weight")))
        {
            b.only_outputs(il, inputs.out_ids, &mut [&mut normed]);
        }
    }
    if let Some(name) = spec.attn_post_norm {
        rows = b.norm(il, name, rows, spec.norm)?;
    }
    if spec.scales_residual && b.has_multiplier(spec, "residual_scale") {
        rows = b.graph.scale(rows);
    }
    let is_parallel = match spec.residual {
        Residual::Sequential => false,
        Residual::ParallelIfStated => b.flag("use_parallel_residual"),
        _ => true,
    };
    if is_parallel {
        return parallel(b, spec, il, (rows, residual, normed));
    }
    let middle = b.graph.add(rows, residual);
    let x = match spec.ffn_norm {
        Some(name) if spec.pre == Pre::Bare && name.is_empty() => b.norm_with(None, None, None, middle, spec.norm),
        Some(name) if b.weights.has(il, &format!("{name}.weight")) => b.norm(il, name, middle, spec.norm)?,
        Some(_) => normed,
        None => middle,
    };
    let mut x = feed_forward(b, spec, il, x)?;
    if let Some(name) = spec.ffn_post_norm {
        let weight = b.norm_weight(il, name)?;
        x = b.norm_with(Some(il).filter(|_| spec.pins_last_norm()), Some(weight), None, x, spec.norm);
    }
    if spec.scales_residual && b.has_multiplier(spec, "residual_scale") {
        x = b.graph.scale(x);
    }
    Ok(if spec.residual_first { b.graph.add(middle, x) } else { b.graph.add(x, middle) })
}

impl Spec {
    /// gemma, exaone4 and olmo2 give the last norm of a layer no layer number, so that it is not bound to its device.
    fn pins_last_norm(&self) -> bool {
        self.ffn_post_norm != Some(UNBOUND)
    }
}

/// The last norm's name where it is not bound to its layer's device.
const UNBOUND: &str = "post_ffw_norm";

fn parallel(b: &mut Builder<'_>, spec: &Spec, il: u32, (rows, residual, normed): (Id, Id, Id)) -> Result<Id, Error> {
    let own_norm = spec.ffn_norm.filter(|n| b.weights.has(il, &format!("{n}.weight")));
    let x = match own_norm {
        Some(name) => b.norm(il, name, residual, spec.norm)?,
        None => normed,
    };
    let x = feed_forward(b, spec, il, x)?;
    Ok(match spec.residual {
        Residual::ParallelAttnFirst => {
            let x = b.graph.add(x, rows);
            b.graph.add(x, residual)
        }
        Residual::ParallelOntoAttn => {
            let x = b.graph.add(rows, x);
            b.graph.add(x, residual)
        }
        _ => {
            let x = b.graph.add(x, residual);
            b.graph.add(x, rows)
        }
    })
}

fn turns(b: &Builder<'_>, spec: &Spec, il: u32) -> Result<bool, Error> {
    let is_swa = b.layer(il)?.is_swa;
    Ok(match spec.rope {
        Rope::All => true,
        Rope::Never => false,
        Rope::Windows => is_swa,
        Rope::WindowsIfAny => is_swa || b.plan.caches.hparams.swa.is_none(),
        Rope::WindowsOrLead => is_swa || il < b.hparams().u32_or_0("leading_dense_block_count"),
        Rope::SkipEvery(n) => !(il + 1).is_multiple_of(n),
        Rope::IfLayers(n) => b.n_layer == n,
    })
}

fn attention(b: &mut Builder<'_>, spec: &Spec, il: u32, x: Id, inputs: &Inputs) -> Result<Id, Error> {
    let mut qkv = b.qkv(il, x)?;
    if spec.qk_norm == QkNorm::Flat {
        qkv = b.qkv_flat(il, x, spec.norm)?;
    } else if spec.qk_norm == QkNorm::Before {
        b.norm_qk(il, &mut qkv, spec.norm)?;
    }
    if turns(b, spec, il)? {
        let factors = b.rope_factors(il)?;
        b.rope_qk(&mut qkv, inputs.positions, factors);
    }
    if spec.qk_norm == QkNorm::After {
        b.norm_qk(il, &mut qkv, spec.norm)?;
    }
    if spec.scales_q {
        qkv.q = b.graph.scale(qkv.q);
    }
    if let Some(factor) = inputs.attn_scale {
        qkv.q = b.graph.mul(qkv.q, factor);
    }
    let sinks = b.maybe_weight(il, "attn_sinks.weight");
    let alibi = match spec.alibi {
        Alibi::No => false,
        Alibi::Always => true,
        Alibi::IfStated => b.f64_or_0("attention.max_alibi_bias").abs() > 0.0,
    };
    let extras = Extras { sinks, alibi, soft_cap: spec.soft_cap, ..Extras::default() };
    if b.weights.has(il, "attn_gate.weight") {
        return gated(b, spec, il, x, (qkv, extras), inputs);
    }
    b.attn_out(il, &inputs.attn, qkv, extras)
}

/// Attention whose result is multiplied by a gate before its output projection: by head, or element by element.
fn gated(
    b: &mut Builder<'_>,
    spec: &Spec,
    il: u32,
    x: Id,
    (qkv, extras): (Qkv, Extras),
    inputs: &Inputs,
) -> Result<Id, Error> {
    let gate = b.raw_mm(il, "attn_gate", x)?;
    let mut rows = b.attn(il, &inputs.attn, qkv, extras)?;
    let function = if spec.softplus_gate { Unary::Softplus } else { Unary::Sigmoid };
    let gate = b.graph.unary(function, gate);
    let n_head = u64::from(b.layer(il)?.n_head);
    let (width, n_tokens) = (b.ne(rows, 0), b.ne(rows, 1));
    if b.ne(gate, 0) == n_head {
        rows = b.graph.reshape(rows, &[width / n_head, n_head, n_tokens]);
        let gate = b.graph.reshape(gate, &[1, n_head, n_tokens]);
        rows = b.graph.mul(rows, gate);
        rows = b.graph.reshape(rows, &[width, n_tokens]);
    } else {
        rows = b.graph.mul(rows, gate);
    }
    b.linear(il, "attn_output", rows)
}

/// Experts where the layer has a router, else one dense part.
pub(super) fn feed_forward(b: &mut Builder<'_>, spec: &Spec, il: u32, x: Id) -> Result<Id, Error> {
    let has_router = b.weights.has(il, "ffn_gate_inp.weight");
    if has_router && !spec.has_experts && !b.weights.has(il, "ffn_up.weight") {
        // refact loads experts and gives `build_ffn` its dense matrices, which then are null.
        return Ok(b.graph.unary(Unary::Silu, x));
    }
    if !spec.has_experts || !has_router {
        return b.ffn(il, "", x, spec.act);
    }
    let norm_w = match spec.norm_w {
        NormW::Always => true,
        NormW::Never => false,
        NormW::Stated => b.flag("expert_weights_norm"),
    };
    let scaled = spec.scales_w && b.expert_weights_scaled();
    let gating = if spec.gating_stated { b.stated_gating(spec.gating)? } else { spec.gating };
    let moe = Moe { act: spec.expert_act, gating, norm_w, scaled, ..Moe::default() };
    let routed = b.moe(il, x, &moe)?;
    shared_expert(b, spec, il, x, routed)
}

/// The experts' sum and the shared expert's rows.
fn shared_expert(b: &mut Builder<'_>, spec: &Spec, il: u32, x: Id, routed: Id) -> Result<Id, Error> {
    if !b.weights.has(il, "ffn_up_shexp.weight") {
        return Ok(routed);
    }
    let act = if b.weights.has(il, "ffn_gate_shexp.weight") { spec.act } else { Act::SwigluFused };
    let mut shared = b.ffn(il, "_shexp", x, act)?;
    if b.weights.has(il, "ffn_gate_inp_shexp.weight") {
        let gate = b.mm(il, "ffn_gate_inp_shexp", x)?;
        let open = if spec.silu_gate {
            let silu = b.graph.unary(Unary::Silu, gate);
            b.graph.div(silu, gate)
        } else {
            b.graph.unary(Unary::Sigmoid, gate)
        };
        shared = b.graph.mul(shared, open);
    }
    let sum = b.graph.add(routed, shared);
    Ok(if spec.scales_sum { b.graph.scale(sum) } else { sum })
}

impl Builder<'_> {
    /// Whether a multiplier is set.
    fn has_multiplier(&self, spec: &Spec, key: &str) -> bool {
        spec.has_multipliers || self.f64_or_0(key).abs() > 0.0
    }

    /// Queries, keys and values whose norms see all heads as one row (`build_qkv` without reshape).
    fn qkv_flat(&mut self, il: u32, x: Id, kind: Norm) -> Result<Qkv, Error> {
        let layer = self.layer(il)?;
        let n_tokens = self.n_tokens;
        let (k, v) = (u64::from(layer.n_embd_head_k), u64::from(layer.n_embd_head_v));
        let (n_head, n_kv) = (u64::from(layer.n_head), u64::from(layer.n_head_kv));
        let [q_rows, k_rows, v_rows] = self.qkv_rows(il, x, (k * n_head, k * n_kv, v * n_kv))?;
        let q_rows = self.norm(il, "attn_q_norm", q_rows, kind)?;
        let k_rows = self.norm(il, "attn_k_norm", k_rows, kind)?;
        Ok(Qkv {
            q: self.graph.reshape(q_rows, &[k, n_head, n_tokens]),
            k: self.graph.reshape(k_rows, &[k, n_kv, n_tokens]),
            v: self.graph.reshape(v_rows, &[v, n_kv, n_tokens]),
        })
    }

    /// Projections as rows of all heads; parts of a fused one are copied.
    pub(super) fn qkv_rows(&mut self, il: u32, x: Id, (q, k, v): (u64, u64, u64)) -> Result<[Id; 3], Error> {
        if !self.weights.has(il, "attn_qkv.weight") {
            let mut rows = |name: &str| self.linear(il, name, x);
            return Ok([rows("attn_q")?, rows("attn_k")?, rows("attn_v")?]);
        }
        let qkv = self.linear(il, "attn_qkv", x)?;
        let (stride, n_tokens) = (self.nb(qkv, 1), self.n_tokens);
        Ok([(q, 0), (k, q), (v, q + k)].map(|(width, offset)| {
            let part = self.graph.view(qkv, &[width, n_tokens], &[stride], 4 * offset);
            self.graph.cont(part)
        }))
    }

    /// The boolean `<arch>.KEY`, or false.
    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.hparams().value(key), Some(crate::gguf::Value::Bool(true)))
    }
}
