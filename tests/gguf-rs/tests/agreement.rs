//! gguf-rs as a second reader: on every header that it can read, both readers see the same; sizes are where it is wrong.
//!
//! Reads `testdata/headers` and, if MOEPLAN_HEADERS names a directory, its files. `--nocapture` shows counts and times.

#[path = "../../support/gguf_builder.rs"]
#[expect(dead_code, reason = "few bad files are built here")]
mod gguf_builder;

use std::fs::File;
use std::io::{Cursor, Read as _};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gguf_rs::{ByteOrder as TheirOrder, GGUFContainer, GGUFModel};
use moeplan::gguf::ggml_type::TYPES;
use moeplan::gguf::{ByteOrder, GgmlType, Header, Value};

/// More than any header has.
const LONGEST_HEADER: u64 = 64 << 20;

/// The header as gguf-rs reads it: an error or a panic is its refusal. Its own way of opening refuses big-endian files,
/// whose magic it expects reversed, so the order is given.
fn theirs(bytes: &[u8], order: ByteOrder) -> Result<GGUFModel, String> {
    let bytes = bytes.get(4..).unwrap_or_default().to_vec();
    catch_unwind(move || {
        let order = match order {
            ByteOrder::Little => TheirOrder::LE,
            ByteOrder::Big => TheirOrder::BE,
        };
        GGUFContainer::new(order, Box::new(Cursor::new(bytes)), u64::MAX).decode().map_err(|error| error.to_string())
    })
    .unwrap_or_else(|panic| {
        Err(format!("panic: {}", panic.downcast_ref::<&str>().copied().unwrap_or("of another type")))
    })
}

fn headers() -> Vec<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/headers");
    let mut directories = vec![ours];
    directories.extend(std::env::var_os("MOEPLAN_HEADERS").map(PathBuf::from));
    let mut files: Vec<PathBuf> = directories
        .iter()
        .flat_map(|directory| directory.read_dir().unwrap_or_else(|error| panic!("{}: {error}", directory.display())))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "gguf"))
        .collect();
    files.sort();
    files
}

fn same_value(ours: &Value, theirs: &serde_json::Value) -> bool {
    match ours {
        Value::U64(value) => theirs.as_u64() == Some(*value),
        Value::I64(value) => theirs.as_i64() == Some(*value),
        Value::Bool(value) => theirs.as_bool() == Some(*value),
        Value::String(value) => theirs.as_str() == Some(value),
        Value::Counted { len } => theirs.as_array().is_some_and(|array| array.len() as u64 == *len),
        // JSON has no infinities; an f32 comes as the shortest decimal of it.
        Value::F64(value) if !value.is_finite() => theirs.is_null(),
        Value::F64(value) => theirs.as_f64().is_some_and(|theirs| theirs == *value || theirs as f32 == *value as f32),
        Value::Array(values) => theirs.as_array().is_some_and(|theirs| {
            values.len() == theirs.len() && values.iter().zip(theirs).all(|(ours, theirs)| same_value(ours, theirs))
        }),
    }
}

fn assert_same(ours: &Header, theirs: &GGUFModel) {
    assert_eq!(format!("v{}", ours.version), theirs.get_version());
    assert_eq!(ours.metadata.keys().collect::<Vec<_>>(), theirs.metadata().keys().collect::<Vec<_>>());
    for (key, value) in &ours.metadata {
        assert!(same_value(value, &theirs.metadata()[key]), "{key}: {value:?}, {}", theirs.metadata()[key]);
    }
    assert_eq!((ours.alignment, ours.data_offset), (theirs.alignment(), theirs.data_offset()));
    assert_eq!(ours.tensors.len(), theirs.tensors().len());
    for (ours, theirs) in ours.tensors.iter().zip(theirs.tensors()) {
        assert_eq!(ours.name, theirs.name);
        assert_eq!(ours.ty.id, theirs.kind, "{}", ours.name);
        assert_eq!(ours.offset, theirs.offset, "{}", ours.name);
        assert_eq!(ours.n_dims, theirs.n_dimensions, "{}", ours.name);
        assert_eq!(&ours.shape[..theirs.shape.len()], theirs.shape.as_slice(), "{}", ours.name);
        if wrong_size(ours.ty).is_none() {
            assert_eq!(ours.bytes.0, theirs.size, "{}", ours.name);
        }
    }
}

