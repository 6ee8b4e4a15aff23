//! Any text as a placement rule file: what it does to a model, or a mistake with its line.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use moeplan::model::Model;
use moeplan::plan::rule_file::{check, overrides, parse};
use moeplan_fuzz::{made, shown};

/// A mixture of experts of three blocks.
fn experts() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::from_gguf(made("qwen3-30b-a3b", Some(3))).expect("a model"))
}

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    match parse("mine.yaml", &text) {
        Ok(file) => {
            let model = experts();
            let checked = check("mine.yaml", &file, Some(model), None, None);
            let taken: usize = checked.unmatched.iter().map(|rest| rest.tensors).sum();
            assert!(taken <= model.tensors.len());
            let _ = overrides(&file, model);
            shown(&checked);
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
});
