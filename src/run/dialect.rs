//! ik_llama.cpp, the fork whose flags differ: which it has, which it lacks, and where its `-ncmoe` puts experts.
//!
//! Sources: ik_llama.cpp's `docs/parameters.md`; its pull requests 1464 (`-ncmoe` with several devices) and 2262 (`-ncmoe` takes
//! the last blocks), 698 (`-ooae`), 147 (`-rtr`). Not checked against a build.

use serde::Serialize;

use super::parse::Launch;
use super::values::{EXPERTS, Given, on_host};
use super::{Error, FlashAttn, LoadMode, Override, RunConfig, args};

/// Whose flags a command line is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Dialect {
    /// llama.cpp's own.
    #[default]
    #[serde(rename = "llama.cpp")]
    #[cfg_attr(feature = "cli", value(name = "llama.cpp"))]
    LlamaCpp,
    /// ik_llama.cpp's.
    #[serde(rename = "ik")]
    Ik,
}

/// `-ncmoe N` of ik_llama.cpp: which blocks it means depends on the model and on the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastBlocks {
    /// How many blocks with experts.
    pub count: u32,
    /// The flag.
    pub origin: String,
}

/// Flags of ik_llama.cpp alone, with the number of words that follow; none changes where a weight goes.
const OWN: &[(&str, usize)] = &[
    ("-mla", 1),
    ("--mla-use", 1),
    ("-amb", 1),
    ("--attention-max-batch", 1),
    ("-fmoe", 0),
    ("--fused-moe", 0),
    ("-no-fmoe", 0),
    ("--no-fmoe", 0),
    ("--no-fused-moe", 0),
    ("-ger", 0),
    ("--grouped-expert-routing", 0),
    ("-no-fug", 0),
    ("--no-fug", 0),
    ("--no-fused-up-gate", 0),
    ("-no-mmad", 0),
    ("--no-mmad", 0),
    ("--no-fused-mul-multiadd", 0),
    ("-gr", 0),
    ("--graph-reuse", 0),
    ("-no-gr", 0),
    ("--no-gr", 0),
    ("--no-graph-reuse", 0),
    ("-ser", 1),
    ("--smart-expert-reduction", 1),
    ("-khad", 0),
    ("--k-cache-hadamard", 0),
    ("-sas", 0),
    ("--scheduler_async", 0),
    ("-vq", 0),
    ("--validate-quants", 0),
    ("-ooae", 0),
    ("--offload-only-active-experts", 0),
    ("-no-ooae", 0),
    ("--no-offload-only-active-experts", 0),
    ("-op", 1),
    ("--offload-policy", 1),
    ("-cuda", 1),
    ("--cuda-params", 1),
    ("-smf16", 0),
    ("-smf32", 0),
    ("-smgs", 0),
    ("-grt", 1),
    ("--graph-reduce-type", 1),
    ("--max-gpu", 1),
    ("-mea", 1),
    ("--max-extra-alloc", 1),
    ("-draft", 1),
    ("-crs", 1),
    ("--fit-margin", 1),
    ("-gfm", 1),
    ("--gpu-fit-margin", 1),
    ("-rtr", 0),
    ("--run-time-repack", 0),
    ("-mqkv", 0),
    ("--merge-qkv", 0),
    ("-muge", 0),
    ("--merge-up-gate-experts", 0),
];

/// Flags of llama.cpp that ik_llama.cpp is not known to have.
const LACKED: &[&str] = &[
    "--load-mode",
    "--lazy-mode",
    "--fit-target",
    "--fit-ctx",
    "--fit-print",
    "--kv-unified",
    "--kv-unified-per-slot",
    "--n-cpu-ffn",
    "--no-host",
];

/// Whether a word is a flag of ik_llama.cpp that llama.cpp does not have.
pub(super) fn is_own(word: &str) -> bool {
    OWN.iter().any(|(name, _)| *name == word)
}

/// Whether a program with these flags is ik_llama.cpp's.
pub fn is_ik<'a>(flags: impl IntoIterator<Item = &'a String>) -> bool {
    flags.into_iter().any(|flag| is_own(flag))
}

/// Whether ik_llama.cpp is not known to have the flag of this name.
pub(super) fn lacks(name: &str) -> bool {
    LACKED.contains(&name)
}

/// What ik_llama.cpp starts from where it differs from llama.cpp: flash attention on, one slot, no fitting.
pub(super) fn defaults(run: &mut RunConfig) {
    run.flash_attn = FlashAttn::On;
    run.n_parallel = Some(1);
    run.fit = false;
}

