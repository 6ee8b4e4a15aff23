//! Why a plan is as it is: what each term takes and what would free it, what every other choice would give, and, where a plan
//! does not fit, the cheapest fixes. Every figure is of a launch that was really planned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::search::{End, Stage};
use super::solver::{Candidate, Levers, Problem, Strategy};
use super::{ContextChoice, ExpertSplit, Request};
use crate::bytes::Bytes;
use crate::checkup::Row;
use crate::gguf::GgmlType;
use crate::memory::{Error, HOST};
use crate::number::signed;
use crate::rules::Role;
use crate::run::{Choice as _, LoadMode, RunConfig, args};
use crate::speed::{Speed, Term};

/// Another launch beside the one that is proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Alternative {
    /// What differs: `-ub 1024`, `one more block on CUDA0`.
    pub what: String,
    pub args: Vec<String>,
    /// Whether it is within the budgets.
    pub fits: bool,
    pub shortfall: BTreeMap<String, Bytes>,
    pub memory: BTreeMap<String, Row>,
    pub placement: ExpertSplit,
    pub speed: Speed,
    /// Its predicted time of the turn, in seconds.
    pub turn_seconds: f64,
    /// That time against the proposed launch's: 0.1 is a tenth longer.
    pub turn_change: f64,
    /// What has to be known before it is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One term of the fullest device, and what would make it smaller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explanation {
    pub term: String,
    pub bytes: Bytes,
    /// What to change; empty where nothing can be.
    pub fix: String,
    pub saves: Bytes,
    pub costs: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Why {
    pub alternatives: Vec<Alternative>,
    pub explain: Vec<Explanation>,
    pub time: Vec<Term>,
    /// The cheapest changes that make it fit, where it does not.
    pub fixes: Vec<Alternative>,
}

/// A plan and the problem that it solves.
pub(super) struct Subject<'a> {
    pub problem: &'a Problem<'a>,
    pub candidate: &'a Candidate,
}

