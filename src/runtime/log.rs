//! What a llama.cpp log says about a launch: memory by device, stages of loading, requests, and why it failed.
//!
//! What a line can mean is a row of `ROWS`. Every line is untrusted: bounded, and never a panic. Sizes are printed with two
//! decimals of MiB, so every figure comes with the distance that the true one may be away ([`LoadLog::resolution`]).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation))]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::{DeviceInfo, Kind};
use crate::bytes::{Bytes, MIB};
use crate::memory::{HOST, MemoryBreakdown, MemoryByDevice};

/// The most of one kind of thing that is kept.
const MOST: usize = 4096;
/// The longest line that is read, in bytes; the rest of a longer one is dropped.
const MAX_LINE: usize = 64 * 1024;
/// The longest name or message that is kept, in bytes.
const MAX_TEXT: usize = 512;
/// The largest size that is believed: sums of [`MOST`] of them stay below 2^64.
const MAX_SIZE: u64 = 1 << 48;
/// How far a size printed with two decimals may be from the true one, in bytes.
pub const PRINTED: Bytes = Bytes(MIB.div_ceil(200));

/// How far a launch has come, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stage {
    #[default]
    Started,
    Header,
    Weights,
    /// Caches and graphs are being made.
    Context,
    WarmUp,
    Ready,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Model,
    Context,
    Compute,
    /// Rows of logits; in no sum of llama.cpp.
    Output,
}

/// A kind of failure that lines of a log name.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    pub kind: Kind,
    pub says: &'static str,
    pub hint: &'static str,
}

static BAD_MODEL: Reason = Reason {
    kind: Kind::Setup,
    says: "the model cannot be loaded: ",
    hint: "`moeplan inspect` shows what the file holds; is it complete?",
};
/// It is missing whatever the other flags are.
pub(super) static NO_DEVICE: Reason = Reason {
    kind: Kind::Setup,
    says: "it rejects the command line: ",
    hint: "`moeplan doctor` says which devices there are and why one is missing; `--backend rpc` starts software devices",
};
static BAD_FLAG: Reason = Reason {
    kind: Kind::Flags,
    says: "it rejects the command line: ",
    hint: "`moeplan check -- COMMAND` says what this build accepts",
};
static PORT_TAKEN: Reason =
    Reason { kind: Kind::PortTaken, says: "its port is taken: ", hint: "give another --port, or none" };
static CRASH: Reason = Reason { kind: Kind::Died, says: "", hint: super::SEE_LOG };

/// Why a launch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    OutOfMemory { buffer: Option<String>, bytes: Option<Bytes>, part: Option<Part> },
    Said(&'static Reason, String),
}

impl Failure {
    /// How much it explains: of several lines the most telling is the reason.
    fn weight(&self) -> u8 {
        match self {
            Self::OutOfMemory { .. } => 4,
            Self::Said(Reason { kind: Kind::Died, .. }, _) => 1,
            Self::Said(reason, _) if **reason == BAD_MODEL => 2,
            Self::Said(..) => 3,
        }
    }

    /// The failure after one more line: the more telling of two, and what each knows of an allocation.
    fn and(self, later: Self) -> Self {
        match (self, later) {
            (
                Self::OutOfMemory { buffer, bytes, part },
                Self::OutOfMemory { buffer: more_buffer, bytes: more_bytes, part: more_part },
            ) => Self::OutOfMemory {
                buffer: buffer.or(more_buffer),
                bytes: bytes.or(more_bytes),
                part: part.or(more_part),
            },
            (first, later) if later.weight() > first.weight() => later,
            (first, _) => first,
        }
    }
}

