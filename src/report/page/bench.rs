//! A benchmark: the launch beside its baselines, curves over depth, the gaps between tokens, the answers.

use std::collections::BTreeMap;

use super::compare::Summary;
use super::memory::{self, Side, errors, size};
use super::speed::{Entry, Unit, chart};
use super::{Block, Document, Item, KeyFigure, Page, Verdict, environment, named};
use crate::bytes::Bytes;
use crate::measurement::{Spread, Taken};
use crate::memory::HOST;
use crate::number::{counted, fixed, seconds, signed, thousands, typeset};
use crate::report::chart::{Fill, Lines, Point, Series};
use crate::report::table::Table;
use crate::suite::bench::on_devices;
use crate::suite::document::{self, Bench, Case, DepthRow, Gaps, Mode, Sample, Session, SpeedRow};

/// Characters of an answer that a page shows; the document keeps all of it.
const SHOWN: usize = 3000;
/// Points that a curve of gaps is drawn with; of more, the longest gap of each stretch.
const POINTS: usize = 600;
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

fn title(bench: &Bench) -> &str {
    let model = bench.model.as_ref().map(|model| named(model.name.as_deref(), &model.path));
    model.or(bench.environment.endpoint.as_deref()).unwrap_or("A model")
}

pub(super) fn summary(bench: &Bench, label: &str) -> Option<Summary> {
    let case = bench.cases.first()?;
    let row = overall(case);
    Some(Summary {
        memory: with_memory(case).map(|session| session.taken.memory.clone()),
        first: row.and_then(|row| row.first_token_seconds),
        ..Summary::measured(label, row.and_then(|row| row.pp), row.and_then(|row| row.tg))
    })
}

pub(super) fn blocks(bench: &Bench, page: &mut Page) {
    let (rates, times) = (Unit::TokensPerSecond, Unit::Seconds);
    page.push(bench.cases.first().map(|case| Block::KeyFigures(figures(bench, case))));
    page.push(Block::Prose(format!("Asked {}.", asked(bench))));
    page.push(Block::Table("Every case, over all prompts".into(), cases(bench)));
    page.push(failures(bench).into_iter().map(|text| Block::Note(Verdict::Bad, text, None)));
    page.detail(beside(bench, "Generation", rates, |row| row.tg, |sample| sample.tg));
    page.detail(beside(bench, "Prompt", rates, |row| row.pp, |sample| sample.pp));
    let first = "Time to the first token";
    page.detail(beside(bench, first, times, |row| row.first_token_seconds, |one| one.first_token_seconds));
    page.detail(over_depth(bench, "Generation over depth", |row| row.tg));
    page.detail(over_depth(bench, "Prompt over depth", |row| row.pp));
    let columns = "case|>depth|>pp|>tg|>first token";
    let depths = by_case(
        bench,
        columns,
        |case| case.depths.iter(),
        |row| vec![thousands(row.depth.into()), rate(row.pp), rate(row.tg), time(row.first_token_seconds)],
    );
    page.push(Block::table("Speed by depth", depths));
    page.push(Block::table("Against the baselines", savings(bench)));
    page.detail(memories(bench));
    page.detail(gaps(bench));
    page.push(Block::table("Speed by prompt", prompts(bench)));
    judged(bench, page, "Streams", |case| items(&case.stream));
    judged(bench, page, "Answers", |case| {
        let of_prompt = |of: &document::Quality| {
            let named = |item: Item| Item { what: format!("{}: {}", of.prompt, item.what), ..item };
            items(&of.items).into_iter().map(named).collect::<Vec<_>>()
        };
        case.quality.iter().flat_map(of_prompt).collect()
    });
    page.detail(bench.cases.iter().flat_map(|case| {
        let answers = case.quality.iter();
        let answers = answers.map(|of| (format!("{}: the {} prompt", case.name, of.prompt), &of.items));
        let all = [(format!("{}: streams", case.name), &case.stream)].into_iter().chain(answers);
        all.flat_map(|(heading, of)| Block::checklist(&heading, items(of))).collect::<Vec<_>>()
    }));
    page.detail(replies(bench));
    page.push(
        (bench.weights.synthetic != Some(false) && !bench.weights.basis.is_empty())
            .then(|| Block::Note(Verdict::Caution, format!("weights: {}", bench.weights.basis), None)),
    );
    // Its own notes, then those of its launches, each once.
    let mut notes: Vec<&String> = sessions(bench).flat_map(|(_, session)| &session.notes).collect();
    notes.sort();
    notes.dedup();
    page.push(bench.notes.iter().chain(notes).map(|note| Block::Note(Verdict::Open, note.clone(), None)));
    page.detail(Block::Table("How it was asked".into(), settings(bench)));
    page.detail(Block::Table("Machine".into(), environment::machine(&bench.environment)));
    page.detail(bench.model.as_ref().map(|model| Block::Table("Model".into(), environment::model(model))));
    let command = |case: &Case| Some(Block::Command(format!("{}, {}", case.name, case.what), case.command.clone()?));
    page.detail(bench.cases.iter().filter_map(command));
}

