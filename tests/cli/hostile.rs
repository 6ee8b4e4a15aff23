//! The program on models made to harm: whatever the header says, an answer or an error, never a panic or a long wait.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::gguf_builder::{Builder, V, text};

fn moeplan(words: &[&str]) -> Output {
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_moeplan")).args(words).env_remove("RUST_BACKTRACE").output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{words:?} took {:?}", started.elapsed());
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(code, Some(0..=2)), "{words:?} ended with {code:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    output
}

/// A llama of two blocks whose keys are as given.
fn llama(keys: &[(&str, u32)]) -> Builder {
    let usual = [("context_length", 4096), ("embedding_length", 64), ("block_count", 2), ("attention.head_count", 4)];
    let usual = usual.iter().filter(|(name, _)| !keys.iter().any(|(other, _)| other == name));
    let file = Builder::new().key("general.architecture", text("llama"));
    usual.chain(keys).fold(file, |file, (name, value)| file.key(&format!("llama.{name}"), V::U32(*value)))
}

/// The file, and the answers of inspect and check for it.
fn answers(file: &Builder) -> (tempfile::TempDir, Output, Output) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("m.gguf");
    std::fs::write(&path, file.build()).unwrap();
    let path = path.to_str().unwrap();
    let inspect = moeplan(&["inspect", "--tensors", "--metadata", "--json", path]);
    let check = moeplan(&["check", "--vram", "8G", "--json", "--", "llama-server", "-m", path]);
    (folder, inspect, check)
}

#[test]
fn keys_that_contradict_the_tensors() {
    let file = llama(&[]).tensor("token_embd.weight", &[7, 3], 0, 84).tensor("blk.0.attn_q.weight", &[5, 5], 0, 100);
    let (_folder, inspect, check) = answers(&file);
    assert!(inspect.status.success());
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("contradict each other"), "{said}");
    assert!(matches!(check.status.code(), Some(0..=2)), "{check:?}");
}

#[test]
fn keys_at_their_limits() {
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "expert_count",
        "expert_used_count",
        "vocab_size",
        "attention.sliding_window",
        "rope.dimension_count",
    ] {
        for value in [0, 1, u32::MAX] {
            let tensors = [("token_embd.weight", [64, 8]), ("blk.0.attn_q.weight", [64, 64])];
            let file = tensors.iter().fold(llama(&[(key, value)]), |file, (name, shape)| {
                file.tensor(name, shape, 0, shape.iter().product::<u64>() * 4)
            });
            answers(&file);
        }
    }
}

#[test]
fn names_with_escapes_bidi_and_markup_stay_text() {
    let evil = "\u{1b}]0;x\u{7}<img src=x onerror=alert(1)>|\u{202e}cod\n# h";
    let file = llama(&[]).key("general.name", text(evil)).key("a\u{1b}[2J", text(evil));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, file.tensor("blk.0.\u{1b}[31m<b>", &[4], 0, 16).build()).unwrap();
    for format in ["text", "markdown"] {
        let words = ["inspect", "--tensors", "--metadata", "--format", format, path.to_str().unwrap()];
        let page = String::from_utf8(moeplan(&words).stdout).unwrap();
        assert!(!page.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{page:?}");
        assert!(
            format == "text" || !(page.contains("<img") || page.contains("<b>") || page.contains("\n# h")),
            "{page}"
        );
    }
}

#[test]
fn patterns_that_take_long_or_much_are_refused_or_given_up() {
    let (folder, ..) = answers(&llama(&[]).tensor("token_embd.weight", &[64, 8], 0, 2048));
    let path = folder.path().join("m.gguf");
    let deep = format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000));
    let long = "a".repeat(2 << 20);
    for pattern in ["(a*)*b", "(x+x+)+y", "((((a{1000}){1000}){1000}){1000})", deep.as_str(), &long[..100_000]] {
        let launch = format!("{pattern}=CPU");
        moeplan(&["check", "--vram", "8G", "--", "llama-server", "-m", path.to_str().unwrap(), "-ot", &launch]);
    }
}
