//! `man`: the manual pages, made from the same definitions as the help. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::{Cli, Outcome, Output};

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan man | man -l -
  moeplan man --out ~/.local/share/man/man1")]
pub struct Args {
    /// Write moeplan.1 and a page for each command into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs `man`.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let command = Cli::command();
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        output.answer(&String::from_utf8(page)?)?;
        return Ok(Outcome::Yes);
    };
    let failed = || format!("cannot write manual pages to `{}`", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(command, folder).with_context(failed)?;
    output.say(&format!("manual pages in {}", folder.display()));
    Ok(Outcome::Yes)
}
