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

use super::{Builder, Error};

/// How the graph of one architecture is built.
enum Architecture {
    /// A decoder of these traits.
    Plain(plain::Spec),
    /// One of its own.
    Own(for<'g> fn(&'g Builder<'g>)),
}

/// Builds the graph of the model's architecture.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    match find(b.arch) {
        Some(Architecture::Plain(spec)) => plain::decoder(b, spec),
        Some(Architecture::Own(build)) => build(b),
        None => {
            b.fail(Error::Architecture { architecture: b.arch.to_string() });
        }
    }
}

/// Whether graphs of the architecture can be built.
pub(super) fn is_known(name: &str) -> bool {
    find(name).is_some()
}

fn find(name: &str) -> Option<&'static Architecture> {
    table::ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, architecture)| architecture)
}
