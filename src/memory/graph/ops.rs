//! The shapes that ggml's operations give their results.
//!
//! Source: `ggml/src/ggml.c` (one `ggml_*` function a method here, of the same name), llama.cpp b11434.

use super::tensor::{Glu, Graph, Held, Id, Op, Tensor, Unary};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f32, i32};

/// A shape of up to four dimensions, the missing ones 1.
fn shape(dims: &[u64]) -> [u64; 4] {
    let mut ne = [1; 4];
    ne[..dims.len()].copy_from_slice(dims);
    ne
}

impl Graph {
    /// A tensor set from outside (`ggml_set_input`).
    pub fn input(&mut self, ty: GgmlType, dims: &[u64]) -> Id {
        let mut tensor = Tensor::new(ty, shape(dims));
        tensor.is_input = true;
        self.push(tensor)
    }

    /// A tensor that nothing makes and nobody sets.
    pub fn new_tensor(&mut self, ty: GgmlType, dims: &[u64]) -> Id {
        self.push(Tensor::new(ty, shape(dims)))
    }

    /// A weight or cache.
    pub fn hold(&mut self, ty: GgmlType, dims: &[u64], held: Held) -> Id {
        let mut tensor = Tensor::new(ty, shape(dims));
        tensor.held = held;
        self.push(tensor)
    }

    /// A contiguous result of an operation.
    pub fn make(&mut self, op: Op, ty: GgmlType, ne: [u64; 4], sources: &[Id]) -> Id {
        let mut tensor = Tensor::new(ty, ne);
        tensor.op = op;
        tensor.push_sources(sources);
        self.push(tensor)
    }

    /// A result like its first source.
    pub fn like(&mut self, op: Op, sources: &[Id]) -> Id {
        let Tensor { ty, ne, .. } = *self.tensor(sources[0]);
        self.make(op, ty, ne, sources)
    }

    /// Another look at the bytes of `a`, `offset` bytes in.
    fn look(&mut self, op: Op, a: Id, ne: [u64; 4], nb: [u64; 4], offset: u64) -> Id {
        let source = *self.tensor(a);
        let mut tensor = Tensor::new(source.ty, ne);
        tensor.nb = nb;
        tensor.op = op;
        tensor.view_src = Some(source.view_src.unwrap_or(a));
        tensor.view_offs = source.view_offs + offset;
        tensor.push_source(a);
        self.push(tensor)
    }

    /// A result in the place of `target` (`ggml_view_tensor`), made from `sources`.
    pub fn into_place(&mut self, op: Op, target: Id, sources: &[Id]) -> Id {
        let source = *self.tensor(target);
        let mut tensor = Tensor::new(source.ty, source.ne);
        tensor.nb = source.nb;
        tensor.op = op;
        tensor.view_src = Some(source.view_src.unwrap_or(target));
        tensor.view_offs = source.view_offs;
        tensor.push_sources(sources);
        self.push(tensor)
    }

    /// `a + b`, in the shape of `a`.
    pub fn add(&mut self, a: Id, b: Id) -> Id {
        self.like(Op::Add, &[a, b])
    }

    /// `a - b`.
    pub fn sub(&mut self, a: Id, b: Id) -> Id {
        self.like(Op::Sub, &[a, b])
    }

    /// `a * b`, element by element.
    pub fn mul(&mut self, a: Id, b: Id) -> Id {
        self.like(Op::Mul, &[a, b])
    }

    /// `a / b`.
    pub fn div(&mut self, a: Id, b: Id) -> Id {
        self.like(Op::Div, &[a, b])
    }

    /// `a` plus the row of `b` that `ids` names.
    pub fn add_id(&mut self, a: Id, b: Id, ids: Id) -> Id {
        self.like(Op::AddId, &[a, b, ids])
    }

    /// `a` times a number.
    pub fn scale(&mut self, a: Id) -> Id {
        self.like(Op::Scale, &[a])
    }

