//! Any bytes as server-sent events, and as an endpoint's answer: the same whole, and cut into pieces anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::runtime::client::{Piece, Recording};
use moeplan::suite::stream::Answer;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let piece = |bytes: &[u8]| Piece { seconds: 0.5, bytes: bytes.to_vec() };
    let recording = |pieces| Recording { status: 200, pieces, seconds: 1.0, ..Recording::default() };
    let whole = recording(vec![piece(bytes)]);
    let cut = recording(bytes.chunks(usize::from(*size).max(1)).map(piece).collect());
    let data = |recording: &Recording| -> Vec<_> {
        recording.events().into_iter().map(|event| (event.data, event.is_ended)).collect()
    };
    assert_eq!(data(&whole), data(&cut));
    let (streamed, cut) = (Answer::streamed(&whole), Answer::streamed(&cut));
    assert_eq!((streamed.text(), &streamed.faults), (cut.text(), &cut.faults));
    let _ = (cut.health(Some(&streamed.text())), Answer::whole(&whole));
});
