//! Memory by device as a table: the terms, their sum, and how full the budget is.

use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::memory::MemoryByDevice;
use crate::report::bar::bar;
use crate::report::table::{Align, Table};

/// Columns of the bar.
const BAR_WIDTH: usize = 16;

/// One row a device and one for each kind of host memory, with the budget and how much of it is taken.
pub fn memory_table(memory: &MemoryByDevice, machine: &Machine) -> Table {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("model", Align::Right),
        ("context", Align::Right),
        ("compute", Align::Right),
        ("overhead", Align::Right),
        ("total", Align::Right),
        ("budget", Align::Right),
        ("", Align::Left),
    ]);
    for (name, row) in memory {
        let device = machine.devices.iter().find(|device| device.name == *name);
        let budget = device.map(|device| device.total).or(machine.host.ram.filter(|_| name == "Host"));
        table.row([
            name.clone(),
            row.model.to_string(),
            row.context.to_string(),
            row.compute.to_string(),
            if row.overhead == Bytes(0) { "-".to_string() } else { row.overhead.to_string() },
            row.total().to_string(),
            budget.map_or_else(|| "-".to_string(), |budget| budget.to_string()),
            budget.map_or_else(String::new, |budget| format!("▕{:<BAR_WIDTH$}▏", bar(share(row.total(), budget), BAR_WIDTH))),
        ]);
    }
    table
}

#[expect(clippy::cast_precision_loss, reason = "a display value")]
fn share(part: Bytes, whole: Bytes) -> f64 {
    if whole == Bytes(0) { 1.0 } else { part.0 as f64 / whole.0 as f64 }
}
