//! `list`: the models in this computer's caches. [I/O]

use serde::Serialize;

use super::{Outcome, Output};
use crate::cli::Format;
use crate::gguf;
use crate::gguf::Value;
use crate::gguf::source::local::{LocalModel, Surroundings};
use crate::report::table::Table;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan list
  moeplan list qwen --json
Looks in the caches of llama.cpp and Hugging Face (LLAMA_CACHE, HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME,
XDG_CACHE_HOME), LM Studio, and ollama (OLLAMA_MODELS). A name, or a part that only one name has, is a MODEL everywhere.")]
pub struct Args {
    /// Only models whose name holds this, in any case.
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
    if let Some(name) = args.name.as_deref().map(str::to_lowercase) {
        models.retain(|model| model.name.to_lowercase().contains(&name));
    }
    let list = List { schema: "moeplan/list/1", models: models.into_iter().map(row).collect() };
    if list.models.is_empty() {
        output.say("note: no models found in the caches of llama.cpp, Hugging Face, LM Studio and ollama");
    }
    let rows = list.models.iter().map(|Row { model, architecture, error }| {
        let unread = error.as_ref().map_or("-".to_string(), |error| format!("({error})"));
        let (path, architecture) = (model.path.display().to_string(), architecture.clone().unwrap_or(unread));
        [model.name.clone(), model.source.to_string(), architecture, model.bytes.to_string(), path]
    });
    let table = Table::rows_of("name|source|architecture|>size|path", rows);
    match output.format() {
        Format::Json => output.json(&list)?,
        Format::Markdown => output.answer(&table.markdown())?,
        Format::Text | Format::Html if list.models.is_empty() => {}
        Format::Text | Format::Html => output.answer(&table.text(usize::MAX))?,
    }
    Ok(Outcome::Yes)
}

fn row(model: LocalModel) -> Row {
    match gguf::open(&model.path) {
        Ok(opened) => match opened.header.metadata.get("general.architecture") {
            Some(Value::String(name)) => Row { architecture: Some(name.clone()), error: None, model },
            _ => Row { architecture: None, error: None, model },
        },
        Err(error) => Row { architecture: None, error: Some(error.at.message), model },
    }
}
