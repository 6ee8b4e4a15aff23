//! One GGUF header from bytes: bounded, checked, nothing trusted.
//!
//! The checks and limits are those of llama.cpp's own reader (`ggml/src/gguf.cpp`, b11434), one pass, and what is
//! allocated is bounded by what is kept: at most a small multiple of the header's bytes.
#![deny(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

use std::collections::HashSet;

use super::cursor::{Cursor, count};
use super::error::{ErrorKind, Fault};
use super::{ByteOrder, GgmlType, Header, Metadata, TensorInfo, Value};
use crate::bytes::Bytes;

/// Most elements of an array that llama.cpp takes (`GGUF_MAX_ARRAY_ELEMENTS`).
pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 30;
/// Longer arrays are counted, not kept.
pub const MAX_KEPT_ELEMENTS: u64 = 4096;
/// Once a header's arrays hold this many elements together, further ones are counted, not kept.
pub const MAX_KEPT_ELEMENTS_IN_ALL: u64 = 1 << 16;
/// Longest tensor name, in bytes (`GGML_MAX_NAME` - 1).
pub const MAX_NAME_LENGTH: u64 = 63;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
pub const MAX_DIMS: u32 = 4;
/// Alignment of the data section and of each tensor in it where the file states none (`GGUF_DEFAULT_ALIGNMENT`).
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Bytes of the smallest key with its value: length, one letter, type, one byte.
const SMALLEST_KEY_VALUE: u64 = 14;
/// Bytes of the smallest tensor: length, dimensions, type, offset.
const SMALLEST_TENSOR: u64 = 24;
/// Type ids below this one that are not in the table were removed from ggml.
const FIRST_UNKNOWN_TYPE: u32 = 43;
/// The largest count that llama.cpp's signed 64 bits hold.
const MAX_ELEMENTS: u64 = i64::MAX.unsigned_abs();

impl Header {
    /// Reads the header of a file of `file_bytes` bytes from its first `bytes` (or all of them).
    ///
    /// With too few bytes the fault's kind is [`ErrorKind::Ends`]: a caller that holds only a part may come back
    /// with more.
    pub fn read(bytes: &[u8], file_bytes: u64) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(bytes, file_bytes);
        let version = read_magic_and_version(&mut cursor)?;
        let tensor_count = read_count(&mut cursor, "tensors", SMALLEST_TENSOR)?;
        let key_count = read_count(&mut cursor, "keys", SMALLEST_KEY_VALUE)?;
        let (metadata, alignment) = read_metadata(&mut cursor, key_count)?;
        let tensors = read_tensors(&mut cursor, tensor_count, alignment)?;
        let end = cursor.offset();
        let data_offset = if tensors.is_empty() { end } else { padded(end, alignment).unwrap_or(u64::MAX) };
        let header = Self { version, byte_order: cursor.order, alignment, data_offset, metadata, tensors };
        header.check_data(end.saturating_add(cursor.remaining()))?;
        Ok(header)
    }

    /// All data is within the file (`src/llama-model-loader.h`, `llama_tensor_weight`).
    fn check_data(&self, file_bytes: u64) -> Result<(), Fault> {
        let end = |tensor: &TensorInfo| {
            self.data_offset.saturating_add(tensor.offset).saturating_add(tensor.bytes.0).max(self.data_offset)
        };
        let expected = self.tensors.last().map_or(0, end);
        let Some(cut) = self.tensors.iter().find(|tensor| end(tensor) > file_bytes) else { return Ok(()) };
        let missing = expected.saturating_sub(file_bytes);
        let kind = ErrorKind::DataCut { missing, found: file_bytes, expected, tensor: cut.name.clone() };
        Err(Fault { offset: file_bytes, kind })
    }
}

/// `bytes` rounded up to a multiple of a power of two, or `None` past 64 bits.
fn padded(bytes: u64, alignment: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(alignment)
}

fn read_magic_and_version(cursor: &mut Cursor<'_>) -> Result<u32, Fault> {
    if cursor.remaining() == 0 {
        return Err(Fault { offset: 0, kind: ErrorKind::Empty });
    }
    let magic = cursor.take(4, "the magic `GGUF`")?;
    if magic != b"GGUF" {
        let found = String::from_utf8_lossy(magic).into_owned();
        return Err(Fault { offset: 0, kind: ErrorKind::Magic(found) });
    }
    let offset = cursor.offset();
    let mut version = cursor.u32("the version")?;
    if version != 0 && version.trailing_zeros() >= 16 {
        version = version.swap_bytes();
        cursor.order = ByteOrder::Big;
    }
    match version {
        2 | 3 => Ok(version),
        _ => Err(Fault { offset, kind: ErrorKind::Version(version) }),
    }
}

