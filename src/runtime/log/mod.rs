//! What a llama.cpp log says about a launch: memory by device, devices, stages of loading, and why it failed.
//!
//! Every line is a stranger's: bounded, never trusted, never a panic. Sizes are printed with two decimals of MiB, so every
//! figure comes with the distance that the true one may be away ([`LoadLog::resolution`]).
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

mod breakdown;
mod buffers;
mod failure;
mod line;
mod listing;
mod serving;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::DeviceInfo;
use crate::bytes::Bytes;
use crate::memory::{HOST, MemoryBreakdown, MemoryByDevice};
pub use breakdown::{Breakdown, BreakdownRow, memory as breakdown_memory};
pub use buffers::{Buffer, Kind, PRINTED, Regrown};
pub use failure::{Failure, Part};
use line::{Line, MAX_LINE, MAX_TEXT, cut, number};
pub use listing::{UsedDevice, devices};
pub use serving::{Latest, Pace, Serving};

/// The most of one kind of thing that is kept.
const MOST: usize = 4096;

/// How far a launch has come, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stage {
    /// The program runs.
    #[default]
    Started,
    /// The header of the model was read.
    Header,
    /// Weights are being read.
    Weights,
    /// Weights are there; caches and graphs are being made.
    Context,
    /// The model is run once on nothing.
    WarmUp,
    /// It answers.
    Ready,
}

/// Something that a line told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Loading came to a new stage.
    Stage(Stage),
    /// The address that the server listens on.
    Listening(String),
    /// A reason why it fails; a later one may say more ([`LoadLog::failure`]).
    Failed(Failure),
    /// llama.cpp's own table was printed whole or in part.
    Breakdown,
}

/// The build that wrote a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// `11434`; packagers sometimes print 0 or 1.
    pub number: u32,
    /// The commit, where it is printed.
    pub commit: String,
}

/// The reserved graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Graph {
    /// Nodes of the prompt graph.
    pub nodes: u32,
    /// Splits of the prompt graph.
    pub splits: u32,
    /// Splits of the graph of one token.
    pub splits_one: u32,
}

/// What the log of one launch says so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadLog {
    /// The build.
    pub build: Option<Build>,
    /// Devices that the program has, host processors too.
    pub devices: Vec<DeviceInfo>,
    /// Devices that the model was given, in its order.
    pub used: Vec<UsedDevice>,
    /// Every buffer, in the log's order.
    pub buffers: Vec<Buffer>,
    /// Compute buffers that grew after they were reserved.
    pub regrown: Vec<Regrown>,
    /// Layers on devices, of how many.
    pub layers: Option<(u32, u32)>,
    /// Tensors by the buffer type that an override gave them; only with `-v`.
    pub overrides: BTreeMap<String, u32>,
    /// The reserved graph.
    pub graph: Option<Graph>,
    /// Tokens of context of all sequences.
    pub n_ctx: Option<u32>,
    /// llama.cpp's own table, the last one.
    pub breakdown: Breakdown,
    /// How far it came.
    pub stage: Stage,
    /// The address that the server listens on.
    pub listening: Option<String>,
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

    /// Rows of logits and adapters, by buffer: in no sum of llama.cpp.
    pub fn uncounted(&self) -> Bytes {
        let uncounted = self.buffers.iter().filter(|b| matches!(b.kind, Kind::Output | Kind::Adapter));
        Bytes(uncounted.fold(0, |sum, b| sum.saturating_add(b.size.0)))
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

/// Reads a log as it grows.
#[derive(Debug, Clone, Default)]
pub struct LogReader {
    log: LoadLog,
    serving: Serving,
    pending: Vec<u8>,
    /// Whether the rest of a line that is too long is being dropped.
    dropping: bool,
    /// Whether lines of devices follow.
    listing: bool,
}

impl LogReader {
    /// What was read so far.
    pub fn log(&self) -> &LoadLog {
        &self.log
    }

    /// What was read about requests.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Takes bytes as they come: parts of lines and of characters too. Memory is bounded whatever they are.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            if !self.dropping {
                let room = MAX_LINE.saturating_sub(self.pending.len());
                self.pending.extend(part.iter().take(room));
                self.dropping = part.len() > room;
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                self.dropping = false;
                events.extend(self.line(&String::from_utf8_lossy(&line)));
            }
        }
        events
    }

    /// Takes one line, with or without its line feed.
    pub fn line(&mut self, text: &str) -> Option<Event> {
        match line::read(text) {
            Line::Text(text) => self.text(&text),
            Line::Record(kind, data) if kind == "fit_memory_breakdown" => {
                self.log.breakdown = breakdown::record(&data)?;
                Some(Event::Breakdown)
            }
            Line::Record(..) => None,
        }
    }

    fn text(&mut self, text: &str) -> Option<Event> {
        if let Some(event) = self.memory(text) {
            return event;
        }
        if let Some(failure) = failure::failure(text) {
            let whole = match self.log.failure.take() {
                Some(earlier) => earlier.and(failure.clone()),
                None => failure.clone(),
            };
            self.log.failure = Some(whole);
            return Some(Event::Failed(failure));
        }
        self.serving.line(text);
        self.about(text);
        if let Some((_, url)) = text.split_once("listening on ") {
            self.log.listening = Some(cut(url.trim(), MAX_TEXT).to_string());
            self.log.stage = Stage::Ready;
            return self.log.listening.clone().map(Event::Listening);
        }
        self.stage(text).map(Event::Stage)
    }

    /// Lines about buffers. The outer `None`: the line is about something else.
    #[expect(clippy::option_option, reason = "whether a line was read, and whether that is an event")]
    fn memory(&mut self, text: &str) -> Option<Option<Event>> {
        if breakdown::begins(text) {
            self.log.breakdown.clear();
            return Some(None);
        }
        if text.contains("memory_breakdown_print") {
            let row = breakdown::row(text).filter(|_| self.log.breakdown.len() < MOST);
            return Some(row.map(|row| {
                self.log.breakdown.push(row);
                Event::Breakdown
            }));
        }
        if let Some(buffer) = buffers::buffer(text) {
            let first = buffer.kind == Kind::Model && self.log.stage < Stage::Context;
            if self.log.buffers.len() < MOST {
                self.log.buffers.push(Buffer { context: self.log.contexts, ..buffer });
            }
            if first {
                self.log.stage = Stage::Weights;
            }
            return Some(first.then_some(Event::Stage(Stage::Weights)));
        }
        let regrown = buffers::regrown(text)?;
        if self.log.regrown.len() < MOST {
            self.log.regrown.push(regrown);
        }
        Some(None)
    }

    /// Lines about the program, the model and the graph.
    fn about(&mut self, text: &str) {
        let log = &mut self.log;
        if text.contains("fitting params to free memory took") {
            // With -v the trial load of --fit printed all that a load prints.
            log.buffers.clear();
            log.used.clear();
            log.overrides.clear();
            (log.contexts, log.stage, log.failure) = (0, Stage::Started, None);
        }
        self.listing = text.contains("device_info:") || (self.listing && text.contains(" MiB free)"));
        if let Some(device) = listing::listed_device(text.split_once(": ").map_or(text, |(_, rest)| rest))
            && self.listing
            && log.devices.len() < MOST
        {
            log.devices.push(device);
            log.devices = listing::number_rpc(std::mem::take(&mut log.devices));
        } else if let Some(device) = listing::used_device(text)
            && log.used.len() < MOST
        {
            log.used.push(device);
        } else if let Some((_, buffer)) = overridden(text)
            && log.overrides.len() < MOST
        {
            let count = log.overrides.entry(cut(buffer, MAX_TEXT).to_string()).or_default();
            *count = count.saturating_add(1);
        } else if let Some(layers) = layers(text) {
            log.layers = Some(layers);
        } else if let Some(build) = build(text) {
            log.build.get_or_insert(build);
        } else if let Some((_, rest)) = text.split_once(" n_ctx ") {
            log.n_ctx = rest.trim_start().strip_prefix('=').and_then(number).or(log.n_ctx);
        } else {
            graph(text, &mut log.graph);
        }
    }

    /// The stage that a line begins, if it is a later one.
    fn stage(&mut self, text: &str) -> Option<Stage> {
        const BEGINS: [(&str, Stage); 5] = [
            ("loaded meta data with", Stage::Header),
            ("loading model tensors", Stage::Weights),
            ("constructing llama_context", Stage::Context),
            ("warming up the model", Stage::WarmUp),
            ("model loaded", Stage::Ready),
        ];
        let (_, stage) = BEGINS.into_iter().find(|(words, _)| text.contains(words))?;
        if stage == Stage::Context {
            self.log.contexts = self.log.contexts.saturating_add(1);
        }
        let later = stage > self.log.stage;
        self.log.stage = self.log.stage.max(stage);
        later.then_some(stage)
    }
}

