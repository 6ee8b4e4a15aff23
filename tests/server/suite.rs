//! `bench` and `validate`: against an endpoint with every fault, and for real where there is a llama-server.
//!
//! The real one is `MOEPLAN_LLAMA_SERVER`, or what `scripts/llama-server` has built; the real model is `MOEPLAN_SMOLLM2`.
//! Without them those tests say so and pass.

#![expect(clippy::print_stderr, reason = "a test's report")]

use crate::support::schemas;
use crate::{MOEPLAN, tiny};

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::fake_endpoint::{Manner, start};
use moeplan::runtime::server;
use moeplan::suite::document::{Bench, Clock, Item, Mode, TokenCount, Validation, Verdict};

/// Runs moeplan with a lock of its own: tests measure side by side.
fn moeplan(words: &[&str]) -> Output {
    let lock = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(MOEPLAN);
    command.args(words).env_remove("MOEPLAN_API_KEY").env("MOEPLAN_LOCK_DIR", lock.path()).output().expect("moeplan")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The document and the exit code of a bench of an endpoint.
fn of_endpoint(manner: Manner, words: &[&str]) -> (Bench, i32) {
    let url = start(manner);
    let mut all = vec!["bench", "--url", &url, "--json", "--repetitions", "1"];
    all.extend(words);
    let output = moeplan(&all);
    let bench = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{manner:?}: {error}: {}", text(&output.stderr)));
    schemas::assert_valid(&bench);
    let bench = serde_json::from_value(bench).unwrap_or_else(|error| panic!("{manner:?}: {error}"));
    (bench, output.status.code().expect("an exit code"))
}

fn failing(items: &[Item]) -> Vec<(String, String)> {
    let failed = items.iter().filter(|item| item.verdict == Verdict::Fail);
    failed.map(|item| (item.what.clone(), item.detail.clone())).collect()
}

#[test]
fn a_sound_endpoint_is_measured_by_its_own_counts() {
    let (bench, code) = of_endpoint(Manner::Sound, &[]);
    let case = &bench.cases[0];
    assert_eq!((code, failing(&case.stream)), (0, vec![]));
    assert_eq!(case.sessions[0].samples.len(), 8);
    for sample in &case.sessions[0].samples {
        assert_eq!((sample.generated_tokens, sample.tokens_by), (Some(12), Some(TokenCount::Runtime)));
        assert_eq!((sample.pp, sample.tg, sample.speed_by), (Some(90.0), Some(60.0), Some(Clock::Runtime)));
        assert_eq!(sample.first_token_seconds.is_some(), sample.mode == Mode::Stream);
    }
    let of_time = |item: &Item| item.what.contains("burst");
    assert!(case.stream.iter().all(|item| item.verdict == Verdict::Pass || of_time(item)), "{:?}", case.stream);
    assert!(bench.weights.synthetic.is_none() && bench.model.is_none() && case.load_seconds.is_none());
    assert!(bench.notes.iter().any(|note| note.contains("memory and load time")));
    assert!(bench.notes.iter().any(|note| note.contains("asked for `fake`; the endpoint lists 1 models")));
    let (bench, _) = of_endpoint(Manner::Sound, &["--model-name", "other"]);
    assert!(bench.notes.iter().any(|note| note.contains("asked for `other`")));
}

#[test]
fn what_shimmy_does_not_tell_is_null_and_said() {
    let (bench, code) = of_endpoint(Manner::Shimmy, &[]);
    let failed: Vec<String> = failing(&bench.cases[0].stream).into_iter().map(|(what, _)| what).collect();
    assert_eq!((code, failed.len()), (1, 2), "{failed:?}");
    assert!(failed[0].contains("no delta is empty") && failed[1].contains("not in one burst"), "{failed:?}");
    for sample in &bench.cases[0].sessions[0].samples {
        assert_eq!((sample.prompt_tokens, sample.generated_tokens, sample.tokens_by), (None, None, None));
        assert_eq!((sample.pp, sample.tg, sample.speed_by), (None, None, None));
        assert!(sample.total_seconds > 0.0 && sample.failure.is_none());
    }
    let says =
        ["reports no token counts", "reports no timings", "no depth sweep", "it is shimmy 1.8.1", "in one burst"];
    for says in [&says[..], &["asked for `phi3-lora`; the endpoint lists 2 models"]].concat() {
        let all = bench.notes.iter().chain(&bench.cases[0].sessions[0].notes);
        assert!(all.clone().any(|note| note.contains(says)), "{says}: {:?}", all.collect::<Vec<_>>());
    }
    let tokenizer = start(Manner::Sound);
    let (bench, _) = of_endpoint(Manner::Shimmy, &["--tokenizer", &tokenizer]);
    let streamed = bench.cases[0].sessions[0].samples.iter().find(|sample| sample.mode == Mode::Stream).unwrap();
    assert_eq!(streamed.tokens_by, Some(TokenCount::Tokenizer));
    // What comes in one burst has no speed by our clock.
    assert!(streamed.generated_tokens.is_some() && streamed.tg.is_none() && streamed.pp.is_none());
    let (bench, _) = of_endpoint(Manner::Uncounted, &["--tokenizer", &tokenizer]);
    let streamed = bench.cases[0].sessions[0].samples.iter().find(|sample| sample.mode == Mode::Stream).unwrap();
    assert!(streamed.tg.is_some() && streamed.speed_by == Some(Clock::Ours), "{streamed:?}");
}

#[test]
fn every_fault_of_a_stream_is_found() {
    for (manner, check, detail) in [
        (Manner::NoDone, "finish reason and [DONE]", "no [DONE]"),
        (Manner::NoFinish, "finish reason and [DONE]", "no finish reason"),
        (Manner::Duplicated, "no delta is duplicated", "the non-streamed text is shorter"),
        (Manner::EmptyDelta, "no delta is empty", "1 empty deltas"),
        (Manner::SplitCharacter, "no character is split", "1 replacement characters"),
        (Manner::BrokenGrapheme, "no grapheme is broken", "begins inside a grapheme"),
        (Manner::Burst, "not in one burst", "deltas in 1 reads"),
        (Manner::Differs, "equal the non-streamed text", "they differ from character"),
        (Manner::Garbage, "every event parses", "nonsense"),
        (Manner::NotEvents, "framed validly", "content-type is `text/plain`"),
        (Manner::ErrorMidStream, "finish reason and [DONE]", "the server refused: out of memory"),
        (Manner::BreaksOff, "finish reason and [DONE]", "the stream broke off"),
    ] {
        let (bench, code) = of_endpoint(manner, &[]);
        let failed = failing(&bench.cases[0].stream);
        let found = failed.iter().any(|(what, found)| what.contains(check) && found.contains(detail));
        assert!(found && code == 1, "{manner:?} ({code}): {failed:?}");
    }
}

#[test]
fn refusals_are_kept_and_nothing_of_them_is_markup() {
    let (bench, _) = of_endpoint(Manner::Refuses, &[]);
    assert!(bench.cases[0].sessions[0].samples.iter().all(|sample| sample.failure.is_some() && sample.text.is_empty()));
    let url = start(Manner::Refuses);
    let output = moeplan(&["bench", "--url", &url, "--repetitions", "1", "--format", "markdown"]);
    let page = text(&output.stdout);
    assert!(page.contains("no such") && !page.contains("<b>"), "{page}");
    let (bench, _) = of_endpoint(Manner::IgnoresStreamFalse, &[]);
    let whole = bench.cases[0].sessions[0].samples.iter().find(|sample| sample.mode == Mode::Whole).unwrap();
    assert!(whole.failure.as_ref().is_some_and(|why| why.contains("streams although")), "{whole:?}");
}

#[test]
fn an_endpoint_that_hangs_or_is_not_there_ends_the_bench() {
    let (bench, code) = of_endpoint(Manner::Hangs, &["--timeout", "1"]);
    let failure = bench.cases[0].sessions[0].failure.clone().unwrap_or_default();
    assert!(code == 2 && failure.contains("longer than 1 s"), "{failure}");
    let output = moeplan(&["bench", "--url", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("does not answer") && said.contains("hint:"), "{said}");
    assert_eq!(moeplan(&["bench", "--url", "not an address"]).status.code(), Some(2));
}

#[test]
fn what_llama_bench_measured_is_a_bench() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = |tests: &str| {
        format!(
            r#"{{"build_number":11434,"model_filename":"<m>.gguf","n_batch":2048,"n_ubatch":512,"n_threads":2,{tests}}}"#
        )
    };
    let rows = [
        row(r#""n_prompt":512,"n_gen":0,"n_depth":0,"avg_ts":15.0,"samples_ts":[10.0,20.0]"#),
        row(r#""n_prompt":0,"n_gen":64,"n_depth":0,"avg_ts":3.0,"samples_ts":[2.0,4.0]"#),
    ];
    std::fs::write(&path, rows.join("\n")).unwrap();
    let output = moeplan(&["bench", "--from", path.to_str().unwrap()]);
    let page = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(page.contains("15.0 ± 7.1") && page.contains("3.00 ± 1.41"), "{page}");
    std::fs::write(&path, "no rows").unwrap();
    let output = moeplan(&["bench", "--from", path.to_str().unwrap()]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
}

/// The real llama-server, or a line that says why the test says nothing.
fn real_server() -> Option<PathBuf> {
    let found = server::find(std::env::var_os("MOEPLAN_LLAMA_SERVER").as_deref().map(Path::new)).ok();
    if found.is_none() {
        eprintln!("skipped: no llama-server (scripts/llama-server builds one)");
    }
    found
}

const DEVICE: [&str; 8] = ["--backend", "rpc", "--vram", "8M", "--margin", "0", "--threads", "1"];

#[test]
fn a_tiny_model_is_benched_beside_its_baselines() {
    if real_server().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path());
    let (out, table) = (folder.path().join("bench.json"), folder.path().join("bench.csv"));
    let mut words = vec!["bench", model.to_str().unwrap(), "-c", "1024", "--runtime", "server", "--repetitions", "2"];
    words.extend(["--max-tokens", "16", "--depth", "0,128", "--depth-prompt", "32", "--depth-generate", "8"]);
    words.extend(["--baseline", "all-on-device,experts-on-host,fit", "--json", "-o", out.to_str().unwrap()]);
    words.extend(["--csv", table.to_str().unwrap()]);
    words.extend(DEVICE);
    let output = moeplan(&words);
    let bench = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    schemas::assert_valid(&bench);
    let bench: Bench = serde_json::from_value(bench).unwrap();
    let stream = failing(&bench.cases[0].stream);
    assert_eq!((output.status.code(), stream), (Some(0), vec![]), "{}", text(&output.stderr));
    let names: Vec<&str> = bench.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["plan", "all-on-device", "experts-on-host", "fit"]);
    for case in &bench.cases {
        assert_eq!(case.sessions.len(), 2);
        assert_eq!(failing(&case.stream), [], "{}", case.name);
        assert!(case.quality.iter().all(|quality| quality.verdict == Verdict::NotAssessed));
        assert_eq!(case.depths.iter().map(|row| row.depth).collect::<Vec<_>>(), [0, 128], "{}", case.name);
        for session in &case.sessions {
            assert_eq!((session.failure.as_ref(), session.samples.len()), (None, 8), "{}", case.name);
            assert!(session.samples.iter().all(|sample| sample.generated_tokens == Some(16) && sample.tg.is_some()));
            assert!(session.taken.comparison.iter().all(|row| row.ok), "{}: {:?}", case.name, session.taken.comparison);
            assert_eq!(session.taken.comparison.is_empty(), case.name == "fit");
        }
    }
    let saving = bench.savings.iter().find(|saving| saving.baseline == "all-on-device").unwrap();
    assert!(saving.saved_bytes > 0 && saving.tg_ratio.is_some(), "{saving:?}");
    // Two launches of four cases: eight answers and two depths each, and a heading.
    assert_eq!(std::fs::read_to_string(&table).unwrap().lines().count(), 1 + 8 * 10);
}

#[cfg(feature = "embedded")]
#[test]
fn a_tiny_model_is_benched_inside_moeplan() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path());
    let mut words = vec!["bench", model.to_str().unwrap(), "--runtime", "embedded", "--backend", "cpu", "-c", "512"];
    words.extend(["--threads", "1", "--repetitions", "1", "--max-tokens", "4", "--json"]);
    let output = moeplan(&words);
    let bench: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    schemas::assert_valid(&bench);
    let bench: Bench = serde_json::from_value(bench).unwrap();
    let session = &bench.cases[0].sessions[0];
    assert_eq!((output.status.code(), session.failure.as_deref(), session.samples.len()), (Some(0), None, 4));
    for sample in &session.samples {
        assert_eq!(
            (sample.mode, sample.generated_tokens, sample.speed_by),
            (Mode::Whole, Some(4), Some(Clock::Runtime))
        );
        assert!(sample.tg.is_some() && sample.first_token_seconds.is_none(), "{sample:?}");
    }
    assert!(session.notes.iter().any(|note| note.contains("there are no streams")), "{:?}", session.notes);
    assert!(
        !session.taken.comparison.is_empty() && session.taken.comparison.iter().all(|row| row.ok),
        "{:?}",
        session.taken.comparison
    );
}

