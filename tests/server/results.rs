//! What commands write, hold and leave behind: looked at before a launch, never lost, nobody's overwritten, gone with its owner.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::schemas;

const VERIFY: &str = "verify m.gguf --runtime server --backend cpu -c 512";
const BENCH: &str =
    "bench m.gguf --backend cpu -c 2048 --repetitions 2 --max-tokens 6 --depth-prompt 8 --depth-generate 4";
const TUNE: &str = "tune m.gguf --backend cpu -c 512 --prompt 32 --generate 4 --minutes 2";
const VALIDATE: &str =
    "validate --model mine=m.gguf --vram 8G --ram 16G --repetitions 1 --max-tokens 6 --depth-prompt 8";
const RUN: &str = "run m.gguf --backend cpu -c 512";

/// A folder with a tiny model `m.gguf` and a file `mine`, a home and a lock of its own, and a llama-server that is none.
struct Place {
    folder: tempfile::TempDir,
    server: PathBuf,
}

impl Place {
    fn new() -> Self {
        let server = crate::fake();
        let place = Self { folder: tempfile::tempdir().expect("a folder"), server };
        for folder in ["home", "state"] {
            std::fs::create_dir(place.at(folder)).expect("a folder");
        }
        std::fs::write(place.at("mine"), "mine").expect("a file");
        let made = place.run("synth qwen3-30b-a3b --tiny --weights random -q -o m.gguf");
        assert_eq!(made.0, Some(0), "{}", made.2);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The cache folder of the home.
    fn cache(&self) -> PathBuf {
        self.at("home/.cache/moeplan")
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in ["XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "FAKE_LLAMA_SERVER"] {
            command.env_remove(name);
        }
        command.env("HOME", self.at("home")).env("MOEPLAN_LOCK_DIR", self.folder.path()).env("TMPDIR", self.at("home"));
        command.env("MOEPLAN_LLAMA_SERVER", &self.server).env("FAKE_LLAMA_SERVER_STATE", self.at("state"));
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    }

    /// Runs to the end: exit code, standard output, standard error.
    fn run(&self, words: &str) -> (Option<i32>, String, String) {
        end(self.command(words).spawn().expect("moeplan"))
    }

    /// Whether any server was started.
    fn is_launched(&self) -> bool {
        self.at("state/pid").exists()
    }

    /// What is temporary in the folder and its home.
    fn temporary(&self) -> Vec<PathBuf> {
        let folders = [self.folder.path().to_path_buf(), self.at("home"), self.cache()];
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        let is_ours =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".moeplan-"));
        entries.map(|entry| entry.path()).filter(is_ours).collect()
    }

    fn left_behind(&self) -> Option<Value> {
        let document: Value = serde_json::from_str(&self.run("doctor --json").1).expect("a document");
        let findings = document["findings"].as_array().expect("findings");
        findings.iter().find(|finding| finding["code"] == "left-behind").cloned()
    }
}

fn end(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().expect("an end");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill").success());
}

fn until(what: &str, is: impl Fn() -> bool) {
    assert!(crate::until(is), "{what}");
}

fn document(text: &str) -> Value {
    let document = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    schemas::assert_valid(&document);
    document
}

/// How many drafted tokens are taken, only a measurement says.
#[test]
fn a_tuning_of_a_launch_that_drafts_tries_other_lengths_and_none() {
    let place = Place::new();
    let made = place.run("synth qwen3.6-35b-a3b-mtp --tiny --weights random -q -o d.gguf");
    assert_eq!(made.0, Some(0), "{}", made.2);
    let plan = "plan d.gguf --backend cpu -c 512 --prompt 32 --generate 4 --explain --json -o plan.json -- --spec-type draft-mtp";
    let made = place.run(plan);
    assert_eq!(made.0, Some(0), "{}", made.2);
    let (code, answer, said) = place.run("tune plan.json --minutes 2 --journal t.jsonl --json");
    assert_eq!(code, Some(0), "{said}");
    let document = document(&answer);
    let of = |what: &str| {
        let candidates = document["candidates"].as_array().expect("candidates").iter();
        candidates.clone().find(|candidate| candidate["what"] == what).unwrap_or_else(|| panic!("{what}: {answer}"))
    };
    let args = |what: &str| {
        let words = of(what)["args"].as_array().expect("args").iter().map(|word| word.as_str().expect("a word"));
        words.collect::<Vec<_>>().join(" ")
    };
    assert!(args("the plan").contains("--spec-type draft-mtp --spec-draft-n-max 3"), "{}", args("the plan"));
    assert!(args("drafts of 1 tokens").contains("--spec-draft-n-max 1"));
    assert!(!args("no drafts").contains("--spec"));
    // Of drafts of six a half is taken, three of a pass: by a probability of 0.805 for each.
    let measured = &of("drafts of 6 tokens")["measured"];
    let acceptance = measured["acceptance"].as_f64().expect("an acceptance");
    assert!((acceptance - 0.805).abs() < 0.01, "{acceptance}");
    assert!(of("no drafts")["measured"]["acceptance"].is_null());
    let winner = document["winner"].as_u64().and_then(|at| usize::try_from(at).ok()).expect("a winner");
    assert_eq!(document["candidates"][winner]["what"], "drafts of 6 tokens", "{answer}");
    let command = document["command"].as_str().expect("a command");
    assert!(command.contains("--spec-type draft-mtp --spec-draft-n-max 6"), "{command}");
}

