//! A stage of the search: one way of sharing the layers over the devices, on which the movable tensors of the blocks stay with
//! their layer or go to the host.
//!
//! Where one tensor goes does not depend on where another goes (`placement`), so two answers of the law, nothing moved and all
//! moved, hold the answer to every mixture of them; no regex is matched while the planner looks around.

use super::experts::{self, ExpertBlock};
use super::patterns::{self, TensorSet};
use super::solver::{Error, Problem};
use crate::memory::Prediction;
use crate::placement::{self, Buffer, Placement};
use crate::rules::Role;
use crate::run::{Override, RunConfig};

/// Which blocks of a device's range go to the host first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    First,
    Last,
}

/// Which parts of each movable block stay with their layer: bit `p` of entry `u` is part `p` of block `u`.
pub type Kept = Vec<u32>;

/// Parts of one block that the planner tells apart; a block with more moves the rest with the last.
const PARTS: usize = 12;

/// A way of sharing the layers, and what may move on it.
#[derive(Debug)]
pub struct Stage<'a> {
    problem: &'a Problem<'a>,
    pub base: RunConfig,
    pub bare: Placement,
    /// The law's answer with every movable tensor on the host.
    pub hosted: Placement,
    units: Vec<Unit>,
    /// By tensor: the movable block and part that it belongs to.
    part_of: Vec<Option<(usize, usize)>>,
    universe: TensorSet,
}

/// One movable block.
#[derive(Debug)]
struct Unit {
    block: ExpertBlock,
    /// The device of its layer, by its place in the machine; `None` for a layer of the host.
    device: Option<u16>,
    /// Bytes of each part on that device, padded.
    bytes: Vec<u64>,
}

impl Unit {
    /// All parts.
    fn whole(&self) -> u32 {
        (1u32 << self.bytes.len()) - 1
    }

    /// Bytes of some parts.
    fn bytes_of(&self, parts: u32) -> u64 {
        self.bytes.iter().enumerate().filter(|(part, _)| parts >> part & 1 == 1).map(|(_, bytes)| bytes).sum()
    }
}

impl<'a> Stage<'a> {
    /// The stage of a launch on which tensors of `roles` may move.
    pub fn new(problem: &'a Problem<'a>, base: RunConfig, roles: &[Role]) -> Result<Self, Error> {
        let bare = placement::place(problem.model, problem.machine, &base)?;
        let blocks = experts::movable(problem.model, &bare, roles);
        let universe = experts::universe(problem.model, &bare, roles);
        let mut part_of = vec![None; problem.model.tensors.len()];
        let mut units: Vec<Unit> = blocks
            .into_iter()
            .map(|block| Unit {
                device: bare.layers.get(block.block as usize).copied().flatten(),
                bytes: vec![0; block.parts.len().min(PARTS)],
                block,
            })
            .collect();
        for (index, block, stem) in experts::loaded(problem.model, &bare, roles) {
            let Ok(unit) = units.binary_search_by_key(&block, |unit| unit.block.block) else { continue };
            let Some(part) = units[unit].block.parts.iter().position(|part| part.stem == stem) else { continue };
            let part = part.min(PARTS - 1);
            part_of[index] = Some((unit, part));
            let on_device = bare.copies[index].iter().filter(|copy| matches!(copy.buffer, Buffer::Device(_)));
            let padding =
                units[unit].device.map_or(32, |at| problem.machine.devices[usize::from(at)].backend.alignment());
            units[unit].bytes[part] += on_device.map(|copy| copy.bytes.padded(padding).0).sum::<u64>();
        }
        let mut stage = Self { problem, base, hosted: bare.clone(), bare, units, part_of, universe };
        if !stage.units.is_empty() {
            let all_moved = stage.run(&stage.base, &stage.nothing());
            stage.hosted = placement::place(problem.model, problem.machine, &all_moved)?;
        }
        Ok(stage)
    }

    /// Every movable tensor on the host.
    pub fn nothing(&self) -> Kept {
        vec![0; self.units.len()]
    }

    /// Every movable tensor with its layer.
    pub fn everything(&self) -> Kept {
        self.units.iter().map(Unit::whole).collect()
    }

    /// Whether nothing may move.
    pub fn is_fixed(&self) -> bool {
        self.units.is_empty()
    }

    /// How many movable blocks there are.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Bytes that a choice keeps on devices.
    pub fn bytes(&self, kept: &Kept) -> u64 {
        self.units.iter().zip(kept).map(|(unit, parts)| unit.bytes_of(*parts)).sum()
    }

    /// Bytes of a choice on each device of the machine that `kept` leaves to the host.
    pub fn moved_bytes(&self, kept: &Kept, device: u16) -> u64 {
        let here = self.units.iter().zip(kept).filter(|(unit, _)| unit.device == Some(device));
        here.map(|(unit, parts)| unit.bytes_of(unit.whole() & !parts)).sum()
    }

    /// Where everything is under a choice.
    pub fn placement(&self, kept: &Kept) -> Placement {
        let stays = |part: &Option<(usize, usize)>| part.is_none_or(|(unit, part)| kept[unit] >> part & 1 == 1);
        let copies =
            self.part_of.iter().enumerate().map(|(at, part)| {
                if stays(part) { self.bare.copies[at].clone() } else { self.hosted.copies[at].clone() }
            });
        Placement { copies: copies.collect(), layers: self.bare.layers.clone(), devices: self.bare.devices.clone() }
    }

