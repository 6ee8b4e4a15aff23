//! Every fault a stream can have, one case each.

use super::*;
use crate::runtime::client::Piece;

const GOOD: &[&str] = &[
    r#"data: {"choices":[{"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#,
    r#"data: {"choices":[{"delta":{"content":"na"},"finish_reason":null}]}"#,
    r#"data: {"choices":[{"delta":{"content":"na"},"finish_reason":null}]}"#,
    r#"data: {"choices":[{"delta":{"content":"ï"},"finish_reason":null}]}"#,
    r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
    r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4},"timings":{"predicted_n":4,"predicted_ms":1.0}}"#,
    "data: [DONE]",
];

fn recording(events: &[&str]) -> Recording {
    let pieces = events
        .iter()
        .zip(1_u8..)
        .map(|(event, at)| Piece { seconds: f64::from(at), bytes: format!("{event}\n\n").into_bytes() });
    Recording {
        status: 200,
        content_type: Some("text/event-stream".into()),
        pieces: pieces.collect(),
        seconds: 9.0,
        broken: None,
    }
}

/// What fails, with its detail.
fn failing(recording: &Recording, whole: Option<&str>) -> Vec<(String, String)> {
    let items = Answer::streamed(recording).health(whole);
    items.into_iter().filter(|item| item.verdict == Verdict::Fail).map(|item| (item.what, item.detail)).collect()
}

#[test]
fn a_sound_stream_passes_and_adds_up() {
    let answer = Answer::streamed(&recording(GOOD));
    assert_eq!((answer.text().as_str(), answer.first_token()), ("nanaï", Some(2.0)));
    assert_eq!((answer.prompt_tokens, answer.generated_tokens), (Some(3), Some(4)));
    assert_eq!(answer.gaps().map(|gaps| (gaps.median, gaps.max, gaps.all)), Some((1.0, 1.0, vec![1.0, 1.0])));
    assert_eq!(failing(&recording(GOOD), Some("nanaï")), []);
    let unknown: Vec<String> = answer
        .health(None)
        .into_iter()
        .filter(|item| item.verdict == Verdict::NotAssessed)
        .map(|item| item.what)
        .collect();
    assert_eq!(
        unknown,
        [
            "no delta is duplicated",
            "the deltas together equal the text in one piece",
            "tokens arrive over time and not in one burst"
        ]
    );
}

