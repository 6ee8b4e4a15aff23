//! ik_llama.cpp, the fork whose flags differ: which it has, which it lacks, and where its `-ncmoe` puts experts.
//!
//! Sources: ik_llama.cpp's `docs/parameters.md`; its pull requests 1464 (`-ncmoe` with several devices) and 2262 (`-ncmoe` takes
//! the last blocks), 698 (`-ooae`), 147 (`-rtr`). Not checked against a build.

use super::behaviour::Rules;
use super::config::{Dialect, FlashAttn, LoadMode, Override, RunConfig, Target};
use super::values::{Given, on_host, value_of};
use super::{Error, args};

/// `-ncmoe N` of ik_llama.cpp: which blocks it means depends on the model and on the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastBlocks {
    pub count: u32,
    pub origin: String,
}

/// Flags of ik_llama.cpp alone, with the number of words that follow; none changes where a weight goes.
const OWN: [(&str, usize); 2] = [
    (
        "-fmoe --fused-moe -no-fmoe --no-fmoe --no-fused-moe -ger --grouped-expert-routing -no-fug --no-fug \
         --no-fused-up-gate -no-mmad --no-mmad --no-fused-mul-multiadd -gr --graph-reuse -no-gr --no-gr \
         --no-graph-reuse -khad --k-cache-hadamard -sas --scheduler_async -vq --validate-quants -ooae \
         --offload-only-active-experts -no-ooae --no-offload-only-active-experts -smf16 -smf32 -smgs -rtr \
         --run-time-repack -mqkv --merge-qkv -muge --merge-up-gate-experts -vhad --v-cache-hadamard -rcache --rope-cache -thp \
         --transparent-huge-pages --scheduler-async --split-mode-graph-scheduling --split-mode-f16 --split-mode-f32 -dr --dry-run \
         -no-mtp --no-multi-token-prediction --spec-autotune --defer-experts --prefetch-experts",
        0,
    ),
    (
        "-amb --attention-max-batch -ser --smart-expert-reduction -op --offload-policy -cuda \
         --cuda-params -grt --graph-reduce-type --max-gpu -mea --max-extra-alloc -draft -crs --fit-margin -gfm \
         --gpu-fit-margin -wgt --worst-graph-tokens -fdn --fused-delta-net -ictk --indexer-cache-type-k -dsatk --dsa-top-k \
         --mtmd-kq-type -cram-n-min --cache-ram-n-min --cache-ram-similarity --ctx-checkpoints-interval \
         --ctx-checkpoints-tolerance --ctx-checkpoints-eviction --prefetch-experts-threads -cd --ctx-size-draft --draft-params \
         --spec-ckpt-mode",
        1,
    ),
];

/// Flags of ik_llama.cpp that change what is held in a way that is not counted: names, words that follow, and what they do.
const NOT_COUNTED: &[(&str, &str)] = &[
    ("--swa-compress", "it shortens the caches of layers with a window"),
    ("-dsa --dsa", "it adds an indexer and its cache"),
    ("-ctk-first --cache-type-k-first -ctk-last --cache-type-k-last", "it gives some layers another type of K"),
    ("-ctv-first --cache-type-v-first -ctv-last --cache-type-v-last", "it gives some layers another type of V"),
];

/// How many words follow a flag of ik_llama.cpp alone.
fn own_values(word: &str) -> Option<usize> {
    OWN.iter().find(|(names, _)| names.split(' ').any(|name| name == word)).map(|(_, values)| *values)
}

/// Whether a word is a flag of ik_llama.cpp that llama.cpp does not have.
pub(super) fn is_own(word: &str) -> bool {
    own_values(word).is_some() || not_counted(word).is_some()
}

/// Why a flag of ik_llama.cpp is refused.
fn not_counted(word: &str) -> Option<&'static str> {
    NOT_COUNTED.iter().find(|(names, _)| names.split(' ').any(|name| name == word)).map(|(_, why)| *why)
}

/// Whether a program with these flags is ik_llama.cpp's.
pub fn is_ik<'a>(flags: impl IntoIterator<Item = &'a String>) -> bool {
    flags.into_iter().any(|flag| is_own(flag))
}

/// Reads a word that means something else in ik_llama.cpp; how many words after it belong to it, `None` where it is as in
/// llama.cpp.
pub(super) fn read(
    run: &mut RunConfig,
    last_blocks: &mut Option<LastBlocks>,
    word: &str,
    next: Option<&String>,
) -> Result<Option<usize>, Error> {
    let value = || value_of(word, word, next);
    if let Some(why) = not_counted(word) {
        return Err(Error::NotCounted { words: word.to_string(), why });
    }
    match word {
        "-sm" | "--split-mode" if next.is_some_and(|mode| mode == "graph" || mode == "attn") => {
            let why = "it splits the tensors and the caches of each layer over the devices";
            return Err(Error::NotCounted { words: format!("{word} {}", value()?), why });
        }
        "-mla" | "--mla-use" => {
            run.mla = Some(Given::new(word, value()?).natural()?);
            return Ok(Some(1));
        }
        "-mtp" | "--multi-token-prediction" => run.mtp = true,
        "--fit" | "-fit" => run.fit = true,
        "-op" | "--offload-policy" => {
            // Of single operations nothing is known here.
            run.op_offload &= value()? != args::NO_OP_OFFLOAD[1];
            return Ok(Some(1));
        }
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
            let count = Given::new(word, value()?).natural()?;
            *last_blocks = Some(LastBlocks { count, origin: word.to_string() });
            return Ok(Some(1));
        }
        "--fit-margin" => {
            run.fit_target = vec![Given::new(word, value()?).natural()?];
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
            let Some(values) = own_values(word) else { return Ok(None) };
            if values > 0 {
                value()?;
            }
            return Ok(Some(values));
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
    let experts = Rules::of(Target { dialect: Dialect::Ik, ..Target::default() }).experts;
    chosen.into_iter().map(|block| on_host(format!("blk\\.{block}{experts}"), &wanted.origin)).collect()
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
}
