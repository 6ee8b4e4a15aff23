//! What a backend can run, what it asks to run, and how much room its results take.
//!
//! CUDA's rules are mirrored (ROCm shares its source), and Vulkan's (`vulkan`). The others are assumed to run everything, in plain sizes.
//! Source: `ggml/src/ggml-cuda/ggml-cuda.cu` and `fattn.cu`, `ggml/src/ggml-cpu/ggml-cpu.cpp`, llama.cpp b11434.

use std::ops::Range;

use super::fusion::{self, Keeps};
use super::graph::tensor::{Glu, Graph, Held, Op, Tensor, Unary};
use super::vulkan;
use crate::gguf::GgmlType;
use crate::machine::Backend;
use crate::placement::Buffer;

/// Cells that flash attention takes at once (`FATTN_KQ_STRIDE`).
const FATTN_KQ_STRIDE: u64 = 256;

/// A backend of the scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What drives it; [`Backend::Cpu`] for the host.
    pub backend: Backend,
    /// Which of `Machine::devices`; `None` for the host.
    pub device: Option<u16>,
    /// The alignment of its compute buffer.
    pub alignment: u64,
    /// The largest single buffer that it computes in.
    pub max_chunk: u64,
    /// Whether its products repeat weights along the last dimension.
    pub repeats: bool,
    /// Whether it stands for all devices of `-sm tensor` (`ggml/src/ggml-backend-meta.cpp`): it neither fuses nor asks for
    /// operations on weights of the host.
    pub is_meta: bool,
}

impl Target {
    /// What sizes in its compute buffer are padded to.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    fn is_cuda(&self) -> bool {
        self.backend.is_cuda_source()
    }

    /// Puts the nodes of one part of the graph into its own order, and notes what it keeps alive for fused kernels
    /// (`graph_optimize`). Before `keeps` was there, CUDA had no order of its own.
    pub fn optimize(&self, graph: &mut Graph, part: Range<usize>, keeps: Option<&mut Keeps>) {
        match (self.backend, keeps) {
            _ if self.is_meta => {}
            (Backend::Vulkan, keeps) => vulkan::optimize(graph, part, keeps),
            (backend, Some(keeps)) if backend.is_cuda_source() => {
                fusion::optimize(graph, part, keeps, backend == Backend::Cuda);
            }
            _ => {}
        }
    }

    /// Whether it can use tensors of a buffer.
    pub fn supports_buffer(&self, buffer: Buffer) -> bool {
        match (self.device, buffer) {
            (Some(own), Buffer::Device(device)) => own == device,
            (Some(_), _) | (None, Buffer::Device(_)) => false,
            (None, _) => true,
        }
    }

    /// Whether it asks for an operation of at least so many `rows` although the weight is in host memory (`offload_op`).
    pub fn wants_op(&self, tensor: &Tensor, rows: u32) -> bool {
        if self.device.is_none() || self.backend == Backend::Rpc || self.is_meta {
            return false;
        }
        let batch = match tensor.op {
            Op::GetRows => 0,
            Op::MulMat => tensor.ne[1],
            Op::MulMatId | Op::ExpertHidden | Op::Rope => tensor.ne[2],
            _ if self.backend == Backend::Metal => 0,
            _ => tensor.rows(),
        };
        batch >= u64::from(rows)
    }

    /// Whether it can run an operation.
    pub fn supports_op(&self, tensors: &[Tensor], tensor: &Tensor) -> bool {
        match self.device {
            Some(device) if self.is_cuda() => {
                let elsewhere = |buffer| matches!(buffer, Buffer::Device(other) if other != device);
                let reads_elsewhere = tensor.sources().iter().any(|s| match tensors[s.index()].held {
                    Held::Weight(buffer) | Held::Cache(buffer) => elsewhere(buffer),
                    Held::Not => false,
                });
                !reads_elsewhere && cuda_supports(tensors, tensor)
            }
            Some(_) if self.backend == Backend::Vulkan => vulkan::supports(tensors, tensor, self.repeats),
            // SYCL, CANN and OpenCL have no such kernel (b12032).
            Some(_) if tensor.op == Op::TopKMask => matches!(self.backend, Backend::Metal | Backend::Rpc),
            _ => true,
        }
    }

    /// The bytes that a tensor takes in its compute buffer.
    pub fn alloc_size(&self, tensors: &[Tensor], tensor: &Tensor, attention_copies: bool) -> u64 {
        let mut bytes = tensor.bytes();
        if self.is_cuda() && self.device.is_some() {
            if tensor.op == Op::FlashAttnExt && attention_copies {
                bytes = flash_attn_bytes(tensors, tensor);
            }
            return self.backend.alloc_size(tensor.ty, tensor.ne, crate::bytes::Bytes(bytes)).0;
        }
        bytes
    }
}

