//! Decoders that mix gated delta nets and attention: qwen3next and its successors.
//!
//! Source: `src/models/qwen3next.cpp`, `qwen35.cpp`, `qwen35moe.cpp`, `qwen4exp.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Id, Op, Unary};
use super::super::{Builder, Error, Norm};
use super::plain::{PLAIN, Pick, Spec, feed_forward, finish};
use super::qwen4exp;

/// The traits that these share with plain decoders.
const SPEC: Spec = Spec { pick: Pick::AfterNorm, ..PLAIN };

/// The sizes of a delta net's heads.
#[derive(Clone, Copy)]
struct Heads {
    k_dim: u64,
    n_k: u64,
    v_dim: u64,
    n_v: u64,
}

/// Builds the graph.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let attn = b.inp_attn()?;
    let positions = b.inp_pos();
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        b.graph.expand(x);
        let x = if b.layer(il)?.is_recr {
            linear_attention(b, il, x, &states)?
        } else {
            gated_attention(b, il, x, &attn, positions)?
        };
        let middle = b.graph.add(x, rows);
        let x = b.norm(il, "post_attention_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &SPEC, il, x)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &SPEC, rows, out_ids)
}

/// Attention whose query projection holds a gate for each head behind its query.
pub(super) fn gated_attention(
    b: &mut Builder<'_>,
    il: u32,
    x: Id,
    attn: &AttnInputs,
    positions: Id,
) -> Result<Id, Error> {
    let layer = b.layer(il)?;
    let (head, n_head, n_kv) = (u64::from(layer.n_embd_head_v), u64::from(layer.n_head), u64::from(layer.n_head_kv));
    let n_tokens = b.n_tokens;
    let [both, k, v] = if b.plan.model.architecture == "qwen4exp" {
        // It has biases there that it does not add.
        [b.mm(il, "attn_q", x)?, b.mm(il, "attn_k", x)?, b.mm(il, "attn_v", x)?]
    } else {
        b.qkv_rows(il, x, (2 * head * n_head, head * n_kv, head * n_kv))?
    };
    let strides = [8 * head, 8 * head * n_head];
    let q = b.graph.view(both, &[head, n_head, n_tokens], &strides, 0);
    let q = b.norm(il, "attn_q_norm", q, Norm::Rms)?;
    let k = b.graph.reshape(k, &[head, n_kv, n_tokens]);
    let k = b.norm(il, "attn_k_norm", k, Norm::Rms)?;
    let gate = b.graph.view(both, &[head, n_head, n_tokens], &strides, 4 * head);
    let gate = b.graph.cont_nd(gate, &[head * n_head, n_tokens]);
    let v = b.graph.reshape(v, &[head, n_kv, n_tokens]);
    let mut qkv = Qkv { q, k, v };
    b.rope_qk(&mut qkv, positions, None);
    let rows = b.attn(il, attn, qkv, Extras::default())?;
    let gate = b.graph.unary(Unary::Sigmoid, gate);
    let rows = b.graph.mul(rows, gate);
    b.mm(il, "attn_output", rows)
}

/// The delta net of a layer.
pub(super) fn linear_attention(b: &mut Builder<'_>, il: u32, x: Id, inputs: &StateInputs) -> Result<Id, Error> {
    let n_v = b.hparam("ssm.time_step_rank")?;
    let v_dim = b.hparam("ssm.inner_size")? / n_v;
    let heads = Heads { k_dim: b.hparam("ssm.state_size")?, n_k: b.hparam("ssm.group_count")?, v_dim, n_v };
    let batch = b.plan.batch;
    let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
    let (mixed, z) = project(b, il, x, heads)?;
    let (beta, gate) = gates(b, il, x, heads)?;
    let (conv_states, ssm_states) = (b.conv_states(il)?, b.ssm_states(il)?);
    let kernel = b.weight(il, "ssm_conv1d.weight")?;
    let channels = v_dim * n_v + 2 * heads.n_k * heads.k_dim;
    let size = b.ne(kernel, 0);
    let is_exp = b.plan.model.architecture == "qwen4exp";
    let input = if is_exp {
        qwen4exp::conv_input(b, inputs, conv_states, mixed, (size - 1, channels))
    } else {
        b.conv_input(inputs, conv_states, mixed, size, channels)
    };
    let state = b.read_states(inputs, ssm_states);
    let state = b.graph.reshape(state, &[v_dim, v_dim, n_v, n_seqs]);
    let conv = b.ssm_conv(input, kernel);
    let conv = b.graph.unary(Unary::Silu, conv);
    let row = 4 * channels;
    let part = |b: &mut Builder<'_>, dim: u64, n: u64, offset: u64| {
        b.graph.view(conv, &[dim, n, n_tokens, n_seqs], &[4 * dim, row, row * n_tokens], 4 * offset)
    };
    let q = part(b, heads.k_dim, heads.n_k, 0);
    let k = part(b, heads.k_dim, heads.n_k, heads.k_dim * heads.n_k);
    let v = part(b, v_dim, n_v, 2 * heads.k_dim * heads.n_k);
    let mut q = b.unit_norm(q);
    let mut k = b.unit_norm(k);
    if heads.n_k != n_v && b.plan.model.architecture == "qwen3next" {
        q = repeat_heads(b, q, heads);
        k = repeat_heads(b, k, heads);
    }
    let output = b.delta_net([q, k, v, gate, beta, state], ssm_states);
    let z = b.graph.reshape(z, &[v_dim, n_v, n_tokens, n_seqs]);
    let normed = b.norm(il, "ssm_norm", output, Norm::Rms)?;
    let z = b.graph.unary(if is_exp { Unary::Sigmoid } else { Unary::Silu }, z);
    let rows = b.graph.mul(normed, z);
    let rows = b.graph.reshape(rows, &[v_dim * n_v, n_tokens, n_seqs]);
    let rows = b.mm(il, "ssm_out", rows)?;
    Ok(b.graph.reshape(rows, &[b.n_embd, n_tokens * n_seqs]))
}

