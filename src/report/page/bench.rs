//! A benchmark: the launch beside its baselines, curves over depth, the gaps between tokens, the answers.

use std::collections::BTreeMap;

use super::compare::Summary;
use super::memory::{self, Memory, Side, errors, size};
use super::speed::{Entry, Unit, chart};
use super::{Block, Document, Item, KeyFigure, Page, Verdict, environment, named};
use crate::bytes::Bytes;
use crate::measurement::{Row, Spread};
use crate::memory::HOST;
use crate::number::{counted, fixed, seconds, signed, thousands, typeset};
use crate::report::chart::{Figure, Fill, Lines, Point, Series};
use crate::report::table::{Align, Table};
use crate::suite::bench::on_devices;
use crate::suite::document::{self, Bench, Case, DepthRow, Gaps, Mode, Sample, Session, SpeedRow};

/// Characters of an answer that a page shows; the document keeps all of it.
const SHOWN: usize = 3000;
/// Points that a curve of gaps is drawn with; of more, the longest gap of each stretch.
const POINTS: usize = 600;
/// What stands where nothing was measured.
const UNKNOWN: &str = "not known";

impl Document for Bench {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Benchmark", title(self), environment::about(&self.environment));
        blocks(self, &mut page);
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        summary(self, title(self)).into_iter().collect()
    }
}

/// The name of the model, else the endpoint.
fn title(bench: &Bench) -> &str {
    let model = bench.model.as_ref().map(|model| named(model.name.as_deref(), &model.path));
    model.or(bench.environment.endpoint.as_deref()).unwrap_or("A model")
}

/// The first case: the plan or the endpoint.
pub(super) fn summary(bench: &Bench, label: &str) -> Option<Summary> {
    let case = bench.cases.first()?;
    let row = overall(case);
    Some(Summary {
        memory: with_memory(case).map(|session| session.memory.clone()),
        pp: Entry::measured("", row.and_then(|row| row.pp), Vec::new()),
        tg: Entry::measured("", row.and_then(|row| row.tg), Vec::new()),
        first: row.and_then(|row| row.first_token_seconds),
        ..Summary::measured(label)
    })
}

pub(super) fn blocks(bench: &Bench, page: &mut Page) {
    page.push(bench.cases.first().map(|case| Block::KeyFigures(figures(bench, case))));
    page.push(Block::Prose(format!("Asked {}.", asked(bench))));
    page.push(Block::Table("Every case, over all prompts".into(), cases(bench)));
    page.push_all(failures(bench).into_iter().map(|text| Block::Note(Verdict::Bad, text, None)));
    page.detail_all(speeds(bench));
    page.detail(depth(bench, "Generation over depth", |row| row.tg).map(Block::Figure));
    page.detail(depth(bench, "Prompt over depth", |row| row.pp).map(Block::Figure));
    page.push(Block::filled("Speed by depth", depths(bench)));
    page.push(Block::filled("Against the baselines", savings(bench)));
    page.detail_all(memories(bench));
    page.detail(gaps(bench).map(Block::Figure));
    page.push(Block::filled("Speed by prompt", prompts(bench)));
    judged(bench, page, "Streams", |case| case.stream.clone());
    judged(bench, page, "Answers", answers);
    page.detail_all(bench.cases.iter().flat_map(checklists));
    page.detail_all(replies(bench));
    if bench.weights.synthetic != Some(false) && !bench.weights.basis.is_empty() {
        page.push(Block::Note(Verdict::Caution, format!("weights: {}", bench.weights.basis), None));
    }
    page.push_all(notes(bench).into_iter().map(|note| Block::Note(Verdict::Open, note, None)));
    page.detail(Block::Table("How it was asked".into(), settings(bench)));
    page.detail(Block::Table("Machine".into(), environment::machine(&bench.environment)));
    page.detail(bench.model.as_ref().map(|model| Block::Table("Model".into(), environment::model(model))));
    let command = |case: &Case| Some(Block::Command(format!("{}, {}", case.name, case.what), case.command.clone()?));
    page.detail_all(bench.cases.iter().filter_map(command));
}

/// What to know of it: its own notes, then those of its launches, each once.
fn notes(bench: &Bench) -> Vec<String> {
    let mut seen: Vec<String> =
        bench.cases.iter().flat_map(|case| &case.sessions).flat_map(|session| session.notes.clone()).collect();
    seen.sort();
    seen.dedup();
    bench.notes.iter().cloned().chain(seen).collect()
}

