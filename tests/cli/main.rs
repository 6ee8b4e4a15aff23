//! The program as people use it: its commands, pages and documents.

#[path = "../support/mod.rs"]
mod support;

#[cfg(unix)]
mod builds;
mod cmd;
mod doctor;
mod frozen;
mod held;
mod help;
mod hostile;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(feature = "remote")]
mod remote;
mod mcp;
mod report;
mod schema;
mod want;
