//! A measurement as a section: predicted beside measured, term by term, speeds with their samples, the process.

use std::collections::BTreeMap;

use super::memory::{self, errors, size};
use super::speed::{Entry, Unit, figure};
use super::view::Plan;
use super::{Block, KeyFigure, Section, Verdict, file_name, plan};
use crate::measurement::Measurement;
use crate::number::{seconds, thousands};
use crate::report::table::{Align, Table};

/// The section of a measurement; with the map and command of its plan where the document holds one.
pub fn section(measured: &Measurement, source: &str) -> Section {
    let planned: Option<Plan> = serde_json::from_value(measured.plan.clone()).ok();
    let mut blocks = vec![verdict(measured), Block::KeyFigures(key_figures(measured))];
    let command = planned.as_ref().map(|plan| plan.command.clone()).filter(|command| !command.is_empty());
    blocks.extend(command.map(Block::Command));
    let budget = planned.as_ref().map(|plan| plan.budget.clone()).unwrap_or_default();
    let title = "Memory, predicted beside measured";
    let (predicted, found) = (&measured.predicted, &measured.memory);
    blocks.push(Block::Figure(memory::against(title, predicted, found, measured.mapped_span, &budget)));
    blocks.push(Block::Table(
        "Predicted against measured, term by term".into(),
        errors([("this", measured.comparison.as_slice())]),
    ));
    blocks.extend(speeds(measured, planned.as_ref()));
    let tensors = planned.as_ref().and_then(|plan| plan.tensors.as_ref());
    blocks.extend(tensors.and_then(|tensors| super::placement::figure(tensors)).map(Block::Figure));
    blocks.push(Block::Table("The launch".into(), facts(measured)));
    if !measured.text.is_empty() {
        blocks.push(Block::Output("What was generated".into(), measured.text.clone()));
    }
    let heading = planned.filter(|plan| plan.model.is_some()).map(|plan| plan::heading(&plan));
    let runtime = &measured.runtime;
    let heading = heading.unwrap_or_else(|| format!("A launch of {} b{}", file_name(&runtime.program), runtime.build));
    Section { heading, source: source.to_string(), blocks }
}

fn verdict(measured: &Measurement) -> Block {
    let outside: Vec<&str> =
        measured.comparison.iter().filter(|row| !row.ok).map(|row| row.quantity.as_str()).collect();
    let exact = measured.comparison.iter().all(|row| row.predicted == row.measured);
    let (good, text) = match (outside.is_empty(), exact, measured.finite) {
        (_, _, false) => (false, "Some logits are not finite numbers.".to_string()),
        (true, true, _) => (true, "As predicted, to the byte.".to_string()),
        (true, false, _) => (true, format!("As predicted, within {}%.", 100.0 * measured.tolerance)),
        (false, ..) => (false, format!("Not as predicted: {}.", outside.join(", "))),
    };
    Block::Verdict(Verdict::of(good), text)
}

fn key_figures(measured: &Measurement) -> Vec<KeyFigure> {
    let speed = &measured.speed;
    let mut figures = Vec::new();
    let mut add = |label: &str, value: Option<String>, note: String| {
        figures.extend(value.map(|value| KeyFigure { label: label.into(), value, note }));
    };
    let rate = |spread: Option<crate::measurement::Spread>| spread.map(|spread| Unit::TokensPerSecond.spread(spread));
    let samples = |n: usize| format!("tokens/s, {}", crate::number::counted(n as u64, "sample"));
    add("Generation", rate(speed.summary.tg), samples(speed.tg.len()));
    add("Prompt", rate(speed.summary.pp), samples(speed.pp.len()));
    add("First token", speed.summary.first_token.map(|spread| Unit::Seconds.spread(spread)), "by our clock".into());
    for (device, row) in measured.memory.iter().filter(|(device, _)| *device != crate::memory::HOST) {
        add(device, Some(size(row.total)), "measured in all".into());
    }
    add("Load", Some(seconds(measured.load_seconds)), String::new());
    figures
}

fn speeds(measured: &Measurement, planned: Option<&Plan>) -> Vec<Block> {
    let speed = &measured.speed;
    let predicted = planned.and_then(|plan| plan.speed.as_ref());
    let entry = |label: String, spread, samples: &[f64], of: Option<f64>| Entry {
        predicted: of.zip(predicted.map(|speed| speed.uncertainty)),
        ..Entry::measured(label, spread, samples.to_vec())
    };
    let tokens = |n: u32| format!("{} tokens", thousands(n.into()));
    let tg = entry(tokens(speed.n_generate), speed.summary.tg, &speed.tg, predicted.map(|speed| speed.tg));
    let pp = entry(tokens(speed.n_prompt), speed.summary.pp, &speed.pp, predicted.map(|speed| speed.pp));
    let first = entry(tokens(speed.n_prompt), speed.summary.first_token, &speed.first_token, None);
    let charts = [
        figure("Generation", Unit::TokensPerSecond, &[tg]),
        figure("Prompt", Unit::TokensPerSecond, &[pp]),
        figure("Time to the first token", Unit::Seconds, &[first]),
    ];
    charts.into_iter().flatten().map(Block::Figure).collect()
}

fn facts(measured: &Measurement) -> Table {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let runtime = &measured.runtime;
    table.row(["runtime", &format!("{} b{} ({})", runtime.program, runtime.build, runtime.backend)]);
    let process = &measured.process;
    table.row([
        "process",
        &format!("{} its own, {} of files, {} at its peak", process.rss_anon, process.rss_file, process.peak),
    ]);
    if measured.mapped_span.0 > 0 {
        table.row(["mapped", &format!("{} of the file", measured.mapped_span)]);
    }
    let none = BTreeMap::new();
    let used = if measured.device_used.is_empty() { &none } else { &measured.device_used };
    for (device, bytes) in used {
        table.row([format!("{device}, by the driver"), format!("{bytes} at its peak")]);
    }
    table
}
