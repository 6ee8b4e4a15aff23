//! A machine: its devices, its host, and what was measured of them.

use super::{Block, Page};
use crate::machine::{Device, Machine};
use crate::memory::overhead::overhead;
use crate::report::table::Table;

/// llama.cpp's own micro-batch (`common/common.h`, b11434), for which overhead is shown.
const UBATCH: u32 = 512;

/// The page of a machine.
pub fn page(machine: &Machine) -> Page {
    let mut page = Page::new("Machine", "This machine as plans see it", "");
    page.push(Block::Table(String::new(), devices(machine)));
    page.push(Block::filled("Kept free of each device", learned(machine)));
    page
}

fn devices(machine: &Machine) -> Table {
    let mut table = Table::of("device|backend|>total|>free|");
    for device in &machine.devices {
        let backend = format!("{:?}", device.backend).to_lowercase();
        let name = device.description.clone().unwrap_or_default();
        table.row([device.buffer.clone(), backend, device.total.to_string(), device.free.to_string(), name]);
    }
    let host = &machine.host;
    let ram = host.ram.map_or_else(|| "unknown".to_string(), |ram| ram.to_string());
    let cores = match (host.cores, host.threads) {
        (Some(cores), Some(threads)) => format!("{cores} cores, {threads} threads"),
        (Some(cores), None) => format!("{cores} cores"),
        (None, Some(threads)) => format!("{threads} threads"),
        (None, None) => String::new(),
    };
    table.row(["Host".to_string(), format!("{:?}", host.isa), ram, String::new(), cores]);
    table
}

/// What is kept free of each device, and why.
fn learned(machine: &Machine) -> Table {
    let row = |device: &Device| {
        let known = overhead(device, UBATCH);
        [device.name.clone(), known.peak.to_string(), device.margin().to_string(), known.source.into_owned()]
    };
    Table::rows_of("device|>overhead|>margin|", machine.devices.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;
    use crate::machine::{Backend, Calibration, Host};

    #[test]
    fn a_machine_shows_what_was_measured_and_what_was_not() {
        let mut devices = Device::of_budgets(Backend::Cuda, &[Bytes::mib(24576), Bytes::mib(12288)]).unwrap();
        devices[0].description = Some("NVIDIA \u{1b}[31m".into());
        devices[0].calibration = Some(Calibration {
            runs: 3,
            loaded: Bytes::mib(580),
            peaks: [(512, Bytes::mib(700)), (2048, Bytes::mib(790))].into(),
            margin: Bytes::mib(32),
            driver: None,
            build: 11434,
        });
        let host = Host { cores: Some(8), threads: Some(16), ..Host::default() };
        let page = page(&Machine::new(devices, host).unwrap());
        let shown = crate::report::text::report(&vec![page].into(), false);
        for part in [
            "24.00 GiB",
            "NVIDIA \\u{1b}[31m",
            "8 cores, 16 threads",
            "700.00 MiB   32.00 MiB  measured here in 3 runs with llama.cpp b11434",
            "712.00 MiB  256.00 MiB  default: no measurement of this device; 712.00 MiB, the most that is known",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
