//! Placement rule files (`rules/placement/*.yaml`, `--rules`): ordered rules that become overrides.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::model::{Model, Tensor};
use crate::plan::experts::stem;
use crate::plan::patterns::{self, TensorSet};
use crate::rules::Role;
use crate::run::Override;

/// The rule sets that come with moeplan, by name.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("all-on-device", include_str!("../../rules/placement/all-on-device.yaml")),
    ("down-on-host", include_str!("../../rules/placement/down-on-host.yaml")),
    ("experts-on-host", include_str!("../../rules/placement/experts-on-host.yaml")),
];

/// A rule file.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// In order; the first that matches a tensor decides.
    pub rules: Vec<PlacementRule>,
}

/// One rule: which tensors, and where to.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PlacementRule {
    /// Tensors of this role …
    #[serde(default)]
    pub role: Option<Role>,
    /// … or those that this regex finds (llama.cpp's ECMAScript, a search in the full name).
    #[serde(default)]
    pub tensors: Option<String>,
    /// Only these blocks of the role: `0-13`, `3`, `0-3,8-11`.
    #[serde(default)]
    pub blocks: Option<String>,
    /// A buffer that `-ot` takes: `CPU`, `CUDA0`.
    pub buffer: String,
}

/// What is wrong with a rule file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the YAML of a rule file; the message has line and column.
    #[error("rule file `{name}`")]
    Yaml {
        /// The file or built-in name.
        name: String,
        /// What the YAML reader says.
        source: serde_yaml::Error,
    },
    /// A rule that means nothing.
    #[error("rule file `{name}`, rule {number}: {problem}")]
    Rule {
        /// The file or built-in name.
        name: String,
        /// Counted from 1.
        number: usize,
        /// What is wrong and what to write.
        problem: String,
    },
}

/// Reads a rule file's text.
pub fn parse(name: &str, text: &str) -> Result<RuleFile, Error> {
    let file: RuleFile = serde_yaml::from_str(text).map_err(|source| Error::Yaml { name: name.to_string(), source })?;
    for (at, rule) in file.rules.iter().enumerate() {
        rule.problem()
            .map_or(Ok(()), |problem| Err(Error::Rule { name: name.to_string(), number: at + 1, problem }))?;
    }
    Ok(file)
}

impl PlacementRule {
    fn problem(&self) -> Option<String> {
        match (&self.role, &self.tensors) {
            (None, None) | (Some(_), Some(_)) => {
                return Some("state either `role` or `tensors`, one of them".to_string());
            }
            (None, Some(_)) if self.blocks.is_some() => {
                return Some("`blocks` goes with `role`; write the blocks into the regex of `tensors`".to_string());
            }
            (None, Some(pattern)) if pattern.contains([',', '=']) => {
                return Some(format!("`{pattern}` has a `,` or `=`, which llama.cpp's -ot cannot take"));
            }
            _ => {}
        }
        self.blocks
            .as_ref()
            .filter(|blocks| block_numbers(blocks).is_none())
            .map(|blocks| format!("`{blocks}` is no list of blocks: write it as `0-13` or `0-3,8`"))
    }

    fn claims(&self, tensor: &Tensor) -> bool {
        let in_blocks = match (&self.blocks, tensor.block) {
            (None, _) => true,
            (Some(blocks), Some(block)) => block_numbers(blocks).is_some_and(|numbers| numbers.contains(&block)),
            (Some(_), None) => false,
        };
        in_blocks && self.role == Some(tensor.role)
    }

    /// The overrides that say this rule for `model`.
    fn overrides(&self, model: &Model) -> Vec<Override> {
        let to = |pattern: String| Override { pattern, buffer: self.buffer.clone(), origin: "--rules".to_string() };
        if let Some(pattern) = &self.tensors {
            return vec![to(pattern.clone())];
        }
        let key = |tensor: &Tensor| Some((tensor.block?, stem(&tensor.name, tensor.block?)?.to_string()));
        let universe: TensorSet = model.tensors.iter().filter_map(key).collect();
        let (in_blocks, others): (Vec<_>, Vec<_>) =
            model.tensors.iter().filter(|tensor| self.claims(tensor)).partition(|tensor| key(tensor).is_some());
        let chosen: TensorSet = in_blocks.into_iter().filter_map(key).collect();
        let names = others.into_iter().map(|tensor| format!("^{}$", tensor.name.replace('.', "\\.")));
        patterns::patterns(&chosen, &universe).into_iter().chain(names).map(to).collect()
    }
}

/// The overrides of a rule file for a model, in its order.
pub fn overrides(file: &RuleFile, model: &Model) -> Vec<Override> {
    file.rules.iter().flat_map(|rule| rule.overrides(model)).collect()
}

fn block_numbers(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > 4096 {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_rule_set_reads() {
        for (name, text) in BUILT_IN {
            assert!(parse(name, text).is_ok_and(|file| !file.description.is_empty()), "{name}");
        }
    }

    #[test]
    fn mistakes_are_named_with_what_to_write() {
        for (text, expected) in [
            ("rules:\n  - role: routed_expert\n", "missing field `buffer`"),
            ("rules:\n  - rol: router\n    buffer: CPU\n", "unknown field `rol`"),
            ("rules:\n  - role: expert\n    buffer: CPU\n", "unknown variant `expert`"),
            ("rules:\n  - buffer: CPU\n", "rule 1: state either `role` or `tensors`"),
            ("rules:\n  - tensors: 'a{1,2}'\n    buffer: CPU\n", "cannot take"),
            ("rules:\n  - role: router\n    blocks: 7-3\n    buffer: CPU\n", "no list of blocks"),
        ] {
            let error = parse("mine.yaml", text).unwrap_err();
            let mut message = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                message.push_str(&source.to_string());
            }
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("mine.yaml"), "{message}");
        }
    }

    #[test]
    fn blocks_are_lists_of_ranges() {
        assert_eq!(block_numbers("0-3,8"), Some([0, 1, 2, 3, 8].into()));
        assert_eq!(block_numbers("x"), None);
    }
}
