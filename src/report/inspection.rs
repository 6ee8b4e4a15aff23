//! The inspect document for people: one screen of text, or Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::bar::bar;
use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::escape;
use crate::gguf::ByteOrder;
use crate::inspection::{Basis, Inspection, TypeCount};
use crate::number::{counted, parameters, percent, share, small_size, thousands};
use crate::rules::Role;

/// Columns of a bar.
const BAR: usize = 32;
/// Columns of a line of prose.
const WIDTH: usize = 100;
/// Types that have a line of their own in the table of types; the rest share one.
const TYPES: usize = 8;

/// One screen for a terminal: at most 100 columns, and 40 lines but for `--tensors` and `--metadata`.
pub fn text(inspection: &Inspection) -> String {
    let mut out = format!("{}\n", escape::terminal(&title(inspection)));
    let mut facts = Table::new(&[("", Align::Left), ("", Align::Left)]);
    for (what, fact) in facts_of(inspection) {
        facts.row([what.to_string(), fact]);
    }
    out += &facts.text();
    for table in tables(inspection) {
        let _ = write!(out, "\n{}", table.text());
    }
    for warning in &inspection.warnings {
        let message = format!("warning: {} [{}]", escape::terminal(&warning.message), warning.code);
        let hint = format!("hint: {}", escape::terminal(&warning.hint));
        let _ = write!(out, "\n{}{}", wrapped(&message, "         "), wrapped(&hint, "      "));
    }
    out + &checklist(inspection, Table::text)
}

/// Lines of at most [`WIDTH`] columns, broken at spaces, all but the first indented; ends with a line feed.
fn wrapped(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            let _ = write!(out, "\n{indent}");
            column = indent.len();
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += width;
    }
    out + "\n"
}

/// The same as Markdown.
pub fn markdown(inspection: &Inspection) -> String {
    let mut out = format!("## {}\n\n", escape::markdown(&title(inspection)));
    let mut facts = Table::new(&[("What", Align::Left), ("Value", Align::Left)]);
    for (what, fact) in facts_of(inspection) {
        facts.row([what.to_string(), fact]);
    }
    out += &facts.markdown();
    for table in tables(inspection) {
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
    let file_type = match (inspection.file_type, inspection.file_type_basis) {
        (Some(name), Basis::Stated) => format!(" · {name}"),
        (Some(name), Basis::Guessed) => format!(" · mostly {name}"),
        (Some(name), Basis::Contradicted) => format!(" · labelled {name}"),
        (None, _) => String::new(),
    };
    format!("{name} · {architecture}{file_type} · {}", small_size(inspection.bytes.total))
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
                experts.count,
                experts.used,
                experts.blocks,
                inspection.block_count,
                experts.tensors,
                small_size(experts.bytes)
            ),
        ));
    }
    facts.extend(context(inspection));
    let nextn = match inspection.nextn_predict_layers {
        0 => String::new(),
        n => format!(" ({n} of them NextN)"),
    };
    facts.push((
        "shape",
        format!(
            "{} blocks{nextn}, embedding {}, vocabulary {}, {}, {:.2} bits per weight",
            inspection.block_count,
            thousands(u64::from(inspection.embedding_length)),
            thousands(u64::from(inspection.vocab_size)),
            counted(inspection.tensors, "tensor"),
            inspection.bits_per_weight
        ),
    ));
    let order = if inspection.byte_order == ByteOrder::Big { "big" } else { "little" };
    let files = counted(inspection.files.len() as u64, "file");
    let size: Bytes = inspection.files.iter().map(|file| file.bytes).sum();
    facts.push(("file", format!("GGUF {}, {order}-endian, {files}, {}", inspection.gguf_version, small_size(size))));
    facts
}

