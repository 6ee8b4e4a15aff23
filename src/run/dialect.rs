//! ik_llama.cpp, the fork whose flags differ: which it has, which it lacks, and where its `-ncmoe` puts experts.
//!
//! Sources: `common/common.cpp` of the two that `behaviour` names; ik_llama.cpp's `docs/parameters.md`; its pull requests 1464 (`-ncmoe` with
//! several devices) and 2262 (`-ncmoe` takes the last blocks), 698 (`-ooae`), 147 (`-rtr`).

use std::cmp::Ordering;

use super::behaviour::{HostBlocks, Rules};
use super::config::{FlashAttn, LoadMode, Override, RunConfig};
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
        "-fmoe --fused-moe -ger --grouped-expert-routing -gr --graph-reuse -no-gr --no-gr \
         --no-graph-reuse -khad --k-cache-hadamard -sas --scheduler_async -vq --validate-quants -ooae \
         --offload-only-active-experts -no-ooae --no-offload-only-active-experts -smf16 -smf32 -smgs -rtr \
         --run-time-repack -mqkv --merge-qkv -muge --merge-up-gate-experts -vhad --v-cache-hadamard -rcache --rope-cache -thp \
         --transparent-huge-pages --scheduler-async --split-mode-graph-scheduling --split-mode-f16 --split-mode-f32 -dr --dry-run \
         -no-mtp --no-multi-token-prediction --spec-autotune --defer-experts --prefetch-experts -cnv --conversation --prompt-cache-all --prompt-cache-ro -wb --warmup-batch --minilog -fidx \
         --fused-indexer-topk -i --interactive -if --interactive-first -dkvc --dump-kv-cache --penalize-nl",
        0,
    ),
    (
        "-ser --smart-expert-reduction -op --offload-policy -cuda \
         --cuda-params -grt --graph-reduce-type --max-gpu -mea --max-extra-alloc -draft -crs --fit-margin \
         -fdn --fused-delta-net -dsatk --dsa-top-k \
         --mtmd-kq-type -cram-n-min --cache-ram-n-min --cache-ram-similarity --ctx-checkpoints-interval \
         --ctx-checkpoints-tolerance --ctx-checkpoints-eviction --prefetch-experts-threads -cd --ctx-size-draft --draft-params \
         --spec-ckpt-mode --recurrent-ckpt-mode -tm --threads-mtmd --prompt-cache -gap --graph-attn-precision --suffix-pattern-len \
         --suffix-max-depth --suffix-corpus --banned-string-file --banned-n --allowlist-unicode-rule --allowlist-pieces \
         --allowlist-keyword --allowlist-keyword-delay --expiring-logit-bias-file --log-format --reasoning-tokens --tfs \
         --adaptive-updt-w-cur --cfg-negative-prompt --cfg-negative-prompt-file --cfg-scale --sql-save-file \
         --sqlite-zstd-ext-file -gan --grp-attn-n -gaw --grp-attn-w -nrep --n-repetitions",
        1,
    ),
];

/// Flags of ik_llama.cpp alone that fields of [`RunConfig`] have.
const COUNTED: &str = "-no-fmoe --no-fmoe --no-fused-moe -no-fug --no-fug --no-fused-up-gate -no-mmad --no-mmad --no-fused-mul-multiadd -mla --mla-use -amb --attention-max-batch -wgt --worst-graph-tokens -ictk --indexer-cache-type-k --spec-stage";

/// Flags of ik_llama.cpp that change what is held in a way that is not counted: names, words that follow, and what they do.
const NOT_COUNTED: &[(&str, &str)] = &[
    ("--swa-compress", "it shortens the caches of layers with a window"),
    ("-dsa --dsa", "attention then reads the cells that an indexer chose"),
    ("-gfm --gpu-fit-margin", "it keeps another margin free on some devices"),
    ("-mtprot --mtp-requantize-output-tensor", "it makes another output matrix for drafts"),
    ("-ctk-first --cache-type-k-first -ctk-last --cache-type-k-last", "it gives some layers another type of K"),
    ("-ctv-first --cache-type-v-first -ctv-last --cache-type-v-last", "it gives some layers another type of V"),
];

/// How many words follow a flag of ik_llama.cpp alone.
fn own_values(word: &str) -> Option<usize> {
    OWN.iter().find(|(names, _)| names.split(' ').any(|name| name == word)).map(|(_, values)| *values)
}