fn is(ty: GgmlType, names: &[&str]) -> bool {
    names.contains(&ty.name)
}

/// `ggml_backend_cuda_device_supports_op`.
fn cuda_supports(tensors: &[Tensor], tensor: &Tensor) -> bool {
    let src = |i: usize| tensor.sources().get(i).map(|s| &tensors[s.index()]);
    let Some(a) = src(0) else { return true };
    match tensor.op {
        Op::Unary(Unary::Other) | Op::Pool | Op::Plain | Op::ExpertHidden => true,
        Op::Unary(_) => a.is_contiguous(),
        Op::Glu(Glu::SwigluOai | Glu::SwigluClamp) if a.ty.name == "bf16" => false,
        Op::Glu(_) => a.is_contiguous_from(1),
        Op::MulMatId if tensor.param != 0 => false,
        Op::MulMat | Op::MulMatId => cuda_mul_mat(a, src(1)),
        Op::GetRows => match a.ty.name {
            "iq4_nl" | "mxfp4" => a.ne[0].is_multiple_of(256),
            "nvfp4" | "q8_K" | "tq1_0" | "tq2_0" | "q8_1" => false,
            _ => true,
        },
        Op::SetRows => match a.ty.name {
            "f32" => is(tensor.ty, &["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"]),
            "f16" => tensor.ty.name == "f16",
            _ => false,
        },
        Op::Cpy => cuda_copies(a, tensor),
        Op::Repeat => is(a.ty, &["f32", "f16"]),
        Op::Concat => src(1).is_some_and(|b| a.ty == b.ty) && a.ty == tensor.ty,
        Op::Norm | Op::RmsNorm | Op::SumRows => a.has_contiguous_rows(),
        Op::Scale => is(a.ty, &["f32", "bf16"]) && tensor.ty == a.ty,
        Op::Add | Op::Sub | Op::Mul | Op::Div => {
            let plain = |t: &Tensor| is(t.ty, &["f32", "f16"]);
            plain(a) && src(1).is_some_and(plain) && plain(tensor)
        }
        Op::Im2Col | Op::Conv2d => a.is_contiguous() && src(1).is_some_and(Tensor::is_contiguous),
        Op::Roll => a.ty.name == "f32" && a.is_contiguous(),
        Op::SsmScan => cuda_scans(a, src(3), src(4), tensor.param),
        Op::SsmConv => a.ne[1].is_multiple_of(128),
        Op::Rope => a.nb[0] == a.ty.block_bytes && a.is_contiguous_from(2),
        Op::FlashAttnExt => flash_attn_kernel(tensors, tensor) != Kernel::None,
        Op::LightningIndexer => cuda_indexes(a, src(1)),
        _ => true,
    }
}

fn cuda_mul_mat(a: &Tensor, b: Option<&Tensor>) -> bool {
    let is_packed = |t: &Tensor| t.nb[0] == t.ty.block_bytes;
    let Some(b) = b else { return false };
    is_packed(a)
        && is_packed(b)
        && (b.ty.name != "f16" || a.ty.name == "f16")
        && !is(a.ty, &["tq1_0", "tq2_0", "q8_1", "i32", "i64", "f64", "i8", "i16"])
}

