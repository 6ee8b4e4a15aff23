//! A recorded answer read: its text, counts and timings, and how sound its stream was.
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

use serde_json::Value;
use unicode_segmentation::UnicodeSegmentation as _;

use super::document::{Gaps, Item, Verdict};
use crate::runtime::client::{Event, Events, Recording, Timings};
use crate::stats;

/// How many faults of a kind are described.
const DESCRIBED: usize = 3;
/// What is generated in less, in seconds, may come at once because this computer was busy.
const SOON: f64 = 0.1;
/// Fewer deltas say nothing about arriving over time.
const FEW: usize = 8;

/// An answer, whether it came whole or as a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Content deltas with the seconds they came after; one for an answer in one piece.
    pub deltas: Vec<Delta>,
    /// What it thought aloud, where the server tells that apart.
    pub reasoning: String,
    pub finish_reason: Option<String>,
    /// Tokens of the prompt, by the server.
    pub prompt_tokens: Option<u32>,
    /// Generated tokens, by the server.
    pub generated_tokens: Option<u32>,
    pub timings: Option<Timings>,
    /// What the server refused it with, or what broke it.
    pub failure: Option<String>,
    pub faults: Faults,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    pub seconds: f64,
    /// Which read of the connection brought it.
    pub piece: usize,
    pub text: String,
}

/// What a stream did that it should not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults {
    /// Lines that are no field of server-sent events, and the like.
    pub framing: Vec<String>,
    /// Events that are no JSON, or no chunk of a completion.
    pub events: Vec<String>,
    pub empty: u32,
    /// Bytes that are no UTF-8, or half a surrogate pair.
    pub encoding: Vec<String>,
    pub finishes: u32,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// Events behind `[DONE]`.
    pub after_done: u32,
    pub after_finish: u32,
    pub chunks: u32,
}

impl Answer {
    pub fn text(&self) -> String {
        self.deltas.iter().map(|delta| delta.text.as_str()).collect()
    }

    /// Seconds until the first content.
    pub fn first_token(&self) -> Option<f64> {
        self.deltas.first().map(|delta| delta.seconds)
    }

    /// Seconds between contents; `None` for fewer than two.
    pub fn gaps(&self) -> Option<Gaps> {
        let all: Vec<f64> =
            self.deltas.windows(2).filter_map(|pair| Some(pair.get(1)?.seconds - pair.first()?.seconds)).collect();
        Some(Gaps { median: stats::median(&all)?, p95: stats::quantile(&all, 0.95)?, max: stats::max(&all)?, all })
    }

    pub fn whole(recording: &Recording) -> Self {
        let mut answer = Self::default();
        let body = recording.body();
        let value: Value = match serde_json::from_slice(&body) {
            Ok(value) => value,
            Err(_) if body.starts_with(b"data:") => {
                answer.failure = Some("it streams although `stream` is false".to_string());
                return answer;
            }
            Err(error) => {
                let why = recording.broken.clone().unwrap_or_else(|| format!("it is no JSON: {error}"));
                answer.failure = Some(of_status(recording.status, &why));
                return answer;
            }
        };
        answer.take_totals(&value);
        if let Some(error) = error_of(&value) {
            answer.failure = Some(error);
        } else if recording.status != 200 {
            answer.failure = Some(of_status(recording.status, "no completion"));
        }
        let message = value.pointer("/choices/0/message");
        answer.finish_reason = value.pointer("/choices/0/finish_reason").and_then(Value::as_str).map(str::to_string);
        answer.reasoning = message.and_then(|m| m.get("reasoning_content")?.as_str()).unwrap_or_default().to_string();
        match message.and_then(|message| message.get("content")?.as_str()) {
            Some(text) => answer.deltas.push(Delta { seconds: recording.seconds, piece: 0, text: text.to_string() }),
            None if answer.failure.is_none() && answer.reasoning.is_empty() => {
                answer.failure = Some("the answer has no content".to_string());
            }
            None => {}
        }
        answer
    }

