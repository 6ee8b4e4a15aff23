//! Names of `general.file_type`, one row each.
//!
//! Source: `include/llama.h` `enum llama_ftype`, llama.cpp b11434; the names are those of llama-quantize.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bytes::Bytes;
use crate::gguf::Value;
use crate::model::Model;

/// Id, name, the type that most of the weights have, and whether llama.cpp takes a file of mostly that type for it
/// when the file does not say (`src/llama-model-loader.cpp`).
static ROWS: &[(u64, &str, &str, bool)] = &[
    (0, "F32", "f32", true),
    (1, "F16", "f16", true),
    (2, "Q4_0", "q4_0", true),
    (3, "Q4_1", "q4_1", true),
    (7, "Q8_0", "q8_0", true),
    (8, "Q5_0", "q5_0", true),
    (9, "Q5_1", "q5_1", true),
    (10, "Q2_K", "q2_K", true),
    (11, "Q3_K_S", "q3_K", false),
    (12, "Q3_K_M", "q3_K", true),
    (13, "Q3_K_L", "q3_K", false),
    (14, "Q4_K_S", "q4_K", false),
    (15, "Q4_K_M", "q4_K", true),
    (16, "Q5_K_S", "q5_K", false),
    (17, "Q5_K_M", "q5_K", true),
    (18, "Q6_K", "q6_K", true),
    (19, "IQ2_XXS", "iq2_xxs", true),
    (20, "IQ2_XS", "iq2_xs", true),
    (21, "Q2_K_S", "q2_K", false),
    (22, "IQ3_XS", "iq3_s", false),
    (23, "IQ3_XXS", "iq3_xxs", true),
    (24, "IQ1_S", "iq1_s", true),
    (25, "IQ4_NL", "iq4_nl", true),
    (26, "IQ3_S", "iq3_s", true),
    (27, "IQ3_M", "iq3_s", false),
    (28, "IQ2_S", "iq2_xs", false),
    (29, "IQ2_M", "iq2_s", true),
    (30, "IQ4_XS", "iq4_xs", true),
    (31, "IQ1_M", "iq1_m", true),
    (32, "BF16", "bf16", true),
    (36, "TQ1_0", "tq1_0", true),
    (37, "TQ2_0", "tq2_0", true),
    (38, "MXFP4_MOE", "mxfp4", true),
    (39, "NVFP4", "nvfp4", true),
    (40, "Q1_0", "q1_0", true),
    (41, "Q2_0", "q2_0", true),
];

/// The name of a file's type mix, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct FileType {
    /// The name, if the id is known or could be told.
    pub name: Option<&'static str>,
    /// Where it comes from.
    pub basis: Basis,
}

/// Where the name of a file type comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
    pub fn of(model: &Model, by_type: &BTreeMap<&'static str, Bytes>) -> Self {
        let stated = match model.metadata.get("general.file_type") {
            Some(Value::U64(id)) => ROWS.iter().find(|(row, ..)| row == id),
            _ => None,
        };
        if let Some((_, name, ty, _)) = stated {
            let agrees = by_type.is_empty() || by_type.contains_key(ty);
            return Self { name: Some(name), basis: if agrees { Basis::Stated } else { Basis::Contradicted } };
        }
        let main = by_type.iter().max_by_key(|(_, bytes)| **bytes).map(|(ty, _)| *ty);
        let usual = ROWS.iter().find(|(_, _, ty, is_usual)| Some(*ty) == main && *is_usual);
        Self { name: usual.map(|(_, name, ..)| *name), basis: Basis::Guessed }
    }
}

#[cfg(test)]
mod tests {
    use super::ROWS;
    use crate::gguf::GgmlType;

    #[test]
    fn every_row_names_a_type_and_ids_are_unique() {
        for (at, (id, name, ty, _)) in ROWS.iter().enumerate() {
            assert_eq!(GgmlType::from_name(ty).map(|found| found.name), Some(*ty), "{name}");
            assert!(ROWS[at + 1..].iter().all(|row| row.0 != *id && row.1 != *name), "{name}");
            let usual = ROWS.iter().filter(|row| row.2 == *ty && row.3).count();
            assert_eq!(usual, 1, "{ty}");
        }
    }
}
