//! Axes: round steps, and places along a chart as percentages of its width, so that a chart fits any page.

use crate::bytes::{Bytes, GIB, MIB};
use crate::number::thousands;

/// One mark of an axis: where it is, and what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// In the units of the axis.
    pub at: f64,
    /// What it says.
    pub label: String,
}

/// A place between `low` and `high` as a share of 100; what is no number is at 0.
pub fn percent(value: f64, low: f64, high: f64) -> f64 {
    let share = (value - low) / (high - low) * 100.0;
    if share.is_finite() { share.clamp(0.0, 100.0) } else { 0.0 }
}

/// A coordinate with two decimals and no more digits than it needs.
pub fn coordinate(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// A coordinate across: `12.5%`.
pub fn across(share: f64) -> String {
    coordinate(share) + "%"
}

/// A step of 1, 2 or 5 times a power of ten that cuts `length` into at most `most` parts.
pub fn step(length: f64, most: f64) -> f64 {
    if !length.is_finite() || length <= 0.0 {
        return 1.0;
    }
    let rough = length / most;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999_999).unwrap_or(10.0);
    factor * power
}

/// Marks at multiples of a round step from `low` to `high`.
pub fn ticks(low: f64, high: f64, most: f64) -> Vec<Tick> {
    let step = step(high - low, most);
    let mut at = (low / step).ceil() * step;
    let mut ticks = Vec::new();
    while at <= high + step * 1e-6 && ticks.len() < 32 {
        ticks.push(Tick { at, label: number(at, step) });
        at += step;
    }
    ticks
}

/// Marks of sizes from `low` to `high` bytes, in MiB or GiB.
#[expect(clippy::cast_precision_loss, reason = "places on an axis")]
pub fn size_ticks(low: f64, high: f64, most: f64) -> Vec<Tick> {
    let (unit, name) = if high >= GIB as f64 { (GIB as f64, "GiB") } else { (MIB as f64, "MiB") };
    let in_units = ticks(low / unit, high / unit, most).into_iter();
    in_units.map(|tick| Tick { at: tick.at * unit, label: format!("{} {name}", tick.label) }).collect()
}

/// The smallest multiple of the axis's own step that holds `max`.
pub fn ceiling(max: f64, most: f64) -> f64 {
    if !max.is_finite() || max <= 0.0 {
        return 1.0;
    }
    let step = step(max, most);
    (max / step - 1e-9).ceil() * step
}

/// A number with the decimals that `step` needs.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and not negative here")]
fn number(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    if step >= 1.0 && (0.0..1e15).contains(&value) {
        return thousands(value.round() as u64);
    }
    let decimals = if step < 1.0 { (-step.log10()).ceil().clamp(0.0, 9.0) as usize } else { 0 };
    format!("{value:.decimals$}")
}

/// A number of an axis that counts bytes or anything else.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes are not negative")]
pub fn value(value: f64, is_bytes: bool) -> String {
    if is_bytes {
        Bytes(value.max(0.0) as u64).to_string()
    } else {
        number(value, if value < 10.0 { 0.01 } else { 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        for (low, high, labels) in [
            (0.0, 24.0, vec!["0", "5", "10", "15", "20"]),
            (0.0, 1.0, vec!["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (0.0, 10_459.0, vec!["0", "5,000", "10,000"]),
            (4096.0, 65_536.0, vec!["20,000", "40,000", "60,000"]),
            (0.0, f64::NAN, vec![]),
        ] {
            let found: Vec<String> = ticks(low, high, 5.0).into_iter().map(|tick| tick.label).collect();
            assert_eq!(found, labels, "{low} to {high}");
        }
        let sizes: Vec<String> = size_ticks(0.0, 8.0 * 1024f64.powi(3), 4.0).into_iter().map(|t| t.label).collect();
        assert_eq!(sizes, ["0 GiB", "2 GiB", "4 GiB", "6 GiB", "8 GiB"]);
    }

    #[test]
    fn places_are_within_the_chart_whatever_the_number() {
        for (value, place) in [(5.0, "50%"), (-1.0, "0%"), (99.0, "100%"), (f64::NAN, "0%"), (1.0 / 3.0, "3.33%")] {
            assert_eq!(across(percent(value, 0.0, 10.0)), place);
        }
        assert_eq!(across(percent(1.0, 2.0, 2.0)), "0%");
        assert!((ceiling(10_459.0, 5.0) - 15_000.0).abs() < 1e-6 && (ceiling(10.0, 5.0) - 10.0).abs() < 1e-9);
    }
}
