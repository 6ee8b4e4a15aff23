//! The files of a split model: their names, and the checks that make them one.
//!
//! As `src/llama-model-loader.cpp` and `llama_split_path` of llama.cpp b11434 do: `<prefix>-00001-of-00003.gguf`,
//! metadata from the first file only, `split.no` from 0, every tensor name once.

use std::collections::HashSet;

use super::cursor::over_limit;
use super::error::{At, Fault};
use super::reader::{MAX_DATA, too_much_data};
use super::{Header, Value};

/// What a file's metadata says about its place in a split model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Which shard, from 1 (`split.no` + 1).
    pub number: u64,
    /// How many shards there are (`split.count`).
    pub count: u64,
}

impl Split {
    /// The split of a file, or `None` for a whole model.
    pub fn of(header: &Header) -> Result<Option<Self>, At> {
        let Some(count) = integer(header, "split.count") else {
            let is_there = header.metadata.contains_key("split.count");
            return if is_there { Err(no_number("split.count")) } else { Ok(None) };
        };
        if count <= 1 {
            return Ok(None);
        }
        if count > u64::from(u16::MAX) {
            return Err(over_limit(None, "a split", count, u16::MAX.into()));
        }
        let number = integer(header, "split.no").ok_or(no_number("split.no"))?.saturating_add(1);
        if number > count {
            return Err(wrong_name(Self { number, count }));
        }
        Ok(Some(Self { number, count }))
    }

    /// The part of the file's name before `-00001-of-00003.gguf`.
    pub fn prefix(self, file_name: &str) -> Result<&str, At> {
        match parse_name(file_name) {
            Some((prefix, named)) if named == self => Ok(prefix),
            Some((_, named)) if named.count == self.count => {
                Err(wrong_number(self.number.saturating_sub(1), named.number))
            }
            _ => Err(wrong_name(self)),
        }
    }

    pub fn name(self, prefix: &str, number: u64) -> String {
        format!("{prefix}-{number:05}-of-{:05}.gguf", self.count)
    }
}

/// Prefix and place of a shard's file name; `None` for any other name.
pub fn parse_name(file_name: &str) -> Option<(&str, Split)> {
    let stem = file_name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((prefix, Split { number: five(number)?, count: five(count)? }))
}

fn no_number(key: &str) -> At {
    At::new(None, Fault::Refused, format!("key `{key}` is missing or is not a number, though the model is split"))
}

/// A shard's name does not follow `<prefix>-00001-of-00003.gguf`, or is not its own.
pub(super) fn wrong_name(Split { number, count }: Split) -> At {
    let message = format!("holds shard {number} of {count}, but is not named `…-{number:05}-of-{count:05}.gguf`");
    At::new(None, Fault::ShardName, message)
}

/// `split.no` of the file, from 0, is not the number that its name says, from 1.
fn wrong_number(found: u64, number: u64) -> At {
    let expected = number.saturating_sub(1);
    let message = format!("`split.no` is {found}, but the file's name says shard {number} (`split.no` {expected})");
    At::new(None, Fault::Shards, message)
}

pub(super) fn missing(number: u64, count: u64) -> At {
    At::new(None, Fault::MissingShard, format!("shard {number} of {count} is missing"))
}

fn integer(header: &Header, key: &str) -> Option<u64> {
    header.metadata.get(key)?.as_u64()
}

/// Joins the headers of all shards, in order; an error comes with the shard at fault, from 0.
pub fn join(shards: Vec<Header>) -> Result<Header, (usize, At)> {
    if let [first, ..] = shards.as_slice() {
        for (index, shard) in shards.iter().enumerate() {
            check_shard(first, shard, index).map_err(|kind| (index, kind))?;
        }
    }
    let mut rest = shards.into_iter();
    let Some(mut first) = rest.next() else { return Err((0, missing(1, 0))) };
    for (index, shard) in (1..).zip(rest) {
        let number = u16::try_from(index).map_err(|_| (index, no_number("split.count")))?;
        first.tensors.extend(shard.tensors.into_iter().map(|mut tensor| {
            tensor.shard = number;
            tensor
        }));
    }
    let mut seen = HashSet::with_capacity(first.tensors.len());
    let mut bytes = 0_u64;
    for tensor in &first.tensors {
        bytes = bytes.saturating_add(tensor.bytes.0);
        if bytes > MAX_DATA {
            return Err((tensor.shard.into(), too_much_data(None)));
        }
        if !seen.insert(tensor.name.as_str()) {
            let message = format!("tensor `{}` appears twice", tensor.name);
            return Err((tensor.shard.into(), At::new(None, Fault::Refused, message)));
        }
    }
    let found = first.tensors.len() as u64;
    match integer(&first, "split.tensors.count") {
        None => Err((0, no_number("split.tensors.count"))),
        Some(expected) if expected != found => {
            let message = format!("the shards hold {found} tensors together, `split.tensors.count` says {expected}");
            Err((0, At::new(None, Fault::Shards, message)))
        }
        Some(_) => Ok(first),
    }
}

/// That `shard` is number `index` (from 0) of the model of `first`.
fn check_shard(first: &Header, shard: &Header, index: usize) -> Result<(), At> {
    let number = index as u64;
    let found = integer(shard, "split.no").ok_or(no_number("split.no"))?;
    if found != number {
        return Err(wrong_number(found, number.saturating_add(1)));
    }
    let other = |what, found: String, expected: String| {
        let message =
            format!("this shard belongs to another model: {what} is {found} here and {expected} in the first shard");
        At::new(None, Fault::Shards, message)
    };
    if shard.byte_order != first.byte_order {
        return Err(other("the byte order", shard.byte_order.to_string(), first.byte_order.to_string()));
    }
    // A shard after the first usually states the three split keys only.
    for key in ["split.count", "split.tensors.count", "general.architecture", "general.name"] {
        if let (Some(found), Some(expected)) = (shard.metadata.get(key), first.metadata.get(key))
            && found != expected
        {
            return Err(other(key, shown(found), shown(expected)));
        }
    }
    Ok(())
}

fn shown(value: &Value) -> String {
    match value {
        Value::U64(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::String(text) => format!("`{text}`"),
        _ => "something else".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_parse_as_llama_cpp_writes_them() {
        let split = Split { number: 2, count: 3 };
        assert_eq!(split.name("models/a-of-b", 2), "models/a-of-b-00002-of-00003.gguf");
        assert_eq!(parse_name("a-of-b-00002-of-00003.gguf"), Some(("a-of-b", split)));
        for name in ["a.gguf", "a-2-of-3.gguf", "a-00002-of-00003.bin", "a-00002-of-0000x.gguf", "00002-of-00003.gguf"]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
