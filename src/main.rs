//! The `moeplan` program: parse, run, print the error chain and hints, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand};
use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _};

use moeplan::cli::{help, long_flags, refusal};
use moeplan::commands::{self, Cli, Outcome, Output, interrupt};

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.global.color {
        ColorChoice::Auto => {}
        ColorChoice::Always => anstream::ColorChoice::Always.write_global(),
        ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
    }
    let output = Output::new(cli.global);
    match commands::run(cli.command, &output) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Ok(Outcome::Untold) => ExitCode::from(2),
        Err(error) => {
            if interrupt::is_cause(&error) {
                return ExitCode::from(interrupt::EXIT_CODE);
            }
            commands::print_error(&error);
            ExitCode::from(2)
        }
    }
}

/// Reads the command line; where it is none, says so.
fn parse() -> Result<Cli, ExitCode> {
    let typed: Vec<OsString> = std::env::args_os().collect();
    let mut command = Cli::command();
    let mut parsed = command.try_get_matches_from_mut(long_flags(typed.iter().cloned()));
    // To shorten `-h` takes longer than to read most headers, so that is done where help is what was asked for.
    if parsed
        .as_ref()
        .is_err_and(|error| matches!(error.kind(), DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand))
    {
        command = help::fitting(Cli::command());
        parsed = command.try_get_matches_from_mut(long_flags(typed.iter().cloned()));
    }
    let error = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    match refusal::refusal(&command, &error, &typed) {
        Some(refusal) => commands::print_error(&refusal.into()),
        None => commands::print_usage(&error),
    }
    Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
}
