//! `moeplan synth`: a GGUF of a known model with a faithful header. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::interrupt::PRESSED;
use super::{Outcome, Output};
use crate::bytes::Bytes;
use crate::cli::Format;
use crate::files;
use crate::gguf::ByteOrder;
use crate::report::table::Table;
use crate::suggest;
use crate::synth::output::{self, Fill, Watch};
use crate::synth::{self, Check, Totals, Wish, recipe, spec, synthesize};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan synth gpt-oss-20b -o gpt-oss-20b.gguf                          the whole header, almost no disk
  moeplan synth phi-3.5-moe --tiny --weights random -o tiny.gguf         a few MiB that llama.cpp runs
  moeplan synth --list")]
pub struct Args {
    /// The model, as `--list` names it.
    #[arg(required_unless_present = "list")]
    pub spec: Option<String>,
    /// Show the known models and their totals.
    #[arg(long, conflicts_with = "spec")]
    pub list: bool,
    /// Type mix, as llama-quantize names it (F16, Q8_0, Q4_K_M, MXFP4_MOE …); default: the published file's.
    #[arg(long, value_name = "TYPE", value_parser = parse_recipe)]
    pub recipe: Option<recipe::Recipe>,
    #[arg(long, value_enum, default_value_t = Weights::Hole, value_name = "KIND")]
    pub weights: Weights,
    /// A small sibling (4 blocks, a few experts, 1024 tokens) that llama.cpp loads and runs in a second.
    #[arg(long)]
    pub tiny: bool,
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Only the first N blocks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub blocks: Option<u32>,
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub shards: u16,
    /// Byte order; `big` goes with no weights only.
    #[arg(long, default_value = "little", value_name = "ORDER",
        value_parser = PossibleValuesParser::new(["little", "big"]).map(byte_order))]
    pub endian: ByteOrder,
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=3))]
    pub gguf_version: u32,
}

/// What the tensors hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    /// Nothing: the file has its full length and takes no disk.
    Hole,
    /// Random numbers that load and run.
    Random,
}

#[expect(clippy::needless_pass_by_value, reason = "as clap gives it")]
fn byte_order(name: String) -> ByteOrder {
    if name == "big" { ByteOrder::Big } else { ByteOrder::Little }
}

fn parse_recipe(text: &str) -> Result<recipe::Recipe, String> {
    recipe::named(text).ok_or_else(|| {
        let known: Vec<&str> = recipe::recipes().map(|row| row.name).collect();
        let meant = suggest::did_you_mean(text, known.iter().copied()).map(|meant| format!("; {meant}"));
        format!("not a recipe: one of {}{}", known.join(", "), meant.unwrap_or_default())
    })
}

/// What was written.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Document {
    schema: &'static str,
    spec: String,
    recipe: &'static str,
    weights: &'static str,
    paths: Vec<PathBuf>,
    file_bytes: Bytes,
    /// What they take on disk, where the system says.
    on_disk: Option<Bytes>,
    seconds: f64,
    #[serde(flatten)]
    totals: Totals,
    published: Vec<Check>,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    // `-o` is the model, so the answer always goes to standard output.
    let answer = output.without_file();
    let Some(name) = args.spec.as_deref().filter(|_| !args.list) else {
        return list(output);
    };
    let path = output.file().context("say where to write the model: -o FILE")?;
    anyhow::ensure!(!files::is_stream(path), "a model cannot be written to `{}`: it is not a file", path.display());
    let spec = spec::named(name)?;
    anyhow::ensure!(
        args.endian == ByteOrder::Little || args.weights == Weights::Hole,
        "--endian big goes with --weights hole: random weights are little-endian"
    );
    let wish = Wish {
        recipe: args.recipe,
        tiny: args.tiny,
        blocks: args.blocks,
        shards: args.shards,
        version: args.gguf_version,
        byte_order: args.endian,
    };
    let synthesis = synthesize(&spec, &wish)?;
    let fill = match args.weights {
        Weights::Hole => Fill::Hole,
        Weights::Random => Fill::Random(args.seed),
    };
    let started = std::time::Instant::now();
    let hidden = fill == Fill::Hole || output.global.quiet;
    let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::new(synthesis.totals.bytes.0) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?);
    let watch = Watch { wrote: &|bytes| bar.inc(bytes), stop: &PRESSED };
    let paths = output::write(&synthesis, path, fill, output.global.force, watch);
    bar.finish_and_clear();
    let paths = paths?;
    let document = Document {
        schema: "moeplan/synth/1",
        spec: spec.name.clone(),
        recipe: synthesis.recipe.name,
        weights: if fill == Fill::Hole { "hole" } else { "random" },
        file_bytes: Bytes(synthesis.files.iter().map(output::file_bytes).sum()),
        on_disk: paths.iter().map(|path| std::fs::metadata(path).ok().and_then(|file| files::on_disk(&file))).sum(),
        paths,
        seconds: started.elapsed().as_secs_f64(),
        totals: synthesis.totals.clone(),
        published: synthesis.published.clone(),
    };
    match answer.format() {
        Format::Json => answer.json(&document)?,
        _ => answer.answer(&text(&document))?,
    }
    Ok(if document.published.iter().all(|check| check.ok) { Outcome::Yes } else { Outcome::No })
}

