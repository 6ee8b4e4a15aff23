//! Repositories of the Hugging Face hub: which models they hold, and which one a quantisation means. [I/O]
//!
//! The choice is llama.cpp b11434's (`common/download.cpp`, `find_best_model`): the first file whose path holds `QUANT.` or
//! `QUANT-` in any case; without QUANT, Q4_K_M, else Q8_0, else the first model.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::super::Gguf;
use super::super::shards::parse_name;
use super::Which;
use super::cache::Entry;
use super::client::Client;
use super::error::{Error, Failure, listed, wrong_repository};
use super::header::Known;
use super::url::{Url, encode_path};
use crate::bytes::Bytes;
use crate::suggest::Refusal;

/// What llama.cpp takes where no quantisation is asked for, in order.
const DEFAULT_QUANTS: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// Files that lie beside models and are none (`gguf_filename_is_model`).
const NO_MODELS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];
/// Files of a repository that are looked at, and pages of its list.
const MAX_FILES: usize = 100_000;
const MAX_PAGES: u32 = 50;

/// One file of a repository, as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HubFile {
    /// Inside the repository; untrusted text, but no path that leaves it.
    pub path: String,
    pub bytes: Bytes,
    #[serde(skip)]
    pub oid: Option<String>,
}

/// One model of a repository: a file, or the shards of a split one in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quant {
    /// What to write after `hf:owner/repo:`; untrusted text.
    pub name: String,
    pub path: String,
    pub files: Vec<HubFile>,
    pub bytes: Bytes,
}

/// An entry of the hub's list.
#[derive(Deserialize)]
struct Item {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: Option<String>,
    size: Option<u64>,
}

/// Whether text is `owner/name` as the hub allows it: letters, digits, `_`, and single `-` or `.` between them.
pub fn is_repository(text: &str) -> bool {
    let is_name = |name: &str| {
        let bytes = name.as_bytes();
        let is_special = |byte: &u8| matches!(byte, b'-' | b'.');
        !name.is_empty()
            && name.len() <= 128
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || is_special(byte))
            && !bytes.first().is_some_and(is_special)
            && !bytes.last().is_some_and(is_special)
            && !name.contains("..")
    };
    text.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

/// Whether a path stays inside its repository.
pub fn is_safe_path(path: &str) -> bool {
    let is_segment = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    path.len() <= 1024 && !path.chars().any(char::is_control) && path.split('/').all(is_segment)
}

/// Whether a path is that of a model by its name.
pub fn is_model_path(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".gguf").is_some()
        && !stem(name).0.is_empty()
        && !NO_MODELS.iter().any(|part| name.contains(part))
}

/// A path without `.gguf` and without the part of a shard, and the shard's number.
pub fn stem(path: &str) -> (&str, Option<(u64, u64)>) {
    match parse_name(path) {
        Some((prefix, split)) => (prefix, Some((split.number, split.count))),
        None => (path.strip_suffix(".gguf").unwrap_or(path), None),
    }
}

/// What a file name calls its quantisation: the last word, `UD-` with it; the whole name where there is none.
fn quant_name(stem: &str) -> &str {
    let file = stem.rsplit('/').next().unwrap_or(stem);
    let start = file.rfind(['-', '.']).map_or(0, |at| at.saturating_add(1));
    let before = file.get(..start).unwrap_or_default();
    let start = if before.ends_with("-UD-") { start.saturating_sub(3) } else { start };
    let word = file.get(start..).unwrap_or(file);
    if word.is_empty() { file } else { word }
}

/// A model among files: what its files are called without their numbers, how many shards it has, and those that are there.
pub(super) struct Shards<T> {
    pub stem: String,
    pub count: u64,
    /// With their numbers, from 1, in order.
    pub files: Vec<(u64, T)>,
}

/// The models among files, given with their paths; split ones are put together, in the order of their first files.
pub(super) fn models<T>(files: impl IntoIterator<Item = (String, T)>) -> Vec<Shards<T>> {
    let mut models: Vec<Shards<T>> = Vec::new();
    let mut places: HashMap<(String, u64), usize> = HashMap::new();
    for (path, file) in files.into_iter().filter(|(path, _)| is_model_path(path)) {
        let (stem, shard) = stem(&path);
        let (number, count) = shard.unwrap_or((1, 1));
        let place = *places.entry((stem.to_string(), count)).or_insert(models.len());
        if place == models.len() {
            models.push(Shards { stem: stem.to_string(), count, files: Vec::new() });
        }
        if let Some(model) = models.get_mut(place) {
            model.files.push((number, file));
        }
    }
    for model in &mut models {
        model.files.sort_by_key(|(number, _)| *number);
    }
    models
}

