//! Builds of llama.cpp and ik_llama.cpp: what each held, by its own rules.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::build_rows::{ARCHITECTURES, Headers, Row, headers, launch};
use moeplan::memory;

/// Rows whose compute is not yet what the build held: recorded, so that they only get fewer.
const COMPUTE_OFF: [(u32, usize); 5] = [(9093, 1), (9341, 1), (9453, 2), (10001, 7), (10502, 4)];

#[test]
fn every_build_held_what_its_rules_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/builds.jsonl");
    let rows = std::fs::read_to_string(path).expect("the truth is in the repository");
    let headers = headers(ARCHITECTURES);
    let rows: Vec<Row> = rows.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    let off: Vec<(u32, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = rows
            .chunks(rows.len().div_ceil(parts))
            .map(|part| scope.spawn(|| part.iter().flat_map(|row| off(row, &headers)).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("rows that are equal")).collect()
    });
    for build in rows.iter().map(|row| row.build).collect::<BTreeSet<_>>() {
        let most = COMPUTE_OFF.iter().find(|row| row.0 == build).map_or(0, |row| row.1);
        let of_build: Vec<&str> = off.iter().filter(|row| row.0 == build).map(|row| row.1.as_str()).collect();
        assert!(of_build.len() <= most, "b{build}: {} rows:\n{}", of_build.len(), of_build.join("\n"));
    }
}

/// The devices of a row whose compute differs; weights and contexts may not.
fn off(row: &Row, headers: &Headers) -> Vec<(u32, String)> {
    let (machine, run) = launch(&row.launch, row.build, row.backend);
    let (_, model) = headers.get(&row.model);
    let ours = memory::forecast(model, &machine, &run).expect("a forecast").target;
    let mut off = Vec::new();
    for (key, theirs) in &row.memory {
        let ours = ours.get(key).copied().unwrap_or_default();
        assert_eq!((ours.model, ours.context), (theirs.model, theirs.context), "{} {} {key}", row.model, row.launch);
        if ours.compute != theirs.compute {
            let (compute, there) = (ours.compute.0, theirs.compute.0);
            off.push((row.build, format!("{} [{}] {key}: {compute}, {there} there", row.model, row.launch)));
        }
    }
    off
}
