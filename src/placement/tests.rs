//! The law on small models: who gets which slot, copies, overrides, buffer types, refusals.

use super::*;
use crate::gguf::{ByteOrder, GgmlType, Gguf, Header, ModelFile, TensorInfo, Value};
use crate::machine::{Host, Isa};
use crate::run::{LoadMode, Override, SplitMode, Target};

/// A model of four blocks with experts; `extra` tensors are (name, type, shape), `keys` are added to the metadata.
fn model(architecture: &str, extra: &[(&str, &str, [u64; 4])], keys: &[(&str, u64)]) -> Model {
    let mut tensors = vec![("token_embd.weight".to_string(), "q4_K", [1024, 512, 1, 1])];
    tensors.push(("output_norm.weight".to_string(), "f32", [1024, 1, 1, 1]));
    for block in 0..4 {
        tensors.push((format!("blk.{block}.attn_q.weight"), "q4_K", [1024, 1024, 1, 1]));
        tensors.push((format!("blk.{block}.ffn_up_exps.weight"), "q4_K", [768, 1024, 8, 1]));
        tensors.push((format!("blk.{block}.ffn_down_exps.weight"), "q6_K", [1024, 768, 8, 1]));
    }
    tensors.extend(extra.iter().map(|(name, ty, shape)| ((*name).to_string(), *ty, *shape)));
    let info = |(name, ty, shape): (String, &str, [u64; 4])| {
        let ty = GgmlType::from_name(ty).unwrap();
        let rows: u64 = shape[1..].iter().product();
        let bytes = Bytes(ty.row_bytes(shape[0]).unwrap() * rows);
        TensorInfo { name, ty, n_dims: 4, shape, offset: 0, shard: 0, bytes }
    };
    let mut metadata: crate::gguf::Metadata = [
        ("block_count", 4),
        ("context_length", 4096),
        ("embedding_length", 1024),
        ("attention.head_count", 8),
        ("feed_forward_length", 1024),
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("vocab_size", 512),
    ]
    .iter()
    .chain(keys)
    .map(|(key, n)| (format!("{architecture}.{key}"), Value::U64(*n)))
    .collect();
    metadata.insert("general.architecture".into(), Value::String(architecture.into()));
    let header = Header {
        version: 3,
        byte_order: ByteOrder::Little,
        alignment: 32,
        data_offset: 0,
        metadata,
        tensors: tensors.into_iter().map(info).collect(),
    };
    let files = vec![ModelFile { path: "model.gguf".into(), bytes: Bytes(0), data_offset: 0 }];
    Model::as_far_as_readable(Gguf { files, header }).0
}

fn machine(devices: &[&str]) -> Machine {
    let devices = devices.iter().map(|text| Device::parse(text).unwrap()).collect();
    Machine::new(devices, Host::default()).unwrap()
}

fn run(overrides: &[(&str, &str)]) -> RunConfig {
    let entry = |(pattern, buffer): &(&str, &str)| Override {
        pattern: (*pattern).into(),
        buffer: (*buffer).into(),
        origin: "-ot".into(),
    };
    RunConfig { overrides: overrides.iter().map(entry).collect(), load_mode: LoadMode::None, ..RunConfig::default() }
}

fn buffers_of(model: &Model, placement: &Placement, name: &str) -> Vec<Buffer> {
    let at = model.tensors.iter().position(|tensor| tensor.name == name).unwrap();
    placement.copies[at].iter().map(|copy| copy.buffer).collect()
}

