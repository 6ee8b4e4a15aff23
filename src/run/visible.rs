//! The variables that select and reorder a machine's cards before llama.cpp sees them, or let them borrow main memory.
//!
//! Sources: CUDA C programming guide, "CUDA environment variables"; ROCm documentation, "GPU isolation techniques"; `ggml-vulkan.cpp`
//! `ggml_vk_instance_init` (`GGML_VK_VISIBLE_DEVICES`), `ggml-cuda.cu` `ggml_cuda_device_malloc` (unified memory), b11434; the NVIDIA container toolkit's user guide.

use std::collections::BTreeMap;

use super::Note;
use super::held::CONTAINER_DEVICES;
use crate::machine::{Backend, Device, Machine};

pub(super) const VULKAN: &str = "GGML_VK_VISIBLE_DEVICES";
const UNIFIED_MEMORY: &str = "GGML_CUDA_ENABLE_UNIFIED_MEMORY";

/// Each variable and whose devices it selects, in the order in which they apply: a later one counts among those that are left.
const VARIABLES: [(&str, Backend); 6] = [
    (CONTAINER_DEVICES, Backend::Cuda),
    ("CUDA_VISIBLE_DEVICES", Backend::Cuda),
    ("ROCR_VISIBLE_DEVICES", Backend::Rocm),
    ("HIP_VISIBLE_DEVICES", Backend::Rocm),
    ("CUDA_VISIBLE_DEVICES", Backend::Rocm),
    (VULKAN, Backend::Vulkan),
];

/// Whether a variable decides which cards there are, or what they hold.
pub fn selects(variable: &str) -> bool {
    variable == UNIFIED_MEMORY || VARIABLES.iter().any(|(name, _)| *name == variable)
}

/// The machine as programs in an environment see it.
#[derive(Debug)]
pub struct Visible {
    pub machine: Machine,
    /// What was changed.
    pub notes: Vec<Note>,
    /// The described card behind each name, where it is another.
    pub cards: BTreeMap<String, String>,
    /// A card that a container is given and the machine does not have: docker does not start it.
    pub missing: Option<usize>,
}

/// The machine as programs in this environment see it, and what was changed.
pub fn visible(machine: &Machine, environment: &BTreeMap<String, String>) -> Visible {
    let (mut machine, mut notes, mut cards_behind) = (machine.clone(), Vec::new(), BTreeMap::new());
    let mut missing = None;
    for (variable, backend) in VARIABLES {
        let Some(list) = environment.get(variable).filter(|list| !matches!(list.as_str(), "all" | "void")) else {
            continue;
        };
        // AMD's runtime heeds CUDA's variable where its own is missing.
        let is_second = variable == "CUDA_VISIBLE_DEVICES" && environment.contains_key("HIP_VISIBLE_DEVICES");
        let cards: Vec<Device> = machine.devices.iter().filter(|device| device.backend == backend).cloned().collect();
        if cards.is_empty() || (is_second && backend == Backend::Rocm) {
            continue;
        }
        let mut note = |message: String, hint| notes.push(Note { code: "cards-selected".into(), message, hint });
        if list.contains("GPU-") || list.contains("MIG-") {
            let hint = format!("write numbers from 0 to {}", cards.len() - 1);
            note(
                format!("`{variable}={list}`: moeplan cannot tell which card that is, so it counts all of them"),
                Some(hint),
            );
            continue;
        }
        let (picked, end) = picked(list, cards.len(), |_| None);
        let unknown = end.filter(|entry| !matches!(*entry, "" | "-1" | "none"));
        if variable == CONTAINER_DEVICES {
            missing = unknown.and_then(|entry| entry.parse().ok()).filter(|at| *at >= cards.len());
        }
        let mut said = Vec::new();
        let names = backend.device_prefix().unwrap_or_default();
        let seen = picked.iter().enumerate().filter_map(|(number, at)| {
            let mut card = cards.get(*at)?.clone();
            let name = format!("{names}{number}");
            said.push(if name == card.name {
                format!("{name} stays {name}")
            } else {
                format!("{name} is now the card described as {} ({})", card.name, card.total)
            });
            (card.name, card.buffer) = (name.clone(), name);
            Some(card)
        });
        let seen: Vec<Device> = seen.collect();
        let before = std::mem::take(&mut cards_behind);
        for (card, at) in seen.iter().zip(&picked) {
            let Some(name) = cards.get(*at).map(|card| &card.name) else { continue };
            cards_behind.insert(card.name.clone(), before.get(name).unwrap_or(name).clone());
        }
        // Those of other backends stay.
        cards_behind.extend(before.into_iter().filter(|(name, _)| !name.starts_with(names)));
        let first = machine.devices.iter().position(|device| device.backend == backend).unwrap_or(0);
        machine.devices.retain(|device| device.backend != backend);
        machine.devices.splice(first..first, seen);
        let what = if said.is_empty() { "no card is left".to_string() } else { said.join(", ") };
        let hint = unknown.map(|entry| {
            let last = cards.len() - 1;
            format!("`{entry}` is not a remaining card, so the list ends before it: the numbers are 0 to {last}")
        });
        let all_stay = picked.len() == cards.len() && picked.iter().enumerate().all(|(number, at)| number == *at);
        if !all_stay || hint.is_some() {
            note(format!("`{variable}={list}`: {what}"), hint);
        }
    }
    if environment.contains_key(UNIFIED_MEMORY) && machine.devices.iter().any(|device| device.backend.is_cuda_source())
    {
        notes.push(Note {
            code: "unified-memory".into(),
            message: format!(
                "`{UNIFIED_MEMORY}` is set: what does not fit on a card spills into main memory instead of failing, and is read \
                 from there at the speed of the slot; the figures assume that it is not set"
            ),
            hint: Some("unset it, and keep experts on the host with `-ncmoe N`".into()),
        });
    }
    cards_behind.retain(|name, card| name != card);
    Visible { machine, notes, cards: cards_behind, missing }
}

