//! A machine: its devices and its host, from flags, a file, or what is found here.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// Where a model could run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// In llama.cpp's order (RPC servers first, then GPUs).
    pub devices: Vec<Device>,
    /// The computer itself.
    pub host: Host,
}

/// One device as llama.cpp names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// `CUDA0`, `Vulkan0`, `MTL0`, `RPC0`: the key in memory tables.
    pub name: String,
    /// The buffer type that `-ot` takes; equal to `name` but for RPC (`RPC0[host:port]`).
    pub buffer: String,
    /// What drives it.
    pub backend: Backend,
    /// What it calls itself, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The memory it has, or the budget it is given.
    pub total: Bytes,
    /// What of it is free.
    pub free: Bytes,
}

/// The computer around the devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Main memory, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<Bytes>,
    /// Decides which weights are repacked.
    #[serde(default)]
    pub isa: Isa,
}

/// A backend of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// NVIDIA.
    Cuda,
    /// Any GPU with a Vulkan driver.
    Vulkan,
    /// Apple.
    Metal,
    /// AMD.
    Rocm,
    /// A device of another computer.
    Rpc,
    /// No device: everything on the host.
    Cpu,
}

/// What of the processor decides repacking (ggml-cpu/repack.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isa {
    /// No repacking known.
    Generic,
    /// AVX2.
    #[default]
    X86Avx2,
    /// AVX-512.
    X86Avx512,
    /// AVX-512 with AMX.
    X86Amx,
    /// NEON with dotprod/i8mm.
    ArmNeon,
}
