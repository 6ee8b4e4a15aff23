//! Captured logs of several builds, and logs that nobody would write.

use proptest::prelude::*;

use super::*;
use crate::bytes::MIB;

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

#[test]
fn sums_of_lines_are_llama_cpps_own_sums() {
    for name in ["b11434-rpc-cmoe-lv4.log", "b11434-rpc-cmoe-jsonl.log", "b10434-vulkan-cmoe.log", "b11434-cpu-lv4.log"]
    {
        let log = LoadLog::read(&captured(name));
        let mut memory = log.memory();
        // The table counts what is mapped by its span.
        memory.get_mut(HOST).unwrap().model += log.mapped_span();
        let whole = |bytes: Bytes| Bytes::mib(bytes.0 / MIB);
        assert!(log.breakdown.len() >= 2 || name.contains("cpu"), "{name}: {:?}", log.breakdown);
        for row in &log.breakdown {
            let terms = memory[&row.name];
            let found = [terms.model, terms.context, terms.compute].map(whole);
            assert_eq!(found, [row.model, row.context, row.compute], "{name}: {}", row.name);
        }
    }
}

#[test]
fn a_log_tells_the_launch() {
    let log = LoadLog::read(&captured("b11434-rpc-cmoe-v.log"));
    assert_eq!(log.build, Some(Build { number: 11434, commit: "sdist-11434".into() }));
    assert_eq!((log.layers, log.n_ctx, log.stage), (Some((5, 5)), Some(512), Stage::Ready));
    assert_eq!(log.graph, Some(Graph { nodes: 197, splits: 10, splits_one: 10 }));
    assert_eq!(log.overrides, BTreeMap::from([("CPU".to_string(), 12)]));
    assert_eq!(log.listening.as_deref(), Some("http://127.0.0.1:18080"));
    assert_eq!((log.used.len(), log.used[0].name.as_str()), (1, "RPC0"));
    assert_eq!(log.resolution()["RPC0"].model, PRINTED);
    let two_lines = LoadLog::read(&captured("b10434-vulkan-cmoe.log"));
    assert_eq!(two_lines.graph, Some(Graph { nodes: 214, splits: 13, splits_one: 10 }));
    assert_eq!(two_lines.used[0].description, "llvmpipe (LLVM 15.0.6, 256 bits)");
    let cuda = LoadLog::read(&captured("b11434-cuda-h100.log"));
    let h100 = cuda.devices.iter().find(|device| device.name == "CUDA0").map(|device| (device.total, device.gpu));
    assert_eq!(h100, Some((Bytes::mib(81079), true)));
    let exit = LoadLog::read(&captured("b11434-cuda-none.log")).breakdown.remove(0);
    assert_eq!((exit.total, exit.unaccounted_mib), (Some(Bytes::mib(81079)), Some(787)));
    assert_eq!(cuda.used[0].id.as_deref(), Some("0000:00:06.0"));
    assert_eq!(cuda.resolution()["CUDA0"].context, Bytes(2 * PRINTED.0));
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
    /// In whatever pieces a log comes, it says the same.
    #[test]
    fn pieces_do_not_matter(sizes in prop::collection::vec(1_usize..400, 1..80)) {
        let text = captured("b11434-rpc-cmoe-lv4.log");
        let mut reader = LogReader::default();
        let mut rest = text.as_bytes();
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            reader.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(reader.log(), &LoadLog::read(&text));
    }

    /// Lines with a piece cut out, doubled or replaced are read without a panic, and memory stays bounded.
    #[test]
    fn mutated_lines_do_no_harm(at in any::<prop::sample::Index>(), length in 0_usize..40, junk in ".{0,20}") {
        for name in ["b11434-rpc-cmoe-jsonl.log", "b11434-cuda-h100.log", "b10434-vulkan-cmoe.log"] {
            let text = captured(name);
            let bytes = text.as_bytes();
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            let mutated = [&bytes[..at], junk.as_bytes(), &bytes[end..]].concat();
            let mut reader = LogReader::default();
            reader.push(&mutated);
            let total: u64 = reader.log().memory().values().map(|row| row.total().0).fold(0, u64::saturating_add);
            prop_assert!(total < 1 << 62, "{total}");
        }
    }
}

#[test]
fn a_line_without_an_end_takes_bounded_memory() {
    let mut reader = LogReader::default();
    for _ in 0..64 {
        assert!(reader.push(&vec![b'x'; 65_536]).is_empty());
    }
    assert!(reader.pending.len() <= MAX_LINE);
    let events = reader.push(b"\nsrv  llama_server: listening on http://127.0.0.1:1\n");
    assert_eq!(events, [Event::Listening("http://127.0.0.1:1".to_string())]);
    assert_eq!(reader.push(&[0xff, 0xfe, b'\n', b'{', 0xc3]), []);
}
