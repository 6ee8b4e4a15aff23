//! What is wrong or surprising about a command: each lint has a stable code, a severity, a cause and a remedy.
//!
//! A lint is one row of `LINTS`; what reading the command already noted is in `NOTES`. `docs/lints.md` has a section for each
//! code.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{OverrideGroup, OverrideRow, RefusedCaches};
use crate::arch::Arch;
use crate::bytes::Bytes;
use crate::gguf::Value;
use crate::machine::{Backend, Device, Machine};
use crate::memory::caches::{self, CacheKind};
use crate::memory::compute::{VULKAN_BUFFER, VULKAN_LONGEST};
use crate::memory::{self, Caches, Forecast, HOST, expert_cache::Problem};
use crate::model::Model;
use crate::number::thousands;
use crate::placement::Buffer;
use crate::placement::pattern::{self, Pattern};
use crate::rules::Role;
use crate::run::build::{NEWEST, OLDEST};
use crate::run::numbers::{numbers, padded};
use crate::run::{Dialect, Note, ParsedCommand, Program, RunConfig, SplitMode};

/// As much of a mapped file was copied to a ROCm device without trouble.
const MOST_MAPPED: Bytes = Bytes(30 << 30);

/// Something wrong or surprising.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lint {
    pub code: Cow<'static, str>,
    pub severity: Severity,
    pub message: String,
    pub hint: Option<String>,
}

/// How bad a lint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
    Info,
}
use Severity::{Error, Info, Warning};

/// Everything that a lint may look at.
pub(super) struct Facts<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub command: &'a ParsedCommand,
    /// What variables made of the machine's cards.
    pub selected: Vec<Note>,
    pub run: &'a RunConfig,
    pub forecast: &'a Forecast,
    pub overrides: &'a [OverrideRow],
    /// The same with the entries of a counting flag together.
    pub groups: &'a [OverrideGroup],
    /// By how much each budget is passed.
    pub shortfall: &'a BTreeMap<String, Bytes>,
    /// What is kept free of each device.
    pub margin: Bytes,
    pub refused_caches: RefusedCaches,
    pub cache_problem: Option<Problem>,
}

/// Cause and remedy.
type Finding = Option<(String, String)>;

#[expect(clippy::unnecessary_wraps, reason = "it is how a lint ends")]
fn found(message: impl Into<String>, hint: impl Into<String>) -> Finding {
    Some((message.into(), hint.into()))
}

/// A code, how bad it is, and what finds it.
type Rule = (&'static str, Severity, fn(&Facts<'_>) -> Finding);

