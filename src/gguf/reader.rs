//! One GGUF header from bytes: bounded, checked, nothing trusted.
