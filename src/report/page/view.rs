//! What a report reads of documents that this program only writes: check, plan, sweep and inspect. A key that is absent is
//! empty, so that documents of older and newer versions are read too.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::measurement::{MemoryRow, Row};
use crate::memory::MemoryBreakdown;
use crate::speed::Speed;

/// `moeplan/check/1` and `moeplan/plan/1`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Name and version of the document.
    pub schema: String,
    /// The program that a check is of.
    pub program: String,
    /// The launch.
    pub run: Run,
    /// Predicted memory by device.
    pub memory: BTreeMap<String, Terms>,
    /// What is not in `memory`.
    pub uncounted: Vec<Uncounted>,
    /// What each device may hold.
    pub budget: BTreeMap<String, Bytes>,
    /// Whether it is within the budgets, where that can be told.
    pub fits: Option<bool>,
    /// By how much it is not.
    pub shortfall: BTreeMap<String, Bytes>,
    /// The overrides, those of one flag together.
    pub override_groups: Vec<OverrideGroup>,
    /// What is wrong or surprising.
    pub lints: Vec<Lint>,
    /// Where the figures come from.
    pub basis: Vec<Basis>,
    /// Every copy of every tensor, where it was asked for.
    pub tensors: Option<Vec<Tensor>>,
    /// Which model.
    pub model: Option<ModelSummary>,
    /// On which machine.
    pub machine: Option<Machine>,
    /// What to know before using it.
    pub warnings: Vec<Lint>,
    /// Kept free of every device.
    pub margin: Bytes,
    /// The command to paste, or that was checked.
    pub command: String,
    /// Where the routed experts are.
    pub placement: ExpertSplit,
    /// Predicted speed.
    pub speed: Option<Speed>,
    /// The turn that was timed.
    pub turn: Option<Turn>,
    /// Its predicted time, in seconds.
    pub turn_seconds: Option<f64>,
    /// Other launches.
    pub alternatives: Vec<Alternative>,
    /// The terms of the fullest device.
    pub explain: Vec<Explanation>,
    /// What the time is spent on.
    pub time: Vec<Term>,
    /// What would make it fit.
    pub fixes: Vec<Alternative>,
}

impl Plan {
    /// Predicted memory by device, where every term is counted.
    pub fn counted(&self) -> Option<BTreeMap<String, MemoryRow>> {
        let row = |(device, terms): (&String, &Terms)| {
            let Terms { model, context, compute, overhead, total } = *terms;
            // Documents of early versions have no overhead.
            let overhead = overhead.unwrap_or_default();
            let terms = MemoryBreakdown { model, context: context?, compute: compute?, overhead };
            Some((device.clone(), MemoryRow { terms, total: total? }))
        };
        self.memory.iter().map(row).collect()
    }
}

/// A row of memory; a term that is not counted is absent.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Weights.
    pub model: Bytes,
    /// KV caches and recurrent states.
    pub context: Option<Bytes>,
    /// Temporary buffers of the graphs.
    pub compute: Option<Bytes>,
    /// What the device shows beyond llama.cpp's own sum.
    pub overhead: Option<Bytes>,
    /// Together.
    pub total: Option<Bytes>,
}

/// A term that is not counted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Uncounted {
    /// Which.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// A launch as llama.cpp resolves it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Cells in all.
    pub n_ctx: u32,
    /// Logical batch.
    pub n_batch: u32,
    /// Physical batch.
    pub n_ubatch: u32,
    /// K cache type.
    pub type_k: String,
    /// V cache type.
    pub type_v: String,
    /// `-fa`.
    pub flash_attn: String,
    /// Sequences.
    pub n_seq_max: u32,
    /// What the launch would use.
    pub load_mode: String,
}

/// Overrides of one flag.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OverrideGroup {
    /// Their regex.
    pub pattern: String,
    /// Their target.
    pub buffer: String,
    /// The flag.
    pub origin: String,
    /// Tensors they decide.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: Bytes,
}

/// A lint or a warning.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Lint {
    /// Its name.
    pub code: String,
    /// `error`, `warning`, `info`; a warning has none.
    pub severity: String,
    /// What it is.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Where a figure comes from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Basis {
    /// Which figure.
    pub quantity: String,
    /// Its formula and inputs.
    pub how: String,
}

/// One copy of a tensor.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub bytes: Bytes,
    /// llama.cpp's name of the buffer type; `None` = not loaded.
    pub buffer: Option<String>,
}

/// Which model.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ModelSummary {
    /// As the user named it.
    pub path: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// Bytes of all tensors.
    pub bytes: Bytes,
    /// Tokens it was trained for.
    pub context_length: u32,
    /// Blocks.
    pub block_count: u32,
}

/// Where the routed experts are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ExpertSplit {
    /// On any device.
    pub routed_expert_bytes_on_devices: Bytes,
    /// On the host.
    pub routed_expert_bytes_on_host: Bytes,
    /// Blocks with an expert tensor on the host.
    pub blocks_with_experts_on_host: u64,
    /// Blocks with routed experts.
    pub blocks_with_experts: u64,
}

/// A turn, in tokens.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Turn {
    /// Of the prompt.
    pub prompt: u32,
    /// Generated.
    pub generate: u32,
    /// Already in the context.
    pub depth: u32,
}

