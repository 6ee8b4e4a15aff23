//! Memory by device as stacked bars and as a table: predicted beside measured, or run beside run.

use std::collections::{BTreeMap, BTreeSet};

use super::Block;
use crate::bytes::Bytes;
use crate::checkup::Checkup;
use crate::memory::{HOST, MemoryRow};
use crate::number::share;
use crate::report::chart::{Axis, Bar, Bars, Chart, Figure, Fill, Key, Tone};
use crate::report::table::Table;

pub type Memory = BTreeMap<String, MemoryRow>;
type Budgets = BTreeMap<String, Bytes>;

/// One bar in each group: whose it is (`predicted`, `measured`, the name of a run), what it is, and whether it is only predicted.
pub type Side<'a> = (&'a str, &'a Memory, Fill);

const TERMS: [(&str, Tone); 4] =
    [("model", Tone::Model), ("context", Tone::Context), ("compute", Tone::Compute), ("overhead", Tone::Overhead)];

fn terms(row: &MemoryRow) -> [Bytes; 4] {
    [row.terms.model, row.terms.context, row.terms.compute, row.terms.overhead]
}

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
pub fn figure(title: &str, sides: &[Side<'_>], budgets: &Budgets) -> Figure {
    let devices: BTreeSet<&String> = sides.iter().flat_map(|(_, memory, _)| memory.keys()).collect();
    let mut table = table(sides.len() > 1);
    let mut groups = Vec::new();
    for device in devices {
        let mut bars = Vec::new();
        for (label, memory, fill) in sides {
            let Some(row) = memory.get(device) else { continue };
            let names = [device.as_str(), label].into_iter().take(sides.len().min(2));
            add(&mut table, names, terms(row).map(Some), (Some(row.total), row.total), budgets.get(device));
            let parts = TERMS.into_iter().zip(terms(row)).map(|((_, tone), bytes)| (tone, bytes.0 as f64));
            bars.push(Bar::stacked(label, row.total.to_string(), *fill, parts));
        }
        let limit = budgets.get(device).map(|bytes| (format!("budget {bytes}"), bytes.0 as f64));
        groups.push(Bars { label: device.clone(), axis: Axis::Bytes, bars, limit });
    }
    let any = |wanted| sides.iter().any(|(_, _, fill)| *fill == wanted);
    let (text, fill) = match (any(Fill::Hatched), any(Fill::Plain)) {
        (true, true) => ("Hatched bars are predicted, solid bars are measured.", Fill::Plain),
        (true, false) => ("Predicted.", Fill::Hatched),
        _ => ("Measured.", Fill::Plain),
    };
    let key = |(name, tone): (&str, Tone), fill| Key { label: name.into(), tone, fill };
    let predicted = (any(Fill::Hatched) && any(Fill::Plain)).then(|| key(("predicted", Tone::Overhead), Fill::Hatched));
    let legend = TERMS.into_iter().map(|term| key(term, fill)).chain(predicted).collect();
    let text = format!("{text} Each device has its own scale.");
    Figure { title: title.into(), text, legend, chart: Chart::Bars(groups), table }
}

/// The chart of a launch against its prediction. Weights that are mapped from the file are in the predicted sums alone, which
/// has to be said beside bars that would differ by them.
pub fn against(title: &str, predicted: &Memory, measured: &Memory, mapped: Bytes, budgets: &Budgets) -> Block {
    let sides = [("predicted", predicted, Fill::Hatched), ("measured", measured, Fill::Plain)];
    let mut figure = figure(title, &sides, budgets);
    if mapped > Bytes(0) {
        figure.text += &format!(
            " Weights that are mapped from the file ({mapped} of its span) are not in any measured sum; the predicted sums count them."
        );
    }
    Block::Figure(figure)
}

/// Memory of a check, where every term of every device is counted.
pub fn counted(check: &Checkup) -> Option<Memory> {
    check.memory.iter().map(|(device, row)| Some((device.clone(), row.whole()?))).collect()
}

/// Memory by device beside the budgets, of which `margin` is taken off already; without a chart where a term is not counted.
pub fn by_device(check: &Checkup, margin: Bytes) -> Block {
    let title = match margin {
        Bytes(0) => "Memory by device".to_string(),
        margin => format!("Memory by device, budgets less the margin of {margin}"),
    };
    if let Some(memory) = counted(check) {
        return Block::Figure(figure(&title, &[("predicted", &memory, Fill::Hatched)], &check.budget));
    }
    let mut table = table(false);
    for (device, row) in &check.memory {
        let terms = [Some(row.model), row.context, row.compute, row.overhead];
        add(&mut table, [device.as_str()], terms, (row.total, row.counted()), check.budget.get(device));
    }
    Block::Table(title, table)
}

/// What is taken of main memory beside the table, and what that leaves for it.
pub fn main_memory(check: &Checkup) -> Option<Block> {
    let needs = &check.host_needs;
    let [ram, left] =
        [check.main_memory, check.budget.get(HOST).copied()].map(|bytes| bytes.map_or("not known".into(), size));
    let cache = needs.prompt_cache.map_or("no limit".into(), size);
    let taken = [ram, size(needs.process), size(needs.logits), size(needs.checkpoints), size(needs.reserve)];
    let shared = check.shared_memory.map(size);
    let columns = ["main memory", "program", "logits", "checkpoints, at most", "system"].into_iter();
    let columns = columns.chain(shared.is_some().then_some("devices that share it"));
    let columns: Vec<String> =
        columns.chain(["left for Host", "prompt cache, at most"]).map(|name| format!(">{name}")).collect();
    let row: Vec<String> = taken.into_iter().chain(shared).chain([left, cache]).collect();
    Block::table("Main memory", Table::rows_of(&columns.join("|"), [row]))
}

fn table(names_sides: bool) -> Table {
    Table::of(&format!("{}|>model|>context|>compute|>overhead|>total|>budget", if names_sides { "|" } else { "" }))
}

/// Adds a row with a bar for the part of the budget that is `taken`: the total, as far as it is counted.
fn add<'n>(
    table: &mut Table,
    names: impl IntoIterator<Item = &'n str>,
    terms: [Option<Bytes>; 4],
    (total, taken): (Option<Bytes>, Bytes),
    budget: Option<&Bytes>,
) {
    let sizes = terms.into_iter().chain([total]).map(|bytes| bytes.map_or("not counted".to_string(), size));
    let budgeted = budget.map_or(String::new(), |budget| size(*budget));
    let cells = names.into_iter().map(str::to_string).chain(sizes).chain([budgeted]);
    table.row_with_bar(cells, budget.map(|budget| share(taken.0, budget.0)));
}

/// A size, with a plain 0 for nothing.
pub fn size(bytes: Bytes) -> String {
    if bytes == Bytes(0) { "0".into() } else { bytes.to_string() }
}
