//! A tuning: the turn of every launch that was measured beside what was predicted, and the winner as a command.

use super::compare::Summary;
use super::speed::{Entry, Unit, chart};
use super::{Block, KeyFigure, Page, Verdict, file_name};
use crate::bytes::Bytes;
use crate::measurement::Spread;
use crate::number::{counted, thousands};
use crate::report::table::Table;
use crate::tune::document::{Document, Entry as Candidate, Measured};
use crate::tune::race::{self, End, Standing};
use crate::tune::{Kind, Predicted, Subject};

/// Whose word memory is where a driver was asked.
const BY_DRIVER: &str =
    "what the driver showed more at the peak than before, of devices that it knows; else llama.cpp's own sums";

impl super::Document for Document {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Tuning", title(self), format!("llama.cpp b{}", self.subject.build));
        let beats = matches!(self.verdict, race::Verdict::Beats { .. }) && self.stopped == End::Decided;
        page.push(Block::Verdict(if beats { Verdict::Good } else { Verdict::Open }, verdict(self)));
        page.push(winner(self).and_then(figures).map(Block::KeyFigures));
        page.push(Block::Command(String::new(), self.command.clone()));
        page.detail_all(charts(self));
        page.push(Block::Prose(turn(&self.subject)));
        page.push(Block::Table("Every launch that took part".into(), table(self)));
        page.push_all(notes(self).into_iter().map(|note| Block::Note(Verdict::Open, note, None)));
        page.detail(Block::Table("The machine".into(), machine(self)));
        vec![page]
    }

    /// The winner, whose memory is known as sums alone.
    fn summaries(&self) -> Vec<Summary> {
        let of = |winner: &Measured| Summary {
            pp: Entry::measured("", winner.pp, Vec::new()),
            tg: Entry::measured("", winner.tg, Vec::new()),
            ..Summary::measured(title(self))
        };
        winner(self).map(of).into_iter().collect()
    }
}

fn title(document: &Document) -> String {
    format!("Tuning of {}", file_name(&document.subject.model))
}

fn winner(document: &Document) -> Option<&Measured> {
    document.candidates.get(document.winner)?.measured.as_ref()
}

fn figures(winner: &Measured) -> Option<Vec<KeyFigure>> {
    let samples = format!("mean of {}", counted(winner.turns.len() as u64, "sample"));
    let figure = |label: &str, spread: Option<Spread>, unit: Unit, note: &str| {
        let value = unit.spread(spread?);
        Some(KeyFigure { label: label.into(), value, note: format!("{note}{samples}") })
    };
    let figures: Vec<KeyFigure> = [
        figure("One turn", winner.turn, Unit::Seconds, ""),
        figure("Generation", winner.tg, Unit::TokensPerSecond, "tokens/s, "),
        figure("Prompt", winner.pp, Unit::TokensPerSecond, "tokens/s, "),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!figures.is_empty()).then_some(figures)
}

