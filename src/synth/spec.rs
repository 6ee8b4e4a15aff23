//! Spec files (`rules/models/*.yaml`): a published model as data; a spec `like` another states only what differs.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml::{Mapping, Value as Yaml};

use crate::expression::{self, Dims};
use crate::gguf::writer::{NewTensor, Scalar};
use crate::gguf::{GgmlType, ggml_type};
use crate::suggest::{self, Refusal};

/// The spec files, compiled in: a new model is a new file.
static FILES: include_dir::Dir<'static> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/rules/models");

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The file's name without `.yaml`.
    #[serde(skip)]
    pub name: String,
    pub model: String,
    pub architecture: String,
    /// The recipe of the published file.
    pub recipe: String,
    /// Named dimensions; of a model, `n_layer`, `n_expert`, `n_head`, `n_head_kv`, `n_embd` and `n_vocab` are always there.
    pub dims: Dims,
    /// Dimensions of the tiny sibling that differ.
    pub tiny: Dims,
    #[serde(default)]
    kinds: Kinds,
    keys: Mapping,
    tensors: TensorLists,
    /// A projector has none.
    #[serde(default)]
    pub tokenizer: Tokenizer,
    /// Totals of the published file, to be equalled.
    #[serde(default)]
    pub published: Published,
}

/// What each block is, where no expression says it: a letter a block, from the first again after the last. `kinds[i] == M` asks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kinds {
    full: String,
    tiny: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorLists {
    first: Mapping,
    block: Vec<Group>,
    last: Mapping,
}

