//! A check and a plan: whether it fits, what it takes of which device, how fast it is predicted to be, and the command.

use super::compare::Summary;
use super::memory::{self, Memory, Side, size};
use super::speed::{Entry, Unit, chart};
use super::{Block, Document, KeyFigure, Page, Verdict, dotted, named, placement};
use crate::bytes::Bytes;
use crate::checkup::{BUDGET, Checkup, Severity, TensorRow};
use crate::inspection::Warning;
use crate::machine::Machine;
use crate::memory::{Basis, HOST};
use crate::number::{rate, seconds, share, signed, thousands, typeset};
use crate::plan::explain::Alternative;
use crate::plan::{Checked, ExpertSplit, ModelSummary, Plan, Strategy};
use crate::report::chart::{Fill, Tone};
use crate::report::table::Table;
use crate::run::Choice as _;
use crate::speed::{Phase, Speed};

/// A time below this share of the turn is not worth a row.
const WORTH_A_ROW: f64 = 0.005;

impl Document for Checked {
    fn pages(&self) -> Vec<Page> {
        let check = &self.checkup;
        let mut page = Page::new("Check", name(&self.model), about(&self.model, None));
        page.push(verdict(check));
        page.push_all(uncounted(check).map(Block::Prose));
        page.detail(Block::Command(String::new(), self.command.clone()));
        page.push(Block::KeyFigures(launch(check)));
        page.push(memory(check));
        page.push_all(budget_notes(check).map(Block::Prose));
        if let Some(span) = check.mapped_span {
            let text = format!(
                "A launch with mapped files logs CPU_Mapped as {span}: the span in the file, not what it needs."
            );
            page.push(Block::Prose(text));
        }
        page.push(Block::filled("Overrides", overrides(check)));
        placed(&mut page, check);
        page.detail(Block::filled("Where the figures come from", basis(check)));
        page.push_all(lints(check, Severity::Info));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        vec![Summary::predicted(name(&self.model), counted(&self.checkup), None)]
    }
}

impl Document for Plan {
    fn pages(&self) -> Vec<Page> {
        let check = &self.check;
        let mut page = Page::new("Plan", name(&self.model), about(&self.model, Some(&self.machine)));
        page.push(self.verdict());
        page.push(Block::KeyFigures(self.figures()));
        page.push(Block::Command(String::new(), self.command.clone()));
        page.push(memory(check));
        page.push_all(self.machine.budget_notes().map(Block::Prose));
        placed(&mut page, check);
        page.detail_all(self.speeds());
        page.push_all(self.tables());
        page.detail(Block::filled("Overrides", overrides(check)));
        let mut basis = basis(check);
        basis.row(["speed", self.speed.basis.as_str()]);
        page.detail(Block::Table("Where the figures come from".into(), basis));
        page.push_all(warnings(&self.warnings));
        page.push_all(lints(check, Severity::Warning));
        page.detail_all(notes(check, |severity| severity == Severity::Info));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        vec![Summary::predicted(name(&self.model), counted(&self.check), Some(&self.speed))]
    }
}

/// The name of a model, else its path.
pub(super) fn name(model: &ModelSummary) -> &str {
    named(model.name.as_deref(), &model.path)
}

/// What a model is, whether it exists, and what it is planned for.
pub(super) fn about(model: &ModelSummary, machine: Option<&Machine>) -> String {
    let made = model.what_if.as_ref().map(|made| format!("predicted: {} of {}", made.recipe, made.source));
    let facts = [model.architecture.clone(), model.bytes.to_string()].into_iter().chain(made);
    dotted(facts.chain(machine.map(budgets)))
}

/// `24.00 GiB of CUDA0, 12.00 GiB of CUDA1`.
pub fn budgets(machine: &Machine) -> String {
    let budgets: Vec<String> =
        machine.devices.iter().map(|device| format!("{} of {}", device.total, device.name)).collect();
    if budgets.is_empty() { "the host alone".to_string() } else { budgets.join(", ") }
}

