//! How ik_llama.cpp splits blocks between devices: by the bytes of their weights and caches.
//!
//! Source: `src/llama.cpp` `get_layer_sizes`, `llm_load_tensors`, `src/llama-model.cpp` `llama_model::cache_size`, ik-llama-cpp-sys 0.1.7.

use std::collections::BTreeMap;

use super::{Placement, tensors};
use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::q8_0;
use crate::machine::Machine;
use crate::model::Model;
use crate::model::hparams::LayerHParams;
use crate::run::behaviour::Latent;
use crate::run::{FlashAttn, Override, RunConfig};

/// Of each device that much is kept free, unless `--fit-margin` says otherwise.
const MARGIN_MIB: u64 = 1024;

const EXPERTS: &[&str] = &["ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
const SHARED: &[&str] = &["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"];
const DENSE: &[&str] = &["ffn_gate", "ffn_up", "ffn_down"];

/// `-mla`, which is 3 where only some blocks are on devices.
pub(crate) fn mla(model: &Model, run: &RunConfig) -> u32 {
    let is_partial = (1..i64::from(model.context.n_layer_all())).contains(&i64::from(run.n_gpu_layers));
    if is_partial { 3 } else { run.rules().mla }
}

/// The elements of a cell of K and of V by block, of a model with latents: latents and positions, with `-mla 1` and no flash attention the
/// latents again; with `-mla 0` the heads' keys and values, which a file of today's llama.cpp states apart.
pub(crate) fn latents(model: &Model, run: &RunConfig) -> Vec<(u64, u64)> {
    let key = |name: &str| model.hparams.u64(name).unwrap_or(0);
    let by_head = |stated: &str, layer: &LayerHParams, plain: u32| match key(stated) {
        0 => u64::from(layer.n_head_kv) * u64::from(plain),
        head => u64::from(layer.n_head) * head,
    };
    let (rank, positions) = (key("attention.kv_lora_rank"), key("rope.dimension_count"));
    let (mla, is_plain) = (mla(model, run), run.flash_attn == FlashAttn::Off);
    let of = |layer: &LayerHParams| match mla {
        0 => (
            by_head("attention.key_length_mla", layer, layer.n_embd_head_k),
            by_head("attention.value_length_mla", layer, layer.n_embd_head_v),
        ),
        1 if is_plain => (rank + positions, rank),
        _ => (rank + positions, 0),
    };
    model.context.layers.iter().map(of).collect()
}

/// The bytes of every block and of the output, and the largest compute buffer of a block, as the fork estimates them.
struct Sizes {
    slots: Vec<f64>,
    compute: f64,
}

/// Bytes and rates fit 64-bit floats, as in the fork.
#[expect(clippy::cast_precision_loss, reason = "the fork computes in floats")]
impl Sizes {
    fn new(model: &Model, run: &RunConfig) -> Self {
        let (hparams, is_mla) = (&model.hparams, model.hparams.arch().mla);
        let (mla, most) = (mla(model, run), u64::from(run.rules().attention_mib) << 20);
        let latents = if is_mla { latents(model, run) } else { Vec::new() };
        let n_ctx = if run.n_ctx == 0 { hparams.context_length } else { run.n_ctx };
        let n_batch = if run.n_ctx == 0 { run.n_batch } else { run.n_batch.min(run.n_ctx) };
        let rows = u64::from(n_batch.min(run.n_ubatch));
        let blocks = model.context.n_layer_all();
        let mut sizes = Self { slots: Vec::new(), compute: 0.0 };
        let input = u64::from(hparams.embedding_length) * rows * 4;
        let mut by_block: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (name, tensor) in model.tensors.iter().map(|tensor| (tensors::name(&tensor.name), tensor)) {
            if let Some(il) = name.block.filter(|il| run.mtp || *il < model.context.n_layer) {
                by_block.entry(il).or_default().push((name, tensor));
            }
        }
        for il in 0..blocks {
            let tensors = by_block.remove(&il).unwrap_or_default();
            let weight = |base: &str| tensors.iter().find(|(n, _)| n.base == base && n.suffix == "weight").map(|t| t.1);
            let results = |names: &[&str], each: u64| -> u64 {
                names.iter().filter_map(|name| weight(name)).map(|tensor| tensor.shape[1] * each * 4).sum()
            };
            let used = hparams.expert_used_count.iter().copied().max().unwrap_or(0);
            let ffn = results(EXPERTS, rows * u64::from(used)).max(results(SHARED, rows)).max(results(DENSE, rows));
            let has_norm = ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "layer_output_norm"];
            let inputs = if has_norm.iter().any(|name| weight(name).is_some()) { 2 * input } else { input };
            let mut compute = (ffn + inputs) as f64;
            let mut bytes: u64 = tensors.iter().map(|(_, tensor)| tensor.bytes.0).sum();
            if is_mla {
                let both = (weight("attn_k_b"), weight("attn_v_b"));
                bytes += match (both, weight("attn_kv_b")) {
                    ((Some(k), Some(v)), None) => 2 * derived(k, v),
                    ((k, v), Some(kv)) => kv.bytes.0 / 2 * (u64::from(k.is_none()) + u64::from(v.is_none())),
                    _ => 0,
                };
                if let Some(v) = weight("attn_v_b").filter(|_| mla == 3) {
                    let all = v.shape[2] * 2 * v.shape[1] * u64::from(n_ctx) * 4;
                    let heads = heads_at_once(v.shape[2], all, most);
                    compute = compute.max(2.0 * v.shape[1] as f64 * heads as f64 * f64::from(n_ctx) * 4.0);
                }
            }
            sizes.compute = sizes.compute.max(compute);
            sizes.slots.push(bytes as f64 + cache(model, run, &latents, il, n_ctx) as f64);
        }
        let named =
            |wanted: &str| model.tensors.iter().find(|tensor| tensor.name == wanted).map(|tensor| tensor.bytes.0);
        let output = named("output.weight").or_else(|| named("token_embd.weight")).unwrap_or(0);
        let beside = ["per_layer_token_embd.weight", "per_layer_model_proj.weight", "per_layer_proj_norm.weight"];
        let output = output + beside.iter().filter_map(|name| named(name)).sum::<u64>();
        let n_outputs = run.worst_graph_tokens.filter(|n| *n > 0).map_or(rows, u64::from);
        let logits = (u64::from(hparams.vocab_size) * n_outputs * 4) as f64;
        sizes.slots.push(output as f64 + (logits - sizes.compute).max(0.0).trunc());
        sizes
    }
}

