//! What commands would do: the models of each opened, and every launch of a grid checked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::beside;
use crate::bytes::Bytes;
use crate::checkup::{self, Checkup, Options, Verdict};
use crate::gguf::Gguf;
use crate::machine::Machine;
use crate::memory::{self, HOST, HostNeeds};
use crate::model::{FileKind, Model, projector};
use crate::plan::{self, Checked, Variant};
use crate::rules::Role;
use crate::run::command::shell;
use crate::run::held::{self, Held, Loaded};
use crate::run::{self, Dialect, ModelSource, ParsedCommand, Program, RunConfig, Target, grid, sources};
use crate::suggest::Refusal;

/// `moeplan/checks/1`: every command of a file.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Checks {
    pub schema: Cow<'static, str>,
    pub checks: Vec<CheckRow>,
    /// What the commands take together; absent where they do not run at once, or fewer than two are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<AtOnce>,
}

/// Commands that run at once, each with its own context on a card: the services of a Compose file; of llama-swap's groups, or of
/// a router's models, those that may be loaded together and are over their budgets by most, or take most of them.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AtOnce {
    /// Their names.
    #[serde(default)]
    pub commands: Vec<String>,
    /// How many models llama-server's router keeps, where nobody said it: then a shortfall is no definite no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assumed_most: Option<usize>,
    /// By card of the machine; of `Host` with what each program needs beside its tensors.
    pub memory: BTreeMap<String, Bytes>,
    /// What each may hold; of `Host`, where main memory is known, what is not left to the system.
    pub budget: BTreeMap<String, Bytes>,
    /// By how much they are over it. Main memory is never short of weights that are read through mapped files.
    pub shortfall: BTreeMap<String, Bytes>,
}

impl Checks {
    /// The checks of these commands on `machine`, of which `margin` is kept free on each device.
    pub fn of(checks: Vec<CheckRow>, held: &[Held], machine: &Machine, margin: Bytes) -> Self {
        let counted = |at: usize| checks.get(at).and_then(|row| Some(&row.checked()?.checkup));
        // What weighs most on one device may be light on another: the heaviest of each is looked at.
        let names = machine.devices.iter().map(|card| card.name.as_str()).chain([HOST]);
        let all = names.filter_map(|name| {
            let of =
                |at: usize| counted(at).map_or(0, |check| AtOnce::taken(check).get(name).map_or(0, |taken| taken.0));
            let set = held::heaviest(held, of);
            let known: Vec<&Checkup> = set.iter().filter_map(|at| counted(*at)).collect();
            let mut all = AtOnce::of(&known, machine, margin);
            all.commands = set.iter().filter_map(|at| held.get(*at)?.name.clone()).collect();
            (known.len() > 1).then_some(all)
        });
        // By what is missing, then by the share of the budget that is taken.
        let weight = |all: &AtOnce| {
            let share = |(name, taken): (&String, &Bytes)| {
                Some(u128::from(taken.0) * 1000 / u128::from(all.budget.get(name)?.0.max(1)))
            };
            (all.shortfall.values().copied().sum::<Bytes>(), all.memory.iter().filter_map(share).max())
        };
        let assumed_most = held.iter().find_map(|held| match held.loaded {
            Loaded::UpTo { most, is_said: false } => Some(most),
            _ => None,
        });
        let at_once = all.max_by_key(weight).map(|all| AtOnce { assumed_most, ..all });
        Self { schema: "moeplan/checks/1".into(), checks, at_once }
    }
}

impl AtOnce {
    /// What one command takes, by card of the machine.
    fn taken(check: &Checkup) -> BTreeMap<String, Bytes> {
        let mut memory: BTreeMap<String, Bytes> = BTreeMap::new();
        let fitted = check.fit.as_ref().filter(|_| check.verdict == Some(Verdict::AfterFit));
        for (name, row) in fitted.map_or(&check.memory, |fit| &fit.memory) {
            let name = if memory::is_host(name) { HOST } else { check.card(name) };
            *memory.entry(name.to_string()).or_default() += row.counted();
        }
        let HostNeeds { process, logits, checkpoints, .. } = check.host_needs;
        *memory.entry(HOST.to_string()).or_default() += process + logits + checkpoints;
        memory
    }

    fn of(counted: &[&Checkup], machine: &Machine, margin: Bytes) -> Self {
        let mut memory: BTreeMap<String, Bytes> = BTreeMap::new();
        for (name, taken) in counted.iter().flat_map(|check| Self::taken(check)) {
            *memory.entry(name).or_default() += taken;
        }
        let mut budget: BTreeMap<String, Bytes> =
            machine.devices.iter().map(|card| (card.name.clone(), card.total.saturating_sub(margin))).collect();
        let pinned = counted.iter().map(|check| check.host_needs.pinned).max().unwrap_or_default();
        // What graphics hold of main memory is not left to the host.
        let integrated = machine.devices.iter().filter(|card| card.integrated);
        let held: Bytes = integrated.filter_map(|card| memory.get(&card.name)).copied().sum();
        let left = |ram: Bytes| ram.saturating_sub(memory::reserve(ram, pinned)).saturating_sub(held);
        budget.extend(machine.host.ram.map(|ram| (HOST.to_string(), left(ram))));
        budget.retain(|name, _| memory.contains_key(name));
        let over = |(name, budget): (&String, &Bytes)| {
            let over = memory.get(name)?.saturating_sub(*budget);
            (over > Bytes(0)).then(|| (name.clone(), over))
        };
        let shortfall = budget.iter().filter_map(over).collect();
        Self { commands: Vec::new(), assumed_most: None, memory, budget, shortfall }
    }
}

