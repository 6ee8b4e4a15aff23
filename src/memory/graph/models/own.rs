//! Decoders whose layers differ from the plain ones in ways of their own.
//!
//! Source: `src/models/*.cpp` named at each function, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::Embeddings;
use super::super::tensor::{Id, Unary};
use super::super::{Builder, Error, Norm};
use super::plain::{Logits, NormW, PLAIN, Pick, Spec, feed_forward, finish};

/// What every layer reads besides its rows.
struct Common {
    positions: Id,
    attn: AttnInputs,
    out_ids: Id,
}

fn common(b: &mut Builder<'_>) -> Result<Common, Error> {
    Ok(Common { positions: b.inp_pos(), attn: b.inp_attn()?, out_ids: b.inp_out_ids() })
}

/// A layer's attention after its norm, and the residual, cut to the rows that are put out.
fn attended(b: &mut Builder<'_>, il: u32, rows: Id, common: &Common) -> Result<(Id, Id), Error> {
    let mut residual = rows;
    let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
    let mut qkv = b.qkv(il, x)?;
    b.norm_qk(il, &mut qkv, Norm::Rms)?;
    let factors = b.rope_factors(il)?;
    b.rope_qk(&mut qkv, common.positions, factors);
    let mut x = b.attn_out(il, &common.attn, qkv, Extras::default())?;
    b.only_outputs(il, common.out_ids, &mut [&mut x, &mut residual]);
    Ok((x, residual))
}

/// `arctic.cpp`: a dense part, and experts that read the layer's input.
pub(super) fn arctic(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let common = common(b)?;
    for il in 0..b.n_layer {
        let (x, residual) = attended(b, il, rows, &common)?;
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = b.ffn(il, "", x, Act::Silu)?;
        let dense = b.graph.add(x, middle);
        let x = b.norm(il, "ffn_norm_exps", residual, Norm::Rms)?;
        let scaled = b.expert_weights_scaled();
        let x = b.moe(il, x, &Moe { scaled, ..Moe::default() })?;
        rows = b.graph.add(x, dense);
    }
    finish(b, &PLAIN, rows, common.out_ids)
}

/// `grok.cpp`: norms after both parts, experts beside a dense part, scores squashed.
pub(super) fn grok(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { logits: Logits::ScaledCapped, ..PLAIN };
    let scaled = b.f64_or_0("embedding_scale").abs() > 0.0;
    let mut rows = b.inp_embd(Embeddings { scaled, ..Embeddings::default() })?;
    let common = common(b)?;
    for il in 0..b.n_layer {
        let (x, residual) = attended(b, il, rows, &common)?;
        let x = b.norm(il, "attn_output_norm", x, Norm::Rms)?;
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let scaled = b.expert_weights_scaled();
        let mut routed = b.moe(il, x, &Moe { act: Act::Gelu, scaled, ..Moe::default() })?;
        if b.weights.has(il, "ffn_up.weight") {
            let dense = b.ffn(il, "", x, Act::Gelu)?;
            let sum = b.graph.add(dense, routed);
            routed = b.graph.scale(sum);
        }
        let name = if b.weights.has(il, "layer_output_norm.weight") { "layer_output_norm" } else { "post_ffw_norm" };
        let x = b.norm(il, name, routed, Norm::Rms)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &spec, rows, common.out_ids)
}

/// `grovemoe.cpp`: experts, and chunk experts that groups of them share, chosen by one router.
pub(super) fn grovemoe(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let common = common(b)?;
    for il in 0..b.n_layer {
        let (x, residual) = attended(b, il, rows, &common)?;
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let logits = b.mm(il, "ffn_gate_inp", x)?;
        let moe = Moe { scaled: b.expert_weights_scaled(), logits: Some(logits), ..Moe::default() };
        let routed = b.moe(il, x, &moe)?;
        let chunks = b.chunk_experts(il, routed, logits, &moe)?;
        let chunks = b.graph.scale(chunks);
        let x = b.graph.add(routed, chunks);
        rows = b.graph.add(x, middle);
    }
    finish(b, &PLAIN, rows, common.out_ids)
}

impl Builder<'_> {
    /// The experts that `experts_per_group` experts share; they read the experts' sum.
    fn chunk_experts(&mut self, il: u32, x: Id, logits: Id, moe: &Moe) -> Result<Id, Error> {
        let n_expert = self.ne(logits, 0);
        let n_chunks = n_expert / self.hparam("experts_per_group")?;
        let n_views = self.n_expert_used(il)?;
        let n_used = n_views.min(n_chunks);
        let (n_embd, n_tokens) = (self.ne(x, 0), self.ne(x, 1));
        let probs = self.graph.soft_max(logits, None);
        let scores = self.graph.unary(Unary::Sigmoid, logits);
        let best = self.graph.argsort_top_k(scores, n_used);
        let selected = self.scaled_ids(best);
        let weights = self.weigh(probs, selected, (n_expert, n_used, n_tokens), moe);
        self.graph.expand(weights);
        let rows = self.graph.reshape(x, &[n_embd, 1, n_tokens]);
        let hidden = self.expert_hidden(il, "chexps", rows, selected, moe)?;
        let experts = self.expert_mm(il, "ffn_down_chexps", hidden, selected)?;
        let experts = self.graph.mul(experts, weights);
        Ok(self.add_up(experts, n_views))
    }
}