fn text(document: &Document) -> String {
    let totals = &document.totals;
    let verdict = |what: &str| match document.published.iter().find(|check| check.what == what) {
        Some(check) if check.ok => " (published: EQUAL)".into(),
        Some(check) => format!(" (published: {} DIFFERS)", check.expected),
        None => String::new(),
    };
    let model = format!("{} {}, weights: {}", document.spec, document.recipe, document.weights);
    let mut facts = Table::facts([("model", Some(model))]);
    for (what, found) in [("parameters", totals.parameters), ("tensors", totals.tensors), ("bytes", totals.bytes.0)] {
        facts.row([what.to_string(), format!("{found}{}", verdict(what))]);
    }
    for (ty, (tensors, bytes)) in &totals.by_type {
        let verdict = verdict(&format!("tensors.{ty}"));
        facts.row([format!("  {ty}"), format!("{tensors} tensors, {bytes}{verdict}")]);
    }
    facts.row(["file".to_string(), document.file_bytes.to_string()]);
    if let Some(bytes) = document.on_disk {
        facts.row(["on disk".to_string(), bytes.to_string()]);
    }
    let first = document.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
    let more = match document.paths.len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    format!("{}{more}\n{}", crate::escape::terminal(&first), facts.text(usize::MAX))
}

/// One row of `--list`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Row {
    name: String,
    architecture: String,
    recipe: &'static str,
    experts: u64,
    used: u64,
    #[serde(flatten)]
    totals: Totals,
    published: Vec<Check>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct List {
    schema: &'static str,
    models: Vec<Row>,
    recipes: Vec<&'static str>,
}

fn list(output: &Output) -> anyhow::Result<Outcome> {
    let mut models = Vec::new();
    for name in spec::names().into_iter().chain(spec::projectors()) {
        let spec = spec::named(&name)?;
        let (recipe, tensors) = synth::tensors(&spec, &Wish::default())?;
        let totals = synth::totals(&tensors);
        let dims = spec.dims(false, None);
        models.push(Row {
            name,
            architecture: spec.architecture.clone(),
            recipe: recipe.name,
            experts: spec.number("n_expert", &dims).unwrap_or(0),
            used: spec.number("n_expert_used", &dims).unwrap_or(0),
            published: synth::checks(&spec, recipe, &totals),
            totals,
        });
    }
    let recipes = recipe::recipes().map(|row| row.name).collect();
    let list = List { schema: "moeplan/synth-list/1", models, recipes };
    if output.format() == Format::Json {
        output.json(&list)?;
        return Ok(Outcome::Yes);
    }
    let rows = list.models.iter().map(|row| {
        let checked = row.published.iter().filter(|check| !check.what.starts_with("tensors."));
        let word = |check: &Check| format!("{} {}", check.what, if check.ok { "EQUAL" } else { "DIFFERS" });
        [
            row.name.clone(),
            row.architecture.clone(),
            row.recipe.to_string(),
            if row.architecture == "clip" {
                "–".into()
            } else if row.experts == 0 {
                "dense".into()
            } else {
                format!("{}/{}", row.used, row.experts)
            },
            row.totals.tensors.to_string(),
            row.totals.parameters.to_string(),
            row.totals.bytes.to_string(),
            checked.map(word).collect::<Vec<_>>().join(", "),
        ]
    });
    let table = Table::rows_of("model|arch|recipe|>experts|>tensors|>parameters|>bytes|published", rows);
    output.answer(&format!("{}recipes: {}", table.text(usize::MAX), list.recipes.join(" ")))?;
    Ok(Outcome::Yes)
}
