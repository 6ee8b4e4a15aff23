//! A tuning: the turn of every launch that was measured beside what was predicted, and the winner as a command.

use super::compare::Summary;
use super::speed::Unit::{Rate, Time};
use super::speed::{Entry, Unit, chart};
use super::{Block, Page, Verdict, file_name};
use crate::bytes::Bytes;
use crate::number::{seconds, thousands};
use crate::report::table::{Table, row};
use crate::speed::Phase;
use crate::stats::Spread;
use crate::tune::document::{Document, Entry as Candidate, Measured};
use crate::tune::race::{self, End, Standing};
use crate::tune::{Kind, Predicted};

/// Whose word memory is where a driver was asked.
const BY_DRIVER: &str = "the rise at the peak that the driver showed, for devices it knows; else llama.cpp's own sums";

impl super::Document for Document {
    fn pages(&self) -> Vec<Page> {
        let subject = &self.subject;
        let mut page = Page::new("Tuning", title(self), format!("llama.cpp b{}", subject.build));
        let beats = matches!(self.verdict, race::Verdict::Beats { .. }) && self.stopped == End::Decided;
        page.push(Block::Verdict(if beats { Verdict::Good } else { Verdict::Open }, verdict(self)));
        page.push(winner(self).map(|winner| {
            let figures = [
                Time.figure("One turn", winner.turn, "mean of"),
                Rate.figure("Generation", winner.tg, "tokens/s, mean of"),
                Rate.figure("Prompt", winner.pp, "tokens/s, mean of"),
            ];
            Block::KeyFigures(figures.into_iter().flatten().collect())
        }));
        page.push(Block::Command(String::new(), self.command.clone()));
        page.detail(beside(
            self,
            "Time of the turn",
            Time,
            |seen| seen.turn,
            |known| (known.turn_seconds, known.speed.uncertainty),
        ));
        page.detail(beside(self, "Generation", Rate, |seen| seen.tg, |known| known.speed.of(Phase::Generate)));
        page.detail(beside(self, "Prompt", Rate, |seen| seen.pp, |known| known.speed.of(Phase::Prompt)));
        let (prompt, generate, depth) = (subject.prompt, subject.generate, subject.depth);
        let turn = format!("turn: {prompt} tokens of prompt, {generate} generated, at depth {depth}");
        page.push(Block::Prose(format!("{turn}; measured on {}", subject.program)));
        page.push(Block::Table("All launches".into(), table(self)));
        page.push(notes(self).into_iter().map(|note| Block::Note(Verdict::Open, note, None)));
        page.detail(Block::Table("The machine".into(), machine(self)));
        vec![page]
    }

    /// The winner, whose memory is known as sums alone.
    fn summaries(&self) -> Vec<Summary> {
        winner(self).map(|winner| Summary::measured(title(self), winner.pp, winner.tg)).into_iter().collect()
    }
}

fn title(document: &Document) -> String {
    format!("Tuning of {}", file_name(&document.subject.model))
}

fn winner(document: &Document) -> Option<&Measured> {
    document.candidates.get(document.winner)?.measured.as_ref()
}

/// One quantity of everything that was measured, beside what was predicted of it.
fn beside(
    document: &Document,
    title: &str,
    unit: Unit,
    of: fn(&Measured) -> Option<Spread>,
    predicted: fn(&Predicted) -> (f64, f64),
) -> Option<Block> {
    let entry = |Candidate { candidate, measured, .. }: &Candidate| {
        let measured = measured.as_ref()?;
        let samples = if unit == Time { measured.turns.clone() } else { Vec::new() };
        let predicted = candidate.predicted.as_ref().map(predicted);
        Some(Entry { predicted, ..Entry::measured(&candidate.what, of(measured), samples) })
    };
    chart(title, unit, document.candidates.iter().filter_map(entry))
}

fn machine(document: &Document) -> Table {
    let subject = &document.subject;
    let device = |(name, description, budget): &(String, String, _)| {
        (name.clone(), Some(format!("{description}, budget {budget}")))
    };
    let fact = |name: &str, fact| (name.to_string(), Some(fact));
    let model = fact("model", format!("{} ({})", subject.model, subject.bytes));
    let runtime = fact("runtime", format!("{} b{}", subject.program, subject.build));
    let took = fact("took", seconds(document.seconds));
    Table::facts([model, runtime].into_iter().chain(subject.devices.iter().map(device)).chain([took]))
}

fn table(document: &Document) -> Table {
    let rows = document.candidates.iter().map(|Candidate { candidate, measured, standing }| {
        let predicted = candidate.predicted.as_ref();
        let predicted = predicted.map_or(String::new(), |predicted| format!("{:.3} s", predicted.turn_seconds));
        let measured = measured.as_ref().map(|seen| {
            let turn = format!("{:.3} ± {:.3} s", seen.range.median, seen.range.half);
            // Memory by device: the driver's word where there is one, else llama.cpp's.
            let held = |(name, own): (&String, &Bytes)| format!("{name} {}", seen.peak.get(name).unwrap_or(own));
            let memory = seen.memory.iter().filter(|(_, bytes)| **bytes > Bytes(0)).map(held).collect::<Vec<_>>();
            row![turn, Rate.spread(seen.pp), Rate.spread(seen.tg), seen.turns.len(), memory.join(", ")]
        });
        let standing = match standing {
            Standing::Winner => "winner".to_string(),
            Standing::Slower => "slower".to_string(),
            Standing::Close => "too close to the fastest to tell".to_string(),
            Standing::CannotWin => "not measured: cannot win by prediction".to_string(),
            Standing::NoTime => "not measured: no time left".to_string(),
            Standing::Failed { why } => format!("not measured: {why}"),
        };
        let cells = [candidate.what.clone(), predicted].into_iter().chain(measured.unwrap_or_default());
        cells.chain([standing])
    });
    Table::rows_of("launch|>turn, predicted|>turn, median|>pp, mean|>tg, mean|>n|memory|", rows)
}