fn cuda_copies(a: &Tensor, to: &Tensor) -> bool {
    let floats = ["f32", "f16", "bf16"];
    let quants = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"];
    let pair = (a.ty.name, to.ty.name);
    (is(a.ty, &floats) && is(to.ty, &floats))
        || (pair.0 == "f32" && (is(to.ty, &quants) || is(to.ty, &["iq4_nl", "i32"])))
        || (pair.1 == "f32" && (is(a.ty, &quants) || pair.0 == "i32"))
        || pair == ("i32", "i32")
        || (a.ty == to.ty && a.is_contiguous() && to.is_contiguous())
}

fn cuda_scans(state: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, snapshots: u32) -> bool {
    if a.is_some_and(|a| a.ne[0] == 1) {
        return matches!(state.ne[0], 96 | 128 | 256) && state.ne[1].is_multiple_of(16);
    }
    let one_group = b.is_some_and(|b| b.ne[1] == 1);
    snapshots <= 1 && state.ne[0] == 16 && state.ne[1] == 1 && state.ne[2].is_multiple_of(128) && one_group
}

fn cuda_indexes(q: &Tensor, k: Option<&Tensor>) -> bool {
    let is_aligned = |t: &Tensor| t.ty.is_quantized || t.nb[1..].iter().all(|nb| nb.is_multiple_of(16));
    let types = ["f32", "bf16", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"];
    let k_fits = k.is_some_and(|k| is_aligned(k) && is(k.ty, &types));
    q.ne[0] == 128 && matches!(q.ne[1], 64 | 32 | 4) && is_aligned(q) && k_fits
}

/// Which kernel would run flash attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    None,
    /// One for few tokens, which reads the cache in its own type.
    Vector,
    /// One for many tokens, which wants the cache in F16.
    Matrix,
}

/// `ggml_cuda_get_best_fattn_kernel` for cards with Ada's or later tensor cores; earlier ones differ for a few tokens only.
fn flash_attn_kernel(tensors: &[Tensor], tensor: &Tensor) -> Kernel {
    let &[q, k, v, ref rest @ ..] = tensor.sources() else { return Kernel::None };
    let [q, k, v] = [q, k, v].map(|id| &tensors[id.index()]);
    let mask = rest.first().map(|id| &tensors[id.index()]);
    let ratio = q.ne[2] / k.ne[2].max(1);
    let is_padded = k.ne[1].is_multiple_of(FATTN_KQ_STRIDE);
    let is_aligned = |t: &&Tensor| t.ty.is_quantized || t.nb[1..].iter().all(|nb| nb.is_multiple_of(16));
    let has_alibi = tensor.param != 0;
    let grouped =
        ratio >= 2 && mask.is_some() && !has_alibi && is_padded && [q, k, v].iter().chain(mask.iter()).all(is_aligned);
    let (d_k, d_v) = (k.ne[0], v.ne[0]);
    let fits = match d_k {
        40 | 64 | 72 | 80 | 96 | 112 | 128 | 256 => d_v == d_k,
        192 => d_v == 128 && grouped && ratio.is_multiple_of(8),
        320 => d_v == 256 && grouped && ratio.is_multiple_of(32),
        512 => d_v == d_k && grouped,
        576 => d_v == 512 && grouped,
        _ => false,
    };
    let types = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"];
    if !fits || !is(k.ty, &types) || !is(v.ty, &types) || mask.is_some_and(|m| m.ne[2] != 1) {
        return Kernel::None;
    }
    let can_vector = d_k <= 256 && d_k.is_multiple_of(64) && d_k != 192 && is_padded;
    if !can_vector || d_k == 40 || d_k == 72 {
        return Kernel::Matrix;
    }
    let many_cells = ratio > 4 && (d_k >= 256 || k.ne[1] >= 8192);
    let is_plain = !k.ty.is_quantized && !v.ty.is_quantized;
    let vector = if is_plain { q.ne[1] == 1 && q.ne[3] == 1 && !many_cells } else { q.ne[1] <= 2 };
    if vector || (!grouped && q.ne[1] == 1) { Kernel::Vector } else { Kernel::Matrix }
}