/// Every lint of a whole command, in the order in which they are told within a severity.
const LINTS: &[Rule] = &[
    // llama.cpp refuses a quantized V cache without flash attention.
    ("quantized-v-without-flash-attention", Error, |facts| {
        let ty = facts.run.type_v;
        if !facts.refused_caches.quantized_v || !ty.is_quantized {
            return None;
        }
        found(
            format!("`-ctv {ty}` without flash attention: llama.cpp refuses this; the figures are for `-ctv f16`"),
            "use `-fa on` if the model allows it (grok does not), else `-ctv f16`",
        )
    }),
    // K and V of two types where V is a view of K (`src/llama-context.cpp` `llama_init_from_model`, b11434).
    ("cache-types-differ", Error, |facts| {
        if !facts.refused_caches.different_types || facts.command.run.target.dialect != Dialect::LlamaCpp {
            return None;
        }
        let (type_k, type_v, architecture) = (facts.run.type_k, facts.run.type_v, &facts.model.hparams.architecture);
        found(
            format!(
                "`-ctk {type_k}` with `-ctv {type_v}`: llama.cpp refuses this, since {architecture} keeps V as a view of K; the \
                 figures assume one type for both"
            ),
            format!("give both the same type: `-ctk {type_k} -ctv {type_k}`"),
        )
    }),
    ("expert-cache-refused", Error, |facts| match facts.cache_problem? {
        Problem::Impossible => {
            found("`--moe-cache-mib` needs a device and a model with experts: llama.cpp refuses it", "leave it out")
        }
        Problem::TooSmall => found(
            format!("`--moe-cache-mib {}` does not hold even the experts of one token", facts.run.moe_cache_mib),
            "give a larger value, or leave the flag out",
        ),
        Problem::NothingToCache => None,
    }),
    // An architecture that llama.cpp refuses (`src/llama-model.cpp` `llama_model_create`, b11434).
    ("unknown-architecture", Error, |facts| {
        let architecture = &facts.model.architecture;
        let target = facts.run.target;
        if Arch::known_to(target.build, architecture).is_some() {
            return None;
        }
        let hint = match Arch::named(architecture) {
            Some(arch) => format!("b{} loads it: check with `--build {0}`", arch.since),
            None => {
                "a fork or a newer llama.cpp may load it; moeplan shows only its weights and where they go".to_string()
            }
        };
        found(format!("{} does not know the architecture `{architecture}`, and refuses the file", target.name()), hint)
    }),
    // `tools/server/server-context.cpp` `load_model` frees the draft model where `common_speculative_init` finds no kind that is on;
    // `common_speculative_types_from_gguf` knows the kind of heads alone (b11434).
    ("draft-not-used", Warning, |facts| {
        // `examples/server/server-context.cpp`, "MTP enabled via flag, but model has 0 NextN layers" (ik_llama.cpp).
        if facts.run.target.dialect == Dialect::Ik && facts.lacks_nextn() {
            return found(
                "`-mtp`: the file has no NextN (MTP) blocks, so ik_llama.cpp drafts nothing",
                "leave it out, or use a file that has the model's NextN blocks",
            );
        }
        let draft = facts.model.draft.as_ref().filter(|_| facts.run.n_draft == 0)?;
        let kind = draft.drafts();
        let differs = vocabularies_differ(facts.model, draft).filter(|_| kind.is_none());
        found(
            "llama-server loads the draft model and frees it again: no kind of speculation is enabled".to_string(),
            match differs {
                Some(how) => {
                    format!("leave it out: its vocabulary differs from the target's ({how}), so that it cannot draft")
                }
                None => format!("add `--spec-type draft-{}`", kind.unwrap_or("simple")),
            },
        )
    }),
    // A draft model's tokens must be the target's (`common/speculative.cpp` `common_speculative_are_compatible`, which the server's
    // `load_model` catches, b11434).
    ("draft-vocabulary-differs", Warning, |facts| {
        let is_simple = facts.run.n_draft > 0 && facts.run.target.dialect == Dialect::LlamaCpp;
        let draft = facts.model.draft.as_ref().filter(|draft| is_simple && draft.drafts().is_none())?;
        let how = vocabularies_differ(facts.model, draft)?;
        found(
            format!(
                "the draft model's vocabulary differs from the target's ({how}): llama-server loads both, says so in its log, and \
                 then drafts nothing"
            ),
            "use a smaller model of the same family as the draft; `--spec-type ngram-simple` needs no draft model",
        )
    }),
    // Drafting by NextN blocks that the file does not have (`src/llama-context.cpp` `llama_init_from_model`, b11434). With a draft
    // model it is that one's blocks that draft.
    ("mtp-without-nextn", Error, |facts| {
        if !facts.lacks_nextn() || facts.run.target.dialect == Dialect::Ik {
            return None;
        }
        found(
            "`--spec-type draft-mtp`: the file has no NextN (MTP) blocks, so llama.cpp creates no drafting context and stops",
            "leave it out, or use a file that has the model's NextN blocks (convert_hf_to_gguf.py without --no-mtp)",
        )
    }),
    // `tools/mtmd/mtmd.cpp` `mtmd_context::load` throws "mismatch between text model (n_embd = …) and mmproj (n_embd = …)" (b11434).
    ("projector-of-another-model", Error, |facts| {
        let (text, given) = (facts.model.hparams.n_embd_inp(), facts.forecast.projector.as_ref()?.n_embd?);
        if text == given || text == 0 {
            return None;
        }
        found(
            format!(
                "the projector gives embeddings of {given} elements, but the model reads {text}: llama.cpp refuses it"
            ),
            "use the projector that was published with this model",
        )
    }),
    ("unknown-build", Warning, |facts| {
        let target = facts.command.run.target;
        let build = target.build;
        if (OLDEST..=NEWEST).contains(&build) || target.dialect == Dialect::Ik {
            return None;
        }
        // Some steps before the oldest are known from logs (`run::behaviour`).
        let (what, known) = if build > NEWEST { ("newer", "") } else { ("older", "except for what logs show, ") };
        let read = build.clamp(OLDEST, NEWEST);
        found(
            format!(
                "b{build} is {what} than every build whose source was read: {known}its flags and rules are assumed to be those of b{read}, \
                 {} builds away",
                build.abs_diff(read)
            ),
            "`moeplan check --ask` also shows what an installed llama-fit-params of that build says",
        )
    }),
    ("rule-matches-nothing", Warning, |facts| {
        let mut rows: Vec<&OverrideRow> = Vec::new();
        for group in facts.groups {
            let entries = facts.entries(group);
            let dead = entries.iter().filter(|row| row.matches == 0 && unplaced(facts, row).is_none());
            // `-ncmoe N` makes N entries; one that finds no experts in a dense block is no mistake of its own, and that it counts
            // dense blocks is another lint.
            if entries.first().is_some_and(is_written) {
                rows.extend(dead);
            } else if dense_lead(facts, group).is_none() && entries.len() == dead.count() {
                rows.extend(entries.first());
            }
        }
        let hint = if rows.iter().any(|row| row.pattern.contains(['"', '\''])) {
            "the quotes are part of the pattern: leave the inner ones out"
        } else if rows.iter().all(|row| !is_written(row)) {
            "the model has no routed experts to move: leave the flag out"
        } else if let Some(meant) = rows.first().and_then(|row| meant(facts, row)) {
            &format!("did you mean `{meant}`?")
        } else {
            "`moeplan inspect MODEL --tensors` lists the names"
        };
        found(format!("{} matches no tensor of this model", first_of(&rows)?), hint)
    }),
    // A tensor that is left out, or whose rows stay in the file (`TENSOR_READ_LAZY`).
    ("rule-never-placed", Warning, |facts| {
        let mut written =
            facts.overrides.iter().filter(|row| is_written(row) && row.tensors == 0 && row.shadowed_by.is_none());
        let (rule, (name, is_lazy)) = written.find_map(|row| Some((shown(row), unplaced(facts, row)?)))?;
        if is_lazy {
            return found(
                format!(
                    "{rule} has no effect: llama.cpp never places `{name}`; it reads its rows from the file as they are needed"
                ),
                "leave the rule out; `-lzm off` loads the table, and then the rule counts",
            );
        }
        found(format!("{rule} has no effect: this launch does not load `{name}`"), "leave the rule out")
    }),
    // Beaten by `LLAMA_ARG_*`, which llama.cpp reads first.
    ("rule-beaten-by-environment", Warning, |facts| {
        let (rule, winner) = dead(facts, environment_wins)?;
        found(
            format!("{rule} has no effect: `{}` is in the environment, which llama.cpp reads first", winner.origin),
            format!("unset `{}`, or write the rule there", winner.origin),
        )
    }),
    // After `-cmoe`, `-ncmoe` or `-ncffn`, which takes all it matches.
    ("rule-after-cpu-moe", Warning, |facts| {
        let (rule, winner) = dead(facts, |row, winner| !is_written(winner) && !environment_wins(row, winner))?;
        found(
            format!("{rule} has no effect: `{}` comes before it and takes the same tensors", winner.origin),
            format!("put `-ot` before `{}`: the first match wins", winner.origin),
        )
    }),
    ("rule-shadowed", Warning, |facts| {
        let (rule, winner) = dead(facts, |row, winner| is_written(winner) && !environment_wins(row, winner))?;
        found(
            format!("{rule} has no effect: `{}` comes before it", winner.pattern),
            "the first match wins: put the narrower rule first",
        )
    }),
    ("block-number-open", Warning, block_number_open),
    // The target exists, but takes no part in the launch.
    ("device-not-used", Warning, |facts| {
        let left_out = |row: &&OverrideRow| {
            let index = facts.machine.devices.iter().position(|device| device.buffer == row.buffer);
            let is_used = |at: usize| facts.forecast.placement.devices.iter().any(|used| usize::from(*used) == at);
            row.tensors > 0 && index.is_some_and(|at| !is_used(at))
        };
        let row = facts.overrides.iter().find(left_out)?;
        found(
            format!(
                "{} sends {} to `{}`, which is not part of the launch: llama.cpp has no backend there",
                shown(row),
                row.bytes,
                row.buffer
            ),
            "name the device in `--device` (and leave out `-sm none`), or send the tensors elsewhere",
        )
    }),
    // `-cmoe` beside `-ncmoe N`, with no rule of a person between them that one of them would come before.
    ("ncmoe-beside-cmoe", Warning, |facts| {
        let all = facts.overrides.iter().position(|row| is_of(row, ["-cmoe", "--cpu-moe", "LLAMA-ARG-CPU-MOE"]))?;
        let beside = |group: &&OverrideGroup| {
            let rows = facts.overrides.get(group.first.min(all)..group.first.max(all)).unwrap_or_default();
            facts.overrides.get(group.first).is_some_and(is_ncmoe) && !rows.iter().any(is_written)
        };
        let group = facts.groups.iter().find(beside)?;
        let (flag, n, every) = (&group.origin, group.rules, &facts.overrides.get(all)?.origin);
        found(
            format!("`{every}` moves the experts of every block, so `{flag} {n}` changes nothing"),
            format!("leave `{every}` out to move those of only {n} blocks, or leave `{flag}` out"),
        )
    }),
    // `-ncmoe N` counts every block from 0, those without experts too.
    ("ncmoe-counts-dense-blocks", Warning, |facts| {
        let (group, dense) = facts.groups.iter().find_map(|group| Some((group, dense_lead(facts, group)?)))?;
        let (flag, n, blocks) = (&group.origin, group.rules, facts.blocks());
        // N may end before they do.
        let experts = facts.model.tensors.iter().filter(|tensor| tensor.role == Role::RoutedExpert);
        let first = experts.filter_map(|tensor| usize::try_from(tensor.block?).ok()).min();
        let lead = first.unwrap_or(dense).clamp(dense, blocks);
        let are = if lead == 1 { "block 0 has".to_string() } else { format!("blocks 0 to {} have", lead - 1) };
        let moved = match n - dense {
            0 => "none".to_string(),
            moved => format!("those of {moved}"),
        };
        found(
            format!("`{flag} {n}` counts from block 0, and {are} no experts: it moves {moved}"),
            format!("`{flag} {}` moves the experts of {}", (n + lead).min(blocks), n.min(blocks - lead)),
        )
    }),
    // `-ngl` of exactly the number of blocks: the output takes one.
    ("ngl-leaves-block-0", Warning, |facts| {
        let (left, blocks) = facts.left_behind()?;
        if left != 1 {
            return None;
        }
        found(
            format!("`-ngl {blocks}` counts the output first, so block 0 stays on the host with its cache"),
            format!("`-ngl {}` or more (`-ngl 99`) moves all of them", blocks + 1),
        )
    }),
    ("output-on-host", Warning, |facts| {
        let at = facts.model.output().filter(|_| !facts.model.is_embedding())?;
        let name = &facts.model.tensors.get(at)?.name;
        let copy = facts.forecast.placement.copies.get(at)?.last()?;
        if !facts.has_devices() || matches!(copy.buffer, Buffer::Device(_)) {
            return None;
        }
        let why = match facts.run.program {
            Program::Server | Program::Cli if !facts.run.embeddings => {
                "the last matrix product of every token runs on the processor"
            }
            _ => "for 32 rows of logits or more, it is copied whole into a device's compute buffer",
        };
        let hint = match copy.rule {
            Some(_) => "leave the output out of the rules: `-ot` patterns match anywhere in a name",
            None => "`-ngl 1` or more moves the output first",
        };
        found(format!("the output matrix ({name}, {}) stays on the host: {why}", copy.bytes), hint)
    }),
    // A micro-batch is cut to the batch (`src/llama-context.cpp`, b11434); with llama.cpp's own `-ub` a small `-b` is meant.
    ("ubatch-beyond-batch", Warning, |facts| {
        let (batch, ubatch) = (facts.run.n_batch, facts.run.n_ubatch);
        if ubatch <= batch || ubatch == RunConfig::default().n_ubatch {
            return None;
        }
        found(
            format!("`-ub {ubatch}` is cut to the batch, which is {batch} (`-b`)"),
            format!("`-b {ubatch} -ub {ubatch}` keeps it"),
        )
    }),
    // llama-server gives no slot more than the model was trained on (`tools/server/server-context.cpp` `n_ctx_slot`, b11434).
    ("context-beyond-training", Warning, |facts| {
        let (numbers, trained) = (&facts.forecast.numbers, facts.model.hparams.context_length);
        let slots = numbers.n_seq_max.max(1);
        let slot = if numbers.kv_unified { numbers.n_ctx / slots } else { numbers.n_ctx_seq };
        if trained == 0 || slot <= padded(trained) {
            return None;
        }
        let [long, most] = [slot, trained].map(|tokens| thousands(tokens.into()));
        let what = if slots > 1 {
            format!("a slot's context of {long} tokens")
        } else {
            format!("a context of {long} tokens")
        };
        let then = if matches!(facts.run.program, Program::Server | Program::Cli) {
            "; llama-server gives no slot more than that, so the rest takes memory for nothing"
        } else {
            ""
        };
        found(
            format!("{what} is longer than the one that the model was trained on, {most} tokens{then}"),
            format!("use `-c {}`", trained.saturating_mul(slots)),
        )
    }),
    // Fitting is on, but will not rescue the command.
    ("fit-gives-up", Warning, |facts| {
        let flag = facts
            .forbids_moving()
            .filter(|_| facts.fits_when_tight() && facts.is_device_short() && !facts.cuts_context())?;
        found(
            format!(
                "llama.cpp's own fitting gives up because {flag} is given: the launch goes on as written and runs out of memory"
            ),
            "`moeplan plan` finds what fits; or leave that flag out, so that `--fit` can choose",
        )
    }),
    // Fitting shortens a context that is not given before it moves a single expert.
    ("fit-cuts-context", Warning, |facts| {
        if !facts.cuts_context() {
            return None;
        }
        let [from, to] = [facts.forecast.numbers.n_ctx, facts.run.fit_ctx].map(|tokens| thousands(tokens.into()));
        let rest = facts.forbids_moving().map_or(String::new(), |flag| {
            format!("; because {flag} is given, it moves no weights if that is not enough")
        });
        found(
            format!(
                "without `-c`, llama.cpp's own fitting shortens the context of {from} tokens, down to {to}, and says so only in \
                 its log{rest}"
            ),
            "give `-c N`",
        )
    }),
    ("pinned-memory-beyond-ram", Warning, |facts| {
        let (missing, pinned) = (facts.shortfall.get(HOST)?, facts.forecast.host_needs.pinned);
        if facts.forecast.placement.is_mapped || pinned == Bytes(0) {
            return None;
        }
        found(
            format!(
                "without mapped files, {pinned} of main memory is pinned, but {missing} is missing: loading fails or swaps"
            ),
            if facts.shares_memory() && *missing > pinned {
                "use a smaller quantization or a shorter context: mapped files would not free enough"
            } else if facts.shares_memory() {
                "`--load-mode mmap` reads what is needed from the file"
            } else {
                "`--load-mode mmap` reads what is needed from the file; or keep more on the devices"
            },
        )
    }),
    // Devices without memory of their own, which together with the host need more than there is.
    ("shared-memory", Warning, |facts| {
        let (missing, host) = (facts.shortfall.get(HOST)?, facts.forecast.host_total());
        let shared = memory::shared_with_host(facts.machine, &facts.forecast.memory);
        if shared == Bytes(0) {
            return None;
        }
        let names = facts.device_names().join(", ");
        // Until b11549 a device maps what lies between its tensors as well (`Placement::mapped`).
        let mut mapped = facts.forecast.mapped.devices.iter();
        let of_device = |name: &str| facts.forecast.memory.get(name).map_or(Bytes(0), |row| row.model);
        let hint = if mapped.any(|(name, span)| *span > of_device(name)) {
            "`-lm none` keeps on the device only its own tensors; or use a smaller quantization or a shorter context"
        } else {
            "use a smaller quantization or a shorter context: moving experts to the host frees nothing here"
        };
        found(
            format!("{names} and the processor share main memory: {shared} and {host} together exceed it by {missing}"),
            hint,
        )
    }),
    // Rules that move experts out of a device that has room for them, into the same memory.
    ("experts-moved-within-memory", Warning, |facts| {
        let moved = facts
            .forecast
            .placement
            .experts(facts.model)
            .filter(|(_, copy)| copy.rule.is_some() && copy.buffer.device_index().is_none());
        let moved: Bytes = moved.map(|(_, copy)| copy.bytes).sum();
        let shared = facts.forecast.placement.taking_part(facts.machine).filter(|(_, device)| device.integrated);
        let has_room = |device: &Device| {
            let row = facts.forecast.memory.get(&device.name).copied().unwrap_or_default();
            // What lies between mapped tensors is in the overhead, and moved tensors with it.
            let is_span = facts.forecast.mapped.devices.contains_key(&device.name);
            let overhead = if is_span { Bytes(0) } else { row.overhead };
            row.own() + moved + (overhead + facts.margin).max(reported_growth(device)) <= device.total
        };
        let device = shared.map(|(_, device)| device).find(|device| has_room(device))?;
        if moved == Bytes(0) {
            return None;
        }
        found(
            format!("moving {moved} of experts to the host frees no memory: {} uses main memory too", device.name),
            "leave `--cpu-moe`, `--n-cpu-moe` and such rules out: the device has room for these experts and is faster",
        )
    }),
    ("mapped-beyond-ram", Warning, |facts| {
        let missing = facts.forecast.paged(facts.shortfall).filter(|_| !facts.shares_memory())?;
        let model = facts.forecast.memory.get(HOST)?.model;
        found(
            format!(
                "{missing} of {model} of mapped weights do not fit in main memory: every token reads them from the disk"
            ),
            "keep more on the devices, or use a smaller quantization",
        )
    }),
    // A container or a unit with a limit: what is over it ends the launch, however much the computer has.
    ("memory-limited", Info, |facts| {
        let limit = facts.command.memory.filter(|_| facts.machine.host.outside > Bytes(0))?;
        found(
            format!("the launch may use only {limit} of main memory, because its container or unit is limited"),
            "`--memory`, Compose's `mem_limit` or `limits.memory`, systemd's `MemoryMax` set this limit; the figures respect it",
        )
    }),
    // A build for one kind of devices sees no others (`.devops/*.Dockerfile`, b11434).
    ("image-of-other-devices", Warning, |facts| {
        let (backend, devices) = (facts.command.image?, &facts.machine.devices);
        let other = devices.iter().find(|device| device.backend != Backend::Rpc)?;
        if devices.iter().any(|device| device.backend == backend) {
            return None;
        }
        let name = format!("{}0", backend.device_prefix().unwrap_or_default());
        let kind = format!("{backend:?}").to_ascii_lowercase();
        found(
            format!(
                "the container's image is built for devices like {name}, and does not see {}; the figures are for {}",
                other.name, other.name
            ),
            format!("describe the machine with `--backend {kind}`, or use the image for {}", other.name),
        )
    }),
    // What llama-server comes to hold as it is used (`tools/server/server-context.cpp`, `server-task.cpp`, b11434).
    (BEYOND_RAM, Warning, |facts| beyond_ram(facts.run, facts.forecast, facts.machine, facts.shortfall)),
    // Host experts in a layout of the processor's own: prompts are computed where they are.
    ("repacked-experts-not-offloaded", Warning, |facts| {
        let experts = facts.forecast.placement.experts(facts.model);
        let repacked = experts.filter(|(_, copy)| matches!(copy.buffer, Buffer::CpuRepack | Buffer::Amx));
        let bytes: Bytes = repacked.map(|(_, copy)| copy.bytes).sum();
        if !facts.has_devices() || bytes == Bytes(0) {
            return None;
        }
        // Without the flag it is devices that have no host memory of their own, RPC servers, which take no copies either way.
        let (who, hint) = if facts.run.no_host {
            ("`--no-host` repacks", "leave `--no-host` out: in measurements, prompts were then 20 to 60 times as fast")
        } else {
            (
                "llama.cpp repacks",
                "no device here takes copies of experts from the host: keep more of them on the devices for faster prompts",
            )
        };
        found(
            format!("{who} {bytes} of experts for the processor: prompts are computed there, not on the device"),
            hint,
        )
    }),
    ("expert-cache-unused", Warning, |facts| {
        facts.cache_problem.filter(|problem| *problem == Problem::NothingToCache)?;
        found(
            "`--moe-cache-mib`: no block of a device keeps all its experts in host memory, so nothing is cached",
            "use it with `-cmoe` or `-ncmoe N`",
        )
    }),
    // RPC devices exist only where `--rpc` names their servers (`common/arg.cpp` `add_rpc_devices`, b11434).
    ("rpc-not-named", Warning, |facts| {
        let registered = facts.machine.registered(&facts.run.rpc);
        let missing: Vec<&Device> = (0_u16..)
            .zip(&facts.machine.devices)
            .filter(|(at, device)| device.backend == Backend::Rpc && !registered.contains(at))
            .map(|(_, device)| device)
            .collect();
        // Who names the devices has chosen among them; one without an address is planned for before it has one.
        if missing.is_empty() || facts.run.devices.is_some() {
            return None;
        }
        let names: Vec<&str> = missing.iter().map(|device| device.name.as_str()).collect();
        let mut servers = facts.run.rpc.clone();
        for server in missing.iter().map(|device| device.endpoint().unwrap_or("HOST:PORT").to_string()) {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        let (names, are) = (names.join(", "), if names.len() == 1 { "is" } else { "are" });
        found(
            format!("{names} {are} not used: llama.cpp has an RPC device only if `--rpc` names its server"),
            format!("add `--rpc {}` to the command", servers.join(",")),
        )
    }),
    // Without `-ts` the layout follows the memory that happens to be free.
    ("no-tensor-split", Warning, |facts| {
        let given = facts.run.tensor_split.iter().any(|share| *share != 0.0);
        if given || facts.run.split_mode != SplitMode::Layer || !facts.several() {
            return None;
        }
        let devices = facts.forecast.placement.taking_part(facts.machine);
        let shares: Vec<String> = devices.map(|(_, device)| (device.free.0 >> 20).max(1).to_string()).collect();
        let names = facts.device_names().join(", ");
        found(
            format!("without `-ts`, the split of layers over {names} depends on the memory free at the start"),
            format!("`-ts {}` fixes the layout that these figures assume", shares.join(",")),
        )
    }),
    // Nearly all experts that are on devices are on one of them.
    ("experts-on-one-device", Warning, |facts| {
        let mut by_device: BTreeMap<u16, Bytes> = BTreeMap::new();
        for (_, copy) in facts.forecast.placement.experts(facts.model) {
            if let Buffer::Device(index) = copy.buffer {
                *by_device.entry(index).or_default() += copy.bytes;
            }
        }
        let sum: Bytes = by_device.values().copied().sum();
        let (index, most) = by_device.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        let nearly_all = most.0 / 9 >= sum.0 - most.0 && most > Bytes(0);
        if !nearly_all || !facts.several() || facts.run.overrides.is_empty() {
            return None;
        }
        let name = &facts.machine.device(index)?.name;
        found(
            format!(
                "{most} of the {sum} of experts on devices are on {name}: `-ncmoe` and patterns without block numbers empty one device and fill another"
            ),
            "give each device its own blocks (`moeplan plan` does), or move the split with `-ts`",
        )
    }),
    // ik_llama.cpp keeps one latent cache, of K's type.
    ("latent-cache-type", Warning, |facts| {
        if !facts.refused_caches.different_types || facts.command.run.target.dialect != Dialect::Ik {
            return None;
        }
        let ty = facts.run.type_k;
        found(
            format!(
                "with `-mla` the one latent cache is assumed to have the type of `-ctk`, {ty}; `-ctv` is not counted"
            ),
            "`-mla 0`, which keeps K and V apart, is not modelled",
        )
    }),
    ("fit-would-change", Info, |facts| {
        if !facts.fits_when_tight() || facts.forbids_moving().is_some() {
            return None;
        }
        found(
            "llama.cpp's own fitting is on and would move experts or layers to the host; the memory shown is that of the command as written",
            "`moeplan plan` chooses what goes to the host; `-fit off` keeps the command as written",
        )
    }),
    ("ngl-leaves-blocks", Info, |facts| {
        let (left, blocks) = facts.left_behind().filter(|(left, _)| *left > 1)?;
        let hint = if facts.has_experts() {
            "`-ngl 99 -ncmoe N` keeps attention and caches on the device and leaves only experts behind"
        } else {
            "`moeplan plan` finds the largest `-ngl` that fits"
        };
        let n = facts.run.n_gpu_layers;
        found(
            format!("`-ngl {n}` leaves blocks 0 to {} of {blocks} on the host, attention and cache included", left - 1),
            hint,
        )
    }),
    // HIP copies mapped pages to the device itself, and stops answering after some tens of GiB (llama.cpp issue 15018; "hangs with 58 GiB,
    // loads 30", gfx1151 and gfx1201).
    ("mapped-on-rocm", Warning, |facts| {
        let placement = &facts.forecast.placement;
        let of_rocm = placement.taking_part(facts.machine).filter(|(_, device)| device.backend == Backend::Rocm);
        let model = |device: &Device| facts.forecast.memory.get(&device.name).map_or(Bytes(0), |row| row.model);
        let copied: Bytes = of_rocm.map(|(_, device)| model(device)).sum();
        if !placement.is_mapped || copied <= MOST_MAPPED {
            return None;
        }
        let hint = if facts.command.run.target.dialect == Dialect::Ik { "`--no-mmap`" } else { "`--load-mode none`" };
        found(
            format!(
                "{copied} of a mapped file are copied to ROCm devices: such loads were seen to take hours or to hang"
            ),
            format!("{hint} reads the file instead"),
        )
    }),
    // Mapped experts are copied through pageable memory; pinned ones are not.
    ("mmap-with-host-overrides", Info, |facts| {
        let kept = facts.overridden_to_host();
        let mut devices = facts.forecast.placement.taking_part(facts.machine);
        let can_pin = devices.any(|(_, device)| device.backend.host_buffer_name().is_some());
        let has_room = facts.machine.host.ram.is_none_or(|ram| facts.forecast.host_total() <= ram);
        let can_pin = can_pin && facts.machine.host.pinnable().is_none_or(|most| kept <= most);
        if kept == Bytes(0) || !facts.forecast.placement.is_mapped || facts.run.no_host || !can_pin || !has_room {
            return None;
        }
        let hint = if facts.command.run.target.dialect == Dialect::Ik {
            "`--no-mmap` reads them into memory"
        } else {
            // `checkup::check` adds what that is predicted to be worth here.
            "`--load-mode none` pins them in memory"
        };
        found(
            format!("{kept} that rules keep on the host are read through mapped files, which makes prompts slower"),
            hint,
        )
    }),
    ("pinned-beyond-limit", Info, |facts| {
        let placement = &facts.forecast.placement;
        let share = placement.pinned_share(facts.machine, facts.run.rules());
        let most = facts.machine.host.pinnable().filter(|_| share < 1.0)?;
        let what = if share > 0.0 { "the rest" } else { "all of it" };
        found(
            format!(
                "Windows lets devices have at most half of main memory ({most}), and {} would be pinned: llama.cpp keeps {what} in \
                 pageable memory, and prompts copy it at that rate",
                placement.pinned()
            ),
            "with `--load-mode mmap` they do the same, and the file need not fit into main memory",
        )
    }),
    // With op offload off anyway, repacking would only help.
    ("repack-lost", Info, |facts| {
        let run = facts.run;
        if facts.overridden_to_host() == Bytes(0) || run.op_offload || !run.repack || run.no_host {
            return None;
        }
        found(
            "with a device present, weights of the host are not repacked for the processor",
            "`--no-host` repacks them; with `--no-op-offload` that costs nothing",
        )
    }),
    // llama-server takes 4 slots where none are asked for; windows and states are kept for each.
    ("slots-multiply-states", Info, |facts| {
        let slots = facts.forecast.numbers.n_seq_max;
        let is_told = facts.forecast.counts("context");
        if facts.run.program != Program::Server || facts.run.n_parallel.is_some() || slots < 2 || !is_told {
            return None;
        }
        let one = RunConfig { n_parallel: Some(1), ..facts.run.clone() };
        let caches = caches::caches(facts.model, &one, &numbers(&one, &facts.model.hparams));
        let (now, alone) = (fixed(&facts.forecast.caches), fixed(&caches));
        if now <= alone {
            return None;
        }
        found(
            format!("llama-server's default {slots} slots each keep windows and states: {now} instead of {alone}"),
            "for one user, `-np 1` is enough; the plan beside this command keeps its slots",
        )
    }),
    // Slots that are not unified divide the context.
    ("slots-share-context", Info, |facts| {
        let numbers = &facts.forecast.numbers;
        // Without streams the cache is one, and the server divides it (ik_llama.cpp `n_ctx_slot`).
        let streams = facts.run.rules().streams;
        let is_divided = !(streams && numbers.kv_unified);
        if facts.run.program != Program::Server || facts.run.n_ctx == 0 || !is_divided || numbers.n_seq_max < 2 {
            return None;
        }
        let slot = if streams { numbers.n_ctx_seq } else { numbers.n_ctx / numbers.n_seq_max };
        found(
            format!("`-np {}` divides the context: each slot has {} tokens", numbers.n_seq_max, thousands(slot.into())),
            if streams { "`-kvu` lets the slots share all of it; or use a larger `-c`" } else { "use a larger `-c`" },
        )
    }),
    // Any override turns pipeline parallelism off (`src/llama-context.cpp`, b11434).
    ("overrides-stop-pipeline", Info, |facts| {
        let run = facts.run;
        let on_device = facts.forecast.placement.layers.iter().all(Option::is_some);
        let mut devices = facts.forecast.placement.taking_part(facts.machine);
        let events = devices.all(|(_, device)| device.backend.is_cuda_source());
        let possible = facts.several() && on_device && events && run.offload_kqv && run.split_mode == SplitMode::Layer;
        if !possible || run.overrides.is_empty() {
            return None;
        }
        found(
            "overrides switch pipeline parallelism off: the devices take turns on a prompt",
            "if everything fits, leave the overrides out",
        )
    }),
    // `sched_reserve` tries again without (`src/llama-context.cpp`, b11434).
    ("pipeline-given-up", Info, |facts| {
        let (device, bytes) = facts.forecast.retried.as_ref()?;
        found(
            format!(
                "with pipeline parallelism the compute buffers do not fit ({bytes} on {device}): llama.cpp continues without it, \
                 and the figures are for that launch"
            ),
            "a prompt takes longer without it; halving `-ub`, or using fewer slots, may keep it",
        )
    }),
    // Prompts copy host experts of every block into the first device (`ggml/src/ggml-backend.cpp`, b11434).
    ("copies-on-first-device", Info, |facts| {
        let are_copied = facts.run.offload_rows().is_some_and(|rows| rows <= facts.forecast.numbers.n_ubatch);
        if !facts.several() || !are_copied {
            return None;
        }
        let experts = facts.forecast.placement.experts(facts.model);
        let on_host = experts.filter(|(_, copy)| matches!(copy.buffer, Buffer::Cpu | Buffer::HostPinned));
        let largest = on_host.map(|(tensor, _)| tensor.bytes).max()?;
        let names = facts.device_names();
        let first = names.first()?;
        found(
            format!(
                "prompts copy the host's experts of every block to {first} alone: up to {largest} of its compute buffer"
            ),
            "put the device with the fastest link first in `--device`, and give it a little less with `-ts`",
        )
    }),
    ("tensor-beyond-driver-limit", Warning, |facts| {
        let weights = facts.of_vulkan().flat_map(|(at, _)| {
            let copies = facts.forecast.placement.copies.iter().flatten();
            copies.filter(move |copy| copy.buffer == Buffer::Device(at)).map(|copy| copy.bytes)
        });
        let largest = weights.filter(|bytes| *bytes > VULKAN_BUFFER).chain(facts.forecast.beyond_vulkan).max()?;
        let then = if largest.0 > VULKAN_LONGEST {
            ", more than the Vulkan driver allows in one buffer (about 4 GiB): llama.cpp computes with it on the processor, which the memory \
             shows and the predicted speed does not"
        } else {
            "; where the Vulkan driver allows less in one buffer (AMD's own 2 GiB), llama.cpp computes with it on the processor, which the \
             figures do not count"
        };
        found(
            format!("one tensor takes {largest}{then}"),
            "`-fa on` or a smaller `-ub` makes results smaller; `vulkaninfo` shows the limits maxBufferSize and maxStorageBufferRange",
        )
    }),
    // Public reports: 1872 MiB more at a prompt of 2,042 tokens, where the buffers took what was predicted; where it goes is not known.
    ("vulkan-prompt-growth", Warning, |facts| {
        let (device, left, overhead, needed) = facts.of_vulkan().find_map(|(at, device)| {
            let holds_experts =
                facts.forecast.placement.experts(facts.model).any(|(_, c)| c.buffer == Buffer::Device(at));
            let row = facts.forecast.memory.get(&device.name)?;
            let left = Bytes(device.total.0.saturating_sub(row.total().0));
            let needed = reported_growth(device).saturating_sub(row.overhead);
            let is_short = facts.shortfall.contains_key(&device.name);
            (holds_experts && !is_short && left < needed).then_some((device, left, row.overhead, needed))
        })?;
        let name = &device.name;
        let own = if device.integrated {
            format!("a larger share of main memory for {name}, or a shorter context, does")
        } else {
            "`-ncmoe N` with a larger N does".to_string()
        };
        found(
            format!(
                "{name} has {left} left, but a long prompt may need {needed}: with experts on a Vulkan device, one was reported to take \
                 {VULKAN_GROWTH} beyond the buffers, of which {overhead} are counted"
            ),
            format!("`moeplan plan --margin {}` keeps that free; in a command of your own, {own}", needed.typed()),
        )
    }),
];

/// What a long prompt was reported to take beyond the buffers on Vulkan.
const VULKAN_GROWTH: Bytes = Bytes::mib(1872);

/// The same of a device; nothing where what it takes was measured.
fn reported_growth(device: &Device) -> Bytes {
    let is_measured = device.calibration.is_some() || device.overhead.is_some();
    if device.backend == Backend::Vulkan && !is_measured { VULKAN_GROWTH } else { Bytes(0) }
}

const BEYOND_RAM: &str = "server-memory-beyond-ram";

fn beyond_ram(run: &RunConfig, forecast: &Forecast, machine: &Machine, shortfall: &BTreeMap<String, Bytes>) -> Finding {
    let (needs, ram) = (&forecast.host_needs, machine.host.ram?);
    if let Some(missing) = shortfall.get(HOST) {
        let fewer = needs.fewer_checkpoints(run, *missing)?;
        return found(
            format!(
                "main memory lacks {missing} of the {} that checkpoints of windows and states grow to",
                needs.checkpoints
            ),
            format!("`--ctx-checkpoints {fewer}` keeps fewer per slot; prompts are then recomputed more often"),
        );
    }
    let mib = needs.smaller_prompt_cache(forecast.in_main_memory(machine), ram)?;
    let most =
        needs.prompt_cache.map_or("a prompt cache without a limit".into(), |most| format!("{most} of prompt cache"));
    found(
        format!("main memory has room for the launch, but not also for {most}, which grows with use"),
        format!("`--cache-ram {mib}` fits"),
    )
}

/// What is true of main memory after llama.cpp's own fitting: what a device has no room for goes there.
pub(super) fn fitted(run: &RunConfig, forecast: &Forecast, machine: &Machine) -> Option<Lint> {
    let (message, hint) = beyond_ram(run, forecast, machine, &BTreeMap::new())?;
    let message = format!("after llama.cpp's own fitting, {message}");
    Some(Lint { code: BEYOND_RAM.into(), severity: Warning, message, hint: Some(hint) })
}

/// The lints of a command with what is true of main memory after fitting in the place of what is true of it as written.
pub(super) fn with_fitted(mut lints: Vec<Lint>, fitted: Option<Lint>) -> Vec<Lint> {
    lints.retain(|lint| lint.code != BEYOND_RAM);
    lints.extend(fitted);
    lints.sort_by_key(|lint| lint.severity);
    lints
}

/// What reading a command notes, and how bad each is.
const NOTES: &[(&str, Severity)] = &[
    ("unknown-flag", Error),
    ("unknown-variable", Warning),
    ("flag-malformed", Error),
    ("flag-not-known", Warning),
    ("removed-flag", Error),
    ("flag-of-newer-build", Error),
    ("flag-needs-value", Error),
    ("number-cut-short", Warning),
    ("pattern-split-by-comma", Error),
    ("pattern-split-by-equals", Error),
    ("pattern-quoted", Error),
    ("other-dialect", Warning),
    ("config-file-read", Warning),
    ("projector", Warning),
    ("first-variant", Info),
    ("container-without-gpu", Warning),
    ("cards-selected", Info),
    ("unified-memory", Warning),
    ("koboldcpp", Info),
    ("what-if", Info),
    ("imatrix-needed", Warning),
    ("requantized", Warning),
];

/// Whether what llama.cpp refuses was read as what took its place, so that the figures are those of the command as mended.
pub(crate) fn is_mended(code: &str) -> bool {
    matches!(code, "removed-flag" | "flag-needs-value" | "flag-malformed")
}

/// Every code there is; the manual has a section for each.
pub fn codes() -> impl Iterator<Item = (&'static str, Severity)> {
    NOTES.iter().copied().chain(LINTS.iter().map(|(code, severity, _)| (*code, *severity)))
}

/// The lints of a command: errors first, at most one of each code.
pub(super) fn lints(facts: &Facts<'_>) -> Vec<Lint> {
    let is_told = |note: &&Note| note.code != "projector" || facts.model.projector.is_none();
    let mut lints = noted(facts.command.notes.iter().filter(is_told).chain(&facts.selected));
    lints.extend(LINTS.iter().filter_map(|(code, severity, find)| {
        let (message, hint) = find(facts)?;
        Some(Lint { code: (*code).into(), severity: *severity, message, hint: Some(hint) })
    }));
    lints.sort_by_key(|lint| lint.severity);
    lints
}

/// The notes, those of one code in one lint.
fn noted<'a>(notes: impl IntoIterator<Item = &'a Note>) -> Vec<Lint> {
    let mut lints: Vec<Lint> = Vec::new();
    for Note { code, message, hint } in notes {
        if let Some(lint) = lints.iter_mut().find(|lint| lint.code == *code) {
            lint.message = format!("{}; {message}", lint.message);
            match (&mut lint.hint, hint) {
                (Some(all), Some(hint)) if !all.contains(hint.as_str()) => *all = format!("{all}; {hint}"),
                (known @ None, Some(_)) => known.clone_from(hint),
                _ => {}
            }
            continue;
        }
        let severity = NOTES.iter().find(|(known, _)| known == code).map_or(Warning, |(_, severity)| *severity);
        lints.push(Lint { code: code.clone(), severity, message: message.clone(), hint: hint.clone() });
    }
    lints
}