/// `llama4.cpp`: every fourth layer without positions but with a factor of them.
pub(super) fn llama4(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec = Spec { gating: Gating::Sigmoid, norm_w: NormW::Never, ..PLAIN };
    let mut rows = b.inp_embd(Embeddings::default())?;
    let scale = b.inp_attn_scale();
    let common = common(b)?;
    let windowed = b.plan.caches.hparams.swa.is_some();
    let step = if windowed { 4 } else { b.n_layer.max(1) };
    // Only Maverick (128 experts) leaves queries and keys as they are.
    let norms_qk = b.hparams().expert_count != 128;
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let mut qkv = b.qkv(il, x)?;
        if (il + 1).is_multiple_of(step) {
            qkv.q = b.graph.mul(qkv.q, scale);
        } else {
            let factors = b.rope_factors(il)?;
            b.rope_qk(&mut qkv, common.positions, factors);
            if norms_qk {
                qkv.q = b.rms(qkv.q);
                qkv.k = b.rms(qkv.k);
            }
        }
        let mut x = b.attn_out(il, &common.attn, qkv, Extras::default())?;
        b.only_outputs(il, common.out_ids, &mut [&mut x, &mut residual]);
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &spec, il, x)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &spec, rows, common.out_ids)
}

/// `smallthinker.cpp`: the router reads the layer's input before attention.
pub(super) fn smallthinker(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let common = common(b)?;
    let step = if b.plan.caches.hparams.swa.is_some() { 4 } else { b.n_layer.max(1) };
    let gating = b.stated_gating(Gating::Softmax)?;
    for il in 0..b.n_layer {
        let mut residual = rows;
        let mut logits = b.mm(il, "ffn_gate_inp", rows)?;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let mut qkv = b.qkv(il, x)?;
        if step == b.n_layer || !il.is_multiple_of(step) {
            b.rope_qk(&mut qkv, common.positions, None);
        }
        let mut x = b.attn_out(il, &common.attn, qkv, Extras::default())?;
        b.only_outputs(il, common.out_ids, &mut [&mut x, &mut residual, &mut logits]);
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let scaled = b.expert_weights_scaled();
        let x = b.moe(il, x, &Moe { act: Act::Relu, gating, scaled, logits: Some(logits), ..Moe::default() })?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &PLAIN, rows, common.out_ids)
}

/// `openelm.cpp`: heads by layer, from one projection.
pub(super) fn openelm(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let common = common(b)?;
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let layer = b.layer(il)?;
        let (head, n_head, n_kv) =
            (u64::from(layer.n_embd_head_k), u64::from(layer.n_head), u64::from(layer.n_head_kv));
        let n_tokens = b.n_tokens;
        let all = b.raw_mm(il, "attn_qkv", x)?;
        let all = b.graph.reshape(all, &[head, n_head + 2 * n_kv, n_tokens]);
        let nb = b.graph.tensor(all).nb;
        let [q, k, v] = [(n_head, 0), (n_kv, n_head), (n_kv, n_head + n_kv)]
            .map(|(n, from)| b.graph.view(all, &[head, n, n_tokens], &nb[1..3], from * nb[1]));
        let mut qkv = Qkv { q, k, v };
        b.norm_qk(il, &mut qkv, Norm::Rms)?;
        b.rope_qk(&mut qkv, common.positions, None);
        let mut x = b.attn_out(il, &common.attn, qkv, Extras::default())?;
        b.only_outputs(il, common.out_ids, &mut [&mut x, &mut residual]);
        let middle = b.graph.add(residual, x);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = b.ffn(il, "", x, Act::Silu)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &PLAIN, rows, common.out_ids)
}

/// `talkie.cpp`: norms without weights, the embeddings added again in every layer.
pub(super) fn talkie(b: &mut Builder<'_>) -> Result<(), Error> {
    let rows = b.inp_embd(Embeddings::default())?;
    let mut rows = b.rms(rows);
    let embeddings = rows;
    let common = common(b)?;
    for il in 0..b.n_layer {
        let (mut residual, mut skip) = (rows, embeddings);
        let x = b.rms(rows);
        let mut qkv = b.qkv(il, x)?;
        b.rope_qk(&mut qkv, common.positions, None);
        qkv.q = b.norm(il, "attn_q_norm", qkv.q, Norm::Rms)?;
        qkv.k = b.rms(qkv.k);
        let mut x = b.attn_out(il, &common.attn, qkv, Extras::default())?;
        b.only_outputs(il, common.out_ids, &mut [&mut x, &mut residual, &mut skip]);
        let middle = b.graph.add(x, residual);
        let x = b.rms(middle);
        let x = b.ffn(il, "", x, Act::Silu)?;
        let x = b.graph.add(x, middle);
        let scale = b.weight(il, "layer_output_scale.weight")?;
        let skip = b.graph.mul(skip, scale);
        rows = b.graph.add(x, skip);
    }
    let rows = b.rms(rows);
    b.mark_output(rows);
    let logits = b.lm_head(rows)?;
    let logits = b.graph.scale(logits);
    b.finish(logits);
    Ok(())
}

