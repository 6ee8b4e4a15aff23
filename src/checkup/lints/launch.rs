//! Lints of the launch: layers left behind, load modes, fitting, slots, caches.

use super::{Facts, Finding, found};
use crate::arch::Arch;
use crate::bytes::Bytes;
use crate::machine::Device;
use crate::memory::caches::{self, CacheKind};
use crate::memory::expert_cache::Problem;
use crate::memory::{self, Caches, HOST};
use crate::placement::Buffer;
use crate::rules::Role;
use crate::run::build::BUILDS;
use crate::run::numbers::numbers;
use crate::run::{Dialect, Program, RunConfig};

/// llama.cpp refuses a quantized V cache without flash attention.
pub(super) fn quantized_v(facts: &Facts<'_>) -> Option<Finding> {
    let ty = facts.run.type_v;
    (facts.refused_caches.quantized_v && ty.is_quantized).then(|| {
        found(
            format!("`-ctv {ty}` without flash attention: llama.cpp refuses; the figures are those of `-ctv f16`"),
            "`-fa on` where the model allows it (grok does not), else `-ctv f16`",
        )
    })?
}

/// llama.cpp refuses K and V of two types where V is a view of K (`src/llama-context.cpp` `llama_init_from_model`, b11434).
pub(super) fn cache_types_differ(facts: &Facts<'_>) -> Option<Finding> {
    let (type_k, type_v) = (facts.run.type_k, facts.run.type_v);
    let refused = facts.refused_caches.different_types && facts.command.target.dialect == Dialect::LlamaCpp;
    refused.then(|| {
        let architecture = &facts.model.hparams.architecture;
        found(
            format!(
                "`-ctk {type_k}` with `-ctv {type_v}`: llama.cpp refuses, since {architecture} keeps V as a view of K; the \
                 figures are those of one type for both"
            ),
            format!("give both the same type: `-ctk {type_k} -ctv {type_k}`"),
        )
    })?
}

/// ik_llama.cpp keeps one latent cache, of K's type.
pub(super) fn latent_cache_type(facts: &Facts<'_>) -> Option<Finding> {
    let ik = facts.refused_caches.different_types && facts.command.target.dialect == Dialect::Ik;
    ik.then(|| {
        found(
            format!(
                "with `-mla` the one latent cache is taken to be of `-ctk`'s type, {}; `-ctv` is not counted",
                facts.run.type_k
            ),
            "`-mla 0`, which keeps K and V apart, is not modelled",
        )
    })?
}

/// `--moe-cache-mib` that stops the launch.
pub(super) fn expert_cache_refused(facts: &Facts<'_>) -> Option<Finding> {
    match facts.cache_problem? {
        Problem::Impossible => {
            found("`--moe-cache-mib` needs a device and a model with experts: llama.cpp refuses", "leave it out")
        }
        Problem::TooSmall => found(
            format!("`--moe-cache-mib {}` holds not even the experts of one token", facts.run.moe_cache_mib),
            "give it more, or leave it out",
        ),
        Problem::NothingToCache => None,
    }
}

/// `--moe-cache-mib` with no expert on the host.
pub(super) fn expert_cache_unused(facts: &Facts<'_>) -> Option<Finding> {
    (facts.cache_problem == Some(Problem::NothingToCache)).then(|| {
        found(
            "`--moe-cache-mib`: no block of a device keeps all its experts in host memory, so nothing is cached",
            "use it with `-cmoe` or `-ncmoe N`",
        )
    })?
}

/// An architecture that llama.cpp refuses (`src/llama-model.cpp` `llama_model_create`, b11434).
pub(super) fn unknown_architecture(facts: &Facts<'_>) -> Option<Finding> {
    let architecture = &facts.model.architecture;
    Arch::named(architecture).is_none().then(|| {
        found(
            format!("llama.cpp b11434 does not know the architecture `{architecture}`: it refuses the file"),
            "a fork or a newer llama.cpp may load it; only its weights and where they go are told here",
        )
    })?
}

/// Drafting by NextN blocks that the file does not have (`src/llama-context.cpp` `llama_init_from_model`, b11434). With a draft
/// model it is that one's blocks that draft.
pub(super) fn mtp_without_nextn(facts: &Facts<'_>) -> Option<Finding> {
    if facts.run.has_draft_model() && facts.model.draft.is_none() {
        return None;
    }
    let drafter = facts.model.draft.as_deref().unwrap_or(facts.model);
    // Its last block is a router's.
    let has_none = drafter.hparams.nextn_predict_layers == 0 || drafter.context.has_router_layer;
    (facts.run.mtp && has_none).then(|| {
        found(
            "`--spec-type draft-mtp`: the file has no NextN (MTP) blocks, so llama.cpp creates no drafting context and stops",
            "leave it out, or take a file with the model's NextN blocks (convert_hf_to_gguf.py without --no-mtp)",
        )
    })?
}

