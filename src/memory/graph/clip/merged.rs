//! Encoders of images of any size whose patches are merged two by two, with positions in sections.
//!
//! Source: `tools/mtmd/models/qwen2vl.cpp`, `exaone4_5.cpp`, `qwen3vl.cpp`, `ling3vl.cpp`, `glm4v.cpp`, `paddleocr.cpp`,
//! `dotsocr.cpp`, `mimovl.cpp`, `minimax-m3.cpp`, `youtuvl.cpp`, llama.cpp b11434.

use super::{Act, Clip, Node, Norm, Vit, Window, f16, i32};

impl<'g> Clip<'g> {
    /// Pixels to patches by two kernels, one for each of two frames (`build_inp_with_temporal_merge`), in squares of `n`.
    fn two_frames(&self, n: u64) -> Node<'g> {
        let (raw, window) = (self.raw(), self.patch_window());
        let first = self.weight("v.patch_embd").conv_2d(raw, window);
        let second = self.need("v.patch_embd.weight.1").conv_2d(raw, window);
        self.by_square((first + second).permute([1, 2, 0, 3]), n)
    }

    /// The learned positions in the order of squares.
    fn square_positions(&self) -> Node<'g> {
        self.by_square(self.resized_positions(), 2)
    }

    fn mask(&self, n: u64) -> Node<'g> {
        let mask = self.input(&[n, n]);
        if self.flash_attn { mask.cast(f16()) } else { mask }
    }

    /// Groups of four rows in the order of `ids`.
    fn reordered(rows: Node<'g>, ids: Node<'g>) -> Node<'g> {
        let (d, n) = (rows.ne(0), rows.ne(1));
        rows.reshape(&[d * 4, n / 4]).get_rows(ids).reshape(&[d, n])
    }

    /// Queries, keys and values of a fused projection.
    fn split_qkv(&self, rows: Node<'g>, d: u64, [n, n_kv]: [u64; 2]) -> [Node<'g>; 3] {
        let part = |n_head: u64, at: u64| rows.view(&[d, n_head, self.n_patches], &[4 * d, rows.nb(1)], 4 * d * at);
        [part(n, 0), part(n_kv, n), part(n_kv, n + n_kv)]
    }

    pub(super) fn qwen2vl(&self) -> Node<'g> {
        let (e, kind) = (self.e, self.e.kind.name);
        let n_pos = self.n_patches;
        let norm = if kind == "qwen2vl_merger" { Norm::Layer } else { Norm::Rms };
        let pattern = self.e.number("vision.n_wa_pattern").unwrap_or(0);
        let mut rows = self.two_frames(2);
        let positions = self.ids(4 * n_pos);
        if kind != "exaone4_5" && self.maybe("v.pre_ln").is_some() {
            rows = self.norm(norm, "v.pre_ln", rows);
        }
        let mask = (pattern > 0).then(|| self.mask(n_pos));
        if pattern > 0 {
            rows = Self::reordered(rows, self.ids(n_pos / 4));
        }
        for il in self.blocks() {
            let name = |name: &str| self.at(il, name);
            let normed = self.norm(norm, &name("ln1"), rows);
            let [q, k, v] = if kind == "exaone4_5" {
                self.split_qkv(self.linear(&name("attn_qkv"), normed), e.d_head, [e.n_head, e.n_head_kv])
            } else {
                let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), normed));
                qkv.map(|x| x.reshape(&[e.d_head, e.n_head, n_pos]))
            };
            let qkv = [q.rope(positions, None), k.rope(positions, None), v];
            let mask = mask.filter(|_| !(il + 1).is_multiple_of(pattern));
            let attended = self.attn(&name("attn_out"), qkv, mask, None) + rows;
            rows = attended + self.block_ffn(il, self.norm(norm, &name("ln2"), attended), self.act);
        }
        if self.maybe("v.post_ln").is_some() {
            rows = self.norm(norm, "v.post_ln", rows);
        }
        let rows = self.mlp("mm.0", "mm.2", rows.reshape(&[e.n_embd * 4, n_pos / 4]));
        if pattern == 0 {
            return rows;
        }
        let (d, n) = (e.projection_dim, n_pos / 4);
        rows.reshape(&[d, n]).get_rows(self.ids(n)).reshape(&[d, n])
    }

    pub(super) fn qwen3vl(&self) -> Node<'g> {
        let (e, n_pos) = (self.e, self.n_patches);
        let patches = self.biased("v.patch_embd", self.two_frames(2));
        let positions = self.ids(4 * n_pos);
        let turn = |x: Node<'g>| x.rope(positions, None);
        if e.kind.name == "ling3vl" {
            let vit = Vit { pos: Some(self.square_positions()), turn: Some(&turn), ..Vit::default() };
            let rows = self.vit(patches, n_pos, Norm::Layer, self.act, &vit);
            let rows = self.norm(Norm::Layer, "mm.input_norm", rows);
            return self.mlp("mm.0", "mm.2", rows.reshape(&[e.n_embd * 4, n_pos / 4]));
        }
        let mut rows = patches + self.square_positions();
        if self.maybe("v.pre_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.pre_ln", rows);
        }
        let squares = e.n_merge * e.n_merge;
        let mut features: Option<Node<'g>> = None;
        for il in self.blocks() {
            let name = |name: &str| self.at(il, name);
            let qkv = self.linear(&name("attn_qkv"), self.norm(Norm::Layer, &name("ln1"), rows));
            let part = |i: u64| qkv.view(&[e.d_head, e.n_head, n_pos], &[4 * e.d_head, qkv.nb(1)], 4 * i * e.n_embd);
            let qkv = [turn(part(0)), turn(part(1)), part(2)];
            let attended = self.attn(&name("attn_out"), qkv, None, None) + rows;
            rows = attended + self.block_ffn(il, self.norm(Norm::Layer, &name("ln2"), attended), self.act);
            let deep = |part: &str| format!("v.deepstack.{il}.{part}");
            if self.maybe(&deep("fc1")).is_some() {
                let merged = rows.reshape(&[e.n_embd * squares, n_pos / squares]);
                let feature = self.mlp(&deep("fc1"), &deep("fc2"), self.norm(Norm::Layer, &deep("norm"), merged));
                features = Some(features.map_or(feature, |all| all.concat(feature, 0)));
            }
        }
        if self.maybe("v.post_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.post_ln", rows);
        }
        let rows = self.mlp("mm.0", "mm.2", rows.reshape(&[e.n_embd * 4, n_pos / 4]));
        features.map_or(rows, |features| rows.concat(features, 0))
    }

    pub(super) fn glm4v(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let positions = self.ids(4 * self.n_patches);
        let mut rows = self.two_frames(2) + self.need("v.patch_embd.bias");
        if self.maybe("v.norm_embd").is_some() {
            rows = self.norm(Norm::Rms, "v.norm_embd", rows);
        }
        let pos = self.tensor("v.position_embd.weight").map(|_| self.square_positions());
        let turn = |x: Node<'g>| x.rope(positions, None);
        let vit = Vit { pos, turn: Some(&turn), ..Vit::default() };
        let rows = self.vit(rows, self.n_patches, Norm::Rms, self.act, &vit);
        let n_out = self.n_patches / n / n;
        let squares = rows.reshape(&[e.n_embd, n, n, n_out]).permute([2, 0, 1, 3]).cont();
        let merged = self.weight("mm.patch_merger").conv_2d(squares, Window::new(n, 0));
        let rows = self.biased("mm.patch_merger", merged.reshape(&[merged.ne(2), n_out]));
        let rows = self.norm(Norm::Layer, "mm.post_norm", self.mm("mm.model.fc", rows)).gelu();
        self.ffn(["mm.up", "mm.gate", "mm.down"], rows, self.act)
    }

    pub(super) fn paddleocr(&self) -> Node<'g> {
        let is_dots = self.e.kind.name != "paddleocr";
        let positions = self.ids(4 * self.n_patches);
        let turn = |x: Node<'g>| x.rope(positions, None);
        let (norm, pos) = if is_dots { (Norm::Rms, None) } else { (Norm::Layer, Some(self.resized_positions())) };
        let vit = Vit { pos, turn: Some(&turn), ..Vit::default() };
        let rows = self.vit(self.patches(), self.n_patches, norm, self.act, &vit);
        let rows = self.merge_patches(self.norm(Norm::Layer, "mm.input_norm", rows), self.e.n_merge);
        if is_dots { self.mlp("mm.0", "mm.2", rows) } else { self.ffn(["mm.1", "", "mm.2"], rows, self.act) }
    }

    pub(super) fn mimovl(&self) -> Node<'g> {
        let (e, n_pos) = (self.e, self.n_patches);
        let units = n_pos / (e.n_merge * e.n_merge);
        let modes = self.numbers("vision.wa_pattern_mode");
        let d = self.weight(&self.at(0, "attn_qkv")).ne(1) / (e.n_head + 2 * e.n_head_kv).max(1);
        let mut rows = self.two_frames(2);
        let (by_row, by_column) = (self.ids(4 * n_pos), self.ids(4 * n_pos));
        let order = self.input(&[units]);
        let (to_columns, to_rows) = (order.cast(i32()), order.argsort());
        let mask = self.mask(n_pos);
        let reorder = |rows: Node<'g>, ids: Node<'g>| {
            rows.reshape(&[e.n_embd * (n_pos / units.max(1)), units]).get_rows(ids).reshape(&[e.n_embd, n_pos])
        };
        let mut before = -1;
        for (il, mode) in self.blocks().zip(modes) {
            if mode == 1 && before != 1 {
                rows = reorder(rows, to_columns);
            } else if mode != 1 && before == 1 {
                rows = reorder(rows, to_rows);
            }
            let name = |name: &str| self.at(il, name);
            let qkv = self.linear(&name("attn_qkv"), self.norm(Norm::Rms, &name("ln1"), rows));
            let [q, k, v] = self.split_qkv(qkv, d, [e.n_head, e.n_head_kv]);
            let positions = if mode == 1 { by_column } else { by_row };
            let qkv = [q.rope(positions, None), k.rope(positions, None), v];
            let windowed = mode != -1;
            let sinks = windowed.then(|| self.need(&name("attn_sinks")));
            let attended = self.attn(&name("attn_out"), qkv, windowed.then_some(mask), sinks) + rows;
            rows = attended + self.block_ffn(il, self.norm(Norm::Rms, &name("ln2"), attended), self.act);
            before = mode;
        }
        if before == 1 {
            rows = reorder(rows, to_rows);
        }
        let rows = self.norm(Norm::Layer, "v.post_ln", rows).reshape(&[e.n_embd * (n_pos / units.max(1)), units]);
        self.mm("mm.2", self.mm("mm.0", rows).gelu())
    }

    pub(super) fn minimax_m3(&self) -> Node<'g> {
        let squares = self.e.n_merge * self.e.n_merge;
        let patches = self.two_frames(self.e.n_merge);
        let (pos_h, pos_w) = (self.ids(self.n_patches), self.ids(self.n_patches));
        // Each over half of a head (`build_rope_2d`).
        let turn = |x: Node<'g>| x.rope(pos_h, None).rope(pos_w, None);
        let vit = Vit { turn: Some(&turn), ..Vit::default() };
        let rows = self.mlp("mm.1", "mm.2", self.vit(patches, self.n_patches, Norm::Layer, Act::Gelu, &vit));
        let rows = rows.reshape(&[rows.ne(0) * squares, self.n_patches / squares]);
        self.mlp("mm.merger.fc1", "mm.merger.fc2", rows)
    }

    pub(super) fn youtuvl(&self) -> Node<'g> {
        let (e, p, n_pos) = (self.e, self.e.patch_size, self.n_patches);
        let (wide, high) = (self.px / 2, self.py / 2);
        let full: Vec<i64> = self.numbers("vision.wa_layer_indexes");
        let x = self.raw().reshape(&[wide * 2 * p, 2 * p, high, 3]).permute([1, 2, 3, 0]);
        let x = x.cont_nd(&[2 * p * 3, wide, 2 * p, high]).permute([0, 2, 1, 3]);
        let x = x.cont_nd(&[2 * p * 3, p, 2, high * wide]).permute([1, 0, 2, 3]);
        let x = x.cont_nd(&[p, 3, p, high * wide * 4]).permute([2, 0, 1, 3]);
        let patches = self.linear("v.patch_embd", x.cont_nd(&[3 * p * p, high * wide * 4]));
        let mut rows = patches.reshape(&[e.n_embd, n_pos]);
        let positions = self.ids(4 * n_pos);
        if self.maybe("v.pre_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.pre_ln", rows);
        }
        let mask = (!full.is_empty()).then(|| self.mask(n_pos));
        if mask.is_some() {
            rows = Self::reordered(rows, self.ids(n_pos / 4));
        }
        for il in self.blocks() {
            let name = |name: &str| self.at(il, name);
            let normed = self.norm(Norm::Layer, &name("ln1"), rows);
            let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), normed));
            let [q, k, v] = [q, k, v].map(|x| x.reshape(&[e.d_head, e.n_head, n_pos]));
            let mask = mask.filter(|_| !full.contains(&i64::try_from(il).unwrap_or(-1)));
            let qkv = [q.rope(positions, None), k.rope(positions, None), v];
            let attended = self.attn(&name("attn_out"), qkv, mask, None) + rows;
            let [up, down] = ["ffn_up", "ffn_down"].map(name);
            let fed = self.ffn([&up, "", &down], self.norm(Norm::Layer, &name("ln2"), attended), self.act);
            rows = attended + fed;
        }
        if mask.is_some() {
            rows = Self::reordered(rows, self.ids(n_pos / 4));
        }
        if self.maybe("v.post_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.post_ln", rows);
        }
        let rows = rows.norm(Norm::Rms, self.maybe("mm.input_norm"), None);
        self.mlp("mm.0", "mm.2", rows.reshape(&[e.n_embd * 4, n_pos / 4]))
    }
}
