//! What llama-bench measured, read: each row a launch, a test and its time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::run::{self, RunConfig};

/// One row of llama-bench's JSON (`-o json` or `-o jsonl`, b11434), as far as time depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The model's file.
    #[serde(alias = "model")]
    pub model_filename: String,
    /// `-b`.
    pub n_batch: u32,
    /// `-ub`.
    pub n_ubatch: u32,
    /// `-t`.
    pub n_threads: u32,
    /// `-ctk`.
    #[serde(default = "f16")]
    pub type_k: String,
    /// `-ctv`.
    #[serde(default = "f16")]
    pub type_v: String,
    /// `-ngl`.
    #[serde(default = "all_layers")]
    pub n_gpu_layers: i32,
    /// `-ncmoe`.
    #[serde(default)]
    pub n_cpu_moe: u32,
    /// `-sm`.
    #[serde(default = "layer")]
    pub split_mode: String,
    /// `-nkvo`.
    #[serde(default)]
    pub no_kv_offload: bool,
    /// `-fa`: -1 auto, 0 off, 1 on.
    #[serde(default = "auto_attention")]
    pub flash_attn: i32,
    /// `-dev`.
    #[serde(default = "auto")]
    pub devices: String,
    /// `-ts`.
    #[serde(default)]
    pub tensor_split: String,
    /// `-ot`.
    #[serde(default = "none")]
    pub tensor_buft_overrides: String,
    /// `-lm`.
    #[serde(default = "auto")]
    pub load_mode: String,
    /// `-nopo`.
    #[serde(default)]
    pub no_op_offload: u32,
    /// `--no-host`.
    #[serde(default)]
    pub no_host: bool,
    /// `--repack`.
    #[serde(default = "yes")]
    pub repack: bool,
    /// `-p`.
    pub n_prompt: u32,
    /// `-n`.
    pub n_gen: u32,
    /// `-d`.
    pub n_depth: u32,
    /// Tokens per second, the mean over the repetitions.
    pub avg_ts: f64,
    /// llama.cpp's build.
    #[serde(default)]
    pub build_number: u32,
    /// What the devices call themselves.
    #[serde(default)]
    pub gpu_info: String,
    /// What the processor calls itself.
    #[serde(default)]
    pub cpu_info: String,
    /// The backends: `CUDA`, `RPC`, `CPU`.
    #[serde(default)]
    pub backends: String,
    /// When, in UTC.
    #[serde(default)]
    pub test_time: String,
}

fn f16() -> String {
    "f16".to_string()
}

fn all_layers() -> i32 {
    -1
}

fn layer() -> String {
    "layer".to_string()
}

fn auto_attention() -> i32 {
    -1
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

/// A file that is no output of llama-bench.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or a row lacks a figure.
    #[error("row {number}: {source}; write it with `llama-bench -o jsonl`")]
    Row {
        /// From 1.
        number: usize,
        /// What serde found.
        source: serde_json::Error,
    },
    /// Flags that llama.cpp would not take.
    #[error("{0}")]
    Launch(#[from] run::Error),
}

/// The rows of a file: an array, or a row a line. Rows of other programs (without `avg_ts`) are left out.
pub fn rows(text: &str) -> Result<Vec<BenchRow>, Error> {
    let row = |number: usize| move |source| Error::Row { number, source };
    let values: Vec<serde_json::Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(row(1))?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with('{'));
        lines.map(|(at, line)| serde_json::from_str(line).map_err(row(at + 1))).collect::<Result<_, _>>()?
    };
    let of_bench = values.into_iter().enumerate().filter(|(_, value)| value.get("avg_ts").is_some());
    of_bench.map(|(at, value)| serde_json::from_value(value).map_err(row(at + 1))).collect()
}

impl BenchRow {
    /// The words that run this test alone.
    fn words(&self) -> Vec<String> {
        let attention = match self.flash_attn {
            0 => "off",
            1 => "on",
            _ => "auto",
        };
        let mut words = vec!["llama-bench".to_string()];
        let mut pair = |flag: &str, value: String| words.extend([flag.to_string(), value]);
        let switch = |on: bool| u32::from(on).to_string();
        pair("-p", self.n_prompt.to_string());
        pair("-n", self.n_gen.to_string());
        pair("-d", self.n_depth.to_string());
        pair("-b", self.n_batch.to_string());
        pair("-ub", self.n_ubatch.to_string());
        pair("-t", self.n_threads.to_string());
        pair("-ctk", self.type_k.clone());
        pair("-ctv", self.type_v.clone());
        pair("-ngl", self.n_gpu_layers.to_string());
        pair("-sm", self.split_mode.clone());
        pair("-nkvo", switch(self.no_kv_offload));
        pair("-fa", attention.to_string());
        pair("-lm", self.load_mode.clone());
        pair("-nopo", self.no_op_offload.to_string());
        pair("--no-host", switch(self.no_host));
        pair("--repack", switch(self.repack));
        if self.n_cpu_moe > 0 {
            pair("-ncmoe", self.n_cpu_moe.to_string());
        }
        if self.devices != "auto" {
            pair("-dev", self.devices.clone());
        }
        if self.tensor_split.contains(|c: char| ('1'..='9').contains(&c)) {
            pair("-ts", self.tensor_split.clone());
        }
        if self.tensor_buft_overrides != "none" {
            pair("-ot", self.tensor_buft_overrides.clone());
        }
        words
    }

    /// The launch that was measured.
    pub fn run(&self) -> Result<RunConfig, Error> {
        let mut run = run::parse::command(&self.words(), &BTreeMap::new())?.run;
        run.n_ctx = self.n_prompt.saturating_add(self.n_gen).saturating_add(self.n_depth).max(1);
        Ok(run)
    }

    /// Seconds of the test: what it timed divided by its rate.
    pub fn seconds(&self) -> f64 {
        f64::from(self.n_prompt.saturating_add(self.n_gen)) / self.avg_ts
    }

    /// The model's file without folder and ending.
    pub fn model(&self) -> &str {
        let file = self.model_filename.rsplit(['/', '\\']).next().unwrap_or_default();
        file.strip_suffix(".gguf").unwrap_or(file)
    }

    /// The test in a few words, as llama-bench names it.
    pub fn test(&self) -> String {
        let mut test = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        };
        if self.n_depth > 0 {
            test.push_str(&format!(" @ d{}", self.n_depth));
        }
        test
    }
}
