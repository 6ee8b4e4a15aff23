//! A suite as its file says it: models and what they should be, ways to run them, prompts and what their answers should be.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_yaml::Mapping;

use super::document::Settings;
use crate::expectation::{self, Expectations};

/// The protocol first; then the same `like` it, for classes of machines.
pub static BUILT_IN: &[(&str, &str)] = &[
    ("moe-cpu-offload", include_str!("../../rules/suites/moe-cpu-offload.yaml")),
    ("moe-8g", include_str!("../../rules/suites/moe-8g.yaml")),
    ("moe-12g", include_str!("../../rules/suites/moe-12g.yaml")),
    ("moe-16g", include_str!("../../rules/suites/moe-16g.yaml")),
    ("moe-24g", include_str!("../../rules/suites/moe-24g.yaml")),
    ("moe-2x24g", include_str!("../../rules/suites/moe-2x24g.yaml")),
    ("moe-4x24g", include_str!("../../rules/suites/moe-4x24g.yaml")),
];

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub name: String,
    pub description: String,
    pub repetitions: u32,
    #[serde(default)]
    pub temperature: f64,
    #[serde(default = "seed")]
    pub seed: u32,
    /// `-c` of every launch, in tokens.
    pub context: u32,
    /// Tokens in the context before each point of the depth sweep; empty = no sweep.
    #[serde(default)]
    pub depths: Vec<u32>,
    #[serde(default = "depth_prompt")]
    pub depth_prompt: u32,
    #[serde(default = "depth_generate")]
    pub depth_generate: u32,
    /// Ways to run a model, the one under test first.
    pub cases: Vec<String>,
    #[serde(default)]
    pub models: Vec<SuiteModel>,
    pub prompts: Vec<Prompt>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteModel {
    /// As `--model NAME=PATH` names it.
    pub name: String,
    #[serde(default)]
    pub expect: Option<String>,
    #[serde(default)]
    pub expectations: Option<serde_yaml::Value>,
}

impl SuiteModel {
    /// What the suite expects of it, if anything.
    pub fn expectations(&self) -> anyhow::Result<Option<Expectations>> {
        if let Some(yaml) = &self.expectations {
            return Ok(Some(Expectations::from_yaml(&self.name, &serde_yaml::to_string(yaml)?)?));
        }
        let built_in = self.expect.as_deref().and_then(|name| Some((name, expectation::built_in(name)?)));
        Ok(built_in.map(|(name, text)| Expectations::from_yaml(name, text)).transpose()?)
    }
}

/// What is asked, and in a suite's file what a program can tell of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// `code`, `mathematics`, `creative`, `technical`.
    pub name: String,
    pub text: String,
    /// Tokens of the answer, at most.
    pub max_tokens: u32,
    #[serde(default, skip_serializing)]
    #[cfg_attr(test, schemars(skip))]
    pub check: Option<Check>,
}

/// What a program can tell of an answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Check {
    Fibonacci {
        function: String,
    },
    Number {
        value: f64,
        unit: String,
    },
    Poem {
        stanzas: usize,
        /// Words of half of its lines, at most.
        words: usize,
        dashes: usize,
    },
    Concepts {
        concepts: Vec<Vec<String>>,
    },
}

fn seed() -> u32 {
    42
}

fn depth_prompt() -> u32 {
    512
}

fn depth_generate() -> u32 {
    32
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not YAML, or not a suite; the message has line and column.
    #[error("suite `{name}`")]
    Yaml { name: String, source: serde_yaml::Error },
    #[error("suite `{name}`: {problem}")]
    Bad { name: String, problem: String },
}

/// Ways to run a model, by the names that suites and `--baseline` use.
pub const CASES: [(&str, &str); 4] = [
    ("plan", "the launch under test"),
    ("all-on-device", "every layer and every expert on the devices (-ngl 99), else as the launch under test"),
    ("experts-on-host", "every routed expert in main memory (-cmoe), the rest on the devices"),
    (
        "fit",
        "what llama.cpp chooses by itself (-fit on) within the same budget, for the same context, slots and cache types",
    ),
];

