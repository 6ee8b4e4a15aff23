//! Sessions summed up, and the table of values.

use super::*;
use crate::memory::MemoryBreakdown;
use crate::runtime::sandbox::Outcome;
use crate::suite::document::{DepthSample, Gaps};

struct Nobody;

impl Interpreter for Nobody {
    fn values(&self, _code: &str, _function: &str, _count: u32) -> Outcome {
        Outcome::Unavailable("a test".into())
    }
}

fn sample(prompt: &str, mode: Mode, tg: f64, verdict: Verdict) -> Sample {
    let item = Item { what: "it ends".into(), verdict, detail: format!("{tg}") };
    Sample {
        prompt: prompt.into(),
        mode,
        failure: None,
        prompt_tokens: Some(9),
        generated_tokens: Some(50),
        tokens_by: None,
        pp: Some(100.0),
        tg: Some(tg),
        speed_by: None,
        first_token_seconds: Some(0.1),
        gaps: Some(Gaps { median: 0.01, p95: 0.02, max: tg / 100.0, all: vec![0.01] }),
        total_seconds: 1.0,
        finish_reason: Some("stop".into()),
        text: "=1+1, \"a\"".into(),
        reasoning: String::new(),
        stream: if mode == Mode::Stream { vec![item] } else { Vec::new() },
    }
}

fn session(case: &str, repetition: u32, device: u64, tg: f64) -> Session {
    let row = |model| MemoryRow::from(MemoryBreakdown { model: Bytes(model), ..MemoryBreakdown::default() });
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
            pp: Some(10.0 * f64::from(repetition)),
            tg: None,
            first_token_seconds: None,
        }],
        ..Session::default()
    }
}

fn made() -> Bench {
    let suite = Suite::protocol();
    let raw = |name: &str, sessions| Raw { name: name.into(), what: String::new(), command: None, sessions };
    let failed =
        Session { case: "fit".into(), repetition: 1, failure: Some("out, of \"memory\"".into()), ..Session::default() };
    let facts = Facts {
        suite: &suite,
        environment: Environment::default(),
        model: None,
        weights: Weights { synthetic: Some(true), basis: "a test".into() },
        notes: Vec::new(),
    };
    let cases = vec![
        raw(
            "experts-on-host",
            vec![session("experts-on-host", 1, 250, 10.0), session("experts-on-host", 2, 250, 20.0)],
        ),
        raw("all-on-device", vec![session("all-on-device", 1, 1000, 60.0)]),
        raw("fit", vec![failed]),
    ];
    bench(facts, cases, &Nobody)
}

#[test]
fn repetitions_have_a_mean_and_a_spread() {
    let bench = made();
    let case = &bench.cases[0];
    assert_eq!(case.load_seconds.map(|load| (load.mean, load.n)), Some((1.5, 2)));
    let row = |prompt: Option<&str>, mode| {
        case.speed.iter().find(|row| row.prompt.as_deref() == prompt && row.mode == mode).unwrap()
    };
    assert_eq!(row(Some("code"), Mode::Stream).tg, Spread::of(&[10.0, 20.0]));
    assert_eq!(row(None, Mode::Stream).tg.unwrap(), Spread::of(&[10.0, 20.0, 20.0, 40.0]).unwrap());
    assert_eq!(row(None, Mode::Stream).gap_max, Some(0.4));
    assert_eq!(case.depths[0].pp, Spread::of(&[10.0, 20.0]));
    assert_eq!(case.depths[0].tg, None);
}

#[test]
fn one_bad_stream_fails_the_check_with_its_detail() {
    let case = &made().cases[0];
    assert_eq!(case.stream.len(), 1);
    assert_eq!(
        (case.stream[0].verdict, case.stream[0].detail.as_str()),
        (Verdict::Fail, "1 of 4 streams; creative: 40")
    );
    assert!(case.quality.iter().all(|quality| quality.verdict == Verdict::NotAssessed));
    assert_eq!(case.quality.len(), 2, "only prompts that were asked are judged");
}

#[test]
fn savings_are_against_what_was_measured() {
    let savings = made().savings;
    assert_eq!(savings.len(), 1, "the case that failed is no baseline: {savings:?}");
    let saving = &savings[0];
    assert_eq!((saving.baseline.as_str(), saving.by.as_str()), ("all-on-device", "llama.cpp"));
    assert_eq!((saving.bytes, saving.baseline_bytes, saving.saved_bytes), (Bytes(250), Bytes(1000), 750));
    assert_eq!(saving.saved_percent, Some(75.0));
    assert_eq!(saving.tg_ratio, Some(22.5 / 90.0));
}

#[test]
fn the_document_reads_back_and_its_table_has_a_line_for_everything() {
    let bench = made();
    let text = serde_json::to_string(&bench).unwrap();
    let again = serde_json::from_str::<Bench>(&text).unwrap();
    // Sums may lose their last bit in decimal; what was measured does not.
    assert!(again.cases.iter().zip(&bench.cases).all(|(a, b)| a.sessions == b.sessions && a.stream == b.stream));
    assert_eq!((again.cases.len(), again.savings), (bench.cases.len(), bench.savings.clone()));
    let table = csv(&bench);
    let lines: Vec<&str> = table.split("\r\n").collect();
    assert_eq!(lines.len(), 1 + 3 * 3 + 3 + 1 + 1);
    assert!(
        lines.iter().filter(|line| !line.is_empty()).all(|line| line
            .replace("\"out, of \"\"memory\"\"\"", "x")
            .matches(',')
            .count()
            == 17),
        "{table}"
    );
    assert!(table.contains("all-on-device,1,stream,creative,,9,50,,100.000000,120.000000,,0.100000,"), "{table}");
    assert!(table.contains(",depth,,256,64,8,runtime,10.000000,,runtime,,,,,,,\r\n"), "{table}");
    assert!(table.ends_with("\"out, of \"\"memory\"\"\"\r\n"), "{table}");
    let mut out = String::new();
    line(&mut out, ["=1+1".to_string(), "-2.5".into(), "a\"b".into()].into_iter());
    assert_eq!(out, "'=1+1,-2.5,\"a\"\"b\"\r\n");
}
