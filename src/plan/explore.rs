//! The search: which launch, among those that fit, costs least by the objective.
//!
//! Compute buffers are what is dear to predict (a graph is built and laid out), and they depend on little: the micro-batch, the
//! types of the cache, whether any expert is on the host. So drafts are ranked with compute that was predicted at the ends of
//! the range of micro-batches and is taken as straight between; the winner is then judged exactly, and refilled with its own
//! compute until it fits and nothing more would.

use std::cell::Cell;

use super::solver::{Candidate, Problem, Strategy};
use super::stage::{End, Kept, Stage};
use crate::bytes::Bytes;
use crate::machine::Device;
use crate::memory::compute::Compute;
use crate::memory::{self, Error, Forecast, MemoryByDevice};
use crate::placement::Placement;
use crate::run::{FlashAttn, RunConfig, numbers, on_host};
use crate::speed::Estimate;

/// Micro-batches to choose from, in tokens.
const UBATCHES: [u32; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];
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

/// A launch that was ranked and not yet judged.
#[derive(Debug, Clone)]
struct Draft {
    setting: RunConfig,
    kept: Kept,
    host: End,
    /// The least score that judging it may find; infinite where it cannot fit.
    bound: f64,
    /// Memory with everything on the devices: the compute that is left where nothing has to be copied.
    least: MemoryByDevice,
}

/// A choice and what it is worth.
type Judged = (Kept, Candidate);

pub struct Explorer<'a> {
    problem: &'a Problem<'a>,
    pub stage: &'a Stage<'a>,
    /// Whether `-fa auto` was found to mean `on`.
    flash_attn: Cell<bool>,
}

impl<'a> Explorer<'a> {
    /// A search on `stage`.
    pub fn new(problem: &'a Problem<'a>, stage: &'a Stage<'a>) -> Self {
        Self { problem, stage, flash_attn: Cell::new(false) }
    }

    /// The best launch of `setting` that fits the devices; where none does, the one that is least short.
    ///
    /// Drafts are judged in the order of what they promise, until none promises more than the best has.
    pub fn best(&self, setting: &RunConfig) -> Result<Candidate, Error> {
        let mut drafts = self.drafts(setting, &self.ubatches(setting))?;
        drafts.sort_by(|one, other| one.bound.total_cmp(&other.bound));
        let (mut best, mut least_short): (Option<(f64, Candidate)>, Option<Candidate>) = (None, None);
        let mut too_large = u32::MAX;
        for draft in drafts {
            if best.as_ref().is_some_and(|(score, _)| draft.bound > score * (1.0 - WORTH_JUDGING)) {
                break;
            }
            if draft.setting.n_ubatch >= too_large {
                continue;
            }
            let candidate = self.settle(&draft)?;
            if candidate.devices_fit() {
                let score = self.score(&candidate.estimate, draft.setting.n_ubatch);
                if best.as_ref().is_none_or(|(known, _)| score < *known) {
                    best = Some((score, candidate));
                }
            } else {
                too_large = draft.setting.n_ubatch;
                keep_least_short(&mut least_short, candidate);
            }
        }
        if let Some((_, best)) = best {
            return Ok(best);
        }
        if self.may_shrink() && LEAST_UBATCH <= setting.n_batch {
            let setting = self.at(setting, LEAST_UBATCH);
            let (kept, least) = (self.stage.nothing(), MemoryByDevice::new());
            let draft = Draft { setting, kept, host: End::First, bound: f64::INFINITY, least };
            keep_least_short(&mut least_short, self.settle(&draft)?);
        }
        least_short.map_or_else(|| self.candidate(setting, &self.stage.nothing(), None), Ok)
    }

    /// Every micro-batch that may be chosen, the largest first.
    pub fn every_ubatch(&self, setting: &RunConfig) -> Vec<u32> {
        let least = Some(LEAST_UBATCH).filter(|least| self.may_shrink() && *least <= setting.n_batch);
        self.ubatches(setting).into_iter().rev().chain(least).collect()
    }

    /// Whether a launch with this micro-batch that moves more than the stage's tensors may be better than `best`: with nothing
    /// else moved it costs less than that.
    pub fn may_gain_by_room(&self, setting: &RunConfig, n_ubatch: u32, best: &Candidate) -> Result<bool, Error> {
        if !best.devices_fit() {
            return Ok(true);
        }
        let setting = self.at(setting, n_ubatch);
        let hosted = self.hosted_with_compute_of(&setting, best)?;
        let promised = self.promise(&setting, &self.stage.nothing(), &hosted);
        Ok(promised < self.score(&best.estimate, best.run.n_ubatch) * (1.0 - WORTH))
    }

