//! Many plans side by side: over budgets, over contexts, over several files of a model.

use std::collections::BTreeMap;

use serde::Serialize;

use super::solver::{Candidate, Computes};
use super::{ContextChoice, Error, ExpertSplit, ModelSummary, Request, expert_split};
use crate::bytes::Bytes;
use crate::checkup::Row;
use crate::machine::Machine;
use crate::model::Model;
use crate::run::{LoadMode, args};
use crate::speed::Speed;

/// The most points of one sweep.
const MOST_POINTS: u64 = 256;
/// About as many points where no step is given.
const USUAL_POINTS: u64 = 32;

/// What a sweep varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Variable {
    /// The first device's budget, in bytes.
    Vram,
    /// `-c`, in tokens.
    Ctx,
}

/// `vram=6G..48G:2G` or `ctx=8k..128k`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// What varies.
    pub variable: Variable,
    /// Its values, rising; bytes or tokens.
    pub values: Vec<u64>,
}

impl std::str::FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("`{text}`: write vram=6G..48G, vram=6G..48G:2G or ctx=8k..128k");
        let (name, range) = text.split_once('=').ok_or_else(usage)?;
        let variable = match name {
            "vram" => Variable::Vram,
            "ctx" => Variable::Ctx,
            _ => return Err(format!("`{name}` cannot be swept; vram and ctx can")),
        };
        let (range, step) = range.split_once(':').map_or((range, None), |(range, step)| (range, Some(step)));
        let (from, to) = range.split_once("..").ok_or_else(usage)?;
        let number = |text: &str| match variable {
            Variable::Vram => text.parse::<Bytes>().map(|bytes| bytes.0).map_err(|error| error.to_string()),
            Variable::Ctx => tokens(text),
        };
        let (from, to, step) = (number(from)?, number(to)?, step.map(number).transpose()?);
        if from == 0 || to < from || step == Some(0) {
            return Err(format!("`{text}`: the range rises from more than 0, in steps of more than 0"));
        }
        let values = match (step, variable) {
            (Some(step), _) => stepped(from, to, step)?,
            (None, Variable::Vram) => stepped(from, to, usual_step(to - from))?,
            (None, Variable::Ctx) => doubled(from, to),
        };
        Ok(Self { variable, values })
    }
}

/// `8192`, `8k`, `1M`: in thousands of 1024.
fn tokens(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1024),
        Some((at, 'm' | 'M')) => (&text[..at], 1024 * 1024),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no number of tokens: write 8192 or 8k"))?;
    number.checked_mul(unit).filter(|n| u32::try_from(*n).is_ok()).ok_or_else(|| format!("`{text}` is too many tokens"))
}

fn stepped(from: u64, to: u64, step: u64) -> Result<Vec<u64>, String> {
    if (to - from) / step >= MOST_POINTS {
        return Err(format!("more than {MOST_POINTS} points: take a larger step"));
    }
    let step = usize::try_from(step).map_err(|_| "the step is too large".to_string())?;
    Ok((from..=to).step_by(step).collect())
}

/// The least power of two, from 256 MiB, that keeps to the usual number of points.
fn usual_step(span: u64) -> u64 {
    let mut step = Bytes::mib(256).0;
    while span / step >= USUAL_POINTS {
        step *= 2;
    }
    step
}

fn doubled(from: u64, to: u64) -> Vec<u64> {
    let rising = std::iter::successors(Some(from), |n| n.checked_mul(2)).take_while(|n| *n < to);
    rising.chain([to]).collect()
}

/// One plan of many, without its check.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Point {
    /// What varies: bytes, tokens, or which file.
    pub value: u64,
    /// The same for people.
    pub label: String,
    /// Whether it is within the budgets.
    pub fits: bool,
    /// By how much it is not.
    pub shortfall: BTreeMap<String, Bytes>,
    /// `-c` as it came out, in tokens.
    pub n_ctx: u32,
    /// `-ub`, in tokens.
    pub n_ubatch: u32,
    /// `-lm`.
    pub load_mode: LoadMode,
    /// Where the routed experts are.
    pub placement: ExpertSplit,
    /// Memory by device.
    pub memory: BTreeMap<String, Row>,
    /// Predicted speed.
    pub speed: Speed,
    /// Predicted time of the turn, in seconds.
    pub turn_seconds: f64,
    /// The arguments for `llama-server -m MODEL`.
    pub args: Vec<String>,
}

