//! Decoders of attention and feed-forward layers, one after the other: one loop, told apart by their traits.
//!
//! Source: `src/models/*.cpp` (`graph::graph` of each architecture in the table), llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::Embeddings;
use super::super::tensor::Node;
use super::super::{Builder, Layer, Norm};

/// Which layers turn queries and keys by position.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rope {
    All,
    Never,
    /// Those with a window.
    Windows,
    /// Those with a window; all where none has one.
    WindowsIfAny,
    /// Those with a window and the leading dense ones.
    WindowsOrLead,
    /// All but each `n`th, `n` given here.
    SkipEvery(u32),
    /// All, in models of this many layers.
    IfLayers(u32),
}

/// Where queries and keys are normed, if the model has the weights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    /// Head by head, before they are turned.
    Before,
    /// Head by head, after.
    After,
    /// All heads as one row, before.
    Flat,
    /// Not even where there are weights.
    Never,
}

/// What of the input a layer normalises before attention.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pre {
    Weighted,
    /// By a norm without weight.
    Bare,
    /// Nothing.
    Raw,
}

/// What happens to the rows before the first layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Plain,
    /// Multiplied by a number.
    Scaled,
    /// By a norm without weight.
    Normed,
}

/// How attention and feed-forward part come together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Residual {
    Sequential,
    /// The feed-forward part reads attention's input; sums with the residual first.
    Parallel,
    /// The same; sums with attention's result first.
    ParallelAttnFirst,
    /// The same, the feed-forward part added to attention's result.
    ParallelOntoAttn,
    /// Parallel where `use_parallel_residual` says so.
    ParallelIfStated,
}

/// When the rows to put out are picked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    /// In the last layer.
    Early,
    /// Before the last norm.
    BeforeNorm,
    /// After it.
    AfterNorm,
    /// Every row is put out.
    Never,
}

/// Whether the weights of the chosen experts are made to add up to 1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NormW {
    Always,
    Never,
    /// `expert_weights_norm`.
    Stated,
}

/// What happens to the logits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Logits {
    Plain,
    /// Multiplied where `logit_scale` is not 0.
    Scaled,
    /// Squashed by `final_logit_softcapping`, where it is not 0.
    Capped,
    /// Both.
    ScaledCapped,
}

/// The traits of an architecture.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "independent traits")]
pub(super) struct Spec {
    pub(super) norm: Norm,
    pub(super) embeddings: Embeddings,
    pub(super) input: Input,
    pub(super) pre: Pre,
    pub(super) rope: Rope,
    pub(super) qk_norm: QkNorm,
    /// Queries are multiplied by a number.
    pub(super) scales_q: bool,
    /// Queries are multiplied by a factor of their position where `attention.temperature_scale` is set.
    pub(super) temperature: bool,
    pub(super) extras: Extras,
    /// The norm after attention, before the residual is added.
    pub(super) attn_post_norm: Option<&'static str>,
    /// The norm before the feed-forward part; `None`: it has none.
    pub(super) ffn_norm: Option<&'static str>,
    pub(super) ffn_post_norm: Option<&'static str>,
    /// Both parts' results are multiplied by a number.
    pub(super) scales_residual: bool,
    pub(super) residual: Residual,
    /// The sum after attention is residual plus attention's result instead of the other way round.
    pub(super) attn_residual_first: bool,
    /// The same of the last sum and the feed-forward part.
    pub(super) residual_first: bool,
    pub(super) act: Act,
    /// Routers are used, where a layer has one.
    pub(super) has_experts: bool,
    pub(super) gating: Gating,
    /// `expert_gating_func` decides where it is stated.
    pub(super) gating_stated: bool,
    pub(super) norm_w: NormW,
    /// `expert_weights_scale` is applied.
    pub(super) scales_w: bool,
    pub(super) expert_act: Act,
    pub(super) pick: Pick,
    pub(super) logits: Logits,
}

/// llama's traits: what most others share.
pub(super) const PLAIN: Spec = Spec {
    norm: Norm::Rms,
    embeddings: Embeddings { n_deepstack: 0, scaled: false, token_scaled: false },
    input: Input::Plain,
    pre: Pre::Weighted,
    rope: Rope::All,
    qk_norm: QkNorm::Before,
    scales_q: false,
    temperature: false,
    extras: Extras { soft_cap: false, alibi: false },
    attn_post_norm: None,
    ffn_norm: Some("ffn_norm"),
    ffn_post_norm: None,
    scales_residual: false,
    residual: Residual::Sequential,
    attn_residual_first: false,
    residual_first: false,
    act: Act::Silu,
    has_experts: true,
    gating: Gating::Softmax,
    gating_stated: false,
    norm_w: NormW::Always,
    scales_w: true,
    expert_act: Act::Silu,
    pick: Pick::Early,
    logits: Logits::Plain,
};

/// What every layer of a decoder reads besides its rows.
struct Inputs<'g> {
    positions: Node<'g>,
    attn: AttnInputs<'g>,
    attn_scale: Option<Node<'g>>,
}