#[test]
fn a_dry_run_checks_what_would_be_launched() {
    let place = Place::new();
    let tune = format!("{TUNE} --journal journal/tune.jsonl");
    for (words, names) in [
        (VERIFY, &[""][..]),
        (RUN, &[""]),
        (BENCH, &["plan", "experts-on-host"]),
        (&tune, &["the plan", "--fit on"]),
        (VALIDATE, &["mine: experts-on-host", "mine: all-on-device", "mine: fit"]),
    ] {
        let baseline = if words == BENCH { " --baseline experts-on-host" } else { "" };
        let (code, answer, said) = place.run(&format!("{words}{baseline} --dry-run --json"));
        assert_ne!(code, Some(2), "{words}: {said}");
        let document = document(&answer);
        let rows = document["checks"].as_array().map_or_else(|| vec![&document], |rows| rows.iter().collect());
        let found: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap_or_default()).collect();
        assert!(found.starts_with(names), "{words}: {found:?}");
        for row in rows {
            assert!(row["command"].as_str().unwrap().starts_with("llama-server -m m.gguf "), "{row}");
            assert!(row["memory"]["Host"]["model"].as_u64() > Some(0), "{row}");
        }
        assert!(!place.is_launched() && !place.at("results").exists() && !place.at("journal").exists(), "{words}");
    }
    // What `verify` launches is the command as it is checked: without llama.cpp's own fitting.
    let (_, answer, _) = place.run("verify --runtime server --dry-run --json -- llama-server -m m.gguf -ngl 0 -c 512");
    assert!(document(&answer)["command"].as_str().unwrap().contains("-fit off"), "{answer}");
    let (code, commands, _) = place.run("devices --calibrate --dry-run --vram 8G");
    assert!(code == Some(0) && commands.starts_with("llama-bench -m "), "{commands}");
}