    /// `a` times a number, in its place.
    pub fn scale_inplace(&mut self, a: Id) -> Id {
        self.into_place(Op::Scale, a, &[a])
    }

    /// `a` between two numbers.
    pub fn clamp(&mut self, a: Id) -> Id {
        self.like(Op::Clamp, &[a])
    }

    /// A function of each element.
    pub fn unary(&mut self, function: Unary, a: Id) -> Id {
        self.like(Op::Unary(function), &[a])
    }

    /// `function(gate) * up`.
    pub fn glu_split(&mut self, function: Glu, gate: Id, up: Id) -> Id {
        self.like(Op::Glu(function), &[gate, up])
    }

    /// `function` of the first half of each row times the second half.
    pub fn glu(&mut self, function: Glu, a: Id) -> Id {
        let Tensor { ty, mut ne, .. } = *self.tensor(a);
        ne[0] /= 2;
        self.make(Op::Glu(function), ty, ne, &[a])
    }

    /// `w` times `x`.
    pub fn mul_mat(&mut self, w: Id, x: Id) -> Id {
        let (a, b) = (self.tensor(w).ne, self.tensor(x).ne);
        self.make(Op::MulMat, f32(), [a[1], b[1], b[2], b[3]], &[w, x])
    }

    /// The matrices of `w` that `ids` names, times `x`.
    pub fn mul_mat_id(&mut self, w: Id, x: Id, ids: Id) -> Id {
        let (a, b, i) = (self.tensor(w).ne, self.tensor(x).ne, self.tensor(ids).ne);
        self.make(Op::MulMatId, f32(), [a[1], i[0], b[2], 1], &[w, x, ids])
    }

    /// The rows of `a` that `rows` names.
    pub fn get_rows(&mut self, a: Id, rows: Id) -> Id {
        let (a_tensor, r) = (*self.tensor(a), self.tensor(rows).ne);
        let ty = if a_tensor.ty == i32() { i32() } else { f32() };
        self.make(Op::GetRows, ty, [a_tensor.ne[0], r[0], r[1], r[2]], &[a, rows])
    }

    /// `a` with its rows `rows` replaced by `b`'s.
    pub fn set_rows(&mut self, a: Id, b: Id, rows: Id) -> Id {
        self.into_place(Op::SetRows, a, &[b, rows, a])
    }

    /// `a` written over `b`.
    pub fn cpy(&mut self, a: Id, b: Id) -> Id {
        self.into_place(Op::Cpy, b, &[a, b])
    }

    /// `a` as another type; the result is its own second source.
    pub fn cast(&mut self, a: Id, ty: GgmlType) -> Id {
        let ne = self.tensor(a).ne;
        let id = self.make(Op::Cpy, ty, ne, &[a]);
        self.tensors[id.index()].push_source(id);
        id
    }

    /// A copy of `a` without gaps.
    pub fn cont(&mut self, a: Id) -> Id {
        self.like(Op::Cont, &[a])
    }

    /// The same in another shape.
    pub fn cont_nd(&mut self, a: Id, dims: &[u64]) -> Id {
        let ty = self.tensor(a).ty;
        self.make(Op::Cont, ty, shape(dims), &[a])
    }

    /// `a` in another shape.
    pub fn reshape(&mut self, a: Id, dims: &[u64]) -> Id {
        let ne = shape(dims);
        assert!(self.tensor(a).is_contiguous() && self.tensor(a).elements() == ne.iter().product::<u64>());
        let nb = Tensor::new(self.tensor(a).ty, ne).nb;
        self.look(Op::Reshape, a, ne, nb, 0)
    }

    /// A part of `a`: `strides` are those of the second, third and fourth dimension, the missing ones without gaps.
    pub fn view(&mut self, a: Id, dims: &[u64], strides: &[u64], offset: u64) -> Id {
        let ne = shape(dims);
        let mut nb = Tensor::new(self.tensor(a).ty, ne).nb;
        for i in 1..4 {
            nb[i] = strides.get(i - 1).copied().unwrap_or(if i == 1 { nb[1] } else { nb[i - 1] * ne[i - 1] });
        }
        self.look(Op::View, a, ne, nb, offset)
    }

