//! The search on one way of sharing the layers over the devices: the movable tensors of the blocks stay with their layer or go to the
//! host, and which launch of those that fit costs least by the objective.
//!
//! Where one tensor goes does not depend on where another goes (`placement`), so two answers of the law, nothing moved and all
//! moved, hold the answer to every mixture of them; no regex is matched while the planner looks around. Compute buffers are what is
//! dear to predict (a graph is built and laid out), and they depend on little: the micro-batch, the types of the cache, whether any
//! expert is on the host. So drafts are ranked with compute that was predicted at the ends of the range of micro-batches and is
//! taken as straight between; the winner is then judged exactly, and refilled with its own compute until it fits and nothing more
//! would.

use std::cell::Cell;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeSet;

use super::patterns::{self, TensorSet, key};
use super::solver::{Candidate, Objective, Problem, Strategy, TIE};
use crate::bytes::Bytes;
use crate::machine::Device;
use crate::memory::compute::Compute;
use crate::memory::{self, Error, Forecast, HOST, MemoryBreakdown, MemoryByDevice};
use crate::placement::{self, Buffer, Placement};
use crate::rules::Role;
use crate::run::{FlashAttn, LoadMode, RunConfig, numbers, on_host};
use crate::speed::Estimate;

/// Micro-batches to choose from, in tokens.
pub const UBATCHES: [u32; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];
/// llama.cpp's `-ub` where it is not given: smaller ones are an exception.
const USUAL_UBATCH: u32 = 512;
const LEAST_UBATCH: u32 = 64;
/// How many choices beyond the room are judged, the largest first.
const REACHES: usize = 6;
/// llama.cpp's `-b` where it is not given.
const N_BATCH: u32 = 2048;
/// A choice must be better by this share to be made instead of a simpler one.
pub const WORTH: f64 = 0.01;
/// Each doubling of the micro-batch must be better by this share: short prompts gain less by it than the turn does.
const WORTH_DOUBLING: f64 = 0.0025;
/// Other parts of a block, or more of them, must promise to be better by this share to be judged.
const WORTH_POLISHING: f64 = 0.002;
/// A draft must promise to be better by this share to be judged after another one was.
const WORTH_JUDGING: f64 = 0.005;
/// Parts of one block that the planner tells apart; a block with more moves the rest with the last.
const PARTS: usize = 12;

/// Which blocks of a device's range go to the host first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As with llama.cpp's `--n-cpu-moe`.
    First,
    Last,
}

/// Which parts of each movable block stay with their layer: bit `p` of entry `u` is part `p` of block `u`.
pub type Kept = Vec<u32>;

/// One movable block. A part is the tensors of one kind: a weight with its biases and scales, always on the same side.
#[derive(Debug)]
struct Unit {
    block: u32,
    /// The device of its layer, by its place in the machine; `None` for a layer of the host.
    device: Option<u16>,
    /// `ffn_up_exps`, in the order of the file.
    stems: Vec<String>,
    /// Bytes of each part on that device, padded.
    bytes: Vec<u64>,
}

impl Unit {
    fn whole(&self) -> u32 {
        (1u32 << self.bytes.len()) - 1
    }

    fn bytes_of(&self, parts: u32) -> u64 {
        self.bytes.iter().enumerate().filter(|(part, _)| parts >> part & 1 == 1).map(|(_, bytes)| bytes).sum()
    }
}

/// A launch that was ranked and not yet judged.
struct Draft {
    setting: RunConfig,
    kept: Kept,
    host: End,
    /// The least score that judging it may find; infinite where it cannot fit.
    bound: f64,
    /// Memory with everything on the devices: the compute that is left where nothing has to be copied.
    least: MemoryByDevice,
    /// By how much main memory is short, as far as a draft tells.
    host_short: Bytes,
}

/// A way of sharing the layers, and what may move on it.
#[derive(Debug)]
pub struct Stage<'a> {
    problem: &'a Problem<'a>,
    base: RunConfig,
    pub bare: Placement,
    /// The law's answer with every movable tensor on the host.
    pub hosted: Placement,
    units: Vec<Unit>,
    /// By tensor: the movable block and part that it belongs to.
    part_of: Vec<Option<(usize, usize)>>,
    universe: TensorSet,
    /// Whether `-fa auto` was found to mean `on`.
    flash_attn: Cell<bool>,
}

