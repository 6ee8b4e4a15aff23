//! deepseek4: a window of keys beside compressed ones, which an indexer may choose from, between hyper-connections.
//!
//! Source: `src/models/deepseek4.cpp`, `src/llama-graph.cpp` `build_inp_dsv4`, `src/llama-kv-cache-dsv4.cpp`
//! `dsv4_build_reserve_comp_plan`, llama.cpp b11434.

use super::super::attention::{Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::i64_type;
use super::super::ops::HEADS;
use super::super::tensor::{Node, Tensor};
use super::super::{Builder, Layer};
use super::dsa::by_stream;
use super::hyper::{joined, stream, weigh_streams};
use super::plain::{PLAIN, finish};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f16, i32};
use crate::memory::caches::CacheKind;

/// Tokens of a compressed key that the indexer chooses from (`DSV4_CSA_RATIO`).
const CSA_RATIO: u32 = 4;
/// Tokens of a compressed key that is always seen (`DSV4_HCA_RATIO`).
const HCA_RATIO: u32 = 128;

/// Rows to copy: from where, and to where.
type Rows<'g> = (Node<'g>, Node<'g>);

/// What one compressor needs from outside (`comp_input`).
#[derive(Clone, Copy)]
struct Compressor<'g> {
    /// Its weights are `NAME_compressor_*`.
    name: &'static str,
    keys: CacheKind,
    /// Where the tokens of an unfinished block are kept.
    state: CacheKind,
    /// Rows of that state.
    n_rows: u64,
    head: u64,
    /// Tokens a block.
    ratio: u64,
    /// A block reads the one before it too.
    overlaps: bool,
    positions: Node<'g>,
    persist: Rows<'g>,
    restore: Option<Rows<'g>>,
    snapshot: Option<Rows<'g>>,
    read: Node<'g>,
    write: Node<'g>,
    write_positions: Node<'g>,
    mask: Node<'g>,
    k_rot: Option<Node<'g>>,
}

/// What attention needs from outside (`llm_graph_input_dsv4`).
#[derive(Clone, Copy)]
struct Inputs<'g> {
    positions: Node<'g>,
    window: CacheInputs<'g>,
    /// None where a NextN block drafts, which sees its window only.
    compressors: Option<Compressors<'g>>,
}

#[derive(Clone, Copy)]
struct Compressors<'g> {
    csa: Compressor<'g>,
    hca: Compressor<'g>,
    indexer: Compressor<'g>,
}

/// Builds the graph.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let rows = b.tokens();
    let tokens = rows.tensor().sources().get(1).map(|id| b.draft.node(*id));
    let (kind, out_ids) = (CacheKind::Swa, b.inp_out_ids());
    let inputs = Inputs {
        positions: b.inp_pos(),
        window: CacheInputs { mask: inp_mask(b, kind, b.mask_type()), k_rot: b.inp_rot(kind).0, ..b.inp_k(kind) },
        compressors: Some(Compressors {
            csa: inp_compressor(b, "attn", CacheKind::Csa, CacheKind::CsaState, CSA_RATIO),
            hca: inp_compressor(b, "attn", CacheKind::Hca, CacheKind::HcaState, HCA_RATIO),
            indexer: inp_compressor(b, "indexer", CacheKind::Indexer, CacheKind::IndexerState, CSA_RATIO),
        }),
    };
    inputs.window.mask.expand();
    let mut streams = b.streams(rows);
    let mean = |streams: Node<'g>| {
        joined(streams.ne(1), |i| stream(streams, i), |sum, part| sum + part).scale().mark_output().expand()
    };
    for l in b.layers() {
        if b.plan.taps.contains(&l.il) {
            mean(streams);
        }
        let [x, post, comb] = l.read_mixed("hc_attn", streams);
        let x = attention(l, l.norm("attn_norm", x), &inputs);
        streams = l.write_mixed(x, streams, post, comb);
        let [x, post, comb] = l.read_mixed("hc_ffn", streams);
        b.draft.expand(&[streams, post, comb]);
        streams = l.bound(l.write_mixed(experts(l, l.norm("ffn_norm", x), tokens), streams, post, comb));
    }
    if b.taps_output() {
        mean(streams);
    }
    let streams = b.output_streams(streams, out_ids);
    finish(b, &PLAIN, weigh_streams(streams, b.head_weights(streams)), out_ids);
}

