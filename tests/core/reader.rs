//! The GGUF reader from outside: good files, bad files, any bytes.

#[cfg(unix)]
mod bounds;
mod files;
mod mutations;
mod refusals;
mod round_trip;
