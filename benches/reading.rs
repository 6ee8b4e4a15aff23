//! How long reading takes: the header of gpt-oss-120b with its vocabulary, a thousand shards, and what inspect makes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use divan::{Bencher, black_box};
use moeplan::gguf::{self, Header};
use moeplan::inspection::Inspection;
use moeplan::model::Model;
use moeplan::synth::output::{self, Fill, Watch};
use moeplan::synth::{Wish, spec, synthesize};

fn main() {
    divan::main();
}

/// gpt-oss-120b as a file with a hole for its weights, and its split into a thousand files.
struct Files {
    _folder: tempfile::TempDir,
    whole: PathBuf,
    shards: PathBuf,
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = spec::named("gpt-oss-120b").expect("a known model");
        let write = |path: &Path, shards| {
            let model = synthesize(&spec, &Wish { shards, ..Wish::default() }).expect("a model");
            let watch = Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
            output::write(&model, path, Fill::Hole, true, watch).expect("room for the headers").remove(0)
        };
        let whole = write(&folder.path().join("m.gguf"), 1);
        let shards = write(&folder.path().join("s.gguf"), 600);
        Files { _folder: folder, whole, shards }
    })
}

/// Opens the file, reads its header through the small buffer, closes it.
#[divan::bench]
fn header_of_gpt_oss_120b(bencher: Bencher) {
    let path = &files().whole;
    bencher.bench(|| gguf::open(black_box(path)).expect("a model"));
}

/// The same bytes in memory already.
#[divan::bench]
fn header_of_gpt_oss_120b_in_memory(bencher: Bencher) {
    let path = &files().whole;
    let data_offset = gguf::open(path).expect("a model").header.data_offset;
    let length = fs::metadata(path).expect("a file").len();
    let mut bytes = Vec::new();
    let read = fs::File::open(path).map(|file| std::io::Read::take(file, data_offset));
    std::io::Read::read_to_end(&mut read.expect("a file"), &mut bytes).expect("a header");
    bencher.bench(|| Header::read(black_box(&bytes), length).expect("a model"));
}

/// A split model, all its files.
#[divan::bench]
fn header_of_600_shards(bencher: Bencher) {
    let path = &files().shards;
    bencher.bench(|| gguf::open(black_box(path)).expect("a model"));
}

/// From the header to the document of `inspect`.
#[divan::bench]
fn inspection_of_gpt_oss_120b(bencher: Bencher) {
    let path = &files().whole;
    bencher.with_inputs(|| gguf::open(path).expect("a model")).bench_values(|gguf| {
        let (model, refused) = Model::as_far_as_readable(gguf);
        serde_json::to_string(&Inspection::new(&model, &refused, None).with_tensors(&model)).expect("a document")
    });
}
