//! `bench`: the four prompts, whole and streamed, and a depth sweep, beside baselines launched in turn. [I/O]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;
use clap::builder::PossibleValue;

use super::launch::{Engine, EngineArgs, Proposal, Runs};
use super::measuring::{self, TimeLeft};
use super::plan_options::PlanOptions;
use super::{Outcome, Output, check, interrupt, read};
use crate::ask::check::CheckRow;
use crate::bytes::Bytes;
use crate::plan::{ContextChoice, Objective};
use crate::run::numbers::padded;
use crate::runtime::client::Endpoint;
use crate::runtime::{Error, RuntimeInfo, detect};
use crate::suite::bench::{csv, nothing_measured};
use crate::suite::document::{Bench, Case, Environment, Sample, Session, Verdict};
use crate::suite::protocol::Suite;
use crate::suite::session::{self, Asking, CaseLaunch};
use crate::suite::{facts, llama_bench, stream};
use crate::tune;

/// Measure speed, streaming, answers and memory of a launch and its baselines, or of a running endpoint.
#[derive(Debug, clap::Args)]
#[command(mut_arg("depth", |arg| arg.long("plan-depth").help("Tokens in the context before the turn to plan for")))]
#[command(after_help = "Examples:
  moeplan bench model.gguf --vram 24G --baseline all-on-device,experts-on-host,fit
  moeplan bench model.gguf --vram 24G --depth 0,4096,16384 --repetitions 5 --json -o bench.json
  moeplan bench --url http://127.0.0.1:8080
  moeplan bench --from llama-bench.json --csv table.csv
Without a GPU, on a software device:
  moeplan synth phi-3.5-moe --tiny --weights random -o tiny.gguf
  moeplan bench tiny.gguf --backend rpc --vram 9M --margin 0 -c 1024 --threads 1")]
pub struct Args {
    /// A GGUF file to plan for, or a plan (`moeplan plan --json`).
    #[arg(value_name = "MODEL|PLAN", required_unless_present_any = ["url", "from"])]
    pub model: Option<PathBuf>,
    /// Measure a running OpenAI-compatible endpoint instead; MOEPLAN_API_KEY is its key.
    ///
    /// Any server with this interface: llama-server, shimmy and others.
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    pub url: Option<String>,
    /// The model to request from the endpoint [default: the first that it lists].
    #[arg(long, value_name = "NAME", requires = "url")]
    pub model_name: Option<String>,
    /// Run nothing, and show what llama-bench wrote (`-o json` or `-o jsonl`) in the same form.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "url", "baseline"])]
    pub from: Option<PathBuf>,
    /// Baselines to launch, alternating with the plan.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "BASELINE,…", conflicts_with = "url")]
    pub baseline: Vec<Baseline>,
    /// Also write the tables as comma-separated values.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    #[command(flatten)]
    pub ask: AskArgs,
    /// Tokens in the context before each point of the depth sweep.
    #[arg(id = "depths", long = "depth", value_delimiter = ',', value_name = "N,…", default_value = "0")]
    pub depths: Vec<u32>,
    /// What runs the launch; the embedded llama.cpp cannot stream.
    #[arg(long, value_enum, default_value_t = Runs::Server, value_name = "RUNTIME")]
    pub runtime: Runs,
    #[command(flatten)]
    pub options: PlanOptions,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Baseline {
    /// Every layer and every expert on the devices.
    AllOnDevice,
    /// Every routed expert in main memory (-cmoe).
    ExpertsOnHost,
    /// What llama.cpp chooses by itself (-fit on), with the same context and cache types.
    Fit,
}

/// How prompts are asked; shared with `validate`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Measurement")]
pub struct AskArgs {
    /// How many times to run everything [default: 3, or as the suite says].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: Option<u32>,
    /// Maximum tokens per answer [default: as the suite says, 384 to 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Prompt tokens at each depth.
    #[arg(long, value_name = "N")]
    pub depth_prompt: Option<u32>,
    /// Tokens generated at each depth.
    #[arg(long, value_name = "N")]
    pub depth_generate: Option<u32>,
    /// The weights are made up: do not judge the answers.
    #[arg(long)]
    pub synthetic: bool,
    /// A llama-server with the same model, to count tokens if the endpoint does not report them.
    #[arg(long, value_name = "URL")]
    pub tokenizer: Option<String>,
    /// For the baseline `fit`: MiB to leave free on every device (llama.cpp: -fitt) [default: what lies outside the plan's budget, and
    /// llama.cpp's own 1024 within it].
    #[arg(long, value_name = "MIB,…", value_delimiter = ',')]
    pub fit_target: Vec<u32>,
}

impl AskArgs {
    pub fn apply(&self, suite: &mut Suite) {
        suite.repetitions = self.repetitions.unwrap_or(suite.repetitions);
        suite.depth_prompt = self.depth_prompt.unwrap_or(suite.depth_prompt);
        suite.depth_generate = self.depth_generate.unwrap_or(suite.depth_generate);
        for prompt in &mut suite.prompts {
            prompt.max_tokens = self.max_tokens.unwrap_or(prompt.max_tokens);
        }
    }

