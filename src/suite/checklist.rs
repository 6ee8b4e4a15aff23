//! The checklist of a validation: every line ticked with its evidence, or not ticked with the reason.

use std::fmt::Write as _;

use super::bench::on_devices;
use super::cases::CaseLaunch;
use super::document::{Bench, Case, Item, Mode, ModelValidation, PlacementFacts, Section, Session, Verdict, Weights};
use super::failure::{Kind, NothingMeasured};
use super::quality::{NOT_JUDGED, overall};
use crate::bytes::Bytes;
use crate::expectation;
use crate::machine::Device;
use crate::measurement::{Row, Spread};
use crate::number::{counted, fixed};
use crate::runtime::DeviceInfo;

/// Whether the devices of the suite are there: only those that llama.cpp itself lists.
pub fn devices(described: &[Device], listed: &[DeviceInfo]) -> Item {
    let what = "there is a device";
    if described.is_empty() {
        return Item::held(what, false, "none was found or described (--vram)");
    }
    let found = |device: &Device| listed.iter().find(|found| found.gpu && found.name == device.name);
    let missing = described.iter().filter(|device| found(device).is_none()).map(|device| device.name.as_str());
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        let there: Vec<&str> = listed.iter().filter(|found| found.gpu).map(|found| found.name.as_str()).collect();
        let detail = format!(
            "{} was described and is not here: llama.cpp lists {} (`moeplan doctor` says why; --backend rpc starts software \
             devices)",
            missing.join(", "),
            if there.is_empty() { "none".to_string() } else { there.join(", ") }
        );
        return Item::held(what, false, detail);
    }
    let seen = |device: &Device| {
        let found = found(device).map_or(String::new(), |found| format!(": {}, {}", found.description, found.total));
        format!("{} with {}{found}", device.name, device.total)
    };
    let seen: Vec<String> = described.iter().map(seen).collect();
    Item::held(what, true, format!("llama.cpp lists {}", seen.join("; ")))
}

/// Whether the file is what the suite expects; `None` where it expects nothing.
pub fn architecture(checks: Option<&[expectation::Check]>, weights: &Weights) -> Section {
    let line = |check: &expectation::Check| {
        let shown = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
        Item::held(
            format!("{} is {}", check.what, shown(&check.expected)),
            check.ok,
            format!("found {}", shown(&check.found)),
        )
    };
    let none = "the suite has no expectations for this model";
    let mut items: Vec<Item> = match checks {
        Some(checks) => checks.iter().map(line).collect(),
        None => vec![Item::open("the architecture is as expected", none)],
    };
    let real = if weights.synthetic == Some(false) { Verdict::Pass } else { Verdict::NotAssessed };
    items.push(Item::new("the weights are real", real, weights.basis.clone()));
    Section { name: "architecture".into(), items }
}

/// The predicted placement of a case; `None` where llama.cpp chooses by itself.
pub fn placement(case: &CaseLaunch, fits: Option<bool>) -> Option<PlacementFacts> {
    let predicted = case.predicted.as_ref()?;
    Some(PlacementFacts {
        case: case.name.clone(),
        command: case.command(),
        expert_bytes_on_devices: predicted.experts.0,
        expert_bytes_on_host: predicted.experts.1,
        predicted: crate::memory::rows(&predicted.memory),
        fits,
    })
}

/// Every section that the launches of a model decide.
pub fn of_bench(facts: &[PlacementFacts], bench: &Bench) -> [Section; 4] {
    [placements(facts, bench), tests(bench), streaming(bench), memory(bench)]
}

/// Where the experts go, and whether memory was as predicted.
pub fn placements(facts: &[PlacementFacts], bench: &Bench) -> Section {
    let mut items = Vec::new();
    for case in &bench.cases {
        if let Some(fact) = facts.iter().find(|fact| fact.case == case.name) {
            items.push(where_experts_go(fact));
        }
        items.push(launched(case));
        items.push(memory_as_predicted(case));
    }
    Section { name: "placements".into(), items }
}

/// Whether llama.cpp took every launch of a case and kept it up. What was refused before, or was predicted not to fit, is no
/// failure.
fn launched(case: &Case) -> Item {
    let what = format!("{}: every launch ran to its end", case.name);
    if let Some(session) = case.first_failed() {
        let why = session.failure.as_deref().unwrap_or_default();
        return Item::held(what, false, format!("launch {}: {why}", session.repetition));
    }
    let seconds = case.load_seconds.map_or(String::new(), |load| format!(", {:.1} s to load", load.mean));
    match case.sessions.iter().find_map(|session| session.failure.clone()) {
        Some(why) => Item::skipped(what, why),
        None if case.sessions.is_empty() => Item::skipped(what, NOT_RUN),
        None => Item::held(what, true, format!("{}{seconds}", launches(case))),
    }
}

