//! The reader against small files that llama.cpp's own Python package wrote, and joined models.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::gguf_builder::{Builder, V, text};
use moeplan::gguf::ggml_type::TYPES;
use moeplan::gguf::{self, ByteOrder, Gguf, Header, Value};
use moeplan::suggest::Hint as _;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/headers").join(name)
}

fn open(name: &str) -> Gguf {
    gguf::open(&fixture(name)).unwrap_or_else(|error| panic!("{error}"))
}

/// Files of these names and bytes in a new directory.
fn directory(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

/// The error of opening `path`: one line that names the file it is about, and its hint.
fn refused(path: &Path) -> (String, String) {
    let error = gguf::open(path).expect_err("the model is bad");
    let line = error.to_string();
    assert!(line.starts_with(&format!("`{}`: ", error.path.display())), "{line}");
    assert!(!line.contains('\n'), "{line}");
    let hint = error.hint().unwrap_or_default().into_owned();
    (line, hint)
}

#[track_caller]
fn assert_refused(path: &Path, parts: &[&str]) {
    let (line, hint) = refused(path);
    for part in parts {
        assert!(line.contains(part) || hint.contains(part), "`{part}` is not in: {line} / {hint}");
    }
}

#[test]
fn every_type_has_the_size_that_ggufs_own_package_gives_it() {
    let header = open("every-type.gguf").header;
    // The package does not know q2_0 yet, nor what came after it, nor ik_llama.cpp's own.
    let known = TYPES.iter().filter(|row| row.since == 0 && row.name != "q2_0").map(|row| row.name);
    let named: Vec<&str> = header.tensors.iter().map(|tensor| tensor.ty.name).collect();
    assert_eq!(named, known.collect::<Vec<_>>());
    for tensor in &header.tensors {
        assert_eq!(tensor.name, format!("{}.weight", tensor.ty.name.to_lowercase()));
        assert_eq!(tensor.bytes.0, tensor.ty.block_bytes, "{}", tensor.name);
    }
}

#[test]
fn every_value_type_is_read_in_both_byte_orders() {
    for (name, order) in [("every-value.gguf", ByteOrder::Little), ("big-endian.gguf", ByteOrder::Big)] {
        let header = open(name).header;
        assert_eq!(header.byte_order, order);
        for (key, value) in [
            ("general.architecture", Value::String("llama".into())),
            ("x.u8", Value::U64(200)),
            ("x.i8", Value::I64(-100)),
            ("x.u16", Value::U64(60_000)),
            ("x.i16", Value::I64(-30_000)),
            ("x.u32", Value::U64(4_000_000_000)),
            ("x.i32", Value::I64(-2_000_000_000)),
            ("x.f32", Value::F64(0.25)),
            ("x.u64", Value::U64((1 << 63) + 5)),
            ("x.i64", Value::I64(-(1 << 62))),
            ("x.f64", Value::F64(1e300)),
            ("x.bool", Value::Bool(true)),
            ("x.text", Value::String("naïve 漢字".into())),
            ("x.ints", Value::Array(vec![Value::I64(1), Value::I64(2), Value::I64(3)])),
            ("x.bools", Value::Array(vec![Value::Bool(true), Value::Bool(false)])),
            ("x.texts", Value::Array(["a", "", "ccc"].map(|text| Value::String(text.into())).into())),
            ("tokenizer.ggml.tokens", Value::Counted { len: 3 }),
        ] {
            assert_eq!(header.metadata.get(key), Some(&value), "{name} {key}");
        }
        let [tensor] = header.tensors.as_slice() else { panic!("one tensor") };
        assert_eq!((tensor.n_dims, tensor.shape, tensor.bytes.0), (2, [32, 3, 1, 1], 192));
    }
}

#[test]
fn a_moe_header_of_each_kind_is_read() {
    for (name, version, alignment, up) in [
        ("moe-mxfp4.gguf", 3, 32, "mxfp4"),
        ("moe-q4_k.gguf", 3, 32, "q4_K"),
        ("version-2.gguf", 2, 32, "q4_K"),
        ("alignment-128.gguf", 3, 128, "iq4_xs"),
    ] {
        let model = open(name);
        assert_eq!((model.header.version, model.header.alignment), (version, alignment), "{name}");
        let tensor = model.header.tensors.iter().find(|tensor| tensor.name == "blk.1.ffn_up_exps.weight").unwrap();
        assert_eq!((tensor.ty.name, tensor.shape, tensor.n_dims), (up, [256, 2, 2, 1], 3), "{name}");
        let last = model.header.tensors.last().unwrap();
        let end = model.header.data_offset + last.offset + last.bytes.0.next_multiple_of(alignment);
        assert_eq!(model.files[0].bytes.0, end, "{name}");
    }
}

#[test]
fn any_shard_of_a_split_model_opens_all_of_it() {
    let whole = open("moe-q4_k.gguf").header;
    for name in ["split-00001-of-00002.gguf", "split-00002-of-00002.gguf"] {
        let split = open(name);
        assert_eq!(split.files.len(), 2);
        assert!(split.files[0].path.ends_with("split-00001-of-00002.gguf"));
        assert_eq!(split.header.metadata["qwen3moe.expert_count"], Value::U64(2));
        let tensors = |header: &Header| header.tensors.iter().map(|t| (t.name.clone(), t.shape)).collect::<Vec<_>>();
        assert_eq!(tensors(&split.header), tensors(&whole));
        assert_eq!(split.header.tensors.iter().map(|t| t.shard).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(split.header.tensors[5].offset, 0);
    }
}

fn shard(number: u16, tensor: &str) -> Builder {
    Builder::new().shard(number, 2, 2).tensor(tensor, &[32], 0, 128)
}

#[test]
fn missing_shard() {
    let files = directory(&[("m-00002-of-00002.gguf", shard(1, "b").build())]);
    let parts = ["m-00001-of-00002.gguf`", "shard 1 of 2 is missing", "put all shards into one directory"];
    assert_refused(&files.path().join("m-00002-of-00002.gguf"), &parts);
}

#[test]
fn shard_of_another_model() {
    let first = shard(0, "a").key("general.name", text("Old"));
    let second = shard(1, "b").key("general.name", text("New"));
    let files = directory(&[("m-00001-of-00002.gguf", first.build()), ("m-00002-of-00002.gguf", second.build())]);
    let parts =
        ["m-00002-of-00002.gguf`", "belongs to another model", "general.name is `New` here and `Old` in the first"];
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &parts);
}

#[test]
fn shard_of_a_model_with_more_tensors() {
    let second = Builder::new().shard(1, 2, 9).tensor("b", &[32], 0, 128);
    let files =
        directory(&[("m-00001-of-00002.gguf", shard(0, "a").build()), ("m-00002-of-00002.gguf", second.build())]);
    let parts = ["m-00002-of-00002.gguf`", "split.tensors.count is 9 here and 2 in the first"];
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &parts);
}

