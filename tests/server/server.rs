//! llama-server as a runtime: against a fake one that fails on command, and against the real one where there is one.
//!
//! The real one is `MOEPLAN_LLAMA_SERVER`, or what `scripts/llama-server` has built; without either those tests say so and pass.

#![expect(clippy::print_stderr, reason = "a test's report")]

use crate::support::schemas;
use crate::{MOEPLAN, fake, tiny, until};

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use moeplan::machine::Machine;
use moeplan::run::{Program, RunConfig, parse};
use moeplan::runtime::client::Request;
use moeplan::runtime::server::{Server, find, probe};
use moeplan::runtime::{End, Launch, Prompt, Runtime as _, Workload, machine_of};
use moeplan::suggest::Hint as _;

fn failing(mode: &str) -> Server {
    let build = probe(&fake()).expect("a version");
    let mut server = Server::of(MOEPLAN.into(), build);
    server.extra = vec!["--fake".to_string(), mode.to_string()];
    server.limit = Duration::from_mins(1);
    // What is to hang is given up soon; nothing else is, however busy the machine.
    server.stall = if mode == "hang" { Duration::from_secs(3) } else { Duration::from_mins(1) };
    // A server that works on what nobody waits for is not waited for.
    server.patience = if mode == "hang-mid-stream" { Duration::from_hours(1) } else { Duration::from_secs(2) };
    server
}

fn launch(model: &Path) -> Launch {
    let machine = Machine { devices: Vec::new(), host: machine_of(&[]).host };
    let run = RunConfig { n_ctx: 512, n_threads: Some(1), fit: false, ..RunConfig::default() };
    Launch { model: model.to_path_buf(), run, machine }
}

fn request(n_predict: u32) -> Request {
    Request { prompt: serde_json::json!([5, 6, 7]), n_predict, cache_prompt: false, probabilities: false }
}

/// Whether a process is there (and is no zombie).
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().expect("kill").success(), "kill {signal} {pid}");
}

/// The process id that a fake server has left.
fn pid_of(state: &Path) -> String {
    let file = state.join("pid");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    assert!(until(|| !read().is_empty()), "no fake server came up");
    read()
}

#[test]
fn a_run_is_measured_by_the_servers_own_clock() {
    let workload = Workload { prompt: Prompt::Tokens(512), depth: 0, n_generate: 6, repetitions: 3 };
    let seen = failing("").generate(&launch(Path::new("m.gguf")), &workload).expect("a measurement");
    assert_eq!((&seen.speed.pp, &seen.speed.tg), (&vec![2000.0; 3], &vec![100.0; 3]));
    assert_eq!(
        (seen.text.as_str(), seen.tokens.len(), seen.speed.first_token.len()),
        ("\u{f6}0\u{f6}1\u{f6}2\u{f6}3\u{f6}4\u{f6}5", 6, 3)
    );
    assert_eq!((seen.speed.n_prompt, seen.speed.depth, seen.runtime.build), (512, 0, 11434));
    assert!(seen.memory["Host"].context.0 > 0 && seen.mapped_span.0 > 0, "{:?}", seen.memory);
}

#[test]
fn every_way_to_fail_at_the_start_is_told_apart() {
    for (mode, expected, hint) in [
        (
            "oom",
            "llama-server did not start: out of memory: 12.00 GiB for weights cannot be allocated on CUDA0",
            "-c or -ub",
        ),
        ("bad-model", "llama-server did not start: the model cannot be loaded: tensor 'token_embd.weight'", "inspect"),
        ("crash", "llama-server died while loading (signal 6 (SIGABRT))", "-v"),
        ("silent-exit", "llama-server died while loading (exit code 3)", "-v"),
        ("hang", "llama-server hangs while loading: nothing has happened for 3 s", "disk"),
    ] {
        let error = failing(mode).start(&launch(Path::new("m.gguf"))).expect_err(mode);
        assert!(error.to_string().starts_with(expected), "{mode}: {error}");
        assert!(error.hint().is_some_and(|text| text.contains(hint)), "{mode}: {:?}", error.hint());
    }
}

#[test]
fn a_port_that_was_taken_meanwhile_is_not_the_end() {
    let state = tempfile::tempdir().expect("a folder");
    let mut server = failing("port-taken-once");
    server.extra.extend(["--fake-state".to_string(), state.path().display().to_string()]);
    let mut running = server.start(&launch(Path::new("m.gguf"))).expect("the second port");
    assert_eq!(running.complete(&request(6)).expect("a reply").tokens.len(), 6);
    let pid = running.id().to_string();
    running.stop();
    assert!(!lives(&pid));
}

