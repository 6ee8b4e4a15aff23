//! The HTTP client of llama-server and of any OpenAI-compatible endpoint, and the reader of their streams. [I/O]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation))]

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::process::{never, wait};
use super::{Error, Kind, pseudo_random};

/// How long a short question may take.
const SHORT: Duration = Duration::from_secs(10);
/// The most that is kept of one answer, in bytes.
const MAX_ANSWER: usize = 256 << 20;
const EVENT_STREAM: &str = "text/event-stream";
/// The longest line that is taken of a stream, in bytes: the last event of a reply repeats the whole prompt.
const MAX_LINE: usize = 64 << 20;
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

/// What one read of a connection brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub seconds: f64,
    pub bytes: Vec<u8>,
}

/// An answer as it came over the connection.
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

/// One event of a stream of server-sent events.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The text after `data:`; several lines of one event are joined by line breaks.
    pub data: String,
    pub seconds: f64,
    /// Which read of the connection completed it.
    pub piece: usize,
    /// Whether a blank line ended it, and not the end of the stream.
    pub is_ended: bool,
}

impl Event {
    /// Whether it says that nothing follows.
    pub fn is_done(&self) -> bool {
        self.data.trim() == "[DONE]"
    }
}

impl Recording {
    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect()
    }

    /// Whether the server calls it a stream of events.
    pub fn is_stream(&self) -> bool {
        let kind = self.content_type.as_deref().and_then(|kind| kind.get(..EVENT_STREAM.len()));
        kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENT_STREAM))
    }

    /// The events of a stream. Bytes are decoded a whole line at a time, so that a character may be cut anywhere; what is not
    /// UTF-8 becomes U+FFFD. Fields other than `data` and comments are passed over.
    pub fn events(&self) -> Vec<Event> {
        let (mut events, mut line, mut data) = (Vec::new(), Vec::new(), None);
        for (piece, Piece { seconds, bytes }) in self.pieces.iter().enumerate() {
            for part in bytes.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    let data = end_of_line(&std::mem::take(&mut line), &mut data);
                    events.extend(data.map(|data| Event { data, seconds: *seconds, piece, is_ended: true }));
                }
            }
        }
        end_of_line(&line, &mut data);
        let (seconds, piece) = (self.seconds, self.pieces.len());
        events.extend(data.map(|data| Event { data, seconds, piece, is_ended: false }));
        events
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
    /// Tokens, or a text that the model tokenises.
    pub prompt: Value,
    /// Tokens to generate.
    pub n_predict: u32,
    /// Whether what the slot's cache shares with the prompt is kept instead of read again.
    pub cache_prompt: bool,
    /// Whether the probability of each token is asked for, which tells whether logits are numbers.
    pub probabilities: bool,
}