#[test]
fn what_cannot_be_written_is_found_before_a_launch_and_nobodys_file_is_touched() {
    let place = Place::new();
    assert_eq!(place.run("plan m.gguf --vram 8G --ram 16G --json -o plan.json").0, Some(0));
    let answers = [
        VERIFY,
        BENCH,
        TUNE,
        VALIDATE,
        RUN,
        "plan m.gguf --vram 8G --ram 16G",
        "inspect m.gguf",
        "rules list",
        "rules show attention-first",
        "rules check attention-first m.gguf --vram 8G --ram 16G",
        "list",
        "devices",
        "devices --calibrate",
        "doctor",
        "completions bash",
        "man",
        "report plan.json",
        "synth gpt-oss-20b",
        "synth --list",
    ];
    let outputs = answers.into_iter().flat_map(|words| {
        [
            (format!("{words} -o mine"), "error: `mine` exists already\nhint: --force replaces it"),
            (format!("{words} -o no/x"), "error: cannot write `no/x`: there is no folder `no`\nhint: make the folder"),
            (format!("{words} -o home"), "error: `home` is a folder, not a file\nhint: name a file in it"),
            (format!("{words} -o mine/x"), "error: cannot write `mine/x`: "),
        ]
    });
    let others = [
        (format!("{VERIFY} -o m.gguf --force"), "`m.gguf` is a GGUF file, which an answer must not replace"),
        (format!("{BENCH} --csv mine"), "`mine` exists already"),
        (format!("{BENCH} --csv no/x"), "there is no folder `no`"),
        (format!("{BENCH} -o x --csv x"), "-o and --csv name the same file, `x`"),
        (format!("{TUNE} --journal mine"), "`mine` is not a journal of `tune`; nothing was added to it\nhint: name"),
        (format!("{TUNE} --journal home"), "`home` is a folder"),
        (
            format!("{VALIDATE} --results ."),
            "`.` is not empty, and holds no results of `validate`\nhint: name a new folder",
        ),
        (format!("{VALIDATE} --results mine"), "cannot write `mine`: "),
        (format!("{RUN} --server-log no/log"), "there is no folder `no`"),
        ("check -o mine -- llama-server -m m.gguf".to_string(), "`mine` exists already"),
        ("synth gpt-oss-20b --shards 2 -o no/x.gguf".to_string(), "there is no folder `no`"),
        ("man --out mine".to_string(), "cannot make `mine`"),
    ];
    for (words, expected) in outputs.chain(others) {
        let (code, out, said) = place.run(&words);
        assert!(code == Some(2) && out.is_empty() && said.contains(expected), "{words}: {code:?} {said}");
        assert!(!place.is_launched(), "{words}: it was found out after a launch");
    }
    assert_eq!(std::fs::read(place.at("mine")).expect("the file"), b"mine");
    for words in ["rules show attention-first -o mine --force", "man --out pages", "man --out pages --force"] {
        assert_eq!(place.run(words).0, Some(0), "{words}");
    }
    assert!(std::fs::read_to_string(place.at("mine")).expect("the file").contains("rules:"));
    let (code, out, _) = place.run("man --out pages");
    assert_eq!((code, out.as_str()), (Some(2), ""));
    for words in ["rules list -o -", "rules list -o /dev/stdout", "rules list"] {
        assert!(place.run(words).1.contains("attention-first"), "{words}");
    }
    assert_eq!(place.run("rules list -o /dev/null").0, Some(0));
    assert!(place.temporary().is_empty(), "{:?}", place.temporary());
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_measured_is_printed_where_it_cannot_be_kept() {
    let place = Place::new();
    let (code, out, said) = place.run(&format!("{VERIFY} --json -o /dev/full"));
    assert!(code == Some(2) && said.contains("cannot write `/dev/full`: No space left on device"), "{said}");
    assert_eq!(document(&out)["speed"]["pp"].as_array().map(Vec::len), Some(3));
    let (code, out, said) = place.run(&format!("{BENCH} --csv /dev/full"));
    assert!(code == Some(2) && said.contains("cannot write `/dev/full`"), "{said}");
    let (page, table) = out.split_once("\ncase,").expect("a table after the page");
    assert!(page.contains("tg") && table.lines().count() > 1 + 2 * 8, "{out}");
    let (code, out, said) = place.run(&format!("{BENCH} --json --csv /dev/full"));
    assert!(code == Some(2) && document(&out)["cases"][0]["sessions"][1]["samples"][7].is_object(), "{said}");
    let (code, out, said) = place.run(&format!("{TUNE} --json --journal /dev/full"));
    assert!(code == Some(2) && said.contains("cannot write the journal `/dev/full`"), "{said}");
    let tuned = document(&out);
    assert_eq!((&tuned["stopped"], &tuned["candidates"][0]["measured"]["visits"]), (&"journal".into(), &1.into()));
}

#[test]
fn a_validation_whose_folder_goes_away_is_printed() {
    let place = Place::new();
    // The last request of the first launch waits for the folder to go.
    let mut child = place.command(&format!("{VALIDATE} --json"));
    let child = child.env("FAKE_LLAMA_SERVER", "hang-at-100000").spawn().expect("moeplan");
    until("it measures", || place.at("state/requests").exists());
    std::fs::remove_dir_all(place.at("moeplan-validation")).expect("the folder");
    let (code, out, said) = end(child);
    assert!(code == Some(2) && said.contains("error: cannot write `moeplan-validation/mine/"), "{said}");
    let model = document(&out)["models"].as_array().expect("models").iter().find(|m| m["name"] == "mine").cloned();
    let model = model.expect("the model");
    assert!(model["bench"]["cases"][0]["sessions"][0]["samples"][0].is_object(), "{model}");
    assert!(model["sections"].as_array().is_some_and(|sections| sections.len() > 3), "{model}");
}

#[test]
fn what_was_measured_before_an_interruption_is_answered() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let place = Place::new();
        let mut verify = place.command(&format!("{VERIFY} --json"));
        let verify = verify.env("FAKE_LLAMA_SERVER", "hang-at-4").spawn().expect("moeplan");
        until("the second sample hangs", || place.at("state/hangs").exists());
        signal(&verify, name);
        let (code, out, said) = end(verify);
        let measured = document(&out);
        assert_eq!((code, &measured["interrupted"]), (Some(130), &true.into()), "{said}");
        assert!(said.contains("interrupted: 2 of 3 samples"), "{said}");
        assert_eq!(measured["speed"]["pp"].as_array().map(Vec::len), Some(2));
        assert!(measured["comparison"].as_array().is_some_and(|rows| !rows.is_empty()));
        assert!(place.temporary().is_empty(), "{:?}", place.temporary());
    }
    let place = Place::new();
    for (more, page) in [("--json -o bench.json", "bench.json"), ("--json", "")] {
        let mut bench = place.command(&format!("{BENCH} {more}"));
        let bench = bench.env("FAKE_LLAMA_SERVER", "hang-at-14").spawn().expect("moeplan");
        until("the second launch hangs", || place.at("state/hangs").exists());
        signal(&bench, "-INT");
        let (code, out, said) = end(bench);
        let text = if page.is_empty() { out } else { std::fs::read_to_string(place.at(page)).expect("the file") };
        let bench = document(&text);
        let sessions = bench["cases"][0]["sessions"].as_array().expect("sessions");
        assert_eq!((code, sessions.len(), &sessions[1]["failure"]), (Some(130), 2, &"interrupted".into()), "{said}");
        assert!(sessions[1]["samples"].as_array().is_some_and(|samples| !samples.is_empty()), "{text}");
        assert!(bench["notes"].to_string().contains("interrupted"), "{text}");
        for mark in ["hangs", "requests"] {
            std::fs::remove_file(place.at("state").join(mark)).expect("a mark");
        }
    }
}