/// Yes or no, and by how much.
fn verdict(check: &Checkup) -> Block {
    let (verdict, text) = match (check.fits, check.is_refused()) {
        (Some(true), false) => (Verdict::Good, "Fits.".to_string()),
        (Some(true), true) => (Verdict::Bad, "Would fit, but llama.cpp refuses the command.".to_string()),
        (None, true) => (Verdict::Bad, "llama.cpp refuses the command.".to_string()),
        (None, false) => (Verdict::Open, "Whether it fits cannot be told.".to_string()),
        (Some(false), true) => {
            (Verdict::Bad, format!("Does not fit: {}; and llama.cpp refuses the command.", short(check)))
        }
        (Some(false), false) => (Verdict::Bad, format!("Does not fit: {}.", short(check))),
    };
    Block::Verdict(verdict, text)
}

/// What is not in the table, a line for each reason.
fn uncounted(check: &Checkup) -> impl Iterator<Item = String> + '_ {
    check.uncounted.chunk_by(|a, b| a.reason == b.reason).filter_map(|terms| {
        let what: Vec<&str> = terms.iter().map(|term| &*term.what).collect();
        Some(format!("Not counted: {}. Reason: {}.", what.join(", "), terms.first()?.reason))
    })
}

/// Where budgets come from that are not exact figures.
fn budget_notes(check: &Checkup) -> impl Iterator<Item = String> + '_ {
    let of_device = |row: &Basis| Some(format!("{}: {}.", row.quantity.strip_suffix(BUDGET)?, row.how));
    check.basis.iter().filter_map(of_device)
}

/// Memory by device, where every term of every device is counted.
fn counted(check: &Checkup) -> Option<Memory> {
    check.memory.iter().map(|(device, row)| Some((device.clone(), row.whole()?))).collect()
}

/// `CUDA0 by 1.00 GiB`.
fn short(check: &Checkup) -> String {
    check.shortfall.iter().map(|(key, bytes)| format!("{key} by {bytes}")).collect::<Vec<_>>().join(", ")
}

fn launch(check: &Checkup) -> Vec<KeyFigure> {
    let run = &check.run;
    let slots = match (run.n_seq_max(), run.kv_unified == Some(true)) {
        (1, _) => "1 slot".to_string(),
        (n, true) => format!("{n} slots sharing it"),
        (n, false) => format!("{n} slots of {} tokens", thousands(u64::from(run.n_ctx_seq))),
    };
    let cache =
        if run.type_k == run.type_v { run.type_k.to_string() } else { format!("{}/{}", run.type_k, run.type_v) };
    let batch = format!("tokens, of batches of {}; load mode {}", thousands(run.n_batch.into()), run.load_mode.word());
    vec![
        KeyFigure::new("Context", thousands(run.n_ctx.into()), format!("tokens, {cache} cache, {slots}")),
        KeyFigure::new("Micro-batch", thousands(run.n_ubatch.into()), batch),
    ]
}

/// Memory by device beside the budgets; without a chart where a term is not counted.
fn memory(check: &Checkup) -> Block {
    let title = "Memory by device";
    if let Some(memory) = counted(check) {
        let side = Side { label: "predicted", memory: &memory, fill: Fill::Hatched };
        return Block::Figure(memory::figure(title, &[side], &check.budget));
    }
    let mut table = Table::of("|>model|>context|>compute|>overhead|>total|>budget");
    let shown = |bytes: Option<Bytes>| bytes.map_or("not counted".to_string(), size);
    for (device, row) in &check.memory {
        let terms = [Some(row.model), row.context, row.compute, row.overhead, row.total].map(shown);
        let budget = check.budget.get(device);
        let cells = [device.clone()].into_iter().chain(terms).chain([budget.map_or(String::new(), |b| size(*b))]);
        match budget {
            Some(budget) => table.row_with_bar(cells, share(row.counted().0, budget.0)),
            None => table.row(cells),
        };
    }
    Block::Table(title.into(), table)
}

/// Where each tensor is, where the document lists them: a map, and every one of them.
fn placed(page: &mut Page, check: &Checkup) {
    let Some(tensors) = &check.tensors else {
        page.detail(Block::Prose("With --tensors there is a placement map, and a list of every tensor.".into()));
        return;
    };
    page.detail(placement::figure(tensors).map(Block::Figure));
    page.push(Block::filled("Tensors", list(check)));
}

/// The overrides and what they did, those of one counting flag in one row.
fn overrides(check: &Checkup) -> Table {
    let rows = check.override_groups.iter().map(|group| {
        let from = match (group.rules, group.shadowed_by) {
            (1, Some(rule)) => format!("{} (shadowed by {})", group.origin, row_of(check, rule)),
            (1, None) => group.origin.clone(),
            (n, _) => format!("{} ({n} rules)", group.origin),
        };
        [group.pattern.clone(), group.buffer.clone(), group.tensors.to_string(), group.bytes.to_string(), from]
    });
    Table::rows_of("override|to|>tensors|>bytes|from", rows)
}