impl<T> Shards<T> {
    /// The first shard that is not there.
    pub fn missing(&self) -> Option<u64> {
        let there = self.files.iter().map(|(number, _)| Some(*number)).chain(std::iter::repeat(None));
        (1..=self.count).zip(there).find(|(number, there)| *there != Some(*number)).map(|(number, _)| number)
    }
}

/// The files of a page of the hub's list, as JSON; those whose paths lead elsewhere are left out.
pub fn listed_files(page: &[u8]) -> Result<Vec<HubFile>, Failure> {
    let items: Vec<Item> = serde_json::from_slice(page).map_err(|error| Failure::Listing(error.to_string()))?;
    let file = |item: Item| {
        let (oid, size) = item.lfs.map_or((None, None), |lfs| (lfs.oid, lfs.size));
        HubFile { path: item.path, bytes: Bytes(size.unwrap_or(item.size)), oid: oid.or(item.oid) }
    };
    let files = items.into_iter().filter(|item| item.r#type == "file").map(file);
    Ok(files.filter(|file| is_safe_path(&file.path)).collect())
}

/// The models in a repository's list of files, in its order; those without all their shards are left out.
pub fn quants(repo: &str, files: Vec<HubFile>) -> Result<Vec<Quant>, Refusal> {
    let mut quants = Vec::new();
    let mut broken = None;
    for model in models(files.into_iter().map(|file| (file.path.clone(), file))) {
        let (missing, Shards { stem, count, files }) = (model.missing(), model);
        if let Some(number) = missing {
            let message = format!("`{repo}`: shard {number} of {count} of `{stem}` is missing");
            let hint = "an upload may be under way: try again later, or another quantisation";
            broken = Some(Refusal::new(message, hint));
            continue;
        }
        let files: Vec<HubFile> = files.into_iter().map(|(_, file)| file).collect();
        let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
        // The list is untrusted: its sizes may pass 64 bits together.
        let bytes = Bytes(files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes.0)));
        quants.push(Quant { name: quant_name(&stem).to_string(), path, files, bytes });
    }
    match broken {
        _ if !quants.is_empty() => Ok(quants),
        broken => Err(broken.unwrap_or_else(|| no_models(repo))),
    }
}

fn no_models(repo: &str) -> Refusal {
    Refusal::new(format!("`{repo}` holds no GGUF model"), "look for a repository whose name ends in GGUF")
}

/// The model that is meant.
pub fn choose<'a>(repo: &str, quants: &'a [Quant], which: &Which) -> Result<&'a Quant, Refusal> {
    let matching = |wanted: &str| {
        let wanted = wanted.to_lowercase();
        let holds = |path: &str| {
            let path = path.to_lowercase();
            ['.', '-'].iter().any(|end| path.contains(&format!("{wanted}{end}")))
        };
        quants.iter().find(|quant| holds(&quant.path))
    };
    let unknown = |wanted: &str, known: fn(&Quant) -> &str| {
        let hint = format!("it holds {}", listed(quants.iter().map(known)));
        Refusal::new(format!("`{repo}` holds no GGUF model that matches `{wanted}`"), hint)
    };
    match which {
        Which::Default => {
            let usual = DEFAULT_QUANTS.iter().find_map(|name| matching(name));
            usual.or(quants.first()).ok_or_else(|| no_models(repo))
        }
        Which::Quant(wanted) => matching(wanted).ok_or_else(|| unknown(wanted, |quant| &quant.name)),
        Which::File(file) => {
            let holds = |quant: &&Quant| quant.files.iter().any(|known| known.path == *file);
            quants.iter().find(holds).ok_or_else(|| unknown(file, |quant| &quant.path))
        }
    }
}

