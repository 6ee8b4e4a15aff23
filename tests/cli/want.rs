//! `plan --want`, `--upgrade` and `--together`: every answer, asked for directly with its own flags, is the same plan; emitted files
//! are the plans.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::schemas;

/// The exit code, the standard output and what was said of `moeplan WORDS`.
fn moeplan(folder: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.args(words).current_dir(folder).env("CUDA_VISIBLE_DEVICES", "").env("HOME", folder);
    command.env("LLAMA_CACHE", folder).env("HF_HOME", folder.join("none")).env_remove("XDG_CACHE_HOME");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn document(folder: &Path, words: &[&str]) -> (i32, Value) {
    // What follows a command that is checked would be part of it.
    let (first, rest) = words.split_at(1);
    let (code, text, said) = moeplan(folder, &[first, &["--json"], rest].concat());
    let document = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {said}"));
    schemas::assert_valid(&document);
    (code, document)
}

/// Small siblings of two models.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [("qwen3-30b-a3b", "a.gguf"), ("mixtral-8x7b", "b.gguf")] {
        assert_eq!(moeplan(folder.path(), &["synth", name, "--blocks", "4", "-q", "-o", file]).0, 0);
    }
    folder
}

const MACHINE: [(&str, &str); 4] =
    [("--gpu", "RTX 4090=4000M"), ("--ram", "16G@64"), ("--cores", "16"), ("--margin", "256M")];

/// The machine's flags, of which an answer's own replace those that say the same.
fn with<'a>(own: &[&'a str]) -> Vec<&'a str> {
    let kept = MACHINE.iter().filter(|(name, _)| !own.contains(name));
    kept.flat_map(|(name, value)| [*name, *value]).chain(own.iter().copied()).collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn every_answer_asked_for_directly_is_the_same_plan() {
    let folder = folder();
    let plan =
        |model: &'static str, own: &[&str]| document(folder.path(), &[&["plan", model][..], &with(own)].concat());
    let (code, wanted) = plan("b.gguf", &["--want", "tg=150,ctx=16k"]);
    assert_eq!(code, 0, "{wanted}");
    let changes = ["budget", "card", "main_memory", "memory_speed"].map(|what| &wanted[what]);
    let mut answers: Vec<&Value> = changes.iter().flat_map(|change| change["answers"].as_array().unwrap()).collect();
    assert!(answers.len() > 3, "{wanted}");
    let (_, upgraded) = plan("b.gguf", &["--upgrade"]);
    answers.extend(upgraded["upgrades"].as_array().unwrap());
    for answer in answers {
        let (_, direct) = plan("b.gguf", &texts(&answer["flags"]));
        for key in ["speed", "turn_seconds", "args", "shortfall", "memory"] {
            assert_eq!(direct[key], answer[key], "{key} of {}", answer["flags"]);
        }
    }
    assert_eq!(plan("b.gguf", &["--want", "tg=1e6"]).0, 1);
}

/// Each machine is offered what it can be given, in words that go with those that describe it.
#[test]
fn what_is_offered_can_be_had_and_asked_for() {
    let folder = folder();
    let file = ["devices", "--gpu", "RTX 3060", "--ram", "64G", "--cores", "8", "-o", "m.json"];
    assert_eq!(moeplan(folder.path(), &file).0, 0);
    for (machine, expected) in [
        (&["--machine", "m.json"][..], &["one more card", "RTX 5060 TI", "main memory of", "128 GiB of"][..]),
        // The MI50 is larger, and slower.
        (&["--gpu", "7900 XTX", "--ram", "64G"], &["one more card", "main memory of", "128 GiB of"]),
        (&["--vram", "4000M", "--ram", "62G"], &["one more card", "", "main memory of", "128 GiB of"]),
        (&["--gpu", "M4 Max", "--ram", "64G"], &["128 GiB of"]),
        (&["--gpu", "M4 Max=24G", "--ram", "64G"], &["128 GiB of"]),
        (&["--gpu", "8060S=96G", "--ram", "128G", "--backend", "vulkan"], &[]),
        (&["--device", "Vulkan0=8G,shared", "--ram", "32G"], &["48 GiB of"]),
    ] {
        let (_, plan) = document(folder.path(), &[&["plan", "b.gguf", "--upgrade"][..], machine].concat());
        let answers = plan["upgrades"].as_array().map_or(&[][..], Vec::as_slice);
        let labels: Vec<&str> = answers.iter().map(|answer| answer["label"].as_str().unwrap()).collect();
        let is_expected = labels.iter().zip(expected).all(|(label, expected)| label.contains(expected));
        assert!(is_expected && labels.len() == expected.len(), "{machine:?}: {labels:?}");
        for answer in answers {
            let own = texts(&answer["flags"]);
            let says_the_same = |flag: &str| {
                let devices = ["--vram", "--gpu", "--device"];
                own.contains(&flag) || (devices.contains(&flag) && own.iter().any(|word| devices.contains(word)))
            };
            let kept = machine.chunks(2).filter(|pair| !says_the_same(pair[0])).flatten().copied();
            let words: Vec<&str> = ["plan", "b.gguf"].into_iter().chain(kept).chain(own.iter().copied()).collect();
            let (_, direct) = document(folder.path(), &words);
            for key in ["speed", "turn_seconds", "args", "shortfall", "memory"] {
                assert_eq!(direct[key], answer[key], "{key} of {words:?}");
            }
        }
    }
    let words = ["plan", "b.gguf", "--gpu", "M4 Max", "--ram", "64G", "--want", "tg=1e6"];
    let (code, wanted) = document(folder.path(), &words);
    assert_eq!(code, 1);
    for (what, expected) in [
        ("card", "part of their computer"),
        ("memory_speed", "the graphics use it too"),
        ("main_memory", "such computers are sold with"),
    ] {
        assert!(wanted[what]["reason"].as_str().unwrap().contains(expected), "{}", wanted[what]);
    }
}

