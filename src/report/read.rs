//! The documents that a report is made of, told apart by their schema; llama-bench's JSON has none and is known by its keys.

use std::borrow::Cow;
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::page::Document;
use crate::inspection::Inspection;
use crate::measurement::{Launched, Measurement};
use crate::plan::sweep::{Plans, SweepDocument};
use crate::plan::{Checked, Plan};
use crate::speed::samples::BenchRow;
use crate::suggest::Hint;
use crate::suite::document::{Bench, Validation};
use crate::tune::document::Document as Tuning;

/// A document and where it is from.
pub struct Source {
    pub name: String,
    pub document: Box<dyn Document>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A file that no report can be made of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{name}` is a GGUF model, and a report is made of documents")]
    Model { name: String },
    #[error("`{name}` is not JSON: it is not even text")]
    Binary { name: String },
    #[error("`{name}` is empty")]
    Empty { name: String },
    #[error("`{name}` is not JSON")]
    Json { name: String, source: serde_json::Error },
    #[error("`{name}` holds no document of moeplan: it names no schema")]
    NoSchema { name: String },
    #[error("`{name}` is `{schema}`, which a report does not show")]
    Schema { name: String, schema: String },
    #[error("`{name}` is not a `{schema}`")]
    Shape { name: String, schema: String, source: serde_json::Error },
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Model { name } => {
                format!("`moeplan inspect {name} --json -o inspect.json` writes one of it, so do plan, verify and bench").into()
            }
            Self::Binary { .. } | Self::Empty { .. } | Self::Json { .. } | Self::NoSchema { .. } | Self::Schema { .. } => {
                "a report shows what inspect, check, plan, run, verify, tune, bench and validate write with --json, and \
                 llama-bench's rows (-o json or -o jsonl)"
                    .into()
            }
            Self::Shape { .. } => "was it written by another version of moeplan, or by hand?".into(),
        })
    }
}

/// The documents of a file.
pub fn read(name: &str, text: &str) -> Result<Vec<Source>, Error> {
    if text.trim().is_empty() {
        return Err(Error::Empty { name: name.to_string() });
    }
    let values = values(text).map_err(|source| Error::Json { name: name.to_string(), source })?;
    let is_bench = |value: &Value| value.get("avg_ts").is_some();
    let of = |document| Source { name: name.to_string(), document };
    if !values.is_empty() && values.iter().all(is_bench) {
        return Ok(vec![of(shaped::<Vec<BenchRow>>(name, "row of llama-bench", Value::Array(values))?)]);
    }
    let mut sources = Vec::new();
    for value in values {
        sources.extend(documents(name, value)?.into_iter().map(of));
    }
    if sources.is_empty() { Err(Error::NoSchema { name: name.to_string() }) } else { Ok(sources) }
}

/// The values of a file: of an array its elements, of JSON lines a value a line.
fn values(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    let values: Vec<Value> = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?;
    let elements = |value| match value {
        Value::Array(elements) => elements,
        other => vec![other],
    };
    Ok(values.into_iter().flat_map(elements).collect())
}

fn documents(name: &str, mut value: Value) -> Result<Vec<Box<dyn Document>>, Error> {
    let Some(schema) = value.get("schema").and_then(Value::as_str).map(str::to_string) else {
        return Err(Error::NoSchema { name: name.to_string() });
    };
    let document = match schema.as_str() {
        "moeplan/inspect/1" => shaped::<Inspection>(name, &schema, value),
        "moeplan/inspections/1" => {
            let models = value.get_mut("models").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
            return models.into_iter().map(|model| shaped::<Inspection>(name, &schema, model)).collect();
        }
        "moeplan/check/1" => shaped::<Checked>(name, &schema, value),
        "moeplan/plan/1" => shaped::<Plan>(name, &schema, value),
        "moeplan/sweep/1" => shaped::<SweepDocument>(name, &schema, value),
        "moeplan/plans/1" => shaped::<Plans>(name, &schema, value),
        "moeplan/measurement/1" => shaped::<Measurement>(name, &schema, value),
        "moeplan/bench/1" => shaped::<Bench>(name, &schema, value),
        "moeplan/validation/1" => shaped::<Validation>(name, &schema, value),
        "moeplan/run/1" => shaped::<Launched>(name, &schema, value),
        "moeplan/tune/1" => shaped::<Tuning>(name, &schema, value),
        _ => return Err(Error::Schema { name: name.to_string(), schema }),
    };
    Ok(vec![document?])
}

fn shaped<T: DeserializeOwned + Document + 'static>(
    name: &str,
    schema: &str,
    value: Value,
) -> Result<Box<dyn Document>, Error> {
    let document: T = serde_json::from_value(value).map_err(|source| Error::Shape {
        name: name.to_string(),
        schema: schema.to_string(),
        source,
    })?;
    Ok(Box::new(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_known_by_their_schema_and_llama_bench_by_its_keys() {
        let row = r#"{"model_filename":"m","n_batch":1,"n_ubatch":1,"n_threads":1,"n_prompt":1,"n_gen":0,"n_depth":0,"avg_ts":1.0}"#;
        let launched =
            r#"{"schema":"moeplan/run/1","endpoint":"e","process":1,"command":[],"load_seconds":1,"comparison":[]}"#;
        let kinds = |text: &str| -> Vec<&'static str> {
            read("f", text).unwrap().iter().map(|source| source.document.pages()[0].kind).collect()
        };
        assert_eq!(kinds(launched), ["Launch"]);
        assert_eq!(kinds(&format!("{launched}\n{launched}")), ["Launch", "Launch"]);
        assert_eq!(kinds(&format!("[{launched},{launched}]")), ["Launch", "Launch"]);
        assert_eq!(kinds(&format!("[{row},{row}]")), ["llama-bench"]);
        assert_eq!(kinds(&format!("{row}\n{row}\n")), ["llama-bench"]);
    }

    #[test]
    fn what_is_no_document_says_what_it_is_instead() {
        for (text, expected) in [
            ("\n", "`f` is empty"),
            ("[]", "`f` holds no document"),
            ("{", "`f` is not JSON"),
            ("3", "names no schema"),
            (r#"{"schema":"moeplan/plan/2"}"#, "`moeplan/plan/2`, which a report does not show"),
            (r#"{"schema":"moeplan/plan/1","memory":3}"#, "is not a `moeplan/plan/1`"),
            (r#"[{"avg_ts":"fast"}]"#, "is not a `row of llama-bench`"),
            (r#"[{"avg_ts":1},{"schema":"x"}]"#, "names no schema"),
        ] {
            let error = read("f", text).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
            assert!(error.hint().is_some());
        }
    }
}