/// In which row of the table an override is, counted from 1.
fn row_of(check: &Checkup, rule: usize) -> usize {
    check.override_groups.iter().take_while(|group| group.first <= rule).count()
}

fn basis(check: &Checkup) -> Table {
    Table::rows_of("figure|basis", check.basis.iter().map(|row| [row.quantity.as_str(), row.how.as_str()]))
}

fn list(check: &Checkup) -> Table {
    let row = |row: &TensorRow| {
        let buffer = row.buffer.as_deref().unwrap_or(placement::NOT_LOADED);
        let rule = row.rule.map(|rule| row_of(check, rule).to_string()).unwrap_or_default();
        [row.name.clone(), row.ty.to_string(), thousands(row.bytes.0), buffer.to_string(), rule]
    };
    Table::rows_of("tensor|type|>bytes|buffer|>rule", check.tensors.iter().flatten().map(row))
}

/// The lints that are at least so bad.
fn lints(check: &Checkup, least: Severity) -> Vec<Block> {
    notes(check, |severity| severity <= least)
}

fn notes(check: &Checkup, shown: impl Fn(Severity) -> bool) -> Vec<Block> {
    let lints = check.lints.iter().filter(|lint| shown(lint.severity));
    lints.map(|lint| Block::note(lint.severity, &lint.message, &lint.code, lint.hint.as_deref())).collect()
}

/// What is to be known of a model or a plan.
pub(super) fn warnings(warnings: &[Warning]) -> impl Iterator<Item = Block> + '_ {
    warnings.iter().map(|warning| Block::note(Severity::Warning, &warning.message, &warning.code, Some(&warning.hint)))
}

impl Plan {
    /// Whether it fits, and by how much it does or does not.
    fn verdict(&self) -> Block {
        if !self.check.fits() {
            let text = format!("Does not fit: short on {}. {}.", short(&self.check), self.remedy());
            return Block::Verdict(Verdict::Bad, text);
        }
        let left = |device: &crate::machine::Device| {
            let used = self.check.memory.get(&device.name)?.total?;
            // A plan that fits may use up its margin to the last byte and no more.
            let left = device.total.saturating_sub(used + self.margin);
            Some(format!("{left} left on {}", device.name))
        };
        let left: Vec<String> = self.machine.devices.iter().filter_map(left).collect();
        let text = if left.is_empty() {
            "Fits.".to_string()
        } else {
            format!("Fits: {} beyond the margin of {}.", left.join(", "), self.margin)
        };
        Block::Verdict(Verdict::Good, text)
    }

