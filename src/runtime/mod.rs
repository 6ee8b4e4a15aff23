//! Running llama.cpp: the real llama-server, or the embedded engine in a child process of moeplan itself. [I/O]
//!
//! A crash of the engine is an error message here, its memory is measured apart from moeplan's own, and no child outlives
//! its parent: the worker, and the supervisor of a server, end when their standard input does.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host, Isa, Machine};
use crate::memory::MemoryByDevice;
use crate::run::{LoadMode, RunConfig};
use crate::suggest::Hint;

#[cfg(feature = "embedded")]
mod child;
#[cfg(feature = "embedded")]
mod embedded;
pub mod bench;
pub mod cards;
pub mod detect;
pub mod endpoint;
pub mod log;
pub mod nvml;
mod rpc;
pub mod sandbox;
pub mod server;
pub mod sampler;
pub mod wire;
mod warm;
mod worker;

#[cfg(feature = "embedded")]
pub use child::{serve, serve_rpc};
pub use rpc::{RpcProgram, RpcServer, bind_software_devices, software_machine};
pub use wire::{BufferMemory, DeviceInfo, Job, ProcessMemory, Projection, Prompt, Workload};
pub use worker::{Echo, Embedded, Worker};

/// The llama.cpp build that feature `embedded` links (llama-cpp-sys-2 0.1.161).
pub const EMBEDDED_BUILD: u32 = 11434;

/// One launch of llama.cpp: which model, how, and on what.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The model file (the first of a split).
    pub model: PathBuf,
    /// What its command line says.
    pub run: RunConfig,
    /// The devices it may use.
    pub machine: Machine,
    /// Threads of the engine; 0 = all processors.
    pub n_threads: u32,
}

impl Launch {
    /// The devices to use, by the name that tells them apart in llama.cpp: the buffer type's.
    fn device_names(&self) -> Vec<String> {
        let asked = self.run.devices.as_ref();
        let wanted = |name: &str| asked.is_none_or(|names| names.iter().any(|n| n == name));
        let devices = self.machine.devices.iter().filter(|d| d.backend != Backend::Cpu);
        devices.filter(|d| wanted(&d.name) || wanted(&d.buffer)).map(|d| d.buffer.clone()).collect()
    }

    /// The RPC servers to reach: `--rpc`, then those of the machine's devices.
    fn endpoints(&self) -> Vec<String> {
        self.machine.rpc_servers(&self.run.rpc)
    }
}

/// What a run showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Which runtime.
    pub runtime: RuntimeInfo,
    /// The command line that ran, its program first; empty where llama.cpp runs inside moeplan.
    pub command: Vec<String>,
    /// Memory by device, in llama.cpp's own sums. Mapped weights count as the exact sum of their tensors.
    pub memory: MemoryByDevice,
    /// How far each figure may be from the true one (a log prints two decimals of MiB); empty = exact.
    pub resolution: MemoryByDevice,
    /// What the devices show, by whomever it is used; empty where no driver says.
    pub device_used: DeviceUsed,
    /// What is mapped: the file's span from the first to the last host tensor; zero when nothing is.
    pub mapped_span: Bytes,
    /// Memory of the runtime's process after the run.
    pub process: ProcessMemory,
    /// What it had before the model was loaded.
    pub process_before: ProcessMemory,
    /// Time to load, in seconds.
    pub load_seconds: f64,
    /// Prompt tokens of each repetition.
    pub n_prompt: u32,
    /// Tokens that were in the cache before each of these prompts.
    pub depth: u32,
    /// Seconds from the request to the first token, by our clock, of each repetition; empty where that is not seen.
    pub first_token: Vec<f64>,
    /// Prompt processing, tokens/s of each repetition.
    pub pp: Vec<f64>,
    /// Generation, tokens/s of each repetition.
    pub tg: Vec<f64>,
    /// What was generated.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<i32>,
    /// Whether every logit was a finite number.
    pub finite: bool,
    /// Whether the person stopped it before its last sample.
    pub interrupted: bool,
}

/// Memory in use on each device at the moments of a measurement, by the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceUsed {
    /// Before the launch.
    pub before: BTreeMap<String, Bytes>,
    /// Once it was loaded.
    pub loaded: BTreeMap<String, Bytes>,
    /// The most that was seen.
    pub peak: BTreeMap<String, Bytes>,
    /// After it was stopped.
    pub after: BTreeMap<String, Bytes>,
    /// The most that the launch's own process was seen to use, where the driver tells processes apart.
    pub of_process: BTreeMap<String, Bytes>,
}