fn where_experts_go(fact: &PlacementFacts) -> Item {
    let (devices, host) = (fact.expert_bytes_on_devices, fact.expert_bytes_on_host);
    let (what, holds) = match fact.case.as_str() {
        "all-on-device" => ("no routed expert is on the host", host == Bytes(0)),
        "experts-on-host" => ("no routed expert is on a device", devices == Bytes(0)),
        _ => ("where the routed experts are is known", true),
    };
    let detail = format!("{devices} of experts on devices, {host} on the host, by the placement that is replayed");
    Item::held(format!("{}: {what}", fact.case), holds, detail)
}

fn launches(case: &Case) -> String {
    let n = case.sessions.len();
    if n == 1 { "1 launch".to_string() } else { format!("{n} launches") }
}

fn memory_as_predicted(case: &Case) -> Item {
    let what = format!("{}: memory is as predicted", case.name);
    if let Some((verdict, why)) = in_the_way(case) {
        return Item::new(what, verdict, why);
    }
    let rows: Vec<&Row> = case.sessions.iter().flat_map(|session| &session.comparison).collect();
    let wrong = rows.iter().filter(|row| !row.ok).take(3);
    let wrong: Vec<String> =
        wrong.map(|row| format!("{}: predicted {}, measured {}", row.quantity, row.predicted, row.measured)).collect();
    match (rows.len(), wrong.as_slice()) {
        (0, _) => Item::open(what, "llama.cpp chooses this launch by itself: there is no prediction of it"),
        (n, []) => Item::held(what, true, format!("{} of {}", counted(n as u64, "row"), launches(case))),
        (_, wrong) => Item::held(what, false, wrong.join("; ")),
    }
}

/// What is said of a case that was not launched at all.
const NOT_RUN: &str = "it was not run";

/// Why a case has nothing to show, and what that makes of a line about it; the reason itself is in the line of [`launched`].
fn in_the_way(case: &Case) -> Option<(Verdict, String)> {
    let name = &case.name;
    let Some(session) = case.sessions.first() else { return Some((Verdict::Skipped, NOT_RUN.to_string())) };
    if case.sessions.iter().any(|session| session.failure.is_none() || !session.samples.is_empty()) {
        return None;
    }
    Some(match session.kind() {
        Kind::NotLaunched => (Verdict::Skipped, format!("{name} was not launched")),
        Kind::DoesNotFit => (Verdict::Skipped, format!("{name} does not fit, as predicted")),
        Kind::Failed => (Verdict::Fail, format!("the launch of {name} failed")),
    })
}

/// A line that cannot be ticked: what is in the way of one of these cases, else what was not seen.
fn lacking(what: String, cases: &[&Case], unseen: &str) -> Item {
    match cases.iter().copied().find_map(in_the_way) {
        Some((verdict, why)) => Item::new(what, verdict, why),
        None => Item::skipped(what, unseen),
    }
}

/// The four tests on every case: answered, timed, judged.
pub fn tests(bench: &Bench) -> Section {
    let mut items = Vec::new();
    for case in &bench.cases {
        for prompt in &bench.prompts {
            items.push(answered(case, &prompt.name, Mode::Whole));
        }
        for quality in &case.quality {
            let wrong = quality.items.iter().filter(|item| item.verdict == quality.verdict);
            let says = |item: &Item| match item.what.as_str() {
                NOT_JUDGED => item.detail.clone(),
                what => format!("{what}: {}", item.detail),
            };
            let what = format!("{}: the answer to {} is right", case.name, quality.prompt);
            items.push(Item::new(what, quality.verdict, wrong.map(says).collect::<Vec<_>>().join("; ")));
        }
    }
    Section { name: "tests".into(), items }
}

