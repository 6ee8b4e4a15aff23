//! Any text as MODEL, any list, any answer: no panic, and no more bytes than the bounds allow.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::http_server::{Answer, Server};
use super::*;
use crate::support::is_full;
use moeplan::bytes::Bytes;
use moeplan::gguf::source::hub::{self, HubFile};
use moeplan::gguf::source::{Location, Which};

/// Text in which the characters that matter are frequent.
fn tricky() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "(hf:|https://|http://|)[a-zA-Z0-9./:?#@%\\-_é\\\\]{0,40}",
        "[a-c./\\-]{0,9}(-0000[0-9]-of-0000[0-9])?(.gguf)?"
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if is_full() { 50_000 } else { 2000 }, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_location_or_an_error(model in tricky(), redirect in tricky()) {
        if let Ok(Location::Address(url)) = Location::parse(&model) {
            prop_assert!(url.as_str().starts_with(url.origin()) && url.path().starts_with('/'));
            let renamed = url.with_file_name("x.gguf");
            prop_assert_eq!((renamed.file_name(), renamed.origin()), ("x.gguf", url.origin()));
            if let Ok(next) = url.redirect(&redirect) {
                prop_assert!(!url.is_https() || next.is_https());
                prop_assert_eq!(Url::parse(next.as_str()).ok(), Some(next.clone()));
            }
        }
    }

    #[test]
    fn any_list_of_files_is_models_or_an_error(paths in proptest::collection::vec(tricky(), 0..12), wanted in tricky()) {
        let files = paths.into_iter().map(|path| HubFile { path, bytes: Bytes(u64::MAX), oid: None }).collect();
        if let Ok(quants) = hub::quants("o/r", files) {
            prop_assert!(quants.iter().all(|quant| !quant.files.is_empty() && !quant.name.is_empty()));
            prop_assert!(hub::choose("o/r", &quants, &Which::Default).is_ok());
            let _ = hub::choose("o/r", &quants, &Which::Quant(wanted));
        }
    }
}

/// What a server does with the request of that number, chosen by a case.
#[derive(Debug, Clone)]
struct Mood {
    status: u16,
    range: Option<String>,
    etag: Option<u8>,
    cut: Option<usize>,
    length: Option<u64>,
    is_good: bool,
    change: Option<(usize, u8)>,
}

fn mood() -> impl Strategy<Value = Mood> {
    let status = prop_oneof![Just(206_u16), Just(200), Just(304), Just(302), Just(416), Just(500), 100_u16..600];
    let range = proptest::option::of("bytes [0-9]{1,6}-[0-9]{1,6}/([0-9]{1,20}|\\*)");
    let cut = proptest::option::of(0..5000_usize);
    let change = proptest::option::of((0..5000_usize, any::<u8>()));
    (status, range, proptest::option::of(0..3_u8), cut, proptest::option::of(any::<u64>()), any::<bool>(), change)
        .prop_map(|(status, range, etag, cut, length, is_good, change)| Mood {
            status,
            range,
            etag,
            cut,
            length,
            is_good,
            change,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if is_full() { 500 } else { 60 }, ..ProptestConfig::default() })]

    #[test]
    fn any_server_is_a_model_or_an_error_within_the_bounds(moods in proptest::collection::vec(mood(), 1..6)) {
        let number = AtomicUsize::new(0);
        let server = Server::new(move |request| {
            let mood = &moods[number.fetch_add(1, Ordering::SeqCst) % moods.len()];
            let mut answer = if mood.is_good {
                Answer::range(request, &model(), "\"0\"")
            } else {
                let mut answer = Answer::status(mood.status).body(&model()[..9000]);
                answer.headers.extend(mood.range.iter().map(|range| ("Content-Range".to_string(), range.clone())));
                answer.headers.extend(mood.etag.iter().map(|tag| ("ETag".to_string(), format!("\"{tag}\""))));
                answer.length = mood.length.filter(|length| *length > 9000);
                answer
            };
            if let (Some((at, byte)), false) = (mood.change, answer.body.is_empty()) {
                let at = at % answer.body.len();
                answer.body[at] = byte;
            }
            Answer { cut: mood.cut, ..answer }
        });
        let quick = Duration::from_millis(200);
        let limits = Limits { requests: 12, backoff: Duration::ZERO, response: quick, read: quick, body: quick, header: 1 << 18, ..limits() };
        let client = Client::new(limits, None, "http://127.0.0.1:9", None).unwrap();
        if let Err(error) = open(&client, &server.url("/m.gguf")) {
            prop_assert!(!error.to_string().is_empty());
        }
        prop_assert!(client.moved() <= 12 << 18);
    }
}
