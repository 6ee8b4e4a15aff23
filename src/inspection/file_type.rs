//! The name of a file's type mix, from `general.file_type` or from its tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::gguf::Value;
use crate::model::Model;
use crate::quantize::recipe::{NVFP4, RECIPES, Recipe};

/// Every file type that has a name.
fn rows() -> impl Iterator<Item = Recipe> {
    RECIPES.iter().chain([&NVFP4])
}

/// The name of a file's type mix, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct FileType {
    /// The name, if the id is known or could be told.
    pub name: Option<&'static str>,
    /// Where it comes from.
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
            Some(Value::U64(id)) => rows().find(|row| u64::from(row.file_type) == *id),
            _ => None,
        };
        if let Some(row) = stated {
            let agrees = by_type.is_empty() || by_type.contains_key(row.base);
            return Self { name: Some(row.name), basis: if agrees { Basis::Stated } else { Basis::Contradicted } };
        }
        let main = by_type.iter().max_by_key(|(_, bytes)| **bytes).map(|(ty, _)| ty.as_ref());
        let usual = rows().find(|row| Some(row.base) == main && row.is_usual);
        Self { name: usual.map(|row| row.name), basis: Basis::Guessed }
    }
}
