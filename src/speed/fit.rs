//! Calibration: the constants of a machine from measured times, by least squares of relative errors.
//!
//! The time of a sample is a sum of amounts times prices (`work`, `prices`); two of the host's go on at once and are taken by their
//! tangent. The prices of the tiers that took part are sought that
//! give the smallest relative errors, none negative; a price that no sample tells stays at the table's. Outliers count less. Equal
//! cards share their prices, and none is beyond a card's data sheet unless the measurements insist.

use super::Phase;
use super::prices::{self, AT_ONCE, Prices, at_once};
use super::work::{ByCost, Work};
use crate::machine::{Device, Machine};
use crate::suggest::Refusal;

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
    /// What is not as a data sheet or the law would have it.
    pub odd: Vec<String>,
}

impl Fit {
    /// Whether the constants meet their own measurements so badly that they say nothing of other launches.
    pub fn is_nonsense(&self) -> bool {
        share_within(self.residuals.iter(), 9, 10).is_none_or(|share| share > MOST_UNCERTAINTY)
    }
}

const LEAST_SAMPLES: usize = 4;
/// How far a price of the host may go from the guess, in either direction: hosts differ by their channels of memory.
const FARTHEST_OF_HOST: f64 = 8.0;
/// The same of a device: an RPC server may hide any card.
const FARTHEST: f64 = 40.0;
/// Weight of staying at the table's price beside a sample: enough to hold what samples tell only together with another price.
const PULL: f64 = 4e-3;
/// Relative errors beyond this count linearly instead of squared.
const OUTLIER: f64 = 0.1;
/// Passes over all prices: they settle long before.
const SWEEPS: usize = 4000;
/// The largest relative step at which they are taken to have settled.
const SETTLED: f64 = 1e-7;
const ROUNDS: usize = 16;
/// A tenth of the measurements that are off by more than this make a calibration worthless.
const MOST_UNCERTAINTY: f64 = 0.5;
/// Measurements that are predicted so much better with a price beyond the data sheet insist on it: the error of the worst tenth, in
/// proportion. The median would not show a price that few of them tell.
const INSISTS: f64 = 0.5;
/// The least that a calibration says it may be off.
const LEAST_UNCERTAINTY: f64 = 0.05;

