//! A measurement and its comparison with a prediction: predicted and measured are one type, so that they subtract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, MIB};
use crate::memory::{MemoryBreakdown, MemoryByDevice};
use crate::runtime::{Error, Launch, Observation, ProcessMemory, Runtime, RuntimeInfo, Workload};

/// The schema of [`Measurement`].
pub const SCHEMA: &str = "moeplan/measurement/1";

/// What compute buffers and totals may differ by whatever the tolerance: they are replayed, not summed, and a percentage
/// of a small buffer is less than one of its tensors.
pub const COMPUTE_FLOOR: Bytes = Bytes(MIB);

/// What a launch really did, beside what was predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// [`SCHEMA`].
    pub schema: String,
    /// The plan that was launched, if there was one.
    #[serde(default)]
    pub plan: serde_json::Value,
    /// Which runtime.
    pub runtime: RuntimeInfo,
    /// Measured memory by device.
    pub memory: BTreeMap<String, MemoryRow>,
    /// What was predicted.
    pub predicted: BTreeMap<String, MemoryRow>,
    /// The span of mapped weights in their file; zero when nothing is mapped.
    pub mapped_span: Bytes,
    /// Memory of the runtime's process after the run.
    pub process: ProcessMemory,
    /// What it had before the model was loaded.
    pub process_before: ProcessMemory,
    /// Time to load, in seconds.
    pub load_seconds: f64,
    /// Samples of the speed.
    pub speed: SpeedSamples,
    /// What was generated.
    pub text: String,
    /// Whether every logit was a finite number.
    pub finite: bool,
    /// The share that compute buffers and totals may differ by.
    pub tolerance: f64,
    /// Predicted beside measured.
    pub comparison: Vec<Row>,
}

/// A row of memory with its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRow {
    /// The terms.
    #[serde(flatten)]
    pub terms: MemoryBreakdown,
    /// Together.
    pub total: Bytes,
}

fn rows(memory: &MemoryByDevice) -> BTreeMap<String, MemoryRow> {
    let row =
        |(key, terms): (&String, &MemoryBreakdown)| (key.clone(), MemoryRow { terms: *terms, total: terms.total() });
    memory.iter().map(row).collect()
}

/// Samples in tokens/s, one a repetition (llama-bench's names).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedSamples {
    /// Prompt tokens of each repetition.
    pub n_prompt: u32,
    /// Generated tokens of each repetition.
    pub n_generate: u32,
    /// Tokens that were in the cache before each prompt.
    #[serde(default)]
    pub depth: u32,
    /// Prompt processing.
    pub pp: Vec<f64>,
    /// Generation.
    pub tg: Vec<f64>,
    /// Seconds until the first token, by our clock.
    #[serde(default)]
    pub first_token: Vec<f64>,
    /// Mean and spread of each.
    #[serde(default)]
    pub summary: SpeedSummary,
}

/// Mean and spread of the samples; `None` without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedSummary {
    /// Prompt processing, tokens/s.
    pub pp: Option<Spread>,
    /// Generation, tokens/s.
    pub tg: Option<Spread>,
    /// Until the first token, seconds.
    pub first_token: Option<Spread>,
}

/// A mean and its spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Standard deviation of the samples (n − 1); 0 for one sample.
    pub stddev: f64,
    /// How many samples.
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

/// One quantity of the comparison, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `CUDA0.compute`.
    pub quantity: String,
    /// What was predicted.
    pub predicted: Bytes,
    /// What came.
    pub measured: Bytes,
    /// (predicted − measured) / measured; 0 when both are 0.
    pub error: f64,
    /// Whether that is within the tolerance.
    pub ok: bool,
}

impl Measurement {
    /// Whether every row is within the tolerance and the numbers that came out were numbers.
    pub fn ok(&self) -> bool {
        self.finite && self.comparison.iter().all(|row| row.ok)
    }
}

/// Launches, measures and compares; the launch is over when this returns.
pub fn verify(
    runtime: &dyn Runtime,
    launch: &Launch,
    workload: &Workload,
    predicted: &MemoryByDevice,
    tolerance: f64,
) -> Result<Measurement, Error> {
    let observation = runtime.generate(launch, workload)?;
    Ok(measurement(observation, predicted, tolerance))
}

