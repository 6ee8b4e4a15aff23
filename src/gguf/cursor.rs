//! A place in the bytes of a header: every read is checked against what remains and against what a header may be.

use super::ByteOrder;
use super::error::{At, Fault};
use super::window::Window;

/// Longest text that llama.cpp takes, in bytes (`GGUF_MAX_STRING_LENGTH`, `ggml/src/gguf.cpp`, b11434).
pub const MAX_STRING_LENGTH: u64 = 1 << 30;
/// Longest header that is read, in bytes: ten times the longest known. llama.cpp has no such limit.
pub const MAX_HEADER: u64 = 1 << 28;

/// The unread part of a header.
#[derive(Clone, Debug)]
pub struct Cursor<W> {
    window: W,
    /// Bytes from here to the end of the file; more than the window's where only the file's start is here.
    remaining: u64,
    file_bytes: u64,
    /// How numbers are read from here on.
    pub order: ByteOrder,
}

fn ends(offset: u64, what: &str, missing: u64) -> At {
    At::new(offset, Fault::Ends, format!("the file ends inside its header: {what} needs {missing} more bytes"))
}

/// More than llama.cpp takes, however long the file.
pub(super) fn over_limit(offset: impl Into<Option<u64>>, what: &str, count: u64, limit: u64) -> At {
    At::new(offset, Fault::Refused, format!("{what} of {count} is over llama.cpp's limit of {limit}"))
}

/// A length as 64 bits.
pub fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl<W: Window> Cursor<W> {
    /// At the start of a file of `file_bytes` bytes, of which the window shows the first (or all).
    pub fn new(window: W, file_bytes: u64) -> Self {
        let file_bytes = file_bytes.max(window.left());
        Self { window, remaining: file_bytes, file_bytes, order: ByteOrder::Little }
    }

    /// Where the next byte is, from the start of the file.
    pub fn offset(&self) -> u64 {
        self.file_bytes.saturating_sub(self.remaining)
    }

    /// Bytes from here to the end of the file.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next `length` bytes, which are copied to memory: the caller bounds them.
    pub fn take(&mut self, length: u64, what: &'static str) -> Result<&[u8], At> {
        self.check_step(length)?;
        let (offset, left) = (self.offset(), self.window.left());
        let ends = |left: u64| ends(offset, what, length.saturating_sub(left));
        let short = usize::try_from(length).map_err(|_| ends(left))?;
        match self.window.take(short) {
            Ok(Some(taken)) => {
                self.remaining = self.remaining.saturating_sub(length);
                Ok(taken)
            }
            Ok(None) => Err(ends(if left < length { left } else { 0 })),
            Err(error) => Err(At::new(offset, Fault::Io(error.kind()), format!("cannot be read: {error}"))),
        }
    }

    /// Steps over `length` bytes, which are not looked at.
    pub fn skip(&mut self, length: u64, what: &'static str) -> Result<(), At> {
        self.check_step(length)?;
        if !self.window.skip(length) {
            let missing = length.saturating_sub(self.window.left());
            return Err(ends(self.offset(), what, missing));
        }
        self.remaining = self.remaining.saturating_sub(length);
        Ok(())
    }

    /// That a step stays within what a header may be.
    fn check_step(&self, length: u64) -> Result<(), At> {
        // A step past the end of the file has a better message than this one.
        if length <= self.remaining && self.offset().saturating_add(length) > MAX_HEADER {
            let message = format!("the header goes on past {MAX_HEADER} bytes, which is longer than that of any model");
            return Err(At::new(self.offset(), Fault::Excessive, message));
        }
        Ok(())
    }

    /// The length of the text that follows.
    pub fn text_length(&mut self, what: &'static str) -> Result<u64, At> {
        let offset = self.offset();
        let length = self.u64(what)?;
        self.check_text(length, offset, what)?;
        Ok(length)
    }

    fn check_text(&self, length: u64, offset: u64, what: &'static str) -> Result<(), At> {
        if length > MAX_STRING_LENGTH {
            return Err(over_limit(offset, what, length, MAX_STRING_LENGTH));
        }
        if length > self.remaining {
            let message = format!("{what} of {length} bytes cannot be: {} bytes remain in the file", self.remaining);
            return Err(At::new(offset, Fault::Refused, message));
        }
        Ok(())
    }

    /// Steps over `texts` texts of any bytes: of each only the length is looked at.
    pub fn skip_texts(&mut self, texts: u64, what: &'static str) -> Result<(), At> {
        let mut left = texts;
        while left > 0 {
            let (stepped, bytes) = whole_texts(self.window.at_hand(), left, self.order);
            self.skip(bytes, what)?;
            left = left.saturating_sub(stepped);
            if left > 0 {
                // Reaches past what is in memory, or is bad.
                let length = self.text_length(what)?;
                self.skip(length, what)?;
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, At> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, At> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    /// The bytes of the next number, the lowest first, whatever the file's order.
    pub fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], At> {
        let order = self.order;
        let mut bytes = self.take(count(N), what)?.first_chunk::<N>().copied().unwrap_or([0; N]);
        if order == ByteOrder::Big {
            bytes.reverse();
        }
        Ok(bytes)
    }
}

/// How many texts, `most` at most, are whole in `bytes`, and how many bytes they take.
fn whole_texts(bytes: &[u8], most: u64, order: ByteOrder) -> (u64, u64) {
    let (mut texts, mut rest) = (0_u64, bytes);
    while texts < most {
        let Some((length, after)) = rest.split_first_chunk::<8>() else { break };
        let length = match order {
            ByteOrder::Little => u64::from_le_bytes(*length),
            ByteOrder::Big => u64::from_be_bytes(*length),
        };
        let Some(after) = usize::try_from(length).ok().and_then(|length| after.get(length..)) else { break };
        rest = after;
        texts = texts.saturating_add(1);
    }
    (texts, count(bytes.len().saturating_sub(rest.len())))
}
