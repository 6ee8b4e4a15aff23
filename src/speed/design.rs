//! What a calibration runs: launches of llama-bench that tell the constants of the speed model apart, the telling ones first.

use crate::machine::{Backend, Device, Machine};

/// A model to write for it: small, yet with expert and layer widths of real ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub spec: &'static str,
    /// Only so many blocks; `None` = all.
    pub blocks: Option<u32>,
}

impl Subject {
    /// What its file is called, so that rows of it are known again.
    pub fn name(&self) -> String {
        self.blocks.map_or_else(|| self.spec.to_string(), |blocks| format!("{}.{blocks}-blocks", self.spec))
    }
}

/// How many models there are.
pub const PARTS: u32 = 2;

/// Many narrow blocks tell waits; few wide ones tell rates. About 2 GiB each. None of one block: the last block's experts run for the
/// rows of the output alone, so that its prompts tell nothing (seen on an H200 with one block of Qwen3-235B).
pub const SUBJECTS: [Subject; PARTS as usize] =
    [Subject { spec: "granite-3.1-3b-a800m", blocks: None }, Subject { spec: "qwen3-30b-a3b", blocks: Some(4) }];

/// Launches of one model: arguments of llama-bench after the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    pub tells: &'static str,
    pub args: Vec<String>,
}

/// What tests tell, and their arguments; `T` is numbers of threads, `C` the cores.
const ON_DEVICES: [(&str, &str); 8] = [
    ("the device", "-ngl 99 -p 512,2048 -ub 512,2048 -n 32 -t C"),
    ("generation by threads", "-ngl 99 -ncmoe 99 -lm none -p 0 -n 16 -t T"),
    ("copies of pinned memory", "-ngl 99 -ncmoe 99 -lm none -p 2048 -ub 512,2048 -n 0 -t C"),
    ("copies of mapped files", "-ngl 99 -ncmoe 99 -lm mmap -p 2048 -ub 512,2048 -n 0 -t C"),
    ("depth", "-ngl 99 -p 2048 -ub 2048 -n 32 -d 8192 -t C"),
    ("half of the experts", "-ngl 99 -ncmoe 2 -lm none -p 2048 -ub 1024 -n 32 -t C"),
    ("products on the host", "-ngl 99 -ncmoe 99 -lm none -nopo 1 -p 128 -n 0 -t C"),
    ("layers on the host", "-ngl 2 -lm none -p 0 -n 16 -t C"),
];
/// Where no device takes over the host's products; the last two only where there are devices at all.
const ON_HOST: [(&str, &str); 6] = [
    ("generation by threads", "-ngl 0 -p 0 -n 16 -t T"),
    ("prompts", "-ngl 0 -p 64,128 -n 0 -t C"),
    ("plain layouts", "-ngl 0 -p 64 -n 16 -t C --repack 0"),
    ("depth", "-ngl 0 -p 0 -n 8 -d 1024 -t C"),
    ("the devices", "-ngl 99 -p 64,256 -n 16 -t C"),
    ("experts apart", "-ngl 99 -ncmoe 99 -p 64 -n 16 -t C"),
];

/// What several cards are asked together: what passing from one to the next costs.
const TOGETHER: (&str, &str) = ("all devices together", "-ngl 99 -p 0 -n 32 -t C");

/// The launches for a machine, in order of what they tell.
pub fn tests(machine: &Machine) -> Vec<Test> {
    let cores = machine.host.cores.unwrap_or(4).max(1);
    let mut counts = vec![1, cores.div_ceil(4), cores.div_ceil(2), cores];
    counts.extend(machine.host.threads.filter(|threads| *threads > cores));
    counts.sort_unstable();
    counts.dedup();
    let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
    let takes_over = |device: &Device| !matches!(device.backend, Backend::Rpc | Backend::Cpu);
    let rows: &[_] = match machine.devices.as_slice() {
        [] => &ON_HOST[..4],
        devices if devices.iter().any(takes_over) => &ON_DEVICES,
        _ => &ON_HOST,
    };
    // Each kind of card by itself, and then all of them together.
    let is_first = |(at, device): &(usize, &Device)| {
        let before = machine.devices.iter().take(*at);
        device.description.is_none() || !before.clone().any(|other| other.description == device.description)
    };
    let alone: Vec<&Device> = machine.devices.iter().enumerate().filter(is_first).map(|(_, device)| device).collect();
    let word = |word: &str| match word {
        "T" => counts.join(","),
        "C" => cores.to_string(),
        word => word.to_string(),
    };
    let test = |(tells, args): &(&'static str, &str), device: Option<&Device>| {
        let only = device.into_iter().flat_map(|device| ["-dev".to_string(), device.name.clone()]);
        Test { tells, args: args.split(' ').map(word).chain(only).collect() }
    };
    if machine.devices.len() < 2 || !machine.devices.iter().all(takes_over) {
        return rows.iter().map(|row| test(row, None)).collect();
    }
    let each = rows.iter().flat_map(|row| alone.iter().map(|device| test(row, Some(device))));
    each.chain([test(&TOGETHER, None)]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::machine::Host;
    use crate::run::parse;

    #[test]
    fn every_test_is_a_command_that_is_understood() {
        let host = Host { cores: Some(6), threads: Some(12), ..Host::default() };
        let machines = [vec![], vec!["CUDA0=8G"], vec!["RPC0[h:1]=8G"], vec!["Vulkan0=8G", "Vulkan1=8G"]];
        for devices in machines {
            let devices = devices.into_iter().map(|text| Device::parse(text).unwrap()).collect();
            let machine = Machine::new(devices, host.clone()).unwrap();
            let is_named = |test: &Test| test.args.iter().any(|word| word == "-dev");
            assert_eq!(tests(&machine).iter().any(is_named), machine.devices.len() > 1);
            for test in tests(&machine) {
                let words: Vec<String> = ["llama-bench".to_string()].into_iter().chain(test.args).collect();
                let parsed = parse::command(&words, &BTreeMap::new()).unwrap();
                assert!(parsed.notes.iter().all(|note| note.code == "first-variant"), "{words:?}: {:?}", parsed.notes);
            }
        }
    }
}
