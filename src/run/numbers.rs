//! The numbers of a context: cells, slots, batch sizes and output rows, as llama.cpp derives them.
//!
//! Source: `src/llama-context.cpp` `llama_context::llama_context` and the programs' own settings, llama.cpp b11434.

use serde::{Deserialize, Serialize};

use super::config::{FlashAttn, Program, RunConfig};
use crate::model::HParams;

/// What a `llama_context` would report, all in tokens, sequences or rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContextNumbers {
    /// Cells in all, padded to 256.
    pub n_ctx: u32,
    /// Cells of one sequence; equal to `n_ctx` when unified.
    pub n_ctx_seq: u32,
    pub n_seq_max: u32,
    /// Separate streams of the cache: 1 when unified, else `n_seq_max`.
    pub n_stream: u32,
    /// Whether one cache serves all sequences.
    pub kv_unified: bool,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_outputs_max: u32,
}

/// `run` on a model of `hparams`, resolved.
pub fn numbers(run: &RunConfig, hparams: &HParams) -> ContextNumbers {
    let server = matches!(run.program, Program::Server | Program::Cli);
    let (n_seq_max, kv_unified) = sequences(run);
    let asked = match (run.n_ctx, run.kv_unified_per_slot) {
        (0, Some(per_slot)) if run.program == Program::Server => per_slot.saturating_mul(n_seq_max),
        // Fitting first asks for the model's context for every sequence (`common/fit.cpp`).
        (0, _) if run.fit && !kv_unified => hparams.context_length.saturating_mul(n_seq_max),
        (0, _) => hparams.context_length,
        (n, _) if run.program.takes_chunks() => n.saturating_mul(n_seq_max),
        (n, _) => n,
    };
    let n_batch = if hparams.non_causal { run.n_batch } else { asked.min(run.n_batch) };
    let n_ubatch = n_batch.min(if run.n_ubatch == 0 { run.n_batch } else { run.n_ubatch });
    // llama-server decodes whole inputs at once when it makes embeddings.
    let n_batch = if server && run.embeddings { n_ubatch } else { n_batch };
    let all = padded_to(asked, if run.flash_attn == FlashAttn::Off { run.rules().plain_padding } else { PADDING });
    let (n_ctx, n_ctx_seq) = if kv_unified {
        (all, all)
    } else {
        let each = padded((all / n_seq_max).max(1));
        (each.saturating_mul(n_seq_max), each)
    };
    let n_outputs_max = if server && !run.embeddings && !hparams.arch().has_encoder {
        n_seq_max.saturating_mul(run.n_draft.saturating_add(1)).min(n_batch)
    } else {
        n_batch
    };
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

/// Sequences, and whether they share one cache: without `-np` llama-server makes four that share one, whatever `-kvu` says
/// (`tools/server/server.cpp`, b11434).
pub fn sequences(run: &RunConfig) -> (u32, bool) {
    if run.program.takes_chunks() {
        let chunks = run.n_batch.checked_div(run.n_ctx).unwrap_or(1); // Without `-c` both refuse to start.
        return (run.n_parallel.unwrap_or(chunks).max(1), run.kv_unified.unwrap_or(false));
    }
    let automatic = run.n_parallel.is_none() && run.program == Program::Server;
    let n_seq_max = run.n_parallel.unwrap_or(if automatic { 4 } else { 1 }).max(1);
    (n_seq_max, automatic || run.kv_unified.unwrap_or(false) || !run.rules().streams)
}

/// A launch with the numbers that its context has: the `run` of a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResolvedRun {
    /// The launch: what is left to llama.cpp is what it makes of it. Overrides are listed apart.
    #[serde(flatten)]
    pub config: RunConfig,
    /// Cells of one sequence, tokens.
    pub n_ctx_seq: u32,
    pub n_outputs_max: u32,
}

impl ResolvedRun {
    /// `run` with `numbers` in the place of what was asked for.
    pub fn new(run: &RunConfig, numbers: &ContextNumbers) -> Self {
        let config = RunConfig {
            n_ctx: numbers.n_ctx,
            n_batch: numbers.n_batch,
            n_ubatch: numbers.n_ubatch,
            n_parallel: Some(numbers.n_seq_max),
            kv_unified: Some(numbers.kv_unified),
            overrides: Vec::new(),
            ..run.clone()
        };
        Self { config, n_ctx_seq: numbers.n_ctx_seq, n_outputs_max: numbers.n_outputs_max }
    }

    pub fn n_seq_max(&self) -> u32 {
        sequences(&self.config).0
    }
}

impl std::ops::Deref for ResolvedRun {
    type Target = RunConfig;

    fn deref(&self) -> &RunConfig {
        &self.config
    }
}

const PADDING: u32 = 256;

/// Rounded up to a multiple of 256.
pub fn padded(n: u32) -> u32 {
    padded_to(n, PADDING)
}

fn padded_to(n: u32, unit: u32) -> u32 {
    n.checked_next_multiple_of(unit).unwrap_or(u32::MAX - (PADDING - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A launch by (program, -c, -np, -kvu) and the numbers it gives: (n_ctx, n_ctx_seq, n_seq_max, n_stream, n_outputs_max).
    #[test]
    fn slots_and_cells() {
        let hparams = HParams { context_length: 4096, ..HParams::default() };
        for (program, n_ctx, n_parallel, kv_unified, expected) in [
            (Program::Server, 8192, None, None, (8192, 8192, 4, 1, 4)),
            (Program::Server, 8192, None, Some(false), (8192, 8192, 4, 1, 4)),
            (Program::Server, 8192, Some(4), None, (8192, 2048, 4, 4, 4)),
            (Program::Server, 1000, Some(3), None, (1536, 512, 3, 3, 3)),
            (Program::Server, 8192, Some(4), Some(true), (8192, 8192, 4, 1, 4)),
            (Program::Server, 0, Some(2), None, (8192, 4096, 2, 2, 2)),
            (Program::Cli, 0, None, None, (4096, 4096, 1, 1, 1)),
            (Program::FitParams, 4100, None, None, (4352, 4352, 1, 1, 2048)),
            (Program::Bench, 512, Some(1), None, (512, 512, 1, 1, 512)),
            (Program::Perplexity, 512, None, None, (2048, 512, 4, 4, 2048)),
            (Program::Imatrix, 4096, None, None, (4096, 4096, 1, 1, 2048)),
            (Program::Completion, 8192, None, None, (8192, 8192, 1, 1, 2048)),
        ] {
            let run = RunConfig { program, n_ctx, n_parallel, kv_unified, ..RunConfig::default() };
            let n = numbers(&run, &hparams);
            assert_eq!((n.n_ctx, n.n_ctx_seq, n.n_seq_max, n.n_stream, n.n_outputs_max), expected, "{run:?}");
        }
    }

    #[test]
    fn batches_are_bounded_by_the_context() {
        let hparams = HParams::default();
        let run = RunConfig { n_ctx: 300, n_ubatch: 0, ..RunConfig::default() };
        let n = numbers(&run, &hparams);
        assert_eq!((n.n_ctx, n.n_batch, n.n_ubatch), (512, 300, 300));
    }
}
