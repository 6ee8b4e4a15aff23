//! MiniMax: linear attention (01) and sparse attention by blocks of positions (M3).
//!
//! Source: `src/models/minimax-01.cpp`, `minimax-m3.cpp`, llama.cpp b11434.

use super::super::attention::{Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::ffn::{Act, Moe};
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Id, Op, Unary};
use super::super::{Builder, Error, Norm};
use super::plain::{NormW, PLAIN, Spec, feed_forward, finish};
use crate::gguf::ggml_type::{f16, f32, i32};
use crate::memory::caches::CacheKind;

/// Decays of linear attention, by head and distance.
#[derive(Clone, Copy)]
struct Decays {
    slopes: Id,
    q: Id,
    k: Id,
    diagonal: Id,
}

/// minimax-01.
pub(super) fn minimax_01(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let attn = b.inp_attn()?;
    let positions = b.inp_pos();
    let out_ids = b.inp_out_ids();
    let batch = b.plan.batch;
    let (n, n_seqs, n_head) = (batch.n_seq_tokens(), batch.n_seqs, u64::from(b.layer(0)?.n_head));
    let decays = Decays {
        slopes: b.graph.input(f32(), &[n_head]),
        q: b.graph.input(f32(), &[1, n_head, n, n_seqs]),
        k: b.graph.input(f32(), &[1, n_head, n, n_seqs]),
        diagonal: b.graph.input(f32(), &[n, n, n_head, n_seqs]),
    };
    for il in 0..b.n_layer {
        let mut residual = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let mut x = if b.layer(il)?.is_recr {
            linear_attention(b, il, residual, &states, decays)?
        } else {
            let mut qkv = b.qkv(il, residual)?;
            b.rope_qk(&mut qkv, positions, None);
            b.attn_out(il, &attn, qkv, Extras::default())?
        };
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let residual = b.graph.scale(residual);
        let x = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", x, Norm::Rms)?;
        let scaled = b.expert_weights_scaled();
        let routed = b.moe(il, x, &Moe { scaled, ..Moe::default() })?;
        let residual = b.graph.scale(x);
        rows = b.graph.add(routed, residual);
    }
    finish(b, &PLAIN, rows, out_ids)
}

fn linear_attention(b: &mut Builder<'_>, il: u32, x: Id, inputs: &StateInputs, decays: Decays) -> Result<Id, Error> {
    let batch = b.plan.batch;
    let (n, n_seqs) = (batch.n_seq_tokens(), batch.n_seqs);
    let layer = b.layer(il)?;
    let (head, n_head) = (u64::from(layer.n_embd_head_v), u64::from(layer.n_head));
    let (conv_states, states) = (b.conv_states(il)?, b.ssm_states(il)?);
    b.read_states(inputs, conv_states);
    let slopes = b.graph.scale(decays.slopes);
    let x = b.graph.reshape(x, &[b.n_embd, n, 1, n_seqs]);
    let all = b.mm(il, "attn_qkv", x)?;
    let all = b.graph.unary(Unary::Silu, all);
    let all = b.graph.reshape(all, &[3 * head, n_head, n, n_seqs]);
    let nb = b.graph.tensor(all).nb;
    let [q, k, v] = [0, 1, 2].map(|i| b.graph.view(all, &[head, n_head, n, n_seqs], &nb[1..], 4 * i * head));
    let state = b.read_states(inputs, states);
    let old = b.graph.reshape(state, &[head, head, n_head, n_seqs]);
    let mut decay = |id: Id| {
        let scaled = b.graph.scale(id);
        b.graph.unary(Unary::Exp, scaled)
    };
    let (q_decay, k_decay, diagonal) = (decay(decays.q), decay(decays.k), decay(decays.diagonal));
    let scaled_q = b.graph.mul(q, q_decay);
    let scaled_q = b.graph.permute(scaled_q, [0, 2, 1, 3]);
    let from_state = b.graph.mul_mat(old, scaled_q);
    let q = b.graph.permute(q, [0, 2, 1, 3]);
    let k_by_head = b.graph.permute(k, [0, 2, 1, 3]);
    let qk = b.graph.mul_mat(k_by_head, q);
    let qk = b.graph.mul(qk, diagonal);
    let v = b.graph.permute(v, [1, 2, 0, 3]);
    let v = b.graph.cont(v);
    let from_batch = b.graph.mul_mat(v, qk);
    let rows = b.graph.add(from_state, from_batch);
    b.graph.expand(rows);
    let slopes = b.graph.scale(slopes);
    let block_decay = b.graph.unary(Unary::Exp, slopes);
    let block_decay = b.graph.reshape(block_decay, &[1, 1, n_head]);
    let old = b.graph.mul(old, block_decay);
    let k = b.graph.mul(k, k_decay);
    let k = b.graph.permute(k, [1, 2, 0, 3]);
    let k = b.graph.cont(k);
    let new = b.graph.mul_mat(k, v);
    let new = b.graph.add(old, new);
    let kept = b.graph.tensor(new).elements();
    let to = b.graph.view(states, &[kept], &[], 0);
    let written = b.graph.cpy(new, to);
    b.graph.expand(written);
    let rows = b.graph.permute(rows, [0, 2, 1, 3]);
    let rows = b.graph.cont(rows);
    let rows = b.graph.reshape(rows, &[head * n_head, n, 1, n_seqs]);
    let normed = b.norm(il, "attn_norm_2", rows, Norm::Rms)?;
    let gate = b.raw_mm(il, "attn_gate", x)?;
    let gate = b.graph.unary(Unary::Sigmoid, gate);
    let rows = b.graph.mul(gate, normed);
    let rows = b.raw_mm(il, "attn_output", rows)?;
    let width = b.ne(rows, 0);
    Ok(b.graph.reshape(rows, &[width, n * n_seqs]))
}

