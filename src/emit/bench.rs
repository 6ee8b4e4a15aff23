//! A plan for llama-bench: its own grammar, the turn's tests in place of `-c`.
//!
//! Source: `tools/llama-bench/llama-bench.cpp`, b11434: a context of prompt + generation + depth tokens, one sequence.

use super::{Error, Launch};
use crate::run::args::settings;
use crate::run::flags::{self, Flag};
use crate::run::{Dialect, ModelSource, Program, RunConfig};
use crate::speed::Turn;

/// The launch that measures the plan's placement on the turn.
pub(super) fn launch(run: &RunConfig, source: &ModelSource, turn: Turn) -> Result<Launch, Error> {
    let lacks = |lacks: &str, instead| Err(Error::Lacks { program: "llama-bench", lacks: lacks.to_string(), instead });
    if matches!(source, ModelSource::Url(_) | ModelSource::Docker(_)) {
        return lacks("takes no address", "download the model and give the file");
    }
    if run.mtp {
        return lacks("loads no NextN blocks", "measure this plan with llama-server");
    }
    let broken = |text: &str| text.contains([';', ',']);
    if run.overrides.iter().any(|entry| broken(&entry.pattern) || broken(&entry.buffer)) {
        return lacks("splits overrides at `,` and `;`", "write the pattern without them");
    }
    let longest = turn.prompt.max(turn.generate).saturating_add(turn.depth).max(1);
    let expected = RunConfig {
        program: Program::Bench,
        n_ctx: longest,
        n_parallel: Some(1),
        kv_unified: Some(false),
        fit: false,
        fit_ctx: RunConfig::default().fit_ctx,
        n_draft: 0,
        n_rs_seq: 0,
        ..flags::without_others(run, Flag::is_in_bench)
    };
    let tests = [("-p", turn.prompt), ("-n", turn.generate), ("-d", turn.depth)];
    let mut args: Vec<String> = tests.iter().flat_map(|(flag, n)| [(*flag).to_string(), n.to_string()]).collect();
    args.extend(settings(&expected).into_iter().flat_map(|(_, words)| words));
    let head = std::iter::once("llama-bench".to_string()).chain(source.words()).collect();
    let notes = notes(run, longest);
    Ok(Launch { head, args, expected, dialect: Dialect::LlamaCpp, notes })
}

/// What of the plan llama-bench does not measure.
fn notes(run: &RunConfig, longest: u32) -> Vec<String> {
    let threads = run.n_threads_batch.is_some() && run.n_threads_batch != run.n_threads;
    let lost = [
        (run.n_ctx > longest, format!("a context of {longest} tokens, the plan's is {}", run.n_ctx)),
        (run.n_parallel.is_some_and(|slots| slots > 1), "one sequence in place of the plan's slots".to_string()),
        (threads, "the prompt with -t, for it has no -tb".to_string()),
        (run.swa_full, "windows at their size, for it has no --swa-full".to_string()),
        (run.moe_cache_mib > 0, "no expert cache, for it is not known to have --moe-cache-mib".to_string()),
        (run.n_draft > 0, "no speculation".to_string()),
        (!run.metadata_overrides.is_empty(), "the file's own keys, for it has no --override-kv".to_string()),
    ];
    lost.into_iter().filter(|(applies, _)| *applies).map(|(_, what)| format!("llama-bench measures {what}")).collect()
}