const SUITE: &str = "
name: tiny
description: A tiny model through the whole protocol
repetitions: 2
context: 1024
depths: [0]
depth_prompt: 32
depth_generate: 8
cases: [experts-on-host, all-on-device, fit]
models:
  - name: tiny
    expectations: {architecture: qwen3moe, experts.used: 8}
  - name: absent
    expect: gpt-oss-20b
prompts:
  - name: code
    text: Write fibonacci(n) in Python.
    max_tokens: 12
    check: {kind: fibonacci, function: fibonacci}
";

#[test]
fn a_suite_ends_in_a_checklist_and_is_taken_up_where_it_was_left() {
    if real_server().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = format!("tiny={}", tiny(folder.path()).display());
    let (suite, results) = (folder.path().join("suite.yaml"), folder.path().join("results"));
    let inspected = moeplan(&["inspect", "--json", folder.path().join("tiny.gguf").to_str().unwrap()]);
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let used = inspected["experts"]["used"].as_u64().unwrap();
    std::fs::write(&suite, SUITE.replace("experts.used: 8", &format!("experts.used: {used}"))).unwrap();
    let mut words = vec!["validate", suite.to_str().unwrap(), "--model", &model, "--json"];
    words.extend(["--results", results.to_str().unwrap()]);
    words.extend(DEVICE);
    let first = moeplan(&words);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let validation = serde_json::from_slice(&first.stdout).unwrap();
    schemas::assert_valid(&validation);
    let validation: Validation = serde_json::from_value(validation).unwrap();
    let sections: Vec<&str> = validation.models[0].sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(sections, ["architecture", "placements", "tests", "streaming", "memory"]);
    assert!(validation.models[1].skipped.as_ref().is_some_and(|why| why.contains("--model absent=PATH")));
    assert_eq!(validation.summary.last().unwrap().verdict, Verdict::Skipped);
    let page = std::fs::read_to_string(results.join("validation.md")).unwrap();
    assert!(page.contains("- [x] ") && page.contains("- [ ] ") && !page.contains("TBD"), "{page}");
    // One step is lost, one was left half written, one did not end well: these are run again, and no others.
    let step = |name: &str| results.join("tiny").join(name);
    std::fs::remove_file(step("fit-2.json")).unwrap();
    std::fs::write(step("experts-on-host-1.json"), "{\"schema\":").unwrap();
    let kept = std::fs::read(step("all-on-device-1.json")).unwrap();
    let second = moeplan(&words);
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("done before").count(), 4, "{said}");
    assert_eq!(std::fs::read(step("all-on-device-1.json")).unwrap(), kept);
    // Another question is another step.
    words.extend(["--max-tokens", "5"]);
    let third = moeplan(&words);
    assert!(!text(&third.stderr).contains("done before"));
}

