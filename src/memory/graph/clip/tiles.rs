//! Encoders of images of any size with positions in two dimensions.
//!
//! Source: `tools/mtmd/models/pixtral.cpp`, `gemma4v.cpp`, `gemma4uv.cpp`, `gemma4ua.cpp`, `kimivl.cpp`, `kimik25.cpp`,
//! `step3vl.cpp`, `hunyuanvl.cpp`, `deepseek4v.cpp`, `muse-glimmer.cpp`, `tools/mtmd/clip-impl.h` `dsv4_get_block_layout`, llama.cpp
//! b11434.

use super::{Act, Clip, Node, Norm, Vit, Window, f32};

impl<'g> Clip<'g> {
    /// A transformer with positions in two dimensions.
    fn vit_2d(&self, x: Node<'g>, pos: Option<Node<'g>>, norm: Norm, [a, b]: [Node<'g>; 2]) -> Node<'g> {
        // Each over half of a head (`build_rope_2d`).
        let turn = |x: Node<'g>| x.rope(a, None).rope(b, None);
        self.vit(x, self.n_patches, norm, self.act, &Vit { pos, turn: Some(&turn), ..Vit::default() })
    }

    /// Squares of `n` by `n` neighbours in a row (`torch.nn.functional.unfold`).
    fn unfolded(grid: Node<'g>, n: u64) -> Node<'g> {
        let kernel = grid.view(&[n, n, grid.ne(2)], &[0, 0], 0);
        let rows = kernel.im2col(grid, Window::new(n, 0), f32());
        rows.reshape(&[rows.ne(0), rows.ne(1) * rows.ne(2)])
    }

    pub(super) fn pixtral(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let positions = [self.ids(self.n_patches), self.ids(self.n_patches)];
        let mut rows = self.vit_2d(self.patches(), None, Norm::Rms, positions);
        if self.maybe("mm.patch_merger").is_some() {
            let normed = rows.rms() * self.weight("mm.input_norm");
            let grid = normed.reshape(&[e.n_embd, self.px, self.py]).permute([2, 0, 1, 3]).cont();
            rows = self.mm("mm.patch_merger", Self::unfolded(grid, n));
        }
        let rows = self.mlp("mm.1", "mm.2", rows);
        let Some(token) = self.tensor("v.token_embd.img_break") else { return rows };
        // A token after each row but the last.
        let (d, px, py) = (rows.ne(0), self.px / n, self.py / n);
        let breaks = self.unset(&[d, 1, py]).scale() + token;
        rows.reshape(&[d, px, py]).concat(breaks, 1).rows_from(0, px * py + py - 1)
    }

    /// Positions looked up by column and by row.
    fn two_tables(&self, x: Node<'g>, pos_x: Node<'g>, pos_y: Node<'g>) -> Node<'g> {
        let (table, d) = (self.positions(), self.e.n_embd);
        let (n, row) = (table.ne(1), table.row_bytes(d));
        let part = |at: u64| table.view(&[d, n], &[row], at * n * row);
        x + part(0).get_rows(pos_x) + part(1).get_rows(pos_y)
    }

    pub(super) fn gemma4v(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let patches = self.weight("v.patch_embd").conv_2d(self.raw().scale(), self.patch_window());
        let patches = patches.reshape(&[self.n_patches, e.n_embd]).transpose().cont();
        let (pos_x, pos_y) = (self.ids(self.n_patches), self.ids(self.n_patches));
        let rows = self.vit_2d(self.two_tables(patches, pos_x, pos_y), None, Norm::Rms, [pos_x, pos_y]);
        let pooled = rows.transpose().cont_nd(&[self.px, self.py, e.n_embd]).pool_2d(n);
        let rows = pooled.reshape(&[(self.px / n) * (self.py / n), e.n_embd]).transpose().cont().scale();
        let rows = match (self.tensor("v.std_bias"), self.tensor("v.std_scale")) {
            (Some(bias), Some(scale)) => (rows - bias) * scale,
            _ => rows,
        };
        self.mm("mm.input_projection", rows.rms())
    }

    pub(super) fn gemma4uv(&self) -> Node<'g> {
        let p = self.e.patch_size;
        let patches = self.unset(&[p, p, 3]).im2col(self.raw(), self.patch_window(), f32());
        let ne = patches.shape();
        let rows = self.norm(Norm::Layer, "v.patch_norm.1", patches.reshape(&[ne[0], ne[1] * ne[2] * ne[3]]));
        let rows = self.weight("v.patch_embd").mm(rows) + self.need("v.patch_embd.bias");
        let rows = self.norm(Norm::Layer, "v.patch_norm.2", rows);
        let rows = self.two_tables(rows, self.ids(self.n_patches), self.ids(self.n_patches));
        self.mm("mm.input_projection", self.norm(Norm::Layer, "v.patch_norm.3", rows).rms())
    }

    pub(super) fn gemma4ua(&self) -> Node<'g> {
        self.mm("mm.a.input_projection", self.raw().permute([1, 0, 2, 3]).cont().rms())
    }

    pub(super) fn kimi(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let [pos_h, pos_w] = [self.ids(self.n_patches), self.ids(self.n_patches)];
        let patches = self.patches();
        let rows = if e.kind.name == "kimik25" {
            let table = self.positions();
            let grid = if (self.px, self.py) == (table.ne(1), table.ne(2)) {
                table
            } else {
                table.permute([2, 1, 0, 3]).resized(&[self.py, self.px, e.n_embd]).permute([2, 1, 0, 3])
            };
            let pos = grid.cont_nd(&[e.n_embd, self.n_patches]);
            self.vit_2d(patches + pos, None, Norm::Layer, [pos_w, pos_h])
        } else {
            self.vit_2d(patches, Some(self.resized_positions()), Norm::Layer, [pos_w, pos_h])
        };
        let merged = self.merge_patches(rows, n);
        let ne = merged.shape();
        let rows = merged.view(&[e.n_embd, ne[1] * n * n], &[4 * e.n_embd], 0);
        let normed = rows.norm(Norm::Layer, self.maybe("mm.input_norm"), self.bias("mm.input_norm"));
        self.mlp("mm.1", "mm.2", normed.view(&[ne[0], ne[1]], &[4 * ne[0]], 0))
    }

    pub(super) fn step3vl(&self) -> Node<'g> {
        let [pos_h, pos_w] = [self.ids(self.n_patches), self.ids(self.n_patches)];
        let rows = self.vit_2d(self.patches(), Some(self.resized_positions()), Norm::Layer, [pos_w, pos_h]);
        let mut grid = rows.permute([1, 0, 2, 3]).cont_nd(&[self.px, self.py, self.e.n_embd]);
        for name in ["mm.0", "mm.1"] {
            grid = self.weight(name).conv_2d(grid, Window::new(2, 1));
            if let Some(bias) = self.bias(name) {
                let ne = grid.shape();
                let rows = grid.reshape(&[ne[0] * ne[1], ne[2]]).transpose().cont() + bias;
                grid = rows.transpose().cont().reshape(&[ne[0], ne[1], ne[2]]);
            }
        }
        let ne = grid.shape();
        let rows = grid.reshape(&[ne[0] * ne[1], ne[2], ne[3]]).permute([1, 0, 2, 3]).cont();
        self.mm("mm.model.fc", rows)
    }

    pub(super) fn hunyuanvl(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let pos = Some(self.input(&[e.n_embd, self.n_patches]));
        let rows = self.vit(self.patches(), self.n_patches, Norm::Layer, self.act, &Vit { pos, ..Vit::default() });
        let rows = rows.norm(Norm::Rms, self.maybe("mm.pre_norm"), None);
        let grid = rows.reshape(&[e.n_embd, self.px, self.py]).permute([2, 0, 1, 3]).cont();
        let conv = |name: &str, grid: Node<'g>, n: u64| {
            let grid = self.weight(name).conv_2d(grid, Window::new(n, 0));
            self.bias(name).map_or(grid, |bias| grid + bias.reshape(&[1, 1, bias.ne(0)]))
        };
        let grid = conv("mm.2", conv("mm.0", grid, n).gelu(), 1);
        let (wide, high, d) = (self.px / n, self.py / n, grid.ne(2));
        let line = self.need("v.image_newline").reshape(&[1, 1, d]).repeat(&[1, high, d]);
        let rows = grid.concat(line, 0).permute([1, 2, 0, 3]).cont_nd(&[d, (wide + 1) * high]);
        let rows = self.linear("mm.model.fc", rows);
        let [begin, end] = ["mm.image_begin", "mm.image_end"].map(|name| self.need(name));
        let rows = begin.reshape(&[begin.ne(0), 1]).concat(rows, 1).concat(end.reshape(&[end.ne(0), 1]), 1);
        rows.norm(Norm::Rms, self.maybe("mm.post_norm"), None)
    }

