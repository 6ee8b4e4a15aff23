//! The `moeplan` program: parse, run, print the error chain and hints, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use moeplan::cli::{Color, help, long_flags, refusal};
use moeplan::commands::{self, Cli, Outcome, Output, interrupt};
use moeplan::guard;

fn main() -> ExitCode {
    guard::silence();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.global.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    let output = Output { global: cli.global };
    match guard::run(|| commands::run(cli.command, &output)).unwrap_or_else(|failed| Err(failed.into())) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
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
    // Fitting it takes longer than reading most headers, so it is done where a short help may be asked for.
    let short_help = |word: &OsString| {
        let word = word.to_string_lossy();
        word == "help" || (word.starts_with('-') && !word.starts_with("--") && word.contains('h'))
    };
    let may_help = typed.len() < 2 || typed.iter().skip(1).any(short_help);
    let mut command = if may_help { help::fitting(Cli::command()) } else { Cli::command() };
    let parsed = command.try_get_matches_from_mut(long_flags(typed.iter().cloned()));
    let error = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    match refusal::refusal(&command, &error, &typed) {
        Some(refusal) => commands::print_refusal(&refusal),
        None => commands::print_usage(&error),
    }
    Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
}
