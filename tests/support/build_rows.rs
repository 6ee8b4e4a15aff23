//! Launches of which builds of llama.cpp have told their memory in bytes: `testdata/truth/builds.jsonl`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use moeplan::checkup;
use moeplan::gguf;
use moeplan::machine::{Backend, Device, Host, Machine};
use moeplan::memory::MemoryByDevice;
use moeplan::model::Model;
use moeplan::run::{Dialect, LoadMode, RunConfig, Target, parse};
use serde::{Deserialize, Serialize};

/// Small models, one or two of each architecture.
pub const ARCHITECTURES: &str = "architectures.tar.xz";

/// Headers of [`ARCHITECTURES`] that rows are kept of: dense, with experts, with windows, with latents, hybrid, tied.
pub const MODELS: [&str; 14] = [
    "llama-dense",
    "qwen3-dense",
    "gemma2-dense",
    "llama-moe",
    "qwen3moe-moe",
    "glm4moe-moe",
    "gpt-oss-moe",
    "deepseek2-moe",
    "qwen3next-moe",
    "qwen35moe-moe",
    "minimax-m2-moe",
    "granitehybrid-dense",
    "lfm2moe-moe",
    "mamba2-dense",
];

/// Software devices, then the words of llama-server or llama-fit-params.
pub const LAUNCHES: [&str; 16] = [
    "0 llama-server -c 4096 -np 1",
    "0 llama-server -c 8192 -np 4 -ub 256 -fa off",
    "1 llama-server -c 4096 -np 1 -ngl 99 -fa on",
    "1 llama-server -c 8192 -np 4 -ngl 99 -fa off",
    "1 llama-server -c 5000 -np 3 -ngl 99 -ub 128 -nkvo",
    "1 llama-server -c 16384 -np 1 -ngl 99 -cmoe -fa on",
    "1 llama-server -c 4096 -np 2 -ngl 2 -ub 1024 -fa on",
    "1 llama-fit-params -c 4096 -ngl 99 -ub 2048 -fa on",
    "1 llama-fit-params -c 4096 -ngl 99 -ub 32 -ncmoe 1 -fa off",
    "1 llama-server -c 8192 -np 1 -ngl 99 -fa on -ctk q8_0 -ctv q8_0",
    "1 llama-server -c 2048 -np 1 -ngl 99 -ot exps=CPU --no-op-offload -fa on",
    "2 llama-server -c 4096 -np 1 -ngl 99 -ts 1,1 -fa on",
    "2 llama-server -c 8192 -np 4 -ngl 99 -ts 1,3 -fa off",
    "2 llama-server -c 4096 -np 1 -ngl 99 -ts 3,1 -ub 256 --swa-full -fa on",
    "2 llama-server -c 4096 -np 1 -ngl 2 -ts 1,1 -fa on",
    "2 llama-fit-params -c 4096 -ngl 99 -ts 2,3 -ub 1024 -fa auto",
];

/// The first blocks of models, in their own sizes (`testdata/headers/make_ik.py`): ik_llama.cpp does not load [`ARCHITECTURES`], which have
/// more tensors than models do.
pub const OF_IK: &str = "ik.tar.xz";

/// All of [`OF_IK`].
pub const MODELS_OF_IK: [&str; 14] = [
    "deepseek-v2-lite",
    "deepseek-v3",
    "gemma-4-26b-a4b",
    "glm-4.5-air",
    "glm-4.7-flash",
    "glm-5.1",
    "gpt-oss-20b",
    "llama-3.1-8b",
    "minimax-m2.7",
    "mixtral-8x7b",
    "qwen2-57b-a14b",
    "qwen3-30b-a3b",
    "qwen3.5-35b-a3b",
    "qwen3.6-35b-a3b-mtp",
];

