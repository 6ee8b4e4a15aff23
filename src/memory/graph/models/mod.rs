//! The architectures whose graphs are replayed.

mod plain;

use super::Builder;

/// Builds the graph of one architecture.
pub(super) type Architecture = fn(&mut Builder<'_>);

/// The builder of an architecture by name.
pub(super) fn find(name: &str) -> Option<Architecture> {
    ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, build)| *build)
}

const ARCHITECTURES: &[(&str, Architecture)] = &[("llama", plain::llama), ("qwen3moe", plain::qwen3moe)];
