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
    if share > 0.0 && share < 0.0005 { "<0.1%".to_string() } else { format!("{:.1}%", share * 100.0) }
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

/// Tokens per second: `9,984`, `46.3`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and not negative here")]
pub fn rate(value: f64) -> String {
    match value {
        v if v.is_finite() && v >= 1000.0 => thousands(v.round() as u64),
        v if v.is_finite() && v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

/// A time: `31 ms`, `1.24 s`, `12.3 s`, `4 min 10 s`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 0.01 => format!("{:.1} ms", v * 1000.0),
        v if v < 1.0 => format!("{:.0} ms", v * 1000.0),
        v if v < 10.0 => format!("{v:.2} s"),
        v if v < 120.0 => format!("{v:.1} s"),
        v => format!("{:.0} min {:.0} s", (v / 60.0).floor(), v % 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;

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
        assert_eq!(["9,984", "339", "46.3"].to_vec(), [9984.2, 339.4, 46.26].map(rate));
        assert_eq!(
            ["4.1 ms", "31 ms", "1.24 s", "12.3 s", "4 min 10 s"].to_vec(),
            [0.0041, 0.031, 1.24, 12.3, 250.0].map(seconds)
        );
    }
}
