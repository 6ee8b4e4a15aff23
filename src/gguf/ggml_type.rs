//! The tensor types of ggml (b11434): one row a type, so that name, block size and bytes cannot drift apart.
//!
//! Source: `ggml/include/ggml.h` (enum `ggml_type`), `ggml/src/ggml.c` (`type_traits`), llama.cpp b11434.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeRow {
    pub id: u32,
    /// llama.cpp's name of it in log lines, lower case except for the K-quants' letter (`q4_K`).
    pub name: &'static str,
    pub block_size: u64,
    pub block_bytes: u64,
    pub is_quantized: bool,
}

/// A type of ggml, as a reference to its row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(&'static TypeRow);

/// Every type that llama.cpp b11434 loads. Ids 4, 5, 31–33 and 36–38 were removed; 43 and above do not exist.
pub static TYPES: &[TypeRow] = &[
    TypeRow { id: 0, name: "f32", block_size: 1, block_bytes: 4, is_quantized: false },
    TypeRow { id: 1, name: "f16", block_size: 1, block_bytes: 2, is_quantized: false },
    TypeRow { id: 2, name: "q4_0", block_size: 32, block_bytes: 18, is_quantized: true },
    TypeRow { id: 3, name: "q4_1", block_size: 32, block_bytes: 20, is_quantized: true },
    TypeRow { id: 6, name: "q5_0", block_size: 32, block_bytes: 22, is_quantized: true },
    TypeRow { id: 7, name: "q5_1", block_size: 32, block_bytes: 24, is_quantized: true },
    TypeRow { id: 8, name: "q8_0", block_size: 32, block_bytes: 34, is_quantized: true },
    TypeRow { id: 9, name: "q8_1", block_size: 32, block_bytes: 36, is_quantized: true },
    TypeRow { id: 10, name: "q2_K", block_size: 256, block_bytes: 84, is_quantized: true },
    TypeRow { id: 11, name: "q3_K", block_size: 256, block_bytes: 110, is_quantized: true },
    TypeRow { id: 12, name: "q4_K", block_size: 256, block_bytes: 144, is_quantized: true },
    TypeRow { id: 13, name: "q5_K", block_size: 256, block_bytes: 176, is_quantized: true },
    TypeRow { id: 14, name: "q6_K", block_size: 256, block_bytes: 210, is_quantized: true },
    TypeRow { id: 15, name: "q8_K", block_size: 256, block_bytes: 292, is_quantized: true },
    TypeRow { id: 16, name: "iq2_xxs", block_size: 256, block_bytes: 66, is_quantized: true },
    TypeRow { id: 17, name: "iq2_xs", block_size: 256, block_bytes: 74, is_quantized: true },
    TypeRow { id: 18, name: "iq3_xxs", block_size: 256, block_bytes: 98, is_quantized: true },
    TypeRow { id: 19, name: "iq1_s", block_size: 256, block_bytes: 50, is_quantized: true },
    TypeRow { id: 20, name: "iq4_nl", block_size: 32, block_bytes: 18, is_quantized: true },
    TypeRow { id: 21, name: "iq3_s", block_size: 256, block_bytes: 110, is_quantized: true },
    TypeRow { id: 22, name: "iq2_s", block_size: 256, block_bytes: 82, is_quantized: true },
    TypeRow { id: 23, name: "iq4_xs", block_size: 256, block_bytes: 136, is_quantized: true },
    TypeRow { id: 24, name: "i8", block_size: 1, block_bytes: 1, is_quantized: false },
    TypeRow { id: 25, name: "i16", block_size: 1, block_bytes: 2, is_quantized: false },
    TypeRow { id: 26, name: "i32", block_size: 1, block_bytes: 4, is_quantized: false },
    TypeRow { id: 27, name: "i64", block_size: 1, block_bytes: 8, is_quantized: false },
    TypeRow { id: 28, name: "f64", block_size: 1, block_bytes: 8, is_quantized: false },
    TypeRow { id: 29, name: "iq1_m", block_size: 256, block_bytes: 56, is_quantized: true },
    TypeRow { id: 30, name: "bf16", block_size: 1, block_bytes: 2, is_quantized: false },
    TypeRow { id: 34, name: "tq1_0", block_size: 256, block_bytes: 54, is_quantized: true },
    TypeRow { id: 35, name: "tq2_0", block_size: 256, block_bytes: 66, is_quantized: true },
    TypeRow { id: 39, name: "mxfp4", block_size: 32, block_bytes: 17, is_quantized: true },
    TypeRow { id: 40, name: "nvfp4", block_size: 64, block_bytes: 36, is_quantized: true },
    TypeRow { id: 41, name: "q1_0", block_size: 128, block_bytes: 18, is_quantized: true },
    TypeRow { id: 42, name: "q2_0", block_size: 64, block_bytes: 18, is_quantized: true },
];

impl GgmlType {
    /// The type of a GGUF id, or `None` for a removed or unknown one.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.id == id).map(Self)
    }

    /// The type of a name as llama.cpp prints or takes it, in any case (`q8_0`, `Q4_K`, `mxfp4`).
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(Self)
    }

    /// The bytes of `elements` contiguous elements of one row, or `None` where they are not a whole number of blocks
    /// or too many for 64 bits (ggml: `ggml_row_size`).
    pub fn row_bytes(self, elements: u64) -> Option<u64> {
        let is_whole = elements.is_multiple_of(self.0.block_size);
        elements.checked_div(self.0.block_size).filter(|_| is_whole)?.checked_mul(self.0.block_bytes)
    }

    /// The bytes of a tensor, or `None` where a row is not a whole number of blocks or the product passes 64 bits.
    pub fn bytes(self, shape: &[u64]) -> Option<u64> {
        let (row, rest) = shape.split_first()?;
        rest.iter().try_fold(self.row_bytes(*row)?, |bytes, n| bytes.checked_mul(*n))
    }
}

impl std::ops::Deref for GgmlType {
    type Target = TypeRow;
    fn deref(&self) -> &TypeRow {
        self.0
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for GgmlType {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GgmlType".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<&str> = TYPES.iter().map(|row| row.name).collect();
        schemars::json_schema!({ "description": "A tensor type of ggml, by its name there.", "type": "string", "examples": names })
    }
}

impl Serialize for GgmlType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de> Deserialize<'de> for GgmlType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("`{name}` is not a type of ggml")))
    }
}

/// The type named in code; a wrong name is our own mistake and is caught by the test of every such name.
macro_rules! named {
    ($($constant:ident = $name:literal),* $(,)?) => {
        $(#[doc = concat!("`", $name, "`.")] pub fn $constant() -> GgmlType {
            GgmlType::from_name($name).expect("a row of TYPES")
        })*
        #[cfg(test)]
        #[test]
        fn every_named_type_has_its_row() { $( assert_eq!($constant().name, $name); )* }
    };
}
named! { f32 = "f32", f16 = "f16", bf16 = "bf16", i32 = "i32" }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_row() {
        assert_eq!(GgmlType::from_name("q4_k").unwrap().row_bytes(512), Some(288));
        assert_eq!(GgmlType::from_id(39).unwrap().row_bytes(2880), Some(1530));
        assert_eq!(GgmlType::from_id(12).unwrap().row_bytes(100), None);
        assert_eq!(GgmlType::from_id(43), None);
        assert_eq!(GgmlType::from_id(4), None);
    }
}
