//! Calibration: the constants of a machine from measured times, by least squares of relative errors.
//!
//! The time of a sample is a sum of amounts times prices (`work`, `prices`). The prices of the tiers that took part are sought that
//! give the smallest relative errors, none negative; a price that no sample tells stays at the table's. Outliers count less.

use super::Phase;
use super::prices::{self, Prices};
use super::work::{Cost, Work};
use crate::machine::Machine;

#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub what: String,
    pub phase: Phase,
    pub work: Work,
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Residual {
    pub what: String,
    pub phase: Phase,
    pub seconds: f64,
    pub predicted: f64,
}

impl Residual {
    /// Predicted beside measured: 0.1 = 10% too slow.
    pub fn error(&self) -> f64 {
        self.predicted / self.seconds - 1.0
    }
}

/// Constants that were found, and how well they do.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub machine: Machine,
    pub residuals: Vec<Residual>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("{found} usable measurements, {least} at least are needed")]
    TooFew { found: usize, least: usize },
}

const LEAST_SAMPLES: usize = 4;
/// How far a price of the host may go from the guess, in either direction: hosts differ by their channels of memory.
const FARTHEST_OF_HOST: f64 = 8.0;
/// The same of a device: an RPC server may hide any card.
const FARTHEST: f64 = 40.0;
/// Weight of staying at the table's price beside a sample: enough to hold what no sample tells.
const PULL: f64 = 2e-4;
/// Relative errors beyond this count linearly instead of squared.
const OUTLIER: f64 = 0.1;
/// Passes over all prices: they settle long before.
const SWEEPS: usize = 4000;
/// The largest relative step at which they are taken to have settled.
const SETTLED: f64 = 1e-7;
const ROUNDS: usize = 8;

/// One unknown: a price of a tier.
#[derive(Debug, Clone, Copy)]
struct Unknown {
    tier: usize,
    cost: Cost,
    start: f64,
}

impl Unknown {
    /// How far its price may go from the start.
    fn farthest(&self) -> f64 {
        if self.tier == 0 { FARTHEST_OF_HOST } else { FARTHEST }
    }
}

/// Finds the constants of `machine` from samples taken on it; `basis` says when and how.
pub fn fit(machine: &Machine, samples: &[Sample], basis: &str) -> Result<Fit, Error> {
    let usable = |sample: &&Sample| sample.seconds > 0.0 && sample.seconds.is_finite() && sample.work.overlapped <= 1.0;
    let samples: Vec<&Sample> = samples.iter().filter(usable).collect();
    if samples.len() < LEAST_SAMPLES {
        return Err(Error::TooFew { found: samples.len(), least: LEAST_SAMPLES });
    }
    // As the table sees it.
    let mut bare = machine.clone();
    bare.host.rates = None;
    bare.devices.iter_mut().for_each(|device| device.rates = None);
    let everyone: Vec<u16> = (0..u16::try_from(machine.devices.len()).unwrap_or(u16::MAX)).collect();
    let start = Prices::of(&bare, &everyone);
    let unknowns: Vec<Unknown> = (0..=machine.devices.len())
        .flat_map(|tier| Cost::ALL.map(|cost| Unknown { tier, cost, start: start.price(tier, cost) }))
        .filter(|unknown| unknown.start > 0.0)
        .filter(|unknown| samples.iter().any(|sample| sample.work.amount(unknown.tier, unknown.cost) > 0.0))
        .collect();
    let rows: Vec<Vec<f64>> = samples
        .iter()
        .map(|sample| unknowns.iter().map(|u| sample.work.amount(u.tier, u.cost) * u.start / sample.seconds).collect())
        .collect();
    let bounds: Vec<f64> = unknowns.iter().map(Unknown::farthest).collect();
    let factors = solve(&rows, &bounds);
    let mut by_tier: Vec<[f64; Cost::ALL.len()]> = (0..=machine.devices.len()).map(|tier| start.on(tier)).collect();
    for (unknown, factor) in unknowns.iter().zip(&factors) {
        if let Some(prices) = by_tier.get_mut(unknown.tier) {
            prices[unknown.cost as usize] *= factor;
        }
    }
    let predicted = rows.iter().map(|row| dot(row, &factors));
    let residuals: Vec<Residual> = samples
        .iter()
        .zip(predicted)
        .map(|(sample, share)| Residual {
            what: sample.what.clone(),
            phase: sample.phase,
            seconds: sample.seconds,
            predicted: share * sample.seconds,
        })
        .collect();
    let mut machine = machine.clone();
    let touched = |tier: usize| unknowns.iter().any(|unknown| unknown.tier == tier);
    for (tier, found) in by_tier.iter().enumerate().filter(|(tier, _)| touched(*tier)) {
        prices::set(&mut machine, tier, found, spread(&residuals), basis);
    }
    Ok(Fit { machine, residuals })
}

