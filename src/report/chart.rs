//! Charts as inline SVG: bars and lines. The table beside each tells the same numbers.
//!
//! Horizontal places are percentages, so that text keeps its size on every screen; labels are HTML beside. Colours come from the
//! page's style sheet by class, so that light, dark and paper need no second drawing.

use maud::{Markup, PreEscaped, html};

use super::table::Table;
use crate::bytes::{GIB, MIB};
use crate::number::thousands;

#[derive(Debug, Clone)]
pub struct Figure {
    pub title: String,
    /// How to read it, in a sentence.
    pub text: String,
    pub legend: Vec<Key>,
    pub chart: Chart,
    pub table: Table,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub label: String,
    pub tone: Tone,
    pub fill: Fill,
}

/// How an area is filled: what was predicted must not look like what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    Plain,
    Hatched,
}

/// A colour by its meaning; the style sheet knows which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Model,
    Context,
    Compute,
    Overhead,
    Host,
    /// The n-th thing compared, from 0.
    Series(usize),
}

/// Marks of a series: disc, square, triangle, diamond, cross, bar. As many colours; after them both repeat.
const MARKS: [&str; 6] = [
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-4,-4h8v8h-8z",
    "M0,-5l5,9h-10z",
    "M0,-5.5l5,5.5l-5,5.5l-5,-5.5z",
    "M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
    "M-5,-2h10v4h-10z",
];

impl Tone {
    fn class(self) -> String {
        match self {
            Self::Series(at) => format!("t-{}", at % MARKS.len()),
            named => format!("t-{}", format!("{named:?}").to_lowercase()),
        }
    }
}

#[derive(Debug, Clone)]
pub enum Chart {
    /// Groups of bars, each to its own scale.
    Bars(Vec<Bars>),
    Lines(Lines),
}

#[derive(Debug, Clone)]
pub struct Bars {
    /// Whose: `CUDA0`; may be empty.
    pub label: String,
    pub axis: Axis,
    pub bars: Vec<Bar>,
    /// A line that they must not cross, and what it is.
    pub limit: Option<(String, f64)>,
}

#[derive(Debug, Clone)]
pub enum Axis {
    Bytes,
    /// What the numbers are: `tokens/s`.
    Number(String),
    /// A map: as many columns as the model has blocks.
    Blocks(usize),
}

#[derive(Debug, Clone)]
pub struct Bar {
    /// `predicted`, `measured`, the name of a run or of a kind of tensor.
    pub label: String,
    pub value: String,
    pub parts: Vec<Part>,
    /// Half the length of its error bar: one standard deviation, or what a prediction may be off.
    pub spread: Option<f64>,
    pub samples: Vec<f64>,
}

/// A part of a bar, in the units of the axis.
#[derive(Debug, Clone)]
pub struct Part {
    pub from: f64,
    pub length: f64,
    pub tone: Tone,
    pub fill: Fill,
    /// What it says on request: `blocks 0–12: CPU, 6.00 GiB`; may be empty.
    pub text: String,
}

impl Bar {
    pub fn stacked(label: &str, value: String, fill: Fill, parts: impl IntoIterator<Item = (Tone, f64)>) -> Self {
        let mut from = 0.0;
        let part = |(tone, length)| {
            from += length;
            Part { from: from - length, length, tone, fill, text: String::new() }
        };
        let parts = parts.into_iter().map(part).collect();
        Self { label: label.into(), value, parts, spread: None, samples: Vec::new() }
    }

    fn end(&self) -> f64 {
        self.parts.iter().map(|part| part.from + part.length).fold(0.0, f64::max)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// What the horizontal axis counts: `tokens in the context`.
    pub x: String,
    /// What the vertical axis counts: `tokens/s`.
    pub y: String,
    pub series: Vec<Series>,
    /// Levels drawn across, the lowest first: the median, the 95th percentile.
    pub levels: Vec<(String, f64)>,
    pub x_is_bytes: bool,
}

#[derive(Debug, Clone)]
pub struct Series {
    pub label: String,
    /// Its place among the series, which gives colour, mark and dash.
    pub at: usize,
    pub points: Vec<Point>,
}

impl Series {
    fn class(&self) -> String {
        Tone::Series(self.at).class()
    }

