//! The search: which routed experts stay on the devices, so that every device keeps within its budget.
//!
//! Every candidate is judged by the law and the prediction themselves (`placement::place`, `memory::predict`), so a plan
//! that is said to fit is one whose exact sums fit. Dense parts come first; then as many whole blocks of routed experts
//! as fit, by real bytes; then single tensors of one more block. The blocks whose experts go to the host are the first of
//! each device's range, as with llama.cpp's `--n-cpu-moe`.

use std::collections::{BTreeMap, BTreeSet};

use crate::bytes::Bytes;
use crate::machine::{Device, Machine};
use crate::memory::{self, Prediction};
use crate::model::Model;
use crate::placement::{self, Placement};
use crate::plan::experts::{self, ExpertBlock};
use crate::plan::patterns::{self, TensorSet};
use crate::run::{FlashAttn, Override, RunConfig};

/// What the planner may do with the routed experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// As many whole blocks on the devices as fit, then single tensors of one more.
    Auto,
    /// All on the host.
    ExpertsOnHost,
    /// Whole blocks only: the least N of `--n-cpu-moe N` that fits.
    FirstN,
    /// None on the host.
    AllOnDevice,
    /// Only what the user's rules say.
    Rules,
}

/// The problem: a model, a machine whose `total`s are budgets, and what the user fixed.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// What is placed.
    pub model: &'a Model,
    /// Where; `Device::total` is the budget.
    pub machine: &'a Machine,
    /// Kept free of every device's budget.
    pub margin: Bytes,
    /// What the planner may do.
    pub strategy: Strategy,
}

/// A launch and what it takes.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// With the planner's overrides and tensor split.
    pub run: RunConfig,
    /// The law's answer to it.
    pub placement: Placement,
    /// The memory it takes.
    pub prediction: Prediction,
    /// By how much each device, or `Host`, is over its budget; empty when it fits.
    pub shortfall: BTreeMap<String, Bytes>,
}

/// What can stop the planner.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launch cannot be placed.
    #[error(transparent)]
    Placement(#[from] placement::Error),
    /// llama.cpp would refuse the launch.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

impl Problem<'_> {
    /// Places and predicts one launch.
    pub fn judge(&self, run: RunConfig) -> Result<Candidate, Error> {
        let placement = placement::place(self.model, self.machine, &run)?;
        let prediction = memory::predict(self.model, self.machine, &run, &placement)?;
        let mut shortfall = BTreeMap::new();
        for device in &self.machine.devices {
            let used = prediction.memory.get(&device.name).map_or(Bytes(0), memory::MemoryBreakdown::total);
            let over = (used + self.margin).saturating_sub(device.total);
            if used > Bytes(0) && over > Bytes(0) {
                shortfall.insert(device.name.clone(), over);
            }
        }
        if let Some(ram) = self.machine.host.ram {
            let over = host_total(&prediction).saturating_sub(ram);
            if over > Bytes(0) {
                shortfall.insert("Host".to_string(), over);
            }
        }
        Ok(Candidate { run, placement, prediction, shortfall })
    }

    /// What is free of a device's budget, the margin kept.
    fn spare(&self, device: &Device, candidate: &Candidate) -> Bytes {
        let used = candidate.prediction.memory.get(&device.name).map_or(Bytes(0), memory::MemoryBreakdown::total);
        device.total.saturating_sub(used + self.margin)
    }

    /// [`Problem::solve`]; where it does not fit on all devices, the same without the smallest, then without the two
    /// smallest …: a card too small for its share of the layers must not spoil a plan that fits the others.
    pub fn solve_with_fewer_devices(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let first = self.solve(run)?;
        let mut names: Vec<&Device> = self.machine.devices.iter().collect();
        names.sort_by_key(|device| std::cmp::Reverse(device.total));
        while !devices_fit(&first) && run.tensor_split.is_empty() && names.len() > 1 {
            names.pop();
            let kept = |device: &&Device| names.iter().any(|name| name.name == device.name);
            let devices = self.machine.devices.iter().filter(kept).map(|device| device.name.clone()).collect();
            let fewer = self.solve(&RunConfig { devices: Some(devices), ..run.clone() })?;
            if devices_fit(&fewer) {
                return Ok(fewer);
            }
        }
        Ok(first)
    }

    /// The best launch for the user's settings in `run`, whose overrides are the user's and stay first.
    pub fn solve(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let bare = self.judge(run.clone())?;
        let bare = match split(self, &bare) {
            Some(tensor_split) => self.judge(RunConfig { tensor_split, ..run.clone() })?,
            None => bare,
        };
        if matches!(self.strategy, Strategy::AllOnDevice | Strategy::Rules) {
            return Ok(bare);
        }
        let blocks = experts::movable(self.model, &bare.placement);
        let fits_whole = devices_fit(&bare);
        if blocks.is_empty() || (fits_whole && self.strategy != Strategy::ExpertsOnHost) {
            return Ok(bare);
        }
        let flash_attn = match (run.flash_attn, bare.prediction.flash_attn) {
            (FlashAttn::Auto, Some(true)) => FlashAttn::On,
            (asked, _) => asked,
        };
        let universe = experts::universe(self.model, &bare.placement);
        let search = Search { problem: self, base: bare.run, universe, flash_attn };
        let mut hosted: Vec<bool> = vec![true; blocks.len()];
        let all_on_host = search.judge(&blocks, &hosted, &TensorSet::new())?;
        if self.strategy == Strategy::ExpertsOnHost || !devices_fit(&all_on_host) {
            return Ok(all_on_host);
        }
        let mut best = all_on_host;
        let mut on_device = TensorSet::new();
        for device in bare.placement.devices.clone() {
            let range: Vec<usize> = (0..blocks.len())
                .filter(|at| bare.placement.layers.get(blocks[*at].block as usize) == Some(&Some(device)))
                .collect();
            best = search.most_blocks(&blocks, &range, &mut hosted, &on_device, best)?;
            if self.strategy == Strategy::Auto {
                best = search.edge_block(&blocks, &range, &hosted, &mut on_device, best)?;
            }
        }
        Ok(best)
    }
}

