//! What every command writes with `--json`, held to the schemas of `schema/`; so are the keys that were promised once.

use crate::support::report_documents as made_up;
use crate::support::schemas;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The document that `moeplan WORDS` writes, run beside `tiny.gguf` and with no other model on this computer.
fn document(folder: &Path, words: &str) -> Value {
    let words = shlex::split(words).unwrap();
    let home = folder.join("home");
    let mut moeplan = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    moeplan.current_dir(folder).args(&words).env("HF_HOME", folder.join("hub")).env("LLAMA_CACHE", &home);
    for variable in ["HOME", "USERPROFILE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
        moeplan.env(variable, &home);
    }
    let output = moeplan.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "moeplan {words:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("moeplan {words:?}: {error}: {said}"))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("home")).unwrap();
    let made = document(folder.path(), "synth qwen3-30b-a3b --tiny --weights random --json -o tiny.gguf");
    assert_eq!(made["schema"], "moeplan/synth/1");
    schemas::assert_valid(&made);
    std::fs::copy(folder.path().join("tiny.gguf"), folder.path().join("home/cached.gguf")).unwrap();
    folder
}

#[test]
fn every_command_writes_what_its_schema_says() {
    let folder = folder();
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/measured/h100-bench.jsonl");
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/machines/h100.json");
    let calibrate = format!("devices --calibrate --from '{}' --machine '{}' --json", rows.display(), machine.display());
    let small = "--backend rpc --vram 9M --margin 0 -c 1024";
    for (words, name) in [
        ("inspect tiny.gguf --json", "inspect/1"),
        ("inspect tiny.gguf --json --tensors --metadata --expect phi-3.5-moe", "inspect/1"),
        ("inspect tiny.gguf tiny.gguf --json", "inspections/1"),
        ("inspect tiny.gguf --json --tensors --as Q4_K_M,IQ2_XS", "what-if/1"),
        ("plan tiny.gguf --json --vram 24G --as Q4_K_M", "plan/1"),
        ("list --json", "list/1"),
        ("check --json --vram 24G --ram 64G -- llama-server -m tiny.gguf -ngl 99 -ncmoe 1 -c 4096", "check/1"),
        ("check --json --tensors -- llama-bench -m tiny.gguf -ot 'none=CPU' -ctv q8_0 -fa off -zz", "check/1"),
        (&format!("plan tiny.gguf --json {small} --explain --tensors"), "plan/1"),
        ("plan tiny.gguf --json --vram 24G,12G --ram 64G -ctk auto -ctv auto", "plan/1"),
        ("plan tiny.gguf --json --backend cpu --objective context", "plan/1"),
        (&format!("plan tiny.gguf --json {small} --sweep vram=8M..10M:1M"), "sweep/1"),
        ("plan tiny.gguf tiny.gguf --json --vram 1M", "plans/1"),
        (&format!("plan tiny.gguf {small} --emit args --for embedded"), "embedded/1"),
        ("rules list --json", "rule-sets/1"),
        ("rules check experts-on-host --json", "rules/1"),
        (&format!("rules check first-blocks tiny.gguf --json {small}"), "rules/1"),
        ("doctor --json", "doctor/1"),
        ("devices --json", "devices/1"),
        ("devices --json --device 'RPC0[127.0.0.1:50052]=8G' --ram 64G", "devices/1"),
        (&calibrate, "devices/1"),
        ("synth --list --json", "synth-list/1"),
    ] {
        let document = document(folder.path(), words);
        assert_eq!(document["schema"], format!("moeplan/{name}"), "moeplan {words}");
        schemas::assert_valid(&document);
    }
}

#[test]
fn documents_that_reports_are_tested_with_are_as_promised() {
    for document in [made_up::measurement("x"), made_up::bench("x"), made_up::validation("x")] {
        schemas::assert_valid(&document);
    }
}

#[test]
fn a_document_that_is_not_as_promised_is_told_from_one_that_is() {
    let folder = folder();
    let good = document(folder.path(), "inspect tiny.gguf --json");
    let schema = schemas::read("moeplan/inspect/1");
    for (pointer, bad) in [
        ("/experts/bytes", json!(1.5)),
        ("/experts/bytes", json!("1.50 GiB")),
        ("/schema", json!("moeplan/inspect/2")),
        ("/byte_order", json!("middle")),
        ("/warnings", json!(null)),
    ] {
        let mut document = good.clone();
        *document.pointer_mut(pointer).unwrap() = bad;
        assert_eq!(schemas::faults(&schema, &document).len(), 1, "{pointer}");
    }
    let mut document = good;
    document.as_object_mut().unwrap().remove("experts");
    assert_eq!(schemas::faults(&schema, &document).len(), 1);
}

/// The schema without what must be there, and with nothing else allowed: a document of it has only keys that are known.
fn of_known_keys(schema: &mut Value, is_part: bool) {
    match schema {
        Value::Object(keys) => {
            keys.remove("required");
            if keys.contains_key("properties") && !is_part {
                keys.insert("unevaluatedProperties".into(), false.into());
            }
            for (key, value) in keys.iter_mut() {
                let is_choice = matches!(key.as_str(), "oneOf" | "anyOf" | "allOf");
                match value {
                    Value::Array(parts) => parts.iter_mut().for_each(|part| of_known_keys(part, is_choice)),
                    value => of_known_keys(value, false),
                }
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| of_known_keys(part, false)),
        _ => {}
    }
}

#[test]
fn keys_that_were_promised_are_there_with_their_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/promised.json");
    let promised: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(promised.len(), 4);
    for document in promised {
        let name = document["schema"].as_str().unwrap().to_string();
        let mut schema = schemas::read(&name);
        of_known_keys(&mut schema, false);
        let faults = schemas::faults(&schema, &document);
        assert!(faults.is_empty(), "{name} has lost or changed a key:\n{}", faults.join("\n"));
        let mut more = document.clone();
        more["no such key"] = 1.into();
        assert!(!schemas::faults(&schema, &more).is_empty(), "{name}: the check sees a key that is not there");
    }
}
