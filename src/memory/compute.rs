//! Temporary buffers of the graphs, by device and on the host.
//!
//! Source: `src/llama-context.cpp` `sched_reserve`, `graph_reserve`, `resolve_fused_ops`, llama.cpp b11434.

use std::collections::BTreeMap;

use super::Launch;
use super::backend::Target;
use super::caches::Caches;
use super::fusion;
use super::graph::tensor::{Op, Tensor};
use super::graph::{self, Batch, Fused, Plan};
use super::sched::{Scheduled, Scheduler};
use crate::bytes::Bytes;
use crate::machine::Backend;
use crate::placement::{Placement, by_size};
use crate::run::{ContextNumbers, FlashAttn, Rules, SplitMode};

/// The most bytes of one tensor that any driver takes without 64-bit indexing.
pub use super::vulkan::LONGEST as VULKAN_LONGEST;
/// The largest buffer of the Vulkan driver that takes least, AMD's own. A driver without 64-bit indexing takes less than 4 GiB
/// (`maxStorageBufferRange`), and llama.cpp gives operations on larger tensors to the processor (`ggml/src/ggml-vulkan/ggml-vulkan.cpp`
/// `ggml_backend_vk_device_supports_op`, b11434).
pub const VULKAN_BUFFER: Bytes = Bytes::mib(2048);

/// Compute bytes by device name and `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compute {
    /// Bytes by device name (`CUDA0`, `RPC0`) and `Host`.
    pub by_device: BTreeMap<String, Bytes>,
    /// Bytes that the launch allocates beyond these, or fewer.
    pub beyond: BTreeMap<String, i64>,
    /// Bytes that come on top at the first prompt, of which no log tells.
    pub grown: BTreeMap<String, Bytes>,
    /// Whether attention is one operation (`-fa auto` resolved).
    pub flash_attn: bool,
    /// Whether several micro-batches are in flight (pipeline parallelism).
    pub is_pipelined: bool,
    /// Kernels that a graph of the target starts.
    pub kernels: usize,
    /// The largest result of an operation on a Vulkan device, or of one that is too long for it, where that is more than every driver takes
    /// ([`VULKAN_BUFFER`]).
    pub beyond_vulkan: Option<Bytes>,
    /// What a projector takes beside it, where that was counted.
    pub projector: Option<super::Projector>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub launch: Launch<'a>,
    pub numbers: &'a ContextNumbers,
    pub caches: &'a Caches,
    pub placement: &'a Placement,
}

impl<'a> Context<'a> {
    /// The compute buffers: the prompt's graph, with or without flash attention, laid out and allocated. An error where no such
    /// graph can be built.
    ///
    /// The launch's own differ from what is projected where something bound to a device would be elsewhere, where it reserves other
    /// batches too, and where it reserves again at the first request to keep the inputs of the layers `taps`
    /// (`llama_context::set_embeddings_layer_inp`).
    pub fn compute(&self, taps: &'a [u32]) -> Result<Compute, graph::Error> {
        let scheduler = self.scheduler();
        let flash_attn = self.resolve_flash_attn(&scheduler)?;
        let fused = self.resolve_fused(&scheduler, flash_attn)?;
        let batches = self.batches();
        let mut graph = graph::build(&Plan { fused, ..self.plan(batches[0], flash_attn) })?;
        // ik_llama.cpp's graph of a prompt is another one than that of a token where there are latents.
        let is_alike = !(self.launch.run.rules().one_cache && self.launch.model.hparams.arch().mla);
        let kernels = if is_alike {
            fusion::kernels(&graph)
        } else {
            fusion::kernels(&graph::build(&Plan { fused, ..self.plan(self.probe(), flash_attn) })?)
        };
        let Scheduled { sizes, is_kept, largest, .. } = scheduler.reserve(&mut graph, true);
        let on_vulkan = scheduler.targets.iter().zip(largest).filter(|(target, _)| target.backend == Backend::Vulkan);
        let beyond_vulkan = on_vulkan.map(|(_, bytes)| Bytes(bytes)).max().filter(|bytes| *bytes > VULKAN_BUFFER);
        let allocated = |plan: Plan<'a>| Ok(scheduler.reserve(&mut graph::build(&plan)?, false).sizes);
        let most = if is_kept && taps.is_empty() && batches.len() == 1 {
            sizes.clone()
        } else {
            let plans = batches.into_iter().map(|batch| Plan { taps, fused, ..self.plan(batch, flash_attn) });
            let all = plans.map(allocated).collect::<Result<Vec<Vec<u64>>, graph::Error>>()?;
            (0..sizes.len()).map(|at| all.iter().map(|sizes| sizes[at]).max().unwrap_or(0)).collect()
        };
        // A graph that does not fit its buffers is reserved without a word.
        let grown = if self.launch.run.mtp && self.launch.other.is_none() {
            let prompt = Batch { keeps_rows: true, ..self.prompt() };
            allocated(Plan { fused, ..self.plan(prompt, flash_attn) })?
        } else {
            Vec::new()
        };
        let names: Vec<String> = scheduler.targets.iter().filter_map(|target| self.name(target)).collect();
        let beyond = names.iter().zip(most.iter().zip(&sizes));
        let beyond = beyond.map(|(name, (most, size))| (name.clone(), most.cast_signed() - size.cast_signed()));
        let grown = names.iter().zip(grown.iter().zip(&most));
        let grown = grown.map(|(name, (grown, most))| (name.clone(), Bytes(grown.saturating_sub(*most))));
        Ok(Compute {
            by_device: names.iter().cloned().zip(sizes.iter().copied().map(Bytes)).collect(),
            beyond: beyond.filter(|(_, bytes)| *bytes != 0).collect(),
            grown: grown.filter(|(_, bytes)| *bytes > Bytes(0)).collect(),
            flash_attn,
            is_pipelined: scheduler.pipeline,
            kernels,
            beyond_vulkan,
            projector: None,
        })
    }

