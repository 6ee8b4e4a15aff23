//! What `llama-quantize` would make of a model: the type and the size of every tensor, without reading a weight.

pub mod law;
pub mod recipe;

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::arch::{Arch, Is70B, Mix};
use crate::bytes::Bytes;
use crate::gguf::{GgmlType, ModelFile, Value};
use crate::model::{FileKind, Model, Tensor};
use crate::suggest::Refusal;
use law::Given;
pub use recipe::{RECIPES, Recipe, RecipeRow};

const CONVERT: &str = "quantize from a file of F32, F16 or BF16 that a current llama.cpp converted";

/// A type that a tensor's rows do not fit.
fn wrong_rows(tensor: &str, row: u64, ty: GgmlType) -> Refusal {
    let (rows, block) = (format!("its rows of {row}"), ty.block_size);
    let message = format!("llama-quantize cannot make `{tensor}` {ty}: {rows} are not a whole number of {block}");
    Refusal::new(message, "another recipe, or another type for this tensor: q8_0, f16 and f32 take more shapes")
}

/// The type that a name is given by hand, if any.
pub type Named<'a> = &'a dyn Fn(&str) -> Option<GgmlType>;

/// The options of llama-quantize that change types; all off by default.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// An importance matrix is given (`--imatrix`).
    pub imatrix: bool,
    /// The recipe's own type for all (`--pure`).
    pub pure: bool,
    /// The output stays as it is (`--leave-output-tensor`).
    pub keep_output: bool,
    /// `--output-tensor-type`.
    pub output: Option<GgmlType>,
    /// `--token-embedding-type`.
    pub token_embedding: Option<GgmlType>,
    /// `--tensor-type`: the type of the first pattern that a name matches.
    pub named: Option<Named<'a>>,
}

/// What the law needs to know of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub mix: Mix,
    /// Blocks, NextN blocks and repeated ones included (llama.cpp: `n_layer_all`).
    pub n_layer_all: u64,
    /// `expert_count`, 0 for a dense model.
    pub n_expert: u64,
    /// Heads by KV head of the first block (llama.cpp: `n_gqa`); 0 without KV heads.
    pub n_gqa: u64,
    /// Whether llama.cpp takes it for a model of 70B (`LLM_TYPE_70B` of `src/models`).
    pub is_70b: bool,
}

impl Facts {
    /// From numbers as the file states them; `n_layer` without NextN blocks, heads of the first block.
    pub fn new(architecture: &str, n_layer: u64, n_expert: u64, n_head: u64, n_head_kv: u64) -> Self {
        let arch = Arch::of(architecture);
        let is_70b = match arch.is_70b {
            Is70B::Never => false,
            Is70B::Layers(n) => n_layer == n,
            Is70B::Grouped => n_layer == 80 && n_expert != 8 && n_head != n_head_kv,
        };
        let n_gqa = n_head.checked_div(n_head_kv).unwrap_or(0);
        Self { mix: arch.mix, n_layer_all: n_layer, n_expert, n_gqa, is_70b }
    }

    /// Of a model's keys.
    pub fn of(model: &Model) -> Self {
        let context = &model.context;
        let (n_head, n_head_kv) = context.layers.first().map_or((0, 0), |layer| (layer.n_head, layer.n_head_kv));
        let (n_layer, n_expert) = (model.hparams.n_layer().into(), model.hparams.expert_count.into());
        let facts = Self::new(&model.architecture, n_layer, n_expert, n_head.into(), n_head_kv.into());
        Self { n_layer_all: context.n_layer_all().into(), ..facts }
    }
}

/// Whether the file needs an importance matrix, and has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Imatrix {
    /// None is given and none is needed.
    None,
    Given,
    /// None is given, and llama-quantize refuses without: types are predicted as with one.
    Needed,
}

/// A model that does not exist: what llama-quantize would write.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// The file, as its header would be read; its path is the one asked for.
    pub model: Model,
    pub imatrix: Imatrix,
    /// Tensors whose rows were not a whole number of blocks of the type that the mix has for them.
    pub fallbacks: u64,
    /// Tensors that are quantized already and would be again (`--allow-requantize`).
    pub requantized: u64,
}

/// How a model that does not exist would be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WhatIf {
    /// As `llama-quantize` names it.
    pub recipe: Cow<'static, str>,
    /// The MODEL whose header it is predicted from.
    pub source: String,
    pub imatrix: Imatrix,
    /// Tensors whose rows were not a whole number of blocks of the type that the mix has for them.
    pub fallbacks: u64,
    /// Tensors that are quantized already and would be again.
    pub requantized: u64,
    pub command: String,
}

