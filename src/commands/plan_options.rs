//! What is asked of the planner, as it is typed: the machine, llama.cpp's own flags that the plan keeps, and the planner's.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ValueEnum as _;

use super::machine::MachineArgs;
use super::rules;
use crate::bytes::Bytes;
use crate::cli::refusal::Refusal;
use crate::machine::Machine;
use crate::model::Model;
use crate::number::tokens;
use crate::plan::{ContextChoice, Levers, Objective, Request, Strategy, Turn};
use crate::run::parse::LEFT_OUT;
use crate::run::{RunConfig, Target, build, spelling};

/// The heading of the planner's own flags.
const PLAN: &str = "Plan";

/// What is asked of the planner; shared by the commands that plan.
#[derive(Debug, clap::Args)]
pub struct PlanOptions {
    /// The machine and its budgets.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// llama.cpp's flags.
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
    /// What the launch is to be best at.
    #[arg(help_heading = PLAN, long, value_enum, default_value_t = Objective::Turn, value_name = "OBJECTIVE")]
    pub objective: Objective,
    /// Let the planner take a q8_0 cache where that is faster or fits.
    #[arg(help_heading = PLAN, long)]
    pub allow_quantized_cache: bool,
    /// The build of llama.cpp that the command is for: 11434, b11549 …
    #[arg(help_heading = PLAN, long, value_name = "N", value_parser = build_number, default_value_t = build::REFERENCE)]
    pub build: u32,
    /// Say what takes the room, and what every other choice would give.
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

/// llama.cpp's own flags: what is given is kept, what is not, or is `auto`, is chosen.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "llama.cpp's own, kept as given")]
pub struct LaunchOptions {
    /// Logical batch size (llama.cpp: -b).
    #[arg(short = 'b', long, value_name = "N|auto")]
    pub batch_size: Option<String>,
    /// Physical batch size (llama.cpp: -ub; moeplan also takes `-ub`).
    #[arg(long, value_name = "N|auto")]
    pub ubatch_size: Option<String>,
    /// Type of the K cache (llama.cpp: -ctk) [default: f16].
    #[arg(long, value_name = "TYPE|auto")]
    pub cache_type_k: Option<String>,
    /// Type of the V cache (llama.cpp: -ctv) [default: f16].
    #[arg(long, value_name = "TYPE|auto")]
    pub cache_type_v: Option<String>,
    /// Slots of the server (llama.cpp: -np) [default: 1].
    #[arg(long, value_name = "N")]
    pub parallel: Option<String>,
    /// Flash attention (llama.cpp: -fa).
    #[arg(long, value_name = "on|off|auto")]
    pub flash_attn: Option<String>,
    /// How the file is read (llama.cpp: -lm).
    #[arg(long, value_name = "MODE|auto")]
    pub load_mode: Option<String>,
    /// Threads that decode on the host (llama.cpp: -t).
    #[arg(short = 't', long, value_name = "N|auto")]
    pub threads: Option<String>,
    /// Threads that process prompts on the host (llama.cpp: -tb).
    #[arg(long, value_name = "N")]
    pub threads_batch: Option<String>,
    /// Layers on the devices (llama.cpp: -ngl) [default: all].
    #[arg(long, value_name = "N|all|auto")]
    pub gpu_layers: Option<String>,
    /// Shares of the layers by device (llama.cpp: -ts).
    #[arg(long, value_name = "SHARE,…")]
    pub tensor_split: Option<String>,
    /// Your own overrides, tried first (llama.cpp: -ot).
    #[arg(long, value_name = "PATTERN=BUFFER,…", action = clap::ArgAction::Append)]
    pub override_tensor: Vec<String>,
    /// All routed experts on the host (llama.cpp: -cmoe).
    #[arg(long)]
    pub cpu_moe: bool,
    /// The routed experts of the first N blocks on the host, and more where needed (llama.cpp: -ncmoe).
    #[arg(long, value_name = "N")]
    pub n_cpu_moe: Option<String>,
    /// The context on the host (llama.cpp: -nkvo).
    #[arg(long)]
    pub no_kv_offload: bool,
    /// Compute on the host what is there, prompts too (llama.cpp: --no-op-offload).
    #[arg(long)]
    pub no_op_offload: bool,
    /// MiB of the server's prompt cache (llama.cpp: -cram) [default: 8192, less where memory is short].
    #[arg(long, value_name = "MIB|auto", allow_hyphen_values = true)]
    pub cache_ram: Option<String>,
    /// MiB of device memory that cache experts of the host; `auto`: as many as are worth it (llama.cpp: --moe-cache-mib, b11549).
    #[arg(long, value_name = "MIB|auto")]
    pub moe_cache_mib: Option<String>,
}

fn context_choice(text: &str) -> Result<ContextChoice, String> {
    match text {
        "max" => Ok(ContextChoice::Max),
        _ => match tokens(text) {
            Ok(0) | Err(_) => Err("write a number of tokens (8192 or 8k), or `max`".to_string()),
            Ok(n) => Ok(ContextChoice::Fixed(n)),
        },
    }
}

fn build_number(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('b').unwrap_or(text).parse();
    number
        .map_err(|_| "write the number of a build, as `llama-server --version` prints it: 11434 or b11434".to_string())
}

/// Whether the choice is the planner's.
fn is_free(value: Option<&String>) -> bool {
    value.is_none_or(|word| word == "auto")
}

impl PlanOptions {
    /// What the options mean for `model`.
    pub fn request(&self, model: &Model, machine: &Machine) -> anyhow::Result<Request> {
        if let Some(name) = &self.rules {
            self.leave_experts_to(name)?;
        }
        let target = Target { build: self.build, ..Target::default() };
        let wants_cache = self.launch.moe_cache_mib.as_deref().is_some_and(|mib| mib != "0");
        anyhow::ensure!(
            !wants_cache || target.has_expert_cache(),
            "{} has no --moe-cache-mib; with --build 11549 or newer it is planned for",
            target.name()
        );
        let parsed = crate::run::parse::command_for(&self.launch.words(), &BTreeMap::new(), target)?;
        // What a command line of a person's is only told of, a plan must not contain.
        if let Some(note) = parsed.notes.first() {
            let message = note.message.strip_suffix(LEFT_OUT).unwrap_or(&note.message);
            return Err(Refusal::new(message, note.hint.clone().unwrap_or_default()).into());
        }
        let mut run = parsed.run;
        if is_free(self.launch.batch_size.as_ref()) {
            run.n_batch = run.n_batch.max(run.n_ubatch);
        }
        let request = Request {
            levers: self.levers(&run),
            run,
            context: self.context(),
            turn: self.turn(),
            margin: self.machine.margin(machine),
            strategy: self.strategy(),
            objective: self.objective,
            target,
            tensors: self.tensors,
            explain: self.explain,
        };
        match &self.rules {
            Some(name) => rules::apply(&rules::open(name)?, model, machine, request),
            None => Ok(request),
        }
    }

