//! `list`: the models in this computer's caches. [I/O]

use serde::Serialize;

use super::machine::MachineArgs;
use super::{Build, Outcome, Output, working};
use crate::ask::quants::{self, Fits};
use crate::gguf::source::local::{LocalModel, Surroundings};
use crate::gguf::{self, Value};
use crate::machine::Machine;
use crate::number::counted;
use crate::report::page::{self, Block, Document, Page};
use crate::report::table::{Table, row};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan list
  moeplan list qwen --json
  moeplan list --vram 24G                which of them fit a card, the fastest first
Looks in the caches of llama.cpp and Hugging Face (LLAMA_CACHE, HF_HUB_CACHE,
HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME), LM Studio, and ollama (OLLAMA_MODELS).
A name, or a part that only one name contains, works as MODEL everywhere.")]
pub struct Args {
    /// List only models whose name contains this (case-insensitive).
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Say which of them fit this machine, the fastest first.
    #[command(flatten)]
    machine: MachineArgs,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct List {
    schema: &'static str,
    /// The machine that they are ranked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    /// By source and name; for a machine those that fit first, by the time of their turn, then by what is missing.
    models: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Row {
    #[serde(flatten)]
    model: LocalModel,
    /// `general.architecture`; `null` where the header cannot be read.
    architecture: Option<String>,
    /// Whether it fits the machine, where one is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<Fits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let mut models = Surroundings::here().models();
    if let Some(name) = args.name.as_deref() {
        let found = models.len() as u64;
        models.retain(|model| model.name.to_lowercase().contains(&name.to_lowercase()));
        if models.is_empty() && found > 0 {
            output.say(&format!(
                "note: no name contains `{name}`; without it, `moeplan list` shows {}",
                counted(found, "model")
            ));
        }
    }
    let machine = args.machine.is_given().then(|| args.machine.machine()).transpose()?;
    let target = Build::of(None).target();
    let models = models.into_iter().map(|model| {
        let mut row = Row { model, architecture: None, fits: None, error: None };
        match gguf::open(&row.model.path) {
            Ok(opened) => {
                let name = opened.header.metadata.get("general.architecture").and_then(Value::as_str);
                row.architecture = name.map(str::to_string);
                let margin = |machine| args.machine.margin(machine);
                let judge = |machine| quants::judge(opened, &row.model.name, machine, margin(machine), target);
                match machine.as_ref().map(judge).transpose() {
                    Ok(fits) => row.fits = fits,
                    Err(error) => row.error = Some(error.to_string()),
                }
            }
            Err(error) => row.error = Some(error.at.message),
        }
        row
    });
    let mut models: Vec<Row> = working(output, "planning for each model", || models.collect());
    if machine.is_some() {
        models.sort_by(|a, b| Fits::order(a.fits.as_ref(), b.fits.as_ref()));
    }
    let document = List { schema: "moeplan/list/1", machine, models };
    output.show(&document)?;
    let any = document.models.iter().filter_map(|row| row.fits.as_ref()).any(|fits| fits.auto.fits);
    Ok(if document.machine.is_some() && !any { Outcome::No } else { Outcome::Yes })
}

impl Document for List {
    fn pages(&self) -> Vec<Page> {
        let title = "Models in the caches of llama.cpp, Hugging Face, LM Studio and ollama";
        let mut page = Page::new("Models", title, counted(self.models.len() as u64, "model"));
        let machine = self.machine.as_ref();
        let rows = self.models.iter().map(|Row { model, architecture, fits, error }| {
            // Beside what a machine makes of it the error stands there.
            let said = error.as_ref().filter(|_| machine.is_none());
            let unread = said.map_or("-".to_string(), |error| format!("({error})"));
            let architecture = architecture.as_ref().unwrap_or(&unread);
            let judged = machine.map(|_| page::quants::verdicts(fits.as_ref(), error.as_ref())).unwrap_or_default();
            let start = row![model.name, model.source, architecture, model.bytes];
            start.into_iter().chain(judged).chain([model.path.display().to_string()])
        });
        let columns = format!("name|source|architecture|>size|{}path", page::quants::columns(machine));
        page.push(Block::table("", Table::rows_of(&columns, rows)));
        page.push(machine.iter().flat_map(|machine| machine.budget_notes()).map(Block::Prose));
        page.push(page::quants::predicted(self.models.iter().filter_map(|row| row.fits.as_ref())));
        vec![page]
    }
}
