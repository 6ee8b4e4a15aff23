//! llama-bench's own grammar: values in lists, every combination a test.
//!
//! Source: llama-bench's help and `tools/llama-bench/README.md`, b11434. Of every list the first value is taken; the tests are those of `-p`,
//! `-n` and `-pg`, of which the longest counts.

use super::dialect::{Dialect, LastBlocks};
use super::parse::{Launch, ModelSource, unknown, value_of};
use super::removed::removed;
use super::values::{EXPERTS, Given};
use super::{Error, Program, flags};

/// Flags of llama-bench that do not matter here, with the number of words that follow.
const OTHERS: &[(&str, usize)] = &[
    ("-h", 0),
    ("--help", 0),
    ("--version", 0),
    ("--numa", 1),
    ("-r", 1),
    ("--repetitions", 1),
    ("--prio", 1),
    ("--delay", 1),
    ("-o", 1),
    ("--output", 1),
    ("-oe", 1),
    ("--output-err", 1),
    ("--list-devices", 0),
    ("-v", 0),
    ("--verbose", 0),
    ("--progress", 0),
    ("--no-warmup", 0),
    ("-hft", 1),
    ("--hf-token", 1),
    ("--offline", 0),
    ("-C", 1),
    ("--cpu-mask", 1),
    ("--cpu-strict", 1),
    ("--poll", 1),
];

/// How long the tests are, in tokens.
struct Tests {
    prompt: u32,
    generate: u32,
    both: u32,
    depth: u32,
}

/// Whether llama-bench has a flag.
pub(super) fn has(word: &str) -> bool {
    canonical(word).is_some() || OTHERS.iter().any(|(name, _)| *name == word)
}

/// Reads the words after `llama-bench`.
pub(super) fn read(launch: &mut Launch, words: &[String]) -> Result<(), Error> {
    assert!(launch.command.run.program == Program::Bench);
    launch.command.run.fit = false;
    launch.command.run.n_parallel = Some(1);
    launch.command.run.kv_unified = Some(false);
    let mut tests = Tests { prompt: 512, generate: 128, both: 0, depth: 0 };
    let mut offloaded = None;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        at += 1;
        if let Some((_, values)) = OTHERS.iter().find(|(name, _)| name == word) {
            at += values;
            continue;
        }
        if let Some((_, values, instead)) = flags::REMOVED.iter().find(|(name, ..)| name == word) {
            at += values;
            removed(launch, word, instead)?;
            continue;
        }
        let Some(name) = canonical(word) else {
            at += unknown(&mut launch.command, word, words.get(at));
            continue;
        };
        let whole = value_of(word, name, words.get(at))?;
        at += 1;
        let given = Given { flag: word, value: first(launch, word, name, whole) };
        match name {
            "--n-prompt" => tests.prompt = given.natural()?,
            "--n-gen" => tests.generate = given.natural()?,
            "--n-depth" => tests.depth = given.natural()?,
            "-pg" => tests.both = both(given)?,
            "--n-cpu-moe" if launch.command.target.dialect == Dialect::Ik => {
                let (count, origin) = (given.natural()?, word.clone());
                launch.command.last_blocks = Some(LastBlocks { count, origin });
            }
            "--n-cpu-moe" => offloaded = Some(given.first_blocks(EXPERTS)?),
            _ => apply(launch, name, given)?,
        }
    }
    let run = &mut launch.command.run;
    run.overrides.extend(offloaded.unwrap_or_default());
    let longest = tests.prompt.max(tests.generate).max(tests.both);
    run.n_ctx = longest.saturating_add(tests.depth).max(1);
    Ok(())
}

