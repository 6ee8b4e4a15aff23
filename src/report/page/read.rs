//! The documents that a report is made of, told apart by their schema; llama-bench's JSON has none and is known by its keys.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::environment::utc;
use super::view::{BenchRow, Inspection, Launched, Plan, Sweep};
use crate::measurement::Measurement;
use crate::suite::document::{Bench, DeviceFacts, Environment, Validation};
use crate::tune::document::Document as Tuning;

/// One document.
#[derive(Debug, Clone)]
pub enum Document {
    /// `moeplan/inspect/1`.
    Inspection(Box<Inspection>),
    /// `moeplan/check/1` or `moeplan/plan/1`.
    Plan(Box<Plan>),
    /// `moeplan/sweep/1` or `moeplan/plans/1`.
    Sweep(Box<Sweep>),
    /// `moeplan/measurement/1`.
    Measurement(Box<Measurement>),
    /// `moeplan/bench/1`.
    Bench(Box<Bench>),
    /// `moeplan/validation/1`.
    Validation(Box<Validation>),
    /// `moeplan/run/1`.
    Launched(Box<Launched>),
    /// `moeplan/tune/1`.
    Tuning(Box<Tuning>),
    /// llama-bench's rows.
    LlamaBench(Vec<BenchRow>),
}

impl Document {
    /// What it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Inspection(_) => "What the model is",
            Self::Plan(plan) if plan.schema == "moeplan/check/1" => "Check",
            Self::Plan(_) => "Plan",
            Self::Sweep(_) => "Sweep",
            Self::Measurement(_) => "Measurement",
            Self::Bench(_) => "Benchmark",
            Self::Validation(_) => "Validation",
            Self::Launched(_) => "Launch",
            Self::Tuning(_) => "Tuning",
            Self::LlamaBench(_) => "llama-bench",
        }
    }
}

impl Document {
    /// What it is and of what, in a line.
    pub fn about(&self) -> String {
        let facts: Vec<String> = match self {
            Self::Plan(plan) => {
                let model = plan.model.iter().map(|model| format!("{}, {}", model.architecture, model.bytes));
                let devices = plan.machine.iter().flat_map(|machine| &machine.devices);
                model.chain(devices.map(|device| format!("{} of {}", device.total, device.name))).collect()
            }
            Self::Sweep(sweep) => {
                sweep.model.iter().map(|model| format!("{}, {}", model.architecture, model.bytes)).collect()
            }
            Self::Inspection(model) => vec![model.architecture.clone()],
            Self::Measurement(measured) => vec![format!("llama.cpp b{}", measured.runtime.build)],
            Self::Bench(bench) => surroundings(&bench.environment),
            Self::Validation(validation) => surroundings(&validation.environment),
            Self::Launched(launched) => vec![launched.endpoint.clone()],
            Self::Tuning(tuning) => vec![format!("llama.cpp b{}", tuning.subject.build)],
            Self::LlamaBench(rows) => rows.first().map(|row| format!("b{}", row.build_number)).into_iter().collect(),
        };
        let facts = facts.into_iter().filter(|fact| !fact.is_empty());
        [self.kind().to_string()].into_iter().chain(facts).collect::<Vec<_>>().join(" · ")
    }
}

/// On what something was measured, and when.
fn surroundings(environment: &Environment) -> Vec<String> {
    let device = |device: &DeviceFacts| device.description.clone().unwrap_or_else(|| device.name.clone());
    let devices = environment.devices.iter().map(device);
    let build = environment.runtime.iter().map(|runtime| format!("llama.cpp b{}", runtime.build));
    let begun = (environment.started > 0).then(|| utc(environment.started));
    devices.chain(build).chain(begun).collect()
}

/// A document and where it is from.
#[derive(Debug, Clone)]
pub struct Source {
    /// A path, as it was named.
    pub name: String,
    /// What it holds.
    pub document: Document,
}