/// What `--windows` says of a computer is in every command that is offered for it, and gives the same plan.
#[test]
fn windows_is_said_with_what_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    moeplan(folder.path(), &["synth", "qwen3-30b-a3b", "-o", "q.gguf"]);
    let machine = ["--gpu", "RTX 4070 Ti Super", "--ram", "32G", "--cores", "8", "-c", "8192"];
    let plan = |more: &[&str]| document(folder.path(), &[&["plan", "q.gguf"], &machine[..], more].concat()).1;
    let (linux, windows) = (plan(&[]), plan(&["--windows", "--upgrade"]));
    let budget = |plan: &Value| plan["machine"]["devices"][0]["total"].as_u64().unwrap() >> 20;
    assert!(budget(&windows) == 15_111 && budget(&linux) > 15_600, "{} {}", budget(&windows), budget(&linux));
    assert_eq!(windows["machine"]["host"]["windows"], true);
    for upgrade in windows["upgrades"].as_array().unwrap() {
        let flags = texts(&upgrade["flags"]);
        let own: Vec<&str> = machine.chunks(2).filter(|pair| !flags.contains(&pair[0])).flatten().copied().collect();
        let asked = document(folder.path(), &[&["plan", "q.gguf", "--windows"], &own[..], &flags[..]].concat()).1;
        assert_eq!(asked["turn_seconds"], upgrade["turn_seconds"], "{flags:?}");
    }
    let words =
        ["check", "--windows", "--gpu", "RTX 4090", "--ram", "64G", "--", "llama-server", "-m", "q.gguf", "-c", "8192"];
    let (_, checked) = document(folder.path(), &words);
    let asked = checked["plan"]["asked"].as_str().unwrap();
    assert!(asked.contains(" --windows "), "{asked}");
}

/// A P40 beside faster cards costs more than it gains here: the plan is the one without it.
#[test]
fn a_card_that_slows_the_plan_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    moeplan(folder.path(), &["synth", "qwen3.5-122b-a10b", "-o", "q.gguf"]);
    let plan = |cards: &str| {
        let words = ["plan", "q.gguf", "--gpu", cards, "--ram", "256G", "-c", "8192"];
        document(folder.path(), &words).1
    };
    let [with, without] = ["RTX 4090,2x RTX 3090,P40=24G", "RTX 4090,2x RTX 3090"].map(plan);
    assert_eq!((&with["turn_seconds"], &with["args"]), (&without["turn_seconds"], &without["args"]));
    let warnings = with["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|warning| warning["code"] == "device-not-used"), "{warnings:?}");
}

