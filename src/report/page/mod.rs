//! A report as parts: what `html` and `markdown` both render.

mod bench;
mod compare;
mod environment;
mod gaps;
mod inspection;
mod launched;
mod llama_bench;
pub mod markdown;
mod measurement;
pub(super) mod memory;
mod placement;
mod plan;
pub mod read;
pub(super) mod speed;
mod sweep;
mod tune;
mod validation;
pub mod view;

use super::chart::Figure;
use super::table::Table;
use read::{Document, Source};

/// The report on documents: what can be compared first, then each in the order given.
pub fn of(sources: &[Source], title: Option<&str>) -> Page {
    let mut sections: Vec<Section> = compare::section(sources).into_iter().collect();
    for Source { name, document } in sources {
        match document {
            Document::Inspection(model) => sections.push(inspection::section(model, name)),
            Document::Plan(plan) => sections.push(plan::section(plan, name)),
            Document::Sweep(sweep) => sections.push(sweep::section(sweep, name)),
            Document::Measurement(measured) => sections.push(measurement::section(measured, name)),
            Document::Bench(bench) => sections.push(bench::section(bench, name)),
            Document::Validation(validation) => sections.extend(validation::sections(validation, name)),
            Document::Launched(launched) => sections.push(launched::section(launched, name)),
            Document::Tuning(tuning) => sections.push(tune::section(tuning, name)),
            Document::LlamaBench(rows) => sections.push(llama_bench::section(rows, name)),
        }
    }
    tell_apart(&mut sections);
    let own = match (sections.as_mut_slice(), sources) {
        ([only], [source]) => {
            let kind = source.document.kind().to_string();
            (std::mem::replace(&mut only.heading, kind), source.document.about())
        }
        ([first, ..], [source]) => (first.heading.clone(), source.document.about()),
        _ => (format!("Report on {} documents", sources.len()), String::new()),
    };
    Page { title: title.map_or(own.0, str::to_string), subtitle: own.1, sections }
}

/// The report on one document, from what its JSON says and nothing else.
pub fn of_document(document: &impl serde::Serialize) -> Result<Page, Error> {
    let sources = read::read("this document", &serde_json::to_string(document)?)?;
    let mut page = of(&sources, None).without_sources();
    // A plan with others around it: the page is the plan's.
    if let ([Source { document: plan @ Document::Plan(_), .. }, _, ..], [first, ..]) =
        (sources.as_slice(), page.sections.as_mut_slice())
    {
        page.title = std::mem::replace(&mut first.heading, plan.kind().to_string());
        page.subtitle = plan.about();
    }
    Ok(page)
}

/// A document that cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be written as JSON.
    #[error("the document cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is none that a report shows.
    #[error(transparent)]
    Read(#[from] read::Error),
}

/// One report.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What it is about.
    pub title: String,
    /// A line under the title.
    pub subtitle: String,
    /// The parts, in reading order.
    pub sections: Vec<Section>,
}

/// Adds the file to headings that are the same.
fn tell_apart(sections: &mut [Section]) {
    let headings: Vec<String> = sections.iter().map(|section| section.heading.clone()).collect();
    for section in sections.iter_mut().filter(|section| !section.source.is_empty()) {
        if headings.iter().filter(|heading| **heading == section.heading).count() > 1 {
            section.heading = format!("{} ({})", section.heading, file_name(&section.source));
        }
    }
}

/// The last part of a path, on any system.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

impl Page {
    /// The page of a document that is no file yet.
    fn without_sources(mut self) -> Self {
        self.sections.iter_mut().for_each(|section| section.source.clear());
        self
    }
}

/// A part with a heading.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Its heading.
    pub heading: String,
    /// Which document it is from: a path.
    pub source: String,
    /// What it holds.
    pub blocks: Vec<Block>,
}

/// What a section holds. All text may be a stranger's: renderers escape it.
#[derive(Debug, Clone)]
pub enum Block {
    /// A heading below the section's.
    Heading(String),
    /// A paragraph.
    Prose(String),
    /// Yes or no, in a sentence.
    Verdict(Verdict, String),
    /// The few numbers that matter.
    KeyFigures(Vec<KeyFigure>),
    /// A table with what it shows.
    Table(String, Table),
    /// A chart.
    Figure(Figure),
    /// A command line to paste.
    Command(String),
    /// What to know: how bad it is, what it is, what to do.
    Note(Verdict, String, Option<String>),
    /// What was to be shown, and whether it was.
    Checklist(Vec<Item>),
    /// Text that a model or program wrote, kept whole, under a label.
    Output(String, String),
    /// Points that a reader may step through: what changes, and the table of them.
    WhatIf(WhatIf),
}

/// One number that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFigure {
    /// What it is.
    pub label: String,
    /// The number with its unit.
    pub value: String,
    /// What it stands on.
    pub note: String,
}

/// How something came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Good,
    /// Worth a look.
    Caution,
    /// No.
    Bad,
    /// Not known, or only told.
    Open,
    /// It was not run.
    Skipped,
}

impl Verdict {
    /// A mark that says the same as the colour.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Caution => "!",
            Self::Bad => "✗",
            Self::Open | Self::Skipped => "–",
        }
    }

    /// In a word, for who does not see the mark.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "yes",
            Self::Caution => "caution",
            Self::Bad => "no",
            Self::Open => "not assessed",
            Self::Skipped => "skipped",
        }
    }

    /// Yes or no.
    pub fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// One line of a checklist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// How it came out.
    pub verdict: Verdict,
    /// What was to be shown.
    pub what: String,
    /// The evidence, or the reason.
    pub why: String,
}

/// Precomputed points of a plan over one thing that changes, or two.
#[derive(Debug, Clone)]
pub struct WhatIf {
    /// What changes.
    pub axes: Vec<Axis>,
    /// The points, a row each: every value of the last axis at the first value of the one before, and so on.
    pub table: Table,
    /// The command of each point.
    pub commands: Vec<String>,
    /// Which point is shown first.
    pub start: usize,
}

/// One thing that a reader may change.
#[derive(Debug, Clone)]
pub struct Axis {
    /// `budget`, `context`, `file`.
    pub what: String,
    /// Its values, as people read them.
    pub values: Vec<String>,
}
