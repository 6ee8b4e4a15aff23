//! Many plans: curves over the budget or the context, and a table to step through.

use std::borrow::Cow;

use super::plan::{about, blocks_on_host, budgets, fits, name};
use super::{Axis, Block, Document, Page, WhatIf, dotted};
use crate::machine::Machine;
use crate::number::{rate, seconds, thousands};
use crate::plan::ModelSummary;
use crate::plan::sweep::{Plans, Point, SweepDocument, Variable};
use crate::report::chart::{self, Figure, Lines, Series};
use crate::report::table::Table;
use crate::run::command::shell;
use crate::speed::Speed;

/// Columns that every plan of many has.
const COLUMNS: &str = "fits|>experts on devices|>blocks on host|>context|>-ub|>pp|>tg|>turn";

impl Document for SweepDocument {
    fn pages(&self) -> Vec<Page> {
        let axes = self.axes();
        let names: Vec<&str> = axes.iter().map(|axis| axis.what.as_ref()).collect();
        let device = self.machine.devices.first().filter(|_| self.variable == Variable::Vram);
        let budgets = device.map_or(String::new(), |device| format!("budgets of {}", device.name));
        let planned = format!("planned with {}", main_memory(&self.machine));
        let about = dotted([about(&self.model, None), budgets, planned]);
        let mut page = Page::new("Sweep", format!("{}: by {}", name(&self.model), names.join(" and ")), about);
        let curves = [
            self.curve("Generation", "tokens per second", |point| point.speed.tg),
            self.curve("Prompt", "tokens per second", |point| point.speed.pp),
            self.curve("Experts on devices", "GiB", |point| {
                point.placement.routed_expert_bytes_on_devices.in_mib() / 1024.0
            }),
        ];
        page.detail_all(curves.into_iter().flatten().map(Block::Figure));
        let row = |point: &Point| [vec![point.label.clone()], cells(point)].concat();
        let table = Table::rows_of(&format!(">{}|{COLUMNS}", self.what()), self.points.iter().map(row));
        let first_that_fits = || self.points.iter().position(|point| point.fits).unwrap_or(0);
        let start = self.asked.filter(|at| *at < self.points.len()).unwrap_or_else(first_that_fits);
        let commands = self.points.iter().map(|point| command(&self.model, point)).collect();
        page.push(Block::WhatIf(WhatIf { axes, table, commands, start }));
        page.push_all(self.machine.budget_notes().map(Block::Prose));
        page.push(speeds(&self.points));
        vec![page]
    }
}

impl Document for Plans {
    fn pages(&self) -> Vec<Page> {
        let title = "Several files on one machine";
        let about = format!("planned for {}, {}", budgets(&self.machine), main_memory(&self.machine));
        let mut page = Page::new("Plans", title, about);
        let table = Table::rows_of(
            &format!("file|>size|>bits|{COLUMNS}"),
            self.rows.iter().map(|row| {
                let (size, bits) = (row.model.bytes.to_string(), format!("{:.2}", row.bits_per_weight));
                [vec![row.point.label.clone(), size, bits], cells(&row.point)].concat()
            }),
        );
        let values = self.rows.iter().map(|row| row.point.label.clone()).collect();
        let commands = self.rows.iter().map(|row| command(&row.model, &row.point)).collect();
        let start = self.rows.iter().position(|row| row.point.fits).unwrap_or(0);
        let axes = vec![Axis { what: "file".into(), values }];
        page.push(Block::WhatIf(WhatIf { axes, table, commands, start }));
        page.push_all(self.machine.budget_notes().map(Block::Prose));
        page.push(speeds(self.rows.iter().map(|row| &row.point)));
        // What makes the files that do not exist.
        let made = self.rows.iter().filter_map(|row| Some(row.model.what_if.as_ref()?.command.clone()));
        page.push_all(made.map(|command| Block::Command(String::new(), command)));
        vec![page]
    }
}

