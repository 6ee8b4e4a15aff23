//! The launch that a command line describes: one field a setting of llama.cpp, with the words and numbers that llama.cpp has for
//! its values. [`RunConfig`] in serde is the `run` of every document and what the embedded worker is sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gguf::{GgmlType, Metadata, Value};

/// The build that every rule was checked on, that is embedded, and that documents mean which name none.
pub const REFERENCE: u32 = 11434;

/// The variable that says from how many rows devices take over products whose weights the host has. The backends of devices read it
/// (`ggml-cuda.cu` `ggml_backend_cuda_reg`, the same of Vulkan, SYCL, CANN and Metal; b11434).
pub const OFFLOAD_MIN_BATCH: &str = "GGML_OP_OFFLOAD_MIN_BATCH";
/// What counts without it.
const OFFLOAD_ROWS: u32 = 32;
/// The first build known to read it: llama.cpp's PR 18535, of which ik_llama.cpp's PR 1214 says on 2026-02-02 that it is merged.
pub const OFFLOAD_MIN_BATCH_SINCE: u32 = 8133;

/// Whose flags a command line is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Dialect {
    /// llama.cpp's own.
    #[default]
    #[serde(rename = "llama.cpp")]
    #[cfg_attr(feature = "cli", value(name = "llama.cpp"))]
    LlamaCpp,
    /// ik_llama.cpp's.
    #[serde(rename = "ik")]
    Ik,
}

/// The llama.cpp that a launch is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Target {
    pub build: u32,
    pub dialect: Dialect,
}

impl Target {
    /// Whether its devices read [`OFFLOAD_MIN_BATCH`].
    pub fn has_offload_rows(self) -> bool {
        self.dialect == Dialect::LlamaCpp && self.build >= OFFLOAD_MIN_BATCH_SINCE
    }
}

impl Default for Target {
    fn default() -> Self {
        Self { build: REFERENCE, dialect: Dialect::LlamaCpp }
    }
}

