//! The oracle: for every architecture of llama.cpp, our bytes are those of the linked llama.cpp's own projection.
//!
//! Feature `embedded`. The headers are testdata/architectures.tar.xz (sparse files made by llama.cpp's own architecture
//! test), or those in `MOEPLAN_ARCH_DIR`.
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use moeplan::bytes::Bytes;
use moeplan::memory::{MemoryBreakdown, MemoryByDevice};
use moeplan::model::Model;
use moeplan::run::{RunConfig, Target, parse};
use moeplan::runtime::{Embedded, Error, Kind, Launch, Runtime as _, bind_software_devices, software_machine};
use moeplan::{gguf, memory};

/// Command lines and whether they get a device. Both programs, both kinds of cache layout, quantized caches.
const CASES: [(&str, bool, &str); 6] = [
    ("cpu", false, "llama-server -c 4096"),
    ("rpc", true, "llama-server -c 4096 -ngl 99"),
    ("rpc-cmoe", true, "llama-fit-params -c 4096 -ngl 99 -cmoe"),
    ("rpc-half", true, "llama-server -c 8192 -ngl 2 -np 3 -nkvo"),
    ("rpc-q8", true, "llama-server -c 8192 -ngl 99 -np 2 -ctk q8_0 -ctv q8_0 -fa on"),
    ("rpc-draft", true, "llama-server -c 4096 -ngl 99 -np 2 -ub 64 --spec-type draft-eagle3 --spec-draft-n-max 5"),
];

/// The header files, or `None` where this checkout has none.
pub fn headers() -> Option<Vec<PathBuf>> {
    match std::env::var_os("MOEPLAN_ARCH_DIR") {
        Some(folder) => Some(files(folder.into())),
        None => unpacked("architectures"),
    }
}

/// The files of `testdata/NAME.tar.xz`.
pub fn unpacked(name: &str) -> Option<Vec<PathBuf>> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/{name}.tar.xz"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !archive.exists() {
        return None;
    }
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let status = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(&folder).status();
    assert!(status.expect("tar runs").success(), "tar and xz unpack {}", archive.display());
    Some(files(folder))
}

fn files(folder: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "gguf") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Launches that draft with the model's own NextN block.
const DRAFTS: [(&str, bool, &str); 4] = [
    ("cpu", false, "llama-server -c 4096 --spec-type draft-mtp"),
    ("rpc", true, "llama-server -c 4096 -ngl 99 --spec-type draft-mtp --spec-draft-n-max 7"),
    ("rpc-cmoe", true, "llama-server -c 8192 -ngl 99 -cmoe -np 3 -ub 128 --spec-type draft-mtp"),
    (
        "rpc-q8",
        true,
        "llama-server -c 8192 -ngl 99 -np 2 -ctk q8_0 -ctv q8_0 -ctkd q8_0 -ctvd q8_0 -fa on --spec-type draft-mtp",
    ),
];

