//! DeepSeek-OCR's encoders: a segmenter, and a transformer over what it gives.
//!
//! Source: `tools/mtmd/models/deepseekocr.cpp`, `deepseekocr2.cpp`, llama.cpp b11434.

use super::{Act, Clip, HEADS, Node, Norm, Vit, Window, f16, f32, i32};

/// The segmenter's blocks that attend to the whole image (`global_attn_indices`).
const GLOBAL: [u64; 4] = [2, 5, 8, 11];

impl<'g> Clip<'g> {
    /// A convolution whose patches are of F32, but for kernels of F16 (`conv_2d_f32`).
    fn conv_f32(&self, name: &str, x: Node<'g>, window: Window) -> Node<'g> {
        let kernel = self.weight(name);
        let ty = if kernel.tensor().ty == f16() { f16() } else { f32() };
        kernel.conv_2d_by(x, window, ty)
    }

    /// The segmenter (`build_sam`).
    fn sam(&self, raw: Node<'g>) -> Node<'g> {
        let [d, n_head, n_layer] =
            ["embedding_length", "head_count", "block_count"].map(|key| self.number(&format!("vision.sam.{key}")));
        let window = self.number("vision.window_size");
        let patch = self.weight("v.sam.patch_embd").ne(0);
        let bias = self.need("v.sam.patch_embd.bias").reshape(&[1, 1, d]);
        let patches = self.conv_f32("v.sam.patch_embd", raw, Window::new(patch, 0)) + bias;
        let patches = patches.permute([1, 2, 0, 3]).cont();
        let local = self.draft.input(i32(), &[window, window]);
        let global = self.draft.input(i32(), &[patches.ne(1), patches.ne(2)]);
        let (table, side) = (self.weight("v.sam.pos_embd"), patches.ne(1));
        let pos = if table.ne(1) == side {
            table
        } else {
            let resized = table.permute([2, 0, 1, 3]).cont().resized(&[side, side, d]);
            resized.permute([1, 2, 0, 3]).cont()
        };
        let mut x = patches + pos;
        for il in (0..n_layer).take_while(|_| !self.draft.is_faulty()) {
            let name = |part: &str| format!("v.sam.blk.{il}.{part}");
            let is_global = GLOBAL.contains(&il);
            let [_, w, h, _] = x.shape();
            let normed = self.norm(Norm::Layer, &name("pre_ln"), x);
            let parts = if is_global { normed } else { Self::windows(normed, window) };
            let attended = self.sam_attention(il, parts, n_head, if is_global { global } else { local });
            let attended = if is_global { attended } else { Self::without_windows(attended, [w, h], window) } + x;
            let [up, down] = ["mlp.lin1", "mlp.lin2"].map(name);
            x = self.ffn([&up, "", &down], self.norm(Norm::Layer, &name("post_ln"), attended), self.act) + attended;
        }
        let first = |x: Node<'g>| x.permute([2, 0, 1, 3]).cont();
        let last = |x: Node<'g>| x.permute([1, 2, 0, 3]).cont();
        let x = last(self.conv_f32("v.sam.neck.0", first(x), Window::new(1, 0)));
        let x = first(self.norm(Norm::Layer, "v.sam.neck.1", x));
        let x = last(self.conv_f32("v.sam.neck.2", x, Window::new(1, 1)));
        let x = first(self.norm(Norm::Layer, "v.sam.neck.3", x));
        let x = self.conv_f32("v.sam.net_2", x, Window::new(2, 1));
        self.conv_f32("v.sam.net_3", x, Window::new(2, 1)).expand()
    }

    /// Attention with relative positions.
    fn sam_attention(&self, il: u64, x: Node<'g>, n_head: u64, places: Node<'g>) -> Node<'g> {
        let name = |part: &str| format!("v.sam.blk.{il}.{part}");
        let [d, w, h, n] = x.shape();
        let d_head = d / n_head.max(1);
        let qkv = self.linear(&name("attn.qkv"), x).reshape(&[d, 3, w * h, n]);
        let part = |i: u64| {
            let nb = qkv.strides();
            qkv.view(&[d, w * h, n], &[nb[2], nb[3]], i * nb[1]).cont().reshape(&[d_head, n_head, w * h, n])
        };
        let [q, k, v] = [part(0), part(1), part(2)];
        let relative = |part: &str, size: u64| Self::relative(self.weight(&name(part)), places, size);
        let (columns, rows) = (relative("attn.pos_w", w), relative("attn.pos_h", h));
        let by_place = q.permute(HEADS).cont().reshape(&[d_head, w, h, n * n_head]);
        let columns = columns.mm(by_place.permute(HEADS).cont()).permute(HEADS).cont();
        let columns = columns.reshape(&[w, 1, w * h, n_head * n]).repeat(&[w, h, w * h, n_head * n]);
        let rows = rows.mm(by_place).reshape(&[1, h, w * h, n_head * n]);
        let mask = (columns + rows).reshape(&[w * h, w * h, n_head, n]);
        let mask = if self.flash_attn { mask.cast(f16()) } else { mask };
        self.attn(&name("attn.out"), [q, k, v], Some(mask), None).cont().reshape(&[d, w, h, n])
    }

    /// A row for each pair of places (`get_rel_pos`).
    fn relative(table: Node<'g>, places: Node<'g>, size: u64) -> Node<'g> {
        let distances = (2 * size).saturating_sub(1);
        let [d, n, a, b] = table.shape();
        let table = if n == distances {
            table
        } else {
            let flat = table.permute([1, 0, 2, 3]).cont().reshape(&[n, 1, d * a * b]);
            let resized = flat.resized(&[distances, 1, d * a * b]).reshape(&[distances, d, a, b]);
            resized.permute([1, 0, 2, 3]).cont()
        };
        table.get_rows(places.reshape(&[size * size])).reshape(&[d, size, size])
    }