/// `nanbeige.cpp`: the same layers several times, the last norm between the rounds.
pub(super) fn nanbeige(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let common = common(b)?;
    let n_blocks = b.hparams().block_count.max(1);
    b.weights.run_blocks((0..b.n_layer).map(|il| il % n_blocks).collect());
    let norms_between = b.n_layer > n_blocks && !b.flag("skip_loop_final_norm");
    for il in 0..b.n_layer {
        let (x, residual) = attended(b, il, rows, &common)?;
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = b.ffn(il, "", x, Act::Silu)?;
        rows = b.graph.add(x, middle);
        if norms_between && (il + 1).is_multiple_of(n_blocks) && !b.is_last(il) {
            let weight = b.global("output_norm.weight")?;
            rows = b.norm_with(None, Some(weight), None, rows, Norm::Rms);
        }
    }
    finish(b, &PLAIN, rows, common.out_ids)
}

/// `hrm-text.cpp`: two stacks that read each other's state, several times.
pub(super) fn hrm_text(b: &mut Builder<'_>) -> Result<(), Error> {
    let scaled = b.f64_or_0("embedding_scale").abs() > 0.0;
    let mut high = b.inp_embd(Embeddings { scaled, ..Embeddings::default() })?;
    let common = common(b)?;
    let number = |key: &str| b.hparam(key).map(|_| b.hparams().u32_or_0(key));
    let per_stack = number("hrm.layers_per_stack")?;
    let (n_high, n_low) = (number("hrm.h_cycles")?, number("hrm.l_cycles")?);
    let n_layer = b.n_layer;
    let block = |il: u32| il % per_stack + if il / per_stack % (n_low + 1) == n_low { per_stack } else { 0 };
    b.weights.run_blocks((0..n_layer).map(block).collect());
    let mut low = match b.maybe_global("hrm.z_l_init.weight") {
        Some(low) => low,
        None => b.global("hrm.z_l_init")?,
    };
    for h in 0..n_high {
        for l in 0..n_low {
            let sum = b.graph.add(high, low);
            low = hrm_stack(b, sum, (h * (n_low + 1) + l) * per_stack, per_stack, &common)?;
        }
        let sum = b.graph.add(high, low);
        high = hrm_stack(b, sum, (h * (n_low + 1) + n_low) * per_stack, per_stack, &common)?;
    }
    let rows = b.graph.get_rows(high, common.out_ids);
    b.mark_output(rows);
    b.logits(rows)
}

fn hrm_stack(b: &mut Builder<'_>, mut rows: Id, first: u32, n: u32, common: &Common) -> Result<Id, Error> {
    for il in first..first + n {
        let x = b.rms(rows);
        let gate = b.raw_mm(il, "attn_gate", x)?;
        let mut qkv = b.qkv(il, x)?;
        b.rope_qk(&mut qkv, common.positions, None);
        let x = b.attn(il, &common.attn, qkv, Extras::default())?;
        let gate = b.graph.unary(Unary::Sigmoid, gate);
        let x = b.graph.mul(x, gate);
        let x = b.mm(il, "attn_output", x)?;
        let middle = b.graph.add(x, rows);
        let x = b.rms(middle);
        let x = b.ffn(il, "", x, Act::Silu)?;
        rows = b.graph.add(x, middle);
    }
    Ok(b.rms(rows))
}

/// `deci.cpp`: layers may lack attention, have only its output matrix, or lack a feed-forward part.
pub(super) fn deci(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let common = common(b)?;
    for il in 0..b.n_layer {
        let layer = b.layer(il)?;
        let mut residual = rows;
        let mut x = rows;
        if layer.n_head > 0 {
            x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        }
        if layer.n_head > 0 && layer.n_head_kv == 0 {
            x = b.mm(il, "attn_output", x)?;
        } else if layer.n_head > 0 {
            let factors = b.rope_factors(il)?;
            let mut qkv = b.qkv(il, x)?;
            b.rope_qk(&mut qkv, common.positions, factors);
            x = b.attn_out(il, &common.attn, qkv, Extras::default())?;
        }
        b.only_outputs(il, common.out_ids, &mut [&mut x, &mut residual]);
        if layer.no_ffn {
            continue;
        }
        let middle = if layer.n_head > 0 { b.graph.add(x, residual) } else { x };
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = b.ffn(il, "", x, Act::Silu)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &Spec { pick: Pick::Early, ..PLAIN }, rows, common.out_ids)
}
