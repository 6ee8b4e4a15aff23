//! The parent's side of the worker process: start, ask with a time limit, keep its last words, kill. [I/O]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::wire::{Generation, MARK, Reply, Request};
use super::{
    DeviceInfo, DeviceUsed, EMBEDDED_BUILD, Error, Job, Launch, Observation, Projection, Runtime, RuntimeInfo,
    Workload, unmapped,
};

/// How many of the worker's last log lines are kept.
const TAIL_LINES: usize = 60;
/// The longest log line that is kept, in bytes.
const TAIL_LINE_BYTES: usize = 400;
/// How long a projection may take: huge vocabularies take seconds.
const PROJECT_LIMIT: Duration = Duration::from_mins(2);
/// How often it is looked whether the person wants to stop.
const LOOK: Duration = Duration::from_millis(50);
/// How long an RPC server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// What takes a log line of llama.cpp; strangers' text.
pub type Echo = fn(&str);

/// A running worker. Killed when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    replies: Receiver<String>,
    tail: Arc<Mutex<VecDeque<String>>>,
    interrupted: fn() -> bool,
}

impl Worker {
    /// Starts `program worker ARGUMENTS…`. Each line of its log goes to `echo` as it comes.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        echo: Option<Echo>,
    ) -> Result<Self, Error> {
        if !cfg!(feature = "embedded") {
            return Err(Error::NotBuilt);
        }
        let mut child = Command::new(program)
            .arg("worker")
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program: program.display().to_string(), source })?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let stdin = child.stdin.take();
        let (send, replies) = channel();
        if let Some(stderr) = child.stderr.take() {
            let tail = Arc::clone(&tail);
            std::thread::spawn(move || keep_tail(stderr, &tail, echo));
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Some(reply) = line.strip_prefix(MARK)
                        && send.send(reply.to_string()).is_err()
                    {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, stdin, replies, tail, interrupted: || false })
    }

    /// The worker's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks one question and waits for the answer, at most `limit`; `doing` says it in errors.
    pub fn ask(&mut self, request: &Request, doing: &str, limit: Duration) -> Result<Reply, Error> {
        let question = serde_json::to_string(request).map_err(|error| Error::BadReply(error.to_string()))?;
        if let Some(stdin) = &mut self.stdin {
            // A worker that has died already is found out below, with its last words.
            let _ = writeln!(stdin, "{question}").and_then(|()| stdin.flush());
        }
        let begin = Instant::now();
        let answer = loop {
            match self.replies.recv_timeout(LOOK.min(limit)) {
                Err(RecvTimeoutError::Timeout) if begin.elapsed() < limit && !(self.interrupted)() => {}
                answer => break answer,
            }
        };
        if answer == Err(RecvTimeoutError::Disconnected) {
            // The thread that reads the log may be a moment behind, and so may Ctrl-C, which a terminal gives to the worker too.
            std::thread::sleep(Duration::from_millis(50));
        }
        if answer.is_err() && (self.interrupted)() {
            self.kill();
            return Err(super::server::Error::Interrupted.into());
        }
        match answer {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(Reply::Refused(message)) => {
                    Err(Error::Refused { doing: doing.into(), message, log: self.last_words() })
                }
                Ok(reply) => Ok(reply),
                Err(_) => Err(Error::BadReply(line)),
            },
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                Err(Error::TimedOut { doing: doing.into(), seconds: limit.as_secs(), log: self.last_words() })
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map_or_else(|error| error.to_string(), how_it_ended);
                Err(Error::Died { doing: doing.into(), status, log: self.last_words() })
            }
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its last log lines.
    pub fn last_words(&self) -> Vec<String> {
        self.tail.lock().map(|tail| tail.iter().cloned().collect()).unwrap_or_default()
    }

    fn kill(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads a log to its end and keeps the last lines.
fn keep_tail(log: impl std::io::Read, tail: &Mutex<VecDeque<String>>, echo: Option<Echo>) {
    for line in BufReader::new(log).split(b'\n').map_while(Result::ok) {
        let mut line = String::from_utf8_lossy(&line).into_owned();
        if let Some(echo) = echo {
            echo(&line);
        }
        if line.len() > TAIL_LINE_BYTES {
            let end = (0..=TAIL_LINE_BYTES).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
            line.truncate(end);
        }
        if let Ok(mut tail) = tail.lock() {
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    }
}

/// How a process ended, in words.
fn how_it_ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("signal {signal}{}", super::signal_name(signal));
    }
    status.code().map_or_else(|| "no exit code".to_string(), |code| format!("exit code {code}"))
}

/// The llama.cpp that is linked into this program, each time in a process of its own.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// The moeplan program to run as a worker.
    pub program: PathBuf,
    /// How long a run may take.
    pub limit: Duration,
    /// Where llama.cpp's log lines go as they come.
    pub echo: Option<Echo>,
    /// Whether the person wants to stop.
    pub interrupted: fn() -> bool,
}

impl Embedded {
    /// This very program.
    pub fn here() -> Result<Self, Error> {
        Ok(Self::of(super::this_program()?))
    }

