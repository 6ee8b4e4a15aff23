//! Sparse attention over MLA latents: an indexer scores the cache, attention sees the best cells only.
//!
//! Source: `src/models/deepseek32.cpp`, `glm-dsa.cpp`, `dots3note.cpp`, `src/llama-graph.cpp` `build_attn` of
//! `llm_graph_input_attn_k_dsa`, llama.cpp b11434.

use super::super::attention::{Extras, Qkv};
use super::super::cache::{CacheInputs, rot_size};
use super::super::inputs::Embeddings;
use super::super::tensor::{Id, Op, Unary};
use super::super::{Builder, Error, Norm};
use super::mla::Sizes;
use super::plain::{NormW, PLAIN, Spec, after_attention, finish};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::f32;
use crate::memory::caches::CacheKind;

/// The traits shared with plain decoders.
const SPEC: Spec = Spec { gating_stated: true, norm_w: NormW::Stated, ..PLAIN };

/// What attention and its indexer need from outside.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    latent: CacheInputs,
    indexer: Option<CacheInputs>,
    /// Where some layers see a window only, without an indexer.
    windows: Option<CacheInputs>,
    positions: Id,
}

impl Inputs {
    /// After the embeddings, before the rows to put out.
    pub(super) fn new(b: &mut Builder<'_>) -> Result<Self, Error> {
        let positions = b.inp_pos();
        let latent = b.inp_k(CacheKind::Base)?;
        let has_indexer = b.plan.caches.hparams.indexer_top_k > 0;
        let indexer = if has_indexer { Some(b.inp_indexer()?) } else { None };
        let has_windows = b.plan.model.architecture == "dots3note";
        let windows = if has_windows { Some(b.inp_k(CacheKind::Swa)?) } else { None };
        Ok(Self { latent, indexer, windows, positions })
    }
}

/// Builds the graph; layers without an indexer of their own use the choice of the one before.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let mut rows = b.inp_embd(Embeddings::default())?;
    let inputs = Inputs::new(b)?;
    let out_ids = b.inp_out_ids();
    let mut chosen = None;
    for il in 0..b.n_layer {
        let x = b.norm(il, "attn_norm", rows, Norm::Rms)?;
        let x = attention(b, il, x, &inputs, &mut chosen)?;
        rows = after_attention(b, &SPEC, il, (x, rows), out_ids)?;
    }
    finish(b, &SPEC, rows, out_ids)
}

/// A layer's attention; layers without an indexer of their own use what is `chosen` already.
pub(super) fn attention(
    b: &mut Builder<'_>,
    il: u32,
    x: Id,
    inputs: &Inputs,
    chosen: &mut Option<Id>,
) -> Result<Id, Error> {
    if let Some(windows) = inputs.windows {
        return gated_attention(b, il, x, inputs, windows);
    }
    let sizes = b.mla_sizes(il)?;
    let low = b.raw_mm(il, "attn_q_a", x)?;
    let low = b.norm(il, "attn_q_a_norm", low, Norm::Rms)?;
    if b.layer(il)?.is_indexer_full || b.plan.model.architecture == "deepseek32" {
        *chosen = match inputs.indexer {
            Some(indexer) => Some(b.index(il, low, x, indexer, inputs.positions)?),
            None => None,
        };
    }
    let q = b.raw_mm(il, "attn_q_b", low)?;
    let qkv = b.mla_qkv(il, q, x, inputs.positions, sizes)?;
    let mut rows = match chosen {
        Some(chosen) => b.attn_chosen(il, inputs.latent, qkv, *chosen)?,
        None => b.attn_latent(il, inputs.latent, qkv)?,
    };
    if b.plan.model.architecture == "hy_v4" {
        let gate = b.raw_mm(il, "attn_gate", x)?;
        let gate = b.graph.unary(Unary::Sigmoid, gate);
        rows = b.graph.mul(rows, gate);
    }
    b.mm(il, "attn_output", rows)
}

