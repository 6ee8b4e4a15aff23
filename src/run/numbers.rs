//! The numbers of a context: cells, slots, batch sizes and output rows, as llama.cpp derives them.
//!
//! Source: `src/llama-context.cpp` `llama_context::llama_context` and the programs' own settings, llama.cpp b11434.

use serde::Serialize;

use super::{Program, RunConfig};
use crate::hparams::HParams;

/// What a `llama_context` would report, all in tokens, sequences or rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ContextNumbers {
    /// Cells in all, padded to 256.
    pub n_ctx: u32,
    /// Cells of one sequence; equal to `n_ctx` when unified.
    pub n_ctx_seq: u32,
    /// Sequences (server slots).
    pub n_seq_max: u32,
    /// Separate streams of the cache: 1 when unified, else `n_seq_max`.
    pub n_stream: u32,
    /// Whether one cache serves all sequences.
    pub kv_unified: bool,
    /// Logical batch.
    pub n_batch: u32,
    /// Physical batch.
    pub n_ubatch: u32,
    /// Output rows reserved.
    pub n_outputs_max: u32,
}

/// `run` on a model of `hparams`, resolved.
pub fn numbers(run: &RunConfig, hparams: &HParams) -> ContextNumbers {
    let server = matches!(run.program, Program::Server | Program::Cli);
    let automatic = run.n_parallel.is_none() && run.program == Program::Server;
    let n_seq_max = run.n_parallel.unwrap_or(if automatic { 4 } else { 1 }).max(1);
    let kv_unified = run.kv_unified.unwrap_or(automatic);
    let asked = match (run.n_ctx, run.kv_unified_per_slot) {
        (0, Some(per_slot)) if server => per_slot.saturating_mul(n_seq_max),
        (0, _) => hparams.context_length,
        (n, _) => n,
    };
    let causal = !matches!(
        hparams.metadata.get(&format!("{}.attention.causal", hparams.architecture)),
        Some(crate::gguf::Value::Bool(false))
    );
    let n_batch = if causal { asked.min(run.n_batch) } else { run.n_batch };
    let n_ubatch = n_batch.min(if run.n_ubatch == 0 { run.n_batch } else { run.n_ubatch });
    let padded = pad(asked);
    let (n_ctx, n_ctx_seq) = if kv_unified {
        (padded, padded)
    } else {
        let each = pad((padded / n_seq_max).max(1));
        (each.saturating_mul(n_seq_max), each)
    };
    let n_outputs_max =
        if server && !run.embeddings { n_seq_max.saturating_mul(1 + run.n_draft).min(n_batch) } else { n_batch };
    ContextNumbers {
        n_ctx,
        n_ctx_seq,
        n_seq_max,
        n_stream: if kv_unified { 1 } else { n_seq_max },
        kv_unified,
        n_batch,
        n_ubatch,
        n_outputs_max,
    }
}

/// Rounded up to a multiple of 256.
fn pad(n: u32) -> u32 {
    n.checked_next_multiple_of(256).unwrap_or(u32::MAX - 255)
}