/// A build without a row.
pub(super) fn unknown_build(facts: &Facts<'_>) -> Option<Finding> {
    let target = facts.command.target;
    if target.known().is_some() || target.dialect == Dialect::Ik {
        return None;
    }
    let newest = BUILDS.last().map_or(0, |build| build.number);
    let what = if target.build > newest { "newer than every build known here" } else { "not known here" };
    found(
        format!(
            "b{} is {what}: its flags and rules are taken to be those of b{}",
            target.build,
            target.nearest().number
        ),
        "compare with `llama-fit-params -fitp on` of that build",
    )
}

/// Blocks that stay on the host, and how many there are.
fn left_behind(facts: &Facts<'_>) -> Option<(usize, usize)> {
    let (_, blocks) = facts.forecast.placement.layers.split_last()?;
    let left = blocks.iter().filter(|device| device.is_none()).count();
    (facts.has_devices() && facts.run.n_gpu_layers > 0).then_some((left, blocks.len()))
}

/// `-ngl` of exactly the number of blocks: the output takes one.
pub(super) fn ngl_leaves_block_0(facts: &Facts<'_>) -> Option<Finding> {
    let (left, blocks) = left_behind(facts)?;
    (left == 1).then(|| {
        found(
            format!("`-ngl {blocks}` counts the output first, so block 0 stays on the host with its cache"),
            format!("`-ngl {}` or more (`-ngl 99`) moves all of them", blocks + 1),
        )
    })?
}

/// A smaller `-ngl`.
pub(super) fn ngl_leaves_blocks(facts: &Facts<'_>) -> Option<Finding> {
    let (left, blocks) = left_behind(facts).filter(|(left, _)| *left > 1)?;
    let experts = facts.model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert);
    let hint = if experts {
        "`-ngl 99 -ncmoe N` keeps attention and caches on the device and leaves only experts behind"
    } else {
        "`moeplan plan` finds the largest `-ngl` that fits"
    };
    let n = facts.run.n_gpu_layers;
    found(
        format!("`-ngl {n}` leaves blocks 0 to {} of {blocks} on the host, attention and cache included", left - 1),
        hint,
    )
}

/// The output matrix in host memory.
pub(super) fn output_on_host(facts: &Facts<'_>) -> Option<Finding> {
    if facts.model.is_embedding() {
        return None;
    }
    let at = facts.model.output()?;
    let name = &facts.model.tensors.get(at)?.name;
    let copy = facts.forecast.placement.copies.get(at)?.last()?;
    if !facts.has_devices() || matches!(copy.buffer, Buffer::Device(_)) {
        return None;
    }
    let why = match facts.run.program {
        Program::Server | Program::Cli if !facts.run.embeddings => "every token's last product runs on the processor",
        _ => "32 rows of logits or more copy it whole into a device's compute buffer",
    };
    let hint = match copy.rule {
        Some(_) => "leave the output out of the rules: `-ot` patterns match anywhere in a name",
        None => "`-ngl 1` or more moves the output first",
    };
    found(format!("the output matrix ({name}, {}) stays on the host: {why}", copy.bytes), hint)
}

/// Weights that rules keep on the host of a machine with devices.
fn overridden_to_host(facts: &Facts<'_>) -> Bytes {
    let copies = facts.forecast.placement.copies.iter().flatten();
    let kept = copies.filter(|copy| copy.rule.is_some() && matches!(copy.buffer, Buffer::Cpu | Buffer::HostPinned));
    if facts.has_devices() { kept.map(|copy| copy.bytes).sum() } else { Bytes(0) }
}

/// Mapped experts are copied through pageable memory; pinned ones are not.
pub(super) fn mmap_with_host_overrides(facts: &Facts<'_>) -> Option<Finding> {
    let kept = overridden_to_host(facts);
    let can_pin = facts
        .forecast
        .placement
        .taking_part(facts.machine)
        .any(|(_, device)| device.backend.host_buffer_name().is_some());
    let room = facts.ram().is_none_or(|ram| facts.forecast.host_total() <= ram);
    if kept == Bytes(0) || !facts.run.load_mode.is_mapped() || facts.run.no_host || !can_pin || !room {
        return None;
    }
    found(
        format!("{kept} that rules keep on the host are read through mapped files, which makes prompts slower"),
        if facts.command.target.dialect == Dialect::Ik {
            "`--no-mmap` reads them into memory"
        } else {
            "`--load-mode none` pins them in memory: 2 to 3 times the prompt speed where it was measured"
        },
    )
}

