//! The embedded llama.cpp in a child process: a question a line on its standard input, an answer a line on its standard output. [I/O]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::process::{Log, Peer, Process, never, pause, wait};
use super::{DeviceInfo, Echo, End, Error, Kind, Launch, Observation, Projection, Runtime, Workload, telling};
use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host, Machine};
use crate::run::{LoadMode, RunConfig};

/// How long a projection may take: huge vocabularies take seconds.
const PROJECT_LIMIT: Duration = Duration::from_mins(2);
/// How long an RPC server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How often a free port is looked for: another program may take it first.
const PORT_ATTEMPTS: usize = 5;
/// How long a local RPC server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// What the worker puts before each answer, since llama.cpp prints lines of its own to standard output.
const MARK: &str = "moeplan-worker ";
/// How a refusal for a device that is not here begins.
pub(super) const LACKS: &str = "this llama.cpp has no device";

/// A question to the worker, which answers with its value, or with the words of llama.cpp's refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Which devices are there, those of RPC servers (`host:port`) too.
    Devices {
        rpc: Vec<String>,
    },
    Project(Launch),
    /// The context of the second launch, which drafts for the first.
    ProjectDraft(Box<[Launch; 2]>),
    Generate(Launch, Workload),
    /// End at once as a crash would, to test what becomes of it.
    Crash,
    /// Sleep for seconds, to test time limits.
    Sleep(u64),
}

#[derive(Debug)]
pub struct Worker {
    peer: Peer,
    log: Log,
    interrupted: fn() -> bool,
}

impl Worker {
    pub fn id(&self) -> u32 {
        self.peer.child.id()
    }

    /// Asks one question and waits for the answer, at most `limit`; `doing` says it in errors.
    pub fn ask(&mut self, request: &Request, doing: &str, limit: Duration) -> Result<Value, Error> {
        const WHO: &str = "llama.cpp";
        self.peer.say(&serde_json::to_string(request).map_err(bad)?);
        let answer = wait(limit, self.interrupted, |time| {
            let line = self.peer.lines.recv_timeout(time);
            self.log.new_lines();
            match line {
                Ok(line) => line.strip_prefix(MARK).map(|reply| Some(reply.to_string())),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(None),
            }
        });
        // What is waited for no longer is killed, and has then told all.
        let end = match &answer {
            Ok(Some(_)) => None,
            Ok(None) => Some(self.peer.child.wait().map_or(End::Unseen, End::from)),
            Err(_) => Some(self.peer.kill()),
        };
        self.log.new_lines();
        let log = self.log.tail();
        match (answer, end) {
            (Ok(Some(line)), _) => {
                serde_json::from_str::<Result<Value, String>>(&line).map_err(bad)?.map_err(|words| {
                    let message = format!("llama.cpp refused: {words} while {doing}{}", telling(&log));
                    let is_missing = words.starts_with(LACKS);
                    let hint = if is_missing { super::log::NO_DEVICE.hint } else { super::SEE_LOG };
                    Error::new(Kind::Refused(words), message).with_hint(hint)
                })
            }
            (Err(stopped), _) => Err(Error::stopped(stopped, WHO, doing, limit, &log)),
            (Ok(None), end) => Err(Error::died(WHO, doing, end.unwrap_or(End::Unseen), &log)),
        }
    }

    /// Asks for one projection: nothing mapped, as llama.cpp's own projections.
    fn project(&mut self, launch: &Launch) -> Result<Projection, Error> {
        self.ask_projection(launch, &Request::Project(unmapped(launch)))
    }

    fn ask_projection(&mut self, launch: &Launch, request: &Request) -> Result<Projection, Error> {
        let doing = format!("projecting `{}`", launch.model.display());
        serde_json::from_value(self.ask(request, &doing, PROJECT_LIMIT)?).map_err(bad)
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.peer.child.try_wait(), Ok(None))
    }
}

fn unmapped(launch: &Launch) -> Launch {
    let mut launch = launch.clone();
    launch.run.load_mode = LoadMode::None;
    launch
}

fn bad(error: serde_json::Error) -> Error {
    Error::bad_answer("the worker", error)
}

/// The llama.cpp that is linked into this program, each time in a process of its own.
#[derive(Debug, Clone)]
pub struct Embedded {
    pub program: PathBuf,
    pub limit: Duration,
    /// Variables of the command's own words.
    pub environment: BTreeMap<String, String>,
    pub echo: Option<Echo>,
    pub interrupted: fn() -> bool,
}

impl Embedded {
    pub fn here() -> Result<Self, Error> {
        Ok(Self::of(super::this_program()?))
    }

