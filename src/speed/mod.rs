//! Predicted speed of a launch: the time of a turn from the bytes moved, the operations done and the waits of every tier.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::memory::Prediction;
use crate::model::Model;
use crate::placement::Placement;
use crate::run::RunConfig;

/// One turn of a conversation, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// Of the prompt.
    pub prompt: u32,
    /// Generated.
    pub generate: u32,
    /// Already in the context.
    pub depth: u32,
}

/// A launch whose speed is asked.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// What runs.
    pub model: &'a Model,
    /// On what.
    pub machine: &'a Machine,
    /// How.
    pub run: &'a RunConfig,
    /// Where each tensor is.
    pub placement: &'a Placement,
    /// Its memory and context numbers.
    pub prediction: &'a Prediction,
}

/// Tokens per second; predicted here, never shown as measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Prompt processing of the turn's prompt at its depth, tokens/s.
    pub pp: f64,
    /// Generation after that prompt, tokens/s.
    pub tg: f64,
    /// Where the constants come from: `calibrated on …`, `table: …`, `guess`.
    pub basis: String,
    /// The share that `pp` and `tg` may well be off: 0.15 = ±15%.
    pub uncertainty: f64,
}

/// What the prediction says of one launch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Tokens per second.
    pub speed: Speed,
    /// Time of the turn: prompt ÷ pp + generated ÷ tg, in seconds.
    pub turn_seconds: f64,
    /// What the time is spent on, by phase.
    pub terms: Vec<Term>,
}

/// One part of a turn's time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Term {
    /// Prompt or generation.
    pub phase: Phase,
    /// What: `experts copied to CUDA0`, `experts computed on the host`, `attention on CUDA0` …
    pub what: String,
    /// Seconds of the whole turn.
    pub seconds: f64,
}

/// A phase of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Prompt processing (pp).
    Prompt,
    /// Generation (tg).
    Generate,
}

/// Predicts the speed of a launch for a turn.
pub fn predict(case: &Case<'_>, turn: Turn) -> Estimate {
    let _ = case;
    let speed = Speed { pp: 1000.0, tg: 30.0, basis: "guess".to_string(), uncertainty: 1.0 };
    let turn_seconds = f64::from(turn.prompt) / speed.pp + f64::from(turn.generate) / speed.tg;
    Estimate { speed, turn_seconds, terms: Vec::new() }
}
