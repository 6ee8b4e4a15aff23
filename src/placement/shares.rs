//! `-sm tensor`: which part of every tensor each device holds.
//!
//! Source: `src/llama-model.cpp` `llama_meta_device_get_split_state`, `ggml/src/ggml-backend-meta.cpp`, llama.cpp b11434.

use crate::arch::Memory;
use crate::gguf::GgmlType;
use crate::model::Model;
use crate::model::hparams::LayerHParams;

/// How tensors are cut between devices.
pub struct Cut<'a> {
    model: &'a Model,
    /// `-ts` by device; zeros where it is not given.
    shares: Vec<f32>,
}

/// Stretches of a tensor's cut dimension: elements of one, how many follow each other, and what a cut is a multiple of.
type Segment = (u64, u64, u64);

const ATTENTION: [&str; 2] = ["attn_output.weight", "ssm_out.weight"];
const FFN: [&str; 2] = ["ffn_down.weight", "ffn_down_exps.weight"];

impl<'a> Cut<'a> {
    /// Between `n` devices; shares that are not given are 0.
    pub fn new(model: &'a Model, tensor_split: &[f32], n: usize) -> Self {
        Self { model, shares: (0..n).map(|at| tensor_split.get(at).copied().unwrap_or(0.0)).collect() }
    }

    /// The shape of each device's part of a tensor; equal to `shape` where every device has a copy.
    pub fn shapes(&self, name: &str, ty: GgmlType, shape: [u64; 4]) -> Vec<[u64; 4]> {
        let (il, rest) = located(name);
        let Some((axis, like)) = self.axis(name, rest, shape) else { return vec![shape; self.shares.len()] };
        let twin = |suffix: &&str| self.tensor(&format!("blk.{il}.{suffix}"));
        let block = like.iter().find_map(twin).map_or(ty.block_size, |tensor| tensor.ty.block_size);
        let layer = self.model.context.layers.get(il as usize).copied().unwrap_or_default();
        let rotation = if name.starts_with("blk.") || name.starts_with("cache_") {
            let alike = |other: &&LayerHParams| other.is_recr == layer.is_recr && other.is_swa == layer.is_swa;
            self.model.context.layers.iter().take(il as usize).filter(alike).count()
        } else {
            self.model.context.n_layer as usize
        };
        let mut widths = vec![0; self.shares.len()];
        for (elements, count, granularity) in self.segments(rest, il, &layer, block, shape[axis]) {
            for (width, part) in widths.iter_mut().zip(self.parts(elements, granularity, rotation)) {
                *width += part * count;
            }
        }
        let with = |width| {
            let mut own = shape;
            own[axis] = width;
            own
        };
        widths.into_iter().map(with).collect()
    }

