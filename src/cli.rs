//! What can be typed: one clap definition; each command's own flags are beside its code in `commands/`.

use clap::{Parser, Subcommand, ValueEnum};

/// Plan, predict and prove where llama.cpp puts a mixture-of-experts model.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// How the answer is written.
    #[arg(long, value_enum, global = true, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
    /// Same as --format json.
    #[arg(long, global = true, conflicts_with = "format")]
    pub json: bool,
    /// Write the answer to FILE instead of standard output.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub output: Option<std::path::PathBuf>,
    /// Say nothing but the answer and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to use colour.
    #[arg(long, value_enum, global = true, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
}

impl Global {
    /// The format asked for, `--json` included.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one document with a schema name.
    Json,
    /// Tables for an issue or a page.
    Markdown,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what a GGUF file is: experts, parameters, bytes by role and type, context.
    Inspect(crate::commands::inspect::Args),
    /// Say what a llama.cpp command line would do: memory by device, what goes where, whether it fits.
    Check(crate::commands::check::Args),
}
