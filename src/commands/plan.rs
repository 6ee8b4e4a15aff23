//! `moeplan plan`: the launch that fits a budget.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::bytes::Bytes;
use crate::cli::Format;
use crate::commands::machine::MachineArgs;
use crate::commands::{Outcome, Output, check, model_arg};
use crate::emit;
use crate::inspection::Warning;
use crate::model::Model;
use crate::plan::solver::{Levers, Objective, Strategy};
use crate::plan::{self, ContextChoice, Plan, Request, Turn, rule_file};
use crate::report;
use crate::run::{Dialect, Override, RunConfig, Target};

/// Kept free of every device where nothing was measured on it: room for what the prediction may be off.
pub const MARGIN_UNCALIBRATED: Bytes = Bytes::mib(256);

/// Find the placement that fits a budget, and print the command for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan plan --vram 24G model.gguf
  moeplan plan --vram 24G,12G -c 32768 -ub 2048 model.gguf
  llama-server -m model.gguf $(moeplan plan --vram 24G --emit args model.gguf)")]
pub struct PlanArgs {
    /// GGUF file, any shard of a split model, a folder with one model, https://…, `hf:owner/repo[:QUANT]`, or a cached name.
    #[arg(value_name = "MODEL")]
    pub model: std::path::PathBuf,
    /// What is asked of the planner.
    #[command(flatten)]
    pub options: PlanOptions,
    /// Print only this, ready to use.
    #[arg(long, value_enum, value_name = "FORM")]
    pub emit: Option<emit::Form>,
    /// Whom --emit is for.
    #[arg(long = "for", value_enum, value_name = "PROGRAM", requires = "emit", default_value = "llama-server")]
    pub runner: emit::Runner,
    /// Whose flags --emit writes.
    #[arg(long, value_enum, requires = "emit", default_value = "llama.cpp")]
    pub dialect: Dialect,
}

/// What is asked of the planner; shared with `verify`.
#[derive(Debug, clap::Args)]
pub struct PlanOptions {
    /// The machine and its budgets.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Context length in tokens, or `max` for the largest that fits [default: room for the turn, at least 8192].
    #[arg(short = 'c', long, value_name = "N|max", value_parser = context_choice)]
    pub ctx_size: Option<ContextChoice>,
    /// Logical batch size (llama.cpp: -b).
    #[arg(short = 'b', long, value_name = "N")]
    pub batch_size: Option<String>,
    /// Physical batch size (llama.cpp: -ub; moeplan also takes `-ub`).
    #[arg(long, value_name = "N")]
    pub ubatch_size: Option<String>,
    /// Type of the K cache (llama.cpp: -ctk).
    #[arg(long, value_name = "TYPE")]
    pub cache_type_k: Option<String>,
    /// Type of the V cache (llama.cpp: -ctv).
    #[arg(long, value_name = "TYPE")]
    pub cache_type_v: Option<String>,
    /// Slots of the server (llama.cpp: -np) [default: 1].
    #[arg(long, value_name = "N")]
    pub parallel: Option<String>,
    /// Flash attention (llama.cpp: -fa).
    #[arg(long, value_name = "on|off|auto")]
    pub flash_attn: Option<String>,
    /// How the file is read (llama.cpp: -lm).
    #[arg(long, value_name = "MODE")]
    pub load_mode: Option<String>,
    /// Your own overrides, tried first (llama.cpp: -ot).
    #[arg(long, value_name = "PATTERN=BUFFER,…", action = clap::ArgAction::Append)]
    pub override_tensor: Vec<String>,
    /// A placement rule set by name, or a YAML file.
    #[arg(long, value_name = "NAME|FILE")]
    pub rules: Option<String>,
    /// What may be done with the routed experts.
    #[arg(long, value_enum, default_value_t = Strategy::Auto, value_name = "STRATEGY")]
    pub strategy: Strategy,
    /// What the launch is to be best at.
    #[arg(long, value_enum, default_value_t = Objective::Turn, value_name = "OBJECTIVE")]
    pub objective: Objective,
    /// Say what takes the room, what every other choice would give, and what it would cost.
    #[arg(long)]
    pub explain: bool,
    /// List every tensor: type, bytes, buffer, rule.
    #[arg(long)]
    pub tensors: bool,
    /// Tokens of the prompt of the turn to plan for.
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub prompt: u32,
    /// Tokens generated in that turn.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub generate: u32,
    /// Tokens already in the context.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub depth: u32,
}

fn context_choice(text: &str) -> Result<ContextChoice, String> {
    match text {
        "max" => Ok(ContextChoice::Max),
        _ => match text.parse() {
            Ok(0) | Err(_) => Err("write a number of tokens, or `max`".to_string()),
            Ok(n) => Ok(ContextChoice::Fixed(n)),
        },
    }
}