/// The fastest of five times.
fn time_to_open(path: &Path) -> Duration {
    let once = || {
        let started = Instant::now();
        let opened = moeplan::gguf::open(path).map(|_| started.elapsed());
        opened.unwrap_or_else(|error| panic!("{error}"))
    };
    (0..5).map(|_| once()).min().unwrap_or_default()
}

#[test]
fn both_readers_see_the_same() {
    let (mut compared, mut tensors, mut values) = (0, 0, 0);
    let mut refused = Vec::new();
    let mut slowest = (Duration::ZERO, PathBuf::new());
    let (mut our_time, mut their_time) = (Duration::ZERO, Duration::ZERO);
    for path in headers() {
        slowest = slowest.max((time_to_open(&path), path.clone()));
        let file = File::open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        let mut bytes = Vec::new();
        file.take(LONGEST_HEADER).read_to_end(&mut bytes).unwrap();
        let started = Instant::now();
        let ours = Header::read(&bytes, length).unwrap_or_else(|fault| panic!("{}", fault.in_file(&path)));
        our_time += started.elapsed();
        bytes.truncate(usize::try_from(ours.data_offset).unwrap());
        let started = Instant::now();
        match theirs(&bytes, ours.byte_order) {
            Ok(theirs) => {
                their_time += started.elapsed();
                assert_same(&ours, &theirs);
                compared += 1;
                tensors += ours.tensors.len();
                values += ours.metadata.len();
            }
            Err(error) => refused.push(format!("{}: {error}", path.file_name().unwrap().display())),
        }
    }
    println!("{compared} headers agree: {tensors} tensors, {values} keys; {our_time:.1?}, gguf-rs {their_time:.1?}");
    println!("slowest to open: {:.1?} for {}", slowest.0, slowest.1.display());
    println!("gguf-rs refused {}: {}", refused.len(), refused.join("; "));
    assert!(compared >= 7, "{compared}");
}

/// What gguf-rs 0.1.8 says of a 4096×4096 tensor, against its bytes; `None` where it is right.
fn wrong_size(ty: GgmlType) -> Option<&'static str> {
    WRONG_SIZES.iter().find(|(name, _)| *name == ty.name).map(|(_, says)| *says)
}

/// Every type that gguf-rs 0.1.8 does not give the size of llama.cpp b11434.
const WRONG_SIZES: &[(&str, &str)] = &[
    ("q8_1", "1.1111 times"),
    ("iq4_nl", "0.1250 times"),
    ("i8", "0.0039 times"),
    ("i16", "0.0039 times"),
    ("i32", "0.0039 times"),
    ("i64", "0.0039 times"),
    ("f64", "0.0039 times"),
    ("bf16", "0.0039 times"),
    ("mxfp4", "2.0074 times"),
    ("nvfp4", "panic: internal error: entered unreachable code: GGMLType::Count is not a real data format"),
    ("q1_0", "invalid GGML type"),
    ("q2_0", "invalid GGML type"),
];

#[test]
fn the_sizes_that_gguf_rs_gives() {
    let mut found = Vec::new();
    // Types of later builds and of ik_llama.cpp are not its matter.
    for row in TYPES.iter().filter(|row| row.since == 0) {
        let ty = GgmlType::from_id(row.id).unwrap();
        let bytes = ty.row_bytes(4096 * 4096).unwrap();
        let file = gguf_builder::Builder::new().tensor("t", &[4096, 4096], row.id, bytes);
        let says = match theirs(&file.header(), ByteOrder::Little) {
            Ok(theirs) if theirs.tensors()[0].size == bytes => continue,
            Ok(theirs) => format!("{:.4} times", theirs.tensors()[0].size as f64 / bytes as f64),
            Err(error) => error,
        };
        println!("{:8} {says}", row.name);
        found.push((row.name, says));
    }
    let found: Vec<(&str, &str)> = found.iter().map(|(name, says)| (*name, says.as_str())).collect();
    assert_eq!(found, WRONG_SIZES);
}
