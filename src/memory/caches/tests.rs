//! Every memory class on hand-made hyper-parameters; the figures were worked out by hand from llama.cpp b11434.

use super::*;
use crate::gguf::{ByteOrder, Gguf, Header, Metadata, Value};
use crate::run::Program;
use crate::run::numbers::numbers;
use crate::run::{Dialect, Target};

/// A model of `architecture` with `KEY=N` and `KEY=N,N,…` pairs and no tensors.
pub(crate) fn model(architecture: &str, keys: &str) -> Model {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_string(), Value::String(architecture.to_string()));
    for (key, default) in [("context_length", 4096), ("embedding_length", 512), ("vocab_size", 1000)] {
        metadata.insert(format!("{architecture}.{key}"), Value::U64(default));
    }
    for pair in keys.split_whitespace() {
        let (key, value) = pair.split_once('=').expect("KEY=VALUE");
        let number = |text: &str| Value::U64(text.parse().expect("a number"));
        let value = match value.split_once(',') {
            Some(_) => Value::Array(value.split(',').map(number).collect()),
            None => number(value),
        };
        metadata.insert(format!("{architecture}.{key}"), value);
    }
    let header = Header {
        version: 3,
        byte_order: ByteOrder::Little,
        alignment: 32,
        data_offset: 0,
        metadata,
        tensors: Vec::new(),
    };
    Model::as_far_as_readable(Gguf { files: Vec::new(), header }).0
}

/// `kind cells×streams layers:k/v`, one line a cache that has layers.
fn lines(list: &[Cache]) -> String {
    let layer = |l: &CacheLayer| format!("{}:{}/{}", l.il, l.n_embd_k, l.n_embd_v);
    let line = |c: &Cache| {
        let layers: Vec<_> = c.layers.iter().map(layer).collect();
        format!("{:?} {}×{} {}", c.kind, c.cells, c.n_stream, layers.join(" "))
    };
    list.iter().filter(|c| !c.layers.is_empty()).map(line).collect::<Vec<_>>().join("\n")
}

fn one_slot() -> RunConfig {
    RunConfig { n_ctx: 4096, n_parallel: Some(1), ..RunConfig::default() }
}

fn check(architecture: &str, keys: &str, run: &RunConfig, expected: &str) {
    let model = model(architecture, keys);
    let caches = caches(&model, run, &numbers(run, &model.hparams));
    assert_eq!(lines(&caches.list), expected.replace("; ", "\n"), "{architecture} {keys}");
}

#[test]
fn plain_caches() {
    let run = one_slot();
    let keys = "block_count=2 attention.head_count=8 attention.head_count_kv=2";
    check("llama", keys, &run, "Base 4096×1 0:128/128 1:128/128");
    check("t5", keys, &run, "Base 4096×1 0:128/128 1:128/128");
    check("bert", keys, &run, "");
    check("gemma4-assistant", keys, &run, "");
    let nextn = format!("{keys} nextn_predict_layers=1");
    check("glm4moe", &nextn, &run, "Base 4096×1 0:128/128");
    // The router's layer comes on top of the blocks, with one head of its own.
    check("graniteswitch", keys, &run, "Base 4096×1 0:128/128 1:128/128 2:64/64");
    check("nanbeige", &format!("{keys} num_loops=2"), &run, "Base 4096×1 0:128/128 1:128/128 2:128/128 3:128/128");
}

#[test]
fn slots_unified_or_not() {
    let keys = "block_count=2 attention.head_count=8 attention.sliding_window=128";
    let server = RunConfig { n_ctx: 16384, ..RunConfig::default() };
    check("gpt-oss", keys, &server, "Base 16384×1 1:512/512; Swa 1024×1 0:512/512");
    let four = RunConfig { n_parallel: Some(4), ..server.clone() };
    check("gpt-oss", keys, &four, "Base 4096×4 1:512/512; Swa 768×4 0:512/512");
    let full = RunConfig { swa_full: true, ..four };
    check("gpt-oss", keys, &full, "Base 4096×4 1:512/512; Swa 4096×4 0:512/512");
    let bench = RunConfig { program: Program::Bench, n_ctx: 512, ..RunConfig::default() };
    check("gpt-oss", keys, &bench, "Base 512×1 1:512/512; Swa 512×1 0:512/512");
}

