//! The MODEL argument of every command: a path, an address, `hf:owner/repo`, or a name found in this computer's caches. [I/O]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;

use super::{Output, progress};
use crate::bytes::Bytes;
use crate::gguf::source::local::{self, LocalModel, Surroundings};
use crate::gguf::source::{Client, Error, Event, Failure, Location, Which};
use crate::gguf::{self, Gguf};
use crate::model::Model;
use crate::suggest::Refusal;

pub fn open(model: &Path, output: &Output) -> anyhow::Result<Gguf> {
    let Some(text) = model.to_str() else { return Ok(gguf::open(model)?) };
    match Location::parse(text)? {
        Location::Here(_) => Ok(gguf::open(&path(model)?)?),
        Location::Address(url) => with_client(output, |client| client.open(&url)),
        Location::Hub { repo, which } => {
            let opened = with_client(output, |client| {
                let quant = client.choose(&repo, &which)?;
                client.open_quant(&repo, &quant)
            });
            let Err(error) = opened else { return opened };
            let is_offline = matches!(error.downcast_ref(), Some(Error::Address { failure: Failure::Offline, .. }));
            if !(output.global.offline && is_offline) {
                return Err(error);
            }
            cached(&repo, &which).map_or(Err(error), |found| Ok(gguf::open(&found.path)?))
        }
    }
}

/// The model of a repository that a cache of this computer has.
fn cached(repo: &str, which: &Which) -> Option<LocalModel> {
    let name = match which {
        Which::Default => format!("{repo}/"),
        Which::Quant(quant) => format!("{repo}:{quant}"),
        Which::File(file) => format!("{repo}/{}", gguf::source::hub::stem(file).0),
    };
    local::find(&Surroundings::here().models(), &name).ok()
}

/// The header of the projector that `-hf` fetches beside a MODEL of the hub; `None` where there is none.
pub fn projector_beside(model: &Path, output: &Output) -> anyhow::Result<Option<Gguf>> {
    let location = model.to_str().map(Location::parse).transpose()?;
    let Some(Location::Hub { repo, which }) = location else { return Ok(None) };
    with_client(output, |client| {
        let quant = client.choose(&repo, &which)?;
        let projector = client.projector_beside(&repo, &quant)?;
        projector.map(|projector| client.open_quant(&repo, &projector)).transpose()
    })
}

/// The path of a MODEL that has to be here with its weights: one of the hub in a cache, where what fetched it has put it.
pub fn local_path(model: &Path) -> anyhow::Result<PathBuf> {
    let shown = model.display();
    let missing =
        |hint| Refusal::new(format!("`{shown}`: this needs the weights, which are not on this computer"), hint);
    match model.to_str().map(Location::parse).transpose()? {
        Some(Location::Hub { repo, which }) => match cached(&repo, &which).filter(|found| found.is_whole) {
            Some(found) => Ok(found.path),
            None => {
                let hint = format!(
                    "`moeplan run {shown}` lets llama-server download the model; after that, the same name works here"
                );
                Err(missing(hint).into())
            }
        },
        Some(Location::Address(_)) => Err(missing("download the file, and pass its path".to_string()).into()),
        _ => path(model),
    }
}

/// Whether a MODEL is at an address or on the hub.
pub fn is_remote(model: &Path) -> bool {
    let location = model.to_str().map(Location::parse);
    matches!(location, Some(Ok(Location::Address(_) | Location::Hub { .. })))
}

/// The model of a file that is here, its keys as they are.
pub fn read(path: &Path) -> anyhow::Result<Model> {
    Ok(Model::from_gguf(gguf::open(path)?)?)
}

/// What llama.cpp is told of the MODEL: the first file where it is here, whichever of a split was named; else as typed.
pub fn shown(model: &Path, gguf: &Gguf) -> String {
    let is_here = model.to_str().is_none_or(|text| matches!(Location::parse(text), Ok(Location::Here(_))));
    let first = gguf.files.first().filter(|_| is_here).map_or(model, |file| &file.path);
    first.display().to_string()
}

/// A path as it is; else the path of the model of that name.
fn path(model: &Path) -> anyhow::Result<PathBuf> {
    if model.exists() {
        return Ok(model.to_path_buf());
    }
    let Some(name) = model.to_str() else { return Ok(model.to_path_buf()) };
    let is_path = model.is_absolute() || name.starts_with('.') || name.strip_suffix(".gguf").is_some();
    match local::find(&Surroundings::here().models(), name.strip_suffix(".gguf").unwrap_or(name)) {
        Ok(found) => Ok(found.path),
        // The reader says best what is wrong with a path.
        Err(Error::UnknownName(_)) if is_path => Ok(model.to_path_buf()),
        Err(error) => Err(error.into()),
    }
}

/// Runs something with a client whose progress is shown on a terminal.
pub fn with_client<T>(output: &Output, work: impl FnOnce(&Client) -> Result<T, Error>) -> anyhow::Result<T> {
    let mut client = Client::from_environment()?;
    client.offline = output.global.offline;
    let bar =
        if output.global.quiet { ProgressBar::hidden() } else { progress("{spinner} reading headers: {msg}", None) };
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    let talk = Output::new(output.global.clone());
    let shown = bar.clone();
    client.watch = Arc::new(move |event| {
        let note = match event {
            Event::Moved(bytes) => return shown.set_message(Bytes(*bytes).to_string()),
            Event::NoRanges(url) => {
                format!(
                    "note: {url}: the server does not support range requests; reading the file from its start to the end of the header"
                )
            }
            Event::Again { url, why } => format!("note: {url}: {why}; trying again"),
        };
        shown.suspend(|| talk.say(&note));
    });
    let result = work(&client);
    bar.finish_and_clear();
    if output.global.verbose > 0 && client.moved() > 0 {
        output.say(&format!("note: {} bytes came over the network", client.moved()));
    }
    Ok(result?)
}
