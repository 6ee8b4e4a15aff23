//! A bench: its cases launched in turn, speeds over repetitions, streams over prompts, savings beside baselines.

use std::collections::BTreeMap;

use super::document::{
    BENCH_SCHEMA, Bench, Case, DepthRow, DepthSample, Environment, Gaps, Item, Mode, ModelFacts, Sample, Saving,
    Session, SpeedRow, Verdict, Weights,
};
use super::protocol::Suite;
use super::quality;
use crate::bytes::Bytes;
use crate::measurement::Spread;
use crate::memory::HOST;
use crate::runtime::sandbox::{Interpreter, Outcome};
use crate::stats;

/// Runs no code: for documents that are written before all is measured.
pub struct NotYet;

impl Interpreter for NotYet {
    fn values(&self, _code: &str, _function: &str, _count: u32) -> Outcome {
        Outcome::Unavailable("the bench is not over".to_string())
    }
}

impl Bench {
    /// Before anything is measured.
    pub fn new(suite: &Suite, environment: Environment, model: Option<ModelFacts>, weights: Weights) -> Self {
        let (settings, prompts) = (suite.settings(), suite.prompts());
        let schema = BENCH_SCHEMA.to_string();
        Self { schema, environment, model, weights, settings, prompts, ..Self::default() }
    }

    /// Launches every case, by its number, as often as the settings say, so that what changes over time changes for all: every
    /// case once, then every case again, another one first in each round. `each` is told after every launch. A case that could
    /// not be launched at all is not tried again. Whether it was interrupted; what was measured before is in it.
    pub fn run(
        &mut self,
        suite: &Suite,
        launch: &mut dyn FnMut(usize, u32) -> Session,
        each: &mut dyn FnMut(&Self),
    ) -> bool {
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
                if is_interrupted {
                    return true;
                }
                self.sum_up(suite, &NotYet);
                each(self);
            }
        }
        false
    }

    /// Makes every figure that follows from the sessions.
    pub fn sum_up(&mut self, suite: &Suite, interpreter: &dyn Interpreter) {
        for case in &mut self.cases {
            let samples: Vec<&Sample> = case.sessions.iter().flat_map(|session| &session.samples).collect();
            case.speed.clear();
            for mode in [Mode::Whole, Mode::Stream] {
                let of_mode: Vec<&Sample> = samples.iter().copied().filter(|sample| sample.mode == mode).collect();
                for prompt in &suite.prompts {
                    let of_prompt: Vec<&Sample> = of_mode.iter().copied().filter(|s| s.prompt == prompt.name).collect();
                    case.speed.extend(speed_row(Some(prompt.name.clone()), mode, &of_prompt));
                }
                case.speed.extend(speed_row(None, mode, &of_mode));
            }
            let first = |name: &str| samples.iter().find(|sample| sample.prompt == name);
            let asked = suite.prompts.iter().filter_map(|prompt| Some((prompt, *first(&prompt.name)?)));
            case.quality =
                asked.map(|(prompt, sample)| quality::judge(prompt, sample, &self.weights, interpreter)).collect();
            case.load_seconds = spread(&case.sessions, |session| session.load_seconds);
            case.depths = depths(&case.sessions);
            case.stream = stream(&samples);
        }
        let ran = self.cases.iter().flat_map(|case| &case.sessions).find_map(|session| session.runtime.clone());
        self.environment.runtime = self.environment.runtime.take().or(ran);
        self.savings = savings(&self.cases);
    }
}

/// Mean and spread of a figure, where it is known.
fn spread<'a, T: 'a>(of: impl IntoIterator<Item = &'a T>, figure: impl Fn(&T) -> Option<f64>) -> Option<Spread> {
    Spread::of(&of.into_iter().filter_map(figure).collect::<Vec<_>>())
}

fn speed_row(prompt: Option<String>, mode: Mode, samples: &[&Sample]) -> Option<SpeedRow> {
    if samples.is_empty() {
        return None;
    }
    let spread = |figure: &dyn Fn(&Sample) -> Option<f64>| spread(samples.iter().copied(), figure);
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
    for verdict in [Verdict::Fail, Verdict::Pass, Verdict::NotAssessed] {
        let mut found = items.iter().filter(|(_, item)| item.verdict == verdict);
        if let Some((prompt, item)) = found.next() {
            let detail = format!("{} of {} streams; {prompt}: {}", 1 + found.count(), items.len(), item.detail);
            return Item::new(what, verdict, detail);
        }
    }
    Item::skipped(what, "no stream was run")
}

