//! What a llama.cpp log says about a launch: memory by device, stages of loading, requests, and why it failed.
//!
//! Every line is untrusted: bounded, and never a panic. Sizes are printed with two decimals of MiB, so every figure comes
//! with the distance that the true one may be away ([`LoadLog::resolution`]).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use std::collections::{BTreeMap, BTreeSet};

use super::DeviceInfo;
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
    /// The header of the model was read.
    Header,
    Weights,
    /// Weights are there; caches and graphs are being made.
    Context,
    /// The model is run once on nothing.
    WarmUp,
    Ready,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Loading came to a new stage.
    Stage(Stage),
    /// The address that the server listens on.
    Listening(String),
}

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Weights (`load_tensors`, src/llama-model.cpp, b11434).
    Model,
    /// KV caches (src/llama-kv-cache.cpp).
    Kv,
    /// Recurrent states (src/llama-memory-recurrent.cpp).
    Recurrent,
    /// States of a compressed cache (src/llama-kv-cache-dsv4.cpp).
    State,
    /// The cache of experts (`MoE cache size`, b11549); llama.cpp's own table counts it as context.
    Experts,
    /// Buffers of the graphs (`sched_reserve`, src/llama-context.cpp).
    Compute,
    /// Rows of logits; in no sum of llama.cpp.
    Output,
    /// A LoRA adapter (src/llama-adapter.cpp); in no sum of llama.cpp.
    Adapter,
}

/// One buffer that was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// The buffer's name: `CUDA0`, `CPU_Mapped`, `RPC0[127.0.0.1:50052]`.
    pub name: String,
    pub kind: Kind,
    /// Its size, known to [`PRINTED`].
    pub size: Bytes,
    /// The llama.cpp function that reported it.
    pub by: String,
    /// Which context it belongs to, from 1; 0 before any.
    pub context: u32,
}

/// A device that the model was given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UsedDevice {
    name: String,
    /// What it calls itself; for RPC its server, `host:port`.
    description: String,
}

/// What the log of one launch says so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadLog {
    /// Every buffer, in the log's order.
    pub buffers: Vec<Buffer>,
    pub stage: Stage,
    /// The address that the server listens on.
    pub listening: Option<String>,
    /// Devices that the model was given, in its order.
    used: Vec<UsedDevice>,
    /// What lines of failure say together.
    failure: Option<Failure>,
    contexts: u32,
}

impl LoadLog {
    /// The log of a whole run.
    pub fn read(text: &str) -> Self {
        let mut reader = LogReader::default();
        for line in text.lines() {
            reader.line(line);
        }
        reader.log
    }

    /// Memory by device as llama.cpp's own table sums it: devices by name, `Host` = every host buffer type, others by the
    /// buffer type's name. Mapped weights of the host are a span of their file ([`Self::mapped_span`]) and are left out;
    /// so are output buffers and adapters, which are in no sum of llama.cpp.
    pub fn memory(&self) -> MemoryByDevice {
        self.sum(|buffer| if is_span(buffer) { Bytes(0) } else { buffer.size })
    }

    /// How far each figure of [`Self::memory`] may be from the true one: half of the last printed digit for each line. The
    /// lines of the mapped span count to the host's weights.
    pub fn resolution(&self) -> MemoryByDevice {
        self.sum(|_| PRINTED)
    }

    fn sum(&self, of: impl Fn(&Buffer) -> Bytes) -> MemoryByDevice {
        let mut memory = MemoryByDevice::from([(HOST.to_string(), MemoryBreakdown::default())]);
        for buffer in self.counted() {
            let row = memory.entry(self.key(&buffer.name)).or_default();
            let term = match buffer.kind {
                Kind::Model => &mut row.model,
                Kind::Kv | Kind::Recurrent | Kind::State | Kind::Experts => &mut row.context,
                Kind::Compute => &mut row.compute,
                Kind::Output | Kind::Adapter => continue,
            };
            *term = Bytes(term.0.saturating_add(of(buffer).0));
        }
        memory
    }

