//! `moeplan synth`: a GGUF of a known model with a faithful header. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use indicatif::ProgressBar;
use serde::Serialize;

use super::interrupt::PRESSED;
use super::{Outcome, Output, progress};
use crate::bytes::Bytes;
use crate::files;
use crate::gguf::ByteOrder;
use crate::number::{counted, thousands};
use crate::report::page::{self, Block, Page};
use crate::report::table::{Table, row};
use crate::suggest;
use crate::synth::output::{self, Fill, Watch};
use crate::synth::{self, Check, Totals, Wish, recipe, spec, synthesize};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan synth gpt-oss-20b -o gpt-oss-20b.gguf                    the header, almost no disk
  moeplan synth phi-3.5-moe --tiny --weights random -o tiny.gguf   a few MiB; llama.cpp runs it
  moeplan synth --list")]
pub struct Args {
    /// The name of a model, from `--list`.
    #[arg(required_unless_present = "list")]
    pub spec: Option<String>,
    /// List the known models and their totals.
    #[arg(long, conflicts_with = "spec")]
    pub list: bool,
    /// Tensor types, by llama-quantize's name: F16, Q8_0, Q4_K_M, MXFP4_MOE … [default: those of the published file].
    #[arg(long, value_name = "TYPE", value_parser = parse_recipe)]
    pub recipe: Option<recipe::Recipe>,
    /// What the file has as weights.
    #[arg(long, value_enum, default_value_t = Weights::Hole, value_name = "KIND")]
    pub weights: Weights,
    /// With random weights: how often the routers choose each expert.
    #[arg(long, value_enum, default_value_t = Routing::Even, value_name = "KIND")]
    pub routing: Routing,
    /// A small sibling (4 blocks, a few experts, 1024 tokens) that llama.cpp loads and runs in a second.
    #[arg(long)]
    pub tiny: bool,
    /// Seed of the random weights; the same seed gives the same file.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Write only the first N blocks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub blocks: Option<u32>,
    /// Split the model into N files.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub shards: u16,
    /// Byte order; `big` works only without weights.
    #[arg(long, default_value = "little", value_name = "ORDER",
        value_parser = PossibleValuesParser::new(["little", "big"]).map(byte_order))]
    pub endian: ByteOrder,
    /// Version of the GGUF format.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=3))]
    pub gguf_version: u32,
}

/// What the tensors hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    /// None: the file has its full length but takes almost no disk space.
    Hole,
    /// Random numbers, with which llama.cpp loads and runs the model.
    Random,
}

/// How random routers choose experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Routing {
    /// All experts about equally often.
    Even,
    /// A few experts much more often than the others, as in real models.
    Skewed,
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
    anyhow::ensure!(
        args.routing == Routing::Even || args.weights == Weights::Random,
        "--routing skewed goes with --weights random: a file without weights has no routers"
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
        Weights::Random if args.routing == Routing::Skewed => Fill::Skewed(args.seed),
        Weights::Random => Fill::Random(args.seed),
    };
    let started = std::time::Instant::now();
    let is_shown = fill != Fill::Hole && !output.global.quiet;
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = if is_shown { progress(template, Some(synthesis.totals.bytes.0)) } else { ProgressBar::hidden() };
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
    answer.show(&document)?;
    Ok(if document.published.iter().all(|check| check.ok) { Outcome::Yes } else { Outcome::No })
}

impl page::Document for Document {
    fn pages(&self) -> Vec<Page> {
        let totals = &self.totals;
        let verdict = |what: &str| match self.published.iter().find(|check| check.what == what) {
            Some(check) if check.ok => " (published: EQUAL)".into(),
            Some(check) => format!(" (published: {} DIFFERS)", check.expected),
            None => String::new(),
        };
        let first = self.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
        let mut page = Page::new("Model", first, format!("{} {}, weights: {}", self.spec, self.recipe, self.weights));
        let figures = [("parameters", totals.parameters), ("tensors", totals.tensors), ("bytes", totals.bytes.0)];
        let figures = figures.map(|(what, found)| (what.to_string(), format!("{}{}", thousands(found), verdict(what))));
        let types = totals.by_type.iter().map(|(ty, (tensors, bytes))| {
            let what = format!("{}, {bytes}{}", counted(*tensors, "tensor"), verdict(&format!("tensors.{ty}")));
            (format!("  {ty}"), what)
        });
        let files = format!("{} in {}", self.file_bytes, counted(self.paths.len() as u64, "file"));
        let on_disk = self.on_disk.map(|bytes| ("on disk".to_string(), bytes.to_string()));
        let facts = figures.into_iter().chain(types).chain([("size".to_string(), files)]).chain(on_disk);
        page.push(Block::table("", Table::facts(facts.map(|(what, fact)| (what, Some(fact))))));
        vec![page]
    }
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
    output.show(&List { schema: "moeplan/synth-list/1", models, recipes })?;
    Ok(Outcome::Yes)
}

impl page::Document for List {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Models", "Models that `synth` can write", "");
        let rows = self.models.iter().map(|of| {
            let checked = of.published.iter().filter(|check| !check.what.starts_with("tensors."));
            let word = |check: &Check| format!("{} {}", check.what, if check.ok { "EQUAL" } else { "DIFFERS" });
            let experts = match of.experts {
                0 if of.architecture == "clip" => "–".into(),
                0 => "dense".into(),
                experts => format!("{}/{experts}", of.used),
            };
            let Totals { tensors, parameters, bytes, .. } = of.totals;
            let published = checked.map(word).collect::<Vec<_>>().join(", ");
            row![of.name, of.architecture, of.recipe, experts, tensors, thousands(parameters), bytes, published]
        });
        let columns = "model|arch|recipe|>experts|>tensors|>parameters|>bytes|published";
        page.push(Block::table("", Table::rows_of(columns, rows)));
        page.push(Block::Prose(format!("Recipes: {}", self.recipes.join(" "))));
        vec![page]
    }
}
