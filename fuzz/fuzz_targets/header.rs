//! Any bytes as a GGUF header: from memory and through a file's window alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::Header;

fuzz_target!(|bytes: &[u8]| {
    let length = bytes.len() as u64;
    let whole = Header::read(bytes, length);
    if bytes.last().is_some_and(|last| last % 16 == 0) {
        let file = std::io::Cursor::new(bytes);
        match (&whole, &Header::read_from(file, length)) {
            (Ok(a), Ok(b)) => assert_eq!(format!("{:?}", a.tensors), format!("{:?}", b.tensors)),
            (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
            _ => panic!("a slice and a file differ"),
        }
        // A part of a longer file, as a server gives it.
        let _ = Header::read(bytes, 1 << 62);
    }
    if let Ok(header) = whole {
        let data: u64 = header.tensors.iter().map(|tensor| tensor.bytes.0).sum();
        assert!(header.data_offset + data <= length + header.alignment);
    }
});
