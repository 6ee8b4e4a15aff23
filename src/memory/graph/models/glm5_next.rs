//! glm5-next: delta attention and latents seen through pools of cells, joined by mixed residual streams.
//!
//! Source: `src/models/glm5-next.cpp`, llama.cpp b11434.

use super::super::attention::Extras;
use super::super::cache::CacheInputs;
use super::super::inputs::Embeddings;
use super::super::tensor::{Graph, Id, Op, Unary};
use super::super::{Builder, Error, Norm};
use super::kpool::Pools;
use super::mla::Sizes;
use super::plain::{NormW, PLAIN, Spec, feed_forward, finish};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// The traits shared with plain decoders.
const SPEC: Spec = Spec { gating_stated: true, norm_w: NormW::Stated, ..PLAIN };

/// The largest micro-batch that gathers the chosen latents instead of masking the others.
const MAX_GATHERED: u32 = 16;

/// What latent attention needs from outside.
#[derive(Clone, Copy)]
struct Inputs {
    latent: CacheInputs,
    pools: Pools,
    /// Which of a token's chosen cells count.
    live: Id,
    has_tail: bool,
    gathers: bool,
}

/// Builds the graph.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let inputs = inputs(b)?;
    let out_ids = b.inp_out_ids();
    let n_streams = b.hparam("hyper_connection.count")?;
    let (n_embd, n_tokens) = (b.n_embd, b.n_tokens);
    let rows = b.graph.reshape(rows, &[n_embd, 1, n_tokens]);
    let is_fused = b.fuses_combinations()?;
    let mut streams = b.graph.repeat(rows, &[n_embd, n_streams, n_tokens]);
    let mut chosen = None;
    for il in 0..b.n_layer {
        let (x, post, comb) = b.read_mixed(il, "hc_attn", streams, is_fused)?;
        let x = b.norm(il, "attn_norm", x, Norm::Rms)?;
        b.graph.expand(x);
        let x = if b.layer(il)?.is_recr {
            b.kda_sigmoid(il, x, &states)?
        } else {
            attention(b, il, x, &inputs, &mut chosen)?
        };
        streams = b.write_mixed_streams(x, streams, post, comb)?;
        let (x, post, comb) = b.read_mixed(il, "hc_ffn", streams, is_fused)?;
        let x = b.norm(il, "ffn_norm", x, Norm::Rms)?;
        let x = feed_forward(b, &SPEC, il, x)?;
        streams = b.write_mixed_streams(x, streams, post, comb)?;
    }
    let flat = b.graph.reshape(streams, &[n_embd * n_streams, n_tokens]);
    let flat = b.graph.get_rows(flat, out_ids);
    let n_outputs = b.plan.batch.n_outputs;
    let streams = b.graph.reshape(flat, &[n_embd, n_streams, n_outputs]);
    let rows = b.mean_stream(streams);
    finish(b, &SPEC, rows, out_ids)
}

fn inputs(b: &mut Builder<'_>) -> Result<Inputs, Error> {
    let latent = b.inp_k(CacheKind::Base)?;
    let pools = Pools::new(b)?;
    let tail = "attention.indexer.kpool_select_tail";
    let has_tail = b.hparams().value(tail).is_none() || b.flag(tail);
    let live = b.graph.input(f32(), &[pools.n_sel(has_tail), 1, 1, b.n_tokens]);
    b.graph.expand(live);
    let numbers = b.plan.numbers;
    let widest = u64::from(b.plan.caches.hparams.indexer_top_k) + pools.size - 1;
    let gathers = numbers.n_ubatch <= MAX_GATHERED && u64::from(numbers.n_ctx) > widest;
    Ok(Inputs { latent, pools, live, has_tail, gathers })
}