/// Tensors of those blocks for which the condition holds (`i` is the block).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    when: Option<String>,
    tensors: Mapping,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`: `llama` (SentencePiece), `gpt2` (byte-level BPE) or `gemma4` (SentencePiece's tokens, BPE's merges).
    pub model: String,
    /// `tokenizer.ggml.pre`; empty for a file that has none.
    #[serde(default)]
    pub pre: String,
    /// Id of the first of `special`: an expression.
    pub first_special: Option<String>,
    /// Control tokens, in a row.
    #[serde(default)]
    pub special: Vec<String>,
    /// `tokenizer.ggml.<key>` by the text of the token.
    #[serde(default)]
    pub ids: BTreeMap<String, String>,
    /// `tokenizer.ggml.<key>`, booleans.
    #[serde(default)]
    pub flags: BTreeMap<String, bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    pub tensors: Option<u64>,
    pub parameters: Option<u64>,
    /// Bytes of all tensors without padding, by recipe.
    #[serde(default)]
    pub bytes: BTreeMap<String, u64>,
    #[serde(default)]
    pub types: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The models.
pub fn names() -> Vec<String> {
    named_by(|name| !is_projector(name))
}

/// The multimodal projectors.
pub fn projectors() -> Vec<String> {
    named_by(is_projector)
}

fn is_projector(name: &str) -> bool {
    name.starts_with("mmproj-")
}

fn named_by(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let names = FILES.files().filter_map(|file| file.path().file_stem()?.to_str());
    let mut names: Vec<String> = names.filter(|name| wanted(name)).map(str::to_string).collect();
    names.sort();
    names
}

#[expect(clippy::needless_pass_by_value, reason = "an error or a text, as it comes")]
fn bad(name: &str, problem: impl ToString) -> Refusal {
    Refusal::new(format!("spec `{name}`: {}", problem.to_string()), "")
}

fn unknown(name: &str) -> Refusal {
    let names = named_by(|_| true);
    let known = names.join(", ");
    let hint = suggest::did_you_mean(name, names.iter().map(String::as_str)).unwrap_or_default();
    Refusal::new(format!("`{name}` is not a known model: use one of {known} (`moeplan synth --list` says more)"), hint)
}

pub fn named(name: &str) -> Result<Spec, Refusal> {
    let merged = merged(name, 0)?;
    let spec: Spec = serde_yaml::from_value(Yaml::Mapping(merged)).map_err(|error| bad(name, error))?;
    Ok(Spec { name: name.to_string(), ..spec })
}

/// The mapping of a spec file over that of the one it is like.
fn merged(name: &str, depth: usize) -> Result<Mapping, Refusal> {
    let text =
        FILES.get_file(format!("{name}.yaml")).and_then(|file| file.contents_utf8()).ok_or_else(|| unknown(name))?;
    let mut own: Mapping = serde_yaml::from_str(text).map_err(|error| bad(name, error))?;
    let mut base = Mapping::new();
    if let Some(like) = own.shift_remove("like") {
        let like = like.as_str().filter(|_| depth < 5).ok_or_else(|| bad(name, "`like` names a spec"))?;
        base = merged(like, depth + 1)?;
        base.shift_remove("published");
    }
    Ok(overlay(base, own))
}

/// `own` over `base`: mappings key by key, everything else replaced; a null takes a key away.
fn overlay(mut base: Mapping, own: Mapping) -> Mapping {
    for (key, value) in own {
        let value = match value {
            Yaml::Null => {
                base.shift_remove(&key);
                continue;
            }
            Yaml::Mapping(above) if !above.contains_key("when") => {
                let below = base.get(&key).and_then(Yaml::as_mapping).cloned();
                Yaml::Mapping(overlay(below.unwrap_or_default(), above))
            }
            value => value,
        };
        base.insert(key, value);
    }
    base
}

impl Spec {
    /// Whether it is a multimodal projector, not a model.
    pub fn is_projector(&self) -> bool {
        is_projector(&self.name)
    }

    /// The dimensions: of the model or its tiny sibling, cut to `blocks` where given.
    pub fn dims(&self, tiny: bool, blocks: Option<u32>) -> Dims {
        let mut dims = self.dims.clone();
        if tiny {
            dims.extend(self.tiny.clone());
        }
        if let Some(blocks) = blocks {
            dims.insert("n_layer".into(), blocks.into());
        }
        let kinds = if tiny { &self.kinds.tiny } else { &self.kinds.full };
        let n_layer = dims.get("n_layer").copied().unwrap_or_default();
        for (i, kind) in (0..n_layer).zip(kinds.chars().cycle()) {
            dims.insert(kind.into(), u32::from(kind).into());
            dims.insert(format!("kinds[{i}]"), u32::from(kind).into());
        }
        dims
    }

    /// The value of an expression, which must not be negative.
    pub fn number(&self, text: &str, dims: &Dims) -> Result<u64, Refusal> {
        let value = expression::evaluate(text, dims).map_err(|error| self.bad(error))?;
        u64::try_from(value).map_err(|_| self.bad(format!("`{text}` is {value}")))
    }

    pub(super) fn bad(&self, problem: impl ToString) -> Refusal {
        bad(&self.name, problem)
    }

    /// The `<arch>.*` keys and `general.*` keys of the file, in order.
    pub fn keys(&self, dims: &Dims) -> Result<Vec<(String, Scalar)>, Refusal> {
        let mut keys = Vec::with_capacity(self.keys.len());
        for (key, mut value) in &self.keys {
            let key = key.as_str().ok_or_else(|| self.bad("a key is text"))?;
            if let Some(when) = value.get("when").and_then(Yaml::as_str) {
                if self.number(when, dims)? == 0 {
                    continue;
                }
                value = value.get("value").ok_or_else(|| self.bad(format!("`{key}` has no value")))?;
            }
            let full = if key.starts_with("general.") { key.into() } else { format!("{}.{key}", self.architecture) };
            keys.push((full, self.scalar(key, value, dims)?));
        }
        Ok(keys)
    }

    /// Integers become `u32`, other numbers `f32`, lists of them arrays (of `i32`, as converters write them); text that begins with `=`
    /// is an expression, and so is `block`: a list of its value in each block, `as` numbers, `bool` or `f32`.
    fn scalar(&self, key: &str, value: &Yaml, dims: &Dims) -> Result<Scalar, Refusal> {
        let integer =
            |n: u64| u32::try_from(n).map(Scalar::U32).map_err(|_| self.bad(format!("`{key}`: {n} exceeds 32 bits")));
        Ok(match value {
            Yaml::Mapping(list) => {
                let each = list.get("block").and_then(Yaml::as_str);
                let each = each.ok_or_else(|| self.bad(format!("`{key}`: a list by `block` is an expression")))?;
                let mut dims = dims.clone();
                let values = (0..self.number("n_layer", &dims)?).map(|i| {
                    dims.insert("i".into(), i64::try_from(i).unwrap_or(i64::MAX));
                    self.number(each, &dims)
                });
                let values: Vec<u64> = values.collect::<Result<_, _>>()?;
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                match list.get("as").and_then(Yaml::as_str) {
                    None => Scalar::I32s(values.into_iter().map(|n| i32::try_from(n).unwrap_or(i32::MAX)).collect()),
                    Some("bool") => Scalar::Bools(values.into_iter().map(|n| n != 0).collect()),
                    Some("f32") => Scalar::F32s(values.into_iter().map(|n| n as f32).collect()),
                    Some(other) => return Err(self.bad(format!("`{key}`: a list is `as` bool or f32, not {other}"))),
                }
            }
            Yaml::Bool(b) => Scalar::Bool(*b),
            Yaml::Sequence(items) => {
                let items: Vec<Scalar> =
                    items.iter().map(|item| self.scalar(key, item, dims)).collect::<Result<_, _>>()?;
                let integers = items
                    .iter()
                    .map(|item| if let Scalar::U32(n) = item { i32::try_from(*n).ok() } else { None })
                    .collect();
                let floats = items.iter().map(|item| if let Scalar::F32(x) = item { Some(*x) } else { None }).collect();
                match (integers, floats) {
                    (Some(integers), _) => Scalar::I32s(integers),
                    (None, Some(floats)) => Scalar::F32s(floats),
                    (None, None) => return Err(self.bad(format!("`{key}`: a list has numbers of one kind"))),
                }
            }
            Yaml::String(text) => match text.strip_prefix('=') {
                Some(expression) => integer(self.number(expression, dims)?)?,
                None => Scalar::String(text.clone()),
            },
            _ => match (value.as_u64(), value.as_f64()) {
                (Some(n), _) => integer(n)?,
                #[expect(clippy::cast_possible_truncation, reason = "GGUF keys of this kind are 32-bit floats")]
                (None, Some(x)) => Scalar::F32(x as f32),
                (None, None) => return Err(self.bad(format!("`{key}`: a value must be a number, a boolean or text"))),
            },
        })
    }

    /// All tensors in file order, of F32, or of the type that `{shape, type}` states.
    pub fn tensors(&self, dims: &Dims) -> Result<Vec<NewTensor>, Refusal> {
        let n_layer = self.number("n_layer", dims)?;
        let mut tensors = Vec::new();
        self.push(&mut tensors, "", &self.tensors.first, dims)?;
        let mut dims = dims.clone();
        for i in 0..n_layer {
            dims.insert("i".into(), i64::try_from(i).unwrap_or(i64::MAX));
            for group in &self.tensors.block {
                let holds = match &group.when {
                    Some(when) => self.number(when, &dims)? != 0,
                    None => true,
                };
                if holds {
                    self.push(&mut tensors, &format!("blk.{i}."), &group.tensors, &dims)?;
                }
            }
        }
        self.push(&mut tensors, "", &self.tensors.last, &dims)?;
        Ok(tensors)
    }

    fn push(&self, tensors: &mut Vec<NewTensor>, prefix: &str, list: &Mapping, dims: &Dims) -> Result<(), Refusal> {
        for (name, shape) in list {
            let bad = || self.bad("a tensor is `name: [dimensions]`, one to four of them of at least 1");
            let ty = match shape.get("type").and_then(Yaml::as_str) {
                Some(name) => GgmlType::from_name(name).ok_or_else(|| self.bad(format!("no type `{name}`")))?,
                None => ggml_type::f32(),
            };
            let shape = shape.get("shape").unwrap_or(shape);
            let dim = |dim: &Yaml| match dim {
                Yaml::String(text) => self.number(text, dims),
                _ => dim.as_u64().ok_or_else(bad),
            };
            let shape = shape.as_sequence().ok_or_else(bad)?.iter().map(dim).collect::<Result<Vec<u64>, Refusal>>()?;
            if !(1..=4).contains(&shape.len()) || shape.contains(&0) {
                return Err(bad());
            }
            let name = name.as_str().ok_or_else(bad)?;
            // A name may say itself where the block's number goes.
            let name = match (name.contains('#'), dims.get("i")) {
                (true, Some(i)) => name.replace('#', &i.to_string()),
                _ => format!("{prefix}{name}"),
            };
            tensors.push(NewTensor { name, ty, shape });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_like_another_states_only_what_differs() {
        let spec = named("deepseek-v2-lite").unwrap();
        // llama.cpp's converter writes no rank of the queries.
        for (blocks, has_rank) in [(None, false), (Some(4), true)] {
            let keys = spec.keys(&spec.dims(false, blocks)).unwrap();
            assert_eq!(keys.iter().any(|(key, _)| key == "deepseek2.attention.q_lora_rank"), has_rank);
        }
        assert!(named("no-such").unwrap_err().message.contains("known model"));
    }
}
