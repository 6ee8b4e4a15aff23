//! Where a MODEL is: a path, an address, a repository of the hub, or a name found in the caches of this computer. [I/O]

#[doc(hidden)]
pub mod cache;
#[doc(hidden)]
pub mod client;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod header;
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod local;
#[cfg(feature = "remote")]
mod transport;
#[doc(hidden)]
pub mod url;

use std::collections::HashMap;

use super::shards;
use super::{Gguf, Shard};
pub use client::{Answer, Client, Event, Limits, Transport};
pub use error::{Error, Failure};
use header::Known;
pub use url::Url;

/// What a MODEL argument says, before anything is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `https://…` or `http://…`.
    Address(Url),
    /// `hf:owner/repo[:QUANT | /file.gguf]`.
    Hub {
        /// `owner/repo`.
        repo: String,
        which: Which,
    },
    Here(String),
}

/// Which model of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Default,
    Quant(String),
    File(String),
}

impl Location {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let starts = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        if starts("http://") || starts("https://") {
            return Ok(Self::Address(Url::parse(text).map_err(|failure| failure.of(text))?));
        }
        let Some(rest) = text.strip_prefix("hf:") else { return Ok(Self::Here(text.to_string())) };
        let wrong = || error::wrong_repository(text);
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let mut parts = rest.splitn(3, '/');
        let (owner, name, file) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(wrong)?, parts.next());
        let (name, which) = match (name.split_once(':'), file) {
            (None, None) => (name, Which::Default),
            (None, Some(file)) => (name, Which::File(file.to_string())),
            (Some((name, quant)), None) => (name, Which::Quant(quant.to_string())),
            (Some(_), Some(_)) => return Err(wrong()),
        };
        let repo = format!("{owner}/{name}");
        let is_whole = match &which {
            Which::Default => true,
            Which::Quant(quant) => !quant.is_empty() && !quant.chars().any(|c| c.is_control() || c == '/'),
            Which::File(file) => hub::is_safe_path(file),
        };
        if hub::is_repository(&repo) && is_whole { Ok(Self::Hub { repo, which }) } else { Err(wrong()) }
    }
}

impl Client {
    /// Which model of a repository is meant.
    pub fn choose(&self, repo: &str, which: &Which) -> Result<hub::Quant, Error> {
        Ok(hub::choose(repo, &self.quants(repo)?, which)?.clone())
    }

    /// The model at an address; of a split model, at the address of any of its shards.
    pub fn open(&self, url: &Url) -> Result<Gguf, Error> {
        self.open_known(url, &HashMap::new(), None)
    }

    /// The same, where the hub's list says what files hold (`oids`, by address), perhaps beside the header of another quantisation.
    fn open_known(&self, url: &Url, oids: &HashMap<String, String>, known: Option<&Known>) -> Result<Gguf, Error> {
        let read = |url: &Url, known| self.header(url, oids.get(url.as_str()).map(String::as_str), known);
        super::open_split(read(url, known)?, url.file_name(), |split, prefix, others| {
            // A server may read a path in a part of a file's name.
            let lower = prefix.to_ascii_lowercase();
            if ["/", "\\", "%2f", "%5c", "%00", ".."].iter().any(|part| lower.contains(part)) {
                return Err(Error::Gguf(shards::wrong_name(split).in_file(url.as_str())));
            }
            let shard = |number: &u64| read(&url.with_file_name(&split.name(prefix, *number)), None);
            let mut shards: Vec<Shard> = Vec::new();
            for some in others.chunks(self.limits.parallel.max(1)) {
                std::thread::scope(|scope| {
                    let threads: Vec<_> = some.iter().map(|number| scope.spawn(|| shard(number))).collect();
                    for thread in threads {
                        shards.push(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
                    }
                    Ok::<(), Error>(())
                })?;
            }
            Ok(shards)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_argument_says_where_it_is() {
        let hub = |repo: &str, which| Location::Hub { repo: repo.into(), which };
        for (text, location) in [
            ("hf:o/r", hub("o/r", Which::Default)),
            ("hf:o/r:Q4_K_M", hub("o/r", Which::Quant("Q4_K_M".into()))),
            ("hf:o/r/sub/m.gguf", hub("o/r", Which::File("sub/m.gguf".into()))),
            ("models/m.gguf", Location::Here("models/m.gguf".into())),
            ("http:", Location::Here("http:".into())),
        ] {
            assert_eq!(Location::parse(text).unwrap(), location, "{text}");
        }
        assert!(matches!(Location::parse("https://h/m.gguf"), Ok(Location::Address(_))));
        for text in ["hf:", "hf:o", "hf:o/r:", "hf:o/r/../x.gguf", "hf:o/r:Q/x", "hf:../r", "hf:o/r/", "https://u@h/"] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}
