//! What each amount of work costs on a machine: seconds by byte, operation or wait.

use super::table;
use super::work::{ByCost, Cost, Work};
use super::{Phase, Term};
use crate::machine::{Device, DeviceRates, Host, HostRates, Machine};

/// Seconds by unit of every kind of work, by tier (0 = host, `i + 1` = `Machine::devices[i]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Prices {
    pub(super) by_tier: Vec<ByCost>,
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

    /// Seconds by tier and kind, were nothing to overlap: none where nothing is done, whatever it would cost.
    fn by_tier(&self, work: &Work) -> Vec<ByCost> {
        let of = |amount: f64, price: f64| if amount > 0.0 { amount * price } else { 0.0 };
        let tier = |(amounts, prices): (&ByCost, &ByCost)| std::array::from_fn(|kind| of(amounts[kind], prices[kind]));
        work.amounts.iter().zip(&self.by_tier).map(tier).collect()
    }

    pub fn seconds(&self, work: &Work) -> f64 {
        let tiers = self.by_tier(work).into_iter().map(|kinds| kinds.iter().sum::<f64>());
        let all: f64 = tiers.clone().sum();
        // The slowest device sets the pace of a pipeline; filling it takes one micro-batch through all.
        let slowest = tiers.fold(0.0, f64::max);
        all / work.overlapped + slowest * (1.0 - 1.0 / work.overlapped)
    }

    /// What the time goes into, largest first; small change is one term.
    pub fn terms(&self, work: &Work, phase: Phase, machine: &Machine) -> Vec<Term> {
        let by_tier = self.by_tier(work);
        let all: f64 = by_tier.iter().map(|kinds| kinds.iter().sum::<f64>()).sum();
        let total = self.seconds(work);
        let mut terms: Vec<Term> = Vec::new();
        for (tier, kinds) in by_tier.iter().enumerate() {
            let device = tier.checked_sub(1).and_then(|i| machine.devices.get(i));
            let names = match device {
                None => OF_HOST.map(|(cost, name, ..)| (cost, name.to_string())).to_vec(),
                Some(device) => OF_DEVICE.map(|(cost, name, ..)| (cost, name.replace("{}", &device.name))).to_vec(),
            };
            for (cost, what) in names {
                // Overlapped tiers share the time that passes.
                let seconds = kinds[cost as usize] * total / all;
                if seconds > total * SMALL {
                    terms.push(Term { phase, what, seconds });
                }
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

const GIGA: f64 = 1e9;
const TERA: f64 = 1e12;
const MICRO: f64 = 1e-6;

/// A kind of work, what its time is called (`{}` is the device), the unit of its rate, and the rate: work by second, or, where the
/// unit is below 1, seconds.
type Row<R> = (Cost, &'static str, f64, fn(&mut R) -> &mut f64);

const OF_DEVICE: [Row<DeviceRates>; 10] = [
    (Cost::Weights, "weights read on {}", GIGA, |rates| &mut rates.weights),
    (Cost::Products, "products on {}", TERA, |rates| &mut rates.products),
    (Cost::Attention, "attention on {}", TERA, |rates| &mut rates.attention),
    (Cost::Cache, "keys, values and states read on {}", GIGA, |rates| &mut rates.cache),
    (Cost::Op, "starts of operations on {}", MICRO, |rates| &mut rates.op),
    (Cost::Graph, "fixed time by pass on {}", MICRO, |rates| &mut rates.graph),
    (Cost::Pinned, "host weights copied to {} from pinned memory", GIGA, |rates| &mut rates.pinned),
    (Cost::Pageable, "copied to {} from pageable memory", GIGA, |rates| &mut rates.pageable),
    (Cost::Offload, "waits before copies to {}", MICRO, |rates| &mut rates.offload),
    (Cost::Switch, "changes to and from {}", MICRO, |rates| &mut rates.switch),
];
const OF_HOST: [Row<HostRates>; 5] = [
    (Cost::Weights, "weights read from main memory", GIGA, |rates| &mut rates.memory),
    (Cost::ByThread, "weights multiplied by the host's threads", GIGA, |rates| &mut rates.by_thread),
    (Cost::Products, "products on the host", GIGA, |rates| &mut rates.products),
    (Cost::Op, "starts of operations on the host", MICRO, |rates| &mut rates.op),
    (Cost::Disk, "weights read from the disk", GIGA, |rates| &mut rates.disk),
];

/// Rates turned over.
fn prices<R: Clone>(rates: &R, rows: &[Row<R>]) -> ByCost {
    let (mut rates, mut prices) = (rates.clone(), ByCost::default());
    for (cost, _, unit, rate) in rows {
        let rate = *rate(&mut rates) * unit;
        prices[*cost as usize] = if *unit < 1.0 { rate } else { 1.0 / rate };
    }
    prices
}

/// The inverse of [`prices`]: every rate of `rates` by its price.
fn with_prices<R>(mut rates: R, prices: &ByCost, rows: &[Row<R>]) -> R {
    for (cost, _, unit, rate) in rows {
        let price = prices[*cost as usize];
        *rate(&mut rates) = if *unit < 1.0 { price / unit } else { 1.0 / (price * unit) };
    }
    rates
}

/// The machine with these prices on a tier.
pub(super) fn set(machine: &mut Machine, tier: usize, prices: &ByCost, uncertainty: f64, basis: &str) {
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