/// Devices, then the words of its llama-server.
pub const LAUNCHES_OF_IK: [&str; 18] = [
    "0 llama-server -c 4096",
    "1 llama-server -c 4096",
    "1 llama-server -c 4096 -ngl 99",
    "1 llama-server -c 8192 -np 4 -ngl 99 -no-fa -ub 256",
    "1 llama-server -c 5000 -ngl 99 -ub 128 -nkvo",
    "1 llama-server -c 16384 -ngl 99 -cmoe",
    "1 llama-server -c 4096 -np 2 -ngl 2 -ub 1024",
    "1 llama-server -c 4096 -ngl 99 -ub 2048 -b 4096 -ncmoe 1",
    "1 llama-server -c 8192 -ngl 99 -ctk q8_0 -ctv q8_0",
    "1 llama-server -c 2048 -ngl 99 -ot exps=CPU -no-fmoe -no-fug -no-mmad",
    "1 llama-server -c 4096 -ngl 99 -mla 1 -no-fa",
    "1 llama-server -c 4096 -ngl 99 -mla 2 -amb 64",
    "1 llama-server -c 32768 -ngl 99 -mla 0",
    "2 llama-server -c 4096 -ngl 99",
    "2 llama-server -c 8192 -ngl 99 -ts 1,3 -no-fa",
    "2 llama-server -c 4096 -ngl 99 -ts 3,1 -ncmoe 2 -ub 256",
    "2 llama-server -c 4096 -ngl 2",
    "2 llama-server -c 4096 -np 2 -ngl 99 -ts 2,3 -ub 1024 -cmoe",
];

/// What a build held for a launch.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub build: u32,
    /// What its devices are.
    pub backend: Backend,
    pub model: String,
    pub launch: String,
    pub memory: MemoryByDevice,
}

/// A launch on its software devices, as a build reads it; it is not fitted.
pub fn launch(launch: &str, build: u32, backend: Backend) -> (Machine, RunConfig) {
    let (n_devices, flags) = launch.split_once(' ').expect("devices and flags");
    let n_devices: u16 = n_devices.parse().expect("a count");
    let is_remote = backend == Backend::Rpc;
    let name = |i| if is_remote { format!("RPC{i}[d{i}:1]=999GiB") } else { format!("Vulkan{i}=999GiB") };
    let device = |i| Device::parse(&name(i)).expect("a device");
    let machine = Machine { devices: (0..n_devices).map(device).collect(), host: Host::default() };
    let words: Vec<String> = format!("{flags} -fit off").split(' ').map(str::to_string).collect();
    let target = Target { build, ..Target::default() };
    let mut run = parse::command_for(&words, &BTreeMap::new(), target).expect("flags of llama.cpp").run;
    run.rpc = (0..n_devices).filter(|_| is_remote).map(|i| format!("d{i}:1")).collect();
    (machine, run)
}

/// About which build the crate ik-llama-cpp-sys 0.1.7 has.
pub const BUILD_OF_IK: u32 = 4770;

/// A launch of ik_llama.cpp, on devices of 999 GiB.
pub fn launch_of_ik(launch: &str, model: &Model) -> (Machine, RunConfig) {
    let (n_devices, words) = launch.split_once(' ').expect("devices and flags");
    let n_devices: u16 = n_devices.parse().expect("a count");
    let device = |i| Device::parse(&format!("CUDA{i}=999GiB")).expect("a device");
    let machine = Machine { devices: (0..n_devices).map(device).collect(), host: Host::default() };
    let words: Vec<String> = words.split(' ').map(str::to_string).collect();
    let target = Target { dialect: Dialect::Ik, build: BUILD_OF_IK };
    let command = parse::command_for(&words, &BTreeMap::new(), target).expect("flags of ik_llama.cpp");
    let run = checkup::carried_out(model, &machine, &command).expect("a launch");
    (machine, RunConfig { load_mode: LoadMode::None, ..run })
}

pub struct Headers {
    folder: tempfile::TempDir,
    models: BTreeMap<String, (PathBuf, Model)>,
}

/// Every header of an archive in testdata.
pub fn headers(archive: &str) -> Headers {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(archive);
    let status = Command::new("tar").arg("-xJSf").arg(&archive).arg("-C").arg(folder.path()).status();
    assert!(status.expect("tar is installed").success(), "{} unpacks", archive.display());
    let models = std::fs::read_dir(folder.path()).expect("the folder").map(|entry| {
        let path = entry.expect("an entry").path();
        let model = Model::from_gguf(gguf::open(&path).expect("a header")).expect("a model");
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), (path, model))
    });
    let models = models.collect();
    Headers { folder, models }
}

impl Headers {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> (&Path, &Model) {
        let (path, model) = &self.models[name];
        assert!(path.starts_with(self.folder.path()));
        (path, model)
    }
}
