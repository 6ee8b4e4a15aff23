//! `report`: documents that were written with --json, as Markdown or as one page of HTML. [I/O]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Outcome, Output};
use crate::cli::Format;
use crate::report::page::compare;
use crate::report::page::compare::Source;
use crate::report::read;
use crate::report::{html, markdown};
use crate::suggest::Refusal;

/// A larger file is not a document of moeplan.
const LARGEST: u64 = 256 << 20;

/// Endings of names that say what a report is; .md and .txt are Markdown.
const NAMED: [&str; 4] = ["html", "md", "svg", "txt"];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan report run.json -o run.html         after moeplan verify -o run.json model.gguf
  moeplan report sweep.json -o sweep.svg
  moeplan report plan-a.json plan-b.json bench.json --title 'Three ways' -o report.md")]
pub struct Args {
    /// JSON from inspect, check, plan, run, verify, tune, bench, validate or llama-bench; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Title of the page.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

/// Runs `report`. The format is that of --format; text is Markdown, and a name of -o that ends in .html is a page, in .svg the first
/// curves alone.
pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let extension = output.file().and_then(|path| Some(path.extension()?.to_string_lossy().into_owned()));
    let form = match (output.format(), extension.as_deref()) {
        (Format::Json, _) => {
            anyhow::bail!("a report is Markdown or HTML: its figures are in the documents that it is made from")
        }
        (Format::Html, _) => "html",
        (Format::Markdown, _) | (Format::Text, None) => "md",
        (Format::Text, Some(extension)) if NAMED.contains(&extension) => extension,
        (Format::Text, Some(extension)) => {
            let path = output.file().unwrap_or(Path::new("")).display();
            let known = format!("the known extensions are .{}", NAMED.join(", ."));
            return Err(Refusal::new(
                format!("-o `{path}`: a report cannot be written as .{extension}"),
                format!("{known}; --format markdown or html writes that under any name"),
            )
            .into());
        }
    };
    let mut sources: Vec<Source> = Vec::new();
    for file in &args.files {
        sources.extend(read::read(&file.display().to_string(), bytes(file)?)?);
    }
    let report = compare::report(&sources, args.title.as_deref());
    output.answer(&match form {
        "html" => html::report(&report),
        "svg" => {
            html::picture(&report).context("none of these documents has curves to draw; a sweep or a bench has")?
        }
        _ => markdown::report(&report),
    })?;
    Ok(Outcome::Yes)
}

fn bytes(file: &Path) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("cannot read `{}`", file.display());
    anyhow::ensure!(!file.is_dir(), "`{}` is a folder: name the documents in it", file.display());
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(failed)?)
    };
    let mut bytes = Vec::new();
    // A model may be larger than memory.
    let mut start = source.take(4);
    start.read_to_end(&mut bytes).with_context(failed)?;
    if bytes != b"GGUF" {
        start.into_inner().take(LARGEST).read_to_end(&mut bytes).with_context(failed)?;
    }
    anyhow::ensure!((bytes.len() as u64) <= LARGEST, "`{}` is larger than any moeplan document", file.display());
    Ok(bytes)
}
