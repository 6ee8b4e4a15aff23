//! Models in the caches of this computer: llama.cpp, Hugging Face, LM Studio, ollama. [I/O]
//!
//! The directories are those of llama.cpp b11434 (`common/hf-cache.cpp`, `get_cache_directory`) and of the programs' own
//! documentation. Nothing in them is trusted: walks are bounded, directories are not followed through links, and what a
//! manifest or a link names must lie where its cache keeps such files.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::{Error, listed};
use super::hub::{is_repository, models};
use crate::bytes::Bytes;
use crate::suggest::Refusal;

/// Entries looked at in all caches together.
const MAX_ENTRIES: usize = 200_000;
const MAX_DEPTH: usize = 8;
/// Longest ollama manifest, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;
/// What ollama calls the layer that holds the GGUF file.
const OLLAMA_MODEL: &str = "application/vnd.ollama.image.model";

/// Whose cache it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// The hub's cache, llama.cpp's too.
    HuggingFace,
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    LmStudio,
    Ollama,
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// Where each program keeps its models: below what a variable names, or the home (`~`).
const DIRECTORIES: [(Program, &str, &str); 16] = {
    use Program::{HuggingFace, LlamaCpp, LmStudio, Ollama};
    [
        (HuggingFace, "LLAMA_CACHE", ""),
        (HuggingFace, "HF_HUB_CACHE", ""),
        (HuggingFace, "HUGGINGFACE_HUB_CACHE", ""),
        (HuggingFace, "HF_HOME", "hub"),
        (HuggingFace, "XDG_CACHE_HOME", "huggingface/hub"),
        (HuggingFace, "~", ".cache/huggingface/hub"),
        (LlamaCpp, "LLAMA_CACHE", ""),
        (LlamaCpp, "XDG_CACHE_HOME", "llama.cpp"),
        (LlamaCpp, "~", ".cache/llama.cpp"),
        (LlamaCpp, "~", "Library/Caches/llama.cpp"),
        (LlamaCpp, "LOCALAPPDATA", "llama.cpp"),
        (LmStudio, "~", ".lmstudio/models"),
        (LmStudio, "~", ".cache/lm-studio/models"),
        (Ollama, "OLLAMA_MODELS", ""),
        (Ollama, "~", ".ollama/models"),
        (Ollama, "", "/usr/share/ollama/.ollama/models"),
    ]
};

/// A model found here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LocalModel {
    /// `owner/repo/file` or `name:tag`; untrusted text.
    pub name: String,
    pub source: Program,
    pub path: PathBuf,
    /// How many files it has here.
    pub files: u64,
    /// Whether all of them are here.
    pub is_whole: bool,
    pub bytes: Bytes,
}

/// The environment as far as caches depend on it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub variables: BTreeMap<String, PathBuf>,
    pub home: Option<PathBuf>,
}

impl Surroundings {
    pub fn here() -> Self {
        let value = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let variables = DIRECTORIES.iter().filter_map(|(_, name, _)| Some(((*name).to_string(), value(name)?)));
        Self { variables: variables.collect(), home: etcetera::home_dir().ok() }
    }

    /// Every directory with what keeps its models there; each once.
    fn directories(&self) -> Vec<(Program, PathBuf)> {
        let path = |(program, base, rest): (Program, &str, &str)| {
            let base = match base {
                "" => None,
                "~" => Some(self.home.as_ref()?),
                name => Some(self.variables.get(name)?),
            };
            let path = base.map_or_else(|| rest.into(), |base| base.join(rest));
            Some((program, path.canonicalize().ok()?))
        };
        let mut seen = HashSet::new();
        let existing = DIRECTORIES.into_iter().filter_map(path);
        existing.filter(|directory| directory.1.is_dir() && seen.insert(directory.clone())).collect()
    }