/// Padding of tensors in what llama-quantize writes (`GGUF_DEFAULT_ALIGNMENT`).
const ALIGNMENT: u64 = 32;

/// The types that nothing is converted from (`llama_tensor_dequantize_impl`).
const ONE_WAY: [&str; 7] = ["i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"];

/// The types that nothing is converted to (`ggml_quantize_chunk` of `ggml/src/ggml.c`).
pub fn is_writable(ty: GgmlType) -> bool {
    !ONE_WAY.contains(&ty.name)
}

/// What llama-quantize would write to `path`. Types that need an importance matrix are predicted as with one.
pub fn predict(model: &Model, recipe: Recipe, options: &Options<'_>, path: &Path) -> Result<Prediction, Refusal> {
    if model.kind != FileKind::Model {
        let message = format!("it is {}: llama-quantize takes models", model.kind);
        return Err(Refusal::new(message, "give the model's own GGUF file"));
    }
    if Arch::named(&model.architecture).is_none() {
        let architecture = &model.architecture;
        return Err(Refusal::new(
            format!("llama-quantize refuses the architecture `{architecture}`: llama.cpp b11434 does not know it"),
            "quantize with a build that knows it; `moeplan inspect` shows what the file is",
        ));
    }
    let facts = Facts::of(model);
    let tensors = model.tensors.iter();
    let tensors: Vec<Given<'_>> =
        tensors.map(|tensor| Given { name: &tensor.name, shape: tensor.shape, ty: tensor.ty }).collect();
    let mut chosen = law::assign(recipe, &facts, options, &tensors)?;
    let is_needed = !options.imatrix && chosen.iter().any(|chosen| chosen.needs_imatrix);
    if is_needed {
        chosen = law::assign(recipe, &facts, &Options { imatrix: true, ..*options }, &tensors)?;
    }
    let imatrix = match (options.imatrix, is_needed) {
        (true, _) => Imatrix::Given,
        (false, true) => Imatrix::Needed,
        (false, false) => Imatrix::None,
    };
    let changed = || model.tensors.iter().zip(&chosen).filter(|(tensor, chosen)| tensor.ty != chosen.ty);
    if let Some((tensor, _)) = changed().find(|(tensor, _)| ONE_WAY.contains(&tensor.ty.name)) {
        let message = format!("llama-quantize cannot convert `{}` from {}", tensor.name, tensor.ty);
        return Err(Refusal::new(message, CONVERT));
    }
    let requantized = changed().filter(|(tensor, _)| tensor.ty.is_quantized).count() as u64;
    let fallbacks = chosen.iter().filter(|chosen| chosen.fell_back).count() as u64;
    let types = chosen.iter().map(|chosen| chosen.ty);
    Ok(Prediction { model: written(model, recipe, types, path)?, imatrix, fallbacks, requantized })
}

/// The model with its tensors of these types, in one file, in the order in which llama-quantize writes them. The header is taken to
/// be as long as the old one.
fn written(
    model: &Model,
    recipe: Recipe,
    types: impl Iterator<Item = GgmlType>,
    path: &Path,
) -> Result<Model, Refusal> {
    let too_large = |name: &str| Refusal::new(format!("`{name}` would take more bytes than can be counted"), CONVERT);
    let data_offset = model.files.first().map_or(0, |file| file.data_offset);
    let retyped = |(tensor, ty): (&Tensor, GgmlType)| {
        let bytes = ty.bytes(&tensor.shape).ok_or_else(|| too_large(&tensor.name))?;
        Ok(Tensor { ty, bytes: Bytes(bytes), shard: 0, ..tensor.clone() })
    };
    let mut tensors = model.tensors.iter().zip(types).map(retyped).collect::<Result<Vec<Tensor>, Refusal>>()?;
    tensors.sort_by(|one, other| law::order(&one.name).cmp(&law::order(&other.name)));
    let mut end = data_offset;
    for tensor in &mut tensors {
        tensor.file_offset = end;
        let padded = tensor.bytes.0.checked_next_multiple_of(ALIGNMENT).and_then(|padded| end.checked_add(padded));
        end = padded.ok_or_else(|| too_large(&tensor.name))?;
    }
    let mut model = Model { tensors, alignment: ALIGNMENT, ..model.clone() };
    model.files = vec![ModelFile { path: path.to_path_buf(), bytes: Bytes(end), data_offset }];
    let metadata = &mut model.hparams.metadata;
    metadata.retain(|key, _| !matches!(key.as_str(), "split.no" | "split.count" | "split.tensors.count"));
    metadata.insert("general.file_type".to_string(), Value::U64(recipe.file_type.into()));
    metadata.insert("general.quantization_version".to_string(), Value::U64(2));
    Ok(model)
}
