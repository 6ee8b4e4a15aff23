//! A tuning for people: the evidence as a table, what it says of `--fit on`, and the winner as a command.

use std::fmt::Write as _;

use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::escape;
use crate::measurement::Spread;
use crate::tune::document::{Document, Entry, Measured};
use crate::tune::race::{End, Standing, Verdict};
use crate::tune::{Kind, Subject};

/// Whose word memory is where a driver was asked.
const BY_DRIVER: &str =
    "what the driver showed more at the peak than before, of devices that it knows; else llama.cpp's own sums";

/// For a terminal; a page of it is `page::of`.
pub fn render(document: &Document) -> String {
    let mut out = format!("{}\n\n{}\n", escape::terminal(&turn(&document.subject)), table(document).text());
    for text in [verdict(document)].into_iter().chain(notes(document)) {
        let _ = writeln!(out, "{}", escape::terminal(&text));
    }
    let _ = writeln!(out, "\n{}", escape::terminal(&document.command));
    out
}

/// What was measured, and on what.
pub fn turn(subject: &Subject) -> String {
    format!(
        "turn: {} tokens of prompt, {} generated, at depth {}; measured on {}",
        subject.prompt, subject.generate, subject.depth, subject.program
    )
}

/// The evidence.
pub fn table(document: &Document) -> Table {
    let mut table = Table::new(&[
        ("launch", Align::Left),
        ("turn, predicted", Align::Right),
        ("turn, median", Align::Right),
        ("pp, mean", Align::Right),
        ("tg, mean", Align::Right),
        ("n", Align::Right),
        ("memory", Align::Left),
        ("", Align::Left),
    ]);
    for entry in &document.candidates {
        let predicted = entry.candidate.predicted.as_ref();
        let predicted = predicted.map_or(String::new(), |predicted| format!("{:.3} s", predicted.turn_seconds));
        let measured = entry.measured.as_ref();
        let spread = |spread: Option<Spread>| {
            spread.map_or(String::new(), |Spread { mean, stddev, n }| {
                crate::report::page::speed::Unit::TokensPerSecond.spread(Spread { mean, stddev, n })
            })
        };
        table.row([
            entry.candidate.what.clone(),
            predicted,
            measured.map_or(String::new(), |measured| {
                format!("{:.3} ± {:.3} s", measured.range.median, measured.range.half)
            }),
            measured.map_or(String::new(), |measured| spread(measured.pp)),
            measured.map_or(String::new(), |measured| spread(measured.tg)),
            measured.map_or(String::new(), |measured| measured.turns.len().to_string()),
            measured.map_or(String::new(), memory),
            standing(&entry.standing),
        ]);
    }
    table
}

/// Memory by device: the driver's word where there is one, else llama.cpp's.
fn memory(measured: &Measured) -> String {
    let of = |(name, own): (&String, &Bytes)| format!("{name} {}", measured.peak.get(name).unwrap_or(own));
    measured.memory.iter().filter(|(_, bytes)| **bytes > Bytes(0)).map(of).collect::<Vec<_>>().join(", ")
}

fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Winner => "winner".to_string(),
        Standing::Slower => "slower".to_string(),
        Standing::Close => "not to be told from the fastest".to_string(),
        Standing::CannotWin => "not measured: cannot win by prediction".to_string(),
        Standing::NoTime => "not measured: no time".to_string(),
        Standing::Failed { why } => format!("not measured: {why}"),
    }
}

/// What it says of `--fit on`.
pub fn verdict(document: &Document) -> String {
    let what = document.candidates.get(document.winner).map_or("", |winner| winner.candidate.what.as_str());
    let beside = beside_plan(document).map(|beside| format!("; {beside}")).unwrap_or_default();
    match document.verdict {
        Verdict::Beats { times } => {
            format!("{what} beats --fit on: {times:.2} times as fast, by the medians of the turn{beside}")
        }
        Verdict::Fit => format!("Nothing beats --fit on beyond what the samples may be off: take that{beside}"),
        Verdict::FitNotMeasured => {
            format!("{what} is the fastest measured; --fit on was not measured, so nothing is said of it{beside}")
        }
    }
}

