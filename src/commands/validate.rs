//! `validate`: a whole suite over any number of models, one result file a step, taken up again where it was left. [I/O]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::bench::{AskArgs, Trial, launched, say_what_to_try};
use super::engine::{Engine, EngineArgs, Runs};
use super::launch::{LaunchArgs, Proposal, listed};
use super::{Outcome, Output, check, interrupt, measuring};
use crate::cli::refusal::Refusal;
use crate::inspection::Inspection;
use crate::model::Model;
use crate::plan::ContextChoice;
use crate::report::page::Document as _;
use crate::report::{html, markdown};
use crate::run::RunConfig;
use crate::runtime;
use crate::runtime::sandbox::{self, Interpreter as _, Isolated};
use crate::suite::bench::csv;
use crate::suite::cases::CaseLaunch;
use crate::suite::document::{
    Bench, Item, ModelValidation, Prompt, Section, Session, Settings, VALIDATION_SCHEMA, Validation, Verdict,
};
use crate::suite::failure::NothingMeasured;
use crate::suite::protocol::{Suite, SuiteModel, built_in_names};
use crate::suite::session::Asking;
use crate::suite::store::{self, Store, key};
use crate::suite::{checklist, earlier, facts};
use crate::tune::neighbours;
use crate::{files, gguf};

/// Run a whole suite over models: a checklist, every line ticked with evidence or not ticked with the reason.
#[derive(Debug, clap::Args)]
#[command(mut_arg("depth", |arg| arg.long("plan-depth")))]
#[command(after_help = "Examples:
  moeplan validate --model gpt-oss-20b=gpt-oss-20b.gguf --vram 80G --results results
  moeplan validate my-suite.yaml --model small=small.gguf --backend rpc --vram 64M --threads 1
Run it again with the same --results, and only what is missing is run.")]
pub struct Args {
    /// A built-in suite, or a YAML file.
    #[arg(value_name = "SUITE", default_value = "moe-cpu-offload")]
    pub suite: String,
    /// A model's file, by the name that the suite gives it; without NAME it is found by what the suite expects.
    #[arg(long, value_name = "[NAME=]PATH")]
    pub model: Vec<String>,
    /// The folder that results are written to and taken up from.
    #[arg(long, value_name = "DIR", default_value = "moeplan-validation")]
    pub results: PathBuf,
    #[command(flatten)]
    pub ask: AskArgs,
    #[command(flatten)]
    pub launch: LaunchArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

struct Shared<'a> {
    args: &'a Args,
    suite: Suite,
    engine: Engine,
    store: Store,
    output: &'a Output,
}

pub fn run(mut args: Args, output: &Output) -> anyhow::Result<Outcome> {
    let mut suite = load(&args.suite)?;
    args.ask.apply(&mut suite);
    args.launch.options.ctx_size.get_or_insert(ContextChoice::Fixed(suite.context));
    let mut named = named(&args.model, &suite)?;
    let store = results(&args.results, output)?;
    let _measuring = measuring::begin("validate", output)?;
    let engine = args.engine.engine(Runs::Server, output)?;
    for name in store.folders() {
        let is_new = named.iter().all(|(known, ..)| *known != name);
        if is_new && earlier::model(&store, &suite, &name).is_some() {
            named.push((name, None, None));
        }
    }
    let shared = Shared { args: &args, suite, engine, store, output };
    let mut document = Validation {
        schema: VALIDATION_SCHEMA.to_string(),
        suite: shared.suite.name.clone(),
        description: shared.suite.description.clone(),
        environment: facts::environment(None),
        prerequisites: required(&shared),
        models: named.iter().map(|named| before(&shared, named)).collect(),
        summary: Vec::new(),
    };
    write_whole(&shared.store, &mut document)?;
    let kept = models(&shared, &named, &mut document);
    if kept.as_ref().is_err_and(interrupt::is_cause) {
        output.say(&format!("what was measured is kept in {}: the same command goes on", args.results.display()));
        return kept.map(|()| Outcome::Yes);
    }
    output.show(&document)?;
    kept?;
    output.say(&format!("results are in {}", args.results.display()));
    let ran = document.models.iter().any(|model| model.skipped.is_none());
    let named = document.models.iter().filter(|model| model.path.is_some());
    let why: Vec<&str> = named.filter_map(|model| model.skipped.as_deref()).collect();
    anyhow::ensure!(ran || why.is_empty(), "no model was run: {}", why.join("; "));
    anyhow::ensure!(ran, "no model was run: name one with --model NAME=PATH");
    let benches = || document.models.iter().filter_map(|model| model.bench.as_ref());
    if let Some(nothing) = NothingMeasured::of(benches()).or_else(|| unlaunched(&document.models)) {
        return Err(nothing.into());
    }
    say_what_to_try(benches(), output);
    let failed = document.summary.iter().any(|line| line.verdict == Verdict::Fail);
    Ok(if failed { Outcome::No } else { Outcome::Yes })
}