/// The long name of a flag that matters.
fn canonical(word: &str) -> Option<&'static str> {
    const NAMES: &[&[&str]] = &[
        &["--model", "-m"],
        &["--hf-repo", "-hf", "-hfr"],
        &["--hf-file", "-hff"],
        &["--n-prompt", "-p"],
        &["--n-gen", "-n"],
        &["-pg"],
        &["--n-depth", "-d"],
        &["--threads", "-t"],
        &["--batch-size", "-b"],
        &["--ubatch-size", "-ub"],
        &["--cache-type-k", "-ctk"],
        &["--cache-type-v", "-ctv"],
        &["--n-gpu-layers", "-ngl"],
        &["--n-cpu-moe", "-ncmoe"],
        &["--split-mode", "-sm"],
        &["--main-gpu", "-mg"],
        &["--no-kv-offload", "-nkvo"],
        &["--flash-attn", "-fa"],
        &["--device", "-dev"],
        &["--load-mode", "-lm"],
        &["--lazy-mode", "-lzm"],
        &["--embeddings", "-embd"],
        &["--tensor-split", "-ts"],
        &["--override-tensor", "-ot"],
        &["--no-op-offload", "-nopo"],
        &["--no-host"],
        &["--repack"],
        &["--fit-target", "-fitt"],
        &["--fit-ctx", "-fitc"],
        &["--rpc", "-rpc"],
    ];
    let spelled = word.replace('_', "-");
    NAMES.iter().find(|names| names.contains(&spelled.as_str()))?.first().copied()
}

/// The first of the values of a list, with a note where there are more.
fn first<'a>(launch: &mut Launch, word: &str, name: &str, whole: &'a str) -> &'a str {
    if matches!(name, "-pg" | "--rpc") {
        return whole;
    }
    let (value, more) = whole.split_once(',').map_or((whole, false), |(value, _)| (value, true));
    if more {
        launch.command.note(
            "first-variant",
            format!("`{word} {whole}` makes llama-bench run several tests; this is the one with `{value}`"),
            Some("check the others one by one".into()),
        );
    }
    value
}

/// `-pg PROMPT,GENERATE`: the sum.
fn both(given: Given<'_>) -> Result<u32, Error> {
    let (prompt, generate) = given.value.split_once(',').ok_or_else(|| given.refuse("PROMPT,GENERATE"))?;
    let part = |value| Given { flag: given.flag, value }.natural();
    Ok(part(prompt)?.saturating_add(part(generate)?))
}

/// Every other flag.
fn apply(launch: &mut Launch, name: &str, given: Given<'_>) -> Result<(), Error> {
    let command = &mut launch.command;
    let run = &mut command.run;
    match name {
        "--model" => command.model = Some(ModelSource::Path(given.value.into())),
        "--hf-repo" => launch.hf_repo = Some(given.value.into()),
        "--hf-file" => launch.hf_file = Some(given.value.into()),
        "--threads" => run.n_threads = Some(given.natural()?).filter(|n| *n > 0),
        "--batch-size" => run.n_batch = given.natural()?,
        "--ubatch-size" => run.n_ubatch = given.natural()?,
        "--cache-type-k" => run.type_k = given.cache_type()?,
        "--cache-type-v" => run.type_v = given.cache_type()?,
        "--n-gpu-layers" => run.n_gpu_layers = given.layers()?,
        "--split-mode" => run.split_mode = given.split_mode()?,
        "--main-gpu" => run.main_gpu = given.integer()?,
        "--no-kv-offload" => run.offload_kqv = !given.switch()?,
        "--flash-attn" => run.flash_attn = given.flash_attn()?,
        "--device" if given.value == "auto" => run.devices = None,
        "--device" => run.devices = Some(given.devices('/')?),
        "--load-mode" => run.load_mode = given.load_mode()?,
        "--lazy-mode" => run.lazy_mode = given.lazy_mode()?,
        "--embeddings" => run.embeddings = given.switch()?,
        "--tensor-split" => run.tensor_split = given.proportions(&['/', ';'])?,
        "--override-tensor" => command.override_tensors(given, ';')?,
        "--no-op-offload" => run.op_offload = !given.switch()?,
        "--no-host" => run.no_host = given.switch()?,
        "--repack" => run.repack = given.switch()?,
        "--fit-target" => {
            run.fit_target = given.fit_target()?;
            run.fit = true;
        }
        "--fit-ctx" => run.fit_ctx = given.integer()?.cast_unsigned(),
        "--rpc" => run.rpc.extend(given.names(',')),
        _ => unreachable!("every name of `canonical` is applied"),
    }
    Ok(())
}
