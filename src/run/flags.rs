//! The flags of llama.cpp, one row each: spellings, variable, value, builds, llama-bench's and ik_llama.cpp's form, and what a
//! plan does with it. The parser, the printer, `--emit`, and `plan`'s own options read these rows.
//!
//! Source: `common/arg.cpp`, `tools/llama-bench/llama-bench.cpp`, b11434. Flags that decide nothing here are in `flags.tsv`.

use std::sync::LazyLock;

use super::config::{Choice, Dialect, LoadMode, Program, RunConfig};
use super::values::{self, DENSE, Given, on_host};
use super::{Error, Note};
use crate::gguf::GgmlType;

#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Spellings: the first is the one that is printed, the first long one names the flag.
    names: &'static str,
    negated: &'static str,
    pub environment: Option<&'static str>,
    pub values: usize,
    pub effect: Effect,
    /// llama-bench's spellings, the printed one first; empty: it has no such flag. Each takes one value there.
    bench: &'static str,
    /// Whether ik_llama.cpp is known to have it.
    pub in_ik: bool,
    /// The first build that has it, as far as builds are known.
    pub since: u32,
    /// The programs that have it (`set_examples`), llama-bench apart; empty: all.
    only: &'static [Program],
    /// Whether a launch takes its words beside those printed from [`RunConfig`], which does not say all that they do.
    pub beside: bool,
    pub in_plan: InPlan,
}

#[derive(Debug, Clone, Copy)]
pub enum Effect {
    None,
    /// It stands for these words.
    Words(&'static str),
    Field(Field),
    Model,
    /// Belongs to speculation, whose fields are known once every flag is read.
    Speculation,
    FitPrint,
}

/// How a value goes into [`RunConfig`] and out again.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The field's name, which is its key in JSON.
    pub name: &'static str,
    /// Whether llama.cpp reads a number and leaves what follows it unread (`std::stoi`).
    pub is_number: bool,
    /// Reads a value; what a person should know of it comes back.
    pub read: fn(&mut RunConfig, Given<'_>) -> Result<Vec<Note>, Error>,
    /// The value's word, in llama-bench's grammar where the second is true; of a flag that stands alone `on` or `off`. `None`
    /// where nothing is to be printed.
    pub print: fn(&RunConfig, bool) -> Option<String>,
    pub reset: fn(&mut RunConfig),
}

/// What `moeplan plan` does with a flag.
#[derive(Debug, Clone, Copy)]
pub enum InPlan {
    /// It is an option of `plan`, too: the name of its value (empty: it stands alone), and its help.
    Option(&'static str, &'static str),
    Kept,
    /// A plan says it in another way: how.
    Instead(&'static str),
}

impl Flag {
    /// A flag with one value and without a variable; what it does is yet to be said.
    const fn new(names: &'static str, effect: Effect) -> Self {
        let beside = !matches!(effect, Effect::Field(_) | Effect::Model | Effect::FitPrint | Effect::Words(_));
        Self {
            names,
            negated: "",
            environment: None,
            values: 1,
            effect,
            bench: "",
            in_ik: true,
            since: 0,
            only: &[],
            beside,
            in_plan: InPlan::Kept,
        }
    }

    const fn env(self, name: &'static str) -> Self {
        Self { environment: Some(name), ..self }
    }

    /// It stands alone; `negated` means the opposite.
    const fn alone(self, negated: &'static str) -> Self {
        Self { values: 0, negated, ..self }
    }

    const fn bench(self, names: &'static str) -> Self {
        Self { bench: names, ..self }
    }

    const fn not_in_ik(self) -> Self {
        Self { in_ik: false, ..self }
    }

    const fn since(self, build: u32) -> Self {
        Self { since: build, ..self }
    }

    const fn only(self, programs: &'static [Program]) -> Self {
        Self { only: programs, ..self }
    }

    const fn option(self, value: &'static str, help: &'static str) -> Self {
        Self { in_plan: InPlan::Option(value, help), ..self }
    }

    const fn instead(self, hint: &'static str) -> Self {
        Self { in_plan: InPlan::Instead(hint), ..self }
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        words(self.names)
    }

    pub fn negated(&self) -> impl Iterator<Item = &'static str> {
        words(self.negated)
    }

    /// The first long spelling: what the rest of the code calls it.
    pub fn name(&self) -> &'static str {
        // A flag without a long spelling is called by its only one.
        self.names().find(|name| name.starts_with("--")).unwrap_or(self.names)
    }

    /// The spelling that `plan` has as an option of its own: a switch that is on by default can only be turned off.
    pub fn option_name(&self) -> &'static str {
        self.negated().find(|name| name.starts_with("--")).unwrap_or(self.name())
    }

    /// Whether it stands alone and can be negated (then `LLAMA_ARG_NO_…` counts as well).
    pub fn is_switch(&self) -> bool {
        !self.negated.is_empty()
    }

    pub fn is_of(&self, program: Program) -> bool {
        self.only.is_empty() || self.only.contains(&program)
    }

    pub fn is_in_bench(&self) -> bool {
        !self.bench.is_empty()
    }

    /// The spelling that is printed: of llama-bench its own, of a switch that is off the first that negates it.
    pub fn printed(&self, bench: bool, on: bool) -> &'static str {
        let first = if bench {
            words(self.bench).next()
        } else if self.is_switch() && !on {
            self.negated().next()
        } else {
            self.names().next()
        };
        first.unwrap_or(self.names)
    }

    /// Whether 1 in llama-bench means that it is off (`-nkvo 1`).
    pub fn bench_negates(&self) -> bool {
        words(self.bench).any(|name| self.negated().any(|negated| negated == name))
    }

    pub fn field(&self) -> Option<&Field> {
        match &self.effect {
            Effect::Field(field) => Some(field),
            _ => None,
        }
    }
}