/// Pinned weights that main memory cannot hold.
pub(super) fn pinned_beyond_ram(facts: &Facts<'_>) -> Option<Finding> {
    let pinned = facts.forecast.placement.copies.iter().flatten().any(|copy| copy.buffer == Buffer::HostPinned);
    let (ram, total) = (facts.ram()?, facts.forecast.host_total());
    (pinned && total > ram).then(|| {
        found(
            format!(
                "without mapped files the host's {total} are pinned memory, and there are {ram}: loading fails or swaps"
            ),
            "`--load-mode mmap` reads what is needed from the file; or keep more on the devices",
        )
    })?
}

/// Devices without memory of their own, which together with the host need more than there is.
pub(super) fn shared_memory(facts: &Facts<'_>) -> Option<Finding> {
    let (ram, host) = (facts.ram()?, facts.forecast.host_total());
    let shared = memory::shared_with_host(facts.machine, &facts.forecast.memory);
    (shared > Bytes(0) && shared + host > ram).then(|| {
        let names = facts.device_names().join(", ");
        found(
            format!(
                "{names} and the processor share main memory: {shared} and {host} together are more than the {ram} of it"
            ),
            "a smaller quantization or a shorter context: moving experts to the host frees nothing here",
        )
    })?
}

/// Mapped weights that the page cache cannot hold.
pub(super) fn mapped_beyond_ram(facts: &Facts<'_>) -> Option<Finding> {
    let (ram, model) = (facts.ram()?, facts.forecast.memory.get(HOST)?.model);
    (facts.run.load_mode.is_mapped() && model > ram).then(|| {
        found(
            format!(
                "{model} of mapped weights are more than the {ram} of main memory: every token reads from the disk"
            ),
            "keep more on the devices, or take a smaller quantization",
        )
    })?
}

/// Host experts in a layout of the processor's own: prompts are computed where they are.
pub(super) fn repacked_not_offloaded(facts: &Facts<'_>) -> Option<Finding> {
    let experts = facts.forecast.placement.experts(facts.model);
    let repacked = experts.filter(|(_, copy)| matches!(copy.buffer, Buffer::CpuRepack | Buffer::Amx));
    let bytes: Bytes = repacked.map(|(_, copy)| copy.bytes).sum();
    // Without the flag it is devices that have no host memory of their own, RPC servers, which take no copies either way.
    let (who, hint) = if facts.run.no_host {
        ("`--no-host` repacks", "leave `--no-host` out: prompts were 20 to 60 times as fast where it was measured")
    } else {
        (
            "llama.cpp repacks",
            "the devices here take no copies of experts anyway: keep more of them there for faster prompts",
        )
    };
    (facts.has_devices() && bytes > Bytes(0)).then(|| {
        let what = format!("{who} {bytes} of experts for the processor: prompts are computed there, not on the device");
        found(what, hint)
    })?
}

/// With op offload off anyway, repacking would only help.
pub(super) fn repack_lost(facts: &Facts<'_>) -> Option<Finding> {
    let run = facts.run;
    (overridden_to_host(facts) > Bytes(0) && !run.op_offload && run.repack && !run.no_host).then(|| {
        found(
            "with a device present, weights of the host are not repacked for the processor",
            "`--no-host` repacks them; with `--no-op-offload` nothing is lost by it",
        )
    })?
}

/// Whether llama.cpp's own fitting finds less free than its margin (`common/fit.cpp`, b11434).
fn is_tight(facts: &Facts<'_>) -> bool {
    let margin = |at: usize| match facts.run.fit_target.as_slice() {
        [one] => *one,
        several => several.get(at).copied().unwrap_or(1024),
    };
    let short = |(at, (_, device)): (usize, (u16, &Device))| {
        let terms = facts.forecast.memory.get(&device.name);
        terms.is_some_and(|terms| terms.total() + Bytes::mib(u64::from(margin(at))) > device.total)
    };
    // llama-fit-params fits on purpose.
    let on_purpose = facts.run.program == Program::FitParams;
    !on_purpose && facts.forecast.placement.taking_part(facts.machine).enumerate().any(short)
}