#[test]
fn every_fault_is_named() {
    let content =
        |text: &str| format!(r#"data: {{"choices":[{{"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#);
    let with = |at: usize, event: &str| {
        let mut events: Vec<String> = GOOD.iter().map(ToString::to_string).collect();
        events.insert(at, event.to_string());
        events
    };
    let without = |at: usize| {
        let mut events: Vec<String> = GOOD.iter().map(ToString::to_string).collect();
        events.remove(at);
        events
    };
    for (events, what, detail) in [
        (with(2, "nonsense"), "framed validly", "a line of no field: `nonsense`"),
        (with(2, "data: {broken"), "every event parses", "`{broken`"),
        (with(2, r#"data: {"x":1}"#), "every event parses", "no choices"),
        (with(2, &content("")), "no delta is empty", "1 empty deltas"),
        (with(2, &content("na")), "no delta is duplicated", "the text in one piece is shorter"),
        (with(2, &content(r"\ud83d")), "no character is split", "hex escape"),
        (with(2, &content("\u{fffd}")), "no character is split", "1 replacement characters"),
        (with(4, &content("\u{308}")), "no grapheme is broken", "begins inside a grapheme"),
        (without(4), "finish reason and [DONE]", "no finish reason"),
        (without(6), "finish reason and [DONE]", "no [DONE]"),
        (with(5, GOOD[4]), "finish reason and [DONE]", "2 finish reasons"),
        (with(5, &content("x")), "finish reason and [DONE]", "1 deltas behind the finish reason"),
        (with(7, &content("x")), "finish reason and [DONE]", "1 events behind [DONE]"),
        (with(2, r#"data: {"error":{"message":"boom"}}"#), "finish reason and [DONE]", "the server refused: boom"),
        (with(2, &content("x")), "equal the text in one piece", "they differ from character 3 on"),
    ] {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let failing = failing(&recording(&events), Some("nanaï"));
        assert!(
            failing.iter().any(|(name, found)| name.contains(what) && found.contains(detail)),
            "{what}: {detail}: {failing:?}"
        );
    }
}

#[test]
fn bytes_cut_inside_a_character_are_sound_but_bytes_that_are_none_are_not() {
    let mut cut = recording(GOOD);
    let body = cut.body();
    let at = body.windows(2).position(|pair| pair == "ï".as_bytes()).unwrap() + 1;
    cut.pieces =
        vec![Piece { seconds: 1.0, bytes: body[..at].to_vec() }, Piece { seconds: 2.0, bytes: body[at..].to_vec() }];
    assert_eq!(failing(&cut, Some("nanaï")), []);
    cut.pieces[1].bytes[0] = b'?';
    let failing = failing(&cut, Some("nanaï"));
    assert!(failing.iter().any(|(what, _)| what.starts_with("no character is split")), "{failing:?}");
}

#[test]
fn a_burst_is_seen_by_its_reads_and_by_the_servers_clock() {
    let mut events = vec![GOOD[0].to_string()];
    events.extend(
        (0..20).map(|n| format!(r#"data: {{"choices":[{{"delta":{{"content":"t{n} "}},"finish_reason":null}}]}}"#)),
    );
    events.extend(GOOD[4..].iter().map(ToString::to_string));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let burst = |recording: &Recording| failing(recording, None).iter().any(|(what, _)| what.contains("burst"));
    let spread = recording(&events);
    assert!(!burst(&spread));
    let mut at_once = spread.clone();
    let body = String::from_utf8(spread.body()).unwrap().replace("\"timings\"", "\"other\"");
    at_once.pieces = vec![Piece { seconds: 5.0, bytes: body.into_bytes() }];
    assert!(burst(&at_once));
    let mut fast = recording(&events);
    for piece in &mut fast.pieces {
        piece.seconds /= 1e9;
    }
    assert!(!burst(&fast), "20 tokens that took 1 ms may come at once");
    let slow: Vec<String> =
        events.iter().map(|event| event.replace("\"predicted_ms\":1.0", "\"predicted_ms\":1000.0")).collect();
    fast.pieces = recording(&slow.iter().map(String::as_str).collect::<Vec<_>>()).pieces;
    for piece in &mut fast.pieces {
        piece.seconds /= 1e9;
    }
    assert!(burst(&fast), "20 tokens that took 1 s may not");
}

#[test]
fn an_answer_in_one_piece_is_read_or_refused() {
    let whole = |status: u16, body: &str| {
        Answer::whole(&Recording {
            status,
            pieces: vec![Piece { seconds: 1.0, bytes: body.as_bytes().to_vec() }],
            seconds: 1.5,
            ..Recording::default()
        })
    };
    let good = whole(
        200,
        r#"{"choices":[{"finish_reason":"length","message":{"content":"hi","reasoning_content":"hm"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
    );
    assert_eq!((good.text().as_str(), good.reasoning.as_str(), good.generated_tokens), ("hi", "hm", Some(2)));
    assert_eq!((good.finish_reason.as_deref(), good.failure), (Some("length"), None));
    for (status, body, why) in [
        (200, "data: {}\n\n", "it streams although"),
        (200, "<html>", "it is no JSON"),
        (502, "<html>", "status 502: it is no JSON"),
        (500, r#"{"error":{"message":"no memory"}}"#, "the server refused: no memory"),
        (200, r#"{"choices":[]}"#, "the answer has no content"),
    ] {
        let failure = whole(status, body).failure.unwrap();
        assert!(failure.starts_with(why), "{failure}");
    }
}

#[test]
fn zeros_are_no_counts() {
    let body = r#"{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#;
    let pieces = vec![Piece { seconds: 1.0, bytes: body.into() }];
    let answer = Answer::whole(&Recording { status: 200, pieces, ..Recording::default() });
    assert_eq!((answer.text().as_str(), answer.prompt_tokens, answer.generated_tokens), ("a", None, None));
}

#[test]
fn shimmys_chunks_are_sound_without_usage() {
    let events = [
        r#"data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#,
        r#"data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":null,"content":"a"},"finish_reason":null}]}"#,
        r#"data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":null,"content":null},"finish_reason":"stop"}]}"#,
        "data: [DONE]",
    ];
    let answer = Answer::streamed(&recording(&events));
    assert_eq!((answer.text().as_str(), answer.generated_tokens, answer.timings), ("a", None, None));
    assert_eq!(failing(&recording(&events), Some("a")), []);
}