/// The second context of a launch, on the headers of `testdata/headers/make_nextn.py`: caches and compute to the byte.
#[test]
fn a_drafting_context_is_llama_cpps() {
    let Some(headers) = unpacked("nextn") else {
        eprintln!("skipped: no testdata/nextn.tar.xz");
        return;
    };
    let runtime = Embedded::of(env!("CARGO_BIN_EXE_moeplan"));
    let (mut wrong, mut cells) = (Vec::new(), 0);
    for (name, on_device, line) in DRAFTS {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
        let mut machine = software_machine(u16::from(on_device), Bytes::mib(24 * 1024));
        let _servers =
            bind_software_devices(&runtime.program, None, &mut machine, &mut run, 1).expect("a software device");
        let launch = |path: &PathBuf, run: &RunConfig| Launch {
            model: path.clone(),
            run: run.clone(),
            machine: machine.clone(),
        };
        let targets: Vec<Launch> = headers.iter().map(|path| launch(path, &run)).collect();
        let drafts: Vec<Launch> = headers.iter().map(|path| launch(path, &run.drafting(run.n_ctx))).collect();
        let theirs = runtime.project(&targets).into_iter().zip(runtime.project(&drafts));
        for (target, (whole, draft)) in targets.iter().zip(theirs) {
            let file = format!("{name} {}", target.model.file_stem().unwrap_or_default().to_string_lossy());
            let model = Model::from_gguf(gguf::open(&target.model).expect("a GGUF")).expect("a model");
            let ours = memory::forecast(&model, &target.machine, &target.run);
            let (ours, whole, draft) = match (ours, whole, draft) {
                (Ok(ours), Ok(whole), Ok(draft)) => (ours, whole.by_device(), draft.by_device()),
                (ours, whole, draft) => {
                    wrong.push(format!(
                        "{file}: ours {:?}, theirs {:?} and {:?}",
                        ours.err(),
                        whole.err(),
                        draft.err()
                    ));
                    continue;
                }
            };
            let Some(part) = &ours.drafting else {
                wrong.push(format!("{file}: {:?}", ours.uncounted));
                continue;
            };
            for (what, ours, theirs) in [("target", &ours.target, &whole), ("drafting", &part.memory, &draft)] {
                let terms: [fn(&MemoryBreakdown) -> Bytes; 2] = [|row| row.context, |row| row.compute];
                let differ: String = terms.map(|term| differences(ours, theirs, term)).concat();
                cells += 1;
                if !differ.is_empty() {
                    wrong.push(format!("{file} {what}:{differ}"));
                }
            }
        }
    }
    eprintln!("{cells} contexts of {} headers", headers.len());
    assert!(wrong.is_empty(), "{} disagreements:\n{}", wrong.len(), wrong.join("\n"));
}

/// Draft models of every kind beside their targets.
const COMPANIONS: [(&str, u16, &str); 8] = [
    ("cpu", 0, "llama-server -c 4096"),
    ("rpc", 1, "llama-server -c 4096 -ngl 99"),
    ("rpc-many", 1, "llama-server -c 8192 -ngl 99 -np 4 --spec-draft-n-max 7"),
    ("rpc-small", 1, "llama-server -c 4096 -ngl 99 -np 4 -ub 32 -fa off"),
    ("rpc-host", 1, "llama-server -c 4096 -ngl 3 -ngld 0 -kvu -np 2"),
    ("rpc-q8", 1, "llama-server -c 8192 -ngl 99 -np 2 -ctk q8_0 -ctv q8_0 -ctkd q8_0 -ctvd q8_0 -fa on -nkvo"),
    ("rpc-two", 2, "llama-server -c 4096 -ngl 99 -ub 2048"),
    ("rpc-tiny", 1, "llama-server -c 4096 -ngl 99 -np 3 -ub 6"),
];