/// Which runtime measured.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuntimeInfo {
    /// `embedded`, or the program's path.
    pub program: String,
    /// llama.cpp's build number.
    pub build: u32,
    /// The backend of its devices (`CUDA`, `RPC`), or `CPU`.
    pub backend: String,
}

/// Something that runs llama.cpp. The one seam of this module: tests put a mock here.
pub trait Runtime {
    /// The devices that it has, those of `rpc` servers first.
    fn devices(&self, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error>;
    /// What llama.cpp says that each launch would allocate; nothing is allocated or read but headers.
    fn project(&self, launches: &[Launch]) -> Vec<Result<Projection, Error>>;
    /// Loads, runs, measures.
    fn generate(&self, launch: &Launch, workload: &Workload) -> Result<Observation, Error>;
}

impl Projection {
    /// By device as llama.cpp's own table sums it (common/fit.cpp, b11434): the model's devices by name, `Host` = every
    /// host buffer type, others by the buffer type's name.
    pub fn by_device(&self) -> MemoryByDevice {
        let mut table: MemoryByDevice = BTreeMap::new();
        for buffer in &self.buffers {
            let of_model = buffer.device.as_ref().filter(|name| self.devices.contains(name));
            let key = match (buffer.host, of_model) {
                (true, _) => "Host",
                (false, Some(device)) => device,
                (false, None) => &buffer.buffer,
            };
            let row = table.entry(key.to_string()).or_default();
            row.model += buffer.model;
            row.context += buffer.context;
            row.compute += buffer.compute;
        }
        table.entry("Host".to_string()).or_default();
        table
    }

    /// Weights that are mapped rather than held, by their span in the file.
    pub fn mapped_span(&self) -> Bytes {
        self.buffers.iter().filter(|b| b.buffer.ends_with("_Mapped")).map(|b| b.model).sum()
    }
}

/// The instruction set that the embedded llama.cpp is built for (`.cargo/config.toml`): it decides what is repacked.
pub fn embedded_isa() -> Isa {
    if cfg!(target_arch = "aarch64") { Isa::ArmNeon } else { Isa::X86Avx2 }
}

/// The machine of the devices that a runtime lists: those that weights can be offloaded to.
pub fn machine_of(devices: &[DeviceInfo]) -> Machine {
    let device = |info: &DeviceInfo| Device {
        name: info.name.clone(),
        buffer: info.buffer.clone(),
        backend: match info.backend.as_str() {
            "RPC" => Backend::Rpc,
            "Vulkan" => Backend::Vulkan,
            "MTL" | "Metal" => Backend::Metal,
            "ROCm" | "HIP" => Backend::Rocm,
            _ => Backend::Cuda,
        },
        description: Some(info.description.clone()),
        total: info.total,
        free: info.free,
        sold_as: None,
        overhead: None,
        calibration: None,
        rates: None,
    };
    let ram = devices.iter().find(|info| info.backend == "CPU").map(|info| info.total);
    Machine {
        devices: devices.iter().filter(|info| info.gpu).map(device).collect(),
        host: Host { ram, isa: embedded_isa(), ..Host::default() },
    }
}

/// `launch` as the projection takes it: nothing mapped, as llama.cpp's own projections.
fn unmapped(launch: &Launch) -> Launch {
    let mut launch = launch.clone();
    launch.run.load_mode = LoadMode::None;
    launch
}

/// Why a runtime did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The feature is off.
    #[error("this moeplan was built without the embedded llama.cpp")]
    NotBuilt,
    /// The worker process cannot be started.
    #[error("cannot start `{program}` as a worker")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The worker ended by itself.
    #[error("llama.cpp died while {doing} ({status}){}", said(log))]
    Died {
        /// What it was asked.
        doing: String,
        /// Exit code or signal.
        status: String,
        /// Its last log lines.
        log: Vec<String>,
    },
    /// The worker took too long and was killed.
    #[error("llama.cpp was stopped after {seconds} s while {doing}{}", said(log))]
    TimedOut {
        /// What it was asked.
        doing: String,
        /// The limit.
        seconds: u64,
        /// Its last log lines.
        log: Vec<String>,
    },
    /// llama.cpp said no.
    #[error("llama.cpp refused: {message} while {doing}{}", said(log))]
    Refused {
        /// What it was asked.
        doing: String,
        /// What failed.
        message: String,
        /// Its last log lines.
        log: Vec<String>,
    },
    /// The worker's answer makes no sense.
    #[error("the worker answered `{0}`, which is not an answer")]
    BadReply(String),
    /// llama-server did not do what was asked.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// No RPC server listens.
    #[error("no RPC server answers at `{endpoint}`")]
    Unreachable {
        /// `host:port`.
        endpoint: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Our own RPC server does not come up.
    #[error("the local RPC server did not start{}", said(.0))]
    NoRpcServer(Vec<String>),
}

impl Error {
    /// Whether memory could not be had.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Server(server::Error::Failed(failed)) if failed.is_out_of_memory())
    }

