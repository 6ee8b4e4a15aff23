//! llama.cpp's law of placement: the buffer of every tensor for a launch on a machine.

mod buffers;
pub mod by_size;
mod devices;
pub(crate) use devices::known;
pub mod pattern;
mod shares;
mod tensors;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Machine};
use crate::model::{Model, Tensor};
use crate::rules::Role;
use crate::run::{LazyMode, LoadMode, Rules, RunConfig, SplitMode};
use crate::suggest::Hint;
use buffers::HostList;
use pattern::Pattern;
use shares::Cut;
use tensors::{Class, Op};

/// A kind of buffer of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Buffer {
    Cpu,
    /// Host memory in a layout of its own; no op offload from it.
    CpuRepack,
    /// Host memory in the layout of Intel's tile units (AMX); no op offload from it.
    Amx,
    /// Pinned host memory of the first device that has it (`CUDA_Host`).
    HostPinned,
    Device(u16),
}

/// One copy of a tensor in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    pub buffer: Buffer,
    /// What it takes there: the buffer type's allocation size, before alignment.
    pub bytes: Bytes,
    /// Which of `RunConfig::overrides` put it there, if one did.
    pub rule: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// By tensor of the model, in its order: no copy (skipped), one, or two (tied embeddings).
    pub copies: Vec<Vec<Copy>>,
    /// The device of every layer slot: blocks `0..block_count`, then the output; `None` = host.
    pub layers: Vec<Option<u16>>,
    /// `Machine::devices` that take part, in llama.cpp's order (after `--device`, `-sm none`).
    pub devices: Vec<u16>,
    /// Whether files are mapped: the load mode, of which `auto` is `none` where a device that takes part does not support it
    /// (`src/llama-model.cpp` `load_tensors`, b11434).
    pub is_mapped: bool,
    /// `-sm tensor`: the devices that hold a part of whatever is on the first one, which stands for them all, and `-ts`.
    pub shares: Option<Shares>,
}

/// The devices of `-sm tensor`, and how much of every tensor each gets; empty = equal parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    pub devices: Vec<u16>,
    pub tensor_split: Vec<f32>,
}

impl Placement {
    /// How `-sm tensor` cuts what is on a device; `None` where the device holds it whole.
    pub fn cut<'a>(&'a self, model: &'a Model, device: u16) -> Option<(&'a [u16], Cut<'a>)> {
        let shares = self.shares.as_ref().filter(|shares| shares.devices.first() == Some(&device))?;
        Some((&shares.devices, Cut::new(model, &shares.tensor_split, shares.devices.len())))
    }

    /// The devices that take part, each with its place in the machine.
    pub fn taking_part<'a>(&'a self, machine: &'a Machine) -> impl Iterator<Item = (u16, &'a Device)> {
        self.devices.iter().filter_map(|at| Some((*at, machine.device(*at)?)))
    }

    /// Weights that ask for pinned memory of the host.
    pub fn pinned(&self) -> Bytes {
        self.copies.iter().flatten().filter(|copy| copy.buffer == Buffer::HostPinned).map(|copy| copy.bytes).sum()
    }

    /// The share of them that gets it. A buffer that cannot be pinned is pageable as a whole (`ggml-cuda.cu`
    /// `ggml_backend_cuda_host_buffer_type_alloc_buffer`): in older builds all of them are one buffer.
    pub fn pinned_share(&self, machine: &Machine, rules: Rules) -> f64 {
        let pinned = self.pinned();
        match machine.host.pinnable().filter(|most| pinned > *most) {
            None => 1.0,
            Some(most) => Bytes(most.0 / rules.pinned_buffer * rules.pinned_buffer).in_mib() / pinned.in_mib(),
        }
    }

    pub fn experts<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = (&'a Tensor, &'a Copy)> {
        let experts = model.tensors.iter().zip(&self.copies).filter(|(tensor, _)| tensor.role == Role::RoutedExpert);
        experts.flat_map(|(tensor, copies)| copies.iter().map(move |copy| (tensor, copy)))
    }

    /// The first tensor that `other` puts into other buffers, or with other sizes.
    pub fn first_moved<'a>(&self, other: &Self, model: &'a Model) -> Option<&'a Tensor> {
        let what = |copies: &[Copy]| copies.iter().map(|copy| (copy.buffer, copy.bytes)).collect::<Vec<_>>();
        let mut copies = model.tensors.iter().zip(self.copies.iter().zip(&other.copies));
        copies.find(|(_, (one, other))| what(one) != what(other)).map(|(tensor, _)| tensor)
    }

    /// What stays mapped: by file the span from the first byte to the last of what a buffer type holds (`src/llama-model.cpp`
    /// `load_tensors`, `get_mapping_range`, b11434). Beside the processor it is Metal that uses the mapped file in place.
    pub fn mapped(&self, model: &Model, machine: &Machine, rules: Rules) -> Mapped {
        let mut mapped = Mapped::default();
        if !self.is_mapped {
            return mapped;
        }
        let held = |buffer: Buffer| {
            let tensors = model.tensors.iter().zip(&self.copies);
            let here = tensors.filter(move |(_, copies)| copies.iter().any(|copy| copy.buffer == buffer));
            here.map(|(tensor, _)| {
                (tensor.shard, tensor.file_offset, tensor.file_offset.saturating_add(tensor.bytes.0))
            })
        };
        let is_whole = rules.mapped == crate::run::behaviour::Mapped::Span;
        let spans = |buffer: Buffer| {
            let mut spans: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
            for (shard, first, last) in held(buffer) {
                let span = spans.entry(shard).or_insert((first, last));
                *span = (span.0.min(first), span.1.max(last));
            }
            spans
        };
        let sum = |spans: &BTreeMap<u16, (u64, u64)>| spans.values().map(|(first, last)| Bytes(last - first)).sum();
        let sum = |buffer: Buffer, spans: &BTreeMap<u16, (u64, u64)>| {
            if is_whole { sum(spans) } else { held(buffer).map(|(_, first, last)| Bytes(last - first)).sum() }
        };
        let host = spans(Buffer::Cpu);
        mapped.host = (!host.is_empty()).then(|| sum(Buffer::Cpu, &host));
        for (at, device) in self.taking_part(machine).filter(|(_, device)| device.backend == Backend::Metal) {
            let spans = spans(Buffer::Device(at));
            mapped.devices.insert(device.name.clone(), sum(Buffer::Device(at), &spans));
            if !is_whole {
                continue;
            }
            let is_within = |(shard, first, last): &(u16, u64, u64)| {
                spans.get(shard).is_some_and(|span| span.0 <= *first && *last <= span.1)
            };
            mapped.twice += held(Buffer::Cpu).filter(is_within).map(|(_, first, last)| Bytes(last - first)).sum();
        }
        mapped
    }
}