fn words(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split(' ').filter(|word| !word.is_empty())
}

/// Whether llama.cpp reads a field as a number: what follows it in the word is left unread.
const NUMBER: bool = true;
const TEXT: bool = false;

/// A field with its own way to be read and printed.
macro_rules! custom {
    ($is_number:expr, $name:ident, |$run:ident, $given:ident| $read:expr, $print:expr) => {
        Effect::Field(Field {
            name: stringify!($name),
            is_number: $is_number,
            read: |$run, $given| {
                $read;
                Ok(Vec::new())
            },
            print: $print,
            reset: |run| run.$name = RunConfig::of(run.target).$name,
        })
    };
}

/// A field that is read with a method of [`Given`], and printed with a function of its value and of whether llama-bench reads it.
macro_rules! field {
    ($name:ident, $read:expr, $print:expr) => {
        custom!(TEXT, $name, |run, given| run.$name = $read(&given)?, |run, bench| {
            (run.$name != RunConfig::of(run.target).$name).then(|| $print(&run.$name, bench))
        })
    };
}

/// A number.
macro_rules! number {
    ($name:ident, $read:expr) => {
        custom!(NUMBER, $name, |run, given| run.$name = $read(&given)?, |run, _| {
            (run.$name != RunConfig::of(run.target).$name).then(|| run.$name.to_string())
        })
    };
}

/// A number that need not be given.
macro_rules! optional {
    ($name:ident, $read:expr) => {
        custom!(NUMBER, $name, |run, given| run.$name = $read(&given)?, |run, _| run.$name.map(|n| n.to_string()))
    };
}

/// A word that need not be given.
macro_rules! word_of {
    ($name:ident) => {
        custom!(TEXT, $name, |run, given| run.$name = Some(given.value.to_string()), |run, _| run.$name.clone())
    };
}

/// Yes or no.
macro_rules! switch {
    ($name:ident) => {
        field!($name, Given::is_on, on_or_off)
    };
}