#[test]
fn shard_under_another_shards_name() {
    let (a, b) = (shard(0, "a").build(), shard(0, "b").build());
    let files = directory(&[("m-00001-of-00002.gguf", a), ("m-00002-of-00002.gguf", b)]);
    let parts = ["m-00002-of-00002.gguf`", "`split.no` is 0, but the file's name says shard 2 (`split.no` 1)"];
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &parts);
    assert_refused(&files.path().join("m-00002-of-00002.gguf"), &parts);
}

#[test]
fn shard_under_a_free_name() {
    let files = directory(&[("m.gguf", shard(0, "a").build())]);
    let parts = ["holds shard 1 of 2, but is not named `…-00001-of-00002.gguf`", "restore the file's original name"];
    assert_refused(&files.path().join("m.gguf"), &parts);
}

#[test]
fn tensor_in_two_shards() {
    let (a, b) = (shard(0, "a").build(), shard(1, "a").build());
    let files = directory(&[("m-00001-of-00002.gguf", a), ("m-00002-of-00002.gguf", b)]);
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &["m-00002", "tensor `a` appears twice"]);
}

#[test]
fn too_few_tensors_in_all_shards() {
    let shards = [shard(0, "a"), shard(1, "b")].map(|shard| shard.tensor("c", &[], 0, 4).build());
    let [a, b] = shards;
    let files = directory(&[("m-00001-of-00002.gguf", a), ("m-00002-of-00002.gguf", b.clone())]);
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &["m-00002", "tensor `c` appears twice"]);
    let empty = Builder::new().shard(0, 2, 3).build();
    let files = directory(&[("m-00001-of-00002.gguf", empty), ("m-00002-of-00002.gguf", shard(1, "x").build())]);
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &["split.tensors.count is 2 here and 3"]);
    let second = Builder::new().key("split.no", V::U16(1)).tensor("x", &[], 0, 4).build();
    let first = Builder::new().shard(0, 2, 3).build();
    let files = directory(&[("m-00001-of-00002.gguf", first), ("m-00002-of-00002.gguf", second)]);
    let parts = ["the shards hold 1 tensors together, `split.tensors.count` says 3"];
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &parts);
}

#[test]
fn split_without_its_number() {
    let files = directory(&[("m-00001-of-00002.gguf", Builder::small().key("split.count", V::U16(2)).build())]);
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &["key `split.no` is missing"]);
}

#[test]
fn cut_shard_is_named() {
    let mut b = shard(1, "b").build();
    b.truncate(b.len() - 100);
    let files = directory(&[("m-00001-of-00002.gguf", shard(0, "a").build()), ("m-00002-of-00002.gguf", b)]);
    let parts = ["m-00002-of-00002.gguf`", "100 bytes of tensor data are missing"];
    assert_refused(&files.path().join("m-00001-of-00002.gguf"), &parts);
}

#[test]
fn directory_with_one_model() {
    let (a, b) = (shard(0, "a").build(), shard(1, "b").build());
    let mut files = vec![("m-00001-of-00002.gguf", a), ("m-00002-of-00002.gguf", b), ("README.md", vec![])];
    files.push(("mmproj-m-f16.gguf", Builder::small().build()));
    let directory = directory(&files);
    let model = gguf::open(directory.path()).unwrap();
    assert_eq!(model.files.len(), 2);
}

#[test]
fn directory_with_several_models() {
    let files = directory(&[("a.gguf", Builder::small().build()), ("b-00002-of-00002.gguf", shard(1, "b").build())]);
    let parts = ["the directory holds 2 models: `a.gguf`, `b-00001-of-00002.gguf`", "name one of them"];
    assert_refused(files.path(), &parts);
}

#[test]
fn directory_without_a_model() {
    assert_refused(directory(&[("README.md", vec![])]).path(), &["the directory holds no .gguf model"]);
}

#[test]
fn no_such_file() {
    let files = directory(&[]);
    assert_refused(&files.path().join("none.gguf"), &["cannot be read: No such file", "pass a .gguf file"]);
}

#[cfg(unix)]
#[test]
fn device_instead_of_a_file() {
    assert_refused(Path::new("/dev/null"), &["not a regular file"]);
}

#[test]
fn empty_file() {
    let files = directory(&[("m.gguf", vec![])]);
    assert_refused(&files.path().join("m.gguf"), &["the file is empty", "the download or copy may not be finished"]);
}
