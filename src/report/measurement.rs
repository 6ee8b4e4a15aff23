//! A measurement for people: predicted beside measured, term by term, then speed and the process.

use std::fmt::Write as _;

use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::escape;
use crate::measurement::{Measurement, Row, Spread};
use crate::number::fixed;

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
        let difference = match (difference, u64::try_from(difference.unsigned_abs())) {
            (0, _) => "0".to_string(),
            (_, Ok(off)) if off <= row.resolution.0 => "none that a log shows".to_string(),
            _ => format!("{difference:+} bytes"),
        };
        table.row([
            row.quantity.clone(),
            row.predicted.to_string(),
            row.measured.to_string(),
            difference,
            format!("{}%", fixed(100.0 * row.error, 2)),
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
    for (device, used) in &measured.device_used {
        let loaded = |before: &Bytes| measured.device_use.loaded.get(device).map(|all| all.saturating_sub(*before));
        let loaded = measured.device_use.before.get(device).and_then(loaded);
        let loaded = loaded.map_or(String::new(), |loaded| format!(", {loaded} when loaded"));
        table.row([device.clone(), format!("{used} at the peak{loaded}, by the driver")]);
    }
    let runtime = &measured.runtime;
    table.row(["runtime", &format!("{} llama.cpp b{} ({})", runtime.program, runtime.build, runtime.backend)]);
    table
}

/// Whether it is as predicted.
fn verdict(measured: &Measurement) -> String {
    let mut verdict = String::new();
    let outside = measured.comparison.iter().filter(|row| !row.ok).count();
    let exact = measured.comparison.iter().all(|row| row.error == 0.0);
    let printed = measured.comparison.iter().any(|row| row.resolution > Bytes(0));
    let _ = match (outside, exact) {
        (0, true) if printed => write!(verdict, "As predicted, as far as llama.cpp's log prints it"),
        (0, true) => write!(verdict, "As predicted, to the byte"),
        (0, false) => write!(verdict, "As predicted, within {}%", 100.0 * measured.tolerance),
        (rows, _) => write!(verdict, "Not as predicted: {rows} rows are outside {}%", 100.0 * measured.tolerance),
    };
    if !measured.finite {
        let _ = write!(verdict, "; some logits are not finite numbers");
    }
    verdict
}
