//! What machine is here: cards by their driver, else by a llama-server that is found; memory and cores of the host. [I/O]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use super::nvml;
use super::server;
use super::{DeviceInfo, Error};
use crate::bytes::Bytes;
use crate::files::{cache_folder, write};
use crate::machine::Isa;

/// The devices that are here, and who says so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Devices {
    pub list: Vec<DeviceInfo>,
    /// The driver's version, where a driver was asked.
    pub driver: Option<String>,
    /// `the NVIDIA driver`, or the program that was asked.
    pub source: Option<String>,
}

/// The devices here: NVIDIA cards by their driver, else what `server --list-devices` prints.
pub fn devices(server: Option<&Path>) -> Devices {
    let list = nvml::listed();
    if !list.is_empty() {
        return Devices { list, driver: nvml::driver(), source: Some("the NVIDIA driver".to_string()) };
    }
    let listed = server.and_then(|server| Some((server::devices(server, &[]).ok()?, server.display().to_string())));
    listed.map_or_else(Devices::default, |(list, program)| Devices { list, driver: None, source: Some(program) })
}

/// The llama-server that `MOEPLAN_LLAMA_SERVER` names, or the one that is found.
pub fn server() -> Result<PathBuf, Error> {
    let named = std::env::var_os("MOEPLAN_LLAMA_SERVER").filter(|name| !name.is_empty()).map(PathBuf::from);
    server::find(named.as_deref())
}

/// The build of [`server()`], where there is one that says it.
pub fn installed_build() -> Option<u32> {
    static BUILD: OnceLock<Option<u32>> = OnceLock::new();
    *BUILD.get_or_init(|| server::number(&version(&server().ok()?)?))
}

/// What a program says to `--version`. One with CUDA takes its time, so the answer is kept for as long as the file is the same.
fn version(program: &Path) -> Option<String> {
    let file = std::fs::metadata(program).ok()?;
    let changed = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let key = format!("{} {} {}\n", program.display(), file.len(), changed.as_nanos());
    let folder = cache_folder();
    let path = folder.as_ref().map(|folder| folder.join("llama-server.txt"));
    let known = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    if let Some(version) = known.as_deref().and_then(|text| text.strip_prefix(&key)) {
        return Some(version.to_string());
    }
    let version = server::version(program).ok()?;
    if let (Some(folder), Some(path)) = (folder, path) {
        // What cannot be kept is asked again.
        let _ = std::fs::create_dir_all(folder).is_ok() && write(&path, (key + &version).as_bytes(), true).is_ok();
    }
    Some(version)
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Main memory that processes here may have: the computer's, or less where a control group says so.
    pub ram: Option<Bytes>,
    /// What of it could be had now without swapping.
    pub available: Option<Bytes>,
    /// Physical cores that this process may use.
    pub cores: Option<u32>,
    pub threads: Option<u32>,
    pub processor: Option<String>,
    pub isa: Isa,
    /// NUMA nodes, where the system says: parts of main memory that are next to some of the cores (`ggml-cpu.c` `ggml_numa_init`, b11434).
    pub nodes: usize,
}

pub fn host() -> HostFacts {
    let threads = std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
    let cores = sysinfo::System::physical_core_count().ok().and_then(|n| u32::try_from(n).ok());
    // A processor set or a quota can be smaller than the computer.
    let cores = cores.map(|cores| threads.map_or(cores, |threads| cores.min(threads)));
    let processor = processor(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let Memory { total: ram, available, .. } = memory();
    let node = |at: &usize| Path::new(&format!("/sys/devices/system/node/node{at}")).exists();
    let nodes = (0..64).take_while(node).count();
    HostFacts { ram, available, cores, threads, processor, isa: isa(), nodes }
}

/// Main memory and what the system allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Memory {
    /// What processes here may have in all.
    pub total: Option<Bytes>,
    /// What could be had now without swapping.
    pub available: Option<Bytes>,
    /// What the computer has, where a control group allows less.
    pub computer: Option<Bytes>,
    pub swap_used: Bytes,
    /// The most that a process may lock; `None` = no limit, or unknown.
    pub lock_limit: Option<Bytes>,
    /// `/proc/sys/vm/overcommit_memory`; `None` where there is no such thing.
    pub overcommit: Option<u8>,
    /// Whether this is Windows' Subsystem for Linux.
    pub wsl: bool,
}

pub fn memory() -> Memory {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut memory = Memory {
        #[cfg(unix)]
        lock_limit: rustix::process::getrlimit(rustix::process::Resource::Memlock).current.map(Bytes),
        overcommit: read("/proc/sys/vm/overcommit_memory").trim().parse().ok(),
        wsl: read("/proc/sys/kernel/osrelease").to_lowercase().contains("microsoft"),
        ..Memory::default()
    };
    if let Ok(mut system) = sysinfo::System::new() {
        system.refresh_memory();
        let computer = system.total_memory();
        let (total, available) = match system.cgroup_limits() {
            Some(limit) => (computer.min(limit.total_memory), system.available_memory().min(limit.free_memory)),
            None => (computer, system.available_memory()),
        };
        (memory.total, memory.available) = (Some(Bytes(total)), Some(Bytes(available)));
        memory.computer = (total < computer).then_some(Bytes(computer));
        memory.swap_used = Bytes(system.used_swap());
    }
    memory
}

/// `model name` of `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string()).filter(|name| !name.is_empty())
}

/// What this processor repacks (ggml-cpu/repack.cpp, b11434).
#[cfg(target_arch = "x86_64")]
pub fn isa() -> Isa {
    let tiles = || std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" amx_int8"));
    match (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2")) {
        (true, _) if tiles() => Isa::X86Amx,
        (true, _) => Isa::X86Avx512,
        (false, true) => Isa::X86Avx2,
        (false, false) => Isa::Generic,
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn isa() -> Isa {
    if cfg!(target_arch = "aarch64") { Isa::ArmNeon } else { Isa::Generic }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_computer_has_memory_and_cores() {
        let facts = host();
        assert!(facts.ram.is_some_and(|ram| facts.available.is_some_and(|available| available <= ram && ram.0 > 0)));
        assert!(facts.threads.is_some_and(|threads| threads > 0 && facts.cores.is_none_or(|cores| cores <= threads)));
    }

    #[test]
    fn a_processor_has_a_name() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
        assert_eq!(processor("model name\t:\n"), None);
    }
}
