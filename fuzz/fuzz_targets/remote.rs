//! A server that answers anything: any status, any headers, any body, any list of files.
#![no_main]

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::source::client::{Answer, Transport};
use moeplan::gguf::source::{Client, Failure, Limits, Url};
use moeplan_fuzz::Draw;

/// Answers with what the fuzzer's bytes say.
struct Script {
    bytes: Vec<u8>,
    at: Mutex<usize>,
}

const NAMES: [&str; 8] = [
    "content-range", "content-length", "etag", "location", "content-encoding", "content-type", "link", "retry-after",
];
const STATUSES: [u16; 8] = [206, 206, 200, 200, 302, 304, 404, 503];

impl Transport for Script {
    fn get(&self, _: &str, headers: &[(&str, String)], _: bool) -> Result<Answer, Failure> {
        let mut at = self.at.lock().expect("no panic holds it");
        let mut draw = Draw(self.bytes.get(*at..).unwrap_or_default());
        let status = STATUSES[usize::from(draw.below(8))];
        let mut answer = Vec::new();
        let asked = headers.iter().find(|(name, _)| *name == "range").map_or("", |(_, value)| value.as_str());
        let asked = asked.trim_start_matches("bytes=");
        if draw.below(2) == 0 && !asked.is_empty() {
            answer.push(("content-range".to_string(), format!("bytes {asked}/{}", draw.number())));
        }
        for _ in 0..draw.below(4) {
            answer.push((NAMES[usize::from(draw.below(8))].to_string(), draw.text()));
        }
        let length = (usize::from(draw.byte()) * 16).min(draw.0.len());
        let body = draw.0.get(..length).unwrap_or_default().to_vec();
        *at = self.bytes.len() - draw.0.len() + length;
        Ok(Answer { status, headers: answer, body: Box::new(Cursor::new(body)) })
    }
}

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        first_window: 256,
        step: 4096,
        requests: 12,
        backoff: Duration::ZERO,
        longest_wait: Duration::ZERO,
        parallel: 1,
        ..Limits::default()
    };
    let script = Arc::new(Script { bytes: bytes.to_vec(), at: Mutex::new(1) });
    let client = Client::over(script, limits, None, "https://hub.test", Some("secret".into())).expect("a client");
    if bytes.first().is_some_and(|first| first % 3 == 0) {
        if let Ok(quants) = client.quants("o/r") {
            for quant in quants.iter().take(2) {
                let _ = client.open_quant("o/r", quant);
            }
        }
    } else {
        let _ = client.open(&Url::parse("https://h/m-00001-of-00002.gguf").expect("an address"));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(url) = Url::parse(text) {
            let _ = (url.redirect("../x?y"), url.with_file_name("z").join(text));
        }
        let _ = moeplan::gguf::source::Location::parse(text);
    }
});