    /// The buffers that count: a compute buffer that the same function of the same context reports again is reserved anew.
    fn counted(&self) -> impl Iterator<Item = &Buffer> {
        let again = |at: usize, buffer: &Buffer| {
            let later = self.buffers.iter().skip(at.saturating_add(1));
            buffer.kind == Kind::Compute
                && later.into_iter().any(|other| {
                    (other.kind, other.context, &other.by, &other.name)
                        == (buffer.kind, buffer.context, &buffer.by, &buffer.name)
                })
        };
        self.buffers.iter().enumerate().filter(move |(at, buffer)| !again(*at, buffer)).map(|(_, buffer)| buffer)
    }

    /// The span of mapped host weights in their files, from the first to the last tensor; zero when nothing is mapped.
    pub fn mapped_span(&self) -> Bytes {
        Bytes(self.buffers.iter().filter(|b| is_span(b)).fold(0, |sum, b| sum.saturating_add(b.size.0)))
    }

    /// Why it failed, where a line says so.
    pub fn failure(&self) -> Option<Failure> {
        let mut failure = self.failure.clone()?;
        if let Failure::OutOfMemory { buffer: Some(buffer), .. } = &mut failure {
            // ROCm prints CUDA's words.
            let is_rocm = self.used.iter().any(|device| device.name.starts_with("ROCm"));
            if let Some(number) = buffer.strip_prefix("CUDA").filter(|_| is_rocm) {
                *buffer = format!("ROCm{number}");
            }
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
        let of_server = self.used.iter().filter(|d| d.name.starts_with("RPC") && d.description == endpoint).nth(nth);
        of_server.map_or(name, |device| device.name.as_str()).to_string()
    }
}

/// Whether a buffer is a span of a mapped file in host memory. (Metal's mapped buffers are the device's own.)
fn is_span(buffer: &Buffer) -> bool {
    buffer.kind == Kind::Model && buffer.name == "CPU_Mapped"
}

/// Reads a log line by line as it grows.
#[derive(Debug, Clone, Default)]
pub struct LogReader {
    log: LoadLog,
    serving: Serving,
}

impl LogReader {
    pub fn log(&self) -> &LoadLog {
        &self.log
    }

    /// What was read about requests.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Takes one line, with or without its line feed.
    pub fn line(&mut self, line: &str) -> Option<Event> {
        const BEGINS: [(&str, Stage); 5] = [
            ("loaded meta data with", Stage::Header),
            ("loading model tensors", Stage::Weights),
            ("constructing llama_context", Stage::Context),
            ("warming up the model", Stage::WarmUp),
            ("model loaded", Stage::Ready),
        ];
        let text = &text_of(line)?;
        // llama.cpp's own table of memory at exit.
        if text.contains("| memory breakdown [MiB]") || text.contains("memory_breakdown_print") {
            return None;
        }
        let log = &mut self.log;
        if let Some(buffer) = buffer(text) {
            let is_first = buffer.kind == Kind::Model && log.stage < Stage::Context;
            if log.buffers.len() < MOST {
                log.buffers.push(Buffer { context: log.contexts, ..buffer });
            }
            if is_first {
                log.stage = Stage::Weights;
            }
            return is_first.then_some(Event::Stage(Stage::Weights));
        }
        if let Some(failure) = failure(text) {
            log.failure = Some(match log.failure.take() {
                Some(earlier) => earlier.and(failure),
                None => failure,
            });
            return None;
        }
        self.serving.line(text);
        if text.contains("fitting params to free memory took") {
            // With -v the trial load of --fit printed all that a load prints.
            *log = LoadLog { listening: log.listening.take(), ..LoadLog::default() };
        }
        log.used.extend(used_device(text).filter(|_| log.used.len() < MOST));
        if let Some((_, url)) = text.split_once("listening on ") {
            log.listening = Some(cut(url.trim(), MAX_TEXT).to_string());
            log.stage = Stage::Ready;
            return log.listening.clone().map(Event::Listening);
        }
        let (_, stage) = BEGINS.into_iter().find(|(words, _)| text.contains(words))?;
        if stage == Stage::Context {
            log.contexts = log.contexts.saturating_add(1);
        }
        let is_later = stage > log.stage;
        log.stage = log.stage.max(stage);
        is_later.then_some(Event::Stage(stage))
    }
}

/// At most `limit` bytes of `text`, whole characters.
fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

/// The text of a line as `-lv` writes it, without time and level. JSON lines are those of `--log-jsonl` (common/log.cpp, b11434);
/// their records that are not lines of text are `None`.
fn text_of(line: &str) -> Option<String> {
    let line = cut(line, MAX_LINE).trim_end_matches(['\r', '\n']);
    if line.starts_with('{')
        && let Ok(serde_json::Value::Object(record)) = serde_json::from_str(line)
        && let Some(kind) = record.get("type").and_then(serde_json::Value::as_str)
    {
        let text = record.get("msg").and_then(serde_json::Value::as_str).unwrap_or_default();
        return (kind == "log").then(|| text.trim_end().to_string());
    }
    Some(body(line).to_string())
}

/// A line without its prefix `S.SS.mmm.uuu LEVEL ` (common/log.cpp, b11434), where it has one.
fn body(line: &str) -> &str {
    let Some((time, rest)) = line.split_once(' ') else { return line };
    let is_time = time.contains('.') && time.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match (is_time, rest.split_once(' ')) {
        (true, Some((level, text))) if level.len() == 1 => text,
        _ => line,
    }
}

/// The two decimals of `%8.2f MiB`, to the nearest byte; `None` where that is no such number, or more than 256 TiB.
fn mib(text: &str) -> Option<Bytes> {
    let (whole, decimals) = text.trim().split_once('.')?;
    if decimals.len() != 2 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hundredths = whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(decimals.parse().ok()?)?;
    let bytes = u128::from(hundredths).checked_mul(u128::from(MIB))?.checked_add(50)? / 100;
    u64::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_SIZE).map(Bytes)
}

