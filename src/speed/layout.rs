//! What of a placed model costs time: weights summed by where they are and how often they are used, and the changes of tier.

use super::Case;
use crate::machine::Backend;
use crate::memory::HOST;
use crate::memory::caches::CacheKind;
use crate::memory::expert_cache;
use crate::model::{Model, Tensor};
use crate::placement::Buffer;
use crate::rules::Role;

/// Where work is done: 0 is the host, `i + 1` is `Machine::devices[i]`.
pub(super) type Tier = usize;

pub(super) const ON_HOST: Tier = 0;

/// Weights in the same place that are used alike.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Part {
    pub tier: Tier,
    /// Whether prompts may be processed elsewhere: host memory that a device can copy from as it is.
    pub copyable: bool,
    pub repacked: bool,
    /// Read once a prompt only: the output matrix.
    pub output: bool,
    /// Experts, and how many of them a token uses; 1 and 1 for what every token uses.
    pub count: u32,
    pub used: u32,
    pub bytes: f64,
    /// Bytes, each weighted with what its type costs the processor beside `q4_K`.
    pub effort: f64,
    pub elements: f64,
    pub element_effort: f64,
    pub ops: f64,
}

impl Part {
    pub fn active(&self) -> f64 {
        f64::from(self.used) / f64::from(self.count)
    }
}

/// Attention layers alike in place and reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attention {
    pub tier: Tier,
    /// Tokens that a query sees at most.
    pub reach: f64,
    /// Bytes of keys and values by token in reach.
    pub bytes: f64,
    /// Operations by query and token in reach: two products, two operations a product.
    pub flops: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub parts: Vec<Part>,
    pub attention: Vec<Attention>,
    /// Bytes of recurrent states by tier, read and written for every token.
    pub states: Vec<f64>,
    /// The first device that takes over host products of large batches (`ggml_backend_offload_op`).
    pub offload: Option<Tier>,
    /// Whether host memory is pinned for the devices.
    pub pinned: bool,
    /// Threads that decode on the host, as full cores.
    pub threads: f64,
    /// Threads that process prompts on the host, as full cores.
    pub threads_batch: f64,
    /// Changes of tier for a token by the tier that is not the host's; the second for large batches.
    pub switches: Vec<[f64; 2]>,
    /// Bytes of one token's activations.
    pub row: f64,
    /// The share of draws of host experts that the expert cache serves.
    pub cache_hits: f64,
    /// The share of the host's weights that does not stay in memory.
    pub missing: f64,
    pub tiers: usize,
    /// Micro-batches of one prompt run on several devices at once.
    pub pipelined: bool,
}

impl Layout {
    pub fn of(case: &Case<'_>) -> Self {
        let tiers = case.machine.devices.len() + 1;
        let mut layout = Self {
            parts: Vec::with_capacity(12),
            attention: Vec::with_capacity(4),
            states: vec![0.0; tiers],
            offload: offload(case),
            pinned: !case.run.load_mode.is_mapped() && !case.run.no_host,
            threads: threads(case, case.run.n_threads),
            threads_batch: threads(case, case.run.n_threads_batch.or(case.run.n_threads)),
            switches: vec![[0.0; 2]; tiers],
            row: f64::from(case.model.hparams.embedding_length) * 4.0,
            cache_hits: 0.0,
            missing: 0.0,
            tiers,
            pipelined: false,
        };
        let stages = layout.weights(case);
        layout.count_switches(case, &stages);
        layout.caches(case);
        layout.cache_hits = cache_hits(case);
        layout.missing = missing(case, &layout.parts);
        layout.pipelined = case.placement.devices.len() > 1
            && case.run.overrides.is_empty()
            && case.run.offload_kqv
            && case.placement.layers.iter().all(Option::is_some)
            && !case.placement.devices.iter().any(|i| backend(case, *i) == Some(Backend::Rpc));
        layout
    }

