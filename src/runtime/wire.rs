//! What moeplan and its worker process say to each other: one JSON document a line, in llama.cpp's own parameters.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::gguf::Value;
use crate::run::{FlashAttn, LoadMode, Program, RunConfig, SplitMode};

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

/// A launch as `llama_model_params` and `llama_context_params` (include/llama.h, b11434).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are llama.cpp's")]
pub struct Job {
    /// The model file.
    pub model: PathBuf,
    /// Devices by name or buffer type, in order; empty = host only.
    pub devices: Vec<String>,
    /// RPC servers to reach first.
    pub rpc: Vec<String>,
    /// Tokens of context of all sequences; 0 = the model's.
    pub n_ctx: u32,
    /// Tokens of a logical batch.
    pub n_batch: u32,
    /// Tokens of a physical batch.
    pub n_ubatch: u32,
    /// Sequences.
    pub n_seq_max: u32,
    /// Output rows of a batch; 0 = `n_batch`.
    pub n_outputs_max: u32,
    /// One cache for all sequences.
    pub kv_unified: bool,
    /// ggml type id of the K cache.
    pub type_k: u32,
    /// ggml type id of the V cache.
    pub type_v: u32,
    /// `llama_flash_attn_type`.
    pub flash_attn: i32,
    /// Whether the cache is on the devices.
    pub offload_kqv: bool,
    /// Whether large batches over host weights go to a device.
    pub op_offload: bool,
    /// Full-size cache for windows.
    pub swa_full: bool,
    /// Layers on devices; negative = all.
    pub n_gpu_layers: i32,
    /// `llama_split_mode`.
    pub split_mode: u32,
    /// Device of split mode none.
    pub main_gpu: i32,
    /// Shares of the devices; empty = by free memory.
    pub tensor_split: Vec<f32>,
    /// `llama_load_mode`.
    pub load_mode: i32,
    /// `--no-host`.
    pub no_host: bool,
    /// Whether weights may be repacked.
    pub repack: bool,
    /// Whether NextN/MTP blocks are loaded.
    pub mtp: bool,
    /// (pattern, buffer type) in order.
    pub overrides: Vec<(String, String)>,
    /// `--override-kv`: key and value, the first of a key wins.
    pub metadata: Vec<(String, KvValue)>,
    /// Threads; 0 = all processors.
    pub n_threads: u32,
}

/// A value of `--override-kv` (include/llama.h `llama_model_kv_override`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvValue {
    /// `int:`.
    Int(i64),
    /// `float:`.
    Float(f64),
    /// `bool:`.
    Bool(bool),
    /// `str:`.
    Str(String),
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
    /// The parameters that a program makes of a launch (common/common.cpp `common_model_params_to_llama`,
    /// `common_context_params_to_llama`; llama-server's slots, b11434).
    pub fn of(launch: &Launch) -> Self {
        let run = &launch.run;
        let (n_seq_max, kv_unified) = sequences(run);
        Self {
            model: launch.model.clone(),
            devices: launch.device_names(),
            rpc: launch.endpoints(),
            n_ctx: match (run.n_ctx, run.kv_unified_per_slot) {
                (0, Some(per_slot)) => per_slot.saturating_mul(n_seq_max),
                (n_ctx, _) => n_ctx,
            },
            n_batch: run.n_batch,
            n_ubatch: run.n_ubatch,
            n_seq_max,
            n_outputs_max: outputs(run, n_seq_max),
            kv_unified,
            type_k: run.type_k.id,
            type_v: run.type_v.id,
            flash_attn: match run.flash_attn {
                FlashAttn::Auto => -1,
                FlashAttn::Off => 0,
                FlashAttn::On => 1,
            },
            offload_kqv: run.offload_kqv,
            op_offload: run.op_offload,
            swa_full: run.swa_full,
            n_gpu_layers: run.n_gpu_layers,
            split_mode: match run.split_mode {
                SplitMode::None => 0,
                SplitMode::Layer => 1,
                SplitMode::Row => 2,
                SplitMode::Tensor => 3,
            },
            main_gpu: run.main_gpu,
            tensor_split: run.tensor_split.clone(),
            load_mode: match run.load_mode {
                LoadMode::Auto => -1,
                LoadMode::None => 0,
                LoadMode::Mmap => 1,
                LoadMode::Mlock => 2,
                LoadMode::MmapMlock => 3,
                LoadMode::Dio => 4,
            },
            no_host: run.no_host,
            repack: run.repack,
            mtp: run.mtp,
            overrides: run.overrides.iter().map(|o| (o.pattern.clone(), o.buffer.clone())).collect(),
            metadata: run.metadata_overrides.iter().filter_map(|o| Some((o.key.clone(), kv(&o.value)?))).collect(),
            n_threads: launch.n_threads,
        }
    }
}

/// Sequences and whether they share one cache: without `-np` llama-server makes four that share one, `-no-kvu` or not
/// (tools/server/server.cpp, b11434).
fn sequences(run: &RunConfig) -> (u32, bool) {
    let automatic = run.program == Program::Server && run.n_parallel.is_none();
    let n_seq_max = run.n_parallel.unwrap_or(if automatic { 4 } else { 1 }).max(1);
    (n_seq_max, automatic || run.kv_unified.unwrap_or(false))
}

/// Output rows of a batch: a server asks for one a slot, the other tools for all (section "n_outputs_max" of
/// tools/server/server-context.cpp, b11434).
fn outputs(run: &RunConfig, n_seq_max: u32) -> u32 {
    match run.program {
        Program::Server | Program::Cli => n_seq_max.min(run.n_batch),
        Program::Bench | Program::FitParams => 0,
    }
}

/// The four kinds of value that `--override-kv` can say.
fn kv(value: &Value) -> Option<KvValue> {
    match value {
        Value::U64(n) => i64::try_from(*n).ok().map(KvValue::Int),
        Value::I64(n) => Some(KvValue::Int(*n)),
        Value::F64(x) => Some(KvValue::Float(*x)),
        Value::Bool(yes) => Some(KvValue::Bool(*yes)),
        Value::String(text) => Some(KvValue::Str(text.clone())),
        _ => None,
    }
}
