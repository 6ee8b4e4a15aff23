//! Benchmarks and validation suites: what is asked, how the answers are judged, and the documents that keep it all.

pub mod document;
