//! What launches a llama-server, against a fake one and, where there is one, the real one.

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
mod live;
#[cfg(unix)]
mod results;
#[cfg(unix)]
mod server;
mod suite;
#[cfg(unix)]
mod tune;

const MOEPLAN: &str = env!("CARGO_BIN_EXE_moeplan");

/// The llama-server that fails on command.
fn fake() -> PathBuf {
    support::examples::example("fake-llama-server", "tests/support/fake_llama_server.rs")
}

/// A tiny model that can be run.
fn tiny(folder: &Path) -> PathBuf {
    let path = folder.join("tiny.gguf");
    let words = ["synth", "qwen3-30b-a3b", "--tiny", "--weights", "random", "-q", "-o"];
    assert!(Command::new(MOEPLAN).args(words).arg(&path).status().expect("moeplan").success());
    path
}

/// Waits until `is` is so; whether it ever was.
fn until(mut is: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_mins(15) {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
