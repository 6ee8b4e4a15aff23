//! What is asked of the planner: its own options, and llama.cpp's flags that a plan keeps.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::machine::Machine;
use crate::model::Model;
#[cfg(feature = "cli")]
use crate::number::tokens;
use crate::plan::{ContextChoice, Error, Levers, Objective, Request, Strategy, Turn};
use crate::run::args::NO_OP_OFFLOAD;
use crate::run::build::NEWEST;
use crate::run::flags::{Effect, Flag, InPlan, new_load_mode, old_load_mode, spellings};
use crate::run::{Choice as _, Dialect, LEFT_OUT, LoadMode, RunConfig, Target, groups, parse, spelling};
use crate::speed::Acceptance;
use crate::suggest::{Refusal, did_you_mean};

/// A flag of llama.cpp's with its value, as words.
pub type Setting = (&'static Flag, Vec<String>);

/// Whether a setting leaves the choice to the planner.
pub fn is_auto((_, words): &Setting) -> bool {
    words.get(1).is_some_and(|value| value == "auto")
}

const OWN: &str = "only llama.cpp's own flags go there: `llama-server --help` lists them";

/// llama.cpp's own words after `plan MODEL … --`: flags that a plan keeps, also those that decide nothing here.
pub fn kept(words: &[String]) -> Result<Vec<Setting>, Refusal> {
    let mut settings = Vec::new();
    for group in groups(words) {
        let Some(typed) = group.first() else { continue };
        let hint = match spelling(typed) {
            None if typed.starts_with('-') => match (new_load_mode(typed), did_you_mean(typed, spellings())) {
                (Some(new), _) => format!("it is `{new}` now; a plan writes it as its build has it"),
                (_, meant) => [meant.as_deref(), Some(OWN)].into_iter().flatten().collect::<Vec<_>>().join(" "),
            },
            None => "only flags of llama-server go there, without the program".into(),
            Some((flag, _)) => match (flag.effect, flag.in_plan) {
                (Effect::Model, _) => "the model is named before `--`, without a flag".into(),
                (_, InPlan::Instead(_)) => of_llama_cpp(typed, flag),
                _ => {
                    settings.push((flag, group.to_vec()));
                    continue;
                }
            },
        };
        return Err(Refusal::new(format!("`moeplan plan` does not take `{typed}` after `--`"), hint));
    }
    Ok(settings)
}

/// What to do instead with a flag that llama.cpp has.
pub fn of_llama_cpp(typed: &str, flag: &Flag) -> String {
    match (flag.in_plan, flag.effect) {
        (InPlan::Instead(hint), _) => hint.to_string(),
        (_, Effect::None) => {
            "llama.cpp has it, but it does not decide the placement: add it after `--` of `moeplan run`".to_string()
        }
        _ => format!(
            "llama.cpp has it, and it changes the memory of a launch: add it to the planned command, and `moeplan check -- \
             llama-server … {typed}` says whether that still fits"
        ),
    }
}

#[cfg(feature = "cli")]
const PLAN: &str = "Plan";

/// The planner's own options; in JSON, each has a default.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct Planning {
    /// Context length in tokens, or `max` for the largest that fits.
    ///
    /// `32k` is 32768. The default is the longest context that moves no experts to the host and slows the turn by at most 2%.
    #[cfg_attr(feature = "cli", arg(short = 'c', long, value_name = "N|max"))]
    pub ctx_size: Option<ContextChoice>,
    /// How to place the routed experts [default: auto].
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, value_enum, value_name = "STRATEGY"))]
    pub strategy: Option<Strategy>,
    /// What the launch is optimised for.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, value_enum, default_value_t = Objective::Turn, value_name = "OBJECTIVE"))]
    pub objective: Objective,
    /// Allow a q8_0 cache if it is faster or makes the launch fit.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long))]
    pub allow_quantized_cache: bool,
    /// The llama.cpp build to plan for: 11434, b11549, v0.6.0 … [default: the build of the installed llama-server, else 12032]
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, value_name = "N", value_parser = crate::run::build::number))]
    pub build: Option<u32>,
    /// The program that the plan is for: its rules and its flags.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(skip)]
    pub dialect: Dialect,
    /// Show where memory and time go, and how the alternatives compare.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long))]
    pub explain: bool,
    /// List every tensor: type, bytes, buffer, rule.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long))]
    pub tensors: bool,
    /// Prompt tokens of the turn to plan for.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, default_value_t = Turn::default().prompt, value_name = "N", value_parser = tokens))]
    pub prompt: u32,
    /// Tokens generated in that turn.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, default_value_t = Turn::default().generate, value_name = "N", value_parser = tokens))]
    pub generate: u32,
    /// Tokens in the context before that turn.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, default_value_t = Turn::default().depth, value_name = "N", value_parser = tokens))]
    pub depth: u32,
    /// The share of drafted tokens that the model accepts, 0 to 1. Without it, speculation is not counted.
    #[cfg_attr(feature = "cli", arg(help_heading = PLAN, long, value_name = "P"))]
    pub acceptance: Option<Acceptance>,
}

