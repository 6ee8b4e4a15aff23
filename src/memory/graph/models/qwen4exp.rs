//! qwen4exp: delta nets and attention to pools of cells, n-gram embeddings, layers joined by gated residual streams.
//!
//! Source: `src/models/qwen4exp.cpp`, llama.cpp b11434 and b12032.

use super::super::attention::AttnInputs;
use super::super::cache::CacheInputs;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Node, Op, Unary};
use super::super::{Builder, Layer};
use super::delta;
use super::hyper::{joined, stream};
use super::kpool::{Pools, open_cells};
use super::plain::{PLAIN, feed_forward, logits};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// What attention to pools needs from outside.
#[derive(Clone, Copy)]
struct Chooser<'g> {
    pools: Pools<'g>,
    /// The positions of the new pools' first cells.
    new_positions: Node<'g>,
}

impl<'g> Chooser<'g> {
    /// Of a model that has an indexer.
    fn of(b: &'g Builder<'g>) -> Option<Self> {
        b.maybe_cache(CacheKind::Indexer).map(|_| {
            let pools = Pools::new(b);
            Self { pools, new_positions: b.draft.input(i32(), &[4 * pools.n_new]) }
        })
    }
}

/// A NextN block between the streams of the target (`graph_mtp::graph_mtp`): one row a token of what is put out.
pub(super) fn drafted<'g>(l: Layer<'g>, streams: Node<'g>) -> Node<'g> {
    let b = l.b;
    // The rows of states are an input, although the block has no state.
    b.draft.input(i32(), &[u64::from(l.plan.numbers.n_seq_max.max(1))]).expand();
    let (base, chooser) = (b.inp_kv(CacheKind::Base), Chooser::of(b));
    let (positions, out_ids) = (b.inp_pos(), b.inp_out_ids());
    let (x, inject) = read_streams(l, "hc_attn", streams);
    let streams = write_streams(l, attention(l, x, base, chooser.as_ref(), positions), streams, inject);
    let (x, inject) = read_streams(l, "hc_ffn", streams);
    let streams = write_streams(l, feed_forward(l, &PLAIN, x), streams, inject);
    let ne = streams.shape();
    let all = streams.reshape(&[ne[0] * ne[1], ne[2]]);
    let kept = all.get_rows(out_ids);
    all.mark_output().expand();
    mixed_streams(l, "nextn.hc_head", kept.reshape(&[ne[0], ne[1], l.plan.batch.n_outputs])).0
}

/// Builds the graph.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let first = b.plan.rules.looks_up_first.then(|| ngrams(b));
    let (rows, states, base) = (b.tokens(), b.inp_rs(), b.inp_kv(CacheKind::Base));
    let chooser = Chooser::of(b);
    let (positions, out_ids) = (b.inp_pos(), b.inp_out_ids());
    let grams = first.unwrap_or_else(|| ngrams(b));
    let mut streams = b.streams(rows).expand();
    for l in b.layers() {
        l.tap(streams);
        if let Some(grams) = grams.filter(|_| l.hp.is_ple) {
            streams = add_ngrams(l, streams, grams, &states);
        }
        let (x, mut inject) = read_streams(l, "hc_attn", streams);
        x.expand();
        let mut x = if l.hp.is_recr {
            delta::linear_attention(l, x, &states)
        } else {
            attention(l, x, base, chooser.as_ref(), positions)
        };
        if l.is_last() {
            [x, inject] = l.only_outputs(out_ids, [x, inject]);
            streams = b.output_streams(streams, out_ids);
        }
        streams = write_streams(l, x, streams, inject);
        let (x, inject) = read_streams(l, "hc_ffn", streams);
        streams = l.bound(write_streams(l, feed_forward(l, &PLAIN, x), streams, inject));
    }
    if b.plan.rules.keeps_nextn_input {
        let ne = streams.shape();
        streams.reshape(&[ne[0] * ne[1], ne[2]]).expand();
    }
    logits(b, last_stream(b, streams));
}

/// Gated attention, to the cells of the best pools where the layer has an indexer.
fn attention<'g>(
    l: Layer<'g>,
    x: Node<'g>,
    mut base: CacheInputs<'g>,
    chooser: Option<&Chooser<'g>>,
    positions: Node<'g>,
) -> Node<'g> {
    if let Some(chooser) = chooser.filter(|_| l.hp.compress_ratio > 0) {
        let ne = base.mask.shape();
        base.mask = choose(l, x, chooser, positions, base.mask).reshape(&ne);
    }
    delta::gated_attention(l, x, &AttnInputs::Cached(base, None), positions)
}