/// In what llama.cpp finds the vocabularies of a target and its draft model to differ, as far as their keys say it: of the tokens
/// themselves, which must be equal from the sixth on, a header is read without the texts.
fn vocabularies_differ(target: &Model, draft: &Model) -> Option<String> {
    const MOST: u32 = 128;
    let [of_target, of_draft] = [target, draft].map(|model| model.hparams.vocab_size);
    if of_target.abs_diff(of_draft) > MOST {
        let [of_draft, of_target] = [of_draft, of_target].map(|n| thousands(n.into()));
        return Some(format!("{of_draft} and {of_target} tokens, more than {MOST} apart"));
    }
    let key = |model: &Model, name: &str| model.hparams.metadata.get(&format!("tokenizer.ggml.{name}")).cloned();
    let both = |name: &str| Some([key(draft, name)?, key(target, name)?]);
    let kinds = both("model").and_then(|[one, other]| Some([one.as_str()?.to_string(), other.as_str()?.to_string()]));
    // Both are llama.cpp's BPE.
    let kind = |name: &String| if name == "gemma4" { "gpt2".to_string() } else { name.clone() };
    if let Some([one, other]) = kinds.filter(|[one, other]| kind(one) != kind(other)) {
        return Some(format!("their types are {one} and {other}"));
    }
    ["bos", "eos"].into_iter().find_map(|token| {
        let added = both(&format!("add_{token}_token"))?;
        let is_added = added.each_ref().map(|added| *added == Value::Bool(true));
        let ids = both(&format!("{token}_token_id"))?;
        let differs = is_added[0] != is_added[1] || (is_added[0] && ids[0] != ids[1]);
        differs.then(|| format!("their {} tokens differ, or only one of them adds it", token.to_ascii_uppercase()))
    })
}

