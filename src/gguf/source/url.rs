//! The little of URLs that header requests need: origin, path, last segment, redirects.

use super::error::Failure;

/// Longest address taken, in bytes.
const MAX_LENGTH: usize = 8192;

/// Whether `host`, with a port or without, is this computer by its name or address.
pub fn is_this_computer(host: &str) -> bool {
    let end = if host.starts_with('[') { ']' } else { ':' };
    let name = host.split(end).next().unwrap_or_default();
    name == "localhost" || name == "[::1" || name.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback())
}

/// An `http://` or `https://` address without credentials and fragment; its path begins with a slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url {
    text: String,
    /// Where the path begins.
    path: usize,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let text = text.split('#').next().unwrap_or_default();
        let starts = |scheme: &&str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        let Some(scheme) = ["http://", "https://"].into_iter().find(starts) else {
            return Err(Failure::Address("it does not start with http:// or https://"));
        };
        let rest = text.get(scheme.len()..).unwrap_or_default();
        let (host, rest) = rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len())).unwrap_or_default();
        let is_foreign = |c: char| c.is_control() || c.is_whitespace() || "\\\"<>^`{|}".contains(c);
        for (wrong, why) in [
            (text.len() > MAX_LENGTH, "it is too long"),
            (text.contains(is_foreign), "it contains a character that is not allowed in an address"),
            (host.contains('@'), "it contains a user name or password"),
            (host.is_empty() || host.starts_with(':'), "it has no host"),
        ] {
            if wrong {
                return Err(Failure::Address(why));
            }
        }
        let origin = format!("{scheme}{}", host.to_ascii_lowercase());
        let slash = if rest.starts_with('/') { "" } else { "/" };
        Ok(Self { path: origin.len(), text: format!("{origin}{slash}{rest}") })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Scheme, host and port: whom a token is for.
    pub fn origin(&self) -> &str {
        self.text.get(..self.path).unwrap_or_default()
    }

    pub fn is_https(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// Whether the host is this computer.
    pub fn is_local(&self) -> bool {
        self.origin().split_once("://").is_some_and(|(_, host)| is_this_computer(host))
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.text.get(self.path..).and_then(|rest| rest.split('?').next()).unwrap_or_default()
    }

    /// The folder of the path, and the last segment, percent signs and all.
    fn split(&self) -> (&str, &str) {
        self.path().rsplit_once('/').unwrap_or_default()
    }

    pub fn file_name(&self) -> &str {
        self.split().1
    }

    /// The same place with another last segment; the query stays.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Self {
        let query = self.text.split_once('?').map_or(String::new(), |(_, query)| format!("?{query}"));
        Self { text: format!("{}{}/{name}{query}", self.origin(), self.split().0), path: self.path }
    }

    /// Where a redirect leads: never from https to http.
    pub fn redirect(&self, location: &str) -> Result<Self, Failure> {
        let next = self.join(location)?;
        if self.is_https() && !next.is_https() { Err(Failure::Downgrade) } else { Ok(next) }
    }

    /// Where a redirect (or link) of this address leads.
    pub fn join(&self, location: &str) -> Result<Self, Failure> {
        let location = location.trim();
        let base = match location {
            _ if location.starts_with("//") => self.text.split("//").next().unwrap_or_default().to_string(),
            _ if location.starts_with('/') => self.origin().to_string(),
            _ if location.contains("://") => String::new(),
            _ if location.starts_with('?') => format!("{}{}", self.origin(), self.path()),
            _ => format!("{}{}/", self.origin(), self.split().0),
        };
        Self::parse(&format!("{base}{location}"))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A path with every byte that is not plain written as `%XX`; slashes stay.
pub(super) fn encode_path(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_falls_into_parts_and_leads_to_others() {
        let url = |text| Url::parse(text).unwrap();
        let address = url("HTTPS://Example.org:444/a/b-00001-of-00002.gguf?download=true#x");
        assert_eq!((address.origin(), address.file_name()), ("https://example.org:444", "b-00001-of-00002.gguf"));
        assert_eq!(address.with_file_name("c.gguf").as_str(), "https://example.org:444/a/c.gguf?download=true");
        assert_eq!(url("http://h").path(), "/");
        assert!(url("http://127.0.0.1:80/x").is_local() && url("http://[::1]:80/x").is_local());
        assert!(!url("http://127.0.0.1.evil.org/x").is_local());
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
        assert!(matches!(from.redirect("http://h/c"), Err(Failure::Downgrade)));
        assert!(from.redirect("//g/c").is_ok() && url("http://h/a").redirect("https://h/a").is_ok());
        for text in ["ftp://h/x", "https://u:p@h/x", "https:///x", "https://h/a b", "https://h/a\u{1b}", "https://:1/x"]
        {
            assert!(Url::parse(text).is_err() && from.join("file:///etc/passwd").is_err(), "{text}");
        }
        assert_eq!(encode_path("UD-Q4/a b?#%é.gguf"), "UD-Q4/a%20b%3F%23%25%C3%A9.gguf");
    }
}
