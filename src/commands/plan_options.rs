//! What is asked of the planner, as it is typed: the machine, llama.cpp's own flags that the plan keeps, and the planner's.

use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueEnum as _};

use super::machine::MachineArgs;
use super::{Build, rules};
use crate::ask::options::{Planning, Setting, is_auto, kept};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::model::Model;
use crate::plan::{Objective, Request, Strategy, Turn};
use crate::run::flags::{self, Flag, InPlan};
use crate::suggest::Refusal;

const PLAN: &str = "Plan";

/// What is asked of the planner; shared by the commands that plan.
#[derive(Debug, Default, clap::Args)]
pub struct PlanOptions {
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub launch: LaunchOptions,
    /// Place tensors by the rules of a built-in set, or of a YAML file.
    #[arg(help_heading = PLAN, long, value_name = "NAME|FILE")]
    pub rules: Option<String>,
    #[command(flatten)]
    pub planning: Planning,
}

const LAUNCH: &str = "llama.cpp's own, kept as given";
const EMBEDDINGS: &str = "--embedding";

/// llama.cpp's own flags as options: what is given is kept, what is not, or is `auto`, is chosen. Which there are, the rows of
/// [`crate::run::flags`] say.
#[derive(Debug, Default)]
pub struct LaunchOptions {
    given: Vec<Setting>,
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

impl PlanOptions {
    /// `words` are llama.cpp's own after `--`, which win over options.
    pub fn request(&self, model: &Model, machine: &Machine, words: &[String]) -> anyhow::Result<Request> {
        self.request_for(Build::of(self.planning.build).number, model, machine, words)
    }

    /// [`PlanOptions::request`] for the build that is launched, whatever was given.
    pub fn request_for(
        &self,
        build: u32,
        model: &Model,
        machine: &Machine,
        words: &[String],
    ) -> anyhow::Result<Request> {
        let mut planning = Planning { build: Some(build), ..self.planning.clone() };
        if let Some(name) = &self.rules {
            self.leave_experts_to(name)?;
            // The rule set that leaves everything on the devices means that nothing else is moved either.
            if name == "all-on-device" {
                planning.strategy.get_or_insert(Strategy::Rules);
            }
        }
        let settings: Vec<Setting> = self.launch.given.iter().cloned().chain(kept(words)?).collect();
        let request = Request { margin: self.machine.margin(machine), ..planning.request(model, machine, &settings)? };
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

    /// Refuses a strategy beside rules: both say what is done with the experts, and the rules would be carried out for a launch
    /// that was chosen for the strategy.
    pub fn leave_experts_to(&self, rules: &str) -> Result<(), Refusal> {
        let other = self.planning.strategy.filter(|strategy| !matches!(strategy, Strategy::Auto | Strategy::Rules));
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
        let why = format!("the plan `{}` has decided that already", path.display());
        self.refuse_typed(|_| and_launch, &why, "leave it out, or name the model instead of the plan to plan again")
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
        let (planning, turn, machine) = (&self.planning, Turn::default(), &self.machine.described);
        let of_planning = [
            ("--vram", !machine.vram.is_empty()),
            ("--device", !machine.device.is_empty()),
            ("--gpu", !machine.gpu.is_empty()),
            ("--budget", !machine.budget.is_empty()),
            ("--ram", machine.ram.is_some()),
            ("--memory-bandwidth", machine.memory_bandwidth.is_some()),
            ("--cpu", machine.cpu.is_some()),
            ("--cores", machine.cores.is_some()),
            ("--backend", machine.backend.is_some()),
            ("--machine", self.machine.machine.is_some()),
            ("-c", planning.ctx_size.is_some()),
            ("--rules", self.rules.is_some()),
            ("--strategy", planning.strategy.is_some()),
            ("--objective", planning.objective != Objective::Turn),
            ("--allow-quantized-cache", planning.allow_quantized_cache),
            ("--build", planning.build.is_some()),
            ("--prompt", planning.prompt != turn.prompt),
            ("--generate", planning.generate != turn.generate),
            ("--depth", planning.depth != turn.depth),
            ("--acceptance", planning.acceptance.is_some()),
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
        let line = "-fa on -ub 2048 --swa-full -no-kvu --spec-type ngram-mod --jinja --rerank";
        let names =
            ["--flash-attn", "--ubatch-size", "--swa-full", "--kv-unified", "--spec-type", "--jinja", "--rerank"];
        assert_eq!(of(line).unwrap(), names);
        for (line, hint) in [
            ("-m x.gguf", "before `--`"),
            ("llama-server -ub 1", "without the program"),
            ("-sm row", "splits by layers"),
            ("--override-kv a=int:1", "the file's own keys"),
            ("--frobnicate", "llama-server --help"),
            ("--no-mmap", "it is `--load-mode none` now"),
            ("--jinj", "did you mean `--jinja`?"),
            ("--version", "prints something and ends"),
        ] {
            let refusal = of(line).unwrap_err();
            assert!(refusal.hint.contains(hint), "{line}: {refusal:?}");
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
                let expected = format!("{typed}: the plan `plan.json` has decided that already");
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
