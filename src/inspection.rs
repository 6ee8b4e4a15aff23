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
use crate::model::projector::{self, Encoder, Modality};
use crate::model::{FileKind, Model, Tensor};
use crate::quantize::recipe::{NVFP4, RECIPES};
use crate::rules::Role;

mod warning;

pub use warning::Warning;

/// The document `moeplan/inspect/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Inspection {
    pub schema: Cow<'static, str>,
    pub path: String,
    pub files: Vec<ModelFile>,
    pub kind: FileKind,
    pub gguf_version: u32,
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
    pub vocab_size: u32,
    pub experts: Experts,
    /// Of a multimodal projector.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encoders: Vec<EncoderRow>,
    /// Of a model that drafts for another: the kind of speculation (`mtp`, `eagle3`, `dflash`, `dspark`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drafts: Option<Cow<'static, str>>,
    pub parameters: Parameters,
    pub bytes: TensorBytes,
    pub tensors_by_type: BTreeMap<Cow<'static, str>, TypeCount>,
    /// Bits of all tensors by parameter.
    pub bits_per_weight: f64,
    /// What one more token of `-c` adds at `-np 1`, by cache type; `null` where it is not known.
    pub context_bytes_per_token: Option<ByCache>,
    /// Windows and states that do not grow with `-c`, at `-np 1`, by cache type.
    pub context_bytes_fixed: Option<ByCache>,
    pub warnings: Vec<Warning>,
    pub expectations: Vec<Check>,
    /// Every tensor, with `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_list: Option<Vec<TensorRow>>,
    /// Every key, with `--metadata`; counted arrays as `{"len": n}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
}

/// What reads images or sound for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EncoderRow {
    pub modality: Modality,
    /// `clip.projector_type`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Pixels by side of its default image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<u64>,
    /// Of an image whose size is fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// The most tokens of an image, where images differ in size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}

/// The document `moeplan/inspections/1`: several models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Several {
    pub schema: Cow<'static, str>,
    pub models: Vec<Inspection>,
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
    /// Total − routed × (1 − used / count), block by block, less per-layer embedding tables, of which a token reads one row.
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
    pub bytes: Bytes,
    /// Which of `files`.
    pub file: u16,
    /// From the start of that file.
    pub file_offset: u64,
}

/// Bytes by cache type: `f16`, `q8_0`.
pub type ByCache = BTreeMap<Cow<'static, str>, Bytes>;