/// `tensor NAME (…) buffer type overridden to BUFFER`; older builds spell it with one d.
fn overridden(text: &str) -> Option<(&str, &str)> {
    let (before, rest) = text.split_once(" buffer type overrid")?;
    let (_, buffer) = rest.split_once(" to ")?;
    Some((before, buffer.trim()))
}

/// `offloaded 5/5 layers to GPU`.
fn layers(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("offloaded ")?;
    let (on, of) = rest.split_once(" layers to GPU")?.0.split_once('/')?;
    Some((on.parse().ok()?, of.parse().ok()?))
}

/// `build 11434 (commit)`, `build_info: b11434-commit`, `build: 4567 (commit)`.
fn build(text: &str) -> Option<Build> {
    let (_, rest) =
        ["build_info: b", "print_info: build ", "build: "].iter().find_map(|words| text.split_once(words))?;
    let commit = rest.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches([' ', '(', '-']);
    let commit = commit.split([')', ' ']).next().unwrap_or_default();
    Some(Build { number: number(rest)?, commit: cut(commit, 64).to_string() })
}

/// `graph: nodes = 197, splits = 10` or `graph (pp bs=512, tg bs=1): nodes = 197 / 190, splits = 10 / 8` (b11434); two lines
/// before: `graph nodes  = 214`, `graph splits = 13 (with bs=256), 10 (with bs=1)`.
fn graph(text: &str, graph: &mut Option<Graph>) {
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
    let pair = |rest: &str, between: &str| -> Option<(u32, u32)> {
        let first = number(rest)?;
        let second = rest.split(", input").next().unwrap_or_default().split_once(between).and_then(|(_, r)| number(r));
        Some((first, second.unwrap_or(first)))
    };
    if let (true, Some(nodes), Some(splits)) = (text.contains(": graph"), after("nodes = "), after(", splits = ")) {
        if let (Some(nodes), Some((splits, splits_one))) = (number(nodes), pair(splits, " / ")) {
            *graph = Some(Graph { nodes, splits, splits_one });
        }
    } else if let Some(nodes) = after(": graph nodes  = ").and_then(number) {
        *graph = Some(Graph { nodes, ..Graph::default() });
    } else if let Some((splits, splits_one)) = after(": graph splits = ").and_then(|rest| pair(rest, "), ")) {
        let nodes = graph.map_or(0, |graph| graph.nodes);
        *graph = Some(Graph { nodes, splits, splits_one });
    }
}