impl<'a> Facts<'a> {
    /// Whether any device takes part.
    fn has_devices(&self) -> bool {
        !self.forecast.placement.devices.is_empty()
    }

    fn is_device_short(&self) -> bool {
        !self.forecast.devices_short(self.machine, Bytes(0)).is_empty()
    }

    /// Whether the host's weights are in memory that devices of the launch use as their own.
    fn shares_memory(&self) -> bool {
        memory::shared_with_host(self.machine, &self.forecast.memory) > Bytes(0)
    }

    /// Names of the devices that take part.
    fn device_names(&self) -> Vec<&'a str> {
        self.forecast.placement.taking_part(self.machine).map(|(_, device)| device.name.as_str()).collect()
    }

    /// Whether several devices hold layers.
    fn several(&self) -> bool {
        let placement = &self.forecast.placement;
        let mut used = placement.layers.iter().flatten();
        let first = used.next();
        placement.devices.len() > 1 && first.is_some_and(|first| used.any(|other| other != first))
    }

    /// Whether NextN blocks are to draft that the file does not have.
    fn lacks_nextn(&self) -> bool {
        if !self.run.mtp || (self.run.has_draft_model() && self.model.draft.is_none()) {
            return false;
        }
        let drafter = self.model.draft.as_deref().unwrap_or(self.model);
        // Its last block is a router's.
        drafter.hparams.nextn_predict_layers == 0 || drafter.context.has_router_layer
    }

    /// The Vulkan devices that take part.
    fn of_vulkan(&self) -> impl Iterator<Item = (u16, &'a Device)> {
        self.forecast.placement.taking_part(self.machine).filter(|(_, device)| device.backend == Backend::Vulkan)
    }

    fn has_experts(&self) -> bool {
        self.model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert)
    }

    /// Blocks, without the output's slot.
    fn blocks(&self) -> usize {
        self.forecast.placement.layers.len().saturating_sub(1)
    }

    /// Blocks that stay on the host, and how many there are.
    fn left_behind(&self) -> Option<(usize, usize)> {
        let (_, blocks) = self.forecast.placement.layers.split_last()?;
        let left = blocks.iter().filter(|device| device.is_none()).count();
        (self.has_devices() && self.run.n_gpu_layers > 0).then_some((left, blocks.len()))
    }

    /// Weights that rules keep on the host of a machine with devices.
    fn overridden_to_host(&self) -> Bytes {
        let copies = self.forecast.placement.copies.iter().flatten().filter(|_| self.has_devices());
        let kept = copies.filter(|copy| copy.rule.is_some() && matches!(copy.buffer, Buffer::Cpu | Buffer::HostPinned));
        kept.map(|copy| copy.bytes).sum()
    }

    /// Whether llama.cpp's own fitting is on and finds less free than its margin (`common/fit.cpp`, b11434). llama-fit-params fits on
    /// purpose.
    fn fits_when_tight(&self) -> bool {
        let margin = |at: usize| match self.run.fit_target.as_slice() {
            [one] => *one,
            several => several.get(at).copied().unwrap_or(1024), // llama.cpp's own margin.
        };
        let mut devices = self.forecast.placement.taking_part(self.machine).enumerate();
        let is_tight = devices.any(|(at, (_, device))| {
            let terms = self.forecast.memory.get(&device.name);
            terms.is_some_and(|terms| terms.total() + Bytes::mib(u64::from(margin(at))) > device.total)
        });
        self.run.fit && self.run.program != Program::FitParams && is_tight
    }

    /// What keeps fitting from moving weights.
    fn forbids_moving(&self) -> Option<&'static str> {
        let several = self.forecast.placement.devices.len() > 1;
        match self.run {
            run if run.n_gpu_layers != -1 => Some("-ngl"),
            run if !run.overrides.is_empty() => Some("-ot, -cmoe or -ncmoe"),
            run if several && run.tensor_split.iter().any(|share| *share != 0.0) => Some("-ts"),
            _ => None,
        }
    }

    /// Whether fitting shortens the context: it is not given, and `-c 0` is not either.
    fn cuts_context(&self) -> bool {
        self.run.n_ctx == 0 && self.forecast.numbers.n_ctx > self.run.fit_ctx && self.fits_when_tight()
    }

    /// The entries of a group.
    fn entries(&self, group: &OverrideGroup) -> &'a [OverrideRow] {
        self.overrides.get(group.first..group.first + group.rules).unwrap_or_default()
    }
}