/// The host's total: every row that is no device (`Host`, `CPU_REPACK`).
fn host_total(prediction: &Prediction) -> Bytes {
    let rows = prediction.memory.iter().filter(|(name, _)| name.as_str() == "Host" || name.starts_with("CPU"));
    rows.map(|(_, row)| row.total()).sum()
}

/// Whether the devices keep within their budgets; a short host is told, but no other placement on it would help.
fn devices_fit(candidate: &Candidate) -> bool {
    candidate.shortfall.keys().all(|name| name == "Host")
}

/// One search over host sets, from one base launch.
struct Search<'a> {
    problem: &'a Problem<'a>,
    base: RunConfig,
    universe: TensorSet,
    /// `-fa`, with `auto` resolved to `on` where the first launch showed it: where experts are does not change it, and
    /// finding out costs a graph.
    flash_attn: FlashAttn,
}

impl Search<'_> {
    /// The launch with the `hosted` blocks' experts on the host, less `on_device`.
    fn judge(&self, blocks: &[ExpertBlock], hosted: &[bool], on_device: &TensorSet) -> Result<Candidate, Error> {
        let chosen: TensorSet = blocks
            .iter()
            .zip(hosted)
            .filter(|(_, hosted)| **hosted)
            .flat_map(|(block, _)| block.tensors())
            .filter(|tensor| !on_device.contains(tensor))
            .collect();
        let mut run = self.base.clone();
        run.overrides.extend(patterns::patterns(&chosen, &self.universe).into_iter().map(|pattern| Override {
            pattern,
            buffer: "CPU".to_string(),
            origin: "-ot".to_string(),
        }));
        let mut candidate = self.problem.judge(RunConfig { flash_attn: self.flash_attn, ..run.clone() })?;
        candidate.run = run;
        Ok(candidate)
    }

    /// Keeps as many of the last blocks of `range` on the device as fit; marks them in `hosted`.
    ///
    /// A bisection whose first two tries are what the bytes alone suggest and one more: compute hardly depends on the
    /// count, so these two nearly always settle it.
    fn most_blocks(
        &self,
        blocks: &[ExpertBlock],
        range: &[usize],
        hosted: &mut [bool],
        on_device: &TensorSet,
        all_on_host: Candidate,
    ) -> Result<Candidate, Error> {
        let guess = self.blocks_by_bytes(blocks, range, &all_on_host);
        let mut best = all_on_host;
        let (mut fits, mut too_many) = (0, range.len() + 1);
        while too_many - fits > 1 {
            let likely = [guess, guess + 1].into_iter().find(|count| (fits + 1..too_many).contains(count));
            let count = likely.unwrap_or(usize::midpoint(fits, too_many));
            let mut tried = hosted.to_vec();
            for at in range.iter().rev().take(count) {
                tried[*at] = false;
            }
            let candidate = self.judge(blocks, &tried, on_device)?;
            if devices_fit(&candidate) {
                (fits, best) = (count, candidate);
            } else {
                too_many = count;
            }
        }
        for at in range.iter().rev().take(fits) {
            hosted[*at] = false;
        }
        Ok(best)
    }

    /// How many of the last blocks of `range` the free bytes of their device hold, compute taken as it is.
    fn blocks_by_bytes(&self, blocks: &[ExpertBlock], range: &[usize], candidate: &Candidate) -> usize {
        let Some(device) = range.first().and_then(|at| self.device_of(blocks, *at, candidate)) else { return 0 };
        let mut room = self.problem.spare(device, candidate);
        range.iter().rev().take_while(|at| take(&mut room, blocks[**at].bytes())).count()
    }

    /// The device of a block's layer.
    fn device_of(&self, blocks: &[ExpertBlock], at: usize, candidate: &Candidate) -> Option<&Device> {
        let device = (*candidate.placement.layers.get(blocks[at].block as usize)?)?;
        self.problem.machine.devices.get(usize::from(device))
    }

    /// Keeps the most bytes of the last hosted block of `range` on the device that still fit; adds them to `on_device`.
    fn edge_block(
        &self,
        blocks: &[ExpertBlock],
        range: &[usize],
        hosted: &[bool],
        on_device: &mut TensorSet,
        whole_blocks: Candidate,
    ) -> Result<Candidate, Error> {
        let Some(at) = range.iter().rev().find(|at| hosted[**at]).copied() else { return Ok(whole_blocks) };
        let edge = &blocks[at];
        // Beyond the free bytes, a part may still fit if its leaving the host shrinks the area that prompts copy experts
        // through: it is as large as the largest tensor on the host, so only if no other block has one as large.
        let largest = |block: &ExpertBlock| block.parts.iter().map(|part| part.bytes).max().unwrap_or_default();
        let others = (0..blocks.len()).filter(|other| *other != at && hosted[*other]);
        let shrinks = others.map(|other| largest(&blocks[other])).all(|other| other < largest(edge));
        let copied = if shrinks { largest(edge) } else { Bytes(0) };
        let spare = self.device_of(blocks, at, &whole_blocks).map(|device| self.problem.spare(device, &whole_blocks));
        let limit = spare.unwrap_or_default() + copied;
        let parts = edge.parts.len().min(4);
        let mut subsets: Vec<(Bytes, BTreeSet<(u32, String)>)> = (1..(1usize << parts) - 1)
            .map(|bits| {
                let picked = edge.parts.iter().enumerate().filter(|(at, _)| *at < parts && bits >> at & 1 == 1);
                let tensors = picked.clone().map(|(_, part)| (edge.block, part.stem.clone())).collect();
                (picked.map(|(_, part)| part.bytes).sum(), tensors)
            })
            .filter(|(bytes, _)| *bytes <= limit)
            .collect();
        subsets.sort_by(|a, b| b.cmp(a));
        for (_, tensors) in subsets {
            let mut tried = on_device.clone();
            tried.extend(tensors);
            let candidate = self.judge(blocks, hosted, &tried)?;
            if devices_fit(&candidate) {
                *on_device = tried;
                return Ok(candidate);
            }
        }
        Ok(whole_blocks)
    }
}

