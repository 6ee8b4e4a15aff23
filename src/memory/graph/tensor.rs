//! Tensors of a compute graph and the order in which they run: what of ggml decides memory, without data.
//!
//! Source: `ggml/src/ggml.c` (`ggml_nbytes`, `ggml_new_tensor_impl`, `ggml_visit_parents_graph`), llama.cpp b11434.

use std::cell::RefCell;

use crate::gguf::GgmlType;
use crate::gguf::ggml_type::f32;
use crate::placement::Buffer;

/// A tensor of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u32);

impl Id {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// ggml's operations, as far as models use them. What only changes values is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    None,
    Dup,
    Add,
    AddId,
    Sub,
    Mul,
    Div,
    Sqr,
    Sqrt,
    SumRows,
    CumSum,
    Repeat,
    Concat,
    Norm,
    RmsNorm,
    MulMat,
    MulMatId,
    Scale,
    Cpy,
    Cont,
    Reshape,
    View,
    Permute,
    Transpose,
    GetRows,
    SetRows,
    Fill,
    SoftMax,
    HcPre,
    Rope,
    Clamp,
    Pad,
    Arange,
    Argsort,
    TopK,
    TopKMask,
    Pool,
    Im2Col,
    Conv2d,
    Roll,
    /// ik_llama.cpp's experts between up and down, in one operation (`GGML_OP_MOE_FUSED_UP_GATE`): up, gate, rows, choice.
    ExpertHidden,
    /// Every backend runs it, and no rule tells it from its like: `UPSCALE`, `PAD_REFLECT_1D`, `SIN`, `COS`, `ARGMAX`, `CONV_2D_DW`.
    Plain,
    FlashAttnExt,
    SsmConv,
    SsmScan,
    GatedDeltaNet,
    LightningIndexer,
    HcComb,
    HcPost,
    Unary(Unary),
    Glu(Glu),
}

/// Element-wise functions, as far as backends tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    Silu,
    Gelu,
    Relu,
    Sigmoid,
    Softplus,
    Tanh,
    Exp,
    Other,
}

/// Gated functions, as far as fusion tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glu {
    Reglu,
    Geglu,
    Swiglu,
    SwigluOai,
    SwigluClamp,
}

impl Op {
    /// Only another look at the same bytes (`ggml_is_view_op`).
    pub fn is_view(self) -> bool {
        matches!(self, Self::View | Self::Reshape | Self::Permute | Self::Transpose)
    }

    /// May take the place of a source (`ggml_op_can_inplace`).
    pub fn can_inplace(self) -> bool {
        matches!(
            self,
            Self::Fill
                | Self::Scale
                | Self::Add
                | Self::AddId
                | Self::Sub
                | Self::Mul
                | Self::Div
                | Self::Sqr
                | Self::Sqrt
                | Self::Unary(_)
                | Self::Rope
                | Self::RmsNorm
                | Self::Clamp
                | Self::SoftMax
        )
    }
}

/// What holds a tensor's bytes before the graph is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Not,
    Weight(Buffer),
    Cache(Buffer),
}

/// The most sources a tensor has (`GGML_MAX_SRC`).
pub const MAX_SRC: usize = 10;

/// The most bytes of a graph's tensors together: 64 PiB, so that no sum over them and their copies passes 64 bits.
const MAX_BYTES: u64 = 1 << 56;
/// The fault of a graph beyond these.
pub const TOO_LARGE: &str = "a graph";
/// The most tensors of a graph: ten times those of the largest known, so that no header makes one without end.
const MAX_TENSORS: usize = 1 << 20;

/// One tensor: shape, strides and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub op: Op,
    pub ty: GgmlType,
    pub ne: [u64; 4],
    /// Bytes between neighbours, by dimension.
    pub nb: [u64; 4],
    pub(super) src: [Id; MAX_SRC],
    pub(super) n_src: u8,
    /// The tensor whose bytes it shows; never itself a view.
    pub view_src: Option<Id>,
    /// From the start of `view_src`, in bytes.
    pub view_offs: u64,
    /// Set from outside before the graph runs.
    pub is_input: bool,
    /// Read from outside after the graph has run: never freed.
    pub is_output: bool,
    pub held: Held,
    /// A number that a rule needs: the prefix length of a scan, the dimension of a concatenation.
    pub param: u32,
}