    fn asking(&self, suite: &Suite, margin: Bytes) -> anyhow::Result<Asking> {
        Ok(Asking {
            prompts: suite.prompts.clone(),
            settings: suite.settings(),
            tokenizer: self.tokenizer.as_deref().map(Endpoint::new).transpose()?,
            margin,
        })
    }
}

/// Tokens that the deepest point of the sweep has in the context at its end; 0 without a sweep.
fn deepest(suite: &Suite) -> u32 {
    let end = |depth: &u32| depth.saturating_add(suite.depth_prompt).saturating_add(suite.depth_generate);
    suite.depths.iter().map(end).max().unwrap_or(0)
}

/// Sees to room for the turn and for so many tokens in a slot, where the context is left to the planner. There is no more: with what a
/// plan has left over for a context, llama.cpp's own fitting would be left to move weights.
fn make_room(options: &mut PlanOptions, tokens: u32) {
    if options.planning.ctx_size.is_some() || options.planning.objective == Objective::Context {
        return;
    }
    let slots: u32 = options.launch.value("--parallel").and_then(|slots| slots.parse().ok()).unwrap_or(1);
    let is_deeper = tokens > options.planning.turn().tokens();
    let deeper = || ContextChoice::Fixed(padded(tokens).saturating_mul(slots));
    options.planning.ctx_size = Some(if is_deeper { deeper() } else { ContextChoice::Turn });
}

/// The launches of a model, ready to be measured in turn.
pub struct Trial {
    pub cases: Vec<CaseLaunch>,
    /// With the facts of the model and the machine.
    pub bench: Bench,
    pub asking: Asking,
}

impl Trial {
    /// The named cases of a launch; what could not be measured is refused, or said. A sweep that is deeper than the context is an
    /// error.
    pub fn new(
        names: &[&str],
        suite: &Suite,
        proposal: &Proposal,
        ask: &AskArgs,
        options: &PlanOptions,
        engine: &Engine,
        output: &Output,
    ) -> anyhow::Result<Self> {
        let Proposal { launch, model, .. } = proposal;
        proposal.warn_of_hole(output);
        let predicted = proposal.forecast()?;
        if let (Some(depth), Engine::Server(_)) = (suite.depths.iter().max(), engine) {
            let what =
                format!("depth {depth}, a prompt of {} and {} generated", suite.depth_prompt, suite.depth_generate);
            let smaller = |_| "a shorter sweep (its depths, --depth-prompt, --depth-generate)".to_string();
            proposal.has_room(&predicted, &what, deepest(suite), smaller)?;
        }
        let longest = suite.prompts.iter().map(|prompt| prompt.max_tokens).max().unwrap_or(0);
        let slot = proposal.slot_tokens(&predicted);
        if longest >= slot {
            output.say(&format!(
                "warning: answers may have {longest} tokens, but the context has {slot}: long ones are cut (use a larger -c or a smaller --max-tokens)"
            ));
        }
        let mut fit = launch.run.clone();
        if names.contains(&"fit") {
            let request = options.request_for(engine.build(), model, &launch.machine, &[])?;
            fit = tune::fit(&launch.run, &request, &launch.machine, &engine.free(launch)?);
            if !ask.fit_target.is_empty() {
                fit.fit_target.clone_from(&ask.fit_target);
            }
        }
        let mut cases: Vec<CaseLaunch> = names.iter().map(|name| CaseLaunch::new(name, launch, &fit, model)).collect();
        if let Some(available) = detect::host().available {
            for case in &mut cases {
                let needs = case.host_needs();
                if needs > available {
                    let why = format!("it needs {needs} of main memory, of which {available} are free");
                    case.refused.get_or_insert(why);
                }
            }
        }
        let weights = facts::weights(ask.synthetic, Some(&model.hparams.metadata), &model.files);
        let about = facts::model(&launch.model, model, &model.files);
        let mut bench = Bench::new(suite, facts::environment(Some(&launch.machine)), Some(about), weights);
        bench.cases = cases.iter().map(|launch| launch.case.clone()).collect();
        let margin = options.machine.margin(&launch.machine);
        Ok(Self { cases, bench, asking: ask.asking(suite, margin)? })
    }

