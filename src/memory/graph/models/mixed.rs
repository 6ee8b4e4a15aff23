//! Decoders with state-space layers or short convolutions, alone or beside attention.
//!
//! Source: `src/models/mamba-base.cpp`, `mamba.cpp`, `jamba.cpp`, `nemotron-h.cpp`, `granite-hybrid.cpp`,
//! `falcon-h1.cpp`, `lfm2.cpp`, llama.cpp b11434.

use super::super::ffn::{Act, Gating, Moe};
use super::super::inputs::Embeddings;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Glu, Node};
use super::super::{Builder, Layer, Norm};
use super::plain::{Logits, NormW, PLAIN, Pick, Spec, feed_forward, finish, layer, logits, plain_attention, stack};
use crate::gguf::Value;

/// Reads the past columns and puts them before the new ones; the last become the state.
pub(super) fn mamba_conv<'g>(l: Layer<'g>, inputs: &StateInputs<'g>, x: Node<'g>, channels: u64) -> Node<'g> {
    let (states, kernel) = (l.conv_states(), l.hparam("ssm.conv_kernel"));
    let input = l.past_and(inputs, states, x, [kernel - 1, channels]);
    l.last_columns(input, kernel, channels).store(states);
    l.bias("ssm_conv1d", input.ssm_conv(l.weight("ssm_conv1d"))).silu()
}

/// `build_mamba_layer`.
fn mamba_layer<'g>(l: Layer<'g>, inputs: &StateInputs<'g>, x: Node<'g>) -> Node<'g> {
    let [inner, state, rank] = ["ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"].map(|key| l.hparam(key));
    let xz = l.mm("ssm_in", l.by_sequence(x));
    let (x, z) = (xz.cols(inner, 0), xz.cols(inner, inner));
    let rows = mamba_conv(l, inputs, x, inner);
    let all = l.mm("ssm_x", rows);
    let mut parts = [all.cols(rank, 0), all.split(state, 1, state, rank), all.split(state, 1, state, rank + state)];
    if l.flag("ssm.dt_b_c_rms") || l.has("ssm_dt_norm") {
        for (part, name) in parts.iter_mut().zip(["ssm_dt_norm", "ssm_b_norm", "ssm_c_norm"]) {
            *part = l.norm_with(Norm::Rms, l.get(name, "weight"), name, *part);
        }
    } else {
        parts[0] = parts[0].cont();
    }
    let [dt, b, c] = parts;
    let dt = l.linear("ssm_dt", dt);
    let x = rows.reshape(&[1, inner, l.n_seq_tokens, l.n_seqs]);
    let states = l.ssm_states();
    let result = l.scan(inputs, states, [state, 1, inner], [x, dt, l.need("ssm_a", ""), b, c]);
    let t = x.tensor();
    result.view(&[state * inner * l.n_seqs], &[], t.nb[3] * t.ne[3]).store(states);
    let y = result.view(&[inner, l.n_seq_tokens, l.n_seqs], &t.nb[2..], 0) + rows * l.need("ssm_d", "");
    let rows = l.mm("ssm_out", z.cont().glu_split(Glu::Swiglu, y));
    rows.reshape(&[rows.ne(0), l.n_tokens])
}

