//! The check document: what a command line would do.

pub mod lints;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::fit::{self, Fitted};
use crate::gguf::{GgmlType, ggml_type};
use crate::machine::{MARGIN_UNCALIBRATED, Machine};
use crate::memory::{
    self, Basis, Forecast, HOST, HostNeeds, Launch, MemoryBreakdown, MemoryRow, Uncounted, What, expert_cache,
};
use crate::model::Model;
use crate::number::fixed;
use crate::placement::{self, Placement, pattern};
use crate::run::visible::Visible;
use crate::run::{
    Dialect, LoadMode, ParsedCommand, Program, ResolvedRun, RunConfig, Target, dialect, numbers, visible,
};
use crate::speed::{self, Case, Speed, Turn};
use lints::Facts;
pub use lints::{Lint, Severity};

/// `moeplan/check/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Checkup {
    pub schema: Cow<'static, str>,
    pub program: Program,
    pub run: ResolvedRun,
    /// llama.cpp's no-allocation projection, by device, `Host` and buffer types listed apart.
    pub memory: BTreeMap<String, Row>,
    /// The described card behind a device's name, where the command's environment selects or reorders cards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<String, String>,
    /// The same by what the launch loads, without overhead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartRow>,
    /// What llama.cpp's own fitting makes of the command, where it would change it; the figures above are of the command as written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<FitOutcome>,
    /// What each device may hold, margin taken off; of `Host`, where main memory is known, what `host_needs` leaves of it.
    pub budget: BTreeMap<String, Bytes>,
    /// Main memory, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main_memory: Option<Bytes>,
    /// What devices without memory of their own take of it; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_memory: Option<Bytes>,
    /// What is taken of it beside `memory`.
    #[serde(default)]
    pub host_needs: HostNeeds,
    /// Whether everything stays within its budget; `None` where what is counted does and not everything is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fits: Option<bool>,
    pub shortfall: BTreeMap<String, Bytes>,
    /// What the command comes to, as far as that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Predicted for the turn that was asked about, of the launch that llama.cpp makes of it by its own fitting; `None` where neither that
    /// nor the command as written runs (flags of older builds are read as they were meant), and in plans, which say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// The terms that `memory` does not have, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uncounted: Vec<Uncounted>,
    /// What a launch with mapped files logs as `CPU_Mapped`; `None` where nothing is mapped.
    pub mapped_span: Option<Bytes>,
    /// The override list and what each entry did.
    pub overrides: Vec<OverrideRow>,
    /// The same with the entries of a counting flag (`-ncmoe N`) together.
    pub override_groups: Vec<OverrideGroup>,
    pub lints: Vec<Lint>,
    pub basis: Vec<Basis>,
    /// Every copy of every tensor, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<TensorRow>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Comfortable,
    /// It fits with less than [`MARGIN_UNCALIBRATED`] left of a device: another program can push it over.
    Tight,
    Refused,
    Short,
    /// It starts, but main memory does not hold the mapped weights.
    Paged,
    /// It fits as far as it is counted: a part of it is not.
    #[serde(rename = "without_parts")]
    WithoutParts,
    /// It does not fit as written, and llama.cpp's own fitting makes it fit.
    #[serde(rename = "after_fit")]
    AfterFit,
}

/// A row of memory; a term that is not counted is absent, and so is the sum then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Row {
    pub model: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Bytes>,
    /// What the device shows beyond llama.cpp's own sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Bytes>,
}

impl Row {
    pub fn table(forecast: &Forecast) -> BTreeMap<String, Self> {
        let row = |terms: &MemoryBreakdown| Self {
            model: terms.model,
            context: forecast.counts("context").then_some(terms.context),
            compute: forecast.counts("compute").then_some(terms.compute),
            overhead: forecast.counts("overhead").then_some(terms.overhead),
            total: forecast.is_whole().then(|| terms.total()),
        };
        forecast.memory.iter().map(|(key, terms)| (key.clone(), row(terms))).collect()
    }

    /// The row, where every term is counted.
    pub fn whole(&self) -> Option<MemoryRow> {
        let (context, compute, overhead) = (self.context?, self.compute?, self.overhead?);
        let terms = MemoryBreakdown { model: self.model, context, compute, overhead };
        Some(MemoryRow { terms, total: self.total? })
    }

