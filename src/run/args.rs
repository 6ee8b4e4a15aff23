//! A launch printed back as arguments: what differs from the program's defaults, in a fixed order.

use super::values::{DENSE, EXPERTS, Given, on_host};
use super::{FlashAttn, LazyMode, LoadMode, Override, Program, RunConfig, SplitMode, flags};
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
    fn pair(&mut self, flag: &str, value: impl std::fmt::Display) {
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
    if let Some(words) = as_counted(&run.overrides, to.bench) {
        to.out.extend(words);
    } else if !run.overrides.is_empty() {
        let entry = |entry: &Override| format!("{}={}", entry.pattern, entry.buffer);
        let entries: Vec<String> = run.overrides.iter().map(entry).collect();
        to.pair("-ot", entries.join(if to.bench { ";" } else { "," }));
    }
}

/// The flag that made all of these overrides (`-cmoe`, `-ncmoe N`, `-ncffn N`), as it was given; `None` where there is more than
/// that, since not every form of a plan keeps the order among several flags, or where llama-bench has no such flag.
fn as_counted(overrides: &[Override], bench: bool) -> Option<Vec<String>> {
    let flag = overrides.first()?.origin.as_str();
    let count = overrides.len().to_string();
    let counted = |pattern| Given { flag, value: &count }.first_blocks(pattern).is_ok_and(|made| made == overrides);
    match flags::find(flag)?.0.name() {
        "--n-cpu-moe" if counted(EXPERTS) => Some(vec![flag.to_string(), count]),
        "--n-cpu-ffn" if !bench && counted(DENSE) => Some(vec![flag.to_string(), count]),
        "--cpu-moe" if !bench && overrides == [on_host(EXPERTS.into(), flag)] => Some(vec![flag.to_string()]),
        _ => None,
    }
}

