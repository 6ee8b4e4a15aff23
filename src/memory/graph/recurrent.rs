//! Recurrent states: reading them into a graph, convolutions over them, the gated delta rule.
//!
//! Source: `src/llama-graph.cpp` `build_rs`, `src/models/delta-net-base.cpp`, llama.cpp b11434.

use super::tensor::{Node, Op};
use super::{Builder, Layer};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// Which states the sequences of the batch continue.
#[derive(Clone, Copy)]
pub(super) struct StateInputs<'g> {
    s_copy: Node<'g>,
    /// The part of the batch's own sequences.
    main: Node<'g>,
    tail: Node<'g>,
    /// States of the cache, their snapshots apart: one a sequence at least.
    n_states: u64,
}

impl<'g> Layer<'g> {
    /// The convolution's state of all sequences.
    pub(super) fn conv_states(self) -> Node<'g> {
        self.keys(CacheKind::Recurrent, self.il)
    }

    /// The state-space's state of all sequences.
    pub(super) fn ssm_states(self) -> Node<'g> {
        self.values(CacheKind::Recurrent, self.il)
    }
}

impl<'g> Builder<'g> {
    /// How many versions of a state are kept, one a drafted token beside the last (`n_rs_seq + 1`).
    pub(super) fn rs_slots(&self) -> u64 {
        let n_seqs = u64::from(self.plan.numbers.n_seq_max.max(1));
        let states = [CacheKind::Recurrent, CacheKind::PleState].into_iter().find_map(|kind| self.maybe_cache(kind));
        states.map_or(1, |cache| u64::from(cache.cells) / n_seqs).max(1)
    }

