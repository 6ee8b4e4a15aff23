//! A software device: llama.cpp's RPC server in a process of our own, for machines without a GPU. [I/O]

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use super::server::Process;
use super::worker::{Worker, wait_for};
use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host, Machine};
use crate::run::RunConfig;

/// How often a free port is looked for: another program may take it first.
const ATTEMPTS: usize = 5;
/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What serves a software device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcProgram {
    /// A moeplan with feature `embedded`, as `moeplan worker --rpc-server`.
    Moeplan(PathBuf),
    /// llama.cpp's own ggml-rpc-server, under a moeplan that supervises it.
    Ggml {
        /// The moeplan program.
        moeplan: PathBuf,
        /// ggml-rpc-server.
        program: PathBuf,
    },
}

impl From<&Path> for RpcProgram {
    fn from(program: &Path) -> Self {
        Self::Moeplan(program.to_path_buf())
    }
}

impl From<&PathBuf> for RpcProgram {
    fn from(program: &PathBuf) -> Self {
        Self::Moeplan(program.clone())
    }
}

/// A local RPC server. It ends when this value is dropped, or when this program ends.
#[derive(Debug)]
pub struct RpcServer {
    endpoint: String,
    process: Serving,
}

/// The process of a server.
#[derive(Debug)]
enum Serving {
    Worker(Worker),
    Supervised(Process),
}

impl Serving {
    fn start(program: &RpcProgram, endpoint: &str, n_threads: u32) -> Result<Self, Error> {
        let threads = n_threads.max(1).to_string();
        match program {
            RpcProgram::Moeplan(moeplan) => {
                let arguments = ["--rpc-server", endpoint, "--threads", threads.as_str()];
                let environment = [("OMP_WAIT_POLICY", "passive")];
                Worker::start(moeplan, &arguments, &environment, None).map(Self::Worker)
            }
            RpcProgram::Ggml { moeplan, program } => {
                let (host, port) = endpoint.rsplit_once(':').unwrap_or((endpoint, "0"));
                let words = ["-H", host, "-p", port, "-t", threads.as_str()];
                let command = std::iter::once(program.clone().into()).chain(words.iter().map(OsString::from));
                Process::start_quiet(moeplan, command.collect()).map(Self::Supervised)
            }
        }
    }

    fn is_alive(&mut self) -> bool {
        match self {
            Self::Worker(worker) => worker.is_alive(),
            Self::Supervised(process) => process.ended().is_none(),
        }
    }

    fn last_words(&mut self) -> Vec<String> {
        match self {
            Self::Worker(worker) => worker.last_words(),
            Self::Supervised(process) => process.new_lines(),
        }
    }
}

impl RpcServer {
    /// Starts one on a free loopback port, with `n_threads` threads.
    pub fn start(program: impl Into<RpcProgram>, n_threads: u32) -> Result<Self, Error> {
        let program = program.into();
        let mut log = Vec::new();
        for _ in 0..ATTEMPTS {
            let Ok(port) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr())
            else {
                continue;
            };
            let endpoint = format!("127.0.0.1:{}", port.port());
            let mut process = Serving::start(&program, &endpoint, n_threads)?;
            if wait_for(&endpoint, || process.is_alive(), START_LIMIT) {
                return Ok(Self { endpoint, process });
            }
            log = process.last_words();
        }
        Err(Error::NoRpcServer(log))
    }

    /// `127.0.0.1:PORT`, as `--rpc` takes it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The process id of the server.
    pub fn id(&self) -> u32 {
        match &self.process {
            Serving::Worker(worker) => worker.id(),
            Serving::Supervised(process) => process.id(),
        }
    }
}

/// A machine of `n` software devices that have no server yet ([`bind_software_devices`] starts them). `total` is the
/// budget of each.
pub fn software_machine(n: u16, total: Bytes) -> Machine {
    let device = |i| {
        let name = format!("RPC{i}");
        let description = Some("software device".to_string());
        Device {
            buffer: name.clone(),
            name,
            backend: Backend::Rpc,
            description,
            total,
            free: total,
            sold_as: None,
            overhead: None,
            calibration: None,
            rates: None,
        }
    };
    Machine { devices: (0..n).map(device).collect(), host: Host::default() }
}

/// Starts a local server for each RPC device of the machine that names no endpoint, gives the device and the overrides
/// that name it the full name, and lists every RPC device's server in `run`. The servers live as long as the returned
/// values.
pub fn bind_software_devices(
    program: impl Into<RpcProgram>,
    machine: &mut Machine,
    run: &mut RunConfig,
    n_threads: u32,
) -> Result<Vec<RpcServer>, Error> {
    let program = program.into();
    let mut servers = Vec::new();
    for device in machine.devices.iter_mut().filter(|device| device.backend == Backend::Rpc) {
        if device.endpoint().is_none() {
            let server = RpcServer::start(program.clone(), n_threads)?;
            // The number in a buffer type's name counts the server's own devices: it has one.
            device.buffer = format!("RPC0[{}]", server.endpoint());
            for rule in run.overrides.iter_mut().filter(|rule| rule.buffer == device.name) {
                rule.buffer.clone_from(&device.buffer);
            }
            servers.push(server);
        }
        if let Some(endpoint) = device.endpoint().map(str::to_string)
            && !run.rpc.contains(&endpoint)
        {
            run.rpc.push(endpoint);
        }
    }
    Ok(servers)
}
