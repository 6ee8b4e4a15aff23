//! A check and a plan: whether it fits, what it takes of which device, how fast it is predicted to be, and the command.

use std::collections::BTreeMap;

use super::compare::Summary;
use super::memory::{by_device, counted, main_memory, size};
use super::speed::{Entry, Unit::Rate, chart};
use super::{Block, Document, KeyFigure, Page, Verdict, at_depth, dotted, named, placement};
use crate::bytes::{Bytes, MIB};
use crate::checkup::{self, BUDGET, Checkup, Severity};
use crate::inspection::Warning;
use crate::machine::{Device, MARGIN_UNCALIBRATED, Machine, said_once};
use crate::memory::{HOST, What};
use crate::number::{fixed, rate, seconds, signed, thousands, typeset};
use crate::plan::explain::Alternative;
use crate::plan::{Beside, Checked, ExpertSplit, ModelSummary, Plan, Projected, Strategy, Turn, Variant};
use crate::report::chart::Tone;
use crate::report::table::{Table, row};
use crate::run::command::shell;
use crate::run::{Choice as _, Program};
use crate::speed::{Phase, Speed};

/// A time below this share of the turn is not worth a row.
const WORTH_A_ROW: f64 = 0.005;

impl Document for Checked {
    fn pages(&self) -> Vec<Page> {
        let check = &self.checkup;
        let mut page = Page::new("Check", name(&self.model), about(&self.model, None));
        let (verdict, text) = verdict(check);
        page.push(Block::Verdict(verdict, text));
        page.push(lints(check, |severity| severity == Severity::Error));
        page.push(check.uncounted.chunk_by(|a, b| a.reason == b.reason).filter_map(|terms| {
            let what: Vec<&str> = terms.iter().map(|term| &*term.what).collect();
            let reason = &terms.first()?.reason;
            Some(Block::Prose(format!("Not counted: {}. Reason: {reason}.", what.join(", "))))
        }));
        page.push(Block::KeyFigures(check.speed.iter().flat_map(speeds).chain(launch(check, &self.model)).collect()));
        page.push(check.speed.as_ref().and_then(slows));
        page.detail(Block::Command(String::new(), self.command.clone()));
        page.push(self.n_cpu_moe.map(|n| Block::Prose(format!("With `--n-cpu-moe {n}` it fits."))));
        let mended = self.mended.as_ref();
        page.push(mended.map(|command| {
            Block::Command("The command as llama.cpp accepts it; the figures are for this one".into(), command.clone())
        }));
        page.push(self.plan.iter().flat_map(|plan| beside(plan, check.fits())));
        page.push(self.no_plan.as_ref().map(|why| Block::Prose(format!("No plan is shown for comparison: {why}."))));
        page.push(variants(&self.variants));
        page.push(by_device(check, Bytes(0)));
        page.push(self.projected.iter().flat_map(projected));
        show_main_memory(check, &mut page);
        page.push(parts(check));
        page.push(after_fitting(check));
        // Where budgets come from that are not exact figures.
        let rows = check.basis.iter();
        let budgets = rows.filter_map(|row| Some((row.quantity.strip_suffix(BUDGET)?, format!("{}.", row.how))));
        page.push(said_once(budgets).into_iter().map(Block::Prose));
        page.detail(check.mapped_span.map(|span| {
            Block::Prose(format!(
                "With mapped files, llama.cpp logs {span} as CPU_Mapped. That is their span in the file, not memory."
            ))
        }));
        page.push(overrides(check));
        placed(&mut page, check);
        page.detail(basis(check, check.speed.as_ref().map(|speed| speed.basis.as_str())));
        page.push(lints(check, |severity| severity > Severity::Error));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        vec![Summary::predicted(name(&self.model), counted(&self.checkup), self.checkup.speed.as_ref())]
    }
}

