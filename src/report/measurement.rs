//! A measurement for people: predicted beside measured, term by term, then speed and the process.

use std::fmt::Write as _;

use super::table::{Align, Table};
use crate::escape;
use crate::measurement::{Measurement, Row, Spread};

/// For a terminal.
pub fn text(measured: &Measurement) -> String {
    format!(
        "{}\n{}\n{}\n",
        comparison(&measured.comparison).text(),
        run(measured).text(),
        escape::terminal(&verdict(measured))
    )
}

/// As Markdown.
pub fn markdown(measured: &Measurement) -> String {
    let verdict = escape::markdown(&verdict(measured));
    format!("{}\n{}\n**{verdict}**\n", comparison(&measured.comparison).markdown(), run(measured).markdown())
}

/// Predicted beside measured.
pub fn comparison(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("predicted", Align::Right),
        ("measured", Align::Right),
        ("difference", Align::Right),
        ("error", Align::Right),
        ("", Align::Left),
    ]);
    for row in rows {
        let difference = i128::from(row.predicted.0) - i128::from(row.measured.0);
        table.row([
            row.quantity.clone(),
            row.predicted.to_string(),
            row.measured.to_string(),
            if difference == 0 { "0".to_string() } else { format!("{difference:+} bytes") },
            format!("{:.2}%", 100.0 * row.error),
            if row.ok { "ok" } else { "OUTSIDE" }.to_string(),
        ]);
    }
    table
}

/// How fast it was and what its process took.
fn run(measured: &Measurement) -> Table {
    let speed = &measured.speed;
    let shown = |spread: Option<Spread>, unit: &str| match spread {
        Some(Spread { mean, n: 1, .. }) => format!("{mean:.2} {unit}"),
        Some(Spread { mean, stddev, n }) => format!("{mean:.2} ± {stddev:.2} {unit}, {n} times"),
        None => "not measured".to_string(),
    };
    let depth = if speed.depth > 0 { format!(" at depth {}", speed.depth) } else { String::new() };
    let process = &measured.process;
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    table.row(["prompt", &format!("{} ({} tokens{depth})", shown(speed.summary.pp, "tokens/s"), speed.n_prompt)]);
    table.row(["generation", &format!("{} ({} tokens)", shown(speed.summary.tg, "tokens/s"), speed.n_generate)]);
    if speed.summary.first_token.is_some() {
        table.row(["first token", &shown(speed.summary.first_token, "s")]);
    }
    table.row(["load", &format!("{:.2} s", measured.load_seconds)]);
    table.row([
        "process",
        &format!("{} own, {} of files, {} at its peak", process.rss_anon, process.rss_file, process.peak),
    ]);
    let runtime = &measured.runtime;
    table.row(["runtime", &format!("{} llama.cpp b{} ({})", runtime.program, runtime.build, runtime.backend)]);
    table
}

/// Whether it is as predicted.
fn verdict(measured: &Measurement) -> String {
    let mut verdict = String::new();
    let outside = measured.comparison.iter().filter(|row| !row.ok).count();
    let exact = measured.comparison.iter().all(|row| row.predicted == row.measured);
    let _ = match (outside, exact) {
        (0, true) => write!(verdict, "As predicted, to the byte"),
        (0, false) => write!(verdict, "As predicted, within {}%", 100.0 * measured.tolerance),
        (rows, _) => write!(verdict, "Not as predicted: {rows} rows are outside {}%", 100.0 * measured.tolerance),
    };
    if !measured.finite {
        let _ = write!(verdict, "; some logits are not finite numbers");
    }
    verdict
}