/// The spans of files that stay mapped, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Of the host's weights; `None` where nothing is mapped for it.
    pub host: Option<Bytes>,
    /// Of devices that use the file in place, by name.
    pub devices: BTreeMap<String, Bytes>,
    /// Weights of the host within the span of a device: the same pages.
    pub twice: Bytes,
}

/// Why llama.cpp would not load the model so, or moeplan cannot say.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("`{flag}` names `{name}`, which this machine does not have; known: {known}")]
    UnknownDevice { flag: String, name: String, known: String },
    #[error(
        "the container is given card {card} (`device_ids`, `--gpus` or NVIDIA_VISIBLE_DEVICES), which this machine does not have; known: {known}"
    )]
    UnknownCard { card: usize, known: String },
    #[error("`{word}`: llama.cpp has {name} only if `--rpc` names its server, {server}")]
    NoServer { word: String, name: String, server: String },
    #[error("`{origin} {pattern}={buffer}`: no buffer type `{buffer}` here; known: {known}")]
    UnknownBuffer { origin: String, pattern: String, buffer: String, known: String },
    #[error("`{origin} {pattern}=…`: {reason}")]
    BadPattern { origin: String, pattern: String, reason: String },
    #[error("`-mg {main_gpu}`: llama.cpp counts devices from 0, and the launch uses {devices}")]
    MainGpu { main_gpu: i32, devices: usize },
    #[error("`-sm row`: llama.cpp has no split buffers for {device} and refuses; use `-sm layer`")]
    SplitRow { device: String },
    /// `src/llama-arch.cpp` `llm_arch_supports_sm_tensor`.
    #[error("`-sm tensor`: llama.cpp b11434 does not support it for {architecture} and refuses; use `-sm layer`")]
    SplitTensor { architecture: String },
    #[error("`-sm tensor` needs a device; llama.cpp refuses without one")]
    NoDevice,
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::UnknownDevice { flag, name, .. } if flag == "--rpc" => {
                format!("describe the server before `--`: --device 'RPC0[{name}]=SIZE'")
            }
            Self::NoServer { server, .. } => format!("add `--rpc {server}` to the command, after `--`"),
            Self::UnknownDevice { name, known, .. } => {
                let number = |name: &str| name.trim_start_matches(char::is_alphabetic).to_string();
                let is_same = |other: &&str| !number(name).is_empty() && number(other) == number(name);
                match known.split(", ").find(is_same) {
                    Some(other) => format!(
                        "here it is `{other}`; for a machine with {name}, write --device {name}=SIZE before `--`, in place of --vram or --gpu"
                    ),
                    None => format!("describe it before `--`: --device {name}=SIZE, or --vram SIZE,SIZE"),
                }
            }
            Self::UnknownCard { .. } => "cards are counted from 0; describe all of them: --vram SIZE,SIZE".into(),
            Self::UnknownBuffer { buffer, .. } if buffer.contains("Host") || buffer == "CPU_REPACK" => {
                "llama.cpp takes only devices and `CPU` there; `CPU` becomes pinned, mapped or repacked by itself"
                    .into()
            }
            Self::UnknownBuffer { buffer, .. } if buffer.starts_with("CPU") => "did you mean `CPU`?".into(),
            Self::UnknownBuffer { buffer, known, .. } => {
                if let Some(same) = known.split(", ").find(|name| name.eq_ignore_ascii_case(buffer)) {
                    return Some(format!("did you mean `{same}`?").into());
                }
                let server = buffer.find('[').and_then(|at| buffer.get(at..));
                match server.and_then(|server| known.split(", ").find(|name| name.ends_with(server))) {
                    Some(named) => format!("write `{named}`: its number counts the devices of that server alone"),
                    None => format!("describe it before `--`: --device '{buffer}=SIZE', or --vram SIZE,SIZE"),
                }
            }
            _ => return None,
        };
        Some(text.into())
    }
}

