//! The header of a model next to one that was read already: the vocabulary between its first and last part is not moved again.
//!
//! The quantisations of a repository have the same vocabulary at nearly the same place, which is most of a header, and of which
//! only lengths matter here. What is taken for it must fit between two parts of the file's own bytes, both of which continue
//! the known header's bytes exactly, and the whole must be a good header; else it is read as usual.

use super::super::{Header, TensorInfo};

/// Bytes that must agree where the parts meet.
const SEAM: usize = 512;

/// A header that was read, and where its last part starts.
pub(super) struct Known {
    bytes: Vec<u8>,
    /// Before the tensors and so many bytes of keys before them.
    tail: usize,
}

impl Known {
    /// Of the bytes of a whole header; the last part holds its tensors and `keys` bytes before them.
    pub fn new(bytes: Vec<u8>, keys: u64) -> Option<Self> {
        let header = Header::read(&bytes, 1 << 62).ok()?;
        // Lengths of the name and itself, of the dimensions and their number, of type and offset.
        let info = |tensor: &TensorInfo| {
            u64::from(tensor.n_dims).saturating_mul(8).saturating_add(tensor.name.len() as u64).saturating_add(24)
        };
        let tensors = header.tensors.iter().map(info).fold(header.alignment, u64::saturating_add);
        let tail = header.data_offset.checked_sub(tensors)?.checked_sub(keys)?;
        Some(Self { bytes, tail: usize::try_from(tail).ok()? })
    }

    /// Where in the known header the bytes after `start`, the first ones of another, go on: the end of its last bytes.
    fn continues(&self, start: &[u8]) -> Option<usize> {
        let seam = start.len().checked_sub(SEAM).and_then(|at| start.get(at..))?;
        let from = start.len().saturating_sub(SEAM).checked_sub(start.len() / 2)?;
        let to = start.len().saturating_add(start.len() / 2).min(self.tail);
        let mut places = self.bytes.get(from..to)?.windows(SEAM).enumerate().filter(|(_, part)| *part == seam);
        let (place, _) = places.next()?;
        // Bytes that repeat say nothing about the place.
        places.next().is_none().then_some(from.saturating_add(place).saturating_add(SEAM))
    }

    /// The range of the other file that has to be read, with so many bytes to spare, once its `start` is there.
    pub fn wanted(&self, start: &[u8], spare: usize) -> Option<(usize, usize)> {
        let moved = self.tail.checked_sub(self.continues(start)?)?;
        let from = start.len().checked_add(moved)?;
        Some((from, from.checked_add(self.bytes.len().checked_sub(self.tail)?)?.checked_add(spare)?))
    }

    /// The other header's bytes, of its `start` and its `end`.
    pub fn joined(&self, start: &[u8], end: &[u8]) -> Option<Vec<u8>> {
        let between = self.bytes.get(self.continues(start)?..self.tail)?;
        let agrees = end.get(..SEAM)? == self.bytes.get(self.tail..)?.get(..SEAM)?;
        agrees.then(|| [start, between, end].concat())
    }
}
