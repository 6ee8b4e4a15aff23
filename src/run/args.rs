//! A launch printed back as arguments: what differs from the program's defaults, in the order of the rows of [`flags`].

use super::config::{Program, RunConfig};
use super::flags::{self, Effect, Flag};
use super::{groups, speculation};

/// The arguments (without program and model) that give `run` back when parsed. llama-bench's differ in grammar.
pub fn args(run: &RunConfig) -> Vec<String> {
    let mut out = Vec::new();
    if run.program == Program::Bench {
        out.extend(["-p".to_string(), run.n_ctx.to_string(), "-n".to_string(), "0".to_string()]);
    }
    out.extend(settings(run).into_iter().flat_map(|(_, words)| words));
    out
}

/// The arguments of a launch of llama-server, whose words of speculation are among `words` if any are: [`RunConfig`] says only what
/// they cost. Words that are not flags of speculation are left out.
pub fn args_beside(run: &RunConfig, words: &[String]) -> Vec<String> {
    let said: Vec<&[String]> = groups(words).into_iter().filter(|group| speculates(group)).collect();
    let settings = settings(run).into_iter().map(|(_, words)| words);
    let own = settings.filter(|words| said.is_empty() || !speculates(words));
    own.chain(said.iter().map(|group| group.to_vec())).flatten().collect()
}

fn speculates(group: &[String]) -> bool {
    group.first().is_some_and(|word| flags::is_speculation(word))
}

/// Every flag that `run` needs, with its words; of llama-bench those beside its tests.
pub fn settings(run: &RunConfig) -> Vec<(&'static Flag, Vec<String>)> {
    let bench = run.program == Program::Bench;
    let has = |flag: &&Flag| !bench || flag.is_in_bench();
    let all = flags::ROWS.iter().filter(has).map(|flag| (flag, words(flag, run, bench)));
    all.filter(|(_, words)| !words.is_empty()).collect()
}

/// The words of one flag; none where its default is meant.
fn words(flag: &Flag, run: &RunConfig, bench: bool) -> Vec<String> {
    let field = match &flag.effect {
        Effect::Field(field) => field,
        Effect::Speculation if flag.name() == "--spec-type" => return speculation::words(run),
        _ => return Vec::new(),
    };
    let Some(value) = (field.print)(run, bench) else { return Vec::new() };
    let name = flag.printed(bench, value == "on");
    match (flag.values, bench) {
        (0, false) => vec![name.to_string()],
        (0, true) => vec![name.to_string(), u32::from((value == "on") != flag.bench_negates()).to_string()],
        _ => vec![name.to_string(), value],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::gguf::{GgmlType, Value};
    use crate::run::values::CACHE_TYPES;
    use crate::run::{FlashAttn, LazyMode, LoadMode, MetadataOverride, Override, SplitMode, parse};

    /// `run` printed and read again.
    fn read_back(run: &RunConfig) -> RunConfig {
        let words: Vec<String> = [run.program.name().to_string()].into_iter().chain(args(run)).collect();
        let parsed = parse::command(&words, &BTreeMap::new()).unwrap();
        assert_eq!(parsed.notes, [], "{words:?}");
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
            RunConfig { n_gpu_layers, split_mode, main_gpu, tensor_split, devices, overrides, load_mode, ..run.clone() }
        }
    }

    prop_compose! {
        fn switches(run: RunConfig)(on in any::<[bool; 8]>(), n_draft in 1_u32..20, per_slot in proptest::option::of(1_u32..9000), threads in any::<[Option<std::num::NonZeroU16>; 2]>()) -> RunConfig {
            let [offload_kqv, op_offload, no_host, repack, swa_full, mtp, fit, embeddings] = on;
            let (n_draft, n_rs_seq) = if mtp { (n_draft, n_draft) } else { (0, 0) };
            let kv_unified_per_slot = per_slot;
            let [n_threads, n_threads_batch] = threads.map(|n| n.map(|n| u32::from(n.get())));
            RunConfig { kv_unified_per_slot, offload_kqv, op_offload, no_host, repack, swa_full, mtp, n_draft, n_rs_seq, embeddings, fit, n_threads, n_threads_batch, ..run.clone() }
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(run in sizes().prop_flat_map(placement).prop_flat_map(switches)) {
            prop_assert_eq!(read_back(&run), run);
        }
    }

    #[test]
    fn a_launch_in_json_reads_back() {
        let run = RunConfig {
            program: Program::Bench,
            n_parallel: Some(3),
            kv_unified: Some(false),
            devices: Some(Vec::new()),
            overrides: vec![Override { pattern: "a".into(), buffer: "CPU".into(), origin: "-ot".into() }],
            metadata_overrides: vec![MetadataOverride { key: "a".into(), value: Value::I64(-4) }],
            repack: false,
            fit: false,
            fit_ctx: u32::MAX,
            cache_ram: Some(-1),
            lazy_mode: LazyMode::On,
            ..RunConfig::default()
        };
        for run in [run, RunConfig::default()] {
            let text = serde_json::to_string(&run).unwrap();
            assert_eq!(serde_json::from_str::<RunConfig>(&text).unwrap(), run, "{text}");
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
        for words in ["-ncmoe 2", "-cmoe", "-ncffn 3"] {
            assert_eq!(of(words), words);
        }
        assert_eq!([of("--n-cpu-moe 12"), of("--cpu-moe")], ["-ncmoe 12", "-cmoe"]);
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
