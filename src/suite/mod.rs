//! Benchmarks and validation suites: what is asked, how the answers are judged, and the documents that keep it all.

pub mod bench;
pub mod checklist;
pub mod document;
pub mod facts;
pub mod llama_bench;
pub mod protocol;
pub mod quality;
pub mod session;
pub mod store;
pub mod stream;