fn row(forecast: &Forecast, device: &Device) -> MemoryBreakdown {
    // A device without a row takes no part and holds nothing.
    forecast.memory.get(&device.name).copied().unwrap_or_default()
}

fn signed(bytes: Bytes) -> i128 {
    i128::from(bytes.0)
}

impl<'a> Stage<'a> {
    /// The stage of a launch on which tensors of `roles` may move. What a rule of the launch placed is left alone, and a block part
    /// of which is claimed offers the rest.
    pub fn new(problem: &'a Problem<'a>, base: RunConfig, roles: &[Role]) -> Result<Self, Error> {
        let (model, machine) = (problem.model, problem.machine);
        let bare = placement::place(model, machine, &base)?;
        let of_roles = model.tensors.iter().zip(&bare.copies).enumerate().filter_map(|(at, (tensor, copies))| {
            let is_loaded = roles.contains(&tensor.role) && !copies.is_empty();
            key(tensor).filter(|_| is_loaded).map(|key| (at, key, copies))
        });
        let loaded: Vec<_> = of_roles.collect();
        let by_rule = loaded.iter().filter(|(.., copies)| copies.iter().any(|copy| copy.rule.is_some()));
        let claimed: BTreeSet<_> = by_rule.map(|(_, key, _)| *key).collect();
        let free: Vec<_> = loaded.iter().filter(|(_, key, _)| !claimed.contains(key)).collect();
        let blocks: BTreeSet<u32> = free.iter().map(|(_, (block, _), _)| *block).collect();
        let unit = |block: u32| {
            let device = bare.layers.get(block as usize).copied().flatten();
            Unit { block, device, stems: Vec::new(), bytes: Vec::new() }
        };
        let mut units: Vec<Unit> = blocks.into_iter().map(unit).collect();
        let mut part_of = vec![None; model.tensors.len()];
        for (at, (block, stem), copies) in free {
            let Ok(index) = units.binary_search_by_key(block, |unit| unit.block) else { continue };
            let unit = &mut units[index];
            let part = unit.stems.iter().position(|known| known == stem).unwrap_or_else(|| {
                unit.stems.push((*stem).to_string());
                unit.bytes.resize(unit.stems.len().min(PARTS), 0);
                unit.stems.len() - 1
            });
            let part = part.min(PARTS - 1);
            part_of[*at] = Some((index, part));
            let padding = unit.device.and_then(|at| machine.device(at)).map_or(32, |device| device.backend.alignment());
            let on_device = copies.iter().filter(|copy| matches!(copy.buffer, Buffer::Device(_)));
            unit.bytes[part] += on_device.map(|copy| copy.bytes.padded(padding).0).sum::<u64>();
        }
        let universe = loaded.iter().map(|(_, (block, stem), _)| (*block, (*stem).to_string())).collect();
        let hosted = bare.clone();
        let mut stage = Self { problem, base, bare, hosted, units, part_of, universe, flash_attn: Cell::new(false) };
        if !stage.is_fixed() {
            stage.hosted = placement::place(model, machine, &stage.run(&stage.base, &stage.nothing()))?;
        }
        Ok(stage)
    }

    pub fn nothing(&self) -> Kept {
        vec![0; self.units.len()]
    }

    pub fn everything(&self) -> Kept {
        self.units.iter().map(Unit::whole).collect()
    }

    pub fn is_fixed(&self) -> bool {
        self.units.is_empty()
    }

    /// Bytes that a choice keeps on devices.
    pub fn bytes(&self, kept: &Kept) -> u64 {
        self.units.iter().zip(kept).map(|(unit, parts)| unit.bytes_of(*parts)).sum()
    }

    pub fn placement(&self, kept: &Kept) -> Placement {
        let copies = self.part_of.iter().enumerate().map(|(at, part)| {
            let stays = part.is_none_or(|(unit, part)| kept[unit] >> part & 1 == 1);
            if stays { self.bare.copies[at].clone() } else { self.hosted.copies[at].clone() }
        });
        let Placement { layers, devices, is_mapped, shares, .. } = &self.bare;
        Placement {
            copies: copies.collect(),
            layers: layers.clone(),
            devices: devices.clone(),
            is_mapped: *is_mapped,
            shares: shares.clone(),
        }
    }

