//! Any bytes as server-sent events: the same whole, and cut into pieces anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::runtime::server::sse::Reader;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let mut whole = Reader::default();
    let mut events = whole.push(bytes).expect("a short line");
    events.extend(whole.end());
    let mut pieces = Reader::default();
    let mut again = Vec::new();
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        again.extend(pieces.push(piece).expect("a short line"));
    }
    again.extend(pieces.end());
    assert_eq!(events, again);
});
