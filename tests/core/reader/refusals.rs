//! One test for each way in which the bytes of a header can be bad: what the message says.

use crate::support::gguf_builder::{Builder, V, text};
use moeplan::gguf::{Error, Header};
use moeplan::suggest::Hint as _;

fn error(bytes: &[u8]) -> Error {
    Header::read(bytes, bytes.len() as u64).expect_err("the header is bad").in_file("m.gguf")
}

/// The message and the hint together hold each of `parts`.
#[track_caller]
fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let error = error(bytes);
    let line = error.to_string();
    assert!(line.starts_with("`m.gguf`: at byte ") && !line.contains('\n'), "{line}");
    let hint = error.hint().expect("something to try");
    for part in parts {
        assert!(line.contains(part) || hint.contains(part), "`{part}` is not in: {line} / {hint}");
    }
}

fn with_tensor(dims: &[u64], ty: u32) -> Vec<u8> {
    Builder::new().tensor("t", dims, ty, 0).build()
}

#[test]
fn cut_at_every_byte() {
    let whole = Builder::small().key("a.texts", V::Arr(8, vec![text("x"), text("yy")])).build();
    assert!(Header::read(&whole, whole.len() as u64).is_ok());
    for length in 0..whole.len() {
        // Padding after the last tensor need not be there.
        if let Err(fault) = Header::read(&whole[..length], length as u64) {
            let message = fault.to_string();
            let known = ["the file is empty", "more bytes", "remain", "are missing at the end"];
            assert!(known.iter().any(|part| message.contains(part)), "{length}: {message}");
        } else {
            assert!(whole.len() - length < 32, "{length}");
        }
    }
}

#[test]
fn a_part_of_the_file_asks_for_more() {
    let whole = Builder::small().key("a.texts", V::Arr(8, vec![text("x"), text("yy")])).header();
    let full = Builder::small().key("a.texts", V::Arr(8, vec![text("x"), text("yy")])).build().len() as u64;
    for length in 0..whole.len() - 32 {
        let fault = Header::read(&whole[..length], full).expect_err("a part");
        assert!(fault.what == moeplan::gguf::Fault::Ends, "{length}: {fault}");
    }
    assert!(Header::read(&whole, full).is_ok());
}

#[test]
fn data_section_cut_short() {
    let mut bytes = Builder::small().build();
    bytes.truncate(bytes.len() - 200);
    // 28 bytes of padding after the last tensor are not needed.
    assert_refused(
        &bytes,
        &["172 bytes of tensor data are missing", "`token_embd.weight` is the first tensor that is cut"],
    );
}

#[test]
fn wrong_magic() {
    assert_refused(&Builder::small().magic(*b"lmgg").build(), &["not a GGUF file", "`lmgg`", "predates GGUF"]);
    assert_refused(&Builder::small().magic(*b"PK\x03\x04").build(), &["convert_hf_to_gguf.py"]);
    assert_refused(b"version https://git-lfs.github.com/spec/v1", &["git lfs pull"]);
    assert_refused(b"<!DOCTYPE html>", &["web page"]);
}

#[test]
fn versions_that_llama_cpp_refuses() {
    for version in [0, 1, 4, 99] {
        assert_refused(&Builder::small().version(version).build(), &[&format!("GGUF version {version} is not")]);
        if version > 0 {
            let bytes = Builder::small().big_endian().version(version).build();
            assert_refused(&bytes, &[&format!("GGUF version {version} is not")]);
        }
    }
    assert_refused(&Builder::small().version(1).build(), &["convert the model again"]);
    assert_refused(&Builder::small().version(99).build(), &["newer moeplan"]);
}

#[test]
fn huge_tensor_count() {
    for count in [1 << 20, u64::MAX] {
        assert_refused(&Builder::small().tensor_count(count).build(), &[&format!("{count} tensors are impossible")]);
    }
}