    pub fn counted(&self) -> Bytes {
        self.model + [self.context, self.compute, self.overhead].into_iter().flatten().sum::<Bytes>()
    }
}

/// A launch after llama.cpp's own fitting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FitOutcome {
    /// Whether what it becomes stays within every budget.
    pub starts: bool,
    pub n_ctx: u32,
    /// Blocks of which it moves weights off their device.
    #[serde(default)]
    pub moved_blocks: usize,
    /// What it changes, as llama-fit-params prints it.
    pub args: Vec<String>,
    pub memory: BTreeMap<String, Row>,
    /// Why it stopped half-way, in llama.cpp's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl FitOutcome {
    /// `None` where fitting leaves the command as it is.
    fn of(
        model: &Model,
        machine: &Machine,
        run: &RunConfig,
        options: &Options<'_>,
    ) -> Result<Option<Refitted>, memory::Error> {
        let Fitted { run: fitted, failure } = fit::fitted(model, machine, run)?;
        let written = numbers(run, &model.hparams).n_ctx;
        let is_same = fitted.overrides == run.overrides && fitted.n_gpu_layers == run.n_gpu_layers;
        let run = &RunConfig { fit: false, ..fitted.clone() };
        let forecast = memory::forecast(model, machine, run)?;
        if is_same && failure.is_none() && forecast.numbers.n_ctx == written {
            return Ok(None);
        }
        let (memory, shortfall) = (Row::table(&forecast), forecast.shortfall(machine, options.margin));
        let case = Case { model, machine, run, placement: &forecast.placement, forecast: &forecast };
        let speed = options.turn.filter(|_| shortfall.is_empty()).map(|turn| speed::predict(&case, turn).speed);
        let mut args = fit::args(&fitted);
        if failure.is_some() {
            // What else it would print is the user's own.
            args.truncate(2);
        }
        let starts = shortfall.is_empty();
        let lint = if starts { lints::fitted(run, &forecast, machine) } else { None };
        // A pattern may name a block that has no such tensors, or that does not exist.
        let tensors = model.tensors.iter().zip(&forecast.placement.copies);
        let moved = tensors.filter(|(_, copies)| failure.is_none() && copies.iter().any(|copy| copy.rule.is_some()));
        let moved_blocks = moved.filter_map(|(tensor, _)| tensor.block).collect::<BTreeSet<_>>().len();
        let outcome = Self { starts, n_ctx: forecast.numbers.n_ctx, moved_blocks, args, memory, failure };
        Ok(Some(Refitted { outcome, speed, lint }))
    }
}

/// A launch after fitting, with what is told of it beside the document.
struct Refitted {
    outcome: FitOutcome,
    /// For the turn, where one is asked for.
    speed: Option<Speed>,
    /// What main memory lacks then.
    lint: Option<Lint>,
}

/// What one loaded model, or one context of its own, takes by llama.cpp's own sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PartRow {
    pub what: What,
    /// Of a draft model or a projector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// By device, without overhead and sum; compute only where it is predicted.
    pub memory: BTreeMap<String, Row>,
}

impl PartRow {
    /// The parts that are counted whole.
    fn table(forecast: &Forecast, run: &RunConfig) -> Vec<Self> {
        if !(forecast.counts("context") && forecast.counts("compute")) {
            return Vec::new();
        }
        let part = |what, path: Option<&String>, memory: &memory::MemoryByDevice| {
            let terms = |row: &MemoryBreakdown| Row {
                model: row.model,
                context: Some(row.context),
                compute: (what != What::Projector || forecast.counts("projector")).then_some(row.compute),
                overhead: None,
                total: None,
            };
            let memory = memory.iter().map(|(key, row)| (key.clone(), terms(row))).collect();
            Self { what, path: path.cloned(), memory }
        };
        let draft = run.draft_model.as_ref().or(run.draft_hf.as_ref());
        let projector = run.mmproj.as_ref().or(run.mmproj_url.as_ref());
        let mut parts = vec![part(What::Target, None, &forecast.target)];
        parts.extend(forecast.drafting.iter().map(|drafting| part(What::Drafting, draft, &drafting.memory)));
        parts.extend(forecast.projector.iter().map(|part_of| part(What::Projector, projector, &part_of.memory)));
        parts
    }
}

