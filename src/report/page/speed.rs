//! Speeds: a mean and its spread in words, as key figures, and as bars, measured beside predicted.

use super::{Block, KeyFigure};
use crate::number::{counted, rate, seconds};
use crate::report::chart::{Axis, Bar, Fill, Key, Tone};
use crate::report::table::{Table, row};
use crate::speed::{Phase, Speed};
use crate::stats::Spread;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Rate,
    Time,
}

impl Unit {
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Rate => rate(value),
            Self::Time => seconds(value),
        }
    }

    /// A mean and its spread, as llama-bench writes it.
    pub fn spread(self, spread: impl Into<Option<Spread>>) -> String {
        let Some(Spread { mean, stddev, n }) = spread.into() else { return "not known".to_string() };
        match self {
            _ if n < 2 => self.show(mean),
            Self::Rate if mean >= 100.0 => format!("{} ± {}", rate(mean), rate(stddev.round())),
            Self::Rate if mean >= 10.0 => format!("{mean:.1} ± {stddev:.1}"),
            Self::Rate => format!("{mean:.2} ± {stddev:.2}"),
            Self::Time if (0.1..1.0).contains(&mean) => format!("{:.0} ± {:.0} ms", mean * 1000.0, stddev * 1000.0),
            Self::Time if mean < 0.1 => format!("{:.0} ± {:.1} ms", mean * 1000.0, stddev * 1000.0),
            Self::Time => format!("{mean:.2} ± {stddev:.2} s"),
        }
    }

    /// What was measured, if it was, with the number of samples after `what`.
    pub fn figure(self, label: &str, spread: Option<Spread>, what: &str) -> Option<KeyFigure> {
        let samples = counted(spread?.n.into(), "sample");
        Some(KeyFigure::new(label, self.spread(spread), format!("{what} {samples}")))
    }
}

#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub label: String,
    pub measured: Option<Spread>,
    pub samples: Vec<f64>,
    /// The prediction, and its uncertainty as a share.
    pub predicted: Option<(f64, f64)>,
    /// Its colour, where it is not that of its place.
    pub tone: Option<Tone>,
}

impl Entry {
    pub fn measured(label: impl Into<String>, measured: Option<Spread>, samples: Vec<f64>) -> Self {
        Self { label: label.into(), measured, samples, ..Self::default() }
    }

    pub fn predicted(label: &str, speed: &Speed, phase: Phase) -> Self {
        Self { label: label.into(), predicted: Some(speed.of(phase)), ..Self::default() }
    }
}

/// Speeds beside each other as bars; `None` where none is known.
pub fn chart(title: &str, unit: Unit, entries: impl IntoIterator<Item = Entry>) -> Option<Block> {
    let (column, axis) = match unit {
        Unit::Rate => ("tokens/s", "tokens per second; more is better"),
        Unit::Time => ("seconds", "seconds; less is better"),
    };
    let mut bars: Vec<Bar> = Vec::new();
    let mut table = Table::of(&format!("||>{column}|>±|>samples"));
    for (at, entry) in entries.into_iter().enumerate() {
        let tone = entry.tone.unwrap_or(Tone::Series(at));
        let off = |off: Option<f64>| off.map(|off| unit.show(off)).unwrap_or_default();
        if let Some((value, share)) = entry.predicted.filter(|(value, _)| value.is_finite()) {
            let label = format!("{}{}", entry.label, if entry.measured.is_some() { ", predicted" } else { "" });
            let shown = format!("{} ±{:.0}%", unit.show(value), share * 100.0);
            let spread = Some(value * share);
            table.row(row![entry.label, "predicted", unit.show(value), off(spread), "–"]);
            bars.push(Bar { spread, ..Bar::stacked(&label, shown, Fill::Hatched, [(tone, value)]) });
        }
        if let Some(measured @ Spread { mean, stddev, n }) = entry.measured {
            let spread = (n > 1).then_some(stddev);
            table.row(row![entry.label, "measured", unit.show(mean), off(spread), n]);
            let bar = Bar::stacked(&entry.label, unit.spread(measured), Fill::Plain, [(tone, mean)]);
            bars.push(Bar { spread, samples: entry.samples, ..bar });
        }
    }
    let any = |fill| bars.iter().flat_map(|bar| &bar.parts).any(|part| part.fill == fill);
    let is_measured = any(Fill::Plain).then_some("Measured: mean, one standard deviation, and a dot for each sample.");
    let is_predicted = any(Fill::Hatched).then_some("Hatched bars are predictions; whiskers show their uncertainty.");
    let text = [is_measured, is_predicted].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let key = |label: &str, fill| Key { label: label.into(), tone: Tone::Overhead, fill };
    let legend = match is_measured.and(is_predicted) {
        Some(_) => vec![key("measured", Fill::Plain), key("predicted", Fill::Hatched)],
        None => Vec::new(),
    };
    (!bars.is_empty()).then(|| Block::bars(title, text, legend, Axis::Number(axis.into()), bars, table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_has_no_spread() {
        for (unit, mean, stddev, n, text) in [
            (Unit::Time, 0.25, 0.0, 1, "250 ms"),
            (Unit::Time, 0.25, 0.0125, 3, "250 ± 12 ms"),
            (Unit::Time, 0.02, 0.001, 3, "20 ± 1.0 ms"),
            (Unit::Time, 8.4, 0.0, 3, "8.40 ± 0.00 s"),
            (Unit::Rate, 9869.4, 243.2, 3, "9,869 ± 243"),
        ] {
            assert_eq!(unit.spread(Spread { mean, stddev, n }), text);
        }
    }
}
