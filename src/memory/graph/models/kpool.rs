//! Indexers that score pools of neighbouring cells instead of cells.
//!
//! Source: `src/llama-memory-hybrid-idx.cpp` (`kpool_pad`, `kpool_access`), `src/models/glm5-next.cpp`
//! `build_kpool_select`, `src/models/qwen4exp.cpp` `build_qsa_sel`, llama.cpp b11434.

use super::super::inputs::i64_type;
use super::super::tensor::{Id, Op, Tensor, row_size};
use super::super::{Builder, Error, MAX_NUMBER};
use crate::gguf::ggml_type::{f16, f32, i32};
use crate::memory::caches::CacheKind;

/// What the pools need from outside, and their numbers.
#[derive(Clone, Copy)]
pub(super) struct Pools {
    k_idxs: Id,
    cells: Id,
    members: Id,
    /// The pools that each token may see.
    pub(super) mask: Id,
    /// The cells of the incomplete last pool.
    pub(super) tail: Id,
    new_members: Id,
    new_rows: Id,
    /// Cells of a pool.
    pub(super) size: u64,
    /// Pools, padded to 64.
    pub(super) n_pool: u64,
    /// Pools that the batch may complete: all that the cache holds.
    pub(super) n_new: u64,
    /// Cells of a sequence's cache.
    pub(super) n_kv: u64,
    /// Pools that a token sees.
    pub(super) n_top: u64,
}

impl Pools {
    /// The inputs; they are kept whether or not something reads them.
    pub(super) fn new(b: &mut Builder<'_>) -> Result<Self, Error> {
        let size = if b.plan.model.architecture == "qwen4exp" {
            let layers = b.plan.caches.hparams.layers.iter();
            let ratio = layers.map(|layer| u64::from(layer.compress_ratio)).fold(0, u64::max);
            let is_known = (1..=MAX_NUMBER).contains(&ratio);
            if is_known { ratio } else { return Err(b.key_error("attention.compress_ratios", Some(ratio))) }
        } else {
            b.hparam("attention.indexer.kpool")?
        };
        let n_kv = b.cells(CacheKind::Indexer)?;
        let n_new = n_kv / size * u64::from(b.plan.numbers.n_seq_max);
        let n_pool = (n_new + 1).next_multiple_of(64);
        let n_top = n_pool.min(u64::from(b.plan.caches.hparams.indexer_top_k) / size);
        let n_tokens = b.n_tokens;
        let k_idxs = b.inp_k_idxs();
        let cells = b.graph.input(i32(), &[n_pool]);
        let members = b.graph.input(i32(), &[size, n_pool]);
        let mask = b.graph.input(f16(), &[n_pool, n_tokens]);
        let tail = b.graph.input(i32(), &[size - 1, n_tokens]);
        b.graph.expand_all(&[cells, members, mask, tail]);
        let new_members = b.graph.input(i32(), &[size, n_new]);
        let new_rows = b.graph.input(i64_type(), &[n_new]);
        Ok(Self { k_idxs, cells, members, mask, tail, new_members, new_rows, size, n_pool, n_new, n_kv, n_top })
    }

    /// Cells that a token's choice has room for.
    pub(super) fn n_sel(&self, has_tail: bool) -> u64 {
        self.size * self.n_top + if has_tail { self.size - 1 } else { 0 }
    }
}