/// The rows that decide something here, in the order in which a launch is printed. Those of overrides are in llama.cpp's order, in
/// which it reads the environment.
#[rustfmt::skip] // A table: a flag a line, and a line for what a plan makes of it.
pub static ROWS: &[Flag] = &[
    Flag::new("-c --ctx-size", CONTEXT).env("LLAMA_ARG_CTX_SIZE"),
    Flag::new("-np --parallel", optional!(n_parallel, Given::slots)).env("LLAMA_ARG_N_PARALLEL")
        .option("N", "Slots of llama-server (llama.cpp: -np) [default: 1]"),
    Flag::new("-kvu --kv-unified", KV_UNIFIED).env("LLAMA_ARG_KV_UNIFIED").alone("-no-kvu --no-kv-unified").not_in_ik().only(SERVER),
    Flag::new("--kv-unified-per-slot", optional!(kv_unified_per_slot, Given::positive)).env("LLAMA_ARG_KV_UNIFIED_PER_SLOT").not_in_ik().only(SERVER),
    Flag::new("-b --batch-size", number!(n_batch, Given::natural)).env("LLAMA_ARG_BATCH").bench("-b --batch-size")
        .option("N|auto", "Logical batch size (llama.cpp: -b)"),
    Flag::new("-ub --ubatch-size", number!(n_ubatch, Given::natural)).env("LLAMA_ARG_UBATCH").bench("-ub --ubatch-size")
        .option("N|auto", "Physical batch size (llama.cpp: -ub)"),
    Flag::new("-ctk --cache-type-k", custom!(TEXT, type_k, |run, given| run.type_k = given.cache_type(run.rules().more_cache_types)?, |run, _| { (run.type_k != RunConfig::default().type_k).then(|| run.type_k.to_string()) })).env("LLAMA_ARG_CACHE_TYPE_K").bench("-ctk --cache-type-k")
        .option("TYPE|auto", "Type of the K cache (llama.cpp: -ctk) [default: f16]"),
    Flag::new("-ctv --cache-type-v", custom!(TEXT, type_v, |run, given| run.type_v = given.cache_type(run.rules().more_cache_types)?, |run, _| { (run.type_v != RunConfig::default().type_v).then(|| run.type_v.to_string()) })).env("LLAMA_ARG_CACHE_TYPE_V").bench("-ctv --cache-type-v")
        .option("TYPE|auto", "Type of the V cache (llama.cpp: -ctv) [default: f16]"),
    Flag::new("-fa --flash-attn", field!(flash_attn, Given::flash_attn, word)).env("LLAMA_ARG_FLASH_ATTN").bench("-fa --flash-attn")
        .option("on|off|auto", "Flash attention (llama.cpp: -fa)"),
    Flag::new("--rpc", RPC).env("LLAMA_ARG_RPC").bench("--rpc -rpc").instead(DESCRIBED),
    Flag::new("-dev --device", DEVICES).env("LLAMA_ARG_DEVICE").bench("-dev --device").instead(DESCRIBED),
    Flag::new("-ngl --gpu-layers --n-gpu-layers", LAYERS).env("LLAMA_ARG_N_GPU_LAYERS").bench("-ngl --n-gpu-layers")
        .option("N|all|auto", "Layers on the devices (llama.cpp: -ngl) [default: all]"),
    Flag::new("-sm --split-mode", field!(split_mode, Given::choice, word)).env("LLAMA_ARG_SPLIT_MODE").bench("-sm --split-mode").instead(BY_LAYERS),
    Flag::new("-mg --main-gpu", number!(main_gpu, Given::integer)).env("LLAMA_ARG_MAIN_GPU").bench("-mg --main-gpu").instead(BY_LAYERS),
    Flag::new("-ts --tensor-split", TENSOR_SPLIT).env("LLAMA_ARG_TENSOR_SPLIT").bench("-ts --tensor-split")
        .option("SHARE,…", "Share of the layers for each device (llama.cpp: -ts)"),
    Flag::new("-ot --override-tensor", OVERRIDES).env("LLAMA_ARG_OVERRIDE_TENSOR").bench("-ot --override-tensor")
        .option("PATTERN=BUFFER,…", "Your own overrides, tried first (llama.cpp: -ot)"),
    Flag::new("-cmoe --cpu-moe", CPU_MOE).env("LLAMA_ARG_CPU_MOE").alone("")
        .option("", "Put all routed experts on the host (llama.cpp: -cmoe)"),
    Flag::new("-ncmoe --n-cpu-moe", N_CPU_MOE).env("LLAMA_ARG_N_CPU_MOE").bench("-ncmoe --n-cpu-moe")
        .option("N", "Put the routed experts of the first N blocks on the host, and more if needed (llama.cpp: -ncmoe)"),
    Flag::new("-ncffn --n-cpu-ffn", N_CPU_FFN).env("LLAMA_ARG_N_CPU_FFN").not_in_ik(),
    Flag::new("-t --threads", optional!(n_threads, Given::count)).env("LLAMA_ARG_THREADS").bench("-t --threads")
        .option("N|auto", "Threads for generation on the host (llama.cpp: -t)"),
    Flag::new("-tb --threads-batch", optional!(n_threads_batch, Given::count))
        .option("N", "Threads for prompts on the host (llama.cpp: -tb)"),
    Flag::new("-lm --load-mode", field!(load_mode, Given::choice, word)).env("LLAMA_ARG_LOAD_MODE").bench("-lm --load-mode").not_in_ik().since(LOAD_MODE)
        .option("MODE|auto", "How the model file is loaded (llama.cpp: -lm)"),
    Flag::new("-lzm --lazy-mode", field!(lazy_mode, Given::choice, word)).env("LLAMA_ARG_LAZY_MODE").bench("-lzm --lazy-mode").not_in_ik().since(10680),
    Flag::new("-kvo --kv-offload", switch!(offload_kqv)).env("LLAMA_ARG_KV_OFFLOAD").alone("-nkvo --no-kv-offload").bench("-nkvo --no-kv-offload")
        .option("", "Keep the context on the host (llama.cpp: -nkvo)"),
    Flag::new("--op-offload", switch!(op_offload)).alone("--no-op-offload").bench("-nopo --no-op-offload").not_in_ik().since(5622)
        .option("", "Compute on the host with weights stored there, even for prompts (llama.cpp: --no-op-offload)"),
    Flag::new("--no-host", switch!(no_host)).env("LLAMA_ARG_NO_HOST").alone("").bench("--no-host").not_in_ik(),
    Flag::new("--repack", switch!(repack)).env("LLAMA_ARG_REPACK").alone("-nr --no-repack").bench("--repack"),
    Flag::new("--embedding --embeddings", switch!(embeddings)).env("LLAMA_ARG_EMBEDDINGS").alone("").bench("-embd --embeddings").only(SERVER)
        .option("", "Plan for embeddings: every token yields an output row (llama.cpp: --embeddings)"),
    Flag { beside: true, ..Flag::new("--rerank --reranking", RERANK).env("LLAMA_ARG_RERANKING").alone("").only(SERVER) },
    Flag::new("-fitt --fit-target", FIT_TARGET).env("LLAMA_ARG_FIT_TARGET").bench("-fitt --fit-target").not_in_ik().instead(NOTHING_TO_FIT),
    Flag::new("-fitc --fit-ctx", FIT_CONTEXT).env("LLAMA_ARG_FIT_CTX").bench("-fitc --fit-ctx").not_in_ik().instead(NOTHING_TO_FIT),
    Flag::new("-fit --fit", field!(fit, Given::switch, on_or_off)).env("LLAMA_ARG_FIT").instead(NOTHING_TO_FIT),
    Flag::new("--swa-full", switch!(swa_full)).env("LLAMA_ARG_SWA_FULL").alone(""),
    Flag::new("--cache-ram -cram", optional!(cache_ram, Given::limit)).env("LLAMA_ARG_CACHE_RAM").only(SERVING)
        .option("MIB|auto", "MiB of the server's prompt cache (llama.cpp: -cram) [default: 8192, or less if memory is short]"),
    Flag::new("-ctxcp --ctx-checkpoints --swa-checkpoints", optional!(ctx_checkpoints, some_integer)).env("LLAMA_ARG_CTX_CHECKPOINTS").only(SERVING),
    Flag::new("--moe-cache-mib", number!(moe_cache_mib, Given::natural)).env("LLAMA_ARG_MOE_CACHE_MIB").since(11480)
        .option("MIB|auto", "MiB of device memory that caches host experts; `auto` chooses the most useful size (llama.cpp: --moe-cache-mib, from b11480)"),
    Flag::new("--spec-type", Effect::Speculation).env("LLAMA_ARG_SPEC_TYPE").only(SERVING),
    Flag::new("--spec-default", Effect::Speculation).alone("").only(SERVING),
    Flag::new("--spec-draft-n-max", Effect::Speculation).env("LLAMA_ARG_SPEC_DRAFT_N_MAX").only(SERVING),
    Flag::new("--spec-ngram-simple-size-m", Effect::Speculation).only(SERVING),
    Flag::new("--spec-ngram-map-k-size-m", Effect::Speculation).only(SERVING),
    Flag::new("--spec-ngram-map-k4v-size-m", Effect::Speculation).only(SERVING),
    Flag::new("--spec-ngram-mod-n-max", Effect::Speculation).only(SERVING),
    Flag::new("--spec-draft-model -md --model-draft", word_of!(draft_model)).env("LLAMA_ARG_SPEC_DRAFT_MODEL").only(SERVING),
    Flag::new("--spec-draft-hf -hfd -hfrd --hf-repo-draft", word_of!(draft_hf)).env("LLAMA_ARG_SPEC_DRAFT_HF_REPO").only(SERVING),
    Flag::new("--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft", DRAFT_LAYERS).env("LLAMA_ARG_N_GPU_LAYERS_DRAFT").only(SERVING),
    Flag::new("--spec-draft-device -devd --device-draft", field!(draft_devices, Given::devices, device_list)).only(SERVING),
    Flag::new("--spec-draft-override-tensor -otd --override-tensor-draft", DRAFT_OVERRIDES).only(SERVING),
    Flag::new("--spec-draft-cpu-moe -cmoed --cpu-moe-draft", DRAFT_CPU_MOE).env("LLAMA_ARG_SPEC_DRAFT_CPU_MOE").alone("").only(SERVING),
    Flag::new("--spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft", DRAFT_N_CPU_MOE).env("LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE").only(SERVING),
    Flag::new("--spec-draft-n-ubatch", optional!(draft_n_ubatch, Given::positive)).env("LLAMA_ARG_SPEC_DRAFT_N_UBATCH").since(12032),
    Flag::new("--spec-draft-type-k -ctkd --cache-type-k-draft", optional!(draft_type_k, some_cache_type)).env("LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K"),
    Flag::new("--spec-draft-type-v -ctvd --cache-type-v-draft", optional!(draft_type_v, some_cache_type)).env("LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V"),
    Flag::new("-mm --mmproj", word_of!(mmproj)).env("LLAMA_ARG_MMPROJ").only(SERVING),
    Flag::new("-mmu --mmproj-url", word_of!(mmproj_url)).env("LLAMA_ARG_MMPROJ_URL").only(SERVING),
    Flag::new("--mmproj-auto", switch!(mmproj_auto)).env("LLAMA_ARG_MMPROJ_AUTO").alone("--no-mmproj --no-mmproj-auto").only(SERVING),
    Flag::new("--mmproj-offload", switch!(mmproj_offload)).env("LLAMA_ARG_MMPROJ_OFFLOAD").alone("--no-mmproj-offload").only(SERVING),
    Flag::new("-mmdev --mmproj-device", word_of!(mmproj_device)).env("MTMD_BACKEND_DEVICE").only(SERVING),
    Flag::new("--image-min-tokens", optional!(image_min_tokens, Given::positive)).env("LLAMA_ARG_IMAGE_MIN_TOKENS").only(SERVING),
    Flag::new("--image-max-tokens", optional!(image_max_tokens, Given::positive)).env("LLAMA_ARG_IMAGE_MAX_TOKENS").only(SERVING),
    Flag { beside: true, ..Flag::new("--lora", ADAPTER).instead(ADAPTED) },
    Flag { beside: true, ..Flag::new("--lora-scaled", ADAPTER).instead(ADAPTED) },
    Flag { beside: true, ..Flag::new("--control-vector", ADAPTER).instead(ADAPTED) },
    Flag { beside: true, ..Flag::new("--control-vector-scaled", ADAPTER).instead(ADAPTED) },
    Flag::new("--override-kv", METADATA).instead(OWN_KEYS),
    Flag::new("-fitp --fit-print", Effect::FitPrint).env("LLAMA_ARG_FIT_ESTIMATE").not_in_ik().instead(NOTHING_TO_FIT),
    Flag::new("-m --model", Effect::Model).env("LLAMA_ARG_MODEL").bench("-m --model"),
    Flag::new("-mu --model-url", Effect::Model).env("LLAMA_ARG_MODEL_URL"),
    Flag::new("-dr --docker-repo", Effect::Model).env("LLAMA_ARG_DOCKER_REPO"),
    Flag::new("-hf -hfr --hf-repo", Effect::Model).env("LLAMA_ARG_HF_REPO").bench("-hf -hfr --hf-repo"),
    Flag::new("-hff --hf-file", Effect::Model).env("LLAMA_ARG_HF_FILE").bench("-hff --hf-file"),
];

