//! GGUF headers written: exact value types, versions 2 and 3, both byte orders; the data section is laid out, not held.
//!
//! Source: `ggml/src/gguf.cpp` (`gguf_writer_*`, `gguf_write_to_buf`) and `ggml/include/gguf.h`, llama.cpp b11434.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "what is written is moeplan's own, and a wrong number in it is a mistake of moeplan"
)]

use std::fs::File;

use super::{ByteOrder, GgmlType};

/// A metadata value with the exact type that goes into the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    U16(u16),
    /// The usual integer.
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
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

    pub fn bytes(&self) -> Option<u64> {
        self.ty.bytes(&self.shape)
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
    /// A tensor whose row is not a whole number of blocks is our own mistake: it panics.
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
            Scalar::I32s(items) => self.array(5, items, |out, n| out.number(n.to_le_bytes())),
            Scalar::F32s(items) => self.array(6, items, |out, x| out.number(x.to_le_bytes())),
            Scalar::Bools(items) => self.array(7, items, |out, is| out.number([u8::from(*is)])),
            Scalar::Strings(items) => self.array(8, items, |out, text| out.string(text)),
        }
    }
}

/// Makes what is never written of an empty file take no disk; file systems outside Windows need no word for it.
#[cfg(not(windows))]
pub fn make_sparse(_: &File) -> std::io::Result<()> {
    Ok(())
}

/// Makes what is never written of an empty file take no disk.
#[cfg(windows)]
#[expect(unsafe_code, reason = "Windows offers it only as a control code")]
pub fn make_sparse(file: &File) -> std::io::Result<()> {
    use std::os::windows::io::AsRawHandle as _;
    use std::ptr::{null, null_mut};

    use windows_sys::Win32::System::IO::DeviceIoControl;
    use windows_sys::Win32::System::Ioctl::FSCTL_SET_SPARSE;

    let mut returned = 0;
    // SAFETY: the handle is open for the length of the call, which takes no input and gives no output; `returned` outlives it.
    let done = unsafe {
        DeviceIoControl(file.as_raw_handle(), FSCTL_SET_SPARSE, null(), 0, null_mut(), 0, &raw mut returned, null_mut())
    };
    if done == 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
