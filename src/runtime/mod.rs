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
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host, Isa, Machine};
use crate::memory::MemoryByDevice;
use crate::run::RunConfig;
use crate::stats::Spread;
use crate::suggest::Hint;
use log::{Failure, Part, Reason};
use process::Stopped;

pub mod client;
pub mod detect;
#[cfg(feature = "embedded")]
mod embedded;
pub mod log;
pub mod nvml;
pub mod process;
pub mod projection;
pub mod sampler;
pub mod sandbox;
pub mod server;
pub mod worker;

pub use process::End;
pub use worker::{Embedded, RpcServer, Worker, bind_software_devices, software_machine};
#[cfg(feature = "embedded")]
pub use {embedded::serve_rpc, worker::serve};

/// What takes a log line of llama.cpp; untrusted text.
pub type Echo = fn(&str);

/// The llama.cpp build that feature `embedded` links (llama-cpp-sys-2 0.1.161).
pub const EMBEDDED_BUILD: u32 = 11434;

/// One launch of llama.cpp: which model, how, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// The model file (the first of a split).
    pub model: PathBuf,
    pub run: RunConfig,
    pub machine: Machine,
}

impl Launch {
    /// The devices to use, by the name that tells them apart in llama.cpp: the buffer type's.
    #[cfg(feature = "embedded")]
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

    /// The backend of its devices: the first one's name without its number.
    fn backend(&self) -> String {
        let name = self.machine.devices.first().map_or("CPU", |device| &device.name);
        name.trim_end_matches(|c: char| c.is_ascii_digit()).to_string()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub prompt: Prompt,
    /// Tokens that are in the cache before the prompt.
    pub depth: u32,
    /// Tokens to generate, greedily.
    pub n_generate: u32,
    pub repetitions: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    Text(String),
    /// So many tokens spread over the vocabulary.
    Tokens(u32),
}

/// A fixed sequence of `n` tokens spread over a vocabulary (a linear congruential generator), another one for each `seed`, so
/// that a run can be repeated.
pub fn pseudo_random(n: u32, n_vocab: u32, seed: u64) -> Vec<u32> {
    let n_vocab = u64::from(n_vocab.max(1));
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((*state >> 33) % n_vocab).ok()
    };
    (0..n).scan(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(42), |state, _| next(state)).collect()
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
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
    pub load_seconds: f64,
    pub speed: SpeedSamples,
    pub text: String,
    pub tokens: Vec<i32>,
    pub finite: bool,
    /// The share of experts that were found in the expert cache, where the build says.
    pub cache_hits: Option<f64>,
    /// Whether the person stopped it before its last sample.
    pub interrupted: bool,
}

/// Samples in tokens/s, one a repetition (llama-bench's names).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpeedSamples {
    pub n_prompt: u32,
    pub n_generate: u32,
    #[serde(default)]
    pub depth: u32,
    pub pp: Vec<f64>,
    pub tg: Vec<f64>,
    /// Seconds until the first token, by our clock.
    #[serde(default)]
    pub first_token: Vec<f64>,
    /// The share of drafted tokens that were taken; absent where none were drafted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drafts_taken: Option<f64>,
    #[serde(default)]
    pub summary: SpeedSummary,
}

/// Mean and spread of the samples, in tokens/s and seconds; `None` without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpeedSummary {
    pub pp: Option<Spread>,
    pub tg: Option<Spread>,
    pub first_token: Option<Spread>,
}

impl SpeedSamples {
    #[must_use]
    pub fn summed_up(self) -> Self {
        let [pp, tg, first_token] = [&self.pp, &self.tg, &self.first_token].map(|samples| Spread::of(samples));
        Self { summary: SpeedSummary { pp, tg, first_token }, ..self }
    }
}

/// Memory in use on each device at the moments of a measurement, by the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceUsed {
    pub before: BTreeMap<String, Bytes>,
    pub loaded: BTreeMap<String, Bytes>,
    pub peak: BTreeMap<String, Bytes>,
    pub after: BTreeMap<String, Bytes>,
    /// The most that the launch's own process was seen to use, where the driver tells processes apart.
    pub of_process: BTreeMap<String, Bytes>,
}

/// Which runtime measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuntimeInfo {
    /// `embedded`, or the program's path.
    pub program: String,
    pub build: u32,
    /// The backend of its devices (`CUDA`, `RPC`), or `CPU`.
    pub backend: String,
}

