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
    pub cards: Vec<KnownCard>,
    pub processors: Vec<KnownProcessor>,
}

/// A card for `--gpu`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KnownCard {
    pub name: String,
    /// GB that it is sold with, where its real memory is known.
    pub sold: Vec<u32>,
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
    /// What is known by names that hold `word`.
    pub fn of(word: &str) -> Self {
        let word = word.to_ascii_lowercase();
        let card = |card: &cards::Card| {
            let sold = card.sold.iter().map(|sold| sold.gb).collect::<BTreeSet<_>>().into_iter().collect();
            KnownCard {
                name: card.words.to_uppercase(),
                sold,
                bandwidth: card.figures.map(|figures| figures.bandwidth),
            }
        };
        let processor = |(words, known): (&str, Processor)| KnownProcessor {
            name: words.to_string(),
            cores: known.cores,
            memory: known.memory.or(processors::named(words).memory),
        };
        Self {
            schema: "moeplan/known/1",
            cards: CARDS.iter().filter(|card| card.words.contains(&word)).map(card).collect(),
            processors: processors::known().filter(|(words, _)| words.contains(&word)).map(processor).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.cards.is_empty() && self.processors.is_empty()
    }
}