    pub(super) fn deepseek4v(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let positions = self.ids(4 * self.n_patches);
        let turn = |x: Node<'g>| x.rope(positions, None);
        let vit = Vit { turn: Some(&turn), ..Vit::default() };
        let rows = self.vit(self.patches(), self.n_patches, Norm::Rms, self.act, &vit);
        let mut grid = rows.reshape(&[e.n_embd, self.px, self.py]).permute([2, 0, 1, 3]).cont();
        let (wide, high) = (self.px.next_multiple_of(n), self.py.next_multiple_of(n));
        if (wide, high) != (self.px, self.py) {
            grid = grid.pad_nd([wide - self.px, high - self.py, 0, 0]);
        }
        let mut rows = self.mlp("mm.1", "mm.2", Self::unfolded(grid, n));
        let marks = ["v.token_embd.img_start", "v.token_embd.img_end", "v.image_newline", "v.token_embd.img_pad"];
        for name in marks {
            rows = rows.concat(self.need(name).reshape(&[rows.ne(0), 1]), 1);
        }
        // Rows end with a line break, an odd number of them with a row of padding; all of it in blocks of four.
        rows.get_rows(self.ids(block_layout(wide / n, high / n)))
    }

    pub(super) fn muse_glimmer(&self) -> Node<'g> {
        let (e, n, ds) = (self.e, self.n_patches, self.e.n_merge);
        let n_out = (self.px / ds) * (self.py / ds);
        let [pos_w, pos_h, windows, back, squares] = [0; 5].map(|_| self.ids(n));
        let mask = self.input(&[n, n]);
        let rows = (self.patches() + self.resized_positions()).get_rows(windows);
        let masks = |il: u64| (il + 1 != e.n_layer && !(il + 1).is_multiple_of(4)).then_some(mask);
        // Each over half of a head (`build_rope_2d`).
        let turn = |x: Node<'g>| x.rope(pos_w, None).rope(pos_h, None);
        let vit = Vit { turn: Some(&turn), mask: Some(&masks), ..Vit::default() };
        let rows = self.vit(rows, n, Norm::Layer, Act::Gelu, &vit).get_rows(back).get_rows(squares);
        let merged = rows.reshape(&[e.n_embd, ds * ds, n_out]).permute([1, 0, 2, 3]).cont();
        let rows = merged.reshape(&[e.n_embd * ds * ds, n_out]);
        self.mm("mm.2", self.mm("mm.1", self.mm("mm.0", rows).gelu()).gelu())
    }
}

/// The rows of a block of `wide` by `high` tokens: a start, lines with their breaks, an even number of them, an end.
fn block_layout(wide: u64, high: u64) -> u64 {
    let rows = high + high % 2;
    let row_len = wide + 1;
    let padding = (rows / 2 * row_len) % 2 * 2;
    2 + rows * row_len + padding
}
