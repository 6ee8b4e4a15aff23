//! Why llama-server did not do what was asked, told apart as far as it helps, and what to try.

use std::borrow::Cow;
use std::path::PathBuf;

use super::process::End;
use crate::bytes::Bytes;
use crate::run::Program;
use crate::runtime::log::{Failure, Part};
use crate::runtime::said;
use crate::suggest::Hint;

/// What went wrong with a llama-server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path that was named is no program.
    #[error("`{}` is no program that can be run", .0.display())]
    NoSuchServer(PathBuf),
    /// It is nowhere.
    #[error("no llama-server was found (looked at {})", .0.join(", "))]
    NotFound(Vec<String>),
    /// It does not say what it is.
    #[error("cannot ask `{}` for `{flag}`", .program.display())]
    Probe {
        /// The program.
        program: PathBuf,
        /// The flag.
        flag: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("`{}` is no llama-server: asked for its version it says `{said}`", .program.display())]
    NotAServer {
        /// The program.
        program: PathBuf,
        /// What it says.
        said: String,
    },
    /// A flag that this build does not take.
    #[error("{build} has no `{flag}`")]
    Lacks {
        /// With its value.
        flag: String,
        /// The build's name.
        build: String,
    },
    /// A command of another program.
    #[error("a command of {} cannot be launched on the server runtime", _0.name())]
    NotForServer(Program),
    /// No software device can be started.
    #[error("no ggml-rpc-server lies beside `{}`", .0.display())]
    NoRpcServer(PathBuf),
    /// Its log cannot be kept.
    #[error("cannot write llama-server's log `{}`", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its log does not hold what is measured from it.
    #[error("llama-server's log shows no memory")]
    SilentLog,
    /// It ended before it could answer, for a reason that its log names.
    #[error("llama-server did not start: {}", failure(.0))]
    Failed(Box<Failed>),
    /// It ended by itself, and its log does not say why.
    #[error("llama-server died while {doing} ({end}){}", said(log))]
    Died {
        /// What it was doing.
        doing: &'static str,
        /// Exit code or signal.
        end: End,
        /// Its last log lines.
        log: Vec<String>,
    },
    /// Neither its log nor its process moves.
    #[error("llama-server hangs while {doing}: nothing has moved for {seconds} s{}", said(log))]
    Hangs {
        /// What it was doing.
        doing: &'static str,
        /// For how long.
        seconds: u64,
        /// Its last log lines.
        log: Vec<String>,
    },
    /// It works, but for too long.
    #[error("llama-server was stopped after {seconds} s while {doing}")]
    TimedOut {
        /// What it was doing.
        doing: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// No port could be had.
    #[error("no free port could be had at 127.0.0.1")]
    NoPort(#[source] std::io::Error),
    /// It refuses a request.
    #[error("llama-server refused the request: {message} (status {status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The connection broke, or what came over it is no answer.
    #[error("llama-server's answer cannot be read: {0}")]
    Answer(String),
    /// The person wants to stop.
    #[error("interrupted")]
    Interrupted,
    /// Only the embedded runtime can do it.
    #[error("{0} needs the embedded llama.cpp")]
    NeedsEmbedded(&'static str),
}

/// A launch that failed, with what its log says.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// How it ended.
    pub end: End,
    /// Its last log lines.
    pub log: Vec<String>,
}

fn failure(failed: &Failed) -> String {
    match &failed.failure {
        Failure::OutOfMemory { buffer, bytes, part } => {
            let size = bytes.map_or_else(|| "memory".to_string(), |bytes: Bytes| bytes.to_string());
            let place = buffer.as_ref().map_or_else(String::new, |buffer| format!(" on {buffer}"));
            let part = match part {
                Some(Part::Model) => " for weights",
                Some(Part::Context) => " for the context",
                Some(Part::Compute) => " for compute buffers",
                Some(Part::Output) => " for output rows",
                None => "",
            };
            format!("out of memory: {size}{part} cannot be had{place}")
        }
        Failure::BadModel(reason) => format!("the model cannot be loaded: {reason}"),
        Failure::InvalidArgument(reason) => format!("it does not take the command line: {reason}"),
        Failure::Bind(reason) => format!("its port is taken: {reason}"),
        Failure::Crash(reason) => format!("{reason} ({})", failed.end),
        Failure::Other(reason) => format!("{reason} ({}){}", failed.end, said(&failed.log)),
    }
}

impl Error {
    /// Whether every launch of this model on these devices would end so, whatever its flags.
    pub fn is_of_every_launch(&self) -> bool {
        match self {
            Self::Failed(failed) => failed.lacks_device() || matches!(failed.failure, Failure::BadModel(_)),
            Self::NoSuchServer(_)
            | Self::NotFound(_)
            | Self::Probe { .. }
            | Self::NotAServer { .. }
            | Self::NoRpcServer(_)
            | Self::NotForServer(_)
            | Self::NeedsEmbedded(_)
            | Self::Log { .. }
            | Self::SilentLog
            | Self::NoPort(_) => true,
            Self::Lacks { .. }
            | Self::Died { .. }
            | Self::Hangs { .. }
            | Self::TimedOut { .. }
            | Self::Refused { .. }
            | Self::Answer(_)
            | Self::Interrupted => false,
        }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::NoSuchServer(_) | Self::NotAServer { .. } => {
                "name llama.cpp's llama-server with --llama-server PATH or MOEPLAN_LLAMA_SERVER"
            }
            Self::NotFound(_) => {
                "scripts/llama-server builds one; or name yours with --llama-server PATH or MOEPLAN_LLAMA_SERVER"
            }
            Self::Probe { .. } => "does it run by hand, with its libraries beside it?",
            Self::Lacks { .. } => "leave the flag out, or name a newer build with --llama-server PATH",
            Self::NotForServer(_) | Self::NeedsEmbedded(_) => "use --runtime embedded",
            Self::NoRpcServer(_) => {
                "build it beside llama-server (target ggml-rpc-server), as scripts/llama-server does"
            }
            Self::Log { .. } | Self::NoPort(_) => "is the disk full, or a loopback address not allowed here?",
            Self::SilentLog => "is the disk of its log full, or its verbosity changed after `--`?",
            Self::Failed(failed) => return failed.hint(),
            Self::Died { end: End::Signal(9), .. } => {
                "the system may have run out of memory: a smaller model or context, or `-lm mmap`"
            }
            Self::Died { end: End::Signal(4), .. } => {
                "its code for this processor does not run here: remove the variant that `llama-server -lv 4 --list-devices` \
                 names (libggml-cpu-NAME.so beside it), or try `-nr` after `--`"
            }
            Self::Died { .. } => "run it again with -v for llama.cpp's whole log",
            Self::Hangs { .. } => {
                "is the disk it reads from still there? An RPC server serves one client at a time: is it free?"
            }
            Self::TimedOut { .. } => "a larger --timeout, a smaller model, or fewer tokens",
            Self::Refused { .. } => "fewer prompt tokens or a larger context (-c)",
            Self::Answer(_) => "is another program of that name being run?",
            Self::Interrupted => "the server is stopped; nothing is left behind",
        };
        Some(text.into())
    }
}

