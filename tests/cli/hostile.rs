//! The program on models made to harm: whatever the header says, an answer or an error, never a panic or a hang.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::gguf_builder::{Builder, V, text};

fn moeplan(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.args(words).env_remove("RUST_BACKTRACE");
    let (send, ended) = mpsc::channel();
    std::thread::spawn(move || send.send(command.output()));
    let output = ended.recv_timeout(Duration::from_mins(2)).unwrap_or_else(|_| panic!("{words:?} hangs")).unwrap();
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(code, Some(0..=2)), "{words:?} ended with {code:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    output
}

/// A llama of two blocks that llama.cpp would load, with the given keys in place of its own.
fn llama(keys: &[(&str, u32)]) -> Builder {
    let usual = [
        ("context_length", 4096),
        ("embedding_length", 64),
        ("block_count", 2),
        ("attention.head_count", 4),
        ("feed_forward_length", 64),
        ("vocab_size", 8),
    ];
    let usual = usual.iter().filter(|(name, _)| !keys.iter().any(|(other, _)| other == name));
    let file = Builder::new()
        .key("general.architecture", text("llama"))
        .key("tokenizer.ggml.model", text("none"))
        .key("llama.attention.layer_norm_rms_epsilon", V::F32(1e-5));
    let file = usual.chain(keys).fold(file, |file, (name, value)| file.key(&format!("llama.{name}"), V::U32(*value)));
    let file = file.tensor("token_embd.weight", &[64, 8], 0, 2048).tensor("output_norm.weight", &[64], 0, 256);
    (0..2).fold(file, |file, block| {
        let named = |base: &str| format!("blk.{block}.{base}.weight");
        let matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        let file = matrices.iter().fold(file, |file, base| file.tensor(&named(base), &[64, 64], 0, 16384));
        ["attn_norm", "ffn_norm"].iter().fold(file, |file, base| file.tensor(&named(base), &[64], 0, 256))
    })
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
    let (folder, inspect, check) = answers(&llama(&[]));
    assert_eq!((inspect.status.code(), check.status.code()), (Some(0), Some(0)), "{check:?}");
    assert!(String::from_utf8_lossy(&inspect.stdout).contains("\"warnings\": []"), "{inspect:?}");
    drop(folder);
    let (folder, inspect, check) = answers(&llama(&[("embedding_length", 7)]));
    assert!(inspect.status.success());
    assert!(String::from_utf8_lossy(&inspect.stdout).contains("\"code\": \"wrong-shape\""), "{inspect:?}");
    let path = folder.path().join("m.gguf");
    let plan = moeplan(&["plan", "--vram", "8G", path.to_str().unwrap()]);
    for refused in [check, plan] {
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("tensor 'token_embd.weight' has wrong shape; expected [7, 8], got [64, 8]"), "{said}");
        assert!(said.contains("hint: it is incomplete"), "{said}");
    }
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
            answers(&llama(&[(key, value)]));
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
    let (folder, ..) = answers(&llama(&[]));
    let path = folder.path().join("m.gguf");
    let deep = format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000));
    let long = "a".repeat(2 << 20);
    for pattern in ["(a*)*b", "(x+x+)+y", "((((a{1000}){1000}){1000}){1000})", deep.as_str(), &long[..100_000]] {
        let launch = format!("{pattern}=CPU");
        moeplan(&["check", "--vram", "8G", "--", "llama-server", "-m", path.to_str().unwrap(), "-ot", &launch]);
    }
}
