//! What a person sees of a document: a [`Page`] of blocks, which `text`, `markdown` and `html` render. One function a document.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod bench;
pub mod compare;
pub mod devices;
mod doctor;
mod environment;
mod inspection;
mod llama_bench;
mod measurement;
mod memory;
mod placement;
pub mod plan;
pub mod rules;
mod speed;
pub mod sweep;
mod tune;
mod validation;

use std::borrow::Cow;

use super::chart::Figure;
use super::table::Table;
use crate::checkup::Severity;
use compare::Summary;

/// A document that can be shown.
pub trait Document {
    /// Its pages, the one that answers first.
    fn pages(&self) -> Vec<Page>;

    /// What of it can stand beside other documents.
    fn summaries(&self) -> Vec<Summary> {
        Vec::new()
    }

    /// The report on this document alone.
    fn report(&self) -> Report {
        Report::from(self.pages())
    }
}

#[derive(Debug, Clone, Default)]
pub struct Report {
    pub title: String,
    pub about: String,
    pub pages: Vec<Page>,
}

impl From<Vec<Page>> for Report {
    /// The pages of one document, whose first page names them all.
    fn from(pages: Vec<Page>) -> Self {
        let (title, about) = pages.first().map(|page| (page.title.clone(), page.subtitle())).unwrap_or_default();
        Self { title, about, pages }
    }
}

impl Report {
    /// The heading of a page; the page that names the report is called by its kind.
    pub fn heading<'p>(&self, page: &'p Page) -> &'p str {
        if page.title == self.title && !page.kind.is_empty() { page.kind } else { &page.title }
    }
}

/// What is shown of one thing.
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
    pub parts: Vec<Part>,
}

/// A block and where it is shown.
#[derive(Debug, Clone)]
pub struct Part {
    /// Whether only `-v`, Markdown and HTML show it: what a terminal shows has to fit one.
    pub is_detail: bool,
    pub block: Block,
}

impl Page {
    pub fn new(kind: &'static str, title: impl Into<String>, about: impl Into<String>) -> Self {
        Self { kind, title: title.into(), about: about.into(), ..Self::default() }
    }

    /// Adds a block, or nothing.
    pub fn push(&mut self, block: impl Into<Option<Block>>) {
        self.parts.extend(block.into().map(|block| Part { is_detail: false, block }));
    }

    /// Adds a block of the long forms, or nothing.
    pub fn detail(&mut self, block: impl Into<Option<Block>>) {
        self.parts.extend(block.into().map(|block| Part { is_detail: true, block }));
    }

    pub fn push_all<B: Into<Option<Block>>>(&mut self, blocks: impl IntoIterator<Item = B>) {
        blocks.into_iter().for_each(|block| self.push(block));
    }

    pub fn detail_all<B: Into<Option<Block>>>(&mut self, blocks: impl IntoIterator<Item = B>) {
        blocks.into_iter().for_each(|block| self.detail(block));
    }

    /// The line under the title: what kind of document it is, and of what.
    pub fn subtitle(&self) -> String {
        dotted([self.kind, &self.about])
    }
}

/// The parts that are not empty, between dots.
pub fn dotted<T: AsRef<str>>(parts: impl IntoIterator<Item = T>) -> String {
    let mut out = String::new();
    for part in parts.into_iter().filter(|part| !part.as_ref().is_empty()) {
        if !out.is_empty() {
            out += " · ";
        }
        out += part.as_ref();
    }
    out
}

/// The name of a model, else its path.
fn named<'n>(name: Option<&'n str>, path: &'n str) -> &'n str {
    name.filter(|name| !name.trim().is_empty()).unwrap_or(path)
}

/// The last part of a path, on any system.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
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

impl Block {
    /// A table, where it has a row.
    pub fn filled(caption: &str, table: Table) -> Option<Self> {
        (!table.is_empty()).then(|| Self::Table(caption.into(), table))
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

    /// In a word, for readers who do not see the mark.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "yes",
            Self::Caution => "caution",
            Self::Bad => "no",
            Self::Open => "not assessed",
            Self::Skipped => "skipped",
        }
    }

    pub fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// One line of a checklist.
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
    pub axes: Vec<Axis>,
    /// The points, a row each: every value of the last axis at the first value of the one before, and so on.
    pub table: Table,
    pub commands: Vec<String>,
    pub start: usize,
}

/// One thing that a reader may change.
#[derive(Debug, Clone)]
pub struct Axis {
    /// `budget`, `context`, `file`.
    pub what: Cow<'static, str>,
    pub values: Vec<String>,
}