impl Document for Plan {
    fn pages(&self) -> Vec<Page> {
        let check = &self.check;
        let mut page = Page::new("Plan", name(&self.model), about(&self.model, Some(&self.machine)));
        page.push(self.verdict());
        page.push(lints(check, |severity| severity == Severity::Error));
        page.push(Block::KeyFigures(self.figures()));
        page.push(slows(&self.speed));
        let label = if check.fits() { "" } else { "The closest launch, which does not fit" };
        page.push(Block::Command(label.into(), self.command.clone()));
        page.push(by_device(check, self.margin));
        show_main_memory(check, &mut page);
        page.push(parts(check));
        page.push(self.machine.budget_notes().map(Block::Prose));
        placed(&mut page, check);
        page.detail(self.beside("Generation, predicted", Phase::Generate));
        page.detail(self.beside("Prompt, predicted", Phase::Prompt));
        page.push(self.tables());
        let upgrades: Vec<_> = self.upgrades.iter().map(|answer| (answer.point.label.clone(), answer)).collect();
        page.push(super::want::answers("Upgrades, each by itself", "change", &upgrades));
        page.detail(overrides(check));
        page.detail(basis(check, Some(&self.speed.basis)));
        page.push(warnings(&self.warnings));
        page.push(lints(check, |severity| severity == Severity::Warning));
        page.detail(lints(check, |severity| severity == Severity::Info));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        vec![Summary::predicted(name(&self.model), counted(&self.check), Some(&self.speed))]
    }
}

pub(super) fn name(model: &ModelSummary) -> &str {
    named(model.name.as_deref(), &model.path)
}

pub(super) fn about(model: &ModelSummary, machine: Option<&Machine>) -> String {
    let made = model.what_if.as_ref().map(|made| format!("predicted: {} of {}", made.recipe, made.source));
    let facts = [model.architecture.clone(), model.bytes.to_string()].into_iter().chain(made);
    dotted(facts.chain(machine.map(budgets)))
}

/// `24.00 GiB of CUDA0, 12.00 GiB of CUDA1`.
pub fn budgets(machine: &Machine) -> String {
    let budget = |device: &Device| format!("{} on {}", device.total, device.name);
    let budgets: Vec<String> = machine.devices.iter().map(budget).collect();
    if budgets.is_empty() { "the host alone".to_string() } else { budgets.join(", ") }
}

/// The verdict's colour and its words.
pub(super) fn verdict(check: &Checkup) -> (Verdict, String) {
    match (check.fits, check.is_refused()) {
        (Some(false), false) if check.verdict == Some(checkup::Verdict::AfterFit) => {
            let text =
                format!("Does not fit as written ({}); llama.cpp's own fitting makes it fit.", short(&check.shortfall));
            (Verdict::Open, text)
        }
        (Some(false), false) if check.verdict == Some(checkup::Verdict::Paged) => {
            let text = format!(
                "Does not fit in main memory ({}): mapped weights are read from the disk again and again.",
                short(&check.shortfall)
            );
            (Verdict::Bad, text)
        }
        (_, false) if check.verdict == Some(checkup::Verdict::WithoutParts) => {
            (Verdict::Open, "What is counted fits, but not everything is counted.".to_string())
        }
        (Some(true), false) if check.verdict == Some(checkup::Verdict::Tight) => {
            let left = left(check).filter(|(_, left)| *left < MARGIN_UNCALIBRATED);
            let left: Vec<String> = left.map(|(name, left)| format!("{left} of {name}")).collect();
            let text = format!(
                "Fits tightly: {} left, so another program can push it over; a plan's usual margin is {MARGIN_UNCALIBRATED}.",
                left.join(" and ")
            );
            (Verdict::Caution, text)
        }
        (Some(true), false) => {
            // Where less is left and there is room, a margin was asked for.
            let than = match left(check).map(|(_, left)| left).min() {
                Some(least) if least < MARGIN_UNCALIBRATED => " beyond the margin".to_string(),
                _ => format!("; a plan's usual margin is {MARGIN_UNCALIBRATED}"),
            };
            let left: Vec<String> = left(check).map(|(name, left)| format!("{left} of {name}")).collect();
            let fits = if has_room(check) { "Fits comfortably" } else { "Fits" };
            let text = match left.as_slice() {
                [] => format!("{fits}."),
                left => format!("{fits}: {} left{than}.", left.join(" and ")),
            };
            (Verdict::Good, text)
        }
        (Some(true), true) if check.is_mended() => {
            (Verdict::Bad, "Would fit, but llama.cpp refuses the command as it is written.".to_string())
        }
        (Some(true), true) => (Verdict::Bad, "Would fit, but llama.cpp refuses the command.".to_string()),
        (None, true) => (Verdict::Bad, "llama.cpp refuses the command.".to_string()),
        (None, false) => (Verdict::Open, "Whether it fits cannot be determined.".to_string()),
        (Some(false), is_refused) => {
            let refused = if is_refused { "; and llama.cpp refuses the command" } else { "" };
            (Verdict::Bad, format!("Does not fit: {}{refused}.", short(&check.shortfall)))
        }
    }
}

