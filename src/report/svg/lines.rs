//! Curves: speed over depth, a sweep, the gaps between tokens.

use maud::{Markup, html};

use super::rows::anchor;
use super::scale::{across, ceiling, coordinate, percent, size_ticks, ticks};
use crate::report::chart::{Lines, Point, SERIES, Series, Tone};

/// Height of the plot, in CSS pixels.
const HEIGHT: f64 = 240.0;
/// Room below it for the axis.
const BELOW: f64 = 24.0;
/// Steps of an axis.
const STEPS: f64 = 5.0;
/// Least distance between two labels at the ends of curves.
const APART: f64 = 15.0;

/// What the axes cover.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
}

impl Frame {
    fn of(lines: &Lines) -> Self {
        let points = || lines.series.iter().flat_map(|series| &series.points).filter(|point| point.x.is_finite());
        let left = points().map(|point| point.x).fold(f64::INFINITY, f64::min);
        let right = points().map(|point| point.x).fold(f64::NEG_INFINITY, f64::max);
        let reach = points().map(|point| point.y + point.spread.unwrap_or(0.0));
        let top =
            reach.chain(lines.levels.iter().map(|(_, level)| *level)).filter(|y| y.is_finite()).fold(0.0, f64::max);
        let (left, right) = match (left.is_finite(), right > left) {
            (true, true) => (left, right),
            (true, false) => (left - 1.0, left + 1.0),
            (false, _) => (0.0, 1.0),
        };
        Self { left, right, top: ceiling(top, STEPS) }
    }

    fn x(self, value: f64) -> f64 {
        percent(value, self.left, self.right)
    }

    fn y(self, value: f64) -> f64 {
        HEIGHT - percent(value, 0.0, self.top) / 100.0 * HEIGHT
    }
}

/// The chart; `id` is its own within the page.
pub fn lines(lines: &Lines, id: &str, title: &str, text: &str) -> Markup {
    html! {
        div.plot.named[lines.series.len() > 1] {
            @if lines.series.len() > 1 { (names(lines)) }
            p.unit { (lines.y) }
            (drawing(lines, id, title, text))
            p.unit.x-unit { (lines.x) }
        }
    }
}

/// The curves and their axes, without what the axes are called.
pub fn drawing(lines: &Lines, id: &str, title: &str, text: &str) -> Markup {
    let frame = Frame::of(lines);
    let (named, described) = (format!("{id}-name"), format!("{id}-text"));
    html! {
            svg height=(coordinate(HEIGHT + BELOW)) role="img" aria-labelledby=(named) aria-describedby=(described) {
                title id=(named) { (title) }
                desc id=(described) { (text) }
                (axes(lines, frame))
                @for series in &lines.series { (curve(series, lines.dense, frame)) }
                @for (at, (label, level)) in lines.levels.iter().enumerate() {
                    @let y = frame.y(*level);
                    line.level x1="0" x2="100%" y1=(coordinate(y)) y2=(coordinate(y)) {}
                    text.to.level-label x="100%" y=(coordinate(if at == 0 { y + 16.0 } else { y - 6.0 })) { (label) }
                }
                @if lines.series.len() > 1 { (labels(lines, frame)) }
            }
    }
}

fn axes(lines: &Lines, frame: Frame) -> Markup {
    let sizes = lines.x_is_bytes;
    let marks = if sizes { size_ticks(frame.left, frame.right, STEPS) } else { ticks(frame.left, frame.right, STEPS) };
    html! {
        @for tick in ticks(0.0, frame.top, STEPS) {
            @let y = coordinate(frame.y(tick.at));
            line.(if tick.at == 0.0 { "base" } else { "gridline" }) x1="0" x2="100%" y1=(y) y2=(y) {}
            text.to x="-8" y=(coordinate(frame.y(tick.at) + 4.0)) { (tick.label) }
        }
        @for tick in marks {
            @let place = frame.x(tick.at);
            line.tick x1=(across(place)) x2=(across(place)) y1=(coordinate(HEIGHT)) y2=(coordinate(HEIGHT + 5.0)) {}
            text.(anchor(place)) x=(across(place)) y=(coordinate(HEIGHT + 19.0)) { (tick.label) }
        }
    }
}

fn curve(series: &Series, dense: bool, frame: Frame) -> Markup {
    let class = Tone::Series(series.at).class();
    let place = |point: &Point| format!("{},{}", coordinate(frame.x(point.x)), coordinate(frame.y(point.y)));
    let path: Vec<String> = series.points.iter().map(place).collect();
    html! {
        svg viewBox=(format!("0 0 100 {HEIGHT}")) preserveAspectRatio="none" width="100%" height=(coordinate(HEIGHT)) {
            polyline.curve.(class).(format!("d-{}", series.at % SERIES)).thin[dense] points=(path.join(" ")) {}
        }
        @if !dense {
            @for point in &series.points {
                @let (x, y) = (across(frame.x(point.x)), frame.y(point.y));
                @if let Some(spread) = point.spread.filter(|spread| *spread > 0.0) {
                    @let (low, high) = (frame.y(point.y - spread), frame.y(point.y + spread));
                    line.whisker x1=(x) x2=(x) y1=(coordinate(low)) y2=(coordinate(high)) {}
                }
                svg.mark x=(x) y=(coordinate(y)) { path.(class) d=(mark(series.at)) {} }
            }
        }
    }
}

/// The mark of a series: disc, square, triangle, diamond, cross, bar.
fn mark(at: usize) -> &'static str {
    const MARKS: [&str; SERIES] = [
        "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
        "M-4,-4h8v8h-8z",
        "M0,-5l5,9h-10z",
        "M0,-5.5l5,5.5l-5,5.5l-5,-5.5z",
        "M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
        "M-5,-2h10v4h-10z",
    ];
    MARKS[at % SERIES]
}

/// The names with their marks, for screens without room beside the plot.
fn names(lines: &Lines) -> Markup {
    html! {
        ul.legend {
            @for series in &lines.series {
                li {
                    svg width="14" height="14" aria-hidden="true" focusable="false" {
                        svg.mark x="7" y="7" { path.(Tone::Series(series.at).class()) d=(mark(series.at)) {} }
                    }
                    (series.label)
                }
            }
        }
    }
}

/// The names at the ends of the curves, pushed apart where they would overlap.
fn labels(lines: &Lines, frame: Frame) -> Markup {
    let ends = lines.series.iter().filter_map(|series| Some((series, frame.y(series.points.last()?.y) + 4.0)));
    let mut ends: Vec<(&Series, f64)> = ends.collect();
    ends.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.at.cmp(&b.0.at)));
    let mut last = f64::NEG_INFINITY;
    for (_, y) in &mut ends {
        *y = y.max(last + APART).max(10.0);
        last = *y;
    }
    let over = (last - (HEIGHT - 6.0)).max(0.0);
    html! {
        @for (series, y) in ends {
            text.from.end-label.(Tone::Series(series.at).class()) x="100%" dx="12" y=(coordinate(y - over)) { (series.label) }
        }
    }
}