const SERVER: &[Program] = &[Program::Server];
/// llama-cli runs the server's code.
const SERVING: &[Program] = &[Program::Server, Program::Cli];
const DESCRIBED: &str = "describe what a plan may use, with sizes: --device CUDA0=24G --device 'RPC0[HOST:PORT]=16G'";
const BY_LAYERS: &str =
    "a plan splits by layers (`-sm layer`) over all devices described: to use one card, describe only that one";
const ADAPTED: &str =
    "adapters are not counted: leave their files' size free with --margin, and add them to the planned command";
const OWN_MODEL: &str =
    "it names a model of its own: give that model to `moeplan plan`, and the flags that you want kept";
const OWN_KEYS: &str =
    "a plan uses the file's own keys; `moeplan check -- llama-server … --override-kv KEY=TYPE:VALUE` uses others";
const NOTHING_TO_FIT: &str =
    "a plan leaves nothing to fit: --margin SIZE stays free on each device, `-c max` is the longest context";

/// Asking for the model's own context (0) forbids fitting to reduce it.
const CONTEXT: Effect = custom!(
    NUMBER,
    n_ctx,
    |run, given| {
        run.n_ctx = given.natural()?;
        if run.n_ctx == 0 {
            run.fit_ctx = u32::MAX;
        }
    },
    |run, _| (run.n_ctx != 0 || run.fit_ctx == u32::MAX).then(|| run.n_ctx.to_string())
);