/// What is left of the budget of each device, and which card that is where the command calls it by another's name.
fn left(check: &Checkup) -> impl Iterator<Item = (String, Bytes)> + '_ {
    let devices = check.budget.iter().filter(|(name, _)| *name != HOST);
    devices.filter_map(|(name, budget)| {
        let card = check.cards.get(name).map(|card| format!(" (the card {card})")).unwrap_or_default();
        Some((format!("{name}{card}"), budget.saturating_sub(check.memory.get(name)?.total?)))
    })
}

/// Whether every device has at least 2% left: less is soon taken by another program, however large the device is.
fn has_room(check: &Checkup) -> bool {
    let devices = check.budget.iter().filter(|(name, _)| *name != HOST);
    let used = |name: &str| check.memory.get(name).and_then(|row| row.total).unwrap_or_default();
    devices
        .into_iter()
        .all(|(name, budget)| used(name) == Bytes(0) || budget.saturating_sub(used(name)).0 >= budget.0 / 50)
}

/// How much faster is worth saying.
const FASTER: f64 = 1.02;

/// The plan beside a command: how to get it, where it is faster or the command does not fit.
fn beside(plan: &Beside, fits: bool) -> Vec<Block> {
    let what = "plan with the same context, slots and cache types";
    let turn = seconds(plan.turn_seconds);
    let faster = plan.times_as_fast.filter(|times| *times >= FASTER).map(|times| {
        let times = fixed(times, if times < 1.1 { 2 } else { 1 });
        let own = plan.command_seconds.map(|own| format!(" in place of {}", seconds(own))).unwrap_or_default();
        format!("is predicted to be {times} times as fast ({turn} a turn{own})")
    });
    let text = match (fits, faster) {
        (true, None) => return vec![Block::Prose(format!("No {what} is more than 2% faster."))],
        (true, Some(faster)) => format!("A {what} {faster}"),
        (false, None) => format!("A {what} fits, and takes {turn} a turn"),
        (false, Some(faster)) => format!("A {what} fits, and {faster}"),
    };
    vec![
        Block::Command(text, plan.command.clone()),
        Block::Command("This gives the plan".to_string(), plan.asked.clone()),
    ]
}

/// A terminal shows it at once only where it decides something.
fn show_main_memory(check: &Checkup, page: &mut Page) {
    if check.main_memory.is_some() { page.push(main_memory(check)) } else { page.detail(main_memory(check)) }
}

/// The launches of a grid, of which the other figures are the largest's.
fn variants(variants: &[Variant]) -> Option<Block> {
    let row = |variant: &Variant| {
        let memory = variant
            .memory
            .iter()
            .map(|(device, row)| format!("{device} {}", row.counted()))
            .collect::<Vec<_>>()
            .join(", ");
        let answer = if variant.fits.is_none() {
            "unknown".to_string()
        } else {
            fits(variant.fits == Some(true), &variant.shortfall)
        };
        [variant.what.clone(), answer, thousands(variant.n_ctx.into()), memory]
    };
    let table = Table::rows_of("variant|fits|>context|memory", variants.iter().map(row));
    Block::table("Variants (all other figures are for the largest)", table).filter(|_| !variants.is_empty())
}

