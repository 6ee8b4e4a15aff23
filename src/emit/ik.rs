//! A plan in ik_llama.cpp's words; what that fork lacks is left out and said.

use super::{Error, Launch, words};
use crate::run::dialect::ik_args;
use crate::run::{Dialect, FlashAttn, LazyMode, LoadMode, ModelSource, RunConfig};

/// The launch as ik_llama.cpp takes it.
pub(super) fn launch(run: &RunConfig, source: &ModelSource) -> Result<Launch, Error> {
    let lacks = |lacks| {
        Err(Error::Lacks { program: "ik_llama.cpp", lacks, instead: "plan without it, or use --dialect llama.cpp" })
    };
    if run.no_host {
        return lacks("is not known to have --no-host");
    }
    if run.moe_cache_mib > 0 {
        return lacks("is not known to have --moe-cache-mib");
    }
    if run.load_mode == LoadMode::Mlock {
        return lacks("locks mapped files only");
    }
    let expected = RunConfig {
        flash_attn: if run.flash_attn == FlashAttn::Auto { FlashAttn::On } else { run.flash_attn },
        n_parallel: Some(run.n_parallel.unwrap_or(1)),
        load_mode: match run.load_mode {
            LoadMode::Dio => LoadMode::None,
            LoadMode::Mmap => LoadMode::Auto,
            mode => mode,
        },
        kv_unified: None,
        kv_unified_per_slot: None,
        lazy_mode: LazyMode::Auto,
        fit: false,
        fit_target: Vec::new(),
        fit_ctx: RunConfig::default().fit_ctx,
        ..run.clone()
    };
    let mut head = vec!["llama-server".to_string()];
    head.extend(words::of_model(source));
    let mut notes = vec![
        "ik_llama.cpp: its flags are taken from its documentation; the memory figures are llama.cpp's own, not its"
            .to_string(),
    ];
    if run.kv_unified.is_some() {
        notes.push("ik_llama.cpp is not known to have --kv-unified: it is left out".to_string());
    }
    if run.flash_attn == FlashAttn::Auto {
        notes.push("ik_llama.cpp has no `-fa auto`: flash attention is on".to_string());
    }
    Ok(Launch { head, args: ik_args(run), expected, dialect: Dialect::Ik, notes })
}
