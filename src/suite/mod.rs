//! Benchmarks and validation suites: what is asked, how the answers are judged, and the documents that keep it all.

pub mod document;
pub mod protocol;
pub mod quality;
pub mod stream;
