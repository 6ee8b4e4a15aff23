//! The documents that a report is made of, told apart by their schema; llama-bench's JSON has none and is known by its keys.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::page::Document;
use super::page::compare::Source;
use crate::ask::check::Checks;
use crate::ask::together::Together;
use crate::inspection::{Inspection, Several};
use crate::measurement::{Launched, Measurement};
use crate::plan::sweep::{Plans, SweepDocument};
use crate::plan::want::Wanted;
use crate::plan::{Checked, Plan};
use crate::speed::samples::BenchRow;
use crate::suggest::Refusal;
use crate::suite::document::{Bench, Validation};
use crate::tune::document::Document as Tuning;

const KNOWN: &str = "a report shows what inspect, check, plan, run, verify, tune, bench and validate write with --json, and \
                     llama-bench's rows (-o json or -o jsonl)";

pub fn read(name: &str, bytes: Vec<u8>) -> Result<Vec<Source>, Refusal> {
    if bytes.starts_with(b"GGUF") {
        return Err(Refusal::new(
            format!("`{name}` is a GGUF model, but a report is made from documents"),
            format!("`moeplan inspect {name} --json -o inspect.json` writes one for it; so do plan, verify and bench"),
        ));
    }
    let unknown = |what: String| Refusal::new(format!("`{name}` {what}"), KNOWN);
    let text = String::from_utf8(bytes).map_err(|_| unknown("is not JSON: it is not even text".into()))?;
    if text.trim().is_empty() {
        return Err(unknown("is empty".into()));
    }
    // Of JSON lines a value a line, of an array its elements.
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter() {
        match value.map_err(|error| unknown(format!("is not JSON: {error}")))? {
            Value::Array(elements) => values.extend(elements),
            other => values.push(other),
        }
    }
    let no_schema = || unknown("is not a moeplan document: it has no schema".into());
    let mut documents = Vec::new();
    if !values.is_empty() && values.iter().all(|value| value.get("avg_ts").is_some()) {
        documents.push(shaped::<Vec<BenchRow>>(name, "row of llama-bench", Value::Array(values))?);
    } else {
        for value in values {
            let schema = value.get("schema").and_then(Value::as_str).ok_or_else(no_schema)?.to_string();
            let shape = match schema.as_str() {
                "moeplan/inspect/1" => shaped::<Inspection>,
                "moeplan/inspections/1" => shaped::<Several>,
                "moeplan/check/1" => shaped::<Checked>,
                "moeplan/checks/1" => shaped::<Checks>,
                "moeplan/plan/1" => shaped::<Plan>,
                "moeplan/sweep/1" => shaped::<SweepDocument>,
                "moeplan/plans/1" => shaped::<Plans>,
                "moeplan/want/1" => shaped::<Wanted>,
                "moeplan/together/1" => shaped::<Together>,
                "moeplan/measurement/1" => shaped::<Measurement>,
                "moeplan/bench/1" => shaped::<Bench>,
                "moeplan/validation/1" => shaped::<Validation>,
                "moeplan/run/1" => shaped::<Launched>,
                "moeplan/tune/1" => shaped::<Tuning>,
                _ => return Err(unknown(format!("is `{schema}`, which a report does not show"))),
            };
            documents.push(shape(name, &schema, value)?);
        }
    }
    if documents.is_empty() {
        return Err(no_schema());
    }
    Ok(documents.into_iter().map(|document| Source { name: name.to_string(), document }).collect())
}

fn shaped<T: DeserializeOwned + Document + 'static>(
    name: &str,
    schema: &str,
    value: Value,
) -> Result<Box<dyn Document>, Refusal> {
    let document = serde_json::from_value::<T>(value).map_err(|error| {
        let hint = "was it written by another version of moeplan, or by hand?";
        Refusal::new(format!("`{name}` is not a `{schema}`: {error}"), hint)
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
        for (text, kinds) in [
            (launched.to_string(), vec!["Launch"]),
            (format!("{launched}\n{launched}"), vec!["Launch", "Launch"]),
            (format!("[{launched},{launched}]"), vec!["Launch", "Launch"]),
            (format!("[{row},{row}]"), vec!["llama-bench"]),
            (format!("{row}\n{row}\n"), vec!["llama-bench"]),
        ] {
            let read = read("f", text.into()).unwrap();
            assert_eq!(read.iter().map(|source| source.document.pages()[0].kind).collect::<Vec<_>>(), kinds);
        }
        for (text, expected) in [
            ("\n", "`f` is empty"),
            ("[]", "`f` is not a moeplan document"),
            ("{", "`f` is not JSON"),
            ("3", "has no schema"),
            (r#"{"schema":"moeplan/plan/2"}"#, "`moeplan/plan/2`, which a report does not show"),
            (r#"{"schema":"moeplan/plan/1","memory":3}"#, "is not a `moeplan/plan/1`"),
            (r#"[{"avg_ts":"fast"}]"#, "is not a `row of llama-bench`"),
            (r#"[{"avg_ts":1},{"schema":"x"}]"#, "has no schema"),
        ] {
            let error = read("f", text.into()).err().unwrap();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }
}
