//! plamo2: its own state-space layers between attention layers.
//!
//! Source: `src/models/plamo2.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::ffn::Act;
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Glu, Id};
use super::super::{Builder, Error, Norm};
use super::plain::{PLAIN, finish};

/// Builds the graph.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let positions = b.inp_pos();
    let states = b.inp_rs()?;
    let attn = b.inp_attn()?;
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let mut x =
            if b.layer(il)?.is_recr { mamba(b, il, x, &states)? } else { attention(b, il, x, &attn, positions)? };
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let x = b.norm(il, "post_attention_norm", x, Norm::Rms)?;
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = b.ffn(il, "", x, Act::SwigluFused)?;
        let x = b.norm(il, "post_ffw_norm", x, Norm::Rms)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &PLAIN, rows, out_ids)
}

/// Queries, keys and values are parts of one product.
fn attention(b: &mut Builder<'_>, il: u32, x: Id, attn: &AttnInputs, positions: Id) -> Result<Id, Error> {
    let layer = b.layer(il)?;
    let (k, v) = (u64::from(layer.n_embd_head_k), u64::from(layer.n_embd_head_v));
    let (n_head, n_kv) = (u64::from(layer.n_head), u64::from(layer.n_head_kv));
    let n_tokens = b.n_tokens;
    let all = b.mm(il, "attn_qkv", x)?;
    let stride = b.nb(all, 1);
    let mut part = |head: u64, n: u64, at: u64| b.graph.view(all, &[head, n, n_tokens], &[4 * head, stride], 4 * at);
    let mut qkv = Qkv { q: part(k, n_head, 0), k: part(k, n_kv, k * n_head), v: part(v, n_kv, k * (n_head + n_kv)) };
    b.norm_qk(il, &mut qkv, Norm::Rms)?;
    b.rope_qk(&mut qkv, positions, None);
    b.attn_out(il, attn, qkv, Extras::default())
}

/// `build_plamo2_mamba_layer`.
fn mamba(b: &mut Builder<'_>, il: u32, x: Id, inputs: &StateInputs) -> Result<Id, Error> {
    let batch = b.plan.batch;
    let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
    let (inner, n_head) = (b.hparam("ssm.inner_size")?, b.hparam("ssm.time_step_rank")?);
    let head = inner / n_head;
    let x = b.by_sequence(x);
    let zx = b.mm(il, "ssm_in", x)?;
    let zx = b.graph.permute(zx, [0, 2, 1, 3]);
    let zx = b.graph.cont_nd(zx, &[2 * head, n_head, n_tokens, n_seqs]);
    let nb = b.graph.tensor(zx).nb;
    let mut half = |at: u64| b.graph.view(zx, &[head, n_head, n_tokens, n_seqs], &nb[1..], at);
    let (z, x) = (half(0), half(4 * head));
    let x = b.graph.cont_nd(x, &[inner, n_tokens, n_seqs]);
    let x = b.mamba_conv(il, inputs, x, inner)?;
    let (x, y) = scan(b, il, x, inputs, (head, n_head))?;
    let d = b.weight(il, "ssm_d")?;
    let d = b.graph.reshape(d, &[1, n_head]);
    let skip = b.graph.mul(x, d);
    let y = b.graph.add(y, skip);
    let z = b.graph.cont(z);
    let y = b.graph.glu_split(Glu::Swiglu, z, y);
    let nb = b.graph.tensor(y).nb;
    let y = b.graph.view(y, &[inner, n_tokens, n_seqs], &nb[2..], 0);
    let rows = b.mm(il, "ssm_out", y)?;
    let width = b.ne(rows, 0);
    Ok(b.graph.reshape(rows, &[width, n_tokens * n_seqs]))
}

/// The scan's input by heads, and its output.
fn scan(
    b: &mut Builder<'_>,
    il: u32,
    x: Id,
    inputs: &StateInputs,
    (head, n_head): (u64, u64),
) -> Result<(Id, Id), Error> {
    let batch = b.plan.batch;
    let (n_tokens, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
    let state = b.hparam("ssm.state_size")?;
    let all = b.mm(il, "ssm_x", x)?;
    let nb = b.graph.tensor(all).nb;
    let rank = (b.n_embd / 16).max(64);
    let mut normed = |name: &str, width: u64, at: u64| {
        let part = b.graph.view(all, &[width, n_tokens, n_seqs], &nb[1..3], 4 * at);
        b.norm(il, name, part, Norm::Rms)
    };
    let by = normed("ssm_b_norm", state, 0)?;
    let c = normed("ssm_c_norm", state, state)?;
    let dt = normed("ssm_dt_norm", rank, 2 * state)?;
    let dt = b.linear(il, "ssm_dt", dt)?;
    let a = b.weight(il, "ssm_a")?;
    let a = b.graph.reshape(a, &[1, n_head]);
    let strides = [4 * head, 4 * head * n_head, 4 * head * n_head * n_tokens];
    let by_head = [head, n_head, n_tokens, n_seqs];
    let x = b.graph.view(x, &by_head, &strides, 0);
    let [by, c] = [by, c].map(|part| {
        let nb = b.graph.tensor(part).nb;
        b.graph.view(part, &[state, 1, n_tokens, n_seqs], &[4 * state, nb[1], nb[2]], 0)
    });
    let states = b.ssm_states(il)?;
    let result = b.scan(inputs, states, [state, head, n_head], [x, dt, a, by, c]);
    let kept = n_head * head * state * n_seqs;
    let from = b.graph.view(result, &[kept], &[], 4 * n_head * head * n_tokens * n_seqs);
    let to = b.graph.view(states, &[kept], &[], 0);
    let written = b.graph.cpy(from, to);
    b.graph.expand(written);
    Ok((x, b.graph.view(result, &by_head, &strides, 0)))
}