#[test]
fn a_log_of_noise_does_no_harm() {
    let mut running = failing("garbage-log").start(&launch(Path::new("m.gguf"))).expect("a server");
    assert!(running.complete(&request(6)).is_ok());
}

#[test]
fn every_way_to_fail_while_answering_is_told_apart() {
    for (mode, expected) in [
        ("die-mid-stream", "llama-server died while answering (signal 6 (SIGABRT))"),
        (
            "card-error-mid-stream",
            "llama-server died while answering: CUDA error: an illegal instruction was encountered (signal 6 (SIGABRT))",
        ),
        ("cut-mid-stream", "llama-server's answer cannot be read: the stream broke off"),
        (
            "garbage-stream",
            "llama-server's answer cannot be read: `\u{fffd}\u{fffd}{{{` is not an event of a completion",
        ),
        ("error-mid-stream", "llama-server refused the request: context is full (status 500)"),
        (
            "refuse",
            "llama-server refused the request: request (9 tokens) exceeds the available context size (status 400)",
        ),
        ("endless-line", "llama-server's answer cannot be read: a line of the stream is longer than 64 MiB"),
        ("hang-mid-stream", "llama-server was stopped after 10 s while answering"),
    ] {
        let mut server = failing(mode);
        if mode == "hang-mid-stream" {
            server.limit = Duration::from_secs(10);
        }
        let mut running = server.start(&launch(Path::new("m.gguf"))).expect(mode);
        let pid = running.id().to_string();
        let error = running.complete(&request(6)).expect_err(mode);
        assert!(error.to_string().starts_with(expected), "{mode}: {error}");
        drop(running);
        assert!(!lives(&pid), "{mode} left its server behind");
    }
    let mut running = failing("huge-line").start(&launch(Path::new("m.gguf"))).expect("a server");
    assert!(running.complete(&request(6)).expect("a reply").text.len() > 8 << 20);
}

#[test]
fn a_server_that_does_not_want_to_stop_is_killed() {
    let mut running = failing("stubborn").start(&launch(Path::new("m.gguf"))).expect("a server");
    assert_eq!(running.stop(), End::Signal(9));
}

#[test]
fn a_server_that_is_killed_while_it_loads_is_seen_at_once() {
    let state = tempfile::tempdir().expect("a folder");
    let mut server = failing("slow");
    server.extra.extend(["--fake-state".to_string(), state.path().display().to_string()]);
    let folder = state.path().to_path_buf();
    let killer = std::thread::spawn(move || kill("-9", &pid_of(&folder)));
    let error = server.start(&launch(Path::new("m.gguf"))).expect_err("killed");
    killer.join().expect("the killer");
    assert!(error.to_string().starts_with("llama-server died while loading (signal 9 (SIGKILL))"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("memory")));
}

#[test]
fn the_wish_to_stop_stops_what_runs() {
    let mut server = failing("hang");
    server.interrupted = || true;
    let error = server.start(&launch(Path::new("m.gguf"))).expect_err("interrupted");
    assert!(error.is_interrupted());
}

/// `moeplan run` on a fake server, which leaves its process id in `state`.
fn run_fake(model: &Path, state: &Path) -> Child {
    Command::new(MOEPLAN)
        .args(["run", "--backend", "cpu", "--ctx-size", "512", "--llama-server"])
        .arg(fake())
        .arg(model)
        .args(["--", "--fake", "x", "--fake-state"])
        .arg(state)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("moeplan")
}

