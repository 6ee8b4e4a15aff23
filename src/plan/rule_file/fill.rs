//! Rules that fill devices: which tensors fit, judged by the law and the prediction themselves, and the overrides for it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, DEVICES, Fill, PlacementRule, Position, RuleFile, fixed, kind, overrides_of};
use crate::bytes::Bytes;
use crate::machine::{Device, Machine};
use crate::memory;
use crate::model::Model;
use crate::placement::{self, Buffer, Placement};
use crate::plan::solver::{Levers, Strategy};
use crate::plan::{ContextChoice, Request};
use crate::run::{Override, RunConfig};

/// Why the rules cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Forecast(#[from] memory::Error),
    #[error(
        "the rule at line {}, column {} fills `{name}`, which this machine does not have; known: {known}, or `{DEVICES}` for all",
        position.line, position.column
    )]
    UnknownDevice { position: Position, name: String, known: String },
}

/// The rules, carried out for one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    pub overrides: Vec<Override>,
    /// By rule: the tensors that a filling rule put into each buffer; nothing for another rule.
    pub filled: Vec<Assignment>,
}

/// Tensors of a rule, as indices of the model, by buffer type.
pub type Assignment = Vec<(String, BTreeSet<usize>)>;

/// The request with the rules carried out for the launch that was `chosen` without them: everything else stays as it is there.
pub fn pinned(
    file: &RuleFile,
    model: &Model,
    machine: &Machine,
    request: &Request,
    chosen: RunConfig,
) -> Result<(Request, Resolution), Error> {
    let mut run = RunConfig { overrides: request.run.overrides.clone(), ..chosen };
    let resolution = resolve(file, model, machine, request.margin, &run)?;
    run.overrides.extend(resolution.overrides.iter().cloned());
    let (context, strategy, levers) = (ContextChoice::Fixed(run.n_ctx), Strategy::Rules, Levers::default());
    Ok((Request { run, context, strategy, levers, ..request.clone() }, resolution))
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
    let fill_of = |rule: &PlacementRule| match &rule.action {
        Action::Fill(fill) => Some(fill.clone()),
        Action::Buffer(_) => None,
    };
    let fills: Vec<Option<Fill>> = file.rules.iter().map(fill_of).collect();
    // Until its turn comes, what a rule would fill with is where the rest goes.
    for (rule, fill) in file.rules.iter().zip(&fills) {
        filler.filled.push(fill.iter().map(|fill| (fill.then.clone(), rule.select.tensors(model))).collect());
    }
    for (at, fill) in fills.iter().enumerate() {
        if let Some(fill) = fill {
            filler.fill(at, fill)?;
        }
    }
    let filled = filler.filled.clone();
    // What is on its device without being told is left out: a command is to be read by people.
    let wanted = filler.place(file.rules.len())?;
    for at in 0..file.rules.len() {
        for group in (0..filler.filled[at].len()).rev() {
            let without = filler.filled[at].remove(group);
            let buffers = |placement: &Placement| -> Vec<Vec<Buffer>> {
                placement.copies.iter().map(|copies| copies.iter().map(|copy| copy.buffer).collect()).collect()
            };
            if buffers(&filler.place(file.rules.len())?) != buffers(&wanted) {
                filler.filled[at].insert(group, without);
            }
        }
    }
    Ok(Resolution { overrides: filler.launch(file.rules.len()).overrides.split_off(run.overrides.len()), filled })
}

/// Tensors that stay together: a weight with its biases and scales.
#[derive(Debug, Clone)]
struct Unit {
    tensors: BTreeSet<usize>,
    /// Where it is without a rule; `None` = host.
    device: Option<u16>,
    rank: (usize, i64, usize),
}

struct Filler<'a> {
    file: &'a RuleFile,
    model: &'a Model,
    machine: &'a Machine,
    margin: Bytes,
    run: &'a RunConfig,
    filled: Vec<Assignment>,
}

