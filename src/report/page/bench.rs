//! A benchmark and a validation: launches beside their baselines, curves over depth, gaps between tokens, answers, checklists.

use std::collections::BTreeMap;

use super::compare::Summary;
use super::measurement::errors;
use super::memory::{self, Side, size};
use super::speed::Unit::{Rate, Time};
use super::speed::{Entry, Unit, chart};
use super::{Block, Document, Item, KeyFigure, Page, Verdict, dotted, named};
use crate::bytes::Bytes;
use crate::measurement::{Spread, Taken};
use crate::memory::HOST;
use crate::number::{counted, fixed, parameters, seconds, signed, thousands, typeset};
use crate::report::chart::{Fill, Lines, Point, Series};
use crate::report::table::{Table, row};
use crate::suite::bench::on_devices;
use crate::suite::document::{
    self, Bench, Case, DeviceFacts, Environment, Gaps, Mode, ModelFacts, ModelValidation, Saving, Session, SpeedRow,
    Validation,
};

/// Characters of an answer that a page shows; the document keeps all of it.
const SHOWN: usize = 3000;
/// Points that a curve of gaps is drawn with; of more, the longest gap of each stretch.
const POINTS: usize = 600;
const UNKNOWN: &str = "not known";

impl Document for Bench {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Benchmark", title(self), about(&self.environment));
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

fn summary(bench: &Bench, label: &str) -> Option<Summary> {
    let case = bench.cases.first()?;
    let row = overall(case);
    let memory = with_memory(case).map(|session| session.taken.memory.clone());
    Some(Summary { memory, first: row.first_token_seconds, ..Summary::measured(label, row.pp, row.tg) })
}

/// The final checklist, then each model with its evidence.
impl Document for Validation {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("", format!("Validation: {}", self.suite), about(&self.environment));
        page.push((!self.description.is_empty()).then(|| Block::Prose(self.description.clone())));
        page.push(Block::checklist("Final checklist", items(&self.summary)));
        page.push(Block::checklist("Prerequisites", items(&self.prerequisites)));
        page.detail(Block::Table("Machine".into(), machine(&self.environment)));
        [page].into_iter().chain(self.models.iter().map(of_model)).collect()
    }

    fn summaries(&self) -> Vec<Summary> {
        self.models.iter().filter_map(|model| summary(model.bench.as_ref()?, &model.name)).collect()
    }
}

fn of_model(model: &ModelValidation) -> Page {
    let source = model.path.clone().unwrap_or_default();
    let mut page = Page { source, ..Page::new("", model.name.clone(), "") };
    page.push(
        model
            .skipped
            .clone()
            .map(|why| Block::Checklist(vec![Item { verdict: Verdict::Skipped, what: "Run".into(), why, hint: None }])),
    );
    for part in &model.sections {
        let mut name = part.name.replace(['-', '_'], " ");
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        page.push([Block::Heading(name), Block::Checklist(items(&part.items))]);
    }
    let placements = model.placements.iter().map(|placement| {
        let memory = placement.predicted.iter().map(|(device, row)| format!("{device} {}", size(row.total)));
        let fits = placement.fits.map_or("no budget given", |fits| if fits { "yes" } else { "no" });
        let [devices, host] = [placement.expert_bytes_on_devices, placement.expert_bytes_on_host].map(size);
        row![placement.case, devices, host, memory.collect::<Vec<_>>().join(", "), fits]
    });
    let columns = "case|>experts on devices|>experts on the host|memory|fits";
    page.detail(Block::table("Placements, predicted", Table::rows_of(columns, placements)));
    if let Some(measured) = &model.bench {
        page.push(Block::Heading("Benchmark".into()));
        blocks(measured, &mut page);
    }
    page
}