#[test]
fn models_may_come_one_at_a_time() {
    if real_server().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path());
    let (suite, results) = (folder.path().join("suite.yaml"), folder.path().join("results"));
    let mut asked =
        SUITE.replace(", experts.used: 8", "").replace("expect: gpt-oss-20b", "expectations: {architecture: qwen3moe}");
    asked = asked.replace("repetitions: 2", "repetitions: 1").replace(", all-on-device, fit]", "]");
    std::fs::write(&suite, asked).unwrap();
    let validated = |name: &str, path: &Path| {
        let model = format!("{name}={}", path.display());
        let mut words = vec!["validate", suite.to_str().unwrap(), "--model", &model, "--max-tokens", "5", "--json"];
        words.extend(["--results", results.to_str().unwrap()]);
        words.extend(DEVICE);
        let output = moeplan(&words);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let validation: Validation = serde_json::from_slice(&output.stdout).unwrap();
        let written = std::fs::read(results.join("validation.json")).unwrap();
        assert_eq!(validation, serde_json::from_slice(&written).unwrap());
        validation
    };
    let first = validated("tiny", &model);
    validated("mine", &model);
    let gone = folder.path().join("gone.gguf");
    std::fs::rename(&model, &gone).unwrap();
    // The first model's file is not there, the second's is not even named.
    let last = validated("absent", &gone);
    let names: Vec<&str> = last.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["tiny", "absent", "mine"]);
    for kept in [&last.models[0], &last.models[2]] {
        let (line, measured) = (&kept.sections[0].items[0], kept.bench.as_ref().unwrap());
        assert!(
            kept.skipped.is_none() && line.verdict == Verdict::Pass && line.detail.contains("same settings as now")
        );
        assert!(measured.prompts.iter().all(|prompt| prompt.max_tokens == 5));
    }
    assert_eq!(last.models[0].bench, first.models[0].bench);
    assert_eq!(last.models[0].sections[1..], first.models[0].sections);
    assert!(last.models[1].bench.is_some());
    let page = std::fs::read_to_string(results.join("validation.md")).unwrap();
    assert!(page.contains("\n## tiny\n") && page.contains("\n## mine\n"), "{page}");
}

