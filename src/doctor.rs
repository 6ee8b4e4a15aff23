//! What of a computer helps or hinders moeplan: facts in, findings out, each with what to do about it.
//!
//! What is looked for is a row of `checks.tsv`, and an arm of `found` that says where it applies; variables of the
//! environment are rows of `variables.tsv`.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::bytes::{Bytes, GIB};
use crate::number::{counted, small_size};
use crate::run::build::{NEWEST, OLDEST};
pub use crate::runtime::DeviceInfo;
pub use crate::runtime::detect::Memory;
pub use crate::runtime::server::{ConfigFile, Place};

const CHECKS: &str = include_str!("doctor/checks.tsv");
const VARIABLES: &str = include_str!("doctor/variables.tsv");
/// What a calibration writes at its most, and more than all headers that are kept.
const ROOM: Bytes = Bytes(4 * GIB);

/// A computer, as far as moeplan depends on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Facts {
    pub moeplan: Moeplan,
    /// Every llama-server, in the order in which one is looked for; the first is the one that is used.
    pub servers: Vec<Server>,
    pub nvidia: Nvidia,
    /// Other graphics interfaces that the system shows: `/dev/kfd`, `/dev/dri`, `/dev/dxg`.
    pub interfaces: Vec<String>,
    pub memory: Memory,
    pub folders: Vec<Folder>,
    /// Temporary files and folders of runs that crashed or were killed.
    pub leftovers: Vec<Leftover>,
    pub knowledge: Knowledge,
    /// Variables that matter, sorted by name; those of llama.cpp, the drivers and moeplan.
    pub environment: Vec<Variable>,
    /// llama.cpp's configuration files that exist.
    pub config_files: Vec<ConfigFile>,
}

/// This moeplan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Moeplan {
    /// `0.1.0`.
    pub version: String,
    /// Whether it reads headers over the network (cargo feature `remote`).
    pub remote: bool,
    /// The llama.cpp inside it (cargo feature `embedded`).
    pub embedded: Option<Embedded>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Embedded {
    pub build: u32,
    /// Why it does not run; `None` where it does.
    pub error: Option<String>,
}

/// A llama-server that was found or named.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Server {
    pub place: Place,
    pub program: PathBuf,
    /// Why it cannot be used; `None` where it can.
    pub error: Option<String>,
    /// What it says of its version.
    pub version: Option<String>,
    /// The N of bN, where it is a release.
    pub build: Option<u32>,
    /// Flags that its help lists; 0 without help.
    pub flags: usize,
    /// Whether its flags are those of ik_llama.cpp.
    pub ik: bool,
    /// What `--list-devices` names, the processor left out; only asked of the one that is used.
    pub devices: Vec<DeviceInfo>,
    /// Whether `--list-devices` was answered.
    pub lists_devices: bool,
    pub bench: bool,
    pub rpc: bool,
}

/// The NVIDIA driver.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Nvidia {
    /// Its version; `None` where its library (NVML) cannot be loaded.
    pub driver: Option<String>,
    /// Cards that programs here see, as llama.cpp names them.
    pub cards: Vec<DeviceInfo>,
    /// Cards that there are, hidden ones too.
    pub installed: usize,
    /// Whether the kernel's side of the driver is loaded (`/proc/driver/nvidia`, `/dev/nvidiactl`).
    pub kernel_module: bool,
}

/// A folder that is written to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Folder {
    pub purpose: Purpose,
    pub path: PathBuf,
    /// Whether a file can be made there (or in what would hold the folder, where it is not there yet).
    pub writable: bool,
    pub free: Option<Bytes>,
}

/// Something temporary whose owner is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Leftover {
    pub path: PathBuf,
    pub bytes: Bytes,
}

/// What a folder is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Headers that came over the network, and the llama-server that scripts/llama-server builds.
    #[default]
    Cache,
    State,
    Config,
    Temporary,
}

/// What was learned of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Knowledge {
    pub evidence: Option<PathBuf>,
    pub records: usize,
    /// The file of rates, where there is one.
    pub rates: Option<PathBuf>,
    pub rates_error: Option<String>,
    /// Devices here that have measured rates.
    pub rated_devices: Vec<String>,
    /// Devices here whose overhead was measured.
    pub measured_devices: Vec<String>,
    /// Whether the host here has measured rates.
    pub rated_host: bool,
    /// Headers kept of models on the network.
    pub headers: usize,
    pub headers_bytes: Bytes,
}

