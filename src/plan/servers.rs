//! RPC servers that a plan has no use for: left out, and those after them numbered as llama.cpp then numbers them.

use super::Request;
use super::solver::Candidate;
use crate::inspection::Warning;
use crate::machine::{Backend, Device, Machine};
use crate::placement::Buffer;

/// The machine and the request without the servers on whose devices `candidate` has nothing; `None` where it uses them all.
pub(super) fn without_idle(
    machine: &Machine,
    request: &Request,
    candidate: &Candidate,
) -> Option<(Machine, Request, Warning)> {
    let placed = candidate.forecast.placement.copies.iter().flatten().filter_map(|copy| match copy.buffer {
        Buffer::Device(at) => Some(at),
        _ => None,
    });
    let used: Vec<u16> = candidate.forecast.placement.devices.iter().copied().chain(placed).collect();
    let servers_in_use: Vec<&str> = used.iter().filter_map(|at| machine.device(*at)?.endpoint()).collect();
    let is_named = |device: &Device| request.run.overrides.iter().any(|rule| rule.buffer == device.buffer);
    let is_idle = |device: &&Device| {
        device.endpoint().is_some_and(|server| !servers_in_use.contains(&server)) && !is_named(device)
    };
    let idle: Vec<&Device> = machine.devices.iter().filter(is_idle).collect();
    if idle.is_empty() {
        return None;
    }
    let kept: Vec<Device> = machine.devices.iter().filter(|device| !is_idle(device)).cloned().collect();
    let left = Machine::new(kept, machine.host.clone()).ok()?;
    // Buffer types keep their names: they count the devices of one server.
    let new_name = |device: &Device| left.devices.iter().find(|other| other.buffer == device.buffer).map(|d| &d.name);
    let renamed: Vec<String> = (machine.devices.iter())
        .filter(|device| device.backend == Backend::Rpc)
        .filter_map(|device| new_name(device).filter(|new| **new != device.name).map(|new| (device, new)))
        .map(|(device, new)| format!("{} is {new}", device.name))
        .collect();
    let mut request = request.clone();
    request.run.rpc.retain(|server| !idle.iter().any(|device| device.endpoint() == Some(server)));
    let still_named = |name: String| match machine.devices.iter().find(|device| device.name == name) {
        Some(device) => new_name(device).cloned(),
        None => Some(name),
    };
    request.run.devices = request.run.devices.map(|names| names.into_iter().filter_map(still_named).collect());
    let mut servers: Vec<&str> = idle.iter().filter_map(|device| device.endpoint()).collect();
    servers.dedup();
    let (what, it) = if servers.len() == 1 { ("server", "it") } else { ("servers", "them") };
    let then = if renamed.is_empty() { String::new() } else { format!("; {} without {it}", renamed.join(", ")) };
    let warning = Warning {
        code: "server-not-used".into(),
        message: format!("nothing goes to the RPC {what} {}: the command leaves {it} out{then}", servers.join(", ")),
        hint: format!("a larger budget for {it} may change that"),
    };
    Some((left, request, warning))
}
