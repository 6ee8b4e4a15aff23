//! Any bytes as an ollama manifest, and what it lies under: the file it names is one of `blobs`, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::source::local::{blob_name, ollama_name};

fuzz_target!(|bytes: &[u8]| {
    if let Some(name) = blob_name(bytes) {
        let digest = name.strip_prefix("sha256-").expect("one kind of digest");
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
    if let Ok(path) = std::str::from_utf8(bytes)
        && let Some(name) = ollama_name(path)
    {
        assert!(name.contains(':'), "{name}");
    }
});