/// The key of host memory in memory tables.
pub const HOST: &str = "Host";

impl Buffer {
    /// The key in llama.cpp's memory table: a device's name, `Host`, or the buffer type's own name.
    pub fn key(self, machine: &Machine) -> &str {
        match self {
            Self::Cpu | Self::HostPinned => HOST,
            Self::CpuRepack => "CPU_REPACK",
            Self::Amx => "AMX",
            Self::Device(_) => self.device(machine).map_or("?", |device| device.name.as_str()),
        }
    }

    /// llama.cpp's name of the buffer type: `CPU`, `CUDA_Host`, `CUDA0`, `RPC0[host:port]`.
    pub fn name<'a>(self, machine: &'a Machine, placement: &Placement) -> &'a str {
        match self {
            Self::Cpu => "CPU",
            Self::CpuRepack | Self::Amx => self.key(machine),
            Self::HostPinned => {
                pinned(machine, &placement.devices).and_then(Backend::host_buffer_name).unwrap_or("CPU")
            }
            Self::Device(_) => self.device(machine).map_or("?", |device| device.buffer.as_str()),
        }
    }

    /// The place of its device in the machine; `None` = host memory.
    pub fn device_index(self) -> Option<u16> {
        if let Self::Device(index) = self { Some(index) } else { None }
    }

    fn device(self, machine: &Machine) -> Option<&Device> {
        machine.device(self.device_index()?)
    }

    /// What sizes in it are padded to.
    fn alignment(self, machine: &Machine, placement: &Placement) -> u64 {
        let alignment = match self {
            Self::Device(_) => self.device(machine).map(|device| device.backend.alignment()),
            Self::HostPinned => pinned(machine, &placement.devices).map(Backend::host_alignment),
            // llama.cpp's projection maps nothing: it counts the same weights in pinned memory.
            Self::Cpu if placement.is_mapped => pinned(machine, &placement.devices).map(Backend::host_alignment),
            _ => None,
        };
        alignment.unwrap_or(Backend::Cpu.alignment())
    }
}

/// The backend of the first participating device that offers pinned host memory.
fn pinned(machine: &Machine, devices: &[u16]) -> Option<Backend> {
    let backends = devices.iter().filter_map(|i| machine.device(*i)).map(|device| device.backend);
    backends.into_iter().find(|backend| backend.host_buffer_name().is_some())
}

struct Law<'a> {
    rules: Rules,
    model: &'a Model,
    machine: &'a Machine,
    run: &'a RunConfig,
    host: HostList,
    slots: &'a [Option<u16>],
    supports_mmap: bool,
    overrides: Vec<(Pattern, Target)>,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Host,
    Device(u16),
}