fn sessions(bench: &Bench) -> impl Iterator<Item = (&Case, &Session)> {
    bench.cases.iter().flat_map(|case| case.sessions.iter().map(move |session| (case, session)))
}

/// A table with rows of every case, whose name is in the first column.
fn by_case<'b, T, I: Iterator<Item = T>>(
    bench: &'b Bench,
    columns: &str,
    rows: impl Fn(&'b Case) -> I,
    cells: impl Fn(T) -> Vec<String>,
) -> Table {
    let row = |case: &'b Case| rows(case).map(|row| [vec![case.name.clone()], cells(row)].concat()).collect::<Vec<_>>();
    Table::rows_of(columns, bench.cases.iter().flat_map(row))
}

fn asked(bench: &Bench) -> String {
    let times = format!("{} times", bench.settings.repetitions);
    let most = || bench.prompts.iter().map(|prompt| prompt.max_tokens);
    match (most().min(), most().max()) {
        (Some(low), Some(high)) if low == high => format!("{times}, answers of at most {high} tokens"),
        (Some(low), Some(high)) => format!("{times}, answers of at most {low} to {high} tokens"),
        _ => times,
    }
}

fn rate(value: Option<Spread>) -> String {
    value.map_or_else(|| UNKNOWN.to_string(), |value| Unit::TokensPerSecond.spread(value))
}

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
    case.sessions.iter().find(|session| !session.taken.memory.is_empty())
}

fn cases(bench: &Bench) -> Table {
    let host = |session: &Session| {
        let own = size(session.taken.memory.get(HOST)?.terms.own());
        let mapped = session.taken.mapped_span;
        Some(if mapped.0 > 0 { format!("{own}, {mapped} mapped") } else { own })
    };
    let columns = "case|>load|>devices|>host|>pp|>tg|>first token|>in all";
    by_case(bench, columns, std::iter::once, |case| {
        let (measured, speed) = (with_memory(case), overall(case));
        vec![
            if case.command.is_some() { time(case.load_seconds) } else { "was up".to_string() },
            measured.and_then(on_devices).map_or(UNKNOWN.to_string(), size),
            measured.and_then(host).unwrap_or_else(|| UNKNOWN.to_string()),
            rate(speed.and_then(|row| row.pp)),
            rate(speed.and_then(|row| row.tg)),
            time(speed.and_then(|row| row.first_token_seconds)),
            time(speed.and_then(|row| row.total_seconds)),
        ]
    })
}

fn failures(bench: &Bench) -> Vec<String> {
    let all = || sessions(bench).map(|(_, session)| session);
    let launches = all().filter_map(|session| Some(format!("{}: {}", session.case, session.failure.as_ref()?)));
    let samples = all().flat_map(|session| session.samples.iter().map(move |sample| (&session.case, sample)));
    let answers = samples.filter_map(|(case, one)| Some(format!("{case}, {}: {}", one.prompt, one.failure.as_ref()?)));
    let mut lines: Vec<String> = launches.chain(answers).collect();
    lines.dedup();
    lines
}