/// One line, and a second one where something does not grow with the context.
fn context(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let list = |sizes: &BTreeMap<&str, Bytes>| {
        sizes.iter().map(|(ty, bytes)| format!("{} at {ty}", small_size(*bytes))).collect::<Vec<_>>().join(", ")
    };
    let is_any = |sizes: &BTreeMap<&str, Bytes>| sizes.values().any(|bytes| bytes.0 > 0);
    let tokens = match inspection.context_length {
        0 => "length not stated".to_string(),
        n => format!("{} tokens", thousands(u64::from(n))),
    };
    let each = match &inspection.context_bytes_per_token {
        Some(sizes) if is_any(sizes) => format!("; each takes {}", list(sizes)),
        Some(_) => "; none takes memory of its own".to_string(),
        None => String::new(),
    };
    let mut lines = vec![("context", tokens + &each)];
    if let Some(sizes) = inspection.context_bytes_fixed.as_ref().filter(|sizes| is_any(sizes)) {
        lines.push(("", format!("whatever its length, {}", list(sizes))));
    }
    lines
}

/// The tables of the document, in the order they are shown.
fn tables(inspection: &Inspection) -> Vec<Table> {
    let mut tables = vec![by_role(inspection), by_type(inspection)];
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
        tables.push(table);
    }
    if let Some(metadata) = &inspection.metadata {
        let mut table = Table::new(&[("key", Align::Left), ("value", Align::Left)]);
        for (key, value) in metadata {
            table.row([shorten(key, 60), shown(value)]);
        }
        tables.push(table);
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
        small_size(total),
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
    let (shown, rest) = types.split_at(types.len().min(TYPES));
    let counts = |ty: &str| inspection.tensors_by_type.get(ty).copied().unwrap_or_default();
    let mut row = |name: String, count: TypeCount, bytes: Bytes| {
        let share = share(bytes.0, inspection.bytes.total.0);
        let (tensors, elements) = (thousands(count.tensors), parameters(count.parameters));
        table.row([name, tensors, elements, small_size(bytes), percent(share), bar(share, BAR)]);
    };
    for (ty, bytes) in shown {
        row((*ty).to_string(), counts(ty), **bytes);
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
        let grouped = |value: &serde_json::Value| value.as_u64().map_or_else(|| shown(value), thousands);
        table.row([mark.to_string(), check.what.clone(), grouped(&check.expected), grouped(&check.found)]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, Gguf, Header, Metadata, ModelFile, TensorInfo, Value};
    use crate::model::Model;

    /// A model of one tensor, with an architecture that nobody knows and keys that are missing.
    fn hostile() -> Inspection {
        let text = |text: &str| Value::String(text.to_string());
        let metadata: Metadata = [
            ("general.architecture".to_string(), text("x`\n|")),
            ("general.name".to_string(), text("a\u{1b}[31m|<b>\u{202e}")),
            ("<script>\u{7}".to_string(), text(&"long ".repeat(100))),
        ]
        .into();
        let tensors = vec![TensorInfo {
            name: "blk.0.<i>\u{1b}|".to_string(),
            ty: GgmlType::from_name("f16").unwrap(),
            n_dims: 1,
            shape: [32, 1, 1, 1],
            offset: 0,
            shard: 0,
            bytes: Bytes(64),
        }];
        let header =
            Header { version: 3, byte_order: ByteOrder::Big, alignment: 32, data_offset: 0, metadata, tensors };
        let file = ModelFile { path: "model.gguf".into(), bytes: Bytes(64), data_offset: 0 };
        let (model, refused) = Model::as_far_as_readable(Gguf { files: vec![file], header });
        Inspection::new(&model, &refused, None).with_metadata(&model).with_tensors(&model)
    }

    #[test]
    fn strangers_text_is_harmless() {
        for page in [text(&hostile()), markdown(&hostile())] {
            assert!(page.chars().all(|c| c == '\n' || !c.is_control()) && !page.contains('\u{202e}'), "{page}");
        }
        let page = markdown(&hostile());
        assert!(!page.contains('<'), "{page}");
    }

    #[test]
    fn text_is_one_screen() {
        let mut inspection = hostile();
        (inspection.metadata, inspection.tensor_list, inspection.name) = (None, None, None);
        let page = text(&inspection);
        assert!(page.lines().count() <= 40 && page.lines().all(|line| line.chars().count() <= 100), "{page}");
    }

    #[test]
    fn prose_wraps_between_words() {
        let lines = wrapped(&"word ".repeat(60), "    ");
        assert!(lines.lines().all(|line| line.len() <= WIDTH) && lines.lines().skip(1).all(|l| l.starts_with("    ")));
    }
}
