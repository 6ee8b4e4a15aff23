//! A place in the bytes of a header: every read is checked against what remains, nothing is copied.
#![deny(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

use super::ByteOrder;
use super::error::{ErrorKind, Fault};

/// Longest text that llama.cpp takes, in bytes (`GGUF_MAX_STRING_LENGTH`, `ggml/src/gguf.cpp`, b11434).
pub const MAX_STRING_LENGTH: u64 = 1 << 30;

/// The unread part of a header.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    /// Bytes from the start of `rest` to the end of the file; more than `rest` where only the file's start is here.
    remaining: u64,
    file_bytes: u64,
    /// How numbers are read from here on.
    pub order: ByteOrder,
}

/// A length as 64 bits.
pub fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl<'a> Cursor<'a> {
    /// At the start of a file of `file_bytes` bytes, of which `bytes` are the first (or all).
    pub fn new(bytes: &'a [u8], file_bytes: u64) -> Self {
        let file_bytes = file_bytes.max(count(bytes.len()));
        Self { rest: bytes, remaining: file_bytes, file_bytes, order: ByteOrder::Little }
    }

    /// Where the next byte is, from the start of the file.
    pub fn offset(&self) -> u64 {
        self.file_bytes.saturating_sub(self.remaining)
    }

    /// Bytes from here to the end of the file.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8], Fault> {
        let split = usize::try_from(length).ok().and_then(|n| self.rest.split_at_checked(n));
        let Some((taken, rest)) = split else {
            return Err(self.ends(length, what));
        };
        self.rest = rest;
        self.remaining = self.remaining.saturating_sub(length);
        Ok(taken)
    }

    /// Steps over a text of any bytes.
    pub fn string(&mut self, what: &'static str) -> Result<&'a [u8], Fault> {
        let offset = self.offset();
        let length = self.u64(what)?;
        if length > MAX_STRING_LENGTH {
            return Err(Fault { offset, kind: ErrorKind::Limit { what, count: length, limit: MAX_STRING_LENGTH } });
        }
        if length > self.remaining {
            let kind = ErrorKind::StringPastEnd { what, length, remaining: self.remaining };
            return Err(Fault { offset, kind });
        }
        self.take(length, what)
    }

    /// The next 8 bytes as a number.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.number(what, u64::from_le_bytes, u64::from_be_bytes)
    }

    /// The next 4 bytes as a number.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.number(what, u32::from_le_bytes, u32::from_be_bytes)
    }

    /// The next `N` bytes, in the file's byte order.
    pub fn number<const N: usize, T>(
        &mut self,
        what: &'static str,
        little: fn([u8; N]) -> T,
        big: fn([u8; N]) -> T,
    ) -> Result<T, Fault> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.ends(count(N), what));
        };
        self.rest = rest;
        self.remaining = self.remaining.saturating_sub(count(N));
        Ok(match self.order {
            ByteOrder::Little => little(*bytes),
            ByteOrder::Big => big(*bytes),
        })
    }

    fn ends(&self, length: u64, what: &'static str) -> Fault {
        let missing = length.saturating_sub(count(self.rest.len()));
        Fault { offset: self.offset(), kind: ErrorKind::Ends { what, missing } }
    }
}
