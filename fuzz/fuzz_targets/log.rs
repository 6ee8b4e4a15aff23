//! Any bytes as llama.cpp's log: the same whole, and cut into pieces anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::runtime::log::{LoadLog, LogReader, devices};

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let mut whole = LogReader::default();
    whole.push(bytes);
    let mut pieces = LogReader::default();
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        pieces.push(piece);
    }
    assert_eq!(format!("{:?}", whole.log()), format!("{:?}", pieces.log()));
    let text = String::from_utf8_lossy(bytes);
    let log = LoadLog::read(&text);
    let _ = (log.memory(), log.resolution(), log.mapped_span(), log.uncounted(), log.failure());
    let _ = devices(&text);
});
