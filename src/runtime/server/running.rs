//! A llama-server that runs: started on a free port, waited for, asked, stopped. [I/O]

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::arguments::{HOST, arguments};
use super::client::{Client, Pending, Reply, Request};
use super::environment::{self, ConfigFiles};
use super::error::Failed;
use super::process::{End, Process, Start};
use super::{Error, Server, Step};
use crate::files::temporary::Folder;
use crate::runtime::log::{Event, Failure, LogReader, Serving, Stage};
use crate::runtime::{Error as RuntimeError, Launch};

/// How often a free port is looked for: another program may take it first.
const PORT_ATTEMPTS: usize = 4;
/// How often a starting server is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How often a server that has not said that it listens is asked all the same.
const ASK_ANYWAY: Duration = Duration::from_secs(5);
/// How often it is looked whether its process moves at all.
const LOOK_AT_PROCESS: Duration = Duration::from_secs(1);
/// After its connection broke: how long until its end is seen, if it has ended.
const UNTIL_END_IS_SEEN: Duration = Duration::from_secs(2);

/// A server that is up. Dropping it stops it, and so does the end of this process, however it comes.
#[derive(Debug)]
pub struct Running {
    process: Process,
    reader: LogReader,
    client: Client,
    url: String,
    load_time: Duration,
    notes: Vec<String>,
    command: Vec<String>,
    server: Server,
    // Gone with the server: its log unless a place was named for it, and an empty configuration folder.
    _folder: Folder,
}

impl Server {
    /// Starts the server and waits until it takes requests. `launch.run.fit` decides whether llama.cpp fits the launch by
    /// itself.
    pub fn start(&self, launch: &Launch) -> Result<Running, RuntimeError> {
        for endpoint in launch.endpoints() {
            crate::runtime::worker::reach(&endpoint)?;
        }
        let is_port_named = self.extra.iter().any(|word| word == "--port");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let answer = self.start_at(launch, free_port()?);
            let is_taken = matches!(
                &answer,
                Err(RuntimeError::Server(Error::Failed(failed))) if matches!(failed.failure, Failure::Bind(_))
            );
            if !is_taken || is_port_named || attempt == PORT_ATTEMPTS {
                return answer;
            }
        }
    }

    fn start_at(&self, launch: &Launch, port: u16) -> Result<Running, RuntimeError> {
        let mut run = launch.run.clone();
        run.rpc = launch.endpoints();
        if run.n_threads.is_none() && launch.n_threads > 0 {
            run.n_threads = Some(launch.n_threads);
        }
        let words = arguments(&self.build, &run, &launch.model, port, &self.extra)?;
        let folder = Folder::new().map_err(|source| Error::Log { path: std::env::temp_dir(), source })?;
        let log = self.log.clone().unwrap_or_else(|| folder.path().join("llama-server.log"));
        let files = ConfigFiles::here();
        let removed = environment::to_remove(std::env::vars_os().map(|(name, _)| name), self.keeps_key);
        let mut command: Vec<OsString> = vec![self.build.program.clone().into()];
        command.extend(words.iter().map(OsString::from));
        warm(launch);
        let begin = Instant::now();
        let process = Process::start(&Start {
            supervisor: &self.moeplan,
            command,
            set: environment::to_set(&files, folder.path(), !run.rpc.is_empty()),
            remove: removed.clone(),
            log,
            patience: self.limits.stop,
        })?;
        let url = format!("http://{HOST}:{port}");
        let mut running = Running {
            process,
            reader: LogReader::default(),
            client: Client::new(&url),
            url,
            load_time: Duration::ZERO,
            notes: environment::notes(&removed, &files),
            command: words,
            server: self.clone(),
            _folder: folder,
        };
        running.wait_until_ready(begin)?;
        running.load_time = begin.elapsed();
        self.tell(Step::Ready);
        Ok(running)
    }
}

/// Asks for the pages of a model that the launch maps, where memory holds them: it is then read at the disk's own speed.
fn warm(launch: &Launch) {
    let is_mapped = launch.run.load_mode.is_mapped();
    let bytes = std::fs::metadata(&launch.model).map_or(0, |file| file.len());
    if is_mapped && launch.machine.host.ram.is_some_and(|ram| bytes < ram.0) {
        // Advice: a launch goes on without it.
        let _ = crate::runtime::warm::warm(&launch.model);
    }
}

impl Running {
    /// Where it takes requests: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The words after the program that it was started with.
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// The server's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// From its start until it took requests.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// What was kept from it and what could not be, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What its log says so far.
    pub fn log(&mut self) -> &crate::runtime::log::LoadLog {
        self.follow();
        self.reader.log()
    }

    /// What its log says about requests, as far as it was read.
    pub fn serving(&self) -> &Serving {
        self.reader.serving()
    }

    /// The size of the model's vocabulary.
    pub fn vocabulary(&self) -> Result<u32, Error> {
        self.client.vocabulary()
    }

    /// Completes a prompt; the answer, or what became of the server.
    pub fn complete(&mut self, request: &Request) -> Result<Reply, Error> {
        self.wait_for(&self.client.complete(request))
    }

