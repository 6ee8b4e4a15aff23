//! One row an architecture.

use super::super::Norm;
use super::super::attention::Extras;
use super::super::ffn::{Act, Gating};
use super::super::inputs::Embeddings;
use super::Architecture::{self, Own, Plain};
use super::plain::{Input, Logits, NormW, PLAIN, Pick, Pre, QkNorm, Residual, Rope, Spec};
use super::{deepseek4, delta, dsa, gemma, glm5_next, hyper, kda, kimi_k3, minimax, mixed, mla, own, plamo2, qwen4exp};

/// Scores that fall with distance.
const ALIBI: Extras = Extras { alibi: true, ..PLAIN.extras };

/// By `general.architecture`.
pub(super) static ARCHITECTURES: &[(&str, Architecture)] = &[
    (
        "afmoe",
        Plain(Spec {
            gating_stated: true,
            norm_w: NormW::Stated,
            input: Input::Scaled,
            rope: Rope::SkipEvery(4),
            attn_post_norm: Some("post_attention_norm"),
            ffn_post_norm: Some("post_ffw_norm"),
            ..PLAIN
        }),
    ),
    ("arcee", Plain(Spec { act: Act::ReluSqr, ..PLAIN })),
    ("bailingmoe", Plain(Spec { norm_w: NormW::Stated, ..PLAIN })),
    ("bailingmoe2", Plain(Spec { gating_stated: true, norm_w: NormW::Stated, gating: Gating::Softmax, ..PLAIN })),
    ("chatglm", Plain(Spec { act: Act::SwigluFused, ..PLAIN })),
    ("codeshell", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, ..PLAIN })),
    (
        "cohere2",
        Plain(Spec {
            norm: Norm::Layer,
            residual: Residual::Parallel,
            rope: Rope::Windows,
            logits: Logits::Scaled,
            ..PLAIN
        }),
    ),
    (
        "cohere2moe",
        Plain(Spec {
            gating_stated: true,
            norm_w: NormW::Stated,
            residual: Residual::Parallel,
            rope: Rope::WindowsOrLead,
            pick: Pick::AfterNorm,
            logits: Logits::Scaled,
            ..PLAIN
        }),
    ),
    ("command-r", Plain(Spec { norm: Norm::Layer, residual: Residual::Parallel, logits: Logits::Scaled, ..PLAIN })),
    ("dbrx", Plain(Spec { norm: Norm::Layer, ffn_norm: Some("attn_output_norm"), ..PLAIN })),
    ("deepseek", Plain(Spec { norm_w: NormW::Never, ..PLAIN })),
    ("dots3note", Own(dsa::build)),
    ("dots1", Plain(Spec { gating_stated: true, norm_w: NormW::Stated, ..PLAIN })),
    ("ernie4_5", Plain(PLAIN)),
    ("ernie4_5-moe", Plain(PLAIN)),
    ("exaone", Plain(PLAIN)),
    ("exaone-moe", Plain(Spec { gating_stated: true, norm_w: NormW::Stated, rope: Rope::Windows, ..PLAIN })),
    (
        "exaone4",
        Plain(Spec {
            pre: Pre::Raw,
            rope: Rope::WindowsIfAny,
            attn_post_norm: Some("post_attention_norm"),
            ffn_norm: None,
            ffn_post_norm: Some("post_ffw_norm"),
            ..PLAIN
        }),
    ),
    ("gemma", Plain(Spec { input: Input::Scaled, scales_q: true, act: Act::Gelu, ..PLAIN })),
    (
        "gemma2",
        Plain(Spec {
            input: Input::Scaled,
            extras: Extras { soft_cap: true, ..PLAIN.extras },
            scales_q: true,
            act: Act::Gelu,
            attn_post_norm: Some("post_attention_norm"),
            ffn_post_norm: Some("post_ffw_norm"),
            logits: Logits::Capped,
            ..PLAIN
        }),
    ),
    (
        "gemma3",
        Plain(Spec {
            embeddings: Embeddings { token_scaled: true, ..PLAIN.embeddings },
            scales_q: true,
            act: Act::Gelu,
            attn_post_norm: Some("post_attention_norm"),
            ffn_post_norm: Some("post_ffw_norm"),
            logits: Logits::Capped,
            ..PLAIN
        }),
    ),
    (
        "glm4",
        Plain(Spec {
            attn_post_norm: Some("post_attention_norm"),
            ffn_post_norm: Some("post_ffw_norm"),
            act: Act::SwigluFused,
            ..PLAIN
        }),
    ),
    (
        "glm4moe",
        Plain(Spec { gating_stated: true, norm_w: NormW::Stated, ffn_norm: Some("post_attention_norm"), ..PLAIN }),
    ),
    (
        "gpt-oss",
        Plain(Spec {
            ffn_norm: Some("post_attention_norm"),
            gating: Gating::SoftmaxWeight,
            norm_w: NormW::Never,
            expert_act: Act::SwigluOai,
            pick: Pick::BeforeNorm,
            ..PLAIN
        }),
    ),
    ("gpt2", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, rope: Rope::Never, ..PLAIN })),
    ("gptneox", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, residual: Residual::ParallelIfStated, ..PLAIN })),
    (
        "granite",
        Plain(Spec {
            embeddings: Embeddings { scaled: true, ..PLAIN.embeddings },
            scales_residual: true,
            logits: Logits::Scaled,
            ..PLAIN
        }),
    ),
    (
        "granite_swa",
        Plain(Spec {
            embeddings: Embeddings { scaled: true, ..PLAIN.embeddings },
            scales_residual: true,
            logits: Logits::Scaled,
            ..PLAIN
        }),
    ),
    (
        "granitemoe",
        Plain(Spec {
            embeddings: Embeddings { scaled: true, ..PLAIN.embeddings },
            scales_residual: true,
            logits: Logits::Scaled,
            ..PLAIN
        }),
    ),
    ("hunyuan-dense", Plain(Spec { qk_norm: QkNorm::After, ..PLAIN })),
    ("hunyuan-moe", Plain(Spec { qk_norm: QkNorm::After, ..PLAIN })),
    ("hunyuan_vl", Plain(Spec { qk_norm: QkNorm::After, ..PLAIN })),
    ("hy_v3", Plain(Spec { gating_stated: true, norm_w: NormW::Stated, pick: Pick::AfterNorm, ..PLAIN })),
    ("glm5-next", Own(glm5_next::build)),
    ("hy_v4", Own(hyper::hy_v4)),
    ("deepseek4", Own(deepseek4::build)),
    ("internlm2", Plain(PLAIN)),
    ("jais", Plain(Spec { norm: Norm::Layer, rope: Rope::Never, extras: ALIBI, ..PLAIN })),
    ("jais2", Plain(Spec { norm: Norm::Layer, act: Act::ReluSqr, ..PLAIN })),
    ("laguna", Plain(Spec { gating_stated: true, norm_w: NormW::Stated, ..PLAIN })),
    ("llama", Plain(PLAIN)),
    ("llama-embed", Plain(PLAIN)),
    ("maincoder", Plain(Spec { qk_norm: QkNorm::After, ..PLAIN })),
    ("maple", Plain(Spec { rope: Rope::Windows, scales_w: false, ..PLAIN })),
    ("mellum", Plain(PLAIN)),
    (
        "minicpm",
        Plain(Spec {
            embeddings: Embeddings { scaled: true, ..PLAIN.embeddings },
            scales_residual: true,
            logits: Logits::Scaled,
            ..PLAIN
        }),
    ),
    ("minimax-m2", Plain(Spec { qk_norm: QkNorm::Flat, gating_stated: true, ..PLAIN })),
    ("nemotron", Plain(Spec { norm: Norm::Layer, act: Act::ReluSqr, ..PLAIN })),
    ("olmo", Plain(Spec { norm: Norm::Layer, pre: Pre::Bare, ffn_norm: Some(""), ..PLAIN })),
    (
        "olmo2",
        Plain(Spec {
            pre: Pre::Raw,
            qk_norm: QkNorm::Flat,
            attn_post_norm: Some("post_attention_norm"),
            ffn_norm: None,
            ffn_post_norm: Some("post_ffw_norm"),
            ..PLAIN
        }),
    ),
    ("olmoe", Plain(Spec { qk_norm: QkNorm::Flat, norm_w: NormW::Never, ..PLAIN })),
    ("orion", Plain(Spec { norm: Norm::Layer, ..PLAIN })),
    ("paddleocr", Plain(PLAIN)),
    ("pangu-embedded", Plain(PLAIN)),
    (
        "phi2",
        Plain(Spec {
            norm: Norm::Layer,
            act: Act::Gelu,
            scales_q: true,
            residual: Residual::ParallelOntoAttn,
            ffn_norm: None,
            ..PLAIN
        }),
    ),
    ("phi3", Plain(Spec { act: Act::SwigluFused, scales_q: true, residual_first: true, ..PLAIN })),
    ("phimoe", Plain(Spec { act: Act::SwigluFused, scales_q: true, residual_first: true, ..PLAIN })),
    ("plamo", Plain(Spec { residual: Residual::ParallelAttnFirst, ffn_norm: None, ..PLAIN })),
    ("plamo2", Own(plamo2::build)),
    (
        "plamo3",
        Plain(Spec {
            attn_post_norm: Some("post_attention_norm"),
            ffn_post_norm: Some("post_ffw_norm"),
            act: Act::SwigluFused,
            ..PLAIN
        }),
    ),
    ("pockettts", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, ..PLAIN })),
    ("qwen", Plain(PLAIN)),
    ("qwen2", Plain(PLAIN)),
    ("qwen2moe", Plain(Spec { norm_w: NormW::Never, ..PLAIN })),
    ("qwen2vl", Plain(PLAIN)),
    ("qwen3", Plain(PLAIN)),
    ("qwen3moe", Plain(PLAIN)),
    ("qwen3tts", Plain(Spec { embeddings: Embeddings { n_deepstack: 1, ..PLAIN.embeddings }, ..PLAIN })),
    ("qwen3vl", Plain(Spec { embeddings: Embeddings { n_deepstack: 1, ..PLAIN.embeddings }, ..PLAIN })),
    ("qwen3vlmoe", Plain(Spec { embeddings: Embeddings { n_deepstack: 1, ..PLAIN.embeddings }, ..PLAIN })),
    ("refact", Plain(Spec { has_experts: false, rope: Rope::Never, extras: ALIBI, ..PLAIN })),
    ("seed_oss", Plain(Spec { ffn_norm: Some("post_attention_norm"), ..PLAIN })),
    ("smollm3", Plain(Spec { rope: Rope::SkipEvery(4), ..PLAIN })),
    ("spark2_5", Plain(Spec { act: Act::Gelu, ..PLAIN })),
    ("stablelm", Plain(Spec { norm: Norm::Layer, ..PLAIN })),
    ("starcoder", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, rope: Rope::Never, ..PLAIN })),
    ("starcoder2", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, ..PLAIN })),
    ("xverse", Plain(PLAIN)),
    ("baichuan", Plain(Spec { rope: Rope::IfLayers(32), ..PLAIN })),
    ("bloom", Plain(Spec { norm: Norm::Layer, act: Act::Gelu, rope: Rope::Never, extras: ALIBI, ..PLAIN })),
    ("cogvlm", Plain(Spec { pick: Pick::Never, ..PLAIN })),
    ("dream", Plain(PLAIN)),
    (
        "falcon",
        Plain(Spec {
            norm: Norm::Layer,
            act: Act::Gelu,
            residual: Residual::ParallelAttnFirst,
            ffn_norm: None,
            ..PLAIN
        }),
    ),
    ("llada", Plain(PLAIN)),
    ("llada-moe", Plain(Spec { norm_w: NormW::Never, ..PLAIN })),
    ("mimo2", Plain(Spec { gating: Gating::Sigmoid, ..PLAIN })),
    ("mistral3", Plain(Spec { temperature: true, ..PLAIN })),
    ("mpt", Plain(Spec { qk_norm: QkNorm::Never, norm: Norm::Layer, act: Act::Gelu, rope: Rope::Never, ..PLAIN })),
    (
        "muse-glimmer",
        Plain(Spec {
            input: Input::Normed,
            rope: Rope::Windows,
            attn_post_norm: Some("post_attention_norm"),
            ffn_post_norm: Some("post_ffw_norm"),
            logits: Logits::ScaledCapped,
            ..PLAIN
        }),
    ),
    ("rnd1", Plain(PLAIN)),
    ("arctic", Own(own::arctic)),
    ("grok", Own(own::grok)),
    ("grovemoe", Own(own::grovemoe)),
    ("llama4", Own(own::llama4)),
    ("smallthinker", Own(own::smallthinker)),
    ("openelm", Own(own::openelm)),
    ("talkie", Own(own::talkie)),
    ("nanbeige", Own(own::nanbeige)),
    ("hrm_text", Own(own::hrm_text)),
    ("deci", Own(own::deci)),
    ("deepseek32", Own(dsa::build)),
    ("glm-dsa", Own(dsa::build)),
    ("kimi-k3", Own(kimi_k3::build)),
    ("kimi-linear", Own(kda::kimi_linear)),
    ("minimax-01", Own(minimax::minimax_01)),
    ("minimax-m3", Own(minimax::minimax_m3)),
    ("bailingmoe3", Own(kda::bailingmoe3)),
    ("step35", Plain(Spec { gating_stated: true, norm_w: NormW::Stated, pick: Pick::BeforeNorm, ..PLAIN })),
    ("deepseek2", Own(mla::deepseek2)),
    ("mistral4", Own(mla::deepseek2)),
    ("minicpm3", Own(mla::minicpm3)),
    ("gemma4", Own(gemma::gemma4)),
    ("mamba", Own(mixed::mamba)),
    ("mamba2", Own(mixed::mamba)),
    ("jamba", Own(mixed::jamba)),
    ("granitehybrid", Own(mixed::granite)),
    ("falcon-h1", Own(mixed::falcon_h1)),
    ("lfm2", Own(mixed::lfm2)),
    ("lfm2moe", Own(mixed::lfm2)),
    ("nemotron_h", Own(mixed::nemotron_h)),
    ("nemotron_h_moe", Own(mixed::nemotron_h)),
    ("qwen3next", Own(delta::build)),
    ("qwen4exp", Own(qwen4exp::build)),
    ("qwen35", Own(delta::build)),
    ("qwen35moe", Own(delta::build)),
];
