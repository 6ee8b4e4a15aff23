//! Any OpenAI-compatible endpoint over HTTP: asked for a chat completion, its bytes kept with the time they came. [I/O]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use std::borrow::Cow;
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::client::{SHORT, agent};
use crate::suggest::Hint;

/// How often it is looked whether the person wants to stop.
const LOOK: Duration = Duration::from_millis(50);
/// The most that is read of one answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// An endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    agent: ureq::Agent,
    base: String,
    /// The model it is asked for; `None` = what it lists first, or nothing.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// One answer may take so long.
    pub limit: Duration,
    /// Whether the person wants to stop.
    pub interrupted: fn() -> bool,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The message of the user.
    pub text: String,
    /// Tokens of the answer, at most.
    pub max_tokens: u32,
    /// 0 = the most likely token.
    pub temperature: f64,
    /// Seed of the sampler.
    pub seed: u32,
    /// As server-sent events.
    pub stream: bool,
}

/// A piece of an answer as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Since the request was sent.
    pub seconds: f64,
    /// As they are.
    pub bytes: Vec<u8>,
}

/// An answer as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    /// The HTTP status.
    pub status: u16,
    /// The header of that name.
    pub content_type: Option<String>,
    /// The body.
    pub pieces: Vec<Piece>,
    /// Until its end.
    pub seconds: f64,
    /// Why it ended before its end.
    pub broken: Option<String>,
}

impl Recording {
    /// The body as one.
    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect()
    }
}

/// Why there is no answer at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not `http://…`.
    #[error("`{0}` is no address of an endpoint")]
    Address(String),
    /// Nobody answers.
    #[error("the endpoint `{base}` does not answer: {why}")]
    Unreachable {
        /// The address.
        base: String,
        /// Why.
        why: String,
    },
    /// It took too long.
    #[error("the endpoint `{base}` took longer than {seconds} s")]
    TimedOut {
        /// The address.
        base: String,
        /// The limit.
        seconds: u64,
    },
    /// The person wants to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Hint for Error {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::Address(_) => "write for example --url http://127.0.0.1:8080",
            Self::Unreachable { .. } => "is the server up, and is the port right?",
            Self::TimedOut { .. } => "a larger --timeout, or a smaller --max-tokens",
            Self::Interrupted => return None,
        };
        Some(text.into())
    }
}

impl Endpoint {
    /// At `http://HOST:PORT`, with or without `/v1` behind it.
    pub fn new(address: &str) -> Result<Self, Error> {
        let base = address.trim_end_matches('/').trim_end_matches("/chat/completions").trim_end_matches("/v1");
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://")).unwrap_or_default();
        if host.is_empty() || host.starts_with('/') || base.contains(char::is_whitespace) {
            return Err(Error::Address(address.to_string()));
        }
        Ok(Self {
            agent: agent(),
            base: base.to_string(),
            model: None,
            key: None,
            limit: Duration::from_mins(30),
            interrupted: || false,
        })
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.base
    }

    /// Whether its address is of this computer.
    pub fn is_here(&self) -> bool {
        let uri = self.base.parse::<ureq::http::Uri>().ok();
        let host = uri.as_ref().and_then(ureq::http::Uri::host).map(|host| host.trim_matches(['[', ']']));
        let is_loopback = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        host.is_some_and(|host| host == "localhost" || is_loopback(host))
    }

    /// The models that it lists.
    pub fn models(&self) -> Result<Vec<String>, Error> {
        let answer = self.get("/v1/models").map_err(|why| Error::Unreachable { base: self.base.clone(), why })?;
        let rows = answer.get("data").and_then(Value::as_array).into_iter().flatten();
        Ok(rows.filter_map(|row| Some(row.get("id")?.as_str()?.to_string())).collect())
    }

    /// What a llama-server says of itself; null for others.
    pub fn properties(&self) -> Value {
        self.get("/props").unwrap_or_default()
    }

