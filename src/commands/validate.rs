//! `validate`: a whole suite over any number of models, one result file a step, taken up again where it was left. [I/O]

use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::json;

use super::bench::{AskArgs, Trial, launched, launches, say_what_to_try};
use super::launch::{Engine, EngineArgs, Proposal, Runs, listed};
use super::plan_options::PlanOptions;
use super::{Outcome, Output, check, interrupt, measuring, model_arg, read_or_built_in};
use crate::bytes::Bytes;
use crate::inspection::Inspection;
use crate::placement::Buffer;
use crate::plan::ContextChoice;
use crate::report::page::Document as _;
use crate::report::{html, markdown};
use crate::runtime;
use crate::runtime::sandbox;
use crate::suggest::Refusal;
use crate::suite::bench::{csv, nothing_measured};
use crate::suite::document::{
    Bench, Item, ModelValidation, PlacementFacts, Section, Session, Settings, VALIDATION_SCHEMA, Validation, Verdict,
};
use crate::suite::protocol::{BUILT_IN, Suite, SuiteModel};
use crate::suite::session::{Asking, CaseLaunch};
use crate::suite::store::{self, Store, key};
use crate::suite::{checklist, facts};
use crate::tune;
use crate::{files, memory};

/// Run a whole suite on models, and print a checklist: each line is ticked with evidence, or open with the reason.
#[derive(Debug, clap::Args)]
#[command(mut_arg("depth", |arg| arg.long("plan-depth").help("Tokens in the context before the turn to plan for")))]
#[command(after_help = "Examples:
  moeplan validate --model gpt-oss-20b=gpt-oss-20b.gguf --vram 80G --results results
  moeplan validate my-suite.yaml --model small=small.gguf --backend rpc --vram 64M --threads 1