/// The type of `attn_kv_b` made of its halves (`llm_prepare_mla`).
pub(crate) fn joined(k: GgmlType, v: GgmlType) -> GgmlType {
    if k == v && matches!(k.name, "bf16" | "f16") { k } else { q8_0() }
}

/// The types of its halves made of it.
pub(crate) fn halves(whole: GgmlType) -> [GgmlType; 2] {
    [if whole.is_quantized { q8_0() } else { whole }, whole]
}

/// Weights that the fork makes of others while it loads, which none of its own sums count: bytes by the key of memory tables.
pub fn derived_weights(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: &Placement,
) -> BTreeMap<String, Bytes> {
    let mut sums = BTreeMap::new();
    let mla = mla(model, run);
    if run.rules().latent != Latent::ByFlag || !model.hparams.arch().mla {
        return sums;
    }
    let stated = model.hparams.u32_or_0("attention.value_length_mla");
    for (il, layer) in (0u32..).zip(&model.context.layers) {
        let weight = |base: &str| {
            let wanted = format!("blk.{il}.{base}.weight");
            let at = model.tensors.iter().position(|tensor| tensor.name == wanted)?;
            Some((model.tensors.get(at)?, placement.copies.get(at)?.first()?.buffer))
        };
        let row = |ty: GgmlType, width: u64, n: u64| ty.row_bytes(width).unwrap_or(0) * n;
        let (bytes, buffer) = match (weight("attn_k_b"), weight("attn_v_b"), weight("attn_kv_b")) {
            (Some((k, buffer)), Some((v, _)), None) if mla != 1 => {
                (row(joined(k.ty, v.ty), v.shape[0], (k.shape[0] + v.shape[1]) * v.shape[2]), buffer)
            }
            (None, _, Some((kv, buffer))) if mla > 0 => {
                let heads = u64::from(layer.n_head).max(1);
                let width = u64::from(if stated == 0 { layer.n_embd_head_v } else { stated });
                let [k, v] = halves(kv.ty);
                let nope = (kv.shape[1] / heads).saturating_sub(width);
                (row(k, nope, kv.shape[0] * heads) + row(v, kv.shape[0], width * heads), buffer)
            }
            _ => continue,
        };
        *sums.entry(buffer.key(machine).to_string()).or_default() += Bytes(bytes);
    }
    sums
}

