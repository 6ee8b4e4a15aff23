//! A measurement and its comparison with a prediction: predicted and measured are one type, so that they subtract.

mod compare;
mod forecast;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, MIB};
use crate::memory::{self, MemoryRow};
use crate::plan::Plan;
use crate::runtime::{DeviceUsed, Error, Launch, Observation, ProcessMemory, Runtime, RuntimeInfo, Workload};
pub use compare::{Expected, Row, Seen, compare, peak_of};
pub use forecast::{LaunchForecast, TooLong};

pub const SCHEMA: &str = "moeplan/measurement/1";

/// What compute buffers and totals may differ by whatever the tolerance: they are replayed, not summed, and a percentage
/// of a small buffer is less than one of its tensors.
pub const COMPUTE_FLOOR: Bytes = Bytes(MIB);

/// What a launch really did, beside what was predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Measurement {
    pub schema: String,
    #[serde(default)]
    pub plan: Option<Box<Plan>>,
    pub runtime: RuntimeInfo,
    /// The command line that ran, its program first; empty where llama.cpp ran inside moeplan.
    #[serde(default)]
    pub command: Vec<String>,
    pub memory: BTreeMap<String, MemoryRow>,
    pub predicted: BTreeMap<String, MemoryRow>,
    /// The span of mapped weights in their file; zero when nothing is mapped.
    pub mapped_span: Bytes,
    /// What the launch took of each device at its peak, by the driver; empty where no driver says.
    #[serde(default)]
    pub device_used: BTreeMap<String, Bytes>,
    /// What the driver showed before, loaded, at the peak and after, by whomever.
    #[serde(default)]
    pub device_use: DeviceUsed,
    pub process: ProcessMemory,
    pub process_before: ProcessMemory,
    pub load_seconds: f64,
    pub speed: SpeedSamples,
    pub text: String,
    pub finite: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// The share that compute buffers and totals may differ by.
    pub tolerance: f64,
    pub comparison: Vec<Row>,
}

pub const LAUNCHED: &str = "moeplan/run/1";

/// A server that is up (`moeplan run`), beside what was predicted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Launched {
    pub schema: String,
    pub endpoint: String,
    pub process: u32,
    pub command: Vec<String>,
    /// From its start until it took requests.
    pub load_seconds: f64,
    pub comparison: Vec<Row>,
    #[serde(default)]
    pub plan: Option<Box<Plan>>,
}

/// Samples in tokens/s, one a repetition (llama-bench's names).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpeedSamples {
    pub n_prompt: u32,
    pub n_generate: u32,
    #[serde(default)]
    pub depth: u32,
    pub pp: Vec<f64>,
    pub tg: Vec<f64>,
    /// Seconds until the first token, by our clock.
    #[serde(default)]
    pub first_token: Vec<f64>,
    #[serde(default)]
    pub summary: SpeedSummary,
}

/// Mean and spread of the samples; `None` without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpeedSummary {
    /// Prompt processing, tokens/s.
    pub pp: Option<Spread>,
    /// Generation, tokens/s.
    pub tg: Option<Spread>,
    /// Until the first token, seconds.
    pub first_token: Option<Spread>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spread {
    pub mean: f64,
    /// Standard deviation of the samples (n − 1); 0 for one sample.
    pub stddev: f64,
    pub n: u32,
}

impl Spread {
    /// Of samples, if there are any.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let n = u32::try_from(samples.len()).ok().filter(|n| *n > 0)?;
        let mean = samples.iter().sum::<f64>() / f64::from(n);
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let stddev = if n == 1 { 0.0 } else { (squares / f64::from(n - 1)).sqrt() };
        Some(Self { mean, stddev, n })
    }
}

impl Measurement {
    /// Whether every row is within the tolerance and the numbers that came out were numbers.
    pub fn ok(&self) -> bool {
        self.finite && self.comparison.iter().all(|row| row.ok)
    }
}

/// Launches, measures and compares; the launch is over when this returns.
pub fn verify<'a>(
    runtime: &dyn Runtime,
    launch: &Launch,
    workload: &Workload,
    expected: impl Into<Expected<'a>>,
    tolerance: f64,
) -> Result<Measurement, Error> {
    let observation = runtime.generate(launch, workload)?;
    Ok(measurement(observation, expected, tolerance))
}

/// What a launch took, and how that is beside what was expected.
pub struct Taken {
    /// llama.cpp's own sums by device, and what the driver shows beyond them.
    pub memory: BTreeMap<String, MemoryRow>,
    /// Of each device at its peak, by the driver.
    pub device_used: BTreeMap<String, Bytes>,
    pub comparison: Vec<Row>,
}

impl Taken {
    pub fn of(expected: Option<&Expected<'_>>, seen: &Seen<'_>, tolerance: f64) -> Self {
        let comparison = expected.map(|expected| compare(expected, seen, tolerance)).unwrap_or_default();
        let (device_used, mut memory) = (peak_of(seen.used), seen.memory.clone());
        for (device, row) in &mut memory {
            let own = row.own();
            row.overhead = device_used.get(device).map_or(row.overhead, |used| used.saturating_sub(own));
        }
        Self { memory: memory::rows(&memory), device_used, comparison }
    }
}

/// The document of an observation.
pub fn measurement<'a>(observation: Observation, expected: impl Into<Expected<'a>>, tolerance: f64) -> Measurement {
    let expected = expected.into();
    let Taken { memory, device_used, comparison } = Taken::of(Some(&expected), &Seen::of(&observation), tolerance);
    Measurement {
        schema: SCHEMA.to_string(),
        plan: None,
        runtime: observation.runtime,
        command: observation.command,
        memory,
        predicted: memory::rows(expected.memory),
        mapped_span: observation.mapped_span,
        device_used,
        device_use: observation.device_used,
        process: observation.process,
        process_before: observation.process_before,
        load_seconds: observation.load_seconds,
        speed: SpeedSamples {
            n_prompt: observation.n_prompt,
            n_generate: u32::try_from(observation.tokens.len()).unwrap_or(u32::MAX),
            depth: observation.depth,
            summary: SpeedSummary {
                pp: Spread::of(&observation.pp),
                tg: Spread::of(&observation.tg),
                first_token: Spread::of(&observation.first_token),
            },
            pp: observation.pp,
            tg: observation.tg,
            first_token: observation.first_token,
        },
        text: observation.text,
        finite: observation.finite,
        interrupted: observation.interrupted,
        tolerance,
        comparison,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_a_mean_and_a_spread() {
        assert_eq!(Spread::of(&[2.0, 4.0, 6.0]), Some(Spread { mean: 4.0, stddev: 2.0, n: 3 }));
        assert_eq!(Spread::of(&[5.0]), Some(Spread { mean: 5.0, stddev: 0.0, n: 1 }));
        assert_eq!(Spread::of(&[]), None);
    }
}