impl Suite {
    pub fn protocol() -> Self {
        let (name, text) = BUILT_IN[0];
        Self::from_yaml(name, text).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A suite `like` a built-in one that is `like` none states only what differs.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, Error> {
        let yaml = |source| Error::Yaml { name: name.to_string(), source };
        let bad = |problem| Error::Bad { name: name.to_string(), problem };
        let mut own: Mapping = serde_yaml::from_str(text).map_err(yaml)?;
        let suite: Self = match own.shift_remove("like") {
            // From the text, for the line and column of what is wrong.
            None => serde_yaml::from_str(text).map_err(yaml)?,
            Some(like) => {
                let like = like.as_str().unwrap_or_default();
                let base = BUILT_IN.iter().find(|(name, _)| *name == like).ok_or_else(|| {
                    let known = BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                    bad(format!("`like` names no built-in suite; there are {known}"))
                })?;
                let mut whole: Mapping = serde_yaml::from_str(base.1).map_err(yaml)?;
                whole.extend(own);
                serde_yaml::from_value(whole.into()).map_err(yaml)?
            }
        };
        match suite.problem() {
            Some(problem) => Err(bad(problem)),
            None => Ok(suite),
        }
    }

    fn problem(&self) -> Option<String> {
        let is_name = |name: &str| {
            let is_known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && !name.starts_with('.') && name.chars().all(is_known)
        };
        let models: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        let prompts: Vec<&str> = self.prompts.iter().map(|prompt| prompt.name.as_str()).collect();
        let cases = CASES.map(|(name, _)| name);
        if let Some(case) = self.cases.iter().find(|case| !cases.contains(&case.as_str())) {
            return Some(format!("no case `{case}`; there are {}", cases.join(", ")));
        }
        if let Some(name) = models.iter().chain(&prompts).find(|name| !is_name(name)) {
            return Some(format!("the name `{name}`: letters, digits, `-`, `_` and `.` only, because it names files"));
        }
        for names in [self.cases.iter().map(String::as_str).collect(), models, prompts] {
            let mut seen = BTreeSet::new();
            if let Some(name) = names.iter().find(|name| !seen.insert(**name)) {
                return Some(format!("`{name}` appears twice"));
            }
        }
        let mut expected = self.models.iter().filter_map(|model| model.expect.as_deref());
        if let Some(name) = expected.find(|name| expectation::built_in(name).is_none()) {
            let known = expectation::BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Some(format!("no expectations `{name}`; there are {known}"));
        }
        let problems = [
            ("no repetitions", self.repetitions == 0),
            ("no cases", self.cases.is_empty()),
            ("no prompts", self.prompts.is_empty()),
            ("no context", self.context == 0),
            ("temperature is not between 0 and 2", !(0.0..=2.0).contains(&self.temperature)),
        ];
        problems.iter().find(|(_, is_so)| *is_so).map(|(problem, _)| (*problem).to_string())
    }

    pub fn settings(&self) -> Settings {
        Settings {
            repetitions: self.repetitions,
            temperature: self.temperature,
            seed: self.seed,
            depths: self.depths.clone(),
            depth_prompt: self.depth_prompt,
            depth_generate: self.depth_generate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_like_another_states_only_what_differs() {
        let protocol = Suite::protocol();
        for (name, text) in BUILT_IN {
            let suite = Suite::from_yaml(name, text).unwrap();
            assert_eq!((&*suite.name, suite.prompts), (*name, protocol.prompts.clone()));
            assert!(suite.models.iter().all(|model| model.expect.as_ref() == Some(&model.name)), "{name}");
        }
        let own = "like: moe-cpu-offload\nrepetitions: 1\nmodels: []\n";
        let suite = Suite::from_yaml("x.yaml", own).unwrap();
        assert_eq!((suite.repetitions, suite.models.len(), suite.cases), (1, 0, protocol.cases));
        for (own, says) in
            [("like: me", "no built-in suite"), ("like: moe-8g", "`like`"), ("like: moe-cpu-offload\nx: 1", "`x`")]
        {
            let error = Suite::from_yaml("x.yaml", own).unwrap_err();
            assert!(format!("{:#}", anyhow::Error::from(error)).contains(says), "{own}");
        }
    }

    #[test]
    fn a_bad_suite_says_what_is_wrong() {
        let good = BUILT_IN[0].1;
        assert_eq!((Suite::protocol().prompts.len(), Suite::protocol().models.len()), (4, 5));
        for (from, to, says) in [
            ("cases: [", "cases: [all-on-moon, ", "no case `all-on-moon`"),
            ("cases: [", "cases: [fit, ", "`fit` appears twice"),
            ("name: phi-3.5-moe", "name: gpt-oss-20b", "`gpt-oss-20b` appears twice"),
            ("name: phi-3.5-moe", "name: ../phi", "because it names files"),
            ("expect: phi-3.5-moe", "expect: phi-9", "no expectations `phi-9`"),
            ("repetitions: 3", "repetitions: 0", "no repetitions"),
            ("temperature: 0", "temperature: 9", "temperature"),
            ("kind: poem", "kind: opera", "unknown variant `opera`"),
            ("context: 4096", "contexts: 4096", "unknown field `contexts`"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = Suite::from_yaml("x.yaml", &good.replacen(from, to, 1)).unwrap_err();
            let chain = format!("{:#}", anyhow::Error::from(error));
            assert!(chain.contains(says) && chain.starts_with("suite `x.yaml`"), "{chain}");
        }
    }
}