/// The context of a draft model, on the headers of `testdata/headers/make_drafts.py`: to the byte.
#[test]
fn a_draft_model_beside_its_target_is_llama_cpps() {
    let Some(headers) = unpacked("drafts") else {
        eprintln!("skipped: no testdata/drafts.tar.xz");
        return;
    };
    let folder = headers.first().and_then(|path| path.parent()).expect("a folder").to_path_buf();
    let wanted = std::env::var("MOEPLAN_MODELS").unwrap_or_default();
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let is_draft = |path: &&PathBuf| !name(path).starts_with("target-") && name(path).contains(&wanted);
    let runtime = Embedded::of(env!("CARGO_BIN_EXE_moeplan"));
    let (mut wrong, mut equal, mut refused) = (Vec::new(), 0, 0);
    for (case, n_devices, line) in COMPANIONS {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
        let mut machine = software_machine(n_devices, Bytes::mib(24 * 1024));
        let _servers =
            bind_software_devices(&runtime.program, None, &mut machine, &mut run, 1).expect("software devices");
        let pairs = headers.iter().filter(is_draft).flat_map(|draft| {
            let targets: &[&str] = match name(draft).split('-').next() {
                Some("assistant") => &["target-gemma4", "target-gemma4-shared"],
                _ => &["target-qwen3"],
            };
            targets.iter().map(|target| {
                let draft_model = Some(draft.display().to_string());
                let is_mtp = ["nextn", "assistant"].iter().any(|kind| name(draft).starts_with(kind));
                let run = RunConfig { draft_model, mtp: is_mtp, ..run.clone() };
                let at = |model: PathBuf, run: &RunConfig| Launch { model, run: run.clone(), machine: machine.clone() };
                (at(folder.join(format!("{target}.gguf")), &run), at(draft.clone(), &run.drafting(run.n_ctx)))
            })
        });
        let pairs: Vec<(Launch, Launch)> = pairs.collect();
        for ((target, draft), theirs) in pairs.iter().zip(runtime.project_drafts(&pairs)) {
            let what = format!("{case} {} for {}", name(&draft.model), name(&target.model));
            let model =
                |path| Model::from_gguf(gguf::open(path).map_err(|e| e.to_string())?).map_err(|e| e.to_string());
            let ours = model(&draft.model).and_then(|draft| {
                let model = Model { draft: Some(draft.into()), ..model(&target.model).expect("a target") };
                let forecast = memory::forecast(&model, &target.machine, &target.run).map_err(|e| e.to_string())?;
                forecast.drafting.map(|part| part.memory).ok_or_else(|| format!("{:?}", forecast.uncounted))
            });
            match (ours, theirs.map(|theirs| theirs.by_device())) {
                (Ok(ours), Ok(theirs)) => {
                    let of = |row: &MemoryBreakdown| [row.model, row.context, row.compute];
                    let terms = ["model", "context", "compute"].iter().enumerate();
                    let differ = terms.filter_map(|(at, term)| {
                        let differ = differences(&ours, &theirs, |row| of(row)[at]);
                        (!differ.is_empty()).then(|| format!(" {term}:{differ}"))
                    });
                    match differ.collect::<String>() {
                        none if none.is_empty() => equal += 1,
                        differ => wrong.push(format!("{what}:{differ}")),
                    }
                }
                (Err(ours), Err(theirs)) => {
                    eprintln!("{what}: {ours}; {theirs}");
                    refused += 1;
                }
                (ours, theirs) => wrong.push(format!("{what}: ours {:?}, theirs {:?}", ours.err(), theirs.err())),
            }
        }
    }
    eprintln!("{equal} draft contexts equal, {refused} refused by both");
    assert!(wrong.is_empty(), "{} disagreements:\n{}", wrong.len(), wrong.join("\n"));
}

