//! Context bytes: what the caches take on each device, what llama.cpp refuses, and what one more token costs.
//!
//! Source: `src/llama-kv-cache.cpp`, `src/llama-context.cpp` `llama_init_from_model`, llama.cpp b11434.

use std::collections::BTreeMap;

use serde::Serialize;

use super::caches::{self, Cache, CacheLayer, Caches};
use super::{Error, HOST, Uncounted};
use crate::arch::Memory;
use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::machine::{Backend, Machine};
use crate::model::Model;
use crate::placement::Placement;
use crate::run::numbers::{ContextNumbers, numbers};
use crate::run::{FlashAttn, RunConfig, SplitMode};

/// The most context of a device: 64 PiB, so that no sum over a memory table passes 64 bits.
const MOST: Bytes = Bytes(1 << 56);

/// llama.cpp's `LLAMA_MAX_SEQ` (`src/llama-cparams.h`, b11434).
pub const MAX_SEQUENCES: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTensor {
    pub ty: GgmlType,
    /// Row width, cells, streams, 1.
    pub shape: [u64; 4],
    /// Exact bytes, before a buffer's padding.
    pub bytes: Bytes,
}

impl Cache {
    /// The tensors of `layer` in this cache; an error where a row is no whole number of blocks.
    pub fn tensors(&self, layer: &CacheLayer) -> Result<Vec<CacheTensor>, Error> {
        let two = [(self.type_k, layer.n_embd_k), (self.type_v, layer.n_embd_v)];
        let stored = two.into_iter().filter(|(_, width)| *width > 0);
        let tensor = |(ty, width): (GgmlType, u64)| {
            let row = ty.row_bytes(width).ok_or(Error::CacheRow { ty, width, il: layer.il, block: ty.block_size })?;
            let (cells, streams) = (u64::from(self.cells), u64::from(self.n_stream));
            let bytes = row.checked_mul(cells).and_then(|n| n.checked_mul(streams)).ok_or(Error::TooLarge)?;
            Ok(CacheTensor { ty, shape: [width, cells, streams, 1], bytes: Bytes(bytes) })
        };
        let mut tensors: Vec<CacheTensor> = stored.map(tensor).collect::<Result<_, Error>>()?;
        // Only the length of a row matters to a buffer, which may pad it.
        for (tensor, row) in tensors.iter_mut().zip([layer.row, layer.row.map(|_| 0)]) {
            tensor.shape[0] = row.unwrap_or(tensor.shape[0]);
        }
        Ok(tensors)
    }

    /// All layers, before padding; a layer that llama.cpp refuses counts nothing.
    pub fn bytes(&self) -> u64 {
        let tensors = self.layers.iter().filter_map(|layer| self.tensors(layer).ok()).flatten();
        tensors.map(|tensor| tensor.bytes.0).sum()
    }
}

/// Refuses what llama.cpp refuses when it creates a context (`src/llama-context.cpp`, b11434).
pub fn check(caches: &Caches, model: &Model, run: &RunConfig, numbers: &ContextNumbers) -> Result<(), Error> {
    if numbers.n_seq_max > MAX_SEQUENCES {
        return Err(Error::TooManySequences { n_seq_max: numbers.n_seq_max });
    }
    if numbers.n_batch == 0 || numbers.n_ctx == 0 {
        return Err(Error::NoContext);
    }
    if run.split_mode == SplitMode::Tensor && run.flash_attn == FlashAttn::Off {
        return Err(Error::TensorSplitWithoutFlash);
    }
    let (type_k, type_v) = (run.type_k, run.type_v);
    if (caches.hparams.is_mla || model.hparams.arch().memory == Memory::Dsv4) && type_k != type_v {
        return Err(Error::DifferentTypes { architecture: model.hparams.architecture.clone(), type_k, type_v });
    }
    if type_v.is_quantized && caches.v_trans {
        return Err(Error::QuantizedV { type_v });
    }
    if caches.v_trans {
        return Ok(());
    }
    let trunk = caches.hparams.layers.iter().take(caches.hparams.n_layer as usize);
    for layer in trunk {
        for (cache, ty, head) in [("K", type_k, layer.n_embd_head_k), ("V", type_v, layer.n_embd_head_v)] {
            if ty.is_quantized && !u64::from(head).is_multiple_of(ty.block_size) {
                return Err(Error::HeadBlock { cache, ty, head, block: ty.block_size });
            }
        }
    }
    Ok(())
}

