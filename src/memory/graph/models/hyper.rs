//! Layers joined by several residual streams (hyper-connections).
//!
//! Source: `src/models/hy-v4.cpp`, llama.cpp b11434.

use super::super::inputs::Embeddings;
use super::super::tensor::{Graph, Id, Unary};
use super::super::{Builder, Error, Norm};
use super::dsa;
use super::plain::{NormW, PLAIN, Spec, feed_forward, finish};
use crate::gguf::ggml_type::f32;

/// The traits shared with plain decoders.
const SPEC: Spec = Spec { gating_stated: true, norm_w: NormW::Stated, ..PLAIN };

/// hy_v4: sparse attention, if it has an indexer, between hyper-connections.
pub(super) fn hy_v4(b: &mut Builder<'_>) -> Result<(), Error> {
    let n_streams = b.hparam("hyper_connection.count")?;
    let rows = b.inp_embd(Embeddings::default())?;
    let inputs = dsa::Inputs::new(b)?;
    let out_ids = b.inp_out_ids();
    let (n_embd, n_tokens) = (b.n_embd, b.n_tokens);
    let rows = b.graph.reshape(rows, &[n_embd, 1, n_tokens]);
    let mut streams = b.graph.repeat(rows, &[n_embd, n_streams, n_tokens]);
    let mut chosen = None;
    for il in 0..b.n_layer {
        let (x, post) = b.read_streams(il, "hc_attn", streams)?;
        let x = b.norm(il, "attn_norm", x, Norm::Rms)?;
        let x = dsa::attention(b, il, x, &inputs, &mut chosen)?;
        streams = b.write_streams(x, streams, post);
        let (x, post) = b.read_streams(il, "hc_ffn", streams)?;
        let x = b.norm(il, "ffn_norm", x, Norm::Rms)?;
        let x = feed_forward(b, &SPEC, il, x)?;
        streams = b.write_streams(x, streams, post);
    }
    let flat = b.graph.reshape(streams, &[n_embd * n_streams, n_tokens]);
    let flat = b.graph.get_rows(flat, out_ids);
    let n_outputs = b.plan.batch.n_outputs;
    let streams = b.graph.reshape(flat, &[n_embd, n_streams, n_outputs]);
    let rows = b.head(streams)?;
    finish(b, &SPEC, rows, out_ids)
}

/// What the streams of a layer's input say, and what it is made from.
#[derive(Clone, Copy)]
pub(super) struct Mixes {
    pub(super) rows: Id,
    pub(super) scale: Id,
    pub(super) base: Id,
    /// How much the layer takes of each stream.
    pub(super) pre: Id,
    /// How much each stream takes of the layer.
    pub(super) post: Id,
}

impl Builder<'_> {
    /// What the streams say about themselves: one row of `weight` times all of a token's streams, normed.
    fn mix(&mut self, weight: Id, streams: Id) -> Id {
        let ne = self.graph.tensor(streams).ne;
        let flat = self.graph.reshape(streams, &[ne[0] * ne[1], ne[2]]);
        let flat = self.rms(flat);
        self.graph.mul_mat(weight, flat)
    }

    /// The layer's input, and how much each stream takes of its output (`build_hc_pre`).
    fn read_streams(&mut self, il: u32, name: &str, streams: Id) -> Result<(Id, Id), Error> {
        let Mixes { pre, post, .. } = self.mixes(il, name, streams)?;
        let post = self.graph.scale(post);
        Ok((self.reduce(streams, pre), post))
    }

    /// How much a layer takes of each stream and gives to each.
    pub(super) fn mixes(&mut self, il: u32, name: &str, streams: Id) -> Result<Mixes, Error> {
        let weight = self.weight(il, &format!("{name}_fn.weight"))?;
        let mixes = self.mix(weight, streams);
        let scale = self.weight(il, &format!("{name}_scale.weight"))?;
        let base = self.weight(il, &format!("{name}_base.weight"))?;
        let (n_streams, n_tokens, stride) = (self.ne(streams, 1), self.ne(streams, 2), self.nb(mixes, 1));
        let [pre, post] = [0, 1].map(|i: u64| {
            let part = self.graph.view(mixes, &[n_streams, n_tokens], &[stride], 4 * i * n_streams);
            let scale = self.graph.view(scale, &[1], &[], 4 * i);
            let base = self.graph.view(base, &[n_streams], &[], 4 * i * n_streams);
            let part = self.graph.mul(part, scale);
            let part = self.graph.add(part, base);
            let part = self.graph.unary(Unary::Sigmoid, part);
            self.graph.scale(part)
        });
        Ok(Mixes { rows: mixes, scale, base, pre, post })
    }

    /// The sum of the streams by weight (`hy_v4_hc_reduce`).
    fn reduce(&mut self, streams: Id, by: Id) -> Id {
        let streams = self.graph.cast(streams, f32());
        let t = *self.graph.tensor(streams);
        let stride = self.nb(by, 1);
        let weighed = |graph: &mut Graph, i: u64| {
            let stream = graph.view(streams, &[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1]);
            let weight = graph.view(by, &[1, t.ne[2]], &[stride], 4 * i);
            graph.mul(stream, weight)
        };
        let mut sum = weighed(&mut self.graph, 0);
        for i in 1..t.ne[1] {
            let part = weighed(&mut self.graph, i);
            sum = self.graph.add(sum, part);
        }
        self.graph.cast(sum, f32())
    }

    /// The streams after a layer's output (`build_hc_post`).
    fn write_streams(&mut self, x: Id, streams: Id, post: Id) -> Id {
        let x = self.graph.cast(x, f32());
        let post = self.graph.cast(post, f32());
        let streams = self.graph.cast(streams, f32());
        let t = *self.graph.tensor(streams);
        let stride = self.nb(post, 1);
        let written = |graph: &mut Graph, i: u64| {
            let stream = graph.view(streams, &[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1]);
            let weight = graph.view(post, &[1, t.ne[2]], &[stride], 4 * i);
            let taken = graph.mul(x, weight);
            let stream = graph.add(stream, taken);
            graph.reshape(stream, &[t.ne[0], 1, t.ne[2]])
        };
        let mut joined = written(&mut self.graph, 0);
        for i in 1..t.ne[1] {
            let stream = written(&mut self.graph, i);
            joined = self.graph.concat(joined, stream, 1);
        }
        self.graph.cast(joined, f32())
    }

    /// One row a token of its streams (`build_hc_head`).
    fn head(&mut self, streams: Id) -> Result<Id, Error> {
        let pre = self.head_weights(streams)?;
        Ok(self.reduce(streams, pre))
    }

    /// How much each stream counts at the end.
    pub(super) fn head_weights(&mut self, streams: Id) -> Result<Id, Error> {
        let weight = self.global("output_hc_fn.weight")?;
        let mixes = self.mix(weight, streams);
        let scale = self.global("output_hc_scale.weight")?;
        let base = self.global("output_hc_base.weight")?;
        let pre = self.graph.mul(mixes, scale);
        let pre = self.graph.add(pre, base);
        let pre = self.graph.unary(Unary::Sigmoid, pre);
        Ok(self.graph.scale(pre))
    }
}
