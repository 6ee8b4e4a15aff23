//! Any hyper-parameters and tensors: what inspect, check and their pages make of them.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::Value;
use moeplan::inspection::Inspection;
use moeplan::model::Model;
use moeplan_fuzz::{Draw, checked, header, machine, model, shown};

const ARCHITECTURES: [&str; 16] = [
    "llama", "qwen3moe", "gpt-oss", "deepseek2", "gemma3n", "mamba2", "qwen35moe", "granitehybrid", "glm4moe",
    "lfm2moe", "minimax-m2", "gemma3", "jamba", "rwkv7", "nanbeige", "llama4",
];

const KEYS: [&str; 36] = [
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "expert_count", "expert_used_count", "expert_shared_count", "vocab_size",
    "attention.key_length", "attention.value_length", "attention.sliding_window", "nextn_predict_layers",
    "attention.sliding_window_pattern", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count",
    "ssm.time_step_rank", "attention.kv_lora_rank", "attention.q_lora_rank", "attention.key_length_mla",
    "attention.value_length_mla", "rope.dimension_count", "leading_dense_block_count", "wkv.head_size",
    "full_attention_interval", "shortconv.l_cache", "num_loops", "attention.shared_kv_layers",
    "attention.key_length_swa", "expert_feed_forward_length", "embedding_length_per_layer_input",
    "attention.indexer.head_count", "attention.indexer.key_length",
];

const NAMES: [&str; 24] = [
    "token_embd", "output", "output_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "ffn_up",
    "ffn_gate", "ffn_down", "ffn_up_exps", "ffn_gate_exps", "ffn_down_exps", "ffn_gate_inp", "ffn_up_shexp", "ssm_in",
    "ssm_conv1d", "ssm_out", "attn_kv_a_mqa", "attn_kv_b", "nextn.eh_proj", "per_layer_token_embd", "attn_qkv",
];

const COMMANDS: [&str; 8] = [
    "-ngl 99", "-ngl 1 -ts 3,1", "-cmoe -fa on", "-ncmoe 1 -ctk q8_0", "-c 4096 -np 4 -ub 16", "-ot exps=CPU",
    "-ngl 2 -c 0 --swa-full", "-b 1 -ub 1 -c 1",
];

fuzz_target!(|bytes: &[u8]| {
    let mut draw = Draw(bytes);
    let architecture = ARCHITECTURES[usize::from(draw.below(16))];
    let mut metadata = BTreeMap::new();
    metadata.insert("general.architecture".to_string(), Value::String(architecture.into()));
    let key = |name: &str| format!("{architecture}.{name}");
    for (name, value) in [("block_count", 2), ("context_length", 4096), ("embedding_length", 256)] {
        metadata.insert(key(name), Value::U64(value));
    }
    for (name, value) in [("attention.head_count", 4), ("feed_forward_length", 512)] {
        metadata.insert(key(name), Value::U64(value));
    }
    let command = COMMANDS[usize::from(draw.below(8))];
    for _ in 0..draw.below(16) {
        let name = KEYS[usize::from(draw.below(36))];
        metadata.insert(key(name), draw.value());
    }
    let mut tensors = Vec::new();
    for _ in 0..draw.below(32) {
        let base = NAMES[usize::from(draw.below(24))];
        let name = match draw.below(8) {
            0 => format!("{base}.weight"),
            1 => draw.text(),
            block => format!("blk.{}.{base}.weight", block - 2),
        };
        let is_known = tensors.iter().any(|tensor: &moeplan::gguf::TensorInfo| tensor.name == name);
        tensors.extend(draw.tensor(name).filter(|_| !is_known));
    }
    let Some(header) = header(metadata, tensors) else { return };
    let (model, refused) = Model::as_far_as_readable(model(header));
    let inspection = Inspection::new(&model, &refused, None).with_tensors(&model).with_metadata(&model);
    shown(&inspection);
    if !refused.is_empty() {
        return;
    }
    checked(&model, &machine(), command);
});
