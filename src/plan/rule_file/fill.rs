//! Rules that fill devices: which tensors fit, judged by the law and the prediction themselves, and the overrides for it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Amount, DEVICES, Fill, From, Position, RuleFile, fixed, kind, overrides_of};
use crate::bytes::Bytes;
use crate::machine::{Device, Machine};
use crate::memory::{self, MemoryBreakdown};
use crate::model::Model;
use crate::placement::{self, Buffer, Placement};
use crate::plan::{ContextChoice, Plan, Request, solver::Strategy};
use crate::run::{self, Override, RunConfig};

/// Why the rules cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launch cannot be placed.
    #[error(transparent)]
    Placement(#[from] placement::Error),
    /// llama.cpp would refuse the launch.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The plan's own arguments cannot be read.
    #[error(transparent)]
    Run(#[from] run::Error),
    /// A device that is not there.
    #[error(
        "the rule at line {}, column {} fills `{name}`, which this machine does not have; known: {known}, or `{DEVICES}` for all",
        position.line, position.column
    )]
    UnknownDevice {
        /// Of the rule.
        position: Position,
        /// As written.
        name: String,
        /// What could be named.
        known: String,
    },
}

/// The rules, carried out for one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// What they come to, in order.
    pub overrides: Vec<Override>,
    /// By rule: the tensors that a filling rule put into each buffer; nothing for another rule.
    pub filled: Vec<Assignment>,
}

/// Tensors of a rule, as indices of the model, by buffer type.
pub type Assignment = Vec<(String, BTreeSet<usize>)>;

/// The request with the rules carried out for the launch that `plan` chose: everything else stays as it is there.
pub fn pinned(
    file: &RuleFile,
    model: &Model,
    machine: &Machine,
    request: &Request,
    plan: &Plan,
) -> Result<(Request, Resolution), Error> {
    let words: Vec<String> = ["llama-server".to_string()].into_iter().chain(plan.args.iter().cloned()).collect();
    let chosen = run::parse::command(&words, &BTreeMap::new())?.run;
    let chosen = RunConfig { overrides: request.run.overrides.clone(), ..chosen };
    let resolution = resolve(file, model, machine, request.margin, &chosen)?;
    let context = ContextChoice::Fixed(chosen.n_ctx);
    let mut run = chosen;
    run.overrides.extend(resolution.overrides.iter().cloned());
    Ok((Request { run, context, strategy: Strategy::Rules, ..request.clone() }, resolution))
}

/// The rules for a launch, whose own overrides come first.
pub fn resolve(
    file: &RuleFile,
    model: &Model,
    machine: &Machine,
    margin: Bytes,
    run: &RunConfig,
) -> Result<Resolution, Error> {
    let mut filler = Filler { file, model, machine, margin, run, filled: Vec::new() };
    // Until its turn comes, what a rule would fill with is where the rest goes.
    for at in 0..file.rules.len() {
        let pending = filler.fill_at(at).map(|fill| vec![(fill.then.clone(), file.rules[at].select.tensors(model))]);
        filler.filled.push(pending.unwrap_or_default());
    }
    for at in 0..file.rules.len() {
        if let Some(fill) = filler.fill_at(at) {
            filler.fill(at, fill)?;
        }
    }
    let filled = filler.filled.clone();
    filler.drop_what_needs_no_override()?;
    Ok(Resolution { overrides: filler.overrides(file.rules.len()), filled })
}

/// Tensors that stay together: a weight with its biases and scales.
#[derive(Debug, Clone)]
struct Unit {
    tensors: BTreeSet<usize>,
    /// Where it is without a rule; `None` = host.
    device: Option<u16>,
    /// What is placed first is smallest.
    rank: (usize, i64, usize),
}

/// The rules while they are carried out.
struct Filler<'a> {
    file: &'a RuleFile,
    model: &'a Model,
    machine: &'a Machine,
    margin: Bytes,
    run: &'a RunConfig,
    filled: Vec<Assignment>,
}

