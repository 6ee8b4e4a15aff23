//! What launches a llama-server, against a fake one and, where there is one, the real one.

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod live;
#[cfg(unix)]
mod results;
#[cfg(unix)]
mod server;
mod suite;
#[cfg(unix)]
mod tune;
