//! The embedded llama.cpp for real: text from a real model, offload to a software device, crashes, and no child left.
//!
//! Feature `embedded`. `MOEPLAN_SMOLLM2` names the real model (`scripts/fetch-smollm2` fetches it and prints its path).
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use moeplan::bytes::Bytes;
use moeplan::machine::{Backend, Device};
use moeplan::measurement::{self, Expected, Measurement};
use moeplan::model::Model;
use moeplan::run::{Target, parse};
use moeplan::runtime::worker::Request;
use moeplan::runtime::{
    Embedded, Kind, Launch, Prompt, RpcServer, Runtime as _, Workload, bind_software_devices, software_machine,
};
use moeplan::suggest::Hint as _;
use moeplan::{gguf, memory};

const MOEPLAN: &str = env!("CARGO_BIN_EXE_moeplan");

/// Longer than anything here takes on a busy machine: only a hang lasts so long.
const HANG: Duration = Duration::from_mins(1);

/// One test at a time writes models.
static WRITING: Mutex<()> = Mutex::new(());

/// A tiny sibling of a known model, with random weights, written once.
fn tiny(spec: &str) -> PathBuf {
    let _one_at_a_time = WRITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tiny-{spec}.gguf"));
    let partial = path.with_extension(format!("{}.gguf", std::process::id()));
    if !path.exists() {
        let synth = ["synth", spec, "--tiny", "--weights", "random", "--force", "-o"];
        let output = Command::new(MOEPLAN).args(synth).arg(&partial).output().expect("moeplan runs");
        assert!(output.status.success(), "synth {spec}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&partial, &path).expect("the finished file");
    }
    path
}

fn launch(model: PathBuf, devices: u16, line: &str) -> Launch {
    let words: Vec<String> = line.split(' ').map(str::to_string).collect();
    let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
    run.n_threads = Some(1);
    Launch { model, run, machine: software_machine(devices, Bytes::mib(1024)) }
}

fn verify(mut launch: Launch, prompt: Prompt, n_generate: u32) -> Measurement {
    let runtime = Embedded::of(MOEPLAN);
    let Launch { machine, run, .. } = &mut launch;
    let _servers = bind_software_devices(&runtime.program, None, machine, run, 1).expect("software devices");
    let model = Model::from_gguf(gguf::open(&launch.model).expect("a header")).expect("a model");
    let predicted = memory::forecast(&model, &launch.machine, &launch.run).expect("a forecast");
    let workload = Workload { prompt, depth: 0, n_generate, repetitions: 1 };
    let seen = runtime.generate(&launch, &workload).expect("a run");
    let expected = Expected { mapped_span: None, ..Expected::of(&predicted, Bytes(0)) };
    measurement::measurement(seen, &expected, 0.02)
}

fn exact_weights_and_caches(measured: &Measurement) {
    let bad: Vec<_> = measured.taken.comparison.iter().filter(|row| !row.ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(measured.finite);
}

#[test]
fn a_real_model_says_what_the_capital_of_france_is() {
    let Some(model) = std::env::var_os("MOEPLAN_SMOLLM2").map(PathBuf::from) else {
        eprintln!("skipped: MOEPLAN_SMOLLM2 is not set (scripts/fetch-smollm2 prints it)");
        return;
    };
    let prompt = Prompt::Text("The capital of France is".to_string());
    let measured = verify(launch(model.clone(), 0, "llama-server -c 1024 -np 1"), prompt.clone(), 8);
    assert!(measured.text.contains("Paris"), "{:?}", measured.text);
    exact_weights_and_caches(&measured);
    assert!(measured.taken.mapped_span > Bytes(0) && measured.process.rss_file > Bytes(0));
    assert_eq!((measured.speed.pp.len(), measured.speed.tg.len()), (1, 1));
    // The same words from a device: greedy text does not depend on where the weights are.
    let offloaded = verify(launch(model, 1, "llama-server -c 1024 -np 1 -ngl 20"), prompt, 8);
    assert!(offloaded.text.contains("Paris"), "{:?}", offloaded.text);
    exact_weights_and_caches(&offloaded);
}

#[test]
fn experts_on_the_host_and_the_rest_on_a_device_run_and_measure_as_predicted() {
    for spec in ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite"] {
        let line = "llama-server -c 1024 -np 1 -ngl 99 -cmoe";
        let measured = verify(launch(tiny(spec), 1, line), Prompt::Tokens(96), 4);
        exact_weights_and_caches(&measured);
        let model = |key: &str| measured.taken.memory.get(key).map_or(Bytes(0), |row| row.terms.model);
        assert!(model("RPC0") > Bytes(0) && model("Host") > Bytes(0), "{spec}: {:?}", measured.taken.memory);
        assert_eq!(measured.runtime.backend, "RPC");
    }
}

/// Models of this year: what they are made of is what llama.cpp computes with, experts on the host and the rest on a device.
#[test]
fn tiny_siblings_of_current_models_run_and_measure_as_predicted() {
    for spec in [
        "deepseek-v3.2",
        "deepseek-v4-flash",
        "gemma-4-26b-a4b",
        "glm-5.1",
        "granite-4.0-h-tiny",
        "kimi-k2.5",
        "minimax-m2.7",
        "nemotron-3-nano-30b-a3b",
        "nemotron-3-super-120b-a12b",
        "qwen3.6-35b-a3b-mtp",
        "step-3.5-flash",
    ] {
        let measured = verify(launch(tiny(spec), 1, "llama-server -c 1024 -np 1 -ngl 99 -cmoe"), Prompt::Tokens(96), 4);
        let bad: Vec<_> = measured.taken.comparison.iter().filter(|row| !row.ok).collect();
        assert!(bad.is_empty() && measured.finite, "{spec}: {bad:#?}");
    }
}

#[test]
fn two_devices_share_by_tensor_split() {
    let line = "llama-server -c 1024 -np 2 -ngl 99 -ts 3,1";
    let measured = verify(launch(tiny("qwen3-30b-a3b"), 2, line), Prompt::Tokens(40), 2);
    exact_weights_and_caches(&measured);
    assert!(measured.taken.memory.contains_key("RPC1"));
}

#[test]
fn a_crash_is_an_error_with_the_signal_and_a_hint() {
    let mut worker = Embedded::of(MOEPLAN).worker(&[]).expect("a worker");
    let error = worker.ask(&Request::Crash, "crashing", HANG).expect_err("a crash");
    assert!(error.to_string().contains("while crashing"), "{error}");
    #[cfg(unix)]
    assert!(error.to_string().contains("signal 6 (SIGABRT)"), "{error}");
    assert!(error.hint().is_some());
    assert!(!worker.is_alive());
}

/// Sends a process a signal by name.
#[cfg(unix)]
fn signal(name: &str, id: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[cfg(unix)]
#[test]
fn a_worker_that_dies_of_any_signal_is_an_error_and_the_next_one_works() {
    let runtime = Embedded::of(MOEPLAN);
    for (name, words) in [
        ("SEGV", "signal 11 (SIGSEGV)"),
        ("BUS", "signal 7 (SIGBUS)"),
        ("ILL", "signal 4 (SIGILL)"),
        ("FPE", "signal 8 (SIGFPE)"),
        ("KILL", "signal 9 (SIGKILL)"),
    ] {
        let mut worker = runtime.worker(&[]).expect("a worker");
        let id = worker.id();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            signal(name, id);
            // Rust takes a first SEGV or BUS for an overflow of the stack, which would come again; one that was sent does not.
            std::thread::sleep(Duration::from_millis(200));
            let _ = Command::new("kill")
                .args([&format!("-{name}"), &id.to_string()])
                .stderr(std::process::Stdio::null())
                .status();
        });
        let error = worker.ask(&Request::Sleep(600), "sleeping", HANG).expect_err("a dead worker");
        killer.join().expect("the signal was sent");
        // The numbers are Linux's; elsewhere some differ.
        assert!(!cfg!(target_os = "linux") || error.to_string().contains(words), "{name}: {error}");
        assert!(error.hint().is_some() && !worker.is_alive());
    }
    assert!(runtime.project(&[launch(tiny("gpt-oss-20b"), 0, "llama-server")]).remove(0).is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn the_program_outlives_a_worker_that_crashes() {
    let arguments = ["verify", "--measure-prompt", "64", "--measure-generate", "500000", "--"];
    let line = ["llama-server", "-c", "524288", "-np", "1", "-m"];
    let lock = tempfile::tempdir().expect("a folder");
    let mut program = Command::new(MOEPLAN)
        .args(arguments)
        .args(line)
        .arg(tiny("qwen3-30b-a3b"))
        .env("MOEPLAN_LOCK_DIR", lock.path())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("moeplan runs");
    let list = format!("/proc/{0}/task/{0}/children", program.id());
    let start = Instant::now();
    // One worker predicts and ends; the next one launches. Whichever is there crashes.
    while program.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(500));
        let children = std::fs::read_to_string(&list).unwrap_or_default();
        if let Some(worker) = children.split_whitespace().next().and_then(|id| id.parse().ok()) {
            signal("SEGV", worker);
        }
        if start.elapsed() > HANG {
            program.kill().expect("a child");
            panic!("it outlives no worker: it waits");
        }
    }
    let output = program.wait_with_output().expect("an end of its own");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("SIGSEGV") && said.contains("hint:") && !said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty(), "half an answer is none");
}

