//! What llama-bench measured, read: each row a launch, a test and its time.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fit::Sample;
use super::work::Layout;
use super::{Case, Phase};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::memory;
use crate::model::Model;
use crate::run::{self, RunConfig, Target};

/// One row of llama-bench's JSON (`-o json` or `-o jsonl`, b11434), as far as time depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BenchRow {
    #[serde(alias = "model")]
    pub model_filename: String,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_threads: u32,
    #[serde(default = "f16")]
    pub type_k: String,
    #[serde(default = "f16")]
    pub type_v: String,
    #[serde(default = "unset")]
    pub n_gpu_layers: i32,
    #[serde(default)]
    pub n_cpu_moe: u32,
    #[serde(default = "layer")]
    pub split_mode: String,
    #[serde(default)]
    pub no_kv_offload: bool,
    #[serde(default = "unset")]
    pub flash_attn: i32,
    #[serde(default = "auto")]
    pub devices: String,
    #[serde(default)]
    pub tensor_split: String,
    #[serde(default = "none")]
    pub tensor_buft_overrides: String,
    #[serde(default = "auto")]
    pub load_mode: String,
    #[serde(default)]
    pub no_op_offload: u32,
    #[serde(default)]
    pub no_host: bool,
    #[serde(default = "yes")]
    pub repack: bool,
    pub n_prompt: u32,
    pub n_gen: u32,
    pub n_depth: u32,
    /// Tokens per second, the mean over the repetitions.
    pub avg_ts: f64,
    #[serde(default, skip_serializing)]
    pub stddev_ts: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples_ts: Vec<f64>,
    #[serde(default)]
    pub build_number: u32,
    #[serde(default)]
    pub gpu_info: String,
    #[serde(default)]
    pub cpu_info: String,
    #[serde(default)]
    pub backends: String,
    #[serde(default)]
    pub test_time: String,
    /// llama.cpp's description of the model: `qwen3moe 30B.A3B Q4_K - Medium`.
    #[serde(default, skip_serializing)]
    pub model_type: String,
    #[serde(default, skip_serializing)]
    pub model_size: Bytes,
}

fn f16() -> String {
    "f16".to_string()
}

fn unset() -> i32 {
    -1
}

fn layer() -> String {
    "layer".to_string()
}

fn auto() -> String {
    "auto".to_string()
}

fn none() -> String {
    "none".to_string()
}

fn yes() -> bool {
    true
}

/// A file that is not output of llama-bench.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("row {number}: {source}; write it with `llama-bench -o jsonl`")]
    Row { number: usize, source: serde_json::Error },
    #[error(transparent)]
    Launch(#[from] run::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// The rows of a file: an array, or a row a line. What is not a test of one phase (no `avg_ts`, `-pg`) is left out.
pub fn rows(text: &str) -> Result<Vec<BenchRow>, Error> {
    let row = |number: usize| move |source| Error::Row { number, source };
    let values: Vec<serde_json::Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(row(1))?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with('{'));
        lines.map(|(at, line)| serde_json::from_str(line).map_err(row(at + 1))).collect::<Result<_, _>>()?
    };
    let of_bench = values.into_iter().enumerate().filter(|(_, value)| value.get("avg_ts").is_some());
    let rows = of_bench.map(|(at, value)| serde_json::from_value::<BenchRow>(value).map_err(row(at + 1)));
    let one_phase = |row: &BenchRow| (row.n_prompt == 0) != (row.n_gen == 0) && row.avg_ts > 0.0;
    Ok(rows.collect::<Result<Vec<_>, _>>()?.into_iter().filter(one_phase).collect())
}

impl BenchRow {
    /// The words that run this test alone.
    pub fn words(&self) -> Vec<String> {
        let attention = match self.flash_attn {
            0 => "off",
            1 => "on",
            _ => "auto",
        };
        let switch = |on: bool| u32::from(on).to_string();
        let text = |text: &str| text.to_string();
        let is_split = self.tensor_split.contains(|c: char| ('1'..='9').contains(&c));
        let pairs = [
            (true, "-p", self.n_prompt.to_string()),
            (true, "-n", self.n_gen.to_string()),
            (true, "-d", self.n_depth.to_string()),
            (true, "-b", self.n_batch.to_string()),
            (true, "-ub", self.n_ubatch.to_string()),
            (true, "-t", self.n_threads.to_string()),
            (true, "-ctk", text(&self.type_k)),
            (true, "-ctv", text(&self.type_v)),
            (true, "-ngl", self.n_gpu_layers.to_string()),
            (true, "-sm", text(&self.split_mode)),
            (true, "-nkvo", switch(self.no_kv_offload)),
            (true, "-fa", text(attention)),
            (true, "-lm", text(&self.load_mode)),
            (true, "-nopo", self.no_op_offload.to_string()),
            (true, "--no-host", switch(self.no_host)),
            (true, "--repack", switch(self.repack)),
            (self.n_cpu_moe > 0, "-ncmoe", self.n_cpu_moe.to_string()),
            (self.devices != "auto", "-dev", text(&self.devices)),
            (is_split, "-ts", text(&self.tensor_split)),
            (self.tensor_buft_overrides != "none", "-ot", text(&self.tensor_buft_overrides)),
        ];
        let given = pairs.into_iter().filter(|(given, ..)| *given);
        [text("llama-bench")].into_iter().chain(given.flat_map(|(_, flag, value)| [text(flag), value])).collect()
    }