/// Takes `bytes` of `room` if they are there.
fn take(room: &mut Bytes, bytes: Bytes) -> bool {
    let fits = bytes <= *room;
    *room = room.saturating_sub(bytes);
    fits
}

/// Layer slots per device for `-ts`, or `None` with one device or where the user gave it.
///
/// Starts from slots in proportion to the budgets and moves single slots between neighbours while fewer dense bytes are
/// without room, or more expert bytes have it; compute is taken from the pilot.
fn split(problem: &Problem, pilot: &Candidate) -> Option<Vec<f32>> {
    let devices = &pilot.placement.devices;
    if devices.len() < 2 || !pilot.run.tensor_split.is_empty() {
        return None;
    }
    let slots = slots(problem.model, pilot);
    let room: Vec<i128> = devices
        .iter()
        .map(|device| {
            let device = &problem.machine.devices[usize::from(*device)];
            let row = pilot.prediction.memory.get(&device.name).copied().unwrap_or_default();
            i128::from(device.total.0) - i128::from((problem.margin + row.compute + row.overhead).0)
        })
        .collect();
    let mut counts = proportional(slots.len(), &room);
    loop {
        let score = score(&counts, &slots, &room);
        let better = neighbours(&counts).into_iter().map(|next| (self::score(&next, &slots, &room), next)).max();
        match better {
            Some((next_score, next)) if next_score > score => counts = next,
            _ => break,
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "slot counts are below 2^24")]
    Some(counts.into_iter().map(|count| count as f32).collect())
}