impl Request {
    /// `n` tokens of a prompt behind `depth` tokens, which are the same whatever the seed.
    pub fn behind(depth: u32, n: u32, n_vocab: u32, seed: u64, n_predict: u32) -> Self {
        let tokens = [pseudo_random(depth, n_vocab, 0), pseudo_random(n, n_vocab, seed)].concat();
        Self { prompt: json!(tokens), n_predict, cache_prompt: depth > 0, probabilities: false }
    }
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
    /// Tokens that were drafted, and those of them that were taken; 0 without speculation.
    pub draft_n: u32,
    pub draft_n_accepted: u32,
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
        for event in recording.events() {
            if event.is_done() || reply.take(&event.data, event.seconds)? {
                return Ok(reply);
            }
        }
        Err(bad(recording.broken.as_deref().unwrap_or("the stream broke off")))
    }

    /// Takes one event; whether it is the last.
    fn take(&mut self, text: &str, seconds: f64) -> Result<bool, Error> {
        let value: Value = serde_json::from_str(text)
            .map_err(|_| bad(format!("`{}` is not an event of a completion", shortened(text))))?;
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
            let (mut piece, mut room, mut line) = (vec![0_u8; 64 << 10], MAX_ANSWER, 0_usize);
            loop {
                let bytes = match body.read(&mut piece)? {
                    0 => return Ok(()),
                    n => piece.get(..n).unwrap_or_default().to_vec(),
                };
                let too_long = || format!("it is longer than {} MiB", MAX_ANSWER >> 20);
                room = room.checked_sub(bytes.len()).with_context(too_long)?;
                let last_line = bytes.rsplit(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len);
                line = if last_line < bytes.len() { last_line } else { line.saturating_add(bytes.len()) };
                if into.is_stream() && line > MAX_LINE {
                    anyhow::bail!("a line of the stream is longer than {} MiB", MAX_LINE >> 20);
                }
                into.pieces.push(Piece { seconds: begin.elapsed().as_secs_f64(), bytes });
            }
        };
        recording.broken = read(&mut recording).err().map(|error| error.to_string());
        recording.seconds = begin.elapsed().as_secs_f64();
        recording
    }

    /// Asks on a thread of its own, which is left to itself when the time is over or the person wants to stop.
    fn ask(&self, path: &'static str, body: Value) -> Result<Recording, Error> {
        let (send, answer) = channel();
        let endpoint = self.clone();
        std::thread::spawn(move || send.send(endpoint.fetch(path, Some(body), None)));
        wait(self.limit, self.interrupted, |time| answer.recv_timeout(time).ok())
            .map_err(|stopped| Error::stopped(stopped, "llama-server", "answering", self.limit, &[]))
    }

    /// Asks for a chat completion, and keeps what comes with the time it came.
    pub fn chat(&self, mut body: Value) -> Result<Recording, Error> {
        let streams = body.get("stream") == Some(&json!(true));
        if let Some(body) = body.as_object_mut() {
            body.extend(streams.then(|| ("stream_options".to_string(), json!({"include_usage": true}))));
            body.extend(self.model.as_ref().map(|model| ("model".to_string(), json!(model))));
        }
        match self.ask("/v1/chat/completions", body) {
            Ok(Recording { status: 0, broken: Some(why), .. }) => Err(self.unreachable(why)),
            Err(error) if error.kind == Kind::TimedOut => {
                let message = format!("the endpoint `{}` took longer than {} s", self.base, self.limit.as_secs());
                Err(Error::new(Kind::TimedOut, message).with_hint("a larger --timeout, or a smaller --max-tokens"))
            }
            answer => answer,
        }
    }

    /// Runs `tokens` through a llama-server that only embeds. The time is by our clock: such answers have no timings.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Reply, Error> {
        let recording = self.ask("/embedding", json!({ "content": tokens }))?;
        let answer = recording.json()?;
        let rows = answer.pointer("/0/embedding").and_then(Value::as_array);
        let rows = rows.ok_or_else(|| bad("no embedding was returned"))?;
        let finite = !rows.is_empty() && rows.iter().all(numbers);
        Ok(Reply { whole: Duration::from_secs_f64(recording.seconds), finite, ..Reply::default() })
    }

    pub fn complete(&self, request: &Request) -> Result<Reply, Error> {
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
        Reply::of(&self.ask("/completion", body)?)
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

/// The words of an `error` in an answer.
pub fn message(error: &Value) -> String {
    let text = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    text.map_or_else(|| shortened(&error.to_string()), shortened)
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

/// Takes one line of a stream; the data of the event that it ends, if it does.
fn end_of_line(line: &[u8], data: &mut Option<String>) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end_matches(['\r', '\n']);
    if line.is_empty() {
        return data.take();
    }
    // llama.cpp of old sent errors in a field of that name.
    let value = line.strip_prefix("data:").or_else(|| line.strip_prefix("error:"))?;
    let value = value.strip_prefix(' ').unwrap_or(value);
    *data = Some(data.take().map_or_else(|| value.to_string(), |data| format!("{data}\n{value}")));
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(events: &[&str]) -> Result<Reply, Error> {
        let bytes = format!("data: {}\n\n", events.join("\n\ndata: ")).into_bytes();
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
            let (mut pieces, mut rest) = (Vec::new(), STREAM.as_bytes());
            for cut in cuts.iter().cycle().take(200) {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let expected = ["{\"content\":\"na\u{ef}ve \u{1f600}\"}", "one\ntwo", "[DONE]"].map(|data| (data.to_string(), true));
            prop_assert_eq!(events(&pieces), expected);
        }
    }

    /// The data of the events, and whether a blank line ended them.
    fn events(pieces: &[&[u8]]) -> Vec<(String, bool)> {
        let pieces = pieces.iter().map(|bytes| Piece { seconds: 1.0, bytes: bytes.to_vec() }).collect();
        let events = Recording { pieces, ..Recording::default() }.events();
        events.into_iter().map(|event| (event.data, event.is_ended)).collect()
    }

    #[test]
    fn odd_streams_are_read_as_far_as_they_go() {
        assert_eq!(events(&[b"data: half"]), [("half".to_string(), false)]);
        assert_eq!(events(&[b"data: a\xc3\xff\n\n", b"da"]), [("a\u{fffd}\u{fffd}".to_string(), true)]);
    }
}
