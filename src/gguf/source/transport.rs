//! One HTTP request over ureq: no redirects, no decompression, no status turned into an error. [I/O]

use std::sync::Arc;

use super::client::{Answer, Limits, Transport};
use super::error::Failure;

/// Sends requests over connections that are kept.
struct Http {
    agent: ureq::Agent,
}

/// HTTP with the limits' timeouts.
pub(super) fn http(limits: &Limits) -> Arc<dyn Transport> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("moeplan/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .max_response_header_size(limits.response_header)
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_recv_response(Some(limits.response))
        .timeout_per_read(Some(limits.read))
        .timeout_recv_body(Some(limits.body))
        .build();
    Arc::new(Http { agent: config.new_agent() })
}

impl Transport for Http {
    fn get(&self, url: &str, headers: &[(&str, String)], is_local: bool) -> Result<Answer, Failure> {
        let mut request = self.agent.get(url);
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
