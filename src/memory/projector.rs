//! The projector of a launch: its weights, and the buffers that its encoders compute with.
//!
//! Source: `tools/mtmd/clip.cpp` `clip_ctx`, `load_tensors`, `warmup`, `reserve_compute_meta`, `common/arg.cpp`, llama.cpp b11434.

use super::backend::Target;
use super::graph::clip::Built;
use super::graph::tensor::{Op, Tensor};
use super::graph::{self, clip};
use super::sched::Scheduler;
use super::{Error, Forecast, HOST, MemoryBreakdown, MemoryByDevice};
use crate::bytes::Bytes;
use crate::machine::{Backend, Machine};
use crate::model::Model;
use crate::model::projector::{self, Encoder, Modality};
use crate::placement::{self, Buffer};
use crate::run::{FlashAttn, RunConfig};

/// What a projector takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projector {
    /// Which of `Machine::devices` holds all of its weights; `None` = the host.
    pub device: Option<u16>,
    pub memory: MemoryByDevice,
    /// Elements of an embedding that it gives the text model (`clip_n_mmproj_embd`).
    pub n_embd: Option<u64>,
}

/// What one of its encoders takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncoderMemory {
    pub weights: Bytes,
    /// The compute buffer beside the weights.
    pub compute: Bytes,
    /// The one on the host, where the weights are on a device.
    pub host_compute: Bytes,
    /// Elements of each embedding that it makes.
    pub n_embd: u64,
}

/// Types whose images attend to themselves in the text model (`mtmd_decode_use_non_causal`): an image has to fit into a micro-batch.
/// Gemma 4's small models do not.
fn is_non_causal(encoder: &Encoder<'_>) -> bool {
    let width = || encoder.loaded().find(|t| t.name == "mm.input_projection.weight").map(|t| t.shape[1]);
    match encoder.kind.name {
        "gemma3" | "gemma4uv" | "deepseek4v" => true,
        "gemma4v" => !matches!(width(), Some(1536 | 2560)),
        _ => false,
    }
}

