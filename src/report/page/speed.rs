//! Speeds as bars: what was measured with its samples, what was predicted hatched.

use super::Block;
use crate::measurement::Spread;
use crate::number::{rate, seconds};
use crate::report::chart::{Axis, Bar, Bars, Chart, Figure, Fill, Key, Tone};
use crate::report::table::Table;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tokens per second.
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

    fn name(self) -> &'static str {
        match self {
            Self::TokensPerSecond => "tokens per second; more is better",
            Self::Seconds => "seconds; less is better",
        }
    }
}

/// One thing whose speed is shown.
#[derive(Debug, Clone)]
pub struct Entry {
    pub label: String,
    pub measured: Option<Spread>,
    /// The samples it is the mean of.
    pub samples: Vec<f64>,
    /// What was predicted, and the share that it may be off.
    pub predicted: Option<(f64, f64)>,
    /// Its colour, where it is not that of its place.
    pub tone: Option<Tone>,
}

impl Entry {
    /// What was measured, without a prediction.
    pub fn measured(label: impl Into<String>, measured: Option<Spread>, samples: Vec<f64>) -> Self {
        Self { label: label.into(), measured, samples, predicted: None, tone: None }
    }

    /// A prediction beside nothing measured.
    pub fn predicted(label: impl Into<String>, value: f64, uncertainty: f64) -> Self {
        Self {
            label: label.into(),
            measured: None,
            samples: Vec::new(),
            predicted: Some((value, uncertainty)),
            tone: None,
        }
    }
}

/// [`figure`] as a block.
pub fn chart(title: &str, unit: Unit, entries: impl IntoIterator<Item = Entry>) -> Option<Block> {
    figure(title, unit, &entries.into_iter().collect::<Vec<_>>()).map(Block::Figure)
}

/// What a chart of speeds says: its bars, and of how many samples each is the mean.
fn figure(title: &str, unit: Unit, entries: &[Entry]) -> Option<Figure> {
    let mut bars = Vec::new();
    let of = if unit == Unit::Seconds { "seconds" } else { "tokens/s" };
    let mut table = Table::of(&format!("||>{of}|>±|>samples"));
    for (at, entry) in entries.iter().enumerate() {
        let tone = entry.tone.unwrap_or(Tone::Series(at));
        if let Some((value, off)) = entry.predicted.filter(|(value, _)| value.is_finite()) {
            let spread = Some(value * off);
            let shown = format!("{} ±{:.0}%", unit.show(value), off * 100.0);
            let label = predicted_label(entry);
            bars.push(Bar { spread, ..Bar::stacked(&label, shown, Fill::Hatched, [(tone, value)]) });
            let cells = [entry.label.clone(), "predicted".into(), unit.show(value), unit.show(value * off), "–".into()];
            table.row(cells);
        }
        if let Some(spread) = entry.measured {
            let value = unit.spread(spread);
            let error = (spread.n > 1).then_some(spread.stddev);
            let samples = entry.samples.clone();
            let bar = Bar::stacked(&entry.label, value, Fill::Plain, [(tone, spread.mean)]);
            bars.push(Bar { spread: error, samples, ..bar });
            let off = error.map(|error| unit.show(error)).unwrap_or_default();
            let cells = [entry.label.clone(), "measured".into(), unit.show(spread.mean), off, spread.n.to_string()];
            table.row(cells);
        }
    }
    if bars.is_empty() {
        return None;
    }
    let any = |fill| bars.iter().flat_map(|bar| &bar.parts).any(|part| part.fill == fill);
    let (predicted, measured) = (any(Fill::Hatched), any(Fill::Plain));
    let text = [
        (measured, "Measured: mean, one standard deviation, and a dot for each sample."),
        (predicted, "Hatched bars are predicted, with what they may well be off."),
    ];
    let text = text.iter().filter(|(holds, _)| *holds).map(|(_, text)| *text).collect::<Vec<_>>().join(" ");
    let legend = if predicted && measured {
        let key = |label: &str, fill| Key { label: label.into(), tone: Tone::Overhead, fill };
        vec![key("measured", Fill::Plain), key("predicted", Fill::Hatched)]
    } else {
        Vec::new()
    };
    let axis = Axis::Number(unit.name().into());
    let chart = Chart::Bars(vec![Bars { label: String::new(), axis, bars, limit: None }]);
    Some(Figure { title: title.into(), text, legend, chart, table })
}

/// The label of the predicted bar: beside a measured one it says so.
fn predicted_label(entry: &Entry) -> String {
    if entry.measured.is_some() { format!("{}, predicted", entry.label) } else { entry.label.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_never_looks_measured() {
        let spread = Spread { mean: 50.0, stddev: 2.0, n: 3 };
        let both = Entry { predicted: Some((55.0, 0.15)), ..Entry::measured("plan", Some(spread), vec![48.0]) };
        let figure = figure("Generation", Unit::TokensPerSecond, &[both]).unwrap();
        let Chart::Bars(bars) = &figure.chart else { panic!("bars") };
        let seen = bars[0].bars.iter().map(|bar| (bar.label.as_str(), bar.parts[0].fill, bar.value.as_str()));
        let seen: Vec<_> = seen.collect();
        assert_eq!(seen, [("plan, predicted", Fill::Hatched, "55.0 ±15%"), ("plan", Fill::Plain, "50.0 ± 2.0")]);
        assert_eq!(figure.table.rows()[0][1], "predicted");
        assert_eq!(figure.table.rows()[1][1], "measured");
    }

    #[test]
    fn nothing_known_is_no_chart_and_one_sample_has_no_spread() {
        assert!(figure("x", Unit::Seconds, &[Entry::measured("a", None, vec![])]).is_none());
        let shown = |unit: Unit, mean, stddev, n| unit.spread(Spread { mean, stddev, n });
        assert_eq!(shown(Unit::Seconds, 0.25, 0.0, 1), "250 ms");
        assert_eq!(shown(Unit::Seconds, 0.25, 0.0125, 3), "250 ± 12 ms");
        assert_eq!(shown(Unit::Seconds, 0.02, 0.001, 3), "20 ± 1.0 ms");
        assert_eq!(shown(Unit::Seconds, 8.4, 0.0, 3), "8.40 ± 0.00 s");
        assert_eq!(shown(Unit::TokensPerSecond, 9869.4, 243.2, 3), "9,869 ± 243");
    }
}