/// What a launch loads, where that is more than one model.
fn parts(check: &Checkup) -> Option<Block> {
    let rows = check.parts.iter().flat_map(|part| {
        let name = |what: What| match what {
            What::Target => "model",
            What::Drafting => "drafting",
            What::Projector => "projector",
        };
        part.memory.iter().map(move |(device, row)| {
            let [context, compute] = [row.context, row.compute]
                .map(|bytes| bytes.map_or_else(|| "not predicted".to_string(), |bytes| bytes.to_string()));
            let path = part.path.as_deref().unwrap_or_default();
            row![name(part.what), device, row.model, context, compute, path]
        })
    });
    let table = Table::rows_of("part|device|>model|>context|>compute|file", rows);
    Block::table("What is loaded", table).filter(|_| check.parts.len() > 1)
}

/// An installed llama.cpp's own projection beside ours.
fn projected(asked: &Projected) -> Vec<Block> {
    let rows = asked.memory.iter().flat_map(|(device, theirs)| {
        let ours = asked.predicted.get(device).copied().unwrap_or_default();
        let terms = [
            ("model", ours.model, theirs.model),
            ("context", ours.context, theirs.context),
            ("compute", ours.compute, theirs.compute),
        ];
        terms.map(|(term, ours, theirs)| {
            // It prints whole MiB.
            let verdict = if ours.0 / MIB == theirs.0 / MIB { "equal" } else { "differs" };
            row![format!("{device}.{term}"), ours, theirs, verdict]
        })
    });
    let table = Table::rows_of("term|>predicted|>asked|", rows);
    let said = format!(
        "From {}, {}. It prints whole MiB for the devices that it finds, and sizes output rows for itself, not for llama-server.",
        asked.program, asked.version
    );
    let table = Block::table("What an installed llama-fit-params says about the same flags", table);
    [table, Some(Block::Prose(said))].into_iter().flatten().collect()
}

/// What llama.cpp's own fitting makes of the command.
fn after_fitting(check: &Checkup) -> Vec<Block> {
    // Where it gives up without a change a lint says so.
    let changes = |fit: &&checkup::FitOutcome| fit.failure.is_none() || fit.n_ctx != check.run.n_ctx;
    let Some(fit) = check.fit.as_ref().filter(changes) else { return Vec::new() };
    let mut text = format!("After fitting: a context of {} tokens", thousands(fit.n_ctx.into()));
    if fit.moved_blocks > 0 {
        let blocks = crate::number::counted(fit.moved_blocks as u64, "block");
        text += &format!(", and weights of {blocks} off their device");
    }
    text += if fit.starts { "; it starts." } else { "; even then it does not fit." };
    if let Some(failure) = &fit.failure {
        text += &format!(" Fitting gave up: {failure}.");
    }
    let used = fit.memory.iter().filter_map(|(key, row)| Some(format!("{key} {}", row.total?)));
    text += &format!(" It takes {}.", used.collect::<Vec<_>>().join(", "));
    vec![Block::Prose(text), Block::Command("What fitting sets".to_string(), shell(&fit.args).unwrap_or_default())]
}

/// `CUDA0 by 1.00 GiB`.
pub(super) fn short(shortfall: &BTreeMap<String, Bytes>) -> String {
    shortfall.iter().map(|(key, bytes)| format!("{} by {bytes}", memory_of(key))).collect::<Vec<_>>().join(", ")
}

/// What a key of a shortfall is: `Host` is the memory of the whole computer, not the row of that name.
fn memory_of(key: &str) -> &str {
    if key == HOST { "main memory" } else { key }
}

fn speeds(speed: &Speed) -> Vec<KeyFigure> {
    let off = |phase| format!("tokens/s, predicted {}", speed.within(phase));
    let without = speed.speculation.map(|of| format!("; {} without speculation", rate(of.tg_without)));
    let alone = speed.together.map_or("tokens/s", |_| "tokens/s alone");
    let generation = format!("{alone}, predicted {}{}", speed.within(Phase::Generate), without.unwrap_or_default());
    let together = speed.together.map(|all| {
        let note = format!(
            "tokens/s each, {} together, predicted {}; all are answered in {}",
            rate(all.tg),
            speed.within_together(all.slots),
            seconds(all.turn_seconds)
        );
        KeyFigure::new(&format!("{} at once", all.slots), rate(all.each), note)
    });
    let generation = KeyFigure::new("Generation", rate(speed.tg), generation);
    let prompt = KeyFigure::new("Prompt", rate(speed.pp), off(Phase::Prompt));
    [generation].into_iter().chain(together).chain([prompt]).collect()
}

