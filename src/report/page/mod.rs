//! What a person sees of a document: a [`Page`] of blocks, which `text`, `markdown` and `html` render. One function a document.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

#[cfg(feature = "cli")]
mod bench;
pub mod checks;
pub mod compare;
#[cfg(feature = "cli")]
pub mod devices;
#[cfg(feature = "cli")]
mod doctor;
mod inspection;
mod known;
#[cfg(feature = "cli")]
mod llama_bench;
#[cfg(feature = "cli")]
mod measurement;
mod memory;
mod placement;
pub mod plan;
pub mod quants;
pub mod rules;
mod speed;
pub mod sweep;
mod together;
#[cfg(feature = "cli")]
mod tune;
mod want;

use std::borrow::Cow;

use anstyle::{AnsiColor, Style};

use super::chart::{Axis, Bar, Bars, Chart, Figure, Key, Lines};
use super::table::Table;
use crate::checkup::Severity;
use compare::Summary;

pub trait Document {
    /// Its pages, the one that answers first.
    fn pages(&self) -> Vec<Page>;

    fn summaries(&self) -> Vec<Summary> {
        Vec::new()
    }

    fn report(&self) -> Report {
        self.pages().into()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Report {
    pub title: String,
    pub about: String,
    pub pages: Vec<Page>,
}

impl From<Vec<Page>> for Report {
    fn from(pages: Vec<Page>) -> Self {
        let named = |page: &Page| (page.title.clone(), dotted([page.kind, &page.about]));
        let (title, about) = pages.first().map(named).unwrap_or_default();
        Self { title, about, pages }
    }
}

impl Report {
    /// The heading of a page; the page that names the report is called by its kind.
    pub fn heading<'p>(&self, page: &'p Page) -> &'p str {
        if page.title == self.title && !page.kind.is_empty() { page.kind } else { &page.title }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Page {
    /// `Plan`, `Benchmark`; empty for what is no document by itself.
    pub kind: &'static str,
    /// Of what it is: the name of a model.
    pub title: String,
    /// The least that tells it from another: `phimoe · 78.00 GiB`.
    pub about: String,
    /// The file it was read from; empty for a document that is no file.
    pub source: String,
    /// With each, whether only `-v`, Markdown and HTML show it: what a terminal shows has to fit one.
    pub blocks: Vec<(bool, Block)>,
}

impl Page {
    pub fn new(kind: &'static str, title: impl Into<String>, about: impl Into<String>) -> Self {
        Self { kind, title: title.into(), about: about.into(), ..Self::default() }
    }

    pub fn push(&mut self, blocks: impl IntoIterator<Item = Block>) {
        self.blocks.extend(blocks.into_iter().map(|block| (false, block)));
    }

    pub fn detail(&mut self, blocks: impl IntoIterator<Item = Block>) {
        self.blocks.extend(blocks.into_iter().map(|block| (true, block)));
    }
}

/// The parts that are not empty, between dots.
pub fn dotted<T: AsRef<str>>(parts: impl IntoIterator<Item = T>) -> String {
    let parts: Vec<T> = parts.into_iter().filter(|part| !part.as_ref().is_empty()).collect();
    parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" · ")
}

fn named<'n>(name: Option<&'n str>, path: &'n str) -> &'n str {
    name.filter(|name| !name.trim().is_empty()).unwrap_or(path)
}

/// The last part of a path, on any system.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// ` at depth 4,096`; nothing for an empty context.
pub(super) fn at_depth(depth: u32) -> String {
    if depth > 0 { format!(" at depth {}", crate::number::thousands(depth.into())) } else { String::new() }
}

/// Something to show. All text may be untrusted: renderers escape it.
#[derive(Debug, Clone)]
pub enum Block {
    Heading(String),
    Prose(String),
    Verdict(Verdict, String),
    KeyFigures(Vec<KeyFigure>),
    /// A table under its caption, which may be empty.
    Table(String, Table),
    Figure(Figure),
    /// A command to paste, under what it is (may be empty); a terminal shows it last.
    Command(String, String),
    /// What to know: how bad it is, what it is, what to do.
    Note(Verdict, String, Option<String>),
    Checklist(Vec<Item>),
    /// Text that a model or program wrote, kept whole, under a label.
    Output(String, String),
    WhatIf(WhatIf),
}

impl IntoIterator for Block {
    type Item = Self;
    type IntoIter = std::iter::Once<Self>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self)
    }
}