Run it again with the same --results, and only what is missing is run.")]
pub struct Args {
    /// A built-in suite, or a YAML file.
    #[arg(value_name = "SUITE", default_value = "moe-cpu-offload")]
    pub suite: String,
    /// The file of a model, which the suite calls NAME; without NAME, the suite's expectations identify it.
    #[arg(long, value_name = "[NAME=]PATH")]
    pub model: Vec<String>,
    /// Folder for results; a later run with the same folder continues from them.
    #[arg(long, value_name = "DIR", default_value = "moeplan-validation")]
    pub results: PathBuf,
    #[command(flatten)]
    pub ask: AskArgs,
    #[command(flatten)]
    pub options: PlanOptions,
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
    args.options.planning.ctx_size.get_or_insert(ContextChoice::Fixed(suite.context));
    let mut named = named(&args.model, &suite)?;
    for other in named.iter().filter(|model| model.expected.is_none()) {
        output.say(&format!(
            "note: {} is not a model of the suite {}: it is run, but its header is not checked",
            other.name, suite.name
        ));
    }
    if args.engine.dry_run {
        return dry_run(&args, &suite, &named, output);
    }
    let store = results(&args.results, output)?;
    let _measuring = measuring::begin("validate", output)?;
    let engine = args.engine.engine(Runs::Server, output)?;
    for name in store.folders() {
        let is_new = named.iter().all(|known| known.name != name);
        if is_new && checklist::earlier(&store, &suite, &name).is_some() {
            named.push(Named { name, expected: None, path: None });
        }
    }
    let shared = Shared { args: &args, suite, engine, store, output };
    let mut document = Validation {
        schema: VALIDATION_SCHEMA.to_string(),
        suite: shared.suite.name.clone(),
        description: shared.suite.description.clone(),
        environment: facts::environment(None),
        prerequisites: shared.prerequisites(),
        models: named.iter().map(|named| shared.before(named)).collect(),
        summary: Vec::new(),
    };
    write_whole(&shared.store, &mut document)?;
    let kept = shared.models(&named, &mut document);
    if kept.as_ref().is_err_and(interrupt::is_cause) {
        output.say(&format!("the measurements are kept in {}, and the same command continues", args.results.display()));
        return kept.map(|()| Outcome::Yes);
    }
    output.show(&document)?;
    kept?;
    output.say(&format!("results are in {}", args.results.display()));
    if document.models.iter().all(|model| model.skipped.is_some()) {
        let named = document.models.iter().filter(|model| model.path.is_some());
        let why: Vec<&str> = named.filter_map(|model| model.skipped.as_deref()).collect();
        anyhow::ensure!(why.is_empty(), "no model was run: {}", why.join("; "));
        bail!("no model was run: name one with --model NAME=PATH");
    }
    let benches = || document.models.iter().filter_map(|model| model.bench.as_ref());
    if let Some(nothing) = nothing_measured(benches()) {
        return Err(nothing.into());
    }
    let mut items = document.models.iter().flat_map(|model| &model.sections).flat_map(|section| &section.items);
    if let Some(item) = items.find(|item| item.what == LAUNCHED).filter(|_| benches().next().is_none()) {
        bail!("nothing was measured: {}", item.detail);
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
    files::check(&store.path(store::WHOLE), true)?;
    Ok(store)
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

fn load(name: &str) -> anyhow::Result<Suite> {
    Ok(Suite::from_yaml(name, &read_or_built_in("suite", name, BUILT_IN)?)?)
}

/// A model, what the suite expects of it, and its file where that was named.
struct Named {
    name: String,
    expected: Option<SuiteModel>,
    path: Option<PathBuf>,
}

/// The models of the suite in its order with their files, then those that only the command line names.
fn named(words: &[String], suite: &Suite) -> anyhow::Result<Vec<Named>> {
    let of_suite = |model: &SuiteModel| Named { name: model.name.clone(), expected: Some(model.clone()), path: None };
    let mut all: Vec<Named> = suite.models.iter().map(of_suite).collect();
    for word in words {
        let (name, path) = match word.split_once('=') {
            Some((name, path)) if !Path::new(word).exists() => (name.to_string(), PathBuf::from(path)),
            _ => (recognised(Path::new(word), suite)?, PathBuf::from(word)),
        };
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        anyhow::ensure!(is_name, "`--model {word}`: `{name}` names a folder of results and cannot hold a separator");
        match all.iter_mut().find(|known| known.name == name) {
            Some(known) if known.path.is_some() => bail!("`--model {word}`: `{name}` already has a file"),
            Some(known) => known.path = Some(path),
            None => all.push(Named { name, expected: None, path: Some(path) }),
        }
    }
    Ok(all)
}

/// The suite's name of a file: the model whose expectations it meets, else its own name.
fn recognised(path: &Path, suite: &Suite) -> anyhow::Result<String> {
    let inspection = Inspection::new(&model_arg::read(path)?, &[], None);
    for model in &suite.models {
        let checks = model.expectations()?.map(|expectations| expectations.check(&inspection)).transpose();
        if checks.is_ok_and(|checks| checks.is_some_and(|checks| checks.iter().all(|check| check.ok))) {
            return Ok(model.name.clone());
        }
    }
    Ok(path.file_stem().map_or("model".to_string(), |stem| stem.to_string_lossy().into_owned()))
}

/// The line about a model that does not come so far as to be launched.
const LAUNCHED: &str = "it can be read, planned and launched";

impl Shared<'_> {
    fn prerequisites(&self) -> Vec<Item> {
        let python = "a model's code can be run in isolation";
        let machine = self.args.options.described_machine();
        vec![
            Item::held("llama-server runs here", true, self.engine.name()),
            match machine.and_then(|machine| Ok((listed(&self.engine, &machine)?, machine))) {
                Ok((listed, machine)) => checklist::devices(&machine.devices, &listed),
                Err(error) => Item::held("there is a device", false, format!("{error:#}")),
            },
            match sandbox::run("def f(n): return n", "f", 1) {
                sandbox::Outcome::Ran { .. } => Item::held(python, true, "Python in a sandbox"),
                sandbox::Outcome::Unavailable(why) => Item::open(python, format!("no code is run: {why}")),
                other => Item::open(python, format!("{other:?}")),
            },
        ]
    }

    /// A model before it is run: what an earlier run left of it, or why there is nothing.
    fn before(&self, Named { name, path, .. }: &Named) -> ModelValidation {
        let is_there = path.as_ref().is_some_and(|path| path.exists());
        if let Some(model) = checklist::earlier(&self.store, &self.suite, name) {
            if !is_there {
                self.output.say(&format!("model {name}: kept from an earlier run"));
            }
            return model;
        }
        let why = match path {
            None => format!("its file was not named (--model {name}=PATH)"),
            Some(path) if !is_there => format!("there is no file `{}`", path.display()),
            Some(_) => "it was not launched".to_string(),
        };
        let path = path.as_ref().map(|path| path.display().to_string());
        ModelValidation { name: name.clone(), path, skipped: Some(why), ..ModelValidation::default() }
    }

    /// Every model that has a file, each written down with the whole. What is wrong with one is in its checklist; the error is an
    /// interruption, or a folder that cannot be written any more.
    fn models(&self, named: &[Named], document: &mut Validation) -> anyhow::Result<()> {
        for (at, named) in named.iter().enumerate() {
            let Some(path) = named.path.as_deref().filter(|path| path.exists()) else { continue };
            self.output.say(&format!("model {}", named.name));
            let (name, path_shown) = (named.name.clone(), Some(path.display().to_string()));
            let mut model = ModelValidation { name, path: path_shown, ..ModelValidation::default() };
            let done = match self.through(&mut model, named.expected.as_ref(), path) {
                // Half a checklist would look like a whole one: what was there before stays.
                Err(error) if interrupt::is_cause(&error) => {
                    write_whole(&self.store, document)?;
                    return Err(error);
                }
                Err(error) if !error.is::<files::Error>() => {
                    let hint = super::hint(&error).map_or(String::new(), |hint| format!("; {hint}"));
                    let line = Item::held(LAUNCHED, false, format!("{error:#}{hint}"));
                    model.sections.push(Section { name: "file".into(), items: vec![line] });
                    Ok(())
                }
                done => done,
            };
            document.models[at] = model;
            let written = write_whole(&self.store, document);
            done.and(written)?;
        }
        Ok(())
    }

    fn through(&self, model: &mut ModelValidation, expected: Option<&SuiteModel>, path: &Path) -> anyhow::Result<()> {
        let (args, suite) = (self.args, &self.suite);
        let store = Store::new(&self.store.path(&model.name))?;
        let header = model_arg::read(path)?;
        let weights = facts::weights(args.ask.synthetic, Some(&header.hparams.metadata), &header.files);
        let expectations = expected.map(SuiteModel::expectations).transpose()?.flatten();
        let inspection = Inspection::new(&header, &[], None);
        let checks = expectations.map(|expectations| expectations.check(&inspection)).transpose()?;
        let architecture = checklist::architecture(checks.as_deref(), &weights);
        let about = key(&facts::model(path, &header, &header.files));
        store.keep(checklist::ARCHITECTURE, &about, &architecture)?;
        model.sections.push(architecture);

        let proposal = Proposal::planned(path, header, &args.options, &self.engine, None)?;
        let names: Vec<&str> = suite.cases.iter().map(String::as_str).collect();
        let Trial { cases, mut bench, asking } =
            Trial::new(&names, suite, &proposal, &args.ask, &args.options, &self.engine, self.output)?;
        model.placements = cases.iter().filter_map(|case| placement(case, &proposal)).collect();
        store.keep(checklist::PLACEMENTS, &about, &model.placements)?;

        let mut left = launches(&cases, suite);
        let mut launch = |at: usize, repetition: u32| {
            let case = &cases[at];
            let name = format!("{}-{repetition}", case.case.name);
            let key = self.step_key(case, &asking, path);
            if let Some(session) = store.found::<Session>(&name, &key).filter(|session| session.failure.is_none()) {
                self.output.say(&format!("{}, {repetition} of {}: done before", case.case.name, suite.repetitions));
                left.skip();
                return session;
            }
            let session = launched(&self.engine, case, repetition, &asking, &left.begin(), self.output);
            let kept = if session.is_interrupted { Ok(()) } else { store.keep(&name, &key, &session) };
            self.warn(kept.map_err(anyhow::Error::from));
            session
        };
        let keep = |bench: &Bench| -> anyhow::Result<()> {
            Ok(store.write(checklist::BENCH, &serde_json::to_string_pretty(bench)?)?)
        };
        // What is measured is kept, should this end before the last launch.
        if bench.run(&mut launch, &mut |so_far| self.warn(keep(so_far))) {
            return Err(runtime::Error::interrupted().into());
        }
        model.sections.extend(checklist::of_bench(&model.placements, &bench));
        let bench = model.bench.insert(bench);
        keep(bench)?;
        Ok(store.write("bench.csv", &csv(bench))?)
    }

    fn warn(&self, kept: anyhow::Result<()>) {
        if let Err(error) = kept {
            self.output.say(&format!("warning: {error:#}"));
        }
    }

    /// Everything that a launch's result depends on, but for what changes from day to day: ports of software devices, and the
    /// memory that other programs leave free.
    fn step_key(&self, case: &CaseLaunch, asking: &Asking, path: &Path) -> String {
        let machine = &case.launch.machine;
        let file = std::fs::metadata(path).ok();
        let modified = file.as_ref().and_then(|file| file.modified().ok());
        let since = modified.and_then(|time| time.duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
        key(&json!({
            "runtime": self.engine.name(),
            "launch": tune::id(&case.launch.run, machine),
            "devices": machine.devices.iter().map(|device| (&device.name, device.total)).collect::<Vec<_>>(),
            "fit_target": self.args.ask.fit_target,
            "threads": case.launch.run.n_threads.unwrap_or(0),
            "prompts": asking.prompts,
            "settings": Settings { repetitions: 0, ..asking.settings.clone() },
            "bytes": file.map(|file| file.len()),
            "modified": since.map(|since| since.as_secs()),
        }))
    }
}

/// What the launches of every model that has a file would do.
fn dry_run(args: &Args, suite: &Suite, named: &[Named], output: &Output) -> anyhow::Result<Outcome> {
    let engine = args.engine.engine(Runs::Server, output)?;
    let names: Vec<&str> = suite.cases.iter().map(String::as_str).collect();
    let mut rows = Vec::new();
    for Named { name, path, .. } in named {
        let Some(path) = path.as_deref() else { continue };
        let proposal = Proposal::planned(path, model_arg::read(path)?, &args.options, &engine, None)?;
        let trial = Trial::new(&names, suite, &proposal, &args.ask, &args.options, &engine, output)?;
        rows.extend(trial.told(&proposal, &format!("{name}: "), &args.options)?);
    }
    anyhow::ensure!(!rows.is_empty(), "no model would be run: name one with --model NAME=PATH");
    check::told(rows, output)
}

/// The predicted placement of a case; `None` where llama.cpp chooses by itself.
fn placement(case: &CaseLaunch, proposal: &Proposal) -> Option<PlacementFacts> {
    let predicted = case.predicted.as_ref()?;
    let (name, command) = (case.case.name.clone(), case.case.command.clone()?);
    let experts = |on_device: bool| -> Bytes {
        let experts = predicted.placement.experts(&proposal.model).map(|(_, copy)| copy);
        experts.filter(|copy| matches!(copy.buffer, Buffer::Device(_)) == on_device).map(|copy| copy.bytes).sum()
    };
    let is_fit = if name == "plan" { proposal.fits() } else { case.lacking().is_none() };
    Some(PlacementFacts {
        case: name,
        command,
        expert_bytes_on_devices: experts(true),
        expert_bytes_on_host: experts(false),
        predicted: memory::rows(&predicted.memory),
        fits: Some(is_fit),
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
        let of = |name: &str| named.iter().find(|known| known.name == name).unwrap();
        assert_eq!(of("gpt-oss-20b").path, Some(PathBuf::from("/x/a.gguf")));
        assert!(of("phi-3.5-moe").path.is_none() && of("mine").expected.is_none());
        for words in [["a=x", "a=y"], ["../a=x", "b=y"]] {
            assert!(super::named(&words.map(str::to_string), &suite).is_err(), "{words:?}");
        }
        let error = format!("{:#}", load("no-such-suite").unwrap_err());
        assert!(error.contains("built-in suite (moe-cpu-offload"), "{error}");
    }
}