/// The result, and behind it the F16 copies of a cache in another type (`ggml_cuda_flash_attn_ext_get_alloc_size`).
fn flash_attn_bytes(tensors: &[Tensor], tensor: &Tensor) -> u64 {
    let mut end = tensor.bytes();
    let &[_, k_id, v_id, ..] = tensor.sources() else { return end };
    let (k, v) = (&tensors[k_id.index()], &tensors[v_id.index()]);
    let kernel = flash_attn_kernel(tensors, tensor);
    let needs_copy = |t: &Tensor| match kernel {
        Kernel::None => false,
        Kernel::Vector => t.ty.name == "f32",
        Kernel::Matrix => t.ty.name != "f16",
    };
    if needs_copy(k) {
        end = end.next_multiple_of(128) + 2 * k.elements();
    }
    let shows_k =
        v.view_src.is_some_and(|root| root == k_id || (k.view_src == Some(root) && k.view_offs == v.view_offs));
    if needs_copy(v) && !shows_k {
        end = end.next_multiple_of(128) + 2 * v.elements();
    }
    end
}

#[cfg(test)]
mod tests {
    use super::super::graph::tensor::{Draft, Graph, Id};
    use super::*;

    const CUDA: Target = Target {
        backend: Backend::Cuda,
        device: Some(0),
        alignment: 128,
        max_chunk: u64::MAX,
        repeats: true,
        is_meta: false,
    };

    /// Attention of 512 tokens with 32 heads to a cache of 1024 cells with 4, both of this type.
    fn attention(head: u64, ty: &str) -> (Graph, Id) {
        let draft = Draft::default();
        let cache = GgmlType::from_name(ty).unwrap();
        let tensor = |ty, dims: [u64; 3]| draft.input(ty, &dims);
        let q = tensor(crate::gguf::ggml_type::f32(), [head, 512, 32]);
        let [k, v] = [0; 2].map(|_| tensor(cache, [head, 1024, 4]));
        let mask = tensor(crate::gguf::ggml_type::f16(), [1024, 512, 1]);
        let rows = q.flash_attn_ext(k, v, Some(mask)).id;
        (draft.0.into_inner(), rows)
    }

    #[test]
    fn attention_to_a_quantized_cache_needs_its_copies_in_f16() {
        let bytes = |ty| {
            let (graph, rows) = attention(128, ty);
            CUDA.alloc_size(&graph.tensors, graph.tensor(rows), true)
        };
        let (plain, copied) = (128 * 512 * 32 * 4, 2 * 128 * 1024 * 4 * 2);
        assert_eq!((bytes("f16"), bytes("q8_0"), bytes("bf16")), (plain, plain + copied, plain + copied));
    }

    #[test]
    fn heads_of_a_length_without_kernel_are_not_supported() {
        let supports = |head, ty| {
            let (graph, rows) = attention(head, ty);
            CUDA.supports_op(&graph.tensors, graph.tensor(rows))
        };
        assert!(supports(128, "f16") && supports(128, "q5_1"));
        assert!(!supports(100, "f16") && !supports(128, "iq4_nl"));
    }

    #[test]
    fn only_large_batches_are_offloaded() {
        let draft = Draft::default();
        let weight = draft.input(crate::gguf::ggml_type::f16(), &[64, 64]);
        let [few, many] = [31, 32].map(|n| weight.mm(draft.input(crate::gguf::ggml_type::f32(), &[64, n])).tensor());
        assert!(!CUDA.wants_op(&few, 32) && CUDA.wants_op(&many, 32) && CUDA.wants_op(&few, 31));
        assert!(!Target { backend: Backend::Rpc, ..CUDA }.wants_op(&many, 32));
    }
}
