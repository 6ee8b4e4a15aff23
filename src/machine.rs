//! A machine: its devices and its host, from flags, a file, or what is found here.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, GIB, MIB, ParseBytesError};
use crate::gguf::GgmlType;
use crate::number::counted;
use crate::suggest::{self, Hint};

pub mod cards;
pub mod processors;

/// What is left free of a device where nothing was measured of it yet.
pub const MARGIN_UNCALIBRATED: Bytes = Bytes::mib(256);

/// Where a model could run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Machine {
    /// In llama.cpp's order (RPC servers first, then GPUs).
    pub devices: Vec<Device>,
    pub host: Host,
}

/// One device as llama.cpp names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Device {
    /// `CUDA0`, `Vulkan0`, `MTL0`, `RPC0`: the key in memory tables.
    pub name: String,
    /// The buffer type that `-ot` takes; equal to `name` but for RPC (`RPC0[host:port]`).
    pub buffer: String,
    pub backend: Backend,
    /// What it calls itself, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The memory it has, or the budget it is given.
    pub total: Bytes,
    pub free: Bytes,
    /// It has no memory of its own: `total` is how much of main memory it may use (`uma: 1` in llama.cpp's log).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub integrated: bool,
    /// GB on the box, where that is all that is known of the card: `total` is then the least that such cards offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sold_as: Option<u32>,
    /// What a process holds here beyond llama.cpp's own sums, at its peak; `None` = the built-in table's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Bytes>,
    /// What was measured of it before; `None` = nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// What it does in a second; `None` = the built-in table's, by its description or its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<DeviceRates>,
}

/// What tells a backend from others: a row of `Backend::facts`.
struct BackendFacts {
    /// The name of its devices without their number, as llama.cpp prints it.
    device: Option<&'static str>,
    /// The buffer type of pinned host memory that it offers.
    host_buffer: Option<&'static str>,
    /// What allocation sizes are padded to in a buffer of its devices.
    alignment: u64,
    /// A quantized tensor whose rows are not a multiple of 512 elements gets the rest of one row more (`get_alloc_size`).
    pads_rows: bool,
    /// What is known of its rules.
    known: &'static str,
}

impl Backend {
    pub const ALL: [Self; 10] = [
        Self::Cuda,
        Self::Vulkan,
        Self::Metal,
        Self::Rocm,
        Self::Musa,
        Self::Sycl,
        Self::Cann,
        Self::Opencl,
        Self::Rpc,
        Self::Cpu,
    ];

    /// Sources, b11434: `ggml-cuda.cu`, `ggml-sycl.cpp`, `ggml-cann.cpp` (128, padded rows), `ggml-impl.h` `TENSOR_ALIGNMENT` (32),
    /// `ggml-metal.cpp` (32), `ggml-rpc.cpp` (the server's: a CPU server says 32). Vulkan's is the driver's own
    /// `minStorageBufferOffsetAlignment`, 16 with Mesa's llvmpipe; OpenCL's `CL_DEVICE_MEM_BASE_ADDR_ALIGN`, usually 128.
    const fn facts(self) -> BackendFacts {
        let (device, host_buffer, alignment, pads_rows, known) = match self {
            Self::Cuda => (
                Some("CUDA"),
                Some("CUDA_Host"),
                128,
                true,
                "CUDA: alignment 128; compared with llama.cpp's own projection on an H100",
            ),
            Self::Rocm => (
                Some("ROCm"),
                Some("ROCm_Host"),
                128,
                true,
                "ROCm: CUDA's rules, from the same source; not compared with any device, compute uncertain by a few percent",
            ),
            Self::Musa => (
                Some("MUSA"),
                Some("MUSA_Host"),
                128,
                true,
                "MUSA: CUDA's rules, from the same source; not compared with any device, compute uncertain by a few percent",
            ),
            Self::Sycl => (
                Some("SYCL"),
                Some("SYCL_Host"),
                128,
                true,
                "SYCL: alignment 128; not compared with any device, compute uncertain by a few percent (the scratch of its flash attention is \
                 not counted, and every operation is assumed to run there)",
            ),
            Self::Cann => (
                Some("CANN"),
                Some("CANN_Host"),
                128,
                true,
                "CANN: alignment 128; not compared with any device, compute uncertain by a few percent, and F16 and F32 matrices by what its \
                 own layout (GGML_CANN_WEIGHT_NZ) adds",
            ),
            Self::Opencl => (
                Some("GPUOpenCL"),
                None,
                128,
                false,
                "OpenCL: alignment assumed to be 128 (it is the device's own); not compared with any device, compute uncertain by a few percent",
            ),
            Self::Vulkan => (
                Some("Vulkan"),
                Some("Vulkan_Host"),
                16,
                false,
                "Vulkan: compared with llama.cpp's own projection on a software device; the alignment, 16 and 64 in pinned memory, is \
                 the driver's own (4 to 256), which moves model, context and compute by a few KiB",
            ),
            Self::Metal => (
                Some("MTL"),
                None,
                32,
                false,
                "Metal: alignment 32, no pinned host memory; not compared with any device, compute uncertain by a few percent (scratch memory of \
                 its kernels is not counted)",
            ),
            Self::Rpc => (
                Some("RPC"),
                None,
                32,
                false,
                "RPC: as a server on a processor answers (alignment 32), compared with llama.cpp's own projection; a server on a GPU \
                 has that GPU's alignment",
            ),
            Self::Cpu => (None, None, 32, false, "CPU: host memory"),
        };
        BackendFacts { device, host_buffer, alignment, pads_rows, known }
    }

    /// The backend whose devices llama.cpp calls so, numbered or not.
    pub fn of_device(name: &str) -> Option<Self> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        // ggml's registry says HIP, and builds before b7217 call Metal's device Metal.
        let stem = match stem {
            "HIP" => "ROCm",
            "Metal" => "MTL",
            stem => stem,
        };
        Self::ALL.into_iter().find(|backend| backend.device_prefix() == Some(stem))
    }

    /// Whether it is compiled from CUDA's source (`GGML_CUDA_NAME`, `ggml-cuda.h`).
    pub fn is_cuda_source(self) -> bool {
        matches!(self, Self::Cuda | Self::Rocm | Self::Musa)
    }

    /// What is known of its rules, in a sentence.
    pub fn known(self) -> &'static str {
        self.facts().known
    }

    pub fn device_prefix(self) -> Option<&'static str> {
        self.facts().device
    }

    /// The name of its device number `index`; `None`: it has no devices. OpenCL's have no number
    /// (`ggml_backend_opencl_device_get_name`, b11434).
    fn device_name(self, index: usize) -> Option<String> {
        let prefix = self.device_prefix()?;
        Some(if self == Self::Opencl { prefix.to_string() } else { format!("{prefix}{index}") })
    }

    /// Whether its devices have the events and the asynchronous copies that several micro-batches in flight take (`caps` of
    /// `get_props`, b11434).
    pub fn may_pipeline(self) -> bool {
        !matches!(self, Self::Cann | Self::Opencl)
    }

    pub fn host_buffer_name(self) -> Option<&'static str> {
        self.facts().host_buffer
    }

    pub fn alignment(self) -> u64 {
        self.facts().alignment
    }

    /// The alignment of its pinned host memory: the CPU's own, but for Vulkan's `minMemoryMapAlignment`, which is 64 at least.
    pub fn host_alignment(self) -> u64 {
        if self == Self::Vulkan { 64 } else { Self::Cpu.alignment() }
    }

    /// Whether a device of so many bytes, of which nothing else is known, most likely has no memory of its own: Metal's, and sizes of
    /// which hardly any card of the backend is sold.
    pub fn is_of_main_memory(self, total: Bytes) -> bool {
        let gib = total.0 / GIB;
        match self {
            Self::Metal => true,
            Self::Rocm | Self::Vulkan => (60..140).contains(&gib),
            Self::Cuda => (110..132).contains(&gib),
            _ => false,
        }
    }

    /// The bytes a tensor takes in a buffer of this backend's devices, before alignment.
    pub fn alloc_size(self, ty: GgmlType, shape: [u64; 4], bytes: Bytes) -> Bytes {
        let rest = shape[0] % 512;
        if !ty.is_quantized {
            bytes
        } else if self == Self::Opencl {
            // The parts of a quantized tensor each begin at a multiple of the alignment (`GGML_OPENCL_SOA_Q`, b11434).
            Bytes(bytes.0 + 4 * self.alignment())
        } else if self.facts().pads_rows && rest != 0 {
            // A row is a whole number of blocks, and 512 is one for every type, so what is missing is one too.
            Bytes(bytes.0 + ty.row_bytes(512 - rest).unwrap_or(0))
        } else {
            bytes
        }
    }

    /// What a tensor takes in a buffer of this backend's devices, alignment included.
    pub fn tensor_bytes(self, ty: GgmlType, shape: [u64; 4]) -> Bytes {
        // A part of a tensor ends with a block; an empty one takes nothing. A header may say any shape.
        let row = ty.row_bytes(shape[0]).unwrap_or(0);
        let bytes = Bytes(shape[1..].iter().fold(row, |bytes, n| bytes.saturating_mul(*n)));
        if bytes.0 == 0 { bytes } else { self.alloc_size(ty, shape, bytes).padded(self.alignment()) }
    }

    /// The largest single buffer; a bigger model takes several (Vulkan: `suballocation_block_size`, 1 GiB).
    pub fn max_buffer(self) -> Bytes {
        if self == Self::Vulkan { Bytes::mib(1024) } else { Bytes(u64::MAX) }
    }
}

