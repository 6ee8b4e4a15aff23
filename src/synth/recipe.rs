//! Type mixes of what is written here: as the converter and llama-quantize make them, from weights of F32.
//!
//! Source: `convert_hf_to_gguf.py` for F32, F16 and BF16, and for the experts of gpt-oss; [`crate::quantize`] for the rest;
//! llama.cpp b11434.

use super::spec::Error;
use super::weights;
use crate::arch::Mix;
use crate::gguf::{GgmlType, ggml_type};
pub use crate::quantize::Recipe;
use crate::quantize::law::{self, Given};
use crate::quantize::{Facts, Options, RECIPES};

/// Every recipe that can be written: random weights can be made of its types, and no importance matrix is needed.
pub fn recipes() -> impl Iterator<Item = Recipe> {
    RECIPES.iter().filter(|row| row.name != "Q2_K_S" && weights::is_made(row.base))
}

/// The recipe of a name, in any case.
pub fn named(name: &str) -> Option<Recipe> {
    crate::quantize::recipe::named(name).filter(|row| recipes().any(|known| known == *row))
}

pub fn assign(recipe: Recipe, facts: &Facts, tensors: &[(String, Vec<u64>)]) -> Result<Vec<GgmlType>, Error> {
    // The published weights of gpt-oss are MXFP4 already; these recipes keep them.
    let keeps_experts = facts.mix == Mix::GptOss && matches!(recipe.name, "F16" | "BF16" | "Q8_0" | "MXFP4_MOE");
    let shape = |dims: &[u64]| std::array::from_fn(|at| dims.get(at).copied().unwrap_or(1));
    let given: Vec<Given<'_>> =
        tensors.iter().map(|(name, dims)| Given { name, shape: shape(dims), ty: ggml_type::f32() }).collect();
    let chosen = law::assign(recipe, facts, &Options::default(), &given)?;
    let mxfp4 = GgmlType::from_name("mxfp4").filter(|_| keeps_experts);
    let types = given.iter().zip(chosen).map(|(tensor, chosen)| match mxfp4 {
        Some(mxfp4) if tensor.name.contains("_exps.weight") => mxfp4,
        _ => chosen.ty,
    });
    Ok(types.collect())
}
