//! Expectations: a YAML file of the inspect document's keys, and the checklist it gives.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::suggest::Refusal;

/// One line of the checklist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// The dotted key of the document: `experts.count`.
    pub what: String,
    pub expected: Json,
    /// What the document has; `null` where it has nothing there.
    pub found: Json,
    pub ok: bool,
}

/// What to write instead of a file that cannot be read.
const LINES: &str = "write one `key: value` per line, such as `experts.count: 16` or `parameters.total: 41.87B ± 0.5%`";

pub static BUILT_IN: &[(&str, &str)] = &[
    ("deepseek-moe-16b", include_str!("../rules/suites/expect-deepseek-moe-16b.yaml")),
    ("deepseek-v2", include_str!("../rules/suites/expect-deepseek-v2.yaml")),
    ("deepseek-v3.2", include_str!("../rules/suites/expect-deepseek-v3.2.yaml")),
    ("deepseek-v4-flash", include_str!("../rules/suites/expect-deepseek-v4-flash.yaml")),
    ("gemma-4-26b-a4b", include_str!("../rules/suites/expect-gemma-4-26b-a4b.yaml")),
    ("glm-4.7-flash", include_str!("../rules/suites/expect-glm-4.7-flash.yaml")),
    ("glm-5.1", include_str!("../rules/suites/expect-glm-5.1.yaml")),
    ("gpt-oss-120b", include_str!("../rules/suites/expect-gpt-oss-120b.yaml")),
    ("gpt-oss-20b", include_str!("../rules/suites/expect-gpt-oss-20b.yaml")),
    ("granite-4.0-h-small", include_str!("../rules/suites/expect-granite-4.0-h-small.yaml")),
    ("granite-4.0-h-tiny", include_str!("../rules/suites/expect-granite-4.0-h-tiny.yaml")),
    ("kimi-k2.5", include_str!("../rules/suites/expect-kimi-k2.5.yaml")),
    ("minimax-m2.7", include_str!("../rules/suites/expect-minimax-m2.7.yaml")),
    ("mixtral-8x7b", include_str!("../rules/suites/expect-mixtral-8x7b.yaml")),
    ("nemotron-3-nano-30b-a3b", include_str!("../rules/suites/expect-nemotron-3-nano-30b-a3b.yaml")),
    ("nemotron-3-super-120b-a12b", include_str!("../rules/suites/expect-nemotron-3-super-120b-a12b.yaml")),
    ("phi-3.5-moe", include_str!("../rules/suites/expect-phi-3.5-moe.yaml")),
    ("qwen3.5-122b-a10b", include_str!("../rules/suites/expect-qwen3.5-122b-a10b.yaml")),
    ("qwen3.5-35b-a3b", include_str!("../rules/suites/expect-qwen3.5-35b-a3b.yaml")),
    ("qwen3.5-397b-a17b", include_str!("../rules/suites/expect-qwen3.5-397b-a17b.yaml")),
    ("qwen3.6-35b-a3b", include_str!("../rules/suites/expect-qwen3.6-35b-a3b.yaml")),
    ("step-3.5-flash", include_str!("../rules/suites/expect-step-3.5-flash.yaml")),
];

pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, text)| *text)
}

#[derive(Debug, Clone)]
pub struct Expectations {
    name: String,
    text: String,
    keys: Vec<(String, Json)>,
}