/// Says it where speculation does not pay off.
fn slows(speed: &Speed) -> Option<Block> {
    let of = speed.speculation.filter(|of| of.tg_without > speed.tg)?;
    Some(Block::Prose(format!(
        "Speculation makes generation slower here: {} tokens/s with it, {} without.",
        rate(speed.tg),
        rate(of.tg_without)
    )))
}

fn launch(check: &Checkup, model: &ModelSummary) -> Vec<KeyFigure> {
    let run = &check.run;
    // llama-server gives no slot more than the model was trained on (`tools/server/server-context.cpp` `n_ctx_slot`, b11434).
    let is_capped = model.context_length > 0 && run.n_ctx_seq > model.context_length && run.program == Program::Server;
    let most = thousands(model.context_length.into());
    let slots = match (run.n_seq_max(), run.kv_unified == Some(true) && run.rules().streams) {
        (1, _) if is_capped => format!("1 slot, at most {most} tokens"),
        (1, _) => "1 slot".to_string(),
        (n, true) if is_capped => format!("{n} slots sharing it, each at most {most} tokens"),
        (n, true) => format!("{n} slots sharing it"),
        (n, false) => format!(
            "{n} slots of {} tokens",
            thousands(u64::from(if run.rules().streams { run.n_ctx_seq } else { run.n_ctx / run.n_seq_max() }))
        ),
    };
    let cache =
        if run.type_k == run.type_v { run.type_k.to_string() } else { format!("{}/{}", run.type_k, run.type_v) };
    let batch = format!("tokens, in batches of {}; load mode {}", thousands(run.n_batch.into()), run.load_mode.word());
    vec![
        KeyFigure::new("Context", thousands(run.n_ctx.into()), format!("tokens, {cache} cache, {slots}")),
        KeyFigure::new("Micro-batch", thousands(run.n_ubatch.into()), batch),
    ]
}

fn placed(page: &mut Page, check: &Checkup) {
    let Some(tensors) = &check.tensors else {
        page.detail(Block::Prose("--tensors adds a placement map and a list of every tensor.".into()));
        return;
    };
    page.detail(placement::map(tensors));
    let rows = tensors.iter().map(|of| {
        let buffer = of.buffer.as_deref().unwrap_or(placement::NOT_LOADED);
        let rule = of.rule.map(|rule| row_of(check, rule).to_string()).unwrap_or_default();
        row![of.name, of.ty, thousands(of.bytes.0), buffer, rule]
    });
    let list = Table::rows_of("tensor|type|>bytes|buffer|>rule", rows);
    page.push(Block::table("Tensors", list));
}

/// The overrides and what they did, those of one counting flag in one row.
fn overrides(check: &Checkup) -> Option<Block> {
    let rows = check.override_groups.iter().map(|group| {
        let from = match (group.rules, group.shadowed_by) {
            (1, Some(rule)) => format!("{} (shadowed by {})", group.origin, row_of(check, rule)),
            (1, None) => group.origin.clone(),
            (n, _) => format!("{} ({n} rules)", group.origin),
        };
        row![group.pattern, group.buffer, group.tensors, group.bytes, from]
    });
    Block::table("Overrides", Table::rows_of("override|to|>tensors|>bytes|from", rows))
}

/// In which row of the table an override is, counted from 1.
fn row_of(check: &Checkup, rule: usize) -> usize {
    check.override_groups.iter().take_while(|group| group.first <= rule).count()
}

fn basis(check: &Checkup, of_speed: Option<&str>) -> Option<Block> {
    let rows = check.basis.iter().map(|row| [row.quantity.as_str(), row.how.as_str()]);
    let table = Table::rows_of("figure|basis", rows.chain(of_speed.map(|basis| ["speed", basis])));
    Block::table("Where the figures come from", table)
}

fn lints(check: &Checkup, is_shown: fn(Severity) -> bool) -> impl Iterator<Item = Block> + '_ {
    let lints = check.lints.iter().filter(move |lint| is_shown(lint.severity));
    lints.map(|lint| Block::note(lint.severity, &lint.message, &lint.code, lint.hint.as_deref()))
}

