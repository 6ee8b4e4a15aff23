//! A plan or a check as a section: what it takes, how fast it is predicted to be, what is where, and the command.

use super::memory::{self, Side, size};
use super::speed::{self, Unit};
use super::view::{Alternative, ExpertSplit, Lint, Plan};
use super::{Block, KeyFigure, Section, Verdict, placement};
use crate::bytes::Bytes;
use crate::number::{counted, rate, seconds, signed, thousands, typeset};
use crate::report::chart::{Fill, Tone};
use crate::report::table::{Align, Table};

/// A time below this share of the turn is not worth a row.
const WORTH_A_ROW: f64 = 0.005;

/// The section of a plan or a check.
pub fn section(plan: &Plan, source: &str) -> Section {
    let mut blocks = vec![verdict(plan)];
    blocks.push(Block::KeyFigures(key_figures(plan)));
    if !plan.command.is_empty() {
        blocks.push(Block::Command(plan.command.clone()));
    }
    blocks.extend(taken(plan));
    blocks.extend(map(plan));
    blocks.extend(speeds(plan));
    blocks.extend(tables(plan));
    blocks.extend(notes(&plan.warnings));
    blocks.extend(notes(&plan.lints));
    Section { heading: heading(plan), source: source.to_string(), blocks }
}

/// The name of the model, else what was checked.
pub fn heading(plan: &Plan) -> String {
    match &plan.model {
        Some(model) => model.name.clone().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| model.path.clone()),
        None => format!("What {} would do", if plan.program.is_empty() { "the command" } else { &plan.program }),
    }
}

/// The memory that it takes; of what is not counted, the reason.
fn taken(plan: &Plan) -> Vec<Block> {
    if let Some(memory) = plan.counted() {
        let side = Side { label: "predicted", memory: &memory, fill: Fill::Hatched };
        return vec![Block::Figure(memory::figure("Memory by device", &[side], &plan.budget))];
    }
    let mut table = Table::new(&[("device", Align::Left), ("model", Align::Right), ("context", Align::Right)]);
    for (device, terms) in &plan.memory {
        table.row([device.clone(), size(terms.model), terms.context.map_or("not counted".into(), size)]);
    }
    let note = |term: &super::view::Uncounted| {
        Block::Note(Verdict::Open, format!("Not counted: {} ({})", term.what, term.reason), None)
    };
    let table = Block::Table("What is counted of its memory".into(), table);
    std::iter::once(table).chain(plan.uncounted.iter().map(note)).collect()
}

fn verdict(plan: &Plan) -> Block {
    let refused = plan.lints.iter().any(|lint| lint.severity == "error");
    match (plan.fits, refused) {
        (Some(true), true) => {
            return Block::Verdict(Verdict::Bad, "Would fit every budget, but llama.cpp refuses the command.".into());
        }
        (Some(true), false) => return Block::Verdict(Verdict::Good, "Fits every budget.".into()),
        (None, true) => return Block::Verdict(Verdict::Bad, "llama.cpp refuses the command.".into()),
        (None, false) => return Block::Verdict(Verdict::Open, "Whether it fits cannot be told.".into()),
        (Some(false), _) => {}
    }
    let over: Vec<String> = plan.shortfall.iter().map(|(device, bytes)| format!("{device} by {bytes}")).collect();
    Block::Verdict(Verdict::Bad, format!("Does not fit: short on {}.", over.join(", ")))
}

fn key_figures(plan: &Plan) -> Vec<KeyFigure> {
    let mut figures = Vec::new();
    let mut add = |label: &str, value: String, note: String| {
        figures.push(KeyFigure { label: label.into(), value, note });
    };
    if let Some(speed) = &plan.speed {
        let off = format!("tokens/s, predicted ± {:.0}%", speed.uncertainty * 100.0);
        add("Generation", rate(speed.tg), off.clone());
        add("Prompt", rate(speed.pp), off);
    }
    if let (Some(turn), Some(time)) = (plan.turn, plan.turn_seconds) {
        let depth = if turn.depth > 0 { format!(" at depth {}", thousands(turn.depth.into())) } else { String::new() };
        let tokens = format!("{} + {} tokens{depth}", thousands(turn.prompt.into()), thousands(turn.generate.into()));
        add("One turn", seconds(time), format!("{tokens}, predicted"));
    }
    let run = &plan.run;
    let slots = counted(run.n_seq_max.into(), "slot");
    add("Context", thousands(run.n_ctx.into()), format!("tokens, {} cache, {slots}", cache(plan)));
    add("Micro-batch", thousands(run.n_ubatch.into()), format!("tokens; load mode {}", run.load_mode));
    if plan.placement.blocks_with_experts > 0 {
        let split = &plan.placement;
        let of = format!("{} of {}", split.blocks_with_experts_on_host, split.blocks_with_experts);
        let bytes = size(split.routed_expert_bytes_on_host);
        add("Experts on the host", of, format!("blocks, whole or in part; {bytes}"));
    }
    figures
}

fn cache(plan: &Plan) -> String {
    let run = &plan.run;
    if run.type_k == run.type_v { run.type_k.clone() } else { format!("{}/{}", run.type_k, run.type_v) }
}

