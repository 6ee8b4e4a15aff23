//! The law of type mixes: the type that `llama-quantize` gives each tensor, by its name, its shape and its place.
//!
//! Source: `src/llama-quant.cpp` (`llama_tensor_get_type`, `llama_tensor_get_type_impl`, `tensor_type_fallback`,
//! `tensor_requires_imatrix`, `tensor_allows_quantization`), llama.cpp b11434. Types are ggml's names.

use super::recipe::Recipe;
use super::{CONVERT, Facts, Options, wrong_rows};
use crate::arch::Mix;
use crate::gguf::GgmlType;
use crate::suggest::Refusal;

/// A tensor as it is.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    pub name: &'a str,
    /// Elements by dimension; missing ones are 1.
    pub shape: [u64; 4],
    pub ty: GgmlType,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    pub ty: GgmlType,
    /// Whether the rows were not a whole number of blocks of the type that the mix has for it.
    pub fell_back: bool,
    /// Whether llama-quantize refuses to write it without an importance matrix.
    pub needs_imatrix: bool,
}

/// The block that llama.cpp reads from a name, as `sscanf` reads `blk.%d.`; -1 for none.
pub fn block_of(name: &str) -> i64 {
    let Some(rest) = name.strip_prefix("blk.").map(str::trim_ascii_start) else { return -1 };
    let digits = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    let digits = digits.find(|c: char| !c.is_ascii_digit()).and_then(|end| digits.get(..end)).unwrap_or(digits);
    let number: Option<i64> = digits.parse().ok();
    number.map_or(-1, |number| if rest.starts_with('-') { number.saturating_neg() } else { number })
}

/// The order in which llama-quantize takes and writes tensors (`weight_name_comparer` of `src/llama-model-loader.h`).
pub fn order(name: &str) -> (i64, &[u8]) {
    (block_of(name), name.as_bytes())
}

/// The type of each tensor, in the order given.
pub fn assign(
    recipe: Recipe,
    facts: &Facts,
    options: &Options<'_>,
    tensors: &[Given<'_>],
) -> Result<Vec<Chosen>, Refusal> {
    let mut state = State {
        recipe,
        facts,
        options,
        tied: !tensors.iter().any(|tensor| tensor.name == "output.weight"),
        n_attention_v: tensors.iter().filter(|tensor| is_attention_v(category(tensor.name))).count() as u64,
        i_attention_v: 0,
        i_ffn_down: 0,
        i_ffn_gate: 0,
        i_ffn_up: 0,
    };
    let mut sorted: Vec<(usize, &Given<'_>)> = tensors.iter().enumerate().collect();
    sorted.sort_by_cached_key(|(_, tensor)| order(tensor.name));
    let mut chosen = Vec::with_capacity(tensors.len());
    for (at, tensor) in sorted {
        chosen.push((at, state.choose(tensor)?));
    }
    chosen.sort_by_key(|(at, _)| *at);
    Ok(chosen.into_iter().map(|(_, chosen)| chosen).collect())
}

fn ty(name: &str) -> GgmlType {
    GgmlType::from_name(name).expect("a type that the law names")
}

/// Parts of names that tell a tensor's category (llama.cpp: `enum tensor_category`); the first that occurs decides.
const CATEGORIES: [&str; 9] = [
    "attn_qkv.weight",
    "attn_kv_b.weight",
    "attn_v.weight",
    "attn_k.weight",
    "attn_q.weight",
    "attn_output.weight",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
];
const OUTPUT: &str = "output.weight";
const TOKEN_EMBD: &str = "token_embd.weight";

/// llama.cpp: `tensor_get_category`.
fn category(name: &str) -> &'static str {
    match name {
        OUTPUT => OUTPUT,
        TOKEN_EMBD | "per_layer_token_embd.weight" => TOKEN_EMBD,
        _ => CATEGORIES.into_iter().find(|part| name.contains(part)).unwrap_or_default(),
    }
}

/// llama.cpp: `category_is_attn_v`.
fn is_attention_v(category: &str) -> bool {
    matches!(category, "attn_v.weight" | "attn_qkv.weight" | "attn_kv_b.weight")
}

struct State<'a> {
    recipe: Recipe,
    facts: &'a Facts,
    options: &'a Options<'a>,
    /// Whether the token embedding is the output as well.
    tied: bool,
    n_attention_v: u64,
    i_attention_v: u64,
    i_ffn_down: u64,
    i_ffn_gate: u64,
    i_ffn_up: u64,
}