/// Where llama.cpp b11434 puts every tensor of `model` on `machine` for `run`.
pub fn place(model: &Model, machine: &Machine, run: &RunConfig) -> Result<Placement, Error> {
    let mut devices = devices::participating(machine, run)?;
    let mut shares = None;
    if run.split_mode == SplitMode::Tensor {
        if !model.hparams.arch().splits_tensors {
            return Err(Error::SplitTensor { architecture: model.architecture.clone() });
        }
        shares = Some(Shares { devices: devices.clone(), tensor_split: run.tensor_split.clone() });
        devices.truncate(1);
    }
    let rules = run.rules();
    let slots = if rules.splits_by_size && devices.len() > 1 && run.split_mode == SplitMode::Layer {
        by_size::slots(model, machine, run, &devices)
    } else {
        devices::slots(machine, run, &devices, model.context.n_layer_all())
    };
    let supports_mmap = devices.iter().filter_map(|at| machine.device(*at)).all(Device::supports_mmap);
    let is_mapped = run.load_mode.is_mapped() && (supports_mmap || run.load_mode != LoadMode::Auto);
    let law = Law {
        rules,
        model,
        machine,
        run,
        host: HostList {
            pinned: pinned(machine, &devices).filter(|_| !run.no_host),
            repack: Some(machine.host.isa).filter(|_| run.repack && rules.repacks),
            mapped: is_mapped,
        },
        slots: &slots,
        supports_mmap,
        overrides: overrides(machine, run)?,
    };
    let tied = tensors::is_tied(model);
    let copies = model.tensors.iter().map(|tensor| law.copies(tensor, tied)).collect();
    Ok(Placement { copies, layers: slots, devices, is_mapped, shares })
}

/// The device of a multimodal projector: `-mmdev`, else the first of `--device`, else the first there is; `None` = host
/// (`common/arg.cpp` `common_params_parse_ex`, `tools/mtmd/clip.cpp` `clip_ctx`, b11434).
pub fn projector_device(machine: &Machine, run: &RunConfig) -> Result<Option<u16>, Error> {
    let named = run.mmproj_device.as_ref().map(|name| vec![name.clone()]);
    if !run.mmproj_offload || named.as_ref().is_some_and(|names| names.iter().any(|name| name == "none")) {
        return Ok(None);
    }
    let devices = named.or_else(|| run.devices.clone());
    let all = RunConfig { devices, split_mode: SplitMode::Layer, ..run.clone() };
    Ok(devices::participating(machine, &all)?.first().copied())
}

fn overrides(machine: &Machine, run: &RunConfig) -> Result<Vec<(Pattern, Target)>, Error> {
    let mut patterns = pattern::Parser::default();
    let read = |entry: &crate::run::Override| {
        let (origin, pattern, buffer) = (entry.origin.clone(), entry.pattern.clone(), entry.buffer.clone());
        let target = if entry.buffer == "CPU" {
            Target::Host
        } else {
            let found = machine.devices.iter().position(|device| device.buffer == entry.buffer);
            let Some(index) = found.and_then(|i| u16::try_from(i).ok()) else {
                let known = known(machine);
                return Err(Error::UnknownBuffer { origin, pattern, buffer, known });
            };
            devices::must_be_registered(machine, index, &run.rpc, &format!("{origin} {pattern}={buffer}"))?;
            Target::Device(index)
        };
        match patterns.parse(&entry.pattern) {
            Ok(compiled) => Ok((compiled, target)),
            Err(reason) => Err(Error::BadPattern { origin, pattern, reason }),
        }
    };
    run.overrides.iter().map(read).collect()
}

