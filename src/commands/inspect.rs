//! `inspect`: what a GGUF file is. [I/O]

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::machine::MachineArgs;
use super::what_if::{WhatIfArgs, listing};
use super::{Outcome, Output, model_arg, quants, read_or_built_in};
use crate::ask;
use crate::expectation::{self, Expectations};
use crate::gguf::source::{Location, Which};
use crate::inspection::Several;
use crate::run::command::shell;
use crate::suggest::Refusal;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan inspect model.gguf
  moeplan inspect --tensors --metadata model-00001-of-00002.gguf
  moeplan inspect --expect gpt-oss-20b gpt-oss-20b.gguf
  moeplan inspect hf:owner/repo --vram 24G     which of its quants fit, from their headers alone")]
pub struct Args {
    /// GGUF files, folders with one model, https://…, `hf:owner/repo[:QUANT|/FILE]`, or cached names.
    ///
    /// Any shard identifies a split model. hf:owner/repo alone lists the repository's models. `moeplan list` shows the cached
    /// names.
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
    expect: Option<String>,
    /// For a repository: say which of its models fit this machine.
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    what_if: WhatIfArgs,
}

/// What to say of a machine beside one model.
pub const MACHINE_OF_ONE: &str =
    "a machine can be given only for a whole repository (hf:owner/repo): of one model, `inspect` shows only the file";

/// Runs `inspect`: exit 1 when an expectation is not met.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    if !args.what_if.recipes().is_empty() {
        let [model] = args.models.as_slice() else { bail!("--as takes one MODEL") };
        let is_alone = !args.metadata && args.expect.is_none() && !args.machine.is_given();
        ensure!(is_alone, "--as lists sizes and types (--tensors: of each tensor); `plan --as` plans for a machine");
        listing::inspect(&args.what_if, model, args.tensors, output)?;
        return Ok(Outcome::Yes);
    }
    if let Some(repo) = repository(args)? {
        return quants::run(&repo, args.machine.is_given().then_some(&args.machine), output);
    }
    if args.machine.is_given() {
        let models = args.models.iter().map(|model| model.display().to_string());
        let words: Vec<String> =
            ["moeplan", "plan"].map(str::to_string).into_iter().chain(args.machine.words()).chain(models).collect();
        let hint = shell(&words).map_or(String::new(), |plan| format!("for one model: `{plan}`"));
        return Err(Refusal::new(MACHINE_OF_ONE, hint).into());
    }
    let expected = args.expect.as_deref().map(|name| {
        let text = read_or_built_in("list of expectations", name, expectation::BUILT_IN)?;
        anyhow::Ok(Expectations::from_yaml(name, &text)?)
    });
    let expectations = expected.transpose()?;
    let mut documents = Vec::with_capacity(args.models.len());
    for path in &args.models {
        let (model, mut inspection) = ask::inspect(model_arg::open(path, output)?);
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
        _ => output.show(&Several { schema: "moeplan/inspections/1".into(), models: documents.clone() })?,
    }
    let all_met = documents.iter().flat_map(|document| &document.expectations).all(|check| check.ok);
    Ok(if all_met { Outcome::Yes } else { Outcome::No })
}

/// The repository to list, where one without a quantisation is named.
fn repository(args: &Args) -> anyhow::Result<Option<String>> {
    for model in &args.models {
        if let Some(repo) = listed(model)? {
            let is_alone = args.models.len() == 1 && !args.tensors && !args.metadata && args.expect.is_none();
            only_lists(&repo, is_alone)?;
            return Ok(Some(repo));
        }
    }
    Ok(None)
}

/// The repository that MODEL names without one of its models: it is listed.
pub fn listed(model: &Path) -> anyhow::Result<Option<String>> {
    Ok(match model.to_str().map(Location::parse).transpose()? {
        Some(Location::Hub { repo, which: Which::Default }) => Some(repo),
        _ => None,
    })
}

/// Refuses what is asked of a list that only a model has.
pub fn only_lists(repo: &str, is_alone: bool) -> anyhow::Result<()> {
    ensure!(
        is_alone,
        "`hf:{repo}` is a whole repository, whose models `inspect` lists: for more, name one of them, hf:{repo}:QUANT"
    );
    Ok(())
}