/// A device as llama.cpp lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceInfo {
    /// `CUDA0`, `RPC0`, `CPU`.
    pub name: String,
    /// Its buffer type's name, which `-ot` takes.
    pub buffer: String,
    pub description: String,
    /// Its backend's name (`CUDA`, `RPC`, `CPU`).
    pub backend: String,
    /// Whether weights can be offloaded to it.
    pub gpu: bool,
    pub total: Bytes,
    pub free: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferMemory {
    pub buffer: String,
    pub device: Option<String>,
    /// Whether llama.cpp counts it as host memory.
    pub host: bool,
    pub model: Bytes,
    pub context: Bytes,
    pub compute: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    pub buffers: Vec<BufferMemory>,
    pub devices: Vec<String>,
    /// The context length that came of it.
    pub n_ctx: u32,
}

/// Memory of a process (Linux; zero elsewhere).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessMemory {
    pub rss_anon: Bytes,
    /// Resident pages of files (RssFile): what is mapped of a model, and the program.
    pub rss_file: Bytes,
    /// Resident shared memory (RssShmem); drivers keep pinned memory here too.
    #[serde(default)]
    pub rss_shmem: Bytes,
    /// Memory that `-lm mlock` holds (VmLck).
    #[serde(default)]
    pub locked: Bytes,
    /// Memory that a driver has pinned, as far as the kernel knows (VmPin).
    #[serde(default)]
    pub pinned: Bytes,
    /// The most that was ever resident (VmHWM).
    pub peak: Bytes,
}

impl ProcessMemory {
    /// All that is resident (VmRSS).
    pub fn resident(&self) -> Bytes {
        self.rss_anon + self.rss_file + self.rss_shmem
    }
}

/// Something that runs llama.cpp. The one seam of this module: tests put a mock here.
pub trait Runtime {
    /// The devices that it has, those of `rpc` servers first.
    fn devices(&self, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error>;
    /// What llama.cpp says that each launch would allocate; nothing is allocated or read but headers.
    fn project(&self, launches: &[Launch]) -> Vec<Result<Projection, Error>>;
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
    let device = |info: &DeviceInfo| {
        // Of a backend without a row nothing is assumed but that it runs every operation.
        let backend = Backend::of_device(&info.backend).unwrap_or(Backend::Vulkan);
        let (buffer, description) = (info.buffer.clone(), Some(info.description.clone()));
        Device { buffer, description, free: info.free, ..Device::new(info.name.clone(), backend, info.total) }
    };
    let ram = devices.iter().find(|info| info.backend == "CPU").map(|info| info.total);
    Machine {
        devices: devices.iter().filter(|info| info.gpu).map(device).collect(),
        host: Host { ram, isa: embedded_isa(), ..Host::default() },
    }
}

/// Why llama.cpp did not do what was asked: the kinds that somebody tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Interrupted,
    /// Every launch of this model on these devices would end so, whatever its flags.
    Setup,
    Flags,
    /// No RPC server, or no endpoint, answers at its address.
    Unreachable,
    OutOfMemory,
    PortTaken,
    Died,
    TimedOut,
    Refused(String),
    /// The connection broke, or what came over it is not an answer.
    BadAnswer,
}

/// Why llama.cpp did not do what was asked, and what to try.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<std::io::Error>,
}