impl Point {
    /// A launch as a point.
    pub fn of(model: &Model, machine: &Machine, candidate: &Candidate, value: u64, label: String) -> Self {
        let memory = candidate.prediction.memory.iter();
        Self {
            value,
            label,
            fits: candidate.fits(),
            shortfall: candidate.shortfall.clone(),
            n_ctx: candidate.prediction.numbers.n_ctx,
            n_ubatch: candidate.prediction.numbers.n_ubatch,
            load_mode: candidate.run.load_mode,
            placement: expert_split(model, machine, candidate),
            memory: memory.map(|(key, terms)| (key.clone(), Row { terms: *terms, total: terms.total() })).collect(),
            speed: candidate.estimate.speed.clone(),
            turn_seconds: candidate.estimate.turn_seconds,
            args: args::args(&candidate.run),
        }
    }
}

/// The `moeplan/sweep/1` document.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SweepDocument {
    /// Name and version.
    pub schema: &'static str,
    /// Which model.
    pub model: ModelSummary,
    /// The machine whose first device, or whose context, varies.
    pub machine: Machine,
    /// What varies.
    pub variable: Variable,
    /// In rising order.
    pub points: Vec<Point>,
}

/// A plan for every value of the sweep.
pub fn sweep(
    model: &Model,
    path: &str,
    machine: &Machine,
    request: &Request,
    sweep: &Sweep,
) -> Result<SweepDocument, Error> {
    let computes = Computes::default();
    let mut points = Vec::with_capacity(sweep.values.len());
    for value in &sweep.values {
        let (mut machine, mut request) = (machine.clone(), request.clone());
        let label = match sweep.variable {
            Variable::Vram => {
                if let Some(device) = machine.devices.first_mut() {
                    (device.total, device.free) = (Bytes(*value), Bytes(*value));
                }
                Bytes(*value).to_string()
            }
            Variable::Ctx => {
                request.context = ContextChoice::Fixed(u32::try_from(*value).unwrap_or(u32::MAX));
                value.to_string()
            }
        };
        let candidate = super::solve_with(model, &machine, &request, &computes)?;
        points.push(Point::of(model, &machine, &candidate, *value, label));
    }
    let model = super::summary(model, path);
    Ok(SweepDocument { schema: "moeplan/sweep/1", model, machine: machine.clone(), variable: sweep.variable, points })
}

/// The `moeplan/plans/1` document: several files on one machine.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plans {
    /// Name and version.
    pub schema: &'static str,
    /// The machine.
    pub machine: Machine,
    /// A row a file, in the order given.
    pub rows: Vec<PlansRow>,
}

/// One file of several.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlansRow {
    /// Which model.
    pub model: ModelSummary,
    /// Bits by weight of the file.
    pub bits_per_weight: f64,
    /// Its plan.
    #[serde(flatten)]
    pub point: Point,
}

impl PlansRow {
    /// The row of one file.
    pub fn of(model: &Model, path: &str, machine: &Machine, request: &Request, at: u64) -> Result<Self, Error> {
        let candidate = super::solve(model, machine, request)?;
        let summary = super::summary(model, path);
        let elements: u64 = model.tensors.iter().map(crate::model::Tensor::elements).sum();
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let bits_per_weight = summary.bytes.0 as f64 * 8.0 / elements.max(1) as f64;
        let point = Point::of(model, machine, &candidate, at, path.to_string());
        Ok(Self { model: summary, bits_per_weight, point })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::GIB;

    #[test]
    fn ranges_are_read() {
        let values = |text: &str| text.parse::<Sweep>().map(|sweep| sweep.values);
        assert_eq!(values("vram=6G..10G:2G"), Ok(vec![6 * GIB, 8 * GIB, 10 * GIB]));
        assert_eq!(values("ctx=8k..40000"), Ok(vec![8192, 16384, 32768, 40000]));
        assert_eq!(values("ctx=4096..12288:4096"), Ok(vec![4096, 8192, 12288]));
        assert_eq!(values("vram=6G..48G").map(|values| values.len()), Ok(22));
        assert_eq!(values("vram=8G..8G").map(|values| values.len()), Ok(1));
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (text, expected) in [
            ("vram", "write vram=6G..48G"),
            ("vram=6G", "write vram=6G..48G"),
            ("ram=1G..2G", "cannot be swept"),
            ("vram=8G..6G", "rises"),
            ("ctx=8q..9k", "no number of tokens"),
            ("ctx=1..100000:1", "larger step"),
            ("vram=6G..48G:0", "rises"),
        ] {
            let error = text.parse::<Sweep>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
