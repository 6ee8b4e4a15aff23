//! MiniMax: linear attention (01) and sparse attention by blocks of positions (M3).
//!
//! Source: `src/models/minimax-01.cpp`, `minimax-m3.cpp`, llama.cpp b11434.

use super::super::attention::{Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::ffn::{Act, Moe};
use super::super::ops::HEADS;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Node, Op};
use super::super::{Builder, Layer, Norm};
use super::hyper::joined;
use super::plain::{NormW, PLAIN, Spec, finish, stack};
use crate::gguf::ggml_type::{f16, f32, i32};
use crate::memory::caches::CacheKind;

/// Decays of linear attention, by head and distance.
#[derive(Clone, Copy)]
struct Decays<'g> {
    slopes: Node<'g>,
    q: Node<'g>,
    k: Node<'g>,
    diagonal: Node<'g>,
}

pub(super) fn minimax_01<'g>(b: &'g Builder<'g>) {
    let (mut rows, states, attn, positions, out_ids) =
        (b.tokens(), b.inp_rs(), b.inp_attn(), b.inp_pos(), b.inp_out_ids());
    let (n, n_seqs, n_head) = (b.n_seq_tokens, b.n_seqs, b.layer(0).n_head);
    let decays = Decays {
        slopes: b.draft.input(f32(), &[n_head]),
        q: b.draft.input(f32(), &[1, n_head, n, n_seqs]),
        k: b.draft.input(f32(), &[1, n_head, n, n_seqs]),
        diagonal: b.draft.input(f32(), &[n, n, n_head, n_seqs]),
    };
    for l in b.layers() {
        l.tap(rows);
        let normed = l.norm("attn_norm", rows);
        let x = if l.hp.is_recr {
            linear_attention(l, normed, &states, decays)
        } else {
            let mut qkv = l.qkv(normed);
            qkv.rope(positions, None);
            l.attn_out(&attn, qkv)
        };
        let [x, residual] = l.only_outputs(out_ids, [x, normed]);
        let x = l.norm("ffn_norm", x + residual.scale());
        let moe = Moe { scaled: b.expert_weights_scaled(), ..Moe::default() };
        rows = l.moe(x, &moe) + x.scale();
    }
    finish(b, &PLAIN, rows, out_ids);
}

fn linear_attention<'g>(l: Layer<'g>, x: Node<'g>, inputs: &StateInputs<'g>, decays: Decays<'g>) -> Node<'g> {
    let (n, n_seqs, head, n_head) = (l.n_seq_tokens, l.n_seqs, l.head_v, l.n_head);
    let states = l.ssm_states();
    l.read_states(inputs, l.conv_states());
    let x = x.reshape(&[l.n_embd, n, 1, n_seqs]);
    let all = l.mm("attn_qkv", x).silu().reshape(&[3 * head, n_head, n, n_seqs]);
    let [q, k, v] = [0, 1, 2].map(|i| all.cols(head, i * head));
    let old = l.read_states(inputs, states).reshape(&[head, head, n_head, n_seqs]);
    let [q_decay, k_decay, diagonal] = [decays.q, decays.k, decays.diagonal].map(|decay| decay.scale().exp());
    let v = v.permute([1, 2, 0, 3]).cont();
    let scores = k.permute(HEADS).mm(q.permute(HEADS)) * diagonal;
    let rows = (old.mm((q * q_decay).permute(HEADS)) + v.mm(scores)).expand();
    let block_decay = decays.slopes.scale().scale().exp().reshape(&[1, 1, n_head]);
    let new = old * block_decay + (k * k_decay).permute([1, 2, 0, 3]).cont().mm(v);
    new.store(states);
    let rows = rows.permute(HEADS).cont().reshape(&[head * n_head, n, 1, n_seqs]);
    let rows = l.raw_mm("attn_gate", x).sigmoid() * l.norm("attn_norm_2", rows);
    let rows = l.raw_mm("attn_output", rows);
    rows.reshape(&[rows.ne(0), n * n_seqs])
}

