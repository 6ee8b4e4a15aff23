//! A tuning as a section: the turn of every launch that was measured beside what was predicted, and the winner as a command.

use super::speed::{Entry, Unit, figure};
use super::{Block, KeyFigure, Section, Verdict, file_name};
use crate::measurement::Spread;
use crate::number::{counted, thousands};
use crate::report::table::{Align, Table};
use crate::report::tune::{notes, table, turn, verdict};
use crate::tune::document::{Document, Entry as Candidate, Measured};
use crate::tune::race::{self, End};

/// The section of a tuning.
pub fn section(document: &Document, source: &str) -> Section {
    let beats = matches!(document.verdict, race::Verdict::Beats { .. }) && document.stopped == End::Decided;
    let sign = if beats { Verdict::Good } else { Verdict::Open };
    let mut blocks = vec![Block::Verdict(sign, verdict(document))];
    blocks.extend(winner(document).and_then(key_figures).map(Block::KeyFigures));
    blocks.push(Block::Command(document.command.clone()));
    blocks.extend(figures(document));
    blocks.push(Block::Prose(turn(&document.subject)));
    blocks.push(Block::Table("Every launch that took part".into(), table(document)));
    blocks.extend(notes(document).into_iter().map(|note| Block::Note(Verdict::Open, note, None)));
    blocks.push(Block::Table("The machine".into(), machine(document)));
    Section { heading: heading(document), source: source.to_string(), blocks }
}

/// The model's file.
pub fn heading(document: &Document) -> String {
    format!("Tuning of {}", file_name(&document.subject.model))
}

/// Who is proposed.
pub fn winner(document: &Document) -> Option<&Measured> {
    document.candidates.get(document.winner)?.measured.as_ref()
}

fn key_figures(winner: &Measured) -> Option<Vec<KeyFigure>> {
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

/// The turn, and what it is made of, of everybody who was measured.
fn figures(document: &Document) -> Vec<Block> {
    type Of = (fn(&Measured) -> Option<Spread>, fn(&crate::tune::Predicted) -> f64);
    let chart = |title: &str, unit: Unit, (of, predicted): Of| {
        let entry = |candidate: &Candidate| {
            let measured = candidate.measured.as_ref()?;
            let samples = if unit == Unit::Seconds { measured.turns.clone() } else { Vec::new() };
            let off = |known: &crate::tune::Predicted| (predicted(known), known.speed.uncertainty);
            let expected = candidate.candidate.predicted.as_ref().map(off);
            Some(Entry { predicted: expected, ..Entry::measured(&candidate.candidate.what, of(measured), samples) })
        };
        figure(title, unit, &document.candidates.iter().filter_map(entry).collect::<Vec<_>>()).map(Block::Figure)
    };
    let charts = [
        chart("Time of the turn", Unit::Seconds, (|seen| seen.turn, |known| known.turn_seconds)),
        chart("Generation", Unit::TokensPerSecond, (|seen| seen.tg, |known| known.speed.tg)),
        chart("Prompt", Unit::TokensPerSecond, (|seen| seen.pp, |known| known.speed.pp)),
    ];
    charts.into_iter().flatten().collect()
}

fn machine(document: &Document) -> Table {
    let subject = &document.subject;
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    table.row(["model", &format!("{} ({})", subject.model, subject.bytes)]);
    table.row(["runtime", &format!("{} b{}", subject.program, subject.build)]);
    for (name, description, budget) in &subject.devices {
        table.row([name.clone(), format!("{description}, budget {budget}")]);
    }
    table.row(["took", &format!("{} s", thousands(whole_seconds(document.seconds)))]);
    table
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time for people")]
fn whole_seconds(seconds: f64) -> u64 {
    seconds.max(0.0).round() as u64
}
