//! What to know of a model before using it: a code for programs, a message and what to do for people.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Basis, TensorBytes};
use crate::arch::Arch;
use crate::bytes::Bytes;
use crate::gguf::ByteOrder;
use crate::model::load::Fault;
use crate::model::projector;
use crate::model::{FileKind, MERGE_EXPERTS, Model};
use crate::rules::Role;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Warning {
    pub code: Cow<'static, str>,
    pub message: String,
    pub hint: String,
}

/// Every warning of a model, the gravest first.
pub(super) fn of(
    model: &Model,
    refused: &[Fault],
    (file_type, basis): (Option<&str>, Basis),
    bytes: &TensorBytes,
) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    let mut add = |code: &'static str, message: String, hint: &str| {
        warnings.push(Warning { code: code.into(), message, hint: hint.into() });
    };
    let is_model = model.kind == FileKind::Model;
    if is_model {
        let is_known = model.architecture.is_empty() || Arch::named(&model.architecture).is_some();
        if !is_known {
            add(
                "unknown-architecture",
                format!("llama.cpp b11434 does not know the architecture `{}`", model.architecture),
                "roles are inferred from the names of the tensors; a fork or a newer llama.cpp may load it",
            );
        }
        let keys = refused.iter().filter_map(|fault| match fault {
            Fault::MissingKey { key } => Some(format!("`{key}`")),
            _ => None,
        });
        let keys = keys.collect::<Vec<_>>().join(", ");
        if !keys.is_empty() {
            let message = format!("llama.cpp refuses this file: it lacks {keys}");
            add("missing-key", message, "convert the model again with a current llama.cpp");
        }
        // One tensor an expert (`ffn_up.0.weight`), as files of early 2024 had.
        let per_expert = model.one_expert_tensor();
        let others = refused.iter().filter(|fault| !matches!(fault, Fault::MissingKey { .. }));
        // Files of the kinds above lack what the loader asks for, too.
        let loads = is_known && refused.is_empty() && per_expert.is_none();
        let unloadable = loads.then(|| model.check_load().err()).flatten();
        for fault in others.chain(&unloadable) {
            let code = match fault {
                Fault::MissingKey { .. } => "missing-key",
                Fault::BadKey(_) => "bad-key",
                Fault::MissingTensor { .. } => "missing-tensor",
                Fault::WrongShape(_) => "wrong-shape",
                Fault::UnusedTensor(_) => "unused-tensor",
                Fault::Rules(_) => "loader-rules",
            };
            add(code, format!("llama.cpp refuses this file: {fault}"), fault.hint());
        }
        if let Some(old) = per_expert {
            let message = format!(
                "`{}` and similar tensors hold one expert each: llama.cpp no longer loads such files",
                old.name
            );
            add("per-expert-tensors", message, MERGE_EXPERTS);
        }
        if model.is_embedding() {
            add(
                "embedding-model",
                "an embedding model (or a reranker): it generates no text".into(),
                "launch it with llama.cpp's --embeddings; its predicted generation speed is meaningless",
            );
        }
    } else {
        let message = format!("this file is {}, not a model that runs by itself", model.kind);
        add("not-a-model", message, "plan, check and run need the model's own GGUF file");
        if let (FileKind::Mmproj, Err(fault)) = (model.kind, projector::encoders(model, [0, 0])) {
            add(
                "projector-refused",
                format!("llama.cpp refuses this file: {fault}"),
                "convert it again with a current llama.cpp",
            );
        }
    }
    if model.byte_order == ByteOrder::Big {
        add(
            "big-endian",
            "every number in this file is big-endian: llama.cpp loads it only on a big-endian host".into(),
            "convert it with gguf_convert_endian.py, or take the little-endian file",
        );
    }
    // NextN (MTP) blocks that a plain launch leaves out.
    let (first, count) = (model.hparams.n_layer(), model.hparams.nextn_predict_layers);
    let nextn = model.tensors.iter().filter(|tensor| tensor.block.is_some_and(|block| block >= first));
    let nextn: Bytes = nextn.map(|tensor| tensor.bytes).sum();
    if count > 0 && nextn.0 > 0 {
        let last = first.saturating_add(count.saturating_sub(1));
        let blocks = if count == 1 { format!("block {first}") } else { format!("blocks {first} to {last}") };
        add(
            "nextn-not-loaded",
            format!("{blocks} ({nextn}) only predicts further tokens (NextN/MTP): not loaded without MTP"),
            "llama.cpp loads it with --spec-type draft-mtp; it counts as a layer for -ngl either way",
        );
    }
    if let (Some(stated), Basis::Contradicted) = (file_type, basis) {
        let message = format!("general.file_type says {stated}, but no tensor has that type");
        add(
            "file-type-differs",
            message,
            "the sizes shown here come from the tensors themselves: trust these, not the label",
        );
    }
    let other = bytes.by_role.get(&Role::Other).copied().unwrap_or_default();
    if is_model && other.0 > bytes.total.0 / 10 {
        add(
            "unnamed-tensors",
            format!("{other} are in tensors that no role rule matches"),
            "inspect --tensors lists them as `other`; the file may need a newer moeplan",
        );
    }
    warnings
}