impl Target {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde's `skip_serializing_if` calls it")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Declares [`RunConfig`] and its default, which is llama.cpp's own (`common/common.h`, b11434).
macro_rules! run_config {
    ($($(#[$about:meta])* $field:ident: $ty:ty = $default:expr,)*) => {
        /// Everything of a command line that decides memory or speed. Defaults are llama.cpp b11434's.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(default)]
        pub struct RunConfig { $($(#[$about])* pub $field: $ty,)* }

        impl Default for RunConfig {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

run_config! {
    /// Which program: they differ in slots and output rows.
    program: Program = Program::Server,
    /// The build whose rules count, or ik_llama.cpp; absent where it is the reference.
    #[serde(skip_serializing_if = "Target::is_default")]
    target: Target = Target::default(),
    /// `-c`, tokens; 0 = the model's own context length.
    n_ctx: u32 = 0,
    /// `-b`, tokens.
    n_batch: u32 = 2048,
    /// `-ub`, tokens.
    n_ubatch: u32 = 512,
    /// `-ctk`.
    type_k: GgmlType = crate::gguf::ggml_type::f16(),
    /// `-ctv`.
    type_v: GgmlType = crate::gguf::ggml_type::f16(),
    /// `-fa`.
    flash_attn: FlashAttn = FlashAttn::Auto,
    /// `-np`; `None` = not given (llama-server: 4 unified slots, others 1).
    #[serde(rename = "n_seq_max")]
    n_parallel: Option<u32> = None,
    /// `-kvu`; `None` = not given.
    kv_unified: Option<bool> = None,
    /// `--kv-unified-per-slot`: sizes the shared cache where `-c` is not given.
    kv_unified_per_slot: Option<u32> = None,
    /// `-ngl`: -1 auto, -2 all.
    n_gpu_layers: i32 = -1,
    /// `-sm`.
    split_mode: SplitMode = SplitMode::Layer,
    /// `-mg`: the device of split mode none.
    main_gpu: i32 = 0,
    /// `-ts`; empty = not given.
    tensor_split: Vec<f32> = Vec::new(),
    /// `--device`; `None` = not given, empty = `none`.
    devices: Option<Vec<String>> = None,
    /// `--rpc`: servers, `HOST:PORT`.
    rpc: Vec<String> = Vec::new(),
    /// `-ot`, `-cmoe`, `-ncmoe`, `-ncffn` as one list in the order llama.cpp tries them (env and config first). A document lists
    /// them apart, with what each decided.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    overrides: Vec<Override> = Vec::new(),
    /// `-lm`.
    load_mode: LoadMode = LoadMode::Auto,
    /// `-lzm`.
    lazy_mode: LazyMode = LazyMode::Auto,
    /// Off with `-nkvo`.
    offload_kqv: bool = true,
    /// Off with `--no-op-offload`.
    op_offload: bool = true,
    /// `GGML_OP_OFFLOAD_MIN_BATCH`, a variable without a flag; `None` = not set (32).
    #[serde(skip_serializing_if = "Option::is_none")]
    op_offload_min_batch: Option<u32> = None,
    /// `--no-host`: no pinned memory for weights of the host.
    no_host: bool = false,
    /// Off with `-nr`.
    repack: bool = true,
    /// `--swa-full`.
    swa_full: bool = false,
    /// Whether the NextN/MTP blocks are loaded (`--spec-type draft-mtp`).
    mtp: bool = false,
    /// Tokens that speculation may draft at a time; 0 = no speculation.
    n_draft: u32 = 0,
    /// Recurrent states kept per sequence for rolling a draft back (llama.cpp: `n_rs_seq`); 0 without a drafting model.
    n_rs_seq: u32 = 0,
    /// Whether the context is the drafting one of the NextN/MTP blocks (`LLAMA_CONTEXT_TYPE_MTP`): [`RunConfig::drafting`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    mtp_context: bool = false,
    /// `-md`: the file of a draft model.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_model: Option<String> = None,
    /// `-hfd`: its repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_hf: Option<String> = None,
    /// `--spec-draft-n-max`, where a draft model's file says which kind of speculation it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n_max: Option<u32> = None,
    /// The kind of speculation, where it is neither MTP nor what the numbers say without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_type: Option<String> = None,
    /// `-ngld`; `None` = auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n_gpu_layers: Option<i32> = None,
    /// `-devd`; `None` = those of `--device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_devices: Option<Vec<String>> = None,
    /// `-otd`, `-cmoed`, `-ncmoed`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    draft_overrides: Vec<Override> = Vec::new(),
    /// `--spec-draft-n-ubatch`, tokens, of a drafting context of either kind (b12032); `None` = as `-ub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n_ubatch: Option<u32> = None,
    /// `-ctkd`, of a drafting context of either kind; `None` = f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_type_k: Option<GgmlType> = None,
    /// `-ctvd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_type_v: Option<GgmlType> = None,
    /// `--mmproj`: the file of a multimodal projector.
    #[serde(skip_serializing_if = "Option::is_none")]
    mmproj: Option<String> = None,
    /// `--mmproj-url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    mmproj_url: Option<String> = None,
    /// Off with `--no-mmproj`: then `-hf` does not load the repository's projector.
    #[serde(skip_serializing_if = "is_on")]
    mmproj_auto: bool = true,
    /// Off with `--no-mmproj-offload`: the projector stays on the host.
    #[serde(skip_serializing_if = "is_on")]
    mmproj_offload: bool = true,
    /// `-mmdev`: the projector's device, or `none`; `None` = the first of `--device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    mmproj_device: Option<String> = None,
    /// `--image-min-tokens`; `None` = the projector's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_min_tokens: Option<u32> = None,
    /// `--image-max-tokens`; `None` = the projector's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_max_tokens: Option<u32> = None,
    /// Whether LoRA adapters or control vectors are loaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    has_adapters: bool = false,
    /// Whether every token yields an output row (`--embedding`, `--rerank`, `-embd 1`).
    embeddings: bool = false,
    /// `-fit`: whether llama.cpp changes what is not given until it fits.
    fit: bool = true,
    /// `-fitt`: MiB to leave free by device; empty = 1024 each.
    fit_target: Vec<u32> = Vec::new(),
    /// `-fitc`: the smallest context that fitting may choose, tokens; `u32::MAX` forbids fitting to reduce it.
    fit_ctx: u32 = 4096,
    /// `--cache-ram`: MiB of llama-server's prompt cache on the host, -1 without limit; `None` = not given (8192).
    cache_ram: Option<i32> = None,
    /// `--ctx-checkpoints`: states that llama-server keeps by slot, none for 0 or less; `None` = not given (32).
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx_checkpoints: Option<i32> = None,
    /// `-mla` of ik_llama.cpp: 0 keeps keys and values by head, 1 to 3 latent rows; `None` = not given (3).
    #[serde(skip_serializing_if = "Option::is_none")]
    mla: Option<u32> = None,
    /// `-amb` of ik_llama.cpp: MiB that the heads computed at a time take at most, 0 for all heads; `None` = not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention_mib: Option<u32> = None,
    /// What ik_llama.cpp does not fuse: `experts` (`-no-fmoe`), `gates` (`-no-fug`), `sums` (`-no-mmad`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unfused: Vec<String> = Vec::new(),
    /// `-wgt` of ik_llama.cpp: tokens whose logits are reserved; `None` = not given (those of a micro-batch).
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_graph_tokens: Option<u32> = None,
    /// `--moe-cache-mib`: MiB of device memory that cache experts of the host (b11549); 0 = none.
    moe_cache_mib: u32 = 0,
    /// `-t`: threads that decode on the host; `None` = not given (llama.cpp: as many as it finds cores). No memory depends on it.
    n_threads: Option<u32> = None,
    /// `-tb`: threads that process prompts on the host; `None` = not given (as `-t`).
    n_threads_batch: Option<u32> = None,
    /// `--override-kv`, in order.
    metadata_overrides: Vec<MetadataOverride> = Vec::new(),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_on(on: &bool) -> bool {
    *on
}

impl RunConfig {
    /// `metadata` as llama.cpp sees it after `--override-kv`: the first entry of a key wins
    /// (`llama-model-loader.cpp`, b11434). Apply it before a [`crate::model::Model`] is made.
    pub fn override_metadata(&self, metadata: &mut Metadata) {
        for entry in self.metadata_overrides.iter().rev() {
            metadata.insert(entry.key.clone(), entry.value.clone());
        }
    }

    /// The rows from which devices take over products whose weights the host has; `None`: they never do.
    pub fn offload_rows(&self) -> Option<u32> {
        self.op_offload.then_some(self.op_offload_min_batch.unwrap_or(OFFLOAD_ROWS))
    }

    /// The variables that say what no flag does.
    pub fn environment(&self) -> BTreeMap<String, String> {
        self.op_offload_min_batch.iter().map(|rows| (OFFLOAD_MIN_BATCH.to_string(), rows.to_string())).collect()
    }

    /// Whether a second context drafts: of a draft model, or of the model's own NextN blocks.
    pub fn has_drafting(&self) -> bool {
        self.mtp || self.has_draft_model()
    }

    pub fn has_draft_model(&self) -> bool {
        self.draft_model.is_some() || self.draft_hf.is_some()
    }

    pub fn has_projector(&self) -> bool {
        self.mmproj.is_some() || self.mmproj_url.is_some()
    }

    /// The launch of the drafting context beside a target of `n_ctx` cells (`common/speculative.cpp`
    /// `common_base_params_to_speculative`, `common_speculative_init_result`, b11434).
    #[must_use]
    pub fn drafting(&self, n_ctx: u32) -> Self {
        let f16 = crate::gguf::ggml_type::f16;
        let own = Self {
            n_ctx,
            n_ubatch: self.draft_n_ubatch.unwrap_or(self.n_ubatch),
            type_k: self.draft_type_k.unwrap_or_else(f16),
            type_v: self.draft_type_v.unwrap_or_else(f16),
            mtp_context: self.mtp,
            n_draft: 0,
            n_rs_seq: 0,
            embeddings: false,
            moe_cache_mib: 0,
            mmproj: None,
            mmproj_url: None,
            ..self.clone()
        };
        if !self.has_draft_model() {
            return own;
        }
        let one_device = self.draft_devices.as_ref().is_some_and(|devices| devices.len() == 1);
        Self {
            devices: self.draft_devices.clone().or_else(|| self.devices.clone()),
            n_gpu_layers: self.draft_n_gpu_layers.unwrap_or(-1),
            overrides: self.draft_overrides.clone(),
            split_mode: if one_device { SplitMode::Layer } else { self.split_mode },
            ..own
        }
    }
}

/// One entry of `--override-kv KEY=TYPE:VALUE`; JSON has that text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MetadataOverride {
    pub key: String,
    pub value: Value,
}

impl From<MetadataOverride> for String {
    fn from(entry: MetadataOverride) -> Self {
        entry.to_string()
    }
}

/// `KEY=TYPE:VALUE` (`common/common.cpp` `string_parse_kv_override`, b11434). An array has no such text and is empty here.
impl std::fmt::Display for MetadataOverride {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = &self.key;
        match &self.value {
            Value::U64(n) => write!(f, "{key}=int:{n}"),
            Value::I64(n) => write!(f, "{key}=int:{n}"),
            Value::F64(x) => write!(f, "{key}=float:{x}"),
            Value::Bool(b) => write!(f, "{key}=bool:{b}"),
            Value::String(s) => write!(f, "{key}=str:{s}"),
            Value::Array(_) | Value::Counted { .. } => Ok(()),
        }
    }
}

impl TryFrom<String> for MetadataOverride {
    type Error = String;

    fn try_from(entry: String) -> Result<Self, String> {
        let expected = || format!("`{entry}` is not KEY=TYPE:VALUE with TYPE one of int, float, bool, str");
        let (key, typed) = entry.split_once('=').filter(|(key, _)| key.len() < 128).ok_or_else(expected)?;
        let (ty, text) = typed.split_once(':').ok_or_else(expected)?;
        let value = match ty {
            "int" => text.trim().parse::<i64>().map(|n| u64::try_from(n).map_or(Value::I64(n), Value::U64)).ok(),
            "float" => text.trim().parse().map(Value::F64).ok(),
            "bool" => text.parse().map(Value::Bool).ok(),
            "str" => (text.len() < 128).then(|| Value::String(text.to_string())),
            _ => None,
        };
        Ok(Self { key: key.to_string(), value: value.ok_or_else(expected)? })
    }
}

#[cfg(test)]
impl schemars::JsonSchema for MetadataOverride {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MetadataOverride".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "description": "`KEY=TYPE:VALUE`, as `--override-kv` takes it.", "type": "string" })
    }
}

/// One entry of llama.cpp's override list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Override {
    /// ECMAScript regex, searched unanchored in the full tensor name.
    pub pattern: String,
    /// A buffer type name: `CPU`, `CUDA0`, `RPC0[host:port]`.
    pub buffer: String,
    /// The flag it came from (`-ot`, `-cmoe`, `LLAMA_ARG_CPU_MOE` …).
    pub origin: String,
}

/// Declares [`Program`]: each program of llama.cpp that loads a model, the name of its file, and what `llama` calls it
/// (`app/llama.cpp`).
macro_rules! programs {
    ($($program:ident = $name:literal, $commands:literal;)*) => {
        /// A program of llama.cpp that loads a model.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub enum Program { $(#[doc = concat!("`", $name, "`.")] #[serde(rename = $name)] $program,)* }

        impl Program {
            /// Each with the name of its file and the commands of `llama` that start it.
            const ROWS: &[(Self, &'static str, &'static str)] = &[$((Self::$program, $name, $commands)),*];
        }
    };
}

programs! {
    Server = "llama-server", "serve server";
    // Runs the server's code.
    Cli = "llama-cli", "cli client chat";
    Bench = "llama-bench", "bench";
    FitParams = "llama-fit-params", "fit-params";
    Completion = "llama-completion", "completion complete";
    Mtmd = "llama-mtmd-cli", "mtmd-cli mtmd";
    Perplexity = "llama-perplexity", "perplexity";
    Imatrix = "llama-imatrix", "imatrix";
    BatchedBench = "llama-batched-bench", "batched-bench";
    // Of ik_llama.cpp.
    SweepBench = "llama-sweep-bench", "sweep-bench";
    Embedding = "llama-embedding", "embedding";
    Parallel = "llama-parallel", "parallel";
    Batched = "llama-batched", "";
    Speculative = "llama-speculative", "";
    SpeculativeSimple = "llama-speculative-simple", "";
    Lookahead = "llama-lookahead", "";
    Lookup = "llama-lookup", "";
    Passkey = "llama-passkey", "";
    Retrieval = "llama-retrieval", "";
    Tts = "llama-tts", "tts";
    Diffusion = "llama-diffusion-cli", "";
    Cvector = "llama-cvector-generator", "";
    Finetune = "llama-finetune", "";
    EvalCallback = "llama-eval-callback", "";
    Debug = "llama-debug", "";
    Results = "llama-results", "";
}

impl Program {
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ROWS.iter().map(|(_, name, _)| *name)
    }

    pub fn name(self) -> &'static str {
        Self::ROWS.iter().find(|(program, ..)| *program == self).map_or("", |(_, name, _)| name)
    }

    /// The program of a path to it.
    pub fn of_path(path: &str) -> Option<Self> {
        let name = super::held::file_name(path);
        Self::ROWS.iter().find(|(_, known, _)| *known == name).map(|(program, ..)| *program)
    }

    /// The program that a command of `llama` starts: `serve`.
    pub fn of_command(command: &str) -> Option<Self> {
        Self::ROWS.iter().find(|(.., known)| known.split(' ').any(|word| word == command)).map(|(program, ..)| *program)
    }

    /// Whether it fills its batch with chunks of the context's length, a sequence each (`tools/perplexity/perplexity.cpp` and
    /// `tools/imatrix/imatrix.cpp` `main`; b11434 ships no source of them, so the repository's was read).
    pub fn takes_chunks(self) -> bool {
        matches!(self, Self::Perplexity | Self::Imatrix)
    }

    /// How many values a flag takes that this program has and llama-server does not (`common/arg.cpp`, b11434; ik_llama.cpp's
    /// `examples/sweep-bench`); `None` for other words.
    pub fn own_values(self, word: &str) -> Option<usize> {
        let is_own = !matches!(self, Self::Server | Self::Cli | Self::FitParams | Self::Bench);
        let rows = OWN_FLAGS.iter().filter(|_| is_own);
        rows.into_iter().find(|(names, _)| names.split(' ').any(|name| name == word)).map(|(_, values)| *values)
    }

    /// Whether `-hf` loads the repository's projector as well (`common/arg.cpp` `mmproj_examples`, b11434).
    pub fn takes_projector(self) -> bool {
        matches!(self, Self::Server | Self::Cli | Self::Mtmd | Self::Tts)
    }
}

/// Flags of programs other than llama-server, with the number of words that follow.
const OWN_FLAGS: [(&str, usize); 2] = [
    (
        "--chunks --chunk --from-chunk --in-file -o --output --output-file -ofreq --output-frequency --output-format \
         --save-frequency --hellaswag-tasks --winogrande-tasks --multiple-choice-tasks --ppl-stride --ppl-output-type \
         --save-all-logits --kl-divergence-base -npp -ntg -npl -ns --sequences -gan --grp-attn-n -gaw --grp-attn-w --attention \
         --embd-output-format --embd-separator --cls-separator --context-file --chunk-size --chunk-separator --junk --pos --image \
         --audio --video --prompt-cache --in-prefix --in-suffix --positive-file --negative-file --pca-batch --pca-iter --method \
         --diffusion-steps --diffusion-eps --diffusion-algorithm --diffusion-alg-temp --diffusion-block-length \
         --diffusion-cfg-scale --tts-lang --tts-speaker-file -lr --learning-rate -epochs --epochs -opt --optimizer -nrep \
         --n-repetitions --sweep-stride",
        1,
    ),
    (
        "--process-output --nextn --ppl --no-ppl --show-statistics --parse-special --hellaswag --winogrande --multiple-choice \
         --kl-divergence -pps -tgs -ptc --print-token-count --prompt-cache-all --prompt-cache-ro -cnv --conversation -no-cnv \
         --no-conversation -i --interactive -if --interactive-first --in-prefix-bos --diffusion-visual \
         --diffusion-add-gumbel-noise -wb --warmup-batch --sweep-memory",
        0,
    ),
];

/// A choice that llama.cpp's flags take as a word and `include/llama.h` (b11434) as an enum.
pub trait Choice: Copy + PartialEq + 'static {
    /// Each value with its word on a command line, its name in llama.h and its number there.
    const VALUES: &'static [(Self, &'static str, &'static str, i32)];

    fn word(self) -> &'static str {
        Self::VALUES.iter().find(|(value, ..)| *value == self).map_or("", |(_, word, ..)| word)
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::VALUES.iter().find(|(_, known, ..)| *known == word).map(|(value, ..)| *value)
    }

    fn constant(self) -> &'static str {
        Self::VALUES.iter().find(|(value, ..)| *value == self).map_or("", |(_, _, name, _)| name)
    }

    fn number(self) -> i32 {
        Self::VALUES.iter().find(|(value, ..)| *value == self).map_or(0, |(.., number)| *number)
    }
}

/// Declares a [`Choice`] with its JSON, which is the word.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal, $constant:literal, $number:literal;)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub enum $name { $($(#[$doc])* #[serde(rename = $word)] $value,)* }

