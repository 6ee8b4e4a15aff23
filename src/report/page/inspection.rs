//! What a model is.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Block, Document, Item, KeyFigure, Page, Verdict, dotted, file_name, named, plan};
use crate::bytes::Bytes;
use crate::gguf::ByteOrder;
use crate::inspection::{Basis, Inspection, TypeCount};
use crate::number::{counted, parameters, percent, share, small_size, thousands};
use crate::report::chart::{Axis, Bar, Bars, Chart, Figure, Fill, Tone};
use crate::report::table::Table;
use crate::rules::Role;

/// Types that have a line of their own in the table of types; the rest share one.
const TYPES: usize = 8;

impl Document for Inspection {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Model", named(self.name.as_deref(), file_name(&self.path)), about(self));
        page.push(Block::KeyFigures(figures(self)));
        page.push(Block::Figure(by_role(self)));
        page.push(Block::filled("", by_type(self)));
        page.push(tensors(self).map(|table| Block::Table("Tensors".into(), table)));
        page.push(metadata(self).map(|table| Block::Table("Metadata".into(), table)));
        page.push_all(plan::warnings(&self.warnings));
        if !self.expectations.is_empty() {
            page.push(Block::Heading("Expectations".into()));
            page.push(Block::Checklist(expectations(self)));
            let met = self.expectations.iter().filter(|check| check.ok).count();
            page.push(Block::Prose(format!("{met} of {} expectations met", self.expectations.len())));
        }
        vec![page]
    }
}

fn about(inspection: &Inspection) -> String {
    let architecture = if inspection.architecture.is_empty() { "no architecture" } else { &inspection.architecture };
    let file_type = inspection.file_type.as_ref().map(|name| match inspection.file_type_basis {
        Basis::Stated => name.to_string(),
        Basis::Guessed => format!("mostly {name}"),
        Basis::Contradicted => format!("labelled {name}"),
    });
    let size = small_size(inspection.bytes.total);
    dotted([architecture.to_string()].into_iter().chain(file_type).chain([size]))
}

fn figures(inspection: &Inspection) -> Vec<KeyFigure> {
    let (counts, experts) = (&inspection.parameters, &inspection.experts);
    let active = if counts.active == counts.total {
        "in all, every one active".to_string()
    } else {
        let without = parameters(counts.active_without_token_embedding);
        format!("in all, {} active per token, {without} without the token embedding", parameters(counts.active))
    };
    let mut figures = vec![KeyFigure::new("Parameters", parameters(counts.total), active)];
    if experts.count == 0 && experts.tensors == 0 {
        figures.push(KeyFigure::new("Experts", "none", "the model is dense"));
    } else {
        let shared = if experts.shared == 0 { String::new() } else { format!(" + {} shared", experts.shared) };
        let (used, blocks, size) = (experts.used, experts.blocks, small_size(experts.bytes));
        let note = format!(
            "in a block, {used} used per token; in {blocks} of {} blocks, {} tensors, {size}",
            inspection.block_count, experts.tensors
        );
        figures.push(KeyFigure::new("Experts", format!("{}{shared}", experts.count), note));
    }
    figures.extend(context(inspection));
    let nextn = match inspection.nextn_predict_layers {
        0 => String::new(),
        n => format!(" ({n} of them NextN)"),
    };
    let shape = format!(
        "blocks{nextn}, embedding {}, vocabulary {}, {}, {:.2} bits per weight",
        thousands(u64::from(inspection.embedding_length)),
        thousands(u64::from(inspection.vocab_size)),
        counted(inspection.tensors, "tensor"),
        inspection.bits_per_weight
    );
    figures.push(KeyFigure::new("Shape", inspection.block_count.to_string(), shape));
    let order = if inspection.byte_order == ByteOrder::Big { "big" } else { "little" };
    let files = counted(inspection.files.len() as u64, "file");
    let size: Bytes = inspection.files.iter().map(|file| file.bytes).sum();
    let note = format!("in {files}, GGUF {}, {order}-endian", inspection.gguf_version);
    figures.push(KeyFigure::new("Size", small_size(size), note));
    figures
}

/// The trained length and what a token takes of memory, then what does not grow with the context.
fn context(inspection: &Inspection) -> Vec<KeyFigure> {
    let list = |sizes: &BTreeMap<Cow<'static, str>, Bytes>| {
        sizes.iter().map(|(ty, bytes)| format!("{} at {ty}", small_size(*bytes))).collect::<Vec<_>>().join(", ")
    };
    let takes_any = |sizes: &BTreeMap<Cow<'static, str>, Bytes>| sizes.values().any(|bytes| bytes.0 > 0);
    let note = match &inspection.context_bytes_per_token {
        Some(sizes) if takes_any(sizes) => format!("tokens; each takes {}", list(sizes)),
        Some(_) => "tokens; none takes memory of its own".to_string(),
        None => "tokens".to_string(),
    };
    let length = match inspection.context_length {
        0 => "length not stated, in".to_string(),
        n => thousands(u64::from(n)),
    };
    let mut figures = vec![KeyFigure::new("Context", length, note)];
    let fixed = inspection.context_bytes_fixed.as_ref().filter(|sizes| takes_any(sizes)).map(list);
    if let Some((size, types)) = fixed.as_ref().and_then(|list| list.split_once(' ')) {
        figures.push(KeyFigure::new("Fixed context", size, format!("{types}, whatever its length")));
    }
    figures
}

