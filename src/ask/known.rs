//! Cards and processors that can be given by name.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::machine::cards::{self, CARDS};
use crate::machine::processors::{self, Processor};

/// `moeplan/known/1`: cards and processors that can be given by name.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Known {
    pub schema: &'static str,
    /// By name.
    pub cards: Vec<KnownCard>,
    /// By name.
    pub processors: Vec<KnownProcessor>,
}

/// A card for `--gpu`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KnownCard {
    pub name: String,
    /// GB that it is sold with, where its real memory is known; of one that uses main memory, GB of its computers.
    pub sold: Vec<u32>,
    /// It uses main memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub integrated: bool,
    /// GB/s by the data sheet; `None` = no figures of speed.
    pub bandwidth: Option<f64>,
}

/// A processor for `--cpu`; `#` in a name is a digit, `*` any rest.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KnownProcessor {
    pub name: String,
    pub cores: Option<u32>,
    /// GB/s of main memory by the data sheet.
    pub memory: Option<f64>,
}

impl Known {
    /// What is known by these words: parts of its name, its maker or series, its backend, a computer that it is in.
    pub fn of(word: &str) -> Self {
        let lower = word.to_ascii_lowercase();
        let meant = cards::by_name(word).map(|card| card.words);
        let is_meant = |card: &&cards::Card| {
            let holds = |word: &str| card.words.contains(word) || card.also_called().any(|name| name.contains(word));
            lower.split_whitespace().all(holds) || meant == Some(card.words)
        };
        let card = |card: &cards::Card| {
            let sizes = card.sold.iter().map(|sold| sold.gb).chain(card.computers().iter().copied());
            KnownCard {
                name: card.words.to_uppercase(),
                sold: sizes.collect::<BTreeSet<_>>().into_iter().collect(),
                integrated: card.is_integrated(),
                bandwidth: card.figures.map(|figures| figures.bandwidth),
            }
        };
        let processor = |(words, known): (&str, Processor)| KnownProcessor {
            name: words.to_string(),
            cores: known.cores,
            memory: known.memory.or(processors::named(words).memory),
        };
        let mut cards: Vec<KnownCard> = CARDS.iter().filter(is_meant).map(card).collect();
        let named = processors::known().filter(|(row, _)| processors::is_meant(row, word));
        let mut processors: Vec<KnownProcessor> = named.map(processor).collect();
        cards.sort_by(|a, b| a.name.cmp(&b.name));
        processors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { schema: "moeplan/known/1", cards, processors }
    }

    pub fn is_empty(&self) -> bool {
        self.cards.is_empty() && self.processors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_every_name_that_people_have_for_them() {
        for (word, cards, processor) in [
            ("Strix Halo", &["8060S"][..], None),
            ("Radeon 8060S", &["8060S"], None),
            ("DGX Spark", &["GB10"], None),
            ("apple", &["M1 ULTRA", "M4 MAX", "M5"], None),
            ("Apple M4 Max", &["M4 MAX"], None),
            ("NVIDIA GeForce RTX 4090", &["RTX 4090"], None),
            ("amd", &["7900 XTX", "8060S"], Some("epyc 9655*")),
            ("4090", &["RTX 4090"], None),
            ("Ryzen 9 7950X", &[], Some("ryzen 9 7950x*")),
            ("Ryzen 5 5600X", &[], Some("ryzen 5 5#00*")),
            ("7950x", &[], Some("ryzen 7950x*")),
            ("5800X3D", &[], Some("ryzen 5800*")),
        ] {
            let known = Known::of(word);
            let has = |name: &&str| known.cards.iter().any(|card| card.name == *name);
            assert!(cards.iter().all(has) && known.cards.is_empty() == cards.is_empty(), "{word}: {known:?}");
            assert!(
                processor.is_none_or(|name| known.processors.iter().any(|known| known.name == name)),
                "{word}: {known:?}"
            );
        }
        assert!(Known::of("zebra").is_empty());
        assert_eq!(Known::of("").cards.len(), CARDS.len());
        let [apple] = &Known::of("Apple M4 Max").cards[..] else { panic!("more than one") };
        assert_eq!((apple.integrated, &apple.sold[..]), (true, &[36, 48, 64, 128][..]));
    }
}
