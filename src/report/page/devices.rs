//! A machine: its devices, its host, what was measured of them, and how well calibrated speeds meet their measurements.

use serde::Serialize;

use super::{Block, Document, Page};
use crate::bytes::Bytes;
use crate::evidence;
use crate::machine::{Device, Machine};
use crate::memory::overhead::overhead;
use crate::number::{fixed, signed, typeset};
use crate::report::table::{Table, row};
use crate::speed::fit::Residual;
use crate::speed::prices;

/// llama.cpp's own micro-batch (`common/common.h`, b11434), for which overhead is shown.
const UBATCH: u32 = 512;

/// The document `moeplan/devices/1`: a machine file with its schema's name, and what is known beside it where it is this computer.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Devices {
    pub schema: &'static str,
    #[serde(flatten)]
    pub machine: Machine,
    /// The driver's version, where a driver was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// Main memory that could be had now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<Bytes>,
    /// What a plan would leave free on each device.
    pub margin: Bytes,
    /// How well its speeds meet what they were found from, after `--calibrate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// How well the constants meet what they were found from.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Calibration {
    pub basis: String,
    /// Half of the prompt measurements are met within this share.
    pub prompt_median_error: Option<f64>,
    pub generate_median_error: Option<f64>,
    /// What is not as a data sheet or the law would have it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub odd: Vec<String>,
    pub measurements: Vec<Residual>,
}

impl From<Machine> for Devices {
    /// A machine that was described.
    fn from(machine: Machine) -> Self {
        let (schema, margin) = ("moeplan/devices/1", machine.margin());
        Self {
            schema,
            machine,
            driver: None,
            source: None,
            processor: None,
            available: None,
            margin,
            calibration: None,
        }
    }
}

impl Document for Devices {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Machine", "This machine as plans see it", "");
        let (devices, host) = (&self.machine.devices, &self.machine.host);
        let mut table = Table::of("device|backend|>total|>free|");
        for device in devices {
            let backend = format!("{:?}", device.backend).to_lowercase();
            let description = device.description.as_deref().unwrap_or_default();
            table.row(row![device.buffer, backend, device.total, device.free, description]);
        }
        let ram = host.ram.map_or_else(|| "unknown".to_string(), |ram| ram.to_string());
        let counts = [(host.cores, "cores"), (host.threads, "threads")];
        let counts = counts.into_iter().filter_map(|(n, what)| Some(format!("{} {what}", n?)));
        table.row(row!["Host", format!("{:?}", host.isa), ram, "", counts.collect::<Vec<_>>().join(", ")]);
        page.push(Block::Table(String::new(), table));
        let rows = devices.iter().map(|device| {
            let known = overhead(device, UBATCH);
            row![device.name, known.peak, device.margin(), known.source]
        });
        page.push(Block::table("Kept free on each device", Table::rows_of("device|>overhead|>margin|", rows)));
        page.push(self.notes().into_iter().map(Block::Prose));
        page.push(self.calibration.iter().flat_map(|calibration| calibrated(&self.machine, calibration)));
        page.detail(self.calibration.as_ref().and_then(|calibration| {
            let rows = calibration.measurements.iter().map(|one| {
                let [seconds, predicted] = [one.seconds, one.predicted].map(|seconds| format!("{seconds:.3} s"));
                row![seconds, predicted, format!("{}%", typeset(&signed(100.0 * one.error(), 0))), one.what]
            });
            Block::table("Measurements", Table::rows_of(">measured|>by these speeds|>difference|measurement", rows))
        }));
        vec![page]
    }
}

impl Devices {
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(source) = &self.source {
            let driver = self.driver.as_ref().map_or(String::new(), |driver| format!(" {driver}"));
            notes.push(format!("Devices by {source}{driver}."));
        }
        notes.extend(self.machine.budget_notes());
        if let Some(processor) = &self.processor {
            let available = self.available.map_or(String::new(), |bytes| format!(", {bytes} of memory available"));
            notes.push(format!("Processor: {processor}{available}."));
        }
        let margin = self.margin;
        notes.push(if !self.machine.devices.is_empty() {
            format!("A plan leaves {margin} free on each device; `moeplan verify --measure-prompt 4096` measures what they need.")
        } else if self.processor.is_none() {
            "No device is described: plans use the host alone.".to_string()
        } else {
            "No GPU was found: there is no NVIDIA driver, and no llama-server (MOEPLAN_LLAMA_SERVER, PATH) lists one. \
             Describe yours with --vram, --device or --machine."
                .to_string()
        });
        let is_measured = self.machine.devices.iter().any(|device| device.calibration.is_some());
        let kept = evidence::store::path().filter(|_| is_measured);
        notes.extend(kept.map(|path| format!("Measurements are kept in {}.", path.display())));
        notes
    }
}

fn calibrated(machine: &Machine, calibration: &Calibration) -> Vec<Block> {
    let mut blocks = vec![Block::Heading("Speeds".into()), Block::Prose(calibration.basis.clone())];
    let device = |device: &Device| {
        let r = prices::device_rates(device);
        let facts = [
            ("memory", format!("weights {:.0} GB/s, keys and values {:.0} GB/s", r.weights, r.cache)),
            ("arithmetic", format!("products {:.1} TFLOP/s, attention {:.1} TFLOP/s", r.products, r.attention)),
            ("copies", format!("{:.1} GB/s from pinned memory, {:.1} GB/s from mapped files", r.pinned, r.pageable)),
            (
                "waits",
                format!(
                    "{:.1} µs per operation, {:.0} µs per pass, {:.0} µs per copied tensor, {:.0} µs per change of device",
                    r.op, r.graph, r.offload, r.switch
                ),
            ),
        ];
        Block::Table(device.name.clone(), Table::facts(facts.map(|(name, fact)| (name, Some(fact)))))
    };
    blocks.extend(machine.devices.iter().map(device));
    let r = prices::host_rates(&machine.host);
    let memory = format!("{:.0} GB/s, {:.1} GB/s per thread", r.memory, r.by_thread);
    let host =
        [("memory", Some(memory)), ("arithmetic", Some(format!("products {:.0} GFLOP/s per thread", r.products)))];
    blocks.push(Block::Table("Host".into(), Table::facts(host)));
    let errors = [("prompt", calibration.prompt_median_error), ("generation", calibration.generate_median_error)];
    blocks.extend(errors.into_iter().filter_map(|(phase, error)| {
        Some(Block::Prose(format!(
            "Half of the {phase} measurements are predicted within {}%.",
            fixed(100.0 * error?, 1)
        )))
    }));
    if !calibration.odd.is_empty() {
        blocks.push(Block::Prose(format!("Odd: {}.", calibration.odd.join("; "))));
    }
    blocks
}
