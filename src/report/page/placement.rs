//! The placement map: blocks across, kinds of tensors down, coloured by where each is.

use std::collections::BTreeMap;

use super::Block;
use crate::bytes::Bytes;
use crate::checkup::TensorRow;
use crate::report::chart::{Axis, Bar, Fill, Key, Part, Tone};
use crate::report::table::Table;

/// More blocks, and more kinds of tensors, than any model has: what names more is no model.
const BLOCKS: usize = 1024;
const KINDS: usize = 96;

pub const NOT_LOADED: &str = "not loaded";

/// The map of a document's tensors and the table of it; `None` where no tensor belongs to a block.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
pub fn map(tensors: &[TensorRow]) -> Option<Block> {
    // By kind, experts last, then by block: where each is, and its bytes.
    let mut kinds: BTreeMap<(bool, &str), BTreeMap<usize, (String, Bytes)>> = BTreeMap::new();
    let mut others = Vec::new();
    for tensor in tensors {
        let buffer = tensor.buffer.as_deref().unwrap_or(NOT_LOADED);
        let Some((block, name)) = block_and_kind(&tensor.name) else {
            others.push([tensor.name.clone(), "–".into(), buffer.into(), tensor.bytes.to_string()]);
            continue;
        };
        let kind = (name.contains("_exps"), name);
        if kinds.len() < KINDS || kinds.contains_key(&kind) {
            let cell = kinds.entry(kind).or_default().entry(block).or_insert_with(|| (buffer.into(), Bytes(0)));
            cell.1 = cell.1.checked_add(tensor.bytes).unwrap_or(cell.1);
            if cell.0 != buffer {
                cell.0 = format!("{} + {buffer}", cell.0);
            }
        }
    }
    let columns = kinds.values().filter_map(|cells| cells.keys().next_back()).max()? + 1;
    let mut buffers: Vec<&str> = kinds.values().flat_map(BTreeMap::values).map(|(buffer, _)| buffer.as_str()).collect();
    // llama.cpp's names of buffer types of main memory.
    let is_host = |name: &str| name.starts_with("CPU") || name.ends_with("_Host") || name == "Host";
    // Devices by name, then main memory, then what is not loaded.
    buffers.sort_by_key(|name| (*name == NOT_LOADED, is_host(name), *name));
    buffers.dedup();
    // Devices have colours; main memory is grey and hatched.
    let look = |buffer: &str| match buffers.iter().position(|known| *known == buffer) {
        Some(at) if !is_host(buffer) && buffer != NOT_LOADED => (Tone::Series(at), Fill::Plain),
        _ => (Tone::Host, Fill::Hatched),
    };
    let mut table = Table::of("tensor|blocks|buffer|>bytes");
    let mut bars = Vec::new();
    for ((_, kind), cells) in &kinds {
        // Neighbouring blocks in one buffer are one part.
        let mut runs: Vec<(usize, usize, &str, Bytes)> = Vec::new();
        for (block, (buffer, bytes)) in cells {
            match runs.last_mut() {
                Some((_, last, of, sum)) if *last + 1 == *block && *of == buffer.as_str() => {
                    *last = *block;
                    *sum = sum.checked_add(*bytes).unwrap_or(*sum);
                }
                _ => runs.push((*block, *block, buffer.as_str(), *bytes)),
            }
        }
        let mut parts = Vec::new();
        for (first, last, buffer, bytes) in runs {
            let blocks = if first == last { first.to_string() } else { format!("{first}–{last}") };
            let (tone, fill) = look(buffer);
            let text = format!("{kind}, block {blocks}: {buffer}, {bytes}");
            parts.push(Part { from: first as f64, length: (last + 1 - first) as f64, tone, fill, text });
            table.row([(*kind).to_string(), blocks, buffer.to_string(), bytes.to_string()]);
        }
        bars.push(Bar { parts, ..Bar::stacked(kind, String::new(), Fill::Plain, []) });
    }
    others.into_iter().for_each(|row| table.row(row));
    let key = |label: &&str| {
        let (tone, fill) = look(label);
        Key { label: (*label).to_string(), tone, fill }
    };
    let legend = buffers.iter().map(key).collect();
    let text = "A column is a block, a row a kind of tensor. Hatched cells are in main memory.".into();
    Some(Block::bars("Where each tensor is", text, legend, Axis::Blocks(columns), bars, table))
}

/// `blk.12.ffn_up_exps.weight` is block 12 of `ffn_up_exps`, and so is its bias.
fn block_and_kind(name: &str) -> Option<(usize, &str)> {
    let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let block = block.parse().ok().filter(|block| *block < BLOCKS)?;
    let kind = rest.strip_suffix(".weight").or_else(|| rest.strip_suffix(".bias")).unwrap_or(rest);
    Some((block, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_one_buffer_are_one_run_and_bias_counts_with_its_weight() {
        let tensors = [
            ("token_embd.weight", Some("CPU")),
            ("blk.0.ffn_up_exps.weight", Some("CPU")),
            ("blk.0.ffn_up_exps.bias", Some("CPU")),
            ("blk.1.ffn_up_exps.weight", Some("CPU")),
            ("blk.2.ffn_up_exps.weight", Some("CUDA0")),
            ("blk.2.attn_q.weight", Some("CUDA0")),
            ("blk.3.ffn_up_exps.weight", None),
            ("blk.99999999.x", Some("CPU")),
        ];
        let ty = crate::gguf::GgmlType::from_name("f16").unwrap();
        let tensors = tensors.map(|(name, buffer)| TensorRow {
            name: name.into(),
            ty,
            bytes: Bytes(1 << 20),
            buffer: buffer.map(str::to_string),
            rule: None,
        });
        let Some(Block::Figure(figure)) = map(&tensors) else { panic!("a map") };
        let cells: Vec<String> = figure.table.rows.iter().map(|row| row.join(" ")).collect();
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
        assert!(map(&tensors[..1]).is_none());
    }
}
