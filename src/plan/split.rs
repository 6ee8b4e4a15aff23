//! How the layers are shared over several devices: slots by device for `-ts`.
//!
//! Bytes come first: a split on which dense weights and caches have room and the most experts too. From there, slots move
//! between neighbours as long as the predicted speed gains by it: a fast card takes what a slow one would be waited for.

use super::search::Stage;
use super::solver::{Candidate, Problem};
use crate::memory::Error;
use crate::model::Model;
use crate::placement;
use crate::rules::Role;
use crate::run::RunConfig;

/// Layer slots per device for `-ts`, or `None` with one device or where the user gave it.
///
/// Starts from slots in proportion to the budgets and moves single slots between neighbours while fewer dense bytes are
/// without room, or more expert bytes have it; compute is taken from the pilot.
pub(super) fn split(problem: &Problem, run: &RunConfig) -> Result<Option<Vec<f32>>, Error> {
    let named = run.devices.as_ref().map_or(problem.machine.devices.len(), Vec::len);
    if named < 2 || !run.tensor_split.is_empty() {
        return Ok(None);
    }
    let pilot = &problem.judge(run.clone())?;
    let devices = &pilot.forecast.placement.devices;
    if devices.len() < 2 {
        return Ok(None);
    }
    let slots = slots(problem.model, pilot);
    let room: Vec<i128> = devices
        .iter()
        .map(|device| {
            let device = &problem.machine.devices[usize::from(*device)];
            let row = pilot.forecast.memory.get(&device.name).copied().unwrap_or_default();
            i128::from(device.total.0) - i128::from((problem.request.margin + row.compute + row.overhead).0)
        })
        .collect();
    let mut counts = proportional(slots.len(), &room);
    loop {
        let score = score(&counts, &slots, &room);
        let better = neighbours(&counts, 1).into_iter().map(|next| (self::score(&next, &slots, &room), next)).max();
        match better {
            Some((next_score, next)) if next_score > score => counts = next,
            _ => break,
        }
    }
    let sharing = Sharing::new(problem, pilot, slots, room)?;
    Ok(Some(shares(&sharing.faster(counts)?)))
}

#[expect(clippy::cast_precision_loss, reason = "slot counts are below 2^24")]
fn shares(counts: &[usize]) -> Vec<f32> {
    counts.iter().map(|count| *count as f32).collect()
}

/// A faster split must be faster by this share: the one by bytes keeps the cards evenly filled.
const WORTH: f64 = 0.01;

struct Sharing<'a> {
    problem: &'a Problem<'a>,
    pilot: &'a Candidate,
    /// The pilot with every movable expert on the host.
    hosted: placement::Placement,
    experts: Vec<Vec<usize>>,
    slots: Vec<Slot>,
    room: Vec<i128>,
}

impl<'a> Sharing<'a> {
    fn new(problem: &'a Problem<'a>, pilot: &'a Candidate, slots: Vec<Slot>, room: Vec<i128>) -> Result<Self, Error> {
        let stage = Stage::new(problem, pilot.run.clone(), &[Role::RoutedExpert])?;
        let mut experts = vec![Vec::new(); slots.len()];
        for (at, tensor) in problem.model.tensors.iter().enumerate() {
            let moved = stage.hosted.copies[at] != stage.bare.copies[at];
            if let Some(slot) = tensor.block.and_then(|block| experts.get_mut(block as usize)).filter(|_| moved) {
                slot.push(at);
            }
        }
        Ok(Self { problem, pilot, hosted: stage.hosted, experts, slots, room })
    }

    /// Moves fewer and fewer slots at a time between neighbours while that is faster.
    fn faster(&self, start: Vec<usize>) -> Result<Vec<usize>, Error> {
        let first = self.cost(&start)?;
        let (mut counts, mut cost) = (start.clone(), first);
        let mut step = (self.slots.len() / 4).max(1);
        while step > 0 {
            let mut improved = None;
            for next in neighbours(&counts, step) {
                let next_cost = self.cost(&next)?;
                if next_cost < cost * (1.0 - WORTH / 10.0) {
                    (improved, cost) = (Some(next), next_cost);
                }
            }
            match improved {
                Some(next) => counts = next,
                None => step /= 2,
            }
        }
        Ok(if cost < first * (1.0 - WORTH) { counts } else { start })
    }

    /// What a split costs with as many whole blocks of experts on each device as its bytes hold; infinite where the rest of a
    /// device's layers has no room.
    fn cost(&self, counts: &[usize]) -> Result<f64, Error> {
        if score(counts, &self.slots, &self.room).0 < 0 {
            return Ok(f64::INFINITY);
        }
        let run = RunConfig { tensor_split: shares(counts), ..self.pilot.run.clone() };
        let mut placement = placement::place(self.problem.model, self.problem.machine, &run)?;
        let mut start = 0;
        for (count, room) in counts.iter().zip(&self.room) {
            let range = start..start + count;
            start = range.end;
            let fixed: i128 = self.slots[range.clone()].iter().map(|slot| i128::from(slot.fixed)).sum();
            let mut left = room - fixed;
            for slot in range.rev() {
                left -= i128::from(self.slots[slot].experts);
                for at in self.experts[slot].iter().filter(|_| left < 0) {
                    placement.copies[*at].clone_from(&self.hosted.copies[*at]);
                }
            }
        }
        Ok(self.problem.cost(&self.problem.estimate(&run, &placement, &self.pilot.forecast)))
    }
}

/// Bytes of one layer slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// What must be on the slot's device: dense weights and context.
    fixed: u64,
    experts: u64,
}

fn slots(model: &Model, pilot: &Candidate) -> Vec<Slot> {
    let mut slots = vec![Slot::default(); pilot.forecast.placement.layers.len()];
    let last = slots.len() - 1;
    let context: u64 = pilot.forecast.memory.values().map(|row| row.context.0).sum();
    for slot in &mut slots[..last] {
        slot.fixed = context / last.max(1) as u64;
    }
    for (tensor, copies) in model.tensors.iter().zip(&pilot.forecast.placement.copies) {
        for copy in copies.iter().filter(|copy| matches!(copy.buffer, placement::Buffer::Device(_))) {
            let slot = &mut slots[tensor.block.map_or(last, |block| (block as usize).min(last))];
            let movable = tensor.role == Role::RoutedExpert && copy.rule.is_none();
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

/// Every vector that differs by `step` slots moved between neighbours.
fn neighbours(counts: &[usize], step: usize) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    for at in 1..counts.len() {
        for (from, to) in [(at - 1, at), (at, at - 1)] {
            if counts[from] >= step {
                let mut next = counts.to_vec();
                next[from] -= step;
                next[to] += step;
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