fn blocks(bench: &Bench, page: &mut Page) {
    page.push(bench.cases.first().map(|case| Block::KeyFigures(figures(bench, case))));
    page.push(Block::Prose(format!("Asked {}.", asked(bench))));
    page.push(Block::Table("Every case, over all prompts".into(), cases(bench)));
    page.push(failures(bench).into_iter().map(|text| Block::Note(Verdict::Bad, text, None)));
    page.detail(beside(bench, "Generation", Rate, |row| row.tg, |sample| sample.tg));
    page.detail(beside(bench, "Prompt", Rate, |row| row.pp, |sample| sample.pp));
    page.detail(beside(
        bench,
        "Time to the first token",
        Time,
        |row| row.first_token_seconds,
        |one| one.first_token_seconds,
    ));
    page.detail(over_depth(bench, "Generation over depth", |row| row.tg));
    page.detail(over_depth(bench, "Prompt over depth", |row| row.pp));
    let depths = by_case(bench, ">depth|>pp|>tg|>first token", |case| {
        case.depths.iter().map(|at| {
            row![
                thousands(at.depth.into()),
                Rate.spread(at.pp),
                Rate.spread(at.tg),
                Time.spread(at.first_token_seconds)
            ]
        })
    });
    page.push(Block::table("Speed by depth", depths));
    page.push(Block::table("Against the baselines", savings(bench)));
    page.detail(memories(bench));
    page.detail(gaps(bench));
    page.push(Block::table("Speed by prompt", prompts(bench)));
    let judged: Vec<Vec<Item>> = bench.cases.iter().map(judged).collect();
    page.push(Block::table("Streams and answers", verdicts(bench, &judged)));
    for (case, items) in bench.cases.iter().zip(judged) {
        let failed = items.iter().filter(|item| item.verdict == Verdict::Bad);
        let note = |item: &Item| format!("{}: {}: {}", case.name, item.what, item.why);
        page.push(failed.map(|item| Block::Note(Verdict::Bad, note(item), None)).collect::<Vec<_>>());
        page.detail(Block::checklist(&format!("{}: streams and answers", case.name), items));
    }
    page.detail(replies(bench));
    page.push(
        (bench.weights.synthetic != Some(false) && !bench.weights.basis.is_empty())
            .then(|| Block::Note(Verdict::Caution, format!("weights: {}", bench.weights.basis), None)),
    );
    // Its own notes, then those of its launches, each once.
    let mut notes: Vec<&String> =
        bench.cases.iter().flat_map(|case| &case.sessions).flat_map(|one| &one.notes).collect();
    notes.sort();
    notes.dedup();
    page.push(bench.notes.iter().chain(notes).map(|note| Block::Note(Verdict::Open, note.clone(), None)));
    page.detail(Block::Table("How it was asked".into(), settings(bench)));
    page.detail(Block::Table("Machine".into(), machine(&bench.environment)));
    page.detail(bench.model.as_ref().map(|model| Block::Table("Model".into(), facts(model))));
    let command = |case: &Case| Some(Block::Command(format!("{}, {}", case.name, case.what), case.command.clone()?));
    page.detail(bench.cases.iter().filter_map(command));
}

/// A table with rows of every case, whose name is in the first column.
fn by_case<'b, I: Iterator<Item: IntoIterator<Item = String>>>(
    bench: &'b Bench,
    columns: &str,
    rows: impl Fn(&'b Case) -> I,
) -> Table {
    let of_case = |case: &'b Case| rows(case).map(|row| std::iter::once(case.name.clone()).chain(row));
    Table::rows_of(&format!("case|{columns}"), bench.cases.iter().flat_map(of_case))
}

fn asked(bench: &Bench) -> String {
    let times = counted(bench.settings.repetitions.into(), "time");
    let most = || bench.prompts.iter().map(|prompt| prompt.max_tokens);
    match (most().min(), most().max()) {
        (Some(low), Some(high)) if low == high => format!("{times}, answers of at most {high} tokens"),
        (Some(low), Some(high)) => format!("{times}, answers limited to {low} to {high} tokens, by prompt"),
        _ => times,
    }
}

/// The row over all prompts: of streams where there are any.
fn overall(case: &Case) -> SpeedRow {
    let row = |mode| case.speed.iter().find(|row| row.prompt.is_none() && row.mode == mode);
    row(Mode::Stream).or_else(|| row(Mode::Whole)).cloned().unwrap_or_default()
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
    by_case(bench, ">load|>devices|>host|>pp|>tg|>first token|>in all", |case| {
        let (seen, speed) = (with_memory(case), overall(case));
        std::iter::once(row![
            if case.command.is_some() { Time.spread(case.load_seconds) } else { "was up".to_string() },
            seen.and_then(on_devices).map_or(UNKNOWN.to_string(), size),
            seen.and_then(host).unwrap_or_else(|| UNKNOWN.to_string()),
            Rate.spread(speed.pp),
            Rate.spread(speed.tg),
            Time.spread(speed.first_token_seconds),
            Time.spread(speed.total_seconds),
        ])
    })
}