/// Bytes of one layer slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// What must be on the slot's device: dense weights and context.
    fixed: u64,
    /// Routed experts.
    experts: u64,
}

fn slots(model: &Model, pilot: &Candidate) -> Vec<Slot> {
    let mut slots = vec![Slot::default(); pilot.placement.layers.len()];
    let last = slots.len() - 1;
    let context: u64 = pilot.prediction.memory.values().map(|row| row.context.0).sum();
    for slot in &mut slots[..last] {
        slot.fixed = context / last.max(1) as u64;
    }
    for (tensor, copies) in model.tensors.iter().zip(&pilot.placement.copies) {
        for copy in copies.iter().filter(|copy| matches!(copy.buffer, placement::Buffer::Device(_))) {
            let slot = &mut slots[tensor.block.map_or(last, |block| (block as usize).min(last))];
            let movable = tensor.role == crate::rules::Role::RoutedExpert && copy.rule.is_none();
            *(if movable { &mut slot.experts } else { &mut slot.fixed }) += copy.bytes.0;
        }
    }
    slots
}

/// Slots in proportion to the room, at least one each where there are enough, the remainder to the first devices.
fn proportional(slots: usize, room: &[i128]) -> Vec<usize> {
    let total: i128 = room.iter().map(|room| (*room).max(1)).sum();
    let mut counts: Vec<usize> =
        room.iter().map(|room| usize::try_from(slots as i128 * (*room).max(1) / total).unwrap_or(0)).collect();
    let mut left = slots - counts.iter().sum::<usize>();
    let devices = counts.len();
    for at in (0..devices).cycle() {
        if left == 0 {
            break;
        }
        counts[at] += 1;
        left -= 1;
    }
    counts
}

/// Every vector that differs by one slot moved between neighbours.
fn neighbours(counts: &[usize]) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    for at in 1..counts.len() {
        for (from, to) in [(at - 1, at), (at, at - 1)] {
            if counts[from] > 0 {
                let mut next = counts.to_vec();
                next[from] -= 1;
                next[to] += 1;
                found.push(next);
            }
        }
    }
    found
}

/// Higher is better: first no fixed byte without room, then expert bytes with room, then an even load.
fn score(counts: &[usize], slots: &[Slot], room: &[i128]) -> (i128, i128, i128) {
    let (mut short, mut resident, mut tightest, mut start) = (0, 0, i128::MAX, 0);
    for (count, room) in counts.iter().zip(room) {
        let range = &slots[start..start + count];
        start += count;
        let fixed: i128 = range.iter().map(|slot| i128::from(slot.fixed)).sum();
        let experts: i128 = range.iter().map(|slot| i128::from(slot.experts)).sum();
        let free = room - fixed;
        short -= (-free).max(0);
        resident += experts.min(free.max(0));
        tightest = tightest.min(free - experts);
    }
    (short, resident, tightest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_in_proportion_to_the_room() {
        assert_eq!(proportional(33, &[24, 12]), [22, 11]);
        assert_eq!(proportional(34, &[24, 12]), [23, 11]);
        assert_eq!(proportional(3, &[-5, 10]), [1, 2]);
    }

    #[test]
    fn a_slot_that_has_no_room_moves_to_a_neighbour() {
        let slots = [Slot { fixed: 10, experts: 5 }; 4];
        assert!(score(&[3, 1], &slots, &[40, 15]) > score(&[2, 2], &slots, &[40, 15]));
    }
}