        impl Choice for $name {
            const VALUES: &'static [(Self, &'static str, &'static str, i32)] =
                &[$((Self::$value, $word, $constant, $number)),*];
        }
    };
}

choice! {
    /// `-fa`.
    FlashAttn {
        /// Used where the device supports it.
        Auto = "auto", "LLAMA_FLASH_ATTN_TYPE_AUTO", -1;
        On = "on", "LLAMA_FLASH_ATTN_TYPE_ENABLED", 1;
        Off = "off", "LLAMA_FLASH_ATTN_TYPE_DISABLED", 0;
    }
}

choice! {
    /// `-sm`.
    SplitMode {
        /// Only `-mg`'s device.
        None = "none", "LLAMA_SPLIT_MODE_NONE", 0;
        /// Whole layers.
        Layer = "layer", "LLAMA_SPLIT_MODE_LAYER", 1;
        /// Rows (SYCL only in b11434).
        Row = "row", "LLAMA_SPLIT_MODE_ROW", 2;
        Tensor = "tensor", "LLAMA_SPLIT_MODE_TENSOR", 3;
    }
}

choice! {
    /// `-lm`.
    LoadMode {
        /// mmap where every device supports it.
        Auto = "auto", "LLAMA_LOAD_MODE_AUTO", -1;
        /// Read into buffers (pinned where the device has a host buffer type).
        None = "none", "LLAMA_LOAD_MODE_NONE", 0;
        Mmap = "mmap", "LLAMA_LOAD_MODE_MMAP", 1;
        Mlock = "mlock", "LLAMA_LOAD_MODE_MLOCK", 2;
        MmapMlock = "mmap+mlock", "LLAMA_LOAD_MODE_MMAP_MLOCK", 3;
        /// Direct I/O.
        Dio = "dio", "LLAMA_LOAD_MODE_DIRECT_IO", 4;
    }
}

impl LoadMode {
    /// Whether the file is mapped: `auto` maps where every device supports it, which all known here do.
    pub fn is_mapped(self) -> bool {
        matches!(self, Self::Auto | Self::Mmap | Self::MmapMlock)
    }
}

choice! {
    /// `-lzm`.
    LazyMode {
        /// Every tensor that may be read lazily stays in the mapped file.
        On = "on", "LLAMA_LAZY_MODE_ON", 2;
        /// Those above 4 GiB.
        Auto = "auto", "LLAMA_LAZY_MODE_AUTO", 1;
        Off = "off", "LLAMA_LAZY_MODE_OFF", 0;
    }
}
