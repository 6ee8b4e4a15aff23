//! Why a plan is as it is: what each term takes and what would free it, what every other choice would give, and, where a plan
//! does not fit, the cheapest fixes. Every figure is of a launch that was really planned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::search::{End, Stage};
use super::solver::{Candidate, Problem, Strategy};
use super::{ContextChoice, ExpertSplit, Request, want};
use crate::bytes::{Bytes, GIB};
use crate::checkup::Row;
use crate::fit::{self, Fitted};
use crate::gguf::GgmlType;
use crate::machine::Device;
use crate::memory::{Error, HOST, MemoryBreakdown};
use crate::number::{signed, typeset};
use crate::rules::Role;
use crate::run::{Choice as _, Dialect, LoadMode, OFFLOAD_MIN_BATCH, RunConfig, args, spelling};
use crate::speed::prices::limited;
use crate::speed::{Speed, Term};

/// What to change, the bytes that it frees, and what it costs.
type Fix = (String, Bytes, String);

/// Another launch beside the one that is proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Alternative {
    /// What differs: `-ub 1024`, `one more block on CUDA0`.
    pub what: String,
    /// Variables that it needs beside its arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
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

/// What llama.cpp's own fitting would choose beside a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FitChoice {
    pub n_ctx: u32,
    /// The launch; `args` are what llama-fit-params prints.
    #[serde(flatten)]
    pub launch: Alternative,
    /// Why it stopped half-way, in llama.cpp's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What a plan with another context gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rung {
    /// `-c`, in tokens of all slots together.
    pub n_ctx: u32,
    /// Whether it is within the budgets.
    pub fits: bool,
    pub shortfall: BTreeMap<String, Bytes>,
    /// Blocks with at least one expert tensor on the host, as `placement.blocks_with_experts_on_host`.
    pub experts_on_host: usize,
    pub speed: Speed,
    /// Its predicted time of the turn, in seconds.
    pub turn_seconds: f64,
}

