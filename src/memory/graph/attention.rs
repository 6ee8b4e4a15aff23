//! Attention over a cache: projections, storing, scores or the one-operation kernel, output.
//!
//! Source: `src/llama-graph.cpp` `build_qkv`, `build_attn*`, `build_attn_mha`, llama.cpp b11434.

use super::cache::CacheInputs;
use super::ops::HEADS;
use super::tensor::{Node, Op};
use super::{Builder, Error, Layer, Norm};
use crate::arch::RopeFactors;
use crate::gguf::ggml_type::{f16, f32};
use crate::memory::caches::{CacheKind, MemoryClass};

/// Queries, keys and values of one layer, `[head, heads, tokens]`.
#[derive(Clone, Copy)]
pub(super) struct Qkv<'g> {
    pub(super) q: Node<'g>,
    pub(super) k: Node<'g>,
    pub(super) v: Node<'g>,
}

/// What attention does to its scores.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extras {
    /// They are squashed before the softmax (`attn_soft_cap`).
    pub(super) soft_cap: bool,
    /// They fall with distance (`f_max_alibi_bias`).
    pub(super) alibi: bool,
}

/// The caches that a model's attention layers use.
#[derive(Clone, Copy)]
pub(super) enum AttnInputs<'g> {
    /// One cache, and one of a window for the layers that have it.
    Cached(CacheInputs<'g>, Option<CacheInputs<'g>>),
    /// None: the batch attends to itself, by this mask.
    Batch(Node<'g>),
}