impl Builder<'_> {
    /// Stores what tokens bring to the pools, with room for the pooled key behind it; gives what the members of the
    /// new pools brought, `[width, members, pools]`.
    pub(super) fn pool_rows(&mut self, il: u32, brought: Id, head: u64, pools: &Pools) -> Result<Id, Error> {
        let (width, n_tokens) = (self.ne(brought, 0), self.n_tokens);
        let room = self.graph.new_tensor(f32(), &[head, n_tokens]);
        let room = self.graph.like(Op::Fill, &[room]);
        let packed = self.graph.concat(brought, room, 0);
        let packed = self.graph.reshape(packed, &[width + head, 1, n_tokens]);
        let stored = self.cpy_k(CacheKind::Indexer, il, packed, pools.k_idxs)?;
        self.graph.expand(stored);
        let cells = self.pool_cells(il, width, 0)?;
        let members = self.graph.reshape(pools.new_members, &[pools.size * pools.n_new]);
        let rows = self.graph.get_rows(cells, members);
        Ok(self.graph.reshape(rows, &[width, pools.size, pools.n_new]))
    }

    /// A part of all cells of the indexer's cache, the streams behind each other.
    fn pool_cells(&mut self, il: u32, width: u64, offset: u64) -> Result<Id, Error> {
        let k = self.kv_tensors(CacheKind::Indexer, il)?.k;
        let Tensor { ty, ne, nb, .. } = *self.graph.tensor(k);
        Ok(self.graph.view(k, &[width, ne[1] * ne[2]], &[nb[1]], row_size(ty, offset)))
    }

    /// Stores the new pools' keys and reads those of all pools, `[head, 1, pools]`.
    pub(super) fn pool_keys(&mut self, il: u32, pooled: Id, brought: u64, pools: &Pools) -> Result<Id, Error> {
        let head = self.ne(pooled, 0);
        let cells = self.pool_cells(il, head, brought)?;
        let stored = self.graph.set_rows(cells, pooled, pools.new_rows);
        self.graph.expand(stored);
        let keys = self.graph.get_rows(cells, pools.cells);
        Ok(self.graph.reshape(keys, &[head, 1, pools.n_pool]))
    }

    /// How well each pool fits each token (`ggml_lightning_indexer`).
    pub(super) fn pool_scores(&mut self, q: Id, keys: Id, weights: Id, pools: &Pools) -> Id {
        self.graph.lightning_indexer(q, keys, weights, pools.mask)
    }

    /// The scores of the best pools.
    pub(super) fn best_scores(&mut self, scores: Id, best: Id, pools: &Pools) -> Id {
        let scores = self.graph.reshape(scores, &[1, pools.n_pool, self.n_tokens]);
        self.graph.get_rows(scores, best)
    }

    /// The cells of the best pools, and of the incomplete one if `has_tail`.
    pub(super) fn chosen_cells(&mut self, best: Id, pools: &Pools, has_tail: bool) -> Id {
        let n_tokens = self.n_tokens;
        let best = self.graph.reshape(best, &[pools.n_top * n_tokens]);
        let cells = self.graph.get_rows(pools.members, best);
        let cells = self.graph.reshape(cells, &[pools.size * pools.n_top, n_tokens]);
        if has_tail { self.graph.concat(cells, pools.tail, 0) } else { cells }
    }

    /// A mask that opens the chosen cells: those not `live` go to rows of their own behind the cells, `dump`.
    pub(super) fn open_cells(&mut self, chosen: Id, live: Id, dump: Id, mask: Id, n_kv: u64) -> Id {
        let (n_sel, n_tokens) = (self.ne(chosen, 0), self.n_tokens);
        let ty = self.graph.tensor(mask).ty;
        let mut filled = |n: u64| {
            let row = self.graph.new_tensor(ty, &[n]);
            let row = self.graph.like(Op::Fill, &[row]);
            let rows = self.graph.repeat(row, &[n, n_tokens]);
            self.graph.reshape(rows, &[1, n, n_tokens])
        };
        let closed = filled(n_kv + n_sel);
        let zeros = filled(n_sel);
        let cells = self.graph.cast(chosen, f32());
        let cells = self.graph.sub(cells, dump);
        let cells = self.graph.mul(cells, live);
        let cells = self.graph.add(cells, dump);
        let cells = self.graph.cast(cells, i32());
        let cells = self.graph.reshape(cells, &[n_sel, n_tokens, 1]);
        self.graph.set_rows(closed, zeros, cells)
    }
}
