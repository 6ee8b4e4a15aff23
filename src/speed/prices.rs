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
        let mut by_tier = vec![prices(&host, &OF_HOST)];
        let mut basis = Vec::new();
        let mut uncertainty = host.uncertainty;
        for (index, device) in (0_u16..).zip(&machine.devices) {
            let rates = device_rates(device);
            by_tier.push(prices(&rates, &OF_DEVICE));
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

/// A kind of work, the unit of its rate, and the rate: work by second, or, where the unit is below 1, seconds.
type Row<R> = (Cost, f64, fn(&mut R) -> &mut f64);

const OF_DEVICE: [Row<DeviceRates>; 10] = [
    (Cost::Weights, GIGA, |rates| &mut rates.weights),
    (Cost::Products, TERA, |rates| &mut rates.products),
    (Cost::Attention, TERA, |rates| &mut rates.attention),
    (Cost::Cache, GIGA, |rates| &mut rates.cache),
    (Cost::Op, MICRO, |rates| &mut rates.op),
    (Cost::Graph, MICRO, |rates| &mut rates.graph),
    (Cost::Pinned, GIGA, |rates| &mut rates.pinned),
    (Cost::Pageable, GIGA, |rates| &mut rates.pageable),
    (Cost::Offload, MICRO, |rates| &mut rates.offload),
    (Cost::Switch, MICRO, |rates| &mut rates.switch),
];
const OF_HOST: [Row<HostRates>; 5] = [
    (Cost::Weights, GIGA, |rates| &mut rates.memory),
    (Cost::ByThread, GIGA, |rates| &mut rates.by_thread),
    (Cost::Products, GIGA, |rates| &mut rates.products),
    (Cost::Op, MICRO, |rates| &mut rates.op),
    (Cost::Disk, GIGA, |rates| &mut rates.disk),
];

/// Rates turned over.
fn prices<R: Clone>(rates: &R, rows: &[Row<R>]) -> [f64; Cost::ALL.len()] {
    let (mut rates, mut prices) = (rates.clone(), [0.0; Cost::ALL.len()]);
    for (cost, unit, rate) in rows {
        let rate = *rate(&mut rates) * unit;
        prices[*cost as usize] = if *unit < 1.0 { rate } else { 1.0 / rate };
    }
    prices
}

/// The inverse of [`prices`]: every rate of `rates` by its price.
fn with_prices<R>(mut rates: R, prices: &[f64; Cost::ALL.len()], rows: &[Row<R>]) -> R {
    for (cost, unit, rate) in rows {
        let price = prices[*cost as usize];
        *rate(&mut rates) = if *unit < 1.0 { price / unit } else { 1.0 / (price * unit) };
    }
    rates
}

/// The machine with these prices on a tier.
pub(super) fn set(machine: &mut Machine, tier: usize, prices: &[f64; Cost::ALL.len()], uncertainty: f64, basis: &str) {
    let basis = basis.to_string();
    match tier.checked_sub(1) {
        None => {
            let rates = with_prices(host_rates(&machine.host), prices, &OF_HOST);
            machine.host.rates = Some(HostRates { uncertainty, basis, ..rates });
        }
        Some(index) => {
            if let Some(device) = machine.devices.get_mut(index) {
                let rates = with_prices(device_rates(device), prices, &OF_DEVICE);
                device.rates = Some(DeviceRates { uncertainty, basis, ..rates });
            }
        }
    }
}
