//! The NVIDIA driver's library, found at run time: without it there are no cards, and that is no error. [I/O]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use super::DeviceInfo;
use super::cards::{self, Card, DeviceUse, Order};
use crate::bytes::Bytes;

/// The library, loaded once.
fn library() -> Option<&'static Nvml> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    // Drivers install the name with a version; the plain one comes with development packages.
    let versioned = || Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init().ok();
    LIBRARY.get_or_init(|| Nvml::init().ok().or_else(versioned)).as_ref()
}

/// What the driver says of every card, in the order of their slots. Cards that cannot be asked are left out.
pub fn cards() -> Vec<Card> {
    let Some(library) = library() else { return Vec::new() };
    let count = library.device_count().unwrap_or(0);
    (0..count).filter_map(|index| card(library, index).ok()).collect()
}

fn card(library: &Nvml, index: u32) -> Result<Card, NvmlError> {
    let device = library.device_by_index(index)?;
    let memory = device.memory_info()?;
    let speed = || Some(u64::from(device.num_cores().ok()?) * u64::from(device.max_clock_info(Clock::SM).ok()?));
    let mut processes = BTreeMap::new();
    for process in device.running_compute_processes().unwrap_or_default() {
        if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
            processes.insert(process.pid, Bytes(bytes));
        }
    }
    Ok(Card {
        name: device.name()?,
        uuid: device.uuid().unwrap_or_default(),
        total: Bytes(memory.total),
        reserved: Bytes(memory.reserved),
        free: Bytes(memory.free),
        used: Bytes(memory.used),
        speed: speed().unwrap_or(0),
        processes,
    })
}

/// The version of the driver.
pub fn driver() -> Option<String> {
    library()?.sys_driver_version().ok()
}

/// What this process's environment says about the order of cards; a child inherits it.
fn order() -> Order {
    let variable = |name| std::env::var(name).ok();
    Order { visible: variable("CUDA_VISIBLE_DEVICES"), order: variable("CUDA_DEVICE_ORDER") }
}

/// The cards as llama.cpp would list them.
pub fn listed() -> Vec<DeviceInfo> {
    cards::devices(&cards::named(&cards(), &order()))
}

/// What is used of each card now, by whomever.
pub fn devices() -> Vec<DeviceUse> {
    cards::usage(&cards::named(&cards(), &order()))
}

/// What a process uses of each card now; empty where the driver does not know it (as in a container of its own).
pub fn process_use(pid: u32) -> BTreeMap<String, Bytes> {
    cards::process_use(&cards::named(&cards(), &order()), pid)
}
