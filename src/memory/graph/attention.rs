//! Attention over a cache: projections, storing, scores or the one-operation kernel, output.
//!
//! Source: `src/llama-graph.cpp` `build_qkv`, `build_attn*`, `build_attn_mha`, llama.cpp b11434.

use super::cache::CacheInputs;
use super::tensor::{Id, Op, Unary};
use super::{Builder, Error, Norm};
use crate::arch::RopeFactors;
use crate::gguf::ggml_type::{f16, f32};
use crate::memory::caches::{CacheKind, MemoryClass};

/// Queries, keys and values of one layer, `[head, heads, tokens]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Qkv {
    pub(super) q: Id,
    pub(super) k: Id,
    pub(super) v: Id,
}

/// What attention has beyond queries, keys and values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extras {
    /// Added to the scores: no one-operation kernel then.
    pub(super) kq_b: Option<Id>,
    /// One score more by head.
    pub(super) sinks: Option<Id>,
    /// Turns latents into values (MLA).
    pub(super) v_mla: Option<Id>,
    /// Scores are squashed before the softmax (`attn_soft_cap`).
    pub(super) soft_cap: bool,
    /// Scores fall with distance (`f_max_alibi_bias`).
    pub(super) alibi: bool,
}

/// The caches that a model's attention layers use.
#[derive(Debug, Clone, Copy)]
pub(super) enum AttnInputs {
    /// One cache, and one of a window for the layers that have it.
    Cached(CacheInputs, Option<CacheInputs>),
    /// None: the batch attends to itself, by this mask.
    Batch(Id),
}

impl AttnInputs {
    /// The cache for a layer with or without a window.
    pub(super) fn cached(&self, is_swa: bool) -> Result<CacheInputs, Error> {
        match self {
            Self::Cached(_, Some(swa)) if is_swa => Ok(*swa),
            Self::Cached(base, _) => Ok(*base),
            Self::Batch(_) => Err(Error::Cache { kind: CacheKind::Base, il: None }),
        }
    }
}

