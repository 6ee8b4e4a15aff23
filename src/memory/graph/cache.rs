//! Reads and writes of the caches of keys and values.
//!
//! Source: `src/llama-kv-cache.cpp` `get_k`, `get_v`, `cpy_k`, `cpy_v`, `build_input_*`, llama.cpp b11434.

use super::inputs::i64_type;
use super::tensor::{Held, Id, Tensor, row_size};
use super::{Builder, Error};
use crate::gguf::ggml_type::{f16, f32};
use crate::memory::caches::{Cache, CacheKind};
use crate::model::context::LayerHParams;

/// The tensors of one layer in a cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvTensors {
    pub(super) k: Id,
    pub(super) v: Option<Id>,
}

/// What a cache needs from outside: where to write, what to see, and rotations of quantized types.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheInputs {
    pub(super) kind: CacheKind,
    pub(super) k_idxs: Id,
    pub(super) v_idxs: Option<Id>,
    pub(super) mask: Id,
    pub(super) k_rot: Option<Id>,
    pub(super) v_rot: Option<Id>,
}

impl CacheInputs {
    /// Where to write values.
    pub(super) fn v_idxs(&self) -> Result<Id, Error> {
        self.v_idxs.ok_or(Error::Cache { kind: self.kind, il: None })
    }
}

/// The side of a Hadamard matrix of keys: the greatest power of 2 in a head's width, 64 at least.
pub(super) fn rot_size(head: u64) -> u64 {
    (head & head.wrapping_neg()).max(64)
}

