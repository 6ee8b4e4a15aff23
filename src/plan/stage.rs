//! A stage of the search: one way of sharing the layers over the devices, on which the movable tensors of the blocks stay with
//! their layer or go to the host.
//!
//! Where one tensor goes does not depend on where another goes (`placement`), so two answers of the law, nothing moved and all
//! moved, hold the answer to every mixture of them; no regex is matched while the planner looks around.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::patterns::{self, TensorSet, key};
use super::solver::Problem;
use crate::memory::{Error, Forecast};
use crate::placement::{self, Buffer, Placement};
use crate::rules::Role;
use crate::run::{RunConfig, on_host};

/// Which blocks of a device's range go to the host first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As with llama.cpp's `--n-cpu-moe`.
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
        let mut part_of = vec![None; model.tensors.len()];
        let mut units: Vec<Unit> = Vec::new();
        let free: Vec<_> = loaded.iter().filter(|(_, key, _)| !claimed.contains(key)).collect();
        for block in free.iter().map(|(_, (block, _), _)| *block).collect::<BTreeSet<u32>>() {
            let device = bare.layers.get(block as usize).copied().flatten();
            units.push(Unit { block, device, stems: Vec::new(), bytes: Vec::new() });
        }
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
        let mut stage = Self { problem, hosted: bare.clone(), bare, base, units, part_of, universe };
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

    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Bytes that a choice keeps on devices.
    pub fn bytes(&self, kept: &Kept) -> u64 {
        self.units.iter().zip(kept).map(|(unit, parts)| unit.bytes_of(*parts)).sum()
    }

    /// Bytes of all that may move from a device of the machine.
    pub fn movable_bytes(&self, device: u16) -> u64 {
        self.units.iter().filter(|unit| unit.device == Some(device)).map(|unit| unit.bytes_of(unit.whole())).sum()
    }

    pub fn placement(&self, kept: &Kept) -> Placement {
        let copies = self.part_of.iter().enumerate().map(|(at, part)| {
            let stays = part.is_none_or(|(unit, part)| kept[unit] >> part & 1 == 1);
            if stays { self.bare.copies[at].clone() } else { self.hosted.copies[at].clone() }
        });
        let Placement { layers, devices, shares, .. } = &self.bare;
        Placement { copies: copies.collect(), layers: layers.clone(), devices: devices.clone(), shares: shares.clone() }
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
        let left = |device: &crate::machine::Device| {
            i128::from(device.total.0) - i128::from((self.problem.margin + all_moved.total(&device.name)).0)
        };
        self.problem.machine.devices.iter().map(left).collect()
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

    /// A choice without the single parts of blocks.
    pub fn whole_blocks(&self, kept: &Kept) -> Kept {
        self.units.iter().zip(kept).map(|(unit, parts)| if *parts == unit.whole() { *parts } else { 0 }).collect()
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
    pub fn beyond(&self, kept: &Kept, device: u16, host: End) -> Vec<Kept> {
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
