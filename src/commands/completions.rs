//! `completions`: what a shell needs to complete moeplan's commands, flags and known names. [I/O]

use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Outcome, Output};
use crate::expectation;
use crate::plan::rule_file::BUILT_IN;
use crate::suite::protocol;
use crate::synth::spec;

/// What makes the program's `--version` a flag of the script.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan completions bash -o ~/.local/share/bash-completion/completions/moeplan
  moeplan completions zsh -o ~/.zfunc/_moeplan                   with ~/.zfunc in fpath
  moeplan completions fish -o ~/.config/fish/completions/moeplan.fish
  moeplan completions powershell                                 add it to $PROFILE")]
pub struct Args {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs `completions`.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let mut command = visible(&named(Cli::command()));
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "moeplan", &mut script);
    output.answer(&String::from_utf8(script)?)?;
    Ok(Outcome::Yes)
}

/// The same without the commands that nobody types.
fn visible(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("moeplan").version(VERSION).args(command.get_arguments().cloned()).subcommands(shown)
}

/// The commands, with the names that come along as the values of what takes them.
fn named(command: Command) -> Command {
    let rules = || BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let values = |command: Command, path: [&'static str; 2], argument: &'static str, names: Vec<&'static str>| {
        let set = move |command: Command| {
            command.mut_arg(argument, |argument| argument.value_parser(PossibleValuesParser::new(names)))
        };
        match path {
            [name, ""] => command.mut_subcommand(name, set),
            [name, below] => command.mut_subcommand(name, |command| command.mut_subcommand(below, set)),
        }
    };
    let command = values(command, ["plan", ""], "rules", rules());
    let command = values(command, ["rules", "show"], "name", rules());
    // The parser wants names that live as long as the program, which prints and ends.
    let models = spec::names().into_iter().map(|name| &*name.leak()).collect();
    let command = values(command, ["synth", ""], "spec", models);
    let command = values(command, ["validate", ""], "suite", protocol::built_in_names().collect());
    values(command, ["inspect", ""], "expect", expectation::built_in_names().collect())
}
