//! What each memory-relevant flag of llama-server, llama-cli and llama-fit-params does to a launch.
//!
//! Source: `common/arg.cpp`, `common/speculative.cpp` `common_speculative_n_max`, `common/common.h` `need_n_rs_seq`, b11434.

use super::parse::{Launch, ModelSource};
use super::values::{DENSE, EXPERTS, Given, on_host};
use super::{Error, Program, flags};

/// What the flags of speculation say, before it is known which kinds are on.
#[derive(Debug)]
pub(super) struct Speculation {
    /// Kinds by llama.cpp's names.
    kinds: Vec<String>,
    /// `--spec-draft-n-max`.
    draft: u32,
    /// `--spec-ngram-simple-size-m`.
    simple: u32,
    /// `--spec-ngram-map-k-size-m`.
    map_k: u32,
    /// `--spec-ngram-map-k4v-size-m`.
    map_k4v: u32,
    /// `--spec-ngram-mod-n-max`.
    ngram_mod: u32,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { kinds: Vec::new(), draft: 3, simple: 48, map_k: 48, map_k4v: 48, ngram_mod: 64 }
    }
}

impl Speculation {
    /// The longest draft of the kinds that are on.
    fn n_draft(&self) -> u32 {
        let of_kind = |kind: &String| match kind.as_str() {
            "draft-simple" | "draft-eagle3" | "draft-mtp" | "draft-dflash" | "draft-dspark" => self.draft,
            "ngram-simple" => self.simple,
            "ngram-map-k" => self.map_k,
            "ngram-map-k4v" => self.map_k4v,
            "ngram-mod" => self.ngram_mod,
            "ngram-cache" => 8,
            _ => 0,
        };
        self.kinds.iter().map(of_kind).max().unwrap_or(0)
    }

    /// States kept for rolling back.
    fn n_rs_seq(&self) -> u32 {
        let kept =
            |kind: &String| matches!(kind.as_str(), "draft-mtp" | "draft-eagle3" | "draft-dflash" | "draft-dspark");
        if self.kinds.iter().any(kept) { self.draft } else { 0 }
    }
}

/// Carries out what was said of speculation once every flag is read.
pub(super) fn finish(launch: &mut Launch) {
    let run = &mut launch.command.run;
    run.mtp = launch.speculation.kinds.iter().any(|kind| kind == "draft-mtp");
    run.n_draft = launch.speculation.n_draft();
    run.n_rs_seq = launch.speculation.n_rs_seq();
    let mtp = run.mtp;
    if launch.fit_print && run.program == Program::FitParams {
        // Printing measures the command as it is; nothing is fitted.
        run.fit = false;
    }
    if mtp {
        launch.command.note(
            "mtp-context",
            "`--spec-type draft-mtp`: the weights of the NextN blocks are counted, their own context and compute are not".into(),
            Some("leave room for one more block's cache and for its compute buffer".into()),
        );
    }
}

/// [`apply`], and keeps the words that were `typed` where a launch printed from [`super::RunConfig`] would not say them so:
/// what does not matter here, files whose memory is not counted, and the kinds of speculation.
pub(super) fn carry_out(
    launch: &mut Launch,
    name: &str,
    on: bool,
    given: Given<'_>,
    typed: &[&str],
) -> Result<(), Error> {
    let is_held = apply(launch, name, on, given)?;
    if !is_held || is_speculation(name) || matches!(name, "--mmproj" | "--mmproj-url" | "--rerank") {
        launch.command.beside.extend(typed.iter().map(ToString::to_string));
    }
    Ok(())
}

/// Whether a word of llama-server's command line is a flag of speculation.
pub fn is_speculation(word: &str) -> bool {
    flags::find(word).is_some_and(|(flag, _)| flag.name().starts_with("--spec-") || flag.name() == "--mtp")
}

/// Applies the flag called `name`; `on` is false for its negated spelling. Whether it was one that matters here.
pub(super) fn apply(launch: &mut Launch, name: &str, on: bool, given: Given<'_>) -> Result<bool, Error> {
    if switch(launch, name, on, given) {
        return Ok(true);
    }
    if number(launch, name, given)? {
        note_unread(launch, given);
        return Ok(true);
    }
    text(launch, name, given)
}

/// Notes what llama.cpp leaves unread of a number (`std::stoi`); llama-bench refuses it.
fn note_unread(launch: &mut Launch, given: Given<'_>) {
    let (unread, value) = (given.unread(), given.value);
    if unread.is_empty() || launch.command.run.program == Program::Bench {
        return;
    }
    let number = value.strip_suffix(unread).unwrap_or(value).trim();
    let meant = crate::number::tokens(value).map(|whole| format!("write `{} {whole}`", given.flag));
    launch.command.note(
        "number-cut-short",
        format!("`{} {value}`: llama.cpp reads {number} and nothing after it", given.flag),
        meant.ok(),
    );
}

