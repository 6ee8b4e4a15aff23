//! deepseek4: a window of keys beside compressed ones, which an indexer may choose from, between hyper-connections.
//!
//! Source: `src/models/deepseek4.cpp`, `src/llama-graph.cpp` `build_inp_dsv4`, `src/llama-kv-cache-dsv4.cpp`
//! `dsv4_build_reserve_comp_plan`, llama.cpp b11434.

use super::super::attention::Extras;
use super::super::cache::{CacheInputs, rot_size};
use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::{Embeddings, i64_type};
use super::super::tensor::{Graph, Held, Id, Op, Tensor};
use super::super::{Builder, Error, Norm};
use super::hyper::Mixes;
use super::plain::{PLAIN, finish};
use crate::gguf::ggml_type::{f16, f32, i32};
use crate::memory::caches::CacheKind;
use crate::placement::Buffer;

/// Tokens of a compressed key that the indexer chooses from (`DSV4_CSA_RATIO`).
const CSA_RATIO: u32 = 4;
/// Tokens of a compressed key that is always seen (`DSV4_HCA_RATIO`).
const HCA_RATIO: u32 = 128;

/// What one compressor needs from outside (`comp_input`).
#[derive(Clone, Copy)]
struct Compressor {
    /// Its weights are `NAME_compressor_*`.
    name: &'static str,
    /// Where its keys go.
    keys: CacheKind,
    /// Where the tokens of an unfinished block are kept.
    state: CacheKind,
    /// Elements of a key.
    head: u64,
    /// Tokens a block.
    ratio: u64,
    /// A block reads the one before it too.
    overlaps: bool,
    positions: Id,
    persist: (Id, Id),
    restore: Option<(Id, Id)>,
    snapshot: Option<(Id, Id)>,
    read: Id,
    write: Id,
    write_positions: Id,
    mask: Id,
    k_rot: Option<Id>,
}

/// What attention needs from outside (`llm_graph_input_dsv4`).
#[derive(Clone, Copy)]
struct Inputs {
    positions: Id,
    window: CacheInputs,
    csa: Compressor,
    hca: Compressor,
    indexer: Compressor,
}

/// Builds the graph.
pub(super) fn build(b: &mut Builder<'_>) -> Result<(), Error> {
    let n_streams = b.hparam("hyper_connection.count")?;
    let rows = b.inp_embd(Embeddings::default())?;
    let tokens = b.graph.tensor(rows).sources().get(1).copied();
    let positions = b.inp_pos();
    let out_ids = b.inp_out_ids();
    let inputs = b.inp_dsv4(positions)?;
    b.graph.expand(inputs.window.mask);
    let (n_embd, n_tokens) = (b.n_embd, b.n_tokens);
    let rows = b.graph.reshape(rows, &[n_embd, 1, n_tokens]);
    let is_fused = b.fuses_combinations()?;
    let mut streams = b.graph.repeat(rows, &[n_embd, n_streams, n_tokens]);
    for il in 0..b.n_layer {
        let (x, post, comb) = b.read_mixed(il, "hc_attn", streams, is_fused)?;
        let x = b.norm(il, "attn_norm", x, Norm::Rms)?;
        let x = attention(b, il, x, &inputs)?;
        streams = b.write_mixed(x, streams, post, comb);
        let (x, post, comb) = b.read_mixed(il, "hc_ffn", streams, is_fused)?;
        b.graph.expand_all(&[streams, post, comb]);
        let x = b.norm(il, "ffn_norm", x, Norm::Rms)?;
        let x = experts(b, il, x, tokens)?;
        streams = b.write_mixed(x, streams, post, comb);
    }
    let flat = b.graph.reshape(streams, &[n_embd * n_streams, n_tokens]);
    let flat = b.graph.get_rows(flat, out_ids);
    let n_outputs = b.plan.batch.n_outputs;
    let streams = b.graph.reshape(flat, &[n_embd, n_streams, n_outputs]);
    let pre = b.head_weights(streams)?;
    let rows = b.weigh_streams(streams, pre);
    finish(b, &PLAIN, rows, out_ids)
}

