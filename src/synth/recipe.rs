//! Type mixes: the type of each tensor of a converted or quantized model, as llama.cpp's own tools choose it.
//!
//! Source: `src/llama-quant.cpp` (`llama_tensor_get_type`, `tensor_allows_quantization`, `tensor_type_fallback`),
//! without an importance matrix, and `convert_hf_to_gguf.py` for F32, F16 and BF16; llama.cpp b11434.

use crate::gguf::GgmlType;

/// One row: the name people type, `general.file_type`, the default tensor type.
#[derive(Debug, PartialEq, Eq)]
pub struct RecipeRow {
    /// As `llama-quantize` names it.
    pub name: &'static str,
    /// The value of `general.file_type` (`enum llama_ftype`).
    pub file_type: u32,
    /// The type that most weights get.
    pub base: &'static str,
}

/// Every recipe that can be written.
pub static RECIPES: &[RecipeRow] = &[
    RecipeRow { name: "F32", file_type: 0, base: "f32" },
    RecipeRow { name: "F16", file_type: 1, base: "f16" },
    RecipeRow { name: "BF16", file_type: 32, base: "bf16" },
    RecipeRow { name: "Q8_0", file_type: 7, base: "q8_0" },
    RecipeRow { name: "Q6_K", file_type: 18, base: "q6_K" },
    RecipeRow { name: "Q5_K_M", file_type: 17, base: "q5_K" },
    RecipeRow { name: "Q5_K_S", file_type: 16, base: "q5_K" },
    RecipeRow { name: "Q5_1", file_type: 9, base: "q5_1" },
    RecipeRow { name: "Q5_0", file_type: 8, base: "q5_0" },
    RecipeRow { name: "Q4_K_M", file_type: 15, base: "q4_K" },
    RecipeRow { name: "Q4_K_S", file_type: 14, base: "q4_K" },
    RecipeRow { name: "Q4_1", file_type: 3, base: "q4_1" },
    RecipeRow { name: "Q4_0", file_type: 2, base: "q4_0" },
    RecipeRow { name: "IQ4_NL", file_type: 25, base: "iq4_nl" },
    RecipeRow { name: "IQ4_XS", file_type: 30, base: "iq4_xs" },
    RecipeRow { name: "Q3_K_L", file_type: 13, base: "q3_K" },
    RecipeRow { name: "Q3_K_M", file_type: 12, base: "q3_K" },
    RecipeRow { name: "Q3_K_S", file_type: 11, base: "q3_K" },
    RecipeRow { name: "Q2_K", file_type: 10, base: "q2_K" },
    RecipeRow { name: "MXFP4_MOE", file_type: 38, base: "mxfp4" },
];

/// A recipe, as a reference to its row.
pub type Recipe = &'static RecipeRow;

/// The recipe of a name, in any case.
pub fn named(name: &str) -> Option<Recipe> {
    RECIPES.iter().find(|row| row.name.eq_ignore_ascii_case(name))
}

/// What the law needs to know of the model.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `general.architecture`.
    pub architecture: String,
    /// `block_count`, NextN blocks included.
    pub n_layer: u64,
    /// `expert_count`, 0 for a dense model.
    pub n_expert: u64,
    /// `attention.head_count`.
    pub n_head: u64,
    /// `attention.head_count_kv` as the file states it (1 for MLA).
    pub n_head_kv: u64,
}

/// The type of each tensor, in the order given (blocks ascending).
pub fn assign(recipe: Recipe, facts: &Facts, tensors: &[(String, Vec<u64>)]) -> Vec<GgmlType> {
    let mut state = State {
        recipe,
        facts,
        tied: !tensors.iter().any(|(name, _)| name == "output.weight"),
        n_attention_v: tensors.iter().filter(|(name, _)| category(name) == Category::AttentionV).count() as u64,
        i_attention_v: 0,
    };
    tensors.iter().map(|(name, shape)| ty(state.type_name(name, shape))).collect()
}

fn ty(name: &str) -> GgmlType {
    GgmlType::from_name(name).expect("a type that the law names")
}

/// llama.cpp: `enum tensor_category`, as far as the mixes tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Category {
    Output,
    TokenEmbd,
    /// `attn_v`, `attn_qkv`, `attn_kv_b`: `category_is_attn_v`.
    AttentionV,
    AttentionK,
    AttentionOutput,
    FfnDown,
    Other,
}

fn category(name: &str) -> Category {
    let has = |part: &str| name.contains(part);
    match name {
        "output.weight" => Category::Output,
        "token_embd.weight" | "per_layer_token_embd.weight" => Category::TokenEmbd,
        _ if has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight") => Category::AttentionV,
        _ if has("attn_k.weight") => Category::AttentionK,
        _ if has("attn_output.weight") => Category::AttentionOutput,
        _ if has("ffn_down") => Category::FfnDown,
        _ => Category::Other,
    }
}

/// Parts of names that neither the converter nor the quantizer touches (`tensor_allows_quantization`).
const KEPT: &[&str] = &["_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "shortconv.conv.weight"];

fn is_kept(name: &str, shape: &[u64]) -> bool {
    shape.len() < 2 || !name.ends_with("weight") || KEPT.iter().any(|part| name.contains(part))
}

struct State<'a> {
    recipe: Recipe,
    facts: &'a Facts,
    tied: bool,
    n_attention_v: u64,
    i_attention_v: u64,
}