    /// Windows of `n` by `n`, as if they were images (`window_partition`).
    fn windows(x: Node<'g>, n: u64) -> Node<'g> {
        let [d, w, h, images] = x.shape();
        let (wide, high) = (w.next_multiple_of(n), h.next_multiple_of(n));
        let x = if (wide, high) == (w, h) { x } else { x.pad_nd([0, wide - w, high - h, 0]) };
        let x = x.reshape(&[d * n, wide / n, n, high / n * images]).permute(HEADS).cont();
        x.reshape(&[d, n, n, (wide / n) * (high / n) * images])
    }

    /// The image that they are parts of (`window_unpartition`).
    fn without_windows(x: Node<'g>, [w, h]: [u64; 2], n: u64) -> Node<'g> {
        let d = x.ne(0);
        let (wide, high) = (w.next_multiple_of(n), h.next_multiple_of(n));
        let images = x.ne(3) / ((wide / n) * (high / n)).max(1);
        let x = x.reshape(&[d * n, n, wide / n, high / n * images]).permute(HEADS).cont();
        let x = x.reshape(&[d, wide, high, images]);
        x.view(&[d, w, h, images], &x.strides()[1..], 0).cont()
    }

    pub(super) fn deepseekocr(&self) -> Node<'g> {
        let (d, size) = (self.e.n_embd, self.nx);
        // The image that is reserved for is a row of one tile.
        let raw = self.raw().reshape(&[size * size, 1, 3]).permute(HEADS).cont().reshape(&[size, size, 3]);
        let seen = self.sam(raw);
        let [w, h, c, _] = seen.shape();
        let n = w * h;
        let rows = seen.reshape(&[n, c]).permute([1, 0, 2, 3]).cont();
        let mut table = self.positions();
        let (side, stored) = (n.isqrt(), (table.ne(1) - 1).isqrt());
        let mut n_pos = table.ne(1);
        if side != stored {
            let row = table.row_bytes(table.ne(0));
            let old = table.view(&[table.ne(0), stored * stored], &[row], 0);
            let class = table.view(&[table.ne(0), 1], &[row], stored * stored);
            table = old.resized(&[side, side, table.ne(0)]).reshape(&[d, side * side]).concat(class, 1);
            n_pos = side * side + 1;
        }
        let rows = self.need("v.class_embd").repeat(&[d, 1]).concat(rows, 1);
        let pos = Some(table.get_rows(self.counted(n_pos)));
        let read = self.vit(rows, n_pos, Norm::Layer, Act::Gelu, &Vit { pos, ..Vit::default() }).expand();
        let seen = seen.permute([1, 2, 0, 3]).cont();
        let seen = seen.reshape(&[seen.ne(0), n]);
        let nb = read.strides();
        let read = read.view(&[d, n, 1], &[nb[1], nb[2]], nb[1]);
        let rows = self.linear("mm.model.fc", read.concat(seen, 0));
        let out = rows.ne(0);
        let grid = rows.reshape(&[out * side, side, 1]).permute(HEADS).cont().reshape(&[out, side, side]);
        let lines = self.need("v.image_newline").repeat(&[out, 1, side]);
        grid.concat(lines, 1).reshape(&[out, (side + 1) * side])
    }

    pub(super) fn deepseekocr2(&self) -> Node<'g> {
        let seen = self.sam(self.raw());
        let [w, h, c, n] = seen.shape();
        let rows = seen.reshape(&[w * h, c, n]).permute([1, 0, 2, 3]).cont();
        let (name, queries) = if w * h == 144 { ("v.resample_query_768", 144) } else { ("v.resample_query_1024", 256) };
        let query = self.weight(name).cast(f32());
        let rows = rows.concat(query.repeat(&[query.ne(0), queries, n]), 1);
        let n_pos = rows.ne(1);
        let mask = self.input(&[n_pos, n_pos]);
        let positions = self.counted(n_pos);
        let turn = |x: Node<'g>| x.rope(positions, None);
        let masks = |_| Some(mask);
        let vit = Vit { turn: Some(&turn), mask: Some(&masks), ..Vit::default() };
        let read = self.vit(rows, n_pos, Norm::Rms, Act::Silu, &vit);
        let nb = read.strides();
        let last = read.view(&[read.ne(0), queries, n], &[nb[1], nb[2]], nb[1] * (n_pos - queries)).cont().expand();
        self.linear("mm.model.fc", last)
    }
}