    /// `setting` with the overrides that a choice takes.
    pub fn run(&self, setting: &RunConfig, kept: &Kept) -> RunConfig {
        let mut moved = TensorSet::new();
        for (unit, parts) in self.units.iter().zip(kept) {
            for (at, part) in unit.block.parts.iter().enumerate() {
                if parts >> at.min(PARTS - 1) & 1 == 0 {
                    moved.insert((unit.block.block, part.stem.clone()));
                }
            }
        }
        let mut run = setting.clone();
        run.overrides.extend(patterns::patterns(&moved, &self.universe).into_iter().map(|pattern| Override {
            pattern,
            buffer: "CPU".to_string(),
            origin: "-ot".to_string(),
        }));
        run
    }

    /// What each device of the machine has left beside what a prediction of the launch with everything moved takes, in bytes.
    pub fn room(&self, all_moved: &Prediction) -> Vec<i128> {
        let left = |device: &crate::machine::Device| {
            let used = all_moved.memory.get(&device.name).map_or(0, |row| i128::from(row.total().0));
            i128::from(device.total.0) - i128::from(self.problem.margin.0) - used
        };
        self.problem.machine.devices.iter().map(left).collect()
    }

    /// The most that fits into the room of each device: whole blocks from the end that stays, then single parts of one more.
    pub fn fill(&self, room: &[i128], host: End, single_parts: bool) -> Kept {
        let mut kept = self.nothing();
        for (device, room) in room.iter().enumerate() {
            let mut here: Vec<usize> =
                (0..self.units.len()).filter(|at| self.units[*at].device.map(usize::from) == Some(device)).collect();
            if host == End::First {
                here.reverse();
            }
            let mut left = *room;
            for at in here {
                let whole = i128::from(self.units[at].bytes_of(self.units[at].whole()));
                if whole <= left {
                    left -= whole;
                    kept[at] = self.units[at].whole();
                } else {
                    if single_parts {
                        kept[at] = self.most_parts(at, left);
                    }
                    break;
                }
            }
        }
        kept
    }

    /// The parts of a block that take the most of `room`.
    fn most_parts(&self, at: usize, room: i128) -> u32 {
        let unit = &self.units[at];
        let fitting = (0..unit.whole()).filter(|parts| i128::from(unit.bytes_of(*parts)) <= room);
        fitting.max_by_key(|parts| (unit.bytes_of(*parts), std::cmp::Reverse(parts.count_ones()))).unwrap_or(0)
    }

    /// A choice without the single parts of blocks.
    pub fn whole_blocks(&self, kept: &Kept) -> Kept {
        self.units.iter().zip(kept).map(|(unit, parts)| if *parts == unit.whole() { *parts } else { 0 }).collect()
    }

    /// A choice with one step less on `device`: the single parts go, else the block nearest to the moved ones. `None` where
    /// nothing is left to move.
    pub fn one_less(&self, kept: &Kept, device: u16, host: End) -> Option<Kept> {
        let here: Vec<usize> = (0..self.units.len()).filter(|at| self.units[*at].device == Some(device)).collect();
        let partial = here.iter().find(|at| kept[**at] != 0 && kept[**at] != self.units[**at].whole());
        let nearest = match host {
            End::First => here.iter().find(|at| kept[**at] != 0),
            End::Last => here.iter().rev().find(|at| kept[**at] != 0),
        };
        let at = *partial.or(nearest)?;
        let mut less = kept.clone();
        less[at] = 0;
        Some(less)
    }

    /// A choice with one whole block more on `device`. `None` where all are there.
    pub fn one_more(&self, kept: &Kept, device: u16, host: End) -> Option<Kept> {
        let missing = |at: &usize| self.units[*at].device == Some(device) && kept[*at] != self.units[*at].whole();
        let at = match host {
            End::First => (0..self.units.len()).rev().find(missing),
            End::Last => (0..self.units.len()).find(missing),
        }?;
        let mut more = kept.clone();
        more[at] = self.units[at].whole();
        Some(more)
    }

    /// The choice that a placement of this stage's model shows.
    pub fn kept_of(&self, placement: &Placement) -> Kept {
        let mut kept = self.everything();
        for (at, part) in self.part_of.iter().enumerate() {
            if let Some((unit, part)) = part
                && placement.copies[at].iter().any(|copy| !matches!(copy.buffer, Buffer::Device(_)))
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
        let devices: std::collections::BTreeSet<u16> = self.units.iter().filter_map(|unit| unit.device).collect();
        for device in devices {
            let here: Vec<usize> = (0..self.units.len()).filter(|at| self.units[*at].device == Some(device)).collect();
            let whole = here.iter().filter(|at| kept[**at] == self.units[**at].whole()).count();
            let stays: &[usize] = if host == End::First { &here[here.len() - whole..] } else { &here[..whole] };
            for at in stays {
                mirrored[*at] = self.units[*at].whole();
            }
        }
        mirrored
    }

    /// Choices that keep more on `device` than `kept` does: more whole blocks from the end that stays, with any parts of one
    /// more.
    pub fn beyond(&self, kept: &Kept, device: u16, host: End) -> Vec<Kept> {
        let mut here: Vec<usize> = (0..self.units.len()).filter(|at| self.units[*at].device == Some(device)).collect();
        if host == End::First {
            here.reverse();
        }
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
    pub fn with_other_parts(&self, kept: &Kept) -> Vec<Kept> {
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
}
