//! Decoders whose layers differ from the plain ones in ways of their own.
//!
//! Source: `src/models/*.cpp` named at each function, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::ffn::{Act, Gating, Moe, add_up, scaled_ids, weigh};
use super::super::inputs::Embeddings;
use super::super::tensor::Node;
use super::super::{Builder, Error, Layer, Norm};
use super::plain::{Logits, NormW, PLAIN, Pick, Spec, finish, layer, logits, plain_attention, stack};
use crate::arch::Pre;

/// Norms without weights.
const UNWEIGHTED: Spec = Spec { pre: Pre::Bare, ffn_norm: Some(""), ..PLAIN };

/// What every layer reads besides its rows.
struct Common<'g> {
    positions: Node<'g>,
    attn: AttnInputs<'g>,
    out_ids: Node<'g>,
}

fn common<'g>(b: &'g Builder<'g>) -> Common<'g> {
    Common { positions: b.inp_pos(), attn: b.inp_attn(), out_ids: b.inp_out_ids() }
}

/// A layer's attention after its norm, and the residual, cut to the rows that are put out.
fn attended<'g>(l: Layer<'g>, rows: Node<'g>, common: &Common<'g>) -> [Node<'g>; 2] {
    let x = plain_attention(l, l.norm("attn_norm", rows), &common.attn, Some(common.positions));
    l.only_outputs(common.out_ids, [x, rows])
}

/// `arctic.cpp`: a dense part, and experts that read the layer's input.
pub(super) fn arctic<'g>(b: &'g Builder<'g>) {
    let (mut rows, common) = (b.tokens(), common(b));
    for l in b.layers() {
        let [x, residual] = attended(l, rows, &common);
        let middle = x + residual;
        let dense = l.ffn("", l.norm("ffn_norm", middle), Act::Silu) + middle;
        let moe = Moe { scaled: b.expert_weights_scaled(), ..Moe::default() };
        rows = l.moe(l.norm("ffn_norm_exps", residual), &moe) + dense;
    }
    finish(b, &PLAIN, rows, common.out_ids);
}

/// `grok.cpp`: norms after both parts, experts beside a dense part, scores squashed.
pub(super) fn grok<'g>(b: &'g Builder<'g>) {
    let mut rows = b.inp_embd(Embeddings { scaled: b.is_set("embedding_scale"), ..Embeddings::default() });
    let common = common(b);
    for l in b.layers() {
        let [x, residual] = attended(l, rows, &common);
        let middle = l.norm("attn_output_norm", x) + residual;
        let x = l.norm("ffn_norm", middle);
        let scaled = b.expert_weights_scaled();
        let mut routed = l.moe(x, &Moe { act: Act::Gelu, scaled, ..Moe::default() });
        if l.has("ffn_up") {
            routed = (l.ffn("", x, Act::Gelu) + routed).scale();
        }
        let name = if l.has("layer_output_norm") { "layer_output_norm" } else { "post_ffw_norm" };
        rows = l.norm(name, routed) + middle;
    }
    finish(b, &Spec { logits: Logits::ScaledCapped, ..PLAIN }, rows, common.out_ids);
}

/// `grovemoe.cpp`: experts, and chunk experts that groups of them share, chosen by one router.
pub(super) fn grovemoe<'g>(b: &'g Builder<'g>) {
    let (mut rows, common) = (b.tokens(), common(b));
    for l in b.layers() {
        let [x, residual] = attended(l, rows, &common);
        let middle = x + residual;
        let x = l.norm("ffn_norm", middle);
        let logits = l.mm("ffn_gate_inp", x);
        let moe = Moe { scaled: b.expert_weights_scaled(), logits: Some(logits), ..Moe::default() };
        let routed = l.moe(x, &moe);
        rows = routed + chunk_experts(l, routed, logits, &moe).scale() + middle;
    }
    finish(b, &PLAIN, rows, common.out_ids);
}

