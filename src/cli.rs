//! What every command understands: formats, colour, llama.cpp's short flags. Each command's own flags are in `commands/`.

pub mod help;
pub mod refusal;

use std::ffi::OsString;

use clap::{ColorChoice, ValueEnum};

use crate::run::flags::{self, InPlan};

/// llama.cpp's short flags of several letters that are options of `plan`, and the long names that clap knows them by.
fn short_flags() -> impl Iterator<Item = (&'static str, &'static str)> {
    let options = flags::fields().map(|(flag, _)| flag).filter(|flag| matches!(flag.in_plan, InPlan::Option(..)));
    options.flat_map(|flag| {
        let (long, of_switch) = (flag.option_name(), flag.is_switch());
        let names = flag.names().filter(move |_| !of_switch).chain(flag.negated());
        names.filter(|name| name.len() > 2 && !name.starts_with("--")).map(move |name| (name, long))
    })
}

/// The words of a command line with llama.cpp's short flags made long; what follows `--` is left alone.
pub fn long_flags(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut rest_is_verbatim = false;
    let mut is_help = false;
    words
        .into_iter()
        .enumerate()
        // Help of `help` is that of moeplan.
        .filter(|(at, word)| {
            is_help |= *at == 1 && word == "help";
            !(is_help && (word == "-h" || word == "--help"))
        })
        .map(|(_, word)| {
            rest_is_verbatim |= word == "--";
            let known = short_flags().find(|(short, _)| !rest_is_verbatim && word == *short);
            known.map_or(word, |(_, long)| OsString::from(long))
        })
        .collect()
}

#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Global {
    /// Format of the answer [default: from the ending of -o FILE, else text].
    #[arg(long, value_enum, global = true, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Same as --format json.
    #[arg(long, global = true, conflicts_with = "format")]
    pub json: bool,
    /// Write the answer to FILE, which must be new unless --force is given.
    ///
    /// A name that ends in .json, .md or .html selects that format, unless --format selects another. Devices and pipes may exist.
    /// moeplan checks beforehand that it can write FILE. If writing fails later, the answer goes to standard output, and the exit code
    /// is 2 (docs/files.md).
    #[arg(short, long, global = true, value_name = "FILE")]
    pub output: Option<std::path::PathBuf>,
    /// Replace existing files (-o, --csv, --results, --out).
    #[arg(long, global = true)]
    pub force: bool,
    /// Print only the answer and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Print more detail.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Contact no server, and use only headers that are already in the cache.
    #[arg(long, global = true, env = "MOEPLAN_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,
    /// When to use colour.
    #[arg(long, value_enum, global = true, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
}

impl Global {
    /// The format asked for: by `--json`, `--format`, or the ending of `-o`.
    pub fn format(&self) -> Format {
        let ending = || self.output.as_deref()?.extension()?.to_str();
        let of_ending = || match ending()? {
            "json" => Some(Format::Json),
            "md" => Some(Format::Markdown),
            "html" | "htm" => Some(Format::Html),
            _ => None,
        };
        if self.json { Format::Json } else { self.format.or_else(of_ending).unwrap_or(Format::Text) }
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
    /// One self-contained page with charts.
    Html,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_format_of_its_ending_unless_another_is_asked_for() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            global: Global,
        }
        for (line, format) in [
            ("m", Format::Text),
            ("m -o a.json", Format::Json),
            ("m -o a.html", Format::Html),
            ("m -o a.md", Format::Markdown),
            ("m -o a.txt", Format::Text),
            ("m -o -", Format::Text),
            ("m -o a.html --format text", Format::Text),
            ("m -o a.html --json", Format::Json),
        ] {
            assert_eq!(Line::parse_from(line.split(' ')).global.format(), format, "{line}");
        }
    }

    #[test]
    fn short_flags_become_long_ones_up_to_the_double_dash() {
        let words = ["moeplan", "plan", "-ub", "2048", "--", "llama-server", "-ub", "1"].map(OsString::from);
        let long = long_flags(words);
        assert_eq!(long[2], "--ubatch-size");
        assert_eq!(long[6], "-ub");
    }
}