    pub fn streamed(recording: &Recording) -> Self {
        let mut answer = Self::default();
        if recording.status != 200 {
            return Self::whole(recording);
        }
        let kind = recording.content_type.clone().unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with("text/event-stream") {
            answer.faults.framing.push(format!("content-type is `{kind}`, not text/event-stream"));
        }
        answer.look_at_bytes(&recording.body());
        let mut reader = Events::default();
        for (at, piece) in recording.pieces.iter().enumerate() {
            match reader.push(&piece.bytes) {
                Ok(events) => events.into_iter().for_each(|event| answer.take(event, piece.seconds, at)),
                Err(error) => {
                    answer.failure = Some(error.to_string());
                    return answer;
                }
            }
        }
        if let Some(event) = reader.end() {
            answer.faults.framing.push("the last event has no blank line behind it".to_string());
            answer.take(event, recording.seconds, recording.pieces.len());
        }
        if let Some(why) = &recording.broken {
            answer.failure.get_or_insert_with(|| format!("the stream broke off: {why}"));
        }
        if answer.faults.chunks == 0 && answer.failure.is_none() {
            answer.failure = Some("the stream holds no chunk of a completion".to_string());
        }
        answer
    }

    /// What the lines alone tell.
    fn look_at_bytes(&mut self, body: &[u8]) {
        for line in body.split(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(line);
            if std::str::from_utf8(line).is_err() {
                self.faults.encoding.push(format!("a line that is no UTF-8: `{}`", start_of(&text)));
            }
            let text = text.trim_end_matches('\r');
            let known = ["data", "event", "id", "retry", "error"];
            let is_field =
                |line: &str| line.split_once(':').is_some_and(|(name, _)| name.is_empty() || known.contains(&name));
            if !text.is_empty() && !is_field(text) {
                self.faults.framing.push(format!("a line of no field: `{}`", start_of(text)));
            }
        }
    }

    fn take(&mut self, event: Event, seconds: f64, piece: usize) {
        let Event::Data(data) = event else {
            self.faults.done = true;
            return;
        };
        if self.faults.done {
            self.faults.after_done = self.faults.after_done.saturating_add(1);
            return;
        }
        let value: Value = match serde_json::from_str(&data) {
            Ok(value) => value,
            Err(error) => {
                let fault = format!("`{}`: {error}", start_of(&data));
                let is_surrogate = ["surrogate", "hex escape"].iter().any(|word| error.to_string().contains(word));
                if is_surrogate { &mut self.faults.encoding } else { &mut self.faults.events }.push(fault);
                return;
            }
        };
        if let Some(error) = error_of(&value) {
            self.failure.get_or_insert(error);
            return;
        }
        self.take_totals(&value);
        let Some(choices) = value.get("choices").and_then(Value::as_array) else {
            self.faults.events.push(format!("`{}`: no choices", start_of(&data)));
            return;
        };
        self.faults.chunks = self.faults.chunks.saturating_add(1);
        let Some(choice) = choices.first() else { return };
        let delta = choice.get("delta");
        let string = |key: &str| delta.and_then(|delta| delta.get(key)?.as_str());
        self.reasoning.push_str(string("reasoning_content").unwrap_or_default());
        let finish = choice.get("finish_reason").and_then(Value::as_str);
        match string("content") {
            Some("") if finish.is_none() && string("role").is_none() => {
                self.faults.empty = self.faults.empty.saturating_add(1);
            }
            Some("") | None => {}
            Some(text) => {
                self.faults.after_finish = self.faults.after_finish.saturating_add(u32::from(self.faults.finishes > 0));
                self.deltas.push(Delta { seconds, piece, text: text.to_string() });
            }
        }
        if let Some(reason) = finish {
            self.faults.finishes = self.faults.finishes.saturating_add(1);
            self.finish_reason = Some(reason.to_string());
        }
    }