#[test]
fn no_server_outlives_moeplan() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    for (signal, code) in [("-9", None), ("-INT", Some(130)), ("-TERM", Some(130))] {
        let state = tempfile::tempdir().expect("a folder");
        let mut moeplan = run_fake(&model, state.path());
        let server = pid_of(state.path());
        // Once it says that it is ready, its handler of signals is in place.
        let mut said = [0; 1];
        let mut stderr = moeplan.stderr.take().expect("stderr");
        let mut all = String::new();
        while !all.contains("ready after") && stderr.read(&mut said).is_ok_and(|n| n == 1) {
            all.push(char::from(said[0]));
        }
        assert!(lives(&server), "{signal}: {all}");
        kill(signal, &moeplan.id().to_string());
        assert_eq!(moeplan.wait().expect("an end").code(), code, "{signal}");
        assert!(until(|| !lives(&server)), "{signal}: the server lives on");
    }
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    let verify = |more: &[&str]| -> Output {
        Command::new(MOEPLAN)
            .args(["verify", "--runtime", "server", "--backend", "cpu", "--ctx-size", "512", "--llama-server"])
            .arg(fake())
            .arg(&model)
            .args(more)
            .env("MOEPLAN_LOCK_DIR", folder.path())
            .output()
            .expect("moeplan")
    };
    for (more, expected) in [
        (["-o", "/dev/full"], "cannot write `/dev/full`"),
        (["--server-log", "/dev/full"], "llama-server's log shows no memory"),
        (["--server-log", "/nowhere/log"], "cannot write `/nowhere/log`: there is no folder `/nowhere`"),
    ] {
        let output = verify(&more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_command_is_launched_as_it_is_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    let verify = |words: &str| -> Output {
        Command::new(MOEPLAN)
            .args(["verify", "--json", "--runtime", "server", "--llama-server"])
            .arg(fake())
            .args(["--", "llama-server", "-m"])
            .arg(&model)
            .args(["-c", "512", "-np", "1"])
            .args(words.split(' '))
            .env("MOEPLAN_LOCK_DIR", folder.path())
            .output()
            .expect("moeplan")
    };
    for (words, error, hint) in [
        ("--frobnicate --jinja", "`--frobnicate` is not a flag of llama.cpp b11434", "hint:"),
        ("--no-mmap --mlock", "`--no-mmap` was removed", "--load-mode mlock"),
        ("--moe-cache-mib 2", "`--moe-cache-mib` is not a flag of llama.cpp b11434", "11480"),
        ("-ctv q8_0 -fa off", "quantized-v-without-flash-attention", "-fa on"),
    ] {
        let output = verify(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{words}: {said}");
        assert!(said.contains("is not launched") && said.contains(error) && said.contains(hint), "{words}: {said}");
    }
    // Variables in front of the program are the launch's.
    let state = tempfile::tempdir().expect("a folder");
    let output = Command::new(MOEPLAN)
        .args(["verify", "--runtime", "server", "--llama-server"])
        .arg(fake())
        .args(["--", "FAKE_LLAMA_SERVER=hang-at-1000"])
        .arg(format!("FAKE_LLAMA_SERVER_STATE={}", state.path().display()))
        .args(["llama-server", "-c", "512", "-np", "1", "-m"])
        .arg(&model)
        .env("MOEPLAN_LOCK_DIR", folder.path())
        .output()
        .expect("moeplan");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(state.path().join("requests").exists(), "{said}");
    let output = verify("--jinja --temp 0.5 --spec-type ngram-simple -lv 0");
    let said = String::from_utf8_lossy(&output.stderr);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    schemas::assert_valid(&document);
    let command: Vec<&str> = document["command"].as_array().expect("words").iter().filter_map(|w| w.as_str()).collect();
    assert_eq!(command.first().map(Path::new), Some(fake().as_path()));
    assert!(command.ends_with(&["--jinja", "--temp", "0.5", "--spec-type", "ngram-simple"]), "{command:?}");
    assert_eq!(command.iter().filter(|word| **word == "--spec-type").count(), 1, "{command:?}");
    assert!(said.contains("launched without -lv"), "{said}");
}

/// The real server, if there is one here.
fn real() -> Option<Server> {
    let named = std::env::var_os("MOEPLAN_LLAMA_SERVER").map(PathBuf::from);
    let found = find(named.as_deref()).and_then(|program| probe(&program));
    match found {
        Ok(build) => Some(Server::of(MOEPLAN.into(), build)),
        Err(error) => {
            eprintln!("not tested with the real llama-server: {error}");
            None
        }
    }
}

#[test]
fn the_real_server_takes_what_is_predicted() {
    let Some(server) = real() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    let cases: [&[&str]; 4] = [
        &["--backend", "rpc", "--vram", "9M", "--margin", "0", "--ctx-size", "1024"],
        &["--backend", "rpc", "--vram", "64M,64M", "--margin", "0", "--ctx-size", "512", "--measure-depth", "128"],
        &["--backend", "rpc", "--vram", "64M", "--margin", "0", "--ctx-size", "512", "--embeddings"],
        &["--backend", "rpc", "--vram", "64M", "--margin", "0", "--load-mode", "none", "--strategy", "experts-on-host"],
    ];
    for case in cases {
        let output = Command::new(MOEPLAN)
            .args(["verify", "--json", "--runtime", "server", "--threads", "1", "--llama-server"])
            .arg(&server.build.program)
            .args(case)
            .arg(&model)
            .env("MOEPLAN_LOCK_DIR", folder.path())
            .output()
            .expect("moeplan");
        let said = String::from_utf8_lossy(&output.stderr);
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        schemas::assert_valid(&document);
        let rows = document["comparison"].as_array().expect("rows");
        let wrong: Vec<_> = rows.iter().filter(|row| row["ok"] != true).collect();
        assert!(output.status.success() && wrong.is_empty(), "{case:?}: {wrong:?} {said}");
        let on_device = |row: &&serde_json::Value| row["quantity"].as_str().is_some_and(|name| name.starts_with("RPC"));
        assert!(rows.iter().filter(on_device).any(|row| row["measured"].as_u64() > Some(1 << 20)), "{rows:?}");
        assert_eq!(document["speed"]["pp"].as_array().map(Vec::len), Some(3), "{document}");
        assert_eq!(document["finite"], true);
        let depth = if case.contains(&"--measure-depth") { 128 } else { 0 };
        assert_eq!(document["speed"]["depth"], depth, "{document}");
    }
}

#[test]
fn the_real_server_fails_in_ways_that_are_known() {
    let Some(mut server) = real() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    let gone = server.start(&launch(&folder.path().join("deleted.gguf"))).expect_err("no file");
    assert!(gone.to_string().contains("the model cannot be loaded"), "{gone}");

    let cut = folder.path().join("cut.gguf");
    let bytes = std::fs::read(&model).expect("the model");
    std::fs::write(&cut, bytes.get(..bytes.len() / 2).expect("half")).expect("half a model");
    let error = server.start(&launch(&cut)).expect_err("half a file");
    assert!(error.to_string().contains("the model cannot be loaded"), "{error}");

    let mut odd = launch(&model);
    odd.run = parse::command(
        &["llama-server", "-c", "512", "-fit", "off", "-ot", "x=CUDA9"].map(str::to_string),
        &BTreeMap::new(),
    )
    .expect("a command")
    .run;
    let error = server.start(&odd).expect_err("no such buffer");
    assert!(error.to_string().contains("rejects the command line"), "{error}");

    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    server.extra = vec!["--port".to_string(), port.to_string()];
    let error = server.start(&launch(&model)).expect_err("a taken port");
    assert!(error.to_string().contains("its port is taken"), "{error}");
    odd.run = RunConfig { program: Program::Bench, ..RunConfig::default() };
    assert!(server.start(&odd).is_err_and(|error| error.is_of_every_launch()));
}

#[test]
fn the_real_server_killed_mid_stream_is_said_to_be() {
    let Some(server) = real() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut here = launch(&tiny(folder.path()));
    here.run.n_ctx = 4096;
    // Repacked weights of this build are not what is tested here.
    here.run.repack = false;
    let mut running = server.start(&here).expect("a server");
    let reply = running.complete(&request(4)).expect("a reply");
    assert_eq!((reply.tokens.len(), reply.timings.prompt_n, reply.timings.predicted_n), (4, 3, 4));
    let pid = running.id().to_string();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        kill("-9", &pid);
    });
    let error = running.complete(&request(4000)).expect_err("killed");
    killer.join().expect("the killer");
    assert!(error.to_string().starts_with("llama-server died while answering (signal 9 (SIGKILL))"), "{error}");
}