#[derive(Clone, Copy)]
enum Says {
    /// Nothing that counts: llama.cpp's own table of memory at exit.
    Nothing,
    /// A buffer `name` of `mib`, reported by the function `by`.
    Buffer(Part),
    /// The projector is given the device `name`.
    ProjectorDevice,
    ProjectorWeights,
    /// The model is given the device `name`, which calls itself `description`; for RPC that is its server, `host:port`.
    Device,
    /// The trial load of --fit is over; with -v it printed all that a load prints.
    Fitted,
    Reached(Stage),
    /// An allocation of `mib` or `bytes` was refused; the buffer's name, where groups of the line may stand.
    NoMemory(&'static str, Option<Part>),
    Failed(&'static Reason),
    Slots,
    Cancelled,
    Idle,
    Begun,
    Over,
    /// Speed of reading the prompt; whether these are the request's last figures.
    Prompt(bool),
    /// Speed of generation.
    Generation(bool),
    /// How often an expert was found in the expert cache (b11549, when it ends).
    CacheHits,
}

/// The first pattern that fits a line decides; `SLOT`, `LAST` and `BUFFER` stand for [`PIECES`]. Sources (b11434): src/llama.cpp,
/// llama-model.cpp, llama-kv-cache.cpp, llama-kv-cache-dsv4.cpp, llama-memory-recurrent.cpp, llama-context.cpp;
/// ggml-backend.cpp, ggml-alloc.c, ggml-cuda.cu, ggml-vulkan.cpp, ggml-metal-device.m; tools/server/server-context.cpp.
const ROWS: &[(&str, Says)] = &[
    (r"\| memory breakdown \[MiB\]|memory_breakdown_print", Says::Nothing),
    // A projector's weights: one sum of its file, on the device that was named before (tools/mtmd/clip.cpp).
    (r"CLIP using (?<name>\S+) backend", Says::ProjectorDevice),
    (r"(?<by>load_hparams): +model size: +(?<mib>\S+) MiB", Says::ProjectorWeights),
    (r"BUFFERmodel +buffer +SIZE", Says::Buffer(Part::Model)),
    // llama.cpp before December 2024 and ik_llama.cpp leave the word out.
    (r"(?<by>load_tensors): +(?<name>\S+) +buffer +SIZE", Says::Buffer(Part::Model)),
    // The cache of experts (b11549) counts as context in llama.cpp's own table.
    (r"BUFFER(?:(?:KV|RS|DSV4 .*state) +buffer|MoE +cache) +SIZE", Says::Buffer(Part::Context)),
    (r"BUFFERcompute +buffer +SIZE", Says::Buffer(Part::Compute)),
    (r"allocating (?<mib>.*) MiB on device (?<device>\d+).*alloc failed", Says::NoMemory("CUDA$device", None)),
    (r"failed to allocate +output buffer of size *(?<mib>\S*)", Says::NoMemory("", Some(Part::Output))),
    (
        r"gallocr.*failed to allocate (?:(?<name>\S+) )?buffer of size *(?<bytes>\d*)",
        Says::NoMemory("$name", Some(Part::Compute)),
    ),
    (r"cpu_buffer_type.*failed to allocate buffer of size *(?<bytes>\d*)", Says::NoMemory("CPU", None)),
    (r"failed to allocate (?:(?<name>\S+) )?buffer of size *(?<bytes>\d*)", Says::NoMemory("$name", None)),
    (r"failed to allocate buffer, size = *(?<mib>\S*)", Says::NoMemory("MTL0", None)),
    (r"Device memory allocation of size *(?<bytes>\d*)", Says::NoMemory("", None)),
    (r"unable to allocate (?<name>.*?) *buffer", Says::NoMemory("$name", Some(Part::Model))),
    (r"failed to allocate buffer for", Says::NoMemory("", Some(Part::Context))),
    (r"failed to allocate compute", Says::NoMemory("", Some(Part::Compute))),
    (r"failed to reserve initial output buffer", Says::NoMemory("", Some(Part::Output))),
    (
        r"CUDA error: out of memory|ErrorOutOfDeviceMemory|OutOfDeviceMemoryError|std::bad_alloc",
        Says::NoMemory("", None),
    ),
    (r"error loading model: (?<text>.*)", Says::Failed(&BAD_MODEL)),
    (r"(?<text>failed to open GGUF file.*)", Says::Failed(&BAD_MODEL)),
    (r"^(?<text>error(?:: | while handling argument).*invalid device.*)", Says::Failed(&NO_DEVICE)),
    (r"^(?<text>error(?:: | while handling argument).*)", Says::Failed(&BAD_FLAG)),
    (r"(?<text>.*(?:couldn't bind|couldn't start HTTP listener).*)", Says::Failed(&PORT_TAKEN)),
    // `FILE:LINE: CUDA error`, which says no more, may come before it.
    (r"(?<text>CUDA error: .*|.*(?:GGML_ASSERT\(|terminate called).*)", Says::Failed(&CRASH)),
    (r"llama_moe_cache:.*hits *= *(?<hits>\d+), *misses *= *(?<misses>\d+)", Says::CacheHits),
    (r"SLOTprocessing task", Says::Begun),
    (r"SLOTstop processing", Says::Over),
    (r"SLOTprompt eval time =LAST", Says::Prompt(true)),
    (r"SLOTeval time =LAST", Says::Generation(true)),
    (r"SLOTprompt processing, n_tokens = *(?<n>\d+)[^/]*/ *(?<rate>\S+)", Says::Prompt(false)),
    (r"SLOTn_gen = *(?<n>\d+).*tg_3s = *(?<rate>\S+)", Says::Generation(false)),
    (r", n_slots = (?<n>\d+)", Says::Slots),
    (r": cancel task, id_task = (?<task>\d+)", Says::Cancelled),
    (r"^srv.*all slots are idle$", Says::Idle),
    (r"fitting params to free memory took", Says::Fitted),
    // Older builds print no id.
    (
        r"using device (?<name>\S+) \((?<description>.*?)\)(?: \((?:unknown id|[^ :]*:[^ :]*:[^ :]*)\))? - \d+ MiB free$",
        Says::Device,
    ),
    (r"listening on (?<text>.*)", Says::Reached(Stage::Ready)),
    (r"loaded meta data with", Says::Reached(Stage::Header)),
    (r"loading model tensors", Says::Reached(Stage::Weights)),
    (r"constructing llama_context", Says::Reached(Stage::Context)),
    (r"warming up the model", Says::Reached(Stage::WarmUp)),
    (r"model loaded", Says::Reached(Stage::Ready)),
];

/// What patterns have in common. A slot at rest has task -1. Builds before b11434 wrote the lines of one message below each other,
/// without the slot.
const PIECES: [(&str, &str); 4] = [
    ("BUFFER", r"(?<by>[^ :]*): +(?<name>\S+) +"),
    ("SIZE", r"size *= *(?<mib>\S+) MiB"),
    ("SLOT", r"^(?:slot .*: id +(?<slot>\d+) +\| task +(?<task>-?\d+) +\|)? *"),
    ("LAST", r" *(?<ms>\S+) ms / *(?<n>\d+) tokens .* ms per token, *(?<rate>\S+)"),
];

static LINES: LazyLock<Vec<(Regex, Says)>> = LazyLock::new(|| {
    let whole = |row: &str| PIECES.iter().fold(row.to_string(), |row, (name, piece)| row.replace(name, piece));
    ROWS.iter().filter_map(|(row, says)| Some((Regex::new(&whole(row)).ok()?, *says))).collect()
});

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// `CUDA0`, `CPU_Mapped`, `RPC0[127.0.0.1:50052]`.
    name: String,
    part: Part,
    /// Known to [`PRINTED`].
    size: Bytes,
    /// The llama.cpp function that reported it.
    by: String,
    /// Which context it belongs to, from 1; 0 before any.
    context: u32,
}

impl Buffer {
    /// Whether it is a span of a mapped file in host memory. (Metal's mapped buffers are the device's own.)
    fn is_span(&self) -> bool {
        self.part == Part::Model && self.name == "CPU_Mapped"
    }
}

/// What the log of one launch says so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadLog {
    /// Every buffer that is in llama.cpp's own sums.
    pub buffers: Vec<Buffer>,
    pub stage: Stage,
    /// The address that the server listens on.
    pub listening: Option<String>,
    pub serving: Serving,
    /// Hits and misses of the expert caches.
    cache: [u64; 2],
    /// Names and descriptions of the devices that the model was given, in its order.
    devices: Vec<(String, String)>,
    failure: Option<Failure>,
    contexts: u32,
    projector_device: Option<String>,
}

