//! One GGUF header from bytes: bounded, checked, nothing trusted.
//!
//! The checks are those of llama.cpp's own reader (`ggml/src/gguf.cpp`, b11434), one pass, nothing copied that is not
//! kept. Where llama.cpp has no limit there is one here, so that time and memory are bounded for a file of any length.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use super::cursor::{Cursor, over_limit};
use super::error::{At, Fault, shown};
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
    /// With too few bytes the fault is [`Fault::Ends`]: a caller that holds only a part may come back with more.
    pub fn read(bytes: &[u8], file_bytes: u64) -> Result<Self, At> {
        Self::read_from(bytes, file_bytes)
    }

    /// Reads the header of a file of `file_bytes` bytes through a window at its start.
    pub fn read_from(window: impl Window, file_bytes: u64) -> Result<Self, At> {
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
    fn check_data(&self, file_bytes: u64) -> Result<(), At> {
        let end = |tensor: &TensorInfo| {
            self.data_offset.saturating_add(tensor.offset).saturating_add(tensor.bytes.0).max(self.data_offset)
        };
        let expected = self.tensors.last().map_or(0, end);
        let Some(cut) = self.tensors.iter().find(|tensor| end(tensor) > file_bytes) else { return Ok(()) };
        let missing = expected.saturating_sub(file_bytes);
        let message = format!(
            "{missing} bytes of tensor data are missing at the end: the file has {file_bytes} of {expected} bytes (`{}` is the \
             first tensor that is cut)",
            cut.name
        );
        Err(At::new(file_bytes, Fault::Unfinished, message))
    }
}

/// `bytes` rounded up to a multiple of a power of two, or `None` past 64 bits.
fn padded(bytes: u64, alignment: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(alignment)
}

fn read_magic_and_version(cursor: &mut Cursor<impl Window>) -> Result<u32, At> {
    if cursor.remaining() == 0 {
        return Err(At::new(0, Fault::Unfinished, "the file is empty"));
    }
    let magic = cursor.take(4, "the magic `GGUF`")?;
    if magic != b"GGUF" {
        let message = format!("not a GGUF file: it starts with `{}` instead of `GGUF`", String::from_utf8_lossy(magic));
        return Err(At::new(0, Fault::Magic(magic.try_into().unwrap_or_default()), message));
    }
    let offset = cursor.offset();
    let mut version = cursor.u32("the version")?;
    if version != 0 && version.trailing_zeros() >= 16 {
        version = version.swap_bytes();
        cursor.order = ByteOrder::Big;
    }
    match version {
        2 | 3 => Ok(version),
        _ => {
            let what = if version < 2 { Fault::Old } else { Fault::New };
            Err(At::new(offset, what, format!("GGUF version {version} is not supported, only 2 and 3")))
        }
    }
}

/// A count of things of `smallest` bytes or more each, checked against what the file can hold.
fn read_count(cursor: &mut Cursor<impl Window>, what: &'static str, smallest: u64, limit: u64) -> Result<u64, At> {
    let offset = cursor.offset();
    let count = cursor.u64("a count")?;
    check_count(cursor, offset, what, count, smallest)?;
    if count > limit {
        let message = format!("{count} {what} are more than any model has: moeplan reads {limit} at most");
        return Err(At::new(offset, Fault::Excessive, message));
    }
    Ok(count)
}

