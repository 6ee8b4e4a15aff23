//! A measurement, and a server that stays up: predicted beside measured, term by term, speeds with their samples.

use std::collections::BTreeMap;

use super::compare::Summary;
use super::memory::{self, Memory, size};
use super::speed::Unit::{Rate, Time};
use super::speed::{Entry, chart};
use super::{Block, Document, KeyFigure, Page, Verdict, at_depth, file_name, placement, plan};
use crate::bytes::Bytes;
use crate::measurement::{Launched, Measurement, Row, Taken};
use crate::memory::HOST;
use crate::number::{counted, fixed, seconds, small_size, thousands, typeset};
use crate::plan::Plan;
use crate::report::table::{Table, row};
use crate::run::command::shell;
use crate::runtime::Projection;
use crate::speed::{Phase, Speed};

const MEMORY: &str = "Memory, predicted beside measured";

impl Document for Measurement {
    fn pages(&self) -> Vec<Page> {
        let plan = self.plan.as_deref();
        let unplanned = format!("{} b{}", file_name(&self.runtime.program), self.runtime.build);
        let mut page = Page::new("Measurement", title(plan, &unplanned), format!("llama.cpp b{}", self.runtime.build));
        page.push(self.verdict());
        page.push(self.interrupted.then(|| {
            let text = format!("it was interrupted: speeds are from {}", counted(self.speed.pp.len() as u64, "sample"));
            Block::Note(Verdict::Caution, text, None)
        }));
        page.push(Block::KeyFigures(self.figures()));
        page.detail(plan.map(|plan| Block::Command(String::new(), plan.command.clone())));
        page.push(errors(&[("", &self.taken.comparison)]));
        let Taken { memory, predicted, mapped_span, .. } = &self.taken;
        page.detail(memory::against(MEMORY, predicted, memory, *mapped_span, &budgets(plan)));
        page.detail(self.speeds());
        page.detail(map(plan));
        page.push(Block::Table("The launch".into(), self.facts()));
        page.detail((!self.text.is_empty()).then(|| Block::Output("What was generated".into(), self.text.clone())));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        let title = self.plan.as_deref().map_or(String::new(), |plan| plan::name(&plan.model).to_string());
        let speed = &self.speed;
        let mut summary = Summary::measured(title, speed.summary.pp, speed.summary.tg);
        summary.pp.samples.clone_from(&speed.pp);
        summary.tg.samples.clone_from(&speed.tg);
        vec![Summary { memory: Some(self.taken.memory.clone()), first: speed.summary.first_token, ..summary }]
    }
}

fn title(plan: Option<&Plan>, program: &str) -> String {
    plan.map_or_else(|| format!("A launch of {program}"), |plan| plan::name(&plan.model).to_string())
}

fn budgets(plan: Option<&Plan>) -> BTreeMap<String, Bytes> {
    plan.map(|plan| plan.check.budget.clone()).unwrap_or_default()
}

fn map(plan: Option<&Plan>) -> Option<Block> {
    placement::map(plan?.check.tensors.as_ref()?)
}

impl Measurement {
    fn verdict(&self) -> Block {
        let rows = &self.taken.comparison;
        let is_exact = rows.iter().all(|row| row.error == 0.0);
        let is_printed = rows.iter().any(|row| row.resolution > Bytes(0));
        let text = match (outside(rows), is_exact) {
            (None, true) if is_printed => "As predicted, to the last digit in llama.cpp's log".to_string(),
            (None, true) => "As predicted, to the byte".to_string(),
            (None, false) => format!("As predicted, within {}%", 100.0 * self.tolerance),
            (Some(outside), _) => format!("Not as predicted within {}%: {outside}", 100.0 * self.tolerance),
        };
        let odd = if self.finite { "" } else { "; some logits are not finite numbers" };
        Block::Verdict(Verdict::of(self.ok()), format!("{text}{odd}."))
    }

    fn figures(&self) -> Vec<KeyFigure> {
        let (speed, summary) = (&self.speed, &self.speed.summary);
        let tokens = |n: u32, depth: u32| format!("tokens/s of {} tokens{},", thousands(n.into()), at_depth(depth));
        let devices = self.taken.memory.iter().filter(|(device, _)| *device != HOST);
        [
            Rate.figure("Prompt", summary.pp, &tokens(speed.n_prompt, speed.depth)),
            Rate.figure("Generation", summary.tg, &tokens(speed.n_generate, 0)),
            Time.figure("First token", summary.first_token, "by moeplan's clock,"),
            Some(KeyFigure::new("Load", seconds(self.load_seconds), "")),
        ]
        .into_iter()
        .flatten()
        .chain(devices.map(|(device, row)| KeyFigure::new(device, size(row.total), "measured in total")))
        .collect()
    }

    fn speeds(&self) -> impl Iterator<Item = Block> {
        let (speed, summary) = (&self.speed, &self.speed.summary);
        let planned: Option<&Speed> = self.plan.as_ref().map(|plan| &plan.speed);
        let beside = |title: &str, unit, n: u32, spread, samples: &Vec<f64>, of: Option<Phase>| {
            let predicted = planned.zip(of).map(|(speed, phase)| speed.of(phase));
            let label = format!("{} tokens", thousands(n.into()));
            chart(title, unit, [Entry { predicted, ..Entry::measured(label, spread, samples.clone()) }])
        };
        let charts = [
            beside("Generation", Rate, speed.n_generate, summary.tg, &speed.tg, Some(Phase::Generate)),
            beside("Prompt", Rate, speed.n_prompt, summary.pp, &speed.pp, Some(Phase::Prompt)),
            beside("Time to the first token", Time, speed.n_prompt, summary.first_token, &speed.first_token, None),
        ];
        charts.into_iter().flatten()
    }

