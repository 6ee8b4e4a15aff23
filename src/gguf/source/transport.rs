//! One HTTP request over ureq: no redirects, no decompression, no status turned into an error. [I/O]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::client::{Answer, Limits, Transport};
use super::error::Failure;

/// Where other authorities than the system's are named, as curl and OpenSSL read them.
const OWN_AUTHORITIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Bytes of an answer's head.
const MAX_RESPONSE_HEADER: usize = 64 << 10;
const CONNECT: Duration = Duration::from_secs(15);

/// Sends requests over connections that are kept.
struct Http {
    limits: Limits,
    /// Without encryption: authorities are read when the first server needs them.
    plain: ureq::Agent,
    /// With encryption, or why no authority is known.
    encrypted: OnceLock<Result<ureq::Agent, String>>,
}

/// HTTP with the limits' timeouts.
pub(super) fn http(limits: &Limits) -> Arc<dyn Transport> {
    let plain = agent(limits, TlsConfig::default());
    Arc::new(Http { limits: limits.clone(), plain, encrypted: OnceLock::new() })
}

fn agent(limits: &Limits, tls: TlsConfig) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("moeplan/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .max_response_header_size(MAX_RESPONSE_HEADER)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(limits.response))
        .timeout_per_read(Some(limits.read))
        .timeout_recv_body(Some(limits.body))
        .tls_config(tls)
        .build();
    config.new_agent()
}

/// Who is trusted: what `SSL_CERT_FILE` and `SSL_CERT_DIR` name and nobody else; else whom this system trusts; else, where it
/// trusts nobody (a bare container), Mozilla's list as it was when moeplan was built.
fn authorities() -> Result<RootCerts, String> {
    let named = OWN_AUTHORITIES.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let found = rustls_native_certs::load_native_certs();
    let certificates: Vec<_> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned()).collect();
    match (named, found.errors.first()) {
        (Some(name), Some(error)) if certificates.is_empty() => Err(format!("{name}: {error}")),
        (Some(name), None) if certificates.is_empty() => Err(format!("{name} does not name a PEM certificate")),
        (None, _) if certificates.is_empty() => Ok(RootCerts::WebPki),
        _ => Ok(RootCerts::from(certificates)),
    }
}

impl Http {
    fn agent(&self, url: &str) -> Result<&ureq::Agent, Failure> {
        if !url.starts_with("https://") {
            return Ok(&self.plain);
        }
        let made = || {
            let authorities = authorities()?;
            Ok(agent(&self.limits, TlsConfig::builder().root_certs(authorities).build()))
        };
        self.encrypted.get_or_init(made).as_ref().map_err(|why| Failure::Authorities(why.clone()))
    }
}

impl Transport for Http {
    fn get(&self, url: &str, headers: &[(&str, String)], is_local: bool) -> Result<Answer, Failure> {
        let mut request = self.agent(url)?.get(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if is_local {
            request = request.config().proxy(None).build();
        }
        let response = request.call().map_err(failure)?;
        let (parts, body) = response.into_parts();
        let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = parts.headers.iter().map(|(name, value)| (name.as_str().to_string(), text(value))).collect();
        Ok(Answer { status: parts.status.as_u16(), headers, body: Box::new(body.into_reader()) })
    }
}

/// What went wrong, told apart as far as it helps.
fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::HostNotFound => Failure::Host,
        ureq::Error::Timeout(_) => Failure::Timeout,
        ureq::Error::Tls(text) => Failure::Tls(text.to_string()),
        ureq::Error::Rustls(error) => Failure::Tls(error.to_string()),
        // The standard library has no kind for it.
        ureq::Error::Io(error) if error.to_string().starts_with("failed to lookup address") => Failure::Host,
        ureq::Error::Io(error) => match error.kind() {
            std::io::ErrorKind::InvalidData => Failure::Tls(error.to_string()),
            _ => Failure::Io(error),
        },
        other => Failure::Protocol(other.to_string()),
    }
}
