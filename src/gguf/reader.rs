//! One GGUF header from bytes: bounded, checked, nothing trusted.
//!
//! The checks are those of llama.cpp's own reader (`ggml/src/gguf.cpp`, b11434), one pass, nothing copied that is not
//! kept. Where llama.cpp has no limit there is one here, so that time and memory are bounded for a file of any length.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Seek};

use super::cursor::{Cursor, over_limit};
use super::error::{At, Fault, shown};
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
const A_TEXT: &str = "a text";
/// Type ids below this one that are not in the table were removed from ggml.
const FIRST_UNKNOWN_TYPE: u32 = 43;

impl Header {
    /// Reads the header of a file of `file_bytes` bytes from its first `bytes` (or all of them).
    ///
    /// With too few bytes the fault is [`Fault::Ends`]: a caller that holds only a part may come back with more.
    pub fn read(bytes: &[u8], file_bytes: u64) -> Result<Self, At> {
        Self::of(Cursor::new(io::Cursor::new(bytes), bytes.len() as u64, file_bytes))
    }

    /// Reads the header of a file of `file_bytes` bytes, which is at its start.
    pub fn read_from(file: impl Read + Seek, file_bytes: u64) -> Result<Self, At> {
        Self::of(Cursor::new(file, file_bytes, file_bytes))
    }

    fn of(cursor: Cursor<impl Read + Seek>) -> Result<Self, At> {
        let mut reader = Reader { cursor, elements: MAX_KEPT_ELEMENTS_IN_ALL, text: MAX_KEPT_TEXT_IN_ALL };
        let version = reader.version()?;
        let tensor_count = reader.count("tensors", SMALLEST_TENSOR, MAX_TENSORS)?;
        let key_count = reader.count("keys", SMALLEST_KEY_VALUE, MAX_KEYS)?;
        let (metadata, alignment) = reader.metadata(key_count)?;
        let tensors = reader.tensors(tensor_count, alignment)?;
        let (end, file_bytes) = (reader.cursor.offset(), reader.cursor.file_bytes);
        let data_offset =
            if tensors.is_empty() { end } else { end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX) };
        let header = Self { version, byte_order: reader.cursor.order, alignment, data_offset, metadata, tensors };
        // All data is within the file (`src/llama-model-loader.h`, `llama_tensor_weight`).
        let end = |tensor: &TensorInfo| {
            data_offset.saturating_add(tensor.offset).saturating_add(tensor.bytes.0).max(data_offset)
        };
        let Some(cut) = header.tensors.iter().find(|tensor| end(tensor) > file_bytes) else { return Ok(header) };
        let expected = header.tensors.last().map_or(0, end);
        let message = format!(
            "{} bytes of tensor data are missing at the end: the file has {file_bytes} of {expected} bytes (`{}` is the \
             first tensor that is cut off)",
            expected.saturating_sub(file_bytes),
            cut.name
        );
        Err(At::new(file_bytes, Fault::Unfinished, message))
    }
}

/// The types of metadata values (`enum gguf_type`) by id: llama.cpp's name of it, and the bytes of a value; of a text, at least.
static VALUE_TYPES: [(&str, u64); 13] = [
    ("u8", 1),
    ("i8", 1),
    ("u16", 2),
    ("i16", 2),
    ("u32", 4),
    ("i32", 4),
    ("f32", 4),
    ("bool", 1),
    ("str", 8),
    ("arr", 12),
    ("u64", 8),
    ("i64", 8),
    ("f64", 8),
];

fn refused(offset: u64, message: impl Into<String>) -> At {
    At::new(offset, Fault::Refused, message)
}

/// A header while it is read, and what of it may still be kept.
struct Reader<R> {
    cursor: Cursor<R>,
    elements: u64,
    text: u64,
}

impl<R: Read + Seek> Reader<R> {
    fn version(&mut self) -> Result<u32, At> {
        let cursor = &mut self.cursor;
        if cursor.remaining == 0 {
            return Err(At::new(0, Fault::Unfinished, "the file is empty"));
        }
        let magic = cursor.bytes("the magic `GGUF`")?;
        if magic != *b"GGUF" {
            let found = String::from_utf8_lossy(&magic);
            let message = format!("not a GGUF file: it starts with `{found}` instead of `GGUF`");
            return Err(At::new(0, Fault::Magic(magic), message));
        }
        let offset = cursor.offset();
        let mut version = cursor.u32("the version")?;
        if version != 0 && version.trailing_zeros() >= 16 {
            version = version.swap_bytes();
            cursor.order = ByteOrder::Big;
        }
        if matches!(version, 2 | 3) {
            return Ok(version);
        }
        let what = if version < 2 { Fault::Old } else { Fault::New };
        Err(At::new(offset, what, format!("GGUF version {version} is not supported, only 2 and 3")))
    }