    fn facts(&self) -> Table {
        let (runtime, process) = (&self.runtime, &self.process);
        let memory =
            format!("{} of its own, {} from files, {} at its peak", process.rss_anon, process.rss_file, process.peak);
        let mut table = Table::facts([
            ("runtime", Some(format!("{} b{} ({})", runtime.program, runtime.build, runtime.backend))),
            ("process", Some(memory)),
            ("mapped", (self.taken.mapped_span > Bytes(0)).then(|| format!("{} of the file", self.taken.mapped_span))),
        ]);
        for (device, used) in &self.taken.device_used {
            let of = |times: &BTreeMap<String, Bytes>| times.get(device).copied();
            let loaded = of(&self.taken.device_use.loaded).zip(of(&self.taken.device_use.before));
            let loaded = loaded.and_then(|(loaded, before)| loaded.0.checked_sub(before.0).map(Bytes));
            let loaded = loaded.map_or(String::new(), |loaded| format!(", {loaded} when loaded"));
            table.row(row![device, format!("{used} at the peak{loaded}, by the driver")]);
        }
        table
    }
}

fn outside(rows: &[Row]) -> Option<String> {
    let outside: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.quantity.as_str()).collect();
    (!outside.is_empty()).then(|| outside.join(", "))
}

impl Document for Launched {
    fn pages(&self) -> Vec<Page> {
        let (plan, rows) = (self.plan.as_deref(), self.comparison.as_slice());
        let program = self.command.first().map_or("llama-server", |program| file_name(program));
        let mut page = Page::new("Launch", title(plan, program), self.endpoint.clone());
        let (verdict, text) = match outside(rows) {
            _ if rows.is_empty() => {
                (Verdict::Open, "Its log shows no memory figures, so nothing can be compared.".into())
            }
            None => (Verdict::Good, "As predicted, within the tolerance.".into()),
            Some(outside) => (Verdict::Bad, format!("Not as predicted: {outside}.")),
        };
        page.push(Block::Verdict(verdict, text));
        page.push(Block::KeyFigures(vec![
            KeyFigure::new("Load", seconds(self.load_seconds), "until it took requests, by moeplan's clock"),
            KeyFigure::new("Endpoint", self.endpoint.clone(), format!("process {}", self.process)),
        ]));
        page.detail(shell(&self.command).map(|command| Block::Command(String::new(), command)));
        let (predicted, measured) = (sums(rows, |row| row.predicted), sums(rows, |row| row.measured));
        if !predicted.is_empty() {
            let mapped = rows.iter().find(|row| row.quantity.ends_with(".mapped_span"));
            let mapped = mapped.map_or(Bytes(0), |row| row.measured);
            page.detail(memory::against(MEMORY, &predicted, &measured, mapped, &budgets(plan)));
        }
        page.push(errors(&[("", rows)]));
        page.detail(map(plan));
        vec![page]
    }
}

/// What llama.cpp says that a launch would allocate, in bytes.
impl Document for Projection {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Projection", "What llama.cpp would allocate", format!("n_ctx {}", self.n_ctx));
        let rows = self.buffers.iter().map(|of| row![of.buffer, of.model.0, of.context.0, of.compute.0]);
        page.push(Block::table("", Table::rows_of("buffer|>model|>context|>compute", rows)));
        vec![page]
    }
}

/// Memory by device from rows that are called `DEVICE.TERM`; the terms that were compared, and no others.
fn sums(rows: &[Row], of: fn(&Row) -> Bytes) -> Memory {
    let mut memory = Memory::new();
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

/// Predicted beside measured, term by term; of several launches, each with its name.
pub fn errors(launches: &[(&str, &[Row])]) -> Option<Block> {
    let names_launches = launches.len() > 1;
    let rows = launches.iter().flat_map(|(launch, rows)| rows.iter().map(move |row| (*launch, row)));
    let rows = rows.map(|(launch, row)| {
        let difference = match i128::from(row.predicted.0) - i128::from(row.measured.0) {
            0 => "0".to_string(),
            off if off.unsigned_abs() <= u128::from(row.resolution.0) => "below the log's precision".to_string(),
            off => {
                // Two sizes of 64 bits differ by no more than 64 bits.
                let size = small_size(Bytes(u64::try_from(off.unsigned_abs()).unwrap_or(u64::MAX)));
                format!("{}{size}", if off < 0 { "−" } else { "+" })
            }
        };
        let cells = [
            row.quantity.clone(),
            size(row.predicted),
            size(row.measured),
            difference,
            format!("{}%", typeset(&fixed(row.error * 100.0, 2))),
            if row.ok { "ok" } else { "OUTSIDE" }.to_string(),
        ];
        names_launches.then(|| launch.to_string()).into_iter().chain(cells)
    });
    let launch = if names_launches { "launch|" } else { "" };
    let table = Table::rows_of(&format!("{launch}term|>predicted|>measured|>difference|>error|"), rows);
    Block::table("Predicted beside measured, term by term", table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_add_up_by_device_whatever_its_name() {
        let row = |quantity: &str, measured: u64| Row {
            quantity: quantity.into(),
            predicted: Bytes(0),
            measured: Bytes(measured),
            resolution: Bytes(0),
            error: 0.0,
            ok: true,
        };
        let rows = [row("CUDA0.model", 6), row("CUDA0.total", 8), row("RPC0[10.0.0.1:1].compute", 4), row("peak", 9)];
        let found = sums(&rows, |row| row.measured);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["CUDA0", "RPC0[10.0.0.1:1]"]);
        assert_eq!((found["CUDA0"].terms.model, found["CUDA0"].total), (Bytes(6), Bytes(8)));
        assert_eq!(found["RPC0[10.0.0.1:1]"].terms.compute, Bytes(4));
    }
}
