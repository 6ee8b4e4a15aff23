//! What can go wrong between a MODEL and its header, in one line each, and what to try.

use std::borrow::Cow;

use super::super::error::Error as GgufError;
use crate::suggest::{Hint, Refusal};

/// A model whose header could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("`{url}`: {failure}")]
    Address { url: String, failure: Failure },
    /// No file, and no model of the caches here either.
    #[error("{0}")]
    UnknownName(Refusal),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What went wrong with an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    #[error("this moeplan is built without network access (feature `remote`)")]
    NotBuilt,
    #[error("not in the cache, and --offline (or MOEPLAN_OFFLINE) forbids asking for it")]
    Offline,
    #[error("not a usable address: {0}")]
    Address(&'static str),
    #[error("the host's name is not known (DNS)")]
    Host,
    #[error("no answer in time")]
    Timeout,
    #[error("no secure connection (TLS): {0}")]
    Tls(String),
    #[error("no certificate authority is known: {0}")]
    Authorities(String),
    #[error("the connection failed: {0}")]
    Io(std::io::Error),
    #[error("the server does not speak HTTP properly: {0}")]
    Protocol(String),
    #[error("more than {0} redirects")]
    Redirects(u32),
    #[error("redirected from https to an unencrypted address, which is not followed")]
    Downgrade,
    /// `retry_after` is in seconds, as the server says it.
    #[error("the server answers {code}{}", meaning(*code))]
    Status { code: u16, retry_after: Option<u64>, with_token: bool, is_hub: bool },
    #[error("the server compresses its answer (`{0}`), though asked not to")]
    Encoding(String),
    #[error("the server answers with a web page instead of a GGUF file")]
    Page,
    #[error("asked for byte {asked}, the server answers with the range `{found}`")]
    Range { asked: u64, found: String },
    #[error("the file changed on the server while its header was read")]
    Changed,
    #[error("the connection ended after {have} bytes")]
    Dropped { have: u64 },
    #[error("the header is not complete after {0} requests")]
    Requests(u32),
    #[error("the header is longer than {0} bytes, the most that is read over the network")]
    TooLong(u64),
    #[error("the list of files cannot be read: {0}")]
    Listing(String),
}

/// What a status code says, for the usual ones.
fn meaning(code: u16) -> &'static str {
    match code {
        401 => " (not signed in)",
        403 => " (not allowed)",
        404 => " (no such file or repository)",
        416 => " (no such range)",
        429 => " (too many requests)",
        500..=599 => " (the server's own error)",
        _ => "",
    }
}

impl Failure {
    /// The failure of an address.
    pub(super) fn of(self, url: &(impl ToString + ?Sized)) -> Error {
        Error::Address { url: url.to_string(), failure: self }
    }

    /// Whether another try may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Timeout | Self::Io(_) | Self::Protocol(_) | Self::Changed | Self::Dropped { .. } => true,
            Self::Status { code, .. } => matches!(code, 408 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    fn hint(&self, url: &str) -> Option<&'static str> {
        Some(match self {
            Self::NotBuilt => "build it with default features, or download the file and pass its path",
            Self::Offline => "run once without --offline; headers are kept",
            Self::Address(_) => "write https://host/path/model.gguf",
            Self::Host => "check the address and the network; --offline uses what is cached",
            Self::Status { code: 401 | 403, with_token: true, .. } => {
                "the token in HF_TOKEN may not read this: accept the model's terms on its page, or use another token"
            }
            Self::Status { code: 401 | 403, is_hub: true, .. } => {
                "the repository is private, gated or does not exist: set HF_TOKEN to a token that may read it"
            }
            Self::Status { code: 404, .. } => "check owner, name and file; a private repository needs HF_TOKEN",
            Self::Status { code: 429, .. } => "wait a while; with HF_TOKEN the limits are higher",
            Self::Page | Self::Downgrade | Self::Redirects(_) if url.contains("/blob/") => {
                "on Hugging Face, the file's own address has /resolve/ instead of /blob/"
            }
            Self::Page => "use the address of the download itself, not of its page",
            Self::Timeout | Self::Io(_) | Self::Dropped { .. } => "check the network and try again",
            Self::Tls(why) if why.contains("UnknownIssuer") => {
                "if you trust who signed it (a company's proxy, a hub of your own), name its PEM file in SSL_CERT_FILE"
            }
            Self::Tls(_) => "check the address, the clock, and whether a proxy changes certificates",
            Self::Authorities(_) => {
                "SSL_CERT_FILE names a PEM file, SSL_CERT_DIR directories of them; unset them for the system's own"
            }
            Self::Encoding(_) | Self::Range { .. } => {
                "a proxy or this server changes answers: try another address, or download the file"
            }
            Self::Changed => "an upload may be under way: try again later",
            _ => return None,
        })
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Address { url, failure } => failure.hint(url).map(Cow::Borrowed),
            Self::UnknownName(refusal) | Self::Refused(refusal) => refusal.hint(),
        }
    }
}

/// Not the address of a repository or of one of its models.
pub(super) fn wrong_repository(text: &str) -> Error {
    let message = format!("`{text}` is not of the form hf:owner/repo, hf:owner/repo:QUANT or hf:owner/repo/file.gguf");
    Refusal::new(message, "for example hf:ggml-org/gpt-oss-20b-GGUF").into()
}

/// Some names of many, for a hint.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut shown: Vec<String> = names.take(13).map(|name| format!("`{name}`")).collect();
    if let Some(more) = shown.get_mut(12) {
        *more = "…".to_string();
    }
    shown.join(", ")
}
