//! Decoders that mix gated delta nets and attention: qwen3next and its successors.
//!
//! Source: `src/models/qwen3next.cpp`, `qwen35.cpp`, `qwen35moe.cpp`, `qwen4exp.cpp`, llama.cpp b11434.

use super::super::attention::{AttnInputs, Extras, Qkv};
use super::super::recurrent::StateInputs;
use super::super::tensor::Node;
use super::super::{Builder, Layer};
use super::plain::{PLAIN, Pick, Spec, stack};
use super::qwen4exp;

/// The sizes of a delta net's heads.
#[derive(Clone, Copy)]
struct Heads {
    k_dim: u64,
    n_k: u64,
    v_dim: u64,
    n_v: u64,
}

pub(super) const SPEC: Spec = Spec { pick: Pick::AfterNorm, ffn_norm: Some("post_attention_norm"), ..PLAIN };

/// Builds the graph.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let (rows, states, attn, positions) = (b.tokens(), b.inp_rs(), b.inp_attn(), b.inp_pos());
    stack(b, &SPEC, rows, |l, x| {
        x.expand();
        if l.hp.is_recr { linear_attention(l, x, &states) } else { gated_attention(l, x, &attn, positions) }
    });
}

/// Attention whose query projection holds a gate for each head behind its query.
pub(super) fn gated_attention<'g>(l: Layer<'g>, x: Node<'g>, attn: &AttnInputs<'g>, positions: Node<'g>) -> Node<'g> {
    let (head, n_head, n_kv, n_tokens) = (l.head_v, l.n_head, l.n_kv, l.n_tokens);
    let [both, k, v] = if l.arch.name == "qwen4exp" {
        // It has biases there that it does not add.
        ["attn_q", "attn_k", "attn_v"].map(|name| l.mm(name, x))
    } else {
        l.qkv_rows(x, [2 * head * n_head, head * n_kv, head * n_kv])
    };
    let half = |at| both.split(head, n_head, 2 * head, at);
    let k = l.norm("attn_k_norm", k.reshape(&[head, n_kv, n_tokens]));
    let mut qkv = Qkv { q: l.norm("attn_q_norm", half(0)), k, v: v.reshape(&[head, n_kv, n_tokens]) };
    qkv.rope(positions, None);
    let gate = half(head).cont_nd(&[head * n_head, n_tokens]).sigmoid();
    l.mm("attn_output", l.attn(attn, qkv, Extras::default()) * gate)
}

/// The delta net of a layer.
pub(super) fn linear_attention<'g>(l: Layer<'g>, x: Node<'g>, inputs: &StateInputs<'g>) -> Node<'g> {
    let n_v = l.hparam("ssm.time_step_rank");
    let v_dim = l.hparam("ssm.inner_size") / n_v;
    let (k_dim, n_k) = (l.hparam("ssm.state_size"), l.hparam("ssm.group_count"));
    let heads = Heads { k_dim, n_k, v_dim, n_v };
    let (n_tokens, n_seqs, is_exp) = (l.n_seq_tokens, l.n_seqs, l.arch.name == "qwen4exp");
    let (mixed, z) = project(l, x, heads);
    let (beta, gate) = gates(l, x, heads);
    let (conv_states, ssm_states, kernel) = (l.conv_states(), l.ssm_states(), l.weight("ssm_conv1d"));
    let channels = v_dim * n_v + 2 * n_k * k_dim;
    let input = if is_exp {
        qwen4exp::conv_input(l.b, inputs, conv_states, mixed, [kernel.ne(0) - 1, channels])
    } else {
        l.conv_input(inputs, conv_states, mixed, [kernel.ne(0), channels])
    };
    let state = l.read_states(inputs, ssm_states).reshape(&[v_dim, v_dim, n_v, n_seqs]);
    let conv = input.ssm_conv(kernel).silu();
    let part = |dim, n, at| conv.split(dim, n, dim, at);
    let (q, k) = (part(k_dim, n_k, 0), part(k_dim, n_k, k_dim * n_k));
    let v = part(v_dim, n_v, 2 * k_dim * n_k);
    // Each key head as often as there are value heads to it.
    let repeats = n_k != n_v && l.arch.name == "qwen3next";
    let [q, k] = [q, k].map(|x| {
        let x = l.unit_norm(x);
        if !repeats {
            return x;
        }
        let apart = x.reshape(&[k_dim, 1, n_k, l.n_tokens]);
        apart.repeat(&[k_dim, n_v / n_k, n_k, l.n_tokens]).reshape(&[k_dim, n_v, n_tokens, n_seqs])
    });
    let (output, new_state) = l.delta_rule([q, k, v, gate, beta, state]);
    l.write_states(new_state, ssm_states);
    let z = z.reshape(&[v_dim, n_v, n_tokens, n_seqs]);
    let rows = l.norm("ssm_norm", output) * if is_exp { z.sigmoid() } else { z.silu() };
    if l.plan.rules.delta_nets_are_flat {
        return l.mm("ssm_out", rows.reshape(&[v_dim * n_v, n_tokens * n_seqs]));
    }
    let rows = l.mm("ssm_out", rows.reshape(&[v_dim * n_v, n_tokens, n_seqs]));
    rows.reshape(&[l.n_embd, n_tokens * n_seqs])
}

/// Queries, keys and values in one, and the output's gate (`build_qkvz`).
fn project<'g>(l: Layer<'g>, x: Node<'g>, heads: Heads) -> (Node<'g>, Node<'g>) {
    if l.has("attn_qkv") {
        return (l.by_sequence(l.mm("attn_qkv", x)), l.mm("attn_gate", x));
    }
    let Heads { k_dim, n_k, v_dim, n_v } = heads;
    let (n_tokens, n_seqs, group) = (l.n_seq_tokens, l.n_seqs, v_dim * n_v / n_k);
    let all = l.mm("ssm_in", x).reshape(&[2 * k_dim + 2 * group, n_k, n_tokens, n_seqs]);
    let rows = |width, at, all_heads| all.cols(width, at).cont_nd(&[all_heads, n_tokens, n_seqs]);
    let (q, k) = (rows(k_dim, 0, k_dim * n_k), rows(k_dim, k_dim, k_dim * n_k));
    let v = rows(group, 2 * k_dim, v_dim * n_v);
    (q.concat(k, 0).concat(v, 0), all.cols(group, 2 * k_dim + group).cont())
}

/// How much of the state is replaced, and how much decays.
fn gates<'g>(l: Layer<'g>, x: Node<'g>, heads: Heads) -> (Node<'g>, Node<'g>) {
    let (n_tokens, n_seqs, n_v) = (l.n_seq_tokens, l.n_seqs, heads.n_v);
    let (by_head, by_token) = ([1, n_v, n_tokens, n_seqs], [n_v, n_tokens, n_seqs]);
    let (beta, alpha) = if l.has("ssm_ba") {
        let each = n_v / heads.n_k;
        let both = l.mm("ssm_ba", x).reshape(&[2 * each, heads.n_k, n_tokens, n_seqs]);
        (both.cols(each, 0).cont().sigmoid().reshape(&by_head), both.cols(each, each).cont_nd(&by_token))
    } else {
        let beta = l.mm("ssm_beta", x).reshape(&by_head).sigmoid();
        (beta, l.mm("ssm_alpha", x).reshape(&by_token))
    };
    let alpha = (alpha + l.need("ssm_dt", "bias")).softplus();
    (beta, (alpha * l.need("ssm_a", "")).reshape(&by_head))
}
