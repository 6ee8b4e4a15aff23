//! Role rules: which tensor is what, from `rules/roles/*.yaml`.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use std::collections::BTreeSet;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, Serialize};

use crate::arch::Arch;

/// What a tensor is for. It says nothing about where llama.cpp puts it: that is the placement's matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Routed experts (`ffn_*_exps`, `ffn_*_chexps`), their biases and scales.
    RoutedExpert,
    /// Shared experts (`ffn_*_shexp`) and their gate.
    SharedExpert,
    /// `ffn_gate_inp`, `exp_probs_b`, …
    Router,
    /// Attention weights, their biases, sinks, compressors and indexers.
    Attention,
    /// Dense feed-forward weights, the latent projections around experts included.
    DenseFfn,
    /// Token and position embeddings, per-layer ones too.
    TokenEmbd,
    /// `output` and what belongs to the output stage.
    Output,
    Norm,
    /// State-space, linear-attention and convolution weights.
    Recurrent,
    Other,
}

impl Role {
    /// Every role, in the order of the documents.
    pub const ALL: [Self; 10] = [
        Self::RoutedExpert,
        Self::SharedExpert,
        Self::Router,
        Self::Attention,
        Self::DenseFfn,
        Self::TokenEmbd,
        Self::Output,
        Self::Norm,
        Self::Recurrent,
        Self::Other,
    ];

    /// The names in documents and rule files, and for people.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::RoutedExpert => ("routed_expert", "routed experts"),
            Self::SharedExpert => ("shared_expert", "shared experts"),
            Self::Router => ("router", "routers"),
            Self::Attention => ("attention", "attention"),
            Self::DenseFfn => ("dense_ffn", "dense FFN"),
            Self::TokenEmbd => ("token_embd", "token embedding"),
            Self::Output => ("output", "output"),
            Self::Norm => ("norm", "norms"),
            Self::Recurrent => ("recurrent", "recurrent"),
            Self::Other => ("other", "other"),
        }
    }

    pub const fn key(self) -> &'static str {
        self.names().0
    }

    pub const fn words(self) -> &'static str {
        self.names().1
    }
}

/// Role rules in the order they are asked: the first that matches wins.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRules {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    role: Role,
    /// Of the whole name.
    #[serde(deserialize_with = "regex")]
    tensors: Regex,
    /// Only in blocks that also have a tensor of this name (without `blk.N.` and suffix).
    in_blocks_with: Option<String>,
}

fn regex<'de, D: Deserializer<'de>>(text: D) -> Result<Regex, D::Error> {
    let whole = format!("^(?:{})$", String::deserialize(text)?);
    // Tensor names are ASCII in practice; bytes make the patterns small and quick to compile.
    let built = RegexBuilder::new(&whole).unicode(false).dot_matches_new_line(true).build();
    built.map_err(serde::de::Error::custom)
}

/// Asked last, for every architecture.
const GENERAL: &str = include_str!("../rules/roles/general.yaml");

impl RoleRules {
    /// The built-in rules of an architecture: its own file, if it has one, then the general ones.
    pub fn built_in(architecture: &str) -> Self {
        let texts = Arch::of(architecture).roles.into_iter().chain([GENERAL]);
        // A test reads every one of them.
        let files = texts.filter_map(|text| Self::from_yaml(architecture, text).ok());
        Self { rules: files.flat_map(|file| file.rules).collect() }
    }

    /// The rules of one file, or what is wrong with it.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, String> {
        serde_yaml::from_str(text).map_err(|error| format!("rules `{name}`: {error}"))
    }

    /// The role of each tensor of a model, in the order given. All names together, since a rule may look at the block.
    pub fn roles<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Vec<Role> {
        let marks: BTreeSet<(u32, &str)> = if self.rules.iter().any(|rule| rule.in_blocks_with.is_some()) {
            names.clone().filter_map(|name| Some((block_of(name)?, base_of(name)))).collect()
        } else {
            BTreeSet::new()
        };
        let holds = |rule: &Rule, name: &str| {
            rule.tensors.is_match(name.as_bytes())
                && rule
                    .in_blocks_with
                    .as_deref()
                    .is_none_or(|mark| block_of(name).is_some_and(|block| marks.contains(&(block, mark))))
        };
        names
            .map(|name| self.rules.iter().find(|rule| holds(rule, name)).map_or(Role::Other, |rule| rule.role))
            .collect()
    }
}

/// `N` of `blk.N.`, also in the encoder and decoder of T5 (`enc.blk.N.`).
pub fn block_of(name: &str) -> Option<u32> {
    let name = name.strip_prefix("enc.").or_else(|| name.strip_prefix("dec.")).unwrap_or(name);
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// What follows `blk.N.`, up to the next dot.
fn base_of(name: &str) -> &str {
    name.split('.').nth(2).unwrap_or(name)
}

#[cfg(test)]
mod tests;
