//! A measurement and its comparison with a prediction: predicted and measured are one type, so that they subtract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, MIB};
use crate::memory::{self, Forecast, HOST, MemoryBreakdown, MemoryByDevice, MemoryRow};
use crate::plan::Plan;
use crate::runtime::{DeviceUsed, Observation, ProcessMemory, RuntimeInfo, SpeedSamples};
pub use crate::stats::Spread;

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
    #[serde(flatten)]
    pub taken: Taken,
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

impl Measurement {
    /// Whether every row is within the tolerance and the numbers that came out were numbers.
    pub fn ok(&self) -> bool {
        self.finite && self.taken.comparison.iter().all(|row| row.ok)
    }
}

/// What a measurement is held to.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    pub memory: MemoryByDevice,
    /// The span of mapped host weights, where the launch maps any.
    pub mapped_span: Option<Bytes>,
    /// What the target holds of each device of `-sm tensor`, whose log shows them as one; empty elsewhere.
    pub sharing: MemoryByDevice,
    /// What the plan leaves free of a device for what cannot be predicted to the byte: how far overhead may be off.
    pub margin: Bytes,
    /// Page tables of pinned host memory on each device, which are part of its overhead.
    pub page_tables: Bytes,
}

impl Expected {
    pub fn of(forecast: &Forecast, margin: Bytes) -> Self {
        let mut memory = forecast.memory.clone();
        // A device that uses the mapped file in place logs the span as its weights.
        for (name, span) in &forecast.mapped.devices {
            let row = memory.entry(name.clone()).or_default();
            let between = span.saturating_sub(row.model);
            (row.model, row.overhead) = (row.model + between, row.overhead.saturating_sub(between));
        }
        // The log has what is allocated, not what was projected.
        for (name, bytes) in forecast.beyond() {
            let row = memory.entry(name).or_default();
            row.compute = Bytes(row.compute.0.saturating_add_signed(bytes));
            row.overhead = Bytes(row.overhead.0.saturating_sub_signed(bytes));
        }
        let mut sharing = MemoryByDevice::new();
        if forecast.placement.shares.is_some() {
            sharing.clone_from(&forecast.target);
            sharing.retain(|name, _| !memory::is_host(name));
        }
        let page_tables = memory::pools::page_tables(&forecast.placement);
        Self { memory, mapped_span: forecast.mapped.host, sharing, margin, page_tables }
    }
}

/// What a launch took of memory beside what was predicted: a part of every document of a launch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Taken {
    /// By device: llama.cpp's own sums, and what the driver shows beyond them.
    pub memory: BTreeMap<String, MemoryRow>,
    /// Empty where llama.cpp chooses by itself.
    pub predicted: BTreeMap<String, MemoryRow>,
    /// The span of mapped weights in their file, which is in no sum of `memory`; zero when nothing is mapped.
    pub mapped_span: Bytes,
    /// Of each device at its peak, by the driver; empty where no driver says.
    #[serde(default)]
    pub device_used: BTreeMap<String, Bytes>,
    /// What the driver showed before, loaded, at the peak and after, by whomever.
    #[serde(default)]
    pub device_use: DeviceUsed,
    pub comparison: Vec<Row>,
}

impl Taken {
    pub fn of(expected: Option<&Expected>, seen: &Observation, tolerance: f64) -> Self {
        let (device_used, mut memory) = (peak_of(&seen.device_used), seen.memory.clone());
        for (device, row) in &mut memory {
            row.overhead = device_used.get(device).map_or(row.overhead, |used| used.saturating_sub(row.own()));
        }
        Self {
            memory: memory::rows(&memory),
            predicted: expected.map(|expected| memory::rows(&expected.memory)).unwrap_or_default(),
            mapped_span: seen.mapped_span,
            device_used,
            device_use: seen.device_used.clone(),
            comparison: expected.map(|expected| compare(expected, seen, tolerance)).unwrap_or_default(),
        }
    }
}

pub fn measurement(seen: Observation, expected: &Expected, tolerance: f64) -> Measurement {
    Measurement {
        schema: SCHEMA.to_string(),
        plan: None,
        taken: Taken::of(Some(expected), &seen, tolerance),
        runtime: seen.runtime,
        command: seen.command,
        process: seen.process,
        process_before: seen.process_before,
        load_seconds: seen.load_seconds,
        speed: seen.speed.summed_up(),
        text: seen.text,
        finite: seen.finite,
        interrupted: seen.interrupted,
        tolerance,
    }
}

