//! Any bytes as server-sent events, and as an endpoint's answer: the same whole, and cut into pieces anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::runtime::client::{Events, Piece, Recording};
use moeplan::suite::stream::Answer;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let mut whole = Events::default();
    let mut events = whole.push(bytes).expect("a short line");
    events.extend(whole.end());
    let mut pieces = Events::default();
    let mut again = Vec::new();
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        again.extend(pieces.push(piece).expect("a short line"));
    }
    again.extend(pieces.end());
    assert_eq!(events, again);
    let piece = |bytes: &[u8]| Piece { seconds: 0.5, bytes: bytes.to_vec() };
    let recording = |pieces| Recording { status: 200, pieces, seconds: 1.0, ..Recording::default() };
    let cut = recording(bytes.chunks(usize::from(*size).max(1)).map(piece).collect());
    let (whole, cut) = (Answer::streamed(&recording(vec![piece(bytes)])), Answer::streamed(&cut));
    assert_eq!((whole.text(), &whole.faults), (cut.text(), &cut.faults));
    let _ = (cut.health(Some(&whole.text())), Answer::whole(&recording(vec![piece(bytes)])));
});