impl LoadLog {
    pub fn read(text: &str) -> Self {
        let mut log = Self::default();
        text.lines().for_each(|line| log.line(line));
        log
    }

    /// Takes one line, with or without its line feed.
    pub fn line(&mut self, line: &str) {
        let Some(text) = text_of(line) else { return };
        let Some((groups, says)) = LINES.iter().find_map(|(pattern, says)| Some((pattern.captures(&text)?, *says)))
        else {
            return;
        };
        let group = |name| groups.name(name).map_or("", |group| cut(group.as_str().trim(), MAX_TEXT));
        let owned = |name| group(name).to_string();
        match says {
            Says::Buffer(part) => {
                let Some(size) = mib(group("mib")) else { return };
                // Draft models reserve anew before the server is ready; a target that they read, at its first request.
                let context = if self.stage == Stage::Ready { self.contexts.min(1) } else { self.contexts };
                let buffer = Buffer { name: owned("name"), part, size, by: owned("by"), context };
                // A compute buffer that the same function of the same context reports again is reserved anew.
                let is_anew = |other: &Buffer| {
                    let is_same = (other.part, other.context) == (Part::Compute, buffer.context);
                    is_same && part == Part::Compute && (&other.by, &other.name) == (&buffer.by, &buffer.name)
                };
                if let Some(at) = self.buffers.iter().position(is_anew) {
                    self.buffers.swap_remove(at);
                }
                if self.buffers.len() < MOST {
                    self.buffers.push(buffer);
                }
                if part == Part::Model {
                    self.stage = self.stage.max(Stage::Weights);
                }
            }
            Says::ProjectorDevice => self.projector_device = Some(owned("name")),
            // Each encoder of the file says the sum again.
            Says::ProjectorWeights if self.buffers.iter().all(|buffer| buffer.by != group("by")) => {
                if let (Some(size), Some(name)) = (mib(group("mib")), self.projector_device.clone()) {
                    self.buffers.push(Buffer { name, part: Part::Model, size, by: owned("by"), context: 0 });
                }
            }
            Says::Device if self.devices.len() < MOST => self.devices.push((owned("name"), owned("description"))),
            Says::Nothing | Says::Device | Says::ProjectorWeights => {}
            Says::Fitted => {
                let (listening, serving) = (self.listening.take(), std::mem::take(&mut self.serving));
                *self = Self { listening, serving, ..Self::default() };
            }
            Says::Reached(stage) => {
                if groups.name("text").is_some() {
                    self.listening = Some(owned("text"));
                }
                self.contexts = self.contexts.saturating_add(u32::from(stage == Stage::Context));
                self.stage = self.stage.max(stage);
            }
            Says::NoMemory(name, part) => {
                let mut buffer = String::new();
                groups.expand(name, &mut buffer);
                let buffer = Some(cut(&buffer, MAX_TEXT).to_string()).filter(|name| !name.is_empty());
                let bytes = mib(group("mib")).or_else(|| group("bytes").parse().ok().map(Bytes));
                self.fail(Failure::OutOfMemory { buffer, bytes, part });
            }
            Says::CacheHits => {
                for (sum, name) in self.cache.iter_mut().zip(["hits", "misses"]) {
                    *sum = sum.saturating_add(group(name).parse().unwrap_or(0));
                }
            }
            Says::Failed(reason) => self.fail(Failure::Said(reason, owned("text"))),
            _ => self.serving.line(says, &groups),
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failure = Some(match self.failure.take() {
            Some(earlier) => earlier.and(failure),
            None => failure,
        });
    }

    /// Memory by device as llama.cpp's own table sums it: devices by name, `Host` = every host buffer type, others by the
    /// buffer type's name. Mapped weights of the host are a span of their file ([`Self::mapped_span`]) and are left out.
    pub fn memory(&self) -> MemoryByDevice {
        self.sum(|buffer| if buffer.is_span() { Bytes(0) } else { buffer.size })
    }

    /// How far each figure of [`Self::memory`] may be from the true one: half of the last printed digit for each line. The
    /// lines of the mapped span count to the host's weights.
    pub fn resolution(&self) -> MemoryByDevice {
        self.sum(|_| PRINTED)
    }

    fn sum(&self, of: impl Fn(&Buffer) -> Bytes) -> MemoryByDevice {
        let mut memory = MemoryByDevice::from([(HOST.to_string(), MemoryBreakdown::default())]);
        for buffer in &self.buffers {
            let row = memory.entry(self.key(&buffer.name)).or_default();
            let term = match buffer.part {
                Part::Model => &mut row.model,
                Part::Context => &mut row.context,
                Part::Compute => &mut row.compute,
                Part::Output => continue,
            };
            *term = Bytes(term.0.saturating_add(of(buffer).0));
        }
        memory
    }

    /// The span of mapped host weights in their files, from the first to the last tensor; zero when nothing is mapped.
    pub fn mapped_span(&self) -> Bytes {
        let spans = self.buffers.iter().filter(|buffer| buffer.is_span());
        Bytes(spans.fold(0, |sum, buffer| sum.saturating_add(buffer.size.0)))
    }

    /// The share of experts that were found in the expert cache, where the build says.
    pub fn cache_hits(&self) -> Option<f64> {
        let [hits, misses] = self.cache;
        let all = hits.saturating_add(misses);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        (all > 0).then(|| hits as f64 / all as f64)
    }

    /// Why it failed, where a line says so.
    pub fn failure(&self) -> Option<Failure> {
        let mut failure = self.failure.clone()?;
        if let Failure::OutOfMemory { buffer: Some(buffer), .. } = &mut failure
            && self.devices.iter().any(|(name, _)| name.starts_with("ROCm"))
        {
            // ROCm prints CUDA's words.
            *buffer = buffer.replacen("CUDA", "ROCm", 1);
        }
        Some(failure)
    }

    /// The row of llama.cpp's table that a buffer counts in.
    fn key(&self, buffer: &str) -> String {
        let plain = ["_Mapped", "_Split"].iter().find_map(|end| buffer.strip_suffix(end)).unwrap_or(buffer);
        if plain == "CPU" || plain.ends_with("_Host") {
            return HOST.to_string();
        }
        let Some((name, endpoint)) = plain.split_once('[') else { return plain.to_string() };
        // `RPC0[host:port]` is the first device of that server, and any device of the model.
        let endpoint = endpoint.trim_end_matches(']');
        let nth = name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap_or(0);
        let mut of_server = self.devices.iter().filter(|(name, server)| name.starts_with("RPC") && server == endpoint);
        of_server.nth(nth).map_or(name, |(name, _)| name).to_string()
    }
}

/// At most `limit` bytes of `text`, whole characters.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

/// The text of a line as `-lv` writes it, without its prefix `S.SS.mmm.uuu LEVEL `. JSON lines are those of `--log-jsonl`; their
/// records that are not lines of text are `None` (common/log.cpp, b11434).
fn text_of(line: &str) -> Option<String> {
    let line = cut(line, MAX_LINE).trim_end_matches(['\r', '\n']);
    if line.starts_with('{')
        && let Ok(serde_json::Value::Object(record)) = serde_json::from_str(line)
        && let Some(kind) = record.get("type").and_then(serde_json::Value::as_str)
    {
        let text = record.get("msg").and_then(serde_json::Value::as_str).unwrap_or_default();
        return (kind == "log").then(|| text.trim_end().to_string());
    }
    let mut words = line.splitn(3, ' ');
    let (time, level, text) = (words.next()?, words.next().unwrap_or_default(), words.next());
    let is_time = time.contains('.') && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    Some(text.filter(|_| is_time && level.len() == 1).unwrap_or(line).to_string())
}

/// The two decimals of `%8.2f MiB`, to the nearest byte; `None` where that is no such number, or more than 256 TiB.
fn mib(text: &str) -> Option<Bytes> {
    let (whole, decimals) = text.split_once('.')?;
    if decimals.len() != 2 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let hundredths = whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(decimals.parse().ok()?)?;
    let bytes = u128::from(hundredths).checked_mul(u128::from(MIB))?.checked_add(50)? / 100;
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_SIZE).map(Bytes)
}

