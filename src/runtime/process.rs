//! Child processes: the one way to wait, children that are spoken to by lines, a supervised program and its log. [I/O]
//!
//! No child outlives moeplan, however that ends: each one is killed when its value is dropped, and ends by itself when its standard
//! input does. A program of others does not look at its standard input; between moeplan and it stands a supervisor, which is
//! moeplan itself as `moeplan worker --supervise`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Echo, Error};
use crate::files::temporary::Folder;

/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How long the supervisor may take to say that the program runs.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a supervisor may take to end a program beyond its patience.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The patience with a program that works on what nobody waits for.
const HURRY: Duration = Duration::from_millis(500);
/// How many of the last log lines are kept.
const TAIL_LINES: usize = 200;
/// The longest log line that is kept, in bytes.
const LINE_BYTES: usize = 16 << 10;
/// The most that is read of a log at a time, in bytes.
const READ_AT_ONCE: u64 = 4 << 20;

/// Signals that are the same on every Unix.
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Why waiting ended without what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    Interrupted,
    TimedOut,
}

/// Calls `until` again and again until it gives a value, `limit` is over, or the person wants to stop. `until` is given the time
/// that it may spend looking, and does the pausing: on a channel, or asleep ([`pause`]).
pub fn wait<T>(
    limit: Duration,
    interrupted: fn() -> bool,
    mut until: impl FnMut(Duration) -> Option<T>,
) -> Result<T, Stopped> {
    let begin = Instant::now();
    loop {
        if let Some(value) = until(LOOK.min(limit)) {
            return Ok(value);
        }
        if interrupted() {
            return Err(Stopped::Interrupted);
        }
        if begin.elapsed() >= limit {
            return Err(Stopped::TimedOut);
        }
    }
}

pub(super) fn temporary_folder() -> Result<Folder, Error> {
    Folder::new().map_err(|error| Error::setup("no temporary folder can be made", "is the disk full?").caused_by(error))
}

/// Nothing yet: sleeps.
pub fn pause<T>(time: Duration) -> Option<T> {
    std::thread::sleep(time);
    None
}

pub fn never() -> bool {
    false
}

fn exit_of(child: &mut Child, time: Duration) -> Option<io::Result<ExitStatus>> {
    child.try_wait().transpose().or_else(|| pause(time))
}

/// What a program printed within a time.
#[derive(Debug)]
pub struct Printed {
    /// `None`: it was killed because its time was over.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end with `input`; at most `most` bytes are kept of each of its streams.
pub fn output(command: &mut Command, input: Vec<u8>, limit: Duration, most: u64) -> io::Result<Printed> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take();
    std::thread::spawn(move || stdin.as_mut().map(|pipe| pipe.write_all(&input)));
    let read = |stream: Option<Box<dyn Read + Send>>| {
        let (send, text) = channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = (&mut stream).take(most).read_to_end(&mut bytes);
                // A program whose pipe is full would wait for ever.
                let _ = io::copy(&mut stream, &mut io::sink());
            }
            let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        text
    };
    let stdout = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let status = match wait(limit, never, |time| exit_of(&mut child, time)) {
        Ok(status) => Some(status?),
        Err(_) => {
            child.kill()?;
            child.wait()?;
            None
        }
    };
    // A grandchild may hold the pipes open: it is not waited for.
    let text = |text: Receiver<String>| text.recv_timeout(STOP_LIMIT).unwrap_or_default();
    Ok(Printed { status, stdout: text(stdout), stderr: text(stderr) })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Code(i32),
    Signal(i32),
    /// Nobody saw it: its supervisor is gone.
    Unseen,
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            return Self::Signal(signal);
        }
        status.code().map_or(Self::Unseen, Self::Code)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => {
                const NAMES: &[(i32, &str)] = &[
                    (2, "SIGINT"),
                    (4, "SIGILL"),
                    (6, "SIGABRT"),
                    (7, "SIGBUS"),
                    (8, "SIGFPE"),
                    (9, "SIGKILL"),
                    (11, "SIGSEGV"),
                    (15, "SIGTERM"),
                ];
                write!(f, "signal {signal}")?;
                NAMES.iter().find(|(number, _)| number == signal).map_or(Ok(()), |(_, name)| write!(f, " ({name})"))
            }
            Self::Unseen => f.write_str("how it ended is unknown"),
        }
    }
}

/// A moeplan that is spoken to by lines, and ends with its standard input. Killed when dropped.
#[derive(Debug)]
pub(super) struct Peer {
    pub child: Child,
    stdin: Option<ChildStdin>,
    pub lines: Receiver<String>,
}

