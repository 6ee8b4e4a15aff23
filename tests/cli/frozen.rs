//! The answers of a fixed set of commands, frozen: a difference is a decision that somebody reads, never a side effect.
//!
//! `testdata/frozen/commands.txt` lists the commands; `MOEPLAN_FREEZE=1 cargo test --test cli frozen` writes the answers anew.

use crate::support::report_documents as made_up;

use std::path::Path;
use std::process::Command;

/// Runs `moeplan WORDS` in `folder`, where nothing of this computer is seen: no card, no llama-server, no settings, no models.
fn answer(folder: &Path, words: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = |name: &str| root.join("testdata").join(name).display().to_string();
    let words =
        words.replace("{machine}", &data("machines/h100.json")).replace("{rows}", &data("measured/h100-bench.jsonl"));
    let home = folder.join("home");
    let mut moeplan = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    moeplan.current_dir(folder).args(shlex::split(&words).unwrap()).env("CUDA_VISIBLE_DEVICES", "");
    moeplan.env("MOEPLAN_LLAMA_SERVER", "/nonexistent");
    for variable in
        ["HOME", "USERPROFILE", "HF_HOME", "LLAMA_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"]
    {
        moeplan.env(variable, &home);
    }
    let output = moeplan.output().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    match output.status.code() {
        Some(0) => {}
        code => text += &format!("exit {code:?}\n{}", String::from_utf8_lossy(&output.stderr)),
    }
    text.replace(&root.display().to_string(), "{root}").replace(&folder.display().to_string(), "{folder}")
}

#[test]
fn answers_are_as_they_were_frozen() {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/frozen");
    let commands = std::fs::read_to_string(frozen.join("commands.txt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, document) in [
        ("measurement", made_up::measurement("made up")),
        ("bench", made_up::bench("made up")),
        ("validation", made_up::validation("made up")),
        ("launched", made_up::launched("made up")),
        ("tuning", made_up::tuning("made up")),
        ("llama-bench", made_up::llama_bench("made up")),
    ] {
        std::fs::write(folder.path().join(name).with_extension("json"), document.to_string()).unwrap();
    }
    let rewrite = std::env::var_os("MOEPLAN_FREEZE").is_some();
    let mut different = Vec::new();
    for line in commands.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, words) = line.split_once(' ').unwrap();
        let now = answer(folder.path(), words);
        if name == "=" {
            assert!(!now.contains("exit Some"), "moeplan {words}: {now}");
            continue;
        }
        let path = frozen.join(name);
        if rewrite {
            std::fs::write(&path, &now).unwrap();
        } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&now) {
            let other = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            std::fs::write(&other, &now).unwrap();
            different.push(format!("diff {} {}    # moeplan {words}", path.display(), other.display()));
        }
    }
    assert!(
        different.is_empty(),
        "{} answers differ (MOEPLAN_FREEZE=1 writes them anew, once each difference is meant):\n{}",
        different.len(),
        different.join("\n"),
    );
}
