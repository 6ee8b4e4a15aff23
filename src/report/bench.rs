//! A bench for people: what each case took, how fast it was, how sound its streams and how right its answers.

use super::table::{Align, Table};
use crate::cli::Format;
use crate::escape;
use crate::measurement::Spread;
use crate::memory::HOST;
use crate::suite::bench::on_devices;
use crate::suite::document::{Bench, Case, Item, Mode, Quality, Session, SpeedRow, Verdict};

/// As text or as Markdown.
pub fn render(bench: &Bench, format: Format) -> String {
    let page = Page { is_markdown: format == Format::Markdown };
    let mut out = page.title(1, &title(bench));
    out += &page.table(&cases(bench));
    let failures = failures(bench);
    out += &page.list(&failures);
    for (name, table) in [("Prompts", prompts(bench)), ("Depth", depths(bench)), ("Savings", savings(bench))] {
        if !table.is_empty() {
            out += &page.title(2, name);
            out += &page.table(&table);
        }
    }
    for (name, (table, failures)) in [("Streams", streams(bench)), ("Answers", answers(bench))] {
        if !table.is_empty() {
            out += &page.title(2, name);
            out += &page.table(&table);
            out += &page.list(&failures);
        }
    }
    let mut notes: Vec<String> = bench.notes.clone();
    notes.push(format!("weights: {}", bench.weights.basis));
    let mut seen: Vec<String> =
        bench.cases.iter().flat_map(|case| &case.sessions).flat_map(|s| s.notes.clone()).collect();
    seen.sort();
    seen.dedup();
    notes.extend(seen);
    out + &page.title(2, "Notes") + &page.list(&notes)
}

/// Text or Markdown.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Markdown rather than text.
    pub is_markdown: bool,
}

impl Page {
    /// A heading and a blank line.
    pub fn title(self, level: usize, text: &str) -> String {
        if self.is_markdown {
            format!("{} {}\n\n", "#".repeat(level), escape::markdown(text))
        } else {
            format!("{}\n", escape::terminal(text))
        }
    }

    /// A table and a blank line.
    pub fn table(self, table: &Table) -> String {
        if self.is_markdown { table.markdown() + "\n" } else { table.text() + "\n" }
    }

    /// A list and a blank line; nothing without lines.
    pub fn list(self, lines: &[String]) -> String {
        if lines.is_empty() {
            return String::new();
        }
        let line =
            |text: &String| if self.is_markdown { escape::markdown(text) } else { escape::terminal(text).into_owned() };
        let lines: Vec<String> = lines.iter().map(|text| format!("- {}", line(text))).collect();
        lines.join("\n") + "\n\n"
    }
}

fn title(bench: &Bench) -> String {
    let what = match (&bench.model, &bench.environment.endpoint) {
        (Some(model), _) => model.name.clone().unwrap_or_else(|| model.path.clone()),
        (None, Some(url)) => url.clone(),
        (None, None) => "a model".to_string(),
    };
    let runtime = bench.environment.runtime.as_ref().map(|runtime| format!(" on llama.cpp b{}", runtime.build));
    let times = bench.settings.repetitions;
    format!("Bench of {what}{}, {times} times", runtime.unwrap_or_default())
}

fn spread(value: Option<Spread>, digits: usize) -> String {
    match value {
        None => "unknown".to_string(),
        Some(Spread { mean, n: 1, .. }) => format!("{mean:.digits$}"),
        Some(Spread { mean, stddev, .. }) => format!("{mean:.digits$} ± {stddev:.digits$}"),
    }
}

/// Seconds as milliseconds.
fn milliseconds(value: Option<Spread>) -> String {
    let thousand = |value: Spread| Spread { mean: 1000.0 * value.mean, stddev: 1000.0 * value.stddev, ..value };
    spread(value.map(thousand), 1)
}

