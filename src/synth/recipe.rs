//! Type mixes of what is written here: as the converter and llama-quantize make them, from weights of F32.
//!
//! Source: `convert_hf_to_gguf.py` for F32, F16 and BF16, and for the experts of gpt-oss; [`crate::quantize`] for the rest;
//! llama.cpp b11434.

use super::weights;
use crate::arch::Mix;
use crate::gguf::writer::NewTensor;
use crate::gguf::{GgmlType, ggml_type};
pub use crate::quantize::Recipe;
use crate::quantize::law::{self, Given};
use crate::quantize::{Facts, Options, RECIPES};
use crate::suggest::Refusal;

/// Every recipe that can be written: random weights can be made of its types, and no importance matrix is needed.
pub fn recipes() -> impl Iterator<Item = Recipe> {
    RECIPES.iter().filter(|row| row.name != "Q2_K_S" && weights::is_made(row.base))
}

/// The recipe of a name, in any case.
pub fn named(name: &str) -> Option<Recipe> {
    crate::quantize::recipe::named(name).filter(|row| recipes().any(|known| known == *row))
}

/// The types of a projector's tensors: matrices of the recipe's own type, where their rows allow it; kernels of convolutions F16 at
/// most, positions F32 (`convert_hf_to_gguf.py` `MmprojModel`).
pub fn assign_projector(recipe: Recipe, tensors: &mut [NewTensor]) {
    let Some(base) = GgmlType::from_name(recipe.base) else { return };
    for tensor in tensors.iter_mut().filter(|t| t.shape.len() > 1 && !t.name.contains("position_embd")) {
        let is_kernel = tensor.name.contains("patch_embd");
        let fits = !base.is_quantized || tensor.shape.first().is_some_and(|n| n % base.block_size == 0);
        let plain = if base.name == "f32" { base } else { ggml_type::f16() };
        tensor.ty = if is_kernel || !fits { plain } else { base };
    }
}

/// Gives tensors the types that the recipe has for them.
pub fn assign(recipe: Recipe, facts: &Facts, tensors: &mut [NewTensor]) -> Result<(), Refusal> {
    // Weights that are published in MXFP4 already, as gpt-oss's, are kept by these recipes.
    let keeps = matches!(recipe.name, "F16" | "BF16" | "Q8_0" | "MXFP4_MOE");
    let mxfp4 = GgmlType::from_name("mxfp4").filter(|_| keeps && facts.mix == Mix::GptOss);
    let whole = ggml_type::i32();
    let given = |tensor: &'_ NewTensor| std::array::from_fn(|at| tensor.shape.get(at).copied().unwrap_or(1));
    let from = |ty| if ty == whole { whole } else { ggml_type::f32() };
    let given: Vec<Given<'_>> =
        tensors.iter().map(|tensor| Given { name: &tensor.name, shape: given(tensor), ty: from(tensor.ty) }).collect();
    let chosen = law::assign(recipe, facts, &Options::default(), &given)?;
    for (tensor, chosen) in tensors.iter_mut().zip(chosen) {
        let is_published = tensor.ty == whole || keeps && tensor.ty != ggml_type::f32();
        let kept = mxfp4.filter(|_| tensor.name.contains("_exps.weight")).or(is_published.then_some(tensor.ty));
        tensor.ty = kept.unwrap_or(chosen.ty);
    }
    Ok(())
}