    /// Sums the weights; where each block's stages are.
    fn weights(&mut self, case: &Case<'_>) -> Vec<[Option<Tier>; STAGES]> {
        let model = case.model;
        let n_layer = model.hparams.n_layer();
        let mut stages = vec![[None; STAGES]; n_layer as usize];
        let logits = model.output();
        for (at, (tensor, copies)) in model.tensors.iter().zip(&case.placement.copies).enumerate() {
            if tensor.block.is_some_and(|block| block >= n_layer) {
                // NextN blocks draft; speculation is not counted.
                continue;
            }
            let output = tensor.block.is_none();
            let copy = match tensor.role {
                Role::TokenEmbd if logits != Some(at) => continue,
                _ => copies.last(),
            };
            let Some(copy) = copy else { continue };
            let tier = tier(copy.buffer);
            if let Some(stages) = tensor.block.and_then(|block| stages.get_mut(block as usize)) {
                stages[stage(tensor)] = Some(tier);
            }
            let (count, used) = experts_of(model, tensor);
            let repacked = matches!(copy.buffer, Buffer::CpuRepack | Buffer::Amx);
            let key = (tier, repacked, output, count, used);
            let known = |p: &Part| (p.tier, p.repacked, p.output, p.count, p.used) == key;
            let at = self.parts.iter().position(known).unwrap_or_else(|| {
                let copyable = tier == ON_HOST && !repacked && !output;
                self.parts.push(Part { tier, copyable, repacked, output, count, used, ..Part::default() });
                self.parts.len() - 1
            });
            let part = &mut self.parts[at];
            let (bytes, elements) = (float(tensor.bytes.0), float(tensor.elements()));
            let effort = effort(tensor.ty.name);
            part.bytes += bytes;
            part.effort += bytes * effort;
            part.elements += elements;
            part.element_effort += elements * effort;
            part.ops += 1.0;
        }
        stages
    }

    /// Counts where a token, and a large batch, go from one tier to another.
    fn count_switches(&mut self, case: &Case<'_>, stages: &[[Option<Tier>; STAGES]]) {
        let start = case.placement.layers.first().copied().flatten().map_or(ON_HOST, |i| usize::from(i) + 1);
        for large in [0, 1] {
            let mut at = start;
            for stage in stages.iter().flatten().flatten() {
                let here = match self.offload {
                    Some(device) if large == 1 && *stage == ON_HOST && case.run.op_offload => device,
                    _ => *stage,
                };
                if here != at {
                    let priced = if here == ON_HOST { at } else { here };
                    if let Some(switches) = self.switches.get_mut(priced) {
                        switches[large] += 1.0;
                    }
                    at = here;
                }
            }
        }
    }

    fn caches(&mut self, case: &Case<'_>) {
        let caches = &case.forecast.caches;
        for cache in &caches.list {
            for layer in &cache.layers {
                let device = case.placement.layers.get(layer.il as usize).copied().flatten();
                let tier = device.filter(|_| case.run.offload_kqv).map_or(ON_HOST, |i| usize::from(i) + 1);
                let bytes = |ty: crate::gguf::GgmlType, n: u64| float(ty.row_bytes(n).unwrap_or(n * 2));
                let row = bytes(cache.type_k, layer.n_embd_k) + bytes(cache.type_v, layer.n_embd_v);
                match cache.kind {
                    CacheKind::Base | CacheKind::Swa => {
                        let reach =
                            if cache.kind == CacheKind::Swa { window(case, cache.cells) } else { f64::INFINITY };
                        self.attend(Attention { tier, reach, bytes: row, flops: flops(case, layer) });
                    }
                    // Compressed keys: read for every token, their products are few.
                    CacheKind::Indexer | CacheKind::Csa | CacheKind::Hca => {
                        let by_token = row / f64::from(cache.tokens_per_cell.unwrap_or(1).max(1));
                        self.attend(Attention { tier, reach: f64::INFINITY, bytes: by_token, flops: by_token });
                    }
                    CacheKind::CsaState
                    | CacheKind::HcaState
                    | CacheKind::IndexerState
                    | CacheKind::Recurrent
                    | CacheKind::PleState => {
                        if let Some(states) = self.states.get_mut(tier) {
                            *states += 2.0 * row;
                        }
                    }
                }
            }
        }
    }

    /// Adds one layer's attention to those alike.
    fn attend(&mut self, layer: Attention) {
        let alike = |other: &&mut Attention| other.tier == layer.tier && other.reach.total_cmp(&layer.reach).is_eq();
        match self.attention.iter_mut().find(alike) {
            Some(sum) => {
                sum.bytes += layer.bytes;
                sum.flops += layer.flops;
            }
            None => self.attention.push(layer),
        }
    }
}