fn failures(bench: &Bench) -> Vec<String> {
    let sessions = || bench.cases.iter().flat_map(|case| &case.sessions);
    let launches = sessions().filter_map(|session| Some(format!("{}: {}", session.case, session.failure.as_ref()?)));
    let samples = sessions().flat_map(|session| session.samples.iter().map(move |sample| (&session.case, sample)));
    let answers = samples.filter_map(|(case, one)| Some(format!("{case}, {}: {}", one.prompt, one.failure.as_ref()?)));
    let mut lines: Vec<String> = launches.chain(answers).collect();
    lines.dedup();
    lines
}

fn prompts(bench: &Bench) -> Table {
    by_case(bench, "prompt|answer|>tokens|>pp|>tg|>first token|>gap: median|>95%|>longest", |case| {
        case.speed.iter().filter_map(|of| {
            let is_stream = of.mode == Mode::Stream;
            let streamed = |text: String| if is_stream { text } else { "–".to_string() };
            Some(row![
                of.prompt.as_ref()?,
                if is_stream { "streamed" } else { "whole" },
                of.generated_tokens.map_or(UNKNOWN.to_string(), |tokens| fixed(tokens.mean, 0)),
                Rate.spread(of.pp),
                Rate.spread(of.tg),
                streamed(Time.spread(of.first_token_seconds)),
                streamed(Time.spread(of.gap_median)),
                streamed(Time.spread(of.gap_p95)),
                streamed(of.gap_max.map_or(UNKNOWN.to_string(), seconds)),
            ])
        })
    })
}

fn savings(bench: &Bench) -> Table {
    let ratio = |ratio: Option<f64>| ratio.map_or(UNKNOWN.to_string(), |ratio| format!("{ratio:.2}×"));
    let rows = bench.savings.iter().map(|saving| {
        let sign = if saving.saved_bytes < 0 { "−" } else { "" };
        let percent = saving.saved_percent.map(|percent| format!("{}%", typeset(&fixed(percent, 1))));
        row![
            saving.baseline,
            saving.by,
            size(saving.bytes),
            size(saving.baseline_bytes),
            format!("{sign}{}", size(Bytes(saving.saved_bytes.unsigned_abs()))),
            percent.unwrap_or_default(),
            ratio(saving.tg_ratio),
            ratio(saving.pp_ratio),
        ]
    });
    Table::rows_of("baseline|by|>this|>baseline's|>saved|>|>tg|>pp", rows)
}

/// What was judged of a case: its streams, and the answer to each prompt.
fn judged(case: &Case) -> Vec<Item> {
    let named = |of: String, found: &[document::Item]| {
        items(found).into_iter().map(move |item| Item { what: format!("{of}: {}", item.what), ..item })
    };
    let answers = case.quality.iter().flat_map(|of| named(format!("{} prompt", of.prompt), &of.items));
    named("streams".into(), &case.stream).chain(answers).collect()
}

/// A check a line, a case a column.
fn verdicts(bench: &Bench, judged: &[Vec<Item>]) -> Table {
    let mut table = Table::of("");
    table.columns.extend(bench.cases.iter().map(|case| (case.name.clone(), false)));
    let mut seen: Vec<&str> = Vec::new();
    for what in judged.iter().flatten().map(|item| item.what.as_str()) {
        if seen.contains(&what) {
            continue;
        }
        seen.push(what);
        let word = |items: &Vec<Item>| match items.iter().find(|item| item.what == what).map(|item| item.verdict) {
            Some(Verdict::Bad) => "NO",
            Some(verdict) => verdict.look().word,
            None => "–",
        };
        table.row([what].into_iter().chain(judged.iter().map(word)));
    }
    table
}

