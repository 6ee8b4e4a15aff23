//! The tensor types of ggml: one row a type, so that name, block size and bytes cannot drift apart.
//!
//! Source: `ggml/include/ggml.h` (enum `ggml_type`), `ggml/src/ggml.c` (`type_traits`), llama.cpp b11434 and b12032; the same
//! files of ik_llama.cpp (August 2026).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeRow {
    pub id: u32,
    /// llama.cpp's name of it in log lines, lower case except for the K-quants' letter (`q4_K`).
    pub name: &'static str,
    pub block_size: u64,
    pub block_bytes: u64,
    /// What a row has beside its blocks.
    pub row_extra: u64,
    pub is_quantized: bool,
    /// The first build of llama.cpp that loads it; `u32::MAX`: only ik_llama.cpp does.
    pub since: u32,
}

const fn quantized(id: u32, name: &'static str, block_size: u64, block_bytes: u64) -> TypeRow {
    TypeRow { id, name, block_size, block_bytes, row_extra: 0, is_quantized: true, since: 0 }
}

const fn plain(id: u32, name: &'static str, bytes: u64) -> TypeRow {
    TypeRow { is_quantized: false, ..quantized(id, name, 1, bytes) }
}

/// A type of ik_llama.cpp alone.
const fn ik(id: u32, name: &'static str, block_size: u64, block_bytes: u64, row_extra: u64) -> TypeRow {
    TypeRow { row_extra, since: u32::MAX, ..quantized(id, name, block_size, block_bytes) }
}

/// A type of ggml, as a reference to its row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(&'static TypeRow);

/// Every type that llama.cpp loads, up to b12032, and those of ik_llama.cpp. Ids 4, 5, 31–33 and 36–38 were removed.
pub static TYPES: &[TypeRow] = &[
    plain(0, "f32", 4),
    plain(1, "f16", 2),
    quantized(2, "q4_0", 32, 18),
    quantized(3, "q4_1", 32, 20),
    quantized(6, "q5_0", 32, 22),
    quantized(7, "q5_1", 32, 24),
    quantized(8, "q8_0", 32, 34),
    quantized(9, "q8_1", 32, 36),
    quantized(10, "q2_K", 256, 84),
    quantized(11, "q3_K", 256, 110),
    quantized(12, "q4_K", 256, 144),
    quantized(13, "q5_K", 256, 176),
    quantized(14, "q6_K", 256, 210),
    quantized(15, "q8_K", 256, 292),
    quantized(16, "iq2_xxs", 256, 66),
    quantized(17, "iq2_xs", 256, 74),
    quantized(18, "iq3_xxs", 256, 98),
    quantized(19, "iq1_s", 256, 50),
    quantized(20, "iq4_nl", 32, 18),
    quantized(21, "iq3_s", 256, 110),
    quantized(22, "iq2_s", 256, 82),
    quantized(23, "iq4_xs", 256, 136),
    plain(24, "i8", 1),
    plain(25, "i16", 2),
    plain(26, "i32", 4),
    plain(27, "i64", 8),
    plain(28, "f64", 8),
    quantized(29, "iq1_m", 256, 56),
    plain(30, "bf16", 2),
    quantized(34, "tq1_0", 256, 54),
    quantized(35, "tq2_0", 256, 66),
    quantized(39, "mxfp4", 32, 17),
    quantized(40, "nvfp4", 64, 36),
    quantized(41, "q1_0", 128, 18),
    quantized(42, "q2_0", 64, 18),
    TypeRow { since: 12032, ..plain(43, "f8_e4m3", 1) },
    ik(133, "q6_0", 32, 26, 0),
    ik(134, "iq1_bn", 64, 13, 2),
    ik(135, "iq2_bn", 64, 16, 4),
    ik(136, "q8_K64", 64, 68, 0),
    ik(137, "iq2_k", 256, 76, 0),
    ik(138, "iq3_k", 256, 110, 0),
    ik(139, "iq4_k", 256, 144, 0),
    ik(140, "iq5_k", 256, 176, 0),
    ik(141, "iq6_k", 256, 212, 0),
    ik(144, "iq4_ks", 256, 136, 4),
    ik(145, "iq2_ks", 256, 70, 2),
    ik(146, "iq4_kss", 256, 128, 4),
    ik(151, "q8_KV", 32, 32, 8),
    ik(152, "iq5_ks", 256, 168, 4),
    ik(153, "iq2_kt", 256, 68, 4),
    ik(154, "iq3_kt", 256, 100, 4),
    ik(155, "iq4_kt", 256, 128, 4),
    ik(156, "iq3_ks", 256, 102, 2),
    ik(157, "iq2_kl", 256, 86, 2),
    ik(158, "iq1_kt", 256, 56, 4),
    ik(202, "q4_0_r8", 32, 18, 0),
    ik(206, "q5_0_r4", 32, 22, 0),
    ik(208, "q8_0_r8", 32, 34, 0),
    ik(210, "q2_k_r4", 256, 84, 0),
    ik(211, "q3_k_r4", 256, 110, 0),
    ik(212, "q4_k_r4", 256, 144, 0),
    ik(213, "q5_k_r4", 256, 176, 0),
    ik(214, "q6_k_r4", 256, 210, 0),
    ik(216, "iq2_xxs_r4", 256, 66, 0),
    ik(217, "iq2_xs_r4", 256, 74, 0),
    ik(218, "iq3_xxs_r4", 256, 98, 0),
    ik(219, "iq1_s_r4", 32, 6, 2),
    ik(220, "iq4_nl_r4", 32, 18, 0),
    ik(221, "iq3_s_r4", 256, 110, 0),
    ik(222, "iq2_s_r4", 256, 82, 0),
    ik(223, "iq4_xs_r8", 256, 136, 0),
    ik(229, "iq1_m_r4", 32, 7, 2),
    TypeRow { is_quantized: false, ..ik(230, "bf16_r16", 1, 2, 0) },
    ik(233, "q6_0_r4", 32, 26, 0),
    ik(335, "iq2_bn_r4", 64, 16, 4),
    ik(337, "iq2_k_r4", 256, 76, 0),
    ik(338, "iq3_k_r4", 256, 110, 0),
    ik(339, "iq4_k_r4", 256, 144, 0),
    ik(340, "iq5_k_r4", 256, 176, 0),
    ik(344, "iq4_ks_r4", 256, 136, 4),
    ik(352, "iq5_ks_r4", 256, 168, 4),
    ik(398, "q8_KV_r8", 32, 32, 4),
    ik(399, "q8_k_r8", 256, 258, 0),
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
        let blocks = elements.checked_div(self.0.block_size).filter(|_| is_whole)?;
        blocks.checked_mul(self.0.block_bytes)?.checked_add(self.0.row_extra)
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
named! { f32 = "f32", f16 = "f16", bf16 = "bf16", i32 = "i32", q8_0 = "q8_0" }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_row() {
        assert_eq!(GgmlType::from_name("q4_k").unwrap().row_bytes(512), Some(288));
        assert_eq!(GgmlType::from_id(39).unwrap().row_bytes(2880), Some(1530));
        assert_eq!(GgmlType::from_id(12).unwrap().row_bytes(100), None);
        // A number before the blocks of each row.
        assert_eq!(GgmlType::from_id(144).unwrap().row_bytes(512), Some(4 + 2 * 136));
        assert_eq!(GgmlType::from_id(44), None);
        assert_eq!(GgmlType::from_id(4), None);
    }
}
