//! Any text as role rules, as a pattern of `-ot` and as tensor names; a pattern never takes long.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use moeplan::placement::pattern;
use moeplan::rules::RoleRules;
use moeplan_fuzz::Draw;

fuzz_target!(|bytes: &[u8]| {
    let mut draw = Draw(bytes);
    let architecture = ["", "qwen35moe", "kimi-k3", "bailingmoe3"][usize::from(draw.below(4))];
    let is_yaml = draw.below(8) == 0;
    let names: Vec<String> = (0..draw.below(4)).map(|_| draw.text()).collect();
    let text = String::from_utf8_lossy(draw.0);
    let rules = if is_yaml { RoleRules::from_yaml("x", &text).ok() } else { None };
    let names = || names.iter().map(String::as_str).chain(["blk.0.ffn_up_exps.weight", "blk.11.attn_q.weight"]);
    if let Some(rules) = rules {
        rules.roles(names());
    } else if !is_yaml && !architecture.is_empty() && text.len() < 4 {
        RoleRules::built_in(architecture).roles(names());
    }
    let started = Instant::now();
    if let Ok(pattern) = pattern::parse(&text) {
        for name in names() {
            pattern.matches(name);
        }
    }
    assert!(started.elapsed() < Duration::from_secs(5), "a pattern took {:?}", started.elapsed());
});
