//! What Vulkan runs, and the order that it gives to the nodes of a part of the graph.
//!
//! Source: `ggml/src/ggml-vulkan/ggml-vulkan.cpp` `ggml_vk_graph_optimize` and `ggml_backend_vk_device_supports_op`,
//! `ggml-vulkan-types.h`, llama.cpp b11434 and b12032.

use std::collections::HashSet;
use std::mem::discriminant;
use std::ops::Range;

use super::fusion::{self, Keeps};
use super::graph::ops::can_repeat;
use super::graph::tensor::Op::{
    Add, AddId, Argsort, Clamp, Cont, Cpy, Div, GetRows, HcPost, Mul, MulMat, MulMatId, Permute, Reshape, RmsNorm,
    Rope, Scale, SetRows, SoftMax, Sqrt, SsmConv, SumRows, TopK, View,
};
use super::graph::tensor::{Graph, Id, Op, Tensor, Unary};

/// Nodes that it looks ahead for one that can run with the first (`NUM_TO_CHECK`).
const WINDOW: usize = 20;
/// Nodes within which the rest of a fused kernel is looked for.
const REACH: usize = 15;
/// Any element-wise function.
const UNARY: Op = Op::Unary(Unary::Other);

/// Routers, whose inputs stay until the kernel has run: with norm, with sigmoid and bias, with softplus and bias, early and late
/// softmax.
const ROUTERS: [&[Op]; 5] = [
    &[SoftMax, Reshape, Argsort, View, GetRows, Reshape, SumRows, Clamp, Div, Reshape],
    &[UNARY, Reshape, Add, Argsort, View, GetRows, Reshape, SumRows, Clamp, Div, Reshape],
    &[UNARY, Sqrt, Reshape, Add, Argsort, View, GetRows, Reshape, SumRows, Clamp, Div, Reshape],
    &[SoftMax, Reshape, Argsort, View, GetRows],
    &[Argsort, View, GetRows, Reshape, SoftMax, Reshape],
];
/// The choice of cells, of which every node is left in its place (`topk_qsa_pattern`).
const CHOICE: &[Op] = &[GetRows, Permute, Cont, Cpy, Reshape, Add, TopK];
/// Other kernels of several nodes. `snake_pattern` is left out: no language model has it.
const KERNELS: [&[Op]; 6] = [
    CHOICE,
    &[RmsNorm, Mul, Add, Mul],
    &[RmsNorm, Mul, Add],
    &[RmsNorm, Mul, Rope, View, SetRows],
    &[RmsNorm, View, SetRows],
    &[Rope, View, SetRows],
];
/// The weights of hyper-connections, whose inputs stay as well (`hc_post_gate_pattern`).
const GATE: &[Op] = &[Scale, UNARY, Scale, HcPost];
/// Neighbours of which the second may follow the first at once.
const PAIRS: [(Op, Op); 6] =
    [(MulMat, Add), (MulMatId, AddId), (MulMatId, Mul), (Add, Add), (SsmConv, Add), (SsmConv, UNARY)];
/// The same where only views or nodes with a place are between them.
const NEAR_PAIRS: [(Op, Op); 2] = [(RmsNorm, Mul), (UNARY, Mul)];

fn is(op: Op, wanted: Op) -> bool {
    discriminant(&op) == discriminant(&wanted)
}

/// Computes nothing.
fn is_empty(tensor: &Tensor) -> bool {
    tensor.op.is_view() || tensor.op == Op::None
}

/// Reorders the nodes of one part of the graph; with `keeps`, notes what has to stay alive.
pub fn optimize(graph: &mut Graph, part: Range<usize>, keeps: Option<&mut Keeps>) {
    let nodes = graph.nodes[part.clone()].to_vec();
    let used = vec![false; nodes.len()];
    let mut order = Order { graph, at: part.start, nodes, used, first: 0, done: HashSet::new(), new: Vec::new() };
    order.run(keeps);
    let new = order.new;
    graph.nodes[part].copy_from_slice(&new);
}