impl Block {
    pub fn table(caption: &str, table: Table) -> Option<Self> {
        (!table.rows.is_empty()).then(|| Self::Table(caption.into(), table))
    }

    /// Bars of one group.
    pub fn bars(title: &str, text: String, legend: Vec<Key>, axis: Axis, bars: Vec<Bar>, table: Table) -> Self {
        let chart = Chart::Bars(vec![Bars { label: String::new(), axis, bars, limit: None }]);
        Self::Figure(Figure { title: title.into(), text, legend, chart, table })
    }

    /// Curves, where one has two points or more.
    pub fn lines(title: &str, text: String, lines: Lines, table: Table) -> Option<Self> {
        let has_curve = lines.series.iter().any(|series| series.points.len() > 1);
        let chart = Chart::Lines(lines);
        has_curve.then(|| Self::Figure(Figure { title: title.into(), text, legend: Vec::new(), chart, table }))
    }

    pub fn checklist(heading: &str, items: Vec<Item>) -> Vec<Self> {
        if items.is_empty() { Vec::new() } else { vec![Self::Heading(heading.into()), Self::Checklist(items)] }
    }

    /// A lint or a warning, with its code.
    pub fn note(severity: Severity, message: &str, code: &str, hint: Option<&str>) -> Self {
        let verdict = match severity {
            Severity::Error => Verdict::Bad,
            Severity::Warning => Verdict::Caution,
            Severity::Info => Verdict::Open,
        };
        let hint = hint.filter(|hint| !hint.is_empty()).map(str::to_string);
        Self::Note(verdict, format!("{message} [{code}]"), hint)
    }
}

/// One number that matters. `value` and `note` read as one phrase: `8,192` `tokens, f16 cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFigure {
    pub label: String,
    pub value: String,
    pub note: String,
}

impl KeyFigure {
    pub fn new(label: &str, value: impl Into<String>, note: impl Into<String>) -> Self {
        Self { label: label.into(), value: value.into(), note: note.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    Caution,
    Bad,
    Open,
    Skipped,
}

/// How a verdict is shown.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// It says the same as the colour.
    pub mark: &'static str,
    /// For readers who do not see the mark.
    pub word: &'static str,
    /// What a note is called.
    pub note: &'static str,
    /// Of the style sheet.
    pub class: &'static str,
    pub style: Style,
}

impl Verdict {
    pub fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }

    pub fn look(self) -> Look {
        let (mark, word, note, class, style) = match self {
            Self::Good => ("✓", "yes", "note", "good", AnsiColor::Green.on_default()),
            Self::Caution => ("!", "caution", "warning", "caution", AnsiColor::Yellow.on_default()),
            Self::Bad => ("✗", "no", "error", "bad", AnsiColor::Red.on_default().bold()),
            Self::Open => ("–", "not assessed", "note", "open", AnsiColor::Cyan.on_default()),
            Self::Skipped => ("–", "skipped", "note", "open", AnsiColor::Cyan.on_default()),
        };
        Look { mark, word, note, class, style }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub verdict: Verdict,
    pub what: String,
    pub why: String,
    pub hint: Option<String>,
}

/// Precomputed points of a plan over one thing that changes, or two.
#[derive(Debug, Clone)]
pub struct WhatIf {
    pub axes: Vec<Slider>,
    /// The points, a row each: every value of the last axis at the first value of the one before, and so on.
    pub table: Table,
    pub commands: Vec<String>,
    pub start: usize,
}

#[derive(Debug, Clone)]
pub struct Slider {
    /// `budget`, `context`, `file`.
    pub what: Cow<'static, str>,
    pub values: Vec<String>,
}