fn figures(bench: &Bench, case: &Case) -> Vec<KeyFigure> {
    let row = overall(case);
    let saved = |saving: &Saving| {
        let percent = format!("{}%", typeset(&signed(-saving.saved_percent?, 1)));
        let by = format!("({} instead of {}, by {})", size(saving.bytes), size(saving.baseline_bytes), saving.by);
        Some(KeyFigure::new(&format!("Device memory compared with {}", saving.baseline), percent, by))
    };
    let speeds = [
        Rate.figure("Generation", row.tg, "tokens/s,"),
        Rate.figure("Prompt", row.pp, "tokens/s,"),
        Time.figure("First token", row.first_token_seconds, "in"),
    ];
    speeds.into_iter().flatten().chain(bench.savings.iter().filter_map(saved)).collect()
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
    of_sample: fn(&document::Sample) -> Option<f64>,
) -> Option<Block> {
    let entry = |case: &Case| {
        let row = overall(case);
        let samples = case.samples().filter(|sample| sample.mode == row.mode).filter_map(of_sample);
        Entry::measured(&case.name, of(&row), samples.collect())
    };
    chart(title, unit, bench.cases.iter().map(entry))
}

fn over_depth(bench: &Bench, title: &str, of: fn(&document::DepthRow) -> Option<Spread>) -> Option<Block> {
    let mut table = Table::of("case|>depth|>tokens/s");
    let mut series = Vec::new();
    for (at, case) in bench.cases.iter().enumerate() {
        let mut points = Vec::new();
        for (depth, spread) in case.depths.iter().filter_map(|row| Some((row.depth, of(row)?))) {
            table.row(row![case.name, thousands(depth.into()), Rate.spread(spread)]);
            points.push(Point { x: depth.into(), y: spread.mean, spread: (spread.n > 1).then_some(spread.stddev) });
        }
        series.extend((!points.is_empty()).then(|| Series { label: case.name.clone(), at, points }));
    }
    let (x, y) = ("tokens in the context before the prompt".into(), "tokens per second".into());
    let (prompt, generated) = (bench.settings.depth_prompt.into(), bench.settings.depth_generate.into());
    let text = format!(
        "Measured with prompts of {} and {} generated tokens; whiskers are one standard deviation.",
        thousands(prompt),
        thousands(generated)
    );
    Block::lines(title, text, Lines { x, y, series, ..Lines::default() }, table)
}

fn memories(bench: &Bench) -> Vec<Block> {
    let none = BTreeMap::new();
    let is_compared = |session: &&Session| !session.taken.predicted.is_empty() && !session.taken.memory.is_empty();
    let compared = bench.cases.iter().filter_map(|case| Some((case, case.sessions.iter().find(is_compared)?)));
    let compared: Vec<(&Case, &Session)> = compared.collect();
    let first = compared.first().map(|(case, session)| {
        let title = format!("Memory of {}, predicted beside measured", case.name);
        let Taken { memory: measured, predicted, mapped_span, .. } = &session.taken;
        memory::against(&title, predicted, measured, *mapped_span, &none)
    });
    let rows = compared.iter().map(|(case, session)| (case.name.as_str(), session.taken.comparison.as_slice()));
    let errors = errors(&rows.collect::<Vec<_>>());
    let seen = bench.cases.iter().filter_map(|case| Some((case.name.as_str(), with_memory(case)?)));
    let sides: Vec<Side<'_>> = seen.map(|(name, session)| (name, &session.taken.memory, Fill::Plain)).collect();
    let all = (sides.len() > 1).then(|| Block::Figure(memory::figure("Memory of every case, measured", &sides, &none)));
    first.into_iter().chain(errors).chain(all).collect()
}

fn items(items: &[document::Item]) -> Vec<Item> {
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
    let samples = session.into_iter().flat_map(|session| &session.samples);
    let answers = samples.filter(|sample| sample.mode == Mode::Stream && !sample.text.is_empty()).map(|sample| {
        let mut text: String = sample.text.chars().take(SHOWN).collect();
        if text.len() < sample.text.len() {
            text += "\n… (the rest is in the document)";
        }
        Block::Output(format!("Answer to the {} prompt", sample.prompt), text)
    });
    let answers: Vec<Block> = answers.collect();
    (!answers.is_empty()).then(|| Block::Heading("Replies".into())).into_iter().chain(answers).collect()
}