/// A device that was described in a way that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("`--device {0}`: write NAME=SIZE, for example CUDA0=24G or RPC0[127.0.0.1:50052]=24G")]
    NoSize(String),
    #[error(
        "`--device {0}`: not a device name that moeplan knows; known are CUDA0, ROCm0, MUSA0, Vulkan0, SYCL0, CANN0, GPUOpenCL, \
         MTL0, RPC0[HOST:PORT]"
    )]
    UnknownName(String),
    #[error("`{flag}`: {error}")]
    Size { flag: String, error: ParseBytesError },
    #[error("`{0}` is described twice; give every device one name and one size")]
    Twice(String),
    #[error("`--gpu {0}`: no card of that name is known")]
    UnknownCard(String),
    #[error("`--gpu {0}`: write how many there are, 1 to 32: --gpu '4x RTX 3090'")]
    Count(String),
    #[error("`--gpu {text}`: this names two cards, {first} and {second}")]
    TwoCards { text: String, first: String, second: String },
    #[error("`--gpu {text}`: the name says {named} of memory, but --ram says {ram}")]
    TwoSizes { text: String, named: Bytes, ram: Bytes },
    #[error("`--gpu {0}`: the memory of this card is not known")]
    NoMemory(String),
    #[error("`--backend cpu` has no devices; leave `--vram` and `--gpu` out")]
    NoDevices,
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::TwoCards { first, second, .. } => {
                format!("write a comma between cards, --gpu '{first},{second}', and `4x` before four of one").into()
            }
            Self::TwoSizes { .. } => "leave one of them out".into(),
            // Intel's graphics that use main memory have many names, and few of them rows.
            Self::UnknownCard(name) if cards::is_intel_integrated(name) => {
                "it uses main memory: say how much of that it may take, --device Vulkan0=18G,shared --ram 32G".into()
            }
            Self::UnknownCard(name) if cards::is_mac(name) => {
                "a Mac is named by its chip: --gpu 'M4 Max' --ram 64G".into()
            }
            Self::UnknownCard(name) => {
                // Of a series (`RX 7900`), its cards.
                let lower = name.to_lowercase();
                let numbers = || lower.split_whitespace().filter(|word| word.contains(|c: char| c.is_ascii_digit()));
                let is_of = |words: &&str| numbers().next().is_some() && numbers().all(|n| words.split(' ').any(|word| word == n));
                let known = || cards::CARDS.iter().map(|card| card.words);
                let series: Vec<&str> = known().filter(is_of).collect();
                let meant = if series.is_empty() { suggest::did_you_mean(name, known()) } else { suggest::one_of(&series) };
                let meant = meant.unwrap_or_default();
                format!("{meant} `moeplan devices --known` lists the names; --vram SIZE needs none")
                    .trim()
                    .to_string()
                    .into()
            }
            Self::NoMemory(name) if cards::by_name(name).is_some_and(cards::Card::is_integrated) => {
                format!("it uses main memory: say how much there is, --ram SIZE; --gpu '{name}=SIZE' says how much of it the GPU may use").into()
            }
            Self::NoMemory(name) => format!("add its size: --gpu '{name}=SIZE'").into(),
            _ => return None,
        })
    }
}

impl Machine {
    pub fn device(&self, index: u16) -> Option<&Device> {
        self.devices.get(usize::from(index))
    }

    /// The RPC servers that a launch must name: those it names already, then those of the devices.
    pub fn rpc_servers(&self, named: &[String]) -> Vec<String> {
        let mut servers = named.to_vec();
        for endpoint in self.devices.iter().filter_map(Device::endpoint) {
            if !servers.iter().any(|known| known == endpoint) {
                servers.push(endpoint.to_string());
            }
        }
        servers
    }

    /// The RPC devices of a launch that names these servers, in llama.cpp's order, as indices of `devices`.
    ///
    /// Source: `ggml-rpc.cpp` `ggml_backend_rpc_add_server`, b11434: numbered as their servers are named.
    pub fn registered(&self, servers: &[String]) -> Vec<u16> {
        let devices = || (0_u16..).zip(&self.devices).filter(|(_, device)| device.backend == Backend::Rpc);
        let of_server = |server: &String| {
            let server = server.clone();
            devices().filter(move |(_, device)| device.endpoint() == Some(&server)).map(|(at, _)| at)
        };
        let anywhere = devices().filter(|(_, device)| !servers.is_empty() && device.endpoint().is_none());
        servers.iter().flat_map(of_server).chain(anywhere.map(|(at, _)| at)).collect()
    }

    /// A machine of these devices in llama.cpp's order: RPC servers first, numbered and their buffer types named as it does.
    pub fn new(mut devices: Vec<Device>, host: Host) -> Result<Self, Error> {
        devices.sort_by_key(|device| device.rpc_number().map_or((true, 0), |number| (false, number)));
        for (i, device) in devices.iter().enumerate() {
            // Every RPC server counts its own devices from 0.
            let is_same = |other: &Device| {
                let apart = device.endpoint().is_some() && other.endpoint().is_some() && device.buffer != other.buffer;
                device.name == other.name && !apart
            };
            if devices.iter().skip(i + 1).any(is_same) {
                return Err(Error::Twice(device.name.clone()));
            }
        }
        number_remote(&mut devices);
        for device in &mut devices {
            device.integrated |= device.is_of_main_memory();
        }
        let unknown = host == Host { ram: host.ram, ..Host::default() };
        let host = if unknown { host.beside(&devices) } else { host };
        Ok(Self { devices, host })
    }

    /// Whether a device has no memory of its own, so that nothing of this machine can be bought apart.
    pub fn is_unified(&self) -> bool {
        self.devices.iter().any(|device| device.integrated)
    }

    /// What to say of its budgets, a line for devices of which the same is said.
    pub fn budget_notes(&self) -> impl Iterator<Item = String> {
        let noted = self.devices.iter().filter_map(|device| Some((&*device.name, device.note(self.host.ram)?)));
        let devices = said_once(noted).into_iter();
        devices.chain(self.host.note.iter().map(|note| format!("main memory: {note}")))
    }

    /// What is to be left free on every device: the largest that one of them calls for.
    pub fn margin(&self) -> Bytes {
        self.devices.iter().map(Device::margin).max().unwrap_or(MARGIN_UNCALIBRATED)
    }
}

/// A line for each note, behind the names of all devices of which it is said.
pub fn said_once<'a>(notes: impl IntoIterator<Item = (&'a str, String)>) -> Vec<String> {
    let mut noted: Vec<(Vec<&str>, String)> = Vec::new();
    for (name, note) in notes {
        match noted.iter_mut().find(|(_, known)| *known == note) {
            Some((names, _)) => names.push(name),
            None => noted.push((vec![name], note)),
        }
    }
    let line = |(names, note): (Vec<&str>, String)| {
        let note =
            if names.len() > 1 { note.replacen("--gpu '", &format!("--gpu '{}x ", names.len()), 1) } else { note };
        format!("{}: {note}", names.join(", "))
    };
    noted.into_iter().map(line).collect()
}

/// Names RPC devices as llama.cpp does: a device counts through all servers, its buffer type among those of its own. Where a server is
/// not known the names stay as given.
fn number_remote(devices: &mut [Device]) {
    let servers: Option<Vec<String>> = (devices.iter())
        .filter(|device| device.backend == Backend::Rpc)
        .map(|device| device.endpoint().map(str::to_string))
        .collect();
    let Some(servers) = servers else { return };
    for (at, (device, server)) in devices.iter_mut().zip(&servers).enumerate() {
        let of_server = servers.iter().take(at).filter(|other| *other == server).count();
        device.name = format!("RPC{at}");
        device.buffer = format!("RPC{of_server}[{server}]");
    }
}

