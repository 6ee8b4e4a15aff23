//! qwen4exp: delta nets and attention to pools of cells, n-gram embeddings, layers joined by gated residual streams.
//!
//! Source: `src/models/qwen4exp.cpp`, llama.cpp b11434.

use super::super::attention::AttnInputs;
use super::super::cache::CacheInputs;
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Graph, Id, Op, Unary};
use super::super::{Builder, Error, Norm};
use super::delta;
use super::kpool::Pools;
use super::plain::{PLAIN, feed_forward};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// What attention to pools needs from outside.
#[derive(Clone, Copy)]
struct Chooser {
    pools: Pools,
    /// The positions of the new pools' first cells.
    new_positions: Id,
}

/// Builds the graph.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let n_streams = b.hparam("hyper_connection.count")?;
    let rows = b.inp_embd(Embeddings::default())?;
    let states = b.inp_rs()?;
    let base = b.inp_kv(CacheKind::Base)?;
    let chooser = chooser(b)?;
    let positions = b.inp_pos();
    let out_ids = b.inp_out_ids();
    let grams = b.ngrams()?;
    let (n_embd, n_tokens) = (b.n_embd, b.n_tokens);
    let rows = b.graph.reshape(rows, &[n_embd, 1, n_tokens]);
    let mut streams = b.graph.repeat(rows, &[n_embd, n_streams, n_tokens]);
    b.graph.expand(streams);
    for il in 0..b.n_layer {
        let is_ple = b.layer(il)?.is_ple;
        if let Some(grams) = grams.filter(|_| is_ple) {
            streams = b.add_ngrams(il, streams, grams, &states)?;
        }
        let (mut x, mut inject) = b.read_gated(il, "hc_attn", streams)?;
        b.graph.expand(x);
        x = if b.layer(il)?.is_recr {
            delta::linear_attention(b, il, x, &states)?
        } else {
            attention(b, il, x, (base, chooser, positions))?
        };
        if b.is_last(il) {
            b.only_outputs(il, out_ids, &mut [&mut x, &mut inject]);
            let flat = b.graph.reshape(streams, &[n_embd * n_streams, n_tokens]);
            let flat = b.graph.get_rows(flat, out_ids);
            streams = b.graph.reshape(flat, &[n_embd, n_streams, b.plan.batch.n_outputs]);
        }
        streams = b.write_gated(x, streams, inject);
        let (x, inject) = b.read_gated(il, "hc_ffn", streams)?;
        let x = feed_forward(b, &PLAIN, il, x)?;
        streams = b.write_gated(x, streams, inject);
    }
    let rows = b.last_stream(streams)?;
    b.mark_output(rows);
    b.logits(rows)
}

fn chooser(b: &mut Builder<'_>) -> Result<Option<Chooser>, Error> {
    if b.maybe_cache(CacheKind::Indexer).is_none() {
        return Ok(None);
    }
    let pools = Pools::new(b)?;
    let new_positions = b.graph.input(i32(), &[4 * pools.n_new]);
    Ok(Some(Chooser { pools, new_positions }))
}

/// Gated attention, to the cells of the best pools where the layer has an indexer.
fn attention(
    b: &mut Builder<'_>,
    il: u32,
    x: Id,
    (mut base, chooser, positions): (CacheInputs, Option<Chooser>, Id),
) -> Result<Id, Error> {
    if let Some(chooser) = chooser.filter(|_| b.weights.has(il, "indexer.k_proj.weight")) {
        let ne = b.graph.tensor(base.mask).ne;
        let open = choose(b, il, x, (&chooser, positions, base.mask))?;
        base.mask = b.graph.reshape(open, &ne);
    }
    delta::gated_attention(b, il, x, &AttnInputs::Cached(base, None), positions)
}

/// The mask that opens the cells of the best pools (`build_qsa_sel`).
fn choose(b: &mut Builder<'_>, il: u32, x: Id, (chooser, positions, mask): (&Chooser, Id, Id)) -> Result<Id, Error> {
    let (pools, n_tokens) = (&chooser.pools, b.n_tokens);
    let n_head = b.hparam("attention.indexer.head_count")?;
    let head = u64::from(b.plan.caches.hparams.indexer_head_size);
    let keys = pooled_keys(b, il, x, head, chooser)?;
    let q = b.raw_mm(il, "indexer.q_proj", x)?;
    let q = b.graph.reshape(q, &[head, n_head, n_tokens]);
    let q = b.norm(il, "indexer.q_norm", q, Norm::Rms)?;
    let q = b.graph.rope(q, positions, None);
    let weights = b.graph.new_tensor(f32(), &[n_head, n_tokens]);
    let weights = b.graph.like(Op::Fill, &[weights]);
    let scores = b.pool_scores(q, keys, weights, pools);
    let best = b.graph.top_k(scores, pools.n_top);
    let choice = b.chosen_cells(best, pools, true);
    b.graph.expand(choice);
    let live = b.best_scores(scores, best, pools);
    let live = b.graph.scale(live);
    let live = b.graph.clamp(live);
    let live = b.graph.repeat(live, &[pools.size, pools.n_top, n_tokens]);
    let live = b.graph.reshape(live, &[pools.size * pools.n_top, n_tokens]);
    let tail = b.graph.cast(pools.tail, f32());
    let tail = b.graph.scale(tail);
    let tail = b.graph.clamp(tail);
    let live = b.graph.concat(live, tail, 0);
    let dump = b.graph.like(Op::Fill, &[live]);
    let dump = b.graph.like(Op::CumSum, &[dump]);
    let dump = b.graph.scale(dump);
    let open = b.open_cells(choice, live, dump, mask, pools.n_kv);
    let (row, ne) = (b.nb(open, 2), b.graph.tensor(mask).ne);
    let strides = [row, row * ne[1], row * ne[1] * ne[2]];
    let open = b.graph.view(open, &[pools.n_kv, ne[1], ne[2], ne[3]], &strides, 0);
    Ok(b.graph.add(open, mask))
}