/// The experts that `experts_per_group` experts share; they read the experts' sum.
fn chunk_experts<'g>(l: Layer<'g>, x: Node<'g>, logits: Node<'g>, moe: &Moe<'g>) -> Node<'g> {
    let n_views = l.n_expert_used();
    let n_used = n_views.min(logits.ne(0) / l.hparam("experts_per_group"));
    let probs = logits.soft_max();
    let selected = scaled_ids(logits.sigmoid().argsort_top_k(n_used));
    let weights = weigh(probs, selected, n_used, moe, true).expand();
    let rows = x.reshape(&[x.ne(0), 1, x.ne(1)]);
    let hidden = l.expert_hidden("chexps", rows, selected, moe);
    add_up(l.expert_mm("ffn_down_chexps", hidden, selected) * weights, n_views)
}

/// `llama4.cpp`: every fourth layer without positions but with a factor of them.
pub(super) fn llama4<'g>(b: &'g Builder<'g>) {
    let spec = Spec { gating: Gating::Sigmoid, norm_w: NormW::Never, ..PLAIN };
    let (rows, scale, common) = (b.tokens(), b.inp_attn_scale(), common(b));
    let step = if b.plan.caches.hparams.swa.is_some() { 4 } else { b.n_layer.max(1) };
    // Only Maverick (128 experts) leaves queries and keys as they are.
    let norms_qk = b.hparams().expert_count != 128;
    stack(b, &spec, rows, |l, x| {
        let mut qkv = l.qkv(x);
        if (l.il + 1).is_multiple_of(step) {
            qkv.q = qkv.q * scale;
        } else {
            qkv.rope(common.positions, l.rope_factors());
            if norms_qk {
                (qkv.q, qkv.k) = (qkv.q.rms(), qkv.k.rms());
            }
        }
        l.attn_out(&common.attn, qkv)
    });
}

/// `smallthinker.cpp`: the router reads the layer's input before attention.
pub(super) fn smallthinker<'g>(b: &'g Builder<'g>) {
    let (mut rows, common) = (b.tokens(), common(b));
    let step = if b.plan.caches.hparams.swa.is_some() { 4 } else { b.n_layer.max(1) };
    let gating = b.stated_gating(Gating::Softmax);
    for l in b.layers() {
        let logits = l.mm("ffn_gate_inp", rows);
        let is_turned = step == b.n_layer || !l.il.is_multiple_of(step);
        let positions = is_turned.then_some(common.positions);
        let x = plain_attention(l, l.norm("attn_norm", rows), &common.attn, positions);
        let [x, residual, logits] = l.only_outputs(common.out_ids, [x, rows, logits]);
        let middle = x + residual;
        let (scaled, logits) = (b.expert_weights_scaled(), Some(logits));
        let moe = Moe { act: Act::Relu, gating, scaled, logits, ..Moe::default() };
        rows = l.moe(l.norm("ffn_norm", middle), &moe) + middle;
    }
    finish(b, &PLAIN, rows, common.out_ids);
}

/// `openelm.cpp`: heads by layer, from one projection.
pub(super) fn openelm<'g>(b: &'g Builder<'g>) {
    let (rows, common) = (b.tokens(), common(b));
    stack(b, &Spec { attn_residual_first: true, ..PLAIN }, rows, |l, x| {
        let (head, n_head, n_kv) = (l.head_k, l.n_head, l.n_kv);
        let all = l.raw_mm("attn_qkv", x).reshape(&[head, n_head + 2 * n_kv, b.n_tokens]);
        let nb = all.strides();
        let part = |n, from| all.view(&[head, n, b.n_tokens], &nb[1..3], from * nb[1]);
        let mut qkv = Qkv { q: part(n_head, 0), k: part(n_kv, n_head), v: part(n_kv, n_head + n_kv) };
        l.norm_qk(&mut qkv, Norm::Rms);
        qkv.rope(common.positions, None);
        l.attn_out(&common.attn, qkv)
    });
}

/// `talkie.cpp`: norms without weights, the embeddings added again in every layer.
pub(super) fn talkie<'g>(b: &'g Builder<'g>) {
    let embeddings = b.tokens().rms();
    let (mut rows, common) = (embeddings, common(b));
    for l in b.layers() {
        rows = layer(l, &UNWEIGHTED, rows, common.out_ids, |x| {
            let mut qkv = l.qkv(x);
            qkv.rope(common.positions, None);
            (qkv.q, qkv.k) = (l.norm("attn_q_norm", qkv.q), qkv.k.rms());
            l.attn_out(&common.attn, qkv)
        });
        let [skip] = l.only_outputs(common.out_ids, [embeddings]);
        rows = rows + skip * l.weight("layer_output_scale");
    }
    b.lm_head(rows.rms().mark_output()).scale().mark_output().expand();
}

