//! Spec files (`rules/models/*.yaml`): a published model as data; a spec `like` another states only what differs.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml::{Mapping, Value as Yaml};

use crate::expression::{self, Dims};
use crate::gguf::writer::Scalar;
use crate::suggest::{self, Hint};

/// The spec files, compiled in: a new model is a new file.
static FILES: include_dir::Dir<'static> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/rules/models");

/// What is wrong with a spec file or a wish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{name}` is no known model: one of {known} (`moeplan synth --list` says more)")]
    Unknown { name: String, known: String },
    #[error("spec `{name}`: {source}")]
    Yaml { name: String, source: serde_yaml::Error },
    #[error("spec `{name}`: {source}")]
    Expression { name: String, source: expression::Error },
    #[error(transparent)]
    Mix(#[from] crate::quantize::Error),
    #[error("spec `{name}`: {problem}")]
    Bad { name: String, problem: String },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let Self::Unknown { name, known } = self else { return None };
        suggest::did_you_mean(name, known.split(", ")).map(Cow::Owned)
    }
}

/// A model that can be written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The file's name without `.yaml`.
    #[serde(skip)]
    pub name: String,
    /// `general.name`.
    pub model: String,
    /// `general.architecture`.
    pub architecture: String,
    /// The recipe of the published file.
    pub recipe: String,
    /// Named dimensions; `n_layer`, `n_expert`, `n_head`, `n_head_kv`, `n_embd` and `n_vocab` are always there.
    pub dims: Dims,
    /// Dimensions of the tiny sibling that differ.
    pub tiny: Dims,
    keys: Mapping,
    tensors: TensorLists,
    pub tokenizer: Tokenizer,
    /// Totals of the published file, to be equalled.
    #[serde(default)]
    pub published: Published,
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

/// The vocabulary of a spec.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`: `llama` (SentencePiece) or `gpt2` (byte-level BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`.
    pub pre: String,
    /// Id of the first of `special`: an expression.
    pub first_special: Option<String>,
    /// Control tokens, in a row.
    #[serde(default)]
    pub special: Vec<String>,
    /// `tokenizer.ggml.<key>` by the text of the token.
    #[serde(default)]
    pub ids: BTreeMap<String, Option<String>>,
    /// `tokenizer.ggml.<key>`, booleans.
    #[serde(default)]
    pub flags: BTreeMap<String, Option<bool>>,
}

/// Published totals.
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

/// A key that has a condition or a type of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Conditional {
    when: String,
    value: Yaml,
}

/// The names of all specs, sorted.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> =
        FILES.files().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_string())).collect();
    names.sort();
    names
}

/// The spec of a name.
pub fn named(name: &str) -> Result<Spec, Error> {
    let merged = merged(name, 0)?;
    let mut spec: Spec = serde_yaml::from_value(Yaml::Mapping(merged))
        .map_err(|source| Error::Yaml { name: name.to_string(), source })?;
    spec.name = name.to_string();
    Ok(spec)
}

/// The mapping of a spec file over that of the one it is like.
fn merged(name: &str, depth: usize) -> Result<Mapping, Error> {
    let bad = |problem: &str| Error::Bad { name: name.to_string(), problem: problem.to_string() };
    let text = FILES
        .get_file(format!("{name}.yaml"))
        .and_then(|file| file.contents_utf8())
        .ok_or_else(|| Error::Unknown { name: name.to_string(), known: names().join(", ") })?;
    let mut own: Mapping =
        serde_yaml::from_str(text).map_err(|source| Error::Yaml { name: name.to_string(), source })?;
    match own.remove("like") {
        None => Ok(without_nulls(own)),
        Some(_) if depth > 4 => Err(bad("`like` goes too deep")),
        Some(like) => {
            let like = like.as_str().ok_or_else(|| bad("`like` names a spec"))?;
            let mut base = merged(like, depth + 1)?;
            base.remove("published");
            Ok(without_nulls(overlay(base, own)))
        }
    }
}

/// `own` over `base`: mappings key by key, everything else replaced.
fn overlay(mut base: Mapping, own: Mapping) -> Mapping {
    for (key, value) in own {
        let value = match (base.get(&key), value) {
            (Some(Yaml::Mapping(below)), Yaml::Mapping(above)) if !above.contains_key("when") => {
                Yaml::Mapping(overlay(below.clone(), above))
            }
            (_, value) => value,
        };
        base.insert(key, value);
    }
    base
}

/// A null takes a key away.
fn without_nulls(mapping: Mapping) -> Mapping {
    mapping
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| match value {
            Yaml::Mapping(inner) => (key, Yaml::Mapping(without_nulls(inner))),
            other => (key, other),
        })
        .collect()
}

impl Spec {
    /// The dimensions: of the model or its tiny sibling, cut to `blocks` where given.
    pub fn dims(&self, tiny: bool, blocks: Option<u32>) -> Dims {
        let mut dims = self.dims.clone();
        if tiny {
            dims.extend(self.tiny.clone());
        }
        if let Some(blocks) = blocks {
            dims.insert("n_layer".into(), blocks.into());
        }
        dims
    }

