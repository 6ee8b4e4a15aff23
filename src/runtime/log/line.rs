//! One line of a runtime's output: cut to a length, its prefix or its JSON shell taken off.

use crate::bytes::{Bytes, MIB};

/// The longest line that is read, in bytes; the rest of a longer one is dropped.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// The longest name or message that is kept, in bytes.
pub(super) const MAX_TEXT: usize = 512;

/// What a line holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    /// Text as `-lv` writes it, without time and level.
    Text(String),
    /// A record of `--log-jsonl` that is no line of text: its type and data.
    Record(String, serde_json::Value),
}

/// At most `limit` bytes of `text`, whole characters.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

/// What a line says. JSON lines are those of `--log-jsonl` (common/log.cpp, b11434); anything else is text.
pub(super) fn read(line: &str) -> Line {
    let line = cut(line, MAX_LINE).trim_end_matches(['\r', '\n']);
    if line.starts_with('{')
        && let Ok(serde_json::Value::Object(record)) = serde_json::from_str(line)
        && let Some(kind) = record.get("type").and_then(serde_json::Value::as_str)
    {
        if kind == "log" {
            let text = record.get("msg").and_then(serde_json::Value::as_str).unwrap_or_default();
            return Line::Text(text.trim_end().to_string());
        }
        return Line::Record(kind.to_string(), record.get("data").cloned().unwrap_or_default());
    }
    Line::Text(body(line).to_string())
}

/// A line without its prefix `S.SS.mmm.uuu LEVEL ` (common/log.cpp, b11434), where it has one.
fn body(line: &str) -> &str {
    let Some((time, rest)) = line.split_once(' ') else { return line };
    let is_time = time.contains('.') && time.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match (is_time, rest.split_once(' ')) {
        (true, Some((level, text))) if level.len() == 1 => text,
        _ => line,
    }
}

/// The largest size that is believed: sums of [`super::MOST`] of them stay below 2^64.
const MAX_SIZE: u64 = 1 << 48;

/// The two decimals of `%8.2f MiB`, to the nearest byte; `None` where that is no such number, or more than 256 TiB.
pub(super) fn mib(text: &str) -> Option<Bytes> {
    let (whole, decimals) = text.trim().split_once('.')?;
    if decimals.len() != 2 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hundredths = whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(decimals.parse().ok()?)?;
    let bytes = u128::from(hundredths).checked_mul(u128::from(MIB))?.checked_add(50)? / 100;
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_SIZE).map(Bytes)
}

/// Whole MiB; `None` for more than 256 TiB.
pub(super) fn whole_mib(mib: u64) -> Option<Bytes> {
    mib.checked_mul(MIB).filter(|bytes| *bytes <= MAX_SIZE).map(Bytes)
}

/// The first whole number of a text.
pub(super) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits: &str = text.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_json_shells_come_off() {
        let text = |line| match read(line) {
            Line::Text(text) => text,
            Line::Record(kind, _) => format!("record {kind}"),
        };
        assert_eq!(text("0.00.133.769 I load_tensors:   CPU\r\n"), "load_tensors:   CPU");
        assert_eq!(text("12.5 tokens a second"), "12.5 tokens a second");
        assert_eq!(text(r#"{"type":"log","time":1,"level":"info","msg":"srv  x: y\n"}"#), "srv  x: y");
        assert_eq!(text(r#"{"type":"fit_memory_breakdown","data":{}}"#), "record fit_memory_breakdown");
        assert_eq!(text(r#"{"type":"log","msg":3"#), r#"{"type":"log","msg":3"#);
    }

    #[test]
    fn sizes_keep_two_decimals() {
        assert_eq!(mib("    14.04"), Some(Bytes(14_722_007)));
        assert_eq!(mib("135910.84"), Some(Bytes(142_512_844_964)));
        for bad in ["14", "14.0", "-1.00", "1e5.00", "268435457.00", "99999999999999999999.00", "1.x0"] {
            assert_eq!(mib(bad), None, "{bad}");
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(cut("漢字", 4), "漢");
        assert_eq!(cut("ab", 4), "ab");
    }
}
