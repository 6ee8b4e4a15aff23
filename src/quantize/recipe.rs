//! The recipes of `llama-quantize`: one row each, with the number that files state and the type that most weights get.
//!
//! Source: `tools/quantize/quantize.cpp` (`QUANT_OPTIONS`), `src/llama-quant.cpp` (`llama_ftype_get_default_type`),
//! `include/llama.h` (`enum llama_ftype`), llama.cpp b11434.

/// One row: the name people type, `general.file_type`, the default tensor type.
#[derive(Debug, PartialEq, Eq)]
pub struct RecipeRow {
    pub name: &'static str,
    /// The value of `general.file_type` (`enum llama_ftype`).
    pub file_type: u32,
    /// The type that most weights get, by ggml's name.
    pub base: &'static str,
    /// Whether llama.cpp takes a file of mostly that type for it when the file does not say
    /// (`src/llama-model-loader.cpp`).
    pub is_usual: bool,
}

/// A recipe, as a reference to its row.
pub type Recipe = &'static RecipeRow;

const fn row(name: &'static str, file_type: u32, base: &'static str, is_usual: bool) -> RecipeRow {
    RecipeRow { name, file_type, base, is_usual }
}

/// Every recipe of `llama-quantize`, large ones first; without `COPY`, which changes nothing.
pub static RECIPES: &[RecipeRow] = &[
    row("F32", 0, "f32", true),
    row("F16", 1, "f16", true),
    row("BF16", 32, "bf16", true),
    row("Q8_0", 7, "q8_0", true),
    row("Q6_K", 18, "q6_K", true),
    row("Q5_K_M", 17, "q5_K", true),
    row("Q5_K_S", 16, "q5_K", false),
    row("Q5_1", 9, "q5_1", true),
    row("Q5_0", 8, "q5_0", true),
    row("Q4_K_M", 15, "q4_K", true),
    row("Q4_K_S", 14, "q4_K", false),
    row("Q4_1", 3, "q4_1", true),
    row("Q4_0", 2, "q4_0", true),
    row("IQ4_NL", 25, "iq4_nl", true),
    row("IQ4_XS", 30, "iq4_xs", true),
    row("MXFP4_MOE", 38, "mxfp4", true),
    row("Q3_K_L", 13, "q3_K", false),
    row("Q3_K_M", 12, "q3_K", true),
    row("Q3_K_S", 11, "q3_K", false),
    row("IQ3_M", 27, "iq3_s", false),
    row("IQ3_S", 26, "iq3_s", true),
    row("IQ3_XS", 22, "iq3_s", false),
    row("IQ3_XXS", 23, "iq3_xxs", true),
    row("Q2_K", 10, "q2_K", true),
    row("Q2_K_S", 21, "q2_K", false),
    row("IQ2_M", 29, "iq2_s", true),
    row("IQ2_S", 28, "iq2_xs", false),
    row("IQ2_XS", 20, "iq2_xs", true),
    row("IQ2_XXS", 19, "iq2_xxs", true),
    row("Q2_0", 41, "q2_0", true),
    row("TQ2_0", 37, "tq2_0", true),
    row("IQ1_M", 31, "iq1_m", true),
    row("TQ1_0", 36, "tq1_0", true),
    row("IQ1_S", 24, "iq1_s", true),
    row("Q1_0", 40, "q1_0", true),
];

/// A file type that files state and no recipe makes.
pub static NVFP4: RecipeRow = row("NVFP4", 39, "nvfp4", true);

/// Other names that `llama-quantize` takes.
const ALIASES: [(&str, &str); 3] = [("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

/// The recipe of a name, in any case; `Q4_K` is `Q4_K_M`.
pub fn named(name: &str) -> Option<Recipe> {
    let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
    let name = alias.map_or(name, |(_, name)| name);
    RECIPES.iter().find(|row| row.name.eq_ignore_ascii_case(name))
}

/// The name of every recipe, for a message.
pub fn names() -> String {
    RECIPES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;

    #[test]
    fn every_row_names_a_type_and_ids_are_unique() {
        let rows: Vec<&RecipeRow> = RECIPES.iter().chain([&NVFP4]).collect();
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(GgmlType::from_name(row.base).map(|found| found.name), Some(row.base), "{}", row.name);
            let later = &rows[at + 1..];
            assert!(later.iter().all(|o| o.file_type != row.file_type && o.name != row.name), "{}", row.name);
            let usual = rows.iter().filter(|other| other.base == row.base && other.is_usual).count();
            assert_eq!(usual, 1, "{}", row.base);
        }
    }

    #[test]
    fn names_are_read_as_llama_quantize_reads_them() {
        for (text, name) in [("q4_k_m", Some("Q4_K_M")), ("Q5_K", Some("Q5_K_M")), ("COPY", None)] {
            assert_eq!(named(text).map(|row| row.name), name);
        }
    }
}