/// The gaps between tokens: the longest stream of the first case as a curve, every stream as a row.
fn gaps(bench: &Bench) -> Option<Block> {
    fn streams(case: &Case) -> impl Iterator<Item = (&document::Sample, &Gaps)> {
        case.samples().filter_map(|sample| Some((sample, sample.gaps.as_ref()?)))
    }
    let table = by_case(bench, "prompt|>median|>95% below|>longest|>gaps", |case| {
        streams(case).map(|(sample, gaps)| {
            let [median, p95, max] = [gaps.median, gaps.p95, gaps.max].map(seconds);
            row![sample.prompt, median, p95, max, gaps.all.len()]
        })
    });
    let case = bench.cases.first()?;
    let (sample, gaps) = streams(case).max_by_key(|(_, gaps)| gaps.all.len())?;
    let level = |name: &str, value: f64| (format!("{name} {}", seconds(value)), value * 1000.0);
    let lines = Lines {
        x: "gap, in the order of the stream".into(),
        y: "milliseconds to the next piece".into(),
        series: vec![Series { label: case.name.clone(), at: 0, points: points(&gaps.all) }],
        levels: vec![level("median", gaps.median), level("95% below", gaps.p95)],
        ..Lines::default()
    };
    let thinned = if gaps.all.len() > POINTS { " Only the longest of each stretch is drawn." } else { "" };
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

/// On what something was measured, and when, in a line.
fn about(environment: &Environment) -> String {
    let device = |device: &DeviceFacts| device.description.clone().unwrap_or_else(|| device.name.clone());
    let devices = environment.devices.iter().map(device);
    let build = environment.runtime.iter().map(|runtime| format!("llama.cpp b{}", runtime.build));
    dotted(devices.chain(build).chain(begun(environment)))
}

fn machine(environment: &Environment) -> Table {
    let threads = environment.processors.map(|n| format!("{n} threads"));
    let processor: Vec<String> = environment.processor.clone().into_iter().chain(threads).collect();
    let runtime = environment.runtime.as_ref();
    let runtime = runtime.map(|runtime| format!("{} b{} ({})", runtime.program, runtime.build, runtime.backend));
    let devices = environment.devices.iter().map(|DeviceFacts { name, description, total }| {
        let description = description.as_ref().map(|text| format!("{text}, ")).unwrap_or_default();
        (name.as_str(), Some(format!("{description}{total}")))
    });
    let computer = [
        ("system", environment.system.clone()),
        ("processor", Some(processor.join(", "))),
        ("main memory", environment.ram.map(|bytes| bytes.to_string())),
    ];
    let programs = [
        ("driver", environment.driver.clone()),
        ("runtime", runtime),
        ("endpoint", environment.endpoint.clone()),
        ("moeplan", Some(environment.moeplan.clone())),
        ("begun", begun(environment)),
    ];
    Table::facts(computer.into_iter().chain(devices).chain(programs))
}

fn facts(model: &ModelFacts) -> Table {
    let file_type = model.file_type.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    let (size, exact) = (model.file_bytes, thousands(model.file_bytes.0));
    let (all, active) = (parameters(model.parameters), parameters(model.active_parameters));
    let (experts, used, bytes) = (model.experts, model.experts_used, model.expert_bytes);
    Table::facts([
        ("file", Some(model.path.clone())),
        ("name", Some(model.name.clone().unwrap_or_else(|| "not stated".into()))),
        ("architecture", Some(model.architecture.clone())),
        ("size", Some(format!("{file_type}{size} ({exact} bytes)"))),
        ("header SHA-256", Some(model.header_sha256.clone().unwrap_or_else(|| UNKNOWN.into()))),
        ("parameters", Some(format!("{all}, {active} active per token"))),
        ("experts", (experts > 0).then(|| format!("{experts} per block, {used} used per token, {bytes}"))),
        ("shape", Some(format!("{}, {}", counted(model.blocks.into(), "block"), counted(model.tensors, "tensor")))),
    ])
}

/// When it began, as a date and a time.
fn begun(environment: &Environment) -> Option<String> {
    (environment.started > 0).then(|| utc(environment.started))
}

/// Seconds since 1970 as a date and a time (days to a civil date by the well-known era arithmetic).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
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

    #[test]
    fn dates_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_312_532, "2026-11-22 01:55 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
