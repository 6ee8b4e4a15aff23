//! The HTTP client of llama-server and of any OpenAI-compatible endpoint, and the reader of their streams. [I/O]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation))]

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::process::{Stopped, never, wait};
use super::{Error, Kind};

/// How long a short question may take.
const SHORT: Duration = Duration::from_secs(10);
/// The most that is kept of one answer, in bytes.
const MAX_ANSWER: u64 = 256 << 20;
/// The most that is kept of a recorded answer, in bytes.
const MAX_RECORDED: usize = 64 << 20;
/// The longest message of an error that is kept, in characters.
const MAX_MESSAGE: usize = 400;

/// A server that is asked over HTTP.
#[derive(Debug, Clone)]
pub struct Endpoint {
    agent: ureq::Agent,
    pub(super) base: String,
    /// The model it is asked for; `None` = what it lists first, or nothing.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// One answer may take so long.
    pub limit: Duration,
    /// Whether the person wants to stop.
    pub interrupted: fn() -> bool,
}

/// A question of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub text: String,
    pub max_tokens: u32,
    /// 0 = the most likely token.
    pub temperature: f64,
    pub seed: u32,
    pub stream: bool,
}

/// A piece of an answer as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub seconds: f64,
    pub bytes: Vec<u8>,
}

/// An answer as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    pub status: u16,
    pub content_type: Option<String>,
    pub pieces: Vec<Piece>,
    pub seconds: f64,
    /// Why it ended before its end.
    pub broken: Option<String>,
}

impl Recording {
    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect()
    }
}

/// What llama-server is to complete, greedily, whatever the tokens are.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub prompt: Input,
    /// Tokens to generate.
    pub n_predict: u32,
    /// Whether what the slot's cache shares with the prompt is kept instead of read again.
    pub cache_prompt: bool,
    /// Whether the probability of each token is asked for, which tells whether logits are numbers.
    pub probabilities: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Input {
    Tokens(Vec<u32>),
    /// A text, tokenised by the model.
    Text(String),
}

/// The server's own clock (`timings` of b11434's tools/server/server-task.cpp), in tokens, milliseconds and tokens/s. Rates of
/// generation are over all tokens but the first, which belongs to the prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Timings {
    /// Tokens of the prompt that were in the cache already: the depth.
    pub cache_n: u32,
    /// Tokens of the prompt that were read.
    pub prompt_n: u32,
    pub prompt_ms: f64,
    pub prompt_per_second: f64,
    pub predicted_n: u32,
    pub predicted_ms: f64,
    pub predicted_per_second: f64,
}

/// What came of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    pub text: String,
    pub tokens: Vec<i32>,
    pub timings: Timings,
    /// Until the first content came, by our clock; `None` when nothing was generated.
    pub first_token: Option<Duration>,
    /// Until the end, by our clock.
    pub whole: Duration,
    /// Whether every probability that was asked for was a number.
    pub finite: bool,
}

impl Endpoint {
    /// At `http://HOST:PORT`, with or without `/v1` behind it.
    pub fn new(address: &str) -> Result<Self, Error> {
        let base = address.trim_end_matches('/').trim_end_matches("/chat/completions").trim_end_matches("/v1");
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://")).unwrap_or_default();
        if host.is_empty() || host.starts_with('/') || base.contains(char::is_whitespace) {
            return Err(Error::new(Kind::Unreachable, format!("`{address}` is not the address of an endpoint"))
                .with_hint("write for example --url http://127.0.0.1:8080"));
        }
        Ok(Self::at(base))
    }