/// An int that llama.cpp keeps as unsigned (common/arg.cpp, b11434): -1 forbids to reduce the context, as `-c 0` does.
const FIT_CONTEXT: Effect = custom!(
    NUMBER,
    fit_ctx,
    |run, given| run.fit_ctx = given.integer()?.cast_unsigned(),
    |run, bench| match run.fit_ctx {
        // `-c 0` says it already.
        u32::MAX if run.n_ctx == 0 && !bench => None,
        n => (n != RunConfig::default().fit_ctx).then(|| n.cast_signed().to_string()),
    }
);

const KV_UNIFIED: Effect = custom!(TEXT, kv_unified, |run, given| run.kv_unified = Some(given.on), |run, bench| Some(
    on_or_off(&run.kv_unified?, bench)
));
const ADAPTER: Effect = custom!(TEXT, has_adapters, |run, _given| run.has_adapters = true, |_, _| None);
const RERANK: Effect = custom!(TEXT, embeddings, |run, given| run.embeddings = given.on, |_, _| None);
const LAYERS: Effect =
    custom!(
        NUMBER,
        n_gpu_layers,
        |run, given| run.n_gpu_layers = given.layers()?,
        |run, bench| match run.n_gpu_layers {
            -1 => None,
            -2 if !bench => Some("all".to_string()),
            n => Some(n.to_string()),
        }
    );
const TENSOR_SPLIT: Effect =
    field!(tensor_split, Given::proportions, |shares: &Vec<f32>, bench: bool| values::list(shares, between(bench)));
const FIT_TARGET: Effect = field!(fit_target, Given::fit_target, |mib: &Vec<u32>, _| values::list(mib, "/"));
const DEVICES: Effect = field!(devices, Given::devices, device_list);
const DRAFT_LAYERS: Effect =
    custom!(NUMBER, draft_n_gpu_layers, |run, given| run.draft_n_gpu_layers = Some(given.layers()?), |run, _| run
        .draft_n_gpu_layers
        .map(|n| if n == -2 { "all".to_string() } else { n.to_string() }));
const RPC: Effect = custom!(TEXT, rpc, |run, given| run.rpc.extend(given.names(',')), |run, _| (!run.rpc.is_empty())
    .then(|| run.rpc.join(",")));
const METADATA: Effect = custom!(
    TEXT,
    metadata_overrides,
    |run, given| run.metadata_overrides.extend(given.metadata_overrides()?),
    |run, _| (!run.metadata_overrides.is_empty()).then(|| values::metadata_list(&run.metadata_overrides))
);

