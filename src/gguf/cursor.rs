//! A place in the bytes of a header: plain reads into a small buffer, each checked against what remains and what a header may be.
//!
//! A file is never mapped: one that another process cuts shorter meanwhile then ends early, which is an error of the
//! reader, where a mapping would end this process by a signal. And the peak of memory is the buffer, not the header.

use std::io::{self, BufReader, Read, Seek};

use super::ByteOrder;
use super::error::{At, Fault};

/// Longest text that llama.cpp takes, in bytes (`GGUF_MAX_STRING_LENGTH`, `ggml/src/gguf.cpp`, b11434).
pub const MAX_STRING_LENGTH: u64 = 1 << 30;
/// Longest header that is read, in bytes: ten times the longest known. llama.cpp has no such limit.
pub const MAX_HEADER: u64 = 1 << 28;
/// Bytes of a read: the whole header of a shard, and what the processor's own caches hold.
const READ: usize = 64 << 10;

#[derive(Debug)]
pub struct Cursor<R> {
    file: BufReader<R>,
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
        let file = BufReader::with_capacity(READ, file);
        Self { file, left, remaining, file_bytes: remaining, order: ByteOrder::Little }
    }

    pub fn offset(&self) -> u64 {
        self.file_bytes.saturating_sub(self.remaining)
    }

    /// The next `length` bytes, which are copied to memory: the caller bounds them.
    pub fn take(&mut self, length: u64, what: &'static str) -> Result<Vec<u8>, At> {
        let mut bytes = vec![0; self.check_step(length, what)?];
        self.read(&mut bytes, what)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8], what: &'static str) -> Result<(), At> {
        let (offset, length) = (self.offset(), bytes.len() as u64);
        self.check_step(length, what)?;
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            // The file became shorter.
            io::ErrorKind::UnexpectedEof => ends(offset, what, length),
            kind => At::new(offset, Fault::Io(kind), format!("cannot be read: {error}")),
        })?;
        self.step(length);
        Ok(())
    }

    /// Steps over `length` bytes, which are not looked at.
    pub fn skip(&mut self, length: u64, what: &'static str) -> Result<(), At> {
        let (offset, short) = (self.offset(), self.check_step(length, what)?);
        let unread = |error: io::Error| At::new(offset, Fault::Io(error.kind()), format!("cannot be read: {error}"));
        self.file.seek_relative(i64::try_from(short).unwrap_or(i64::MAX)).map_err(unread)?;
        self.step(length);
        Ok(())
    }

    fn step(&mut self, length: u64) {
        self.left = self.left.saturating_sub(length);
        self.remaining = self.remaining.saturating_sub(length);
    }

    /// That a step stays within what is there and what a header may be; its length in memory.
    fn check_step(&self, length: u64, what: &'static str) -> Result<usize, At> {
        // A step past the end of the file has a better message than this one.
        if length <= self.remaining && self.offset().saturating_add(length) > MAX_HEADER {
            let message = format!("the header exceeds {MAX_HEADER} bytes, more than any model needs");
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
            let message =
                format!("{what} of {length} bytes is impossible: only {} bytes remain in the file", self.remaining);
            return Err(At::new(offset, Fault::Refused, message));
        }
        Ok(length)
    }

    /// Steps over `left` texts of any bytes: of each only the length is looked at.
    pub fn skip_texts(&mut self, mut left: u64, what: &'static str) -> Result<(), At> {
        while left > 0 {
            let (stepped, bytes) = whole_texts(self.file.buffer(), left, self.order);
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
        let mut bytes = [0; N];
        self.read(&mut bytes, what)?;
        if self.order == ByteOrder::Big {
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
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
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
        assert!(slow.skip(5003, "").is_err());
    }
}
