//! What a turn asks of every tier: amounts of bytes, operations and waits, by the constant that prices them.

use super::Case;
use crate::gguf::GgmlType;
use crate::machine::Backend;
use crate::memory::HOST;
use crate::memory::caches::{CacheKind, CacheLayer};
use crate::memory::expert_cache;
use crate::model::Tensor;
use crate::placement::Buffer;
use crate::rules::Role;

/// What an amount is of, and so which constant prices it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Elements that one thread of the host handles: of attention masks, and of a sampler's candidates.
    Serial,
    Disk,
}

/// A number by kind of work.
pub type ByCost = [f64; Cost::Disk as usize + 1];

/// Where work is done: 0 is the host, `i + 1` is `Machine::devices[i]`.
type Tier = usize;
const ON_HOST: Tier = 0;

/// Amounts by tier and kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    pub amounts: Vec<ByCost>,
    /// Micro-batches that run on several devices at once; 1 where one waits for the other.
    pub overlapped: f64,
}

impl Work {
    fn add(&mut self, tier: Tier, cost: Cost, amount: f64) {
        if let Some(kinds) = self.amounts.get_mut(tier) {
            kinds[cost as usize] += amount;
        }
    }

    /// Adds the sampling of `tokens` tokens from a vocabulary.
    pub fn sample(&mut self, vocabulary: u32, tokens: f64) {
        self.add(ON_HOST, Cost::Serial, CANDIDATE * f64::from(vocabulary) * tokens);
    }
}

/// Elements of a mask that take as long as a candidate of a sampler: llama-server copies a token's logits into a list of candidates
/// and searches it for the best ones (3 ns each on one core of an EPYC, and the copies; llama-bench samples nothing).
const CANDIDATE: f64 = 1.5;

/// What one pass of generation computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    /// Requests that are served at once, each in a cache of its own.
    pub slots: f64,
    /// Rows of each: its last token, and what was drafted after it.
    pub rows: f64,
    /// Whether the output is computed too.
    pub output: bool,
}

impl Pass {
    pub const ONE_TOKEN: Self = Self { slots: 1.0, rows: 1.0, output: true };
}

/// How many rows weights are multiplied with.
#[derive(Debug, Clone, Copy)]
enum Rows {
    /// A micro-batch of a prompt.
    Batch(f64),
    /// Tokens of a pass of generation, few enough that the host computes its part itself.
    Decoded(f64),
}

/// Weights in the same place that are used alike.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    tier: Tier,
    /// Whether prompts may be processed elsewhere: host memory that a device can copy from as it is.
    copyable: bool,
    repacked: bool,
    /// Read once a prompt only: the output matrix.
    output: bool,
    /// Experts, and how many of them a token uses; 1 and 1 for what every token uses.
    count: u32,
    used: u32,
    bytes: f64,
    /// Bytes, each weighted with what its type costs the processor beside `q4_K`.
    effort: f64,
    elements: f64,
    /// Rows of the weights: what a row of activations has after the product.
    outputs: f64,
    element_effort: f64,
    tensors: f64,
}

#[derive(Debug, Clone, Copy)]
struct Attention {
    tier: Tier,
    /// Tokens that a query sees at most.
    reach: f64,
    /// Bytes of keys and values by token in reach.
    bytes: f64,
    /// Operations by query and token in reach: two products, two operations a product.
    flops: f64,
}