    /// The name and version that a server gives at `/health`, as shimmy does; `None` for others.
    pub fn service(&self) -> Option<String> {
        let health = self.get("/health").ok()?;
        let (name, version) = (health.get("service")?.as_str()?, health.get("version").and_then(Value::as_str));
        Some([Some(name), version].into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    /// How many tokens a text is, by a llama-server's tokenizer; `None` for servers without one.
    pub fn count_tokens(&self, text: &str) -> Option<u32> {
        let request = self.agent.post(format!("{}/tokenize", self.base)).header("content-type", "application/json");
        let request = request.config().timeout_global(Some(SHORT)).build();
        let mut answer = request.send(json!({"content": text}).to_string()).ok()?;
        let text = answer.body_mut().with_config().limit(MAX_ANSWER as u64).read_to_string().ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        u32::try_from(value.get("tokens")?.as_array()?.len()).ok()
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.config().timeout_global(Some(SHORT)).build();
        let mut answer = request.call().map_err(|error| error.to_string())?;
        if answer.status().as_u16() != 200 {
            return Err(format!("status {} for {path}", answer.status().as_u16()));
        }
        let text = answer.body_mut().with_config().limit(MAX_ANSWER as u64).read_to_string();
        serde_json::from_str(&text.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    /// The body of a request. `stream` is always said: some servers stream unless told otherwise.
    fn body(&self, ask: &Ask) -> Value {
        let mut body = json!({
            "messages": [{"role": "user", "content": ask.text}],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stream": ask.stream,
            // llama-server's own: every prompt is read whole, so that its speed is that of reading it.
            "cache_prompt": false,
        });
        if let Some(object) = body.as_object_mut() {
            if ask.stream {
                object.insert("stream_options".to_string(), json!({"include_usage": true}));
            }
            if let Some(model) = &self.model {
                object.insert("model".to_string(), json!(model));
            }
        }
        body
    }

    /// Asks, and keeps what comes with the time it came.
    pub fn chat(&self, ask: &Ask) -> Result<Recording, Error> {
        let mut request = self.agent.post(format!("{}/v1/chat/completions", self.base));
        request = request.header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = self.body(ask).to_string();
        let (send, answer) = channel();
        std::thread::spawn(move || send.send(record(request, &body)));
        let begin = Instant::now();
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(Ok(recording)) => return Ok(recording),
                Ok(Err(why)) => return Err(Error::Unreachable { base: self.base.clone(), why }),
                Err(_) if (self.interrupted)() => return Err(Error::Interrupted),
                Err(_) if begin.elapsed() > self.limit => {
                    return Err(Error::TimedOut { base: self.base.clone(), seconds: self.limit.as_secs() });
                }
                Err(_) => {}
            }
        }
    }
}

/// Sends and reads to the end, or to what breaks it.
fn record(request: ureq::RequestBuilder<ureq::typestate::WithBody>, body: &str) -> Result<Recording, String> {
    let begin = Instant::now();
    let response = request.send(body).map_err(|error| error.to_string())?;
    let mut recording = Recording {
        status: response.status().as_u16(),
        content_type: response.headers().get("content-type").and_then(|value| Some(value.to_str().ok()?.to_string())),
        ..Recording::default()
    };
    let mut body = response.into_body().into_reader();
    let mut piece = vec![0_u8; 64 << 10];
    let mut taken = 0_usize;
    loop {
        match body.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                let bytes = piece.get(..n).unwrap_or_default().to_vec();
                taken = taken.saturating_add(n);
                recording.pieces.push(Piece { seconds: begin.elapsed().as_secs_f64(), bytes });
                if taken > MAX_ANSWER {
                    recording.broken = Some(format!("it is longer than {} MiB", MAX_ANSWER >> 20));
                    break;
                }
            }
            Err(error) => {
                recording.broken = Some(error.to_string());
                break;
            }
        }
    }
    recording.seconds = begin.elapsed().as_secs_f64();
    Ok(recording)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_with_and_without_its_path() {
        for address in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/chat/completions"] {
            assert_eq!(Endpoint::new(address).unwrap().address(), "http://h:1", "{address}");
        }
        let here = |address: &str| Endpoint::new(address).unwrap().is_here();
        assert!(["http://127.0.0.1:1", "http://localhost", "http://[::1]:8080/v1"].into_iter().all(here));
        assert!(!here("http://h:1") && !here("http://10.0.0.1:8080"));
        for address in ["", "h:1", "ftp://h", "http://", "http:// h"] {
            assert!(matches!(Endpoint::new(address), Err(Error::Address(_))), "{address}");
        }
    }

    #[test]
    fn streaming_is_always_said() {
        let endpoint = Endpoint { model: Some("m".into()), ..Endpoint::new("http://h:1").unwrap() };
        let ask = |stream| Ask { text: "x".into(), max_tokens: 4, temperature: 0.0, seed: 1, stream };
        let (whole, stream) = (endpoint.body(&ask(false)), endpoint.body(&ask(true)));
        assert_eq!(
            (&whole["stream"], &whole["model"], whole.get("stream_options")),
            (&json!(false), &json!("m"), None)
        );
        assert_eq!(stream["stream_options"]["include_usage"], json!(true));
    }
}
