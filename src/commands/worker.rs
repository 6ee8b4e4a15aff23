//! `worker` (hidden): the child process in which llama.cpp runs, or which looks after one that does. [I/O]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::Outcome;

/// Run llama.cpp for another moeplan (questions on standard input).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve this computer's processor as an RPC device at HOST:PORT instead.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "supervise")]
    pub rpc_server: Option<String>,
    /// Threads of the RPC server.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: u32,
    /// Run the program after `--` with its output in FILE, and end it when standard input ends.
    #[arg(long, value_name = "FILE", requires = "command")]
    pub supervise: Option<PathBuf>,
    /// Milliseconds between asking that program to end and killing it.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub patience: u64,
    /// The program and its arguments.
    #[arg(last = true, requires = "supervise", value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.supervise {
        Some(log) => crate::runtime::process::supervise(log, &args.command, Duration::from_millis(args.patience))?,
        None => serve(args)?,
    }
    Ok(Outcome::Yes)
}

#[cfg(feature = "embedded")]
fn serve(args: &Args) -> anyhow::Result<()> {
    match &args.rpc_server {
        Some(endpoint) => crate::runtime::serve_rpc(endpoint, args.threads),
        None => crate::runtime::serve(),
    }
}

#[cfg(not(feature = "embedded"))]
fn serve(_args: &Args) -> anyhow::Result<()> {
    Err(crate::runtime::Error::not_built().into())
}