/// How often it was asked, and how long answers may be.
fn asked(bench: &Bench) -> String {
    let times = format!("{} times", bench.settings.repetitions);
    let most = || bench.prompts.iter().map(|prompt| prompt.max_tokens);
    match (most().min(), most().max()) {
        (Some(low), Some(high)) if low == high => format!("{times}, answers of at most {high} tokens"),
        (Some(low), Some(high)) => format!("{times}, answers of at most {low} to {high} tokens"),
        _ => times,
    }
}

/// Tokens per second, or that they are not known.
fn rate(value: Option<Spread>) -> String {
    value.map_or_else(|| UNKNOWN.to_string(), |value| Unit::TokensPerSecond.spread(value))
}

/// Seconds, or that they are not known.
fn time(value: Option<Spread>) -> String {
    value.map_or_else(|| UNKNOWN.to_string(), |value| Unit::Seconds.spread(value))
}

/// The row over all prompts: of streams where there are any.
fn overall(case: &Case) -> Option<&SpeedRow> {
    let row = |mode| case.speed.iter().find(|row| row.prompt.is_none() && row.mode == mode);
    row(Mode::Stream).or_else(|| row(Mode::Whole))
}

/// The first launch of a case whose memory was seen.
fn with_memory(case: &Case) -> Option<&Session> {
    case.sessions.iter().find(|session| !session.memory.is_empty())
}

/// One line a case: over all prompts, streamed where they were.
fn cases(bench: &Bench) -> Table {
    let row = |case: &Case| {
        let (measured, speed) = (with_memory(case), overall(case));
        [
            case.name.clone(),
            if case.command.is_some() { time(case.load_seconds) } else { "was up".to_string() },
            measured.and_then(on_devices).map_or(UNKNOWN.to_string(), size),
            measured.and_then(host_of).unwrap_or_else(|| UNKNOWN.to_string()),
            rate(speed.and_then(|row| row.pp)),
            rate(speed.and_then(|row| row.tg)),
            time(speed.and_then(|row| row.first_token_seconds)),
            time(speed.and_then(|row| row.total_seconds)),
        ]
    };
    Table::rows_of("case|>load|>devices|>host|>pp|>tg|>first token|>in all", bench.cases.iter().map(row))
}

fn host_of(session: &Session) -> Option<String> {
    let (own, mapped) = (session.memory.get(HOST)?.terms.own(), session.mapped_span);
    Some(if mapped.0 > 0 { format!("{}, {mapped} mapped", size(own)) } else { size(own) })
}

/// Why launches and answers failed.
fn failures(bench: &Bench) -> Vec<String> {
    let sessions = || bench.cases.iter().flat_map(|case| &case.sessions);
    let launches = sessions().filter_map(|session| Some(format!("{}: {}", session.case, session.failure.as_ref()?)));
    let answers = sessions().flat_map(|session| {
        let of =
            move |sample: &Sample| Some(format!("{}, {}: {}", session.case, sample.prompt, sample.failure.as_ref()?));
        session.samples.iter().filter_map(of)
    });
    let mut lines: Vec<String> = launches.chain(answers).collect();
    lines.dedup();
    lines
}

/// Every prompt of every case, whole and streamed.
fn prompts(bench: &Bench) -> Table {
    let rows = bench.cases.iter().flat_map(|case| case.speed.iter().map(move |row| (case, row)));
    let rows = rows.filter(|(_, row)| row.prompt.is_some()).map(|(case, row)| {
        let is_stream = row.mode == Mode::Stream;
        let of_stream = |text: String| if is_stream { text } else { "–".to_string() };
        [
            case.name.clone(),
            row.prompt.clone().unwrap_or_default(),
            if is_stream { "streamed" } else { "whole" }.to_string(),
            row.generated_tokens.map_or_else(|| UNKNOWN.to_string(), |tokens| fixed(tokens.mean, 0)),
            rate(row.pp),
            rate(row.tg),
            of_stream(time(row.first_token_seconds)),
            of_stream(time(row.gap_median)),
            of_stream(time(row.gap_p95)),
            of_stream(row.gap_max.map_or_else(|| UNKNOWN.to_string(), seconds)),
        ]
    });
    Table::rows_of("case|prompt|answer|>tokens|>pp|>tg|>first token|>gap: median|>95%|>longest", rows)
}

