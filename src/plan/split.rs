//! How the layers are shared over several devices: slots by device for `-ts`.
//!
//! Bytes come first: a split on which dense weights and caches have room and the most experts too. From there, slots move
//! between neighbours as long as the predicted speed gains by it: a fast card takes what a slow one would be waited for.

use super::search::Stage;
use super::solver::{Candidate, Problem};
use crate::machine::Device;
use crate::memory::Error;
use crate::placement::{self, Placement};
use crate::rules::Role;
use crate::run::{RunConfig, on_host};

/// A faster split must be faster by this share: the one by bytes keeps the cards evenly filled.
const WORTH: f64 = 0.01;
/// As many sets of devices are tried at most.
const MOST_SUBSETS: usize = 16;

/// Layer slots per device for `-ts`, or `None` with one device or where the user gave it.
///
/// Starts from slots in proportion to the budgets and moves single slots between neighbours while fewer dense bytes are
/// without room, or more expert bytes have it; compute is taken from the pilot.
pub(super) fn split(problem: &Problem, run: &RunConfig) -> Result<Option<Vec<f32>>, Error> {
    let named = run.devices.as_ref().map_or(problem.machine.devices.len(), Vec::len);
    if named < 2 || !run.tensor_split.is_empty() {
        return Ok(None);
    }
    let pilot = problem.judge(run.clone())?;
    if pilot.forecast.placement.devices.len() < 2 {
        return Ok(None);
    }
    let sharing = Sharing::new(problem, &pilot)?;
    let mut counts = sharing.proportional(&[]);
    while let Some(better) = neighbours(&counts, 1).into_iter().map(|next| (sharing.score(&next), next)).max()
        && better.0 > sharing.score(&counts)
    {
        counts = better.1;
    }
    let (counts, mut cost) = sharing.faster(counts)?;
    // A device may cost more than it brings: without it there is one fewer to wait for.
    let mut better = None;
    for idle in sharing.idle() {
        let start = sharing.proportional(&idle);
        let found = sharing.cost(&start)?;
        if found < cost * (1.0 - WORTH) {
            (better, cost) = (Some(start), found);
        }
    }
    let counts = better.map_or(Ok(counts), |start| Ok::<_, Error>(sharing.faster(start)?.0))?;
    Ok(Some(shares(&counts)))
}

#[expect(clippy::cast_precision_loss, reason = "slot counts are below 2^24")]
fn shares(counts: &[usize]) -> Vec<f32> {
    counts.iter().map(|count| *count as f32).collect()
}

/// One layer slot.
#[derive(Clone, Default)]
struct Slot {
    /// Bytes that must be on the slot's device: dense weights and context.
    fixed: i128,
    /// Bytes of its experts.
    movable: i128,
    /// The tensors of its experts.
    experts: Vec<usize>,
}

struct Sharing<'a> {
    problem: &'a Problem<'a>,
    pilot: &'a Candidate,
    /// The pilot with every movable expert on the host.
    hosted: Placement,
    slots: Vec<Slot>,
    /// Bytes by device, beside compute and overhead.
    room: Vec<i128>,
}

impl<'a> Sharing<'a> {
    fn new(problem: &'a Problem<'a>, pilot: &'a Candidate) -> Result<Self, Error> {
        let (forecast, placement) = (&pilot.forecast, &pilot.forecast.placement);
        let stage = Stage::new(problem, pilot.run.clone(), &[Role::RoutedExpert])?;
        let mut slots = vec![Slot::default(); placement.layers.len()];
        let last = slots.len() - 1;
        let context: u64 = forecast.memory.values().map(|row| row.context.0).sum();
        for slot in &mut slots[..last] {
            slot.fixed = i128::from(context / last as u64);
        }
        for (at, tensor) in problem.model.tensors.iter().enumerate() {
            let slot = &mut slots[tensor.block.map_or(last, |block| (block as usize).min(last))];
            for copy in placement.copies[at].iter().filter(|copy| copy.buffer.device_index().is_some()) {
                let is_movable = tensor.role == Role::RoutedExpert && copy.rule.is_none();
                *(if is_movable { &mut slot.movable } else { &mut slot.fixed }) += i128::from(copy.bytes.0);
            }
            if tensor.block.is_some() && stage.hosted.copies[at] != stage.bare.copies[at] {
                slot.experts.push(at);
            }
        }
        let room = placement.taking_part(problem.machine).map(|(_, device)| {
            let row = forecast.memory.get(&device.name).copied().unwrap_or_default(); // Without a row it holds nothing.
            i128::from(device.total.0) - i128::from((problem.request.margin + row.compute + row.overhead).0)
        });
        Ok(Self { problem, pilot, hosted: stage.hosted, slots, room: room.collect() })
    }

