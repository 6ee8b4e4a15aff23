//! A model: the header made meaningful (hyper-parameters, roles, blocks, parameter counts).
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

pub mod hparams;
pub mod load;
pub mod projector;

use crate::bytes::Bytes;
use crate::gguf::{ByteOrder, GgmlType, Gguf, Metadata, ModelFile, Value};
use crate::rules::{self, Role, RoleRules};
use crate::suggest::Refusal;
use hparams::ContextHParams;
pub use hparams::HParams;

/// What to do with a file of one tensor an expert.
pub const MERGE_EXPERTS: &str =
    "convert the model again, or get a newer GGUF of it (its experts are merged: ffn_up_exps.weight)";

/// What kind of GGUF file it is (`general.type`, else told from its keys and tensors).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    Model,
    /// A model's vocabulary without its weights.
    Vocabulary,
    Mmproj,
    Adapter,
    /// An importance matrix of llama-imatrix.
    Imatrix,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Model => "a model",
            Self::Vocabulary => "a vocabulary without weights",
            Self::Mmproj => "a multimodal projector (mmproj)",
            Self::Adapter => "an adapter (LoRA or control vector)",
            Self::Imatrix => "an importance matrix",
        })
    }
}

impl FileKind {
    /// What to give in its place.
    fn hint(self) -> &'static str {
        match self {
            Self::Mmproj => "give the model itself; llama.cpp takes the projector with --mmproj",
            Self::Adapter => "give the base model; llama.cpp takes the adapter with --lora",
            _ => "give the model's own GGUF file; `moeplan inspect` shows what this one is",
        }
    }
}

/// A model as llama.cpp would see it, without its weights.
#[derive(Debug, Clone)]
pub struct Model {
    pub kind: FileKind,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, untrusted text.
    pub name: Option<String>,
    pub files: Vec<ModelFile>,
    pub gguf_version: u32,
    pub byte_order: ByteOrder,
    pub alignment: u64,
    pub hparams: HParams,
    pub context: ContextHParams,
    pub tensors: Vec<Tensor>,
    /// The draft model that a launch loads beside it.
    pub draft: Option<std::sync::Arc<Self>>,
    /// The multimodal projector.
    pub projector: Option<std::sync::Arc<Self>>,
}

/// One tensor and what it is.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The full name, suffix included; untrusted text.
    pub name: String,
    /// `N` of `blk.N.`.
    pub block: Option<u32>,
    pub role: Role,
    pub ty: GgmlType,
    /// Elements by dimension; `shape[0]` is contiguous.
    pub shape: [u64; 4],
    /// Exact bytes in the file.
    pub bytes: Bytes,
    /// Which of `Model::files`.
    pub shard: u16,
    /// From the start of that file (data section included): for file spans under mmap.
    pub file_offset: u64,
}

impl Model {
    /// The model of a header that llama.cpp would load, as far as the header can tell.
    pub fn from_gguf(gguf: Gguf) -> Result<Self, Refusal> {
        let (model, refused) = Self::as_far_as_readable(gguf);
        let path = model.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
        let wrong = |message: String, hint: &str| Err(Refusal::new(format!("`{path}`: {message}"), hint));
        if model.kind != FileKind::Model {
            return wrong(format!("{}, not a model that runs by itself", model.kind), model.kind.hint());
        }
        if let Some(Tensor { name, .. }) = model.one_expert_tensor() {
            let message =
                format!("`{name}` and similar tensors hold one expert each: llama.cpp no longer loads such files");
            return wrong(message, MERGE_EXPERTS);
        }
        match refused.into_iter().next().map_or_else(|| model.check_load(), Err) {
            Err(fault) => wrong(format!("llama.cpp refuses this file: {fault}"), fault.hint()),
            Ok(()) => Ok(model),
        }
    }

    /// The weight that gives the logits, by its place: `output.weight`, or the token embedding that is tied to it.
    pub fn output(&self) -> Option<usize> {
        let of = |name: &str| self.tensors.iter().position(|tensor| tensor.name == name);
        of("output.weight").or_else(|| of("token_embd.weight"))
    }

