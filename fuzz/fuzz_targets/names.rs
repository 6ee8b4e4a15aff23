//! Any text as MODEL, as the files of a repository, as names in a cache, as a device, an amount, a model to make.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use moeplan::bytes::Bytes;
use moeplan::escape;
use moeplan::gguf::source::hub::{self, HubFile};
use moeplan::gguf::source::local::{self, LocalModel, Program};
use moeplan::gguf::source::{Location, Url, Which};
use moeplan::machine::Device;
use moeplan::suggest::Hint;
use moeplan::synth::spec;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    match Location::parse(first) {
        Ok(Location::Address(url)) => {
            assert_eq!(Url::parse(url.as_str()).ok(), Some(url.clone()));
            assert_eq!(url.with_file_name("x").origin(), url.origin());
        }
        Ok(Location::Hub { repo, which }) => {
            assert!(hub::is_repository(&repo), "{repo}");
            assert!(!matches!(which, Which::File(path) if path.split('/').any(|part| part == "..")));
        }
        Ok(Location::Here(_)) | Err(_) => {}
    }
    let _ = (Device::parse(first), first.parse::<Bytes>(), spec::named(first).is_ok());
    let shown = escape::terminal(first);
    assert!(!shown.chars().any(|c| c.is_control()), "{shown:?}");

    let paths: Vec<&str> = lines.take(40).collect();
    let file = |path: &&str| HubFile { path: (*path).to_string(), bytes: Bytes(u64::MAX), oid: None };
    let quants = hub::quants("o/r", paths.iter().map(file).collect());
    if let Ok(quants) = &quants {
        assert!(hub::choose("o/r", quants, &Which::Default).is_ok());
        if let Ok(quant) = hub::choose("o/r", quants, &Which::Quant(first.to_string())) {
            assert!(!quant.files.is_empty() && !quant.name.is_empty());
        }
    }
    let model = |path: &&str| LocalModel {
        name: (*path).to_string(),
        source: Program::Ollama,
        path: PathBuf::from(path),
        files: 1,
        is_whole: true,
        bytes: Bytes(1),
    };
    let models: Vec<LocalModel> = paths.iter().map(model).collect();
    match local::find(&models, first) {
        Ok(found) => assert!(models.contains(&found)),
        Err(error) => assert!(!error.to_string().is_empty() && error.hint().is_some()),
    }
});
