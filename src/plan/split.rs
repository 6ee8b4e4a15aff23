//! How the layers are shared over several devices: slots by device for `-ts`.

use super::solver::{Candidate, Error, Problem};
use crate::model::Model;
use crate::placement;
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
    let devices = &pilot.placement.devices;
    if devices.len() < 2 {
        return Ok(None);
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
    Ok(Some(counts.into_iter().map(|count| count as f32).collect()))
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