/// Stages of a block in the order they run: attention and the rest, dense parts, the experts' first products, their last.
const STAGES: usize = 4;

fn stage(tensor: &Tensor) -> usize {
    match tensor.role {
        Role::RoutedExpert if tensor.name.contains("_down") => 3,
        Role::RoutedExpert => 2,
        Role::SharedExpert | Role::DenseFfn => 1,
        _ => 0,
    }
}

/// How many experts a tensor holds, and how many of them a token uses.
fn experts_of(model: &Model, tensor: &Tensor) -> (u32, u32) {
    if tensor.role != Role::RoutedExpert || tensor.shape[2] < 2 {
        return (1, 1);
    }
    let count = u32::try_from(tensor.shape[2]).unwrap_or(u32::MAX);
    let block = tensor.block.unwrap_or(0) as usize;
    let used = model.hparams.expert_used_count.get(block).copied().unwrap_or(1);
    (count, used.clamp(1, count))
}

fn tier(buffer: Buffer) -> Tier {
    match buffer {
        Buffer::Device(i) => usize::from(i) + 1,
        Buffer::Cpu | Buffer::CpuRepack | Buffer::Amx | Buffer::HostPinned => ON_HOST,
    }
}

fn backend(case: &Case<'_>, index: u16) -> Option<Backend> {
    case.machine.device(index).map(|device| device.backend)
}

/// The first device in llama.cpp's order that asks for host products of at least 32 rows; RPC servers never do
/// (`ggml-backend.cpp` `ggml_backend_sched_backend_id_from_cur`, `ggml-rpc.cpp`, b11434).
fn offload(case: &Case<'_>) -> Option<Tier> {
    let asks = |i: &&u16| !matches!(backend(case, **i), None | Some(Backend::Rpc | Backend::Cpu));
    let first = case.placement.devices.iter().find(asks)?;
    Some(usize::from(*first) + 1).filter(|_| case.run.op_offload)
}

/// Cores that `-t` keeps busy. Without it llama.cpp takes one thread a core (`common_cpu_get_num_math`); second threads of a
/// core add a quarter of one, more threads than that wait for each other.
fn threads(case: &Case<'_>, asked: Option<u32>) -> f64 {
    let host = &case.machine.host;
    let cores = f64::from(host.cores.unwrap_or(GUESSED_CORES).max(1));
    let threads = host.threads.map_or(cores, f64::from).max(cores);
    let n = asked.map_or(cores, f64::from).max(1.0);
    let busy = cores.min(n) + SMT * (threads.min(n) - cores).max(0.0);
    if n > threads { busy * threads / n } else { busy }
}

/// Cores of a host of which nothing is known.
pub(super) const GUESSED_CORES: u32 = 8;

/// What the second thread of a core adds.
const SMT: f64 = 0.25;

/// Tokens in a window cache; with `--swa-full` the cache holds more than the window shows.
fn window(case: &Case<'_>, cells: u32) -> f64 {
    let n_swa = case.forecast.caches.hparams.swa.map_or(cells, |swa| swa.n_swa);
    f64::from(cells.min(n_swa.max(1)))
}

/// Operations of one query with one token in a layer: q·k and p·v of every head.
fn flops(case: &Case<'_>, layer: &crate::memory::caches::CacheLayer) -> f64 {
    let hparams = &case.forecast.caches.hparams;
    let Some(of) = hparams.layers.get(layer.il as usize) else { return 0.0 };
    let heads = f64::from(of.n_head);
    if hparams.is_mla {
        // Absorbed: every head works on the latent row.
        return 4.0 * heads * float(layer.n_embd_k);
    }
    2.0 * heads * (f64::from(of.n_embd_head_k) + f64::from(of.n_embd_head_v))
}

/// The share of expert draws on the host that `--moe-cache-mib` serves.
fn cache_hits(case: &Case<'_>) -> f64 {
    if case.run.moe_cache_mib == 0 {
        return 0.0;
    }
    let cache = expert_cache::expert_cache(case.model, case.machine, case.run, case.placement);
    if cache.problem.is_some() || cache.host_bytes.0 == 0 {
        return 0.0;
    }
    let cached: u64 = cache.by_device.iter().filter(|(key, _)| *key != HOST).map(|(_, bytes)| bytes.0).sum();
    hits(float(cached) / float(cache.host_bytes.0))
}

