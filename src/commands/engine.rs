//! Which llama.cpp runs a launch: the flags that say it, shared by `verify`, `run` and what else measures. [I/O]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Output, interrupt};
use crate::bytes::Bytes;
use crate::files;
use crate::machine::Isa;
use crate::run::build::REFERENCE;
use crate::run::spelling;
use crate::runtime::log::Stage;
use crate::runtime::server::{Limits, Server, Step, measurable};
use crate::runtime::{Embedded, Launch, RpcProgram, Runtime, nvml};

/// Which llama.cpp, and how long it may take.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Runtime")]
pub struct EngineArgs {
    /// The llama-server to run [default: PATH, then what scripts/llama-server has built].
    #[arg(long, value_name = "PATH", env = "MOEPLAN_LLAMA_SERVER")]
    pub llama_server: Option<PathBuf>,
    /// Keep llama-server's log in FILE.
    #[arg(long, value_name = "FILE")]
    pub server_log: Option<PathBuf>,
    /// Stop llama.cpp when loading, or one request, takes longer than so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub timeout: u64,
    /// Give up a llama-server that loads when nothing of it moves for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub stall: u64,
}

/// What can run a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runs {
    /// llama-server where one is named with --llama-server or MOEPLAN_LLAMA_SERVER, else the embedded llama.cpp where this
    /// moeplan has it, else the llama-server that is found.
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
    /// The runtime that `runs` means here.
    pub fn engine(&self, runs: Runs, output: &Output) -> anyhow::Result<Engine> {
        let is_embedded = match runs {
            Runs::Embedded => true,
            Runs::Server => false,
            Runs::Auto => self.llama_server.is_none() && cfg!(feature = "embedded"),
        };
        if !is_embedded {
            return Ok(Engine::Server(Box::new(self.server(output)?)));
        }
        let mut embedded = Embedded::here()?;
        embedded.interrupted = interrupt::is_pressed;
        interrupt::arm();
        embedded.limit = Duration::from_secs(self.timeout);
        embedded.echo = output.is_verbose().then_some(super::echo as crate::runtime::Echo);
        Ok(Engine::Embedded(embedded))
    }

    /// The llama-server, with a progress bar, the log with `-v`, and Ctrl-C heeded.
    pub fn server(&self, output: &Output) -> anyhow::Result<Server> {
        if let Some(log) = &self.server_log {
            files::check_append(log)?;
        }
        let mut server = Server::find(self.llama_server.as_deref())?;
        let limit = Duration::from_secs(self.timeout);
        server.limits =
            Limits { load: limit, request: limit, stall: Duration::from_secs(self.stall), ..Limits::default() };
        server.log.clone_from(&self.server_log);
        server.echo = output.is_verbose().then_some(super::echo as crate::runtime::Echo);
        server.interrupted = interrupt::is_pressed;
        if !output.global.quiet && !output.is_verbose() {
            server.watch = Some(show);
        }
        interrupt::arm();
        Ok(server)
    }
}

impl Engine {
    /// As the trait that measures.
    pub fn runtime(&self) -> &dyn Runtime {
        match self {
            Self::Embedded(embedded) => embedded,
            Self::Server(server) => server.as_ref(),
        }
    }

    /// What serves software devices for it.
    pub fn rpc_program(&self) -> anyhow::Result<RpcProgram> {
        Ok(match self {
            Self::Embedded(embedded) => RpcProgram::from(&embedded.program),
            Self::Server(server) => RpcProgram { moeplan: server.moeplan.clone(), ggml: Some(server.rpc_program()?) },
        })
    }

    /// The instruction set that decides what is repacked: what the embedded llama.cpp was built for, or what
    /// llama-server picked.
    pub fn isa(&self) -> Isa {
        match self {
            Self::Embedded(_) => crate::runtime::embedded_isa(),
            Self::Server(server) => server.build.isa,
        }
    }

    /// The N of its build bN: which flags it knows.
    pub fn build(&self) -> u32 {
        match self {
            Self::Embedded(_) => crate::runtime::EMBEDDED_BUILD,
            Self::Server(server) => server.build.number.unwrap_or(REFERENCE),
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
                "llama.cpp inside moeplan does not take them (--runtime server)"
            }
        };
        (!left_out.is_empty()).then(|| format!("warning: launched without {}: {why}", left_out.join(", ")))
    }

    /// What every device of a launch has free before anything is started: by the driver, else by what llama.cpp lists.
    pub fn free(&self, launch: &Launch) -> anyhow::Result<BTreeMap<String, Bytes>> {
        let listed = self.runtime().devices(&launch.machine.rpc_servers(&launch.run.rpc))?;
        let mut free: BTreeMap<String, Bytes> = listed.into_iter().map(|device| (device.name, device.free)).collect();
        free.extend(nvml::listed().into_iter().map(|device| (device.name, device.free)));
        Ok(free)
    }

    pub fn name(&self) -> String {
        match self {
            Self::Embedded(_) => format!("llama.cpp b{} inside moeplan", crate::runtime::EMBEDDED_BUILD),
            Self::Server(server) => format!("{} (`{}`)", server.build.name(), server.build.program.display()),
        }
    }

    /// How often a measurement is repeated when nobody says: a server's own clock has a spread worth showing.
    pub fn repetitions(&self) -> u32 {
        match self {
            Self::Embedded(_) => 1,
            Self::Server(_) => 3,
        }
    }
}

/// Shows a step on the terminal.
fn show(step: Step) {
    static BAR: OnceLock<ProgressBar> = OnceLock::new();
    let bar = BAR.get_or_init(|| {
        let bar = ProgressBar::new(STEPS);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar
    });
    match step {
        Step::Loading(stage) => {
            let (at, text) = stage_text(stage);
            bar.set_position(at);
            bar.set_message(text);
        }
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

const STEPS: u64 = 6;

/// How far a stage is, and what it is called.
fn stage_text(stage: Stage) -> (u64, &'static str) {
    match stage {
        Stage::Started => (0, "starting"),
        Stage::Header => (1, "reading the header"),
        Stage::Weights => (2, "loading weights"),
        Stage::Context => (4, "making the context"),
        Stage::WarmUp => (5, "warming up"),
        Stage::Ready => (STEPS, "ready"),
    }
}