    fn drawn(&self, x: &str, y: &str) -> Markup {
        html! { svg.mark x=(x) y=(y) { path.(self.class()) d=(MARKS[self.at % MARKS.len()]) {} } }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub spread: Option<f64>,
}

/// Shapes that other drawings refer to: the hatching of what is predicted or on the host. Once a page, before any chart.
pub fn definitions() -> Markup {
    html! {
        svg.defs width="0" height="0" aria-hidden="true" focusable="false" {
            defs {
                pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.stripe width="2.5" height="6" {}
                }
            }
        }
    }
}

pub fn drawn(figure: &Figure, id: &str) -> Markup {
    match &figure.chart {
        Chart::Bars(groups) => html! { @for group in groups { (bars(group, id)) } },
        Chart::Lines(lines) => {
            let is_named = lines.series.len() > 1;
            html! {
                div.plot.named[is_named] {
                    // For screens without room beside the plot, where the ends of the curves are named.
                    @if is_named { (keys(lines.series.iter().map(|series| (series.drawn("7", "7"), &series.label)))) }
                    p.unit { (lines.y) }
                    (plot(lines, id, &figure.title, &figure.text))
                    p.unit.x-unit { (lines.x) }
                }
            }
        }
    }
}

pub fn legend(legend: &[Key]) -> Markup {
    let area = |key: &Key| area(key.tone, key.fill, "0", "100%");
    html! { @if !legend.is_empty() { (keys(legend.iter().map(|key| (area(key), &key.label)))) } }
}

fn keys<'k>(entries: impl Iterator<Item = (Markup, &'k String)>) -> Markup {
    html! {
        ul.legend {
            @for (drawing, label) in entries {
                li { svg width="14" height="14" aria-hidden="true" focusable="false" { (drawing) } (label) }
            }
        }
    }
}

fn area(tone: Tone, fill: Fill, x: &str, width: &str) -> Markup {
    html! {
        rect.(tone.class()) x=(x) width=(width) height="100%" {}
        @if fill == Fill::Hatched { rect.hatched x=(x) width=(width) height="100%" {} }
    }
}

/// Steps of an axis under bars, and of the axes of curves.
const BAR_STEPS: f64 = 4.0;
const STEPS: f64 = 5.0;

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn bars(group: &Bars, id: &str) -> Markup {
    let reach = |bar: &Bar| bar.samples.iter().copied().fold(bar.end() + bar.spread.unwrap_or(0.0), f64::max);
    let limit = group.limit.as_ref().map(|(_, limit)| *limit);
    let longest = group.bars.iter().map(reach).chain(limit).fold(0.0, f64::max);
    let (scale, marks) = match &group.axis {
        Axis::Bytes => (longest.max(1.0), size_ticks(0.0, longest.max(1.0), BAR_STEPS)),
        Axis::Number(_) => {
            let scale = ceiling(longest, BAR_STEPS);
            (scale, ticks(0.0, scale, BAR_STEPS))
        }
        Axis::Blocks(columns) => {
            let mut whole = ticks(0.0, *columns as f64 - 1.0, 8.0);
            whole.retain(|(at, _)| at.fract() == 0.0);
            ((*columns).max(1) as f64, whole.into_iter().map(|(at, label)| (at + 0.5, label)).collect())
        }
    };
    let is_map = matches!(group.axis, Axis::Blocks(_));
    let at = |value: f64| across(percent(value, 0.0, scale));
    let ruling = format!("{id}-ruling");
    html! {
        div.group {
            @if is_map {
                svg.defs width="0" height="0" aria-hidden="true" focusable="false" {
                    defs {
                        pattern id=(ruling) width=(format!("{:.6}", 1.0 / scale)) height="1" { rect.rule width="1" height="40" {} }
                    }
                }
            } @else if !group.label.is_empty() || group.limit.is_some() {
                div.group-head {
                    span.group-name { (group.label) }
                    @if let Some((what, _)) = &group.limit { span.limit-key { (what) } }
                }
            }
            div.rows.map[is_map] {
                @for bar in &group.bars {
                    span.row-name { (bar.label) }
                    svg.(if is_map { "cell" } else { "bar" }) aria-hidden="true" focusable="false" {
                        @if !is_map {
                            @for (mark, _) in &marks { line.gridline x1=(at(*mark)) x2=(at(*mark)) y1="-15%" y2="115%" {} }
                        }
                        (parts(bar, &at))
                        @if let Some(limit) = limit {
                            @for class in ["limit-halo", "limit"] { line.(class) x1=(at(limit)) x2=(at(limit)) y1="-10%" y2="110%" {} }
                        }
                        @if is_map { rect width="100%" height="100%" fill=(format!("url(#{ruling})")) pointer-events="none" {} }
                    }
                    @if !is_map { span.row-value { (bar.value) } }
                }
                @if is_map { span.row-name { "block" } }
                svg.axis aria-hidden="true" focusable="false" {
                    @for (mark, label) in &marks {
                        @if !is_map { line.tick x1=(at(*mark)) x2=(at(*mark)) y1="0" y2="4" {} }
                        text.(anchor(percent(*mark, 0.0, scale))) x=(at(*mark)) y=(if is_map { "14" } else { "17" }) { (label) }
                    }
                }
            }
            @if let Axis::Number(unit) = &group.axis { p.unit { (unit) } }
        }
    }
}