/// Overrides that no counting flag made alone.
const OVERRIDES: Effect = Effect::Field(Field {
    name: "overrides",
    is_number: false,
    read: |run, given| {
        let (entries, notes) = given.overrides()?;
        run.overrides.extend(entries);
        Ok(notes)
    },
    print: |run, bench| {
        let entries: Vec<String> =
            run.overrides.iter().map(|entry| format!("{}={}", entry.pattern, entry.buffer)).collect();
        let experts = run.rules().experts;
        let flags = [("--cpu-moe", experts), ("--n-cpu-moe", experts), ("--n-cpu-ffn", DENSE)];
        let is_counted = flags.iter().any(|(name, pattern)| counted(run, bench, name, pattern).is_some());
        (!entries.is_empty() && !is_counted).then(|| entries.join(if bench { ";" } else { "," }))
    },
    reset: |run| run.overrides.clear(),
});
const CPU_MOE: Effect = custom!(
    TEXT,
    overrides,
    |run, given| run.overrides.push(on_host(run.rules().experts.into(), given.flag)),
    |run, bench| { counted(run, bench, "--cpu-moe", run.rules().experts).map(|_| "on".to_string()) }
);
const N_CPU_MOE: Effect = custom!(
    NUMBER,
    overrides,
    |run, given| run.overrides.extend(given.first_blocks(run.rules().experts)?),
    |run, bench| counted(run, bench, "--n-cpu-moe", run.rules().experts).map(|count| count.to_string())
);
/// All overrides of a draft model, whichever flag made them.
const DRAFT_OVERRIDES: Effect = Effect::Field(Field {
    name: "draft_overrides",
    is_number: false,
    read: |run, given| {
        let (entries, notes) = given.overrides()?;
        run.draft_overrides.extend(entries);
        Ok(notes)
    },
    print: |run, _| {
        let entries = run.draft_overrides.iter().map(|entry| format!("{}={}", entry.pattern, entry.buffer));
        (!run.draft_overrides.is_empty()).then(|| entries.collect::<Vec<_>>().join(","))
    },
    reset: |run| run.draft_overrides.clear(),
});
const DRAFT_CPU_MOE: Effect = custom!(
    TEXT,
    draft_overrides,
    |run, given| run.draft_overrides.push(on_host(run.rules().experts.into(), given.flag)),
    |_, _| { None }
);
const DRAFT_N_CPU_MOE: Effect = custom!(
    NUMBER,
    draft_overrides,
    |run, given| run.draft_overrides.extend(given.first_blocks(run.rules().experts)?),
    |_, _| { None }
);
const N_CPU_FFN: Effect = custom!(
    NUMBER,
    overrides,
    |run, given| run.overrides.extend(given.first_blocks(DENSE)?),
    |run, bench| counted(run, bench, "--n-cpu-ffn", DENSE).map(|count| count.to_string())
);

/// How many overrides the flag of this name made, where it made all of them; `None` where there is more than that, since not every
/// form of a plan keeps the order among several flags, or where llama-bench has no such flag.
fn counted(run: &RunConfig, bench: bool, name: &str, pattern: &str) -> Option<usize> {
    let origin = run.overrides.first()?.origin.as_str();
    let (flag, _) = spelling(origin)?;
    // ik_llama.cpp takes the last blocks, not the first.
    let means_others = run.target.dialect == Dialect::Ik && flag.values > 0;
    if flag.name() != name || (bench && !flag.is_in_bench()) || means_others {
        return None;
    }
    let count = run.overrides.len().to_string();
    let made = match flag.values {
        0 => vec![on_host(pattern.into(), origin)],
        _ => Given::new(origin, &count).first_blocks(pattern).ok()?,
    };
    (made == run.overrides).then_some(made.len())
}

/// What separates the entries of a list.
fn between(bench: bool) -> &'static str {
    if bench { "/" } else { "," }
}

#[expect(clippy::ref_option, reason = "one of the functions that print a value")]
fn device_list(names: &Option<Vec<String>>, bench: bool) -> String {
    match names.as_deref() {
        None | Some([]) => "none".to_string(),
        Some(names) => names.join(between(bench)),
    }
}

fn some_cache_type(given: &Given<'_>) -> Result<Option<GgmlType>, Error> {
    given.cache_type(&[]).map(Some)
}

fn some_integer(given: &Given<'_>) -> Result<Option<i32>, Error> {
    given.integer().map(Some)
}

/// A value in llama.cpp's word.
fn word<T: Choice>(value: &T, _: bool) -> String {
    value.word().to_string()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "one of the functions that print a value")]
fn on_or_off(on: &bool, _: bool) -> String {
    if *on { "on" } else { "off" }.to_string()
}

/// Every flag: the rows above, then those that decide nothing here.
pub(super) static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| {
    let others = include_str!("flags.tsv").lines().filter(|line| !line.starts_with('#')).map(other);
    ROWS.iter().copied().chain(others).collect()
});

/// One line of the table; a bad line is our own mistake.
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "the table is the program's own"))]
fn other(line: &'static str) -> Flag {
    let mut columns = line.split('\t');
    let mut column = || columns.next().map(|text| if text == "-" { "" } else { text }).expect("four columns");
    let values = column().parse().expect("a number of values");
    let environment = Some(column()).filter(|name| !name.is_empty());
    let (names, negated) = (column(), column());
    let since = columns.next().map_or(0, |build| build.parse().expect("a build"));
    let flag = Flag::new(names, columns.next().map_or(Effect::None, Effect::Words));
    let flag = match flag.effect {
        Effect::Words(_) => flag.instead(OWN_MODEL),
        _ if PRINTING.contains(&flag.name()) => flag.instead("llama.cpp prints something and ends where it is given"),
        _ => flag,
    };
    Flag { negated, environment, values, since, ..flag }
}