    /// `setting` with the overrides that a choice takes.
    pub fn run(&self, setting: &RunConfig, kept: &Kept) -> RunConfig {
        let mut moved = TensorSet::new();
        for (unit, parts) in self.units.iter().zip(kept) {
            let leaves = unit.stems.iter().enumerate().filter(|(at, _)| parts >> at.min(&(PARTS - 1)) & 1 == 0);
            moved.extend(leaves.map(|(_, stem)| (unit.block, stem.clone())));
        }
        let mut run = setting.clone();
        let patterns = patterns::patterns(&moved, &self.universe);
        run.overrides.extend(patterns.into_iter().map(|pattern| on_host(pattern, "-ot")));
        run
    }

    /// What each device of the machine has left beside what a forecast of the launch with everything moved takes, in bytes.
    pub fn room(&self, all_moved: &Forecast) -> Vec<i128> {
        let taken = |device: &Device| signed(self.problem.request.margin + all_moved.total(&device.name));
        self.problem.machine.devices.iter().map(|device| signed(device.total) - taken(device)).collect()
    }

    /// The movable blocks of a device, the one that stays there longest first.
    fn staying(&self, device: u16, host: End) -> Vec<usize> {
        let mut here: Vec<usize> = (0..self.units.len()).filter(|at| self.units[*at].device == Some(device)).collect();
        if host == End::First {
            here.reverse();
        }
        here
    }

    /// The most that fits into the room of each device: whole blocks from the end that stays, then single parts of one more.
    pub fn fill(&self, room: &[i128], host: End, single_parts: bool) -> Kept {
        let mut kept = self.nothing();
        for (device, room) in (0..).zip(room) {
            let mut left = *room;
            for at in self.staying(device, host) {
                let unit = &self.units[at];
                let whole = i128::from(unit.bytes_of(unit.whole()));
                if whole > left {
                    let fitting = (0..unit.whole()).filter(|parts| i128::from(unit.bytes_of(*parts)) <= left);
                    let most = fitting.max_by_key(|parts| (unit.bytes_of(*parts), Reverse(parts.count_ones())));
                    kept[at] = most.filter(|_| single_parts).unwrap_or(0);
                    break;
                }
                left -= whole;
                kept[at] = unit.whole();
            }
        }
        kept
    }

    /// A choice with one step less on `device`: the single parts go, else the block nearest to the moved ones. `None` where
    /// nothing is left to move.
    pub fn one_less(&self, kept: &Kept, device: u16, host: End) -> Option<Kept> {
        let here = self.staying(device, host);
        let partial = here.iter().rfind(|at| kept[**at] != 0 && kept[**at] != self.units[**at].whole());
        let at = *partial.or_else(|| here.iter().rfind(|at| kept[**at] != 0))?;
        let mut less = kept.clone();
        less[at] = 0;
        Some(less)
    }

    /// A choice with one whole block more on `device`. `None` where all are there.
    pub fn one_more(&self, kept: &Kept, device: u16, host: End) -> Option<Kept> {
        let at = self.staying(device, host).into_iter().find(|at| kept[*at] != self.units[*at].whole())?;
        let mut more = kept.clone();
        more[at] = self.units[at].whole();
        Some(more)
    }

    /// The choice that a placement of this stage's model shows.
    pub fn kept_of(&self, placement: &Placement) -> Kept {
        let mut kept = self.everything();
        for (part, copies) in self.part_of.iter().zip(&placement.copies) {
            if let Some((unit, part)) = part
                && copies.iter().any(|copy| !matches!(copy.buffer, Buffer::Device(_)))
            {
                kept[*unit] &= !(1 << part);
            }
        }
        kept
    }

    /// Which end of its range a choice leaves to the host.
    pub fn end_of(&self, kept: &Kept) -> End {
        let first = self.units.iter().zip(kept).next().is_some_and(|(unit, parts)| *parts == unit.whole());
        if first { End::Last } else { End::First }
    }

