//! Memory of a process and of the devices while it runs, looked at again and again from a thread of its own. [I/O]

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::nvml::{self, Card};
use super::{DeviceUsed, ProcessMemory};
use crate::bytes::Bytes;
use crate::memory::HOST;

/// Memory of a process now; `None` where it is gone or the system does not say (only Linux does).
#[cfg(target_os = "linux")]
pub fn process(pid: u32) -> Option<ProcessMemory> {
    let status = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?;
    let kib = |value: Option<u64>| Bytes(value.unwrap_or(0).saturating_mul(1024));
    // A process that has ended and was not waited for has no memory lines.
    status.vmrss?;
    Some(ProcessMemory {
        rss_anon: kib(status.rssanon),
        rss_file: kib(status.rssfile),
        rss_shmem: kib(status.rssshmem),
        locked: kib(status.vmlck),
        pinned: kib(status.vmpin),
        peak: kib(status.vmhwm),
    })
}

#[cfg(not(target_os = "linux"))]
pub fn process(_pid: u32) -> Option<ProcessMemory> {
    None
}

/// Memory of this process; zero where the system does not say.
pub fn own() -> ProcessMemory {
    process(std::process::id()).unwrap_or_default()
}

/// Memory that is taken of one device, or of the host, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// By the process that was asked about, of main memory: its resident pages, the program's own included.
    Resident {
        /// What the system cannot take back: pages of no file, and what is locked.
        own: Bytes,
        /// All of them, pages of mapped files too: those the system drops and reads again where memory is short.
        all: Bytes,
    },
    /// By the process that was asked about.
    ByProcess(Bytes),
    /// By every program: the driver does not tell them apart.
    ByAll(Bytes),
}

impl Held {
    /// What a process holds of main memory.
    pub fn of_process(memory: &ProcessMemory) -> Self {
        let all = memory.resident();
        let own = memory.rss_anon.0.saturating_add(memory.rss_shmem.0).max(memory.locked.0);
        Self::Resident { own: Bytes(own).min(all), all }
    }
}

/// What a process holds now, by device and `Host`. What cannot be measured is left out: devices of other
/// machines, devices that are no NVIDIA cards, and the host where the system does not say.
pub fn held(pid: u32) -> BTreeMap<String, Held> {
    let cards = nvml::devices();
    let mut held: BTreeMap<String, Held> =
        cards.iter().map(|card| (card.name.clone(), Held::ByAll(card.used))).collect();
    held.extend(nvml::process_use(&cards, pid).into_iter().map(|(device, bytes)| (device, Held::ByProcess(bytes))));
    held.extend(process(pid).map(|memory| (HOST.to_string(), Held::of_process(&memory))));
    held
}

/// The most that was seen of each figure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peaks {
    pub process: ProcessMemory,
    /// Used on each device, by whomever.
    pub used: BTreeMap<String, Bytes>,
    /// Used on each device by the process, where the driver says so.
    pub by_process: BTreeMap<String, Bytes>,
    pub samples: u32,
}

impl Peaks {
    /// Takes one look in.
    fn add(
        &mut self,
        process: Option<ProcessMemory>,
        used: BTreeMap<String, Bytes>,
        by_process: BTreeMap<String, Bytes>,
    ) {
        let process = process.unwrap_or_default();
        let most = &mut self.process;
        for (most, seen) in [
            (&mut most.rss_anon, process.rss_anon),
            (&mut most.rss_file, process.rss_file),
            (&mut most.rss_shmem, process.rss_shmem),
            (&mut most.locked, process.locked),
            (&mut most.pinned, process.pinned),
            (&mut most.peak, process.peak),
        ] {
            *most = seen.max(*most);
        }
        for (most, seen) in [(&mut self.used, used), (&mut self.by_process, by_process)] {
            for (device, bytes) in seen {
                let most = most.entry(device).or_default();
                *most = bytes.max(*most);
            }
        }
        self.samples = self.samples.saturating_add(1);
    }
}

/// A thread that looks at a process and the devices until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<Peaks>>,
}