/// The areas of a bar, a dot for each sample, and its error bar above the dots where there are any.
fn parts(bar: &Bar, at: &dyn Fn(f64) -> String) -> Markup {
    let (top, middle, bottom) = if bar.samples.is_empty() { ("34%", "50%", "66%") } else { ("20%", "36%", "52%") };
    html! {
        @for part in bar.parts.iter().filter(|part| part.length > 0.0) {
            g {
                @if !part.text.is_empty() { title { (part.text) } }
                (area(part.tone, part.fill, &at(part.from), &at(part.length)))
            }
        }
        @for sample in &bar.samples { circle.sample cx=(at(*sample)) cy="76%" r="2.5" {} }
        @if let Some(spread) = bar.spread.filter(|spread| *spread > 0.0) {
            @let (low, high) = (at(bar.end() - spread), at(bar.end() + spread));
            @for (x1, x2, y1, y2) in [(&low, &high, middle, middle), (&low, &low, top, bottom), (&high, &high, top, bottom)] {
                line.whisker x1=(x1) x2=(x2) y1=(y1) y2=(y2) {}
            }
        }
    }
}

/// Which side of its place a label is on, so that it stays inside.
fn anchor(place: f64) -> &'static str {
    match place {
        3.0..=94.0 => "on",
        ..3.0 => "from",
        _ => "to",
    }
}

/// Height of the plot in CSS pixels, and the room below it for the axis.
const PLOT: f64 = 240.0;
const BELOW: f64 = 24.0;
const APART: f64 = 15.0;
/// Curves of more points are drawn as a line alone.
const DENSE: usize = 64;