/// Bytes of `n` elements, as if they were whole blocks (`ggml_row_size`).
pub fn row_size(ty: GgmlType, n: u64) -> u64 {
    n.saturating_mul(ty.block_bytes) / ty.block_size
}

impl Tensor {
    /// A contiguous tensor that nothing makes.
    pub fn new(ty: GgmlType, ne: [u64; 4]) -> Self {
        let row = row_size(ty, ne[0]);
        // Strides past 64 bits saturate: a graph takes no tensor near that size (`MAX_BYTES`).
        let plane = row.saturating_mul(ne[1]);
        let nb = [ty.block_bytes, row, plane, plane.saturating_mul(ne[2])];
        Self {
            op: Op::None,
            ty,
            ne,
            nb,
            src: [Id(0); MAX_SRC],
            n_src: 0,
            view_src: None,
            view_offs: 0,
            is_input: false,
            is_output: false,
            held: Held::Not,
            param: 0,
        }
    }

    /// The bytes from its first to its last element (`ggml_nbytes`).
    pub fn bytes(&self) -> u64 {
        if self.ne.contains(&0) {
            return 0;
        }
        let rest: u64 = (1..4).map(|i| (self.ne[i] - 1) * self.nb[i]).sum();
        if self.ty.block_size == 1 {
            self.ty.block_bytes + (self.ne[0] - 1) * self.nb[0] + rest
        } else {
            self.ne[0] * self.nb[0] / self.ty.block_size + rest
        }
    }

    /// Whether its elements and its bytes, from the first to the last, are within [`MAX_BYTES`].
    fn is_within_limits(&self) -> bool {
        // At least the bytes: a block counts as if it held one element.
        let span = |i: usize| self.ne[i].max(1).checked_mul(self.nb[i]);
        let bytes = (0..4).try_fold(0, |sum: u64, i| sum.checked_add(span(i)?));
        let elements = self.ne.iter().try_fold(1, |n: u64, dim| n.checked_mul((*dim).max(1)));
        [bytes, elements, Some(self.view_offs)].into_iter().all(|n| n.is_some_and(|n| n <= MAX_BYTES))
    }

    pub fn elements(&self) -> u64 {
        self.ne.iter().product()
    }

    /// Rows in all (`ggml_nrows`).
    pub fn rows(&self) -> u64 {
        self.ne[1] * self.ne[2] * self.ne[3]
    }

    pub fn sources(&self) -> &[Id] {
        &self.src[..usize::from(self.n_src)]
    }

    pub fn sources_mut(&mut self) -> &mut [Id] {
        &mut self.src[..usize::from(self.n_src)]
    }

    /// Adds sources in this order.
    pub fn push_sources(&mut self, ids: impl IntoIterator<Item = Id>) {
        for id in ids {
            self.src[usize::from(self.n_src)] = id;
            self.n_src += 1;
        }
    }

    /// Contiguous from dimension `n` on, the lower ones packed in any way (`ggml_is_contiguous_n`).
    pub fn is_contiguous_from(&self, n: usize) -> bool {
        if self.ne[0] != self.ty.block_size && self.nb[0] != self.ty.block_bytes {
            return false;
        }
        let mut next = self.ty.block_bytes * self.ne[0] / self.ty.block_size;
        for i in 1..4 {
            if i <= n {
                next = self.ne[i] * self.nb[i];
                continue;
            }
            if self.ne[i] != 1 && self.nb[i] != next {
                return false;
            }
            next *= self.ne[i];
        }
        true
    }

    /// Its first two dimensions are exchanged (`ggml_is_transposed`).
    pub fn is_transposed(&self) -> bool {
        self.nb[0] > self.nb[1]
    }

    /// Without gaps (`ggml_is_contiguous`).
    pub fn is_contiguous(&self) -> bool {
        self.is_contiguous_from(0)
    }