#[test]
fn huge_key_count() {
    for count in [1 << 20, 1 << 63] {
        assert_refused(&Builder::small().key_count(count).build(), &[&format!("{count} keys are impossible")]);
    }
}

#[test]
fn one_tensor_more_than_there_are() {
    assert_refused(&Builder::small().tensor_count(3).header(), &["the file ends inside its header: a tensor's name"]);
}

#[test]
fn huge_string_length() {
    let with = |length: u64| Builder::small().key("a.b", V::Raw(8, length.to_le_bytes().into())).build();
    assert_refused(&with(1 << 29), &["key `a.b`: a text of 536870912 bytes is impossible", "bytes remain"]);
    assert_refused(
        &with((1 << 30) + 1),
        &["key `a.b`", "a text of 1073741825 is over llama.cpp's limit of 1073741824"],
    );
    assert_refused(&with(u64::MAX), &["key `a.b`", "over llama.cpp's limit"]);
}

#[test]
fn huge_array() {
    let with = |ty: u32, length: u64| {
        let bytes = [&ty.to_le_bytes()[..], &length.to_le_bytes()].concat();
        Builder::small().key("tokenizer.x", V::Raw(9, bytes)).build()
    };
    assert_refused(&with(4, 1 << 28), &["key `tokenizer.x`: 268435456 array elements are impossible", "hold"]);
    assert_refused(&with(8, 1 << 28), &["268435456 array elements are impossible"]);
    assert_refused(&with(0, (1 << 30) + 1), &["an array of 1073741825 is over llama.cpp's limit of 1073741824"]);
    assert_refused(&with(0, u64::MAX), &["over llama.cpp's limit"]);
}

#[test]
fn text_of_an_array_past_the_end() {
    let array = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &9999_u64.to_le_bytes()].concat();
    let bytes = Builder::small().key("tokenizer.x", V::Raw(9, array)).build();
    assert_refused(&bytes, &["key `tokenizer.x`: a text of 9999 bytes is impossible"]);
}