/// Context bytes by memory-table key, for the devices that hold any: each tensor padded to its buffer's alignment.
/// A layer's caches follow the layer's slot, or stay on the host with `-nkvo`; overrides never move them.
pub fn bytes_by_device(
    caches: &Caches,
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    placement: &Placement,
) -> Result<BTreeMap<String, Bytes>, Error> {
    let mut by_device = BTreeMap::new();
    let mut add = |key: &str, bytes: Bytes| {
        let sum: &mut Bytes = by_device.entry(key.to_string()).or_default();
        if bytes > MOST || *sum > MOST {
            return Err(Error::TooLarge);
        }
        *sum += bytes;
        Ok(())
    };
    let rotates = run.rules().rotations_cached;
    for cache in &caches.list {
        let sides = if rotates { cache.rotations(&caches.hparams, model.hparams.arch()) } else { [None; 2] };
        for layer in &cache.layers {
            let slot = placement.layers.get(layer.il as usize).copied().flatten().filter(|_| run.offload_kqv);
            let device = slot.and_then(|i| machine.device(i));
            let backend = device.map_or(Backend::Cpu, |d| d.backend);
            let key = device.map_or(HOST, |d| d.name.as_str());
            let cut = slot.and_then(|slot| placement.cut(model, slot));
            for side in sides.into_iter().zip([layer.n_embd_k, layer.n_embd_v]).filter(|(_, width)| *width > 0) {
                let bytes = Bytes(side.0.map_or(0, |side| 4 * side * side));
                add(key, bytes.padded(backend.alignment()))?;
            }
            for (tensor, name) in cache.tensors(layer)?.into_iter().zip(cache.kind.tensor_names()) {
                if let Some((devices, cut)) = &cut {
                    let shapes = cut.shapes(&format!("{name}_l{}", layer.il), tensor.ty, tensor.shape);
                    for (device, shape) in devices.iter().filter_map(|at| machine.device(*at)).zip(shapes) {
                        add(&device.name, device.backend.tensor_bytes(tensor.ty, shape))?;
                    }
                    continue;
                }
                add(key, backend.alloc_size(tensor.ty, tensor.shape, tensor.bytes).padded(backend.alignment()))?;
            }
        }
    }
    Ok(by_device)
}

/// What a model's context costs at `-np 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContextPerToken {
    /// What one more token of `-c` adds, rounded up (deepseek4's compressed caches grow by a fraction of a cell).
    pub per_token: Bytes,
    /// Windows and states, which do not grow, at the default micro-batch.
    pub fixed: Bytes,
}

/// The context of `model` with `cache_type` for K and V and one sequence; an error where llama.cpp refuses the type or the
/// keys, or does not know the architecture.
pub fn per_token(model: &Model, cache_type: GgmlType) -> Result<ContextPerToken, Error> {
    let run = RunConfig {
        type_k: cache_type,
        type_v: cache_type,
        n_parallel: Some(1),
        // Long enough that every window is at its full width, whatever the model was trained on.
        n_ctx: 1 << 24,
        ..RunConfig::default()
    };
    if let Some(Uncounted { what, reason }) =
        Uncounted::of(model, run.target).into_iter().find(|term| term.what == "context")
    {
        return Err(Error::Uncounted { what, reason });
    }
    let numbers = numbers(&run, &model.hparams);
    let caches = caches::caches(model, &run, &numbers);
    check(&caches, model, &run, &numbers)?;
    // In 1/128 of a byte, since 128 tokens are the most that share a cell.
    let (mut growing, mut fixed) = (0u128, Bytes(0));
    for cache in &caches.list {
        for layer in &cache.layers {
            for tensor in cache.tensors(layer)? {
                match cache.tokens_per_cell {
                    Some(tokens) => {
                        growing += u128::from(tensor.bytes.0 / u64::from(cache.cells)) * 128 / u128::from(tokens);
                    }
                    None => fixed = fixed.checked_add(tensor.bytes).ok_or(Error::TooLarge)?,
                }
            }
        }
    }
    let per_token = u64::try_from(growing.div_ceil(128)).map_err(|_| Error::TooLarge)?;
    Ok(ContextPerToken { per_token: Bytes(per_token), fixed })
}

