//! What is looked at: plain values, so that any computer can be made up in a test.

use std::path::PathBuf;

use serde::Serialize;

use crate::bytes::Bytes;
use crate::runtime::DeviceInfo;
pub use crate::runtime::server::Place;

/// A computer, as far as moeplan depends on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Facts {
    pub moeplan: Moeplan,
    /// Every llama-server, in the order in which one is looked for; the first is the one that is used.
    pub servers: Vec<Server>,
    pub nvidia: Nvidia,
    /// Other graphics interfaces that the system shows: `/dev/kfd`, `/dev/dri`, `/dev/dxg`.
    pub interfaces: Vec<String>,
    pub memory: Memory,
    pub folders: Vec<Folder>,
    /// Temporary files and folders of runs that crashed or were killed.
    pub leftovers: Vec<Leftover>,
    pub knowledge: Knowledge,
    /// Variables that matter, sorted by name; those of llama.cpp, the drivers and moeplan.
    pub environment: Vec<Variable>,
    /// llama.cpp's configuration files that exist.
    pub config_files: Vec<ConfigFile>,
}

/// This moeplan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Moeplan {
    /// `0.1.0`.
    pub version: String,
    /// Whether it reads headers over the network (cargo feature `remote`).
    pub remote: bool,
    /// The llama.cpp inside it (cargo feature `embedded`).
    pub embedded: Option<Embedded>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Embedded {
    pub build: u32,
    /// Why it does not run; `None` where it does.
    pub error: Option<String>,
}

/// A llama-server that was found or named.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Server {
    pub place: Place,
    pub program: PathBuf,
    /// Why it cannot be used; `None` where it can.
    pub error: Option<String>,
    /// What it says of its version.
    pub version: Option<String>,
    /// The N of bN, where it is a release.
    pub build: Option<u32>,
    /// Flags that its help lists; 0 without help.
    pub flags: usize,
    /// Whether its flags are those of ik_llama.cpp.
    pub ik: bool,
    /// What `--list-devices` names, the processor left out; only asked of the one that is used.
    pub devices: Vec<DeviceInfo>,
    /// Whether `--list-devices` was answered.
    pub lists_devices: bool,
    pub bench: bool,
    pub rpc: bool,
}

/// The NVIDIA driver.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Nvidia {
    /// Its version; `None` where its library (NVML) cannot be loaded.
    pub driver: Option<String>,
    /// Cards that programs here see, as llama.cpp names them.
    pub cards: Vec<DeviceInfo>,
    /// Cards that there are, hidden ones too.
    pub installed: usize,
    /// Whether the kernel's side of the driver is loaded (`/proc/driver/nvidia`, `/dev/nvidiactl`).
    pub kernel_module: bool,
}

/// Main memory and what the system allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
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

/// A folder that is written to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Folder {
    pub purpose: Purpose,
    pub path: PathBuf,
    /// Whether a file can be made there (or in what would hold the folder, where it is not there yet).
    pub writable: bool,
    pub free: Option<Bytes>,
}

/// Something temporary whose owner is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Leftover {
    pub path: PathBuf,
    pub bytes: Bytes,
}

/// What a folder is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Headers that came over the network, and the llama-server that scripts/llama-server builds.
    #[default]
    Cache,
    State,
    Config,
    Temporary,
}

/// What was learned of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Knowledge {
    pub evidence: Option<PathBuf>,
    pub records: usize,
    /// The file of rates, where there is one.
    pub rates: Option<PathBuf>,
    pub rates_error: Option<String>,
    /// Devices here that have measured rates.
    pub rated_devices: Vec<String>,
    /// Devices here whose overhead was measured.
    pub measured_devices: Vec<String>,
    /// Whether the host here has measured rates.
    pub rated_host: bool,
    /// Headers kept of models on the network.
    pub headers: usize,
    pub headers_bytes: Bytes,
}

/// One variable of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Variable {
    pub name: String,
    /// Its value; `None` where it is, or may hold, a secret.
    pub value: Option<String>,
}

/// A configuration file of llama.cpp.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigFile {
    pub path: PathBuf,
    /// Whether it is the system's, which cannot be kept from a llama-server.
    pub system: bool,
}
