//! What earlier runs have shown of a device: its overhead, how it grows, how far predictions were off.
//!
//! A record is kept for each run and device; nothing here is ever shown as measured that was not.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::machine::{Calibration, Device, MARGIN_UNCALIBRATED, Machine};
use crate::measurement::{Expected, peak_of};
use crate::run::SplitMode;
use crate::runtime::{Launch, Observation};

pub const SCHEMA: &str = "moeplan/evidence/1";

/// What is always left free.
pub const MARGIN_LEAST: Bytes = Bytes::mib(32);
/// Runs that it takes for the margin to shrink.
pub const RUNS_ENOUGH: usize = 3;
/// The last runs of a device that count.
const RUNS_KEPT: usize = 20;
/// Tokens of prompt that grow the pools to their peak.
pub const LONG_PROMPT: u32 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub schema: String,
    /// When, in seconds since 1970.
    pub time: u64,
    pub device: String,
    /// The driver's version, where it is known.
    #[serde(default)]
    pub driver: Option<String>,
    pub build: u32,
    /// Its backend (`CUDA`).
    pub backend: String,
    /// Beyond llama.cpp's own sum after loading.
    pub loaded: Bytes,
    pub peak: Bytes,
    /// llama.cpp's own sum as it was predicted.
    pub predicted: Bytes,
    /// llama.cpp's own sum as it was.
    pub own: Bytes,
    /// Tokens in the context after the longest prompt.
    pub prompt: u32,
    /// Tokens of a micro-batch.
    pub ubatch: u32,
    /// The launch's page tables of pinned host memory, part of `loaded` and `peak`; 0 in records of earlier versions.
    #[serde(default)]
    pub page_tables: Bytes,
}

impl Record {
    /// What of `loaded` or `peak` another launch has, too.
    fn of_any_launch(&self, overhead: Bytes) -> Bytes {
        overhead.saturating_sub(self.page_tables)
    }
}

/// The records of a run: one for each device that the driver showed and that says what it is.
pub fn records(
    seen: &Observation,
    expected: &Expected,
    launch: &Launch,
    driver: Option<&str>,
    time: u64,
) -> Vec<Record> {
    // What a second context holds is no device's own, and the log of `-sm tensor` does not say what each device has.
    if launch.run.has_drafting() || launch.run.split_mode == SplitMode::Tensor {
        return Vec::new();
    }
    let peaks = peak_of(&seen.device_used);
    let record = |device: &Device| {
        let own = seen.memory.get(&device.name)?.own();
        let used = |at: &BTreeMap<String, Bytes>| at.get(&device.name).copied();
        let loaded = used(&seen.device_used.loaded)?.saturating_sub(used(&seen.device_used.before)?);
        Some(Record {
            schema: SCHEMA.to_string(),
            time,
            device: device.description.clone()?,
            driver: driver.map(str::to_string),
            build: seen.runtime.build,
            backend: seen.runtime.backend.clone(),
            loaded: loaded.saturating_sub(own),
            peak: used(&peaks)?.saturating_sub(own),
            predicted: expected.memory.get(&device.name)?.own(),
            own,
            prompt: seen.speed.n_prompt.saturating_add(seen.speed.depth),
            ubatch: launch.run.n_ubatch,
            page_tables: expected.page_tables,
        })
    };
    launch.machine.devices.iter().filter_map(record).collect()
}

/// What records say of a device with a driver: those of its newest build, in the order of their time.
pub fn calibration(records: &[Record], device: &str, driver: Option<&str>) -> Option<Calibration> {
    let of_device = |record: &&Record| record.device == device && record.driver.as_deref() == driver;
    let build = records.iter().filter(of_device).map(|record| record.build).max()?;
    let runs: Vec<&Record> = records.iter().filter(of_device).filter(|record| record.build == build).collect();
    let runs = runs.get(runs.len().saturating_sub(RUNS_KEPT)..)?;
    let long: Vec<&Record> = runs.iter().copied().filter(|record| record.prompt >= LONG_PROMPT).collect();
    Some(Calibration {
        runs: u32::try_from(long.len()).unwrap_or(u32::MAX),
        loaded: runs.iter().map(|record| record.of_any_launch(record.loaded)).max()?,
        peaks: peaks(&long),
        margin: margin_of(&long),
        driver: driver.map(str::to_string),
        build,
    })
}

/// The most that was seen with each micro-batch.
fn peaks(runs: &[&Record]) -> BTreeMap<u32, Bytes> {
    let mut peaks = BTreeMap::new();
    for run in runs {
        let most: &mut Bytes = peaks.entry(run.ubatch).or_default();
        *most = run.of_any_launch(run.peak).max(*most);
    }
    peaks
}

/// What is to be left free after these runs: [`MARGIN_UNCALIBRATED`] until there are [`RUNS_ENOUGH`], then twice the worst
/// miss, at least [`MARGIN_LEAST`]. A miss is what a run took beyond what the runs before it, with micro-batches as large or
/// smaller, let expect; the first of them let expect nothing.
fn margin_of(runs: &[&Record]) -> Bytes {
    if runs.len() < RUNS_ENOUGH {
        return MARGIN_UNCALIBRATED;
    }
    let mut worst = Bytes(0);
    for (at, run) in runs.iter().enumerate() {
        let known = Calibration { peaks: peaks(runs.get(..at).unwrap_or_default()), ..Calibration::default() };
        if let Some(peak) = known.peak_at(run.ubatch) {
            let taken = run.own + run.of_any_launch(run.peak);
            worst = worst.max(taken.saturating_sub(Bytes(run.predicted.0.saturating_add(peak.0))));
        }
    }
    MARGIN_LEAST.max(Bytes(worst.0.saturating_mul(2)))
}