    /// The elements of one stretch by device.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "llama.cpp rounds to f32 here"
    )]
    fn parts(&self, elements: u64, granularity: u64, rotation: usize) -> Vec<u64> {
        let n = self.shares.len();
        let shares = (0..n).map(|j| self.shares[(j + rotation) % n]);
        let sums: Vec<f32> = shares
            .scan(0.0_f32, |sum, share| {
                *sum += share;
                Some(*sum)
            })
            .collect();
        let whole = sums[n - 1];
        let mut parts = vec![0; n];
        let mut low = 0;
        for (j, sum) in sums.iter().enumerate() {
            let high = match j + 1 {
                last if last == n => elements,
                next if whole == 0.0 => elements * next as u64 / n as u64,
                _ => (elements as f32 * sum / whole) as u64,
            };
            let high = if j + 1 == n { high } else { high - high % granularity.max(1) };
            // A share of 0 behind a rounded one ends where that begins.
            parts[(j + rotation) % n] = high.saturating_sub(low);
            low = high;
        }
        parts
    }

    fn tensor(&self, name: &str) -> Option<&crate::model::Tensor> {
        self.model.tensors.iter().find(|tensor| tensor.name == name)
    }

    fn is_dsv4(&self) -> bool {
        self.model.hparams.arch().memory == Memory::Dsv4
    }

    /// The dimension that is cut, and the tensors whose quantization says how finely; `None` where every device has a copy.
    fn axis(&self, name: &str, rest: &str, shape: [u64; 4]) -> Option<(usize, &'static [&'static str])> {
        if self.model.architecture == "hrm_text" {
            return None;
        }
        if self.is_dsv4() {
            match rest {
                "cache_k" | "cache_v" | "output.weight" => return None,
                "attn_sinks.weight" => return Some((0, &["attn_output_a.weight"])),
                "attn_q_b.weight" => return Some((1, &["attn_output_a.weight"])),
                "attn_output_a.weight" => return Some((2, &[])),
                "attn_output_b.weight" => return Some((0, &[])),
                "ffn_up_shexp.weight" | "ffn_gate_shexp.weight" => return Some((1, &["ffn_down_shexp.weight"])),
                "ffn_down_shexp.weight" => return Some((0, &["ffn_down_shexp.weight"])),
                _ => {}
            }
        }
        Some(match rest {
            "attn_q.weight" | "attn_k.weight" | "attn_v.weight" | "attn_qkv.weight" | "attn_gate.weight" => {
                (1, &ATTENTION)
            }
            "attn_q.bias" | "attn_k.bias" | "attn_v.bias" | "attn_qkv.bias" => (0, &ATTENTION),
            "attn_q_norm.weight" | "attn_k_norm.weight" if shape[1] > 1 => (1, &ATTENTION[..1]),
            "cache_k" | "cache_v" | "attn_sinks.weight" => (0, &ATTENTION[..1]),
            "attn_output.weight" | "ssm_out.weight" => (0, &[]),
            "ssm_alpha.weight" | "ssm_beta.weight" | "ssm_ba.weight" | "ssm_conv1d.weight" => (1, &ATTENTION[1..]),
            "cache_r" | "cache_s" if self.model.architecture.starts_with("lfm2") => return None,
            "ssm_dt.bias" | "ssm_a" | "cache_r" | "cache_s" => (0, &ATTENTION[1..]),
            "ffn_down.weight" | "ffn_down_exps.weight" => (0, &FFN),
            _ if name == "output.weight" => (1, &[]),
            _ if name == "output.bias" => (0, &[]),
            _ => {
                let (part, ending) = rest.rsplit_once('.')?;
                let part = part.strip_suffix("_exps").unwrap_or(part);
                match (part, ending) {
                    ("ffn_up" | "ffn_gate" | "ffn_gate_up", "weight") => (1, &FFN),
                    ("ffn_up" | "ffn_gate", "bias") => (0, &FFN),
                    _ => return None,
                }
            }
        })
    }

    /// The stretches of a cut dimension: fused tensors are cut part by part, and no head and no block is cut through.
    fn segments(&self, rest: &str, il: u32, layer: &LayerHParams, block: u64, width: u64) -> Vec<Segment> {
        let number = |key: &str| self.model.hparams.u64(key).unwrap_or(0);
        let name = self.model.architecture.as_str();
        let [n_head, n_kv, head_k, head_v] =
            [layer.n_head, layer.n_head_kv, layer.n_embd_head_k, layer.n_embd_head_v].map(u64::from);
        let gates_q = matches!(name, "qwen3next" | "qwen35" | "qwen35moe" | "clef" | "qwen4exp");
        let part = rest.split('.').next().unwrap_or(rest);
        let is_ffn = part.starts_with("ffn_") && rest != "ffn_down.bias";
        if is_ffn {
            let granularity = lcm(block, 128);
            let down = || self.tensor(&format!("blk.{il}.ffn_down.weight")).map(|down| down.shape[0]);
            let is_fused = part.starts_with("ffn_gate_up") || part == "ffn_up" && down() == Some(width / 2);
            return vec![if is_fused { (width / 2, 2, granularity) } else { (width, 1, granularity) }];
        }
        if layer.is_recr {
            let (state, conv) = (number("ssm.state_size"), number("ssm.conv_kernel").saturating_sub(1));
            let (n_k, n_v) = (number("ssm.group_count"), number("ssm.time_step_rank"));
            let (key, value) = (state * n_k, state * n_v);
            let rows = lcm(lcm(block, 128), state);
            let heads = rows.checked_div(state).unwrap_or(1);
            // qwen3next keeps the values of a key together, the later ones interleave them by key.
            let (ratio, interleaved) = (n_v.checked_div(n_k).unwrap_or(1), gates_q && name != "qwen3next");
            let mixed = |scale: u64, granularity| match (interleaved, name) {
                (true, _) => vec![(key * scale, 2 + ratio, granularity)],
                (false, "qwen3next") => vec![(key * scale, 2, granularity), (value * scale, 1, granularity)],
                _ => vec![(width, 1, granularity)],
            };
            let by_head = |unit: u64, granularity| {
                vec![if interleaved { (unit, ratio, granularity) } else { (width, 1, granularity) }]
            };
            match part {
                "attn_qkv" | "ssm_conv1d" => return mixed(1, rows),
                "cache_r" => return mixed(conv, rows * conv),
                "attn_gate" | "ssm_out" => return by_head(key, rows),
                "ssm_dt" | "ssm_a" | "ssm_alpha" | "ssm_beta" => return by_head(n_k, heads),
                "ssm_ba" => return vec![(width, 1, 2 * heads)],
                "cache_s" => return by_head(n_k * state * state, rows * state),
                _ => return vec![(width, 1, 1)],
            }
        }
        let n_gqa = n_head.checked_div(n_kv).unwrap_or(0).max(1);
        let group = n_gqa * head_k;
        let mut wide = block;
        while wide < 128 && wide * (self.shares.len() as u64) < group {
            wide *= 2;
        }
        let q = lcm(group, wide);
        let heads = q.checked_div(head_k).unwrap_or(1);
        let kv = q / n_gqa;
        let v = kv.checked_div(head_k).unwrap_or(1) * head_v;
        let gated_q = if gates_q { lcm(2 * group, wide) } else { q };
        if self.is_dsv4() {
            let groups = number("attention.output_group_count").max(1);
            match part {
                "attn_sinks" => return vec![(width, 1, n_head / groups)],
                "attn_q_b" => return vec![(width, 1, n_head / groups * head_k)],
                "attn_output_b" => return vec![(width, 1, number("attention.output_lora_rank"))],
                _ => {}
            }
        }
        match part {
            "attn_sinks" => vec![(width, 1, heads)],
            "attn_q" => vec![(width, 1, gated_q)],
            "attn_output" => vec![(width, 1, heads * head_v)],
            "attn_gate" => vec![(width, 1, if width == n_head { heads } else { q })],
            "attn_k" | "cache_k" => vec![(width, 1, kv)],
            "attn_v" | "cache_v" => vec![(width, 1, v)],
            "attn_qkv" => {
                let (n_q, n_k, n_v) = (n_head * head_k * if gates_q { 2 } else { 1 }, n_kv * head_k, n_kv * head_v);
                if n_k == n_v {
                    vec![(n_q, 1, gated_q), (n_k, 2, kv)]
                } else {
                    vec![(n_q, 1, q), (n_k, 1, kv), (n_v, 1, v)]
                }
            }
            _ => vec![(width, 1, 1)],
        }
    }
}

/// The block of a tensor or of a cache's tensor (`cache_k_l7`), 0 without one, and the rest of its name.
fn located(name: &str) -> (u32, &str) {
    let of_block = || name.strip_prefix("blk.")?.split_once('.');
    let of_cache = || name.rsplit_once("_l").filter(|_| name.starts_with("cache_")).map(|(rest, il)| (il, rest));
    let found = of_block().or_else(of_cache).and_then(|(il, rest)| Some((il.parse().ok()?, rest)));
    found.unwrap_or((0, name))
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).unwrap_or(0).saturating_mul(b)
}