/// dots3note: layers with windows have heads of other sizes, and a gate by head multiplies what heads found.
fn gated_attention(b: &mut Builder<'_>, il: u32, x: Id, inputs: &Inputs, windows: CacheInputs) -> Result<Id, Error> {
    let is_swa = b.layer(il)?.is_swa;
    let sizes = if is_swa {
        let heads = (b.hparam("attention.key_length_mla_swa")?, b.hparam("attention.value_length_mla_swa")?);
        b.mla_sizes_of(il, heads, "attention.kv_lora_rank_swa")?
    } else {
        b.mla_sizes(il)?
    };
    let low = b.raw_mm(il, "attn_q_a", x)?;
    let low = b.norm(il, "attn_q_a_norm", low, Norm::Rms)?;
    let chosen = match inputs.indexer {
        Some(indexer) if !is_swa => Some(b.index(il, low, x, indexer, inputs.positions)?),
        _ => None,
    };
    let q = b.raw_mm(il, "attn_q_b", low)?;
    let (latent, turned) = b.mla_kv(il, x, sizes)?;
    let turned = b.norm(il, "attn_k_norm", turned, Norm::Rms)?;
    let q = b.graph.reshape(q, &[sizes.k_head, sizes.n_head, b.n_tokens]);
    let qkv = b.mla_absorbed(il, q, (latent, turned), inputs.positions, sizes)?;
    let rows = match chosen {
        Some(chosen) => b.attn_chosen(il, inputs.latent, qkv, chosen)?,
        None => b.attn_latent(il, windows, qkv)?,
    };
    let gate = b.raw_mm(il, "attn_gate", x)?;
    let gate = b.graph.unary(Unary::Sigmoid, gate);
    let rows = b.graph.reshape(rows, &[sizes.v_head, sizes.n_head, b.n_tokens]);
    let gate = b.graph.reshape(gate, &[1, sizes.n_head, b.n_tokens]);
    let rows = b.graph.mul(rows, gate);
    let rows = b.graph.reshape(rows, &[sizes.v_head * sizes.n_head, b.n_tokens]);
    b.mm(il, "attn_output", rows)
}

