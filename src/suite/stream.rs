//! A recorded answer read: its text, counts and timings, and how sound its stream was.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use unicode_segmentation::UnicodeSegmentation as _;

use super::document::{Gaps, Item, Verdict};
use crate::runtime::client::{Event, Recording, Timings, message};
use crate::stats;

/// How many faults of a kind are described.
const DESCRIBED: usize = 3;
/// What is generated in less, in seconds, may come at once because this computer was busy.
const SOON: f64 = 0.1;
/// Fewer deltas say nothing about arriving over time.
const FEW: usize = 8;

// What is checked of a stream.
const FRAMING: &str = "server-sent events are framed validly";
const EVENTS: &str = "every event parses";
const EMPTY: &str = "no delta is empty";
const TWICE: &str = "no delta is duplicated";
const CHARACTERS: &str = "no character is split (UTF-8)";
const GRAPHEMES: &str = "no grapheme is broken between deltas";
const END: &str = "it ends with a finish reason and [DONE]";
const EQUAL: &str = "the deltas together equal the non-streamed text";
const OVER_TIME: &str = "tokens arrive over time and not in one burst";

/// An answer, whether it came whole or as a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Content deltas with the seconds they came after; one for an answer in one piece.
    pub deltas: Vec<Delta>,
    /// What it thought aloud, where the server tells that apart.
    pub reasoning: String,
    pub finish_reason: Option<String>,
    /// Tokens by the server's count.
    pub prompt_tokens: Option<u32>,
    pub generated_tokens: Option<u32>,
    pub timings: Option<Timings>,
    /// What the server refused it with, or what broke it.
    pub failure: Option<String>,
    /// What a stream did that it should not, by the check that it fails.
    pub faults: Vec<(&'static str, String)>,
    /// What it did too often, by the check that it fails, and how often.
    pub(super) counts: BTreeMap<(&'static str, &'static str), u32>,
    pub(super) chunks: u32,
    pub(super) finishes: u32,
    pub(super) is_done: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    pub seconds: f64,
    /// Which read of the connection brought it.
    pub piece: usize,
    pub text: String,
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
        let with_status = |why: &str| match recording.status {
            200 => why.to_string(),
            status => format!("status {status}: {why}"),
        };
        let value: Value = match serde_json::from_slice(&body) {
            Ok(value) => value,
            Err(error) => {
                answer.failure = Some(match &recording.broken {
                    _ if body.starts_with(b"data:") => "it streams although `stream` is false".to_string(),
                    Some(why) => with_status(why),
                    None => with_status(&format!("it is not JSON: {error}")),
                });
                return answer;
            }
        };
        answer.take_totals(&value);
        let no_completion = || (recording.status != 200).then(|| with_status("no completion"));
        answer.failure = error_of(&value).or_else(no_completion);
        let string = |path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_string);
        answer.finish_reason = string("/choices/0/finish_reason");
        answer.reasoning = string("/choices/0/message/reasoning_content").unwrap_or_default();
        match string("/choices/0/message/content") {
            Some(text) => answer.deltas.push(Delta { seconds: recording.seconds, piece: 0, text }),
            None if answer.failure.is_none() && answer.reasoning.is_empty() => {
                answer.failure = Some("the answer has no content".to_string());
            }
            None => {}
        }
        answer
    }

    pub fn streamed(recording: &Recording) -> Self {
        if recording.status != 200 {
            return Self::whole(recording);
        }
        let mut answer = Self::default();
        if !recording.is_stream() {
            let kind = recording.content_type.as_deref().unwrap_or_default();
            answer.faults.push((FRAMING, format!("content-type is `{kind}`, not text/event-stream")));
        }
        for line in recording.body().split(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(line);
            if std::str::from_utf8(line).is_err() {
                answer.faults.push((CHARACTERS, format!("a line that is not UTF-8: `{}`", start_of(&text))));
            }
            let text = text.trim_end_matches('\r');
            let name = text.split_once(':').map(|(name, _)| name);
            let is_field = name.is_some_and(|name| ["", "data", "event", "id", "retry", "error"].contains(&name));
            if !text.is_empty() && !is_field {
                answer.faults.push((FRAMING, format!("a line without a field: `{}`", start_of(text))));
            }
        }
        for event in recording.events() {
            if !event.is_ended {
                answer.faults.push((FRAMING, "the last event has no blank line after it".to_string()));
            }
            answer.take(&event);
        }
        if let Some(why) = &recording.broken {
            answer.failure.get_or_insert_with(|| format!("the stream broke off: {why}"));
        }
        if answer.chunks == 0 {
            answer.failure.get_or_insert_with(|| "the stream holds no chunk of a completion".to_string());
        }
        answer
    }

    fn take(&mut self, event: &Event) {
        let Event { data, seconds, piece, .. } = event;
        if self.is_done || event.is_done() {
            if self.is_done && !event.is_done() {
                self.count(END, "events after [DONE]");
            }
            self.is_done = true;
            return;
        }
        let value: Value = match serde_json::from_str(data) {
            Ok(value) => value,
            Err(error) => {
                let why = error.to_string();
                let is_surrogate = why.contains("surrogate") || why.contains("hex escape");
                let fails = if is_surrogate { CHARACTERS } else { EVENTS };
                return self.faults.push((fails, format!("`{}`: {why}", start_of(data))));
            }
        };
        if let Some(error) = error_of(&value) {
            self.failure.get_or_insert(error);
            return;
        }
        self.take_totals(&value);
        let Some(choices) = value.get("choices").and_then(Value::as_array) else {
            return self.faults.push((EVENTS, format!("`{}`: no choices", start_of(data))));
        };
        self.chunks += 1;
        let Some(choice) = choices.first() else { return };
        let delta = |key: &str| choice.get("delta")?.get(key)?.as_str();
        self.reasoning.push_str(delta("reasoning_content").unwrap_or_default());
        let finish = choice.get("finish_reason").and_then(Value::as_str);
        match delta("content") {
            Some("") if finish.is_none() && delta("role").is_none() => self.count(EMPTY, "empty deltas"),
            Some("") | None => {}
            Some(text) => {
                if self.finishes > 0 {
                    self.count(END, "deltas after the finish reason");
                }
                self.deltas.push(Delta { seconds: *seconds, piece: *piece, text: text.to_string() });
            }
        }
        if let Some(reason) = finish {
            self.finishes += 1;
            self.finish_reason = Some(reason.to_string());
        }
    }

    fn count(&mut self, fails: &'static str, what: &'static str) {
        *self.counts.entry((fails, what)).or_default() += 1;
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
        let mut faults = self.faults.clone();
        let replaced = |text: &str| u32::try_from(text.matches('\u{fffd}').count()).unwrap_or(u32::MAX);
        // The model itself may have written half a character, which then is in the text in one piece too.
        let more = replaced(&self.text()).saturating_sub(whole.map_or(0, replaced));
        let finishes = if self.finishes > 1 { self.finishes } else { 0 };
        let counts = self.counts.iter().map(|(key, n)| (*key, *n));
        let more = ((CHARACTERS, "replacement characters (U+FFFD) in the deltas"), more);
        let counts = counts.chain([more, ((END, "finish reasons"), finishes)]).filter(|(_, n)| *n > 0);
        faults.extend(counts.map(|((fails, what), n)| (fails, format!("{n} {what}"))));
        let ends = [
            self.failure.clone(),
            (self.finishes == 0).then(|| "no finish reason".to_string()),
            (!self.is_done).then(|| "no [DONE]".to_string()),
        ];
        faults.extend(ends.into_iter().flatten().map(|fault| (END, fault)));
        faults.extend(
            self.broken_graphemes()
                .map(|text| (GRAPHEMES, format!("a delta begins inside a grapheme: `{}`", start_of(text)))),
        );
        // What is wrong, or the evidence that nothing is.
        let line = |what: &str, evidence: &str| {
            let found: Vec<&str> =
                faults.iter().filter(|(of, _)| *of == what).map(|(_, fault)| fault.as_str()).collect();
            let first = found.iter().take(DESCRIBED).copied().collect::<Vec<_>>().join("; ");
            match found.len().saturating_sub(DESCRIBED) {
                _ if found.is_empty() => Item::held(what, true, evidence),
                0 => Item::held(what, false, first),
                more => Item::held(what, false, format!("{first}; and {more} more")),
            }
        };
        let deltas = format!("{} content deltas", self.deltas.len());
        let chunks = format!("{} chunks, {deltas}", self.chunks);
        let ending = format!("finish reason `{}`, then [DONE]", self.finish_reason.as_deref().unwrap_or_default());
        vec![
            line(FRAMING, &chunks),
            line(EVENTS, &chunks),
            line(EMPTY, &deltas),
            self.duplicates(whole),
            line(CHARACTERS, &chunks),
            line(GRAPHEMES, &chunks),
            line(END, &ending),
            self.equality(whole),
            self.spread(),
        ]
    }

    /// A delta twice in a row may be right: only the text in one piece tells.
    fn duplicates(&self, whole: Option<&str>) -> Item {
        let twice = self.deltas.windows(2).filter(|pair| matches!(pair, [a, b] if a.text == b.text)).count();
        let (text, seen) = (self.text(), format!("{twice} deltas equal the one before"));
        match whole {
            _ if twice == 0 => Item::held(TWICE, true, "no two deltas in a row are equal"),
            Some(whole) if whole == text => {
                Item::held(TWICE, true, format!("{seen}, and so it is in the non-streamed text"))
            }
            Some(whole) if whole.chars().count() < text.chars().count() => {
                Item::held(TWICE, false, format!("{seen}, and the non-streamed text is shorter"))
            }
            _ => Item::open(TWICE, format!("{seen}; without an equal non-streamed text this cannot be decided")),
        }
    }

    fn broken_graphemes(&self) -> impl Iterator<Item = &str> {
        let text = self.text();
        let boundaries: BTreeSet<usize> = text.grapheme_indices(true).map(|(at, _)| at).chain([text.len()]).collect();
        let mut at = 0_usize;
        self.deltas.iter().map(|delta| delta.text.as_str()).filter(move |text| {
            let is_inside = !boundaries.contains(&at);
            at += text.len();
            is_inside
        })
    }

    fn equality(&self, whole: Option<&str>) -> Item {
        let text = self.text();
        let Some(whole) = whole else { return Item::open(EQUAL, "there is no non-streamed text to compare with") };
        let (streamed, plain) = (text.chars().count(), whole.chars().count());
        if whole == text {
            return Item::held(EQUAL, true, format!("{streamed} characters are equal"));
        }
        let same = whole.chars().zip(text.chars()).take_while(|(a, b)| a == b).count();
        let from = same + 1;
        let differs = format!("they differ from character {from} on ({streamed} streamed, {plain} in one piece)");
        Item::held(EQUAL, false, differs)
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
        if pieces.len() > n / FEW + 1 && span >= 0.5 * needed {
            Item::held(OVER_TIME, true, seen)
        } else if needed > 0.0 && needed < SOON {
            Item::open(OVER_TIME, format!("{seen}{although}: too soon to tell"))
        } else {
            Item::held(OVER_TIME, false, format!("{seen}{although}"))
        }
    }
}