/// Large enough to be under way for as long as it takes to look.
const LARGE: &str = "synth granite-3.1-3b-a800m --weights random -q -o large.gguf";

#[test]
fn what_is_temporary_goes_with_its_owner_and_is_left_to_it() {
    let place = Place::new();
    for name in ["-INT", "-TERM", "-HUP"] {
        let child = place.command(LARGE).spawn().expect("moeplan");
        until("it writes", || !place.temporary().is_empty());
        // Held, so that it does not come to its end while a busy machine gets round to the other run.
        signal(&child, "-STOP");
        // Another run clears what was left behind, and this was not.
        assert_eq!(place.run("list").0, Some(0));
        assert_eq!(place.temporary().len(), 1, "{name}: a file of somebody who lives is gone");
        signal(&child, name);
        signal(&child, "-CONT");
        assert_eq!(end(child), (Some(130), String::new(), String::new()), "{name}");
        assert!(place.temporary().is_empty(), "{name}: {:?}", place.temporary());
    }
    let child = place.command(LARGE).spawn().expect("moeplan");
    until("it writes", || !place.temporary().is_empty());
    signal(&child, "-KILL");
    assert_eq!(end(child).0, None);
    let finding = place.left_behind().expect("a finding");
    assert_eq!((&finding["level"], &finding["area"]), (&"note".into(), &"disk".into()), "{finding}");
    assert!(finding["message"].as_str().is_some_and(|text| text.starts_with("1 temporary file ")), "{finding}");
    assert_eq!(place.temporary().len(), 1, "a doctor only looks");
    assert_eq!(place.run("rules list").0, Some(0));
    assert!(place.temporary().is_empty() && place.left_behind().is_none());
    assert_eq!(std::fs::read_dir(place.cache().join("temporary")).expect("records").count(), 0);
    // A record that names something else than what is temporary removes nothing.
    std::fs::write(place.cache().join("temporary/x.owned"), place.at("mine").display().to_string()).expect("a record");
    assert_eq!((place.run("rules list").0, place.at("mine").exists()), (Some(0), true));
}

