//! Predicted beside measured, term by term, each judged by what can be known of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::COMPUTE_FLOOR;
use crate::bytes::{Bytes, MIB};
use crate::memory::{HOST, MemoryBreakdown, MemoryByDevice};
use crate::runtime::{DeviceUsed, Observation};

/// What a measurement is held to.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub memory: &'a MemoryByDevice,
    /// The span of mapped host weights, where the launch maps any.
    pub mapped_span: Option<Bytes>,
    /// What the plan leaves free of a device for what cannot be predicted to the byte: how far overhead may be off.
    pub margin: Bytes,
}

impl<'a> From<&'a MemoryByDevice> for Expected<'a> {
    fn from(memory: &'a MemoryByDevice) -> Self {
        Self { memory, mapped_span: None, margin: Bytes(0) }
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub memory: &'a MemoryByDevice,
    /// How far each figure may be from the true one; empty = exact.
    pub resolution: &'a MemoryByDevice,
    /// The span of mapped host weights; zero when nothing is mapped.
    pub mapped_span: Bytes,
    pub used: &'a DeviceUsed,
}

impl<'a> Seen<'a> {
    /// Of a run.
    pub fn of(observation: &'a Observation) -> Self {
        Self {
            memory: &observation.memory,
            resolution: &observation.resolution,
            mapped_span: observation.mapped_span,
            used: &observation.device_used,
        }
    }

