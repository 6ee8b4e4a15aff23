//! What a process holds on a device beyond llama.cpp's own sums: the driver's context, libraries, growing pools.

use crate::bytes::Bytes;
use crate::machine::{Backend, Device};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhead {
    /// The row is for devices whose description contains this, in any case; empty = any.
    pub description: &'static str,
    /// The backends it is for.
    pub backends: &'static [Backend],
    /// After loading.
    pub loaded: Bytes,
    /// After long prompts have grown the pools; they never shrink. Budgets count with this.
    pub peak: Bytes,
    /// Where the figures come from.
    pub source: &'static str,
}

/// First match wins.
pub const OVERHEADS: &[Overhead] = &[
    Overhead {
        description: "H100",
        backends: &[Backend::Cuda],
        loaded: Bytes::mib(600),
        peak: Bytes::mib(815),
        source: "measured on an H100 80GB, CUDA 13, llama.cpp b11434: 600 MiB loaded, 714 to 815 MiB after long prompts",
    },
    Overhead {
        description: "",
        backends: &[Backend::Cuda, Backend::Rocm, Backend::Vulkan, Backend::Metal],
        loaded: Bytes::mib(600),
        peak: Bytes::mib(600),
        source: "default: no measurement of this device",
    },
    Overhead {
        description: "",
        backends: &[Backend::Rpc, Backend::Cpu],
        loaded: Bytes(0),
        peak: Bytes(0),
        source: "no context of its own in this process",
    },
];

/// The row of `device`: what its machine file states, else the table's.
pub fn overhead(device: &Device) -> Overhead {
    if let Some(stated) = device.overhead {
        let source = "stated by the machine file";
        return Overhead { description: "", backends: &[], loaded: stated, peak: stated, source };
    }
    let description = device.description.as_deref().unwrap_or_default().to_ascii_lowercase();
    let fits = |row: &&Overhead| {
        row.backends.contains(&device.backend) && description.contains(&row.description.to_ascii_lowercase())
    };
    *OVERHEADS.iter().find(fits).expect("the table has a row for every backend")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_has_a_row_and_a_known_card_its_own() {
        let device = |backend, description: Option<&str>| Device {
            name: "X0".to_string(),
            buffer: "X0".to_string(),
            backend,
            description: description.map(str::to_string),
            total: Bytes::mib(24576),
            free: Bytes::mib(24576),
            overhead: None,
        };
        for (backend, description, peak) in [
            (Backend::Cuda, Some("NVIDIA H100 80GB HBM3"), 815),
            (Backend::Cuda, Some("NVIDIA GeForce RTX 4090"), 600),
            (Backend::Cuda, None, 600),
            (Backend::Rocm, None, 600),
            (Backend::Vulkan, None, 600),
            (Backend::Metal, None, 600),
            (Backend::Rpc, None, 0),
            (Backend::Cpu, None, 0),
        ] {
            assert_eq!(overhead(&device(backend, description)).peak, Bytes::mib(peak), "{backend:?} {description:?}");
        }
        let stated = Device { overhead: Some(Bytes::mib(333)), ..device(Backend::Rpc, None) };
        assert_eq!(overhead(&stated).peak, Bytes::mib(333));
    }
}
