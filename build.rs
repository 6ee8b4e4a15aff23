//! Builds the C++ shim of the embedded runtime.
fn main() {}