    /// The rows of states to read (`build_rs_inp`).
    pub(super) fn inp_rs(&self) -> StateInputs<'g> {
        let n_states = self.cells(CacheKind::Recurrent) / self.rs_slots();
        let s_copy = self.draft.input(i32(), &[n_states]);
        let main = s_copy.view(&[self.n_seqs], &[], 0);
        StateInputs { s_copy, main, tail: s_copy.view(&[n_states - 1], &[], 4), n_states }
    }

    /// Heads of one length (`build_gdn_l2_norm`, `ggml_l2_norm`).
    pub(super) fn unit_norm(&self, x: Node<'g>) -> Node<'g> {
        if self.plan.rules.unit_norms_by_rms { x.rms().scale() } else { x.op(Op::Norm) }
    }

    /// The states of the batch's sequences, the others copied along (`build_rs`).
    pub(super) fn read_states(&self, inputs: &StateInputs<'g>, states: Node<'g>) -> Node<'g> {
        let flat = states.zeroed();
        if !self.plan.rules.gathers_states_once {
            let wanted = flat.get_rows(inputs.main).expand();
            self.copy_extra(inputs, states, flat.get_rows(self.others(inputs)), 0);
            return wanted;
        }
        let all = flat.get_rows(inputs.s_copy);
        let wanted = all.view(&[states.ne(0), self.n_seqs], &[all.nb(1)], 0).expand();
        self.copy_extra(inputs, states, all, self.n_seqs);
        wanted
    }

    /// Which states the batch does not continue.
    fn others(&self, inputs: &StateInputs<'g>) -> Node<'g> {
        inputs.s_copy.view(&[inputs.n_states - self.n_seqs], &[], 4 * self.n_seqs)
    }

    /// The states that the batch does not change, row `first` of `all` on, move with those it does.
    fn copy_extra(&self, inputs: &StateInputs<'g>, states: Node<'g>, all: Node<'g>, first: u64) {
        let (width, row, stride) = (states.ne(0), states.nb(1), all.nb(1));
        let extra = [width, inputs.n_states - self.n_seqs];
        all.view(&extra, &[stride], first * stride).cpy(states.view(&extra, &[row], self.n_seqs * row)).expand();
    }

    /// Reads states straight from the cache by way of a scan; the extra ones are copied along.
    pub(super) fn scan(
        &self,
        inputs: &StateInputs<'g>,
        states: Node<'g>,
        shape @ [size, head, n_head]: [u64; 3],
        sources @ [x, dt, a, b, c]: [Node<'g>; 5],
    ) -> Node<'g> {
        let flat = states.zeroed();
        let is_one = self.plan.rules.gathers_states_once;
        let all = flat.get_rows(if is_one { inputs.tail } else { self.others(inputs) });
        let by_head = flat.reshape(&[size, head, n_head, states.ne(1)]);
        let [x_ne, dt_ne, a_ne, b_ne, c_ne] = sources.map(Node::shape);
        let rows = x_ne[..2] == [head, n_head] && dt_ne == [n_head, x_ne[2], x_ne[3], 1];
        let states_fit = b_ne == c_ne && [b_ne[0], b_ne[2], b_ne[3]] == [size, x_ne[2], x_ne[3]];
        if !(rows && states_fit && [1, size].contains(&a_ne[0]) && a_ne[1..] == [n_head, 1, 1]) {
            return self.draft.refuse("ggml_ssm_scan", &sources);
        }
        let n = x.elements() + shape.iter().product::<u64>() * self.n_seqs * self.rs_slots();
        let sources = [by_head, x, dt, a, b, c, inputs.main];
        let result = self.draft.make(Op::SsmScan, f32(), [n, 1, 1, 1], &sources).expand();
        // The first state was not gathered.
        self.copy_extra(inputs, states, all, if is_one { self.n_seqs - 1 } else { 0 });
        result
    }

    /// Writes the new states of the batch's sequences back, and their snapshots.
    pub(super) fn write_states(&self, from: Node<'g>, states: Node<'g>) {
        if self.rs_slots() == 1 {
            from.cpy(self.state_slot(states, 0)).expand();
            return;
        }
        let (row, n_states) = (states.nb(1), states.ne(1) / self.rs_slots());
        let kept = [states.ne(0), self.n_seqs, self.rs_slots().min(self.n_seq_tokens)];
        from.cpy(states.view(&kept, &[row, row * n_states], 0)).expand();
    }

    /// The rows of the batch's sequences in one version of all states.
    fn state_slot(&self, states: Node<'g>, slot: u64) -> Node<'g> {
        let n_states = states.ne(1) / self.rs_slots();
        states.view(&[states.ne(0), self.n_seqs], &[states.nb(1)], slot * n_states * states.nb(1))
    }

    /// The last columns of a convolution's input become the state, those before them its snapshots (`build_conv_state`).
    pub(super) fn write_columns(
        &self,
        input: Node<'g>,
        [kernel, channels]: [u64; 2],
        states: Node<'g>,
        through: impl Fn(Node<'g>) -> Node<'g>,
    ) {
        for slot in 0..self.rs_slots() {
            let columns = through(self.columns_before(input, kernel, channels, slot));
            columns.cpy(self.state_slot(states, slot)).expand();
        }
    }

    /// A convolution's input: its past columns before the new ones.
    pub(super) fn past_and(
        &self,
        inputs: &StateInputs<'g>,
        states: Node<'g>,
        x: Node<'g>,
        [columns, channels]: [u64; 2],
    ) -> Node<'g> {
        let past = self.read_states(inputs, states).reshape(&[columns, channels, self.n_seqs]);
        past.concat(x.transpose(), 0)
    }

    /// The same; the last columns become the state (`build_conv_state`).
    pub(super) fn conv_input(
        &self,
        inputs: &StateInputs<'g>,
        states: Node<'g>,
        x: Node<'g>,
        [kernel, channels]: [u64; 2],
    ) -> Node<'g> {
        let input = self.past_and(inputs, states, x, [kernel - 1, channels]);
        self.write_columns(input, [kernel, channels], states, |columns| columns);
        input
    }

    /// The columns of a convolution's input that the next tokens will need.
    pub(super) fn last_columns(&self, input: Node<'g>, kernel: u64, channels: u64) -> Node<'g> {
        self.columns_before(input, kernel, channels, 0)
    }

    /// The same had there been `slot` tokens fewer.
    pub(super) fn columns_before(&self, input: Node<'g>, kernel: u64, channels: u64, slot: u64) -> Node<'g> {
        let t = input.tensor();
        let Some(first) = t.ne[0].checked_sub(kernel - 1) else {
            return self.draft.refuse("a convolution of that kernel", &[input]);
        };
        // Of fewer tokens than snapshots the first columns are kept, as in llama.cpp.
        input.view(&[kernel - 1, channels, self.n_seqs], &t.nb[1..3], first.saturating_sub(slot) * t.nb[0])
    }

    /// The gated delta rule: outputs `[S, H, tokens, sequences]`, and the new state (`build_recurrent_attn`).
    pub(super) fn delta_rule(&self, sources: [Node<'g>; 6]) -> (Node<'g>, Node<'g>) {
        let [_, _, v, g, beta, state] = sources;
        let ne @ [size, heads, n_tokens, n_seqs] = v.shape();
        if ![1, size].contains(&g.ne(0)) || beta.ne(0) != 1 || state.shape() != [size, size, heads, n_seqs] {
            let refused = self.draft.refuse("ggml_gated_delta_net", &[v, g, beta, state]);
            return (refused, refused);
        }
        let n_slots = self.rs_slots();
        let shape = [size * heads, n_tokens * n_seqs + size * n_seqs * n_slots, 1, 1];
        let result = self.draft.make(Op::GatedDeltaNet, f32(), shape, &sources);
        let output = result.view(&ne, &[4 * size, 4 * size * heads, 4 * size * heads * n_tokens], 0);
        let (offset, state) = (4 * size * heads * n_tokens * n_seqs, size * size * heads);
        let new_state = if n_slots == 1 {
            result.view(&[size, size, heads, n_seqs], &[4 * size, 4 * size * size, 4 * state], offset)
        } else {
            result.view(&[state, n_seqs, n_slots.min(n_tokens)], &[4 * state, 4 * state * n_seqs], offset)
        };
        (output, new_state)
    }

    /// What the tokens of each sequence have in common: rows as `[width, tokens, sequences]`.
    pub(super) fn by_sequence(&self, x: Node<'g>) -> Node<'g> {
        x.reshape(&[x.ne(0), self.n_seq_tokens, self.n_seqs])
    }
}

impl Node<'_> {
    /// All states as rows, the first of them zeroed.
    fn zeroed(self) -> Self {
        let ne = self.shape();
        let flat = self.reshape(&[ne[0], ne[1]]);
        let first = flat.view(&[ne[0]], &[], 0);
        first.into_place(Op::Scale, &[first]).expand();
        flat
    }

    /// Stores it as the first elements of a state's tensor.
    pub(super) fn store(self, states: Self) {
        self.cpy(states.view(&[self.elements()], &[], 0)).expand();
    }
}