/// What `get_layer_sizes` takes it for.
fn derived(k: &crate::model::Tensor, v: &crate::model::Tensor) -> u64 {
    let ty = if k.ty.is_quantized { q8_0() } else { k.ty };
    ty.row_bytes(v.shape[0]).unwrap_or(0) * (v.shape[1] + k.shape[1]) * v.shape[2]
}

/// How many of a block's heads are computed at once, where `all` of them take so much and `-amb` allows `most`; 0 is no limit.
pub(crate) fn heads_at_once(n_head: u64, all: u64, most: u64) -> u64 {
    if most == 0 || all <= most {
        return n_head;
    }
    let parts = (2..n_head).find(|parts| n_head.is_multiple_of(*parts) && all / parts <= most);
    parts.map_or(1, |parts| n_head / parts)
}

/// `llama_model::cache_size`.
fn cache(model: &Model, run: &RunConfig, latents: &[(u64, u64)], il: u32, n_ctx: u32) -> u64 {
    let Some(layer) = model.context.layers.get(il as usize) else { return 0 };
    if layer.is_recr {
        let states = run.n_parallel.unwrap_or(1).clamp(1, n_ctx.max(1));
        return (model.context.n_embd_r + model.context.n_embd_s) * u64::from(states) * 4;
    }
    let (k, v) = if model.hparams.arch().mla {
        latents.get(il as usize).copied().unwrap_or_default()
    } else {
        let heads = u64::from(layer.n_head_kv);
        (heads * u64::from(layer.n_embd_head_k), heads * u64::from(layer.n_embd_head_v))
    };
    let row = |ty: GgmlType, width: u64| ty.row_bytes(width).unwrap_or(0) * u64::from(n_ctx);
    row(run.type_k, k) + row(run.type_v, v)
}

/// The device of every slot: each takes blocks as long as the next one brings it closer to its share.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the fork rounds to f32 here")]
pub(super) fn slots(model: &Model, machine: &Machine, run: &RunConfig, devices: &[u16]) -> Vec<Option<u16>> {
    let sizes = Sizes::new(model, run);
    let blocks = sizes.slots.len() - 1;
    // A negative number is all of them.
    let wanted = usize::try_from(run.n_gpu_layers).unwrap_or(blocks + 1);
    let start = blocks.saturating_sub(wanted);
    let end = if wanted > blocks { blocks + 1 } else { blocks };
    let total: f64 = sizes.compute * devices.len() as f64 + sizes.slots[start..end].iter().sum::<f64>();
    let mut at: Vec<Option<u16>> = vec![None; blocks + 1];
    at[start..end].fill(devices.last().copied());
    let (mut last, mut loaded) = (start, 0.0_f32);
    for (device, bound) in devices.iter().zip(bounds(machine, run, devices)) {
        loaded = (f64::from(loaded) + sizes.compute) as f32;
        let share = (f64::from(bound) * total) as f32;
        while last < end {
            let with = f64::from(loaded) + sizes.slots[last];
            let is_whole = with <= f64::from(share);
            if is_whole || with - f64::from(share) < f64::from(share - loaded) {
                at[last] = Some(*device);
                loaded = with as f32;
                last += 1;
            }
            if !is_whole {
                break;
            }
        }
    }
    at
}