    /// What launches are compared by: their cost, and what a micro-batch unlike llama.cpp's own must be worth.
    fn score(&self, estimate: &Estimate, n_ubatch: u32) -> f64 {
        let doublings = (f64::from(n_ubatch) / f64::from(USUAL_UBATCH)).log2();
        let dearer = if doublings < 0.0 { WORTH } else { WORTH_DOUBLING * doublings };
        self.problem.cost(estimate) * (1.0 + dearer)
    }

    /// Whether micro-batches smaller than llama.cpp's own may be tried.
    fn may_shrink(&self) -> bool {
        self.problem.levers.ubatch && self.problem.strategy == Strategy::Auto
    }

    fn ubatches(&self, setting: &RunConfig) -> Vec<u32> {
        if !self.problem.levers.ubatch {
            return vec![setting.n_ubatch];
        }
        let least = if self.may_shrink() { 0 } else { USUAL_UBATCH };
        let most = setting.n_ctx.max(USUAL_UBATCH);
        let batch = if self.problem.levers.batch { u32::MAX } else { setting.n_batch };
        let found: Vec<u32> = UBATCHES.into_iter().filter(|n| (least..=most.min(batch)).contains(n)).collect();
        if found.is_empty() { vec![setting.n_batch.min(USUAL_UBATCH)] } else { found }
    }

    /// `setting` with a micro-batch, and a batch that holds it.
    pub fn at(&self, setting: &RunConfig, n_ubatch: u32) -> RunConfig {
        let n_batch = if self.problem.levers.batch { N_BATCH.max(n_ubatch) } else { setting.n_batch };
        RunConfig { n_batch, n_ubatch, ..setting.clone() }
    }

    /// What is worth judging at each micro-batch: all with its layers where that fits; else filled from either end.
    fn drafts(&self, setting: &RunConfig, ubatches: &[u32]) -> Result<Vec<Draft>, Error> {
        let mut drafts = Vec::new();
        let range = (ubatches.first().copied().unwrap_or(0), ubatches.last().copied().unwrap_or(0));
        let fills = self.problem.strategy != Strategy::ExpertsOnHost;
        for ubatch in ubatches {
            let setting = self.at(setting, *ubatch);
            let whole =
                self.forecast(&setting, self.stage.bare.clone(), Some(&self.compute(&setting, range, true)?))?;
            let draft = |kept: Kept, host, bound| Draft {
                setting: setting.clone(),
                kept,
                host,
                bound,
                least: whole.memory.clone(),
            };
            if self.is_whole() || (fills && self.problem.devices_short(&whole).is_empty()) {
                let bound = self.promise(&setting, &self.stage.everything(), &whole);
                drafts.push(draft(self.stage.everything(), End::First, bound));
                continue;
            }
            let hosted =
                self.forecast(&setting, self.stage.hosted.clone(), Some(&self.compute(&setting, range, false)?))?;
            let most = self.most_room(&hosted, &whole);
            let room = self.stage.room(&hosted);
            let single_parts = self.problem.strategy == Strategy::Auto;
            for host in self.ends().iter().copied() {
                if !fills {
                    let nothing = self.stage.nothing();
                    let bound = self.promise(&setting, &nothing, &hosted);
                    drafts.push(draft(nothing, host, bound));
                    continue;
                }
                let cannot = most
                    .iter()
                    .zip(&self.problem.machine.devices)
                    .any(|(room, device)| *room < 0 && hosted.memory.contains_key(&device.name));
                let bound = if cannot {
                    f64::INFINITY
                } else {
                    self.promise(&setting, &self.stage.fill(&most, host, single_parts), &hosted)
                };
                drafts.push(draft(self.stage.fill(&room, host, single_parts), host, bound));
            }
        }
        Ok(drafts)
    }

    /// The score of a choice with the memory of another one.
    fn promise(&self, setting: &RunConfig, kept: &Kept, forecast: &Forecast) -> f64 {
        let estimate = self.problem.estimate(setting, &self.stage.placement(kept), forecast);
        self.score(&estimate, setting.n_ubatch)
    }