/// llama.cpp: `use_more_bits`.
fn use_more_bits(i: u64, n: u64) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// Adds one to a counter and returns what it was.
fn next(counter: &mut u64) -> u64 {
    let now = *counter;
    *counter += 1;
    now
}

impl State<'_> {
    /// llama.cpp: `llama_tensor_get_type`, and what the loops around it decide.
    fn choose(&mut self, tensor: &Given<'_>) -> Result<Chosen, Refusal> {
        let kept = |ty| Chosen { ty, fell_back: false, needs_imatrix: false };
        let is_left = self.options.keep_output && tensor.name == "output.weight";
        if is_left || is_kept(self.facts.mix, tensor.name, tensor.shape) {
            return Ok(kept(tensor.ty));
        }
        let category = category(tensor.name);
        if let Some(asked) = self.asked(tensor.name, category) {
            // llama-quantize aborts where the rows are not whole blocks of a type that was demanded.
            let [row, ..] = tensor.shape;
            let is_whole = row.is_multiple_of(asked.block_size);
            return if is_whole { Ok(kept(asked)) } else { Err(wrong_rows(tensor.name, row, asked)) };
        }
        let base = ty(self.recipe.base);
        if !base.is_quantized {
            return Ok(kept(base));
        }
        let by_hand = self.options.named.and_then(|named| named(tensor.name));
        let wanted = match by_hand {
            Some(by_hand) => by_hand.name,
            None if self.options.pure => base.name,
            None => self.wanted(tensor, category)?,
        };
        let ty = fallback(wanted, tensor)?;
        let needs_imatrix = !matches!(category, OUTPUT | TOKEN_EMBD)
            && (matches!(ty.name, "iq3_xxs" | "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq1_m" | "iq1_s")
                || (ty.name == "q2_K" && self.recipe.name == "Q2_K_S"));
        Ok(Chosen { ty, fell_back: ty.name != wanted, needs_imatrix })
    }

    /// The type that an option demands of the embeddings or the output, whatever the recipe.
    fn asked(&self, name: &str, category: &str) -> Option<GgmlType> {
        let by_hand = || self.options.named.is_some_and(|named| named(name).is_some());
        match category {
            TOKEN_EMBD if name != "per_layer_token_embd.weight" || !by_hand() => self.options.token_embedding,
            OUTPUT => self.options.output,
            _ => None,
        }
    }

    /// llama.cpp: `llama_tensor_get_type_impl`. There, QKV has a branch of its own that is never reached.
    fn wanted(&mut self, tensor: &Given<'_>, category: &str) -> Result<&'static str, Refusal> {
        let Given { name, shape, .. } = *tensor;
        let (recipe, base) = (self.recipe.name, self.recipe.base);
        let of_glm5_next = ["attn_q_a", "attn_q_b", "nextn.eh_proj"].iter().any(|part| name.contains(part));
        if self.facts.mix == Mix::Glm5Next && of_glm5_next {
            return Ok("q8_0");
        }
        if category == OUTPUT || (self.tied && category == TOKEN_EMBD) {
            return Ok(self.output(shape[0]));
        }
        if recipe == "MXFP4_MOE" {
            let are_experts = self.facts.mix != Mix::BailingMoe3 || category.starts_with("ffn_");
            return Ok(if shape[2] > 1 && are_experts { "mxfp4" } else { "q8_0" });
        }
        if category == TOKEN_EMBD {
            return Ok(token_embedding(self.recipe));
        }
        if matches!(recipe, "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ2_M" | "IQ1_S" | "IQ1_M") {
            return Ok(self.of_two_bits(category));
        }
        Ok(match category {
            _ if is_attention_v(category) => self.attention_v(),
            "attn_k.weight" if self.facts.n_expert == 8 => "q8_0",
            "attn_k.weight" | "attn_q.weight" => match recipe {
                "IQ3_XS" => "iq3_xxs",
                "IQ3_XXS" => "iq2_s",
                _ => base,
            },
            "ffn_down" => {
                let i = next(&mut self.i_ffn_down);
                self.ffn_down(self.layer(i, name)?)
            }
            "attn_output.weight" => self.attention_output(),
            "ffn_gate" | "ffn_up" => {
                let i = next(if category == "ffn_gate" { &mut self.i_ffn_gate } else { &mut self.i_ffn_up });
                let (i, n) = (self.layer(i, name)?, self.facts.n_layer_all);
                if recipe == "IQ3_XS" && i >= n / 8 && i < 7 * n / 8 { "iq3_xxs" } else { base }
            }
            _ => base,
        })
    }

    /// The output, or token embeddings that are the output as well.
    fn output(&self, row: u64) -> &'static str {
        let (recipe, base) = (self.recipe.name, self.recipe.base);
        if let Some(asked) = self.options.output {
            return asked.name;
        }
        let is_falcon = self.facts.mix == Mix::Falcon;
        match recipe {
            "MXFP4_MOE" => "q8_0",
            _ if is_falcon || !row.is_multiple_of(ty(base).block_size) => "q8_0",
            "IQ2_XXS" | "IQ2_XS" | "IQ3_XXS" | "IQ1_S" | "IQ2_S" | "IQ2_M" | "IQ1_M" => "q5_K",
            _ if base == "q8_0" => base,
            _ => "q6_K",
        }
    }

    /// Which block a feed-forward tensor counts as: in a dense model its ordinal, else what its name says.
    fn layer(&self, i: u64, name: &str) -> Result<u64, Refusal> {
        if self.facts.n_expert <= 1 {
            return Ok(i);
        }
        let block = u64::try_from(block_of(name)).ok().filter(|block| *block < self.facts.n_layer_all);
        let blocks = self.facts.n_layer_all;
        let message = || format!("llama-quantize refuses `{name}`: its name has no block number below {blocks}");
        block.ok_or_else(|| Refusal::new(message(), CONVERT))
    }

    /// The recipes of about two bits have rules of their own.
    fn of_two_bits(&mut self, category: &str) -> &'static str {
        let (recipe, base) = (self.recipe.name, self.recipe.base);
        let is_larger = matches!(recipe, "IQ2_S" | "IQ2_M");
        let low = if is_larger { "iq3_s" } else { "q2_K" };
        match category {
            _ if is_attention_v(category) => {
                self.i_attention_v += 1;
                if self.facts.n_gqa >= 4 || self.facts.n_expert >= 4 { "q4_K" } else { low }
            }
            "attn_k.weight" if self.facts.n_expert == 8 => "q4_K",
            "ffn_down" if next(&mut self.i_ffn_down) < self.facts.n_layer_all / 8 => low,
            "attn_output.weight" if self.facts.n_expert == 8 => "q5_K",
            "attn_output.weight" if matches!(recipe, "IQ1_S" | "IQ1_M") => "iq2_xxs",
            "attn_output.weight" if is_larger => "iq3_s",
            _ => base,
        }
    }

    fn attention_v(&mut self) -> &'static str {
        let i = next(&mut self.i_attention_v);
        let is_wide = self.facts.n_gqa >= 4;
        let wanted = match self.recipe.name {
            "Q2_K" if !is_wide => "q3_K",
            "Q2_K" | "Q2_K_S" | "IQ3_XXS" | "IQ3_XS" | "IQ3_S" if is_wide => "q4_K",
            "IQ3_XXS" if !self.options.imatrix => "iq3_s",
            "Q3_K_M" if i < 2 => "q5_K",
            "IQ3_M" | "Q3_K_M" => "q4_K",
            "Q3_K_L" => "q5_K",
            "IQ4_NL" | "IQ4_XS" if is_wide => "q5_K",
            "Q4_K_M" | "Q5_K_M" if use_more_bits(i, self.n_attention_v) => "q6_K",
            "Q4_K_S" if i < 4 => "q5_K",
            _ => self.recipe.base,
        };
        match wanted {
            _ if self.facts.n_expert == 8 => "q8_0",
            "q3_K" | "q4_K" if self.facts.is_70b => "q5_K",
            wanted => wanted,
        }
    }

    fn ffn_down(&self, i: u64) -> &'static str {
        let (n, base, imatrix) = (self.facts.n_layer_all, self.recipe.base, self.options.imatrix);
        let is_falcon = self.facts.mix == Mix::Falcon;
        match self.recipe.name {
            "Q2_K" => "q3_K",
            "Q2_K_S" if i < n / 8 => "q4_K",
            "IQ3_XXS" if !imatrix => {
                if i < n / 8 {
                    "q4_K"
                } else {
                    "q3_K"
                }
            }
            "Q3_K_M" if i < n / 16 => "q5_K",
            "Q3_K_M" if !is_falcon || use_more_bits(i, n) => "q4_K",
            "IQ3_M" if i < n / 8 || (self.facts.n_expert == 8 && use_more_bits(i, n)) => "q4_K",
            "Q3_K_L" if is_falcon => "q4_K",
            "Q3_K_L" => "q5_K",
            "Q4_K_M" if is_falcon && i < n / 16 => "q6_K",
            "Q4_K_M" if is_falcon && use_more_bits(i, n) => "q5_K",
            "Q4_K_M" if !is_falcon && use_more_bits(i, n) => "q6_K",
            "IQ4_NL" | "IQ4_XS" if i < n / 8 && !imatrix => "q5_K",
            "Q5_K_M" if use_more_bits(i, n) => "q6_K",
            "Q4_K_S" if !is_falcon && i < n / 8 => "q5_K",
            "Q4_0" if imatrix && i < n / 8 => "q4_1",
            "Q5_0" if imatrix && i < n / 8 => "q5_1",
            _ => base,
        }
    }

    fn attention_output(&self) -> &'static str {
        let (recipe, base) = (self.recipe.name, self.recipe.base);
        if self.facts.mix == Mix::Falcon {
            return if recipe == "Q3_K_L" { "q4_K" } else { base };
        }
        if self.facts.n_expert == 8 {
            let of_eight = "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS";
            return if of_eight.split(' ').any(|name| name == recipe) { "q5_K" } else { base };
        }
        match recipe {
            "Q2_K" => "q3_K",
            "IQ3_XXS" => "iq3_s",
            "Q3_K_M" | "IQ3_M" => "q4_K",
            "Q3_K_L" => "q5_K",
            _ => base,
        }
    }
}