/// The document of an observation.
pub fn measurement(observation: Observation, predicted: &MemoryByDevice, tolerance: f64) -> Measurement {
    let comparison = compare(predicted, &observation.memory, tolerance);
    Measurement {
        schema: SCHEMA.to_string(),
        plan: serde_json::Value::Null,
        runtime: observation.runtime,
        memory: rows(&observation.memory),
        predicted: rows(predicted),
        mapped_span: observation.mapped_span,
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
        tolerance,
        comparison,
    }
}

/// A term of the memory table.
type Term = (&'static str, fn(&MemoryBreakdown) -> Bytes, bool);

/// The terms that are compared, and whether each must be exact. Overhead is not llama.cpp's own sum: it is left out.
const TERMS: [Term; 4] = [
    ("model", |row| row.model, true),
    ("context", |row| row.context, true),
    ("compute", |row| row.compute, false),
    ("total", |row| row.model + row.context + row.compute, false),
];

/// Predicted beside measured, term by term, for every device of either. Weights and caches are sums of known tensors and
/// must be equal to the byte; compute buffers and totals may differ by `tolerance` (a share) or [`COMPUTE_FLOOR`].
pub fn compare(predicted: &MemoryByDevice, measured: &MemoryByDevice, tolerance: f64) -> Vec<Row> {
    let mut keys: Vec<&String> = predicted.keys().chain(measured.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut rows = Vec::new();
    for key in keys {
        for (term, of, exact) in TERMS {
            let p = predicted.get(key).map_or(Bytes(0), of);
            let m = measured.get(key).map_or(Bytes(0), of);
            if p == Bytes(0) && m == Bytes(0) {
                continue;
            }
            rows.push(row(format!("{key}.{term}"), p, m, exact, tolerance));
        }
    }
    rows
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn row(quantity: String, predicted: Bytes, measured: Bytes, exact: bool, tolerance: f64) -> Row {
    let difference = predicted.0.abs_diff(measured.0);
    let share = if measured.0 == 0 { 1.0 } else { difference as f64 / measured.0 as f64 };
    let share = if difference == 0 { 0.0 } else { share };
    let ok = if exact { difference == 0 } else { difference <= COMPUTE_FLOOR.0 || share <= tolerance };
    let error = if predicted < measured { -share } else { share };
    Row { quantity, predicted, measured, error, ok }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(rows: &[(&str, u64, u64, u64)]) -> MemoryByDevice {
        let row = |&(key, model, context, compute): &(&str, u64, u64, u64)| {
            let (model, context, compute) = (Bytes(model), Bytes(context), Bytes(compute));
            (key.to_string(), MemoryBreakdown { model, context, compute, overhead: Bytes(600) })
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn samples_have_a_mean_and_a_spread() {
        assert_eq!(Spread::of(&[2.0, 4.0, 6.0]), Some(Spread { mean: 4.0, stddev: 2.0, n: 3 }));
        assert_eq!(Spread::of(&[5.0]), Some(Spread { mean: 5.0, stddev: 0.0, n: 1 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn weights_and_caches_must_be_exact_and_compute_may_differ() {
        let predicted = memory(&[("CUDA0", 100, 50, 10 * MIB), ("Host", 7, 0, 0)]);
        let measured = memory(&[("CUDA0", 100, 51, 11 * MIB - 1), ("Host", 7, 0, 0)]);
        let rows: Vec<_> = compare(&predicted, &measured, 0.02).into_iter().map(|r| (r.quantity, r.ok)).collect();
        let expected = [
            ("CUDA0.model", true),
            ("CUDA0.context", false),
            ("CUDA0.compute", true),
            ("CUDA0.total", true),
            ("Host.model", true),
            ("Host.total", true),
        ];
        assert_eq!(rows, expected.map(|(q, ok)| (q.to_string(), ok)));
    }

    #[test]
    fn an_error_has_a_sign_and_a_tolerance() {
        let predicted = memory(&[("CUDA0", 0, 0, 90 * MIB)]);
        let measured = memory(&[("CUDA0", 0, 0, 100 * MIB)]);
        let row = |tolerance| compare(&predicted, &measured, tolerance).remove(0);
        assert!((row(0.1).error + 0.1).abs() < 1e-12);
        assert!(row(0.1).ok && !row(0.09).ok);
    }

    #[test]
    fn a_device_that_only_one_side_has_is_an_error() {
        let rows = compare(&memory(&[("RPC0", 5, 0, 0)]), &memory(&[]), 0.02);
        assert!(rows.iter().any(|row| row.quantity == "RPC0.model" && !row.ok && row.measured == Bytes(0)));
    }
}
