//! The llama.cpp that is installed here: its build is taken, and what it projects is shown.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use moeplan::synth::{Wish, hole};
use serde_json::Value;

/// A folder with programs of llama.cpp that are shell scripts, a model, and a home.
struct Installed {
    folder: tempfile::TempDir,
    /// By `MOEPLAN_LLAMA_SERVER`; else it is on `PATH`.
    is_named: bool,
}

impl Installed {
    fn new(build: &str, projection: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let version = format!("echo 'version: {build}'; exit");
        let asked = folder.path().join("asked");
        let said = |rest: &str| {
            format!(
                "#!/bin/sh\necho \"$@\" >>{}\n[ \"$1\" = --version ] && {{ {version}; }}\n{rest}\n",
                asked.display()
            )
        };
        for (name, rest) in [("llama-server", ""), ("llama-fit-params", projection)] {
            let path = folder.path().join(name);
            fs::write(&path, said(rest)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        hole("qwen3-30b-a3b", &Wish { tiny: true, ..Wish::default() }, folder.path()).unwrap();
        Self { folder, is_named: false }
    }

    /// `check WORDS -- llama-server -m MODEL -ngl 99 -c 1024 -np 1`.
    fn run(&self, words: &[&str]) -> Output {
        let home = self.folder.path();
        let model = home.join("qwen3-30b-a3b.gguf");
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(["check", "--json", "--vram", "24G", "--ram", "64G"]).args(words);
        command.args(["--", "llama-server", "-m"]).arg(model).args(["-ngl", "99", "-c", "1024", "-np", "1"]);
        command.env_clear().env("HOME", home).env("XDG_CACHE_HOME", home).env("PATH", "/usr/bin:/bin");
        if self.is_named {
            command.env("MOEPLAN_LLAMA_SERVER", home.join("llama-server"));
        } else {
            command.env("PATH", format!("{}:/usr/bin:/bin", home.display()));
        }
        command.output().unwrap()
    }

    /// Its document, or what it says on standard error.
    fn check(&self, words: &[&str]) -> Result<Value, String> {
        let output = self.run(words);
        serde_json::from_slice(&output.stdout).map_err(|_| String::from_utf8(output.stderr).unwrap())
    }

    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }
}

/// The build that a check is for; the reference is left out of documents.
fn build(document: &Value) -> u64 {
    document["run"]["target"]["build"].as_u64().unwrap_or(11434)
}

#[test]
fn the_build_of_an_installed_server_is_taken_and_asked_once() {
    let here = Installed::new("0.8.0 (build 12032, commit 785322d)", "");
    assert_eq!(build(&here.check(&[]).unwrap()), 12032);
    assert_eq!(build(&here.check(&[]).unwrap()), 12032);
    assert_eq!(here.asked(), ["--version"]);
    let said =
        |words: &[&str]| String::from_utf8(here.run(words).stderr).unwrap().contains("assuming llama.cpp b12032");
    assert!(said(&[]) && !said(&["--build", "12032"]));
    assert_eq!(build(&here.check(&["--build", "v0.6.0"]).unwrap()), 11434);
    // It is not a build of the fork.
    assert!(!said(&["--dialect", "ik"]));
    assert_eq!(build(&here.check(&["--dialect", "ik"]).unwrap()), 11434);
    // Without one, the newest that is known.
    fs::remove_file(here.folder.path().join("llama-server")).unwrap();
    let newest = here.run(&[]);
    let note = "assuming llama.cpp b12032, the newest known; for an older one add --build N\n";
    assert_eq!(String::from_utf8(newest.stderr).unwrap(), note);
    assert_eq!(build(&serde_json::from_slice(&newest.stdout).unwrap()), 12032);
}

#[test]
fn an_installed_llama_fit_params_is_shown_beside_the_prediction() {
    let here = Installed::new(
        "0.6.0",
        "[ $1 = --help ] && { printf '%s\n' '-c, --ctx-size N' '-ngl N' '-fit on|off'; exit; }\necho 'load 1 2 x'; echo 'CUDA0 7 0 3 '; echo 'Host 0 0 1 '",
    );
    let document = here.check(&["--ask"]).unwrap();
    assert_eq!(build(&document), 11434);
    let projected = &document["projected"];
    assert_eq!(projected["version"], "version: 0.6.0");
    assert_eq!(projected["memory"]["CUDA0"]["model"], 7 << 20);
    assert!(projected["predicted"]["CUDA0"]["compute"].as_u64() > Some(0));
    let asked = here.asked();
    let projection = asked.iter().find(|words| words.contains("-fitp on")).unwrap();
    assert!(projection.ends_with("-c 1024 -ngl 99 -fit off -fitp on"), "{projection}");
    let named = Installed { is_named: true, ..here };
    assert_eq!(named.check(&["--ask"]).unwrap()["projected"]["memory"], projected["memory"]);
    // One that says nothing, and one that is not there.
    let silent = Installed::new("0.6.0", "echo 'error: invalid argument' >&2");
    assert!(silent.check(&["--ask"]).unwrap_err().contains("error: invalid argument"));
    let none = silent.folder.path().join("none");
    assert!(silent.check(&[&format!("--ask={}", Path::display(&none))]).unwrap_err().contains("is not a program"));
}
