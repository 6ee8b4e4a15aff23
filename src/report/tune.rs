//! A tuning for people: the evidence as a table, what it says of `--fit on`, and the winner as a command.

use std::fmt::Write as _;

use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::escape;
use crate::measurement::Spread;
use crate::tune::Subject;
use crate::tune::document::{Document, Measured};
use crate::tune::race::{End, Standing, Verdict};

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
        ("turn, measured", Align::Right),
        ("pp", Align::Right),
        ("tg", Align::Right),
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
    match document.verdict {
        Verdict::Beats { times } => {
            format!("{what} beats --fit on: {times:.2} times as fast, by the medians of the turn")
        }
        Verdict::Fit => "Nothing beats --fit on beyond what the samples may be off: take that".to_string(),
        Verdict::FitNotMeasured => {
            format!("{what} is the fastest measured; --fit on was not measured, so nothing is said of it")
        }
    }
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
    notes.push(format!("Measurements are in {}", document.journal));
    notes
}