/// Another launch.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Alternative {
    /// What differs.
    pub what: String,
    /// Whether it is within the budgets.
    pub fits: bool,
    /// By how much it is not.
    pub shortfall: BTreeMap<String, Bytes>,
    /// Where its routed experts are.
    pub placement: ExpertSplit,
    /// Its predicted speed.
    pub speed: Option<Speed>,
    /// Its predicted time of the turn, in seconds.
    pub turn_seconds: f64,
    /// That time against the proposed launch's.
    pub turn_change: f64,
    /// What has to be known.
    pub note: Option<String>,
}

/// One term and what would make it smaller.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// Which.
    pub term: String,
    /// What it takes.
    pub bytes: Bytes,
    /// What to change.
    pub fix: String,
    /// What that frees.
    pub saves: Bytes,
    /// What that costs, in words.
    pub costs: String,
}

/// One part of a turn's predicted time.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Term {
    /// `prompt` or `generate`.
    pub phase: String,
    /// What.
    pub what: String,
    /// Seconds of the whole turn.
    pub seconds: f64,
}

/// `moeplan/sweep/1` and `moeplan/plans/1`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Sweep {
    /// Which model; of several files each point names its own.
    pub model: Option<ModelSummary>,
    /// `vram` or `ctx`; empty for several files.
    pub variable: String,
    /// The contexts that were planned for each budget; empty where one thing varies.
    pub contexts: Vec<u64>,
    /// The point that the others are around.
    pub asked: Option<usize>,
    /// In rising order.
    #[serde(alias = "rows")]
    pub points: Vec<Point>,
}

/// One plan of many.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Point {
    /// Which model, of several.
    pub model: Option<ModelSummary>,
    /// What varies: bytes or tokens.
    pub value: u64,
    /// The same for people.
    pub label: String,
    /// Whether it is within the budgets.
    pub fits: bool,
    /// `-c`.
    pub n_ctx: u32,
    /// `-ub`.
    pub n_ubatch: u32,
    /// Where the routed experts are.
    pub placement: ExpertSplit,
    /// Memory by device.
    pub memory: BTreeMap<String, MemoryRow>,
    /// Predicted speed.
    pub speed: Option<Speed>,
    /// Predicted time of the turn, in seconds.
    pub turn_seconds: f64,
    /// The arguments for `llama-server -m MODEL`.
    pub args: Vec<String>,
}

/// `moeplan/run/1`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Launched {
    /// Where requests go.
    pub endpoint: String,
    /// The server's process id.
    pub process: u32,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// From its start until it took requests.
    pub load_seconds: f64,
    /// Predicted beside measured.
    pub comparison: Vec<Row>,
    /// The plan that was launched.
    pub plan: serde_json::Value,
}

/// `moeplan/inspect/1`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Inspection {
    /// The first file.
    pub path: String,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// llama.cpp's name of the type.
    pub file_type: Option<String>,
    /// How many tensors.
    pub tensors: u64,
    /// Blocks.
    pub block_count: u32,
    /// Tokens it was trained for.
    pub context_length: u32,
    /// Its routed experts.
    pub experts: Experts,
    /// Its parameters.
    pub parameters: Parameters,
    /// Its bytes.
    pub bytes: TensorBytes,
    /// Bits of a weight.
    pub bits_per_weight: f64,
    /// What one more token of context takes, by cache type.
    pub context_bytes_per_token: Option<BTreeMap<String, Bytes>>,
    /// What is wrong or surprising.
    pub warnings: Vec<Lint>,
    /// A checklist.
    pub expectations: Vec<Expectation>,
}

/// Routed experts.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Experts {
    /// Of a block.
    pub count: u32,
    /// Used by a token.
    pub used: u32,
    /// Shared ones.
    pub shared: u32,
    /// Blocks that have them.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: Bytes,
}

/// Parameters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Parameters {
    /// Of every tensor.
    pub total: u64,
    /// Those that a token uses.
    pub active: u64,
    /// By role.
    pub by_role: BTreeMap<String, u64>,
}

/// Bytes of tensors.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TensorBytes {
    /// Of all.
    pub total: Bytes,
    /// By role.
    pub by_role: BTreeMap<String, Bytes>,
    /// By type.
    pub by_type: BTreeMap<String, Bytes>,
}

/// One expectation.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Expectation {
    /// The key.
    pub what: String,
    /// As the file has it.
    pub expected: serde_json::Value,
    /// What the document has.
    pub found: serde_json::Value,
    /// Whether they agree.
    pub ok: bool,
}

/// One row of llama-bench's JSON (`tools/llama-bench/llama-bench.cpp` `test::get_fields`, b11434).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct BenchRow {
    /// llama.cpp's build.
    pub build_number: u32,
    /// The processor.
    pub cpu_info: String,
    /// The devices.
    pub gpu_info: String,
    /// `CUDA`, `CPU` …
    pub backends: String,
    /// The file.
    pub model_filename: String,
    /// `qwen3moe 30B.A3B Q4_K - Medium`.
    pub model_type: String,
    /// Its bytes.
    pub model_size: Bytes,
    /// `-ub`.
    pub n_ubatch: u32,
    /// `-t`.
    pub n_threads: u32,
    /// `-ngl`.
    pub n_gpu_layers: i64,
    /// `-ncmoe`.
    pub n_cpu_moe: u32,
    /// `-ot`.
    pub tensor_buft_overrides: String,
    /// `-lm`.
    pub load_mode: String,
    /// Prompt tokens.
    pub n_prompt: u32,
    /// Generated tokens.
    pub n_gen: u32,
    /// Tokens in the context before.
    pub n_depth: u32,
    /// Tokens per second, the mean.
    pub avg_ts: f64,
    /// Their standard deviation.
    pub stddev_ts: f64,
    /// The samples.
    pub samples_ts: Vec<f64>,
}
