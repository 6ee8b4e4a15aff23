//! Reads and writes of the caches of keys and values.
//!
//! Source: `src/llama-kv-cache.cpp` `get_k`, `get_v`, `cpy_k`, `cpy_v`, `build_input_*`, llama.cpp b11434.

use super::inputs::i64_type;
use super::tensor::{Held, Node, Tensor, row_size};
use super::{Builder, Error};
use crate::arch::Memory;
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f16, f32};
use crate::memory::caches::{Cache, CacheKind, Caches};
use crate::model::hparams::LayerHParams;
use crate::placement::{Buffer, Placement};

/// What a cache needs from outside: where to write, what to see, and rotations of quantized types.
#[derive(Clone, Copy)]
pub(super) struct CacheInputs<'g> {
    pub(super) kind: CacheKind,
    pub(super) k_idxs: Node<'g>,
    pub(super) v_idxs: Node<'g>,
    pub(super) mask: Node<'g>,
    pub(super) k_rot: Option<Node<'g>>,
    pub(super) v_rot: Option<Node<'g>>,
}

impl<'g> Builder<'g> {
    /// A cache that not every model of the architecture has.
    pub(super) fn maybe_cache(&self, kind: CacheKind) -> Option<&'g Cache> {
        self.keepers().0.list.iter().find(|cache| cache.kind == kind)
    }

    /// A cache that the graph reads; an error without it.
    pub(super) fn cache(&self, kind: CacheKind) -> Option<&'g Cache> {
        let cache = self.maybe_cache(kind);
        if cache.is_none() {
            self.fail(Error::Cache { kind, il: None });
        }
        cache
    }

    /// Cells of a stream.
    pub(super) fn cells(&self, kind: CacheKind) -> u64 {
        self.cache(kind).map_or(1, |cache| u64::from(cache.cells))
    }

    /// Masks are F16 for flash attention.
    pub(super) fn mask_type(&self) -> GgmlType {
        if self.plan.flash_attn { f16() } else { f32() }
    }

    /// One mask: a row of cells by token of each stream.
    pub(super) fn inp_mask(&self, kind: CacheKind, ty: GgmlType) -> Node<'g> {
        let n_stream = if self.plan.numbers.kv_unified { 1 } else { self.n_seqs };
        self.mask(ty, &[self.cells(kind), self.n_tokens / n_stream, 1, n_stream])
    }

    /// A mask from outside, of this type when it is read.
    pub(super) fn mask(&self, ty: GgmlType, dims: &[u64]) -> Node<'g> {
        if ty != f32() && self.plan.rules.mask_copied {
            return self.draft.input(f32(), dims).cast(ty);
        }
        self.draft.input(ty, dims)
    }

    pub(super) fn inp_k_idxs(&self) -> Node<'g> {
        self.draft.input(i64_type(), &[self.n_tokens])
    }

    /// Where keys and values go and what may be seen of them (`build_attn_inp_kv`).
    pub(super) fn inp_kv(&'g self, kind: CacheKind) -> CacheInputs<'g> {
        let (k_rot, v_rot) = self.inp_rot(kind);
        CacheInputs { k_rot, v_rot, ..self.inp_k(kind) }
    }

    /// The same without rotations, as of a cache whose values are a part of its keys (`build_attn_inp_k`).
    pub(super) fn inp_k(&'g self, kind: CacheKind) -> CacheInputs<'g> {
        // The widest layer's values.
        let width = |l: &LayerHParams| u64::from(l.n_head_kv) * u64::from(l.n_embd_head_v);
        let widest = self.plan.caches.hparams.layers.iter().map(width).fold(0, u64::max);
        let per_token = if self.plan.caches.v_trans { widest } else { 1 };
        let v_idxs = self.draft.input(i64_type(), &[self.n_tokens * per_token]);
        let mask = self.inp_mask(kind, self.mask_type());
        CacheInputs { kind, k_idxs: self.inp_k_idxs(), v_idxs, mask, k_rot: None, v_rot: None }
    }

    /// Hadamard matrices for quantized keys and values: as wide as all heads allow, 64 for values.
    pub(super) fn inp_rot(&'g self, kind: CacheKind) -> (Option<Node<'g>>, Option<Node<'g>>) {
        let Some(cache) = self.cache(kind).filter(|_| !self.plan.rules.copies_cells) else { return (None, None) };
        let [k, v] = cache.rotations(&self.keepers().0.hparams, self.arch);
        let matrix = |n: u64| self.draft.input(f32(), &[n, n]);
        (k.map(matrix), v.map(matrix))
    }

    /// A matrix for one layer: the input, or the layer's own beside its cache.
    pub(super) fn own_rot(&self, rot: Option<Node<'g>>, il: u32) -> Option<Node<'g>> {
        if !self.plan.rules.rotations_cached {
            return rot;
        }
        let home = self.home(il).filter(|_| self.plan.offload_kqv).map_or(Buffer::Cpu, Buffer::Device);
        rot.map(|rot| self.draft.hold(f32(), &rot.shape(), Held::Weight(home)))
    }

    /// The caches that are read, and where their layers are: the target's, where a draft model has none.
    fn keepers(&self) -> (&'g Caches, &'g Placement) {
        match self.plan.other.filter(|_| self.arch.memory == Memory::Target) {
            Some(other) => (other.caches, other.placement),
            None => (self.plan.caches, self.plan.placement),
        }
    }

    /// The tensors of a layer in a cache.
    fn kv_tensors(&self, kind: CacheKind, il: u32) -> (Node<'g>, Option<Node<'g>>) {
        let node = |id| self.draft.node(id);
        if let Some((k, v)) = self.kv.borrow().get(&(kind, il)) {
            return (node(*k), v.map(node));
        }
        let layer = self.cache(kind).and_then(|cache| Some((cache, cache.layers.iter().find(|layer| layer.il == il)?)));
        let Some((cache, layer)) = layer else { return (self.fail(Error::Cache { kind, il: Some(il) }), None) };
        let home = self.keepers().1.layers.get(il as usize).copied().flatten().filter(|_| self.plan.offload_kqv);
        if home.is_some_and(|device| !self.plan.placement.devices.contains(&device)) {
            return (self.fail(Error::Elsewhere { tensor: format!("cache_k_l{il}") }), None);
        }
        let held = Held::Cache(home.map_or(Buffer::Cpu, Buffer::Device));
        let hold = |ty, width| self.draft.hold(ty, &[width, u64::from(cache.cells), u64::from(cache.n_stream)], held);
        let k = hold(cache.type_k, layer.n_embd_k);
        let v = (layer.n_embd_v > 0).then(|| hold(cache.type_v, layer.n_embd_v));
        self.kv.borrow_mut().insert((kind, il), (k.id, v.map(|v| v.id)));
        (k, v)
    }

    /// The first tensor of a layer in a cache, or the only one.
    pub(super) fn keys(&self, kind: CacheKind, il: u32) -> Node<'g> {
        self.kv_tensors(kind, il).0
    }

    /// The second tensor of a layer in a cache that has two.
    pub(super) fn values(&self, kind: CacheKind, il: u32) -> Node<'g> {
        self.kv_tensors(kind, il).1.unwrap_or_else(|| self.fail(Error::Cache { kind, il: Some(il) }))
    }

    /// All cells of a layer's keys, by head (`get_k`).
    pub(super) fn get_k(&self, kind: CacheKind, il: u32, head: u64, n_head: u64) -> Node<'g> {
        let k = self.keys(kind, il);
        let Tensor { ty, ne, nb, .. } = k.tensor();
        k.view(&[head, n_head, ne[1], ne[2]], &[row_size(ty, head), nb[1], nb[2]], 0)
    }

    /// All cells of a layer's values, by head; transposed without flash attention (`get_v`).
    pub(super) fn get_v(&self, kind: CacheKind, il: u32, head: u64, n_head: u64) -> Node<'g> {
        let v = self.values(kind, il);
        let Tensor { ty, ne, nb, .. } = v.tensor();
        let row = |n: u64| row_size(ty, n);
        if !self.plan.caches.v_trans {
            return v.view(&[head, n_head, ne[1], ne[2]], &[row(head), nb[1], nb[2]], 0);
        }
        let cells = ne[1];
        v.view(&[cells, n_head, head, ne[2]], &[row(cells * head), row(cells), row(cells * ne[0])], 0)
    }

    /// Writes keys (`cpy_k`).
    pub(super) fn store_k(&self, kind: CacheKind, il: u32, rows: Node<'g>, idxs: Node<'g>) {
        let cache = self.keys(kind, il);
        if self.plan.rules.copies_cells { copy(cache, rows) } else { store(cache, rows, idxs) }
    }

    /// Writes values, one element a row where they lie transposed (`cpy_v`).
    pub(super) fn store_v(&self, kind: CacheKind, il: u32, rows: Node<'g>, idxs: Node<'g>) {
        let v = self.values(kind, il);
        if self.plan.rules.copies_cells {
            return copy(v, rows);
        }
        if !self.plan.caches.v_trans {
            return store(v, rows, idxs);
        }
        let Tensor { ne, nb, ty, .. } = rows.tensor();
        let width = ne[0] * ne[1];
        let packed = row_size(ty, width) == nb[2];
        let mut rows = if packed { rows.reshape(&[width, ne[2]]) } else { rows.cont_nd(&[width, ne[2]]) };
        if let Some(missing) = v.ne(0).checked_sub(width).filter(|missing| *missing > 0) {
            rows = rows.pad(missing);
        }
        let all = v.reshape(&[1, v.elements()]);
        all.set_rows(rows.reshape(&[1, rows.elements()]), idxs).expand();
    }
}

/// Writes rows to cells that follow each other; which ones decides nothing here.
fn copy<'g>(cache: Node<'g>, rows: Node<'g>) {
    rows.cpy(cache.view(&[rows.elements()], &[], 0)).expand();
}

/// Writes rows; indices count through the cells of all streams.
fn store<'g>(cache: Node<'g>, rows: Node<'g>, idxs: Node<'g>) {
    let (ne, r) = (cache.shape(), rows.tensor());
    let rows = rows.view(&[r.ne[0] * r.ne[1], r.ne[2]], &[r.nb[2]], 0);
    let cache = if ne[2] > 1 { cache.reshape(&[ne[0], ne[1] * ne[2]]) } else { cache };
    cache.set_rows(rows, idxs).expand();
}