fn verdict(document: &Document) -> String {
    let what = document.candidates.get(document.winner).map_or("", |winner| winner.candidate.what.as_str());
    let beside = beside_plan(document).map(|beside| format!("; {beside}")).unwrap_or_default();
    match document.verdict {
        race::Verdict::Beats { times } => {
            format!("{what} beats --fit on: {times:.2} times as fast, by the medians of the turn{beside}")
        }
        race::Verdict::Fit => format!("Nothing beats --fit on by more than the samples vary: use --fit on{beside}"),
        race::Verdict::FitNotMeasured => {
            format!("{what} is the fastest measured; --fit on was not measured, so there is no verdict on it{beside}")
        }
    }
}

/// How much faster than the plan the proposed launch is, where it is another and both were measured.
fn beside_plan(document: &Document) -> Option<String> {
    let winner = document.candidates.get(document.winner).filter(|winner| winner.candidate.kind != Kind::Plan)?;
    let plan = document.candidates.iter().find(|entry| entry.candidate.kind == Kind::Plan)?;
    let (plan, best) = (plan.measured.as_ref()?.range, winner.measured.as_ref()?.range);
    let is_sure = plan.is_longer(&best);
    let sure = if is_sure { "by the medians of the turn" } else { "which is within the error of the samples" };
    let times = plan.median / best.median;
    (best.median > 0.0).then(|| format!("it is {times:.2} times as fast as the plan, {sure}"))
}

fn notes(document: &Document) -> Vec<String> {
    let subject = &document.subject;
    let stopped = match document.stopped {
        End::Close => Some("Some are too close to the fastest to tell: their order may be chance"),
        End::Time => Some("Time ran out: the same command continues with more --minutes"),
        End::Journal => Some("The journal could no longer be written: this is all that was measured"),
        End::Decided => None,
    };
    let mut notes: Vec<String> = stopped.map(str::to_string).into_iter().collect();
    let measured = || document.candidates.iter().filter_map(|entry| entry.measured.as_ref().map(|seen| (entry, seen)));
    if let Some((_, seen)) = measured().find(|(_, seen)| seen.depth != subject.depth) {
        let kept = format!(
            "The server kept {} tokens in the context, not {}",
            thousands(seen.depth.into()),
            thousands(subject.depth.into())
        );
        notes.push(format!("{kept}: that is the depth measured"));
    }
    for (entry, hits) in measured().filter_map(|(entry, seen)| Some((entry, seen.cache_hits?))) {
        notes.push(format!(
            "{}: {:.1}% of the experts were found in the expert cache, with pseudo-random prompts; yours may differ",
            entry.candidate.what,
            100.0 * hits
        ));
    }
    for (entry, acceptance) in measured().filter_map(|(entry, seen)| Some((entry, seen.acceptance?))) {
        notes.push(format!(
            "{}: --acceptance {acceptance:.2} was measured, with pseudo-random prompts; yours may differ",
            entry.candidate.what
        ));
    }
    if measured().next().is_some() {
        notes.push(
            "turn: the median of all samples ± two standard errors; pp and tg: mean ± standard deviation, tokens/s"
                .into(),
        );
        let by_driver = measured().any(|(_, seen)| !seen.peak.is_empty());
        notes.push(format!("memory: {}", if by_driver { BY_DRIVER } else { "llama.cpp's own sums" }));
    }
    notes.push(format!("Measurements are in {}", document.journal));
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_launch_that_is_faster_than_the_plan_is_said_to_be() {
        let entry = |kind: &str, median: f64, half: f64| -> Value {
            json!({"what": kind, "kind": kind, "args": [], "predicted": null, "state": "winner",
                "measured": {"pp": null, "tg": null, "turn": null, "turns": [median], "range": {"median": median, "half": half},
                    "depth": 0, "visits": 1, "memory": {}, "peak": {}}})
        };
        for (winner, median, half, says) in [
            (1, 0.274, 0.002, "it is 2.25 times as fast as the plan, by the medians of the turn"),
            (1, 0.124, 0.010, "1.02 times as fast as the plan, which is within the error of the samples"),
            (0, 0.1, 0.001, "Nothing beats --fit on by more than the samples vary: use --fit on"),
        ] {
            let document = json!({
                "schema": "moeplan/tune/1", "stopped": "decided", "seconds": 1.0, "journal": "j", "verdict": "fit",
                "subject": {"model": "m", "bytes": 1, "program": "p", "build": 11434, "prompt": 1, "generate": 1, "depth": 0,
                    "devices": []},
                "candidates": [entry("plan", median, half), entry("fit", 0.122, 0.001)], "winner": winner, "command": "c",
            });
            let said = verdict(&serde_json::from_value(document).unwrap());
            assert!(said.ends_with(says), "{said}");
        }
    }
}
