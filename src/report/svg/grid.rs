//! The placement map: a row a kind of tensor, a column a block.

use maud::{Markup, html};

use super::area;
use super::rows::anchor;
use super::scale::{across, percent, ticks};
use crate::report::chart::{Grid, Run};

/// The map; `id` names its ruling.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
pub fn grid(map: &Grid, id: &str) -> Markup {
    let columns = map.columns.max(1) as f64;
    let ruling = format!("{id}-ruling");
    html! {
        svg.defs width="0" height="0" aria-hidden="true" focusable="false" {
            defs {
                pattern id=(ruling) width=(format!("{:.6}", 1.0 / columns)) height="1" {
                    rect.rule width="1" height="40" {}
                }
            }
        }
        div.rows.map {
            @for row in &map.rows {
                span.row-name { (row.label) }
                svg.cell aria-hidden="true" focusable="false" {
                    @for run in &row.runs { (drawn(run, columns)) }
                    rect width="100%" height="100%" fill=(format!("url(#{ruling})")) pointer-events="none" {}
                }
            }
            span.row-name { "block" }
            svg.axis aria-hidden="true" focusable="false" {
                @for tick in ticks(0.0, columns - 1.0, 8.0).iter().filter(|tick| tick.at.fract() == 0.0) {
                    @let place = percent(tick.at + 0.5, 0.0, columns);
                    text.(anchor(place)) x=(across(place)) y="14" { (tick.label) }
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn drawn(run: &Run, columns: f64) -> Markup {
    let first = run.first as f64;
    let blocks = (run.last.saturating_sub(run.first) + 1) as f64;
    html! {
        g {
            title { (run.text) }
            (area(&run.tone.class(), run.fill, &across(percent(first, 0.0, columns)), &across(percent(blocks, 0.0, columns))))
        }
    }
}