/// llama.cpp: `use_more_bits`.
fn use_more_bits(i: u64, n: u64) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

impl State<'_> {
    fn type_name(&mut self, name: &str, shape: &[u64]) -> &'static str {
        if is_kept(name, shape) {
            return "f32";
        }
        // The published weights of gpt-oss are MXFP4 already; these recipes keep them.
        let recipe = self.recipe.name;
        let is_mxfp4 = self.facts.architecture == "gpt-oss" && name.contains("_exps.weight");
        if is_mxfp4 && matches!(recipe, "F16" | "BF16" | "Q8_0" | "MXFP4_MOE") {
            return "mxfp4";
        }
        if matches!(recipe, "F32" | "F16" | "BF16") {
            return self.recipe.base;
        }
        let wanted = self.wanted(name, shape);
        fallback(wanted, shape[0])
    }

    /// llama.cpp: `llama_tensor_get_type_impl`.
    fn wanted(&mut self, name: &str, shape: &[u64]) -> &'static str {
        let (recipe, base) = (self.recipe.name, self.recipe.base);
        let category = category(name);
        if category == Category::Output || (self.tied && category == Category::TokenEmbd) {
            let whole = shape[0].is_multiple_of(ty(base).block_size);
            return if recipe == "MXFP4_MOE" || !whole || base == "q8_0" { "q8_0" } else { "q6_K" };
        }
        if recipe == "MXFP4_MOE" {
            return if shape.len() > 2 && shape[2] > 1 { "mxfp4" } else { "q8_0" };
        }
        match category {
            Category::AttentionV => {
                let wanted = self.attention_v();
                self.i_attention_v += 1;
                wanted
            }
            Category::AttentionK if self.facts.n_expert == 8 => "q8_0",
            Category::AttentionOutput => self.attention_output(),
            Category::FfnDown => self.ffn_down(name),
            _ => base,
        }
    }

    fn attention_v(&self) -> &'static str {
        let Facts { architecture, n_layer, n_expert, n_head, n_head_kv } = self.facts;
        if *n_expert == 8 {
            return "q8_0";
        }
        let wide = n_head.checked_div(*n_head_kv).unwrap_or(0) >= 4;
        let i = self.i_attention_v;
        let wanted = match self.recipe.name {
            "Q2_K" if wide => "q4_K",
            "Q2_K" => "q3_K",
            "Q3_K_M" if i < 2 => "q5_K",
            "Q3_K_M" => "q4_K",
            "Q3_K_L" => "q5_K",
            "IQ4_NL" | "IQ4_XS" if wide => "q5_K",
            "Q4_K_M" | "Q5_K_M" if use_more_bits(i, self.n_attention_v) => "q6_K",
            "Q4_K_S" if i < 4 => "q5_K",
            _ => self.recipe.base,
        };
        // llama.cpp: `LLM_TYPE_70B`, of these architectures.
        let is_70b = *n_layer == 80
            && match architecture.as_str() {
                "llama" => n_head != n_head_kv,
                "deci" | "olmo" | "qwen2" => true,
                _ => false,
            };
        if is_70b && matches!(wanted, "q3_K" | "q4_K") { "q5_K" } else { wanted }
    }

    fn attention_output(&self) -> &'static str {
        let recipe = self.recipe.name;
        if self.facts.n_expert == 8 {
            let low = ["Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"].contains(&recipe);
            return if low { "q5_K" } else { self.recipe.base };
        }
        match recipe {
            "Q2_K" => "q3_K",
            "Q3_K_M" => "q4_K",
            "Q3_K_L" => "q5_K",
            _ => self.recipe.base,
        }
    }

    fn ffn_down(&self, name: &str) -> &'static str {
        let n = self.facts.n_layer;
        // A dense model counts its `ffn_down` in order, which is the block; an expert model reads the name.
        let i = name.split('.').nth(1).and_then(|block| block.parse().ok()).unwrap_or(0);
        match self.recipe.name {
            "Q2_K" => "q3_K",
            "Q3_K_M" if i < n / 16 => "q5_K",
            "Q3_K_M" => "q4_K",
            "Q3_K_L" => "q5_K",
            "Q4_K_M" | "Q5_K_M" if use_more_bits(i, n) => "q6_K",
            "IQ4_NL" | "IQ4_XS" | "Q4_K_S" if i < n / 8 => "q5_K",
            _ => self.recipe.base,
        }
    }
}

/// llama.cpp: `tensor_type_fallback`, for rows that are no whole number of blocks.
fn fallback(wanted: &'static str, row: u64) -> &'static str {
    if row.is_multiple_of(ty(wanted).block_size) {
        return wanted;
    }
    let smaller = match wanted {
        "iq4_xs" => "iq4_nl",
        "q2_K" | "q3_K" => "q4_0",
        "q4_K" => "q5_0",
        "q5_K" => "q5_1",
        "q6_K" => "q8_0",
        other => other,
    };
    if row.is_multiple_of(ty(smaller).block_size) { smaller } else { "f16" }
}
