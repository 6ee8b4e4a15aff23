//! The search: which launch, among those that fit, costs least by the objective.
//!
//! Compute buffers are what is dear to predict (a graph is built and laid out), and they depend on little: the micro-batch, the
//! types of the cache, whether any expert is on the host. So drafts are ranked with compute that was predicted at the ends of
//! the range of micro-batches and is taken as straight between; the winner is then judged exactly, and refilled with its own
//! compute until it fits and nothing more would.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::solver::{Candidate, Error, Problem, Strategy};
use super::stage::{End, Kept, Stage};
use crate::bytes::Bytes;
use crate::memory::compute::{self, Compute};
use crate::memory::{self, Prediction};
use crate::placement::Placement;
use crate::run::{FlashAttn, RunConfig, numbers};

/// Micro-batches to choose from, in tokens; the smaller ones only where no other fits.
const UBATCHES: [u32; 5] = [512, 1024, 2048, 4096, 8192];
/// Where none of those fits.
const SMALL_UBATCHES: [u32; 3] = [256, 128, 64];
/// How many choices beyond the room are judged, the largest first.
const REACHES: usize = 6;
/// llama.cpp's `-b` where it is not given.
const N_BATCH: u32 = 2048;
/// A choice must be better by this share to be made instead of a simpler one.
pub const WORTH: f64 = 0.01;
/// A larger micro-batch must be better by this share: it takes room from the experts.
const WORTH_UBATCH: f64 = 0.02;

/// A launch that was ranked and not yet judged.
#[derive(Debug, Clone)]
struct Draft {
    /// Without the planner's overrides.
    setting: RunConfig,
    kept: Kept,
    host: End,
    cost: f64,
    short: Bytes,
}

