//! Cache types that llama.cpp refuses, and the figures of the nearest that it takes.

use crate::gguf::ggml_type;
use crate::machine::Machine;
use crate::memory::{self, Forecast};
use crate::model::Model;
use crate::placement;
use crate::run::RunConfig;

/// Which cache types llama.cpp refuses; the figures are then those of types that it takes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RefusedCaches {
    pub quantized_v: bool,
    /// K and V of two types where V is a view of K.
    pub different_types: bool,
}

/// The forecast; of a launch whose cache types llama.cpp refuses, with the nearest that it takes.
pub(super) fn with_allowed_caches(
    model: &Model,
    machine: &Machine,
    run: &mut RunConfig,
) -> Result<(Forecast, RefusedCaches), memory::Error> {
    let differ = run.type_k != run.type_v;
    let mut refused = RefusedCaches::default();
    loop {
        // Where tensors go does not depend on the types of the cache; a refusal is rare.
        let placement = placement::place(model, machine, run)?;
        match memory::as_far_as_known(model, machine, run, placement, None) {
            Err(memory::Error::DifferentTypes { .. }) if run.type_k != run.type_v => {
                refused.different_types = differ;
                // V's only where K's was refused as well: a quantized one without flash attention.
                if refused.quantized_v { run.type_k = run.type_v } else { run.type_v = run.type_k }
            }
            Err(memory::Error::QuantizedV { .. }) if run.type_v.is_quantized => {
                refused.quantized_v = true;
                run.type_v = ggml_type::f16();
            }
            other => return Ok((other?, refused)),
        }
    }
}