/// Token embeddings beside an output of their own.
fn token_embedding(recipe: Recipe) -> &'static str {
    match recipe.name {
        "IQ2_XXS" | "IQ2_XS" | "IQ1_S" | "IQ1_M" => "q2_K",
        "IQ2_S" | "IQ2_M" | "IQ3_XXS" => "iq3_s",
        "TQ1_0" | "TQ2_0" | "Q2_0" => "q4_K",
        _ => recipe.base,
    }
}

/// Parts of the names of tensors that are kept: norms, routers, convolutions, positions, small projections.
const PARTS: &str = "_norm.weight ffn_gate_inp.weight ffn_gate_tid2eid.weight altup laurel per_layer_model_proj ssm_conv1d \
    shortconv.conv.weight indexer.k_proj.weight indexer.q_proj.weight time_mix_first.weight time_mix_w0.weight \
    time_mix_w1.weight time_mix_w2.weight time_mix_v0.weight time_mix_v1.weight time_mix_v2.weight time_mix_a0.weight \
    time_mix_a1.weight time_mix_a2.weight time_mix_g1.weight time_mix_g2.weight time_mix_decay_w1.weight \
    time_mix_decay_w2.weight time_mix_lerp_fused.weight attn_rel_b.weight .position_embd sam.pos_embd sam.neck. sam.net_ \
    .rel_pos .patch_embd .patch_merger a.rvq.codebook mm.a.code_embd";

