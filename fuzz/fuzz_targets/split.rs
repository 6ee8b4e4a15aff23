//! Headers of any keys and names as the shards of one model, under any file names.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::Value;
use moeplan::gguf::shards::{Split, join, parse_name};
use moeplan_fuzz::{Draw, header};

fuzz_target!(|bytes: &[u8]| {
    let mut draw = Draw(bytes);
    let name = match draw.below(3) {
        0 => draw.text(),
        _ => format!("{}-{:05}-of-{:05}.gguf", draw.text(), draw.below(5), draw.below(5)),
    };
    if let Some((prefix, split)) = parse_name(&name) {
        assert_eq!(parse_name(&split.name(prefix, split.number)), Some((prefix, split)));
    }
    let count = u64::from(draw.below(4));
    let mut shards = Vec::new();
    for number in 0..count {
        let mut metadata = BTreeMap::from([
            ("split.no".to_string(), Value::U64(number)),
            ("split.count".to_string(), Value::U64(count)),
            ("split.tensors.count".to_string(), Value::U64(2 * count)),
        ]);
        for _ in 0..draw.below(3) {
            let key = ["split.no", "split.count", "split.tensors.count", "general.name", "general.architecture"];
            metadata.insert(key[usize::from(draw.below(5))].to_string(), draw.value());
        }
        let tensors = (0..2).filter_map(|_| {
            let name = draw.text();
            draw.tensor(name)
        });
        let tensors = tensors.collect();
        let Some(shard) = header(metadata, tensors) else { return };
        if let Ok(Some(split)) = Split::of(&shard) {
            assert!(split.number <= split.count);
            let _ = split.prefix(&name);
        }
        shards.push(shard);
    }
    let tensors: usize = shards.iter().map(|shard| shard.tensors.len()).sum();
    match join(shards) {
        Ok(joined) => assert_eq!(joined.tensors.len(), tensors),
        Err((shard, _)) => assert!(shard as u64 <= count),
    }
});