fn answered(case: &Case, prompt: &str, mode: Mode) -> Item {
    let how = if mode == Mode::Stream { "streamed" } else { "answered in one piece" };
    let what = format!("{}: {prompt} is {how}", case.name);
    let samples = case.sessions.iter().flat_map(|session| &session.samples);
    let samples: Vec<_> = samples.filter(|sample| sample.prompt == prompt && sample.mode == mode).collect();
    if samples.is_empty() {
        return lacking(what, &[case], "it was not asked");
    }
    if let Some(failure) = samples.iter().find_map(|sample| sample.failure.clone()) {
        return Item::held(what, false, failure);
    }
    let row = case.speed.iter().find(|row| row.prompt.as_deref() == Some(prompt) && row.mode == mode);
    let mean = |unit: &str, value: Option<Spread>| {
        value.map_or(format!("{unit} unknown"), |value| format!("{unit} {:.2} ± {:.2}", value.mean, value.stddev))
    };
    let mut figures = vec![
        mean("tokens", row.and_then(|row| row.generated_tokens)),
        mean("pp", row.and_then(|row| row.pp)),
        mean("tg", row.and_then(|row| row.tg)),
    ];
    if mode == Mode::Stream {
        figures.push(mean("seconds to the first token", row.and_then(|row| row.first_token_seconds)));
    }
    Item::held(what, true, format!("{} times; {}", samples.len(), figures.join(", ")))
}

/// Streams of every case.
pub fn streaming(bench: &Bench) -> Section {
    let mut items = Vec::new();
    for case in &bench.cases {
        for prompt in &bench.prompts {
            items.push(answered(case, &prompt.name, Mode::Stream));
        }
        let sound =
            case.stream.iter().map(|line| Item { what: format!("{}: {}", case.name, line.what), ..line.clone() });
        items.extend(sound);
    }
    Section { name: "streaming".into(), items }
}

/// What the case under test saves, and what that costs.
pub fn memory(bench: &Bench) -> Section {
    let mut items = Vec::new();
    let Some((first, baselines)) = bench.cases.split_first() else {
        return Section { name: "memory".into(), items };
    };
    let measured = |session: &Session| session.failure.is_none().then(|| on_devices(session)).flatten();
    let what = format!("{}: memory was measured", first.name);
    items.push(match first.sessions.iter().find_map(measured) {
        Some(bytes) => Item::held(what, true, format!("{bytes} on devices")),
        None => lacking(what, &[first], "its log names no buffer"),
    });
    for baseline in baselines {
        let what = format!("{} takes less of the devices than {}", first.name, baseline.name);
        let savings: Vec<_> = bench.savings.iter().filter(|saving| saving.baseline == baseline.name).collect();
        if savings.is_empty() {
            items.push(lacking(what.clone(), &[first, baseline], "not measured"));
        }
        for saving in &savings {
            let percent =
                saving.saved_percent.map_or(String::new(), |percent| format!(", {}% less", fixed(percent, 1)));
            let detail = format!("{} beside {}{percent}, by {}", saving.bytes, saving.baseline_bytes, saving.by);
            // Only beside everything on the device is it a claim; what a plan or llama.cpp chooses may be as small.
            let verdict = match (saving.saved_bytes > 0, baseline.name.as_str()) {
                (true, _) => Verdict::Pass,
                (false, "all-on-device") => Verdict::Fail,
                (false, _) => Verdict::NotAssessed,
            };
            items.push(Item::new(what.clone(), verdict, detail));
        }
        let what = format!("what that costs in generation beside {} is known", baseline.name);
        items.push(match savings.first().and_then(|saving| saving.tg_ratio) {
            Some(ratio) => Item::held(what, true, format!("{ratio:.2} times its speed")),
            None => lacking(what, &[first, baseline], "no speed was measured"),
        });
    }
    if !bench.savings.iter().any(|saving| saving.by == "driver") {
        let what = "what the devices show agrees with llama.cpp's own sums";
        items.push(Item::open(what, "no driver here says what a device shows"));
    }
    Section { name: "memory".into(), items }
}

/// The final checklist: a line a section over all models.
pub fn summary(prerequisites: &[Item], models: &[ModelValidation]) -> Vec<Item> {
    let mut lines = vec![folded("prerequisites", &prerequisites.iter().collect::<Vec<_>>())];
    for name in ["file", "architecture", "placements", "tests", "streaming", "memory"] {
        let items: Vec<&Item> = models
            .iter()
            .flat_map(|model| &model.sections)
            .filter(|section| section.name == name)
            .flat_map(|section| &section.items)
            .collect();
        if !items.is_empty() || name != "file" {
            lines.push(folded(name, &items));
        }
    }
    lines.push(every_model(models));
    lines
}

