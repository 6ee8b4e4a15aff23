//! The placement map: blocks across, kinds of tensors down, coloured by where each is.

use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::checkup::TensorRow;
use crate::report::chart::{Axis, Bar, Bars, Chart, Figure, Fill, Key, Part, Tone};
use crate::report::table::Table;

/// More blocks than any model has: what names more is no model.
const BLOCKS: usize = 1024;
/// More kinds than any model has.
const KINDS: usize = 96;

/// One kind of tensor: by block, where it is and its bytes.
#[derive(Default)]
struct Kind {
    name: String,
    cells: BTreeMap<usize, (String, Bytes)>,
}

/// The map of a document's tensors and the table of it; `None` where no tensor belongs to a block.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
pub fn figure(tensors: &[TensorRow]) -> Option<Figure> {
    let (kinds, others) = kinds(tensors);
    let columns = kinds.iter().filter_map(|kind| kind.cells.keys().next_back()).max()? + 1;
    let buffers = buffers(&kinds);
    let look = |buffer: &str| look(&buffers, buffer);
    let mut table = Table::of("tensor|blocks|buffer|>bytes");
    let mut bars = Vec::new();
    for kind in &kinds {
        let mut parts = Vec::new();
        for (first, last, buffer, bytes) in kind.runs() {
            let blocks = if first == last { first.to_string() } else { format!("{first}–{last}") };
            let (tone, fill) = look(&buffer);
            let text = format!("{}, block {blocks}: {buffer}, {bytes}", kind.name);
            let (from, length) = (first as f64, (last + 1 - first) as f64);
            parts.push(Part { from, length, tone, fill, text });
            table.row([kind.name.clone(), blocks, buffer, bytes.to_string()]);
        }
        bars.push(Bar { parts, ..Bar::stacked(&kind.name, String::new(), Fill::Plain, []) });
    }
    for tensor in others {
        let buffer = tensor.buffer.clone().unwrap_or_else(|| NOT_LOADED.to_string());
        table.row([tensor.name.clone(), "–".into(), buffer, tensor.bytes.to_string()]);
    }
    let key = |buffer: &String| {
        let (tone, fill) = look(buffer);
        Key { label: buffer.clone(), tone, fill }
    };
    Some(Figure {
        title: "Where each tensor is".into(),
        text: "A column is a block, a row a kind of tensor. Hatched cells are in main memory.".into(),
        legend: buffers.iter().map(key).collect(),
        chart: Chart::Bars(vec![Bars { label: String::new(), axis: Axis::Blocks(columns), bars, limit: None }]),
        table,
    })
}

/// Where a tensor is that is not loaded.
pub const NOT_LOADED: &str = "not loaded";

/// The tensors of blocks by kind, in the order of the document, and those of no block.
fn kinds(tensors: &[TensorRow]) -> (Vec<Kind>, Vec<&TensorRow>) {
    let mut kinds: Vec<Kind> = Vec::new();
    let mut others = Vec::new();
    for tensor in tensors {
        let Some((block, name)) = block_and_kind(&tensor.name) else {
            others.push(tensor);
            continue;
        };
        let buffer = tensor.buffer.clone().unwrap_or_else(|| NOT_LOADED.to_string());
        let at = kinds.iter().position(|kind| kind.name == name);
        if at.is_none() && kinds.len() >= KINDS {
            continue;
        }
        let at = at.unwrap_or_else(|| {
            kinds.push(Kind { name: name.to_string(), ..Kind::default() });
            kinds.len() - 1
        });
        if let Some(kind) = kinds.get_mut(at) {
            let cell = kind.cells.entry(block).or_insert_with(|| (buffer.clone(), Bytes(0)));
            cell.1 = cell.1.checked_add(tensor.bytes).unwrap_or(cell.1);
            if cell.0 != buffer {
                cell.0 = format!("{} + {buffer}", cell.0);
            }
        }
    }
    kinds.sort_by_key(|kind| (kind.name.contains("_exps"), kind.name.clone()));
    (kinds, others)
}

