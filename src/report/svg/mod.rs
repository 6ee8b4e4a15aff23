//! Charts as inline SVG: horizontal places are percentages, so text keeps its size on every screen; labels are HTML beside.
//!
//! Colours come from the page's style sheet by class, so that light, dark and paper need no second drawing.

mod grid;
mod lines;
mod rows;
pub mod standalone;
pub mod scale;

use maud::{Markup, html};

use super::chart::{Chart, Fill, Key};

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

/// The drawing; `id` is its own within the page.
pub fn chart(chart: &Chart, id: &str, title: &str, text: &str) -> Markup {
    match chart {
        Chart::Stacks(stacks) => rows::stacks(stacks),
        Chart::Bars(bars) => rows::bars(bars),
        Chart::Lines(drawn) => lines::lines(drawn, id, title, text),
        Chart::Grid(map) => grid::grid(map, id),
    }
}

/// What the colours mean.
pub fn legend(keys: &[Key]) -> Markup {
    html! {
        @if !keys.is_empty() {
            ul.legend {
                @for key in keys {
                    li {
                        svg width="14" height="14" aria-hidden="true" focusable="false" {
                            (area(&key.tone.class(), key.fill, "0", "100%"))
                        }
                        (key.label)
                    }
                }
            }
        }
    }
}

/// A rectangle over the whole height, hatched where its fill says so.
fn area(class: &str, fill: Fill, x: &str, width: &str) -> Markup {
    html! {
        rect.(class) x=(x) width=(width) height="100%" {}
        @if fill == Fill::Hatched { rect.hatched x=(x) width=(width) height="100%" {} }
    }
}
