//! What memory a whole run of the program may take on gpt-oss-120b. Its time is counted in instructions: `scripts/instructions`.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use moeplan::synth::output::{self, Fill, Watch};
use moeplan::synth::{Wish, spec, synthesize};

/// Most memory that `inspect` ever holds, in KiB (`VmHWM`).
const PEAK_KIB: u64 = 16 << 10;

fn gpt_oss_120b(folder: &Path) -> PathBuf {
    let spec = spec::named("gpt-oss-120b").unwrap();
    let model = synthesize(&spec, &Wish::default()).unwrap();
    let watch = Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
    output::write(&model, &folder.join("m.gguf"), Fill::Hole, true, watch).unwrap().remove(0)
}

fn moeplan(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.args(words).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// The program is held while it writes a page that no pipe takes whole: by then it has read and computed everything.
#[test]
fn inspect_holds_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = gpt_oss_120b(folder.path());
    let mut child =
        moeplan(&["inspect", "--json", "--tensors", path.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut answer = child.stdout.take().unwrap();
    answer.read_exact(&mut [0]).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let mut rest = Vec::new();
    answer.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(rest.len() > 128 << 10, "a page of {} bytes fits in a pipe", rest.len());
    let peak: u64 = peak.expect("a peak");
    // Without optimisation the program's own pages are many more.
    let most = if cfg!(debug_assertions) { 4 * PEAK_KIB } else { PEAK_KIB };
    assert!(peak <= most, "{peak} KiB of {most}");
}