    /// `a` with its dimension `i` as dimension `axes[i]`.
    pub fn permute(&mut self, a: Id, axes: [usize; 4]) -> Id {
        let source = *self.tensor(a);
        let (mut ne, mut nb) = ([0; 4], [0; 4]);
        for (i, axis) in axes.into_iter().enumerate() {
            (ne[axis], nb[axis]) = (source.ne[i], source.nb[i]);
        }
        self.look(Op::Permute, a, ne, nb, 0)
    }

    /// `a` with its first two dimensions exchanged.
    pub fn transpose(&mut self, a: Id) -> Id {
        let Tensor { ne, nb, .. } = *self.tensor(a);
        self.look(Op::Transpose, a, [ne[1], ne[0], ne[2], ne[3]], [nb[1], nb[0], nb[2], nb[3]], 0)
    }

    /// `a` repeated to a shape.
    pub fn repeat(&mut self, a: Id, dims: &[u64]) -> Id {
        let ty = self.tensor(a).ty;
        self.make(Op::Repeat, ty, shape(dims), &[a])
    }

    /// `a` followed by `b` along a dimension.
    pub fn concat(&mut self, a: Id, b: Id, dim: u32) -> Id {
        let Tensor { ty, mut ne, .. } = *self.tensor(a);
        ne[dim as usize] += self.tensor(b).ne[dim as usize];
        let id = self.make(Op::Concat, ty, ne, &[a, b]);
        self.tensors[id.index()].param = dim;
        id
    }

    /// `a` with zeros at the end of its dimensions.
    pub fn pad(&mut self, a: Id, more: [u64; 4]) -> Id {
        let Tensor { ty, ne, .. } = *self.tensor(a);
        self.make(Op::Pad, ty, std::array::from_fn(|i| ne[i] + more[i]), &[a])
    }

    /// The sum of each row.
    pub fn sum_rows(&mut self, a: Id) -> Id {
        let Tensor { ty, ne, .. } = *self.tensor(a);
        self.make(Op::SumRows, ty, [1, ne[1], ne[2], ne[3]], &[a])
    }

    /// The places of the `k` largest of each row: a view of the whole order.
    pub fn argsort_top_k(&mut self, a: Id, k: u64) -> Id {
        let ne = self.tensor(a).ne;
        let order = self.make(Op::Argsort, i32(), ne, &[a]);
        let nb = self.tensor(order).nb;
        self.view(order, &[k, ne[1], ne[2], ne[3]], &nb[1..], 0)
    }

    /// The places of the `k` largest of each row.
    pub fn top_k(&mut self, a: Id, k: u64) -> Id {
        let ne = self.tensor(a).ne;
        self.make(Op::TopK, i32(), [k, ne[1], ne[2], ne[3]], &[a])
    }

    /// The softmax of each row, with a mask if there is one.
    pub fn soft_max(&mut self, a: Id, mask: Option<Id>) -> Id {
        let id = self.like(Op::SoftMax, &[a]);
        self.add_source(id, mask);
        id
    }

    /// `a` turned by positions.
    pub fn rope(&mut self, a: Id, positions: Id, factors: Option<Id>) -> Id {
        let id = self.like(Op::Rope, &[a, positions]);
        self.add_source(id, factors);
        id
    }

    /// Attention in one operation.
    pub fn flash_attn_ext(&mut self, q: Id, k: Id, v: Id, mask: Id) -> Id {
        let (q_ne, v_ne) = (self.tensor(q).ne, self.tensor(v).ne);
        self.make(Op::FlashAttnExt, f32(), [v_ne[0], q_ne[2], q_ne[1], q_ne[3]], &[q, k, v, mask])
    }

    /// Another source for an operation that takes more (sinks).
    pub fn add_source(&mut self, to: Id, source: Option<Id>) {
        self.tensors[to.index()].push_sources(source.as_slice());
    }
}