/// Reads a word that means something else in ik_llama.cpp; how many words after it belong to it, `None` where it is as in
/// llama.cpp.
pub(super) fn read(launch: &mut Launch, word: &str, next: Option<&String>) -> Result<Option<usize>, Error> {
    let value = || super::parse::value_of(word, word, next);
    let run = &mut launch.command.run;
    match word {
        "--fit" | "-fit" => run.fit = true,
        "-no-fa" | "--no-fa" | "--no-flash-attn" => run.flash_attn = FlashAttn::Off,
        "-fa" | "--flash-attn" if next.is_none_or(|word| word.starts_with('-') && word != "-1") => {
            run.flash_attn = FlashAttn::On;
        }
        "--no-mmap" => {
            let locked = matches!(run.load_mode, LoadMode::Mlock | LoadMode::MmapMlock);
            run.load_mode = if locked { LoadMode::Mlock } else { LoadMode::None };
        }
        "--mlock" => {
            let unmapped = matches!(run.load_mode, LoadMode::None | LoadMode::Mlock);
            run.load_mode = if unmapped { LoadMode::Mlock } else { LoadMode::MmapMlock };
        }
        "-ncmoe" | "--n-cpu-moe" => {
            let count = Given { flag: word, value: value()? }.natural()?;
            launch.command.last_blocks = Some(LastBlocks { count, origin: word.to_string() });
            return Ok(Some(1));
        }
        "--fit-margin" => {
            let given = Given { flag: word, value: value()? };
            run.fit_target = vec![given.natural()?];
            return Ok(Some(1));
        }
        "-rtr" | "--run-time-repack" | "-mqkv" | "--merge-qkv" | "-muge" | "--merge-up-gate-experts" => {
            // Repacked and merged weights cannot be mapped.
            let off = next.is_some_and(|value| value == "0");
            if !off {
                run.load_mode = LoadMode::None;
            }
            return Ok(Some(usize::from(next.is_some_and(|value| value == "0" || value == "1"))));
        }
        _ => {
            let Some((_, values)) = OWN.iter().find(|(name, _)| *name == word) else { return Ok(None) };
            if *values > 0 {
                value()?;
            }
            return Ok(Some(*values));
        }
    }
    Ok(Some(0))
}

/// The overrides of `-ncmoe N`: the last blocks with experts of each device, by the device's part of all such blocks
/// (`blocks`: number and device, in order). They come after what the person wrote.
pub fn last_blocks(wanted: &LastBlocks, blocks: &[(u32, Option<u16>)]) -> Vec<Override> {
    let total = blocks.len();
    let count = usize::try_from(wanted.count).unwrap_or(usize::MAX).min(total);
    let mut chosen = Vec::new();
    let mut seen = 0;
    for span in blocks.chunk_by(|one, next| one.1 == next.1) {
        // Shares are rounded so that they add up to the whole.
        let before = count * seen / total;
        seen += span.len();
        let share = count * seen / total - before;
        chosen.extend(span.iter().skip(span.len() - share).map(|(block, _)| *block));
    }
    chosen.into_iter().map(|block| on_host(format!("blk\\.{block}{EXPERTS}"), &wanted.origin)).collect()
}

/// The arguments of a launch in ik_llama.cpp's words: what it lacks is left out or said its way. Overrides are written out, so
/// the meaning of `-ncmoe` does not matter.
pub fn ik_args(run: &RunConfig) -> Vec<String> {
    let mut run = run.clone();
    for rule in &mut run.overrides {
        rule.origin = "-ot".to_string();
    }
    let words = args::args(&run);
    let mut out = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-lm" => match words.next().as_deref() {
                Some("none" | "dio") => out.push("--no-mmap".into()),
                Some("mlock") => out.extend(["--no-mmap".into(), "--mlock".into()]),
                Some("mmap+mlock") => out.push("--mlock".into()),
                _ => {}
            },
            "-fit" | "-lzm" | "-fitt" | "-fitc" | "--kv-unified-per-slot" => {
                words.next();
            }
            "-kvu" | "-no-kvu" | "--no-host" => {}
            _ => out.push(word),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks_of(count: u32, devices: &[Option<u16>]) -> Vec<String> {
        let blocks: Vec<(u32, Option<u16>)> = (1..).zip(devices.iter().copied()).collect();
        let wanted = LastBlocks { count, origin: "-ncmoe".into() };
        let number = |entry: Override| entry.pattern.split('.').nth(1).unwrap().trim_end_matches('\\').to_string();
        last_blocks(&wanted, &blocks).into_iter().map(number).collect()
    }

    #[test]
    fn the_last_blocks_of_each_device() {
        let (one, two) = (Some(0), Some(1));
        assert_eq!(blocks_of(2, &[one; 4]), ["3", "4"]);
        assert_eq!(blocks_of(2, &[one, one, two, two]), ["2", "4"]);
        assert_eq!(blocks_of(3, &[one, one, two, two]), ["2", "3", "4"]);
        assert_eq!(blocks_of(99, &[one, two]), ["1", "2"]);
        assert!(blocks_of(3, &[]).is_empty());
    }

    #[test]
    fn a_launch_in_its_words() {
        let run = RunConfig {
            n_ctx: 4096,
            fit: false,
            load_mode: LoadMode::None,
            overrides: vec![on_host("exps".into(), "-ot")],
            ..RunConfig::default()
        };
        assert_eq!(ik_args(&run).join(" "), "-c 4096 -ot exps=CPU --no-mmap");
        let run = RunConfig { overrides: vec![on_host(EXPERTS.into(), "-cmoe")], ..run };
        assert!(ik_args(&run).contains(&format!("{EXPERTS}=CPU")), "of its own flags the meaning is not relied on");
    }
}
