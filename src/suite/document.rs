//! The documents `moeplan/bench/1` and `moeplan/validation/1`: everything in them was measured, or is null and said to be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protocol::Prompt;
use crate::bytes::Bytes;
use crate::measurement::{Spread, Taken};
use crate::memory::MemoryRow;
use crate::runtime::{ProcessMemory, RuntimeInfo};

pub const BENCH_SCHEMA: &str = "moeplan/bench/1";
pub const VALIDATION_SCHEMA: &str = "moeplan/validation/1";

/// How a model answered, how fast, and what it took, for a launch and its baselines or for an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bench {
    pub schema: String,
    pub environment: Environment,
    /// Which model; null for an endpoint whose file nobody named.
    pub model: Option<ModelFacts>,
    /// Whether the weights are real: only then can answers be judged.
    pub weights: Weights,
    pub settings: Settings,
    pub prompts: Vec<Prompt>,
    pub cases: Vec<Case>,
    /// What the first case takes of the devices beside each measured baseline.
    pub savings: Vec<Saving>,
    pub notes: Vec<String>,
}

/// Where something was measured. Every string is untrusted text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    pub moeplan: String,
    /// When it began, in seconds since 1970 (UTC).
    pub started: u64,
    pub system: Option<String>,
    pub processor: Option<String>,
    pub processors: Option<u32>,
    pub ram: Option<Bytes>,
    pub devices: Vec<DeviceFacts>,
    pub driver: Option<String>,
    /// What ran the model; null where an endpoint does not say.
    pub runtime: Option<RuntimeInfo>,
    pub endpoint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceFacts {
    pub name: String,
    pub description: Option<String>,
    /// The memory it has, or the budget it was given.
    pub total: Bytes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelFacts {
    pub path: String,
    pub name: Option<String>,
    pub architecture: String,
    /// llama.cpp's name of the type of most tensors.
    pub file_type: Option<String>,
    /// Of all files of the model.
    pub file_bytes: Bytes,
    /// SHA-256 of the header of the first file (all bytes before the first tensor), in hexadecimal.
    pub header_sha256: Option<String>,
    pub tensors: u64,
    pub blocks: u32,
    pub parameters: u64,
    pub active_parameters: u64,
    /// Routed experts of a block; 0 for a dense model.
    pub experts: u32,
    pub experts_used: u32,
    pub expert_bytes: Bytes,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Weights {
    /// True for made-up ones, false where nothing says so, null where nothing is known of the file.
    pub synthetic: Option<bool>,
    pub basis: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Settings {
    pub repetitions: u32,
    /// Sampling temperature; 0 = the most likely token.
    pub temperature: f64,
    pub seed: u32,
    /// Tokens in the context before the prompt of each point of the depth sweep.
    pub depths: Vec<u32>,
    pub depth_prompt: u32,
    pub depth_generate: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Case {
    /// `plan`, `all-on-device`, `experts-on-host`, `fit`, `endpoint`.
    pub name: String,
    pub what: String,
    /// The command to paste; null for an endpoint.
    pub command: Option<String>,
    /// Its launches in the order they were made, one a repetition; an endpoint has one.
    pub sessions: Vec<Session>,
    pub load_seconds: Option<Spread>,
    /// Speed by prompt and mode; `prompt` null = over all prompts.
    pub speed: Vec<SpeedRow>,
    pub depths: Vec<DepthRow>,
    /// The health of its streams, over all prompts and repetitions.
    pub stream: Vec<Item>,
    pub quality: Vec<Quality>,
}

/// One launch: what it took and what it answered. Written to disk as soon as it is over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Session {
    pub case: String,
    /// From 1.
    pub repetition: u32,
    /// Why there is nothing, or not everything, in it; null when all went well.
    pub failure: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    pub args: Vec<String>,
    pub runtime: Option<RuntimeInfo>,
    /// Seconds from start until it took requests.
    pub load_seconds: Option<f64>,
    #[serde(flatten)]
    pub taken: Taken,
    pub process: Option<ProcessMemory>,
    pub samples: Vec<Sample>,
    pub depths: Vec<DepthSample>,
    pub notes: Vec<String>,
    /// The person stopped it before its end.
    #[serde(skip)]
    pub is_interrupted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Trouble {
    pub kind: Kind,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It was not launched, for a reason that was known before.
    NotLaunched,
    /// Memory could not be had, and that it does not fit was predicted.
    DoesNotFit,
    Failed,
}

impl Session {
    /// What kind of failure it is; of sessions that were written before kinds were, that it failed.
    pub fn kind(&self) -> Kind {
        self.trouble.as_ref().map_or(Kind::Failed, |trouble| trouble.kind)
    }
}

impl Case {
    /// Its first launch that failed, not refused and not known before to need too much.
    pub fn first_failed(&self) -> Option<&Session> {
        self.sessions.iter().find(|session| session.failure.is_some() && session.kind() == Kind::Failed)
    }

    /// Every answer of every launch.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.sessions.iter().flat_map(|session| &session.samples)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Whole,
    Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenCount {
    Runtime,
    Tokenizer,
}

/// Whose clock a speed is by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    Runtime,
    /// Ours, from first to last content, network included; tokens as [`Sample::tokens_by`] says.
    Ours,
}

/// One answer: `pp` and `tg` in tokens/s, times in seconds by our clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    pub prompt: String,
    pub mode: Mode,
    pub failure: Option<String>,
    pub prompt_tokens: Option<u32>,
    pub generated_tokens: Option<u32>,
    pub tokens_by: Option<TokenCount>,
    pub pp: Option<f64>,
    pub tg: Option<f64>,
    pub speed_by: Option<Clock>,
    /// Until the first content delta; only of a stream.
    pub first_token_seconds: Option<f64>,
    /// Between content deltas; only of a stream.
    pub gaps: Option<Gaps>,
    pub total_seconds: f64,
    pub finish_reason: Option<String>,
    pub text: String,
    /// What it thought aloud, where the server tells that apart (`reasoning_content`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// How sound the stream was; empty for an answer in one piece.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stream: Vec<Item>,
}

/// Seconds between content deltas.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gaps {
    pub median: f64,
    /// 95% are shorter.
    pub p95: f64,
    pub max: f64,
    pub all: Vec<f64>,
}

/// One point of the depth sweep: speeds in tokens/s, time in seconds by our clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DepthSample {
    /// Tokens in the context before the prompt, as the runtime counts them.
    pub depth: u32,
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
    pub pp: Option<f64>,
    pub tg: Option<f64>,
    pub first_token_seconds: Option<f64>,
}

/// Speed over repetitions, of one prompt or (null) of all: `pp` and `tg` in tokens/s, times in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpeedRow {
    pub prompt: Option<String>,
    pub mode: Mode,
    pub generated_tokens: Option<Spread>,
    pub pp: Option<Spread>,
    pub tg: Option<Spread>,
    pub first_token_seconds: Option<Spread>,
    pub gap_median: Option<Spread>,
    pub gap_p95: Option<Spread>,
    pub gap_max: Option<f64>,
    pub total_seconds: Option<Spread>,
}