    /// Its rows are without gaps (`ggml_is_contiguous_rows`).
    pub fn has_contiguous_rows(&self) -> bool {
        self.ne[0] == self.ty.block_size || self.nb[0] == self.ty.block_bytes
    }

    /// Same type, shape and strides (`ggml_are_same_layout`).
    pub fn same_layout(&self, other: &Self) -> bool {
        self.ty == other.ty && self.ne == other.ne && self.nb == other.nb
    }
}

/// An operation that does not take its sources: llama.cpp stops there at an assertion of ggml.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub what: &'static str,
    pub sources: Vec<Id>,
}

/// Tensors, and those of them that run, in order.
///
/// The first operation that ggml would refuse is kept as [`Graph::fault`]; from there on nothing is added, so that what builds
/// a graph reads like the formula that it is.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub tensors: Vec<Tensor>,
    /// Those that an operation makes, in the order they run.
    pub nodes: Vec<Id>,
    /// Those that nothing makes, in the order they were met.
    pub leafs: Vec<Id>,
    /// How many sources of visited tensors each tensor is (`use_counts`).
    pub uses: Vec<u32>,
    visited: Vec<bool>,
    /// Tensors bound to a target: its position among the launch's devices, the host after them.
    pub pinned: Vec<(Id, usize)>,
    /// The target of the layer that a node was made for, for nodes that are probed.
    pub layer_targets: std::collections::HashMap<Id, usize>,
    pub fault: Option<Fault>,
    /// Whether a norm and its weight are one operation.
    pub fuses_norms: bool,
    /// What its tensors hold together, in bytes.
    bytes: u64,
}

impl Graph {
    pub fn tensor(&self, id: Id) -> &Tensor {
        &self.tensors[id.index()]
    }

    /// Adds a tensor that does not run yet. After a fault nothing is added.
    pub fn push(&mut self, tensor: Tensor) -> Id {
        if self.fault.is_some() {
            return self.last();
        }
        if self.tensors.len() >= MAX_TENSORS || !tensor.is_within_limits() {
            return self.refuse(TOO_LARGE, tensor.sources());
        }
        if tensor.view_src.is_none() {
            self.bytes += tensor.bytes();
        }
        if self.bytes > MAX_BYTES { self.refuse(TOO_LARGE, tensor.sources()) } else { self.append(tensor) }
    }

    /// Adds a copy of a tensor of a finished graph.
    pub fn append(&mut self, tensor: Tensor) -> Id {
        self.tensors.push(tensor);
        self.last()
    }

    /// Keeps the first fault. The number that is added then stands for every later result.
    pub fn refuse(&mut self, what: &'static str, sources: &[Id]) -> Id {
        if self.fault.is_none() {
            self.fault = Some(Fault { what, sources: sources.to_vec() });
            self.append(Tensor::new(f32(), [1; 4]));
        }
        self.last()
    }

    fn last(&self) -> Id {
        Id(u32::try_from(self.tensors.len() - 1).expect("fewer than 2^32 tensors"))
    }

    /// What holds a tensor, or the tensor it is a view of.
    pub fn held(&self, id: Id) -> Held {
        let tensor = self.tensor(id);
        tensor.view_src.map_or(tensor.held, |root| self.tensor(root).held)
    }

    /// Makes `id` run, after everything it needs that does not run yet (`ggml_build_forward_expand`): depth first, sources
    /// from left to right.
    pub fn expand(&mut self, id: Id) {
        self.visited.resize(self.tensors.len(), false);
        self.uses.resize(self.tensors.len(), 0);
        // Tensors that were met, and how many of their sources have been seen to.
        let mut open = vec![(id, 0)];
        while let Some((id, done)) = open.pop() {
            if done == 0 && std::mem::replace(&mut self.visited[id.index()], true) {
                continue;
            }
            let tensor = &self.tensors[id.index()];
            match tensor.sources().get(done) {
                Some(source) => {
                    self.uses[source.index()] += 1;
                    open.extend([(id, done + 1), (*source, 0)]);
                }
                None if tensor.op == Op::None => self.leafs.push(id),
                None => self.nodes.push(id),
            }
        }
    }
}