    /// What to try when it does not fit.
    fn remedy(&self) -> &'static str {
        let host_only = self.check.shortfall.keys().all(|name| name == HOST);
        match (host_only, self.strategy) {
            (true, _) if self.machine.devices.is_empty() => "Describe your cards with --vram, or take a smaller file",
            (true, _) => "The host needs more memory: take a smaller file, or a card that holds more of it",
            (false, Strategy::AllOnDevice | Strategy::Rules) => {
                "Experts may not be moved by this strategy: --strategy auto moves them to the host"
            }
            (false, _) if self.placement.blocks_with_experts == 0 => {
                "The model is dense: try a smaller -c or -ub, -ctk q8_0 -ctv q8_0, or a smaller file"
            }
            (false, _) => {
                "Every routed expert that may move is on the host: try a smaller -c or -ub, -ctk q8_0 -ctv q8_0, or a \
                 smaller file"
            }
        }
    }

    fn figures(&self) -> Vec<KeyFigure> {
        let (speed, turn) = (&self.speed, &self.turn);
        let off = format!("tokens/s, predicted ±{:.0}%", speed.uncertainty * 100.0);
        let depth = if turn.depth > 0 { format!(" at depth {}", thousands(turn.depth.into())) } else { String::new() };
        let tokens = format!("{} + {} tokens{depth}", thousands(turn.prompt.into()), thousands(turn.generate.into()));
        let mut figures = vec![
            KeyFigure::new("Generation", rate(speed.tg), off.clone()),
            KeyFigure::new("Prompt", rate(speed.pp), off),
            KeyFigure::new("One turn", seconds(self.turn_seconds), format!("for {tokens} ({})", speed.basis)),
        ];
        figures.extend(launch(&self.check));
        figures.push(self.experts());
        figures
    }

    /// Where the routed experts are.
    fn experts(&self) -> KeyFigure {
        let split = &self.placement;
        let (host, blocks) = (split.blocks_with_experts_on_host, split.blocks_with_experts);
        if blocks == 0 {
            return KeyFigure::new("Experts", "none", "the model is dense");
        }
        let devices: Vec<String> =
            split.by_device.iter().map(|(device, bytes)| format!("{bytes} on {device}")).collect();
        let devices = devices.join(", ");
        if host == 0 {
            return KeyFigure::new("Experts", "all", format!("{blocks} blocks on the devices: {devices}"));
        }
        let mut note = format!("blocks on the host, whole or in part: {}", split.routed_expert_bytes_on_host);
        if !devices.is_empty() {
            note = format!("{note}; {devices}");
        }
        KeyFigure::new("Experts", format!("{host} of {blocks}"), note)
    }

    /// The proposed launch beside the others, where there are any.
    fn speeds(&self) -> [Option<Block>; 2] {
        let others: Vec<&Alternative> = self.why.alternatives.iter().filter(|other| other.fits).collect();
        let beside = |title: &str, of: fn(&Speed) -> f64| {
            let entries = others.iter().map(|other| Entry {
                tone: Some(Tone::Overhead),
                ..Entry::predicted(&other.what, of(&other.speed), other.speed.uncertainty)
            });
            let proposed = Entry::predicted("proposed", of(&self.speed), self.speed.uncertainty);
            chart(title, Unit::TokensPerSecond, [proposed].into_iter().chain(entries)).filter(|_| !others.is_empty())
        };
        [beside("Generation, predicted", |speed| speed.tg), beside("Prompt, predicted", |speed| speed.pp)]
    }

    /// What takes the room, what takes the time, what else there is, what would make it fit.
    fn tables(&self) -> [Option<Block>; 4] {
        let mut terms = Table::of("term|>bytes|fix|>frees|costs");
        for row in &self.why.explain {
            let frees = if row.saves == Bytes(0) { String::new() } else { row.saves.to_string() };
            terms.row([row.term.clone(), size(row.bytes), row.fix.clone(), frees, row.costs.clone()]);
        }
        let mut time = Table::of("phase|time goes to|>seconds");
        for term in self.why.time.iter().filter(|term| term.seconds >= self.turn_seconds * WORTH_A_ROW) {
            let phase = match term.phase {
                Phase::Prompt => "prompt",
                Phase::Generate => "generation",
            };
            time.row([phase.to_string(), term.what.clone(), format!("{:.2}", term.seconds)]);
        }
        let tables = [
            ("What takes the room", terms),
            ("What takes the time", time),
            ("What else there is", launches(&self.why.alternatives)),
            ("What would make it fit", launches(&self.why.fixes)),
        ];
        tables.map(|(caption, table)| Block::filled(caption, table))
    }
}

/// Whether a launch fits, or what it is short of.
pub(super) fn fits<'a>(fits: bool, shortfall: impl IntoIterator<Item = (&'a String, &'a Bytes)>) -> String {
    if fits {
        return "yes".to_string();
    }
    shortfall.into_iter().map(|(name, over)| format!("{name} short of {over}")).collect::<Vec<_>>().join(", ")
}

/// `18 of 48`.
pub(super) fn blocks_on_host(split: &ExpertSplit) -> String {
    format!("{} of {}", split.blocks_with_experts_on_host, split.blocks_with_experts)
}

/// Other launches, a row each.
fn launches(others: &[Alternative]) -> Table {
    let row = |other: &Alternative| {
        [
            other.what.clone(),
            fits(other.fits, &other.shortfall),
            blocks_on_host(&other.placement),
            rate(other.speed.pp),
            rate(other.speed.tg),
            seconds(other.turn_seconds),
            format!("{}%", typeset(&signed(other.turn_change * 100.0, 1))),
            other.note.clone().unwrap_or_default(),
        ]
    };
    Table::rows_of("change|fits|>blocks on host|>pp|>tg|>turn|>|", others.iter().map(row))
}
