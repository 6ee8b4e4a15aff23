//! What is set from outside before a graph runs, and the output rows at its end.
//!
//! Source: `src/llama-graph.cpp` `build_inp_*`, `src/llama-arch.cpp` `llm_arch_supports_mixed_batch`, llama.cpp b11434.

use super::tensor::{Graph, Id, Op};
use super::{Builder, Error, Norm};
use crate::arch::Positions;
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f32, i32};

/// 64-bit integers: row numbers to write to.
pub(super) fn i64_type() -> GgmlType {
    GgmlType::from_name("i64").expect("a row of TYPES")
}

/// What a model does to its embeddings before the first layer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Embeddings {
    /// More rows of the same width than `n_embd` (deepstack).
    pub(super) n_deepstack: u64,
    /// All rows are multiplied by a number (granite).
    pub(super) scaled: bool,
    /// Token rows are multiplied by a number of their own (gemma).
    pub(super) token_scaled: bool,
}

impl Builder<'_> {
    /// The rows of the tokens, of given vectors, and of a mix of both; the tokens' are used (`build_inp_embd`).
    pub(super) fn inp_embd(&mut self, how: Embeddings) -> Result<Id, Error> {
        let table = self.global("token_embd.weight")?;
        let width = self.n_embd * (1 + how.n_deepstack);
        let n_tokens = self.n_tokens;
        let tokens = self.graph.input(i32(), &[n_tokens]);
        let vectors = self.graph.input(f32(), &[width, n_tokens]);
        let more = [width - self.n_embd, 0, 0, 0];
        let rows_of = |graph: &mut Graph, ids: Id| {
            let rows = graph.get_rows(table, ids);
            if more[0] > 0 { graph.pad(rows, more) } else { rows }
        };
        let mut rows = rows_of(&mut self.graph, tokens);
        self.graph.expand(rows);
        self.graph.expand(vectors);
        if !self.arch().unmixed {
            let mixed_tokens = self.graph.input(i32(), &[n_tokens]);
            let slots = self.graph.input(i64_type(), &[n_tokens]);
            let mixed = self.graph.input(f32(), &[width, n_tokens]);
            let copy = self.graph.like(Op::Dup, &[mixed]);
            let token_rows = rows_of(&mut self.graph, mixed_tokens);
            let mixed = self.graph.set_rows(copy, token_rows, slots);
            self.graph.expand(mixed);
        }
        if how.n_deepstack > 0 {
            let stride = self.nb(rows, 1);
            rows = self.graph.view(rows, &[self.n_embd, n_tokens], &[stride], 0);
        }
        if how.scaled {
            rows = self.graph.scale(rows);
        }
        if how.token_scaled {
            let scales = self.graph.input(f32(), &[1, n_tokens]);
            if !self.graph.tensor(rows).is_contiguous() {
                rows = self.graph.cont(rows);
            }
            rows = self.graph.mul(rows, scales);
        }
        self.graph.expand(rows);
        Ok(rows)
    }

    /// The positions, four by token where the model turns by sections.
    pub(super) fn inp_pos(&mut self) -> Id {
        let per_token = if self.is_sectioned() { 4 } else { 1 };
        self.graph.input(i32(), &[self.n_tokens * per_token])
    }

    /// Whether positions have sections (`n_pos_per_embd`: M-RoPE and its interleaved kind).
    fn is_sectioned(&self) -> bool {
        match self.arch().positions {
            Positions::One => false,
            Positions::Sections => true,
            Positions::IfStated => self.hparams().value("rope.dimension_sections").is_some(),
        }
    }

    /// A factor by token for the queries.
    pub(super) fn inp_attn_scale(&mut self) -> Id {
        self.graph.input(f32(), &[1, 1, self.n_tokens])
    }

    /// The tokens with an output row.
    pub(super) fn inp_out_ids(&mut self) -> Id {
        self.graph.input(i32(), &[self.plan.batch.n_outputs])
    }

    /// Keeps the rows that are put out, in the last layer.
    pub(super) fn only_outputs(&mut self, il: u32, out_ids: Id, rows: &mut [&mut Id]) {
        if self.is_last(il) {
            for id in rows {
                **id = self.graph.get_rows(**id, out_ids);
            }
        }
    }

    /// The last norm.
    pub(super) fn output_norm(&mut self, rows: Id, kind: Norm) -> Result<Id, Error> {
        let weight = self.global("output_norm.weight")?;
        let bias = self.maybe_global("output_norm.bias");
        Ok(self.norm_with(None, Some(weight), bias, rows, kind))
    }

    /// The output matrix times `rows`.
    pub(super) fn lm_head(&mut self, rows: Id) -> Result<Id, Error> {
        let own = self.weights.global_for_output(&mut self.graph, "output.weight");
        let tied = own.or_else(|| self.weights.global_for_output(&mut self.graph, "token_embd.weight"));
        let weight = tied.ok_or_else(|| self.no_tensor("output.weight".to_string()))?;
        let logits = self.graph.mul_mat(weight, rows);
        Ok(match self.maybe_global("output.scale") {
            Some(scale) => self.graph.mul(logits, scale),
            None => logits,
        })
    }

    /// The logits without further steps.
    pub(super) fn logits(&mut self, rows: Id) -> Result<(), Error> {
        let logits = self.lm_head(rows)?;
        self.finish(logits);
        Ok(())
    }

    /// Ends the graph with its logits.
    pub(super) fn finish(&mut self, logits: Id) {
        self.mark_output(logits);
        self.graph.expand(logits);
    }

    /// A tensor that is read after the graph has run.
    pub(super) fn mark_output(&mut self, id: Id) {
        self.graph.tensors[id.index()].is_output = true;
    }
}
