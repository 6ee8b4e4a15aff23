//! The real llama-server as a runtime: found, started under supervision, measured over HTTP, stopped. [I/O]
//!
//! [`Server::start`] gives a [`Running`]; [`Running::complete`] a [`Reply`] with the server's own timings; [`Running::stop`]
//! ends it. What of the environment would change a launch without its command line saying so is kept out: `common/arg.cpp`
//! `common_params_parse_ex`, `common_params_apply_system_config`; `tools/server/server-http.cpp` (`AIP_*`),
//! `tools/server/server-models.cpp` (`LLAMA_SERVER_*`), b11434.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use regex::Regex;

use super::client::{Endpoint, Reply, Request};
use super::log::{self, LoadLog, Serving, Stage};
use super::nvml;
use super::process::{End, Process, Stopped, never, output, pause, temporary_folder, wait};
use super::sampler::Watch;
use super::worker::{free_port, reach};
use super::{
    DeviceInfo, Echo, Error, Kind, LOADING, Launch, Observation, Projection, Prompt, Runtime, RuntimeInfo, Workload,
    pseudo_random, telling,
};
use crate::bytes::Bytes;
use crate::files::temporary::Folder;
use crate::machine::Isa;
use crate::run::build::{NEWEST, release};
use crate::run::{
    Choice as _, LoadMode, ModelSource, OFFLOAD_MIN_BATCH, Program, RunConfig, args, flags, groups, is_speculation,
    spelling,
};
use crate::speed::samples::{self, BenchRow};

/// The folder below moeplan's cache that `scripts/llama-server` fills.
pub const CACHE_FOLDER: &str = "llama.cpp-b11434/bin";
/// The variable that makes a server ask for a key.
pub const API_KEY: &str = "LLAMA_API_KEY";
/// Where a server listens: this computer, alone.
const HOST: &str = "127.0.0.1";
/// How long a program may take to say what it is: a GPU driver can take seconds to wake.
const PROBE_LIMIT: Duration = Duration::from_mins(1);
/// The most that is read of what it says, in bytes.
const PROBE_BYTES: u64 = 1 << 20;
/// The smallest number that is a release of llama.cpp; builds outside its repository count from 1.
const FIRST_RELEASE: u32 = 1000;
/// How often a program is asked which variant of its code it picked.
const ASKED: usize = 4;
/// How often a free port is looked for: another program may take it first.
const PORT_ATTEMPTS: usize = 4;
/// How often a server that has not said that it listens is asked all the same.
const ASK_ANYWAY: Duration = Duration::from_secs(5);
/// How often it is looked whether its process moves at all.
const LOOK_AT_PROCESS: Duration = Duration::from_secs(1);
/// After its connection broke: how long until its end is seen, if it has ended.
const UNTIL_END_IS_SEEN: Duration = Duration::from_secs(2);
/// How often memory is looked at while it works.
const PERIOD: Duration = Duration::from_millis(50);
/// Tokens generated in the warm-up: enough for the graph of one token to be built and run.
const WARM_UP_TOKENS: u32 = 8;

/// Where a llama-server was looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It was named, by a flag or by `MOEPLAN_LLAMA_SERVER`.
    Named,
    #[default]
    Path,
    /// What `scripts/llama-server` has built.
    Cache,
}

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Path => "on PATH",
            Self::Cache => "built by scripts/llama-server",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    pub program: PathBuf,
    pub version: String,
    /// The N of bN; `None` when it does not say, or when it was built apart from llama.cpp's repository.
    pub number: Option<u32>,
    /// Every flag its help lists; empty when there is no help.
    pub flags: BTreeSet<String>,
    /// What it repacks: of a build with variants for many processors the one it picked, else this processor's.
    pub isa: Isa,
}

impl Build {
    /// The newest build that is known, for what asks no program: nothing is launched.
    pub fn assumed() -> Self {
        let (number, isa) = (Some(NEWEST), super::detect::isa());
        Self { program: PathBuf::new(), version: String::new(), number, flags: BTreeSet::new(), isa }
    }

    /// Whether there is a program of it here.
    pub fn is_here(&self) -> bool {
        !self.program.as_os_str().is_empty()
    }

    /// Whether it takes this flag; a build without help is taken to.
    pub fn takes(&self, flag: &str) -> bool {
        self.flags.is_empty() || self.flags.contains(flag)
    }

    /// What messages call it: `llama.cpp b11434`, or its version's line.
    pub fn name(&self) -> String {
        self.number.map_or_else(|| format!("`{}`", self.version), |number| format!("llama.cpp b{number}"))
    }
}

const NAME_IT: &str = "name llama.cpp's llama-server with --llama-server PATH or MOEPLAN_LLAMA_SERVER";

/// Finds llama-server: the path that was named, `PATH`, then what `scripts/llama-server` has built. Every place that was
/// looked at is in the error.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        let program = if path.is_dir() { path.join(program_name("llama-server")) } else { path.to_path_buf() };
        let message = || format!("`{}` is not a program that can be run", program.display());
        return if is_program(&program) { Ok(program) } else { Err(Error::setup(message(), NAME_IT)) };
    }
    places().into_iter().next().map(|(_, program)| program).ok_or_else(|| {
        let built = built().map(|program| format!(", {}", program.display())).unwrap_or_default();
        let hint = "get one with brew install llama.cpp, winget install llama.cpp, or from github.com/ggml-org/llama.cpp/releases (in \
                    a clone, scripts/llama-server builds one); put it on PATH, or name it with --llama-server PATH or \
                    MOEPLAN_LLAMA_SERVER";
        Error::setup(format!("no llama-server was found (looked at PATH{built})"), hint)
    })
}

