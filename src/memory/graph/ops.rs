//! The shapes that ggml's operations give their results, and the sources that they refuse.
//!
//! Source: `ggml/src/ggml.c` (one `ggml_*` function a method here, with its assertions), llama.cpp b11434.

use super::tensor::{Draft, Glu, Held, Node, Op, Tensor, Unary};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f16, f32, i32};

/// `[head, heads, tokens]` as `[head, tokens, heads]`, and back.
pub const HEADS: [usize; 4] = [0, 2, 1, 3];

/// Whether `n` is a multiple of `of`.
fn divides(of: u64, n: u64) -> bool {
    n.checked_rem(of) == Some(0)
}

/// Whether repeats of `small` fill `large` (`ggml_can_repeat`).
pub fn can_repeat(small: [u64; 4], large: [u64; 4]) -> bool {
    if small.contains(&0) {
        return large.contains(&0);
    }
    small.iter().zip(&large).all(|(small, large)| divides(*small, *large))
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

impl Draft {
    /// A tensor set from outside (`ggml_set_input`).
    pub fn input(&self, ty: GgmlType, dims: &[u64]) -> Node<'_> {
        self.push(Tensor { is_input: true, ..Tensor::new(ty, shape(dims)) })
    }

    /// A new tensor of one number everywhere.
    pub fn filled(&self, ty: GgmlType, dims: &[u64]) -> Node<'_> {
        self.push(Tensor::new(ty, shape(dims))).op(Op::Fill)
    }

    /// A weight or cache.
    pub fn hold(&self, ty: GgmlType, dims: &[u64], held: Held) -> Node<'_> {
        self.push(Tensor { held, ..Tensor::new(ty, shape(dims)) })
    }

    /// A contiguous result of an operation.
    pub fn make(&self, op: Op, ty: GgmlType, ne: [u64; 4], sources: &[Node<'_>]) -> Node<'_> {
        let mut tensor = Tensor { op, ..Tensor::new(ty, ne) };
        tensor.push_sources(sources.iter().map(|source| source.id));
        self.push(tensor)
    }

    /// The same where the operation takes its sources; a fault where it does not.
    pub fn make_if(&self, takes: bool, (what, op): (&'static str, Op), ne: [u64; 4], sources: &[Node<'_>]) -> Node<'_> {
        if takes { self.make(op, f32(), ne, sources) } else { self.refuse(what, sources) }
    }
}

macro_rules! operators {
    ($($trait:ident, $method:ident, $name:literal;)*) => {$(
        /// Element by element, the right side repeated to the shape of the left one.
        impl std::ops::$trait for Node<'_> {
            type Output = Self;

            fn $method(self, b: Self) -> Self {
                let fits = can_repeat(b.shape(), self.shape());
                if fits { self.like(Op::$trait, &[self, b]) } else { self.draft.refuse($name, &[self, b]) }
            }
        }
    )*};
}

operators! {
    Add, add, "ggml_add";
    Sub, sub, "ggml_sub";
    Mul, mul, "ggml_mul";
    Div, div, "ggml_div";
}

macro_rules! functions {
    ($($method:ident: $op:expr;)*) => {
        impl Node<'_> {
            $(pub fn $method(self) -> Self { self.op($op) })*
        }
    };
}

functions! {
    silu: Op::Unary(Unary::Silu);
    gelu: Op::Unary(Unary::Gelu);
    relu: Op::Unary(Unary::Relu);
    sigmoid: Op::Unary(Unary::Sigmoid);
    softplus: Op::Unary(Unary::Softplus);
    tanh: Op::Unary(Unary::Tanh);
    exp: Op::Unary(Unary::Exp);
    sqr: Op::Sqr;
    sqrt: Op::Sqrt;
    // By numbers that do not matter here.
    scale: Op::Scale;
    clamp: Op::Clamp;
    // A copy without gaps.
    cont: Op::Cont;
    // By the root of the mean square of each row, without weight.
    rms: Op::RmsNorm;
}