/// Whole MiB; `None` for more than 256 TiB.
fn whole_mib(mib: u64) -> Option<Bytes> {
    mib.checked_mul(MIB).filter(|bytes| *bytes <= MAX_SIZE).map(Bytes)
}

/// The first whole number of a text.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits: &str = text.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

/// A buffer line, but for its context.
fn buffer(text: &str) -> Option<Buffer> {
    let (head, size) = sized(text)?;
    let (by, subject) = match head.rsplit_once(": ") {
        Some((before, subject)) => (before.rsplit([' ', ':']).next().unwrap_or_default(), subject),
        None => return None,
    };
    let mut words = subject.split_whitespace();
    let name = words.next()?;
    let kind = match words.collect::<Vec<_>>().as_slice() {
        ["model"] => Kind::Model,
        // llama.cpp before December 2024 and ik_llama.cpp leave the word out.
        [] if by.ends_with("load_tensors") => Kind::Model,
        ["KV"] => Kind::Kv,
        ["RS"] => Kind::Recurrent,
        ["DSV4", .., "state"] => Kind::State,
        ["MoE", "cache"] => Kind::Experts,
        ["compute"] => Kind::Compute,
        ["output"] => Kind::Output,
        ["LoRA"] => Kind::Adapter,
        _ => return None,
    };
    Some(Buffer { name: cut(name, MAX_TEXT).to_string(), kind, size, by: cut(by, MAX_TEXT).to_string(), context: 0 })
}

/// What is before `buffer size = N MiB` or `MoE cache size = N MiB`, and N.
fn sized(text: &str) -> Option<(&str, Bytes)> {
    let (head, tail) = match text.split_once(" buffer size") {
        Some(parts) => parts,
        None if text.contains(" MoE cache size") => text.split_once(" size")?,
        None => return None,
    };
    let (number, _) = tail.trim_start().strip_prefix('=')?.split_once(" MiB")?;
    Some((head, mib(number)?))
}

/// Every device that `llama-server --list-devices` prints (common/arg.cpp, b11434); other lines are none.
pub fn devices(text: &str) -> Vec<DeviceInfo> {
    let listed = text.lines().skip_while(|line| !line.contains("Available devices")).skip(1);
    number_rpc(listed.take(256).filter_map(listed_device).collect())
}

