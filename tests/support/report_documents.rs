//! Documents of runs that never were, in the shape that real runs write: round numbers, so that a test can name them.

use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

fn row(model: u64) -> Value {
    json!({"model": model, "context": GIB / 2, "compute": GIB / 4, "overhead": 0, "total": model + GIB / 2 + GIB / 4})
}

fn memory(on_device: u64) -> Value {
    json!({"CUDA0": row(on_device * GIB), "Host": row(3 * GIB)})
}

fn spread(mean: f64, stddev: f64) -> Value {
    json!({"mean": mean, "stddev": stddev, "n": 3})
}

fn runtime() -> Value {
    json!({"program": "/opt/llama-server", "build": 11434, "backend": "CUDA"})
}

fn comparison() -> Value {
    json!([
        {"quantity": "CUDA0.model", "predicted": 5 * GIB, "measured": 5 * GIB, "resolution": 0, "error": 0.0, "ok": true},
        {"quantity": "CUDA0.compute", "predicted": GIB / 2, "measured": GIB / 4, "resolution": 0, "error": 1.0, "ok": false},
    ])
}

/// `moeplan/plan/1`, of a launch with nothing left to say.
fn plan(name: &str) -> Value {
    let real: Value = serde_json::from_str(include_str!("../../testdata/frozen/plan-qwen3.json")).unwrap();
    let run = &real["run"];
    json!({
        "schema": "moeplan/plan/1", "program": "llama-server", "run": run, "memory": memory(5), "budget": {"CUDA0": 24 * GIB},
        "fits": true, "shortfall": {}, "mapped_span": null, "overrides": [], "override_groups": [], "lints": [], "basis": [],
        "model": {"path": name, "name": name, "architecture": "phimoe", "bytes": 20 * GIB, "context_length": 8192, "block_count": 24},
        "machine": {"devices": [], "host": real["machine"]["host"]}, "warnings": [], "margin": 0, "strategy": "auto", "objective": "turn",
        "turn": {"prompt": 4096, "generate": 512, "depth": 0}, "turn_seconds": 17.3,
        "speed": {"pp": 900.0, "tg": 40.0, "basis": name, "uncertainty": 0.25, "uncertainty_pp": 0.25, "uncertainty_tg": 0.25},
        "host_needs": {"process": 0, "logits": 0, "checkpoints": 0, "prompt_cache": 0, "reserve": 0, "pinned": 0}, "args": ["-c", "8192"],
        "command": format!("llama-server -m {name} -c 8192"),
        "placement": {"routed_expert_bytes_on_devices": 4 * GIB, "routed_expert_bytes_on_host": 14 * GIB,
            "blocks_with_experts_on_host": 18, "blocks_with_experts": 24, "by_device": {"CUDA0": 4 * GIB}},
        "alternatives": [], "explain": [], "time": [], "fixes": [],
    })
}

/// `moeplan/measurement/1`.
pub fn measurement(name: &str) -> Value {
    let process = json!({"rss_anon": GIB, "rss_file": 0, "rss_shmem": 0, "locked": 0, "pinned": 0, "peak": GIB});
    json!({
        "schema": "moeplan/measurement/1",
        "plan": plan(name),
        "runtime": runtime(), "command": [name], "memory": memory(5), "predicted": memory(5), "mapped_span": GIB, "device_used": {},
        "device_use": {"before": {}, "loaded": {}, "peak": {}, "after": {}, "of_process": {}},
        "process": process, "process_before": process, "load_seconds": 2.5,
        "speed": {"n_prompt": 512, "n_generate": 64, "depth": 0, "pp": [990.0, 1010.0], "tg": [49.0, 51.0], "first_token": [],
            "summary": {"pp": spread(1000.0, 14.0), "tg": spread(50.0, 1.0), "first_token": null}},
        "text": name, "finite": true, "tolerance": 0.02, "comparison": comparison(),
    })
}

