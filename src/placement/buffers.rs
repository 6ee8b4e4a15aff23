//! Buffer types: the host's list, and the first of a list that takes a weight.
//!
//! Source: `src/llama-model.cpp` `make_cpu_buft_list`, `src/llama-model-loader.cpp` `select_weight_buft`,
//! `ggml/src/ggml-cpu/repack.cpp` `ggml_repack_get_optimal_repack_type`, `ggml/src/ggml-cpu/amx`, b11434.

use super::Buffer;
use super::tensors::Op;
use crate::bytes::Bytes;
use crate::machine::{Backend, Isa};
use crate::model::Tensor;

/// The host's buffer types in llama.cpp's order, as the machine and the launch have them.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostList {
    /// The backend of the first device with pinned host memory.
    pub pinned: Option<Backend>,
    pub repack: Option<Isa>,
    /// Whether pinned memory gives way to mapped files.
    pub mapped: bool,
}

impl HostList {
    /// The first buffer type that takes the weight.
    pub fn choose(self, tensor: &Tensor, op: Op) -> Buffer {
        if self.pinned.is_some_and(|backend| supports(backend, tensor, op)) {
            return if self.mapped { Buffer::Cpu } else { Buffer::HostPinned };
        }
        match self.repack {
            Some(Isa::X86Amx) if amx(tensor, op) => Buffer::Amx,
            Some(isa) if repacks(isa, tensor, op) => Buffer::CpuRepack,
            _ => Buffer::Cpu,
        }
    }
}

/// Whether a backend's devices do `op` with a weight of this type.
pub(super) fn supports(backend: Backend, tensor: &Tensor, op: Op) -> bool {
    let name = tensor.ty.name;
    match (backend, op) {
        (cuda, Op::Other) if cuda.is_cuda_source() && is_decay(tensor) => !is_mamba1(tensor) || scans(tensor),
        (Backend::Vulkan, Op::Other) if is_decay(tensor) => !is_mamba1(tensor),
        (_, Op::Other) | (Backend::Rpc, _) => true,
        (Backend::Cpu, _) => false,
        (cuda, Op::GetRows) if cuda.is_cuda_source() => !matches!(name, "tq1_0" | "tq2_0" | "nvfp4" | "q8_K" | "f64"),
        (cuda, _) if cuda.is_cuda_source() => !matches!(name, "tq1_0" | "tq2_0" | "f64" | "i8" | "i16" | "i32" | "i64"),
        (Backend::Vulkan, _) => !matches!(name, "q8_1" | "q8_K" | "f64" | "i8" | "i16" | "i64"),
        _ => !matches!(name, "tq1_0" | "tq2_0" | "f64" | "q8_K"),
    }
}

fn is_decay(tensor: &Tensor) -> bool {
    tensor.name.ends_with(".ssm_a")
}

/// Mamba-1 has a decay for each state and channel, and Mamba-2 one for each head.
fn is_mamba1(tensor: &Tensor) -> bool {
    tensor.shape[0] != 1 && tensor.shape[1] != 1
}

/// Whether CUDA scans with these decays of Mamba-1: it has a kernel for 16 states only.
fn scans(tensor: &Tensor) -> bool {
    tensor.shape[0] == 16 && tensor.shape[1].is_multiple_of(128)
}

/// Dimensions as ggml counts them.
fn n_dims(tensor: &Tensor) -> usize {
    (1..4).rev().find(|d| tensor.shape[*d] > 1).map_or(1, |d| d + 1)
}

/// Whether the processor has a layout of its own for the weight.
fn repacks(isa: Isa, tensor: &Tensor, op: Op) -> bool {
    let fits = (op == Op::MulMat && n_dims(tensor) == 2) || (op == Op::MulMatId && n_dims(tensor) == 3);
    let rows = match isa {
        Isa::Generic => 0,
        Isa::X86Avx2 => of_x86(tensor.ty.name, false),
        Isa::X86Avx512 | Isa::X86Amx => of_x86(tensor.ty.name, true),
        Isa::ArmNeon => of_arm(tensor.ty.name),
    };
    fits && rows != 0 && tensor.shape[1].is_multiple_of(rows)
}

/// How many rows are interleaved on x86; 0 for none.
fn of_x86(ty: &str, avx512: bool) -> u64 {
    match ty {
        "q4_0" | "q4_K" | "iq4_nl" | "mxfp4" => 8,
        "q2_K" if avx512 => 8,
        _ => 0,
    }
}

/// How many rows are interleaved with NEON and dotprod or i8mm; 0 for none.
fn of_arm(ty: &str) -> u64 {
    match ty {
        "q4_0" | "iq4_nl" | "mxfp4" | "q8_0" | "q1_0" => 4,
        "q4_K" | "q5_K" | "q6_K" => 8,
        _ => 0,
    }
}

/// Whether the tile units take the weight: dense products only.
fn amx(tensor: &Tensor, op: Op) -> bool {
    let row = match tensor.ty.name {
        "q4_0" | "q4_1" | "q8_0" => 32,
        "q4_K" | "q5_K" | "q6_K" | "iq4_xs" => 256,
        "f16" => 16,
        _ => return false,
    };
    op == Op::MulMat && tensor.shape[1].is_multiple_of(32) && tensor.shape[0].is_multiple_of(row)
}

/// The bytes of a weight in a tile layout: sums beside the blocks (`ggml-cpu/amx/mmq.cpp` `get_row_size`).
pub(super) fn amx_bytes(tensor: &Tensor) -> Bytes {
    let blocks = tensor.elements() / tensor.ty.block_size;
    let extra = match tensor.ty.name {
        "q8_0" | "q4_K" | "q5_K" => 4,
        "iq4_xs" => 2,
        _ => 0,
    };
    Bytes(tensor.bytes.0 + blocks * extra)
}