/// A file that no report can be made of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model.
    #[error("`{name}` is a GGUF model, and a report is made of documents")]
    Model {
        /// The file.
        name: String,
    },
    /// Not text.
    #[error("`{name}` is not JSON: it is not even text")]
    Binary {
        /// The file.
        name: String,
    },
    /// Nothing.
    #[error("`{name}` is empty")]
    Empty {
        /// The file.
        name: String,
    },
    /// Not JSON.
    #[error("`{name}` is not JSON")]
    Json {
        /// The file.
        name: String,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// JSON without a schema, and not llama-bench's.
    #[error("`{name}` holds no document of moeplan: it names no schema")]
    NoSchema {
        /// The file.
        name: String,
    },
    /// A schema that no report shows.
    #[error("`{name}` is `{schema}`, which a report does not show")]
    Schema {
        /// The file.
        name: String,
        /// What it says it is.
        schema: String,
    },
    /// It is not what its schema says.
    #[error("`{name}` is not a `{schema}`")]
    Shape {
        /// The file.
        name: String,
        /// What it says it is.
        schema: String,
        /// The key that is wrong.
        source: serde_json::Error,
    },
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> String {
        match self {
            Self::Model { name } => {
                format!("`moeplan inspect {name} --json -o inspect.json` writes one of it, so do plan, verify and bench")
            }
            Self::Binary { .. } | Self::Empty { .. } | Self::Json { .. } | Self::NoSchema { .. } | Self::Schema { .. } => {
                "a report shows what inspect, check, plan, run, verify, tune, bench and validate write with --json, and \
                 llama-bench's rows (-o json or -o jsonl)"
                    .to_string()
            }
            Self::Shape { .. } => "was it written by another version of moeplan, or by hand?".to_string(),
        }
    }
}

/// The documents of a file.
pub fn read(name: &str, text: &str) -> Result<Vec<Source>, Error> {
    if text.trim().is_empty() {
        return Err(Error::Empty { name: name.to_string() });
    }
    let values = values(text).map_err(|source| Error::Json { name: name.to_string(), source })?;
    let is_bench = |value: &Value| value.get("avg_ts").is_some();
    let of = |document| vec![Source { name: name.to_string(), document }];
    if !values.is_empty() && values.iter().all(is_bench) {
        return Ok(of(Document::LlamaBench(shape(name, "row of llama-bench", Value::Array(values))?)));
    }
    let mut sources = Vec::new();
    for value in values {
        for document in document(name, value)? {
            sources.extend(of(document));
        }
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

fn document(name: &str, mut value: Value) -> Result<Vec<Document>, Error> {
    let schema = match value.get("schema").and_then(Value::as_str) {
        Some(schema) => schema.to_string(),
        None => return Err(Error::NoSchema { name: name.to_string() }),
    };
    let document = match schema.as_str() {
        "moeplan/inspect/1" => Document::Inspection(shape(name, &schema, value)?),
        "moeplan/inspections/1" => {
            let models = value.get_mut("models").map(Value::take).unwrap_or_default();
            let models: Vec<Inspection> = shape(name, &schema, models)?;
            return Ok(models.into_iter().map(|model| Document::Inspection(Box::new(model))).collect());
        }
        "moeplan/check/1" | "moeplan/plan/1" => Document::Plan(shape(name, &schema, value)?),
        "moeplan/sweep/1" | "moeplan/plans/1" => Document::Sweep(shape(name, &schema, value)?),
        "moeplan/measurement/1" => Document::Measurement(shape(name, &schema, value)?),
        "moeplan/bench/1" => Document::Bench(shape(name, &schema, value)?),
        "moeplan/validation/1" => Document::Validation(shape(name, &schema, value)?),
        "moeplan/run/1" => Document::Launched(shape(name, &schema, value)?),
        "moeplan/tune/1" => Document::Tuning(shape(name, &schema, value)?),
        _ => return Err(Error::Schema { name: name.to_string(), schema }),
    };
    Ok(vec![document])
}

fn shape<T: DeserializeOwned>(name: &str, schema: &str, value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|source| Error::Shape {
        name: name.to_string(),
        schema: schema.to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_known_by_their_schema_and_llama_bench_by_its_keys() {
        let kind = |text: &str| -> Vec<&'static str> {
            let kind = |source: Source| match source.document {
                Document::Inspection(_) => "inspection",
                Document::Plan(_) => "plan",
                Document::Sweep(_) => "sweep",
                Document::LlamaBench(rows) if rows.len() == 2 => "two rows",
                _ => "other",
            };
            read("f", text).unwrap().into_iter().map(kind).collect()
        };
        assert_eq!(kind(r#"{"schema":"moeplan/plan/1"}"#), ["plan"]);
        assert_eq!(kind(r#"{"schema":"moeplan/sweep/1","points":[{"value":1}]}"#), ["sweep"]);
        assert_eq!(kind(r#"{"schema":"moeplan/inspections/1","models":[{},{}]}"#), ["inspection", "inspection"]);
        assert_eq!(kind(r#"[{"avg_ts":1.0},{"avg_ts":2.0}]"#), ["two rows"]);
        assert_eq!(kind("{\"avg_ts\":1.0}\n{\"avg_ts\":2.0}\n"), ["two rows"]);
        assert_eq!(kind("{\"schema\":\"moeplan/check/1\"}\n{\"schema\":\"moeplan/plan/1\"}"), ["plan", "plan"]);
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
            assert!(!error.hint().is_empty());
        }
    }
}
