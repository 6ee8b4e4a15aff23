//! The HTTP client of llama-server and of any OpenAI-compatible endpoint, and the reader of their streams. [I/O]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation))]

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::process::{never, wait};
use super::{Error, Kind};

/// How long a short question may take.
const SHORT: Duration = Duration::from_secs(10);
/// The most that is kept of one answer, in bytes.
const MAX_ANSWER: usize = 256 << 20;
/// The longest message of an error that is kept, in characters.
const MAX_MESSAGE: usize = 400;

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

#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub text: String,
    pub max_tokens: u32,
    /// 0 = the most likely token.
    pub temperature: f64,
    pub seed: u32,
    pub stream: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub seconds: f64,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    /// 0 = there was no answer.
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

    /// Refuses any status but 200.
    fn accepted(&self) -> Result<&Self, Error> {
        if matches!(self.status, 0 | 200) {
            return Ok(self);
        }
        let body = self.body();
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        let words = value.get("error").map_or_else(|| shortened(&String::from_utf8_lossy(&body)), message);
        Err(refused(self.status.into(), words))
    }

    fn json(&self) -> Result<Value, Error> {
        match &self.accepted()?.broken {
            Some(why) => Err(bad(why)),
            None => serde_json::from_slice(&self.body()).map_err(bad),
        }
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

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    pub text: String,
    pub tokens: Vec<i32>,
    pub timings: Timings,
    /// Until the first content came, by our clock; `None` when nothing was generated.
    pub first_token: Option<Duration>,
    pub whole: Duration,
    /// Whether every probability that was asked for was a number.
    pub finite: bool,
}

impl Reply {
    /// What the stream of a completion says.
    fn of(recording: &Recording) -> Result<Self, Error> {
        let whole = Duration::from_secs_f64(recording.accepted()?.seconds);
        let mut reply = Self { whole, finite: true, ..Self::default() };
        let mut events = Events::default();
        for piece in &recording.pieces {
            for event in events.push(&piece.bytes).map_err(bad)? {
                if reply.take(&event, piece.seconds)? {
                    return Ok(reply);
                }
            }
        }
        match events.end() {
            Some(event) if reply.take(&event, recording.seconds)? => Ok(reply),
            _ => Err(bad(recording.broken.as_deref().unwrap_or("the stream broke off"))),
        }
    }

    /// Takes one event; whether it is the last.
    fn take(&mut self, event: &Event, seconds: f64) -> Result<bool, Error> {
        let Event::Data(text) = event else { return Ok(true) };
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
        if !stop && (!content.is_empty() || !tokens.is_empty()) {
            self.first_token.get_or_insert(Duration::from_secs_f64(seconds));
        }
        self.text.push_str(content);
        self.tokens.extend(tokens);
        let rows = value.get("completion_probabilities").and_then(Value::as_array).into_iter().flatten();
        self.finite &= rows.into_iter().all(|row| row.get("logprob").is_none_or(Value::is_number));
        if stop {
            let timings = value.get("timings").cloned().unwrap_or_default();
            self.timings = serde_json::from_value(timings).map_err(|_| bad("the last event has no timings"))?;
        }
        Ok(stop)
    }
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
        Ok(Self {
            agent: config.new_agent(),
            base: base.to_string(),
            model: None,
            key: None,
            limit,
            interrupted: never,
        })
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

    pub fn models(&self) -> Result<Vec<String>, Error> {
        let answer = self.short("/v1/models", None).map_err(|error| self.unreachable(error))?;
        let rows = answer.get("data").and_then(Value::as_array).into_iter().flatten();
        Ok(rows.filter_map(|row| Some(row.get("id")?.as_str()?.to_string())).collect())
    }

    /// What a llama-server says of itself; null for others.
    pub fn properties(&self) -> Value {
        self.short("/props", None).unwrap_or_default()
    }

