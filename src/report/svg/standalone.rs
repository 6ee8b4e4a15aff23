//! One chart of curves as a file of its own, for a page that shows pictures: title, axes and curves, light and dark.

use maud::{Markup, PreEscaped, html};

use super::lines;
use crate::report::chart::Lines;

/// The picture's size and the place of its plot, in CSS pixels.
const WIDTH: u32 = 820;
const HEIGHT: u32 = 404;
const LEFT: u32 = 72;
const TOP: u32 = 104;

/// The picture; `style` is the page's style sheet, whose colours it has.
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
            svg x=(LEFT) y=(TOP) width=(WIDTH - LEFT - right) height=(HEIGHT - TOP) {
                (lines::drawing(drawn, "chart", title, text))
            }
            text.to x=(WIDTH - right) y=(HEIGHT - 14) { (drawn.x) }
        }
    }
}

/// A page's style sheet sets the font of `body`, which a picture has not.
const FONT: &str = "text { font-family: system-ui, sans-serif; } .paper { fill: var(--paper); } \
                    svg text.name { font-size: 17px; font-weight: 650; fill: var(--ink); }";
