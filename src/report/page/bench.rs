//! A benchmark as a section: the launch beside its baselines, curves over depth, the gaps between tokens, the answers.

use std::collections::BTreeMap;

use super::memory::{self, Memory, Side, errors, size};
use super::speed::{Entry, Unit, figure};
use super::{Block, Item, KeyFigure, Section, Verdict, environment, gaps};
use crate::measurement::Spread;
use crate::number::{counted, signed, thousands, typeset};
use crate::report::chart::{Chart, Figure, Fill, Lines, Point, Series};
use crate::report::table::{Align, Table};
use crate::report::{self, bench::overall};
use crate::suite::document::{self, Bench, Case, Mode, Sample, SpeedRow};

/// Characters of an answer that a report shows; the document keeps all of it.
const SHOWN: usize = 3000;

/// The section of a benchmark.
pub fn section(bench: &Bench, source: &str) -> Section {
    Section { heading: heading(bench), source: source.to_string(), blocks: blocks(bench) }
}

/// The name of the model, else the endpoint.
pub fn heading(bench: &Bench) -> String {
    let model = bench.model.as_ref().map(|model| model.name.clone().unwrap_or_else(|| model.path.clone()));
    model.or_else(|| bench.environment.endpoint.clone()).unwrap_or_else(|| "A model".into())
}

/// Everything of a benchmark.
pub fn blocks(bench: &Bench) -> Vec<Block> {
    let mut blocks = Vec::new();
    blocks.extend(bench.cases.first().map(|case| Block::KeyFigures(key_figures(bench, case))));
    if bench.weights.synthetic != Some(false) && !bench.weights.basis.is_empty() {
        blocks.push(Block::Note(Verdict::Caution, bench.weights.basis.clone(), None));
    }
    blocks.extend(report::bench::notes(bench).into_iter().map(|note| Block::Note(Verdict::Open, note, None)));
    let failures = report::bench::failures(bench);
    blocks.extend(failures.into_iter().map(|text| Block::Note(Verdict::Bad, text, None)));
    blocks.push(Block::Table("Every case, over all prompts".into(), report::bench::cases(bench)));
    blocks.extend(speeds(bench).into_iter().map(Block::Figure));
    blocks.extend(depths(bench).into_iter().map(Block::Figure));
    blocks.extend(memories(bench));
    blocks.extend(gaps::blocks(bench));
    blocks.extend(filled("Speed by prompt", report::bench::prompts(bench)));
    blocks.extend(bench.cases.iter().flat_map(checklists));
    blocks.extend(answers(bench));
    blocks.push(Block::Table("How it was asked".into(), settings(bench)));
    blocks.push(Block::Table("Machine".into(), environment::machine(&bench.environment)));
    blocks.extend(bench.model.as_ref().map(|model| Block::Table("Model".into(), environment::model(model))));
    for case in &bench.cases {
        if let Some(command) = &case.command {
            blocks.push(Block::Heading(format!("Command: {}", case.name)));
            blocks.push(Block::Prose(case.what.clone()));
            blocks.push(Block::Command(command.clone()));
        }
    }
    blocks
}

fn key_figures(bench: &Bench, case: &Case) -> Vec<KeyFigure> {
    let mut figures = Vec::new();
    let mut add = |label: String, value: Option<String>, note: String| {
        figures.extend(value.map(|value| KeyFigure { label, value, note }));
    };
    let row = overall(case);
    let rate = |spread: Option<Spread>| spread.map(|spread| Unit::TokensPerSecond.spread(spread));
    let n = |spread: Option<Spread>| counted(spread.map_or(0, |spread| u64::from(spread.n)), "sample");
    let (pp, tg) = (row.and_then(|row| row.pp), row.and_then(|row| row.tg));
    add("Generation".into(), rate(tg), format!("tokens/s, {}", n(tg)));
    add("Prompt".into(), rate(pp), format!("tokens/s, {}", n(pp)));
    let first = row.and_then(|row| row.first_token_seconds);
    add("First token".into(), first.map(|spread| Unit::Seconds.spread(spread)), n(first));
    for saving in bench.savings.iter().filter(|saving| saving.saved_percent.is_some()) {
        let percent = saving.saved_percent.map(|percent| format!("{}%", typeset(&signed(-percent, 1))));
        let by = format!("{} for {}, by {}", size(saving.bytes), size(saving.baseline_bytes), saving.by);
        add(format!("Device memory against {}", saving.baseline), percent, by);
    }
    figures
}

