//! A machine: its devices, its host, and what was measured of them.

use super::{Block, Page};
use crate::machine::Machine;
use crate::memory::overhead::overhead;
use crate::report::table::Table;

/// llama.cpp's own micro-batch (`common/common.h`, b11434), for which overhead is shown.
const UBATCH: u32 = 512;

pub fn page(machine: &Machine) -> Page {
    let mut page = Page::new("Machine", "This machine as plans see it", "");
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
    page.push(Block::Table(String::new(), table));
    // What is kept free of each device, and why.
    let rows = machine.devices.iter().map(|device| {
        let known = overhead(device, UBATCH);
        [device.name.clone(), known.peak.to_string(), device.margin().to_string(), known.source.into_owned()]
    });
    page.push(Block::table("Kept free of each device", Table::rows_of("device|>overhead|>margin|", rows)));
    page
}
