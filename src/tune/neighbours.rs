//! Which of a plan's alternatives are worth a measurement, and what `--fit on` is given to be their equal.

use std::collections::BTreeMap;

use super::{Candidate, Kind, Predicted};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::plan::Request;
use crate::plan::solver::Strategy;
use crate::run::{RunConfig, args};

/// Neighbours that take part, the most promising ones.
pub const MOST: usize = 5;
/// MiB that `--fit` leaves free of a device by default (`common/common.h` `fit_params_target`, b11434).
const FIT_MARGIN: u64 = 1024;

/// A launch that differs from the plan in one thing.
#[derive(Debug, Clone)]
pub struct Alternative {
    /// What differs.
    pub what: String,
    /// The launch.
    pub run: RunConfig,
    /// What is predicted of it.
    pub predicted: Predicted,
}

/// What tells launches apart in a journal: their arguments without addresses and without what other programs leave free.
pub fn id(run: &RunConfig, machine: &Machine) -> String {
    let mut run = RunConfig { rpc: Vec::new(), fit_target: Vec::new(), ..run.clone() };
    for rule in &mut run.overrides {
        if let Some(device) = machine.devices.iter().find(|device| device.buffer == rule.buffer) {
            rule.buffer.clone_from(&device.name);
        }
    }
    args::args(&run).join(" ")
}

/// A candidate of a launch.
pub fn candidate(
    kind: Kind,
    what: &str,
    run: &RunConfig,
    machine: &Machine,
    predicted: Option<Predicted>,
) -> Candidate {
    Candidate { what: what.to_string(), kind, id: id(run, machine), args: args::args(run), predicted }
}

/// The alternatives that may be taken in the plan's place, the fastest by prediction first: they serve the same context with
/// the same cache, and leave what the user fixed as it is.
pub fn promising<'a>(plan: &RunConfig, alternatives: &'a [Alternative], request: &Request) -> Vec<&'a Alternative> {
    let levers = request.levers;
    let may = |other: &RunConfig| {
        let same_service = (other.n_ctx, other.n_parallel, other.type_k, other.type_v)
            == (plan.n_ctx, plan.n_parallel, plan.type_k, plan.type_v);
        same_service
            && (levers.ubatch || other.n_ubatch == plan.n_ubatch)
            && (levers.batch || other.n_batch == plan.n_batch)
            && (levers.load_mode || other.load_mode == plan.load_mode)
            && (levers.threads || other.n_threads == plan.n_threads)
            && (levers.op_offload || other.op_offload == plan.op_offload)
            && (request.strategy == Strategy::Auto || other.overrides == plan.overrides)
    };
    let mut found: Vec<&Alternative> =
        alternatives.iter().filter(|other| other.run != *plan && may(&other.run)).collect();
    found.sort_by(|a, b| a.predicted.turn_seconds.total_cmp(&b.predicted.turn_seconds));
    let mut seen: Vec<&RunConfig> = Vec::new();
    found.retain(|other| {
        let is_new = !seen.contains(&&other.run);
        seen.push(&other.run);
        is_new
    });
    found.truncate(MOST);
    found
}

/// What llama.cpp is started with to choose by itself: the user's own settings, the plan's context, slots and cache, and of
/// every device only its budget. `free` is what each device has free, by name, before anything is started.
pub fn fit(plan: &RunConfig, request: &Request, machine: &Machine, free: &BTreeMap<String, Bytes>) -> RunConfig {
    let all = || machine.devices.iter().map(|device| device.name.clone()).collect();
    let devices: Vec<String> = request.run.devices.clone().unwrap_or_else(all);
    let target = |name: &String| {
        let device = machine.devices.iter().find(|device| device.name == *name || device.buffer == *name);
        let others = device.map_or(Bytes(0), |device| {
            free.get(&device.name).copied().unwrap_or(device.free).saturating_sub(device.total)
        });
        u32::try_from((others.0 >> 20) + FIT_MARGIN).unwrap_or(u32::MAX)
    };
    RunConfig {
        program: plan.program,
        n_ctx: plan.n_ctx,
        n_parallel: plan.n_parallel,
        type_k: plan.type_k,
        type_v: plan.type_v,
        flash_attn: plan.flash_attn,
        kv_unified: plan.kv_unified,
        embeddings: plan.embeddings,
        n_gpu_layers: RunConfig::default().n_gpu_layers,
        tensor_split: Vec::new(),
        overrides: Vec::new(),
        fit: true,
        fit_target: devices.iter().map(target).collect(),
        rpc: plan.rpc.clone(),
        devices: Some(devices),
        ..request.run.clone()
    }
}