    /// The name and version that a server gives at `/health`, as shimmy does; `None` for others.
    pub fn service(&self) -> Option<String> {
        let health = self.short("/health", None).ok()?;
        let (name, version) = (health.get("service")?.as_str()?, health.get("version").and_then(Value::as_str));
        Some(version.map_or_else(|| name.to_string(), |version| format!("{name} {version}")))
    }

    /// Whether a llama-server has loaded its model and takes requests.
    pub fn is_ready(&self) -> bool {
        let health = self.short("/health", None);
        health.is_ok_and(|answer| answer.get("status").and_then(Value::as_str) == Some("ok"))
    }

    /// The size of the vocabulary of a llama-server's model.
    pub fn vocabulary(&self) -> Result<u32, Error> {
        let models = self.short("/v1/models", None)?;
        let size = models.pointer("/data/0/meta/n_vocab").and_then(Value::as_u64);
        let size = size.and_then(|size| u32::try_from(size).ok()).filter(|size| *size > 0);
        size.ok_or_else(|| bad("it does not say how large its vocabulary is"))
    }

    /// How many tokens a text is, by a llama-server's tokenizer; `None` for servers without one.
    pub fn count_tokens(&self, text: &str) -> Option<u32> {
        let answer = self.short("/tokenize", Some(json!({ "content": text }))).ok()?;
        u32::try_from(answer.get("tokens")?.as_array()?.len()).ok()
    }

    fn short(&self, path: &str, body: Option<Value>) -> Result<Value, Error> {
        self.fetch(path, body, Some(SHORT)).json()
    }

    /// Sends a request, a POST where there is a body, and keeps what comes with the time it came.
    fn fetch(&self, path: &str, body: Option<Value>, limit: Option<Duration>) -> Recording {
        let begin = Instant::now();
        let mut recording = Recording::default();
        let read = |into: &mut Recording| -> anyhow::Result<()> {
            let mut request = ureq::http::Request::builder().uri(format!("{}{path}", self.base));
            if let Some(key) = &self.key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let response = if let Some(body) = body {
                let request = request.method("POST").header("content-type", "application/json");
                let request = self.agent.configure_request(request.body(body.to_string())?);
                self.agent.run(request.timeout_global(limit).build())?
            } else {
                self.agent.run(self.agent.configure_request(request.body(())?).timeout_global(limit).build())?
            };
            into.status = response.status().as_u16();
            let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
            into.content_type = content_type.map(str::to_string);
            let mut body = response.into_body().into_reader();
            let (mut piece, mut room) = (vec![0_u8; 64 << 10], MAX_ANSWER);
            loop {
                let bytes = match body.read(&mut piece)? {
                    0 => return Ok(()),
                    n => piece.get(..n).unwrap_or_default().to_vec(),
                };
                let too_long = || format!("it is longer than {} MiB", MAX_ANSWER >> 20);
                room = room.checked_sub(bytes.len()).with_context(too_long)?;
                into.pieces.push(Piece { seconds: begin.elapsed().as_secs_f64(), bytes });
            }
        };
        recording.broken = read(&mut recording).err().map(|error| error.to_string());
        recording.seconds = begin.elapsed().as_secs_f64();
        recording
    }

    /// Asks on a thread of its own, and calls `meanwhile` until the answer is there; that may end it with an error.
    fn ask(
        &self,
        path: &'static str,
        body: Value,
        meanwhile: &mut dyn FnMut() -> Option<Error>,
    ) -> Result<Recording, Error> {
        let (send, answers) = channel();
        let endpoint = self.clone();
        std::thread::spawn(move || send.send(endpoint.fetch(path, Some(body), None)));
        let answer = wait(self.limit, self.interrupted, |time| match answers.recv_timeout(time) {
            Ok(answer) => Some(Ok(answer)),
            Err(RecvTimeoutError::Timeout) => meanwhile().map(Err),
            Err(RecvTimeoutError::Disconnected) => Some(Err(bad("the thread that reads it ended"))),
        });
        answer
            .unwrap_or_else(|stopped| Err(Error::stopped(stopped, "llama-server", "answering", self.limit, Vec::new())))
    }

