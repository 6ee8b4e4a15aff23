//! Many plans: curves over the budget or the context, and a table to step through.

use std::cmp::Reverse;

use super::plan::{about, blocks_on_host, budgets, fits, name};
use super::{Block, Document, Page, Slider, WhatIf, dotted};
use crate::machine::Machine;
use crate::number::{rate, seconds, thousands};
use crate::plan::ModelSummary;
use crate::plan::sweep::{Plans, Point, SweepDocument, Variable};
use crate::report::chart::{self, Lines, Series};
use crate::report::table::{Table, row};
use crate::run::command::shell;
use crate::speed::{Phase, Speed};

const COLUMNS: &str = "fits|>experts on devices|>blocks on host|>context|>-ub|>pp|>tg|>turn";

impl Document for SweepDocument {
    fn pages(&self) -> Vec<Page> {
        let (what, width) = (self.what(), self.width());
        let values = self.points.iter().step_by(width).map(|point| point.label.clone()).collect();
        let mut axes = vec![Slider { what: what.into(), values }];
        if width > 1 {
            let values = self.contexts.iter().map(|tokens| format!("{} tokens", thousands(*tokens))).collect();
            axes.push(Slider { what: "context".into(), values });
        }
        let names: Vec<&str> = axes.iter().map(|axis| axis.what.as_ref()).collect();
        let title = format!("{}: by {}", name(&self.model), names.join(" and "));
        let device = self.machine.devices.first().filter(|_| self.variable == Variable::Vram);
        let budgets = device.map_or(String::new(), |device| format!("budgets of {}", device.name));
        let planned = format!("planned with {}", main_memory(&self.machine));
        let mut page = Page::new("Sweep", title, dotted([about(&self.model, None), budgets, planned]));
        page.detail(self.curve("Generation", "tokens per second", |point| point.speed.tg));
        page.detail(self.curve("Prompt", "tokens per second", |point| point.speed.pp));
        page.detail(self.curve("Experts on devices", "GiB", |point| {
            point.placement.routed_expert_bytes_on_devices.in_mib() / 1024.0
        }));
        let points: Vec<_> = self.points.iter().map(|point| (point, &self.model, Vec::new())).collect();
        let start = self.asked.filter(|at| *at < points.len());
        page.push(what_if(axes, &format!(">{what}"), &points, start, &self.machine));
        vec![page]
    }
}

impl Document for Plans {
    fn pages(&self) -> Vec<Page> {
        let about = format!("planned for {}, {}", budgets(&self.machine), main_memory(&self.machine));
        let mut page = Page::new("Plans", "Several files on one machine", about);
        let values = self.rows.iter().map(|row| row.point.label.clone()).collect();
        let points = self
            .rows
            .iter()
            .map(|of| (&of.point, &of.model, row![of.model.bytes, format!("{:.2}", of.bits_per_weight)].to_vec()));
        let points: Vec<_> = points.collect();
        let axes = vec![Slider { what: "file".into(), values }];
        page.push(what_if(axes, "file|>size|>bits", &points, None, &self.machine));
        // What makes the files that do not exist.
        let made = self.rows.iter().filter_map(|row| Some(row.model.what_if.as_ref()?.command.clone()));
        page.push(made.map(|command| Block::Command(String::new(), command)));
        vec![page]
    }
}

fn main_memory(machine: &Machine) -> String {
    let known = |ram| format!("{ram} of main memory");
    machine.host.ram.map_or("main memory not checked (give --ram SIZE)".to_string(), known)
}

/// The points with what else is shown of each, the commands, and what the columns are; it begins at `start`, else at the first that
/// fits.
fn what_if(
    axes: Vec<Slider>,
    columns: &str,
    points: &[(&Point, &ModelSummary, Vec<String>)],
    start: Option<usize>,
    machine: &Machine,
) -> Vec<Block> {
    let is_by_context = axes.first().is_some_and(|axis| axis.what == "context");
    let row = |(point, _, more): &(&Point, &ModelSummary, Vec<String>)| {
        let placed = row![
            fits(point.fits, &point.shortfall),
            point.placement.routed_expert_bytes_on_devices,
            blocks_on_host(&point.placement),
        ];
        let context = (!is_by_context).then(|| thousands(point.n_ctx.into()));
        let shown = row![
            thousands(point.n_ubatch.into()),
            rate(point.speed.pp),
            rate(point.speed.tg),
            seconds(point.turn_seconds),
        ];
        [point.label.clone()].into_iter().chain(more.clone()).chain(placed).chain(context).chain(shown)
    };
    // Where the context is what varies, it is the label.
    let rest = if is_by_context { COLUMNS.replace("|>context", "") } else { COLUMNS.to_string() };
    let table = Table::rows_of(&format!("{columns}|{rest}"), points.iter().map(row));
    let command = |(point, model, _): &(&Point, &ModelSummary, _)| {
        let start = ["llama-server", "-m", &model.path];
        let words: Vec<&str> = start.into_iter().chain(point.args.iter().map(String::as_str)).collect();
        // A word with a NUL was never a command.
        shell(&words).unwrap_or_default()
    };
    let commands = points.iter().map(command).collect();
    let start = start.or(points.iter().position(|(point, ..)| point.fits)).unwrap_or(0);
    let mut blocks = vec![Block::WhatIf(WhatIf { axes, table, commands, start })];
    blocks.extend(machine.budget_notes().map(Block::Prose));
    let is_grid = points.iter().zip(points.iter().skip(1)).any(|((one, ..), (next, ..))| one.label == next.label);
    let labelled = points.iter().map(|(point, ..)| {
        let label = if is_grid { format!("{} with -c {}", point.label, point.n_ctx) } else { point.label.clone() };
        (label, &point.speed)
    });
    blocks.extend(certainty(labelled));
    blocks
}

