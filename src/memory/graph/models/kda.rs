//! Kimi delta attention beside MLA.
//!
//! Source: `src/models/kimi-linear.cpp`, `bailingmoe3.cpp`, llama.cpp b11434.

use super::super::attention::{Extras, Qkv};
use super::super::cache::CacheInputs;
use super::super::recurrent::StateInputs;
use super::super::tensor::Node;
use super::super::{Builder, Layer};
use super::mla::{Cached, SPEC};
use super::plain::{NormW, Pick, Spec, stack};
use crate::memory::caches::CacheKind;

pub(super) fn kimi_linear<'g>(b: &'g Builder<'g>) {
    let (rows, states, cached) = (b.tokens(), b.inp_rs(), Cached::of(b));
    stack(b, &Spec { norm_w: NormW::Always, ..SPEC }, rows, |l, x| {
        x.expand();
        if l.hp.is_recr { l.kda(x, &states) } else { attention(l, x, &cached) }
    });
}

/// bailingmoe3: gates on both kinds of attention, positions on MLA's.
pub(super) fn bailingmoe3<'g>(b: &'g Builder<'g>) {
    let (rows, states, latent, positions) = (b.tokens(), b.inp_rs(), b.inp_k(CacheKind::Base), b.inp_pos());
    stack(b, &Spec { pick: Pick::AfterNorm, ..SPEC }, rows, |l, x| {
        if l.hp.is_recr { l.kda(x, &states) } else { gated_mla(l, x, latent, positions) }
    });
}

/// MLA with a gate for each head.
pub(super) fn gated_mla<'g>(l: Layer<'g>, x: Node<'g>, latent: CacheInputs<'g>, positions: Node<'g>) -> Node<'g> {
    let sizes = l.mla_sizes();
    let rows = l.attn_latent(latent, l.mla_qkv(l.mla_q(x), x, Some(positions), sizes), None);
    let gate = l.raw_mm("attn_gate", x).reshape(&[1, sizes.n_head, l.n_tokens]).sigmoid();
    let gated = rows.reshape(&[sizes.v_head, sizes.n_head, l.n_tokens]) * gate;
    l.raw_mm("attn_output", gated.cont_nd(&[sizes.v_head * sizes.n_head, l.n_tokens]))
}

/// MLA without positions.
fn attention<'g>(l: Layer<'g>, x: Node<'g>, cached: &Cached<'g>) -> Node<'g> {
    let (sizes, q) = (l.mla_sizes(), l.raw_mm("attn_q", x));
    let rows = match cached {
        Cached::Latent(inputs) => l.attn_latent(*inputs, l.mla_qkv(q, x, None, sizes), None),
        Cached::Heads(inputs) => {
            let (latent, k_pe) = l.mla_kv(x, sizes);
            let (k_nope, v) = l.mla_decompressed(latent, sizes);
            let k = k_pe.repeat(&[sizes.rope, sizes.n_head, l.n_tokens]).concat(k_nope, 0);
            let q = q.reshape(&[sizes.k_head, sizes.n_head, l.n_tokens]);
            l.attn(inputs, Qkv { q, k, v }, Extras::default())
        }
    };
    l.mm("attn_output", rows)
}

