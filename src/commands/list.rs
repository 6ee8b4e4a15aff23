//! `list`: the models in this computer's caches. [I/O]

use serde::Serialize;

use super::{Outcome, Output};
use crate::gguf::source::local::{LocalModel, Surroundings};
use crate::gguf::{self, Value};
use crate::number::counted;
use crate::report::page::{Block, Document, Page};
use crate::report::table::{Table, row};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan list
  moeplan list qwen --json
Looks in the caches of llama.cpp and Hugging Face (LLAMA_CACHE, HF_HUB_CACHE,
HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME), LM Studio, and ollama (OLLAMA_MODELS).
A name, or a part that only one name contains, works as MODEL everywhere.")]
pub struct Args {
    /// Only models whose name contains this (case-insensitive).
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct List {
    schema: &'static str,
    models: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Row {
    #[serde(flatten)]
    model: LocalModel,
    /// `general.architecture`; `null` where the header cannot be read.
    architecture: Option<String>,
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
    let models = models.into_iter().map(|model| {
        let (architecture, error) = match gguf::open(&model.path) {
            Ok(opened) => match opened.header.metadata.get("general.architecture") {
                Some(Value::String(name)) => (Some(name.clone()), None),
                _ => (None, None),
            },
            Err(error) => (None, Some(error.at.message)),
        };
        Row { model, architecture, error }
    });
    output.show(&List { schema: "moeplan/list/1", models: models.collect() })?;
    Ok(Outcome::Yes)
}

impl Document for List {
    fn pages(&self) -> Vec<Page> {
        let title = "Models in the caches of llama.cpp, Hugging Face, LM Studio and ollama";
        let mut page = Page::new("Models", title, counted(self.models.len() as u64, "model"));
        let rows = self.models.iter().map(|Row { model, architecture, error }| {
            let unread = error.as_ref().map_or("-".to_string(), |error| format!("({error})"));
            let architecture = architecture.as_ref().unwrap_or(&unread);
            row![model.name, model.source, architecture, model.bytes, model.path.display()]
        });
        page.push(Block::table("", Table::rows_of("name|source|architecture|>size|path", rows)));
        vec![page]
    }
}
