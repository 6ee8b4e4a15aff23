//! A launch from what a person names (a model to plan for, a plan's file, or a command line) and the llama.cpp that runs it. [I/O]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;

use super::plan::add_projector_of_hub;
use super::plan_options::{PlanOptions, is_plan_file};
use super::{Output, check, interrupt, model_arg, progress, read};
use crate::ask::check::{Asked, CheckRow, Models, add_companions, load};
use crate::bytes::Bytes;
use crate::checkup::{self, Severity};
use crate::gguf::Gguf;
use crate::machine::{Backend, Device, Isa, Machine};
use crate::memory::{self, Forecast};
use crate::model::Model;
use crate::plan::{self, Plan};
use crate::run::build::{NEWEST, REFERENCE};
use crate::run::command::server_command;
use crate::run::flags::reaches_out;
use crate::run::held::{self, Held};
use crate::run::numbers::padded;
use crate::run::{Dialect, ModelSource, Note, ParsedCommand, RunConfig, Target, args, groups, parse, spelling};
use crate::runtime::log::Stage;
use crate::runtime::server::{Build, Server, Step, measurable};
use crate::runtime::{
    DeviceInfo, EMBEDDED_BUILD, Echo, Embedded, Launch, RpcServer, Runtime, bind_software_devices, embedded_isa,
    machine_of, nvml, software_machine, this_program,
};
use crate::suggest::Refusal;
use crate::suite::facts;
use crate::{files, gguf};

/// A launch and where it comes from.
#[derive(Debug)]
pub struct Proposal {
    pub launch: Launch,
    /// The model that it loads, by its header, with the keys that the launch overrides.
    pub model: Model,
    /// The plan; `None` for a command line.
    pub plan: Option<Box<Plan>>,
    pub servers: Vec<RpcServer>,
    /// Words of a command line beside those that the launch says.
    pub beside: Vec<String>,
}

/// What llama-server may fetch of itself, and the words that it gets beside the launch's.
#[derive(Debug, Clone, Copy)]
pub struct Fetch<'a> {
    pub output: &'a Output,
    pub extra: &'a [String],
}

impl Fetch<'_> {
    /// Counts the projector that is fetched beside a model of the hub, unless the words say otherwise.
    fn add_projector(&self, path: &Path, model: &mut Model, run: &mut RunConfig) {
        let words: Vec<String> =
            std::iter::once("llama-server".to_string()).chain(self.extra.iter().cloned()).collect();
        let said = parse::command_for(&words, &BTreeMap::new(), Target::newest());
        run.mmproj_auto &= said.map_or(true, |said| said.run.mmproj_auto);
        add_projector_of_hub(path, model, run, self.output);
    }
}

pub const DOES_NOT_FIT: &str = "warning: the plan does not fit its budget; `moeplan plan` says by how much";

impl Proposal {
    /// Whether the plan, if there is one, fits its budget.
    pub fn fits(&self) -> bool {
        self.plan.as_ref().is_none_or(|plan| plan.check.fits())
    }

    /// Says that the plan does not fit, and that a file has no weights, before anything is launched.
    pub fn warn(&self, output: &Output) {
        if !self.fits() {
            output.say(DOES_NOT_FIT);
        }
        self.warn_of_hole(output);
    }

    pub fn warn_of_hole(&self, output: &Output) {
        if let Some((stored, whole)) = facts::hole(&self.model.files) {
            output.say(&format!(
                "warning: only {stored} of the {whole} of `{}` are on disk, so its weights are zeros: memory is as with the real file, \
                 speed and answers are not. Download the model, or choose one from `moeplan synth --list` for \
                 `moeplan synth NAME --tiny --weights random`",
                self.launch.model.display()
            ));
        }
    }

    /// What launches would do, each as `check` says it, its command with it (`--dry-run`). A name tells several apart.
    pub fn told<'a>(
        &self,
        launches: impl IntoIterator<Item = (Option<String>, &'a RunConfig)>,
        options: &PlanOptions,
    ) -> anyhow::Result<Vec<CheckRow>> {
        let model = ModelSource::of_argument(&self.launch.model.display().to_string());
        let machine = &self.launch.machine;
        let asked = Asked {
            machine,
            environment: &BTreeMap::new(),
            target: self.launch.run.target,
            options: checkup::Options {
                margin: options.machine.margin(machine),
                turn: Some(options.planning.turn()),
                ..checkup::Options::default()
            },
            plan: None,
        };
        let row = |(name, run): (Option<String>, &RunConfig)| {
            let words = server_command(&model, run, &[args::args(run), self.beside.clone()].concat());
            let held = Held { name, ..held::of_words(&words, &|_| None)? };
            Ok(check::row(&held, asked, self))
        };
        launches.into_iter().map(row).collect()
    }

