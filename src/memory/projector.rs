//! The projector of a launch: its weights, and the buffers that its encoders compute with.
//!
//! Source: `tools/mtmd/clip.cpp` `clip_ctx`, `load_tensors`, `warmup`, `reserve_compute_meta`, `common/arg.cpp`, llama.cpp b11434.

use super::backend::Target;
use super::graph::clip::{self, Built};
use super::graph::tensor::{Graph, Op};
use super::graph::{self, Error as GraphError};
use super::sched::Scheduler;
use super::{Error, Forecast, HOST, MemoryBreakdown, MemoryByDevice};
use crate::bytes::Bytes;
use crate::machine::{Backend, Machine};
use crate::model::Model;
use crate::model::projector::{self, Encoder, Modality};
use crate::placement::{self, Buffer};
use crate::run::{FlashAttn, RunConfig};

/// What a projector takes.
#[derive(Debug, Clone)]
pub struct Projector {
    /// Which of `Machine::devices` holds all of its weights; `None` = the host.
    pub device: Option<u16>,
    pub memory: MemoryByDevice,
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
        let encoders = match projector::encoders(projector, run.image_max_tokens.unwrap_or(0)) {
            Ok(encoders) => encoders,
            Err(fault) => {
                self.leave_out("projector", fault.to_string());
                return Ok(());
            }
        };
        let home = Home::new(at, device.map_or(Backend::Cpu, |device| device.backend));
        let mut own = MemoryBreakdown::default();
        let mut on_host = Bytes(0);
        for encoder in &encoders {
            let bytes = |tensor: &crate::model::Tensor| home.backend.tensor_bytes(tensor.ty, tensor.shape);
            own.model += encoder.loaded().map(bytes).sum();
            match home.reserve(*encoder, run.flash_attn) {
                Ok(sizes) => {
                    let (first, rest) = sizes.split_first().map_or((Bytes(0), &[][..]), |(first, rest)| (*first, rest));
                    own.compute += first;
                    on_host += rest.iter().copied().sum();
                }
                Err(GraphError::Architecture { architecture }) => {
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
        for (name, row) in &memory {
            let sum = self.row(name);
            (sum.model, sum.compute) = (sum.model + row.model, sum.compute + row.compute);
        }
        let kinds: Vec<_> = encoders.iter().map(|encoder| encoder.kind.name).collect();
        self.note("projector.model", format!("the tensors that `{}` loads on {name}", kinds.join("`, `")));
        self.note(
            "projector.compute",
            format!("the graph of {}", encoders.iter().map(warmed_with).collect::<Vec<_>>().join(", ")),
        );
        self.projector = Some(Projector { device: at, memory });
        Ok(())
    }
}

/// What memory is reserved for, in words.
fn warmed_with(encoder: &Encoder<'_>) -> String {
    match encoder.modality {
        Modality::Vision => format!("an image of {0} x {0} pixels", encoder.side),
        Modality::Audio => "a sound of 3000 frames".to_string(),
        Modality::GenAudio => "nothing for the generator of sound, as llama.cpp does".to_string(),
    }
}

/// Where a projector's weights are, and what runs it.
struct Home {
    backend: Backend,
    buffer: Buffer,
    scheduler: Scheduler,
}

impl Home {
    fn new(device: Option<u16>, backend: Backend) -> Self {
        let target =
            |backend: Backend, device| Target { backend, device, alignment: backend.alignment(), is_meta: false };
        let own = device.map(|at| target(backend, Some(at)));
        let targets = own.into_iter().chain([target(Backend::Cpu, None)]).collect();
        let buffer = device.map_or(Buffer::Cpu, Buffer::Device);
        Self { backend, buffer, scheduler: Scheduler { targets, op_offload: true, pipeline: false } }
    }

    /// Bytes on its own device, and on the host where that is another one.
    fn reserve(&self, encoder: Encoder<'_>, flash_attn: FlashAttn) -> Result<Vec<Bytes>, graph::Error> {
        if encoder.modality == Modality::GenAudio {
            return Ok(vec![Bytes(0)]);
        }
        let sizes = |flash_attn| {
            let Built { mut graph, .. } = clip::build(encoder, self.buffer, flash_attn)?;
            let runs = self.runs_attention(&graph);
            Ok((self.scheduler.reserve(&mut graph).sizes, runs))
        };
        let (with, runs) = sizes(flash_attn != FlashAttn::Off)?;
        let sizes = if flash_attn != FlashAttn::Auto || runs {
            with
        } else {
            // The buffers of the first try stay, where they are larger.
            let (without, _) = sizes(false)?;
            with.into_iter().zip(without).map(|(a, b)| a.max(b)).collect()
        };
        Ok(sizes.into_iter().map(Bytes).collect())
    }

    /// Whether its own device runs every attention in one operation.
    fn runs_attention(&self, graph: &Graph) -> bool {
        let target = &self.scheduler.targets[0];
        let attends = graph.nodes.iter().map(|id| graph.tensor(*id)).filter(|tensor| tensor.op == Op::FlashAttnExt);
        attends.into_iter().all(|tensor| target.supports_op(&graph.tensors, tensor))
    }
}