    /// Counts and timings, wherever they are.
    fn take_totals(&mut self, value: &Value) {
        let count = |path: &str| value.pointer(path).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        // Servers that do not count send zeros (shimmy 1.8.1); no request has no tokens at all.
        let counted = |path: &str| count(path).filter(|_| count("/usage/prompt_tokens") != Some(0));
        self.prompt_tokens = counted("/usage/prompt_tokens").or(self.prompt_tokens);
        self.generated_tokens = counted("/usage/completion_tokens").or(self.generated_tokens);
        let timings = value.get("timings").filter(|timings| timings.is_object());
        self.timings = timings.and_then(|timings| serde_json::from_value(timings.clone()).ok()).or(self.timings);
    }

    /// How sound the stream was. `whole` is the same answer in one piece, where there is one.
    pub fn health(&self, whole: Option<&str>) -> Vec<Item> {
        let faults = &self.faults;
        let deltas = format!("{} content deltas", self.deltas.len());
        let chunks = format!("{} chunks, {deltas}", faults.chunks);
        let empty = (faults.empty > 0).then(|| format!("{} empty deltas", faults.empty));
        let ending = format!("finish reason `{}`, then [DONE]", self.finish_reason.as_deref().unwrap_or_default());
        vec![
            item("server-sent events are framed validly", described(&faults.framing), &chunks),
            item("every event parses", described(&faults.events), &chunks),
            item("no delta is empty", empty, &deltas),
            self.duplicates(whole),
            item("no character is split (UTF-8)", self.broken_characters(whole), &chunks),
            item("no grapheme is broken between deltas", self.broken_graphemes(), &chunks),
            item("it ends with a finish reason and [DONE]", self.bad_end(), &ending),
            self.equality(whole),
            self.spread(),
        ]
    }

    /// A delta twice in a row may be right: only the text in one piece tells.
    fn duplicates(&self, whole: Option<&str>) -> Item {
        let what = "no delta is duplicated";
        let twice = self.deltas.windows(2).filter(|pair| matches!(pair, [a, b] if a.text == b.text)).count();
        let (text, seen) = (self.text(), format!("{twice} deltas equal the one before"));
        match whole {
            _ if twice == 0 => Item::held(what, true, "no two deltas in a row are equal"),
            Some(whole) if whole == text => {
                Item::held(what, true, format!("{seen}, and so it is in the text in one piece"))
            }
            Some(whole) if whole.chars().count() < text.chars().count() => {
                Item::held(what, false, format!("{seen}, and the text in one piece is shorter"))
            }
            _ => Item::open(what, format!("{seen}; without an equal text in one piece nobody can tell")),
        }
    }

    fn broken_characters(&self, whole: Option<&str>) -> Option<String> {
        let count = |text: &str| text.matches('\u{fffd}').count();
        let replaced = count(&self.text());
        // The model itself may have written half a character, which then is in the text in one piece too.
        let more = replaced.saturating_sub(whole.map_or(0, count));
        let replaced = (more > 0).then(|| format!("{more} replacement characters (U+FFFD) in the deltas"));
        described(&self.faults.encoding).or(replaced)
    }

    fn broken_graphemes(&self) -> Option<String> {
        let text = self.text();
        let mut boundaries: Vec<usize> = text.grapheme_indices(true).map(|(at, _)| at).collect();
        boundaries.push(text.len());
        let mut at = 0;
        let mut broken = Vec::new();
        for delta in &self.deltas {
            if boundaries.binary_search(&at).is_err() {
                broken.push(format!("a delta begins inside a grapheme: `{}`", start_of(&delta.text)));
            }
            at = at.saturating_add(delta.text.len());
        }
        described(&broken)
    }

    fn bad_end(&self) -> Option<String> {
        let faults = &self.faults;
        let mut wrong: Vec<String> = self.failure.iter().cloned().collect();
        match faults.finishes {
            0 => wrong.push("no finish reason".to_string()),
            1 => {}
            n => wrong.push(format!("{n} finish reasons")),
        }
        wrong.extend((!faults.done).then(|| "no [DONE]".to_string()));
        wrong.extend((faults.after_done > 0).then(|| format!("{} events behind [DONE]", faults.after_done)));
        wrong.extend(
            (faults.after_finish > 0).then(|| format!("{} deltas behind the finish reason", faults.after_finish)),
        );
        described(&wrong)
    }