struct Order<'a> {
    graph: &'a Graph,
    /// Where the part begins in the graph.
    at: usize,
    nodes: Vec<Id>,
    /// Nodes that have their place.
    used: Vec<bool>,
    /// The first node without.
    first: usize,
    done: HashSet<Id>,
    new: Vec<Id>,
}

impl Order<'_> {
    fn run(&mut self, mut keeps: Option<&mut Keeps>) {
        while self.first < self.nodes.len() {
            let here = |pattern: &&&[Op]| self.matches(pattern, self.first);
            let router = ROUTERS.iter().find(here).map(|pattern| (*pattern, true));
            let kernel = || KERNELS.iter().find(here).map(|pattern| (*pattern, false));
            let gate = || self.matches(GATE, self.first).then_some((GATE, true));
            let set = if let Some((pattern, keeps_inputs)) = router.or_else(kernel).or_else(gate) {
                if let Some(keeps) = keeps.as_deref_mut().filter(|_| keeps_inputs) {
                    self.keep_inputs(pattern, keeps);
                }
                (self.first..self.first + pattern.len()).collect()
            } else {
                let mut set = self.nodes_with_the_first();
                self.add_views(&mut set);
                set
            };
            for i in set {
                self.new.push(self.nodes[i]);
                self.done.insert(self.nodes[i]);
                self.used[i] = true;
            }
            while self.used.get(self.first) == Some(&true) {
                self.first += 1;
            }
        }
    }

    fn node(&self, i: usize) -> &Tensor {
        self.graph.tensor(self.nodes[i])
    }

    fn op_is(&self, i: usize, op: Op) -> bool {
        is(self.node(i).op, op)
    }

    fn matches(&self, pattern: &[Op], start: usize) -> bool {
        let end = start + pattern.len();
        end <= self.nodes.len() && (start..end).zip(pattern).all(|(i, op)| self.op_is(i, *op) && !self.used[i])
    }

    /// What a kernel reads from outside stays until its last node, or a scale behind a router, has run.
    fn keep_inputs(&self, pattern: &[Op], keeps: &mut Keeps) {
        let mut last = self.first + pattern.len() - 1;
        if pattern != GATE && last + 1 < self.nodes.len() && self.op_is(last + 1, Scale) {
            last += 1;
        }
        let mut seen = HashSet::new();
        for i in self.first..self.first + pattern.len() {
            for source in self.node(i).sources() {
                if seen.insert(*source) {
                    keeps.add(*source, self.nodes[last]);
                }
            }
            seen.insert(self.nodes[i]);
        }
    }

    /// Whether `to` reads or overwrites what `from` writes or reads (`is_src_of`).
    fn depends(&self, to: usize, from: usize) -> bool {
        let base = |id: Id| self.graph.tensor(id).view_src.unwrap_or(id);
        let (to_id, from_id) = (self.nodes[to], self.nodes[from]);
        let (to, from) = (self.graph.tensor(to_id), self.graph.tensor(from_id));
        let compute = !is_empty(to) && !is_empty(from);
        to.sources().contains(&from_id)
            || base(to_id) == base(from_id)
            || compute && to.sources().iter().any(|source| base(*source) == base(from_id))
            || compute && from.sources().iter().any(|source| base(*source) == base(to_id))
    }

    fn follows_at_once(&self, from: usize, to: usize) -> bool {
        let is_pair = |(a, b): &(Op, Op)| self.op_is(from, *a) && self.op_is(to, *b);
        let is_free = || (from + 1..to).all(|i| self.used[i] || is_empty(self.node(i)));
        (to == from + 1 && PAIRS.iter().any(is_pair)) || (NEAR_PAIRS.iter().any(is_pair) && is_free())
    }

    fn starts_kernel(&self, i: usize) -> bool {
        let starts = |pattern: &&[Op]| self.matches(pattern, i);
        let in_choice = || (0..CHOICE.len()).any(|before| i >= before && self.matches(CHOICE, i - before));
        ROUTERS.iter().chain(&KERNELS).any(starts) || self.matches(GATE, i) || in_choice()
    }

    /// The first node, and of the next ones those that need nothing without a place.
    fn nodes_with_the_first(&mut self) -> Vec<usize> {
        let mut set = vec![self.first];
        for j in self.first + 1..self.nodes.len().min(self.first + WINDOW) {
            if self.used[j] || is_empty(self.node(j)) || self.starts_kernel(j) {
                continue;
            }
            let last = set[set.len() - 1];
            let waits = |c: usize| !self.used[c] && self.depends(j, c) && !(c == last && self.follows_at_once(c, j));
            if !(self.first..j).any(waits) {
                set.push(j);
                self.pull(j, &mut set);
            }
        }
        set
    }

    /// Whether an operand is there already: a weight, an input, or made by a node with a place.
    fn is_there(&self, id: Id) -> bool {
        self.graph.tensor(id).op == Op::None || self.done.contains(&id)
    }

    /// The first of the next nodes for which `wanted`.
    fn next(&self, after: usize, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        (after + 1..self.nodes.len().min(after + REACH)).find(|k| wanted(*k))
    }

    fn take(&mut self, i: usize, set: &mut Vec<usize>) {
        set.push(i);
        self.used[i] = true;
    }

    /// Takes along what would run in one kernel with node `j`.
    fn pull(&mut self, j: usize, set: &mut Vec<usize>) {
        let follows = |order: &Self, before: Op, op: Op| order.op_is(j, op) && order.op_is(j - 1, before);
        let reads_first = |order: &Self, k: usize| order.node(k).sources().first() == Some(&order.nodes[j]);
        let mut turned = j;
        if follows(self, RmsNorm, Mul) {
            let is_rope = |k: usize| {
                let plain = |id: &Id| self.graph.tensor(*id).op == Op::None;
                self.op_is(k, Rope) && reads_first(self, k) && self.node(k).sources()[1..].iter().all(plain)
            };
            if let Some(k) = self.next(j, is_rope) {
                turned = k;
                self.take(k, set);
            }
        }
        if self.op_is(turned, Rope) || self.op_is(turned, RmsNorm) {
            self.pull_stored(turned, set);
        }
        let second_is_there =
            |order: &Self, k: usize| order.node(k).sources().get(1).is_some_and(|id| order.is_there(*id));
        let pulls = [(MulMatId, AddId, Mul, true), (MulMat, Add, Add, true), (SsmConv, Add, UNARY, false)];
        for (before, op, then, has_operand) in pulls {
            if follows(self, before, op) {
                let wanted = |k: usize| {
                    self.op_is(k, then) && reads_first(self, k) && (!has_operand || second_is_there(self, k))
                };
                if let Some(k) = self.next(j, wanted) {
                    self.take(k, set);
                }
            }
        }
        if self.op_is(j, UNARY)
            && let Some(k) = self.next(j, |k| self.op_is(k, Mul) && self.fuses_product(j, k))
        {
            self.take(k, set);
        }
    }

    /// The view and the write of rows behind a rope or a norm, where nothing else reads these.
    fn pull_stored(&mut self, at: usize, set: &mut Vec<usize>) {
        let reads = |k: usize, op: Op, i: usize| {
            !self.used[k] && self.op_is(k, op) && self.node(k).sources().first() == Some(&self.nodes[i])
        };
        let Some(view) = self.next(at, |k| reads(k, View, at)) else { return };
        let Some(store) = self.next(at, |k| k > view && reads(k, SetRows, view)) else { return };
        let nodes = [at, view, store].map(|i| self.at + i);
        let blocks = |c: usize| !self.used[c] && c != view && !is_empty(self.node(c)) && self.depends(store, c);
        if fusion::can_fuse(self.graph, &nodes, &nodes[2..]) && !(at + 1..store).any(blocks) {
            self.take(view, set);
            self.take(store, set);
        }
    }

    /// `ggml_vk_can_fuse_unary_mul`, with an operand that is there.
    fn fuses_product(&self, unary: usize, product: usize) -> bool {
        let (id, unary, product) = (self.nodes[unary], self.node(unary), self.node(product));
        let &[a, b] = product.sources() else { return false };
        let other = if a == id { b } else { a };
        let has_kernel = matches!(unary.op, Op::Unary(Unary::Gelu | Unary::Sigmoid | Unary::Silu | Unary::Softplus));
        let (there, other) = (self.is_there(other), self.graph.tensor(other));
        let source = self.graph.tensor(unary.sources()[0]);
        let repeats =
            if a == id { can_repeat(other.ne, unary.ne) } else { can_repeat(unary.ne, self.graph.tensor(a).ne) };
        (a == id || b == id)
            && there
            && has_kernel
            && is_float(unary)
            && unary.ty == product.ty
            && other.ty == unary.ty
            && other.is_contiguous_from(1)
            && source.is_contiguous_from(1)
            && repeats
    }

    /// Views of what now has a place; none behind an addition, which may run with the next node.
    fn add_views(&self, set: &mut Vec<usize>) {
        if self.op_is(set[set.len() - 1], Add) {
            return;
        }
        for j in self.first + 1..self.nodes.len().min(self.first + WINDOW) {
            let waits = |c: usize| !self.used[c] && self.depends(j, c) && !set.contains(&c);
            if !self.used[j] && is_empty(self.node(j)) && !(self.first..j).any(waits) {
                set.push(j);
            }
        }
    }
}

