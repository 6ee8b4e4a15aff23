//! The expert cache of newer builds (`--moe-cache-mib`): device memory for experts that are kept on the host, in the context
//! column.
//!
//! Source: `src/llama-moe-cache.cpp` of ggml-org/llama.cpp as it is after b11434 (commit 4b060f27); b11549 itself was measured:
//! 4500 MiB asked for gave 4495.61 MiB with Qwen3-30B-A3B Q4_K_M.

use std::collections::BTreeMap;

use super::HOST;
use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::machine::{Backend, Machine};
use crate::model::{Model, Tensor};
use crate::placement::{Buffer, Placement};
use crate::run::RunConfig;

/// Kinds of expert weights in the order of the cache's banks.
const KINDS: [&str; 4] = ["gate_up", "gate", "up", "down"];

/// What a layout is told apart by: type and shape of each expert tensor of a block.
type Layout = Vec<(GgmlType, [u64; 4])>;

/// Blocks of one device whose experts are laid out alike: they share the slots.
struct Group {
    device: u16,
    layout: Layout,
    /// Bytes of one expert in each of the tensors.
    expert: Vec<u64>,
    blocks: u64,
    host_bytes: u64,
}

/// The cache of a launch, and what is odd about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertCache {
    /// Context bytes by memory-table key, the slot maps on the host included.
    pub by_device: BTreeMap<String, Bytes>,
    pub host_bytes: Bytes,
    /// Why it would not work, where it would not.
    pub problem: Option<Problem>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No device takes part, or the model has no experts: llama.cpp refuses.
    Impossible,
    /// No block keeps all its experts in host memory: llama.cpp warns and goes on without.
    NothingToCache,
    /// Less than the experts of one token: llama.cpp refuses.
    TooSmall,
}

/// What `--moe-cache-mib` takes.
pub fn expert_cache(model: &Model, machine: &Machine, run: &RunConfig, placement: &Placement) -> ExpertCache {
    if run.moe_cache_mib == 0 {
        return ExpertCache::default();
    }
    let problem = |problem| ExpertCache { problem: Some(problem), ..ExpertCache::default() };
    let used = u64::from(model.hparams.expert_used_count.iter().copied().fold(0, u32::max));
    if placement.devices.is_empty() || used == 0 {
        return problem(Problem::Impossible);
    }
    let groups = groups(model, placement);
    if groups.is_empty() {
        return problem(Problem::NothingToCache);
    }
    let host_of = |device: u16| groups.iter().filter(|g| g.device == device).map(|g| g.host_bytes).sum::<u64>();
    let shares = shares(machine, run, placement, &groups);
    let mut cache = ExpertCache::default();
    for group in &groups {
        let Some(device) = machine.device(group.device) else { continue };
        cache.host_bytes += Bytes(group.host_bytes);
        // Every group's device has a share.
        let share = shares.get(&group.device).copied().unwrap_or(0.0);
        let budget = budget(run.moe_cache_mib, share, group.host_bytes, host_of(group.device));
        let experts = group.layout.first().map_or(0, |(_, shape)| shape[2]);
        // More than all experts are not kept: the search below ends at 2^32.
        let slots = slots(group, device.backend, budget, group.blocks.saturating_mul(experts));
        if slots < used {
            continue;
        }
        // Within the budget of 2^52 bytes.
        let banks = u64::try_from(size(group, device.backend, slots)).unwrap_or(budget);
        *cache.by_device.entry(device.name.clone()).or_default() += Bytes(banks);
        // A map from experts to slots, one 32-bit number each; tensors hold less than 2^50 elements.
        let maps = Bytes(experts.saturating_mul(4)).padded(Backend::Cpu.alignment());
        *cache.by_device.entry(HOST.to_string()).or_default() += Bytes(maps.0.saturating_mul(group.blocks));
    }
    if cache.by_device.is_empty() {
        return problem(Problem::TooSmall);
    }
    cache
}

