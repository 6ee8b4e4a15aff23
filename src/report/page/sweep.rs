//! Many plans as a section: curves over the budget or the context, and a table to step through.

use super::view::{Point, Sweep};
use super::{Axis, Block, Section, WhatIf, plan};
use crate::number::{rate, seconds, thousands};
use crate::report::chart::{self, Chart, Figure, Lines, Series};
use crate::report::table::{Align, Table};
use crate::run::command::shell;
use crate::speed::Speed;

/// The section of a sweep, or of several files on one machine.
pub fn section(sweep: &Sweep, source: &str) -> Section {
    let name = |model: &super::view::ModelSummary| model.name.clone().unwrap_or_else(|| model.path.clone());
    let heading = match &sweep.model {
        Some(model) => {
            let axes: Vec<String> = axes(sweep).into_iter().map(|axis| axis.what).collect();
            format!("{}: by {}", name(model), axes.join(" and "))
        }
        None => "Several files on one machine".to_string(),
    };
    let mut blocks = Vec::new();
    if !sweep.variable.is_empty() {
        let speed = |of: fn(&Speed) -> f64| move |point: &Point| point.speed.as_ref().map(of);
        let curves = [
            curve(sweep, "Generation", "tokens per second", speed(|speed| speed.tg)),
            curve(sweep, "Prompt", "tokens per second", speed(|speed| speed.pp)),
            curve(sweep, "Experts on devices", "GiB", |point| Some(on_devices(point))),
        ];
        blocks.extend(curves.into_iter().flatten().map(Block::Figure));
    }
    let start = sweep.asked.filter(|at| *at < sweep.points.len());
    let start = start.or_else(|| sweep.points.iter().position(|point| point.fits)).unwrap_or(0);
    let commands = sweep.points.iter().map(|point| command(sweep, point)).collect();
    blocks.push(Block::WhatIf(WhatIf { axes: axes(sweep), table: table(sweep), commands, start }));
    Section { heading, source: source.to_string(), blocks }
}

/// Contexts of each budget; 1 where one thing varies. A document whose points are no whole grid has one axis.
fn width(sweep: &Sweep) -> usize {
    let width = sweep.contexts.len().max(1);
    if sweep.points.len().is_multiple_of(width) { width } else { 1 }
}

/// What a reader may change, each with its values.
fn axes(sweep: &Sweep) -> Vec<Axis> {
    let width = width(sweep);
    let values = sweep.points.iter().step_by(width).map(|point| point.label.clone()).collect();
    let mut axes = vec![Axis { what: what(sweep).into(), values }];
    if width > 1 {
        let values = sweep.contexts.iter().map(|tokens| format!("{} tokens", thousands(*tokens))).collect();
        axes.push(Axis { what: "context".into(), values });
    }
    axes
}

fn what(sweep: &Sweep) -> &'static str {
    match sweep.variable.as_str() {
        "vram" => "budget",
        "ctx" => "context",
        _ => "file",
    }
}

/// GiB of routed experts on any device.
fn on_devices(point: &Point) -> f64 {
    point.placement.routed_expert_bytes_on_devices.in_mib() / 1024.0
}

/// One predicted quantity over what varies, of the points that fit.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn curve(sweep: &Sweep, title: &str, unit: &str, of: impl Fn(&Point) -> Option<f64>) -> Option<Figure> {
    let width = width(sweep);
    let unit_predicted = format!("{unit}, predicted");
    let mut table =
        Table::new(&[(what(sweep), Align::Left), ("tokens", Align::Right), (&unit_predicted, Align::Right)]);
    let mut series: Vec<Series> = Vec::new();
    for at in 0..width {
        let mut points = Vec::new();
        let of_series = sweep.points.iter().skip(at).step_by(width).filter(|point| point.fits);
        for (point, value) in of_series.filter_map(|point| Some((point, of(point)?))) {
            points.push(chart::Point { x: point.value as f64, y: value, spread: None });
            table.row([point.label.clone(), thousands(point.n_ctx.into()), rate(value)]);
        }
        let context = sweep.contexts.get(at).filter(|_| width > 1);
        let label = context.map_or_else(|| title.to_string(), |tokens| format!("-c {tokens}"));
        series.push(Series { label, at, points });
    }
    if series.iter().all(|series| series.points.len() < 2) {
        return None;
    }
    let is_budget = sweep.variable == "vram";
    let chart = Chart::Lines(Lines {
        x: if is_budget { "budget of the first device" } else { "context, tokens" }.into(),
        y: unit.into(),
        series,
        levels: Vec::new(),
        dense: false,
        x_is_bytes: is_budget,
    });
    let text = format!("Of the plan of each {}; points that do not fit are left out.", what(sweep));
    Some(Figure { title: format!("{title} by {}, predicted", what(sweep)), text, legend: Vec::new(), chart, table })
}

fn table(sweep: &Sweep) -> Table {
    use Align::{Left, Right};
    let columns = [(what(sweep), Left), ("fits", Left), ("experts on the host", Right), ("context", Right)];
    let more = [("-ub", Right), ("pp, predicted", Right), ("tg, predicted", Right), ("turn, predicted", Right)];
    let mut table = Table::new(&[&columns[..], &more].concat());
    for point in &sweep.points {
        let of = |speed: fn(&Speed) -> f64| point.speed.as_ref().map(speed).map(rate).unwrap_or_default();
        table.row([
            point.label.clone(),
            if point.fits { "yes" } else { "no" }.to_string(),
            plan::experts(&point.placement),
            thousands(point.n_ctx.into()),
            thousands(point.n_ubatch.into()),
            of(|speed| speed.pp),
            of(|speed| speed.tg),
            seconds(point.turn_seconds),
        ]);
    }
    table
}

/// What to type for one point.
fn command(sweep: &Sweep, point: &Point) -> String {
    let path = point.model.as_ref().or(sweep.model.as_ref()).map_or("MODEL", |model| &model.path);
    let words: Vec<&str> =
        ["llama-server", "-m", path].into_iter().chain(point.args.iter().map(String::as_str)).collect();
    // A word with a NUL was never a command.
    shell(&words).unwrap_or_default()
}