    pub fn run(&self) -> Result<RunConfig, Error> {
        let mut run = run::parse::command_for(&self.words(), &BTreeMap::new(), Target::default())?.run;
        run.n_ctx = self.n_prompt.saturating_add(self.n_gen).saturating_add(self.n_depth).max(1);
        Ok(run)
    }

    /// Seconds of the test, of its fastest repetition: the first ones are often slow, since clocks rise with the work.
    pub fn seconds(&self) -> f64 {
        let fastest = self.samples_ts.iter().copied().fold(0.0, f64::max);
        f64::from(self.n_prompt.saturating_add(self.n_gen)) / if fastest > 0.0 { fastest } else { self.avg_ts }
    }

    /// The model's file without folder and ending.
    pub fn model(&self) -> &str {
        let file = self.model_filename.rsplit(['/', '\\']).next().unwrap_or_default();
        file.strip_suffix(".gguf").unwrap_or(file)
    }

    /// The test in a few words, as llama-bench names it.
    pub fn test(&self) -> String {
        let test = if self.n_gen == 0 { format!("pp{}", self.n_prompt) } else { format!("tg{}", self.n_gen) };
        if self.n_depth > 0 { format!("{test} @ d{}", self.n_depth) } else { test }
    }

    /// Model, test and what of the launch is not llama-bench's default.
    fn what(&self) -> String {
        let mut what = format!("{} {} -ub {} -t {}", self.model(), self.test(), self.n_ubatch, self.n_threads);
        for (given, flag) in [
            (self.n_cpu_moe > 0, format!(" -ncmoe {}", self.n_cpu_moe)),
            (self.tensor_buft_overrides != "none", format!(" -ot {}", self.tensor_buft_overrides)),
            (self.load_mode != "auto", format!(" -lm {}", self.load_mode)),
            (self.no_op_offload > 0, " -nopo 1".to_string()),
            (self.no_host, " --no-host 1".to_string()),
        ] {
            if given {
                what.push_str(&flag);
            }
        }
        what
    }

    /// The measurement as the fit takes it; `model` is the row's model, `machine` the one it was taken on.
    pub fn sample(&self, model: &Model, machine: &Machine) -> Result<Sample, Error> {
        let run = self.run()?;
        let forecast = &memory::forecast(model, machine, &run)?;
        let case = Case { model, machine, run: &run, placement: &forecast.placement, forecast };
        let layout = Layout::of(&case);
        let (phase, work) = if self.n_gen == 0 {
            (Phase::Prompt, layout.prompt(self.n_prompt, self.n_depth))
        } else {
            (Phase::Generate, layout.generation(self.n_gen, self.n_depth))
        };
        Ok(Sample { what: self.what(), phase, work, seconds: self.seconds() })
    }
}

/// When, with which build and from how many rows: the basis of what is fitted to them.
pub fn basis(rows: &[BenchRow]) -> String {
    let day = rows.iter().filter_map(|row| row.test_time.get(..10)).max();
    let on = day.map_or_else(String::new, |day| format!(" on {day}"));
    let build = rows.iter().map(|row| row.build_number).max().filter(|build| *build > 0);
    let with = build.map_or_else(String::new, |build| format!(" with llama.cpp b{build}"));
    format!("calibrated{on}{with}: {} measurements", rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"model_filename": "/models/a.gguf", "n_batch": 2048, "n_ubatch": 512, "n_threads": 8, "n_prompt": 512,
        "n_gen": 0, "n_depth": 4096, "avg_ts": 256.0, "n_cpu_moe": 3, "tensor_buft_overrides": "blk\\.7\\.ffn_up_exps=CPU;x=CPU",
        "load_mode": "none", "no_op_offload": 1, "n_gpu_layers": 99, "build_number": 11434, "test_time": "2026-11-22T01:00:00Z"}"#;

    #[test]
    fn a_row_is_a_launch_and_a_time() {
        let text = ROW.replace('\n', " ");
        let row = &rows(&text).unwrap()[0];
        assert_eq!(rows(&format!("[{ROW}]")).unwrap(), std::slice::from_ref(row));
        let run = row.run().unwrap();
        assert_eq!((run.n_ctx, run.n_threads, run.op_offload), (4608, Some(8), false));
        assert_eq!(run.load_mode, run::LoadMode::None);
        assert_eq!(run.overrides.len(), 5, "three blocks and two patterns: {:?}", run.overrides);
        assert_eq!((row.test().as_str(), row.model()), ("pp512 @ d4096", "a"));
        assert!((row.seconds() - 2.0).abs() < 1e-12);
        assert_eq!(basis(std::slice::from_ref(row)), "calibrated on 2026-11-22 with llama.cpp b11434: 1 measurements");
        assert!(row.what().starts_with("a pp512 @ d4096 -ub 512 -t 8 -ncmoe 3 -ot blk"), "{}", row.what());
    }

    #[test]
    fn other_rows_are_left_out_and_broken_ones_named() {
        let mixed = ROW.replace('\n', " ").replace("\"n_gen\": 0", "\"n_gen\": 16");
        assert_eq!(rows(&format!("{{\"kind\": \"server\"}}\nlog line\n{mixed}\n")).unwrap(), []);
        let error = rows("{\"avg_ts\": 1.0}").unwrap_err().to_string();
        assert!(error.starts_with("row 1: missing field `model_filename`"), "{error}");
        assert!(rows("{]").is_err());
    }
}