/// Finds the constants of `machine` from samples taken on it; `basis` says when and how.
pub fn fit(machine: &Machine, samples: &[Sample], basis: &str) -> Result<Fit, Refusal> {
    let usable = |sample: &&Sample| sample.seconds > 0.0 && sample.seconds.is_finite() && sample.work.overlapped <= 1.0;
    let samples: Vec<&Sample> = samples.iter().filter(usable).collect();
    if samples.len() < LEAST_SAMPLES {
        let message = format!("{} usable measurements, {LEAST_SAMPLES} at least are needed", samples.len());
        return Err(Refusal::new(message, ""));
    }
    // As the table sees it.
    let mut bare = machine.clone();
    bare.host.rates = None;
    bare.devices.iter_mut().for_each(|device| device.rates = None);
    let Prices { by_tier: mut prices, uncertainty: of_table, .. } = Prices::of(&bare, &[]);
    let amount = |sample: &Sample, tier: usize, kind: usize| sample.work.amounts.get(tier).map_or(0.0, |k| k[kind]);
    // Of equal cards the first one's price is sought, with the work of all of them.
    let first = equal_cards(machine);
    let cards = |tier: usize| first.iter().enumerate().filter(move |(_, of)| **of == tier).map(|(at, _)| at);
    let is_told = |&(tier, kind): &(usize, usize)| {
        let told = |sample: &&Sample| cards(tier).any(|card| amount(sample, card, kind) > 0.0);
        prices[tier][kind] > 0.0 && samples.iter().any(told)
    };
    let all = prices.iter().enumerate().flat_map(|(tier, kinds)| (0..kinds.len()).map(move |kind| (tier, kind)));
    let unknowns: Vec<(usize, usize)> = all.filter(|(tier, _)| first[*tier] == *tier).filter(is_told).collect();
    let row = |sample: &&Sample| -> Vec<f64> {
        let share = |(tier, kind): &(usize, usize)| {
            cards(*tier).map(|card| amount(sample, card, *kind)).sum::<f64>() * prices[*tier][*kind] / sample.seconds
        };
        unknowns.iter().map(share).collect()
    };
    let rows: Vec<Vec<f64>> = samples.iter().map(row).collect();
    let farthest = |tier: usize| if tier == 0 { FARTHEST_OF_HOST } else { FARTHEST };
    let free: Vec<[f64; 2]> = unknowns.iter().map(|(tier, _)| [1.0 / farthest(*tier), farthest(*tier)]).collect();
    let limits: Vec<ByCost> = (0..prices.len()).map(|tier| prices::least(machine, tier)).collect();
    let bound = |((tier, kind), [low, high]): (&(usize, usize), &[f64; 2])| {
        [low.max(limits[*tier][*kind] / prices[*tier][*kind]).min(1.0), *high]
    };
    let bounds: Vec<[f64; 2]> = unknowns.iter().zip(&free).map(bound).collect();
    let both = AT_ONCE.map(|kind| unknowns.iter().position(|unknown| *unknown == (0, kind as usize)));
    let both = both[0].zip(both[1]);
    let residuals = |factors: &[f64]| -> Vec<Residual> {
        let residual = |(sample, row): (&&Sample, &Vec<f64>)| Residual {
            what: sample.what.clone(),
            phase: sample.phase,
            seconds: sample.seconds,
            predicted: dot(&tangent(row, factors, both), factors) * sample.seconds,
        };
        samples.iter().zip(&rows).map(residual).collect()
    };
    let mut factors = solve(&rows, &bounds, both);
    let mut odd = Vec::new();
    if factors.iter().zip(&bounds).zip(&free).any(|((factor, bound), free)| *factor <= bound[0] && bound[0] > free[0]) {
        let beyond = solve(&rows, &free, both);
        let off = |factors: &[f64]| share_within(residuals(factors).iter(), 9, 10).unwrap_or(1.0);
        if off(&beyond) < off(&factors) * INSISTS {
            let is_beyond = beyond.iter().zip(&bounds).map(|(factor, bound)| *factor < bound[0]);
            for ((tier, kind), _) in unknowns.iter().zip(is_beyond).filter(|(_, beyond)| *beyond) {
                odd.push(format!("{} beyond the data sheet, as measured", prices::name(machine, *tier, *kind)));
            }
            factors = beyond;
        }
    }
    for ((tier, kind), factor) in unknowns.iter().zip(&factors) {
        for card in cards(*tier) {
            prices[card][*kind] *= factor;
        }
        if *factor <= 1.0 / farthest(*tier) || *factor >= farthest(*tier) {
            let name = prices::name(machine, *tier, *kind);
            odd.push(format!("{name} {:.0} times off what is known of its like", factor.max(1.0 / factor)));
        }
    }
    let residuals = residuals(&factors);
    let far: Vec<&Residual> = residuals.iter().filter(|residual| residual.error().abs() > MOST_UNCERTAINTY).collect();
    if let Some(worst) = far.iter().max_by(|a, b| a.error().abs().total_cmp(&b.error().abs())) {
        let (n, of, what) = (far.len(), residuals.len(), &worst.what);
        odd.push(format!("{n} of {of} measurements off by more than half, most of all {what}"));
    }
    let mut machine = machine.clone();
    for (tier, found) in
        prices.iter().enumerate().filter(|(tier, _)| unknowns.iter().any(|(of, ..)| *of == first[*tier]))
    {
        // Nine in ten samples are within it: what was not measured is further off. Measurements that contradict each other are no
        // better known than the table.
        let of_phase = |(phase, of_table): (Phase, f64)| {
            let samples = residuals.iter().filter(|residual| residual.phase == phase);
            let least = if far.is_empty() { LEAST_UNCERTAINTY } else { of_table };
            share_within(samples, 9, 10).unwrap_or(1.0).max(least)
        };
        let [pp, tg] = of_table[tier];
        let uncertainty = [(Phase::Prompt, pp), (Phase::Generate, tg)].map(of_phase);
        prices::set(&mut machine, tier, found, uncertainty, basis);
    }
    Ok(Fit { machine, residuals, odd })
}

