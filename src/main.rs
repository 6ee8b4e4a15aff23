//! The `moeplan` program: parse, run, print the error chain and hints, exit code.

use std::process::ExitCode;

use clap::Parser as _;

use moeplan::cli::{Color, long_flags};
use moeplan::commands::{self, Cli, Outcome, Output, interrupt};
use moeplan::guard;

fn main() -> ExitCode {
    guard::silence();
    let cli = Cli::parse_from(long_flags(std::env::args_os()));
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
