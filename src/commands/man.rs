//! `man`: the manual pages, made from the same definitions as the help. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_mangen::Man;

use super::{Cli, Outcome, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan man | man -l -
  moeplan man --out ~/.local/share/man/man1")]
pub struct Args {
    /// Write moeplan.1 and a page for each command into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let command = Cli::command();
    let Some(folder) = &args.out else {
        output.answer(&page(command)?)?;
        return Ok(Outcome::Yes);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    below(command, &mut pages)?;
    let pages: Vec<_> = pages.into_iter().map(|(name, page)| (folder.join(name), page)).collect();
    pages.iter().try_for_each(|(path, _)| output.check_file(path))?;
    pages.iter().try_for_each(|(path, page)| output.write(path, page))?;
    output.say(&format!("manual pages in {}", folder.display()));
    Ok(Outcome::Yes)
}

/// The pages of a command and of those below it, with their names.
fn below(command: clap::Command, found: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        below(command.clone(), found)?;
    }
    found.push((Man::new(command.clone()).get_filename(), page(command)?));
    Ok(())
}

fn page(command: clap::Command) -> anyhow::Result<String> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    // What stands after a command's flags is its examples; clap calls that section otherwise.
    Ok(String::from_utf8(page)?.replace("\n.SH EXTRA\n", "\n.SH EXAMPLES\n"))
}