/// What the windows and states of a launch take.
fn fixed(caches: &Caches) -> Bytes {
    let is_fixed = |kind| {
        matches!(
            kind,
            CacheKind::CsaState | CacheKind::HcaState | CacheKind::Swa | CacheKind::Recurrent | CacheKind::PleState
        )
    };
    let windows = caches.list.iter().filter(|cache| is_fixed(cache.kind) && cache.tokens_per_cell.is_none());
    let tensors = windows.flat_map(|cache| cache.layers.iter().filter_map(|layer| cache.tensors(layer).ok()).flatten());
    tensors.map(|tensor| tensor.bytes).sum()
}

/// Whether a rule comes from one of these spellings of a flag.
fn is_of(row: &OverrideRow, origins: [&str; 3]) -> bool {
    origins.contains(&row.origin.replace('_', "-").as_str())
}

/// Whether a person wrote the rule (`-ot`), rather than a flag that stands for rules.
fn is_written(row: &OverrideRow) -> bool {
    is_of(row, ["-ot", "--override-tensor", "LLAMA-ARG-OVERRIDE-TENSOR"])
}

pub(crate) fn is_ncmoe(row: &OverrideRow) -> bool {
    is_of(row, ["-ncmoe", "--n-cpu-moe", "LLAMA-ARG-N-CPU-MOE"])
}