/// Every llama-server that can be run, in the order in which one is looked for when none is named.
pub fn places() -> Vec<(Place, PathBuf)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| (Place::Path, folder.join(program_name("llama-server"))));
    let mut found: Vec<(Place, PathBuf)> = Vec::new();
    for (place, program) in on_path.chain(built().map(|program| (Place::Cache, program))) {
        if is_program(&program) && found.iter().all(|(_, known)| *known != program) {
            found.push((place, program));
        }
    }
    found
}

fn built() -> Option<PathBuf> {
    Some(crate::files::cache_folder()?.join(CACHE_FOLDER).join(program_name("llama-server")))
}

/// A program that was built with `server`: llama-bench, ggml-rpc-server (once rpc-server).
pub fn beside(server: &Path, names: &[&str]) -> Option<PathBuf> {
    let folder = std::fs::canonicalize(server).ok()?;
    let folder = folder.parent()?;
    names.iter().map(|name| folder.join(program_name(name))).find(|program| is_program(program))
}

fn program_name(name: &str) -> String {
    format!("{name}{}", std::env::consts::EXE_SUFFIX)
}

pub(super) fn is_program(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    #[cfg(unix)]
    let runs = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
    #[cfg(not(unix))]
    let runs = true;
    metadata.is_file() && runs
}

/// The line in which a program says its version.
pub(super) fn version(program: &Path) -> Result<String, Error> {
    let version = ask(program, &["--version"])?;
    let line = version.lines().find(|line| line.contains("version:")).or_else(|| version.lines().next());
    let line = line.unwrap_or_default().trim().to_string();
    if !line.contains("version") {
        let program = program.display();
        let message = format!("`{program}` is not a llama-server: when asked for its version, it says `{line}`");
        return Err(Error::setup(message, NAME_IT));
    }
    Ok(line)
}

pub fn probe(program: &Path) -> Result<Build, Error> {
    let line = version(program)?;
    let help = ask(program, &["--help"]).unwrap_or_default();
    let flags = flags(&help);
    let isa = if flags.contains("-lv") { picked(program)? } else { None };
    let isa = isa.unwrap_or_else(super::detect::isa);
    Ok(Build { program: program.to_path_buf(), number: number(&line), version: line, flags, isa })
}

/// The instruction set of the variant that a program picks for this processor; `None` where it has no variants. It may end
/// before its log is written to the end (common/log.cpp writes from a thread, b11434), so one that has variants is asked again.
fn picked(program: &Path) -> Result<Option<Isa>, Error> {
    let folder = std::fs::canonicalize(program).ok().and_then(|program| program.parent().map(Path::to_path_buf));
    let mut files = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let has_variants = files.any(|file| file.file_name().to_string_lossy().contains("ggml-cpu-"));
    for _ in 0..if has_variants { ASKED } else { 1 } {
        let isa = variant(&ask(program, &["-lv", "4", "--list-devices"])?);
        if isa.is_some() {
            return Ok(isa);
        }
    }
    Ok(None)
}

/// The devices it lists, `rpc` servers' first; the processor is not among them.
pub fn devices(program: &Path, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error> {
    listed(&mut command(program), rpc)
}

fn listed(program: &mut Command, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error> {
    let servers = rpc.join(",");
    let arguments: &[&str] = if rpc.is_empty() { &["--list-devices"] } else { &["--rpc", &servers, "--list-devices"] };
    Ok(log::devices(&answer(program, arguments)?))
}

/// What a program prints, on both streams.
pub(super) fn ask(program: &Path, arguments: &[&str]) -> Result<String, Error> {
    answer(&mut command(program), arguments)
}

fn answer(program: &mut Command, arguments: &[&str]) -> Result<String, Error> {
    let name = program.get_program().display().to_string();
    let failed = |error| {
        let message = format!("cannot ask `{name}` for `{}`", arguments.join(" "));
        Error::setup(message, "check that it runs by hand, with its libraries beside it").caused_by(error)
    };
    let printed = output(program.args(arguments), Vec::new(), PROBE_LIMIT, PROBE_BYTES).map_err(failed)?;
    if printed.status.is_none() {
        return Err(failed(std::io::Error::other(format!("no answer in {} s", PROBE_LIMIT.as_secs()))));
    }
    Ok(format!("{}\n{}", printed.stdout, printed.stderr))
}

/// A program of llama.cpp without the variables of this environment that it would heed.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in to_remove(false) {
        command.env_remove(name);
    }
    command
}

