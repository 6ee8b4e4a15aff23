//! Programs of `examples/`, as cargo built them for this run.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

/// An example's program, built where only one test was asked for or its source is newer.
pub fn example(name: &str, source: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let test = std::env::current_exe().expect("this test's program");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps");
    let program = folder.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let changed = |path: &std::path::Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    if changed(&program) < changed(&source) {
        let profile = folder.file_name().and_then(|name| name.to_str()).filter(|name| *name != "debug");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", name, "--profile", profile.unwrap_or("dev")]);
        // As the test itself was built, so that the crate is not compiled again.
        if cfg!(debug_assertions) && profile.is_some() {
            cargo.args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/quick.toml")]);
        }
        if cfg!(feature = "embedded") {
            cargo.args(["--features", "embedded"]);
        } else if !cfg!(feature = "cli") {
            cargo.arg("--no-default-features");
        }
        assert!(cargo.status().expect("cargo").success(), "{name} does not build");
    }
    program
}