    pub fn forecast(&self) -> Result<Forecast, memory::Error> {
        memory::forecast(&self.model, &self.launch.machine, &self.launch.run)
    }

    /// Tokens that a slot takes: llama-server gives it no more than the model was trained on (tools/server, b11434).
    pub fn slot_tokens(&self, forecast: &Forecast) -> u32 {
        forecast.numbers.n_ctx_seq.min(self.trained().unwrap_or(u32::MAX))
    }

    /// Tokens that the model was trained on, where its file says.
    fn trained(&self) -> Option<u32> {
        Some(self.model.hparams.context_length).filter(|tokens| *tokens > 0)
    }

    /// Refuses `what` where a slot of the launch has no room for its tokens; `smaller` says what may be asked of a slot of so many.
    pub fn has_room(
        &self,
        forecast: &Forecast,
        what: &str,
        needs: u32,
        smaller: impl FnOnce(u32) -> String,
    ) -> Result<(), Refusal> {
        let slot = self.slot_tokens(forecast);
        if needs <= slot {
            return Ok(());
        }
        let smaller = smaller(slot);
        let hint = match self.trained().filter(|trained| needs > *trained) {
            None => {
                let context = padded(needs).saturating_mul(forecast.numbers.n_stream.max(1));
                format!("plan with -c {context} or more, or {smaller}")
            }
            Some(trained) => {
                format!("the model was trained on {trained} tokens, and llama-server takes no more: {smaller}")
            }
        };
        Err(Refusal::new(format!("{what} needs {needs} tokens of context, but this launch has room for {slot}"), hint))
    }

    /// From a plan's file (`*.json`), or the plan that is made for a model. With `fetch`, llama-server may fetch a model of the hub or
    /// at an address, and only its header is read before.
    pub fn of_model(
        path: &Path,
        options: &PlanOptions,
        engine: &Engine,
        fetch: Option<Fetch<'_>>,
    ) -> anyhow::Result<Self> {
        let open = |path: &Path| match fetch.filter(|_| model_arg::is_remote(path)) {
            Some(fetch) => Ok((path.to_path_buf(), Model::from_gguf(model_arg::open(path, fetch.output)?)?)),
            None => model_arg::local_path(path).and_then(|path| Ok((path.clone(), model_arg::read(&path)?))),
        };
        if is_plan_file(path) {
            let mut plan: Plan = serde_json::from_str(&read(path)?)
                .with_context(|| format!("`{}` is not a plan written by `moeplan plan --json`", path.display()))?;
            let (path, model) = open(Path::new(&plan.model.path))?;
            plan.model.path = path.display().to_string();
            return Self::of_plan(plan, model, Vec::new(), engine, fetch);
        }
        let (path, model) = open(path)?;
        Self::planned(&path, model, options, engine, fetch)
    }

    /// The plan for a model whose header is read. Software devices are started first, since the plan names their servers.
    pub fn planned(
        path: &Path,
        mut model: Model,
        options: &PlanOptions,
        engine: &Engine,
        fetch: Option<Fetch<'_>>,
    ) -> anyhow::Result<Self> {
        let mut machine = options.described_machine()?;
        machine.host.isa = engine.isa();
        let mut request = options.request_for(engine.build(), &model, &machine, &[])?;
        let servers = bind(engine, &mut machine, &mut request.run)?;
        if let Some(fetch) = fetch {
            fetch.add_projector(path, &mut model, &mut request.run);
        }
        let plan = plan::plan(&model, &path.display().to_string(), &machine, &request)?;
        Self::of_plan(plan, model, servers, engine, fetch)
    }

    fn of_plan(
        plan: Plan,
        mut model: Model,
        mut servers: Vec<RpcServer>,
        engine: &Engine,
        fetch: Option<Fetch<'_>>,
    ) -> anyhow::Result<Self> {
        if plan.check.run.target.dialect == Dialect::Ik {
            let hint = "`moeplan plan --dialect ik --emit shell` writes a script that starts its llama-server";
            return Err(Refusal::new("the plan is for ik_llama.cpp, which moeplan does not launch", hint).into());
        }
        let ParsedCommand { mut run, beside, .. } = as_written(&plan.args, &plan.environment, plan.check.run.target)?;
        run.target.build = engine.build();
        add_companions(&mut model, &mut run, |path| anyhow::Ok(gguf::open(path)?))?;
        if let Some(fetch) = fetch {
            fetch.add_projector(plan.model.path.as_ref(), &mut model, &mut run);
        }
        let mut machine = plan.machine.clone();
        servers.extend(bind(engine, &mut machine, &mut run)?);
        let launch = Launch { model: plan.model.path.clone().into(), run, machine };
        Ok(Self { launch, model, plan: Some(Box::new(plan)), servers, beside })
    }