/// Main memory as it is typed: `64G`, and what it is of: `64G@ddr5-6000x2` (MT/s and channels; two of them where none are said),
/// `64GB DDR5-6000`, or `64G@96` (GB/s of its data sheet). A number of GB that it is sold with is so many GiB.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String")]
pub struct Ram {
    pub bytes: Bytes,
    /// GB/s by the data sheet.
    pub bandwidth: Option<f64>,
    /// The GB that stand for as many GiB.
    pub sold_as: Option<u32>,
    /// Where channels were not typed: the generation and MT/s that were, and the channels.
    pub assumed: Option<(u32, f64, f64)>,
}

impl Ram {
    /// The same with the channels of so many processors, where none were typed: the most that are not faster than the memory of each, in
    /// GB/s by its data sheet.
    #[must_use]
    pub fn in_channels_of(self, sockets: u32, memory: f64) -> Self {
        let Some((generation, rate, _)) = self.assumed else { return self };
        let of = |channels: f64| rate * channels * 8.0 / 1000.0;
        // Half a percent: data sheets round.
        let fits = |channels: &f64| of(*channels) <= memory * 1.005;
        let channels = f64::from(sockets) * [12.0, 8.0, 6.0, 4.0].into_iter().find(fits).unwrap_or(CHANNELS);
        Self { bandwidth: Some(of(channels)), assumed: Some((generation, rate, channels)), ..self }
    }

    /// What was typed behind the size, as it is typed with another size.
    pub fn kind(&self) -> String {
        match (self.assumed, self.bandwidth) {
            (Some((generation, rate, _)), _) => format!("@ddr{generation}-{rate}"),
            (None, Some(bandwidth)) => format!("@{bandwidth}"),
            (None, None) => String::new(),
        }
    }

    /// What was taken for what was typed.
    pub fn note(&self) -> Option<String> {
        let size = self.sold_as.map(|gb| {
            let exact = f64::from(gb) * 1e9 / f64::from(1_u32 << 30);
            format!("modules sold as {gb} GB hold {gb} GiB; --ram {exact:.1}G is {gb}·10^9 bytes")
        });
        let channels = self.assumed.map(|(generation, rate, channels)| {
            let other = if channels > CHANNELS { CHANNELS } else { 2.0 * CHANNELS };
            format!("{channels} channels are assumed; for {other}, write @ddr{generation}-{rate}x{other}")
        });
        let notes: Vec<String> = size.into_iter().chain(channels).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

/// Channels of a desktop.
const CHANNELS: f64 = 2.0;

/// Whether modules make up so many GB: eights of them, or those of small computers.
fn is_sold(gb: u32) -> bool {
    gb > 0 && (gb.is_multiple_of(8) || matches!(gb, 2 | 4 | 6 | 12 | 18 | 20 | 36))
}

impl From<Bytes> for Ram {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, bandwidth: None, sold_as: None, assumed: None }
    }
}

/// Bytes of a size as shops write it.
const GB: u64 = 1_000_000_000;

impl TryFrom<String> for Ram {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Ram {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As shops write it: `64GB DDR4-3600`.
        let of_shop = || {
            let at = ["lpddr", "ddr"].iter().find_map(|word| text.to_ascii_lowercase().find(word))?;
            text.split_at_checked(at).filter(|(size, _)| size.ends_with(' '))
        };
        let (size, kind) =
            text.split_once('@').or_else(of_shop).map_or((text, None), |(size, kind)| (size, Some(kind)));
        // `2x32G`: modules, where the sum is asked for.
        if let Some((n, of)) = size.trim().split_once(['x', '×', '*'])
            && let (Ok(n), Ok(of)) = (n.trim().parse::<u64>(), of.trim().parse::<Bytes>())
            && let Some(all) = n.checked_mul(of.0).filter(|all| *all > 0)
        {
            let kind = kind.map(|kind| format!("@{kind}")).unwrap_or_default();
            let all = if all % GB == 0 { format!("{}GB", all / GB) } else { Bytes(all).typed() };
            return Err(format!("write the size of all modules together: {all}{kind}"));
        }
        let size: DeviceSize = size.parse().map_err(|error: ParseBytesError| error.to_string())?;
        let is_decimal = |gb: &u32| size.bytes.0 == u64::from(*gb) * GB;
        let sold_as = size.sold_as.filter(|gb| is_sold(*gb) && is_decimal(gb));
        let bytes = sold_as.map_or(size.bytes, |gb| Bytes(u64::from(gb) * GIB));
        let mut assumed = None;
        let bandwidth = kind.map(|kind| {
            let lower = kind.trim().to_ascii_lowercase();
            let mut modules = || {
                let is_low_power = lower.starts_with("lp");
                let (generation, rest) =
                    lower.strip_prefix("lp").unwrap_or(&lower).strip_prefix("ddr")?.split_once(['-', ' '])?;
                let generation = generation.trim_end_matches('x').parse::<u32>().ok()?;
                let (rate, channels) = rest.split_once('x').map_or((rest, None), |(rate, n)| (rate, Some(n)));
                let rate = rate.trim_end_matches("mhz").trim_end_matches("mt/s").trim().parse::<f64>().ok()?;
                if channels.is_none() {
                    assumed = Some((generation, rate, CHANNELS)).filter(|_| !is_low_power);
                    assumed?;
                }
                let channels = channels.map_or(Some(CHANNELS), |n| n.trim().parse::<f64>().ok())?;
                // A channel is 64 bits wide.
                (2..=6).contains(&generation).then_some(rate * channels * 8.0 / 1000.0)
            };
            let rate = lower.parse().ok().or_else(&mut modules).filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
            let usage = "write its type, MT/s and channels (@ddr5-6000x2), or GB/s (@96)";
            let rate = rate.ok_or_else(|| format!("`@{kind}`: {usage}"))?;
            possible(rate).map_err(|error| format!("`@{kind}`: {error}"))
        });
        Ok(Self { bytes, bandwidth: bandwidth.transpose()?, sold_as, assumed })
    }
}

/// More GB/s than main memory of any computer is read at: two sockets of 12 channels of MRDIMM-8800 have 1,690.
const MOST_BANDWIDTH: f64 = 2000.0;

/// A bandwidth of main memory, GB/s, as far as it can be one; MT/s are refused with their spelling.
pub fn possible(bandwidth: f64) -> Result<f64, String> {
    if bandwidth <= MOST_BANDWIDTH {
        return Ok(bandwidth);
    }
    let kind = if bandwidth < 4400.0 { "ddr4" } else { "ddr5" };
    Err(format!(
        "{bandwidth} GB/s is too fast for main memory; write MT/s with type and channels, --ram 64G@{kind}-{bandwidth}x2"
    ))
}

/// As it is typed: read back it is the same.
impl fmt::Display for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.bytes.typed(), self.kind())
    }
}

/// A PCIe slot as it is typed: generation and lanes, `4x8`, `4.0x16`, `gen3 x4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String")]
pub struct Slot {
    generation: u8,
    lanes: u8,
}

/// MB/s of a lane, from PCIe 1.0 to 6.0: its transfers less what its encoding takes (PCI-SIG's specifications).
const LANES: [f64; 6] = [250.0, 500.0, 984.6, 1969.2, 3938.5, 7563.0];

impl Slot {
    /// GB/s in one direction.
    pub fn rate(self) -> f64 {
        LANES.get(usize::from(self.generation) - 1).map_or(0.0, |lane| lane * f64::from(self.lanes) / 1000.0)
    }
}

impl FromStr for Slot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let read = || {
            let (generation, lanes) = lower.split_once('x')?;
            let generation = generation.trim_start_matches("pcie").trim_start().trim_start_matches("gen").trim();
            let generation = generation.strip_suffix(".0").unwrap_or(generation).parse().ok()?;
            let lanes = lanes.trim().parse().ok()?;
            let is_slot = (1..=6).contains(&generation) && matches!(lanes, 1 | 2 | 4 | 8 | 16);
            is_slot.then_some(Self { generation, lanes })
        };
        read().ok_or_else(|| "write generation and lanes, for example 4x8: PCIe 1 to 6, 1 to 16 lanes".to_string())
    }
}

impl TryFrom<String> for Slot {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.generation, self.lanes)
    }
}

/// A device's memory as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String")]
pub struct DeviceSize {
    pub bytes: Bytes,
    /// A whole number of GB, which is what cards are sold with: `24G`, `24GB`; not `24GiB`, `23.5G`, `24576M`.
    pub sold_as: Option<u32>,
}

impl From<Bytes> for DeviceSize {
    /// So many bytes, whatever card it is.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, sold_as: None }
    }
}

