//! A bench for people: what each case took, how fast it was, how sound its streams and how right its answers.

use super::page::memory::size;
use super::page::speed::Unit;
use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::escape;
use crate::measurement::Spread;
use crate::memory::HOST;
use crate::number::{fixed, seconds, typeset};
use crate::suite::bench::on_devices;
use crate::suite::document::{Bench, Case, Item, Mode, Quality, Session, SpeedRow, Verdict};

/// What stands where nothing was measured.
const UNKNOWN: &str = "not known";

/// For a terminal; a page of it is `page::of`.
pub fn render(bench: &Bench) -> String {
    let mut out = heading(&title(bench)) + &cases(bench).text() + "\n" + &list(&failures(bench));
    for (name, table) in [("Prompts", prompts(bench)), ("Depth", depths(bench)), ("Savings", savings(bench))] {
        if !table.is_empty() {
            out += &(heading(name) + &table.text() + "\n");
        }
    }
    for (name, (table, failures)) in [("Streams", streams(bench)), ("Answers", answers(bench))] {
        if !table.is_empty() {
            out += &(heading(name) + &table.text() + "\n" + &list(&failures));
        }
    }
    let weights = format!("weights: {}", bench.weights.basis);
    let notes: Vec<String> = notes(bench).into_iter().chain([weights]).collect();
    out + &heading("Notes") + &list(&notes)
}

/// The tables that sum a bench up: its cases, then savings and depths where there are any.
pub fn summary(bench: &Bench) -> String {
    let tables = [cases(bench), savings(bench), depths(bench)];
    tables.iter().filter(|table| !table.is_empty()).map(|table| table.text() + "\n").collect()
}

/// A heading and a line feed.
pub fn heading(text: &str) -> String {
    format!("{}\n", escape::terminal(text))
}

/// A list and a blank line; nothing without lines.
fn list(lines: &[String]) -> String {
    let line = |text: &String| format!("- {}\n", escape::terminal(text));
    if lines.is_empty() { String::new() } else { lines.iter().map(line).collect::<String>() + "\n" }
}

/// What to know of it: its own notes, then those of its launches, each once.
pub fn notes(bench: &Bench) -> Vec<String> {
    let mut seen: Vec<String> =
        bench.cases.iter().flat_map(|case| &case.sessions).flat_map(|session| session.notes.clone()).collect();
    seen.sort();
    seen.dedup();
    bench.notes.iter().cloned().chain(seen).collect()
}

fn title(bench: &Bench) -> String {
    let what = match (&bench.model, &bench.environment.endpoint) {
        (Some(model), _) => model.name.clone().unwrap_or_else(|| model.path.clone()),
        (None, Some(url)) => url.clone(),
        (None, None) => "a model".to_string(),
    };
    let runtime = bench.environment.runtime.as_ref().map(|runtime| format!(" on llama.cpp b{}", runtime.build));
    format!("Bench of {what}{}, {}", runtime.unwrap_or_default(), asked(bench))
}

/// How often it was asked, and how long answers may be.
pub fn asked(bench: &Bench) -> String {
    let times = format!("{} times", bench.settings.repetitions);
    let most = || bench.prompts.iter().map(|prompt| prompt.max_tokens);
    match (most().min(), most().max()) {
        (Some(low), Some(high)) if low == high => format!("{times}, answers of at most {high} tokens"),
        (Some(low), Some(high)) => format!("{times}, answers of at most {low} to {high} tokens"),
        _ => times,
    }
}

/// A mean and its spread, or that nobody knows it.
fn shown(value: Option<Spread>, unit: Unit) -> String {
    value.map_or_else(|| UNKNOWN.to_string(), |value| unit.spread(value))
}

/// Tokens per second.
fn rate(value: Option<Spread>) -> String {
    shown(value, Unit::TokensPerSecond)
}

/// Seconds.
fn time(value: Option<Spread>) -> String {
    shown(value, Unit::Seconds)
}

/// The row over all prompts: of streams where there are any.
pub fn overall(case: &Case) -> Option<&SpeedRow> {
    let row = |mode| case.speed.iter().find(|row| row.prompt.is_none() && row.mode == mode);
    row(Mode::Stream).or_else(|| row(Mode::Whole))
}

/// One line a case: over all prompts, streamed where they were.
pub fn cases(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("load", Align::Right),
        ("devices", Align::Right),
        ("host", Align::Right),
        ("pp", Align::Right),
        ("tg", Align::Right),
        ("first token", Align::Right),
        ("in all", Align::Right),
    ]);
    for case in &bench.cases {
        let measured = case.sessions.iter().find(|session| !session.memory.is_empty());
        let devices = measured.and_then(on_devices).map_or(UNKNOWN.to_string(), size);
        let host = measured.and_then(host_of).unwrap_or_else(|| UNKNOWN.to_string());
        let speed = overall(case);
        let loads = if case.command.is_some() { time(case.load_seconds) } else { "was up".to_string() };
        table.row([
            case.name.clone(),
            loads,
            devices,
            host,
            rate(speed.and_then(|row| row.pp)),
            rate(speed.and_then(|row| row.tg)),
            time(speed.and_then(|row| row.first_token_seconds)),
            time(speed.and_then(|row| row.total_seconds)),
        ]);
    }
    table
}

fn host_of(session: &Session) -> Option<String> {
    let row = session.memory.get(HOST)?.terms;
    let own = row.model + row.context + row.compute;
    let mapped = session.mapped_span;
    Some(if mapped.0 > 0 { format!("{}, {mapped} mapped", size(own)) } else { size(own) })
}

