//! Files made to take memory or time, and files that change or are none: each ends at a named limit.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::gguf_builder::{Builder, V, text};
use moeplan::gguf::cursor::MAX_HEADER;
use moeplan::gguf::error::{At, Fault};
use moeplan::gguf::reader::{MAX_KEPT_TEXT, MAX_KEPT_TEXT_IN_ALL, MAX_KEY_LENGTH, MAX_KEYS, MAX_TENSORS};
use moeplan::gguf::{self, Header, Value};
use moeplan::suggest::Hint as _;

/// More than is read at once.
const WINDOW: u64 = 1 << 20;
/// Longer than anything here takes on a busy machine: only a hang lasts so long.
const HANG: Duration = Duration::from_mins(1);

/// Bytes, then a hole: a file of `length` bytes that takes no room.
fn sparse(folder: &Path, bytes: &[u8], length: u64) -> PathBuf {
    let path = folder.join("m.gguf");
    fs::write(&path, bytes).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
    path
}

/// The error of opening `path`, which must come at all.
#[track_caller]
fn error_of(path: &Path) -> gguf::Error {
    let (send, opened) = mpsc::channel();
    let file = path.to_path_buf();
    std::thread::spawn(move || send.send(gguf::open(&file)));
    let error = opened.recv_timeout(HANG).expect("an end").expect_err("the file is bad");
    assert!(error.hint().is_some() || matches!(error.at.what, Fault::NotAFile | Fault::Io(_)), "{error}");
    error
}

/// A file that counts the bytes that are read of it.
struct Counted<'a> {
    file: File,
    bytes: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The header of a file, and how many of the file's bytes were read for it.
fn read_counted(path: &Path) -> (Result<Header, At>, u64) {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let bytes = Cell::new(0);
    let header = Header::read_from(Counted { file, bytes: &bytes }, length);
    (header, bytes.get())
}

/// A key `a` whose value is an array of `length` texts, which come with the hole behind them: empty ones.
fn empty_texts(length: u64) -> Vec<u8> {
    let array = [&8_u32.to_le_bytes()[..], &length.to_le_bytes()].concat();
    Builder::new().key("tokenizer.ggml.tokens", V::Raw(9, array)).header()
}

#[test]
fn header_that_never_ends() {
    let folder = tempfile::tempdir().unwrap();
    let texts = empty_texts(1 << 30);
    let text = Builder::new().key("a", V::Raw(8, (1_u64 << 29).to_le_bytes().into())).header();
    // What is passed over by its length alone is not read.
    for (start, most) in [(texts, MAX_HEADER + WINDOW), (text, WINDOW)] {
        let path = sparse(folder.path(), &start, 1 << 40);
        let error = error_of(&path);
        assert!(
            error.at.what == Fault::Excessive && error.to_string().contains(&format!("exceeds {MAX_HEADER} bytes")),
            "{error}"
        );
        let (header, bytes) = read_counted(&path);
        assert!(header.is_err() && bytes <= most, "{bytes} of {most}");
    }
}

#[test]
fn more_keys_and_tensors_than_any_model_has() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Builder::new().key_count(MAX_KEYS + 1).header();
    let error = error_of(&sparse(folder.path(), &keys, 1 << 40)).to_string();
    assert!(error.contains(&format!("keys are more than any model has: moeplan reads at most {MAX_KEYS}")), "{error}");
    let tensors = Builder::new().tensor_count(MAX_TENSORS + 1).header();
    let error = error_of(&sparse(folder.path(), &tensors, 1 << 40)).to_string();
    assert!(
        error.contains(&format!("tensors are more than any model has: moeplan reads at most {MAX_TENSORS}")),
        "{error}"
    );
}

#[test]
fn key_longer_than_the_specification_allows() {
    let longest = usize::try_from(MAX_KEY_LENGTH).unwrap();
    let read = |length: usize| {
        let bytes = Builder::new().key(&"k".repeat(length), V::U8(1)).build();
        Header::read(&bytes, bytes.len() as u64)
    };
    assert!(read(longest).is_ok());
    let error = read(longest + 1).expect_err("one byte too long");
    assert!(error.what == Fault::Excessive && error.message.contains("65536"), "{error}");
}

#[test]
fn texts_too_long_to_be_kept_are_counted() {
    let longest = usize::try_from(MAX_KEPT_TEXT).unwrap();
    let file = Builder::small().key("a", text(&"x".repeat(longest))).key("b", text(&"x".repeat(longest + 1)));
    let bytes = file.build();
    let header = Header::read(&bytes, bytes.len() as u64).unwrap();
    assert!(matches!(&header.metadata["a"], Value::String(text) if text.len() == longest));
    assert_eq!(header.metadata["b"], Value::Counted { len: MAX_KEPT_TEXT + 1 });
    let count = usize::try_from(MAX_KEPT_TEXT_IN_ALL / MAX_KEPT_TEXT).unwrap();
    let many = (0..count + 3).fold(Builder::new(), |file, n| file.key(&format!("k{n:03}"), text(&"x".repeat(longest))));
    let bytes = many.build();
    let header = Header::read(&bytes, bytes.len() as u64).unwrap();
    let kept = header.metadata.values().filter(|value| matches!(value, Value::String(_))).count();
    assert_eq!((kept, header.metadata.len()), (count, count + 3));
}