#[test]
fn layers_leave_the_host_from_the_output_down() {
    let model = model("llama", &[], &[]);
    let one = machine(&["CUDA0=8G"]);
    let two = machine(&["CUDA0=24G", "CUDA1=8G"]);
    let (h, a, b) = (None, Some(0), Some(1));
    for (machine, n_gpu_layers, tensor_split, expected) in [
        (&one, 0, vec![], [h, h, h, h, h]),
        (&one, 1, vec![], [h, h, h, h, a]),
        (&one, 4, vec![], [h, a, a, a, a]),
        (&one, 5, vec![], [a, a, a, a, a]),
        (&one, -1, vec![], [a, a, a, a, a]),
        (&two, 99, vec![], [a, a, a, a, b]),
        (&two, 99, vec![1.0, 1.0], [a, a, a, b, b]),
        (&two, 99, vec![0.0, 1.0], [b, b, b, b, b]),
        (&two, 99, vec![1.0], [a, a, a, a, a]),
        (&two, 3, vec![1.0, 2.0], [h, h, a, b, b]),
    ] {
        let run = RunConfig { n_gpu_layers, tensor_split, ..run(&[]) };
        assert_eq!(place(&model, machine, &run).unwrap().layers, expected, "{run:?}");
    }
}

#[test]
fn of_older_builds_the_output_leaves_the_host_last() {
    let (model, machine) = (model("llama", &[], &[]), machine(&["CUDA0=8G"]));
    let target = Target { build: 6699, ..Target::default() };
    let (h, a) = (None, Some(0));
    for (n_gpu_layers, expected) in [(1, [h, h, h, a, h]), (4, [a, a, a, a, h]), (5, [a, a, a, a, a])] {
        let run = RunConfig { target, n_gpu_layers, ..run(&[]) };
        assert_eq!(place(&model, &machine, &run).unwrap().layers, expected, "{n_gpu_layers}");
    }
}

#[test]
fn devices_take_part_as_llama_cpp_chooses_them() {
    let model = model("llama", &[], &[]);
    let machine = machine(&["CUDA0=24G", "CUDA1=8G", "RPC0[h:1]=8G"]);
    let base = run(&[]);
    for (run, expected) in [
        (base.clone(), vec![1, 2]),
        (RunConfig { rpc: vec!["h:1".into()], ..base.clone() }, vec![0, 1, 2]),
        (RunConfig { devices: Some(vec!["CUDA1".into(), "cuda0".into()]), ..base.clone() }, vec![2, 1]),
        (RunConfig { devices: Some(vec![]), ..base.clone() }, vec![]),
        (RunConfig { split_mode: SplitMode::None, main_gpu: 1, ..base.clone() }, vec![2]),
        (RunConfig { split_mode: SplitMode::None, main_gpu: -1, ..base }, vec![]),
    ] {
        assert_eq!(place(&model, &machine, &run).unwrap().devices, expected, "{run:?}");
    }
}

#[test]
fn rpc_devices_are_those_of_the_servers_that_are_named() {
    let model = model("llama", &[], &[]);
    let machine = machine(&["RPC0[a:1]=8G", "RPC1[b:2]=8G", "CUDA0=8G"]);
    let place = |rpc: &[&str], devices: Option<&[&str]>| {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_string()).collect::<Vec<_>>();
        let run = RunConfig { rpc: words(rpc), devices: devices.map(words), ..run(&[]) };
        place(&model, &machine, &run).map(|placement| placement.devices).map_err(|error| error.to_string())
    };
    assert_eq!(place(&["b:2", "a:1"], None), Ok(vec![1, 0, 2]));
    assert_eq!(place(&["b:2", "a:1"], Some(&["rpc0"])), Ok(vec![1]));
    assert_eq!(place(&["b:2"], Some(&["RPC0", "CUDA0"])), Ok(vec![1, 2]));
    let names = |result: Result<Vec<u16>, String>, word: &str| assert!(result.unwrap_err().contains(word));
    names(place(&["b:2"], Some(&["RPC1"])), "known: CPU");
    names(place(&[], Some(&["RPC1"])), "only if `--rpc` names its server, b:2");
}

