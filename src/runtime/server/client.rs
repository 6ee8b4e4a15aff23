//! llama-server's HTTP interface on loopback: is it ready, and complete this. [I/O]
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

use std::io::Read as _;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use super::sse::{Event, Reader};

/// How long a short question may take.
pub const SHORT: Duration = Duration::from_secs(10);
/// The most that is read of an answer that is no stream, in bytes.
const MAX_ANSWER: u64 = 256 << 20;
/// The longest message of an error that is kept, in characters.
const MAX_MESSAGE: usize = 400;

/// What to complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt.
    pub prompt: Input,
    /// Tokens to generate, greedily, whatever they are.
    pub n_predict: u32,
    /// Whether what the slot's cache shares with the prompt is kept instead of read again.
    pub cache_prompt: bool,
    /// Whether the probability of each token is asked for, which tells whether logits are numbers.
    pub probabilities: bool,
}

/// A prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Input {
    /// Tokens as they are.
    Tokens(Vec<u32>),
    /// A text, tokenised by the model.
    Text(String),
}

impl Request {
    fn body(&self) -> Value {
        let mut body = json!({
            "prompt": self.prompt,
            "n_predict": self.n_predict,
            "cache_prompt": self.cache_prompt,
            "temperature": 0.0,
            "ignore_eos": true,
            "stream": true,
            "return_tokens": true,
            // All requests go to one slot, whose cache holds the prefix.
            "id_slot": 0,
        });
        if self.probabilities
            && let Some(body) = body.as_object_mut()
        {
            body.insert("n_probs".to_string(), json!(1));
        }
        body
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
    /// Time for them.
    pub prompt_ms: f64,
    /// Prompt tokens/s.
    pub prompt_per_second: f64,
    /// Generated tokens.
    pub predicted_n: u32,
    /// Time for them.
    pub predicted_ms: f64,
    /// Generated tokens/s.
    pub predicted_per_second: f64,
}

/// What came of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// What was generated.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<i32>,
    /// The server's own clock.
    pub timings: Timings,
    /// Until the first content came, by our clock; `None` when nothing was generated.
    pub first_token: Option<Duration>,
    /// Until the end, by our clock.
    pub whole: Duration,
    /// Whether every probability that was asked for was a number.
    pub finite: bool,
}

/// A connection to one server.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

/// What asks a server of llama.cpp's kind: no proxy, no redirects, an error status is an answer.
pub fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent(concat!("moeplan/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(SHORT))
        // Every request its own connection: llama-server closes one that has waited for 5 s.
        .max_idle_connections(0)
        .build();
    config.new_agent()
}

impl Client {
    /// To `http://HOST:PORT`.
    pub fn new(base: &str) -> Self {
        Self { agent: agent(), base: base.to_string() }
    }

    /// Whether the model is loaded and requests are taken.
    pub fn is_ready(&self) -> bool {
        self.get("/health").is_ok_and(|answer| answer.get("status").and_then(Value::as_str) == Some("ok"))
    }

    /// The size of the model's vocabulary.
    pub fn vocabulary(&self) -> Result<u32, Error> {
        let models = self.get("/v1/models")?;
        let size = models.pointer("/data/0/meta/n_vocab").and_then(Value::as_u64);
        size.and_then(|size| u32::try_from(size).ok())
            .filter(|size| *size > 0)
            .ok_or_else(|| Error::Answer("it does not say how large its vocabulary is".to_string()))
    }

    fn get(&self, path: &str) -> Result<Value, Error> {
        let request = self.agent.get(format!("{}{path}", self.base)).config().timeout_global(Some(SHORT)).build();
        let (status, body) = read(request.call())?;
        document(status, &body)
    }

    /// Runs `tokens` through a server that only embeds. The time is by our clock: such answers have no timings.
    pub fn embed(&self, tokens: &[u32]) -> Pending {
        let (client, body) = (self.clone(), json!({ "content": tokens }));
        Pending::new(move |start| {
            let (status, body) = read(client.post("/embedding", &body))?;
            let answer = document(status, &body)?;
            let rows = answer.pointer("/0/embedding").and_then(Value::as_array);
            let rows = rows.ok_or_else(|| Error::Answer("no embedding came".to_string()))?;
            let finite = !rows.is_empty() && rows.iter().all(numbers);
            Ok(Reply { whole: start.elapsed(), finite, ..Reply::default() })
        })
    }

    /// Completes a prompt.
    pub fn complete(&self, request: &Request) -> Pending {
        let (client, body, asked) = (self.clone(), request.body(), request.probabilities);
        Pending::new(move |start| {
            let response = client.post("/completion", &body).map_err(broken)?;
            let status = response.status().as_u16();
            let mut body = response.into_body().into_reader();
            if status != 200 {
                let mut bytes = Vec::new();
                let _ = body.take(MAX_ANSWER).read_to_end(&mut bytes);
                return Err(refusal(status, &bytes));
            }
            let mut collected = Collected { start, reply: Reply { finite: true, ..Reply::default() }, is_over: false };
            let mut reader = Reader::default();
            let mut piece = vec![0_u8; 64 << 10];
            while !collected.is_over {
                let n = body.read(&mut piece).map_err(|error| Error::Answer(error.to_string()))?;
                let events = if n == 0 {
                    reader.end().into_iter().collect()
                } else {
                    reader.push(piece.get(..n).unwrap_or(&[])).map_err(|error| Error::Answer(error.to_string()))?
                };
                for event in events {
                    collected.take(event, asked)?;
                }
                if n == 0 {
                    break;
                }
            }
            collected.finish()
        })
    }

    fn post(&self, path: &str, body: &Value) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        request.send(body.to_string())
    }
}

