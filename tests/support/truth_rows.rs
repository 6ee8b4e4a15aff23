//! Rows of `testdata/truth`, the headers they are about, and what we predict for them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use moeplan::gguf;
use moeplan::machine::{Backend, Device, Host, Isa, Machine};
use moeplan::memory::{self, Forecast, MemoryByDevice};
use moeplan::model::Model;
use moeplan::run::{Target, parse};
use moeplan::synth::output::{Fill, Watch, write};
use moeplan::synth::{Wish, recipe, spec, synthesize};
use serde::Deserialize;

/// One of llama.cpp's projections.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// The header's name.
    pub model: String,
    /// The program.
    pub tool: String,
    /// Its flags.
    pub flags: String,
    /// The table it printed, cut to whole MiB.
    pub memory_mib: BTreeMap<String, Shown>,
    /// Its `compute buffer size` lines, by buffer type.
    #[serde(default)]
    pub compute_mib: BTreeMap<String, f64>,
}

/// One line of the table, in whole MiB.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Shown {
    /// Weights.
    pub model: u64,
    /// Caches.
    pub context: u64,
    /// Compute buffers.
    pub compute: u64,
}

impl Row {
    /// As typed.
    pub fn command(&self) -> String {
        format!("{} {}", self.tool, self.flags)
    }
}

/// The rows of a file of `testdata/truth`.
pub fn rows(file: &str) -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth").join(file);
    let text = std::fs::read_to_string(path).expect("the truth is in the repository");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect()
}

/// The headers of an archive of `testdata`, unpacked, each read once.
pub struct Headers {
    folder: tempfile::TempDir,
    models: BTreeMap<String, Model>,
}

impl Headers {
    /// Unpacks (sparse: the weights are holes).
    pub fn unpack(archive: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(archive);
        let status = Command::new("tar").arg("-xJSf").arg(path).arg("-C").arg(folder.path()).status();
        assert!(status.expect("tar is installed").success(), "{archive} unpacks");
        Self { folder, models: BTreeMap::new() }
    }

    /// The model that `synth` makes of a known one in another recipe and with so many blocks; one of the archive without.
    pub fn made(&mut self, name: &str, recipe: Option<&str>, blocks: Option<u32>) -> &Model {
        let Some(recipe) = recipe else { return self.model(name) };
        let key = format!("{name}-{recipe}-{}", blocks.unwrap_or(0));
        let path = self.folder.path().join(format!("{key}.gguf"));
        if !path.exists() {
            let wish = Wish { recipe: recipe::named(recipe), blocks, ..Wish::default() };
            let synthesis = synthesize(&spec::named(name).expect("a known model"), &wish).expect("a header");
            let watch = Watch { wrote: &|_| {}, stop: &AtomicBool::new(false) };
            write(&synthesis, &path, Fill::Hole, false, watch).expect("written");
        }
        self.model(&key)
    }

    /// A model of the archive.
    pub fn model(&mut self, name: &str) -> &Model {
        self.models.entry(name.to_string()).or_insert_with(|| {
            let gguf = gguf::open(&self.folder.path().join(format!("{name}.gguf"))).expect("a header of the archive");
            Model::from_gguf(gguf).expect("a model of the archive")
        })
    }
}

/// A device that is all free.
pub fn device(name: &str, mib: u64, description: Option<&str>) -> Device {
    let mut device = Device::parse(&format!("{name}={mib}M")).expect("a device");
    device.description = description.map(str::to_string);
    device
}

/// The memory table of a command line on one device, `NAME=SIZE`.
pub fn predict(model: &Model, command: &str, device: &str) -> Result<MemoryByDevice, String> {
    let device = Device::parse(device).map_err(|e| e.to_string())?;
    Ok(forecast_on(model, command, vec![device])?.memory)
}

pub fn forecast_on(model: &Model, command: &str, devices: Vec<Device>) -> Result<Forecast, String> {
    let words: Vec<String> = command.split_whitespace().map(str::to_string).collect();
    let run = parse::command_for(&words, &BTreeMap::new(), Target::default()).map_err(|e| e.to_string())?.run;
    // The processor beside the card of the projections repacks for AMX.
    let isa = if devices[0].backend == Backend::Cuda { Isa::X86Amx } else { Isa::default() };
    let machine = Machine { devices, host: Host { isa, ..Host::default() } };
    memory::forecast(model, &machine, &run).map_err(|e| e.to_string())
}