    /// The kind of speculation that llama.cpp takes a draft model's file for, of itself (`common/speculative.cpp`
    /// `common_speculative_types_from_gguf`, b11434).
    pub fn speculation(&self) -> Option<&'static str> {
        match self.drafts() {
            Some("dspark") => Some("draft-dspark"),
            Some("dflash") => Some("draft-dflash"),
            _ => self.ends_in_nextn().then_some("draft-mtp"),
        }
    }

    /// Whether its last block drafts.
    fn ends_in_nextn(&self) -> bool {
        let last = self.hparams.block_count.checked_sub(1).map(|block| format!("blk.{block}.nextn.eh_proj.weight"));
        last.is_some_and(|name| self.tensors.iter().any(|tensor| tensor.name == name))
    }

    /// The kind of speculation that it drafts for, as llama.cpp or its architecture says.
    pub fn drafts(&self) -> Option<&'static str> {
        let has = |name: &str| self.tensors.iter().any(|tensor| tensor.name == name);
        // A whole model may end in NextN blocks as well; one that only drafts has no other blocks.
        let is_nextn_alone = || self.ends_in_nextn() && !has("blk.0.attn_norm.weight");
        match self.architecture.as_str() {
            "dflash" if has("markov_w1.weight") => Some("dspark"),
            "dflash" => Some("dflash"),
            "eagle3" => Some("eagle3"),
            "gemma4-assistant" => Some("mtp"),
            _ => is_nextn_alone().then_some("mtp"),
        }
    }

    /// Whether it drafts with parts of its target (`ctx_other`), so that llama.cpp's fitting cannot measure it
    /// (`src/llama-context.cpp` `llama_context`, b11434).
    pub fn borrows(&self) -> bool {
        let lacks = |name: &str| self.tensors.iter().all(|tensor| tensor.name != name);
        match self.architecture.as_str() {
            "gemma4-assistant" => true,
            "dflash" => lacks("token_embd.weight"),
            "eagle3" => lacks("token_embd.weight") || lacks("output.weight"),
            _ => false,
        }
    }

    /// The first tensor that holds one expert (`ffn_up.0.weight`), as in files of early 2024: llama.cpp b11434 has its name
    /// (`src/llama-arch.cpp`) and loads it in no architecture.
    pub fn one_expert_tensor(&self) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.role == Role::RoutedExpert && !tensor.name.contains("exps"))
    }

    /// Whether it gives vectors or scores, not text: one of the BERTs, or its key says how tokens are pooled
    /// (`pooling_type`: mean, first, last, rank; `include/llama.h` `llama_pooling_type`, b11434).
    pub fn is_embedding(&self) -> bool {
        matches!(self.hparams.value("pooling_type"), Some(Value::U64(1..=4))) || self.architecture.contains("bert")
    }

    /// What can be said of any GGUF file, and every key that llama.cpp would refuse.
    pub fn as_far_as_readable(gguf: Gguf) -> (Self, Vec<load::Fault>) {
        let Gguf { files, header } = gguf;
        let text = |key: &str| header.metadata.get(key).and_then(Value::as_str).map(str::to_string);
        let kind = kind_of(&header.metadata, header.tensors.is_empty());
        let architecture = text("general.architecture").unwrap_or_default();
        let name = text("general.name");
        let names = header.tensors.iter().map(|tensor| tensor.name.as_str());
        let roles = RoleRules::built_in(&architecture).roles(names);
        let data_offset =
            |shard: u16| files.get(usize::from(shard)).map_or(header.data_offset, |file| file.data_offset);
        let tensors = header.tensors.into_iter().zip(roles).map(|(info, role)| Tensor {
            block: rules::block_of(&info.name),
            role,
            ty: info.ty,
            shape: info.shape,
            bytes: info.bytes,
            shard: info.shard,
            file_offset: data_offset(info.shard).saturating_add(info.offset),
            name: info.name,
        });
        let tensors = tensors.collect();
        let hparams = HParams { architecture: architecture.clone(), metadata: header.metadata, ..HParams::default() };
        let mut model = Self {
            kind,
            name,
            architecture,
            files,
            gguf_version: header.version,
            byte_order: header.byte_order,
            alignment: header.alignment,
            hparams,
            tensors,
            context: ContextHParams::default(),
            draft: None,
            projector: None,
        };
        let mut refused = load::read(&mut model);
        if model.architecture.is_empty() {
            refused = vec![load::Fault::MissingKey { key: "general.architecture".to_string() }];
        }
        (model, refused)
    }
}

/// From `general.type` (`gguf-py` writes it since 2024), else from what only such files have.
fn kind_of(metadata: &Metadata, no_tensors: bool) -> FileKind {
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    match text("general.type") {
        "mmproj" => FileKind::Mmproj,
        "adapter" => FileKind::Adapter,
        "imatrix" => FileKind::Imatrix,
        _ if text("general.architecture") == "clip" => FileKind::Mmproj,
        _ if matches!(text("general.architecture"), "controlvector" | "control_vector") => FileKind::Adapter,
        _ if no_tensors => FileKind::Vocabulary,
        _ => FileKind::Model,
    }
}

impl Tensor {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
