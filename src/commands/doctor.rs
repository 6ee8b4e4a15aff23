//! `doctor`: what is installed and usable here, what would interfere, and what to do about each. [I/O]

use std::path::{Path, PathBuf};

use super::machine::found_with;
use super::{Outcome, Output, devices};
use crate::doctor::{
    Embedded, Facts, Folder, Knowledge, Leftover, Moeplan, Nvidia, Place, Purpose, Server, Variable, examine, variable,
};
use crate::files::{self, temporary};
use crate::gguf::source::cache;
use crate::machine::Machine;
use crate::runtime::server;
use crate::runtime::{self, Runtime as _, detect, nvml};
use crate::synth::output::free_space;
use crate::{evidence, run};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan doctor
  moeplan doctor --llama-server ~/llama.cpp/build/bin/llama-server
Exit code 1 if there is a problem: something keeps a command from working, or makes its
answers wrong.
Every finding: docs/doctor.md.")]
pub struct Args {
    /// The llama-server to examine [default: from PATH, else what scripts/llama-server built].
    #[arg(long, value_name = "PATH", env = "MOEPLAN_LLAMA_SERVER")]
    llama_server: Option<PathBuf>,
}

/// Runs `doctor`: exit 1 where there is a problem.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let facts = facts(args.llama_server.as_deref())?;
    let document = examine(&facts);
    output.show(&document)?;
    Ok(if document.ok { Outcome::Yes } else { Outcome::No })
}

fn facts(named: Option<&Path>) -> anyhow::Result<Facts> {
    let servers = servers(named);
    let cards = nvml::listed();
    let nvidia = Nvidia {
        driver: nvml::driver(),
        installed: nvml::cards().len(),
        kernel_module: ["/proc/driver/nvidia/version", "/dev/nvidiactl"].iter().any(|path| Path::new(path).exists()),
        cards,
    };
    let list = if nvidia.cards.is_empty() {
        servers.first().map_or_else(Vec::new, |server| server.devices.clone())
    } else {
        nvidia.cards.clone()
    };
    let here = found_with(detect::Devices { list, driver: nvidia.driver.clone(), source: None })?;
    let variables = std::env::vars_os();
    let mut environment: Vec<Variable> =
        variables.filter_map(|(name, value)| variable(name.to_str()?, &value.to_string_lossy())).collect();
    environment.sort_by(|a, b| a.name.cmp(&b.name));
    let interfaces = ["/dev/kfd", "/dev/dri", "/dev/dxg"].into_iter().filter(|path| Path::new(path).exists());
    Ok(Facts {
        moeplan: Moeplan {
            version: env!("CARGO_PKG_VERSION").to_string(),
            remote: cfg!(feature = "remote"),
            embedded: cfg!(feature = "embedded").then(|| {
                let answer = runtime::Embedded::here().and_then(|embedded| embedded.devices(&[]));
                Embedded { build: runtime::EMBEDDED_BUILD, error: answer.err().map(|error| error.to_string()) }
            }),
        },
        servers,
        nvidia,
        interfaces: interfaces.map(str::to_string).collect(),
        memory: detect::memory(),
        folders: folders(),
        leftovers: temporary::leftovers()
            .into_iter()
            .filter(|left| left.path.exists())
            .map(|left| Leftover { path: left.path.clone(), bytes: left.bytes })
            .collect(),
        knowledge: knowledge(&here.machine),
        environment,
        config_files: server::config_files(),
    })
}

/// The server that is used, asked for what it is, then those that it hides.
fn servers(named: Option<&Path>) -> Vec<Server> {
    let mut all: Vec<(Place, PathBuf)> = named.map(|path| (Place::Named, path.to_path_buf())).into_iter().collect();
    all.extend(server::places());
    let mut all = all.into_iter();
    let Some((place, program)) = all.next() else { return Vec::new() };
    let used = server(place, &program);
    let hidden = all.filter(|(_, program)| *program != used.program);
    let hidden = hidden.map(|(place, program)| Server { place, program, ..Server::default() }).collect::<Vec<_>>();
    [vec![used], hidden].concat()
}

fn server(place: Place, program: &Path) -> Server {
    let mut found = Server { place, program: program.to_path_buf(), ..Server::default() };
    let build = match server::find(Some(program)).and_then(|program| server::probe(&program)) {
        Ok(build) => build,
        Err(error) => {
            found.error = Some(format!("{:#}", anyhow::Error::from(error)));
            return found;
        }
    };
    found.program.clone_from(&build.program);
    if let Ok(devices) = server::devices(&build.program, &[]) {
        (found.lists_devices, found.devices) = (true, devices);
    }
    found.bench = server::beside(&build.program, &["llama-bench"]).is_some();
    found.rpc = server::beside(&build.program, &["ggml-rpc-server", "rpc-server"]).is_some();
    found.ik = run::dialect::is_ik(&build.flags);
    found.flags = build.flags.len();
    (found.version, found.build) = (Some(build.version), build.number);
    found
}

fn folders() -> Vec<Folder> {
    let of_file = |path: Option<PathBuf>| path.and_then(|path| path.parent().map(Path::to_path_buf));
    let all = [
        (Purpose::Cache, files::cache_folder()),
        (Purpose::State, of_file(evidence::store::path())),
        (Purpose::Config, of_file(devices::own_file())),
        (Purpose::Temporary, Some(std::env::temp_dir())),
    ];
    let folder = |(purpose, path): (Purpose, Option<PathBuf>)| {
        let path = path?;
        // A folder that is not there yet is made in the nearest one that is.
        let there = path.ancestors().find(|folder| folder.exists());
        // An unnamed file leaves nothing behind.
        let writable = there.is_some_and(|folder| folder.is_dir() && tempfile::tempfile_in(folder).is_ok());
        Some(Folder { purpose, writable, free: there.and_then(free_space), path })
    };
    all.into_iter().filter_map(folder).collect()
}

fn knowledge(here: &Machine) -> Knowledge {
    let names = |is: fn(&crate::machine::Device) -> bool| {
        here.devices.iter().filter(|device| is(device)).map(|device| device.name.clone()).collect()
    };
    let rates = devices::own_file().filter(|path| path.exists());
    let rates_error = rates.as_ref().and_then(|path| {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        text.and_then(|text| serde_json::from_str::<Machine>(&text).map_err(|error| error.to_string())).err()
    });
    let (headers, headers_bytes) = cache::kept();
    Knowledge {
        evidence: evidence::store::path().filter(|path| path.exists()),
        records: evidence::store::read().len(),
        rates,
        rates_error,
        rated_devices: names(|device| device.rates.is_some()),
        measured_devices: names(|device| device.calibration.is_some()),
        rated_host: here.host.rates.is_some(),
        headers,
        headers_bytes,
    }
}
