//! A bench document from its launches: speeds over repetitions, streams over prompts, savings beside baselines.

use std::collections::BTreeMap;

use super::document::{
    BENCH_SCHEMA, Bench, Case, DepthRow, Environment, Item, Mode, ModelFacts, Quality, Sample, Saving, Session,
    SpeedRow, Verdict, Weights,
};
use super::protocol::Suite;
use super::quality;
use crate::bytes::Bytes;
use crate::measurement::Spread;
use crate::memory::HOST;
use crate::memory::MemoryRow;
use crate::runtime::sandbox::Interpreter;
use crate::stats;

/// A case before it is summed up.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// Its name.
    pub name: String,
    /// What that means.
    pub what: String,
    /// The command to paste.
    pub command: Option<String>,
    /// Its launches.
    pub sessions: Vec<Session>,
}

/// What is known beside the cases.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What was asked.
    pub suite: &'a Suite,
    /// Where.
    pub environment: Environment,
    /// Which model.
    pub model: Option<ModelFacts>,
    /// Whether its weights are real.
    pub weights: Weights,
    /// What to know.
    pub notes: Vec<String>,
}

/// Sums everything up.
pub fn bench(facts: Facts<'_>, cases: Vec<Raw>, interpreter: &dyn Interpreter) -> Bench {
    let cases: Vec<Case> = cases.into_iter().map(|raw| case(raw, facts.suite, &facts.weights, interpreter)).collect();
    let mut environment = facts.environment;
    let ran = cases.iter().flat_map(|case| &case.sessions).find_map(|session| session.runtime.clone());
    environment.runtime = environment.runtime.or(ran);
    Bench {
        schema: BENCH_SCHEMA.to_string(),
        environment,
        model: facts.model,
        weights: facts.weights,
        settings: facts.suite.settings(),
        prompts: facts.suite.prompts(),
        savings: savings(&cases),
        cases,
        notes: facts.notes,
    }
}

fn case(raw: Raw, suite: &Suite, weights: &Weights, interpreter: &dyn Interpreter) -> Case {
    let samples: Vec<&Sample> = raw.sessions.iter().flat_map(|session| &session.samples).collect();
    let mut speed = Vec::new();
    for mode in [Mode::Whole, Mode::Stream] {
        let of_mode: Vec<&Sample> = samples.iter().copied().filter(|sample| sample.mode == mode).collect();
        for prompt in &suite.prompts {
            let of_prompt: Vec<&Sample> = of_mode.iter().copied().filter(|s| s.prompt == prompt.name).collect();
            speed.extend(speed_row(Some(prompt.name.clone()), mode, &of_prompt));
        }
        speed.extend(speed_row(None, mode, &of_mode));
    }
    let loads: Vec<f64> = raw.sessions.iter().filter_map(|session| session.load_seconds).collect();
    let judged = |prompt: &super::protocol::SuitePrompt| {
        let sample = samples.iter().find(|sample| sample.prompt == prompt.name)?;
        Some(quality::judge(prompt, sample, weights, interpreter))
    };
    let quality: Vec<Quality> = suite.prompts.iter().filter_map(judged).collect();
    Case {
        load_seconds: Spread::of(&loads),
        speed,
        depths: depths(&raw.sessions),
        stream: stream(&samples),
        quality,
        name: raw.name,
        what: raw.what,
        command: raw.command,
        sessions: raw.sessions,
    }
}

fn speed_row(prompt: Option<String>, mode: Mode, samples: &[&Sample]) -> Option<SpeedRow> {
    if samples.is_empty() {
        return None;
    }
    let spread = |figure: &dyn Fn(&Sample) -> Option<f64>| {
        Spread::of(&samples.iter().filter_map(|sample| figure(sample)).collect::<Vec<_>>())
    };
    let longest: Vec<f64> = samples.iter().filter_map(|sample| Some(sample.gaps.as_ref()?.max)).collect();
    Some(SpeedRow {
        prompt,
        mode,
        generated_tokens: spread(&|sample| sample.generated_tokens.map(f64::from)),
        pp: spread(&|sample| sample.pp),
        tg: spread(&|sample| sample.tg),
        first_token_seconds: spread(&|sample| sample.first_token_seconds),
        gap_median: spread(&|sample| Some(sample.gaps.as_ref()?.median)),
        gap_p95: spread(&|sample| Some(sample.gaps.as_ref()?.p95)),
        gap_max: stats::max(&longest),
        total_seconds: spread(&|sample| sample.failure.is_none().then_some(sample.total_seconds)),
    })
}

