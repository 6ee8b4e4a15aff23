//! Many plans in one table: a sweep, or several files.

use super::table::{Align, Table};
use crate::cli::Format;
use crate::escape;
use crate::machine::Machine;
use crate::plan::ModelSummary;
use crate::plan::sweep::{Plans, Point, SweepDocument, Variable};
use crate::speed::Speed;

/// Columns that every plan of many has.
const COLUMNS: [(&str, Align); 8] = [
    ("fits", Align::Left),
    ("experts on devices", Align::Right),
    ("blocks on host", Align::Right),
    ("context", Align::Right),
    ("-ub", Align::Right),
    ("pp", Align::Right),
    ("tg", Align::Right),
    ("turn", Align::Right),
];

/// A sweep as text or Markdown.
pub fn sweep(document: &SweepDocument, format: Format) -> String {
    let variable = match document.variable {
        Variable::Vram => document.machine.devices.first().map_or("budget", |device| device.name.as_str()),
        Variable::Ctx => "-c",
    };
    let mut table = Table::new(&[&[(variable, Align::Right)][..], &COLUMNS].concat());
    for point in &document.points {
        table.row([vec![point.label.clone()], cells(point)].concat());
    }
    let model = &document.model;
    let name = model.name.as_deref().unwrap_or(&model.path);
    let host = main_memory(&document.machine);
    let title = format!("{name}  {}  {}  planned with {host}{}", model.architecture, model.bytes, predicted(model));
    titled(&title, &table, &below(&document.machine, document.points.iter()), format)
}

/// The main memory that plans count on.
fn main_memory(machine: &Machine) -> String {
    let known = |ram| format!("{ram} of main memory");
    machine.host.ram.map_or("any amount of main memory (--ram SIZE has it checked)".to_string(), known)
}

/// What stands below a table: what its budgets are, and what the columns of speeds, with the least certain one's uncertainty.
fn below<'p>(machine: &Machine, points: impl Iterator<Item = &'p Point>) -> Vec<String> {
    let speed = points.map(|point| &point.speed).max_by(|a, b| a.uncertainty.total_cmp(&b.uncertainty));
    let predicted = |speed: &Speed| {
        format!("Predicted ±{:.0}%: pp and tg in tokens/s ({})", speed.uncertainty * 100.0, speed.basis)
    };
    machine.budget_notes().chain(speed.map(predicted)).collect()
}

/// That a model does not exist, for the end of a title; nothing of one that does.
pub(super) fn predicted(model: &ModelSummary) -> String {
    let made = model.what_if.as_ref().map(|made| format!("  predicted: {} of {}", made.recipe, made.source));
    made.unwrap_or_default()
}

/// Several files as text or Markdown.
pub fn plans(document: &Plans, format: Format) -> String {
    let first = [("file", Align::Left), ("size", Align::Right), ("bits", Align::Right)];
    let mut table = Table::new(&[&first[..], &COLUMNS].concat());
    for row in &document.rows {
        let own = vec![row.point.label.clone(), row.model.bytes.to_string(), format!("{:.2}", row.bits_per_weight)];
        table.row([own, cells(&row.point)].concat());
    }
    let budgets: Vec<String> =
        document.machine.devices.iter().map(|device| format!("{} of {}", device.total, device.name)).collect();
    let budget = if budgets.is_empty() { "the host alone".to_string() } else { budgets.join(", ") };
    let title = format!("Planned for {budget}, {}", main_memory(&document.machine));
    titled(&title, &table, &below(&document.machine, document.rows.iter().map(|row| &row.point)), format)
}

fn titled(title: &str, table: &Table, below: &[String], format: Format) -> String {
    if format == Format::Markdown {
        let below: Vec<String> = below.iter().map(|line| escape::markdown(line)).collect();
        format!("## {}\n\n{}\n{}\n", escape::markdown(title), table.markdown(), below.join("\n\n"))
    } else {
        let below: Vec<_> = below.iter().map(|line| escape::terminal(line)).collect();
        format!("{}\n\n{}\n{}\n", escape::terminal(title), table.text(), below.join("\n"))
    }
}

/// What every plan of many shows.
fn cells(point: &Point) -> Vec<String> {
    let short: Vec<String> = point.shortfall.iter().map(|(name, over)| format!("{name} short of {over}")).collect();
    vec![
        if point.fits { "yes".to_string() } else { short.join(", ") },
        point.placement.routed_expert_bytes_on_devices.to_string(),
        format!("{} of {}", point.placement.blocks_with_experts_on_host, point.placement.blocks_with_experts),
        point.n_ctx.to_string(),
        point.n_ubatch.to_string(),
        format!("{:.0}", point.speed.pp),
        format!("{:.1}", point.speed.tg),
        format!("{:.1} s", point.turn_seconds),
    ]
}
