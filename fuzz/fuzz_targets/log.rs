//! Any bytes as llama.cpp's log.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::runtime::log::{LoadLog, devices};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let log = LoadLog::read(&text);
    let _ = (log.memory(), log.resolution(), log.mapped_span(), log.failure());
    let _ = devices(&text);
});