/// The instruction set of the processor's variant that was loaded (ggml/src/ggml-backend-reg.cpp; the variants of
/// ggml/src/CMakeLists.txt, b11434).
fn variant(log: &str) -> Option<Isa> {
    let (_, rest) = log.split_once("ggml-cpu-")?;
    let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "._".contains(*c)).collect();
    let name = name.trim_end_matches(std::env::consts::DLL_SUFFIX);
    Some(match name {
        "sapphirerapids" => Isa::X86Amx,
        "skylakex" | "cannonlake" | "cascadelake" | "icelake" | "cooperlake" | "zen4" => Isa::X86Avx512,
        "haswell" | "alderlake" => Isa::X86Avx2,
        "x64" | "sse42" | "sandybridge" | "ivybridge" | "piledriver" => Isa::Generic,
        name if name.starts_with("armv8.0") => Isa::Generic,
        name if name.starts_with("arm") || name.starts_with("apple") => Isa::ArmNeon,
        _ => return None,
    })
}

/// The build's number in `version: 0.6.0-dev (build 11434, commit …)`, `version: 4567 (abcdef)` or, of a release, `version: 0.6.0`.
pub(super) fn number(line: &str) -> Option<u32> {
    if let Some(build) = line.strip_prefix("version: ").and_then(release) {
        return Some(build);
    }
    let groups = Regex::new(r"(?:build |version: )(\d+)(?:[^.\d]|$)").ok()?.captures(line)?;
    groups.get(1)?.as_str().parse().ok().filter(|number| *number >= FIRST_RELEASE)
}

/// The flags of a help text: the words that begin its lines, up to the first that is none.
pub(super) fn flags(help: &str) -> BTreeSet<String> {
    let is_flag = |word: &&str| {
        word.strip_prefix('-')
            .is_some_and(|rest| rest.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    let lines = help.lines().filter(|line| line.starts_with('-'));
    lines
        .flat_map(|line| line.split_whitespace().map(|word| word.trim_end_matches(',')).take_while(is_flag))
        .map(str::to_string)
        .collect()
}

/// The variables here that llama-server would heed, sorted. `keeps_key` leaves [`API_KEY`] to it.
fn to_remove(keeps_key: bool) -> Vec<String> {
    // A name that is not text is none of these.
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| is_heeded(name, keeps_key)).collect::<BTreeSet<_>>().into_iter().collect()
}

fn is_heeded(name: &str, keeps_key: bool) -> bool {
    ["LLAMA_ARG_", "AIP_", "LLAMA_SERVER_"].iter().any(|start| name.starts_with(start))
        || ["LLAMA_CACHE_DEBUG", "LLAMA_GRAPH_REUSE_DISABLE", "LLAMA_TRACE", OFFLOAD_MIN_BATCH].contains(&name)
        || (name == API_KEY && !keeps_key)
}

/// A configuration file of llama.cpp.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigFile {
    pub path: PathBuf,
    /// Whether it is the system's, which cannot be kept from a llama-server.
    pub system: bool,
}

/// llama.cpp's configuration files that exist: `/etc/llama.cpp/config.ini`, then `${XDG_CONFIG_HOME:-~/.config}/llama.cpp/config.ini`.
pub fn config_files() -> Vec<ConfigFile> {
    let of_user = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".config")));
    let folders = [(Some("/etc".into()), true), (of_user, false)].into_iter();
    let file = |(folder, system): (Option<PathBuf>, bool)| {
        let path = folder?.join("llama.cpp/config.ini");
        path.is_file().then_some(ConfigFile { path, system })
    };
    folders.filter_map(file).collect()
}

/// The words after the program: the launch, the model, and what moeplan needs to watch it. `extra` words of the person come
/// last and win; of these only spellings of old and new builds are exchanged. What they say of speculation is said by nobody else.
fn arguments(
    build: &Build,
    run: &RunConfig,
    model: &Path,
    port: u16,
    extra: &[String],
    offline: bool,
) -> Result<Vec<String>, Error> {
    if run.program != Program::Server {
        let message = format!("a command of {} cannot be launched on the server runtime", run.program.name());
        return Err(Error::setup(message, "use --runtime embedded"));
    }
    let source = ModelSource::of_argument(&model.display().to_string());
    let mut words = source.words();
    let speculates = extra.iter().any(|word| is_speculation(word));
    for (flag, group) in args::settings(run) {
        if !(speculates && is_speculation(flag.name())) {
            words.extend(spelled(build, &group, true)?);
        }
    }
    let port = port.to_string();
    for wanted in [&["--host", HOST][..], &["--port", &port], &["-lv", "4"], &["--offline"]] {
        let is_kept = *wanted != ["--offline"] || offline || matches!(source, ModelSource::Path(_));
        if is_kept && wanted.first().is_some_and(|flag| build.takes(flag)) {
            words.extend(wanted.iter().map(ToString::to_string));
        }
    }
    for group in groups(extra) {
        words.extend(spelled(build, group, false)?);
    }
    Ok(words)
}

/// Flags that a launch that is measured cannot have: its log is read, and it is asked over plain HTTP without a key.
const OF_MOEPLAN: &[&str] = &[
    "--log-disable",
    "--log-file",
    "--log-jsonl",
    "--log-colors",
    "--log-prefix",
    "--log-timestamps",
    "--verbose",
    "--verbosity",
    "--api-key",
    "--api-key-file",
    "--api-prefix",
    "--ssl-key-file",
    "--ssl-cert-file",
];

/// Words of a command line in those that a measured launch takes, and the flags that it cannot.
pub fn measurable(words: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut taken, mut left_out) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let flag = spelling(word).map(|(flag, _)| flag);
        let values = words.by_ref().take(flag.map_or(0, |flag| flag.values)).cloned();
        if flag.is_some_and(|flag| OF_MOEPLAN.contains(&flag.name())) {
            // The value of a flag that is left out may be a key.
            let _ = values.count();
            left_out.push(word.clone());
        } else {
            taken.push(word.clone());
            taken.extend(values);
        }
    }
    (taken, left_out)
}

