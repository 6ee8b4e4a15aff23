//! What a process of llama.cpp needs of main memory beyond the weights and buffers of the memory table.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::memory::Prediction;
use crate::memory::overhead::host_growth;
use crate::model::Model;
use crate::run::{Program, RunConfig};

/// The program itself with a device's runtime: 288 MiB of anonymous and shared memory measured with Qwen3-30B-A3B on CUDA
/// (b11434), of which about 75 are its vocabulary.
const PROGRAM: Bytes = Bytes::mib(224);
/// Of the vocabulary: a token's text twice, its tables and hashes. Estimated from the same run (152 thousand tokens).
const PER_TOKEN: u64 = 512;

/// Main memory beyond the table, in bytes; all but the first two are taken as the server is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostNeeds {
    pub process: Bytes,
    pub logits: Bytes,
    /// Checkpoints of windows and recurrent states at most.
    pub checkpoints: Bytes,
    /// llama-server's prompt cache at most (`--cache-ram`).
    pub prompt_cache: Bytes,
}

impl HostNeeds {
    /// What cannot be done without.
    pub fn least(&self) -> Bytes {
        self.process + self.logits + self.checkpoints
    }

    /// All of it.
    pub fn most(&self) -> Bytes {
        self.least() + self.prompt_cache
    }
}

/// The needs of a launch.
pub fn needs(model: &Model, run: &RunConfig, prediction: &Prediction) -> HostNeeds {
    let growth = host_growth(run, &prediction.numbers, &prediction.caches, model.hparams.vocab_size);
    let vocabulary = Bytes(u64::from(model.hparams.vocab_size).saturating_mul(PER_TOKEN));
    HostNeeds {
        process: PROGRAM + vocabulary,
        logits: growth.logits,
        checkpoints: growth.checkpoints,
        prompt_cache: growth.prompt_cache,
    }
}

/// The prompt cache in MiB that main memory has room for beside `table`, where it is less than what the launch would take.
pub fn smaller_prompt_cache(run: &RunConfig, needs: &HostNeeds, table: Bytes, ram: Bytes) -> Option<u32> {
    if run.program != Program::Server || table + needs.most() <= ram {
        return None;
    }
    let room = ram.saturating_sub(table + needs.least()).min(needs.prompt_cache);
    // In steps of 256 MiB: less than one is none.
    u32::try_from(room.0 >> 20 >> 8 << 8).ok()
}
