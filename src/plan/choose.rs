//! The choices around the search: the context, devices, the split of layers, load mode, cache types, what leaves when experts are
//! exhausted, the expert cache, and which servers a plan has a use for.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeSet;

use serde::Deserialize;

use super::explain::quantized;
use super::search::{End, Stage, UBATCHES, WORTH};
use super::solver::{Candidate, Levers, Problem, Strategy};
use super::split::split;
use super::{Request, Turn};
use crate::bytes::Bytes;
use crate::inspection::Warning;
use crate::machine::{Backend, Device, Machine};
use crate::memory::{Error, HOST, HostNeeds, Launch, expert_cache};
use crate::number::tokens;
use crate::placement;
use crate::rules::Role;
use crate::run::numbers::padded;
use crate::run::{LoadMode, RunConfig, on_host};
use crate::speed::prices::device_rates;

/// Computing prompts, or the short ones, on the host must be better by this share: nobody measured where it begins to be.
const WORTH_OP_OFFLOAD: f64 = 0.05;
/// The power of two of the fewest rows that are tried: 64, twice what llama.cpp has.
const LEAST_ROWS: u32 = 6;
/// A number of threads must be better by this share than llama.cpp's own.
const WORTH_THREADS: f64 = 0.02;
/// A quantized cache must be better by this share: it costs quality that no speed shows.
const WORTH_QUANTIZED_CACHE: f64 = 0.03;
/// A longer context may cost the turn this share.
const WORTH_CONTEXT: f64 = 0.02;
/// Shares of the room for experts that the expert cache (`--moe-cache-mib`) may get. Its memory is exact; how often it hits is the
/// speed model's assumption.
const CACHE_SHARES: [f64; 4] = [1.0, 0.75, 0.5, 0.25];

