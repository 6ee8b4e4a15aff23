//! What is asked of the planner, as it is typed: the machine, llama.cpp's own flags that the plan keeps, and the planner's.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueEnum as _};

use super::machine::MachineArgs;
use super::rules;
use crate::bytes::Bytes;
use crate::cli::refusal::of_llama_cpp;
use crate::machine::Machine;
use crate::model::Model;
use crate::number::tokens;
use crate::plan::{ContextChoice, Levers, Objective, Request, Strategy, Turn};
use crate::run::flags::{self, Effect, Flag, InPlan};
use crate::run::groups;
use crate::run::{LEFT_OUT, RunConfig, Target, build, spelling};
use crate::suggest::Refusal;

const PLAN: &str = "Plan";

/// What is asked of the planner; shared by the commands that plan.
#[derive(Debug, clap::Args)]
pub struct PlanOptions {
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub launch: LaunchOptions,
    /// Context length in tokens, or `max` for the largest that fits.
    ///
    /// `32k` is 32768. Without it: room for the turn, at least 8192.
    #[arg(short = 'c', long, value_name = "N|max", value_parser = context_choice)]
    pub ctx_size: Option<ContextChoice>,
    /// A placement rule set by name, or a YAML file.
    #[arg(help_heading = PLAN, long, value_name = "NAME|FILE")]
    pub rules: Option<String>,
    /// What may be done with the routed experts [default: auto].
    #[arg(help_heading = PLAN, long, value_enum, value_name = "STRATEGY")]
    pub strategy: Option<Strategy>,
    /// What to optimise the launch for.
    #[arg(help_heading = PLAN, long, value_enum, default_value_t = Objective::Turn, value_name = "OBJECTIVE")]
    pub objective: Objective,
    /// Allow a q8_0 cache if it is faster or makes the launch fit.
    #[arg(help_heading = PLAN, long)]
    pub allow_quantized_cache: bool,
    /// The build of llama.cpp that the command is for: 11434, b11549 …
    #[arg(help_heading = PLAN, long, value_name = "N", value_parser = build::number, default_value_t = build::REFERENCE)]
    pub build: u32,
    /// Show what takes the memory, and what every other choice would give.
    #[arg(help_heading = PLAN, long)]
    pub explain: bool,
    /// List every tensor: type, bytes, buffer, rule.
    #[arg(help_heading = PLAN, long)]
    pub tensors: bool,
    /// Tokens of the prompt of the turn to plan for.
    #[arg(help_heading = PLAN, long, default_value_t = Turn::default().prompt, value_name = "N", value_parser = tokens)]
    pub prompt: u32,
    /// Tokens generated in that turn.
    #[arg(help_heading = PLAN, long, default_value_t = Turn::default().generate, value_name = "N", value_parser = tokens)]
    pub generate: u32,
    /// Tokens already in the context.
    #[arg(help_heading = PLAN, long, default_value_t = Turn::default().depth, value_name = "N", value_parser = tokens)]
    pub depth: u32,
}

const LAUNCH: &str = "llama.cpp's own, kept as given";
const EMBEDDINGS: &str = "--embedding";

/// llama.cpp's own flags as options: what is given is kept, what is not, or is `auto`, is chosen. Which there are, the rows of
/// [`crate::run::flags`] say.
#[derive(Debug, Default)]
pub struct LaunchOptions {
    given: Vec<Setting>,
}

/// A flag of llama.cpp's with its value, as words.
type Setting = (&'static Flag, Vec<String>);

/// Whether a setting leaves the choice to the planner.
fn is_auto((_, words): &Setting) -> bool {
    words.get(1).is_some_and(|value| value == "auto")
}

/// The rows that are options, with the name of the value and the help.
fn options() -> impl Iterator<Item = (&'static Flag, &'static str, &'static str)> {
    flags::fields().filter_map(|(flag, _)| match flag.in_plan {
        InPlan::Option(value, help) => Some((flag, value, help)),
        InPlan::Kept | InPlan::Instead(_) => None,
    })
}

/// What clap calls an option, and what follows `--` when it is typed.
fn id(flag: &Flag) -> &'static str {
    flag.option_name().trim_start_matches('-')
}