/// A request under way, on a thread of its own, so that the one who waits can look after other things.
#[derive(Debug)]
pub struct Pending {
    answers: Receiver<Result<Reply, Error>>,
}

impl Pending {
    fn new(ask: impl FnOnce(Instant) -> Result<Reply, Error> + Send + 'static) -> Self {
        let (send, answers) = channel();
        std::thread::spawn(move || {
            // Nobody may be waiting any more.
            let _ = send.send(ask(Instant::now()));
        });
        Self { answers }
    }

    /// The answer, if it comes within `limit`.
    pub fn wait(&self, limit: Duration) -> Option<Result<Reply, Error>> {
        self.answers.recv_timeout(limit).ok()
    }
}

/// What a stream has said so far.
struct Collected {
    start: Instant,
    reply: Reply,
    is_over: bool,
}

impl Collected {
    fn take(&mut self, event: Event, asked: bool) -> Result<(), Error> {
        let Event::Data(text) = event else {
            self.is_over = true;
            return Ok(());
        };
        let value: Value = serde_json::from_str(&text)
            .map_err(|_| Error::Answer(format!("`{}` is no event of a completion", shortened(&text))))?;
        if let Some(error) = value.get("error").or_else(|| value.get("message").map(|_| &value)) {
            let status = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
            return Err(Error::Refused { status: status.unwrap_or(0), message: message(error) });
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
            self.reply.timings = serde_json::from_value(timings)
                .map_err(|_| Error::Answer("the last event has no timings".to_string()))?;
            self.is_over = true;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Reply, Error> {
        if !self.is_over {
            return Err(Error::Answer("the stream broke off".to_string()));
        }
        self.reply.whole = self.start.elapsed();
        Ok(self.reply)
    }
}

/// Whether an array, however deep, holds numbers alone.
fn numbers(value: &Value) -> bool {
    value.as_array().map_or_else(|| value.is_number(), |values| values.iter().all(numbers))
}

/// Status and body of an answer.
fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, Vec<u8>), Error> {
    let response = answer.map_err(broken)?;
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    let mut body = response.into_body().into_reader().take(MAX_ANSWER);
    body.read_to_end(&mut bytes).map_err(|error| Error::Answer(error.to_string()))?;
    Ok((status, bytes))
}

fn document(status: u16, body: &[u8]) -> Result<Value, Error> {
    if status != 200 {
        return Err(refusal(status, body));
    }
    serde_json::from_slice(body).map_err(|error| Error::Answer(error.to_string()))
}

fn refusal(status: u16, body: &[u8]) -> Error {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = match value.get("error") {
        Some(error) => message(error),
        None => shortened(&String::from_utf8_lossy(body)),
    };
    Error::Refused { status, message }
}

fn message(error: &Value) -> String {
    let text = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    text.map_or_else(|| shortened(&error.to_string()), shortened)
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: ureq::Error) -> Error {
    Error::Answer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(events: &[&str]) -> Result<Reply, Error> {
        let mut collected =
            Collected { start: Instant::now(), reply: Reply { finite: true, ..Reply::default() }, is_over: false };
        for event in events {
            collected.take(Event::Data((*event).to_string()), true)?;
        }
        collected.finish()
    }

    #[test]
    fn a_stream_adds_up() {
        let reply = collect(&[
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
        let reply = collect(&[
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
            assert_eq!(collect(events).unwrap_err().to_string(), expected);
        }
        let full = br#"{"error":{"code":400,"message":"request exceeds the available context size","n_ctx":2048}}"#;
        assert_eq!(
            refusal(400, full).to_string(),
            "llama-server refused the request: request exceeds the available context size (status 400)"
        );
    }
}
