//! Published files rebuilt from their specs: parameters, tensors, bytes and context equal what llama.cpp printed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use moeplan::bytes::GIB;
use moeplan::gguf::ggml_type::GgmlType;
use moeplan::gguf::writer::{NewTensor, Scalar};
use moeplan::memory::context;
use moeplan::model::Model;
use moeplan::synth::output::{Fill, Watch, write};
use moeplan::synth::{self, Synthesis, Wish, recipe, spec, synthesize};
use serde::Deserialize;

const GIGA: u64 = 1_000_000_000;
const TERA: u64 = 1000 * GIGA;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    rebuilt: Vec<Published>,
    not_rebuilt: Vec<NotRebuilt>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NotRebuilt {
    name: String,
    reason: String,
}

/// One published file; `testdata/real-headers.yaml` says what each field is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    name: String,
    source: String,
    spec: Option<String>,
    recipe: Option<String>,
    header: Option<String>,
    mix: Option<String>,
    legacy: Option<Legacy>,
    #[serde(default)]
    retype: Vec<(String, String)>,
    #[serde(default)]
    keys: BTreeMap<String, Option<u32>>,
    stated: Stated,
    #[serde(default)]
    kv: BTreeMap<String, u64>,
    context: Context,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Legacy {
    /// `ffn_up.3.weight` …: counted, since llama.cpp no longer loads them.
    OneTensorAnExpert,
    /// `attn_kv_b` where `attn_k_b` and `attn_v_b` are now.
    AttnKvB,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    tensors: u64,
    types: BTreeMap<String, u64>,
    parameters: String,
    size: Option<String>,
    repeating: Option<String>,
    bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    layers: u64,
    k: u64,
    v: u64,
    fixed: u64,
}

impl Published {
    /// The tensors as the published file has them; the type of `f32` tensors of a listing stays.
    fn adapt(&self, tensors: &mut Vec<NewTensor>) {
        if self.legacy == Some(Legacy::AttnKvB) {
            tensors.retain(|tensor| !tensor.name.ends_with("attn_v_b.weight"));
            for tensor in tensors.iter_mut().filter(|tensor| tensor.name.ends_with("attn_k_b.weight")) {
                // [n_lora_kv, n_head × (128 of K without rotation + 128 of V)]
                tensor.name = tensor.name.replace("attn_k_b", "attn_kv_b");
                tensor.shape = vec![512, 128 * (128 + 128)];
            }
        }
        let rules: Vec<(regex::Regex, GgmlType)> = self
            .retype
            .iter()
            .map(|(pattern, ty)| {
                (regex::Regex::new(&format!("^({pattern})$")).unwrap(), GgmlType::from_name(ty).unwrap())
            })
            .collect();
        for tensor in tensors.iter_mut() {
            let rule = rules.iter().find(|(pattern, _)| pattern.is_match(&tensor.name));
            if let Some((_, ty)) = rule.filter(|_| self.header.is_none() || tensor.ty.name != "f32") {
                tensor.ty = *ty;
            }
        }
    }

    fn synthesis(&self, spec_name: &str) -> Synthesis {
        let recipe = self.recipe.as_deref().map(|name| recipe::named(name).unwrap());
        let wish = Wish { recipe, ..Wish::default() };
        let mut synthesis = synthesize(&spec::named(spec_name).unwrap(), &wish).unwrap();
        let file = &mut synthesis.files[0];
        self.adapt(&mut file.tensors);
        for (key, value) in &self.keys {
            let key = format!("{}.{key}", synthesis.spec.architecture);
            file.metadata.retain(|(name, _)| *name != key);
            file.metadata.extend(value.map(|value| (key, Scalar::U32(value))));
        }
        synthesis
    }

    /// The model and its tensors in the types of the published file.
    fn rebuild(&self, folder: &Path) -> (Model, Vec<NewTensor>) {
        if let Some(header) = &self.header {
            let model = open(&folder.join(format!("{header}.gguf")));
            let mut tensors: Vec<NewTensor> = model
                .tensors
                .iter()
                .map(|tensor| NewTensor { name: tensor.name.clone(), ty: tensor.ty, shape: tensor.shape.to_vec() })
                .collect();
            self.adapt(&mut tensors);
            return (model, tensors);
        }
        let synthesis = self.synthesis(self.spec.as_deref().expect("a spec or a header"));
        let path = folder.join("rebuilt.gguf");
        let stop = AtomicBool::new(false);
        write(&synthesis, &path, Fill::Hole, true, Watch { wrote: &|_| {}, stop: &stop }).unwrap();
        (open(&path), synthesis.files[0].tensors.clone())
    }

