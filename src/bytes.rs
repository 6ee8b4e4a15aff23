//! The only unit of memory: a count of bytes that parses as people type it and prints as llama.cpp prints it.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Serialised as an integer, never rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Bytes(pub u64);

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

impl Bytes {
    pub const fn mib(n: u64) -> Self {
        Self(n * MIB)
    }

    /// The count in MiB, for display and ratios only.
    #[expect(clippy::cast_precision_loss, reason = "a display value")]
    pub fn in_mib(self) -> f64 {
        self.0 as f64 / MIB as f64
    }

    /// The sum, or `None` past 2^64.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Rounded up to a multiple of `alignment`, which must be a power of two (ggml: `GGML_PAD`).
    #[must_use]
    pub const fn padded(self, alignment: u64) -> Self {
        Self((self.0 + alignment - 1) & !(alignment - 1))
    }

    /// The size as it is typed: read back it is the same, and not the size on the box of a card.
    pub fn typed(self) -> String {
        match self.0 {
            n if n > 0 && n.is_multiple_of(GIB) => format!("{}GiB", n / GIB),
            n if n > 0 && n.is_multiple_of(MIB) => format!("{}MiB", n / MIB),
            n => format!("{n}B"),
        }
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), |a, b| a + b)
    }
}

/// MiB below 1 GiB, else GiB, with two decimals.
impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "a display value")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < GIB {
            f.pad(&format!("{:.2} MiB", self.in_mib()))
        } else {
            f.pad(&format!("{:.2} GiB", self.0 as f64 / GIB as f64))
        }
    }
}

/// A size that cannot be read, and how to write it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ParseBytesError(String);

/// `97G` and `97GiB` are 97·2^30, `97GB` is 97·10^9 (llama.cpp users write MiB = 2^20).
impl FromStr for Bytes {
    type Err = ParseBytesError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let is_number = trimmed.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if let Ok(number) = trimmed.parse::<f64>()
            && is_number
            && number > 0.0
        {
            // What people mean: few GiB, some thousand MiB, else a count of bytes that a program wrote.
            let unit = if number < 1024.0 {
                "G"
            } else if number < 1_048_576.0 {
                "M"
            } else {
                "B"
            };
            return Err(ParseBytesError(format!("`{trimmed}` has no unit: {trimmed}{unit}?")));
        }
        let binary = match trimmed.char_indices().next_back() {
            Some((at, 'k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T')) => {
                let (number, unit) = trimmed.split_at_checked(at).unwrap_or((trimmed, ""));
                format!("{number}{}iB", unit.to_uppercase())
            }
            _ => trimmed.to_string(),
        };
        let wrong = "is not a size: write it as 24G or 24GiB (2^30), 24GB (10^9), 24576M or 0.5G";
        let parsed = byte_unit::Byte::parse_str(&binary, true);
        Ok(Self(parsed.map_err(|_| ParseBytesError(format!("`{text}` {wrong}")))?.as_u64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_the_contract_says() {
        for (text, bytes) in [
            ("97G", 97 * GIB),
            ("97GiB", 97 * GIB),
            ("97GB", 97_000_000_000),
            ("24576M", 24 * GIB),
            ("0.5G", GIB / 2),
            ("12345B", 12345),
            ("81079m", 81079 * MIB),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Bytes>().map(|b| b.0), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_and_a_number_alone_with_the_likely_unit() {
        for text in ["", "G", "-1G", "1.5.2G", "12 bananas", "99999999999T", "inf", "NaN"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for (text, unit) in [("64", "G"), ("0.5", "G"), ("24576", "M"), ("25769803776", "B"), (" 1 ", "G")] {
            let number = text.trim();
            let error = text.parse::<Bytes>().unwrap_err();
            assert_eq!(error.to_string(), format!("`{number}` has no unit: {number}{unit}?"));
            assert!(format!("{number}{unit}").parse::<Bytes>().is_ok(), "{text}");
        }
    }
}
