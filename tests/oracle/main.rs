//! llama.cpp itself, linked into the program, as the oracle.

#[path = "../support/mod.rs"]
mod support;

mod builds;
mod embedded;
mod loader;
mod fit;
mod oracle;
mod oracle_random;