/// A NextN block between the streams of the target (`graph_mtp::graph_mtp`): one row a token of what is put out.
pub(super) fn drafted<'g>(l: Layer<'g>, streams: Node<'g>) -> Node<'g> {
    let (positions, out_ids) = (l.inp_pos(), l.inp_out_ids());
    let window = l.b.inp_kv(if l.hp.is_swa { CacheKind::Swa } else { CacheKind::Base });
    let inputs = Inputs { positions, window, compressors: None };
    let streams = stage(l, streams, &inputs);
    let ne = streams.shape();
    let kept = streams.reshape(&[ne[0] * ne[1], ne[2]]).get_rows(out_ids).mark_output();
    let streams = kept.reshape(&[ne[0], ne[1], l.plan.batch.n_outputs]);
    weigh_streams(streams, l.head_weights(streams))
}

/// The layers of a draft model behind a block of embeddings (`llama_model_dflash::graph_dsv4`): one row a token.
pub(super) fn stages<'g>(b: &'g Builder<'g>, rows: Node<'g>) -> Node<'g> {
    let inputs = Inputs { positions: b.inp_pos(), window: b.inp_kv(CacheKind::Swa), compressors: None };
    let mut streams = b.streams(rows);
    for l in b.layers() {
        streams = stage(l, streams, &inputs);
    }
    weigh_streams(streams, b.head_weights(streams))
}

/// A layer that sees its window only.
fn stage<'g>(l: Layer<'g>, streams: Node<'g>, inputs: &Inputs<'g>) -> Node<'g> {
    let [x, post, comb] = l.read_mixed("hc_attn", streams);
    let streams = l.write_mixed(attention(l, l.norm("attn_norm", x), inputs), streams, post, comb);
    let [x, post, comb] = l.read_mixed("hc_ffn", streams);
    l.write_mixed(experts(l, l.norm("ffn_norm", x), None), streams, post, comb)
}

/// The experts, which the first layers look up by token, and the shared one.
fn experts<'g>(l: Layer<'g>, x: Node<'g>, tokens: Option<Node<'g>>) -> Node<'g> {
    let is_hashed = l.il < l.hparams().u32_or_0("hash_layer_count");
    let moe = Moe {
        gating: Gating::SqrtSoftplus,
        norm_w: l.flag("expert_weights_norm"),
        scaled: l.expert_weights_scaled(),
        selected: tokens.filter(|_| is_hashed).map(|tokens| l.weight("ffn_gate_tid2eid").get_rows(tokens)),
        ..Moe::default()
    };
    l.moe(x, &moe) + l.ffn("_shexp", x, Act::Silu)
}

/// The last part of each head turned by its position, in its place (`ggml_rope_set_offset`) or beside the rest.
fn turn<'g>(l: Layer<'g>, x: Node<'g>, positions: Node<'g>) -> Node<'g> {
    if l.plan.rules.ropes_in_place {
        return x.rope(positions, None);
    }
    let turned = l.hparam("rope.dimension_count").min(x.ne(0));
    let plain = x.ne(0) - turned;
    x.cols(plain, 0).concat(x.cols(turned, plain).rope(positions, None), 0)
}