impl Peer {
    pub fn spawn(mut command: Command, stderr: Stdio) -> Result<Self, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        // Ctrl-C of the terminal is for moeplan alone, which then stops its children in order.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn();
        let mut child = spawned.map_err(|error| Error::start(&program, error))?;
        let (send, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let mut read = BufReader::new(stdout).lines().map_while(Result::ok);
                read.try_for_each(|line| send.send(line))
            });
        }
        Ok(Self { stdin: child.stdin.take(), child, lines })
    }

    pub fn say(&mut self, line: &str) {
        // One that has died already is found out when its answer is waited for.
        let _ = self.stdin.as_mut().map(|stdin| writeln!(stdin, "{line}").and_then(|()| stdin.flush()));
    }

    pub fn kill(&mut self) -> End {
        self.stdin = None;
        let _ = self.child.kill();
        self.child.wait().map_or(End::Unseen, End::from)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A log file that is read as it grows.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    partial: Vec<u8>,
    tail: VecDeque<String>,
    /// Gets every line that is read.
    echo: Option<Echo>,
}

impl Log {
    pub fn new(file: File, echo: Option<Echo>) -> Self {
        Self { file, partial: Vec::new(), tail: VecDeque::new(), echo }
    }

    /// The lines that have come since the last call.
    pub fn new_lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let _ = (&self.file).take(READ_AT_ONCE).read_to_end(&mut bytes);
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES.saturating_sub(self.partial.len());
            self.partial.extend(piece.iter().filter(|byte| **byte != b'\n').take(room));
            if piece.ends_with(b"\n") {
                lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned());
            }
        }
        if let Some(echo) = self.echo {
            for line in &lines {
                echo(line);
            }
        }
        self.tail.extend(lines.iter().cloned());
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_LINES));
        lines
    }

    pub fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}

/// What the supervisor says, one JSON value a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Started(u32),
    Refused(String),
    Ended(End),
}

/// A program under a supervisor. Dropping it stops the program.
#[derive(Debug)]
pub struct Process {
    supervisor: Peer,
    id: u32,
    ended: Option<End>,
    patience: Duration,
    pub(super) log: Log,
    _folder: Option<Folder>,
}