/// The main memory that plans count on.
fn main_memory(machine: &Machine) -> String {
    let known = |ram| format!("{ram} of main memory");
    machine.host.ram.map_or("any amount of main memory (--ram SIZE has it checked)".to_string(), known)
}

/// What the columns of speeds are, with the least certain one's uncertainty.
fn speeds<'p>(points: impl IntoIterator<Item = &'p Point>) -> Option<Block> {
    let speeds = points.into_iter().map(|point| &point.speed);
    let speed: &Speed = speeds.max_by(|a, b| a.uncertainty.total_cmp(&b.uncertainty))?;
    let off = speed.uncertainty * 100.0;
    Some(Block::Prose(format!("Predicted ±{off:.0}%: pp and tg in tokens/s ({})", speed.basis)))
}

/// What every plan of many shows.
fn cells(point: &Point) -> Vec<String> {
    vec![
        fits(point.fits, &point.shortfall),
        point.placement.routed_expert_bytes_on_devices.to_string(),
        blocks_on_host(&point.placement),
        thousands(point.n_ctx.into()),
        thousands(point.n_ubatch.into()),
        rate(point.speed.pp),
        rate(point.speed.tg),
        seconds(point.turn_seconds),
    ]
}

/// What to type for one point.
fn command(model: &ModelSummary, point: &Point) -> String {
    let words: Vec<&str> =
        ["llama-server", "-m", &model.path].into_iter().chain(point.args.iter().map(String::as_str)).collect();
    // A word with a NUL was never a command.
    shell(&words).unwrap_or_default()
}

impl SweepDocument {
    /// Contexts of each budget; 1 where one thing varies. A document whose points are no whole grid has one axis.
    fn width(&self) -> usize {
        let width = self.contexts.len().max(1);
        if self.points.len().is_multiple_of(width) { width } else { 1 }
    }

    /// What a reader may change, each with its values.
    fn axes(&self) -> Vec<Axis> {
        let width = self.width();
        let values = self.points.iter().step_by(width).map(|point| point.label.clone()).collect();
        let mut axes = vec![Axis { what: self.what(), values }];
        if width > 1 {
            let values = self.contexts.iter().map(|tokens| format!("{} tokens", thousands(*tokens))).collect();
            axes.push(Axis { what: "context".into(), values });
        }
        axes
    }

    fn what(&self) -> Cow<'static, str> {
        match self.variable {
            Variable::Vram => "budget".into(),
            Variable::Ctx => "context".into(),
        }
    }

    /// One predicted quantity over what varies, of the points that fit.
    #[expect(clippy::cast_precision_loss, reason = "places in a chart")]
    fn curve(&self, title: &str, unit: &str, of: impl Fn(&Point) -> f64) -> Option<Figure> {
        let (width, what) = (self.width(), self.what());
        let mut table = Table::of(&format!("{what}|>tokens|>{unit}, predicted"));
        let mut series: Vec<Series> = Vec::new();
        for at in 0..width {
            let mut points = Vec::new();
            for point in self.points.iter().skip(at).step_by(width).filter(|point| point.fits) {
                points.push(chart::Point { x: point.value as f64, y: of(point), spread: None });
                table.row([point.label.clone(), thousands(point.n_ctx.into()), rate(of(point))]);
            }
            let context = self.contexts.get(at).filter(|_| width > 1);
            let label = context.map_or_else(|| title.to_string(), |tokens| format!("-c {tokens}"));
            series.push(Series { label, at, points });
        }
        let is_budget = self.variable == Variable::Vram;
        let lines = Lines {
            x: if is_budget { "budget of the first device" } else { "context, tokens" }.into(),
            y: unit.into(),
            series,
            x_is_bytes: is_budget,
            ..Lines::default()
        };
        let text = format!("Of the plan of each {what}; points that do not fit are left out.");
        Figure::lines(format!("{title} by {what}, predicted"), text, lines, table)
    }
}