/// Gives every device of a machine what records say of it.
pub fn calibrate(machine: &mut Machine, records: &[Record], driver: Option<&str>) {
    for device in &mut machine.devices {
        device.calibration = device.description.as_deref().and_then(|name| calibration(records, name, driver));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn run(time: u64, peak: u64, prompt: u32) -> Record {
        Record {
            schema: SCHEMA.to_string(),
            time,
            device: "NVIDIA H100 80GB HBM3".into(),
            driver: Some("580.1".into()),
            build: 11434,
            backend: "CUDA".into(),
            loaded: Bytes::mib(600),
            peak: Bytes::mib(peak),
            predicted: Bytes::mib(7000),
            own: Bytes::mib(7000),
            prompt,
            ubatch: 512,
            page_tables: Bytes(0),
        }
    }

    fn known(records: &[Record]) -> Option<Calibration> {
        calibration(records, "NVIDIA H100 80GB HBM3", Some("580.1"))
    }

    #[test]
    fn margins_shrink_with_evidence_and_grow_after_a_miss() {
        let mut records = vec![run(1, 800, 4096), run(2, 790, 8192)];
        let margin = |records: &[Record]| known(records).unwrap().margin;
        assert_eq!(margin(&records), MARGIN_UNCALIBRATED);
        records.push(run(3, 810, 4096));
        assert_eq!((margin(&records), known(&records).unwrap().peak_at(512)), (MARGIN_LEAST, Some(Bytes::mib(810))));
        // 90 MiB more than any run before: the next may again.
        records.push(run(4, 900, 4096));
        assert_eq!(margin(&records), Bytes::mib(180));
        // A compute buffer that was predicted too small is a miss too.
        records.push(Record { own: Bytes::mib(7100), ..run(5, 900, 4096) });
        assert_eq!(margin(&records), Bytes::mib(200));
        // What has not happened for twenty runs does not count any more.
        records.extend((6..26).map(|time| run(time, 900, 4096)));
        assert_eq!((margin(&records), known(&records).unwrap().runs), (MARGIN_LEAST, 20));
    }

    #[test]
    fn pools_grow_with_the_micro_batch_and_only_long_prompts_say_how_far() {
        let with = |ubatch, peak| Record { ubatch, ..run(u64::from(ubatch), peak, 4096) };
        let calibration = known(&[with(512, 710), with(2048, 790), with(512, 705), with(1024, 700)]).unwrap();
        let found = [256, 512, 768, 1024, 2048, 4096].map(|ubatch| calibration.peak_at(ubatch));
        assert_eq!(found, [710, 710, 710, 710, 790, 790].map(|mib| Some(Bytes::mib(mib))));
        // 2048 was no miss of 80 MiB but more than 512 let expect: it is one, for it was planned for with 710.
        assert_eq!(calibration.margin, Bytes::mib(160));
        let short = known(&[run(1, 620, 512), run(2, 640, 4095)]).unwrap();
        assert_eq!((short.runs, short.peak_at(512), short.loaded), (0, None, Bytes::mib(600)));
        assert_eq!(short.margin, MARGIN_UNCALIBRATED);
    }

    #[test]
    fn page_tables_are_the_launchs() {
        // 64 GiB were pinned: 128 MiB of tables, which a launch without host weights does not have.
        let pinned = Record { page_tables: Bytes::mib(128), loaded: Bytes::mib(728), ..run(1, 928, 4096) };
        let calibration = known(&[pinned, run(2, 790, 4096)]).unwrap();
        assert_eq!((calibration.loaded, calibration.peak_at(512)), (Bytes::mib(600), Some(Bytes::mib(800))));
    }

    #[test]
    fn another_driver_build_or_device_is_other_evidence() {
        let old = Record { build: 10434, peak: Bytes::mib(2000), ..run(1, 0, 4096) };
        let other = Record { driver: None, peak: Bytes::mib(3000), ..run(2, 0, 4096) };
        let calibration = known(&[old, other, run(3, 800, 4096)]).unwrap();
        assert_eq!((calibration.build, calibration.peak_at(512)), (11434, Some(Bytes::mib(800))));
        assert_eq!(super::calibration(&[run(1, 800, 4096)], "NVIDIA A100", Some("580.1")), None);
        // A machine is as uncertain as its least known device.
        let devices = Device::of_budgets(crate::machine::Backend::Cuda, &[Bytes::mib(9), Bytes::mib(9)]).unwrap();
        let mut machine = Machine::new(devices, crate::machine::Host::default()).unwrap();
        machine.devices[0].description = Some("NVIDIA H100 80GB HBM3".into());
        calibrate(&mut machine, &[1, 2, 3].map(|time| run(time, 800, 4096)), Some("580.1"));
        assert_eq!(machine.margin(), MARGIN_UNCALIBRATED);
        machine.devices.truncate(1);
        assert_eq!(machine.margin(), MARGIN_LEAST);
    }
}