    /// `program`, which must be a moeplan with the feature.
    pub fn of(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), limit: Duration::from_mins(30), echo: None, interrupted: || false }
    }

    /// A fresh worker. With RPC servers on this computer, idle threads must not spin: they would take the server's cores.
    pub fn worker(&self, rpc: &[String]) -> Result<Worker, Error> {
        for endpoint in rpc {
            reach(endpoint)?;
        }
        let environment: &[(&str, &str)] = if rpc.is_empty() { &[] } else { &[("OMP_WAIT_POLICY", "passive")] };
        let mut worker = Worker::start(&self.program, &[], environment, self.echo)?;
        worker.interrupted = self.interrupted;
        Ok(worker)
    }
}

impl Runtime for Embedded {
    fn devices(&self, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error> {
        let request = Request::Devices { rpc: rpc.to_vec() };
        match self.worker(rpc)?.ask(&request, "listing devices", PROJECT_LIMIT)? {
            Reply::Devices(devices) => Ok(devices),
            other => Err(Error::BadReply(format!("{other:?}"))),
        }
    }

    fn project(&self, launches: &[Launch]) -> Vec<Result<Projection, Error>> {
        let mut current: Option<(Worker, Vec<String>)> = None;
        let mut answers = Vec::with_capacity(launches.len());
        for launch in launches {
            let job = Job::of(&unmapped(launch));
            let kept =
                current.take().and_then(|(mut worker, rpc)| (rpc == job.rpc && worker.is_alive()).then_some(worker));
            let worker = kept.map_or_else(|| self.worker(&job.rpc), Ok);
            let answer = worker.and_then(|mut worker| {
                let rpc = job.rpc.clone();
                let answer = project(&mut worker, job);
                current = Some((worker, rpc));
                answer
            });
            answers.push(answer);
        }
        answers
    }

    fn generate(&self, launch: &Launch, workload: &Workload) -> Result<Observation, Error> {
        let job = Job::of(launch);
        let mut worker = self.worker(&job.rpc)?;
        let doing = format!("running `{}`", launch.model.display());
        let backend = backend(launch);
        let generation = match worker.ask(&Request::Generate(job, workload.clone()), &doing, self.limit)? {
            Reply::Generation(generation) => *generation,
            other => return Err(Error::BadReply(format!("{other:?}"))),
        };
        let mut memory = generation.memory.by_device();
        let mapped_span = generation.memory.mapped_span();
        if mapped_span.0 > 0 {
            // A mapped buffer is the file's span; what is asked for is the sum of its tensors, which a projection has.
            let exact = project(&mut worker, Job::of(&unmapped(launch)))?.by_device();
            if let (Some(row), Some(exact)) = (memory.get_mut("Host"), exact.get("Host")) {
                row.model = exact.model;
            }
        }
        Ok(observation(generation, memory, mapped_span, backend))
    }
}

/// Asks for one projection.
fn project(worker: &mut Worker, job: Job) -> Result<Projection, Error> {
    let doing = format!("projecting `{}`", job.model.display());
    match worker.ask(&Request::Project(job), &doing, PROJECT_LIMIT)? {
        Reply::Projection(projection) => Ok(projection),
        other => Err(Error::BadReply(format!("{other:?}"))),
    }
}

fn observation(
    generation: Generation,
    memory: crate::memory::MemoryByDevice,
    mapped_span: crate::bytes::Bytes,
    backend: String,
) -> Observation {
    Observation {
        runtime: RuntimeInfo { program: "embedded".to_string(), build: EMBEDDED_BUILD, backend },
        command: Vec::new(),
        memory,
        resolution: crate::memory::MemoryByDevice::new(),
        device_used: DeviceUsed::default(),
        mapped_span,
        process: generation.process,
        process_before: generation.before,
        load_seconds: generation.load_seconds,
        n_prompt: generation.n_prompt,
        depth: generation.depth,
        first_token: Vec::new(),
        pp: generation.pp,
        tg: generation.tg,
        text: generation.text,
        tokens: generation.tokens,
        finite: generation.finite,
        interrupted: false,
    }
}

/// The backend of the launch's devices by name: a device's name without its number.
pub(super) fn backend(launch: &Launch) -> String {
    launch.machine.devices.first().map_or_else(
        || "CPU".to_string(),
        |device| device.name.trim_end_matches(|c: char| c.is_ascii_digit()).to_string(),
    )
}

/// Refuses an RPC server that nobody runs: llama.cpp itself would abort.
pub(super) fn reach(endpoint: &str) -> Result<(), Error> {
    let unreachable = |source| Error::Unreachable { endpoint: endpoint.to_string(), source };
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "no address");
    for address in endpoint.to_socket_addrs().map_err(unreachable)? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}

/// Waits until a server accepts connections or its process has ended.
pub(super) fn wait_for(endpoint: &str, mut is_alive: impl FnMut() -> bool, limit: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit && is_alive() {
        if reach(endpoint).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