#[test]
fn windows_by_architecture() {
    let run = RunConfig { n_ctx: 32768, ..one_slot() };
    let keys = "block_count=4 attention.head_count=8";
    let plain = "Base 32768×1 0:512/512 1:512/512 2:512/512 3:512/512";
    check("llama4", &format!("{keys} attention.sliding_window=0"), &run, plain);
    let chunks = "Base 32768×1 3:512/512; Swa 8704×1 0:512/512 1:512/512 2:512/512";
    check("llama4", &format!("{keys} attention.sliding_window=64"), &run, chunks);
    check("smallthinker", keys, &run, plain);
    let forced = "Base 32768×1 0:512/512; Swa 4608×1 1:512/512 2:512/512 3:512/512";
    check("smallthinker", &format!("{keys} attention.sliding_window=64"), &run, forced);
    check("phi3", &format!("{keys} attention.sliding_window=64"), &run, plain);
    check("exaone4", &format!("{keys} attention.sliding_window=64"), &run, plain);
    let stated = format!("{keys} attention.sliding_window=256 attention.sliding_window_pattern=0,1,0,1");
    check("step35", &stated, &run, "Base 32768×1 0:512/512 2:512/512; Swa 768×1 1:512/512 3:512/512");
    let scalar = format!("{keys} attention.sliding_window=256 attention.sliding_window_pattern=2");
    check("gemma3", &scalar, &run, "Base 32768×1 1:512/512 3:512/512; Swa 768×1 0:512/512 2:512/512");
}

#[test]
fn layers_that_share_keys() {
    let keys = "block_count=6 attention.head_count=8 attention.head_count_kv=1 attention.shared_kv_layers=3 \
        attention.key_length=512 attention.value_length=512 attention.key_length_swa=256 attention.value_length_swa=256 \
        attention.sliding_window=512 attention.sliding_window_pattern=1,1,0,1,1,0";
    check("gemma4", keys, &one_slot(), "Base 4096×1 2:512/512; Swa 1024×1 0:256/256 1:256/256");
    let keys = "block_count=25 attention.head_count=8 attention.head_count_kv=1 attention.sliding_window=512";
    let model = model("gemma3n", keys);
    let run = one_slot();
    let caches = caches(&model, &run, &numbers(&run, &model.hparams));
    assert_eq!(caches.list.iter().map(|c| c.layers.len()).collect::<Vec<_>>(), [4, 16]);
}

#[test]
fn latent_caches() {
    let mla = "block_count=3 attention.head_count=8 attention.head_count_kv=1 attention.key_length=576 \
        attention.value_length=512 attention.key_length_mla=192 attention.value_length_mla=128";
    let run = one_slot();
    check("deepseek2", mla, &run, "Base 4096×1 0:576/0 1:576/0 2:576/0");
    let old = "block_count=1 attention.head_count=8 attention.key_length=192 attention.value_length=128";
    check("deepseek2", old, &run, "Base 4096×1 0:1536/1024");
    let indexer = format!(
        "{mla} rope.dimension_count=64 attention.indexer.head_count=1 attention.indexer.key_length=128 \
         attention.indexer.top_k=64"
    );
    let both = "Base 4096×1 0:576/0 1:576/0 2:576/0; Indexer 4096×1 0:128/0 1:128/0 2:128/0";
    check("glm-dsa", &indexer, &run, both);
    check("deepseek32", &indexer, &run, both);
    let typed = format!("{indexer} attention.indexer.types=1,0,1");
    check("glm-dsa", &typed, &run, "Base 4096×1 0:576/0 1:576/0 2:576/0; Indexer 4096×1 0:128/0 2:128/0");
    check("hy_v4", mla, &run, "Base 4096×1 0:576/0 1:576/0 2:576/0");
    check("hy_v4", &typed, &run, "Base 4096×1 0:576/0 1:576/0 2:576/0; Indexer 4096×1 0:128/0 2:128/0");
    let trunk = format!("{indexer} nextn_predict_layers=1");
    check("deepseek32", &trunk, &run, "Base 4096×1 0:576/0 1:576/0; Indexer 4096×1 0:128/0 1:128/0");
}

#[test]
fn glm_5_2_has_indexers_in_some_layers_only() {
    let keys = "block_count=80 context_length=1048576 attention.head_count=8 attention.indexer.key_length=128";
    let model = model("glm-dsa", keys);
    let run = one_slot();
    let caches = caches(&model, &run, &numbers(&run, &model.hparams));
    let layers: Vec<_> = caches.list[1].layers.iter().map(|l| l.il).collect();
    assert_eq!((layers.len(), &layers[..6], layers.last()), (21, &[0, 1, 2, 6, 10, 14][..], Some(&74)));
}

