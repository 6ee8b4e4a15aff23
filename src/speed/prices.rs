//! What each amount of work costs on a machine: seconds by byte, operation or wait.

use super::table;
use super::work::{Cost, Work};
use super::{Phase, Term};
use crate::machine::{Device, DeviceRates, Host, HostRates, Machine};

/// Seconds by unit of every kind of work, by tier (0 = host, `i + 1` = `Machine::devices[i]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Prices {
    by_tier: Vec<[f64; Cost::ALL.len()]>,
    pub basis: String,
    /// The share that predictions may well be off.
    pub uncertainty: f64,
}

/// The rates of a device: its own, else the table's.
pub fn device_rates(device: &Device) -> DeviceRates {
    device.rates.clone().unwrap_or_else(|| table::device(device))
}

/// The rates of the host: its own, else a guess.
pub fn host_rates(host: &Host) -> HostRates {
    host.rates.clone().unwrap_or_else(|| table::host(host))
}

impl Prices {
    /// The prices of a machine on which `devices` take part.
    pub fn of(machine: &Machine, devices: &[u16]) -> Self {
        let host = host_rates(&machine.host);
        let mut by_tier = vec![of_host(&host)];
        let mut basis = Vec::new();
        let mut uncertainty = host.uncertainty;
        for (index, device) in (0_u16..).zip(&machine.devices) {
            let rates = device_rates(device);
            by_tier.push(of_device(&rates));
            if devices.contains(&index) {
                uncertainty = uncertainty.max(rates.uncertainty);
                if !basis.contains(&rates.basis) {
                    basis.push(rates.basis);
                }
            }
        }
        if !basis.contains(&host.basis) {
            basis.push(host.basis);
        }
        Self { by_tier, basis: basis.join("; "), uncertainty }
    }

    /// The price of one kind on a tier.
    pub fn price(&self, tier: usize, cost: Cost) -> f64 {
        self.by_tier.get(tier).map_or(0.0, |kinds| kinds[cost as usize])
    }

    /// The prices of a tier.
    pub(super) fn on(&self, tier: usize) -> [f64; Cost::ALL.len()] {
        self.by_tier.get(tier).copied().unwrap_or_default()
    }

    /// Seconds of the work on one tier, were nothing to overlap.
    fn of_tier(&self, work: &Work, tier: usize) -> f64 {
        Cost::ALL.iter().map(|cost| self.of_cost(work, tier, *cost)).sum()
    }

    /// Seconds of one kind of work on a tier: nothing where nothing is done, whatever it would cost.
    fn of_cost(&self, work: &Work, tier: usize, cost: Cost) -> f64 {
        let amount = work.amount(tier, cost);
        if amount > 0.0 { amount * self.price(tier, cost) } else { 0.0 }
    }

    /// Seconds of the work.
    pub fn seconds(&self, work: &Work) -> f64 {
        let by_tier = (0..work.tiers()).map(|tier| self.of_tier(work, tier));
        let all: f64 = by_tier.clone().sum();
        // The slowest device sets the pace of a pipeline; filling it takes one micro-batch through all.
        let slowest = by_tier.fold(0.0, f64::max);
        all / work.overlapped + slowest * (1.0 - 1.0 / work.overlapped)
    }

    /// What the time goes into, largest first; small change is one term.
    pub fn terms(&self, work: &Work, phase: Phase, machine: &Machine) -> Vec<Term> {
        let all: f64 = (0..work.tiers()).map(|tier| self.of_tier(work, tier)).sum();
        let total = self.seconds(work);
        let mut terms: Vec<Term> = Vec::new();
        for tier in 0..work.tiers() {
            let name = tier.checked_sub(1).and_then(|i| machine.devices.get(i)).map(|device| device.name.as_str());
            for cost in Cost::ALL {
                // Overlapped tiers share the time that passes.
                let seconds = self.of_cost(work, tier, cost) * total / all;
                if seconds <= total * SMALL {
                    continue;
                }
                terms.push(Term { phase, what: label(cost, name), seconds });
            }
        }
        terms.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let rest = total - terms.iter().map(|term| term.seconds).sum::<f64>();
        if rest > 0.0 {
            terms.push(Term { phase, what: "everything else".to_string(), seconds: rest });
        }
        terms
    }
}

/// Terms below this share of a phase are summed.
const SMALL: f64 = 0.01;

