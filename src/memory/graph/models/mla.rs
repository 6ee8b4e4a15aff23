//! Decoders whose cache holds one latent row by token instead of keys and values.
//!
//! Source: `src/models/deepseek2.cpp`, `minicpm3.cpp`, `plm.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::ffn::Gating;
use super::super::inputs::Embeddings;
use super::super::tensor::Id;
use super::super::{Builder, Error, Norm};
use super::plain::{NormW, PLAIN, Spec, after_attention, feed_forward, finish};
use crate::memory::caches::CacheKind;

/// deepseek2's traits beyond attention.
const SPEC: Spec = Spec { gating: Gating::Softmax, gating_stated: true, norm_w: NormW::Stated, ..PLAIN };

/// Where a layer's keys come from and go.
pub(super) enum Cached {
    /// One latent row by token.
    Latent(CacheInputs),
    /// Keys and values, decompressed.
    Heads(AttnInputs),
}

impl Cached {
    /// The inputs of the cache that the model has.
    pub(super) fn of(b: &mut Builder<'_>) -> Result<Self, Error> {
        Ok(if b.plan.caches.hparams.is_mla {
            Self::Latent(b.inp_k(CacheKind::Base)?)
        } else {
            Self::Heads(b.inp_attn()?)
        })
    }
}

/// The sizes of MLA's heads and latents, in elements.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) k_head: u64,
    pub(super) v_head: u64,
    /// The part of a head that is turned.
    pub(super) rope: u64,
    /// The part that is not.
    pub(super) nope: u64,
    pub(super) latent: u64,
    pub(super) n_head: u64,
}

/// deepseek2 and what is built like it.
pub(super) fn deepseek2(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let scale = (b.f64_or_0("attention.temperature_scale").abs() > 0.0).then(|| b.inp_attn_scale());
    let positions = b.inp_pos();
    let cached = Cached::of(b)?;
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let x = attention(b, il, x, (&cached, positions, scale))?;
        rows = after_attention(b, &SPEC, il, (x, rows), out_ids)?;
    }
    finish(b, &SPEC, rows, out_ids)
}