    pub(super) fn at(base: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("moeplan/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SHORT))
            // Every request its own connection: llama-server closes one that has waited for 5 s.
            .max_idle_connections(0)
            .build();
        let limit = Duration::from_mins(30);
        Self { agent: config.new_agent(), base: base.to_string(), model: None, key: None, limit, interrupted: never }
    }

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

    fn unreachable(&self, why: impl std::fmt::Display) -> Error {
        Error::new(Kind::Unreachable, format!("the endpoint `{}` does not answer: {why}", self.base))
            .with_hint("is the server up, and is the port right?")
    }

    /// The models that it lists.
    pub fn models(&self) -> Result<Vec<String>, Error> {
        let answer = self.json("/v1/models", None, Some(SHORT)).map_err(|error| self.unreachable(error))?;
        let rows = answer.get("data").and_then(Value::as_array).into_iter().flatten();
        Ok(rows.filter_map(|row| Some(row.get("id")?.as_str()?.to_string())).collect())
    }

    /// What a llama-server says of itself; null for others.
    pub fn properties(&self) -> Value {
        self.json("/props", None, Some(SHORT)).unwrap_or_default()
    }

    /// The name and version that a server gives at `/health`, as shimmy does; `None` for others.
    pub fn service(&self) -> Option<String> {
        let health = self.json("/health", None, Some(SHORT)).ok()?;
        let (name, version) = (health.get("service")?.as_str()?, health.get("version").and_then(Value::as_str));
        Some([Some(name), version].into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    /// Whether a llama-server has loaded its model and takes requests.
    pub fn is_ready(&self) -> bool {
        let health = self.json("/health", None, Some(SHORT));
        health.is_ok_and(|answer| answer.get("status").and_then(Value::as_str) == Some("ok"))
    }

    /// The size of the vocabulary of a llama-server's model.
    pub fn vocabulary(&self) -> Result<u32, Error> {
        let models = self.json("/v1/models", None, Some(SHORT))?;
        let size = models.pointer("/data/0/meta/n_vocab").and_then(Value::as_u64);
        size.and_then(|size| u32::try_from(size).ok())
            .filter(|size| *size > 0)
            .ok_or_else(|| bad("it does not say how large its vocabulary is"))
    }

    /// How many tokens a text is, by a llama-server's tokenizer; `None` for servers without one.
    pub fn count_tokens(&self, text: &str) -> Option<u32> {
        let answer = self.json("/tokenize", Some(json!({ "content": text })), Some(SHORT)).ok()?;
        u32::try_from(answer.get("tokens")?.as_array()?.len()).ok()
    }

    /// Sends a request; a POST where there is a body.
    fn send(
        &self,
        path: &str,
        body: Option<Value>,
        limit: Option<Duration>,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = ureq::http::Request::builder().uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        match body {
            None => {
                let request = self.agent.configure_request(request.body(())?).timeout_global(limit).build();
                self.agent.run(request)
            }
            Some(body) => {
                let request = request.method("POST").header("content-type", "application/json");
                let request = self.agent.configure_request(request.body(body.to_string())?);
                self.agent.run(request.timeout_global(limit).build())
            }
        }
    }

    /// The document that answers.
    fn json(&self, path: &str, body: Option<Value>, limit: Option<Duration>) -> Result<Value, Error> {
        let response = self.send(path, body, limit).map_err(bad)?;
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        response.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut bytes).map_err(bad)?;
        if status != 200 {
            return Err(refusal(status, &bytes));
        }
        serde_json::from_slice(&bytes).map_err(bad)
    }

    /// Asks on a thread of its own, and calls `meanwhile` until the answer is there; that may end it with an error.
    fn within_limit<T: Send + 'static>(
        &self,
        meanwhile: &mut dyn FnMut() -> Option<Error>,
        ask: impl FnOnce(&Self, Instant) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, answers) = channel();
        let endpoint = self.clone();
        std::thread::spawn(move || send.send(ask(&endpoint, Instant::now())));
        let answer = wait(self.limit, self.interrupted, |time| {
            let answer = match answers.recv_timeout(time) {
                Ok(answer) => Some(answer),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Err(bad("the thread that reads it ended"))),
            };
            answer.or_else(|| meanwhile().map(Err))
        });
        answer.unwrap_or_else(|stopped| {
            Err(match stopped {
                Stopped::Interrupted => Error::interrupted(),
                Stopped::TimedOut => Error::timed_out("llama-server", "answering", self.limit, Vec::new()),
            })
        })
    }

    /// The body of a question. `stream` is always said: some servers stream unless told otherwise.
    fn question(&self, ask: &Ask) -> Value {
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
        let body = self.question(ask);
        let answer = self.within_limit(&mut || None, move |endpoint, begin| {
            let sent = endpoint.send("/v1/chat/completions", Some(body), None);
            let response = sent.map_err(|error| endpoint.unreachable(error))?;
            let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
            let mut recording = Recording {
                status: response.status().as_u16(),
                content_type: content_type.map(str::to_string),
                ..Recording::default()
            };
            let mut taken = 0_usize;
            let read = pieces(response, |bytes| {
                taken = taken.saturating_add(bytes.len());
                recording.pieces.push(Piece { seconds: begin.elapsed().as_secs_f64(), bytes: bytes.to_vec() });
                if taken > MAX_RECORDED {
                    return Err(bad(format!("it is longer than {} MiB", MAX_RECORDED >> 20)));
                }
                Ok(true)
            });
            recording.broken = read.err().map(|error| error.message.trim_start_matches(BROKEN).to_string());
            recording.seconds = begin.elapsed().as_secs_f64();
            Ok(recording)
        });
        answer.map_err(|error| match error.kind {
            Kind::TimedOut => {
                let message = format!("the endpoint `{}` took longer than {} s", self.base, self.limit.as_secs());
                Error::new(Kind::TimedOut, message).with_hint("a larger --timeout, or a smaller --max-tokens")
            }
            _ => error,
        })
    }

    /// Runs `tokens` through a llama-server that only embeds. The time is by our clock: such answers have no timings.
    pub(super) fn embed(&self, tokens: &[u32], meanwhile: &mut dyn FnMut() -> Option<Error>) -> Result<Reply, Error> {
        let body = json!({ "content": tokens });
        self.within_limit(meanwhile, move |endpoint, start| {
            let answer = endpoint.json("/embedding", Some(body), None)?;
            let rows = answer.pointer("/0/embedding").and_then(Value::as_array);
            let rows = rows.ok_or_else(|| bad("no embedding came"))?;
            let finite = !rows.is_empty() && rows.iter().all(numbers);
            Ok(Reply { whole: start.elapsed(), finite, ..Reply::default() })
        })
    }

    /// Has a llama-server complete a prompt.
    pub fn complete(&self, request: &Request, meanwhile: &mut dyn FnMut() -> Option<Error>) -> Result<Reply, Error> {
        let mut body = json!({
            "prompt": request.prompt,
            "n_predict": request.n_predict,
            "cache_prompt": request.cache_prompt,
            "temperature": 0.0,
            "ignore_eos": true,
            "stream": true,
            "return_tokens": true,
            // All requests go to one slot, whose cache holds the prefix.
            "id_slot": 0,
        });
        let asked = request.probabilities;
        if asked && let Some(body) = body.as_object_mut() {
            body.insert("n_probs".to_string(), json!(1));
        }
        self.within_limit(meanwhile, move |endpoint, start| {
            let response = endpoint.send("/completion", Some(body), None).map_err(bad)?;
            let status = response.status().as_u16();
            if status != 200 {
                let mut bytes = Vec::new();
                let _ = response.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut bytes);
                return Err(refusal(status, &bytes));
            }
            let mut completion = Completion::new(start);
            let mut events = Events::default();
            pieces(response, |bytes| {
                events.push(bytes).map_err(bad)?.into_iter().try_for_each(|event| completion.take(&event, asked))?;
                Ok(!completion.is_over)
            })?;
            events.end().into_iter().try_for_each(|event| completion.take(&event, asked))?;
            completion.finish()
        })
    }
}