    /// `CUDA0`, or `Host`.
    fn name(&self, target: &Target) -> Option<String> {
        match target.device {
            Some(device) => self.launch.machine.device(device).map(|device| device.name.clone()),
            None => Some(super::HOST.to_string()),
        }
    }

    /// The micro-batches that a launch reserves, of which a projection has the first: the prompt's, a token of each sequence where that
    /// has no fewer tokens, and the prompt's of one sequence (`sched_reserve`).
    fn batches(&self) -> Vec<Batch> {
        let prompt = self.prompt();
        let generation =
            (prompt.n_tokens <= prompt.n_seqs && !self.launch.run.rules().logits_of_all).then(|| self.probe());
        let one = (self.launch.model.hparams.arch().reserves_one_sequence && prompt.n_seqs > 1).then(|| Batch {
            n_tokens: self.tokens(),
            n_seqs: 1,
            ..prompt
        });
        [Some(prompt), generation, one].into_iter().flatten().collect()
    }

    fn plan(&self, batch: Batch, flash_attn: bool) -> Plan<'a> {
        Plan {
            model: self.launch.model,
            numbers: self.numbers,
            caches: self.caches,
            placement: self.placement,
            other: self.launch.other,
            taps: &[],
            rules: Rules { mla: by_size::mla(self.launch.model, self.launch.run), ..self.launch.run.rules() },
            batch,
            flash_attn,
            fused: Fused::ALL,
            offload_kqv: self.launch.run.offload_kqv,
            full_offload: self.is_full_offload(),
        }
    }

    /// The micro-batch that is reserved: as many tokens as fit, the same for every sequence.
    fn prompt(&self) -> Batch {
        let n_seqs = u64::from(self.numbers.n_seq_max.max(1));
        let n_tokens = self.tokens();
        let whole = n_tokens.next_multiple_of(n_seqs);
        let most = u64::from(self.numbers.n_outputs_max);
        let n_outputs = if self.launch.run.rules().logits_of_all { whole } else { n_tokens.min(most) };
        Batch { n_tokens: whole, n_seqs, n_outputs, keeps_rows: false }
    }

    fn tokens(&self) -> u64 {
        u64::from(self.numbers.n_ctx.min(self.numbers.n_ubatch))
    }

    /// `n_gpu_layers > n_layer_all`.
    fn is_full_offload(&self) -> bool {
        let n_layer_all = i64::from(self.caches.hparams.n_layer_all());
        self.launch.run.n_gpu_layers < 0 || i64::from(self.launch.run.n_gpu_layers) > n_layer_all
    }

    fn scheduler(&self) -> Scheduler {
        let rules = self.launch.run.rules();
        let device = |index: &u16| {
            let device = self.launch.machine.device(*index)?;
            let is_meta = self.placement.shares.is_some();
            Some(Target {
                backend: device.backend,
                device: Some(*index),
                alignment: device.backend.alignment(),
                max_chunk: device.backend.max_buffer().0,
                repeats: rules.vulkan_repeats,
                is_meta,
            })
        };
        let mut targets: Vec<Target> = self.placement.devices.iter().filter_map(device).collect();
        // The CPU computes in pinned memory of the first device (`src/llama-context.cpp`, "use the host buffer of the first device").
        let first = targets.first().map_or(Backend::Cpu, |first| first.backend);
        targets.push(Target {
            backend: Backend::Cpu,
            device: None,
            alignment: if targets.is_empty() { first.alignment() } else { first.host_alignment() },
            repeats: true,
            max_chunk: if first.is_cuda_source() { rules.pinned_buffer } else { u64::MAX },
            is_meta: false,
        });
        let several = self.placement.devices.len() > 1;
        let has_events = targets.iter().all(|target| match target.backend {
            Backend::Rpc => rules.rpc_pipelines,
            backend => backend.may_pipeline(),
        });
        let pipeline = self.launch.may_pipeline
            && rules.pipeline_copies > 1
            && several
            && has_events
            && self.is_full_offload()
            && self.launch.run.split_mode == SplitMode::Layer
            && self.launch.run.offload_kqv
            && self.launch.run.overrides.is_empty();
        Scheduler { targets, offload_rows: self.launch.run.offload_rows(), pipeline, rules }
    }

    /// Whether attention is one operation: asked for, and with `auto`, only if each layer's device would run it.
    fn resolve_flash_attn(&self, scheduler: &Scheduler) -> Result<bool, graph::Error> {
        let is_off = self.launch.run.flash_attn == FlashAttn::Off || self.launch.model.hparams.arch().squashed;
        // Quantized values need it, and so does `-sm tensor` (`llama_init_from_model`).
        let is_on = self.launch.run.flash_attn == FlashAttn::On
            || self.launch.run.type_v.is_quantized
            || self.launch.run.split_mode == SplitMode::Tensor;
        if is_off || is_on {
            return Ok(!is_off);
        }
        let plan = self.plan(self.probe(), true);
        Self::is_at_home(scheduler, &plan, Op::FlashAttnExt)
    }

    /// What is one operation: what each layer's device would run so, asked one after the other.
    fn resolve_fused(&self, scheduler: &Scheduler, flash_attn: bool) -> Result<Fused, graph::Error> {
        let hparams = &self.launch.model.hparams;
        let mut fused = Fused { masks: self.launch.run.rules().fuses_top_k_masks, ..Fused::ALL };
        let is_at_home =
            |fused, op| Self::is_at_home(scheduler, &Plan { fused, ..self.plan(self.probe(), flash_attn) }, op);
        if hparams.u32_or_0("hyper_connection.count") > 0 {
            fused.pre = is_at_home(fused, Op::HcPre)?;
            fused.comb = is_at_home(fused, Op::HcComb)?;
            fused.post = is_at_home(fused, Op::HcPost)?;
        }
        if fused.masks && self.caches.hparams.indexer_top_k > 0 {
            fused.masks = is_at_home(fused, Op::TopKMask)?;
        }
        Ok(fused)
    }

    /// A token of each sequence.
    fn probe(&self) -> Batch {
        let n_seqs = u64::from(self.numbers.n_seq_max.max(1));
        Batch { n_tokens: n_seqs, n_seqs, n_outputs: n_seqs, keeps_rows: false }
    }

    /// Whether every operation of this kind that is looked for runs on its layer's device.
    fn is_at_home(scheduler: &Scheduler, plan: &Plan<'_>, op: Op) -> Result<bool, graph::Error> {
        let mut graph = graph::build(plan)?;
        let found = scheduler.targets_of(&mut graph, |tensor: &Tensor| tensor.op == op);
        let is_home = |(id, target)| graph.layer_targets.get(&id).is_none_or(|home| Some(*home) == target);
        Ok(found.into_iter().all(is_home))
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::{Device, Host, Machine};
    use crate::memory::forecast;
    use crate::run::RunConfig;
    use crate::synth;

    #[test]
    fn devices_without_asynchronous_copies_have_one_micro_batch_in_flight() {
        let model = synth::model("olmoe-1b-7b", &synth::Wish::default()).unwrap();
        let run = RunConfig { n_ctx: 4096, n_gpu_layers: 99, ..RunConfig::default() };
        for (backend, is_pipelined) in [("CUDA", true), ("SYCL", true), ("CANN", false)] {
            let devices = [0, 1].map(|n| Device::parse(&format!("{backend}{n}=24GiB")).unwrap());
            let machine = Machine::new(devices.to_vec(), Host::default()).unwrap();
            assert_eq!(forecast(&model, &machine, &run).unwrap().is_pipelined, is_pipelined, "{backend}");
        }
    }
}