impl<'a> Filler<'a> {
    /// What a rule fills.
    fn fill_at(&self, at: usize) -> Option<&'a Fill> {
        match self.file.rules.get(at).map(|rule| &rule.action) {
            Some(Action::Fill(fill)) => Some(fill),
            _ => None,
        }
    }

    /// The overrides of the first so many rules, as they stand.
    fn overrides(&self, rules: usize) -> Vec<Override> {
        let of = |(rule, assigned): (&super::PlacementRule, &Assignment)| match &rule.action {
            Action::Buffer(buffer) => fixed(rule, self.model, buffer),
            Action::Fill(_) => {
                let to = |(buffer, tensors): &(String, BTreeSet<usize>)| overrides_of(self.model, tensors, buffer);
                assigned.iter().flat_map(to).collect()
            }
        };
        self.file.rules.iter().zip(&self.filled).take(rules).flat_map(of).collect()
    }

    /// The launch with the overrides of the first so many rules.
    fn launch(&self, rules: usize) -> RunConfig {
        let mut run = self.run.clone();
        run.overrides.extend(self.overrides(rules));
        run
    }

    /// The law's answer to them.
    fn place(&self, rules: usize) -> Result<Placement, Error> {
        Ok(placement::place(self.model, self.machine, &self.launch(rules))?)
    }

    /// Carries out one filling rule.
    fn fill(&mut self, at: usize, fill: &Fill) -> Result<(), Error> {
        let limits = self.limits(at, fill)?;
        let units = self.units(at, fill)?;
        let mut on: Vec<Option<u16>> = vec![None; units.len()];
        // What belongs to a device's own layers comes before what would be fetched from another's.
        for own in [true, false] {
            for (device, _) in &limits {
                let candidates: Vec<usize> = (0..units.len())
                    .filter(|unit| on[*unit].is_none() && own == (units[*unit].device == Some(*device)))
                    .collect();
                let (mut fits, mut too_many) = (0, candidates.len() + 1);
                while too_many - fits > 1 {
                    // All of them first: mostly that settles it for the devices that have room.
                    let all = too_many == candidates.len() + 1;
                    let tried = if all { candidates.len() } else { usize::midpoint(fits, too_many) };
                    let mut with = on.clone();
                    candidates.iter().take(tried).for_each(|unit| with[*unit] = Some(*device));
                    self.filled[at] = self.assignment(fill, &limits, &units, &with);
                    if self.fits(&limits)? { fits = tried } else { too_many = tried }
                }
                candidates.iter().take(fits).for_each(|unit| on[*unit] = Some(*device));
            }
        }
        self.filled[at] = self.assignment(fill, &limits, &units, &on);
        Ok(())
    }

    /// How much each device of a rule may hold.
    fn limits(&self, at: usize, fill: &Fill) -> Result<Vec<(u16, Bytes)>, Error> {
        let mut limits: Vec<(u16, Bytes)> = Vec::new();
        for (name, amount) in &fill.devices {
            let named = |device: &Device| name == DEVICES || device.name == *name || device.buffer == *name;
            let found: Vec<(u16, &Device)> = (0..).zip(&self.machine.devices).filter(|(_, d)| named(d)).collect();
            if found.is_empty() && name != DEVICES {
                let known: Vec<&str> = self.machine.devices.iter().map(|device| device.name.as_str()).collect();
                let position = self.file.rules.get(at).map(|rule| rule.position).unwrap_or_default();
                return Err(Error::UnknownDevice { position, name: name.clone(), known: known.join(", ") });
            }
            for (index, device) in found {
                if limits.iter().any(|(known, _)| *known == index) {
                    continue;
                }
                let budget = device.total.saturating_sub(self.margin);
                let limit = match amount {
                    Amount::UpTo(bytes) => budget.min(*bytes),
                    Amount::Rest => budget,
                };
                limits.push((index, limit));
            }
        }
        Ok(limits)
    }

    /// What a rule may place: its tensors that are loaded and that nothing before it decides.
    fn units(&self, at: usize, fill: &Fill) -> Result<Vec<Unit>, Error> {
        let before = self.place(at)?;
        let mut units: BTreeMap<(Option<u32>, String), Unit> = BTreeMap::new();
        for index in self.file.rules[at].select.tensors(self.model) {
            let (Some(tensor), Some(copies)) = (self.model.tensors.get(index), before.copies.get(index)) else {
                continue;
            };
            if copies.is_empty() || copies.iter().any(|copy| copy.rule.is_some()) {
                continue;
            }
            let kind = kind(tensor);
            let place_of = |wanted: &String| kind == wanted || kind.split('_').any(|part| part == wanted);
            let order = fill.order.iter().position(place_of).unwrap_or(fill.order.len());
            let block = tensor.block.map_or(0, i64::from);
            let block = if fill.from == From::First { block } else { -block };
            let device = copies.iter().find_map(|copy| match copy.buffer {
                Buffer::Device(device) => Some(device),
                _ => None,
            });
            let unit = Unit { tensors: BTreeSet::new(), device, rank: (order, block, index) };
            units.entry((tensor.block, kind.to_string())).or_insert(unit).tensors.insert(index);
        }
        let mut units: Vec<Unit> = units.into_values().collect();
        units.sort_by_key(|unit| unit.rank);
        Ok(units)
    }

    /// Units by buffer: the devices in the rule's order, then the rest.
    fn assignment(&self, fill: &Fill, limits: &[(u16, Bytes)], units: &[Unit], on: &[Option<u16>]) -> Assignment {
        let of = |wanted: Option<u16>| -> BTreeSet<usize> {
            units.iter().zip(on).filter(|(_, on)| **on == wanted).flat_map(|(unit, _)| unit.tensors.clone()).collect()
        };
        let buffer = |device: u16| self.machine.devices.get(usize::from(device)).map(|device| device.buffer.clone());
        let devices = limits.iter().filter_map(|(device, _)| Some((buffer(*device)?, of(Some(*device)))));
        let rest = std::iter::once((fill.then.clone(), of(None)));
        devices.chain(rest).filter(|(_, tensors)| !tensors.is_empty()).collect()
    }

    /// Whether every device of a rule keeps within its limit, all rules counted.
    fn fits(&self, limits: &[(u16, Bytes)]) -> Result<bool, Error> {
        let run = self.launch(self.file.rules.len());
        let placement = placement::place(self.model, self.machine, &run)?;
        let memory = memory::predict(self.model, self.machine, &run, &placement)?.memory;
        Ok(limits.iter().all(|(device, limit)| {
            let device = self.machine.devices.get(usize::from(*device));
            let row = device.and_then(|device| memory.get(&device.name));
            row.map_or(Bytes(0), MemoryBreakdown::total) <= *limit
        }))
    }

    /// Leaves out what is on its device without being told: a command is to be read by people.
    fn drop_what_needs_no_override(&mut self) -> Result<(), Error> {
        let buffers = |placement: Placement| -> Vec<Vec<Buffer>> {
            placement.copies.iter().map(|copies| copies.iter().map(|copy| copy.buffer).collect()).collect()
        };
        let rules = self.file.rules.len();
        let wanted = buffers(self.place(rules)?);
        for at in 0..rules {
            for group in (0..self.filled.get(at).map_or(0, Vec::len)).rev() {
                let without = self.filled[at].remove(group);
                if buffers(self.place(rules)?) != wanted {
                    self.filled[at].insert(group, without);
                }
            }
        }
        Ok(())
    }
}