    /// As many whole blocks on each device as in `kept`, with the other end on the host.
    pub fn mirrored(&self, kept: &Kept, host: End) -> Kept {
        let mut mirrored = self.nothing();
        for device in self.units.iter().filter_map(|unit| unit.device).collect::<BTreeSet<u16>>() {
            let here = self.staying(device, host);
            let whole = here.iter().filter(|at| kept[**at] == self.units[**at].whole()).count();
            here.iter().take(whole).for_each(|at| mirrored[*at] = self.units[*at].whole());
        }
        mirrored
    }

    /// Choices that keep more on `device` than `kept` does: more whole blocks from the end that stays, with any parts of one
    /// more.
    fn beyond(&self, kept: &Kept, device: u16, host: End) -> Vec<Kept> {
        let here = self.staying(device, host);
        let bytes = self.bytes(kept);
        let mut found = Vec::new();
        for whole in 0..=here.len() {
            let mut next = kept.clone();
            for (rank, at) in here.iter().enumerate() {
                next[*at] = if rank < whole { self.units[*at].whole() } else { 0 };
            }
            let edge = here.get(whole).map_or(0, |at| self.units[*at].whole());
            for parts in 0..edge.max(1) {
                if let Some(at) = here.get(whole) {
                    next[*at] = parts;
                }
                if self.bytes(&next) > bytes {
                    found.push(next.clone());
                }
            }
        }
        found
    }

    /// The choices that differ in the parts of one block that is kept in part, without taking more bytes.
    fn with_other_parts(&self, kept: &Kept) -> Vec<Kept> {
        let mut found = Vec::new();
        for (at, unit) in self.units.iter().enumerate().filter(|(at, unit)| kept[*at] != 0 && kept[*at] != unit.whole())
        {
            let most = unit.bytes_of(kept[at]);
            for parts in (0..unit.whole()).filter(|parts| *parts != kept[at] && unit.bytes_of(*parts) <= most) {
                let mut other = kept.clone();
                other[at] = parts;
                found.push(other);
            }
        }
        found
    }

    /// The best launch of `setting` that fits; where none does, the best of those that are short of main memory alone; else the one that
    /// is least short.
    ///
    /// Drafts are judged in the order of what they promise, until none promises more than the best has. Where that one is short of main
    /// memory, what promises less is judged as well if main memory may hold it: a smaller micro-batch takes less there.
    pub fn best(&self, setting: &RunConfig) -> Result<Candidate, Error> {
        let mut best: Option<(f64, Candidate)> = None;
        let mut too_large = u32::MAX;
        let drafts = self.drafts(setting)?;
        let is_host_tight = drafts.iter().any(|draft| draft.host_short > Bytes(0));
        // What is known of a draft is true to a block.
        let block = self.units.iter().map(|unit| unit.bytes_of(unit.whole())).max().unwrap_or_default();
        for draft in drafts {
            let is_beaten = best.as_ref().is_some_and(|(score, best)| {
                let is_worse = draft.bound > score * (1.0 - WORTH_JUDGING);
                let may_fit = draft.host_short.0 <= block;
                if best.lack() == 1 { is_worse && !may_fit } else { is_worse || (best.fits() && !may_fit) }
            });
            if is_beaten || draft.setting.n_ubatch >= too_large {
                continue;
            }
            let candidate = self.settle(&draft)?;
            let score = if candidate.devices_fit() {
                self.score(&candidate.estimate, draft.setting.n_ubatch)
            } else {
                too_large = draft.setting.n_ubatch;
                f64::INFINITY
            };
            let is_better = best.as_ref().is_none_or(|(known, other)| match candidate.lack().cmp(&other.lack()) {
                Ordering::Equal if candidate.devices_fit() => score < *known,
                Ordering::Equal => candidate.missing() < other.missing(),
                order => order.is_lt(),
            });
            if is_better {
                best = Some((score, candidate));
            }
        }
        let best = best.map_or_else(|| self.candidate(setting, &self.nothing(), None), |(_, best)| Ok(best))?;
        Ok(Candidate { is_host_tight, ..best })
    }

