//! What each amount of work costs on a machine: seconds by byte, operation or wait.

use super::table;
use super::work::{ByCost, Cost, Work};
use super::{Phase, Term};
use crate::bytes::Bytes;
use crate::machine::{Device, DeviceRates, Host, HostRates, Machine, processors};

/// Seconds by unit of every kind of work, by tier (0 = host, `i + 1` = `Machine::devices[i]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Prices {
    pub(super) by_tier: Vec<ByCost>,
    pub basis: String,
    /// The share that predictions may well be off, of prompts and of generation, were all the time that of the tier.
    pub(super) uncertainty: Vec<[f64; 2]>,
}

/// The rates of a device: its own, and the table's where it has none.
pub fn device_rates(device: &Device) -> DeviceRates {
    let table = table::device(device);
    let Some(own) = device.rates.clone() else { return table };
    let [uncertainty, uncertainty_pp, uncertainty_tg] = uncertainties(
        [own.uncertainty, own.uncertainty_pp, own.uncertainty_tg],
        [table.uncertainty_pp, table.uncertainty_tg],
    );
    let basis = basis(&own.basis, &table.basis);
    DeviceRates { uncertainty, uncertainty_pp, uncertainty_tg, basis, ..filled(own, table, &OF_DEVICE) }
}

/// The device with another budget, as fast as it is: what is guessed of it by its size stays.
pub fn limited(device: &Device, budget: Bytes) -> Device {
    let mut limited = Device { rates: Some(device_rates(device)), ..device.clone() };
    limited.limit(budget);
    limited
}

/// The rates of the host: its own, and a guess where it has none.
pub fn host_rates(host: &Host) -> HostRates {
    let table = table::host(host);
    let Some(own) = host.rates.clone() else { return table };
    let [uncertainty, uncertainty_pp, uncertainty_tg] = uncertainties(
        [own.uncertainty, own.uncertainty_pp, own.uncertainty_tg],
        [table.uncertainty_pp, table.uncertainty_tg],
    );
    let basis = basis(&own.basis, &table.basis);
    HostRates { uncertainty, uncertainty_pp, uncertainty_tg, basis, ..filled(own, table, &OF_HOST) }
}

/// The rates that are given, and the table's where none is.
fn filled<R>(mut own: R, mut table: R, rows: &[Row<R>]) -> R {
    for (.., rate) in rows {
        let known = *rate(&mut table);
        let rate = rate(&mut own);
        if rate.is_nan() {
            *rate = known;
        }
    }
    own
}

/// Both together, of prompts and of generation: as given, else the one that is given for both, else the table's.
fn uncertainties([both, pp, tg]: [f64; 3], table: [f64; 2]) -> [f64; 3] {
    let first = |known: [f64; 3]| known.into_iter().find(|share| !share.is_nan()).unwrap_or_default();
    let (pp, tg) = (first([pp, both, table[0]]), first([tg, both, table[1]]));
    [pp.max(tg), pp, tg]
}

fn basis(own: &str, table: &str) -> String {
    if own.is_empty() { format!("{table} and what you gave") } else { own.to_string() }
}

