//! A plan for a program that links llama.cpp: the fields of its parameter structures, by their names in `llama.h`.
//!
//! Source: `include/llama.h` `llama_model_params`, `llama_context_params`, b11434.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::gguf::GgmlType;
use crate::run::build::REFERENCE;
use crate::run::{FlashAttn, LazyMode, LoadMode, Override, Program, RunConfig, SplitMode, flags};

/// The `moeplan/embedded/1` document.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Parameters {
    schema: String,
    /// For `ggml_backend_rpc_add_server`, before the devices are looked up.
    rpc_servers: Vec<String>,
    llama_model_params: ModelParameters,
    llama_context_params: ContextParameters,
}

/// `llama_model_params`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ModelParameters {
    /// By name, for `ggml_backend_dev_by_name`; `null` = all.
    devices: Option<Vec<String>>,
    tensor_buft_overrides: Vec<BufferOverride>,
    n_gpu_layers: i32,
    #[serde(with = "constant")]
    #[cfg_attr(test, schemars(with = "String"))]
    split_mode: SplitMode,
    #[serde(with = "constant")]
    #[cfg_attr(test, schemars(with = "String"))]
    load_mode: LoadMode,
    #[serde(with = "constant")]
    #[cfg_attr(test, schemars(with = "String"))]
    lazy_mode: LazyMode,
    main_gpu: i32,
    tensor_split: Vec<f32>,
    use_extra_bufts: bool,
    no_host: bool,
    load_mtp: bool,
}

/// `llama_model_tensor_buft_override`, the buffer type by its name.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct BufferOverride {
    pattern: String,
    buft: String,
}

/// `llama_context_params`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of llama.h")]
struct ContextParameters {
    n_ctx: u32,
    n_batch: u32,
    n_ubatch: u32,
    n_seq_max: u32,
    n_rs_seq: u32,
    n_outputs_max: u32,
    /// `null` = the program's choice.
    n_threads: Option<u32>,
    n_threads_batch: Option<u32>,
    #[serde(with = "constant")]
    #[cfg_attr(test, schemars(with = "String"))]
    flash_attn_type: FlashAttn,
    #[cfg_attr(test, schemars(with = "String"))]
    type_k: GgmlType,
    #[cfg_attr(test, schemars(with = "String"))]
    type_v: GgmlType,
    embeddings: bool,
    offload_kqv: bool,
    op_offload: bool,
    swa_full: bool,
    kv_unified: bool,
}

/// A choice by its name in `llama.h`.
mod constant {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use crate::run::Choice;

    pub(super) fn serialize<T: Choice, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.constant())
    }

    pub(super) fn deserialize<'de, T: Choice, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = T::VALUES.iter().find(|(_, _, known, _)| *known == name);
        found.map(|(value, ..)| *value).ok_or_else(|| de::Error::custom(format!("`{name}` is not in llama.h")))
    }
}

/// The parameters of a launch. One output row a sequence, as llama-server reserves them and as the plan's memory counts them.
pub(super) fn parameters(run: &RunConfig) -> Result<String, Error> {
    let lacks = |lacks: String| {
        let instead = "plan without it, or use --for llama-server";
        Err(Error::Lacks { program: "an embedded llama.cpp", lacks, instead })
    };
    if let Some(flag) = flags::newer_than(run, REFERENCE) {
        return lacks(format!("has no parameter for {} in b{REFERENCE}", flag.name()));
    }
    if !run.metadata_overrides.is_empty() {
        return lacks("takes metadata overrides as a C array, which this form does not write".to_string());
    }
    let n_seq_max = run.n_parallel.unwrap_or(1).max(1);
    let buft = |entry: &Override| BufferOverride { pattern: entry.pattern.clone(), buft: entry.buffer.clone() };
    let document = Parameters {
        schema: "moeplan/embedded/1".to_string(),
        rpc_servers: run.rpc.clone(),
        llama_model_params: ModelParameters {
            devices: run.devices.clone(),
            tensor_buft_overrides: run.overrides.iter().map(buft).collect(),
            n_gpu_layers: run.n_gpu_layers,
            split_mode: run.split_mode,
            load_mode: run.load_mode,
            lazy_mode: run.lazy_mode,
            main_gpu: run.main_gpu,
            tensor_split: run.tensor_split.clone(),
            use_extra_bufts: run.repack,
            no_host: run.no_host,
            load_mtp: run.mtp,
        },
        llama_context_params: ContextParameters {
            n_ctx: run.n_ctx,
            n_batch: run.n_batch,
            n_ubatch: run.n_ubatch,
            n_seq_max,
            n_rs_seq: run.n_rs_seq,
            n_outputs_max: n_seq_max.saturating_mul(run.n_draft.saturating_add(1)).min(run.n_batch),
            n_threads: run.n_threads,
            n_threads_batch: run.n_threads_batch,
            flash_attn_type: run.flash_attn,
            type_k: run.type_k,
            type_v: run.type_v,
            embeddings: run.embeddings,
            offload_kqv: run.offload_kqv,
            op_offload: run.op_offload,
            swa_full: run.swa_full,
            kv_unified: run.kv_unified.unwrap_or(false),
        },
    };
    serde_json::to_string_pretty(&document)
        .map_err(|error| Error::ReadBack { form: "embedded", problem: error.to_string() })
}

pub(super) fn read(text: &str) -> Result<RunConfig, String> {
    let document: Parameters = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (model, context) = (document.llama_model_params, document.llama_context_params);
    let to_override =
        |entry: BufferOverride| Override { pattern: entry.pattern, buffer: entry.buft, origin: String::new() };
    Ok(RunConfig {
        program: Program::Server,
        n_ctx: context.n_ctx,
        n_batch: context.n_batch,
        n_ubatch: context.n_ubatch,
        type_k: context.type_k,
        type_v: context.type_v,
        flash_attn: context.flash_attn_type,
        n_parallel: Some(context.n_seq_max),
        kv_unified: Some(context.kv_unified),
        n_gpu_layers: model.n_gpu_layers,
        split_mode: model.split_mode,
        main_gpu: model.main_gpu,
        tensor_split: model.tensor_split,
        devices: model.devices,
        load_mode: model.load_mode,
        lazy_mode: model.lazy_mode,
        offload_kqv: context.offload_kqv,
        op_offload: context.op_offload,
        no_host: model.no_host,
        repack: model.use_extra_bufts,
        swa_full: context.swa_full,
        mtp: model.load_mtp,
        overrides: model.tensor_buft_overrides.into_iter().map(to_override).collect(),
        fit: false,
        rpc: document.rpc_servers,
        n_draft: (context.n_outputs_max / context.n_seq_max.max(1)).saturating_sub(1),
        n_rs_seq: context.n_rs_seq,
        embeddings: context.embeddings,
        n_threads: context.n_threads,
        n_threads_batch: context.n_threads_batch,
        ..RunConfig::default()
    })
}

/// What of `run` the document says: nothing of fitting, of the server's prompt cache, of slots that were not given.
pub(super) fn expected(run: &RunConfig) -> RunConfig {
    RunConfig {
        program: Program::Server,
        n_parallel: Some(run.n_parallel.unwrap_or(1).max(1)),
        kv_unified: Some(run.kv_unified.unwrap_or(false)),
        kv_unified_per_slot: None,
        fit: false,
        fit_target: Vec::new(),
        fit_ctx: RunConfig::default().fit_ctx,
        cache_ram: None,
        ctx_checkpoints: None,
        op_offload_min_batch: None,
        ..run.clone()
    }
}
