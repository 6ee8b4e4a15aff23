//! `devices`: the machine as moeplan sees it, what was learned of it, and both as a file for `--machine`. [I/O]

use super::calibrate::{self, CalibrateArgs, Calibration};
use super::machine::{Found, MachineArgs, found};
use super::{Outcome, Output};
use crate::bytes::Bytes;
use crate::cli::Format;
use crate::evidence;
use crate::report::page::devices;

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan devices                                                 what is found here
  moeplan devices --calibrate                                     how fast it is, for every later plan
  moeplan devices --vram 24G,12G --ram 128G --json -o pc.json     another, for --machine pc.json")]
pub struct Args {
    /// A machine to describe instead of this one.
    #[command(flatten)]
    machine: MachineArgs,
    /// What it does in a second.
    #[command(flatten)]
    calibrate: CalibrateArgs,
}

/// The document `moeplan/devices/1`: a machine file with its schema's name.
#[derive(Debug, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Document {
    schema: &'static str,
    #[serde(flatten)]
    found: Found,
    /// What a plan would leave free on each device.
    margin: Bytes,
    /// How well its speeds meet what they were found from, after `--calibrate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Calibration>,
}

impl Document {
    pub fn new(found: Found, margin: Bytes, calibration: Option<Calibration>) -> Self {
        Self { schema: "moeplan/devices/1", found, margin, calibration }
    }
}

/// Runs `devices`.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    if args.calibrate.calibrate {
        return calibrate::run(&args.calibrate, &args.machine, output);
    }
    let here = if args.machine.is_given() { args.machine.machine()?.into() } else { found()? };
    let margin = args.machine.margin(&here.machine);
    match output.format() {
        Format::Json => output.json(&Document::new(here, margin, None))?,
        _ => {
            output.pages(&vec![devices::page(&here.machine)].into())?;
            for line in about(&here, margin) {
                output.say(&line);
            }
        }
    }
    Ok(Outcome::Yes)
}

/// Where the figures come from, for people.
fn about(here: &Found, margin: Bytes) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(source) = &here.source {
        let driver = here.driver.as_ref().map_or(String::new(), |driver| format!(" {driver}"));
        lines.push(format!("devices by {source}{driver}"));
    }
    lines.extend(here.machine.budget_notes());
    if let Some(processor) = &here.processor {
        let available = here.available.map_or(String::new(), |bytes| format!(", {bytes} of memory available"));
        lines.push(format!("processor: {processor}{available}"));
    }
    if here.machine.devices.is_empty() {
        lines.push(
            "no GPU was found: there is no NVIDIA driver, and no llama-server (MOEPLAN_LLAMA_SERVER, PATH) that lists one; \
             describe yours with --vram, --device or --machine"
                .to_string(),
        );
    } else {
        lines.push(format!(
            "a plan leaves {margin} free on each device; `moeplan verify --measure-prompt 4096` measures what they need"
        ));
    }
    if here.machine.devices.iter().any(|device| device.calibration.is_some())
        && let Some(path) = evidence::store::path()
    {
        lines.push(format!("what was measured is kept in {}", path.display()));
    }
    lines
}
