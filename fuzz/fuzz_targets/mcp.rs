//! Any text as a line of the Model Context Protocol; what is asked of tools is asked of one model, and never of this computer.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use moeplan::cli::Global;
use moeplan::commands::{Output, mcp};
use moeplan::synth::{self, Wish};
use serde_json::{Value, json};

/// A model that stays.
fn model() -> &'static PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        let wish = Wish { blocks: Some(2), ..Wish::default() };
        synth::hole("granite-3.1-3b-a800m", &wish, &folder).expect("a model")
    })
}

/// The model and the machine that are asked about, where the message asks a tool.
fn tamed(message: &mut Value) {
    let Some(asked) = message.pointer_mut("/params/arguments").and_then(Value::as_object_mut) else { return };
    if asked.get("model").is_some_and(Value::is_string) {
        asked.insert("model".to_string(), json!(model()));
    }
    if let Some(Value::String(command)) = asked.get_mut("command") {
        *command = format!("llama-server -m {} {command}", model().display());
    }
    let machine = asked.entry("machine").or_insert(json!({}));
    if let Some(machine) = machine.as_object_mut() {
        machine.entry("ram").or_insert(json!("32G"));
        if !["vram", "gpu", "device"].iter().any(|name| machine.get(*name).is_some_and(|v| *v != json!([]))) {
            machine.insert("vram".to_string(), json!(["8G"]));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let output = Output::new(Global { offline: true, quiet: true, ..Global::default() });
    let Ok(mut message) = serde_json::from_slice::<Value>(bytes) else {
        // Blank lines have no answer; all else is told what it is not.
        assert!(bytes.trim_ascii().is_empty() || mcp::reply(bytes, &output).is_some());
        return;
    };
    match &mut message {
        Value::Array(batch) => batch.iter_mut().for_each(tamed),
        one => tamed(one),
    }
    let line = message.to_string();
    let replies = match mcp::reply(line.as_bytes(), &output) {
        Some(Value::Array(replies)) => replies,
        reply => reply.into_iter().collect(),
    };
    for reply in replies {
        assert!(reply["jsonrpc"] == "2.0" && reply.get("id").is_some(), "{reply}");
        assert!(reply.get("result").is_some() != reply.get("error").is_some(), "{reply}");
        let said = reply.pointer("/result/content/0/text").and_then(Value::as_str).unwrap_or_default();
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said:?}");
    }
});