#[cfg(unix)]
#[test]
fn a_suite_that_is_interrupted_keeps_what_is_done() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    if real_server().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = format!("tiny={}", tiny(folder.path()).display());
    let (suite, results) = (folder.path().join("suite.yaml"), folder.path().join("results"));
    std::fs::write(&suite, SUITE.replace(", experts.used: 8", "").replace("repetitions: 2", "repetitions: 9")).unwrap();
    let mut words = vec!["validate", suite.to_str().unwrap(), "--model", &model];
    words.extend(["--results", results.to_str().unwrap()]);
    words.extend(DEVICE);
    let mut child = Command::new(MOEPLAN);
    child.args(&words).env("MOEPLAN_LOCK_DIR", folder.path());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let done = results.join("tiny/all-on-device-1.json");
    let begin = Instant::now();
    while !done.exists() && begin.elapsed() < Duration::from_mins(2) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let kept = std::fs::read(&done).unwrap();
    let last = results.join("tiny/fit-9.json");
    assert!(!last.exists(), "it was interrupted before its end");
    let again = moeplan(&words);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("all-on-device, 1 of 9: done before"));
    assert!(last.exists() && std::fs::read(&done).unwrap() == kept);
}

#[test]
fn a_suite_without_models_could_not_tell() {
    if real_server().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results");
    let output = moeplan(&["validate", "--results", results.to_str().unwrap(), "--backend", "cpu"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let page = text(&output.stdout);
    // Each model says so, and so does the final checklist of each.
    assert_eq!(page.matches("its file was not named").count(), 5 + 5, "{page}");
}

#[cfg(unix)]
#[test]
fn launches_that_all_fail_are_failures_and_could_not_tell() {
    let server = crate::fake();
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path());
    let results = folder.path().join("results");
    let failing = |mode: &str, words: &[&str]| {
        let mut command = Command::new(MOEPLAN);
        command.args(words).args(["--vram", "8G", "--json", "--llama-server"]).arg(&server);
        command.env("MOEPLAN_LOCK_DIR", folder.path());
        let output = command.env("FAKE_LLAMA_SERVER", mode).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("error: nothing was measured: "), "{said}");
        assert!(said.contains("\nhint: ") || said.contains("; plan with -c "), "{said}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let mine = format!("mine={}", model.display());
    let validation = failing("oom", &["validate", "--model", &mine, "--results", results.to_str().unwrap()]);
    schemas::assert_valid(&validation);
    let validation: Validation = serde_json::from_value(validation).unwrap();
    let device = validation.prerequisites.iter().find(|line| line.what == "there is a device").unwrap();
    assert!(device.verdict == Verdict::Fail && device.detail.contains("llama.cpp lists none"), "{device:?}");
    for line in validation.summary.iter().filter(|line| line.what != "architecture") {
        assert_eq!(line.verdict, Verdict::Fail, "{line:?}");
    }
    let placements = &validation.models.iter().find(|model| model.name == "mine").unwrap().sections[1];
    let says = |name: &str| placements.items.iter().find(|line| line.what.starts_with(name)).unwrap().detail.clone();
    assert!(says("experts-on-host: every launch").contains("out of memory: 12.00 GiB for weights"), "{placements:?}");
    // The suite's sweep is longer than this context: that is known before a launch.
    let short = failing("", &["validate", "--model", &mine, "--results", results.to_str().unwrap(), "-c", "1024"]);
    let page = short.to_string();
    assert!(page.contains("needs 1568 tokens of context") && page.contains("plan with -c 1792 or more"), "{page}");
    let bench = failing("bad-model", &["bench", model.to_str().unwrap()]);
    let failure = bench["cases"][0]["sessions"][0]["trouble"]["kind"].as_str();
    assert_eq!(failure, Some("failed"), "{bench}");
}

#[test]
fn a_real_model_answers_all_four_prompts_and_is_judged() {
    let Some(model) = std::env::var_os("MOEPLAN_SMOLLM2") else {
        eprintln!("skipped: MOEPLAN_SMOLLM2 is not set (scripts/fetch-smollm2 prints what to set)");
        return;
    };
    if real_server().is_none() {
        return;
    }
    let model = PathBuf::from(model);
    let mut words =
        vec!["bench", model.to_str().unwrap(), "--backend", "cpu", "--threads", "1", "-c", "1024", "--json"];
    words.extend(["--runtime", "server", "--repetitions", "1", "--max-tokens", "64", "--depth-prompt", "32"]);
    let output = moeplan(&words);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let bench: Bench = serde_json::from_slice(&output.stdout).unwrap();
    let case = &bench.cases[0];
    assert_eq!((bench.weights.synthetic, failing(&case.stream)), (Some(false), vec![]));
    let prompts: Vec<&str> = case.quality.iter().map(|quality| quality.prompt.as_str()).collect();
    assert_eq!(prompts, ["code", "mathematics", "creative", "technical"]);
    for quality in &case.quality {
        assert!(quality.verdict != Verdict::NotAssessed && quality.items.len() >= 3, "{quality:?}");
    }
    let samples = &case.sessions[0].samples;
    assert!(samples.iter().all(|sample| sample.generated_tokens.is_some_and(|n| n > 8) && !sample.text.is_empty()));
    assert!(case.sessions[0].taken.comparison.iter().all(|row| row.ok), "{:?}", case.sessions[0].taken.comparison);
}
