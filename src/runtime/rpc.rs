//! A software device: llama.cpp's RPC server in a process of our own, for machines without a GPU. [I/O]

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::Error;
use super::worker::{Worker, wait_for};
use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host, Machine};
use crate::run::RunConfig;

/// How often a free port is looked for: another program may take it first.
const ATTEMPTS: usize = 5;
/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A local RPC server. It ends when this value is dropped, or when this program ends.
#[derive(Debug)]
pub struct RpcServer {
    endpoint: String,
    worker: Worker,
}

impl RpcServer {
    /// Starts one on a free loopback port, with `n_threads` threads; `program` is a moeplan with feature `embedded`.
    pub fn start(program: &Path, n_threads: u32) -> Result<Self, Error> {
        let mut log = Vec::new();
        for _ in 0..ATTEMPTS {
            let Ok(port) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr())
            else {
                continue;
            };
            let endpoint = format!("127.0.0.1:{}", port.port());
            let threads = n_threads.max(1).to_string();
            let arguments = ["--rpc-server", endpoint.as_str(), "--threads", threads.as_str()];
            let mut worker = Worker::start(program, &arguments, &[("OMP_WAIT_POLICY", "passive")], None)?;
            if wait_for(&endpoint, &mut worker, START_LIMIT) {
                return Ok(Self { endpoint, worker });
            }
            log = worker.last_words();
        }
        Err(Error::NoRpcServer(log))
    }

    /// `127.0.0.1:PORT`, as `--rpc` takes it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The process id of the server.
    pub fn id(&self) -> u32 {
        self.worker.id()
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
            overhead: None,
            rates: None,
        }
    };
    Machine { devices: (0..n).map(device).collect(), host: Host::default() }
}

/// Starts a local server for each RPC device of the machine that names no endpoint, gives the device and the overrides
/// that name it the full name, and lists every RPC device's server in `run`. The servers live as long as the returned
/// values.
pub fn bind_software_devices(
    program: &Path,
    machine: &mut Machine,
    run: &mut RunConfig,
    n_threads: u32,
) -> Result<Vec<RpcServer>, Error> {
    let mut servers = Vec::new();
    for device in machine.devices.iter_mut().filter(|device| device.backend == Backend::Rpc) {
        if device.endpoint().is_none() {
            let server = RpcServer::start(program, n_threads)?;
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
