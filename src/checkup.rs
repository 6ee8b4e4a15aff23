//! The check document: what a command line would do.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bytes::Bytes;
use crate::gguf::GgmlType;
use crate::machine::Machine;
use crate::memory::{self, HOST, MemoryBreakdown, Prediction};
use crate::model::Model;
use crate::placement::{self, Buffer, Placement, pattern};
use crate::run::{ContextNumbers, FlashAttn, LoadMode, Note, ParsedCommand, Program, RunConfig, SplitMode};

/// `moeplan/check/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Checkup {
    /// Name and version of the document.
    pub schema: &'static str,
    /// Which program.
    pub program: Program,
    /// The launch, resolved.
    pub run: Run,
    /// llama.cpp's no-allocation projection, by device, `Host` and buffer types listed apart.
    pub memory: BTreeMap<String, Row>,
    /// What each device may hold, margin taken off; of `Host`, where main memory is known.
    pub budget: BTreeMap<String, Bytes>,
    /// Whether everything stays within its budget.
    pub fits: bool,
    /// By how much it does not.
    pub shortfall: BTreeMap<String, Bytes>,
    /// What a launch with mapped files logs as `CPU_Mapped`; `None` where nothing is mapped.
    pub mapped_span: Option<Bytes>,
    /// The override list and what each entry did.
    pub overrides: Vec<OverrideRow>,
    /// What is wrong or surprising.
    pub lints: Vec<Lint>,
    /// Where the figures come from.
    pub basis: Vec<memory::Basis>,
    /// Every copy of every tensor, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<TensorRow>>,
}

/// The launch as llama.cpp resolves it.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of llama.cpp")]
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Cells in all.
    pub n_ctx: u32,
    /// Cells of a sequence.
    pub n_ctx_seq: u32,
    /// Logical batch.
    pub n_batch: u32,
    /// Physical batch.
    pub n_ubatch: u32,
    /// K cache type.
    pub type_k: GgmlType,
    /// V cache type.
    pub type_v: GgmlType,
    /// `-fa`.
    pub flash_attn: FlashAttn,
    /// Sequences.
    pub n_seq_max: u32,
    /// One cache for all.
    pub kv_unified: bool,
    /// Output rows reserved.
    pub n_outputs_max: u32,
    /// As given: -1 auto, -2 all.
    pub n_gpu_layers: i32,
    /// `-sm`.
    pub split_mode: SplitMode,
    /// `-ts`, where given.
    pub tensor_split: Vec<f32>,
    /// What the launch would use.
    pub load_mode: LoadMode,
    /// Off with `-nkvo`.
    pub offload_kqv: bool,
    /// Off with `--no-op-offload`.
    pub op_offload: bool,
    /// Whether the NextN blocks are loaded.
    pub mtp: bool,
}

/// A row of memory, with its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The four terms.
    #[serde(flatten)]
    pub terms: MemoryBreakdown,
    /// Together.
    pub total: Bytes,
}

/// One override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverrideRow {
    /// Its regex.
    pub pattern: String,
    /// Its target.
    pub buffer: String,
    /// The flag it came from.
    pub origin: String,
    /// Tensors it decides.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: Bytes,
    /// Tensors it matches, decided or not.
    pub matches: u64,
    /// The entry before it (by its place in this list) that takes most of what it matches, where it decides nothing.
    pub shadowed_by: Option<usize>,
}

/// Something wrong or surprising.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// A stable name.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is the matter.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

/// How bad a lint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// llama.cpp refuses the command.
    Error,
    /// Probably not what was meant.
    Warning,
    /// Good to know.
    Info,
}

/// One copy of a tensor, or a tensor that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorRow {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: GgmlType,
    /// What it takes, before alignment.
    pub bytes: Bytes,
    /// llama.cpp's name of the buffer type; `None` = not loaded.
    pub buffer: Option<String>,
    /// The override that put it there, by its place in the list.
    pub rule: Option<usize>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The placement has none.
    #[error(transparent)]
    Placement(#[from] placement::Error),
    /// The prediction has none.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// What is asked beside the command itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Memory to leave free on every device.
    pub margin: Bytes,
    /// Whether every tensor is listed.
    pub tensors: bool,
}

/// What `command` would do with `model` on `machine`.
pub fn check(model: &Model, machine: &Machine, command: &ParsedCommand, options: Options) -> Result<Checkup, Error> {
    let run = &command.run;
    // llama.cpp projects with load mode none, whatever the launch then uses.
    let projected = RunConfig { load_mode: LoadMode::None, ..run.clone() };
    let projection = placement::place(model, machine, &projected)?;
    let prediction = memory::predict(model, machine, &projected, &projection)?;
    let placement = placement::place(model, machine, run)?;
    let memory = rows(&prediction);
    let budget = budgets(machine, &placement, options.margin);
    let shortfall = shortfall(&memory, &budget);
    let overrides = override_rows(model, run, &placement);
    let mut lints = lints(&command.notes, &overrides);
    lints.extend((!shortfall.is_empty()).then(|| fitting(run)).flatten());
    Ok(Checkup {
        schema: "moeplan/check/1",
        program: run.program,
        run: resolved(run, &prediction.numbers),
        fits: shortfall.is_empty(),
        budget,
        shortfall,
        mapped_span: mapped_span(model, run, &placement),
        lints,
        overrides,
        memory,
        basis: prediction.basis,
        tensors: options.tensors.then(|| tensor_rows(model, machine, &placement)),
    })
}