    /// What the launches would do, their names behind `of`.
    pub fn told(&self, proposal: &Proposal, of: &str, options: &PlanOptions) -> anyhow::Result<Vec<CheckRow>> {
        let launch = |case: &CaseLaunch| Some(format!("{of}{}", case.case.name));
        proposal.told(self.cases.iter().map(|case| (launch(case), &case.launch.run)), options)
    }
}

pub fn run(mut args: Args, output: &Output) -> anyhow::Result<Outcome> {
    let mut suite = Suite::protocol();
    suite.depths.clone_from(&args.depths);
    args.ask.apply(&mut suite);
    if let Some(path) = &args.model {
        args.options.beside_plan(path, false)?;
    }
    make_room(&mut args.options, deepest(&suite));
    let args = &args;
    if let Some(table) = &args.csv {
        anyhow::ensure!(output.file() != Some(table), "-o and --csv name the same file, `{}`", table.display());
        output.check_file(table)?;
    }
    if args.engine.dry_run {
        let (_engine, proposal, trial) = trial(args, &suite, output)?;
        return check::told(trial.told(&proposal, "", &args.options)?, output);
    }
    let (bench, interrupted) = match (&args.url, &args.from) {
        (_, Some(path)) => (of_llama_bench(path, &mut suite)?, false),
        (Some(url), None) => of_endpoint(url, args, &suite, output)?,
        (None, None) => of_launches(args, &suite, output)?,
    };
    if interrupted && bench.cases.iter().all(|case| case.sessions.is_empty()) {
        return Err(Error::interrupted().into());
    }
    // Whatever cannot be written does not keep the rest from being so.
    let answered = output.show(&bench);
    let tabled = args.csv.as_deref().map_or(Ok(()), |path| output.write(path, &csv(&bench)));
    answered.and(tabled)?;
    if let Some(error) = interrupted.then(Error::interrupted).or_else(|| nothing_measured([&bench])) {
        return Err(error.into());
    }
    say_what_to_try([&bench], output);
    // Whether the first case ran and its streams were sound. A wrong answer is the model's.
    let is_sound = bench.cases.first().is_some_and(|case| {
        let ran = case.sessions.iter().all(|session| session.failure.is_none());
        ran && case.stream.iter().all(|item| item.verdict != Verdict::Fail)
    });
    Ok(if is_sound { Outcome::Yes } else { Outcome::No })
}

/// Says what to try about launches that failed, each advice once.
pub fn say_what_to_try<'a>(benches: impl IntoIterator<Item = &'a Bench>, output: &Output) {
    let failed = benches.into_iter().flat_map(|bench| &bench.cases).filter_map(|case| case.first_failed());
    let hints: BTreeSet<&str> = failed.filter_map(|session| session.trouble.as_ref()?.hint.as_deref()).collect();
    for hint in hints {
        output.say(&format!("hint: {hint}"));
    }
}