    /// The machine that they describe.
    pub fn described_machine(&self) -> anyhow::Result<Machine> {
        let machine = self.machine.machine()?;
        if let Some(device) = machine.devices.iter().find(|device| device.total == Bytes(0)) {
            anyhow::bail!("{} is given nothing: leave it out; --backend cpu plans without devices", device.name);
        }
        Ok(machine)
    }

    /// The turn to plan for.
    pub fn turn(&self) -> Turn {
        Turn { prompt: self.prompt, generate: self.generate, depth: self.depth }
    }

    /// A longest context is what that objective asks for.
    fn context(&self) -> ContextChoice {
        let longest = if self.objective == Objective::Context { ContextChoice::Max } else { ContextChoice::Turn };
        self.ctx_size.unwrap_or(longest)
    }

    /// The rule set that leaves everything on the devices means that nothing else is moved either.
    fn strategy(&self) -> Strategy {
        let by_rules = if self.rules.as_deref() == Some("all-on-device") { Strategy::Rules } else { Strategy::Auto };
        self.strategy.unwrap_or(by_rules)
    }

    /// Refuses a strategy beside rules: both say what is done with the experts, and the rules would be carried out for a launch
    /// that was chosen for the strategy.
    pub fn leave_experts_to(&self, rules: &str) -> Result<(), Refusal> {
        let other = self.strategy.filter(|strategy| !matches!(strategy, Strategy::Auto | Strategy::Rules));
        let Some(name) = other.and_then(|strategy| Some(strategy.to_possible_value()?.get_name().to_string())) else {
            return Ok(());
        };
        Err(Refusal::new(
            format!("--strategy {name} and the rules `{rules}` both say where the routed experts go"),
            format!("leave one of them out; `--strategy rules` does what `{rules}` says and nothing else"),
        ))
    }

    /// Refuses what a plan's file (`*.json`) has decided already: the machine, the context, the turn, how it was planned; where
    /// nothing else is made of them, llama.cpp's own flags, too. `--margin` stays: what is measured is held against it.
    pub fn beside_plan(&self, path: &Path, and_launch: bool) -> Result<(), Refusal> {
        if path.extension().is_none_or(|extension| extension != "json") {
            return Ok(());
        }
        let mut given = self.of_planning();
        if and_launch {
            let words = self.launch.words();
            given.extend(words.iter().skip(1).filter(|word| spelling(word).is_some()).cloned());
        }
        if given.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            format!("{}: the plan `{}` decides that already", given.join(", "), path.display()),
            "leave it out, or name the model instead of the plan: it is then planned with it",
        ))
    }

    /// Refuses what a whole command says itself; `-t` is for one that does not.
    pub fn beside_command(&self) -> Result<(), Refusal> {
        let mut given = self.of_planning();
        given.extend(self.launch.words().into_iter().skip(1).filter(|word| word != "-t" && spelling(word).is_some()));
        if given.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            format!("{}: nothing is planned for a command after `--`", given.join(", ")),
            "leave it out, or write llama.cpp's own flag into the command; --rpc-devices N gives it software devices",
        ))
    }

    /// The flags that were given of the machine, the context, the turn and the planner.
    fn of_planning(&self) -> Vec<String> {
        let (machine, turn) = (&self.machine, Turn::default());
        let flags = [
            ("--vram", !machine.vram.is_empty()),
            ("--device", !machine.device.is_empty()),
            ("--ram", machine.ram.is_some()),
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
        flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.to_string()).collect()
    }

    /// What was left to the planner.
    fn levers(&self, run: &RunConfig) -> Levers {
        let launch = &self.launch;
        let types = [&launch.cache_type_k, &launch.cache_type_v];
        let asked = types.iter().any(|ty| ty.as_deref() == Some("auto")) || self.allow_quantized_cache;
        Levers {
            ubatch: is_free(launch.ubatch_size.as_ref()),
            batch: is_free(launch.batch_size.as_ref()),
            load_mode: is_free(launch.load_mode.as_ref()),
            cache_types: asked && types.iter().all(|ty| is_free(ty.as_ref())),
            threads: is_free(launch.threads.as_ref()),
            op_offload: run.op_offload,
            cache_ram: is_free(launch.cache_ram.as_ref()),
            expert_cache: launch.moe_cache_mib.as_deref() == Some("auto"),
        }
    }
}

