//! Known models written as GGUF files: faithful headers, full size or tiny, with random weights or none.

pub mod output;
pub mod recipe;
pub mod spec;
pub mod tokenizer;
pub mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::bytes::Bytes;
use crate::expression::Dims;
use crate::gguf::writer::{NewFile, NewTensor, Scalar};
use crate::gguf::{self, ByteOrder};
use crate::model::Model;
use crate::quantize::Facts;
use crate::suggest::Refusal;

use recipe::Recipe;
use spec::Spec;

/// What is wanted of a spec.
#[derive(Debug, Clone)]
pub struct Wish {
    pub recipe: Option<Recipe>,
    /// The small sibling that llama.cpp loads and runs in a second.
    pub tiny: bool,
    pub blocks: Option<u32>,
    /// How many files; 1 for a model that is not split.
    pub shards: u16,
    pub version: u32,
    pub byte_order: ByteOrder,
}

impl Default for Wish {
    fn default() -> Self {
        Self { recipe: None, tiny: false, blocks: None, shards: 1, version: 3, byte_order: ByteOrder::Little }
    }
}

#[derive(Debug, Clone)]
pub struct Synthesis {
    pub spec: Spec,
    pub recipe: Recipe,
    pub files: Vec<NewFile>,
    pub totals: Totals,
    /// Its sums against the published ones, where those are known for this wish.
    pub published: Vec<Check>,
}

/// The metadata key, `true`, of every file that is written here: its weights are not real.
pub const MARK: &str = "moeplan.synthetic";

/// Sums over all tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    pub tensors: u64,
    pub parameters: u64,
    /// Bytes of all tensors, padding not counted.
    pub bytes: Bytes,
    /// By type: how many tensors and their bytes.
    pub by_type: BTreeMap<String, (u64, Bytes)>,
}

/// A total beside the published one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// `tensors`, `parameters`, `bytes` or a type's `tensors.f16`.
    pub what: String,
    pub expected: u64,
    pub found: u64,
    pub ok: bool,
}

/// A known model's header over a hole, as `folder/NAME.gguf`: full length, almost no disk. For examples and tests.
pub fn hole(name: &str, wish: &Wish, folder: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let synthesis = synthesize(&spec::named(name)?, wish)?;
    let watch = output::Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
    let path = folder.join(format!("{name}.gguf"));
    Ok(output::write(&synthesis, &path, output::Fill::Hole, false, watch)?.swap_remove(0))
}

/// The same model, read back.
pub fn model(name: &str, wish: &Wish) -> Result<Model, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    Ok(Model::from_gguf(gguf::open(&hole(name, wish, folder.path())?)?)?)
}

/// The recipe and the tensors of a wish: all that totals need, without the vocabulary.
pub fn tensors(spec: &Spec, wish: &Wish) -> Result<(Recipe, Vec<NewTensor>), Refusal> {
    let recipe = wish.recipe.or_else(|| recipe::named(&spec.recipe));
    let recipe = recipe.ok_or_else(|| spec.bad(format!("no recipe `{}`", spec.recipe)))?;
    let dims = spec.dims(wish.tiny, wish.blocks);
    let mut tensors = spec.tensors(&dims)?;
    if spec.is_projector() {
        recipe::assign_projector(recipe, &mut tensors);
    } else {
        recipe::assign(recipe, &facts(spec, &dims)?, &mut tensors)?;
    }
    Ok((recipe, tensors))
}

fn facts(spec: &Spec, dims: &Dims) -> Result<Facts, Refusal> {
    let number = |name| spec.number(name, dims);
    let keys = spec.keys(dims)?;
    // Of the first block, where blocks differ.
    let heads = |key: &str, name| match keys.iter().find(|(known, _)| known.ends_with(key)) {
        Some((_, Scalar::I32s(by_block))) => Ok(by_block.first().and_then(|n| u64::try_from(*n).ok()).unwrap_or(0)),
        _ => number(name),
    };
    let (n_head, n_head_kv) =
        (heads(".attention.head_count", "n_head")?, heads(".attention.head_count_kv", "n_head_kv")?);
    Ok(Facts::new(&spec.architecture, number("n_layer")?, number("n_expert")?, n_head, n_head_kv))
}