/// The mask that opens the cells of the best pools (`build_qsa_sel`).
fn choose<'g>(l: Layer<'g>, x: Node<'g>, chooser: &Chooser<'g>, positions: Node<'g>, mask: Node<'g>) -> Node<'g> {
    let (pools, n_tokens) = (&chooser.pools, l.n_tokens);
    let (n_head, head) = (l.hparam("attention.indexer.head_count"), l.indexer_head());
    let keys = pooled_keys(l, x, head, chooser);
    let q = l.raw_mm("indexer.q_proj", x).reshape(&[head, n_head, n_tokens]);
    let q = l.norm("indexer.q_norm", q).rope(positions, None);
    let scores = q.lightning_indexer(keys, l.draft.filled(f32(), &[n_head, n_tokens]), pools.mask);
    let best = scores.top_k(pools.n_top);
    let newer = l.plan.rules.pools_replace_masks;
    if newer && l.plan.fused.masks {
        return l.probed(pools.mask_of(scores, best, true, mask));
    }
    let choice = pools.chosen_cells(best, true).expand();
    let live = pools.best_scores(scores, best).scale().clamp().repeat(&[pools.size, pools.n_top, n_tokens]);
    let tail = pools.tail.cast(f32()).scale().clamp();
    let live = live.reshape(&[pools.size * pools.n_top, n_tokens]).concat(tail, 0);
    let dump = live.op(Op::Fill).op(Op::CumSum).scale();
    let open = open_cells(choice, live, dump, mask, pools.n_kv);
    let (row, ne) = (open.nb(2), mask.shape());
    if newer {
        return open.view(&[pools.n_kv, n_tokens], &[row], 0).cont();
    }
    open.view(&[pools.n_kv, ne[1], ne[2], ne[3]], &[row, row * ne[1], row * ne[1] * ne[2]], 0) + mask
}

/// The keys of all pools; those that the batch completes are means of their cells' keys.
fn pooled_keys<'g>(l: Layer<'g>, x: Node<'g>, head: u64, chooser: &Chooser<'g>) -> Node<'g> {
    let n_new = chooser.pools.n_new;
    let rows = l.pool_rows(l.raw_mm("indexer.k_proj", x), head, &chooser.pools);
    let t = rows.tensor();
    let slice = |i| rows.view(&[head, n_new], &[t.nb[2]], i * t.nb[1]);
    let first = |i| if i == 0 { slice(i).cont() } else { slice(i) };
    let keys = joined(chooser.pools.size, first, |sum, next| sum + next).scale();
    let keys = l.norm("indexer.k_norm", keys).reshape(&[head, 1, n_new]).rope(chooser.new_positions, None);
    l.pool_keys(keys.reshape(&[head, n_new]), head, &chooser.pools)
}

/// A convolution's input; its last columns are copied before they become the state (`build_conv_state_at`).
pub(super) fn conv_input<'g>(
    b: &Builder<'g>,
    inputs: &StateInputs<'g>,
    states: Node<'g>,
    x: Node<'g>,
    [columns, channels]: [u64; 2],
) -> Node<'g> {
    let input = b.past_and(inputs, states, x, [columns, channels]);
    b.write_columns(input, [columns + 1, channels], states, Node::cont);
    input
}

/// The embeddings of the n-grams that end at each token (`build_inp_ple`).
fn ngrams<'g>(b: &'g Builder<'g>) -> Option<Node<'g>> {
    if !b.plan.caches.hparams.layers.iter().any(|layer| layer.is_ple) {
        return None;
    }
    let n_heads = (b.hparam("ple.ngram_size") - 1) * b.hparam("ple.heads_per_ngram");
    let rows = b.global("per_layer_token_embd").get_rows(b.draft.input(i32(), &[n_heads * b.n_tokens]));
    Some(rows.reshape(&[rows.ne(0) * n_heads, b.n_tokens]).expand())
}

/// The streams with what n-grams add to them (`build_ple`).
fn add_ngrams<'g>(l: Layer<'g>, streams: Node<'g>, grams: Node<'g>, inputs: &StateInputs<'g>) -> Node<'g> {
    let (n_embd, n_streams, n_tokens) = (l.n_embd, streams.ne(1), l.n_tokens);
    let by_stream = [n_embd, n_streams, n_tokens];
    // Each stream by itself.
    let norm = |name: &str, x: Node<'g>| x.reshape(&by_stream).rms() * l.weight(name);
    let key = norm("ple_norm_key", l.raw_mm("ple_key", grams));
    let score = (key * norm("ple_norm_query", streams)).sum_rows().scale();
    // The absolute value and the sign.
    let [size, sign] = [score; 2].map(|score| score.unary(Unary::Other));
    let gate = (sign * size.clamp().sqrt()).sigmoid();
    let value = l.raw_mm("ple_value", grams).reshape(&[n_embd, 1, n_tokens]).repeat(&by_stream);
    let gated = value * gate;
    let flat = [n_embd * n_streams, n_tokens];
    let normed = norm("ple_norm_conv", gated.reshape(&flat)).reshape(&flat);
    let conv = ngram_conv(l, normed, inputs).reshape(&by_stream);
    streams + (gated + conv)
}

