//! Decoders whose cache holds one latent row by token instead of keys and values.
//!
//! Source: `src/models/deepseek2.cpp`, `minicpm3.cpp`, `plm.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::ops::HEADS;
use super::super::tensor::Node;
use super::super::{Builder, Layer, Norm};
use super::plain::{NormW, PLAIN, Spec, feed_forward, stack};
use crate::gguf::ggml_type::f32;
use crate::memory::caches::CacheKind;

/// The traits that decoders with latents share.
pub(super) const SPEC: Spec = Spec { gating_stated: true, norm_w: NormW::Stated, ..PLAIN };

/// Where a layer's keys come from and go.
pub(super) enum Cached<'g> {
    /// One latent row by token.
    Latent(CacheInputs<'g>),
    Heads(AttnInputs<'g>),
}

impl<'g> Cached<'g> {
    /// The inputs of the cache that the model has.
    pub(super) fn of(b: &'g Builder<'g>) -> Self {
        if b.plan.caches.hparams.is_mla { Self::Latent(b.inp_k(CacheKind::Base)) } else { Self::Heads(b.inp_attn()) }
    }
}

/// The sizes of MLA's heads and latents, in elements.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) k_head: u64,
    pub(super) v_head: u64,
    /// The part of a head that is turned.
    pub(super) rope: u64,
    pub(super) nope: u64,
    pub(super) latent: u64,
    pub(super) n_head: u64,
}

/// deepseek2 and what is built like it.
pub(super) fn deepseek2<'g>(b: &'g Builder<'g>) {
    let rows = b.tokens();
    let scale = b.is_set("attention.temperature_scale").then(|| b.inp_attn_scale());
    let (positions, cached) = (b.inp_pos(), Cached::of(b));
    stack(b, &SPEC, rows, |l, x| {
        let sizes = l.mla_sizes();
        let q = l.mla_q(x).reshape(&[sizes.k_head, sizes.n_head, l.n_tokens]);
        let kv = l.mla_kv(x, sizes);
        let mut qkv = match cached {
            Cached::Latent(_) => l.mla_absorbed(q, kv, Some(positions), sizes),
            Cached::Heads(_) => l.mla_heads(q, kv, positions, sizes),
        };
        qkv.q = scale.map_or(qkv.q, |scale| qkv.q * scale);
        l.mm(
            "attn_output",
            match &cached {
                Cached::Latent(inputs) => l.attn_latent(*inputs, qkv, None),
                Cached::Heads(inputs) => l.attn(inputs, qkv, Extras::default()),
            },
        )
    });
}

impl<'g> Layer<'g> {
    /// The sizes of MLA heads: the keys' own lengths, or those of the decompressed heads.
    pub(super) fn mla_sizes(self) -> Sizes {
        let heads = if self.plan.caches.hparams.is_mla {
            (self.hparam("attention.key_length_mla"), self.hparam("attention.value_length_mla"))
        } else {
            (self.head_k, self.head_v)
        };
        self.mla_sizes_of(heads, "attention.kv_lora_rank")
    }

    /// The same of heads of stated lengths, and of the latent that a key states.
    pub(super) fn mla_sizes_of(self, (k_head, v_head): (u64, u64), latent: &str) -> Sizes {
        // Without the key whole heads are turned (`llama_model_base::load_hparams`).
        let rope = match self.hparams().value("rope.dimension_count") {
            None => self.head_k,
            Some(_) => self.hparam_or_0("rope.dimension_count"),
        };
        let nope = k_head.checked_sub(rope).unwrap_or_else(|| {
            self.fail(self.key_error("rope.dimension_count", Some(rope)));
            1
        });
        Sizes { k_head, v_head, rope, nope, latent: self.hparam(latent), n_head: self.n_head }
    }

