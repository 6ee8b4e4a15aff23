//! The flags that describe a machine, and what is found here without them. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;

use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host, Isa, Machine};

/// How the machine is described; with nothing said, it is this one.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Memory of each device, in order: 24G,12G. With --machine: the budgets of its first devices, the others unused.
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',')]
    pub vram: Vec<Bytes>,
    /// One device by llama.cpp's name: CUDA0=24G, `RPC0[HOST:PORT]=8G`; repeatable.
    #[arg(long, value_name = "NAME=SIZE", conflicts_with_all = ["vram", "machine"])]
    pub device: Vec<String>,
    /// Main memory.
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<Bytes>,
    /// What the devices of --vram are [default: cuda].
    #[arg(long, value_enum)]
    pub backend: Option<Backend>,
    /// A machine file, as `moeplan devices --json` writes it.
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Memory to leave free on every device.
    #[arg(long, value_name = "SIZE")]
    pub margin: Option<Bytes>,
}

impl MachineArgs {
    /// Whether any flag says what the machine is.
    pub fn is_given(&self) -> bool {
        !self.vram.is_empty()
            || !self.device.is_empty()
            || self.ram.is_some()
            || self.backend.is_some()
            || self.machine.is_some()
            || self.margin.is_some()
    }

    /// The machine they describe, or this one.
    pub fn machine(&self) -> anyhow::Result<Machine> {
        let mut machine = match &self.machine {
            Some(path) => budgeted(read(path)?, &self.vram)?,
            None => self.described()?,
        };
        if self.ram.is_some() {
            machine.host.ram = self.ram;
        }
        Ok(machine)
    }

    /// From `--vram`, `--device` or `--backend cpu`; with none of them, what is found here.
    fn described(&self) -> anyhow::Result<Machine> {
        let host = Host::default();
        if !self.device.is_empty() {
            let devices = self.device.iter().map(|text| Device::parse(text)).collect::<Result<_, _>>()?;
            return Ok(Machine::new(devices, host)?);
        }
        let backend = self.backend.unwrap_or(Backend::Cuda);
        if !self.vram.is_empty() {
            return Ok(Machine::new(Device::of_budgets(backend, &self.vram)?, host)?);
        }
        let only_host = self.backend == Some(Backend::Cpu) || self.ram.is_some();
        if only_host { Ok(Machine::new(Vec::new(), host)?) } else { detected() }
    }
}

/// The machine with these budgets for its first devices, and no others; as it is without any.
fn budgeted(mut machine: Machine, budgets: &[Bytes]) -> anyhow::Result<Machine> {
    if !budgets.is_empty() {
        let (asked, known) = (budgets.len(), machine.devices.len());
        anyhow::ensure!(asked <= known, "--vram gives {asked} sizes, and the machine file describes {known} devices");
        machine.devices.truncate(asked);
        for (device, budget) in machine.devices.iter_mut().zip(budgets) {
            (device.total, device.free) = (*budget, *budget);
        }
    }
    Ok(machine)
}

/// A machine file.
fn read(path: &std::path::Path) -> anyhow::Result<Machine> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let machine: Machine = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is no machine file as `moeplan devices --json` writes it", path.display()))?;
    Ok(Machine::new(machine.devices, machine.host)?)
}

/// This computer: its memory and processor.
fn detected() -> anyhow::Result<Machine> {
    let mut system = sysinfo::System::new()?;
    system.refresh_memory();
    let cores = sysinfo::System::physical_core_count().ok().and_then(|n| u32::try_from(n).ok());
    let threads = std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
    // A container may be given fewer threads than the computer has cores.
    let cores = cores.map(|n| threads.map_or(n, |threads| n.min(threads)));
    let host = Host { ram: Some(Bytes(system.total_memory())), isa: isa(), cores, threads, rates: None };
    Ok(Machine::new(Vec::new(), host)?)
}

/// What this processor repacks.
#[cfg(target_arch = "x86_64")]
fn isa() -> Isa {
    let tiles = || std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" amx_int8"));
    match (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2")) {
        (true, _) if tiles() => Isa::X86Amx,
        (true, _) => Isa::X86Avx512,
        (false, true) => Isa::X86Avx2,
        (false, false) => Isa::Generic,
    }
}

/// What this processor repacks.
#[cfg(target_arch = "aarch64")]
fn isa() -> Isa {
    Isa::ArmNeon
}

/// What this processor repacks.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn isa() -> Isa {
    Isa::Generic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_for_the_first_devices_of_a_machine_file() {
        let devices = Device::of_budgets(Backend::Cuda, &[Bytes::mib(80), Bytes::mib(40)]).unwrap();
        let machine = Machine::new(devices, Host::default()).unwrap();
        assert_eq!(budgeted(machine.clone(), &[]).unwrap(), machine);
        let one = budgeted(machine.clone(), &[Bytes::mib(8)]).unwrap();
        assert_eq!(one.devices.iter().map(|device| device.total).collect::<Vec<_>>(), [Bytes::mib(8)]);
        assert!(budgeted(machine, &[Bytes::mib(8); 3]).unwrap_err().to_string().contains("describes 2 devices"));
    }
}