impl Default for Planning {
    fn default() -> Self {
        let Turn { prompt, generate, depth, acceptance } = Turn::default();
        Self {
            ctx_size: None,
            strategy: None,
            objective: Objective::Turn,
            allow_quantized_cache: false,
            build: None,
            dialect: Dialect::LlamaCpp,
            explain: false,
            tensors: false,
            prompt,
            generate,
            depth,
            acceptance,
        }
    }
}

impl Planning {
    pub fn target(&self) -> Target {
        match self.dialect {
            Dialect::LlamaCpp => Target { build: self.build.unwrap_or(NEWEST), ..Target::newest() },
            // ik_llama.cpp has no builds of its own here.
            Dialect::Ik => Target { dialect: Dialect::Ik, ..Target::default() },
        }
    }

    /// What is asked of the planner beside `settings`, llama.cpp's own flags, of which the last wins.
    pub fn request(&self, model: &Model, machine: &Machine, settings: &[Setting]) -> Result<Request, Error> {
        let said = |name: &str| settings.iter().rfind(|setting| setting.0.name() == name);
        let target = self.target();
        let mut line = vec!["llama-server".to_string()];
        for setting in settings {
            let words = words_of(setting, target)?;
            line.extend(words.into_iter().filter(|_| !is_auto(setting)));
        }
        let parsed = parse::command_for(&line, &BTreeMap::new(), target)?;
        // What a command line of a person's is only told of, a plan must not contain.
        if let Some(note) = parsed.notes.first() {
            let message = note.message.strip_suffix(LEFT_OUT).unwrap_or(&note.message);
            return Err(Refusal::new(message, note.hint.clone().unwrap_or_default()).into());
        }
        let mut run = parsed.run;
        if self.objective == Objective::Throughput && run.n_parallel.is_none_or(|slots| slots < 2) {
            let hint = "say how many requests are served at once: -np 4";
            return Err(Refusal::new("`--objective throughput` needs slots", hint).into());
        }
        let is_free = |name: &str| said(name).is_none_or(is_auto);
        let may_say = |name: &str| is_free(name) && spelling(name).is_some_and(|(flag, _)| target.has(flag));
        if is_free("--batch-size") {
            run.n_batch = run.n_batch.max(run.n_ubatch);
        }
        // Old builds and ik_llama.cpp keep every layer on the host where nothing is said.
        if is_free("--gpu-layers") {
            run.n_gpu_layers = -1;
        }
        // A longest context is what that objective asks for.
        let longest = if self.objective == Objective::Context { ContextChoice::Max } else { ContextChoice::Auto };
        let mut context = self.ctx_size.unwrap_or(longest);
        if said("--ctx-size").is_some() {
            // `-c 0` is the model's own context; a plan writes the number.
            let n_ctx = if run.n_ctx == 0 { model.hparams.context_length } else { run.n_ctx };
            context = ContextChoice::Fixed(n_ctx);
            run.fit_ctx = RunConfig::default().fit_ctx;
        }
        let types = ["--cache-type-k", "--cache-type-v"];
        let asks_for_types = types.iter().any(|name| said(name).is_some_and(is_auto)) || self.allow_quantized_cache;
        let levers = Levers {
            ubatch: is_free("--ubatch-size"),
            batch: is_free("--batch-size"),
            load_mode: is_free("--load-mode"),
            cache_types: asks_for_types && types.iter().all(|name| is_free(name)),
            threads: is_free("--threads"),
            op_offload: run.op_offload && may_say("--op-offload"),
            cache_ram: is_free("--cache-ram") && target.rules().prompt_cache,
            expert_cache: said("--moe-cache-mib").is_some_and(is_auto),
        };
        Ok(Request {
            levers,
            run,
            beside: parsed.beside,
            context,
            turn: self.turn(),
            margin: machine.margin(),
            strategy: self.strategy.unwrap_or(Strategy::Auto),
            objective: self.objective,
            tensors: self.tensors,
            explain: self.explain,
        })
    }

