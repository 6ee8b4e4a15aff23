//! The inspect document for people: one screen of text, or Markdown.

use std::fmt::Write as _;

use super::bar::bar;
use super::number::{parameters, percent, share, small_size, thousands};
use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::escape;
use crate::gguf::ByteOrder;
use crate::inspection::Inspection;
use crate::rules::Role;

/// Columns of a bar.
const BAR: usize = 32;

/// One screen for a terminal: at most 100 columns, and 40 lines but for `--tensors` and `--metadata`.
pub fn text(inspection: &Inspection) -> String {
    let mut out = format!("{}\n", escape::terminal(&title(inspection)));
    let mut facts = Table::new(&[("", Align::Left), ("", Align::Left)]);
    for (what, fact) in facts_of(inspection) {
        facts.row([what.to_string(), fact]);
    }
    out += &facts.text();
    for (heading, table) in tables(inspection) {
        let _ = write!(out, "\n{}{}", heading.map(|heading| format!("{heading}\n")).unwrap_or_default(), table.text());
    }
    for warning in &inspection.warnings {
        let _ = writeln!(out, "\nwarning: {} [{}]", escape::terminal(&warning.message), warning.code);
        let _ = writeln!(out, "   hint: {}", escape::terminal(&warning.hint));
    }
    out + &checklist(inspection, Table::text)
}

/// The same as Markdown.
pub fn markdown(inspection: &Inspection) -> String {
    let mut out = format!("## {}\n\n", escape::markdown(&title(inspection)));
    let mut facts = Table::new(&[("What", Align::Left), ("Value", Align::Left)]);
    for (what, fact) in facts_of(inspection) {
        facts.row([what.to_string(), fact]);
    }
    out += &facts.markdown();
    for (_, table) in tables(inspection) {
        let _ = write!(out, "\n{}", table.markdown());
    }
    for warning in &inspection.warnings {
        let (message, hint) = (escape::markdown(&warning.message), escape::markdown(&warning.hint));
        let _ = write!(out, "\n> **{}**: {message}. {hint}.\n", warning.code);
    }
    out + &checklist(inspection, Table::markdown)
}

/// What it is: its name, else its file's.
fn title(inspection: &Inspection) -> String {
    let file = || inspection.path.rsplit('/').next().unwrap_or_default().to_string();
    let name = inspection.name.clone().filter(|name| !name.trim().is_empty()).unwrap_or_else(file);
    let architecture = if inspection.architecture.is_empty() { "no architecture" } else { &inspection.architecture };
    let file_type = match (inspection.file_type, inspection.file_type_guessed) {
        (Some(name), false) => format!(" · {name}"),
        (Some(name), true) => format!(" · mostly {name}"),
        (None, _) => String::new(),
    };
    format!("{name} · {architecture}{file_type} · {}", inspection.bytes.total)
}

fn facts_of(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let counts = &inspection.parameters;
    let mut facts = Vec::new();
    let active = if counts.active == counts.total {
        String::new()
    } else {
        let without = parameters(counts.active_without_token_embedding);
        format!(" ({} active per token, {without} without the token embedding)", parameters(counts.active))
    };
    facts.push(("parameters", format!("{}{active}", parameters(counts.total))));
    let experts = inspection.experts;
    if experts.count == 0 && experts.tensors == 0 {
        facts.push(("experts", "none: a dense model".to_string()));
    } else {
        let shared = if experts.shared == 0 { String::new() } else { format!(" + {} shared", experts.shared) };
        facts.push((
            "experts",
            format!(
                "{}{shared}, {} used per token; in {} of {} blocks, {} tensors, {}",
                experts.count, experts.used, experts.blocks, inspection.block_count, experts.tensors, experts.bytes
            ),
        ));
    }
    facts.push(("context", context(inspection)));
    let nextn = match inspection.nextn_predict_layers {
        0 => String::new(),
        n => format!(" ({n} of them NextN)"),
    };
    facts.push((
        "shape",
        format!(
            "{} blocks{nextn}, embedding {}, vocabulary {}, {} tensors, {:.2} bits per weight",
            inspection.block_count,
            thousands(u64::from(inspection.embedding_length)),
            thousands(u64::from(inspection.vocab_size)),
            thousands(inspection.tensors),
            inspection.bits_per_weight
        ),
    ));
    let order = if inspection.byte_order == ByteOrder::Big { "big" } else { "little" };
    let files = match inspection.files.as_slice() {
        [_] | [] => "1 file".to_string(),
        files => format!("{} files", files.len()),
    };
    let size: Bytes = inspection.files.iter().map(|file| file.bytes).sum();
    facts.push(("file", format!("GGUF {}, {order}-endian, {files}, {size}", inspection.gguf_version)));
    facts
}

