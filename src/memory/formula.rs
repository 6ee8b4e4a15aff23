//! Compute buffers in closed form: the answer for architectures whose graph is not replayed.
//!
//! A graph's peak on a device is the widest of three stages that do not overlap in time (attention, feed-forward, output),
//! plus what lives through all of them (masks, the residual stream and the embedding inputs). Checked on llama.cpp b11434.

use std::collections::BTreeMap;

use super::caches::CacheKind;
use super::compute::Launch;
use super::context_hparams::LayerHParams;
use crate::bytes::Bytes;
use crate::model::Tensor;
use crate::placement::Buffer;
use crate::rules::Role;

/// Compute bytes by device name and `Host`.
pub(super) fn compute(launch: &Launch<'_>) -> BTreeMap<String, Bytes> {
    let mut by_device = BTreeMap::new();
    let mut host = launch.host_inputs();
    for (position, device) in launch.placement.devices.iter().enumerate() {
        let name = launch.machine.devices.get(usize::from(*device)).map(|d| d.name.clone());
        by_device.extend(name.map(|name| (name, Bytes(launch.on_device(*device, position == 0)))));
    }
    if launch.placement.devices.is_empty() {
        host += launch.layers_peak(|_| true, false);
    }
    by_device.insert("Host".to_string(), Bytes(host));
    by_device
}

impl Launch<'_> {
    /// Tokens of the reserved prompt, a multiple of the sequences (`graph_reserve`).
    fn n_tokens(&self) -> u64 {
        let n_seqs = self.numbers.n_seq_max.max(1);
        let n_tokens = self.numbers.n_ctx.min(self.numbers.n_ubatch);
        u64::from(n_tokens.div_ceil(n_seqs)) * u64::from(n_seqs)
    }

    fn n_outputs(&self) -> u64 {
        u64::from(self.numbers.n_ctx.min(self.numbers.n_ubatch).min(self.numbers.n_outputs_max))
    }

    /// F32 bytes of one row of `width` for every token.
    fn rows(&self, width: u64) -> u64 {
        4 * width * self.n_tokens()
    }

    fn residual(&self) -> u64 {
        self.rows(u64::from(self.model.hparams.embedding_length))
    }

    /// One mask a cache of keys: F16 with flash attention, else F32.
    fn masks(&self, holds: impl Fn(u32) -> bool) -> u64 {
        let element = if self.caches.v_trans { 4 } else { 2 };
        let keys = |kind| matches!(kind, CacheKind::Base | CacheKind::Swa | CacheKind::Indexer);
        let caches = self.caches.list.iter().filter(|c| keys(c.kind) && c.layers.iter().any(|l| holds(l.il)));
        caches.map(|c| u64::from(c.cells) * self.n_tokens() * element).sum()
    }

    /// Token ids, embeddings (as tokens, as vectors, mixed), positions and masks.
    fn host_inputs(&self) -> u64 {
        let indices = self.n_tokens() * (4 + 4 + 4 + 8 + 8 + 8) + 4 * self.n_outputs();
        4 * self.residual() + indices + self.masks(|_| true)
    }

    fn on_device(&self, device: u16, is_first: bool) -> u64 {
        let here = |il: u32| self.placement.layers.get(il as usize).copied().flatten() == Some(device);
        let output_here = self.placement.layers.last().copied().flatten() == Some(device);
        let lasting = self.masks(here) + 4 * self.residual();
        let mut peak = self.layers_peak(here, is_first);
        if output_here {
            let width = u64::from(self.model.hparams.vocab_size) + u64::from(self.model.hparams.embedding_length);
            peak = peak.max(4 * width * self.n_outputs());
        }
        if peak == 0 { 0 } else { lasting + peak }
    }

    /// The widest attention or feed-forward stage of the layers that run here.
    fn layers_peak(&self, here: impl Fn(u32) -> bool, offloads: bool) -> u64 {
        let mut peak = 0;
        for (il, layer) in (0u32..).zip(&self.caches.hparams.layers).take(self.caches.hparams.n_layer as usize) {
            if here(il) {
                peak = peak.max(self.attention(layer)).max(self.feed_forward(il, 0, 0));
            }
            if offloads && self.run.op_offload && self.n_tokens() >= 32 {
                peak = peak.max(self.offloaded(il));
            }
        }
        peak
    }

    fn attention(&self, layer: &LayerHParams) -> u64 {
        let width = |heads: u32, head: u32| u64::from(heads) * u64::from(head);
        let q = width(layer.n_head, layer.n_embd_head_k);
        let kv = width(layer.n_head_kv, layer.n_embd_head_k) + width(layer.n_head_kv, layer.n_embd_head_v);
        let cells = self.caches.list.first().map_or(0, |c| u64::from(c.cells));
        let scores = if self.caches.v_trans { self.rows(cells * u64::from(layer.n_head)) } else { 0 };
        let element = |ty: crate::gguf::GgmlType| if ty.name == "f16" { 0 } else { 2 };
        let streams = self.caches.list.first().map_or(0, |c| u64::from(c.n_stream));
        let copies = if self.caches.v_trans {
            0
        } else {
            cells
                * streams
                * (width(layer.n_head_kv, layer.n_embd_head_k) * element(self.run.type_k)
                    + width(layer.n_head_kv, layer.n_embd_head_v) * element(self.run.type_v))
        };
        self.rows(2 * q + kv) + scores + copies
    }

    /// Gate, up and their product live at once; the down rows come after, where they do not fit the hole left behind.
    fn feed_forward(&self, il: u32, e_up: u64, e_down: u64) -> u64 {
        let hparams = &self.model.hparams;
        let used = u64::from(hparams.expert_used_count.get(il as usize).copied().unwrap_or(0));
        let expert = self.tensor(il, Role::RoutedExpert, "down");
        let (f, d) = match expert {
            Some(down) => (self.rows(down.shape[0] * used), self.rows(down.shape[1] * used)),
            None => (self.rows(u64::from(hparams.feed_forward_length.get(il as usize).copied().unwrap_or(0))), 0),
        };
        let resident = 3 * f + if d > 2 * f { d } else { 0 };
        let router = self.rows(3 * u64::from(hparams.expert_count));
        let with_copies = if e_up == 0 && e_down == 0 { 0 } else { (e_up + 2 * f).max(e_down + f + d) };
        router + resident.max(with_copies)
    }

    /// The feed-forward stage with one expert tensor at a time copied from host memory.
    fn offloaded(&self, il: u32) -> u64 {
        let on_host = |tensor: &&Tensor| {
            let copies = self.placement.copies.get(self.index(tensor)).map_or(&[][..], Vec::as_slice);
            copies.iter().any(|copy| matches!(copy.buffer, Buffer::Cpu | Buffer::HostPinned))
        };
        let tensors = || self.model.tensors.iter().filter(|t| t.block == Some(il) && t.role == Role::RoutedExpert);
        let bytes = |down: bool| {
            let of_kind = tensors().filter(|t| t.name.contains("down") == down).filter(on_host);
            of_kind.map(|t| t.bytes.0).max().unwrap_or(0)
        };
        match (bytes(false), bytes(true)) {
            (0, 0) => 0,
            (up, down) => self.feed_forward(il, up, down),
        }
    }

    fn index(&self, tensor: &Tensor) -> usize {
        self.model.tensors.iter().position(|t| t.name == tensor.name).unwrap_or(usize::MAX)
    }

    fn tensor(&self, il: u32, role: Role, part: &str) -> Option<&Tensor> {
        self.model.tensors.iter().find(|t| t.block == Some(il) && t.role == role && t.name.contains(part))
    }
}
