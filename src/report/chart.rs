//! Line charts as inline SVG: a panel a quantity over one variable, readable without script, nothing fetched.

use std::fmt::Write as _;

use crate::escape;

/// One panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What it shows, with its unit.
    pub title: String,
    /// A value for each point of the variable; `None` where there is none to show.
    pub values: Vec<Option<f64>>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 26.0;
const RIGHT: f64 = 12.0;
const BOTTOM: f64 = 28.0;
/// Labels under the variable's axis at most.
const LABELS: usize = 8;

/// The panels above one another; `labels` names the points.
pub fn svg(labels: &[String], panels: &[Panel]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a few panels")]
    let height = HEIGHT * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a few panels")]
        let top = HEIGHT * at as f64;
        draw(&mut out, top, labels, panel);
    }
    out.push_str("</svg>\n");
    out
}

#[expect(clippy::cast_precision_loss, reason = "positions of a few hundred points")]
fn draw(out: &mut String, top: f64, labels: &[String], panel: &Panel) {
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let most = panel.values.iter().flatten().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let x = |at: usize| LEFT + width * if labels.len() > 1 { at as f64 / (labels.len() - 1) as f64 } else { 0.5 };
    let y = |value: f64| top + TOP + height * (1.0 - value / most);
    let (base, title) = (top + TOP + height, escape::html(&panel.title));
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>", top + 16.0);
    for share in [0.0, 0.5, 1.0] {
        let line = y(most * share);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{line:.1}\" y2=\"{line:.1}\" stroke=\"#ccc\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + width,
            LEFT - 6.0,
            line + 4.0,
            rounded(most * share)
        );
    }
    let every = labels.len().div_ceil(LABELS).max(1);
    for (at, label) in labels.iter().enumerate().step_by(every) {
        let label = escape::html(label);
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", x(at), base + 16.0);
    }
    let points =
        || panel.values.iter().enumerate().filter_map(|(at, value)| Some((at, value.filter(|v| v.is_finite())?)));
    let line: Vec<String> = points().map(|(at, value)| format!("{:.1},{:.1}", x(at), y(value))).collect();
    let _ = writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#26c\" stroke-width=\"2\"/>", line.join(" "));
    for (at, value) in points() {
        let label = labels.get(at).map(|label| escape::html(label)).unwrap_or_default();
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#26c\"><title>{label}: {}</title></circle>",
            x(at),
            y(value),
            rounded(value)
        );
    }
}

/// Three digits are enough to read.
fn rounded(value: f64) -> String {
    match value {
        v if v >= 100.0 || v == 0.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_where_their_values_say() {
        let panel = Panel { title: "tg <x>".into(), values: vec![Some(0.0), None, Some(10.0)] };
        let page = svg(&["a".into(), "b".into(), "c".into()], &[panel]);
        assert!(page.contains("points=\"70.0,142.0 748.0,26.0\""), "{page}");
        assert!(page.contains("tg &lt;x&gt;") && !page.contains("<x>"));
        assert_eq!(page.matches("<circle").count(), 2, "a point without a value is not drawn");
    }
}