fn depths(bench: &Bench) -> Table {
    let rows = bench.cases.iter().flat_map(|case| case.depths.iter().map(move |row| (case, row)));
    let row = |(case, row): (&Case, &DepthRow)| {
        let depth = thousands(row.depth.into());
        [case.name.clone(), depth, rate(row.pp), rate(row.tg), time(row.first_token_seconds)]
    };
    Table::rows_of("case|>depth|>pp|>tg|>first token", rows.map(row))
}

/// What the first case takes less than its baselines, and what that costs.
fn savings(bench: &Bench) -> Table {
    let ratio = |ratio: Option<f64>| ratio.map_or(UNKNOWN.to_string(), |ratio| format!("{ratio:.2}×"));
    let row = |saving: &document::Saving| {
        let sign = if saving.saved_bytes < 0 { "−" } else { "" };
        [
            saving.baseline.clone(),
            saving.by.clone(),
            size(saving.bytes),
            size(saving.baseline_bytes),
            format!("{sign}{}", size(Bytes(saving.saved_bytes.unsigned_abs()))),
            saving.saved_percent.map(|percent| format!("{}%", typeset(&fixed(percent, 1)))).unwrap_or_default(),
            ratio(saving.tg_ratio),
            ratio(saving.pp_ratio),
        ]
    };
    Table::rows_of("baseline|by|>this|>baseline's|>saved|>|>tg|>pp", bench.savings.iter().map(row))
}

/// A check a line, a case a column; what failed is told in full beneath.
fn judged(bench: &Bench, page: &mut Page, caption: &str, of: impl Fn(&Case) -> Vec<document::Item>) {
    let columns = bench.cases.iter().map(|case| (case.name.as_str(), Align::Left));
    let mut table = Table::new(&[("", Align::Left)].into_iter().chain(columns).collect::<Vec<_>>());
    let by_case: Vec<Vec<document::Item>> = bench.cases.iter().map(of).collect();
    let mut seen: Vec<&str> = Vec::new();
    for what in by_case.iter().flatten().map(|item| item.what.as_str()) {
        if seen.contains(&what) {
            continue;
        }
        seen.push(what);
        let of_case = |items: &Vec<document::Item>| {
            let found = items.iter().find(|item| item.what == what);
            found.map_or("–", |item| word(item.verdict)).to_string()
        };
        table.row([what.to_string()].into_iter().chain(by_case.iter().map(of_case)));
    }
    page.push(Block::filled(caption, table));
    for (case, items) in bench.cases.iter().zip(&by_case) {
        for item in items.iter().filter(|item| item.verdict == document::Verdict::Fail) {
            page.push(Block::Note(Verdict::Bad, format!("{}: {}: {}", case.name, item.what, item.detail), None));
        }
    }
}

/// Every judged line of a case, with its prompt.
fn answers(case: &Case) -> Vec<document::Item> {
    let named = |(prompt, item): (&str, &document::Item)| {
        let what = format!("{prompt}: {}", item.what);
        document::Item { what, ..item.clone() }
    };
    case.quality.iter().flat_map(|of| of.items.iter().map(|item| (of.prompt.as_str(), item))).map(named).collect()
}

/// A verdict as a word.
fn word(verdict: document::Verdict) -> &'static str {
    match verdict {
        document::Verdict::Pass => "yes",
        document::Verdict::Fail => "NO",
        document::Verdict::NotAssessed => "not assessed",
        document::Verdict::Skipped => "skipped",
    }
}

fn figures(bench: &Bench, case: &Case) -> Vec<KeyFigure> {
    let row = overall(case);
    let n = |spread: Spread| counted(u64::from(spread.n), "sample");
    let speed = |label: &str, spread: Option<Spread>| {
        let spread = spread?;
        Some(KeyFigure::new(label, Unit::TokensPerSecond.spread(spread), format!("tokens/s, {}", n(spread))))
    };
    let first = row.and_then(|row| row.first_token_seconds);
    let first =
        first.map(|first| KeyFigure::new("First token", Unit::Seconds.spread(first), format!("in {}", n(first))));
    let saved = |saving: &document::Saving| {
        let percent = format!("{}%", typeset(&signed(-saving.saved_percent?, 1)));
        let by = format!("({} for {}, by {})", size(saving.bytes), size(saving.baseline_bytes), saving.by);
        Some(KeyFigure::new(&format!("Device memory against {}", saving.baseline), percent, by))
    };
    let speeds = [speed("Generation", row.and_then(|row| row.tg)), speed("Prompt", row.and_then(|row| row.pp)), first];
    speeds.into_iter().flatten().chain(bench.savings.iter().filter_map(saved)).collect()
}

