//! One GGUF header from bytes: bounded, checked, nothing trusted.
//!
//! The checks are those of llama.cpp's own reader (`ggml/src/gguf.cpp`, b11434), one pass, nothing copied that is not
//! kept. Where llama.cpp has no limit there is one here, so that time and memory are bounded for a file of any length.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use super::cursor::Cursor;
use super::error::{ErrorKind, Fault, shown};
use super::window::Window;
use super::{ByteOrder, GgmlType, Header, Metadata, TensorInfo, Value};
use crate::bytes::Bytes;

/// Most elements of an array that llama.cpp takes (`GGUF_MAX_ARRAY_ELEMENTS`).
pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 30;
/// Longer arrays are counted, not kept.
pub const MAX_KEPT_ELEMENTS: u64 = 4096;
/// Once a header's arrays hold this many elements together, further ones are counted, not kept.
pub const MAX_KEPT_ELEMENTS_IN_ALL: u64 = 1 << 16;
/// Longest text value that is kept, in bytes; longer ones are counted. The longest chat templates have 50 KB.
pub const MAX_KEPT_TEXT: u64 = 1 << 20;
/// Once the text values of a header have this many bytes together, further ones are counted, not kept.
pub const MAX_KEPT_TEXT_IN_ALL: u64 = 1 << 24;
/// Most keys of a header; models have about 50. llama.cpp has no such limit.
pub const MAX_KEYS: u64 = 1 << 16;
/// Longest key, in bytes, as the GGUF specification has it; llama.cpp takes longer ones.
pub const MAX_KEY_LENGTH: u64 = (1 << 16) - 1;
/// Most tensors of one file; the largest models have about 2000. llama.cpp has no such limit.
pub const MAX_TENSORS: u64 = 1 << 18;
/// Most bytes of tensor data, of all shards together: 1 PiB, so that no sum over a model passes 64 bits.
pub const MAX_DATA: u64 = 1 << 50;
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
/// What a text value is called in messages.
const A_TEXT: &str = "a text";
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
        Self::read_from(bytes, file_bytes)
    }

    /// Reads the header of a file of `file_bytes` bytes through a window at its start.
    pub fn read_from(window: impl Window, file_bytes: u64) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(window, file_bytes);
        let version = read_magic_and_version(&mut cursor)?;
        let tensor_count = read_count(&mut cursor, "tensors", SMALLEST_TENSOR, MAX_TENSORS)?;
        let key_count = read_count(&mut cursor, "keys", SMALLEST_KEY_VALUE, MAX_KEYS)?;
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