impl Builder<'_> {
    /// The sizes of a layer's MLA heads: the keys' own lengths, or those of the decompressed heads.
    pub(super) fn mla_sizes(&self, il: u32) -> Result<Sizes, Error> {
        let layer = self.layer(il)?;
        let (k_head, v_head) = if self.plan.caches.hparams.is_mla {
            (self.hparam("attention.key_length_mla")?, self.hparam("attention.value_length_mla")?)
        } else {
            (u64::from(layer.n_embd_head_k), u64::from(layer.n_embd_head_v))
        };
        self.mla_sizes_of(il, (k_head, v_head), "attention.kv_lora_rank")
    }

    /// The same of heads of stated lengths, and of the latent that a key states.
    pub(super) fn mla_sizes_of(&self, il: u32, (k_head, v_head): (u64, u64), latent: &str) -> Result<Sizes, Error> {
        let layer = self.layer(il)?;
        // Without the key whole heads are turned (`llama_model_base::load_hparams`).
        let rope = match self.hparams().value("rope.dimension_count") {
            None => u64::from(layer.n_embd_head_k),
            Some(_) => self.hparam_or_0("rope.dimension_count")?,
        };
        let nope = k_head.checked_sub(rope).ok_or_else(|| self.key_error("rope.dimension_count", Some(rope)))?;
        Ok(Sizes { k_head, v_head, rope, nope, latent: self.hparam(latent)?, n_head: u64::from(layer.n_head) })
    }

    /// Queries by way of a low rank where the layer has one.
    pub(super) fn mla_q(&mut self, il: u32, x: Id) -> Result<Id, Error> {
        if self.weights.has(il, "attn_q.weight") {
            return self.raw_mm(il, "attn_q", x);
        }
        let low = self.raw_mm(il, "attn_q_a", x)?;
        let low = self.norm(il, "attn_q_a_norm", low, Norm::Rms)?;
        self.raw_mm(il, "attn_q_b", low)
    }

    /// The latent, normed, and the part of the key that is turned.
    pub(super) fn mla_kv(&mut self, il: u32, x: Id, sizes: Sizes) -> Result<(Id, Id), Error> {
        let both = self.raw_mm(il, "attn_kv_a_mqa", x)?;
        let (row, n_tokens) = (4 * (sizes.latent + sizes.rope), self.n_tokens);
        let latent = self.graph.view(both, &[sizes.latent, n_tokens], &[row], 0);
        let turned = self.graph.view(both, &[sizes.rope, 1, n_tokens], &[row, row], 4 * sizes.latent);
        Ok((self.norm(il, "attn_kv_a_norm", latent, Norm::Rms)?, turned))
    }

    /// Queries and keys in the latent's space: one key head for all (absorbed MLA).
    pub(super) fn mla_absorbed(
        &mut self,
        il: u32,
        q: Id,
        kv: (Id, Id),
        positions: Id,
        sizes: Sizes,
    ) -> Result<Qkv, Error> {
        let t = *self.graph.tensor(q);
        let (n_tokens, strides) = (self.n_tokens, [t.nb[1], t.nb[2]]);
        let q_nope = self.graph.view(q, &[sizes.nope, sizes.n_head, n_tokens], &strides, 0);
        let q_pe = self.graph.view(q, &[sizes.rope, sizes.n_head, n_tokens], &strides, 4 * sizes.nope);
        self.mla_absorb(il, (q_nope, q_pe), kv, Some(positions), sizes)
    }

    /// The same of parted queries; turned only where there are positions.
    pub(super) fn mla_absorb(
        &mut self,
        il: u32,
        (q_nope, mut q_pe): (Id, Id),
        (latent, mut k_pe): (Id, Id),
        positions: Option<Id>,
        sizes: Sizes,
    ) -> Result<Qkv, Error> {
        if let Some(positions) = positions {
            q_pe = self.graph.rope(q_pe, positions, None);
            k_pe = self.graph.rope(k_pe, positions, None);
        }
        let q_nope = self.graph.permute(q_nope, [0, 2, 1, 3]);
        let absorbed = self.raw_mm(il, "attn_k_b", q_nope)?;
        let absorbed = self.graph.permute(absorbed, [0, 2, 1, 3]);
        let q = self.graph.concat(absorbed, q_pe, 0);
        let v = self.graph.reshape(latent, &[sizes.latent, 1, self.n_tokens]);
        let k = self.graph.concat(v, k_pe, 0);
        Ok(Qkv { q, k, v })
    }

    /// Stores latents and attends to them; values are the latents' first part (`build_attn` of `llm_graph_input_attn_k`).
    pub(super) fn attn_latent(&mut self, il: u32, inputs: CacheInputs, qkv: Qkv) -> Result<Id, Error> {
        let v_mla = self.weight(il, "attn_v_b.weight")?;
        let sinks = self.maybe_weight(il, "attn_sinks.weight");
        self.graph.expand_all(&[qkv.q, qkv.v, qkv.k]);
        let stored = self.cpy_k(inputs.kind, il, qkv.k, inputs.k_idxs)?;
        self.graph.expand(stored);
        let layer = self.layer(il)?;
        let k = self.get_k(inputs.kind, il, u64::from(layer.n_embd_head_k), u64::from(layer.n_head_kv))?;
        let t = *self.graph.tensor(k);
        let v_width = self.ne(qkv.v, 0);
        let v = self.graph.view(k, &[v_width, t.ne[1], t.ne[2], t.ne[3]], &t.nb[1..], 0);
        Ok(self.mha(il, qkv.q, k, v, inputs.mask, Extras { sinks, v_mla: Some(v_mla), ..Extras::default() }))
    }

    /// Queries, keys and values of every head, decompressed from the latent.
    fn mla_heads(
        &mut self,
        il: u32,
        q: Id,
        (latent, k_pe): (Id, Id),
        (positions, factors): (Id, Option<Id>),
        sizes: Sizes,
    ) -> Result<Qkv, Error> {
        let n_tokens = self.n_tokens;
        let both = self.raw_mm(il, "attn_kv_b", latent)?;
        let (n_head, nope) = (sizes.n_head, sizes.nope);
        let strides = [4 * (nope + sizes.v_head), 4 * (nope + sizes.v_head) * n_head];
        let k_nope = self.graph.view(both, &[nope, n_head, n_tokens], &strides, 0);
        let v = self.graph.view(both, &[sizes.v_head, n_head, n_tokens], &strides, 4 * nope);
        let v = self.graph.cont(v);
        let q = self.graph.rope(q, positions, factors);
        let k_pe = self.graph.rope(k_pe, positions, factors);
        let k_pe = self.graph.repeat(k_pe, &[sizes.rope, n_head, n_tokens]);
        let k = self.graph.concat(k_nope, k_pe, 0);
        Ok(Qkv { q, k, v })
    }
}