/// What sparse attention needs from outside.
#[derive(Clone, Copy)]
struct Sparse {
    k_idxs: Id,
    bias: Id,
    pos_mask: Id,
    pos_slot: Id,
    cell_block: Id,
    mask: Id,
    /// Positions in all, a whole number of blocks.
    n_pos: u64,
    block: u64,
}

/// minimax-m3.
pub(super) fn minimax_m3(b: &mut Builder<'_>) -> Result<(), Error> {
    let spec =
        Spec { act: Act::SwigluOai, expert_act: Act::SwigluOai, gating_stated: true, norm_w: NormW::Stated, ..PLAIN };
    let mut rows = b.inp_embd(Embeddings::default())?;
    let positions = b.inp_pos();
    let attn = b.inp_attn()?;
    let has_streams = b.plan.numbers.n_seq_max == 1 || !b.plan.numbers.kv_unified;
    let sparse =
        if b.plan.flash_attn && has_streams { Some(sparse_inputs(b, attn.cached(false)?.mask)?) } else { None };
    let out_ids = b.inp_out_ids();
    let n_dense = b.hparams().u32_or_0("leading_dense_block_count");
    for il in 0..b.n_layer {
        let mut residual = rows;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let mut qkv = b.qkv(il, x)?;
        b.norm_qk(il, &mut qkv, Norm::Rms)?;
        b.rope_qk(&mut qkv, positions, None);
        let mut x = match sparse {
            Some(sparse) if il >= n_dense => sparse_attention(b, il, (x, qkv, positions), attn.cached(false)?, sparse)?,
            _ => b.attn(il, &attn, qkv, Extras::default())?,
        };
        x = b.mm(il, "attn_output", x)?;
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &spec, il, x)?;
        rows = b.graph.add(x, middle);
    }
    finish(b, &spec, rows, out_ids)
}

fn sparse_inputs(b: &mut Builder<'_>, mask: Id) -> Result<Sparse, Error> {
    let k_idxs = b.inp_k_idxs();
    let block = b.hparam("attention.indexer.block_size")?;
    // An empty cache has no positions: 256 are reserved (`llama_kv_cache_msa_context::get_n_pos`).
    let n_pos = 256_u64.next_multiple_of(block);
    let (n_kv, n_stream, n_tokens) = (b.ne(mask, 0), b.ne(mask, 3), b.n_tokens);
    let bias = b.graph.input(f32(), &[n_pos / block, n_tokens]);
    let pos_mask = b.graph.input(f32(), &[n_pos, n_tokens]);
    let pos_slot = b.graph.input(i32(), &[n_pos, n_stream]);
    let cell_block = b.graph.input(i32(), &[n_kv, n_stream]);
    let mask = b.graph.cast(mask, f32());
    Ok(Sparse { k_idxs, bias, pos_mask, pos_slot, cell_block, mask, n_pos, block })
}