impl Builder<'_> {
    /// The inputs of one cache, or of a full one and a window's (`build_attn_inp_kv`, `build_attn_inp_kv_iswa`).
    pub(super) fn inp_attn(&mut self) -> Result<AttnInputs, Error> {
        if self.plan.caches.class == MemoryClass::None {
            let ty = if self.plan.flash_attn { f16() } else { f32() };
            return Ok(AttnInputs::Batch(self.graph.input(ty, &[self.n_tokens, self.n_tokens])));
        }
        if !matches!(self.plan.caches.class, MemoryClass::Iswa | MemoryClass::HybridIswa) {
            return Ok(AttnInputs::Cached(self.inp_kv(CacheKind::Base)?, None));
        }
        let mut base = self.inp_kv_unrotated(CacheKind::Base)?;
        let mut swa = self.inp_kv_unrotated(CacheKind::Swa)?;
        if self.plan.caches.class == MemoryClass::Iswa {
            (base.k_rot, base.v_rot) = self.inp_rot(CacheKind::Base)?;
            (swa.k_rot, swa.v_rot) = self.inp_rot(CacheKind::Swa)?;
        }
        Ok(AttnInputs::Cached(base, Some(swa)))
    }

    fn inp_kv_unrotated(&mut self, kind: CacheKind) -> Result<CacheInputs, Error> {
        let k_idxs = self.inp_k_idxs();
        let v_idxs = Some(self.inp_v_idxs());
        let mask = self.inp_mask(kind, self.plan.flash_attn)?;
        Ok(CacheInputs { kind, k_idxs, v_idxs, mask, k_rot: None, v_rot: None })
    }

    /// Queries, keys and values of equal heads (`build_qkv`).
    pub(super) fn qkv(&mut self, il: u32, x: Id) -> Result<Qkv, Error> {
        let layer = self.layer(il)?;
        let (k, v) = (u64::from(layer.n_embd_head_k), u64::from(layer.n_embd_head_v));
        let (n_head, n_head_kv) = (u64::from(layer.n_head), u64::from(layer.n_head_kv));
        self.qkv_of(il, x, (k, n_head), (k, n_head_kv), (v, n_head_kv))
    }

    /// The same with stated `(elements of a head, heads)`.
    pub(super) fn qkv_of(&mut self, il: u32, x: Id, q: (u64, u64), k: (u64, u64), v: (u64, u64)) -> Result<Qkv, Error> {
        let n_tokens = self.n_tokens;
        let clamps = self.arch().clamps_qkv && self.f64_or_0("attention.clamp_kqv") > 0.0;
        let is_raw = self.arch().raw_qkv;
        if self.weights.has(il, "attn_qkv.weight") {
            let mut qkv = if is_raw { self.raw_mm(il, "attn_qkv", x)? } else { self.linear(il, "attn_qkv", x)? };
            if clamps {
                qkv = self.graph.clamp(qkv);
            }
            let stride = self.nb(qkv, 1);
            let mut part = |(head, heads): (u64, u64), offset: u64| {
                self.graph.view(qkv, &[head, heads, n_tokens], &[4 * head, stride], 4 * offset)
            };
            let (q_width, k_width) = (q.0 * q.1, k.0 * k.1);
            return Ok(Qkv { q: part(q, 0), k: part(k, q_width), v: part(v, q_width + k_width) });
        }
        let mut project = |name: &str| {
            let rows = if is_raw { self.raw_mm(il, name, x)? } else { self.linear(il, name, x)? };
            Ok(if clamps { self.graph.clamp(rows) } else { rows })
        };
        let (q_rows, k_rows, v_rows) = (project("attn_q")?, project("attn_k")?, project("attn_v")?);
        let mut by_head = |rows: Id, (head, heads): (u64, u64)| self.graph.reshape(rows, &[head, heads, n_tokens]);
        Ok(Qkv { q: by_head(q_rows, q), k: by_head(k_rows, k), v: by_head(v_rows, v) })
    }

    /// Turns queries and keys by their positions.
    pub(super) fn rope_qk(&mut self, qkv: &mut Qkv, positions: Id, factors: Option<Id>) {
        qkv.q = self.graph.rope(qkv.q, positions, factors);
        qkv.k = self.graph.rope(qkv.k, positions, factors);
    }

    /// Norms of the queries and keys, each if the layer has its weight.
    pub(super) fn norm_qk(&mut self, il: u32, qkv: &mut Qkv, kind: Norm) -> Result<(), Error> {
        if self.weights.has(il, "attn_q_norm.weight") {
            qkv.q = self.norm(il, "attn_q_norm", qkv.q, kind)?;
        }
        if self.weights.has(il, "attn_k_norm.weight") {
            qkv.k = self.norm(il, "attn_k_norm", qkv.k, kind)?;
        }
        Ok(())
    }

    /// The model's rope factors that lie with a layer (`get_rope_factors`).
    pub(super) fn rope_factors(&mut self, il: u32) -> Result<Option<Id>, Error> {
        match self.arch().rope_factors {
            RopeFactors::No => return Ok(None),
            RopeFactors::FullAttention if self.layer(il)?.is_swa => return Ok(None),
            RopeFactors::All | RopeFactors::FullAttention => {}
        }
        let long = self.plan.numbers.n_ctx_seq > self.original_context();
        let scaled = if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        for name in ["rope_freqs.weight", scaled] {
            if let Some(id) = self.weights.global_for_layer(&mut self.graph, il, name) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn original_context(&self) -> u32 {
        let hparams = self.hparams();
        match hparams.u32_or_0("rope.scaling.original_context_length") {
            0 => hparams.context_length,
            n => n,
        }
    }

    /// Stores keys and values and attends to what the layer's cache holds; without the output projection.
    pub(super) fn attn(&mut self, il: u32, inputs: &AttnInputs, qkv: Qkv, extras: Extras) -> Result<Id, Error> {
        if let AttnInputs::Batch(mask) = inputs {
            self.graph.expand_all(&[qkv.q, qkv.k, qkv.v]);
            return Ok(self.mha(il, qkv.q, qkv.k, qkv.v, *mask, extras));
        }
        let cached = inputs.cached(self.layer(il)?.is_swa)?;
        self.attn_with(il, cached, qkv.q, Some((qkv.k, qkv.v)), il, extras)
    }

    /// The same with the cache of layer `owner`; nothing is stored without `kv` (KV sharing).
    pub(super) fn attn_with(
        &mut self,
        il: u32,
        inputs: CacheInputs,
        mut q: Id,
        kv: Option<(Id, Id)>,
        owner: u32,
        extras: Extras,
    ) -> Result<Id, Error> {
        let layer = self.layer(il)?;
        let windowed = matches!(self.plan.caches.class, MemoryClass::Iswa | MemoryClass::HybridIswa);
        if let Some(rot) = inputs.k_rot {
            q = self.hadamard(q, rot);
        }
        let kv = kv.map(|(mut k, mut v)| {
            if let Some(rot) = inputs.k_rot {
                k = self.hadamard(k, rot);
            }
            if let Some(rot) = inputs.v_rot {
                v = self.hadamard(v, rot);
            }
            (k, v)
        });
        self.graph.expand(q);
        if let Some((k, v)) = kv {
            let order = if windowed { [k, v] } else { [v, k] };
            self.graph.expand_all(&order);
            let stored = self.cpy_k(inputs.kind, owner, k, inputs.k_idxs)?;
            self.graph.expand(stored);
            let stored = self.cpy_v(inputs.kind, owner, v, inputs.v_idxs()?)?;
            self.graph.expand(stored);
        }
        let (n_kv, head_k, head_v) =
            (u64::from(layer.n_head_kv), u64::from(layer.n_embd_head_k), u64::from(layer.n_embd_head_v));
        let k = self.get_k(inputs.kind, owner, head_k, n_kv)?;
        let v = self.get_v(inputs.kind, owner, head_v, n_kv)?;
        let result = self.mha(il, q, k, v, inputs.mask, extras);
        Ok(match inputs.v_rot {
            Some(rot) => self.hadamard(result, rot),
            None => result,
        })
    }

    /// Attention and its output projection.
    pub(super) fn attn_out(&mut self, il: u32, inputs: &AttnInputs, qkv: Qkv, extras: Extras) -> Result<Id, Error> {
        let rows = self.attn(il, inputs, qkv, extras)?;
        self.linear(il, "attn_output", rows)
    }

    /// Scores, softmax and sum of values, in one operation or several (`build_attn_mha`).
    pub(super) fn mha(&mut self, il: u32, q: Id, k: Id, v: Id, mask: Id, extras: Extras) -> Id {
        let v_trans = self.nb(v, 1) > self.nb(v, 2);
        let n_stream = self.ne(k, 3);
        let t = *self.graph.tensor(q);
        let per_stream = t.ne[2] / n_stream;
        let strides = [t.nb[1], t.nb[2], t.nb[2] * per_stream];
        let q = self.graph.view(q, &[t.ne[0], t.ne[1], per_stream, n_stream], &strides, 0);
        let [q, k, v] = [q, k, v].map(|id| self.graph.permute(id, [0, 2, 1, 3]));
        let rows = if self.plan.flash_attn && extras.kq_b.is_none() {
            self.flash(il, [q, k, v], v_trans, mask, extras)
        } else {
            self.scores(q, k, v, v_trans, mask, extras)
        };
        self.graph.expand(rows);
        rows
    }

    fn flash(&mut self, il: u32, [q, mut k, mut v]: [Id; 3], v_trans: bool, mask: Id, extras: Extras) -> Id {
        if v_trans {
            v = self.graph.transpose(v);
        }
        for id in [&mut k, &mut v] {
            if self.graph.tensor(*id).ty.name == "f32" {
                *id = self.graph.cast(*id, f16());
            }
        }
        let mut rows = self.graph.flash_attn_ext(q, k, v, mask);
        self.graph.tensors[rows.index()].param = u32::from(extras.alibi);
        self.graph.add_sinks(rows, extras.sinks);
        let target = self.layer_target(il);
        self.graph.layer_targets.insert(rows, target);
        if let Some(v_mla) = extras.v_mla {
            rows = self.graph.permute(rows, [0, 2, 1, 3]);
            rows = self.graph.mul_mat(v_mla, rows);
            rows = self.graph.permute(rows, [0, 2, 1, 3]);
            rows = self.graph.cont(rows);
        }
        let ne = self.graph.tensor(rows).ne;
        self.graph.reshape(rows, &[ne[0] * ne[1], ne[2] * ne[3]])
    }

    fn scores(&mut self, q: Id, k: Id, mut v: Id, v_trans: bool, mask: Id, extras: Extras) -> Id {
        let mut kq = self.graph.mul_mat(k, q);
        if self.arch().squashed {
            kq = self.graph.scale(kq);
            kq = self.graph.unary(Unary::Tanh, kq);
            kq = self.graph.scale(kq);
        }
        if extras.soft_cap {
            kq = self.graph.scale(kq);
            kq = self.graph.unary(Unary::Tanh, kq);
            kq = self.graph.scale(kq);
        }
        if let Some(bias) = extras.kq_b {
            kq = self.graph.add(kq, bias);
        }
        kq = self.graph.soft_max(kq, Some(mask));
        self.graph.add_sinks(kq, extras.sinks);
        if !v_trans {
            v = self.graph.transpose(v);
            v = self.graph.cont(v);
        }
        let mut kqv = self.graph.mul_mat(v, kq);
        if let Some(v_mla) = extras.v_mla {
            kqv = self.graph.mul_mat(v_mla, kqv);
        }
        let rows = self.graph.permute(kqv, [0, 2, 1, 3]);
        let ne = self.graph.tensor(rows).ne;
        let rows = self.graph.cont_nd(rows, &[ne[0] * ne[1], ne[2] * ne[3]]);
        if !self.plan.offload_kqv {
            let host = self.plan.placement.devices.len();
            self.graph.pinned.push((rows, host));
        }
        rows
    }

    /// `x` turned by a Hadamard matrix (`llama_mul_mat_hadamard`).
    pub(super) fn hadamard(&mut self, x: Id, rot: Id) -> Id {
        let n = self.ne(rot, 0);
        let t = *self.graph.tensor(x);
        let dims = [n, t.elements() / n];
        let flat = if t.is_contiguous() {
            self.graph.reshape(x, &dims)
        } else {
            self.graph.make(Op::Cont, t.ty, [dims[0], dims[1], 1, 1], &[x])
        };
        let turned = self.graph.mul_mat(rot, flat);
        self.graph.reshape(turned, &t.ne)
    }
}
