//! `moeplan doctor` on this computer, with a llama-server that stands for a real one, and with what would interfere.

use crate::support::examples;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn fake() -> PathBuf {
    examples::example("fake-llama-server", "tests/support/fake_llama_server.rs")
}

/// `moeplan doctor --json` in an environment of its own; exit code and document.
fn doctor(set: &[(&str, &Path)]) -> (i32, Value) {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.args(["doctor", "--json"]).env_clear().env("HOME", home.path()).env("PATH", home.path());
    let output = command.envs(set.iter().copied()).output().unwrap();
    let document = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), document.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
}

/// Level of the first finding of this code.
fn level<'a>(document: &'a Value, code: &str) -> Option<&'a str> {
    let findings = document["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["code"] == code)?["level"].as_str()
}

#[test]
fn without_a_runtime_it_says_what_works_all_the_same() {
    let (code, document) = doctor(&[]);
    assert_eq!(document["schema"], "moeplan/doctor/1");
    if cfg!(feature = "embedded") {
        assert_eq!((code, level(&document, "embedded")), (0, Some("ok")));
    } else {
        assert_eq!((code, level(&document, "no-runtime")), (1, Some("problem")));
    }
    assert_eq!(document["ok"], code == 0);
    assert!(level(&document, "folder").is_some() && level(&document, "environment").is_some());
}

#[test]
fn a_server_is_asked_what_it_is() {
    let (code, document) = doctor(&[("MOEPLAN_LLAMA_SERVER", &fake())]);
    let server = &document["facts"]["servers"][0];
    assert_eq!((code, server["build"].as_u64(), server["place"].as_str()), (0, Some(11434), Some("named")));
    assert_eq!((server["lists_devices"].as_bool(), server["error"].as_str()), (Some(true), None));
    assert_eq!((level(&document, "server"), level(&document, "server-alone")), (Some("ok"), Some("note")));
}

#[test]
fn what_is_no_server_is_a_problem_and_secrets_are_not_shown() {
    let token = Path::new("hf_secret");
    let (code, document) = doctor(&[
        ("MOEPLAN_LLAMA_SERVER", Path::new("/nowhere/llama-server")),
        ("HF_TOKEN", token),
        ("HTTPS_PROXY", token),
        ("LLAMA_ARG_N_CPU_MOE", Path::new("12")),
        ("XDG_STATE_HOME", Path::new("/dev/null")),
    ]);
    assert_eq!((code, level(&document, "server-broken")), (1, Some("problem")));
    assert_eq!(level(&document, "folder-not-writable"), Some("problem"));
    let text = document.to_string();
    assert!(text.contains("LLAMA_ARG_N_CPU_MOE=12") && text.contains("HF_TOKEN: ") && !text.contains("hf_secret"));
}
