//! glm5-next: delta attention and latents seen through pools of cells, joined by mixed residual streams.
//!
//! Source: `src/models/glm5-next.cpp`, llama.cpp b11434 and b12032.

use super::super::attention::{Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::ops::HEADS;
use super::super::tensor::{Node, Op};
use super::super::{Builder, Layer, Norm};
use super::hyper::{joined, stream};
use super::kpool::{Pools, open_cells};
use super::mla::{SPEC, Sizes};
use super::plain::{feed_forward, finish};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// The largest micro-batch that gathers the chosen latents instead of masking the others.
const MAX_GATHERED: u32 = 16;

/// What latent attention needs from outside.
#[derive(Clone, Copy)]
struct Inputs<'g> {
    latent: CacheInputs<'g>,
    pools: Pools<'g>,
    /// Which of a token's chosen cells count, where the mask is not one operation.
    live: Option<Node<'g>>,
    has_tail: bool,
    gathers: bool,
}

/// Builds the graph.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let (rows, states, inputs, out_ids) = (b.tokens(), b.inp_rs(), inputs(b), b.inp_out_ids());
    let (mut streams, mut chosen) = (b.streams(rows), None);
    for l in b.layers() {
        let [x, post, comb] = l.read_mixed("hc_attn", streams);
        let x = l.norm("attn_norm", x).expand();
        let x = if l.hp.is_recr { l.kda(x, &states) } else { attention(l, x, &inputs, &mut chosen) };
        streams = l.write_mixed(x, streams, post, comb);
        let [x, post, comb] = l.read_mixed("hc_ffn", streams);
        streams = l.write_mixed(feed_forward(l, &SPEC, l.norm("ffn_norm", x)), streams, post, comb);
    }
    // The mean of the streams (`build_hc_mean`).
    let streams = b.output_streams(streams, out_ids);
    let sum = joined(streams.ne(1), |i| stream(streams, i), |sum, stream| sum + stream);
    finish(b, &SPEC, sum.scale(), out_ids);
}

fn inputs<'g>(b: &'g Builder<'g>) -> Inputs<'g> {
    let (latent, pools) = (b.inp_k(CacheKind::Base), Pools::new(b));
    let tail = "attention.indexer.kpool_select_tail";
    let has_tail = b.hparams().value(tail).is_none() || b.flag(tail);
    // Cells that a token's choice has room for.
    let n_sel = pools.size * pools.n_top + if has_tail { pools.size - 1 } else { 0 };
    let (numbers, rules) = (b.plan.numbers, b.plan.rules);
    let is_one = rules.pools_replace_masks && b.plan.fused.masks;
    let live = (!is_one).then(|| b.draft.input(f32(), &[n_sel, 1, 1, b.n_tokens]).expand());
    let widest = u64::from(b.plan.caches.hparams.indexer_top_k) + pools.size - 1;
    let gathers = rules.gathers_latents && numbers.n_ubatch <= MAX_GATHERED && u64::from(numbers.n_ctx) > widest;
    Inputs { latent, pools, live, has_tail, gathers }
}

/// Attention to the chosen cells' latents; layers without an indexer of their own use what is `chosen` already
/// (`build_dsa_layer`).
fn attention<'g>(l: Layer<'g>, x: Node<'g>, inputs: &Inputs<'g>, chosen: &mut Option<Node<'g>>) -> Node<'g> {
    let (sizes, low, n_tokens) = (l.mla_sizes(), l.low_q(x), l.n_tokens);
    let q = l.raw_mm("attn_q_b", low).reshape(&[sizes.nope, sizes.n_head, n_tokens]);
    let latent = l.norm("attn_kv_a_norm", l.raw_mm("attn_kv_a_mqa", x)).reshape(&[sizes.latent, 1, n_tokens]);
    let q = l.raw_mm("attn_k_b", q.permute(HEADS)).permute(HEADS);
    let choice = match *chosen {
        Some(choice) if !l.hp.is_indexer_full => choice,
        _ => choose(l, x, low, inputs),
    };
    *chosen = Some(choice);
    l.draft.expand(&[q, latent]);
    l.store_k(CacheKind::Base, l.il, latent, inputs.latent.k_idxs);
    let rows = match inputs.live.filter(|_| inputs.gathers) {
        Some(live) => gathered(l, q, choice, live, inputs, sizes),
        None => {
            let mask = choice.reshape(&inputs.latent.mask.shape());
            let k = l.get_k(CacheKind::Base, l.il, sizes.latent, 1);
            let v = k.view(&k.shape(), &k.strides()[1..], 0);
            l.mha(Qkv { q, k, v }, mask, Some(l.weight("attn_v_b")), Extras::default())
        }
    };
    l.raw_mm("attn_output", rows)
}