fn plot(lines: &Lines, id: &str, title: &str, text: &str) -> Markup {
    let points = || lines.series.iter().flat_map(|series| &series.points).filter(|point| point.x.is_finite());
    let left = points().map(|point| point.x).fold(f64::INFINITY, f64::min);
    let right = points().map(|point| point.x).fold(f64::NEG_INFINITY, f64::max);
    let reach =
        points().map(|point| point.y + point.spread.unwrap_or(0.0)).chain(lines.levels.iter().map(|level| level.1));
    let top = ceiling(reach.filter(|y| y.is_finite()).fold(0.0, f64::max), STEPS);
    let (left, right) = match (left.is_finite(), right > left) {
        (true, true) => (left, right),
        (true, false) => (left - 1.0, left + 1.0),
        (false, _) => (0.0, 1.0),
    };
    let marks = if lines.x_is_bytes { size_ticks(left, right, STEPS) } else { ticks(left, right, STEPS) };
    let x = |value| percent(value, left, right);
    let y = |value| PLOT - percent(value, 0.0, top) / 100.0 * PLOT;
    let path = |series: &Series| {
        let place = |point: &Point| format!("{},{}", coordinate(x(point.x)), coordinate(y(point.y)));
        series.points.iter().map(place).collect::<Vec<_>>().join(" ")
    };
    let (named, described) = (format!("{id}-name"), format!("{id}-text"));
    html! {
        svg height=(coordinate(PLOT + BELOW)) role="img" aria-labelledby=(named) aria-describedby=(described) {
            title id=(named) { (title) }
            desc id=(described) { (text) }
            @for (tick, label) in ticks(0.0, top, STEPS) {
                @let place = y(tick);
                line.(if tick == 0.0 { "base" } else { "gridline" }) x1="0" x2="100%" y1=(coordinate(place)) y2=(coordinate(place)) {}
                text.to x="-8" y=(coordinate(place + 4.0)) { (label) }
            }
            @for (tick, label) in marks {
                @let place = across(x(tick));
                line.tick x1=(place) x2=(place) y1=(coordinate(PLOT)) y2=(coordinate(PLOT + 5.0)) {}
                text.(anchor(x(tick))) x=(place) y=(coordinate(PLOT + 19.0)) { (label) }
            }
            @for series in &lines.series {
                @let is_dense = series.points.len() > DENSE;
                svg viewBox=(format!("0 0 100 {PLOT}")) preserveAspectRatio="none" width="100%" height=(coordinate(PLOT)) {
                    polyline.curve.(series.class()).(format!("d-{}", series.at % MARKS.len())).thin[is_dense] points=(path(series)) {}
                }
                @for point in series.points.iter().filter(|_| !is_dense) {
                    @let place = across(x(point.x));
                    @if let Some(spread) = point.spread.filter(|spread| *spread > 0.0) {
                        @let (low, high) = (y(point.y - spread), y(point.y + spread));
                        line.whisker x1=(place) x2=(place) y1=(coordinate(low)) y2=(coordinate(high)) {}
                    }
                    (series.drawn(&place, &coordinate(y(point.y))))
                }
            }
            @for (at, (label, level)) in lines.levels.iter().enumerate() {
                @let place = y(*level);
                line.level x1="0" x2="100%" y1=(coordinate(place)) y2=(coordinate(place)) {}
                text.to.level-label x="100%" y=(coordinate(if at == 0 { place + 16.0 } else { place - 6.0 })) { (label) }
            }
            @for (series, place) in ends(lines, y) {
                text.from.end-label.(series.class()) x="100%" dx="12" y=(coordinate(place)) { (series.label) }
            }
        }
    }
}

/// Where the curves are named at their ends, where there are several: pushed apart where names would overlap.
fn ends(lines: &Lines, y: impl Fn(f64) -> f64) -> Vec<(&Series, f64)> {
    let named = lines.series.iter().filter(|_| lines.series.len() > 1);
    let mut ends: Vec<(&Series, f64)> =
        named.filter_map(|series| Some((series, y(series.points.last()?.y) + 4.0))).collect();
    ends.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.at.cmp(&b.0.at)));
    let mut last = f64::NEG_INFINITY;
    for (_, place) in &mut ends {
        last = place.max(last + APART).max(10.0);
        *place = last;
    }
    let over = (last - (PLOT - 6.0)).max(0.0);
    ends.into_iter().map(|(series, place)| (series, place - over)).collect()
}

/// The picture's size and the place of its plot, in CSS pixels.
const WIDTH: u32 = 820;
const HEIGHT: u32 = 404;
const LEFT: u32 = 72;
const TOP: u32 = 104;

/// One chart of curves as a file of its own, for a page that shows pictures; `style` is the page's style sheet, whose colours it has.
pub fn picture(drawn: &Lines, style: &str, title: &str, text: &str) -> Markup {
    // Names at the ends of several curves stand right of the plot.
    let right = if drawn.series.len() > 1 { 150 } else { 32 };
    html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(WIDTH) height=(HEIGHT) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) {
            style { (PreEscaped(style)) (PreEscaped(FONT)) }
            rect.paper width="100%" height="100%" {}
            text.name x="24" y="38" { (title) }
            text x="24" y="60" { (text) }
            text x="24" y=(TOP - 16) { (drawn.y) }
            svg x=(LEFT) y=(TOP) width=(WIDTH - LEFT - right) height=(HEIGHT - TOP) { (plot(drawn, "chart", title, text)) }
            text.to x=(WIDTH - right) y=(HEIGHT - 14) { (drawn.x) }
        }
    }
}

