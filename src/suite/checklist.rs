//! The checklist of a validation: every line ticked with its evidence, or not ticked with the reason.

use std::fmt::Write as _;

use serde_json::json;

use super::bench::{nothing_measured, on_devices};
use super::document::{
    Bench, Case, Item, Kind, Mode, ModelValidation, PlacementFacts, Section, Session, Verdict, Weights,
};
use super::protocol::Suite;
use super::quality::{NOT_JUDGED, overall};
use super::store::Store;
use crate::bytes::Bytes;
use crate::expectation;
use crate::machine::Device;
use crate::measurement::{Row, Spread};
use crate::number::{counted, fixed};
use crate::runtime::DeviceInfo;

pub const ARCHITECTURE: &str = "architecture";
pub const PLACEMENTS: &str = "placements";
pub const BENCH: &str = "bench.json";

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
            "{} was described but is not here: llama.cpp lists {} (`moeplan doctor` says why; --backend rpc starts software \
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
    let shown = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let line = |check: &expectation::Check| {
        let what = format!("{} is {}", check.what, shown(&check.expected));
        Item::held(what, check.ok, format!("found {}", shown(&check.found)))
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

/// A model as the folder of results tells it, whose file need not be there any more; `None` where none of its launches was made.
pub fn earlier(store: &Store, suite: &Suite, name: &str) -> Option<ModelValidation> {
    let store = store.at(name);
    let bench: Bench = store.read(BENCH)?;
    let architecture: Section = store.step(ARCHITECTURE)?.result;
    let placements: Vec<PlacementFacts> = store.step(PLACEMENTS)?.result;
    let mut sections = vec![Section { name: "file".into(), items: vec![kept(&bench, suite)] }, architecture];
    sections.extend(of_bench(&placements, &bench));
    let path = bench.model.as_ref().map(|model| model.path.clone());
    Some(ModelValidation { name: name.to_string(), path, sections, placements, bench: Some(bench), skipped: None })
}

/// The line that says that a model was not run this time, and whether it was asked what the suite asks now.
fn kept(bench: &Bench, suite: &Suite) -> Item {
    let other = [
        // As documents have them, without what is expected of the answers.
        ("prompts", json!(bench.prompts) != json!(suite.prompts)),
        ("settings", bench.settings != suite.settings()),
        ("cases", bench.cases.iter().map(|case| &case.name).ne(&suite.cases)),
    ];
    let other: Vec<&str> = other.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
    let fewest = bench.cases.iter().map(|case| case.sessions.len()).min().unwrap_or_default();
    let is_lost = bench.cases.iter().any(|case| case.sessions.iter().any(|session| session.failure.is_some()));
    let asked = bench.settings.repetitions;
    let (verdict, asked) = if !is_lost && u32::try_from(fewest).is_ok_and(|fewest| fewest < asked) {
        (Verdict::NotAssessed, format!("it was interrupted: {fewest} of {asked} launches of each case were run"))
    } else if other.is_empty() {
        (Verdict::Pass, "same settings as now".to_string())
    } else {
        (Verdict::NotAssessed, format!("its {} differ from the suite's", other.join(" and ")))
    };
    let what = "the results of an earlier run belong to this suite";
    Item::new(what, verdict, format!("its file was not run this time; {asked}"))
}

pub fn of_bench(facts: &[PlacementFacts], bench: &Bench) -> [Section; 4] {
    let (mut placements, mut tests, mut streaming) = (Vec::new(), Vec::new(), Vec::new());
    for case in &bench.cases {
        placements.extend(facts.iter().find(|fact| fact.case == case.name).map(where_experts_go));
        placements.extend([launched(case), memory_as_predicted(case)]);
        tests.extend(bench.prompts.iter().map(|prompt| answered(case, &prompt.name, Mode::Whole)));
        for quality in &case.quality {
            let wrong = quality.items.iter().filter(|item| item.verdict == quality.verdict);
            let says = |item: &Item| match item.what.as_str() {
                NOT_JUDGED => item.detail.clone(),
                what => format!("{what}: {}", item.detail),
            };
            let what = format!("{}: the answer to {} is right", case.name, quality.prompt);
            tests.push(Item::new(what, quality.verdict, wrong.map(says).collect::<Vec<_>>().join("; ")));
        }
        streaming.extend(bench.prompts.iter().map(|prompt| answered(case, &prompt.name, Mode::Stream)));
        let of_case = |line: &Item| Item { what: format!("{}: {}", case.name, line.what), ..line.clone() };
        streaming.extend(case.stream.iter().map(of_case));
    }
    let section = |name: &str, items| Section { name: name.into(), items };
    [
        section("placements", placements),
        section("tests", tests),
        section("streaming", streaming),
        section("memory", memory(bench)),
    ]
}

/// Whether llama.cpp took every launch of a case and kept it up. What was refused before, or was predicted not to fit, is not a
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
        _ => ("the location of the routed experts is known", true),
    };
    let detail = format!("{devices} of experts on devices, {host} on the host, by the replayed placement");
    Item::held(format!("{}: {what}", fact.case), holds, detail)
}