/// What of a placed model costs time: weights summed by where they are and how often they are used, and the changes of tier.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    parts: Vec<Part>,
    attention: Vec<Attention>,
    /// Rows of a tile of an expert's product, by tier.
    tiles: Vec<f64>,
    /// Of each mask, the earlier tokens whose cells are looked at for every token of a micro-batch.
    masks: Vec<f64>,
    /// Bytes of recurrent states by tier, read and written for every token.
    states: Vec<f64>,
    /// What each token of a prompt costs where delta nets change their states, by tier: starts of operations, on the host products.
    scans: Vec<f64>,
    /// Bytes of a checkpoint that llama-server keeps of the states and windows of a prompt; 0 where it keeps none.
    checkpoint: f64,
    /// The first device that takes over host products of large batches (`ggml_backend_offload_op`).
    offload: Option<Tier>,
    /// The share of host weights that is copied to devices from pinned memory; the rest is pageable.
    pinned: f64,
    /// Threads that decode on the host, as full cores.
    threads: f64,
    /// Threads that process prompts on the host, as full cores.
    threads_batch: f64,
    /// Changes of tier for a token by the tier that is not the host's; the second for large batches.
    switches: Vec<[f64; 2]>,
    row: f64,
    /// Kernels that a graph starts, by weight tensor in it.
    kernels_by_tensor: f64,
    batch: u32,
    ubatch: u32,
    /// Rows from which `offload` takes over products of the host's weights.
    offload_rows: u32,
    /// The share of draws of host experts that the expert cache serves.
    pub cache_hits: f64,
    /// The share of the host's weights that does not stay in memory.
    pub missing: f64,
    /// Micro-batches of one prompt run on several devices at once.
    pipelined: bool,
}

/// Stages of a block in the order they run: attention and the rest, dense parts, the experts' first products, their last.
const STAGES: usize = 4;

/// Rows that the product of an expert takes at a time on CUDA: the kernel's tile is chosen for all rows of the micro-batch, and computed
/// whole however few of them the expert has (`ggml-cuda/mmq.cuh` `mul_mat_q_switch_J`, b11434). ROCm's choice fits the expert's own
/// rows, and other backends' tiles are smaller.
const TILE_CUDA: f64 = 128.0;
const TILE: f64 = 32.0;

/// What each number that a product puts out costs a device, as elements of weights: it is written, and the operations after it read it.
/// Calibrations of an H100 and an H200 fit their own measurements best with 1,000 to 2,048.
const OUTPUT: f64 = 1536.0;

/// Tokens before a micro-batch and its window whose mask is written anew for each of its tokens (`llama-kv-cache.cpp`
/// `set_input_kq_mask_impl`, b11434); that of other tokens is copied from the token before.
const MASKED_BEFORE: f64 = 32.0;

/// Tokens at the end of a prompt that llama-server processes by themselves.
const LAST: u32 = 4;

/// A checkpoint's bytes cost that many copied from pageable memory: they are written into memory that nobody touched yet (63 MiB took
/// 40 ms on an H200 whose copies run at 9.6 GB/s).
const CHECKPOINT: f64 = 6.0;

/// Names of the gates of delta nets, one in a layer.
const DELTA_GATES: [&str; 2] = [".ssm_beta.weight", ".ssm_ba.weight"];

/// What one token costs in one layer of a delta net, as starts of operations: the kernel takes the tokens one after the other, and waits
/// for memory and for its sums at each (`ggml-cuda/gated_delta_net.cu`, b11434). An H200 takes 1.1 µs, and starts an operation in 2.1.
const SCAN: f64 = 0.5;

/// Operations by element of a state and token where the host does that.
const SCAN_HOST: f64 = 8.0;

/// Rows of a product that count as a batch: what reads the weights is hidden behind what computes.
const BATCH: f64 = 32.0;

/// Tokens up to which a device multiplies each one with its experts by itself (`mmvq.cuh` `MMVQ_MAX_BATCH_SIZE`, and
/// `ggml_vk_use_mul_mat_vec_id` of Vulkan, b11434): an expert that two of them use is read twice.
const VECTORS: f64 = 8.0;
/// What reading an expert costs every token but the first of those, beside the price of one token alone: one warp does what four
/// did (`mmvq.cu` `mul_mat_vec_q_moe`). An H200 takes 0.7 ms more for each token of Qwen3-30B-A3B, whose experts it reads alone in 0.33.
const BY_ONE_WARP: f64 = 2.0;

pub(super) const GUESSED_CORES: u32 = 8;

/// What the second thread of a core adds.
const SMT: f64 = 0.25;

/// Share of the experts that fit in the cache, and the share of draws that it then serves: published figures of a least
/// recently used cache over 512 experts (64 of them 67%, 128 of them 81%), straight lines between them.
const HITS: [(f64, f64); 4] = [(0.0, 0.0), (0.125, 0.67), (0.25, 0.81), (1.0, 1.0)];

