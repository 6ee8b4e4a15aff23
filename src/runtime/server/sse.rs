//! Server-sent events out of bytes as they come: split UTF-8, garbage and huge lines included.
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

/// The longest line that is taken, in bytes: the last event of a reply repeats the whole prompt.
pub const MAX_LINE: usize = 64 << 20;

/// One thing a stream said.
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
pub struct Reader {
    line: Vec<u8>,
    data: Option<String>,
}

impl Reader {
    /// The events that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.extend(line)?;
            rest = after.get(1..).unwrap_or(&[]);
            let line = std::mem::take(&mut self.line);
            events.extend(self.line(&String::from_utf8_lossy(&line)));
        }
        self.extend(rest)?;
        Ok(events)
    }

    /// The event that the end of the stream completes, if its last line was data.
    pub fn end(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let event = self.line(&String::from_utf8_lossy(&line));
        event.or_else(|| self.data.take().map(event_of))
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len().saturating_add(bytes.len()) > MAX_LINE {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return self.data.take().map(event_of);
        }
        // llama.cpp of old sent errors in a field of that name.
        let value = line.strip_prefix("data:").or_else(|| line.strip_prefix("error:"))?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        match &mut self.data {
            Some(data) => {
                data.push('\n');
                data.push_str(value);
            }
            None => self.data = Some(value.to_string()),
        }
        None
    }
}

fn event_of(data: String) -> Event {
    if data.trim() == "[DONE]" { Event::Done } else { Event::Data(data) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = "data: {\"content\":\"na\u{ef}ve \u{1f600}\"}\r\n\r\n: a comment\n\nevent: x\ndata: one\ndata: two\n\ndata:[DONE]\n\n";

    fn expected() -> Vec<Event> {
        let data = |text: &str| Event::Data(text.to_string());
        vec![data("{\"content\":\"na\u{ef}ve \u{1f600}\"}"), data("one\ntwo"), Event::Done]
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_events(cuts in proptest::collection::vec(1_usize..9, 1..80)) {
            let mut reader = Reader::default();
            let mut events = Vec::new();
            let mut rest = STREAM.as_bytes();
            for cut in cuts.iter().cycle().take(200) {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                events.extend(reader.push(piece).unwrap());
                rest = after;
            }
            events.extend(reader.push(rest).unwrap());
            events.extend(reader.end());
            prop_assert_eq!(events, expected());
        }

        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut reader = Reader::default();
            let events = reader.push(&bytes).unwrap();
            prop_assert!(events.len() <= bytes.len());
            prop_assert!(reader.end().is_none_or(|event| event != Event::Data("\n".repeat(400))));
        }
    }

    #[test]
    fn a_stream_that_breaks_off_gives_its_last_line() {
        let mut reader = Reader::default();
        assert_eq!(reader.push(b"data: half").unwrap(), []);
        assert_eq!(reader.end(), Some(Event::Data("half".to_string())));
        assert_eq!(reader.end(), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut reader = Reader::default();
        let events = reader.push(b"data: a\xc3\xff\n\n").unwrap();
        assert_eq!(events, [Event::Data("a\u{fffd}\u{fffd}".to_string())]);
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut reader = Reader::default();
        let piece = vec![b'x'; 16 << 20];
        let answers: Vec<bool> = (0..5).map(|_| reader.push(&piece).is_ok()).collect();
        assert_eq!(answers, [true, true, true, true, false]);
    }
}