/// One variable of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Variable {
    pub name: String,
    /// Its value; `None` where it is, or may hold, a secret.
    pub value: Option<String>,
}

/// The document `moeplan/doctor/1`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Doctor<'a> {
    /// Always `moeplan/doctor/1`.
    pub schema: &'static str,
    /// Whether no finding is a problem.
    pub ok: bool,
    /// In the order of [`Area`].
    pub findings: Vec<Finding>,
    pub facts: &'a Facts,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The llama.cpp that can be run.
    Runtime,
    /// What weights can be offloaded to.
    Devices,
    Memory,
    Disk,
    /// What was learned of this machine before.
    Knowledge,
    Environment,
}

impl Area {
    pub fn title(self) -> &'static str {
        match self {
            Self::Runtime => "Runtime",
            Self::Devices => "Devices",
            Self::Memory => "Memory",
            Self::Disk => "Disk",
            Self::Knowledge => "Known about this machine",
            Self::Environment => "Environment",
        }
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Ok,
    /// Worth knowing; every command works, and its answers are right.
    Note,
    /// Keeps a command from working, or makes an answer about this machine wrong.
    Problem,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    pub area: Area,
    pub level: Level,
    /// Its name, which does not change.
    pub code: &'static str,
    /// What was found; may hold untrusted text.
    pub message: String,
    /// What to do about it; `None` where there is nothing to do.
    pub hint: Option<String>,
}

/// The rows of a table: five columns, `#` before a comment.
fn rows(table: &'static str) -> impl Iterator<Item = [&'static str; 5]> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split('\t').collect::<Vec<_>>().try_into().ok())
}

fn finding(code: &'static str, area: &str, level: &str, message: String, hint: &str) -> Finding {
    let area = Area::from_str(area, false).unwrap_or(Area::Environment);
    // Every row has a level (a test).
    let level = Level::from_str(level, false).unwrap_or(Level::Problem);
    Finding { area, level, code, message, hint: (!hint.is_empty()).then(|| hint.to_string()) }
}

/// Judges the facts.
pub fn examine(facts: &Facts) -> Doctor<'_> {
    let mut findings: Vec<Finding> = facts.environment.iter().filter_map(of_variable).collect();
    for [key, level, area, message, hint] in rows(CHECKS) {
        let code = key.split(':').next().unwrap_or(key);
        for values in found(key, facts) {
            let mut values = values.into_iter();
            let message = message.split("{}").flat_map(|piece| [piece.to_string(), values.next().unwrap_or_default()]);
            findings.push(finding(code, area, level, message.collect(), hint));
        }
    }
    findings.sort_by_key(|finding| finding.area);
    let ok = findings.iter().all(|finding| finding.level != Level::Problem);
    Doctor { schema: "moeplan/doctor/1", ok, findings, facts }
}

/// The row of a variable. Names differ in case only where proxies are meant.
fn known(name: &str) -> Option<[&'static str; 5]> {
    let is = |pattern: &str| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), _) => name.starts_with(start),
        (None, Some(end)) => name.to_uppercase().ends_with(end),
        (None, None) => name == pattern,
    };
    rows(VARIABLES).find(|[pattern, ..]| is(pattern))
}

/// The variable as a fact, where it matters; the value of one that may hold a secret is left out.
pub fn variable(name: &str, value: &str) -> Option<Variable> {
    const SECRETS: [&str; 7] = ["TOKEN", "KEY", "SECRET", "PASS", "PASSWORD", "AUTH", "CREDENTIALS"];
    let [_, _, shown, ..] = known(name)?;
    // What only a whole family is known of may hold a key too: by a word of its name, or an address with a password.
    let may_be_secret = name.split('_').any(|word| SECRETS.contains(&word))
        || value.split_once("://").is_some_and(|(_, at)| at.contains('@'));
    let shown = shown == "shown" && !may_be_secret;
    Some(Variable { name: name.to_string(), value: shown.then(|| value.to_string()) })
}

fn of_variable(variable: &Variable) -> Option<Finding> {
    let [_, level, _, what, hint] = known(&variable.name)?;
    let value = variable.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    Some(finding("variable", "environment", level, format!("{}{value}: {what}", variable.name), hint))
}