impl clap::Args for LaunchOptions {
    fn augment_args(command: Command) -> Command {
        options().fold(command.next_help_heading(LAUNCH), |command, (flag, value, help)| {
            let short = flag.names().find_map(|name| name.strip_prefix('-').filter(|letter| letter.len() == 1));
            let long = flag.names().filter_map(|name| name.strip_prefix("--"));
            // The positive names of a switch say the opposite of the option.
            let others = long.filter(|name| !flag.is_switch() && *name != id(flag));
            let option = Arg::new(id(flag)).long(id(flag)).aliases(others.collect::<Vec<_>>()).help(help);
            let option = option.short(short.and_then(|letter| letter.chars().next()));
            command.arg(match value {
                "" => option.action(ArgAction::SetTrue),
                _ => option.action(ArgAction::Append).value_name(value).allow_negative_numbers(true),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for LaunchOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for (flag, value, _) in options() {
            let name = flag.printed(false, !flag.is_switch()).to_string();
            if value.is_empty() {
                given.extend(matches.get_flag(id(flag)).then(|| (flag, vec![name])));
            } else {
                let values = matches.get_many::<String>(id(flag)).into_iter().flatten();
                given.extend(values.map(|value| (flag, vec![name.clone(), value.clone()])));
            }
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl LaunchOptions {
    /// The value of the option of this name, unless it leaves the choice to the planner.
    pub fn value(&self, name: &str) -> Option<&str> {
        let said = self.given.iter().rfind(|setting| setting.0.name() == name && !is_auto(setting))?;
        said.1.get(1).map(String::as_str)
    }

    /// `-t` where it is a number, more than none.
    pub fn n_threads(&self) -> Option<u32> {
        self.value("--threads")?.parse().ok().filter(|threads| *threads > 0)
    }

    pub fn embeddings(&self) -> bool {
        self.given.iter().any(|(flag, _)| flag.name() == EMBEDDINGS)
    }

    /// The flags that are given, without those that leave the choice to the planner.
    fn flags(&self) -> impl Iterator<Item = &str> {
        self.given.iter().filter(|setting| !is_auto(setting)).filter_map(|(_, words)| words.first()).map(String::as_str)
    }
}

/// llama.cpp's own words after `plan MODEL … --`: flags that a plan keeps.
fn kept(words: &[String]) -> Result<Vec<Setting>, Refusal> {
    let mut settings = Vec::new();
    for group in groups(words) {
        let Some(typed) = group.first() else { continue };
        let hint = match spelling(typed) {
            None if typed.starts_with('-') => {
                "only llama.cpp's own flags go there: `llama-server --help` lists them".into()
            }
            None => "only flags of llama-server go there, without the program".into(),
            Some((flag, _)) => match (flag.effect, flag.in_plan) {
                (Effect::Model, _) => "the model is named before `--`, without a flag".into(),
                (Effect::None, _) | (_, InPlan::Instead(_)) => of_llama_cpp(typed, flag),
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

fn context_choice(text: &str) -> Result<ContextChoice, String> {
    match tokens(text) {
        _ if text == "max" => Ok(ContextChoice::Max),
        Ok(0) | Err(_) => Err("write a number of tokens (8192 or 8k), or `max`".to_string()),
        Ok(n) => Ok(ContextChoice::Fixed(n)),
    }
}

impl PlanOptions {
    /// `words` are llama.cpp's own after `--`, which win over options.
    pub fn request(&self, model: &Model, machine: &Machine, words: &[String]) -> anyhow::Result<Request> {
        if let Some(name) = &self.rules {
            self.leave_experts_to(name)?;
        }
        let settings: Vec<Setting> = self.launch.given.iter().cloned().chain(kept(words)?).collect();
        let said = |name: &str| settings.iter().rfind(|setting| setting.0.name() == name);
        let target = Target { build: self.build, ..Target::default() };
        if let Some((flag, _)) =
            settings.iter().find(|(flag, words)| !target.has(flag) && words.get(1).is_none_or(|n| n != "0"))
        {
            let since = flag.since;
            anyhow::bail!("{} has no {}; plans can use it with --build {since} or newer", target.name(), flag.name());
        }
        let mut line = vec!["llama-server".to_string()];
        line.extend(settings.iter().filter(|setting| !is_auto(setting)).flat_map(|(_, words)| words.clone()));
        let parsed = crate::run::parse::command_for(&line, &BTreeMap::new(), target)?;
        // What a command line of a person's is only told of, a plan must not contain.
        if let Some(note) = parsed.notes.first() {
            let message = note.message.strip_suffix(LEFT_OUT).unwrap_or(&note.message);
            return Err(Refusal::new(message, note.hint.clone().unwrap_or_default()).into());
        }
        let mut run = parsed.run;
        let is_free = |name: &str| said(name).is_none_or(is_auto);
        if is_free("--batch-size") {
            run.n_batch = run.n_batch.max(run.n_ubatch);
        }
        // A longest context is what that objective asks for.
        let longest = if self.objective == Objective::Context { ContextChoice::Max } else { ContextChoice::Turn };
        let mut context = self.ctx_size.unwrap_or(longest);
        // The rule set that leaves everything on the devices means that nothing else is moved either.
        let by_rules = if self.rules.as_deref() == Some("all-on-device") { Strategy::Rules } else { Strategy::Auto };
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
            op_offload: run.op_offload,
            cache_ram: is_free("--cache-ram"),
            expert_cache: said("--moe-cache-mib").is_some_and(is_auto),
        };
        let request = Request {
            levers,
            run,
            beside: parsed.beside,
            context,
            turn: self.turn(),
            margin: self.machine.margin(machine),
            strategy: self.strategy.unwrap_or(by_rules),
            objective: self.objective,
            tensors: self.tensors,
            explain: self.explain,
        };
        match &self.rules {
            Some(name) => Ok(rules::apply(&rules::open(name)?, model, machine, request)?.0),
            None => Ok(request),
        }
    }

    pub fn described_machine(&self) -> anyhow::Result<Machine> {
        let machine = self.machine.machine()?;
        if let Some(device) = machine.devices.iter().find(|device| device.total == Bytes(0)) {
            anyhow::bail!("{} gets no memory: leave it out; --backend cpu plans without devices", device.name);
        }
        Ok(machine)
    }

    pub fn turn(&self) -> Turn {
        Turn { prompt: self.prompt, generate: self.generate, depth: self.depth }
    }

    /// Refuses a strategy beside rules: both say what is done with the experts, and the rules would be carried out for a launch
    /// that was chosen for the strategy.
    pub fn leave_experts_to(&self, rules: &str) -> Result<(), Refusal> {
        let other = self.strategy.filter(|strategy| !matches!(strategy, Strategy::Auto | Strategy::Rules));
        let Some(name) = other.and_then(|strategy| strategy.to_possible_value()) else { return Ok(()) };
        Err(Refusal::new(
            format!("--strategy {} and the rules `{rules}` both say where the routed experts go", name.get_name()),
            format!("leave one of them out; `--strategy rules` does what `{rules}` says and nothing else"),
        ))
    }

    /// Refuses what a plan's file (`*.json`) has decided already: the machine, the context, the turn, how it was planned; where
    /// nothing else is made of them, llama.cpp's own flags, too. `--margin` stays: what is measured is held against it.
    pub fn beside_plan(&self, path: &Path, and_launch: bool) -> Result<(), Refusal> {
        if !is_plan_file(path) {
            return Ok(());
        }
        let why = format!("the plan `{}` decides that already", path.display());
        self.refuse_typed(|_| and_launch, &why, "leave it out, or name the model instead of the plan to plan anew")
    }

    /// Refuses what a whole command says itself; `-t` and `--embedding` are for one that does not.
    pub fn beside_command(&self) -> Result<(), Refusal> {
        self.refuse_typed(
            |flag| !["-t", EMBEDDINGS].contains(&flag),
            "moeplan does not plan a command given after `--`",
            "leave it out, or write llama.cpp's own flag into the command; --rpc-devices N gives it software devices",
        )
    }

    /// Refuses flags of the machine, the context, the turn and the planner, and those of llama.cpp's that count.
    fn refuse_typed(&self, counts: impl Fn(&str) -> bool, why: &str, hint: &str) -> Result<(), Refusal> {
        let (machine, turn) = (&self.machine, Turn::default());
        let of_planning = [
            ("--vram", !machine.vram.is_empty()),
            ("--device", !machine.device.is_empty()),
            ("--gpu", !machine.gpu.is_empty()),
            ("--ram", machine.ram.is_some()),
            ("--memory-bandwidth", machine.memory_bandwidth.is_some()),
            ("--cpu", machine.cpu.is_some()),
            ("--cores", machine.cores.is_some()),
            ("--backend", machine.backend.is_some()),
            ("--machine", machine.machine.is_some()),
            ("-c", self.ctx_size.is_some()),
            ("--rules", self.rules.is_some()),
            ("--strategy", self.strategy.is_some()),
            ("--objective", self.objective != Objective::Turn),
            ("--allow-quantized-cache", self.allow_quantized_cache),
            ("--build", self.build != build::REFERENCE),
            ("--prompt", self.prompt != turn.prompt),
            ("--generate", self.generate != turn.generate),
            ("--depth", self.depth != turn.depth),
        ];
        let of_planning = of_planning.into_iter().filter(|(_, is_typed)| *is_typed).map(|(flag, _)| flag);
        let typed: Vec<&str> = of_planning.chain(self.launch.flags().filter(|flag| counts(flag))).collect();
        if typed.is_empty() { Ok(()) } else { Err(Refusal::new(format!("{}: {why}", typed.join(", ")), hint)) }
    }
}

pub fn is_plan_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: PlanOptions,
    }

    fn options_of(line: &str) -> PlanOptions {
        let words = std::iter::once("x").chain(line.split(' ')).map(std::ffi::OsString::from);
        <Line as clap::Parser>::parse_from(crate::cli::long_flags(words)).options
    }

    #[test]
    fn what_is_given_is_kept_and_what_is_not_is_chosen() {
        let launch = options_of("-ub 1024 -lm auto -cmoe -nkvo -cram -1 -ot a=CPU -ot b=CPU -t 3").launch;
        let flags: Vec<&str> = launch.flags().collect();
        assert_eq!(flags, ["-ub", "-ot", "-ot", "-cmoe", "-t", "-nkvo", "--cache-ram"]);
        let values = ["--ubatch-size", "--load-mode", "--batch-size", "--cache-ram", "--override-tensor"];
        assert_eq!(values.map(|name| launch.value(name)), [Some("1024"), None, None, Some("-1"), Some("b=CPU")]);
        assert_eq!(launch.n_threads(), Some(3));
    }

    #[test]
    fn words_after_the_options_are_flags_that_a_plan_keeps() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_string).collect();
            kept(&words).map(|settings| settings.iter().map(|(flag, _)| flag.name()).collect::<Vec<_>>())
        };
        let line = "-fa on -ub 2048 --swa-full -no-kvu --spec-type ngram-mod";
        assert_eq!(of(line).unwrap(), ["--flash-attn", "--ubatch-size", "--swa-full", "--kv-unified", "--spec-type"]);
        for (line, hint) in [
            ("-m x.gguf", "before `--`"),
            ("llama-server -ub 1", "without the program"),
            ("-sm row", "splits by layers"),
            ("--jinja", "does not decide the placement"),
            ("--override-kv a=int:1", "the file's own keys"),
            ("--rerank", "-- --embedding"),
            ("--frobnicate", "llama-server --help"),
        ] {
            let refusal = of(line).unwrap_err();
            assert!(refusal.hint.contains(hint), "{line}: {refusal:?}");
        }
    }

    #[test]
    fn contexts_are_numbers_with_or_without_a_unit() {
        let fixed = |text| context_choice(text).ok();
        assert_eq!(["8k", "8192"].map(fixed), [Some(ContextChoice::Fixed(8192)); 2]);
        for bad in ["0", "0k", "k", "8kk", "8 k", "-1", "5000M", "", "8é"] {
            assert!(context_choice(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_plan_decides_is_not_said_again_beside_it() {
        for (line, planning, all) in [
            ("--backend rpc --vram 9M -c 1024", "--vram, --backend, -c", "--vram, --backend, -c"),
            (
                "--objective context --depth 7 --build 11549",
                "--objective, --build, --depth",
                "--objective, --build, --depth",
            ),
            ("--ubatch-size 64 --cpu-moe --cache-ram -1", "", "-ub, -cmoe, --cache-ram"),
            ("--margin 0 --threads auto", "", ""),
        ] {
            let options = options_of(line);
            for (and_launch, typed) in [(false, planning), (true, all)] {
                let refused = options.beside_plan(Path::new("plan.json"), and_launch);
                let expected = format!("{typed}: the plan `plan.json` decides that already");
                assert_eq!(
                    refused.err().map(|refusal| refusal.message),
                    (!typed.is_empty()).then_some(expected),
                    "{line}"
                );
            }
            assert_eq!(options.beside_plan(Path::new("model.gguf"), true), Ok(()));
            assert_eq!(options.beside_command().is_err(), !all.is_empty(), "{line}");
        }
    }
}