/// What the columns of speeds are: of the rows that are as certain as most of them, then of the others by their names.
fn certainty<'a>(rows: impl IntoIterator<Item = (String, &'a Speed)>) -> Vec<Block> {
    let mut alike: Vec<(String, &str, Vec<String>)> = Vec::new();
    for (label, speed) in rows {
        let [pp, tg] = [Phase::Prompt, Phase::Generate].map(|phase| speed.within(phase));
        let within = format!("pp {pp}, tg {tg}, in tokens/s");
        match alike.iter_mut().find(|(known, ..)| *known == within) {
            Some((.., labels)) => labels.push(label),
            None => alike.push((within, &speed.basis, vec![label])),
        }
    }
    // The sort is stable: of as many rows the first come first.
    alike.sort_by_key(|(.., labels)| Reverse(labels.len()));
    let text = |(at, (within, basis, labels)): (usize, (String, &str, Vec<String>))| match at {
        0 => Block::Prose(format!("Predicted: {within} ({basis})")),
        _ => Block::Prose(format!("Predicted for {}: {within} ({basis})", labels.join(", "))),
    };
    alike.into_iter().enumerate().map(text).collect()
}

impl SweepDocument {
    /// Contexts of each budget; 1 where one thing varies. A document whose points are no whole grid has one axis.
    fn width(&self) -> usize {
        let width = self.contexts.len().max(1);
        if self.points.len().is_multiple_of(width) { width } else { 1 }
    }

    fn what(&self) -> &'static str {
        match self.variable {
            Variable::Vram => "budget",
            Variable::Ctx => "context",
        }
    }

    /// One predicted quantity over what varies, of the points that fit.
    #[expect(clippy::cast_precision_loss, reason = "places in a chart")]
    fn curve(&self, title: &str, unit: &str, of: impl Fn(&Point) -> f64) -> Option<Block> {
        let (width, what) = (self.width(), self.what());
        let mut table = Table::of(&format!("{what}|>tokens|>{unit}, predicted"));
        let mut series: Vec<Series> = Vec::new();
        for at in 0..width {
            let mut points = Vec::new();
            for point in self.points.iter().skip(at).step_by(width).filter(|point| point.fits) {
                points.push(chart::Point { x: point.value as f64, y: of(point), spread: None });
                table.row(row![point.label, thousands(point.n_ctx.into()), rate(of(point))]);
            }
            let context = self.contexts.get(at).filter(|_| width > 1);
            let label = context.map_or_else(|| title.to_string(), |tokens| format!("-c {tokens}"));
            series.push(Series { label, at, points });
        }
        let x_is_bytes = self.variable == Variable::Vram;
        let x = if x_is_bytes { "budget of the first device" } else { "context, tokens" }.into();
        let lines = Lines { x, y: unit.into(), series, x_is_bytes, ..Lines::default() };
        let text = format!("One plan per {what}; points that do not fit are left out.");
        Block::lines(&format!("{title} by {what}, predicted"), text, lines, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_as_certain_as_its_footnote_says() {
        let speed = |share: f64, basis: &str| Speed {
            pp: 1.0,
            tg: 1.0,
            basis: basis.into(),
            uncertainty: share,
            uncertainty_pp: share,
            uncertainty_tg: 0.4,
            speculation: None,
            together: None,
        };
        let (usual, disk) = (speed(0.5, "table"), speed(0.7, "table; disk"));
        let rows = [("4 GiB", &disk), ("8 GiB", &usual), ("12 GiB", &usual)];
        let told = |rows: &[(&str, &Speed)]| -> Vec<String> {
            let blocks = certainty(rows.iter().map(|(label, speed)| ((*label).to_string(), *speed)));
            blocks.into_iter().map(|block| if let Block::Prose(text) = block { text } else { String::new() }).collect()
        };
        let most = "Predicted: pp ±50%, tg ±40%, in tokens/s (table)";
        assert_eq!(told(&rows), [most, "Predicted for 4 GiB: pp ±70%, tg ±40%, in tokens/s (table; disk)"]);
        assert_eq!(told(&rows[1..]), [most]);
    }
}
