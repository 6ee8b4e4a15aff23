//! A plan in ik_llama.cpp's words; what that fork lacks is left out and said.

use super::{Error, Launch};
use crate::run::build::REFERENCE;
use crate::run::command::server_command;
use crate::run::dialect::ik_args;
use crate::run::{Dialect, FlashAttn, LoadMode, ModelSource, RunConfig, flags};

/// The launch as ik_llama.cpp takes it.
pub(super) fn launch(run: &RunConfig, source: &ModelSource) -> Result<Launch, Error> {
    let lacks = |lacks: String| {
        Err(Error::Lacks { program: "ik_llama.cpp", lacks, instead: "plan without it, or use --dialect llama.cpp" })
    };
    if run.no_host {
        return lacks("is not known to have --no-host".to_string());
    }
    if let Some(flag) = flags::newer_than(run, REFERENCE) {
        return lacks(format!("is not known to have {}", flag.name()));
    }
    if run.load_mode == LoadMode::Mlock {
        return lacks("locks mapped files only".to_string());
    }
    let expected = RunConfig {
        flash_attn: if run.flash_attn == FlashAttn::Auto { FlashAttn::On } else { run.flash_attn },
        n_parallel: Some(run.n_parallel.unwrap_or(1)),
        load_mode: match run.load_mode {
            LoadMode::Dio => LoadMode::None,
            LoadMode::Mmap => LoadMode::Auto,
            mode => mode,
        },
        fit: false,
        ..flags::without_others(run, |flag| flag.in_ik)
    };
    let head = server_command(source, &[]);
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
