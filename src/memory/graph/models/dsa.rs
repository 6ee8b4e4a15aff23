//! Sparse attention over MLA latents: an indexer scores the cache, attention sees the best cells only.
//!
//! Source: `src/models/deepseek32.cpp`, `glm-dsa.cpp`, `dots3note.cpp`, `src/llama-graph.cpp` `build_attn` of
//! `llm_graph_input_attn_k_dsa`, llama.cpp b11434.

use super::super::cache::CacheInputs;
use super::super::tensor::{Node, Op};
use super::super::{Builder, Layer, Norm};
use super::mla::SPEC;
use super::plain::{gate_heads, stack};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::f16;
use crate::memory::caches::CacheKind;

/// What attention and its indexer need from outside.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'g> {
    latent: CacheInputs<'g>,
    indexer: Option<CacheInputs<'g>>,
    /// Where some layers see a window only, without an indexer.
    windows: Option<CacheInputs<'g>>,
    positions: Node<'g>,
}

impl<'g> Inputs<'g> {
    pub(super) fn new(b: &'g Builder<'g>) -> Self {
        let has_indexer = b.maybe_cache(CacheKind::Indexer).is_some();
        let indexer = has_indexer.then(|| {
            let kind = CacheKind::Indexer;
            CacheInputs { mask: b.inp_mask(kind, f16()), k_rot: b.inp_rot(kind).0, ..b.inp_k(kind) }
        });
        let windows = (b.arch.name == "dots3note").then(|| b.inp_k(CacheKind::Swa));
        let mut latent = b.inp_k(CacheKind::Base);
        // The indexer's mask shows the same cells.
        if let Some(indexer) = indexer.filter(|_| b.plan.rules.fuses_top_k_masks && b.plan.flash_attn) {
            latent.mask = indexer.mask;
        }
        Self { latent, indexer, windows, positions: b.inp_pos() }
    }
}

/// Builds the graph; layers without an indexer of their own use the choice of the one before.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let (rows, inputs, mut chosen) = (b.tokens(), Inputs::new(b), None);
    stack(b, &SPEC, rows, |l, x| attention(l, x, &inputs, &mut chosen));
}

/// A layer's attention; layers without an indexer of their own use what is `chosen` already.
pub(super) fn attention<'g>(l: Layer<'g>, x: Node<'g>, inputs: &Inputs<'g>, chosen: &mut Option<Node<'g>>) -> Node<'g> {
    if let Some(windows) = inputs.windows {
        return gated_attention(l, x, inputs, windows);
    }
    let (sizes, low) = (l.mla_sizes(), l.low_q(x));
    if l.hp.is_indexer_full || l.arch.name == "deepseek32" {
        *chosen = inputs.indexer.map(|indexer| index(l, low, x, indexer, inputs.positions));
    }
    let qkv = l.mla_qkv(l.raw_mm("attn_q_b", low), x, Some(inputs.positions), sizes);
    let mut rows = l.attn_latent(inputs.latent, qkv, *chosen);
    if l.arch.name == "hy_v4" {
        rows = rows * l.raw_mm("attn_gate", x).sigmoid();
    }
    l.mm("attn_output", rows)
}

/// dots3note: layers with windows have heads of other sizes, and a gate by head multiplies what heads found.
fn gated_attention<'g>(l: Layer<'g>, x: Node<'g>, inputs: &Inputs<'g>, windows: CacheInputs<'g>) -> Node<'g> {
    let is_swa = l.hp.is_swa;
    let sizes = if is_swa {
        let heads = (l.hparam("attention.key_length_mla_swa"), l.hparam("attention.value_length_mla_swa"));
        l.mla_sizes_of(heads, "attention.kv_lora_rank_swa")
    } else {
        l.mla_sizes()
    };
    let low = l.low_q(x);
    let indexer = inputs.indexer.filter(|_| !is_swa);
    let chosen = indexer.map(|indexer| index(l, low, x, indexer, inputs.positions));
    let (latent, turned) = l.mla_kv(x, sizes);
    let turned = l.norm("attn_k_norm", turned);
    let q = l.raw_mm("attn_q_b", low).reshape(&[sizes.k_head, sizes.n_head, l.n_tokens]);
    let qkv = l.mla_absorbed(q, (latent, turned), Some(inputs.positions), sizes);
    let cache = if chosen.is_some() { inputs.latent } else { windows };
    let rows = l.attn_latent(cache, qkv, chosen);
    l.mm("attn_output", gate_heads(rows, l.raw_mm("attn_gate", x).sigmoid(), sizes.n_head))
}

