//! Builds of llama.cpp and ik_llama.cpp: what each held, by its own rules.

use std::path::Path;

use crate::support::build_rows::{Row, headers, launch};
use moeplan::memory;

/// Rows whose compute is not yet what the build held: recorded, so that they only get fewer.
const COMPUTE_OFF: usize = 15;

/// Builds of which every row is compared; of the others a third, unless `MOEPLAN_FULL` asks for all.
const WHOLE: [u32; 2] = [9093, 12032];

#[test]
fn every_build_held_what_its_rules_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/builds.jsonl");
    let rows = std::fs::read_to_string(path).expect("the truth is in the repository");
    let headers = headers();
    let mut off = Vec::new();
    let is_full = std::env::var_os("MOEPLAN_FULL").is_some();
    for (at, line) in rows.lines().enumerate() {
        let row: Row = serde_json::from_str(line).expect("JSON lines");
        if at % 3 != 0 && !is_full && !WHOLE.contains(&row.build) {
            continue;
        }
        let (machine, run) = launch(&row.launch, row.build);
        let (_, model) = headers.get(&row.model);
        let ours = memory::forecast(model, &machine, &run).expect("a forecast").target;
        for (key, theirs) in &row.memory {
            let ours = ours.get(key).copied().unwrap_or_default();
            assert_eq!(
                (ours.model, ours.context),
                (theirs.model, theirs.context),
                "{} {} {key}",
                row.model,
                row.launch
            );
            if ours.compute != theirs.compute {
                off.push(format!(
                    "b{} {} [{}] {key}: {} {}",
                    row.build, row.model, row.launch, ours.compute, theirs.compute
                ));
            }
        }
    }
    assert!(off.len() <= COMPUTE_OFF, "{} rows:\n{}", off.len(), off.join("\n"));
}
