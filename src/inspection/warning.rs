//! What to know of a model before using it: a code for programs, a message and what to do for people.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Basis, FileType, TensorBytes};
use crate::arch::Arch;
use crate::gguf::ByteOrder;
use crate::model::load::Fault;
use crate::model::{FileKind, MERGE_EXPERTS, Model};
use crate::rules::Role;
use crate::suggest::Hint as _;

/// One warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Warning {
    pub code: Cow<'static, str>,
    pub message: String,
    pub hint: String,
}

impl Warning {
    fn new(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: hint.into() }
    }
}

/// Every warning of a model, the gravest first.
pub(super) fn of(model: &Model, refused: &[Fault], file_type: &FileType, bytes: &TensorBytes) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    if model.kind == FileKind::Model {
        warnings.extend(unloadable_architecture(model));
        warnings.extend(missing_keys(refused));
        warnings.extend(refused.iter().filter(|fault| !matches!(fault, Fault::MissingKey { .. })).map(unloadable));
        warnings.extend(per_expert_tensors(model));
        // Files of the kinds above lack what the loader asks for, too.
        if warnings.is_empty() {
            warnings.extend(model.check_load().err().as_ref().map(unloadable));
        }
        warnings.extend(embedding(model));
    } else {
        warnings.push(Warning::new(
            "not-a-model",
            format!("this file is {}, not a model that runs by itself", model.kind),
            "plan, check and run need the model's own GGUF file",
        ));
    }
    if model.byte_order == ByteOrder::Big {
        warnings.push(Warning::new(
            "big-endian",
            "every number in this file is big-endian: llama.cpp loads it only on a big-endian host",
            "convert it with gguf_convert_endian.py, or take the little-endian file",
        ));
    }
    warnings.extend(nextn(model));
    if let (Some(stated), Basis::Contradicted) = (file_type.name, file_type.basis) {
        warnings.push(Warning::new(
            "file-type-differs",
            format!("general.file_type says {stated}, but no tensor has that type"),
            "the sizes here come from the tensors themselves; trust them, not the label",
        ));
    }
    let other = bytes.by_role.get(&Role::Other).copied().unwrap_or_default();
    if model.kind == FileKind::Model && other.0 > bytes.total.0 / 10 {
        warnings.push(Warning::new(
            "unnamed-tensors",
            format!("{other} are in tensors that no role rule names"),
            "inspect --tensors lists them as `other`; the file may need a newer moeplan",
        ));
    }
    warnings
}

fn unloadable_architecture(model: &Model) -> Option<Warning> {
    let unknown = !model.architecture.is_empty() && Arch::named(&model.architecture).is_none();
    unknown.then(|| {
        Warning::new(
            "unknown-architecture",
            format!("llama.cpp b11434 does not know the architecture `{}`", model.architecture),
            "roles are told from tensor names alone; a fork or a newer llama.cpp may load it",
        )
    })
}

/// What llama.cpp's loader refuses.
fn unloadable(fault: &Fault) -> Warning {
    let code = match fault {
        Fault::MissingKey { .. } => "missing-key",
        Fault::BadKey(_) => "bad-key",
        Fault::MissingTensor { .. } => "missing-tensor",
        Fault::WrongShape(_) => "wrong-shape",
        Fault::UnusedTensor(_) => "unused-tensor",
        Fault::Rules(_) => "loader-rules",
    };
    let hint = fault.hint().unwrap_or_default().into_owned();
    Warning::new(code, format!("llama.cpp refuses this file: {fault}"), hint)
}

/// One warning for all keys that are missing.
fn missing_keys(refused: &[Fault]) -> Option<Warning> {
    let keys = refused.iter().filter_map(|error| match error {
        Fault::MissingKey { key } => Some(format!("`{key}`")),
        _ => None,
    });
    let keys: Vec<String> = keys.collect();
    (!keys.is_empty()).then(|| {
        let message = format!("llama.cpp refuses this file: it lacks {}", keys.join(", "));
        Warning::new("missing-key", message, "convert the model again with a current llama.cpp")
    })
}

/// One tensor an expert (`ffn_up.0.weight`), as files of early 2024 had.
fn per_expert_tensors(model: &Model) -> Option<Warning> {
    let old = model.one_expert_tensor()?;
    Some(Warning::new(
        "per-expert-tensors",
        format!("`{}` and its like hold one expert each: llama.cpp no longer loads such files", old.name),
        MERGE_EXPERTS,
    ))
}

/// A model whose answers are vectors.
fn embedding(model: &Model) -> Option<Warning> {
    model.is_embedding().then(|| {
        Warning::new(
            "embedding-model",
            "an embedding model (or a reranker): it generates no text",
            "launch it with llama.cpp's --embeddings; predicted generation means nothing",
        )
    })
}

/// NextN (MTP) blocks that a plain launch leaves out.
fn nextn(model: &Model) -> Option<Warning> {
    let first = model.hparams.n_layer();
    let count = model.hparams.nextn_predict_layers;
    let bytes = model.tensors.iter().filter(|tensor| tensor.block.is_some_and(|block| block >= first));
    let bytes: crate::bytes::Bytes = bytes.map(|tensor| tensor.bytes).sum();
    (count > 0 && bytes.0 > 0).then(|| {
        let blocks = if count == 1 {
            format!("block {first}")
        } else {
            format!("blocks {first} to {}", first.saturating_add(count.saturating_sub(1)))
        };
        Warning::new(
            "nextn-not-loaded",
            format!("{blocks} ({bytes}) only predicts further tokens (NextN/MTP): not loaded without MTP"),
            "llama.cpp loads it with --spec-type draft-mtp; it counts as a layer for -ngl either way",
        )
    })
}
