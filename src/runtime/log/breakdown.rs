//! llama.cpp's own table of memory at exit (`common_memory_breakdown_print`, common/fit.cpp, b11434), as text and as JSON.

use serde_json::Value;

use super::line::{MAX_TEXT, cut, whole_mib};
use crate::bytes::Bytes;
use crate::memory::{HOST, MemoryBreakdown, MemoryByDevice};

/// One row of the table. Every figure is whole MiB, cut: the true one is less than 1 MiB more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BreakdownRow {
    /// `CUDA0`, `Host`, or another buffer type.
    pub name: String,
    /// What a device calls itself, the maker's name taken off.
    pub description: Option<String>,
    /// What a device has.
    pub total: Option<Bytes>,
    /// What of it was free when the table was printed.
    pub free: Option<Bytes>,
    /// model + context + compute.
    pub own: Bytes,
    /// Weights.
    pub model: Bytes,
    /// Caches.
    pub context: Bytes,
    /// Graphs.
    pub compute: Bytes,
    /// total − free − own in MiB: what nobody accounts for, other processes included.
    pub unaccounted_mib: Option<i64>,
}

/// The table.
pub type Breakdown = Vec<BreakdownRow>;

/// The table as memory by device. Figures are whole MiB: what it says is for want of better.
pub fn memory(table: &[BreakdownRow]) -> MemoryByDevice {
    let row = |row: &BreakdownRow| {
        let terms =
            MemoryBreakdown { model: row.model, context: row.context, compute: row.compute, overhead: Bytes(0) };
        (row.name.clone(), terms)
    };
    table.iter().map(row).collect()
}

/// Whether a line begins the table.
pub(super) fn begins(text: &str) -> bool {
    text.contains("| memory breakdown [MiB]")
}

/// A row of the text: `| - CUDA0 (RTX 4090) | 24080 = 20000 + (3000 = 2000 + 800 + 200) + 1080 |`, or without a total.
pub(super) fn row(text: &str) -> Option<BreakdownRow> {
    let (_, row) = text.split_once("| ")?;
    let name = row.trim_start().strip_prefix("- ")?;
    let (name, numbers) = name.trim_end().strip_suffix('|')?.rsplit_once('|')?;
    let numbers: Option<Vec<i64>> = numbers
        .split(|c: char| c.is_whitespace() || matches!(c, '=' | '+' | '(' | ')'))
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().ok())
        .collect();
    let (name, description) = match name.trim().split_once(" (") {
        Some((name, rest)) => (name, rest.strip_suffix(')')),
        None => (name.trim(), None),
    };
    let mib = |n: &i64| whole_mib(u64::try_from(*n).ok()?);
    let named = |own, model, context, compute| {
        Some(BreakdownRow {
            name: cut(name, MAX_TEXT).to_string(),
            description: description.map(|text| cut(text, MAX_TEXT).to_string()),
            own: mib(own)?,
            model: mib(model)?,
            context: mib(context)?,
            compute: mib(compute)?,
            ..BreakdownRow::default()
        })
    };
    match numbers?.as_slice() {
        [total, free, own, model, context, compute, unaccounted] => {
            let row = named(own, model, context, compute)?;
            Some(BreakdownRow { total: mib(total), free: mib(free), unaccounted_mib: Some(*unaccounted), ..row })
        }
        [own, model, context, compute] => named(own, model, context, compute),
        _ => None,
    }
}

/// The record `fit_memory_breakdown` of `--log-jsonl`.
pub(super) fn record(data: &Value) -> Option<Breakdown> {
    if data.get("unit").and_then(Value::as_str) != Some("MiB") {
        return None;
    }
    let row = |row: &Value| {
        let mib = |key: &str| row.get(key).and_then(Value::as_u64).and_then(whole_mib);
        let text = |key: &str| row.get(key).and_then(Value::as_str).map(|text| cut(text, MAX_TEXT).to_string());
        Some(BreakdownRow {
            name: if row.get("kind").and_then(Value::as_str) == Some("host") {
                HOST.to_string()
            } else {
                text("name")?
            },
            description: text("description"),
            total: mib("total"),
            free: mib("free"),
            own: mib("self")?,
            model: mib("model")?,
            context: mib("context")?,
            compute: mib("compute")?,
            unaccounted_mib: row.get("unaccounted").and_then(Value::as_i64),
        })
    };
    data.get("rows")?.as_array()?.iter().take(256).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_record_say_the_same() {
        let text = [
            "common_memory_breakdown_print: |   - RPC0 (127.0.0.1:50052) | 24105 = 24105 + (   6 =     2 +       1 +       3) +          -6 |",
            "common_memory_breakdown_print: |   - Host                   |                    17 =    12 +       0 +       4                |",
        ];
        let json = r#"{"unit":"MiB","rows":[{"kind":"device","name":"RPC0","description":"127.0.0.1:50052","total":24105,
            "free":24105,"self":6,"model":2,"context":1,"compute":3,"unaccounted":-6},
            {"kind":"host","name":"Host","self":17,"model":12,"context":0,"compute":4}]}"#;
        let table: Breakdown = text.iter().map(|line| row(line).unwrap()).collect();
        assert_eq!(Some(&table), record(&serde_json::from_str(json).unwrap()).as_ref());
        assert_eq!((table[0].unaccounted_mib, table[0].description.as_deref()), (Some(-6), Some("127.0.0.1:50052")));
        assert_eq!(memory(&table)["Host"].model, Bytes::mib(12));
    }

    #[test]
    fn a_bar_in_a_description_and_other_units_do_no_harm() {
        let line = "x: |   - CUDA0 (a | b) | 10 = 9 + (1 = 1 + 0 + 0) + 0 |";
        assert_eq!(row(line).map(|row| row.description), Some(Some("a | b".to_string())));
        for line in [
            "x: |   - CUDA0 | 1 = 2 |",
            "x: |   - CUDA0 | -1 = 2 + 3 + 4 |",
            "x: | - |",
            "| ",
            "x: |   - H | 1 = a + 2 + 3 |",
        ] {
            assert_eq!(row(line), None, "{line}");
        }
        assert_eq!(record(&serde_json::json!({"unit": "GiB", "rows": []})), None);
    }
}