/// `  NAME: DESCRIPTION (N MiB, N MiB free)`, or `  - NAME   : …` of `device_info`.
fn listed_device(line: &str) -> Option<DeviceInfo> {
    let line = line.trim();
    let line = line.split_once("  - ").map_or(line, |(_, rest)| rest);
    let (name, rest) = line.strip_prefix("- ").unwrap_or(line).split_once(':')?;
    let name = name.trim();
    let (description, sizes) = rest.strip_suffix(" MiB free)")?.rsplit_once('(')?;
    let (total, free) = sizes.split_once(" MiB, ")?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    let description = cut(description.trim(), MAX_TEXT).to_string();
    let backend = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let rpc = backend == "RPC";
    Some(DeviceInfo {
        name: cut(name, MAX_TEXT).to_string(),
        buffer: if rpc { format!("RPC0[{description}]") } else { cut(name, MAX_TEXT).to_string() },
        description,
        backend: cut(backend, MAX_TEXT).to_string(),
        gpu: !matches!(backend, "CPU" | "BLAS" | "ACCEL" | "AMX"),
        total: whole_mib(number(total)?)?,
        free: whole_mib(number(free)?)?,
    })
}

/// The number in an RPC buffer type's name counts the devices of its own server (ggml-rpc.cpp, b11434).
fn number_rpc(mut devices: Vec<DeviceInfo>) -> Vec<DeviceInfo> {
    for at in 0..devices.len() {
        let (before, rest) = devices.split_at_mut(at);
        let Some(device) = rest.first_mut().filter(|device| device.backend == "RPC") else { continue };
        let same = before.iter().filter(|other| other.backend == "RPC" && other.description == device.description);
        device.buffer = format!("RPC{}[{}]", same.count(), device.description);
    }
    devices
}

/// `using device NAME (DESCRIPTION) (ID) - N MiB free` (`llama_prepare_model_devices`, src/llama.cpp, b11434; older builds
/// print no id).
fn used_device(text: &str) -> Option<UsedDevice> {
    let (_, rest) = text.split_once("using device ")?;
    let (rest, free) = rest.trim_end().strip_suffix(" MiB free")?.rsplit_once(" - ")?;
    whole_mib(number(free)?)?;
    let (name, rest) = rest.split_once(" (")?;
    let inner = rest.strip_suffix(')')?;
    let is_id = |id: &str| id == "unknown id" || (!id.contains(' ') && id.matches(':').count() == 2);
    let description =
        inner.rsplit_once(") (").filter(|(_, id)| is_id(id)).map_or(inner, |(description, _)| description);
    Some(UsedDevice { name: cut(name, MAX_TEXT).to_string(), description: cut(description, MAX_TEXT).to_string() })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Model,
    Context,
    Compute,
    Output,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    OutOfMemory {
        buffer: Option<String>,
        bytes: Option<Bytes>,
        part: Option<Part>,
    },
    /// The model cannot be loaded: missing, cut, of an unknown kind.
    BadModel(String),
    /// A flag that this build does not take, or a value that it refuses.
    InvalidArgument(String),
    /// The address is in use or not allowed.
    Bind(String),
    /// An assertion or an error of a backend ended the process.
    Crash(String),
    /// The server said that it gives up, and no more.
    Other(String),
}

impl Failure {
    /// How much it explains: of several lines the most telling is the reason.
    fn weight(&self) -> u8 {
        match self {
            Self::OutOfMemory { .. } => 5,
            Self::InvalidArgument(_) | Self::Bind(_) => 4,
            Self::BadModel(_) => 3,
            Self::Crash(_) => 2,
            Self::Other(_) => 1,
        }
    }

