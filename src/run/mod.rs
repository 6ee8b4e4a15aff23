//! A launch of llama.cpp: what its flags mean, read from and printed as command lines.

use serde::Serialize;

use crate::gguf::GgmlType;

/// Everything of a command line that decides memory. Defaults are llama.cpp b11434's (`common/common.h`).
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Which program: they differ in slots and output rows.
    pub program: Program,
    /// `-c`; 0 = the model's own context length.
    pub n_ctx: u32,
    /// `-b`.
    pub n_batch: u32,
    /// `-ub`.
    pub n_ubatch: u32,
    /// `-ctk`.
    pub type_k: GgmlType,
    /// `-ctv`.
    pub type_v: GgmlType,
    /// `-fa`.
    pub flash_attn: FlashAttn,
    /// `-np`; `None` = not given (llama-server: 4 unified slots, others 1).
    pub n_parallel: Option<u32>,
    /// `-kvu`; `None` = not given.
    pub kv_unified: Option<bool>,
    /// `-ngl`: -1 auto, -2 all.
    pub n_gpu_layers: i32,
    /// `-sm`.
    pub split_mode: SplitMode,
    /// `-mg`.
    pub main_gpu: i32,
    /// `-ts`; empty = not given.
    pub tensor_split: Vec<f32>,
    /// `--device`; `None` = not given, empty = `none`.
    pub devices: Option<Vec<String>>,
    /// `-lm`.
    pub load_mode: LoadMode,
    /// Off with `-nkvo`.
    pub offload_kqv: bool,
    /// Off with `--no-op-offload`.
    pub op_offload: bool,
    /// `--no-host`.
    pub no_host: bool,
    /// Off with `-nr`.
    pub repack: bool,
    /// `--swa-full`.
    pub swa_full: bool,
    /// Whether the NextN/MTP blocks are loaded.
    pub mtp: bool,
    /// `-ot`, `-cmoe`, `-ncmoe`, `-ncffn` as one list in the order llama.cpp tries them (env and config first).
    pub overrides: Vec<Override>,
    /// `-fit`.
    pub fit: bool,
    /// `--rpc` servers.
    pub rpc: Vec<String>,
}

/// One entry of llama.cpp's override list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// ECMAScript regex, searched unanchored in the full tensor name.
    pub pattern: String,
    /// A buffer type name: `CPU`, `CUDA0`, `RPC0[host:port]`.
    pub buffer: String,
    /// The flag it came from (`-ot`, `-cmoe`, `LLAMA_ARG_CPU_MOE` …).
    pub origin: String,
}

/// A program of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Program {
    /// `llama-server`.
    #[serde(rename = "llama-server")]
    Server,
    /// `llama-cli` (runs the server's code).
    #[serde(rename = "llama-cli")]
    Cli,
    /// `llama-bench`.
    #[serde(rename = "llama-bench")]
    Bench,
    /// `llama-fit-params`.
    #[serde(rename = "llama-fit-params")]
    FitParams,
}

/// `-fa`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlashAttn {
    /// Used where the device supports it.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `-sm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitMode {
    /// Only `-mg`'s device.
    None,
    /// Whole layers.
    Layer,
    /// Rows (SYCL only in b11434).
    Row,
    /// Slices of tensors.
    Tensor,
}

/// `-lm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LoadMode {
    /// mmap where every device supports it.
    #[serde(rename = "auto")]
    Auto,
    /// Read into buffers (pinned where the device has a host buffer type).
    #[serde(rename = "none")]
    None,
    /// Mapped files.
    #[serde(rename = "mmap")]
    Mmap,
    /// Read and locked.
    #[serde(rename = "mlock")]
    Mlock,
    /// Mapped and locked.
    #[serde(rename = "mmap+mlock")]
    MmapMlock,
    /// Direct I/O.
    #[serde(rename = "dio")]
    Dio,
}