    /// Whether every launch of this model on these devices would end so, whatever its flags: nothing is gained by another.
    pub fn is_of_every_launch(&self) -> bool {
        match self {
            Self::NotBuilt | Self::Start { .. } | Self::Unreachable { .. } | Self::NoRpcServer(_) => true,
            Self::Server(error) => error.is_of_every_launch(),
            Self::Died { .. } | Self::TimedOut { .. } | Self::Refused { .. } | Self::BadReply(_) => false,
        }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::NotBuilt => {
                "build it with `cargo build --release --features embedded` (needs cmake, a C++ compiler and libclang)"
            }
            Self::Start { .. } => "is the program still where it was started from?",
            Self::Died { status, .. } if status.contains("SIGKILL") => {
                "the system may have run out of memory: a smaller model or context, or `-lm mmap`"
            }
            Self::Died { .. } => {
                "run it again with -v for llama.cpp's whole log; `moeplan check` says what the launch needs"
            }
            Self::TimedOut { .. } => "a larger --timeout, a smaller model, or fewer tokens",
            Self::Refused { .. } => "run it again with -v for llama.cpp's whole log",
            Self::Server(error) => return error.hint(),
            Self::BadReply(_) => "is another program of the same name being run?",
            Self::Unreachable { .. } => "start one there with `ggml-rpc-server -H HOST -p PORT`",
            Self::NoRpcServer(_) => "is a loopback address allowed here?",
        };
        Some(text.into())
    }
}

/// This very program.
fn this_program() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(|source| Error::Start { program: "moeplan".into(), source })
}

/// ` (SIGKILL)` and the like; nothing for a signal that says little.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        2 => " (SIGINT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// `: ` and the log lines that say most, or nothing.
fn said(log: &[String]) -> String {
    const TELLING: [&str; 6] = ["error", "failed", "assert", "abort", "unknown", "unable"];
    let telling = |line: &&String| {
        let lower = line.to_lowercase();
        TELLING.iter().any(|word| lower.contains(word))
    };
    let mut lines: Vec<&String> = log.iter().filter(telling).collect();
    if lines.is_empty() {
        lines = log.iter().collect();
    }
    let last: Vec<&str> = lines.iter().rev().take(3).rev().map(|line| line.trim()).collect();
    if last.is_empty() { String::new() } else { format!(": {}", last.join(" | ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(buffer: &str, device: Option<&str>, host: bool, model: u64) -> BufferMemory {
        BufferMemory {
            buffer: buffer.to_string(),
            device: device.map(str::to_string),
            host,
            model: Bytes(model),
            context: Bytes(1),
            compute: Bytes(2),
        }
    }

    #[test]
    fn buffers_sum_as_in_llama_cpps_table() {
        let projection = Projection {
            buffers: vec![
                buffer("CUDA0", Some("CUDA0"), false, 100),
                buffer("CUDA_Host", Some("CUDA0"), true, 20),
                buffer("CPU", Some("CPU"), true, 3),
                buffer("CPU_REPACK", Some("CPU"), false, 7),
            ],
            devices: vec!["CUDA0".to_string()],
            n_ctx: 256,
        };
        let table = projection.by_device();
        let model: Vec<(&str, u64)> = table.iter().map(|(key, row)| (key.as_str(), row.model.0)).collect();
        assert_eq!(model, [("CPU_REPACK", 7), ("CUDA0", 100), ("Host", 23)]);
        assert_eq!(table["Host"].compute, Bytes(4));
    }

    #[test]
    fn an_error_says_the_lines_that_matter_and_what_to_try() {
        let log: Vec<String> = ["loading", "error: no such tensor", "bye"].map(str::to_string).to_vec();
        let error = Error::Died { doing: "loading `m`".into(), status: "signal 6 (SIGABRT)".into(), log };
        assert_eq!(error.to_string(), "llama.cpp died while loading `m` (signal 6 (SIGABRT)): error: no such tensor");
        assert!(error.hint().is_some());
    }
}
