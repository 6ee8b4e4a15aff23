//! The library: the reader, the law of memory, the planner, and what is written and read back.

#[path = "../support/mod.rs"]
mod support;

mod accuracy;
mod answers;
mod builds;
#[cfg(feature = "cli")]
mod contradictions;
mod drafts;
mod emit;
mod library;
mod lints;
mod plan;
mod reader;
mod real_headers;
mod search;
mod speed;
#[cfg(feature = "cli")]
mod suites;
mod synth;
mod tidy;
mod truth;
mod want;
mod whatif;
