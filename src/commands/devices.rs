//! `devices`: the machine as moeplan sees it, and as a file for `--machine`. [I/O]

use std::fmt::Write as _;

use super::calibrate::{self, CalibrateArgs};
use super::machine::MachineArgs;
use super::{Outcome, Output};
use crate::cli::Format;
use crate::machine::Machine;
use crate::report::table::{Align, Table};

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan devices                                              what is found here
  moeplan devices --vram 24G,12G --ram 128G --json -o pc.json  a machine that is not here, for --machine pc.json")]
pub struct Args {
    /// A machine to describe instead of this one.
    #[command(flatten)]
    machine: MachineArgs,
    /// What it does in a second.
    #[command(flatten)]
    calibrate: CalibrateArgs,
}

/// The document: a machine file with its schema's name.
#[derive(Debug, serde::Serialize)]
struct Document {
    schema: &'static str,
    #[serde(flatten)]
    machine: Machine,
}

/// Runs `devices`.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    if args.calibrate.calibrate {
        return calibrate::run(&args.calibrate, &args.machine, output);
    }
    let machine = args.machine.machine()?;
    match output.format() {
        Format::Json => output.json(&Document { schema: "moeplan/devices/1", machine })?,
        Format::Markdown => output.answer(&table(&machine).markdown())?,
        Format::Text => output.answer(&text(&machine))?,
    }
    Ok(Outcome::Yes)
}

fn table(machine: &Machine) -> Table {
    let columns = [("device", Align::Left), ("backend", Align::Left), ("total", Align::Right), ("free", Align::Right)];
    let mut table = Table::new(&columns);
    for device in &machine.devices {
        let backend = format!("{:?}", device.backend).to_lowercase();
        table.row([device.buffer.clone(), backend, device.total.to_string(), device.free.to_string()]);
    }
    let ram = machine.host.ram.map_or_else(|| "unknown".to_string(), |ram| ram.to_string());
    table.row(["Host".to_string(), format!("{:?}", machine.host.isa), ram, String::new()]);
    table
}

fn text(machine: &Machine) -> String {
    let mut out = table(machine).text();
    if machine.devices.is_empty() {
        let _ = writeln!(out, "\nGPUs are not detected yet: describe yours with --vram, --device or --machine.");
    }
    out
}
