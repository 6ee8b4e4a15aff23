//! Any text as what holds commands, and as a llama.cpp command; what is understood is printed and understood the same again.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use moeplan::run::parse::command;
use moeplan::run::sources::{self, Kind};
use moeplan::run::{RunConfig, args, grid};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let kinds = [Kind::Shell, Kind::Preset, Kind::LlamaSwap, Kind::Compose, Kind::Env, Kind::Unit, Kind::Kobold];
    for kind in kinds.into_iter().chain([Kind::of("-", &text)]) {
        for held in sources::of_text(kind, &text, &|_| None).into_iter().flatten() {
            let _ = (sources::shown(&held), grid::variants(&held));
        }
    }
    let mut words: Vec<String> = shlex::split(&text).unwrap_or_else(|| vec![text.into_owned()]);
    if !words.first().is_some_and(|first| first.starts_with("llama-")) {
        words.insert(0, "llama-server".to_string());
    }
    let env = BTreeMap::new();
    let Ok(parsed) = command(&words, &env) else { return };
    let printed = args::args(&parsed.run);
    let again: Vec<String> = words.iter().take(1).cloned().chain(printed).collect();
    let again = command(&again, &env).unwrap_or_else(|error| panic!("{error}: {again:?}"));
    // `--cpu-moe` and its like are printed as the patterns that they stand for.
    let shown = |mut run: RunConfig| {
        run.overrides.iter_mut().for_each(|entry| entry.origin = "-ot".to_string());
        format!("{run:?}")
    };
    assert_eq!(shown(again.run), shown(parsed.run));
});