impl Law<'_> {
    /// The copies of a tensor: none when it is left out, several when blocks or the output have their own.
    fn copies(&self, tensor: &Tensor, tied: bool) -> Vec<Copy> {
        let name = tensors::name(&tensor.name);
        if tensors::is_skipped(self.model, self.run, name) {
            return Vec::new();
        }
        let op = tensors::op(name, tensor);
        let rule = self.overrides.iter().position(|(pattern, _)| pattern.matches(&tensor.name));
        match tensors::class(self.model.hparams.arch(), name, self.rules) {
            Class::Input => {
                let mut copies = vec![self.copy(tensor, op, None, rule)];
                if tied && tensor.name == "token_embd.weight" {
                    let output = self.copy(tensor, Op::MulMat, self.output(), rule);
                    // The second creation finds the first one where both are in the same buffer type.
                    if tensors::output_comes_first(self.model, self.run)
                        || copies.iter().all(|copy| copy.buffer != output.buffer)
                    {
                        copies.push(output);
                    }
                }
                copies
            }
            Class::Output => {
                let copy = self.copy(tensor, op, self.output(), rule);
                let twice = tensor.name == "output.weight" && tensors::output_embeds(self.model);
                vec![copy; if twice { 2 } else { 1 }]
            }
            Class::Block(block) => {
                let mut copies = vec![self.copy(tensor, op, self.slot(block), rule)];
                if self.rules.biases_follow && op == Op::Other && name.base.ends_with("_exps") {
                    let weight = tensor.name.strip_suffix(".bias").map(|stem| format!("{stem}.weight"));
                    let weight = self.model.tensors.iter().find(|tensor| Some(&tensor.name) == weight.as_ref());
                    let there = weight.map(|weight| self.copies(weight, tied)).unwrap_or_default();
                    let there = there.first().map(|copy| copy.buffer).filter(|buffer| *buffer != copies[0].buffer);
                    copies.extend(there.map(|buffer| Copy { buffer, bytes: tensor.bytes, rule: None }));
                }
                copies
            }
            Class::EveryBlock => {
                let mut copies: Vec<Copy> = Vec::new();
                for block in tensors::sharing_blocks(self.model, self.run) {
                    let copy = self.copy(tensor, op, self.slot(block), rule);
                    if self.rules.copies_shared || copies.iter().all(|other| other.buffer != copy.buffer) {
                        copies.push(copy);
                    }
                }
                copies
            }
        }
    }

    fn output(&self) -> Option<u16> {
        self.slots.last().copied().flatten()
    }

    /// The device of a block; those that are no layers go with the output.
    fn slot(&self, block: u32) -> Option<u16> {
        // A block number past the address space is no layer either.
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        self.slots.get(index).copied().unwrap_or_else(|| self.output())
    }

    /// One copy of a tensor whose list is that of `device`, or the host's.
    fn copy(&self, tensor: &Tensor, op: Op, device: Option<u16>, rule: Option<usize>) -> Copy {
        if self.is_lazy(tensor) {
            return Copy { buffer: Buffer::Cpu, bytes: tensor.bytes, rule: None };
        }
        let target = rule.and_then(|index| self.overrides.get(index)).map(|(_, target)| *target);
        let buffer = match (target, device) {
            (Some(Target::Device(index)), _) => Buffer::Device(index),
            (Some(Target::Host), _) | (None, None) => self.host.choose(tensor, op),
            (None, Some(index)) => match Buffer::Device(index).device(self.machine) {
                Some(on) if buffers::supports(on.backend, tensor, op) => Buffer::Device(index),
                _ => self.host.choose(tensor, op),
            },
        };
        let bytes = match buffer {
            Buffer::Device(_) => buffer
                .device(self.machine)
                .map_or(tensor.bytes, |on| on.backend.alloc_size(tensor.ty, tensor.shape, tensor.bytes)),
            Buffer::Amx => buffers::amx_bytes(tensor),
            Buffer::Cpu | Buffer::CpuRepack | Buffer::HostPinned => tensor.bytes,
        };
        Copy { buffer, bytes, rule }
    }

    /// Whether the tensor stays in the mapped file, row by row (`TENSOR_READ_LAZY`).
    fn is_lazy(&self, tensor: &Tensor) -> bool {
        let readable = tensor.name == "per_layer_token_embd.weight" && self.model.hparams.arch().lazy_rows;
        readable
            && self.rules.reads_rows_lazily
            && match self.run.lazy_mode {
                LazyMode::On => true,
                LazyMode::Auto => self.supports_mmap && tensor.bytes > Bytes::mib(4096),
                LazyMode::Off => false,
            }
    }
}

/// Model bytes by memory-table key (`CUDA0`, `Host`, `CPU_REPACK`): each tensor padded to its buffer's alignment.
pub fn model_bytes(placement: &Placement, model: &Model, machine: &Machine) -> BTreeMap<String, Bytes> {
    assert_eq!(placement.copies.len(), model.tensors.len(), "a placement is of this model");
    let mut sums = BTreeMap::new();
    for (tensor, copy) in
        model.tensors.iter().zip(&placement.copies).flat_map(|(t, copies)| copies.iter().map(move |c| (t, c)))
    {
        let cut = copy.buffer.device_index().and_then(|device| placement.cut(model, device));
        let Some((devices, cut)) = cut else {
            let padded = copy.bytes.padded(copy.buffer.alignment(machine, placement));
            *sums.entry(copy.buffer.key(machine).to_string()).or_default() += padded;
            continue;
        };
        for (device, shape) in devices.iter().zip(cut.shapes(&tensor.name, tensor.ty, tensor.shape)) {
            let Some(device) = machine.device(*device) else { continue };
            *sums.entry(device.name.clone()).or_default() += device.backend.tensor_bytes(tensor.ty, shape);
        }
    }
    sums
}

#[cfg(test)]
mod tests;