#[test]
fn models_together_are_plans_with_budgets_and_files_that_give_them() {
    let folder = folder();
    let line = |own: &[&'static str]| [&["plan", "--together", "a.gguf", "b.gguf"][..], &with(own)].concat();
    let (code, together) = document(folder.path(), &line(&[]));
    assert_eq!((code, &together["fits"]), (0, &Value::Bool(true)));
    let members = together["members"].as_array().unwrap();
    for (member, (model, port)) in members.iter().zip([("a.gguf", 8080), ("b.gguf", 8081)]) {
        let (_, direct) = document(folder.path(), &[&["plan", model][..], &with(&texts(&member["flags"]))].concat());
        for key in ["speed", "turn_seconds", "command", "memory", "machine"] {
            assert_eq!(direct[key], member["plan"][key], "{key} of {model}");
        }
        assert!(member["command"].as_str().unwrap().ends_with(&format!(" --port {port}")));
    }
    let (_, other) = document(folder.path(), &line(&["--", "--port", "9000", "--jinja"]));
    let commands = other["members"].as_array().unwrap().iter().map(|member| member["command"].as_str().unwrap());
    for (command, port) in commands.zip([9000, 9001]) {
        assert!(command.ends_with(&format!(" --jinja --port {port}")), "{command}");
    }
    let (_, _, said) = moeplan(folder.path(), &line(&["--emit", "ini", "--", "--api-key", "secret"]));
    assert!(said.contains("left out: --api-key (") && !said.contains("secret"), "{said}");
    for (form, file) in [("llama-swap", "swap.yaml"), ("ini", "models.ini")] {
        let (code, text, _) = moeplan(folder.path(), &line(&["--emit", form]));
        assert_eq!((code, Some(text.trim())), (0, together[form.replace('-', "_")].as_str().map(str::trim)));
        std::fs::write(folder.path().join(file), text).unwrap();
        let checked = ["check", "--vram", "4000M", "--ram", "64G", file];
        let (_, checks) = document(folder.path(), &checked);
        let checks = checks["checks"].as_array().unwrap();
        assert_eq!(checks.len(), 2);
        for (check, member) in checks.iter().zip(members) {
            assert_eq!((&check["name"], &check["run"]["n_ctx"]), (&member["name"], &member["plan"]["run"]["n_ctx"]));
            assert_eq!(check["memory"]["CUDA0"]["model"], member["plan"]["memory"]["CUDA0"]["model"], "{form}");
        }
    }
    let swap = std::fs::read_to_string(folder.path().join("swap.yaml")).unwrap();
    assert!(
        swap.contains("groups:\n  together:\n    swap: false\n    exclusive: true\n    members:\n    - a\n    - b\n"),
        "{swap}"
    );
    let ini = std::fs::read_to_string(folder.path().join("models.ini")).unwrap();
    assert_eq!(ini.matches("load-on-startup = true").count(), 2);
}

#[test]
fn what_cannot_be_asked_says_why() {
    let folder = folder();
    for (words, expected) in [
        (&["plan", "a.gguf", "--want", "fast"][..], "write tg=20"),
        (&["plan", "a.gguf", "b.gguf", "--want", "tg=3"], "take one MODEL"),
        (&["plan", "a.gguf", "--together"], "two MODELs or more"),
        (&["plan", "a.gguf", "b.gguf", "--together", "--weights", "1"], "--weights has 1 number for 2 models"),
        (&["plan", "a.gguf", "b.gguf", "--together", "--weights", "1,-1"], "above 0"),
        (
            &["plan", "a.gguf", "b.gguf", "--together", "--vram", "3G", "--emit", "env"],
            "--emit llama-swap or --emit ini",
        ),
        (&["plan", "a.gguf", "--vram", "3000M", "--budget", "1G,1G"], "2 sizes, but there is 1 device"),
    ] {
        let (code, _, said) = moeplan(folder.path(), words);
        assert!(code == 2 && said.contains(expected), "{words:?}: {code} {said}");
    }
}

#[test]
fn models_here_are_ranked_by_what_a_machine_makes_of_them() {
    let folder = folder();
    std::fs::copy(folder.path().join("b.gguf"), folder.path().join("0.gguf")).unwrap();
    std::fs::write(folder.path().join("1.gguf"), "GGUF").unwrap();
    let ranked = |machine: &[&str]| document(folder.path(), &[&["list"], machine].concat());
    let names = |list: &Value| -> Vec<String> {
        list["models"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_string()).collect()
    };
    let (code, list) = ranked(&with(&[]));
    assert_eq!((code, names(&list)), (0, ["a", "0", "b", "1"].map(str::to_string).to_vec()));
    let rows = list["models"].as_array().unwrap();
    assert!(rows[..3].iter().all(|row| row["fits"]["auto"]["fits"] == true) && rows[3]["error"].is_string());
    let (code, plain) = ranked(&[]);
    assert_eq!((code, names(&plain)), (0, ["0", "1", "a", "b"].map(str::to_string).to_vec()));
    assert!(plain["machine"].is_null() && plain["models"][0]["fits"].is_null());
    assert_eq!(ranked(&["--vram", "1M", "--ram", "1G"]).0, 1);
    let (_, text, _) = moeplan(folder.path(), &[&["list"][..], &with(&[])].concat());
    assert!(text.contains("all on device") && text.contains("Predicted, prompt"), "{text}");
}