/// The share of host weights that main memory does not hold, once the system and the process have theirs.
fn missing(case: &Case<'_>, parts: &[Part]) -> f64 {
    let Some(ram) = case.machine.host.ram else { return 0.0 };
    let weights: f64 = parts.iter().filter(|part| part.tier == ON_HOST).map(|part| part.bytes).sum();
    let rest = case.forecast.memory.get(HOST).map_or(0.0, |host| float(host.context.0 + host.compute.0));
    let room = (float(ram.0) * FOR_WEIGHTS - rest).max(0.0);
    if weights <= room { 0.0 } else { 1.0 - room / weights }
}

/// The share of main memory that is left for weights beside the system and other programs.
const FOR_WEIGHTS: f64 = 0.92;

/// What a byte of this type costs a processor beside one of `q4_K`, in products with few rows.
///
/// From what each kernel of `ggml-cpu` does: plain loads are cheaper, codebooks (`iq*`) and ternary types dearer.
/// A coarse table: types within a family differ, and processors too.
fn effort(ty: &str) -> f64 {
    match ty {
        "f32" | "f16" | "bf16" => 0.5,
        "q8_0" | "q4_0" | "q4_1" | "q5_0" | "q5_1" | "iq4_nl" => 0.8,
        "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq3_xxs" | "iq3_s" | "iq1_s" | "iq1_m" => 2.5,
        "q2_K" | "q3_K" => 1.3,
        "mxfp4" | "nvfp4" => 1.2,
        _ => 1.0,
    }
}

/// Counts as floats: beyond 2^53 they are rounded, which no time here notices.
#[expect(clippy::cast_precision_loss, reason = "times are estimates; bytes stay below 2^53 anyway")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

/// The share of `count` experts that at least one of `tokens` tokens uses, each token drawing `used` of them evenly.
///
/// Real routing is more uneven, so fewer are touched: copies are rather over- than underestimated.
pub(super) fn touched(count: u32, used: u32, tokens: f64) -> f64 {
    if count == 0 || used >= count {
        return 1.0;
    }
    1.0 - (1.0 - f64::from(used) / f64::from(count)).powf(tokens)
}

/// Share of the experts that fit in the cache, and the share of draws that it then serves: published figures of a least
/// recently used cache over 512 experts (64 of them 67%, 128 of them 81%), straight lines between them.
const HITS: [(f64, f64); 4] = [(0.0, 0.0), (0.125, 0.67), (0.25, 0.81), (1.0, 1.0)];

pub(super) const CACHE_ASSUMPTION: &str = "; expert cache: hit rate assumed from published figures (1/8 of the experts cached: 67%, 1/4: 81%), measure it with your prompts";

/// How far off a launch with an expert cache may be: even routing would hit no more than the share that is cached.
pub(super) const CACHE_UNCERTAINTY: f64 = 0.5;

/// The share of draws that a cache of this share of the experts serves.
fn hits(share: f64) -> f64 {
    for (low, high) in HITS.iter().zip(HITS.iter().skip(1)) {
        if share <= high.0 {
            let along = (share - low.0).max(0.0) / (high.0 - low.0);
            return low.1 + along * (high.1 - low.1);
        }
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_tokens_touch_more_experts() {
        assert!((touched(128, 8, 1.0) - 0.0625).abs() < 1e-12);
        assert!(touched(128, 8, 32.0) > 0.8 && touched(128, 8, 32.0) < 0.9);
        assert!(touched(128, 8, 512.0) > 0.999);
        assert!((touched(0, 0, 1.0) - 1.0).abs() < 1e-12, "a dense weight is read whole");
    }

    #[test]
    fn the_published_points_are_on_the_curve() {
        for (share, expected) in [(0.0, 0.0), (0.125, 0.67), (0.25, 0.81), (1.0, 1.0), (2.0, 1.0)] {
            assert!((hits(share) - expected).abs() < 1e-9, "{share}");
        }
        let curve: Vec<f64> = (0..=100_u8).map(|n| hits(f64::from(n) / 100.0)).collect();
        assert!(curve.is_sorted());
    }
}
