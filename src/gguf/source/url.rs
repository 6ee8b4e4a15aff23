//! The little of URLs that header requests need: origin, path, last segment, redirects.

use super::error::Failure;

/// Longest address taken, in bytes.
const MAX_LENGTH: usize = 8192;

/// Whether `host`, with a port or without, is this computer by its name or address.
pub fn is_this_computer(host: &str) -> bool {
    let name = if host.starts_with('[') {
        host.split_inclusive(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    name == "localhost" || name == "[::1]" || name.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback())
}

/// An `http://` or `https://` address without credentials and fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url {
    text: String,
    path: usize,
    /// Where the query starts, or the end.
    query: usize,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let text = text.split('#').next().unwrap_or_default();
        let refused = |why| Err(Failure::Address(why));
        let scheme = ["http://", "https://"]
            .iter()
            .find(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
        let Some(scheme) = scheme else { return refused("it does not start with http:// or https://") };
        if text.len() > MAX_LENGTH {
            return refused("it is too long");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || "\\\"<>^`{|}".contains(c)) {
            return refused("it holds a character that belongs in no address");
        }
        let rest = text.get(scheme.len()..).unwrap_or_default();
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return refused("it holds a user name or password");
        }
        if authority.is_empty() || authority.starts_with(':') {
            return refused("it names no host");
        }
        let path = scheme.len().saturating_add(authority.len());
        let rest = text.get(path..).unwrap_or_default();
        let slash = if rest.starts_with('/') { "" } else { "/" };
        let text = format!("{scheme}{}{slash}{rest}", authority.to_ascii_lowercase());
        let query = text.find('?').unwrap_or(text.len());
        Ok(Self { text, path, query })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Scheme, host and port: whom a token is for.
    pub fn origin(&self) -> &str {
        self.text.get(..self.path).unwrap_or_default()
    }

    /// Whether the way is encrypted.
    pub fn is_https(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// Whether the host is this computer.
    pub fn is_local(&self) -> bool {
        self.origin().split_once("://").is_some_and(|(_, host)| is_this_computer(host))
    }

    /// The last segment of the path, percent signs and all.
    pub fn file_name(&self) -> &str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.text.get(self.path..self.query).unwrap_or_default()
    }

    /// The same place with another last segment; the query stays.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Self {
        let end = self.query.saturating_sub(self.file_name().len());
        let before = self.text.get(..end).unwrap_or_default();
        let query = self.text.get(self.query..).unwrap_or_default();
        Self { text: format!("{before}{name}{query}"), path: self.path, query: before.len().saturating_add(name.len()) }
    }

    /// Where a redirect leads: never from https to http.
    pub fn redirect(&self, location: &str) -> Result<Self, Failure> {
        let next = self.join(location)?;
        if self.is_https() && !next.is_https() { Err(Failure::Downgrade) } else { Ok(next) }
    }

    /// Where a redirect (or link) of this address leads.
    pub fn join(&self, location: &str) -> Result<Self, Failure> {
        let location = location.trim();
        if location.starts_with("//") {
            let scheme = self.text.split("//").next().unwrap_or_default();
            return Self::parse(&format!("{scheme}{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{location}", self.origin()));
        }
        if location.contains("://") {
            return Self::parse(location);
        }
        if location.starts_with('?') {
            return Self::parse(&format!("{}{}{location}", self.origin(), self.path()));
        }
        let directory = self.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        Self::parse(&format!("{}{directory}/{location}", self.origin()))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A path with every byte that is not plain written as `%XX`; slashes stay.
pub(super) fn encode_path(path: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn an_address_falls_into_origin_path_and_name() {
        let address = url("HTTPS://Example.org:444/a/b-00001-of-00002.gguf?download=true#x");
        assert_eq!(address.origin(), "https://example.org:444");
        assert_eq!(address.file_name(), "b-00001-of-00002.gguf");
        assert_eq!(address.with_file_name("c.gguf").as_str(), "https://example.org:444/a/c.gguf?download=true");
        assert_eq!(address.with_file_name("c.gguf").file_name(), "c.gguf");
        assert_eq!(url("http://h").path(), "/");
        assert!(url("http://127.0.0.1:80/x").is_local() && url("http://[::1]:80/x").is_local());
        assert!(!url("http://127.0.0.1.evil.org/x").is_local());
    }

    #[test]
    fn redirects_resolve_against_the_address() {
        let from = url("https://h/a/b?q");
        for (location, to) in [
            ("c", "https://h/a/c"),
            ("/c?x", "https://h/c?x"),
            ("//g/c", "https://g/c"),
            ("http://g/c", "http://g/c"),
            ("?z", "https://h/a/b?z"),
        ] {
            assert_eq!(from.join(location).unwrap().as_str(), to, "{location}");
        }
        assert!(from.join("file:///etc/passwd").is_err());
        assert!(matches!(from.redirect("http://h/c"), Err(Failure::Downgrade)));
        assert!(from.redirect("//g/c").is_ok() && url("http://h/a").redirect("https://h/a").is_ok());
    }

    #[test]
    fn addresses_that_hide_something_are_refused() {
        for text in ["ftp://h/x", "https://u:p@h/x", "https:///x", "https://h/a b", "https://h/a\u{1b}", "https://:1/x"]
        {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encode_path("UD-Q4/a b?#%é.gguf"), "UD-Q4/a%20b%3F%23%25%C3%A9.gguf");
    }
}
