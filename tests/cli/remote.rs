//! Headers over HTTP from a server that misbehaves in every way it can; only the loopback address is asked.

mod any;
mod good;
mod hub;
mod local;
mod tls;
mod tricks;

use crate::support::http_server;
use crate::support::schemas;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gguf_builder::{Builder, V, text};
use moeplan::gguf::source::{Client, Error, Event, Failure, Limits, Url};
use moeplan::suggest::Hint as _;

/// Small windows and short waits, for tests; no server here is given up for its slowness, however busy the machine.
fn limits() -> Limits {
    Limits {
        first_window: 4 << 10,
        step: 16 << 10,
        backoff: Duration::from_millis(5),
        response: Duration::from_mins(1),
        read: Duration::from_mins(1),
        body: Duration::from_mins(1),
        ..Limits::default()
    }
}

fn client() -> Client {
    Client::new(limits(), None, "http://127.0.0.1:9", None).unwrap()
}

/// A client and the events it saw.
fn watched(mut client: Client) -> (Client, Arc<Mutex<Vec<Event>>>) {
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let seen = events.clone();
    client.watch = Arc::new(move |event| seen.lock().unwrap().push(event.clone()));
    (client, events)
}

/// A header of about 60 KiB: a vocabulary, and 128 KiB of tensor data behind it.
fn builder() -> Builder {
    let words = (0..3000).map(|n| text(&format!("word number {n}"))).collect();
    Builder::small().key("tokenizer.ggml.tokens", V::Arr(8, words)).tensor("output.weight", &[32, 1024], 0, 128 << 10)
}

fn model() -> Vec<u8> {
    builder().build()
}

fn header_bytes() -> u64 {
    builder().header().len() as u64
}

fn open(client: &Client, url: &str) -> Result<moeplan::gguf::Gguf, Error> {
    client.open(&Url::parse(url).unwrap())
}

/// Asserts that the model came whole.
fn is_model(opened: &Result<moeplan::gguf::Gguf, Error>) {
    match opened {
        Ok(gguf) => assert_eq!(gguf.header.tensors.len(), 3),
        Err(error) => panic!("{error}"),
    }
}

/// The failure of an address.
fn failure(opened: Result<moeplan::gguf::Gguf, Error>) -> (Failure, String) {
    let error = opened.expect_err("must fail");
    let hint = error.hint().unwrap_or_default().into_owned();
    match error {
        Error::Address { failure, .. } => (failure, hint),
        other => panic!("{other}"),
    }
}
