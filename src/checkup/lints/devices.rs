//! Lints of launches on several devices: layouts that nobody chose, and what gathers on one device.

use std::collections::BTreeMap;

use super::{Facts, Finding, found};
use crate::bytes::Bytes;
use crate::machine::{Backend, Device};
use crate::placement::Buffer;
use crate::run::SplitMode;

/// Whether several devices hold layers.
fn several(facts: &Facts<'_>) -> bool {
    let mut used = facts.forecast.placement.layers.iter().flatten();
    let first = used.next();
    facts.forecast.placement.devices.len() > 1 && first.is_some_and(|first| used.any(|other| other != first))
}

/// RPC devices exist only where `--rpc` names their servers (`common/arg.cpp` `add_rpc_devices`, b11434).
pub(super) fn rpc_not_named(facts: &Facts<'_>) -> Option<Finding> {
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
    found(
        format!(
            "{} {} no part: llama.cpp has an RPC device only where `--rpc` names its server",
            names.join(", "),
            if names.len() == 1 { "takes" } else { "take" }
        ),
        format!("add `--rpc {}` to the command", servers.join(",")),
    )
}

/// Without `-ts` the layout follows the memory that happens to be free.
pub(super) fn no_tensor_split(facts: &Facts<'_>) -> Option<Finding> {
    let given = facts.run.tensor_split.iter().any(|share| *share != 0.0);
    if given || facts.run.split_mode != SplitMode::Layer || !several(facts) {
        return None;
    }
    let devices = facts.forecast.placement.taking_part(facts.machine);
    let shares: Vec<String> = devices.map(|(_, device)| (device.free.0 >> 20).max(1).to_string()).collect();
    found(
        format!(
            "without `-ts` the layers of {} follow the memory that is free when it starts",
            facts.device_names().join(", ")
        ),
        format!("`-ts {}` is the layout of these figures", shares.join(",")),
    )
}

/// Any override turns pipeline parallelism off (`src/llama-context.cpp`, b11434).
pub(super) fn overrides_stop_pipeline(facts: &Facts<'_>) -> Option<Finding> {
    let run = facts.run;
    let on_device = facts.forecast.placement.layers.iter().all(Option::is_some);
    let mut devices = facts.forecast.placement.taking_part(facts.machine);
    let events = devices.all(|(_, device)| matches!(device.backend, Backend::Cuda | Backend::Rocm));
    let possible = several(facts) && on_device && events && run.offload_kqv && run.split_mode == SplitMode::Layer;
    (possible && !run.overrides.is_empty()).then(|| {
        found(
            "overrides switch pipeline parallelism off: the devices take turns on a prompt",
            "where everything fits, leave the overrides out",
        )
    })?
}

/// Prompts copy host experts of every block into the first device (`ggml/src/ggml-backend.cpp`, b11434).
pub(super) fn copies_on_first_device(facts: &Facts<'_>) -> Option<Finding> {
    if !several(facts) || !facts.run.op_offload {
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
}

/// Nearly all experts that are on devices are on one of them.
pub(super) fn experts_on_one_device(facts: &Facts<'_>) -> Option<Finding> {
    if !several(facts) || facts.run.overrides.is_empty() {
        return None;
    }
    let mut by_device: BTreeMap<u16, Bytes> = BTreeMap::new();
    for (_, copy) in facts.forecast.placement.experts(facts.model) {
        if let Buffer::Device(index) = copy.buffer {
            *by_device.entry(index).or_default() += copy.bytes;
        }
    }
    let sum: Bytes = by_device.values().copied().sum();
    let (index, most) = by_device.into_iter().max_by_key(|(_, bytes)| *bytes)?;
    let name = &facts.machine.device(index)?.name;
    (most.0 / 9 >= (sum.0 - most.0) && most > Bytes(0)).then(|| {
        found(
            format!("of {sum} of experts on devices, {most} are on {name}: `-ncmoe` and bare patterns empty one device and fill another"),
            "give each device its own blocks (`moeplan plan` does), or move the split with `-ts`",
        )
    })?
}