fn launches(case: &Case) -> String {
    if case.sessions.len() == 1 { "1 launch".to_string() } else { format!("{} launches", case.sessions.len()) }
}

fn memory_as_predicted(case: &Case) -> Item {
    let what = format!("{}: memory is as predicted", case.name);
    if let Some((verdict, why)) = in_the_way(case) {
        return Item::new(what, verdict, why);
    }
    let rows: Vec<&Row> = case.sessions.iter().flat_map(|session| &session.taken.comparison).collect();
    let wrong = rows.iter().filter(|row| !row.ok).take(3);
    let wrong: Vec<String> =
        wrong.map(|row| format!("{}: predicted {}, measured {}", row.quantity, row.predicted, row.measured)).collect();
    match (rows.len(), wrong.as_slice()) {
        (0, _) => Item::open(what, "llama.cpp chooses this launch by itself: there is no prediction for it"),
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

fn answered(case: &Case, prompt: &str, mode: Mode) -> Item {
    let is_stream = mode == Mode::Stream;
    let what = format!("{}: {prompt} is {}", case.name, if is_stream { "streamed" } else { "answered in one piece" });
    let samples: Vec<_> = case.samples().filter(|sample| sample.prompt == prompt && sample.mode == mode).collect();
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
    if is_stream {
        figures.push(mean("seconds to the first token", row.and_then(|row| row.first_token_seconds)));
    }
    Item::held(what, true, format!("{} times; {}", samples.len(), figures.join(", ")))
}

fn memory(bench: &Bench) -> Vec<Item> {
    let Some((first, baselines)) = bench.cases.split_first() else { return Vec::new() };
    let measured = |session: &Session| session.failure.is_none().then(|| on_devices(session)).flatten();
    let what = format!("{}: memory was measured", first.name);
    let mut items = vec![match first.sessions.iter().find_map(measured) {
        Some(bytes) => Item::held(what, true, format!("{bytes} on devices")),
        None => lacking(what, &[first], "its log lists no buffer"),
    }];
    for baseline in baselines {
        let what = format!("{} takes less device memory than {}", first.name, baseline.name);
        let savings: Vec<_> = bench.savings.iter().filter(|saving| saving.baseline == baseline.name).collect();
        if savings.is_empty() {
            items.push(lacking(what.clone(), &[first, baseline], "not measured"));
        }
        for saving in &savings {
            let percent = saving.saved_percent.map_or(String::new(), |it| format!(", {}% less", fixed(it, 1)));
            let detail = format!("{} against {}{percent}, by {}", saving.bytes, saving.baseline_bytes, saving.by);
            // Only beside everything on the device is it a claim; what a plan or llama.cpp chooses may be as small.
            let verdict = match (saving.saved_bytes > 0, baseline.name.as_str()) {
                (true, _) => Verdict::Pass,
                (false, "all-on-device") => Verdict::Fail,
                (false, _) => Verdict::NotAssessed,
            };
            items.push(Item::new(what.clone(), verdict, detail));
        }
        let what = format!("its generation speed against {} is known", baseline.name);
        items.push(match savings.first().and_then(|saving| saving.tg_ratio) {
            Some(ratio) => Item::held(what, true, format!("{ratio:.2} times its speed")),
            None => lacking(what, &[first, baseline], "no speed was measured"),
        });
    }
    if !bench.savings.iter().any(|saving| saving.by == "driver") {
        let what = "what the devices show agrees with llama.cpp's own sums";
        let why = match (baselines.is_empty(), bench.savings.is_empty()) {
            (true, _) => "there is no baseline to compare it with",
            (false, true) => "no baseline was measured beside it",
            (false, false) => "no driver here reports device memory",
        };
        items.push(Item::open(what, why));
    }
    items
}

/// The final checklist: a line a section over all models.
pub fn summary(prerequisites: &[Item], models: &[ModelValidation]) -> Vec<Item> {
    let mut lines = vec![folded("prerequisites", &prerequisites.iter().collect::<Vec<_>>())];
    for name in ["file", "architecture", "placements", "tests", "streaming", "memory"] {
        let sections = models.iter().flat_map(|model| &model.sections).filter(|section| section.name == name);
        let items: Vec<&Item> = sections.flat_map(|section| &section.items).collect();
        if !items.is_empty() || name != "file" {
            lines.push(folded(name, &items));
        }
    }
    let what = "every model of the suite was run";
    let failed = models.iter().filter(|model| nothing_measured(&model.bench).is_some());
    let mut why: Vec<String> = failed.map(|model| format!("{}: nothing was measured", model.name)).collect();
    let is_failed = !why.is_empty();
    why.extend(models.iter().filter_map(|model| Some(format!("{}: {}", model.name, model.skipped.as_ref()?))));
    lines.push(match (is_failed, why.is_empty() && !models.is_empty()) {
        (true, _) => Item::held(what, false, why.join("; ")),
        (false, false) => Item::skipped(what, why.join("; ")),
        (false, true) => Item::held(what, true, counted(models.len() as u64, "model")),
    });
    lines
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
    use crate::suite::document::{Environment, Saving, Trouble};
    use crate::suite::protocol::Prompt;

    fn bench(saved_bytes: i64) -> Bench {
        let case = |name: &str, failure: Option<&str>| {
            let failure = failure.map(str::to_string);
            let trouble = failure.as_ref().map(|_| Trouble { kind: Kind::Failed, hint: None });
            let session = Session { case: name.into(), repetition: 1, failure, trouble, ..Session::default() };
            Case { name: name.into(), sessions: vec![session], ..Case::default() }
        };
        let saving = Saving {
            baseline: "all-on-device".into(),
            by: "llama.cpp".into(),
            bytes: Bytes(1),
            baseline_bytes: Bytes(2),
            saved_bytes,
            saved_percent: Some(50.0),
            tg_ratio: Some(0.5),
            pp_ratio: None,
        };
        Bench {
            prompts: vec![Prompt { name: "code".into(), text: String::new(), max_tokens: 1, check: None }],
            cases: vec![case("experts-on-host", None), case("all-on-device", None), case("fit", Some("out of memory"))],
            savings: vec![saving],
            ..Bench::default()
        }
    }

    #[track_caller]
    fn holds(items: &[Item], what: &str, verdict: Verdict, detail: &str) {
        let item = items.iter().find(|item| item.what.contains(what)).unwrap_or_else(|| panic!("{what}: {items:?}"));
        assert!(item.verdict == verdict && item.detail.contains(detail), "{item:?}");
    }

    fn lines(bench: &Bench) -> Vec<Item> {
        of_bench(&[], bench).into_iter().flat_map(|section| section.items).collect()
    }

    #[test]
    fn lines_are_ticked_with_figures_or_not_ticked_with_the_reason() {
        let mut bench = bench(1);
        let items = lines(&bench);
        holds(&items, "less device memory than all-on-device", Verdict::Pass, "50.0% less, by llama.cpp");
        holds(&items, "what the devices show", Verdict::NotAssessed, "no driver");
        let unmeasured = Bench { savings: Vec::new(), ..self::bench(1) };
        holds(&lines(&unmeasured), "what the devices show", Verdict::NotAssessed, "no baseline was measured");
        let alone = Bench { cases: bench.cases[..1].to_vec(), ..unmeasured };
        holds(&lines(&alone), "what the devices show", Verdict::NotAssessed, "there is no baseline");
        holds(&items, "experts-on-host: code is", Verdict::Skipped, "it was not asked");
        holds(&items, "all-on-device: memory", Verdict::NotAssessed, "by itself");
        holds(&items, "all-on-device: every launch", Verdict::Pass, "1 launch");
        holds(&lines(&self::bench(-1)), "than all-on-device", Verdict::Fail, "");
        // A launch that failed is a failure, one that cannot be is not.
        let of_fit =
            ["fit: memory is as predicted", "fit: code is answered in one piece", "fit: code is streamed", "than fit"];
        for (kind, verdict, says, launched) in [
            (Some(Kind::Failed), Verdict::Fail, "the launch of fit failed", "launch 1: out of memory"),
            (Some(Kind::NotLaunched), Verdict::Skipped, "fit was not launched", "out of memory"),
            (Some(Kind::DoesNotFit), Verdict::Skipped, "fit does not fit, as predicted", "out of memory"),
            // Of before kinds were written.
            (None, Verdict::Fail, "the launch of fit failed", "launch 1: out of memory"),
        ] {
            bench.cases[2].sessions[0].trouble = kind.map(|kind| Trouble { kind, hint: None });
            let items = lines(&bench);
            holds(&items, "fit: every launch ran to its end", verdict, launched);
            for line in of_fit {
                holds(&items, line, verdict, says);
            }
        }
        // It broke after it had answered.
        bench.cases[2].sessions.push(Session::default());
        holds(&lines(&bench), "fit: every launch", Verdict::Fail, "");
        holds(&lines(&bench), "fit: code is streamed", Verdict::Skipped, "it was not asked");
        let check =
            expectation::Check { what: "experts.count".into(), expected: 16.into(), found: 8.into(), ok: false };
        let weights = Weights { synthetic: Some(true), basis: "a hole".into() };
        let items = architecture(Some(&[check]), &weights).items;
        holds(&items, "experts.count is 16", Verdict::Fail, "found 8");
        holds(&items, "weights are real", Verdict::NotAssessed, "a hole");
        holds(&architecture(None, &weights).items, "as expected", Verdict::NotAssessed, "");
    }

    #[test]
    fn the_summary_counts_and_names_the_first_failure() {
        let model = |skipped: Option<&str>, sections| {
            let skipped = skipped.map(str::to_string);
            ModelValidation { name: "m".into(), skipped, sections, ..ModelValidation::default() }
        };
        let memory = Section { name: "memory".into(), items: memory(&bench(-1)) };
        let models = [model(None, vec![memory]), model(Some("no file"), Vec::new())];
        let lines = summary(&[Item::held("x", true, "")], &models);
        holds(&lines, "prerequisites", Verdict::Pass, "1 of 1");
        holds(&lines, "memory", Verdict::Fail, "the first that does not");
        holds(&lines, "tests", Verdict::Skipped, "nothing was run");
        holds(&lines, "every model", Verdict::Skipped, "m: no file");
    }

    #[test]
    fn a_device_is_there_when_llama_cpp_lists_it() {
        let listed = |name: &str, gpu| DeviceInfo {
            name: name.into(),
            description: "a card".into(),
            gpu,
            total: Bytes::mib(81_079),
            ..DeviceInfo::default()
        };
        let here = [listed("CUDA0", true), listed("CPU", false)];
        for (names, listed, verdict, says) in [
            (&["CUDA0"][..], &here[..], Verdict::Pass, "llama.cpp lists CUDA0 with 8.00 GiB: a card, 79.18 GiB"),
            (&["CUDA0", "CUDA1"], &here, Verdict::Fail, "CUDA1 was described but is not here: llama.cpp lists CUDA0 ("),
            (&["CUDA0"], &here[1..], Verdict::Fail, "llama.cpp lists none"),
            (&[], &here, Verdict::Fail, "none was found or described"),
        ] {
            let described = names.iter().map(|name| Device::parse(&format!("{name}=8GiB")).unwrap());
            holds(&[devices(&described.collect::<Vec<_>>(), listed)], "device", verdict, says);
        }
    }

    #[test]
    fn an_earlier_model_is_told_by_its_steps_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path()).unwrap();
        let mut suite = Suite { repetitions: 1, ..Suite::protocol() };
        let write = |suite: &Suite| {
            let mut bench = Bench::new(suite, Environment::default(), None, Weights::default());
            let case =
                |name: &String| Case { name: name.clone(), sessions: vec![Session::default()], ..Case::default() };
            bench.cases = suite.cases.iter().map(case).collect();
            let below = Store::new(&store.path("small")).unwrap();
            below.write(BENCH, &serde_json::to_string(&bench).unwrap()).unwrap();
            below.keep(ARCHITECTURE, "of the file then", &architecture(None, &Weights::default())).unwrap();
            below.keep(PLACEMENTS, "of the file then", &Vec::<PlacementFacts>::new()).unwrap();
        };
        assert!(earlier(&store, &suite, "small").is_none());
        for (repetitions, is_new, verdict, says) in [
            (1, true, Verdict::Pass, "same settings as now"),
            (2, false, Verdict::NotAssessed, "its settings differ from the suite's"),
            (3, true, Verdict::NotAssessed, "1 of 3 launches of each case were run"),
        ] {
            suite.repetitions = repetitions;
            if is_new {
                write(&suite);
            }
            holds(&earlier(&store, &suite, "small").unwrap().sections[0].items, "earlier run", verdict, says);
        }
        // What was not run to its end is no result.
        for lost in [BENCH, "architecture.json", "placements.json"] {
            write(&suite);
            std::fs::write(store.path("small").join(lost), "{\"schema\":").unwrap();
            assert!(earlier(&store, &suite, "small").is_none(), "{lost}");
        }
    }
}