    /// How far the recipe alone is from the published mix, in words.
    fn unmixed(&self, mix: &str) -> String {
        let Some((spec_name, recipe_name)) = self.spec.as_deref().zip(self.recipe.as_deref()) else {
            return format!(" ({mix})");
        };
        let wish = Wish { recipe: recipe::named(recipe_name), ..Wish::default() };
        let (_, tensors) = synth::tensors(&spec::named(spec_name).unwrap(), &wish).unwrap();
        let size = rounded(synth::totals(&tensors).bytes.0, GIB, "0.000 GiB");
        format!(" (not the recipe's types: {mix}; {recipe_name} as synth writes it: {size})")
    }

    /// Every figure that differs, in words.
    fn differences(&self, model: &Model, tensors: &[NewTensor]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |what: &str, found: String, stated: String| {
            if found != stated {
                wrong.push(format!("{}: {what} {found}, stated {stated} ({})", self.name, self.source));
            }
        };
        let totals = synth::totals(tensors);
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for tensor in tensors {
            let each = self.legacy == Some(Legacy::OneTensorAnExpert) && tensor.name.ends_with("_exps.weight");
            *types.entry(tensor.ty.name.to_lowercase()).or_default() += if each { tensor.shape[2] } else { 1 };
        }
        let stated_types: BTreeMap<String, u64> =
            self.stated.types.iter().map(|(ty, n)| (ty.to_lowercase(), *n)).collect();
        check("tensors", types.values().sum::<u64>().to_string(), self.stated.tensors.to_string());
        check("types", format!("{types:?}"), format!("{stated_types:?}"));
        check(
            "parameters",
            rounded(
                totals.parameters,
                if self.stated.parameters.ends_with('T') { TERA } else { GIGA },
                &self.stated.parameters,
            ),
            self.stated.parameters.clone(),
        );
        let repeating: Vec<NewTensor> = tensors.iter().filter(|t| t.name.starts_with("blk.")).cloned().collect();
        for (what, bytes, stated) in [
            ("size", totals.bytes.0, &self.stated.size),
            ("repeating layers", synth::totals(&repeating).bytes.0, &self.stated.repeating),
        ] {
            if let Some(stated) = stated {
                check(what, rounded(bytes, GIB, stated), stated.clone());
            }
        }
        if let Some(bytes) = self.stated.bytes {
            check("bytes", totals.bytes.0.to_string(), bytes.to_string());
        }
        for (key, stated) in &self.kv {
            check(key, format!("{:?}", model.hparams.u64(key)), format!("{:?}", Some(stated)));
        }
        let context = context::per_token(model, GgmlType::from_name("f16").unwrap()).unwrap();
        let Context { layers, k, v, fixed } = self.context;
        check("context bytes per token", context.per_token.0.to_string(), (2 * layers * (k + v)).to_string());
        check("context bytes that do not grow", context.fixed.0.to_string(), fixed.to_string());
        wrong
    }
}

fn open(path: &Path) -> Model {
    Model::from_gguf(moeplan::gguf::open(path).unwrap()).unwrap()
}

/// `figure` in units, with as many decimals and the same unit as `like`.
fn rounded(figure: u64, unit: u64, like: &str) -> String {
    let (number, name) = like.split_once(' ').unwrap();
    let decimals = number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    #[expect(clippy::cast_precision_loss, reason = "a printed figure has five digits")]
    let value = figure as f64 / unit as f64;
    format!("{value:.decimals$} {name}")
}

#[test]
#[expect(clippy::print_stdout, reason = "which files were rebuilt, and how, is for the reader of the test")]
fn published_files_rebuilt_have_the_figures_that_were_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let facts: Facts = serde_yaml::from_str(&std::fs::read_to_string(root.join("real-headers.yaml")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let archive = root.join("real-models.tar.xz");
    assert!(Command::new("tar").arg("-xJSf").arg(archive).arg("-C").arg(folder.path()).status().unwrap().success());
    let mut wrong = Vec::new();
    for published in &facts.rebuilt {
        let (model, tensors) = published.rebuild(folder.path());
        let differences = published.differences(&model, &tensors);
        let mix = published.mix.as_ref().map(|mix| published.unmixed(mix)).unwrap_or_default();
        println!("{}: {}{mix}", published.name, if differences.is_empty() { "equal" } else { "differs" });
        wrong.extend(differences);
    }
    for NotRebuilt { name, reason } in &facts.not_rebuilt {
        println!("{name}: not rebuilt: {reason}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