/// Everything else.
fn rest(to: &mut Writer<'_>, run: &RunConfig, default: &RunConfig) {
    if let Some(threads) = run.n_threads {
        to.pair("-t", threads);
    }
    if let Some(threads) = run.n_threads_batch.filter(|_| !to.bench) {
        to.pair("-tb", threads);
    }
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
    match run.fit_ctx {
        // `-c 0` says it already.
        u32::MAX if run.n_ctx == 0 && !to.bench => {}
        u32::MAX => to.pair("-fitc", -1),
        fit_ctx if fit_ctx != default.fit_ctx => to.pair("-fitc", fit_ctx),
        _ => {}
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
    if let Some(mib) = run.cache_ram {
        to.pair("--cache-ram", mib);
    }
    if run.moe_cache_mib > 0 {
        to.pair("--moe-cache-mib", run.moe_cache_mib);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::gguf::GgmlType;
    use crate::run::values::CACHE_TYPES;
    use crate::run::{MetadataOverride, parse};

    /// `run` printed and read again.
    fn read_back(run: &RunConfig) -> RunConfig {
        let program = match run.program {
            Program::Server => "llama-server",
            Program::Cli => "llama-cli",
            Program::Bench => "llama-bench",
            Program::FitParams => "llama-fit-params",
        };
        let words: Vec<String> = [program.to_string()].into_iter().chain(args(run)).collect();
        let parsed = parse::command(&words, &BTreeMap::new()).unwrap();
        assert!(parsed.notes.iter().all(|note| note.code == "mtp-context"), "{words:?}");
        parsed.run
    }

    fn cache_type() -> impl Strategy<Value = GgmlType> {
        select(CACHE_TYPES).prop_map(|name| GgmlType::from_name(name).unwrap())
    }

    prop_compose! {
        fn sizes()(
            n_ctx in 0_u32..200_000, n_batch in 1_u32..5000, n_ubatch in 0_u32..5000, type_k in cache_type(), type_v in cache_type(),
            flash_attn in select(&[FlashAttn::Auto, FlashAttn::On, FlashAttn::Off][..]),
            n_parallel in proptest::option::of(1_u32..9), kv_unified in any::<Option<bool>>(),
        ) -> RunConfig {
            let fit_ctx = if n_ctx == 0 { u32::MAX } else { 4096 };
            RunConfig { n_ctx, n_batch, n_ubatch, type_k, type_v, flash_attn, n_parallel, kv_unified, fit_ctx, ..RunConfig::default() }
        }
    }

    prop_compose! {
        fn placement(run: RunConfig)(
            n_gpu_layers in -2_i32..99, split_mode in select(&[SplitMode::None, SplitMode::Layer, SplitMode::Row][..]),
            main_gpu in 0_i32..3, tensor_split in proptest::collection::vec(0_u16..100, 0..4),
            devices in proptest::option::of(proptest::collection::vec("CUDA[0-3]", 0..3)),
            patterns in proptest::collection::vec(("[a-z0-9|.()*+]{1,12}", "CPU|CUDA[0-3]"), 0..4),
            load_mode in select(&[LoadMode::Auto, LoadMode::None, LoadMode::Mmap, LoadMode::Mlock, LoadMode::MmapMlock, LoadMode::Dio][..]),
        ) -> RunConfig {
            let overrides = patterns.into_iter().map(|(pattern, buffer)| Override { pattern, buffer, origin: "-ot".into() }).collect();
            let tensor_split = tensor_split.into_iter().map(|share| f32::from(share) / 8.0).collect();
            RunConfig { n_gpu_layers, split_mode, main_gpu, tensor_split, devices, load_mode, overrides, ..run.clone() }
        }
    }

    prop_compose! {
        fn switches(run: RunConfig)(on in any::<[bool; 8]>(), n_draft in 1_u32..20, per_slot in proptest::option::of(1_u32..9000), threads in any::<[Option<std::num::NonZeroU16>; 2]>()) -> RunConfig {
            let [offload_kqv, op_offload, no_host, repack, swa_full, mtp, fit, embeddings] = on;
            let (n_draft, n_rs_seq) = if mtp { (n_draft, n_draft) } else { (0, 0) };
            let kv_unified_per_slot = per_slot;
            let [n_threads, n_threads_batch] = threads.map(|n| n.map(|n| u32::from(n.get())));
            RunConfig { offload_kqv, op_offload, no_host, repack, swa_full, mtp, fit, kv_unified_per_slot, n_draft, n_rs_seq, embeddings, n_threads, n_threads_batch, ..run.clone() }
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(run in sizes().prop_flat_map(placement).prop_flat_map(switches)) {
            prop_assert_eq!(read_back(&run), run);
        }
    }

    #[test]
    fn what_one_flag_moves_is_said_by_that_flag() {
        let of = |words: &str| {
            let words: Vec<String> = ["llama-server"].into_iter().chain(words.split(' ')).map(str::to_string).collect();
            let run = parse::command(&words, &BTreeMap::new()).unwrap().run;
            assert_eq!(read_back(&run).overrides.len(), run.overrides.len(), "{words:?}");
            args(&run).join(" ")
        };
        for words in ["-ncmoe 2", "--n-cpu-moe 12", "-cmoe", "--cpu-moe", "-ncffn 3"] {
            assert_eq!(of(words), words);
        }
        for words in
            ["-ncmoe 1 -ot a=CPU", "-ot a=CPU -ncmoe 2", "-cmoe -ncmoe 2", "-ncmoe 2 -ncmoe 2", "-ncmoe 1 -ncffn 1"]
        {
            let printed = of(words);
            assert!(printed.starts_with("-ot ") && printed.split(' ').count() == 2, "{printed}");
        }
    }

    #[test]
    fn a_context_after_one_of_all_keeps_that_fitting_may_not_reduce_it() {
        for program in ["llama-server", "llama-bench"] {
            let of = |words: &str| {
                let words: Vec<String> = [program].into_iter().chain(words.split(' ')).map(str::to_string).collect();
                parse::command(&words, &BTreeMap::new()).unwrap().run
            };
            for words in ["-c 0 -c 163", "-c 0", "-c 0 -fitc 5", "-fitc -1", "-fitc 2147483647"] {
                if program == "llama-bench" && words.contains("-c 0") {
                    continue;
                }
                assert_eq!(read_back(&of(words)), of(words), "{program} {words}");
            }
        }
    }

    #[test]
    fn bench_has_its_own_grammar() {
        let entry = |pattern: &str| Override { pattern: pattern.into(), buffer: "CPU".into(), origin: "-ot".into() };
        let run = RunConfig {
            program: Program::Bench,
            n_ctx: 2048,
            n_parallel: Some(1),
            kv_unified: Some(false),
            fit: false,
            tensor_split: vec![3.0, 1.0],
            overrides: vec![entry("a"), entry("b")],
            op_offload: false,
            repack: false,
            ..RunConfig::default()
        };
        assert_eq!(read_back(&run), run);
        assert_eq!(args(&run).join(" "), "-p 2048 -n 0 -ts 3/1 -ot a=CPU;b=CPU -nopo 1 --repack 0");
    }

    #[test]
    fn metadata_overrides_read_back() {
        let entry = |key: &str, value| MetadataOverride { key: key.into(), value };
        let metadata_overrides = vec![
            entry("llama.expert_used_count", Value::U64(4)),
            entry("a", Value::I64(-4)),
            entry("b", Value::String("x,\"y\"".into())),
            entry("c", Value::F64(0.5)),
        ];
        let run = RunConfig { metadata_overrides, ..RunConfig::default() };
        assert_eq!(read_back(&run), run);
    }
}