/// The blocks whose experts are all in host memory, by device and layout.
fn groups(model: &Model, placement: &Placement) -> Vec<Group> {
    let mut experts: BTreeMap<u32, [Option<(&Tensor, bool)>; 4]> = BTreeMap::new();
    for (tensor, copies) in model.tensors.iter().zip(&placement.copies) {
        let Some(block) = tensor.block.filter(|_| !copies.is_empty()) else { continue };
        let is = |kind: &str| tensor.name == format!("blk.{block}.ffn_{kind}_exps.weight");
        if let Some(at) =
            tensor.name.ends_with("_exps.weight").then(|| KINDS.iter().position(|kind| is(kind))).flatten()
        {
            let on_host = copies.iter().all(|copy| matches!(copy.buffer, Buffer::Cpu | Buffer::HostPinned));
            experts.entry(block).or_default()[at] = Some((tensor, on_host));
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (block, tensors) in &experts {
        let tensors: Vec<(&Tensor, bool)> = tensors.iter().flatten().copied().collect();
        let device = placement.layers.get(*block as usize).copied().flatten();
        let Some(device) = device.filter(|_| tensors.iter().all(|(_, on_host)| *on_host)) else { continue };
        let layout: Layout = tensors.iter().map(|(tensor, _)| (tensor.ty, tensor.shape)).collect();
        let host_bytes: u64 = tensors.iter().map(|(tensor, _)| tensor.bytes.0).sum();
        if let Some(group) = groups.iter_mut().find(|group| group.device == device && group.layout == layout) {
            group.blocks += 1;
            group.host_bytes += host_bytes;
        } else {
            let expert = tensors.iter().map(|(tensor, _)| tensor.bytes.0 / tensor.shape[2].max(1)).collect();
            groups.push(Group { device, layout, expert, blocks: 1, host_bytes });
        }
    }
    groups
}

/// Each device's part of the budget: by `-ts`, else by free memory; devices without host experts get none.
#[expect(clippy::cast_precision_loss, reason = "llama.cpp divides in double precision")]
fn shares(machine: &Machine, run: &RunConfig, placement: &Placement, groups: &[Group]) -> BTreeMap<u16, f64> {
    // llama.cpp fills the shares that are not given with 0.
    let split = |index: usize| f64::from(run.tensor_split.get(index).copied().unwrap_or(0.0));
    let by_free = (0..placement.devices.len()).all(|index| split(index) == 0.0);
    let mut weights: BTreeMap<u16, f64> = BTreeMap::new();
    for (index, device) in placement.devices.iter().enumerate() {
        if groups.iter().any(|group| group.device == *device) {
            let free = machine.device(*device).map_or(0.0, |found| found.free.0 as f64);
            weights.insert(*device, if by_free { free } else { split(index) });
        }
    }
    let sum: f64 = weights.values().sum();
    let count = weights.len() as f64;
    for weight in weights.values_mut() {
        *weight = if sum == 0.0 { 1.0 / count } else { *weight / sum };
    }
    weights
}

/// A group's part of the budget, by the size of its experts.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "llama.cpp computes in double precision and cuts"
)]
fn budget(mib: u32, share: f64, group: u64, device: u64) -> u64 {
    (Bytes::mib(u64::from(mib)).0 as f64 * share * group as f64 / device as f64) as u64
}

/// The most slots that stay within the budget.
fn slots(group: &Group, backend: Backend, budget: u64, most: u64) -> u64 {
    // A header may claim anything: the search ends at 2^32 slots.
    let (mut fits, mut too_many) = (0, most.min(1 << 32) + 1);
    while too_many - fits > 1 {
        let tried = u64::midpoint(fits, too_many);
        if size(group, backend, tried) <= u128::from(budget) { fits = tried } else { too_many = tried }
    }
    fits
}

/// Bytes of so many slots: one more is kept because CUDA's kernels read past the last.
fn size(group: &Group, backend: Backend, slots: u64) -> u128 {
    let bank = |bytes: &u64| (u128::from(*bytes) * u128::from(slots + 1)).next_multiple_of(backend.alignment().into());
    group.expert.iter().map(bank).sum()
}
