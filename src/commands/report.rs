//! `report`: documents that were written with --json, as Markdown or as one page of HTML. [I/O]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Outcome, Output};
use crate::cli::Format;
use crate::cli::refusal::Refusal;
use crate::report::page::compare;
use crate::report::read::{self, Source};
use crate::report::{html, markdown};

/// A file larger than this is no document of moeplan.
const LARGEST: u64 = 256 << 20;

/// Endings of names that say what a report is; .md and .txt are Markdown.
const NAMED: [&str; 4] = ["html", "md", "svg", "txt"];

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan report run.json -o run.html                (of moeplan verify --vram 24G model.gguf --json -o run.json)
  moeplan report sweep.json -o sweep.svg
  moeplan report plan-a.json plan-b.json bench.json --title 'Three ways' -o report.md")]
pub struct Args {
    /// Documents of inspect, check, plan, run, verify, tune, bench or validate, or llama-bench's JSON; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

/// Runs `report`. The format is that of --format; text is Markdown, and a name of -o that ends in .html is a page,
/// in .svg the first curves alone.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    if let (Format::Text, Some(path)) = (output.format(), output.file()) {
        known(path)?;
    }
    let mut sources: Vec<Source> = Vec::new();
    for file in &args.files {
        sources.extend(read::read(&file.display().to_string(), &text(file)?)?);
    }
    let report = compare::report(&sources, args.title.as_deref());
    let named = |extension| output.file().and_then(|path| path.extension()).is_some_and(|found| found == extension);
    match output.format() {
        Format::Text if named("svg") => {
            let picture =
                html::picture(&report).context("no document here has curves to draw: a sweep or a bench has")?;
            output.answer(&picture)?;
        }
        Format::Html => output.answer(&html::report(&report))?,
        Format::Text if named("html") => output.answer(&html::report(&report))?,
        Format::Text | Format::Markdown => output.answer(&markdown::report(&report))?,
        Format::Json => {
            anyhow::bail!("a report is Markdown or HTML: its figures are in the documents that it is made of")
        }
    }
    Ok(Outcome::Yes)
}

/// Refuses a name whose ending says a format that no report has.
fn known(path: &Path) -> Result<(), Refusal> {
    let Some(extension) = path.extension().map(|extension| extension.to_string_lossy().into_owned()) else {
        return Ok(());
    };
    if NAMED.contains(&extension.as_str()) {
        return Ok(());
    }
    Err(Refusal::new(
        format!("-o `{}`: no report is written as .{extension}", path.display()),
        format!("the endings known are .{}; --format markdown or html writes that under any name", NAMED.join(", .")),
    ))
}

fn text(file: &Path) -> anyhow::Result<String> {
    let failed = || format!("cannot read `{}`", file.display());
    anyhow::ensure!(!file.is_dir(), "`{}` is a folder: name the documents in it", file.display());
    let mut source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(failed)?)
    };
    let name = file.display().to_string();
    let mut bytes = Vec::new();
    source.by_ref().take(4).read_to_end(&mut bytes).with_context(failed)?;
    if bytes == b"GGUF" {
        return Err(read::Error::Model { name }.into());
    }
    source.take(LARGEST).read_to_end(&mut bytes).with_context(failed)?;
    anyhow::ensure!((bytes.len() as u64) <= LARGEST, "`{name}` is larger than any document of moeplan");
    Ok(String::from_utf8(bytes).map_err(|_| read::Error::Binary { name })?)
}
