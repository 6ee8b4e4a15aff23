//! The document of a tuning: who took part, what was measured, who is proposed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::race::{End, Entrant, Range, Standing};
use super::{Candidate, Race, Subject, Verdict, Visit};
use crate::bytes::Bytes;
use crate::speed::Acceptance;
use crate::stats::Spread;

/// Which of the launches that took part is fastest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Document {
    pub schema: String,
    pub subject: Subject,
    pub stopped: End,
    /// How long it took this time, in seconds.
    pub seconds: f64,
    pub journal: String,
    /// What it says of `--fit on`.
    #[serde(flatten)]
    pub verdict: Verdict,
    pub candidates: Vec<Entry>,
    pub winner: usize,
    pub command: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Entry {
    #[serde(flatten)]
    pub candidate: Candidate,
    #[serde(flatten)]
    pub standing: Standing,
    /// `None` where it was not.
    pub measured: Option<Measured>,
}

/// Speeds in tokens/s, times in seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Measured {
    pub pp: Option<Spread>,
    pub tg: Option<Spread>,
    pub turn: Option<Spread>,
    /// The median turn and how far off it may be, in seconds.
    pub range: Range,
    /// The samples of all visits: turns, in seconds.
    pub turns: Vec<f64>,
    pub depth: u32,
    pub visits: usize,
    /// The most that llama.cpp said that it holds, by device.
    pub memory: BTreeMap<String, Bytes>,
    /// The most that the driver showed more than before, by device.
    pub peak: BTreeMap<String, Bytes>,
    /// The share of experts found in the expert cache, in the last visit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_hits: Option<f64>,
    /// The probability that a drafted token is taken if those before it were, in the last visit: what `--acceptance` takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
}

impl Entry {
    pub fn of(race: &Race, at: usize) -> Self {
        let Entrant { candidate, visits, .. } = &race.entrants[at];
        let measured = race.range(at).map(|range| Measured::of(visits, range));
        Self { candidate: candidate.clone(), standing: race.standing(at), measured }
    }
}

impl Measured {
    fn of(visits: &[Visit], range: Range) -> Self {
        let all = |of: fn(&Visit) -> &Vec<f64>| visits.iter().flat_map(of).copied().collect::<Vec<f64>>();
        let most = |of: fn(&Visit) -> &BTreeMap<String, Bytes>| {
            let mut most: BTreeMap<String, Bytes> = BTreeMap::new();
            for (name, bytes) in visits.iter().flat_map(of) {
                let seen = most.entry(name.clone()).or_default();
                *seen = (*seen).max(*bytes);
            }
            most
        };
        let turns: Vec<f64> = visits.iter().flat_map(Visit::turns).collect();
        Self {
            pp: Spread::of(&all(|visit| &visit.pp)),
            tg: Spread::of(&all(|visit| &visit.tg)),
            turn: Spread::of(&turns),
            range,
            turns,
            depth: visits.iter().map(|visit| visit.depth).min().unwrap_or(0),
            visits: visits.len(),
            memory: most(|visit| &visit.memory),
            peak: most(|visit| &visit.peak),
            cache_hits: visits.iter().rev().find_map(|visit| visit.cache_hits),
            acceptance: visits.iter().rev().find_map(|visit| visit.acceptance),
        }
    }
}