/// Attention to the chosen cells' latents; layers without an indexer of their own use what is `chosen` already
/// (`build_dsa_layer`).
fn attention(b: &mut Builder<'_>, il: u32, x: Id, inputs: &Inputs, chosen: &mut Option<Id>) -> Result<Id, Error> {
    let (sizes, n_tokens) = (b.mla_sizes(il)?, b.n_tokens);
    let low = b.raw_mm(il, "attn_q_a", x)?;
    let low = b.norm(il, "attn_q_a_norm", low, Norm::Rms)?;
    let q = b.raw_mm(il, "attn_q_b", low)?;
    let q = b.graph.reshape(q, &[sizes.nope, sizes.n_head, n_tokens]);
    let latent = b.raw_mm(il, "attn_kv_a_mqa", x)?;
    let latent = b.norm(il, "attn_kv_a_norm", latent, Norm::Rms)?;
    let latent = b.graph.reshape(latent, &[sizes.latent, 1, n_tokens]);
    let q = b.graph.permute(q, [0, 2, 1, 3]);
    let q = b.raw_mm(il, "attn_k_b", q)?;
    let q = b.graph.permute(q, [0, 2, 1, 3]);
    let choice = match *chosen {
        Some(choice) if !b.layer(il)?.is_indexer_full => choice,
        _ => choose(b, il, (x, low), inputs)?,
    };
    *chosen = Some(choice);
    b.graph.expand_all(&[q, latent]);
    let stored = b.cpy_k(CacheKind::Base, il, latent, inputs.latent.k_idxs)?;
    b.graph.expand(stored);
    let rows = if inputs.gathers {
        gathered(b, il, (q, choice), inputs, sizes)?
    } else {
        let ne = b.graph.tensor(inputs.latent.mask).ne;
        let mask = b.graph.reshape(choice, &ne);
        let k = b.get_k(CacheKind::Base, il, sizes.latent, 1)?;
        let t = *b.graph.tensor(k);
        let v = b.graph.view(k, &[sizes.latent, t.ne[1], t.ne[2], t.ne[3]], &t.nb[1..], 0);
        let v_mla = b.weight(il, "attn_v_b.weight")?;
        b.mha(il, q, k, v, mask, Extras { v_mla: Some(v_mla), ..Extras::default() })
    };
    b.raw_mm(il, "attn_output", rows)
}

/// Attention over the chosen latents, read one by one.
fn gathered(b: &mut Builder<'_>, il: u32, (q, choice): (Id, Id), inputs: &Inputs, sizes: Sizes) -> Result<Id, Error> {
    b.graph.expand(inputs.latent.mask);
    let (n_sel, n_tokens) = (b.ne(choice, 0), b.n_tokens);
    let k = b.kv_tensors(CacheKind::Base, il)?.k;
    let t = *b.graph.tensor(k);
    let cells = b.graph.view(k, &[t.ne[0], t.ne[1] * t.ne[2]], &[t.nb[1]], 0);
    let choice = b.graph.reshape(choice, &[n_sel * n_tokens]);
    let k = b.graph.get_rows(cells, choice);
    let k = b.graph.reshape(k, &[sizes.latent, n_sel, 1, n_tokens]);
    let q = b.graph.permute(q, [0, 2, 3, 1]);
    let scores = b.graph.mul_mat(k, q);
    let scores = b.graph.soft_max(scores, Some(inputs.live));
    let v = b.graph.transpose(k);
    let v = b.graph.cont(v);
    let rows = b.graph.mul_mat(v, scores);
    let rows = b.raw_mm(il, "attn_v_b", rows)?;
    let width = b.ne(rows, 0);
    let rows = b.graph.permute(rows, [0, 2, 1, 3]);
    let rows = b.graph.cont(rows);
    Ok(b.graph.reshape(rows, &[width * sizes.n_head, n_tokens]))
}

/// The cells that each token should see: their numbers, or a mask (`build_kpool_select`).
fn choose(b: &mut Builder<'_>, il: u32, (x, low): (Id, Id), inputs: &Inputs) -> Result<Id, Error> {
    let (pools, n_tokens) = (&inputs.pools, b.n_tokens);
    let n_head = b.hparam("attention.indexer.head_count")?;
    let head = u64::from(b.plan.caches.hparams.indexer_head_size);
    let q = b.raw_mm(il, "indexer.attn_q_b", low)?;
    let q = b.graph.reshape(q, &[head, n_head, n_tokens]);
    let keys = pooled_keys(b, il, x, head, pools)?;
    let weights = b.raw_mm(il, "indexer.proj", x)?;
    let weights = b.graph.scale(weights);
    let scores = b.pool_scores(q, keys, weights, pools);
    let best = b.graph.top_k(scores, pools.n_top);
    let order = b.best_scores(scores, best, pools);
    let order = b.graph.reshape(order, &[pools.n_top, n_tokens]);
    let order = b.graph.like(Op::Argsort, &[order]);
    b.graph.tensors[order.index()].ty = i32();
    let best = b.graph.cast(best, f32());
    let best = b.graph.reshape(best, &[1, pools.n_top, n_tokens]);
    let best = b.graph.get_rows(best, order);
    let best = b.graph.reshape(best, &[pools.n_top, n_tokens]);
    let best = b.graph.cont(best);
    let best = b.graph.cast(best, i32());
    let choice = b.chosen_cells(best, pools, inputs.has_tail);
    if inputs.gathers {
        return Ok(choice);
    }
    b.graph.expand(choice);
    let n_sel = b.ne(choice, 0);
    let live = b.graph.reshape(inputs.live, &[n_sel, n_tokens]);
    let live = b.graph.unary(Unary::Exp, live);
    let dump = b.graph.make(Op::Arange, f32(), [n_sel, 1, 1, 1], &[]);
    let open = b.open_cells(choice, live, dump, inputs.latent.mask, pools.n_kv);
    let row = b.nb(open, 2);
    let open = b.graph.view(open, &[pools.n_kv, n_tokens], &[row], 0);
    let mask = b.graph.reshape(inputs.latent.mask, &[pools.n_kv, n_tokens]);
    Ok(b.graph.add(open, mask))
}