    /// A count of things of `smallest` bytes or more each, checked against what the file can hold.
    fn count(&mut self, what: &'static str, smallest: u64, limit: u64) -> Result<u64, At> {
        let offset = self.cursor.offset();
        let count = self.cursor.u64("a count")?;
        self.check_count(offset, what, count, smallest)?;
        if count > limit {
            let message = format!("{count} {what} are more than any model has: moeplan reads at most {limit}");
            return Err(At::new(offset, Fault::Excessive, message));
        }
        Ok(count)
    }

    fn check_count(&self, offset: u64, what: &'static str, count: u64, smallest: u64) -> Result<(), At> {
        let remaining = self.cursor.remaining;
        let most = remaining.checked_div(smallest).unwrap_or(0);
        if count > most {
            let message = format!("{count} {what} are impossible: the {remaining} remaining bytes hold at most {most}");
            return Err(refused(offset, message));
        }
        Ok(())
    }

    fn text(&mut self, length: u64, what: &'static str) -> Result<String, At> {
        let bytes = self.cursor.take(length, what)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// The metadata, and the alignment it states. Keys that differ only in bytes that are not UTF-8 count as the same.
    fn metadata(&mut self, key_count: u64) -> Result<(Metadata, u64), At> {
        let mut metadata = Metadata::new();
        let mut alignment = DEFAULT_ALIGNMENT;
        for number in 0..key_count {
            let offset = self.cursor.offset();
            let length = self.cursor.text_length("a key")?;
            if length == 0 {
                return Err(refused(offset, format!("key number {number} is empty")));
            }
            if length > MAX_KEY_LENGTH {
                let message =
                    format!("a key of {length} bytes is over the GGUF specification's limit of {MAX_KEY_LENGTH}");
                return Err(At::new(offset, Fault::Excessive, message));
            }
            let key = self.text(length, "a key")?;
            if metadata.contains_key(&key) {
                return Err(refused(offset, format!("key `{}` appears twice", shown(&key))));
            }
            let (ty, value) = self.typed_value(&key).map_err(|fault| fault.within("key", &key))?;
            if key == "general.alignment" {
                let wrong = |message: String| Err(refused(offset, message).within("key", &key));
                alignment = match value {
                    Value::U64(stated) if ty == "u32" && stated.is_power_of_two() => stated,
                    Value::U64(stated) if ty == "u32" => {
                        return wrong(format!("alignment {stated} is not a power of two"));
                    }
                    _ => return wrong(format!("must be of type u32, but is {ty}")),
                };
            }
            metadata.insert(key, value);
        }
        Ok((metadata, alignment))
    }

    /// The name of a type of values, and the bytes of its smallest value.
    fn value_type(&mut self) -> Result<(&'static str, u64), At> {
        let offset = self.cursor.offset();
        let id = self.cursor.u32("a value's type")?;
        let row = usize::try_from(id).ok().and_then(|id| VALUE_TYPES.get(id)).copied();
        row.ok_or_else(|| At::new(offset, Fault::New, format!("value type {id} does not exist")))
    }

    fn value(&mut self, ty: &str) -> Result<Value, At> {
        let (cursor, what) = (&mut self.cursor, "a value");
        Ok(match ty {
            "u8" => Value::U64(u8::from_le_bytes(cursor.bytes(what)?).into()),
            "i8" => Value::I64(i8::from_le_bytes(cursor.bytes(what)?).into()),
            "u16" => Value::U64(u16::from_le_bytes(cursor.bytes(what)?).into()),
            "i16" => Value::I64(i16::from_le_bytes(cursor.bytes(what)?).into()),
            "u32" => Value::U64(cursor.u32(what)?.into()),
            "i32" => Value::I64(i32::from_le_bytes(cursor.bytes(what)?).into()),
            "f32" => Value::F64(f32::from_le_bytes(cursor.bytes(what)?).into()),
            "bool" => Value::Bool(u8::from_le_bytes(cursor.bytes(what)?) != 0),
            "str" => {
                let len = cursor.text_length(A_TEXT)?;
                if len > MAX_KEPT_TEXT.min(self.text) {
                    cursor.skip(len, A_TEXT)?;
                    return Ok(Value::Counted { len });
                }
                self.text = self.text.saturating_sub(len);
                Value::String(self.text(len, A_TEXT)?)
            }
            "u64" => Value::U64(cursor.u64(what)?),
            "i64" => Value::I64(i64::from_le_bytes(cursor.bytes(what)?)),
            _ => Value::F64(f64::from_le_bytes(cursor.bytes(what)?)),
        })
    }

    /// A value and llama.cpp's name of its type.
    fn typed_value(&mut self, key: &str) -> Result<(&'static str, Value), At> {
        let (ty, _) = self.value_type()?;
        if ty != "arr" {
            return Ok((ty, self.value(ty)?));
        }
        let offset = self.cursor.offset();
        let (ty, smallest) = self.value_type()?;
        if ty == "arr" {
            return Err(refused(offset, "an array of arrays is not allowed"));
        }
        let offset = self.cursor.offset();
        let len = self.cursor.u64("an array's length")?;
        if len > MAX_ARRAY_ELEMENTS {
            return Err(over_limit(offset, "an array", len, MAX_ARRAY_ELEMENTS));
        }
        self.check_count(offset, "array elements", len, smallest)?;
        if key.starts_with("tokenizer.") || len > MAX_KEPT_ELEMENTS.min(self.elements) {
            match ty {
                "str" => self.cursor.skip_texts(len, A_TEXT)?,
                _ => self.cursor.skip(len.saturating_mul(smallest), "an array")?,
            }
            return Ok(("an array", Value::Counted { len }));
        }
        self.elements = self.elements.saturating_sub(len);
        let elements = (0..len).map(|_| self.value(ty)).collect::<Result<_, _>>()?;
        Ok(("an array", Value::Array(elements)))
    }

    /// The tensors; each starts where the padded ones before it end: no gap, no overlap, no other order.
    fn tensors(&mut self, tensor_count: u64, alignment: u64) -> Result<Vec<TensorInfo>, At> {
        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut seen = HashSet::new();
        let hasher = RandomState::new();
        let (mut next, what) = (0_u64, "a tensor's name");
        for _ in 0..tensor_count {
            let offset = self.cursor.offset();
            let length = self.cursor.text_length(what)?;
            let name = self.text(length.min(MAX_NAME_LENGTH), what)?;
            if length > MAX_NAME_LENGTH {
                let message = format!("the name has {length} bytes; llama.cpp accepts at most {MAX_NAME_LENGTH}");
                return Err(refused(offset, message).within("tensor", &format!("{name}…")));
            }
            // Hashes of names, so that the names need not be kept twice; equal hashes are looked into.
            if !seen.insert(hasher.hash_one(&name)) && tensors.iter().any(|tensor| tensor.name == name) {
                return Err(refused(offset, format!("tensor `{name}` appears twice")));
            }
            let tensor = self.tensor(next).map_err(|fault| fault.within("tensor", &name))?;
            let padded = tensor.bytes.0.checked_next_multiple_of(alignment);
            next = padded
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
    fn tensor(&mut self, expected: u64) -> Result<TensorInfo, At> {
        let cursor = &mut self.cursor;
        let start = cursor.offset();
        let n_dims = cursor.u32("the number of dimensions")?;
        if n_dims > MAX_DIMS {
            return Err(refused(start, format!("{n_dims} dimensions; llama.cpp accepts at most {MAX_DIMS}")));
        }
        let mut shape = [1; 4];
        for (index, dimension) in (0..n_dims).zip(&mut shape) {
            let offset = cursor.offset();
            let value = i64::from_le_bytes(cursor.bytes("a dimension")?);
            let negative = |_| refused(offset, format!("dimension {index} is negative: {value}"));
            *dimension = u64::try_from(value).map_err(negative)?;
        }
        let too_large = || too_large(start, shape);
        // llama.cpp's counts are signed.
        let most = i64::MAX.unsigned_abs();
        let product = |all: u64, n: u64| all.checked_mul(n).filter(|product| *product <= most);
        shape.into_iter().try_fold(1, product).ok_or_else(too_large)?;
        let offset = cursor.offset();
        let id = cursor.u32("the tensor's type")?;
        let ty = GgmlType::from_id(id).ok_or_else(|| match id {
            ..FIRST_UNKNOWN_TYPE => At::new(offset, Fault::Old, format!("type id {id} was removed from ggml")),
            _ => At::new(offset, Fault::New, format!("type id {id} is unknown")),
        })?;
        let ([row, ..], block) = (shape, ty.block_size);
        if !row.is_multiple_of(block) {
            let message = format!("rows of {row} elements are not a multiple of the {block} of a {ty} block");
            return Err(refused(offset, message));
        }
        let bytes = ty.bytes(&shape).map(Bytes).ok_or_else(too_large)?;
        let offset = cursor.offset();
        let found = cursor.u64("the tensor's offset")?;
        if found != expected {
            let gap = if found > expected { "a gap" } else { "an overlap" };
            let bytes = found.abs_diff(expected);
            let message = format!("its data starts at {found} instead of {expected}, {gap} of {bytes} bytes");
            return Err(refused(offset, message));
        }
        Ok(TensorInfo { name: String::new(), ty, n_dims, shape, offset: found, shard: 0, bytes })
    }
}

fn too_large(offset: u64, shape: [u64; 4]) -> At {
    refused(offset, format!("shape {shape:?} is too large for 64 bits"))
}

/// More tensor data than moeplan reckons with.
pub(super) fn too_much_data(offset: impl Into<Option<u64>>) -> At {
    let message = format!("the tensor data exceeds {MAX_DATA} bytes, more than any model has");
    At::new(offset, Fault::Excessive, message)
}
