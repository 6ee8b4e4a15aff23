//! Where the fake llama-server is: built where only one test was asked for.

use std::path::PathBuf;

#[path = "examples.rs"]
mod examples;

/// The program of tests/support/fake_llama_server.rs.
pub fn fake() -> PathBuf {
    examples::example("fake-llama-server", "tests/support/fake_llama_server.rs")
}
