//! `moeplan plan`: the launch that fits a budget.

use std::path::Path;

use crate::bytes::Bytes;
use crate::cli::Format;
pub use crate::commands::plan_options::PlanOptions;
use crate::commands::{Outcome, Output, check, model_arg};
use crate::emit;
use crate::inspection::Warning;
use crate::machine::{Backend, Device, Machine};
use crate::model::Model;
use crate::plan::sweep::{MOST_POINTS, Plans, PlansRow, Sweep, SweepDocument, Variable};
use crate::plan::{self, Plan, Request};
use crate::report;
use crate::run::{Dialect, RunConfig};

/// Find the placement that fits a budget, and print the command for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan plan --vram 24G model.gguf
  moeplan plan --vram 24G,12G -c 32768 -ub 2048 --explain model.gguf
  moeplan plan --sweep vram=6G..48G model.gguf
  moeplan plan --vram 16G model-Q4_K_M.gguf model-Q6_K.gguf
  llama-server -m model.gguf $(moeplan plan --vram 24G --emit args model.gguf)")]
pub struct PlanArgs {
    /// A GGUF file, its folder, https://…, hf:owner/repo[:QUANT], or a cached name.
    ///
    /// Several are compared in one table. Any shard stands for a split model. `moeplan list` shows the names that are cached.
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<std::path::PathBuf>,
    /// What is asked of the planner.
    #[command(flatten)]
    pub options: PlanOptions,
    /// A table of plans: `vram=6G..48G[:STEP]` or `ctx=8k..128k[:STEP]`; twice: over both.
    ///
    /// Over budgets of the first device, or over contexts.
    #[arg(long, help_heading = "Answer", value_name = "WHAT=A..B", conflicts_with = "emit")]
    pub sweep: Vec<Sweep>,
    /// Print only this, ready to use.
    #[arg(long, help_heading = "Answer", value_enum, value_name = "FORM")]
    pub emit: Option<emit::Form>,
    /// Whom --emit is for.
    #[arg(
        long = "for",
        help_heading = "Answer",
        value_enum,
        value_name = "PROGRAM",
        requires = "emit",
        default_value = "llama-server"
    )]
    pub runner: emit::Runner,
    /// Whose flags --emit writes.
    #[arg(long, help_heading = "Answer", value_enum, requires = "emit", default_value = "llama.cpp")]
    pub dialect: Dialect,
}

/// A model, as it is shown, and what is asked about it.
struct Asked {
    model: Model,
    path: String,
    machine: Machine,
    request: Request,
}

fn asked(model: &Path, options: &PlanOptions, output: &Output) -> anyhow::Result<Asked> {
    let gguf = model_arg::open(model, output)?;
    let path = model_arg::shown(model, &gguf);
    let model = check::load(gguf, &RunConfig::default())?;
    let machine = options.described_machine()?;
    let mut request = options.request(&model, &machine)?;
    request.tensors |= output.format() == Format::Html;
    Ok(Asked { model, path, machine, request })
}

/// Loads the model and makes the plan.
pub fn make(model: &Path, options: &PlanOptions, output: &Output) -> anyhow::Result<(Model, Plan)> {
    let Asked { model, path, machine, request } = asked(model, options, output)?;
    let mut plan = plan::plan(&model, &path, &machine, &request)?;
    plan.warnings.extend(check::environment().into_keys().map(|name| Warning {
        code: "environment",
        message: format!("{name} is set here, and llama.cpp heeds it: the plan does not count it"),
        hint: format!("unset it, or look at `moeplan check -- {}`", plan.command),
    }));
    Ok((model, plan))
}