impl Problem<'_> {
    /// The best launch for the user's settings in `run`, whose overrides are the user's and stay first.
    pub fn solve(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let levers = self.request.levers;
        let mut best = self.solve_with_fewer_devices(run)?;
        // A model whose heads q8_0 does not divide keeps its f16 cache.
        if let Some(quantized) = quantized(run).filter(|_| levers.cache_types)
            && let Ok(other) = self.solve_with_fewer_devices(&quantized)
            && other.fits()
            && (!best.fits() || self.is_better(&other, &best, WORTH_QUANTIZED_CACHE))
        {
            best = other;
        }
        if levers.expert_cache
            && let Some(cached) = self.with_expert_cache(&best)?
            && cached.lack() <= best.lack()
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
        let (host, levers) = (&self.machine.host, self.request.levers);
        // `-t`, where the host was described well enough to know better than llama.cpp, which takes the physical cores.
        let counts = [host.cores.map(|n| n / 2), host.cores, host.threads].into_iter().flatten();
        // What a thread does is known where it was measured only.
        let is_measured = host.rates.as_ref().is_some_and(|rates| !rates.by_thread.is_nan());
        let counts: BTreeSet<u32> = counts.filter(|n| *n > 0 && levers.threads && is_measured).collect();
        for count in counts {
            let run = RunConfig { n_threads: Some(count), ..candidate.run.clone() };
            let estimate = self.estimate(&run, &candidate.forecast.placement, &candidate.forecast);
            if self.cost(&estimate) < self.cost(&candidate.estimate) * (1.0 - WORTH_THREADS) {
                (candidate.run, candidate.estimate) = (run, estimate);
            }
        }
        let table = candidate.forecast.in_main_memory(self.machine);
        if let Some(ram) = host.ram.filter(|_| levers.cache_ram)
            && let Some(mib) = candidate.forecast.host_needs.smaller_prompt_cache(table, ram)
        {
            candidate.run.cache_ram = i32::try_from(mib).ok();
            candidate.forecast.host_needs =
                HostNeeds::of(self.model, self.machine, &candidate.run, &candidate.forecast);
        }
        candidate
    }

    /// [`Problem::solve_layers`]; where it does not fit on all devices, the same without the smallest, then without the two
    /// smallest …: a card too small for its share of the layers must not spoil a plan that fits the others. Nor must a much slower one,
    /// where it fits.
    fn solve_with_fewer_devices(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let first = self.solve_layers(run)?;
        if first.devices_fit()
            && let Some(devices) =
                self.much_faster().filter(|_| run.tensor_split.is_empty() && self.request.run.devices.is_none())
        {
            let fewer = self.solve_layers(&RunConfig { devices: Some(devices), ..run.clone() })?;
            let is_enough = fewer.devices_fit() && fewer.lack() <= first.lack() && !self.is_better(&first, &fewer, 0.0);
            return Ok(if is_enough { fewer } else { first });
        }
        let mut largest: Vec<&Device> = self.machine.devices.iter().collect();
        largest.sort_by_key(|device| Reverse(device.total));
        while !first.devices_fit() && run.tensor_split.is_empty() && largest.len() > 1 {
            largest.pop();
            let is_kept = |device: &&Device| largest.iter().any(|kept| kept.name == device.name);
            let devices = self.machine.devices.iter().filter(is_kept).map(|device| device.name.clone()).collect();
            let fewer = self.solve_layers(&RunConfig { devices: Some(devices), ..run.clone() })?;
            if fewer.devices_fit() {
                return Ok(fewer);
            }
        }
        Ok(first)
    }

    /// The devices without those that compute less than a quarter as fast as the fastest; `None` where there are none of these.
    fn much_faster(&self) -> Option<Vec<String>> {
        let devices = &self.machine.devices;
        let products = |device: &Device| device_rates(device).products;
        let fastest = devices.iter().map(products).fold(0.0, f64::max);
        let kept: Vec<String> = devices
            .iter()
            .filter(|device| 4.0 * products(device) >= fastest)
            .map(|device| device.name.clone())
            .collect();
        (kept.len() < devices.len()).then_some(kept)
    }

    /// The best launch on the devices that `run` names.
    fn solve_layers(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let run = split(self, run)?.map_or_else(|| run.clone(), |shares| self.shared(run, shares));
        let mut best = self.solve_load_mode(&run)?;
        if !self.request.levers.op_offload || self.leaves_nothing(&best) {
            return Ok(best);
        }
        // Few rows computed on the host, and many still on a device: memory stays as it is.
        let from = self.break_even(&best).map(|rows| RunConfig { op_offload_min_batch: Some(rows), ..run.clone() });
        if let Some(from) = from {
            let run_from = RunConfig { op_offload_min_batch: from.op_offload_min_batch, ..best.run.clone() };
            let estimate = self.estimate(&run_from, &best.forecast.placement, &best.forecast);
            if self.cost(&estimate) <= self.cost(&best.estimate) * (1.0 - WORTH_OP_OFFLOAD) {
                let other = self.solve_load_mode(&from)?;
                if other.fits() && self.is_better(&other, &best, WORTH_OP_OFFLOAD) {
                    best = other;
                }
            }
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

    /// A launch with these shares of the layers; devices without one are left out.
    pub(super) fn shared(&self, run: &RunConfig, shares: Vec<f32>) -> RunConfig {
        let all = || self.machine.devices.iter().map(|device| device.name.clone()).collect();
        let names = run.devices.clone().unwrap_or_else(all);
        let shared = names.into_iter().zip(shares).filter(|(_, share)| *share > 0.0);
        let (devices, mut tensor_split): (Vec<_>, Vec<_>) = shared.unzip();
        if devices.len() == 1 {
            // It gets everything anyhow.
            tensor_split.clear();
        }
        RunConfig { devices: Some(devices), tensor_split, ..run.clone() }
    }

    /// The fewest rows, a power of two that a micro-batch has, from which a device that copies the host's weights is as fast as the
    /// processor with them.
    pub(super) fn break_even(&self, candidate: &Candidate) -> Option<u32> {
        let run = &candidate.run;
        let speed = |rows: u32, op_offload: bool| {
            let request = Request { turn: Turn { prompt: rows, ..self.request.turn }, ..self.request.clone() };
            let run = RunConfig { op_offload, op_offload_min_batch: None, ..run.clone() };
            let problem = Problem { request: &request, ..self.clone() };
            problem.estimate(&run, &candidate.forecast.placement, &candidate.forecast).speed.pp
        };
        let powers = (LEAST_ROWS..u32::BITS).map(|power| 1 << power);
        let mut rows = powers.take_while(|rows| run.target.has_offload_rows() && *rows <= run.n_ubatch);
        rows.find(|rows| speed(*rows, true) >= speed(*rows, false))
    }

    /// Whether no routed expert is on the host.
    fn leaves_nothing(&self, candidate: &Candidate) -> bool {
        candidate.forecast.placement.experts(self.model).all(|(_, copy)| copy.buffer.device_index().is_some())
    }

    /// [`Problem::solve_tiers`] with the load mode that serves best.
    fn solve_load_mode(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let with = |load_mode| RunConfig { load_mode, ..run.clone() };
        if !self.request.levers.load_mode {
            return self.solve_tiers(run);
        }
        // Read into memory, host weights are pinned and copied at the bus's full rate; mapped, they need not fit.
        let read = self.solve_tiers(&with(LoadMode::None))?;
        let is_host_short = read.shortfall.contains_key(HOST);
        let mapped = if is_host_short || read.is_host_tight {
            // What has no room pinned may have it mapped: with a larger micro-batch, for example.
            self.solve_tiers(&with(LoadMode::Auto))?
        } else {
            // The same launch mapped: tensors move between kinds of host memory, and compute stays as it is.
            let run = RunConfig { load_mode: LoadMode::Auto, ..read.run.clone() };
            let placement = placement::place(self.model, self.machine, &run)?;
            let compute = read.forecast.compute();
            let forecast = Launch::new(self.model, self.machine, &run).forecast(placement, Some(&compute))?;
            self.candidate(run, forecast)
        };
        // A device that uses the mapped file in place holds what lies between its tensors as well.
        let maps_more = !mapped.forecast.mapped.devices.is_empty();
        let is_better = match (read.fits(), mapped.fits()) {
            // There a map is no way out of too little main memory either.
            (false, false) if is_host_short => maps_more && mapped.missing() > read.missing(),
            // By however little: mapped files are copied at 7 GB/s on some hosts and at 30 on others, pinned memory at the slot's speed
            // on all.
            (true, true) | (false, false) => {
                !self.leaves_nothing(&read) && (maps_more || self.is_better(&read, &mapped, 0.0))
            }
            (fits, _) => fits,
        };
        let best = if is_better { read } else { mapped };
        if !best.shortfall.contains_key(HOST) || best.forecast.placement.is_mapped {
            return Ok(best);
        }
        // Beside graphics of main memory `auto` maps nothing, and what is mapped need not be pinned.
        let mapped = self.solve_tiers(&with(LoadMode::Mmap))?;
        Ok(if mapped.missing() < best.missing() { mapped } else { best })
    }

    /// Routed experts leave first; then dense feed-forward tensors and shared experts, the output, whole layers.
    fn solve_tiers(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let experts = Stage::new(self, run.clone(), &[Role::RoutedExpert])?;
        let mut best = experts.best(run)?;
        if self.request.strategy != Strategy::Auto || self.machine.devices.is_empty() {
            return Ok(best);
        }
        let may_gain = |n_ubatch, best: &Candidate| experts.may_gain_by_room(run, n_ubatch, best);
        let mut ubatches = experts.every_ubatch(run);
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
            let is_better = match other.lack().cmp(&best.lack()) {
                Ordering::Equal if best.devices_fit() => self.is_better(&other, best, WORTH),
                Ordering::Equal => other.missing() < best.missing(),
                order => order.is_lt(),
            };
            if is_better {
                *best = Candidate { is_host_tight: best.is_host_tight, ..other };
            }
        };
        let experts_moved = experts.run(run, &experts.nothing());
        let dense = Stage::new(self, experts_moved.clone(), &[Role::DenseFfn, Role::SharedExpert])?;
        if !dense.is_fixed() {
            keep(&mut best, dense.best(&experts_moved)?);
        }
        let mut base = dense.run(&experts_moved, &dense.nothing());
        // An override for the output's weights; none where the model's have another name.
        let output = self.model.output().and_then(|at| self.model.tensors.get(at));
        base.overrides.extend(output.map(|t| on_host(format!("^{}$", t.name.replace('.', "\\.")), "-ot")));
        keep(&mut best, Stage::new(self, base.clone(), &[])?.best(&base)?);
        let fewer_layers = |n_ubatch, best: &Candidate| self.fewer_layers(&experts.at(&experts_moved, n_ubatch), best);
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
        // More blocks than a file may have are not read.
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
            let tried = i32::midpoint(fits, too_many);
            let candidate = at(tried)?;
            if candidate.devices_fit() {
                (fits, found) = (tried, candidate);
            } else {
                too_many = tried;
            }
        }
        Ok(found)
    }

    /// The best launch with an expert cache beside `without`, which has none and keeps its other choices; `None` where nothing is to
    /// be cached or no cache fits.
    pub fn with_expert_cache(&self, without: &Candidate) -> Result<Option<Candidate>, Error> {
        if self.request.strategy != Strategy::Auto || self.machine.devices.is_empty() {
            return Ok(None);
        }
        let overrides = self.request.run.overrides.clone();
        let base = RunConfig { overrides, moe_cache_mib: 0, ..without.run.clone() };
        let stage = Stage::new(self, base.clone(), &[Role::RoutedExpert])?;
        if stage.is_fixed() || without.forecast.memory.len() < 2 || !without.devices_fit() {
            return Ok(None);
        }
        let room = stage.room(&stage.hosted_with_compute_of(&base, without)?);
        let total: i128 = room.iter().map(|room| (*room).max(0)).sum();
        let mut best: Option<Candidate> = None;
        for share in CACHE_SHARES {
            let rest: Vec<i128> = room.iter().map(|room| room - part(*room, share)).collect();
            let kept = stage.fill(&rest, End::First, false);
            let Ok(mib) = u32::try_from((total - i128::from(stage.bytes(&kept))) >> 20) else { continue };
            let setting = RunConfig { moe_cache_mib: mib, ..base.clone() };
            let placement = stage.placement(&kept);
            let cache = expert_cache::expert_cache(self.model, self.machine, &setting, &placement);
            if mib == 0 || cache.problem.is_some() {
                continue;
            }
            let candidate = stage.candidate(&setting, &kept, Some(without))?;
            if best.as_ref().is_none_or(|known| self.is_better(&candidate, known, 0.0)) {
                best = Some(candidate);
            }
        }
        best.map_or(Ok(None), |best| self.with_smaller_cache(best))
    }

    /// The launch judged, its cache made smaller until the devices fit.
    fn with_smaller_cache(&self, mut candidate: Candidate) -> Result<Option<Candidate>, Error> {
        for _ in 0..8 {
            candidate = self.judge(candidate.run)?;
            let short = candidate.shortfall.iter().filter(|(name, _)| name.as_str() != HOST);
            let short: Bytes = short.map(|(_, over)| *over).sum();
            if short == Bytes(0) {
                return Ok(Some(candidate));
            }
            // A cache that is too large by more than its size is none.
            let less = u32::try_from(short.0.div_ceil(1 << 20)).unwrap_or(u32::MAX);
            candidate.run.moe_cache_mib = candidate.run.moe_cache_mib.saturating_sub(less.saturating_add(1));
            if candidate.run.moe_cache_mib == 0 {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The best launch with the context that the request asks for.
    pub(super) fn solve_in_context(&self, run: &RunConfig) -> Result<Candidate, Error> {
        match self.request.context {
            ContextChoice::Fixed(n_ctx) => self.solve_at(run, n_ctx),
            ContextChoice::Turn => self.solve_at(run, self.shortest_context()),
            ContextChoice::Auto => self.with_longer_context(run, self.solve_at(run, self.shortest_context())?),
            ContextChoice::Max => self.with_longest_context(run),
        }
    }

    /// The launch with the longest context that fits. What the devices have room for with all experts on the host is too much where main
    /// memory is short.
    fn with_longest_context(&self, run: &RunConfig) -> Result<Candidate, Error> {
        let n_ctx = self.largest_context(run)?;
        let longest = self.solve_at(run, n_ctx)?;
        if longest.fits() {
            return Ok(longest);
        }
        let (mut fits, mut too_many, mut best) = (1, n_ctx / 256, self.solve_at(run, 256)?);
        if !best.fits() {
            return Ok(longest);
        }
        while too_many - fits > 1 {
            let tried = u32::midpoint(fits, too_many);
            let candidate = self.solve_at(run, tried * 256)?;
            if candidate.fits() {
                (fits, best) = (tried, candidate);
            } else {
                too_many = tried;
            }
        }
        Ok(best)
    }

    /// What the turn needs in every slot, at most the model's own length.
    pub(super) fn shortest_context(&self) -> u32 {
        turn_context(self.request.turn, self.model.hparams.context_length).saturating_mul(self.request.slots())
    }

    pub(super) fn solve_at(&self, run: &RunConfig, n_ctx: u32) -> Result<Candidate, Error> {
        self.solve(&RunConfig { n_ctx, ..run.clone() })
    }

    /// The plan with the longest context that moves no expert of `shortest` to the host and costs the turn little.
    ///
    /// That is mostly the end of what still fits with the same placement, or with a smaller micro-batch that costs little: the end is
    /// found by judging that one launch, and what is found there is planned. Beyond it, plans are tried only where they may be as
    /// good: where what is next to leave are not experts, and where that plan was not.
    fn with_longer_context(&self, run: &RunConfig, shortest: Candidate) -> Result<Candidate, Error> {
        let most = self.model.hparams.context_length.saturating_mul(self.request.slots());
        if !shortest.fits() || most <= shortest.run.n_ctx || self.budgets_of_context(&shortest).is_empty() {
            return Ok(shortest);
        }
        let seconds = shortest.estimate.turn_seconds * (1.0 + WORTH_CONTEXT);
        let split = shortest.expert_split(self);
        let hosted = |candidate: &Candidate| candidate.expert_split(self).routed_expert_bytes_on_host;
        let is_cheap = |other: &Candidate| {
            other.fits() && other.estimate.turn_seconds <= seconds && hosted(other) <= split.routed_expert_bytes_on_host
        };
        let settings = self.leaner(&shortest);
        let steps = |n_ctx: u32| n_ctx.div_ceil(256);
        let n_ctx = |steps: u32| steps.saturating_mul(256).min(most);
        let (mut best, mut too_many) = (shortest.clone(), steps(most) + 1);
        for setting in settings {
            let spare = |steps: u32| -> Result<i128, Error> {
                let run = RunConfig { n_ctx: n_ctx(steps), ..setting.clone() };
                let launch = Launch::new(self.model, self.machine, &run);
                let forecast = launch.forecast(shortest.forecast.placement.clone(), None)?;
                let candidate = self.candidate(run, forecast);
                let missing = i128::from(candidate.missing().0);
                Ok(if missing > 0 { -missing } else { self.spare(&candidate).max(0) })
            };
            let end = furthest(steps(shortest.run.n_ctx), steps(most), spare)?;
            if end == steps(shortest.run.n_ctx) {
                continue;
            }
            let longer = self.solve_at(run, n_ctx(end))?;
            if is_cheap(&longer) {
                best = longer;
                break;
            }
            too_many = too_many.min(end);
        }
        let others_leave = split.routed_expert_bytes_on_devices == Bytes(0) || too_many <= steps(most);
        let mut fits = steps(best.run.n_ctx);
        let mut tried = fits + 1;
        while others_leave && tried < too_many {
            let longer = self.solve_at(run, n_ctx(tried))?;
            if is_cheap(&longer) {
                (best, fits) = (longer, tried);
            } else {
                too_many = tried;
            }
            tried = u32::midpoint(fits, too_many).max(fits + 1);
        }
        Ok(best)
    }

    /// A launch with each smaller micro-batch that costs the turn no more than a longer context may, the smallest first; then as it is.
    pub(super) fn leaner(&self, candidate: &Candidate) -> Vec<RunConfig> {
        let Candidate { run, forecast, estimate, .. } = candidate;
        let seconds = estimate.turn_seconds * (1.0 + WORTH_CONTEXT);
        let smaller = UBATCHES.into_iter().filter(|n| self.request.levers.ubatch && *n < run.n_ubatch);
        let settings = smaller
            .map(|n_ubatch| RunConfig { n_ubatch, ..run.clone() })
            .filter(|setting| self.estimate(setting, &forecast.placement, forecast).turn_seconds <= seconds);
        settings.chain([run.clone()]).collect()
    }

    /// The largest multiple of 256 that fits with the experts on the host; 256 where none does.
    fn largest_context(&self, run: &RunConfig) -> Result<u32, Error> {
        let leanest = self.leanest();
        let spare = |steps: u32| -> Result<i128, Error> {
            let mut spare = Vec::new();
            for request in &leanest {
                let lean = Problem { request, ..self.clone() };
                spare.push(lean.spare(&lean.solve_at(run, steps * 256)?));
            }
            Ok(spare.into_iter().max().unwrap_or(0))
        };
        let most = self.model.hparams.context_length.saturating_mul(self.request.slots());
        Ok(furthest(1, most.div_ceil(256).max(1), spare)? * 256)
    }

    /// The requests of which one leaves the most room for a context: with the movable experts on the host; and where the host has the
    /// devices' own memory, with all on the devices as well, because a launch with nothing on the host may take less of it.
    pub(super) fn leanest(&self) -> Vec<Request> {
        let request = self.request;
        let strategies = match request.strategy {
            Strategy::AllOnDevice | Strategy::Rules => vec![request.strategy],
            _ if self.machine.is_unified() => vec![Strategy::ExpertsOnHost, Strategy::AllOnDevice],
            _ => vec![Strategy::ExpertsOnHost],
        };
        let lean = |strategy| Request { strategy, levers: Levers::default(), ..request.clone() };
        strategies.into_iter().map(lean).collect()
    }

    /// Bytes left where least are; negative where they are missing.
    fn spare(&self, candidate: &Candidate) -> i128 {
        // Nothing has a budget: there is neither room nor too little of it.
        self.budgets_of_context(candidate).into_iter().min().unwrap_or(0)
    }

    /// What is left, in bytes, of each budget that the context takes from; the host's only where the context is there.
    fn budgets_of_context(&self, candidate: &Candidate) -> Vec<i128> {
        let signed = |budget: Bytes, used: Bytes| i128::from(budget.0) - i128::from(used.0);
        let devices = self.machine.devices.iter().filter_map(|device| {
            let row = candidate.forecast.memory.get(&device.name)?;
            Some(signed(device.total, row.total() + self.request.margin))
        });
        let shares = self.machine.is_unified();
        let there = self.machine.devices.is_empty() || !candidate.run.offload_kqv || shares;
        let used = candidate.forecast.in_main_memory(self.machine) + candidate.forecast.host_needs.least();
        let host = self.machine.host.ram.filter(|_| there).map(|ram| signed(ram, used));
        devices.chain(host).collect()
    }
}

/// The largest count from `fits` to `most` of which `spare` is not negative; `fits` where none is.
///
/// Memory grows with the context in nearly a straight line, so after both ends each try is where the line says that the budget ends,
/// and its neighbour.
pub(super) fn furthest<E>(mut fits: u32, most: u32, mut spare: impl FnMut(u32) -> Result<i128, E>) -> Result<u32, E> {
    let (mut too_many, mut left, mut short) = (most, spare(fits)?, spare(most)?);
    if left < 0 || short >= 0 {
        return Ok(if left < 0 { fits } else { most });
    }
    let mut tries = 0;
    while too_many - fits > 1 {
        tries += 1;
        let by_line = i128::from(too_many - fits) * left / (left - short).max(1);
        let by_line = u32::try_from(by_line).map_or(fits, |steps| fits + steps);
        let tried = if tries < 7 { by_line.clamp(fits + 1, too_many - 1) } else { u32::midpoint(fits, too_many) };
        let found = spare(tried)?;
        if found >= 0 {
            (fits, left) = (tried, found);
        } else {
            (too_many, short) = (tried, found);
        }
    }
    Ok(fits)
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "bytes below 2^52, ranked only")]
fn part(room: i128, share: f64) -> i128 {
    (room.max(0) as f64 * share) as i128
}

/// How `-c` is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String")]
pub enum ContextChoice {
    /// The longest that moves no expert and costs the turn at most 2%, at most the model's own length for each slot.
    Auto,
    /// Room for the turn and no more, at most the model's own length.
    Turn,
    /// The largest that fits with every movable expert on the host, at most the model's own length for each slot.
    Max,
    Fixed(u32),
}

impl std::str::FromStr for ContextChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match tokens(text) {
            _ if text == "max" => Ok(Self::Max),
            Ok(0) | Err(_) => Err("write a number of tokens (8192 or 8k), or `max`".to_string()),
            Ok(n) => Ok(Self::Fixed(n)),
        }
    }
}

