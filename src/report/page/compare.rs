//! Several runs or models side by side.

use std::collections::BTreeMap;

use super::memory::{self, Memory, Side, size};
use super::read::{Document, Source};
use super::speed::{Entry, Unit, figure};
use super::view::Plan;
use super::{Block, Section, bench, file_name, plan, tune};
use crate::bytes::Bytes;
use crate::measurement::{Measurement, Spread};
use crate::memory::HOST;
use crate::number::seconds;
use crate::report::chart::Fill;
use crate::report::table::{Align, Table};
use crate::suite::document::Bench;

/// What of a document can stand beside another.
struct Summary {
    label: String,
    source: String,
    memory: Option<Memory>,
    fill: Fill,
    pp: Entry,
    tg: Entry,
    first: Option<Spread>,
}

/// The section that compares, where two or more can be.
pub fn section(sources: &[Source]) -> Option<Section> {
    let mut summaries: Vec<Summary> = sources.iter().flat_map(of).collect();
    if summaries.len() < 2 {
        return None;
    }
    name_apart(&mut summaries);
    let speed = |title: &str, of: fn(&Summary) -> &Entry| {
        let entries: Vec<Entry> = summaries.iter().map(|summary| of(summary).clone()).collect();
        figure(title, Unit::TokensPerSecond, &entries).map(Block::Figure)
    };
    let sides: Vec<Side<'_>> = summaries
        .iter()
        .filter_map(|summary| {
            Some(Side { label: &summary.label, memory: summary.memory.as_ref()?, fill: summary.fill })
        })
        .collect();
    let mut blocks = vec![Block::Table(String::new(), table(&summaries))];
    blocks.extend(speed("Generation", |summary| &summary.tg));
    blocks.extend(speed("Prompt", |summary| &summary.pp));
    if !sides.is_empty() {
        blocks.push(Block::Figure(memory::figure("Memory by device", &sides, &BTreeMap::new())));
    }
    Some(Section { heading: "Side by side".into(), source: String::new(), blocks })
}

fn of(source: &Source) -> Vec<Summary> {
    match &source.document {
        Document::Plan(plan) => vec![of_plan(plan, &source.name)],
        Document::Measurement(measured) => vec![of_measurement(measured, &source.name)],
        Document::Bench(bench) => of_bench(bench, &bench::heading(bench), &source.name).into_iter().collect(),
        Document::Validation(validation) => {
            let benches = validation.models.iter().filter_map(|model| Some((&model.name, model.bench.as_ref()?)));
            benches.filter_map(|(name, bench)| of_bench(bench, name, &source.name)).collect()
        }
        Document::Tuning(tuning) => of_tuning(tuning, &source.name).into_iter().collect(),
        Document::Inspection(_) | Document::Launched(_) | Document::Sweep(_) | Document::LlamaBench(_) => Vec::new(),
    }
}

fn of_plan(plan: &Plan, source: &str) -> Summary {
    let label = plan::heading(plan);
    let entry = |of: fn(&crate::speed::Speed) -> f64| Entry {
        predicted: plan.speed.as_ref().map(|speed| (of(speed), speed.uncertainty)),
        ..Entry::measured(&label, None, Vec::new())
    };
    Summary {
        pp: entry(|speed| speed.pp),
        tg: entry(|speed| speed.tg),
        source: source.to_string(),
        memory: plan.counted(),
        fill: Fill::Hatched,
        first: None,
        label,
    }
}

fn of_measurement(measured: &Measurement, source: &str) -> Summary {
    let planned: Option<Plan> = serde_json::from_value(measured.plan.clone()).ok();
    let planned = planned.filter(|plan| plan.model.is_some());
    let label = planned.map_or_else(|| file_name(source).to_string(), |plan| plan::heading(&plan));
    let speed = &measured.speed;
    Summary {
        pp: Entry::measured(&label, speed.summary.pp, speed.pp.clone()),
        tg: Entry::measured(&label, speed.summary.tg, speed.tg.clone()),
        source: source.to_string(),
        memory: Some(measured.memory.clone()),
        fill: Fill::Plain,
        first: speed.summary.first_token,
        label,
    }
}

/// The first case of a benchmark: the plan or the endpoint.
fn of_bench(bench: &Bench, label: &str, source: &str) -> Option<Summary> {
    let case = bench.cases.first()?;
    let row = crate::report::bench::overall(case);
    let measured = case.sessions.iter().find(|session| !session.memory.is_empty());
    Some(Summary {
        label: label.to_string(),
        source: source.to_string(),
        memory: measured.map(|session| session.memory.clone()),
        fill: Fill::Plain,
        pp: Entry::measured(label, row.and_then(|row| row.pp), Vec::new()),
        tg: Entry::measured(label, row.and_then(|row| row.tg), Vec::new()),
        first: row.and_then(|row| row.first_token_seconds),
    })
}

/// The winner of a tuning, whose memory is known as sums alone.
fn of_tuning(tuning: &crate::tune::document::Document, source: &str) -> Option<Summary> {
    let winner = tune::winner(tuning)?;
    let label = tune::heading(tuning);
    Some(Summary {
        pp: Entry::measured(&label, winner.pp, Vec::new()),
        tg: Entry::measured(&label, winner.tg, Vec::new()),
        source: source.to_string(),
        memory: None,
        fill: Fill::Plain,
        first: None,
        label,
    })
}

/// Adds the file's name where two would be called the same.
fn name_apart(summaries: &mut [Summary]) {
    let labels: Vec<String> = summaries.iter().map(|summary| summary.label.clone()).collect();
    for summary in summaries {
        if labels.iter().filter(|label| **label == summary.label).count() > 1 {
            summary.label = format!("{} ({})", summary.label, file_name(&summary.source));
        }
        summary.pp.label.clone_from(&summary.label);
        summary.tg.label.clone_from(&summary.label);
    }
}

fn table(summaries: &[Summary]) -> Table {
    use Align::{Left, Right};
    let columns = [("", Left), ("basis", Left), ("devices", Right), ("host", Right), ("pp", Right), ("tg", Right)];
    let mut table = Table::new(&[&columns[..], &[("first token", Right)]].concat());
    let speed = |entry: &Entry| match (entry.measured, entry.predicted) {
        (Some(spread), _) => Unit::TokensPerSecond.spread(spread),
        (None, Some((value, _))) => Unit::TokensPerSecond.show(value),
        (None, None) => "not known".to_string(),
    };
    for summary in summaries {
        let on = |host: bool| {
            let rows = summary.memory.iter().flatten().filter(|(device, _)| is_host(device) == host);
            let total = rows.map(|(_, row)| row.total).try_fold(Bytes(0), Bytes::checked_add);
            match (&summary.memory, total) {
                (Some(_), Some(total)) => size(total),
                _ => "not known".to_string(),
            }
        };
        table.row([
            summary.label.clone(),
            if summary.fill == Fill::Hatched { "predicted" } else { "measured" }.to_string(),
            on(false),
            on(true),
            speed(&summary.pp),
            speed(&summary.tg),
            summary.first.map(|spread| seconds(spread.mean)).unwrap_or_default(),
        ]);
    }
    table
}

/// Whether a key of a memory table is main memory: `Host`, `CPU_REPACK` …
fn is_host(key: &str) -> bool {
    key == HOST || key.starts_with("CPU")
}