/// The cells that a token should see.
fn index<'g>(l: Layer<'g>, low: Node<'g>, x: Node<'g>, indexer: CacheInputs<'g>, positions: Node<'g>) -> Node<'g> {
    let (head, n_head) = (l.indexer_head(), l.hparam("attention.indexer.head_count"));
    let q = l.raw_mm("indexer.attn_q_b", low).reshape(&[head, n_head, l.n_tokens]).rope(positions, None);
    let k_norm = l.get("indexer.k_norm", "weight");
    let k = l.norm_with(Norm::Layer, k_norm, "indexer.k_norm", l.raw_mm("indexer.attn_k", x));
    let k = k.reshape(&[head, 1, l.n_tokens]).rope(positions, None);
    let rot = l.own_rot(indexer.k_rot, l.il).filter(|_| l.arch.name != "hy_v4");
    let [q, k] = [q, k].map(|x| rot.map_or(x, |rot| rot.mm(x)));
    l.store_k(CacheKind::Indexer, l.il, k, indexer.k_idxs);
    let k = l.get_k(CacheKind::Indexer, l.il, head, 1);
    let [q, weights] = by_stream(q, l.raw_mm("indexer.proj", x), k.ne(3));
    l.best_cells(q, k, weights.scale(), indexer.mask)
}

/// An indexer's queries and their weights, by stream.
pub(super) fn by_stream<'g>(q: Node<'g>, weights: Node<'g>, n_stream: u64) -> [Node<'g>; 2] {
    let (t, w) = (q.tensor(), weights.tensor());
    let dims = [t.ne[0], t.ne[1], t.ne[2] / n_stream, n_stream];
    let weight_dims = [w.ne[0], w.ne[1] / n_stream, w.ne[2], n_stream];
    [
        q.view(&dims, &[t.nb[1], t.nb[2], t.nb[3] / n_stream], 0),
        weights.view(&weight_dims, &[w.nb[1], w.nb[2] / n_stream, w.nb[3] / n_stream], 0),
    ]
}

impl<'g> Builder<'g> {
    /// `attention.indexer.key_length`, which an indexer has to have.
    pub(super) fn indexer_head(&self) -> u64 {
        match self.plan.caches.hparams.indexer_head_size {
            0 => {
                self.fail(self.key_error("attention.indexer.key_length", Some(0)));
                1
            }
            head => u64::from(head),
        }
    }

    /// The cells that an indexer finds best.
    pub(super) fn best_cells(&self, q: Node<'g>, k: Node<'g>, weights: Node<'g>, mask: Node<'g>) -> Node<'g> {
        let top_k = u64::from(self.plan.caches.hparams.indexer_top_k).min(k.ne(2));
        q.lightning_indexer(k, weights, mask).top_k(top_k).cont()
    }
}

impl<'g> Layer<'g> {
    /// A mask with all but the chosen cells masked out; `zeros` is the type of what opens them.
    pub(super) fn mask_of(self, mask: Node<'g>, chosen: Node<'g>, zeros: GgmlType) -> Node<'g> {
        if self.plan.fused.masks {
            let m = mask.shape();
            return self.probed(mask.top_k_mask(chosen.reshape(&[chosen.ne(0), m[1], m[2], m[3]]), &[]));
        }
        let all = mask.op(Op::Fill);
        let (t, c) = (all.tensor(), chosen.tensor());
        let all = all.view(&[1, t.ne[0], t.ne[1], t.ne[3]], &t.nb[..3], 0);
        let cells = chosen.view(&[c.ne[0], c.ne[1], c.ne[3], 1], &[c.nb[1], c.nb[2], c.ne[3] * c.nb[3]], 0);
        let zeros = self.draft.filled(zeros, &[1, c.ne[0], c.ne[1], c.ne[3]]);
        let open = all.set_rows(zeros, cells);
        let o = open.tensor();
        open.view(&[o.ne[1], o.ne[2], 1, o.ne[3]], &[o.nb[2], o.nb[3], o.nb[3]], 0) + mask
    }
}