/// What sparse attention needs from outside.
#[derive(Clone, Copy)]
struct Sparse<'g> {
    k_idxs: Node<'g>,
    bias: Node<'g>,
    pos_mask: Node<'g>,
    pos_slot: Node<'g>,
    cell_block: Node<'g>,
    mask: Node<'g>,
    /// Positions in all, a whole number of blocks.
    n_pos: u64,
    block: u64,
}

pub(super) fn minimax_m3<'g>(b: &'g Builder<'g>) {
    let spec =
        Spec { act: Act::SwigluOai, expert_act: Act::SwigluOai, gating_stated: true, norm_w: NormW::Stated, ..PLAIN };
    let (rows, positions, attn) = (b.tokens(), b.inp_pos(), b.inp_attn());
    let has_streams = b.plan.numbers.n_seq_max == 1 || !b.plan.numbers.kv_unified;
    let sparse = (b.plan.flash_attn && has_streams).then(|| sparse_inputs(b, b.cached(&attn, false).mask));
    let n_dense = b.hparams().u32_or_0("leading_dense_block_count");
    stack(b, &spec, rows, |l, x| {
        let mut qkv = l.qkv(x);
        l.norm_qk(&mut qkv, Norm::Rms);
        qkv.rope(positions, None);
        let rows = match sparse {
            Some(sparse) if l.il >= n_dense => sparse_attention(l, x, qkv, positions, l.cached(&attn, false), sparse),
            _ => l.attn(&attn, qkv, Extras::default()),
        };
        l.mm("attn_output", rows)
    });
}

fn sparse_inputs<'g>(b: &'g Builder<'g>, mask: Node<'g>) -> Sparse<'g> {
    let block = b.hparam("attention.indexer.block_size");
    // An empty cache has no positions: 256 are reserved (`llama_kv_cache_msa_context::get_n_pos`).
    let n_pos = 256_u64.next_multiple_of(block);
    let [n_kv, _, _, n_stream] = mask.shape();
    let input = |ty, dims: &[u64]| b.draft.input(ty, dims);
    Sparse {
        k_idxs: b.inp_k_idxs(),
        bias: input(f32(), &[n_pos / block, b.n_tokens]),
        pos_mask: input(f32(), &[n_pos, b.n_tokens]),
        pos_slot: input(i32(), &[n_pos, n_stream]),
        cell_block: input(i32(), &[n_kv, n_stream]),
        mask: mask.cast(f32()),
        n_pos,
        block,
    }
}

fn sparse_attention<'g>(
    l: Layer<'g>,
    x: Node<'g>,
    Qkv { q, k, v }: Qkv<'g>,
    positions: Node<'g>,
    cached: CacheInputs<'g>,
    sparse: Sparse<'g>,
) -> Node<'g> {
    let (dim, n_index) = (l.indexer_head(), l.hparam("attention.indexer.head_count"));
    let index = |name: &str, n: u64| {
        let rows = l.raw_mm(&format!("indexer.{name}_proj"), x).reshape(&[dim, n, l.n_tokens]);
        l.norm(&format!("indexer.{name}_norm"), rows).rope(positions, None)
    };
    let iq = index("q", n_index);
    l.store_k(CacheKind::Indexer, l.il, index("k", 1), sparse.k_idxs);
    let ik = l.get_k(CacheKind::Indexer, l.il, dim, 1);
    let [k_rot, v_rot] = [cached.k_rot, cached.v_rot].map(|rot| l.own_rot(rot, l.il));
    let (q, k, v) = (l.hadamard(q, k_rot), l.hadamard(k, k_rot), l.hadamard(v, v_rot));
    l.draft.expand(&[q, k, v]);
    l.store_k(cached.kind, l.il, k, cached.k_idxs);
    l.store_v(cached.kind, l.il, v, cached.v_idxs);
    let k = l.get_k(cached.kind, l.il, l.head_k, l.n_kv);
    let v = l.get_v(cached.kind, l.il, l.head_v, l.n_kv);
    let stream = |s| stream(l, s, (iq, ik), (q, k, v), sparse);
    l.hadamard(joined(sparse.mask.ne(3), stream, |rows, part| rows.concat(part, 1)), v_rot)
}