/// Flags with which llama.cpp prints something and ends.
const PRINTING: [&str; 5] = ["--help", "--version", "--cache-list", "--completion-bash", "--list-devices"];

/// The flag of a word and whether it is meant positively; `_` counts as `-` in long flags, as llama.cpp has it.
pub fn spelling(word: &str) -> Option<(&'static Flag, bool)> {
    let spelled = if word.starts_with("--") { word.replace('_', "-") } else { word.to_string() };
    FLAGS.iter().find_map(|flag| {
        if flag.names().any(|name| name == spelled) {
            Some((flag, true))
        } else {
            flag.negated().any(|name| name == spelled).then_some((flag, false))
        }
    })
}

/// The flag of a word of llama-bench.
pub(super) fn find_in_bench(word: &str) -> Option<&'static Flag> {
    let spelled = word.replace('_', "-");
    FLAGS.iter().find(|flag| words(flag.bench).any(|name| name == spelled))
}

/// Every spelling of every flag, negated ones too.
pub fn spellings() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().flat_map(|flag| flag.names().chain(flag.negated()))
}

/// The rows that set a field, in the order in which a launch is printed.
pub fn fields() -> impl Iterator<Item = (&'static Flag, &'static Field)> {
    ROWS.iter().filter_map(|flag| Some((flag, flag.field()?)))
}

/// `run` as a program would have it that takes only the flags that `has` says: what none of them sets is llama.cpp's default.
pub fn without_others(run: &RunConfig, has: impl Fn(&Flag) -> bool) -> RunConfig {
    let mut run = run.clone();
    for (_, field) in fields() {
        if !fields().any(|(flag, other)| other.name == field.name && has(flag)) {
            (field.reset)(&mut run);
        }
    }
    run
}

/// The first flag that `run` needs and that no build up to `build` has.
pub fn newer_than(run: &RunConfig, build: u32) -> Option<&'static Flag> {
    fields().find(|(flag, field)| flag.since > build && (field.print)(run, false).is_some()).map(|(flag, _)| flag)
}

/// Whether a word of llama-server's command line is a flag of speculation that no field of [`RunConfig`] holds.
pub fn is_speculation(word: &str) -> bool {
    spelling(word).is_some_and(|(flag, _)| flag.name().starts_with("--spec-") && flag.field().is_none())
}

/// Flags with which llama-server starts programs, writes or serves files, or listens to more than this computer.
const REACHING: &[&str] = &[
    "--agent",
    "--connect",
    "--connect-code",
    "--cors-credentials",
    "--cors-headers",
    "--cors-methods",
    "--cors-origins",
    "--host",
    "--log-file",
    "--log-prompts-dir",
    "--lookup-cache-dynamic",
    "--mcp-servers-config",
    "--mcp-servers-json",
    "--media-path",
    "--models-dir",
    "--models-preset",
    "--output",
    "--path",
    "--server-base",
    "--slot-save-path",
    "--tools",
    "--tools-runtime",
    "--ui-config-file",
    "--ui-mcp-proxy",
    "--video-ffmpeg-dir",
];

/// Whether a word of llama-server's command line is such a flag.
pub fn reaches_out(word: &str) -> bool {
    spelling(word).is_some_and(|(flag, _)| REACHING.contains(&flag.name()))
}

/// Flags with their values. A flag that only a fork has takes what is not a flag.
pub fn groups(words: &[String]) -> Vec<&[String]> {
    let mut groups = Vec::new();
    let mut rest = words;
    while let Some((first, after)) = rest.split_first() {
        let values = match spelling(first) {
            Some((flag, _)) => flag.values,
            None => after.iter().take_while(|word| !is_flag(word)).count(),
        };
        let (group, others) = rest.split_at(values.saturating_add(1).min(rest.len()));
        groups.push(group);
        rest = others;
    }
    groups
}

/// Whether a flag with its values is the one of this name.
pub fn says(group: &[String], name: &str) -> bool {
    group.first().and_then(|word| spelling(word)).is_some_and(|(flag, _)| flag.name() == name)
}

/// Whether a word looks like a flag, and not like a negative number.
fn is_flag(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic()))
}

/// A flag that b11434 no longer has.
#[derive(Debug)]
pub(super) struct Removed {
    names: &'static str,
    pub values: usize,
    /// The last build known to take it, and the first known to refuse it.
    pub until: u32,
    pub gone: u32,
    /// What took its place: a flag, and the value that stands for it.
    pub instead: &'static str,
    /// The same for the value 0 of llama-bench's flag.
    pub when_off: &'static str,
    /// Whether it is llama-bench's, which takes a value.
    pub bench: bool,
}

impl Removed {
    const fn new(names: &'static str, values: usize, (until, gone): (u32, u32), instead: &'static str) -> Self {
        Self { names, values, until, gone, instead, when_off: "", bench: false }
    }

    const fn of_bench(names: &'static str, instead: &'static str, when_off: &'static str) -> Self {
        Self { when_off, bench: true, ..Self::new(names, 1, BEFORE_LOAD_MODE, instead) }
    }
}