    /// A command line as it is, on the devices that are here or on `n_devices` software devices.
    pub fn of_command(
        words: &[String],
        model: Option<&Path>,
        n_devices: u16,
        options: &PlanOptions,
        engine: &mut Engine,
    ) -> anyhow::Result<Self> {
        let mut words = words.to_vec();
        if words.first().is_none_or(|word| word.starts_with('-')) {
            words.insert(0, "llama-server".to_string());
        }
        let target = Target { build: engine.build(), ..Target::default() };
        let held = held::of_words(&words, &|_| None)?;
        let mut command = parse::launch(&held, &BTreeMap::new(), target)?;
        // The devices that llama.cpp lists are then those that the command sees.
        engine.with_environment(held.environment);
        command.environment.clear();
        let path = match (model, &command.model) {
            (Some(path), _) => model_arg::local_path(path)?,
            (None, Some(ModelSource::Path(path))) => path.clone(),
            _ => anyhow::bail!("no model: name its file before `--` or with -m after it"),
        };
        let mut run = command.run.clone();
        run.embeddings |= options.launch.embeddings();
        run.n_threads = run.n_threads.or(options.launch.n_threads());
        let mut machine = if n_devices > 0 {
            software_machine(n_devices, Bytes::mib(24 * 1024))
        } else {
            machine_of(&engine.runtime().devices(&run.rpc)?)
        };
        machine.host.isa = engine.isa();
        let servers = bind(engine, &mut machine, &mut run)?;
        let mut model = load(gguf::open(&path)?, &run)?;
        add_companions(&mut model, &mut run, |path| anyhow::Ok(gguf::open(path)?))?;
        command.run = run.clone();
        // What `check` says that llama.cpp would refuse is not launched.
        let mut lints = checkup::check(&model, &machine, &command, checkup::Options::default())?.lints;
        lints.retain(|lint| lint.severity == Severity::Error);
        if !lints.is_empty() {
            let messages: Vec<String> = lints.iter().map(|lint| format!("{} ({})", lint.message, lint.code)).collect();
            let hints: Vec<String> = lints.into_iter().filter_map(|lint| lint.hint).collect();
            let more = "`moeplan check -- COMMAND` says more".to_string();
            let hint = if hints.is_empty() { more } else { hints.join("; ") };
            return Err(Refusal::new(format!("this command is not launched: {}", messages.join("; ")), hint).into());
        }
        let launch = Launch { model: path, run, machine };
        Ok(Self { launch, model, plan: None, servers, beside: command.beside })
    }
}

/// The model of a proposal has been read.
impl Models for Proposal {
    type Error = anyhow::Error;

    fn model(&self, _: &mut ParsedCommand) -> anyhow::Result<(Model, String)> {
        Ok((self.model.clone(), self.launch.model.display().to_string()))
    }

    fn companion(&self, path: &Path) -> anyhow::Result<Gguf> {
        Ok(gguf::open(path)?)
    }
}

/// The launch of a plan's arguments, whatever build they are for: nothing of them may be lost before a build refuses it. What they do
/// not say is as in the build that the plan is for.
pub fn as_written(
    args: &[String],
    environment: &BTreeMap<String, String>,
    of: Target,
) -> anyhow::Result<ParsedCommand> {
    let words: Vec<String> = std::iter::once("llama-server".to_string()).chain(args.iter().cloned()).collect();
    // From the reference on builds differ in the flags that they have, not in what is meant without them.
    let target = if of.build < Target::default().build { of } else { Target::newest() };
    let mut parsed = parse::command_for(&words, environment, target)?;
    parsed.run.target = Target::default();
    let error =
        |note: &&Note| checkup::lints::codes().any(|(code, severity)| code == note.code && severity == Severity::Error);
    // A flag of an older build is carried out as it was meant.
    if let Some(note) = parsed.notes.iter().filter(|note| note.code != "removed-flag").find(error) {
        let hint = note.hint.clone().unwrap_or_else(|| "write the plan with `moeplan plan --json`".to_string());
        return Err(Refusal::new(format!("the plan's arguments: {}", note.message), hint).into());
    }
    if let Some(flag) = groups(&parsed.beside).into_iter().filter_map(<[String]>::first).find(|word| reaches_out(word))
    {
        return Err(Refusal::new(
            format!(
                "the plan's arguments have `{flag}`: moeplan takes flags that start programs, write or serve files, or let other \
                 computers in from the command line only"
            ),
            format!("remove it; `moeplan run plan.json -- {flag} …` passes it on"),
        )
        .into());
    }
    Ok(parsed)
}