    /// Every micro-batch that may be chosen, the largest first.
    pub fn every_ubatch(&self, setting: &RunConfig) -> Vec<u32> {
        self.ubatches(setting).into_iter().rev().chain(self.least_ubatch(setting)).collect()
    }

    /// Whether a launch with this micro-batch that moves more than the stage's tensors may be better than `best`: with nothing
    /// else moved it costs less than that.
    pub fn may_gain_by_room(&self, setting: &RunConfig, n_ubatch: u32, best: &Candidate) -> Result<bool, Error> {
        if !best.devices_fit() {
            return Ok(true);
        }
        let setting = self.at(setting, n_ubatch);
        let hosted = self.hosted_with_compute_of(&setting, best)?;
        let promised = self.promise(&setting, &self.nothing(), &hosted);
        Ok(promised < self.score(&best.estimate, best.run.n_ubatch) * (1.0 - WORTH))
    }

    /// What launches are compared by: their cost, and what a micro-batch unlike llama.cpp's own must be worth.
    fn score(&self, estimate: &Estimate, n_ubatch: u32) -> f64 {
        let doublings = (f64::from(n_ubatch) / f64::from(USUAL_UBATCH)).log2();
        // Generation does not depend on it: there a larger one is weighed by the prompts alone.
        let doubling =
            if self.problem.request.objective == Objective::Tg { TIE * WORTH_DOUBLING } else { WORTH_DOUBLING };
        let dearer = if doublings < 0.0 { WORTH } else { doubling * doublings };
        self.problem.cost(estimate) * (1.0 + dearer)
    }

    /// The score of a choice with the memory of another one.
    fn promise(&self, setting: &RunConfig, kept: &Kept, forecast: &Forecast) -> f64 {
        let estimate = self.problem.estimate(setting, &self.placement(kept), forecast);
        self.score(&estimate, setting.n_ubatch)
    }

    /// Whether micro-batches smaller than llama.cpp's own may be tried.
    fn may_shrink(&self) -> bool {
        self.problem.request.levers.ubatch && self.is_auto()
    }

    fn is_auto(&self) -> bool {
        self.problem.request.strategy == Strategy::Auto
    }

    /// The smallest micro-batch, which is tried where nothing else fits.
    fn least_ubatch(&self, setting: &RunConfig) -> Option<u32> {
        Some(LEAST_UBATCH).filter(|least| self.may_shrink() && *least <= setting.n_batch)
    }

    fn ubatches(&self, setting: &RunConfig) -> Vec<u32> {
        if !self.problem.request.levers.ubatch {
            return vec![setting.n_ubatch];
        }
        let least = if self.may_shrink() { 0 } else { USUAL_UBATCH };
        let batch = if self.problem.request.levers.batch { u32::MAX } else { setting.n_batch };
        let most = setting.n_ctx.max(USUAL_UBATCH).min(batch);
        let found: Vec<u32> = UBATCHES.into_iter().filter(|n| (least..=most).contains(n)).collect();
        if found.is_empty() { vec![setting.n_batch.min(USUAL_UBATCH)] } else { found }
    }

    /// `setting` with a micro-batch, and a batch that holds it.
    pub fn at(&self, setting: &RunConfig, n_ubatch: u32) -> RunConfig {
        let n_batch = if self.problem.request.levers.batch { N_BATCH.max(n_ubatch) } else { setting.n_batch };
        RunConfig { n_batch, n_ubatch, ..setting.clone() }
    }

