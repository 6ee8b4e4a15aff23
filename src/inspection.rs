//! The inspect document: what a model is, in numbers.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::expectation::Check;
use crate::gguf::{ByteOrder, GgmlType, ModelFile, Value};
use crate::model::load::Fault;
use crate::model::{FileKind, Model, Tensor};
use crate::quantize::recipe::{NVFP4, RECIPES, Recipe};
use crate::rules::Role;

mod warning;

pub use warning::Warning;

/// The document `moeplan/inspect/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Inspection {
    /// `moeplan/inspect/1`.
    pub schema: Cow<'static, str>,
    pub path: String,
    pub files: Vec<ModelFile>,
    /// What kind of file it is.
    pub kind: FileKind,
    pub gguf_version: u32,
    /// Byte order of the files.
    pub byte_order: ByteOrder,
    /// `general.alignment`, in bytes.
    pub alignment: u64,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, untrusted text.
    pub name: Option<String>,
    /// llama.cpp's name of `general.file_type`, or of the type that holds most bytes.
    pub file_type: Option<Cow<'static, str>>,
    /// Where `file_type` comes from.
    pub file_type_basis: Basis,
    pub tensors: u64,
    /// Blocks, NextN blocks included.
    pub block_count: u32,
    /// The last blocks, not loaded without MTP.
    pub nextn_predict_layers: u32,
    /// Tokens the model was trained for.
    pub context_length: u32,
    pub embedding_length: u32,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
    pub experts: Experts,
    pub parameters: Parameters,
    /// Bytes of its tensors.
    pub bytes: TensorBytes,
    pub tensors_by_type: BTreeMap<Cow<'static, str>, TypeCount>,
    /// Bits of all tensors by parameter.
    pub bits_per_weight: f64,
    /// What one more token of `-c` adds at `-np 1`, by cache type; `null` where it is not known.
    pub context_bytes_per_token: Option<BTreeMap<Cow<'static, str>, Bytes>>,
    /// Windows and states that do not grow with `-c`, at `-np 1`, by cache type.
    pub context_bytes_fixed: Option<BTreeMap<Cow<'static, str>, Bytes>>,
    /// What to know before using it.
    pub warnings: Vec<Warning>,
    /// What `--expect` asked.
    pub expectations: Vec<Check>,
    /// Every tensor, with `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_list: Option<Vec<TensorRow>>,
    /// Every key, with `--metadata`; counted arrays as `{"len": n}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
}

/// Routed experts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Experts {
    pub count: u32,
    /// Experts a token uses: the most of any block.
    pub used: u32,
    /// The shared-count key, else 1 where `ffn_*_shexp` exists, else 0.
    pub shared: u32,
    /// Blocks with routed experts.
    pub blocks: u64,
    /// Weight tensors of routed experts, fused and chunked ones too.
    pub tensors: u64,
    /// Bytes of routed experts, biases and scales included.
    pub bytes: Bytes,
}

/// Parameters: elements of tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Parameters {
    /// Of every tensor in the file.
    pub total: u64,
    /// Total − routed × (1 − used / count), block by block.
    pub active: u64,
    /// Active less the token embedding, of which a token reads one row.
    pub active_without_token_embedding: u64,
    /// Every role, also those of which the model has none.
    pub by_role: BTreeMap<Role, u64>,
}

/// Exact bytes of tensors, without padding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TensorBytes {
    pub total: Bytes,
    /// Every role, also those of which the model has none.
    pub by_role: BTreeMap<Role, Bytes>,
    /// The types that the model has.
    pub by_type: BTreeMap<Cow<'static, str>, Bytes>,
}

/// Tensors and elements of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TypeCount {
    pub tensors: u64,
    pub parameters: u64,
}

/// One tensor of the document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TensorRow {
    pub name: String,
    pub role: Role,
    /// `N` of `blk.N.`.
    pub block: Option<u32>,
    #[serde(rename = "type")]
    pub ty: GgmlType,
    /// Elements by dimension, contiguous first, trailing ones left out.
    pub shape: Vec<u64>,
    /// Exact bytes.
    pub bytes: Bytes,
    /// Which of `files`.
    pub file: u16,
    /// From the start of that file.
    pub file_offset: u64,
}

