//! A measurement, and a server that stays up: predicted beside measured, term by term, speeds with their samples.

use std::collections::BTreeMap;

use super::compare::Summary;
use super::memory::{self, Memory, errors, size};
use super::speed::{Entry, Unit, chart};
use super::{Block, Document, KeyFigure, Page, Verdict, file_name, placement, plan};
use crate::bytes::Bytes;
use crate::measurement::{Launched, Measurement, Row, Spread};
use crate::memory::{HOST, MemoryRow};
use crate::number::{counted, seconds, thousands};
use crate::plan::Plan;
use crate::report::table::Table;
use crate::run::command::shell;
use crate::speed::Speed;

/// The title of the bars.
const MEMORY: &str = "Memory, predicted beside measured";
/// The title of the table.
const TERMS: &str = "Predicted beside measured, term by term";

impl Document for Measurement {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Measurement", self.title(), format!("llama.cpp b{}", self.runtime.build));
        page.push(self.verdict());
        if self.interrupted {
            let text = format!("it was interrupted: speeds are of {}", counted(self.speed.pp.len() as u64, "sample"));
            page.push(Block::Note(Verdict::Caution, text, None));
        }
        page.push(Block::KeyFigures(self.figures()));
        let plan = self.plan.as_deref();
        page.detail(plan.map(|plan| Block::Command(String::new(), plan.command.clone())));
        let budget = plan.map(|plan| plan.check.budget.clone()).unwrap_or_default();
        page.push(Block::Table(TERMS.into(), errors(&[("", &self.comparison)])));
        let bars = memory::against(MEMORY, &self.predicted, &self.memory, self.mapped_span, &budget);
        page.detail(Block::Figure(bars));
        page.detail_all(self.speeds());
        page.detail(map(plan));
        page.push(Block::Table("The launch".into(), self.facts()));
        page.detail((!self.text.is_empty()).then(|| Block::Output("What was generated".into(), self.text.clone())));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        let title = self.plan.as_deref().map_or(String::new(), |plan| plan::name(&plan.model).to_string());
        let speed = &self.speed;
        vec![Summary {
            pp: Entry::measured("", speed.summary.pp, speed.pp.clone()),
            tg: Entry::measured("", speed.summary.tg, speed.tg.clone()),
            memory: Some(self.memory.clone()),
            first: speed.summary.first_token,
            ..Summary::measured(title)
        }]
    }
}

/// The placement map of a plan that lists its tensors.
fn map(plan: Option<&Plan>) -> Option<Block> {
    placement::figure(plan?.check.tensors.as_ref()?).map(Block::Figure)
}

impl Measurement {
    fn title(&self) -> String {
        match &self.plan {
            Some(plan) => plan::name(&plan.model).to_string(),
            None => format!("A launch of {} b{}", file_name(&self.runtime.program), self.runtime.build),
        }
    }

    fn verdict(&self) -> Block {
        let rows = &self.comparison;
        let is_exact = rows.iter().all(|row| row.error == 0.0);
        let is_printed = rows.iter().any(|row| row.resolution > Bytes(0));
        let mut text = match (outside(rows), is_exact) {
            (None, true) if is_printed => "As predicted, as far as llama.cpp's log prints it".to_string(),
            (None, true) => "As predicted, to the byte".to_string(),
            (None, false) => format!("As predicted, within {}%", 100.0 * self.tolerance),
            (Some(outside), _) => format!("Not as predicted within {}%: {outside}", 100.0 * self.tolerance),
        };
        if !self.finite {
            text += "; some logits are not finite numbers";
        }
        Block::Verdict(Verdict::of(self.ok()), text + ".")
    }

    fn figures(&self) -> Vec<KeyFigure> {
        let speed = &self.speed;
        let depth =
            if speed.depth > 0 { format!(" at depth {}", thousands(speed.depth.into())) } else { String::new() };
        let figure = |label: &str, spread: Option<Spread>, note: String| {
            let value = spread.map_or("not measured".to_string(), |spread| Unit::TokensPerSecond.spread(spread));
            KeyFigure::new(label, value, note)
        };
        let note = |tokens: u32, depth: &str, samples: &[f64]| {
            format!(
                "tokens/s of {} tokens{depth}, {}",
                thousands(tokens.into()),
                counted(samples.len() as u64, "sample")
            )
        };
        let mut figures = vec![
            figure("Prompt", speed.summary.pp, note(speed.n_prompt, &depth, &speed.pp)),
            figure("Generation", speed.summary.tg, note(speed.n_generate, "", &speed.tg)),
        ];
        let first = speed.summary.first_token.map(|spread| Unit::Seconds.spread(spread));
        figures.extend(first.map(|first| KeyFigure::new("First token", first, "by our clock")));
        figures.push(KeyFigure::new("Load", seconds(self.load_seconds), ""));
        for (device, row) in self.memory.iter().filter(|(device, _)| *device != HOST) {
            figures.push(KeyFigure::new(device, size(row.total), "measured in all"));
        }
        figures
    }

