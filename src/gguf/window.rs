//! The bytes of a header as they are needed: of a slice, or of a file by plain reads into a small buffer. [I/O]
//!
//! A file is never mapped: one that another process cuts shorter meanwhile then ends early, which is an error of the
//! reader, where a mapping would end this process by a signal. And the peak of memory is the buffer, not the header.

use std::io::{self, Read, Seek, SeekFrom};

use super::cursor::count;

/// Bytes of the first read of a file: the whole header of a shard.
const FIRST_READ: usize = 16 << 10;
/// Bytes of a later read, which the processor's own caches hold.
const MOST_READ: usize = 128 << 10;

/// A place in a source of bytes, which only goes forward.
pub trait Window {
    /// The next `length` bytes; `None`, and nothing is stepped over, where the source ends before.
    fn take(&mut self, length: usize) -> io::Result<Option<&[u8]>>;

    /// What of the next bytes is in memory already.
    fn at_hand(&self) -> &[u8];

    /// Steps over `length` bytes without looking at them; `false`, and no step, where the source ends before.
    fn skip(&mut self, length: u64) -> bool;

    /// Bytes from here to the end of the source.
    fn left(&self) -> u64;
}

impl Window for &[u8] {
    fn take(&mut self, length: usize) -> io::Result<Option<&[u8]>> {
        let Some((taken, rest)) = self.split_at_checked(length) else { return Ok(None) };
        *self = rest;
        Ok(Some(taken))
    }

    fn at_hand(&self) -> &[u8] {
        self
    }

    fn skip(&mut self, length: u64) -> bool {
        let rest = usize::try_from(length).ok().and_then(|length| self.get(length..));
        *self = rest.unwrap_or(self);
        rest.is_some()
    }

    fn left(&self) -> u64 {
        count(self.len())
    }
}

/// A file, or anything that reads and seeks as one.
#[derive(Debug)]
pub struct FileWindow<R> {
    file: R,
    buffer: Vec<u8>,
    /// Where in the buffer the next byte is.
    start: usize,
    /// Bytes of the buffer that came from the file.
    end: usize,
    /// Bytes from the buffer's end to the next one to be read, skipped but not yet sought.
    gap: u64,
    /// Bytes from here to the end of the file, as long as it was at first.
    left: u64,
}

impl<R: Read + Seek> FileWindow<R> {
    /// At the start of a file of `length` bytes.
    pub fn new(file: R, length: u64) -> Self {
        Self { file, buffer: Vec::new(), start: 0, end: 0, gap: 0, left: length }
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
}

impl<R: Read + Seek> Window for FileWindow<R> {
    fn take(&mut self, length: usize) -> io::Result<Option<&[u8]>> {
        if self.left < count(length) {
            return Ok(None);
        }
        if self.at_hand().len() < length {
            self.fill(length)?;
        }
        let next = self.start.saturating_add(length);
        let Some(taken) = self.buffer.get(..self.end).and_then(|read| read.get(self.start..next)) else {
            return Ok(None);
        };
        self.start = next;
        self.left = self.left.saturating_sub(count(length));
        Ok(Some(taken))
    }

    fn at_hand(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn skip(&mut self, length: u64) -> bool {
        if self.left < length {
            return false;
        }
        self.left = self.left.saturating_sub(length);
        let at_hand = self.at_hand().len();
        let within = usize::try_from(length).map_or(at_hand, |length| length.min(at_hand));
        self.start = self.start.saturating_add(within);
        self.gap = self.gap.saturating_add(length.saturating_sub(count(within)));
        true
    }

    fn left(&self) -> u64 {
        self.left
    }
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

    /// Random steps over 300 000 bytes give the same bytes from a slice and from a file.
    #[test]
    fn a_file_gives_what_its_bytes_give() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let mut slice = bytes.as_slice();
        let length = bytes.len() as u64;
        let mut file = FileWindow::new(io::Cursor::new(bytes.clone()), length);
        let mut slow = FileWindow::new(Slow(io::Cursor::new(bytes.clone()), false), length);
        for step in (0..).map(|n: usize| n * n % 5003) {
            let is_skip = step % 3 == 0;
            if is_skip {
                let whole = slice.skip(step as u64);
                assert_eq!((file.skip(step as u64), slow.skip(step as u64)), (whole, whole));
            } else {
                let taken = Window::take(&mut slice, step).unwrap();
                assert_eq!(file.take(step).unwrap(), taken);
                assert_eq!(slow.take(step).unwrap(), taken);
            }
            assert_eq!((file.left(), slow.left()), (slice.left(), slice.left()));
            assert!(slice.at_hand().starts_with(file.at_hand()));
            if slice.left() < 5003 {
                break;
            }
        }
        assert!(file.buffer.len() <= MOST_READ);
    }

    #[test]
    fn a_file_that_became_shorter_just_ends() {
        let mut file = FileWindow::new(io::Cursor::new(vec![7; 100]), 1 << 40);
        assert_eq!(file.take(60).unwrap(), Some([7; 60].as_slice()));
        assert_eq!(file.take(60).unwrap(), None);
        assert!(file.skip(1 << 30));
        assert_eq!(file.take(1).unwrap(), None);
        assert!(!file.skip(1 << 40));
    }
}