    /// The value of an expression, which must not be negative.
    pub fn number(&self, text: &str, dims: &Dims) -> Result<u64, Error> {
        let value =
            expression::evaluate(text, dims).map_err(|source| Error::Expression { name: self.name.clone(), source })?;
        u64::try_from(value).map_err(|_| self.bad(format!("`{text}` is {value}")))
    }

    fn bad(&self, problem: String) -> Error {
        Error::Bad { name: self.name.clone(), problem }
    }

    /// The `<arch>.*` keys and `general.*` keys of the file, in order.
    pub fn keys(&self, dims: &Dims) -> Result<Vec<(String, Scalar)>, Error> {
        let mut keys = Vec::with_capacity(self.keys.len());
        for (key, value) in &self.keys {
            let key = key.as_str().ok_or_else(|| self.bad("a key is text".into()))?;
            let value = match value {
                Yaml::Mapping(_) => {
                    let conditional: Conditional = serde_yaml::from_value(value.clone())
                        .map_err(|source| Error::Yaml { name: self.name.clone(), source })?;
                    if self.number(&conditional.when, dims)? == 0 {
                        continue;
                    }
                    conditional.value
                }
                other => other.clone(),
            };
            let full = if key.starts_with("general.") { key.into() } else { format!("{}.{key}", self.architecture) };
            keys.push((full, self.scalar(key, &value, dims)?));
        }
        Ok(keys)
    }

    /// Integers become `u32`, other numbers `f32`; text that begins with `=` is an expression.
    fn scalar(&self, key: &str, value: &Yaml, dims: &Dims) -> Result<Scalar, Error> {
        let integer =
            |n: u64| u32::try_from(n).map(Scalar::U32).map_err(|_| self.bad(format!("`{key}`: {n} is past 32 bits")));
        match value {
            Yaml::Bool(b) => Ok(Scalar::Bool(*b)),
            Yaml::Number(n) => match n.as_u64() {
                Some(n) => integer(n),
                #[expect(clippy::cast_possible_truncation, reason = "GGUF keys of this kind are 32-bit floats")]
                None => n
                    .as_f64()
                    .map(|x| Scalar::F32(x as f32))
                    .ok_or_else(|| self.bad(format!("`{key}`: no number that fits"))),
            },
            Yaml::String(text) => match text.strip_prefix('=') {
                Some(expression) => integer(self.number(expression, dims)?),
                None => Ok(Scalar::String(text.clone())),
            },
            _ => Err(self.bad(format!("`{key}`: a value is a number, a boolean or text"))),
        }
    }

    /// Names and shapes of all tensors, in file order.
    pub fn tensors(&self, dims: &Dims) -> Result<Vec<(String, Vec<u64>)>, Error> {
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

    fn push(
        &self,
        tensors: &mut Vec<(String, Vec<u64>)>,
        prefix: &str,
        list: &Mapping,
        dims: &Dims,
    ) -> Result<(), Error> {
        for (name, shape) in list {
            let bad = || self.bad("a tensor is `name: [dimensions]`".into());
            let name = name.as_str().ok_or_else(bad)?;
            let shape = shape.as_sequence().ok_or_else(bad)?;
            let shape: Vec<u64> = shape
                .iter()
                .map(|dim| match dim {
                    Yaml::Number(n) => n.as_u64().ok_or_else(bad),
                    Yaml::String(text) => self.number(text, dims),
                    _ => Err(bad()),
                })
                .collect::<Result<_, _>>()?;
            if shape.is_empty() || shape.len() > 4 || shape.contains(&0) {
                return Err(self.bad(format!("`{name}`: a shape is one to four dimensions of at least 1")));
            }
            tensors.push((format!("{prefix}{name}"), shape));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_reads_and_has_tensors_full_and_tiny() {
        let names = names();
        assert!(names.len() >= 14, "{names:?}");
        for name in names {
            let spec = named(&name).unwrap_or_else(|error| panic!("{error}"));
            for tiny in [false, true] {
                let dims = spec.dims(tiny, None);
                let tensors = spec.tensors(&dims).unwrap_or_else(|error| panic!("{error}"));
                spec.keys(&dims).unwrap_or_else(|error| panic!("{error}"));
                let mut unique: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
                unique.sort_unstable();
                unique.dedup();
                assert_eq!(unique.len(), tensors.len(), "{name}: a tensor twice");
            }
        }
    }

    #[test]
    fn totals_equal_the_published_ones() {
        for name in names() {
            let spec = named(&name).unwrap();
            let tensors = spec.tensors(&spec.dims(false, None)).unwrap();
            let parameters: u64 = tensors.iter().map(|(_, shape)| shape.iter().product::<u64>()).sum();
            let found = (Some(tensors.len() as u64), Some(parameters));
            let expected = (spec.published.tensors, spec.published.parameters.or(found.1));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_spec_like_another_states_only_what_differs() {
        let spec = named("deepseek-v2-lite").unwrap();
        let keys = |blocks| spec.keys(&spec.dims(false, blocks)).unwrap();
        let has = |keys: &[(String, Scalar)]| keys.iter().any(|(key, _)| key == "deepseek2.attention.q_lora_rank");
        assert!(!has(&keys(None)), "llama.cpp's converter writes no rank of the queries");
        assert!(has(&keys(Some(4))));
        assert!(matches!(named("no-such"), Err(Error::Unknown { .. })));
    }
}
