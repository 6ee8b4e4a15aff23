//! llama.cpp's own fitting against ours: the arguments that llama-fit-params prints, over software devices of chosen budgets.
//!
//! Runs where `scripts/llama-server` was built. `MOEPLAN_CASES` says how many launches (1,000 with `MOEPLAN_FULL`),
//! `MOEPLAN_SEED` which.
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use moeplan::bytes::{Bytes, MIB};
use moeplan::model::Model;
use moeplan::run::{Target, parse};
use moeplan::runtime::{Embedded, Runtime as _, bind_software_devices, software_machine};
use moeplan::{fit, gguf, memory};

use crate::oracle::headers;
use crate::support::is_full;

fn program() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("moeplan/llama.cpp-b11434/bin/llama-fit-params")).filter(|path| path.exists())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A stream of numbers that is the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }
}

#[test]
fn our_fitting_prints_what_llama_fit_params_prints() {
    let (Some(program), Some(headers)) = (program(), headers()) else {
        eprintln!("skipped: no llama-fit-params (scripts/llama-server builds it)");
        return;
    };
    let runtime = Embedded::of(env!("CARGO_BIN_EXE_moeplan"));
    let full = is_full();
    let count = number("MOEPLAN_CASES", if full { 1000 } else { 60 });
    let mut chance = Chance(number("MOEPLAN_SEED", 1));
    let (mut equal, mut refused, mut aborted, mut wrong) = (0, 0, 0, Vec::new());
    for n_devices in [1, 2] {
        let mut words: Vec<String> = vec!["llama-fit-params".into()];
        let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
        let mut machine = software_machine(n_devices, Bytes::mib(24 * 1024));
        let _servers =
            bind_software_devices(&runtime.program, None, &mut machine, &mut run, 1).expect("software devices");
        for (device, found) in machine.devices.iter_mut().zip(runtime.devices(&run.rpc).expect("devices")) {
            (device.free, device.total) = (found.free, found.total);
        }
        let rpc = run.rpc.join(",");
        for _ in 0..count / 2 {
            let path = &headers[usize::try_from(chance.below(headers.len() as u64)).expect("an index")];
            let flags = [
                chance.one_of(&["", "-c 4096", "-c 16384", "-fitc 128", "-fitc 64"]),
                chance.one_of(&["", "-np 2", "-np 4", "-np 3"]),
                chance.one_of(&["", "-ub 64", "-ub 256"]),
                chance.one_of(&["", "", "-fa off"]),
            ]
            .join(" ");
            words.truncate(1);
            words.extend(flags.split_whitespace().map(str::to_string));
            words.extend(["--rpc".to_string(), rpc.clone()]);
            let model = Model::from_gguf(gguf::open(path).expect("a GGUF")).expect("a model");
            let parsed = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
            let Ok(whole) = memory::forecast(&model, &machine, &parsed) else { continue };
            // Between nothing and all of what the launch takes; a device of ggml's CPU says that all memory is free.
            let budgets = machine.devices.iter().map(|device| {
                let used = whole.memory.get(&device.name).map_or(0, |row| row.own().0 / MIB);
                let budget = (used + 2) * chance.below(120) / 100;
                (device.free.0 / MIB).saturating_sub(budget).to_string()
            });
            words.extend(["-fitt".to_string(), budgets.collect::<Vec<_>>().join(",")]);
            let run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
            let ours = fit::fitted(&model, &machine, &run).expect("a forecast");
            let printed = || {
                let quoted = |word: String| if word.contains('=') { format!("\"{word}\"") } else { word };
                fit::args(&ours.run).into_iter().map(quoted).collect::<Vec<_>>().join(" ")
            };
            let ours = ours.failure.clone().map_or_else(|| Ok(printed()), Err);
            let output = Command::new(&program)
                .args(&words[1..])
                .arg("-m")
                .arg(path)
                .env("GGML_NO_BACKTRACE", "1")
                .output()
                .expect("it runs");
            let theirs = String::from_utf8_lossy(&output.stdout).trim().to_string();
            match (&ours, output.status.success()) {
                (Ok(ours), true) if *ours == theirs => equal += 1,
                (Err(_), false) => refused += 1,
                // An assertion of its graph fails on its way: what it would have chosen is not known.
                _ if output.status.code().is_none() => aborted += 1,
                _ => {
                    let name = path.file_stem().unwrap_or_default().to_string_lossy();
                    let said = String::from_utf8_lossy(&output.stderr);
                    let said = said.lines().rfind(|line| line.contains("fit")).unwrap_or_default();
                    wrong
                        .push(format!("{name} {}:\n  ours   {ours:?}\n  theirs {theirs} {said}", words[1..].join(" ")));
                }
            }
        }
    }
    eprintln!("{equal} equal, {refused} given up by both, {aborted} aborted by llama.cpp, {} differ", wrong.len());
    // Tests beside this one silence panics.
    assert!(wrong.is_empty(), "{}", wrong.iter().inspect(|line| eprintln!("{line}")).count());
}