/// Why launches and answers failed.
pub fn failures(bench: &Bench) -> Vec<String> {
    let line = |session: &Session| Some(format!("{}: {}", session.case, session.failure.as_ref()?));
    let mut lines: Vec<String> = bench.cases.iter().flat_map(|case| &case.sessions).filter_map(line).collect();
    let of_samples = |session: &Session| -> Vec<String> {
        let failed = session.samples.iter().filter_map(|sample| Some((sample, sample.failure.as_ref()?)));
        failed.map(|(sample, why)| format!("{}, {}: {why}", session.case, sample.prompt)).collect()
    };
    lines.extend(bench.cases.iter().flat_map(|case| &case.sessions).flat_map(of_samples));
    lines.dedup();
    lines
}

/// Every prompt of every case, whole and streamed.
pub fn prompts(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("prompt", Align::Left),
        ("answer", Align::Left),
        ("tokens", Align::Right),
        ("pp", Align::Right),
        ("tg", Align::Right),
        ("first token", Align::Right),
        ("gap: median", Align::Right),
        ("95%", Align::Right),
        ("longest", Align::Right),
    ]);
    for case in &bench.cases {
        for row in case.speed.iter().filter(|row| row.prompt.is_some()) {
            let is_stream = row.mode == Mode::Stream;
            let of_stream = |text: String| if is_stream { text } else { "–".to_string() };
            table.row([
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
            ]);
        }
    }
    table
}

fn depths(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("depth", Align::Right),
        ("pp", Align::Right),
        ("tg", Align::Right),
        ("first token", Align::Right),
    ]);
    for case in &bench.cases {
        for row in &case.depths {
            table.row([
                case.name.clone(),
                row.depth.to_string(),
                rate(row.pp),
                rate(row.tg),
                time(row.first_token_seconds),
            ]);
        }
    }
    table
}

/// What the first case takes less than its baselines, and what that costs.
pub fn savings(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("baseline", Align::Left),
        ("by", Align::Left),
        ("this", Align::Right),
        ("baseline's", Align::Right),
        ("saved", Align::Right),
        ("", Align::Right),
        ("tg", Align::Right),
        ("pp", Align::Right),
    ]);
    for saving in &bench.savings {
        let ratio = |ratio: Option<f64>| ratio.map_or(UNKNOWN.to_string(), |ratio| format!("{ratio:.2}×"));
        table.row([
            saving.baseline.clone(),
            saving.by.clone(),
            size(saving.bytes),
            size(saving.baseline_bytes),
            format!(
                "{}{}",
                if saving.saved_bytes < 0 { "−" } else { "" },
                size(Bytes(saving.saved_bytes.unsigned_abs()))
            ),
            saving.saved_percent.map(|percent| format!("{}%", typeset(&fixed(percent, 1)))).unwrap_or_default(),
            ratio(saving.tg_ratio),
            ratio(saving.pp_ratio),
        ]);
    }
    table
}

/// A verdict as a word.
pub fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "yes",
        Verdict::Fail => "NO",
        Verdict::NotAssessed => "not assessed",
        Verdict::Skipped => "skipped",
    }
}

/// A check a line, a case a column; what failed is told in full beneath.
fn streams(bench: &Bench) -> (Table, Vec<String>) {
    let rows = |case: &Case| case.stream.iter().map(|item| (item.what.clone(), item.verdict)).collect();
    let failures = bench.cases.iter().flat_map(|case| failing(&case.name, &case.stream)).collect();
    (grid(bench, "stream", &rows), failures)
}

fn answers(bench: &Bench) -> (Table, Vec<String>) {
    let rows = |case: &Case| {
        let of = |quality: &Quality| -> Vec<(String, Verdict)> {
            let line = |item: &Item| (format!("{}: {}", quality.prompt, item.what), item.verdict);
            quality.items.iter().map(line).collect()
        };
        case.quality.iter().flat_map(of).collect()
    };
    let told = |case: &Case| -> Vec<String> {
        let of = |quality: &Quality| failing(&format!("{}, {}", case.name, quality.prompt), &quality.items);
        case.quality.iter().flat_map(of).collect()
    };
    (grid(bench, "answer", &rows), bench.cases.iter().flat_map(told).collect())
}

fn failing(of: &str, items: &[Item]) -> Vec<String> {
    let failed = items.iter().filter(|item| item.verdict == Verdict::Fail);
    failed.map(|item| format!("{of}: {}: {}", item.what, item.detail)).collect()
}

fn grid(bench: &Bench, name: &str, rows: &dyn Fn(&Case) -> Vec<(String, Verdict)>) -> Table {
    let mut columns = vec![(name, Align::Left)];
    columns.extend(bench.cases.iter().map(|case| (case.name.as_str(), Align::Left)));
    let mut table = Table::new(&columns);
    let by_case: Vec<Vec<(String, Verdict)>> = bench.cases.iter().map(rows).collect();
    let mut whats: Vec<&String> = Vec::new();
    for (what, _) in by_case.iter().flatten() {
        if !whats.contains(&what) {
            whats.push(what);
        }
    }
    for what in whats {
        let verdict = |rows: &Vec<(String, Verdict)>| {
            let found = rows.iter().find(|(known, _)| known == what);
            found.map_or("–", |(_, verdict)| word(*verdict)).to_string()
        };
        table.row([what.clone()].into_iter().chain(by_case.iter().map(verdict)));
    }
    table
}