/// One quantity of the comparison, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Row {
    /// `CUDA0.compute`.
    pub quantity: String,
    pub predicted: Bytes,
    pub measured: Bytes,
    /// How far `measured` may be from the true figure, for it was printed with few digits; 0 = exact.
    #[serde(default)]
    pub resolution: Bytes,
    /// (predicted − measured) / measured; 0 when they are equal as far as `measured` is known.
    pub error: f64,
    pub ok: bool,
}

/// More than a process holds of a device without the driver counting it as its own: page tables of pinned memory and the like.
const UNCOUNTED: Bytes = Bytes(256 * MIB);

/// What a launch took of each device at its peak: what came on top of what was used before, which page tables are part of;
/// its own process where others have come or gone meanwhile and the driver tells processes apart.
pub fn peak_of(used: &DeviceUsed) -> BTreeMap<String, Bytes> {
    let net = |(device, peak): (&String, &Bytes)| {
        let before = used.before.get(device).copied().unwrap_or_default();
        let net = peak.saturating_sub(before);
        let own = used.of_process.get(device).copied().filter(|own| net < *own || net > *own + UNCOUNTED);
        (device.clone(), own.unwrap_or(net))
    };
    used.peak.iter().map(net).collect()
}

/// A term of the memory table that llama.cpp's own sums have, and whether it is a sum of known tensors: then it is exact.
type Term = (&'static str, fn(&MemoryBreakdown) -> Bytes, bool);

const TERMS: [Term; 4] = [
    ("model", |row| row.model, true),
    ("context", |row| row.context, true),
    ("compute", |row| row.compute, false),
    ("total", MemoryBreakdown::own, false),
];

/// What a log calls all devices of `-sm tensor` together; a buffer of theirs is as large as its largest share
/// (`ggml/src/ggml-backend-meta.cpp` `ggml_backend_meta_buffer_type_alloc_buffer_n`, b11434).
const META: &str = "Meta()";

/// Predicted beside measured, term by term, for every device of either. Weights and caches are sums of known tensors and
/// must be equal as far as they were printed; compute buffers and totals may differ by `tolerance` (a share) or
/// [`COMPUTE_FLOOR`]. Where the driver says what a device shows, its peak and the overhead in it (the peak less
/// llama.cpp's own sum) may differ by `tolerance` of the peak or by the margin that the plan left.
pub fn compare(expected: &Expected, seen: &Observation, tolerance: f64) -> Vec<Row> {
    let mut predicted_memory = expected.memory.clone();
    let is_meta = seen.memory.contains_key(META) && !expected.sharing.is_empty();
    if is_meta {
        let largest = |of: fn(&MemoryBreakdown) -> Bytes| expected.sharing.values().map(of).max().unwrap_or_default();
        let (model, context) = (largest(|row| row.model), largest(|row| row.context));
        let row = MemoryBreakdown { model, context, compute: largest(|row| row.compute), overhead: Bytes(0) };
        predicted_memory.insert(META.to_string(), row);
    }
    let mut keys: Vec<&String> = predicted_memory.keys().chain(seen.memory.keys()).collect();
    keys.sort();
    keys.dedup();
    let peaks = peak_of(&seen.device_used);
    let mut rows = Vec::new();
    for key in keys {
        // A log prints of mapped weights their span only, and no sum of their tensors. Weights that nobody expected to be mapped stay in
        // their row, and are missing there.
        let span_only =
            key == HOST && seen.mapped_span > Bytes(0) && !seen.resolution.is_empty() && expected.mapped_span.is_some();
        let terms_of = |memory: &MemoryByDevice| {
            let terms = memory.get(key).copied().unwrap_or_default();
            if span_only { MemoryBreakdown { model: Bytes(0), ..terms } } else { terms }
        };
        let (predicted, measured) = (terms_of(&predicted_memory), terms_of(&seen.memory));
        let resolution = seen.resolution.get(key).copied().unwrap_or_default();
        if key == HOST
            && let Some(span) = expected.mapped_span.filter(|_| seen.mapped_span > Bytes(0))
        {
            let name = format!("{key}.mapped_span");
            rows.push(row(name, span, seen.mapped_span, resolution.model, Bytes(0), 0.0));
        }
        // Of one of the devices of `-sm tensor` only its driver tells.
        let is_told = !is_meta || !expected.sharing.contains_key(key);
        for (term, of, is_exact) in TERMS.into_iter().filter(|_| is_told) {
            let (p, m) = (of(&predicted), of(&measured));
            if p > Bytes(0) || m > Bytes(0) {
                let (floor, share) = if is_exact { (Bytes(0), 0.0) } else { (COMPUTE_FLOOR, share(tolerance, m)) };
                rows.push(row(format!("{key}.{term}"), p, m, of(&resolution), floor, share));
            }
        }
        if let Some(peak) = peaks.get(key) {
            let overhead = peak.saturating_sub(measured.own());
            let (floor, share) = (expected.margin, share(tolerance, *peak));
            if is_told {
                let name = format!("{key}.overhead");
                rows.push(row(name, predicted.overhead, overhead, resolution.own(), floor, share));
            }
            rows.push(row(format!("{key}.peak"), predicted.total(), *peak, Bytes(0), floor, share));
        }
    }
    rows
}

#[expect(clippy::cast_precision_loss, reason = "a tolerance is no exact figure")]
fn share(tolerance: f64, of: Bytes) -> f64 {
    tolerance * of.0 as f64
}

/// A row, which may differ by `floor` or by `share`, both in bytes; figures are equal as far as `resolution` tells.
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn row(quantity: String, predicted: Bytes, measured: Bytes, resolution: Bytes, floor: Bytes, share: f64) -> Row {
    let difference = match predicted.0.abs_diff(measured.0) {
        known if known > resolution.0 => known,
        _ => 0,
    };
    let ok = difference <= floor.0 || difference as f64 <= share;
    let error = match (difference, measured.0) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (difference, measured) => difference as f64 / measured as f64,
    };
    let error = if predicted < measured { -error } else { error };
    Row { quantity, predicted, measured, resolution, error, ok }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::log::PRINTED;

    fn memory(rows: &[(&str, u64, u64, u64)]) -> MemoryByDevice {
        let row = |&(key, model, context, compute): &(&str, u64, u64, u64)| {
            let (model, context, compute) = (Bytes(model), Bytes(context), Bytes(compute));
            (key.to_string(), MemoryBreakdown { model, context, compute, overhead: Bytes(600) })
        };
        rows.iter().map(row).collect()
    }

    fn seen(rows: &[(&str, u64, u64, u64)]) -> Observation {
        Observation { memory: memory(rows), ..Observation::default() }
    }

    /// What is compared without a margin.
    fn rows(predicted: &[(&str, u64, u64, u64)], seen: &Observation, tolerance: f64) -> Vec<Row> {
        compare(&Expected { memory: memory(predicted), ..Expected::default() }, seen, tolerance)
    }

    #[test]
    fn weights_and_caches_must_be_exact_and_compute_may_differ() {
        let measured = seen(&[("CUDA0", 100, 51, 11 * MIB - 1), ("Host", 7, 0, 0)]);
        let found = rows(&[("CUDA0", 100, 50, 10 * MIB), ("Host", 7, 0, 0)], &measured, 0.02);
        let found: Vec<_> = found.iter().map(|row| format!("{} {}", row.quantity, row.ok)).collect();
        let expected = "CUDA0.model true, CUDA0.context false, CUDA0.compute true, CUDA0.total true, Host.model true, Host.total true";
        assert_eq!(found.join(", "), expected);
        let of =
            |tolerance| rows(&[("CUDA0", 0, 0, 90 * MIB)], &seen(&[("CUDA0", 0, 0, 100 * MIB)]), tolerance).remove(0);
        assert!((of(0.1).error + 0.1).abs() < 1e-12 && of(0.1).ok && !of(0.09).ok);
        let missing = rows(&[("RPC0", 5, 0, 0)], &seen(&[]), 0.02);
        assert!(missing.iter().any(|row| row.quantity == "RPC0.model" && !row.ok && row.measured == Bytes(0)));
    }

    #[test]
    fn what_a_log_prints_is_equal_as_far_as_it_prints() {
        let p = PRINTED.0;
        let resolution = memory(&[("CUDA0", p, 2 * p, p)]);
        let measured = Observation { resolution, ..seen(&[("CUDA0", 100 * MIB, 10 * MIB, 0)]) };
        for (off, ok) in [(p, true), (p + 1, false)] {
            let rows = rows(&[("CUDA0", 100 * MIB + off, 10 * MIB - 2 * off, 0)], &measured, 0.02);
            assert_eq!((rows[0].ok, rows[1].ok, rows[0].error == 0.0), (ok, ok, ok), "{off}");
        }
    }

    #[test]
    fn a_mapped_span_is_held_to_a_span() {
        let predicted = memory(&[("Host", 90 * MIB, 5, 6)]);
        let resolution = memory(&[("Host", PRINTED.0, PRINTED.0, PRINTED.0)]);
        let seen = Observation { resolution, mapped_span: Bytes(100 * MIB), ..seen(&[("Host", 0, 5, 6)]) };
        for (span, wrong) in [(Bytes(100 * MIB + PRINTED.0), &[][..]), (Bytes(99 * MIB), &["Host.mapped_span"])] {
            let expected = Expected { memory: predicted.clone(), mapped_span: Some(span), ..Expected::default() };
            let rows = compare(&expected, &seen, 0.0);
            assert_eq!(rows.iter().filter(|row| !row.ok).map(|row| row.quantity.as_str()).collect::<Vec<_>>(), wrong);
        }
    }

    #[test]
    fn devices_that_share_every_tensor_are_held_to_the_largest_share() {
        let predicted = memory(&[("CUDA0", 70 * MIB, 5, 6), ("CUDA1", 71 * MIB, 4, 6), ("Host", 1, 0, 2)]);
        let mut sharing = predicted.clone();
        sharing.remove("Host");
        let mut memory = predicted;
        // What drafts on a card of its own is not in the shares.
        memory.get_mut("CUDA1").unwrap().model += Bytes(MIB);
        let expected = Expected { memory, sharing, ..Expected::default() };
        let mut seen = seen(&[("Meta()", 71 * MIB, 5, 6), ("Host", 1, 0, 2)]);
        seen.device_used.peak.insert("CUDA1".into(), Bytes(72 * MIB + 4 + 6 + 600));
        let rows = compare(&expected, &seen, 0.0);
        let found: Vec<_> = rows.iter().map(|row| format!("{} {}", row.quantity, row.ok)).collect();
        let named = "CUDA1.peak true, Host.model true, Host.compute true, Host.total true, Meta().model true, \
            Meta().context true, Meta().compute true, Meta().total true";
        assert_eq!(found.join(", "), named);
    }

    #[test]
    fn overhead_is_what_a_device_shows_beyond_llama_cpps_sum() {
        let by_name = |mib| BTreeMap::from([("CUDA0".to_string(), Bytes::mib(mib))]);
        let mut seen = seen(&[("CUDA0", 1000 * MIB, 0, 0)]);
        (seen.device_used.before, seen.device_used.peak) = (by_name(3), by_name(1903));
        let row = MemoryBreakdown { model: Bytes::mib(1000), overhead: Bytes::mib(600), ..MemoryBreakdown::default() };
        let predicted = MemoryByDevice::from([("CUDA0".to_string(), row)]);
        let judge = |seen: &Observation, margin| {
            let expected = Expected { memory: predicted.clone(), margin, ..Expected::default() };
            compare(&expected, seen, 0.01).split_off(2)
        };
        let rows = judge(&seen, Bytes(0));
        let found: Vec<_> = rows.iter().map(|row| (row.quantity.as_str(), row.measured, row.ok)).collect();
        assert_eq!(found, [("CUDA0.overhead", Bytes::mib(900), false), ("CUDA0.peak", Bytes::mib(1900), false)]);
        assert!(judge(&seen, Bytes::mib(300)).iter().all(|row| row.ok));
        // Another process came meanwhile: only its own counts.
        seen.device_used.of_process = by_name(1590);
        let rows = judge(&seen, Bytes(0));
        assert!(rows[1].measured == Bytes::mib(1590) && rows.iter().all(|row| row.ok));
    }
}