/// The longest tensor that a shader reads (`maxStorageBufferRange` of AMD's, NVIDIA's and most of Intel's drivers).
pub const LONGEST: u64 = u32::MAX as u64;

fn is_float(tensor: &Tensor) -> bool {
    matches!(tensor.ty.name, "f32" | "f16")
}

/// Whether it can run an operation. Of what a device may lack, all is assumed to be there. `repeats`: products repeat weights along the
/// last dimension.
pub fn supports(tensors: &[Tensor], tensor: &Tensor, repeats: bool) -> bool {
    let src = |i: usize| tensor.sources().get(i).map(|id| &tensors[id.index()]);
    let is_long = |t: &Tensor| t.bytes() > LONGEST;
    if is_long(tensor) || tensor.sources().iter().any(|id| is_long(&tensors[id.index()])) {
        return false;
    }
    let Some(a) = src(0) else { return true };
    let is_f32 = |t: &Tensor| t.ty.name == "f32";
    let all_f32 = || is_f32(tensor) && tensor.sources().iter().all(|id| is_f32(&tensors[id.index()]));
    match tensor.op {
        Op::Unary(_) | Op::Sqr | Sqrt | Clamp => is_float(a) && tensor.ty == a.ty,
        Op::Glu(_) => is_float(a) && tensor.ty == a.ty && src(1).is_none_or(|b| b.ty == a.ty),
        MulMatId if tensor.param != 0 => false,
        MulMat => src(1).is_some_and(|b| (repeats || a.ne[3] == b.ne[3]) && multiplies(a, b)),
        MulMatId => src(1).zip(src(2)).is_some_and(|(b, ids)| ids.ne[3] == b.ne[3] && multiplies(a, b)),
        Op::FlashAttnExt => src(1).zip(src(2)).is_some_and(|(k, v)| attends(a, k, v)),
        GetRows => !matches!(a.ty.name, "q8_1" | "q8_K" | "i64" | "f64" | "i16" | "i8"),
        SetRows => is_float(a) && stores(tensor),
        Cpy | Cont | Op::Dup => copies(a, tensor),
        Op::Repeat => {
            let size = |t: &Tensor| t.ty.block_bytes;
            size(tensor) == size(a) && matches!(size(a), 2 | 4)
        }
        Rope => tensor.has_contiguous_rows() && a.has_contiguous_rows(),
        Op::Norm | AddId | Op::Pad | Op::Roll | SsmConv => is_f32(a) && is_f32(tensor),
        Add | Op::Sub | Mul | Div => is_float(a) && src(1).is_some_and(is_float) && is_float(tensor),
        Argsort | TopK => tensor.is_contiguous() && a.is_contiguous(),
        Op::Concat => src(1).is_some_and(|b| {
            let rows = [a, b, tensor].iter().all(|t| t.has_contiguous_rows());
            a.ty == b.ty && a.ty == tensor.ty && (!a.ty.is_quantized || rows)
        }),
        Scale | SoftMax | Op::Pool => a.is_contiguous() && is_f32(a),
        SumRows | Op::CumSum => is_f32(a) && a.has_contiguous_rows(),
        Op::HcPre => all_f32() && a.ne[1] == 4,
        Op::HcComb => all_f32(),
        HcPost => all_f32() && src(1).is_some_and(|streams| streams.ne[1] == 4),
        Op::LightningIndexer => src(1).is_some_and(|k| {
            let types = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"];
            types.contains(&k.ty.name) && a.ne[0] == 128
        }),
        Op::GatedDeltaNet => all_f32() && src(2).is_some_and(|v| matches!(v.ne[0], 16 | 32 | 64 | 128)),
        Op::SsmScan => {
            let is_mamba2 = src(3).is_some_and(|a| a.nb[1] == 4);
            is_mamba2 && is_f32(a) && is_f32(tensor) && matches!(a.ne[0], 128 | 256) && a.ne[1].is_multiple_of(16)
        }
        Op::Im2Col => src(1).is_some_and(|b| b.is_contiguous() && is_f32(b)) && is_float(tensor),
        Op::Conv2d => [Some(a), src(1), Some(tensor)].into_iter().flatten().all(Tensor::is_contiguous),
        Op::TopKMask => false,
        _ => true,
    }
}