/// The keys of all pools; those that the batch completes are means of their cells' keys.
fn pooled_keys(b: &mut Builder<'_>, il: u32, x: Id, head: u64, chooser: &Chooser) -> Result<Id, Error> {
    let pools = &chooser.pools;
    let k = b.raw_mm(il, "indexer.k_proj", x)?;
    let rows = b.pool_rows(il, k, head, pools)?;
    let t = *b.graph.tensor(rows);
    let slice = |graph: &mut Graph, i: u64| graph.view(rows, &[head, pools.n_new], &[t.nb[2]], i * t.nb[1]);
    let first = slice(&mut b.graph, 0);
    let mut sum = b.graph.cont(first);
    for i in 1..pools.size {
        let next = slice(&mut b.graph, i);
        sum = b.graph.add(sum, next);
    }
    let keys = b.graph.scale(sum);
    let keys = b.norm(il, "indexer.k_norm", keys, Norm::Rms)?;
    let keys = b.graph.reshape(keys, &[head, 1, pools.n_new]);
    let keys = b.graph.rope(keys, chooser.new_positions, None);
    let keys = b.graph.reshape(keys, &[head, pools.n_new]);
    b.pool_keys(il, keys, head, pools)
}

/// A convolution's input; its last columns are copied before they become the state (`build_conv_state_at`).
pub(super) fn conv_input(
    b: &mut Builder<'_>,
    inputs: &StateInputs,
    states: Id,
    x: Id,
    (columns, channels): (u64, u64),
) -> Id {
    let past = b.read_states(inputs, states);
    let past = b.graph.reshape(past, &[columns, channels, b.plan.batch.n_seqs]);
    let x = b.graph.transpose(x);
    let input = b.graph.concat(past, x, 0);
    let last = b.last_columns(input, columns + 1, channels);
    let last = b.graph.cont(last);
    b.write_states(last, states);
    input
}