    /// The failure after one more line: the more telling of two, and what each knows of an allocation.
    #[must_use]
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

fn failure(text: &str) -> Option<Failure> {
    out_of_memory(text).or_else(|| refusal(text))
}

/// A refused allocation. Sources (b11434): ggml-backend.cpp, ggml-alloc.c, ggml-cuda.cu, ggml-vulkan.cpp,
/// ggml-metal-device.m, llama-model.cpp, llama-kv-cache.cpp, llama-context.cpp.
fn out_of_memory(text: &str) -> Option<Failure> {
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
    let found = |buffer: Option<&str>, bytes, part| {
        let buffer = buffer.map(|name| cut(name.trim(), MAX_TEXT).to_string()).filter(|name| !name.is_empty());
        Some(Failure::OutOfMemory { buffer, bytes, part })
    };
    if let Some((size, rest)) = after("allocating ").and_then(|rest| rest.split_once(" MiB on device "))
        && rest.contains("alloc failed")
    {
        let device: Option<u32> = number(rest);
        return found(device.map(|n| format!("CUDA{n}")).as_deref(), mib(size), None);
    }
    if let Some((name, size)) = after("failed to allocate ").and_then(|rest| rest.split_once("buffer of size ")) {
        if name.trim() == "output" {
            let size = size.split_once(" MiB").and_then(|(size, _)| mib(size));
            return found(None, size, Some(Part::Output));
        }
        let part = text.contains("gallocr").then_some(Part::Compute);
        let host = text.contains("cpu_buffer_type").then_some("CPU");
        return found(Some(name).filter(|name| !name.trim().is_empty()).or(host), number(size).map(Bytes), part);
    }
    if let Some(rest) = after("failed to allocate buffer, size = ") {
        return found(Some("MTL0"), rest.split_once(" MiB").and_then(|(size, _)| mib(size)), None);
    }
    if let Some(rest) = after("Device memory allocation of size ") {
        return found(None, number(rest).map(Bytes), None);
    }
    if let Some((name, _)) = after("unable to allocate ").and_then(|rest| rest.split_once(" buffer")) {
        return found(Some(name), None, Some(Part::Model));
    }
    for (words, part) in [
        ("failed to allocate buffer for", Some(Part::Context)),
        ("failed to allocate compute", Some(Part::Compute)),
        ("failed to reserve initial output buffer", Some(Part::Output)),
        ("CUDA error: out of memory", None),
        ("ErrorOutOfDeviceMemory", None),
        ("OutOfDeviceMemoryError", None),
        ("std::bad_alloc", None),
    ] {
        if text.contains(words) {
            return found(None, None, part);
        }
    }
    None
}

fn refusal(text: &str) -> Option<Failure> {
    let kept = |text: &str| cut(text.trim(), MAX_TEXT).to_string();
    if let Some((_, reason)) = text.split_once("error loading model: ") {
        return Some(Failure::BadModel(kept(reason)));
    }
    if let Some(at) = text.find("failed to open GGUF file") {
        return Some(Failure::BadModel(kept(text.get(at..)?)));
    }
    for start in ["error: invalid argument", "error while handling argument", "error: unknown argument", "error: "] {
        if text.starts_with(start) {
            return Some(Failure::InvalidArgument(kept(text)));
        }
    }
    if text.contains("couldn't bind") || text.contains("couldn't start HTTP listener") {
        return Some(Failure::Bind(kept(text)));
    }
    if text.contains("GGML_ASSERT(") || text.contains("CUDA error") || text.contains("terminate called") {
        return Some(Failure::Crash(kept(text)));
    }
    let gives_up = ["failed to initialize the context: ", "exiting due to ", "failed to load model"];
    gives_up.iter().any(|words| text.contains(words)).then(|| Failure::Other(kept(text)))
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

/// A mean rate over many requests: tokens of all over the time of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mean {
    tokens: f64,
    milliseconds: f64,
}

impl Mean {
    fn add(&mut self, last: Option<(Pace, f64)>) {
        let Some((pace, milliseconds)) = last else { return };
        // The rate of generation leaves the first token out, so the count of tokens is not what it is made of.
        self.tokens += pace.rate * milliseconds / 1000.0;
        self.milliseconds += milliseconds;
    }

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
    /// The request that was last told about.
    pub latest: Option<Latest>,
    /// Slots that work, and on which task.
    running: BTreeMap<u32, u32>,
    /// Tasks that were broken off and have not stopped yet.
    stopping: BTreeSet<u32>,
    pp: Mean,
    tg: Mean,
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