/// The memory table with sums.
fn rows(prediction: &Prediction) -> BTreeMap<String, Row> {
    prediction.memory.iter().map(|(key, terms)| (key.clone(), Row { terms: *terms, total: terms.total() })).collect()
}

/// What each device may hold.
fn budgets(machine: &Machine, placement: &Placement, margin: Bytes) -> BTreeMap<String, Bytes> {
    let placed = placement.copies.iter().flatten().filter_map(|copy| match copy.buffer {
        Buffer::Device(index) => Some(index),
        _ => None,
    });
    let used = placement.devices.iter().copied().chain(placed);
    let devices = used.filter_map(|index| machine.devices.get(usize::from(index)));
    let mut budgets: BTreeMap<String, Bytes> =
        devices.map(|device| (device.name.clone(), device.total.saturating_sub(margin))).collect();
    budgets.extend(machine.host.ram.map(|ram| (HOST.to_string(), ram)));
    budgets
}

/// By how much each budget is passed; buffer types that llama.cpp lists apart (`CPU_REPACK`, `AMX`) are host memory.
fn shortfall(memory: &BTreeMap<String, Row>, budget: &BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    let mut needed: BTreeMap<&str, Bytes> = BTreeMap::new();
    for (key, row) in memory {
        let of = if matches!(key.as_str(), "CPU_REPACK" | "AMX") { HOST } else { key };
        *needed.entry(of).or_default() += row.total;
    }
    let over = needed.iter().filter_map(|(key, total)| {
        let missing = total.saturating_sub(*budget.get(*key)?);
        (missing > Bytes(0)).then(|| ((*key).to_string(), missing))
    });
    over.collect()
}

/// The launch's numbers.
fn resolved(run: &RunConfig, numbers: &ContextNumbers) -> Run {
    Run {
        n_ctx: numbers.n_ctx,
        n_ctx_seq: numbers.n_ctx_seq,
        n_batch: numbers.n_batch,
        n_ubatch: numbers.n_ubatch,
        type_k: run.type_k,
        type_v: run.type_v,
        flash_attn: run.flash_attn,
        n_seq_max: numbers.n_seq_max,
        kv_unified: numbers.kv_unified,
        n_outputs_max: numbers.n_outputs_max,
        n_gpu_layers: run.n_gpu_layers,
        split_mode: run.split_mode,
        tensor_split: run.tensor_split.clone(),
        load_mode: run.load_mode,
        offload_kqv: run.offload_kqv,
        op_offload: run.op_offload,
        mtp: run.mtp,
    }
}

/// The span of each file from the first byte to the last of what stays mapped on the host, summed
/// (`src/llama-model.cpp` `load_tensors`, `get_mapping_range`, b11434).
fn mapped_span(model: &Model, run: &RunConfig, placement: &Placement) -> Option<Bytes> {
    if !matches!(run.load_mode, LoadMode::Auto | LoadMode::Mmap | LoadMode::MmapMlock) {
        return None;
    }
    let mut spans: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    for (tensor, copies) in model.tensors.iter().zip(&placement.copies) {
        if copies.iter().any(|copy| copy.buffer == Buffer::Cpu) {
            let (first, last) = (tensor.file_offset, tensor.file_offset.saturating_add(tensor.bytes.0));
            let span = spans.entry(tensor.shard).or_insert((first, last));
            *span = (span.0.min(first), span.1.max(last));
        }
    }
    (!spans.is_empty()).then(|| spans.values().map(|(first, last)| Bytes(last - first)).sum())
}

/// What each override matched and decided.
fn override_rows(model: &Model, run: &RunConfig, placement: &Placement) -> Vec<OverrideRow> {
    let mut rows = Vec::with_capacity(run.overrides.len());
    for (index, entry) in run.overrides.iter().enumerate() {
        let mut row = OverrideRow {
            pattern: entry.pattern.clone(),
            buffer: entry.buffer.clone(),
            origin: entry.origin.clone(),
            tensors: 0,
            bytes: Bytes(0),
            matches: 0,
            shadowed_by: None,
        };
        let Ok(pattern) = pattern::parse(&entry.pattern) else { continue };
        let mut taken: BTreeMap<usize, u64> = BTreeMap::new();
        for (tensor, copies) in model.tensors.iter().zip(&placement.copies) {
            if copies.is_empty() || !pattern.matches(&tensor.name) {
                continue;
            }
            row.matches += 1;
            let mine = copies.iter().filter(|copy| copy.rule == Some(index)).map(|copy| copy.bytes).sum::<Bytes>();
            if mine > Bytes(0) {
                row.tensors += 1;
                row.bytes += mine;
            }
            if let Some(other) = copies.iter().find_map(|copy| copy.rule).filter(|rule| *rule < index) {
                *taken.entry(other).or_default() += 1;
            }
        }
        if row.tensors == 0 {
            row.shadowed_by = taken.into_iter().max_by_key(|(_, count)| *count).map(|(rule, _)| rule);
        }
        rows.push(row);
    }
    rows
}

