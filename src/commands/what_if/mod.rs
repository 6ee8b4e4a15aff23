//! `--as RECIPE`: the files that llama-quantize would make of a MODEL, predicted from its header.

pub mod listing;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::model_arg;
use crate::gguf::shards;
use crate::gguf::source::Location;
use crate::gguf::{GgmlType, Gguf};
use crate::inspection::Warning;
use crate::model::Model;
use crate::placement::pattern;
use crate::quantize::{self, Imatrix, Options, RECIPES, Recipe, WhatIf, recipe};
use crate::run::build::REFERENCE;
use crate::run::command::quoted;

/// Which files, and the options of llama-quantize that change types.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "A file that llama-quantize would make")]
pub struct WhatIfArgs {
    /// Predict the file that llama-quantize would make of MODEL: Q4_K_M, or Q4_K_M,Q6_K,IQ4_XS; `all` for every recipe.
    #[arg(long = "as", value_name = "RECIPE,…", value_parser = recipes)]
    recipes: Option<Recipes>,
    /// The importance matrix to give llama-quantize; moeplan does not read it.
    #[arg(long, value_name = "FILE", requires = "recipes")]
    imatrix: Option<PathBuf>,
    /// Use one type for all tensors (llama-quantize: --pure).
    #[arg(long, requires = "recipes")]
    pure: bool,
    /// Keep the type of the output tensor (llama-quantize: --leave-output-tensor).
    #[arg(long, requires = "recipes")]
    leave_output_tensor: bool,
    /// The type of the output tensor (llama-quantize: --output-tensor-type).
    #[arg(long, value_name = "TYPE", value_parser = writable, requires = "recipes")]
    output_tensor_type: Option<GgmlType>,
    /// The type of the token embeddings (llama-quantize: --token-embedding-type).
    #[arg(long, value_name = "TYPE", value_parser = writable, requires = "recipes")]
    token_embedding_type: Option<GgmlType>,
    /// The type of the tensors that REGEX matches; the first match wins (llama-quantize: --tensor-type).
    #[arg(long, value_name = "REGEX=TYPE", value_parser = named_type, requires = "recipes")]
    tensor_type: Vec<(String, GgmlType)>,
}

/// Recipes as they are typed, without repetition.
type Recipes = Vec<Recipe>;

fn recipes(text: &str) -> Result<Recipes, String> {
    let one_of = format!("one of {}, or all", recipe::names());
    let mut recipes = Recipes::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match recipe::named(name) {
            Some(recipe) if recipes.contains(&recipe) => {}
            Some(recipe) => recipes.push(recipe),
            None if name.eq_ignore_ascii_case("all") => recipes = RECIPES.iter().collect(),
            // Unsloth's own mixes: a type for each tensor, which no recipe says.
            None if name.to_ascii_uppercase().starts_with("UD-") => {
                return Err(format!(
                    "`{name}` is a mix of Unsloth's, not a recipe of llama-quantize: its sizes are in its file, \
                     hf:unsloth/REPO:{name}; or take {one_of}"
                ));
            }
            None => return Err(format!("`{name}` is not a recipe of llama-quantize: {one_of}")),
        }
    }
    if recipes.is_empty() { Err(format!("name a recipe: {one_of}")) } else { Ok(recipes) }
}

/// `attn_v=q8_0`. llama-quantize takes the regex in lower case.
fn named_type(text: &str) -> Result<(String, GgmlType), String> {
    let (name, ty) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write REGEX=TYPE")?;
    pattern::parse(&name.to_lowercase())?;
    Ok((name.to_lowercase(), writable(ty)?))
}

fn writable(name: &str) -> Result<GgmlType, String> {
    let ty = GgmlType::from_name(name).ok_or("not a type of ggml: write q8_0, q4_K, f16 …")?;
    if quantize::is_writable(ty) { Ok(ty) } else { Err("llama-quantize cannot write this type".into()) }
}

/// A model that does not exist, its path, and how it would be made.
#[derive(Debug)]
pub struct Variant {
    pub model: Model,
    /// What `llama-quantize` would write.
    pub path: String,
    pub what_if: WhatIf,
}

impl WhatIfArgs {
    /// What is asked for; none where MODEL is meant itself.
    pub fn recipes(&self) -> &[Recipe] {
        self.recipes.as_deref().unwrap_or_default()
    }

