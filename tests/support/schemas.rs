//! Documents held to the JSON Schemas of `schema/`.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The file that describes documents of a schema's name, if it is one of moeplan's.
pub fn file(name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("moeplan/")?.replace('/', "-");
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("schema").join(format!("{name}.json")))
}

/// The schema of a document by its name.
pub fn read(name: &str) -> Value {
    let path = file(name).unwrap_or_else(|| panic!("`{name}` is no document of moeplan"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a schema has against a document: a line each.
pub fn faults(schema: &Value, document: &Value) -> Vec<String> {
    let validator = jsonschema::draft202012::new(schema).expect("a JSON Schema");
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Demands that a document, and every document inside it, is as its schema says.
pub fn assert_valid(document: &Value) {
    let name = document["schema"].as_str().unwrap_or_else(|| panic!("no schema is named: {document}"));
    let faults = faults(&read(name), document);
    assert!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
    each_inside(document, &assert_valid);
}

/// Calls `see` with the outermost documents inside a value.
fn each_inside(value: &Value, see: &dyn Fn(&Value)) {
    let children: Vec<&Value> = match value {
        Value::Object(keys) => keys.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => return,
    };
    for child in children {
        let is_document = child["schema"].as_str().is_some_and(|name| name.starts_with("moeplan/"));
        if is_document { see(child) } else { each_inside(child, see) }
    }
}