/// Whether a word is a flag of ik_llama.cpp that llama.cpp does not have.
pub(super) fn is_own(word: &str) -> bool {
    own_values(word).is_some() || not_counted(word).is_some() || COUNTED.split(' ').any(|name| name == word)
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
        "-no-fmoe" | "--no-fmoe" | "--no-fused-moe" => run.unfused.push("experts".into()),
        "-no-fug" | "--no-fug" | "--no-fused-up-gate" => run.unfused.push("gates".into()),
        "-no-mmad" | "--no-mmad" | "--no-fused-mul-multiadd" => run.unfused.push("sums".into()),
        "-amb" | "--attention-max-batch" => {
            run.attention_mib = Some(Given::new(word, value()?).natural()?);
            return Ok(Some(1));
        }
        "-wgt" | "--worst-graph-tokens" => {
            run.worst_graph_tokens = Some(Given::new(word, value()?).natural()?);
            return Ok(Some(1));
        }
        "-ictk" | "--indexer-cache-type-k" => {
            let given = value()?;
            if given != "f16" {
                let why = "it gives the indexer's cache another type";
                return Err(Error::NotCounted { words: format!("{word} {given}"), why });
            }
            return Ok(Some(1));
        }
        "--spec-type" | "--spec-stage" if next.is_some_and(|kind| kind.starts_with("mtp")) => {
            run.mtp = true;
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

/// The overrides of `-ncmoe N`, by the device of every block (`src/llama-load-tensors.cpp` `create_tensors_helper`, ik-llama-cpp-sys 0.1.7). They
/// come after what the person wrote.
pub fn host_blocks(wanted: &LastBlocks, blocks: &[Option<u16>], devices: &[u16], rules: Rules) -> Vec<Override> {
    let count = usize::try_from(wanted.count).unwrap_or(usize::MAX);
    let is_first = match rules.host_blocks {
        HostBlocks::First => true,
        HostBlocks::LastOfSeveral => devices.len() < 2,
        HostBlocks::Last => devices.is_empty(),
    };
    let (chosen, experts): (Vec<usize>, _) = if is_first || count >= blocks.len() {
        ((0..blocks.len().min(count)).collect(), rules.experts)
    } else {
        (last_blocks(count, blocks, devices), EXPERTS_OF_LAST)
    };
    let pattern = |block: usize| on_host(format!("blk\\.{block}{experts}"), &wanted.origin);
    chosen.into_iter().map(pattern).collect()
}

/// Scales stay.
const EXPERTS_OF_LAST: &str = r"\.(ffn_(up|down|gate|gate_up)_exps\.weight)";

/// The last blocks of each device, by its part of all; blocks of the host count as the last device's.
#[expect(clippy::cast_precision_loss, reason = "the fork rounds to f32 here")]
fn last_blocks(count: usize, blocks: &[Option<u16>], devices: &[u16]) -> Vec<usize> {
    let last = devices.len().saturating_sub(1);
    let device = |at: Option<u16>| devices.iter().position(|device| Some(*device) == at).unwrap_or(last);
    let of: Vec<usize> = blocks.iter().map(|at| device(*at)).collect();
    let held: Vec<usize> = (0..devices.len()).map(|device| of.iter().filter(|at| **at == device).count()).collect();
    let wanted = |device: usize| held.get(device).copied().unwrap_or(0) as f32 * count as f32 / blocks.len() as f32;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of blocks")]
    let mut left: Vec<usize> =
        held.iter().map(|n| (*n as f32 / blocks.len() as f32 * count as f32).round() as usize).collect();
    // The first of the devices that are furthest from their part gives or takes.
    let first_of = |left: &[usize], can: &dyn Fn(usize, usize) -> bool| {
        let far = |(at, n): (usize, &usize)| can(at, *n).then(|| (at, *n as f32 - wanted(at)));
        left.iter().enumerate().filter_map(far).collect::<Vec<_>>()
    };
    loop {
        let total: usize = left.iter().sum();
        let chosen = match total.cmp(&count) {
            Ordering::Greater => {
                let above = first_of(&left, &|_, n| n > 0);
                above.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best })
            }
            Ordering::Less => {
                let below = first_of(&left, &|at, n| held.get(at).is_some_and(|held| n < *held));
                below.into_iter().reduce(|best, next| if next.1 < best.1 { next } else { best })
            }
            Ordering::Equal => None,
        };
        let Some(n) = chosen.and_then(|(at, _)| left.get_mut(at)) else { break };
        *n = if total > count { *n - 1 } else { *n + 1 };
    }
    let mut chosen = Vec::new();
    for (block, device) in of.iter().enumerate().rev() {
        if let Some(n) = left.get_mut(*device).filter(|n| **n > 0) {
            *n -= 1;
            chosen.push(block);
        }
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Dialect, Target};

    fn blocks_of(build: u32, count: u32, blocks: &[Option<u16>]) -> Vec<String> {
        let rules = Rules::of(Target { dialect: Dialect::Ik, build });
        let mut devices: Vec<u16> = blocks.iter().flatten().copied().collect();
        devices.dedup();
        let wanted = LastBlocks { count, origin: "-ncmoe".into() };
        let number = |entry: Override| entry.pattern.split('.').nth(1).unwrap().trim_end_matches('\\').to_string();
        host_blocks(&wanted, blocks, &devices, rules).into_iter().map(number).collect()
    }

    #[test]
    fn the_last_blocks_of_each_device() {
        let (one, two) = (Some(0), Some(1));
        let newest = crate::run::build::REFERENCE;
        assert_eq!(blocks_of(newest, 2, &[one; 4]), ["2", "3"]);
        assert_eq!(blocks_of(newest, 2, &[one, one, two, two]), ["1", "3"]);
        assert_eq!(blocks_of(newest, 3, &[one, one, two, two]), ["1", "2", "3"]);
        assert_eq!(blocks_of(newest, 99, &[one, two]), ["0", "1"]);
        assert_eq!(blocks_of(newest, 3, &[None, one, one, one]), ["1", "2", "3"]);
        assert!(blocks_of(newest, 3, &[]).is_empty());
        // Of one device the first, until its pull request 2262; of several too, until 1464.
        assert_eq!(blocks_of(4770, 2, &[one; 4]), ["0", "1"]);
        assert_eq!(blocks_of(4770, 2, &[one, one, two, two]), ["1", "3"]);
        assert_eq!(blocks_of(4122, 2, &[one, one, two, two]), ["0", "1"]);
    }
}