/// The folder of results: a new one, an empty one, or one of an earlier validation.
fn results(folder: &Path, output: &Output) -> anyhow::Result<Store> {
    let store = Store::new(folder)?;
    if !output.global.force && !store.is_own() {
        let message = format!("`{}` is not empty, and holds no results of `validate`", folder.display());
        return Err(Refusal::new(message, "name a new folder with --results; --force writes into this one").into());
    }
    store.check()?;
    Ok(store)
}

/// Every model that has a file, each written down with the whole. What is wrong with one is in its checklist; the error is an
/// interruption, or a folder that cannot be written any more.
fn models(shared: &Shared<'_>, named: &[Named], document: &mut Validation) -> anyhow::Result<()> {
    for (at, named) in named.iter().enumerate() {
        let Some(path) = file_of(named) else { continue };
        let model = &mut document.models[at];
        let (name, path_shown) = (named.0.clone(), Some(path.display().to_string()));
        shared.output.say(&format!("model {name}"));
        let fresh = ModelValidation { name, path: path_shown, ..ModelValidation::default() };
        let before = std::mem::replace(model, fresh);
        let done = match through(shared, model, named.1.as_ref(), path) {
            Err(error) if interrupt::is_cause(&error) => {
                // Half a checklist would look like a whole one.
                *model = before;
                Err(error)
            }
            Err(error) if !error.is::<files::Error>() => {
                let hint = super::hint(&error).map_or(String::new(), |hint| format!("; {hint}"));
                let line = Item::held(LAUNCHED, false, format!("{error:#}{hint}"));
                model.sections.push(Section { name: "file".into(), items: vec![line] });
                Ok(())
            }
            done => done,
        };
        let written = write_whole(&shared.store, document);
        done.and(written)?;
    }
    Ok(())
}

/// Why no model came so far as to be launched; `None` where one did.
fn unlaunched(models: &[ModelValidation]) -> Option<NothingMeasured> {
    if models.iter().any(|model| model.bench.is_some()) {
        return None;
    }
    let mut items = models.iter().flat_map(|model| &model.sections).flat_map(|section| &section.items);
    items.find(|item| item.what == LAUNCHED).map(|item| NothingMeasured::because(&item.detail))
}

/// Writes the whole as far as it is known, with its summary, and in the environment what ran and on which devices.
fn write_whole(store: &Store, document: &mut Validation) -> anyhow::Result<()> {
    document.summary = checklist::summary(&document.prerequisites, &document.models);
    if let Some(bench) = document.models.iter().find_map(|model| model.bench.as_ref()) {
        document.environment = bench.environment.clone();
    }
    store.write(store::WHOLE, &serde_json::to_string_pretty(document)?)?;
    store.write("validation.md", &markdown::report(&document.report()))?;
    store.write("validation.html", &html::report(&document.report()))?;
    Ok(())
}

/// The built-in suite, or the file.
fn load(name: &str) -> anyhow::Result<Suite> {
    if let Some(suite) = Suite::built_in(name).filter(|_| !Path::new(name).exists()) {
        return Ok(suite?);
    }
    if !Path::new(name).exists() {
        return Err(Refusal::unknown("suite's file, and no built-in suite", name, built_in_names()).into());
    }
    let text = std::fs::read_to_string(name).with_context(|| format!("cannot read suite `{name}`"))?;
    Ok(Suite::from_yaml(name, &text)?)
}

type Named = (String, Option<SuiteModel>, Option<PathBuf>);

