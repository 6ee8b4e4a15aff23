//! Plan, predict and prove where llama.cpp puts a mixture-of-experts model.
//!
//! The modules are listed in reading order: each uses only those above it (`tests/tidy.rs` holds this).

pub mod bytes;
pub mod checkup;
pub mod cli;
pub mod commands;
pub mod escape;
pub mod expectation;
pub mod gguf;
pub mod hparams;
pub mod inspection;
pub mod machine;
pub mod measurement;
pub mod memory;
pub mod model;
pub mod placement;
pub mod plan;
pub mod report;
pub mod rules;
pub mod run;
pub mod runtime;
pub mod synth;