/// The search on one stage.
pub struct Explorer<'a> {
    problem: &'a Problem<'a>,
    /// The stage that is searched.
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
    pub fn best(&self, setting: &RunConfig) -> Result<Candidate, Error> {
        let mut drafts = self.drafts(setting, &self.ubatches(setting))?;
        let mut last = None;
        while let Some(draft) = pop_best(&mut drafts) {
            let candidate = self.settle(&draft)?;
            if candidate.devices_fit() {
                return Ok(candidate);
            }
            last = Some(candidate);
            drafts.retain(|other| other.setting.n_ubatch < draft.setting.n_ubatch);
        }
        let small = self.small_ubatches(setting);
        for ubatch in small {
            let candidate = self.settle(&self.draft(self.at(setting, ubatch), self.stage.nothing(), End::First)?)?;
            if candidate.devices_fit() {
                return Ok(candidate);
            }
            last = Some(match last {
                Some(other) if other.missing() <= candidate.missing() => other,
                _ => candidate,
            });
        }
        match last {
            Some(candidate) => Ok(candidate),
            None => self.exact(setting, &self.stage.nothing()),
        }
    }

    /// The micro-batches to try.
    fn ubatches(&self, setting: &RunConfig) -> Vec<u32> {
        if !self.problem.levers.ubatch {
            return vec![setting.n_ubatch];
        }
        let most = setting.n_ctx.max(UBATCHES[0]);
        let batch = if self.problem.levers.batch { u32::MAX } else { setting.n_batch };
        let found: Vec<u32> = UBATCHES.into_iter().filter(|n| *n <= most && *n <= batch).collect();
        if found.is_empty() { vec![setting.n_batch.min(UBATCHES[0])] } else { found }
    }

    /// The micro-batches to try where none of those fits.
    fn small_ubatches(&self, setting: &RunConfig) -> Vec<u32> {
        let may = self.problem.levers.ubatch && self.problem.strategy == Strategy::Auto;
        SMALL_UBATCHES.into_iter().filter(|n| may && *n <= setting.n_batch).collect()
    }

    /// `setting` with a micro-batch, and a batch that holds it.
    pub fn at(&self, setting: &RunConfig, n_ubatch: u32) -> RunConfig {
        let n_batch = if self.problem.levers.batch { N_BATCH.max(n_ubatch) } else { setting.n_batch };
        RunConfig { n_ubatch, n_batch, ..setting.clone() }
    }

    /// What is worth judging at each micro-batch: all with its layers where that fits; else filled from either end.
    fn drafts(&self, setting: &RunConfig, ubatches: &[u32]) -> Result<Vec<Draft>, Error> {
        let mut drafts = Vec::new();
        let range = (ubatches.first().copied().unwrap_or(0), ubatches.last().copied().unwrap_or(0));
        let whole_may_fit = self.whole_may_fit(&self.at(setting, range.0))?;
        for ubatch in ubatches {
            let setting = self.at(setting, *ubatch);
            if whole_may_fit {
                let compute = self.compute(&setting, range, true)?;
                let draft = self.draft_with(&setting, self.stage.everything(), End::First, &compute)?;
                let settled = draft.short == Bytes(0) || self.is_whole();
                drafts.push(draft);
                if settled {
                    continue;
                }
                drafts.pop();
            }
            let compute = self.compute(&setting, range, false)?;
            for host in self.ends().iter().copied() {
                let kept = if self.problem.strategy == Strategy::ExpertsOnHost {
                    self.stage.nothing()
                } else {
                    let room = self.stage.room(&self.predict(&setting, &self.stage.hosted, Some(&compute))?);
                    self.stage.fill(&room, host, self.problem.strategy == Strategy::Auto)
                };
                drafts.push(self.draft_with(&setting, kept, host, &compute)?);
            }
        }
        Ok(drafts)
    }

    /// Whether nothing may be moved at all.
    fn is_whole(&self) -> bool {
        self.stage.is_fixed() || matches!(self.problem.strategy, Strategy::AllOnDevice | Strategy::Rules)
    }

    /// Which ends to try.
    fn ends(&self) -> &'static [End] {
        match self.problem.strategy {
            Strategy::Auto if self.stage.len() > 1 => &[End::First, End::Last],
            _ => &[End::First],
        }
    }

    /// Whether the weights and the context alone leave room for everything.
    fn whole_may_fit(&self, setting: &RunConfig) -> Result<bool, Error> {
        if self.is_whole() {
            return Ok(true);
        }
        let none = Compute { by_device: BTreeMap::new(), basis: compute::Basis::Replay, flash_attn: None };
        let prediction = self.predict(setting, &self.stage.bare, Some(&none))?;
        Ok(self.problem.strategy != Strategy::ExpertsOnHost && self.problem.devices_short(&prediction).is_empty())
    }

    fn draft(&self, setting: RunConfig, kept: Kept, host: End) -> Result<Draft, Error> {
        let compute = self.compute(&setting, (setting.n_ubatch, setting.n_ubatch), false)?;
        self.draft_with(&setting, kept, host, &compute)
    }

    /// A ranked launch.
    fn draft_with(&self, setting: &RunConfig, kept: Kept, host: End, compute: &Compute) -> Result<Draft, Error> {
        let placement = self.stage.placement(&kept);
        let prediction = self.predict(setting, &placement, Some(compute))?;
        let short = self.problem.devices_short(&prediction).into_values().sum();
        let cost = self.problem.cost(&self.problem.estimate(setting, &placement, &prediction));
        Ok(Draft { setting: setting.clone(), kept, host, cost, short })
    }

    fn predict(
        &self,
        setting: &RunConfig,
        placement: &Placement,
        compute: Option<&Compute>,
    ) -> Result<Prediction, Error> {
        // Finding out what `-fa auto` means costs a graph, and where experts are does not change it.
        let resolved = RunConfig { flash_attn: FlashAttn::On, ..setting.clone() };
        let run = if setting.flash_attn == FlashAttn::Auto && self.flash_attn.get() { &resolved } else { setting };
        Ok(memory::predict_with(self.problem.model, self.problem.machine, run, placement, compute)?)
    }

    /// The memory of a launch with the compute that another one was found to have.
    pub fn with_compute_of(
        &self,
        run: &RunConfig,
        placement: &Placement,
        other: &Candidate,
    ) -> Result<Prediction, Error> {
        self.predict(run, placement, Some(&compute_of(&other.prediction)))
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

    /// Compute predicted at a setting, once.
    fn compute_at(&self, setting: &RunConfig, whole: bool) -> Result<Compute, Error> {
        let key = format!("{whole} {:?} {setting:?} {:?}", self.stage.bare.layers, self.stage.base.overrides);
        let known = self.problem.computes.borrow().get(&key).cloned();
        let compute = match known {
            Some(known) => known,
            None => {
                let placement = if whole { &self.stage.bare } else { &self.stage.hosted };
                compute_of(&self.predict(setting, placement, None)?)
            }
        };
        self.flash_attn.set(compute.flash_attn == Some(true));
        self.problem.computes.borrow_mut().insert(key, compute.clone());
        Ok(compute)
    }

    /// Judges a choice exactly.
    fn exact(&self, setting: &RunConfig, kept: &Kept) -> Result<Candidate, Error> {
        let placement = self.stage.placement(kept);
        let prediction = self.predict(setting, &placement, None)?;
        Ok(self.problem.candidate(self.stage.run(setting, kept), placement, prediction))
    }

    /// Judges a draft exactly, and refills it with its own compute until nothing changes.
    fn settle(&self, draft: &Draft) -> Result<Candidate, Error> {
        let (mut best, mut worst): (Option<(Kept, Candidate)>, Option<(Kept, Candidate)>) = (None, None);
        let mut kept = draft.kept.clone();
        let mut tried: Vec<Kept> = Vec::new();
        while tried.len() < 5 && !tried.contains(&kept) {
            let candidate = self.exact(&draft.setting, &kept)?;
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
            (Some((kept, candidate)), _) => self.reach(draft, kept, candidate),
            (None, Some((kept, candidate))) => self.step_down(draft, kept, candidate),
            (None, None) => self.exact(&draft.setting, &draft.kept),
        }
    }

    /// Tries what has no room yet and would have, because with its largest tensor the area that prompts copy experts through
    /// leaves as well.
    fn reach(&self, draft: &Draft, kept: Kept, mut candidate: Candidate) -> Result<Candidate, Error> {
        if self.is_whole() || self.problem.strategy != Strategy::Auto {
            return Ok(candidate);
        }
        let (largest, bytes) = (self.stage.largest_moved(&kept), self.stage.bytes(&kept));
        for (at, device) in self.problem.machine.devices.iter().enumerate() {
            let Ok(at) = u16::try_from(at) else { break };
            let row = candidate.prediction.memory.get(&device.name).copied().unwrap_or_default();
            let spare = device.total.saturating_sub(row.total() + self.problem.margin).0;
            let mut further: Vec<(u64, Kept)> = self
                .stage
                .beyond(&kept, at, draft.host)
                .into_iter()
                .filter_map(|next| {
                    let shrinks = largest - self.stage.largest_moved(&next).min(largest);
                    let more = self.stage.bytes(&next) - bytes;
                    (more <= spare + shrinks && more <= spare + row.compute.0).then_some((more, next))
                })
                .collect();
            further.sort_by_key(|(more, _)| std::cmp::Reverse(*more));
            for (_, next) in further.into_iter().take(REACHES) {
                let tried = self.exact(&draft.setting, &next)?;
                if tried.devices_fit() {
                    candidate = tried;
                    break;
                }
            }
        }
        Ok(candidate)
    }

    /// What the room holds, given the compute of `candidate`.
    fn refilled(&self, draft: &Draft, kept: &Kept, candidate: &Candidate) -> Result<Kept, Error> {
        if self.is_whole() || self.problem.strategy == Strategy::ExpertsOnHost {
            return Ok(kept.clone());
        }
        let compute = compute_of(&candidate.prediction);
        let all_moved = self.predict(&draft.setting, &self.stage.hosted, Some(&compute))?;
        let room = self.stage.room(&all_moved);
        let filled = self.stage.fill(&room, draft.host, self.problem.strategy == Strategy::Auto);
        // With nothing left to copy to a device, the area for it goes: that may be what the rest lacks.
        let whole = self.stage.everything();
        let freed = |(at, room): (usize, &i128)| {
            let device = &self.problem.machine.devices[at];
            let compute = compute.by_device.get(&device.name).map_or(0, |bytes| i128::from(bytes.0));
            let wanted = u16::try_from(at).map_or(0, |at| self.stage.moved_bytes(&self.stage.nothing(), at));
            i128::from(wanted) <= room + compute
        };
        let fits = filled != whole && *kept != whole && room.iter().enumerate().all(freed);
        Ok(if fits && candidate.devices_fit() { whole } else { filled })
    }

    /// Moves more and more until the devices fit; the last one tried where none does.
    fn step_down(&self, draft: &Draft, mut kept: Kept, mut candidate: Candidate) -> Result<Candidate, Error> {
        let mut steps = 1;
        while !candidate.devices_fit() && !self.is_whole() {
            let mut moved = false;
            for (at, device) in self.problem.machine.devices.iter().enumerate() {
                for _ in 0..if candidate.shortfall.contains_key(&device.name) { steps } else { 0 } {
                    let less = u16::try_from(at).ok().and_then(|at| self.stage.one_less(&kept, at, draft.host));
                    moved |= less.is_some();
                    kept = less.unwrap_or(kept);
                }
            }
            if !moved {
                break;
            }
            candidate = self.exact(&draft.setting, &kept)?;
            steps *= 2;
        }
        Ok(candidate)
    }
}

/// The best draft that seems to fit, the simplest of those about as good; else the one that is least short.
fn pop_best(drafts: &mut Vec<Draft>) -> Option<Draft> {
    let least = drafts.iter().filter(|draft| draft.short == Bytes(0)).map(|draft| draft.cost).fold(f64::MAX, f64::min);
    let good = |draft: &Draft| draft.short == Bytes(0) && draft.cost <= least * (1.0 + WORTH_UBATCH);
    let at = drafts.iter().position(good).or_else(|| {
        let by_short = drafts.iter().enumerate().min_by_key(|(_, draft)| draft.short);
        by_short.map(|(at, _)| at)
    })?;
    Some(drafts.remove(at))
}

/// The compute column of a prediction.
fn compute_of(prediction: &Prediction) -> Compute {
    Compute {
        by_device: prediction.memory.iter().map(|(name, row)| (name.clone(), row.compute)).collect(),
        basis: compute::Basis::Replay,
        flash_attn: prediction.flash_attn,
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
