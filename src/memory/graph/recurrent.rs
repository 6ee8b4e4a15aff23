//! Recurrent states: reading them into a graph, convolutions over them, the gated delta rule.
//!
//! Source: `src/llama-graph.cpp` `build_rs`, `src/models/delta-net-base.cpp`, llama.cpp b11434.

use super::tensor::{Id, Op, Tensor};
use super::{Builder, Error};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// Which states the sequences of the batch continue.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateInputs {
    pub(super) s_copy: Id,
    /// The part of the batch's own sequences.
    pub(super) main: Id,
    /// All but the first.
    pub(super) tail: Id,
    /// Cells of the cache: one a sequence at least.
    pub(super) n_states: u64,
}

impl Builder<'_> {
    /// The rows of states to read (`build_rs_inp`).
    pub(super) fn inp_rs(&mut self) -> Result<StateInputs, Error> {
        let n_states = self.cells(CacheKind::Recurrent)?;
        let s_copy = self.graph.input(i32(), &[n_states]);
        let main = self.graph.view(s_copy, &[self.plan.batch.n_seqs], &[], 0);
        let tail = self.graph.view(s_copy, &[n_states - 1], &[], 4);
        Ok(StateInputs { s_copy, main, tail, n_states })
    }

    /// The convolution's state of all sequences in a layer.
    pub(super) fn conv_states(&mut self, il: u32) -> Result<Id, Error> {
        Ok(self.kv_tensors(CacheKind::Recurrent, il)?.k)
    }

    /// The state-space's state of all sequences in a layer.
    pub(super) fn ssm_states(&mut self, il: u32) -> Result<Id, Error> {
        self.values(CacheKind::Recurrent, il)
    }

    /// The states of the batch's sequences, the others copied along (`build_rs`).
    pub(super) fn read_states(&mut self, inputs: &StateInputs, states: Id) -> Id {
        let own = *self.graph.tensor(states);
        let (width, n_seqs) = (own.ne[0], self.plan.batch.n_seqs);
        let flat = self.graph.reshape(states, &[width, own.ne[1]]);
        let zeroed = self.graph.view(flat, &[width], &[], 0);
        let zeroed = self.graph.scale_inplace(zeroed);
        self.graph.expand(zeroed);
        let all = self.graph.get_rows(flat, inputs.s_copy);
        let stride = self.nb(all, 1);
        let wanted = self.graph.view(all, &[width, n_seqs], &[stride], 0);
        self.graph.expand(wanted);
        self.copy_extra(inputs, states, all);
        wanted
    }

    /// The states that the batch does not change move with those it does.
    pub(super) fn copy_extra(&mut self, inputs: &StateInputs, states: Id, all: Id) {
        let own = *self.graph.tensor(states);
        let (width, n_seqs, stride) = (own.ne[0], self.plan.batch.n_seqs, self.nb(all, 1));
        let extra = inputs.n_states - n_seqs;
        let from = self.graph.view(all, &[width, extra], &[stride], n_seqs * stride);
        let to = self.graph.view(states, &[width, extra], &[own.nb[1]], n_seqs * own.nb[1]);
        let copied = self.graph.cpy(from, to);
        self.graph.expand(copied);
    }

    /// Writes the states of the batch's sequences back.
    pub(super) fn write_states(&mut self, from: Id, states: Id) {
        let own = *self.graph.tensor(states);
        let to = self.graph.view(states, &[own.ne[0], self.plan.batch.n_seqs], &[own.nb[1]], 0);
        let written = self.graph.cpy(from, to);
        self.graph.expand(written);
    }

    /// The convolution's input: its state before the new columns; the last columns become the state
    /// (`build_conv_state`).
    pub(super) fn conv_input(&mut self, inputs: &StateInputs, states: Id, x: Id, kernel: u64, channels: u64) -> Id {
        let n_seqs = self.plan.batch.n_seqs;
        let past = self.read_states(inputs, states);
        let past = self.graph.reshape(past, &[kernel - 1, channels, n_seqs]);
        let x = self.graph.transpose(x);
        let input = self.graph.concat(past, x, 0);
        self.keep_conv_state(input, states, kernel, channels);
        input
    }

    /// Stores the last columns of a convolution's input.
    pub(super) fn keep_conv_state(&mut self, input: Id, states: Id, kernel: u64, channels: u64) {
        let from = self.last_columns(input, kernel, channels);
        self.write_states(from, states);
    }

    /// The columns of a convolution's input that the next tokens will need.
    pub(super) fn last_columns(&mut self, input: Id, kernel: u64, channels: u64) -> Id {
        let t = *self.graph.tensor(input);
        let Some(first) = t.ne[0].checked_sub(kernel - 1) else {
            return self.graph.refuse("a convolution of that kernel", &[input]);
        };
        let last = first * t.nb[0];
        self.graph.view(input, &[kernel - 1, channels, self.plan.batch.n_seqs], &[t.nb[1], t.nb[2]], last)
    }

    /// A causal convolution of each channel.
    pub(super) fn ssm_conv(&mut self, input: Id, kernel: Id) -> Id {
        let (x, c) = (self.graph.tensor(input).ne, self.graph.tensor(kernel).ne);
        match (x[0] + 1).checked_sub(c[0]) {
            Some(n) if x[1] == c[1] && x[3] == 1 && c[2..] == [1, 1] => {
                self.graph.make(Op::SsmConv, f32(), [c[1], n, x[2], 1], &[input, kernel])
            }
            _ => self.graph.refuse("ggml_ssm_conv", &[input, kernel]),
        }
    }

    /// Heads of one length (`build_gdn_l2_norm`).
    pub(super) fn unit_norm(&mut self, x: Id) -> Id {
        let x = self.rms(x);
        self.graph.scale(x)
    }

    /// The gated delta rule: outputs `[S, H, tokens, sequences]`; the new state is stored (`build_recurrent_attn`).
    pub(super) fn delta_net(&mut self, sources: [Id; 6], states: Id) -> Id {
        let (output, new_state) = self.delta_rule(sources);
        self.write_states(new_state, states);
        output
    }

    /// Its outputs and its new state.
    pub(super) fn delta_rule(&mut self, [q, k, v, g, beta, state]: [Id; 6]) -> (Id, Id) {
        let Tensor { ne, .. } = *self.graph.tensor(v);
        let [size, heads, n_tokens, n_seqs] = ne;
        let (g_ne, beta_ne, state_ne) = (self.ne(g, 0), self.ne(beta, 0), self.graph.tensor(state).ne);
        if ![1, size].contains(&g_ne) || beta_ne != 1 || state_ne != [size, size, heads, n_seqs] {
            let refused = self.graph.refuse("ggml_gated_delta_net", &[v, g, beta, state]);
            return (refused, refused);
        }
        let shape = [size * heads, n_tokens * n_seqs + size * n_seqs, 1, 1];
        let result = self.graph.make(Op::GatedDeltaNet, f32(), shape, &[q, k, v, g, beta, state]);
        let strides = [4 * size, 4 * size * heads, 4 * size * heads * n_tokens];
        let output = self.graph.view(result, &ne, &strides, 0);
        let strides = [4 * size, 4 * size * size, 4 * size * size * heads];
        let offset = 4 * size * heads * n_tokens * n_seqs;
        (output, self.graph.view(result, &[size, size, heads, n_seqs], &strides, offset))
    }

    /// What the tokens of each sequence have in common: rows as `[width, tokens, sequences]`.
    pub(super) fn by_sequence(&mut self, x: Id) -> Id {
        let width = self.ne(x, 0);
        let batch = self.plan.batch;
        self.graph.reshape(x, &[width, batch.n_seq_tokens(), batch.n_seqs])
    }
}