/// A count of things of `smallest` bytes or more each, checked against what the file can hold.
fn read_count(cursor: &mut Cursor<'_>, what: &'static str, smallest: u64) -> Result<u64, Fault> {
    let offset = cursor.offset();
    let count = cursor.u64("a count")?;
    check_count(cursor, offset, what, count, smallest)?;
    Ok(count)
}

fn check_count(cursor: &Cursor<'_>, offset: u64, what: &'static str, count: u64, smallest: u64) -> Result<(), Fault> {
    let remaining = cursor.remaining();
    let most = remaining.checked_div(smallest).unwrap_or(0);
    if count > most {
        return Err(Fault { offset, kind: ErrorKind::Count { what, count, remaining, most } });
    }
    Ok(())
}

/// The metadata, and the alignment it states.
fn read_metadata(cursor: &mut Cursor<'_>, key_count: u64) -> Result<(Metadata, u64), Fault> {
    let mut metadata = Metadata::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut seen = HashSet::new();
    let mut left_to_keep = MAX_KEPT_ELEMENTS_IN_ALL;
    for number in 0..key_count {
        let offset = cursor.offset();
        let key = cursor.string("a key")?;
        if key.is_empty() {
            return Err(Fault { offset, kind: ErrorKind::EmptyKey(number) });
        }
        let text = String::from_utf8_lossy(key).into_owned();
        if !seen.insert(key) {
            return Err(Fault { offset, kind: ErrorKind::DuplicateKey(text) });
        }
        let in_key = |fault: Fault| fault.in_key(key);
        let (ty, value) = read_typed_value(cursor, key, &mut left_to_keep).map_err(in_key)?;
        if key == b"general.alignment" {
            alignment = check_alignment(ty, &value).map_err(|kind| in_key(Fault { offset, kind }))?;
        }
        metadata.insert(text, value);
    }
    Ok((metadata, alignment))
}

fn check_alignment(ty: ValueType, value: &Value) -> Result<u64, ErrorKind> {
    match (ty, value) {
        (ValueType::U32, Value::U64(alignment)) if alignment.is_power_of_two() => Ok(*alignment),
        (ValueType::U32, Value::U64(alignment)) => Err(ErrorKind::Alignment(*alignment)),
        (_, Value::Array(_) | Value::Counted { .. }) => Err(ErrorKind::AlignmentType("an array")),
        _ => Err(ErrorKind::AlignmentType(ty.name())),
    }
}

/// The types of metadata values (`enum gguf_type`), arrays aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

/// The id of the array type.
const ARRAY: u32 = 9;

impl ValueType {
    fn read(cursor: &mut Cursor<'_>) -> Result<Option<Self>, Fault> {
        let offset = cursor.offset();
        Ok(Some(match cursor.u32("a value's type")? {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            ARRAY => return Ok(None),
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            other => return Err(Fault { offset, kind: ErrorKind::ValueType(other) }),
        }))
    }

    /// llama.cpp's name of it.
    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "str",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a value; of a text, at least.
    fn smallest(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
        }
    }

    fn read_value(self, cursor: &mut Cursor<'_>) -> Result<Value, Fault> {
        let what = "a value";
        Ok(match self {
            Self::U8 => Value::U64(cursor.number(what, u8::from_le_bytes, u8::from_be_bytes)?.into()),
            Self::I8 => Value::I64(cursor.number(what, i8::from_le_bytes, i8::from_be_bytes)?.into()),
            Self::U16 => Value::U64(cursor.number(what, u16::from_le_bytes, u16::from_be_bytes)?.into()),
            Self::I16 => Value::I64(cursor.number(what, i16::from_le_bytes, i16::from_be_bytes)?.into()),
            Self::U32 => Value::U64(cursor.u32(what)?.into()),
            Self::I32 => Value::I64(cursor.number(what, i32::from_le_bytes, i32::from_be_bytes)?.into()),
            Self::F32 => Value::F64(cursor.number(what, f32::from_le_bytes, f32::from_be_bytes)?.into()),
            Self::Bool => Value::Bool(cursor.number(what, u8::from_le_bytes, u8::from_be_bytes)? != 0),
            Self::String => Value::String(String::from_utf8_lossy(cursor.string("a text")?).into_owned()),
            Self::U64 => Value::U64(cursor.u64(what)?),
            Self::I64 => Value::I64(cursor.number(what, i64::from_le_bytes, i64::from_be_bytes)?),
            Self::F64 => Value::F64(cursor.number(what, f64::from_le_bytes, f64::from_be_bytes)?),
        })
    }
}