/// The number in the name of a file's quantisation (`extract_quant_bits`): 4 of Q4_K_M, 16 of F16, 0 where it has none.
fn quant_bits(path: &str) -> u32 {
    let (stem, _) = stem(path);
    let word = stem.rsplit(['-', '.']).next().filter(|word| word.len() < stem.len()).unwrap_or_default();
    let digits = word.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The projector that `-hf` fetches beside a model: of those in its folder and above, the nearest, then the one of the most similar
/// quantisation, then the first (`common/download.cpp` `find_best_sibling`, b11434).
pub fn projector_beside<'a>(files: &'a [HubFile], model: &str) -> Option<&'a HubFile> {
    let folder = |path: &str| path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let (own, bits) = (folder(model), quant_bits(model));
    let is_projector = |file: &&HubFile| file.path.strip_suffix(".gguf").is_some() && file.path.contains("mmproj");
    let is_above = |file: &&HubFile| own.starts_with(&folder(&file.path));
    let order = |file: &&HubFile| (std::cmp::Reverse(folder(&file.path).len()), quant_bits(&file.path).abs_diff(bits));
    files.iter().filter(is_projector).filter(is_above).min_by_key(order)
}

impl Client {
    /// The models of a repository.
    pub fn quants(&self, repo: &str) -> Result<Vec<Quant>, Error> {
        Ok(quants(repo, self.files(repo)?)?)
    }

    /// The projector that `-hf` fetches beside a model of a repository.
    pub fn projector_beside(&self, repo: &str, model: &Quant) -> Result<Option<Quant>, Error> {
        let files = self.files(repo)?;
        Ok(projector_beside(&files, &model.path).map(|file| Quant {
            name: quant_name(stem(&file.path).0).to_string(),
            path: file.path.clone(),
            bytes: file.bytes,
            files: vec![file.clone()],
        }))
    }