/// A dilated convolution of each channel, as a sum of shifted copies.
fn ngram_conv<'g>(l: Layer<'g>, x: Node<'g>, inputs: &StateInputs<'g>) -> Node<'g> {
    let (channels, n_tokens, n_seqs) = (x.ne(0), l.n_seq_tokens, l.n_seqs);
    let (kernel, apart) = (l.hparam("ple.conv_kernel"), l.hparam("ple.ngram_size"));
    let states = l.keys(CacheKind::PleState, l.il);
    let x = x.reshape(&[channels, n_tokens, n_seqs]);
    let input = conv_input(l.b, inputs, states, x, [(kernel - 1) * apart, channels]);
    let strides = input.strides();
    let weights = l.weight("ple_conv1d");
    let w = weights.tensor();
    let term = |i| {
        let shifted = input.view(&[n_tokens, channels, n_seqs], &strides[1..3], 4 * i * apart).transpose().cont();
        let weight = weights.view(&[1, channels], &[w.nb[1]], i * w.nb[0]).cont().reshape(&[channels]);
        shifted * if w.ty == f32() { weight } else { weight.cast(f32()) }
    };
    joined(kernel, term, |sum, next| sum + next).silu().cont()
}

/// All streams normed, as one row a token, and how much of each is read (`build_hc_mix`).
fn stream_gates<'g>(streams: Node<'g>, [norm, down, up]: [Node<'g>; 3]) -> (Node<'g>, Node<'g>) {
    let ne = streams.shape();
    let normed = (streams.rms() * norm).reshape(&[ne[0] * ne[1], ne[2]]);
    (normed, up.mm(down.mm(normed).scale().silu()))
}

/// One row a token of its streams, and all of them normed.
fn mixed_streams<'g>(l: Layer<'g>, name: &str, streams: Node<'g>) -> (Node<'g>, Node<'g>) {
    let weights = ["norm", "down", "up"].map(|part| l.weight(&format!("{name}_{part}")));
    let (normed, gate) = stream_gates(streams, weights);
    let ne = streams.shape();
    let x = if l.plan.fused.pre {
        l.probed(normed.reshape(&ne).hc_pre(gate.reshape(&ne)))
    } else {
        gated_mean(normed, gate, ne)
    };
    (x, normed)
}

/// A layer's input, and how much each stream takes of its output.
fn read_streams<'g>(l: Layer<'g>, name: &str, streams: Node<'g>) -> (Node<'g>, Node<'g>) {
    let (x, normed) = mixed_streams(l, name, streams);
    let inject = l.raw_mm(&format!("{name}_inject"), normed);
    (x, if l.plan.rules.pools_replace_masks { inject.scale() } else { inject })
}

/// The streams after a layer's output (`build_hc_combine`).
fn write_streams<'g>(l: Layer<'g>, x: Node<'g>, streams: Node<'g>, inject: Node<'g>) -> Node<'g> {
    let inject = if l.plan.rules.pools_replace_masks { inject } else { inject.scale() };
    let taken = inject.sigmoid().scale();
    if l.plan.fused.post {
        return l.probed(x.hc_post(streams, taken, None));
    }
    let [width, n_streams, n_tokens, _] = streams.shape();
    let x = x.reshape(&[width, 1, n_tokens]).repeat(&[width, n_streams, n_tokens]);
    streams + x * taken.reshape(&[1, n_streams, n_tokens])
}

/// One row a token of its streams, step by step at the end.
fn last_stream<'g>(b: &'g Builder<'g>, streams: Node<'g>) -> Node<'g> {
    let weights = ["norm", "down", "up"].map(|part| b.global(&format!("output_hc_{part}")));
    let (normed, gate) = stream_gates(streams, weights);
    gated_mean(normed, gate, streams.shape())
}

/// The mean of gated streams, step by step.
fn gated_mean<'g>(normed: Node<'g>, gate: Node<'g>, ne: [u64; 4]) -> Node<'g> {
    let gated = (normed * gate.sigmoid()).reshape(&ne);
    let first = |i| if i == 0 { stream(gated, i).cont() } else { stream(gated, i) };
    joined(gated.ne(1), first, |sum, stream| sum + stream).scale()
}