#[test]
fn a_tied_embedding_exists_twice_unless_both_are_in_one_buffer() {
    let (gpu, host) = (machine(&["CUDA0=8G"]), machine(&[]));
    let embedding_of = |build: u32, model: &Model, machine: &Machine| {
        let target = Target { build, ..Target::default() };
        let run = RunConfig { repack: false, target, ..run(&[]) };
        buffers_of(model, &place(model, machine, &run).unwrap(), "token_embd.weight")
    };
    let embedding = |model: &Model, machine: &Machine| embedding_of(11434, model, machine);
    let tied = model("llama", &[], &[]);
    assert_eq!(embedding(&tied, &gpu), [Buffer::HostPinned, Buffer::Device(0)]);
    assert_eq!(embedding(&tied, &host), [Buffer::Cpu]);
    let gemma = model("gemma4", &[], &[]);
    assert_eq!(embedding(&gemma, &host), [Buffer::Cpu, Buffer::Cpu]);
    assert_eq!(embedding_of(12032, &gemma, &host), [Buffer::Cpu]);
    let own = model("llama", &[("output.weight", "q6_K", [1024, 512, 1, 1])], &[]);
    assert_eq!(embedding(&own, &gpu), [Buffer::HostPinned]);
}

#[test]
fn the_first_matching_override_wins_and_cpu_means_the_hosts_list() {
    let model = model("llama", &[], &[]);
    let machine = machine(&["CUDA0=8G"]);
    let base = run(&[(r"blk\.0\.ffn_up_exps", "CUDA0"), ("exps", "CPU")]);
    let (up, down) = ("blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight");
    for (run, expected_up, expected_down) in [
        (base.clone(), Buffer::HostPinned, Buffer::HostPinned),
        (RunConfig { load_mode: LoadMode::Auto, ..base.clone() }, Buffer::Cpu, Buffer::Cpu),
        (RunConfig { no_host: true, ..base.clone() }, Buffer::CpuRepack, Buffer::Cpu),
        (RunConfig { no_host: true, repack: false, ..base.clone() }, Buffer::Cpu, Buffer::Cpu),
    ] {
        let placement = place(&model, &machine, &run).unwrap();
        assert_eq!(buffers_of(&model, &placement, "blk.0.ffn_up_exps.weight"), [Buffer::Device(0)]);
        assert_eq!(buffers_of(&model, &placement, up), [expected_up], "{run:?}");
        assert_eq!(buffers_of(&model, &placement, down), [expected_down], "{run:?}");
        assert_eq!(buffers_of(&model, &placement, "blk.1.attn_q.weight"), [Buffer::Device(0)]);
    }
    let placement = place(&model, &machine, &base).unwrap();
    let rules: Vec<Option<usize>> = placement.copies.iter().flatten().map(|copy| copy.rule).collect();
    assert_eq!(rules.iter().filter(|rule| **rule == Some(0)).count(), 1);
    assert_eq!(rules.iter().filter(|rule| **rule == Some(1)).count(), 7);
}

#[test]
fn processors_repack_what_they_have_a_layout_for() {
    let model = model("llama", &[("output.weight", "q8_0", [1024, 512, 1, 1])], &[]);
    let (experts, down, query) = ("blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight");
    for (isa, expected) in [
        (Isa::Generic, [Buffer::Cpu; 4]),
        (Isa::X86Avx2, [Buffer::CpuRepack, Buffer::Cpu, Buffer::CpuRepack, Buffer::Cpu]),
        (Isa::X86Amx, [Buffer::CpuRepack, Buffer::Cpu, Buffer::Amx, Buffer::Amx]),
        (Isa::ArmNeon, [Buffer::CpuRepack; 4]),
    ] {
        let machine = Machine { devices: vec![], host: Host { isa, ..Host::default() } };
        let placement = place(&model, &machine, &run(&[])).unwrap();
        let found = [experts, down, query, "output.weight"].map(|name| buffers_of(&model, &placement, name)[0]);
        assert_eq!(found, expected, "{isa:?}");
        assert_eq!(buffers_of(&model, &placement, "token_embd.weight"), [Buffer::Cpu], "{isa:?}");
    }
}