/// The models of the suite in its order with their files, then those that only the command line names.
fn named(words: &[String], suite: &Suite) -> anyhow::Result<Vec<Named>> {
    let mut given: Vec<(String, PathBuf)> = Vec::new();
    for word in words {
        let (name, path) = match word.split_once('=') {
            Some((name, path)) if !Path::new(word).exists() => (name.to_string(), PathBuf::from(path)),
            _ => (recognised(Path::new(word), suite)?, PathBuf::from(word)),
        };
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        anyhow::ensure!(is_name, "`--model {word}`: `{name}` names a folder of results and cannot hold a separator");
        if given.iter().any(|(known, _)| *known == name) {
            bail!("`--model {word}`: `{name}` has a file already");
        }
        given.push((name, path));
    }
    let of_suite = suite.models.iter().map(|model| {
        let path = given.iter().find(|(name, _)| *name == model.name).map(|(_, path)| path.clone());
        (model.name.clone(), Some(model.clone()), path)
    });
    let others = given.iter().filter(|(name, _)| suite.models.iter().all(|model| model.name != *name));
    Ok(of_suite.chain(others.map(|(name, path)| (name.clone(), None, Some(path.clone())))).collect())
}

/// The suite's name of a file: the model whose expectations it meets, else its own name.
fn recognised(path: &Path, suite: &Suite) -> anyhow::Result<String> {
    let inspection = Inspection::new(&header(path)?, &[], None);
    for model in &suite.models {
        let checks = model.expectations()?.map(|expectations| expectations.check(&inspection)).transpose();
        if checks.is_ok_and(|checks| checks.is_some_and(|checks| checks.iter().all(|check| check.ok))) {
            return Ok(model.name.clone());
        }
    }
    Ok(path.file_stem().map_or("model".to_string(), |stem| stem.to_string_lossy().into_owned()))
}

fn header(path: &Path) -> anyhow::Result<Model> {
    check::load(gguf::open(path)?, &RunConfig::default())
}

/// The line about a model that does not come so far as to be launched.
const LAUNCHED: &str = "it can be read, planned and launched";

/// What has to be there.
fn required(shared: &Shared<'_>) -> Vec<Item> {
    let python = "code of a model can be run isolated";
    let open = |why: String| Item::open(python, format!("only its syntax is read: {why}"));
    let machine = shared.args.launch.options.described_machine();
    vec![
        Item::held("llama-server runs here", true, shared.engine.name()),
        match machine.and_then(|machine| Ok((listed(&shared.engine, &machine)?, machine))) {
            Ok((listed, machine)) => checklist::devices(&machine.devices, &listed),
            Err(error) => Item::held("there is a device", false, format!("{error:#}")),
        },
        match Isolated.values("def f(n): return n", "f", 1) {
            sandbox::Outcome::Ran { .. } => Item::held(python, true, "Python in a sandbox"),
            sandbox::Outcome::OnlyParsed(why) | sandbox::Outcome::Unavailable(why) => open(why),
            other => open(format!("{other:?}")),
        },
    ]
}

/// The file of a model, where it was named and is there.
fn file_of((_, _, path): &Named) -> Option<&Path> {
    path.as_deref().filter(|path| path.exists())
}

/// A model before it is run: what an earlier run left of it, or why there is nothing.
fn before(shared: &Shared<'_>, named: &Named) -> ModelValidation {
    let (name, _, path) = named;
    if let Some(model) = earlier::model(&shared.store, &shared.suite, name) {
        if file_of(named).is_none() {
            shared.output.say(&format!("model {name}: kept from an earlier run"));
        }
        return model;
    }
    let why = match path {
        None => format!("its file was not named (--model {name}=PATH)"),
        Some(path) if !path.exists() => format!("there is no file `{}`", path.display()),
        Some(_) => "it was not launched".to_string(),
    };
    let path = path.as_ref().map(|path| path.display().to_string());
    ModelValidation { name: name.clone(), path, skipped: Some(why), ..ModelValidation::default() }
}