/// The experts, which the first layers look up by token, and the shared one.
fn experts(b: &mut Builder<'_>, il: u32, x: Id, tokens: Option<Id>) -> Result<Id, Error> {
    let is_hashed = il < b.hparams().u32_or_0("hash_layer_count");
    let selected = match tokens.filter(|_| is_hashed) {
        Some(tokens) => {
            let table = b.weight(il, "ffn_gate_tid2eid.weight")?;
            Some(b.graph.get_rows(table, tokens))
        }
        None => None,
    };
    let moe = Moe {
        gating: Gating::SqrtSoftplus,
        norm_w: b.flag("expert_weights_norm"),
        scaled: b.expert_weights_scaled(),
        selected,
        ..Moe::default()
    };
    let routed = b.moe(il, x, &moe)?;
    let shared = b.ffn(il, "_shexp", x, Act::Silu)?;
    Ok(b.graph.add(routed, shared))
}

/// A layer's attention (`build_attention_impl`).
fn attention(b: &mut Builder<'_>, il: u32, x: Id, inputs: &Inputs) -> Result<Id, Error> {
    let layer = b.layer(il)?;
    let (head, n_head, n_tokens) = (u64::from(layer.n_embd_head_k), u64::from(layer.n_head), b.n_tokens);
    let low = b.raw_mm(il, "attn_q_a", x)?;
    let low = b.norm(il, "attn_q_a_norm", low, Norm::Rms)?;
    let q = b.raw_mm(il, "attn_q_b", low)?;
    let q = b.graph.reshape(q, &[head, n_head, n_tokens]);
    let q = b.rms(q);
    let q = b.graph.rope(q, inputs.positions, None);
    let kv = b.raw_mm(il, "attn_kv", x)?;
    let kv = b.norm(il, "attn_kv_a_norm", kv, Norm::Rms)?;
    let kv = b.graph.reshape(kv, &[head, 1, n_tokens]);
    let kv = b.graph.rope(kv, inputs.positions, None);
    let compressed = match layer.compress_ratio {
        CSA_RATIO => {
            b.compress(il, x, &inputs.csa)?;
            b.compress(il, x, &inputs.indexer)?;
            let chosen = b.choose(il, low, x, inputs)?;
            Some((inputs.csa, Some(chosen)))
        }
        HCA_RATIO => {
            b.compress(il, x, &inputs.hca)?;
            Some((inputs.hca, None))
        }
        _ => None,
    };
    let rows = b.attend(il, inputs.window, (q, kv), compressed)?;
    let rows = b.graph.reshape(rows, &[head, n_head, n_tokens]);
    let rows = b.graph.rope(rows, inputs.positions, None);
    let (n_groups, rank) = (b.hparam("attention.output_group_count")?, b.hparam("attention.output_lora_rank")?);
    let width = head * n_head / n_groups;
    let rows = b.graph.reshape(rows, &[width, n_groups, n_tokens]);
    let rows = b.graph.permute(rows, [0, 2, 1, 3]);
    let by_group = b.weight_as(il, "attn_output_a.weight", [width, rank, n_groups, 1])?;
    let low = b.graph.mul_mat(by_group, rows);
    let low = b.graph.permute(low, [0, 2, 1, 3]);
    let low = b.graph.cont_nd(low, &[rank * n_groups, n_tokens]);
    b.raw_mm(il, "attn_output_b", low)
}