/// A flag and its values in the build's own spelling: how the file is read has another in old builds than in new ones. `is_own`:
/// the launch is not the same without it.
fn spelled(build: &Build, group: &[String], is_own: bool) -> Result<Vec<String>, Error> {
    let words: Vec<&str> = group.iter().map(String::as_str).collect();
    let exchanged: Option<Vec<&str>> = match words.as_slice() {
        ["-lm" | "--load-mode", mode] if !build.takes("--load-mode") => {
            LoadMode::of_word(mode).map(|mode| flags::old_load_mode(mode).to_vec())
        }
        // A build that knows no fitting does none.
        ["-fit", "off"] if !build.takes("-fit") => Some(Vec::new()),
        [flag] if !build.takes(flag) => flags::new_load_mode(flag).map(|new| new.split(' ').collect()),
        _ => None,
    };
    let is_lacking = |word: &&str| word.starts_with('-') && !build.takes(word);
    let lacks = match &exchanged {
        Some(words) => words.iter().any(is_lacking),
        None => is_own && words.first().is_some_and(is_lacking),
    };
    if lacks {
        return Err(Error::new(Kind::Flags, format!("{} has no `{}`", build.name(), group.join(" ")))
            .with_hint("leave the flag out, or name a newer build with --llama-server PATH"));
    }
    Ok(exchanged.unwrap_or(words).into_iter().map(str::to_string).collect())
}

/// How far a server has come, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It fetches the model, and has written so much.
    Fetching(Bytes),
    Loading(Stage),
    /// It takes requests, or the measurement is over.
    Ready,
    WarmUp,
    /// The `of`-th part of a measurement.
    Sample {
        number: u32,
        of: u32,
    },
}

/// A llama-server that can be started, and how.
#[derive(Debug, Clone)]
pub struct Server {
    pub moeplan: PathBuf,
    pub build: Build,
    /// How long loading may take, and one request.
    pub limit: Duration,
    /// How long nothing may move while it loads: no line of log, no processor time, no change of memory.
    pub stall: Duration,
    /// Between asking it to end and killing it.
    pub patience: Duration,
    /// Words of the person, which come last.
    pub extra: Vec<String>,
    /// Variables of the command's own words.
    pub environment: BTreeMap<String, String>,
    /// Where its log is kept; `None` = in a temporary place until it is stopped.
    pub log: Option<PathBuf>,
    /// Whether `LLAMA_API_KEY` is left to it.
    pub keeps_key: bool,
    /// Whether it must not fetch a model that is not here; one that is here it loads without the network anyhow.
    pub offline: bool,
    pub echo: Option<Echo>,
    pub watch: Option<fn(Step)>,
    pub interrupted: fn() -> bool,
}

impl Server {
    /// The server at `named`, or the one that is found ([`find`]), asked for its version and flags.
    pub fn find(named: Option<&Path>) -> Result<Self, Error> {
        Ok(Self::of(super::this_program()?, probe(&find(named)?)?))
    }

    pub fn of(moeplan: PathBuf, build: Build) -> Self {
        Self {
            moeplan,
            build,
            limit: Duration::from_mins(30),
            stall: Duration::from_mins(5),
            patience: Duration::from_secs(10),
            extra: Vec::new(),
            environment: BTreeMap::new(),
            log: None,
            keeps_key: false,
            offline: false,
            echo: None,
            watch: None,
            interrupted: never,
        }
    }

    /// The program with the command's variables; those that stand for flags have become words.
    fn command(&self) -> Command {
        let mut command = command(&self.build.program);
        command.envs(self.environment.iter().filter(|(name, _)| !is_heeded(name, false)));
        command
    }

    pub fn takes(&self, run: &RunConfig) -> bool {
        arguments(&self.build, run, Path::new(""), 0, &[], true).is_ok()
    }

    fn tell(&self, step: Step) {
        if let Some(watch) = self.watch {
            watch(step);
        }
    }

    pub fn rpc_program(&self) -> Result<PathBuf, Error> {
        let program = &self.build.program;
        beside(program, &["ggml-rpc-server", "rpc-server"]).ok_or_else(|| {
            let hint = "build it beside llama-server (target ggml-rpc-server), as scripts/llama-server does";
            Error::setup(format!("there is no ggml-rpc-server beside `{}`", program.display()), hint)
        })
    }

    /// Starts the server and waits until it takes requests. `launch.run.fit` decides whether llama.cpp fits the launch by
    /// itself.
    pub fn start(&self, launch: &Launch) -> Result<Running, Error> {
        launch.endpoints().iter().try_for_each(|endpoint| reach(endpoint))?;
        let mut attempts = if self.extra.iter().any(|word| word == "--port") { 1 } else { PORT_ATTEMPTS };
        loop {
            attempts -= 1;
            match self.start_at(launch, free_port()?) {
                Err(error) if error.kind == Kind::PortTaken && attempts > 0 => {}
                answer => return answer,
            }
        }
    }