fn prompts(bench: &Bench) -> Table {
    let columns = "case|prompt|answer|>tokens|>pp|>tg|>first token|>gap: median|>95%|>longest";
    by_case(
        bench,
        columns,
        |case| case.speed.iter().filter(|row| row.prompt.is_some()),
        |row| {
            let is_stream = row.mode == Mode::Stream;
            let of_stream = |text: String| if is_stream { text } else { "–".to_string() };
            vec![
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
        },
    )
}

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
fn judged(bench: &Bench, page: &mut Page, caption: &str, of: impl Fn(&Case) -> Vec<Item>) {
    let by_case: Vec<Vec<Item>> = bench.cases.iter().map(of).collect();
    let mut table = Table::of("");
    table.columns.extend(bench.cases.iter().map(|case| (case.name.clone(), false)));
    let mut seen: Vec<&str> = Vec::new();
    for what in by_case.iter().flatten().map(|item| item.what.as_str()) {
        if seen.contains(&what) {
            continue;
        }
        seen.push(what);
        let word = |items: &Vec<Item>| match items.iter().find(|item| item.what == what).map(|item| item.verdict) {
            Some(Verdict::Bad) => "NO",
            Some(verdict) => verdict.look().word,
            None => "–",
        };
        table.row([what].into_iter().chain(by_case.iter().map(word)));
    }
    page.push(Block::table(caption, table));
    for (case, items) in bench.cases.iter().zip(&by_case) {
        let failed = items.iter().filter(|item| item.verdict == Verdict::Bad);
        let note = |item: &Item| format!("{}: {}: {}", case.name, item.what, item.why);
        page.push(failed.map(|item| Block::Note(Verdict::Bad, note(item), None)));
    }
}

fn figures(bench: &Bench, case: &Case) -> Vec<KeyFigure> {
    let row = overall(case);
    let speed = |(label, spread, unit, what): (&str, Option<Spread>, Unit, &str)| {
        let samples = counted(u64::from(spread?.n), "sample");
        Some(KeyFigure::new(label, unit.spread(spread?), format!("{what} {samples}")))
    };
    let saved = |saving: &document::Saving| {
        let percent = format!("{}%", typeset(&signed(-saving.saved_percent?, 1)));
        let by = format!("({} for {}, by {})", size(saving.bytes), size(saving.baseline_bytes), saving.by);
        Some(KeyFigure::new(&format!("Device memory against {}", saving.baseline), percent, by))
    };
    let speeds = [
        ("Generation", row.and_then(|row| row.tg), Unit::TokensPerSecond, "tokens/s,"),
        ("Prompt", row.and_then(|row| row.pp), Unit::TokensPerSecond, "tokens/s,"),
        ("First token", row.and_then(|row| row.first_token_seconds), Unit::Seconds, "in"),
    ];
    speeds.into_iter().filter_map(speed).chain(bench.savings.iter().filter_map(saved)).collect()
}

fn settings(bench: &Bench) -> Table {
    let sampling = format!("temperature {}, seed {}", bench.settings.temperature, bench.settings.seed);
    let prompts = bench.prompts.iter().map(|prompt| {
        let most = thousands(prompt.max_tokens.into());
        (prompt.name.as_str(), Some(format!("{} (at most {most} tokens)", prompt.text)))
    });
    Table::facts([("how often", Some(asked(bench))), ("sampling", Some(sampling))].into_iter().chain(prompts))
}

/// One quantity of every case beside the others, over all prompts, in the mode of the overall row.
fn beside(
    bench: &Bench,
    title: &str,
    unit: Unit,
    of: fn(&SpeedRow) -> Option<Spread>,
    of_sample: fn(&Sample) -> Option<f64>,
) -> Option<Block> {
    let entry = |case: &Case| {
        let row = overall(case);
        let samples = case.sessions.iter().flat_map(|session| &session.samples);
        let samples = samples.filter(|sample| Some(sample.mode) == row.map(|row| row.mode)).filter_map(of_sample);
        Entry::measured(&case.name, row.and_then(of), samples.collect())
    };
    chart(title, unit, bench.cases.iter().map(entry))
}

fn over_depth(bench: &Bench, title: &str, of: fn(&DepthRow) -> Option<Spread>) -> Option<Block> {
    let mut table = Table::of("case|>depth|>tokens/s");
    let mut series = Vec::new();
    for (at, case) in bench.cases.iter().enumerate() {
        let mut points = Vec::new();
        for (row, spread) in case.depths.iter().filter_map(|row| Some((row, of(row)?))) {
            table.row([case.name.clone(), thousands(row.depth.into()), Unit::TokensPerSecond.spread(spread)]);
            let error = (spread.n > 1).then_some(spread.stddev);
            points.push(Point { x: f64::from(row.depth), y: spread.mean, spread: error });
        }
        series.extend((!points.is_empty()).then(|| Series { label: case.name.clone(), at, points }));
    }
    let (x, y) = ("tokens in the context before the prompt".into(), "tokens per second".into());
    let text = format!(
        "Measured with prompts of {} and {} generated tokens; whiskers are one standard deviation.",
        thousands(bench.settings.depth_prompt.into()),
        thousands(bench.settings.depth_generate.into())
    );
    Block::lines(title, text, Lines { x, y, series, ..Lines::default() }, table)
}

fn memories(bench: &Bench) -> Vec<Block> {
    let mut blocks = Vec::new();
    let none = BTreeMap::new();
    let is_compared = |session: &&Session| !session.taken.predicted.is_empty() && !session.taken.memory.is_empty();
    let compared = bench.cases.iter().filter_map(|case| Some((case, case.sessions.iter().find(is_compared)?)));
    let compared: Vec<(&Case, &Session)> = compared.collect();
    if let Some((case, session)) = compared.first() {
        let title = format!("Memory of {}, predicted beside measured", case.name);
        let Taken { memory: measured, predicted, mapped_span, .. } = &session.taken;
        blocks.push(memory::against(&title, predicted, measured, *mapped_span, &none));
    }
    let rows = compared.iter().map(|(case, session)| (case.name.as_str(), session.taken.comparison.as_slice()));
    blocks.extend(errors(&rows.collect::<Vec<_>>()));
    let sides: Vec<Side<'_>> = bench
        .cases
        .iter()
        .filter_map(|case| Some((case.name.as_str(), &with_memory(case)?.taken.memory, Fill::Plain)))
        .collect();
    if sides.len() > 1 {
        blocks.push(Block::Figure(memory::figure("Memory of every case, measured", &sides, &none)));
    }
    blocks
}

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
    let heading = (!answers.is_empty()).then(|| Block::Heading("Replies".into()));
    heading.into_iter().chain(answers).collect()
}