impl<'a> Builder<'a> {
    /// A cache that not every model of the architecture has.
    pub(super) fn maybe_cache(&self, kind: CacheKind) -> Option<&'a Cache> {
        self.plan.caches.list.iter().find(|cache| cache.kind == kind)
    }

    /// A cache that the graph reads.
    pub(super) fn cache(&self, kind: CacheKind) -> Result<&'a Cache, Error> {
        self.maybe_cache(kind).ok_or(Error::Cache { kind, il: None })
    }

    /// Cells of a stream.
    pub(super) fn cells(&self, kind: CacheKind) -> Result<u64, Error> {
        Ok(u64::from(self.cache(kind)?.cells))
    }

    /// One mask: a row of cells by token of each stream, F16 for flash attention.
    pub(super) fn inp_mask(&mut self, kind: CacheKind, is_f16: bool) -> Result<Id, Error> {
        let cells = self.cells(kind)?;
        let n_stream = if self.plan.numbers.kv_unified { 1 } else { self.plan.batch.n_seqs };
        let ty = if is_f16 { f16() } else { f32() };
        Ok(self.graph.input(ty, &[cells, self.n_tokens / n_stream, 1, n_stream]))
    }

    pub(super) fn inp_k_idxs(&mut self) -> Id {
        self.graph.input(i64_type(), &[self.n_tokens])
    }

    pub(super) fn inp_v_idxs(&mut self) -> Id {
        let per_token = if self.plan.caches.v_trans { self.n_embd_v_gqa_max() } else { 1 };
        self.graph.input(i64_type(), &[self.n_tokens * per_token])
    }

    /// The widest layer's values.
    fn n_embd_v_gqa_max(&self) -> u64 {
        let width = |l: &LayerHParams| u64::from(l.n_head_kv) * u64::from(l.n_embd_head_v);
        self.plan.caches.hparams.layers.iter().map(width).fold(0, u64::max)
    }

    /// Where keys and values go and what may be seen of them (`build_attn_inp_kv`).
    pub(super) fn inp_kv(&mut self, kind: CacheKind) -> Result<CacheInputs, Error> {
        let k_idxs = self.inp_k_idxs();
        let v_idxs = Some(self.inp_v_idxs());
        let mask = self.inp_mask(kind, self.plan.flash_attn)?;
        let (k_rot, v_rot) = self.inp_rot(kind)?;
        Ok(CacheInputs { kind, k_idxs, v_idxs, mask, k_rot, v_rot })
    }

    /// The same of a cache whose values are a part of its keys (`build_attn_inp_k`).
    pub(super) fn inp_k(&mut self, kind: CacheKind) -> Result<CacheInputs, Error> {
        let k_idxs = self.inp_k_idxs();
        let mask = self.inp_mask(kind, self.plan.flash_attn)?;
        Ok(CacheInputs { kind, k_idxs, v_idxs: None, mask, k_rot: None, v_rot: None })
    }

    /// Hadamard matrices for quantized keys and values: as wide as all heads allow, 64 for values.
    pub(super) fn inp_rot(&mut self, kind: CacheKind) -> Result<(Option<Id>, Option<Id>), Error> {
        let cache = self.cache(kind)?;
        let layers: Vec<LayerHParams> = cache.layers.iter().map(|l| self.layer(l.il)).collect::<Result<_, _>>()?;
        let common = |head: fn(&LayerHParams) -> u32| {
            let first = layers.first().map(head).filter(|n| *n > 0)?;
            layers.iter().all(|layer| head(layer) == first).then_some(u64::from(first))
        };
        let k_head = common(|l| l.n_embd_head_k);
        let v_head = common(|l| l.n_embd_head_v).filter(|_| !self.plan.caches.hparams.is_mla);
        let full = self.layer(0)?;
        let first_k = u64::from(full.n_embd_head_k).is_multiple_of(64);
        let first_v = u64::from(full.n_embd_head_v).is_multiple_of(64);
        let n_rot_k = k_head.filter(|_| cache.type_k.is_quantized && first_k).map(rot_size);
        let n_rot_v = v_head.filter(|_| cache.type_v.is_quantized && first_v).map(|_| 64);
        let mut matrix = |n: Option<u64>| n.map(|n| self.graph.input(f32(), &[n, n]));
        Ok((matrix(n_rot_k), matrix(n_rot_v)))
    }

    /// The tensors of a layer in a cache.
    pub(super) fn kv_tensors(&mut self, kind: CacheKind, il: u32) -> Result<KvTensors, Error> {
        if let Some(found) = self.kv.get(&(kind, il)) {
            return Ok(*found);
        }
        let cache = self.cache(kind)?;
        let layer = cache.layers.iter().find(|layer| layer.il == il);
        let layer = layer.ok_or(Error::Cache { kind, il: Some(il) })?;
        let held = Held::Cache(self.cache_buffer(il));
        let (cells, streams) = (u64::from(cache.cells), u64::from(cache.n_stream));
        let k = self.graph.hold(cache.type_k, &[layer.n_embd_k, cells, streams], held);
        let v = (layer.n_embd_v > 0).then(|| self.graph.hold(cache.type_v, &[layer.n_embd_v, cells, streams], held));
        let tensors = KvTensors { k, v };
        self.kv.insert((kind, il), tensors);
        Ok(tensors)
    }

    /// The second tensor of a layer in a cache that has two.
    pub(super) fn values(&mut self, kind: CacheKind, il: u32) -> Result<Id, Error> {
        self.kv_tensors(kind, il)?.v.ok_or(Error::Cache { kind, il: Some(il) })
    }

    /// All cells of a layer's keys, by head (`get_k`).
    pub(super) fn get_k(&mut self, kind: CacheKind, il: u32, head: u64, n_head: u64) -> Result<Id, Error> {
        let k = self.kv_tensors(kind, il)?.k;
        let Tensor { ty, ne, nb, .. } = *self.graph.tensor(k);
        let row = row_size(ty, head);
        Ok(self.graph.view(k, &[head, n_head, ne[1], ne[2]], &[row, nb[1], nb[2]], 0))
    }

    /// All cells of a layer's values, by head; transposed without flash attention (`get_v`).
    pub(super) fn get_v(&mut self, kind: CacheKind, il: u32, head: u64, n_head: u64) -> Result<Id, Error> {
        let v = self.values(kind, il)?;
        let Tensor { ty, ne, nb, .. } = *self.graph.tensor(v);
        let row = |n: u64| row_size(ty, n);
        if !self.plan.caches.v_trans {
            return Ok(self.graph.view(v, &[head, n_head, ne[1], ne[2]], &[row(head), nb[1], nb[2]], 0));
        }
        let cells = ne[1];
        let strides = [row(cells * head), row(cells), row(cells * ne[0])];
        Ok(self.graph.view(v, &[cells, n_head, head, ne[2]], &strides, 0))
    }

    /// Writes keys (`cpy_k`).
    pub(super) fn cpy_k(&mut self, kind: CacheKind, il: u32, rows: Id, idxs: Id) -> Result<Id, Error> {
        let k = self.kv_tensors(kind, il)?.k;
        let Tensor { ne, nb, .. } = *self.graph.tensor(rows);
        let rows = self.graph.view(rows, &[ne[0] * ne[1], ne[2]], &[nb[2]], 0);
        let k = self.merged_streams(k);
        Ok(self.graph.set_rows(k, rows, idxs))
    }

    /// Writes values, one element a row where they lie transposed (`cpy_v`).
    pub(super) fn cpy_v(&mut self, kind: CacheKind, il: u32, rows: Id, idxs: Id) -> Result<Id, Error> {
        let v = self.values(kind, il)?;
        let Tensor { ne, nb, ty, .. } = *self.graph.tensor(rows);
        let width = ne[0] * ne[1];
        if !self.plan.caches.v_trans {
            let rows = self.graph.view(rows, &[width, ne[2]], &[nb[2]], 0);
            let v = self.merged_streams(v);
            return Ok(self.graph.set_rows(v, rows, idxs));
        }
        let mut rows = if row_size(ty, width) == nb[2] {
            self.graph.reshape(rows, &[width, ne[2]])
        } else {
            self.graph.cont_nd(rows, &[width, ne[2]])
        };
        if let Some(missing) = self.ne(v, 0).checked_sub(width).filter(|missing| *missing > 0) {
            rows = self.graph.pad(rows, [missing, 0, 0, 0]);
        }
        let all = self.graph.tensor(v).elements();
        let v = self.graph.reshape(v, &[1, all]);
        let n = self.graph.tensor(rows).elements();
        let rows = self.graph.reshape(rows, &[1, n]);
        Ok(self.graph.set_rows(v, rows, idxs))
    }

    /// The cells of all streams as one: indices count through them.
    fn merged_streams(&mut self, cache: Id) -> Id {
        let ne = self.graph.tensor(cache).ne;
        if ne[2] > 1 { self.graph.reshape(cache, &[ne[0], ne[1] * ne[2]]) } else { cache }
    }
}
