//! `worker` (hidden): the child process in which llama.cpp runs. [I/O]

use super::Outcome;

/// Run llama.cpp for another moeplan (questions on standard input).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve this computer's processor as an RPC device at HOST:PORT instead.
    #[arg(long, value_name = "HOST:PORT")]
    pub rpc_server: Option<String>,
    /// Threads of the RPC server.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: u32,
}

/// Runs until standard input ends.
#[cfg(feature = "embedded")]
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.rpc_server {
        Some(endpoint) => crate::runtime::serve_rpc(endpoint, args.threads)?,
        None => crate::runtime::serve()?,
    }
    Ok(Outcome::Yes)
}

/// Says that this moeplan has no llama.cpp.
#[cfg(not(feature = "embedded"))]
pub fn run(_args: &Args) -> anyhow::Result<Outcome> {
    Err(crate::runtime::Error::NotBuilt.into())
}