    /// Queries by way of a low rank where the layer has one.
    pub(super) fn mla_q(self, x: Node<'g>) -> Node<'g> {
        if self.has("attn_q") { self.raw_mm("attn_q", x) } else { self.raw_mm("attn_q_b", self.low_q(x)) }
    }

    /// Queries of a low rank.
    pub(super) fn low_q(self, x: Node<'g>) -> Node<'g> {
        self.norm("attn_q_a_norm", self.raw_mm("attn_q_a", x))
    }

    /// The latent, normed, and the part of the key that is turned.
    pub(super) fn mla_kv(self, x: Node<'g>, sizes: Sizes) -> (Node<'g>, Node<'g>) {
        let both = self.raw_mm("attn_kv_a_mqa", x);
        let (row, n_tokens) = (4 * (sizes.latent + sizes.rope), self.n_tokens);
        let latent = both.view(&[sizes.latent, n_tokens], &[row], 0);
        let turned = both.view(&[sizes.rope, 1, n_tokens], &[row, row], 4 * sizes.latent);
        (self.norm("attn_kv_a_norm", latent), turned)
    }

    /// Queries and keys in the latent's space, from projected queries and the layer's input.
    pub(super) fn mla_qkv(self, q: Node<'g>, x: Node<'g>, positions: Option<Node<'g>>, sizes: Sizes) -> Qkv<'g> {
        let part = |width, at| q.split(width, sizes.n_head, sizes.k_head, at);
        let (q_nope, q_pe) = (part(sizes.nope, 0), part(sizes.rope, sizes.nope));
        self.mla_absorb((q_nope, q_pe), self.mla_kv(x, sizes), positions, sizes)
    }

    /// The same from queries by head.
    pub(super) fn mla_absorbed(
        self,
        q: Node<'g>,
        kv: (Node<'g>, Node<'g>),
        positions: Option<Node<'g>>,
        sizes: Sizes,
    ) -> Qkv<'g> {
        self.mla_absorb((q.cols(sizes.nope, 0), q.cols(sizes.rope, sizes.nope)), kv, positions, sizes)
    }

    /// One key head for all (absorbed MLA); turned only where there are positions.
    fn mla_absorb(
        self,
        (q_nope, q_pe): (Node<'g>, Node<'g>),
        (latent, k_pe): (Node<'g>, Node<'g>),
        positions: Option<Node<'g>>,
        sizes: Sizes,
    ) -> Qkv<'g> {
        let [q_pe, k_pe] = [q_pe, k_pe].map(|x| positions.map_or(x, |positions| x.rope(positions, None)));
        let absorbed = self.raw_mm("attn_k_b", q_nope.permute(HEADS)).permute(HEADS);
        let v = latent.reshape(&[sizes.latent, 1, self.n_tokens]);
        Qkv { q: absorbed.concat(q_pe, 0), k: v.concat(k_pe, 0), v }
    }

    /// Stores latents and attends to them, or to the `chosen` ones of them; values are the latents' first part (`build_attn`
    /// of `llm_graph_input_attn_k`).
    pub(super) fn attn_latent(self, inputs: CacheInputs<'g>, qkv: Qkv<'g>, chosen: Option<Node<'g>>) -> Node<'g> {
        self.draft.expand(&[qkv.q, qkv.v, qkv.k]);
        self.store_k(inputs.kind, self.il, qkv.k, inputs.k_idxs);
        let mask = chosen.map_or(inputs.mask, |chosen| self.mask_of(inputs.mask, chosen, f32()));
        let k = self.get_k(inputs.kind, self.il, self.head_k, self.n_kv);
        let t = k.tensor();
        let v = k.view(&[qkv.v.ne(0), t.ne[1], t.ne[2], t.ne[3]], &t.nb[1..], 0);
        self.mha(Qkv { q: qkv.q, k, v }, mask, Some(self.weight("attn_v_b")), Extras::default())
    }

    /// Queries, keys and values of every head, decompressed from the latent.
    fn mla_heads(
        self,
        q: Node<'g>,
        (latent, k_pe): (Node<'g>, Node<'g>),
        positions: Node<'g>,
        sizes: Sizes,
    ) -> Qkv<'g> {
        let factors = self.rope_factors();
        let (k_nope, v) = self.mla_decompressed(latent, sizes);
        let k_pe = k_pe.rope(positions, factors).repeat(&[sizes.rope, sizes.n_head, self.n_tokens]);
        Qkv { q: q.rope(positions, factors), k: k_nope.concat(k_pe, 0), v }
    }

    /// What is not turned of the keys, and the values.
    pub(super) fn mla_decompressed(self, latent: Node<'g>, sizes: Sizes) -> (Node<'g>, Node<'g>) {
        let both = self.raw_mm("attn_kv_b", latent);
        let part = |width, at| both.split(width, sizes.n_head, sizes.nope + sizes.v_head, at);
        (part(sizes.nope, 0), part(sizes.v_head, sizes.nope).cont())
    }
}

/// minicpm3: decompressed heads, everything scaled.
pub(super) fn minicpm3<'g>(b: &'g Builder<'g>) {
    let mut rows = b.tokens().scale();
    let (positions, inputs, out_ids) = (b.inp_pos(), b.inp_attn(), b.inp_out_ids());
    for l in b.layers() {
        let (x, sizes) = (l.norm("attn_norm", rows), l.mla_sizes());
        let q = l.mla_q(x).reshape(&[sizes.k_head, sizes.n_head, b.n_tokens]);
        let x = l.attn_out(&inputs, l.mla_heads(q, l.mla_kv(x, sizes), positions, sizes));
        let [x, residual] = l.only_outputs(out_ids, [x, rows]);
        let middle = x.scale() + residual;
        rows = feed_forward(l, &PLAIN, l.norm("ffn_norm", middle)).scale() + middle;
    }
    b.lm_head(b.output_norm(rows, Norm::Rms).mark_output().scale()).mark_output().expand();
}