/// A rule as it was typed.
fn shown(row: &OverrideRow) -> String {
    if is_written(row) {
        format!("`{} {}={}`", row.origin, row.pattern, row.buffer)
    } else {
        format!("`{}`", row.origin)
    }
}

/// The first tensor of a rule that has no tensor to place, and whether that one is read lazily.
fn unplaced<'a>(facts: &Facts<'a>, row: &OverrideRow) -> Option<(&'a str, bool)> {
    let pattern = pattern::parse(&row.pattern).ok()?;
    let mut named = facts
        .model
        .tensors
        .iter()
        .zip(&facts.forecast.placement.copies)
        .filter(|(tensor, _)| pattern.matches(&tensor.name));
    let (first, copies) = named.next()?;
    Some((first.name.as_str(), !copies.is_empty()))
}

/// How people write the names of tensors, and what llama.cpp calls them.
const SLIPS: [(&str, &str); 12] = [
    ("ffn_exps", "exps"),
    ("ffn_experts", "exps"),
    ("experts", "exps"),
    ("expert", "exps"),
    ("_exp", "_exps"),
    ("ffn_moe", "exps"),
    ("moe", "exps"),
    ("model.layers", "blk"),
    ("layers", "blk"),
    ("block", "blk"),
    ("self_attn", "attn"),
    ("shared_exps", "shexp"),
];