impl<'g> Builder<'g> {
    /// The inputs of one cache, or of a full one and a window's (`build_attn_inp_kv`, `build_attn_inp_kv_iswa`).
    pub(super) fn inp_attn(&'g self) -> AttnInputs<'g> {
        let both = |input: fn(&'g Self, CacheKind) -> CacheInputs<'g>| {
            AttnInputs::Cached(input(self, CacheKind::Base), Some(input(self, CacheKind::Swa)))
        };
        match self.plan.caches.class {
            MemoryClass::None => {
                let n = self.n_tokens;
                let n_kv = if self.plan.rules.pads_batches { n.next_multiple_of(256) } else { n };
                AttnInputs::Batch(self.mask(self.mask_type(), &[n_kv, n]))
            }
            MemoryClass::Iswa => both(Self::inp_kv),
            MemoryClass::HybridIswa => both(Self::inp_k),
            _ => AttnInputs::Cached(self.inp_kv(CacheKind::Base), None),
        }
    }

    /// The cache for a layer with or without a window.
    pub(super) fn cached(&self, inputs: &AttnInputs<'g>, is_swa: bool) -> CacheInputs<'g> {
        match inputs {
            AttnInputs::Cached(_, Some(swa)) if is_swa => *swa,
            AttnInputs::Cached(base, _) => *base,
            AttnInputs::Batch(mask) => {
                let kind = CacheKind::Base;
                self.fail(Error::Cache { kind, il: None });
                CacheInputs { kind, k_idxs: *mask, v_idxs: *mask, mask: *mask, k_rot: None, v_rot: None }
            }
        }
    }

    /// `x` turned by a Hadamard matrix (`llama_mul_mat_hadamard`), if there is one.
    pub(super) fn hadamard(&self, x: Node<'g>, rot: Option<Node<'g>>) -> Node<'g> {
        let Some(rot) = rot else { return x };
        let (n, t) = (rot.ne(0), x.tensor());
        let dims = [n, t.elements() / n];
        let flat = if t.is_contiguous() {
            x.reshape(&dims)
        } else {
            self.draft.make(Op::Cont, t.ty, [dims[0], dims[1], 1, 1], &[x])
        };
        rot.mm(flat).reshape(&t.ne)
    }
}

impl<'g> Qkv<'g> {
    /// Turns queries and keys by their positions.
    pub(super) fn rope(&mut self, positions: Node<'g>, factors: Option<Node<'g>>) {
        self.q = self.q.rope(positions, factors);
        self.k = self.k.rope(positions, factors);
    }
}

impl<'g> Layer<'g> {
    /// Queries, keys and values of equal heads (`build_qkv`).
    pub(super) fn qkv(self, x: Node<'g>) -> Qkv<'g> {
        let clamps = self.arch.clamps_qkv && self.f64_or_0("attention.clamp_kqv") > 0.0;
        let is_raw = self.arch.raw_qkv;
        let project = |name: &str| {
            let rows = if is_raw { self.raw_mm(name, x) } else { self.linear(name, x) };
            if clamps { rows.clamp() } else { rows }
        };
        let (k, v, n_head, n_kv) = (self.head_k, self.head_v, self.n_head, self.n_kv);
        if self.has("attn_qkv") {
            return self.parted(project("attn_qkv"));
        }
        let names = ["attn_q", "attn_k", "attn_v"];
        let [q_rows, k_rows, v_rows] = if self.plan.rules.copies_cells {
            // `llm_build_mul_mat_qkv` of ik_llama.cpp: all products first.
            let rows = names.map(|name| self.raw_mm(name, x));
            self.draft.expand(&rows);
            [0, 1, 2].map(|i| if is_raw { rows[i] } else { self.bias(names[i], rows[i]).expand() })
        } else {
            names.map(project)
        };
        let by_head = |rows: Node<'g>, head: u64, n: u64| rows.reshape(&[head, n, self.n_tokens]);
        Qkv { q: by_head(q_rows, k, n_head), k: by_head(k_rows, k, n_kv), v: by_head(v_rows, v, n_kv) }
    }

    /// Queries, keys and values that are parts of the same rows.
    pub(super) fn parted(self, rows: Node<'g>) -> Qkv<'g> {
        let (k, v, n_head, n_kv) = (self.head_k, self.head_v, self.n_head, self.n_kv);
        let part = |head: u64, n: u64, at: u64| rows.split(head, n, head, at);
        Qkv { q: part(k, n_head, 0), k: part(k, n_kv, k * n_head), v: part(v, n_kv, k * (n_head + n_kv)) }
    }

    /// Projections as rows of all heads; parts of a fused one are copied.
    pub(super) fn qkv_rows(self, x: Node<'g>, [q, k, v]: [u64; 3]) -> [Node<'g>; 3] {
        if !self.has("attn_qkv") {
            return ["attn_q", "attn_k", "attn_v"].map(|name| self.linear(name, x));
        }
        let qkv = self.linear("attn_qkv", x);
        [(q, 0), (k, q), (v, q + k)].map(|(width, at)| qkv.cols(width, at).cont())
    }

    /// Norms of the queries and keys, each if the layer has its weight.
    pub(super) fn norm_qk(self, qkv: &mut Qkv<'g>, kind: Norm) {
        for (name, x) in [("attn_q_norm", &mut qkv.q), ("attn_k_norm", &mut qkv.k)] {
            if self.has(name) {
                *x = self.norm_of(kind, name, *x);
            }
        }
    }

    /// The model's rope factors that lie with this layer (`get_rope_factors`).
    pub(super) fn rope_factors(self) -> Option<Node<'g>> {
        match self.arch.rope_factors {
            RopeFactors::No => return None,
            RopeFactors::FullAttention if self.hp.is_swa => return None,
            RopeFactors::All | RopeFactors::FullAttention => {}
        }
        let original = match self.hparams().u32_or_0("rope.scaling.original_context_length") {
            0 => self.hparams().context_length,
            n => n,
        };
        let long = self.plan.numbers.n_ctx_seq > original;
        let scaled = if long { "rope_factors_long" } else { "rope_factors_short" };
        self.global_here("rope_freqs").or_else(|| self.global_here(scaled))
    }

    /// Stores keys and values and attends to what the layer's cache holds; without the output projection.
    pub(super) fn attn(self, inputs: &AttnInputs<'g>, qkv: Qkv<'g>, extras: Extras) -> Node<'g> {
        if let AttnInputs::Batch(mask) = inputs {
            let Qkv { q, mut k, mut v } = qkv;
            self.draft.expand(&[q, k, v]);
            if self.plan.rules.pads_batches {
                let more = mask.ne(0).saturating_sub(k.ne(2));
                [k, v] = [k, v].map(|x| x.pad_nd([0, 0, more, 0]));
            }
            return self.mha(Qkv { q, k, v }, *mask, None, extras);
        }
        let cached = self.cached(inputs, self.hp.is_swa);
        self.attn_with(cached, qkv.q, Some((qkv.k, qkv.v)), self.il, extras)
    }

    /// The same with the cache of layer `owner`; nothing is stored without `kv` (KV sharing).
    pub(super) fn attn_with(
        self,
        inputs: CacheInputs<'g>,
        q: Node<'g>,
        kv: Option<(Node<'g>, Node<'g>)>,
        owner: u32,
        extras: Extras,
    ) -> Node<'g> {
        let windowed = matches!(self.plan.caches.class, MemoryClass::Iswa | MemoryClass::HybridIswa);
        let [k_rot, v_rot] = [inputs.k_rot, inputs.v_rot].map(|rot| self.own_rot(rot, owner));
        let q = self.hadamard(q, k_rot);
        let kv = kv.map(|(k, v)| (self.hadamard(k, k_rot), self.hadamard(v, v_rot)));
        q.expand();
        if let Some((k, v)) = kv {
            self.draft.expand(&if windowed || self.plan.rules.copies_cells { [k, v] } else { [v, k] });
            self.store_k(inputs.kind, owner, k, inputs.k_idxs);
            self.store_v(inputs.kind, owner, v, inputs.v_idxs);
        }
        let k = self.get_k(inputs.kind, owner, self.head_k, self.n_kv);
        let v = self.get_v(inputs.kind, owner, self.head_v, self.n_kv);
        self.hadamard(self.mha(Qkv { q, k, v }, inputs.mask, None, extras), v_rot)
    }

    /// Attention and its output projection.
    pub(super) fn attn_out(self, inputs: &AttnInputs<'g>, qkv: Qkv<'g>) -> Node<'g> {
        self.linear("attn_output", self.attn(inputs, qkv, Extras::default()))
    }