/// A value and the type that the file gives it (of an array, its elements').
fn read_typed_value(cursor: &mut Cursor<'_>, key: &[u8], left_to_keep: &mut u64) -> Result<(ValueType, Value), Fault> {
    if let Some(ty) = ValueType::read(cursor)? {
        return Ok((ty, ty.read_value(cursor)?));
    }
    let offset = cursor.offset();
    let Some(ty) = ValueType::read(cursor)? else {
        return Err(Fault { offset, kind: ErrorKind::NestedArray });
    };
    let offset = cursor.offset();
    let len = cursor.u64("an array's length")?;
    if len > MAX_ARRAY_ELEMENTS {
        let kind = ErrorKind::Limit { what: "an array", count: len, limit: MAX_ARRAY_ELEMENTS };
        return Err(Fault { offset, kind });
    }
    check_count(cursor, offset, "array elements", len, ty.smallest())?;
    if key.starts_with(b"tokenizer.") || len > MAX_KEPT_ELEMENTS.min(*left_to_keep) {
        skip_elements(cursor, ty, len)?;
        return Ok((ty, Value::Counted { len }));
    }
    *left_to_keep = left_to_keep.saturating_sub(len);
    let mut elements = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    for _ in 0..len {
        elements.push(ty.read_value(cursor)?);
    }
    Ok((ty, Value::Array(elements)))
}

/// Steps over an array; allocates nothing.
fn skip_elements(cursor: &mut Cursor<'_>, ty: ValueType, len: u64) -> Result<(), Fault> {
    if ty == ValueType::String {
        for _ in 0..len {
            cursor.string("a text")?;
        }
    } else {
        cursor.take(len.saturating_mul(ty.smallest()), "an array")?;
    }
    Ok(())
}

/// The tensors; each starts where the padded ones before it end: no gap, no overlap, no other order.
fn read_tensors(cursor: &mut Cursor<'_>, tensor_count: u64, alignment: u64) -> Result<Vec<TensorInfo>, Fault> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    let mut next = 0;
    for _ in 0..tensor_count {
        let offset = cursor.offset();
        let name = cursor.string("a tensor's name")?;
        if count(name.len()) > MAX_NAME_LENGTH {
            return Err(Fault { offset, kind: ErrorKind::NameTooLong(count(name.len())) }.in_tensor(name));
        }
        if !seen.insert(name) {
            let kind = ErrorKind::DuplicateTensor(String::from_utf8_lossy(name).into_owned());
            return Err(Fault { offset, kind });
        }
        let tensor = read_tensor(cursor, name, next).map_err(|fault| fault.in_tensor(name))?;
        next = padded(tensor.bytes.0, alignment)
            .and_then(|bytes| next.checked_add(bytes))
            .ok_or_else(|| Fault { offset, kind: ErrorKind::TooLarge(tensor.shape) }.in_tensor(name))?;
        tensors.push(tensor);
    }
    Ok(tensors)
}

/// One tensor, which has to start at `expected` bytes of the data section.
fn read_tensor(cursor: &mut Cursor<'_>, name: &[u8], expected: u64) -> Result<TensorInfo, Fault> {
    let start = cursor.offset();
    let n_dims = cursor.u32("the number of dimensions")?;
    if n_dims > MAX_DIMS {
        return Err(Fault { offset: start, kind: ErrorKind::Dimensions(n_dims) });
    }
    let mut shape = [1; 4];
    for (index, dimension) in (0..n_dims).zip(&mut shape) {
        let offset = cursor.offset();
        let value = cursor.number("a dimension", i64::from_le_bytes, i64::from_be_bytes)?;
        *dimension =
            u64::try_from(value).map_err(|_| Fault { offset, kind: ErrorKind::NegativeDimension { index, value } })?;
    }
    let too_large = || Fault { offset: start, kind: ErrorKind::TooLarge(shape) };
    let elements = elements(shape).ok_or_else(too_large)?;
    let offset = cursor.offset();
    let id = cursor.u32("the tensor's type")?;
    let ty = tensor_type(id, shape).map_err(|kind| Fault { offset, kind })?;
    let bytes = ty.row_bytes(elements).map(Bytes).ok_or_else(too_large)?;
    let offset = cursor.offset();
    let found = cursor.u64("the tensor's offset")?;
    if found != expected {
        return Err(Fault { offset, kind: ErrorKind::Offset { found, expected } });
    }
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(TensorInfo { name, ty, n_dims, shape, offset: found, shard: 0, bytes })
}

/// The product of the dimensions, or `None` where llama.cpp calls it too large.
fn elements(shape: [u64; 4]) -> Option<u64> {
    shape.into_iter().try_fold(1_u64, |product, dimension| {
        let product = product.checked_mul(dimension)?;
        (product <= MAX_ELEMENTS).then_some(product)
    })
}

fn tensor_type(id: u32, shape: [u64; 4]) -> Result<GgmlType, ErrorKind> {
    let ty = GgmlType::from_id(id).ok_or(match id {
        ..FIRST_UNKNOWN_TYPE => ErrorKind::RemovedType(id),
        _ => ErrorKind::UnknownType(id),
    })?;
    let [elements, ..] = shape;
    if !elements.is_multiple_of(ty.block_size) {
        return Err(ErrorKind::PartialBlock { elements, ty: ty.name, block_size: ty.block_size });
    }
    Ok(ty)
}
