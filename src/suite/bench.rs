//! A bench: its cases launched in turn, speeds over repetitions, streams over prompts, savings beside baselines.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::document::{
    BENCH_SCHEMA, Bench, Case, Clock, DepthRow, DepthSample, Environment, Gaps, Item, Mode, ModelFacts, Sample, Saving,
    Session, SpeedRow, Verdict, Weights,
};
use super::protocol::Suite;
use super::quality;
use crate::bytes::Bytes;
use crate::memory::HOST;
use crate::runtime::sandbox::{self, Outcome};
use crate::runtime::{Error, Kind};
use crate::stats;
use crate::stats::Spread;

impl Bench {
    pub fn new(suite: &Suite, environment: Environment, model: Option<ModelFacts>, weights: Weights) -> Self {
        let (settings, prompts) = (suite.settings(), suite.prompts.clone());
        let schema = BENCH_SCHEMA.to_string();
        Self { schema, environment, model, weights, settings, prompts, ..Self::default() }
    }

    /// Launches every case, by its number, as often as the settings say, so that what changes over time changes for all: every
    /// case once, then every case again, another one first in each round. `each` is told after every launch. A case that could
    /// not be launched at all is not tried again. Whether it was interrupted; what was measured before is in it. Code is run at the
    /// end alone.
    pub fn run(&mut self, launch: &mut dyn FnMut(usize, u32) -> Session, each: &mut dyn FnMut(&Self)) -> bool {
        let n = self.cases.len();
        for (first, repetition) in (1..=self.settings.repetitions.max(1)).enumerate() {
            for at in (0..n).map(|at| (first + at) % n) {
                let so_far = &mut self.cases[at];
                if so_far.sessions.iter().any(|session| session.failure.is_some() && session.samples.is_empty()) {
                    continue;
                }
                let session = launch(at, repetition);
                let is_interrupted = session.is_interrupted;
                so_far.sessions.extend(Some(session).filter(|it| !is_interrupted || !it.samples.is_empty()));
                self.sum_up(false);
                if is_interrupted {
                    self.notes.push("interrupted: this is what was measured up to then".to_string());
                    return true;
                }
                each(self);
            }
        }
        self.sum_up(true);
        false
    }

    /// Makes every figure that follows from the sessions. Code of answers is run where the bench is over.
    pub fn sum_up(&mut self, is_over: bool) {
        let run_code = |code: &str, function: &str| {
            if is_over {
                return sandbox::run(code, function, quality::FIBONACCI);
            }
            Outcome::Unavailable("the bench is not over".to_string())
        };
        for case in &mut self.cases {
            let samples: Vec<&Sample> = case.samples().collect();
            let mut speed = Vec::new();
            for mode in [Mode::Whole, Mode::Stream] {
                let prompts = self.prompts.iter().map(|prompt| Some(prompt.name.as_str()));
                speed.extend(prompts.chain([None]).filter_map(|prompt| speed_row(prompt, mode, &samples)));
            }
            let judged = self.prompts.iter().filter_map(|prompt| {
                let first = samples.iter().find(|sample| sample.prompt == prompt.name)?;
                Some(quality::judge(prompt, first, &self.weights, &run_code))
            });
            let (quality, stream) = (judged.collect(), stream(&samples));
            (case.speed, case.quality, case.stream) = (speed, quality, stream);
            case.load_seconds = spread(&case.sessions, |session| session.load_seconds);
            case.depths = depths(&case.sessions);
        }
        let ran = self.cases.iter().flat_map(|case| &case.sessions).find_map(|session| session.runtime.clone());
        self.environment.runtime = self.environment.runtime.take().or(ran);
        self.savings = savings(&self.cases);
    }
}