impl Filler<'_> {
    /// The launch with the overrides of the first so many rules, as they stand.
    fn launch(&self, rules: usize) -> RunConfig {
        let mut run = self.run.clone();
        for (rule, assigned) in self.file.rules.iter().zip(&self.filled).take(rules) {
            if let Action::Buffer(buffer) = &rule.action {
                run.overrides.extend(fixed(rule, self.model, buffer));
            }
            for (buffer, tensors) in assigned {
                run.overrides.extend(overrides_of(self.model, tensors, buffer));
            }
        }
        run
    }

    fn place(&self, rules: usize) -> Result<Placement, Error> {
        Ok(placement::place(self.model, self.machine, &self.launch(rules)).map_err(memory::Error::from)?)
    }

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
                let position = self.file.rules[at].position;
                return Err(Error::UnknownDevice { position, name: name.clone(), known: known.join(", ") });
            }
            for (index, device) in found {
                if limits.iter().all(|(known, _)| *known != index) {
                    let budget = device.total.saturating_sub(self.margin);
                    limits.push((index, amount.map_or(budget, |most| budget.min(most))));
                }
            }
        }
        Ok(limits)
    }

    /// What a rule may place: its tensors that are loaded and that nothing before it decides.
    fn units(&self, at: usize, fill: &Fill) -> Result<Vec<Unit>, Error> {
        let before = self.place(at)?;
        let mut units: BTreeMap<(Option<u32>, String), Unit> = BTreeMap::new();
        for index in self.file.rules[at].select.tensors(self.model) {
            let (tensor, copies) = (&self.model.tensors[index], &before.copies[index]);
            if copies.is_empty() || copies.iter().any(|copy| copy.rule.is_some()) {
                continue;
            }
            let kind = kind(tensor);
            let place_of = |wanted: &String| kind == wanted || kind.split('_').any(|part| part == wanted);
            let order = fill.order.iter().position(place_of).unwrap_or(fill.order.len());
            let block = tensor.block.map_or(0, i64::from);
            let device = copies.iter().find_map(|copy| match copy.buffer {
                Buffer::Device(device) => Some(device),
                _ => None,
            });
            let rank = (order, if fill.from_first { block } else { -block }, index);
            let unit = Unit { tensors: BTreeSet::new(), device, rank };
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
        let buffer = |device: u16| self.machine.device(device).map(|device| device.buffer.clone());
        let devices = limits.iter().filter_map(|(device, _)| Some((buffer(*device)?, of(Some(*device)))));
        let rest = std::iter::once((fill.then.clone(), of(None)));
        devices.chain(rest).filter(|(_, tensors)| !tensors.is_empty()).collect()
    }

    /// Whether every device of a rule keeps within its limit, all rules counted.
    fn fits(&self, limits: &[(u16, Bytes)]) -> Result<bool, Error> {
        let forecast = memory::forecast(self.model, self.machine, &self.launch(self.file.rules.len()))?;
        let total = |at: u16| self.machine.device(at).map_or(Bytes(0), |device| forecast.total(&device.name));
        Ok(limits.iter().all(|(device, limit)| total(*device) <= *limit))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::{GIB, MIB};
    use crate::machine::{Backend, Host};
    use crate::plan::rule_file::parse;
    use crate::synth::output::{Fill as Contents, Watch, write};
    use crate::synth::{Wish, spec, synthesize};

    fn model() -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let synthesis =
            synthesize(&spec::named("qwen3-30b-a3b").unwrap(), &Wish { blocks: Some(8), ..Wish::default() }).unwrap();
        let stop = AtomicBool::new(false);
        write(&synthesis, &path, Contents::Hole, false, Watch { wrote: &|_| {}, stop: &stop }).unwrap();
        Model::from_gguf(crate::gguf::open(&path).unwrap()).unwrap()
    }

    fn machine(mib: &[u64]) -> Machine {
        let budgets: Vec<Bytes> = mib.iter().map(|mib| Bytes::mib(*mib)).collect();
        let host = Host { ram: Some(Bytes(64 * GIB)), ..Host::default() };
        Machine::new(Device::of_budgets(Backend::Cuda, &budgets).unwrap(), host).unwrap()
    }

    fn launch(split: &[f32]) -> RunConfig {
        RunConfig {
            n_ctx: 8192,
            n_parallel: Some(1),
            n_gpu_layers: 99,
            fit: false,
            tensor_split: split.to_vec(),
            ..RunConfig::default()
        }
    }

    /// Totals by device of the launch with the rules.
    fn totals(model: &Model, machine: &Machine, run: &RunConfig, resolution: &Resolution) -> BTreeMap<String, Bytes> {
        let mut run = run.clone();
        run.overrides.extend(resolution.overrides.iter().cloned());
        let memory = memory::forecast(model, machine, &run).unwrap().memory;
        memory.into_iter().map(|(name, row)| (name, row.total())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        /// What is stated is never passed, the budget less the margin neither; with one device, no tensor that would fit is left.
        #[test]
        fn no_device_is_filled_beyond_its_amount(
            budgets in proptest::collection::vec(2400_u64..6000, 1..3), amount in 2000_u64..6000, which in 0_usize..3,
            first in any::<bool>(),
        ) {
            thread_local! { static MODEL: Model = model(); }
            let machine = machine(&budgets);
            let from = if first { "first" } else { "last" };
            let order = ["", "order: [up, gate, down], ", "order: [down], "][which];
            let devices = if budgets.len() == 1 { "devices: rest" } else { "CUDA1: rest" };
            let text = format!(
                "rules:\n- {{role: routed_expert, {order}from: {from}, fill: {{CUDA0: {amount}M, {devices}}}}}\n"
            );
            let file = parse("test", &text).unwrap();
            let run = launch(if budgets.len() == 1 { &[] } else { &[5.0, 4.0] });
            let margin = Bytes::mib(100);
            let (used, resolution) = MODEL.with(|model| {
                let resolution = resolve(&file, model, &machine, margin, &run).unwrap();
                (totals(model, &machine, &run, &resolution), resolution)
            });
            for (device, budget) in machine.devices.iter().zip(&budgets) {
                let stated = if device.name == "CUDA0" { amount } else { u64::MAX };
                let limit = Bytes((budget - 100).min(stated) * MIB);
                let placed = resolution.filled[0].iter().any(|(buffer, _)| *buffer == device.buffer);
                prop_assert!(!placed || used[&device.name] <= limit, "{} of {limit} on {}", used[&device.name], device.name);
                let rest = resolution.filled[0].iter().any(|(buffer, _)| buffer == "CPU");
                if budgets.len() == 1 && placed && rest {
                    // The largest part of a block, and the area that prompts copy experts through.
                    let left = limit.saturating_sub(used[&device.name]);
                    prop_assert!(left < Bytes::mib(300), "{left} left");
                }
            }
        }
    }

    #[test]
    fn earlier_rules_and_overrides_of_the_user_are_left_alone() {
        let (model, machine) = (model(), machine(&[24_000]));
        let text =
            "rules:\n- {role: routed_expert, kinds: [up], buffer: CPU}\n- {role: routed_expert, fill: {CUDA0: rest}}\n";
        let file = parse("test", text).unwrap();
        let mut run = launch(&[]);
        let by_user = Override { pattern: r"blk\.0\.".into(), buffer: "CPU".into(), origin: "-ot".into() };
        run.overrides.push(by_user);
        let resolution = resolve(&file, &model, &machine, Bytes::mib(256), &run).unwrap();
        let filled: BTreeSet<&str> = resolution.filled[1]
            .iter()
            .flat_map(|(_, tensors)| tensors.iter().map(|at| model.tensors[*at].name.as_str()))
            .collect();
        assert_eq!(filled.len(), 7 * 2, "{filled:?}");
        assert!(filled.iter().all(|name| !name.contains("_up_") && !name.starts_with("blk.0.")), "{filled:?}");
        // All of it fits, and is on its device without being told.
        assert_eq!(resolution.overrides.len(), 1, "{:?}", resolution.overrides);
    }

    #[test]
    fn a_device_that_is_not_there_is_told_with_its_rule() {
        let file = parse("test", "rules:\n\n- {role: routed_expert, fill: {CUDA7: rest}}\n").unwrap();
        let error = resolve(&file, &model(), &machine(&[8000]), Bytes(0), &launch(&[])).unwrap_err();
        let Error::UnknownDevice { position, .. } = &error else { panic!("{error}") };
        assert_eq!(position.line, 3);
        assert!(error.to_string().contains("known: CUDA0"), "{error}");
    }

    #[test]
    fn what_is_filled_from_the_first_blocks_is_of_the_first_blocks() {
        let (model, machine) = (model(), machine(&[3500]));
        for (from, kept) in [("first", 0), ("last", 7)] {
            let text = format!("rules:\n- {{role: routed_expert, from: {from}, fill: {{CUDA0: rest}}}}\n");
            let resolution =
                resolve(&parse("test", &text).unwrap(), &model, &machine, Bytes::mib(256), &launch(&[])).unwrap();
            let blocks = |wanted: &str| -> BTreeSet<u32> {
                let of = resolution.filled[0].iter().filter(|(buffer, _)| buffer == wanted);
                of.flat_map(|(_, tensors)| tensors).filter_map(|at| model.tensors[*at].block).collect()
            };
            assert!(blocks("CUDA0").contains(&kept) && !blocks("CPU").contains(&kept), "{from}: {:?}", blocks("CUDA0"));
        }
    }
}