fn depths(sessions: &[Session]) -> Vec<DepthRow> {
    let mut by_depth = BTreeMap::<u32, Vec<_>>::new();
    for sample in sessions.iter().flat_map(|session| &session.depths) {
        by_depth.entry(sample.depth).or_default().push(sample);
    }
    let row = |(depth, samples): (u32, Vec<&super::document::DepthSample>)| DepthRow {
        depth,
        pp: Spread::of(&samples.iter().filter_map(|sample| sample.pp).collect::<Vec<_>>()),
        tg: Spread::of(&samples.iter().filter_map(|sample| sample.tg).collect::<Vec<_>>()),
        first_token_seconds: Spread::of(
            &samples.iter().filter_map(|sample| sample.first_token_seconds).collect::<Vec<_>>(),
        ),
    };
    by_depth.into_iter().map(row).collect()
}

/// Each check over all streams: it fails where one fails, with that one's detail and how many there are.
fn stream(samples: &[&Sample]) -> Vec<Item> {
    let mut by_check: Vec<(String, Vec<(&str, &Item)>)> = Vec::new();
    for sample in samples {
        for item in &sample.stream {
            match by_check.iter_mut().find(|(what, _)| *what == item.what) {
                Some((_, items)) => items.push((&sample.prompt, item)),
                None => by_check.push((item.what.clone(), vec![(&sample.prompt, item)])),
            }
        }
    }
    by_check.into_iter().map(|(what, items)| merged(what, &items)).collect()
}

fn merged(what: String, items: &[(&str, &Item)]) -> Item {
    let of = |verdict| items.iter().filter(|(_, item)| item.verdict == verdict).collect::<Vec<_>>();
    let all = items.len();
    for verdict in [Verdict::Fail, Verdict::Pass, Verdict::NotAssessed] {
        let found = of(verdict);
        if let Some((prompt, item)) = found.first() {
            let detail = format!("{} of {all} streams; {prompt}: {}", found.len(), item.detail);
            return Item { what, verdict, detail };
        }
    }
    Item { what, verdict: Verdict::Skipped, detail: "no stream was run".to_string() }
}

/// What the devices of a session hold by llama.cpp's own sums; `None` where nothing was measured.
pub fn on_devices(session: &Session) -> Option<Bytes> {
    let own = |row: &MemoryRow| row.terms.own();
    let is_device = |name: &str| name != HOST && !name.starts_with("CPU") && !name.ends_with("_Host");
    if session.memory.is_empty() {
        return None;
    }
    Some(session.memory.iter().filter(|(name, _)| is_device(name)).map(|(_, row)| own(row)).sum())
}

fn by_driver(session: &Session) -> Option<Bytes> {
    (!session.device_used.is_empty()).then(|| session.device_used.values().copied().sum())
}