/// Context memory at `-np 1` by cache type (`f16`, `q8_0`), as the context's law gives it.
#[derive(Debug, Clone, Default)]
pub struct ContextSizes {
    /// What one more token of `-c` adds.
    pub per_token: BTreeMap<Cow<'static, str>, Bytes>,
    pub fixed: BTreeMap<Cow<'static, str>, Bytes>,
}

impl Inspection {
    /// The document of a model; `refused` are the keys that llama.cpp would refuse.
    pub fn new(model: &Model, refused: &[Fault], context: Option<ContextSizes>) -> Self {
        let hparams = &model.hparams;
        let parameters = parameters(model);
        let bytes = tensor_bytes(model);
        let file_type = FileType::of(model, &bytes.by_type);
        let (per_token, fixed) = context.map(|context| (context.per_token, context.fixed)).unzip();
        let mut tensors_by_type: BTreeMap<Cow<'static, str>, TypeCount> = BTreeMap::new();
        for tensor in &model.tensors {
            let count = tensors_by_type.entry(tensor.ty.name.into()).or_default();
            count.tensors = count.tensors.saturating_add(1);
            count.parameters = count.parameters.saturating_add(tensor.elements());
        }
        Self {
            schema: "moeplan/inspect/1".into(),
            path: model.files.first().map(|file| file.path.display().to_string()).unwrap_or_default(),
            files: model.files.clone(),
            kind: model.kind,
            gguf_version: model.gguf_version,
            byte_order: model.byte_order,
            alignment: model.alignment,
            architecture: model.architecture.clone(),
            name: model.name.clone(),
            file_type: file_type.name.map(Cow::Borrowed),
            file_type_basis: file_type.basis,
            tensors: model.tensors.len() as u64,
            block_count: hparams.block_count,
            nextn_predict_layers: hparams.nextn_predict_layers,
            context_length: hparams.context_length,
            embedding_length: hparams.embedding_length,
            vocab_size: hparams.vocab_size,
            experts: experts(model),
            bits_per_weight: bits_per_weight(bytes.total, parameters.total),
            warnings: warning::of(model, refused, &file_type, &bytes),
            parameters,
            bytes,
            tensors_by_type,
            context_bytes_per_token: per_token,
            context_bytes_fixed: fixed,
            expectations: Vec::new(),
            tensor_list: None,
            metadata: None,
        }
    }

    /// The document with every tensor.
    #[must_use]
    pub fn with_tensors(mut self, model: &Model) -> Self {
        self.tensor_list = Some(model.tensors.iter().map(tensor_row).collect());
        self
    }

    /// The document with every key and value.
    #[must_use]
    pub fn with_metadata(mut self, model: &Model) -> Self {
        self.metadata = Some(model.metadata.iter().map(|(key, value)| (key.clone(), json(value))).collect());
        self
    }
}

/// Every file type that has a name.
fn file_types() -> impl Iterator<Item = Recipe> {
    RECIPES.iter().chain([&NVFP4])
}

/// The name of a file's type mix, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct FileType {
    /// The name, if the id is known or could be told.
    pub name: Option<&'static str>,
    pub basis: Basis,
}

/// Where the name of a file type comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// `general.file_type`, and its tensors agree.
    Stated,
    /// `general.file_type`, but no tensor has the type it names.
    Contradicted,
    /// The file does not say: from the type that holds most bytes.
    Guessed,
}

impl FileType {
    /// From `general.file_type`, else from the type that holds most bytes.
    pub fn of(model: &Model, by_type: &BTreeMap<Cow<'static, str>, Bytes>) -> Self {
        let stated = match model.metadata.get("general.file_type") {
            Some(Value::U64(id)) => file_types().find(|row| u64::from(row.file_type) == *id),
            _ => None,
        };
        if let Some(row) = stated {
            let agrees = by_type.is_empty() || by_type.contains_key(row.base);
            return Self { name: Some(row.name), basis: if agrees { Basis::Stated } else { Basis::Contradicted } };
        }
        let main = by_type.iter().max_by_key(|(_, bytes)| **bytes).map(|(ty, _)| ty.as_ref());
        let usual = file_types().find(|row| Some(row.base) == main && row.is_usual);
        Self { name: usual.map(|row| row.name), basis: Basis::Guessed }
    }
}