/// Speed over repetitions at a depth, the tokens in the context before the prompt: in tokens/s and seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DepthRow {
    pub depth: u32,
    pub pp: Option<Spread>,
    pub tg: Option<Spread>,
    pub first_token_seconds: Option<Spread>,
}

/// What the first case takes less of the devices than a measured baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Saving {
    pub baseline: String,
    /// What is compared: `llama.cpp` (model, context and compute of all devices by its own sums) or `driver` (what the
    /// devices show at their peak).
    pub by: String,
    pub bytes: Bytes,
    pub baseline_bytes: Bytes,
    /// Baseline − case, in bytes; negative when the case takes more.
    pub saved_bytes: i64,
    /// That, of the baseline, in percent; null for a baseline that takes nothing.
    pub saved_percent: Option<f64>,
    /// Generation of the case over that of the baseline (streams, all prompts); null where either is not known.
    pub tg_ratio: Option<f64>,
    pub pp_ratio: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It does; `detail` is the evidence.
    Pass,
    /// It does not; `detail` is what was found.
    Fail,
    /// Nobody could tell; `detail` is why.
    NotAssessed,
    /// It was not run; `detail` is why.
    Skipped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Item {
    pub what: String,
    pub verdict: Verdict,
    pub detail: String,
}

impl Item {
    pub fn new(what: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { what: what.into(), verdict, detail: detail.into() }
    }

    /// Passes where it holds, fails where it does not.
    pub fn held(what: impl Into<String>, holds: bool, detail: impl Into<String>) -> Self {
        Self::new(what, if holds { Verdict::Pass } else { Verdict::Fail }, detail)
    }

    pub fn skipped(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(what, Verdict::Skipped, why)
    }

    /// Nobody could tell.
    pub fn open(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(what, Verdict::NotAssessed, why)
    }
}

/// An answer, judged by what a program can judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quality {
    pub prompt: String,
    /// `fail` where any item fails, `pass` where all that were assessed hold, else `not-assessed`.
    pub verdict: Verdict,
    pub items: Vec<Item>,
}

/// A whole protocol over any number of models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Validation {
    pub schema: String,
    pub suite: String,
    pub description: String,
    pub environment: Environment,
    pub prerequisites: Vec<Item>,
    pub models: Vec<ModelValidation>,
    pub summary: Vec<Item>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelValidation {
    pub name: String,
    pub path: Option<String>,
    /// Why it was not run; null when it was.
    pub skipped: Option<String>,
    pub sections: Vec<Section>,
    pub placements: Vec<PlacementFacts>,
    pub bench: Option<Bench>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Section {
    /// `architecture`, `placements`, `tests`, `streaming`, `memory`.
    pub name: String,
    pub items: Vec<Item>,
}

/// Where a launch would put a model. Predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlacementFacts {
    pub case: String,
    pub command: String,
    pub expert_bytes_on_devices: Bytes,
    pub expert_bytes_on_host: Bytes,
    pub predicted: BTreeMap<String, MemoryRow>,
    /// Whether it is within the budget; null where none was given.
    pub fits: Option<bool>,
}