impl Checkup {
    /// The machine's name of a device that the command calls `name`.
    pub fn card<'a>(&'a self, name: &'a str) -> &'a str {
        self.cards.get(name).map_or(name, String::as_str)
    }

    /// Whether it is known to stay within every budget.
    pub fn fits(&self) -> bool {
        self.fits == Some(true)
    }

    /// Whether llama.cpp refuses the command.
    pub fn is_refused(&self) -> bool {
        self.lints.iter().any(|lint| lint.severity == Severity::Error)
    }

    /// Whether llama.cpp refuses the command as it is written only: every refused flag was read as what took its place.
    pub fn is_mended(&self) -> bool {
        self.is_refused() && means_something(&self.lints)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OverrideRow {
    pub pattern: String,
    pub buffer: String,
    pub origin: String,
    pub tensors: u64,
    pub bytes: Bytes,
    pub matches: u64,
    /// The entry before it (by its place in this list) that takes most of what it matches, where it decides nothing.
    pub shadowed_by: Option<usize>,
}

/// Entries of the override list that one flag made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OverrideGroup {
    /// The first of them, by its place in the list.
    pub first: usize,
    pub rules: usize,
    /// Their regex; of several, `N…M` stands for the block numbers.
    pub pattern: String,
    pub buffer: String,
    pub origin: String,
    pub tensors: u64,
    pub bytes: Bytes,
    pub shadowed_by: Option<usize>,
}

/// One copy of a tensor, or a tensor that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TensorRow {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: GgmlType,
    pub bytes: Bytes,
    /// llama.cpp's name of the buffer type; `None` = not loaded.
    pub buffer: Option<String>,
    /// The override that put it there, by its place in the list.
    pub rule: Option<usize>,
}

/// What is asked beside the command itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    pub margin: Bytes,
    pub tensors: bool,
    /// Parts that need not be counted for a yes (`uncounted` names them).
    pub ignored: &'a [String],
    /// Whether the command is a plan's.
    pub is_plan: bool,
    /// The turn whose speed is predicted.
    pub turn: Option<Turn>,
}

