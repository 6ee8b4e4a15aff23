//! What a model is.

use serde_json::Value;

use super::{Block, Document, Item, KeyFigure, Page, Report, Verdict, dotted, file_name, named, plan};
use crate::bytes::Bytes;
use crate::gguf::ByteOrder;
use crate::inspection::{Basis, ByCache, Inspection, Several, TypeCount};
use crate::model::projector::Modality;
use crate::number::{counted, parameters, percent, share, small_size, thousands};
use crate::report::chart::{Axis, Bar, Fill, Tone};
use crate::report::table::{Table, row};
use crate::rules::Role;

/// Types that have a line of their own in the table of types; the rest share one.
const TYPES: usize = 8;
const SHOWN: usize = 60;

impl Document for Inspection {
    fn pages(&self) -> Vec<Page> {
        let architecture = if self.architecture.is_empty() { "no architecture" } else { &self.architecture };
        let file_type = self.file_type.as_ref().map(|name| match self.file_type_basis {
            Basis::Stated => name.to_string(),
            Basis::Guessed => format!("mostly {name}"),
            Basis::Contradicted => format!("labelled {name}"),
        });
        let about = dotted([architecture, &file_type.unwrap_or_default(), &small_size(self.bytes.total)]);
        let mut page = Page::new("Model", named(self.name.as_deref(), file_name(&self.path)), about);
        page.push(Block::KeyFigures(figures(self)));
        page.push(by_role(self));
        page.push(Block::table("", by_type(self)));
        page.push(self.tensor_list.as_ref().map(|list| {
            let rows = list.iter().map(|of| {
                let shape = of.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
                let shard = if self.files.len() > 1 { format!("{}: ", u32::from(of.file) + 1) } else { String::new() };
                let offset = format!("{shard}{}", thousands(of.file_offset));
                row![of.name, of.role.words(), of.ty, shape, thousands(of.bytes.0), offset]
            });
            Block::Table("Tensors".into(), Table::rows_of("tensor|role|type|shape|>bytes|>file offset", rows))
        }));
        page.push(self.metadata.as_ref().map(|metadata| {
            let rows = metadata.iter().map(|(key, value)| [shorten(key), shown(value)]);
            Block::Table("Metadata".into(), Table::rows_of("key|value", rows))
        }));
        page.push(plan::warnings(&self.warnings));
        if !self.expectations.is_empty() {
            let grouped = |value: &Value| value.as_u64().map_or_else(|| shown(value), thousands);
            let items = self.expectations.iter().map(|check| {
                let (expected, found) = (grouped(&check.expected), grouped(&check.found));
                let why = if expected == found { found } else { format!("{found}, expected {expected}") };
                Item { verdict: Verdict::of(check.ok), what: check.what.clone(), why, hint: None }
            });
            page.push(Block::checklist("Expectations", items.collect()));
            let met = self.expectations.iter().filter(|check| check.ok).count();
            page.push(Block::Prose(format!("{met} of {} expectations met", self.expectations.len())));
        }
        vec![page]
    }
}

impl Document for Several {
    fn pages(&self) -> Vec<Page> {
        self.models.iter().flat_map(Document::pages).collect()
    }

    fn report(&self) -> Report {
        let title = format!("{} models", self.models.len());
        Report { title, about: String::new(), pages: self.pages() }
    }
}

fn figures(inspection: &Inspection) -> Vec<KeyFigure> {
    let (counts, experts) = (&inspection.parameters, &inspection.experts);
    let active = if counts.active == counts.total {
        "in total, all active".to_string()
    } else {
        let without = parameters(counts.active_without_token_embedding);
        format!("in total, {} active per token, {without} without the token embedding", parameters(counts.active))
    };
    let experts = if experts.count == 0 && experts.tensors == 0 {
        KeyFigure::new("Experts", "none", "(the model is dense)")
    } else {
        let shared = if experts.shared == 0 { String::new() } else { format!(" + {} shared", experts.shared) };
        let (used, blocks, size) = (experts.used, experts.blocks, small_size(experts.bytes));
        let note = format!(
            "per block, {used} used per token; in {blocks} of {} blocks, {} tensors, {size}",
            inspection.block_count, experts.tensors
        );
        KeyFigure::new("Experts", format!("{}{shared}", experts.count), note)
    };
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
    let order = if inspection.byte_order == ByteOrder::Big { "big" } else { "little" };
    let files = counted(inspection.files.len() as u64, "file");
    let size: Bytes = inspection.files.iter().map(|file| file.bytes).sum();
    let note = format!("in {files}, GGUF {}, {order}-endian", inspection.gguf_version);
    let encoders = inspection.encoders.iter().map(|encoder| {
        let what = match encoder.modality {
            Modality::Vision => "Vision",
            Modality::Audio => "Audio",
            Modality::GenAudio => "Speech",
        };
        let size = encoder.image_size.filter(|size| *size > 0).map(|size| format!("images of {size} × {size} pixels"));
        let tokens = match (encoder.tokens, encoder.max_tokens) {
            (Some(tokens), _) => Some(format!("{tokens} tokens per image")),
            (None, Some(most)) => Some(format!("up to {} tokens per image", thousands(most))),
            (None, None) => None,
        };
        let note: Vec<String> = size.into_iter().chain(tokens).collect();
        KeyFigure::new(what, encoder.kind.to_string(), note.join(", "))
    });
    let drafts = inspection.drafts.iter().map(|kind| {
        KeyFigure::new("Drafts", kind.to_string(), "for another model: it goes with llama.cpp's --model-draft")
    });
    [KeyFigure::new("Parameters", parameters(counts.total), active), experts]
        .into_iter()
        .chain(encoders)
        .chain(drafts)
        .chain(context(inspection))
        .chain([KeyFigure::new("Shape", inspection.block_count.to_string(), shape)])
        .chain([KeyFigure::new("Size", small_size(size), note)])
        .collect()
}