fn of_llama_bench(path: &Path, suite: &mut Suite) -> anyhow::Result<Bench> {
    let cases =
        llama_bench::cases(&read(path)?).with_context(|| format!("`{}` is not llama-bench output", path.display()))?;
    anyhow::ensure!(!cases.is_empty(), "`{}` contains no llama-bench test", path.display());
    let sessions = || cases.iter().flat_map(|case| &case.sessions);
    let depths: BTreeSet<u32> = sessions().flat_map(|session| &session.depths).map(|at| at.depth).collect();
    suite.prompts.clear();
    suite.depths = depths.into_iter().collect();
    suite.repetitions = sessions().map(|session| session.repetition).max().unwrap_or(0);
    let environment = Environment { moeplan: env!("CARGO_PKG_VERSION").to_string(), ..Environment::default() };
    let mut bench = Bench::new(suite, environment, None, facts::weights(false, None, &[]));
    let note = "measured by llama-bench, which records neither memory nor answers; nothing was run here";
    bench.notes.push(note.to_string());
    bench.cases = cases;
    bench.sum_up(false);
    Ok(bench)
}

/// The plan and its baselines, launched in turn; whether that was interrupted.
fn of_launches(args: &Args, suite: &Suite, output: &Output) -> anyhow::Result<(Bench, bool)> {
    let _measuring = measuring::begin("bench", output)?;
    let (engine, proposal, Trial { cases, mut bench, asking }) = trial(args, suite, output)?;
    if !proposal.fits() {
        bench.notes.push("the plan does not fit its budget; it was launched anyway".to_string());
    }
    let mut left = launches(&cases, suite);
    let mut launch = |at: usize, n| launched(&engine, &cases[at], n, &asking, &left.begin(), output);
    let is_interrupted = bench.run(&mut launch, &mut |so_far| output.so_far(so_far));
    Ok((bench, is_interrupted))
}

/// The plan and its baselines, ready to be measured.
fn trial(args: &Args, suite: &Suite, output: &Output) -> anyhow::Result<(Engine, Proposal, Trial)> {
    let path = args.model.as_ref().context("nothing to bench: name a model or a plan, or give --url")?;
    let engine = args.engine.engine(args.runtime, output)?;
    let proposal = Proposal::of_model(path, &args.options, &engine, None)?;
    let baselines: Vec<_> = args.baseline.iter().filter_map(Baseline::to_possible_value).collect();
    let names: Vec<&str> = ["plan"].into_iter().chain(baselines.iter().map(PossibleValue::get_name)).collect();
    let trial = Trial::new(&names, suite, &proposal, &args.ask, &args.options, &engine, output)?;
    Ok((engine, proposal, trial))
}

/// The launches of all cases.
pub fn launches(cases: &[CaseLaunch], suite: &Suite) -> TimeLeft {
    TimeLeft::new(suite.repetitions.saturating_mul(u32::try_from(cases.len()).unwrap_or(u32::MAX)))
}

/// Measures a case once; `left` says how long the rest takes.
pub fn launched(
    engine: &Engine,
    case: &CaseLaunch,
    repetition: u32,
    asking: &Asking,
    left: &str,
    output: &Output,
) -> Session {
    output.say(&format!("{}, {repetition} of {}{left}", case.case.name, asking.settings.repetitions));
    let session = match engine {
        Engine::Server(server) => session::launched(server, case, repetition, asking),
        Engine::Embedded(embedded) => session::embedded(embedded, case, repetition, asking),
    };
    if let Some(failure) = session.failure.as_ref().filter(|_| !session.is_interrupted) {
        output.say(&format!("{}: {failure}", case.case.name));
    }
    session
}