    /// The models of all caches, by name.
    pub fn models(&self) -> Vec<LocalModel> {
        let mut budget = MAX_ENTRIES;
        let mut found = Vec::new();
        for (program, root) in self.directories() {
            match program {
                Program::HuggingFace => hub_cache(&root, &mut budget, &mut found),
                Program::Ollama => ollama(&root, &mut budget, &mut found),
                Program::LlamaCpp | Program::LmStudio => {
                    let depth = if program == Program::LlamaCpp { 1 } else { MAX_DEPTH };
                    gather(&root, program, "", walk(&root, depth, &mut budget), &mut found);
                }
            }
        }
        let mut seen = HashSet::new();
        found.retain(|model| seen.insert((model.path.clone(), model.name.clone())));
        found.sort_by(|a, b| (&a.name, a.source, &a.path).cmp(&(&b.name, b.source, &b.path)));
        found
    }
}

/// The files below a directory; links to files count, links to directories do not.
fn walk(root: &Path, depth: usize, budget: &mut usize) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![(root.to_path_buf(), depth)];
    while let Some((directory, depth)) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Some(left) = budget.checked_sub(1) else { return files };
            *budget = left;
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() {
                if depth > 1 {
                    open.push((path, depth.saturating_sub(1)));
                }
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    files
}

/// The models among files, named by their path below `root`.
fn gather(root: &Path, source: Program, prefix: &str, files: Vec<PathBuf>, found: &mut Vec<LocalModel>) {
    let below = |path: PathBuf| Some((path.strip_prefix(root).ok()?.to_str()?.replace('\\', "/"), path));
    for model in models(files.into_iter().filter_map(below)) {
        let length = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        let bytes = Bytes(model.files.iter().map(|(_, path)| length(path)).fold(0, u64::saturating_add));
        let (name, files) = (format!("{prefix}{}", model.stem), model.files.len() as u64);
        let is_whole = files == model.count && model.missing().is_none();
        let Some((_, path)) = model.files.into_iter().next() else { continue };
        found.push(LocalModel { name, source, path, files, is_whole, bytes });
    }
}

/// `models--owner--repo/snapshots/COMMIT/…`, the commit that `refs` names, else the newest.
fn hub_cache(root: &Path, budget: &mut usize, found: &mut Vec<LocalModel>) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let folder = entry.file_name();
        let repo = folder.to_str().and_then(|name| name.strip_prefix("models--")).map(|name| name.replace("--", "/"));
        let Some(repo) = repo.filter(|repo| is_repository(repo)) else { continue };
        let home = entry.path();
        let Some(snapshot) = snapshot(&home) else { continue };
        let mut files = walk(&snapshot, MAX_DEPTH, budget);
        files.retain(|file| file.canonicalize().is_ok_and(|real| real.starts_with(&home)));
        gather(&snapshot, Program::HuggingFace, &format!("{repo}/"), files, found);
    }
}

fn snapshot(repo: &Path) -> Option<PathBuf> {
    let snapshots = repo.join("snapshots");
    let mut text = String::new();
    let main = fs::File::open(repo.join("refs/main")).ok();
    let read = main.and_then(|file| file.take(64).read_to_string(&mut text).ok());
    let commit = text.trim();
    let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    if read.is_some() && is_commit && snapshots.join(commit).is_dir() {
        return Some(snapshots.join(commit));
    }
    let newest = |entry: &fs::DirEntry| entry.metadata().and_then(|meta| meta.modified()).ok();
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    fs::read_dir(snapshots).ok()?.flatten().filter(is_dir).max_by_key(newest).map(|entry| entry.path())
}

/// `manifests/HOST/NAMESPACE/MODEL/TAG`, each naming a file of `blobs`.
fn ollama(root: &Path, budget: &mut usize, found: &mut Vec<LocalModel>) {
    let manifests = root.join("manifests");
    for path in walk(&manifests, MAX_DEPTH, budget) {
        let is_link = path.symlink_metadata().map_or(true, |meta| meta.is_symlink());
        let Some(below) = path.strip_prefix(&manifests).ok().and_then(Path::to_str) else { continue };
        let Some(name) = ollama_name(below) else { continue };
        let Some(blob) = (!is_link).then(|| ollama_blob(root, &path)).flatten() else { continue };
        let bytes = Bytes(fs::metadata(&blob).map_or(0, |meta| meta.len()));
        found.push(LocalModel { name, source: Program::Ollama, path: blob, files: 1, is_whole: true, bytes });
    }
}

