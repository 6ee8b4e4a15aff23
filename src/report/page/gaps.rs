//! The gaps between tokens: the longest stream of the first case as a curve, every stream as a row.

use super::Block;
use crate::number::seconds;
use crate::report::chart::{Chart, Figure, Lines, Point, Series};
use crate::report::table::{Align, Table};
use crate::suite::document::{Bench, Gaps, Sample};

/// Points that a curve is drawn with; of more, the longest gap of each stretch.
const POINTS: usize = 600;

/// The curve and the table, where anything was streamed.
pub fn blocks(bench: &Bench) -> Vec<Block> {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("prompt", Align::Left),
        ("median", Align::Right),
        ("95% below", Align::Right),
        ("longest", Align::Right),
        ("gaps", Align::Right),
    ]);
    for case in &bench.cases {
        for (sample, gaps) in case.sessions.iter().flat_map(|session| &session.samples).filter_map(with_gaps) {
            table.row([
                case.name.clone(),
                sample.prompt.clone(),
                seconds(gaps.median),
                seconds(gaps.p95),
                seconds(gaps.max),
                gaps.all.len().to_string(),
            ]);
        }
    }
    let first = bench.cases.first().into_iter().flat_map(|case| &case.sessions).flat_map(|session| &session.samples);
    let longest = first.filter_map(with_gaps).max_by_key(|(_, gaps)| gaps.all.len());
    let name = bench.cases.first().map(|case| case.name.as_str()).unwrap_or_default();
    let drawn = longest.filter(|(_, gaps)| gaps.all.len() > 1).map(|(sample, gaps)| figure(name, sample, gaps, table));
    drawn.map(Block::Figure).into_iter().collect()
}

fn with_gaps(sample: &Sample) -> Option<(&Sample, &Gaps)> {
    sample.gaps.as_ref().map(|gaps| (sample, gaps))
}

fn figure(case: &str, sample: &Sample, gaps: &Gaps, table: Table) -> Figure {
    let level = |name: &str, value: f64| (format!("{name} {}", seconds(value)), value * 1000.0);
    let chart = Chart::Lines(Lines {
        x: "gap, in the order of the stream".into(),
        y: "milliseconds to the next piece".into(),
        series: vec![Series { label: case.into(), at: 0, points: points(&gaps.all) }],
        levels: vec![level("median", gaps.median), level("95% below", gaps.p95)],
        dense: true,
        x_is_bytes: false,
    });
    let thinned = if gaps.all.len() > POINTS { " Of each stretch the longest is drawn." } else { "" };
    let text = format!("The longest stream of {case}: its answer to the {} prompt.{thinned}", sample.prompt);
    Figure { title: "Gaps between tokens".into(), text, legend: Vec::new(), chart, table }
}

/// The gaps in milliseconds, thinned to what can be drawn.
#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn points(gaps: &[f64]) -> Vec<Point> {
    let stretch = gaps.len().div_ceil(POINTS).max(1);
    let longest = |(at, gaps): (usize, &[f64])| Point {
        x: (at * stretch + 1) as f64,
        y: gaps.iter().copied().fold(0.0, f64::max) * 1000.0,
        spread: None,
    };
    gaps.chunks(stretch).enumerate().map(longest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_stream_keeps_its_longest_gaps() {
        let mut gaps = vec![0.01; 5000];
        gaps[4321] = 0.5;
        let points = points(&gaps);
        assert!(points.len() <= POINTS, "{}", points.len());
        assert_eq!(points.iter().filter(|point| point.y > 499.0).count(), 1);
        assert_eq!(points[0].x.to_bits(), 1f64.to_bits());
    }
}
