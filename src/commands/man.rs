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
        output.answer(&titled(&String::from_utf8(page)?))?;
        return Ok(Outcome::Yes);
    };
    let failed = || format!("cannot write manual pages to `{}`", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    let mut names = Vec::new();
    pages(&command, "moeplan", &mut names);
    clap_mangen::generate_to(command, folder).with_context(failed)?;
    for path in names.iter().map(|name| folder.join(format!("{name}.1"))).filter(|path| path.exists()) {
        let page = std::fs::read_to_string(&path).with_context(failed)?;
        std::fs::write(&path, titled(&page)).with_context(failed)?;
    }
    output.say(&format!("manual pages in {}", folder.display()));
    Ok(Outcome::Yes)
}

/// The names of the pages of a command and of those below it.
fn pages(command: &clap::Command, name: &str, found: &mut Vec<String>) {
    found.push(name.to_string());
    for below in command.get_subcommands() {
        pages(below, &format!("{name}-{}", below.get_name()), found);
    }
}

/// What stands after a command's flags is its examples; clap calls that section otherwise.
fn titled(page: &str) -> String {
    page.replace("\n.SH EXTRA\n", "\n.SH EXAMPLES\n")
}