impl Prices {
    /// The prices of a machine on which `devices` take part.
    pub fn of(machine: &Machine, devices: &[u16]) -> Self {
        let host = host_rates(&machine.host);
        let mut by_tier = vec![prices(&host, &OF_HOST)];
        let mut basis = Vec::new();
        let mut uncertainty = vec![[host.uncertainty_pp, host.uncertainty_tg]];
        for (index, device) in (0_u16..).zip(&machine.devices) {
            let rates = device_rates(device);
            by_tier.push(prices(&rates, &OF_DEVICE));
            uncertainty.push([rates.uncertainty_pp, rates.uncertainty_tg]);
            if devices.contains(&index) && !basis.contains(&rates.basis) {
                basis.push(rates.basis);
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
        let mut tiers: Vec<ByCost> = work.amounts.iter().zip(&self.by_tier).map(tier).collect();
        if let Some(host) = tiers.first_mut() {
            let [memory, threads] = AT_ONCE.map(|kind| host[kind as usize]);
            let sum = memory + threads;
            for kind in AT_ONCE.into_iter().filter(|_| sum > 0.0) {
                host[kind as usize] *= at_once(memory, threads) / sum;
            }
        }
        tiers
    }

    pub fn seconds(&self, work: &Work) -> f64 {
        let tiers = self.by_tier(work).into_iter().map(|kinds| kinds.iter().sum::<f64>());
        let all: f64 = tiers.clone().sum();
        // The slowest device sets the pace of a pipeline; filling it takes one micro-batch through all.
        let slowest = tiers.fold(0.0, f64::max);
        all / work.overlapped + slowest * (1.0 - 1.0 / work.overlapped)
    }

    /// The share that the time of a phase may well be off: each tier's, by its part of the time.
    pub fn uncertainty(&self, work: &Work, phase: Phase) -> f64 {
        let by_tier = self.by_tier(work).into_iter().map(|kinds| kinds.iter().sum::<f64>());
        let all: f64 = by_tier.clone().sum();
        let of = |[pp, tg]: [f64; 2]| if phase == Phase::Prompt { pp } else { tg };
        by_tier.zip(&self.uncertainty).map(|(seconds, shares)| of(*shares) * seconds / all).sum()
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

/// Kinds of the host's work that go on at the same time: threads multiply what memory brings.
pub(super) const AT_ONCE: [Cost; 2] = [Cost::Weights, Cost::ByThread];

/// The time of two that go on at once: nearly the longer one where they differ, less than their sum where they do not.
pub(super) fn at_once(a: f64, b: f64) -> f64 {
    // Not `hypot`, which systems round differently: an answer is the same everywhere.
    (a * a + b * b).sqrt()
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
    (Cost::Graph, "fixed time per pass on {}", MICRO, |rates| &mut rates.graph),
    (Cost::Pinned, "host weights copied to {} from pinned memory", GIGA, |rates| &mut rates.pinned),
    (Cost::Pageable, "copied to {} from pageable memory", GIGA, |rates| &mut rates.pageable),
    (Cost::Offload, "waits before copies to {}", MICRO, |rates| &mut rates.offload),
    (Cost::Switch, "changes to and from {}", MICRO, |rates| &mut rates.switch),
];
const OF_HOST: [Row<HostRates>; 6] = [
    (Cost::Weights, "weights read from main memory", GIGA, |rates| &mut rates.memory),
    (Cost::ByThread, "weights multiplied by the host's threads", GIGA, |rates| &mut rates.by_thread),
    (Cost::Products, "products on the host", GIGA, |rates| &mut rates.products),
    (Cost::Op, "starts of operations on the host", MICRO, |rates| &mut rates.op),
    (Cost::Serial, "masks and sampling by one thread of the host", GIGA, |rates| &mut rates.serial),
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

/// The least prices that the data sheet of a tier allows, a tenth below it; 0 where it says nothing.
pub(super) fn least(machine: &Machine, tier: usize) -> ByCost {
    let mut least = ByCost::default();
    let mut limit =
        |kinds: &[Cost], rate: f64| kinds.iter().for_each(|kind| least[*kind as usize] = 1.0 / (1.1 * rate));
    match tier.checked_sub(1).map(|at| machine.devices.get(at)) {
        None => {
            let known = machine.host.processor.as_deref().and_then(|name| processors::named(name).memory);
            if let Some(memory) = known {
                limit(&[Cost::Weights], memory * GIGA);
            }
        }
        Some(device) => {
            if let Some(figures) = device.and_then(table::figures) {
                limit(&[Cost::Weights, Cost::Cache], figures.bandwidth * GIGA);
                limit(&[Cost::Pinned, Cost::Pageable], figures.link * GIGA);
                limit(&[Cost::Products, Cost::Attention], figures.products * TENSOR_UNITS * TERA);
            }
        }
    }
    least
}

/// What a card's arithmetic units may do beside the row's products, which llama.cpp gets out of them.
const TENSOR_UNITS: f64 = 5.0;

/// What the price of a kind of work on a tier is called.
pub(super) fn name(machine: &Machine, tier: usize, kind: usize) -> String {
    let device = tier.checked_sub(1).and_then(|at| machine.devices.get(at));
    let name = match device {
        None => OF_HOST.iter().find(|(cost, ..)| *cost as usize == kind).map(|row| row.1),
        Some(_) => OF_DEVICE.iter().find(|(cost, ..)| *cost as usize == kind).map(|row| row.1),
    };
    name.unwrap_or_default().replace("{}", device.map_or("", |device| &device.name))
}

/// The machine with these prices on a tier.
pub(super) fn set(machine: &mut Machine, tier: usize, prices: &ByCost, [pp, tg]: [f64; 2], basis: &str) {
    let (uncertainty, basis) = (pp.max(tg), basis.to_string());
    match tier.checked_sub(1) {
        None => {
            let rates = with_prices(host_rates(&machine.host), prices, &OF_HOST);
            let known = HostRates { uncertainty, uncertainty_pp: pp, uncertainty_tg: tg, basis, ..rates };
            machine.host.rates = Some(known);
        }
        Some(index) => {
            if let Some(device) = machine.devices.get_mut(index) {
                let rates = with_prices(device_rates(device), prices, &OF_DEVICE);
                let known = DeviceRates { uncertainty, uncertainty_pp: pp, uncertainty_tg: tg, basis, ..rates };
                device.rates = Some(known);
            }
        }
    }
}