/// What a rule that matches nothing was meant to be: the first slip whose mending matches.
fn meant(facts: &Facts<'_>, row: &OverrideRow) -> Option<String> {
    let matches = |text: &str| {
        let pattern = pattern::parse(text).ok();
        pattern.is_some_and(|pattern| facts.model.tensors.iter().any(|tensor| pattern.matches(&tensor.name)))
    };
    // Backslashes doubled for a string of some language; capitals.
    let spelled = row.pattern.replace(r"\\", r"\").to_lowercase();
    let mended =
        SLIPS.iter().filter(|(slip, _)| spelled.contains(slip)).map(|(slip, name)| spelled.replace(slip, name));
    let found = std::iter::once(spelled.clone()).chain(mended).find(|text| *text != row.pattern && matches(text))?;
    Some(format!("{found}={}", row.buffer))
}

/// The first of some rules, and how many more there are.
fn first_of(rows: &[&OverrideRow]) -> Option<String> {
    let first = shown(rows.first()?);
    Some(if rows.len() == 1 { first } else { format!("{first} (and {} more)", rows.len() - 1) })
}

/// Rules of a person that match but decide nothing, by the rule before them.
fn dead<'a>(facts: &Facts<'a>, by: impl Fn(&OverrideRow, &OverrideRow) -> bool) -> Option<(String, &'a OverrideRow)> {
    let dead = facts.overrides.iter().filter(|row| is_written(row) && row.tensors == 0);
    let with_winner = dead.filter_map(|row| Some((row, facts.overrides.get(row.shadowed_by?)?)));
    let (rows, winners): (Vec<_>, Vec<_>) = with_winner.filter(|(row, winner)| by(row, winner)).unzip();
    Some((first_of(&rows)?, winners.first()?))
}