/// What llama.cpp lists beside the devices of a machine; its software devices are started for the question alone.
pub fn listed(engine: &Engine, machine: &Machine) -> anyhow::Result<Vec<DeviceInfo>> {
    let (mut machine, mut run) = (machine.clone(), RunConfig::default());
    let _servers = bind(engine, &mut machine, &mut run)?;
    Ok(engine.runtime().devices(&run.rpc)?)
}

/// Servers for the software devices that have none yet, with as many threads as the launch.
fn bind(engine: &Engine, machine: &mut Machine, run: &mut RunConfig) -> anyhow::Result<Vec<RpcServer>> {
    let is_software = |device: &Device| device.backend == Backend::Rpc && device.endpoint().is_none();
    if machine.devices.iter().any(is_software) {
        let (moeplan, ggml) = match engine {
            Engine::Embedded(embedded) => (&embedded.program, None),
            Engine::Server(server) => (&server.moeplan, Some(server.rpc_program()?)),
        };
        let threads = run.n_threads.unwrap_or(0);
        return Ok(bind_software_devices(moeplan, ggml.as_deref(), machine, run, threads)?);
    }
    // Only the servers that are named already are listed; none is started.
    run.rpc = machine.rpc_servers(&run.rpc);
    Ok(Vec::new())
}

/// Which llama.cpp, and how long it may take.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Runtime")]
pub struct EngineArgs {
    /// The llama-server to run [default: from PATH, else what scripts/llama-server built].
    #[arg(long, value_name = "PATH", env = "MOEPLAN_LLAMA_SERVER")]
    pub llama_server: Option<PathBuf>,
    /// Keep llama-server's log in FILE.
    #[arg(long, value_name = "FILE")]
    pub server_log: Option<PathBuf>,
    /// Stop llama.cpp if loading, or one request, takes longer than this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub timeout: u64,
    /// Give up on a loading llama-server that shows no activity for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub stall: u64,
    /// Launch nothing; check the commands that would be launched.
    ///
    /// The answer is what `moeplan check` says. If there are several commands, -v lists them. Software devices are started for the
    /// check, and stopped after it.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runs {
    /// The llama-server named with --llama-server or MOEPLAN_LLAMA_SERVER; otherwise the embedded llama.cpp, if built in;
    /// otherwise the llama-server found.
    Auto,
    /// The real llama-server.
    Server,
    /// llama.cpp inside moeplan, in a process of its own.
    Embedded,
}

#[derive(Debug)]
pub enum Engine {
    Embedded(Embedded),
    Server(Box<Server>),
}

impl EngineArgs {
    pub fn engine(&self, runs: Runs, output: &Output) -> anyhow::Result<Engine> {
        let is_embedded = match runs {
            Runs::Embedded => true,
            Runs::Server => false,
            Runs::Auto => self.llama_server.is_none() && cfg!(feature = "embedded"),
        };
        if !is_embedded {
            return Ok(Engine::Server(Box::new(self.server(output)?)));
        }
        interrupt::arm();
        let (interrupted, limit) = (interrupt::is_pressed as fn() -> bool, Duration::from_secs(self.timeout));
        let echo = output.is_verbose().then_some(super::echo as Echo);
        Ok(Engine::Embedded(Embedded { limit, echo, interrupted, ..Embedded::here()? }))
    }

    /// The llama-server, with a progress bar, the log with `-v`, and Ctrl-C heeded.
    pub fn server(&self, output: &Output) -> anyhow::Result<Server> {
        if let Some(log) = &self.server_log {
            files::check_append(log)?;
        }
        let named = self.llama_server.as_deref();
        let mut server = match Server::find(named) {
            Err(_) if self.dry_run && named.is_none() => {
                output
                    .say(&format!("note: no llama-server was found here, so the commands are for llama.cpp b{NEWEST}"));
                Server::of(this_program()?, Build::assumed())
            }
            found => found?,
        };
        let limit = Duration::from_secs(self.timeout);
        (server.limit, server.stall) = (limit, Duration::from_secs(self.stall));
        server.log.clone_from(&self.server_log);
        server.echo = output.is_verbose().then_some(super::echo as Echo);
        server.interrupted = interrupt::is_pressed;
        if !output.global.quiet && !output.is_verbose() {
            server.watch = Some(show);
        }
        interrupt::arm();
        Ok(server)
    }
}