/// What is wrong or surprising about the command and its overrides.
fn lints(notes: &[Note], overrides: &[OverrideRow]) -> Vec<Lint> {
    let of_note = |note: &Note| Lint {
        code: note.code,
        severity: match note.code {
            "unknown-flag" | "removed-flag" | "flag-needs-value" => Severity::Error,
            "first-variant" => Severity::Info,
            _ => Severity::Warning,
        },
        message: note.message.clone(),
        hint: note.hint.clone(),
    };
    let mut lints: Vec<Lint> = notes.iter().map(of_note).collect();
    // `-ncmoe N` makes N entries; one that finds no experts in a dense block is no mistake of the person's.
    for row in overrides.iter().filter(|row| row.tensors == 0 && row.origin.contains("-ot")) {
        let rule = format!("`{} {}={}`", row.origin, row.pattern, row.buffer);
        let lint = match row.shadowed_by.and_then(|index| overrides.get(index)) {
            Some(first) => Lint {
                code: "rule-shadowed",
                severity: Severity::Warning,
                message: format!("{rule} decides nothing: `{}` comes before it", first.pattern),
                hint: Some("the first match wins: put the narrower rule first".into()),
            },
            None => Lint {
                code: "rule-matches-nothing",
                severity: Severity::Warning,
                message: format!("{rule} matches no tensor of this model"),
                hint: Some("`moeplan inspect MODEL --tensors` lists the names".into()),
            },
        };
        lints.push(lint);
    }
    lints
}

/// What llama.cpp's own fitting would do about a command that does not fit (`common/fit.cpp`, b11434).
fn fitting(run: &RunConfig) -> Option<Lint> {
    let shrinks = run.n_ctx == 0 && run.fit_ctx != u32::MAX;
    let moves = run.n_gpu_layers == -1 && run.overrides.is_empty();
    let what = match (shrinks, moves) {
        (true, true) => "shorten the context, then move experts or layers to the host",
        (true, false) => "shorten the context",
        (false, true) => "move experts or layers to the host",
        (false, false) => return None,
    };
    run.fit.then(|| Lint {
        code: "fit-would-change",
        severity: Severity::Info,
        message: format!("llama.cpp's own fitting is on and would {what}; the figures are of the command as written"),
        hint: Some("`moeplan plan` chooses what goes to the host; `-fit off` keeps the command as written".into()),
    })
}

/// Every copy of every tensor.
fn tensor_rows(model: &Model, machine: &Machine, placement: &Placement) -> Vec<TensorRow> {
    let mut rows = Vec::with_capacity(model.tensors.len());
    for (tensor, copies) in model.tensors.iter().zip(&placement.copies) {
        let row = |bytes, buffer, rule| TensorRow { name: tensor.name.clone(), ty: tensor.ty, bytes, buffer, rule };
        if copies.is_empty() {
            rows.push(row(tensor.bytes, None, None));
        }
        for copy in copies {
            rows.push(row(copy.bytes, Some(copy.buffer.name(machine, placement).to_string()), copy.rule));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_types_of_the_host_count_towards_its_memory() {
        let row = |mib| {
            let terms = MemoryBreakdown { model: Bytes::mib(mib), ..MemoryBreakdown::default() };
            Row { terms, total: terms.total() }
        };
        let memory: BTreeMap<String, Row> =
            [("CUDA0", row(10)), ("CUDA1", row(20)), ("Host", row(30)), ("CPU_REPACK", row(40))]
                .map(|(key, row)| (key.to_string(), row))
                .into();
        let of = |budgets: &[(&str, u64)]| {
            let budgets = budgets.iter().map(|(key, mib)| ((*key).to_string(), Bytes::mib(*mib))).collect();
            shortfall(&memory, &budgets).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(&[("CUDA0", 10), ("CUDA1", 20)]), []);
        assert_eq!(of(&[("CUDA0", 9), ("CUDA1", 20), ("Host", 70)]), [("CUDA0".to_string(), Bytes::mib(1))]);
        assert_eq!(of(&[("CUDA0", 10), ("CUDA1", 20), ("Host", 69)]), [("Host".to_string(), Bytes::mib(1))]);
        // A device without a budget is no host memory.
        assert_eq!(of(&[("Host", 70)]), []);
    }

    #[test]
    fn fitting_is_mentioned_where_it_would_act() {
        let run = RunConfig::default();
        for (run, acts) in [
            (run.clone(), true),
            (RunConfig { fit: false, ..run.clone() }, false),
            (RunConfig { n_ctx: 4096, n_gpu_layers: 99, ..run.clone() }, false),
            (RunConfig { n_gpu_layers: 99, ..run }, true),
        ] {
            assert_eq!(fitting(&run).is_some(), acts);
        }
    }
}