/// Every device that `llama-server --list-devices` prints (common/arg.cpp, b11434): `  NAME: DESCRIPTION (N MiB, N MiB free)`, or
/// `  - NAME   : …` of `device_info`.
pub fn devices(text: &str) -> Vec<DeviceInfo> {
    static LISTED: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^(?:.*  -|\s*-)?\s*(\S+?)\s*:\s*(.*?)\s*\((\d+) MiB, (\d+) MiB free\)\s*$").ok());
    let mut devices: Vec<DeviceInfo> = Vec::new();
    for line in text.lines().skip_while(|line| !line.contains("Available devices")).skip(1).take(256) {
        let Some(groups) = LISTED.as_ref().and_then(|pattern| pattern.captures(line)) else { continue };
        let [name, description, total, free] = groups.extract().1;
        let size = |mib: &str| mib.parse::<u64>().ok()?.checked_mul(MIB).filter(|bytes| *bytes <= MAX_SIZE).map(Bytes);
        let (Some(total), Some(free)) = (size(total), size(free)) else { continue };
        let (name, description) = (cut(name, MAX_TEXT).to_string(), cut(description, MAX_TEXT).to_string());
        let backend = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_string();
        // The number in an RPC buffer type's name counts the devices of its own server (ggml-rpc.cpp, b11434).
        let buffer = if backend == "RPC" {
            let of_server = |other: &&DeviceInfo| other.backend == "RPC" && other.description == description;
            format!("RPC{}[{description}]", devices.iter().filter(of_server).count())
        } else {
            name.clone()
        };
        let gpu = !matches!(backend.as_str(), "CPU" | "BLAS" | "ACCEL" | "AMX");
        devices.push(DeviceInfo { name, buffer, description, backend, gpu, total, free });
    }
    devices
}

