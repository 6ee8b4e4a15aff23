//! Several documents in one report: what can be compared side by side first, then each in the order given.

use std::collections::BTreeMap;

use super::memory::{self, Memory, Side, size};
use super::speed::{Entry, Unit, chart};
use super::{Block, Page, Report, file_name};
use crate::bytes::Bytes;
use crate::measurement::Spread;
use crate::memory::HOST;
use crate::number::seconds;
use crate::report::chart::Fill;
use crate::report::read::Source;
use crate::report::table::Table;
use crate::speed::Speed;

/// What of a document can stand beside another.
pub struct Summary {
    /// What it is of; empty where only its file names it.
    pub label: String,
    pub source: String,
    pub memory: Option<Memory>,
    pub fill: Fill,
    pub pp: Entry,
    pub tg: Entry,
    /// Seconds to the first token.
    pub first: Option<Spread>,
}

impl Summary {
    pub(super) fn measured(label: impl Into<String>) -> Self {
        let entry = Entry::measured("", None, Vec::new());
        Self {
            label: label.into(),
            source: String::new(),
            memory: None,
            fill: Fill::Plain,
            pp: entry.clone(),
            tg: entry,
            first: None,
        }
    }

    pub(super) fn predicted(label: &str, memory: Option<Memory>, speed: Option<&Speed>) -> Self {
        let mut summary = Self { memory, fill: Fill::Hatched, ..Self::measured(label) };
        summary.pp.predicted = speed.map(|speed| (speed.pp, speed.uncertainty));
        summary.tg.predicted = speed.map(|speed| (speed.tg, speed.uncertainty));
        summary
    }
}

/// The report on documents from files.
pub fn report(sources: &[Source], title: Option<&str>) -> Report {
    let of = |source: &Source| {
        let pages = source.document.pages();
        // The pages of a validation after its first name their models' files.
        let name = |mut page: Page| {
            if page.source.is_empty() {
                page.source.clone_from(&source.name);
            }
            page
        };
        pages.into_iter().map(name).collect::<Vec<_>>()
    };
    let mut pages: Vec<Page> = page(sources).into_iter().chain(sources.iter().flat_map(of)).collect();
    tell_apart(&mut pages);
    let mut report = match sources {
        [_] => Report::from(pages),
        _ => Report { title: format!("Report on {} documents", sources.len()), about: String::new(), pages },
    };
    if let Some(title) = title {
        report.title = title.to_string();
    }
    report
}

/// Adds the file to titles that are the same.
fn tell_apart(pages: &mut [Page]) {
    let titles: Vec<String> = pages.iter().map(|page| page.title.clone()).collect();
    for page in pages.iter_mut().filter(|page| !page.source.is_empty()) {
        if titles.iter().filter(|title| **title == page.title).count() > 1 {
            page.title = format!("{} ({})", page.title, file_name(&page.source));
        }
    }
}

/// The page that compares, where two or more can be.
fn page(sources: &[Source]) -> Option<Page> {
    let of = |source: &Source| {
        let name = |summary: Summary| Summary { source: source.name.clone(), ..summary };
        source.document.summaries().into_iter().map(name).collect::<Vec<_>>()
    };
    let mut summaries: Vec<Summary> = sources.iter().flat_map(of).collect();
    if summaries.len() < 2 {
        return None;
    }
    name_apart(&mut summaries);
    let speed = |title: &str, of: fn(&Summary) -> &Entry| {
        chart(title, Unit::TokensPerSecond, summaries.iter().map(|summary| of(summary).clone()))
    };
    let side = |summary: &'_ Summary| Some((summary.label.clone(), summary.memory.clone()?, summary.fill));
    let sides: Vec<(String, Memory, Fill)> = summaries.iter().filter_map(side).collect();
    let sides: Vec<Side<'_>> = sides.iter().map(|(label, memory, fill)| Side { label, memory, fill: *fill }).collect();
    let mut page = Page::new("", "Side by side", "");
    page.push(Block::Table(String::new(), table(&summaries)));
    page.push(speed("Generation", |summary| &summary.tg));
    page.push(speed("Prompt", |summary| &summary.pp));
    if !sides.is_empty() {
        page.push(Block::Figure(memory::figure("Memory by device", &sides, &BTreeMap::new())));
    }
    Some(page)
}

/// Adds the file's name where two would be called the same, or nothing else names one.
fn name_apart(summaries: &mut [Summary]) {
    for summary in summaries.iter_mut().filter(|summary| summary.label.is_empty()) {
        summary.label = file_name(&summary.source).to_string();
    }
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
    let mut table = Table::of("|basis|>devices|>host|>pp|>tg|>first token");
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
