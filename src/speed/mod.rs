//! Predicted speed of a launch: the time of a turn from the bytes moved, the operations done and the waits of every tier.

pub mod design;
pub mod fit;
pub mod prices;
pub mod samples;
pub mod table;
mod work;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::memory::Forecast;
use crate::model::Model;
use crate::placement::Placement;
use crate::run::{Program, RunConfig};
use prices::Prices;
pub use work::{Cost, Work};

/// One turn of a conversation, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Turn {
    pub prompt: u32,
    pub generate: u32,
    pub depth: u32,
}

impl Turn {
    pub fn tokens(self) -> u32 {
        self.prompt.saturating_add(self.generate).saturating_add(self.depth)
    }
}

/// A long prompt and a page of answer in an empty context.
impl Default for Turn {
    fn default() -> Self {
        Self { prompt: 4096, generate: 512, depth: 0 }
    }
}

/// A launch whose speed is asked. `placement` may be another than the forecast's own: a search times it with the memory of a launch
/// nearby.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub run: &'a RunConfig,
    pub placement: &'a Placement,
    pub forecast: &'a Forecast,
}

/// Tokens per second; predicted here, never shown as measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Speed {
    /// Prompt processing of the turn's prompt at its depth, tokens/s.
    pub pp: f64,
    /// Generation after that prompt, tokens/s.
    pub tg: f64,
    /// Where the constants come from: `calibrated on …`, `table: …`, `guess`.
    pub basis: String,
    /// The share that `pp` and `tg` may well be off: 0.15 = ±15%.
    pub uncertainty: f64,
    /// The same of `pp` alone: four in five launches are within it.
    #[serde(default)]
    pub uncertainty_pp: f64,
    /// The same of `tg` alone.
    #[serde(default)]
    pub uncertainty_tg: f64,
}

impl Speed {
    /// A phase's speed, and the share that it may well be off.
    pub fn of(&self, phase: Phase) -> (f64, f64) {
        let (speed, share) = match phase {
            Phase::Prompt => (self.pp, self.uncertainty_pp),
            Phase::Generate => (self.tg, self.uncertainty_tg),
        };
        // Documents of earlier versions say one for both.
        (speed, if share > 0.0 { share } else { self.uncertainty })
    }

    /// The time of a turn: prompt ÷ pp + generated ÷ tg, in seconds.
    pub fn turn_seconds(&self, turn: Turn) -> f64 {
        f64::from(turn.prompt) / self.pp + f64::from(turn.generate) / self.tg
    }

    /// The share that a phase's speed may be off, in whole percent.
    pub fn within(&self, phase: Phase) -> String {
        format!("±{:.0}%", self.of(phase).1 * 100.0)
    }
}

/// What the prediction says of one launch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Estimate {
    /// Tokens per second.
    pub speed: Speed,
    /// Time of the turn, in seconds.
    pub turn_seconds: f64,
    /// What the time is spent on, by phase.
    pub terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Term {
    pub phase: Phase,
    /// What: `experts copied to CUDA0`, `experts computed on the host`, `attention on CUDA0` …
    pub what: String,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Prompt,
    Generate,
}

/// The prompt that `pp` is of where the turn has none, in tokens (llama-bench's default).
const USUAL_PROMPT: u32 = 512;
/// How far off a launch with an expert cache may be: even routing would hit no more than the share that is cached.
const CACHE_UNCERTAINTY: f64 = 0.5;
/// What is said of runs that read weights from the disk: which pages stay is up to the system.
const DISK_UNCERTAINTY: f64 = 0.7;

/// Predicts the speed of a launch for a turn.
pub fn predict(case: &Case<'_>, turn: Turn) -> Estimate {
    let prices = Prices::of(case.machine, &case.placement.devices);
    let layout = work::Layout::of(case);
    let tokens = if turn.prompt == 0 { USUAL_PROMPT } else { turn.prompt };
    let prompt = layout.prompt(tokens, turn.depth);
    let generated = turn.generate.max(1);
    let mut generation = layout.generation(generated, turn.depth.saturating_add(turn.prompt));
    if case.run.program != Program::Bench {
        generation.sample(case.model.hparams.vocab_size, generated);
    }
    let pp = f64::from(tokens) / prices.seconds(&prompt);
    let tg = 1.0 / (prices.seconds(&generation) / f64::from(generated));
    let mut terms = Vec::new();
    if turn.prompt > 0 {
        terms.extend(prices.terms(&prompt, Phase::Prompt, case.machine));
    }
    if turn.generate > 0 {
        terms.extend(prices.terms(&generation, Phase::Generate, case.machine));
    }
    let uncertainty_of = |work, phase| prices.uncertainty(work, phase);
    let mut uncertainty = [uncertainty_of(&prompt, Phase::Prompt), uncertainty_of(&generation, Phase::Generate)];
    let mut basis = prices.basis;
    for (applies, words, least) in [
        (layout.cache_hits > 0.0, work::CACHE_ASSUMPTION, CACHE_UNCERTAINTY),
        (layout.missing > 0.0, "; host weights exceed main memory: bound by the disk", DISK_UNCERTAINTY),
        (case.run.n_draft > 0, "; speculation is not counted", 0.0),
    ] {
        if applies {
            basis.push_str(words);
            uncertainty = uncertainty.map(|share| share.max(least));
        }
    }
    // A share of a share has no more digits than its parts.
    let [uncertainty_pp, uncertainty_tg] = uncertainty.map(|share| (share * 1e3).round() / 1e3);
    let uncertainty = uncertainty_pp.max(uncertainty_tg);
    let speed = Speed { pp, tg, basis, uncertainty, uncertainty_pp, uncertainty_tg };
    Estimate { turn_seconds: speed.turn_seconds(turn), speed, terms }
}

#[cfg(test)]
mod tests;
