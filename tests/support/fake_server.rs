//! Where the fake llama-server is: built where only one test was asked for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// The program of tests/support/fake_llama_server.rs.
pub fn fake() -> PathBuf {
    static BUILD: Once = Once::new();
    let folder = Path::new(env!("CARGO_BIN_EXE_moeplan")).parent().expect("a folder");
    let program = folder.join(format!("examples/fake-llama-server{}", std::env::consts::EXE_SUFFIX));
    BUILD.call_once(|| {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/fake_llama_server.rs");
        if changed(&program) < changed(&source) {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--quiet", "--example", "fake-llama-server"]);
            if folder.ends_with("release") {
                cargo.arg("--release");
            }
            assert!(cargo.status().expect("cargo").success());
        }
    });
    program
}
