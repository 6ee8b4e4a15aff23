//! Memory by device as stacked bars and as a table: predicted beside measured, or run beside run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::bytes::Bytes;
use crate::measurement::Row;
use crate::memory::MemoryRow;
use crate::number::{fixed, share, small_size, typeset};
use crate::report::chart::{Axis, Bar, Bars, Chart, Figure, Fill, Key, Tone};
use crate::report::table::Table;

pub type Memory = BTreeMap<String, MemoryRow>;

/// One bar in each group: whose it is, what it is, and whether it is only predicted.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// `predicted`, `measured`, the name of a run.
    pub label: &'a str,
    pub memory: &'a Memory,
    pub fill: Fill,
}

/// A chart of memory by device, a bar a side, and its table.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
pub fn figure(title: &str, sides: &[Side<'_>], budget: &BTreeMap<String, Bytes>) -> Figure {
    let devices: BTreeSet<&String> = sides.iter().flat_map(|side| side.memory.keys()).collect();
    let group = |device: &String| Bars {
        label: device.clone(),
        axis: Axis::Bytes,
        bars: sides.iter().filter_map(|side| Some(bar(side, side.memory.get(device)?))).collect(),
        limit: budget.get(device).map(|bytes| (format!("budget {bytes}"), bytes.0 as f64)),
    };
    let hatched = sides.iter().any(|side| side.fill == Fill::Hatched);
    let plain = sides.iter().any(|side| side.fill == Fill::Plain);
    let text = match (hatched, plain) {
        (true, true) => "Hatched bars are predicted, solid bars are measured. Each device has its own scale.",
        (true, false) => "Predicted. Each device has its own scale.",
        _ => "Measured. Each device has its own scale.",
    };
    let fill = if plain { Fill::Plain } else { Fill::Hatched };
    let mut legend: Vec<Key> =
        TERMS.iter().map(|(name, tone, _)| Key { label: (*name).into(), tone: *tone, fill }).collect();
    if hatched && plain {
        legend.push(Key { label: "predicted".into(), tone: Tone::Overhead, fill: Fill::Hatched });
    }
    Figure {
        title: title.into(),
        text: text.into(),
        legend,
        chart: Chart::Bars(devices.iter().map(|device| group(device)).collect()),
        table: table(sides, &devices, budget),
    }
}

/// The chart of a launch against its prediction. Weights that are mapped from the file are in the predicted sums alone, which
/// has to be said beside bars that would differ by them.
pub fn against(
    title: &str,
    predicted: &Memory,
    measured: &Memory,
    mapped: Bytes,
    budget: &BTreeMap<String, Bytes>,
) -> Figure {
    let sides = [
        Side { label: "predicted", memory: predicted, fill: Fill::Hatched },
        Side { label: "measured", memory: measured, fill: Fill::Plain },
    ];
    let mut figure = figure(title, &sides, budget);
    if mapped > Bytes(0) {
        let _ = write!(
            figure.text,
            " Weights that are mapped from the file ({mapped} of its span) are in no measured sum; the predicted sums count them."
        );
    }
    figure
}

/// A term of a row of memory.
type Term = (&'static str, Tone, fn(&MemoryRow) -> Bytes);

const TERMS: [Term; 4] = [
    ("model", Tone::Model, |row| row.terms.model),
    ("context", Tone::Context, |row| row.terms.context),
    ("compute", Tone::Compute, |row| row.terms.compute),
    ("overhead", Tone::Overhead, |row| row.terms.overhead),
];

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn bar(side: &Side<'_>, row: &MemoryRow) -> Bar {
    let parts = TERMS.iter().map(|(_, tone, of)| (*tone, of(row).0 as f64));
    Bar::stacked(side.label, row.total.to_string(), side.fill, parts)
}

/// A row a device and side, with a bar for the part of its budget that it takes.
fn table(sides: &[Side<'_>], devices: &BTreeSet<&String>, budget: &BTreeMap<String, Bytes>) -> Table {
    let names_sides = sides.len() > 1;
    let side_column = if names_sides { "|" } else { "" };
    let mut table = Table::of(&format!("{side_column}|>model|>context|>compute|>overhead|>total|>budget"));
    for device in devices {
        for side in sides {
            let Some(row) = side.memory.get(*device) else { continue };
            let mut cells = vec![(*device).clone()];
            cells.extend(names_sides.then(|| side.label.to_string()));
            cells.extend(TERMS.iter().map(|(_, _, of)| size(of(row))));
            cells.push(size(row.total));
            match budget.get(*device) {
                Some(budget) => {
                    cells.push(size(*budget));
                    table.row_with_bar(cells, share(row.total.0, budget.0));
                }
                None => {
                    cells.push(String::new());
                    table.row(cells);
                }
            }
        }
    }
    table
}

/// A size, with a plain 0 for nothing.
pub fn size(bytes: Bytes) -> String {
    if bytes == Bytes(0) { "0".into() } else { bytes.to_string() }
}

/// Predicted beside measured, term by term; of several launches, each with its name.
pub fn errors(launches: &[(&str, &[Row])]) -> Table {
    let names_launches = launches.len() > 1;
    let launch_column = if names_launches { "launch|" } else { "" };
    let mut table = Table::of(&format!("{launch_column}term|>predicted|>measured|>difference|>error|"));
    for (launch, row) in launches.iter().flat_map(|(launch, rows)| rows.iter().map(move |row| (launch, row))) {
        let difference = match i128::from(row.predicted.0) - i128::from(row.measured.0) {
            0 => "0".to_string(),
            off if off.unsigned_abs() <= u128::from(row.resolution.0) => "none that a log shows".to_string(),
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
        table.row(names_launches.then(|| (*launch).to_string()).into_iter().chain(cells));
    }
    table
}