/// What the devices of a session hold by llama.cpp's own sums; `None` where nothing was measured.
pub fn on_devices(session: &Session) -> Option<Bytes> {
    let is_device = |name: &str| name != HOST && !name.starts_with("CPU") && !name.ends_with("_Host");
    if session.memory.is_empty() {
        return None;
    }
    Some(session.memory.iter().filter(|(name, _)| is_device(name)).map(|(_, row)| row.terms.own()).sum())
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
    let gap = |figure: fn(&Gaps) -> f64| shown(sample.gaps.as_ref().map(figure));
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
mod tests {
    use super::*;
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
            finish_reason: Some("stop".into()),
            text: "=1+1, \"a\"".into(),
            stream: (mode == Mode::Stream).then(|| Item::new("it ends", verdict, tg.to_string())).into_iter().collect(),
            ..Sample::default()
        }
    }

    fn session(case: &str, repetition: u32, device: u64, tg: f64) -> Session {
        let row = |model| MemoryRow::from(MemoryBreakdown { model: Bytes(model), ..MemoryBreakdown::default() });
        let pp = Some(10.0 * f64::from(repetition));
        Session {
            case: case.into(),
            repetition,
            load_seconds: Some(f64::from(repetition)),
            memory: BTreeMap::from([("CUDA0".into(), row(device)), ("Host".into(), row(1000))]),
            samples: vec![
                sample("code", Mode::Whole, tg, Verdict::Pass),
                sample("code", Mode::Stream, tg, Verdict::Pass),
                sample("creative", Mode::Stream, 2.0 * tg, if repetition == 2 { Verdict::Fail } else { Verdict::Pass }),
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
            case(
                "experts-on-host",
                vec![session("experts-on-host", 1, 250, 10.0), session("experts-on-host", 2, 250, 20.0)],
            ),
            case("all-on-device", vec![session("all-on-device", 1, 1000, 60.0)]),
            case("fit", vec![failed]),
        ];
        bench.sum_up(&suite, &NotYet);
        bench
    }

    #[test]
    fn sessions_are_summed_up() {
        let bench = measured();
        let case = &bench.cases[0];
        assert_eq!(case.load_seconds.map(|load| (load.mean, load.n)), Some((1.5, 2)));
        let row = |prompt: Option<&str>, mode| {
            case.speed.iter().find(|row| row.prompt.as_deref() == prompt && row.mode == mode).unwrap()
        };
        assert_eq!(row(Some("code"), Mode::Stream).tg, Spread::of(&[10.0, 20.0]));
        assert_eq!(row(None, Mode::Stream).tg.unwrap(), Spread::of(&[10.0, 20.0, 20.0, 40.0]).unwrap());
        assert_eq!((row(None, Mode::Stream).gap_max, case.depths[0].pp), (Some(0.4), Spread::of(&[10.0, 20.0])));
        assert_eq!(case.depths[0].tg, None);
        // One bad stream fails the check with its detail.
        let stream: Vec<_> = case.stream.iter().map(|item| (item.verdict, item.detail.as_str())).collect();
        assert_eq!(stream, [(Verdict::Fail, "1 of 4 streams; creative: 40")]);
        assert!(case.quality.iter().all(|quality| quality.verdict == Verdict::NotAssessed));
        assert_eq!(case.quality.len(), 2, "only prompts that were asked are judged");
        let [saving] = bench.savings.as_slice() else {
            panic!("a case that failed is no baseline: {:?}", bench.savings)
        };
        assert_eq!((saving.baseline.as_str(), saving.by.as_str()), ("all-on-device", "llama.cpp"));
        assert_eq!((saving.bytes, saving.baseline_bytes, saving.saved_bytes), (Bytes(250), Bytes(1000), 750));
        assert_eq!((saving.saved_percent, saving.tg_ratio), (Some(75.0), Some(22.5 / 90.0)));
    }

    #[test]
    fn the_document_reads_back_and_its_table_has_a_line_for_everything() {
        let bench = measured();
        let again: Bench = serde_json::from_str(&serde_json::to_string(&bench).unwrap()).unwrap();
        // Sums may lose their last bit in decimal; what was measured does not.
        assert!(again.cases.iter().zip(&bench.cases).all(|(a, b)| a.sessions == b.sessions && a.stream == b.stream));
        assert_eq!((again.cases.len(), again.savings), (bench.cases.len(), bench.savings.clone()));
        let table = csv(&bench);
        assert_eq!(table.split("\r\n").count(), 1 + 3 * 3 + 3 + 1 + 1);
        let plain = table.replace("\"out, of \"\"memory\"\"\"", "x");
        assert!(plain.lines().all(|line| line.matches(',').count() == 17), "{table}");
        assert!(table.contains("all-on-device,1,stream,creative,,9,50,,100.000000,120.000000,,0.100000,"), "{table}");
        assert!(table.contains(",depth,,256,64,8,runtime,10.000000,,runtime,,,,,,,\r\n"), "{table}");
        assert!(table.ends_with("\"out, of \"\"memory\"\"\"\r\n"), "{table}");
        let mut out = String::new();
        line(&mut out, ["=1+1".to_string(), "-2.5".into(), "a\"b".into()].into_iter());
        assert_eq!(out, "'=1+1,-2.5,\"a\"\"b\"\r\n");
    }

    #[test]
    fn cases_take_turns_a_failed_one_is_not_tried_again_and_an_interruption_ends_them() {
        let suite = Suite { repetitions: 3, ..Suite::protocol() };
        let names = ["plan", "bad", "fit"];
        for (interrupted_at, launches, sessions) in [
            (None, "plan1 bad1 fit1 fit2 plan2 fit3 plan3", [3, 1, 3]),
            (Some("fit2"), "plan1 bad1 fit1 fit2", [1, 1, 1]),
        ] {
            let mut bench = Bench::new(&suite, Environment::default(), None, Weights::default());
            let (mut order, mut told) = (Vec::new(), 0);
            bench.cases = names.map(|name| Case { name: name.into(), ..Case::default() }).to_vec();
            let mut launch = |at: usize, repetition| {
                order.push(format!("{}{repetition}", names[at]));
                let is_interrupted = order.last().map(String::as_str) == interrupted_at;
                let failure = (names[at] == "bad").then(|| "no memory".to_string());
                Session { repetition, failure, is_interrupted, ..Session::default() }
            };
            let is_interrupted = bench.run(&suite, &mut launch, &mut |_| told += 1);
            assert_eq!((is_interrupted, order.join(" ").as_str()), (interrupted_at.is_some(), launches));
            assert_eq!(bench.cases.iter().map(|case| case.sessions.len()).collect::<Vec<_>>(), sessions);
            assert_eq!(told, sessions.iter().sum::<usize>());
        }
    }
}
