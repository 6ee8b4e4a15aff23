//! Bars: stacked ones of memory, and plain ones with error bars and samples.

use maud::{Markup, html};

use super::area;
use super::scale::{Tick, across, ceiling, percent, size_ticks, ticks};
use crate::report::chart::{Bar, Bars, Stack, StackedBar};

/// Steps of an axis under bars.
const STEPS: f64 = 4.0;

/// Groups of stacked bars, each to its own scale.
pub fn stacks(stacks: &[Stack]) -> Markup {
    html! { @for stack in stacks { (group(stack)) } }
}

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn group(stack: &Stack) -> Markup {
    let sums = stack.bars.iter().map(|bar| bar.parts.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add));
    let limit = stack.limit.as_ref().map(|(_, bytes)| *bytes as f64);
    let longest = sums.max().unwrap_or(0) as f64;
    let scale = longest.max(limit.unwrap_or(0.0)).max(1.0);
    let marks = size_ticks(0.0, scale, STEPS);
    html! {
        div.group {
            div.group-head {
                span.group-name { (stack.label) }
                @if let Some((what, _)) = &stack.limit { span.limit-key { (what) } }
            }
            div.rows {
                @for bar in &stack.bars { (stacked(bar, &marks, scale, limit)) }
                (axis(&marks, scale))
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn stacked(bar: &StackedBar, marks: &[Tick], scale: f64, limit: Option<f64>) -> Markup {
    let place = |value: f64| across(percent(value, 0.0, scale));
    let parts = bar.parts.iter().scan(0.0, |from, (tone, bytes)| {
        let start = *from;
        *from += *bytes as f64;
        Some((tone.class(), start, *bytes as f64))
    });
    html! {
        span.row-name { (bar.label) }
        svg.bar aria-hidden="true" focusable="false" {
            (ruled(marks, scale))
            @for (class, start, width) in parts.filter(|(_, _, width)| *width > 0.0) {
                (area(&class, bar.fill, &place(start), &place(width)))
            }
            @if let Some(limit) = limit {
                line.limit-halo x1=(place(limit)) x2=(place(limit)) y1="-10%" y2="110%" {}
                line.limit x1=(place(limit)) x2=(place(limit)) y1="-10%" y2="110%" {}
            }
        }
        span.row-value { (bar.value) }
    }
}

/// Bars to one scale.
pub fn bars(bars: &Bars) -> Markup {
    let reach = |bar: &Bar| {
        let samples = bar.samples.iter().copied().fold(0.0, f64::max);
        (bar.length + bar.spread.unwrap_or(0.0)).max(samples)
    };
    let scale = ceiling(bars.bars.iter().map(reach).fold(0.0, f64::max), STEPS);
    let marks = ticks(0.0, scale, STEPS);
    html! {
        div.group {
            div.rows {
                @for bar in &bars.bars { (plain(bar, &marks, scale)) }
                (axis(&marks, scale))
            }
            p.unit { (bars.unit) }
        }
    }
}

fn plain(bar: &Bar, marks: &[Tick], scale: f64) -> Markup {
    let at = |value: f64| across(percent(value, 0.0, scale));
    // Above the dots of the samples, where there are any.
    let (top, middle, bottom) = if bar.samples.is_empty() { ("34%", "50%", "66%") } else { ("20%", "36%", "52%") };
    html! {
        span.row-name { (bar.label) }
        svg.bar aria-hidden="true" focusable="false" {
            (ruled(marks, scale))
            (area(&bar.tone.class(), bar.fill, "0", &at(bar.length)))
            @for sample in &bar.samples { circle.sample cx=(at(*sample)) cy="76%" r="2.5" {} }
            @if let Some(spread) = bar.spread.filter(|spread| *spread > 0.0) {
                @let (low, high) = (at(bar.length - spread), at(bar.length + spread));
                line.whisker x1=(low) x2=(high) y1=(middle) y2=(middle) {}
                line.whisker x1=(low) x2=(low) y1=(top) y2=(bottom) {}
                line.whisker x1=(high) x2=(high) y1=(top) y2=(bottom) {}
            }
        }
        span.row-value { (bar.value) }
    }
}

/// Lines up from the axis, behind a bar.
fn ruled(marks: &[Tick], scale: f64) -> Markup {
    html! {
        @for mark in marks {
            @let at = across(percent(mark.at, 0.0, scale));
            line.gridline x1=(at) x2=(at) y1="-15%" y2="115%" {}
        }
    }
}

/// Marks below the bars.
fn axis(ticks: &[Tick], scale: f64) -> Markup {
    html! {
        svg.axis aria-hidden="true" focusable="false" {
            @for tick in ticks {
                @let place = percent(tick.at, 0.0, scale);
                @let at = across(place);
                line.tick x1=(at) x2=(at) y1="0" y2="4" {}
                text.(anchor(place)) x=(at) y="17" { (tick.label) }
            }
        }
    }
}

/// Which side of its place a label is on, so that it stays inside.
pub(super) fn anchor(place: f64) -> &'static str {
    if place < 3.0 {
        "from"
    } else if place > 94.0 {
        "to"
    } else {
        "on"
    }
}