    /// Scores, softmax and sum of values, in one operation or several (`build_attn_mha`). `v_mla` turns latents into values.
    pub(super) fn mha(self, qkv: Qkv<'g>, mask: Node<'g>, v_mla: Option<Node<'g>>, extras: Extras) -> Node<'g> {
        let v_trans = qkv.v.nb(1) > qkv.v.nb(2);
        let n_stream = qkv.k.ne(3);
        let t = qkv.q.tensor();
        let per_stream = t.ne[2] / n_stream;
        let strides = [t.nb[1], t.nb[2], t.nb[2] * per_stream];
        let q = qkv.q.view(&[t.ne[0], t.ne[1], per_stream, n_stream], &strides, 0);
        let [q, k, v] = [q, qkv.k, qkv.v].map(|node| node.permute(HEADS));
        let sinks = self.maybe("attn_sinks");
        if !self.plan.flash_attn {
            return self.scores([q, k, v], v_trans, (mask, sinks, v_mla), extras).expand();
        }
        let v = if v_trans { v.transpose() } else { v };
        let [k, v] = [k, v].map(|x| if x.tensor().ty == f32() { x.cast(f16()) } else { x });
        let mut rows = q.flash_attn_ext(k, v, Some(mask));
        rows.edit(|t| t.param = u32::from(extras.alibi));
        rows.add_sinks(sinks);
        self.draft.0.borrow_mut().layer_targets.insert(rows.id, self.target());
        if let Some(v_mla) = v_mla {
            rows = v_mla.mm(rows.permute(HEADS)).permute(HEADS).cont();
        }
        let ne = rows.shape();
        rows.reshape(&[ne[0] * ne[1], ne[2] * ne[3]]).expand()
    }

    fn scores(
        self,
        [q, k, v]: [Node<'g>; 3],
        v_trans: bool,
        (mask, sinks, v_mla): (Node<'g>, Option<Node<'g>>, Option<Node<'g>>),
        extras: Extras,
    ) -> Node<'g> {
        let mut kq = k.mm(q);
        if self.arch.squashed {
            kq = kq.capped();
        }
        if extras.soft_cap {
            kq = kq.capped();
        }
        kq = kq.soft_max_masked(mask);
        kq.add_sinks(sinks);
        let v = if v_trans { v } else { v.transpose().cont() };
        let kqv = v.mm(kq);
        let rows = v_mla.map_or(kqv, |v_mla| v_mla.mm(kqv)).permute(HEADS);
        let ne = rows.shape();
        let rows = rows.cont_nd(&[ne[0] * ne[1], ne[2] * ne[3]]);
        if !self.plan.offload_kqv {
            self.pin(rows, self.plan.placement.devices.len());
        }
        rows
    }
}