/// Whether the winner comes from the environment and the rule from the command line.
fn environment_wins(row: &OverrideRow, winner: &OverrideRow) -> bool {
    winner.origin.starts_with("LLAMA_ARG_") && !row.origin.starts_with("LLAMA_ARG_")
}

/// How many of the blocks that `-ncmoe N` counts come before the first one with experts, where there is one beyond N.
fn dense_lead(facts: &Facts<'_>, group: &OverrideGroup) -> Option<usize> {
    let rows = facts.entries(group);
    let dense = rows.iter().take_while(|row| row.matches == 0).count();
    let is_lead = rows.first().is_some_and(is_ncmoe) && dense > 0 && facts.has_experts();
    (is_lead && rows.len() < facts.blocks()).then_some(dense)
}

/// Whether a pattern matches a block by a part of its number, on one side.
type IsOpen = fn(&Pattern, u32, &str) -> bool;

/// `blk\.1` without an end matches blocks 10 to 19 as well, and `4\.ffn` without a beginning 14 and 24.
fn block_number_open(facts: &Facts<'_>) -> Finding {
    for row in facts.overrides.iter().filter(|row| is_written(row) && row.matches > 0) {
        let Ok(pattern) = pattern::parse(&row.pattern) else { continue };
        let sides: [(IsOpen, &str, &str); 2] = [
            (is_open, "end", r"end the number with `\.`: `blk\.1\.` is block 1 alone"),
            (is_open_before, "beginning", r"begin the number with `blk\.`: `blk\.[4-9]\.` is blocks 4 to 9 alone"),
        ];
        // A match that begins before the number's first digit has all of the number.
        let whole = pattern::parse(&format!("^.{{0,4}}(?:{})", row.pattern)).ok();
        let asks_for = |block: u32, name: &str| {
            let rest = name.strip_prefix("blk.").and_then(|name| name.strip_prefix(&block.to_string()));
            let tail = block.to_string().split_off(1);
            whole
                .as_ref()
                .zip(rest)
                .is_some_and(|(whole, rest)| whole.matches(name) && !whole.matches(&format!("blk.Z{tail}{rest}")))
        };
        for (is_open, side, hint) in sides {
            let mut seen = BTreeSet::new();
            let open: Vec<u32> = (facts.model.tensors.iter())
                .filter_map(|tensor| Some((tensor.block.filter(|block| *block > 9)?, tensor.name.as_str())))
                .filter(|(block, name)| pattern.matches(name) && seen.insert(*block) && is_open(&pattern, *block, name))
                .filter(|(block, name)| side == "end" || !asks_for(*block, name))
                .map(|(block, _)| block)
                .collect();
            let Some(first) = open.first() else { continue };
            let more = if open.len() == 1 { String::new() } else { format!(" and {} more", open.len() - 1) };
            let rule = shown(row);
            return found(
                format!("{rule} matches block {first}{more} too: the block number is open at its {side}"),
                hint,
            );
        }
    }
    None
}

/// Whether the pattern matches by the last digits of the block number alone, and asks for certain ones.
fn is_open_before(pattern: &Pattern, block: u32, name: &str) -> bool {
    let digits = block.to_string();
    let Some(rest) = name.strip_prefix("blk.").and_then(|name| name.strip_prefix(&digits)) else { return false };
    let (_, tail) = digits.split_at(1);
    let (_, after) = tail.split_at(1);
    let matches = |number: String| pattern.matches(&format!("blk.{number}{rest}"));
    if !matches(format!("Z{tail}")) || matches(format!("Z{after}")) {
        return false;
    }
    let numbers: Vec<u32> = if after.is_empty() { (0..10).collect() } else { (10..100).collect() };
    let taken: Vec<u32> = numbers.iter().copied().filter(|number| matches(number.to_string())).collect();
    // Every other block, or nearly any: so it was meant.
    let alternate =
        taken.len() * 2 == numbers.len() && taken.iter().all(|n| n % 2 == taken.first().map_or(0, |n| n % 2));
    !alternate && taken.len() * 10 < numbers.len() * 9
}

/// Whether the pattern matches by the first digits of the block number alone, and asks for certain ones.
fn is_open(pattern: &Pattern, block: u32, name: &str) -> bool {
    let digits = block.to_string();
    let Some(rest) = name.strip_prefix("blk.").and_then(|name| name.strip_prefix(&digits)) else { return false };
    let (head, _) = digits.split_at(digits.len() - 1);
    let (before, _) = head.split_at(head.len() - 1);
    // `Z` is in no tensor's name: what still matches does not look at what stands there.
    let matches = |number: String| pattern.matches(&format!("blk.{number}Z{rest}"));
    if !matches(head.to_string()) || matches(before.to_string()) {
        return false;
    }
    // Nearly any number in their place: all blocks are meant.
    let numbers = if before.is_empty() { 0..10 } else { 10..100 };
    let count = numbers.len();
    numbers.filter(|number| matches(number.to_string())).count() * 10 < count * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_kebab_case() {
        let mut all: Vec<&str> = codes().map(|(code, _)| code).collect();
        assert!(all.iter().all(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')));
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }

    #[test]
    fn open_numbers() {
        let (end, beginning): (IsOpen, IsOpen) = (is_open, is_open_before);
        for (is_open, block, open, closed) in [
            (
                end,
                17,
                &[r"blk\.1", r"blk\.1.*exps", r"blk\.(0|1).*_exps", r"blk\.[0-4]"][..],
                &[
                    r"blk\.1\.",
                    r"blk\.\d+\.ffn_.*_exps",
                    r"blk\.\d+.*_exps",
                    r"blk\.1[0-9]\.",
                    r"blk\.(1[0-9])",
                    r"exps",
                    r"blk\.[1-9].*exps",
                ][..],
            ),
            (end, 105, &[r"blk\.1[0-9]"], &[r"blk\.10\.", r"blk\.\d+.*exps", r"blk\.1.*"]),
            (
                beginning,
                17,
                &[r"[4-9].ffn_.*_exps.", r"7\.ffn_up", r"blk.*[4-9]\.ffn"],
                &[
                    r"blk\.[4-9].ffn_.*_exps.",
                    r"blk\.(1[0-9])\.ffn",
                    r"(1|2)[0-9]\.ffn",
                    r"[0-9]\.ffn",
                    r"\d+\.ffn",
                    r"[13579]\.ffn_.*_exps",
                    r"blk\.\d*7\.",
                    r"exps",
                ],
            ),
        ] {
            let name = format!("blk.{block}.ffn_up_exps.weight");
            for (text, expected) in open.iter().map(|text| (text, true)).chain(closed.iter().map(|text| (text, false)))
            {
                let pattern = pattern::parse(text).unwrap();
                assert_eq!(pattern.matches(&name) && is_open(&pattern, block, &name), expected, "{text} on {name}");
            }
        }
    }
}
