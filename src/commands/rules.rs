//! `moeplan rules`: the placement rule sets that come along, and what a rule file does to a model. [I/O]

use std::path::PathBuf;

use super::plan_options::PlanOptions;
use super::{Outcome, Output, model_arg, read_or_built_in};
use crate::machine::Machine;
use crate::model::Model;
use crate::plan::rule_file::{self, BUILT_IN, Resolution, RuleFile};
use crate::plan::{self, Request};
use crate::report::page::rules::RuleSets;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan rules list
  moeplan rules show attention-first -o mine.yaml
  moeplan rules check mine.yaml model.gguf --vram 24G
  moeplan plan --vram 24G --rules mine.yaml model.gguf")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the rule sets that come with moeplan.
    List,
    /// Print a rule set, as a starting point for your own.
    Show {
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Show what each rule of a file does: the bytes it matches, what an earlier rule took, and what goes where.
    Check(Box<CheckArgs>),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan rules check mine.yaml
  moeplan rules check mine.yaml model.gguf
  moeplan rules check mine.yaml model.gguf --vram 24G -c 32768")]
struct CheckArgs {
    /// A rule file, or a built-in set by name.
    #[arg(value_name = "FILE|NAME")]
    file: String,
    /// A model to try the rules on: a file, folder, address or name, as for `plan`.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The machine and launch that rules which fill devices are carried out for.
    #[command(flatten)]
    options: PlanOptions,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    match &args.command {
        Command::List => list(output)?,
        Command::Show { name } => output.answer(&read_or_built_in("rule set", name, &BUILT_IN)?)?,
        Command::Check(args) => return check_file(args, output),
    }
    Ok(Outcome::Yes)
}

pub fn open(name: &str) -> anyhow::Result<RuleFile> {
    Ok(rule_file::parse(name, &read_or_built_in("rule set", name, &BUILT_IN)?)?)
}

/// The request with the rules carried out, and what they did. Those that fill devices are carried out for the launch that is best
/// without them, everything of it pinned.
pub fn apply(
    file: &RuleFile,
    model: &Model,
    machine: &Machine,
    mut request: Request,
) -> anyhow::Result<(Request, Resolution)> {
    if file.fills() {
        let without = plan::solve(model, machine, &request)?;
        return Ok(rule_file::pinned(file, model, machine, &request, without.run)?);
    }
    let overrides = rule_file::overrides(file, model);
    request.run.overrides.extend(overrides.iter().cloned());
    Ok((request, Resolution { overrides, filled: Vec::new() }))
}

fn list(output: &Output) -> anyhow::Result<()> {
    let parse = |(name, text): &(&'static str, &str)| Ok((*name, rule_file::parse(name, text)?));
    let files = BUILT_IN.iter().map(parse).collect::<Result<Vec<_>, rule_file::Error>>()?;
    output.show(&RuleSets::of(&files))
}

/// Checks a file, alone or on a model; rules that fill devices are carried out where a machine was described.
fn check_file(args: &CheckArgs, output: &Output) -> anyhow::Result<Outcome> {
    args.options.leave_experts_to(&args.file)?;
    let file = open(&args.file)?;
    let load = |path: &PathBuf| anyhow::Ok(Model::from_gguf(model_arg::open(path, output)?)?);
    let model = args.model.as_ref().map(load).transpose()?;
    let machine = args.options.machine.is_given().then(|| args.options.described_machine()).transpose()?;
    let resolution = match (&model, &machine) {
        (Some(model), Some(machine)) if file.fills() => {
            Some(apply(&file, model, machine, args.options.request(model, machine, &[])?)?.1)
        }
        (Some(model), _) if !file.fills() => {
            Some(Resolution { overrides: rule_file::overrides(&file, model), filled: Vec::new() })
        }
        _ => None,
    };
    let document = rule_file::check(&args.file, &file, model.as_ref(), machine.as_ref(), resolution.as_ref());
    output.show(&document)?;
    let is_odd = document.rules.iter().any(|rule| !rule.warnings.is_empty());
    Ok(if is_odd { Outcome::No } else { Outcome::Yes })
}
