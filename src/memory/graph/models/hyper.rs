//! Layers joined by several residual streams (hyper-connections).
//!
//! Source: `src/models/hy-v4.cpp`, `deepseek4.cpp`, llama.cpp b11434.

use super::super::tensor::Node;
use super::super::{Builder, Layer};
use super::dsa;
use super::mla::SPEC;
use super::plain::{feed_forward, finish};
use crate::gguf::ggml_type::f32;

/// hy_v4: sparse attention, if it has an indexer, between hyper-connections.
pub(super) fn hy_v4<'g>(b: &'g Builder<'g>) {
    let (rows, inputs, out_ids) = (b.tokens(), dsa::Inputs::new(b), b.inp_out_ids());
    let (mut streams, mut chosen) = (b.streams(rows), None);
    for l in b.layers() {
        let (x, post) = read_streams(l, "hc_attn", streams);
        let x = dsa::attention(l, l.norm("attn_norm", x), &inputs, &mut chosen);
        streams = write_streams(x, streams, post);
        let (x, post) = read_streams(l, "hc_ffn", streams);
        streams = write_streams(feed_forward(l, &SPEC, l.norm("ffn_norm", x)), streams, post);
    }
    let streams = b.output_streams(streams, out_ids);
    finish(b, &SPEC, reduce(streams, b.head_weights(streams)), out_ids);
}

/// What the streams of a layer's input say, and what it is made from.
struct Mixes<'g> {
    rows: Node<'g>,
    scale: Node<'g>,
    base: Node<'g>,
    /// How much the layer takes of each stream.
    pre: Node<'g>,
    /// How much each stream takes of the layer.
    post: Node<'g>,
}

/// The layer's input, and how much each stream takes of its output (`build_hc_pre`).
fn read_streams<'g>(l: Layer<'g>, name: &str, streams: Node<'g>) -> (Node<'g>, Node<'g>) {
    let Mixes { pre, post, .. } = l.mixes(name, streams);
    (reduce(streams, pre), post.scale())
}

/// What the streams say about themselves: one row of `weight` times all of a token's streams, normed.
fn mix<'g>(weight: Node<'g>, streams: Node<'g>) -> Node<'g> {
    let ne = streams.shape();
    weight.mm(streams.reshape(&[ne[0] * ne[1], ne[2]]).rms())
}

/// One residual stream.
pub(super) fn stream(streams: Node<'_>, i: u64) -> Node<'_> {
    let t = streams.tensor();
    streams.view(&[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1])
}

/// `make` of each number below `n` joined by `join`.
pub(super) fn joined<'g>(
    n: u64,
    make: impl FnMut(u64) -> Node<'g>,
    join: impl FnMut(Node<'g>, Node<'g>) -> Node<'g>,
) -> Node<'g> {
    (0..n).map(make).reduce(join).expect("one at least")
}

/// The sum of the streams by weight, step by step.
pub(super) fn weigh_streams<'g>(streams: Node<'g>, by: Node<'g>) -> Node<'g> {
    let weight = |i| by.view(&[1, streams.ne(2)], &[by.nb(1)], 4 * i);
    joined(streams.ne(1), |i| stream(streams, i) * weight(i), |sum, part| sum + part)
}

/// The same in F32 (`hy_v4_hc_reduce`).
fn reduce<'g>(streams: Node<'g>, by: Node<'g>) -> Node<'g> {
    weigh_streams(streams.cast(f32()), by).cast(f32())
}

/// The streams after a layer's output (`build_hc_post`).
fn write_streams<'g>(x: Node<'g>, streams: Node<'g>, post: Node<'g>) -> Node<'g> {
    let [x, post, streams] = [x, post, streams].map(|node| node.cast(f32()));
    let [width, n_streams, n_tokens, _] = streams.shape();
    let written = |i| {
        let taken = x * post.view(&[1, n_tokens], &[post.nb(1)], 4 * i);
        (stream(streams, i) + taken).reshape(&[width, 1, n_tokens])
    };
    joined(n_streams, written, |streams, stream| streams.concat(stream, 1)).cast(f32())
}