pub(super) const CACHE_ASSUMPTION: &str = "; expert cache: hit rate assumed from published figures (1/8 of the experts cached: 67%, 1/4: 81%); measure it with your prompts";

impl Layout {
    pub fn of(case: &Case<'_>) -> Self {
        let (machine, run, placement) = (case.machine, case.run, case.placement);
        let tiers = machine.devices.len() + 1;
        let backend = |i: u16| machine.devices.get(usize::from(i)).map(|device| device.backend);
        // The first device in llama.cpp's order that asks for host products of enough rows; RPC servers never do
        // (`ggml-backend.cpp` `ggml_backend_sched_backend_id_from_cur`, `ggml-rpc.cpp`, b11434).
        let asks = |i: &&u16| !matches!(backend(**i), None | Some(Backend::Rpc | Backend::Cpu));
        let offload = placement.devices.iter().find(asks).zip(run.offload_rows());
        let pins = !placement.is_mapped && !run.no_host;
        let numbers = &case.forecast.numbers;
        let mut layout = Self {
            parts: Vec::with_capacity(12),
            attention: Vec::with_capacity(4),
            tiles: vec![TILE; tiers],
            masks: Vec::with_capacity(2),
            states: vec![0.0; tiers],
            scans: vec![0.0; tiers],
            checkpoint: float(case.forecast.host_needs.checkpoint.0),
            offload: offload.map(|(i, _)| usize::from(*i) + 1),
            offload_rows: offload.map_or(u32::MAX, |(_, rows)| rows),
            pinned: if pins { placement.pinned_share(machine, run.rules()) } else { 0.0 },
            threads: threads(case, run.n_threads),
            threads_batch: threads(case, run.n_threads_batch.or(run.n_threads)),
            switches: vec![[0.0; 2]; tiers],
            row: f64::from(case.model.hparams.embedding_length) * 4.0,
            kernels_by_tensor: 1.0,
            batch: numbers.n_batch.max(1),
            ubatch: numbers.n_ubatch.max(1),
            cache_hits: cache_hits(case),
            missing: 0.0,
            pipelined: placement.devices.len() > 1
                && case.forecast.retried.is_none()
                && run.overrides.is_empty()
                && run.offload_kqv
                && placement.layers.iter().all(Option::is_some)
                && !placement.devices.iter().any(|i| backend(*i) == Some(Backend::Rpc)),
        };
        for (tile, device) in layout.tiles.iter_mut().skip(1).zip(&machine.devices) {
            *tile = if device.backend == Backend::Cuda { TILE_CUDA } else { TILE };
        }
        layout.weights(case);
        layout.caches(case);
        layout.missing = layout.missing(case);
        layout
    }