    fn start_at(&self, launch: &Launch, port: u16) -> Result<Running, Error> {
        let watch = Watch::before();
        let mut run = launch.run.clone();
        run.rpc = launch.endpoints();
        let words = arguments(&self.build, &run, &launch.model, port, &self.extra, self.offline)?;
        let folder = temporary_folder()?;
        let files = config_files();
        let mut command = self.command();
        command.args(&words).envs(run.environment());
        if let Some(key) = std::env::var_os(API_KEY).filter(|_| self.keeps_key) {
            command.env(API_KEY, key);
        }
        if files.iter().any(|file| !file.system) {
            // An empty folder where it looks for the user's configuration.
            command.env("XDG_CONFIG_HOME", folder.path());
        }
        if !run.rpc.is_empty() {
            // An RPC server on this computer needs the cores that idle threads would spin on.
            command.env("OMP_WAIT_POLICY", "passive");
        }
        read_ahead(launch);
        let begin = Instant::now();
        let mut client = Endpoint::new(&format!("http://{HOST}:{port}"))?;
        (client.limit, client.interrupted) = (self.limit, self.interrupted);
        let mut running = Running {
            process: Process::start(&self.moeplan, &command, self.log.as_deref(), self.echo, self.patience)?,
            log: LoadLog::default(),
            client,
            load_time: Duration::ZERO,
            notes: notes(&to_remove(self.keeps_key), &files),
            command: words,
            backend: launch.backend(),
            watch,
            took: BTreeMap::new(),
            is_left: false,
            server: self.clone(),
            _folder: folder,
        };
        let fetches = !matches!(ModelSource::of_argument(&launch.model.display().to_string()), ModelSource::Path(_));
        running.wait_until_ready(begin, fetches)?;
        running.load_time = begin.elapsed();
        running.took = running.watch.taken();
        self.tell(Step::Ready);
        Ok(running)
    }
}

/// What a person should know about the environment, a sentence each.
fn notes(removed: &[String], files: &[ConfigFile]) -> Vec<String> {
    let kept = (!removed.is_empty())
        .then(|| format!("{} removed for llama-server: only its command line decides the launch", removed.join(", ")));
    let file = |ConfigFile { path, system }: &ConfigFile| match (path.display(), system) {
        (path, true) => format!("llama-server reads `{path}` first, and moeplan cannot prevent that"),
        (path, false) => format!("`{path}` hidden from llama-server, for the same reason"),
    };
    kept.into_iter().chain(files.iter().map(file)).collect()
}

/// Asks the system to read a model that the launch maps ahead into its page cache, where memory holds it: it is then read at the
/// disk's own speed. Nothing is read here, nothing waits, and a launch goes on without it.
fn read_ahead(launch: &Launch) {
    let is_mapped = launch.run.load_mode.is_mapped();
    let Ok(file) = File::open(&launch.model) else { return };
    let bytes = file.metadata().map_or(0, |file| file.len());
    if is_mapped && launch.machine.host.ram.is_some_and(|ram| bytes < ram.0) {
        #[cfg(unix)]
        #[expect(unsafe_code, reason = "a map for the system to read ahead; none of its bytes is ever looked at")]
        // SAFETY: the map is only named in the advice and dropped; no byte behind it is read, so it does not matter whether
        // another process changes or cuts the file meanwhile.
        let _ = unsafe { memmap2::Mmap::map(&file) }.and_then(|map| map.advise(memmap2::Advice::WillNeed));
    }
}

fn needs_embedded(what: &str) -> Error {
    Error::setup(format!("{what} needs the embedded llama.cpp"), "use --runtime embedded")
}

