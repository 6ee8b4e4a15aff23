//! Models found in caches: names, shards, manifests, and what a cache may not name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use moeplan::gguf::source::local::{Program, Surroundings, find};

fn write(path: PathBuf, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn surroundings(home: &Path) -> Surroundings {
    Surroundings { variables: BTreeMap::new(), home: Some(home.into()) }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A home with a model in every cache.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let at = |path: &str| home.path().join(path);
    let hub = ".cache/huggingface/hub/models--org--repo-GGUF";
    write(at(&format!("{hub}/refs/main")), COMMIT.as_bytes());
    for number in 1..=2 {
        let name = format!("{hub}/snapshots/{COMMIT}/Q4_K_M/big-Q4_K_M-0000{number}-of-00002.gguf");
        write(at(&name), &model());
    }
    write(at(&format!("{hub}/snapshots/{COMMIT}/mmproj-F16.gguf")), &model());
    write(at(&format!("{hub}/snapshots/ffffffffffffffffffffffffffffffffffffffff/old-Q8_0.gguf")), &model());
    write(at(".cache/llama.cpp/org_small-Q8_0.gguf"), &model());
    write(at(".lmstudio/models/pub/repo/Studio-Q4_0.gguf"), &model());
    let digest = "a".repeat(64);
    let manifest = |digest: &str| {
        format!(
            r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.license","digest":"sha256:b"}},{{"mediaType":"application/vnd.ollama.image.model","digest":"{digest}","size":1}}]}}"#
        )
    };
    write(at(&format!(".ollama/models/blobs/sha256-{digest}")), &model());
    let names = ".ollama/models/manifests/registry.ollama.ai";
    write(at(&format!("{names}/library/gpt-oss/latest")), manifest(&format!("sha256:{digest}")).as_bytes());
    for (tag, bad) in [
        ("up", "sha256:../../../../etc/passwd".to_string()),
        ("short", "sha256:abc".to_string()),
        ("upper", format!("sha256:{}", "A".repeat(64))),
        ("sha1", format!("sha1:{digest}")),
        ("gone", format!("sha256:{}", "c".repeat(64))),
        ("json", "\"}]}".to_string()),
    ] {
        write(at(&format!("{names}/library/bad/{tag}")), manifest(&bad).as_bytes());
    }
    home
}

#[test]
fn every_cache_is_looked_into() {
    let home = home();
    let models = surroundings(home.path()).models();
    let shown: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.source, model.files)).collect();
    assert_eq!(
        shown,
        [
            ("gpt-oss:latest", Program::Ollama, 1),
            ("org/repo-GGUF/Q4_K_M/big-Q4_K_M", Program::HuggingFace, 2),
            ("org_small-Q8_0", Program::LlamaCpp, 1),
            ("pub/repo/Studio-Q4_0", Program::LmStudio, 1),
        ]
    );
    assert_eq!(models[1].bytes.0, 2 * model().len() as u64);
    assert!(models[1].is_whole && models[1].path.ends_with("big-Q4_K_M-00001-of-00002.gguf"));
}

#[test]
fn variables_name_other_directories() {
    let home = home();
    let other = tempfile::tempdir().unwrap();
    write(other.path().join("hub/models--a--b/snapshots/x/c-Q8_0.gguf"), &model());
    let variables = [("HF_HOME".to_string(), other.path().to_path_buf())].into();
    let models = Surroundings { variables, home: Some(home.path().into()) }.models();
    assert!(find(&models, "a/b/c-q8_0").is_ok() && find(&models, "gpt-oss").is_ok());
}

#[test]
fn a_name_is_exact_or_the_only_one_that_holds_it() {
    let home = home();
    let models = surroundings(home.path()).models();
    let name = |text| find(&models, text).map(|model| model.name);
    assert_eq!(name("gpt-oss").unwrap(), "gpt-oss:latest");
    assert_eq!(name("STUDIO").unwrap(), "pub/repo/Studio-Q4_0");
    assert_eq!(name("org/repo-GGUF:Q4_K_M").unwrap(), "org/repo-GGUF/Q4_K_M/big-Q4_K_M");
    assert!(name("org").unwrap_err().to_string().contains("matches 2 models"));
    let error = name("studio-Q5_0").unwrap_err();
    assert!(error.hint().unwrap().contains("Studio-Q4_0"), "{error}");
    let error = name("nothing-like-it").unwrap_err();
    assert!(matches!(error, Error::UnknownName(_)) && error.hint().unwrap().starts_with("pass a path"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_out_of_a_cache_are_no_models() {
    use std::os::unix::fs::symlink;
    let home = home();
    let outside = write(home.path().join("elsewhere/secret.gguf"), &model());
    let hub = home.path().join(".cache/huggingface/hub/models--org--repo-GGUF");
    symlink(&outside, hub.join(format!("snapshots/{COMMIT}/link-Q8_0.gguf"))).unwrap();
    symlink(home.path(), hub.join(format!("snapshots/{COMMIT}/loop"))).unwrap();
    let blob = write(hub.join("blobs/abc"), &model());
    symlink("../../blobs/abc", hub.join(format!("snapshots/{COMMIT}/real-Q8_0.gguf"))).unwrap();
    let ollama = home.path().join(".ollama/models");
    let digest = "d".repeat(64);
    symlink(&outside, ollama.join(format!("blobs/sha256-{digest}"))).unwrap();
    let manifest =
        format!(r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{digest}"}}]}}"#);
    let manifests = ollama.join("manifests/registry.ollama.ai/library");
    let linked = write(manifests.join("out/latest"), manifest.as_bytes());
    symlink(&linked, manifests.join("out/linked")).unwrap();
    let names: Vec<String> = surroundings(home.path()).models().into_iter().map(|model| model.name).collect();
    assert!(names.iter().any(|name| name.ends_with("real-Q8_0")), "{names:?} {}", blob.display());
    assert!(
        !names.iter().any(|name| name.contains("link") || name.contains("out") || name.contains("loop")),
        "{names:?}"
    );
}

#[test]
fn the_program_lists_and_takes_names() {
    let home = home();
    let moeplan = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words).env_clear().env("HOME", home.path()).output().unwrap()
    };
    let list = moeplan(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    schemas::assert_valid(&json);
    assert_eq!((&json["schema"], &json["models"][0]["name"]), (&"moeplan/list/1".into(), &"gpt-oss:latest".into()));
    assert_eq!(json["models"][0]["architecture"], "llama");
    let text = String::from_utf8(moeplan(&["list", "studio"]).stdout).unwrap();
    assert!(text.contains("pub/repo/Studio-Q4_0") && !text.contains("gpt-oss"), "{text}");
    let shown = moeplan(&["inspect", "--json", "studio"]);
    let json: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert!(json["path"].as_str().unwrap().ends_with("Studio-Q4_0.gguf"));
    let offline = moeplan(&["inspect", "--offline", "--json", "hf:org/repo-GGUF:Q4_K_M"]);
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
    let ambiguous = String::from_utf8(moeplan(&["inspect", "org"]).stderr).unwrap();
    assert!(ambiguous.contains("matches 2 models") && ambiguous.contains("org_small"), "{ambiguous}");
}