/// What a server does until it answers.
pub(crate) const LOADING: &str = "loading";
const SEE_LOG: &str = "run it again with -v for llama.cpp's whole log";

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    fn setup(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Kind::Setup, message).with_hint(hint)
    }

    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    #[must_use]
    fn caused_by(self, source: std::io::Error) -> Self {
        Self { source: Some(source), ..self }
    }

    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted").with_hint("what was started is stopped; nothing is left behind")
    }

    pub fn not_built() -> Self {
        let hint =
            "build it with `cargo build --release --features embedded` (needs cmake, a C++ compiler and libclang)";
        Self::setup("this moeplan was built without the embedded llama.cpp", hint)
    }

    fn start(program: &str, source: std::io::Error) -> Self {
        let hint = "check that the program is still there, and that it runs by hand";
        Self::setup(format!("cannot start `{program}`"), hint).caused_by(source)
    }

    fn bad_answer(who: &str, why: impl std::fmt::Display) -> Self {
        Self::new(Kind::BadAnswer, format!("{who}'s answer cannot be read: {why}"))
            .with_hint("is another program of that name being run?")
    }

    fn died(who: &str, doing: &str, end: End, log: &[String]) -> Self {
        let hint = match end {
            End::Signal(9) => "the system may have run out of memory: a smaller model or context, or `-lm mmap`",
            End::Signal(4) => {
                "its code for this processor does not run here: remove the variant that `llama-server -lv 4 --list-devices` \
                 names (libggml-cpu-NAME.so beside it), or try `-nr` after `--`"
            }
            _ => "run it again with -v for llama.cpp's whole log; `moeplan check` says what the launch needs",
        };
        Self::new(Kind::Died, format!("{who} died while {doing} ({end}){}", telling(log))).with_hint(hint)
    }

    /// Waiting for `who` ended without what was waited for.
    fn stopped(why: Stopped, who: &str, doing: &str, limit: Duration, log: &[String]) -> Self {
        if why == Stopped::Interrupted {
            return Self::interrupted();
        }
        let message = format!("{who} was stopped after {} s while {doing}{}", limit.as_secs(), telling(log));
        Self::new(Kind::TimedOut, message).with_hint("a larger --timeout, a smaller model, or fewer tokens")
    }

    /// A llama-server that ended for a reason that its log names.
    pub(crate) fn failed(failure: Failure, doing: &str, end: End) -> Self {
        let (kind, reason, hint) = match failure {
            Failure::OutOfMemory { buffer, bytes, part } => {
                let size = bytes.map_or_else(|| "memory".to_string(), |bytes: Bytes| bytes.to_string());
                let place = buffer.as_ref().map_or_else(String::new, |buffer| format!(" on {buffer}"));
                let part = match part {
                    Some(Part::Model) => " for weights",
                    Some(Part::Context) => " for the context",
                    Some(Part::Compute) => " for compute buffers",
                    Some(Part::Output) => " for output rows",
                    None => "",
                };
                let is_host = buffer.is_some_and(|buffer| buffer.starts_with("CPU"));
                let hint = if is_host {
                    "main memory is short: a smaller context, `-lm mmap`, or more of the model on the devices"
                } else {
                    "give more room there: a larger --margin, a smaller -c or -ub, or `-ctk q8_0 -ctv q8_0`; \
                     another program may hold memory on the device"
                };
                (Kind::OutOfMemory, format!("out of memory: {size}{part} cannot be allocated{place}"), hint)
            }
            Failure::Said(&Reason { ref kind, says, hint }, text) => {
                let end = if *kind == Kind::Died { format!(" ({end})") } else { String::new() };
                (kind.clone(), format!("{says}{text}{end}"), hint)
            }
        };
        let what = if doing == LOADING { "did not start".to_string() } else { format!("died while {doing}") };
        Self::new(kind, format!("llama-server {what}: {reason}")).with_hint(hint)
    }

    pub fn is_interrupted(&self) -> bool {
        self.kind == Kind::Interrupted
    }

    /// Whether every launch of this model on these devices would end so, whatever its flags: nothing is gained by another.
    pub fn is_of_every_launch(&self) -> bool {
        matches!(self.kind, Kind::Setup | Kind::Unreachable)
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.hint.as_deref().map(Cow::Borrowed)
    }
}

/// `: ` and the log lines that say most, or nothing.
fn telling(log: &[String]) -> String {
    const WORDS: [&str; 6] = ["error", "failed", "assert", "abort", "unknown", "unable"];
    let tells = |line: &&String| {
        let lower = line.to_lowercase();
        WORDS.iter().any(|word| lower.contains(word))
    };
    let mut lines: Vec<&String> = log.iter().filter(tells).collect();
    if lines.is_empty() {
        lines = log.iter().collect();
    }
    let last: Vec<&str> = lines.iter().rev().take(3).rev().map(|line| line.trim()).collect();
    if last.is_empty() { String::new() } else { format!(": {}", last.join(" | ")) }
}

pub(crate) fn this_program() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(|error| Error::start("moeplan", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_sum_as_in_llama_cpps_table() {
        let buffer = |(buffer, device, host, model): (&str, &str, bool, u64)| BufferMemory {
            buffer: buffer.to_string(),
            device: Some(device.to_string()),
            host,
            model: Bytes(model),
            context: Bytes(1),
            compute: Bytes(2),
        };
        let buffers = [
            ("CUDA0", "CUDA0", false, 100),
            ("CUDA_Host", "CUDA0", true, 20),
            ("CPU", "CPU", true, 3),
            ("CPU_REPACK", "CPU", false, 7),
        ];
        let buffers = buffers.map(buffer).to_vec();
        let table = Projection { buffers, devices: vec!["CUDA0".to_string()], n_ctx: 256 }.by_device();
        let model: Vec<(&str, u64)> = table.iter().map(|(key, row)| (key.as_str(), row.model.0)).collect();
        assert_eq!(model, [("CPU_REPACK", 7), ("CUDA0", 100), ("Host", 23)]);
        assert_eq!(table["Host"].compute, Bytes(4));
    }

    #[test]
    fn an_error_says_the_lines_that_matter() {
        let log: Vec<String> = ["loading", "error: no such tensor", "bye"].map(str::to_string).to_vec();
        let error = Error::died("llama.cpp", "loading `m`", End::Signal(6), &log);
        assert_eq!(error.to_string(), "llama.cpp died while loading `m` (signal 6 (SIGABRT)): error: no such tensor");
    }
}