fn item(what: &str, verdict: &str) -> Value {
    json!({"what": what, "verdict": verdict, "detail": format!("because of {what}")})
}

fn sample(name: &str, mode: &str) -> Value {
    let streamed = mode == "stream";
    let gaps: Vec<f64> = (0..700).map(|at| if at % 90 == 5 { 0.08 } else { 0.02 }).collect();
    json!({
        "prompt": name, "mode": mode, "failure": null, "prompt_tokens": 30, "generated_tokens": 700, "tokens_by": "runtime",
        "pp": 1000.0, "tg": 50.0, "speed_by": "runtime", "first_token_seconds": streamed.then_some(0.02),
        "gaps": streamed.then(|| json!({"median": 0.02, "p95": 0.02, "max": 0.08, "all": gaps})),
        "total_seconds": 14.0, "finish_reason": "stop", "text": name.repeat(300), "stream": [],
    })
}

fn case(name: &str, case: &str, on_device: u64) -> Value {
    let speed = |prompt: Value, mode: &str| {
        json!({"prompt": prompt, "mode": mode, "generated_tokens": spread(700.0, 0.0), "pp": spread(1000.0, 10.0),
            "tg": spread(50.0, 1.0), "first_token_seconds": (mode == "stream").then(|| spread(0.02, 0.001)),
            "gap_median": null, "gap_p95": null, "gap_max": null, "total_seconds": spread(14.0, 0.1)})
    };
    let depth = |depth: u32, tg: f64| json!({"depth": depth, "pp": spread(1000.0 - f64::from(depth) / 100.0, 5.0), "tg": spread(tg, 1.0), "first_token_seconds": null});
    json!({
        "name": case, "what": name, "command": format!("llama-server -m {name}"),
        "sessions": [{"case": case, "repetition": 1, "failure": name, "args": [], "runtime": runtime(), "load_seconds": 2.0,
            "memory": memory(on_device), "predicted": memory(on_device), "mapped_span": 0, "device_used": {},
            "device_use": {"before": {}, "loaded": {}, "peak": {}, "after": {}, "of_process": {}}, "process": null,
            "comparison": comparison(), "samples": [sample(name, "whole"), sample(name, "stream")], "depths": [], "notes": []}],
        "load_seconds": spread(2.0, 0.1),
        "speed": [speed(json!(name), "whole"), speed(Value::Null, "whole"), speed(Value::Null, "stream")],
        "depths": [depth(0, 50.0), depth(4096, 45.0), depth(16384, 30.0)],
        "stream": [item("no event is broken", "pass"), item(name, "fail")],
        "quality": [{"prompt": name, "verdict": "not-assessed", "items": [item("the answer is right", "not-assessed")]}],
    })
}

fn environment(name: &str) -> Value {
    json!({"moeplan": "0.1.0", "started": 1_795_312_532, "system": "Linux", "processor": name, "processors": 8, "ram": 64 * GIB,
        "devices": [{"name": "CUDA0", "description": name, "total": 24 * GIB}], "driver": "580", "runtime": runtime(), "endpoint": null})
}

/// `moeplan/bench/1`.
pub fn bench(name: &str) -> Value {
    json!({
        "schema": "moeplan/bench/1", "environment": environment(name),
        "model": {"path": name, "name": name, "architecture": name, "file_type": "F16", "file_bytes": 20 * GIB,
            "header_sha256": "00ff", "tensors": 100, "blocks": 24, "parameters": 20_000_000_000u64,
            "active_parameters": 3_000_000_000u64, "experts": 32, "experts_used": 4, "expert_bytes": 18 * GIB},
        "weights": {"synthetic": true, "basis": name},
        "settings": {"repetitions": 3, "temperature": 0.0, "seed": 1, "depths": [0, 4096], "depth_prompt": 512, "depth_generate": 64},
        "prompts": [{"name": name, "text": name, "max_tokens": 700}],
        "cases": [case(name, "plan", 5), case(name, "all-on-device", 13)],
        "savings": [{"baseline": "all-on-device", "by": "llama.cpp", "bytes": 5 * GIB, "baseline_bytes": 13 * GIB,
            "saved_bytes": 8 * GIB, "saved_percent": 58.6, "tg_ratio": null, "pp_ratio": 0.5}],
        "notes": [name],
    })
}

