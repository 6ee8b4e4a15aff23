//! A launch that stays up (`moeplan run`) as a section: where it is, and its memory predicted beside measured.

use std::collections::BTreeMap;

use super::memory::{self, Memory, errors};
use super::view::{Launched, Plan};
use super::{Block, KeyFigure, Section, Verdict, file_name, placement, plan};
use crate::bytes::Bytes;
use crate::measurement::{MemoryRow, Row};
use crate::number::seconds;
use crate::run::command::quoted;

/// The section of a launch.
pub fn section(launched: &Launched, source: &str) -> Section {
    let planned: Option<Plan> = serde_json::from_value(launched.plan.clone()).ok();
    let rows = launched.comparison.as_slice();
    let figure = |label: &str, value: String, note: &str| KeyFigure { label: label.into(), value, note: note.into() };
    let mut blocks = vec![
        verdict(rows),
        Block::KeyFigures(vec![
            figure("Load", seconds(launched.load_seconds), "until it took requests, by our clock"),
            figure("Endpoint", launched.endpoint.clone(), &format!("process {}", launched.process)),
        ]),
    ];
    blocks.push(Block::Command(launched.command.iter().filter_map(|word| quoted(word)).collect::<Vec<_>>().join(" ")));
    let budget = planned.as_ref().map(|plan| plan.budget.clone()).unwrap_or_default();
    let (predicted, measured) = (sums(rows, |row| row.predicted), sums(rows, |row| row.measured));
    if !predicted.is_empty() {
        let mapped =
            rows.iter().find(|row| row.quantity.ends_with(".mapped_span")).map_or(Bytes(0), |row| row.measured);
        let title = "Memory, predicted beside measured";
        blocks.push(Block::Figure(memory::against(title, &predicted, &measured, mapped, &budget)));
    }
    blocks.push(Block::Table("Predicted against measured, term by term".into(), errors([("this", rows)])));
    let tensors = planned.as_ref().and_then(|plan| plan.tensors.as_ref());
    blocks.extend(tensors.and_then(|tensors| placement::figure(tensors)).map(Block::Figure));
    let heading = planned.filter(|plan| plan.model.is_some()).map(|plan| plan::heading(&plan));
    let program = launched.command.first().map_or("llama-server", |program| file_name(program));
    let heading = heading.unwrap_or_else(|| format!("A launch of {program}"));
    Section { heading, source: source.to_string(), blocks }
}

fn verdict(rows: &[Row]) -> Block {
    let outside: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.quantity.as_str()).collect();
    match (rows.is_empty(), outside.is_empty()) {
        (true, _) => Block::Verdict(Verdict::Open, "Its log names no memory: nothing can be compared.".into()),
        (_, true) => Block::Verdict(Verdict::Good, "As predicted, within the tolerance asked for.".into()),
        _ => Block::Verdict(Verdict::Bad, format!("Not as predicted: {}.", outside.join(", "))),
    }
}

/// Memory by device from rows that are called `DEVICE.TERM`; the terms that were compared, and no others.
fn sums(rows: &[Row], of: fn(&Row) -> Bytes) -> Memory {
    let mut memory: BTreeMap<String, MemoryRow> = BTreeMap::new();
    for row in rows {
        let Some((device, term)) = row.quantity.rsplit_once('.') else { continue };
        let bytes = of(row);
        let device = || device.to_string();
        match term {
            "model" => memory.entry(device()).or_default().terms.model = bytes,
            "context" => memory.entry(device()).or_default().terms.context = bytes,
            "compute" => memory.entry(device()).or_default().terms.compute = bytes,
            "total" => memory.entry(device()).or_default().total = bytes,
            _ => {}
        }
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
        assert!(matches!(verdict(&rows), Block::Verdict(Verdict::Good, _)));
        assert!(matches!(verdict(&[]), Block::Verdict(Verdict::Open, _)));
    }
}