/// Repetitions, sampling and lengths, and every prompt.
fn settings(bench: &Bench) -> Table {
    let settings = &bench.settings;
    let how = [
        ("how often", Some(asked(bench))),
        ("sampling", Some(format!("temperature {}, seed {}", settings.temperature, settings.seed))),
    ];
    let prompts = bench.prompts.iter().map(|prompt| {
        let most = thousands(prompt.max_tokens.into());
        (prompt.name.as_str(), Some(format!("{} (at most {most} tokens)", prompt.text)))
    });
    Table::facts(how.into_iter().chain(prompts))
}

/// The samples of one quantity over all prompts, in the mode of the overall row.
fn samples_of(case: &Case, of: fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let mode = overall(case).map(|row| row.mode);
    let all = case.sessions.iter().flat_map(|session| &session.samples);
    all.filter(|sample| Some(sample.mode) == mode).filter_map(of).collect()
}

/// Every case beside the others.
fn speeds(bench: &Bench) -> [Option<Block>; 3] {
    type Of = (fn(&SpeedRow) -> Option<Spread>, fn(&Sample) -> Option<f64>);
    let beside = |title: &str, unit: Unit, (of, sample): Of| {
        let entry = |case: &Case| Entry::measured(&case.name, overall(case).and_then(of), samples_of(case, sample));
        chart(title, unit, bench.cases.iter().map(entry))
    };
    [
        beside("Generation", Unit::TokensPerSecond, (|row| row.tg, |sample| sample.tg)),
        beside("Prompt", Unit::TokensPerSecond, (|row| row.pp, |sample| sample.pp)),
        beside(
            "Time to the first token",
            Unit::Seconds,
            (|row| row.first_token_seconds, |one| one.first_token_seconds),
        ),
    ]
}

/// Speed over depth, a curve a case.
fn depth(bench: &Bench, title: &str, of: fn(&DepthRow) -> Option<Spread>) -> Option<Figure> {
    let mut table = Table::of("case|>depth|>tokens/s");
    let mut series = Vec::new();
    for (at, case) in bench.cases.iter().enumerate() {
        for (row, spread) in case.depths.iter().filter_map(|row| Some((row, of(row)?))) {
            table.row([case.name.clone(), thousands(row.depth.into()), Unit::TokensPerSecond.spread(spread)]);
        }
        let point = |row: &DepthRow| {
            let spread = of(row)?;
            let error = (spread.n > 1).then_some(spread.stddev);
            Some(Point { x: f64::from(row.depth), y: spread.mean, spread: error })
        };
        let points: Vec<Point> = case.depths.iter().filter_map(point).collect();
        if !points.is_empty() {
            series.push(Series { label: case.name.clone(), at, points });
        }
    }
    let (x, y) = ("tokens in the context before the prompt".into(), "tokens per second".into());
    let text = format!(
        "Measured with prompts of {} and {} generated tokens; whiskers are one standard deviation.",
        thousands(bench.settings.depth_prompt.into()),
        thousands(bench.settings.depth_generate.into())
    );
    Figure::lines(title, text, Lines { x, y, series, ..Lines::default() }, table)
}