/// `18 of 48 blocks`.
pub fn experts(split: &ExpertSplit) -> String {
    format!("{} of {} blocks", split.blocks_with_experts_on_host, split.blocks_with_experts)
}

/// The placement map, or how to get one.
fn map(plan: &Plan) -> Option<Block> {
    match &plan.tensors {
        Some(tensors) => placement::figure(tensors).map(Block::Figure),
        None => Some(Block::Note(
            Verdict::Open,
            "The document lists no tensors, so there is no placement map".into(),
            Some("Write it with --tensors --json".into()),
        )),
    }
}

/// The proposed launch beside the others, where there are any.
fn speeds(plan: &Plan) -> Vec<Block> {
    if plan.alternatives.is_empty() {
        return Vec::new();
    }
    let chart = |title: &str, of: fn(&crate::speed::Speed) -> f64| {
        let proposed = speed::prediction("proposed", plan.speed.as_ref(), of);
        let fitting = plan.alternatives.iter().filter(|other| other.fits);
        let others = fitting.filter_map(|other| speed::prediction(&other.what, other.speed.as_ref(), of));
        let others = others.map(|entry| speed::Entry { tone: Some(Tone::Overhead), ..entry });
        let entries: Vec<_> = proposed.into_iter().chain(others).collect();
        speed::figure(title, Unit::TokensPerSecond, &entries).map(Block::Figure)
    };
    let charts = [chart("Generation, predicted", |speed| speed.tg), chart("Prompt, predicted", |speed| speed.pp)];
    charts.into_iter().flatten().collect()
}

fn tables(plan: &Plan) -> Vec<Block> {
    use Align::{Left, Right};
    let mut terms = Table::new(&[("term", Left), ("bytes", Right), ("fix", Left), ("frees", Right), ("costs", Left)]);
    for row in &plan.explain {
        terms.row([row.term.clone(), size(row.bytes), row.fix.clone(), freed(row.saves), row.costs.clone()]);
    }
    let mut time = Table::new(&[("phase", Left), ("time goes to", Left), ("seconds", Right)]);
    let least = plan.turn_seconds.unwrap_or(0.0) * WORTH_A_ROW;
    for term in plan.time.iter().filter(|term| term.seconds >= least) {
        time.row([term.phase.clone(), term.what.clone(), format!("{:.2}", term.seconds)]);
    }
    let mut overrides =
        Table::new(&[("override", Left), ("to", Left), ("tensors", Right), ("bytes", Right), ("from", Left)]);
    for group in &plan.override_groups {
        let cells = [&group.pattern, &group.buffer, &group.tensors.to_string(), &size(group.bytes), &group.origin];
        overrides.row(cells.map(Clone::clone));
    }
    let mut basis = Table::new(&[("figure", Left), ("basis", Left)]);
    for row in &plan.basis {
        basis.row([row.quantity.clone(), row.how.clone()]);
    }
    if let Some(speed) = &plan.speed {
        basis.row(["speed".to_string(), speed.basis.clone()]);
    }
    let tables = [
        ("What takes the room", terms),
        ("What takes the time", time),
        ("What else there is", launches(&plan.alternatives)),
        ("What would make it fit", launches(&plan.fixes)),
        ("Overrides", overrides),
        ("Where the figures come from", basis),
    ];
    let filled = tables.into_iter().filter(|(_, table)| !table.is_empty());
    filled.map(|(caption, table)| Block::Table(caption.into(), table)).collect()
}

/// What a fix frees; nothing where there is none.
fn freed(bytes: Bytes) -> String {
    if bytes == Bytes(0) { String::new() } else { bytes.to_string() }
}

/// Other launches, a row each.
fn launches(others: &[Alternative]) -> Table {
    use Align::{Left, Right};
    let columns = [("change", Left), ("fits", Left), ("experts on the host", Right), ("pp", Right), ("tg", Right)];
    let mut table = Table::new(&[&columns[..], &[("turn", Right), ("change", Right), ("note", Left)]].concat());
    for other in others {
        let short: Vec<String> = other.shortfall.iter().map(|(name, over)| format!("{name} short of {over}")).collect();
        let of = |speed: fn(&crate::speed::Speed) -> f64| other.speed.as_ref().map(speed).map(rate).unwrap_or_default();
        table.row([
            other.what.clone(),
            if other.fits { "yes".to_string() } else { short.join(", ") },
            experts(&other.placement),
            of(|speed| speed.pp),
            of(|speed| speed.tg),
            seconds(other.turn_seconds),
            format!("{}%", typeset(&signed(other.turn_change * 100.0, 1))),
            other.note.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// Lints and warnings.
pub fn notes(lints: &[Lint]) -> Vec<Block> {
    let note = |lint: &Lint| {
        let verdict = match lint.severity.as_str() {
            "error" => Verdict::Bad,
            "info" => Verdict::Open,
            _ => Verdict::Caution,
        };
        Block::Note(verdict, format!("{} [{}]", lint.message, lint.code), lint.hint.clone().filter(|h| !h.is_empty()))
    };
    lints.iter().map(note).collect()
}