impl<'g> Builder<'g> {
    /// As many streams of `rows` as the model has.
    pub(super) fn streams(&self, rows: Node<'g>) -> Node<'g> {
        let (n_embd, n_tokens) = (self.n_embd, self.n_tokens);
        rows.reshape(&[n_embd, 1, n_tokens]).repeat(&[n_embd, self.hparam("hyper_connection.count"), n_tokens])
    }

    /// The streams of the tokens that are put out.
    pub(super) fn output_streams(&self, streams: Node<'g>, out_ids: Node<'g>) -> Node<'g> {
        let ne = streams.shape();
        let flat = streams.reshape(&[ne[0] * ne[1], ne[2]]).get_rows(out_ids);
        flat.reshape(&[ne[0], ne[1], self.plan.batch.n_outputs])
    }

    /// How much each stream counts at the end (`build_hc_head`).
    pub(super) fn head_weights(&self, streams: Node<'g>) -> Node<'g> {
        let mixes = mix(self.global("output_hc_fn"), streams);
        (mixes * self.global("output_hc_scale") + self.global("output_hc_base")).sigmoid().scale()
    }
}

impl<'g> Layer<'g> {
    /// How much a layer takes of each stream and gives to each.
    fn mixes(self, name: &str, streams: Node<'g>) -> Mixes<'g> {
        let weight = |part: &str| self.weight(&format!("{name}_{part}"));
        let (scale, base) = (weight("scale"), weight("base"));
        let rows = mix(weight("fn"), streams);
        let n = streams.ne(1);
        let [pre, post] = [0, 1].map(|i| {
            let scaled = rows.cols(n, i * n) * scale.view(&[1], &[], 4 * i);
            (scaled + base.view(&[n], &[], 4 * i * n)).sigmoid().scale()
        });
        Mixes { rows, scale, base, pre, post }
    }

    /// The layer's input, how much each stream takes of its output, and how streams mix (`build_hc_pre`).
    pub(super) fn read_mixed(self, name: &str, streams: Node<'g>) -> [Node<'g>; 3] {
        let mixes = self.mixes(name, streams);
        let comb = if self.plan.fused.comb {
            self.probed(mixes.rows.hc_comb(mixes.scale, mixes.base))
        } else {
            self.combination(&mixes, streams.ne(1))
        };
        let x = if self.plan.fused.pre {
            self.probed(streams.hc_pre(mixes.pre))
        } else {
            weigh_streams(streams, mixes.pre)
        };
        [x, mixes.post, comb]
    }

    /// The streams after a layer's output (`build_hc_post`).
    pub(super) fn write_mixed(self, x: Node<'g>, streams: Node<'g>, post: Node<'g>, comb: Node<'g>) -> Node<'g> {
        if self.plan.fused.post {
            return self.probed(x.hc_post(streams, post, Some(comb)));
        }
        let (p, c) = (post.strides(), comb.strides());
        let [width, n_streams, n_tokens, _] = streams.shape();
        let written = |to| {
            let mut sum = x * post.view(&[1, n_tokens], &[p[1]], to * p[0]);
            for from in 0..n_streams {
                if self.draft.is_faulty() {
                    break;
                }
                sum = sum + stream(streams, from) * comb.view(&[1, n_tokens], &[c[2]], to * c[0] + from * c[1]);
            }
            sum.reshape(&[width, 1, n_tokens])
        };
        joined(n_streams, written, |streams, stream| streams.concat(stream, 1))
    }

    /// An operation that is looked for on the layer's device before it is used (`resolve_fused_ops`).
    pub(super) fn probed(self, node: Node<'g>) -> Node<'g> {
        self.draft.0.borrow_mut().layer_targets.insert(node.id, self.target());
        node
    }

    /// How streams mix, step by step (`build_hc_sinkhorn`).
    fn combination(self, mixes: &Mixes<'g>, n: u64) -> Node<'g> {
        let part = mixes.rows.cols(n * n, 2 * n) * mixes.scale.view(&[1], &[], 8);
        let part = part + mixes.base.view(&[n * n], &[], 8 * n);
        let eps = self.draft.filled(f32(), &[1]);
        let mut comb = part.reshape(&[n, n, mixes.rows.ne(1)]).soft_max() + eps;
        for i in 0..self.hparam("hyper_connection.sinkhorn_iterations") {
            if i > 0 {
                comb = comb / (comb.sum_rows() + eps);
            }
            let columns = comb.permute([1, 0, 2, 3]).cont().sum_rows() + eps;
            comb = comb / columns.permute([1, 0, 2, 3]);
        }
        comb
    }
}