impl Forecast {
    /// Adds the projector: all weights on one device, and a graph of its own for each encoder.
    pub(super) fn add_projector(&mut self, model: &Model, machine: &Machine, run: &RunConfig) -> Result<(), Error> {
        let Some(projector) = &model.projector else {
            self.leave_out("projector", "the projector's file is not known".to_string());
            return Ok(());
        };
        let at = placement::projector_device(machine, run)?.filter(|at| machine.device(*at).is_some());
        let device = at.and_then(|at| machine.device(at));
        let name = device.map_or(HOST, |device| device.name.as_str());
        let tokens = [run.image_min_tokens, run.image_max_tokens].map(Option::unwrap_or_default);
        let read = projector::encoders(projector, tokens).and_then(|encoders| {
            // `tools/server/server-context.cpp` `load_model`.
            let most = self.numbers.n_ubatch;
            let is_capped = |e: &Encoder<'_>| is_non_causal(e) && e.max_tokens.is_some_and(|n| n > u64::from(most));
            let capped = [tokens[0].min(most), most];
            if encoders.iter().any(is_capped) { projector::encoders(projector, capped) } else { Ok(encoders) }
        });
        let encoders = match read {
            Ok(encoders) => encoders,
            Err(fault) => {
                self.leave_out("projector", fault.to_string());
                return Ok(());
            }
        };
        let mut own = MemoryBreakdown::default();
        let (mut on_host, mut n_embd) = (Bytes(0), None);
        for encoder in &encoders {
            let home = at.zip(device.map(|device| device.backend));
            match encoder_memory(*encoder, home, run.flash_attn) {
                Ok(taken) => {
                    (own.model, own.compute) = (own.model + taken.weights, own.compute + taken.compute);
                    on_host += taken.host_compute;
                    n_embd = n_embd.or(Some(taken.n_embd).filter(|n| *n > 0));
                }
                Err(graph::Error::Architecture { architecture }) => {
                    self.leave_out(
                        "projector",
                        format!("moeplan does not build the graph of a projector `{architecture}`"),
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut memory = MemoryByDevice::from([(name.to_string(), own)]);
        memory.entry(HOST.to_string()).or_default().compute += on_host;
        let kinds: Vec<_> = encoders.iter().map(|encoder| format!("`{}`", encoder.kind.name)).collect();
        self.note("projector.model", format!("the tensors that llama.cpp loads of {} on {name}", kinds.join(" and ")));
        let reserved: Vec<_> = encoders.iter().map(reserved_for).collect();
        self.note("projector.compute", format!("the graph of {}", reserved.join(", and of ")));
        self.take_projector(Projector { device: at, memory, n_embd });
        Ok(())
    }

    /// Adds a projector whose memory is known.
    pub(super) fn take_projector(&mut self, projector: Projector) {
        for (name, row) in &projector.memory {
            let sum = self.row(name);
            (sum.model, sum.compute) = (sum.model + row.model, sum.compute + row.compute);
        }
        self.projector = Some(projector);
    }
}

/// What memory is reserved for, in words.
fn reserved_for(encoder: &Encoder<'_>) -> String {
    match encoder.modality {
        Modality::Vision => format!("an image of {0} × {0} pixels", encoder.side),
        Modality::Audio => "3000 frames of sound".to_string(),
        Modality::GenAudio => "no generated sound, as in llama.cpp".to_string(),
    }
}

/// The tokens of an image for each encoder whose images have one size.
pub fn image_tokens(encoders: &[Encoder<'_>]) -> Vec<Option<u64>> {
    let tokens = |encoder: &Encoder<'_>| {
        let is_fixed = encoder.modality == Modality::Vision && encoder.max_tokens.is_none();
        is_fixed.then(|| clip::build(*encoder, Buffer::Cpu, true).ok()).flatten().map(|built| built.tokens)
    };
    encoders.iter().map(tokens).collect()
}

/// What an encoder takes with its weights in `home`: a device and its backend, or the host.
///
/// # Errors
/// Where its graph cannot be built.
pub fn encoder_memory(
    encoder: Encoder<'_>,
    home: Option<(u16, Backend)>,
    flash_attn: FlashAttn,
) -> Result<EncoderMemory, graph::Error> {
    let target = |backend: Backend, device| Target {
        backend,
        device,
        alignment: backend.alignment(),
        max_chunk: backend.max_buffer().0,
        repeats: RunConfig::default().rules().vulkan_repeats,
        is_meta: false,
    };
    let own = home.map(|(at, backend)| target(backend, Some(at)));
    let targets: Vec<_> = own.into_iter().chain([target(Backend::Cpu, None)]).collect();
    let scheduler = Scheduler {
        targets,
        offload_rows: RunConfig::default().offload_rows(),
        pipeline: false,
        rules: RunConfig::default().rules(),
    };
    let backend = home.map_or(Backend::Cpu, |(_, backend)| backend);
    let weights = encoder.loaded().map(|tensor| backend.tensor_bytes(tensor.ty, tensor.shape)).sum();
    if encoder.modality == Modality::GenAudio {
        return Ok(EncoderMemory { weights, ..EncoderMemory::default() });
    }
    let reserve = |flash_attn| {
        let home = home.map_or(Buffer::Cpu, |(at, _)| Buffer::Device(at));
        let Built { mut graph, n_embd, .. } = clip::build(encoder, home, flash_attn)?;
        let attends = |tensor: &&Tensor| tensor.op == Op::FlashAttnExt;
        let mut attention = graph.nodes.iter().map(|id| graph.tensor(*id)).filter(attends);
        let runs_attention = attention.all(|tensor| scheduler.targets[0].supports_op(&graph.tensors, tensor));
        Ok((scheduler.reserve(&mut graph, false).sizes, runs_attention, n_embd))
    };
    let (mut sizes, runs_attention, n_embd) = reserve(flash_attn != FlashAttn::Off)?;
    if flash_attn == FlashAttn::Auto && !runs_attention {
        // The buffers of the first try stay, where they are larger.
        let (without, ..) = reserve(false)?;
        sizes = sizes.into_iter().zip(without).map(|(a, b)| a.max(b)).collect();
    }
    let size = |i: usize| Bytes(sizes.get(i).copied().unwrap_or(0));
    // A speaker is no embedding of the text model.
    let n_embd = if encoder.kind.name.ends_with("_spkenc") { 0 } else { n_embd };
    Ok(EncoderMemory { weights, compute: size(0), host_compute: size(1), n_embd })
}