/// Builds a decoder of these traits.
pub(super) fn decoder<'g>(b: &'g Builder<'g>, spec: &Spec) {
    let mut embeddings = spec.embeddings;
    embeddings.n_deepstack = if spec.embeddings.n_deepstack > 0 { b.hparam_or_0("n_deepstack_layers") } else { 0 };
    embeddings.scaled &= has_multiplier(b, "embedding_scale");
    let mut rows = b.inp_embd(embeddings);
    rows = match spec.input {
        Input::Plain => rows,
        Input::Scaled => rows.scale(),
        Input::Normed => rows.rms(),
    };
    if let Some(weight) = b.get("token_embd_norm", "weight") {
        rows = b.norm_with(Some(weight), b.get("token_embd_norm", "bias"), rows, spec.norm);
    }
    if let Some(table) = b.get("position_embd", "weight") {
        rows = rows + table.get_rows(b.inp_pos());
    }
    let attn_scale = (spec.temperature && b.is_set("attention.temperature_scale")).then(|| b.inp_attn_scale());
    let inputs = Inputs { positions: b.inp_pos(), attn: b.inp_attn(), attn_scale };
    let (out_ids, first, width) = (b.inp_out_ids(), rows, b.n_embd);
    for l in b.layers() {
        rows = layer(l, spec, rows, out_ids, |x| attention(l, spec, x, &inputs));
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
    let norm = |name: &str, x: Node<'g>| l.norm_of(spec.norm, name, x);
    let scaled =
        |x: Node<'g>| if spec.scales_residual && has_multiplier(l.b, "residual_scale") { x.scale() } else { x };
    let normed = match spec.pre {
        Pre::Weighted => norm("attn_norm", residual),
        Pre::Bare => l.bare_norm(residual, spec.norm),
        Pre::Raw => residual,
    };
    let rows = mix(if l.has("attn_norm_2") { norm("attn_norm_2", residual) } else { normed });
    let early = spec.pick == Pick::Early;
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
        Some("") => l.bare_norm(middle, spec.norm),
        // It has either two norms or one for both parts.
        Some(name) if l.arch == "stablelm" && !l.has(name) => normed,
        Some(name) => norm(name, middle),
        None => middle,
    };
    let mut x = feed_forward(l, spec, x);
    if let Some(name) = spec.ffn_post_norm {
        // gemma, exaone4 and olmo2 give this norm no layer number, so that it is not bound to its device.
        let is_bound = name != "post_ffw_norm";
        x = if is_bound { norm(name, x) } else { l.norm_with(Some(l.norm_weight(name)), None, x, spec.norm) };
    }
    let x = scaled(x);
    if spec.residual_first { middle + x } else { x + middle }
}

/// The last norm and the logits.
pub(super) fn finish<'g>(b: &'g Builder<'g>, spec: &Spec, mut rows: Node<'g>, out_ids: Node<'g>) {
    if spec.pick == Pick::BeforeNorm {
        rows = rows.mark_output().get_rows(out_ids);
    }
    rows = if spec.pre == Pre::Bare { b.bare_norm(rows, spec.norm) } else { b.output_norm(rows, spec.norm) };
    rows.mark_output();
    if spec.pick == Pick::AfterNorm {
        rows = rows.get_rows(out_ids).mark_output();
    }
    let mut logits = b.lm_head(rows);
    if let Some(bias) = b.get("output", "bias") {
        logits = logits + bias;
    }
    if matches!(spec.logits, Logits::Scaled | Logits::ScaledCapped) && b.is_set("logit_scale") {
        logits = logits.scale();
    }
    if matches!(spec.logits, Logits::Capped | Logits::ScaledCapped) && b.is_set("final_logit_softcapping") {
        logits = logits.scale().tanh().scale();
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

fn attention<'g>(l: Layer<'g>, spec: &Spec, x: Node<'g>, inputs: &Inputs<'g>) -> Node<'g> {
    let mut qkv = if spec.qk_norm == QkNorm::Flat { flat_qkv(l, x, spec.norm) } else { l.qkv(x) };
    if spec.qk_norm == QkNorm::Before {
        l.norm_qk(&mut qkv, spec.norm);
    }
    if turns(l, spec) {
        l.rope_qk(&mut qkv, inputs.positions, l.rope_factors());
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
    let is_stated = matches!(l.arch, "jais" | "mpt");
    let alibi = spec.extras.alibi || is_stated && l.is_set("attention.max_alibi_bias");
    let mut rows = l.attn(&inputs.attn, qkv, Extras { alibi, ..spec.extras });
    if l.has("attn_gate") {
        // By head, or element by element.
        let gate = l.raw_mm("attn_gate", x);
        let gate = if l.arch == "laguna" { gate.softplus() } else { gate.sigmoid() };
        rows = if gate.ne(0) == l.n_head { gate_heads(rows, gate, l.n_head) } else { rows * gate };
    }
    rows = l.linear("attn_output", rows);
    if l.arch == "mimo2" && l.is_set("attention.value_scale") { rows.scale() } else { rows }
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
    let routed = l.moe(x, &Moe { act: spec.expert_act, gating, norm_w, scaled, ..Moe::default() });
    if !l.has("ffn_up_shexp") {
        return routed;
    }
    let act = if l.has("ffn_gate_shexp") { spec.act } else { Act::SwigluFused };
    let mut shared = l.ffn("_shexp", x, act);
    if l.has("ffn_gate_inp_shexp") {
        let gate = l.mm("ffn_gate_inp_shexp", x);
        shared = shared * if l.arch == "qwen2moe" { gate.silu() / gate } else { gate.sigmoid() };
    }
    let sum = routed + shared;
    if l.arch == "cohere2moe" { sum.scale() } else { sum }
}

/// Whether a multiplier is set; minicpm has all of them without stating any.
fn has_multiplier(b: &Builder<'_>, key: &str) -> bool {
    b.arch == "minicpm" || b.is_set(key)
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
        l.rope_qk(&mut qkv, positions, l.rope_factors());
    }
    l.attn_out(attn, qkv)
}