impl Node<'_> {
    /// A contiguous result of its shape.
    pub fn like(self, op: Op, sources: &[Self]) -> Self {
        let Tensor { ty, ne, .. } = self.tensor();
        self.draft.make(op, ty, ne, sources)
    }

    pub fn op(self, op: Op) -> Self {
        self.like(op, &[self])
    }

    pub fn unary(self, function: Unary) -> Self {
        self.op(Op::Unary(function))
    }

    pub fn make(self, op: Op, ty: GgmlType, ne: [u64; 4], sources: &[Self]) -> Self {
        self.draft.make(op, ty, ne, sources)
    }

    /// Another look at its bytes, `offset` bytes in.
    fn look(self, op: Op, ne: [u64; 4], nb: [u64; 4], offset: u64) -> Self {
        let source = self.tensor();
        let mut tensor = Tensor { op, nb, ..Tensor::new(source.ty, ne) };
        tensor.view_src = Some(source.view_src.unwrap_or(self.id));
        tensor.view_offs = source.view_offs + offset;
        tensor.push_sources([self.id]);
        self.draft.push(tensor)
    }

    /// A result in its place (`ggml_view_tensor`), made from `sources`.
    pub fn into_place(self, op: Op, sources: &[Self]) -> Self {
        let source = self.tensor();
        let mut tensor = Tensor { op, nb: source.nb, ..Tensor::new(source.ty, source.ne) };
        tensor.view_src = Some(source.view_src.unwrap_or(self.id));
        tensor.view_offs = source.view_offs;
        tensor.push_sources(sources.iter().map(|source| source.id));
        self.draft.push(tensor)
    }

    /// Itself plus the row of `b` that `ids` names.
    pub fn add_id(self, b: Self, ids: Self) -> Self {
        let (rows, biases, names) = (self.shape(), b.shape(), ids.shape());
        if rows[..3] != [biases[0], names[0], names[1]] {
            return self.draft.refuse("ggml_add_id", &[self, b, ids]);
        }
        self.like(Op::AddId, &[self, b, ids])
    }

    /// `function(self) * up`.
    pub fn glu_split(self, function: Glu, up: Self) -> Self {
        let (a, b) = (self.tensor(), up.tensor());
        let fits = a.ne == b.ne && a.ty == b.ty && a.is_contiguous_from(1) && b.is_contiguous_from(1);
        if fits { self.like(Op::Glu(function), &[self, up]) } else { self.draft.refuse("ggml_glu_split", &[self, up]) }
    }

    /// `function` of the first half of each row times the second half.
    pub fn glu(self, function: Glu) -> Self {
        let mut t = self.tensor();
        if !t.is_contiguous_from(1) {
            return self.draft.refuse("ggml_glu", &[self]);
        }
        t.ne[0] /= 2;
        self.make(Op::Glu(function), t.ty, t.ne, &[self])
    }

    /// This matrix times `x`.
    pub fn mm(self, x: Self) -> Self {
        let (a, b) = (self.tensor(), x.tensor());
        let fits = can_mul_mat(&a, &b) && !a.is_transposed();
        let ne = [a.ne[1], b.ne[1], b.ne[2], b.ne[3]];
        self.draft.make_if(fits, ("ggml_mul_mat", Op::MulMat), ne, &[self, x])
    }

    /// Those of these matrices that `ids` names, times `x`.
    pub fn mm_id(self, x: Self, ids: Self) -> Self {
        let (a, b, i) = (self.shape(), x.shape(), ids.shape());
        let planar = a[3] == 1 && b[3] == 1 && i[2..] == [1, 1];
        let fits = planar && !self.tensor().is_transposed() && i[1] == b[2] && a[0] == b[0] && divides(b[1], i[0]);
        self.draft.make_if(fits, ("ggml_mul_mat_id", Op::MulMatId), [a[1], i[0], b[2], 1], &[self, x, ids])
    }

    /// Its rows that `rows` names.
    pub fn get_rows(self, rows: Self) -> Self {
        let (table, r) = (self.tensor(), rows.tensor());
        if table.ne[2..] != r.ne[1..3] || r.ne[3] != 1 || r.ty != i32() {
            return self.draft.refuse("ggml_get_rows", &[self, rows]);
        }
        let ty = if table.ty == i32() { i32() } else { f32() };
        self.make(Op::GetRows, ty, [table.ne[0], r.ne[0], r.ne[1], r.ne[2]], &[self, rows])
    }

    /// Itself with its rows `rows` replaced by `b`'s.
    pub fn set_rows(self, b: Self, rows: Self) -> Self {
        let [to, from, at] = [self, b, rows].map(Self::tensor);
        let same = to.ne[0] == from.ne[0] && to.ne[2..] == from.ne[2..] && from.ne[1] == at.ne[0] && at.ne[3] == 1;
        let repeats = divides(at.ne[1], from.ne[2]) && divides(at.ne[2], from.ne[3]);
        let types = (from.ty == f32() || from.ty == f16()) && to.has_contiguous_rows() && from.has_contiguous_rows();
        if !(same && repeats && types) {
            return self.draft.refuse("ggml_set_rows", &[self, b, rows]);
        }
        self.into_place(Op::SetRows, &[b, rows, self])
    }

    /// Written over `to`.
    pub fn cpy(self, to: Self) -> Self {
        if self.elements() != to.elements() {
            return self.draft.refuse("ggml_cpy", &[self, to]);
        }
        to.into_place(Op::Cpy, &[self, to])
    }

    /// As another type; the result is its own second source.
    pub fn cast(self, ty: GgmlType) -> Self {
        let cast = self.make(Op::Cpy, ty, self.shape(), &[self]);
        cast.add_source(Some(cast));
        cast
    }

    /// Whether it has as many elements as a shape.
    fn fills(self, ne: [u64; 4]) -> bool {
        ne.iter().try_fold(1, |n: u64, dim| n.checked_mul(*dim)) == Some(self.elements())
    }

    /// A copy without gaps, in another shape.
    pub fn cont_nd(self, dims: &[u64]) -> Self {
        if !self.fills(shape(dims)) {
            return self.draft.refuse("ggml_cont", &[self]);
        }
        self.make(Op::Cont, self.tensor().ty, shape(dims), &[self])
    }

    pub fn reshape(self, dims: &[u64]) -> Self {
        let (t, ne) = (self.tensor(), shape(dims));
        if !t.is_contiguous() || !self.fills(ne) {
            return self.draft.refuse("ggml_reshape", &[self]);
        }
        self.look(Op::Reshape, ne, Tensor::new(t.ty, ne).nb, 0)
    }

    /// A part: `strides` are those of the second, third and fourth dimension, the missing ones without gaps.
    pub fn view(self, dims: &[u64], strides: &[u64], offset: u64) -> Self {
        let source = self.tensor();
        let packed = Tensor::new(source.ty, shape(dims));
        let Tensor { ne, mut nb, .. } = packed;
        for i in 1..4 {
            nb[i] = match strides.get(i - 1) {
                Some(stride) => *stride,
                None if i == 1 => nb[1],
                None => nb[i - 1].saturating_mul(ne[i - 1]),
            };
        }
        // `ggml_new_tensor_impl`: what a view holds, packed, ends within its root.
        let root = source.view_src.map_or(source, |root| self.draft.node(root).tensor());
        let size = packed.nb[3].saturating_mul(ne[3]);
        if size > 0 && size.saturating_add(source.view_offs).saturating_add(offset) > root.bytes() {
            return self.draft.refuse("ggml_view", &[self]);
        }
        self.look(Op::View, ne, nb, offset)
    }

    /// `width` elements of each row of F32, from element `at` on.
    pub fn cols(self, width: u64, at: u64) -> Self {
        let Tensor { ne, nb, .. } = self.tensor();
        self.view(&[width, ne[1], ne[2], ne[3]], &nb[1..], 4 * at)
    }

    /// Rows of F32 as `n` heads `step` elements apart: of each, `width` elements, from element `at` of the row on.
    pub fn split(self, width: u64, n: u64, step: u64, at: u64) -> Self {
        let Tensor { ne, nb, .. } = self.tensor();
        self.view(&[width, n, ne[1], ne[2]], &[4 * step, nb[1], nb[2]], 4 * at)
    }

    /// With dimension `i` as dimension `axes[i]`.
    pub fn permute(self, axes: [usize; 4]) -> Self {
        let source = self.tensor();
        let (mut ne, mut nb) = ([0; 4], [0; 4]);
        for (i, axis) in axes.into_iter().enumerate() {
            (ne[axis], nb[axis]) = (source.ne[i], source.nb[i]);
        }
        self.look(Op::Permute, ne, nb, 0)
    }

    /// With its first two dimensions exchanged.
    pub fn transpose(self) -> Self {
        let Tensor { ne, nb, .. } = self.tensor();
        self.look(Op::Transpose, [ne[1], ne[0], ne[2], ne[3]], [nb[1], nb[0], nb[2], nb[3]], 0)
    }

    pub fn repeat(self, dims: &[u64]) -> Self {
        let Tensor { ty, ne, .. } = self.tensor();
        if !can_repeat(ne, shape(dims)) {
            return self.draft.refuse("ggml_repeat", &[self]);
        }
        self.make(Op::Repeat, ty, shape(dims), &[self])
    }

    /// Followed by `b` along a dimension.
    pub fn concat(self, b: Self, dim: u32) -> Self {
        let (Tensor { ty, mut ne, .. }, other) = (self.tensor(), b.tensor());
        let along = dim as usize;
        if ty != other.ty || (0..4).any(|i| i != along && ne[i] != other.ne[i]) {
            return self.draft.refuse("ggml_concat", &[self, b]);
        }
        ne[along] += other.ne[along];
        let joined = self.make(Op::Concat, ty, ne, &[self, b]);
        joined.edit(|t| t.param = dim);
        joined
    }

    /// With `more` zeros at the end of its rows.
    pub fn pad(self, more: u64) -> Self {
        self.pad_nd([more, 0, 0, 0])
    }

    /// With zeros before or after what it holds, so many by dimension (`ggml_pad_ext`).
    pub fn pad_nd(self, more: [u64; 4]) -> Self {
        let Tensor { ty, ne, .. } = self.tensor();
        self.make(Op::Pad, ty, [0, 1, 2, 3].map(|i| ne[i].saturating_add(more[i])), &[self])
    }

    /// The sum of each row.
    pub fn sum_rows(self) -> Self {
        let Tensor { ty, ne, .. } = self.tensor();
        self.make(Op::SumRows, ty, [1, ne[1], ne[2], ne[3]], &[self])
    }

    /// The places of each row's elements in order.
    pub fn argsort(self) -> Self {
        self.make(Op::Argsort, i32(), self.shape(), &[self])
    }

    /// The places of the `k` largest of each row: a view of the whole order.
    pub fn argsort_top_k(self, k: u64) -> Self {
        if self.ne(0) < k {
            return self.draft.refuse("ggml_argsort_top_k", &[self]);
        }
        self.argsort().cols(k, 0)
    }

    /// The places of the `k` largest of each row.
    pub fn top_k(self, k: u64) -> Self {
        let ne = self.shape();
        if ne[0] < k {
            return self.draft.refuse("ggml_top_k", &[self]);
        }
        self.make(Op::TopK, i32(), [k, ne[1], ne[2], ne[3]], &[self])
    }

    /// The softmax of each row.
    pub fn soft_max(self) -> Self {
        if self.tensor().is_contiguous() { self.op(Op::SoftMax) } else { self.draft.refuse("ggml_soft_max", &[self]) }
    }

    pub fn soft_max_masked(self, mask: Self) -> Self {
        let (rows, m) = (self.tensor(), mask.tensor());
        let repeats = divides(m.ne[2], rows.ne[2]) && divides(m.ne[3], rows.ne[3]);
        let masks = m.is_contiguous() && m.ne[0] == rows.ne[0] && m.ne[1] >= rows.ne[1] && repeats;
        if !rows.is_contiguous() || !masks {
            return self.draft.refuse("ggml_soft_max", &[self, mask]);
        }
        self.like(Op::SoftMax, &[self, mask])
    }

    /// Turned by positions: one by token, or four of sections.
    pub fn rope(self, positions: Self, factors: Option<Self>) -> Self {
        let (n_tokens, places) = (self.ne(2), positions.shape());
        if places[1..] != [1, 1, 1] || ![1, 4].iter().any(|per_token| n_tokens * per_token == places[0]) {
            return self.draft.refuse("ggml_rope", &[self, positions]);
        }
        let turned = self.like(Op::Rope, &[self, positions]);
        turned.add_source(factors);
        turned
    }

    /// Attention of these queries in one operation.
    pub fn flash_attn_ext(self, k: Self, v: Self, mask: Option<Self>) -> Self {
        let [q_t, k_t, v_t] = [self, k, v].map(Self::tensor);
        let streams = q_t.ne[3] == k_t.ne[3] && q_t.ne[3] == v_t.ne[3];
        let masks = mask.map(Self::tensor).is_none_or(|m| {
            m.ty == f16() && m.is_contiguous() && divides(m.ne[2], q_t.ne[2]) && divides(m.ne[3], q_t.ne[3])
        });
        let fits = can_mul_mat(&k_t, &q_t) && streams && masks;
        let ne = [v_t.ne[0], q_t.ne[2], q_t.ne[1], q_t.ne[3]];
        let sources = [&[self, k, v], mask.as_slice()].concat();
        // ik_llama.cpp's kernels of latents take heads by fours, and there are kernels for all other heads (`ggml_cuda_fattn_is_supported`).
        let is_plain = !matches!(k_t.ne[0], 576 | 512 | 320) || divides(4 * k_t.ne[2], q_t.ne[2]);
        let op = if self.draft.0.borrow().fuses_norms && is_plain { Op::Plain } else { Op::FlashAttnExt };
        self.draft.make_if(fits, ("ggml_flash_attn_ext", op), ne, &sources)
    }

    /// How well each cell of an indexer's cache fits each token's queries (`ggml_lightning_indexer`).
    pub fn lightning_indexer(self, k: Self, weights: Self, mask: Self) -> Self {
        let [q_ne, k_ne, w_ne, m_ne] = [self, k, weights, mask].map(Self::shape);
        let rows = q_ne[0] == k_ne[0] && k_ne[1] == 1 && w_ne[..3] == [q_ne[1], q_ne[2], 1];
        let masks = m_ne[..3] == [k_ne[2], q_ne[2], 1] && divides(m_ne[3], w_ne[3]);
        let fits = rows && masks && q_ne[3] == k_ne[3] && k_ne[3] == w_ne[3];
        let ne = [k_ne[2], q_ne[2], 1, q_ne[3]];
        let op = ("ggml_lightning_indexer", Op::LightningIndexer);
        self.draft.make_if(fits, op, ne, &[self, k, weights, mask])
    }

    /// This mask, closed but for these cells, or for the cells of these pools: then `pools` are their scores, all pools' cells, and
    /// cells that are open besides (`ggml_top_k_mask`).
    pub fn top_k_mask(self, best: Self, pools: &[Self]) -> Self {
        let (t, ne) = (self.tensor(), best.shape());
        self.make(Op::TopKMask, t.ty, [t.ne[0], ne[1], ne[2], ne[3]], &[&[self, best], pools].concat())
    }

    /// These residual streams summed by weights of their own, or of each of their elements (`ggml_dsv4_hc_pre`).
    pub fn hc_pre(self, weights: Self) -> Self {
        let (x, w) = (self.shape(), weights.shape());
        let fits = x[3] == 1 && (w == x || w == [x[1], x[2], 1, 1]);
        self.draft.make_if(fits, ("ggml_dsv4_hc_pre", Op::HcPre), [x[0], x[2], 1, 1], &[self, weights])
    }

    /// How residual streams mix (`ggml_dsv4_hc_comb`, which takes four).
    pub fn hc_comb(self, scale: Self, base: Self) -> Self {
        let [m, s, b] = [self, scale, base].map(Self::shape);
        let fits = m[0] == 24 && m[2..] == [1, 1] && s[0] >= 3 && s[1..] == [1, 1, 1] && b == [24, 1, 1, 1];
        let op = ("ggml_dsv4_hc_comb", Op::HcComb);
        self.draft.make_if(fits, op, [4, 4, m[1], 1], &[self, scale, base])
    }

    /// Residual streams after this output of a layer (`ggml_dsv4_hc_post`).
    pub fn hc_post(self, streams: Self, post: Self, comb: Option<Self>) -> Self {
        let [x_ne, s, p] = [self, streams, post].map(Self::shape);
        let sums = x_ne[2..] == [1, 1] && [s[0], s[2], s[3]] == [x_ne[0], x_ne[1], 1] && p == [s[1], s[2], 1, 1];
        let mixes = comb.is_none_or(|comb| comb.shape() == [s[1], s[1], s[2], 1]);
        let sources = [&[self, streams, post], comb.as_slice()].concat();
        self.draft.make_if(sums && mixes, ("ggml_dsv4_hc_post", Op::HcPost), s, &sources)
    }

    /// One score more by head, for a softmax or for attention in one operation.
    pub fn add_sinks(self, sinks: Option<Self>) {
        let n_head = self.tensor().sources().first().map(|source| self.draft.node(*source).ne(2));
        match sinks {
            Some(sinks) if n_head != Some(sinks.ne(0)) || sinks.tensor().ty != f32() => {
                self.draft.refuse("ggml_flash_attn_ext_add_sinks", &[self, sinks]);
            }
            _ => self.add_source(sinks),
        }
    }

    /// Another source for an operation that takes more.
    fn add_source(self, source: Option<Self>) {
        if !self.draft.is_faulty() {
            self.edit(|t| t.push_sources(source.map(|source| source.id)));
        }
    }
}