/// What `command` would do with `model` on `machine`.
pub fn check(
    model: &Model,
    machine: &Machine,
    command: &ParsedCommand,
    options: Options<'_>,
) -> Result<Checkup, memory::Error> {
    let seen = visible::visible(machine, &command.environment);
    if let Some(card) = seen.missing {
        return Err(placement::Error::UnknownCard { card, known: placement::known(machine) }.into());
    }
    let Visible { mut machine, notes: selected, cards, .. } = seen;
    if let Some(limit) = command.memory {
        machine.host.limit(limit);
    }
    let machine = &machine;
    let mut run = carried_out(model, machine, command)?;
    // llama.cpp projects with load mode none, whatever the launch then uses.
    let mut projected = RunConfig { load_mode: LoadMode::None, ..run.clone() };
    let (mut forecast, refused_caches) = with_allowed_caches(model, machine, &mut projected)?;
    let is_ik = command.run.target.dialect == Dialect::Ik;
    if is_ik && refused_caches.different_types {
        // Its latent cache is of K's type, whatever `-ctv` says.
        run.type_v = run.type_k;
    }
    let run = &run;
    let cache_problem = expert_cache::expert_cache(model, machine, &projected, &forecast.placement).problem;
    // What is held beside llama.cpp's sums is the launch's own: only load mode none pins.
    forecast.placement = placement::place(model, machine, run)?;
    let launched = RunConfig { load_mode: run.load_mode, ..projected.clone() };
    let forecast = Launch::new(model, machine, &launched).started(forecast)?;
    let (memory, budget) = (Row::table(&forecast), budgets(machine, &forecast, options.margin));
    let shortfall = forecast.shortfall(machine, options.margin);
    let overrides = override_rows(model, run, &forecast.placement);
    let override_groups = override_groups(&overrides);
    let mut lints = lints::lints(&Facts {
        model,
        machine,
        command,
        selected,
        run,
        forecast: &forecast,
        overrides: &overrides,
        groups: &override_groups,
        shortfall: &shortfall,
        margin: options.margin,
        refused_caches,
        cache_problem,
    });
    let is_refused = lints.iter().any(|lint| lint.severity == Severity::Error);
    let is_short = !shortfall.is_empty();
    // What llama.cpp refuses is not fitted.
    let is_fitted = run.fit && !is_refused && forecast.is_whole();
    let fit = if is_fitted { FitOutcome::of(model, machine, &launched, &options)? } else { None };
    let is_rescued = fit.as_ref().is_some_and(|fit| fit.outcome.starts);
    let (fit, fitted, lint) = fit.map_or((None, None, None), |fit| (Some(fit.outcome), fit.speed, fit.lint));
    lints = if is_rescued { lints::with_fitted(lints, lint) } else { lints };
    let is_paged = forecast.paged(&shortfall).is_some() && forecast.devices_short(machine, options.margin).is_empty();
    let is_whole = forecast.is_whole();
    let lacks_parts = is_whole && !forecast.uncounted.is_empty();
    let has_room = forecast.devices_short(machine, MARGIN_UNCALIBRATED).is_empty();
    let is_counted = forecast.uncounted.iter().all(|term| options.ignored.iter().any(|part| *part == term.what));
    let parts = PartRow::table(&forecast, run);
    // Neither what is refused nor what does not fit has a speed; what is paged has that of the disk. A flag of an older build is
    // carried out as it was meant.
    let runs = means_something(&lints) && (!is_short || is_paged) && is_whole;
    let case = Case { model, machine, run: &launched, placement: &forecast.placement, forecast: &forecast };
    let speed = options.turn.filter(|_| runs).map(|turn| speed::predict(&case, turn).speed);
    if let Some((turn, mapped)) = options.turn.zip(speed.as_ref()).filter(|_| !is_ik) {
        let placement = Placement { is_mapped: false, ..forecast.placement.clone() };
        let run = &RunConfig { load_mode: LoadMode::None, ..launched.clone() };
        let pinned = || speed::predict(&Case { run, placement: &placement, ..case }, turn).speed;
        say_worth(&mut lints, || pinned().pp / mapped.pp);
    }
    let mut basis = forecast.basis;
    if is_ik {
        basis.retain(|basis| !matches!(basis.quantity.as_str(), "context" | "compute"));
    }
    basis.extend(basis_rows(command.run.target, machine, &forecast.placement));
    Ok(Checkup {
        schema: if options.is_plan { "moeplan/plan/1" } else { "moeplan/check/1" }.into(),
        program: run.program,
        run: ResolvedRun::new(run, &forecast.numbers),
        fits: if is_short { Some(false) } else { is_counted.then_some(true) },
        parts,
        fit,
        budget,
        shortfall,
        verdict: match (is_refused, is_short) {
            (true, _) => Some(Verdict::Refused),
            (false, true) if is_rescued => Some(Verdict::AfterFit),
            (false, true) if is_paged => Some(Verdict::Paged),
            (false, true) => Some(Verdict::Short),
            (false, false) if lacks_parts => Some(Verdict::WithoutParts),
            (false, false) if !is_whole => None,
            (false, false) if has_room => Some(Verdict::Comfortable),
            (false, false) => Some(Verdict::Tight),
        },
        speed: fitted.or(speed),
        uncounted: forecast.uncounted,
        mapped_span: forecast.mapped.host,
        main_memory: machine.host.ram,
        shared_memory: Some(memory::shared_with_host(machine, &forecast.memory)).filter(|shared| *shared > Bytes(0)),
        host_needs: forecast.host_needs,
        lints,
        overrides,
        override_groups,
        memory,
        cards,
        basis,
        tensors: options.tensors.then(|| tensor_rows(model, machine, &forecast.placement)),
    })
}

/// How much faster is worth a lint.
const WORTH: f64 = 1.02;

/// What pinned memory is predicted to be worth of a command's prompt speed; where that is nothing, mapped files are no fault.
fn say_worth(lints: &mut Vec<Lint>, times: impl FnOnce() -> f64) {
    let Some(at) = lints.iter().position(|lint| lint.code == "mmap-with-host-overrides") else { return };
    let times = times();
    if times < WORTH {
        lints.remove(at);
    } else if let Some(hint) = lints.get_mut(at).and_then(|lint| lint.hint.as_mut()) {
        let times = fixed(times, if times < 1.1 { 2 } else { 1 });
        *hint += &format!("; prompts are predicted to be {times} times as fast");
    }
}

