//! `inspect`: what a GGUF file is. [I/O]

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use super::machine::MachineArgs;
use super::what_if::{WhatIfArgs, listing};
use super::{Outcome, Output, model_arg, quants};
use crate::arch::Arch;
use crate::expectation::{self, Expectations};
use crate::gguf::GgmlType;
use crate::gguf::source::{Location, Which};
use crate::inspection::{ByCache, Inspection};
use crate::memory;
use crate::model::{FileKind, Model};
use crate::report::page::{Document, Page, Report};
use crate::suggest::Refusal;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan inspect model.gguf
  moeplan inspect --tensors --metadata model-00001-of-00002.gguf
  moeplan inspect --expect gpt-oss-20b gpt-oss-20b.gguf
  moeplan inspect hf:owner/repo --vram 24G     which of its quants fits, from their headers alone")]
pub struct Args {
    /// GGUF files, folders with one model, https://…, `hf:owner/repo[:QUANT|/FILE]`, or cached names.
    ///
    /// Any shard stands for a split model; hf:owner/repo alone lists the models of the repository; `moeplan list` shows the
    /// names that are cached.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// List every tensor: name, role, type, shape, bytes, file offset.
    #[arg(long)]
    tensors: bool,
    /// List every key and its value.
    #[arg(long)]
    metadata: bool,
    /// Check the facts of a YAML file (`experts.count: 16`), or of a built-in one by name (`phi-3.5-moe`).
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// For a repository: say which of its models fit this machine.
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    what_if: WhatIfArgs,
}

/// Several models in one document.
#[derive(serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Several<'a> {
    schema: &'static str,
    models: &'a [Inspection],
}

impl Document for Several<'_> {
    fn pages(&self) -> Vec<Page> {
        self.models.iter().flat_map(Document::pages).collect()
    }

    fn report(&self) -> Report {
        let title = format!("{} models", self.models.len());
        Report { title, about: String::new(), pages: self.pages() }
    }
}

/// Runs `inspect`: exit 1 when an expectation is not met.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    if !args.what_if.recipes().is_empty() {
        let [model] = args.models.as_slice() else { bail!("--as takes one MODEL") };
        let is_alone = !args.metadata && args.expect.is_none() && !args.machine.is_given();
        ensure!(is_alone, "--as lists sizes and types, with --tensors each tensor's; `plan --as` plans for a machine");
        listing::inspect(&args.what_if, model, args.tensors, output)?;
        return Ok(Outcome::Yes);
    }
    if let Some(repo) = repository(args)? {
        return quants::run(&repo, args.machine.is_given().then_some(&args.machine), output);
    }
    ensure!(!args.machine.is_given(), "a machine is for `inspect hf:owner/repo`; for one model use `plan`");
    let expectations = args.expect.as_deref().map(load_expectations).transpose()?;
    let mut documents = Vec::with_capacity(args.models.len());
    for path in &args.models {
        let (model, refused) = Model::as_far_as_readable(model_arg::open(path, output)?);
        let loads = refused.is_empty() && model.kind == FileKind::Model && Arch::named(&model.architecture).is_some();
        let mut inspection = Inspection::new(&model, &refused, loads.then(|| context_sizes(&model)).flatten());
        if let Some(expectations) = &expectations {
            inspection.expectations = expectations.check(&inspection)?;
        }
        if args.tensors {
            inspection = inspection.with_tensors(&model);
        }
        if args.metadata {
            inspection = inspection.with_metadata(&model);
        }
        documents.push(inspection);
    }
    match documents.as_slice() {
        [one] => output.show(one)?,
        several => output.show(&Several { schema: "moeplan/inspections/1", models: several })?,
    }
    let all_met = documents.iter().flat_map(|document| &document.expectations).all(|check| check.ok);
    Ok(if all_met { Outcome::Yes } else { Outcome::No })
}

/// The repository to list, where one without a quantisation is named.
fn repository(args: &Args) -> anyhow::Result<Option<String>> {
    for model in args.models.iter().filter_map(|model| model.to_str()) {
        if let Location::Hub { repo, which: Which::Default } = Location::parse(model)? {
            let is_alone = args.models.len() == 1 && !args.tensors && !args.metadata && args.expect.is_none();
            ensure!(is_alone, "`{model}` lists a repository, and only that: name one of its models, hf:{repo}:QUANT");
            return Ok(Some(repo));
        }
    }
    Ok(None)
}

/// What context takes at the two usual cache types; a type that llama.cpp refuses for the model is left out. `None` where it
/// refuses both.
fn context_sizes(model: &Model) -> Option<(ByCache, ByCache)> {
    let (mut per_token, mut fixed) = (ByCache::new(), ByCache::new());
    for ty in ["f16", "q8_0"].into_iter().filter_map(GgmlType::from_name) {
        if let Ok(context) = memory::context::per_token(model, ty) {
            per_token.insert(ty.name.into(), context.per_token);
            fixed.insert(ty.name.into(), context.fixed);
        }
    }
    (!per_token.is_empty()).then_some((per_token, fixed))
}

fn load_expectations(path: &std::path::Path) -> anyhow::Result<Expectations> {
    let name = path.to_string_lossy();
    let text = match expectation::built_in(&name) {
        Some(text) if !path.exists() => text.to_string(),
        _ if !path.exists() => {
            let known = expectation::built_in_names();
            return Err(Refusal::unknown("file of expectations or a built-in one", &name, known).into());
        }
        _ => std::fs::read_to_string(path).with_context(|| format!("cannot read expectations `{name}`"))?,
    };
    Ok(Expectations::from_yaml(&name, &text)?)
}