fn multiplies(a: &Tensor, b: &Tensor) -> bool {
    // `ggml_vk_dim01_contiguous`
    let is_packed = |t: &Tensor| {
        t.nb[0] == t.ty.block_bytes
            && t.nb[1] == t.nb[0] * t.ne[0] / t.ty.block_size
            && (t.ne[3] == 1 || t.nb[3] == t.nb[2] * t.ne[2])
    };
    let (is_known, half) = (!matches!(a.ty.name, "q8_1" | "q8_K" | "i32" | "i64" | "f64" | "i16" | "i8"), "bf16");
    is_known
        && (is_packed(a) || is_float(a) || a.ty.name == half)
        && (is_packed(b) || is_float(b))
        && !(a.ty.name == half && b.ty.name == "f16")
        && (b.ty.name != half || a.ty.name == half)
}

fn attends(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let types = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"];
    let is_half = |t: &Tensor| t.ty.name == "bf16";
    q.ty.name == "f32"
        && k.ne[0].is_multiple_of(8)
        && v.ne[0].is_multiple_of(8)
        && [k, v].iter().all(|t| types.contains(&t.ty.name))
        && is_half(k) == is_half(v)
}

/// Whether F32 can be written as this type.
fn stores(to: &Tensor) -> bool {
    let types = ["f32", "f16", "bf16", "q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"];
    types.contains(&to.ty.name)
}

fn copies(a: &Tensor, to: &Tensor) -> bool {
    let same = || !a.ty.is_quantized || a.is_contiguous() && to.is_contiguous();
    match (a.ty.name, to.ty.name) {
        ("f32", _) if stores(to) => true,
        (_, "f32") if stores(a) => true,
        ("f16", "f16") | ("f32", "i32") | ("i32", "f32") => true,
        (from, into) => from == into && same() && a.ty.block_bytes.is_multiple_of(2),
    }
}
