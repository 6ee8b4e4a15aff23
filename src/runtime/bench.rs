//! llama-bench in a child process: its rows, within a time. [I/O]

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::server;
use crate::speed::samples::{self, BenchRow};

/// The most that is read of what it prints, in bytes.
const PRINTED: u64 = 16 << 20;
/// How often a running one is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Why there are no rows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot start `{}`: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("`llama-bench {args}` ended with {status}: {said}")]
    Failed {
        /// What it was to do.
        args: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its last words.
        said: String,
    },
    /// It took too long.
    #[error("`llama-bench {args}` was stopped after {} s", limit.as_secs())]
    Slow {
        /// What it was to do.
        args: String,
        /// The time it had.
        limit: Duration,
    },
    /// The person stopped it.
    #[error(transparent)]
    Interrupted(#[from] server::Error),
    /// What it printed cannot be read.
    #[error(transparent)]
    Rows(#[from] samples::Error),
}

/// A child that does not outlive its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs tests of `model` and gives their rows.
pub fn run(
    program: &Path,
    model: &Path,
    args: &[String],
    limit: Duration,
    interrupted: fn() -> bool,
) -> Result<Vec<BenchRow>, Error> {
    let start = |source| Error::Start { program: program.to_path_buf(), source };
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_ARG_") {
            command.env_remove(name);
        }
    }
    command.arg("-m").arg(model).args(args).args(["-r", "2", "-o", "jsonl"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Owned(command.spawn().map_err(start)?);
    let out = reader(child.0.stdout.take());
    let err = reader(child.0.stderr.take());
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().map_err(start)? {
            if !status.success() {
                // Ctrl-C of a terminal ends it too, a moment before or after it is seen here.
                std::thread::sleep(LOOK);
            }
            break status;
        }
        if interrupted() {
            return Err(server::Error::Interrupted.into());
        }
        if started.elapsed() > limit {
            return Err(Error::Slow { args: args.join(" "), limit });
        }
        std::thread::sleep(LOOK);
    };
    if !status.success() && interrupted() {
        return Err(server::Error::Interrupted.into());
    }
    let (text, said) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    if !status.success() {
        let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word").to_string();
        return Err(Error::Failed { args: args.join(" "), status, said });
    }
    Ok(samples::rows(&text)?)
}

/// Reads a stream to its end, beside the program.
fn reader(stream: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            let _ = stream.take(PRINTED).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