impl TryFrom<String> for DeviceSize {
    type Error = ParseBytesError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for DeviceSize {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.trim().to_ascii_uppercase();
        let sold_as = upper.strip_suffix("GB").or_else(|| upper.strip_suffix('G')).and_then(|n| n.trim().parse().ok());
        Ok(Self { bytes: text.parse()?, sold_as })
    }
}

/// As it is typed: read back it is the same.
impl fmt::Display for DeviceSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sold_as {
            Some(gb) if self.bytes.0 == u64::from(gb) * GIB => write!(f, "{gb}G"),
            Some(gb) => write!(f, "{gb}GB"),
            None => f.write_str(&self.bytes.typed()),
        }
    }
}

impl Device {
    /// The first devices of a backend, with so many bytes each.
    pub fn of_budgets(backend: Backend, budgets: &[Bytes]) -> Result<Vec<Self>, Error> {
        Self::of_sizes(backend, &budgets.iter().copied().map(DeviceSize::from).collect::<Vec<_>>())
    }

    /// The devices of `--vram SIZE,SIZE`: the first ones of a backend.
    pub fn of_sizes(backend: Backend, sizes: &[DeviceSize]) -> Result<Vec<Self>, Error> {
        let named = |(i, size): (usize, &DeviceSize)| {
            Ok(Self::of_size(backend.device_name(i).ok_or(Error::NoDevices)?, backend, *size))
        };
        sizes.iter().enumerate().map(named).collect()
    }

    /// A device of `--device NAME=SIZE`; an RPC device may say where its server is: `RPC0[HOST:PORT]=SIZE`, an integrated one that its
    /// memory is main memory: `Vulkan0=96G,shared`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (described, integrated) = text.strip_suffix(",shared").map_or((text, false), |rest| (rest, true));
        let (name, size) = described.rsplit_once('=').ok_or_else(|| Error::NoSize(text.to_string()))?;
        let flag = || format!("--device {text}");
        let size: DeviceSize = size.parse().map_err(|error| Error::Size { flag: flag(), error })?;
        let plain = name.split_once('[').map_or(name, |(plain, _)| plain);
        let is_numbered = plain.ends_with(|c: char| c.is_ascii_digit());
        // OpenCL's devices have no number (`ggml_backend_opencl_device_get_name`, b11434).
        let backend = Backend::of_device(plain)
            .filter(|backend| is_numbered != (*backend == Backend::Opencl))
            .ok_or_else(|| Error::UnknownName(name.to_string()))?;
        let bracketed = plain.len() != name.len();
        if bracketed && (backend != Backend::Rpc || !name.ends_with(']')) {
            return Err(Error::UnknownName(name.to_string()));
        }
        // A part of main memory is not a card that is sold.
        let size = if integrated { DeviceSize::from(size.bytes) } else { size };
        let device = Self::of_size(plain.to_string(), backend, size);
        Ok(Self { buffer: name.to_string(), integrated: integrated || device.integrated, ..device })
    }

    /// A device that is all free and of which nothing else is known.
    pub fn new(name: String, backend: Backend, total: Bytes) -> Self {
        Self {
            buffer: name.clone(),
            name,
            backend,
            description: None,
            total,
            free: total,
            integrated: false,
            sold_as: None,
            overhead: None,
            calibration: None,
            rates: None,
        }
    }

    /// Whether files can be mapped beside it without being asked to (`mmap_support` of its `get_props`, b11434).
    pub fn supports_mmap(&self) -> bool {
        let is_without = self.integrated && (self.backend.is_cuda_source() || self.backend == Backend::Vulkan);
        !is_without && self.backend != Backend::Opencl
    }

    /// The devices of `--gpu NAME`, in order: cards with the memory that an idle system leaves of them. `NAME=SIZE` says which of the
    /// sizes that it is sold with, or how much, where no row of the table says it; a smaller size is a part of the card, to the byte. `4x NAME`
    /// says that there are four.
    ///
    /// A card that uses main memory has what its system lets it take of `ram`; with a size, so much. Without `ram` the size is the main
    /// memory of its computer.
    pub fn of_cards(names: &[String], backend: Option<Backend>, ram: Option<Bytes>) -> Result<Vec<Self>, Error> {
        let mut devices: Vec<Self> = Vec::new();
        let mut named = Vec::new();
        for text in names {
            named.extend(GpuName::list(text)?.into_iter().map(|gpu| (text, gpu)));
        }
        for (text, GpuName { count, card, size, computer }) in named {
            if let (Some(named), Some(ram)) = (computer, ram)
                && named != ram
            {
                return Err(Error::TwoSizes { text: text.clone(), named, ram });
            }
            let ram = computer.or(ram).or_else(|| card.only_computer().filter(|_| size.is_none()));
            let backend = backend.unwrap_or_else(|| card.backend());
            let sold = match size {
                None => card.sold.first(),
                Some(size) => card.sold.iter().find(|sold| Some(sold.gb) == size.sold_as),
            };
            let integrated = card.is_integrated();
            let description = card.words.to_ascii_uppercase();
            for _ in 0..count {
                let at = devices.iter().filter(|other| other.backend == backend).count();
                let name = backend.device_name(at).ok_or(Error::NoDevices)?;
                let device = match (sold, size) {
                    (Some(sold), _) => Self::new(name, backend, sold.offers()),
                    (None, Some(size)) if integrated => {
                        Self::new(name, backend, if ram.is_none() { card.may_take(size.bytes) } else { size.bytes })
                    }
                    (None, Some(size)) => Self::sized(name, backend, size),
                    (None, None) => {
                        let ram = ram.filter(|_| integrated).ok_or_else(|| Error::NoMemory(description.clone()))?;
                        Self::new(name, backend, card.may_take(ram))
                    }
                };
                devices.push(Self { description: Some(description.clone()), integrated, ..device });
            }
        }
        Ok(devices)
    }

    /// A device of which only backend and size are known.
    fn of_size(name: String, backend: Backend, size: DeviceSize) -> Self {
        if !backend.is_of_main_memory(size.bytes) {
            return Self::sized(name, backend, size);
        }
        let sold_as = size.sold_as.filter(|_| backend != Backend::Metal);
        Self { integrated: true, sold_as, ..Self::new(name, backend, size.bytes) }
    }

    /// A card with memory of its own.
    fn sized(name: String, backend: Backend, size: DeviceSize) -> Self {
        let offer = size.sold_as.and_then(|gb| cards::sold_as(gb, backend));
        let total = offer.map_or(size.bytes, |offer| offer.least);
        Self { sold_as: size.sold_as.filter(|_| offer.is_some()), ..Self::new(name, backend, total) }
    }

    /// The row of its description.
    pub fn card(&self) -> Option<&'static cards::Card> {
        cards::named(self.description.as_deref()?).next()
    }

    /// Whether its row says that its memory is main memory, or its backend where it has none.
    fn is_of_main_memory(&self) -> bool {
        let of_row = || self.card().map_or(self.backend == Backend::Metal, cards::Card::is_integrated);
        self.backend != Backend::Rpc && of_row()
    }

    /// One more device like it beside those of `machine`; `None` for one of another computer, and where its memory is main memory.
    pub fn next_of_its_kind(&self, machine: &Machine) -> Option<Self> {
        let is_card = self.backend != Backend::Rpc && !self.integrated;
        let at = machine.devices.iter().filter(|other| other.backend == self.backend).count();
        let name = self.backend.device_name(at).filter(|name| is_card && *name != self.name)?;
        Some(Self { buffer: name.clone(), name, ..self.clone() })
    }

    /// What is to be left free of it: what was measured calls for, else [`MARGIN_UNCALIBRATED`].
    pub fn margin(&self) -> Bytes {
        self.calibration.as_ref().map_or(MARGIN_UNCALIBRATED, |known| known.margin)
    }

    /// Gives it another budget, to the byte.
    pub fn limit(&mut self, budget: Bytes) {
        (self.total, self.free, self.sold_as) = (budget, budget, None);
    }

    /// What to say of its budget, in a computer with so much main memory.
    pub fn note(&self, ram: Option<Bytes>) -> Option<String> {
        self.budget_note().or_else(|| self.system_note()).or_else(|| self.part_note(ram?))
    }

    /// What to say of a budget that stands for a card of which only the size is known.
    fn budget_note(&self) -> Option<String> {
        let gb = self.sold_as?;
        if self.integrated {
            let name = &self.name;
            return Some(format!(
                "{gb} GB is assumed to be part of main memory: --gpu NAME describes a card with memory of its own, and --device {name}={gb}G,shared says that this is none"
            ));
        }
        let (total, example) = (self.total, cards::sold_as(gb, self.backend)?.example.0 / MIB);
        Some(format!("cards sold as {gb} GB offer {total} or more; give the exact size of yours, e.g. {example}M"))
    }

    /// The row of a card by name whose budget is what a system leaves of it, and that row of its memory.
    fn sold(&self) -> Option<(&'static cards::Card, &'static cards::Sold)> {
        let (card, description) = (self.card()?, self.description.as_deref()?);
        let is_own = |sold: &&cards::Sold| sold.offers() == self.total;
        // One that was found calls itself otherwise.
        let own = card.sold.iter().find(is_own).filter(|_| card.words.to_ascii_uppercase() == description)?;
        Some((card, own))
    }

    /// The same card as an idle Windows leaves it, where its budget is what a system leaves.
    #[must_use]
    pub fn under_windows(self) -> Self {
        let Some((card, own)) = self.sold() else { return self };
        let is_it = |sold: &&cards::Sold| sold.gb == own.gb && sold.system == "windows";
        let seen = card.sold.iter().find(is_it).copied();
        let total = seen.unwrap_or(cards::Sold { system: "windows", free: None, ..*own }).offers();
        Self { total, free: total, ..self }
    }

    /// What to say of a card's budget that is what one system leaves of it, where another leaves less.
    pub fn system_note(&self) -> Option<String> {
        let (card, own) = self.sold()?;
        let other = card
            .sold
            .iter()
            .find(|sold| sold.gb == own.gb && sold.system != own.system && sold.offers() < self.total)?;
        let system = |name: &str| if name == "windows" { "Windows" } else { "Linux without a display" };
        let (flag, left) = (if other.system == "windows" { "--windows, or " } else { "" }, other.offers());
        Some(format!(
            "{} leaves {} of it, {} about {left}: {flag}--gpu '{}={}M'",
            system(own.system),
            self.total,
            system(other.system),
            card.words.to_ascii_uppercase(),
            left.0 / MIB
        ))
    }

    /// What to say of a budget that is what the system lets graphics take of main memory.
    fn part_note(&self, ram: Bytes) -> Option<String> {
        let card = self.card().filter(|card| self.integrated && card.may_take(ram) == self.total)?;
        let (total, name) = (self.total, card.words.to_ascii_uppercase());
        // As much as is known to work: the system and what runs beside it keep an eighth.
        let more = Bytes(ram.0 / 8 * 7);
        let mib = more.0 / MIB;
        let (who, how) = match card.backend() {
            Backend::Metal => ("macOS", format!("`sudo sysctl iogpu.wired_limit_mb={mib}` raises it to {more}; ")),
            Backend::Rocm => {
                let pages = more.0 / 4096;
                (
                    "the driver",
                    format!(
                        "on Linux, the kernel parameters ttm.pages_limit={pages} amdgpu.gttsize={mib} raise it to {more}; "
                    ),
                )
            }
            _ => ("the driver", String::new()),
        };
        Some(format!(
            "by default, {who} lets the GPU use {total} of {ram}; {how}--gpu '{name}=SIZE' --ram {} plans for another limit",
            ram.typed()
        ))
    }

    /// The number of an RPC device.
    fn rpc_number(&self) -> Option<u32> {
        (self.backend == Backend::Rpc)
            .then(|| self.name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0))
    }

    /// `HOST:PORT` of an RPC device's server, where it is known.
    pub fn endpoint(&self) -> Option<&str> {
        let (_, rest) = self.buffer.split_once('[')?;
        rest.strip_suffix(']').filter(|_| self.backend == Backend::Rpc)
    }
}