/// Each key head as often as there are value heads to it.
fn repeat_heads(b: &mut Builder<'_>, x: Id, heads: Heads) -> Id {
    let batch = b.plan.batch;
    let n = batch.n_tokens;
    let apart = b.graph.reshape(x, &[heads.k_dim, 1, heads.n_k, n]);
    let repeated = b.graph.repeat(apart, &[heads.k_dim, heads.n_v / heads.n_k, heads.n_k, n]);
    b.graph.reshape(repeated, &[heads.k_dim, heads.n_v, batch.n_seq_tokens(), batch.n_seqs])
}

/// Queries, keys and values in one, and the output's gate (`build_qkvz`).
fn project(b: &mut Builder<'_>, il: u32, x: Id, heads: Heads) -> Result<(Id, Id), Error> {
    let batch = b.plan.batch;
    let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
    if b.weights.has(il, "attn_qkv.weight") {
        let mixed = b.mm(il, "attn_qkv", x)?;
        let mixed = b.by_sequence(mixed);
        let z = b.mm(il, "attn_gate", x)?;
        return Ok((mixed, z));
    }
    let group = heads.v_dim * heads.n_v / heads.n_k;
    let all = b.mm(il, "ssm_in", x)?;
    let all = b.graph.reshape(all, &[2 * heads.k_dim + 2 * group, heads.n_k, n_tokens, n_seqs]);
    let nb = b.graph.tensor(all).nb;
    let part = |b: &mut Builder<'_>, width: u64, offset: u64| {
        b.graph.view(all, &[width, heads.n_k, n_tokens, n_seqs], &nb[1..], 4 * offset)
    };
    let q = part(b, heads.k_dim, 0);
    let k = part(b, heads.k_dim, heads.k_dim);
    let v = part(b, group, 2 * heads.k_dim);
    let z = part(b, group, 2 * heads.k_dim + group);
    let z = b.graph.cont(z);
    let [q, k, v] = [(q, heads.k_dim * heads.n_k), (k, heads.k_dim * heads.n_k), (v, heads.v_dim * heads.n_v)]
        .map(|(part, width)| b.graph.cont_nd(part, &[width, n_tokens, n_seqs]));
    let mixed = b.graph.concat(q, k, 0);
    Ok((b.graph.concat(mixed, v, 0), z))
}

/// How much of the state is replaced, and how much decays.
fn gates(b: &mut Builder<'_>, il: u32, x: Id, heads: Heads) -> Result<(Id, Id), Error> {
    let batch = b.plan.batch;
    let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
    let by_head = [1, heads.n_v, n_tokens, n_seqs];
    let (beta, alpha) = if b.weights.has(il, "ssm_ba.weight") {
        let both = b.mm(il, "ssm_ba", x)?;
        let each = heads.n_v / heads.n_k;
        let both = b.graph.reshape(both, &[2 * each, heads.n_k, n_tokens, n_seqs]);
        let nb = b.graph.tensor(both).nb;
        let beta = b.graph.view(both, &[each, heads.n_k, n_tokens, n_seqs], &nb[1..], 0);
        let alpha = b.graph.view(both, &[each, heads.n_k, n_tokens, n_seqs], &nb[1..], 4 * each);
        let beta = b.graph.cont(beta);
        let beta = b.graph.unary(Unary::Sigmoid, beta);
        (b.graph.reshape(beta, &by_head), b.graph.cont_nd(alpha, &[heads.n_v, n_tokens, n_seqs]))
    } else {
        let beta = b.mm(il, "ssm_beta", x)?;
        let beta = b.graph.reshape(beta, &by_head);
        let beta = b.graph.unary(Unary::Sigmoid, beta);
        let alpha = b.mm(il, "ssm_alpha", x)?;
        (beta, b.graph.reshape(alpha, &[heads.n_v, n_tokens, n_seqs]))
    };
    let bias = b.weight(il, "ssm_dt.bias")?;
    let alpha = b.graph.add(alpha, bias);
    let alpha = b.graph.unary(Unary::Softplus, alpha);
    let decay = b.weight(il, "ssm_a")?;
    let gate = b.graph.like(Op::Mul, &[alpha, decay]);
    Ok((beta, b.graph.reshape(gate, &by_head)))
}