/// One cache in words: `base 8192 cells × 1, 48 layers, K f16, V f16`.
pub fn describe(cache: &Cache) -> String {
    let Cache { kind, cells, n_stream, type_k, type_v, layers, .. } = cache;
    let n = layers.len();
    let types = match layers.first() {
        Some(layer) if layer.n_embd_v == 0 => format!("{type_k}"),
        _ => format!("{type_k}/{type_v}"),
    };
    format!("{kind}: {cells} cells × {n_stream}, {n} layers, {types}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::ggml_type;
    use crate::machine::{Device, Host, Isa};
    use crate::memory::caches::tests::model;

    const KEYS: &str = "block_count=4 attention.head_count=8 attention.head_count_kv=2";

    fn ty(name: &str) -> GgmlType {
        GgmlType::from_name(name).expect("a type")
    }

    fn run() -> RunConfig {
        RunConfig { n_ctx: 4096, n_parallel: Some(1), ..RunConfig::default() }
    }

    fn refusal(model: &Model, run: &RunConfig) -> Option<String> {
        let numbers = numbers(run, &model.hparams);
        check(&caches::caches(model, run, &numbers), model, run, &numbers).err().map(|e| e.to_string())
    }

    #[test]
    fn caches_follow_their_layers_or_stay_on_the_host() {
        let device = |name: &str, backend| Device::new(name.to_string(), backend, Bytes::mib(1024));
        let machine = Machine {
            devices: vec![device("CUDA0", Backend::Cuda), device("Vulkan0", Backend::Vulkan)],
            host: Host { isa: Isa::Generic, ..Host::default() },
        };
        let placement = Placement {
            copies: Vec::new(),
            layers: vec![None, Some(0), Some(0), Some(1), Some(1)],
            devices: vec![0, 1],
            is_mapped: false,
            shares: None,
        };
        let bytes = |run: &RunConfig| {
            let model = model("llama", KEYS);
            let caches = caches::caches(&model, run, &numbers(run, &model.hparams));
            bytes_by_device(&caches, &model, &machine, run, &placement).expect("a context")
        };
        // A layer: 2 heads of 64 elements, 2 bytes each, K and V, 4096 cells.
        let mib = |n: u64| Bytes::mib(n);
        let keys =
            |pairs: &[(&str, Bytes)]| pairs.iter().map(|(k, b)| ((*k).to_string(), *b)).collect::<BTreeMap<_, _>>();
        assert_eq!(bytes(&run()), keys(&[("Host", mib(2)), ("CUDA0", mib(4)), ("Vulkan0", mib(2))]));
        assert_eq!(bytes(&RunConfig { offload_kqv: false, ..run() }), keys(&[("Host", mib(8))]));
        // On CUDA each quantized tensor gets the rest of a row of 512 elements: 12 blocks of 34 bytes, then padding to 128.
        let quantized = RunConfig { type_k: ty("q8_0"), type_v: ty("q8_0"), ..run() };
        let exact = 2 * 4096 * 136;
        let cuda = 4 * (4096 * 136 + 512);
        let rows = [("Host", Bytes(exact)), ("CUDA0", Bytes(cuda)), ("Vulkan0", Bytes(exact))];
        assert_eq!(bytes(&quantized), keys(&rows));
    }

    #[test]
    fn what_llama_cpp_refuses_is_refused_in_words() {
        let plain = model("llama", KEYS);
        let mla = model(
            "deepseek2",
            "block_count=1 attention.head_count=8 attention.key_length_mla=192 attention.value_length_mla=128",
        );
        let odd = model("llama", "block_count=1 attention.head_count=8 attention.key_length=80");
        let off = RunConfig { flash_attn: FlashAttn::Off, ..run() };
        let q8 = |run: RunConfig| RunConfig { type_k: ty("q8_0"), type_v: ty("q8_0"), ..run };
        for (model, run, said) in [
            (&plain, run(), None),
            (&plain, q8(run()), None),
            (&plain, q8(off.clone()), Some("-ctv q8_0 without flash attention")),
            (&plain, RunConfig { type_k: ty("q8_0"), ..off }, None),
            (&mla, RunConfig { type_k: ty("q8_0"), ..run() }, Some("-ctk q8_0 with -ctv f16 for deepseek2")),
            (&mla, q8(run()), None),
            (&odd, q8(run()), Some("q8_0 for the K cache: its blocks of 32 do not divide this model's head size 80")),
            (&plain, RunConfig { n_parallel: Some(257), ..run() }, Some("-np 257")),
            (&plain, RunConfig { n_batch: 0, ..run() }, Some("0 tokens")),
        ] {
            let found = refusal(model, &run);
            assert_eq!(found.is_some(), said.is_some(), "{found:?}, not {said:?}");
            assert!(found.as_deref().unwrap_or_default().contains(said.unwrap_or_default()), "{found:?}, not {said:?}");
        }
    }

    #[test]
    fn one_more_token() {
        let cost = |architecture, keys, cache_type| per_token(&model(architecture, keys), cache_type).expect("a cost");
        let plain = cost("llama", KEYS, ggml_type::f16());
        assert_eq!(plain, ContextPerToken { per_token: Bytes(4 * 2 * 128 * 2), fixed: Bytes(0) });
        assert_eq!(cost("llama", KEYS, ty("q8_0")).per_token, Bytes(4 * 2 * 136));
        let windowed = format!("{KEYS} attention.sliding_window=128");
        let windowed = cost("gpt-oss", &windowed, ggml_type::f16());
        assert_eq!(windowed, ContextPerToken { per_token: Bytes(1024), fixed: Bytes(2 * 512 * 768) });
        // A compressed cell of 4 tokens and its indexer key, one of 128 tokens.
        let keys = "block_count=2 attention.head_count=8 attention.head_count_kv=1 attention.key_length=512 \
            attention.sliding_window=128 attention.indexer.key_length=128 attention.compress_ratios=4,128";
        let compressed = cost("deepseek4", keys, ggml_type::f16());
        assert_eq!(compressed.per_token, Bytes(1024 / 4 + 256 / 4 + 1024 / 128));
    }
}
