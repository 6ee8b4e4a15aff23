//! The GGUF reader from outside: good files, bad files, any bytes.

#[cfg(unix)]
mod bounds;
mod files;
#[path = "../support/gguf_builder.rs"]
mod gguf_builder;
mod mutations;
mod refusals;
mod round_trip;