/// One phase of a request by the server's own clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    pub tokens: u32,
    pub rate: f64,
}

/// The request that the log last told a speed of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latest {
    task: Option<u32>,
    pub pp: Option<Pace>,
    pub tg: Option<Pace>,
    /// Whether these are its last figures.
    pub is_over: bool,
}

/// Tokens of many requests, and the milliseconds that they took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    tokens: f64,
    milliseconds: f64,
}

impl Sum {
    fn rate(self) -> Option<f64> {
        (self.milliseconds > 0.0).then(|| self.tokens / self.milliseconds * 1000.0)
    }
}

/// What was said about requests so far (`SLT_INF` lines of llama.cpp's tools/server/server-context.cpp, b11434).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    /// Slots that the server has, where it says so.
    pub slots: Option<u32>,
    pub served: u64,
    /// Requests that whoever asked broke off.
    pub cancelled: u64,
    pub latest: Option<Latest>,
    /// Slots that work, and on which task.
    running: BTreeMap<u32, u32>,
    /// Tasks that were broken off and have not stopped yet.
    stopping: BTreeSet<u32>,
    pp: Sum,
    tg: Sum,
}

impl Serving {
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Prompt tokens/s of all requests that are over.
    pub fn pp(&self) -> Option<f64> {
        self.pp.rate()
    }

