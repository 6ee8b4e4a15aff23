//! Headers of every architecture with one thing changed: each has an answer or an error that says what is wrong, never a panic.
//!
//! A sample of the changes, each with one of the commands; all of them with `MOEPLAN_FULL=1`.
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::is_full;
use moeplan::bytes::Bytes;
use moeplan::checkup::{self, Options};
use moeplan::gguf::{self, Gguf, Header, Value};
use moeplan::machine::{Backend, Device, Host, Machine};
use moeplan::model::Model;
use moeplan::run::{ParsedCommand, parse};

/// Of so many changes one is made, without `MOEPLAN_FULL`.
const SAMPLE: usize = 23;

/// A change of a header, in words.
type Change = (String, Box<dyn Fn(&mut Header)>);

/// Keys changed, one at a time: gone, and other numbers; arrays cut short and of other numbers.
fn changed_keys(header: &Header) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (key, value) in &header.metadata {
        let mut put = |what: &str, value: Option<Value>| {
            let key = key.clone();
            let name = format!("{key} {what}");
            changes.push((
                name,
                Box::new(move |header| {
                    match &value {
                        Some(value) => header.metadata.insert(key.clone(), value.clone()),
                        None => header.metadata.remove(&key),
                    };
                }),
            ));
        };
        put("gone", None);
        let numbers = [0, 1, 7, 3, 65_535, 65_536, u64::from(u32::MAX)];
        match value {
            Value::U64(n) => {
                for number in numbers.into_iter().chain([n * 2, n.saturating_sub(1), n + 1]) {
                    put(&format!("= {number}"), Some(Value::U64(number)));
                }
            }
            Value::Array(values) => {
                put("cut", Some(Value::Array(values.iter().take(values.len() / 2).cloned().collect())));
                for number in numbers {
                    put(&format!("all {number}"), Some(Value::Array(vec![Value::U64(number); values.len()])));
                }
            }
            _ => {}
        }
    }
    changes
}

/// Tensors changed, one at a time: gone, and of other shapes.
fn changed_tensors(header: &Header) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (at, tensor) in header.tensors.iter().enumerate() {
        let name = &tensor.name;
        changes.push((
            format!("{name} gone"),
            Box::new(move |header| {
                header.tensors.remove(at);
            }),
        ));
        for dim in 0..4 {
            for size in [0, 1, 7, 65_536] {
                let change = Box::new(move |header: &mut Header| header.tensors[at].shape[dim] = size);
                changes.push((format!("{name} [{dim}] = {size}"), change));
            }
        }
        let swapped = Box::new(move |header: &mut Header| header.tensors[at].shape.swap(0, 1));
        changes.push((format!("{name} turned"), swapped));
    }
    changes
}

fn machine() -> Machine {
    let devices = Device::of_budgets(Backend::Cuda, &[Bytes(24 << 30), Bytes(8 << 30)]).unwrap();
    Machine::new(devices, Host { ram: Some(Bytes(64 << 30)), ..Host::default() }).unwrap()
}

fn commands() -> Vec<ParsedCommand> {
    let lines = [
        "llama-server -ngl 99 -c 4096 -np 3",
        "llama-server -ngl 2 -c 2048 -fa off -nkvo -ub 64",
        "llama-cli -c 512 -cmoe -ctk q8_0 -ctv q8_0 -np 1 --spec-type draft-mtp",
    ];
    let parsed = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        parse::command(&words, &BTreeMap::new()).unwrap()
    };
    lines.map(parsed).into()
}

/// The headers of the architectures, unpacked.
fn headers(folder: &Path) -> Vec<PathBuf> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/architectures.tar.xz");
    let status = Command::new("tar").arg("-xJSf").arg(archive).arg("-C").arg(folder).status();
    assert!(status.expect("tar is installed").success());
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_header_with_one_thing_changed_is_answered_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, commands) = (machine(), commands());
    let sample = if is_full() { 1 } else { SAMPLE };
    let (mut at, mut answers, mut refusals) = (0, 0, 0);
    let mut wrong = Vec::new();
    for path in headers(folder.path()) {
        let gguf = gguf::open(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let changes = changed_keys(&gguf.header).into_iter().chain(changed_tensors(&gguf.header));
        for (what, change) in changes {
            at += 1;
            if at % sample != 0 {
                continue;
            }
            let mut header = gguf.header.clone();
            change(&mut header);
            let changed = Gguf { files: gguf.files.clone(), header };
            // Nothing that is computed may rely on what the loader's check refuses: `inspect` goes on without it.
            let read = || {
                let (model, _) = Model::as_far_as_readable(changed);
                let _ = model.check_load();
                model
            };
            let Ok(model) = catch_unwind(AssertUnwindSafe(read)) else {
                wrong.push(format!("{name}: {what}"));
                continue;
            };
            let turn = (at / sample) % commands.len();
            let asked = if sample == 1 { commands.as_slice() } else { &commands[turn..=turn] };
            for command in asked {
                let found = catch_unwind(AssertUnwindSafe(|| {
                    checkup::check(&model, &machine, command, Options::default()).map_err(|error| error.to_string())
                }));
                match found {
                    Ok(Ok(_)) => answers += 1,
                    Ok(Err(error)) if !error.is_empty() => refusals += 1,
                    _ => wrong.push(format!("{name}: {what}: {:?}", command.run.n_ctx)),
                }
            }
        }
    }
    eprintln!("{at} changes, 1 of {sample} made: {answers} answers, {refusals} refusals");
    assert!(wrong.is_empty(), "{} panics:\n{}", wrong.len(), wrong.join("\n"));
}