/// Whether it is the weight of routed experts; biases and scales are not (`*_exps.weight`, and old `ffn_up.3.weight`).
fn is_expert_weight(tensor: &Tensor) -> bool {
    tensor.role == Role::RoutedExpert && tensor.name.ends_with(".weight")
}

fn experts(model: &Model) -> Experts {
    let routed = || model.tensors.iter().filter(|tensor| tensor.role == Role::RoutedExpert);
    let mut blocks: Vec<u32> = routed().filter_map(|tensor| tensor.block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let has_shared = model.tensors.iter().any(|tensor| tensor.role == Role::SharedExpert);
    Experts {
        count: model.hparams.expert_count,
        used: model.hparams.expert_used_count.iter().copied().max().unwrap_or(0),
        shared: match model.hparams.u64("expert_shared_count") {
            Some(stated) => u32::try_from(stated).unwrap_or(u32::MAX),
            None => u32::from(has_shared),
        },
        blocks: blocks.len() as u64,
        tensors: routed().filter(|tensor| is_expert_weight(tensor)).count() as u64,
        bytes: routed().map(|tensor| tensor.bytes).sum(),
    }
}

fn parameters(model: &Model) -> Parameters {
    let mut by_role: BTreeMap<Role, u64> = Role::ALL.iter().map(|role| (*role, 0)).collect();
    let mut routed_by_block: BTreeMap<Option<u32>, u64> = BTreeMap::new();
    let add = |sum: &mut u64, tensor: &Tensor| *sum = sum.saturating_add(tensor.elements());
    for tensor in &model.tensors {
        add(by_role.entry(tensor.role).or_default(), tensor);
        if tensor.role == Role::RoutedExpert {
            add(routed_by_block.entry(tensor.block).or_default(), tensor);
        }
    }
    let total: u64 = by_role.values().sum();
    let idle: u64 = routed_by_block.iter().map(|(block, routed)| idle(model, *block, *routed)).sum();
    let active = total.saturating_sub(idle);
    let token_embd = by_role.get(&Role::TokenEmbd).copied().unwrap_or(0);
    Parameters { total, active, active_without_token_embedding: active.saturating_sub(token_embd), by_role }
}

/// Of `routed` elements of a block, those that a token does not use.
fn idle(model: &Model, block: Option<u32>, routed: u64) -> u64 {
    let count = u64::from(model.hparams.expert_count);
    let used = block.and_then(|block| model.hparams.expert_used_count.get(block as usize)).copied();
    let used = used.map_or(count, |used| u64::from(used).min(count));
    // At most `routed`, so the division brings it back into 64 bits.
    let unused = u128::from(routed).saturating_mul(count.saturating_sub(used).into());
    unused.checked_div(count.into()).map_or(0, |idle| u64::try_from(idle).unwrap_or(routed))
}

fn tensor_bytes(model: &Model) -> TensorBytes {
    let mut by_role: BTreeMap<Role, Bytes> = Role::ALL.iter().map(|role| (*role, Bytes(0))).collect();
    let mut by_type: BTreeMap<Cow<'static, str>, Bytes> = BTreeMap::new();
    for tensor in &model.tensors {
        for sum in [by_role.entry(tensor.role).or_default(), by_type.entry(tensor.ty.name.into()).or_default()] {
            *sum = Bytes(sum.0.saturating_add(tensor.bytes.0));
        }
    }
    TensorBytes { total: by_role.values().copied().sum(), by_role, by_type }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn bits_per_weight(bytes: Bytes, parameters: u64) -> f64 {
    if parameters == 0 { 0.0 } else { bytes.0 as f64 * 8.0 / parameters as f64 }
}

fn tensor_row(tensor: &Tensor) -> TensorRow {
    let dims = tensor.shape.iter().rposition(|n| *n != 1).map_or(1, |last| last.saturating_add(1));
    TensorRow {
        name: tensor.name.clone(),
        role: tensor.role,
        block: tensor.block,
        ty: tensor.ty,
        shape: tensor.shape.iter().take(dims).copied().collect(),
        bytes: tensor.bytes,
        file: tensor.shard,
        file_offset: tensor.file_offset,
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::U64(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::F64(x) => (*x).into(),
        Value::Bool(yes) => (*yes).into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(values) => values.iter().map(json).collect(),
        Value::Counted { len } => serde_json::json!({ "len": len }),
    }
}

#[cfg(test)]
mod tests;