pub(super) fn warnings(warnings: &[Warning]) -> impl Iterator<Item = Block> + '_ {
    warnings.iter().map(|warning| Block::note(Severity::Warning, &warning.message, &warning.code, Some(&warning.hint)))
}

impl Plan {
    fn verdict(&self) -> Block {
        if !self.check.fits() {
            let text = format!("Does not fit: {}. {}.", short(&self.check.shortfall), self.remedy());
            return Block::Verdict(Verdict::Bad, text);
        }
        if self.check.is_refused() {
            let (verdict, text) = verdict(&self.check);
            return Block::Verdict(verdict, text);
        }
        let left = |device: &Device| {
            let used = self.check.memory.get(&device.name)?.total?;
            // A plan that fits may use up its margin to the last byte and no more.
            let left = device.total.saturating_sub(used + self.margin);
            Some(format!("{left} left on {}", device.name))
        };
        let left: Vec<String> = self.machine.devices.iter().filter_map(left).collect();
        let is_idle = |device: &&Device| !self.check.memory.contains_key(&device.name);
        let idle: Vec<&str> = self.machine.devices.iter().filter(is_idle).map(|device| device.name.as_str()).collect();
        let idle = if idle.is_empty() { String::new() } else { format!("; nothing is on {}", idle.join(", ")) };
        let margin = format!(": {} beyond the margin of {}{idle}", left.join(", "), self.margin);
        Block::Verdict(Verdict::Good, format!("Fits{}.", if left.is_empty() { "" } else { &margin }))
    }