impl Sampler {
    /// Looks at once and then every `period`. Without a driver library only the process is looked at.
    pub fn start(pid: u32, period: Duration) -> Self {
        let (stop, stopped) = sync_channel::<()>(0);
        let look = move || {
            let mut peaks = Peaks::default();
            loop {
                let cards = nvml::devices();
                peaks.add(process(pid), by_name(&cards), nvml::process_use(&cards, pid));
                if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
                    return peaks;
                }
            }
        };
        let thread = std::thread::Builder::new().name("sampler".to_string()).spawn(look).ok();
        Self { stop: Some(stop), thread }
    }

    /// Stops and says what was seen.
    pub fn stop(mut self) -> Peaks {
        self.stop = None;
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// What devices and a process hold, from before a launch until after it.
#[derive(Debug)]
pub struct Watch {
    used: DeviceUsed,
    peaks: Peaks,
    sampler: Option<Sampler>,
}

impl Watch {
    /// Looks at the devices before anything is launched.
    pub fn before() -> Self {
        let used = DeviceUsed { before: by_name(&nvml::devices()), ..DeviceUsed::default() };
        Self { used, peaks: Peaks::default(), sampler: None }
    }

    /// The launch is loaded: looks at the devices, and from now on every `period`.
    pub fn loaded(&mut self, pid: u32, period: Duration) {
        self.used.loaded = by_name(&nvml::devices());
        self.sampler = Some(Sampler::start(pid, period));
    }

    /// The workload is over and the process still there: the most that was seen of it.
    pub fn worked(&mut self) -> &Peaks {
        if let Some(sampler) = self.sampler.take() {
            self.peaks = sampler.stop();
        }
        &self.peaks
    }

    /// The process is gone: looks once more.
    pub fn after(mut self) -> DeviceUsed {
        self.worked();
        let Self { mut used, peaks, .. } = self;
        (used.peak, used.of_process) = (peaks.used, peaks.by_process);
        used.after = by_name(&nvml::devices());
        used
    }
}

fn by_name(devices: &[Card]) -> BTreeMap<String, Bytes> {
    devices.iter().map(|device| (device.name.clone(), device.used)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_mapped_file_only_what_is_locked_is_its_own() {
        let memory =
            ProcessMemory { rss_anon: Bytes(3), rss_shmem: Bytes(1), rss_file: Bytes(20), ..ProcessMemory::default() };
        assert_eq!(Held::of_process(&memory), Held::Resident { own: Bytes(4), all: Bytes(24) });
        let locked = ProcessMemory { locked: Bytes(20), ..memory };
        assert_eq!(Held::of_process(&locked), Held::Resident { own: Bytes(20), all: Bytes(24) });
        let beyond = ProcessMemory { locked: Bytes(99), ..locked };
        assert_eq!(Held::of_process(&beyond), Held::Resident { own: Bytes(24), all: Bytes(24) });
    }

    #[test]
    fn peaks_keep_the_most_of_each_figure() {
        let process = |anon, file| {
            Some(ProcessMemory { rss_anon: Bytes(anon), rss_file: Bytes(file), ..ProcessMemory::default() })
        };
        let device = |used| BTreeMap::from([("CUDA0".to_string(), Bytes(used))]);
        let mut peaks = Peaks::default();
        peaks.add(process(5, 1), device(10), device(7));
        peaks.add(process(3, 9), device(8), BTreeMap::new());
        peaks.add(None, BTreeMap::new(), BTreeMap::new());
        assert_eq!((peaks.process.rss_anon, peaks.process.rss_file, peaks.samples), (Bytes(5), Bytes(9), 3));
        assert_eq!((peaks.used["CUDA0"], peaks.by_process["CUDA0"]), (Bytes(10), Bytes(7)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_sampler_sees_what_a_process_takes() {
        let seen_within = |time| {
            let sampler = Sampler::start(std::process::id(), Duration::from_millis(5));
            let before = own().rss_anon;
            let mut taken = vec![0_u8; 64 << 20];
            taken.iter_mut().step_by(4096).for_each(|page| *page = 1);
            std::thread::sleep(time);
            drop(taken);
            let peaks = sampler.stop();
            peaks.samples > 1 && peaks.process.rss_anon.0 >= before.0 + (60 << 20)
        };
        // A busy machine may not get round to looking at once.
        assert!([60, 600, 60_000].map(Duration::from_millis).into_iter().any(seen_within));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_is_gone_holds_nothing() {
        let Some(Held::Resident { all: resident, .. }) = held(std::process::id()).remove(HOST) else {
            panic!("no host")
        };
        assert!(resident.0 > 1 << 20, "{resident}");
        assert_eq!(held(u32::MAX).get(HOST), None);
    }
}