    /// Slots in proportion to the room, at least one each where there are enough, the remainder to the first devices; none to those that are
    /// `idle`.
    fn proportional(&self, idle: &[usize]) -> Vec<usize> {
        let slots = self.slots.len();
        let used = || (0..self.room.len()).filter(|at| !idle.contains(at));
        let room = |at: usize| self.room[at].max(1);
        let total: i128 = used().map(room).sum();
        let mut counts = vec![0; self.room.len()];
        used().for_each(|at| counts[at] = usize::try_from(slots as i128 * room(at) / total).unwrap_or(0));
        let left = slots - counts.iter().sum::<usize>();
        let given: Vec<usize> = used().collect();
        given.into_iter().cycle().take(left).for_each(|at| counts[at] += 1);
        counts
    }

    /// Which devices may be left idle; of devices that are alike the last ones.
    fn idle(&self) -> Vec<Vec<usize>> {
        let devices: Vec<&Device> =
            self.pilot.forecast.placement.taking_part(self.problem.machine).map(|(_, device)| device).collect();
        let kind = |at: usize| (&devices[at].description, devices[at].total, devices[at].backend, &devices[at].rates);
        let all = 0..devices.len().min(MOST_SUBSETS.ilog2() as usize * 2);
        let is_in = |mask: usize, at: usize| mask >> at & 1 == 1;
        let is_first = |mask: usize| {
            let pairs = all.clone().flat_map(|one| (0..one).map(move |before| (before, one)));
            pairs.into_iter().all(|(before, one)| !is_in(mask, before) || is_in(mask, one) || kind(before) != kind(one))
        };
        let masks = (1..(1usize << all.len()) - 1).filter(|mask| is_first(*mask)).take(MOST_SUBSETS);
        masks.map(|mask| all.clone().filter(|at| is_in(mask, *at)).collect()).collect()
    }

    /// The slots of each device, with its room.
    fn ranges<'s>(&'s self, counts: &'s [usize]) -> impl Iterator<Item = (&'s [Slot], i128)> {
        let mut rest = &self.slots[..];
        counts.iter().copied().zip(&self.room).map(move |(count, room)| {
            let (here, others) = rest.split_at(count);
            rest = others;
            (here, *room)
        })
    }

    /// Higher is better: first no fixed byte without room, then expert bytes with room, then an even load.
    fn score(&self, counts: &[usize]) -> (i128, i128, i128) {
        let (mut short, mut resident, mut tightest) = (0, 0, i128::MAX);
        for (slots, room) in self.ranges(counts) {
            let experts: i128 = slots.iter().map(|slot| slot.movable).sum();
            let free = room - slots.iter().map(|slot| slot.fixed).sum::<i128>();
            short -= (-free).max(0);
            resident += experts.min(free.max(0));
            tightest = tightest.min(free - experts);
        }
        (short, resident, tightest)
    }

    /// Moves fewer and fewer slots at a time between neighbours while that is faster; what is found, and its cost.
    fn faster(&self, start: Vec<usize>) -> Result<(Vec<usize>, f64), Error> {
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
        Ok(if cost < first * (1.0 - WORTH) { (counts, cost) } else { (start, first) })
    }

    /// What a split costs with as many whole blocks of experts on each device as its bytes hold; infinite where the rest of a
    /// device's layers has no room.
    fn cost(&self, counts: &[usize]) -> Result<f64, Error> {
        if self.score(counts).0 < 0 {
            return Ok(f64::INFINITY);
        }
        let mut run = RunConfig { tensor_split: shares(counts), ..self.pilot.run.clone() };
        let mut moves = false;
        let mut placement = placement::place(self.problem.model, self.problem.machine, &run)?;
        for (slots, room) in self.ranges(counts) {
            let mut left = room - slots.iter().map(|slot| slot.fixed).sum::<i128>();
            for slot in slots.iter().rev() {
                left -= slot.movable;
                for at in slot.experts.iter().filter(|_| left < 0) {
                    placement.copies[*at].clone_from(&self.hosted.copies[*at]);
                    moves = true;
                }
            }
        }
        // Overrides keep the devices from working in a pipeline.
        if moves && run.overrides.is_empty() {
            run.overrides.push(on_host(String::new(), "-ot"));
        }
        Ok(self.problem.cost(&self.problem.estimate(&run, &placement, &self.pilot.forecast)))
    }
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