/// One term of a device, and what would make it smaller.
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

    /// What llama.cpp would choose on the same machine for the same context, slots and cache.
    pub(super) fn fit_choice(&self) -> Result<Option<FitChoice>, Error> {
        let Problem { model, machine, request, .. } = self.problem;
        if machine.devices.is_empty() || !request.run.rules().fits {
            return Ok(None);
        }
        let asked = request.left_to_fitting(&self.candidate.run, machine);
        let Fitted { run, failure } = fit::fitted(model, machine, &asked)?;
        let chosen = self.problem.judge(RunConfig { fit: false, ..run })?;
        let launch = self.alternative("--fit on", &chosen, failure.as_deref().unwrap_or_default());
        let launch = Alternative { args: fit::args(&chosen.run), ..launch };
        Ok(Some(FitChoice { n_ctx: chosen.forecast.numbers.n_ctx, launch, failure }))
    }

    fn alternative(&self, what: impl Into<String>, candidate: &Candidate, note: &str) -> Alternative {
        Alternative {
            what: what.into(),
            environment: candidate.run.environment(),
            args: args::args_beside(&candidate.run, &self.problem.request.beside),
            fits: candidate.fits(),
            shortfall: candidate.shortfall.clone(),
            memory: Row::table(&candidate.forecast),
            placement: candidate.expert_split(self.problem),
            speed: candidate.estimate.speed.clone(),
            turn_seconds: candidate.estimate.turn_seconds,
            turn_change: candidate.estimate.turn_seconds / self.candidate.estimate.turn_seconds - 1.0,
            note: (!note.is_empty()).then(|| note.to_string()),
        }
    }

    /// The plan with an expert cache: beside this one where the build has it and it is faster; where explanations are asked for always, at least
    /// on the first build that has it.
    fn with_cache(&self) -> Result<Vec<Alternative>, Error> {
        let (problem, target) = (self.problem, self.problem.request.run.target);
        let is_asked = problem.request.explain && target.dialect != Dialect::Ik;
        // A copy in the same memory gains nothing.
        if problem.machine.is_unified()
            || self.candidate.run.moe_cache_mib > 0
            || !(is_asked || target.has_expert_cache())
        {
            return Ok(Vec::new());
        }
        let first = spelling("--moe-cache-mib").map_or(target.build, |(flag, _)| flag.since);
        let note = format!("needs b{first} or newer; its hit rate is an assumption");
        let mut without = self.candidate.clone();
        without.run.target.build = target.build.max(first);
        let cached = problem.with_expert_cache(&without)?;
        let cached = cached.filter(|cached| is_asked || problem.is_better(cached, self.candidate, 0.0));
        let what = |cached: &Candidate| format!("an expert cache (--moe-cache-mib {})", cached.run.moe_cache_mib);
        Ok(cached.iter().map(|cached| self.alternative(what(cached), cached, &note)).collect())
    }

    /// A plan for each usual context and for the model's own, by slot, as far as the turn has room.
    pub(super) fn ladder(&self) -> Vec<Rung> {
        let Problem { model, request, .. } = self.problem;
        let own = Some(model.hparams.context_length).filter(|own| *own > 0);
        let usual = LADDER.into_iter().filter(|tokens| own.is_none_or(|own| *tokens < own));
        let (machine, this) = (self.problem.machine, self.candidate);
        let planned = |tokens: u32| {
            let n_ctx = tokens.saturating_mul(request.slots());
            let request = Request { context: ContextChoice::Fixed(n_ctx), ..(*request).clone() };
            let problem = request.problem(model, machine);
            let candidate = if n_ctx == this.run.n_ctx { this.clone() } else { super::solve_with(&problem).ok()? };
            Some(Rung {
                n_ctx,
                fits: candidate.fits(),
                experts_on_host: candidate.expert_split(&problem).blocks_with_experts_on_host,
                shortfall: candidate.shortfall,
                speed: candidate.estimate.speed,
                turn_seconds: candidate.estimate.turn_seconds,
            })
        };
        // Longer ones than a context that does not fit are not worth the time.
        let may_fit =
            |tokens: &u32| self.candidate.fits() || tokens.saturating_mul(request.slots()) <= self.candidate.run.n_ctx;
        let has_room = |tokens: &u32| *tokens >= request.turn.tokens();
        let asked = |tokens: &u32| !request.is_pinned() && has_room(tokens) && may_fit(tokens);
        each_at_once(usual.chain(own).filter(asked).collect(), planned).into_iter().flatten().collect()
    }

    /// What the same request gives with one more wish; `None` where llama.cpp would refuse the launch. `words` ask for it; they say the
    /// context where the request left it open, since that is kept.
    fn asked(&self, words: &str, note: &str, edit: &dyn Fn(&mut Request)) -> Option<Alternative> {
        let context = ContextChoice::Fixed(self.candidate.run.n_ctx);
        let mut request = Request { context, ..self.problem.request.clone() };
        edit(&mut request);
        let is_said = request.context != context || self.problem.request.context == context;
        let what = if is_said { words.to_string() } else { format!("-c {} {words}", self.candidate.run.n_ctx) };
        let candidate = super::solve_with(&Problem { request: &request, ..self.problem.clone() }).ok()?;
        Some(self.alternative(what, &candidate, note))
    }

    /// What the request gives with every other choice, one at a time; then the plan with one block more on each device, one less, and
    /// the other end of its range on the host.
    fn others(&self) -> Result<Vec<Alternative>, Error> {
        let Problem { model, machine, request, .. } = self.problem;
        let chosen = &self.candidate.run;
        if request.is_pinned() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut change = |words: String, note: &str, edit: &dyn Fn(&mut Request)| {
            found.extend(self.asked(&words, note, edit));
        };
        for n_ubatch in [chosen.n_ubatch / 2, chosen.n_ubatch.saturating_mul(2)] {
            if (64..=chosen.n_ctx.max(512)).contains(&n_ubatch) {
                change(format!("-ub {n_ubatch}"), "", &|to| {
                    (to.run.n_ubatch, to.levers.ubatch) = (n_ubatch, false);
                    to.run.n_batch = if to.levers.batch { to.run.n_batch.max(n_ubatch) } else { to.run.n_batch };
                });
            }
        }
        let (mode, note) = match chosen.load_mode {
            LoadMode::None => (LoadMode::Mmap, ""),
            _ => (LoadMode::None, "the host's weights must fit into main memory"),
        };
        change(format!("-lm {}", mode.word()), note, &|to| (to.run.load_mode, to.levers.load_mode) = (mode, false));
        if quantized(chosen).is_some() {
            change(QUANTIZED.to_string(), QUALITY, &quantize);
        }
        let trained = model.hparams.context_length;
        for n_ctx in [chosen.n_ctx / 2, chosen.n_ctx.saturating_mul(2)] {
            let slot = n_ctx / request.slots();
            if slot >= request.turn.tokens() && (trained == 0 || slot <= trained) {
                change(format!("-c {n_ctx}"), "", &|to| to.context = ContextChoice::Fixed(n_ctx));
            }
        }
        if request.run.op_offload {
            let words = if chosen.op_offload { "--no-op-offload" } else { "-- --op-offload" };
            change(words.to_string(), "", &|to| {
                (to.run.op_offload, to.levers.op_offload) = (!chosen.op_offload, false);
            });
            // Where the turn has parts of so few rows.
            let rows =
                if chosen.op_offload_min_batch.is_some() { None } else { self.problem.break_even(self.candidate) };
            let run = RunConfig { op_offload: true, op_offload_min_batch: rows, ..chosen.clone() };
            let forecast = &self.candidate.forecast;
            let seconds = self.problem.estimate(&run, &forecast.placement, forecast).turn_seconds;
            if (rows.is_some() || chosen.op_offload_min_batch.is_some())
                && seconds.total_cmp(&self.candidate.estimate.turn_seconds).is_ne()
            {
                let words =
                    rows.map_or(format!("no {OFFLOAD_MIN_BATCH}"), |rows| format!("{OFFLOAD_MIN_BATCH}={rows}"));
                change(words, "", &|to| {
                    (to.run.op_offload, to.run.op_offload_min_batch, to.levers.op_offload) = (true, rows, false);
                });
            }
        }
        if let Some(half) = chosen.n_threads.or(machine.host.cores).map(|cores| cores / 2).filter(|half| *half > 0) {
            change(format!("-t {half}"), "", &|to| (to.run.n_threads, to.levers.threads) = (Some(half), false));
        }
        // The launch with all its choices as they are, the planner's overrides apart.
        let base = RunConfig { overrides: request.run.overrides.clone(), ..chosen.clone() };
        let stage = Stage::new(self.problem, base.clone(), &[Role::RoutedExpert])?;
        let kept = stage.kept_of(&self.candidate.forecast.placement);
        if stage.is_fixed() || kept == stage.everything() {
            return Ok(found);
        }
        let host = stage.end_of(&kept);
        let mut moved = Vec::new();
        for (at, device) in (0..).zip(&machine.devices) {
            moved.push((format!("one more block on {}", device.name), stage.one_more(&kept, at, host)));
            moved.push((format!("one step less on {}", device.name), stage.one_less(&kept, at, host)));
        }
        let (other, name) = if host == End::First { (End::Last, "last") } else { (End::First, "first") };
        let mirrored = Some(stage.mirrored(&kept, other)).filter(|mirrored| *mirrored != kept);
        moved.push((format!("the {name} blocks' experts on the host instead"), mirrored));
        for (what, kept) in moved.into_iter().filter_map(|(what, kept)| Some((what, kept?))) {
            found.push(self.alternative(what, &self.problem.judge(stage.run(&base, &kept))?, ""));
        }
        Ok(found)
    }

    /// The terms of every device, the fullest first.
    fn terms(&self) -> Vec<Explanation> {
        let forecast = &self.candidate.forecast;
        let devices = self.problem.machine.devices.iter();
        let mut rows: Vec<_> =
            devices.filter_map(|device| Some((device, forecast.memory.get(&device.name)?))).collect();
        // What is over its budget is the fullest.
        rows.sort_by_key(|(device, row)| device.total.saturating_sub(row.total()));
        let run = &self.candidate.run;
        let n_ubatch = (run.n_ubatch / 2).max(64);
        let quantized = quantized(run).map(|run| self.problem.judge(run));
        let smaller = self.problem.judge(RunConfig { n_ubatch, ..run.clone() });
        let ubatch = format!("-ub {n_ubatch}");
        let of = |(device, row)| {
            let of_context =
                quantized.as_ref().map(|other| self.cheaper(device, QUANTIZED, other, ", and precision of the cache"));
            self.terms_of(device, row, of_context, self.cheaper(device, &ubatch, &smaller, ""))
        };
        rows.into_iter().flat_map(of).collect()
    }

    fn terms_of(
        &self,
        device: &Device,
        row: &MemoryBreakdown,
        of_context: Option<Fix>,
        of_compute: Fix,
    ) -> Vec<Explanation> {
        let experts = self.candidate.expert_split(self.problem).by_device.remove(&device.name).unwrap_or_default();
        let margin = self.problem.request.margin;
        let fixed = |costs: &str| (String::new(), Bytes(0), costs.to_string());
        let of_context = of_context.unwrap_or_else(|| fixed("the cache is quantized already"));
        let others = row.model.saturating_sub(experts); // Padding may be counted with the experts.
        let term = |(what, bytes, (fix, saves, costs)): (&str, Bytes, Fix)| Explanation {
            term: format!("{what} on {}", device.name),
            bytes,
            fix,
            saves,
            costs,
        };
        let mut terms = vec![
            ("routed experts", experts, fixed("use the rest of the budget")),
            ("other weights", others, fixed(self.why_others_stay())),
            ("context", row.context, of_context),
            ("compute", row.compute, of_compute),
            ("overhead", row.overhead, fixed("the driver's context and pools at their peak")),
            ("margin", margin, ("--margin 0".to_string(), margin, NO_MARGIN.to_string())),
        ];
        terms.sort_by_key(|(_, bytes, _)| std::cmp::Reverse(*bytes));
        terms.into_iter().map(term).collect()
    }

    /// When weights that are not routed experts leave a device ([`Problem::solve`]'s tiers).
    fn why_others_stay(&self) -> &'static str {
        let Problem { model, request, .. } = self.problem;
        match request.strategy {
            Strategy::Auto if model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert) => {
                "move only after all experts"
            }
            Strategy::Auto => "move if they do not fit, feed-forward weights first",
            _ => "stay with this strategy; --strategy auto may move them",
        }
    }

    /// What a change frees of a device with the same placement, and what it costs.
    fn cheaper(&self, device: &Device, fix: &str, changed: &Result<Candidate, Error>, quality: &str) -> Fix {
        let other = match changed {
            Ok(other) => other,
            Err(error) => return (String::new(), Bytes(0), error.to_string()),
        };
        // A change that takes more saves nothing.
        let total = |of: &Candidate| of.forecast.total(&device.name);
        let saves = total(self.candidate).saturating_sub(total(other));
        let change = other.estimate.turn_seconds / self.candidate.estimate.turn_seconds - 1.0;
        let change = typeset(&signed(change * 100.0, 1));
        (fix.to_string(), saves, format!("{change}% of the turn's time with the same placement{quality}"))
    }

    /// The three cheapest changes that make it fit, each really planned; more memory comes last. Each differs from the user's request
    /// in one thing, or in two where one would hardly do.
    fn fixes(&self) -> Vec<Alternative> {
        let Problem { model, machine, request, .. } = self.problem;
        let (run, is_longest) = (&request.run, request.context == ContextChoice::Max);
        let may_quantize = quantized(run).is_some();
        let mut found = Vec::new();
        // Weights that have no room anywhere need more memory, whatever else is changed.
        let weights: Bytes = model.tensors.iter().map(|tensor| tensor.bytes).sum();
        let own = machine.devices.iter().filter(|device| !device.integrated).map(|device| device.total).sum::<Bytes>();
        if machine.host.ram.is_some_and(|ram| weights > ram + own) {
            return self.larger_machine().into_iter().collect();
        }
        let mut fix = |applies: bool, what: &str, note: &str, edit: &dyn Fn(&mut Request)| {
            let mut changed = (*request).clone();
            edit(&mut changed);
            if applies
                && let Ok(candidate) = super::solve(model, machine, &changed)
                && candidate.fits()
                && (changed.context == request.context || candidate.forecast.numbers.n_ctx_seq >= request.turn.tokens())
            {
                let what = what.replace("{c}", &candidate.run.n_ctx.to_string());
                found.push(self.alternative(what, &candidate, note));
            }
        };
        fix(!is_longest, "-c {c}", "", &|to| to.context = ContextChoice::Max);
        fix(may_quantize, QUANTIZED, QUALITY, &quantize);
        fix(may_quantize && !is_longest, "-ctk q8_0 -ctv q8_0 -c {c}", QUALITY, &|to| {
            quantize(to);
            to.context = ContextChoice::Max;
        });
        fix(!request.levers.ubatch && run.n_ubatch > 128, "-ub auto -b auto", "without your own", &|to| {
            (to.levers.ubatch, to.levers.batch) = (true, true);
        });
        fix(request.strategy != Strategy::Auto, "--strategy auto", "", &|to| to.strategy = Strategy::Auto);
        fix(request.slots() > 1, "-np 1", "one slot instead of several", &|to| to.run.n_parallel = Some(1));
        fix(!run.overrides.is_empty(), "without your own overrides", "", &|to| to.run.overrides.clear());
        let missing = self.candidate.shortfall.get(HOST).copied().unwrap_or_default();
        let fewer = self.candidate.forecast.host_needs.fewer_checkpoints(run, missing);
        let checkpoints = fewer.map_or_else(String::new, |fewer| format!("--ctx-checkpoints {fewer}"));
        fix(fewer.is_some(), &checkpoints, "prompts are recomputed more often", &|to| {
            to.run.ctx_checkpoints = fewer;
        });
        fix(request.margin > Bytes(0), "--margin 0", NO_MARGIN, &|to| to.margin = Bytes(0));
        fix(run.offload_kqv, "-nkvo", "moves the context to the host, and attention with it", &|to| {
            to.run.offload_kqv = false;
        });
        found.sort_by(|a: &Alternative, b| a.turn_seconds.total_cmp(&b.turn_seconds));
        found.truncate(3);
        if found.len() < 3 {
            found.extend(self.larger_machine());
        }
        found
    }

    /// The same plan on a machine with what is missing; where main memory is all there is, in the next size that such computers are sold with.
    fn larger_machine(&self) -> Option<Alternative> {
        let Problem { model, request, .. } = self.problem;
        let mut machine = self.problem.machine.clone();
        if let Some(ram) = machine.host.ram.filter(|_| machine.is_unified()) {
            let larger = want::sizes(&machine).into_iter().map(u64::from).filter(|gib| gib * GIB > ram.0);
            return larger.into_iter().find_map(|gib| {
                let (machine, words) = want::with_memory(&machine, gib);
                let candidate = super::solve(model, &machine, request).ok().filter(Candidate::fits)?;
                let note = format!("more memory: {gib} GiB of main memory");
                Some(self.alternative(words.join(" "), &candidate, &note))
            });
        }
        let (mut words, mut wanted) = (Vec::new(), Vec::new());
        for device in &mut machine.devices {
            if let Some(over) = self.candidate.shortfall.get(&device.name) {
                *device = limited(device, device.total + Bytes(over.0.next_multiple_of(64 << 20)));
                wanted.push(format!("{} on {}", device.total, device.name));
            }
        }
        if !wanted.is_empty() {
            let budgets = machine.devices.iter().map(|device| device.total.typed());
            words.push(format!("--budget {}", budgets.collect::<Vec<_>>().join(",")));
        }
        if let (Some(ram), Some(over)) = (&mut machine.host.ram, self.candidate.shortfall.get(HOST)) {
            // Some of what is added goes to the system.
            *ram = Bytes((ram.0 + over.0 + over.0 / 7).next_multiple_of(GIB));
            wanted.push(format!("{ram} of main memory"));
            words.push(format!("--ram {}", ram.typed()));
        }
        let candidate = super::solve(model, &machine, request).ok()?;
        let note = format!("more memory: {}", wanted.join(" and "));
        candidate.fits().then(|| self.alternative(words.join(" "), &candidate, &note))
    }
}