/// `model:tag`, with namespace and host where they are not the usual ones.
pub fn ollama_name(below: &str) -> Option<String> {
    let parts: Vec<&str> = below.split(['/', '\\']).collect();
    let [host, namespace @ .., model, tag] = parts.as_slice() else { return None };
    let name = format!("{model}:{tag}");
    Some(match (*host, namespace) {
        ("registry.ollama.ai", ["library"]) => name,
        ("registry.ollama.ai", namespace) => format!("{}/{name}", namespace.join("/")),
        (host, namespace) => format!("{host}/{}/{name}", namespace.join("/")),
    })
}

/// The file of a manifest's model layer; a link out of the cache names nothing.
fn ollama_blob(root: &Path, manifest: &Path) -> Option<PathBuf> {
    let mut text = Vec::new();
    fs::File::open(manifest).ok()?.take(MAX_MANIFEST).read_to_end(&mut text).ok()?;
    let blob = root.join("blobs").join(blob_name(&text)?);
    (blob.is_file() && blob.canonicalize().ok()?.starts_with(root)).then_some(blob)
}

/// The name below `blobs` of the file that an ollama manifest calls its model: `sha256-` and 64 hexadecimal digits, or nothing.
pub fn blob_name(manifest: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    let is_model = |layer: &&serde_json::Value| layer.get("mediaType").is_some_and(|kind| kind == OLLAMA_MODEL);
    let layer = manifest.get("layers")?.as_array()?.iter().find(is_model)?;
    let digest = layer.get("digest")?.as_str()?.strip_prefix("sha256:")?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_digest.then(|| format!("sha256-{digest}"))
}

/// The one model that a name means: exactly (in any case), else the only one whose name holds it.
pub fn find(models: &[LocalModel], name: &str) -> Result<LocalModel, Error> {
    let wanted = name.to_lowercase();
    let is_exact = |model: &&LocalModel| {
        let known = model.name.to_lowercase();
        known == wanted || known.strip_suffix(":latest") == Some(&wanted)
    };
    let (repo, quant) = wanted.split_once(':').unwrap_or((&wanted, ""));
    let holds = |model: &&LocalModel| {
        let known = model.name.to_lowercase();
        let by_quant = known.strip_prefix(repo).and_then(|rest| rest.strip_prefix('/'));
        known.contains(&wanted) || (!quant.is_empty() && by_quant.is_some_and(|rest| rest.ends_with(quant)))
    };
    let exact: Vec<&LocalModel> = models.iter().filter(is_exact).collect();
    let fitting: Vec<&LocalModel> = if exact.is_empty() { models.iter().filter(holds).collect() } else { exact };
    match fitting.as_slice() {
        [one] => Ok((*one).clone()),
        // The same name in two caches: the first in the caches' order is as good as the other.
        [first, rest @ ..] if rest.iter().all(|other| other.name == first.name) => Ok((*first).clone()),
        [] => {
            let near = listed(near(models, &wanted).into_iter());
            let hint = if near.is_empty() {
                "pass a path, https://…, hf:owner/repo, or a name that `moeplan list` shows".to_string()
            } else {
                format!("did you mean {near}?")
            };
            let message = format!("`{name}` is not a file, and no model in the caches here has that name");
            Err(Error::UnknownName(Refusal::new(message, hint)))
        }
        several => {
            let message = format!("`{name}` matches {} models found here", several.len());
            let hint = format!("name one of them: {}", listed(several.iter().map(|model| model.name.as_str())));
            Err(Refusal::new(message, hint).into())
        }
    }
}

/// Names that share most of the words of what was typed.
fn near<'a>(models: &'a [LocalModel], wanted: &str) -> Vec<&'a str> {
    let words = |text: &str| -> HashSet<String> {
        let split = text.split(|c: char| !c.is_alphanumeric() && c != '.');
        split.filter(|word| word.len() > 1).map(str::to_lowercase).collect()
    };
    let wanted = words(wanted);
    let shared = |model: &LocalModel| words(&model.name).intersection(&wanted).count();
    let mut scored: Vec<(usize, &LocalModel)> = models.iter().map(|model| (shared(model), model)).collect();
    scored.retain(|(shared, _)| *shared > 0 && *shared >= wanted.len().div_ceil(2));
    scored.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    scored.into_iter().take(5).map(|(_, model)| model.name.as_str()).collect()
}