#[test]
fn value_type_that_does_not_exist() {
    assert_refused(&Builder::small().key("a.b", V::Raw(13, vec![0; 8])).build(), &["key `a.b`: value type 13"]);
    let array = [&77_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    assert_refused(&Builder::small().key("a.b", V::Raw(9, array)).build(), &["key `a.b`: value type 77"]);
}

#[test]
fn array_of_arrays() {
    let array = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    assert_refused(&Builder::small().key("a.b", V::Raw(9, array)).build(), &["key `a.b`: an array of arrays"]);
}

#[test]
fn removed_tensor_types() {
    for ty in [4, 5, 31, 32, 33, 36, 37, 38] {
        assert_refused(&with_tensor(&[256], ty), &[&format!("tensor `t`: type id {ty} was removed"), "quantize"]);
    }
}

#[test]
fn unknown_tensor_types() {
    for ty in [44, 1000, u32::MAX] {
        assert_refused(&with_tensor(&[256], ty), &[&format!("tensor `t`: type id {ty} is unknown"), "newer moeplan"]);
    }
}

#[test]
fn rows_of_no_whole_number_of_blocks() {
    assert_refused(
        &with_tensor(&[33, 32], 8),
        &["tensor `t`: rows of 33 elements are not a multiple of the 32 of a q8_0"],
    );
    assert_refused(&with_tensor(&[128, 2], 12), &["tensor `t`: rows of 128 elements are not a multiple of the 256"]);
}

#[test]
fn overlapping_tensors() {
    let bytes = Builder::small().tensor("t", &[4], 0, 16).at(0).build();
    assert_refused(&bytes, &["tensor `t`: its data starts at 0 instead of 608, an overlap of 608 bytes"]);
}

#[test]
fn gap_between_tensors() {
    let bytes = Builder::small().tensor("t", &[4], 0, 16).at(640).build();
    assert_refused(&bytes, &["tensor `t`: its data starts at 640 instead of 608, a gap of 32 bytes"]);
}

#[test]
fn first_tensor_not_at_the_start() {
    let bytes = Builder::new().tensor("t", &[4], 0, 16).at(32).build();
    assert_refused(&bytes, &["tensor `t`: its data starts at 32 instead of 0, a gap of 32 bytes"]);
}

#[test]
fn empty_key() {
    assert_refused(&Builder::small().key("", V::U8(1)).build(), &["key number 2 is empty"]);
}

#[test]
fn duplicate_key() {
    let bytes = Builder::small().key("llama.block_count", V::U8(1)).build();
    assert_refused(&bytes, &["key `llama.block_count` appears twice"]);
}

#[test]
fn duplicate_tensor() {
    let bytes = Builder::small().tensor("token_embd.weight", &[4], 0, 16).build();
    assert_refused(&bytes, &["tensor `token_embd.weight` appears twice"]);
}

#[test]
fn five_dimensions() {
    assert_refused(&with_tensor(&[1, 1, 1, 1, 1], 0), &["tensor `t`: 5 dimensions; llama.cpp accepts at most 4"]);
}

#[test]
fn negative_dimension() {
    assert_refused(&with_tensor(&[1, u64::MAX], 0), &["tensor `t`: dimension 1 is negative: -1"]);
}

#[test]
fn elements_past_64_bits() {
    let shapes: [&[u64]; 3] = [&[1 << 40, 1 << 40], &[1 << 32, 1 << 31], &[2, 1 << 62]];
    for dims in shapes {
        assert_refused(&with_tensor(dims, 0), &["tensor `t`: shape [", "is too large for 64 bits"]);
    }
}

#[test]
fn bytes_past_64_bits() {
    assert_refused(&with_tensor(&[1 << 62], 28), &["tensor `t`: shape [4611686018427387904, 1, 1, 1] is too large"]);
}

#[test]
fn more_tensor_data_than_any_model_has() {
    let bytes = Builder::new().tensor("a", &[1 << 47], 28, 0).tensor("b", &[1], 24, 0).at(1 << 50).build();
    assert_refused(
        &bytes,
        &["tensor `b`: the tensor data exceeds 1125899906842624 bytes", "where the model was published"],
    );
}

#[test]
fn name_too_long() {
    let name = "n".repeat(64);
    assert_refused(
        &Builder::new().tensor(&name, &[4], 0, 16).build(),
        &["the name has 64 bytes; llama.cpp accepts at most 63"],
    );
    let whole = Builder::new().tensor(&name[1..], &[4], 0, 16).build();
    assert!(Header::read(&whole, whole.len() as u64).is_ok());
}

#[test]
fn alignment_that_is_none() {
    for alignment in [0, 3, 48] {
        let bytes = Builder::small().key("general.alignment", V::U32(alignment)).build();
        assert_refused(&bytes, &[&format!("key `general.alignment`: alignment {alignment} is not a power of two")]);
    }
}

#[test]
fn alignment_of_another_type() {
    for (value, name) in
        [(V::U64(32), "u64"), (V::I32(32), "i32"), (text("32"), "str"), (V::Arr(4, vec![V::U32(32)]), "an array")]
    {
        let bytes = Builder::small().key("general.alignment", value).build();
        assert_refused(&bytes, &[&format!("key `general.alignment`: must be of type u32, but is {name}")]);
    }
}

#[test]
fn untrusted_text_is_cut_and_stays_on_one_page() {
    let key = "k".repeat(5000);
    let bytes = Builder::small().key(&key, V::Raw(99, vec![])).build();
    assert!(error(&bytes).to_string().len() < 300);
}

#[test]
fn text_that_is_not_utf8_is_replaced() {
    let bytes = Builder::small().raw_key(b"a.\xff", V::Raw(8, b"\x02\0\0\0\0\0\0\0b\xfe".into())).build();
    let header = Header::read(&bytes, bytes.len() as u64).unwrap();
    assert_eq!(header.metadata["a.\u{fffd}"], moeplan::gguf::Value::String("b\u{fffd}".into()));
}