/// `build_mamba2_layer`.
fn mamba2_layer<'g>(l: Layer<'g>, inputs: &StateInputs<'g>, x: Node<'g>) -> Node<'g> {
    let (n_tokens, n_seqs) = (l.n_seq_tokens, l.n_seqs);
    let (inner, state) = (l.hparam("ssm.inner_size"), l.hparam("ssm.state_size"));
    let (n_head, n_group) = (l.hparam("ssm.time_step_rank"), l.hparam("ssm.group_count"));
    let (head, channels) = (inner / n_head, inner + 2 * n_group * state);
    let states = l.ssm_states();
    // Unlike `past_and`, this reads the past before anything else of the layer.
    let past = l.read_states(inputs, l.conv_states());
    let kernel = l.hparam("ssm.conv_kernel");
    let past = past.reshape(&[kernel - 1, channels, n_seqs]);
    let is_flat = l.plan.rules.mamba2_is_flat;
    let all = if is_flat { l.by_sequence(l.mm("ssm_in", x)) } else { l.mm("ssm_in", l.by_sequence(x)) };
    let z = all.split(head, n_head, head, 0);
    let input = past.concat(all.cols(channels, inner).transpose(), 0);
    l.write_columns(input, [kernel, channels], l.conv_states(), |columns| columns);
    let xbc = l.bias("ssm_conv1d", input.ssm_conv(l.weight("ssm_conv1d"))).silu();
    let x = xbc.split(head, n_head, head, 0);
    let b = xbc.split(state, n_group, state, inner);
    let c = xbc.split(state, n_group, state, inner + n_group * state);
    let dt = l.bias("ssm_dt", all.cols(n_head, inner + channels).cont());
    let result = l.scan(inputs, states, [state, head, n_head], [x, dt, l.need("ssm_a", ""), b, c]);
    let (width, row, n_slots) = (state * inner, states.nb(1), l.rs_slots());
    let kept = [width, n_seqs, n_slots.min(n_tokens)];
    let new = result.view(&kept, &[4 * width, 4 * width * n_seqs], 4 * inner * n_tokens * n_seqs);
    new.cpy(states.view(&kept, &[row, row * (states.ne(1) / n_slots)], 0)).expand();
    let step = x.nb(1);
    let strides = [step, n_head * step, n_tokens * n_head * step];
    let y = result.view(&[head, n_head, n_tokens, n_seqs], &strides, 0) + x * l.need("ssm_d", "");
    let mut y = z.cont().glu_split(Glu::Swiglu, y);
    if l.has("ssm_norm") {
        y = l.norm("ssm_norm", y.reshape(&[inner / n_group, n_group, n_tokens, n_seqs]));
    }
    if is_flat {
        return l.mm("ssm_out", y.reshape(&[inner, n_tokens * n_seqs]));
    }
    let rows = l.mm("ssm_out", y.reshape(&[inner, n_tokens, n_seqs]));
    rows.reshape(&[rows.ne(0), n_tokens * n_seqs])
}

/// A short convolution between two gates (lfm2).
fn shortconv<'g>(l: Layer<'g>, inputs: &StateInputs<'g>, x: Node<'g>) -> Node<'g> {
    let bcx = l.mm("shortconv.in_proj", l.by_sequence(x));
    let width = bcx.ne(0) / 3;
    let [b, c, x] = [0, 1, 2].map(|i| bcx.cols(width, i * width));
    let kernel = l.hparam("shortconv.l_cache");
    let input = l.conv_input(inputs, l.conv_states(), b * x, [kernel, l.n_embd]);
    let y = l.mm("shortconv.out_proj", c * input.ssm_conv(l.weight("shortconv.conv")));
    y.reshape(&[y.ne(0), l.n_tokens])
}

/// mamba and mamba2.
pub(super) fn mamba<'g>(b: &'g Builder<'g>) {
    let (mut rows, states, out_ids) = (b.tokens(), b.inp_rs(), b.inp_out_ids());
    for l in b.layers() {
        let scanned = if b.arch.name == "mamba" { mamba_layer } else { mamba2_layer };
        let x = scanned(l, &states, l.norm("attn_norm", rows));
        let [x, residual] = l.only_outputs(out_ids, [x, rows]);
        rows = x + residual;
    }
    finish(b, &PLAIN, rows, out_ids);
}

pub(super) fn jamba<'g>(b: &'g Builder<'g>) {
    let spec = Spec { norm_w: NormW::Never, attn_residual_first: true, residual_first: true, ..PLAIN };
    let (rows, states, attn) = (b.tokens(), b.inp_rs(), b.inp_attn());
    stack(
        b,
        &spec,
        rows,
        |l, x| {
            if l.n_kv == 0 { mamba_layer(l, &states, x) } else { plain_attention(l, x, &attn, None) }
        },
    );
}

