//! The JSON Schemas of the documents, made from their types and held to the files of `schema/`.
//!
//! `SNAPSHOTS=overwrite cargo test --lib schema` writes them anew after a type has changed.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::{ask, commands, doctor, emit, inspection, measurement, plan, report, suite, tune};

/// The schema of one document, whose `schema` key holds `moeplan/NAME`.
fn schema<T: JsonSchema>(name: &str) -> (String, Value) {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut root = generator.into_root_schema_for::<T>().to_value();
    let full = format!("moeplan/{name}");
    let about = json!({ "description": "Name and version of the document.", "const": full });
    let marked = root.pointer_mut("/properties/schema").map(|schema| *schema = about);
    assert!(marked.is_some(), "{full} has no `schema` key");
    root["title"] = full.into();
    (name.to_string(), root)
}

/// Every document that a command writes with `--json`, by name and version.
fn schemas() -> BTreeMap<String, Value> {
    BTreeMap::from([
        schema::<inspection::Inspection>("inspect/1"),
        schema::<inspection::Several>("inspections/1"),
        schema::<ask::quants::Quants>("quants/1"),
        schema::<commands::what_if::listing::Document>("what-if/1"),
        schema::<commands::list::List>("list/1"),
        schema::<plan::Checked>("check/1"),
        schema::<ask::check::Checks>("checks/1"),
        schema::<plan::Plan>("plan/1"),
        schema::<plan::sweep::SweepDocument>("sweep/1"),
        schema::<plan::sweep::Plans>("plans/1"),
        schema::<plan::want::Wanted>("want/1"),
        schema::<ask::together::Together>("together/1"),
        schema::<plan::rule_file::RulesCheck>("rules/1"),
        schema::<report::page::rules::RuleSets<'_>>("rule-sets/1"),
        schema::<emit::embedded::Parameters>("embedded/1"),
        schema::<report::page::devices::Devices>("devices/1"),
        schema::<ask::known::Known>("known/1"),
        schema::<doctor::Doctor<'_>>("doctor/1"),
        schema::<commands::synth::Document>("synth/1"),
        schema::<commands::synth::List>("synth-list/1"),
        schema::<measurement::Launched>("run/1"),
        schema::<measurement::Measurement>("measurement/1"),
        schema::<tune::document::Document>("tune/1"),
        schema::<suite::document::Bench>("bench/1"),
        schema::<suite::document::Validation>("validation/1"),
    ])
}

/// What the tools of `moeplan mcp` are asked, by the name of the file.
fn questions() -> BTreeMap<String, Value> {
    fn question<T: JsonSchema>(tool: &str) -> (String, Value) {
        let generator = SchemaSettings::draft2020_12().into_generator();
        (format!("mcp-{tool}"), generator.into_root_schema_for::<T>().to_value())
    }
    BTreeMap::from([
        question::<commands::mcp::Inspect>("inspect"),
        question::<commands::mcp::Check>("check"),
        question::<commands::mcp::Plan>("plan"),
        question::<commands::mcp::Devices>("devices"),
    ])
}

/// What is kept between runs and no command writes as its answer.
const KEPT: [&str; 3] = ["evidence/1", "tune-visit/1", "validation-step/1"];

/// The names of schemas that a text of this source tree holds: `"moeplan/NAME/N"`.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let of_version =
        |name: &&str| name.rsplit_once('/').is_some_and(|(kind, n)| !kind.contains('/') && n.parse::<u32>().is_ok());
    text.split("\"moeplan/").skip(1).filter_map(|rest| rest.split('"').next()).filter(of_version)
}

#[test]
fn no_document_is_without_a_schema() {
    fn see(folder: &Path, schemas: &BTreeMap<String, Value>) {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                see(&path, schemas);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests make up names of versions to come.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            for name in named(code).filter(|name| !KEPT.contains(name)) {
                assert!(
                    schemas.contains_key(name),
                    "{}: `moeplan/{name}` has no schema in src/schema.rs",
                    path.display()
                );
            }
        }
    }
    assert_eq!(
        named("x \"moeplan/plan/1\" \"moeplan/x\" \"moeplan/a-b/12\"").collect::<Vec<_>>(),
        ["plan/1", "a-b/12"]
    );
    see(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &schemas());
}

#[test]
fn the_files_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let mut stale = Vec::new();
    let mut known = Vec::new();
    for (name, schema) in schemas().into_iter().chain(questions()) {
        let path = folder.join(format!("{}.json", name.replace('/', "-")));
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("SNAPSHOTS").is_some_and(|wish| wish == "overwrite") {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        // Git may have given the file another line ending.
        if std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n") != text {
            stale.push(name);
        }
        known.push(path);
    }
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    for name in schemas().keys() {
        let file = format!("(../schema/{}.json)", name.replace('/', "-"));
        assert!(page.contains(&format!("| `moeplan/{name}` |")) && page.contains(&file), "docs/json.md lacks {name}");
    }
    assert!(stale.is_empty(), "schema/ is out of date for {}: see src/schema.rs", stale.join(", "));
    let found = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let orphans: Vec<_> = found.filter(|path| !known.contains(path)).collect();
    assert!(orphans.is_empty(), "no document has {orphans:?}");
}