/// Whether every model of the suite gave something.
fn every_model(models: &[ModelValidation]) -> Item {
    let what = "every model of the suite was run";
    let failed = |model: &&ModelValidation| NothingMeasured::of(&model.bench).is_some();
    let failed: Vec<String> =
        models.iter().filter(failed).map(|model| format!("{}: nothing of it was measured", model.name)).collect();
    let skipped: Vec<String> =
        models.iter().filter_map(|model| Some(format!("{}: {}", model.name, model.skipped.as_ref()?))).collect();
    let verdict = match (failed.is_empty(), skipped.is_empty() && !models.is_empty()) {
        (false, _) => Verdict::Fail,
        (true, false) => Verdict::Skipped,
        (true, true) => return Item::held(what, true, counted(models.len() as u64, "model")),
    };
    Item::new(what, verdict, failed.into_iter().chain(skipped).collect::<Vec<_>>().join("; "))
}

fn folded(name: &str, items: &[&Item]) -> Item {
    if items.is_empty() {
        return Item::skipped(name, "nothing was run");
    }
    let count = |verdict| items.iter().filter(|item| item.verdict == verdict).count();
    let mut detail = format!("{} of {} lines hold", count(Verdict::Pass), items.len());
    for (verdict, what) in
        [(Verdict::Fail, "do not"), (Verdict::NotAssessed, "not assessed"), (Verdict::Skipped, "skipped")]
    {
        if let n @ 1.. = count(verdict) {
            let _ = write!(detail, ", {n} {what}");
        }
    }
    if let Some(first) = items.iter().find(|item| item.verdict == Verdict::Fail) {
        let _ = write!(detail, "; the first that does not: {} ({})", first.what, first.detail);
    }
    Item::new(name, overall(items.iter().copied()), detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::document::{Prompt, Saving};
    use crate::suite::failure::Trouble;

    fn case(name: &str, failure: Option<&str>) -> Case {
        let session = Session {
            case: name.into(),
            repetition: 1,
            failure: failure.map(str::to_string),
            trouble: failure.map(|_| Trouble { kind: Kind::Failed, hint: None }),
            ..Session::default()
        };
        Case { name: name.into(), sessions: vec![session], ..Case::default() }
    }

    fn bench(saved: i64) -> Bench {
        let saving = Saving {
            baseline: "all-on-device".into(),
            by: "llama.cpp".into(),
            bytes: Bytes(1),
            baseline_bytes: Bytes(2),
            saved_bytes: saved,
            saved_percent: Some(50.0),
            tg_ratio: Some(0.5),
            pp_ratio: None,
        };
        Bench {
            prompts: vec![Prompt { name: "code".into(), text: String::new(), max_tokens: 1 }],
            cases: vec![case("experts-on-host", None), case("all-on-device", None), case("fit", Some("out of memory"))],
            savings: vec![saving],
            ..Bench::default()
        }
    }

    fn verdict(section: &Section, what: &str) -> (Verdict, String) {
        let item = section.items.iter().find(|item| item.what.contains(what)).unwrap_or_else(|| panic!("{what}"));
        (item.verdict, item.detail.clone())
    }

    #[test]
    fn savings_are_ticked_with_figures() {
        let section = memory(&bench(1));
        let (ticked, detail) = verdict(&section, "less of the devices than all-on-device");
        assert!(ticked == Verdict::Pass && detail.contains("50.0% less, by llama.cpp"), "{detail}");
        assert_eq!(verdict(&section, "than fit"), (Verdict::Fail, "the launch of fit failed".into()));
        assert_eq!(verdict(&memory(&bench(-1)), "than all-on-device").0, Verdict::Fail);
        assert_eq!(verdict(&section, "what the devices show").0, Verdict::NotAssessed);
    }

    #[test]
    fn what_was_not_asked_is_skipped_with_the_reason() {
        let section = tests(&bench(1));
        assert_eq!(verdict(&section, "experts-on-host: code is"), (Verdict::Skipped, "it was not asked".into()));
        assert_eq!(verdict(&placements(&[], &bench(1)), "all-on-device: memory").0, Verdict::NotAssessed);
    }

    #[test]
    fn a_launch_that_failed_is_a_failure_and_one_that_cannot_be_is_none() {
        let mut bench = bench(1);
        let of = |bench: &Bench, what: &str| -> (Verdict, String) {
            let found =
                of_bench(&[], bench).iter().flat_map(|section| &section.items).find(|i| i.what == what).cloned();
            found.map_or_else(|| panic!("{what}"), |item| (item.verdict, item.detail))
        };
        let launched = "fit: every launch ran to its end";
        assert_eq!(of(&bench, launched), (Verdict::Fail, "launch 1: out of memory".into()));
        for line in ["fit: memory is as predicted", "fit: code is answered in one piece", "fit: code is streamed"] {
            assert_eq!(of(&bench, line), (Verdict::Fail, "the launch of fit failed".into()), "{line}");
        }
        assert_eq!(of(&bench, "all-on-device: every launch ran to its end").0, Verdict::Pass);
        for (kind, says) in
            [(Kind::NotLaunched, "fit was not launched"), (Kind::DoesNotFit, "fit does not fit, as predicted")]
        {
            bench.cases[2].sessions[0].trouble = Some(Trouble { kind, hint: None });
            assert_eq!(of(&bench, launched), (Verdict::Skipped, "out of memory".into()));
            assert_eq!(of(&bench, "fit: code is streamed"), (Verdict::Skipped, says.into()));
        }
        // A session of before kinds were written, and one that broke after it had answered.
        bench.cases[2].sessions[0].trouble = None;
        assert_eq!(of(&bench, launched).0, Verdict::Fail);
        bench.cases[2].sessions.push(Session::default());
        assert_eq!(of(&bench, launched).0, Verdict::Fail);
        assert_eq!(of(&bench, "fit: code is streamed"), (Verdict::Skipped, "it was not asked".into()));
    }

    #[test]
    fn expectations_and_weights_are_lines() {
        let check = |ok| expectation::Check { what: "experts.count".into(), expected: 16.into(), found: 8.into(), ok };
        let weights = Weights { synthetic: Some(true), basis: "a hole".into() };
        let section = architecture(Some(&[check(false)]), &weights);
        assert_eq!(verdict(&section, "experts.count is 16"), (Verdict::Fail, "found 8".into()));
        assert_eq!(verdict(&section, "weights are real"), (Verdict::NotAssessed, "a hole".into()));
        assert_eq!(verdict(&architecture(None, &weights), "as expected").0, Verdict::NotAssessed);
    }

    #[test]
    fn the_summary_counts_and_names_the_first_failure() {
        let model = |skipped: Option<&str>, sections| {
            let skipped = skipped.map(str::to_string);
            ModelValidation { name: "m".into(), skipped, sections, ..ModelValidation::default() }
        };
        let models = [model(None, vec![memory(&bench(-1))]), model(Some("no file"), Vec::new())];
        let lines = summary(&[Item::held("x", true, "")], &models);
        let of = |what: &str| lines.iter().find(|line| line.what == what).unwrap().clone();
        assert_eq!(of("prerequisites").verdict, Verdict::Pass);
        assert!(of("memory").verdict == Verdict::Fail && of("memory").detail.contains("the first that does not"));
        assert_eq!((of("tests").verdict, of("tests").detail.as_str()), (Verdict::Skipped, "nothing was run"));
        assert_eq!(lines.last().unwrap().detail, "m: no file");
    }

    #[test]
    fn a_device_is_there_when_llama_cpp_lists_it() {
        let described = |names: &[&str]| -> Vec<Device> {
            names.iter().map(|name| Device::parse(&format!("{name}=8GiB")).unwrap()).collect()
        };
        let listed = |name: &str, gpu| DeviceInfo {
            name: name.into(),
            buffer: name.into(),
            description: "a card".into(),
            backend: "CUDA".into(),
            gpu,
            total: Bytes::mib(81_079),
            free: Bytes::mib(80_000),
        };
        let here = [listed("CUDA0", true), listed("CPU", false)];
        for (names, listed, verdict, says) in [
            (&["CUDA0"][..], &here[..], Verdict::Pass, "llama.cpp lists CUDA0 with 8.00 GiB: a card, 79.18 GiB"),
            (&["CUDA0", "CUDA1"], &here, Verdict::Fail, "CUDA1 was described and is not here: llama.cpp lists CUDA0 ("),
            (&["CUDA0"], &here[1..], Verdict::Fail, "llama.cpp lists none"),
            (&[], &here, Verdict::Fail, "none was found or described"),
        ] {
            let item = devices(&described(names), listed);
            assert!(item.verdict == verdict && item.detail.contains(says), "{item:?}");
        }
    }
}