/// The turn, and what it is made of, of everything that was measured.
fn charts(document: &Document) -> [Option<Block>; 3] {
    type Of = (fn(&Measured) -> Option<Spread>, fn(&Predicted) -> f64);
    let beside = |title: &str, unit: Unit, (of, predicted): Of| {
        let entry = |candidate: &Candidate| {
            let measured = candidate.measured.as_ref()?;
            let samples = if unit == Unit::Seconds { measured.turns.clone() } else { Vec::new() };
            let off = |known: &Predicted| (predicted(known), known.speed.uncertainty);
            let expected = candidate.candidate.predicted.as_ref().map(off);
            Some(Entry { predicted: expected, ..Entry::measured(&candidate.candidate.what, of(measured), samples) })
        };
        chart(title, unit, document.candidates.iter().filter_map(entry))
    };
    [
        beside("Time of the turn", Unit::Seconds, (|seen| seen.turn, |known| known.turn_seconds)),
        beside("Generation", Unit::TokensPerSecond, (|seen| seen.tg, |known| known.speed.tg)),
        beside("Prompt", Unit::TokensPerSecond, (|seen| seen.pp, |known| known.speed.pp)),
    ]
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time for people")]
fn machine(document: &Document) -> Table {
    let subject = &document.subject;
    let device = |(name, description, budget): &(String, String, _)| {
        (name.clone(), Some(format!("{description}, budget {budget}")))
    };
    let model = ("model".to_string(), Some(format!("{} ({})", subject.model, subject.bytes)));
    let runtime = ("runtime".to_string(), Some(format!("{} b{}", subject.program, subject.build)));
    let took = ("took".to_string(), Some(format!("{} s", thousands(document.seconds.max(0.0).round() as u64))));
    Table::facts([model, runtime].into_iter().chain(subject.devices.iter().map(device)).chain([took]))
}

/// What was measured, and on what.
fn turn(subject: &Subject) -> String {
    format!(
        "turn: {} tokens of prompt, {} generated, at depth {}; measured on {}",
        subject.prompt, subject.generate, subject.depth, subject.program
    )
}

fn table(document: &Document) -> Table {
    let spread = |spread: Option<Spread>| spread.map_or(String::new(), |spread| Unit::TokensPerSecond.spread(spread));
    let rows = document.candidates.iter().map(|entry| {
        let predicted = entry.candidate.predicted.as_ref();
        let predicted = predicted.map_or(String::new(), |predicted| format!("{:.3} s", predicted.turn_seconds));
        let measured = entry.measured.as_ref().map(|seen| {
            let turn = format!("{:.3} ± {:.3} s", seen.range.median, seen.range.half);
            [turn, spread(seen.pp), spread(seen.tg), seen.turns.len().to_string(), memory(seen)]
        });
        let cells = [entry.candidate.what.clone(), predicted].into_iter().chain(measured.unwrap_or_default());
        cells.chain([standing(&entry.standing)])
    });
    Table::rows_of("launch|>turn, predicted|>turn, median|>pp, mean|>tg, mean|>n|memory|", rows)
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
        Standing::Close => "too close to the fastest to tell".to_string(),
        Standing::CannotWin => "not measured: cannot win by prediction".to_string(),
        Standing::NoTime => "not measured: no time".to_string(),
        Standing::Failed { why } => format!("not measured: {why}"),
    }
}

/// What it says of `--fit on`.
fn verdict(document: &Document) -> String {
    let what = document.candidates.get(document.winner).map_or("", |winner| winner.candidate.what.as_str());
    let beside = beside_plan(document).map(|beside| format!("; {beside}")).unwrap_or_default();
    match document.verdict {
        race::Verdict::Beats { times } => {
            format!("{what} beats --fit on: {times:.2} times as fast, by the medians of the turn{beside}")
        }
        race::Verdict::Fit => format!("Nothing beats --fit on by more than the samples vary: take that{beside}"),
        race::Verdict::FitNotMeasured => {
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
fn notes(document: &Document) -> Vec<String> {
    let subject = &document.subject;
    let stopped = match document.stopped {
        End::Close => Some("Some are too close to the fastest to tell: their order may be chance"),
        End::Time => Some("The time was up: with more --minutes the same command goes on"),
        End::Journal => Some("The journal could not be written any more: what is here is all that was measured"),
        End::Decided => None,
    };
    let mut notes: Vec<String> = stopped.map(str::to_string).into_iter().collect();
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
        let by_driver = |(_, seen): (&Candidate, &Measured)| !seen.peak.is_empty();
        notes.push(format!("memory: {}", if measured().any(by_driver) { BY_DRIVER } else { "llama.cpp's own sums" }));
    }
    notes.push(format!("Measurements are in {}", document.journal));
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Document as _;
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
        let shown = crate::report::text::report(&document(1, (0.274, 0.002), 0.122).report(), false);
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
