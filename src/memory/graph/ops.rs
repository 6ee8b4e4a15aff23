//! The shapes that ggml's operations give their results, and the sources that they refuse.
//!
//! Source: `ggml/src/ggml.c` (one `ggml_*` function a method here, of the same name, with its assertions), llama.cpp b11434.

use super::tensor::{Glu, Graph, Held, Id, Op, Tensor, Unary};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f16, f32, i32};

/// Whether `n` is a multiple of `of`.
fn divides(of: u64, n: u64) -> bool {
    n.checked_rem(of) == Some(0)
}

/// Whether repeats of `small` fill `large` (`ggml_can_repeat`).
fn can_repeat(small: &Tensor, large: &Tensor) -> bool {
    if small.ne.contains(&0) {
        return large.ne.contains(&0);
    }
    small.ne.iter().zip(&large.ne).all(|(small, large)| divides(*small, *large))
}

/// Whether `b` can be multiplied by `a` (`ggml_can_mul_mat`).
fn can_mul_mat(a: &Tensor, b: &Tensor) -> bool {
    a.ne[0] == b.ne[0] && divides(a.ne[2], b.ne[2]) && divides(a.ne[3], b.ne[3])
}

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

    /// The same where the operation takes its sources; a fault where it does not.
    pub fn make_if(&mut self, takes: bool, (what, op): (&'static str, Op), ne: [u64; 4], sources: &[Id]) -> Id {
        if takes { self.make(op, f32(), ne, sources) } else { self.refuse(what, sources) }
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

    /// `b` repeated to the shape of `a`, and both made one, element by element.
    fn binary(&mut self, what: &'static str, op: Op, a: Id, b: Id) -> Id {
        let fits = can_repeat(self.tensor(b), self.tensor(a));
        if fits { self.like(op, &[a, b]) } else { self.refuse(what, &[a, b]) }
    }

    /// `a + b`, in the shape of `a`.
    pub fn add(&mut self, a: Id, b: Id) -> Id {
        self.binary("ggml_add", Op::Add, a, b)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: Id, b: Id) -> Id {
        self.binary("ggml_sub", Op::Sub, a, b)
    }

    /// `a * b`, element by element.
    pub fn mul(&mut self, a: Id, b: Id) -> Id {
        self.binary("ggml_mul", Op::Mul, a, b)
    }

    /// `a / b`.
    pub fn div(&mut self, a: Id, b: Id) -> Id {
        self.binary("ggml_div", Op::Div, a, b)
    }

    /// `a` plus the row of `b` that `ids` names.
    pub fn add_id(&mut self, a: Id, b: Id, ids: Id) -> Id {
        let (rows, biases, names) = (self.tensor(a).ne, self.tensor(b).ne, self.tensor(ids).ne);
        if rows[..3] != [biases[0], names[0], names[1]] {
            return self.refuse("ggml_add_id", &[a, b, ids]);
        }
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
        let (a, b) = (self.tensor(gate), self.tensor(up));
        let fits = a.ne == b.ne && a.ty == b.ty && a.is_contiguous_from(1) && b.is_contiguous_from(1);
        if fits { self.like(Op::Glu(function), &[gate, up]) } else { self.refuse("ggml_glu_split", &[gate, up]) }
    }

    /// `function` of the first half of each row times the second half.
    pub fn glu(&mut self, function: Glu, a: Id) -> Id {
        let Tensor { ty, mut ne, .. } = *self.tensor(a);
        if !self.tensor(a).is_contiguous_from(1) {
            return self.refuse("ggml_glu", &[a]);
        }
        ne[0] /= 2;
        self.make(Op::Glu(function), ty, ne, &[a])
    }

    /// `w` times `x`.
    pub fn mul_mat(&mut self, w: Id, x: Id) -> Id {
        let (a, b) = (self.tensor(w), self.tensor(x));
        let fits = can_mul_mat(a, b) && !a.is_transposed();
        let ne = [a.ne[1], b.ne[1], b.ne[2], b.ne[3]];
        self.make_if(fits, ("ggml_mul_mat", Op::MulMat), ne, &[w, x])
    }

    /// The matrices of `w` that `ids` names, times `x`.
    pub fn mul_mat_id(&mut self, w: Id, x: Id, ids: Id) -> Id {
        let is_transposed = self.tensor(w).is_transposed();
        let (a, b, i) = (self.tensor(w).ne, self.tensor(x).ne, self.tensor(ids).ne);
        let planar = a[3] == 1 && b[3] == 1 && i[2..] == [1, 1];
        let fits = planar && !is_transposed && i[1] == b[2] && a[0] == b[0] && divides(b[1], i[0]);
        self.make_if(fits, ("ggml_mul_mat_id", Op::MulMatId), [a[1], i[0], b[2], 1], &[w, x, ids])
    }

    /// The rows of `a` that `rows` names.
    pub fn get_rows(&mut self, a: Id, rows: Id) -> Id {
        let (table, r) = (*self.tensor(a), *self.tensor(rows));
        if table.ne[2..] != r.ne[1..3] || r.ne[3] != 1 || r.ty != i32() {
            return self.refuse("ggml_get_rows", &[a, rows]);
        }
        let ty = if table.ty == i32() { i32() } else { f32() };
        self.make(Op::GetRows, ty, [table.ne[0], r.ne[0], r.ne[1], r.ne[2]], &[a, rows])
    }

    /// `a` with its rows `rows` replaced by `b`'s.
    pub fn set_rows(&mut self, a: Id, b: Id, rows: Id) -> Id {
        let [to, from, at] = [a, b, rows].map(|id| *self.tensor(id));
        let same = to.ne[0] == from.ne[0] && to.ne[2..] == from.ne[2..] && from.ne[1] == at.ne[0] && at.ne[3] == 1;
        let repeats = divides(at.ne[1], from.ne[2]) && divides(at.ne[2], from.ne[3]);
        let types = (from.ty == f32() || from.ty == f16()) && to.has_contiguous_rows() && from.has_contiguous_rows();
        if !(same && repeats && types) {
            return self.refuse("ggml_set_rows", &[a, b, rows]);
        }
        self.into_place(Op::SetRows, a, &[b, rows, a])
    }

    /// `a` written over `b`.
    pub fn cpy(&mut self, a: Id, b: Id) -> Id {
        if self.tensor(a).elements() != self.tensor(b).elements() {
            return self.refuse("ggml_cpy", &[a, b]);
        }
        self.into_place(Op::Cpy, b, &[a, b])
    }

    /// `a` as another type; the result is its own second source.
    pub fn cast(&mut self, a: Id, ty: GgmlType) -> Id {
        let ne = self.tensor(a).ne;
        let id = self.make(Op::Cpy, ty, ne, &[a]);
        self.add_source(id, Some(id));
        id
    }

    /// A copy of `a` without gaps.
    pub fn cont(&mut self, a: Id) -> Id {
        self.like(Op::Cont, &[a])
    }

    /// Whether `a` has as many elements as a shape.
    fn fills(&self, a: Id, ne: [u64; 4]) -> bool {
        ne.iter().try_fold(1, |n: u64, dim| n.checked_mul(*dim)) == Some(self.tensor(a).elements())
    }

    /// The same in another shape.
    pub fn cont_nd(&mut self, a: Id, dims: &[u64]) -> Id {
        let ty = self.tensor(a).ty;
        if !self.fills(a, shape(dims)) {
            return self.refuse("ggml_cont", &[a]);
        }
        self.make(Op::Cont, ty, shape(dims), &[a])
    }

    /// `a` in another shape.
    pub fn reshape(&mut self, a: Id, dims: &[u64]) -> Id {
        let ne = shape(dims);
        if !self.tensor(a).is_contiguous() || !self.fills(a, ne) {
            return self.refuse("ggml_reshape", &[a]);
        }
        let nb = Tensor::new(self.tensor(a).ty, ne).nb;
        self.look(Op::Reshape, a, ne, nb, 0)
    }

    /// A part of `a`: `strides` are those of the second, third and fourth dimension, the missing ones without gaps.
    pub fn view(&mut self, a: Id, dims: &[u64], strides: &[u64], offset: u64) -> Id {
        let packed = Tensor::new(self.tensor(a).ty, shape(dims));
        let Tensor { ne, mut nb, .. } = packed;
        for i in 1..4 {
            nb[i] = match strides.get(i - 1) {
                Some(stride) => *stride,
                None if i == 1 => nb[1],
                None => nb[i - 1].saturating_mul(ne[i - 1]),
            };
        }
        // `ggml_new_tensor_impl`: what a view holds, packed, ends within its root.
        let source = self.tensor(a);
        let root = source.view_src.map_or(source, |root| self.tensor(root));
        let size = packed.nb[3].saturating_mul(ne[3]);
        if size > 0 && size.saturating_add(source.view_offs).saturating_add(offset) > root.bytes() {
            return self.refuse("ggml_view", &[a]);
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
        if !can_repeat(self.tensor(a), &Tensor::new(ty, shape(dims))) {
            return self.refuse("ggml_repeat", &[a]);
        }
        self.make(Op::Repeat, ty, shape(dims), &[a])
    }

    /// `a` followed by `b` along a dimension.
    pub fn concat(&mut self, a: Id, b: Id, dim: u32) -> Id {
        let (Tensor { ty, mut ne, .. }, other) = (*self.tensor(a), *self.tensor(b));
        let along = dim as usize;
        if ty != other.ty || (0..4).any(|i| i != along && ne[i] != other.ne[i]) {
            return self.refuse("ggml_concat", &[a, b]);
        }
        ne[along] += other.ne[along];
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
        if ne[0] < k {
            return self.refuse("ggml_argsort_top_k", &[a]);
        }
        let order = self.make(Op::Argsort, i32(), ne, &[a]);
        let nb = self.tensor(order).nb;
        self.view(order, &[k, ne[1], ne[2], ne[3]], &nb[1..], 0)
    }

    /// The places of the `k` largest of each row.
    pub fn top_k(&mut self, a: Id, k: u64) -> Id {
        let ne = self.tensor(a).ne;
        if ne[0] < k {
            return self.refuse("ggml_top_k", &[a]);
        }
        self.make(Op::TopK, i32(), [k, ne[1], ne[2], ne[3]], &[a])
    }

    /// The softmax of each row, with a mask if there is one.
    pub fn soft_max(&mut self, a: Id, mask: Option<Id>) -> Id {
        let rows = self.tensor(a);
        let masks = mask.is_none_or(|mask| {
            let mask = self.tensor(mask);
            let repeats = divides(mask.ne[2], rows.ne[2]) && divides(mask.ne[3], rows.ne[3]);
            mask.is_contiguous() && mask.ne[0] == rows.ne[0] && mask.ne[1] >= rows.ne[1] && repeats
        });
        if !rows.is_contiguous() || !masks {
            return self.refuse("ggml_soft_max", &[&[a], mask.as_slice()].concat());
        }
        let id = self.like(Op::SoftMax, &[a]);
        self.add_source(id, mask);
        id
    }

    /// `a` turned by positions: one by token, or four of sections.
    pub fn rope(&mut self, a: Id, positions: Id, factors: Option<Id>) -> Id {
        let (n_tokens, places) = (self.tensor(a).ne[2], self.tensor(positions).ne);
        if places[1..] != [1, 1, 1] || ![1, 4].iter().any(|per_token| n_tokens * per_token == places[0]) {
            return self.refuse("ggml_rope", &[a, positions]);
        }
        let id = self.like(Op::Rope, &[a, positions]);
        self.add_source(id, factors);
        id
    }

    /// Attention in one operation.
    pub fn flash_attn_ext(&mut self, q: Id, k: Id, v: Id, mask: Id) -> Id {
        let [q_t, k_t, v_t, m_t] = [q, k, v, mask].map(|id| *self.tensor(id));
        let streams = q_t.ne[3] == k_t.ne[3] && q_t.ne[3] == v_t.ne[3];
        let masks =
            m_t.ty == f16() && m_t.is_contiguous() && divides(m_t.ne[2], q_t.ne[2]) && divides(m_t.ne[3], q_t.ne[3]);
        let fits = can_mul_mat(&k_t, &q_t) && streams && masks;
        let ne = [v_t.ne[0], q_t.ne[2], q_t.ne[1], q_t.ne[3]];
        self.make_if(fits, ("ggml_flash_attn_ext", Op::FlashAttnExt), ne, &[q, k, v, mask])
    }

    /// How well each cell of an indexer's cache fits each token (`ggml_lightning_indexer`).
    pub fn lightning_indexer(&mut self, q: Id, k: Id, weights: Id, mask: Id) -> Id {
        let [q_ne, k_ne, w_ne, m_ne] = [q, k, weights, mask].map(|id| self.tensor(id).ne);
        let rows = q_ne[0] == k_ne[0] && k_ne[1] == 1 && w_ne[..3] == [q_ne[1], q_ne[2], 1];
        let masks = m_ne[..3] == [k_ne[2], q_ne[2], 1] && divides(m_ne[3], w_ne[3]);
        let fits = rows && masks && q_ne[3] == k_ne[3] && k_ne[3] == w_ne[3];
        let ne = [k_ne[2], q_ne[2], 1, q_ne[3]];
        self.make_if(fits, ("ggml_lightning_indexer", Op::LightningIndexer), ne, &[q, k, weights, mask])
    }

    /// Residual streams summed by weights of their own, or of each of their elements (`ggml_dsv4_hc_pre`).
    pub fn hc_pre(&mut self, streams: Id, weights: Id) -> Id {
        let (x, w) = (self.tensor(streams).ne, self.tensor(weights).ne);
        let fits = x[3] == 1 && (w == x || w == [x[1], x[2], 1, 1]);
        self.make_if(fits, ("ggml_dsv4_hc_pre", Op::HcPre), [x[0], x[2], 1, 1], &[streams, weights])
    }

    /// How residual streams mix (`ggml_dsv4_hc_comb`, which takes four).
    pub fn hc_comb(&mut self, mixes: Id, scale: Id, base: Id) -> Id {
        let [m, s, b] = [mixes, scale, base].map(|id| self.tensor(id).ne);
        let fits = m[0] == 24 && m[2..] == [1, 1] && s[0] >= 3 && s[1..] == [1, 1, 1] && b == [24, 1, 1, 1];
        let ne = [4, 4, m[1], 1];
        self.make_if(fits, ("ggml_dsv4_hc_comb", Op::HyperConnection), ne, &[mixes, scale, base])
    }

    /// Residual streams after a layer's output `x` (`ggml_dsv4_hc_post`).
    pub fn hc_post(&mut self, x: Id, streams: Id, post: Id, comb: Option<Id>) -> Id {
        let [x_ne, s, p] = [x, streams, post].map(|id| self.tensor(id).ne);
        let sums = x_ne[2..] == [1, 1] && [s[0], s[2], s[3]] == [x_ne[0], x_ne[1], 1] && p == [s[1], s[2], 1, 1];
        let mixes = comb.is_none_or(|comb| self.tensor(comb).ne == [s[1], s[1], s[2], 1]);
        let sources = [&[x, streams, post], comb.as_slice()].concat();
        self.make_if(sums && mixes, ("ggml_dsv4_hc_post", Op::HyperConnection), s, &sources)
    }

    /// One score more by head, for a softmax or for attention in one operation.
    pub fn add_sinks(&mut self, to: Id, sinks: Option<Id>) {
        let n_head = self.tensor(to).sources().first().map(|source| self.tensor(*source).ne[2]);
        match sinks {
            Some(sinks) if n_head != Some(self.tensor(sinks).ne[0]) || self.tensor(sinks).ty != f32() => {
                self.refuse("ggml_flash_attn_ext_add_sinks", &[to, sinks]);
            }
            _ => self.add_source(to, sinks),
        }
    }

    /// Another source for an operation that takes more.
    fn add_source(&mut self, to: Id, source: Option<Id>) {
        if self.fault.is_none() {
            self.tensors[to.index()].push_sources(source.as_slice());
        }
    }
}