impl Runtime for Server {
    fn devices(&self, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error> {
        if !self.build.is_here() {
            // Says where one was looked for.
            find(None)?;
        }
        rpc.iter().try_for_each(|endpoint| reach(endpoint))?;
        listed(&mut self.command(), rpc)
    }

    fn project(&self, launches: &[Launch]) -> Vec<Result<Projection, Error>> {
        launches.iter().map(|_| Err(needs_embedded("a projection"))).collect()
    }

    /// One request that is not counted, then one a repetition, each with a prompt of its own behind the same prefix.
    fn generate(&self, launch: &Launch, workload: &Workload) -> Result<Observation, Error> {
        let embeds = launch.run.embeddings;
        let mut running = self.start(launch)?;
        running.sample();
        let n_vocab = match workload.prompt {
            Prompt::Text(_) if embeds => return Err(needs_embedded("a text for a launch with --embedding")),
            Prompt::Text(_) => 0,
            Prompt::Tokens(_) => running.client.vocabulary()?,
        };
        let ask = |running: &mut Running, sample: u32, n_predict: u32| {
            let (seed, depth) = (u64::from(sample) + 1, workload.depth);
            let request = match &workload.prompt {
                Prompt::Tokens(n) if embeds => return running.embed(&pseudo_random(*n, n_vocab, seed)),
                Prompt::Tokens(n) => Request::behind(depth, *n, n_vocab, seed, n_predict),
                Prompt::Text(text) => {
                    Request { prompt: text.as_str().into(), ..Request::behind(0, 0, 0, 0, n_predict) }
                }
            };
            running.complete(&Request { probabilities: sample == 0, ..request })
        };
        self.tell(Step::WarmUp);
        let warm = ask(&mut running, 0, workload.n_generate.clamp(1, WARM_UP_TOKENS))?;
        let mut told = Observation { finite: warm.finite, ..Observation::default() };
        let mut drafts = [0.0; 2];
        let of = workload.repetitions.max(1);
        for number in 1..=of {
            self.tell(Step::Sample { number, of });
            let reply = match ask(&mut running, number, workload.n_generate) {
                // What was measured before is kept.
                Err(error) if error.is_interrupted() => {
                    told.interrupted = true;
                    break;
                }
                reply => reply?,
            };
            let timings = &reply.timings;
            // Answers of a server that only embeds have no clock of their own.
            let (n_prompt, pp) = match workload.prompt {
                Prompt::Tokens(n) if embeds => (n, f64::from(n) / reply.whole.as_secs_f64()),
                _ => (timings.prompt_n, timings.prompt_per_second),
            };
            let speed = &mut told.speed;
            speed.n_prompt = n_prompt;
            speed.pp.push(pp);
            speed.tg.extend((timings.predicted_n > 1).then_some(timings.predicted_per_second));
            speed.first_token.extend(reply.first_token.map(|time| time.as_secs_f64()));
            told.finite &= reply.finite;
            drafts = [drafts[0] + f64::from(timings.draft_n), drafts[1] + f64::from(timings.draft_n_accepted)];
            if number == 1 {
                speed.n_generate = u32::try_from(reply.tokens.len()).unwrap_or(u32::MAX);
                (speed.depth, told.text, told.tokens) = (timings.cache_n, reply.text, reply.tokens);
            }
            speed.depth = speed.depth.min(timings.cache_n);
        }
        self.tell(Step::Ready);
        told.speed.drafts_taken = (drafts[0] > 0.0).then(|| drafts[1] / drafts[0]);
        let Observation { speed, text, tokens, finite, interrupted, .. } = told;
        Ok(Observation { speed, text, tokens, finite, interrupted, ..running.finish()? })
    }
}

/// A server that is up. Dropping it stops it, and so does the end of this process, however it comes.
#[derive(Debug)]
pub struct Running {
    process: Process,
    log: LoadLog,
    /// Where it takes requests.
    pub client: Endpoint,
    load_time: Duration,
    /// What was kept from it and what could not be, a sentence each.
    pub notes: Vec<String>,
    command: Vec<String>,
    backend: String,
    watch: Watch,
    /// What more of each card is used since before it was started, itself and others.
    took: BTreeMap<String, Bytes>,
    /// Whether an answer was given up: nothing is left to wait for.
    is_left: bool,
    server: Server,
    // Gone with the server: its log unless a place was named for it, and an empty configuration folder.
    _folder: Folder,
}

impl Running {
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn serving(&self) -> &Serving {
        &self.log.serving
    }

    /// What it holds of each card: as the driver says of its process, else what was taken while it loaded.
    pub fn held(&self) -> BTreeMap<String, Bytes> {
        let [_, of_process] = nvml::used(self.id());
        self.took.clone().into_iter().chain(of_process).collect()
    }

    /// Looks at memory from now on, until it is over.
    pub fn sample(&mut self) {
        self.watch.loaded(self.id(), PERIOD);
    }

    /// What its log tells of the launch.
    pub fn seen(&mut self) -> Result<Observation, Error> {
        self.follow();
        if self.log.buffers.is_empty() {
            let hint = "is the disk of its log full, or its verbosity changed after `--`?";
            return Err(Error::setup("llama-server's log shows no memory", hint));
        }
        let Build { program, number, .. } = &self.server.build;
        let (program, build, backend) = (program.display().to_string(), number.unwrap_or(0), self.backend.clone());
        Ok(Observation {
            command: [std::slice::from_ref(&program), self.command.as_slice()].concat(),
            runtime: RuntimeInfo { program, build, backend },
            load_seconds: self.load_time.as_secs_f64(),
            memory: self.log.memory(),
            resolution: self.log.resolution(),
            mapped_span: self.log.mapped_span(),
            cache_hits: self.log.cache_hits(),
            ..Observation::default()
        })
    }

    /// Stops it: what the launch took.
    pub fn finish(mut self) -> Result<Observation, Error> {
        let process = self.watch.worked().process;
        self.stop();
        let device_used = std::mem::take(&mut self.watch).after();
        Ok(Observation { device_used, process, ..self.seen()? })
    }

    pub fn complete(&mut self, request: &Request) -> Result<Reply, Error> {
        self.client.complete(request).map_err(|error| self.explained(error))
    }

    fn embed(&mut self, tokens: &[u32]) -> Result<Reply, Error> {
        self.client.embed(tokens).map_err(|error| self.explained(error))
    }

    /// Why an answer did not come: the end of the server says more than a connection that broke. A server whose answer is given up
    /// is stopped.
    pub fn explained(&mut self, error: Error) -> Error {
        match error.kind {
            Kind::BadAnswer | Kind::Unreachable => match self.process.ends_within(UNTIL_END_IS_SEEN) {
                Some(end) => self.why_it_ended("answering", end),
                None => error,
            },
            Kind::Interrupted | Kind::TimedOut => {
                self.is_left = true;
                self.stop();
                error
            }
            _ => error,
        }
    }

    /// How it ended, if it has. Reads its log on.
    pub fn ended(&mut self) -> Option<End> {
        self.follow();
        self.process.ends_within(Duration::ZERO)
    }