/// The error of benches that did not measure anything, with the first reason; `None` where something was measured, or nothing tried.
pub fn nothing_measured<'a>(benches: impl IntoIterator<Item = &'a Bench>) -> Option<Error> {
    let mut first = None;
    for session in benches.into_iter().flat_map(|bench| &bench.cases).flat_map(|case| &case.sessions) {
        let why = session.failure.as_ref().filter(|_| session.samples.is_empty())?;
        first.get_or_insert((why, session.trouble.as_ref().and_then(|trouble| trouble.hint.clone())));
    }
    let (why, hint) = first?;
    let error = Error::new(Kind::Setup, format!("nothing was measured: {why}"));
    Some(match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}

fn spread<'a, T: 'a>(of: impl IntoIterator<Item = &'a T>, figure: impl Fn(&T) -> Option<f64>) -> Option<Spread> {
    Spread::of(&of.into_iter().filter_map(figure).collect::<Vec<_>>())
}

/// Of one prompt, or of all.
fn speed_row(prompt: Option<&str>, mode: Mode, samples: &[&Sample]) -> Option<SpeedRow> {
    let is_of_row = |s: &&&Sample| s.mode == mode && prompt.is_none_or(|prompt| s.prompt == prompt);
    let samples: Vec<&Sample> = samples.iter().filter(is_of_row).copied().collect();
    if samples.is_empty() {
        return None;
    }
    let spread = |figure: &dyn Fn(&Sample) -> Option<f64>| spread(samples.iter().copied(), figure);
    let longest: Vec<f64> = samples.iter().filter_map(|sample| Some(sample.gaps.as_ref()?.max)).collect();
    Some(SpeedRow {
        prompt: prompt.map(str::to_string),
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
    let mut by_depth = BTreeMap::<u32, Vec<&DepthSample>>::new();
    for sample in sessions.iter().flat_map(|session| &session.depths) {
        by_depth.entry(sample.depth).or_default().push(sample);
    }
    let row = |(depth, samples): (u32, Vec<&DepthSample>)| DepthRow {
        depth,
        pp: spread(samples.iter().copied(), |sample| sample.pp),
        tg: spread(samples.iter().copied(), |sample| sample.tg),
        first_token_seconds: spread(samples.iter().copied(), |sample| sample.first_token_seconds),
    };
    by_depth.into_iter().map(row).collect()
}

/// Each check over all streams: it fails where one fails, with that one's detail and how many there are.
fn stream(samples: &[&Sample]) -> Vec<Item> {
    let mut checks: Vec<&str> = Vec::new();
    for item in samples.iter().flat_map(|sample| &sample.stream) {
        if !checks.contains(&item.what.as_str()) {
            checks.push(&item.what);
        }
    }
    let merged = |what: &str| {
        let items = samples.iter().flat_map(|s| s.stream.iter().map(|item| (s.prompt.as_str(), item)));
        let items: Vec<(&str, &Item)> = items.filter(|(_, item)| item.what == what).collect();
        let with = |verdict| items.iter().filter(move |(_, item)| item.verdict == verdict);
        let verdicts = [Verdict::Fail, Verdict::Pass, Verdict::NotAssessed];
        let found = verdicts.into_iter().find_map(|verdict| Some((verdict, with(verdict).next()?)));
        found.map_or_else(
            || Item::skipped(what, "no stream was run"),
            |(verdict, (prompt, item))| {
                let detail = format!("{} of {} streams; {prompt}: {}", with(verdict).count(), items.len(), item.detail);
                Item::new(what, verdict, detail)
            },
        )
    };
    checks.into_iter().map(merged).collect()
}

/// What the devices of a session hold by llama.cpp's own sums; `None` where nothing was measured.
pub fn on_devices(session: &Session) -> Option<Bytes> {
    let is_device = |name: &str| name != HOST && !name.starts_with("CPU") && !name.ends_with("_Host");
    let rows = session.taken.memory.iter().filter(|(name, _)| is_device(name));
    (!session.taken.memory.is_empty()).then(|| rows.map(|(_, row)| row.terms.own()).sum())
}

fn by_driver(session: &Session) -> Option<Bytes> {
    (!session.taken.device_used.is_empty()).then(|| session.taken.device_used.values().copied().sum())
}

type Figure = fn(&Session) -> Option<Bytes>;

/// The first case beside every other, where both were measured.
fn savings(cases: &[Case]) -> Vec<Saving> {
    let Some((first, others)) = cases.split_first() else { return Vec::new() };
    let overall = |case: &Case, figure: fn(&SpeedRow) -> Option<Spread>| {
        let row = case.speed.iter().find(|row| row.prompt.is_none() && row.mode == Mode::Stream)?;
        Some(figure(row)?.mean).filter(|mean| *mean > 0.0)
    };
    let mut savings = Vec::new();
    for other in others {
        let ratio = |figure| Some(overall(first, figure)? / overall(other, figure)?);
        let figures: [(&str, Figure); 2] = [("llama.cpp", on_devices), ("driver", by_driver)];
        for (by, figure) in figures {
            let measured =
                |case: &Case| case.sessions.iter().filter(|session| session.failure.is_none()).find_map(figure);
            let (Some(bytes), Some(baseline_bytes)) = (measured(first), measured(other)) else { continue };
            let saved = i128::from(baseline_bytes.0) - i128::from(bytes.0);
            #[expect(clippy::cast_precision_loss, reason = "a percentage")]
            let percent = (baseline_bytes.0 > 0).then(|| 100.0 * saved as f64 / baseline_bytes.0 as f64);
            savings.push(Saving {
                baseline: other.name.clone(),
                by: by.to_string(),
                bytes,
                baseline_bytes,
                // No device holds 2^63 bytes.
                saved_bytes: i64::try_from(saved).unwrap_or(if saved < 0 { i64::MIN } else { i64::MAX }),
                saved_percent: percent,
                tg_ratio: ratio(|row| row.tg),
                pp_ratio: ratio(|row| row.pp),
            });
        }
    }
    savings
}

const COLUMNS: &str = "case,repetition,kind,prompt,depth,prompt_tokens,generated_tokens,tokens_by,pp_tokens_per_s,\
    tg_tokens_per_s,speed_by,first_token_s,gap_median_s,gap_p95_s,gap_max_s,total_s,finish_reason,failure";

/// The tables as comma-separated values (RFC 4180): a line an answer, then a line a point of the depth sweep. What is not
/// known is empty.
pub fn csv(bench: &Bench) -> String {
    let mut out = COLUMNS.to_string() + "\r\n";
    let sessions = bench.cases.iter().flat_map(|case| case.sessions.iter().map(move |session| (case, session)));
    for (case, session) in sessions {
        let samples = session.samples.iter().map(|s| {
            let gap = |figure: fn(&Gaps) -> f64| s.gaps.as_ref().map(figure);
            json!({
                "kind": s.mode, "prompt": s.prompt, "prompt_tokens": s.prompt_tokens, "generated_tokens": s.generated_tokens,
                "tokens_by": s.tokens_by, "pp_tokens_per_s": s.pp, "tg_tokens_per_s": s.tg, "speed_by": s.speed_by,
                "first_token_s": s.first_token_seconds, "gap_median_s": gap(|gaps| gaps.median), "gap_p95_s": gap(|gaps| gaps.p95),
                "gap_max_s": gap(|gaps| gaps.max), "total_s": s.total_seconds, "finish_reason": s.finish_reason,
                "failure": s.failure,
            })
        });
        let depths = session.depths.iter().map(|at| {
            json!({
                "kind": "depth", "depth": at.depth, "prompt_tokens": at.prompt_tokens, "generated_tokens": at.generated_tokens,
                "tokens_by": Clock::Runtime, "pp_tokens_per_s": at.pp, "tg_tokens_per_s": at.tg, "speed_by": Clock::Runtime,
                "first_token_s": at.first_token_seconds,
            })
        });
        let mut rows: Vec<Value> = samples.chain(depths).collect();
        if rows.is_empty() {
            rows.push(json!({ "failure": session.failure }));
        }
        for mut row in rows {
            (row["case"], row["repetition"]) = (json!(case.name), json!(session.repetition));
            let cells: Vec<String> = COLUMNS.split(',').map(|column| cell(&row[column])).collect();
            out += &(cells.join(",") + "\r\n");
        }
    }
    out
}

/// Text that a spreadsheet would take for a formula gets an apostrophe before it.
fn cell(value: &Value) -> String {
    let cell = match value {
        Value::String(text) if text.starts_with(['=', '+', '-', '@', '\t']) => format!("'{text}"),
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            number.as_f64().filter(|_| number.is_f64()).map_or(number.to_string(), |n| format!("{n:.6}"))
        }
        _ => String::new(),
    };
    let needs_quotes = cell.contains(['"', ',', '\n', '\r']);
    if needs_quotes { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::Taken;
    use crate::memory::{MemoryBreakdown, MemoryRow};

    fn sample(prompt: &str, mode: Mode, tg: f64, verdict: Verdict) -> Sample {
        Sample {
            prompt: prompt.into(),
            mode,
            prompt_tokens: Some(9),
            generated_tokens: Some(50),
            pp: Some(100.0),
            tg: Some(tg),
            first_token_seconds: Some(0.1),
            gaps: Some(Gaps { median: 0.01, p95: 0.02, max: tg / 100.0, all: vec![0.01] }),
            total_seconds: 1.0,
            stream: (mode == Mode::Stream).then(|| Item::new("it ends", verdict, tg.to_string())).into_iter().collect(),
            ..Sample::default()
        }
    }

    fn session(repetition: u32, device: u64, tg: f64) -> Session {
        let row = |model| MemoryRow::from(MemoryBreakdown { model: Bytes(model), ..MemoryBreakdown::default() });
        let pp = Some(10.0 * f64::from(repetition));
        let last = if repetition == 2 { Verdict::Fail } else { Verdict::Pass };
        Session {
            repetition,
            load_seconds: Some(f64::from(repetition)),
            taken: Taken {
                memory: BTreeMap::from([("CUDA0".into(), row(device)), ("Host".into(), row(1000))]),
                ..Taken::default()
            },
            samples: vec![
                sample("code", Mode::Whole, tg, Verdict::Pass),
                sample("code", Mode::Stream, tg, Verdict::Pass),
                sample("creative", Mode::Stream, 2.0 * tg, last),
            ],
            depths: vec![DepthSample {
                depth: 256,
                prompt_tokens: 64,
                generated_tokens: 8,
                pp,
                ..DepthSample::default()
            }],
            ..Session::default()
        }
    }

    fn measured() -> Bench {
        let suite = Suite::protocol();
        let case = |name: &str, sessions| Case { name: name.into(), sessions, ..Case::default() };
        let failed = Session { repetition: 1, failure: Some("out, of \"memory\"".into()), ..Session::default() };
        let weights = Weights { synthetic: Some(true), basis: "a test".into() };
        let mut bench = Bench::new(&suite, Environment::default(), None, weights);
        bench.cases = vec![
            case("experts-on-host", vec![session(1, 250, 10.0), session(2, 250, 20.0)]),
            case("all-on-device", vec![session(1, 1000, 60.0)]),
            case("fit", vec![failed]),
        ];
        bench.sum_up(false);
        bench
    }

    #[test]
    fn sessions_are_summed_up() {
        let bench = measured();
        let case = &bench.cases[0];
        assert_eq!(case.load_seconds.map(|load| (load.mean, load.n)), Some((1.5, 2)));
        let row = |prompt: Option<&str>| {
            case.speed.iter().find(|row| row.prompt.as_deref() == prompt && row.mode == Mode::Stream).unwrap()
        };
        assert_eq!((row(Some("code")).tg, row(None).gap_max), (Spread::of(&[10.0, 20.0]), Some(0.4)));
        assert_eq!(row(None).tg, Spread::of(&[10.0, 20.0, 20.0, 40.0]));
        assert_eq!((case.depths[0].pp, case.depths[0].tg), (Spread::of(&[10.0, 20.0]), None));
        // One bad stream fails the check with its detail.
        let stream: Vec<_> = case.stream.iter().map(|item| (item.verdict, item.detail.as_str())).collect();
        assert_eq!(stream, [(Verdict::Fail, "1 of 4 streams; creative: 40")]);
        assert!(case.quality.len() == 2 && case.quality.iter().all(|it| it.verdict == Verdict::NotAssessed));
        // A case that failed is no baseline.
        let [saving] = bench.savings.as_slice() else { panic!("{:?}", bench.savings) };
        assert_eq!((saving.baseline.as_str(), saving.by.as_str()), ("all-on-device", "llama.cpp"));
        assert_eq!((saving.bytes, saving.baseline_bytes, saving.saved_bytes), (Bytes(250), Bytes(1000), 750));
        assert_eq!((saving.saved_percent, saving.tg_ratio), (Some(75.0), Some(22.5 / 90.0)));
    }

    #[test]
    fn the_table_has_a_line_for_everything() {
        let table = csv(&measured());
        assert_eq!(table.split("\r\n").count(), 1 + 3 * 3 + 3 + 1 + 1);
        let plain = table.replace("\"out, of \"\"memory\"\"\"", "x");
        assert!(plain.lines().all(|line| line.matches(',').count() == 17), "{table}");
        assert!(table.contains("all-on-device,1,stream,creative,,9,50,,100.000000,120.000000,,0.100000,"), "{table}");
        assert!(table.contains(",depth,,256,64,8,runtime,10.000000,,runtime,,,,,,,\r\n"), "{table}");
        assert!(table.ends_with("\"out, of \"\"memory\"\"\"\r\n"), "{table}");
        let cells = [json!("=1+1"), json!(-2.5), json!("a\"b"), json!(7), Value::Null];
        assert_eq!(cells.each_ref().map(cell), ["'=1+1", "-2.500000", "\"a\"\"b\"", "7", ""]);
    }

    #[test]
    fn cases_take_turns_a_failed_one_is_not_tried_again_and_an_interruption_ends_them() {
        let suite = Suite { repetitions: 3, ..Suite::protocol() };
        let names = ["plan", "bad", "fit"];
        for (interrupted_at, launches, told) in
            [(None, "plan1 bad1 fit1 fit2 plan2 fit3 plan3", 7), (Some("fit2"), "plan1 bad1 fit1 fit2", 3)]
        {
            let mut bench = Bench::new(&suite, Environment::default(), None, Weights::default());
            let (mut order, mut count) = (Vec::new(), 0);
            bench.cases = names.map(|name| Case { name: name.into(), ..Case::default() }).to_vec();
            let mut launch = |at: usize, repetition| {
                order.push(format!("{}{repetition}", names[at]));
                let is_interrupted = order.last().map(String::as_str) == interrupted_at;
                let failure = (names[at] == "bad").then(|| "no memory".to_string());
                Session { repetition, failure, is_interrupted, ..Session::default() }
            };
            let is_interrupted = bench.run(&mut launch, &mut |_| count += 1);
            let kept: usize = bench.cases.iter().map(|case| case.sessions.len()).sum();
            assert_eq!((is_interrupted, order.join(" ").as_str()), (interrupted_at.is_some(), launches));
            assert_eq!((count, kept), (told, told));
        }
    }
}
