//! Any text as the documents of a report: a page that stays a page, whatever they say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::report::{html, page};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let Ok(sources) = page::read::read("d.json", &text) else { return };
    let made = page::of(&sources, None);
    let markup = html::page(&made);
    assert!(!markup.contains('\u{202e}') && !markup.contains('\u{1b}'));
    assert!(!page::markdown::page(&made).contains('\u{1b}'));
});