impl LaunchOptions {
    /// `-t` where it is a number, more than none.
    pub fn n_threads(&self) -> Option<u32> {
        self.threads.as_deref()?.parse().ok().filter(|threads| *threads > 0)
    }

    /// The flags as the command line of llama-server that they would be; `auto` is not said.
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
            ("-t", &self.threads),
            ("-tb", &self.threads_batch),
            ("-ngl", &self.gpu_layers),
            ("-ts", &self.tensor_split),
            ("-ncmoe", &self.n_cpu_moe),
            ("-cram", &self.cache_ram),
            ("--moe-cache-mib", &self.moe_cache_mib),
        ] {
            let said = value.iter().filter(|value| *value != "auto");
            words.extend(said.flat_map(|value| [flag.to_string(), value.clone()]));
        }
        words.extend(self.override_tensor.iter().flat_map(|value| ["-ot".to_string(), value.clone()]));
        for (flag, on) in
            [("-cmoe", self.cpu_moe), ("-nkvo", self.no_kv_offload), ("--no-op-offload", self.no_op_offload)]
        {
            words.extend(on.then(|| flag.to_string()));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_kept_and_what_is_not_is_chosen() {
        let launch = LaunchOptions {
            ubatch_size: Some("1024".into()),
            load_mode: Some("auto".into()),
            cpu_moe: true,
            ..LaunchOptions::default()
        };
        assert_eq!(launch.words(), ["llama-server", "-ub", "1024", "-cmoe"]);
        assert!(is_free(launch.load_mode.as_ref()) && is_free(launch.batch_size.as_ref()));
        assert!(!is_free(launch.ubatch_size.as_ref()));
    }

    #[test]
    fn contexts_are_numbers_with_or_without_a_unit() {
        assert_eq!(context_choice("8k"), Ok(ContextChoice::Fixed(8192)));
        assert_eq!(context_choice("1M"), Ok(ContextChoice::Fixed(1 << 20)));
        assert_eq!(context_choice("8192"), Ok(ContextChoice::Fixed(8192)));
        assert_eq!(context_choice("max"), Ok(ContextChoice::Max));
        for bad in ["0", "0k", "k", "8kk", "8 k", "-1", "5000M", "", "8é"] {
            assert!(context_choice(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_plan_decides_is_not_said_again_beside_it() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: PlanOptions,
        }
        for (line, given, and_launch) in [
            ("--backend rpc --vram 9M -c 1024", "--vram, --backend, -c", ""),
            ("--objective context --depth 7 --build 11549", "--objective, --build, --depth", ""),
            ("--ubatch-size 64 --cpu-moe --cache-ram -1", "", "-ub, -cram, -cmoe"),
            ("--margin 0 --threads auto", "", ""),
        ] {
            let words = std::iter::once("x").chain(line.split(' '));
            let options = <Line as clap::Parser>::parse_from(words).options;
            for (refused, expected) in [
                (options.beside_plan(Path::new("plan.json"), false), given),
                (options.beside_plan(Path::new("plan.json"), true), [given, and_launch].concat().as_str()),
            ] {
                let said = refused.err().map_or(String::new(), |refusal| refusal.message);
                let expected =
                    if expected.is_empty() { String::new() } else { format!("{expected}: the plan `plan.json`") };
                assert!(said.starts_with(&expected) && said.is_empty() == expected.is_empty(), "{line}: {said}");
            }
            assert_eq!(options.beside_plan(Path::new("model.gguf"), true), Ok(()));
            assert_eq!(options.beside_command().is_err(), !(given.is_empty() && and_launch.is_empty()), "{line}");
        }
    }

    #[test]
    fn builds_are_numbers() {
        assert_eq!((build_number("b11549"), build_number("11434")), (Ok(11549), Ok(11434)));
        assert!(build_number("latest").is_err());
    }
}
