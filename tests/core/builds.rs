//! Builds of llama.cpp and ik_llama.cpp: what each held, by its own rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::build_rows::{ARCHITECTURES, Headers, OF_IK, Row, headers, launch, launch_of_ik};
use crate::support::planning::{machine, model};
use crate::support::truth_rows;
use moeplan::ask::options::{Planning, kept};
use moeplan::bytes::{Bytes, MIB};
use moeplan::checkup::{self, Options};
use moeplan::emit::{self, Form, Runner};
use moeplan::machine::{Host, Isa, Machine};
use moeplan::memory;
use moeplan::model::Model;
use moeplan::placement::by_size::derived_weights;
use moeplan::plan::{self, Plan};
use moeplan::run::behaviour::STEPS;
use moeplan::run::{Dialect, LoadMode, RunConfig, Target, args, groups, parse};
use moeplan::synth::Wish;

/// Rows whose compute is not yet what the build held: recorded, so that they only get fewer.
const COMPUTE_OFF: [(u32, usize); 5] = [(9093, 1), (9341, 1), (9453, 2), (10001, 7), (10502, 4)];

#[test]
fn every_build_held_what_its_rules_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/builds.jsonl");
    let rows = std::fs::read_to_string(path).expect("the truth is in the repository");
    let headers = headers(ARCHITECTURES);
    let rows: Vec<Row> = rows.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    let off: Vec<(u32, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = rows
            .chunks(rows.len().div_ceil(parts))
            .map(|part| scope.spawn(|| part.iter().flat_map(|row| off(row, &headers)).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("rows that are equal")).collect()
    });
    for build in rows.iter().map(|row| row.build).collect::<BTreeSet<_>>() {
        let most = COMPUTE_OFF.iter().find(|row| row.0 == build).map_or(0, |row| row.1);
        let of_build: Vec<&str> = off.iter().filter(|row| row.0 == build).map(|row| row.1.as_str()).collect();
        assert!(of_build.len() <= most, "b{build}: {} rows:\n{}", of_build.len(), of_build.join("\n"));
    }
}

/// The devices of a row whose compute differs; weights and contexts may not.
fn off(row: &Row, headers: &Headers) -> Vec<(u32, String)> {
    let (machine, run) = launch(&row.launch, row.build, row.backend);
    let (_, model) = headers.get(&row.model);
    differing(row, model, &machine, &run).into_iter().map(|text| (row.build, text)).collect()
}

fn differing(row: &Row, model: &Model, machine: &Machine, run: &RunConfig) -> Vec<String> {
    let ours = memory::forecast(model, machine, run).expect("a forecast").target;
    let mut off = Vec::new();
    for (key, theirs) in &row.memory {
        let ours = ours.get(key).copied().unwrap_or_default();
        assert_eq!((ours.model, ours.context), (theirs.model, theirs.context), "{} {} {key}", row.model, row.launch);
        if ours.compute != theirs.compute {
            let (compute, there) = (ours.compute.0, theirs.compute.0);
            off.push(format!("{} [{}] {key}: {compute}, {there} there", row.model, row.launch));
        }
    }
    off
}

/// Rows of ik_llama.cpp whose compute is not what it held: delta nets, softmax with a cap, and heads computed 64 MiB at a time.
const IK_COMPUTE_OFF: usize = 57;

#[test]
fn ik_llama_cpp_held_what_its_rules_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/ik.jsonl");
    let headers = headers(OF_IK);
    let mut off = Vec::new();
    for line in std::fs::read_to_string(path).expect("the truth is in the repository").lines() {
        let row: Row = serde_json::from_str(line).expect("JSON lines");
        let (_, model) = headers.get(&row.model);
        let (machine, run) = launch_of_ik(&row.launch, model);
        off.extend(differing(&row, model, &machine, &run));
        let placement = moeplan::placement::place(model, &machine, &run).expect("a placement");
        let derived = derived_weights(model, &machine, &run, &placement);
        for (key, theirs) in &row.memory {
            let ours = derived.get(key).copied().unwrap_or_default();
            assert_eq!(ours, theirs.overhead, "{} {} {key}", row.model, row.launch);
        }
    }
    assert!(off.len() <= IK_COMPUTE_OFF, "{} rows:\n{}", off.len(), off.join("\n"));
}