    /// The room for what may move at the most: as if nothing on the host had to be copied, nor to be pinned for it.
    fn most_room(&self, hosted: &Forecast, whole: &Forecast) -> Vec<i128> {
        let beside =
            |of: &Forecast, name: &str| of.memory.get(name).map_or(0, |row| i128::from((row.compute + row.overhead).0));
        let mut room = self.stage.room(hosted);
        for (room, device) in room.iter_mut().zip(&self.problem.machine.devices) {
            *room += (beside(hosted, &device.name) - beside(whole, &device.name)).max(0);
        }
        room
    }

    /// Whether nothing may be moved at all.
    fn is_whole(&self) -> bool {
        self.stage.is_fixed() || matches!(self.problem.strategy, Strategy::AllOnDevice | Strategy::Rules)
    }

    fn ends(&self) -> &'static [End] {
        match self.problem.strategy {
            Strategy::Auto if self.stage.len() > 1 => &[End::First, End::Last],
            _ => &[End::First],
        }
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
        if run.overrides.is_empty() && placement.copies != self.stage.bare.copies {
            run.overrides.push(on_host(String::new(), "-ot"));
        }
        memory::forecast_placed(self.problem.model, self.problem.machine, &run, placement, compute)
    }

    /// The memory of a launch with everything moved, with the compute that another one was found to have.
    pub fn hosted_with_compute_of(&self, setting: &RunConfig, other: &Candidate) -> Result<Forecast, Error> {
        self.forecast(setting, self.stage.hosted.clone(), Some(&other.forecast.compute()))
    }

    /// A choice with the compute of another launch, exactly without.
    pub fn candidate(&self, setting: &RunConfig, kept: &Kept, other: Option<&Candidate>) -> Result<Candidate, Error> {
        let compute = other.map(|other| other.forecast.compute());
        let forecast = self.forecast(setting, self.stage.placement(kept), compute.as_ref())?;
        Ok(self.problem.candidate(self.stage.run(setting, kept), forecast))
    }

    /// Compute at a micro-batch: predicted at the ends of `range`, straight between.
    fn compute(&self, setting: &RunConfig, range: (u32, u32), whole: bool) -> Result<Compute, Error> {
        let of = |ubatch| numbers(&self.at(setting, ubatch), &self.problem.model.hparams).n_ubatch;
        let (low, high, here) = (of(range.0), of(range.1), of(setting.n_ubatch));
        let first = self.compute_at(&self.at(setting, range.0), whole)?;
        if here <= low || low == high {
            return Ok(first);
        }
        let last = self.compute_at(&self.at(setting, range.1), whole)?;
        let share = f64::from(here - low) / f64::from(high - low);
        let mut between = first.clone();
        for (name, bytes) in &mut between.by_device {
            let end = last.by_device.get(name).copied().unwrap_or(*bytes);
            *bytes = straight(*bytes, end, share);
        }
        Ok(between)
    }

    fn compute_at(&self, setting: &RunConfig, whole: bool) -> Result<Compute, Error> {
        let Stage { bare, hosted, base, .. } = self.stage;
        let key = (whole, setting.clone(), bare.layers.clone(), base.overrides.clone());
        let known =
            self.problem.computes.borrow().iter().find(|(known, _)| *known == key).map(|(_, found)| found.clone());
        let compute = if let Some(known) = known {
            known
        } else {
            let placement = if whole { bare } else { hosted };
            let found = self.forecast(setting, placement.clone(), None)?.compute();
            self.problem.computes.borrow_mut().push((key, found.clone()));
            found
        };
        self.flash_attn.set(compute.flash_attn);
        Ok(compute)
    }

    /// Judges a draft exactly, and refills it with its own compute until nothing changes.
    fn settle(&self, draft: &Draft) -> Result<Candidate, Error> {
        let (mut best, mut worst): (Option<Judged>, Option<Judged>) = (None, None);
        let mut kept = draft.kept.clone();
        let mut tried: Vec<Kept> = Vec::new();
        while tried.len() < 5 && !tried.contains(&kept) {
            let candidate = self.candidate(&draft.setting, &kept, None)?;
            tried.push(kept.clone());
            let next = self.refilled(draft, &kept, &candidate)?;
            if candidate.devices_fit() {
                let better = best.as_ref().is_none_or(|(known, _)| self.stage.bytes(&kept) > self.stage.bytes(known));
                if better {
                    best = Some((kept, candidate));
                }
            } else {
                worst = Some((kept, candidate));
            }
            kept = next;
        }
        match (best, worst) {
            (Some((kept, candidate)), _) => self.polish(draft, self.reach(draft, kept, candidate)?),
            (None, Some((kept, candidate))) => self.step_down(draft, kept, candidate),
            (None, None) => self.candidate(&draft.setting, &draft.kept, None),
        }
    }

    /// Tries what has no room yet and would have, because with its largest tensor the area that prompts copy experts through
    /// leaves as well.
    fn reach(&self, draft: &Draft, mut kept: Kept, mut candidate: Candidate) -> Result<Candidate, Error> {
        if self.is_whole() || self.problem.strategy != Strategy::Auto {
            return Ok(candidate);
        }
        for (at, device) in (0..).zip(&self.problem.machine.devices) {
            let bytes = self.stage.bytes(&kept);
            let row = candidate.forecast.memory.get(&device.name).copied().unwrap_or_default();
            let least = draft.least.get(&device.name).map_or(Bytes(0), |row| row.compute);
            let spare =
                device.total.saturating_sub(row.total() + self.problem.margin) + row.compute.saturating_sub(least);
            let mut further = self.stage.beyond(&kept, at, draft.host);
            further.retain(|next| self.stage.bytes(next) - bytes <= spare.0);
            further.sort_by_key(|next| std::cmp::Reverse(self.stage.bytes(next)));
            for next in further.into_iter().take(REACHES) {
                let placement = self.stage.placement(&next);
                let promised = self.problem.estimate(&draft.setting, &placement, &candidate.forecast);
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
        if self.problem.strategy != Strategy::Auto {
            return Ok(candidate);
        }
        let kept = self.stage.kept_of(&candidate.forecast.placement);
        let mut best = (self.problem.cost(&candidate.estimate) * (1.0 - WORTH_POLISHING), None);
        for other in self.stage.with_other_parts(&kept) {
            let placement = self.stage.placement(&other);
            let cost = self.problem.cost(&self.problem.estimate(&draft.setting, &placement, &candidate.forecast));
            if cost < best.0 {
                best = (cost, Some(other));
            }
        }
        let Some(other) = best.1 else { return Ok(candidate) };
        let polished = self.candidate(&draft.setting, &other, None)?;
        Ok(if polished.devices_fit() { polished } else { candidate })
    }

    /// What the room holds, given the compute of `candidate`.
    fn refilled(&self, draft: &Draft, kept: &Kept, candidate: &Candidate) -> Result<Kept, Error> {
        if self.is_whole() || self.problem.strategy == Strategy::ExpertsOnHost {
            return Ok(kept.clone());
        }
        let all_moved = self.hosted_with_compute_of(&draft.setting, candidate)?;
        let mut room = self.stage.room(&all_moved);
        // What a device holds beside the table grows with the pinned memory of the host: the candidate's is nearer.
        for (room, device) in room.iter_mut().zip(&self.problem.machine.devices) {
            let overhead = |of: &Forecast| of.memory.get(&device.name).map_or(0, |row| i128::from(row.overhead.0));
            *room += overhead(&all_moved) - overhead(&candidate.forecast);
        }
        let filled = self.stage.fill(&room, draft.host, self.problem.strategy == Strategy::Auto);
        // With nothing left to copy to a device, the area for it goes: that may be what the rest lacks.
        let whole = self.stage.everything();
        let freed = |((at, device), room): ((u16, &Device), &i128)| {
            let compute = candidate.forecast.memory.get(&device.name).map_or(0, |row| i128::from(row.compute.0));
            i128::from(self.stage.movable_bytes(at)) <= room + compute
        };
        let fits = filled != whole && *kept != whole && (0..).zip(&self.problem.machine.devices).zip(&room).all(freed);
        Ok(if fits && candidate.devices_fit() { whole } else { filled })
    }

    /// Moves more and more until the devices fit; the last one tried where none does.
    fn step_down(&self, draft: &Draft, mut kept: Kept, mut candidate: Candidate) -> Result<Candidate, Error> {
        let mut steps = 1;
        while !candidate.devices_fit() && !self.is_whole() {
            let mut moved = false;
            for (at, device) in (0..).zip(&self.problem.machine.devices) {
                for _ in 0..if candidate.shortfall.contains_key(&device.name) { steps } else { 0 } {
                    let less = self.stage.one_less(&kept, at, draft.host);
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

/// Of launches that do not fit, the one that misses least.
fn keep_least_short(known: &mut Option<Candidate>, other: Candidate) {
    if known.as_ref().is_none_or(|known| other.missing() < known.missing()) {
        *known = Some(other);
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