/// More of them in `glm5-next`.
const PARTS_OF_GLM5_NEXT: &str = "hc_ indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate \
    indexer_compressor_ape ssm_f_a.weight ssm_f_b.weight ssm_g_a.weight ssm_g_b.weight ssm_beta.weight \
    attn_kv_a_mqa.weight attn_k_b.weight attn_v_b.weight";

/// Whole names of tensors that are kept: learned positions and token types.
const NAMES: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Whether the tensor stays as it is: a vector, no weight, or one of the small or delicate ones.
fn is_kept(mix: Mix, name: &str, shape: [u64; 4]) -> bool {
    let [_, rows, matrices, more] = shape;
    let is_vector = rows <= 1 && matrices <= 1 && more <= 1;
    // A name of five letters passes llama.cpp's test of the ending too: the position wraps around to "not found".
    let is_weight = name.ends_with("weight") || name.len() == 5;
    let has = |parts: &str| parts.split(' ').any(|part| name.contains(part));
    is_vector || !is_weight || has(PARTS) || NAMES.contains(&name) || (mix == Mix::Glm5Next && has(PARTS_OF_GLM5_NEXT))
}

/// llama.cpp: `tensor_type_fallback`, for rows that are not a whole number of blocks.
fn fallback(wanted: &'static str, tensor: &Given<'_>) -> Result<GgmlType, Refusal> {
    let [row, ..] = tensor.shape;
    let is_whole = |name: &str| row.is_multiple_of(ty(name).block_size);
    if is_whole(wanted) {
        return Ok(ty(wanted));
    }
    let smaller = match wanted {
        "iq1_s" | "iq1_m" | "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq3_xxs" | "iq3_s" | "iq4_xs" => "iq4_nl",
        "q2_0" | "q2_K" | "q3_K" | "tq1_0" | "tq2_0" => "q4_0",
        "q4_K" => "q5_0",
        "q5_K" => "q5_1",
        "q6_K" => "q8_0",
        other if ty(other).block_size <= 32 => other,
        _ => return Err(wrong_rows(tensor.name, row, ty(wanted))),
    };
    Ok(ty(if is_whole(smaller) { smaller } else { "f16" }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quantize::RECIPES;

    #[test]
    fn blocks_are_read_as_sscanf_reads_them() {
        for (name, block) in [
            ("blk.12.attn_q.weight", 12),
            ("blk. 7.x", 7),
            ("blk.-3.x", -3),
            ("blk.+4x", 4),
            ("blk.x", -1),
            ("blk.-", -1),
            ("enc.blk.3.x", -1),
            ("blk.99999999999999999999.x", -1),
        ] {
            assert_eq!(block_of(name), block, "{name}");
        }
        assert!(order("output.weight") < order("blk.0.a") && order("blk.2.b") < order("blk.10.a"));
    }

    proptest! {
        /// Any names and shapes have an answer, and the order of the file does not change it.
        #[test]
        fn any_file_has_an_answer_whatever_its_order(
            names in proptest::collection::btree_set(
                "(blk\\.[0-9]{1,2}\\.)?(attn_(q|k|v|qkv|output|kv_b)|ffn_(up|gate|down)(_exps)?|token_embd|output|.{1,4})(\\.weight)?",
                1..24,
            ),
            dims in proptest::collection::vec((0_u64..2000, 0_u64..9, 0_u64..4), 24),
            recipe in 0..RECIPES.len(), turn in 0_usize..24, n_expert in 0_u64..9, n_head_kv in 0_u64..9, imatrix: bool,
        ) {
            let f32 = ty("f32");
            let given = |(name, (a, b, c)): (&'_ String, &(u64, u64, u64))| (name.clone(), [*a, *b, *c, 1]);
            let owned: Vec<(String, [u64; 4])> = names.iter().zip(&dims).map(given).collect();
            let mut tensors: Vec<Given<'_>> =
                owned.iter().map(|(name, shape)| Given { name, shape: *shape, ty: f32 }).collect();
            let facts = Facts::new("llama", 32, n_expert, 8, n_head_kv);
            let options = Options { imatrix, ..Options::default() };
            let assign = |tensors: &[Given<'_>]| assign(&RECIPES[recipe], &facts, &options, tensors);
            let turn = turn % tensors.len();
            let first = assign(&tensors).map(|mut chosen| {
                chosen.rotate_left(turn);
                chosen
            });
            tensors.rotate_left(turn);
            prop_assert_eq!(first, assign(&tensors));
        }
    }
}
