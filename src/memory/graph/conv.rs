//! Convolutions, pools and resizing: what ggml makes of them.
//!
//! Source: `ggml/src/ggml.c` (`ggml_im2col`, `ggml_conv_*`, `ggml_pool_*`, `ggml_interpolate`, `ggml_ssm_conv`), llama.cpp b11434.

use super::tensor::{Node, Op, Tensor};
use crate::gguf::GgmlType;
use crate::gguf::ggml_type::{f16, f32};

/// How a window moves over its input: steps, and zeros before and after, by dimension.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub stride: u64,
    pub pad: u64,
    pub dilation: u64,
}

impl Window {
    pub fn new(stride: u64, pad: u64) -> Self {
        Self { stride, pad, dilation: 1 }
    }

    /// How often a kernel of `size` fits into `n` (`ggml_calc_conv_output_size`); 0 where it does not.
    fn places(self, n: u64, size: u64) -> u64 {
        let span = self.dilation.saturating_mul(size.saturating_sub(1)).saturating_add(1);
        let room = n.saturating_add(self.pad.saturating_mul(2)).checked_sub(span);
        room.and_then(|room| room.checked_div(self.stride)).map_or(0, |places| places.saturating_add(1))
    }
}

impl Node<'_> {
    /// The patches of images, by the shape of this kernel.
    pub fn im2col(self, x: Self, window: Window, ty: GgmlType) -> Self {
        let (a, b) = (self.shape(), x.shape());
        let ne = [a[0] * a[1] * a[2], window.places(b[0], a[0]), window.places(b[1], a[1]), b[3]];
        if a[2] != b[2] || ne.contains(&0) {
            return self.draft.refuse("ggml_im2col", &[self, x]);
        }
        self.make(Op::Im2Col, ty, ne, &[self, x])
    }

    /// The same of sounds: `[frames, channels]`.
    pub fn im2col_1d(self, x: Self, window: Window, ty: GgmlType) -> Self {
        let (a, b) = (self.shape(), x.shape());
        let ne = [a[0] * a[1], window.places(b[0], a[0]), b[2], 1];
        if a[1] != b[1] || b[3] != 1 || ne.contains(&0) {
            return self.draft.refuse("ggml_im2col", &[self, x]);
        }
        self.make(Op::Im2Col, ty, ne, &[self, x])
    }

    /// The type of patches beside this kernel.
    fn patch_type(self) -> GgmlType {
        if self.tensor().ty.name == "bf16" { f32() } else { f16() }
    }

    /// These kernels over images (`ggml_conv_2d`).
    pub fn conv_2d(self, x: Self, window: Window) -> Self {
        self.conv_2d_by(x, window, self.patch_type())
    }

    /// The same with patches of a type of their own.
    pub fn conv_2d_by(self, x: Self, window: Window, ty: GgmlType) -> Self {
        let (a, patches) = (self.shape(), self.im2col(x, window, ty));
        let p = patches.shape();
        let rows = patches.reshape(&[p[0], p[1] * p[2] * p[3]]);
        let product = rows.mm(self.reshape(&[a[0] * a[1] * a[2], a[3]]));
        product.reshape(&[p[1], p[2], p[3], a[3]]).permute([0, 1, 3, 2]).cont()
    }

    /// One kernel a channel (`ggml_conv_2d_dw`).
    pub fn conv_2d_dw(self, x: Self, window: Window) -> Self {
        let (a, b) = (self.shape(), x.shape());
        let kernel = self.reshape(&[a[0], a[1], 1, a[2] * a[3]]);
        let patches = kernel.im2col(x.reshape(&[b[0], b[1], 1, b[2] * b[3]]), window, self.patch_type());
        let p = patches.shape();
        let rows = patches.reshape(&[p[0], p[2] * p[1], b[2], b[3]]);
        kernel.reshape(&[a[0] * a[1], 1, a[2] * a[3]]).mm(rows).reshape(&[p[1], p[2], b[2], b[3]])
    }

    /// Without patches (`ggml_conv_2d_direct`).
    pub fn conv_2d_direct(self, x: Self, window: Window) -> Self {
        let (a, b) = (self.shape(), x.tensor());
        let ne = [window.places(b.ne[0], a[0]), window.places(b.ne[1], a[1]), a[3], b.ne[3]];
        if a[2] != b.ne[2] || ne.contains(&0) {
            return self.draft.refuse("ggml_conv_2d_direct", &[self, x]);
        }
        self.make(Op::Conv2d, b.ty, ne, &[self, x])
    }

    /// One kernel a channel, without patches (`ggml_conv_2d_dw_direct`), of an input without gaps.
    pub fn conv_2d_dw_direct(self, x: Self, window: Window) -> Self {
        let (a, b) = (self.shape(), x.tensor());
        let ne = [window.places(b.ne[0], a[0]), window.places(b.ne[1], a[1]), b.ne[2], b.ne[3]];
        if a[2] != 1 || a[3] != b.ne[2] || ne.contains(&0) {
            return self.draft.refuse("ggml_conv_2d_dw_direct", &[self, x]);
        }
        self.make(Op::Plain, b.ty, ne, &[self, x])
    }

    /// These kernels over sounds (`ggml_conv_1d`).
    pub fn conv_1d(self, x: Self, window: Window) -> Self {
        let (a, patches) = (self.shape(), self.im2col_1d(x, window, self.patch_type()));
        let p = patches.shape();
        let product = patches.reshape(&[p[0], p[2] * p[1]]).mm(self.reshape(&[a[0] * a[1], a[2]]));
        product.reshape(&[p[1], a[2], p[2]])
    }

    /// The mean of each square of `k` by `k` (`ggml_pool_2d`).
    pub fn pool_2d(self, k: u64) -> Self {
        self.pool(k, k)
    }

    /// The mean of each rectangle.
    pub fn pool(self, width: u64, height: u64) -> Self {
        let ne = self.shape();
        let places = |n: u64, k: u64| n.checked_div(k).unwrap_or(0);
        let ne = [places(ne[0], width), places(ne[1], height), ne[2], ne[3]];
        if ne.contains(&0) {
            return self.draft.refuse("ggml_pool_2d", &[self]);
        }
        self.make(Op::Pool, f32(), ne, &[self])
    }

    /// Resized to this shape (`ggml_interpolate`).
    pub fn resized(self, dims: &[u64]) -> Self {
        let Tensor { ty, ne, .. } = self.tensor();
        let to = [0, 1, 2, 3].map(|i| dims.get(i).copied().unwrap_or(1));
        if ty != f32() || to.contains(&0) || ne.contains(&0) {
            return self.draft.refuse("ggml_interpolate", &[self]);
        }
        self.make(Op::Plain, ty, to, &[self])
    }

    /// A kernel a channel over the first dimension, the channels then first (`ggml_ssm_conv`).
    pub fn ssm_conv(self, kernel: Self) -> Self {
        let (x, c) = (self.shape(), kernel.shape());
        let n = (x[0] + 1).checked_sub(c[0]).filter(|_| x[1] == c[1] && x[3] == 1 && c[2..] == [1, 1]);
        let Some(n) = n else { return self.draft.refuse("ggml_ssm_conv", &[self, kernel]) };
        self.make(Op::SsmConv, f32(), [c[1], n, x[2], 1], &[self, kernel])
    }

    /// The mean of each row (`ggml_mean`), which every backend runs where it runs sums.
    pub fn mean(self) -> Self {
        let ne = self.shape();
        self.make(Op::SumRows, f32(), [1, ne[1], ne[2], ne[3]], &[self])
    }
}
