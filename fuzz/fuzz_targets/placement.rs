//! Any text as a placement rule file: what it does to a model, or a mistake with its line.
#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::Value;
use moeplan::model::Model;
use moeplan::plan::rule_file::{check, overrides, parse};
use moeplan_fuzz::{Draw, header, model, shown};

/// A mixture of experts of three blocks.
fn experts() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let numbers = [
            ("block_count", 3),
            ("context_length", 4096),
            ("embedding_length", 256),
            ("attention.head_count", 4),
            ("feed_forward_length", 512),
            ("expert_count", 4),
            ("expert_used_count", 2),
        ];
        let keys = numbers.map(|(name, number)| (format!("qwen3moe.{name}"), Value::U64(number)));
        let mut metadata = BTreeMap::from(keys);
        metadata.insert("general.architecture".to_string(), Value::String("qwen3moe".to_string()));
        let of_block = ["attn_q", "ffn_norm", "ffn_up_exps", "ffn_gate_exps", "ffn_down_exps", "ffn_gate_inp"];
        let names = (0..3).flat_map(|block| of_block.map(|name| format!("blk.{block}.{name}.weight")));
        let names = names.chain(["token_embd.weight", "output.weight"].map(str::to_string));
        // One dimension of a number of one byte: 32 times 8 elements, whole blocks of every type.
        let tensors = names.filter_map(|name| Draw(&[0, 0, 0, 255]).tensor(name)).collect();
        let header = header(metadata, tensors).expect("a header");
        Model::from_gguf(model(header)).expect("a model")
    })
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