    /// What is worth judging at each micro-batch, what promises most first: all with its layers where that fits; else filled from
    /// either end.
    fn drafts(&self, setting: &RunConfig) -> Result<Vec<Draft>, Error> {
        let ubatches = self.ubatches(setting);
        let range = (ubatches[0], ubatches[ubatches.len() - 1]);
        let fills = self.problem.request.strategy != Strategy::ExpertsOnHost;
        let ends: &[End] =
            if self.is_auto() && self.units.len() > 1 { &[End::First, End::Last] } else { &[End::First] };
        let mut drafts = Vec::new();
        for ubatch in ubatches {
            let setting = self.at(setting, ubatch);
            let with_compute = |placement: &Placement, whole| {
                self.forecast(&setting, placement.clone(), Some(&self.compute(&setting, range, whole)?))
            };
            let whole = with_compute(&self.bare, true)?;
            let host_short = |forecast: &Forecast| {
                let short = forecast.shortfall(self.problem.machine, self.problem.request.margin);
                short.get(HOST).copied().unwrap_or_default()
            };
            let mut draft = |kept, host, bound, short| {
                let (setting, least) = (setting.clone(), whole.memory.clone());
                drafts.push(Draft { setting, kept, host, bound, least, host_short: short });
            };
            if self.is_whole()
                || (fills && whole.devices_short(self.problem.machine, self.problem.request.margin).is_empty())
            {
                let bound = self.promise(&setting, &self.everything(), &whole);
                draft(self.everything(), End::First, bound, host_short(&whole));
                continue;
            }
            let hosted = with_compute(&self.hosted, false)?;
            let room = self.room(&hosted);
            // At the most: as if nothing on the host had to be copied, nor to be pinned for it.
            let beside = |of: &Forecast, device: &Device| signed(row(of, device).compute + row(of, device).overhead);
            let devices = &self.problem.machine.devices;
            let freed = |device: &Device| (beside(&hosted, device) - beside(&whole, device)).max(0);
            let most: Vec<i128> = room.iter().zip(devices).map(|(room, device)| room + freed(device)).collect();
            let is_short = |(room, device): (&i128, &Device)| *room < 0 && hosted.memory.contains_key(&device.name);
            let cannot = fills && most.iter().zip(devices).any(is_short);
            for host in ends {
                let fill = |room| if fills { self.fill(room, *host, self.is_auto()) } else { self.nothing() };
                let bound = if cannot { f64::INFINITY } else { self.promise(&setting, &fill(&most), &hosted) };
                let kept = fill(&room);
                // Where main memory has room for all, it has room for less.
                let short = match host_short(&hosted) {
                    Bytes(0) => Bytes(0),
                    _ => host_short(&with_compute(&self.placement(&kept), false)?),
                };
                draft(kept, *host, bound, short);
            }
        }
        let host_short = drafts.first().map_or(Bytes(0), |draft| draft.host_short);
        drafts.extend(self.least_ubatch(setting).map(|least| Draft {
            setting: self.at(setting, least),
            kept: self.nothing(),
            host: End::First,
            bound: f64::INFINITY,
            least: MemoryByDevice::new(),
            host_short,
        }));
        drafts.sort_by(|one, other| one.bound.total_cmp(&other.bound));
        Ok(drafts)
    }

    /// Whether nothing may be moved at all.
    fn is_whole(&self) -> bool {
        self.is_fixed() || matches!(self.problem.request.strategy, Strategy::AllOnDevice | Strategy::Rules)
    }

    fn forecast(
        &self,
        setting: &RunConfig,
        placement: Placement,
        compute: Option<&Compute>,
    ) -> Result<Forecast, Error> {
        let mut run = setting.clone();
        // Finding out what `-fa auto` means costs a graph, and where experts are does not change it.
        if run.flash_attn == FlashAttn::Auto && self.flash_attn.get() {
            run.flash_attn = FlashAttn::On;
        }
        // That there are overrides at all keeps several devices from working in a pipeline; which ones is in the placement.
        if run.overrides.is_empty() && placement.copies != self.bare.copies {
            run.overrides.push(on_host(String::new(), "-ot"));
        }
        memory::Launch::new(self.problem.model, self.problem.machine, &run).forecast(placement, compute)
    }

    /// The memory of a launch with everything moved, with the compute that another one was found to have.
    pub fn hosted_with_compute_of(&self, setting: &RunConfig, other: &Candidate) -> Result<Forecast, Error> {
        self.forecast(setting, self.hosted.clone(), Some(&other.forecast.compute()))
    }

    /// A choice with the compute of another launch, exactly without.
    pub fn candidate(&self, setting: &RunConfig, kept: &Kept, other: Option<&Candidate>) -> Result<Candidate, Error> {
        let compute = other.map(|other| other.forecast.compute());
        let forecast = match &compute {
            Some(_) => self.forecast(setting, self.placement(kept), compute.as_ref())?,
            // Whether several micro-batches are in flight depends on the budgets, which the key does not have.
            None if *kept == self.everything() => self.forecast(setting, self.placement(kept), None)?,
            None => self.known_forecast(setting, kept)?,
        };
        Ok(self.problem.candidate(self.run(setting, kept), forecast))
    }