    /// Runs tokens through a server that only embeds.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<Reply, Error> {
        self.wait_for(&self.client.embed(tokens))
    }

    /// How it ended, if it has. Reads its log on.
    pub fn ended(&mut self) -> Option<End> {
        self.follow();
        self.process.ended()
    }

    /// Stops it, politely at first, and returns how it ended; its log is then whole ([`Self::log`]).
    pub fn stop(&mut self) -> End {
        let end = self.process.stop();
        while self.follow() {}
        end
    }

    /// What became of a server that has ended: the reason its log names, or how it ended.
    pub fn why_it_ended(&mut self, doing: &'static str, end: End) -> Error {
        while self.follow() {}
        let log = self.process.last_words();
        match self.reader.log().failure() {
            Some(failure) => Error::Failed(Box::new(Failed { failure, end, log })),
            None => Error::Died { doing, end, log },
        }
    }

    /// Reads the log on; whether anything was new.
    fn follow(&mut self) -> bool {
        let lines = self.process.new_lines();
        for line in &lines {
            if let Some(echo) = self.server.echo {
                echo(line);
            }
            match self.reader.line(line) {
                Some(Event::Stage(stage)) if stage < Stage::Ready => self.server.tell(Step::Loading(stage)),
                Some(Event::Listening(address)) if self.load_time.is_zero() => self.moved_to(&address),
                _ => {}
            }
        }
        !lines.is_empty()
    }

    /// Takes the address that it says it listens on: the person may have named another port or all interfaces.
    fn moved_to(&mut self, address: &str) {
        self.url = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
        self.client = Client::new(&self.url);
    }

    fn wait_until_ready(&mut self, begin: Instant) -> Result<(), Error> {
        const DOING: &str = "loading";
        let limits = self.server.limits;
        let mut asked = begin;
        let mut pulse = Pulse::new(self.process.id());
        loop {
            if self.follow() {
                pulse.beat();
            }
            if (self.server.interrupted)() {
                self.stop();
                return Err(Error::Interrupted);
            }
            if let Some(end) = self.process.ended() {
                return Err(self.why_it_ended(DOING, end));
            }
            let listens = self.reader.log().listening.is_some();
            if listens && !self.url.starts_with("http://") {
                // TLS or a socket of the file system, as the person asked: its word must do.
                return Ok(());
            }
            if listens || asked.elapsed() > ASK_ANYWAY {
                if self.client.is_ready() {
                    return Ok(());
                }
                asked = Instant::now();
            }
            if begin.elapsed() > limits.load {
                self.stop();
                return Err(Error::TimedOut { doing: DOING, seconds: limits.load.as_secs() });
            }
            if pulse.has_stopped_for() > limits.stall {
                let log = self.process.last_words();
                self.stop();
                return Err(Error::Hangs { doing: DOING, seconds: limits.stall.as_secs(), log });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn wait_for(&mut self, pending: &Pending) -> Result<Reply, Error> {
        const DOING: &str = "answering";
        let begin = Instant::now();
        loop {
            match pending.wait(LOOK) {
                Some(Err(Error::Answer(why))) => {
                    let broke = Instant::now();
                    while broke.elapsed() < UNTIL_END_IS_SEEN {
                        if let Some(end) = self.process.ended() {
                            return Err(self.why_it_ended(DOING, end));
                        }
                        std::thread::sleep(LOOK);
                    }
                    return Err(Error::Answer(why));
                }
                Some(answer) => {
                    self.follow();
                    return answer;
                }
                None => {}
            }
            self.follow();
            if (self.server.interrupted)() {
                self.stop();
                return Err(Error::Interrupted);
            }
            if let Some(end) = self.process.ended() {
                return Err(self.why_it_ended(DOING, end));
            }
            if begin.elapsed() > self.server.limits.request {
                self.stop();
                return Err(Error::TimedOut { doing: DOING, seconds: self.server.limits.request.as_secs() });
            }
        }
    }
}

/// A port of the loopback interface that is free now.
fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::NoPort)?;
    Ok(listener.local_addr().map_err(Error::NoPort)?.port())
}

/// Whether a process moves: its log grows, it computes, or its memory changes.
struct Pulse {
    process: u32,
    seen: Option<(u64, u64)>,
    looked: Instant,
    last: Instant,
}

impl Pulse {
    fn new(process: u32) -> Self {
        let now = Instant::now();
        Self { process, seen: None, looked: now, last: now }
    }

    fn beat(&mut self) {
        self.last = Instant::now();
    }

    /// How long nothing has moved.
    fn has_stopped_for(&mut self) -> Duration {
        if self.looked.elapsed() > LOOK_AT_PROCESS {
            self.looked = Instant::now();
            let now = work(self.process);
            if now != self.seen {
                self.seen = now;
                self.beat();
            }
        }
        self.last.elapsed()
    }
}

/// Processor time and resident pages of a process; where they cannot be read, only the log tells.
#[cfg(target_os = "linux")]
fn work(process: u32) -> Option<(u64, u64)> {
    let stat = procfs::process::Process::new(i32::try_from(process).ok()?).ok()?.stat().ok()?;
    Some((stat.utime.saturating_add(stat.stime), stat.rss))
}

/// Nothing is known here.
#[cfg(not(target_os = "linux"))]
fn work(_process: u32) -> Option<(u64, u64)> {
    None
}