/// The trained length and what a token takes of memory, then what does not grow with the context.
fn context(inspection: &Inspection) -> Vec<KeyFigure> {
    let list = |sizes: &ByCache| {
        let all: Vec<String> = sizes.iter().map(|(ty, bytes)| format!("{} at {ty}", small_size(*bytes))).collect();
        sizes.values().any(|bytes| bytes.0 > 0).then(|| all.join(", "))
    };
    let note = match inspection.context_bytes_per_token.as_ref().map(list) {
        Some(Some(sizes)) => format!("tokens; each takes {sizes}"),
        Some(None) => "tokens; none takes memory of its own".to_string(),
        None => "tokens".to_string(),
    };
    let length = match inspection.context_length {
        0 => "length not stated, in".to_string(),
        n => thousands(u64::from(n)),
    };
    let fixed = inspection.context_bytes_fixed.as_ref().and_then(list);
    let fixed = fixed.as_ref().and_then(|list| list.split_once(' '));
    let fixed =
        fixed.map(|(size, types)| KeyFigure::new("Fixed context", size, format!("{types}, whatever its length")));
    [KeyFigure::new("Context", length, note)].into_iter().chain(fixed).collect()
}

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn by_role(inspection: &Inspection) -> Block {
    let mut table = Table::of("role|>parameters|>size|>share");
    let total = inspection.bytes.total;
    let mut roles: Vec<(Role, Bytes)> = Vec::new();
    for role in Role::ALL {
        let bytes = inspection.bytes.by_role.get(&role).copied().unwrap_or_default();
        let count = inspection.parameters.by_role.get(&role).copied().unwrap_or(0);
        let part = share(bytes.0, total.0);
        if count > 0 {
            table.row_with_bar([role.words().into(), parameters(count), small_size(bytes), percent(part)], part);
        }
        roles.extend((bytes.0 > 0).then_some((role, bytes)));
    }
    table.row(row!["total", parameters(inspection.parameters.total), small_size(total), ""]);
    roles.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let bar = |(role, bytes): &(Role, Bytes)| {
        Bar::stacked(role.words(), small_size(*bytes), Fill::Plain, [(Tone::Model, bytes.0 as f64)])
    };
    let bars = roles.iter().map(bar).collect();
    let text = "Bytes of the file by what its tensors are for.".into();
    Block::bars("Tensors by role", text, Vec::new(), Axis::Bytes, bars, table)
}

fn by_type(inspection: &Inspection) -> Table {
    let count = |ty: &str| inspection.tensors_by_type.get(ty).copied().unwrap_or_default();
    let mut types: Vec<(String, TypeCount, Bytes)> =
        inspection.bytes.by_type.iter().map(|(ty, bytes)| (ty.to_string(), count(ty), *bytes)).collect();
    types.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
    let rest = types.split_off(types.len().min(TYPES));
    if !rest.is_empty() {
        let sum = |of: fn(&TypeCount) -> u64| rest.iter().map(|(_, count, _)| of(count)).sum();
        let count = TypeCount { tensors: sum(|count| count.tensors), parameters: sum(|count| count.parameters) };
        types.push((format!("{} others", rest.len()), count, rest.iter().map(|(_, _, bytes)| *bytes).sum()));
    }
    let mut table = Table::of("type|>tensors|>parameters|>size|>share");
    for (name, count, bytes) in types {
        let part = share(bytes.0, inspection.bytes.total.0);
        let (tensors, elements) = (thousands(count.tensors), parameters(count.parameters));
        table.row_with_bar([name, tensors, elements, small_size(bytes), percent(part)], part);
    }
    table
}

fn shown(value: &Value) -> String {
    let list = |values: &[Value]| values.iter().map(shown).collect::<Vec<_>>().join(", ");
    match value {
        Value::String(text) => shorten(text),
        Value::Array(values) if values.len() > 8 => {
            shorten(&format!("[{}, … {} values]", list(values.get(..6).unwrap_or_default()), values.len()))
        }
        Value::Array(values) => shorten(&format!("[{}]", list(values))),
        Value::Object(object) => match object.get("len") {
            Some(len) => format!("{} values", len.as_u64().map(thousands).unwrap_or_default()),
            None => shorten(&value.to_string()),
        },
        Value::Null => "nothing".to_string(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or(text)),
        None => text.to_string(),
    }
}
