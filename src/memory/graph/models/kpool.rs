//! Indexers that score pools of neighbouring cells instead of cells.
//!
//! Source: `src/llama-memory-hybrid-idx.cpp` (`kpool_pad`, `kpool_access`), `src/models/glm5-next.cpp`
//! `build_kpool_select`, `src/models/qwen4exp.cpp` `build_qsa_sel`, llama.cpp b11434 and b12032.

use super::super::inputs::i64_type;
use super::super::tensor::{Node, Tensor, row_size};
use super::super::{Builder, Layer, MAX_NUMBER};
use crate::gguf::ggml_type::{f16, f32, i32};
use crate::memory::caches::CacheKind;

/// What the pools need from outside, and their numbers.
#[derive(Clone, Copy)]
pub(super) struct Pools<'g> {
    k_idxs: Node<'g>,
    cells: Node<'g>,
    members: Node<'g>,
    /// The pools that each token may see.
    pub(super) mask: Node<'g>,
    /// The cells of the incomplete last pool.
    pub(super) tail: Node<'g>,
    new_members: Node<'g>,
    new_rows: Node<'g>,
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

impl<'g> Pools<'g> {
    /// The inputs; they are kept whether or not something reads them.
    pub(super) fn new(b: &'g Builder<'g>) -> Self {
        let size = if b.arch.name == "qwen4exp" {
            let layers = b.plan.caches.hparams.layers.iter();
            let ratio = layers.map(|layer| u64::from(layer.compress_ratio)).fold(0, u64::max);
            if !(1..=MAX_NUMBER).contains(&ratio) {
                b.fail(b.key_error("attention.compress_ratios", Some(ratio)));
            }
            ratio.clamp(1, MAX_NUMBER)
        } else {
            b.hparam("attention.indexer.kpool")
        };
        let n_kv = b.cells(CacheKind::Indexer);
        let n_new = n_kv / size * u64::from(b.plan.numbers.n_seq_max);
        let n_pool = (n_new + 1).next_multiple_of(64);
        let n_top = n_pool.min(u64::from(b.plan.caches.hparams.indexer_top_k) / size);
        let input = |ty, dims: &[u64]| b.draft.input(ty, dims);
        let new_members = match (b.plan.rules.pools_replace_masks, b.arch.name == "qwen4exp") {
            (true, false) => input(i32(), &[size * n_new]),
            (true, true) => input(i32(), &[size, n_new]).reshape(&[size * n_new]),
            (false, _) => input(i32(), &[size, n_new]),
        };
        Self {
            k_idxs: b.inp_k_idxs(),
            cells: input(i32(), &[n_pool]).expand(),
            members: input(i32(), &[size, n_pool]).expand(),
            mask: input(f16(), &[n_pool, b.n_tokens]).expand(),
            tail: input(i32(), &[size - 1, b.n_tokens]).expand(),
            new_members,
            new_rows: input(i64_type(), &[n_new]),
            size,
            n_pool,
            n_new,
            n_kv,
            n_top,
        }
    }

    /// The scores of the best pools.
    pub(super) fn best_scores(&self, scores: Node<'g>, best: Node<'g>) -> Node<'g> {
        scores.reshape(&[1, self.n_pool, self.mask.ne(1)]).get_rows(best)
    }

    /// The mask, of the type of `like`, that opens the cells of the best pools, and of the incomplete one if `has_tail`.
    pub(super) fn mask_of(&self, scores: Node<'g>, best: Node<'g>, has_tail: bool, like: Node<'g>) -> Node<'g> {
        let all = like.draft.filled(like.tensor().ty, &[self.n_kv]);
        let pools = [Some(scores), Some(self.members), has_tail.then_some(self.tail)];
        all.top_k_mask(best, &pools.into_iter().flatten().collect::<Vec<_>>())
    }

    /// The cells of the best pools, and of the incomplete one if `has_tail`.
    pub(super) fn chosen_cells(&self, best: Node<'g>, has_tail: bool) -> Node<'g> {
        let n_tokens = self.mask.ne(1);
        let cells = self.members.get_rows(best.reshape(&[self.n_top * n_tokens]));
        let cells = cells.reshape(&[self.size * self.n_top, n_tokens]);
        if has_tail { cells.concat(self.tail, 0) } else { cells }
    }
}

impl<'g> Layer<'g> {
    /// Stores what tokens bring to the pools, with room for the pooled key behind it; gives what the members of the
    /// new pools brought, `[width, members, pools]`.
    pub(super) fn pool_rows(self, brought: Node<'g>, head: u64, pools: &Pools<'g>) -> Node<'g> {
        let (width, n_tokens) = (brought.ne(0), self.n_tokens);
        let packed = brought.concat(self.draft.filled(f32(), &[head, n_tokens]), 0);
        let packed = packed.reshape(&[width + head, 1, n_tokens]);
        self.store_k(CacheKind::Indexer, self.il, packed, pools.k_idxs);
        let members = pools.new_members;
        // A view of each layer's own is one more upload.
        let members =
            if self.plan.rules.pools_replace_masks { members } else { members.reshape(&[pools.size * pools.n_new]) };
        self.pool_cells(width, 0).get_rows(members).reshape(&[width, pools.size, pools.n_new])
    }

    /// A part of all cells of the indexer's cache, the streams behind each other.
    fn pool_cells(self, width: u64, offset: u64) -> Node<'g> {
        let k = self.keys(CacheKind::Indexer, self.il);
        let Tensor { ty, ne, nb, .. } = k.tensor();
        k.view(&[width, ne[1] * ne[2]], &[nb[1]], row_size(ty, offset))
    }

    /// Stores the new pools' keys and reads those of all pools, `[head, 1, pools]`.
    pub(super) fn pool_keys(self, pooled: Node<'g>, brought: u64, pools: &Pools<'g>) -> Node<'g> {
        let head = pooled.ne(0);
        let cells = self.pool_cells(head, brought);
        cells.set_rows(pooled, pools.new_rows).expand();
        cells.get_rows(pools.cells).reshape(&[head, 1, pools.n_pool])
    }
}

/// A mask that opens the chosen cells: those not `live` go to rows of their own behind the cells, `dump`.
pub(super) fn open_cells<'g>(chosen: Node<'g>, live: Node<'g>, dump: Node<'g>, mask: Node<'g>, n_kv: u64) -> Node<'g> {
    let [n_sel, n_tokens, ..] = chosen.shape();
    let ty = mask.tensor().ty;
    let filled = |n: u64| chosen.draft.filled(ty, &[n]).repeat(&[n, n_tokens]).reshape(&[1, n, n_tokens]);
    let cells = ((chosen.cast(f32()) - dump) * live + dump).cast(i32());
    filled(n_kv + n_sel).set_rows(filled(n_sel), cells.reshape(&[n_sel, n_tokens, 1]))
}