/// What each gives, in their order; all are worked on at a time where there are threads, which a browser's module has none of.
fn each_at_once<T: Send>(all: Vec<u32>, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    if cfg!(target_family = "wasm") {
        return all.into_iter().map(work).collect();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .into_iter()
            .map(|of| {
                scope.spawn({
                    let work = &work;
                    move || work(of)
                })
            })
            .collect();
        let joined = |thread: std::thread::ScopedJoinHandle<'_, T>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(joined).collect()
    })
}

/// Contexts of the ladder beside the model's own, in tokens.
pub(super) const LADDER: [u32; 4] = [8192, 32768, 65536, 131_072];
const QUANTIZED: &str = "-ctk q8_0 -ctv q8_0";
const QUALITY: &str = "a quantized cache lowers quality, which speed figures do not show";
const NO_MARGIN: &str = "this leaves no margin for prediction error";

fn quantize(to: &mut Request) {
    to.run = quantized(&to.run).unwrap_or_else(|| to.run.clone());
    to.levers.cache_types = false;
}

/// The launch with a quantized cache, where its cache is not.
pub(super) fn quantized(run: &RunConfig) -> Option<RunConfig> {
    let q8_0 = GgmlType::from_name("q8_0").filter(|_| !run.type_k.is_quantized)?;
    Some(RunConfig { type_k: q8_0, type_v: q8_0, ..run.clone() })
}