/// What llama.cpp b12032, built with CUDA, projected on one H200 and on two: three columns by device, in whole MiB.
#[test]
fn the_newest_build_is_met_on_a_card() {
    let (mut rows, mut archives) = (0, BTreeMap::new());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/b12032-cuda.jsonl");
    for line in std::fs::read_to_string(path).expect("the truth is in the repository").lines() {
        let row: truth_rows::Row = serde_json::from_str(line).expect("JSON lines");
        let json: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
        let archive = format!("{}.tar.xz", json["headers"].as_str().expect("an archive"));
        let unpack = || truth_rows::Headers::unpack(&archive);
        let model = archives.entry(archive.clone()).or_insert_with(unpack).model(&row.model);
        let words: Vec<String> = row.command().split_whitespace().map(str::to_string).collect();
        let mut run = parse::command(&words, &BTreeMap::new()).expect("llama.cpp took it").run;
        run.target.build = 12032;
        let host = Host { isa: Isa::X86Amx, ..Host::default() };
        let cards = row.memory_mib.keys().filter(|name| name.starts_with("CUDA"));
        let machine = Machine { devices: cards.map(|name| truth_rows::device(name, 143_155, None)).collect(), host };
        let ours = memory::forecast(model, &machine, &run).expect("a forecast").target;
        for (device, theirs) in &row.memory_mib {
            let ours = ours.get(device).copied().unwrap_or_default();
            let ours = [ours.model, ours.context, ours.compute].map(|bytes| bytes.0 / MIB);
            let theirs = [theirs.model, theirs.context, theirs.compute];
            assert_eq!(ours, theirs, "{} {} {device}", row.model, row.command());
        }
        rows += 1;
    }
    assert_eq!(rows, 595 + 48);
}

/// The spellings of every flag by build (`common/arg.cpp` of its source).
fn spellings() -> BTreeMap<u32, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/flags.tsv");
    let text = std::fs::read_to_string(path).expect("the truth is in the repository");
    let mut all: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [build, new, gone] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let mut flags = all.last_key_value().map(|(_, flags)| flags.clone()).unwrap_or_default();
        flags.extend(new.split(' ').map(str::to_string));
        gone.split(' ').for_each(|flag| _ = flags.remove(flag));
        all.insert(build.parse().unwrap(), flags);
    }
    all
}

/// Plans in which the planner chooses each of its flags, by the words that ask for them.
fn plans(model: &Model, build: Option<u32>, dialect: Dialect) -> Vec<(String, Machine, Plan)> {
    let with = |budgets: &[u64], ram: u64| {
        let machine = machine(&budgets.iter().map(|mib| mib * MIB).collect::<Vec<_>>());
        Machine { host: Host { ram: Some(Bytes(ram * MIB)), cores: Some(8), ..Host::default() }, ..machine }
    };
    let cases = [
        (with(&[1700], 64 * 1024), ""),
        (with(&[1900, 1500], 64 * 1024), "-np 2"),
        // Main memory that has no room for all of the prompt cache, and a short prompt.
        (with(&[2000], 9 * 1024), "-ctk auto -ctv auto -t auto -ub 256"),
        (with(&[1700], 3 * 1024), ""),
        (with(&[1700], 64 * 1024), "-lm mmap+mlock -nkvo --no-op-offload"),
        (with(&[], 64 * 1024), "-lm dio"),
    ];
    let planned = |(machine, words): (Machine, &str)| {
        let planning = Planning { build, dialect, prompt: 64, ..Planning::default() };
        let line: Vec<String> = words.split_whitespace().map(str::to_string).collect();
        let request = planning.request(model, &machine, &kept(&line).unwrap()).unwrap();
        let plan = plan::brief(model, "model.gguf", &machine, &request).unwrap();
        (words.to_string(), machine, plan)
    };
    cases.map(planned).into()
}