    /// A forecast whose compute is looked up; what is not known yet is predicted, and then known.
    fn known_forecast(&self, setting: &RunConfig, kept: &Kept) -> Result<Forecast, Error> {
        // Tensors move between kinds of host memory by the load mode, and compute stays as it is.
        let run = RunConfig { load_mode: LoadMode::None, ..setting.clone() };
        let key = (kept.clone(), run, self.bare.layers.clone(), self.base.overrides.clone());
        let known = self.problem.computes.borrow().iter().find(|(known, _)| *known == key).map(|(_, c)| c.clone());
        let forecast = self.forecast(setting, self.placement(kept), known.as_ref())?;
        if known.is_none() {
            self.problem.computes.borrow_mut().push((key, forecast.compute()));
        }
        Ok(forecast)
    }

    /// Compute at a micro-batch: predicted at the ends of `range`, straight between.
    fn compute(&self, setting: &RunConfig, range: (u32, u32), whole: bool) -> Result<Compute, Error> {
        let of = |ubatch| numbers(&self.at(setting, ubatch), &self.problem.model.hparams).n_ubatch;
        let (low, high, here) = (of(range.0), of(range.1), of(setting.n_ubatch));
        let mut between = self.compute_at(&self.at(setting, range.0), whole)?;
        if here > low && low != high {
            let last = self.compute_at(&self.at(setting, range.1), whole)?;
            let share = f64::from(here - low) / f64::from(high - low);
            for (name, bytes) in &mut between.by_device {
                *bytes = straight(*bytes, last.by_device.get(name).copied().unwrap_or(*bytes), share);
            }
        }
        Ok(between)
    }

    fn compute_at(&self, setting: &RunConfig, whole: bool) -> Result<Compute, Error> {
        let kept = if whole { self.everything() } else { self.nothing() };
        let compute = self.known_forecast(setting, &kept)?.compute();
        self.flash_attn.set(compute.flash_attn);
        Ok(compute)
    }

    /// Judges a draft exactly, and refills it with its own compute until nothing changes.
    fn settle(&self, draft: &Draft) -> Result<Candidate, Error> {
        let mut best: Option<(Kept, Candidate)> = None;
        let mut worst: Option<(Kept, Candidate)> = None;
        let mut kept = draft.kept.clone();
        let mut tried: Vec<Kept> = Vec::new();
        while tried.len() < 5 && !tried.contains(&kept) {
            let candidate = self.candidate(&draft.setting, &kept, None)?;
            tried.push(kept.clone());
            let next = self.refilled(draft, &kept, &candidate)?;
            if !candidate.devices_fit() {
                worst = Some((kept, candidate));
            } else if best.as_ref().is_none_or(|(known, _)| self.bytes(&kept) > self.bytes(known)) {
                best = Some((kept, candidate));
            }
            kept = next;
        }
        match (best, worst) {
            (Some((kept, candidate)), _) if self.is_auto() => self.polish(draft, self.reach(draft, kept, candidate)?),
            (Some((_, candidate)), _) => Ok(candidate),
            (None, Some((kept, candidate))) => self.step_down(draft, kept, candidate),
            (None, None) => self.candidate(&draft.setting, &draft.kept, None),
        }
    }

    /// Tries what has no room yet and would have, because with its largest tensor the area that prompts copy experts through
    /// leaves as well.
    fn reach(&self, draft: &Draft, mut kept: Kept, mut candidate: Candidate) -> Result<Candidate, Error> {
        for (at, device) in (0..).zip(&self.problem.machine.devices).filter(|_| !self.is_whole()) {
            let bytes = self.bytes(&kept);
            let row = row(&candidate.forecast, device);
            let least = draft.least.get(&device.name).map_or(Bytes(0), |row| row.compute);
            // What is over its budget has nothing to spare.
            let spare = device.total.saturating_sub(row.total() + self.problem.request.margin)
                + row.compute.saturating_sub(least);
            let mut further = self.beyond(&kept, at, draft.host);
            further.retain(|next| self.bytes(next) - bytes <= spare.0);
            further.sort_by_key(|next| Reverse(self.bytes(next)));
            for next in further.into_iter().take(REACHES) {
                let promised = self.problem.estimate(&draft.setting, &self.placement(&next), &candidate.forecast);
                if self.problem.cost(&promised) > self.problem.cost(&candidate.estimate) * (1.0 - WORTH_POLISHING) {
                    continue;
                }
                let tried = self.candidate(&draft.setting, &next, None)?;
                if tried.devices_fit() && self.problem.is_better(&tried, &candidate, 0.0) {
                    (kept, candidate) = (next, tried);
                    break;
                }
            }
        }
        Ok(candidate)
    }