/// Whether a line of a stream's health says that it came in one burst.
pub fn came_at_once(line: &Item) -> bool {
    line.what == OVER_TIME && line.verdict == Verdict::Fail
}

fn start_of(text: &str) -> String {
    text.chars().take(60).collect()
}

fn error_of(value: &Value) -> Option<String> {
    Some(format!("the server refused: {}", message(value.get("error")?)))
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

    fn content(text: &str) -> String {
        format!(r#"data: {{"choices":[{{"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#)
    }

    /// A recording of one read an event, a second apart.
    fn recording<T: AsRef<str>>(events: &[T]) -> Recording {
        let piece = |(event, at): (&T, u8)| Piece {
            seconds: f64::from(at),
            bytes: format!("{}\n\n", event.as_ref()).into_bytes(),
        };
        let pieces = events.iter().zip(1_u8..).map(piece).collect();
        let content_type = Some("text/event-stream".into());
        Recording { status: 200, content_type, pieces, seconds: 9.0, broken: None }
    }

    /// What fails, with its detail.
    fn failing(recording: &Recording, whole: Option<&str>) -> Vec<String> {
        let items = Answer::streamed(recording).health(whole);
        let failed = items.into_iter().filter(|item| item.verdict == Verdict::Fail);
        failed.map(|item| format!("{}: {}", item.what, item.detail)).collect()
    }

    #[test]
    fn a_sound_stream_passes_and_adds_up() {
        let answer = Answer::streamed(&recording(GOOD));
        assert_eq!((answer.text().as_str(), answer.first_token()), ("nanaï", Some(2.0)));
        assert_eq!((answer.prompt_tokens, answer.generated_tokens), (Some(3), Some(4)));
        assert_eq!(answer.gaps().map(|gaps| (gaps.median, gaps.max, gaps.all)), Some((1.0, 1.0, vec![1.0, 1.0])));
        assert_eq!(failing(&recording(GOOD), Some("nanaï")), Vec::<String>::new());
        let open = answer.health(None).into_iter().filter(|item| item.verdict == Verdict::NotAssessed);
        let open: Vec<String> = open.map(|item| item.what).collect();
        assert_eq!(open, ["no delta is duplicated", "the deltas together equal the non-streamed text", OVER_TIME]);
    }

    /// The faults that the endpoint of `tests/server/suite.rs` does not have.
    #[test]
    fn every_fault_is_named() {
        for (at, event, expected) in [
            (2, "nonsense", "framed validly: a line without a field: `nonsense`"),
            (2, r#"data: {"x":1}"#, "every event parses: `{\"x\":1}`: no choices"),
            (2, &content(r"\ud83d"), "no character is split (UTF-8): `{\"choices\""),
            (2, &content("\u{fffd}"), "no character is split (UTF-8): 1 replacement characters"),
            (5, GOOD[4], "finish reason and [DONE]: 2 finish reasons"),
            (5, &content("x"), "finish reason and [DONE]: 1 deltas after the finish reason"),
            (7, &content("x"), "finish reason and [DONE]: 1 events after [DONE]"),
        ] {
            let mut events: Vec<&str> = GOOD.to_vec();
            events.insert(at, event);
            let failing = failing(&recording(&events), Some("nanaï"));
            assert!(failing.iter().any(|line| line.contains(expected)), "{expected}: {failing:?}");
        }
    }

    #[test]
    fn bytes_cut_inside_a_character_are_sound_but_bytes_that_are_none_are_not() {
        let mut cut = recording(GOOD);
        let body = cut.body();
        let at = body.windows(2).position(|pair| pair == "ï".as_bytes()).unwrap() + 1;
        let piece = |seconds, bytes: &[u8]| Piece { seconds, bytes: bytes.to_vec() };
        cut.pieces = vec![piece(1.0, &body[..at]), piece(2.0, &body[at..])];
        assert_eq!(failing(&cut, Some("nanaï")), Vec::<String>::new());
        cut.pieces[1].bytes[0] = b'?';
        assert!(failing(&cut, Some("nanaï")).iter().any(|line| line.starts_with("no character is split")));
    }

    #[test]
    fn a_burst_is_seen_by_its_reads_and_by_the_servers_clock() {
        let mut events = vec![GOOD[0].to_string()];
        events.extend((0..20).map(|n| content(&format!("t{n} "))));
        events.extend(GOOD[4..].iter().map(ToString::to_string));
        let is_burst = |recording: &Recording| Answer::streamed(recording).is_burst();
        let spread = recording(&events);
        assert!(!is_burst(&spread));
        let untimed = String::from_utf8(spread.body()).unwrap().replace("\"timings\"", "\"other\"");
        let at_once = vec![Piece { seconds: 5.0, bytes: untimed.into_bytes() }];
        assert!(is_burst(&Recording { pieces: at_once, ..spread.clone() }));
        // 20 tokens within nanoseconds: right if they took 1 ms, not if they took 1 s.
        for (ms, expected) in [("1.0", false), ("1000.0", true)] {
            let events: Vec<String> =
                events.iter().map(|event| event.replace("_ms\":1.0", &format!("_ms\":{ms}"))).collect();
            let mut fast = recording(&events);
            fast.pieces.iter_mut().for_each(|piece| piece.seconds /= 1e9);
            assert_eq!(is_burst(&fast), expected, "{ms} ms");
        }
    }

    #[test]
    fn an_answer_in_one_piece_is_read_or_refused() {
        let whole = |status: u16, body: &str| {
            let pieces = vec![Piece { seconds: 1.0, bytes: body.as_bytes().to_vec() }];
            Answer::whole(&Recording { status, pieces, ..Recording::default() })
        };
        let good = r#"{"choices":[{"finish_reason":"length","message":{"content":"hi","reasoning_content":"hm"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let answer = whole(200, good);
        assert_eq!((answer.text().as_str(), answer.reasoning.as_str(), answer.generated_tokens), ("hi", "hm", Some(2)));
        assert_eq!((answer.finish_reason.as_deref(), answer.failure), (Some("length"), None));
        // Zeros are not counts (shimmy 1.8.1).
        let zeros = whole(200, &good.replace("\":1,", "\":0,").replace("\":2}", "\":0}"));
        assert_eq!((zeros.prompt_tokens, zeros.generated_tokens), (None, None));
        for (status, body, why) in [
            (200, "data: {}\n\n", "it streams although"),
            (200, "<html>", "it is not JSON"),
            (502, "<html>", "status 502: it is not JSON"),
            (500, r#"{"error":{"message":"no memory"}}"#, "the server refused: no memory"),
            (200, r#"{"choices":[]}"#, "the answer has no content"),
        ] {
            let failure = whole(status, body).failure.unwrap();
            assert!(failure.starts_with(why), "{failure}");
        }
    }
}
