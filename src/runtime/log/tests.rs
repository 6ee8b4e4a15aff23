//! Captured logs of several builds, and logs that nobody would write.

use proptest::prelude::*;

use super::*;

/// A captured log.
fn captured(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/logs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Hundredths of a MiB in whole bytes.
fn hundredths(n: u64) -> Bytes {
    Bytes((n * MIB + 50) / 100)
}

/// Model, context and compute of a row, in hundredths of a MiB.
fn row(model: u64, context: u64, compute: u64) -> MemoryBreakdown {
    let (model, context, compute) = (hundredths(model), hundredths(context), hundredths(compute));
    MemoryBreakdown { model, context, compute, overhead: Bytes(0) }
}

#[test]
fn captured_logs_give_memory_by_device() {
    for (name, span, rows) in [
        ("b11434-cpu-lv4.log", 1454, vec![("Host", row(0, 100, 602))]),
        ("b11434-rpc-cmoe-lv4.log", 1404, vec![("Host", row(0, 0, 452)), ("RPC0", row(204, 100, 351))]),
        ("b11434-rpc-cmoe-v.log", 1404, vec![("Host", row(0, 0, 452)), ("RPC0", row(204, 100, 351))]),
        ("b11434-rpc-cmoe-jsonl.log", 1404, vec![("Host", row(0, 0, 452)), ("RPC0", row(204, 100, 351))]),
        ("b11434-rpc-ot-nommap.log", 0, vec![("Host", row(1250, 0, 452)), ("RPC0", row(204, 100, 351))]),
        ("b10434-vulkan-cmoe.log", 1404, vec![("Host", row(0, 0, 100)), ("Vulkan0", row(204, 50, 302))]),
        ("b11549-cpu-repack.log", 583, vec![("CPU_REPACK", row(319, 0, 0)), ("Host", row(0, 100, 953))]),
        (
            "b11434-cuda-none.log",
            0,
            vec![("CUDA0", row(544_192, 230_400, 49_355)), ("Host", row(1_224_942, 0, 16_007))],
        ),
        // The trial loads of --fit printed tables of their own.
        ("b11434-cuda-fit.log", 1_743_651, vec![("CUDA0", row(404_592, 230_400, 24_151)), ("Host", row(0, 0, 4_002))]),
        ("b11434-cuda-h100.log", 767_525, vec![("CUDA0", row(718_300, 40_200, 0)), ("Host", row(0, 0, 0))]),
    ] {
        let log = LoadLog::read(&captured(name));
        let memory = log.memory();
        let found: Vec<_> = memory.iter().map(|(key, row)| (key.as_str(), *row)).collect();
        assert_eq!((log.mapped_span(), found), (hundredths(span), rows), "{name}");
        assert_eq!(log.failure(), None, "{name}");
    }
}

/// A row of llama.cpp's own table of memory at exit (`common_memory_breakdown_print`, common/fit.cpp, b11434), text or
/// `--log-jsonl`, in whole MiB, cut: name, model, context, compute.
fn table_rows(log: &str) -> Vec<(String, [u64; 3])> {
    let mut rows = Vec::new();
    for line in log.lines() {
        let Some(text) = text_of(line) else {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let terms = |row: &serde_json::Value| ["model", "context", "compute"].map(|key| row[key].as_u64().unwrap());
            let of_table = record["data"]["rows"].as_array().into_iter().flatten();
            rows = of_table.map(|row| (row["name"].as_str().unwrap().to_string(), terms(row))).collect();
            continue;
        };
        if text.contains("memory breakdown [MiB]") {
            rows.clear();
        } else if let Some((_, row)) = text.split_once("memory_breakdown_print: |   - ") {
            let (name, numbers) = row.trim_end().trim_end_matches('|').rsplit_once('|').unwrap();
            let is_sign = |c: char| c.is_whitespace() || "=+()".contains(c);
            let numbers: Vec<i64> = numbers.split(is_sign).filter_map(|word| word.parse().ok()).collect();
            // total = free + (own = model + context + compute) + unaccounted, or own = model + context + compute.
            let at = if numbers.len() == 7 { 3 } else { 1 };
            let terms = [0, 1, 2].map(|term| u64::try_from(numbers[at + term]).unwrap());
            rows.push((name.split_whitespace().next().unwrap().to_string(), terms));
        }
    }
    rows
}

#[test]
fn sums_of_lines_are_llama_cpps_own_sums() {
    for name in ["b11434-rpc-cmoe-lv4.log", "b11434-rpc-cmoe-jsonl.log", "b10434-vulkan-cmoe.log", "b11434-cpu-lv4.log"]
    {
        let text = captured(name);
        let log = LoadLog::read(&text);
        let mut memory = log.memory();
        // The table counts what is mapped by its span.
        memory.get_mut(HOST).unwrap().model += log.mapped_span();
        let table = table_rows(&text);
        assert!(table.len() >= 2 || name.contains("cpu"), "{name}: {table:?}");
        for (row, expected) in table {
            let terms = memory[&row];
            let found = [terms.model, terms.context, terms.compute].map(|bytes| bytes.0 / MIB);
            assert_eq!(found, expected, "{name}: {row}");
        }
    }
}

#[test]
fn a_log_tells_the_launch() {
    let log = LoadLog::read(&captured("b11434-rpc-cmoe-v.log"));
    assert_eq!(log.stage, Stage::Ready);
    assert_eq!(log.listening.as_deref(), Some("http://127.0.0.1:18080"));
    assert_eq!((log.used.len(), log.used[0].name.as_str()), (1, "RPC0"));
    assert_eq!(log.resolution()["RPC0"].model, PRINTED);
    let vulkan = LoadLog::read(&captured("b10434-vulkan-cmoe.log"));
    assert_eq!(vulkan.used[0].description, "llvmpipe (LLVM 15.0.6, 256 bits)");
    assert_eq!(LoadLog::read(&captured("b11434-cuda-h100.log")).resolution()["CUDA0"].context, Bytes(2 * PRINTED.0));
}

#[test]
fn a_launch_that_fails_says_why() {
    let bad = |reason: &str| Some(Failure::BadModel(reason.to_string()));
    for (name, expected) in [
        ("b11434-fail-missing.log", bad("failed to open GGUF file 'models/none.gguf' (No such file or directory)")),
        (
            "b11434-fail-truncated.log",
            bad("tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete"),
        ),
        ("b11434-fail-bad-regex.log", bad("Unexpected character within '[...]' in regular expression")),
        ("b11434-fail-flag.log", Some(Failure::InvalidArgument("error: invalid argument: --no-mmap".into()))),
        (
            "b11434-fail-ot.log",
            Some(Failure::InvalidArgument("error while handling argument \"-ot\": unknown buffer type".into())),
        ),
        ("b11434-cpu-default.log", None),
    ] {
        assert_eq!(LoadLog::read(&captured(name)).failure(), expected, "{name}");
    }
}

#[test]
fn rpc_buffers_are_told_apart_by_their_servers() {
    let log = LoadLog::read(
        "x: using device RPC0 (a:1) (unknown id) - 1 MiB free\nx: using device RPC1 (b:1) (unknown id) - 1 MiB free\n\
         x: using device RPC2 (b:1) (unknown id) - 1 MiB free\nload_tensors: RPC0[a:1] model buffer size = 1.00 MiB\n\
         load_tensors: RPC0[b:1] model buffer size = 2.00 MiB\nload_tensors: RPC1[b:1] model buffer size = 3.00 MiB\n\
         load_tensors: RPC7[c:1] model buffer size = 4.00 MiB\n",
    );
    let models: Vec<_> = log.memory().into_iter().map(|(key, row)| (key, row.model.0 / MIB)).collect();
    let expected = [("Host", 0), ("RPC0", 1), ("RPC1", 2), ("RPC2", 3), ("RPC7", 4)];
    assert_eq!(models, expected.map(|(key, n)| (key.to_string(), n)));
}

#[test]
fn what_is_reserved_anew_counts_once_and_contexts_add_up() {
    let context = "llama_context: constructing llama_context\nsched_reserve: CUDA0 compute buffer size = 2.00 MiB\n";
    let again = "sched_reserve: CUDA0 compute buffer size = 3.00 MiB\nreserve_compute_meta: CUDA0 compute buffer size = 5.00 MiB\n";
    let compute = |text: &str| LoadLog::read(text).memory()["CUDA0"].compute.0 / MIB;
    assert_eq!(compute(&format!("{context}{again}")), 8);
    assert_eq!(compute(&format!("{context}{again}{context}")), 10);
}

#[test]
fn rocm_prints_cudas_words() {
    let log = LoadLog::read(
        "x: using device ROCm1 (AMD Radeon RX 7900 XTX) (0000:03:00.0) - 24000 MiB free\n\
         ggml_backend_cuda_buffer_type_alloc_buffer: allocating 64.00 MiB on device 1: cudaMalloc failed: out of memory\n",
    );
    let expected = Failure::OutOfMemory { buffer: Some("ROCm1".into()), bytes: Some(Bytes::mib(64)), part: None };
    assert_eq!(log.failure(), Some(expected));
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
fn prefixes_and_json_shells_come_off() {
    let text = |line| text_of(line).unwrap_or("a record".to_string());
    assert_eq!(text("0.00.133.769 I load_tensors:   CPU\r\n"), "load_tensors:   CPU");
    assert_eq!(text("12.5 tokens a second"), "12.5 tokens a second");
    assert_eq!(text(r#"{"type":"log","time":1,"level":"info","msg":"srv  x: y\n"}"#), "srv  x: y");
    assert_eq!(text(r#"{"type":"fit_memory_breakdown","data":{}}"#), "a record");
    assert_eq!(text(r#"{"type":"log","msg":3"#), r#"{"type":"log","msg":3"#);
}

#[test]
fn sizes_keep_two_decimals() {
    assert_eq!(mib("    14.04"), Some(Bytes(14_722_007)));
    assert_eq!(mib("135910.84"), Some(Bytes(142_512_844_964)));
    for bad in ["14", "14.0", "-1.00", "1e5.00", "268435457.00", "99999999999999999999.00", "1.x0"] {
        assert_eq!(mib(bad), None, "{bad}");
    }
}

#[test]
fn long_lines_are_cut_between_characters() {
    assert_eq!(cut("漢字", 4), "漢");
    assert_eq!(cut("ab", 4), "ab");
}

#[test]
fn every_wording_is_read() {
    for (line, name, kind, mib) in [
        ("load_tensors:   CPU_Mapped model buffer size =    14.04 MiB", "CPU_Mapped", Kind::Model, "14.04"),
        (
            "load_tensors: RPC0[127.0.0.1:50052] model buffer size =     2.04 MiB",
            "RPC0[127.0.0.1:50052]",
            Kind::Model,
            "2.04",
        ),
        ("llm_load_tensors:      CUDA0 buffer size =  7168.00 MiB", "CUDA0", Kind::Model, "7168.00"),
        ("llama_kv_cache:      CUDA0 KV buffer size =   384.00 MiB", "CUDA0", Kind::Kv, "384.00"),
        ("llama_kv_cache_init:      CUDA0 KV buffer size =   384.00 MiB", "CUDA0", Kind::Kv, "384.00"),
        ("llama_memory_recurrent:      CUDA1 RS buffer size =     1.50 MiB", "CUDA1", Kind::Recurrent, "1.50"),
        ("llama_dsv4_comp_state:  CPU DSV4 csa state buffer size =  0.25 MiB", "CPU", Kind::State, "0.25"),
        (
            "llama_moe_cache:      CUDA0 MoE cache size =  4495.61 MiB for 15552.00 MiB of host experts",
            "CUDA0",
            Kind::Experts,
            "4495.61",
        ),
        ("sched_reserve:  CUDA_Host compute buffer size =     9.01 MiB", "CUDA_Host", Kind::Compute, "9.01"),
        ("llama_context:        CPU  output buffer size =     0.02 MiB", "CPU", Kind::Output, "0.02"),
        (
            "llama_new_context_with_model:  CUDA_Host  output buffer size =     0.58 MiB",
            "CUDA_Host",
            Kind::Output,
            "0.58",
        ),
        ("llama_adapter_lora_init_impl:      CUDA0 LoRA buffer size =    12.00 MiB", "CUDA0", Kind::Adapter, "12.00"),
    ] {
        let found = buffer(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!((found.name.as_str(), found.kind, Some(found.size)), (name, kind, super::mib(mib)), "{line}");
    }
}

#[test]
fn other_lines_are_none() {
    for line in [
        "~llama_context:        CPU compute buffer size is   6.0176 MiB, matches expectation of   6.0176 MiB",
        "llama_kv_cache: size =    1.00 MiB (   512 cells,   4 layers,  4/1 seqs), K (f16):    0.50 MiB",
        "load_tensors: buffer size = 1.00 MiB",
        "x: CUDA0 mystery buffer size = 1.00 MiB",
        "x: CUDA0 model buffer size = 1.00",
        "CUDA0 buffer size = 1.00 MiB",
    ] {
        assert_eq!(buffer(line), None, "{line}");
    }
}

#[test]
fn a_list_of_devices_is_read() {
    let text = "load_backend: loaded RPC backend\nAvailable devices:\n\
        \x20 RPC0: 127.0.0.1:50052 (24105 MiB, 24105 MiB free)\n\
        \x20 RPC1: 127.0.0.1:50052 (16000 MiB, 15000 MiB free)\n\
        \x20 RPC2: 10.0.0.2:50052 (8192 MiB, 8000 MiB free)\n\
        \x20 CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80552 MiB free)\n\
        \x20 Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)\n";
    let found = devices(text);
    let names: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.buffer.as_str(), d.total)).collect();
    let expected = [
        ("RPC0", "RPC0[127.0.0.1:50052]", Bytes::mib(24105)),
        ("RPC1", "RPC1[127.0.0.1:50052]", Bytes::mib(16000)),
        ("RPC2", "RPC0[10.0.0.2:50052]", Bytes::mib(8192)),
        ("CUDA0", "CUDA0", Bytes::mib(81079)),
        ("Vulkan0", "Vulkan0", Bytes::mib(2048)),
    ];
    assert_eq!(names, expected);
    assert_eq!(found[4].description, "llvmpipe (LLVM 15.0.6, 256 bits)");
    assert!(devices("Available devices:\n  (none)\n").is_empty() && devices("").is_empty());
}

#[test]
fn the_devices_of_a_model_are_read_with_and_without_an_id() {
    for (line, name, description) in [
        (
            "llama_prepare_model_devices: using device CUDA0 (NVIDIA H100 80GB HBM3) (0000:00:06.0) - 80552 MiB free",
            "CUDA0",
            "NVIDIA H100 80GB HBM3",
        ),
        (
            "x: using device Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) (unknown id) - 2048 MiB free",
            "Vulkan0",
            "llvmpipe (LLVM 15.0.6, 256 bits)",
        ),
        (
            "llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3060) - 11910 MiB free",
            "CUDA0",
            "NVIDIA GeForce RTX 3060",
        ),
    ] {
        let found = used_device(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!((found.name.as_str(), found.description.as_str()), (name, description));
    }
    assert_eq!(used_device("using device CUDA0 - 3 MiB free"), None);
}

fn oom(buffer: Option<&str>, bytes: Option<u64>, part: Option<Part>) -> Failure {
    Failure::OutOfMemory { buffer: buffer.map(str::to_string), bytes: bytes.map(Bytes), part }
}

#[test]
fn refused_allocations_say_which_and_how_much() {
    for (line, expected) in [
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 7168.00 MiB on device 1: cudaMalloc failed: out of memory",
            oom(Some("CUDA1"), Some(7168 << 20), None),
        ),
        (
            "alloc_tensor_range: failed to allocate CUDA0 buffer of size 7516192768",
            oom(Some("CUDA0"), Some(7_516_192_768), None),
        ),
        (
            "ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 500",
            oom(Some("CUDA0"), Some(500), Some(Part::Compute)),
        ),
        (
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99",
            oom(Some("CPU"), Some(99), None),
        ),
        (
            "llama_context: failed to allocate output buffer of size 12.50 MiB",
            oom(None, Some(25 << 19), Some(Part::Output)),
        ),
        ("ggml_vulkan: Device memory allocation of size 1073741824 failed.", oom(None, Some(1 << 30), None)),
        (
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            oom(Some("CUDA0"), None, Some(Part::Model)),
        ),
        (
            "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
            oom(None, None, Some(Part::Context)),
        ),
        ("CUDA error: out of memory", oom(None, None, None)),
    ] {
        assert_eq!(failure(line), Some(expected), "{line}");
    }
}

#[test]
fn later_lines_add_what_earlier_ones_left_open() {
    let lines = [
        "x: allocating 2.00 MiB on device 0: cudaMalloc failed: out of memory",
        "y: failed to allocate CUDA0 buffer of size 2097152",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "srv  llama_server: exiting due to model loading error",
    ];
    let whole = lines.iter().filter_map(|line| failure(line)).reduce(Failure::and);
    assert_eq!(whole, Some(oom(Some("CUDA0"), Some(2 << 20), Some(Part::Context))));
}

#[test]
fn lines_of_a_good_load_are_none() {
    for line in ["load_tensors: offloaded 5/5 layers to GPU", "srv    load_model: loading model 'error.gguf'", ""] {
        assert_eq!(failure(line), None, "{line}");
    }
}

fn after(lines: &[&str]) -> Serving {
    let mut serving = Serving::default();
    for line in lines {
        serving.line(line);
    }
    serving
}

/// Tokens and rate of a phase.
type Pair = Option<(u32, f64)>;

fn paces(latest: Option<&Latest>) -> (Pair, Pair, bool) {
    let pair = |pace: Option<Pace>| pace.map(|pace| (pace.tokens, pace.rate));
    let latest = latest.expect("a request");
    (pair(latest.pp), pair(latest.tg), latest.is_over)
}

const BEGIN: &str = "slot launch_slot_: id  3 | task 0 | processing task, is_child = 0";
const PROMPT: &str = "slot print_timing: id  3 | task 0 | prompt eval time =     719.67 ms /    11 tokens (   65.42 ms per token,    15.28 tokens per second)";
const ANSWER: &str = "slot print_timing: id  3 | task 0 |        eval time =    4338.20 ms /     8 tokens (  619.74 ms per token,     1.61 tokens per second)";
const END: &str = "slot      release: id  3 | task 0 | stop processing: n_tokens = 18, truncated = 0";

#[test]
fn a_request_runs_and_is_served() {
    let slots = "srv    load_model: initializing, n_slots = 4, n_ctx_slot = 512, kv_unified = 'true'";
    let mut serving = after(&[slots, BEGIN]);
    assert_eq!((serving.slots, serving.running(), serving.served), (Some(4), 1, 0));
    for line in [PROMPT, ANSWER, END] {
        serving.line(line);
    }
    assert_eq!((serving.running(), serving.served, serving.cancelled), (0, 1, 0));
    assert_eq!(paces(serving.latest.as_ref()), (Some((11, 15.28)), Some((8, 1.61)), true));
}

#[test]
fn what_is_broken_off_is_not_served() {
    let serving = after(&[BEGIN, "srv          stop: cancel task, id_task = 0", END]);
    assert_eq!((serving.running(), serving.served, serving.cancelled), (0, 0, 1));
    let idle = after(&[BEGIN, "srv  update_slots: all slots are idle"]);
    assert_eq!((idle.running(), idle.served), (0, 0));
}

#[test]
fn a_session_is_all_tokens_over_all_time() {
    let prompt = |ms: &str, tokens: u32, rate: &str| {
        format!("prompt eval time = {ms} ms / {tokens} tokens ( 1.00 ms per token, {rate} tokens per second)")
    };
    let serving = after(&[&prompt("1000.00", 100, "100.00"), &prompt("3000.00", 900, "300.00")]);
    assert_eq!((serving.pp(), serving.tg()), (Some(250.0), None));
    let nothing = "       eval time =       0.00 ms /     1 tokens (     inf ms per token,     -nan tokens per second)";
    let serving = after(&[PROMPT, nothing]);
    assert_eq!((serving.tg(), paces(serving.latest.as_ref()).1), (None, None));
}

#[test]
fn a_request_under_way_is_told_as_it_goes() {
    let reading = "slot print_timing: id  0 | task 7 | prompt processing, n_tokens =   2048, progress = 0.50, t =   4.10 s / 499.51 tokens per second";
    let writing = "slot print_timing: id  0 | task 7 | n_gen =    150, tg =  31.20 t/s, tg_3s =  30.10 t/s";
    assert_eq!(paces(after(&[reading]).latest.as_ref()), (Some((2048, 499.51)), None, false));
    let both = after(&[reading, writing]);
    assert_eq!(paces(both.latest.as_ref()), (Some((2048, 499.51)), Some((150, 30.1)), false));
    assert_eq!(both.tg(), None, "only what is over counts in the session");
    // Of another request nothing is taken over.
    assert_eq!(paces(after(&[PROMPT, writing]).latest.as_ref()), (None, Some((150, 30.1)), false));
}

#[test]
fn nonsense_says_nothing() {
    for line in [
        "slot print_timing: id  x | task 0 | prompt eval time = y",
        "slot release: id 99999999999 | task 1 | stop processing",
        "slot launch_slot_: id  1 | task -1 | processing task",
        "prompt eval time = / tokens",
        "n_gen = 5, tg = 1 t/s",
        "slot  | task  | ",
        "srv stop: cancel task, id_task = x",
    ] {
        let serving = after(&[line]);
        let said = serving.latest.as_ref().is_some_and(|latest| latest.pp.is_some() || latest.tg.is_some());
        assert!(!said && serving.running() == 0 && serving.served == 0, "{line}: {serving:?}");
    }
}