/// Repetitions, sampling and lengths, and every prompt.
fn settings(bench: &Bench) -> Table {
    let settings = &bench.settings;
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    table.row(["how often", &report::bench::asked(bench)]);
    table.row(["sampling", &format!("temperature {}, seed {}", settings.temperature, settings.seed)]);
    for prompt in &bench.prompts {
        table.row([
            prompt.name.clone(),
            format!("{} (at most {} tokens)", prompt.text, thousands(prompt.max_tokens.into())),
        ]);
    }
    table
}

/// The samples of one quantity over all prompts, in the mode of the overall row.
fn samples(case: &Case, of: fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let mode = overall(case).map(|row| row.mode);
    let all = case.sessions.iter().flat_map(|session| &session.samples);
    all.filter(|sample| Some(sample.mode) == mode).filter_map(of).collect()
}

/// Every case beside the others.
fn speeds(bench: &Bench) -> Vec<Figure> {
    type Of = (fn(&SpeedRow) -> Option<Spread>, fn(&Sample) -> Option<f64>);
    let chart = |title: &str, unit: Unit, (of, sample): Of| {
        let entry = |case: &Case| Entry::measured(&case.name, overall(case).and_then(of), samples(case, sample));
        figure(title, unit, &bench.cases.iter().map(entry).collect::<Vec<_>>())
    };
    let charts = [
        chart("Generation", Unit::TokensPerSecond, (|row| row.tg, |sample| sample.tg)),
        chart("Prompt", Unit::TokensPerSecond, (|row| row.pp, |sample| sample.pp)),
        chart(
            "Time to the first token",
            Unit::Seconds,
            (|row| row.first_token_seconds, |sample| sample.first_token_seconds),
        ),
    ];
    charts.into_iter().flatten().collect()
}

/// Speed over depth, a curve a case.
fn depths(bench: &Bench) -> Vec<Figure> {
    let charts = [depth(bench, "Generation over depth", |row| row.tg), depth(bench, "Prompt over depth", |row| row.pp)];
    charts.into_iter().flatten().collect()
}

fn depth(bench: &Bench, title: &str, of: fn(&document::DepthRow) -> Option<Spread>) -> Option<Figure> {
    let mut table = Table::new(&[("", Align::Left), ("depth", Align::Right), ("tokens/s", Align::Right)]);
    let mut series = Vec::new();
    for (at, case) in bench.cases.iter().enumerate() {
        let mut points = Vec::new();
        for (row, spread) in case.depths.iter().filter_map(|row| Some((row, of(row)?))) {
            let error = (spread.n > 1).then_some(spread.stddev);
            points.push(Point { x: f64::from(row.depth), y: spread.mean, spread: error });
            let cells = [case.name.clone(), thousands(row.depth.into()), Unit::TokensPerSecond.spread(spread)];
            table.row(cells);
        }
        if !points.is_empty() {
            series.push(Series { label: case.name.clone(), at, points });
        }
    }
    if series.iter().all(|series| series.points.len() < 2) {
        return None;
    }
    let chart = Chart::Lines(Lines {
        x: "tokens in the context before the prompt".into(),
        y: "tokens per second".into(),
        series,
        levels: Vec::new(),
        dense: false,
        x_is_bytes: false,
    });
    let text = format!(
        "Measured with prompts of {} and {} generated tokens; whiskers are one standard deviation.",
        thousands(bench.settings.depth_prompt.into()),
        thousands(bench.settings.depth_generate.into())
    );
    Some(Figure { title: title.into(), text, legend: Vec::new(), chart, table })
}