impl Subject<'_> {
    /// Everything that is said beside the plan.
    pub(super) fn why(&self) -> Result<Why, Error> {
        let mut why = Why { alternatives: self.with_cache()?, ..Why::default() };
        if !self.candidate.fits() {
            why.fixes = self.fixes();
        }
        if self.problem.request.explain {
            why.alternatives.extend(self.others()?);
            why.time.clone_from(&self.candidate.estimate.terms);
            why.explain = self.terms();
        }
        Ok(why)
    }

    /// The launch with all its choices as they are, the planner's overrides apart, to change one thing of.
    fn fixed(&self) -> RunConfig {
        RunConfig { overrides: self.problem.request.run.overrides.clone(), ..self.candidate.run.clone() }
    }

    fn alternative(&self, what: String, candidate: &Candidate, note: Option<String>) -> Alternative {
        Alternative {
            what,
            args: args::args(&candidate.run),
            fits: candidate.fits(),
            shortfall: candidate.shortfall.clone(),
            memory: Row::table(&candidate.forecast),
            placement: candidate.expert_split(self.problem),
            speed: candidate.estimate.speed.clone(),
            turn_seconds: candidate.estimate.turn_seconds,
            turn_change: candidate.estimate.turn_seconds / self.candidate.estimate.turn_seconds - 1.0,
            note,
        }
    }

    /// The plan with an expert cache: beside this one where the build has it; else only what it would give.
    fn with_cache(&self) -> Result<Vec<Alternative>, Error> {
        let problem = self.problem;
        let has_it = self.problem.request.target.has_expert_cache();
        if self.candidate.run.moe_cache_mib > 0
            || !problem.may_cache_experts()
            || !(has_it || self.problem.request.explain)
        {
            return Ok(Vec::new());
        }
        let Some(cached) = problem.with_expert_cache(self.candidate, has_it)? else {
            return Ok(Vec::new());
        };
        let what = format!("--moe-cache-mib {}", cached.run.moe_cache_mib);
        let name = self.problem.request.target.name();
        let note = if has_it {
            "how often the cache hits is an assumption; your prompts decide".to_string()
        } else {
            format!("{name} has no expert cache: it takes a newer build; how often it hits is an assumption")
        };
        Ok(vec![self.alternative(what, &cached, Some(note))])
    }

    /// What every other choice would give, each planned with all else as it is.
    fn others(&self) -> Result<Vec<Alternative>, Error> {
        let request = Request { levers: Levers::default(), ..self.problem.request.clone() };
        let problem = Problem { request: &request, ..self.problem.clone() };
        let mut found = Vec::new();
        for (what, run, note) in self.changes() {
            // A launch that llama.cpp would refuse is no alternative.
            if let Ok(candidate) = problem.solve(&run) {
                found.push(self.alternative(what, &candidate, note.map(str::to_string)));
            }
        }
        found.extend(self.blocks(&problem)?);
        Ok(found)
    }

    /// One change each.
    fn changes(&self) -> Vec<(String, RunConfig, Option<&'static str>)> {
        let run = &self.fixed();
        let mut changes = Vec::new();
        for n_ubatch in [run.n_ubatch / 2, run.n_ubatch.saturating_mul(2)] {
            if (64..=run.n_ctx.max(512)).contains(&n_ubatch) {
                let n_batch = run.n_batch.max(n_ubatch);
                changes.push((format!("-ub {n_ubatch}"), RunConfig { n_batch, n_ubatch, ..run.clone() }, None));
            }
        }
        let (load_mode, note) = match run.load_mode {
            LoadMode::None => (LoadMode::Mmap, None),
            _ => (LoadMode::None, Some("the host's weights must fit into main memory")),
        };
        changes.push((format!("-lm {}", load_mode.word()), RunConfig { load_mode, ..run.clone() }, note));
        changes.extend(quantized(run).map(|run| (QUANTIZED.to_string(), run, Some(QUALITY))));
        let trained = self.problem.model.hparams.context_length;
        for n_ctx in [run.n_ctx / 2, run.n_ctx.saturating_mul(2)] {
            if n_ctx >= 1024 && (trained == 0 || n_ctx <= trained) {
                changes.push((format!("-c {n_ctx}"), RunConfig { n_ctx, ..run.clone() }, None));
            }
        }
        let offload = if run.op_offload { "--no-op-offload" } else { "with op offload" };
        changes.push((offload.to_string(), RunConfig { op_offload: !run.op_offload, ..run.clone() }, None));
        if let Some(cores) = run.n_threads.or(self.problem.machine.host.cores).filter(|cores| *cores > 1) {
            let n_threads = Some(cores / 2);
            changes.push((format!("-t {}", cores / 2), RunConfig { n_threads, ..run.clone() }, None));
        }
        changes
    }

    /// One block more on each device, one less, and the other end of its range on the host.
    fn blocks(&self, problem: &Problem<'_>) -> Result<Vec<Alternative>, Error> {
        let base = self.fixed();
        let stage = Stage::new(problem, base.clone(), &[Role::RoutedExpert])?;
        let kept = stage.kept_of(&self.candidate.forecast.placement);
        if stage.is_fixed() || kept == stage.everything() {
            return Ok(Vec::new());
        }
        let host = stage.end_of(&kept);
        let mut found = Vec::new();
        for (at, device) in (0..).zip(&self.problem.machine.devices) {
            let more = stage.one_more(&kept, at, host).map(|kept| (format!("one more block on {}", device.name), kept));
            let less = stage.one_less(&kept, at, host).map(|kept| (format!("one step less on {}", device.name), kept));
            for (what, kept) in more.into_iter().chain(less) {
                found.push(self.alternative(what, &problem.judge(stage.run(&base, &kept))?, None));
            }
        }
        let (other, name) = match host {
            End::First => (End::Last, "last"),
            End::Last => (End::First, "first"),
        };
        let mirrored = stage.mirrored(&kept, other);
        if mirrored != kept {
            let candidate = problem.judge(stage.run(&base, &mirrored))?;
            found.push(self.alternative(format!("the {name} blocks' experts on the host instead"), &candidate, None));
        }
        Ok(found)
    }

    /// The terms of the fullest device.
    fn terms(&self) -> Vec<Explanation> {
        let forecast = &self.candidate.forecast;
        let rows =
            self.problem.machine.devices.iter().filter_map(|device| Some((device, forecast.memory.get(&device.name)?)));
        let Some((device, row)) = rows.min_by_key(|(device, row)| device.total.saturating_sub(row.total())) else {
            return Vec::new();
        };
        let experts = self.candidate.expert_split(self.problem);
        let experts = experts.by_device.get(&device.name).copied().unwrap_or_default();
        let (run, margin) = (&self.candidate.run, self.problem.request.margin);
        let n_ubatch = (run.n_ubatch / 2).max(64);
        let fixed = |costs: &str| (String::new(), Bytes(0), costs.to_string());
        let of_context = quantized(run)
            .map(|run| self.cheaper(&device.name, QUANTIZED.to_string(), run, ", and precision of the cache"));
        let of_compute =
            self.cheaper(&device.name, format!("-ub {n_ubatch}"), RunConfig { n_ubatch, ..run.clone() }, "");
        let rows = [
            ("routed experts", experts, fixed("what is left of the budget goes here")),
            (
                "other weights",
                row.model.saturating_sub(experts),
                fixed("they leave only when no expert is left to move"),
            ),
            ("context", row.context, of_context.unwrap_or_else(|| fixed("the cache is quantized already"))),
            ("compute", row.compute, of_compute),
            ("overhead", row.overhead, fixed("the driver's context and pools at their peak")),
            ("margin", margin, ("--margin 0".to_string(), margin, NO_MARGIN.to_string())),
        ];
        let term = |(what, bytes, (fix, saves, costs)): (&str, Bytes, (String, Bytes, String))| Explanation {
            term: format!("{what} on {}", device.name),
            bytes,
            fix,
            saves,
            costs,
        };
        let mut terms = rows.map(term).to_vec();
        terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
        terms
    }

    /// What a change frees of a device with the same placement, and what it costs.
    fn cheaper(&self, device: &str, fix: String, changed: RunConfig, quality: &str) -> (String, Bytes, String) {
        let other = match self.problem.judge(changed) {
            Ok(other) => other,
            Err(error) => return (String::new(), Bytes(0), error.to_string()),
        };
        let saves = self.candidate.forecast.total(device).saturating_sub(other.forecast.total(device));
        let change = other.estimate.turn_seconds / self.candidate.estimate.turn_seconds - 1.0;
        let change = signed(change * 100.0, 1);
        (fix, saves, format!("{change}% of the turn's time with the same placement{quality}"))
    }

    /// The three cheapest changes that make it fit, each really planned; more memory comes last.
    fn fixes(&self) -> Vec<Alternative> {
        let mut found: Vec<Alternative> = Vec::new();
        for (what, request, note) in self.fix_requests() {
            let Ok(candidate) = super::solve(self.problem.model, self.problem.machine, &request) else { continue };
            if candidate.fits() {
                let what = what.replace("{c}", &candidate.run.n_ctx.to_string());
                found.push(self.alternative(what, &candidate, note.map(str::to_string)));
            }
        }
        found.sort_by(|a, b| a.turn_seconds.total_cmp(&b.turn_seconds));
        found.truncate(3);
        if found.len() < 3 {
            found.extend(self.larger_machine());
        }
        found
    }

    /// Requests that differ from the user's in one thing, or in two where one would hardly do.
    fn fix_requests(&self) -> impl Iterator<Item = (&'static str, Request, Option<&'static str>)> {
        let (request, run, levers) = (self.problem.request, &self.problem.request.run, self.problem.request.levers);
        let own = || request.clone();
        let with = |run: RunConfig| Request { run, ..own() };
        let longest = |request: Request| Request { context: ContextChoice::Max, ..request };
        let (is_longest, smaller_cache) = (request.context == ContextChoice::Max, quantized(run).map(with));
        let slots = run.n_parallel.filter(|slots| *slots > 1);
        [
            (!is_longest).then(|| ("-c {c}", longest(own()), None)),
            smaller_cache.clone().map(|request| (QUANTIZED, request, Some(QUALITY))),
            smaller_cache
                .filter(|_| !is_longest)
                .map(|request| ("-ctk q8_0 -ctv q8_0 -c {c}", longest(request), Some(QUALITY))),
            (!levers.ubatch && run.n_ubatch > 128).then(|| {
                let levers = Levers { ubatch: true, batch: true, ..levers };
                ("without -ub of your own", Request { levers, ..own() }, None)
            }),
            (request.strategy != Strategy::Auto)
                .then(|| ("--strategy auto", Request { strategy: Strategy::Auto, ..own() }, None)),
            slots.map(|_| {
                let one = RunConfig { n_parallel: Some(1), ..run.clone() };
                ("-np 1", with(one), Some("one slot instead of several"))
            }),
            (!run.overrides.is_empty()).then(|| {
                let none = RunConfig { overrides: Vec::new(), ..run.clone() };
                ("without overrides of your own", with(none), None)
            }),
            (request.margin > Bytes(0)).then(|| ("--margin 0", Request { margin: Bytes(0), ..own() }, Some(NO_MARGIN))),
            run.offload_kqv.then(|| {
                let on_host = RunConfig { offload_kqv: false, ..run.clone() };
                ("-nkvo", with(on_host), Some("the context goes to the host, and attention with it"))
            }),
        ]
        .into_iter()
        .flatten()
    }

    /// The same plan on a machine with what is missing.
    fn larger_machine(&self) -> Option<Alternative> {
        let mut machine = self.problem.machine.clone();
        let mut wanted = Vec::new();
        for device in &mut machine.devices {
            if let Some(over) = self.candidate.shortfall.get(&device.name) {
                device.total += Bytes(over.0.next_multiple_of(64 << 20));
                device.free = device.free.max(device.total);
                wanted.push(format!("{} on {}", device.total, device.name));
            }
        }
        if let (Some(ram), Some(over)) = (&mut machine.host.ram, self.candidate.shortfall.get(HOST)) {
            *ram += Bytes(over.0.next_multiple_of(64 << 20));
            wanted.push(format!("{ram} of main memory"));
        }
        let candidate =
            super::solve(self.problem.model, &machine, self.problem.request).ok().filter(Candidate::fits)?;
        Some(self.alternative(wanted.join(" and "), &candidate, Some("more memory".to_string())))
    }
}

const QUANTIZED: &str = "-ctk q8_0 -ctv q8_0";
const QUALITY: &str = "a quantized cache costs quality that no speed shows";
const NO_MARGIN: &str = "nothing is left for what the prediction may be off";

/// The launch with a quantized cache, where its cache is not.
pub(super) fn quantized(run: &RunConfig) -> Option<RunConfig> {
    let q8_0 = GgmlType::from_name("q8_0").filter(|_| !run.type_k.is_quantized)?;
    Some(RunConfig { type_k: q8_0, type_v: q8_0, ..run.clone() })
}
