//! koboldcpp's command line in llama.cpp's words.
//!
//! Source: koboldcpp 1.10x, `koboldcpp.py` (its argument parser) and `gpttype_adapter.cpp`. It embeds a llama.cpp of its own, so the
//! figures are those of the same launch in llama.cpp.

use std::path::Path;

use super::{Error, Note};

/// What an option becomes: a flag that takes its value, or what the value stands for.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    Flag(&'static str),
    /// Several values in one.
    List(&'static str),
    /// It stands alone and means these words.
    Words(&'static str),
    /// The micro-batch is the batch there.
    Batch,
    /// 0, 1, 2: f16, q8_0, q4_0; or the type's name.
    CacheType,
    /// Without a number the experts of every block.
    Experts,
    /// `--usecuda normal 1 mmq`: a card's number, or `lowvram`.
    Cuda,
    /// A card's numbers.
    Vulkan,
}
use Meaning::{Batch, CacheType, Cuda, Experts, Flag, List, Vulkan, Words};

const OPTIONS: &[(&str, Meaning)] = &[
    ("--model -m", Flag("-m")),
    ("--contextsize -c --ctx-size", Flag("-c")),
    ("--gpulayers --gpu-layers --n-gpu-layers -ngl", Flag("-ngl")),
    ("--tensor_split --tensorsplit --tensor-split -ts", List("-ts")),
    ("--overridetensors --override-tensor -ot", Flag("-ot")),
    ("--moecpu --n-cpu-moe -ncmoe", Experts),
    ("--blasbatchsize --batchsize --batch-size -b", Batch),
    ("--quantkv", CacheType),
    ("--flashattention --flash-attn -fa", Words("-fa on")),
    ("--noflashattention", Words("-fa off")),
    ("--lowvram", Words("-nkvo")),
    ("--usemmap", Words("-lm mmap")),
    ("--usemlock --mlock", Words("-lm mmap+mlock")),
    ("--useswa", Words("")),
    ("--threads -t", Flag("-t")),
    ("--blasthreads --batchthreads --threads-batch -tb", Flag("-tb")),
    ("--maingpu --main-gpu -mg", Flag("-mg")),
    ("--splitmode --split-mode -sm", Flag("-sm")),
    ("--device -dev", Flag("-dev")),
    ("--mmproj", Flag("--mmproj")),
    ("--mmprojcpu", Words("--no-mmproj-offload")),
    ("--draftmodel --model-draft -md", Flag("-md")),
    ("--draftgpulayers --gpu-layers-draft -ngld", Flag("-ngld")),
    ("--draftamount --draft-max --draft-n", Flag("--spec-draft-n-max")),
    ("--usecublas --usecuda --usehipblas", Cuda),
    ("--usevulkan", Vulkan),
    ("--usecpu", Words("-dev none")),
];

/// The command of llama-server that loads the same, and a note with it.
pub(super) fn words(rest: &[String]) -> Result<(Vec<String>, Note), Error> {
    // What koboldcpp starts from where it differs: a batch of 512, no mapped file, windows at full length, one slot, nothing fitted.
    let mut out = ["llama-server", "-np", "1", "-fit", "off"].map(str::to_string).to_vec();
    let (mut batch, mut mode, mut windows, mut context) =
        ("512".to_string(), "-lm none", "--swa-full", "8192".to_string());
    let mut words = Vec::new();
    let mut variables = Vec::new();
    let mut rest = rest;
    while let Some((first, after)) = rest.split_first() {
        let Some((_, meaning)) = OPTIONS.iter().find(|(names, _)| names.split(' ').any(|name| name == first)) else {
            // The model may stand alone; other options decide nothing here.
            if !first.starts_with('-') && Path::new(first).extension().is_some_and(|ending| ending == "gguf") {
                words.extend(["-m".to_string(), first.clone()]);
            }
            rest = after;
            continue;
        };
        let is_value = |word: &&String| !word.starts_with('-') || word.parse::<f64>().is_ok();
        let most = match meaning {
            Words(_) => 0,
            List(_) | Cuda | Vulkan => usize::MAX,
            _ => 1,
        };
        let values: Vec<String> = after.iter().take_while(is_value).take(most).cloned().collect();
        rest = after.get(values.len()..).unwrap_or_default();
        let value = values.first();
        let one =
            || value.cloned().ok_or_else(|| Error::MissingValue { flag: first.clone(), expected: "a value".into() });
        match meaning {
            Flag("-c") => context = one()?,
            Flag(flag) => words.extend([(*flag).to_string(), one()?]),
            List(flag) => words.extend([(*flag).to_string(), values.join(",")]),
            Words("") => windows = "",
            Words(mapped) if mapped.starts_with("-lm") => mode = mapped,
            Words(meant) => words.extend(meant.split(' ').map(str::to_string)),
            Batch => batch = one()?,
            CacheType => {
                let ty = match one()?.as_str() {
                    "0" => "f16".to_string(),
                    "1" => "q8_0".to_string(),
                    "2" => "q4_0".to_string(),
                    name => name.to_string(),
                };
                words.extend(["-ctk".to_string(), ty.clone(), "-ctv".to_string(), ty]);
            }
            Experts => match value {
                Some(count) => words.extend(["-ncmoe".to_string(), count.clone()]),
                None => words.push("-cmoe".to_string()),
            },
            Cuda | Vulkan => {
                let numbers: Vec<&str> =
                    values.iter().map(String::as_str).filter(|value| value.parse::<u8>().is_ok()).collect();
                let name = if matches!(meaning, Cuda) { "CUDA_VISIBLE_DEVICES" } else { super::visible::VULKAN };
                if !numbers.is_empty() {
                    variables.push(format!("{name}={}", numbers.join(",")));
                }
                if values.iter().any(|value| value == "lowvram") {
                    words.push("-nkvo".to_string());
                }
            }
        }
    }
    let start = format!("-c {context} -b {batch} -ub {batch} {mode} {windows}");
    out.extend(start.split_whitespace().map(str::to_string).chain(words));
    let shown = super::command::shell(&out).unwrap_or_default();
    let note = Note {
        code: "koboldcpp".into(),
        message: "koboldcpp runs its own llama.cpp: this is the same launch in llama.cpp".into(),
        hint: Some(format!("in llama.cpp's words: `{shown}`")),
    };
    let words = variables.into_iter().chain(out).collect();
    Ok((words, note))
}