/// What `--fit` makes of a launch: all blocks on devices, and where they do not fit, the experts of each device's last blocks on the host, as many
/// blocks' as it takes.
#[expect(clippy::cast_precision_loss, reason = "the fork computes in floats")]
pub(crate) fn fitted(model: &Model, machine: &Machine, run: &RunConfig, devices: &[u16]) -> RunConfig {
    let mut fitted = RunConfig { n_gpu_layers: 999, fit: false, ..run.clone() };
    let sizes = Sizes::new(model, &fitted);
    let free = |at: &u16| free(machine, run, *at) as f64;
    let available: f64 = devices.iter().map(|at| (free(at) - sizes.compute).max(0.0)).sum();
    if devices.is_empty() || sizes.slots.iter().sum::<f64>() <= available {
        return fitted;
    }
    let at = if devices.len() > 1 {
        slots(model, machine, &fitted, devices)
    } else {
        vec![devices.first().copied(); sizes.slots.len()]
    };
    for device in devices {
        let own = || sizes.slots.iter().zip(&at).enumerate().filter(|(_, (_, at))| **at == Some(*device));
        let mut left: f64 = own().map(|(_, (bytes, _))| *bytes).sum();
        for (il, _) in own().filter(|(il, _)| il + 1 < sizes.slots.len()).collect::<Vec<_>>().into_iter().rev() {
            if left <= free(device) {
                break;
            }
            let is_expert = |full: &str| {
                let name = tensors::name(full);
                name.block.is_some_and(|block| block as usize == il)
                    && name.suffix == "weight"
                    && EXPERTS.contains(&name.base)
            };
            let experts = model.tensors.iter().filter(|tensor| is_expert(&tensor.name));
            let bytes: u64 = experts.map(|tensor| tensor.bytes.0).sum();
            if bytes > 0 {
                left -= bytes as f64;
                let pattern = format!(r"blk\.{il}\.(ffn_(up|down|gate|gate_up)_exps\.(weight|scale))");
                fitted.overrides.push(Override { pattern, buffer: "CPU".into(), origin: "--fit".into() });
            }
        }
    }
    fitted
}

/// What may be used of a device, in bytes.
fn free(machine: &Machine, run: &RunConfig, at: u16) -> u64 {
    let margin = run.fit_target.first().map_or(MARGIN_MIB, |mib| u64::from(*mib)) << 20;
    machine.device(at).map_or(0, |device| device.free.0.saturating_sub(margin))
}

/// Running sums of `-ts`, else of the devices' free memory less the margin, the last one 1.
#[expect(clippy::cast_precision_loss, reason = "the fork rounds to f32 here")]
fn bounds(machine: &Machine, run: &RunConfig, devices: &[u16]) -> Vec<f32> {
    super::devices::running(run, devices, |at| free(machine, run, *at) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Device, Host};
    use crate::run::{Dialect, Target};
    use crate::synth;

    /// `--fit` of ik_llama.cpp takes experts from the last blocks of each device, and no more than it must.
    #[test]
    fn fitting_takes_experts_from_the_end() {
        let model = synth::model("qwen3-30b-a3b", &synth::Wish::default()).unwrap();
        let run =
            RunConfig { n_ctx: 4096, fit: true, ..RunConfig::of(Target { dialect: Dialect::Ik, ..Target::default() }) };
        let blocks = |size: &str| {
            let machine =
                Machine::new(vec![Device::parse(&format!("CUDA0={size}")).unwrap()], Host::default()).unwrap();
            let overrides = fitted(&model, &machine, &run, &[0]).overrides;
            let block = |rule: &Override| rule.pattern.split('.').nth(1).unwrap().trim_end_matches('\\').to_string();
            overrides.iter().map(block).collect::<Vec<_>>()
        };
        assert!(blocks("24GiB").is_empty());
        let some = blocks("17GiB");
        assert!(some.first().is_some_and(|block| block == "47") && some.len() < blocks("12GiB").len(), "{some:?}");
        assert_eq!(blocks("2GiB").len(), 48);
    }
}