fn over_all(case: &Case) -> Option<&SpeedRow> {
    let row = |mode| case.speed.iter().find(|row| row.prompt.is_none() && row.mode == mode);
    row(Mode::Stream).or_else(|| row(Mode::Whole))
}

/// One line a case: over all prompts, streamed where they were.
fn cases(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("load s", Align::Right),
        ("devices", Align::Right),
        ("host", Align::Right),
        ("pp tokens/s", Align::Right),
        ("tg tokens/s", Align::Right),
        ("first token ms", Align::Right),
        ("total s", Align::Right),
    ]);
    for case in &bench.cases {
        let measured = case.sessions.iter().find(|session| !session.memory.is_empty());
        let devices = measured.and_then(on_devices).map_or("unknown".to_string(), |bytes| bytes.to_string());
        let host = measured.and_then(host_of).unwrap_or_else(|| "unknown".to_string());
        let speed = over_all(case);
        let loads = if case.command.is_some() { spread(case.load_seconds, 2) } else { "was up".to_string() };
        table.row([
            case.name.clone(),
            loads,
            devices,
            host,
            spread(speed.and_then(|row| row.pp), 1),
            spread(speed.and_then(|row| row.tg), 2),
            milliseconds(speed.and_then(|row| row.first_token_seconds)),
            spread(speed.and_then(|row| row.total_seconds), 2),
        ]);
    }
    table
}

fn host_of(session: &Session) -> Option<String> {
    let row = session.memory.get(HOST)?.terms;
    let own = row.model + row.context + row.compute;
    let mapped = session.mapped_span;
    Some(if mapped.0 > 0 { format!("{own}, {mapped} mapped") } else { own.to_string() })
}

fn failures(bench: &Bench) -> Vec<String> {
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

fn prompts(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("prompt", Align::Left),
        ("answer", Align::Left),
        ("tokens", Align::Right),
        ("pp tokens/s", Align::Right),
        ("tg tokens/s", Align::Right),
        ("first token ms", Align::Right),
        ("gap ms: median", Align::Right),
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
                spread(row.generated_tokens, 0),
                spread(row.pp, 1),
                spread(row.tg, 2),
                of_stream(milliseconds(row.first_token_seconds)),
                of_stream(milliseconds(row.gap_median)),
                of_stream(milliseconds(row.gap_p95)),
                of_stream(row.gap_max.map_or("unknown".to_string(), |gap| format!("{:.1}", 1000.0 * gap))),
            ]);
        }
    }
    table
}

fn depths(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("depth", Align::Right),
        ("pp tokens/s", Align::Right),
        ("tg tokens/s", Align::Right),
        ("first token ms", Align::Right),
    ]);
    for case in &bench.cases {
        for row in &case.depths {
            table.row([
                case.name.clone(),
                row.depth.to_string(),
                spread(row.pp, 1),
                spread(row.tg, 2),
                milliseconds(row.first_token_seconds),
            ]);
        }
    }
    table
}

fn savings(bench: &Bench) -> Table {
    let mut table = Table::new(&[
        ("beside", Align::Left),
        ("by", Align::Left),
        ("devices", Align::Right),
        ("baseline", Align::Right),
        ("saved", Align::Right),
        ("tg", Align::Right),
        ("pp", Align::Right),
    ]);
    for saving in &bench.savings {
        let ratio = |ratio: Option<f64>| ratio.map_or("unknown".to_string(), |ratio| format!("{ratio:.2}×"));
        table.row([
            saving.baseline.clone(),
            saving.by.clone(),
            saving.bytes.to_string(),
            saving.baseline_bytes.to_string(),
            saving.saved_percent.map_or("unknown".to_string(), |percent| format!("{percent:.1}%")),
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

/// The tables that sum a bench up: its cases, then savings and depths where there are any.
pub fn summary_tables(bench: &Bench) -> Vec<Table> {
    let tables = [cases(bench), savings(bench), depths(bench)];
    tables.into_iter().filter(|table| !table.is_empty()).collect()
}