/// granite's hybrid.
pub(super) fn granite<'g>(b: &'g Builder<'g>) {
    let rows = b.inp_embd(Embeddings { scaled: b.is_set("embedding_scale"), ..Embeddings::default() });
    let (states, attn) = (b.inp_rs(), b.inp_attn());
    let turned = !matches!(b.hparams().value("rope.scaling.finetuned"), Some(Value::Bool(false)));
    let positions = turned.then(|| b.inp_pos());
    stack(b, &Spec { scales_residual: true, logits: Logits::Scaled, ..PLAIN }, rows, |l, x| {
        if l.hp.is_recr { mamba2_layer(l, &states, x) } else { plain_attention(l, x, &attn, positions) }
    });
}

/// falcon-h1: both in every layer.
pub(super) fn falcon_h1<'g>(b: &'g Builder<'g>) {
    let (mut rows, positions, states, attn, out_ids) =
        (b.tokens(), b.inp_pos(), b.inp_rs(), b.inp_attn(), b.inp_out_ids());
    for l in b.layers() {
        let attended = plain_attention(l, l.norm("attn_norm", rows), &attn, Some(positions));
        let scanned = mamba2_layer(l, &states, l.norm("attn_norm", rows));
        let [middle] = l.only_outputs(out_ids, [attended + scanned + rows]);
        rows = feed_forward(l, &PLAIN, l.norm("ffn_norm", middle)) + middle;
    }
    finish(b, &PLAIN, rows, out_ids);
}

/// lfm2 and lfm2moe.
pub(super) fn lfm2<'g>(b: &'g Builder<'g>) {
    let spec = Spec { gating_stated: true, attn_residual_first: true, residual_first: true, ..PLAIN };
    let (mut rows, states, attn, positions, out_ids) =
        (b.tokens(), b.inp_rs(), b.inp_attn(), b.inp_pos(), b.inp_out_ids());
    for l in b.layers() {
        rows = layer(l, &spec, rows, out_ids, |x| {
            if l.hp.is_recr { shortconv(l, &states, x) } else { plain_attention(l, x, &attn, Some(positions)) }
        });
    }
    let normed = match b.get("token_embd_norm", "weight") {
        Some(weight) => rows.norm(Norm::Rms, Some(weight), None),
        None => b.output_norm(rows, Norm::Rms),
    };
    logits(b, normed);
}

/// nemotron_h and nemotron_h_moe: a state-space, an attention or a feed-forward part by layer.
pub(super) fn nemotron_h<'g>(b: &'g Builder<'g>) {
    let (mut rows, states, attn, out_ids) = (b.tokens(), b.inp_rs(), b.inp_attn(), b.inp_out_ids());
    let is_early = b.pick(Pick::AfterNorm) == Pick::Early;
    for l in b.layers() {
        l.tap(rows);
        let x = l.norm("attn_norm", rows);
        let x = if l.hp.is_recr {
            mamba2_layer(l, &states, x)
        } else if l.hp.no_ffn {
            plain_attention(l, x, &attn, None)
        } else {
            nemotron_ffn(l, x)
        };
        let [x, residual] = if is_early { l.only_outputs(out_ids, [x, rows]) } else { [x, rows] };
        rows = x + residual;
    }
    if b.taps_output() {
        rows.mark_output();
    }
    finish(b, &Spec { pick: Pick::AfterNorm, ..PLAIN }, rows, out_ids);
}

pub(super) fn nemotron_ffn<'g>(l: Layer<'g>, x: Node<'g>) -> Node<'g> {
    if !l.has("ffn_gate_inp") {
        return l.ffn("", x, Act::ReluSqr);
    }
    let narrow = if l.has("ffn_latent_down") { l.mm("ffn_latent_down", x) } else { x };
    let moe = Moe {
        act: Act::ReluSqr,
        gating: Gating::Sigmoid,
        norm_w: l.flag("expert_weights_norm"),
        scaled: l.expert_weights_scaled(),
        logits: Some(l.mm("ffn_gate_inp", x)),
        ..Moe::default()
    };
    let mut routed = l.moe(narrow, &moe);
    if l.has("ffn_latent_up") {
        routed = l.mm("ffn_latent_up", routed);
    }
    routed + l.ffn("_shexp", x, Act::ReluSqr)
}