impl Expectations {
    /// Reads `key: value` lines; keys are dotted or nested. `name` is for messages.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, Refusal> {
        let refused = |what: String| Refusal::new(format!("expectations `{name}`: {what}"), LINES);
        let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| refused(error.to_string()))?;
        let Ok(Json::Object(object)) = serde_json::to_value(&value) else {
            return Err(refused("line 1, column 1: not a mapping of keys to values".into()));
        };
        let mut keys = Vec::new();
        flatten("", object, &mut keys);
        // In the order of the file, which the YAML reader does not keep.
        keys.sort_by_key(|(key, _)| position(text, key));
        Ok(Self { name: name.to_string(), text: text.to_string(), keys })
    }

    pub fn check(&self, document: &impl Serialize) -> Result<Vec<Check>, Refusal> {
        let document = serde_json::to_value(document).unwrap_or_default();
        self.keys.iter().map(|(key, expected)| self.check_one(&document, key, expected)).collect()
    }

    fn check_one(&self, document: &Json, key: &str, expected: &Json) -> Result<Check, Refusal> {
        let (line, column) = position(&self.text, key);
        let refused = |what: String, hint: String| {
            Refusal::new(format!("expectations `{}`: line {line}, column {column}: {what}", self.name), hint)
        };
        let found = match lookup(document, key) {
            Some(found) => found.clone(),
            // A type that the model does not have is a fact, not a mistake of the file.
            None if key.starts_with("bytes.by_type.") || key.starts_with("tensors_by_type.") => Json::Null,
            None => {
                let near = near(document, key).join(", ");
                let all = "`moeplan inspect MODEL --json` shows every key".to_string();
                let hint = if near.is_empty() { all } else { format!("keys of that name: {near}") };
                return Err(refused(format!("the inspect document has no `{key}`"), hint));
            }
        };
        let not_a_number = |value| refused(format!("`{value}` is not a number such as 41.87B ± 0.5%"), LINES.into());
        let ok = agrees(expected, &found).map_err(not_a_number)?;
        Ok(Check { what: key.to_string(), expected: expected.clone(), found, ok })
    }
}

/// Nested mappings as dotted keys.
fn flatten(prefix: &str, object: serde_json::Map<String, Json>, into: &mut Vec<(String, Json)>) {
    for (key, value) in object {
        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Json::Object(inner) => flatten(&key, inner, into),
            value => into.push((key, value)),
        }
    }
}

/// Line and column of a key in the text, from 1; of a nested key, of its last part.
fn position(text: &str, key: &str) -> (usize, usize) {
    let starts = |wanted: &str| {
        text.lines().enumerate().find_map(|(at, line)| {
            let bare = line.trim_start();
            let after = bare.trim_start_matches(['"', '\'']).strip_prefix(wanted)?;
            after.starts_with([':', '"', '\'', ' ']).then(|| (at + 1, line.len() - bare.len() + 1))
        })
    };
    starts(key).or_else(|| starts(key.rsplit('.').next()?)).unwrap_or((1, 1))
}

/// The value at a dotted key; keys of the document may hold dots themselves (`metadata`), so longer parts are tried too.
fn lookup<'a>(document: &'a Json, key: &str) -> Option<&'a Json> {
    let object = document.as_object()?;
    if let Some(found) = object.get(key) {
        return Some(found);
    }
    key.match_indices('.').find_map(|(at, _)| {
        let (first, rest) = key.split_at_checked(at)?;
        lookup(object.get(first)?, rest.strip_prefix('.')?)
    })
}

/// Keys of the document that end as this one does, or that it begins.
fn near(document: &Json, key: &str) -> Vec<String> {
    let mut all = Vec::new();
    if let Json::Object(object) = document.clone() {
        flatten("", object, &mut all);
    }
    let last = key.rsplit('.').next().unwrap_or(key);
    let is_near =
        |known: &str| known.rsplit('.').next() == Some(last) || known.starts_with(key) || last.starts_with(known);
    all.into_iter().map(|(known, _)| known).filter(|known| is_near(known)).take(3).collect()
}

/// Whether what was found is what was expected; an error where the expectation is no number but should be.
fn agrees(expected: &Json, found: &Json) -> Result<bool, String> {
    match (expected, found) {
        (Json::Array(expected), Json::Array(found)) => {
            let same = expected.len() == found.len();
            expected.iter().zip(found).try_fold(same, |same, (a, b)| Ok(agrees(a, b)? && same))
        }
        // A list for a single value: any of them.
        (Json::Array(any), found) => any.iter().try_fold(false, |ok, one| Ok(agrees(one, found)? || ok)),
        (Json::String(text), Json::Number(found)) => {
            let (middle, either_side) = range(text).ok_or_else(|| text.clone())?;
            // The smallest step of the sum, so that 0.1 ± 0.2 holds 0.3.
            let most = either_side + 1e-12 * middle.abs();
            Ok(found.as_f64().is_some_and(|found| (found - middle).abs() <= most))
        }
        (Json::Number(expected), Json::Number(found)) => Ok(match (expected.as_u64(), found.as_u64()) {
            (Some(expected), Some(found)) => expected == found,
            _ => expected.as_f64().zip(found.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= 1e-9 * a.abs()),
        }),
        (expected, found) => Ok(expected == found),
    }
}