/// A table of plans of one model.
fn sweep(args: &PlanArgs, model: &Path, output: &Output) -> anyhow::Result<Outcome> {
    let Asked { model, path, mut machine, request } = asked(model, &args.options, output)?;
    if machine.devices.is_empty() && args.sweep.iter().any(|sweep| sweep.variable == Variable::Vram) {
        let backend = args.options.machine.backend.unwrap_or(Backend::Cuda);
        machine.devices = Device::of_budgets(backend, &[Bytes(0)])?;
    }
    let of = |variable| args.sweep.iter().find(|sweep| sweep.variable == variable);
    let document = match (args.sweep.as_slice(), of(Variable::Vram), of(Variable::Ctx)) {
        ([one], ..) => plan::sweep::sweep(&model, &path, &machine, &request, one)?,
        ([_, _], Some(budgets), Some(contexts)) => {
            let points = budgets.values.len() * contexts.values.len();
            anyhow::ensure!(
                points <= MOST_POINTS,
                "--sweep: {points} points, {} at most: take larger steps",
                MOST_POINTS
            );
            plan::sweep::grid(&model, &path, &machine, &request, (&budgets.values, &contexts.values))?
        }
        _ => anyhow::bail!("--sweep is given once for vram and once for ctx"),
    };
    match output.format() {
        Format::Json => output.json(&document)?,
        Format::Html => output.page(&document)?,
        format => output.answer(&report::sweep::sweep(&document, format))?,
    }
    Ok(if document.points.iter().any(|point| point.fits) { Outcome::Yes } else { Outcome::No })
}

/// The plans for budgets and contexts around a plan's own, for the page of the plan; `None` where there is nothing to vary.
fn near(model: &Model, plan: &Plan, options: &PlanOptions) -> Option<SweepDocument> {
    let (budget, n_ctx) = (plan.machine.devices.first()?.total, plan.check.run.n_ctx);
    let (budgets, contexts) = plan::sweep::near(budget, n_ctx, model.hparams.context_length);
    let request = options.request(model, &plan.machine).ok()?;
    let axes = (budgets.as_slice(), contexts.as_slice());
    let mut document = plan::sweep::grid(model, &plan.model.path, &plan.machine, &request, axes).ok()?;
    document.asked = document.points.iter().position(|point| point.value == budget.0 && point.n_ctx == n_ctx);
    Some(document)
}

/// A table of plans of several files.
fn compare(args: &PlanArgs, output: &Output) -> anyhow::Result<Outcome> {
    anyhow::ensure!(args.emit.is_none() && args.sweep.is_empty(), "--emit and --sweep take one MODEL");
    let mut rows = Vec::new();
    for (at, model) in (0..).zip(&args.models) {
        let Asked { model, path, machine, request } = asked(model, &args.options, output)?;
        rows.push(PlansRow::of(&model, &path, &machine, &request, at)?);
    }
    let document = Plans { schema: "moeplan/plans/1", machine: args.options.described_machine()?, rows };
    match output.format() {
        Format::Json => output.json(&document)?,
        Format::Html => output.page(&document)?,
        format => output.answer(&report::sweep::plans(&document, format))?,
    }
    Ok(if document.rows.iter().any(|row| row.point.fits) { Outcome::Yes } else { Outcome::No })
}

/// Runs the command.
pub fn run(args: &PlanArgs, output: &Output) -> anyhow::Result<Outcome> {
    let [model] = args.models.as_slice() else { return compare(args, output) };
    if !args.sweep.is_empty() {
        return sweep(args, model, output);
    }
    let (model, plan) = make(model, &args.options, output)?;
    match (args.emit, output.format()) {
        (Some(form), _) => {
            let turn = args.options.turn();
            let wish = emit::Wish { form, runner: args.runner, dialect: args.dialect, turn };
            let emitted = emit::render(&model, &plan, wish)?;
            output.answer(&emitted.text)?;
            emitted.notes.iter().for_each(|note| output.say(&format!("note: {note}")));
        }
        (None, Format::Json) => output.json(&plan)?,
        (None, Format::Html) => match near(&model, &plan, &args.options) {
            Some(others) => output.page(&(&plan, others))?,
            None => output.page(&plan)?,
        },
        (None, format) => output.answer(&report::plan::render(&plan, format))?,
    }
    for (device, over) in &plan.check.shortfall {
        if args.emit.is_some() {
            output.say(&format!("warning: {device} is short of {over}"));
        }
    }
    Ok(if plan.check.fits { Outcome::Yes } else { Outcome::No })
}