    /// Takes a line without its prefix of time and level.
    fn line(&mut self, text: &str) {
        if let Some((slot, task, message)) = of_slot(text) {
            self.slot(slot, task, message.trim_start());
        } else if let Some((_, rest)) = text.split_once(", n_slots = ") {
            self.slots = number(rest);
        } else if let Some((_, rest)) = text.split_once(": cancel task, id_task = ") {
            if self.stopping.len() >= MOST {
                self.stopping.pop_first();
            }
            self.stopping.extend(number::<u32>(rest));
        } else if text.starts_with("srv") && text.ends_with("all slots are idle") {
            self.running.clear();
        } else {
            // Builds before b11434 wrote the lines of one message below each other.
            self.timing(None, text.trim_start());
        }
    }

    fn slot(&mut self, slot: u32, task: Option<u32>, message: &str) {
        match task {
            Some(task) if message.starts_with("processing task") && self.running.len() < MOST => {
                self.running.insert(slot, task);
            }
            Some(task) if message.starts_with("stop processing") => {
                self.running.remove(&slot);
                let count = if self.stopping.remove(&task) { &mut self.cancelled } else { &mut self.served };
                *count = count.saturating_add(1);
            }
            _ => self.timing(task, message),
        }
    }

    /// Lines about speed, of a request under way or over.
    fn timing(&mut self, task: Option<u32>, message: &str) {
        if let Some(rest) = message.strip_prefix("prompt eval time =") {
            let last = last(rest);
            self.latest = Some(Latest { task, pp: last.map(|(pace, _)| pace), tg: None, is_over: true });
            self.pp.add(last);
        } else if let Some(rest) = message.strip_prefix("eval time =") {
            let last = last(rest);
            self.tg_is(task, last.map(|(pace, _)| pace), true);
            self.tg.add(last);
        } else if let Some(rest) = message.strip_prefix("prompt processing, n_tokens =") {
            let rate = rest.split_once('/').and_then(|(_, rest)| positive(rest));
            self.latest = Some(Latest { task, pp: pace(rest, rate), tg: None, is_over: false });
        } else if let Some(rest) = message.strip_prefix("n_gen =") {
            let rate = rest.split_once("tg_3s =").and_then(|(_, rest)| positive(rest));
            self.tg_is(task, pace(rest, rate), false);
        }
    }

    fn tg_is(&mut self, task: Option<u32>, tg: Option<Pace>, is_over: bool) {
        // Requests side by side take turns in the log: only one's own prompt belongs to it.
        let pp = self.latest.as_ref().filter(|latest| latest.task == task).and_then(|latest| latest.pp);
        self.latest = Some(Latest { task, pp, tg, is_over });
    }
}

/// `slot FUNCTION: id  3 | task 17 | MESSAGE`; a slot at rest has task -1.
fn of_slot(text: &str) -> Option<(u32, Option<u32>, &str)> {
    let (head, rest) = text.strip_prefix("slot ")?.split_once(" | task ")?;
    let (task, message) = rest.split_once(" | ")?;
    let (_, slot) = head.split_once(": id ")?;
    Some((slot.trim().parse().ok()?, task.trim().parse().ok(), message))
}

/// `  719.67 ms /    11 tokens (   65.42 ms per token,    15.28 tokens per second)`: the pace and the milliseconds. `None` where
/// there was nothing to time.
fn last(text: &str) -> Option<(Pace, f64)> {
    let (_, tokens) = text.split_once(" / ")?;
    let (_, rate) = text.split_once(" ms per token,")?;
    Some((pace(tokens, positive(rate))?, positive(text)?))
}

fn pace(tokens: &str, rate: Option<f64>) -> Option<Pace> {
    Some(Pace { tokens: number(tokens)?, rate: rate? })
}

/// The first word, if it is a number above zero: a division by zero is printed as `inf` or `nan`.
fn positive(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0)
}

#[cfg(test)]
mod tests;