/// What needs the weights of a model of the hub takes them from the cache, or says what fetches them.
#[test]
fn a_model_of_the_hub_is_measured_where_a_cache_has_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    let verify = || {
        let mut command = Command::new(MOEPLAN);
        command.args([
            "verify",
            "--runtime",
            "server",
            "--backend",
            "cpu",
            "-c",
            "512",
            "hf:o/r:Q4_K_M",
            "--llama-server",
        ]);
        command.arg(fake()).env("HOME", folder.path()).env("XDG_CACHE_HOME", folder.path().join(".cache"));
        for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE"] {
            command.env_remove(name);
        }
        let output = command.output().expect("moeplan");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = verify();
    assert!(code == Some(2) && said.contains("`moeplan run hf:o/r:Q4_K_M` lets llama-server download"), "{said}");
    let cache = folder.path().join(".cache/huggingface/hub/models--o--r/snapshots").join("a".repeat(40));
    std::fs::create_dir_all(&cache).expect("a folder");
    let cached = cache.join("m-Q4_K_M.gguf");
    std::fs::rename(model, &cached).expect("a file");
    let (_, said) = verify();
    assert!(said.contains(&format!("loading {} in ", cached.display())), "{said}");
}

/// The context is the command's, and the model's is another.
#[test]
fn a_depth_beyond_what_the_model_was_trained_on_is_refused_with_that_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny(folder.path());
    let mut command = Command::new(MOEPLAN);
    command.args([
        "bench",
        "--runtime",
        "server",
        "--backend",
        "cpu",
        "-c",
        "1024",
        "--depth",
        "4096",
        "--llama-server",
    ]);
    let output = command.arg(fake()).arg(model).env("XDG_STATE_HOME", folder.path()).output().expect("moeplan");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("room for 1024"), "{said}");
    assert!(said.contains("the model was trained on 4096 tokens, and llama-server takes no more"), "{said}");
}