#[test]
fn an_index_cache_with_a_v_that_nobody_reads() {
    let keys = "block_count=2 attention.head_count=8 attention.head_count_kv=2 leading_dense_block_count=1 \
        attention.indexer.key_length=128";
    check("minimax-m3", keys, &one_slot(), "Base 4096×1 0:128/128 1:128/128; Indexer 4096×1 1:128/64");
}

#[test]
fn compressed_caches_keep_a_stream_a_sequence() {
    let keys = "block_count=3 attention.head_count=8 attention.head_count_kv=1 attention.key_length=512 \
        attention.value_length=512 attention.sliding_window=128 attention.indexer.key_length=128 \
        attention.compress_ratios=0,4,128 expert_gating_func=4 nextn_predict_layers=1";
    let run = RunConfig { n_ctx: 65536, n_parallel: Some(2), kv_unified: Some(true), ..RunConfig::default() };
    let expected = "Swa 768×2 0:512/0 1:512/0 2:512/0; Csa 16384×2 1:512/0; Hca 512×2 2:512/0; \
        Indexer 16384×2 1:128/0; CsaState 8×2 1:1024/1024; HcaState 128×2 2:512/512; IndexerState 8×2 1:256/256";
    check("deepseek4", keys, &run, expected);
}

#[test]
fn recurrent_states_by_sequence() {
    let two = RunConfig { n_parallel: Some(2), ..one_slot() };
    let mamba = "block_count=1 ssm.conv_kernel=4 ssm.inner_size=1024 ssm.state_size=16 ssm.group_count=2";
    check("mamba", mamba, &two, "Recurrent 2×1 0:3072/16384");
    check("mamba2", mamba, &two, "Recurrent 2×1 0:3264/16384");
    check("rwkv6", "block_count=1 wkv.head_size=64", &two, "Recurrent 2×1 0:1024/32768");
    check("rwkv7", "block_count=1 wkv.head_size=64 token_shift_count=1", &two, "Recurrent 2×1 0:512/32768");
    let lfm = "block_count=2 attention.head_count=8 attention.head_count_kv=0,2 shortconv.l_cache=3";
    check("lfm2moe", lfm, &one_slot(), "Base 4096×1 1:128/128; Recurrent 1×1 0:1024/0");
    let windowed = format!("{lfm} attention.sliding_window=256");
    check("lfm2", &windowed, &one_slot(), "Swa 768×1 1:128/128; Recurrent 1×1 0:1024/0");
    let linear = "block_count=8 attention.head_count=8 attention.key_length=32 full_attention_interval=8";
    let expected =
        "Base 4096×1 7:256/512; Recurrent 1×1 0:0/8192 1:0/8192 2:0/8192 3:0/8192 4:0/8192 5:0/8192 6:0/8192";
    check("minimax-01", linear, &one_slot(), expected);
    let kda = "block_count=2 attention.head_count=8 attention.head_count_kv=0,1 attention.key_length=576 \
        attention.key_length_mla=192 attention.value_length_mla=128 ssm.conv_kernel=4 kda.head_dim=64";
    check("kimi-linear", kda, &one_slot(), "Base 4096×1 1:576/0; Recurrent 1×1 0:4608/32768");
}

#[test]
fn drafting_keeps_snapshots_and_a_second_context() {
    let keys = "block_count=5 nextn_predict_layers=1 attention.head_count=8 attention.head_count_kv=2 \
        ssm.conv_kernel=4 ssm.inner_size=1024 ssm.state_size=128 ssm.group_count=2";
    let run = RunConfig { mtp: true, n_draft: 3, n_rs_seq: 3, ..one_slot() };
    let model = model("qwen35moe", keys);
    let caches = caches(&model, &run, &numbers(&run, &model.hparams));
    let states = "0:4608/131072 1:4608/131072 2:4608/131072";
    assert_eq!(lines(&caches.list), format!("Base 4096×1 3:128/128\nRecurrent 4×1 {states}"));
    let drafting = run.drafting(4096);
    let caches = super::caches(&model, &drafting, &numbers(&drafting, &model.hparams));
    assert_eq!(lines(&caches.list), "Base 4096×1 4:128/128");
    check("qwen3next", keys, &run, &format!("Base 4096×1 3:128/128; Recurrent 1×1 {states}"));
}

#[test]
fn v_is_as_wide_as_the_widest_layer_without_flash_attention() {
    let keys = "block_count=2 attention.head_count=8 attention.head_count_kv=1,4";
    let off = RunConfig { flash_attn: FlashAttn::Off, ..one_slot() };
    check("llama", keys, &one_slot(), "Base 4096×1 0:64/64 1:256/256");
    check("llama", keys, &off, "Base 4096×1 0:64/256 1:256/256");
    check("grok", keys, &one_slot(), "Base 4096×1 0:64/256 1:256/256");
}