/// Whether the figures are of what a person meant.
fn means_something(lints: &[Lint]) -> bool {
    lints.iter().all(|lint| lint.severity != Severity::Error || lints::is_mended(&lint.code))
}

const CPU_MOE: [&str; 2] = ["-cmoe", "--cpu-moe"];

/// The launch with ik_llama.cpp's `-ncmoe` made overrides of, which takes the model and the layers' devices.
pub fn carried_out(model: &Model, machine: &Machine, command: &ParsedCommand) -> Result<RunConfig, memory::Error> {
    let mut run = command.run.clone();
    let is_ik = run.target.dialect == Dialect::Ik;
    if is_ik && run.fit {
        let devices = placement::place(model, machine, &RunConfig { fit: false, ..run.clone() })?.devices;
        run = placement::by_size::fitted(model, machine, &run, &devices);
    }
    // What moves all experts comes after the person's own rules, too.
    run.overrides.sort_by_key(|rule| is_ik && CPU_MOE.contains(&rule.origin.as_str()));
    if let Some(wanted) = &command.last_blocks {
        let placement = placement::place(model, machine, &run)?;
        let blocks = placement.layers.split_last().map_or(&[][..], |(_, blocks)| blocks);
        run.overrides.extend(dialect::host_blocks(wanted, blocks, &placement.devices, run.rules()));
    }
    Ok(run)
}

fn budgets(machine: &Machine, forecast: &Forecast, margin: Bytes) -> BTreeMap<String, Bytes> {
    let placed = forecast.placement.copies.iter().flatten().filter_map(|copy| copy.buffer.device_index());
    let used = forecast.devices().into_iter().chain(placed);
    let devices = used.filter_map(|index| machine.device(index));
    let mut budgets: BTreeMap<String, Bytes> =
        devices.map(|device| (device.name.clone(), device.total.saturating_sub(margin))).collect();
    budgets.extend(forecast.host_budget(machine).map(|bytes| (HOST.to_string(), bytes)));
    budgets
}

fn override_rows(model: &Model, run: &RunConfig, placement: &Placement) -> Vec<OverrideRow> {
    let mut rows = Vec::with_capacity(run.overrides.len());
    let mut patterns = pattern::Parser::default();
    for (index, entry) in run.overrides.iter().enumerate() {
        let mut row = OverrideRow {
            pattern: entry.pattern.clone(),
            buffer: entry.buffer.clone(),
            origin: entry.origin.clone(),
            tensors: 0,
            bytes: Bytes(0),
            matches: 0,
            shadowed_by: None,
        };
        let Ok(pattern) = patterns.parse(&entry.pattern) else { continue };
        let mut taken: BTreeMap<usize, u64> = BTreeMap::new();
        for (tensor, copies) in model.tensors.iter().zip(&placement.copies) {
            if copies.is_empty() || !pattern.matches(&tensor.name) {
                continue;
            }
            row.matches += 1;
            let mine = copies.iter().filter(|copy| copy.rule == Some(index)).map(|copy| copy.bytes).sum::<Bytes>();
            if mine > Bytes(0) {
                row.tensors += 1;
                row.bytes += mine;
            }
            if let Some(other) = copies.iter().find_map(|copy| copy.rule).filter(|rule| *rule < index) {
                *taken.entry(other).or_default() += 1;
            }
        }
        if row.tensors == 0 {
            row.shadowed_by = taken.into_iter().max_by_key(|(_, count)| *count).map(|(rule, _)| rule);
        }
        rows.push(row);
    }
    rows
}

