//! Model and context bytes against llama.cpp's own projections: every row of `testdata/truth`, to the MiB.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use moeplan::bytes::{Bytes, MIB};
use moeplan::gguf;
use moeplan::machine::{Backend, Device, Host, Isa, Machine};
use moeplan::memory::caches::{self, CacheKind, Caches};
use moeplan::memory::projector::encoder_memory;
use moeplan::memory::{self, HOST, context};
use moeplan::model::Model;
use moeplan::model::projector::{self, Encoder, Modality};
use moeplan::placement::{self, Placement};
use moeplan::run::numbers::numbers;
use moeplan::run::{FlashAttn, RunConfig, Target, parse};
use moeplan::synth::Wish;
use moeplan::{checkup, synth};

/// One projection: the launch and the MiB (truncated) it showed.
struct Row {
    model: String,
    run: RunConfig,
    flags: String,
    /// The model and the context column by device.
    columns_mib: BTreeMap<String, (u64, u64)>,
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
    let flags = text("flags");
    let words: Vec<String> = format!("{} {flags}", text("tool")).split_whitespace().map(str::to_string).collect();
    Row {
        model: text("model"),
        run: parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("llama.cpp took it").run,
        flags,
        columns_mib: devices
            .iter()
            .map(|(device, cell)| {
                (device.clone(), (cell["model"].as_u64().expect("MiB"), cell["context"].as_u64().expect("MiB")))
            })
            .collect(),
        states_mib: json["rs_mib"].as_object().map_or_else(BTreeMap::new, |states| {
            states.iter().map(|(k, v)| (k.clone(), v.as_f64().expect("MiB"))).collect()
        }),
    }
}

/// The card of the projections.
fn machine() -> Machine {
    let card = Device::new("CUDA0".to_string(), Backend::Cuda, Bytes::mib(81079));
    Machine { devices: vec![card], host: Host { isa: Isa::X86Amx, ..Host::default() } }
}

/// The context of `model` launched as `run`, without the compute column, which takes longer.
fn context_of(
    model: &Model,
    run: &RunConfig,
    machine: &Machine,
    placement: &Placement,
) -> Result<(Caches, BTreeMap<String, Bytes>), memory::Error> {
    let numbers = numbers(run, &model.hparams);
    let caches = caches::caches(model, run, &numbers);
    context::check(&caches, model, run, &numbers)?;
    let bytes = context::bytes_by_device(&caches, model, machine, run, placement)?;
    Ok((caches, bytes))
}

