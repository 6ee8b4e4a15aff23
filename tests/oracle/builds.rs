//! The oracle for a build: our bytes by the rules of build N against a llama.cpp of that build, on launches drawn at random.
//!
//! `scripts/build-oracle N` builds it and calls this with `MOEPLAN_ORACLE` (its folder) and `MOEPLAN_BUILD`; without them nothing
//! is compared. `MOEPLAN_MODELS` takes every header of that name, all where it is empty, in place of those that rows are kept of;
//! `MOEPLAN_HEADERS` names another archive of testdata, and `MOEPLAN_ROWS` a file for the rows of `testdata/truth/builds.jsonl`.
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::build_rows::{
    self, ARCHITECTURES, LAUNCHES, LAUNCHES_OF_IK, MODELS, MODELS_OF_IK, OF_IK, Row, headers,
};
use moeplan::machine::Backend;
use moeplan::memory::{self, MemoryByDevice};
use moeplan::model::Model;
use moeplan::run::{Choice as _, RunConfig, numbers};

/// A server of one software device, ended with the test.
struct Server(Child, String);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

fn server(folder: &Path) -> Server {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let mut command = Command::new(folder.join("rpc-server"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("the build's rpc-server");
    let endpoint = format!("127.0.0.1:{port}");
    while TcpStream::connect(&endpoint).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Server(child, endpoint)
}

/// A launch as the oracle reads it.
fn line(path: &Path, run: &RunConfig, n_devices: usize, servers: &[&str], hparams: &moeplan::model::HParams) -> String {
    let numbers = numbers(run, hparams);
    let flag = u8::from;
    let join = |list: Vec<String>, separator: &str| list.join(separator);
    let rules = run.overrides.iter().map(|rule| format!("{}={}", rule.pattern, rule.buffer)).collect();
    let words = [
        ("m", path.display().to_string()),
        ("devices", n_devices.to_string()),
        ("rpc", servers.join(",")),
        ("ngl", run.n_gpu_layers.to_string()),
        ("ts", join(run.tensor_split.iter().map(ToString::to_string).collect(), ",")),
        ("ot", join(rules, ";")),
        ("repack", flag(run.repack).to_string()),
        ("c", numbers.n_ctx.to_string()),
        ("b", numbers.n_batch.to_string()),
        ("ub", numbers.n_ubatch.to_string()),
        ("np", numbers.n_seq_max.to_string()),
        ("kvu", flag(numbers.kv_unified).to_string()),
        ("fa", run.flash_attn.number().to_string()),
        ("ctk", run.type_k.to_string()),
        ("ctv", run.type_v.to_string()),
        ("kqv", flag(run.offload_kqv).to_string()),
        ("offload", flag(run.op_offload).to_string()),
        ("swa", flag(run.swa_full).to_string()),
        ("outputs", numbers.n_outputs_max.to_string()),
    ];
    words.map(|(key, value)| format!("{key}={value}")).join(" ")
}

#[test]
fn builds() {
    let (Some(folder), Ok(build)) = (std::env::var_os("MOEPLAN_ORACLE"), std::env::var("MOEPLAN_BUILD")) else {
        return;
    };
    let folder = PathBuf::from(folder);
    if build == "ik" {
        return of_ik(&folder);
    }
    let build: u32 = build.parse().expect("the number of a build");
    let backend = if folder.join("rpc-server").exists() { Backend::Rpc } else { Backend::Vulkan };
    let servers: Vec<Server> = (0..2).filter(|_| backend == Backend::Rpc).map(|_| server(&folder)).collect();
    compare(&folder, ARCHITECTURES, &MODELS, &LAUNCHES, |path, model, launch| {
        let (machine, run) = build_rows::launch(launch, build, backend);
        let endpoints: Vec<&str> = servers[..run.rpc.len()].iter().map(|server| server.1.as_str()).collect();
        let line = line(path, &run, machine.devices.len(), &endpoints, &model.hparams);
        (line, memory::forecast(model, &machine, &run).map(|forecast| forecast.target).ok(), (build, backend))
    });
}

/// ik_llama.cpp's words go to it as they are: it reads them itself.
fn of_ik(folder: &Path) {
    compare(folder, OF_IK, &MODELS_OF_IK, &LAUNCHES_OF_IK, |path, model, launch| {
        let (machine, run) = build_rows::launch_of_ik(launch, model);
        let sizes: Vec<String> = machine.devices.iter().map(|device| device.free.0.to_string()).collect();
        let sizes = if sizes.is_empty() { "0".to_string() } else { sizes.join(",") };
        let words = launch.split_once(' ').expect("devices and words").1;
        // The headers' tokenizer is one that it does not know.
        // It derives some of their weights from others.
        let reads = if model.hparams.arch().mla { "" } else { "--dry-run" };
        let line = format!("{sizes} {words} {reads} -m {} --override-kv tokenizer.ggml.model=str:none", path.display());
        (
            line,
            memory::forecast(model, &machine, &run).map(|forecast| forecast.target).ok(),
            (build_rows::BUILD_OF_IK, Backend::Cuda),
        )
    });
}

/// Asks the oracle about every launch of the models that rows are kept of, or those of `MOEPLAN_MODELS`. `ask` gives the oracle's line, our
/// answer, and whose it is.
fn compare(
    folder: &Path,
    archive: &str,
    models: &[&str],
    launches: &[&str],
    ask: impl Fn(&Path, &Model, &str) -> (String, Option<MemoryByDevice>, (u32, Backend)),
) {
    let other = std::env::var("MOEPLAN_HEADERS");
    let headers = headers(other.as_deref().unwrap_or(archive));
    // An assertion that fails is an answer; ggml would have gdb say more, between the answers.
    let mut child = Command::new(folder.join("oracle"))
        .env("GGML_NO_BACKTRACE", "1")
        // Mesa's device on the processor, twice.
        .env("GGML_VK_VISIBLE_DEVICES", "0,0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the build's oracle");
    let (mut asked, mut answers) =
        (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")).lines());
    let wanted = std::env::var("MOEPLAN_MODELS").ok();
    let is_wanted = |name: &&str| wanted.as_ref().map_or(models.contains(name), |wanted| name.contains(wanted));
    let mut rows = std::env::var_os("MOEPLAN_ROWS").map(|path| std::fs::File::create(path).expect("a new file"));
    let (mut tally, mut refused) = (Tally::default(), 0);
    for name in headers.names().filter(is_wanted) {
        let (path, model) = headers.get(name);
        for launch in launches {
            let (line, ours, (build, backend)) = ask(path, model, launch);
            writeln!(asked, "{line}").expect("the oracle listens");
            let theirs = answers.next().expect("an answer").expect("a line");
            let theirs: Option<MemoryByDevice> = serde_json::from_str(&theirs).unwrap_or_default();
            let (Some(ours), Some(theirs)) = (ours, theirs) else {
                refused += 1;
                continue;
            };
            tally.add(name, launch, &ours, &theirs);
            if let Some(file) = &mut rows {
                let row = Row { build, backend, model: name.to_string(), launch: launch.to_string(), memory: theirs };
                writeln!(file, "{}", serde_json::to_string(&row).expect("JSON")).expect("written");
            }
        }
    }
    drop(asked);
    child.wait().expect("the oracle ends");
    eprintln!("{} rows of {} launches, {refused} refused or not counted", tally.rows[0].0, tally.launches);
    for (term, (rows, equal, worst)) in ["weights", "context", "compute"].iter().zip(&tally.rows) {
        eprintln!("  {term:8} {equal} of {rows} equal to the byte, largest error {worst}");
    }
}

/// Rows compared, equal ones and the largest error, by term.
#[derive(Default)]
struct Tally {
    launches: usize,
    rows: [(usize, usize, i64); 3],
}

impl Tally {
    fn add(&mut self, model: &str, launch: &str, ours: &MemoryByDevice, theirs: &MemoryByDevice) {
        self.launches += 1;
        let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for key in keys {
            let [ours, theirs] = [ours, theirs].map(|table| table.get(key).copied().unwrap_or_default());
            let terms =
                |row: memory::MemoryBreakdown| [row.model, row.context, row.compute].map(|bytes| bytes.0.cast_signed());
            for (i, (a, b)) in terms(ours).into_iter().zip(terms(theirs)).enumerate() {
                let (rows, equal, worst) = &mut self.rows[i];
                *rows += 1;
                *equal += usize::from(a == b);
                if (a - b).abs() > worst.abs() {
                    *worst = a - b;
                }
                if a != b {
                    eprintln!(
                        "{model} [{launch}] {key} {}: {a} predicted, {b} there ({:+})",
                        ["weights", "context", "compute"][i],
                        a - b
                    );
                }
            }
        }
    }
}
