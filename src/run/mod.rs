//! A launch of llama.cpp: what its flags mean, read from and printed as command lines.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use serde::{Deserialize, Serialize};

use crate::gguf::{GgmlType, Metadata, Value};
use crate::suggest;

#[doc(hidden)]
pub mod args;
mod bench;
#[doc(hidden)]
pub mod build;
#[doc(hidden)]
pub mod dialect;
mod flags;
#[doc(hidden)]
pub mod numbers;
pub mod parse;
mod pasted;
mod removed;
mod settings;
mod values;

pub use build::Target;
pub use dialect::Dialect;
pub use flags::{Spelling, spelling};
pub use numbers::{ContextNumbers, numbers};
pub use parse::{ModelSource, Note, ParsedCommand};
pub use settings::is_speculation;

/// A command line that llama.cpp would refuse, or that moeplan cannot read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Nothing to read.
    #[error("no command: write it after `--`, for example `-- llama-server -m model.gguf -ngl 99`")]
    Empty,
    /// Not a program that is known here.
    #[error("`{0}` is none of llama-server, llama-cli, llama-bench, llama-fit-params")]
    UnknownProgram(String),
    /// A prompt's sign was copied with the command.
    #[error("`{0}` is the sign of a shell's prompt, not part of the command: leave it out")]
    Prompt(String),
    /// Quotes around all of it.
    #[error("the whole command is one word: leave out the quotes around it")]
    OneWord,
    /// A flag with a typographic dash.
    #[error("`{word}` begins with a dash that is no hyphen: type `{typed}`")]
    Dash {
        /// As pasted.
        word: String,
        /// What to write.
        typed: String,
    },
    /// Typographic quotes.
    #[error("`{word}` has curly quotes, which no shell takes off: type '{typed}'")]
    CurlyQuotes {
        /// As pasted.
        word: String,
        /// It without them.
        typed: String,
    },
    /// The last word is a flag that takes a value.
    #[error("`{flag}` takes a value: {expected}")]
    MissingValue {
        /// As typed.
        flag: String,
        /// What to write.
        expected: String,
    },
    /// A value that llama.cpp refuses too.
    #[error("`{flag} {value}`: expected {expected}")]
    BadValue {
        /// As typed, or the environment variable.
        flag: String,
        /// As typed.
        value: String,
        /// What to write.
        expected: String,
    },
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownProgram(word) if std::path::Path::new(word).extension().is_some_and(|ext| ext == "gguf") => {
                Some(format!("check reads a whole command: `moeplan check -- llama-server -m {word} -ngl 99`"))
            }
            Self::UnknownProgram(word) if word.contains('-') => {
                let name = word.rsplit(['/', '\\']).next().unwrap_or(word);
                suggest::did_you_mean(name, ["llama-server", "llama-cli", "llama-bench", "llama-fit-params"])
            }
            Self::BadValue { value, expected, .. } => {
                let words = expected.split([',', ' ', '`']).filter(|word| !word.is_empty() && *word != value);
                suggest::did_you_mean(value, words.filter(|word| !["one", "of", "or", "a"].contains(word)))
            }
            _ => None,
        }
    }
}

/// Everything of a command line that decides memory. Defaults are llama.cpp b11434's (`common/common.h`).
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of llama.cpp")]
#[derive(Debug, Clone, PartialEq)]
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
    /// `-fitt`: MiB to leave free by device; empty = 1024 each.
    pub fit_target: Vec<u32>,
    /// `-fitc`: the smallest context that fitting may choose.
    pub fit_ctx: u32,
    /// `--kv-unified-per-slot`: sizes the shared cache where `-c` is not given.
    pub kv_unified_per_slot: Option<u32>,
    /// Tokens that speculation may draft at a time; 0 = no speculation.
    pub n_draft: u32,
    /// Recurrent states kept per sequence for rolling a draft back (llama.cpp: `n_rs_seq`); 0 without a drafting model.
    pub n_rs_seq: u32,
    /// Whether every token yields an output row (`--embedding`, `--rerank`, `-embd 1`).
    pub embeddings: bool,
    /// `-lzm`.
    pub lazy_mode: LazyMode,
    /// `--override-kv`, in order.
    pub metadata_overrides: Vec<MetadataOverride>,
    /// `--moe-cache-mib`: MiB of device memory that cache experts of the host (b11549); 0 = none.
    pub moe_cache_mib: u32,
    /// `--cache-ram`: MiB of llama-server's prompt cache on the host, -1 without limit; `None` = not given (8192).
    pub cache_ram: Option<i32>,
    /// `-t`: threads that decode on the host; `None` = not given (llama.cpp: as many as it finds cores). No memory depends on it.
    pub n_threads: Option<u32>,
    /// `-tb`: threads that process prompts on the host; `None` = not given (as `-t`).
    pub n_threads_batch: Option<u32>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            program: Program::Server,
            n_ctx: 0,
            n_batch: 2048,
            n_ubatch: 512,
            type_k: crate::gguf::ggml_type::f16(),
            type_v: crate::gguf::ggml_type::f16(),
            flash_attn: FlashAttn::Auto,
            n_parallel: None,
            kv_unified: None,
            n_gpu_layers: -1,
            split_mode: SplitMode::Layer,
            main_gpu: 0,
            tensor_split: Vec::new(),
            devices: None,
            load_mode: LoadMode::Auto,
            offload_kqv: true,
            op_offload: true,
            no_host: false,
            repack: true,
            swa_full: false,
            mtp: false,
            overrides: Vec::new(),
            fit: true,
            rpc: Vec::new(),
            fit_target: Vec::new(),
            fit_ctx: 4096,
            kv_unified_per_slot: None,
            n_draft: 0,
            n_rs_seq: 0,
            embeddings: false,
            lazy_mode: LazyMode::Auto,
            metadata_overrides: Vec::new(),
            moe_cache_mib: 0,
            cache_ram: None,
            n_threads: None,
            n_threads_batch: None,
        }
    }
}

impl RunConfig {
    /// `metadata` as llama.cpp sees it after `--override-kv`: the first entry of a key wins
    /// (`llama-model-loader.cpp`, b11434). Apply it before a [`crate::model::Model`] is made.
    pub fn override_metadata(&self, metadata: &mut Metadata) {
        for entry in self.metadata_overrides.iter().rev() {
            metadata.insert(entry.key.clone(), entry.value.clone());
        }
    }
}

/// One entry of `--override-kv KEY=TYPE:VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataOverride {
    /// The whole key.
    pub key: String,
    /// What it becomes.
    pub value: Value,
}

/// `-lzm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LazyMode {
    /// Every tensor that may be read lazily stays in the mapped file.
    On,
    /// Those above 4 GiB.
    Auto,
    /// None.
    Off,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

impl LoadMode {
    /// As `-lm` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Mmap => "mmap",
            Self::Mlock => "mlock",
            Self::MmapMlock => "mmap+mlock",
            Self::Dio => "dio",
        }
    }
}