/// Gives the pieces of a body as they come to `each`, as long as that wants more.
fn pieces(
    response: ureq::http::Response<ureq::Body>,
    mut each: impl FnMut(&[u8]) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut body = response.into_body().into_reader();
    let mut piece = vec![0_u8; 64 << 10];
    loop {
        let n = body.read(&mut piece).map_err(bad)?;
        if n == 0 || !each(piece.get(..n).unwrap_or_default())? {
            return Ok(());
        }
    }
}

/// What a stream of a completion has said so far.
struct Completion {
    start: Instant,
    reply: Reply,
    is_over: bool,
}

impl Completion {
    fn new(start: Instant) -> Self {
        Self { start, reply: Reply { finite: true, ..Reply::default() }, is_over: false }
    }

    fn take(&mut self, event: &Event, asked: bool) -> Result<(), Error> {
        let Event::Data(text) = event else {
            self.is_over = true;
            return Ok(());
        };
        let value: Value = serde_json::from_str(text)
            .map_err(|_| bad(format!("`{}` is no event of a completion", shortened(text))))?;
        if let Some(error) = value.get("error").or_else(|| value.get("message").map(|_| &value)) {
            let status = error.get("code").and_then(Value::as_u64).unwrap_or(0);
            return Err(refused(status, message(error)));
        }
        let content = value.get("content").and_then(Value::as_str).unwrap_or_default();
        let tokens = value.get("tokens").and_then(Value::as_array).into_iter().flatten();
        let tokens: Vec<i32> = tokens.filter_map(|token| i32::try_from(token.as_i64()?).ok()).collect();
        let stop = value.get("stop").and_then(Value::as_bool) == Some(true);
        if !stop && (!content.is_empty() || !tokens.is_empty()) && self.reply.first_token.is_none() {
            self.reply.first_token = Some(self.start.elapsed());
        }
        self.reply.text.push_str(content);
        self.reply.tokens.extend(tokens);
        if asked && let Some(rows) = value.get("completion_probabilities").and_then(Value::as_array) {
            let is_number = |row: &Value| row.get("logprob").is_none_or(Value::is_number);
            self.reply.finite &= rows.iter().all(is_number);
        }
        if stop {
            let timings = value.get("timings").cloned().unwrap_or_default();
            self.reply.timings = serde_json::from_value(timings).map_err(|_| bad("the last event has no timings"))?;
            self.is_over = true;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Reply, Error> {
        if !self.is_over {
            return Err(bad("the stream broke off"));
        }
        self.reply.whole = self.start.elapsed();
        Ok(self.reply)
    }
}

/// Whether an array, however deep, holds numbers alone.
fn numbers(value: &Value) -> bool {
    value.as_array().map_or_else(|| value.is_number(), |values| values.iter().all(numbers))
}

/// How messages of [`bad`] begin.
const BROKEN: &str = "llama-server's answer cannot be read: ";

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn bad(why: impl ToString) -> Error {
    Error::bad_answer("llama-server", why.to_string())
}

fn refusal(status: u16, body: &[u8]) -> Error {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let words = value.get("error").map_or_else(|| shortened(&String::from_utf8_lossy(body)), message);
    refused(status.into(), words)
}

fn refused(status: u64, words: String) -> Error {
    let message = format!("llama-server refused the request: {words} (status {status})");
    Error::new(Kind::Refused(words), message).with_hint("fewer prompt tokens or a larger context (-c)")
}

fn message(error: &Value) -> String {
    let text = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    text.map_or_else(|| shortened(&error.to_string()), shortened)
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

/// The longest line that is taken of a stream, in bytes: the last event of a reply repeats the whole prompt.
pub const MAX_LINE: usize = 64 << 20;

/// One thing a stream of server-sent events said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The text after `data:`; several lines of one event are joined by line breaks.
    Data(String),
    /// `data: [DONE]`: nothing follows.
    Done,
}

/// A line that is longer than [`MAX_LINE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is longer than {} MiB", MAX_LINE >> 20)]
pub struct TooLong;

/// Takes bytes in pieces of any size and gives events. Bytes are decoded a whole line at a time, so that a character may be
/// cut anywhere; what is not UTF-8 becomes U+FFFD. Fields other than `data` and comments are passed over.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    data: Option<String>,
}

impl Events {
    /// The events that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            if self.line.len().saturating_add(text.len()) > MAX_LINE {
                return Err(TooLong);
            }
            self.line.extend_from_slice(text);
            if part.ends_with(b"\n") {
                events.extend(self.end_of_line());
            }
        }
        Ok(events)
    }

    /// The event that the end of the stream completes, if its last line was data.
    pub fn end(&mut self) -> Option<Event> {
        let event = self.end_of_line();
        event.or_else(|| self.end_of_line())
    }

    fn end_of_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            let data = self.data.take()?;
            return Some(if data.trim() == "[DONE]" { Event::Done } else { Event::Data(data) });
        }
        // llama.cpp of old sent errors in a field of that name.
        let value = line.strip_prefix("data:").or_else(|| line.strip_prefix("error:"))?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        self.data = Some(self.data.take().map_or_else(|| value.to_string(), |data| format!("{data}\n{value}")));
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(events: &[&str]) -> Result<Reply, Error> {
        let mut completion = Completion::new(Instant::now());
        events.iter().try_for_each(|event| completion.take(&Event::Data((*event).to_string()), true))?;
        completion.finish()
    }

    #[test]
    fn a_stream_adds_up() {
        let reply = complete(&[
            r#"{"content":"a","tokens":[7],"stop":false,"completion_probabilities":[{"logprob":-1.5}]}"#,
            r#"{"content":"b","tokens":[8],"stop":false}"#,
            r#"{"content":"","tokens":[],"stop":true,"timings":{"cache_n":3,"prompt_n":2,"prompt_per_second":10.5,"predicted_n":2,"predicted_per_second":4.25,"draft_n":1}}"#,
        ])
        .unwrap();
        assert_eq!((reply.text.as_str(), reply.tokens.as_slice(), reply.finite), ("ab", &[7, 8][..], true));
        assert_eq!((reply.timings.cache_n, reply.timings.prompt_per_second), (3, 10.5));
        assert!(reply.first_token.is_some());
    }

    #[test]
    fn what_is_no_number_is_seen() {
        let reply = complete(&[
            r#"{"content":"a","tokens":[7],"stop":false,"completion_probabilities":[{"logprob":null}]}"#,
            r#"{"content":"","stop":true,"timings":{}}"#,
        ]);
        assert!(!reply.unwrap().finite);
        assert!(!numbers(&json!([[1.0, null]])) && numbers(&json!([[1.0], [2]])));
    }

    #[test]
    fn errors_and_nonsense_are_told_apart() {
        for (events, expected) in [
            (&[r#"{"error":{"code":500,"message":"no"}}"#][..], "llama-server refused the request: no (status 500)"),
            (&["garbage"][..], "llama-server's answer cannot be read: `garbage` is no event of a completion"),
            (&[r#"{"content":"a"}"#][..], "llama-server's answer cannot be read: the stream broke off"),
            (
                &[r#"{"stop":true,"timings":3}"#][..],
                "llama-server's answer cannot be read: the last event has no timings",
            ),
        ] {
            assert_eq!(complete(events).unwrap_err().to_string(), expected);
        }
        let full = br#"{"error":{"code":400,"message":"request exceeds the available context size","n_ctx":2048}}"#;
        assert_eq!(
            refusal(400, full).to_string(),
            "llama-server refused the request: request exceeds the available context size (status 400)"
        );
    }

    #[test]
    fn an_address_is_taken_with_and_without_its_path() {
        for address in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/chat/completions"] {
            assert_eq!(Endpoint::new(address).unwrap().address(), "http://h:1", "{address}");
        }
        let here = |address: &str| Endpoint::new(address).unwrap().is_here();
        assert!(["http://127.0.0.1:1", "http://localhost", "http://[::1]:8080/v1"].into_iter().all(here));
        assert!(!here("http://h:1") && !here("http://10.0.0.1:8080"));
        for address in ["", "h:1", "ftp://h", "http://", "http:// h"] {
            assert!(Endpoint::new(address).is_err(), "{address}");
        }
    }

    #[test]
    fn streaming_is_always_said() {
        let endpoint = Endpoint { model: Some("m".into()), ..Endpoint::new("http://h:1").unwrap() };
        let ask = |stream| Ask { text: "x".into(), max_tokens: 4, temperature: 0.0, seed: 1, stream };
        let (whole, stream) = (endpoint.question(&ask(false)), endpoint.question(&ask(true)));
        let seen = (&whole["stream"], &whole["model"], whole.get("stream_options"));
        assert_eq!(seen, (&json!(false), &json!("m"), None));
        assert_eq!(stream["stream_options"]["include_usage"], json!(true));
    }

    const STREAM: &str = "data: {\"content\":\"na\u{ef}ve \u{1f600}\"}\r\n\r\n: a comment\n\nevent: x\ndata: one\ndata: two\n\ndata:[DONE]\n\n";

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_events(cuts in proptest::collection::vec(1_usize..9, 1..80)) {
            let mut reader = Events::default();
            let mut events = Vec::new();
            let mut rest = STREAM.as_bytes();
            for cut in cuts.iter().cycle().take(200) {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                events.extend(reader.push(piece).unwrap());
                rest = after;
            }
            events.extend(reader.push(rest).unwrap());
            events.extend(reader.end());
            let data = |text: &str| Event::Data(text.to_string());
            let expected = [data("{\"content\":\"na\u{ef}ve \u{1f600}\"}"), data("one\ntwo"), Event::Done];
            prop_assert_eq!(events, expected);
        }

        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut reader = Events::default();
            let events = reader.push(&bytes).unwrap();
            prop_assert!(events.len() <= bytes.len());
            prop_assert!(reader.end().is_none_or(|event| event != Event::Data("\n".repeat(400))));
        }
    }

    #[test]
    fn odd_streams_are_read_as_far_as_they_go() {
        let mut reader = Events::default();
        assert_eq!(reader.push(b"data: half").unwrap(), []);
        assert_eq!(reader.end(), Some(Event::Data("half".to_string())));
        assert_eq!(reader.end(), None);
        let events = reader.push(b"data: a\xc3\xff\n\n").unwrap();
        assert_eq!(events, [Event::Data("a\u{fffd}\u{fffd}".to_string())]);
        let piece = vec![b'x'; 16 << 20];
        let answers: Vec<bool> = (0..5).map(|_| reader.push(&piece).is_ok()).collect();
        assert_eq!(answers, [true, true, true, true, false]);
    }
}