/// A command's check, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum CheckRow {
    Checked(Box<Checked>),
    Failed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Quoted for a shell; untrusted text.
        command: String,
        error: String,
    },
}

impl CheckRow {
    pub fn checked(&self) -> Option<&Checked> {
        match self {
            Self::Checked(checked) => Some(checked),
            Self::Failed { .. } => None,
        }
    }
}

/// What is asked of every command.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub machine: &'a Machine,
    /// Variables that llama.cpp would read; a command's own win.
    pub environment: &'a BTreeMap<String, String>,
    pub target: Target,
    pub options: Options<'a>,
    /// The words that describe the machine to `moeplan plan`, where a plan is to be made beside the command ([`beside::plan`]).
    pub plan: Option<&'a [String]>,
}

/// Where the models of a command come from.
pub trait Models {
    type Error: From<Refusal> + From<run::Error> + From<memory::Error>;

    /// Adds what is to be said of the command where it is run.
    fn note(&self, _command: &mut ParsedCommand) {}

    /// The model of a command ([`load`] reads it from a header), and what it is called.
    fn model(&self, command: &mut ParsedCommand) -> Result<(Model, String), Self::Error>;

    /// The header of a draft model or a projector.
    fn companion(&self, path: &Path) -> Result<Gguf, Self::Error>;

    /// Adds what llama.cpp would load beside the model of itself.
    fn add_beside(&self, _model: &mut Model, _command: &mut ParsedCommand, _name: &str) {}
}