/// `nanbeige.cpp`: the same layers several times, the last norm between the rounds.
pub(super) fn nanbeige<'g>(b: &'g Builder<'g>) {
    let (mut rows, common) = (b.tokens(), common(b));
    let n_blocks = b.hparams().block_count.max(1);
    b.run_blocks((0..b.n_layer).map(|il| il % n_blocks));
    let norms_between = b.n_layer > n_blocks && !b.flag("skip_loop_final_norm");
    for l in b.layers() {
        rows = layer(l, &PLAIN, rows, common.out_ids, |x| plain_attention(l, x, &common.attn, Some(common.positions)));
        if norms_between && (l.il + 1).is_multiple_of(n_blocks) && !l.is_last() {
            rows = rows.norm(Norm::Rms, Some(b.global("output_norm")), None);
        }
    }
    finish(b, &PLAIN, rows, common.out_ids);
}

/// `hrm-text.cpp`: two stacks that read each other's state, several times.
pub(super) fn hrm_text<'g>(b: &'g Builder<'g>) {
    let mut high = b.inp_embd(Embeddings { scaled: b.is_set("embedding_scale"), ..Embeddings::default() });
    let common = common(b);
    let number = |key: &str| u32::try_from(b.hparam(key)).expect("at most MAX_NUMBER");
    let per_stack = number("hrm.layers_per_stack");
    let (n_high, n_low) = (number("hrm.h_cycles"), number("hrm.l_cycles"));
    let is_high = |il: u32| il / per_stack % (n_low + 1) == n_low;
    b.run_blocks((0..b.n_layer).map(|il| il % per_stack + if is_high(il) { per_stack } else { 0 }));
    let n_layer = u64::from(n_high) * u64::from(n_low + 1) * u64::from(per_stack);
    if n_layer != u64::from(b.n_layer) {
        b.fail(Error::Layer { il: b.n_layer });
    }
    let mut low = b.get("hrm.z_l_init", "weight").or_else(|| b.get("hrm.z_l_init", ""));
    if low.is_none() {
        b.no_tensor("hrm.z_l_init".to_string());
    }
    let mut rows = high;
    for l in b.layers() {
        if l.il.is_multiple_of(per_stack) {
            rows = low.map_or(high, |low| high + low);
        }
        rows = layer(l, &Spec { pick: Pick::Never, ..UNWEIGHTED }, rows, common.out_ids, |x| {
            let mut qkv = l.qkv(x);
            qkv.rope(common.positions, None);
            let gate = l.raw_mm("attn_gate", x).sigmoid();
            l.mm("attn_output", l.attn(&common.attn, qkv, Extras::default()) * gate)
        });
        if (l.il + 1).is_multiple_of(per_stack) && is_high(l.il) {
            high = rows.rms();
        } else if (l.il + 1).is_multiple_of(per_stack) {
            low = Some(rows.rms());
        }
    }
    logits(b, high.get_rows(common.out_ids));
}

/// `deci.cpp`: layers may lack attention, have only its output matrix, or lack a feed-forward part.
pub(super) fn deci<'g>(b: &'g Builder<'g>) {
    let (mut rows, common) = (b.tokens(), common(b));
    for l in b.layers() {
        let x = match (l.n_head, l.n_kv) {
            (0, _) => rows,
            (_, 0) => l.mm("attn_output", l.norm("attn_norm", rows)),
            _ => plain_attention(l, l.norm("attn_norm", rows), &common.attn, Some(common.positions)),
        };
        let [x, residual] = l.only_outputs(common.out_ids, [x, rows]);
        if l.hp.no_ffn {
            continue;
        }
        let middle = if l.n_head > 0 { x + residual } else { x };
        rows = l.ffn("", l.norm("ffn_norm", middle), Act::Silu) + middle;
    }
    finish(b, &PLAIN, rows, common.out_ids);
}
