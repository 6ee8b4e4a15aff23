//! Which devices take part, and which layer slot each of them holds.
//!
//! Source: `src/llama.cpp` `llama_prepare_model_devices`, `src/llama-model.cpp` `load_tensors`, b11434.

use super::Error;
use crate::machine::{Backend, Device, Machine};
use crate::run::behaviour::LayerOrder;
use crate::run::{RunConfig, SplitMode};

/// `Machine::devices` that take part, in llama.cpp's order.
pub(super) fn participating(machine: &Machine, run: &RunConfig) -> Result<Vec<u16>, Error> {
    assert!(machine.devices.len() < usize::from(u16::MAX), "a machine has few devices");
    for server in &run.rpc {
        let known = |device: &&Device| device.backend == Backend::Rpc && device.endpoint().is_none_or(|e| e == server);
        if !machine.devices.iter().any(|device| known(&device)) {
            return Err(unknown(machine, "--rpc", server));
        }
    }
    let mut devices = match &run.devices {
        Some(names) => named(machine, names, &run.rpc)?,
        None => default(machine, run),
    };
    match run.split_mode {
        SplitMode::None => devices = main_device(&devices, run.main_gpu)?,
        SplitMode::Row => {
            if let Some(device) = devices.first().and_then(|i| machine.device(*i)) {
                return Err(Error::SplitRow { device: device.name.clone() });
            }
        }
        SplitMode::Tensor if devices.is_empty() => return Err(Error::NoDevice),
        SplitMode::Layer | SplitMode::Tensor => {}
    }
    Ok(devices)
}

/// The devices of `--device`, in its order; llama.cpp compares names without regard to case. RPC devices are numbered as their
/// servers are named.
fn named(machine: &Machine, names: &[String], servers: &[String]) -> Result<Vec<u16>, Error> {
    let registered = machine.registered(servers);
    let is_known = machine.devices.iter().all(|device| device.backend != Backend::Rpc || device.endpoint().is_some());
    names
        .iter()
        .map(|name| {
            let remote = name.get(..3).filter(|prefix| prefix.eq_ignore_ascii_case("RPC") && is_known);
            let number = remote.and_then(|_| name.get(3..)?.parse::<usize>().ok());
            if let Some(at) = number.and_then(|number| registered.get(number)) {
                return Ok(*at);
            }
            let found = machine.devices.iter().position(|d| d.name.eq_ignore_ascii_case(name) || d.buffer == *name);
            let at = found.and_then(|i| u16::try_from(i).ok()).ok_or_else(|| unknown(machine, "--device", name))?;
            must_be_registered(machine, at, servers, &format!("--device {name}"))?;
            if number.is_some() {
                // It has a server that is named, and another number there.
                return Err(unknown(machine, "--device", name));
            }
            Ok(at)
        })
        .collect()
}

/// Refuses a device whose server the command does not name: llama.cpp does not have it then.
pub(super) fn must_be_registered(machine: &Machine, at: u16, servers: &[String], word: &str) -> Result<(), Error> {
    let Some(device) = machine.device(at) else { return Ok(()) };
    match device.endpoint().filter(|server| !servers.iter().any(|named| named == server)) {
        Some(server) => Err(Error::NoServer { word: word.into(), name: device.name.clone(), server: server.into() }),
        None => Ok(()),
    }
}

/// Without `--device`: RPC servers that the command registers, then the rest.
fn default(machine: &Machine, run: &RunConfig) -> Vec<u16> {
    let local = |(_, device): &(u16, &Device)| device.backend != Backend::Rpc && device.backend != Backend::Cpu;
    let local = (0_u16..).zip(&machine.devices).filter(local).map(|(at, _)| at);
    machine.registered(&run.rpc).into_iter().chain(local).collect()
}

/// `-sm none`: only `-mg`'s device, or none for a negative one.
fn main_device(devices: &[u16], main_gpu: i32) -> Result<Vec<u16>, Error> {
    if devices.is_empty() || main_gpu < 0 {
        return Ok(Vec::new());
    }
    let chosen = usize::try_from(main_gpu).ok().and_then(|i| devices.get(i));
    chosen.map(|device| vec![*device]).ok_or(Error::MainGpu { main_gpu, devices: devices.len() })
}

/// The error that lists what could be named.
pub(super) fn unknown(machine: &Machine, flag: &str, name: &str) -> Error {
    Error::UnknownDevice { flag: flag.into(), name: name.into(), known: known(machine) }
}

/// The buffer types that could be named, comma separated.
pub(crate) fn known(machine: &Machine) -> String {
    let names = machine.devices.iter().map(|device| device.buffer.as_str());
    std::iter::once("CPU").chain(names).collect::<Vec<_>>().join(", ")
}

/// The device of every slot (blocks, then the output); all arithmetic in 32-bit floats, as llama.cpp does it.
#[expect(clippy::cast_precision_loss, reason = "llama.cpp rounds to f32 here")]
pub(super) fn slots(machine: &Machine, run: &RunConfig, devices: &[u16], block_count: u32) -> Vec<Option<u16>> {
    let total = block_count + 1;
    // A negative number is all of them, and so is one beyond them.
    let wanted = u32::try_from(run.n_gpu_layers).unwrap_or(total);
    let counted = if run.rules().layer_order == LayerOrder::BlocksFirst { block_count } else { total };
    let start = counted.saturating_sub(wanted);
    let active = if devices.is_empty() { 0 } else { wanted.min(total) };
    let bounds = bounds(machine, run, devices);
    (0..total)
        .map(|slot| {
            let offset = slot.checked_sub(start).filter(|offset| *offset < active)?;
            let share = offset as f32 / active as f32;
            let at = bounds.partition_point(|bound| *bound <= share);
            devices.get(at).or(devices.last()).copied()
        })
        .collect()
}

/// Running sums of the devices' shares, the last one 1.
#[expect(clippy::cast_precision_loss, reason = "llama.cpp rounds to f32 here")]
fn bounds(machine: &Machine, run: &RunConfig, devices: &[u16]) -> Vec<f32> {
    running(run, devices, |index| {
        let device = machine.device(*index).expect("a device that takes part exists");
        // A device without figures gets the host's; the Linux host says that all its memory is free. Where that is not known
        // either, it has no share.
        let nothing = device.free.0 == 0 && device.total.0 == 0;
        let bytes = if nothing { machine.host.ram.unwrap_or_default() } else { device.free };
        bytes.0 as f32
    })
}

/// Running sums of `-ts`, else of what is `free`.
pub(super) fn running(run: &RunConfig, devices: &[u16], free: impl Fn(&u16) -> f32) -> Vec<f32> {
    // llama.cpp fills the shares that are not given with 0.
    let given: Vec<f32> = (0..devices.len()).map(|i| run.tensor_split.get(i).copied().unwrap_or(0.0)).collect();
    let shares = if given.iter().all(|share| *share == 0.0) { devices.iter().map(free).collect() } else { given };
    let mut sum = 0.0_f32;
    let sums: Vec<f32> = shares
        .iter()
        .map(|share| {
            sum += share;
            sum
        })
        .collect();
    sums.iter().map(|running| running / sum).collect()
}
