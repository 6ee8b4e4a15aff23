//! Speeds as bars: what was measured with its samples, what was predicted hatched.

use super::Block;
use crate::measurement::Spread;
use crate::number::{rate, seconds};
use crate::report::chart::{Axis, Bar, Fill, Key, Tone};
use crate::report::table::Table;
use crate::speed::Speed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    TokensPerSecond,
    Seconds,
}

impl Unit {
    pub fn show(self, value: f64) -> String {
        match self {
            Self::TokensPerSecond => rate(value),
            Self::Seconds => seconds(value),
        }
    }

    /// A mean and its spread, as llama-bench writes it.
    pub fn spread(self, spread: Spread) -> String {
        let Spread { mean, stddev, n } = spread;
        match self {
            _ if n < 2 => self.show(mean),
            Self::TokensPerSecond if mean >= 100.0 => format!("{} ± {}", rate(mean), rate(stddev.round())),
            Self::TokensPerSecond if mean >= 10.0 => format!("{mean:.1} ± {stddev:.1}"),
            Self::TokensPerSecond => format!("{mean:.2} ± {stddev:.2}"),
            Self::Seconds if (0.1..1.0).contains(&mean) => format!("{:.0} ± {:.0} ms", mean * 1000.0, stddev * 1000.0),
            Self::Seconds if mean < 0.1 => format!("{:.0} ± {:.1} ms", mean * 1000.0, stddev * 1000.0),
            Self::Seconds => format!("{mean:.2} ± {stddev:.2} s"),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub label: String,
    pub measured: Option<Spread>,
    pub samples: Vec<f64>,
    /// What was predicted, and the share that it may be off.
    pub predicted: Option<(f64, f64)>,
    /// Its colour, where it is not that of its place.
    pub tone: Option<Tone>,
}

impl Entry {
    pub fn measured(label: impl Into<String>, measured: Option<Spread>, samples: Vec<f64>) -> Self {
        Self { label: label.into(), measured, samples, ..Self::default() }
    }

    pub fn predicted(label: &str, speed: &Speed, of: fn(&Speed) -> f64) -> Self {
        Self { label: label.into(), predicted: Some((of(speed), speed.uncertainty)), ..Self::default() }
    }
}

/// Speeds beside each other: their bars, and of how many samples each is the mean. `None` where none is known.
pub fn chart(title: &str, unit: Unit, entries: impl IntoIterator<Item = Entry>) -> Option<Block> {
    let (column, axis) = match unit {
        Unit::TokensPerSecond => ("tokens/s", "tokens per second; more is better"),
        Unit::Seconds => ("seconds", "seconds; less is better"),
    };
    let mut bars: Vec<Bar> = Vec::new();
    let mut table = Table::of(&format!("||>{column}|>±|>samples"));
    for (at, entry) in entries.into_iter().enumerate() {
        let tone = entry.tone.unwrap_or(Tone::Series(at));
        let mut add = |basis: &str, value: f64, off: Option<f64>, samples: String, bar: Bar| {
            let off_shown = off.map(|off| unit.show(off)).unwrap_or_default();
            table.row([entry.label.clone(), basis.into(), unit.show(value), off_shown, samples]);
            bars.push(Bar { spread: off, ..bar });
        };
        if let Some((value, off)) = entry.predicted.filter(|(value, _)| value.is_finite()) {
            let label = format!("{}{}", entry.label, if entry.measured.is_some() { ", predicted" } else { "" });
            let shown = format!("{} ±{:.0}%", unit.show(value), off * 100.0);
            let bar = Bar::stacked(&label, shown, Fill::Hatched, [(tone, value)]);
            add("predicted", value, Some(value * off), "–".into(), bar);
        }
        if let Some(spread) = entry.measured {
            let bar = Bar::stacked(&entry.label, unit.spread(spread), Fill::Plain, [(tone, spread.mean)]);
            let bar = Bar { samples: entry.samples, ..bar };
            add("measured", spread.mean, (spread.n > 1).then_some(spread.stddev), spread.n.to_string(), bar);
        }
    }
    let key = |label: &str, fill| Key { label: label.into(), tone: Tone::Overhead, fill };
    let both = vec![key("measured", Fill::Plain), key("predicted", Fill::Hatched)];
    let any = |fill| bars.iter().flat_map(|bar| &bar.parts).any(|part| part.fill == fill);
    let measured = "Measured: mean, one standard deviation, and a dot for each sample.";
    let predicted = "Hatched bars are predicted, with what they may well be off.";
    let (text, legend) = match (any(Fill::Plain), any(Fill::Hatched)) {
        (true, true) => (format!("{measured} {predicted}"), both),
        (true, false) => (measured.into(), Vec::new()),
        (false, true) => (predicted.into(), Vec::new()),
        (false, false) => return None,
    };
    Some(Block::bars(title, text, legend, Axis::Number(axis.into()), bars, table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_has_no_spread() {
        for (unit, mean, stddev, n, text) in [
            (Unit::Seconds, 0.25, 0.0, 1, "250 ms"),
            (Unit::Seconds, 0.25, 0.0125, 3, "250 ± 12 ms"),
            (Unit::Seconds, 0.02, 0.001, 3, "20 ± 1.0 ms"),
            (Unit::Seconds, 8.4, 0.0, 3, "8.40 ± 0.00 s"),
            (Unit::TokensPerSecond, 9869.4, 243.2, 3, "9,869 ± 243"),
        ] {
            assert_eq!(unit.spread(Spread { mean, stddev, n }), text);
        }
    }
}
