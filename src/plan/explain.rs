//! Why a plan is as it is: what each term takes and what would free it, what every other choice would give, and, where a plan
//! does not fit, the cheapest fixes. Every figure is of a launch that was really planned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::context::ContextChoice;
use super::solver::{Candidate, Levers, Problem, Strategy};
use super::stage::{End, Stage};
use super::{ExpertSplit, Request, expert_split};
use crate::bytes::Bytes;
use crate::checkup::Row;
use crate::gguf::GgmlType;
use crate::machine::Machine;
use crate::memory::{Error, HOST};
use crate::model::Model;
use crate::number::signed;
use crate::rules::Role;
use crate::run::{LoadMode, RunConfig, args};
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

/// What is said beside the plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Why {
    pub alternatives: Vec<Alternative>,
    pub explain: Vec<Explanation>,
    pub time: Vec<Term>,
    /// The cheapest changes that make it fit, where it does not.
    pub fixes: Vec<Alternative>,
}

/// A plan and what its explanation is made with.
pub(super) struct Subject<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub request: &'a Request,
    pub candidate: &'a Candidate,
}

impl Subject<'_> {
    /// Everything that is said beside the plan.
    pub(super) fn why(&self) -> Result<Why, Error> {
        let mut why = Why { alternatives: self.with_cache()?, ..Why::default() };
        if !self.candidate.fits() {
            why.fixes = self.fixes();
        }
        if self.request.explain {
            why.alternatives.extend(self.others()?);
            why.time.clone_from(&self.candidate.estimate.terms);
            why.explain = self.terms();
        }
        Ok(why)
    }

    fn problem(&self) -> Problem<'_> {
        self.request.problem(self.model, self.machine)
    }

    /// The launch with all its choices as they are, the planner's overrides apart, to change one thing of.
    fn fixed(&self) -> RunConfig {
        RunConfig { overrides: self.request.run.overrides.clone(), ..self.candidate.run.clone() }
    }

    fn alternative(&self, what: String, candidate: &Candidate, note: Option<String>) -> Alternative {
        Alternative {
            what,
            args: args::args(&candidate.run),
            fits: candidate.fits(),
            shortfall: candidate.shortfall.clone(),
            memory: Row::table(&candidate.forecast),
            placement: expert_split(self.model, self.machine, candidate),
            speed: candidate.estimate.speed.clone(),
            turn_seconds: candidate.estimate.turn_seconds,
            turn_change: candidate.estimate.turn_seconds / self.candidate.estimate.turn_seconds - 1.0,
            note,
        }
    }

    /// The plan with an expert cache: beside this one where the build has it; else only what it would give.
    fn with_cache(&self) -> Result<Vec<Alternative>, Error> {
        let problem = self.problem();
        let has_it = self.request.target.has_expert_cache();
        if self.candidate.run.moe_cache_mib > 0 || !problem.may_cache_experts() || !(has_it || self.request.explain) {
            return Ok(Vec::new());
        }
        let Some(cached) = problem.with_expert_cache(self.candidate, &self.request.run.overrides, has_it)? else {
            return Ok(Vec::new());
        };
        let what = format!("--moe-cache-mib {}", cached.run.moe_cache_mib);
        let name = self.request.target.name();
        let note = if has_it {
            "how often the cache hits is an assumption; your prompts decide".to_string()
        } else {
            format!("{name} has no expert cache: it takes a newer build; how often it hits is an assumption")
        };
        Ok(vec![self.alternative(what, &cached, Some(note))])
    }

    /// What every other choice would give, each planned with all else as it is.
    fn others(&self) -> Result<Vec<Alternative>, Error> {
        let problem = Problem { levers: Levers::default(), ..self.problem() };
        let mut found = Vec::new();
        for (what, run, note) in self.changes() {
            // A launch that llama.cpp would refuse is no alternative.
            if let Ok(candidate) = problem.solve(&run) {
                found.push(self.alternative(what, &candidate, note));
            }
        }
        found.extend(self.blocks(&problem)?);
        Ok(found)
    }

    /// One change each.
    fn changes(&self) -> Vec<(String, RunConfig, Option<String>)> {
        let run = self.fixed();
        let mut changes = Vec::new();
        let trained = self.model.hparams.context_length;
        let mut add =
            |what: String, run: RunConfig, note: Option<&str>| changes.push((what, run, note.map(str::to_string)));
        for n_ubatch in [run.n_ubatch / 2, run.n_ubatch.saturating_mul(2)] {
            if (64..=run.n_ctx.max(512)).contains(&n_ubatch) {
                let n_batch = run.n_batch.max(n_ubatch);
                add(format!("-ub {n_ubatch}"), RunConfig { n_batch, n_ubatch, ..run.clone() }, None);
            }
        }
        if run.load_mode == LoadMode::None {
            add("-lm mmap".into(), RunConfig { load_mode: LoadMode::Mmap, ..run.clone() }, None);
        } else {
            let note = "the host's weights must fit into main memory";
            add("-lm none".into(), RunConfig { load_mode: LoadMode::None, ..run.clone() }, Some(note));
        }
        if let (false, Some(q8_0)) = (run.type_k.is_quantized, GgmlType::from_name("q8_0")) {
            let note = "a quantized cache costs quality that no speed shows";
            add("-ctk q8_0 -ctv q8_0".into(), RunConfig { type_k: q8_0, type_v: q8_0, ..run.clone() }, Some(note));
        }
        for n_ctx in [run.n_ctx / 2, run.n_ctx.saturating_mul(2)] {
            if n_ctx >= 1024 && (trained == 0 || n_ctx <= trained) {
                add(format!("-c {n_ctx}"), RunConfig { n_ctx, ..run.clone() }, None);
            }
        }
        let offload = if run.op_offload { "--no-op-offload" } else { "with op offload" };
        add(offload.into(), RunConfig { op_offload: !run.op_offload, ..run.clone() }, None);
        if let Some(cores) = run.n_threads.or(self.machine.host.cores).filter(|cores| *cores > 1) {
            let half = cores / 2;
            add(format!("-t {half}"), RunConfig { n_threads: Some(half), ..run.clone() }, None);
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
        for (at, device) in (0..).zip(&self.machine.devices) {
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
        let left = |name: &str, total: Bytes| {
            self.candidate.forecast.memory.get(name).map(|row| total.saturating_sub(row.total()))
        };
        let fullest =
            self.machine.devices.iter().filter_map(|device| Some((left(&device.name, device.total)?, device)));
        let Some((_, device)) = fullest.min_by_key(|(left, _)| *left) else { return Vec::new() };
        let Some(row) = self.candidate.forecast.memory.get(&device.name) else { return Vec::new() };
        let experts = expert_split(self.model, self.machine, self.candidate);
        let here = experts.by_device.get(&device.name).copied().unwrap_or_default();
        let problem = Problem { levers: Levers::default(), ..self.problem() };
        let (context_fix, context_saves, context_costs) = self.cheaper(&problem, &device.name, false);
        let (compute_fix, compute_saves, compute_costs) = self.cheaper(&problem, &device.name, true);
        let term = |what: &str, bytes: Bytes, fix: &str, saves: Bytes, costs: &str| Explanation {
            term: format!("{what} on {}", device.name),
            bytes,
            fix: fix.to_string(),
            saves,
            costs: costs.to_string(),
        };
        let mut terms = vec![
            term("routed experts", here, "", Bytes(0), "what is left of the budget goes here"),
            term(
                "other weights",
                row.model.saturating_sub(here),
                "",
                Bytes(0),
                "they leave only when no expert is left to move",
            ),
            term("context", row.context, &context_fix, context_saves, &context_costs),
            term("compute", row.compute, &compute_fix, compute_saves, &compute_costs),
            term("overhead", row.overhead, "", Bytes(0), "the driver's context and pools at their peak"),
            term(
                "margin",
                self.request.margin,
                "--margin 0",
                self.request.margin,
                "nothing is left for what the prediction may be off",
            ),
        ];
        terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
        terms
    }

    /// What halving the micro-batch, or quantizing the cache, frees of a device, and what it costs.
    fn cheaper(&self, problem: &Problem<'_>, device: &str, ubatch: bool) -> (String, Bytes, String) {
        let run = &self.candidate.run;
        let (fix, changed) = if ubatch {
            let n_ubatch = (run.n_ubatch / 2).max(64);
            (format!("-ub {n_ubatch}"), RunConfig { n_ubatch, ..run.clone() })
        } else {
            let Some(q8_0) = GgmlType::from_name("q8_0").filter(|_| !run.type_k.is_quantized) else {
                return (String::new(), Bytes(0), "the cache is quantized already".to_string());
            };
            ("-ctk q8_0 -ctv q8_0".to_string(), RunConfig { type_k: q8_0, type_v: q8_0, ..run.clone() })
        };
        match problem.judge(changed) {
            Ok(other) => {
                let saves = self.candidate.forecast.total(device).saturating_sub(other.forecast.total(device));
                let change = other.estimate.turn_seconds / self.candidate.estimate.turn_seconds - 1.0;
                let quality = if ubatch { "" } else { ", and precision of the cache" };
                (
                    fix,
                    saves,
                    format!("{}% of the turn's time with the same placement{quality}", signed(change * 100.0, 1)),
                )
            }
            Err(error) => (String::new(), Bytes(0), error.to_string()),
        }
    }

    /// The three cheapest changes that make it fit, each really planned; more memory comes last.
    fn fixes(&self) -> Vec<Alternative> {
        let mut found: Vec<Alternative> = Vec::new();
        let requests = self.fix_requests();
        for (what, request, note) in requests {
            let Ok(candidate) = super::solve(self.model, self.machine, &request) else { continue };
            if candidate.fits() {
                let what = what.replace("{c}", &candidate.run.n_ctx.to_string());
                found.push(self.alternative(what, &candidate, note));
            }
        }
        found.sort_by(|a, b| a.turn_seconds.total_cmp(&b.turn_seconds));
        found.truncate(3);
        if found.len() < 3
            && let Some(larger) = self.larger_machine()
        {
            found.push(larger);
        }
        found
    }

    /// Requests that differ from the user's in one thing, or in two where one would hardly do.
    fn fix_requests(&self) -> Vec<(String, Request, Option<String>)> {
        let request = self.request;
        let mut changes: Vec<(String, Request, Option<String>)> = Vec::new();
        let mut add = |what: &str, request: Request, note: Option<&str>| {
            changes.push((what.to_string(), request, note.map(str::to_string)));
        };
        let with = |run: RunConfig| Request { run, ..request.clone() };
        let quality = Some("a quantized cache costs quality that no speed shows");
        let q8_0 = GgmlType::from_name("q8_0").filter(|_| !request.run.type_k.is_quantized);
        let quantized = q8_0.map(|ty| with(RunConfig { type_k: ty, type_v: ty, ..request.run.clone() }));
        if request.context != ContextChoice::Max {
            add("-c {c}", Request { context: ContextChoice::Max, ..request.clone() }, None);
        }
        if let Some(quantized) = quantized {
            add("-ctk q8_0 -ctv q8_0", quantized.clone(), quality);
            if request.context != ContextChoice::Max {
                add("-ctk q8_0 -ctv q8_0 -c {c}", Request { context: ContextChoice::Max, ..quantized }, quality);
            }
        }
        if !request.levers.ubatch && request.run.n_ubatch > 128 {
            let levers = Levers { ubatch: true, batch: true, ..request.levers };
            add("without -ub of your own", Request { levers, ..request.clone() }, None);
        }
        if request.strategy != Strategy::Auto {
            add("--strategy auto", Request { strategy: Strategy::Auto, ..request.clone() }, None);
        }
        if request.run.n_parallel.is_some_and(|slots| slots > 1) {
            add(
                "-np 1",
                with(RunConfig { n_parallel: Some(1), ..request.run.clone() }),
                Some("one slot instead of several"),
            );
        }
        if !request.run.overrides.is_empty() {
            add(
                "without overrides of your own",
                with(RunConfig { overrides: Vec::new(), ..request.run.clone() }),
                None,
            );
        }
        if request.margin > Bytes(0) {
            let note = Some("nothing is left for what the prediction may be off");
            add("--margin 0", Request { margin: Bytes(0), ..request.clone() }, note);
        }
        if request.run.offload_kqv {
            let note = Some("the context goes to the host, and attention with it");
            add("-nkvo", with(RunConfig { offload_kqv: false, ..request.run.clone() }), note);
        }
        changes
    }

    /// The same plan on a machine with what is missing.
    fn larger_machine(&self) -> Option<Alternative> {
        let mut machine = self.machine.clone();
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
        let candidate = super::solve(self.model, &machine, self.request).ok().filter(Candidate::fits)?;
        Some(self.alternative(wanted.join(" and "), &candidate, Some("more memory".to_string())))
    }
}