impl Builder<'_> {
    fn inp_dsv4(&mut self, positions: Id) -> Result<Inputs, Error> {
        let kind = CacheKind::Swa;
        let k_idxs = self.inp_k_idxs();
        let mask = self.inp_mask_by_sequence(kind, self.plan.flash_attn)?;
        let (k_rot, _) = self.inp_rot(kind)?;
        let window = CacheInputs { kind, k_idxs, v_idxs: None, mask, k_rot, v_rot: None };
        let csa = self.inp_compressor("attn", CacheKind::Csa, CacheKind::CsaState, CSA_RATIO)?;
        let hca = self.inp_compressor("attn", CacheKind::Hca, CacheKind::HcaState, HCA_RATIO)?;
        let indexer = self.inp_compressor("indexer", CacheKind::Indexer, CacheKind::IndexerState, CSA_RATIO)?;
        Ok(Inputs { positions, window, csa, hca, indexer })
    }

    /// A row of cells by token; every sequence has a stream of its own, unified cache or not.
    fn inp_mask_by_sequence(&mut self, kind: CacheKind, is_f16: bool) -> Result<Id, Error> {
        let (cells, n_seqs) = (self.cells(kind)?, self.plan.batch.n_seqs);
        let ty = if is_f16 { f16() } else { f32() };
        Ok(self.graph.input(ty, &[cells, self.n_tokens / n_seqs, 1, n_seqs]))
    }

    /// The most that a batch of this size makes the compressor do.
    fn inp_compressor(
        &mut self,
        name: &'static str,
        keys: CacheKind,
        state: CacheKind,
        ratio: u32,
    ) -> Result<Compressor, Error> {
        let (is_indexer, overlaps, ratio) = (keys == CacheKind::Indexer, ratio == CSA_RATIO, u64::from(ratio));
        let n_tokens = self.n_tokens;
        let n_blocks = n_tokens / ratio + self.plan.batch.n_seqs;
        let (n_rows, n_snapshots) = self.state_rows(state)?;
        let n_persist = n_tokens.min(n_rows);
        let n_read = if overlaps { 2 * ratio * n_blocks } else { ratio * n_blocks };
        let mask = self.inp_mask_by_sequence(keys, is_indexer || self.plan.flash_attn)?;
        let hparams = &self.plan.caches.hparams;
        let head = u64::from(if is_indexer { hparams.indexer_head_size } else { self.layer(0)?.n_embd_head_k });
        let k_rot = self.inp_rot_of(keys, head)?;
        let mut rows = |n: u64| self.graph.input(i32(), &[n]);
        let positions = rows(n_tokens);
        let persist = (rows(n_persist), rows(n_persist));
        let restore = (n_snapshots > 0).then(|| (rows(n_rows), rows(n_rows)));
        let snapshot = (n_snapshots > 0).then(|| (rows(n_snapshots * n_rows), rows(n_snapshots * n_rows)));
        let (read, write_positions) = (rows(n_read), rows(n_blocks));
        let write = self.graph.input(i64_type(), &[n_blocks]);
        Ok(Compressor {
            name,
            keys,
            state,
            head,
            ratio,
            overlaps,
            positions,
            persist,
            restore,
            snapshot,
            read,
            write,
            write_positions,
            mask,
            k_rot,
        })
    }

    /// The Hadamard matrix of compressed keys: of quantized ones, and of the indexer's always.
    fn inp_rot_of(&mut self, keys: CacheKind, head: u64) -> Result<Option<Id>, Error> {
        let full = u64::from(self.layer(0)?.n_embd_head_k);
        let indexer = self.indexer_head()?;
        let cache = self.cache(keys)?;
        let is_indexers = keys == CacheKind::Indexer || full == indexer;
        if cache.layers.is_empty() || !(is_indexers || (cache.type_k.is_quantized && head.is_multiple_of(64))) {
            return Ok(None);
        }
        let n = rot_size(head);
        Ok(Some(self.graph.input(f32(), &[n, n])))
    }

    /// Rows of a compressor's state, and how many older versions of them are kept.
    fn state_rows(&self, state: CacheKind) -> Result<(u64, u64), Error> {
        let n_seq_max = u64::from(self.plan.numbers.n_seq_max.max(1));
        let cache = self.cache(state)?;
        let versions = u64::from(cache.n_stream) / n_seq_max;
        Ok((u64::from(cache.cells) * n_seq_max, versions - 1))
    }

    /// All rows of a compressor's state: keys, or scores (`get_kv_all`, `get_score_all`).
    fn state_view(&mut self, il: u32, state: CacheKind, is_score: bool) -> Result<Id, Error> {
        let tensor = if is_score { self.values(state, il)? } else { self.kv_tensors(state, il)?.k };
        let Tensor { ne, nb, .. } = *self.graph.tensor(tensor);
        Ok(self.graph.view(tensor, &[ne[0], ne[1] * ne[2]], &[nb[1]], 0))
    }

    /// A weight in the shape that it is read as, whichever shape the file gives it.
    fn weight_as(&mut self, il: u32, name: &str, ne: [u64; 4]) -> Result<Id, Error> {
        let id = self.weight(il, name)?;
        if self.graph.tensor(id).elements() != ne.iter().product::<u64>() {
            return Ok(self.graph.refuse("a product by groups", &[id]));
        }
        let weight = &mut self.graph.tensors[id.index()];
        (weight.ne, weight.nb) = (ne, Tensor::new(weight.ty, ne).nb);
        Ok(id)
    }

    /// Compresses finished blocks to keys, and keeps what is left for the next batch.
    fn compress(&mut self, il: u32, x: Id, c: &Compressor) -> Result<(), Error> {
        let kv = self.raw_mm(il, &format!("{}_compressor_kv", c.name), x)?;
        let score = self.raw_mm(il, &format!("{}_compressor_gate", c.name), x)?;
        let table = self.weight(il, &format!("{}_compressor_ape.weight", c.name))?;
        let by_position = self.graph.get_rows(table, c.positions);
        let score = self.graph.add(score, by_position);
        let (n_rows, _) = self.state_rows(c.state)?;
        let mut restored = [self.state_view(il, c.state, false)?, self.state_view(il, c.state, true)?];
        if let Some((from, to)) = c.restore {
            for (is_score, rows) in [false, true].into_iter().zip(&mut restored) {
                let older = self.graph.get_rows(*rows, from);
                let all = self.state_view(il, c.state, is_score)?;
                *rows = self.graph.set_rows(all, older, to);
            }
        }
        let [kv_source, score_source] = [(restored[0], kv), (restored[1], score)].map(|(rows, new)| {
            let Tensor { ne, nb, .. } = *self.graph.tensor(rows);
            let current = self.graph.view(rows, &[ne[0], n_rows], &[nb[1]], 0);
            self.graph.concat(current, new, 1)
        });
        let values = self.blocks(c, kv_source);
        let scores = self.blocks(c, score_source);
        let weights = self.graph.soft_max(scores, None);
        let keys = self.graph.mul(values, weights);
        let keys = self.graph.sum_rows(keys);
        let keys = self.graph.permute(keys, [1, 0, 2, 3]);
        let keys = self.graph.cont(keys);
        let keys = self.norm(il, &format!("{}_compressor_norm", c.name), keys, Norm::Rms)?;
        let mut keys = self.graph.rope(keys, c.write_positions, None);
        if let Some(rot) = c.k_rot {
            keys = self.hadamard(keys, rot);
        }
        let stored = self.cpy_k(c.keys, il, keys, c.write)?;
        self.graph.expand(stored);
        if let Some(rows) = c.snapshot {
            let sources = [(restored[0], kv), (restored[1], score)].map(|(old, new)| self.graph.concat(old, new, 1));
            self.keep(il, c.state, sources, rows)?;
        }
        self.keep(il, c.state, [kv, score], c.persist)
    }

    /// Copies rows of keys and scores to a compressor's state.
    fn keep(&mut self, il: u32, state: CacheKind, sources: [Id; 2], (from, to): (Id, Id)) -> Result<(), Error> {
        let mut kept = |is_score: bool| {
            let rows = self.graph.get_rows(sources[usize::from(is_score)], from);
            let all = self.state_view(il, state, is_score)?;
            Ok(self.graph.set_rows(all, rows, to))
        };
        let kept = [kept(false)?, kept(true)?];
        self.graph.expand_all(&kept);
        Ok(())
    }

    /// The rows that each block reads, by element (`build_*_compressed_kv_from_state`).
    fn blocks(&mut self, c: &Compressor, mut source: Id) -> Id {
        let n_blocks = self.ne(c.write_positions, 0);
        let shape = [c.head, c.ratio, n_blocks];
        let blocks = if c.overlaps {
            let width = self.ne(source, 0);
            let row = self.graph.view(source, &[width], &[], 0);
            let row = self.graph.scale(row);
            let row = self.graph.reshape(row, &[width, 1]);
            source = self.graph.concat(source, row, 1);
            let rows = self.graph.get_rows(source, c.read);
            let (n_read, stride) = (c.ratio * n_blocks, self.nb(rows, 1));
            let [before, current] = [0, n_read * stride + 4 * c.head].map(|offset| {
                let part = self.graph.view(rows, &[c.head, n_read], &[stride], offset);
                let part = self.graph.cont(part);
                self.graph.reshape(part, &shape)
            });
            self.graph.concat(before, current, 1)
        } else {
            let rows = self.graph.get_rows(source, c.read);
            self.graph.reshape(rows, &shape)
        };
        let by_element = self.graph.permute(blocks, [1, 0, 2, 3]);
        self.graph.cont(by_element)
    }

    /// The compressed keys that each token should see (`build_lid_top_k`).
    fn choose(&mut self, il: u32, low: Id, x: Id, inputs: &Inputs) -> Result<Id, Error> {
        let Compressor { head, mask, k_rot, .. } = inputs.indexer;
        let n_head = self.hparam("attention.indexer.head_count")?;
        let q = self.raw_mm(il, "indexer.attn_q_b", low)?;
        let q = self.graph.reshape(q, &[head, n_head, self.n_tokens]);
        let mut q = self.graph.rope(q, inputs.positions, None);
        if let Some(rot) = k_rot {
            q = self.hadamard(q, rot);
        }
        let weights = self.raw_mm(il, "indexer.proj", x)?;
        let weights = self.graph.scale(weights);
        let k = self.compressed_keys(il, &inputs.indexer)?;
        let n_stream = self.ne(k, 3);
        let t = *self.graph.tensor(q);
        let dims = [t.ne[0], t.ne[1], t.ne[2] / n_stream, n_stream];
        let q = self.graph.view(q, &dims, &[t.nb[1], t.nb[2], t.nb[3] / n_stream], 0);
        let t = *self.graph.tensor(weights);
        let dims = [t.ne[0], t.ne[1] / n_stream, t.ne[2], n_stream];
        let weights = self.graph.view(weights, &dims, &[t.nb[1], t.nb[2] / n_stream, t.nb[3] / n_stream], 0);
        let scores = self.graph.lightning_indexer(q, k, weights, mask);
        let top_k = u64::from(self.plan.caches.hparams.indexer_top_k).min(self.ne(k, 2));
        let best = self.graph.top_k(scores, top_k);
        Ok(self.graph.cont(best))
    }

    /// A layer's compressed keys: a view of a view.
    fn compressed_keys(&mut self, il: u32, c: &Compressor) -> Result<Id, Error> {
        let k = self.get_k(c.keys, il, c.head, 1)?;
        let t = *self.graph.tensor(k);
        Ok(self.graph.view(k, &t.ne, &t.nb[1..], 0))
    }

    /// Attention to the window, and to compressed keys behind it: all, or the chosen ones.
    fn attend(
        &mut self,
        il: u32,
        window: CacheInputs,
        (mut q, mut kv): (Id, Id),
        compressed: Option<(Compressor, Option<Id>)>,
    ) -> Result<Id, Error> {
        if let Some(rot) = window.k_rot {
            q = self.hadamard(q, rot);
            kv = self.hadamard(kv, rot);
        }
        self.graph.expand_all(&[q, kv]);
        let stored = self.cpy_k(window.kind, il, kv, window.k_idxs)?;
        self.graph.expand(stored);
        let (mut k, mut mask) =
            (self.get_k(window.kind, il, u64::from(self.layer(il)?.n_embd_head_k), 1)?, window.mask);
        if let Some((c, chosen)) = compressed {
            let more = self.compressed_keys(il, &c)?;
            k = self.graph.concat(k, more, 2);
            let zeros = if self.plan.flash_attn { f16() } else { f32() };
            let seen = chosen.map_or(c.mask, |chosen| self.mask_of(c.mask, chosen, zeros));
            mask = self.graph.concat(mask, seen, 0);
        }
        let sinks = self.maybe_weight(il, "attn_sinks.weight");
        let rows = self.mha(il, q, k, k, mask, Extras { sinks, ..Extras::default() });
        Ok(match window.k_rot {
            Some(rot) => self.hadamard(rows, rot),
            None => rows,
        })
    }

    /// The layer's input, how much each stream takes of its output, and how streams mix (`build_hc_pre`).
    pub(super) fn read_mixed(
        &mut self,
        il: u32,
        name: &str,
        streams: Id,
        is_fused: bool,
    ) -> Result<(Id, Id, Id), Error> {
        let mixed = self.mixes(il, name, streams)?;
        let comb = if is_fused {
            self.graph.hc_comb(mixed.rows, mixed.scale, mixed.base)
        } else {
            let n_streams = self.ne(streams, 1);
            self.combination(&mixed, n_streams)?
        };
        let x = self.graph.hc_pre(streams, mixed.pre);
        Ok((x, mixed.post, comb))
    }

    /// Whether each layer's streams are combined in one operation: not where a weight of it lies away from its layer,
    /// unless the probe has rows enough for that to be undone (`resolve_fused_ops`, `GGML_OP_OFFLOAD_MIN_BATCH`).
    pub(super) fn fuses_combinations(&mut self) -> Result<bool, Error> {
        let n_streams = self.hparam("hyper_connection.count")?;
        let is_offloaded = n_streams * u64::from(self.plan.numbers.n_seq_max) >= 32;
        for il in 0..self.n_layer {
            let home = self.plan.placement.layers.get(il as usize).copied().flatten();
            for name in ["hc_attn_scale.weight", "hc_ffn_scale.weight"] {
                let weight = self.weight(il, name)?;
                let is_home = match self.graph.held(weight) {
                    Held::Weight(Buffer::Device(device)) => home == Some(device),
                    _ => home.is_none() || is_offloaded,
                };
                if !is_home {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// How streams mix, step by step (`build_hc_sinkhorn`).
    fn combination(&mut self, mixed: &Mixes, n: u64) -> Result<Id, Error> {
        let (n_tokens, stride) = (self.ne(mixed.rows, 1), self.nb(mixed.rows, 1));
        let part = self.graph.view(mixed.rows, &[n * n, n_tokens], &[stride], 8 * n);
        let scale = self.graph.view(mixed.scale, &[1], &[], 8);
        let base = self.graph.view(mixed.base, &[n * n], &[], 8 * n);
        let part = self.graph.mul(part, scale);
        let part = self.graph.add(part, base);
        let part = self.graph.reshape(part, &[n, n, n_tokens]);
        let part = self.graph.soft_max(part, None);
        let eps = self.graph.new_tensor(f32(), &[1]);
        let eps = self.graph.like(Op::Fill, &[eps]);
        let mut comb = self.graph.add(part, eps);
        for i in 0..self.hparam("hyper_connection.sinkhorn_iterations")? {
            if i > 0 {
                let rows = self.graph.sum_rows(comb);
                let rows = self.graph.add(rows, eps);
                comb = self.graph.div(comb, rows);
            }
            let turned = self.graph.permute(comb, [1, 0, 2, 3]);
            let turned = self.graph.cont(turned);
            let columns = self.graph.sum_rows(turned);
            let columns = self.graph.add(columns, eps);
            let columns = self.graph.permute(columns, [1, 0, 2, 3]);
            comb = self.graph.div(comb, columns);
        }
        Ok(comb)
    }

    /// The streams after a layer's output (`build_hc_post`).
    pub(super) fn write_mixed(&mut self, x: Id, streams: Id, post: Id, comb: Id) -> Id {
        self.graph.hc_post(x, streams, post, Some(comb))
    }

    /// The sum of the streams by weight, outside of layers (`build_hc_pre` without its operation).
    fn weigh_streams(&mut self, streams: Id, by: Id) -> Id {
        let t = *self.graph.tensor(streams);
        let stride = self.nb(by, 1);
        let weighed = |graph: &mut Graph, i: u64| {
            let stream = graph.view(streams, &[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1]);
            let weight = graph.view(by, &[1, t.ne[2]], &[stride], 4 * i);
            graph.mul(stream, weight)
        };
        let mut sum = weighed(&mut self.graph, 0);
        for i in 1..t.ne[1] {
            let part = weighed(&mut self.graph, i);
            sum = self.graph.add(sum, part);
        }
        sum
    }
}
