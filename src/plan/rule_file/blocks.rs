//! Which blocks a rule is about: ranges, or the first or last of those that have such tensors.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::collections::BTreeSet;

/// The largest block number that a range may name.
const MAX_BLOCK: u32 = 4096;

/// A choice of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocks {
    /// These ranges, both ends included; `None` = to the last.
    Ranges(Vec<(u32, Option<u32>)>),
    /// The first so many blocks that have such tensors.
    First(usize),
    Last(usize),
}

impl Blocks {
    /// Reads `3`, `0-13`, `0-3,8`, `20-`, `first 4` or `last 4`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let count = |text: &str| text.trim().parse().ok().filter(|n| *n > 0);
        if let Some(rest) = text.strip_prefix("first ") {
            return count(rest).map(Self::First);
        }
        if let Some(rest) = text.strip_prefix("last ") {
            return count(rest).map(Self::Last);
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').map_or((part, Some(part)), |(first, last)| (first, Some(last)));
            let first: u32 = first.trim().parse().ok()?;
            let last = match last.map(str::trim) {
                Some("") | None => None,
                Some(last) => Some(last.parse().ok()?),
            };
            let is_range = last.is_none_or(|last| first <= last && last <= MAX_BLOCK);
            is_range.then_some((first, last))
        };
        text.split(',').map(range).collect::<Option<_>>().map(Self::Ranges)
    }

    /// Those of `present` that are meant.
    pub(super) fn of(&self, present: &BTreeSet<u32>) -> BTreeSet<u32> {
        match self {
            Self::First(n) => present.iter().take(*n).copied().collect(),
            Self::Last(n) => present.iter().rev().take(*n).copied().collect(),
            Self::Ranges(ranges) => {
                let meant = |block: &&u32| {
                    ranges.iter().any(|(first, last)| first <= *block && last.is_none_or(|last| **block <= last))
                };
                present.iter().filter(meant).copied().collect()
            }
        }
    }
}

/// Blocks for people: `0-3, 8, 10-12`.
pub(super) fn shown(blocks: &BTreeSet<u32>) -> String {
    let blocks: Vec<u32> = blocks.iter().copied().collect();
    let run = |run: &[u32]| match run {
        [first, .., last] => format!("{first}-{last}"),
        [only] => only.to_string(),
        [] => String::new(),
    };
    blocks.chunk_by(|one, next| *next == one + 1).map(run).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_ranges_or_ends() {
        let present: BTreeSet<u32> = (1..10).collect();
        for (text, expected) in
            [("3", "3"), ("0-3,8", "1-3, 8"), ("7-", "7-9"), ("first 2", "1-2"), ("last 3", "7-9"), (" 4 - 5 ", "4-5")]
        {
            assert_eq!(shown(&Blocks::parse(text).unwrap().of(&present)), expected, "{text}");
        }
        for wrong in ["", "x", "7-3", "first", "first 0", "1-99999", "1,,2", "-3"] {
            assert_eq!(Blocks::parse(wrong), None, "{wrong}");
        }
    }
}
