//! What a turn asks of every tier: amounts of bytes, operations and waits, by the constant that prices them.

use super::Case;
use super::layout::{Layout, ON_HOST, Part, Tier, touched};

/// What an amount is of, and so which constant prices it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    Weights,
    /// Operations of products with weights in micro-batches; on the host by thread.
    Products,
    Attention,
    Cache,
    Op,
    Graph,
    /// Bytes copied from pinned memory to this device.
    Pinned,
    /// Bytes copied from pageable memory to this device, or over the network.
    Pageable,
    Offload,
    Switch,
    /// Bytes by thread: weights multiplied with one row on the host.
    ByThread,
    Disk,
}

impl Cost {
    pub const ALL: [Self; 12] = [
        Self::Weights,
        Self::Products,
        Self::Attention,
        Self::Cache,
        Self::Op,
        Self::Graph,
        Self::Pinned,
        Self::Pageable,
        Self::Offload,
        Self::Switch,
        Self::ByThread,
        Self::Disk,
    ];
}

/// Amounts by tier (0 = host, `i + 1` = `Machine::devices[i]`) and kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    amounts: Vec<[f64; Cost::ALL.len()]>,
    /// Micro-batches that run on several devices at once; 1 where one waits for the other.
    pub overlapped: f64,
}

impl Work {
    fn new(tiers: usize) -> Self {
        Self { amounts: vec![[0.0; Cost::ALL.len()]; tiers], overlapped: 1.0 }
    }

    pub fn tiers(&self) -> usize {
        self.amounts.len()
    }

    /// The amount of one kind on a tier.
    pub fn amount(&self, tier: usize, cost: Cost) -> f64 {
        self.amounts.get(tier).map_or(0.0, |kinds| kinds[cost as usize])
    }

    fn add(&mut self, tier: Tier, cost: Cost, amount: f64) {
        if let Some(kinds) = self.amounts.get_mut(tier) {
            kinds[cost as usize] += amount;
        }
    }
}

/// Rows beside an expert's own that its product costs on a device: the matrix kernels work in tiles of rows, and the last
/// tile of every expert is half empty on average (`ggml-cuda/mmq.cuh`: tiles of 8 to 128 rows).
const TILE_REST: f64 = 16.0;

/// Rows from which devices take over host products (`GGML_OP_OFFLOAD_MIN_BATCH`, b11434).
const OFFLOAD_ROWS: u32 = 32;

/// What repacked expert weights cost in micro-batches beside plain ones (measured: 99 against 253 tokens/s, AVX-512).
const REPACKED_PRODUCTS: f64 = 2.5;

/// The work of a prompt of `tokens` tokens after `depth` others.
pub(super) fn prompt(layout: &Layout, case: &Case<'_>, tokens: u32, depth: u32) -> Work {
    let mut work = Work::new(layout.tiers);
    let numbers = &case.forecast.numbers;
    let (batch, ubatch) = (numbers.n_batch.max(1), numbers.n_ubatch.max(1));
    // Batches of `-b` tokens, each in micro-batches of `-ub`: whole ones and what is left of whole and last batches.
    let of_batch = |size: u32| (size / ubatch, size % ubatch);
    let (batches, last) = (tokens / batch, tokens % batch);
    let (whole, rest) = of_batch(batch);
    let (whole_last, rest_last) = of_batch(last);
    let sizes = [(ubatch, batches * whole + whole_last), (rest, batches), (rest_last, 1)];
    let mut passes = 0.0;
    for (size, times) in sizes.into_iter().filter(|(size, times)| *size > 0 && *times > 0) {
        micro_batch(&mut work, layout, size, f64::from(times));
        passes += f64::from(times);
    }
    attention(&mut work, layout, tokens, depth);
    for part in layout.parts.iter().filter(|part| part.output) {
        one_row(&mut work, layout, part, 1.0);
    }
    if layout.pipelined {
        work.overlapped = passes.max(1.0);
    }
    work
}

/// One micro-batch of `size` tokens, `times` over, without its attention.
fn micro_batch(work: &mut Work, layout: &Layout, size: u32, times: f64) {
    let rows = f64::from(size);
    let large = size >= OFFLOAD_ROWS;
    let taken = layout.offload.filter(|_| large);
    for part in layout.parts.iter().filter(|part| !part.output) {
        let share = if part.count > 1 { touched(part.count, part.used, rows) } else { 1.0 };
        match taken.filter(|_| part.copyable) {
            Some(device) => {
                let copy = if layout.pinned { Cost::Pinned } else { Cost::Pageable };
                work.add(device, copy, times * part.bytes * share);
                work.add(device, Cost::Offload, times * part.ops);
                work.add(ON_HOST, Cost::Disk, times * part.bytes * share * layout.missing);
                on_device(work, device, part, share, rows, times);
            }
            None if part.tier == ON_HOST => on_host(work, layout, part, share, rows, times),
            None => on_device(work, part.tier, part, share, rows, times),
        }
    }
    for (tier, bytes) in layout.states.iter().enumerate() {
        work.add(tier, Cost::Cache, times * bytes);
    }
    for (tier, switches) in layout.switches.iter().enumerate() {
        let switches = switches[usize::from(large)];
        work.add(tier, Cost::Switch, times * switches);
        work.add(tier, Cost::Pageable, times * switches * rows * layout.row);
    }
    work.add(first_tier(layout), Cost::Graph, times);
}