impl Builder<'_> {
    /// `attention.indexer.key_length`, which an indexer has to have.
    pub(super) fn indexer_head(&self) -> Result<u64, Error> {
        match self.plan.caches.hparams.indexer_head_size {
            0 => Err(self.key_error("attention.indexer.key_length", Some(0))),
            head => Ok(u64::from(head)),
        }
    }

    /// Where an indexer's keys go, and its rotation, which it always has when its keys are as long as the model's.
    fn inp_indexer(&mut self) -> Result<CacheInputs, Error> {
        let kind = CacheKind::Indexer;
        let k_idxs = self.inp_k_idxs();
        let mask = self.inp_mask(kind, true)?;
        let n = rot_size(self.indexer_head()?);
        let k_rot = Some(self.graph.input(f32(), &[n, n]));
        Ok(CacheInputs { kind, k_idxs, v_idxs: None, mask, k_rot, v_rot: None })
    }

    /// The cells that a token should see.
    fn index(&mut self, il: u32, low: Id, x: Id, indexer: CacheInputs, positions: Id) -> Result<Id, Error> {
        let n_tokens = self.n_tokens;
        let hparams = &self.plan.caches.hparams;
        let (head, top_k) = (u64::from(hparams.indexer_head_size), u64::from(hparams.indexer_top_k));
        let n_head = self.hparam("attention.indexer.head_count")?;
        let q = self.raw_mm(il, "indexer.attn_q_b", low)?;
        let q = self.graph.reshape(q, &[head, n_head, n_tokens]);
        let mut q = self.graph.rope(q, positions, None);
        let k = self.raw_mm(il, "indexer.attn_k", x)?;
        let k = self.norm(il, "indexer.k_norm", k, Norm::Layer)?;
        let k = self.graph.reshape(k, &[head, 1, n_tokens]);
        let mut k = self.graph.rope(k, positions, None);
        if let Some(rot) = indexer.k_rot.filter(|_| self.plan.model.architecture != "hy_v4") {
            q = self.graph.mul_mat(rot, q);
            k = self.graph.mul_mat(rot, k);
        }
        let stored = self.cpy_k(CacheKind::Indexer, il, k, indexer.k_idxs)?;
        self.graph.expand(stored);
        let weights = self.raw_mm(il, "indexer.proj", x)?;
        let k = self.get_k(CacheKind::Indexer, il, head, 1)?;
        let n_stream = self.ne(k, 3);
        let t = *self.graph.tensor(q);
        let q = self.graph.view(
            q,
            &[t.ne[0], t.ne[1], t.ne[2] / n_stream, n_stream],
            &[t.nb[1], t.nb[2], t.nb[3] / n_stream],
            0,
        );
        let t = *self.graph.tensor(weights);
        let weights = self.graph.view(
            weights,
            &[t.ne[0], t.ne[1] / n_stream, t.ne[2], n_stream],
            &[t.nb[1], t.nb[2] / n_stream, t.nb[3] / n_stream],
            0,
        );
        let weights = self.graph.scale(weights);
        let scores = self.graph.lightning_indexer(q, k, weights, indexer.mask);
        let n_kv = self.ne(k, 2);
        let best = self.graph.top_k(scores, top_k.min(n_kv));
        Ok(self.graph.cont(best))
    }

    /// Queries and keys in the latent's space, from projected queries and the layer's input.
    pub(super) fn mla_qkv(&mut self, il: u32, q: Id, x: Id, positions: Id, sizes: Sizes) -> Result<Qkv, Error> {
        let row = 4 * sizes.k_head;
        let strides = [row, row * sizes.n_head];
        let n_tokens = self.n_tokens;
        let q_nope = self.graph.view(q, &[sizes.nope, sizes.n_head, n_tokens], &strides, 0);
        let q_pe = self.graph.view(q, &[sizes.rope, sizes.n_head, n_tokens], &strides, 4 * sizes.nope);
        let kv = self.mla_kv(il, x, sizes)?;
        self.mla_absorb(il, (q_nope, q_pe), kv, Some(positions), sizes)
    }

    /// Attention to the chosen cells: all others are masked out.
    fn attn_chosen(&mut self, il: u32, inputs: CacheInputs, qkv: Qkv, chosen: Id) -> Result<Id, Error> {
        self.graph.expand_all(&[qkv.q, qkv.v, qkv.k]);
        let stored = self.cpy_k(inputs.kind, il, qkv.k, inputs.k_idxs)?;
        self.graph.expand(stored);
        let mask = self.mask_of(inputs.mask, chosen, f32());
        let layer = self.layer(il)?;
        let k = self.get_k(inputs.kind, il, u64::from(layer.n_embd_head_k), u64::from(layer.n_head_kv))?;
        let t = *self.graph.tensor(k);
        let v_width = self.ne(qkv.v, 0);
        let v = self.graph.view(k, &[v_width, t.ne[1], t.ne[2], t.ne[3]], &t.nb[1..], 0);
        let v_mla = self.weight(il, "attn_v_b.weight")?;
        let sinks = self.maybe_weight(il, "attn_sinks.weight");
        Ok(self.mha(il, qkv.q, k, v, mask, Extras { sinks, v_mla: Some(v_mla), ..Extras::default() }))
    }

    /// A mask with all but the chosen cells masked out; `zeros` is the type of what opens them.
    pub(super) fn mask_of(&mut self, mask: Id, chosen: Id, zeros: GgmlType) -> Id {
        let all = self.graph.like(Op::Fill, &[mask]);
        let t = *self.graph.tensor(all);
        let all = self.graph.view(all, &[1, t.ne[0], t.ne[1], t.ne[3]], &[t.nb[0], t.nb[1], t.nb[2]], 0);
        let c = *self.graph.tensor(chosen);
        let strides = [c.nb[1], c.nb[2], c.ne[3] * c.nb[3]];
        let cells = self.graph.view(chosen, &[c.ne[0], c.ne[1], c.ne[3], 1], &strides, 0);
        let c = *self.graph.tensor(cells);
        let zeros = self.graph.new_tensor(zeros, &[1, c.ne[0], c.ne[1], c.ne[2]]);
        let zeros = self.graph.like(Op::Fill, &[zeros]);
        let open = self.graph.set_rows(all, zeros, cells);
        let o = *self.graph.tensor(open);
        let open = self.graph.view(open, &[o.ne[1], o.ne[2], 1, o.ne[3]], &[o.nb[2], o.nb[3], o.nb[3]], 0);
        self.graph.add(open, mask)
    }
}