    fn speeds(&self) -> [Option<Block>; 3] {
        let speed = &self.speed;
        let predicted: Option<&Speed> = self.plan.as_ref().map(|plan| &plan.speed);
        let entry = |n: u32, spread, samples: &[f64], of: Option<fn(&Speed) -> f64>| Entry {
            predicted: of.zip(predicted).map(|(of, speed)| (of(speed), speed.uncertainty)),
            ..Entry::measured(format!("{} tokens", thousands(n.into())), spread, samples.to_vec())
        };
        let (summary, n) = (&speed.summary, speed.n_prompt);
        let tg = entry(speed.n_generate, summary.tg, &speed.tg, Some(|speed| speed.tg));
        let pp = entry(n, summary.pp, &speed.pp, Some(|speed| speed.pp));
        let first = entry(n, summary.first_token, &speed.first_token, None);
        [
            chart("Generation", Unit::TokensPerSecond, [tg]),
            chart("Prompt", Unit::TokensPerSecond, [pp]),
            chart("Time to the first token", Unit::Seconds, [first]),
        ]
    }

    fn facts(&self) -> Table {
        let (runtime, process) = (&self.runtime, &self.process);
        let memory = format!("{} own, {} of files, {} at its peak", process.rss_anon, process.rss_file, process.peak);
        let mapped = (self.mapped_span > Bytes(0)).then(|| format!("{} of the file", self.mapped_span));
        let device = |(device, used): (&String, &Bytes)| {
            let of = |times: &BTreeMap<String, Bytes>| times.get(device).copied();
            let loaded = of(&self.device_use.loaded).zip(of(&self.device_use.before));
            let loaded = loaded.and_then(|(loaded, before)| loaded.0.checked_sub(before.0).map(Bytes));
            let loaded = loaded.map_or(String::new(), |loaded| format!(", {loaded} when loaded"));
            (device.clone(), Some(format!("{used} at the peak{loaded}, by the driver")))
        };
        let facts = [
            ("runtime", Some(format!("{} b{} ({})", runtime.program, runtime.build, runtime.backend))),
            ("process", Some(memory)),
            ("mapped", mapped),
        ];
        let facts = facts.map(|(name, fact)| (name.to_string(), fact));
        Table::facts(facts.into_iter().chain(self.device_used.iter().map(device)))
    }
}

/// The rows that are outside the tolerance; `None` without any.
fn outside(rows: &[Row]) -> Option<String> {
    let outside: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.quantity.as_str()).collect();
    (!outside.is_empty()).then(|| outside.join(", "))
}

impl Document for Launched {
    fn pages(&self) -> Vec<Page> {
        let program = self.command.first().map_or("llama-server", |program| file_name(program));
        let title = match &self.plan {
            Some(plan) => plan::name(&plan.model).to_string(),
            None => format!("A launch of {program}"),
        };
        let mut page = Page::new("Launch", title, self.endpoint.clone());
        let rows = self.comparison.as_slice();
        page.push(match outside(rows) {
            _ if rows.is_empty() => {
                Block::Verdict(Verdict::Open, "Its log names no memory: nothing can be compared.".into())
            }
            None => Block::Verdict(Verdict::Good, "As predicted, within the tolerance asked for.".into()),
            Some(outside) => Block::Verdict(Verdict::Bad, format!("Not as predicted: {outside}.")),
        });
        page.push(Block::KeyFigures(vec![
            KeyFigure::new("Load", seconds(self.load_seconds), "until it took requests, by our clock"),
            KeyFigure::new("Endpoint", self.endpoint.clone(), format!("process {}", self.process)),
        ]));
        page.detail(shell(&self.command).map(|command| Block::Command(String::new(), command)));
        let (predicted, measured) = (sums(rows, |row| row.predicted), sums(rows, |row| row.measured));
        let plan = self.plan.as_deref();
        if !predicted.is_empty() {
            let budget = plan.map(|plan| plan.check.budget.clone()).unwrap_or_default();
            let mapped = rows.iter().find(|row| row.quantity.ends_with(".mapped_span"));
            let mapped = mapped.map_or(Bytes(0), |row| row.measured);
            page.detail(Block::Figure(memory::against(MEMORY, &predicted, &measured, mapped, &budget)));
        }
        page.push(Block::Table(TERMS.into(), errors(&[("", rows)])));
        page.detail(map(plan));
        vec![page]
    }
}

/// Memory by device from rows that are called `DEVICE.TERM`; the terms that were compared, and no others.
fn sums(rows: &[Row], of: fn(&Row) -> Bytes) -> Memory {
    let mut memory: BTreeMap<String, MemoryRow> = BTreeMap::new();
    for row in rows {
        let Some((device, term)) = row.quantity.rsplit_once('.') else { continue };
        if !matches!(term, "model" | "context" | "compute" | "total") {
            continue;
        }
        let found = memory.entry(device.to_string()).or_default();
        let sum = match term {
            "model" => &mut found.terms.model,
            "context" => &mut found.terms.context,
            "compute" => &mut found.terms.compute,
            _ => &mut found.total,
        };
        *sum = of(row);
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_add_up_by_device_whatever_its_name() {
        let row = |quantity: &str, predicted: u64| Row {
            quantity: quantity.into(),
            predicted: Bytes(predicted),
            measured: Bytes(predicted + 1),
            resolution: Bytes(0),
            error: 0.0,
            ok: true,
        };
        let rows = [row("CUDA0.model", 5), row("CUDA0.total", 7), row("RPC0[10.0.0.1:1].compute", 3), row("peak", 9)];
        let found = sums(&rows, |row| row.measured);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["CUDA0", "RPC0[10.0.0.1:1]"]);
        assert_eq!((found["CUDA0"].terms.model, found["CUDA0"].total), (Bytes(6), Bytes(8)));
        assert_eq!(found["RPC0[10.0.0.1:1]"].terms.compute, Bytes(4));
        assert_eq!(outside(&rows), None);
    }
}