/// A llama-bench that gives rows once, and then hangs.
const LLAMA_BENCH: &str = r#"#!/bin/sh
if [ -e "$FAKE_LLAMA_SERVER_STATE/row" ]; then touch "$FAKE_LLAMA_SERVER_STATE/hangs"; exec sleep 600; fi
touch "$FAKE_LLAMA_SERVER_STATE/row"
for n in 1 2 4 8; do
  echo '{"model_filename":"'"$2"'","n_batch":2048,"n_ubatch":512,"n_threads":1,"n_prompt":0,"n_gen":'$n',"n_depth":0,"avg_ts":10.0}'
done
"#;

#[test]
fn a_calibration_that_is_cut_off_leaves_its_rows_and_no_model() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut place = Place::new();
    let bin = place.at("bin");
    std::fs::create_dir(&bin).expect("a folder");
    std::fs::copy(&place.server, bin.join("llama-server")).expect("a program");
    std::fs::write(bin.join("llama-bench"), LLAMA_BENCH).expect("a program");
    std::fs::set_permissions(bin.join("llama-bench"), std::fs::Permissions::from_mode(0o755)).expect("a program");
    place.server = bin.join("llama-server");
    let child = place.command("devices --calibrate --backend cpu").spawn().expect("moeplan");
    until("the second test hangs", || place.at("state/hangs").exists());
    let refused = place.run(VERIFY);
    assert!(refused.2.contains("`moeplan devices --calibrate` (process "), "{}", refused.2);
    signal(&child, "-TERM");
    let (code, out, said) = end(child);
    let rows = place.at("home/.local/state/moeplan/calibration.jsonl");
    let hint =
        format!("the measurements are kept in {0}; `moeplan devices --calibrate --from {0}` uses them", rows.display());
    assert!(code == Some(130) && out.is_empty() && said.contains(&hint), "{code:?} {said}");
    assert_eq!(std::fs::read_to_string(&rows).expect("rows").lines().count(), 4);
    assert!(place.temporary().is_empty(), "{:?}", place.temporary());
    let again = place.run(&format!("devices --calibrate --backend cpu --json --from {}", rows.display()));
    assert_eq!(again.0, Some(0), "{}", again.2);
    assert_eq!(document(&again.1)["calibration"]["measurements"].as_array().map(Vec::len), Some(4));
}

#[test]
fn one_measures_at_a_time_and_a_lock_goes_with_its_process() {
    let place = Place::new();
    let mut verify = place.command(VERIFY);
    let first = verify.env("FAKE_LLAMA_SERVER", "slow").spawn().expect("moeplan");
    until("the first one loads", || place.is_launched());
    let id = first.id();
    for words in [VERIFY, BENCH, TUNE, VALIDATE, "devices --calibrate", "bench --url http://127.0.0.1:9"] {
        let (code, out, said) = place.run(words);
        let expected = format!("error: `moeplan verify` (process {id}) has been measuring on this machine for ");
        assert!(code == Some(2) && out.is_empty() && said.contains(&expected), "{words}: {said}");
        assert!(said.contains(&format!("\nhint: wait until it has ended, or stop it with `kill -INT {id}`")), "{said}");
    }
    // These measure nothing, or not here.
    for words in ["plan m.gguf --backend cpu", "bench --url http://192.0.2.1:9 --timeout 1", "bench --from mine"] {
        assert!(!place.run(words).2.contains("measuring on this machine"), "{words}");
    }
    signal(&first, "-KILL");
    assert_eq!(end(first).0, None);
    assert_eq!(place.run(VERIFY).0, Some(1), "it measures, and no log of another launch is as predicted");
    assert!(place.temporary().is_empty(), "{:?}", place.temporary());
    let lock = std::fs::metadata(place.at("moeplan-measuring.lock")).expect("the lock");
    assert_eq!((lock.len(), std::os::unix::fs::PermissionsExt::mode(&lock.permissions()) & 0o777), (0, 0o666));
    // Where there can be no lock, that is said.
    let locked = place.command(VERIFY).env("MOEPLAN_LOCK_DIR", Path::new("/nowhere")).output().expect("moeplan");
    let said = String::from_utf8_lossy(&locked.stderr);
    assert!(
        locked.status.code() == Some(1) && said.contains("cannot lock `/nowhere/moeplan-measuring.lock`"),
        "{said}"
    );
}
