//! Context bytes against llama.cpp's own projections: every row of `testdata/truth`, to the MiB.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use moeplan::bytes::{Bytes, MIB};
use moeplan::gguf::{self, GgmlType};
use moeplan::machine::{Backend, Device, Host, Isa, Machine};
use moeplan::memory::caches::CacheKind;
use moeplan::memory::{self, HOST, context};
use moeplan::model::Model;
use moeplan::placement::Placement;
use moeplan::run::{FlashAttn, Program, RunConfig};

/// One projection: the launch and the MiB (truncated) it showed.
struct Row {
    model: String,
    run: RunConfig,
    flags: String,
    context_mib: BTreeMap<String, u64>,
    /// Recurrent states by buffer type, to two decimals.
    states_mib: BTreeMap<String, f64>,
}

fn rows(file: &str) -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth").join(file);
    let text = std::fs::read_to_string(&path).expect("the truth is in the repository");
    text.lines().map(|line| row(&serde_json::from_str(line).expect("JSON lines"))).collect()
}

fn row(json: &serde_json::Value) -> Row {
    let text = |key: &str| json[key].as_str().expect("text").to_string();
    let devices = json["memory_mib"].as_object().expect("a table");
    let program = if text("tool") == "llama-server" { Program::Server } else { Program::FitParams };
    let flags = text("flags");
    Row {
        model: text("model"),
        run: run(program, &flags),
        flags,
        context_mib: devices.iter().map(|(k, v)| (k.clone(), v["context"].as_u64().expect("MiB"))).collect(),
        states_mib: json["rs_mib"].as_object().map_or_else(BTreeMap::new, |states| {
            states.iter().map(|(k, v)| (k.clone(), v.as_f64().expect("MiB"))).collect()
        }),
    }
}

/// The flags of the truth's command lines that decide the context.
fn run(program: Program, flags: &str) -> RunConfig {
    let mut run = RunConfig { program, ..RunConfig::default() };
    let mut words = flags.split_whitespace();
    while let Some(flag) = words.next() {
        let mut number = || words.next().and_then(|w| w.parse::<u32>().ok()).expect("a number");
        match flag {
            "-c" => run.n_ctx = number(),
            "-b" => run.n_batch = number(),
            "-ub" => run.n_ubatch = number(),
            "-np" => run.n_parallel = Some(number()),
            "-ngl" => run.n_gpu_layers = i32::try_from(number()).expect("layers"),
            "-ctk" => run.type_k = GgmlType::from_name(words.next().expect("a type")).expect("a type"),
            "-ctv" => run.type_v = GgmlType::from_name(words.next().expect("a type")).expect("a type"),
            "-fa" => run.flash_attn = if words.next() == Some("off") { FlashAttn::Off } else { FlashAttn::On },
            "-nkvo" => run.offload_kqv = false,
            "--swa-full" => run.swa_full = true,
            "-ot" | "-lm" | "-ncmoe" => drop(words.next()),
            "-cmoe" | "--no-host" | "--no-op-offload" => {}
            other => panic!("unknown flag {other} in `{flags}`"),
        }
    }
    run
}

/// One card that no weight matters to, with the last `n_gpu_layers` slots.
fn layers_on_one_card(n_slots: usize, n_gpu_layers: i32) -> (Machine, Placement) {
    let card = Device {
        name: "CUDA0".to_string(),
        buffer: "CUDA0".to_string(),
        backend: Backend::Cuda,
        description: None,
        total: Bytes::mib(81079),
        free: Bytes::mib(81079),
        overhead: None,
    };
    let on_host = n_slots.saturating_sub(usize::try_from(n_gpu_layers).unwrap_or(usize::MAX));
    let layers = (0..n_slots).map(|slot| (slot >= on_host).then_some(0)).collect();
    (
        Machine { devices: vec![card], host: Host { ram: None, isa: Isa::Generic } },
        Placement { copies: Vec::new(), layers, devices: vec![0] },
    )
}

/// What is wrong with the prediction of `row`, in words.
fn wrong_cells(row: &Row, model: &Model) -> Vec<String> {
    let name = format!("{} {}", row.model, row.flags);
    let n_slots = memory::context_hparams::ContextHParams::of(model).layers.len() + 1;
    let (machine, placement) = layers_on_one_card(n_slots, row.run.n_gpu_layers);
    let prediction = match memory::predict(model, &machine, &row.run, &placement) {
        Ok(prediction) => prediction,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let cell = |device: &str| prediction.memory.get(device).map_or(Bytes(0), |m| m.context);
    let state_cell = |buffer: &str| {
        let (device, kinds): (_, &[CacheKind]) = match buffer {
            "DSV4-csa" => ("CUDA0", &[CacheKind::CsaState]),
            "DSV4-hca" => ("CUDA0", &[CacheKind::HcaState]),
            "DSV4-lid" => ("CUDA0", &[CacheKind::IndexerState]),
            "CPU" => (HOST, &[CacheKind::Recurrent, CacheKind::PleState]),
            device => (device, &[CacheKind::Recurrent, CacheKind::PleState]),
        };
        let mut states = prediction.caches.clone();
        states.list.retain(|cache| kinds.contains(&cache.kind));
        let states = context::bytes_by_device(&states, &machine, &row.run, &placement).expect("predicted above");
        states.get(device).map_or(0.0, |bytes| bytes.in_mib())
    };
    let wrong_states = row
        .states_mib
        .iter()
        .filter(|(buffer, mib)| (state_cell(buffer) - **mib).abs() > 0.0051)
        .map(|(buffer, mib)| format!("{name}: states {buffer} {} MiB, llama.cpp {mib}", state_cell(buffer)));
    row.context_mib
        .iter()
        .filter(|(device, mib)| cell(device).0 / MIB != **mib)
        .map(|(device, mib)| format!("{name}: {device} {} MiB, llama.cpp {mib}", cell(device).in_mib()))
        .chain(wrong_states)
        .collect()
}

/// Checks every row of `file` on the headers in `folder`.
fn check(file: &str, folder: &Path) {
    let mut wrong = Vec::new();
    let mut models = BTreeMap::new();
    let rows = rows(file);
    for row in &rows {
        let model = models.entry(row.model.clone()).or_insert_with(|| {
            let gguf = gguf::open(&folder.join(format!("{}.gguf", row.model))).expect("a header of the archive");
            Model::from_gguf(gguf).expect("a model of the archive")
        });
        wrong.extend(wrong_cells(row, model));
    }
    assert!(!rows.is_empty());
    assert!(wrong.is_empty(), "{} wrong cells in {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Unpacks an archive of headers (sparse: the weights are holes).
fn unpack(archive: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(archive);
    let status = Command::new("tar").arg("-xJSf").arg(path).arg("-C").arg(folder.path()).status();
    assert!(status.expect("tar is installed").success(), "{archive} unpacks");
    folder
}

#[test]
fn every_architecture() {
    check("architectures.jsonl", unpack("architectures.tar.xz").path());
}

#[test]
fn real_models() {
    check("real-models.jsonl", unpack("real-models.tar.xz").path());
}

#[test]
#[ignore = "needs full-size headers: MOEPLAN_HEADERS names their folder"]
fn full_size_models() {
    let folder = std::env::var("MOEPLAN_HEADERS").expect("MOEPLAN_HEADERS names a folder");
    check("models.jsonl", Path::new(&folder));
}
