//! Synthetic models, written and read back by the program's own reader; the pages of `tests/cmd/synth*.md`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use moeplan::files::Error;
use moeplan::gguf::{self, ByteOrder, Gguf};
use moeplan::model::Model;
use moeplan::synth::output::{self, Fill, Watch};
use moeplan::synth::{Synthesis, Wish, recipe, spec, synthesize};

fn write(folder: &Path, name: &str, wish: &Wish, fill: Fill) -> (Synthesis, PathBuf) {
    let spec = spec::named(name).unwrap_or_else(|error| panic!("{error}"));
    let synthesis = synthesize(&spec, wish).unwrap_or_else(|error| panic!("{error}"));
    let watch = Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
    let paths = output::write(&synthesis, &folder.join(format!("{name}.gguf")), fill, true, watch);
    (synthesis, paths.unwrap_or_else(|error| panic!("{error}")).remove(0))
}

fn read(path: &Path) -> Gguf {
    gguf::open(path).unwrap_or_else(|error| panic!("{error}"))
}

fn assert_same(synthesis: &Synthesis, gguf: &Gguf) {
    let written: Vec<_> = synthesis.files.iter().flat_map(|file| &file.tensors).collect();
    assert_eq!(written.len(), gguf.header.tensors.len());
    for (written, read) in written.iter().zip(&gguf.header.tensors) {
        assert_eq!((&written.name, written.ty, written.bytes()), (&read.name, read.ty, Some(read.bytes.0)));
        assert_eq!(written.elements(), read.elements(), "{}", read.name);
    }
}

#[test]
fn full_size_holes_read_back_as_models_with_the_same_totals() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["phi-3.5-moe", "deepseek-moe-16b", "glm-4.5-air", "kimi-k2"] {
        let (synthesis, path) = write(folder.path(), name, &Wish::default(), Fill::Hole);
        let gguf = read(&path);
        assert_same(&synthesis, &gguf);
        let model = Model::from_gguf(gguf).unwrap_or_else(|error| panic!("{name}: {error}"));
        let parameters: u64 = model.tensors.iter().map(moeplan::model::Tensor::elements).sum();
        assert_eq!(parameters, synthesis.totals.parameters, "{name}");
        assert_eq!(
            model.tensors.iter().map(|tensor| tensor.bytes).sum::<moeplan::bytes::Bytes>(),
            synthesis.totals.bytes
        );
        let dims = synthesis.spec.dims(false, None);
        assert_eq!(i64::from(model.hparams.block_count), dims["n_layer"], "{name}");
        assert_eq!(i64::from(model.hparams.expert_count), dims["n_expert"], "{name}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn every_tiny_sibling_reads_back_as_a_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in spec::names() {
        let wish = Wish { tiny: true, ..Wish::default() };
        let (synthesis, path) = write(folder.path(), &name, &wish, Fill::Hole);
        let gguf = read(&path);
        assert_same(&synthesis, &gguf);
        Model::from_gguf(gguf).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn every_recipe_reads_back_filled() {
    let folder = tempfile::tempdir().unwrap();
    for recipe in recipe::recipes() {
        for name in ["gpt-oss-20b", "deepseek-v2-lite"] {
            let wish = Wish { tiny: true, blocks: Some(2), recipe: Some(recipe), ..Wish::default() };
            let (synthesis, path) = write(folder.path(), name, &wish, Fill::Random(1));
            assert_same(&synthesis, &read(&path));
        }
    }
}

#[test]
fn shards_versions_and_byte_orders_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for (shards, version, byte_order) in
        [(3, 3, ByteOrder::Little), (1, 2, ByteOrder::Little), (1, 3, ByteOrder::Big), (2, 3, ByteOrder::Big)]
    {
        let wish = Wish { tiny: true, shards, version, byte_order, ..Wish::default() };
        let (synthesis, path) = write(folder.path(), "mixtral-8x7b", &wish, Fill::Hole);
        let gguf = read(&path);
        assert_eq!((gguf.header.version, gguf.header.byte_order), (version, byte_order));
        assert_eq!(gguf.files.len(), usize::from(shards));
        assert_same(&synthesis, &gguf);
    }
}

/// Every block's router, on hidden states of unit size as a norm makes them, uses every expert about equally.
#[test]
fn routers_use_their_experts_about_equally() {
    let folder = tempfile::tempdir().unwrap();
    for (name, n_expert, used) in [("qwen3-30b-a3b", 16, 4), ("mixtral-8x7b", 8, 2), ("gpt-oss-20b", 16, 4)] {
        let wish = Wish { tiny: true, ..Wish::default() };
        let (_, path) = write(folder.path(), name, &wish, Fill::Random(1));
        let gguf = read(&path);
        let bytes = std::fs::read(&path).unwrap();
        let routers = gguf.header.tensors.iter().filter(|tensor| tensor.name.ends_with("ffn_gate_inp.weight"));
        let mut n_routers = 0;
        for router in routers {
            let at = usize::try_from(gguf.header.data_offset + router.offset).unwrap();
            let weights: Vec<f32> = bytes[at..at + 4 * 256 * n_expert]
                .chunks_exact(4)
                .map(|x| f32::from_le_bytes(x.try_into().unwrap()))
                .collect();
            for (expert, share) in usage(&weights, n_expert, used).into_iter().enumerate() {
                assert!((0.5..1.6).contains(&share), "{name} {} expert {expert}: {share}", router.name);
            }
            n_routers += 1;
        }
        assert_eq!(n_routers, 4, "{name}");
    }
}

/// How often each expert is among the `used` best of 2000 states of 256 numbers, as a multiple of its fair share.
fn usage(weights: &[f32], n_expert: usize, used: usize) -> Vec<f64> {
    let mut seed = 1u64;
    let mut unit = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(seed >> 48).unwrap()) / 65_536.0 - 0.5
    };
    let mut count = vec![0u32; n_expert];
    let states = 2000;
    for _ in 0..states {
        let state: Vec<f32> = (0..256).map(|_| unit() + unit() + unit() + unit()).collect();
        let logit = |expert: usize| -> f32 {
            weights[expert * 256..(expert + 1) * 256].iter().zip(&state).map(|(w, x)| w * x).sum()
        };
        let mut order: Vec<(f32, usize)> = (0..n_expert).map(|expert| (logit(expert), expert)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        order.iter().take(used).for_each(|(_, expert)| count[*expert] += 1);
    }
    let fair =
        f64::from(states) * f64::from(u32::try_from(used).unwrap()) / f64::from(u32::try_from(n_expert).unwrap());
    count.into_iter().map(|n| f64::from(n) / fair).collect()
}

#[test]
fn a_stopped_or_refused_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec::named("mixtral-8x7b").unwrap();
    let synthesis = synthesize(&spec, &Wish { tiny: true, ..Wish::default() }).unwrap();
    let path = folder.path().join("model.gguf");
    let stopped = Watch { wrote: &|_| (), stop: &AtomicBool::new(true) };
    assert!(matches!(output::write(&synthesis, &path, Fill::Random(1), false, stopped), Err(output::Error::Stopped)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::write(&path, "mine").unwrap();
    let watch = Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
    assert!(matches!(
        output::write(&synthesis, &path, Fill::Hole, false, watch),
        Err(output::Error::File(Error::Exists(_)))
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[cfg(feature = "cli")]
#[test]
fn the_pages_are_true() {
    std::fs::create_dir_all("target/tmp").unwrap();
    trycmd::TestCases::new().case("tests/cmd/synth*.md");
}
