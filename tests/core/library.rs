//! The crate as a library: its examples say what the program says, and it takes nothing along that only the program needs.

use crate::support::examples;

use std::path::Path;
use std::process::Command;

use moeplan::gguf::{self, Fault, Start};

/// What an example prints.
fn output(name: &str, words: &[&str]) -> String {
    let program = examples::example(name, &format!("examples/{name}.rs"));
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A model's header over a hole, and what holds it.
fn model() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = moeplan::synth::hole("phi-3.5-moe", &moeplan::synth::Wish::default(), folder.path())
        .unwrap()
        .to_str()
        .unwrap()
        .to_string();
    (folder, path)
}

#[test]
fn inspect_says_what_the_file_is() {
    let (_folder, path) = model();
    let text = output("inspect", &[&path]);
    assert!(text.starts_with("phimoe, 32 blocks, 78.00 GiB\n2 of 16 experts a token, 75.00 GiB in all\n"), "{text}");
}

#[test]
fn plan_prints_overrides_that_check_finds_to_fit() {
    let (_folder, path) = model();
    let planned = output("plan", &[&path, "24G"]);
    let command = planned.lines().find(|line| line.starts_with("llama-server ")).unwrap();
    let overrides = planned.lines().next().unwrap().strip_prefix("-ot: ").unwrap();
    let words = shlex::split(command).unwrap();
    assert!(words.iter().any(|word| word == overrides), "{planned}");

    let words: Vec<&str> = ["24G"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let checked = output("check", &words);
    assert!(checked.ends_with("\nfits\n") && checked.contains("CUDA0: 19."), "{checked}");

    let all_on_device = output("check", &["24G", "llama-server", "-m", &path, "-ngl", "99"]);
    assert!(all_on_device.ends_with("\ndoes not fit\n"), "{all_on_device}");
    assert_eq!(output("plan", &[&path, "97G"]).lines().next(), Some("-ot: none needed"));
}

#[test]
fn examples_refuse_with_a_reason() {
    let program = examples::example("plan", "examples/plan.rs");
    let output = Command::new(program).args(["no such file", "24G"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("no such file"), "{text}");
}

#[test]
fn headers_in_memory_are_those_of_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/headers");
    let shards = [1, 2].map(|number| {
        let path = folder.join(format!("split-0000{number}-of-00002.gguf"));
        (path.to_str().unwrap().to_string(), std::fs::read(&path).unwrap())
    });
    let start = |at: usize, length: usize| {
        let (path, bytes) = &shards[at];
        Start { path, file_bytes: Some(bytes.len() as u64), bytes: &bytes[..length.min(bytes.len())] }
    };
    let whole = gguf::of_bytes(&[start(1, usize::MAX), start(0, usize::MAX)]).unwrap();
    let opened = gguf::open(shards[0].0.as_ref()).unwrap();
    assert_eq!((&whole.files, whole.header.tensors.len()), (&opened.files, opened.header.tensors.len()));
    let fault = |files: &[Start<'_>]| gguf::of_bytes(files).map(|_| ()).unwrap_err();
    let ends = fault(&[start(0, usize::MAX), start(1, 100)]);
    assert_eq!((ends.at.what, ends.path.to_str()), (Fault::Ends, Some(shards[1].0.as_str())));
    assert_eq!(fault(&[start(0, usize::MAX)]).at.what, Fault::MissingShard);
    assert_eq!(fault(&[]).at.what, Fault::NoModel);
}

/// The packages that a build of the library alone takes.
fn packages() -> Vec<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    cargo.args(["tree", "--offline", "--no-default-features", "--edges", "normal", "--prefix", "none"]);
    let output = cargo.args(["--format", "{p}"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_string())).collect()
}

#[test]
fn the_library_alone_brings_no_program_along() {
    let packages = packages();
    assert!(packages.iter().any(|name| name == "serde_json"), "{packages:?}");
    for name in ["clap", "anstream", "comfy-table", "indicatif", "ctrlc", "maud", "anyhow", "ureq", "nvml-wrapper"] {
        assert!(!packages.iter().any(|package| package == name), "{name} comes with the library");
    }
}