    /// Stops it, politely at first, and returns how it ended; its log is then whole.
    pub fn stop(&mut self) -> End {
        let end = self.process.stop(self.is_left);
        while self.follow() {}
        end
    }

    /// What became of a server that has ended: the reason its log names, or how it ended.
    pub fn why_it_ended(&mut self, doing: &'static str, end: End) -> Error {
        while self.follow() {}
        match self.log.failure() {
            Some(failure) => Error::failed(failure, doing, end),
            None => Error::died("llama-server", doing, end, &self.process.log.tail()),
        }
    }

    /// Reads the log on; whether anything was new.
    fn follow(&mut self) -> bool {
        let lines = self.process.log.new_lines();
        for line in &lines {
            let before = self.log.stage;
            self.log.line(line);
            if self.log.stage > before && self.log.stage < Stage::Ready {
                self.server.tell(Step::Loading(self.log.stage));
            }
        }
        !lines.is_empty()
    }

    /// `fetches`: it downloads the model before it loads. That may take as long as something moves.
    fn wait_until_ready(&mut self, begin: Instant, fetches: bool) -> Result<(), Error> {
        let Server { limit, stall, .. } = self.server;
        let (mut asked, mut looked, mut moved, mut work_seen) = (begin, begin, Instant::now(), None);
        let mut loads_since = begin;
        let answer = wait(Duration::MAX, self.server.interrupted, |time| {
            if loads_since.elapsed() >= limit {
                return Some(Err(Error::stopped(Stopped::TimedOut, "llama-server", LOADING, limit, &[])));
            }
            if self.follow() {
                moved = Instant::now();
            }
            if let Some(end) = self.process.ends_within(Duration::ZERO) {
                return Some(Err(self.why_it_ended(LOADING, end)));
            }
            if let Some(address) = &self.log.listening {
                // The person may have named another port or all interfaces.
                self.client.base = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
                if !address.starts_with("http://") {
                    // TLS or a socket of the file system, as the person asked: its word must do.
                    return Some(Ok(()));
                }
            }
            if self.log.listening.is_some() || asked.elapsed() > ASK_ANYWAY {
                if self.client.is_ready() {
                    return Some(Ok(()));
                }
                asked = Instant::now();
            }
            if looked.elapsed() > LOOK_AT_PROCESS {
                looked = Instant::now();
                let now = work(self.process.id());
                if now != work_seen {
                    (work_seen, moved) = (now, looked);
                }
                // Its first words about the file come once it has it.
                if fetches && self.log.stage == Stage::Started {
                    loads_since = looked;
                    self.server.tell(Step::Fetching(written(self.process.id())));
                }
            }
            if moved.elapsed() > stall {
                let (seconds, log) = (stall.as_secs(), telling(&self.process.log.tail()));
                let message = format!("llama-server hangs while {LOADING}: nothing has happened for {seconds} s{log}");
                let hint =
                    "is the disk it reads from still there? An RPC server serves one client at a time: is it free?";
                return Some(Err(Error::new(Kind::TimedOut, message).with_hint(hint)));
            }
            pause(time)
        });
        answer.unwrap_or_else(|stopped| Err(Error::stopped(stopped, "llama-server", LOADING, limit, &[])))
    }
}

/// Processor time and resident pages of a process; where they cannot be read, only the log tells whether it moves.
#[cfg(target_os = "linux")]
fn work(process: u32) -> Option<(u64, u64)> {
    let stat = procfs::process::Process::new(i32::try_from(process).ok()?).ok()?.stat().ok()?;
    Some((stat.utime.saturating_add(stat.stime), stat.rss))
}

#[cfg(not(target_os = "linux"))]
fn work(_process: u32) -> Option<(u64, u64)> {
    None
}

/// What a process has written in all, to files and elsewhere; nothing where the system does not say.
#[cfg(target_os = "linux")]
fn written(process: u32) -> Bytes {
    let process = i32::try_from(process).ok().and_then(|process| procfs::process::Process::new(process).ok());
    Bytes(process.and_then(|process| process.io().ok()).map_or(0, |io| io.wchar))
}

#[cfg(not(target_os = "linux"))]
fn written(_process: u32) -> Bytes {
    Bytes(0)
}

/// Runs tests of `model` in llama-bench, and gives their rows.
pub fn bench(
    program: &Path,
    model: &Path,
    words: &[String],
    limit: Duration,
    interrupted: fn() -> bool,
) -> Result<Vec<BenchRow>, Error> {
    let name = format!("`llama-bench {}`", words.join(" "));
    let mut command = command(program);
    command.arg("-m").arg(model).args(words).args(["-r", "2", "-o", "jsonl"]);
    let mut process = Process::start(&super::this_program()?, &command, None, None, Duration::ZERO)?;
    let end = wait(limit, interrupted, |time| process.ends_within(time))
        .map_err(|stopped| Error::stopped(stopped, &name, "measuring", limit, &[]))?;
    let lines: Vec<String> =
        std::iter::repeat_with(|| process.log.new_lines()).take_while(|new| !new.is_empty()).flatten().collect();
    if end != End::Code(0) {
        let last = lines.iter().rfind(|line| !line.trim().is_empty()).map_or("no word", String::as_str);
        return Err(Error::new(Kind::Died, format!("{name} ended with {end}: {last}")));
    }
    samples::rows(&lines.join("\n")).map_err(|error| Error::bad_answer("llama-bench", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suggest::Hint as _;

    #[test]
    fn a_program_says_what_it_is() {
        for (line, expected) in [
            ("version: 0.6.0-dev (build 11434, commit sdist-11434)", Some(11434)),
            ("version: 0.1.0-dev (build 1, commit 7e4c0a9)", None),
            ("version: 4567 (abcdef0)", Some(4567)),
            ("version: 0.6.0", Some(11434)),
            ("version: 99999999999999", None),
        ] {
            assert_eq!(number(line), expected, "{line}");
        }
        for (name, expected) in [
            ("icelake", Some(Isa::X86Avx512)),
            ("sapphirerapids", Some(Isa::X86Amx)),
            ("armv8.2_1", Some(Isa::ArmNeon)),
            ("quantum", None),
        ] {
            let end = std::env::consts::DLL_SUFFIX;
            let line = format!("0.00 I load_backend: loaded CPU backend from /x/libggml-cpu-{name}{end}\n");
            assert_eq!(variant(&line), expected, "{name}");
        }
        assert_eq!(variant("no backend"), None);
        let help = "----- common params -----\n\n-h,    --help, --usage                  print usage and exit\n\
            -lm,   --load-mode MODE                 as --no-mmap did\n                                        --not-this\n\
            --perf, --no-perf                       whether\n-c N\n";
        let found: Vec<String> = flags(help).into_iter().collect();
        assert_eq!(found, ["--help", "--load-mode", "--no-perf", "--perf", "--usage", "-c", "-h", "-lm"]);
        let error = find(Some(Path::new("/nowhere/llama-server"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/llama-server"), "{error}");
    }

    /// The words for a build with these flags, or why there are none.
    fn words(build: &[&str], run: &RunConfig, extra: &[&str]) -> Result<String, Error> {
        let build = Build {
            program: "llama-server".into(),
            version: "version: 0 (test)".into(),
            number: Some(11434),
            flags: build.iter().map(ToString::to_string).collect(),
            isa: Isa::default(),
        };
        let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
        Ok(arguments(&build, run, Path::new("m.gguf"), 9, &extra, false)?.join(" "))
    }

    #[test]
    fn each_build_gets_its_own_spelling() {
        let run = RunConfig { load_mode: LoadMode::None, fit: false, n_ctx: 256, ..RunConfig::default() };
        let new: &[&str] = &["-c", "-lm", "--load-mode", "-fit", "--port", "--host"];
        let old: &[&str] = &["-c", "--no-mmap", "--port", "--host"];
        for (build, extra, expected) in [
            (new, &["--no-mmap", "--jinja"][..], "-lm none -fit off --host H --port 9 --load-mode none --jinja"),
            (old, &["-lm", "none"], "--no-mmap --host H --port 9 --no-mmap"),
            (&[], &[], "-lm none -fit off --host H --port 9 -lv 4 --offline"),
        ] {
            let expected = format!("-m m.gguf -c 256 {}", expected.replace('H', HOST));
            assert_eq!(words(build, &run, extra).unwrap(), expected);
        }
        let moe = RunConfig { moe_cache_mib: 64, fit: true, ..RunConfig::default() };
        for (run, lacking) in [(&run, "llama.cpp b11434 has no `-lm none`"), (&moe, "--moe-cache-mib 64")] {
            let error = words(&["-c"], run, &[]).unwrap_err();
            assert!(error.to_string().contains(lacking), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("--llama-server")));
        }
        let bench = RunConfig { program: Program::Bench, ..RunConfig::default() };
        let error = words(&[], &bench, &[]).unwrap_err();
        assert!(error.is_of_every_launch() && error.to_string().contains("llama-bench"), "{error}");
        // What a command says of speculation is said once.
        let draft = RunConfig { n_draft: 16, ..run };
        assert!(words(&[], &draft, &["--jinja"]).unwrap().contains("--spec-type ngram-mod"));
        let own = words(&[], &draft, &["--spec-type", "ngram-simple"]).unwrap();
        assert!(own.ends_with("--spec-type ngram-simple") && !own.contains("ngram-mod"), "{own}");
    }

    #[test]
    fn what_a_measurement_needs_is_not_given_away() {
        let words = ["--jinja", "-lv", "1", "--temp", "0.5", "--api-key", "secret", "--no-log-prefix"];
        let (taken, left_out) = measurable(&words.map(str::to_string));
        assert_eq!(taken, ["--jinja", "--temp", "0.5"]);
        assert_eq!(left_out, ["-lv", "--api-key", "--no-log-prefix"]);
        let heeded = ["LLAMA_ARG_N_CPU_MOE", "AIP_HTTP_PORT", "LLAMA_SERVER_X"];
        assert!(heeded.into_iter().all(|name| is_heeded(name, true)));
        assert!(!["PATH", "CUDA_VISIBLE_DEVICES"].into_iter().any(|name| is_heeded(name, false)));
        assert!(is_heeded("LLAMA_API_KEY", false) && !is_heeded("LLAMA_API_KEY", true));
        let files = [true, false].map(|system| ConfigFile { path: "x".into(), system });
        assert_eq!(notes(&["LLAMA_ARG_X".to_string()], &files).len(), 3);
    }
}
