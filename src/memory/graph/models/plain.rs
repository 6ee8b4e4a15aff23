//! Decoders of attention and feed-forward layers, one after the other: one loop, told apart by their traits.
//!
//! Source: `src/models/*.cpp` (`graph::graph` of each architecture in the table), llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::ffn::Moe;
use super::super::inputs::Embeddings;
use super::super::tensor::Node;
use super::super::{Builder, Layer};
use crate::arch::{Act, Alibi, Input, Norm, Pre, QkNorm, Residual, Rope};
pub(super) use crate::arch::{Logits, NormW, PLAIN, Pick, Spec};

/// What every layer of a decoder reads besides its rows.
pub(super) struct Inputs<'g> {
    positions: Node<'g>,
    attn: AttnInputs<'g>,
    attn_scale: Option<Node<'g>>,
}

impl<'g> Inputs<'g> {
    pub(super) fn of(b: &'g Builder<'g>, spec: &Spec) -> Self {
        let attn_scale = (spec.temperature && b.is_set("attention.temperature_scale")).then(|| b.inp_attn_scale());
        Self { positions: b.inp_pos(), attn: b.inp_attn(), attn_scale }
    }
}

/// Builds a decoder of these traits.
pub(super) fn decoder<'g>(b: &'g Builder<'g>, spec: &Spec) {
    // Of all rows, where a draft model reads what comes out of the last layer (mimo2).
    let pick = if b.taps_output() { Pick::BeforeNorm } else { spec.pick };
    let spec = &Spec { pick, ..*spec };
    let embeddings = Embeddings {
        n_deepstack: if spec.deepstack { b.hparam_or_0("n_deepstack_layers") } else { 0 },
        scaled: spec.scales_embd && has_multiplier(b, spec, "embedding_scale"),
        token_scaled: spec.scales_tokens,
    };
    let mut rows = b.inp_embd(embeddings);
    rows = match spec.input {
        Input::Plain => rows,
        Input::Scaled => rows.scale(),
        Input::Normed => rows.rms(),
    };
    if let Some(weight) = b.get("token_embd_norm", "weight") {
        rows = rows.norm(spec.norm, Some(weight), b.get("token_embd_norm", "bias"));
    }
    if let Some(table) = b.get("position_embd", "weight") {
        rows = rows + table.get_rows(b.inp_pos());
    }
    let inputs = Inputs::of(b, spec);
    let (out_ids, first, width) = (b.inp_out_ids(), rows, b.n_embd);
    for l in b.layers() {
        rows = layer(l, spec, rows, out_ids, |x| attention(l, spec, x, &inputs));
        if l.is_last() && b.taps_output() {
            rows.mark_output();
        }
        if u64::from(l.il) < embeddings.n_deepstack {
            rows = rows + first.view(&[width, b.n_tokens], &[first.nb(1)], 4 * width * u64::from(l.il + 1));
        }
    }
    finish(b, spec, rows, out_ids);
}

/// Layers of these traits around attention, or what takes its place, and the logits.
pub(super) fn stack<'g>(
    b: &'g Builder<'g>,
    spec: &Spec,
    mut rows: Node<'g>,
    mut mix: impl FnMut(Layer<'g>, Node<'g>) -> Node<'g>,
) {
    let out_ids = b.inp_out_ids();
    for l in b.layers() {
        rows = layer(l, spec, rows, out_ids, |x| mix(l, x));
    }
    finish(b, spec, rows, out_ids);
}