/// What is compared, and by whom it was measured.
type Figure = (&'static str, fn(&Session) -> Option<Bytes>);

/// The first case beside every other, where both were measured.
fn savings(cases: &[Case]) -> Vec<Saving> {
    let Some((first, others)) = cases.split_first() else { return Vec::new() };
    let figures: [Figure; 2] = [("llama.cpp", on_devices), ("driver", by_driver)];
    let measured = |case: &Case, figure: fn(&Session) -> Option<Bytes>| {
        case.sessions.iter().filter(|session| session.failure.is_none()).find_map(figure)
    };
    let mut savings = Vec::new();
    for other in others {
        for (by, figure) in figures {
            if let (Some(bytes), Some(baseline_bytes)) = (measured(first, figure), measured(other, figure)) {
                savings.push(saving(first, other, by, bytes, baseline_bytes));
            }
        }
    }
    savings
}

fn saving(first: &Case, other: &Case, by: &str, bytes: Bytes, baseline_bytes: Bytes) -> Saving {
    let saved = i128::from(baseline_bytes.0) - i128::from(bytes.0);
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let percent = (baseline_bytes.0 > 0).then(|| 100.0 * saved as f64 / baseline_bytes.0 as f64);
    let overall = |case: &Case, figure: fn(&SpeedRow) -> Option<Spread>| {
        let row = case.speed.iter().find(|row| row.prompt.is_none() && row.mode == Mode::Stream)?;
        Some(figure(row)?.mean).filter(|mean| *mean > 0.0)
    };
    let ratio = |figure: fn(&SpeedRow) -> Option<Spread>| Some(overall(first, figure)? / overall(other, figure)?);
    Saving {
        baseline: other.name.clone(),
        by: by.to_string(),
        bytes,
        baseline_bytes,
        saved_bytes: i64::try_from(saved).unwrap_or(if saved < 0 { i64::MIN } else { i64::MAX }),
        saved_percent: percent,
        tg_ratio: ratio(|row| row.tg),
        pp_ratio: ratio(|row| row.pp),
    }
}

/// The tables as comma-separated values (RFC 4180): a line an answer, then a line a point of the depth sweep. What is not
/// known is empty.
pub fn csv(bench: &Bench) -> String {
    let mut out = String::from(
        "case,repetition,kind,prompt,depth,prompt_tokens,generated_tokens,tokens_by,pp_tokens_per_s,tg_tokens_per_s,\
         speed_by,first_token_s,gap_median_s,gap_p95_s,gap_max_s,total_s,finish_reason,failure\r\n",
    );
    for case in &bench.cases {
        for session in &case.sessions {
            let head = [case.name.clone(), session.repetition.to_string()];
            for sample in &session.samples {
                line(&mut out, head.iter().cloned().chain(sample_cells(sample)));
            }
            for depth in &session.depths {
                let mut cells = vec!["depth".to_string(), String::new(), depth.depth.to_string()];
                cells.extend([depth.prompt_tokens.to_string(), depth.generated_tokens.to_string(), "runtime".into()]);
                cells.extend([shown(depth.pp), shown(depth.tg), "runtime".into(), shown(depth.first_token_seconds)]);
                cells.extend(std::iter::repeat_n(String::new(), 6));
                line(&mut out, head.iter().cloned().chain(cells));
            }
            if session.samples.is_empty() && session.depths.is_empty() {
                let mut cells = vec![String::new(); 15];
                cells.push(session.failure.clone().unwrap_or_default());
                line(&mut out, head.iter().cloned().chain(cells));
            }
        }
    }
    out
}

fn shown(value: Option<f64>) -> String {
    value.map(|value| format!("{value:.6}")).unwrap_or_default()
}

fn sample_cells(sample: &Sample) -> Vec<String> {
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let count = |value: Option<u32>| value.map(|value| value.to_string()).unwrap_or_default();
    let gap = |figure: fn(&super::document::Gaps) -> f64| shown(sample.gaps.as_ref().map(figure));
    vec![
        word(serde_json::json!(sample.mode)),
        sample.prompt.clone(),
        String::new(),
        count(sample.prompt_tokens),
        count(sample.generated_tokens),
        word(serde_json::json!(sample.tokens_by)),
        shown(sample.pp),
        shown(sample.tg),
        word(serde_json::json!(sample.speed_by)),
        shown(sample.first_token_seconds),
        gap(|gaps| gaps.median),
        gap(|gaps| gaps.p95),
        gap(|gaps| gaps.max),
        shown(Some(sample.total_seconds)),
        sample.finish_reason.clone().unwrap_or_default(),
        sample.failure.clone().unwrap_or_default(),
    ]
}

/// One line; text that a spreadsheet would take for a formula gets an apostrophe before it.
fn line(out: &mut String, cells: impl Iterator<Item = String>) {
    let cell = |cell: String| {
        let is_formula = cell.starts_with(['=', '+', '-', '@', '\t']) && cell.parse::<f64>().is_err();
        let cell = if is_formula { format!("'{cell}") } else { cell };
        let needs_quotes = cell.contains(['"', ',', '\n', '\r']);
        if needs_quotes { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    out.push_str(&cells.map(cell).collect::<Vec<_>>().join(","));
    out.push_str("\r\n");
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;
