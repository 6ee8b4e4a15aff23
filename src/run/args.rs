//! A launch printed back as arguments: what differs from the program's defaults, in a fixed order.

use super::{FlashAttn, LazyMode, LoadMode, Override, Program, RunConfig, SplitMode};
use crate::gguf::Value;

/// The arguments (without program and model) that give `run` back when parsed. llama-bench's differ in grammar.
pub fn args(run: &RunConfig) -> Vec<String> {
    let mut out = Vec::new();
    let mut writer = Writer { bench: run.program == Program::Bench, out: &mut out };
    let default = RunConfig { program: run.program, ..RunConfig::default() };
    sizes(&mut writer, run, &default);
    devices(&mut writer, run, &default);
    rest(&mut writer, run, &default);
    out
}

/// Where words go, and in which program's grammar.
struct Writer<'a> {
    bench: bool,
    out: &'a mut Vec<String>,
}

impl Writer<'_> {
    /// A flag and its value.
    fn pair(&mut self, flag: &str, value: impl ToString) {
        self.out.extend([flag.to_string(), value.to_string()]);
    }

    /// A flag that stands alone, or takes 0|1 in llama-bench.
    fn switch(&mut self, flag: &str, bench: &str) {
        if self.bench {
            let (flag, value) = bench.split_once(' ').unwrap_or((bench, "1"));
            self.pair(flag, value);
        } else {
            self.out.push(flag.to_string());
        }
    }
}

/// Context and batches.
fn sizes(to: &mut Writer<'_>, run: &RunConfig, default: &RunConfig) {
    if to.bench {
        to.pair("-p", run.n_ctx);
        to.pair("-n", 0);
    } else {
        let asked_for_all = run.n_ctx == 0 && run.fit_ctx == u32::MAX;
        if run.n_ctx != 0 || asked_for_all {
            to.pair("-c", run.n_ctx);
        }
        if let Some(slots) = run.n_parallel {
            to.pair("-np", slots);
        }
        match run.kv_unified {
            Some(true) => to.out.push("-kvu".into()),
            Some(false) => to.out.push("-no-kvu".into()),
            None => {}
        }
        if let Some(each) = run.kv_unified_per_slot {
            to.pair("--kv-unified-per-slot", each);
        }
    }
    if run.n_batch != default.n_batch {
        to.pair("-b", run.n_batch);
    }
    if run.n_ubatch != default.n_ubatch {
        to.pair("-ub", run.n_ubatch);
    }
    if run.type_k != default.type_k {
        to.pair("-ctk", run.type_k);
    }
    if run.type_v != default.type_v {
        to.pair("-ctv", run.type_v);
    }
    match run.flash_attn {
        FlashAttn::Auto => {}
        FlashAttn::On => to.pair("-fa", "on"),
        FlashAttn::Off => to.pair("-fa", "off"),
    }
}

/// Devices, splits and overrides.
fn devices(to: &mut Writer<'_>, run: &RunConfig, default: &RunConfig) {
    if !run.rpc.is_empty() {
        to.pair("--rpc", run.rpc.join(","));
    }
    if let Some(names) = &run.devices {
        let joined = if names.is_empty() { "none".into() } else { names.join(if to.bench { "/" } else { "," }) };
        to.pair("-dev", joined);
    }
    match run.n_gpu_layers {
        -1 => {}
        -2 if !to.bench => to.pair("-ngl", "all"),
        n => to.pair("-ngl", n),
    }
    match run.split_mode {
        SplitMode::Layer => {}
        SplitMode::None => to.pair("-sm", "none"),
        SplitMode::Row => to.pair("-sm", "row"),
        SplitMode::Tensor => to.pair("-sm", "tensor"),
    }
    if run.main_gpu != default.main_gpu {
        to.pair("-mg", run.main_gpu);
    }
    if !run.tensor_split.is_empty() {
        let shares: Vec<String> = run.tensor_split.iter().map(f32::to_string).collect();
        to.pair("-ts", shares.join(if to.bench { "/" } else { "," }));
    }
    if !run.overrides.is_empty() {
        let entry = |entry: &Override| format!("{}={}", entry.pattern, entry.buffer);
        let entries: Vec<String> = run.overrides.iter().map(entry).collect();
        to.pair("-ot", entries.join(if to.bench { ";" } else { "," }));
    }
}

/// Everything else.
fn rest(to: &mut Writer<'_>, run: &RunConfig, default: &RunConfig) {
    match run.load_mode {
        LoadMode::Auto => {}
        LoadMode::None => to.pair("-lm", "none"),
        LoadMode::Mmap => to.pair("-lm", "mmap"),
        LoadMode::Mlock => to.pair("-lm", "mlock"),
        LoadMode::MmapMlock => to.pair("-lm", "mmap+mlock"),
        LoadMode::Dio => to.pair("-lm", "dio"),
    }
    match run.lazy_mode {
        LazyMode::Auto => {}
        LazyMode::On => to.pair("-lzm", "on"),
        LazyMode::Off => to.pair("-lzm", "off"),
    }
    if !run.offload_kqv {
        to.switch("-nkvo", "-nkvo 1");
    }
    if !run.op_offload {
        to.switch("--no-op-offload", "-nopo 1");
    }
    if run.no_host {
        to.switch("--no-host", "--no-host 1");
    }
    if !run.repack {
        to.switch("-nr", "--repack 0");
    }
    if run.embeddings {
        to.switch("--embedding", "-embd 1");
    }
    if !run.fit_target.is_empty() {
        let targets: Vec<String> = run.fit_target.iter().map(u32::to_string).collect();
        to.pair("-fitt", targets.join("/"));
    }
    if run.fit_ctx != default.fit_ctx && run.fit_ctx != u32::MAX {
        to.pair("-fitc", run.fit_ctx);
    }
    if to.bench {
        return;
    }
    if !run.fit {
        to.pair("-fit", "off");
    }
    if run.swa_full {
        to.out.push("--swa-full".into());
    }
    speculation(to, run);
    if !run.metadata_overrides.is_empty() {
        let entries: Vec<String> =
            run.metadata_overrides.iter().filter_map(|entry| metadata(&entry.key, &entry.value)).collect();
        to.pair("--override-kv", entries.join(","));
    }
}

/// Speculation, by a kind that costs the same memory.
fn speculation(to: &mut Writer<'_>, run: &RunConfig) {
    if run.mtp || run.n_rs_seq > 0 {
        to.pair("--spec-type", if run.mtp { "draft-mtp" } else { "draft-eagle3" });
        to.pair("--spec-draft-n-max", run.n_draft);
    } else if run.n_draft > 0 {
        to.pair("--spec-type", "ngram-mod");
        to.pair("--spec-ngram-mod-n-max", run.n_draft);
    }
}

/// `KEY=TYPE:VALUE`; arrays cannot be written.
fn metadata(key: &str, value: &Value) -> Option<String> {
    let typed = match value {
        Value::U64(n) => format!("int:{n}"),
        Value::I64(n) => format!("int:{n}"),
        Value::F64(x) => format!("float:{x}"),
        Value::Bool(b) => format!("bool:{b}"),
        Value::String(s) => format!("str:{s}"),
        Value::Array(_) | Value::Counted { .. } => return None,
    };
    let entry = format!("{key}={typed}");
    Some(if entry.contains([',', '"']) { format!("\"{}\"", entry.replace('"', "\"\"")) } else { entry })
}
