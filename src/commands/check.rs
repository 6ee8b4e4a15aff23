//! `check`: what a llama.cpp command line would do, without running it. [I/O]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::machine::MachineArgs;
use super::what_if::{self, WhatIfArgs};
use super::{Outcome, Output, model_arg};
use crate::checkup::{self, Options, Verdict};
use crate::cli::Format;
use crate::cli::help::OWN;
use crate::gguf::{self, Gguf};
use crate::inspection::Warning;
use crate::model::{FileKind, Model};
use crate::plan;
use crate::run::build::{REFERENCE, number};
use crate::run::command::shell;
use crate::run::{self, Dialect, ModelSource, Note, ParsedCommand, Program, RunConfig, Target};
use crate::runtime::server::ConfigFiles;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan check --vram 12G --ram 64G -- llama-server -m model.gguf -ngl 99 -ncmoe 12 -c 16384
  moeplan check --device Vulkan0=16G -- llama-cli -m model.gguf -ngl 20
  moeplan check --vram 24G,12G --tensors -- llama-bench -m model.gguf -ot 'exps=CPU'
Every warning: docs/lints.md.")]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// List every tensor: type, bytes, buffer, rule.
    #[arg(long, help_heading = OWN)]
    tensors: bool,
    /// Answer yes although this part of the launch is not counted.
    #[arg(long, help_heading = OWN, value_name = "PART", value_parser = crate::memory::PARTS)]
    ignore: Vec<String>,
    /// The build of llama.cpp that is asked about: the N of bN.
    #[arg(long, help_heading = OWN, value_name = "N", default_value_t = REFERENCE, value_parser = number)]
    build: u32,
    #[arg(long, help_heading = OWN, value_enum, default_value_t = Dialect::LlamaCpp)]
    dialect: Dialect,
    /// What the model of the command would be otherwise.
    #[command(flatten)]
    what_if: WhatIfArgs,
    /// A whole command line of llama-server, llama-cli, llama-bench or llama-fit-params, after `--`.
    #[arg(help_heading = OWN, required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `check`: exit 1 when the command does not fit, or llama.cpp would refuse it; 2 when that cannot be told.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let target = Target { build: args.build, dialect: args.dialect };
    let mut command = run::parse::command_for(&args.command, &environment(), target)?;
    note_config_files(&mut command);
    let machine = args.machine.machine()?;
    let (name, gguf) = match &command.model {
        Some(ModelSource::Path(path)) => (path.clone(), gguf::open(path)?),
        Some(ModelSource::HuggingFace { repo, file }) => {
            let name = PathBuf::from(hugging_face(repo, file.as_deref()));
            let gguf = model_arg::open(&name, output)?;
            (name, gguf)
        }
        Some(ModelSource::Url(url)) => (url.into(), model_arg::open(url.as_ref(), output)?),
        Some(ModelSource::Docker(repo)) => bail!("`-dr {repo}`: only local files are read; give `-m FILE`"),
        None => bail!("the command names no model: add `-m FILE`"),
    };
    let first = what_if::first_file(&name, &gguf);
    let mut model = load(gguf, &command.run)?;
    match args.what_if.recipes() {
        [] => {}
        [recipe] => {
            let made = args.what_if.variant(&model, &name.display().to_string(), &first, recipe)?;
            let warnings = what_if::warnings(&made.what_if, &made.path).into_iter();
            let note =
                |warning: Warning| Note { code: warning.code, message: warning.message, hint: Some(warning.hint) };
            command.notes.extend(warnings.map(note));
            model = made.model;
        }
        _ => bail!("`check` takes one recipe: `plan --as` compares several"),
    }
    add_companions(&mut model, &mut command.run, |path| model_arg::open(path, output))?;
    let tensors = args.tensors || output.format() == Format::Html;
    let margin = args.machine.margin.unwrap_or_default();
    let options = Options { margin, tensors, ignored: &args.ignore, is_plan: false };
    let checkup = checkup::check(&model, &machine, &command, options)?;
    let command = shell(&args.command).unwrap_or_else(|| args.command.join(" "));
    let document = plan::Checked { model: plan::summary(&model, &name.display().to_string()), command, checkup };
    output.show(&document)?;
    Ok(match document.checkup.fits {
        _ if document.checkup.verdict == Some(Verdict::AfterFit) => Outcome::Yes,
        Some(true) if !document.checkup.is_refused() => Outcome::Yes,
        None if !document.checkup.is_refused() => Outcome::Untold,
        _ => Outcome::No,
    })
}

/// The model of a header, its keys as the launch overrides them.
pub fn load(mut gguf: Gguf, run: &RunConfig) -> anyhow::Result<Model> {
    run.override_metadata(&mut gguf.header.metadata);
    Ok(Model::from_gguf(gguf)?)
}

/// Opens what a launch loads beside its model: a draft model, which says what kind of speculation it is for where the command
/// does not, and a projector.
pub fn add_companions(
    model: &mut Model,
    run: &mut RunConfig,
    open: impl Fn(&Path) -> anyhow::Result<Gguf>,
) -> anyhow::Result<()> {
    let draft = match (&run.draft_model, &run.draft_hf) {
        (file, Some(repo)) => Some(open(hugging_face(repo, file.as_deref()).as_ref())?),
        (Some(path), None) => Some(open(path.as_ref())?),
        (None, None) => None,
    };
    if let Some(gguf) = draft {
        let draft = load(gguf, run)?;
        run.infer_speculation(draft.ends_in_nextn());
        model.draft = Some(draft.into());
    }
    let projector = match (&run.mmproj, &run.mmproj_url) {
        (_, Some(url)) => Some(open(url.as_ref())?),
        (Some(path), None) => Some(open(path.as_ref())?),
        (None, None) => None,
    };
    if let Some(gguf) = projector {
        let path = gguf.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
        let (projector, _) = Model::as_far_as_readable(gguf);
        if projector.kind != FileKind::Mmproj {
            bail!("`--mmproj {path}`: the file is {}, not a multimodal projector", projector.kind);
        }
        model.projector = Some(projector.into());
    }
    Ok(())
}

/// `-hf` and `-hff` as a MODEL; `-hff` wins over a quantisation.
fn hugging_face(repo: &str, file: Option<&str>) -> String {
    match (file, repo.split_once(':')) {
        (Some(file), name) => format!("hf:{}/{file}", name.map_or(repo, |(name, _)| name)),
        (None, _) => format!("hf:{repo}"),
    }
}

/// Notes the configuration files that llama.cpp would read first (`common/arg.cpp` `common_params_apply_system_config`, b11434).
fn note_config_files(command: &mut ParsedCommand) {
    if command.run.program == Program::Bench || command.target.dialect == Dialect::Ik {
        return;
    }
    let files = ConfigFiles::here();
    for file in files.system.into_iter().chain(files.user) {
        command.notes.push(Note {
            code: "config-file-read".into(),
            message: format!("llama.cpp reads `{}` before the command line; it is not counted here", file.display()),
            hint: Some("repeat its memory flags in the command; its overrides come first and win".into()),
        });
    }
}

/// `LLAMA_ARG_*` of this process.
pub fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("LLAMA_ARG_"))?;
        Some((name, value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(text).collect()
}
