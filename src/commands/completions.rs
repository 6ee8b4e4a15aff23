//! `completions`: what a shell needs to complete moeplan's commands, flags and known names. [I/O]

use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Outcome, Output};
use crate::expectation;
use crate::plan::rule_file;
use crate::suite::protocol;
use crate::synth::spec;

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

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let command = named(Cli::command());
    // Without the commands that nobody types.
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut command = Command::new("moeplan")
        // Makes `--version` a flag of the script.
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().cloned())
        .subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "moeplan", &mut script);
    output.answer(&String::from_utf8(script)?)?;
    Ok(Outcome::Yes)
}

fn named(command: Command) -> Command {
    // The parser wants names that live as long as the program, which prints and ends.
    let models = spec::names().into_iter().chain(spec::projectors());
    let models: Vec<&'static str> = models.map(|name| &*name.leak()).collect();
    let built_in = |all: &[(&'static str, &str)]| all.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let with = |command: Command, argument: &'static str, names: Vec<&'static str>| {
        command.mut_arg(argument, |argument| argument.value_parser(PossibleValuesParser::new(names)))
    };
    let rules = || built_in(&rule_file::BUILT_IN);
    command
        .mut_subcommand("plan", |command| with(command, "rules", rules()))
        .mut_subcommand("rules", |command| command.mut_subcommand("show", |show| with(show, "name", rules())))
        .mut_subcommand("synth", |command| with(command, "spec", models))
        .mut_subcommand("validate", |command| with(command, "suite", built_in(protocol::BUILT_IN)))
        .mut_subcommand("inspect", |command| with(command, "expect", built_in(expectation::BUILT_IN)))
}
