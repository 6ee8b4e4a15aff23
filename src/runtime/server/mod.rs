//! The real llama-server as a runtime: found, started under supervision, measured over HTTP, stopped. [I/O]
//!
//! [`Server::start`] gives a [`Running`]; [`Running::complete`] a [`Reply`] with the server's own timings; [`Running::stop`]
//! ends it. Whatever happens to moeplan, the server does not outlive it: a supervisor, which is moeplan itself as
//! `moeplan worker --supervise`, ends it as soon as its standard input ends.

mod arguments;
pub(super) mod client;
pub mod environment;
mod error;
pub mod find;
mod measure;
mod process;
mod running;
pub mod sse;
mod supervise;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use arguments::measurable;
pub use client::{Client, Input, Reply, Request, Timings};
pub use error::{Error, Failed};
pub use find::Build;
pub use process::{End, Process};
pub use running::Running;
pub use supervise::supervise;

use super::log::Stage;
use super::{DeviceInfo, Echo, Launch, Observation, Projection, Runtime, Workload};
use crate::run::RunConfig;

/// How far a server has come, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It loads.
    Loading(Stage),
    /// It takes requests, or the measurement is over.
    Ready,
    /// The first request, which is not counted.
    WarmUp,
    /// The `of`-th part of a measurement.
    Sample {
        /// From 1.
        number: u32,
        /// How many there will be.
        of: u32,
    },
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until it takes requests.
    pub load: Duration,
    /// With nothing moving while it loads: no line of log, no processor time, no change of memory.
    pub stall: Duration,
    /// One request.
    pub request: Duration,
    /// Between asking it to end and killing it.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            load: Duration::from_mins(30),
            stall: Duration::from_mins(5),
            request: Duration::from_mins(30),
            stop: Duration::from_secs(10),
        }
    }
}

/// A llama-server that can be started, and how.
#[derive(Debug, Clone)]
pub struct Server {
    /// The moeplan program, which supervises the server.
    pub moeplan: PathBuf,
    /// The server's program and what it says of itself.
    pub build: Build,
    /// How long things may take.
    pub limits: Limits,
    /// Words after those of the launch.
    pub extra: Vec<String>,
    /// Where its log is kept; `None` = in a temporary place until it is stopped.
    pub log: Option<PathBuf>,
    /// Whether `LLAMA_API_KEY` is left to it.
    pub keeps_key: bool,
    /// Where its log lines go as they come.
    pub echo: Option<Echo>,
    /// Where steps are told.
    pub watch: Option<fn(Step)>,
    /// Whether the person wants to stop.
    pub interrupted: fn() -> bool,
}

impl Server {
    /// The server at `named`, or the one that is found ([`find::find`]), asked for its version and flags.
    pub fn find(named: Option<&Path>) -> Result<Self, super::Error> {
        let build = find::probe(&find::find(named)?)?;
        Ok(Self { moeplan: super::this_program()?, ..Self::of(PathBuf::new(), build) })
    }

    /// A server of `build` under the moeplan program `moeplan`.
    pub fn of(moeplan: PathBuf, build: Build) -> Self {
        Self {
            moeplan,
            build,
            limits: Limits::default(),
            extra: Vec::new(),
            log: None,
            keeps_key: false,
            echo: None,
            watch: None,
            interrupted: || false,
        }
    }

    /// Whether its build has every flag of a launch.
    pub fn takes(&self, run: &RunConfig) -> bool {
        arguments::arguments(&self.build, run, Path::new(""), 0, &[]).is_ok()
    }

    fn tell(&self, step: Step) {
        if let Some(watch) = self.watch {
            watch(step);
        }
    }

    /// The RPC server that was built with it.
    pub fn rpc_program(&self) -> Result<PathBuf, Error> {
        let program = &self.build.program;
        find::beside(program, &["ggml-rpc-server", "rpc-server"]).ok_or_else(|| Error::NoRpcServer(program.clone()))
    }
}

impl Runtime for Server {
    fn devices(&self, rpc: &[String]) -> Result<Vec<DeviceInfo>, super::Error> {
        for endpoint in rpc {
            super::worker::reach(endpoint)?;
        }
        Ok(find::devices(&self.build.program, rpc)?)
    }

    fn project(&self, launches: &[Launch]) -> Vec<Result<Projection, super::Error>> {
        launches.iter().map(|_| Err(Error::NeedsEmbedded("a projection").into())).collect()
    }

    fn generate(&self, launch: &Launch, workload: &Workload) -> Result<Observation, super::Error> {
        measure::generate(self, launch, workload)
    }
}