fn sparse_attention(
    b: &mut Builder<'_>,
    il: u32,
    (x, mut qkv, positions): (Id, Qkv, Id),
    cached: CacheInputs,
    sparse: Sparse,
) -> Result<Id, Error> {
    let n_tokens = b.n_tokens;
    let dim = u64::from(b.plan.caches.hparams.indexer_head_size);
    let n_index = b.hparam("attention.indexer.head_count")?;
    let iq = b.raw_mm(il, "indexer.q_proj", x)?;
    let ik = b.raw_mm(il, "indexer.k_proj", x)?;
    let iq = b.graph.reshape(iq, &[dim, n_index, n_tokens]);
    let ik = b.graph.reshape(ik, &[dim, 1, n_tokens]);
    let iq = b.norm(il, "indexer.q_norm", iq, Norm::Rms)?;
    let ik = b.norm(il, "indexer.k_norm", ik, Norm::Rms)?;
    let iq = b.graph.rope(iq, positions, None);
    let ik = b.graph.rope(ik, positions, None);
    let stored = b.cpy_k(CacheKind::Indexer, il, ik, sparse.k_idxs)?;
    b.graph.expand(stored);
    let index_keys = b.get_k(CacheKind::Indexer, il, dim, 1)?;
    if let Some(rot) = cached.k_rot {
        qkv.q = b.hadamard(qkv.q, rot);
        qkv.k = b.hadamard(qkv.k, rot);
    }
    if let Some(rot) = cached.v_rot {
        qkv.v = b.hadamard(qkv.v, rot);
    }
    b.graph.expand_all(&[qkv.q, qkv.k, qkv.v]);
    let stored = b.cpy_k(cached.kind, il, qkv.k, cached.k_idxs)?;
    b.graph.expand(stored);
    let stored = b.cpy_v(cached.kind, il, qkv.v, cached.v_idxs()?)?;
    b.graph.expand(stored);
    let layer = b.layer(il)?;
    let n_kv_heads = u64::from(layer.n_head_kv);
    let k = b.get_k(cached.kind, il, u64::from(layer.n_embd_head_k), n_kv_heads)?;
    let v = b.get_v(cached.kind, il, u64::from(layer.n_embd_head_v), n_kv_heads)?;
    let n_stream = b.ne(sparse.mask, 3);
    let mut rows = stream(b, il, 0, (iq, index_keys), (qkv.q, k, v), sparse)?;
    for s in 1..n_stream {
        let part = stream(b, il, s, (iq, index_keys), (qkv.q, k, v), sparse)?;
        rows = b.graph.concat(rows, part, 1);
    }
    Ok(match cached.v_rot {
        Some(rot) => b.hadamard(rows, rot),
        None => rows,
    })
}

/// Sparse attention of one stream.
fn stream(
    b: &mut Builder<'_>,
    il: u32,
    s: u64,
    (iq, ik): (Id, Id),
    (q, k, v): (Id, Id, Id),
    sparse: Sparse,
) -> Result<Id, Error> {
    let [n_kv, n, ..] = b.graph.tensor(sparse.mask).ne;
    let part = |b: &mut Builder<'_>, id: Id, dims: &[u64], strides: &[u64], offset: u64| {
        b.graph.view(id, dims, strides, offset)
    };
    let t = |b: &Builder<'_>, id: Id| *b.graph.tensor(id);
    let (iq_t, ik_t, q_t, k_t, v_t) = (t(b, iq), t(b, ik), t(b, q), t(b, k), t(b, v));
    let (dim, n_index) = (iq_t.ne[0], iq_t.ne[1]);
    let iq = part(b, iq, &[dim, n_index, n], &iq_t.nb[1..3], s * n * iq_t.nb[2]);
    let ik = part(b, ik, &[dim, n_kv], &[ik_t.nb[2]], s * ik_t.nb[3]);
    let slot_t = t(b, sparse.pos_slot);
    let slots = part(b, sparse.pos_slot, &[sparse.n_pos], &[], s * slot_t.nb[1]);
    let row = t(b, sparse.pos_mask).nb[1];
    let pos_mask = part(b, sparse.pos_mask, &[sparse.n_pos, 1, n], &[row, row], s * n * row);
    let block_t = t(b, sparse.cell_block);
    let cell_block = part(b, sparse.cell_block, &[n_kv], &[], s * block_t.nb[1]);
    let mask_t = t(b, sparse.mask);
    let mask = part(b, sparse.mask, &[n_kv, n, 1], &[mask_t.nb[1], mask_t.nb[3]], s * mask_t.nb[3]);
    let (n_blocks, row) = (b.ne(sparse.bias, 0), t(b, sparse.bias).nb[1]);
    let bias = part(b, sparse.bias, &[n_blocks, 1, n], &[row, row], s * n * row);
    let q = part(b, q, &[q_t.ne[0], q_t.ne[1], n], &q_t.nb[1..3], s * n * q_t.nb[2]);
    let k = part(b, k, &[k_t.ne[0], k_t.ne[1], n_kv, 1], &k_t.nb[1..], s * k_t.nb[3]);
    let v = part(b, v, &[v_t.ne[0], v_t.ne[1], n_kv, 1], &v_t.nb[1..], s * v_t.nb[3]);
    let keys = b.graph.get_rows(ik, slots);
    let iq = b.graph.reshape(iq, &[dim, n_index * n]);
    let scores = b.graph.mul_mat(keys, iq);
    let scores = b.graph.reshape(scores, &[sparse.n_pos, n_index, n]);
    let scores = b.graph.into_place(Op::Add, scores, &[scores, pos_mask]);
    let pooled =
        b.graph.make(Op::Pool, f32(), [(sparse.n_pos - sparse.block) / sparse.block + 1, n_index, n, 1], &[scores]);
    let biased = b.graph.add(pooled, bias);
    let mask = block_mask(b, (biased, bias, cell_block, mask), (n_blocks, n_index, n, n_kv));
    let [k, v] = [k, v].map(|id| b.graph.permute(id, [0, 3, 1, 2]));
    grouped_attention(b, il, (q, k, v), mask)
}