    fn equality(&self, whole: Option<&str>) -> Item {
        let what = "the deltas together equal the text in one piece";
        let text = self.text();
        let Some(whole) = whole else { return Item::open(what, "there is no text in one piece to compare with") };
        let (streamed, plain) = (text.chars().count(), whole.chars().count());
        if whole == text {
            return Item::held(what, true, format!("{streamed} characters are equal"));
        }
        let same = whole.chars().zip(text.chars()).take_while(|(a, b)| a == b).count();
        let from = same.saturating_add(1);
        let differs = format!("they differ from character {from} on ({streamed} streamed, {plain} in one piece)");
        Item::held(what, false, differs)
    }

    /// Whether the deltas came at once although they were generated one after the other: then the time between them is no
    /// time of generation. Few deltas may come together by chance.
    pub fn is_burst(&self) -> bool {
        came_at_once(&self.spread())
    }

    fn spread(&self) -> Item {
        let n = self.deltas.len();
        if n < FEW {
            return Item::open(OVER_TIME, format!("{n} deltas are too few to tell"));
        }
        let mut pieces: Vec<usize> = self.deltas.iter().map(|delta| delta.piece).collect();
        pieces.dedup();
        let span = self.deltas.last().map_or(0.0, |last| last.seconds) - self.first_token().unwrap_or(0.0);
        let seen = format!("{n} deltas in {} reads over {span:.3} s", pieces.len());
        let needed = self.timings.map_or(0.0, |timings| timings.predicted_ms / 1000.0);
        let although =
            if needed > 0.0 { format!(", although they were generated in {needed:.3} s") } else { String::new() };
        let is_burst = pieces.len() <= (n / FEW).saturating_add(1) || span < 0.5 * needed;
        if is_burst && needed > 0.0 && needed < SOON {
            return Item::open(OVER_TIME, format!("{seen}{although}: too soon to tell"));
        }
        item(OVER_TIME, is_burst.then(|| format!("{seen}{although}")), &seen)
    }
}

/// The line of [`Answer::health`] that a burst fails.
const OVER_TIME: &str = "tokens arrive over time and not in one burst";

/// Whether a line of a stream's health says that it came in one burst.
pub fn came_at_once(line: &Item) -> bool {
    line.what == OVER_TIME && line.verdict == Verdict::Fail
}

/// What is wrong, or the evidence that nothing is.
#[expect(clippy::needless_pass_by_value, reason = "each caller has made it for this line")]
fn item(what: &str, wrong: Option<String>, evidence: &str) -> Item {
    Item::held(what, wrong.is_none(), wrong.as_deref().unwrap_or(evidence))
}

fn described(faults: &[String]) -> Option<String> {
    let first = faults.iter().take(DESCRIBED).cloned().collect::<Vec<_>>().join("; ");
    match faults.len() {
        0 => None,
        n if n > DESCRIBED => Some(format!("{first}; and {} more", n.saturating_sub(DESCRIBED))),
        _ => Some(first),
    }
}

fn start_of(text: &str) -> String {
    text.chars().take(60).collect()
}

fn of_status(status: u16, why: &str) -> String {
    if status == 200 { why.to_string() } else { format!("status {status}: {why}") }
}

fn error_of(value: &Value) -> Option<String> {
    let error = value.get("error")?;
    let message = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    Some(format!("the server refused: {}", message.map_or_else(|| start_of(&error.to_string()), start_of)))
}

#[cfg(test)]
mod tests {
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
        cut.pieces = vec![
            Piece { seconds: 1.0, bytes: body[..at].to_vec() },
            Piece { seconds: 2.0, bytes: body[at..].to_vec() },
        ];
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
}