/// Flags without a value.
fn switch(launch: &mut Launch, name: &str, on: bool, given: Given<'_>) -> bool {
    let run = &mut launch.command.run;
    match name {
        "--kv-offload" => run.offload_kqv = on,
        "--repack" => run.repack = on,
        "--op-offload" => run.op_offload = on,
        "--no-host" => run.no_host = true,
        "--swa-full" => run.swa_full = true,
        "--kv-unified" => run.kv_unified = Some(on),
        "--embedding" | "--rerank" => run.embeddings = true,
        "--mtp" => launch.speculation.kinds.push("draft-mtp".into()),
        "--spec-default" => {
            launch.speculation.kinds.push("ngram-mod".into());
            launch.speculation.ngram_mod = 64;
        }
        "--cpu-moe" => run.overrides.push(on_host(EXPERTS.into(), given.flag)),
        _ => return false,
    }
    true
}

/// Flags with a number.
fn number(launch: &mut Launch, name: &str, given: Given<'_>) -> Result<bool, Error> {
    let run = &mut launch.command.run;
    match name {
        "--ctx-size" => {
            run.n_ctx = given.natural()?;
            if run.n_ctx == 0 {
                // Asking for the model's own context forbids fitting to reduce it.
                run.fit_ctx = u32::MAX;
            }
        }
        "--batch-size" => run.n_batch = given.natural()?,
        "--ubatch-size" => run.n_ubatch = given.natural()?,
        "--parallel" => {
            let slots = given.integer()?;
            if slots == 0 {
                return Err(given.refuse("a number of slots, or -1 for llama-server's own choice"));
            }
            run.n_parallel = u32::try_from(slots).ok();
        }
        "--kv-unified-per-slot" => run.kv_unified_per_slot = Some(given.natural()?).filter(|n| *n > 0),
        // Zero or less is llama.cpp's own choice (common/arg.cpp, b11434).
        "--threads" => run.n_threads = u32::try_from(given.integer()?).ok().filter(|n| *n > 0),
        "--threads-batch" => run.n_threads_batch = u32::try_from(given.integer()?).ok().filter(|n| *n > 0),
        "--main-gpu" => run.main_gpu = given.integer()?,
        "--gpu-layers" => run.n_gpu_layers = given.layers()?,
        // An int that llama.cpp keeps as unsigned (common/arg.cpp, b11434): -1 forbids to reduce it, as `-c 0` does.
        "--fit-ctx" => run.fit_ctx = given.integer()?.cast_unsigned(),
        "--cache-ram" => run.cache_ram = Some(given.integer()?.max(-1)),
        "--moe-cache-mib" => run.moe_cache_mib = given.natural()?,
        "--n-cpu-moe" => run.overrides.extend(given.first_blocks(EXPERTS)?),
        "--n-cpu-ffn" => run.overrides.extend(given.first_blocks(DENSE)?),
        "--spec-draft-n-max" => launch.speculation.draft = given.natural()?,
        "--spec-ngram-simple-size-m" => launch.speculation.simple = given.natural()?,
        "--spec-ngram-map-k-size-m" => launch.speculation.map_k = given.natural()?,
        "--spec-ngram-map-k4v-size-m" => launch.speculation.map_k4v = given.natural()?,
        "--spec-ngram-mod-n-max" => launch.speculation.ngram_mod = given.natural()?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Flags with words.
fn text(launch: &mut Launch, name: &str, given: Given<'_>) -> Result<bool, Error> {
    let command = &mut launch.command;
    let run = &mut command.run;
    match name {
        "--model" => command.model = Some(ModelSource::Path(given.value.into())),
        "--model-url" => command.model = Some(ModelSource::Url(given.value.into())),
        "--docker-repo" => command.model = Some(ModelSource::Docker(given.value.into())),
        "--hf-repo" => launch.hf_repo = Some(given.value.into()),
        "--hf-file" => launch.hf_file = Some(given.value.into()),
        "--flash-attn" => run.flash_attn = given.flash_attn()?,
        "--cache-type-k" => run.type_k = given.cache_type()?,
        "--cache-type-v" => run.type_v = given.cache_type()?,
        "--load-mode" => run.load_mode = given.load_mode()?,
        "--lazy-mode" => run.lazy_mode = given.lazy_mode()?,
        "--split-mode" => run.split_mode = given.split_mode()?,
        "--tensor-split" => run.tensor_split = given.proportions(&[',', '/'])?,
        "--device" => run.devices = Some(given.devices(',')?),
        "--rpc" => run.rpc.extend(given.names(',')),
        "--override-tensor" => command.override_tensors(given, ',')?,
        "--override-kv" => run.metadata_overrides.extend(given.metadata_overrides()?),
        "--fit" => run.fit = given.switch()?,
        "--fit-print" => launch.fit_print = given.switch()?,
        "--fit-target" => run.fit_target = given.fit_target()?,
        "--spec-type" => launch.speculation.kinds.extend(given.names(',')),
        "--spec-draft-model" | "--spec-draft-hf" => command.note(
            "draft-model",
            format!("`{}`: the draft model's own memory is not counted", given.flag),
            Some("check it with a command of its own and add both".into()),
        ),
        "--mmproj" | "--mmproj-url" => command.note(
            "projector",
            format!("`{}`: the multimodal projector's memory is not counted", given.flag),
            Some("leave room for the projector's file size and its compute buffer".into()),
        ),
        _ => return Ok(false),
    }
    Ok(true)
}