pub fn synthesize(spec: &Spec, wish: &Wish) -> Result<Synthesis, Refusal> {
    let (recipe, tensors) = tensors(spec, wish)?;
    let totals = totals(&tensors);
    let published = if wish.tiny || wish.blocks.is_some() { Vec::new() } else { checks(spec, recipe, &totals) };
    let text = |text: &str| Scalar::String(text.to_string());
    let name = if wish.tiny { format!("{} tiny", spec.model) } else { spec.model.clone() };
    let mut metadata = vec![
        ("general.architecture".to_string(), text(&spec.architecture)),
        ("general.type".into(), text(if spec.is_projector() { "mmproj" } else { "model" })),
        ("general.name".into(), text(&name)),
    ];
    let dims = spec.dims(wish.tiny, wish.blocks);
    metadata.extend(spec.keys(&dims)?);
    metadata.push(("general.file_type".into(), Scalar::U32(recipe.file_type)));
    metadata.push(("general.quantization_version".into(), Scalar::U32(2)));
    metadata.push((MARK.into(), Scalar::Bool(true)));
    if !spec.is_projector() {
        metadata.extend(tokenizer::keys(spec, &dims, wish.tiny)?);
    }
    let whole = NewFile { version: wish.version, byte_order: wish.byte_order, alignment: 32, metadata, tensors };
    let files = split(whole, wish.shards, &totals)
        .ok_or_else(|| spec.bad(format!("{} tensors cannot be split into {} files", totals.tensors, wish.shards)))?;
    Ok(Synthesis { spec: spec.clone(), recipe, files, totals, published })
}

pub fn totals(tensors: &[NewTensor]) -> Totals {
    let mut totals = Totals { tensors: tensors.len() as u64, ..Totals::default() };
    for tensor in tensors {
        let bytes = Bytes(tensor.bytes().unwrap_or_else(|| panic!("{}: rows of whole blocks", tensor.name)));
        totals.parameters += tensor.elements();
        totals.bytes += bytes;
        let of_type = totals.by_type.entry(tensor.ty.name.to_string()).or_default();
        of_type.0 += 1;
        of_type.1 += bytes;
    }
    totals
}

pub fn checks(spec: &Spec, recipe: Recipe, totals: &Totals) -> Vec<Check> {
    let published = &spec.published;
    let mut rows = vec![
        ("tensors".to_string(), published.tensors, totals.tensors),
        ("parameters".into(), published.parameters, totals.parameters),
        ("bytes".into(), published.bytes.get(recipe.name).copied(), totals.bytes.0),
    ];
    for (ty, expected) in published.types.get(recipe.name).into_iter().flatten() {
        rows.push((format!("tensors.{ty}"), Some(*expected), totals.by_type.get(ty).map_or(0, |row| row.0)));
    }
    rows.into_iter()
        .filter_map(|(what, expected, found)| {
            expected.map(|expected| Check { what, expected, found, ok: expected == found })
        })
        .collect()
}