/// `--gpu` as it is typed: `RTX 4090`, `V100=16G`, `RTX 3060 12GB`, `4x RTX 3090`, `M4 Max 64GB`.
#[derive(Debug, Clone, Copy)]
pub struct GpuName {
    pub count: usize,
    pub card: &'static cards::Card,
    /// Of the card; of one that uses main memory, how much of it.
    pub size: Option<DeviceSize>,
    /// The main memory of its computer, where the name of a card that uses it has a size.
    pub computer: Option<Bytes>,
}

impl GpuName {
    /// The cards of one name, or of several with `+` between them; `AI Max+ 395` is one.
    pub fn list(text: &str) -> Result<Vec<Self>, Error> {
        let mut before = ' ';
        let is_between = |c: char| {
            let is_end = before.is_whitespace() || before.is_ascii_digit();
            before = c;
            c == '+' && is_end
        };
        text.split(is_between).map(str::parse).collect()
    }
}

impl FromStr for GpuName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (named, size) = text.split_once('=').map_or((text, None), |(name, size)| (name, Some(size)));
        let (count, name) = cards::counted(named).unwrap_or((1, named));
        if !(1..=32).contains(&count) {
            return Err(Error::Count(text.to_string()));
        }
        let (name, gb) = cards::without_size(name);
        let card = cards::by_name(&name).ok_or_else(|| Error::UnknownCard(name.trim().to_string()))?;
        if let Some(other) = cards::other_in(&name, card) {
            let [first, second] = [card, other].map(|card| card.words.to_ascii_uppercase());
            return Err(Error::TwoCards { text: text.to_string(), first, second });
        }
        let size = size.map(str::parse::<DeviceSize>).transpose();
        let size = size.map_err(|error| Error::Size { flag: format!("--gpu {text}"), error })?;
        // Less than the card is sold with is what is free of it.
        let sizes = || card.sold.iter().map(|sold| sold.gb);
        let is_part = |gb: &u32| sizes().all(|other| other != *gb) && sizes().max().is_some_and(|most| most > *gb);
        let size = size.map(|size| DeviceSize { sold_as: size.sold_as.filter(|gb| !is_part(gb)), ..size });
        let in_name = gb.map(|gb| DeviceSize { bytes: Bytes(u64::from(gb) * GIB), sold_as: Some(gb) });
        let computer = in_name.filter(|_| card.is_integrated()).map(|size| size.bytes);
        Ok(Self { count, card, size: size.or(in_name.filter(|_| computer.is_none())), computer })
    }
}

/// What runs on a device have shown of the memory that llama.cpp's own sums leave out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Calibration {
    /// Runs that are counted, with prompts long enough to have grown the pools.
    pub runs: u32,
    /// Beyond llama.cpp's own sum after loading: the most that was seen.
    pub loaded: Bytes,
    /// The same at the peak, by the tokens of a micro-batch: pools grow with it. Empty = no prompt was long enough.
    pub peaks: BTreeMap<u32, Bytes>,
    /// What is to be left free for what further runs may show.
    pub margin: Bytes,
    /// The driver that it was measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The llama.cpp build that it was measured with.
    pub build: u32,
}

impl Calibration {
    /// In words, for the basis of a prediction.
    pub fn describe(&self) -> String {
        let (runs, build) = (self.runs, self.build);
        let driver = self.driver.as_ref().map_or(String::new(), |driver| format!(", driver {driver}"));
        let with = format!("llama.cpp b{build}{driver}");
        if self.peaks.is_empty() {
            return format!(
                "measured here with {with}: {} loaded; no prompt of 4096 tokens was measured yet",
                self.loaded
            );
        }
        let runs = counted(runs.into(), "run");
        let peaks: Vec<String> = self.peaks.iter().map(|(ubatch, peak)| format!("{peak} (-ub {ubatch})")).collect();
        format!("measured here in {runs} with {with}: {} loaded, at the peak {}", self.loaded, peaks.join(", "))
    }

    /// Beyond llama.cpp's own sum at the peak, for micro-batches of so many tokens: what was seen with as many or the next
    /// more; for more than was ever seen the most that was, which a miss will correct. `None` = no prompt was long enough.
    pub fn peak_at(&self, n_ubatch: u32) -> Option<Bytes> {
        let at_most = self.peaks.range(..=n_ubatch).map(|(_, peak)| *peak).max();
        let next = self.peaks.range(n_ubatch..).next().map(|(_, peak)| *peak);
        at_most.max(next)
    }
}

