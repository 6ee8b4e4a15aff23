//! The architectures whose graphs are replayed.

mod deepseek4;
mod delta;
mod dsa;
mod gemma;
mod glm5_next;
mod hyper;
mod kda;
mod kpool;
mod mixed;
mod mla;
mod kimi_k3;
mod minimax;
mod own;
mod plamo2;
mod plain;
mod qwen4exp;
mod table;

use super::Builder;

/// How the graph of one architecture is built.
enum Architecture {
    /// A decoder of these traits.
    Plain(plain::Spec),
    /// One of its own.
    Own(fn(&mut Builder<'_>)),
}

/// Whether the architecture's graph can be built.
pub(super) fn is_known(name: &str) -> bool {
    find(name).is_some()
}

/// Builds the graph of the architecture; `None` where it is not known.
pub(super) fn build(name: &str, builder: &mut Builder<'_>) -> Option<()> {
    match find(name)? {
        Architecture::Plain(spec) => plain::decoder(builder, spec),
        Architecture::Own(build) => build(builder),
    }
    Some(())
}

fn find(name: &str) -> Option<&'static Architecture> {
    table::ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, architecture)| architecture)
}