/// The gaps between tokens: the longest stream of the first case as a curve, every stream as a row.
fn gaps(bench: &Bench) -> Option<Block> {
    fn streams(case: &Case) -> impl Iterator<Item = (&Sample, &Gaps)> {
        let samples = case.sessions.iter().flat_map(|session| &session.samples);
        samples.filter_map(|sample| Some((sample, sample.gaps.as_ref()?)))
    }
    let table = by_case(bench, "case|prompt|>median|>95% below|>longest|>gaps", streams, |(sample, gaps)| {
        let [median, p95, max] = [gaps.median, gaps.p95, gaps.max].map(seconds);
        vec![sample.prompt.clone(), median, p95, max, gaps.all.len().to_string()]
    });
    let case = bench.cases.first()?;
    let (sample, gaps) = streams(case).max_by_key(|(_, gaps)| gaps.all.len())?;
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
    Block::lines("Gaps between tokens", text, lines, table)
}

#[expect(clippy::cast_precision_loss, reason = "places in a chart")]
fn points(gaps: &[f64]) -> Vec<Point> {
    let stretch = gaps.len().div_ceil(POINTS).max(1);
    let longest = |(at, gaps): (usize, &[f64])| {
        let y = gaps.iter().copied().fold(0.0, f64::max) * 1000.0;
        Point { x: (at * stretch + 1) as f64, y, spread: None }
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
        assert!(points.len() <= POINTS && points[0].x.to_bits() == 1f64.to_bits(), "{}", points.len());
        assert_eq!(points.iter().filter(|point| point.y > 499.0).count(), 1);
    }
}
