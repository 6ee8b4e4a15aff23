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

/// An `http://` or `https://` address without credentials and fragment; its path begins with a slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url(String);

impl Url {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let text = text.split('#').next().unwrap_or_default();
        let refused = |why| Err(Failure::Address(why));
        let starts = |scheme: &&str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        let Some(scheme) = ["http://", "https://"].into_iter().find(starts) else {
            return refused("it does not start with http:// or https://");
        };
        if text.len() > MAX_LENGTH {
            return refused("it is too long");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || "\\\"<>^`{|}".contains(c)) {
            return refused("it holds a character that belongs in no address");
        }
        let rest = text.get(scheme.len()..).unwrap_or_default();
        let (host, rest) = rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len())).unwrap_or_default();
        if host.contains('@') {
            return refused("it holds a user name or password");
        }
        if host.is_empty() || host.starts_with(':') {
            return refused("it names no host");
        }
        let slash = if rest.starts_with('/') { "" } else { "/" };
        Ok(Self(format!("{scheme}{}{slash}{rest}", host.to_ascii_lowercase())))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Scheme, host and port: whom a token is for.
    pub fn origin(&self) -> &str {
        let host = self.0.find("://").map_or(0, |at| at.saturating_add(3));
        let path =
            self.0.get(host..).and_then(|rest| rest.find('/')).map_or(self.0.len(), |at| at.saturating_add(host));
        self.0.get(..path).unwrap_or_default()
    }

    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
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
        let rest = self.0.get(self.origin().len()..).unwrap_or_default();
        rest.split('?').next().unwrap_or_default()
    }

    /// The same place with another last segment; the query stays.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Self {
        let folder = self.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let query = self.0.split_once('?').map_or(String::new(), |(_, query)| format!("?{query}"));
        Self(format!("{}{folder}/{name}{query}", self.origin()))
    }

    /// Where a redirect leads: never from https to http.
    pub fn redirect(&self, location: &str) -> Result<Self, Failure> {
        let next = self.join(location)?;
        if self.is_https() && !next.is_https() { Err(Failure::Downgrade) } else { Ok(next) }
    }

    /// Where a redirect (or link) of this address leads.
    pub fn join(&self, location: &str) -> Result<Self, Failure> {
        let location = location.trim();
        let scheme = self.0.split("//").next().unwrap_or_default();
        let folder = self.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let base = match location {
            _ if location.starts_with("//") => scheme.to_string(),
            _ if location.starts_with('/') => self.origin().to_string(),
            _ if location.contains("://") => String::new(),
            _ if location.starts_with('?') => format!("{}{}", self.origin(), self.path()),
            _ => format!("{}{folder}/", self.origin()),
        };
        Self::parse(&format!("{base}{location}"))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
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