/// `moeplan/validation/1`.
pub fn validation(name: &str) -> Value {
    json!({
        "schema": "moeplan/validation/1", "suite": name, "description": name, "environment": environment(name),
        "prerequisites": [item(name, "skipped")],
        "models": [
            {"name": name, "path": name, "skipped": null, "sections": [{"name": "memory", "items": [item(name, "pass")]}],
             "placements": [{"case": "plan", "command": name, "expert_bytes_on_devices": GIB, "expert_bytes_on_host": 0,
                "predicted": memory(5), "fits": null}], "bench": bench(name)},
            {"name": "absent", "path": null, "skipped": name, "sections": [], "placements": [], "bench": null},
        ],
        "summary": [item("the whole", "fail")],
    })
}

/// `moeplan/run/1`.
pub fn launched(name: &str) -> Value {
    json!({
        "schema": "moeplan/run/1", "endpoint": "http://127.0.0.1:8080", "process": 4711, "command": ["llama-server", "-m", name],
        "load_seconds": 3.5, "comparison": comparison(), "plan": plan(name),
    })
}

/// `moeplan/tune/1`.
pub fn tuning(name: &str) -> Value {
    let speed = json!({"pp": 900.0, "tg": 40.0, "basis": name, "uncertainty": 0.25, "uncertainty_pp": 0.25, "uncertainty_tg": 0.25});
    let candidate = |kind: &str, state: &str, predicted: Value| {
        json!({"what": format!("{kind} {name}"), "kind": kind, "args": ["-c", "1"], "predicted": predicted, "state": state,
            "measured": {"pp": spread(1000.0, 1.0), "tg": spread(50.0, 1.0), "turn": spread(2.0, 0.1), "turns": [1.9, 2.0, 2.1],
                "range": {"median": 2.0, "half": 0.1}, "depth": 0, "visits": 1, "memory": {"CUDA0": GIB}, "peak": {}}})
    };
    json!({
        "schema": "moeplan/tune/1", "stopped": "decided", "seconds": 60.5, "journal": name, "verdict": "beats", "times": 1.5,
        "subject": {"model": "models/model.gguf", "bytes": GIB, "program": name, "build": 11434, "prompt": 512,
            "generate": 64, "depth": 0, "devices": [["CUDA0", name, 24 * GIB]]},
        "candidates": [candidate("plan", "winner", json!({"speed": speed, "turn_seconds": 2.2})), candidate("fit", "slower", Value::Null),
            {"what": name, "kind": "neighbour", "args": [], "predicted": null, "state": "failed", "why": name, "measured": null}],
        "winner": 0, "command": format!("llama-server -m {name}"),
    })
}

/// llama-bench's rows.
pub fn llama_bench(name: &str) -> Value {
    let row = |prompt: u32, generate: u32, depth: u32| {
        json!({"build_number": 11434, "cpu_info": name, "gpu_info": name, "backends": "CUDA", "model_filename": name,
            "model_type": name, "model_size": GIB, "n_batch": 2048, "n_ubatch": 512, "n_threads": 8, "n_gpu_layers": 99, "n_cpu_moe": 3,
            "tensor_buft_overrides": "none", "load_mode": "auto", "n_prompt": prompt, "n_gen": generate, "n_depth": depth,
            "avg_ts": 50.0, "stddev_ts": 1.0, "samples_ts": [49.0, 51.0]})
    };
    json!([row(512, 0, 0), row(0, 128, 4096), row(512, 128, 0)])
}
