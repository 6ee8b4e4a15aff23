//! NVIDIA cards as llama.cpp numbers them: what the driver's library says, found at run time, and what the environment asks.
//! Without the library there are no cards, and that is not an error. [I/O]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::{Mutex, OnceLock, PoisonError};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use super::DeviceInfo;
use crate::bytes::Bytes;
use crate::run::visible;

#[derive(Debug, Clone)]
pub struct Card {
    /// As llama.cpp would list it. Its total is what programs can have: what the driver keeps for itself CUDA does not count.
    pub info: DeviceInfo,
    pub used: Bytes,
    uuid: String,
    /// Cores × clock in MHz: how CUDA tells the fastest; 0 where unknown.
    speed: u64,
    /// Bytes by process, where the driver says so.
    processes: BTreeMap<u32, Bytes>,
}

fn library() -> Option<&'static Nvml> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    // Drivers install the name with a version; the plain one comes with development packages.
    let versioned = || Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init().ok();
    LIBRARY.get_or_init(|| Nvml::init().ok().or_else(versioned)).as_ref()
}

/// Every card, in the order of their slots, without the name that CUDA gives it. Cards that cannot be asked are left out.
pub fn cards() -> Vec<Card> {
    let Some(library) = library() else { return Vec::new() };
    (0..library.device_count().unwrap_or(0)).filter_map(|index| card(library, index).ok()).collect()
}

fn card(library: &Nvml, index: u32) -> Result<Card, NvmlError> {
    let device = library.device_by_index(index)?;
    let memory = device.memory_info()?;
    let speed = || Some(u64::from(device.num_cores().ok()?) * u64::from(device.max_clock_info(Clock::SM).ok()?));
    let processes = device.running_compute_processes().unwrap_or_default().into_iter();
    let processes = processes.filter_map(|process| match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some((process.pid, Bytes(bytes))),
        UsedGpuMemory::Unavailable => None,
    });
    let total = Bytes(memory.total).saturating_sub(Bytes(memory.reserved));
    Ok(Card {
        info: cuda(device.name()?, total, Bytes(memory.free)),
        used: Bytes(memory.used),
        uuid: device.uuid().unwrap_or_default(),
        speed: speed().unwrap_or(0),
        processes: processes.collect(),
    })
}

/// A card by what its driver says, without a name yet.
fn cuda(description: String, total: Bytes, free: Bytes) -> DeviceInfo {
    DeviceInfo { description, backend: "CUDA".to_string(), gpu: true, total, free, ..DeviceInfo::default() }
}

pub fn driver() -> Option<String> {
    library()?.sys_driver_version().ok()
}

/// The cards that programs here see, in CUDA's order. What the environment says about it, a child inherits.
pub fn devices() -> Vec<Card> {
    let variable = |name| std::env::var(name).ok();
    named(cards(), variable("CUDA_VISIBLE_DEVICES").as_deref(), variable("CUDA_DEVICE_ORDER").as_deref())
}

/// What a server that is to be replaced holds of each card.
static REPLACED: Mutex<BTreeMap<String, Bytes>> = Mutex::new(BTreeMap::new());

/// From now on, counts what a server holds of each card as free: the one that is planned takes its place.
pub fn replace(held: BTreeMap<String, Bytes>) {
    *REPLACED.lock().unwrap_or_else(PoisonError::into_inner) = held;
}

pub fn listed() -> Vec<DeviceInfo> {
    let replaced = REPLACED.lock().unwrap_or_else(PoisonError::into_inner);
    let card = |Card { mut info, .. }: Card| {
        let own = replaced.get(&info.name).map_or(0, |held| held.0);
        info.free = Bytes(info.free.0.saturating_add(own)).min(info.total);
        info
    };
    devices().into_iter().map(card).collect()
}

/// What all programs use of each card, and what a process does; cards on which the driver does not know it (as in a container of its
/// own) are left out.
pub fn used(pid: u32) -> [BTreeMap<String, Bytes>; 2] {
    let cards = devices();
    let of_process = |card: &Card| Some((card.info.name.clone(), *card.processes.get(&pid)?));
    [
        cards.iter().map(|card| (card.info.name.clone(), card.used)).collect(),
        cards.iter().filter_map(of_process).collect(),
    ]
}

/// Names the cards, which are in the order of their slots.
///
/// CUDA numbers the fastest first, the rest by slot, unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`; then `CUDA_VISIBLE_DEVICES` picks
/// by number or by the beginning of a UUID, and ends at the first entry that is not a card (CUDA C programming guide,
/// "CUDA environment variables").
fn named(mut cards: Vec<Card>, visible: Option<&str>, order: Option<&str>) -> Vec<Card> {
    if order != Some("PCI_BUS_ID") {
        cards.sort_by_key(|card| std::cmp::Reverse(card.speed));
    }
    let of_uuid = |entry: &str| {
        let is_uuid = entry.len() > "GPU-".len() && entry.starts_with("GPU-");
        let mut begun = cards.iter().enumerate().filter(|(_, card)| is_uuid && card.uuid.starts_with(entry));
        // A beginning of several is none.
        begun.next().filter(|_| begun.next().is_none()).map(|(at, _)| at)
    };
    let picked = match visible {
        None => (0..cards.len()).collect(),
        Some(list) => visible::picked(list, cards.len(), of_uuid).0,
    };
    let name = |(i, at): (usize, usize)| {
        let mut card = cards.get(at)?.clone();
        card.info.name = format!("CUDA{i}");
        card.info.buffer.clone_from(&card.info.name);
        Some(card)
    };
    picked.into_iter().enumerate().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_numbered_as_cuda_numbers_them() {
        let card = |(description, uuid, speed): (&str, &str, u64)| Card {
            info: cuda(description.into(), Bytes(0), Bytes(0)),
            used: Bytes(0),
            uuid: uuid.into(),
            speed,
            processes: BTreeMap::new(),
        };
        let cards = [("slow", "GPU-aa1", 10), ("fast", "GPU-ab2", 90), ("slow too", "GPU-ac3", 10)].map(card);
        for (order, visible, expected) in [
            (None, None, vec!["fast", "slow", "slow too"]),
            (Some("FASTEST_FIRST"), None, vec!["fast", "slow", "slow too"]),
            (Some("PCI_BUS_ID"), None, vec!["slow", "fast", "slow too"]),
            (Some("PCI_BUS_ID"), Some("2,0"), vec!["slow too", "slow"]),
            (None, Some("0"), vec!["fast"]),
            (None, Some("GPU-ac, 0"), vec!["slow too", "fast"]),
            (None, Some("0,GPU-a,1"), vec!["fast"]),
            (None, Some("0,9,1"), vec!["fast"]),
            (None, Some("1,1"), vec!["slow"]),
            (None, Some("-1"), vec![]),
            (None, Some(""), vec![]),
        ] {
            let named = named(cards.to_vec(), visible, order);
            let found: Vec<_> = named.iter().map(|card| card.info.description.as_str()).collect();
            assert_eq!(found, expected, "{order:?} {visible:?}");
            assert!(named.iter().enumerate().all(|(i, card)| card.info.name == format!("CUDA{i}")));
        }
    }
}
