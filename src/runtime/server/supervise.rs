//! The process between moeplan and llama-server: it ends the server when told to, or when moeplan is gone. [I/O]

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::process::{End, Word};

/// How often the server is looked at.
const LOOK: Duration = Duration::from_millis(30);

/// Runs `command` with its output going to the file `log`, in a process group of its own, until it ends, standard input
/// ends, or a line comes from there. The polite signal is SIGINT (llama-server frees and prints its table); after half of
/// `patience` comes SIGTERM, after all of it the process group is killed. Says on standard output what process it is and how it ended (`Word`).
pub fn supervise(log: &Path, command: &[OsString], patience: Duration) -> anyhow::Result<()> {
    let mut child = match spawn(log, command) {
        Ok(child) => child,
        Err(error) => return say(&Word::Refused(error.to_string())),
    };
    say(&Word::Started(child.id()))?;
    let (send, asked) = channel();
    std::thread::spawn(move || {
        // A line or the end: both mean stop.
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        let _ = send.send(());
    });
    let status = wait(&mut child, &asked, patience)?;
    // What the server itself may have started.
    signal(child.id(), Signal::Kill);
    say(&Word::Ended(End::of(status)))
}

fn spawn(log: &Path, command: &[OsString]) -> std::io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or_else(|| std::io::Error::other("no program was named"))?;
    let out = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn()
}

/// Waits for the end; once asked, signals ever more firmly.
fn wait(child: &mut Child, asked: &Receiver<()>, patience: Duration) -> std::io::Result<ExitStatus> {
    let mut since: Option<(Instant, Signal)> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        match since {
            None => match asked.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                    signal(child.id(), Signal::Interrupt);
                    since = Some((Instant::now(), Signal::Interrupt));
                }
            },
            Some((start, last)) => {
                std::thread::sleep(LOOK);
                let next = match start.elapsed() {
                    elapsed if elapsed >= patience => Signal::Kill,
                    elapsed if elapsed >= patience / 2 => Signal::Terminate,
                    _ => Signal::Interrupt,
                };
                if next != last {
                    signal(child.id(), next);
                    if cfg!(not(unix)) {
                        child.kill()?;
                    }
                    since = Some((start, next));
                }
            }
        }
    }
}

/// A way to end a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// Signals the process group that `leader` leads; a group that is gone is no error.
#[cfg(unix)]
pub(super) fn signal(leader: u32, signal: Signal) {
    let name = match signal {
        Signal::Interrupt => rustix::process::Signal::INT,
        Signal::Terminate => rustix::process::Signal::TERM,
        Signal::Kill => rustix::process::Signal::KILL,
    };
    if let Some(pid) = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, name);
    }
}

/// Nothing: there are no process groups here; the child is killed through its handle.
#[cfg(not(unix))]
pub(super) fn signal(_leader: u32, _signal: Signal) {}

fn say(word: &Word) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    // Nobody may be listening any more; the server has to be ended all the same.
    let _ = writeln!(out, "{}", serde_json::to_string(word)?).and_then(|()| out.flush());
    Ok(())
}