    /// Sums the weights, and counts where a token, and a large batch, go from one tier to another.
    fn weights(&mut self, case: &Case<'_>) {
        let model = case.model;
        let n_layer = model.hparams.n_layer();
        let mut stages = vec![[None; STAGES]; model.hparams.block_count as usize];
        let logits = model.output();
        for (at, (tensor, copies)) in model.tensors.iter().zip(&case.placement.copies).enumerate() {
            // NextN blocks draft, in a context of their own. Of the embedding, rows are looked up.
            let is_draft = tensor.block.is_some_and(|block| (block >= n_layer) != case.run.mtp_context);
            let is_lookup = tensor.role == Role::TokenEmbd && logits != Some(at);
            let Some(copy) = copies.last().filter(|_| !is_draft && !is_lookup) else { continue };
            let tier = match copy.buffer {
                Buffer::Device(i) => usize::from(i) + 1,
                _ => ON_HOST,
            };
            if let Some(stages) = tensor.block.and_then(|block| stages.get_mut(block as usize)) {
                stages[stage(tensor)] = Some(tier);
            }
            let (count, used) = match tensor.shape[2] {
                experts if tensor.role == Role::RoutedExpert && experts > 1 => {
                    let block = tensor.block.unwrap_or(0) as usize;
                    let used = model.hparams.expert_used_count.get(block).copied().unwrap_or(1);
                    let count = u32::try_from(experts).unwrap_or(u32::MAX);
                    (count, used.clamp(1, count))
                }
                _ => (1, 1),
            };
            let output = tensor.block.is_none();
            let repacked = matches!(copy.buffer, Buffer::CpuRepack | Buffer::Amx);
            let key = (tier, repacked, output, count, used);
            let known = |p: &Part| (p.tier, p.repacked, p.output, p.count, p.used) == key;
            let at = self.parts.iter().position(known).unwrap_or_else(|| {
                let copyable = tier == ON_HOST && !repacked && !output;
                self.parts.push(Part { tier, copyable, repacked, output, count, used, ..Part::default() });
                self.parts.len() - 1
            });
            let part = &mut self.parts[at];
            let (bytes, elements, effort) = (float(tensor.bytes.0), float(tensor.elements()), effort(tensor.ty));
            part.bytes += bytes;
            part.effort += bytes * effort;
            part.elements += elements;
            part.outputs += elements / float(tensor.shape[0].max(1));
            part.element_effort += elements * effort;
            part.tensors += 1.0;
        }
        let tensors: f64 = self.parts.iter().map(|part| part.tensors).sum();
        if case.forecast.kernels > 0 && tensors > 0.0 {
            self.kernels_by_tensor = float(case.forecast.kernels as u64) / tensors;
        }
        let first = if case.run.mtp_context { n_layer as usize } else { 0 };
        let start = case.placement.layers.get(first).copied().flatten().map_or(ON_HOST, |i| usize::from(i) + 1);
        for large in [0, 1] {
            let mut at = start;
            for stage in stages.iter().flatten().flatten() {
                let taken = self.offload.filter(|_| large == 1 && *stage == ON_HOST);
                let here = taken.unwrap_or(*stage);
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
        let hparams = &case.forecast.caches.hparams;
        let is_gate = |tensor: &Tensor| DELTA_GATES.iter().any(|name| tensor.name.ends_with(name));
        let has_delta_nets = case.model.tensors.iter().any(is_gate);
        for cache in &case.forecast.caches.list {
            let window = match cache.kind {
                CacheKind::Base => Some(0),
                CacheKind::Swa => hparams.swa.map(|swa| swa.n_swa),
                _ => None,
            };
            self.masks.extend(window.map(|window| f64::from(window) + MASKED_BEFORE));
            for layer in &cache.layers {
                let device = case.placement.layers.get(layer.il as usize).copied().flatten();
                let tier = device.filter(|_| case.run.offload_kqv).map_or(ON_HOST, |i| usize::from(i) + 1);
                let bytes = |ty: GgmlType, n: u64| float(ty.row_bytes(n).unwrap_or(n * 2));
                let row = bytes(cache.type_k, layer.n_embd_k) + bytes(cache.type_v, layer.n_embd_v);
                let (reach, bytes, flops) = match cache.kind {
                    CacheKind::Base => (f64::INFINITY, row, flops(case, layer)),
                    CacheKind::Swa => {
                        // With `--swa-full` the cache holds more than the window shows.
                        let n_swa = hparams.swa.map_or(cache.cells, |swa| swa.n_swa);
                        (f64::from(cache.cells.min(n_swa.max(1))), row, flops(case, layer))
                    }
                    // Compressed keys: read for every token, their products are few.
                    CacheKind::Indexer | CacheKind::Csa | CacheKind::Hca => {
                        let by_token = row / f64::from(cache.tokens_per_cell.unwrap_or(1).max(1));
                        (f64::INFINITY, by_token, by_token)
                    }
                    _ => {
                        if let Some(states) = self.states.get_mut(tier) {
                            *states += 2.0 * row;
                        }
                        if let Some(scans) = self.scans.get_mut(tier).filter(|_| has_delta_nets) {
                            *scans += if tier == ON_HOST { SCAN_HOST * float(layer.n_embd_v) } else { SCAN };
                        }
                        continue;
                    }
                };
                let alike = |other: &&mut Attention| other.tier == tier && other.reach.total_cmp(&reach).is_eq();
                match self.attention.iter_mut().find(alike) {
                    Some(sum) => (sum.bytes, sum.flops) = (sum.bytes + bytes, sum.flops + flops),
                    None => self.attention.push(Attention { tier, reach, bytes, flops }),
                }
            }
        }
    }

    /// The share of host weights that main memory does not hold, once the system and the process have theirs.
    fn missing(&self, case: &Case<'_>) -> f64 {
        let Some(budget) = case.forecast.host_budget(case.machine) else { return 0.0 };
        let weights: f64 = self.parts.iter().filter(|part| part.tier == ON_HOST).map(|part| part.bytes).sum();
        let rest = case.forecast.memory.get(HOST).map_or(0.0, |host| float(host.context.0 + host.compute.0));
        let room = (float(budget.0) - rest).max(0.0);
        if weights <= room { 0.0 } else { 1.0 - room / weights }
    }

    /// Takes what its target lends a draft without an output of its own.
    pub fn borrow(&mut self, target: &Self) {
        self.missing = target.missing;
        if !self.parts.iter().any(|part| part.output) {
            self.parts.extend(target.parts.iter().filter(|part| part.output));
        }
    }

    pub fn work(&self) -> Work {
        Work { amounts: vec![ByCost::default(); self.states.len()], overlapped: 1.0 }
    }

    /// The work of a prompt of `tokens` tokens after `depth` others.
    pub fn prompt(&self, tokens: u32, depth: u32) -> Work {
        let mut work = self.work();
        let mut passes = 0.0;
        for (size, times) in self.micro_batches(tokens) {
            let (rows, times) = (f64::from(size), f64::from(times));
            let large = size >= self.offload_rows;
            for part in self.parts.iter().filter(|part| !part.output) {
                let device = self.offload.filter(|_| large && part.copyable);
                self.multiply(&mut work, part, Rows::Batch(rows), times, device, 0.0);
            }
            for (tier, bytes) in self.states.iter().enumerate() {
                work.add(tier, Cost::Cache, times * bytes);
            }
            // The device computes a micro-batch while the host writes the next one's masks.
            if passes == 0.0 {
                for before in &self.masks {
                    work.add(ON_HOST, Cost::Serial, rows * (rows + before));
                }
            }
            for (tier, scan) in self.scans.iter().enumerate() {
                match tier {
                    ON_HOST => work.add(tier, Cost::Products, times * rows * scan / self.threads_batch),
                    _ => work.add(tier, Cost::Op, times * rows * scan),
                }
            }
            self.changes(&mut work, large, rows, times);
            passes += times;
        }
        let checkpoints: f64 = self.parts_of(tokens).skip(1).filter(|tokens| *tokens > 0).map(|_| CHECKPOINT).sum();
        work.add(self.first_device(), Cost::Pageable, checkpoints * self.checkpoint);
        let (n, before) = (f64::from(tokens), f64::from(depth));
        for layer in &self.attention {
            // Token i sees min(depth + i, reach): the sum over i of a ramp that ends in a plateau.
            let ramp = (layer.reach - before).clamp(0.0, n);
            let seen = ramp * (before + ramp / 2.0) + (n - ramp) * layer.reach.min(before + n);
            if layer.tier == ON_HOST {
                work.add(ON_HOST, Cost::Products, layer.flops * seen / self.threads_batch);
            } else {
                work.add(layer.tier, Cost::Attention, layer.flops * seen);
            }
        }
        for part in self.parts.iter().filter(|part| part.output) {
            self.multiply(&mut work, part, Rows::Decoded(1.0), 1.0, None, 0.0);
        }
        if self.pipelined {
            work.overlapped = passes.max(1.0);
        }
        work
    }

    /// The parts in which a prompt is processed: where llama-server keeps checkpoints, it takes the last tokens by themselves, and a
    /// micro-batch before them (`server-context.cpp` `checkpoint_offsets`, b11434).
    fn parts_of(&self, tokens: u32) -> impl Iterator<Item = u32> {
        let ends = if self.checkpoint > 0.0 { [LAST + self.ubatch, LAST] } else { [0; 2] };
        let [before, last] = ends.map(|end| if tokens > end { end.min(self.batch) } else { 0 });
        let [before, last] = [before.max(last), last];
        [tokens - before, before - last, last].into_iter()
    }

    /// Sizes of the micro-batches of a prompt, and how many of each: batches of `-b` tokens, each in micro-batches of `-ub`.
    fn micro_batches(&self, tokens: u32) -> impl Iterator<Item = (u32, u32)> {
        let (batch, ubatch) = (self.batch, self.ubatch);
        self.parts_of(tokens)
            .flat_map(move |tokens| {
                // Whole ones, and what is left of whole and last batches.
                let (batches, last) = (tokens / batch, tokens % batch);
                let whole = batches * (batch / ubatch) + last / ubatch;
                [(ubatch, whole), (batch % ubatch, batches), (last % ubatch, 1)]
            })
            .filter(|(size, times)| *size > 0 && *times > 0)
    }

    /// The first device with work: a graph begins there.
    fn first_device(&self) -> Tier {
        let devices = self.parts.iter().map(|part| part.tier).filter(|tier| *tier != ON_HOST);
        devices.min().unwrap_or(ON_HOST)
    }

    /// The work of generating `tokens` tokens after `depth` others.
    pub fn generation(&self, tokens: u32, depth: u32) -> Work {
        let mut work = self.work();
        self.decode(&mut work, Pass::ONE_TOKEN, f64::from(tokens), f64::from(depth) + f64::from(tokens) / 2.0);
        work
    }

    /// Adds `n` passes of generation with `depth` tokens in each slot's cache.
    pub fn decode(&self, work: &mut Work, pass: Pass, n: f64, depth: f64) {
        let rows = pass.slots * pass.rows;
        let large = rows >= f64::from(self.offload_rows);
        for part in self.parts.iter().filter(|part| pass.output || !part.output) {
            // The expert cache: what is in it is read there, what is not is copied into it first.
            let is_cached = self.cache_hits > 0.0 && part.copyable && part.count > 1;
            let device = self.offload.filter(|_| is_cached || large && part.copyable);
            let hits = if is_cached { device.map_or(0.0, |_| self.cache_hits) } else { 0.0 };
            let of = if rows >= BATCH && !part.output { Rows::Batch(rows) } else { Rows::Decoded(rows) };
            self.multiply(work, part, of, n, device, hits);
        }
        // All rows of a slot look at the same tokens, which are read once; states are read and written for every row.
        let seen = self.attention.iter().map(|layer| (layer.tier, pass.slots * layer.bytes * depth.min(layer.reach)));
        let states = self.states.iter().enumerate().map(|(tier, bytes)| (tier, rows * bytes));
        for (tier, bytes) in seen.chain(states) {
            if tier == ON_HOST {
                work.add(ON_HOST, Cost::Weights, n * bytes);
                work.add(ON_HOST, Cost::ByThread, n * bytes / self.threads);
            } else {
                work.add(tier, Cost::Cache, n * bytes);
            }
        }
        // With the expert cache, the host's experts are computed on a device.
        self.changes(work, large || self.cache_hits > 0.0, rows, n);
    }

    /// Changes of tier and the starts of graphs, `times` over.
    fn changes(&self, work: &mut Work, large: bool, rows: f64, times: f64) {
        for (tier, switches) in self.switches.iter().enumerate() {
            let switches = switches[usize::from(large)];
            work.add(tier, Cost::Switch, times * switches);
            work.add(tier, Cost::Pageable, times * switches * rows * self.row);
        }
        self.start(work, times);
    }

    /// The start of a graph, `times` over, on the first device with work.
    pub fn start(&self, work: &mut Work, times: f64) {
        work.add(self.first_device(), Cost::Graph, times);
    }

    /// Weights multiplied with so many rows, `times` over; on `device` where it takes them over from the host and has the share `hits` of
    /// them already.
    fn multiply(&self, work: &mut Work, part: &Part, rows: Rows, times: f64, device: Option<Tier>, hits: f64) {
        let tier = device.unwrap_or(part.tier);
        let active = f64::from(part.used) / f64::from(part.count);
        let (Rows::Batch(n) | Rows::Decoded(n)) = rows;
        let by_vector = tier != ON_HOST && part.count > 1 && n <= VECTORS;
        let share =
            if by_vector { active * (1.0 + BY_ONE_WARP * (n - 1.0)) } else { touched(part.count, part.used, n) };
        let bytes = match rows {
            Rows::Decoded(_) => times * (part.bytes * share),
            Rows::Batch(_) => times * part.bytes * share,
        };
        // A device reads weights while it computes; with many rows that hides the reading.
        if tier == ON_HOST || matches!(rows, Rows::Decoded(_)) || n < BATCH {
            work.add(tier, Cost::Weights, bytes);
        }
        work.add(tier, Cost::Op, times * part.tensors * self.kernels_by_tensor);
        if part.tier == ON_HOST {
            work.add(ON_HOST, Cost::Disk, bytes * (1.0 - hits) * self.missing);
        }
        if let Some(device) = device {
            work.add(device, Cost::Pinned, bytes * (1.0 - hits) * self.pinned);
            work.add(device, Cost::Pageable, bytes * (1.0 - hits) * (1.0 - self.pinned));
            work.add(device, Cost::Offload, times * part.tensors);
        }
        match rows {
            Rows::Batch(rows) if tier == ON_HOST => {
                let products = 2.0 * part.element_effort * active * rows;
                work.add(ON_HOST, Cost::Products, times * products / self.threads_batch);
            }
            Rows::Batch(rows) => {
                let tile = self.tiles.get(tier).copied().unwrap_or(TILE);
                let tiled = if part.count > 1 { tiled(part.count, part.used, rows, tile) } else { rows };
                let products = part.elements * tiled + OUTPUT * part.outputs * active * rows;
                work.add(tier, Cost::Products, times * 2.0 * products);
            }
            Rows::Decoded(rows) if tier == ON_HOST => {
                work.add(ON_HOST, Cost::ByThread, times * part.effort * active * rows / self.threads);
            }
            Rows::Decoded(_) => {}
        }
    }
}

fn stage(tensor: &Tensor) -> usize {
    match tensor.role {
        Role::RoutedExpert if tensor.name.contains("_down") => 3,
        Role::RoutedExpert => 2,
        Role::SharedExpert | Role::DenseFfn => 1,
        _ => 0,
    }
}

/// Cores that `-t` keeps busy. Without it llama.cpp takes one thread a core (`common_cpu_get_num_math`); second threads of a
/// core add a quarter of one, more threads than that wait for each other. Who gives `-t` for a computer whose cores are not known has
/// so many.
fn threads(case: &Case<'_>, asked: Option<u32>) -> f64 {
    let host = &case.machine.host;
    let guessed = asked.filter(|n| *n > GUESSED_CORES).unwrap_or(GUESSED_CORES);
    let cores = f64::from(host.cores.unwrap_or(guessed).max(1));
    let threads = host.threads.map_or(cores, f64::from).max(cores);
    let n = asked.map_or(cores, f64::from).max(1.0);
    let busy = cores.min(n) + SMT * (threads.min(n) - cores).max(0.0);
    if n > threads { busy * threads / n } else { busy }
}

/// Operations of one query with one token in a layer: q·k and p·v of every head.
fn flops(case: &Case<'_>, layer: &CacheLayer) -> f64 {
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

/// What a byte of this type costs a processor beside one of `q4_K`, in products with few rows.
///
/// From what each kernel of `ggml-cpu` does: plain loads are cheaper, codebooks (`iq*`) and ternary types dearer.
/// A coarse table: types within a family differ, and processors too.
fn effort(ty: GgmlType) -> f64 {
    match ty.name {
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
fn float(n: u64) -> f64 {
    n as f64
}

/// Rows by expert, in whole tiles, of a micro-batch of `tokens` tokens that draw `used` of `count` experts each: drawn as [`touched`]
/// has it, n in the mean, an expert has more than k tiles' rows with the probability exp(−k·tile ÷ n).
fn tiled(count: u32, used: u32, tokens: f64, tile: f64) -> f64 {
    let tile = tile.min((tokens / 8.0).ceil() * 8.0);
    let draws = f64::from(used) / f64::from(count) * tokens;
    // As an `f32`: systems round the last digits of `exp` differently, and an answer is the same everywhere.
    #[expect(clippy::cast_possible_truncation, reason = "at most infinity, of which nothing is left")]
    let beyond = f64::from((tile / draws).exp() as f32);
    tile * (touched(count, used, tokens) + 1.0 / (beyond - 1.0))
}

/// The share of `count` experts that at least one of `tokens` tokens uses, each token drawing `used` of them.
///
/// Routing is uneven: an expert's share of the draws is taken as spread exponentially, so that of experts with n draws
/// in the mean 1 − ∫ exp(−x·n) exp(−x) dx = n ÷ (1 + n) are touched. With few draws no fewer than one token's own.
fn touched(count: u32, used: u32, tokens: f64) -> f64 {
    if used >= count {
        return 1.0;
    }
    let share = f64::from(used) / f64::from(count);
    let draws = share * tokens;
    (draws / (1.0 + draws)).max(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Device, Host, Machine};
    use crate::memory;
    use crate::run::{Program, RunConfig};
    use crate::synth::{self, Wish};

    /// As llama-server's log of Qwen3.5-35B-A3B has it: "created context checkpoint 1 of 32 (… n_tokens = 3580 …)", 2 at 4092.
    #[test]
    fn where_it_keeps_checkpoints_llama_server_takes_the_end_of_a_prompt_by_itself() {
        let machine = Machine::new(vec![Device::parse("CUDA0=80G").unwrap()], Host::default()).unwrap();
        let of = |name: &str, run: RunConfig, tokens| {
            let model = synth::model(name, &Wish::default()).unwrap();
            let run = RunConfig { n_ctx: 8192, n_gpu_layers: 99, ..run };
            let forecast = &memory::forecast(&model, &machine, &run).unwrap();
            let placement = &forecast.placement;
            let layout = Layout::of(&Case { model: &model, machine: &machine, run: &run, placement, forecast });
            layout.micro_batches(tokens).collect::<Vec<_>>()
        };
        let server = || RunConfig { program: Program::Server, ..RunConfig::default() };
        let parts = [(512, 6), (508, 1), (512, 1), (4, 1)];
        assert_eq!(of("qwen3.5-35b-a3b", server(), 4096), parts);
        assert_eq!(of("gpt-oss-20b", server(), 4096), parts);
        assert_eq!(of("gpt-oss-20b", server(), 512), [(508, 1), (4, 1)]);
        assert_eq!(of("gpt-oss-20b", server(), 3), [(3, 1)]);
        let large = RunConfig { n_ubatch: 2048, ..server() };
        assert_eq!(of("qwen3.5-35b-a3b", large, 4096), [(2048, 1), (2044, 1), (4, 1)]);
        let others = [
            ("qwen3-30b-a3b", server()),
            ("gpt-oss-20b", RunConfig { ctx_checkpoints: Some(0), ..server() }),
            ("gpt-oss-20b", RunConfig { swa_full: true, ..server() }),
            ("gpt-oss-20b", RunConfig { program: Program::Bench, ..server() }),
        ];
        for (name, run) in others {
            assert_eq!(of(name, run, 4096), [(512, 8)], "{name}");
        }
    }

    #[test]
    fn more_tokens_touch_more_experts_and_larger_caches_serve_more() {
        for (tokens, least, most) in [(1.0, 0.0624, 0.0626), (32.0, 0.6, 0.7), (512.0, 0.96, 0.98), (4096.0, 0.99, 1.0)]
        {
            assert!((least..=most).contains(&touched(128, 8, tokens)), "{tokens}");
        }
        for (share, expected) in [(0.0, 0.0), (0.125, 0.67), (0.25, 0.81), (0.625, 0.905), (1.0, 1.0), (2.0, 1.0)] {
            assert!((hits(share) - expected).abs() < 1e-9, "{share}");
        }
    }
}
