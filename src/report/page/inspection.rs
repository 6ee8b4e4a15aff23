//! What a model is, as a section.

use super::plan::notes;
use super::view::Inspection;
use super::{Block, Item, KeyFigure, Section, Verdict};
use crate::bytes::Bytes;
use crate::number::{parameters, thousands};
use crate::report::chart::{Chart, Figure, Fill, Stack, StackedBar, Tone};
use crate::report::table::{Align, Table};

/// The section of an inspect document.
pub fn section(model: &Inspection, source: &str) -> Section {
    let mut blocks = vec![Block::KeyFigures(key_figures(model))];
    let mut roles = Table::new(&[("role", Align::Left), ("parameters", Align::Right), ("bytes", Align::Right)]);
    for (role, bytes) in model.bytes.by_role.iter().filter(|(_, bytes)| bytes.0 > 0) {
        let count = model.parameters.by_role.get(role).copied().unwrap_or(0);
        roles.row([role.replace('_', " "), thousands(count), bytes.to_string()]);
    }
    let mut types = Table::new(&[("type", Align::Left), ("bytes", Align::Right)]);
    for (name, bytes) in &model.bytes.by_type {
        types.row([name.clone(), bytes.to_string()]);
    }
    let mut context = Table::new(&[("cache type", Align::Left), ("bytes of one more token", Align::Right)]);
    for (name, bytes) in model.context_bytes_per_token.iter().flatten() {
        context.row([name.clone(), thousands(bytes.0)]);
    }
    if !roles.is_empty() {
        blocks.push(Block::Figure(by_role(model, roles)));
    }
    let tables = [("Tensors by type", types), ("Context", context)];
    let filled = tables.into_iter().filter(|(_, table)| !table.is_empty());
    blocks.extend(filled.map(|(caption, table)| Block::Table(caption.into(), table)));
    if !model.expectations.is_empty() {
        blocks.push(Block::Heading("Expectations".into()));
        let item = |check: &super::view::Expectation| Item {
            verdict: Verdict::of(check.ok),
            what: check.what.clone(),
            why: format!("expected {}, found {}", check.expected, check.found),
        };
        blocks.push(Block::Checklist(model.expectations.iter().map(item).collect()));
    }
    blocks.extend(notes(&model.warnings));
    let heading = model.name.clone().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| model.path.clone());
    Section { heading, source: source.to_string(), blocks }
}

/// Bytes by role, the largest first.
fn by_role(model: &Inspection, table: Table) -> Figure {
    let mut roles: Vec<(&String, Bytes)> = model.bytes.by_role.iter().map(|(role, bytes)| (role, *bytes)).collect();
    roles.retain(|(_, bytes)| bytes.0 > 0);
    roles.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let bar = |(role, bytes): &(&String, Bytes)| StackedBar {
        label: role.replace('_', " "),
        value: bytes.to_string(),
        fill: Fill::Plain,
        parts: vec![(Tone::Model, bytes.0)],
    };
    let stack = Stack { label: String::new(), bars: roles.iter().map(bar).collect(), limit: None };
    Figure {
        title: "Tensors by role".into(),
        text: "Bytes of the file by what its tensors are for.".into(),
        legend: Vec::new(),
        chart: Chart::Stacks(vec![stack]),
        table,
    }
}

fn key_figures(model: &Inspection) -> Vec<KeyFigure> {
    let experts = model.experts;
    let figure = |label: &str, value: String, note: String| KeyFigure { label: label.into(), value, note };
    let mut figures = vec![
        figure(
            "Parameters",
            parameters(model.parameters.total),
            format!("{} active per token", parameters(model.parameters.active)),
        ),
        figure(
            "Size",
            model.bytes.total.to_string(),
            format!("{}, {:.2} bits per weight", model.file_type.as_deref().unwrap_or("mixed"), model.bits_per_weight),
        ),
        figure(
            "Context",
            thousands(model.context_length.into()),
            format!("tokens; {} blocks, {}", model.block_count, model.architecture),
        ),
    ];
    if experts.count > 0 {
        let shared = if experts.shared > 0 { format!(" + {} shared", experts.shared) } else { String::new() };
        figures.push(figure(
            "Experts",
            format!("{}{shared}", experts.count),
            format!("{} used per token, in {} blocks, {}", experts.used, experts.blocks, experts.bytes),
        ));
    }
    figures
}