/// What we predict, or why llama.cpp would refuse.
fn predict(launch: &Launch) -> Result<MemoryByDevice, String> {
    let model = Model::from_gguf(gguf::open(&launch.model).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    Ok(memory::forecast(&model, &launch.machine, &launch.run).map_err(|e| e.to_string())?.memory)
}

/// What disagrees in one term; nothing when all is equal.
fn differences(
    ours: &MemoryByDevice,
    theirs: &MemoryByDevice,
    term: impl Copy + Fn(&MemoryBreakdown) -> Bytes,
) -> String {
    let mut text = String::new();
    let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for key in keys {
        let (p, m) = (ours.get(key).map_or(Bytes(0), term), theirs.get(key).map_or(Bytes(0), term));
        if p != m {
            let _ = write!(text, " {key} ours {} theirs {} ({:+})", p.0, m.0, i128::from(p.0) - i128::from(m.0));
        }
    }
    text
}

/// Counts of one case.
#[derive(Default)]
struct Score {
    model: usize,
    context: usize,
    refused: usize,
    rows: usize,
    compute: Vec<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn compute_errors(ours: &MemoryByDevice, theirs: &MemoryByDevice) -> Vec<f64> {
    let cells = theirs.iter().filter(|(_, row)| row.compute.0 > 0);
    let error = |(key, row): (&String, &MemoryBreakdown)| {
        let p = ours.get(key).map_or(0, |row| row.compute.0);
        (p as f64 - row.compute.0 as f64) / row.compute.0 as f64
    };
    cells.map(error).collect()
}

#[test]
fn our_bytes_are_llama_cpps_for_every_architecture() {
    let Some(headers) = headers() else {
        eprintln!("skipped: no testdata/architectures.tar.xz and no MOEPLAN_ARCH_DIR");
        return;
    };
    assert!(headers.len() >= 100, "only {} headers", headers.len());
    let runtime = Embedded::of(env!("CARGO_BIN_EXE_moeplan"));
    let verbose = std::env::var_os("MOEPLAN_ORACLE_VERBOSE").is_some();
    let mut wrong = Vec::new();
    for (name, on_device, line) in CASES {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
        let mut machine = software_machine(u16::from(on_device), Bytes::mib(24 * 1024));
        let _servers =
            bind_software_devices(&runtime.program, None, &mut machine, &mut run, 1).expect("a software device");
        let template = Launch { model: PathBuf::new(), run, machine };
        let launches: Vec<Launch> =
            headers.iter().map(|path| Launch { model: path.clone(), ..template.clone() }).collect();
        let mut score = Score::default();
        for (launch, theirs) in launches.iter().zip(runtime.project(&launches)) {
            let file = launch.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            score.rows += 1;
            let (ours, theirs) = match (predict(launch), theirs) {
                (Ok(ours), Ok(theirs)) => (ours, theirs.by_device()),
                // An assertion of llama.cpp's own, such as kimi-linear's with two blocks on the device.
                (_, Err(error @ Error { kind: Kind::Died, .. })) => {
                    eprintln!("{name} {file}: {error}");
                    score.refused += 1;
                    continue;
                }
                (Err(_), Err(_)) => {
                    score.refused += 1;
                    continue;
                }
                (Ok(_), Err(theirs)) => {
                    wrong.push(format!("{name} {file}: llama.cpp refuses, we do not: {theirs}"));
                    continue;
                }
                (Err(ours), Ok(_)) => {
                    wrong.push(format!("{name} {file}: we refuse, llama.cpp does not: {ours}"));
                    continue;
                }
            };
            let model = differences(&ours, &theirs, |row| row.model);
            let context = differences(&ours, &theirs, |row| row.context);
            score.model += usize::from(model.is_empty());
            score.context += usize::from(context.is_empty());
            if !model.is_empty() {
                wrong.push(format!("{name} {file} model:{model}"));
            }
            if !context.is_empty() {
                wrong.push(format!("{name} {file} context:{context}"));
            }
            if verbose {
                eprintln!("{name} {file} compute:{}", differences(&ours, &theirs, |row| row.compute));
            }
            score.compute.extend(compute_errors(&ours, &theirs));
        }
        report(name, &mut score);
    }
    assert!(wrong.is_empty(), "{} disagreements:\n{}", wrong.len(), wrong.join("\n"));
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn report(name: &str, score: &mut Score) {
    let compute = &mut score.compute;
    compute.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let exact = compute.iter().filter(|e| **e == 0.0).count();
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a short list")]
        let index = (compute.len().saturating_sub(1) as f64 * share) as usize;
        compute.get(index).map_or(0.0, |e| 100.0 * e.abs())
    };
    eprintln!(
        "{name:<9} {} headers: model {}, context {}, refused {}; compute cells {}: exact {exact}, |error| median {:.2}%, p90 {:.2}%, max {:.2}%",
        score.rows,
        score.model,
        score.context,
        score.refused,
        compute.len(),
        at(0.5),
        at(0.9),
        at(1.0)
    );
}