/// A graph in the making, to which its nodes add.
#[derive(Debug, Default)]
pub struct Draft(pub RefCell<Graph>);

/// A tensor of a draft. Its methods and operators are in `ops`.
#[derive(Debug, Clone, Copy)]
pub struct Node<'g> {
    pub draft: &'g Draft,
    pub id: Id,
}

impl Draft {
    pub fn node(&self, id: Id) -> Node<'_> {
        Node { draft: self, id }
    }

    pub fn push(&self, tensor: Tensor) -> Node<'_> {
        self.node(self.0.borrow_mut().push(tensor))
    }

    /// Keeps the first fault (see [`Graph::refuse`]).
    pub fn refuse(&self, what: &'static str, sources: &[Node<'_>]) -> Node<'_> {
        let sources: Vec<Id> = sources.iter().map(|source| source.id).collect();
        self.node(self.0.borrow_mut().refuse(what, &sources))
    }

    pub fn is_faulty(&self) -> bool {
        self.0.borrow().fault.is_some()
    }

    /// Makes each of `nodes` run, in this order.
    pub fn expand(&self, nodes: &[Node<'_>]) {
        for node in nodes {
            node.expand();
        }
    }
}

impl Node<'_> {
    pub fn tensor(self) -> Tensor {
        *self.draft.0.borrow().tensor(self.id)
    }

    /// Changes what is known of it.
    pub fn edit(self, change: impl FnOnce(&mut Tensor)) {
        change(&mut self.draft.0.borrow_mut().tensors[self.id.index()]);
    }

    /// Elements by dimension.
    pub fn shape(self) -> [u64; 4] {
        self.draft.0.borrow().tensor(self.id).ne
    }

    /// Elements along a dimension.
    pub fn ne(self, dim: usize) -> u64 {
        self.shape()[dim]
    }

    /// Bytes between neighbours, by dimension.
    pub fn strides(self) -> [u64; 4] {
        self.draft.0.borrow().tensor(self.id).nb
    }

    /// Bytes between neighbours along a dimension.
    pub fn nb(self, dim: usize) -> u64 {
        self.strides()[dim]
    }

    pub fn elements(self) -> u64 {
        self.shape().iter().product()
    }

    /// Makes it run, after everything it needs.
    pub fn expand(self) -> Self {
        self.draft.0.borrow_mut().expand(self.id);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::ggml_type::f16;

    #[test]
    fn bytes_of_a_strided_view_end_at_its_last_element() {
        let mut view = Tensor::new(f32(), [2, 3, 1, 1]);
        view.nb[1] = 100;
        assert_eq!((view.bytes(), view.elements()), (208, 6));
        let empty = Tensor::new(f16(), [2, 0, 1, 1]);
        assert_eq!(empty.bytes(), 0);
        let quantized = Tensor::new(GgmlType::from_name("q4_0").unwrap(), [64, 2, 1, 1]);
        assert_eq!((quantized.bytes(), quantized.nb[1]), (72, 36));
    }

    #[test]
    fn contiguity_looks_past_the_lower_dimensions() {
        let mut view = Tensor::new(f32(), [4, 2, 3, 1]);
        assert!(view.is_contiguous());
        view.nb = [4, 32, 64, 192];
        assert!(!view.is_contiguous() && view.is_contiguous_from(1) && view.has_contiguous_rows());
    }

    #[test]
    fn sources_run_first_and_once() {
        let mut graph = Graph::default();
        let leaf = graph.push(Tensor::new(f32(), [1; 4]));
        let mut make = |op, sources: &[Id]| {
            let mut tensor = Tensor::new(f32(), [1; 4]);
            tensor.op = op;
            tensor.push_sources(sources.iter().copied());
            graph.push(tensor)
        };
        let a = make(Op::Sqr, &[leaf]);
        let b = make(Op::Sqrt, &[leaf]);
        let sum = make(Op::Add, &[b, a]);
        graph.expand(sum);
        graph.expand(a);
        assert_eq!(graph.nodes, [b, a, sum]);
        assert_eq!((graph.leafs.as_slice(), graph.uses[leaf.index()]), (&[leaf][..], 2));
    }
}