    /// Tries other parts of a block that is kept in part, and none: a block on both sides waits for both, which its bytes on
    /// the device may not be worth.
    fn polish(&self, draft: &Draft, candidate: Candidate) -> Result<Candidate, Error> {
        let kept = self.kept_of(&candidate.forecast.placement);
        let mut best = (self.problem.cost(&candidate.estimate) * (1.0 - WORTH_POLISHING), None);
        for other in self.with_other_parts(&kept) {
            let estimate = self.problem.estimate(&draft.setting, &self.placement(&other), &candidate.forecast);
            let cost = self.problem.cost(&estimate);
            if cost < best.0 {
                best = (cost, Some(other));
            }
        }
        let Some(other) = best.1 else { return Ok(candidate) };
        let polished = self.candidate(&draft.setting, &other, None)?;
        Ok(if polished.lack() <= candidate.lack() { polished } else { candidate })
    }

    /// What the room holds, given the compute of `candidate`.
    fn refilled(&self, draft: &Draft, kept: &Kept, candidate: &Candidate) -> Result<Kept, Error> {
        if self.is_whole() || self.problem.request.strategy == Strategy::ExpertsOnHost {
            return Ok(kept.clone());
        }
        let devices = &self.problem.machine.devices;
        let all_moved = self.hosted_with_compute_of(&draft.setting, candidate)?;
        let mut room = self.room(&all_moved);
        // What a device holds beside the table grows with the pinned memory of the host: the candidate's is nearer.
        for (room, device) in room.iter_mut().zip(devices) {
            let overhead = |of: &Forecast| signed(row(of, device).overhead);
            *room += overhead(&all_moved) - overhead(&candidate.forecast);
        }
        let filled = self.fill(&room, draft.host, self.is_auto());
        // With nothing left to copy to a device, the area for it goes: that may be what the rest lacks.
        let whole = self.everything();
        let freed = |((at, device), room): ((u16, &Device), &i128)| {
            let here = self.units.iter().filter(|unit| unit.device == Some(at));
            let movable: u64 = here.map(|unit| unit.bytes_of(unit.whole())).sum();
            i128::from(movable) <= room + signed(row(&candidate.forecast, device).compute)
        };
        let fits = filled != whole && *kept != whole && (0..).zip(devices).zip(&room).all(freed);
        Ok(if fits && candidate.devices_fit() { whole } else { filled })
    }

    /// Moves more and more until the devices fit; the last one tried where none does.
    fn step_down(&self, draft: &Draft, mut kept: Kept, mut candidate: Candidate) -> Result<Candidate, Error> {
        let mut steps = 1;
        while !candidate.devices_fit() && !self.is_whole() {
            let mut moved = false;
            for (at, device) in (0..).zip(&self.problem.machine.devices) {
                for _ in 0..if candidate.shortfall.contains_key(&device.name) { steps } else { 0 } {
                    let less = self.one_less(&kept, at, draft.host);
                    moved |= less.is_some();
                    kept = less.unwrap_or(kept);
                }
            }
            if !moved {
                break;
            }
            candidate = self.candidate(&draft.setting, &kept, None)?;
            steps *= 2;
        }
        Ok(candidate)
    }
}

/// A point between two.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate of bytes below 2^52"
)]
fn straight(from: Bytes, to: Bytes, share: f64) -> Bytes {
    Bytes((from.0 as f64 + (to.0 as f64 - from.0 as f64) * share).max(0.0) as u64)
}