    /// Generated tokens/s of all requests that are over.
    pub fn tg(&self) -> Option<f64> {
        self.tg.rate()
    }

    fn line(&mut self, says: Says, groups: &Captures<'_>) {
        let integer = |name| groups.name(name)?.as_str().parse::<u32>().ok();
        // A division by zero is printed as `inf` or `nan`.
        let positive =
            |name| groups.name(name)?.as_str().parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0);
        let (slot, task, n) = (integer("slot"), integer("task"), integer("n"));
        let pace = n.zip(positive("rate")).map(|(tokens, rate)| Pace { tokens, rate });
        match says {
            Says::Slots => self.slots = n,
            Says::Idle => self.running.clear(),
            Says::Cancelled => {
                if self.stopping.len() >= MOST {
                    self.stopping.pop_first();
                }
                self.stopping.extend(task);
            }
            Says::Begun if self.running.len() < MOST => self.running.extend(slot.zip(task)),
            Says::Over => {
                let (Some(slot), Some(task)) = (slot, task) else { return };
                self.running.remove(&slot);
                let count = if self.stopping.remove(&task) { &mut self.cancelled } else { &mut self.served };
                *count = count.saturating_add(1);
            }
            Says::Prompt(is_over) | Says::Generation(is_over) => {
                let is_prompt = matches!(says, Says::Prompt(_));
                // Requests side by side take turns in the log: only one's own prompt belongs to it.
                let own = || self.latest.as_ref().filter(|latest| latest.task == task)?.pp;
                let (pp, tg) = if is_prompt { (pace, None) } else { (own(), pace) };
                self.latest = Some(Latest { task, pp, tg, is_over });
                if let (Some(pace), Some(milliseconds)) = (pace, positive("ms")) {
                    let sum = if is_prompt { &mut self.pp } else { &mut self.tg };
                    // The rate of generation leaves the first token out, so the count of tokens is not what it is made of.
                    sum.tokens += pace.rate * milliseconds / 1000.0;
                    sum.milliseconds += milliseconds;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(name: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/logs").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What a log says, a line for each thing.
    fn told(text: &str) -> (Vec<String>, Vec<String>) {
        let log = LoadLog::read(text);
        let is_told = |row: &MemoryBreakdown| row.total() > Bytes(0);
        let row = |(key, row): (&String, &MemoryBreakdown)| {
            is_told(row).then(|| format!("{key} {} {} {}", row.model.0, row.context.0, row.compute.0))
        };
        let mut launch: Vec<String> = log.memory().iter().filter_map(row).collect();
        launch.extend((log.mapped_span().0 > 0).then(|| format!("span {}", log.mapped_span().0)));
        launch.extend(log.failure().map(|failure| match failure {
            Failure::Said(reason, text) => format!("{}{text}", reason.says),
            failure @ Failure::OutOfMemory { .. } => format!("{failure:?}"),
        }));
        let listed =
            |d: DeviceInfo| format!("listed {} as {}: {}, {} {}", d.name, d.buffer, d.description, d.total.0, d.free.0);
        let mut more: Vec<String> = devices(text).into_iter().map(listed).collect();
        more.extend(log.cache_hits().map(|share| format!("cache hits {share}")));
        more.extend(log.devices.iter().map(|(name, description)| format!("device {name}: {description}")));
        let Serving { slots, served, cancelled, latest, .. } = &log.serving;
        if log.serving != Serving::default() {
            let (running, pp, tg) = (log.serving.running(), log.serving.pp(), log.serving.tg());
            more.push(format!("{running} of {slots:?} running, {served} served, {cancelled} cancelled, {pp:?} {tg:?}"));
        }
        if let Some(Latest { pp, tg, is_over, .. }) = latest {
            let pace = |pace: &Option<Pace>| pace.map(|pace| (pace.tokens, pace.rate));
            more.push(format!("{:?} {:?} {is_over}", pace(pp), pace(tg)));
        }
        (launch, more)
    }

    /// `testdata/logs/wordings.txt`: log lines, or a captured log, then what they say behind `=>`, a block each.
    #[test]
    fn every_wording_says_what_it_says() {
        assert_eq!(LINES.len(), ROWS.len(), "every row is a pattern");
        let text = captured("wordings.txt");
        let mut wrong = Vec::new();
        for block in text.split("\n\n") {
            let (log, expected) = block.trim_end().split_once("\n=>").unwrap();
            let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with('#')).collect();
            let (mut found, more) = match lines[0].strip_prefix('@') {
                Some(name) => (told(&captured(name)).0, Vec::new()),
                None => told(&lines.join("\n")),
            };
            found.extend(more);
            if found.join("\n") != expected.trim().replace("\n=> ", "\n") {
                wrong.push(format!("{log}\n=> {}\n", found.join("\n=> ")));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Rows of llama.cpp's own table of memory at exit (`common_memory_breakdown_print`, common/fit.cpp, b11434), in whole MiB, cut:
    /// name, and model, context, compute.
    fn table_rows(log: &str) -> Vec<(&str, [u64; 3])> {
        let (_, last) = log.rsplit_once("memory breakdown [MiB]").unwrap_or_default();
        let plain = last.lines().filter(|line| !line.starts_with('{'));
        let rows = plain.filter_map(|line| line.split_once("memory_breakdown_print: |   - "));
        rows.map(|(_, row)| {
            let (name, numbers) = row.trim_end().trim_end_matches('|').rsplit_once('|').unwrap();
            let is_sign = |c: char| c.is_whitespace() || "=+()".contains(c);
            let numbers: Vec<i64> = numbers.split(is_sign).filter_map(|word| word.parse().ok()).collect();
            // total = free + (own = model + context + compute) + unaccounted, or own = model + context + compute.
            let at = if numbers.len() == 7 { 3 } else { 1 };
            let terms = [0, 1, 2].map(|term| u64::try_from(numbers[at + term]).unwrap());
            (name.split_whitespace().next().unwrap(), terms)
        })
        .collect()
    }

    #[test]
    fn sums_of_lines_are_llama_cpps_own_sums() {
        for (name, devices) in [
            ("b11434-cpu-lv4.log", 1),
            ("b11434-rpc-cmoe-v.log", 2),
            ("b11434-rpc-ot-nommap.log", 2),
            ("b10434-vulkan-cmoe.log", 2),
            ("b11549-cpu-repack.log", 2),
            ("b11434-cuda-none.log", 2),
            ("b11434-cuda-fit.log", 2),
        ] {
            let text = captured(name);
            let log = LoadLog::read(&text);
            let mut memory = log.memory();
            // The table counts what is mapped by its span.
            memory.get_mut(HOST).unwrap().model += log.mapped_span();
            let table = table_rows(&text);
            assert_eq!(table.len(), devices, "{name}");
            for (row, expected) in table {
                let terms = memory[row];
                let found = [terms.model, terms.context, terms.compute].map(|bytes| bytes.0 / MIB);
                assert_eq!(found, expected, "{name}: {row}");
            }
        }
    }

    #[test]
    fn a_log_tells_the_launch() {
        let log = LoadLog::read(&captured("b11434-rpc-cmoe-v.log"));
        assert_eq!((log.stage, log.listening.as_deref()), (Stage::Ready, Some("http://127.0.0.1:18080")));
        assert_eq!((log.devices.len(), log.resolution()["RPC0"].model), (1, PRINTED));
        let h100 = LoadLog::read(&captured("b11434-cuda-h100.log"));
        assert_eq!(h100.resolution()["CUDA0"].context, Bytes(2 * PRINTED.0));
    }

    proptest! {
        /// Lines with a piece cut out, doubled or replaced are read without a panic, and memory stays bounded.
        #[test]
        fn mutated_lines_do_no_harm(at in any::<prop::sample::Index>(), length in 0_usize..40, junk in ".{0,20}") {
            for name in ["b11434-rpc-cmoe-jsonl.log", "b11434-cuda-h100.log", "b10434-vulkan-cmoe.log"] {
                let text = captured(name);
                let bytes = text.as_bytes();
                let at = at.index(bytes.len());
                let end = (at + length).min(bytes.len());
                let mutated = [&bytes[..at], junk.as_bytes(), &bytes[end..]].concat();
                let log = LoadLog::read(&String::from_utf8_lossy(&mutated));
                let total: u64 = log.memory().values().map(|row| row.total().0).fold(0, u64::saturating_add);
                prop_assert!(total < 1 << 62, "{total}");
            }
        }
    }

    #[test]
    fn prefixes_come_off_and_long_lines_are_cut_between_characters() {
        let text = |line| text_of(line).unwrap_or("a record".to_string());
        assert_eq!(text("0.00.133.769 I load_tensors:   CPU\r\n"), "load_tensors:   CPU");
        assert_eq!(text("12.5 tokens a second"), "12.5 tokens a second");
        assert_eq!(text(r#"{"type":"log","time":1,"level":"info","msg":"srv  x: y\n"}"#), "srv  x: y");
        assert_eq!(text(r#"{"type":"fit_memory_breakdown","data":{}}"#), "a record");
        assert_eq!(text(r#"{"type":"log","msg":3"#), r#"{"type":"log","msg":3"#);
        assert_eq!((cut("漢字", 4), cut("ab", 4)), ("漢", "ab"));
    }

    #[test]
    fn sizes_keep_two_decimals() {
        assert_eq!(mib("14.04"), Some(Bytes(14_722_007)));
        assert_eq!(mib("135910.84"), Some(Bytes(142_512_844_964)));
        for bad in ["14", "14.0", "-1.00", "1e5.00", "268435457.00", "99999999999999999999.00", "1.x0"] {
            assert_eq!(mib(bad), None, "{bad}");
        }
    }
}
