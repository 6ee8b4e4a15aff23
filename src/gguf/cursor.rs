//! A place in the bytes of a header: plain reads into a small buffer, each checked against what remains and what a header may be.
//!
//! A file is never mapped: one that another process cuts shorter meanwhile then ends early, which is an error of the
//! reader, where a mapping would end this process by a signal. And the peak of memory is the buffer, not the header.

use std::io::{self, Read, Seek, SeekFrom};

use super::ByteOrder;
use super::error::{At, Fault};

/// Longest text that llama.cpp takes, in bytes (`GGUF_MAX_STRING_LENGTH`, `ggml/src/gguf.cpp`, b11434).
pub const MAX_STRING_LENGTH: u64 = 1 << 30;
/// Longest header that is read, in bytes: ten times the longest known. llama.cpp has no such limit.
pub const MAX_HEADER: u64 = 1 << 28;
/// Bytes of the first read of a file: the whole header of a shard.
const FIRST_READ: usize = 16 << 10;
/// Bytes of a later read, which the processor's own caches hold.
const MOST_READ: usize = 128 << 10;

#[derive(Debug)]
pub struct Cursor<R> {
    file: R,
    buffer: Vec<u8>,
    start: usize,
    /// Bytes of the buffer that came from the file.
    end: usize,
    /// Bytes from the buffer's end to the next one to be read, skipped but not yet sought.
    gap: u64,
    /// Bytes from here to the end of what is there.
    left: u64,
    /// Bytes from here to the end of the file; more than `left` where only the file's start is there.
    pub remaining: u64,
    pub file_bytes: u64,
    pub order: ByteOrder,
}

fn ends(offset: u64, what: &str, missing: u64) -> At {
    At::new(offset, Fault::Ends, format!("the file ends inside its header: {what} needs {missing} more bytes"))
}

/// More than llama.cpp takes, however long the file.
pub(super) fn over_limit(offset: impl Into<Option<u64>>, what: &str, count: u64, limit: u64) -> At {
    At::new(offset, Fault::Refused, format!("{what} of {count} is over llama.cpp's limit of {limit}"))
}

impl<R: Read + Seek> Cursor<R> {
    /// At the start of a file of `file_bytes` bytes, of which the first `left` (or all) can be read.
    pub fn new(file: R, left: u64, file_bytes: u64) -> Self {
        let remaining = file_bytes.max(left);
        let order = ByteOrder::Little;
        Self { file, buffer: Vec::new(), start: 0, end: 0, gap: 0, left, remaining, file_bytes: remaining, order }
    }

    pub fn offset(&self) -> u64 {
        self.file_bytes.saturating_sub(self.remaining)
    }

    /// What of the next bytes is in memory already.
    fn at_hand(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads until `length` bytes or more are in the buffer, or the file ends.
    fn fill(&mut self, length: usize) -> io::Result<()> {
        if self.gap > 0 {
            let gap = i64::try_from(self.gap).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.file.seek(SeekFrom::Current(gap))?;
            self.gap = 0;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        let more = self.buffer.len().saturating_mul(2).clamp(FIRST_READ, MOST_READ);
        self.buffer.resize(self.buffer.len().max(more).max(length), 0);
        while self.end < length {
            let read = match self.file.read(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.end = self.end.saturating_add(read).min(self.buffer.len());
        }
        Ok(())
    }

    /// The next `length` bytes, which are copied to memory: the caller bounds them.
    pub fn take(&mut self, length: u64, what: &'static str) -> Result<&[u8], At> {
        let short = self.check_step(length, what)?;
        let offset = self.offset();
        if self.at_hand().len() < short {
            let unread =
                |error: io::Error| At::new(offset, Fault::Io(error.kind()), format!("cannot be read: {error}"));
            self.fill(short).map_err(unread)?;
        }
        let (start, next) = (self.start, self.start.saturating_add(short));
        if next > self.end {
            // The file became shorter.
            return Err(ends(offset, what, length));
        }
        self.start = next;
        self.left = self.left.saturating_sub(length);
        self.remaining = self.remaining.saturating_sub(length);
        Ok(self.buffer.get(start..next).unwrap_or_default())
    }

    /// Steps over `length` bytes, which are not looked at.
    pub fn skip(&mut self, length: u64, what: &'static str) -> Result<(), At> {
        let within = self.check_step(length, what)?.min(self.at_hand().len());
        self.start = self.start.saturating_add(within);
        self.gap = self.gap.saturating_add(length.saturating_sub(within as u64));
        self.left = self.left.saturating_sub(length);
        self.remaining = self.remaining.saturating_sub(length);
        Ok(())
    }

    /// That a step stays within what is there and what a header may be; its length in memory.
    fn check_step(&self, length: u64, what: &'static str) -> Result<usize, At> {
        // A step past the end of the file has a better message than this one.
        if length <= self.remaining && self.offset().saturating_add(length) > MAX_HEADER {
            let message = format!("the header goes on past {MAX_HEADER} bytes, which is longer than that of any model");
            return Err(At::new(self.offset(), Fault::Excessive, message));
        }
        let short = usize::try_from(length).ok().filter(|_| length <= self.left);
        short.ok_or_else(|| ends(self.offset(), what, length.saturating_sub(self.left)))
    }

    pub fn text_length(&mut self, what: &'static str) -> Result<u64, At> {
        let offset = self.offset();
        let length = self.u64(what)?;
        if length > MAX_STRING_LENGTH {
            return Err(over_limit(offset, what, length, MAX_STRING_LENGTH));
        }
        if length > self.remaining {
            let message = format!("{what} of {length} bytes cannot be: {} bytes remain in the file", self.remaining);
            return Err(At::new(offset, Fault::Refused, message));
        }
        Ok(length)
    }

    /// Steps over `left` texts of any bytes: of each only the length is looked at.
    pub fn skip_texts(&mut self, mut left: u64, what: &'static str) -> Result<(), At> {
        while left > 0 {
            let (stepped, bytes) = whole_texts(self.at_hand(), left, self.order);
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
        let mut bytes = self.take(N as u64, what)?.first_chunk::<N>().copied().unwrap_or([0; N]);
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
    (texts, bytes.len().saturating_sub(rest.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most 7 bytes a read, and is interrupted before each.
    struct Slow(io::Cursor<Vec<u8>>, bool);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            let most = buffer.len().min(7);
            if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..most]) }
        }
    }

    impl Seek for Slow {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn steps_over_a_slow_file_give_its_bytes() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let length = bytes.len() as u64;
        let mut slow = Cursor::new(Slow(io::Cursor::new(bytes.clone()), false), length, length);
        let mut at = 0;
        for step in (0..).map(|n: usize| n * n % 5003) {
            if bytes.len() - at < 5003 {
                break;
            }
            if step % 3 == 0 {
                slow.skip(step as u64, "").unwrap();
            } else {
                assert_eq!(slow.take(step as u64, "").unwrap(), &bytes[at..at + step]);
            }
            at += step;
            assert_eq!(slow.offset(), at as u64);
        }
        assert!(slow.skip(5003, "").is_err() && slow.buffer.len() <= MOST_READ);
    }
}
