//! What several test programs share; each uses a part of it.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod build_rows;
pub mod examples;
pub mod fake_endpoint;
pub mod gguf_builder;
pub mod http_server;
pub mod peers;
pub mod planning;
pub mod quantize_cases;
pub mod random_launch;
pub mod report_documents;
pub mod schemas;
pub mod truth_rows;
pub mod verdict;

/// Whether what takes long is asked for (`scripts/test --full`).
pub fn is_full() -> bool {
    std::env::var_os("MOEPLAN_FULL").is_some()
}