/// An endpoint that is up; whether that was interrupted.
fn of_endpoint(url: &str, args: &Args, suite: &Suite, output: &Output) -> anyhow::Result<(Bench, bool)> {
    interrupt::arm();
    let mut endpoint = Endpoint::new(url)?;
    let _measuring = endpoint.is_here().then(|| measuring::begin("bench", output)).transpose()?;
    endpoint.key = std::env::var("MOEPLAN_API_KEY").ok().filter(|key| !key.is_empty());
    endpoint.limit = Duration::from_secs(args.engine.timeout);
    endpoint.interrupted = interrupt::is_pressed;
    let listed = endpoint.models()?;
    let mut notes = Vec::new();
    endpoint.model = args.model_name.clone().or_else(|| listed.first().cloned());
    if let Some(name) = &endpoint.model {
        notes.push(format!("asked for `{name}`; the endpoint lists {} models", listed.len()));
    }
    let properties = endpoint.properties();
    let mut environment = facts::environment(None);
    environment.endpoint = Some(endpoint.address().to_string());
    match properties.get("build_info").and_then(serde_json::Value::as_str) {
        Some(build) => environment.runtime = Some(runtime_of(build)),
        None => notes.push(match endpoint.service() {
            Some(name) => format!("the endpoint says that it is {name}"),
            None => "the endpoint does not say which program it is".to_string(),
        }),
    }
    let asking = args.ask.asking(suite, Bytes(0))?;
    let mut bench = Bench::new(suite, environment, None, facts::weights(args.ask.synthetic, None, &[]));
    bench.cases = vec![Case { name: "endpoint".into(), what: "the endpoint as it is".into(), ..Case::default() }];
    let mut left = TimeLeft::new(suite.repetitions);
    let mut ask = |_, repetition| {
        output.say(&format!("{}, {repetition} of {}{}", endpoint.address(), suite.repetitions, left.begin()));
        session::of_endpoint(&endpoint, repetition, &asking)
    };
    let is_interrupted = bench.run(&mut ask, &mut |so_far| output.so_far(so_far));
    let any = |is: fn(&Sample) -> bool| bench.cases.iter().flat_map(Case::samples).any(is);
    for (is_so, note) in [
        (
            any(|sample| sample.generated_tokens.is_none()),
            "the endpoint reports no token counts (no usage, or zeros), so their number and tg are unknown; --tokenizer URL counts them",
        ),
        (
            any(|sample| sample.pp.is_none()),
            "the endpoint reports no timings: pp is unknown, and tg, if known, is by moeplan's clock",
        ),
        (
            any(|sample| sample.stream.iter().any(stream::came_at_once)),
            "the streams arrived in one burst, so the time to the first token is that of the whole answer, and the gaps between deltas say nothing about generation",
        ),
        (true, "memory and load time of a running endpoint are not measured"),
    ] {
        notes.extend(is_so.then(|| note.to_string()));
    }
    bench.notes.splice(0..0, notes);
    Ok((bench, is_interrupted))
}

fn runtime_of(build: &str) -> RuntimeInfo {
    let digits: String = build.trim_start_matches('b').chars().take_while(char::is_ascii_digit).collect();
    RuntimeInfo { program: build.to_string(), build: digits.parse().unwrap_or(0), backend: "unknown".to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_the_suite() {
        use clap::Parser as _;
        let words = ["moeplan", "bench", "m.gguf", "--repetitions", "5", "--max-tokens", "9", "--depth", "0,64"];
        let cli = super::super::Cli::try_parse_from(words).unwrap();
        let super::super::Command::Bench(args) = cli.command else { panic!("not bench") };
        let mut suite = Suite::protocol();
        args.ask.apply(&mut suite);
        assert_eq!((suite.repetitions, args.depths.as_slice(), args.options.planning.depth), (5, &[0, 64][..], 0));
        assert!(suite.prompts.iter().all(|prompt| prompt.max_tokens == 9));
        suite.depths.clone_from(&args.depths);
        assert_eq!(deepest(&suite), 64 + suite.depth_prompt + suite.depth_generate);
        let mut options = args.options;
        let mut room = |tokens| {
            options.planning.ctx_size = None;
            make_room(&mut options, tokens);
            options.planning.ctx_size
        };
        assert_eq!(room(4608), Some(ContextChoice::Turn));
        assert_eq!(room(16_900), Some(ContextChoice::Fixed(17_152)));
        // What is given is kept.
        options.planning.ctx_size = Some(ContextChoice::Max);
        make_room(&mut options, 99_000);
        assert_eq!(options.planning.ctx_size, Some(ContextChoice::Max));
        assert_eq!(["b11434-unknown", "b1-f00", "something"].map(|build| runtime_of(build).build), [11434, 1, 0]);
    }
}