/// What keeps fitting from moving weights.
fn forbids_moving(facts: &Facts<'_>) -> Option<&'static str> {
    let several = facts.forecast.placement.devices.len() > 1;
    match facts.run {
        run if run.n_gpu_layers != -1 => Some("-ngl"),
        run if !run.overrides.is_empty() => Some("-ot, -cmoe or -ncmoe"),
        run if several && run.tensor_split.iter().any(|share| *share != 0.0) => Some("-ts"),
        _ => None,
    }
}

/// Whether fitting shortens the context: it is not given, and `-c 0` is not either.
fn shortens(facts: &Facts<'_>) -> bool {
    facts.run.fit && is_tight(facts) && facts.run.n_ctx == 0 && facts.forecast.numbers.n_ctx > facts.run.fit_ctx
}

/// Fitting is on, but will not rescue the command.
pub(super) fn fit_gives_up(facts: &Facts<'_>) -> Option<Finding> {
    let flag = forbids_moving(facts).filter(|_| facts.run.fit && facts.short && is_tight(facts) && !shortens(facts))?;
    found(
        format!(
            "llama.cpp's own fitting gives up because {flag} is given: the launch goes on as written and runs out of memory"
        ),
        "`moeplan plan` finds what fits; or leave the flag to `--fit`",
    )
}

/// Fitting shortens a context that is not given before it moves a single expert.
pub(super) fn fit_cuts_context(facts: &Facts<'_>) -> Option<Finding> {
    if !shortens(facts) {
        return None;
    }
    let (from, to) = (facts.forecast.numbers.n_ctx, facts.run.fit_ctx);
    let rest =
        forbids_moving(facts).map(|flag| format!("; because {flag} is given it moves no weight if that is not enough"));
    found(
        format!(
            "without `-c`, llama.cpp's own fitting shortens the context of {from} tokens, down to {to}, and says so only in its \
             log{}",
            rest.unwrap_or_default()
        ),
        "give `-c N`",
    )
}

/// Fitting would change what goes where.
pub(super) fn fit_would_change(facts: &Facts<'_>) -> Option<Finding> {
    (facts.run.fit && is_tight(facts) && forbids_moving(facts).is_none()).then(|| {
        found(
            "llama.cpp's own fitting is on and would move experts or layers to the host; the figures are of the command as written",
            "`moeplan plan` chooses what goes to the host; `-fit off` keeps the command as written",
        )
    })?
}

/// What the windows and states of a launch take.
fn fixed(caches: &Caches) -> Bytes {
    let kept = |kind| {
        let states = matches!(kind, CacheKind::CsaState | CacheKind::HcaState);
        states || matches!(kind, CacheKind::Swa | CacheKind::Recurrent | CacheKind::PleState)
    };
    let windows = caches.list.iter().filter(|cache| kept(cache.kind) && cache.tokens_per_cell.is_none());
    let tensors = windows.flat_map(|cache| cache.layers.iter().filter_map(|layer| cache.tensors(layer).ok()).flatten());
    tensors.map(|tensor| tensor.bytes).sum()
}

/// A micro-batch is cut to the batch (`src/llama-context.cpp`, b11434).
pub(super) fn ubatch_beyond_batch(facts: &Facts<'_>) -> Option<Finding> {
    let (batch, ubatch) = (facts.run.n_batch, facts.run.n_ubatch);
    // With llama.cpp's own `-ub` a small `-b` is meant.
    (ubatch > batch && ubatch != RunConfig::default().n_ubatch).then(|| {
        found(
            format!("`-ub {ubatch}` is cut to the batch, which is {batch} (`-b`)"),
            format!("`-b {ubatch} -ub {ubatch}` keeps it"),
        )
    })?
}

/// llama-server takes 4 slots where none are asked for; windows and states are kept for each.
pub(super) fn slots_multiply_states(facts: &Facts<'_>) -> Option<Finding> {
    let slots = facts.forecast.numbers.n_seq_max;
    let is_told = facts.forecast.counts("context");
    if facts.run.program != Program::Server || facts.run.n_parallel.is_some() || slots < 2 || !is_told {
        return None;
    }
    let one = RunConfig { n_parallel: Some(1), ..facts.run.clone() };
    let caches = caches::caches(facts.model, &one, &numbers(&one, &facts.model.hparams));
    let (now, alone) = (fixed(&facts.forecast.caches), fixed(&caches));
    (now > alone).then(|| {
        found(
            format!("llama-server's own {slots} slots each keep windows and states: {now} instead of {alone}"),
            "`-np 1` for one user",
        )
    })?
}

/// Slots that are not unified divide the context.
pub(super) fn slots_share_context(facts: &Facts<'_>) -> Option<Finding> {
    let numbers = &facts.forecast.numbers;
    let divided = facts.run.program == Program::Server && facts.run.n_ctx > 0 && !numbers.kv_unified;
    (divided && numbers.n_seq_max > 1).then(|| {
        found(
            format!("`-np {}` divides the context: each slot has {} tokens", numbers.n_seq_max, numbers.n_ctx_seq),
            "`-kvu` lets the slots share all of it, or multiply `-c`",
        )
    })?
}