/// A layer's attention (`build_attention_impl`).
fn attention<'g>(l: Layer<'g>, x: Node<'g>, inputs: &Inputs<'g>) -> Node<'g> {
    let (head, n_head, n_tokens, positions) = (l.head_k, l.n_head, l.n_tokens, inputs.positions);
    let low = l.low_q(x);
    let q = turn(l, l.raw_mm("attn_q_b", low).reshape(&[head, n_head, n_tokens]).rms(), positions);
    let kv = turn(l, l.norm("attn_kv_a_norm", l.raw_mm("attn_kv", x)).reshape(&[head, 1, n_tokens]), positions);
    let compressed = match (l.hp.compress_ratio, &inputs.compressors) {
        (CSA_RATIO, Some(Compressors { csa, indexer, .. })) => {
            compress(l, x, csa);
            compress(l, x, indexer);
            Some((csa, Some(choose(l, low, x, positions, indexer))))
        }
        (HCA_RATIO, Some(Compressors { hca, .. })) => {
            compress(l, x, hca);
            Some((hca, None))
        }
        _ => None,
    };
    let rows = turn(l, attend(l, inputs.window, q, kv, compressed).reshape(&[head, n_head, n_tokens]), positions);
    let (n_groups, rank) = (l.hparam("attention.output_group_count"), l.hparam("attention.output_lora_rank"));
    let width = head * n_head / n_groups;
    let rows = rows.reshape(&[width, n_groups, n_tokens]).permute(HEADS);
    // Read in this shape, whichever shape the file gives it.
    let (by_group, ne) = (l.weight("attn_output_a"), [width, rank, n_groups, 1]);
    if by_group.elements() == ne.iter().product::<u64>() {
        by_group.edit(|weight| (weight.ne, weight.nb) = (ne, Tensor::new(weight.ty, ne).nb));
    } else {
        l.draft.refuse("a product by groups", &[by_group]);
    }
    let low = by_group.mm(rows).permute(HEADS).cont_nd(&[rank * n_groups, n_tokens]);
    l.raw_mm("attn_output_b", low)
}

/// A row of cells by token; every sequence has a stream of its own, unified cache or not.
fn inp_mask<'g>(b: &'g Builder<'g>, kind: CacheKind, ty: GgmlType) -> Node<'g> {
    b.draft.input(ty, &[b.cells(kind), b.n_tokens / b.n_seqs, 1, b.n_seqs])
}

/// The most that a batch of this size makes the compressor do.
fn inp_compressor<'g>(
    b: &'g Builder<'g>,
    name: &'static str,
    keys: CacheKind,
    state: CacheKind,
    ratio: u32,
) -> Compressor<'g> {
    let (is_indexer, overlaps, ratio) = (keys == CacheKind::Indexer, ratio == CSA_RATIO, u64::from(ratio));
    let n_blocks = b.n_tokens / ratio + b.n_seqs;
    // Rows of the state, and how many older versions of them are kept.
    let n_seq_max = u64::from(b.plan.numbers.n_seq_max.max(1));
    let n_rows = b.cells(state) * n_seq_max;
    let n_snapshots = b.maybe_cache(state).map_or(1, |cache| u64::from(cache.n_stream) / n_seq_max) - 1;
    let head = if is_indexer { b.indexer_head() } else { b.layer(0).head_k };
    let rows = |n: u64| b.draft.input(i32(), &[n]);
    let n_persist = b.n_tokens.min(n_rows);
    let pair = |n: u64| (n > 0).then(|| (rows(n), rows(n)));
    Compressor {
        name,
        keys,
        state,
        n_rows,
        head,
        ratio,
        overlaps,
        positions: rows(b.n_tokens),
        persist: (rows(n_persist), rows(n_persist)),
        restore: pair(n_snapshots.min(1) * n_rows),
        snapshot: pair(n_snapshots * n_rows),
        read: rows(if overlaps { 2 * ratio * n_blocks } else { ratio * n_blocks }),
        write: b.draft.input(i64_type(), &[n_blocks]),
        write_positions: rows(n_blocks),
        mask: inp_mask(b, keys, if is_indexer { f16() } else { b.mask_type() }),
        k_rot: b.inp_rot(keys).0,
    }
}

/// All rows of a compressor's state: keys and scores (`get_kv_all`, `get_score_all`).
fn state_rows(l: Layer<'_>, state: CacheKind) -> [Node<'_>; 2] {
    [l.keys(state, l.il), l.values(state, l.il)].map(|tensor| {
        let Tensor { ne, nb, .. } = tensor.tensor();
        tensor.view(&[ne[0], ne[1] * ne[2]], &[nb[1]], 0)
    })
}

