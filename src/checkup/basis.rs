//! Where the figures of a check come from: the build, the dialect, and what is known of each device's backend.

use crate::machine::{Backend, Device, Machine};
use crate::memory::Basis;
use crate::placement::Placement;
use crate::run::{Dialect, Target};

/// What the quantity of a row ends in that says where a device's budget comes from.
pub const BUDGET: &str = ".budget";

/// The rows that a prediction itself does not have.
pub(super) fn rows(target: Target, machine: &Machine, placement: &Placement) -> Vec<Basis> {
    let row = |quantity: &str, how: String| Basis { quantity: quantity.to_string(), how };
    let mut rows = match target.dialect {
        Dialect::LlamaCpp => {
            let nearest = target.nearest();
            let unknown = if target.known().is_some() { "" } else { " (this build is not known; the nearest is)" };
            vec![row("build", format!("llama.cpp b{}{unknown}: {}", nearest.number, nearest.memory))]
        }
        Dialect::Ik => vec![
            row(
                "model",
                "ik_llama.cpp: its -ncmoe takes the last blocks of each device (since August 2026)".to_string(),
            ),
            row("context", "ik_llama.cpp: as llama.cpp keeps it, with -mla 1 to 3 the same latent cache".to_string()),
            row(
                "compute",
                "ik_llama.cpp: llama.cpp's figure; -fmoe, -mla and -amb change it, uncertain by half".to_string(),
            ),
        ],
    };
    for (_, device) in placement.taking_part(machine) {
        rows.push(row(&format!("{}.rules", device.name), of_device(device).to_string()));
        rows.extend(device.budget_note().map(|note| row(&format!("{}{BUDGET}", device.name), note)));
    }
    rows
}

/// What is known of a device's rules.
fn of_device(device: &Device) -> &'static str {
    match device.backend {
        Backend::Cuda => "CUDA: alignment 128; compared with llama.cpp's own projection on an H100",
        Backend::Rocm => {
            "ROCm: CUDA's rules, from the same source; compared with no device, compute uncertain by some per cent"
        }
        Backend::Vulkan => {
            "Vulkan: alignment taken as 64 (it is the device's own, 16 to 256), weights in buffers of 1 GiB; compared with no \
             device: model and context uncertain by the alignment, compute by some per cent"
        }
        Backend::Metal => {
            "Metal: alignment 32, no pinned host memory; compared with no device, compute uncertain by some per cent (scratch of \
             its kernels is not counted)"
        }
        Backend::Rpc => {
            "RPC: as a server on a processor answers (alignment 32), compared with llama.cpp's own projection; a server on a GPU \
             has that GPU's alignment"
        }
        Backend::Cpu => "CPU: host memory",
    }
}