#[test]
fn a_worker_that_takes_too_long_is_stopped() {
    let mut worker = Embedded::of(MOEPLAN).worker(&[]).expect("a worker");
    let error = worker.ask(&Request::Sleep(600), "sleeping", Duration::from_millis(300)).expect_err("a time limit");
    assert!(error.kind == Kind::TimedOut, "{error}");
    assert!(!worker.is_alive());
}

#[test]
fn what_llama_cpp_refuses_is_an_error_with_its_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF but not really").expect("a file");
    let runtime = Embedded::of(MOEPLAN);
    let mut answers =
        runtime.project(&[launch(broken, 0, "llama-server"), launch(tiny("gpt-oss-20b"), 0, "llama-server")]);
    let good = answers.pop().expect("two answers");
    let bad = answers.pop().expect("two answers").expect_err("no model");
    assert!(bad.to_string().contains("broken.gguf"), "{bad}");
    assert!(good.is_ok(), "the next model is projected all the same: {good:?}");
}

#[test]
fn an_rpc_server_that_is_not_there_is_named() {
    let mut nowhere = launch(PathBuf::from("m.gguf"), 0, "llama-server");
    nowhere.run.rpc = vec!["127.0.0.1:1".to_string()];
    let error = Embedded::of(MOEPLAN).project(&[nowhere]).pop().expect("an answer").expect_err("no server");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[test]
fn who_has_no_card_is_told_of_software_devices() {
    let mut on_a_card = launch(tiny("gpt-oss-20b"), 0, "llama-server -ngl 99");
    on_a_card.machine.devices.push(Device::new("CUDA0".into(), Backend::Cuda, Bytes::mib(1024)));
    let error = Embedded::of(MOEPLAN).project(&[on_a_card]).pop().expect("an answer").expect_err("no card");
    assert!(error.hint().is_some_and(|hint| hint.contains("--backend rpc")), "{error:?}");
}

/// Whether a process still runs (a zombie does not).
#[cfg(target_os = "linux")]
fn runs(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[cfg(target_os = "linux")]
#[test]
fn no_child_is_left_when_its_owner_drops_it_or_is_killed() {
    let server = RpcServer::start(Path::new(MOEPLAN), None, 1).expect("a server");
    let id = server.id();
    assert!(runs(id));
    drop(server);
    assert!(!runs(id), "the server outlives its value");

    // A moeplan that is killed in the middle of a run: its worker and its server end by themselves.
    let arguments = ["verify", "--rpc-devices", "1", "--measure-prompt", "64", "--measure-generate", "500000", "--"];
    let line = ["llama-server", "-c", "524288", "-np", "1", "-ngl", "99", "-cmoe", "-m"];
    let lock = tempfile::tempdir().expect("a folder");
    let mut parent = Command::new(MOEPLAN)
        .args(arguments)
        .args(line)
        .arg(tiny("qwen3-30b-a3b"))
        .env("MOEPLAN_LOCK_DIR", lock.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("moeplan runs");
    let children = || {
        let list = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", parent.id())).unwrap_or_default();
        list.split_whitespace().filter_map(|id| id.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < HANG, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait("the server and the worker start", &|| children().len() >= 2);
    let ids = children();
    parent.kill().expect("a kill");
    parent.wait().expect("an end");
    wait("the children end by themselves", &|| ids.iter().all(|&id| !runs(id)));
}