/// One layer: `mix` is attention, or what takes its place.
pub(super) fn layer<'g>(
    l: Layer<'g>,
    spec: &Spec,
    residual: Node<'g>,
    out_ids: Node<'g>,
    mix: impl FnOnce(Node<'g>) -> Node<'g>,
) -> Node<'g> {
    l.tap(residual);
    let norm = |name: &str, x: Node<'g>| l.norm_of(spec.norm, name, x);
    let scaled =
        |x: Node<'g>| if spec.scales_residual && has_multiplier(l.b, spec, "residual_scale") { x.scale() } else { x };
    let normed = match spec.pre {
        Pre::Weighted => norm("attn_norm", residual),
        Pre::Bare => residual.norm(spec.norm, None, None),
        Pre::Raw => residual,
    };
    let rows = mix(if l.has("attn_norm_2") { norm("attn_norm_2", residual) } else { normed });
    let early = l.b.pick(spec.pick) == Pick::Early;
    let rows = [rows, residual, normed];
    let [rows, residual, normed] = if early { l.only_outputs(out_ids, rows) } else { rows };
    let rows = scaled(spec.attn_post_norm.map_or(rows, |name| norm(name, rows)));
    let is_parallel = match spec.residual {
        Residual::Sequential => false,
        Residual::ParallelIfStated => l.flag("use_parallel_residual"),
        _ => true,
    };
    if is_parallel {
        let own_norm = spec.ffn_norm.filter(|name| l.has(name));
        let x = feed_forward(l, spec, own_norm.map_or(normed, |name| norm(name, residual)));
        return match spec.residual {
            Residual::ParallelAttnFirst => x + rows + residual,
            Residual::ParallelOntoAttn => rows + x + residual,
            _ => x + residual + rows,
        };
    }
    let middle = if spec.attn_residual_first { residual + rows } else { rows + residual };
    let x = match spec.ffn_norm {
        Some("") => middle.norm(spec.norm, None, None),
        Some(name) if spec.one_norm && !l.has(name) => normed,
        Some(name) => norm(name, middle),
        None => middle,
    };
    // `build_llama` of ik_llama.cpp has its experts add their own input.
    let adds_input = l.plan.rules.fuses_norms && l.arch.name == "llama" && l.has("ffn_gate_inp");
    let middle = if adds_input { x } else { middle };
    let mut x = feed_forward(l, spec, x);
    if let Some(name) = spec.ffn_post_norm {
        // gemma, exaone4 and olmo2 give this norm no layer number, so that it is not bound to its device.
        let is_bound = name != "post_ffw_norm";
        x = if is_bound { norm(name, x) } else { x.norm(spec.norm, Some(l.norm_weight(name)), None) };
    }
    let x = scaled(x);
    if spec.residual_first { middle + x } else { x + middle }
}

/// The last norm and the logits.
pub(super) fn finish<'g>(b: &'g Builder<'g>, spec: &Spec, mut rows: Node<'g>, out_ids: Node<'g>) {
    let pick = b.pick(spec.pick);
    if spec.pick == Pick::BeforeNorm && b.plan.rules.keeps_nextn_input {
        rows = rows.mark_output();
    }
    if pick == Pick::BeforeNorm {
        rows = rows.mark_output().get_rows(out_ids);
    }
    rows = if spec.pre == Pre::Bare { rows.norm(spec.norm, None, None) } else { b.output_norm(rows, spec.norm) };
    rows.mark_output();
    if pick == Pick::AfterNorm {
        rows = rows.get_rows(out_ids).mark_output();
    }
    // A head that classifies is computed beside the logits.
    if let Some(head) = b.get("cls.output", "weight").filter(|_| b.arch.name == "qwen35") {
        let classes = head.mm(rows);
        b.get("cls.output", "bias").map_or(classes, |bias| classes + bias).mark_output().expand();
    }
    let mut logits = b.lm_head(rows);
    if let Some(bias) = b.get("output", "bias") {
        logits = logits + bias;
    }
    if matches!(spec.logits, Logits::Scaled | Logits::ScaledCapped) && b.is_set("logit_scale") {
        logits = logits.scale();
    }
    if matches!(spec.logits, Logits::Capped | Logits::ScaledCapped) && b.is_set("final_logit_softcapping") {
        logits = logits.capped();
    }
    logits.mark_output().expand();
}

/// The logits of the last rows, without further steps.
pub(super) fn logits<'g>(b: &'g Builder<'g>, rows: Node<'g>) {
    b.lm_head(rows.mark_output()).mark_output().expand();
}

fn turns(l: Layer<'_>, spec: &Spec) -> bool {
    match spec.rope {
        Rope::All => true,
        Rope::Never => false,
        Rope::Windows => l.hp.is_swa,
        Rope::WindowsIfAny => l.hp.is_swa || l.plan.caches.hparams.swa.is_none(),
        Rope::WindowsOrLead => l.hp.is_swa || l.il < l.hparams().u32_or_0("leading_dense_block_count"),
        Rope::SkipEvery(n) => !(l.il + 1).is_multiple_of(n),
        Rope::IfLayers(n) => l.n_layer == n,
    }
}

pub(super) fn attention<'g>(l: Layer<'g>, spec: &Spec, x: Node<'g>, inputs: &Inputs<'g>) -> Node<'g> {
    let mut qkv = if spec.qk_norm == QkNorm::Flat { flat_qkv(l, x, spec.norm) } else { l.qkv(x) };
    if spec.qk_norm == QkNorm::Before {
        l.norm_qk(&mut qkv, spec.norm);
    }
    if turns(l, spec) {
        qkv.rope(inputs.positions, l.rope_factors());
    }
    if spec.qk_norm == QkNorm::After {
        l.norm_qk(&mut qkv, spec.norm);
    }
    if spec.scales_q {
        qkv.q = qkv.q.scale();
    }
    if let Some(factor) = inputs.attn_scale {
        qkv.q = qkv.q * factor;
    }
    let alibi = match spec.alibi {
        Alibi::No => false,
        Alibi::Always => true,
        Alibi::IfStated => l.is_set("attention.max_alibi_bias"),
    };
    let mut rows = l.attn(&inputs.attn, qkv, Extras { alibi, soft_cap: spec.soft_cap });
    if l.has("attn_gate") {
        // By head, or element by element.
        let gate = l.raw_mm("attn_gate", x);
        let gate = if spec.softplus_gate { gate.softplus() } else { gate.sigmoid() };
        rows = if gate.ne(0) == l.n_head { gate_heads(rows, gate, l.n_head) } else { rows * gate };
    }
    rows = l.linear("attn_output", rows);
    if spec.scales_v && l.is_set("attention.value_scale") { rows.scale() } else { rows }
}