/// One model through all steps.
fn through(
    shared: &Shared<'_>,
    model: &mut ModelValidation,
    expected: Option<&SuiteModel>,
    path: &Path,
) -> anyhow::Result<()> {
    let (args, suite) = (shared.args, &shared.suite);
    let store = shared.store.below(&model.name)?;
    let header = header(path)?;
    let weights = facts::weights(args.ask.synthetic, Some(&header.metadata), &header.files);
    let expectations = expected.map(SuiteModel::expectations).transpose()?.flatten();
    let inspection = Inspection::new(&header, &[], None);
    let checks = expectations.map(|expectations| expectations.check(&inspection)).transpose()?;
    let architecture = checklist::architecture(checks.as_deref(), &weights);
    let about = key(&facts::model(path, &header, &header.files));
    store.keep(earlier::ARCHITECTURE, &about, &architecture)?;
    model.sections.push(architecture);

    let proposal = Proposal::planned(path, header, &args.launch, &shared.engine)?;
    let names: Vec<&str> = suite.cases.iter().map(String::as_str).collect();
    let Trial { cases, mut bench } =
        Trial::new(&names, suite, &proposal, &args.ask, &args.launch, &shared.engine, shared.output)?;
    let margin = args.launch.options.machine.margin(&proposal.launch.machine);
    let asking = args.ask.asking(suite, margin, args.engine.timeout)?;
    let lacks = |case: &CaseLaunch| case.predicted.as_ref().and_then(|it| it.lacking(&case.launch.machine));
    let fits = |case: &CaseLaunch| Some(if case.name == "plan" { proposal.fits() } else { lacks(case).is_none() });
    model.placements = cases.iter().filter_map(|case| checklist::placement(case, fits(case))).collect();
    store.keep(earlier::PLACEMENTS, &about, &model.placements)?;

    let mut launch = |at: usize, repetition: u32| {
        let case = &cases[at];
        let name = format!("{}-{repetition}", case.name);
        let key = step_key(shared, case, &asking, path);
        if let Some(session) = store.found::<Session>(&name, &key).filter(|session| session.failure.is_none()) {
            shared.output.say(&format!("{}, {repetition} of {}: done before", case.name, suite.repetitions));
            return session;
        }
        let session = launched(&shared.engine, case, repetition, &asking, shared.output);
        if !session.is_interrupted
            && let Err(error) = store.keep(&name, &key, &session)
        {
            shared.output.say(&format!("warning: {:#}", anyhow::Error::from(error)));
        }
        session
    };
    let keep = |bench: &Bench| -> anyhow::Result<()> {
        Ok(store.write(earlier::BENCH, &serde_json::to_string_pretty(bench)?)?)
    };
    // What is measured is kept, should this end before the last launch.
    let mut save = |so_far: &Bench| {
        if let Err(error) = keep(so_far) {
            shared.output.say(&format!("warning: {error:#}"));
        }
    };
    if bench.run(suite, &mut launch, &mut save) {
        return Err(runtime::Error::interrupted().into());
    }
    bench.sum_up(suite, &Isolated);
    model.sections.extend(checklist::of_bench(&model.placements, &bench));
    let bench = model.bench.insert(bench);
    keep(bench)?;
    Ok(store.write("bench.csv", &csv(bench))?)
}

/// Everything that a launch's result depends on, but for what changes from day to day: ports of software devices, and the
/// memory that other programs leave free.
fn step_key(shared: &Shared<'_>, case: &CaseLaunch, asking: &Asking, path: &Path) -> String {
    #[derive(Serialize)]
    struct Of<'a> {
        runtime: String,
        launch: String,
        devices: Vec<(&'a str, u64)>,
        fit_target: &'a [u32],
        threads: u32,
        prompts: &'a [Prompt],
        settings: Settings,
        bytes: u64,
        modified: u64,
    }
    let machine = &case.launch.machine;
    let file = std::fs::metadata(path).ok();
    let modified = file.as_ref().and_then(|file| file.modified().ok());
    let since = modified.and_then(|time| time.duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
    key(&Of {
        runtime: shared.engine.name(),
        launch: neighbours::id(&case.launch.run, machine),
        devices: machine.devices.iter().map(|device| (device.name.as_str(), device.total.0)).collect(),
        fit_target: &shared.args.ask.fit_target,
        threads: case.launch.n_threads,
        prompts: &asking.prompts,
        settings: Settings { repetitions: 0, ..asking.settings.clone() },
        bytes: file.map_or(0, |file| file.len()),
        modified: since.map_or(0, |since| since.as_secs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_the_suites_then_those_of_the_command_line() {
        let suite = Suite::protocol();
        let words = ["gpt-oss-20b=/x/a.gguf", "mine=/x/b.gguf"].map(str::to_string);
        let named = named(&words, &suite).unwrap();
        assert_eq!(named.len(), suite.models.len() + 1);
        let of = |name: &str| named.iter().find(|(known, _, _)| known == name).unwrap();
        assert_eq!(of("gpt-oss-20b").2, Some(PathBuf::from("/x/a.gguf")));
        assert!(of("phi-3.5-moe").2.is_none() && of("mine").1.is_none());
        for words in [["a=x", "a=y"], ["../a=x", "b=y"]] {
            assert!(super::named(&words.map(str::to_string), &suite).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_suite_that_is_not_there_names_those_that_are() {
        let error = format!("{:#}", load("no-such-suite").unwrap_err());
        assert!(error.contains("there are moe-cpu-offload"), "{error}");
    }
}