/// `llama_kv_cache_init` of ik_llama.cpp: every layer as long as the context, NextN blocks included, latent rows by `-mla`.
#[test]
fn ik_llama_cpp_keeps_its_caches_in_its_own_way() {
    let ik = RunConfig {
        target: Target { dialect: Dialect::Ik, ..Target::default() },
        flash_attn: FlashAttn::On,
        ..one_slot()
    };
    let windowed = "block_count=2 attention.head_count=8 attention.head_count_kv=2 attention.sliding_window=128";
    check("gpt-oss", windowed, &ik, "Base 4096×1 0:128/128 1:128/128");
    let nextn = "block_count=2 attention.head_count=8 attention.head_count_kv=2 nextn_predict_layers=1";
    check("glm4moe", nextn, &ik, "Base 4096×1 0:128/128 1:128/128");
    // Since its pull request 1270 only where they draft; unless a build is named, it is not known.
    let later = RunConfig { target: Target { dialect: Dialect::Ik, build: 4533 }, ..ik.clone() };
    check("glm4moe", nextn, &later, "Base 4096×1 0:128/128");
    check("glm4moe", nextn, &RunConfig { mtp: true, ..later }, "Base 4096×1 0:128/128 1:128/128");
    let off = RunConfig { n_ctx: 5000, flash_attn: FlashAttn::Off, ..ik.clone() };
    check("llama", "block_count=1 attention.head_count=8", &off, "Base 5024×1 0:512/512");
    // Without a stream by slot.
    check(
        "llama",
        "block_count=1 attention.head_count=8",
        &RunConfig { n_parallel: Some(3), ..ik.clone() },
        "Base 4096×1 0:512/512",
    );

    let old = "block_count=1 attention.head_count=8 attention.key_length=192 attention.value_length=128 attention.kv_lora_rank=512 \
        rope.dimension_count=64";
    let mla = |mla| RunConfig { mla: Some(mla), ..ik.clone() };
    check("deepseek2", old, &one_slot(), "Base 4096×1 0:1536/1024");
    check("deepseek2", old, &ik, "Base 4096×1 0:576/0");
    check("deepseek2", old, &mla(1), "Base 4096×1 0:576/0");
    check("deepseek2", old, &RunConfig { flash_attn: FlashAttn::Off, ..mla(1) }, "Base 4096×1 0:576/512");
    check("deepseek2", old, &mla(0), "Base 4096×1 0:1536/1024");
    let new = "block_count=1 attention.head_count=8 attention.head_count_kv=1 attention.key_length=576 attention.value_length=512 \
        attention.key_length_mla=192 attention.value_length_mla=128 attention.kv_lora_rank=512 rope.dimension_count=64";
    check("deepseek2", new, &ik, "Base 4096×1 0:576/0");
    check("deepseek2", new, &mla(0), "Base 4096×1 0:1536/1024");
    let indexed = format!("{new} attention.indexer.key_length=128 attention.indexer.top_k=2048");
    check("glm-dsa", &indexed, &one_slot(), "Base 4096×1 0:576/0; Indexer 4096×1 0:128/0");
    check("glm-dsa", &indexed, &ik, "Base 4096×1 0:576/0");
}

/// Older builds of llama.cpp: V beside the latents, no indexer, no streams.
#[test]
fn older_builds_keep_more_or_less() {
    let at = |build| RunConfig { target: Target { build, ..Target::default() }, ..one_slot() };
    let latent = "block_count=1 attention.head_count=8 attention.head_count_kv=1 attention.key_length=576 attention.value_length=512 \
        attention.key_length_mla=192 attention.value_length_mla=128 attention.indexer.key_length=128 attention.indexer.top_k=2048";
    check("deepseek2", latent, &at(5331), "Base 4096×1 0:576/512");
    check("deepseek2", latent, &at(8000), "Base 4096×1 0:576/0");
    check("glm-dsa", latent, &at(10001), "Base 4096×1 0:576/0");
    check("glm-dsa", latent, &at(10235), "Base 4096×1 0:576/0; Indexer 4096×1 0:128/0");
    let slots = |build| RunConfig { n_parallel: Some(3), n_ctx: 1000, ..at(build) };
    let keys = "block_count=1 attention.head_count=8";
    check("llama", keys, &slots(5622), "Base 1024×1 0:512/512");
    check("llama", keys, &slots(6699), "Base 512×3 0:512/512");
}