/// The first build seen with `--load-mode` (`common/arg.cpp`: b10103 lacks it).
const LOAD_MODE: u32 = 10108;
/// The last build seen with the flags before `--load-mode`, and the first without (`common/arg.cpp`).
const BEFORE_LOAD_MODE: (u32, u32) = (10705, 11181);
/// Drafting's flags have names of their own (PR 22397; `common/arg.cpp`, b9093).
const DRAFTING: (u32, u32) = (8284, 9093);

/// Flags of older builds, and what took their place.
const REMOVED: &[Removed] = &[
    Removed::new("--no-mmap", 0, BEFORE_LOAD_MODE, "--load-mode none"),
    Removed::new("--mmap", 0, BEFORE_LOAD_MODE, "--load-mode mmap"),
    Removed::new("--mlock", 0, BEFORE_LOAD_MODE, "--load-mode mmap+mlock"),
    Removed::new("--direct-io -dio", 0, BEFORE_LOAD_MODE, "--load-mode dio"),
    Removed::new("--no-direct-io -ndio", 0, BEFORE_LOAD_MODE, "--load-mode auto"),
    Removed::new("--draft --draft-n --draft-max", 1, DRAFTING, "--spec-draft-n-max"),
    Removed::new("--draft-min --draft-n-min", 1, DRAFTING, "--spec-draft-n-min"),
    Removed::new("--ctx-size-draft -cd", 1, DRAFTING, "-c"),
    Removed::new("--spec-ngram-size-n", 1, DRAFTING, "--spec-ngram-simple-size-n"),
    Removed::new("--spec-ngram-size-m", 1, DRAFTING, "--spec-ngram-simple-size-m"),
    Removed::new("--spec-ngram-min-hits", 1, DRAFTING, "--spec-ngram-simple-min-hits"),
    Removed::of_bench("-mmp --mmap", "--load-mode mmap", "--load-mode none"),
    Removed::of_bench("-dio --direct-io", "--load-mode dio", "--load-mode auto"),
];

/// How builds before `--load-mode`, and ik_llama.cpp, say how the file is read (`common/arg.cpp`, b10434).
pub fn old_load_mode(mode: LoadMode) -> &'static [&'static str] {
    match mode {
        LoadMode::Auto | LoadMode::Mmap => &[],
        LoadMode::None => &["--no-mmap"],
        LoadMode::Mlock => &["--no-mmap", "--mlock"],
        LoadMode::MmapMlock => &["--mlock"],
        LoadMode::Dio => &["--direct-io"],
    }
}

/// The same of llama-bench, which locks nothing (`tools/llama-bench/llama-bench.cpp`, b9464).
pub fn old_load_mode_of_bench(mode: LoadMode) -> &'static [&'static str] {
    match mode {
        LoadMode::Auto | LoadMode::Mmap | LoadMode::MmapMlock => &[],
        LoadMode::None | LoadMode::Mlock => &["-mmp", "0"],
        LoadMode::Dio => &["-dio", "1"],
    }
}

/// What took the place of one of those flags: `--load-mode` and its value.
pub fn new_load_mode(word: &str) -> Option<&'static str> {
    find_removed(word, false).map(|flag| flag.instead).filter(|instead| instead.starts_with("--load-mode "))
}

pub(super) fn find_removed(word: &str, bench: bool) -> Option<&'static Removed> {
    REMOVED.iter().filter(|flag| flag.bench == bench).find(|flag| words(flag.names).any(|name| name == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_parses_and_no_spelling_is_twice() {
        let mut all: Vec<&str> = spellings().collect();
        assert!(all.len() > 400, "{}", all.len());
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn flags_that_reach_out_are_flags() {
        for name in REACHING {
            assert_eq!(spelling(name).map(|(flag, _)| flag.name()), Some(*name));
        }
        assert!(reaches_out("-ag") && reaches_out("--webui-mcp-proxy") && !reaches_out("--jinja"));
    }

    #[test]
    fn every_field_has_a_key_of_its_name() {
        let keys = serde_json::to_string(&RunConfig::default()).unwrap() + &format!("{:?}", RunConfig::default());
        for (flag, field) in fields() {
            assert!(keys.contains(field.name), "{} sets `{}`, which is not a field", flag.name(), field.name);
        }
    }

    #[test]
    fn words_find_their_flag() {
        for (word, name, positive, values) in [
            ("-ngl", "--gpu-layers", true, 1),
            ("--n_gpu_layers", "--gpu-layers", true, 1),
            ("-nkvo", "--kv-offload", false, 0),
            ("-fa", "--flash-attn", true, 1),
            ("--control-vector-layer-range", "--control-vector-layer-range", true, 2),
        ] {
            let (flag, on) = spelling(word).unwrap();
            assert_eq!((flag.name(), on, flag.values), (name, positive, values), "{word}");
        }
        assert!(spelling("--no-mmap").is_none());
    }

    #[test]
    fn values_stay_with_their_flags() {
        let words = ["-m", "-x.gguf", "-ngl", "-1", "-kvu", "-ot", "a=CPU", "-amb", "512"].map(str::to_string);
        let groups: Vec<String> = groups(&words).into_iter().map(|group| group.join(" ")).collect();
        assert_eq!(groups, ["-m -x.gguf", "-ngl -1", "-kvu", "-ot a=CPU", "-amb 512"]);
    }
}
