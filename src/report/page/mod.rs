//! A report as parts: what `html` and `markdown` both render.

pub mod markdown;

use super::chart::Figure;
use super::table::Table;

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
    /// Not known, skipped, or only told.
    Open,
}

impl Verdict {
    /// A mark that says the same as the colour.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Caution => "!",
            Self::Bad => "✗",
            Self::Open => "–",
        }
    }

    /// In a word, for who does not see the mark.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "yes",
            Self::Caution => "caution",
            Self::Bad => "no",
            Self::Open => "not assessed",
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

/// Precomputed points of a plan over one thing that changes.
#[derive(Debug, Clone)]
pub struct WhatIf {
    /// What changes: `budget`.
    pub what: String,
    /// The points, a row each; the first column is what changes.
    pub table: Table,
    /// The command of each point.
    pub commands: Vec<String>,
    /// Which point is shown first.
    pub start: usize,
}