/// What one launch would do; of a grid of llama-bench the largest.
pub fn check<M: Models>(held: &Held, asked: Asked<'_>, models: &M) -> Result<Checked, M::Error> {
    let Asked { machine, environment, target, options, plan: described } = asked;
    let mut largest: Option<(Model, String, ParsedCommand, Checkup)> = None;
    let mut rows = Vec::new();
    let mut opened: Option<(ModelSource, RunConfig, (Model, String))> = None;
    for variant in grid::variants(held)? {
        let mut command = run::parse::launch(&variant, environment, target)?;
        models.note(&mut command);
        let source = command.model.clone();
        // A grid seldom varies the file, nor what the loader is told of it.
        let same = opened.take().filter(|(of, run, _)| {
            source.as_ref() == Some(of) && run.metadata_overrides == command.run.metadata_overrides
        });
        let (mut model, name) = match same {
            Some((.., known)) => known,
            None => models.model(&mut command)?,
        };
        opened = source.map(|source| (source, command.run.clone(), (model.clone(), name.clone())));
        add_companions(&mut model, &mut command.run, |path| models.companion(path))?;
        models.add_beside(&mut model, &mut command, &name);
        let checkup = checkup::check(&model, machine, &command, options)?;
        rows.push(Variant {
            what: variant.name.unwrap_or_default(),
            n_ctx: checkup.run.n_ctx,
            memory: checkup.memory.clone(),
            fits: checkup.fits,
            shortfall: checkup.shortfall.clone(),
        });
        if largest.as_ref().is_none_or(|(.., known)| size(&checkup) > size(known)) {
            largest = Some((model, name, command, checkup));
        }
    }
    let (model, name, command, checkup) = largest.ok_or_else(|| Refusal::new("no variant", ""))?;
    let variants = if rows.len() > 1 { rows } else { Vec::new() };
    let plan = described.zip(options.turn).map(|(words, turn)| {
        // What an image's tag says of the build, no word of the machine does.
        let build = held.build.iter().flat_map(|build| ["--build".to_string(), build.to_string()]);
        let words: Vec<String> = words.iter().cloned().chain(build).collect();
        beside::plan((&model, &name), machine, &command, &checkup, (&words, turn), options)
    });
    let (mut plan, no_plan) = match plan {
        Some(Ok(plan)) => (Some(plan), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let is_launch = checkup.program == Program::Server && command.run.target.dialect == Dialect::LlamaCpp;
    let mut mended = beside::mended(&command).filter(|_| checkup.is_mended() && is_launch && variants.is_empty());
    for advised in plan.iter_mut().map(|plan| &mut plan.command).chain(&mut mended) {
        if let Some(command) = in_container(advised, &held.inside) {
            *advised = command;
        }
    }
    let n_cpu_moe =
        if variants.is_empty() && is_launch { fits_with(&model, machine, &command, &checkup, options) } else { None };
    Ok(Checked {
        mended,
        n_cpu_moe,
        model: plan::summary(&model, &name),
        command: sources::shown(held),
        checkup,
        name: held.name.clone(),
        variants,
        projected: None,
        plan,
        no_plan,
    })
}

/// A command for where the checked one runs, with the paths that a container has; `None` where nothing differs.
fn in_container(command: &str, paths: &[(String, String)]) -> Option<String> {
    let words = shlex::split(command).filter(|_| !paths.is_empty())?;
    let inside =
        |word: String| paths.iter().find(|(outside, _)| *outside == word).map_or(word, |(_, inside)| inside.clone());
    shell(&words.into_iter().map(inside).collect::<Vec<_>>())
}

/// The least `--n-cpu-moe` with which a command fits that does not, where no other rule says where experts go.
fn fits_with(
    model: &Model,
    machine: &Machine,
    command: &ParsedCommand,
    checkup: &Checkup,
    options: Options<'_>,
) -> Option<u32> {
    let is_short = checkup.shortfall.keys().any(|name| name != HOST) && checkup.verdict != Some(Verdict::AfterFit);
    let is_other = checkup.overrides.iter().any(|row| !checkup::lints::is_ncmoe(row));
    let has_experts = model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert);
    if !is_short || is_other || !has_experts {
        return None;
    }
    let short_with = |n: u32| {
        let words = ["llama-server", "--n-cpu-moe", &n.to_string()].map(str::to_string);
        let counted = run::parse::command_for(&words, &BTreeMap::new(), command.run.target).ok()?.run.overrides;
        let run = RunConfig { overrides: counted, ..command.run.clone() };
        let command = ParsedCommand { run, ..command.clone() };
        let options = Options { turn: None, tensors: false, ..options };
        Some(checkup::check(model, machine, &command, options).ok()?.shortfall)
    };
    // More blocks on the host never take more of a device, and take more of the host.
    let is_enough = |n: u32| Some(short_with(n)?.keys().all(|name| name == HOST));
    let (mut short, mut enough) = (u32::try_from(checkup.overrides.len()).ok()?, model.hparams.n_layer());
    if short >= enough || !is_enough(enough)? {
        return None;
    }
    while enough - short > 1 {
        let middle = u32::midpoint(short, enough);
        *(if is_enough(middle)? { &mut enough } else { &mut short }) = middle;
    }
    short_with(enough)?.is_empty().then_some(enough)
}

/// By what variants are compared: what is missing, then what devices hold, then the host.
fn size(checkup: &Checkup) -> [Bytes; 3] {
    let sum = |is_host| {
        checkup.memory.iter().filter(|(key, _)| memory::is_host(key) == is_host).map(|(_, row)| row.counted()).sum()
    };
    [checkup.shortfall.values().copied().sum(), sum(false), sum(true)]
}

/// The model of a header, its keys as the launch overrides them.
pub fn load(mut gguf: Gguf, run: &RunConfig) -> Result<Model, Refusal> {
    run.override_metadata(&mut gguf.header.metadata);
    Model::from_gguf(gguf)
}

/// Opens what a launch loads beside its model: a draft model, which says what kind of speculation it is for where the command
/// does not, and a projector.
pub fn add_companions<E: From<Refusal>>(
    model: &mut Model,
    run: &mut RunConfig,
    open: impl Fn(&Path) -> Result<Gguf, E>,
) -> Result<(), E> {
    let draft = match (&run.draft_model, &run.draft_hf) {
        (file, Some(repo)) => Some(open(hugging_face(repo, file.as_deref()).as_ref())?),
        (Some(path), None) => Some(open(path.as_ref())?),
        (None, None) => None,
    };
    if let Some(gguf) = draft {
        let draft = load(gguf, run)?;
        run.infer_speculation(draft.speculation());
        model.draft = Some(draft.into());
    }
    let projector = match (&run.mmproj, &run.mmproj_url) {
        (_, Some(url)) => Some(open(url.as_ref())?),
        (Some(path), None) => Some(open(path.as_ref())?),
        (None, None) => None,
    };
    if let Some(gguf) = projector {
        model.projector = Some(read_projector(gguf, run)?.into());
    }
    Ok(())
}

/// The projector of a header that llama.cpp would load beside a model.
pub fn read_projector(gguf: Gguf, run: &RunConfig) -> Result<Model, Refusal> {
    let path = gguf.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
    let (projector, _) = Model::as_far_as_readable(gguf);
    if projector.kind != FileKind::Mmproj {
        let message = format!("`--mmproj {path}`: the file is {}, not a multimodal projector", projector.kind);
        return Err(Refusal::new(message, ""));
    }
    let tokens = [run.image_min_tokens, run.image_max_tokens].map(Option::unwrap_or_default);
    if let Err(fault) = projector::encoders(&projector, tokens) {
        return Err(Refusal::new(format!("`--mmproj {path}`: llama.cpp refuses this projector: {fault}"), ""));
    }
    Ok(projector)
}

/// `-hf` and `-hff` as a MODEL; `-hff` wins over a quantisation.
pub fn hugging_face(repo: &str, file: Option<&str>) -> String {
    match (file, repo.split_once(':')) {
        (Some(file), name) => format!("hf:{}/{file}", name.map_or(repo, |(name, _)| name)),
        (None, _) => format!("hf:{repo}"),
    }
}
