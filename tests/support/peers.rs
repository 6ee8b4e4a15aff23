//! What other estimators were measured to be off by (`testdata/truth/peers.yaml`), beside ours on the same launches.

use std::fmt::Write as _;
use std::path::Path;

use moeplan::bytes::MIB;
use serde::Deserialize;

use super::truth_rows::{Headers, predict, rows};

/// One launch of the comparison.
#[derive(Debug, Deserialize)]
struct Entry {
    model: String,
    /// Those that differ between the launches.
    flags: String,
    /// gguf-parser's error in per cent, without and with its footprint.
    gguf_parser: f64,
    with_footprint: Option<f64>,
    /// llama-mdl's error in per cent.
    mdl: f64,
    /// Our MiB when llama.cpp's projection was compared with them, where that projection is no row here.
    ours: Option<f64>,
}

/// A launch with both totals of its device, in MiB.
#[derive(Debug)]
pub struct Cell {
    entry: Entry,
    /// Our prediction.
    pub ours: f64,
    /// llama.cpp's projection.
    pub truth: f64,
    /// How far apart the two may be for all that is known of `truth`.
    pub hidden: f64,
}

impl Cell {
    /// Model and flags.
    pub fn name(&self) -> String {
        format!("{} `{}`", self.entry.model, self.entry.flags)
    }
}

/// Every launch of the comparison, predicted.
#[expect(clippy::cast_precision_loss, reason = "MiB with decimals")]
pub fn cells() -> Vec<Cell> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/peers.yaml");
    let text = std::fs::read_to_string(path).expect("the peers are in the repository");
    let entries: Vec<Entry> = serde_yaml::from_str(&text).expect("a list of launches");
    let rows = rows("models.jsonl");
    let mut headers = Headers::unpack("truth-models.tar.xz");
    let cell = |entry: Entry| {
        let projection = || {
            let words = |flags: &str| {
                let mut words: Vec<String> =
                    flags.split(" -").map(|flag| flag.trim_start_matches('-').into()).collect();
                words.sort();
                words
            };
            let asked = words(format!("-ngl 99 -np 1 -c 32768 {}", entry.flags).trim_end());
            let row = rows.iter().find(|row| row.model == entry.model && words(&row.flags) == asked);
            let row = row.unwrap_or_else(|| panic!("models.jsonl has no {} {}", entry.model, entry.flags));
            let shown = row.memory_mib["CUDA0"];
            // Two figures are cut to whole MiB, which hides 1 MiB around the middle; the third is rounded to two decimals.
            ((shown.model + shown.context) as f64 + 1.0 + row.compute_mib["CUDA0"], 1.005)
        };
        let (truth, hidden) = entry.ours.map_or_else(projection, |mib| (mib, 0.75));
        let command = format!("llama-server -ngl 99 -np 1 -c 32768 {}", entry.flags);
        let found = predict(headers.model(&entry.model), command.trim_end(), "CUDA0=81079M").expect("predicted");
        let row = found["CUDA0"];
        Cell { ours: (row.model + row.context + row.compute).0 as f64 / MIB as f64, truth, hidden, entry }
    };
    entries.into_iter().map(cell).collect()
}

/// How to get our figures, and the table, in Markdown.
pub fn table() -> String {
    let mut text = String::from(
        "Memory of one device, and its error against llama.cpp's own projection. To reproduce moeplan's column, subtract the overhead \
         from the total:\n\n```sh\nmkdir t && tar -xJSf testdata/truth-models.tar.xz -C t\n\
         moeplan check --json --device CUDA0=81079M -- llama-server -m t/MODEL.gguf -ngl 99 -np 1 -c 32768 FLAGS\n```\n\n\
         The other columns are gguf-parser-go 0.25 (in brackets: with its footprint of 500 MiB) and llama-mdl 0.14.0 \
         `--no-oracle`.\n\n\
         | MODEL `FLAGS` | moeplan, MiB | moeplan | gguf-parser-go | llama-mdl |\n|---|---:|---:|---:|---:|\n",
    );
    for cell in cells() {
        let off = cell.ours - cell.truth;
        // What is not known of the truth is no error.
        let error = if off.abs() <= cell.hidden { 0.0 } else { 100.0 * off / cell.truth };
        let Entry { model, flags, gguf_parser, with_footprint, mdl, .. } = &cell.entry;
        let flags = if flags.is_empty() { "all on the device".to_string() } else { format!("`{flags}`") };
        let footprint = with_footprint.map_or(String::new(), |percent| format!(" ({percent:+.1}%)"));
        let _ = writeln!(
            text,
            "| {model} {flags} | {:.1} | {error:.1}% | {gguf_parser:+.1}%{footprint} | {mdl:+.1}% |",
            cell.ours
        );
    }
    text
}