fn context(inspection: &Inspection) -> String {
    let mut out = format!("{} tokens", thousands(u64::from(inspection.context_length)));
    let list = |sizes: &std::collections::BTreeMap<&str, Bytes>| {
        sizes.iter().map(|(ty, bytes)| format!("{} at {ty}", small_size(*bytes))).collect::<Vec<_>>().join(", ")
    };
    match &inspection.context_bytes_per_token {
        Some(sizes) if sizes.values().any(|bytes| bytes.0 > 0) => {
            let _ = write!(out, "; each takes {}", list(sizes));
        }
        Some(_) => out += "; none takes memory of its own",
        None => {}
    }
    match &inspection.context_bytes_fixed {
        Some(sizes) if sizes.values().any(|bytes| bytes.0 > 0) => {
            let _ = write!(out, "; fixed: {}", list(sizes));
        }
        _ => {}
    }
    out
}

/// The tables of the document with their headings, in the order they are shown.
fn tables(inspection: &Inspection) -> Vec<(Option<&'static str>, Table)> {
    let mut tables = vec![(None, by_role(inspection)), (None, by_type(inspection))];
    if let Some(rows) = &inspection.tensor_list {
        let columns = ["tensor", "role", "type", "shape", "bytes", "file offset"];
        let right = [false, false, false, false, true, true];
        let columns: Vec<_> =
            columns.into_iter().zip(right.map(|right| if right { Align::Right } else { Align::Left })).collect();
        let mut table = Table::new(&columns);
        for row in rows {
            let shape = row.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
            let shard = if inspection.files.len() > 1 { format!("{}: ", row.file + 1) } else { String::new() };
            table.row([
                row.name.clone(),
                row.role.words().to_string(),
                row.ty.to_string(),
                shape,
                thousands(row.bytes.0),
                format!("{shard}{}", thousands(row.file_offset)),
            ]);
        }
        tables.push((None, table));
    }
    if let Some(metadata) = &inspection.metadata {
        let mut table = Table::new(&[("key", Align::Left), ("value", Align::Left)]);
        for (key, value) in metadata {
            table.row([shorten(key, 60), shown(value)]);
        }
        tables.push((None, table));
    }
    tables
}

fn by_role(inspection: &Inspection) -> Table {
    let mut table = Table::new(&[
        ("role", Align::Left),
        ("parameters", Align::Right),
        ("size", Align::Right),
        ("share", Align::Right),
        ("where the bytes are", Align::Left),
    ]);
    let total = inspection.bytes.total;
    for role in Role::ALL {
        let count = inspection.parameters.by_role.get(&role).copied().unwrap_or(0);
        let bytes = inspection.bytes.by_role.get(&role).copied().unwrap_or_default();
        if count > 0 {
            let share = share(bytes.0, total.0);
            table.row([
                role.words().to_string(),
                parameters(count),
                small_size(bytes),
                percent(share),
                bar(share, BAR),
            ]);
        }
    }
    table.row([
        "total".to_string(),
        parameters(inspection.parameters.total),
        total.to_string(),
        String::new(),
        String::new(),
    ]);
    table
}

fn by_type(inspection: &Inspection) -> Table {
    let mut table = Table::new(&[
        ("type", Align::Left),
        ("tensors", Align::Right),
        ("parameters", Align::Right),
        ("size", Align::Right),
        ("share", Align::Right),
        ("", Align::Left),
    ]);
    let mut types: Vec<_> = inspection.bytes.by_type.iter().collect();
    types.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    for (ty, bytes) in types {
        let count = inspection.tensors_by_type.get(ty).copied().unwrap_or_default();
        let share = share(bytes.0, inspection.bytes.total.0);
        table.row([
            (*ty).to_string(),
            thousands(count.tensors),
            parameters(count.parameters),
            small_size(*bytes),
            percent(share),
            bar(share, BAR),
        ]);
    }
    table
}

fn checklist(inspection: &Inspection, render: fn(&Table) -> String) -> String {
    if inspection.expectations.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("", Align::Left),
        ("expectation", Align::Left),
        ("expected", Align::Right),
        ("found", Align::Right),
    ]);
    for check in &inspection.expectations {
        let mark = if check.ok { "✓" } else { "✗" };
        table.row([mark.to_string(), check.what.clone(), shown(&check.expected), shown(&check.found)]);
    }
    let met = inspection.expectations.iter().filter(|check| check.ok).count();
    format!("\n{}\n{met} of {} expectations met\n", render(&table), inspection.expectations.len())
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
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}
