//! Numbers for people: counts in thousands and billions, shares, small sizes.

/// `131072` as `131,072`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `2 files`.
pub fn counted(n: u64, one: &str) -> String {
    format!("{} {one}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// Tokens as they are typed: `8192`, `8k`, `1M`; a thousand is 1024.
pub fn tokens(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1024),
        Some((at, 'm' | 'M')) => (&text[..at], 1024 * 1024),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a number of tokens: write 8192 or 8k"))?;
    let whole = number.checked_mul(unit).and_then(|n| u32::try_from(n).ok());
    whole.ok_or_else(|| format!("`{text}` is too many tokens"))
}

/// A number of parameters: `41.87 B`, `134.52 M`, `12.3 K`, `576`.
#[expect(clippy::cast_precision_loss, reason = "a display value")]
pub fn parameters(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.2} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// `part` of `whole`, 0 for an empty whole.
#[expect(clippy::cast_precision_loss, reason = "a display value")]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A share as a percentage: `96.2%`; what would round to nothing says so.
pub fn percent(share: f64) -> String {
    if share > 0.0 && share < 0.0005 { "<0.1%".to_string() } else { format!("{}%", fixed(share * 100.0, 1)) }
}

/// A number to so many decimal places; what rounds to nothing has no sign.
pub fn fixed(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_string(),
        _ => text,
    }
}

/// A change, with its sign: `+1.5`, `-0.4`; what rounds to nothing has none.
pub fn signed(value: f64, places: usize) -> String {
    let text = fixed(value, places);
    let is_more = text.chars().any(|c| ('1'..='9').contains(&c)) && !text.starts_with('-');
    if is_more { format!("+{text}") } else { text }
}

/// A number with a true minus sign, for a page.
pub fn typeset(number: &str) -> String {
    number.replace('-', "−")
}

/// A size that may be far below a MiB: `128.00 KiB`, else as [`crate::bytes::Bytes`] prints it.
#[expect(clippy::cast_precision_loss, reason = "a display value")]
pub fn small_size(bytes: crate::bytes::Bytes) -> String {
    match bytes.0 {
        0..1024 => counted(bytes.0, "byte"),
        1024..1_048_576 => format!("{:.2} KiB", bytes.0 as f64 / 1024.0),
        _ => bytes.to_string(),
    }
}

/// Tokens per second: `9,984`, `339`, `46.3`, `3.84`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and not negative here")]
pub fn rate(value: f64) -> String {
    match value {
        v if v.is_finite() && v >= 1000.0 => thousands(v.round() as u64),
        v if v.is_finite() && v >= 100.0 => format!("{v:.0}"),
        v if v.is_finite() && v >= 10.0 => fixed(v, 1),
        v => fixed(v, 2),
    }
}

/// A time: `31 ms`, `1.24 s`, `12.3 s`, `4 min 10 s`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 0.01 => format!("{} ms", fixed(v * 1000.0, 1)),
        v if v < 1.0 => format!("{:.0} ms", v * 1000.0),
        v if v < 10.0 => format!("{v:.2} s"),
        v if v < 120.0 => format!("{v:.1} s"),
        v => format!("{:.0} min {:.0} s", (v.round() / 60.0).floor(), v.round() % 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;

    #[test]
    fn nothing_has_no_sign() {
        for (value, places, plain, change) in [
            (-0.004, 2, "0.00", "0.00"),
            (-0.0, 1, "0.0", "0.0"),
            (0.0, 0, "0", "0"),
            (0.04, 1, "0.0", "0.0"),
            (-0.06, 1, "-0.1", "-0.1"),
            (10.0, 0, "10", "+10"),
            (-20.0, 0, "-20", "-20"),
            (1.25, 2, "1.25", "+1.25"),
            (f64::INFINITY, 1, "inf", "inf"),
        ] {
            assert_eq!((fixed(value, places).as_str(), signed(value, places).as_str()), (plain, change), "{value}");
        }
        assert_eq!(typeset(&signed(-1.5, 1)), "−1.5");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(["0", "999", "1,000", "41,873,153,472"].to_vec(), [0, 999, 1000, 41_873_153_472].map(thousands));
        assert_eq!(
            ["41.87 B", "134.52 M", "32.06 K", "576"].to_vec(),
            [41_873_153_472, 134_515_008, 32_064, 576].map(parameters)
        );
        assert_eq!(["0.0%", "<0.1%", "96.2%"].to_vec(), [0.0, 0.0001, 0.9617].map(percent));
        assert_eq!(
            ["12 bytes", "128.00 KiB", "2.00 MiB"].to_vec(),
            [12, 131_072, 2 << 20].map(|n| small_size(Bytes(n)))
        );
        assert_eq!(["9,984", "339", "46.3", "3.84"].to_vec(), [9984.2, 339.4, 46.26, 3.84].map(rate));
        assert_eq!(
            ["4.1 ms", "31 ms", "1.24 s", "12.3 s", "4 min 10 s"].to_vec(),
            [0.0041, 0.031, 1.24, 12.3, 250.0].map(seconds)
        );
    }
}