    /// `program`, which must be a moeplan with the feature.
    pub fn of(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            limit: Duration::from_mins(30),
            environment: BTreeMap::new(),
            echo: None,
            interrupted: never,
        }
    }

    /// A fresh worker. With RPC servers on this computer, idle threads must not spin: they would take the server's cores.
    pub fn worker(&self, rpc: &[String]) -> Result<Worker, Error> {
        if !cfg!(feature = "embedded") {
            return Err(Error::not_built());
        }
        rpc.iter().try_for_each(|endpoint| reach(endpoint))?;
        // The worker's log, unlinked at once.
        let log = tempfile::NamedTempFile::new().and_then(|file| Ok((file.reopen()?, file.into_file())));
        let (read, written) =
            log.map_err(|error| Error::setup("cannot keep llama.cpp's log", "is the disk full?").caused_by(error))?;
        let mut command = Command::new(&self.program);
        command.arg("worker").envs(&self.environment);
        if !rpc.is_empty() {
            command.env("OMP_WAIT_POLICY", "passive");
        }
        let peer = Peer::spawn(command, Stdio::from(written))?;
        Ok(Worker { peer, log: Log::new(read, self.echo), interrupted: self.interrupted })
    }
}

impl Embedded {
    /// What each second launch takes beside its target, whose weights and caches it may share: without allocating anything.
    pub fn project_drafts(&self, launches: &[(Launch, Launch)]) -> Vec<Result<Projection, Error>> {
        self.each(
            launches,
            |(target, _)| target.endpoints(),
            |worker, (target, draft)| {
                worker.ask_projection(draft, &Request::ProjectDraft(Box::new([unmapped(target), unmapped(draft)])))
            },
        )
    }

    /// Asks one worker as long as it lives and its RPC servers are those that are asked for.
    fn each<T>(
        &self,
        launches: &[T],
        endpoints: impl Fn(&T) -> Vec<String>,
        ask: impl Fn(&mut Worker, &T) -> Result<Projection, Error>,
    ) -> Vec<Result<Projection, Error>> {
        let mut current: Option<(Worker, Vec<String>)> = None;
        let project = |launch: &T| {
            let rpc = endpoints(launch);
            let kept = current.take().filter(|(_, known)| *known == rpc);
            let kept = kept.and_then(|(mut worker, rpc)| worker.is_alive().then_some((worker, rpc)));
            let mut worker = kept.map_or_else(|| self.worker(&rpc), |(worker, _)| Ok(worker))?;
            let answer = ask(&mut worker, launch);
            current = Some((worker, rpc));
            answer
        };
        launches.iter().map(project).collect()
    }
}

impl Runtime for Embedded {
    fn devices(&self, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error> {
        let request = Request::Devices { rpc: rpc.to_vec() };
        serde_json::from_value(self.worker(rpc)?.ask(&request, "listing devices", PROJECT_LIMIT)?).map_err(bad)
    }

    fn project(&self, launches: &[Launch]) -> Vec<Result<Projection, Error>> {
        self.each(launches, Launch::endpoints, Worker::project)
    }

    fn generate(&self, launch: &Launch, workload: &Workload) -> Result<Observation, Error> {
        let mut worker = self.worker(&launch.endpoints())?;
        let doing = format!("running `{}`", launch.model.display());
        let request = Request::Generate(launch.clone(), workload.clone());
        let mut seen: Observation = serde_json::from_value(worker.ask(&request, &doing, self.limit)?).map_err(bad)?;
        if seen.mapped_span.0 > 0 {
            // A mapped buffer is the file's span; what is asked for is the sum of its tensors, which a projection has.
            let exact = worker.project(launch)?.by_device();
            if let (Some(row), Some(exact)) = (seen.memory.get_mut("Host"), exact.get("Host")) {
                row.model = exact.model;
            }
        }
        Ok(seen)
    }
}

/// Answers until standard input ends. That ends the process at once, whatever it is doing: the parent is gone, or wants
/// it gone.
#[cfg(feature = "embedded")]
pub fn serve() -> anyhow::Result<()> {
    use std::io::{BufRead as _, Write as _};

    use super::embedded;

    let (send, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
        embedded::leave(0);
    });
    embedded::init();
    let mut known = std::collections::BTreeSet::new();
    let mut connect = |rpc: Vec<String>| {
        let mut new = rpc.into_iter().filter(|endpoint| known.insert(endpoint.clone()));
        new.try_for_each(|endpoint| embedded::add_rpc(&endpoint))
    };
    let mut answer = |line: &str| -> Result<Value, String> {
        let value =
            match serde_json::from_str(line).map_err(|error| format!("the question is not understood: {error}"))? {
                Request::Devices { rpc } => {
                    connect(rpc)?;
                    serde_json::to_value(embedded::devices())
                }
                Request::Project(launch) => {
                    connect(launch.endpoints())?;
                    serde_json::to_value(embedded::project(&launch)?)
                }
                Request::ProjectDraft(both) => {
                    let [target, draft] = *both;
                    connect(target.endpoints())?;
                    serde_json::to_value(embedded::project_draft(&target, &draft)?)
                }
                Request::Generate(launch, workload) => {
                    connect(launch.endpoints())?;
                    serde_json::to_value(embedded::generate(&launch, &workload)?)
                }
                Request::Crash => std::process::abort(),
                Request::Sleep(seconds) => {
                    std::thread::sleep(Duration::from_secs(seconds));
                    Ok(Value::Null)
                }
            };
        value.map_err(|error| error.to_string())
    };
    for line in requests {
        // llama.cpp's own lines may have left the line unfinished.
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{MARK}{}", serde_json::to_string(&answer(&line))?)?;
        out.flush()?;
    }
    Ok(())
}