/// `rows` times a gate by head.
pub(super) fn gate_heads<'g>(rows: Node<'g>, gate: Node<'g>, n_head: u64) -> Node<'g> {
    let [width, n_tokens, ..] = rows.shape();
    // Without heads there is nothing to reshape to, which is refused.
    let head = width.checked_div(n_head).unwrap_or(0);
    let by_head = rows.reshape(&[head, n_head, n_tokens]) * gate.reshape(&[1, n_head, n_tokens]);
    by_head.reshape(&[width, n_tokens])
}

/// Queries, keys and values whose norms see all heads as one row (`build_qkv` without reshape).
fn flat_qkv<'g>(l: Layer<'g>, x: Node<'g>, kind: Norm) -> Qkv<'g> {
    let (k, v, n_head, n_kv) = (l.head_k, l.head_v, l.n_head, l.n_kv);
    let [q_rows, k_rows, v_rows] = l.qkv_rows(x, [k * n_head, k * n_kv, v * n_kv]);
    Qkv {
        q: l.norm_of(kind, "attn_q_norm", q_rows).reshape(&[k, n_head, l.n_tokens]),
        k: l.norm_of(kind, "attn_k_norm", k_rows).reshape(&[k, n_kv, l.n_tokens]),
        v: v_rows.reshape(&[v, n_kv, l.n_tokens]),
    }
}

/// Experts where the layer has a router, else one dense part.
pub(super) fn feed_forward<'g>(l: Layer<'g>, spec: &Spec, x: Node<'g>) -> Node<'g> {
    let has_router = l.has("ffn_gate_inp");
    if has_router && !spec.has_experts && !l.has("ffn_up") {
        // refact loads experts and gives `build_ffn` its dense matrices, which then are null.
        return x.silu();
    }
    if !spec.has_experts || !has_router {
        return l.ffn("", x, spec.act);
    }
    let norm_w = match spec.norm_w {
        NormW::Always => true,
        NormW::Never => false,
        NormW::Stated => l.flag("expert_weights_norm"),
    };
    let scaled = spec.scales_w && l.expert_weights_scaled();
    let gating = if spec.gating_stated { l.stated_gating(spec.gating) } else { spec.gating };
    let moe = Moe { act: spec.expert_act, gating, norm_w, scaled, ..Moe::default() };
    let routed = if l.has("ffn_latent_down") {
        // Experts of a narrower space than the router's (maion-coder).
        let logits = Some(l.raw_mm("ffn_gate_inp", x));
        l.raw_mm("ffn_latent_up", l.moe(l.raw_mm("ffn_latent_down", x), &Moe { logits, ..moe }))
    } else {
        l.moe(x, &moe)
    };
    if l.plan.rules.fuses_norms {
        // `llm_build_std_moe_ffn` of ik_llama.cpp.
        routed.expand();
    }
    if !l.has("ffn_up_shexp") {
        return routed;
    }
    let act = if l.has("ffn_gate_shexp") { spec.act } else { Act::SwigluFused };
    let mut shared = l.ffn("_shexp", x, act);
    if l.has("ffn_gate_inp_shexp") {
        let gate = l.mm("ffn_gate_inp_shexp", x);
        shared = shared * if spec.silu_gate { gate.silu() / gate } else { gate.sigmoid() };
    }
    let sum = routed + shared;
    if spec.scales_sum { sum.scale() } else { sum }
}

/// Whether a multiplier is set.
fn has_multiplier(b: &Builder<'_>, spec: &Spec, key: &str) -> bool {
    spec.has_multipliers || b.is_set(key)
}

/// Attention as most have it: norms of queries and keys, if the layer has their weights, and positions, if there are any.
pub(super) fn plain_attention<'g>(
    l: Layer<'g>,
    x: Node<'g>,
    attn: &AttnInputs<'g>,
    positions: Option<Node<'g>>,
) -> Node<'g> {
    let mut qkv = l.qkv(x);
    l.norm_qk(&mut qkv, Norm::Rms);
    if let Some(positions) = positions {
        qkv.rope(positions, l.rope_factors());
    }
    l.attn_out(attn, qkv)
}