fn attention(
    b: &mut Builder<'_>,
    il: u32,
    x: Id,
    (cached, positions, scale): (&Cached, Id, Option<Id>),
) -> Result<Id, Error> {
    let sizes = b.mla_sizes(il)?;
    let q = b.mla_q(il, x)?;
    let q = b.graph.reshape(q, &[sizes.k_head, sizes.n_head, b.n_tokens]);
    let kv = b.mla_kv(il, x, sizes)?;
    let scaled = |b: &mut Builder<'_>, mut qkv: Qkv| {
        if let Some(scale) = scale {
            qkv.q = b.graph.mul(qkv.q, scale);
        }
        qkv
    };
    let rows = match cached {
        Cached::Latent(inputs) => {
            let qkv = b.mla_absorbed(il, q, kv, positions, sizes)?;
            let qkv = scaled(b, qkv);
            b.attn_latent(il, *inputs, qkv)?
        }
        Cached::Heads(inputs) => {
            let qkv = b.mla_heads(il, q, kv, (positions, None), sizes)?;
            let qkv = scaled(b, qkv);
            b.attn(il, inputs, qkv, Extras::default())?
        }
    };
    b.mm(il, "attn_output", rows)
}

/// minicpm3: decompressed heads, everything scaled.
pub(super) fn minicpm3(b: &mut Builder<'_>) -> Result<(), Error> {
    let rows = b.inp_embd(Embeddings::default())?;
    let mut rows = b.graph.scale(rows);
    let positions = b.inp_pos();
    let inputs = b.inp_attn()?;
    let out_ids = b.inp_out_ids();
    for il in 0..b.n_layer {
        let mut residual = rows;
        let factors = b.rope_factors(il)?;
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let sizes = b.mla_sizes(il)?;
        let q = b.mla_q(il, x)?;
        let q = b.graph.reshape(q, &[sizes.k_head, sizes.n_head, b.n_tokens]);
        let kv = b.mla_kv(il, x, sizes)?;
        let qkv = b.mla_heads(il, q, kv, (positions, factors), sizes)?;
        let mut x = b.attn_out(il, &inputs, qkv, Extras::default())?;
        b.only_outputs(il, out_ids, &mut [&mut x, &mut residual]);
        let x = b.graph.scale(x);
        let middle = b.graph.add(x, residual);
        let x = b.norm(il, "ffn_norm", middle, Norm::Rms)?;
        let x = feed_forward(b, &PLAIN, il, x)?;
        let x = b.graph.scale(x);
        rows = b.graph.add(x, middle);
    }
    let rows = b.output_norm(rows, Norm::Rms)?;
    b.mark_output(rows);
    let rows = b.graph.scale(rows);
    b.logits(rows)
}