fn dot(row: &[f64], factors: &[f64]) -> f64 {
    row.iter().zip(factors).map(|(a, b)| a * b).sum()
}

/// Factors on the starting prices for which every row sums to 1 as nearly as can be: coordinate descent between bounds on the
/// normal equations, each round weighting a row down by how far it is off.
fn solve(rows: &[Vec<f64>], bounds: &[f64]) -> Vec<f64> {
    let mut factors = vec![1.0; bounds.len()];
    let mut weights = vec![1.0; rows.len()];
    for _ in 0..ROUNDS {
        let equations = Equations::of(rows, &weights, bounds.len());
        for _ in 0..SWEEPS {
            if equations.sweep(&mut factors, bounds) < SETTLED {
                break;
            }
        }
        for (weight, row) in weights.iter_mut().zip(rows) {
            *weight = OUTLIER / (1.0 - dot(row, &factors)).abs().max(OUTLIER);
        }
    }
    factors
}

/// The normal equations of weighted rows that are to sum to 1, with the pull of every factor toward 1.
struct Equations {
    matrix: Vec<Vec<f64>>,
    right: Vec<f64>,
}

impl Equations {
    fn of(rows: &[Vec<f64>], weights: &[f64], unknowns: usize) -> Self {
        let mut matrix = vec![vec![0.0; unknowns]; unknowns];
        let mut right = vec![PULL; unknowns];
        for (at, (line, right)) in matrix.iter_mut().zip(&mut right).enumerate() {
            for (row, weight) in rows.iter().zip(weights) {
                let own = weight * row.get(at).copied().unwrap_or(0.0);
                *right += own;
                for (sum, other) in line.iter_mut().zip(row) {
                    *sum += own * other;
                }
            }
            if let Some(diagonal) = line.get_mut(at) {
                *diagonal += PULL;
            }
        }
        Self { matrix, right }
    }

    /// Moves each factor to its best value, the others held; the largest relative step.
    fn sweep(&self, factors: &mut [f64], bounds: &[f64]) -> f64 {
        let mut moved = 0.0_f64;
        for (at, ((line, right), bound)) in self.matrix.iter().zip(&self.right).zip(bounds).enumerate() {
            let rest = right - dot(line, factors);
            let (Some(factor), Some(diagonal)) = (factors.get_mut(at), line.get(at)) else { continue };
            let next = (*factor + rest / diagonal).clamp(1.0 / bound, *bound);
            moved = moved.max((next / *factor - 1.0).abs());
            *factor = next;
        }
        moved
    }
}

/// The share that nine in ten samples are within, at least 5%.
fn spread(residuals: &[Residual]) -> f64 {
    let mut errors: Vec<f64> = residuals.iter().map(|residual| residual.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    let at = errors.len() * 9 / 10;
    errors.get(at).or(errors.last()).copied().unwrap_or(1.0).max(0.05)
}

/// Half of the samples of a phase are predicted within this share; `None` without samples.
pub fn median_error(residuals: &[Residual], phase: Phase) -> Option<f64> {
    let of_phase = residuals.iter().filter(|residual| residual.phase == phase);
    let mut errors: Vec<f64> = of_phase.map(|residual| residual.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    errors.get(errors.len() / 2).copied()
}