/// Memory of the first case against its prediction, then of every case, then what was saved.
fn memories(bench: &Bench) -> Vec<Block> {
    let measured = |case: &'_ Case| -> Option<Memory> {
        let found = case.sessions.iter().find(|session| !session.memory.is_empty())?;
        Some(found.memory.clone())
    };
    let mut blocks = Vec::new();
    let none = BTreeMap::new();
    let predicted = |case: &'_ Case| case.sessions.iter().position(|s| !s.predicted.is_empty() && !s.memory.is_empty());
    let compared: Vec<(&Case, &document::Session)> =
        bench.cases.iter().filter_map(|case| Some((case, case.sessions.get(predicted(case)?)?))).collect();
    if let Some((case, session)) = compared.first() {
        let title = format!("Memory of {}, predicted beside measured", case.name);
        let (predicted, found) = (&session.predicted, &session.memory);
        blocks.push(Block::Figure(memory::against(&title, predicted, found, session.mapped_span, &none)));
        let rows = compared.iter().map(|(case, session)| (case.name.as_str(), session.comparison.as_slice()));
        blocks.push(Block::Table("Predicted against measured, term by term".into(), errors(rows)));
    }
    let cases: Vec<(&str, Memory)> =
        bench.cases.iter().filter_map(|case| Some((case.name.as_str(), measured(case)?))).collect();
    if cases.len() > 1 {
        let sides: Vec<Side<'_>> =
            cases.iter().map(|(label, memory)| Side { label, memory, fill: Fill::Plain }).collect();
        blocks.push(Block::Figure(memory::figure("Memory of every case, measured", &sides, &none)));
    }
    blocks.extend(filled("Against the baselines", report::bench::savings(bench)));
    blocks
}

/// A table, where it has a row.
fn filled(caption: &str, table: Table) -> Option<Block> {
    (!table.is_empty()).then(|| Block::Table(caption.into(), table))
}

/// Stream health and the judged answers of a case.
fn checklists(case: &Case) -> Vec<Block> {
    let mut blocks = Vec::new();
    if !case.stream.is_empty() {
        blocks.push(Block::Heading(format!("{}: streams", case.name)));
        blocks.push(Block::Checklist(items(&case.stream)));
    }
    for quality in case.quality.iter().filter(|quality| !quality.items.is_empty()) {
        blocks.push(Block::Heading(format!("{}: the {} prompt", case.name, quality.prompt)));
        blocks.push(Block::Checklist(items(&quality.items)));
    }
    blocks
}

/// Lines of a checklist of the document.
pub fn items(items: &[document::Item]) -> Vec<Item> {
    let of = |item: &document::Item| Item {
        verdict: match item.verdict {
            document::Verdict::Pass => Verdict::Good,
            document::Verdict::Fail => Verdict::Bad,
            document::Verdict::NotAssessed => Verdict::Open,
            document::Verdict::Skipped => Verdict::Skipped,
        },
        what: item.what.clone(),
        why: item.detail.clone(),
    };
    items.iter().map(of).collect()
}

/// The streamed answers of the first case's first launch.
fn answers(bench: &Bench) -> Vec<Block> {
    let session = bench.cases.first().and_then(|case| case.sessions.first());
    let streamed = session.into_iter().flat_map(|session| &session.samples).filter(|s| s.mode == Mode::Stream);
    let output = |sample: &Sample| {
        let mut text: String = sample.text.chars().take(SHOWN).collect();
        if text.len() < sample.text.len() {
            text += "\n… (the document holds the rest)";
        }
        Block::Output(format!("Answer to the {} prompt", sample.prompt), text)
    };
    let answers: Vec<Block> = streamed.filter(|sample| !sample.text.is_empty()).map(output).collect();
    if answers.is_empty() {
        return answers;
    }
    [Block::Heading("Answers".into())].into_iter().chain(answers).collect()
}