impl PlanOptions {
    /// What the options mean for `model`.
    pub fn request(&self, model: &Model) -> anyhow::Result<Request> {
        let parsed = crate::run::parse::command(&self.words(), &BTreeMap::new())?;
        let mut run = parsed.run;
        if self.batch_size.is_none() {
            run.n_batch = run.n_batch.max(run.n_ubatch);
        }
        if let Some(name) = &self.rules {
            run.overrides.extend(rule_overrides(name, model)?);
        }
        Ok(Request {
            run,
            context: self.ctx_size.unwrap_or(ContextChoice::Turn),
            turn: self.turn(),
            margin: self.machine.margin.unwrap_or(MARGIN_UNCALIBRATED),
            strategy: self.strategy,
            objective: self.objective,
            levers: self.levers(),
            target: Target::default(),
            tensors: self.tensors,
            explain: self.explain,
        })
    }

    /// The turn to plan for.
    pub fn turn(&self) -> Turn {
        Turn { prompt: self.prompt, generate: self.generate, depth: self.depth }
    }

    /// What was left to the planner.
    fn levers(&self) -> Levers {
        let is_auto = |value: &Option<String>| value.as_deref().is_none_or(|word| word == "auto");
        Levers {
            ubatch: is_auto(&self.ubatch_size),
            batch: is_auto(&self.batch_size),
            load_mode: is_auto(&self.load_mode),
            cache_types: false,
            threads: false,
            op_offload: true,
            cache_ram: true,
            expert_cache: false,
        }
    }

    /// The options that are llama.cpp's own, as the command line they would be.
    fn words(&self) -> Vec<String> {
        let mut words = vec!["llama-server".to_string()];
        for (flag, value) in [
            ("-b", &self.batch_size),
            ("-ub", &self.ubatch_size),
            ("-ctk", &self.cache_type_k),
            ("-ctv", &self.cache_type_v),
            ("-np", &self.parallel),
            ("-fa", &self.flash_attn),
            ("-lm", &self.load_mode),
        ] {
            words.extend(value.iter().flat_map(|value| [flag.to_string(), value.clone()]));
        }
        words.extend(self.override_tensor.iter().flat_map(|value| ["-ot".to_string(), value.clone()]));
        words
    }
}

/// The overrides of a built-in rule set or a rule file.
fn rule_overrides(name: &str, model: &Model) -> anyhow::Result<Vec<Override>> {
    let built_in = rule_file::BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_string());
    let text = match built_in {
        Some(text) => text,
        None => std::fs::read_to_string(name).with_context(|| {
            let known: Vec<&str> = rule_file::BUILT_IN.iter().map(|(name, _)| *name).collect();
            format!("--rules `{name}` is no built-in set ({}) and no file that can be read", known.join(", "))
        })?,
    };
    Ok(rule_file::overrides(&rule_file::parse(name, &text)?, model))
}

/// Loads the model and makes the plan.
pub fn make(model: &std::path::Path, options: &PlanOptions, output: &Output) -> anyhow::Result<(Model, Plan)> {
    let gguf = model_arg::open(model, output)?;
    let model_path = model_arg::shown(model, &gguf);
    let model = check::load(gguf, &RunConfig::default())?;
    let request = options.request(&model)?;
    let machine = options.machine.machine()?;
    let mut plan = plan::plan(&model, &model_path, &machine, &request)?;
    plan.warnings.extend(check::environment().into_keys().map(|name| Warning {
        code: "environment",
        message: format!("{name} is set here, and llama.cpp heeds it: the plan does not count it"),
        hint: format!("unset it, or look at `moeplan check -- {}`", plan.command),
    }));
    Ok((model, plan))
}

/// Runs the command.
pub fn run(args: &PlanArgs, output: &Output) -> anyhow::Result<Outcome> {
    let (model, plan) = make(&args.model, &args.options, output)?;
    match (args.emit, output.format()) {
        (Some(form), _) => {
            let turn = args.options.turn();
            let wish = emit::Wish { form, runner: args.runner, dialect: args.dialect, turn };
            let emitted = emit::render(&model, &plan, wish)?;
            output.answer(&emitted.text)?;
            emitted.notes.iter().for_each(|note| output.say(&format!("note: {note}")));
        }
        (None, Format::Json) => output.json(&plan)?,
        (None, format) => output.answer(&report::plan::render(&plan, format))?,
    }
    for (device, over) in &plan.check.shortfall {
        if args.emit.is_some() {
            output.say(&format!("warning: {device} is short of {over}"));
        }
    }
    Ok(if plan.check.fits { Outcome::Yes } else { Outcome::No })
}
