//! Damaged headers by the million: no panic, no more memory than a small multiple of the bytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use moeplan::gguf::Header;
use moeplan::suggest::Hint as _;
use proptest::prelude::*;

use crate::support::gguf_builder::{Builder, V, text};
use crate::support::is_full;

/// The system's allocator, counting the bytes that each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(change: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

#[expect(unsafe_code, reason = "only an allocator can count allocations")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Most bytes that reading may hold at a time: what a header of many tiny keys or tensors comes to, plus the arrays
/// that are kept.
fn bound(bytes: &[u8]) -> isize {
    (32 * bytes.len()).cast_signed() + (4 << 20)
}

/// Reads; holds the limits; gives whether it was a header.
fn read(bytes: &[u8]) -> bool {
    let before = HELD.get();
    PEAK.set(before);
    let header = Header::read(bytes, bytes.len() as u64);
    let peak = PEAK.get() - before;
    assert!(peak <= bound(bytes), "{peak} bytes held for a header of {}", bytes.len());
    match header {
        Ok(header) => {
            let data: u64 = header.tensors.iter().map(|tensor| tensor.bytes.0).sum();
            assert!(header.data_offset + data <= bytes.len() as u64 + header.alignment);
            true
        }
        Err(fault) => {
            let offset = fault.offset.expect("a place");
            let error = fault.in_file("m.gguf");
            assert!(offset <= bytes.len() as u64, "{error}");
            assert!(error.hint().is_some(), "{error}");
            false
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/headers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "gguf"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(seeds.len() >= 6);
    let tokens = V::Arr(8, (0..20).map(|token| text(&format!("t{token}"))).collect());
    let layers = V::Arr(4, (0..20).map(V::U32).collect());
    let model = Builder::small().key("tokenizer.ggml.tokens", tokens).key("llama.feed_forward_length", layers);
    seeds.extend([model.build(), model.big_endian().version(2).build()]);
    seeds
}

/// A small generator of numbers, the same at every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).unwrap() % limit
    }
}

/// Numbers at the limits of what the fields of a header take.
const EDGES: &[u64] = &[
    0,
    1,
    4,
    5,
    9,
    13,
    43,
    63,
    64,
    127,
    255,
    4096,
    4097,
    65_535,
    (1 << 30) - 1,
    1 << 30,
    (1 << 30) + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 61,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

fn mutate(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len().min(1200));
        match numbers.below(6) {
            0 => bytes[at] = u8::try_from(numbers.below(256)).unwrap(),
            1 => bytes[at] ^= 1 << numbers.below(8),
            2 => {
                let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][numbers.below(4)];
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            3 => bytes.truncate(at + 1),
            4 => {
                let end = (at + numbers.below(24)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + numbers.below(64)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

#[test]
fn damaged_headers_never_panic_nor_take_memory() {
    let is_full = is_full();
    let cases = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 } * if is_full { 20 } else { 1 };
    let seeds = seeds();
    let mut numbers = Numbers(0x6d6f_6570_6c61_6e21);
    let mut whole = 0;
    let mut damaged = Vec::new();
    for case in 0..cases {
        damaged.clear();
        damaged.extend_from_slice(&seeds[case % seeds.len()]);
        mutate(&mut damaged, &mut numbers);
        whole += usize::from(read(&damaged));
    }
    assert!(whole > cases / 50 && whole < cases / 2, "{whole} of {cases} were headers still");
}

#[test]
fn many_tiny_things_stay_within_the_bound() {
    let keys = (0..50_000).fold(Builder::new(), |file, n| file.key(&format!("{n:x}"), V::Bool(true)));
    assert!(read(&keys.build()));
    let tensors = (0..50_000).fold(Builder::new().padded_to(1), |file, n| file.tensor(&format!("{n:x}"), &[0], 0, 0));
    assert!(read(&tensors.key("general.alignment", V::U32(1)).build()));
    let arrays =
        (0..500).fold(Builder::new(), |file, n| file.key(&format!("{n}"), V::Arr(7, vec![V::Bool(true); 4096])));
    assert!(read(&arrays.build()));
}

proptest! {
    #[test]
    fn any_bytes_after_the_magic_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        version in 2_u32..=3,
        tensors in 0_u64..4,
        keys in 0_u64..4,
    ) {
        let counts = [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
        read(&[counts, bytes.clone()].concat());
        read(&bytes);
    }
}