/// How much faster than the plan the proposed launch is, where it is another and both were measured.
fn beside_plan(document: &Document) -> Option<String> {
    let winner = document.candidates.get(document.winner).filter(|winner| winner.candidate.kind != Kind::Plan)?;
    let plan = document.candidates.iter().find(|entry| entry.candidate.kind == Kind::Plan)?;
    let (plan, best) = (plan.measured.as_ref()?.range, winner.measured.as_ref()?.range);
    if best.median <= 0.0 {
        return None;
    }
    let times = plan.median / best.median;
    Some(if plan.is_longer(&best) {
        format!("it is {times:.2} times as fast as the plan, by the medians of the turn")
    } else {
        format!("it is {times:.2} times as fast as the plan, which is within what the samples may be off")
    })
}

/// What else is to be known.
pub fn notes(document: &Document) -> Vec<String> {
    let subject = &document.subject;
    let mut notes = Vec::new();
    if document.stopped == End::Close {
        notes.push("Some cannot be told from the fastest: their order may be chance".to_string());
    }
    if document.stopped == End::Time {
        notes.push("The time was up: with more --minutes the same command goes on".to_string());
    }
    if document.stopped == End::Journal {
        notes.push("The journal could not be written any more: what is here is all that was measured".to_string());
    }
    let measured = || document.candidates.iter().filter_map(|entry| entry.measured.as_ref().map(|seen| (entry, seen)));
    if let Some((_, seen)) = measured().find(|(_, seen)| seen.depth != subject.depth) {
        notes.push(format!(
            "The server kept {} tokens in the context, not {}: that is the depth measured",
            seen.depth, subject.depth
        ));
    }
    for (entry, hits) in measured().filter_map(|(entry, seen)| Some((entry, seen.cache_hits?))) {
        notes.push(format!(
            "{}: {:.1}% of the experts were found in the expert cache, with pseudo-random prompts; yours may differ",
            entry.candidate.what,
            100.0 * hits
        ));
    }
    if measured().next().is_some() {
        notes.push(
            "turn: the median of all samples ± two standard errors; pp and tg: mean ± standard deviation, tokens/s"
                .into(),
        );
        let by_driver = |(_, seen): (&Entry, &Measured)| !seen.peak.is_empty();
        notes.push(format!("memory: {}", if measured().any(by_driver) { BY_DRIVER } else { "llama.cpp's own sums" }));
    }
    notes.push(format!("Measurements are in {}", document.journal));
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document(winner: usize, plan: (f64, f64), fit: f64) -> Document {
        let entry = |kind: &str, (median, half): (f64, f64)| -> Value {
            json!({"what": kind, "kind": kind, "args": [], "predicted": null, "state": "winner",
                "measured": {"pp": null, "tg": null, "turn": null, "turns": [median], "range": {"median": median, "half": half},
                    "depth": 0, "visits": 1, "memory": {}, "peak": {}}})
        };
        let verdict = if winner == 1 { json!("fit") } else { json!("beats") };
        let document = json!({
            "schema": "moeplan/tune/1", "stopped": "decided", "seconds": 1.0, "journal": "j", "verdict": verdict, "times": 1.5,
            "subject": {"model": "m", "bytes": 1, "program": "p", "build": 11434, "prompt": 1, "generate": 1, "depth": 0, "devices": []},
            "candidates": [entry("plan", plan), entry("fit", (fit, 0.001))], "winner": winner, "command": "c",
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_launch_that_is_faster_than_the_plan_is_said_to_be() {
        let said = |plan| verdict(&document(1, plan, 0.122));
        assert!(
            said((0.274, 0.002))
                .ends_with("take that; it is 2.25 times as fast as the plan, by the medians of the turn")
        );
        assert!(
            said((0.124, 0.010))
                .ends_with("1.02 times as fast as the plan, which is within what the samples may be off")
        );
        assert!(!verdict(&document(0, (0.1, 0.001), 0.122)).contains("as the plan"));
    }

    #[test]
    fn figures_of_two_kinds_are_told_apart() {
        let shown = render(&document(1, (0.274, 0.002), 0.122));
        for label in [
            "turn, median",
            "pp, mean",
            "± two standard errors",
            "± standard deviation",
            "memory: llama.cpp's own sums",
        ] {
            assert!(shown.contains(label), "{label}: {shown}");
        }
    }
}