/// A build must not refuse a plan that is made for it: neither by its own list of flags, nor by what is known here.
#[test]
fn every_flag_of_a_plan_is_one_of_its_build() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(4), ..Wish::default() });
    let spellings = spellings();
    let mut seen = BTreeSet::new();
    let steps = STEPS.iter().map(|step| step.since).filter(|build| *build < 9093);
    for build in spellings.keys().copied().chain(steps.collect::<BTreeSet<_>>()) {
        for (words, _, plan) in plans(&model, Some(build), Dialect::LlamaCpp) {
            let refused: Vec<_> = plan.check.lints.iter().filter(|lint| lint.code.contains("flag")).collect();
            assert!(refused.is_empty(), "b{build} {words}: {refused:?}");
            let alternatives = plan.why.alternatives.iter().map(|other| &other.args);
            for args in std::iter::once(&plan.args).chain(alternatives) {
                for flag in groups(args).iter().filter_map(|group| group.first()) {
                    let of_build = spellings.get(&build).is_none_or(|all| all.contains(flag));
                    // The expert cache is said to need a newer build.
                    assert!(of_build || flag == "--moe-cache-mib", "b{build} {words}: {flag}");
                    seen.insert(flag.clone());
                }
            }
        }
    }
    let chosen = [
        "-c",
        "-np",
        "-ub",
        "-dev",
        "-ngl",
        "-ts",
        "-ot",
        "-lm",
        "--no-mmap",
        "--mlock",
        "--direct-io",
        "-nkvo",
        "--no-op-offload",
        "--cache-ram",
        "-fit",
    ];
    for flag in chosen {
        assert!(seen.contains(flag), "no plan has {flag}: {seen:?}");
    }
}

#[test]
fn a_load_mode_reads_back_in_every_build() {
    for build in [8133, 10103, 10108, 11434, 12032] {
        for load_mode in [LoadMode::Auto, LoadMode::None, LoadMode::Mlock, LoadMode::MmapMlock, LoadMode::Dio] {
            let target = Target { build, ..Target::default() };
            let run = RunConfig { load_mode, n_parallel: Some(1), ..RunConfig::of(target) };
            let words = [vec!["llama-server".to_string()], args::args(&run)].concat();
            let read = parse::command_for(&words, &BTreeMap::new(), target).unwrap();
            assert_eq!((read.run, read.notes), (run, Vec::new()), "{words:?}");
        }
    }
}

/// What is planned for ik_llama.cpp is what a check of the same command says of it, and every form of it reads back.
#[test]
fn a_plan_for_ik_holds_what_its_check_says() {
    for name in ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite"] {
        let model = model(name, &Wish { blocks: Some(6), ..Wish::default() });
        for (words, machine, plan) in plans(&model, None, Dialect::Ik) {
            let line = shlex::split(&plan.command).unwrap();
            let target = Target { dialect: Dialect::Ik, ..Target::default() };
            let command = parse::command_for(&line, &BTreeMap::new(), target).unwrap();
            assert_eq!(command.notes, [], "{name} {words}: {}", plan.command);
            let options = Options { margin: plan.margin, ..Options::default() };
            let check = checkup::check(&model, &machine, &command, options).unwrap();
            assert_eq!((&check.memory, check.fits), (&plan.check.memory, plan.check.fits), "{name} {words}");
            for form in [Form::Args, Form::Shell, Form::LlamaSwap] {
                let wish = emit::Wish { form, ..emit::Wish::default() };
                let text = emit::render(&model, &plan, wish).unwrap().text;
                assert!(["-kvu", "-lm", "-fit", "-ncmoe"].iter().all(|flag| !text.contains(flag)), "{text}");
            }
            let bench = emit::Wish { runner: Runner::LlamaBench, ..emit::Wish::default() };
            assert!(emit::render(&model, &plan, bench).is_err());
        }
    }
}
