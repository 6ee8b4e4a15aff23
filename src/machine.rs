//! A machine: its devices and its host, from flags, a file, or what is found here.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::gguf::GgmlType;

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

impl Backend {
    /// What allocation sizes are padded to in a buffer of this backend's devices.
    ///
    /// Source: `ggml-cuda.cu` (128), `ggml-impl.h` `TENSOR_ALIGNMENT` (32), `ggml-metal.cpp` (32), `ggml-rpc.cpp` (the
    /// server's: a CPU server says 32). Vulkan's is the device's own `minStorageBufferOffsetAlignment`, usually 64 or less.
    pub fn alignment(self) -> u64 {
        match self {
            Self::Cuda | Self::Rocm => 128,
            Self::Vulkan => 64,
            Self::Metal | Self::Rpc | Self::Cpu => 32,
        }
    }

    /// The bytes a tensor takes in a buffer of this backend's devices, before alignment: on CUDA a quantized tensor whose rows
    /// are no multiple of 512 elements gets the rest of one row more (`ggml-cuda.cu` `get_alloc_size`, b11434).
    pub fn alloc_size(self, ty: GgmlType, shape: [u64; 4], bytes: Bytes) -> Bytes {
        let rest = shape[0] % 512;
        match self {
            Self::Cuda | Self::Rocm if ty.is_quantized && rest != 0 => {
                // A row is a whole number of blocks, and 512 is one for every type, so what is missing is one too.
                Bytes(bytes.0 + ty.row_bytes(512 - rest).unwrap_or(0))
            }
            _ => bytes,
        }
    }

    /// The buffer type of pinned host memory that this backend offers, by name.
    pub fn host_buffer_name(self) -> Option<&'static str> {
        match self {
            Self::Cuda => Some("CUDA_Host"),
            Self::Rocm => Some("ROCm_Host"),
            Self::Vulkan => Some("Vulkan_Host"),
            Self::Metal | Self::Rpc | Self::Cpu => None,
        }
    }

    /// The largest single buffer; a bigger model takes several (Vulkan: `suballocation_block_size`, 1 GiB).
    pub fn max_buffer(self) -> Bytes {
        if self == Self::Vulkan { Bytes::mib(1024) } else { Bytes(u64::MAX) }
    }

    /// The name of its first devices without their number, as llama.cpp prints it.
    pub fn device_prefix(self) -> Option<&'static str> {
        match self {
            Self::Cuda => Some("CUDA"),
            Self::Vulkan => Some("Vulkan"),
            Self::Metal => Some("MTL"),
            Self::Rocm => Some("ROCm"),
            Self::Rpc => Some("RPC"),
            Self::Cpu => None,
        }
    }
}

impl Device {
    /// `HOST:PORT` of an RPC device's server, where it is known.
    pub fn endpoint(&self) -> Option<&str> {
        let (_, rest) = self.buffer.split_once('[')?;
        rest.strip_suffix(']').filter(|_| self.backend == Backend::Rpc)
    }
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