/// The computer around the devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Host {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<Bytes>,
    /// Main memory beside `ram` that a launch may not use, because its container has a limit.
    #[serde(skip)]
    pub outside: Bytes,
    /// Whether its system is Windows, which lets devices have only a part of main memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub windows: bool,
    #[serde(default)]
    pub isa: Isa,
    /// Physical cores, if known: the threads that llama.cpp takes without `-t`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Threads that the cores run at once (twice the cores with SMT), if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// What its processor calls itself, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// What it does in a second, as far as that is known; the rest by its processor, else by its cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<HostRates>,
    /// What was taken for what was typed of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Host {
    /// The host that a device without memory of its own is one with, with the main memory of this one; this one beside any other.
    fn beside(self, devices: &[Device]) -> Self {
        let Some(device) = devices.iter().find(|device| device.integrated) else { return self };
        let card = device.card();
        let of_backend = (device.backend == Backend::Metal).then_some(Isa::ArmNeon);
        let isa = card.and_then(cards::Card::isa).or(of_backend).unwrap_or(self.isa);
        let processor = card.map(|card| card.words.to_ascii_uppercase()).or(self.processor);
        Self { isa, processor, ..self }
    }

    /// Leaves a launch no more main memory than a container's limit.
    pub fn limit(&mut self, limit: Bytes) {
        let outside = self.ram.map_or(Bytes(u64::MAX >> 1), |ram| ram.saturating_sub(limit));
        if outside > Bytes(0) {
            (self.ram, self.outside) = (Some(limit), outside);
        }
    }

    /// The most of main memory that can be pinned for devices, where there is such a limit: Windows gives its video memory manager
    /// half ("Calculating Graphics Memory" in Microsoft's documentation of drivers: `TotalSystemMemoryAvailableForGraphics`). Programs
    /// were seen to get less, 28 of 64 GB (an RTX 5070 Ti under Windows 11).
    pub fn pinnable(&self) -> Option<Bytes> {
        self.ram.filter(|_| self.windows).map(|ram| Bytes((ram + self.outside).0 / 2))
    }

    /// Says that main memory is read at so many GB/s; a calibration keeps what it knows of the threads.
    pub fn set_memory(&mut self, rate: f64) {
        let given = HostRates::of_memory(rate);
        self.rates = Some(HostRates { memory: rate, ..self.rates.take().unwrap_or(given) });
    }
}

/// A rate that is not given: the table's counts.
fn unsaid() -> f64 {
    f64::NAN
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_unsaid(rate: &f64) -> bool {
    rate.is_nan()
}

/// What one device does, alone and with the host; what is not given is the table's. All figures are effective ones: what llama.cpp gets, not what a data sheet says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeviceRates {
    /// Weights read for one token, and passed over once a micro-batch: GB/s (10^9).
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub weights: f64,
    /// Products of a micro-batch with quantized weights: TFLOP/s (10^12).
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub products: f64,
    /// Attention of a micro-batch: TFLOP/s.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub attention: f64,
    /// Keys and values read for one token: GB/s.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub cache: f64,
    /// Fixed time by weight tensor used, for one pass through the graph: microseconds.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub op: f64,
    /// Fixed time by pass through the graph: microseconds.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub graph: f64,
    /// Copies from pinned host memory (`--load-mode none`): GB/s.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub pinned: f64,
    /// Copies from mapped files and other pageable memory: GB/s.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub pageable: f64,
    /// Fixed time by host tensor copied for one micro-batch: microseconds.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub offload: f64,
    /// Fixed time by change between this device and the host or another device: microseconds.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub switch: f64,
    /// The share by which predictions with these figures may well be off: 0.15 = ±15%.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub uncertainty: f64,
    /// The same of prompts alone.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub uncertainty_pp: f64,
    /// The same of generation alone.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub uncertainty_tg: f64,
    /// Where they come from: `calibrated on …`, `table: …`, `guess …`.
    #[serde(default)]
    pub basis: String,
}

/// What the host does; what is not given is the table's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HostRates {
    /// Main memory read by all threads together: GB/s (10^9).
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub memory: f64,
    /// Weights multiplied with one token's row by one thread: GB/s.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub by_thread: f64,
    /// Products of a micro-batch by one thread: GFLOP/s (10^9).
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub products: f64,
    /// Fixed time by weight tensor used, for one pass through the graph: microseconds.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub op: f64,
    /// Elements of attention masks, and of candidates to sample from, that one thread handles: 10^9 a second.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub serial: f64,
    /// Weights read from the disk that do not stay in memory: GB/s.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub disk: f64,
    /// The share by which predictions with these figures may well be off.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub uncertainty: f64,
    /// The same of prompts alone.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub uncertainty_pp: f64,
    /// The same of generation alone.
    #[serde(default = "unsaid", skip_serializing_if = "is_unsaid")]
    pub uncertainty_tg: f64,
    #[serde(default)]
    pub basis: String,
}

impl HostRates {
    /// What is given of a host's memory alone, GB/s.
    pub fn of_memory(memory: f64) -> Self {
        let [by_thread, products, op, serial, disk, uncertainty, uncertainty_pp, uncertainty_tg] = [unsaid(); 8];
        let basis = String::new();
        Self { memory, by_thread, products, op, serial, disk, uncertainty, uncertainty_pp, uncertainty_tg, basis }
    }
}

/// A backend of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// NVIDIA.
    Cuda,
    /// Any GPU with a Vulkan driver.
    Vulkan,
    /// Apple.
    Metal,
    /// AMD.
    Rocm,
    /// Moore Threads.
    Musa,
    /// Intel.
    Sycl,
    /// Huawei Ascend.
    Cann,
    /// Adreno and others.
    Opencl,
    /// A device behind llama.cpp's RPC server; `verify` starts one here if no address is given.
    Rpc,
    /// No device: everything on the host.
    Cpu,
}