impl Inspection {
    /// `refused` are the keys that llama.cpp would refuse; `context` is what one more token takes, and what does not grow.
    pub fn new(model: &Model, refused: &[Fault], context: Option<(ByCache, ByCache)>) -> Self {
        let hparams = &model.hparams;
        let mut parameters: BTreeMap<Role, u64> = Role::ALL.iter().map(|role| (*role, 0)).collect();
        let mut bytes: BTreeMap<Role, Bytes> = Role::ALL.iter().map(|role| (*role, Bytes(0))).collect();
        let mut by_type: BTreeMap<Cow<'static, str>, Bytes> = BTreeMap::new();
        let mut tensors_by_type: BTreeMap<Cow<'static, str>, TypeCount> = BTreeMap::new();
        let mut routed_by_block: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        for tensor in &model.tensors {
            let (role, ty, elements) = (tensor.role, Cow::from(tensor.ty.name), tensor.elements());
            let count = tensors_by_type.entry(ty.clone()).or_default();
            count.tensors = count.tensors.saturating_add(1);
            for sum in [&mut count.parameters, parameters.entry(role).or_default()] {
                *sum = sum.saturating_add(elements);
            }
            for sum in [bytes.entry(role).or_default(), by_type.entry(ty).or_default()] {
                *sum = Bytes(sum.0.saturating_add(tensor.bytes.0));
            }
            if role == Role::RoutedExpert {
                let sum = routed_by_block.entry(tensor.block).or_default();
                *sum = sum.saturating_add(elements);
            }
        }
        let total: u64 = parameters.values().sum();
        let idle: u64 = routed_by_block.iter().map(|(block, routed)| idle(model, *block, *routed)).sum();
        let tables = model.tensors.iter().filter(|tensor| tensor.name == "per_layer_token_embd.weight");
        let tables: u64 = tables.map(Tensor::elements).sum();
        let active = total.saturating_sub(idle).saturating_sub(tables);
        let token_embd = parameters.get(&Role::TokenEmbd).copied().unwrap_or(0).saturating_sub(tables);
        let active_without_token_embedding = active.saturating_sub(token_embd);
        let parameters = Parameters { total, active, active_without_token_embedding, by_role: parameters };
        let bytes = TensorBytes { total: bytes.values().copied().sum(), by_role: bytes, by_type };
        let (file_type, file_type_basis) = file_type(model, &bytes.by_type);
        let (per_token, fixed) = context.unzip();
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
            file_type: file_type.map(Cow::Borrowed),
            file_type_basis,
            tensors: model.tensors.len() as u64,
            block_count: hparams.block_count,
            nextn_predict_layers: hparams.nextn_predict_layers,
            context_length: hparams.context_length,
            embedding_length: hparams.embedding_length,
            vocab_size: hparams.vocab_size,
            experts: experts(model),
            encoders: encoders(model),
            drafts: model.drafts().map(Cow::Borrowed),
            bits_per_weight: bits_per_weight(bytes.total, total),
            warnings: warning::of(model, refused, (file_type, file_type_basis), &bytes),
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

    #[must_use]
    pub fn with_tensors(mut self, model: &Model) -> Self {
        let row = |tensor: &Tensor| {
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
        };
        self.tensor_list = Some(model.tensors.iter().map(row).collect());
        self
    }

    #[must_use]
    pub fn with_metadata(mut self, model: &Model) -> Self {
        // What JSON cannot hold, an infinity, is null.
        let json = |value: &Value| serde_json::to_value(value).unwrap_or_default();
        self.metadata = Some(model.hparams.metadata.iter().map(|(key, value)| (key.clone(), json(value))).collect());
        self
    }
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

/// llama.cpp's name of a file's type mix: from `general.file_type`, else from the type that holds most bytes.
fn file_type(model: &Model, by_type: &BTreeMap<Cow<'static, str>, Bytes>) -> (Option<&'static str>, Basis) {
    let mut all = RECIPES.iter().chain([&NVFP4]);
    if let Some(Value::U64(id)) = model.hparams.metadata.get("general.file_type")
        && let Some(row) = all.clone().find(|row| u64::from(row.file_type) == *id)
    {
        let agrees = by_type.is_empty() || by_type.contains_key(row.base);
        return (Some(row.name), if agrees { Basis::Stated } else { Basis::Contradicted });
    }
    let main = by_type.iter().max_by_key(|(_, bytes)| **bytes).map(|(ty, _)| ty.as_ref());
    let usual = all.find(|row| Some(row.base) == main && row.is_usual);
    (usual.map(|row| row.name), Basis::Guessed)
}

fn encoders(model: &Model) -> Vec<EncoderRow> {
    if model.kind != FileKind::Mmproj {
        return Vec::new();
    }
    let row = |encoder: &Encoder<'_>| EncoderRow {
        modality: encoder.modality,
        kind: encoder.kind.name.into(),
        image_size: (encoder.modality == Modality::Vision).then_some(encoder.image_size),
        tokens: None,
        max_tokens: encoder.max_tokens,
    };
    projector::encoders(model, [0, 0]).unwrap_or_default().iter().map(row).collect()
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
        // Biases and scales are not counted (`*_exps.weight`, and old `ffn_up.3.weight`).
        tensors: routed().filter(|tensor| tensor.name.ends_with(".weight")).count() as u64,
        bytes: routed().map(|tensor| tensor.bytes).sum(),
    }
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

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn bits_per_weight(bytes: Bytes, parameters: u64) -> f64 {
    if parameters == 0 { 0.0 } else { bytes.0 as f64 * 8.0 / parameters as f64 }
}

#[cfg(test)]
mod tests;
