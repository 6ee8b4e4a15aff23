//! Other estimators' published errors (`testdata/truth/peers.yaml`) beside ours on the same launches.

use std::fmt::Write as _;
use std::path::Path;

use moeplan::bytes::MIB;
use serde::Deserialize;

use super::truth_rows::{Headers, predict, rows};

/// One launch of the comparison.
#[derive(Debug, Deserialize)]
struct Entry {
    case: String,
    model: String,
    flags: String,
    /// gguf-parser's error in per cent, without and with its footprint.
    gguf_parser: [f64; 2],
    /// llama-mdl's error in per cent.
    mdl: f64,
    /// llama.cpp's bytes of model, context and compute on an RPC device, where no CUDA row has the launch.
    remote: Option<[u64; 3]>,
}

/// A launch with both totals of its device, in bytes.
#[derive(Debug)]
pub struct Cell {
    /// In words.
    pub case: String,
    /// Our prediction.
    pub ours: u64,
    /// llama.cpp's projection; from a table of whole MiB where it is CUDA's, so within 1.5 MiB.
    pub truth: u64,
    entry: Entry,
}

/// Every launch of the comparison, predicted.
pub fn cells() -> Vec<Cell> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/truth/peers.yaml");
    let text = std::fs::read_to_string(path).expect("the peers are in the repository");
    let entries: Vec<Entry> = serde_yaml::from_str(&text).expect("a list of launches");
    let rows = rows("models.jsonl");
    let mut headers = Headers::unpack("truth-models.tar.xz");
    let cell = |entry: Entry| {
        let (device, truth) = if let Some(bytes) = entry.remote {
            ("RPC0", bytes.iter().sum())
        } else {
            let row = rows.iter().find(|row| row.model == entry.model && row.flags == entry.flags);
            let row = row.unwrap_or_else(|| panic!("models.jsonl has no {} {}", entry.model, entry.flags));
            let shown = row.memory_mib["CUDA0"];
            // Three figures cut to whole MiB: one and a half is in the middle of what that hides.
            ("CUDA0", (shown.model + shown.context + shown.compute) * MIB + 3 * MIB / 2)
        };
        // An RPC device takes part where the command names its server.
        let (at, rpc) = if device == "RPC0" { ("[127.0.0.1:50052]", " --rpc 127.0.0.1:50052") } else { ("", "") };
        let command = format!("llama-server {}{rpc}", entry.flags);
        let found = predict(headers.model(&entry.model), &command, &format!("{device}{at}=81079M")).expect("predicted");
        let row = found[device];
        Cell { case: entry.case.clone(), ours: (row.model + row.context + row.compute).0, truth, entry }
    };
    entries.into_iter().map(cell).collect()
}

/// How to get our figures, and the table, in Markdown.
pub fn table() -> String {
    let mut text = String::from(
        "Ours below, in MiB rounded up: `mkdir t && tar -xJSf testdata/truth-models.tar.xz -C t`, then `moeplan check --json --device CUDA0=81079M -- llama-server -m t/MODEL.gguf -ngl 99 -np 1 FLAGS`, the total less the overhead; rows marked RPC: `--device 'RPC0[127.0.0.1:50052]=81079M' -- llama-server --rpc 127.0.0.1:50052 -m …`.\n\n| Error of the device's total: MODEL `FLAGS` | gguf-parser (with its footprint) | llama-mdl | moeplan | MiB |\n|---|---:|---:|---:|---:|\n",
    );
    for cell in cells() {
        #[expect(clippy::cast_precision_loss, reason = "per cent")]
        let error = 100.0 * (cell.ours as f64 - cell.truth as f64) / cell.truth as f64;
        // What the truth's whole MiB can hide is no error.
        let is_hidden = cell.ours.abs_diff(cell.truth) <= 3 * MIB / 2;
        let error = if is_hidden { "0.0%".to_string() } else { format!("{error:+.1}%") };
        let Entry { model, gguf_parser: [without, with], mdl, remote, .. } = &cell.entry;
        let flags = cell.entry.flags.replace("-ngl 99 ", "").replace(" -np 1", "");
        let on = if remote.is_some() { " (RPC)" } else { "" };
        let mib = cell.ours.div_ceil(MIB);
        let _ =
            writeln!(text, "| {model} `{flags}`{on} | {without:+.1}% ({with:+.1}%) | {mdl:+.1}% | {error} | {mib} |");
    }
    text
}