impl Engine {
    pub fn runtime(&self) -> &dyn Runtime {
        match self {
            Self::Embedded(embedded) => embedded,
            Self::Server(server) => server.as_ref(),
        }
    }

    pub fn build(&self) -> u32 {
        match self {
            Self::Embedded(_) => EMBEDDED_BUILD,
            Self::Server(server) => server.build.number.unwrap_or(REFERENCE),
        }
    }

    /// The instruction set that decides what is repacked: what the embedded llama.cpp was built for, or what
    /// llama-server picked.
    pub fn isa(&self) -> Isa {
        match self {
            Self::Embedded(_) => embedded_isa(),
            Self::Server(server) => server.build.isa,
        }
    }

    /// Starts llama.cpp with these variables from now on.
    fn with_environment(&mut self, environment: BTreeMap<String, String>) {
        match self {
            Self::Embedded(embedded) => embedded.environment = environment,
            Self::Server(server) => server.environment = environment,
        }
    }

    /// Has the words that a launch does not say launched with it, as far as that can be; names the flags that are left out.
    pub fn launch_with(&mut self, beside: &[String]) -> Option<String> {
        let (taken, mut left_out) = measurable(beside);
        let why = match self {
            Self::Server(server) => {
                server.extra = taken;
                "a measurement reads the log, and asks the server itself"
            }
            Self::Embedded(_) => {
                left_out = beside.iter().filter(|word| spelling(word).is_some()).cloned().collect();
                "the llama.cpp inside moeplan does not accept them, but --runtime server does"
            }
        };
        (!left_out.is_empty()).then(|| format!("warning: launched without {}: {why}", left_out.join(", ")))
    }

    /// What every device of a launch has free before anything is started: by the driver, else by what llama.cpp lists.
    pub fn free(&self, launch: &Launch) -> anyhow::Result<BTreeMap<String, Bytes>> {
        if matches!(self, Self::Server(server) if !server.build.is_here()) {
            let free = |device: &Device| (device.name.clone(), device.total);
            return Ok(launch.machine.devices.iter().map(free).collect());
        }
        let listed = self.runtime().devices(&launch.machine.rpc_servers(&launch.run.rpc))?;
        let mut free: BTreeMap<String, Bytes> = listed.into_iter().map(|device| (device.name, device.free)).collect();
        free.extend(nvml::listed().into_iter().map(|device| (device.name, device.free)));
        Ok(free)
    }

    pub fn name(&self) -> String {
        match self {
            Self::Embedded(_) => format!("llama.cpp b{EMBEDDED_BUILD} inside moeplan"),
            Self::Server(server) => format!("{} (`{}`)", server.build.name(), server.build.program.display()),
        }
    }
}

fn show(step: Step) {
    const STEPS: u64 = 6;
    static BAR: OnceLock<ProgressBar> = OnceLock::new();
    let bar = BAR.get_or_init(|| progress("{bar:24} {msg} {elapsed}", Some(STEPS)));
    match step {
        Step::Loading(stage) => {
            let (at, text) = match stage {
                Stage::Started => (0, "starting"),
                Stage::Header => (1, "reading the header"),
                Stage::Weights => (2, "loading weights"),
                Stage::Context => (4, "making the context"),
                Stage::WarmUp => (5, "warming up"),
                Stage::Ready => (STEPS, "ready"),
            };
            bar.set_position(at);
            bar.set_message(text);
        }
        Step::Fetching(bytes) => bar.set_message(format!("fetching the model, {bytes} so far")),
        Step::Ready => bar.finish_and_clear(),
        Step::WarmUp => {
            bar.reset();
            bar.set_message("warm-up");
        }
        Step::Sample { number, of } => {
            bar.set_position(u64::from(number) * STEPS / (u64::from(of) + 1));
            bar.set_message(format!("measurement {number} of {of}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_file_keeps_what_computes_and_starts_nothing_else() {
        let read = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_string).collect();
            as_written(&words, &BTreeMap::new(), Target::newest())
        };
        let kept = read("-c 512 --jinja --port 8081 --spec-type ngram-mod --spec-ngram-mod-n-match 24").unwrap().beside;
        assert_eq!(kept.join(" "), "--jinja --port 8081 --spec-type ngram-mod --spec-ngram-mod-n-match 24");
        for line in ["-c 512 --mcp-servers-json {}", "--log-file x", "--webui-mcp-proxy", "--host 0.0.0.0"] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains("from the command line only"), "{error}");
        }
    }
}
