//! The architectures whose graphs are replayed.

mod delta;
mod dsa;
mod gemma;
mod kda;
mod mixed;
mod mla;
mod own;
mod plain;
mod table;

use super::Builder;

/// Builds the graph of one architecture.
pub(super) enum Architecture {
    /// A decoder of these traits.
    Plain(plain::Spec),
    /// One of its own.
    Own(fn(&mut Builder<'_>)),
}

/// The builder of an architecture by name.
pub(super) fn find(name: &str) -> Option<&'static Architecture> {
    table::ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, architecture)| architecture)
}

/// Builds the graph.
pub(super) fn build(architecture: &Architecture, builder: &mut Builder<'_>) {
    match architecture {
        Architecture::Plain(spec) => plain::decoder(builder, spec),
        Architecture::Own(build) => build(builder),
    }
}