/// Bytes by role, and where they are.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn by_role(inspection: &Inspection) -> Figure {
    let mut table = Table::of("role|>parameters|>size|>share");
    let total = inspection.bytes.total;
    let bytes_of = |role: &Role| inspection.bytes.by_role.get(role).copied().unwrap_or_default();
    for role in Role::ALL {
        let count = inspection.parameters.by_role.get(&role).copied().unwrap_or(0);
        if count > 0 {
            let part = share(bytes_of(&role).0, total.0);
            let cells = [role.words().to_string(), parameters(count), small_size(bytes_of(&role)), percent(part)];
            table.row_with_bar(cells, part);
        }
    }
    table.row(["total".to_string(), parameters(inspection.parameters.total), small_size(total), String::new()]);
    let mut roles: Vec<(Role, Bytes)> = Role::ALL.iter().map(|role| (*role, bytes_of(role))).collect();
    roles.retain(|(_, bytes)| bytes.0 > 0);
    roles.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let bar = |(role, bytes): &(Role, Bytes)| {
        Bar::stacked(role.words(), small_size(*bytes), Fill::Plain, [(Tone::Model, bytes.0 as f64)])
    };
    let bars = roles.iter().map(bar).collect();
    let chart = Chart::Bars(vec![Bars { label: String::new(), axis: Axis::Bytes, bars, limit: None }]);
    let text = "Bytes of the file by what its tensors are for.".into();
    Figure { title: "Tensors by role".into(), text, legend: Vec::new(), chart, table }
}

fn by_type(inspection: &Inspection) -> Table {
    let mut table = Table::of("type|>tensors|>parameters|>size|>share");
    let mut types: Vec<_> = inspection.bytes.by_type.iter().collect();
    types.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let (shown, rest) = types.split_at(types.len().min(TYPES));
    let counts = |ty: &str| inspection.tensors_by_type.get(ty).copied().unwrap_or_default();
    let mut row = |name: String, count: TypeCount, bytes: Bytes| {
        let part = share(bytes.0, inspection.bytes.total.0);
        let (tensors, elements) = (thousands(count.tensors), parameters(count.parameters));
        table.row_with_bar([name, tensors, elements, small_size(bytes), percent(part)], part);
    };
    for (ty, bytes) in shown {
        row(ty.to_string(), counts(ty), **bytes);
    }
    if !rest.is_empty() {
        let sum = rest.iter().fold(TypeCount::default(), |sum, (ty, _)| TypeCount {
            tensors: sum.tensors + counts(ty).tensors,
            parameters: sum.parameters + counts(ty).parameters,
        });
        row(format!("{} others", rest.len()), sum, rest.iter().map(|(_, bytes)| **bytes).sum());
    }
    table
}

/// Every tensor, where the document lists them.
fn tensors(inspection: &Inspection) -> Option<Table> {
    let rows = inspection.tensor_list.as_ref()?.iter().map(|row| {
        let shape = row.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
        let shard = if inspection.files.len() > 1 { format!("{}: ", u32::from(row.file) + 1) } else { String::new() };
        let offset = format!("{shard}{}", thousands(row.file_offset));
        let role = row.role.words().to_string();
        [row.name.clone(), role, row.ty.to_string(), shape, thousands(row.bytes.0), offset]
    });
    Some(Table::rows_of("tensor|role|type|shape|>bytes|>file offset", rows))
}

/// Every key and its value, where the document has them.
fn metadata(inspection: &Inspection) -> Option<Table> {
    let rows = inspection.metadata.as_ref()?.iter().map(|(key, value)| [shorten(key, 60), shown(value)]);
    Some(Table::rows_of("key|value", rows))
}

fn expectations(inspection: &Inspection) -> Vec<Item> {
    let grouped = |value: &serde_json::Value| value.as_u64().map_or_else(|| shown(value), thousands);
    let item = |check: &crate::expectation::Check| {
        let (expected, found) = (grouped(&check.expected), grouped(&check.found));
        let why = if expected == found { found } else { format!("{found}, expected {expected}") };
        Item { verdict: Verdict::of(check.ok), what: check.what.clone(), why, hint: None }
    };
    inspection.expectations.iter().map(item).collect()
}

/// A value on one line, shortened.
fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => shorten(text, 60),
        serde_json::Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), |n| n.to_string()),
        serde_json::Value::Array(values) if values.len() > 8 => {
            let first: Vec<String> = values.iter().take(6).map(shown).collect();
            shorten(&format!("[{}, … {} values]", first.join(", "), values.len()), 60)
        }
        serde_json::Value::Array(values) => {
            shorten(&format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")), 60)
        }
        serde_json::Value::Object(object) => match object.get("len") {
            Some(len) => format!("{} values", len.as_u64().map(thousands).unwrap_or_default()),
            None => shorten(&value.to_string(), 60),
        },
        serde_json::Value::Null => "nothing".to_string(),
        serde_json::Value::Bool(yes) => yes.to_string(),
    }
}

/// At most `most` characters.
fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or(text)),
        None => text.to_string(),
    }
}