/// What is wrong with the prediction of `row`, in words.
fn wrong_cells(row: &Row, model: &Model) -> Vec<String> {
    let name = format!("{} {}", row.model, row.flags);
    let machine = machine();
    let placement = placement::place(model, &machine, &row.run).expect("llama.cpp took it");
    let models = placement::model_bytes(&placement, model, &machine);
    let (caches, contexts) = match context_of(model, &row.run, &machine, &placement) {
        Ok(found) => found,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let state_cell = |buffer: &str| {
        let (device, kinds): (_, &[CacheKind]) = match buffer {
            "DSV4-csa" => ("CUDA0", &[CacheKind::CsaState]),
            "DSV4-hca" => ("CUDA0", &[CacheKind::HcaState]),
            "DSV4-lid" => ("CUDA0", &[CacheKind::IndexerState]),
            "CPU" => (HOST, &[CacheKind::Recurrent, CacheKind::PleState]),
            device => (device, &[CacheKind::Recurrent, CacheKind::PleState]),
        };
        let mut states = caches.clone();
        states.list.retain(|cache| kinds.contains(&cache.kind));
        let states = context::bytes_by_device(&states, model, &machine, &row.run, &placement).expect("predicted above");
        states.get(device).map_or(0.0, |bytes| bytes.in_mib())
    };
    let wrong_states = row
        .states_mib
        .iter()
        .filter(|(buffer, mib)| (state_cell(buffer) - **mib).abs() > 0.0051)
        .map(|(buffer, mib)| format!("{name}: states {buffer} {} MiB, llama.cpp {mib}", state_cell(buffer)));
    let wrong_columns = row.columns_mib.iter().filter_map(|(device, (model, context))| {
        let cell = |column: &BTreeMap<String, Bytes>| column.get(device).copied().unwrap_or_default();
        let (m, c) = (cell(&models), cell(&contexts));
        let wrong = m.0 / MIB != *model || c.0 / MIB != *context;
        wrong.then(|| format!("{name}: {device} {} + {} MiB, llama.cpp {model} + {context}", m.in_mib(), c.in_mib()))
    });
    wrong_columns.chain(wrong_states).collect()
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
fn models_of_real_size() {
    check("models.jsonl", unpack("truth-models.tar.xz").path());
}

/// `testdata/truth/context.tsv`: every architecture by nine launches, to the byte, and what llama.cpp refuses.
#[test]
fn context_to_the_byte() {
    let folder = unpack("architectures.tar.xz");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/context.tsv");
    let text = std::fs::read_to_string(path).expect("the truth is in the repository");
    let mut lines = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t'));
    let launches: Vec<&str> = lines.next().expect("a head").skip(1).collect();
    let machine = Machine { devices: Vec::new(), ..machine() };
    let (mut wrong, mut cells) = (Vec::new(), 0);
    for mut line in lines {
        let name = line.next().expect("a model");
        let gguf = gguf::open(&folder.path().join(format!("{name}.gguf"))).expect("a header of the archive");
        let model = Model::from_gguf(gguf).expect("a model of the archive");
        for (flags, expected) in launches.iter().zip(line).filter(|(_, expected)| *expected != "aborts") {
            let words: Vec<String> = format!("llama-server {flags}").split(' ').map(str::to_string).collect();
            let run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("flags of llama.cpp").run;
            let placement = placement::place(&model, &machine, &run).expect("the host takes all");
            let found = match context_of(&model, &run, &machine, &placement) {
                Ok((_, bytes)) => bytes.get(HOST).map_or(0, |bytes| bytes.0).to_string(),
                Err(_) => "refused".to_string(),
            };
            cells += 1;
            if found != expected {
                wrong.push(format!("{name} {flags}: {found}, llama.cpp {expected}"));
            }
        }
    }
    assert!(cells > 1000, "{cells} cells");
    assert!(wrong.is_empty(), "{} wrong cells:\n{}", wrong.len(), wrong.join("\n"));
}

/// `testdata/truth/companions.jsonl`: two cards, draft models, MTP; every part by itself, to the MiB (truncated).
#[test]
fn launches_of_several_parts() {
    let folder = unpack("companions.tar.xz");
    let open = |name: &str| {
        let path = folder.path().join(name);
        if !path.exists() {
            synth::hole(name.trim_end_matches(".gguf"), &Wish::default(), folder.path()).expect("a known model");
        }
        Model::from_gguf(gguf::open(&path).expect("a GGUF")).expect("a model")
    };
    let card =
        |name: &str| Device { total: Bytes::mib(143_155), ..Device::parse(&format!("{name}=1G")).expect("a card") };
    let machine = Machine {
        devices: vec![card("CUDA0"), card("CUDA1")],
        host: Host { isa: Isa::X86Amx, ram: Some(Bytes::mib(258_048)), ..Host::default() },
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/companions.jsonl");
    let text = std::fs::read_to_string(path).expect("the truth is in the repository");
    let mut wrong = Vec::new();
    let mut models = BTreeMap::new();
    for json in text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON lines")) {
        let (name, flags) = (json["model"].as_str().expect("a name"), json["flags"].as_str().expect("flags"));
        let words: Vec<String> = format!("llama-server {flags}").split(' ').map(str::to_string).collect();
        let mut command = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("llama.cpp took it");
        let mut model = models.entry(name.to_string()).or_insert_with(|| open(&format!("{name}.gguf"))).clone();
        if let Some(draft) = command.run.draft_model.clone() {
            let draft = open(&draft);
            command.run.infer_speculation(draft.speculation());
            model.draft = Some(draft.into());
        }
        let check = checkup::check(&model, &machine, &command, checkup::Options::default());
        if json["refused"] == true {
            assert!(check.is_err(), "{name} {flags}: llama.cpp refuses");
            continue;
        }
        let check = check.expect("a forecast");
        if let Some(buffers) = json["buffers"].as_array().filter(|_| json["kind"] == "sm-tensor") {
            // The log of a real load: `Meta()` is one device's part.
            let theirs = ["model", "KV", "compute"].map(|what| {
                let of = |row: &&serde_json::Value| row[0] == "Meta()" && row[1] == what;
                buffers.iter().filter(of).map(|row| row[2].as_f64().expect("MiB")).sum::<f64>()
            });
            for device in ["CUDA0", "CUDA1"] {
                let row = &check.parts[0].memory[device];
                let ours = [row.model, row.context.expect("context"), row.compute.expect("compute")].map(Bytes::in_mib);
                if ours.iter().zip(theirs).any(|(ours, theirs)| (ours - theirs).abs() > 0.0101) {
                    wrong.push(format!("{name} {flags}: {device} {ours:?}, llama.cpp {theirs:?}"));
                }
            }
            continue;
        }
        for (part, cells) in check.parts.iter().zip([&json["target"], &json["drafting"]]) {
            for (device, cell) in cells.as_object().expect("a table") {
                let found = part.memory.get(device).map_or([0; 3], |row| {
                    [row.model, row.context.expect("context"), row.compute.expect("compute")].map(|b| b.0 / MIB)
                });
                let theirs = ["model", "context", "compute"].map(|term| cell[term].as_u64().expect("MiB"));
                if found != theirs {
                    wrong.push(format!("{name} {flags}: {:?} {device} {found:?}, llama.cpp {theirs:?}", part.what));
                }
            }
        }
        assert_eq!(check.parts.len(), 1 + usize::from(json["drafting"].is_object()), "{name} {flags}");
    }
    assert!(wrong.is_empty(), "{} wrong cells:\n{}", wrong.len(), wrong.join("\n"));
}

/// `testdata/measured/h200-projectors.tsv`: what llama-server says it needs for the same projectors on a CUDA card.
#[test]
fn projectors_on_a_cuda_card() {
    let folder = unpack("projectors.tar.xz");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/measured/h200-projectors.tsv");
    let text = std::fs::read_to_string(path).expect("the measurements are in the repository");
    let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for row in &rows {
        let columns: Vec<&str> = row.split('\t').collect();
        let [name, flash_attn, device, host] = columns.as_slice() else { panic!("{row}") };
        let gguf = gguf::open(&folder.path().join(format!("{name}.gguf"))).expect("a GGUF");
        let (model, _) = Model::as_far_as_readable(gguf);
        let flash_attn = if *flash_attn == "off" { FlashAttn::Off } else { FlashAttn::Auto };
        let encoders = projector::encoders(&model, [0, 0]).expect("encoders");
        let (mut on_device, mut on_host) = (Bytes(0), Bytes(0));
        for encoder in &encoders {
            let taken = encoder_memory(*encoder, Some((0, Backend::Cuda)), flash_attn).expect("a graph");
            on_device += taken.weights + taken.compute;
            on_host += taken.host_compute;
        }
        // llama-server's estimate leaves out what the buffer of the weights is aligned by.
        for (bytes, said) in [(on_device, device), (on_host, host)] {
            let said: u64 = said.replace('.', "").parse().expect("hundredths of a MiB");
            let hundredths = (bytes.0 * 100 + MIB / 2) / MIB;
            assert!((said..=said + 2).contains(&hundredths), "{row}: {bytes}");
        }
    }
    assert_eq!(rows.len(), 146);
}

/// `testdata/truth/projectors.tsv`: what llama.cpp's own loader takes for a projector of each type, to the byte.
#[test]
fn projectors_of_every_type() {
    let folder = unpack("projectors.tar.xz");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/projectors.tsv");
    let text = std::fs::read_to_string(path).expect("the truth is in the repository");
    let (mut wrong, mut cells) = (Vec::new(), 0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [name, device, flash_attn, most, expected @ ..] = columns.as_slice() else { panic!("{line}") };
        let gguf = gguf::open(&folder.path().join(format!("{name}.gguf"))).expect("a GGUF");
        let (model, _) = Model::as_far_as_readable(gguf);
        let home = (*device != "CPU").then_some((0, Backend::Rpc));
        let flash_attn = if *flash_attn == "off" { FlashAttn::Off } else { FlashAttn::Auto };
        let encoders = projector::encoders(&model, [0, most.parse().expect("a number")]);
        let found = encoders.map_err(|fault| fault.to_string()).and_then(|encoders| {
            let cell = |encoder: &Encoder<'_>| {
                let taken = encoder_memory(*encoder, home, flash_attn).map_err(|error| error.to_string())?;
                let (weights, own, host) = (taken.weights.0, taken.compute.0, taken.host_compute.0);
                let compute = if home.is_some() { format!("{own} {host}") } else { format!("- {own}") };
                let images = match encoder.modality {
                    Modality::Vision => {
                        format!(
                            "{} {}",
                            encoder.side,
                            encoder.max_tokens.map_or(-1, |n| i64::try_from(n).expect("few"))
                        )
                    }
                    _ => "- -".to_string(),
                };
                let modality = if encoder.modality == Modality::Vision { "vision" } else { "audio" };
                Ok(format!("{modality} {weights} {compute} {images}"))
            };
            encoders.iter().map(cell).collect::<Result<Vec<_>, String>>()
        });
        cells += expected.len();
        match found {
            Ok(found) if found == expected => {}
            found => wrong.push(format!("{name} {device} {flash_attn:?} {most}: {found:?}, not {expected:?}")),
        }
    }
    assert!(cells > 300, "{cells} cells");
    assert!(wrong.is_empty(), "{} wrong rows:\n{}", wrong.len(), wrong.join("\n"));
}