/// Cuts a file into `n` of about equal bytes; the first keeps the metadata, all say which they are
/// (llama.cpp: `tools/gguf-split`, `split.no`, `split.count`, `split.tensors.count`; b11434).
fn split(mut whole: NewFile, n: u16, totals: &Totals) -> Option<Vec<NewFile>> {
    if n == 0 || u64::from(n) > totals.tensors {
        return None;
    }
    if n == 1 {
        return Some(vec![whole]);
    }
    let mut left = std::mem::take(&mut whole.tensors).into_iter().peekable();
    let (mut files, mut taken) = (Vec::new(), 0);
    for number in 0..n {
        let mut file = NewFile { metadata: Vec::new(), ..whole.clone() };
        if number == 0 {
            file.metadata = std::mem::take(&mut whole.metadata);
        }
        file.metadata.extend([
            ("split.no".to_string(), Scalar::U16(number)),
            ("split.count".into(), Scalar::U16(n)),
            ("split.tensors.count".into(), Scalar::I32(i32::try_from(totals.tensors).ok()?)),
        ]);
        let until = totals.bytes.0 / u64::from(n) * (u64::from(number) + 1);
        let needed_after = usize::from(n - 1 - number);
        while left.len() > needed_after && (file.tensors.is_empty() || number == n - 1 || taken < until) {
            let tensor = left.next()?;
            taken += tensor.bytes()?;
            file.tensors.push(tensor);
        }
        files.push(file);
    }
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> Spec {
        spec::named(name).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_published_total_is_equalled_and_every_tiny_sibling_is_small() {
        for name in spec::names() {
            let spec = spec(&name);
            let (recipe, all) = tensors(&spec, &Wish::default()).unwrap_or_else(|error| panic!("{error}"));
            let checks = checks(&spec, recipe, &totals(&all));
            assert!(!checks.is_empty() && checks.iter().all(|check| check.ok), "{name}: {checks:?}");
            for recipe in ["F16", "BF16", "Q8_0"].map(recipe::named) {
                let (_, tensors) = tensors(&spec, &Wish { tiny: true, recipe, ..Wish::default() }).unwrap();
                let bytes = totals(&tensors).bytes;
                assert!(bytes <= Bytes::mib(16), "{name} {recipe:?}: {bytes}");
            }
        }
    }

    #[test]
    fn what_recipes_ask_of_a_spec_is_what_its_file_says() {
        for name in spec::names() {
            let ours = facts(&spec(&name), &spec(&name).dims(true, None)).unwrap();
            let theirs = Facts::of(&model(&name, &Wish { tiny: true, ..Wish::default() }).unwrap());
            let of = |facts: &Facts| (facts.n_layer_all, facts.n_expert, facts.n_gqa);
            assert_eq!(of(&ours), of(&theirs), "{name}");
        }
    }

    /// Against `testdata/synth/recipes.txt`: 9 models by 19 recipes.
    #[test]
    fn type_mixes_are_those_of_llama_quantize() {
        let expected = include_str!("../../testdata/synth/recipes.txt");
        let mut rows = 0;
        let mut models = BTreeMap::new();
        for line in expected.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            let [model, mix, bytes, types @ ..] = words.as_slice() else { panic!("{line}") };
            let (facts, tensors) = models.entry(*model).or_insert_with(|| {
                let spec = spec(model);
                let dims = spec.dims(false, None);
                (facts(&spec, &dims).unwrap(), spec.tensors(&dims).unwrap())
            });
            let mut tensors = tensors.clone();
            recipe::assign(recipe::named(mix).unwrap(), facts, &mut tensors).unwrap();
            let totals = totals(&tensors);
            let found: Vec<String> = totals
                .by_type
                .iter()
                .map(|(ty, (tensors, bytes))| format!("{}:{tensors}:{}", ty.to_lowercase(), bytes.0))
                .collect();
            assert_eq!(found, types, "{model} {mix}");
            assert_eq!(totals.bytes.0.to_string(), **bytes, "{model} {mix}");
            rows += 1;
        }
        assert_eq!(rows, 171);
    }

    #[test]
    fn projectors_have_the_published_tensors_and_load() {
        use crate::gguf;
        use crate::model::{Model, projector};
        let folder = tempfile::tempdir().unwrap();
        for name in spec::projectors() {
            let spec = spec(&name);
            for (tiny, recipe) in [(false, None), (true, None), (true, recipe::named("Q8_0"))] {
                let synthesis = synthesize(&spec, &Wish { recipe, tiny, ..Wish::default() }).unwrap();
                assert!(synthesis.published.iter().all(|check| check.ok), "{name}: {:?}", synthesis.published);
                let watch = output::Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
                let path = folder.path().join(format!("{name}.gguf"));
                output::write(&synthesis, &path, output::Fill::Hole, true, watch).unwrap();
                let (model, _) = Model::as_far_as_readable(gguf::open(&path).unwrap());
                let encoders = projector::encoders(&model, [0, 0]).unwrap_or_else(|fault| panic!("{name}: {fault}"));
                assert_eq!(encoders[0].loaded().count(), model.tensors.len(), "{name}");
            }
        }
    }

    #[test]
    fn a_split_keeps_every_tensor_once_and_no_file_empty() {
        let spec = spec("olmoe-1b-7b");
        let make = |shards| synthesize(&spec, &Wish { shards, tiny: true, ..Wish::default() });
        let whole = make(1).unwrap();
        for shards in [2, 3, 7] {
            let split = make(shards).unwrap();
            assert_eq!(split.files.len(), usize::from(shards));
            assert!(split.files.iter().all(|file| !file.tensors.is_empty()));
            let joined: Vec<NewTensor> = split.files.iter().flat_map(|file| file.tensors.clone()).collect();
            assert_eq!(joined, whole.files[0].tensors);
            assert!(split.files[1].metadata.iter().all(|(key, _)| key.starts_with("split.")));
        }
        assert!(make(1000).is_err());
    }
}