    /// Asks, and keeps what comes with the time it came.
    pub fn chat(&self, ask: &Ask) -> Result<Recording, Error> {
        let mut body = json!({
            "messages": [{"role": "user", "content": ask.text}],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            // Always said: some servers stream unless told otherwise.
            "stream": ask.stream,
            // llama-server's own: every prompt is read whole, so that its speed is that of reading it.
            "cache_prompt": false,
        });
        if let Some(body) = body.as_object_mut() {
            body.extend(ask.stream.then(|| ("stream_options".to_string(), json!({"include_usage": true}))));
            body.extend(self.model.as_ref().map(|model| ("model".to_string(), json!(model))));
        }
        match self.ask("/v1/chat/completions", body, &mut || None) {
            Ok(Recording { status: 0, broken: Some(why), .. }) => Err(self.unreachable(why)),
            Err(error) if error.kind == Kind::TimedOut => {
                let message = format!("the endpoint `{}` took longer than {} s", self.base, self.limit.as_secs());
                Err(Error::new(Kind::TimedOut, message).with_hint("a larger --timeout, or a smaller --max-tokens"))
            }
            answer => answer,
        }
    }

    /// Runs `tokens` through a llama-server that only embeds. The time is by our clock: such answers have no timings.
    pub(super) fn embed(&self, tokens: &[u32], meanwhile: &mut dyn FnMut() -> Option<Error>) -> Result<Reply, Error> {
        let recording = self.ask("/embedding", json!({ "content": tokens }), meanwhile)?;
        let answer = recording.json()?;
        let rows = answer.pointer("/0/embedding").and_then(Value::as_array);
        let rows = rows.ok_or_else(|| bad("no embedding came"))?;
        let finite = !rows.is_empty() && rows.iter().all(numbers);
        Ok(Reply { whole: Duration::from_secs_f64(recording.seconds), finite, ..Reply::default() })
    }

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
        if let Some(body) = body.as_object_mut() {
            body.extend(request.probabilities.then(|| ("n_probs".to_string(), json!(1))));
        }
        Reply::of(&self.ask("/completion", body, meanwhile)?)
    }
}

/// Whether an array, however deep, holds numbers alone.
fn numbers(value: &Value) -> bool {
    value.as_array().map_or_else(|| value.is_number(), |values| values.iter().all(numbers))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn bad(why: impl ToString) -> Error {
    Error::bad_answer("llama-server", why.to_string())
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
        let bytes = events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>().into_bytes();
        Reply::of(&Recording { status: 200, pieces: vec![Piece { seconds: 0.5, bytes }], ..Recording::default() })
    }

    #[test]
    fn a_stream_adds_up() {
        let reply = complete(&[
            r#"{"content":"a","tokens":[7],"stop":false,"completion_probabilities":[{"logprob":-1.5}]}"#,
            r#"{"content":"b","tokens":[8],"stop":false}"#,
            r#"{"content":"","tokens":[],"stop":true,"timings":{"cache_n":3,"prompt_n":2,"prompt_per_second":10.5,"draft_n":1}}"#,
        ])
        .unwrap();
        assert_eq!((reply.text.as_str(), reply.tokens.as_slice(), reply.finite), ("ab", &[7, 8][..], true));
        assert_eq!((reply.timings.cache_n, reply.timings.prompt_per_second), (3, 10.5));
        assert_eq!(reply.first_token, Some(Duration::from_millis(500)));
        let reply = complete(&[
            r#"{"content":"a","tokens":[7],"stop":false,"completion_probabilities":[{"logprob":null}]}"#,
            r#"{"content":"","stop":true,"timings":{}}"#,
        ]);
        assert!(!reply.unwrap().finite);
        assert!(!numbers(&json!([[1.0, null]])) && numbers(&json!([[1.0], [2]])));
        let none = complete(&[r#"{"stop":true,"timings":3}"#]).unwrap_err().to_string();
        assert_eq!(none, "llama-server's answer cannot be read: the last event has no timings");
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