impl<'g> Layer<'g> {
    /// One convolution of queries, keys or values, their states behind each other.
    fn kda_conv(
        self,
        (name, part): (&str, u64),
        x: Node<'g>,
        (past, states): (Node<'g>, Node<'g>),
        (head, n_head): (u64, u64),
    ) -> Node<'g> {
        let (inner, kernel) = (head * n_head, self.hparam("ssm.conv_kernel"));
        let size = (kernel - 1) * inner;
        let own = |states: Node<'g>, slot: u64| {
            let first = slot * (states.ne(1) / self.rs_slots()) * 3 * size + part * size;
            states.view(&[kernel - 1, inner, self.n_seqs], &[4 * (kernel - 1), 4 * 3 * size], 4 * first)
        };
        let x = x.reshape(&[inner, self.n_seq_tokens, self.n_seqs]).transpose();
        let input = own(past, 0).concat(x, 0);
        for slot in 0..self.rs_slots() {
            self.columns_before(input, kernel, inner, slot).cpy(own(states, slot)).expand();
        }
        let weight = self.weight(&format!("ssm_conv1d_{name}")).reshape(&[kernel, inner]);
        let x = input.ssm_conv(weight).reshape(&[inner, self.n_tokens]).silu();
        x.reshape(&[head, n_head, self.n_seq_tokens, self.n_seqs])
    }

    /// The delta rule with a decay for each element of a key (kimi-linear, bailingmoe3, glm5-next, kimi-k3).
    pub(super) fn kda(self, x: Node<'g>, inputs: &StateInputs<'g>) -> Node<'g> {
        let (n, n_tokens, n_seqs) = (self.n_tokens, self.n_seq_tokens, self.n_seqs);
        let (head, n_head) = (self.hparam("kda.head_dim"), self.b.layer(0).n_head);
        let inner = head * n_head;
        let (conv_states, ssm_states) = (self.conv_states(), self.ssm_states());
        let past = self.read_states(inputs, conv_states);
        let is_linear = self.arch.name == "kimi-linear";
        let rows = if is_linear {
            self.qkv_rows(x, [inner; 3])
        } else {
            ["attn_q", "attn_k", "attn_v"].map(|name| self.raw_mm(name, x))
        };
        let conv = |name, part, x| self.kda_conv((name, part), x, (past, conv_states), (head, n_head));
        let (q, k, v) = (conv("q", 0, rows[0]), conv("k", 1, rows[1]), conv("v", 2, rows[2]));
        let decay = self.decay(x, (head, n_head)).reshape(&[head, n_head, n_tokens, n_seqs]);
        let beta = self.raw_mm("ssm_beta", x).reshape(&[1, n_head, n_tokens, n_seqs]).sigmoid();
        let state = self.read_states(inputs, ssm_states).reshape(&[head, head, n_head, n_seqs]);
        let (output, new_state) = self.delta_rule([self.unit_norm(q), self.unit_norm(k), v, decay, beta, state]);
        if is_linear {
            new_state.store(ssm_states);
        } else {
            self.write_states(new_state, ssm_states);
        }
        let x = if is_linear { self.by_sequence(x).reshape(&[x.ne(0), n]) } else { x };
        let mut gate = self.raw_mm(if self.has("ssm_g") { "ssm_g" } else { "ssm_g_a" }, x);
        if is_linear || self.arch.name == "glm5-next" {
            gate = self.raw_mm("ssm_g_b", gate);
        }
        let gate = gate.reshape(&[head, n_head, n]).sigmoid();
        let output = self.norm("ssm_norm", output.cont().reshape(&[head, n_head, n])) * gate;
        self.raw_mm("attn_output", output.cont_nd(&[inner, n]))
    }

    /// How much of a state decays: no more than a bound, where one is stated (`kda.gate_lower_bound`).
    fn decay(self, x: Node<'g>, (head, n_head): (u64, u64)) -> Node<'g> {
        let is_stated =
            self.hparams().value("kda.gate_lower_bound").is_some() && self.f64_or_0("kda.gate_lower_bound").is_finite();
        let is_bounded = self.arch.name == "bailingmoe3" || self.arch.name != "kimi-linear" && is_stated;
        let mut decay = self.raw_mm("ssm_f_a", x);
        if self.arch.name == "kimi-linear" || self.has("ssm_f_b") {
            decay = self.raw_mm("ssm_f_b", decay);
        }
        decay = self.bias("ssm_dt", decay);
        if !is_bounded {
            decay = decay.softplus();
        }
        decay = decay.reshape(&[head, n_head, self.n_tokens]) * self.need("ssm_a", "").reshape(&[1, n_head, 1]);
        match self.arch.name {
            _ if !is_bounded => decay,
            "bailingmoe3" => decay.sigmoid().scale(),
            _ => decay.scale().sigmoid().scale(),
        }
    }
}