    /// What llama-quantize would make of a model that is shown as `source` and lies in `first`.
    pub fn variant(&self, model: &Model, source: &str, first: &str, recipe: Recipe) -> anyhow::Result<Variant> {
        let pattern = |(text, ty): &(String, GgmlType)| Some((pattern::parse(text).ok()?, *ty));
        let patterns: Vec<(pattern::Pattern, GgmlType)> = self.tensor_type.iter().filter_map(pattern).collect();
        let named = |name: &str| patterns.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, ty)| *ty);
        let options = Options {
            imatrix: self.imatrix.is_some(),
            pure: self.pure,
            keep_output: self.leave_output_tensor,
            output: self.output_tensor_type,
            token_embedding: self.token_embedding_type,
            named: if patterns.is_empty() { None } else { Some(&named) },
        };
        let path = output_path(first, recipe.name);
        let made = quantize::predict(model, recipe, &options, Path::new(&path))
            .with_context(|| format!("`{source}` as {}", recipe.name))?;
        let words = self.words(&made, first, &path, recipe);
        let command = words.iter().filter_map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let what_if = WhatIf {
            recipe: recipe.name.into(),
            source: source.to_string(),
            imatrix: made.imatrix,
            fallbacks: made.fallbacks,
            requantized: made.requantized,
            command,
        };
        Ok(Variant { model: made.model, path, what_if })
    }

    /// The command line that makes it (`tools/quantize/quantize.cpp`, b11434).
    fn words(&self, made: &quantize::Prediction, input: &str, output: &str, recipe: Recipe) -> Vec<String> {
        let needed = (made.imatrix == Imatrix::Needed).then(|| "imatrix.gguf".to_string());
        let imatrix = self.imatrix.as_ref().map(|file| file.display().to_string()).or(needed);
        let switch = |is_on: bool| is_on.then(String::new);
        let named = self.tensor_type.iter().map(|(text, ty)| ("--tensor-type", Some(format!("{text}={ty}"))));
        let flags = [
            ("--allow-requantize", switch(made.requantized > 0)),
            ("--imatrix", imatrix),
            ("--leave-output-tensor", switch(self.leave_output_tensor)),
            ("--pure", switch(self.pure)),
            ("--output-tensor-type", self.output_tensor_type.map(|ty| ty.to_string())),
            ("--token-embedding-type", self.token_embedding_type.map(|ty| ty.to_string())),
        ];
        let given = flags.into_iter().chain(named).filter_map(|(flag, value)| Some([flag.to_string(), value?]));
        let flags = given.flatten().filter(|word| !word.is_empty());
        let files = [input, output, recipe.name].map(str::to_string);
        ["llama-quantize".to_string()].into_iter().chain(flags).chain(files).collect()
    }
}

/// The path of a model's first file as llama-quantize would be given it: of one that is not here, the name it has there.
pub fn first_file(model: &Path, gguf: &Gguf) -> String {
    let shown = model_arg::shown(model, gguf);
    if matches!(Location::parse(&shown), Ok(Location::Here(_)) | Err(_)) {
        return shown;
    }
    let address = gguf.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
    let path = address.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("model.gguf").to_string()
}

/// `phi-F16.gguf` as Q4_K_M is `phi-Q4_K_M.gguf`, beside it; never the file itself.
fn output_path(input: &str, recipe: &str) -> String {
    let path = Path::new(input);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("model.gguf");
    let whole = shards::parse_name(name).map_or(name, |(prefix, _)| prefix);
    let stem = whole.strip_suffix(".gguf").unwrap_or(whole);
    let is_mix = |mix: &str| recipe::named(mix).is_some() || mix.eq_ignore_ascii_case("NVFP4");
    let bare = stem.rsplit_once(['-', '.']).filter(|(bare, mix)| !bare.is_empty() && is_mix(mix));
    let beside = |stem: &str| path.with_file_name(format!("{stem}-{recipe}.gguf")).display().to_string();
    let output = beside(bare.map_or(stem, |(bare, _)| bare));
    if output == input { beside(stem) } else { output }
}

/// What to know of a model that does not exist.
pub fn warnings(what_if: &WhatIf, path: &str) -> Vec<Warning> {
    let WhatIf { recipe, source, imatrix, requantized, command, .. } = what_if;
    let warning = |code: &'static str, message, hint: &str| Warning { code: code.into(), message, hint: hint.into() };
    let made = format!("with the types that llama-quantize b{REFERENCE} gives it");
    let predicted = format!("`{path}` is predicted from the header of `{source}`, {made}");
    let imatrix = (*imatrix == Imatrix::Needed).then(|| {
        let message =
            format!("llama-quantize refuses {recipe} without an importance matrix: the prediction assumes one");
        warning("imatrix-needed", message, "llama-imatrix makes one; --imatrix FILE names it")
    });
    let again = (*requantized > 0).then(|| {
        let message =
            format!("{requantized} tensors of `{source}` are quantized already and would be converted from that");
        warning("requantized", message, "a file of F32, F16 or BF16 gives a better result")
    });
    let made = warning("what-if", predicted, &format!("this makes it: {command}"));
    [made].into_iter().chain(imatrix).chain(again).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_a_list_and_types_by_hand_are_those_that_can_be_written() {
        let names = |text| recipes(text).map(|recipes| recipes.iter().map(|recipe| recipe.name).collect::<Vec<_>>());
        assert_eq!(names("q4_k_m, Q6_K,Q4_K"), Ok(vec!["Q4_K_M", "Q6_K"]));
        assert_eq!(names("all").map(|names| names.len()), Ok(RECIPES.len()));
        assert!(names("Q4_X").is_err_and(|error| error.contains("`Q4_X` is not a recipe") && error.contains("IQ4_XS")));
        assert!(names("UD-Q3_K_XL").is_err_and(|error| error.contains("hf:unsloth/REPO:UD-Q3_K_XL")));
        assert!(names(",").is_err());
        assert!(named_type("ATTN_V=Q8_0").is_ok_and(|(text, ty)| text == "attn_v" && ty.name == "q8_0"));
        for wrong in ["attn_v", "=q8_0", "attn_v=i32", "attn_v=q9", "(=q8_0"] {
            assert!(named_type(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_file_that_would_be_made_has_the_recipe_in_its_name() {
        for (input, output) in [
            ("phi.gguf", "phi-Q4_K_M.gguf"),
            ("a/phi-F16.gguf", "a/phi-Q4_K_M.gguf"),
            ("a.b/phi.bf16.gguf", "a.b/phi-Q4_K_M.gguf"),
            ("phi-moe-Q8_0-00001-of-00003.gguf", "phi-moe-Q4_K_M.gguf"),
            ("phi-Q4_K_M.gguf", "phi-Q4_K_M-Q4_K_M.gguf"),
            ("F16.gguf", "F16-Q4_K_M.gguf"),
        ] {
            assert_eq!(output_path(input, "Q4_K_M"), output, "{input}");
        }
    }
}