/// What of the processor decides repacking (ggml-cpu/repack.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Isa {
    Generic,
    /// AVX2.
    #[default]
    X86Avx2,
    /// AVX-512.
    X86Avx512,
    /// AVX-512 with AMX.
    X86Amx,
    /// NEON with dotprod/i8mm.
    ArmNeon,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_like_devices_is_said_once() {
        let said = said_once(
            [("A0", "24G: --gpu 'B=23G'"), ("A1", "no"), ("A2", "24G: --gpu 'B=23G'")].map(|(a, b)| (a, b.to_string())),
        );
        assert_eq!(said, ["A0, A2: 24G: --gpu '2x B=23G'", "A1: no"]);
    }

    #[test]
    fn an_empty_tensor_of_any_shape_takes_nothing() {
        let ty = crate::gguf::ggml_type::f32();
        assert_eq!(Backend::Cuda.tensor_bytes(ty, [0, u64::MAX, u64::MAX, 2]), Bytes(0));
    }

    #[test]
    fn slots_are_generation_and_lanes() {
        for (text, rate) in [("4x16", 31.5), ("4.0x8", 15.8), ("gen3 x4", 3.9), ("PCIe 5.0 x16", 63.0)] {
            let slot: Slot = text.parse().unwrap();
            assert!((slot.rate() - rate).abs() < 0.1, "{text}: {}", slot.rate());
        }
        for bad in ["4", "x16", "0x16", "7x16", "4x3", "4x", "4x32"] {
            assert!(bad.parse::<Slot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_whole_number_of_gb_is_a_card_and_everything_else_exact() {
        let mib = |n| (Bytes::mib(n), None);
        let card = |gb| (cards::sold_as(gb, Backend::Cuda).unwrap().least, Some(gb));
        for (text, name, buffer, backend, expected) in [
            ("CUDA0=24G", "CUDA0", "CUDA0", Backend::Cuda, card(24)),
            ("CUDA0=24g", "CUDA0", "CUDA0", Backend::Cuda, card(24)),
            ("CUDA0=24GB", "CUDA0", "CUDA0", Backend::Cuda, card(24)),
            ("CUDA0=24GiB", "CUDA0", "CUDA0", Backend::Cuda, mib(24 << 10)),
            ("CUDA0=24576M", "CUDA0", "CUDA0", Backend::Cuda, mib(24 << 10)),
            ("CUDA0=23.5G", "CUDA0", "CUDA0", Backend::Cuda, mib(24_064)),
            ("CUDA0=23G", "CUDA0", "CUDA0", Backend::Cuda, mib(23 << 10)),
            ("CUDA0=23GB", "CUDA0", "CUDA0", Backend::Cuda, (Bytes(23_000_000_000), None)),
            ("MTL0=24G", "MTL0", "MTL0", Backend::Metal, mib(24 << 10)),
            ("RPC0[h:1]=24G", "RPC0", "RPC0[h:1]", Backend::Rpc, mib(24 << 10)),
            ("SYCL1=12G", "SYCL1", "SYCL1", Backend::Sycl, mib(12 << 10)),
            ("GPUOpenCL=8G", "GPUOpenCL", "GPUOpenCL", Backend::Opencl, mib(8 << 10)),
            ("CANN0=64G", "CANN0", "CANN0", Backend::Cann, mib(64 << 10)),
            ("MUSA0=48G", "MUSA0", "MUSA0", Backend::Musa, mib(48 << 10)),
            ("Metal0=24G", "Metal0", "Metal0", Backend::Metal, mib(24 << 10)),
            ("Vulkan0=96G,shared", "Vulkan0", "Vulkan0", Backend::Vulkan, mib(96 << 10)),
            ("Vulkan0=96G", "Vulkan0", "Vulkan0", Backend::Vulkan, (Bytes::mib(96 << 10), Some(96))),
        ] {
            let device = Device::parse(text).unwrap();
            assert_eq!((device.name.as_str(), device.buffer.as_str(), device.backend), (name, buffer, backend));
            assert_eq!((device.total, device.sold_as), expected, "{text}");
            assert_eq!(device.budget_note().is_some(), expected.1.is_some(), "{text}");
        }
        assert_eq!(Device::parse("RPC0[h:1]=8G").unwrap().endpoint(), Some("h:1"));
        for bad in ["CUDA0", "CUDA=1G", "GPU0=1G", "CUDA0[x]=1G", "RPC0[x=1G", "CUDA0=lots", "CUDA0=24"] {
            assert!(Device::parse(bad).is_err(), "{bad}");
        }
        let note = Device::parse("CUDA0=24G").unwrap().budget_note().unwrap();
        let expected = "cards sold as 24 GB offer 22.20 GiB or more; give the exact size of yours, e.g. 24126M";
        assert_eq!(note, expected);
    }

    #[test]
    fn a_card_by_name_has_its_own_memory() {
        let of = |names: &[&str], backend| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let devices = Device::of_cards(&names, backend, Some(Bytes::mib(128 << 10)))?;
            Ok::<_, Error>(
                devices.into_iter().map(|d| (d.name, d.description.unwrap(), d.total.0 >> 20)).collect::<Vec<_>>(),
            )
        };
        let device = |name: &str, description: &str, mib| (name.to_string(), description.to_string(), mib);
        assert_eq!(
            of(&["RTX 4090", "NVIDIA GeForce RTX 3060", "7900 XTX"], None).unwrap(),
            [
                device("CUDA0", "RTX 4090", 23605),
                device("CUDA1", "RTX 3060", 11_798),
                device("ROCm0", "7900 XTX", 24_102)
            ]
        );
        assert_eq!(of(&["v100=16G"], None).unwrap(), [device("CUDA0", "V100", 16_160)]);
        assert_eq!(
            of(&["3060 laptop=6144M"], Some(Backend::Vulkan)).unwrap(),
            [device("Vulkan0", "RTX 3060 LAPTOP", 6144)]
        );
        // A size that the table does not have of it is a card sold with it, but for memory of the host.
        assert_eq!(of(&["P40=24G"], None).unwrap(), [device("CUDA0", "P40", 22_731)]);
        assert_eq!(of(&["Strix Halo=96G"], None).unwrap(), [device("ROCm0", "8060S", 96 << 10)]);
        let integrated = |name: &str| Device::of_cards(&[name.to_string()], None, None).unwrap()[0].integrated;
        assert_eq!(["8060S=96G", "GB10=110G", "P40=24G", "M3 Ultra=96G"].map(integrated), [true, true, false, true]);
        // A card that is known to have memory of its own has it, whatever is usual of its size and backend.
        assert!(!integrated("MI210") && !integrated("RTX Pro 6000=96G"));
        assert_eq!(of(&["2x RTX 3090", "3090 x2"], None).unwrap().len(), 4);
        // A size in the name is the card's, or its computer's where its memory is main memory.
        let sized = |name: &str, ram: Option<Bytes>| {
            let devices = Device::of_cards(&[name.to_string()], None, ram)?;
            Ok::<_, Error>((devices.len(), devices[0].description.clone().unwrap(), devices[0].total.0 >> 20))
        };
        for (name, count, card, mib) in [
            ("RTX 3080 12GB", 1, "RTX 3080", 11_005),
            ("RTX 3060 12 GB", 1, "RTX 3060", 11_798),
            ("4060 8GB", 1, "RTX 4060", 7019),
            ("A100-SXM4-80GB", 1, "A100", 81_151),
            ("v100 16g", 1, "V100", 16_160),
            ("apple m4 max 128gb", 1, "M4 MAX", 96 << 10),
            ("Strix Halo 128GB", 1, "8060S", 64 << 10),
            ("AMD Ryzen AI Max+ 395 128GB", 1, "8060S", 64 << 10),
            ("AI Max 395 128G=96G", 1, "8060S", 96 << 10),
            ("DGX Spark", 1, "GB10", 122_500),
            ("Arc 140V 32GB", 1, "ARC 140V", 16 << 10),
            ("RTX3090", 1, "RTX 3090", 23_863),
            ("RTX 3060=10G", 1, "RTX 3060", 10 << 10),
            ("RTX 3060=12G", 1, "RTX 3060", 11_798),
            ("RTX 3060 8GB", 1, "RTX 3060", 7019),
            ("RTX 4090=48G", 1, "RTX 4090", 45_467),
            ("GeForce RTX4070TI=12G", 1, "RTX 4070 TI", 11_005),
            ("3090x2", 2, "RTX 3090", 23_863),
            ("RX7900XTX", 1, "7900 XTX", 24_102),
            ("2x 3090 + 3060 12GB", 3, "RTX 3090", 23_863),
        ] {
            assert_eq!(sized(name, None).unwrap(), (count, card.to_string(), mib), "{name}");
        }
        // Whose figure it is, where another system leaves less; a size of one's own is nobody's.
        for (name, note) in [
            ("3090", Some("Windows about 22.76 GiB: --windows, or --gpu 'RTX 3090=23304M'")),
            ("3090=23304M", None),
            ("RTX 3080", None),
        ] {
            let devices = Device::of_cards(&[name.to_string()], None, None).unwrap();
            let found = Machine::new(devices, Host::default()).unwrap().budget_notes().collect::<Vec<_>>().join(" ");
            assert!(note.map_or(found.is_empty(), |note| found.contains(note)), "{name}: {found}");
        }
        // Under Windows, where no row says it, as much is taken to be held as of others of the size.
        for (name, mib) in
            [("3090", 23_304), ("3090=23304M", 23_304), ("3090=20G", 20 << 10), ("RTX 4070 TI SUPER", 15_111)]
        {
            let device = Device::of_cards(&[name.to_string()], None, None).unwrap().remove(0).under_windows();
            assert_eq!((device.total, device.free), (Bytes::mib(mib), Bytes::mib(mib)), "{name}");
        }
        let without = Device::of_cards(&["RTX 2060=12G".to_string()], None, None).unwrap().remove(0);
        assert!(without.clone().under_windows().total < without.total);
        let two = |text: &str| matches!(sized(text, None), Err(Error::TwoCards { .. }));
        assert_eq!(sized("3090 + 9999", None), Err(Error::UnknownCard("9999".to_string())));
        assert!(
            two("3090 Ti+3060")
                && two("3090 3060")
                && two("RTX 3090 and RTX 3090")
                && two("4070ti 3060")
                && !two("4070ti super")
                && !two("AMD Radeon 880M Graphics (RADV GFX1150)")
        );
        assert!(matches!(sized("M4 Max 64GB", Some(Bytes::mib(48 << 10))), Err(Error::TwoSizes { .. })));
        assert_eq!(sized("M4 Max 64GB", Some(Bytes::mib(64 << 10))).unwrap().2, 48 << 10);
        let hint = |name: &str| sized(name, None).unwrap_err().hint().unwrap().into_owned();
        assert!(
            ["Arc 140T", "Iris Xe", "Core Ultra 9 288V"].iter().all(|name| hint(name).contains("Vulkan0=18G,shared"))
        );
        assert!(!hint("Arc A999").contains("shared") && hint("Mac Studio").contains("its chip"));
        assert_eq!(of(&["0x RTX 3090"], None), Err(Error::Count("0x RTX 3090".to_string())));
        assert_eq!(of(&["4090"], Some(Backend::Opencl)).unwrap(), [device("GPUOpenCL", "RTX 4090", 23605)]);
        assert_eq!(of(&["4090"], Some(Backend::Cpu)), Err(Error::NoDevices));
        assert_eq!(of(&["RTX 9999"], None), Err(Error::UnknownCard("RTX 9999".to_string())));
        let hint = Error::UnknownCard("RX 7900".to_string()).hint().unwrap_or_default().into_owned();
        assert!(["`7900 xtx`", "`7900 xt`", "`7900 gre`"].iter().all(|card| hint.contains(card)), "{hint}");
        assert_eq!(of(&["GTX 1650"], None), Err(Error::NoMemory("GTX 1650".to_string())));
    }

    #[test]
    fn main_memory_is_a_size_and_perhaps_its_kind() {
        for (text, gib, bandwidth) in [
            ("64G", 64, None),
            ("64G@ddr5-6000x2", 64, Some(96.0)),
            ("512GiB@DDR4-3200x8", 512, Some(204.8)),
            ("128G@lpddr5x-8000x4", 128, Some(256.0)),
            ("64G@72.5", 64, Some(72.5)),
        ] {
            let ram: Ram = text.parse().unwrap();
            assert_eq!((ram.bytes, ram.bandwidth), (Bytes::mib(gib << 10), bandwidth), "{text}");
        }
        // Of a desktop's two channels, of which a note says so; as shops write it; and GB as modules are sold.
        for (text, typed, notes) in [
            ("64G@ddr4-3600", "64GiB@ddr4-3600", &["@ddr4-3600x4"][..]),
            ("64GB DDR4-3600", "64GiB@ddr4-3600", &["64 GiB", "@ddr4-3600x4"]),
            ("64GB ddr5-6000 x4", "64GiB@192", &["64 GiB"]),
            ("64GB DDR5 6000MHz", "64GiB@ddr5-6000", &["64 GiB", "@ddr5-6000x4"]),
            ("64GB", "64GiB", &["64 GB hold 64 GiB", "--ram 59.6G"]),
            ("36GB", "36GiB", &["36 GiB"]),
            ("97GB", "97000000000B", &[]),
            ("64G", "64GiB", &[]),
        ] {
            let ram: Ram = text.parse().unwrap();
            assert_eq!((ram.to_string().as_str(), ram.note().is_some()), (typed, !notes.is_empty()), "{text}");
            // Typed again it is the same, whatever channels a processor has.
            assert_eq!(ram.in_channels_of(2, 460.8).to_string(), typed, "{text}");
            let note = ram.note().unwrap_or_default();
            assert!(notes.iter().all(|part| note.contains(part)), "{text}: {note}");
        }
        // The channels of a processor: EPYC 9004, two of them, EPYC 7002 with slower modules, a desktop with faster ones; typed ones stay.
        for (text, sockets, memory, bandwidth) in [
            ("512GB DDR5-4800", 1, 460.8, 460.8),
            ("512GB DDR5-4800", 2, 460.8, 921.6),
            ("256G@ddr4-2666", 1, 204.8, 170.624),
            ("64G@ddr5-6000", 1, 83.2, 96.0),
            ("512G@ddr5-4800x8", 1, 460.8, 307.2),
        ] {
            let ram = text.parse::<Ram>().unwrap().in_channels_of(sockets, memory);
            assert!((ram.bandwidth.unwrap() - bandwidth).abs() < 1e-9, "{text}: {ram:?}");
        }
        for bad in [
            "64",
            "64G@",
            "64G@ddr5",
            "64G@lpddr5x-8533",
            "64G@ddr5-x2",
            "64G@ddr9-6000x2",
            "64GB DDR4",
            "64G@-1",
            "64G@nan",
            "64G@inf",
        ] {
            assert!(bad.parse::<Ram>().is_err(), "{bad}");
        }
        // MT/s without a type are no GB/s.
        for (bad, spelling) in [("32G@3200", "@ddr4-3200x2"), ("64G@6000", "@ddr5-6000x2")] {
            assert!(bad.parse::<Ram>().is_err_and(|error| error.contains(spelling)), "{bad}");
        }
        assert_eq!("64G@ddr5-8800x24".parse::<Ram>().unwrap().bandwidth, Some(1689.6));
    }

    /// Nothing but the device says whether its memory is main memory: neither the host's processor nor how the device was described.
    #[test]
    fn a_device_without_memory_of_its_own_is_one_whoever_describes_it_and_beside_any_host() {
        let named = |name: &str, backend| Device::of_cards(&[name.to_string()], backend, None).unwrap().remove(0);
        let found = |name: &str, description: &str, backend| Device {
            description: Some(description.to_string()),
            ..Device::new(name.to_string(), backend, Bytes::mib(32 << 10))
        };
        let size = |size: &str, backend| Device::of_sizes(backend, &[size.parse().unwrap()]).unwrap().remove(0);
        for (device, expected) in [
            (named("M4 Max=48G", None), true),
            (named("8060S=96G", None), true),
            (named("8060S=96G", Some(Backend::Vulkan)), true),
            (named("GB10=110G", None), true),
            (named("RTX Pro 6000=96G", Some(Backend::Vulkan)), false),
            (size("48G", Backend::Metal), true),
            (size("96G", Backend::Vulkan), true),
            (size("96G", Backend::Rocm), true),
            (size("120G", Backend::Cuda), true),
            (size("24G", Backend::Vulkan), false),
            (size("80G", Backend::Cuda), false),
            (found("MTL0", "Apple M3 Ultra", Backend::Metal), true),
            (found("MTL0", "AMD Radeon RX 6800", Backend::Metal), false),
            (found("CUDA0", "NVIDIA GB10", Backend::Cuda), true),
            (found("ROCm0", "AMD Radeon Graphics, gfx1151", Backend::Rocm), true),
            (found("Vulkan0", "AMD Radeon 8060S Graphics (RADV GFX1151)", Backend::Vulkan), true),
            (found("RPC0", "Apple M3 Ultra", Backend::Rpc), false),
        ] {
            for isa in [Isa::ArmNeon, Isa::X86Avx2, Isa::Generic] {
                let host = Host { isa, cores: Some(8), ..Host::default() };
                let machine = Machine::new(vec![device.clone()], host).unwrap();
                assert_eq!(machine.devices[0].integrated, expected, "{device:?} {isa:?}");
                assert_eq!(machine.host.isa, isa);
            }
        }
        // Of a host of which nothing is said its graphics tell the rest.
        let host = |device| Machine::new(vec![device], Host::default()).unwrap().host;
        assert_eq!(host(named("M4 Max=48G", None)).isa, Isa::ArmNeon);
        assert_eq!(host(named("8060S=96G", None)).isa, Isa::X86Avx512);
        assert_eq!(host(size("48G", Backend::Metal)).isa, Isa::ArmNeon);
        assert_eq!(host(size("24G", Backend::Cuda)), Host::default());
    }

    #[test]
    fn rpc_devices_are_numbered_as_llama_cpp_numbers_them() {
        // `llama-server --list-devices` and the buffer types that it lists after `-ot x=y`, b11434, two servers.
        let devices =
            ["CUDA0=1G", "RPC7[b:2]=2G", "RPC3[a:1]=3G", "RPC8[b:2]=4G"].map(|text| Device::parse(text).unwrap());
        let machine = Machine::new(devices.to_vec(), Host::default()).unwrap();
        let named: Vec<(&str, &str)> = machine.devices.iter().map(|d| (d.name.as_str(), d.buffer.as_str())).collect();
        assert_eq!(named, [("RPC0", "RPC0[a:1]"), ("RPC1", "RPC0[b:2]"), ("RPC2", "RPC1[b:2]"), ("CUDA0", "CUDA0")]);
        let first = ["RPC0[a:1]=1G", "RPC0[b:1]=2G"].map(|text| Device::parse(text).unwrap());
        let two = Machine::new(first.to_vec(), Host::default()).unwrap();
        assert_eq!(two.devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["RPC0", "RPC1"]);
        assert!(Machine::new(vec![first[0].clone(), first[0].clone()], Host::default()).is_err());
        let registered =
            |servers: &[&str]| machine.registered(&servers.iter().map(|s| (*s).into()).collect::<Vec<_>>());
        assert_eq!(registered(&["b:2", "a:1"]), [1, 2, 0]);
        assert_eq!(registered(&["b:2"]), [1, 2]);
        assert!(registered(&[]).is_empty());
        assert!(Machine::new([devices.to_vec(), devices.to_vec()].concat(), Host::default()).is_err());
    }

    #[test]
    fn rows_that_cuda_pads() {
        let q4_k = GgmlType::from_name("q4_K").unwrap();
        let bytes = Bytes(q4_k.row_bytes(768).unwrap());
        assert_eq!(Backend::Cuda.alloc_size(q4_k, [768, 1, 1, 1], bytes), bytes + Bytes(144));
        assert_eq!(Backend::Vulkan.alloc_size(q4_k, [768, 1, 1, 1], bytes), bytes);
        assert_eq!(Backend::Cuda.alloc_size(q4_k, [1024, 1, 1, 1], Bytes(576)), Bytes(576));
        let f16 = GgmlType::from_name("f16").unwrap();
        assert_eq!(Backend::Cuda.alloc_size(f16, [768, 1, 1, 1], Bytes(1536)), Bytes(1536));
    }
}
