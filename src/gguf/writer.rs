//! GGUF headers written: exact value types, versions 2 and 3, both byte orders; the data section is laid out, not held.
//!
//! Source: `ggml/src/gguf.cpp` (`gguf_writer_*`, `gguf_write_to_buf`) and `ggml/include/gguf.h`, llama.cpp b11434.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "what is written is moeplan's own, and a wrong number in it is a mistake of moeplan"
)]

use super::{ByteOrder, GgmlType};

/// A metadata value with the exact type that goes into the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// `uint16`.
    U16(u16),
    /// `uint32`, the usual integer.
    U32(u32),
    /// `int32`.
    I32(i32),
    /// `uint64`.
    U64(u64),
    /// `float32`.
    F32(f32),
    /// `bool`.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Array of `string`.
    Strings(Vec<String>),
    /// Array of `int32`.
    I32s(Vec<i32>),
    /// Array of `uint32`.
    U32s(Vec<u32>),
    /// Array of `float32`.
    F32s(Vec<f32>),
    /// Array of `bool`.
    Bools(Vec<bool>),
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    pub name: String,
    pub ty: GgmlType,
    /// Elements by dimension; the first is contiguous. One to four of them.
    pub shape: Vec<u64>,
}

impl NewTensor {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Exact bytes, or `None` where a row is no whole number of blocks or the product passes 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let (first, rest) = self.shape.split_first()?;
        rest.iter().try_fold(self.ty.row_bytes(*first)?, |bytes, n| bytes.checked_mul(*n))
    }
}

/// One file to be written: everything but the tensors' data.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// GGUF version: 2 or 3.
    pub version: u32,
    /// Byte order of every number.
    pub byte_order: ByteOrder,
    /// Alignment of the data section and of each tensor in it; a power of two.
    pub alignment: u64,
    /// Keys and values in file order.
    pub metadata: Vec<(String, Scalar)>,
    pub tensors: Vec<NewTensor>,
}

impl NewFile {
    /// The bytes before the data section, padding included; each tensor's offset in the data section; the length
    /// of the data section, the last tensor's padding included.
    ///
    /// A tensor whose row is no whole number of blocks is our own mistake: it panics.
    pub fn header(&self) -> (Vec<u8>, Vec<u64>, u64) {
        assert!(self.alignment.is_power_of_two(), "an alignment is a power of two");
        let mut out = Encoder { bytes: Vec::with_capacity(1 << 16), order: self.byte_order };
        out.bytes.extend_from_slice(b"GGUF");
        out.u32(self.version);
        out.u64(self.tensors.len() as u64);
        out.u64(self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            out.string(key);
            out.value(value);
        }
        let (mut offsets, mut end) = (Vec::with_capacity(self.tensors.len()), 0u64);
        for tensor in &self.tensors {
            out.string(&tensor.name);
            out.u32(u32::try_from(tensor.shape.len()).expect("a count of dimensions"));
            tensor.shape.iter().for_each(|n| out.u64(*n));
            out.u32(tensor.ty.id);
            out.u64(end);
            offsets.push(end);
            let bytes = tensor.bytes().unwrap_or_else(|| panic!("{}: rows of whole blocks", tensor.name));
            end += bytes.next_multiple_of(self.alignment);
        }
        let padded = (out.bytes.len() as u64).next_multiple_of(self.alignment);
        out.bytes.resize(usize::try_from(padded).expect("a header fits in memory"), 0);
        (out.bytes, offsets, end)
    }
}

/// Numbers and text in the file's byte order.
struct Encoder {
    bytes: Vec<u8>,
    order: ByteOrder,
}

impl Encoder {
    /// A number given by its little-endian bytes.
    fn number<const N: usize>(&mut self, mut little: [u8; N]) {
        if self.order == ByteOrder::Big {
            little.reverse();
        }
        self.bytes.extend_from_slice(&little);
    }

    fn u32(&mut self, n: u32) {
        self.number(n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.number(n.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// An array: its type id (9), its elements' type id, its length, its elements.
    fn array<T>(&mut self, id: u32, items: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.u32(9);
        self.u32(id);
        self.u64(items.len() as u64);
        for item in items {
            put(self, item);
        }
    }

    fn scalar<const N: usize>(&mut self, id: u32, little: [u8; N]) {
        self.u32(id);
        self.number(little);
    }

    /// A value: its type id (`enum gguf_type`), then itself.
    fn value(&mut self, value: &Scalar) {
        match value {
            Scalar::U16(n) => self.scalar(2, n.to_le_bytes()),
            Scalar::U32(n) => self.scalar(4, n.to_le_bytes()),
            Scalar::I32(n) => self.scalar(5, n.to_le_bytes()),
            Scalar::F32(x) => self.scalar(6, x.to_le_bytes()),
            Scalar::Bool(b) => self.scalar(7, [u8::from(*b)]),
            Scalar::String(text) => {
                self.u32(8);
                self.string(text);
            }
            Scalar::U64(n) => self.scalar(10, n.to_le_bytes()),
            Scalar::U32s(items) => self.array(4, items, |out, n| out.u32(*n)),
            Scalar::I32s(items) => self.array(5, items, |out, n| out.number(n.to_le_bytes())),
            Scalar::F32s(items) => self.array(6, items, |out, x| out.number(x.to_le_bytes())),
            Scalar::Bools(items) => self.array(7, items, |out, b| out.bytes.push(u8::from(*b))),
            Scalar::Strings(items) => self.array(8, items, |out, text| out.string(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::ggml_type;

    fn small(byte_order: ByteOrder) -> NewFile {
        NewFile {
            version: 3,
            byte_order,
            alignment: 32,
            metadata: vec![("k".into(), Scalar::U32(7)), ("t".into(), Scalar::Strings(vec!["ab".into()]))],
            tensors: vec![
                NewTensor { name: "a".into(), ty: ggml_type::f32(), shape: vec![3] },
                NewTensor { name: "b".into(), ty: ggml_type::f16(), shape: vec![4, 2] },
            ],
        }
    }

    #[test]
    fn a_small_header_byte_by_byte() {
        let (bytes, offsets, end) = small(ByteOrder::Little).header();
        assert_eq!((offsets, end), (vec![0, 32], 64));
        assert_eq!(&bytes[..24], b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(&bytes[24..41], b"\x01\0\0\0\0\0\0\0k\x04\0\0\0\x07\0\0\0");
        assert_eq!(&bytes[41..76], b"\x01\0\0\0\0\0\0\0t\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0ab");
        assert_eq!(&bytes[76..109], b"\x01\0\0\0\0\0\0\0a\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytes.len() % 32, 0);
    }

    #[test]
    fn big_endian_swaps_numbers_and_leaves_text() {
        let (bytes, ..) = small(ByteOrder::Big).header();
        assert_eq!(&bytes[..12], b"GGUF\0\0\0\x03\0\0\0\0");
        assert_eq!(&bytes[24..41], b"\0\0\0\0\0\0\0\x01k\0\0\0\x04\0\0\0\x07");
    }
}
