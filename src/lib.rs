//! Plan, predict and prove where llama.cpp puts a mixture-of-experts model.
//!
//! The modules are listed in reading order: each uses only those above it (`tests/tidy.rs` holds this).

pub mod bytes;
pub mod escape;
pub mod suggest;
pub mod guard;
pub mod stats;
pub mod gguf;
pub mod rules;
pub mod hparams;
pub mod model;
pub mod expectation;
pub mod inspection;
pub mod synth;
pub mod machine;
pub mod run;
pub mod placement;
pub mod memory;
pub mod speed;
pub mod checkup;
pub mod plan;
pub mod emit;
pub mod runtime;
pub mod measurement;
pub mod evidence;
pub mod tune;
pub mod suite;
pub mod doctor;
pub mod cli;
pub mod report;
pub mod commands;