/// Consecutive entries of one counting flag together.
fn override_groups(rows: &[OverrideRow]) -> Vec<OverrideGroup> {
    let mut groups: Vec<OverrideGroup> = Vec::new();
    let mut before: Option<&OverrideRow> = None;
    for (index, row) in rows.iter().enumerate() {
        let previous = before.replace(row);
        if let (Some(group), Some(previous)) = (groups.last_mut(), previous)
            && (&row.origin, &row.buffer) == (&previous.origin, &previous.buffer)
            && let (Some((to, rest)), Some((number, same))) = (counted(&row.pattern), counted(&previous.pattern))
            && (to, rest) == (number + 1, same)
            && let Some((from, _)) = rows.get(group.first).and_then(|first| counted(&first.pattern))
        {
            group.pattern = format!("blk\\.{from}…{to}{rest}");
            group.rules += 1;
            group.tensors += row.tensors;
            group.bytes += row.bytes;
            group.shadowed_by = None;
            continue;
        }
        groups.push(OverrideGroup {
            first: index,
            rules: 1,
            pattern: row.pattern.clone(),
            buffer: row.buffer.clone(),
            origin: row.origin.clone(),
            tensors: row.tensors,
            bytes: row.bytes,
            shadowed_by: row.shadowed_by,
        });
    }
    groups
}

/// The block number of an entry that a counting flag made, and the rest of its pattern.
fn counted(pattern: &str) -> Option<(u32, &str)> {
    let rest = pattern.strip_prefix("blk\\.")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = rest.split_at_checked(digits)?;
    Some((number.parse().ok()?, rest))
}

fn tensor_rows(model: &Model, machine: &Machine, placement: &Placement) -> Vec<TensorRow> {
    let mut rows = Vec::with_capacity(model.tensors.len());
    for (tensor, copies) in model.tensors.iter().zip(&placement.copies) {
        let row = |bytes, buffer, rule| TensorRow { name: tensor.name.clone(), ty: tensor.ty, bytes, buffer, rule };
        if copies.is_empty() {
            rows.push(row(tensor.bytes, None, None));
        }
        for copy in copies {
            rows.push(row(copy.bytes, Some(copy.buffer.name(machine, placement).to_string()), copy.rule));
        }
    }
    rows
}

/// Which cache types llama.cpp refuses; the figures are then those of types that it takes.
#[derive(Debug, Clone, Copy, Default)]
struct RefusedCaches {
    pub quantized_v: bool,
    /// K and V of two types where V is a view of K.
    pub different_types: bool,
}

/// The forecast; of a launch whose cache types llama.cpp refuses, with the nearest that it takes.
fn with_allowed_caches(
    model: &Model,
    machine: &Machine,
    run: &mut RunConfig,
) -> Result<(Forecast, RefusedCaches), memory::Error> {
    let differ = run.type_k != run.type_v;
    let mut refused = RefusedCaches::default();
    loop {
        // Where tensors go does not depend on the types of the cache; a refusal is rare.
        let placement = placement::place(model, machine, run)?;
        match Launch::new(model, machine, run).projection(placement, None) {
            Err(memory::Error::DifferentTypes { .. }) if run.type_k != run.type_v => {
                refused.different_types = differ;
                // V's only where K's was refused as well: a quantized one without flash attention.
                if refused.quantized_v { run.type_k = run.type_v } else { run.type_v = run.type_k }
            }
            Err(memory::Error::QuantizedV { .. }) if run.type_v.is_quantized => {
                refused.quantized_v = true;
                run.type_v = ggml_type::f16();
            }
            other => return Ok((other?, refused)),
        }
    }
}

/// What the quantity of a row ends in that says where a device's budget comes from.
pub const BUDGET: &str = ".budget";

/// The rows that a prediction itself does not have.
fn basis_rows(target: Target, machine: &Machine, placement: &Placement) -> Vec<Basis> {
    let row = |quantity: &str, how: String| Basis { quantity: quantity.to_string(), how };
    let mut rows = match target.dialect {
        Dialect::LlamaCpp => {
            vec![row("build", format!("{}: {}", target.name(), target.memory()))]
        }
        Dialect::Ik => vec![
            row("build", target.memory()),
            row("context", "ik_llama.cpp: full length in every layer, latent rows by -mla (default 3)".to_string()),
            row(
                "compute",
                "ik_llama.cpp: its own graph laid out and allocated; delta nets as llama.cpp has them".to_string(),
            ),
        ],
    };
    for (_, device) in placement.taking_part(machine) {
        rows.push(row(&format!("{}.rules", device.name), device.backend.known().to_string()));
        rows.extend(device.note(machine.host.ram).map(|note| row(&format!("{}{BUDGET}", device.name), note)));
    }
    rows.extend(machine.host.note.clone().map(|note| row(&format!("main memory{BUDGET}"), note)));
    rows
}
