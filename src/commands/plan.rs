//! `moeplan plan`: the launch that fits a budget.

use anyhow::Context as _;

use crate::bytes::Bytes;
use crate::cli::Format;
use crate::commands::machine::MachineArgs;
use crate::commands::{Outcome, Output, load};
use crate::gguf::GgmlType;
use crate::model::Model;
use crate::plan::solver::Strategy;
use crate::plan::{self, ContextChoice, Plan, Request, Turn, rule_file};
use crate::report;
use crate::run::{FlashAttn, LoadMode, Override, RunConfig};

/// Find the placement that fits a budget, and print the command for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan plan --vram 24G model.gguf
  moeplan plan --vram 24G,12G -c 32768 -ub 2048 model.gguf
  llama-server -m model.gguf $(moeplan plan --vram 24G --emit args model.gguf)")]
pub struct PlanArgs {
    /// GGUF file, any shard of a split model, or a folder with one model.
    #[arg(value_name = "MODEL")]
    pub model: std::path::PathBuf,
    /// What is asked of the planner.
    #[command(flatten)]
    pub options: PlanOptions,
    /// Print only this, ready to use.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub emit: Option<Emit>,
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
    pub batch_size: Option<u32>,
    /// Physical batch size (llama.cpp: -ub; moeplan also takes `-ub`).
    #[arg(long, value_name = "N")]
    pub ubatch_size: Option<u32>,
    /// Type of the K cache (llama.cpp: -ctk).
    #[arg(long, value_name = "TYPE", value_parser = cache_type)]
    pub cache_type_k: Option<GgmlType>,
    /// Type of the V cache (llama.cpp: -ctv).
    #[arg(long, value_name = "TYPE", value_parser = cache_type)]
    pub cache_type_v: Option<GgmlType>,
    /// Slots of the server (llama.cpp: -np) [default: 1].
    #[arg(long, value_name = "N")]
    pub parallel: Option<u32>,
    /// Flash attention (llama.cpp: -fa).
    #[arg(long, value_name = "on|off|auto", value_parser = flash_attn)]
    pub flash_attn: Option<FlashAttn>,
    /// How the file is read (llama.cpp: -lm).
    #[arg(long, value_name = "MODE", value_parser = load_mode)]
    pub load_mode: Option<LoadMode>,
    /// Your own overrides, tried first (llama.cpp: -ot).
    #[arg(long, value_name = "PATTERN=BUFFER,…", action = clap::ArgAction::Append)]
    pub override_tensor: Vec<String>,
    /// A placement rule set by name, or a YAML file.
    #[arg(long, value_name = "NAME|FILE")]
    pub rules: Option<String>,
    /// What may be done with the routed experts.
    #[arg(long, value_enum, default_value_t = Strategy::Auto, value_name = "STRATEGY")]
    pub strategy: Strategy,
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

/// What to print alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Emit {
    /// The arguments on one line, for `llama-server -m MODEL $(…)`.
    Args,
    /// A shell script.
    Shell,
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

fn cache_type(text: &str) -> Result<GgmlType, String> {
    const ALLOWED: [&str; 9] = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"];
    let known = ALLOWED.contains(&text).then(|| GgmlType::from_name(text)).flatten();
    known.ok_or_else(|| format!("llama.cpp's cache types are {}", ALLOWED.join(", ")))
}

fn flash_attn(text: &str) -> Result<FlashAttn, String> {
    match text {
        "on" => Ok(FlashAttn::On),
        "off" => Ok(FlashAttn::Off),
        "auto" => Ok(FlashAttn::Auto),
        _ => Err("write on, off or auto".to_string()),
    }
}

fn load_mode(text: &str) -> Result<LoadMode, String> {
    LoadMode::from_name(text).ok_or_else(|| "write auto, none, mmap, mlock, mmap+mlock or dio".to_string())
}

impl PlanOptions {
    /// What the options mean for `model`.
    pub fn request(&self, model: &Model) -> anyhow::Result<Request> {
        let mut run = RunConfig::default();
        run.overrides = self.overrides(model)?;
        set(&mut run.n_batch, self.batch_size);
        set(&mut run.n_ubatch, self.ubatch_size);
        if self.batch_size.is_none() {
            run.n_batch = run.n_batch.max(run.n_ubatch);
        }
        set(&mut run.type_k, self.cache_type_k);
        set(&mut run.type_v, self.cache_type_v);
        set(&mut run.flash_attn, self.flash_attn);
        set(&mut run.load_mode, self.load_mode);
        run.n_parallel = self.parallel;
        Ok(Request {
            run,
            context: self.ctx_size.unwrap_or(ContextChoice::Turn),
            turn: Turn { prompt: self.prompt, generate: self.generate, depth: self.depth },
            margin: self.machine.margin(),
            strategy: self.strategy,
        })
    }

    /// The user's overrides: `-ot`, then the rule file.
    fn overrides(&self, model: &Model) -> anyhow::Result<Vec<Override>> {
        let mut overrides = Vec::new();
        for value in &self.override_tensor {
            overrides.extend(crate::run::parse::overrides(value, "-ot")?);
        }
        if let Some(name) = &self.rules {
            let built_in = rule_file::BUILT_IN.iter().find(|(known, _)| known == name).map(|(_, text)| (*text).to_string());
            let text = match built_in {
                Some(text) => text,
                None => std::fs::read_to_string(name).with_context(|| {
                    let known: Vec<&str> = rule_file::BUILT_IN.iter().map(|(name, _)| *name).collect();
                    format!("--rules `{name}` is no built-in set ({}) and no file that can be read", known.join(", "))
                })?,
            };
            overrides.extend(rule_file::overrides(&rule_file::parse(name, &text)?, model));
        }
        Ok(overrides)
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// Loads the model and makes the plan.
pub fn make(model: &std::path::Path, options: &PlanOptions) -> anyhow::Result<(Model, Plan)> {
    let model_path = model.display().to_string();
    let model = load(model)?;
    let request = options.request(&model)?;
    let machine = options.machine.machine(&request.run)?;
    let plan = plan::plan(&model, &model_path, &machine, &request)?;
    Ok((model, plan))
}

/// Runs the command.
pub fn run(args: &PlanArgs, output: &Output) -> anyhow::Result<Outcome> {
    let (_, plan) = make(&args.model, &args.options)?;
    match (args.emit, output.format()) {
        (Some(Emit::Args), _) => output.answer(&shlex::try_join(plan.args.iter().map(String::as_str))?)?,
        (Some(Emit::Shell), _) => output.answer(&format!("#!/bin/sh\nexec {} \"$@\"", plan.command))?,
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

/// The margin kept free where nothing was measured: the contract's 256 MiB.
pub const MARGIN_UNCALIBRATED: Bytes = Bytes::mib(256);