/// A page's style sheet sets the font of `body`, which a picture has not.
const FONT: &str = "text { font-family: system-ui, sans-serif; } .paper { fill: var(--paper); } \
                    svg text.name { font-size: 17px; font-weight: 650; fill: var(--ink); }";

/// A place between `low` and `high` as a share of 100; what is not a number is at 0.
fn percent(value: f64, low: f64, high: f64) -> f64 {
    let share = (value - low) / (high - low) * 100.0;
    if share.is_finite() { share.clamp(0.0, 100.0) } else { 0.0 }
}

/// A coordinate with two decimals and no more digits than it needs.
fn coordinate(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn across(share: f64) -> String {
    coordinate(share) + "%"
}

/// A step of 1, 2 or 5 times a power of ten that cuts `length` into at most `most` parts.
fn step(length: f64, most: f64) -> f64 {
    if !length.is_finite() || length <= 0.0 {
        return 1.0;
    }
    let rough = length / most;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999_999).unwrap_or(10.0);
    factor * power
}

/// Marks of an axis at multiples of a round step from `low` to `high`: where each is, and what it says.
fn ticks(low: f64, high: f64, most: f64) -> Vec<(f64, String)> {
    let step = step(high - low, most);
    let mut at = (low / step).ceil() * step;
    let mut ticks = Vec::new();
    while at <= high + step * 1e-6 && ticks.len() < 32 {
        ticks.push((at, number(at, step)));
        at += step;
    }
    ticks
}

#[expect(clippy::cast_precision_loss, reason = "places on an axis")]
fn size_ticks(low: f64, high: f64, most: f64) -> Vec<(f64, String)> {
    let (unit, name) = if high >= GIB as f64 { (GIB as f64, "GiB") } else { (MIB as f64, "MiB") };
    let in_units = ticks(low / unit, high / unit, most).into_iter();
    in_units.map(|(at, label)| (at * unit, format!("{label} {name}"))).collect()
}

/// The smallest multiple of the axis's own step that holds `max`.
fn ceiling(max: f64, most: f64) -> f64 {
    if !max.is_finite() || max <= 0.0 {
        return 1.0;
    }
    let step = step(max, most);
    (max / step - 1e-9).ceil() * step
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and not negative here")]
fn number(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    if step >= 1.0 && (0.0..1e15).contains(&value) {
        return thousands(value.round() as u64);
    }
    let decimals = if step < 1.0 { (-step.log10()).ceil().clamp(0.0, 9.0) as usize } else { 0 };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        let labels = |ticks: Vec<(f64, String)>| ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        for (low, high, expected) in [
            (0.0, 24.0, vec!["0", "5", "10", "15", "20"]),
            (0.0, 1.0, vec!["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (0.0, 10_459.0, vec!["0", "5,000", "10,000"]),
            (4096.0, 65_536.0, vec!["20,000", "40,000", "60,000"]),
            (0.0, f64::NAN, vec![]),
        ] {
            assert_eq!(labels(ticks(low, high, 5.0)), expected, "{low} to {high}");
        }
        let sizes = labels(size_ticks(0.0, 8.0 * 1024f64.powi(3), 4.0));
        assert_eq!(sizes, ["0 GiB", "2 GiB", "4 GiB", "6 GiB", "8 GiB"]);
    }

    #[test]
    fn places_are_within_the_chart_whatever_the_number() {
        for (value, place) in [(5.0, "50%"), (-1.0, "0%"), (99.0, "100%"), (f64::NAN, "0%"), (1.0 / 3.0, "3.33%")] {
            assert_eq!(across(percent(value, 0.0, 10.0)), place);
        }
        assert_eq!(across(percent(1.0, 2.0, 2.0)), "0%");
        assert!((ceiling(10_459.0, 5.0) - 15_000.0).abs() < 1e-6 && (ceiling(10.0, 5.0) - 10.0).abs() < 1e-9);
    }
}