/// The mask that opens the cells of the best blocks.
fn block_mask(
    b: &mut Builder<'_>,
    (scores, bias, cell_block, mask): (Id, Id, Id, Id),
    (n_blocks, n_index, n, n_kv): (u64, u64, u64, u64),
) -> Id {
    let top = u64::from(b.plan.caches.hparams.indexer_top_k).min(n_blocks);
    let best = b.graph.top_k(scores, top);
    let closed = b.graph.scale(bias);
    let closed = b.graph.cast(closed, f16());
    let closed = b.graph.repeat(closed, &[n_blocks, n_index, n]);
    let zeros = b.graph.cast(best, f32());
    let zeros = b.graph.scale(zeros);
    let closed = b.graph.reshape(closed, &[1, n_blocks, n_index * n]);
    let zeros = b.graph.reshape(zeros, &[1, top, n_index * n]);
    let best = b.graph.reshape(best, &[top, n_index * n]);
    let open = b.graph.set_rows(closed, zeros, best);
    let open = b.graph.reshape(open, &[n_blocks, n_index, n]);
    let open = b.graph.permute(open, [0, 2, 1, 3]);
    let open = b.graph.cont(open);
    let open = b.graph.reshape(open, &[n_blocks, n * n_index]);
    let open = b.graph.transpose(open);
    let open = b.graph.cont(open);
    let by_cell = b.graph.get_rows(open, cell_block);
    let by_cell = b.graph.transpose(by_cell);
    let by_cell = b.graph.cont(by_cell);
    let by_cell = b.graph.reshape(by_cell, &[n_kv, n, n_index]);
    let all = b.graph.into_place(Op::Add, by_cell, &[by_cell, mask]);
    let all = b.graph.reshape(all, &[n_kv, n, 1, n_index]);
    b.graph.cast(all, f16())
}

/// Attention of each group of query heads by its own mask (`build_attn_msa_fa`).
fn grouped_attention(b: &mut Builder<'_>, il: u32, (q, k, v): (Id, Id, Id), mask: Id) -> Result<Id, Error> {
    let [head, n_head, n, _] = b.graph.tensor(q).ne;
    let n_chunks = b.ne(k, 3);
    let group = n_head.checked_div(b.layer(il)?.n_head_kv.into()).filter(|group| *group > 0);
    let Some(group) = group else { return Ok(b.graph.refuse("attention of more key heads than query heads", &[q, k])) };
    let rows = n_head * n / (group * n_chunks);
    let q = b.graph.reshape(q, &[head, group, n_chunks, rows]);
    let q = b.graph.permute(q, [0, 2, 3, 1]);
    let out = b.graph.flash_attn_ext(q, k, v, mask);
    let mut out = b.graph.permute(out, [0, 1, 3, 2]);
    if !b.graph.tensor(out).is_contiguous() {
        out = b.graph.cont(out);
    }
    Ok(b.graph.reshape(out, &[head * n_head, n]))
}
