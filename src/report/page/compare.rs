//! Several documents in one report: what can be compared side by side first, then each in the order given.

use std::collections::BTreeMap;

use super::memory::{self, Memory, Side, size};
use super::speed::{Entry, Unit::Rate, chart};
use super::{Block, Document, Page, Report, file_name};
use crate::bytes::Bytes;
use crate::memory::HOST;
use crate::number::seconds;
use crate::report::chart::Fill;
use crate::report::table::{Table, row};
use crate::speed::{Phase, Speed};
use crate::stats::Spread;

/// A document, and the file that it was read from.
pub struct Source {
    pub name: String,
    pub document: Box<dyn Document>,
}

#[derive(Default)]
pub struct Summary {
    /// What it is of; empty where only its file names it.
    pub label: String,
    pub source: String,
    pub memory: Option<Memory>,
    pub is_predicted: bool,
    pub pp: Entry,
    pub tg: Entry,
    pub first: Option<Spread>,
}

impl Summary {
    pub(super) fn measured(label: impl Into<String>, pp: Option<Spread>, tg: Option<Spread>) -> Self {
        let entry = |spread| Entry { measured: spread, ..Entry::default() };
        Self { label: label.into(), pp: entry(pp), tg: entry(tg), ..Self::default() }
    }

    pub(super) fn predicted(label: &str, memory: Option<Memory>, speed: Option<&Speed>) -> Self {
        let entry = |phase| speed.map(|speed| Entry::predicted("", speed, phase)).unwrap_or_default();
        let (pp, tg) = (entry(Phase::Prompt), entry(Phase::Generate));
        Self { label: label.into(), memory, is_predicted: true, pp, tg, ..Self::default() }
    }
}

pub fn report(sources: &[Source], title: Option<&str>) -> Report {
    let mut pages: Vec<Page> = page(sources).into_iter().collect();
    for source in sources {
        for mut page in source.document.pages() {
            // The pages of a validation after its first name their models' files.
            if page.source.is_empty() {
                page.source.clone_from(&source.name);
            }
            pages.push(page);
        }
    }
    tell_apart(&mut pages, |page| (&mut page.title, &page.source));
    let mut report = match sources {
        [_] => Report::from(pages),
        _ => Report { title: format!("Report on {} documents", sources.len()), about: String::new(), pages },
    };
    if let Some(title) = title {
        report.title = title.to_string();
    }
    report
}

/// Adds the file to names that are the same, and puts it in place of one that is empty.
fn tell_apart<T>(all: &mut [T], of: impl Fn(&mut T) -> (&mut String, &String)) {
    for one in &mut *all {
        let (name, source) = of(one);
        if name.is_empty() {
            *name = file_name(source).to_string();
        }
    }
    let names: Vec<String> = all.iter_mut().map(|one| of(one).0.clone()).collect();
    for one in all {
        let (name, source) = of(one);
        if !source.is_empty() && names.iter().filter(|other| *other == name).count() > 1 {
            *name = format!("{name} ({})", file_name(source));
        }
    }
}

fn page(sources: &[Source]) -> Option<Page> {
    let mut summaries: Vec<Summary> = Vec::new();
    for source in sources {
        let named = |summary| Summary { source: source.name.clone(), ..summary };
        summaries.extend(source.document.summaries().into_iter().map(named));
    }
    if summaries.len() < 2 {
        return None;
    }
    tell_apart(&mut summaries, |summary| (&mut summary.label, &summary.source));
    let speed = |title: &str, of: fn(&Summary) -> &Entry| {
        let entry = |summary: &Summary| Entry { label: summary.label.clone(), ..of(summary).clone() };
        chart(title, Rate, summaries.iter().map(entry))
    };
    let mut page = Page::new("", "Side by side", "");
    page.push(Block::Table(String::new(), table(&summaries)));
    page.push(speed("Generation", |summary| &summary.tg));
    page.push(speed("Prompt", |summary| &summary.pp));
    let mut sides: Vec<Side<'_>> = Vec::new();
    for Summary { label, memory, is_predicted, .. } in &summaries {
        let fill = if *is_predicted { Fill::Hatched } else { Fill::Plain };
        sides.extend(memory.as_ref().map(|memory| (label.as_str(), memory, fill)));
    }
    if !sides.is_empty() {
        page.push(Block::Figure(memory::figure("Memory by device", &sides, &BTreeMap::new())));
    }
    Some(page)
}

fn table(summaries: &[Summary]) -> Table {
    let speed = |entry: &Entry| match (entry.measured, entry.predicted) {
        (None, Some((value, _))) => Rate.show(value),
        (measured, _) => Rate.spread(measured),
    };
    // Main memory is `Host`, `CPU_REPACK` …
    let is_host = |key: &str| key == HOST || key.starts_with("CPU");
    let rows = summaries.iter().map(|summary| {
        let on = |host: bool| {
            let rows = summary.memory.as_ref()?.iter().filter(|(device, _)| is_host(device) == host);
            rows.map(|(_, row)| row.total).try_fold(Bytes(0), Bytes::checked_add).map(size)
        };
        let [devices, host] = [on(false), on(true)].map(|size| size.unwrap_or_else(|| "not known".to_string()));
        let basis = if summary.is_predicted { "predicted" } else { "measured" };
        let first = summary.first.map(|spread| seconds(spread.mean)).unwrap_or_default();
        row![summary.label, basis, devices, host, speed(&summary.pp), speed(&summary.tg), first]
    });
    Table::rows_of("|basis|>devices|>host|>pp|>tg|>first token", rows)
}
