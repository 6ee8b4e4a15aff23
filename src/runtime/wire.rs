//! What moeplan and its worker process say to each other: one JSON document a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::run::RunConfig;

use super::Launch;

/// What the worker puts before each answer, since llama.cpp prints lines of its own to standard output.
pub const MARK: &str = "moeplan-worker ";

/// A question to the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Which devices are there.
    Devices {
        /// RPC servers (`host:port`) to ask too.
        rpc: Vec<String>,
    },
    /// What would be allocated.
    Project(Job),
    /// Load, run, measure.
    Generate(Job, Workload),
    /// End at once as a crash would, to test what becomes of it.
    Crash,
    /// Sleep for seconds, to test time limits.
    Sleep(u64),
}

/// An answer of the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Devices`].
    Devices(Vec<DeviceInfo>),
    /// To [`Request::Project`].
    Projection(Projection),
    /// To [`Request::Generate`].
    Generation(Box<Generation>),
    /// llama.cpp refused: what it was doing.
    Refused(String),
}

/// A launch for the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The model file.
    pub model: PathBuf,
    /// Devices by name or buffer type, in order; empty = host only.
    pub devices: Vec<String>,
    /// RPC servers to reach first.
    pub rpc: Vec<String>,
    /// The launch.
    pub run: RunConfig,
    /// Threads; 0 = all processors.
    pub n_threads: u32,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// A text to continue, or a prompt of so many pseudo-random tokens.
    pub prompt: Prompt,
    /// Tokens that are in the cache before the prompt.
    pub depth: u32,
    /// Tokens to generate, greedily.
    pub n_generate: u32,
    /// How often, for the spread.
    pub repetitions: u32,
}

/// What generation starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// This text, tokenised by the model.
    Text(String),
    /// So many tokens spread over the vocabulary.
    Tokens(u32),
}

/// A fixed sequence of `n` tokens spread over a vocabulary (a linear congruential generator), another one for each `seed`, so
/// that a run can be repeated.
pub fn pseudo_random(n: u32, n_vocab: u32, seed: u64) -> Vec<u32> {
    let n_vocab = u64::from(n_vocab.max(1));
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((*state >> 33) % n_vocab).ok()
    };
    (0..n).scan(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(42), |state, _| next(state)).collect()
}

/// A device as llama.cpp lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceInfo {
    /// `CUDA0`, `RPC0`, `CPU`.
    pub name: String,
    /// Its buffer type's name, which `-ot` takes.
    pub buffer: String,
    /// What it calls itself.
    pub description: String,
    /// Its backend's name (`CUDA`, `RPC`, `CPU`).
    pub backend: String,
    /// Whether weights can be offloaded to it.
    pub gpu: bool,
    /// Memory it has.
    pub total: Bytes,
    /// Memory it says is free.
    pub free: Bytes,
}

/// What one buffer type holds or would hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferMemory {
    /// The buffer type's name.
    pub buffer: String,
    /// The device it belongs to, if any.
    pub device: Option<String>,
    /// Whether llama.cpp counts it as host memory.
    pub host: bool,
    /// Weights.
    pub model: Bytes,
    /// Caches and states.
    pub context: Bytes,
    /// Buffers of the graphs.
    pub compute: Bytes,
}

/// What llama.cpp says that a launch allocates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// By buffer type.
    pub buffers: Vec<BufferMemory>,
    /// The devices that the model uses, in its order.
    pub devices: Vec<String>,
    /// The context length that came of it.
    pub n_ctx: u32,
}

/// What a launch did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Memory after the run.
    pub memory: Projection,
    /// Time to load, in seconds.
    pub load_seconds: f64,
    /// Prompt tokens of each repetition.
    pub n_prompt: u32,
    /// Tokens that were in the cache before each of these prompts.
    pub depth: u32,
    /// Prompt processing, tokens/s of each repetition.
    pub pp: Vec<f64>,
    /// Generation, tokens/s of each repetition.
    pub tg: Vec<f64>,
    /// What was generated first.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<i32>,
    /// Whether every logit was a finite number.
    pub finite: bool,
    /// The worker's memory after the run.
    pub process: ProcessMemory,
    /// The worker's memory before the model was loaded.
    pub before: ProcessMemory,
}

/// Memory of a process (Linux; zero elsewhere).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessMemory {
    /// Resident and its own (RssAnon).
    pub rss_anon: Bytes,
    /// Resident pages of files (RssFile): what is mapped of a model, and the program.
    pub rss_file: Bytes,
    /// Resident shared memory (RssShmem); drivers keep pinned memory here too.
    #[serde(default)]
    pub rss_shmem: Bytes,
    /// Memory that `-lm mlock` holds (VmLck).
    #[serde(default)]
    pub locked: Bytes,
    /// Memory that a driver has pinned, as far as the kernel knows (VmPin).
    #[serde(default)]
    pub pinned: Bytes,
    /// The most that was ever resident (VmHWM).
    pub peak: Bytes,
}

impl ProcessMemory {
    /// All that is resident (VmRSS).
    pub fn resident(&self) -> Bytes {
        self.rss_anon + self.rss_file + self.rss_shmem
    }
}

impl Job {
    /// What the engine is to do for a launch.
    pub fn of(launch: &Launch) -> Self {
        Self {
            model: launch.model.clone(),
            devices: launch.device_names(),
            rpc: launch.endpoints(),
            run: launch.run.clone(),
            n_threads: launch.n_threads,
        }
    }
}
