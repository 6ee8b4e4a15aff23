//! Temporary buffers of the graphs, by device and on the host.

use std::collections::BTreeMap;

use super::caches::Caches;
use super::formula::{self, Launch};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::model::Model;
use crate::placement::Placement;
use crate::run::{ContextNumbers, RunConfig};

/// Where a compute figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// The graph of this architecture was laid out and allocated as llama.cpp b11434 does.
    Replay,
    /// Closed forms: within some per cent on plain attention, 10–20% elsewhere.
    Formula,
}

/// Compute bytes by device name and `Host`, and how they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compute {
    /// Bytes by device name (`CUDA0`, `RPC0`) and `Host`.
    pub by_device: BTreeMap<String, Bytes>,
    /// How they were found.
    pub basis: Basis,
}

/// The compute buffers of `model` launched as `run`, with their basis.
pub fn predict(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    numbers: &ContextNumbers,
    caches: &Caches,
    placement: &Placement,
) -> Compute {
    let by_device = formula::compute(&Launch { model, machine, run, numbers, caches, placement });
    Compute { by_device, basis: Basis::Formula }
}

/// The compute buffers of `model` launched as `run`: bytes by device name and `Host`.
pub fn compute(
    model: &Model,
    machine: &Machine,
    run: &RunConfig,
    numbers: &ContextNumbers,
    caches: &Caches,
    placement: &Placement,
) -> BTreeMap<String, Bytes> {
    predict(model, machine, run, numbers, caches, placement).by_device
}
