//! plamo2: its own state-space layers between attention layers.
//!
//! Source: `src/models/plamo2.cpp`, llama.cpp b11434.

use super::super::ffn::Act;
use super::super::recurrent::StateInputs;
use super::super::tensor::{Glu, Node};
use super::super::{Builder, Layer, Norm};
use super::mixed::mamba_conv;
use super::plain::{PLAIN, finish};
use crate::memory::graph::ops::HEADS;

/// Builds the graph.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let (mut rows, positions, states, attn, out_ids) =
        (b.tokens(), b.inp_pos(), b.inp_rs(), b.inp_attn(), b.inp_out_ids());
    for l in b.layers() {
        let x = l.norm("attn_norm", rows);
        let x = if l.hp.is_recr {
            mamba(l, x, &states)
        } else {
            let mut qkv = l.parted(l.mm("attn_qkv", x));
            l.norm_qk(&mut qkv, Norm::Rms);
            qkv.rope(positions, None);
            l.attn_out(&attn, qkv)
        };
        let [x, residual] = l.only_outputs(out_ids, [x, rows]);
        let middle = l.norm("post_attention_norm", x) + residual;
        let x = l.ffn("", l.norm("ffn_norm", middle), Act::SwigluFused);
        rows = l.norm("post_ffw_norm", x) + middle;
    }
    finish(b, &PLAIN, rows, out_ids);
}

/// `build_plamo2_mamba_layer`.
fn mamba<'g>(l: Layer<'g>, x: Node<'g>, inputs: &StateInputs<'g>) -> Node<'g> {
    let (n_tokens, n_seqs, state) = (l.n_seq_tokens, l.n_seqs, l.hparam("ssm.state_size"));
    let (inner, n_head) = (l.hparam("ssm.inner_size"), l.hparam("ssm.time_step_rank"));
    let (head, rank) = (inner / n_head, (l.n_embd / 16).max(64));
    let zx = l.mm("ssm_in", l.by_sequence(x)).permute(HEADS).cont_nd(&[2 * head, n_head, n_tokens, n_seqs]);
    let (z, x) = (zx.cols(head, 0), zx.cols(head, head));
    let x = mamba_conv(l, inputs, x.cont_nd(&[inner, n_tokens, n_seqs]), inner);
    let all = l.mm("ssm_x", x);
    let normed = |name: &str, width, at| l.norm(name, all.cols(width, at));
    let by_state = |part: Node<'g>| part.split(state, 1, state, 0);
    let (b, c) = (by_state(normed("ssm_b_norm", state, 0)), by_state(normed("ssm_c_norm", state, state)));
    let dt = l.linear("ssm_dt", normed("ssm_dt_norm", rank, 2 * state));
    let a = l.need("ssm_a", "").reshape(&[1, n_head]);
    let (x, states) = (x.split(head, n_head, head, 0), l.ssm_states());
    let result = l.scan(inputs, states, [state, head, n_head], [x, dt, a, b, c]);
    let new = result.view(&[inner * state * n_seqs], &[], 4 * inner * n_tokens * n_seqs);
    new.store(states);
    let y = result.view(&x.shape(), &x.strides()[1..], 0) + x * l.need("ssm_d", "").reshape(&[1, n_head]);
    let y = z.cont().glu_split(Glu::Swiglu, y);
    let rows = l.mm("ssm_out", y.view(&[inner, n_tokens, n_seqs], &y.strides()[2..], 0));
    rows.reshape(&[rows.ne(0), n_tokens * n_seqs])
}
