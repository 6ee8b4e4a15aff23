//! What a chart shows: plain numbers with labels, drawn by `svg` and told by the table beside it.

use super::table::Table;

/// A chart, what it says in words, and the same numbers as a table.
#[derive(Debug, Clone)]
pub struct Figure {
    pub title: String,
    /// How to read it, in a sentence.
    pub text: String,
    pub legend: Vec<Key>,
    pub chart: Chart,
    /// The same numbers.
    pub table: Table,
}

/// One entry of a legend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub label: String,
    pub tone: Tone,
    pub fill: Fill,
}

/// How an area is filled: what was predicted must not look like what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Measured, or on a device.
    Plain,
    /// Predicted, or on the host.
    Hatched,
}

/// A colour by its meaning; the style sheet knows which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Model,
    Context,
    Compute,
    Overhead,
    /// Main memory.
    Host,
    /// The n-th thing compared, from 0.
    Series(usize),
}

/// How many colours things that are compared have; after them they repeat, with other marks.
pub const SERIES: usize = 6;

impl Tone {
    /// Its class in the style sheet.
    pub fn class(self) -> String {
        match self {
            Self::Model => "t-model".into(),
            Self::Context => "t-context".into(),
            Self::Compute => "t-compute".into(),
            Self::Overhead => "t-overhead".into(),
            Self::Host => "t-host".into(),
            Self::Series(at) => format!("t-{}", at % SERIES),
        }
    }
}

/// What is drawn.
#[derive(Debug, Clone)]
pub enum Chart {
    /// Stacked bars in groups, each group to its own scale.
    Stacks(Vec<Stack>),
    /// Bars to one scale.
    Bars(Bars),
    /// Curves.
    Lines(Lines),
    /// What is where: a row a kind, a column a block.
    Grid(Grid),
}

/// Bars of one thing, all to one scale, in bytes.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Whose: `CUDA0`.
    pub label: String,
    /// From top to bottom.
    pub bars: Vec<StackedBar>,
    /// A line that they must not cross, and what it is.
    pub limit: Option<(String, u64)>,
}

/// One bar of parts.
#[derive(Debug, Clone)]
pub struct StackedBar {
    /// `predicted`, `measured`, the name of a run.
    pub label: String,
    /// Its sum as people read it.
    pub value: String,
    pub fill: Fill,
    /// From left to right, in bytes.
    pub parts: Vec<(Tone, u64)>,
}

/// Bars to one scale from zero.
#[derive(Debug, Clone)]
pub struct Bars {
    /// What the numbers are: `tokens/s`.
    pub unit: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    pub label: String,
    /// Its number as people read it.
    pub value: String,
    pub length: f64,
    /// Half the length of its error bar: one standard deviation, or what a prediction may be off.
    pub spread: Option<f64>,
    /// The samples it is the mean of.
    pub samples: Vec<f64>,
    pub tone: Tone,
    pub fill: Fill,
}

/// Curves over a common axis.
#[derive(Debug, Clone)]
pub struct Lines {
    /// What the horizontal axis counts: `tokens in the context`.
    pub x: String,
    /// What the vertical axis counts: `tokens/s`.
    pub y: String,
    pub series: Vec<Series>,
    /// Levels drawn across, the lowest first: the median, the 95th percentile.
    pub levels: Vec<(String, f64)>,
    /// Whether points are many and drawn as a line alone.
    pub dense: bool,
    pub x_is_bytes: bool,
}

/// One curve.
#[derive(Debug, Clone)]
pub struct Series {
    pub label: String,
    /// Its place among the series, which gives colour, mark and dash.
    pub at: usize,
    /// Its points, x ascending.
    pub points: Vec<Point>,
}

/// One point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Half the length of its error bar.
    pub spread: Option<f64>,
}

/// What is where.
#[derive(Debug, Clone)]
pub struct Grid {
    /// How many blocks.
    pub columns: usize,
    /// The kinds, top to bottom.
    pub rows: Vec<GridRow>,
}

/// One kind of tensor: `ffn_up_exps`.
#[derive(Debug, Clone)]
pub struct GridRow {
    pub label: String,
    pub runs: Vec<Run>,
}

/// Neighbouring blocks whose tensor of a kind is in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub first: usize,
    pub last: usize,
    /// What the cell says on request: `blocks 0–12: CPU, 6.00 GiB`.
    pub text: String,
    pub tone: Tone,
    pub fill: Fill,
}