/// The values of a message, for each thing that it is to be said of.
fn each<T>(things: impl IntoIterator<Item = T>, values: impl Fn(T) -> Vec<String>) -> Vec<Vec<String>> {
    things.into_iter().map(values).collect()
}

/// A message without values, said where `holds`.
fn when(holds: bool) -> Vec<Vec<String>> {
    each(holds.then_some(()), |()| Vec::new())
}

macro_rules! values {
    ($($value:expr),*) => { vec![$($value.to_string()),*] };
}

/// What a check applies to, as the values of its message.
#[expect(clippy::too_many_lines, reason = "one arm a check")]
fn found(key: &str, facts: &Facts) -> Vec<Vec<String>> {
    let Facts { moeplan, servers, nvidia, interfaces, memory, folders, leftovers, knowledge, .. } = facts;
    let embedded = moeplan.embedded.as_ref();
    let server = servers.first().filter(|server| server.error.is_none());
    let listed: &[_] = server.map_or(&[], |server| &server.devices);
    let is_silent = server.is_some_and(|server| !server.lists_devices);
    let is_driver_broken = nvidia.kernel_module && nvidia.driver.is_none();
    let has_no_device = nvidia.installed == 0 && nvidia.cards.is_empty() && listed.is_empty();
    let has_no_device = has_no_device && !is_silent && !is_driver_broken;
    let has_device = !nvidia.cards.is_empty() || servers.first().is_some_and(|server| !server.devices.is_empty());
    let hidden = nvidia.installed.saturating_sub(nvidia.cards.len());
    let ram = memory.available.zip(memory.total);
    let low_lock = memory.lock_limit.filter(|limit| memory.total.is_some_and(|total| limit.0 < total.0 / 2));
    let rated: Vec<&str> =
        knowledge.rated_devices.iter().map(String::as_str).chain(knowledge.rated_host.then_some("the host")).collect();
    let broken = |place: &str| {
        let server = servers.first().filter(|server| server.place.name() == place);
        let error = server.and_then(|server| Some((server, server.error.as_ref()?)));
        each(error, |(server, error)| values![server.program.display(), place, error])
    };
    let cards = |in_use: bool| {
        let driver = nvidia.driver.as_deref().unwrap_or("unknown");
        // A desktop takes a few hundred MiB; a tenth is another program's model.
        let cards = nvidia.cards.iter().filter(|card| (card.free.0 < card.total.0 / 10 * 9) == in_use);
        each(cards, |card| values![card.name, card.description, card.free, card.total, driver])
    };
    let not_writable = |purpose: Purpose| {
        let folders = folders.iter().filter(|folder| !folder.writable && folder.purpose == purpose);
        each(folders, |folder| values![folder.path.display()])
    };
    let of_folder = |folder: &Folder| match folder.free {
        Some(free) if free.0 < GIB / 16 => "disk-full",
        Some(free) if free < ROOM && folder.purpose == Purpose::Cache => "little-room",
        _ => "folder",
    };
    let config_files = |system: bool| {
        let files = facts.config_files.iter().filter(|file| file.system == system);
        each(files, |file| values![file.path.display()])
    };
    match key {
        "moeplan" => {
            let network = if moeplan.remote { "reads headers over the network" } else { "built without `remote`" };
            vec![values![moeplan.version, network]]
        }
        "embedded" => each(embedded.filter(|embedded| embedded.error.is_none()), |embedded| values![embedded.build]),
        "embedded-broken" => each(embedded.and_then(|embedded| embedded.error.as_ref()), |error| values![error]),
        "server" => each(server, |server| {
            let unknown = || server.version.clone().unwrap_or_else(|| "of an unknown version".to_string());
            let version = server.build.map_or_else(unknown, |build| format!("llama.cpp b{build}"));
            let flags = if server.flags == 0 { String::new() } else { format!(", {} flags", server.flags) };
            values![server.program.display(), server.place.name(), version, flags]
        }),
        "server-ik" => when(server.is_some_and(|server| server.ik)),
        "server-unknown-build" => {
            let (oldest, newest) = (OLDEST, NEWEST);
            let number = server.filter(|server| !server.ik).and_then(|server| server.build);
            each(number.filter(|n| !(oldest..=newest).contains(n)), |number| values![number, oldest, newest])
        }
        "server-alone" => each(server.filter(|server| !(server.bench && server.rpc)), |server| {
            let beside = [(server.bench, "llama-bench"), (server.rpc, "ggml-rpc-server")];
            let missing: Vec<&str> = beside.iter().filter(|(is_there, _)| !is_there).map(|(_, name)| *name).collect();
            values![missing.join(" and no ")]
        }),
        "server-hidden" => {
            each(servers.iter().skip(1), |server| values![server.program.display(), server.place.name()])
        }
        "no-runtime" => when(servers.is_empty() && embedded.is_none()),
        "no-server" => when(servers.is_empty() && embedded.is_some()),
        "device:card" => cards(false),
        "device-in-use" => cards(true),
        "devices-hidden" => each((hidden > 0).then_some(hidden), |hidden| values![hidden, nvidia.installed]),
        "driver-broken" => when(is_driver_broken),
        "devices-not-listed" => each(server.filter(|_| is_silent), |server: &Server| values![server.program.display()]),
        "server-without-gpu" => when(server.is_some() && !is_silent && listed.is_empty() && !nvidia.cards.is_empty()),
        "device" => {
            let others = listed.iter().filter(|device| nvidia.cards.iter().all(|card| card.name != device.name));
            each(others, |device| values![device.buffer, device.description, device.free, device.total])
        }
        "no-device:at all" => when(has_no_device && interfaces.is_empty()),
        "no-device:listed" => {
            each((has_no_device && !interfaces.is_empty()).then(|| interfaces.join(", ")), |shown| values![shown])
        }
        "memory" => each(ram, |(available, total)| values![available, total]),
        "memory-in-use" => when(ram.is_some_and(|(available, total)| available.0 < total.0 / 2)),
        "memory-unknown" => when(ram.is_none()),
        "memory-of-control-group" => {
            each(memory.computer.zip(memory.total), |(computer, total)| values![computer, total])
        }
        "swapping" => each((memory.swap_used.0 > GIB).then_some(memory.swap_used), |swap| values![swap]),
        "overcommit-strict" => when(memory.overcommit == Some(2)),
        "wsl" => when(memory.wsl),
        // `-lm mlock` locks weights within this limit (`src/llama-mmap.cpp` `llama_mlock`, b11434: a warning where it cannot).
        "lock-limit:low" => each(low_lock, |limit| values![limit]),
        "lock-limit" => each(low_lock.is_none().then_some(memory.lock_limit), |limit| {
            vec![limit.map_or("no limit on locked memory".to_string(), |limit| format!("a process may lock {limit}"))]
        }),
        "folder-not-writable:cache" => not_writable(Purpose::Cache),
        "folder-not-writable:state" => not_writable(Purpose::State),
        "folder-not-writable:config" => not_writable(Purpose::Config),
        "folder-not-writable:temporary" => not_writable(Purpose::Temporary),
        "disk-full" | "little-room" | "folder" => {
            let folders = folders.iter().filter(|folder| folder.writable && of_folder(folder) == key);
            each(folders, |folder| {
                let what = match folder.purpose {
                    Purpose::Cache => "headers and built servers",
                    Purpose::State => "what runs have shown",
                    Purpose::Config => "this machine's rates",
                    Purpose::Temporary => "temporary files",
                };
                let free = folder.free.map(|free| format!(", {free} free")).unwrap_or_default();
                values![folder.path.display(), what, free]
            })
        }
        // What crashed runs left behind: models of a calibration take GiB.
        "left-behind" => each(leftovers.first(), |first| {
            let bytes: Bytes = leftovers.iter().map(|left| left.bytes).sum();
            let what = counted(leftovers.len() as u64, "temporary file");
            let more = if leftovers.len() > 1 { ", …" } else { "" };
            values![what, small_size(bytes), first.path.display(), more]
        }),
        "rates-unreadable" => {
            let error = knowledge.rates.as_ref().zip(knowledge.rates_error.as_ref());
            each(error, |(path, error)| values![path.display(), error])
        }
        "not-calibrated" => when(rated.is_empty()),
        "calibrated" => each((!rated.is_empty()).then(|| rated.join(", ")), |rated| values![rated]),
        "overhead-unknown" => when(has_device && knowledge.measured_devices.is_empty()),
        "overhead" => {
            let measured = Some(&knowledge.measured_devices).filter(|measured| has_device && !measured.is_empty());
            each(measured, |measured| values![measured.join(", "), knowledge.records])
        }
        "headers" => {
            each((knowledge.headers > 0).then_some(knowledge), |known| values![known.headers, known.headers_bytes])
        }
        "config-file:system" => config_files(true),
        "config-file" => config_files(false),
        "environment" => when(facts.environment.is_empty() && facts.config_files.is_empty()),
        _ => key.strip_prefix("server-broken:").map(broken).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: &str, total: u64, free: u64) -> DeviceInfo {
        let (total, free) = (Bytes(total * GIB), Bytes(free * GIB));
        DeviceInfo { name: name.to_string(), gpu: true, total, free, ..DeviceInfo::default() }
    }

    /// A computer at which nothing is wrong.
    fn good() -> Facts {
        let server = Server {
            program: "/opt/llama-server".into(),
            version: Some("version: 1".to_string()),
            build: Some(11434),
            flags: 200,
            lists_devices: true,
            bench: true,
            rpc: true,
            devices: vec![card("CUDA0", 24, 23)],
            ..Server::default()
        };
        Facts {
            servers: vec![server],
            nvidia: Nvidia {
                driver: Some("590.1".to_string()),
                cards: vec![card("CUDA0", 24, 23)],
                installed: 1,
                kernel_module: true,
            },
            memory: Memory { total: Some(Bytes(128 * GIB)), available: Some(Bytes(120 * GIB)), ..Memory::default() },
            knowledge: Knowledge {
                rated_devices: vec!["CUDA0".to_string()],
                rated_host: true,
                measured_devices: vec!["CUDA0".to_string()],
                ..Knowledge::default()
            },
            folders: vec![folder(Purpose::Cache, true, 100 << 10)],
            ..Facts::default()
        }
    }

    fn folder(purpose: Purpose, writable: bool, mib: u64) -> Folder {
        Folder { purpose, path: "/x".into(), writable, free: Some(Bytes::mib(mib)) }
    }

    fn without_card(facts: &mut Facts) {
        facts.nvidia = Nvidia::default();
        facts.servers[0].devices.clear();
    }

    fn embedded(facts: &mut Facts, error: Option<&str>) {
        facts.servers.clear();
        facts.moeplan.embedded = Some(Embedded { build: 11434, error: error.map(str::to_string) });
    }

    fn set(facts: &mut Facts, name: &str) {
        facts.environment.extend(variable(name, "9"));
    }

    /// One change of a good computer, and what is then not ok.
    type Case = (fn(&mut Facts), &'static [(Level, &'static str)]);

    #[test]
    fn what_is_wrong_with_a_computer_is_said_and_nothing_else() {
        use Level::{Note, Problem};
        let cases: &[Case] = &[
            (|_| (), &[]),
            (|f| f.servers[0].error = Some("no library".into()), &[(Problem, "server-broken")]),
            (|f| f.servers[0].ik = true, &[(Problem, "server-ik")]),
            (|f| f.servers[0].build = Some(20000), &[(Note, "server-unknown-build")]),
            (|f| f.servers[0].build = None, &[]),
            (|f| f.servers[0].bench = false, &[(Note, "server-alone")]),
            (|f| f.servers.clear(), &[(Problem, "no-runtime")]),
            (|f| embedded(f, None), &[(Note, "no-server")]),
            (|f| embedded(f, Some("crash")), &[(Problem, "embedded-broken"), (Note, "no-server")]),
            (|f| f.servers.push(Server { place: Place::Cache, ..Server::default() }), &[]),
            (|f| f.servers[0].devices.clear(), &[(Problem, "server-without-gpu")]),
            (
                |f| (f.servers[0].lists_devices, f.servers[0].devices) = (false, Vec::new()),
                &[(Problem, "devices-not-listed")],
            ),
            (|f| f.nvidia.installed = 2, &[(Note, "devices-hidden")]),
            (|f| f.nvidia.cards = vec![card("CUDA0", 24, 9)], &[(Note, "device-in-use")]),
            (without_card, &[(Note, "no-device")]),
            (|f| (without_card(f), f.nvidia.kernel_module = true).1, &[(Problem, "driver-broken")]),
            (|f| (without_card(f), f.servers[0].devices = vec![card("Vulkan0", 8, 8)]).1, &[]),
            (|f| f.memory.available = Some(Bytes(9 * GIB)), &[(Note, "memory-in-use")]),
            (|f| f.memory.total = None, &[(Note, "memory-unknown")]),
            (|f| f.memory.computer = Some(Bytes(256 * GIB)), &[(Note, "memory-of-control-group")]),
            (|f| f.memory.swap_used = Bytes(3 * GIB), &[(Note, "swapping")]),
            (|f| f.memory.lock_limit = Some(Bytes::mib(8)), &[(Note, "lock-limit")]),
            (|f| f.memory.lock_limit = Some(Bytes(128 * GIB)), &[]),
            (|f| f.memory.overcommit = Some(2), &[(Note, "overcommit-strict")]),
            (|f| f.memory.wsl = true, &[(Note, "wsl")]),
            (|f| f.folders.push(folder(Purpose::State, false, 99999)), &[(Problem, "folder-not-writable")]),
            (|f| f.folders.push(folder(Purpose::Cache, true, 2000)), &[(Note, "little-room")]),
            (|f| f.folders.push(folder(Purpose::Cache, true, 1)), &[(Problem, "disk-full")]),
            (|f| f.leftovers.push(Leftover { path: "/c/x".into(), bytes: Bytes(GIB) }), &[(Note, "left-behind")]),
            (|f| set(f, "LLAMA_ARG_N_CPU_MOE"), &[(Note, "variable")]),
            (|f| set(f, "GGML_CUDA_ENABLE_UNIFIED_MEMORY"), &[(Problem, "variable")]),
            (|f| set(f, "HF_TOKEN"), &[]),
            (|f| f.config_files.push(ConfigFile { path: "/c.ini".into(), system: true }), &[(Problem, "config-file")]),
            (|f| f.config_files.push(ConfigFile { path: "/c.ini".into(), system: false }), &[(Note, "config-file")]),
            (|f| f.knowledge = Knowledge::default(), &[(Note, "not-calibrated"), (Note, "overhead-unknown")]),
            (
                |f| (f.knowledge.rates, f.knowledge.rates_error) = (Some("/m.json".into()), Some("bad".into())),
                &[(Problem, "rates-unreadable")],
            ),
        ];
        for (at, (change, expected)) in cases.iter().enumerate() {
            let mut facts = good();
            change(&mut facts);
            let Doctor { ok, findings, .. } = examine(&facts);
            assert!(findings.iter().all(|found| found.level != Problem || found.hint.is_some()), "{findings:?}");
            assert!(findings.is_sorted_by_key(|found| found.area), "{findings:?}");
            let wrong: Vec<_> = findings
                .iter()
                .filter(|found| found.level != Level::Ok)
                .map(|found| (found.level, found.code))
                .collect();
            assert_eq!(
                (wrong.as_slice(), ok),
                (*expected, expected.iter().all(|(level, _)| *level != Problem)),
                "{at}"
            );
        }
    }

    #[test]
    fn no_variable_is_hidden_by_an_earlier_row_and_secrets_stay() {
        let all: Vec<_> = rows(VARIABLES).collect();
        assert_eq!(all.len(), VARIABLES.lines().filter(|line| !line.starts_with('#')).count());
        for row in all {
            assert_eq!(known(&row[0].replace('*', "X")), Some(row), "{} is hidden", row[0]);
        }
        let shown = |name: &str, value: &str| variable(name, value).unwrap().value;
        assert_eq!(shown("LLAMA_ARG_CTX_SIZE", "1").as_deref(), Some("1"));
        for name in ["HF_TOKEN", "https_proxy", "MOEPLAN_API_KEY", "LLAMA_API_KEY", "HF_ENDPOINT", "LLAMA_CLOUD_TOKEN"]
        {
            assert_eq!(shown(name, "1"), None, "{name}");
        }
        assert_eq!(shown("MOEPLAN_X", "https://me:word@host"), None);
        assert_eq!(variable("PATH", "/bin"), None);
    }

    #[test]
    fn every_row_is_an_arm_and_every_arm_a_row() {
        let code = include_str!("doctor.rs");
        let rows: Vec<_> = rows(CHECKS).collect();
        assert_eq!(rows.len(), CHECKS.lines().filter(|line| !line.starts_with('#')).count());
        for [key, level, area, ..] in &rows {
            assert!(code.contains(&format!("\"{key}\"")) || key.starts_with("server-broken:"), "{key}");
            assert!(Level::from_str(level, false).is_ok() && Area::from_str(area, false).is_ok(), "{key}");
        }
        for place in [Place::Named, Place::Path, Place::Cache] {
            assert!(rows.iter().any(|[key, ..]| *key == format!("server-broken:{}", place.name())));
        }
    }
}
