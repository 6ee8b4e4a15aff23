//! NVIDIA cards as llama.cpp numbers them: from what the driver says and what the environment asks.

use std::collections::BTreeMap;

use super::DeviceInfo;
use crate::bytes::Bytes;

/// What the driver says of one card (NVML).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// `NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// `GPU-…`.
    pub uuid: String,
    /// All its memory, what the driver keeps for itself included.
    pub total: Bytes,
    /// What the driver keeps for itself; no program can have it.
    pub reserved: Bytes,
    /// What is free.
    pub free: Bytes,
    /// What is used, by whomever.
    pub used: Bytes,
    /// Cores × clock in MHz: how CUDA tells the fastest; 0 where unknown.
    pub speed: u64,
    /// Bytes by process, where the driver says so.
    pub processes: BTreeMap<u32, Bytes>,
}

/// Memory of one device, by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceUse {
    /// As llama.cpp names it.
    pub name: String,
    /// What programs can have in all.
    pub total: Bytes,
    /// What is free of it.
    pub free: Bytes,
    /// What is used of it.
    pub used: Bytes,
}

/// What the environment says about the order of cards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// `CUDA_VISIBLE_DEVICES`.
    pub visible: Option<String>,
    /// `CUDA_DEVICE_ORDER`.
    pub order: Option<String>,
}

/// The cards in CUDA's order, each with its name; `cards` are in the order of their slots, as NVML lists them.
///
/// CUDA numbers the fastest first, the rest by slot, unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`; then `CUDA_VISIBLE_DEVICES` picks
/// by number or by the beginning of a UUID, and ends at the first entry that is no card (CUDA C programming guide,
/// "CUDA environment variables").
pub fn named<'a>(cards: &'a [Card], order: &Order) -> Vec<(String, &'a Card)> {
    let mut ordered: Vec<&Card> = cards.iter().collect();
    if order.order.as_deref() != Some("PCI_BUS_ID") {
        ordered.sort_by_key(|card| std::cmp::Reverse(card.speed));
    }
    let visible: Vec<&Card> = match order.visible.as_deref() {
        None => ordered,
        Some(list) => {
            let mut picked: Vec<&Card> = Vec::new();
            for entry in list.split(',').map(str::trim) {
                let card = match entry.parse::<usize>() {
                    Ok(number) => ordered.get(number).copied(),
                    Err(_) => only(ordered.iter().filter(|card| is_named(card, entry)).copied()),
                };
                match card.filter(|card| !picked.iter().any(|other| std::ptr::eq(*other, *card))) {
                    Some(card) => picked.push(card),
                    None => break,
                }
            }
            picked
        }
    };
    visible.into_iter().enumerate().map(|(i, card)| (format!("CUDA{i}"), card)).collect()
}

/// Whether an entry of `CUDA_VISIBLE_DEVICES` begins the UUID of a card.
fn is_named(card: &Card, entry: &str) -> bool {
    entry.len() > "GPU-".len() && entry.starts_with("GPU-") && card.uuid.starts_with(entry)
}

/// The only one of several, or none.
fn only<T>(mut several: impl Iterator<Item = T>) -> Option<T> {
    several.next().filter(|_| several.next().is_none())
}

/// The cards as llama.cpp lists devices. CUDA does not count what the driver keeps for itself.
pub fn devices(named: &[(String, &Card)]) -> Vec<DeviceInfo> {
    let device = |(name, card): &(String, &Card)| DeviceInfo {
        name: name.clone(),
        buffer: name.clone(),
        description: card.name.clone(),
        backend: "CUDA".to_string(),
        gpu: true,
        total: card.total.saturating_sub(card.reserved),
        free: card.free,
    };
    named.iter().map(device).collect()
}

/// What is used of each card.
pub fn usage(named: &[(String, &Card)]) -> Vec<DeviceUse> {
    let row = |(name, card): &(String, &Card)| DeviceUse {
        name: name.clone(),
        total: card.total.saturating_sub(card.reserved),
        free: card.free,
        used: card.used,
    };
    named.iter().map(row).collect()
}

/// What a process uses of each card; cards on which the driver does not know it are left out.
pub fn process_use(named: &[(String, &Card)], pid: u32) -> BTreeMap<String, Bytes> {
    named.iter().filter_map(|(name, card)| Some((name.clone(), *card.processes.get(&pid)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cards() -> Vec<Card> {
        let card = |name: &str, uuid: &str, speed| Card {
            name: name.into(),
            uuid: uuid.into(),
            total: Bytes::mib(81_559),
            reserved: Bytes::mib(480),
            free: Bytes::mib(80_552),
            used: Bytes::mib(527),
            speed,
            processes: BTreeMap::from([(7, Bytes::mib(500))]),
        };
        vec![card("slow", "GPU-aa1", 10), card("fast", "GPU-ab2", 90), card("slow too", "GPU-ac3", 10)]
    }

    #[test]
    fn cards_are_numbered_as_cuda_numbers_them() {
        let cards = cards();
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
            let order = Order { visible: visible.map(str::to_string), order: order.map(str::to_string) };
            let named = named(&cards, &order);
            let found: Vec<_> = named.iter().map(|(_, card)| card.name.as_str()).collect();
            assert_eq!(found, expected, "{order:?}");
            assert!(named.iter().enumerate().all(|(i, (name, _))| *name == format!("CUDA{i}")));
        }
    }

    #[test]
    fn what_the_driver_keeps_is_no_part_of_a_device() {
        let cards = cards();
        let named = named(&cards, &Order::default());
        // As llama.cpp printed it on that card.
        assert_eq!(devices(&named)[0].total, Bytes::mib(81_079));
        assert_eq!(usage(&named)[0].used, Bytes::mib(527));
        assert_eq!(process_use(&named, 7).get("CUDA2"), Some(&Bytes::mib(500)));
        assert!(process_use(&named, 8).is_empty());
    }
}