impl Failed {
    /// Whether memory could not be had.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.failure, Failure::OutOfMemory { .. })
    }

    /// Whether it was told of a device that is not there.
    fn lacks_device(&self) -> bool {
        matches!(&self.failure, Failure::InvalidArgument(reason) if reason.contains("invalid device"))
    }

    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match &self.failure {
            Failure::OutOfMemory { buffer, .. } => {
                let on_host = buffer.as_ref().is_some_and(|buffer| buffer.starts_with("CPU"));
                if on_host {
                    "main memory is short: a smaller context, `-lm mmap`, or more of the model on the devices"
                } else {
                    "give more room there: a larger --margin, a smaller -c or -ub, or `-ctk q8_0 -ctv q8_0`; \
                     another program may hold memory of the device"
                }
            }
            Failure::BadModel(_) => "`moeplan inspect` says what the file holds; is it whole?",
            Failure::InvalidArgument(_) if self.lacks_device() => {
                "`moeplan doctor` says which devices there are and why one is missing; `--backend rpc` starts software devices"
            }
            Failure::InvalidArgument(_) => "`moeplan check -- COMMAND` says what this build takes",
            Failure::Bind(_) => "give another --port, or none",
            Failure::Crash(_) | Failure::Other(_) => "run it again with -v for llama.cpp's whole log",
        };
        Some(text.into())
    }
}
