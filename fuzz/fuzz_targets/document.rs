//! Any text as the documents of a report: a page that stays a page, whatever they say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moeplan::report::{html, markdown, read, text};

fuzz_target!(|bytes: &[u8]| {
    let Ok(sources) = read::read("d.json", bytes.to_vec()) else { return };
    for source in sources {
        let report = source.document.report();
        let markup = html::report(&report);
        assert!(!markup.contains('\u{202e}') && !markup.contains('\u{1b}'));
        assert!(!markdown::report(&report).contains('\u{1b}'));
        text::report(&report, true, 80);
    }
});
