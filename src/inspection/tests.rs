//! Parameter accounting with hand-computed values, and the warnings.

use std::path::PathBuf;

use super::*;
use crate::gguf::{Gguf, Header, Metadata, TensorInfo};

fn tensor(name: &str, ty: &str, shape: [u64; 4]) -> TensorInfo {
    let ty = GgmlType::from_name(ty).unwrap();
    let rows: u64 = shape[1..].iter().product();
    let bytes = Bytes(ty.row_bytes(shape[0]).unwrap() * rows);
    TensorInfo { name: name.to_string(), ty, n_dims: 4, shape, offset: 0, shard: 0, bytes }
}

/// Apertus is an architecture whose tensors the loader's rules do not name.
/// A model with one key after the other as the loader needs them, and `more` on top (`!key` takes one away).
fn gguf(architecture: &str, more: &[(&str, Value)], tensors: Vec<TensorInfo>) -> Gguf {
    let mut metadata: Metadata = [
        ("context_length", 4096),
        ("embedding_length", 8),
        ("block_count", 2),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("expert_count", 4),
        ("expert_used_count", 1),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{architecture}.{key}"), Value::U64(value)))
    .collect();
    metadata.insert("general.architecture".to_string(), Value::String(architecture.to_string()));
    for (key, value) in more {
        match key.strip_prefix('!') {
            Some(key) => metadata.remove(key),
            None => metadata.insert((*key).to_string(), value.clone()),
        };
    }
    let header =
        Header { version: 3, byte_order: ByteOrder::Little, alignment: 32, data_offset: 1000, metadata, tensors };
    let file = ModelFile { path: PathBuf::from("a/model.gguf"), bytes: Bytes(9999), data_offset: 1000 };
    Gguf { files: vec![file], header }
}

fn inspect(gguf: Gguf) -> Inspection {
    let (model, refused) = Model::as_far_as_readable(gguf);
    Inspection::new(&model, &refused, None)
}

fn codes(inspection: &Inspection) -> Vec<&str> {
    inspection.warnings.iter().map(|warning| &*warning.code).collect()
}

/// Two blocks of four experts of 8 × 32, one shared expert, routers, an embedding of 10 tokens.
fn sample() -> Vec<TensorInfo> {
    let mut tensors = vec![tensor("token_embd.weight", "f16", [8, 10, 1, 1])];
    for block in 0..2 {
        let name = |base: &str| format!("blk.{block}.{base}");
        tensors.extend([
            tensor(&name("ffn_gate_up_exps.weight"), "f16", [8, 64, 4, 1]),
            tensor(&name("ffn_down_exps.weight"), "q8_0", [32, 8, 4, 1]),
            tensor(&name("ffn_down_exps.bias"), "f32", [8, 4, 1, 1]),
            tensor(&name("ffn_gate_inp.weight"), "f32", [8, 4, 1, 1]),
            tensor(&name("ffn_up_shexp.weight"), "f16", [8, 32, 1, 1]),
        ]);
    }
    tensors
}

#[test]
fn parameters_and_bytes_by_hand() {
    let inspection = inspect(gguf("apertus", &[], sample()));
    // A block: 2048 (gate_up) + 1024 (down) + 32 (bias) routed, 32 router, 256 shared.
    let counts = &inspection.parameters;
    assert_eq!(counts.by_role[&Role::RoutedExpert], 2 * 3104);
    assert_eq!(counts.by_role[&Role::Router], 64);
    assert_eq!(counts.by_role[&Role::SharedExpert], 512);
    assert_eq!(counts.by_role[&Role::TokenEmbd], 80);
    assert_eq!(counts.by_role.len(), 10);
    assert_eq!(counts.total, 6208 + 64 + 512 + 80);
    assert_eq!(counts.active, counts.total - 6208 * 3 / 4);
    assert_eq!(counts.active_without_token_embedding, counts.active - 80);
    // A block: 4096 (f16) + 32 rows of a 34-byte block + 128 (f32).
    assert_eq!(inspection.experts.bytes, Bytes(2 * (4096 + 1088 + 128)));
    assert_eq!(inspection.bytes.by_type["q8_0"], Bytes(2 * 1088));
    assert_eq!(inspection.tensors_by_type["f16"].tensors, 5);
    let experts = inspection.experts;
    assert_eq!((experts.count, experts.used, experts.shared, experts.blocks, experts.tensors), (4, 1, 1, 2, 4));
    assert_eq!(inspection.file_type.as_deref(), Some("F16"));
    assert_eq!(codes(&inspection), [""; 0]);
}

#[test]
fn tables_of_rows_are_not_active() {
    let tensors = vec![
        tensor("token_embd.weight", "f16", [8, 10, 1, 1]),
        tensor("per_layer_token_embd.weight", "f16", [64, 10, 1, 1]),
        tensor("blk.0.ffn_up.weight", "f16", [8, 32, 1, 1]),
    ];
    let counts = inspect(gguf("gemma3n", &[], tensors)).parameters;
    assert_eq!((counts.total, counts.by_role[&Role::TokenEmbd]), (80 + 640 + 256, 80 + 640));
    assert_eq!((counts.active, counts.active_without_token_embedding), (80 + 256, 256));
}

#[test]
fn used_and_shared_experts_may_be_stated_otherwise() {
    let used = Value::Array(vec![Value::U64(1), Value::U64(3)]);
    let keys = [("apertus.expert_used_count", used), ("apertus.expert_shared_count", Value::U64(2))];
    let inspection = inspect(gguf("apertus", &keys, sample()));
    assert_eq!((inspection.experts.used, inspection.experts.shared), (3, 2));
    assert_eq!(inspection.parameters.active, inspection.parameters.total - 3104 * 3 / 4 - 3104 / 4);
    let dense = [("!apertus.expert_count", Value::U64(0)), ("!apertus.expert_used_count", Value::U64(0))];
    let inspection = inspect(gguf("apertus", &dense, vec![tensor("blk.0.ffn_up.weight", "f16", [8, 32, 1, 1])]));
    assert_eq!((inspection.parameters.total, inspection.parameters.active, inspection.experts.count), (256, 256, 0));
}

#[test]
fn each_warning_has_its_cause() {
    let text = |text: &str| Value::String(text.to_string());
    let none = Value::U64(0);
    let old = vec![tensor("blk.0.ffn_up.0.weight", "f16", [8, 32, 1, 1])];
    let nextn = vec![
        tensor("blk.1.nextn.eh_proj.weight", "f16", [8, 1, 1, 1]),
        tensor("token_embd.weight", "f16", [8, 99, 1, 1]),
    ];
    let odd = vec![tensor("what.is.this", "f16", [8, 32, 1, 1])];
    let cases: Vec<(Gguf, &[&str])> = vec![
        (gguf("gptq9", &[], sample()), &["unknown-architecture"]),
        (
            gguf(
                "apertus",
                &[("!apertus.context_length", none.clone()), ("!apertus.block_count", none.clone())],
                sample(),
            ),
            &["missing-key"],
        ),
        (gguf("apertus", &[("apertus.block_count", Value::U64(513))], sample()), &["bad-key"]),
        (gguf("apertus", &[("!general.architecture", none)], sample()), &["missing-key"]),
        (gguf("apertus", &[], old), &["per-expert-tensors"]),
        (gguf("apertus", &[("apertus.pooling_type", Value::U64(3))], sample()), &["embedding-model"]),
        (gguf("apertus", &[("apertus.pooling_type", Value::U64(0))], sample()), &[]),
        (gguf("apertus", &[("apertus.nextn_predict_layers", Value::U64(1))], nextn), &["nextn-not-loaded"]),
        (gguf("apertus", &[("general.file_type", Value::U64(15))], sample()), &["file-type-differs"]),
        (gguf("apertus", &[], odd), &["unnamed-tensors"]),
        (gguf("llama", &[], sample()), &["missing-key"]),
        (gguf("apertus", &[("general.type", text("adapter"))], sample()), &["not-a-model"]),
        (gguf("clip", &[], sample()), &["not-a-model", "projector-refused"]),
        (gguf("apertus", &[], Vec::new()), &["not-a-model"]),
    ];
    for (gguf, expected) in cases {
        let name = format!("{:?}", gguf.header.metadata);
        assert_eq!(codes(&inspect(gguf)), expected, "{name}");
    }
    let mut big = gguf("apertus", &[], sample());
    big.header.byte_order = ByteOrder::Big;
    assert_eq!(codes(&inspect(big)), ["big-endian"]);
}