/// Memory of the first case against its prediction, then of every case.
fn memories(bench: &Bench) -> Vec<Block> {
    let mut blocks = Vec::new();
    let none = BTreeMap::new();
    let is_compared = |session: &&Session| !session.predicted.is_empty() && !session.memory.is_empty();
    let compared: Vec<(&str, &Session)> = bench
        .cases
        .iter()
        .filter_map(|case| Some((case.name.as_str(), case.sessions.iter().find(is_compared)?)))
        .collect();
    if let Some((case, session)) = compared.first() {
        let title = format!("Memory of {case}, predicted beside measured");
        let (predicted, found) = (&session.predicted, &session.memory);
        blocks.push(Block::Figure(memory::against(&title, predicted, found, session.mapped_span, &none)));
        let rows: Vec<(&str, &[Row])> =
            compared.iter().map(|(case, session)| (*case, session.comparison.as_slice())).collect();
        blocks.push(Block::Table("Predicted beside measured, term by term".into(), errors(&rows)));
    }
    let cases: Vec<(&str, &Memory)> =
        bench.cases.iter().filter_map(|case| Some((case.name.as_str(), &with_memory(case)?.memory))).collect();
    if cases.len() > 1 {
        let sides: Vec<Side<'_>> =
            cases.iter().map(|(label, memory)| Side { label, memory, fill: Fill::Plain }).collect();
        blocks.push(Block::Figure(memory::figure("Memory of every case, measured", &sides, &none)));
    }
    blocks
}

/// Stream health and the judged answers of a case.
fn checklists(case: &Case) -> Vec<Block> {
    let mut blocks = Vec::new();
    if !case.stream.is_empty() {
        blocks.push(Block::Heading(format!("{}: streams", case.name)));
        blocks.push(Block::Checklist(items(&case.stream)));
    }
    for quality in case.quality.iter().filter(|quality| !quality.items.is_empty()) {
        blocks.push(Block::Heading(format!("{}: the {} prompt", case.name, quality.prompt)));
        blocks.push(Block::Checklist(items(&quality.items)));
    }
    blocks
}

/// Lines of a checklist of the document.
pub(super) fn items(items: &[document::Item]) -> Vec<Item> {
    let of = |item: &document::Item| Item {
        verdict: match item.verdict {
            document::Verdict::Pass => Verdict::Good,
            document::Verdict::Fail => Verdict::Bad,
            document::Verdict::NotAssessed => Verdict::Open,
            document::Verdict::Skipped => Verdict::Skipped,
        },
        what: item.what.clone(),
        why: item.detail.clone(),
        hint: None,
    };
    items.iter().map(of).collect()
}

/// The streamed answers of the first case's first launch.
fn replies(bench: &Bench) -> Vec<Block> {
    let session = bench.cases.first().and_then(|case| case.sessions.first());
    let streamed = session.into_iter().flat_map(|session| &session.samples).filter(|s| s.mode == Mode::Stream);
    let output = |sample: &Sample| {
        let mut text: String = sample.text.chars().take(SHOWN).collect();
        if text.len() < sample.text.len() {
            text += "\n… (the document holds the rest)";
        }
        Block::Output(format!("Answer to the {} prompt", sample.prompt), text)
    };
    let answers: Vec<Block> = streamed.filter(|sample| !sample.text.is_empty()).map(output).collect();
    if answers.is_empty() {
        return answers;
    }
    [Block::Heading("Replies".into())].into_iter().chain(answers).collect()
}

/// The gaps between tokens: the longest stream of the first case as a curve, every stream as a row.
fn gaps(bench: &Bench) -> Option<Figure> {
    let mut table = Table::of("case|prompt|>median|>95% below|>longest|>gaps");
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
    let case = bench.cases.first()?;
    let samples = case.sessions.iter().flat_map(|session| &session.samples).filter_map(with_gaps);
    let (sample, gaps) = samples.max_by_key(|(_, gaps)| gaps.all.len())?;
    let level = |name: &str, value: f64| (format!("{name} {}", seconds(value)), value * 1000.0);
    let lines = Lines {
        x: "gap, in the order of the stream".into(),
        y: "milliseconds to the next piece".into(),
        series: vec![Series { label: case.name.clone(), at: 0, points: points(&gaps.all) }],
        levels: vec![level("median", gaps.median), level("95% below", gaps.p95)],
        dense: true,
        ..Lines::default()
    };
    let thinned = if gaps.all.len() > POINTS { " Of each stretch the longest is drawn." } else { "" };
    let text = format!("The longest stream of {}: its answer to the {} prompt.{thinned}", case.name, sample.prompt);
    Figure::lines("Gaps between tokens", text, lines, table)
}

fn with_gaps(sample: &Sample) -> Option<(&Sample, &Gaps)> {
    sample.gaps.as_ref().map(|gaps| (sample, gaps))
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