/// Refuses an RPC server that nobody runs: llama.cpp itself would abort.
pub(super) fn reach(endpoint: &str) -> Result<(), Error> {
    let connected = endpoint.to_socket_addrs().and_then(|addresses| {
        let none = Err(std::io::Error::new(std::io::ErrorKind::NotFound, "no address"));
        addresses.fold(none, |answer, address| {
            answer.or_else(|_| TcpStream::connect_timeout(&address, CONNECT_LIMIT).map(drop))
        })
    });
    connected.map_err(|error| {
        Error::new(Kind::Unreachable, format!("no RPC server answers at `{endpoint}`"))
            .with_hint("start one there with `ggml-rpc-server -H HOST -p PORT`")
            .caused_by(error)
    })
}

/// A port of the loopback interface that is free now.
pub(super) fn free_port() -> Result<u16, Error> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    address.map(|address| address.port()).map_err(|error| {
        Error::setup("no free port was found at 127.0.0.1", "is a loopback address allowed here?").caused_by(error)
    })
}

/// A local RPC server: a software device, for machines without a GPU. It ends when this value is dropped, or when this program ends.
#[derive(Debug)]
pub struct RpcServer {
    endpoint: String,
    process: Process,
}

impl RpcServer {
    /// `moeplan` supervises; llama.cpp's own ggml-rpc-server serves, or a moeplan with feature `embedded` where there is none.
    pub fn start(moeplan: &Path, ggml: Option<&Path>, n_threads: u32) -> Result<Self, Error> {
        if ggml.is_none() && !cfg!(feature = "embedded") {
            return Err(Error::not_built());
        }
        let threads = n_threads.max(1).to_string();
        let mut log = Vec::new();
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port()?.to_string();
            let endpoint = format!("127.0.0.1:{port}");
            let mut command = Command::new(ggml.unwrap_or(moeplan));
            match ggml {
                Some(_) => command.args(["-H", "127.0.0.1", "-p", &port, "-t", &threads]),
                None => command.args(["worker", "--rpc-server", &endpoint, "--threads", &threads]),
            };
            command.env("OMP_WAIT_POLICY", "passive");
            let mut process = Process::start(moeplan, &command, None, None, Duration::ZERO)?;
            let listens = wait(START_LIMIT, never, |time| match process.ends_within(Duration::ZERO) {
                Some(_) => Some(false),
                None if reach(&endpoint).is_ok() => Some(true),
                None => pause(time),
            });
            if listens == Ok(true) {
                return Ok(Self { endpoint, process });
            }
            log = process.log.new_lines();
        }
        let message = format!("the local RPC server did not start{}", telling(&log));
        Err(Error::setup(message, "is a loopback address allowed here?"))
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// A machine of `n` software devices that have no server yet ([`bind_software_devices`] starts them). `total` is the
/// budget of each.
pub fn software_machine(n: u16, total: Bytes) -> Machine {
    let description = Some("software device".to_string());
    let device = |i| Device { description: description.clone(), ..Device::new(format!("RPC{i}"), Backend::Rpc, total) };
    Machine { devices: (0..n).map(device).collect(), host: Host::default() }
}

/// Starts a local server for each RPC device of the machine that names no endpoint, gives the device and the overrides
/// that name it the full name, and lists every RPC device's server in `run`. The servers live as long as the returned
/// values.
pub fn bind_software_devices(
    moeplan: &Path,
    ggml: Option<&Path>,
    machine: &mut Machine,
    run: &mut RunConfig,
    n_threads: u32,
) -> Result<Vec<RpcServer>, Error> {
    let mut servers = Vec::new();
    for device in machine.devices.iter_mut().filter(|device| device.backend == Backend::Rpc) {
        if device.endpoint().is_none() {
            let server = RpcServer::start(moeplan, ggml, n_threads)?;
            // The number in a buffer type's name counts the server's own devices: it has one.
            device.buffer = format!("RPC0[{}]", server.endpoint());
            for rule in run.overrides.iter_mut().filter(|rule| rule.buffer == device.name) {
                rule.buffer.clone_from(&device.buffer);
            }
            servers.push(server);
        }
        if let Some(endpoint) = device.endpoint().map(str::to_string)
            && !run.rpc.contains(&endpoint)
        {
            run.rpc.push(endpoint);
        }
    }
    Ok(servers)
}