/// What a kind of work is called.
fn label(cost: Cost, device: Option<&str>) -> String {
    let Some(name) = device else {
        return match cost {
            Cost::Weights => "weights read from main memory",
            Cost::ByThread => "weights multiplied by the host's threads",
            Cost::Products => "products on the host",
            Cost::Op => "starts of operations on the host",
            Cost::Disk => "weights read from the disk",
            _ => "other work on the host",
        }
        .to_string();
    };
    match cost {
        Cost::Weights => format!("weights read on {name}"),
        Cost::Products => format!("products on {name}"),
        Cost::Attention => format!("attention on {name}"),
        Cost::Cache => format!("keys, values and states read on {name}"),
        Cost::Op => format!("starts of operations on {name}"),
        Cost::Graph => format!("fixed time by pass on {name}"),
        Cost::Pinned => format!("host weights copied to {name} from pinned memory"),
        Cost::Pageable => format!("copied to {name} from pageable memory"),
        Cost::Offload => format!("waits before copies to {name}"),
        Cost::Switch => format!("changes to and from {name}"),
        Cost::ByThread | Cost::Disk => format!("other work on {name}"),
    }
}

const GIGA: f64 = 1e9;
const TERA: f64 = 1e12;
const MICRO: f64 = 1e-6;

/// Rates turned over.
pub(super) fn of_device(rates: &DeviceRates) -> [f64; Cost::ALL.len()] {
    let mut prices = [0.0; Cost::ALL.len()];
    for (cost, price) in [
        (Cost::Weights, 1.0 / (rates.weights * GIGA)),
        (Cost::Products, 1.0 / (rates.products * TERA)),
        (Cost::Attention, 1.0 / (rates.attention * TERA)),
        (Cost::Cache, 1.0 / (rates.cache * GIGA)),
        (Cost::Op, rates.op * MICRO),
        (Cost::Graph, rates.graph * MICRO),
        (Cost::Pinned, 1.0 / (rates.pinned * GIGA)),
        (Cost::Pageable, 1.0 / (rates.pageable * GIGA)),
        (Cost::Offload, rates.offload * MICRO),
        (Cost::Switch, rates.switch * MICRO),
    ] {
        prices[cost as usize] = price;
    }
    prices
}

/// Prices turned over; the inverse of [`of_device`].
pub(super) fn to_device(prices: &[f64; Cost::ALL.len()], uncertainty: f64, basis: String) -> DeviceRates {
    let rate = |cost: Cost, unit: f64| 1.0 / (prices[cost as usize] * unit);
    let wait = |cost: Cost| prices[cost as usize] / MICRO;
    DeviceRates {
        weights: rate(Cost::Weights, GIGA),
        products: rate(Cost::Products, TERA),
        attention: rate(Cost::Attention, TERA),
        cache: rate(Cost::Cache, GIGA),
        op: wait(Cost::Op),
        graph: wait(Cost::Graph),
        pinned: rate(Cost::Pinned, GIGA),
        pageable: rate(Cost::Pageable, GIGA),
        offload: wait(Cost::Offload),
        switch: wait(Cost::Switch),
        uncertainty,
        basis,
    }
}

/// Rates turned over.
pub(super) fn of_host(rates: &HostRates) -> [f64; Cost::ALL.len()] {
    let mut prices = [0.0; Cost::ALL.len()];
    for (cost, price) in [
        (Cost::Weights, 1.0 / (rates.memory * GIGA)),
        (Cost::ByThread, 1.0 / (rates.by_thread * GIGA)),
        (Cost::Products, 1.0 / (rates.products * GIGA)),
        (Cost::Op, rates.op * MICRO),
        (Cost::Disk, 1.0 / (rates.disk * GIGA)),
    ] {
        prices[cost as usize] = price;
    }
    prices
}

/// Prices turned over; the inverse of [`of_host`].
pub(super) fn to_host(prices: &[f64; Cost::ALL.len()], uncertainty: f64, basis: String) -> HostRates {
    let rate = |cost: Cost| 1.0 / (prices[cost as usize] * GIGA);
    HostRates {
        memory: rate(Cost::Weights),
        by_thread: rate(Cost::ByThread),
        products: rate(Cost::Products),
        op: prices[Cost::Op as usize] / MICRO,
        disk: rate(Cost::Disk),
        uncertainty,
        basis,
    }
}