impl Builder<'_> {
    /// The embeddings of the n-grams that end at each token (`build_inp_ple`).
    fn ngrams(&mut self) -> Result<Option<Id>, Error> {
        if !self.plan.caches.hparams.layers.iter().any(|layer| layer.is_ple) {
            return Ok(None);
        }
        let n_heads = (self.hparam("ple.ngram_size")? - 1) * self.hparam("ple.heads_per_ngram")?;
        let table = self.global("per_layer_token_embd.weight")?;
        let ids = self.graph.input(i32(), &[n_heads * self.n_tokens]);
        let rows = self.graph.get_rows(table, ids);
        let width = self.ne(rows, 0) * n_heads;
        let rows = self.graph.reshape(rows, &[width, self.n_tokens]);
        self.graph.expand(rows);
        Ok(Some(rows))
    }

    /// The streams with what n-grams add to them (`build_ple`).
    fn add_ngrams(&mut self, il: u32, streams: Id, grams: Id, inputs: &StateInputs) -> Result<Id, Error> {
        let (n_embd, n_streams, n_tokens) = (self.n_embd, self.ne(streams, 1), self.n_tokens);
        let by_stream = [n_embd, n_streams, n_tokens];
        let key = self.raw_mm(il, "ple_key", grams)?;
        let value = self.raw_mm(il, "ple_value", grams)?;
        let key = self.stream_norm(il, "ple_norm_key", key, by_stream)?;
        let query = self.stream_norm(il, "ple_norm_query", streams, by_stream)?;
        let score = self.graph.mul(key, query);
        let score = self.graph.sum_rows(score);
        let score = self.graph.scale(score);
        let size = self.graph.unary(Unary::Other, score);
        let size = self.graph.clamp(size);
        let size = self.graph.like(Op::Sqrt, &[size]);
        let sign = self.graph.unary(Unary::Other, score);
        let gate = self.graph.mul(sign, size);
        let gate = self.graph.unary(Unary::Sigmoid, gate);
        let value = self.graph.reshape(value, &[n_embd, 1, n_tokens]);
        let value = self.graph.repeat(value, &by_stream);
        let gated = self.graph.mul(value, gate);
        let flat = self.graph.reshape(gated, &[n_embd * n_streams, n_tokens]);
        let normed = self.stream_norm(il, "ple_norm_conv", flat, by_stream)?;
        let normed = self.graph.reshape(normed, &[n_embd * n_streams, n_tokens]);
        let conv = self.ngram_conv(il, normed, inputs)?;
        let conv = self.graph.reshape(conv, &by_stream);
        let added = self.graph.add(gated, conv);
        Ok(self.graph.add(streams, added))
    }

    /// A dilated convolution of each channel, as a sum of shifted copies.
    fn ngram_conv(&mut self, il: u32, x: Id, inputs: &StateInputs) -> Result<Id, Error> {
        let batch = self.plan.batch;
        let (channels, n_tokens, n_seqs) = (self.ne(x, 0), batch.n_seq_tokens(), batch.n_seqs);
        let kernel = self.hparam("ple.conv_kernel")?;
        let apart = self.hparam("ple.ngram_size")?;
        let columns = (kernel - 1) * apart;
        let states = self.kv_tensors(CacheKind::PleState, il)?.k;
        let x = self.graph.reshape(x, &[channels, n_tokens, n_seqs]);
        let input = conv_input(self, inputs, states, x, (columns, channels));
        let strides = [self.nb(input, 1), self.nb(input, 2)];
        let weights = self.weight(il, "ple_conv1d.weight")?;
        let w = *self.graph.tensor(weights);
        let term = |graph: &mut Graph, i: u64| {
            let shifted = graph.view(input, &[n_tokens, channels, n_seqs], &strides, 4 * i * apart);
            let shifted = graph.transpose(shifted);
            let shifted = graph.cont(shifted);
            let weight = graph.view(weights, &[1, channels], &[w.nb[1]], i * w.nb[0]);
            let weight = graph.cont(weight);
            let mut weight = graph.reshape(weight, &[channels]);
            if w.ty != f32() {
                weight = graph.cast(weight, f32());
            }
            graph.mul(shifted, weight)
        };
        let mut sum = term(&mut self.graph, 0);
        for i in 1..kernel {
            let next = term(&mut self.graph, i);
            sum = self.graph.add(sum, next);
        }
        let sum = self.graph.unary(Unary::Silu, sum);
        Ok(self.graph.cont(sum))
    }

    /// A norm of each stream by itself.
    fn stream_norm(&mut self, il: u32, name: &str, x: Id, by_stream: [u64; 3]) -> Result<Id, Error> {
        let x = self.graph.reshape(x, &by_stream);
        let x = self.rms(x);
        let weight = self.weight(il, &format!("{name}.weight"))?;
        Ok(self.graph.mul(x, weight))
    }

    /// All streams normed, as one row a token, and how much of each is read (`build_hc_mix`).
    fn stream_gates(&mut self, streams: Id, [norm, down, up]: [Id; 3]) -> (Id, Id) {
        let ne = self.graph.tensor(streams).ne;
        let normed = self.rms(streams);
        let normed = self.graph.mul(normed, norm);
        let normed = self.graph.reshape(normed, &[ne[0] * ne[1], ne[2]]);
        let low = self.graph.mul_mat(down, normed);
        let low = self.graph.scale(low);
        let low = self.graph.unary(Unary::Silu, low);
        (normed, self.graph.mul_mat(up, low))
    }

    /// A layer's input, and how much each stream takes of its output.
    fn read_gated(&mut self, il: u32, name: &str, streams: Id) -> Result<(Id, Id), Error> {
        let ne = self.graph.tensor(streams).ne;
        let mut weight = |part: &str| self.weight(il, &format!("{name}_{part}.weight"));
        let weights = [weight("norm")?, weight("down")?, weight("up")?];
        let (normed, gate) = self.stream_gates(streams, weights);
        let [by_stream, gate] = [normed, gate].map(|id| self.graph.reshape(id, &ne));
        let x = self.graph.hc_pre(by_stream, gate);
        Ok((x, self.raw_mm(il, &format!("{name}_inject"), normed)?))
    }

    /// The streams after a layer's output (`build_hc_combine`).
    fn write_gated(&mut self, x: Id, streams: Id, inject: Id) -> Id {
        let share = self.graph.scale(inject);
        let share = self.graph.unary(Unary::Sigmoid, share);
        let share = self.graph.scale(share);
        self.graph.hc_post(x, streams, share, None)
    }

    /// One row a token of its streams, step by step at the end.
    fn last_stream(&mut self, streams: Id) -> Result<Id, Error> {
        let ne = self.graph.tensor(streams).ne;
        let mut weight = |part: &str| self.global(&format!("output_hc_{part}.weight"));
        let weights = [weight("norm")?, weight("down")?, weight("up")?];
        let (normed, gate) = self.stream_gates(streams, weights);
        let gate = self.graph.unary(Unary::Sigmoid, gate);
        let gated = self.graph.mul(normed, gate);
        let gated = self.graph.reshape(gated, &ne);
        let first = self.graph.view(gated, &[ne[0], ne[2]], &[4 * ne[0] * ne[1]], 0);
        let first = self.graph.cont(first);
        let sum = self.sum_streams(gated, Some(first));
        Ok(self.graph.scale(sum))
    }
}
