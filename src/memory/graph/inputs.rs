//! What is set from outside before a graph runs, and the output rows at its end.
//!
//! Source: `src/llama-graph.cpp` `build_inp_*`, `src/llama-arch.cpp` `llm_arch_supports_mixed_batch`, llama.cpp b11434.

use super::tensor::{Node, Op};
use super::{Builder, Layer, Norm};
use crate::arch::{Output, Positions};
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

impl<'g> Builder<'g> {
    /// The rows of the tokens, of given vectors, and of a mix of both; the tokens' are used (`build_inp_embd`).
    pub(super) fn inp_embd(&self, embeddings: Embeddings) -> Node<'g> {
        let output = || self.last_copy("output").filter(|_| self.arch.output == Output::OrEmbedding);
        let embedding = self.get("token_embd", "weight").or_else(output);
        let (table, n_tokens) = (embedding.unwrap_or_else(|| self.global("token_embd")), self.n_tokens);
        let more = self.n_embd * embeddings.n_deepstack;
        let input = |ty, dims: &[u64]| self.draft.input(ty, dims);
        let vectors = [self.n_embd + more, n_tokens];
        let kinds = self.plan.rules.embedding_inputs;
        let is_mixed = kinds >= 3 && !self.arch.unmixed;
        let looked_up = || table.get_rows(input(i32(), &[n_tokens]));
        let is_first = self.plan.rules.looks_up_first;
        let first = is_first.then(|| (looked_up().expand(), is_mixed.then(|| looked_up().expand())));
        let padded = |rows: Node<'g>| if more > 0 { rows.pad(more) } else { rows };
        let mut rows = padded(first.map_or_else(looked_up, |(rows, _)| rows)).expand();
        if kinds >= 2 {
            input(f32(), &vectors).expand();
        }
        if is_mixed {
            let copy = input(f32(), &vectors).op(Op::Dup);
            let mixed = padded(first.and_then(|(_, rows)| rows).unwrap_or_else(looked_up));
            copy.set_rows(mixed, input(i64_type(), &[n_tokens])).expand();
        }
        if more > 0 {
            rows = rows.view(&[self.n_embd, n_tokens], &[rows.nb(1)], 0);
        }
        if embeddings.scaled {
            rows = rows.scale();
        }
        if embeddings.token_scaled && kinds < 3 {
            rows = rows.scale();
        } else if embeddings.token_scaled {
            let packed = if rows.tensor().is_contiguous() { rows } else { rows.cont() };
            rows = packed * input(f32(), &[1, n_tokens]);
        }
        rows.expand()
    }

    /// The embeddings of the tokens alone.
    pub(super) fn tokens(&self) -> Node<'g> {
        self.inp_embd(Embeddings::default())
    }

    /// The positions, four by token where the model turns by sections.
    pub(super) fn inp_pos(&self) -> Node<'g> {
        let per_token = if self.is_sectioned() { 4 } else { 1 };
        self.draft.input(i32(), &[self.n_tokens * per_token])
    }

    /// Whether positions have sections (`n_pos_per_embd`: M-RoPE and its interleaved kind).
    fn is_sectioned(&self) -> bool {
        match self.arch.positions {
            Positions::One => false,
            Positions::Sections => true,
            Positions::IfStated => self.hparams().value("rope.dimension_sections").is_some(),
        }
    }

    /// A factor by token for the queries.
    pub(super) fn inp_attn_scale(&self) -> Node<'g> {
        self.draft.input(f32(), &[1, 1, self.n_tokens])
    }

    /// The tokens with an output row.
    pub(super) fn inp_out_ids(&self) -> Node<'g> {
        self.draft.input(i32(), &[self.plan.batch.n_outputs])
    }

    /// The last norm.
    pub(super) fn output_norm(&self, rows: Node<'g>, kind: Norm) -> Node<'g> {
        rows.norm(kind, Some(self.global("output_norm")), self.get("output_norm", "bias"))
    }

    /// The output matrix times `rows`.
    pub(super) fn lm_head(&self, rows: Node<'g>) -> Node<'g> {
        let weight = self.last_copy("output").or_else(|| self.last_copy("token_embd"));
        let logits = weight.unwrap_or_else(|| self.no_tensor("output.weight".to_string())).mm(rows);
        self.get("output", "scale").map_or(logits, |scale| logits * scale)
    }
}

impl<'g> Layer<'g> {
    /// In the last layer, only the rows that are put out.
    pub(super) fn only_outputs<const N: usize>(self, out_ids: Node<'g>, rows: [Node<'g>; N]) -> [Node<'g>; N] {
        if self.is_last() { rows.map(|rows| rows.get_rows(out_ids)) } else { rows }
    }
}

impl Node<'_> {
    /// Read after the graph has run.
    pub(super) fn mark_output(self) -> Self {
        self.edit(|tensor| tensor.is_output = true);
        self
    }
}