fn check_count(
    cursor: &Cursor<impl Window>,
    offset: u64,
    what: &'static str,
    count: u64,
    smallest: u64,
) -> Result<(), At> {
    let remaining = cursor.remaining();
    let most = remaining.checked_div(smallest).unwrap_or(0);
    if count > most {
        let message = format!("{count} {what} cannot be: the {remaining} bytes that remain hold {most} at most");
        return Err(At::new(offset, Fault::Refused, message));
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
    fn text(&mut self, cursor: &mut Cursor<impl Window>) -> Result<Result<String, u64>, At> {
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
fn read_metadata(cursor: &mut Cursor<impl Window>, key_count: u64) -> Result<(Metadata, u64), At> {
    let mut metadata = Metadata::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut allowance = Allowance { elements: MAX_KEPT_ELEMENTS_IN_ALL, text: MAX_KEPT_TEXT_IN_ALL };
    for number in 0..key_count {
        let offset = cursor.offset();
        let length = cursor.text_length("a key")?;
        if length == 0 {
            return Err(At::new(offset, Fault::Refused, format!("key number {number} is empty")));
        }
        if length > MAX_KEY_LENGTH {
            let message = format!("a key of {length} bytes is over the GGUF specification's limit of {MAX_KEY_LENGTH}");
            return Err(At::new(offset, Fault::Excessive, message));
        }
        let key = String::from_utf8_lossy(cursor.take(length, "a key")?).into_owned();
        if metadata.contains_key(&key) {
            return Err(At::new(offset, Fault::Refused, format!("key `{}` is there twice", shown(&key))));
        }
        let (ty, value) = read_typed_value(cursor, &key, &mut allowance).map_err(|fault| fault.within("key", &key))?;
        if key == "general.alignment" {
            alignment = check_alignment(ty, &value)
                .map_err(|message| At::new(offset, Fault::Refused, message).within("key", &key))?;
        }
        metadata.insert(key, value);
    }
    Ok((metadata, alignment))
}

fn check_alignment(ty: &str, value: &Value) -> Result<u64, String> {
    match (ty, value) {
        ("u32", Value::U64(alignment)) if alignment.is_power_of_two() => Ok(*alignment),
        ("u32", Value::U64(alignment)) => Err(format!("alignment {alignment} is not a power of two")),
        _ => Err(format!("must be of type u32, but is {ty}")),
    }
}

/// A type of metadata values: its id in `enum gguf_type`, llama.cpp's name of it, and the bytes of a value; of a text, at least.
type ValueType = (u32, &'static str, u64);

const STRING: u32 = 8;
const ARRAY: u32 = 9;
static VALUE_TYPES: [ValueType; 13] = [
    (0, "u8", 1),
    (1, "i8", 1),
    (2, "u16", 2),
    (3, "i16", 2),
    (4, "u32", 4),
    (5, "i32", 4),
    (6, "f32", 4),
    (7, "bool", 1),
    (STRING, "str", 8),
    (ARRAY, "arr", 12),
    (10, "u64", 8),
    (11, "i64", 8),
    (12, "f64", 8),
];

fn read_type(cursor: &mut Cursor<impl Window>) -> Result<&'static ValueType, At> {
    let offset = cursor.offset();
    let id = cursor.u32("a value's type")?;
    VALUE_TYPES
        .iter()
        .find(|(known, ..)| *known == id)
        .ok_or_else(|| At::new(offset, Fault::New, format!("value type {id} does not exist")))
}

/// A value of a type other than the array.
fn read_value(id: u32, cursor: &mut Cursor<impl Window>, allowance: &mut Allowance) -> Result<Value, At> {
    let what = "a value";
    Ok(match id {
        0 => Value::U64(u8::from_le_bytes(cursor.bytes(what)?).into()),
        1 => Value::I64(i8::from_le_bytes(cursor.bytes(what)?).into()),
        2 => Value::U64(u16::from_le_bytes(cursor.bytes(what)?).into()),
        3 => Value::I64(i16::from_le_bytes(cursor.bytes(what)?).into()),
        4 => Value::U64(cursor.u32(what)?.into()),
        5 => Value::I64(i32::from_le_bytes(cursor.bytes(what)?).into()),
        6 => Value::F64(f32::from_le_bytes(cursor.bytes(what)?).into()),
        7 => Value::Bool(u8::from_le_bytes(cursor.bytes(what)?) != 0),
        STRING => match allowance.text(cursor)? {
            Ok(text) => Value::String(text),
            Err(len) => Value::Counted { len },
        },
        10 => Value::U64(cursor.u64(what)?),
        11 => Value::I64(i64::from_le_bytes(cursor.bytes(what)?)),
        _ => Value::F64(f64::from_le_bytes(cursor.bytes(what)?)),
    })
}

/// A value and llama.cpp's name of its type.
fn read_typed_value(
    cursor: &mut Cursor<impl Window>,
    key: &str,
    allowance: &mut Allowance,
) -> Result<(&'static str, Value), At> {
    let (id, name, _) = *read_type(cursor)?;
    if id != ARRAY {
        return Ok((name, read_value(id, cursor, allowance)?));
    }
    let offset = cursor.offset();
    let (id, _, smallest) = *read_type(cursor)?;
    if id == ARRAY {
        return Err(At::new(offset, Fault::Refused, "an array of arrays is not allowed"));
    }
    let offset = cursor.offset();
    let len = cursor.u64("an array's length")?;
    if len > MAX_ARRAY_ELEMENTS {
        return Err(over_limit(offset, "an array", len, MAX_ARRAY_ELEMENTS));
    }
    check_count(cursor, offset, "array elements", len, smallest)?;
    if key.starts_with("tokenizer.") || len > MAX_KEPT_ELEMENTS.min(allowance.elements) {
        match id {
            STRING => cursor.skip_texts(len, A_TEXT)?,
            _ => cursor.skip(len.saturating_mul(smallest), "an array")?,
        }
        return Ok(("an array", Value::Counted { len }));
    }
    allowance.elements = allowance.elements.saturating_sub(len);
    let mut elements = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    for _ in 0..len {
        elements.push(read_value(id, cursor, allowance)?);
    }
    Ok(("an array", Value::Array(elements)))
}

/// The tensors; each starts where the padded ones before it end: no gap, no overlap, no other order.
fn read_tensors(cursor: &mut Cursor<impl Window>, tensor_count: u64, alignment: u64) -> Result<Vec<TensorInfo>, At> {
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
            let message = format!("the name has {length} bytes, llama.cpp takes {MAX_NAME_LENGTH} at most");
            return Err(At::new(offset, Fault::Refused, message).within("tensor", &name));
        }
        let name = String::from_utf8_lossy(cursor.take(length, what)?).into_owned();
        // Hashes of names, so that the names need not be kept twice; equal hashes are looked into.
        if !seen.insert(hasher.hash_one(&name)) && tensors.iter().any(|tensor| tensor.name == name) {
            return Err(At::new(offset, Fault::Refused, format!("tensor `{name}` is there twice")));
        }
        let tensor = read_tensor(cursor, next).map_err(|fault| fault.within("tensor", &name))?;
        next = padded(tensor.bytes.0, alignment)
            .and_then(|bytes| next.checked_add(bytes))
            .ok_or_else(|| too_large(offset, tensor.shape).within("tensor", &name))?;
        if next > MAX_DATA {
            return Err(too_much_data(offset).within("tensor", &name));
        }
        tensors.push(TensorInfo { name, ..tensor });
    }
    Ok(tensors)
}

/// One tensor, which has to start at `expected` bytes of the data section.
fn read_tensor(cursor: &mut Cursor<impl Window>, expected: u64) -> Result<TensorInfo, At> {
    let start = cursor.offset();
    let n_dims = cursor.u32("the number of dimensions")?;
    if n_dims > MAX_DIMS {
        let message = format!("{n_dims} dimensions, llama.cpp takes {MAX_DIMS} at most");
        return Err(At::new(start, Fault::Refused, message));
    }
    let mut shape = [1; 4];
    for (index, dimension) in (0..n_dims).zip(&mut shape) {
        let offset = cursor.offset();
        let value = i64::from_le_bytes(cursor.bytes("a dimension")?);
        *dimension = u64::try_from(value)
            .map_err(|_| At::new(offset, Fault::Refused, format!("dimension {index} is negative: {value}")))?;
    }
    let elements = elements(shape).ok_or_else(|| too_large(start, shape))?;
    let offset = cursor.offset();
    let id = cursor.u32("the tensor's type")?;
    let ty = tensor_type(id, shape).map_err(|(what, message)| At::new(offset, what, message))?;
    let bytes = ty.row_bytes(elements).map(Bytes).ok_or_else(|| too_large(start, shape))?;
    let offset = cursor.offset();
    let found = cursor.u64("the tensor's offset")?;
    if found != expected {
        let gap = if found > expected { "a gap" } else { "an overlap" };
        let message =
            format!("its data starts at {found} instead of {expected}, {gap} of {} bytes", found.abs_diff(expected));
        return Err(At::new(offset, Fault::Refused, message));
    }
    Ok(TensorInfo { name: String::new(), ty, n_dims, shape, offset: found, shard: 0, bytes })
}

fn too_large(offset: u64, shape: [u64; 4]) -> At {
    At::new(offset, Fault::Refused, format!("shape {shape:?} is too large for 64 bits"))
}

/// More tensor data than moeplan reckons with.
pub(super) fn too_much_data(offset: impl Into<Option<u64>>) -> At {
    let message = format!("the tensor data goes on past {MAX_DATA} bytes, which is more than any model has");
    At::new(offset, Fault::Excessive, message)
}

/// The product of the dimensions, or `None` where llama.cpp calls it too large.
fn elements(shape: [u64; 4]) -> Option<u64> {
    shape.into_iter().try_fold(1_u64, |product, dimension| {
        let product = product.checked_mul(dimension)?;
        (product <= MAX_ELEMENTS).then_some(product)
    })
}

fn tensor_type(id: u32, shape: [u64; 4]) -> Result<GgmlType, (Fault, String)> {
    let ty = GgmlType::from_id(id).ok_or(match id {
        ..FIRST_UNKNOWN_TYPE => (Fault::Old, format!("type id {id} was removed from ggml")),
        _ => (Fault::New, format!("type id {id} is unknown")),
    })?;
    let [elements, ..] = shape;
    if !elements.is_multiple_of(ty.block_size) {
        let message =
            format!("rows of {elements} elements are not a multiple of the {} of a {ty} block", ty.block_size);
        return Err((Fault::Refused, message));
    }
    Ok(ty)
}