/// Attention over the chosen latents, read one by one.
fn gathered<'g>(
    l: Layer<'g>,
    q: Node<'g>,
    choice: Node<'g>,
    live: Node<'g>,
    inputs: &Inputs<'g>,
    sizes: Sizes,
) -> Node<'g> {
    inputs.latent.mask.expand();
    let (n_sel, n_tokens) = (choice.ne(0), l.n_tokens);
    let k = l.keys(CacheKind::Base, l.il);
    let t = k.tensor();
    let cells = k.view(&[t.ne[0], t.ne[1] * t.ne[2]], &[t.nb[1]], 0);
    let k = cells.get_rows(choice.reshape(&[n_sel * n_tokens])).reshape(&[sizes.latent, n_sel, 1, n_tokens]);
    let scores = k.mm(q.permute([0, 2, 3, 1])).soft_max_masked(live);
    let rows = l.raw_mm("attn_v_b", k.transpose().cont().mm(scores));
    rows.permute(HEADS).cont().reshape(&[rows.ne(0) * sizes.n_head, n_tokens])
}

/// The cells that each token should see: their numbers, or a mask (`build_kpool_select`).
fn choose<'g>(l: Layer<'g>, x: Node<'g>, low: Node<'g>, inputs: &Inputs<'g>) -> Node<'g> {
    let (pools, n_tokens, mask) = (&inputs.pools, l.n_tokens, inputs.latent.mask);
    let (n_head, head) = (l.hparam("attention.indexer.head_count"), l.indexer_head());
    let q = l.raw_mm("indexer.attn_q_b", low).reshape(&[head, n_head, n_tokens]);
    let keys = pooled_keys(l, x, head, pools);
    let scores = q.lightning_indexer(keys, l.raw_mm("indexer.proj", x).scale(), pools.mask);
    let best = scores.top_k(pools.n_top);
    let Some(live) = inputs.live else {
        return l.probed(pools.mask_of(scores, best, inputs.has_tail, mask));
    };
    let order = pools.best_scores(scores, best).reshape(&[pools.n_top, n_tokens]).argsort();
    let best = best.cast(f32()).reshape(&[1, pools.n_top, n_tokens]).get_rows(order);
    let best = best.reshape(&[pools.n_top, n_tokens]).cont().cast(i32());
    let choice = pools.chosen_cells(best, inputs.has_tail);
    if inputs.gathers {
        return choice;
    }
    let n_sel = choice.expand().ne(0);
    let live = live.reshape(&[n_sel, n_tokens]).exp();
    let dump = l.draft.make(Op::Arange, f32(), [n_sel, 1, 1, 1], &[]);
    let open = open_cells(choice, live, dump, mask, pools.n_kv);
    let open = open.view(&[pools.n_kv, n_tokens], &[open.nb(2)], 0);
    if l.plan.rules.pools_replace_masks { open.cont() } else { open + mask.reshape(&[pools.n_kv, n_tokens]) }
}

/// The keys of all pools; those that the batch completes are means of their cells' keys, weighted by gates.
fn pooled_keys<'g>(l: Layer<'g>, x: Node<'g>, head: u64, pools: &Pools<'g>) -> Node<'g> {
    let (size, n_new) = (pools.size, pools.n_new);
    let k = l.norm_of(Norm::Layer, "indexer.k_norm", l.raw_mm("indexer.attn_k", x));
    let rows = l.pool_rows(k.concat(l.raw_mm("indexer_compressor_gate", x), 0), head, pools);
    let gates = rows.cols(head, head) + l.weight("indexer_compressor_ape");
    let gates = gates.permute([1, 0, 2, 3]).cont().reshape(&[size, head * n_new]).soft_max();
    let keys = gates.reshape(&[size, head, n_new]) * rows.cols(head, 0).permute([1, 0, 2, 3]).cont();
    l.pool_keys(keys.sum_rows().reshape(&[head, n_new]), 2 * head, pools)
}