#[test]
fn array_that_is_skipped_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let array = [&0_u32.to_le_bytes()[..], &(200_u64 << 20).to_le_bytes()].concat();
    let start = Builder::new().key("a", V::Raw(9, array)).header();
    let path = sparse(folder.path(), &start, start.len() as u64 + (200 << 20));
    let (header, bytes) = read_counted(&path);
    assert_eq!(header.unwrap().metadata["a"], Value::Counted { len: 200 << 20 });
    assert!(bytes <= WINDOW, "{bytes} bytes were read");
}

#[test]
fn pipe_instead_of_a_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(error_of(&path).at.what == Fault::NotAFile);
}

#[test]
fn links_that_lead_to_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    symlink(at("b.gguf"), at("a.gguf")).unwrap();
    symlink(at("a.gguf"), at("b.gguf")).unwrap();
    assert!(matches!(error_of(&at("a.gguf")).at.what, Fault::Io(_)), "a loop");
    symlink("/dev/zero", at("zero.gguf")).unwrap();
    assert!(error_of(&at("zero.gguf")).at.what == Fault::NotAFile);
    let shard = Builder::new().shard(0, 2, 2).tensor("a", &[32], 0, 128).build();
    fs::write(at("m-00001-of-00002.gguf"), shard).unwrap();
    symlink("/dev/zero", at("m-00002-of-00002.gguf")).unwrap();
    let error = error_of(&at("m-00001-of-00002.gguf"));
    assert!(error.at.what == Fault::NotAFile && error.path.ends_with("m-00002-of-00002.gguf"), "{error}");
}

#[test]
fn shard_beyond_its_own_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m-00003-of-00002.gguf");
    fs::write(&path, Builder::new().shard(2, 2, 2).tensor("a", &[32], 0, 128).build()).unwrap();
    assert!(error_of(&path).at.what == Fault::ShardName);
}

#[test]
fn split_name_that_leads_out_of_its_directory() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    // The other shard lies above; nothing in a file's keys can name it.
    let second = Builder::new().shard(1, 2, 2).tensor("b", &[32], 0, 128).build();
    fs::write(folder.path().join("m-00002-of-00002.gguf"), second).unwrap();
    let first = Builder::new().shard(0, 2, 2).key("general.name", text("../m")).tensor("a", &[32], 0, 128).build();
    for name in ["m-00001-of-00002.gguf", "..-00001-of-00002.gguf"] {
        fs::write(inner.join(name), &first).unwrap();
        let error = error_of(&inner.join(name));
        assert!(error.at.what == Fault::MissingShard, "{error}");
        assert_eq!(error.path.parent(), Some(inner.as_path()));
    }
}

#[test]
fn a_split_of_a_thousand_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u16| folder.path().join(format!("m-{number:05}-of-01000.gguf"));
    for number in 0..1000 {
        let shard = Builder::new().shard(number, 1000, 1000).tensor(&format!("t{number}"), &[32], 0, 128);
        fs::write(path(number + 1), shard.build()).unwrap();
    }
    assert_eq!(gguf::open(&path(500)).unwrap().header.tensors.len(), 1000);
}

/// A mapped file would end this process by SIGBUS here.
#[test]
fn file_cut_and_grown_while_it_is_read() {
    let words = V::Arr(8, (0..40_000).map(|n| text(&format!("word number {n}"))).collect());
    let bytes = Builder::small().key("tokenizer.ggml.tokens", words).build();
    let length = bytes.len() as u64;
    let folder = tempfile::tempdir().unwrap();
    let path = sparse(folder.path(), &bytes, length);
    gguf::open(&path).unwrap();
    let stop = AtomicBool::new(false);
    let (mut whole, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                for part in [0, 1, 2, 3] {
                    file.set_len(length * part / 3).unwrap();
                }
                fs::write(&path, &bytes).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let started = Instant::now();
        while (whole < 20 || refused < 20) && started.elapsed() < HANG {
            match gguf::open(&path) {
                Ok(_) => whole += 1,
                Err(error) => {
                    refused += 1;
                    assert!(error.hint().is_some(), "{error}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(whole >= 20 && refused >= 20, "{whole} whole, {refused} refused");
}

#[test]
fn directory_as_a_shard() {
    let folder = tempfile::tempdir().unwrap();
    let shard = Builder::new().shard(0, 2, 2).tensor("a", &[32], 0, 128).build();
    fs::write(folder.path().join("m-00001-of-00002.gguf"), shard).unwrap();
    fs::create_dir(folder.path().join("m-00002-of-00002.gguf")).unwrap();
    let error = error_of(&folder.path().join("m-00001-of-00002.gguf"));
    assert!(error.at.what == Fault::NotAFile, "{error}");
}
