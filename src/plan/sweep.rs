//! Many plans side by side: over budgets, over contexts, over several files of a model.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::solver::{Candidate, Computes, Problem};
use super::{ContextChoice, Error, ExpertSplit, ModelSummary, Request};
use crate::bytes::{Bytes, GIB};
use crate::checkup::Row;
use crate::machine::{Device, Machine};
use crate::model::Model;
use crate::number::tokens;
use crate::run::{LoadMode, args};
use crate::speed::Speed;
use crate::speed::prices::device_rates;

pub const MOST_POINTS: usize = 256;
/// About as many points where no step is given.
const USUAL_POINTS: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
            Variable::Ctx => tokens(text).map(u64::from),
        };
        let (from, to, step) = (number(from)?, number(to)?, step.map(number).transpose()?);
        if from == 0 || to < from || step == Some(0) {
            return Err(format!("`{text}`: the range must start above 0 and rise in steps above 0"));
        }
        let values = match (step, variable) {
            (Some(step), _) => stepped(from, to, step)?,
            (None, Variable::Vram) => stepped(from, to, usual_step(to - from))?,
            (None, Variable::Ctx) => doubled(from, to),
        };
        Ok(Self { variable, values })
    }
}

fn stepped(from: u64, to: u64, step: u64) -> Result<Vec<u64>, String> {
    if (to - from) / step >= MOST_POINTS as u64 {
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Point {
    /// What varies: bytes, tokens, or which file.
    pub value: u64,
    pub label: String,
    /// Whether it is within the budgets.
    pub fits: bool,
    pub shortfall: BTreeMap<String, Bytes>,
    /// `-c` as it came out, in tokens.
    pub n_ctx: u32,
    /// `-ub`, in tokens.
    pub n_ubatch: u32,
    pub load_mode: LoadMode,
    pub placement: ExpertSplit,
    pub memory: BTreeMap<String, Row>,
    pub speed: Speed,
    /// Predicted time of the turn, in seconds.
    pub turn_seconds: f64,
    /// Variables that the launch needs beside its arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    pub args: Vec<String>,
}

impl Point {
    pub(super) fn of(problem: &Problem<'_>, candidate: &Candidate, value: u64, label: String) -> Self {
        Self {
            value,
            label,
            fits: candidate.fits(),
            shortfall: candidate.shortfall.clone(),
            n_ctx: candidate.forecast.numbers.n_ctx,
            n_ubatch: candidate.forecast.numbers.n_ubatch,
            load_mode: candidate.run.load_mode,
            placement: candidate.expert_split(problem),
            memory: Row::table(&candidate.forecast),
            speed: candidate.estimate.speed.clone(),
            turn_seconds: candidate.estimate.turn_seconds,
            environment: candidate.run.environment(),
            args: args::args(&candidate.run),
        }
    }
}

/// The `moeplan/sweep/1` document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SweepDocument {
    pub schema: Cow<'static, str>,
    pub model: ModelSummary,
    /// The machine whose first device, or whose context, varies.
    pub machine: Machine,
    pub variable: Variable,
    /// The contexts that are planned for each budget, in tokens, rising; empty where one thing varies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<u64>,
    /// Which point is the plan that the others are around, from 0; null where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<usize>,
    /// In rising order; of budgets and contexts, all contexts of the first budget first.
    pub points: Vec<Point>,
}

/// A plan for every budget of the first device, in bytes, and every context, in tokens; `None` where that does not vary.
pub fn sweep(
    model: &Model,
    path: &str,
    machine: &Machine,
    request: &Request,
    (budgets, contexts): (Option<&[u64]>, Option<&[u64]>),
) -> Result<SweepDocument, Error> {
    let computes = Computes::default();
    // One and the same first card at all budgets: where nothing but its size is known, its speed is guessed by the size that it has, or
    // by the largest budget where it has none, and not by each budget anew.
    let mut card = machine.clone();
    if let (Some(device), Some(largest)) = (card.devices.first_mut(), budgets.and_then(|budgets| budgets.iter().max()))
    {
        let total = if device.total == Bytes(0) { Bytes(*largest) } else { device.total };
        device.rates = Some(device_rates(&Device { total, ..device.clone() }));
    }
    let axis = |values: Option<&[u64]>| -> Vec<Option<u64>> {
        values.map_or_else(|| vec![None], |values| values.iter().copied().map(Some).collect())
    };
    let mut points = Vec::new();
    for budget in axis(budgets) {
        for context in axis(contexts) {
            let (mut machine, mut request) = (card.clone(), request.clone());
            if let (Some(device), Some(budget)) = (machine.devices.first_mut(), budget) {
                device.limit(Bytes(budget));
            }
            if let Some(tokens) = context {
                request.context = ContextChoice::Fixed(u32::try_from(tokens).unwrap_or(u32::MAX));
            }
            let (value, label) = match (budget, context) {
                (Some(budget), _) => (budget, Bytes(budget).to_string()),
                // Something varies.
                (None, context) => (context.unwrap_or(0), context.unwrap_or(0).to_string()),
            };
            let problem = Problem { computes: computes.clone(), ..request.problem(model, &machine) };
            points.push(Point::of(&problem, &super::solve_with(&problem)?, value, label));
        }
    }
    Ok(SweepDocument {
        schema: "moeplan/sweep/1".into(),
        model: super::summary(model, path),
        machine: machine.clone(),
        variable: if budgets.is_some() { Variable::Vram } else { Variable::Ctx },
        contexts: contexts.filter(|_| budgets.is_some()).unwrap_or_default().to_vec(),
        asked: None,
        points,
    })
}

const CARDS: [u64; 14] = [4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96];

/// What a reader of a plan may ask next: budgets that cards have on both sides of the plan's own, in bytes, and contexts from half
/// to four times the plan's, in tokens, with room for the turn and as far as the model was trained: from `least` to `most`.
pub fn near(budget: Bytes, n_ctx: u32, (least, most): (u32, u32)) -> (Vec<u64>, Vec<u64>) {
    let own = budget.0;
    let cards = || CARDS.iter().map(|gib| gib * GIB);
    let below = cards().rev().filter(|card| *card < own).take(3);
    let above = cards().filter(|card| *card > own).take(3);
    let mut budgets: Vec<u64> = below.chain([own]).chain(above).filter(|bytes| *bytes > 0).collect();
    budgets.sort_unstable();
    let own = u64::from(n_ctx);
    let others = [own / 2, own * 2, own * 4].into_iter().filter(|n| (u64::from(least)..=u64::from(most)).contains(n));
    let mut contexts: Vec<u64> = others.chain([own]).collect();
    contexts.sort_unstable();
    (budgets, contexts)
}

/// The `moeplan/plans/1` document: several files on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plans {
    pub schema: Cow<'static, str>,
    pub machine: Machine,
    /// A row a file, in the order given.
    pub rows: Vec<PlansRow>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlansRow {
    pub model: ModelSummary,
    pub bits_per_weight: f64,
    #[serde(flatten)]
    pub point: Point,
}

impl PlansRow {
    pub fn of(model: &Model, path: &str, machine: &Machine, request: &Request, at: u64) -> Result<Self, Error> {
        let problem = request.problem(model, machine);
        let candidate = super::solve_with(&problem)?;
        let summary = super::summary(model, path);
        let elements: u64 = model.tensors.iter().map(crate::model::Tensor::elements).sum();
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let bits_per_weight = summary.bytes.0 as f64 * 8.0 / elements.max(1) as f64;
        let point = Point::of(&problem, &candidate, at, path.to_string());
        Ok(Self { model: summary, bits_per_weight, point })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_a_plan_has_it_in_its_middle() {
        let (budgets, contexts) = near(Bytes(24 * GIB), 8192, (4096, 20_000));
        assert_eq!(budgets, [12, 16, 20, 24, 32, 40, 48].map(|gib| gib * GIB));
        assert_eq!(contexts, [4096, 8192, 16384]);
        assert_eq!(near(Bytes(5 * GIB), 512, (0, 0)), ([4, 5, 6, 8, 10].map(|gib| gib * GIB).to_vec(), vec![512]));
        assert_eq!(near(Bytes(200 * GIB), 4096, (4096, 4096)).0.last(), Some(&(200 * GIB)));
    }

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
            ("vram=8G..6G", "start above 0"),
            ("vram=6..48", "no unit: 6G?"),
            ("ctx=8q..9k", "not a number of tokens"),
            ("ctx=1..100000:1", "larger step"),
            ("vram=6G..48G:0", "steps above 0"),
        ] {
            let error = text.parse::<Sweep>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
