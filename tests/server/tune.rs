//! `moeplan tune` with the real llama-server and a software device: interrupted, killed, resumed, and with nothing to measure.
//!
//! The server is `MOEPLAN_LLAMA_SERVER`, or what `scripts/llama-server` has built; without either the tests say so and pass.
#![expect(clippy::print_stderr, reason = "says what it did not test")]

use crate::support::schemas;
use crate::{MOEPLAN, tiny, until};

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use moeplan::runtime::server;
use serde_json::Value;

/// A tiny model, a journal, and the words of a tuning.
struct Bench {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Bench {
    /// `None` where there is no server.
    fn new() -> Option<Self> {
        let named = std::env::var_os("MOEPLAN_LLAMA_SERVER").map(PathBuf::from);
        let program = match server::find(named.as_deref()) {
            Ok(program) => program,
            Err(error) => {
                eprintln!("not tested with the real llama-server: {error}");
                return None;
            }
        };
        let bench = Self { folder: tempfile::tempdir().expect("a folder"), program };
        tiny(bench.folder.path());
        Some(bench)
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("tune.jsonl")
    }

    fn tune(&self, more: &[&str]) -> Command {
        let mut command = Command::new(MOEPLAN);
        command
            .args(["tune", "--json", "--vram", "9M", "--margin", "0", "--threads", "1"])
            .args(["--ubatch-size", "256", "--load-mode", "mmap", "--generate", "4", "--minutes", "2"])
            .args(more)
            .args(if more.contains(&"--backend") { &[][..] } else { &["--backend", "rpc"] })
            .arg("--llama-server")
            .arg(&self.program)
            .arg("--journal")
            .arg(self.journal())
            .arg(self.model())
            .env("XDG_STATE_HOME", self.folder.path().join("state"))
            .env("MOEPLAN_LOCK_DIR", self.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn visits(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.journal()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Whether any program that was given the model is left.
    fn is_model_in_use(&self) -> bool {
        let model = self.model().display().to_string();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join("cmdline")).any(|path| is_given(&path, &model))
    }
}

fn is_given(cmdline: &Path, model: &str) -> bool {
    std::fs::read(cmdline).is_ok_and(|words| String::from_utf8_lossy(&words).contains(model))
}

#[test]
fn a_tuning_survives_being_stopped_and_killed_and_ends_with_a_command() {
    let Some(bench) = Bench::new() else { return };
    let turn = ["--ctx-size", "512", "--prompt", "32", "--depth", "64"];
    for (signal, code, visits) in [("-INT", Some(130), 1), ("-9", None, 2)] {
        let mut child = bench.tune(&turn).spawn().expect("moeplan");
        assert!(until(|| bench.visits().len() >= visits), "{signal}: nothing is written down");
        let kill = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(kill.expect("kill").success());
        assert_eq!(child.wait().expect("an end").code(), code, "{signal}");
        assert!(until(|| !bench.is_model_in_use()), "{signal}: a server is left behind");
    }
    let before = bench.visits();
    let whole = std::fs::read_to_string(bench.journal()).expect("the journal");
    // As a crash of the whole computer would leave it.
    let torn = whole.lines().find(|line| !line.is_empty()).expect("a line");
    std::fs::write(bench.journal(), format!("{whole}{}", &torn[..torn.len() / 2])).expect("the journal");

    let output = bench.tune(&turn).output().expect("moeplan");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("{} earlier measurements are reused from", before.len())), "{said}");
    let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    schemas::assert_valid(&document);
    let after = bench.visits();
    assert_eq!(before[..], after[..before.len()]);
    let candidates = document["candidates"].as_array().expect("candidates");
    let measured: Vec<&Value> = candidates.iter().filter(|candidate| !candidate["measured"].is_null()).collect();
    let visits: u64 = measured.iter().filter_map(|candidate| candidate["measured"]["visits"].as_u64()).sum();
    assert_eq!(visits, after.len() as u64, "{document}");
    assert!(measured.len() >= 2, "{document}");
    for candidate in &measured {
        let seen = &candidate["measured"];
        let turns = seen["turns"].as_array().expect("turns").len() as u64;
        assert_eq!((turns, seen["depth"].as_u64()), (3 * seen["visits"].as_u64().expect("visits"), Some(64)));
        assert!(seen["memory"]["Host"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{seen}");
    }
    let kinds: Vec<_> = candidates.iter().take(3).map(|candidate| candidate["kind"].as_str()).collect();
    assert_eq!(kinds, [Some("plan"), Some("fit"), Some("neighbour")]);
    // b11434 has no expert cache.
    let what = candidates.iter().filter_map(|candidate| candidate["what"].as_str());
    assert_eq!(what.filter(|what| what.contains("--moe-cache-mib")).count(), 0, "{document}");
    let winner = &candidates[usize::try_from(document["winner"].as_u64().expect("a winner")).expect("an index")];
    assert_eq!(winner["state"], "winner", "{winner}");
    let words = shlex::split(document["command"].as_str().expect("a command")).expect("words");
    // moeplan's own servers have ended: their addresses are none to paste.
    let args = winner["args"].as_array().expect("args").iter().filter_map(Value::as_str);
    let server = winner["args"].to_string();
    let address =
        server.split(['"', '[', ']', ',', '=']).find(|word| word.starts_with("127.0.0.1:")).expect("a server");
    let args: Vec<String> = args.map(|word| word.replace(address, "HOST:PORT")).collect();
    assert_eq!((words[0].as_str(), &words[3..]), ("llama-server", args.as_slice()));
    assert!(!document["command"].to_string().contains("127.0.0.1"), "{}", document["command"]);

    // All is measured: the same command only says it again.
    let again = bench.tune(&turn).output().expect("moeplan");
    let again: Value = serde_json::from_slice(&again.stdout).expect("a document");
    assert_eq!((&again["winner"], bench.visits().len()), (&document["winner"], after.len()));
}

#[test]
fn what_cannot_be_measured_is_no_answer_and_is_said_once() {
    let Some(bench) = Bench::new() else { return };
    // A device that is not here is not here for any candidate.
    let output = bench.tune(&["--backend", "cuda", "--prompt", "32"]).output().expect("moeplan");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
    assert!(said.contains("error: nothing could be measured: llama-server did not start: "), "{said}");
    assert_eq!((said.matches("invalid device").count(), said.matches("measuring ").count()), (1, 1), "{said}");
    assert!(said.contains("\nhint: `moeplan doctor`") && bench.visits().is_empty(), "{said}");
    assert!(!bench.is_model_in_use());
}

#[test]
fn a_turn_longer_than_the_context_is_refused_before_anything_is_launched() {
    let Some(bench) = Bench::new() else { return };
    let output = bench.tune(&["--ctx-size", "256", "--prompt", "1000"]).output().expect("moeplan");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
    assert!(said.contains("error: the turn needs 1004 tokens of context, but this launch has room for 256"), "{said}");
    assert!(
        said.contains("\nhint: plan with -c 1024 or more, or --prompt 252 or less") && !said.contains("measuring"),
        "{said}"
    );
}