/// The keys of all pools; those that the batch completes are means of their cells' keys, weighted by gates.
fn pooled_keys(b: &mut Builder<'_>, il: u32, x: Id, head: u64, pools: &Pools) -> Result<Id, Error> {
    let k = b.raw_mm(il, "indexer.attn_k", x)?;
    let k = b.norm(il, "indexer.k_norm", k, Norm::Layer)?;
    let gate = b.raw_mm(il, "indexer_compressor_gate", x)?;
    let brought = b.graph.concat(k, gate, 0);
    let rows = b.pool_rows(il, brought, head, pools)?;
    let strides = [b.nb(rows, 1), b.nb(rows, 2)];
    let dims = [head, pools.size, pools.n_new];
    let keys = b.graph.view(rows, &dims, &strides, 0);
    let gates = b.graph.view(rows, &dims, &strides, 4 * head);
    let by_place = b.weight(il, "indexer_compressor_ape.weight")?;
    let gates = b.graph.add(gates, by_place);
    let gates = b.graph.permute(gates, [1, 0, 2, 3]);
    let gates = b.graph.cont(gates);
    let gates = b.graph.reshape(gates, &[pools.size, head * pools.n_new]);
    let gates = b.graph.soft_max(gates, None);
    let gates = b.graph.reshape(gates, &[pools.size, head, pools.n_new]);
    let keys = b.graph.permute(keys, [1, 0, 2, 3]);
    let keys = b.graph.cont(keys);
    let keys = b.graph.mul(gates, keys);
    let keys = b.graph.sum_rows(keys);
    let keys = b.graph.reshape(keys, &[head, pools.n_new]);
    b.pool_keys(il, keys, 2 * head, pools)
}

impl Builder<'_> {
    /// The streams after a layer's output (`build_hc_post`).
    fn write_mixed_streams(&mut self, x: Id, streams: Id, post: Id, comb: Id) -> Result<Id, Error> {
        if self.leaves_host() {
            return self.write_in_steps(x, streams, post, comb);
        }
        Ok(self.write_mixed(x, streams, post, comb))
    }

    /// Whether layers on the host come before others: the streams between them are written where they are read, on
    /// the device, and for that llama.cpp gives the operation up in all layers (`resolve_fused_ops`). Layers whose
    /// tensors alone are elsewhere are not considered.
    fn leaves_host(&self) -> bool {
        let layers = &self.plan.placement.layers;
        layers.windows(2).any(|pair| matches!(pair, [None, Some(_)]))
    }

    /// The same without the operation for it.
    fn write_in_steps(&mut self, x: Id, streams: Id, post: Id, comb: Id) -> Result<Id, Error> {
        let [s, p, c] = [streams, post, comb].map(|id| *self.graph.tensor(id));
        let (width, n_tokens) = (s.ne[0], s.ne[2]);
        let mut joined = None;
        for to in 0..s.ne[1] {
            self.sound()?;
            let share = self.graph.view(post, &[1, n_tokens], &[p.nb[1]], to * p.nb[0]);
            let mut sum = self.graph.mul(x, share);
            for from in 0..s.ne[1] {
                let stream = self.graph.view(streams, &[width, n_tokens], &[s.nb[2]], from * s.nb[1]);
                let share = self.graph.view(comb, &[1, n_tokens], &[c.nb[2]], to * c.nb[0] + from * c.nb[1]);
                let part = self.graph.mul(stream, share);
                sum = self.graph.add(sum, part);
            }
            let sum = self.graph.reshape(sum, &[width, 1, n_tokens]);
            joined = Some(joined.map_or(sum, |joined| self.graph.concat(joined, sum, 1)));
        }
        joined.ok_or_else(|| self.key_error("hyper_connection.count", Some(0)))
    }

    /// The mean of the streams (`build_hc_mean`).
    fn mean_stream(&mut self, streams: Id) -> Id {
        let sum = self.sum_streams(streams, None);
        self.graph.scale(sum)
    }

    /// The streams added up, from `first` on where it is the first one already.
    pub(super) fn sum_streams(&mut self, streams: Id, first: Option<Id>) -> Id {
        let t = *self.graph.tensor(streams);
        let view = |graph: &mut Graph, i: u64| graph.view(streams, &[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1]);
        let mut sum = first.unwrap_or_else(|| view(&mut self.graph, 0));
        for i in 1..t.ne[1] {
            let stream = view(&mut self.graph, i);
            sum = self.graph.add(sum, stream);
        }
        sum
    }
}