impl TryFrom<String> for ContextChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Room for the turn rounded up to 256, at most what the model was trained on.
pub(super) fn turn_context(turn: Turn, context_length: u32) -> u32 {
    let wanted = padded(turn.tokens());
    if context_length == 0 { wanted } else { wanted.min(context_length) }
}

/// RPC servers that a plan has no use for are left out, and those after them numbered as llama.cpp then numbers them: the machine and
/// the request without the servers on whose devices `candidate` has nothing; `None` where it uses them all.
pub(super) fn without_idle(
    machine: &Machine,
    request: &Request,
    candidate: &Candidate,
) -> Option<(Machine, Request, Warning)> {
    let placement = &candidate.forecast.placement;
    let placed = placement.copies.iter().flatten().filter_map(|copy| copy.buffer.device_index());
    let used = placement.devices.iter().copied().chain(placed);
    let servers_in_use: BTreeSet<&str> = used.filter_map(|at| machine.device(at)?.endpoint()).collect();
    let is_idle = |device: &Device| {
        let is_named = request.run.overrides.iter().any(|rule| rule.buffer == device.buffer);
        !is_named && device.endpoint().is_some_and(|server| !servers_in_use.contains(server))
    };
    let (idle, kept): (Vec<Device>, Vec<Device>) = machine.devices.iter().cloned().partition(is_idle);
    let mut servers: Vec<&str> = idle.iter().filter_map(Device::endpoint).collect();
    servers.dedup();
    if servers.is_empty() {
        return None;
    }
    let left = Machine::new(kept, machine.host.clone()).ok()?;
    // Buffer types keep their names: they count the devices of one server.
    let new_name = |device: &Device| left.devices.iter().find(|other| other.buffer == device.buffer).map(|d| &d.name);
    let remote = machine.devices.iter().filter(|device| device.backend == Backend::Rpc);
    let renamed: Vec<String> = remote
        .filter_map(|device| new_name(device).filter(|new| **new != device.name).map(|new| (device, new)))
        .map(|(device, new)| format!("{} is {new}", device.name))
        .collect();
    let mut request = request.clone();
    request.run.rpc.retain(|server| !servers.contains(&server.as_str()));
    let still_named = |name: String| match machine.devices.iter().find(|device| device.name == name) {
        Some(device) => new_name(device).cloned(),
        None => Some(name),
    };
    request.run.devices = request.run.devices.map(|names| names.into_iter().filter_map(still_named).collect());
    let (what, it) = if servers.len() == 1 { ("server", "it") } else { ("servers", "them") };
    let then = if renamed.is_empty() { String::new() } else { format!("; {} without {it}", renamed.join(", ")) };
    let warning = Warning {
        code: "server-not-used".into(),
        message: format!(
            "the plan has no use for the RPC {what} {}: the command leaves {it} out{then}",
            servers.join(", ")
        ),
        hint: format!("with a larger budget, the plan may use {it}"),
    };
    Some((left, request, warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_holds_the_turn() {
        let turn = |prompt, depth| Turn { prompt, depth, ..Turn::default() };
        assert_eq!(turn_context(turn(4096, 0), 131_072), 4608);
        assert_eq!(turn_context(turn(4096, 16384), 131_072), 20992);
        assert_eq!(turn_context(turn(4096, 16384), 4096), 4096);
    }
}