    /// Whether mapped weights are known by their span only: a log prints no sum of their tensors.
    fn span_only(&self) -> bool {
        self.mapped_span > Bytes(0) && !self.resolution.is_empty()
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

/// Predicted beside measured, term by term, for every device of either. Weights and caches are sums of known tensors and
/// must be equal as far as they were printed; compute buffers and totals may differ by `tolerance` (a share) or
/// [`COMPUTE_FLOOR`]. Where the driver says what a device shows, its peak and the overhead in it (the peak less
/// llama.cpp's own sum) may differ by `tolerance` of the peak or by the margin that the plan left.
pub fn compare(expected: &Expected<'_>, seen: &Seen<'_>, tolerance: f64) -> Vec<Row> {
    let mut keys: Vec<&String> = expected.memory.keys().chain(seen.memory.keys()).collect();
    keys.sort();
    keys.dedup();
    let peaks = peak_of(seen.used);
    let mut rows = Vec::new();
    for key in keys {
        // Weights that nobody expected to be mapped stay in their row, and are missing there.
        let span_only = key == HOST && seen.span_only() && expected.mapped_span.is_some();
        let terms_of = |memory: &MemoryByDevice| {
            let terms = memory.get(key).copied().unwrap_or_default();
            if span_only { MemoryBreakdown { model: Bytes(0), ..terms } } else { terms }
        };
        let (predicted, measured) = (terms_of(expected.memory), terms_of(seen.memory));
        let resolution = seen.resolution.get(key).copied().unwrap_or_default();
        if key == HOST
            && let Some(span) = expected.mapped_span.filter(|_| seen.mapped_span > Bytes(0))
        {
            let name = format!("{key}.mapped_span");
            rows.push(row(name, span, seen.mapped_span, resolution.model, Bytes(0), 0.0));
        }
        for (term, of, is_exact) in TERMS {
            let (p, m) = (of(&predicted), of(&measured));
            if p > Bytes(0) || m > Bytes(0) {
                let (floor, share) = if is_exact { (Bytes(0), 0.0) } else { (COMPUTE_FLOOR, share(tolerance, m)) };
                rows.push(row(format!("{key}.{term}"), p, m, of(&resolution), floor, share));
            }
        }
        if let Some(peak) = peaks.get(key) {
            let overhead = peak.saturating_sub(measured.own());
            let (floor, share) = (expected.margin, share(tolerance, *peak));
            rows.push(row(format!("{key}.overhead"), predicted.overhead, overhead, resolution.own(), floor, share));
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
    use crate::bytes::MIB;
    use crate::runtime::log::PRINTED;

    fn memory(rows: &[(&str, u64, u64, u64)]) -> MemoryByDevice {
        let row = |&(key, model, context, compute): &(&str, u64, u64, u64)| {
            let (model, context, compute) = (Bytes(model), Bytes(context), Bytes(compute));
            (key.to_string(), MemoryBreakdown { model, context, compute, overhead: Bytes(600) })
        };
        rows.iter().map(row).collect()
    }

    /// Exact figures of no device that shows anything.
    fn exact(predicted: &MemoryByDevice, measured: &MemoryByDevice, tolerance: f64) -> Vec<Row> {
        let (resolution, used) = (MemoryByDevice::new(), DeviceUsed::default());
        let seen = Seen { memory: measured, resolution: &resolution, mapped_span: Bytes(0), used: &used };
        compare(&predicted.into(), &seen, tolerance)
    }

    fn verdicts(rows: Vec<Row>) -> Vec<(String, bool)> {
        rows.into_iter().map(|row| (row.quantity, row.ok)).collect()
    }

    #[test]
    fn weights_and_caches_must_be_exact_and_compute_may_differ() {
        let predicted = memory(&[("CUDA0", 100, 50, 10 * MIB), ("Host", 7, 0, 0)]);
        let measured = memory(&[("CUDA0", 100, 51, 11 * MIB - 1), ("Host", 7, 0, 0)]);
        let expected = [
            ("CUDA0.model", true),
            ("CUDA0.context", false),
            ("CUDA0.compute", true),
            ("CUDA0.total", true),
            ("Host.model", true),
            ("Host.total", true),
        ];
        assert_eq!(verdicts(exact(&predicted, &measured, 0.02)), expected.map(|(q, ok)| (q.to_string(), ok)));
    }

    #[test]
    fn an_error_has_a_sign_and_a_tolerance() {
        let predicted = memory(&[("CUDA0", 0, 0, 90 * MIB)]);
        let measured = memory(&[("CUDA0", 0, 0, 100 * MIB)]);
        let row = |tolerance| exact(&predicted, &measured, tolerance).remove(0);
        assert!((row(0.1).error + 0.1).abs() < 1e-12);
        assert!(row(0.1).ok && !row(0.09).ok);
    }

    #[test]
    fn a_device_that_only_one_side_has_is_an_error() {
        let rows = exact(&memory(&[("RPC0", 5, 0, 0)]), &memory(&[]), 0.02);
        assert!(rows.iter().any(|row| row.quantity == "RPC0.model" && !row.ok && row.measured == Bytes(0)));
    }

    #[test]
    fn what_a_log_prints_is_equal_as_far_as_it_prints() {
        let printed = PRINTED.0;
        let resolution = memory(&[("CUDA0", printed, 2 * printed, printed)]);
        let used = DeviceUsed::default();
        for (off, ok) in [(printed, true), (printed + 1, false)] {
            let predicted = memory(&[("CUDA0", 100 * MIB + off, 10 * MIB - 2 * off, 0)]);
            let measured = memory(&[("CUDA0", 100 * MIB, 10 * MIB, 0)]);
            let seen = Seen { memory: &measured, resolution: &resolution, mapped_span: Bytes(0), used: &used };
            let rows = compare(&(&predicted).into(), &seen, 0.02);
            assert_eq!((rows[0].ok, rows[1].ok), (ok, ok), "{off}");
            assert_eq!(rows[0].error == 0.0, ok, "{off}");
        }
    }

    #[test]
    fn a_mapped_span_is_held_to_a_span() {
        let predicted = memory(&[("Host", 90 * MIB, 5, 6)]);
        let measured = memory(&[("Host", 0, 5, 6)]);
        let resolution = memory(&[("Host", PRINTED.0, PRINTED.0, PRINTED.0)]);
        let used = DeviceUsed::default();
        let seen = Seen { memory: &measured, resolution: &resolution, mapped_span: Bytes(100 * MIB), used: &used };
        let rows = |mapped_span| {
            let expected = Expected { memory: &predicted, mapped_span, margin: Bytes(0) };
            verdicts(compare(&expected, &seen, 0.0)).into_iter().filter(|(_, ok)| !ok).map(|(name, _)| name).collect()
        };
        let wrong: Vec<String> = rows(Some(Bytes(100 * MIB + PRINTED.0)));
        assert!(wrong.is_empty(), "{wrong:?}");
        let wrong: Vec<String> = rows(Some(Bytes(99 * MIB)));
        assert_eq!(wrong, ["Host.mapped_span"]);
    }

    #[test]
    fn overhead_is_what_a_device_shows_beyond_llama_cpps_sum() {
        let by_name = |mib| BTreeMap::from([("CUDA0".to_string(), Bytes::mib(mib))]);
        let mut used =
            DeviceUsed { before: by_name(3), loaded: by_name(1603), peak: by_name(1903), ..DeviceUsed::default() };
        let predicted = MemoryByDevice::from([(
            "CUDA0".to_string(),
            MemoryBreakdown { model: Bytes::mib(1000), overhead: Bytes::mib(600), ..MemoryBreakdown::default() },
        )]);
        let measured = memory(&[("CUDA0", 1000 * MIB, 0, 0)]);
        let resolution = MemoryByDevice::new();
        let judge = |used: &DeviceUsed, margin| {
            let seen = Seen { memory: &measured, resolution: &resolution, mapped_span: Bytes(0), used };
            let expected = Expected { memory: &predicted, mapped_span: None, margin };
            compare(&expected, &seen, 0.01).split_off(2)
        };
        let rows = judge(&used, Bytes(0));
        let found: Vec<_> = rows.iter().map(|row| (row.quantity.as_str(), row.measured, row.ok)).collect();
        assert_eq!(found, [("CUDA0.overhead", Bytes::mib(900), false), ("CUDA0.peak", Bytes::mib(1900), false)]);
        assert!(judge(&used, Bytes::mib(300)).iter().all(|row| row.ok));
        // Another process came meanwhile: only its own counts.
        used.of_process = by_name(1590);
        assert_eq!(judge(&used, Bytes(0))[1].measured, Bytes::mib(1590));
        assert!(judge(&used, Bytes(0)).iter().all(|row| row.ok));
    }
}
