//! moeplan's side of a supervised program: start, watch, read its log as it grows, stop. [I/O]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use super::supervise::{Signal, signal};
use crate::files::temporary::Folder;
use crate::runtime::Error as RuntimeError;

/// How long the supervisor may take to say that the program runs.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a supervisor may take to end a program beyond its patience.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The patience with programs that hold nothing worth waiting for.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
/// How many of the last log lines are kept.
const TAIL_LINES: usize = 200;
/// The longest log line that is kept, in bytes.
const LINE_BYTES: usize = 16 << 10;
/// The most that is read of a log at a time, in bytes.
const READ_AT_ONCE: u64 = 4 << 20;

/// What the supervisor says, one JSON value a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The program runs; its process id.
    Started(u32),
    /// It could not be started, and why.
    Refused(String),
    /// It has ended.
    Ended(End),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it: its supervisor is gone.
    Unseen,
}

impl End {
    pub(super) fn of(status: ExitStatus) -> Self {
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
            Self::Signal(signal) => write!(f, "signal {signal}{}", crate::runtime::signal_name(*signal)),
            Self::Unseen => f.write_str("nobody saw how"),
        }
    }
}

/// A program under a supervisor (`moeplan worker --supervise`). Dropping it stops the program; so does the end of this
/// process, however it comes: the supervisor sees its standard input end.
#[derive(Debug)]
pub struct Process {
    supervisor: Child,
    stdin: Option<ChildStdin>,
    words: Receiver<Word>,
    id: u32,
    ended: Option<End>,
    patience: Duration,
    log: Log,
    // Where its log lies, when nobody named a place: gone with it.
    folder: Option<Folder>,
}

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Start<'a> {
    /// The moeplan program.
    pub supervisor: &'a Path,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Variables to set.
    pub set: Vec<(&'static str, OsString)>,
    /// Variables to take away.
    pub remove: Vec<String>,
    /// The file that its output goes to.
    pub log: PathBuf,
    /// Between asking it to end and killing it.
    pub patience: Duration,
}

impl Process {
    /// Starts a program.
    pub(super) fn start(start: &Start<'_>) -> Result<Self, RuntimeError> {
        let shown = || start.command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |source| RuntimeError::Start { program: shown(), source };
        let open = || {
            File::options().create(true).append(true).open(&start.log)?;
            let mut file = File::open(&start.log)?;
            // What earlier launches left in a log that is kept is theirs; a pipe has no end to go to.
            let _ = file.seek(SeekFrom::End(0));
            Ok(file)
        };
        let log = Log::new(open().map_err(|source| Error::Log { path: start.log.clone(), source })?);
        let mut command = Command::new(start.supervisor);
        command.arg("worker").arg("--supervise").arg(&start.log);
        command.arg("--patience").arg(start.patience.as_secs_f64().to_string()).arg("--").args(&start.command);
        for name in &start.remove {
            command.env_remove(name);
        }
        command.envs(start.set.iter().cloned());
        // Ctrl-C of the terminal is for moeplan alone, which then stops the program in order.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut supervisor = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| RuntimeError::Start { program: start.supervisor.display().to_string(), source })?;
        let stdin = supervisor.stdin.take();
        let (send, words) = channel();
        if let Some(stdout) = supervisor.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Ok(word) = serde_json::from_str(&line)
                        && send.send(word).is_err()
                    {
                        break;
                    }
                }
            });
        }
        let mut process =
            Self { supervisor, stdin, words, id: 0, ended: None, patience: start.patience, log, folder: None };
        match process.words.recv_timeout(START_LIMIT) {
            Ok(Word::Started(id)) => {
                process.id = id;
                Ok(process)
            }
            Ok(Word::Refused(why)) => Err(failed(std::io::Error::other(why))),
            Ok(Word::Ended(_)) | Err(_) => Err(failed(std::io::Error::other("its supervisor did not answer"))),
        }
    }

    /// Starts a program whose log lies in a temporary place, and which heeds nothing of ours.
    pub(in crate::runtime) fn start_quiet(supervisor: &Path, command: Vec<OsString>) -> Result<Self, RuntimeError> {
        let folder = Folder::new().map_err(|source| Error::Log { path: std::env::temp_dir(), source })?;
        let log = folder.path().join("log");
        let set = vec![("OMP_WAIT_POLICY", "passive".into())];
        let mut process =
            Self::start(&Start { supervisor, command, set, remove: Vec::new(), log, patience: SHORT_PATIENCE })?;
        process.folder = Some(folder);
        Ok(process)
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<End> {
        if self.ended.is_none() {
            match self.words.try_recv() {
                Ok(Word::Ended(end)) => self.ended = Some(end),
                Err(TryRecvError::Disconnected) => self.lost(),
                Ok(_) | Err(TryRecvError::Empty) => {}
            }
        }
        self.ended
    }

    /// The log lines that have come since the last call.
    pub fn new_lines(&mut self) -> Vec<String> {
        self.log.new_lines()
    }

    /// The last log lines of those that were read.
    pub fn last_words(&self) -> Vec<String> {
        self.log.tail.iter().cloned().collect()
    }

    /// Ends it: politely, then firmly. Returns when it is gone, with how it ended.
    pub fn stop(&mut self) -> End {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(b"stop\n");
        }
        while self.ended.is_none() {
            match self.words.recv_timeout(self.patience + STOP_LIMIT) {
                Ok(Word::Ended(end)) => self.ended = Some(end),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.lost(),
            }
        }
        if self.ended == Some(End::Unseen) {
            let _ = self.supervisor.kill();
        }
        let _ = self.supervisor.wait();
        self.ended.unwrap_or(End::Unseen)
    }

    /// The supervisor is gone or does not answer: nobody is left to end the program but us.
    fn lost(&mut self) {
        if self.id != 0 {
            signal(self.id, Signal::Kill);
        }
        self.ended = Some(End::Unseen);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A log file that is read as it grows.
#[derive(Debug)]
struct Log {
    file: File,
    partial: Vec<u8>,
    tail: VecDeque<String>,
}

impl Log {
    fn new(file: File) -> Self {
        Self { file, partial: Vec::new(), tail: VecDeque::new() }
    }

    fn new_lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let _ = (&self.file).take(READ_AT_ONCE).read_to_end(&mut bytes);
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES.saturating_sub(self.partial.len());
            self.partial.extend(piece.iter().filter(|byte| **byte != b'\n').take(room));
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                lines.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        for line in &lines {
            if self.tail.len() == TAIL_LINES {
                self.tail.pop_front();
            }
            self.tail.push_back(line.clone());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_log_is_read_line_by_line_and_huge_lines_are_cut() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::new(File::open(file.path()).unwrap());
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
        assert_eq!(log.tail.len(), 4);
    }

    #[test]
    fn an_end_says_which_signal() {
        assert_eq!(End::Signal(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(End::Code(1).to_string(), "exit code 1");
    }
}