#[test]
fn an_integrated_device_is_main_memory_and_is_loaded_without_a_map_unless_asked() {
    let model = model("qwen3moe", &[], &[]);
    for (device, is_shared, mode, is_mapped, buffer) in [
        ("Vulkan0=96G,shared", true, LoadMode::Auto, false, Buffer::HostPinned),
        ("Vulkan0=96G,shared", true, LoadMode::Mmap, true, Buffer::Cpu),
        ("Vulkan0=24G", false, LoadMode::Auto, true, Buffer::Cpu),
        ("CUDA0=96G,shared", true, LoadMode::Auto, false, Buffer::HostPinned),
        ("SYCL0=96G,shared", true, LoadMode::Auto, true, Buffer::Cpu),
        ("GPUOpenCL=8G", false, LoadMode::Auto, false, Buffer::Cpu),
    ] {
        let machine = machine(&[device]);
        let run = RunConfig { load_mode: mode, repack: false, ..run(&[("exps", "CPU")]) };
        let placement = place(&model, &machine, &run).unwrap();
        assert_eq!(machine.devices[0].integrated, is_shared, "{device}");
        assert_eq!(placement.is_mapped, is_mapped, "{device} {mode:?}");
        assert_eq!(buffers_of(&model, &placement, "blk.0.ffn_up_exps.weight"), [buffer], "{device} {mode:?}");
    }
}

#[test]
fn every_byte_is_in_one_buffer_padded_as_that_buffer_pads() {
    let model = model("llama", &[("output.weight", "q6_K", [1024, 512, 1, 1])], &[]);
    let machine = machine(&["CUDA0=8G"]);
    let sums = model_bytes(&place(&model, &machine, &run(&[("up_exps", "CPU")])).unwrap(), &model, &machine);
    let all: Bytes = model.tensors.iter().map(|tensor| tensor.bytes).sum();
    // No tensor here needs padding once the expert rows of 768 elements, which CUDA lengthens, are on the host.
    assert_eq!(sums.values().copied().sum::<Bytes>(), all);
    let on_device = model_bytes(&place(&model, &machine, &run(&[])).unwrap(), &model, &machine);
    let embedding = model.tensors[0].bytes;
    assert_eq!(on_device["CUDA0"], Bytes(all.0 - embedding.0 + 4 * 256), "4 tensors with a row and its padding more");
}

#[test]
fn refusals_name_the_flag_and_what_is_known() {
    let model = model("llama", &[], &[]);
    let machine = machine(&["CUDA0=8G"]);
    let base = run(&[]);
    for (run, message) in [
        (
            RunConfig { devices: Some(vec!["CUDA7".into()]), ..base.clone() },
            "`--device` names `CUDA7`, which this machine does not have; known: CPU, CUDA0",
        ),
        (
            RunConfig { rpc: vec!["h:1".into()], ..base.clone() },
            "`--rpc` names `h:1`, which this machine does not have; known: CPU, CUDA0",
        ),
        (run(&[("exps", "CUDA_Host")]), "`-ot exps=CUDA_Host`: no buffer type `CUDA_Host` here; known: CPU, CUDA0"),
        (
            RunConfig { split_mode: SplitMode::None, main_gpu: 3, ..base.clone() },
            "`-mg 3`: llama.cpp counts devices from 0, and the launch uses 1",
        ),
        (
            RunConfig { split_mode: SplitMode::Row, ..base.clone() },
            "`-sm row`: llama.cpp has no split buffers for CUDA0 and refuses; use `-sm layer`",
        ),
        (
            RunConfig { split_mode: SplitMode::Tensor, devices: Some(Vec::new()), ..base },
            "`-sm tensor` needs a device; llama.cpp refuses without one",
        ),
    ] {
        assert_eq!(place(&model, &machine, &run).unwrap_err().to_string(), message);
    }
    assert!(matches!(place(&model, &machine, &run(&[("(", "CPU")])), Err(Error::BadPattern { .. })));
}