    fn files(&self, repo: &str) -> Result<Vec<HubFile>, Error> {
        if !is_repository(repo) {
            return Err(wrong_repository(&format!("hf:{repo}")));
        }
        let address =
            format!("{}/api/models/{repo}/tree/main?recursive=true", self.endpoint.as_str().trim_end_matches('/'));
        let mut page = Some(Url::parse(&address).map_err(|failure| failure.of(&address))?);
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let Some(url) = page.take() else { break };
            let (items, next) = self.page(&url).map_err(|failure| failure.of(&url))?;
            files.extend(items);
            page = next.filter(|_| files.len() < MAX_FILES);
        }
        Ok(files)
    }

    /// One page of the list: from the hub, or offline from the cache.
    fn page(&self, url: &Url) -> Result<(Vec<HubFile>, Option<Url>), Failure> {
        let (bytes, next) = if self.offline {
            let entry = self.cache.as_ref().and_then(|cache| cache.load(url.as_str())).ok_or(Failure::Offline)?;
            let next = entry.etag.as_deref().and_then(|next| Url::parse(next).ok());
            (entry.bytes, next)
        } else {
            self.listing(url)?
        };
        let files = listed_files(&bytes)?;
        if let (Some(cache), false) = (&self.cache, self.offline) {
            let next = next.as_ref().map(ToString::to_string);
            let _ = cache.store(&Entry { url: url.to_string(), etag: next, oid: None, file_bytes: None, bytes });
        }
        Ok((files, next))
    }

    /// Where a file of a repository is.
    pub fn address(&self, repo: &str, path: &str) -> Result<Url, Error> {
        let address =
            format!("{}/{repo}/resolve/main/{}", self.endpoint.as_str().trim_end_matches('/'), encode_path(path));
        Url::parse(&address).map_err(|failure| failure.of(&address))
    }

    /// The header of a model of a repository.
    pub fn open_quant(&self, repo: &str, quant: &Quant) -> Result<Gguf, Error> {
        self.open_quant_beside(repo, quant, None)
    }

    /// The same, where the header of `other` of that repository was read and kept before: its vocabulary is not moved again.
    pub fn open_quant_beside(&self, repo: &str, quant: &Quant, other: Option<&Quant>) -> Result<Gguf, Error> {
        let kept = |other: &Quant| {
            let url = self.address(repo, &other.path).ok()?;
            Known::new(self.cache.as_ref()?.load(url.as_str())?.bytes, self.limits.tail)
        };
        let known = other.filter(|other| other.path != quant.path).and_then(kept);
        let oid = |file: &HubFile| Some((self.address(repo, &file.path).ok()?.to_string(), file.oid.clone()?));
        let oids = quant.files.iter().filter_map(oid).collect();
        self.open_known(&self.address(repo, &quant.path)?, &oids, known.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projector_beside_a_model_is_llama_cpps_choice() {
        let of = |paths: &[&str], model: &str| {
            let file = |path: &&str| HubFile { path: (*path).to_string(), bytes: Bytes(10), oid: None };
            let files: Vec<HubFile> = paths.iter().map(file).collect();
            projector_beside(&files, model).map(|file| file.path.clone())
        };
        let all = ["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "a/mmproj-Q8_0.gguf", "m-Q4_K_M.gguf"];
        assert_eq!(of(&all, "m-Q4_K_M.gguf").as_deref(), Some("mmproj-BF16.gguf"));
        assert_eq!(of(&all, "a/m-Q4_K_M.gguf").as_deref(), Some("a/mmproj-Q8_0.gguf"));
        assert_eq!(of(&all, "b/m-F32.gguf").as_deref(), Some("mmproj-F32.gguf"));
        assert_eq!(of(&["a/mmproj-F16.gguf", "m.gguf"], "m.gguf"), None);
    }

    fn quants_of(paths: &[&str]) -> Result<Vec<Quant>, Refusal> {
        let file = |path: &&str| HubFile { path: (*path).to_string(), bytes: Bytes(10), oid: None };
        quants("o/r", paths.iter().map(file).collect())
    }

    #[test]
    fn shards_are_one_model_and_companions_are_none() {
        let list = [
            "README.md",
            "BF16/m-BF16-00002-of-00002.gguf",
            "BF16/m-BF16-00001-of-00002.gguf",
            "m-UD-Q4_K_XL.gguf",
            "m.Q8_0.gguf",
            "mmproj-F16.gguf",
            ".gguf",
            "sub/-00001-of-00001.gguf",
        ];
        let quants = quants_of(&list).unwrap();
        let shown: Vec<_> = quants.iter().map(|q| (q.name.as_str(), q.files.len(), q.bytes.0)).collect();
        assert_eq!(shown, [("BF16", 2, 20), ("UD-Q4_K_XL", 1, 10), ("Q8_0", 1, 10)]);
        assert_eq!(quants[0].path, "BF16/m-BF16-00001-of-00002.gguf");
        for (path, missing) in [("m-Q4-00002-of-00002.gguf", 1), ("m-Q4-00001-of-99999.gguf", 2)] {
            let error = quants_of(&[path]).unwrap_err().to_string();
            assert!(error.contains(&format!("shard {missing} of")), "{error}");
            assert_eq!(quants_of(&[path, "m-Q8_0.gguf"]).unwrap().len(), 1);
        }
    }

    #[test]
    fn the_choice_is_llama_cpps() {
        let all: &[&str] = &["m-BF16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf"];
        for (paths, wanted, name) in [
            (all, None, Some("Q4_K_M")),
            (all, Some("q4_k_s"), Some("Q4_K_S")),
            (all, Some("bf16"), Some("BF16")),
            // A part of a name is not a quantisation.
            (all, Some("Q4_K"), None),
            (&["m-BF16.gguf", "m-Q8_0.gguf"], None, Some("Q8_0")),
            (&["m-mxfp4.gguf"], None, Some("mxfp4")),
        ] {
            let quants = quants_of(paths).unwrap();
            let which = wanted.map_or(Which::Default, |wanted: &str| Which::Quant(wanted.into()));
            assert_eq!(choose("o/r", &quants, &which).ok().map(|quant| quant.name.as_str()), name, "{wanted:?}");
        }
    }

    #[test]
    fn repositories_and_paths_that_lead_elsewhere_are_refused() {
        assert!(is_repository("ggml-org/gpt-oss-20b-GGUF") && is_repository("a_b/c.d"));
        for text in ["", "a", "a/b/c", "../b", "a/..", "a/b?c", "a/b c", "-a/b", "a/b.", "a%2f/b", "a/b..c"] {
            assert!(!is_repository(text), "{text}");
        }
        assert!(is_safe_path("UD-Q4/a-00001-of-00002.gguf"));
        for path in ["/a.gguf", "../a.gguf", "a/../b.gguf", "a//b.gguf", "a\\b.gguf", "C:a.gguf", "a\u{1b}.gguf", ""] {
            assert!(!is_safe_path(path), "{path}");
        }
    }
}