/// Compresses finished blocks to keys, and keeps what is left for the next batch.
fn compress<'g>(l: Layer<'g>, x: Node<'g>, c: &Compressor<'g>) {
    let name = |part: &str| format!("{}_compressor_{part}", c.name);
    let new = [l.raw_mm(&name("kv"), x), l.raw_mm(&name("gate"), x) + l.weight(&name("ape")).get_rows(c.positions)];
    let mut old = state_rows(l, c.state);
    if let Some((from, to)) = c.restore {
        let all = state_rows(l, c.state);
        old = [0, 1].map(|i| all[i].set_rows(old[i].get_rows(from), to));
    }
    let [values, scores] = [0, 1].map(|i| {
        let current = old[i].view(&[old[i].ne(0), c.n_rows], &[old[i].nb(1)], 0);
        blocks(c, current.concat(new[i], 1))
    });
    let keys = (values * scores.soft_max()).sum_rows().permute([1, 0, 2, 3]).cont();
    let keys = turn(l, l.norm(&name("norm"), keys), c.write_positions);
    l.store_k(c.keys, l.il, l.hadamard(keys, l.own_rot(c.k_rot, l.il)), c.write);
    if let Some(rows) = c.snapshot {
        keep(l, c.state, [0, 1].map(|i| old[i].concat(new[i], 1)), rows);
    }
    keep(l, c.state, new, c.persist);
}

/// Copies rows of keys and scores to a compressor's state.
fn keep<'g>(l: Layer<'g>, state: CacheKind, sources: [Node<'g>; 2], (from, to): Rows<'g>) {
    let all = state_rows(l, state);
    l.draft.expand(&[0, 1].map(|i| all[i].set_rows(sources[i].get_rows(from), to)));
}

/// The rows that each block reads, by element (`build_*_compressed_kv_from_state`).
fn blocks<'g>(c: &Compressor<'g>, source: Node<'g>) -> Node<'g> {
    let (width, n_blocks) = (source.ne(0), c.write_positions.ne(0));
    let shape = [c.head, c.ratio, n_blocks];
    let blocks = if c.overlaps {
        let row = source.view(&[width], &[], 0).scale().reshape(&[width, 1]);
        let rows = source.concat(row, 1).get_rows(c.read);
        let (n_read, stride) = (c.ratio * n_blocks, rows.nb(1));
        let part = |offset| rows.view(&[c.head, n_read], &[stride], offset).cont().reshape(&shape);
        part(0).concat(part(n_read * stride + 4 * c.head), 1)
    } else {
        source.get_rows(c.read).reshape(&shape)
    };
    blocks.permute([1, 0, 2, 3]).cont()
}

/// The compressed keys that each token should see (`build_lid_top_k`).
fn choose<'g>(l: Layer<'g>, low: Node<'g>, x: Node<'g>, positions: Node<'g>, indexer: &Compressor<'g>) -> Node<'g> {
    let Compressor { head, mask, k_rot, .. } = *indexer;
    let n_head = l.hparam("attention.indexer.head_count");
    let q = turn(l, l.raw_mm("indexer.attn_q_b", low).reshape(&[head, n_head, l.n_tokens]), positions);
    let q = l.hadamard(q, l.own_rot(k_rot, l.il));
    let k = compressed_keys(l, indexer);
    let [q, weights] = by_stream(q, l.raw_mm("indexer.proj", x).scale(), k.ne(3));
    l.best_cells(q, k, weights, mask)
}

/// A layer's compressed keys: a view of a view.
fn compressed_keys<'g>(l: Layer<'g>, c: &Compressor<'g>) -> Node<'g> {
    let k = l.get_k(c.keys, l.il, c.head, 1);
    k.view(&k.shape(), &k.strides()[1..], 0)
}

/// Attention to the window, and to compressed keys behind it: all, or the chosen ones.
fn attend<'g>(
    l: Layer<'g>,
    window: CacheInputs<'g>,
    q: Node<'g>,
    kv: Node<'g>,
    compressed: Option<(&Compressor<'g>, Option<Node<'g>>)>,
) -> Node<'g> {
    let rot = l.own_rot(window.k_rot, l.il);
    let [q, kv] = [q, kv].map(|x| l.hadamard(x, rot));
    l.draft.expand(&[q, kv]);
    l.store_k(window.kind, l.il, kv, window.k_idxs);
    let (mut k, mut mask) = (l.get_k(window.kind, l.il, l.head_k, 1), window.mask);
    if let Some((c, chosen)) = compressed {
        k = k.concat(compressed_keys(l, c), 2);
        mask = mask.concat(chosen.map_or(c.mask, |chosen| l.mask_of(c.mask, chosen, l.mask_type())), 0);
    }
    l.hadamard(l.mha(Qkv { q, k, v: k }, mask, None, Extras::default()), rot)
}