/// Weights of a micro-batch on a device.
fn on_device(work: &mut Work, tier: Tier, part: &Part, share: f64, rows: f64, times: f64) {
    work.add(tier, Cost::Weights, times * part.bytes * share);
    let padding = if part.count > 1 { part.elements * share * TILE_REST } else { 0.0 };
    work.add(tier, Cost::Products, times * 2.0 * (part.elements * part.active() * rows + padding));
    work.add(tier, Cost::Op, times * part.ops);
}

/// Weights of a micro-batch on the host.
fn on_host(work: &mut Work, layout: &Layout, part: &Part, share: f64, rows: f64, times: f64) {
    let dearer = if part.repacked && part.count > 1 { REPACKED_PRODUCTS } else { 1.0 };
    let products = 2.0 * part.element_effort * part.active() * rows * dearer;
    work.add(ON_HOST, Cost::Weights, times * part.bytes * share);
    work.add(ON_HOST, Cost::Products, times * products / layout.threads_batch);
    work.add(ON_HOST, Cost::Op, times * part.ops);
    work.add(ON_HOST, Cost::Disk, times * part.bytes * share * layout.missing);
}

/// Weights multiplied with one row each, `times` over.
fn one_row(work: &mut Work, layout: &Layout, part: &Part, times: f64) {
    let active = part.bytes * part.active();
    let cached = if part.copyable && part.count > 1 { layout.cache_hits } else { 0.0 };
    let (hit, host) = (active * cached, active * (1.0 - cached));
    match layout.offload.filter(|_| cached > 0.0) {
        // The expert cache: what is in it is read there, what is not is copied into it first.
        Some(device) => {
            let copy = if layout.pinned { Cost::Pinned } else { Cost::Pageable };
            work.add(device, Cost::Weights, times * (hit + host));
            work.add(device, copy, times * host);
            work.add(device, Cost::Op, times * part.ops);
            work.add(device, Cost::Offload, times * part.ops);
            work.add(ON_HOST, Cost::Disk, times * host * layout.missing);
        }
        None if part.tier == ON_HOST => {
            work.add(ON_HOST, Cost::Weights, times * active);
            work.add(ON_HOST, Cost::ByThread, times * part.effort * part.active() / layout.threads);
            work.add(ON_HOST, Cost::Op, times * part.ops);
            work.add(ON_HOST, Cost::Disk, times * active * layout.missing);
        }
        None => {
            work.add(part.tier, Cost::Weights, times * active);
            work.add(part.tier, Cost::Op, times * part.ops);
        }
    }
}

/// Attention of a prompt: every token with all before it, within its reach.
fn attention(work: &mut Work, layout: &Layout, tokens: u32, depth: u32) {
    let (n, before) = (f64::from(tokens), f64::from(depth));
    for layer in &layout.attention {
        // Token i sees min(depth + i, reach): the sum over i of a ramp that ends in a plateau.
        let ramp = (layer.reach - before).clamp(0.0, n);
        let seen = ramp * (before + ramp / 2.0) + (n - ramp) * layer.reach.min(before + n);
        if layer.tier == ON_HOST {
            work.add(ON_HOST, Cost::Products, layer.flops * seen / layout.threads_batch);
        } else {
            work.add(layer.tier, Cost::Attention, layer.flops * seen);
        }
    }
}

/// The work of generating `tokens` tokens after `depth` others.
pub(super) fn generation(layout: &Layout, tokens: u32, depth: u32) -> Work {
    let mut work = Work::new(layout.tiers);
    let n = f64::from(tokens);
    for part in &layout.parts {
        one_row(&mut work, layout, part, n);
    }
    let mean_depth = f64::from(depth) + n / 2.0;
    let mut read = |tier: Tier, bytes: f64| {
        if tier == ON_HOST {
            work.add(ON_HOST, Cost::Weights, n * bytes);
            work.add(ON_HOST, Cost::ByThread, n * bytes / layout.threads);
        } else {
            work.add(tier, Cost::Cache, n * bytes);
        }
    };
    for layer in &layout.attention {
        read(layer.tier, layer.bytes * mean_depth.min(layer.reach));
    }
    for (tier, bytes) in layout.states.iter().enumerate() {
        read(tier, *bytes);
    }
    for (tier, switches) in layout.switches.iter().enumerate() {
        // With the expert cache, the host's experts are computed on a device.
        let left = if layout.cache_hits > 0.0 { switches[1] } else { switches[0] };
        work.add(tier, Cost::Switch, n * left);
        work.add(tier, Cost::Pageable, n * left * layout.row);
    }
    work.add(first_tier(layout), Cost::Graph, n);
    work
}

/// The tier that a graph begins on: the first device with work, else the host.
fn first_tier(layout: &Layout) -> Tier {
    layout.parts.iter().map(|part| part.tier).filter(|tier| *tier != ON_HOST).min().unwrap_or(ON_HOST)
}