/// Sparse attention of one stream.
fn stream<'g>(
    l: Layer<'g>,
    s: u64,
    (iq, ik): (Node<'g>, Node<'g>),
    (q, k, v): (Node<'g>, Node<'g>, Node<'g>),
    sparse: Sparse<'g>,
) -> Node<'g> {
    let [n_kv, n, ..] = sparse.mask.shape();
    let n_pos = sparse.n_pos;
    // The stream's tokens of queries, its plane of a cache, its tokens of a bias.
    let tokens = |x: Node<'g>| x.view(&[x.ne(0), x.ne(1), n], &x.strides()[1..3], s * n * x.nb(2));
    let plane = |x: Node<'g>| x.view(&[x.ne(0), x.ne(1), n_kv, 1], &x.strides()[1..], s * x.nb(3));
    let by_token = |x: Node<'g>| x.view(&[x.ne(0), 1, n], &[x.nb(1), x.nb(1)], s * n * x.nb(1));
    let column = |x: Node<'g>| x.view(&[x.ne(0)], &[], s * x.nb(1));
    let (iq, keys) = (tokens(iq), ik.view(&[iq.ne(0), n_kv], &[ik.nb(2)], s * ik.nb(3)));
    let n_index = iq.ne(1);
    let mask = sparse.mask.view(&[n_kv, n, 1], &[sparse.mask.nb(1), sparse.mask.nb(3)], s * sparse.mask.nb(3));
    let keys = keys.get_rows(column(sparse.pos_slot));
    let scores = keys.mm(iq.reshape(&[iq.ne(0), n_index * n])).reshape(&[n_pos, n_index, n]);
    let scores = scores.into_place(Op::Add, &[scores, by_token(sparse.pos_mask)]);
    let pooled = [(n_pos - sparse.block) / sparse.block + 1, n_index, n, 1];
    let pooled = l.draft.make(Op::Pool, f32(), pooled, &[scores]);
    let bias = by_token(sparse.bias);
    let mask = block_mask(l, pooled + bias, bias, column(sparse.cell_block), mask);
    let [k, v] = [k, v].map(|x| plane(x).permute([0, 3, 1, 2]));
    grouped_attention(l, tokens(q), k, v, mask)
}

/// The mask that opens the cells of the best blocks.
fn block_mask<'g>(l: Layer<'g>, scores: Node<'g>, bias: Node<'g>, cell_block: Node<'g>, mask: Node<'g>) -> Node<'g> {
    let ([n_blocks, n_index, n, _], n_kv) = (scores.shape(), mask.ne(0));
    let top = u64::from(l.plan.caches.hparams.indexer_top_k).min(n_blocks);
    let best = scores.top_k(top);
    let closed = bias.scale().cast(f16()).repeat(&[n_blocks, n_index, n]).reshape(&[1, n_blocks, n_index * n]);
    let zeros = best.cast(f32()).scale().reshape(&[1, top, n_index * n]);
    let open = closed.set_rows(zeros, best.reshape(&[top, n_index * n])).reshape(&[n_blocks, n_index, n]);
    let open = open.permute(HEADS).cont().reshape(&[n_blocks, n * n_index]).transpose().cont();
    let by_cell = open.get_rows(cell_block).transpose().cont().reshape(&[n_kv, n, n_index]);
    let all = by_cell.into_place(Op::Add, &[by_cell, mask]);
    all.reshape(&[n_kv, n, 1, n_index]).cast(f16())
}

/// Attention of each group of query heads by its own mask (`build_attn_msa_fa`).
fn grouped_attention<'g>(l: Layer<'g>, q: Node<'g>, k: Node<'g>, v: Node<'g>, mask: Node<'g>) -> Node<'g> {
    let ([head, n_head, n, _], n_chunks) = (q.shape(), k.ne(3));
    let Some(group) = n_head.checked_div(l.n_kv).filter(|group| *group > 0) else {
        return l.draft.refuse("attention of more key heads than query heads", &[q, k]);
    };
    let q = q.reshape(&[head, group, n_chunks, n_head * n / (group * n_chunks)]).permute([0, 2, 3, 1]);
    let out = q.flash_attn_ext(k, v, Some(mask)).permute([0, 1, 3, 2]);
    let out = if out.tensor().is_contiguous() { out } else { out.cont() };
    out.reshape(&[head * n_head, n])
}