impl Process {
    /// Starts `program` under a supervisor, the moeplan `supervisor`, with its output at the end of `log` (`None` = a temporary
    /// place). Between asking it to end and killing it lies `patience`.
    pub(super) fn start(
        supervisor: &Path,
        program: &Command,
        log: Option<&Path>,
        echo: Option<Echo>,
        patience: Duration,
    ) -> Result<Self, Error> {
        let folder = if log.is_none() { Some(temporary_folder()?) } else { None };
        let path = log.map(Path::to_path_buf).or_else(|| Some(folder.as_ref()?.path().join("log"))).unwrap_or_default();
        let open = || {
            File::options().create(true).append(true).open(&path)?;
            let mut file = File::open(&path)?;
            // What earlier launches left in a log that is kept is theirs; a pipe has no end to go to.
            let _ = file.seek(SeekFrom::End(0));
            Ok(Log::new(file, echo))
        };
        let log = open().map_err(|error| {
            Error::setup(format!("cannot write llama-server's log `{}`", path.display()), "is the disk full?")
                .caused_by(error)
        })?;
        let mut command = Command::new(supervisor);
        command.arg("worker").arg("--supervise").arg(&path);
        command.arg("--patience").arg(patience.as_millis().to_string());
        command.arg("--").arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let supervisor = Peer::spawn(command, Stdio::null())?;
        let word = supervisor.lines.recv_timeout(START_LIMIT).ok().and_then(|line| serde_json::from_str(&line).ok());
        let why = match word {
            Some(Word::Started(id)) => {
                return Ok(Self { supervisor, id, ended: None, patience, log, _folder: folder });
            }
            Some(Word::Refused(why)) => why,
            Some(Word::Ended(_)) | None => "its supervisor did not answer".to_string(),
        };
        Err(Error::start(&program.get_program().to_string_lossy(), io::Error::other(why)))
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// How it ended, if it has or does so within `time`.
    pub(super) fn ends_within(&mut self, time: Duration) -> Option<End> {
        if self.ended.is_none() {
            match self.supervisor.lines.recv_timeout(time) {
                Ok(line) => {
                    if let Ok(Word::Ended(end)) = serde_json::from_str(&line) {
                        self.ended = Some(end);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => self.lost(),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.ended
    }

    /// Ends it: politely, then firmly, soon where it is hurried. Returns when it is gone, with how it ended.
    pub fn stop(&mut self, is_hurried: bool) -> End {
        if is_hurried {
            self.supervisor.say("");
        }
        self.supervisor.stdin = None;
        if wait(self.patience + STOP_LIMIT, never, |time| self.ends_within(time)).is_err() {
            self.lost();
        }
        if self.ended == Some(End::Unseen) {
            let _ = self.supervisor.child.kill();
        }
        let _ = self.supervisor.child.wait();
        self.ended.unwrap_or(End::Unseen)
    }

    /// The supervisor is gone or does not answer: nobody is left to end the program but us.
    fn lost(&mut self) {
        signal(self.id, SIGKILL);
        self.ended = Some(End::Unseen);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(false);
    }
}

/// Runs `command` with its output going to the file `log`, in a process group of its own, until it ends, standard input
/// ends, or a line comes from there, which hurries. The polite signal is SIGINT (llama-server frees and prints its table); after half
/// of `patience` comes SIGTERM, after all of it the process group is killed. Says on standard output what process it is and how it ended.
pub fn supervise(log: &Path, command: &[OsString], patience: Duration) -> anyhow::Result<()> {
    let spawn = || {
        let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no program was named"))?;
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn()
    };
    let mut child = match spawn() {
        Ok(child) => child,
        Err(error) => return say(&Word::Refused(error.to_string())),
    };
    say(&Word::Started(child.id()))?;
    let (send, asked) = channel();
    std::thread::spawn(move || {
        // A line or the end: both mean stop.
        let is_hurried = io::stdin().lock().read_line(&mut String::new()).is_ok_and(|read| read > 0);
        let _ = send.send(if is_hurried { HURRY } else { Duration::MAX });
    });
    let mut patience = patience;
    let ended_or_asked = wait(Duration::MAX, never, |time| match (child.try_wait(), asked.recv_timeout(time)) {
        (Ok(None), Err(RecvTimeoutError::Timeout)) => None,
        (ended, asked) => {
            patience = patience.min(asked.unwrap_or(Duration::MAX));
            Some(ended)
        }
    });
    let mut status = ended_or_asked.unwrap_or(Ok(None))?;
    let steps = [(SIGINT, patience / 2), (SIGTERM, patience / 2), (SIGKILL, Duration::MAX)];
    for (name, limit) in steps {
        if status.is_none() && !limit.is_zero() {
            signal(child.id(), name);
            if cfg!(not(unix)) {
                child.kill()?;
            }
            status = wait(limit, never, |time| exit_of(&mut child, time)).ok().transpose()?;
        }
    }
    // What the program itself may have started.
    signal(child.id(), SIGKILL);
    say(&Word::Ended(status.map_or(End::Unseen, End::from)))
}

fn say(word: &Word) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    // Nobody may be listening any more; the program has to be ended all the same.
    let _ = writeln!(out, "{}", serde_json::to_string(word)?).and_then(|()| out.flush());
    Ok(())
}

/// Signals the process group that `leader` leads; a group that is gone is not an error.
#[cfg(unix)]
fn signal(leader: u32, signal: i32) {
    let leader = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw);
    if let Some((leader, signal)) = leader.zip(rustix::process::Signal::from_named_raw(signal)) {
        let _ = rustix::process::kill_process_group(leader, signal);
    }
}

/// There are no process groups here; the child is killed through its handle.
#[cfg(not(unix))]
fn signal(_leader: u32, _signal: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_log_is_read_line_by_line_and_huge_lines_are_cut() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::new(File::open(file.path()).unwrap(), None);
        assert_eq!(log.new_lines(), Vec::<String>::new());
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(log.new_lines(), ["one"]);
        file.write_all("o\u{fc}".as_bytes().get(..2).unwrap()).unwrap();
        file.write_all(&[0xff, b'\n']).unwrap();
        assert_eq!(log.new_lines(), ["two\u{fffd}\u{fffd}"]);
        file.write_all(&vec![b'x'; 3 * LINE_BYTES]).unwrap();
        assert!(log.new_lines().is_empty());
        file.write_all(b"\nlast\n").unwrap();
        let lines = log.new_lines();
        assert_eq!((lines.first().unwrap().len(), lines.last().unwrap().as_str()), (LINE_BYTES, "last"));
        assert_eq!(log.tail().len(), 4);
    }

    #[test]
    fn waiting_ends_with_a_value_a_limit_or_the_person() {
        let mut left = 3;
        let counted = wait(Duration::MAX, never, |_| {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(counted, Ok("done"));
        assert_eq!(wait(Duration::ZERO, never, pause::<()>), Err(Stopped::TimedOut));
        assert_eq!(wait(Duration::MAX, || true, pause::<()>), Err(Stopped::Interrupted));
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_says_too_much_or_never_ends_is_cut() {
        let run = |script: &str, limit| {
            output(Command::new("/bin/sh").args(["-c", script]), b"hello".to_vec(), limit, 1000).unwrap()
        };
        let noisy = run("cat; head -c 1000000 /dev/zero >&2", Duration::from_mins(1));
        assert_eq!((noisy.stdout.as_str(), noisy.stderr.len()), ("hello", 1000));
        assert!(noisy.status.is_some_and(|status| status.success()));
        let endless = run("exec sleep 600", Duration::from_millis(50));
        assert!(endless.status.is_none());
        assert_eq!(End::Signal(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(End::Code(1).to_string(), "exit code 1");
    }
}
