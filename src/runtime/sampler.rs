//! Memory of a process and of the devices while it runs, looked at again and again from a thread of its own. [I/O]

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{DeviceUsed, ProcessMemory, nvml};
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
/// machines, devices that are not NVIDIA cards, and the host where the system does not say.
pub fn held(pid: u32) -> BTreeMap<String, Held> {
    let [by_all, by_process] = nvml::used(pid);
    let mut held: BTreeMap<String, Held> =
        by_all.into_iter().map(|(device, bytes)| (device, Held::ByAll(bytes))).collect();
    held.extend(by_process.into_iter().map(|(device, bytes)| (device, Held::ByProcess(bytes))));
    held.extend(process(pid).map(|memory| (HOST.to_string(), Held::of_process(&memory))));
    held
}

/// What devices and a process hold, from before a launch until after it.
#[derive(Debug, Default)]
pub struct Watch {
    used: DeviceUsed,
    /// The most that was seen of it.
    pub process: ProcessMemory,
    sampler: Option<(SyncSender<()>, JoinHandle<Self>)>,
}

impl Watch {
    /// Looks at the devices before anything is launched. Without a driver library only the process is looked at.
    pub fn before() -> Self {
        let [before, _] = nvml::used(0);
        Self { used: DeviceUsed { before, ..DeviceUsed::default() }, ..Self::default() }
    }

    /// What more of each device is used now than before.
    pub fn taken(&self) -> BTreeMap<String, Bytes> {
        let [now, _] = nvml::used(0);
        let since = |(name, used): (String, Bytes)| {
            let taken = used.saturating_sub(self.used.before.get(&name).copied().unwrap_or(used));
            (name, taken)
        };
        now.into_iter().map(since).collect()
    }

    /// The launch is loaded: looks at the devices, and from now on every `period`.
    pub fn loaded(&mut self, pid: u32, period: Duration) {
        [self.used.loaded, _] = nvml::used(pid);
        let mut seen = Self { used: std::mem::take(&mut self.used), ..Self::default() };
        let (stop, stopped) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            loop {
                seen.look(pid);
                if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
                    return seen;
                }
            }
        });
        self.sampler = Some((stop, thread));
    }

    /// Takes one look in: the most of each figure.
    fn look(&mut self, pid: u32) {
        let (seen, most) = (process(pid).unwrap_or_default(), &mut self.process);
        for (most, seen) in [
            (&mut most.rss_anon, seen.rss_anon),
            (&mut most.rss_file, seen.rss_file),
            (&mut most.rss_shmem, seen.rss_shmem),
            (&mut most.locked, seen.locked),
            (&mut most.pinned, seen.pinned),
            (&mut most.peak, seen.peak),
        ] {
            *most = seen.max(*most);
        }
        for (most, seen) in [&mut self.used.peak, &mut self.used.of_process].into_iter().zip(nvml::used(pid)) {
            for (device, bytes) in seen {
                let most = most.entry(device).or_default();
                *most = bytes.max(*most);
            }
        }
    }

    /// The workload is over and the process still there: looks no more.
    pub fn worked(&mut self) -> &Self {
        if let Some((stop, thread)) = self.sampler.take() {
            drop(stop);
            *self = thread.join().unwrap_or_default();
        }
        self
    }

    /// The process is gone: looks once more.
    pub fn after(mut self) -> DeviceUsed {
        self.worked();
        [self.used.after, _] = nvml::used(0);
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_mapped_file_only_what_is_locked_is_its_own() {
        for (locked, own) in [(0, 4), (20, 20), (99, 24)] {
            let (rss_anon, rss_file, rss_shmem, locked) = (Bytes(3), Bytes(20), Bytes(1), Bytes(locked));
            let memory = ProcessMemory { rss_anon, rss_file, rss_shmem, locked, ..ProcessMemory::default() };
            assert_eq!(Held::of_process(&memory), Held::Resident { own: Bytes(own), all: Bytes(24) });
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_watch_sees_the_most_that_a_process_takes() {
        let seen_within = |time| {
            let mut watch = Watch::before();
            watch.loaded(std::process::id(), Duration::from_millis(5));
            let before = own().rss_anon;
            let mut taken = vec![0_u8; 64 << 20];
            taken.iter_mut().step_by(4096).for_each(|page| *page = 1);
            std::thread::sleep(time);
            drop(taken);
            watch.worked().process.rss_anon.0 >= before.0 + (60 << 20)
        };
        // A busy machine may not get round to looking at once.
        assert!([60, 600, 60_000].map(Duration::from_millis).into_iter().any(seen_within));
        let Some(Held::Resident { all, .. }) = held(std::process::id()).remove(HOST) else { panic!("no host") };
        assert!(all.0 > 1 << 20, "{all}");
        assert_eq!(held(u32::MAX).get(HOST), None);
    }
}