fn read_magic_and_version(cursor: &mut Cursor<impl Window>) -> Result<u32, Fault> {
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
fn read_count(cursor: &mut Cursor<impl Window>, what: &'static str, smallest: u64, limit: u64) -> Result<u64, Fault> {
    let offset = cursor.offset();
    let count = cursor.u64("a count")?;
    check_count(cursor, offset, what, count, smallest)?;
    if count > limit {
        return Err(Fault { offset, kind: ErrorKind::TooMany { what, count, limit } });
    }
    Ok(count)
}

fn check_count(
    cursor: &Cursor<impl Window>,
    offset: u64,
    what: &'static str,
    count: u64,
    smallest: u64,
) -> Result<(), Fault> {
    let remaining = cursor.remaining();
    let most = remaining.checked_div(smallest).unwrap_or(0);
    if count > most {
        return Err(Fault { offset, kind: ErrorKind::Count { what, count, remaining, most } });
    }
    Ok(())
}

/// What of a header may still be kept.
struct Allowance {
    elements: u64,
    text: u64,
}

impl Allowance {
    /// The text of `length` bytes that comes next, or `None`, stepped over, where it is too long to be kept.
    fn text(&mut self, cursor: &mut Cursor<impl Window>) -> Result<Result<String, u64>, Fault> {
        let length = cursor.text_length(A_TEXT)?;
        if length > MAX_KEPT_TEXT.min(self.text) {
            cursor.skip(length, A_TEXT)?;
            return Ok(Err(length));
        }
        self.text = self.text.saturating_sub(length);
        Ok(Ok(String::from_utf8_lossy(cursor.take(length, A_TEXT)?).into_owned()))
    }
}

/// The metadata, and the alignment it states. Keys that differ only in bytes that are no UTF-8 count as the same.
fn read_metadata(cursor: &mut Cursor<impl Window>, key_count: u64) -> Result<(Metadata, u64), Fault> {
    let mut metadata = Metadata::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut allowance = Allowance { elements: MAX_KEPT_ELEMENTS_IN_ALL, text: MAX_KEPT_TEXT_IN_ALL };
    for number in 0..key_count {
        let offset = cursor.offset();
        let length = cursor.text_length("a key")?;
        if length == 0 {
            return Err(Fault { offset, kind: ErrorKind::EmptyKey(number) });
        }
        if length > MAX_KEY_LENGTH {
            return Err(Fault { offset, kind: ErrorKind::KeyTooLong { length, limit: MAX_KEY_LENGTH } });
        }
        let key = String::from_utf8_lossy(cursor.take(length, "a key")?).into_owned();
        if metadata.contains_key(&key) {
            return Err(Fault { offset, kind: ErrorKind::DuplicateKey(shown(&key)) });
        }
        let in_key = |fault: Fault| fault.in_key(&key);
        let (ty, value) = read_typed_value(cursor, &key, &mut allowance).map_err(in_key)?;
        if key == "general.alignment" {
            alignment = check_alignment(ty, &value).map_err(|kind| in_key(Fault { offset, kind }))?;
        }
        metadata.insert(key, value);
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
    fn read(cursor: &mut Cursor<impl Window>) -> Result<Option<Self>, Fault> {
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

    fn read_value(self, cursor: &mut Cursor<impl Window>, allowance: &mut Allowance) -> Result<Value, Fault> {
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
            Self::String => match allowance.text(cursor)? {
                Ok(text) => Value::String(text),
                Err(len) => Value::Counted { len },
            },
            Self::U64 => Value::U64(cursor.u64(what)?),
            Self::I64 => Value::I64(cursor.number(what, i64::from_le_bytes, i64::from_be_bytes)?),
            Self::F64 => Value::F64(cursor.number(what, f64::from_le_bytes, f64::from_be_bytes)?),
        })
    }
}

/// A value and the type that the file gives it (of an array, its elements').
fn read_typed_value(
    cursor: &mut Cursor<impl Window>,
    key: &str,
    allowance: &mut Allowance,
) -> Result<(ValueType, Value), Fault> {
    if let Some(ty) = ValueType::read(cursor)? {
        return Ok((ty, ty.read_value(cursor, allowance)?));
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
    if key.starts_with("tokenizer.") || len > MAX_KEPT_ELEMENTS.min(allowance.elements) {
        skip_elements(cursor, ty, len)?;
        return Ok((ty, Value::Counted { len }));
    }
    allowance.elements = allowance.elements.saturating_sub(len);
    let mut elements = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    for _ in 0..len {
        elements.push(ty.read_value(cursor, allowance)?);
    }
    Ok((ty, Value::Array(elements)))
}

/// Steps over an array; allocates nothing.
fn skip_elements(cursor: &mut Cursor<impl Window>, ty: ValueType, len: u64) -> Result<(), Fault> {
    match ty {
        ValueType::String => cursor.skip_texts(len, A_TEXT),
        _ => cursor.skip(len.saturating_mul(ty.smallest()), "an array"),
    }
}

/// The tensors; each starts where the padded ones before it end: no gap, no overlap, no other order.
fn read_tensors(cursor: &mut Cursor<impl Window>, tensor_count: u64, alignment: u64) -> Result<Vec<TensorInfo>, Fault> {
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut seen = HashSet::new();
    let hasher = RandomState::new();
    let mut next = 0;
    for _ in 0..tensor_count {
        let offset = cursor.offset();
        let what = "a tensor's name";
        let length = cursor.text_length(what)?;
        if length > MAX_NAME_LENGTH {
            let name = String::from_utf8_lossy(cursor.take(MAX_NAME_LENGTH, what)?).into_owned() + "…";
            return Err(Fault { offset, kind: ErrorKind::NameTooLong(length) }.in_tensor(&name));
        }
        let name = String::from_utf8_lossy(cursor.take(length, what)?).into_owned();
        // Hashes of names, so that the names need not be kept twice; equal hashes are looked into.
        if !seen.insert(hasher.hash_one(&name)) && tensors.iter().any(|tensor| tensor.name == name) {
            return Err(Fault { offset, kind: ErrorKind::DuplicateTensor(name) });
        }
        let tensor = read_tensor(cursor, next).map_err(|fault| fault.in_tensor(&name))?;
        next = padded(tensor.bytes.0, alignment)
            .and_then(|bytes| next.checked_add(bytes))
            .ok_or_else(|| Fault { offset, kind: ErrorKind::TooLarge(tensor.shape) }.in_tensor(&name))?;
        if next > MAX_DATA {
            return Err(Fault { offset, kind: ErrorKind::TooMuchData(MAX_DATA) }.in_tensor(&name));
        }
        tensors.push(TensorInfo { name, ..tensor });
    }
    Ok(tensors)
}

/// One tensor, which has to start at `expected` bytes of the data section.
fn read_tensor(cursor: &mut Cursor<impl Window>, expected: u64) -> Result<TensorInfo, Fault> {
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
    Ok(TensorInfo { name: String::new(), ty, n_dims, shape, offset: found, shard: 0, bytes })
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