    fn remedy(&self) -> &'static str {
        let host_only = self.check.shortfall.keys().all(|name| name == HOST);
        let is_host_short = self.check.shortfall.contains_key(HOST);
        match (host_only, self.strategy) {
            (true, _) if self.machine.devices.is_empty() => "Describe your cards with --vram, or use a smaller file",
            _ if is_host_short && self.machine.is_unified() => {
                "Graphics and processor share main memory, so moving experts frees nothing: use a smaller file (--as Q3_K_M,Q2_K compares \
                 quantizations), or a smaller -c or -ub"
            }
            (true, _) => "The host needs more memory: use a smaller file, or a card that holds more of it",
            (false, Strategy::AllOnDevice | Strategy::Rules) => {
                "This strategy does not move experts; --strategy auto moves them to the host"
            }
            (false, _) if self.placement.blocks_with_experts == 0 => {
                "The model is dense: try a smaller -c or -ub, -ctk q8_0 -ctv q8_0, or a smaller file"
            }
            (false, _) => {
                "All movable experts are already on the host: try a smaller -c or -ub, -ctk q8_0 -ctv q8_0, or a \
                 smaller file"
            }
        }
    }

    fn figures(&self) -> Vec<KeyFigure> {
        let (speed, turn) = (&self.speed, &self.turn);
        let (prompt, generate) = (thousands(turn.prompt.into()), thousands(turn.generate.into()));
        let turn = format!("for {prompt} + {generate} tokens{} ({})", at_depth(turn.depth), speed.basis);
        let turn = KeyFigure::new("One turn", seconds(self.turn_seconds), turn);
        speeds(speed)
            .into_iter()
            .chain([turn])
            .chain(launch(&self.check, &self.model))
            .chain([self.experts()])
            .collect()
    }

    fn experts(&self) -> KeyFigure {
        let split = &self.placement;
        let (host, blocks) = (split.blocks_with_experts_on_host, split.blocks_with_experts);
        if blocks == 0 {
            return KeyFigure::new("Experts", "none", "(the model is dense)");
        }
        let on = |(device, bytes): (&String, &Bytes)| format!("{bytes} on {device}");
        let devices = split.by_device.iter().map(on).collect::<Vec<_>>().join(", ");
        if host == 0 {
            return KeyFigure::new("Experts", "all", format!("{blocks} blocks on the devices: {devices}"));
        }
        let devices = if devices.is_empty() { devices } else { format!("; {devices}") };
        let note = format!("blocks wholly or partly on the host: {}{devices}", split.routed_expert_bytes_on_host);
        KeyFigure::new("Experts", format!("{host} of {blocks}"), note)
    }

    /// The proposed launch beside the others, where there are any.
    fn beside(&self, title: &str, of: Phase) -> Option<Block> {
        let others = self.others().filter(|other| other.fits);
        let others: Vec<Entry> = others
            .map(|other| Entry { tone: Some(Tone::Overhead), ..Entry::predicted(&other.what, &other.speed, of) })
            .collect();
        let is_alone = others.is_empty();
        let proposed = Entry::predicted("proposed", &self.speed, of);
        chart(title, Rate, [proposed].into_iter().chain(others)).filter(|_| !is_alone)
    }

    /// What llama.cpp would choose, then what else there is.
    fn others(&self) -> impl Iterator<Item = &Alternative> {
        self.fit_choice.iter().map(|choice| &choice.launch).chain(&self.why.alternatives)
    }

    fn ladder(&self) -> Table {
        let rows = self.ladder.iter().map(|rung| {
            row![
                thousands(rung.n_ctx.into()),
                fits(rung.fits, &rung.shortfall),
                format!("{} of {}", rung.experts_on_host, self.placement.blocks_with_experts),
                rate(rung.speed.pp),
                rate(rung.speed.tg),
                seconds(rung.turn_seconds),
                change(rung.turn_seconds / self.turn_seconds - 1.0),
            ]
        });
        Table::rows_of(">context|fits|>blocks on host|>pp|>tg|>turn|>", rows)
    }

    fn tables(&self) -> Vec<Block> {
        let Turn { prompt, generate, depth, .. } = self.turn;
        let (prompt, generate) = (thousands(prompt.into()), thousands(generate.into()));
        let contexts = format!("Contexts (-c N), all for a turn of {prompt} + {generate} tokens{}", at_depth(depth));
        let terms = self.why.explain.iter().map(|of| {
            let frees = if of.saves == Bytes(0) { String::new() } else { of.saves.to_string() };
            row![of.term, size(of.bytes), of.fix, frees, of.costs]
        });
        let times = self.why.time.iter().filter(|term| term.seconds >= self.turn_seconds * WORTH_A_ROW).map(|term| {
            let phase = match term.phase {
                Phase::Prompt => "prompt",
                Phase::Generate => "generation",
            };
            row![phase, term.what, format!("{:.2}", term.seconds)]
        });
        let tables = [
            ("Where the memory goes", Table::rows_of("term|>bytes|fix|>frees|costs", terms)),
            ("Where the time goes", Table::rows_of("phase|time goes to|>seconds", times)),
            (contexts.as_str(), self.ladder()),
            ("Alternatives", launches(self.others())),
            ("What would make it fit", launches(&self.why.fixes)),
        ];
        let tables = tables.into_iter().filter_map(|(caption, table)| Block::table(caption, table));
        tables.collect::<Vec<_>>()
    }
}

pub(super) fn fits<'a>(fits: bool, shortfall: impl IntoIterator<Item = (&'a String, &'a Bytes)>) -> String {
    let short = |(name, over): (&String, &Bytes)| format!("{} over by {over}", memory_of(name));
    if fits { "yes".into() } else { shortfall.into_iter().map(short).collect::<Vec<_>>().join(", ") }
}

/// `18 of 48`.
pub(super) fn blocks_on_host(split: &ExpertSplit) -> String {
    format!("{} of {}", split.blocks_with_experts_on_host, split.blocks_with_experts)
}

/// `+12.5%`.
fn change(share: f64) -> String {
    format!("{}%", typeset(&signed(share * 100.0, 1)))
}

fn launches<'a>(others: impl IntoIterator<Item = &'a Alternative>) -> Table {
    let rows = others.into_iter().map(|other| {
        row![
            other.what,
            fits(other.fits, &other.shortfall),
            blocks_on_host(&other.placement),
            rate(other.speed.pp),
            rate(other.speed.tg),
            seconds(other.turn_seconds),
            change(other.turn_change),
            other.note.as_deref().unwrap_or_default(),
        ]
    });
    Table::rows_of("change|fits|>blocks on host|>pp|>tg|>turn|>|", rows)
}
