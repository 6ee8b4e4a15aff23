//! What a measurement of a launch is held to: what of its forecast can be measured.

use std::borrow::Cow;

use super::Expected;
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::memory::{self, MemoryBreakdown, MemoryByDevice};
use crate::model::Model;
use crate::placement::Buffer;
use crate::runtime::Launch;
use crate::suggest::Hint;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct LaunchForecast {
    pub memory: MemoryByDevice,
    /// The file's span that is mapped, where anything is.
    pub mapped_span: Option<Bytes>,
    /// Bytes of routed experts on any device, and on the host.
    pub experts: (Bytes, Bytes),
    /// Tokens that a slot takes: llama-server gives it no more than the model was trained on (tools/server, b11434).
    pub slot_tokens: u32,
    /// Streams that share the context.
    pub n_stream: u32,
    /// Tokens that the model was trained on, where its file says.
    pub trained: Option<u32>,
}

/// What is to be asked of a launch is longer than its context.
#[derive(Debug, thiserror::Error)]
#[error("{what} takes {needs} tokens of context, and this launch has room for {slot}")]
pub struct TooLong {
    what: String,
    needs: u32,
    slot: u32,
    /// What `-c` would have to be; `None` where the model itself was trained on no more.
    context: Option<u32>,
    smaller: String,
}

impl Hint for TooLong {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let Self { slot, smaller, .. } = self;
        let text = match self.context {
            Some(context) => format!("plan with -c {context} or more, or {smaller}"),
            None => format!("the model was trained on {slot} tokens, and llama-server takes no more: {smaller}"),
        };
        Some(text.into())
    }
}

impl LaunchForecast {
    pub fn of(model: &Model, launch: &Launch) -> anyhow::Result<Self> {
        let forecast = memory::forecast(model, &launch.machine, &launch.run)?;
        let trained = Some(model.hparams.context_length).filter(|tokens| *tokens > 0);
        let mut experts = (Bytes(0), Bytes(0));
        for (_, copy) in forecast.placement.experts(model) {
            let on = if matches!(copy.buffer, Buffer::Device(_)) { &mut experts.0 } else { &mut experts.1 };
            *on += copy.bytes;
        }
        Ok(Self {
            memory: forecast.memory,
            mapped_span: forecast.mapped_span,
            experts,
            slot_tokens: forecast.numbers.n_ctx_seq.min(trained.unwrap_or(u32::MAX)),
            n_stream: forecast.numbers.n_stream.max(1),
            trained,
        })
    }

    /// What a measurement is held to where `margin` is left free.
    pub fn expected(&self, margin: Bytes) -> Expected<'_> {
        Expected { memory: &self.memory, mapped_span: self.mapped_span, margin }
    }

    /// The first device that it overfills, in words; `None` where it fits.
    pub fn lacking(&self, machine: &Machine) -> Option<String> {
        let needs = |name: &str| self.memory.get(name).map_or(Bytes(0), MemoryBreakdown::total);
        let device = machine.devices.iter().find(|device| needs(&device.name) > device.total)?;
        Some(format!("it needs {} of {}, which has {}", needs(&device.name), device.name, device.total))
    }

    /// Whether a slot of the launch has room for `needs` tokens; if not, `what` does not fit, and `smaller` says what may in a
    /// slot of so many.
    pub fn takes(
        &self,
        what: impl Into<String>,
        needs: u32,
        smaller: impl FnOnce(u32) -> String,
    ) -> Result<(), TooLong> {
        let slot = self.slot_tokens;
        if needs <= slot {
            return Ok(());
        }
        let is_possible = self.trained.is_none_or(|trained| needs <= trained);
        let context = is_possible.then(|| needs.next_multiple_of(256).saturating_mul(self.n_stream));
        Err(TooLong { what: what.into(), needs, slot, context, smaller: smaller(slot) })
    }
}