/// A number and how far off it may be: `41.87B ± 0.5%`, `41.87B ± 10M`, `78.00 GiB`, `131072`. Without a tolerance, what rounds to
/// the digits written.
fn range(text: &str) -> Option<(f64, f64)> {
    let split = text.split_once('±').or_else(|| text.split_once("+-")).or_else(|| text.split_once("+/-"));
    let (number, tolerance) = split.map_or((text, None), |(number, tolerance)| (number, Some(tolerance.trim())));
    let (middle, half_digit) = scaled(number.trim())?;
    let either_side = match tolerance {
        None => half_digit,
        Some(tolerance) => match tolerance.strip_suffix('%') {
            Some(percent) => middle * percent.trim().parse::<f64>().ok()? / 100.0,
            None => scaled(tolerance)?.0,
        },
    };
    (either_side >= 0.0).then_some((middle, either_side))
}

/// Units of counts and of sizes, longest first where one ends another.
static UNITS: &[(&str, f64)] = &[
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("K", 1e3),
    ("M", 1e6),
    ("B", 1e9),
    ("T", 1e12),
    ("", 1.0),
];

/// A number with its unit, and half of its last digit (nothing for a whole number without unit).
fn scaled(text: &str) -> Option<(f64, f64)> {
    let (unit, scale) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let digits = text.strip_suffix(unit)?.trim_end().replace(['_', ','], "");
    let number: f64 = digits.parse().ok().filter(|number: &f64| number.is_finite())?;
    let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let is_exact = unit.is_empty() && decimals == 0;
    let half = if is_exact { 0.0 } else { 0.5 * 10f64.powi(-i32::try_from(decimals).ok()?) };
    Some((number * scale, half * scale))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checks(yaml: &str) -> Vec<bool> {
        let document = json!({
            "experts": {"count": 16}, "parameters": {"total": 41_873_153_472_u64}, "bits_per_weight": 16.002,
            "file_type": "F16", "bytes": {"total": 83_752_285_952_u64, "by_type": {"f16": 1}}, "warnings": [],
        });
        let expectations = Expectations::from_yaml("test", yaml).unwrap();
        expectations.check(&document).unwrap().iter().map(|check| check.ok).collect()
    }

    #[test]
    fn numbers_agree_within_what_is_written() {
        for (yaml, ok) in [
            ("experts.count: 16", true),
            ("experts.count: 17", false),
            ("experts: {count: 16}", true),
            ("parameters.total: 41.87B", true),
            ("parameters.total: 41.86B", false),
            ("parameters.total: 41.9B", true),
            ("parameters.total: 42B ± 0.5%", true),
            ("parameters.total: 42B ± 0.1%", false),
            ("parameters.total: 42B +- 200M", true),
            ("parameters.total: '41,873,153,472'", true),
            ("bits_per_weight: 16.00 ± 0.01", true),
            ("bits_per_weight: 16.002", true),
            ("bytes.total: 78.00 GiB", true),
            ("bytes.by_type.q8_0: 3", false),
            ("file_type: F16", true),
            ("file_type: [Q8_0, F16]", true),
            ("file_type: Q8_0", false),
            ("warnings: []", true),
        ] {
            assert_eq!(checks(yaml), [ok], "{yaml}");
        }
    }

    #[test]
    fn a_bad_file_says_where() {
        let document = json!({"experts": {"count": 16}});
        for (yaml, says) in [
            ("experts.count: 16\nexperts: [", "line 3 column 1"),
            ("experts.count: 1\nexperts.count: 2", "duplicate"),
            ("- 1", "line 1, column 1: not a mapping"),
            ("# one\n  expert.count: 16", "line 2, column 3: the inspect document has no `expert.count`"),
            ("experts.count: many", "line 1, column 1: `many` is not a number"),
        ] {
            let error =
                Expectations::from_yaml("x.yaml", yaml).and_then(|file| file.check(&document)).unwrap_err().message;
            assert!(error.contains(says) && error.contains("`x.yaml`"), "{error}");
        }
    }

    #[test]
    fn every_built_in_file_is_listed_and_parses() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/rules/suites");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> = files.filter(|name| name.starts_with("expect-")).collect();
        files.sort();
        assert_eq!(files, BUILT_IN.iter().map(|(name, _)| format!("expect-{name}.yaml")).collect::<Vec<_>>());
        for (name, text) in BUILT_IN {
            let expectations = Expectations::from_yaml(name, text).unwrap();
            assert!(expectations.keys.len() > 6, "{name}");
        }
    }
}