/// For each tier the first one that is the same card.
fn equal_cards(machine: &Machine) -> Vec<usize> {
    let same = |device: &Device| {
        let is_same = |other: &Device| other.backend == device.backend && other.description == device.description;
        machine.devices.iter().position(|other| device.description.is_some() && is_same(other))
    };
    let devices = machine.devices.iter().enumerate().map(|(at, device)| same(device).unwrap_or(at) + 1);
    [0].into_iter().chain(devices).collect()
}

fn dot(row: &[f64], factors: &[f64]) -> f64 {
    row.iter().zip(factors).map(|(a, b)| a * b).sum()
}

/// A row with the derivatives of what goes on at once in it, at these factors: their products sum to the row's time.
fn tangent(row: &[f64], factors: &[f64], both: Option<(usize, usize)>) -> Vec<f64> {
    let mut tangent = row.to_vec();
    if let Some((a, b)) = both {
        let times = [a, b].map(|at| row[at] * factors[at]);
        let together = at_once(times[0], times[1]);
        for (at, time) in [a, b].into_iter().zip(times).filter(|_| together > 0.0) {
            tangent[at] *= time / together;
        }
    }
    tangent
}

/// Factors on the starting prices for which every row sums to 1 as nearly as can be: coordinate descent between bounds on the
/// normal equations, each round weighting a row down by how far it is off.
fn solve(rows: &[Vec<f64>], bounds: &[[f64; 2]], both: Option<(usize, usize)>) -> Vec<f64> {
    let mut factors = vec![1.0; bounds.len()];
    let mut weights = vec![1.0; rows.len()];
    for _ in 0..ROUNDS {
        let tangents: Vec<Vec<f64>> = rows.iter().map(|row| tangent(row, &factors, both)).collect();
        // With the pull of every factor toward 1.
        let mut matrix = vec![vec![0.0; bounds.len()]; bounds.len()];
        let mut right = vec![PULL; bounds.len()];
        for (at, line) in matrix.iter_mut().enumerate() {
            for (row, weight) in tangents.iter().zip(&weights) {
                right[at] += weight * row[at];
                line.iter_mut().zip(row).for_each(|(sum, other)| *sum += weight * row[at] * other);
            }
            line[at] += PULL;
        }
        for _ in 0..SWEEPS {
            // Each factor moves to its best value, the others held.
            let mut moved = 0.0_f64;
            for (at, line) in matrix.iter().enumerate() {
                let best = factors[at] + (right[at] - dot(line, &factors)) / line[at];
                let next = best.clamp(bounds[at][0], bounds[at][1]);
                moved = moved.max((next / factors[at] - 1.0).abs());
                factors[at] = next;
            }
            if moved < SETTLED {
                break;
            }
        }
        for (weight, row) in weights.iter_mut().zip(rows) {
            *weight = OUTLIER / (1.0 - dot(&tangent(row, &factors, both), &factors)).abs().max(OUTLIER);
        }
    }
    factors
}

/// The error that so many in so many are within; `None` without samples.
fn share_within<'r>(residuals: impl Iterator<Item = &'r Residual>, many: usize, of: usize) -> Option<f64> {
    let mut errors: Vec<f64> = residuals.map(|residual| residual.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    errors.get(errors.len() * many / of).or(errors.last()).copied()
}

/// Half of the samples of a phase are predicted within this share; `None` without samples.
pub fn median_error(residuals: &[Residual], phase: Phase) -> Option<f64> {
    share_within(residuals.iter().filter(|residual| residual.phase == phase), 1, 2)
}