/// Which of `count` cards a list names, by number or by the beginning of a UUID, and the entry that it ends at: the first that is not
/// a card, or a card for the second time.
pub fn picked(list: &str, count: usize, of_uuid: impl Fn(&str) -> Option<usize>) -> (Vec<usize>, Option<&str>) {
    let mut picked = Vec::new();
    for entry in list.split(',').map(str::trim) {
        let at = entry.parse().ok().or_else(|| of_uuid(entry));
        match at.filter(|at| *at < count && !picked.contains(at)) {
            Some(at) => picked.push(at),
            None => return (picked, Some(entry)),
        }
    }
    (picked, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Host;

    #[test]
    fn cards_are_selected_reordered_and_numbered_anew() {
        for (devices, variables, expected) in [
            ("CUDA0=24M CUDA1=12M", "CUDA_VISIBLE_DEVICES=1", "CUDA0=12"),
            ("CUDA0=24M CUDA1=12M CUDA2=8M", "CUDA_VISIBLE_DEVICES=2,0", "CUDA0=8 CUDA1=24"),
            ("CUDA0=24M CUDA1=12M", "CUDA_VISIBLE_DEVICES=", ""),
            ("CUDA0=24M CUDA1=12M", "CUDA_VISIBLE_DEVICES=-1", ""),
            ("CUDA0=24M CUDA1=12M", "CUDA_VISIBLE_DEVICES=1,7,0", "CUDA0=12"),
            ("CUDA0=24M CUDA1=12M", "CUDA_VISIBLE_DEVICES=GPU-1f2e", "CUDA0=24 CUDA1=12"),
            ("CUDA0=24M CUDA1=12M", "HIP_VISIBLE_DEVICES=1", "CUDA0=24 CUDA1=12"),
            ("CUDA0=24M CUDA1=12M CUDA2=8M", "NVIDIA_VISIBLE_DEVICES=1,2 CUDA_VISIBLE_DEVICES=1", "CUDA0=8"),
            ("CUDA0=24M CUDA1=12M", "NVIDIA_VISIBLE_DEVICES=all", "CUDA0=24 CUDA1=12"),
            ("ROCm0=24M ROCm1=12M", "CUDA_VISIBLE_DEVICES=1", "ROCm0=12"),
            ("ROCm0=24M ROCm1=12M ROCm2=8M", "ROCR_VISIBLE_DEVICES=2,1 HIP_VISIBLE_DEVICES=1", "ROCm0=12"),
            ("Vulkan0=24M Vulkan1=12M", "GGML_VK_VISIBLE_DEVICES=1,0", "Vulkan0=12 Vulkan1=24"),
            ("RPC0[a:1]=4M CUDA0=24M CUDA1=12M", "CUDA_VISIBLE_DEVICES=1", "RPC0=4 CUDA0=12"),
        ] {
            let devices = devices.split(' ').map(|device| Device::parse(device).unwrap()).collect();
            let machine = Machine::new(devices, Host::default()).unwrap();
            let pairs = variables.split(' ').filter_map(|pair| pair.split_once('='));
            let environment = pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let seen = visible(&machine, &environment);
            for (name, card) in &seen.cards {
                let total = |machine: &Machine, name: &str| {
                    machine.devices.iter().find(|device| device.name == name).unwrap().total
                };
                assert_eq!(total(&seen.machine, name), total(&machine, card), "{variables}");
            }
            let seen = seen.machine.devices;
            let seen: Vec<String> = seen.iter().map(|card| format!("{}={}", card.name, card.total.0 >> 20)).collect();
            assert_eq!(seen.join(" "), expected, "{variables}");
        }
    }
}