    pub fn turn(&self) -> Turn {
        let Self { prompt, generate, depth, acceptance, .. } = *self;
        Turn { prompt, generate, depth, acceptance }
    }
}

/// A setting as the program of the plan takes it.
fn words_of((flag, words): &Setting, target: Target) -> Result<Vec<String>, Refusal> {
    let (name, value) = (flag.name(), words.get(1).map(String::as_str));
    // How the file is read has other flags in old builds and in ik_llama.cpp.
    if let ("--load-mode", Some(mode)) = (name, value.and_then(LoadMode::of_word))
        && (target.dialect == Dialect::Ik || !target.has(flag))
    {
        if (mode, target.dialect) == (LoadMode::Mlock, Dialect::Ik) {
            return Err(Refusal::new("ik_llama.cpp locks mapped files only", "-lm mmap+mlock maps and locks them"));
        }
        return Ok(old_load_mode(mode).iter().map(ToString::to_string).collect());
    }
    if target.dialect == Dialect::Ik {
        let refuse = |lacks: &str, hint: &str| Err(Refusal::new(format!("ik_llama.cpp {lacks}"), hint));
        return match name {
            "--op-offload" => Ok(NO_OP_OFFLOAD.map(str::to_string).to_vec()),
            "--n-cpu-moe" => refuse(
                "takes the last blocks of each device for -ncmoe, and a plan has yet to choose the devices' blocks",
                "name the blocks with -ot, or leave them to the plan",
            ),
            // It takes numbers alone.
            "--gpu-layers" if value == Some("all") => Ok(vec!["-ngl".to_string(), "999".to_string()]),
            "--load-mode" => Ok(words.clone()),
            _ if !flag.in_ik || !target.has(flag) => {
                refuse(&format!("is not known to have {name}"), "plan without it, or use --dialect llama.cpp")
            }
            _ => Ok(words.clone()),
        };
    }
    if target.has(flag) || value == Some("0") {
        return Ok(words.clone());
    }
    let message = format!("{} has no {name}; plans can use it with --build {} or newer", target.name(), flag.since);
    Err(Refusal::new(message, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_numbers_with_or_without_a_unit() {
        let fixed = |text: &str| text.parse().ok();
        assert_eq!(["8k", "8192"].map(fixed), [Some(ContextChoice::Fixed(8192)); 2]);
        for bad in ["0", "0k", "k", "8kk", "8 k", "-1", "5000M", "", "8é"] {
            assert!(bad.parse::<ContextChoice>().is_err(), "{bad}");
        }
    }
}