/// `blk.12.ffn_up_exps.weight` is block 12 of `ffn_up_exps`, and so is its bias.
fn block_and_kind(name: &str) -> Option<(usize, &str)> {
    let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let block = block.parse().ok().filter(|block| *block < BLOCKS)?;
    let kind = rest.strip_suffix(".weight").or_else(|| rest.strip_suffix(".bias")).unwrap_or(rest);
    Some((block, kind))
}

/// Every buffer of the map: devices by name, then main memory, then what is not loaded.
fn buffers(kinds: &[Kind]) -> Vec<String> {
    let mut names: Vec<String> =
        kinds.iter().flat_map(|kind| kind.cells.values().map(|(buffer, _)| buffer.clone())).collect();
    names.sort_by_key(|name| (name == NOT_LOADED, is_host(name), name.clone()));
    names.dedup();
    names
}

/// Whether llama.cpp's name of a buffer type is of main memory.
fn is_host(name: &str) -> bool {
    name.starts_with("CPU") || name.ends_with("_Host") || name == "Host"
}

/// Devices have colours; main memory is grey and hatched.
fn look(buffers: &[String], buffer: &str) -> (Tone, Fill) {
    if is_host(buffer) || buffer == NOT_LOADED {
        return (Tone::Host, Fill::Hatched);
    }
    (Tone::Series(buffers.iter().position(|known| known == buffer).unwrap_or(0)), Fill::Plain)
}

impl Kind {
    /// Neighbouring blocks in one buffer: first, last, where, how much.
    fn runs(&self) -> Vec<(usize, usize, String, Bytes)> {
        let mut runs: Vec<(usize, usize, String, Bytes)> = Vec::new();
        for (block, (buffer, bytes)) in &self.cells {
            match runs.last_mut() {
                Some(run) if run.1 + 1 == *block && run.2 == *buffer => {
                    run.1 = *block;
                    run.3 = run.3.checked_add(*bytes).unwrap_or(run.3);
                }
                _ => runs.push((*block, *block, buffer.clone(), *bytes)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, buffer: Option<&str>) -> TensorRow {
        let ty = crate::gguf::GgmlType::from_name("f16").unwrap();
        TensorRow { name: name.into(), ty, bytes: Bytes(1 << 20), buffer: buffer.map(str::to_string), rule: None }
    }

    #[test]
    fn neighbours_in_one_buffer_are_one_run_and_bias_counts_with_its_weight() {
        let tensors = [
            tensor("token_embd.weight", Some("CPU")),
            tensor("blk.0.ffn_up_exps.weight", Some("CPU")),
            tensor("blk.0.ffn_up_exps.bias", Some("CPU")),
            tensor("blk.1.ffn_up_exps.weight", Some("CPU")),
            tensor("blk.2.ffn_up_exps.weight", Some("CUDA0")),
            tensor("blk.2.attn_q.weight", Some("CUDA0")),
            tensor("blk.3.ffn_up_exps.weight", None),
            tensor("blk.99999999.x", Some("CPU")),
        ];
        let figure = figure(&tensors).unwrap();
        let cells: Vec<String> = figure.table.rows().iter().map(|row| row.join(" ")).collect();
        assert_eq!(
            cells,
            [
                "attn_q 2 CUDA0 1.00 MiB",
                "ffn_up_exps 0–1 CPU 3.00 MiB",
                "ffn_up_exps 2 CUDA0 1.00 MiB",
                "ffn_up_exps 3 not loaded 1.00 MiB",
                "token_embd.weight – CPU 1.00 MiB",
                "blk.99999999.x – CPU 1.00 MiB",
            ]
        );
        let keys: Vec<_> = figure.legend.iter().map(|key| (key.label.as_str(), key.fill)).collect();
        assert_eq!(keys, [("CUDA0", Fill::Plain), ("CPU", Fill::Hatched), ("not loaded", Fill::Hatched)]);
    }

    #[test]
    fn a_document_without_blocks_has_no_map() {
        assert!(figure(&[tensor("output.weight", Some("CPU"))]).is_none());
    }
}
