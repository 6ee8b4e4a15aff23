//! The choices around the search: devices, the split of layers, load mode, cache types, what leaves when experts are exhausted.

use std::collections::BTreeSet;

use super::explore::{Explorer, WORTH};
use super::solver::{Candidate, HostNeeds, Problem, Strategy};
use super::split::split;
use super::stage::Stage;
use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::machine::Device;
use crate::memory::{self, Error, HOST};
use crate::placement::{self, Buffer};
use crate::rules::Role;
use crate::run::{LoadMode, Override, RunConfig, on_host};

/// Computing prompts on the host must be better by this share: nobody measured where it begins to be.
const WORTH_OP_OFFLOAD: f64 = 0.05;
/// A number of threads must be better by this share than llama.cpp's own.
const WORTH_THREADS: f64 = 0.02;
/// A quantized cache must be better by this share: it costs quality that no speed shows.
const WORTH_QUANTIZED_CACHE: f64 = 0.03;

impl Problem<'_> {
    /// The best launch for the user's settings in `run`, whose overrides are the user's and stay first.
    pub fn solve(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let mut best = self.solve_with_fewer_devices(run)?;
        if self.levers.cache_types {
            let q8_0 = GgmlType::from_name("q8_0").expect("a type of the table");
            // A model whose heads q8_0 does not divide keeps its f16 cache.
            let quantized = self.solve_with_fewer_devices(&RunConfig { type_k: q8_0, type_v: q8_0, ..run.clone() });
            best = match quantized {
                Ok(other) if other.fits() && !best.fits() => other,
                Ok(other) if other.fits() && self.is_better(&other, &best, WORTH_QUANTIZED_CACHE) => other,
                _ => best,
            };
        }
        if self.levers.expert_cache
            && self.may_cache_experts()
            && let Some(cached) = self.with_expert_cache(&best, &run.overrides, true)?
            && self.is_better(&cached, &best, WORTH)
        {
            best = cached;
        }
        Ok(self.finished(best))
    }

    /// Whether a launch costs less than another by at least `share`.
    pub fn is_better(&self, candidate: &Candidate, than: &Candidate, share: f64) -> bool {
        self.cost(&candidate.estimate) < self.cost(&than.estimate) * (1.0 - share)
    }

    /// What follows from the launch: threads, a prompt cache that main memory has room for.
    fn finished(&self, mut candidate: Candidate) -> Candidate {
        let host = &self.machine.host;
        // `-t`, where the host was described well enough to know better than llama.cpp, which takes the physical cores.
        let counts = [host.cores.map(|n| n / 2), host.cores, host.threads].into_iter().flatten();
        let counts: BTreeSet<u32> = counts.filter(|n| *n > 0 && self.levers.threads && host.rates.is_some()).collect();
        for count in counts {
            let run = RunConfig { n_threads: Some(count), ..candidate.run.clone() };
            let estimate = self.estimate(&run, &candidate.forecast.placement, &candidate.forecast);
            if self.cost(&estimate) < self.cost(&candidate.estimate) * (1.0 - WORTH_THREADS) {
                (candidate.run, candidate.estimate) = (run, estimate);
            }
        }
        let table = candidate.forecast.in_main_memory(self.machine);
        if let Some(ram) = host.ram.filter(|_| self.levers.cache_ram)
            && let Some(mib) = candidate.needs.smaller_prompt_cache(&candidate.run, table, ram)
        {
            candidate.run.cache_ram = Some(i32::try_from(mib).unwrap_or(i32::MAX));
            candidate.needs = HostNeeds::of(self.model, &candidate.run, &candidate.forecast);
        }
        candidate
    }

    /// [`Problem::solve_layers`]; where it does not fit on all devices, the same without the smallest, then without the two
    /// smallest …: a card too small for its share of the layers must not spoil a plan that fits the others.
    fn solve_with_fewer_devices(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let first = self.solve_layers(run)?;
        let mut names: Vec<&Device> = self.machine.devices.iter().collect();
        names.sort_by_key(|device| std::cmp::Reverse(device.total));
        while !first.devices_fit() && run.tensor_split.is_empty() && names.len() > 1 {
            names.pop();
            let kept = |device: &&Device| names.iter().any(|name| name.name == device.name);
            let devices = self.machine.devices.iter().filter(kept).map(|device| device.name.clone()).collect();
            let fewer = self.solve_layers(&RunConfig { devices: Some(devices), ..run.clone() })?;
            if fewer.devices_fit() {
                return Ok(fewer);
            }
        }
        Ok(first)
    }

    /// The best launch on the devices that `run` names.
    fn solve_layers(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let mut run = run.clone();
        if let Some(shares) = split(self, &run)? {
            // Devices without a share of the layers are left out.
            let names = run.devices.unwrap_or_else(|| self.machine.devices.iter().map(|d| d.name.clone()).collect());
            let shared = names.into_iter().zip(shares).filter(|(_, share)| *share > 0.0);
            let (devices, tensor_split) = shared.unzip();
            run = RunConfig { devices: Some(devices), tensor_split, ..run };
        }
        let best = self.solve_load_mode(&run)?;
        if !self.levers.op_offload || self.leaves_nothing(&best) {
            return Ok(best);
        }
        // Prompts computed on the host: for short ones over a slow bus. Nothing is then copied, so compute shrinks as well.
        let run_there = RunConfig { op_offload: false, ..best.run.clone() };
        let there = self.estimate(&run_there, &best.forecast.placement, &best.forecast);
        if self.cost(&there) > self.cost(&best.estimate) * (1.0 - WORTH_OP_OFFLOAD) {
            return Ok(best);
        }
        let other = self.solve_load_mode(&RunConfig { op_offload: false, ..run })?;
        Ok(if other.fits() && self.is_better(&other, &best, WORTH_OP_OFFLOAD) { other } else { best })
    }

    /// Whether no routed expert is on the host.
    fn leaves_nothing(&self, candidate: &Candidate) -> bool {
        candidate.forecast.placement.experts(self.model).all(|(_, copy)| matches!(copy.buffer, Buffer::Device(_)))
    }

    /// [`Problem::solve_tiers`] with the load mode that serves best.
    fn solve_load_mode(&self, run: &RunConfig) -> Result<Candidate, Error> {
        if !self.levers.load_mode {
            return self.solve_tiers(run);
        }
        // Read into memory, host weights are pinned and copied at the bus's full rate; mapped, they need not fit.
        let read = self.solve_tiers(&RunConfig { load_mode: LoadMode::None, ..run.clone() })?;
        if read.shortfall.contains_key(HOST) {
            return self.solve_tiers(&RunConfig { load_mode: LoadMode::Auto, ..run.clone() });
        }
        let mapped = self.with_load_mode(&read, LoadMode::Auto)?;
        Ok(if !self.leaves_nothing(&read) && self.is_better(&read, &mapped, WORTH) { read } else { mapped })
    }

    /// The same launch with another load mode: that moves tensors between kinds of host memory, and compute stays as it is.
    pub fn with_load_mode(&self, candidate: &Candidate, load_mode: LoadMode) -> Result<Candidate, Error> {
        let run = RunConfig { load_mode, ..candidate.run.clone() };
        let placement = placement::place(self.model, self.machine, &run)?;
        let compute = candidate.forecast.compute();
        let forecast = memory::forecast_placed(self.model, self.machine, &run, placement, Some(&compute))?;
        Ok(self.candidate(run, forecast))
    }

    /// Routed experts leave first; then dense feed-forward tensors and shared experts, the output, whole layers.
    fn solve_tiers(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let stage = Stage::new(self, run.clone(), &[Role::RoutedExpert])?;
        let explorer = Explorer::new(self, &stage);
        let mut best = explorer.best(run)?;
        if self.strategy != Strategy::Auto || self.machine.devices.is_empty() {
            return Ok(best);
        }
        let may_gain = |n_ubatch, best: &Candidate| explorer.may_gain_by_room(run, n_ubatch, best);
        let mut ubatches = explorer.every_ubatch(run);
        let mut may_any_gain = false;
        for n_ubatch in &ubatches {
            // A smaller one than that of what fits would fit as well.
            let is_larger = !best.devices_fit() || *n_ubatch > best.run.n_ubatch;
            may_any_gain = may_any_gain || (is_larger && may_gain(*n_ubatch, &best)?);
        }
        if !may_any_gain {
            return Ok(best);
        }
        // Of what fits the cheapest, for which of these must leave depends on the model; of what does not, the least short.
        let keep = |best: &mut Candidate, other: Candidate| {
            let is_better = match (best.devices_fit(), other.devices_fit()) {
                (true, true) => self.is_better(&other, best, WORTH),
                (false, false) => other.missing() < best.missing(),
                (_, other_fits) => other_fits,
            };
            if is_better {
                *best = other;
            }
        };
        let experts_moved = stage.run(run, &stage.nothing());
        let stage = Stage::new(self, experts_moved.clone(), &[Role::DenseFfn, Role::SharedExpert])?;
        if !stage.is_fixed() {
            keep(&mut best, Explorer::new(self, &stage).best(&experts_moved)?);
        }
        let mut base = stage.run(&experts_moved, &stage.nothing());
        base.overrides.extend(self.output_on_host());
        let stage = Stage::new(self, base.clone(), &[])?;
        keep(&mut best, Explorer::new(self, &stage).best(&base)?);
        let fewer_layers = |n_ubatch, best: &Candidate| self.fewer_layers(&explorer.at(&experts_moved, n_ubatch), best);
        if !best.devices_fit()
            && let Some(least) = ubatches.pop()
        {
            let fewer = fewer_layers(least, &best)?;
            keep(&mut best, fewer);
        }
        // Where the smallest does not fit with any number of layers, none does.
        for n_ubatch in ubatches {
            if best.devices_fit() && may_gain(n_ubatch, &best)? {
                let fewer = fewer_layers(n_ubatch, &best)?;
                keep(&mut best, fewer);
            }
        }
        Ok(best)
    }

    /// An override that leaves the output's weights to the host; none where the model's have another name.
    fn output_on_host(&self) -> Option<Override> {
        let has = |name: &str| self.model.tensors.iter().any(|tensor| tensor.name == name);
        let name = ["output.weight", "token_embd.weight"].into_iter().find(|name| has(name))?;
        Some(on_host(format!("^{}$", name.replace('.', "\\.")), "-ot"))
    }

    /// The most layers on the devices that fit, the rest whole on the host, their caches too. Given up, with what does not fit,
    /// where even more layers would not be better than `best`.
    fn fewer_layers(&self, base: &RunConfig, best: &Candidate) -> Result<Candidate, Error> {
        let at = |layers: i32| self.judge(RunConfig { n_gpu_layers: layers, ..base.clone() });
        if !best.devices_fit() {
            let none = at(0)?;
            if !none.devices_fit() {
                return Ok(none);
            }
        }
        let mut too_many = i32::try_from(self.model.hparams.block_count + 1).unwrap_or(i32::MAX);
        let mut step = 1;
        let (mut fits, mut found) = loop {
            let layers = (too_many - step).max(0);
            let candidate = at(layers)?;
            if candidate.devices_fit() {
                break (layers, candidate);
            }
            if layers == 0 || (best.devices_fit() && !self.is_better(&candidate, best, WORTH)) {
                return Ok(candidate);
            }
            (too_many, step) = (layers, step * 2);
        };
        while too_many - fits > 1 {
            let tried = fits + (too_many - fits) / 2;
            let candidate = at(tried)?;
            if candidate.devices_fit() {
                (fits, found) = (tried, candidate);
            } else {
                too_many = tried;
            }
        }
        Ok(found)
    }

    /// Bytes of a launch's weights that stay in the mapped file and do not fit into main memory: they come from the disk.
    pub fn from_disk(&self, candidate: &Candidate) -> Option<Bytes> {
        candidate.shortfall.get(HOST).copied().filter(|_| candidate.run.load_mode.is_mapped())
    }
}
