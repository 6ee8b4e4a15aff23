//! Encoders of images of one size.
//!
//! Source: `tools/mtmd/models/siglip.cpp`, `llava.cpp`, `internvl.cpp`, `nemotron-v2-vl.cpp`, `llama4.cpp`, `cogvlm.cpp`,
//! `minicpmv.cpp`, llama.cpp b11434.

use super::{Act, Clip, Glu, HEADS, Node, Norm, Unary, Vit, Window, f16, f32};

impl<'g> Clip<'g> {
    pub(super) fn siglip(&self) -> Node<'g> {
        let (e, kind) = (self.e, self.e.kind.name);
        let pos = if matches!(kind, "lfm2" | "phi4") {
            Some(self.resized_positions())
        } else {
            self.tensor("v.position_embd.weight")
        };
        let rows = self.vit(self.patches(), self.n_patches, Norm::Layer, self.act, &Vit { pos, ..Vit::default() });
        match kind {
            "gemma3" => {
                let grid = rows.transpose().cont_nd(&[self.px, self.px, e.n_embd]).pool_2d(e.n_merge);
                let side = grid.ne(0);
                let rows = grid.reshape(&[side * side, e.n_embd]).transpose().cont().rms();
                let rows = rows * self.weight("mm.soft_emb_norm");
                self.weight("mm.input_projection").transpose().cont().mm(rows)
            }
            "idefics3" => self.mm("mm.model.fc", self.merge_patches(rows, e.n_merge)),
            "lfm2" => {
                let merged = self.merge_patches(rows, e.n_merge);
                let weight = self.maybe("mm.input_norm");
                let rows = weight.map_or(merged, |weight| merged.norm(Norm::Layer, Some(weight), None));
                self.mlp("mm.1", "mm.2", self.biased("mm.input_norm", rows))
            }
            "janus_pro" => self.ffn(["mm.0", "", "mm.1"], rows, self.act),
            _ => self.mlp("mm.0", "mm.2", rows),
        }
    }

    /// The layers whose outputs are wanted.
    fn feature_layers(&self) -> Vec<u64> {
        self.numbers("vision.feature_layer").into_iter().filter_map(|il| u64::try_from(il).ok()).collect()
    }

    pub(super) fn llava(&self) -> Node<'g> {
        let (e, kind) = (self.e, self.e.kind.name);
        let class = self.tensor("v.class_embd");
        let n_pos = self.n_patches + u64::from(class.is_some());
        let wanted = self.feature_layers();
        let last = if kind == "adapter" { e.n_layer } else { e.n_layer.saturating_sub(1) };
        let last = wanted.iter().copied().max().unwrap_or(last).min(e.n_layer);
        let patches = self.patches();
        let rows = class.map_or(patches, |class| patches.concat(class, 1));
        let mut rows = rows + self.positions().get_rows(self.ids(n_pos));
        if self.maybe("v.pre_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.pre_ln", rows);
        }
        let mut kept = Vec::new();
        for il in self.blocks().take_while(|il| *il < last) {
            if wanted.contains(&il) {
                kept.push(rows);
            }
            let name = |name: &str| self.at(il, name);
            let normed = self.norm(Norm::Layer, &name("ln1"), rows);
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), normed));
            let qkv = qkv.map(|x| x.reshape(&[e.d_head, e.n_head, n_pos]));
            let attended = self.attn(&name("attn_out"), qkv, None, None) + rows;
            rows = attended + self.block_ffn(il, self.norm(Norm::Layer, &name("ln2"), attended), self.act);
        }
        if self.maybe("v.post_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.post_ln", rows);
        }
        if wanted.contains(&last) {
            kept.push(rows);
        }
        let rows = kept.into_iter().reduce(|all, one| all.concat(one, 0)).unwrap_or(rows);
        if kind == "adapter" {
            return self.glm_edge(rows);
        }
        let ne = rows.shape();
        let rows = rows.reshape(&[ne[0], ne[1]]).get_rows(self.ids(self.n_patches));
        match kind {
            // Yi's, with norms between.
            "mlp" if self.maybe("mm.3").is_some() => {
                let hidden = self.norm(Norm::Layer, "mm.1", self.linear("mm.0", rows)).gelu();
                self.norm(Norm::Layer, "mm.4", self.linear("mm.3", hidden))
            }
            "mlp" => {
                let hidden = self.linear("mm.0", rows).gelu();
                if self.maybe("mm.2").is_some() { self.linear("mm.2", hidden) } else { hidden }
            }
            "ldp" => self.mobile_vlm(rows),
            _ => self.mobile_vlm_2(rows),
        }
    }

    fn glm_edge(&self, rows: Node<'g>) -> Node<'g> {
        let side = rows.ne(1).isqrt();
        let flat = rows.permute([1, 0, 2, 3]);
        let grid = flat.cont_nd(&[side, side, flat.ne(1)]);
        let grid = self.weight("adapter.conv").conv_2d(grid, Window::new(2, 0));
        let ne = grid.shape();
        let rows = grid.reshape(&[ne[0] * ne[1], ne[2]]).permute([1, 0, 2, 3]).cont();
        let rows = self.mm("adapter.linear.linear", self.biased("adapter.conv", rows));
        let normed = self.norm(Norm::Layer, "adapter.linear.norm1", rows);
        let x = normed.in_place(Unary::Gelu);
        let gate = self.mm("adapter.linear.gate", x);
        let hidden = gate.glu_split(Glu::Swiglu, self.mm("adapter.linear.dense_h_to_4h", x));
        let rows = self.mm("adapter.linear.dense_4h_to_h", hidden);
        self.need("adapter.boi").concat(rows, 1).concat(self.need("adapter.eoi"), 1)
    }

    /// `[channels, positions]` as a grid of 24 by 24.
    fn grid_of_24(rows: Node<'g>) -> Node<'g> {
        let flat = rows.permute([1, 0, 2, 3]);
        flat.cont_nd(&[24, 24, flat.ne(1), flat.ne(2)])
    }

    fn mobile_vlm(&self, rows: Node<'g>) -> Node<'g> {
        let grid = Self::grid_of_24(self.linear("mm.model.mlp.3", self.linear("mm.model.mlp.1", rows).gelu()));
        let first = self.mobile_block(1, grid, 1);
        let grid = grid + first.permute([2, 0, 1, 3]).cont();
        let rows = self.mobile_block(2, grid, 2);
        let ne = rows.shape();
        rows.reshape(&[ne[0], ne[1] * ne[2], ne[3]])
    }

    /// A block of MobileNet, channels first at its end.
    fn mobile_block(&self, n: u64, grid: Node<'g>, stride: u64) -> Node<'g> {
        let name = |part: &str| format!("mm.model.mb_block.{n}.block.{part}");
        let grid = self.weight(&name("0.0")).conv_2d_dw(grid, Window::new(stride, 1));
        let normed = self.norm(Norm::Layer, &name("0.1"), grid.permute([1, 2, 0, 3]).cont());
        let grid = normed.permute([2, 0, 1, 3]).cont().gelu();
        let ne = grid.shape();
        let pooled = grid.pool(ne[0], ne[1]);
        let p = pooled.shape();
        let pooled = pooled.reshape(&[p[0] * p[1] * p[2], p[3]]);
        let gate = self.linear(&name("1.fc2"), self.linear(&name("1.fc1"), pooled).relu()).gelu();
        let grid = grid * gate.reshape(&[1, 1, gate.ne(0), gate.ne(1)]);
        let ne = grid.shape();
        let rows = self.mm(&name("2.0"), grid.reshape(&[ne[0] * ne[1], ne[2], ne[3]]).permute([1, 0, 2, 3]).cont());
        let rows = rows.reshape(&[rows.ne(0), ne[0], ne[1], rows.ne(3)]);
        self.norm(Norm::Layer, &name("2.1"), rows)
    }

    fn mobile_vlm_2(&self, rows: Node<'g>) -> Node<'g> {
        let hidden = self.linear("mm.model.mlp.2", self.linear("mm.model.mlp.0", rows).gelu());
        let grid = Self::grid_of_24(hidden).pool_2d(2);
        let peg = self.weight("mm.model.peg.0").conv_2d_dw(grid, Window::new(1, 1)).permute([1, 2, 0, 3]).cont();
        let rows = self.biased("mm.model.peg.0", peg) + grid.permute([1, 2, 0, 3]).cont();
        let ne = rows.shape();
        rows.reshape(&[ne[0], ne[1] * ne[2], ne[3]])
    }

    pub(super) fn internvl(&self) -> Node<'g> {
        let (e, n) = (self.e, self.e.n_merge);
        let class = self.need("v.class_embd");
        let patches = self.patches().concat(class.repeat(&[class.ne(0), 1]), 1);
        let norm = if (e.n_embd, e.n_layer) == (3200, 45) { Norm::Rms } else { Norm::Layer };
        let vit = Vit { pos: Some(self.positions()), ..Vit::default() };
        let rows = self.vit(patches, self.n_patches + 1, norm, self.act, &vit);
        let rows = rows.view(&[e.n_embd, self.n_patches, 1], &[rows.nb(1), rows.nb(2)], 0).cont();
        let wide = rows.reshape(&[e.n_embd * n, self.py / n, self.px]).permute(HEADS);
        let grid = wide.cont_nd(&[e.n_embd * n * n, self.py / n, self.px / n]).permute(HEADS);
        let ne = grid.shape();
        let rows = grid.cont_nd(&[ne[0], ne[1] * ne[2], ne[3]]);
        self.mlp("mm.model.mlp.1", "mm.model.mlp.3", self.norm(Norm::Layer, "mm.model.mlp.0", rows))
    }

    pub(super) fn nemotron(&self) -> Node<'g> {
        let class = self.need("v.class_embd");
        let rows = class.concat(self.patches() + self.positions(), 1);
        let registers = class.ne(1);
        let rows = self.vit(rows, self.n_patches + registers, Norm::Layer, self.act, &Vit::default());
        let merged = self.merge_patches(rows.rows_from(registers, self.n_patches), self.e.n_merge);
        let rows = merged.norm(Norm::Rms, self.maybe("mm.model.mlp.0"), None);
        self.ffn(["mm.model.mlp.1", "", "mm.model.mlp.3"], rows, Act::ReluSqr)
    }

    pub(super) fn llama4(&self) -> Node<'g> {
        let (e, n, p) = (self.e, self.e.n_merge, self.e.patch_size);
        let n_pos = self.n_patches + 1;
        let (pos_h, pos_w) = (self.ids(n_pos), self.ids(n_pos));
        let weight = self.weight("v.patch_embd");
        let patches = weight.reshape(&[p, p, 3, e.n_embd]).im2col(self.raw(), self.patch_window(), f32());
        let rows = weight.mm(patches).reshape(&[e.n_embd, self.n_patches]).concat(self.need("v.class_embd"), 1);
        // Each over half of a head (`build_rope_2d`).
        let turn = |x: Node<'g>| x.rope(pos_w, None).rope(pos_h, None);
        let vit = Vit { pos: Some(self.positions()), turn: Some(&turn), ..Vit::default() };
        let rows = self.vit(rows, n_pos, Norm::Layer, self.act, &vit).rows_from(0, self.n_patches);
        let wide = rows.reshape(&[e.n_embd * n, self.px / n, self.py]).permute(HEADS);
        let grid = wide.cont_nd(&[e.n_embd * n * n, self.px / n, self.py / n]);
        let rows = grid.cont_nd(&[e.n_embd * n * n, self.n_patches / n / n]);
        let hidden = self.mm("mm.model.mlp.2", self.mm("mm.model.mlp.1", rows).gelu()).gelu();
        self.mm("mm.model.fc", hidden)
    }

    pub(super) fn cogvlm(&self) -> Node<'g> {
        let (e, n_pos) = (self.e, self.n_patches + 1);
        let mut rows = self.patches().concat(self.need("v.class_embd"), 1) + self.positions();
        for il in self.blocks() {
            let name = |name: &str| self.at(il, name);
            let qkv = self.linear(&name("attn_qkv"), rows);
            let part = |i: u64| qkv.view(&[e.d_head, e.n_head, n_pos], &[4 * e.d_head, qkv.nb(1)], 4 * i * e.n_embd);
            let attended = self.attn(&name("attn_out"), [part(0), part(1), part(2)], None, None);
            let attended = self.norm(Norm::Layer, &name("ln1"), attended) + rows;
            let fed = self.block_ffn(il, attended, self.act);
            rows = self.norm(Norm::Layer, &name("ln2"), fed) + attended;
        }
        let rows = self.mm("mm.model.fc", rows.rows_from(0, self.n_patches));
        let rows = self.norm(Norm::Layer, "mm.post_fc_norm", rows);
        let x = rows.in_place(Unary::Gelu);
        let up = self.mm("mm.up", x);
        let rows = self.mm("mm.down", self.mm("mm.gate", x).glu_split(Glu::Swiglu, up));
        self.need("v.boi").concat(rows, 1).concat(self.need("v.eoi"), 1)
    }

    /// A transformer, and a resampler: another one of a few queries.
    pub(super) fn minicpmv(&self) -> Node<'g> {
        let n_pos = self.n_patches;
        let n_embd = self.weight("resampler.proj").ne(0);
        let omega = self.input(&[n_embd / 4]);
        let (pos_h, pos_w) = (self.input(&[1, n_pos]), self.input(&[1, n_pos]));
        let pos = Some(self.positions().get_rows(self.ids(n_pos)));
        let rows = self.vit(self.patches(), n_pos, Norm::Layer, self.act, &Vit { pos, ..Vit::default() });
        let q = self.norm(Norm::Layer, "resampler.ln_q", self.need("resampler.query"));
        let v = self.norm(Norm::Layer, "resampler.ln_kv", self.mm("resampler.kv", rows));
        let theta = omega.repeat(&[omega.ne(0), n_pos]);
        let wave = |pos: Node<'g>| {
            let angle = theta * pos;
            angle.plain().concat(angle.plain(), 0)
        };
        let k = v + wave(pos_w).concat(wave(pos_h), 0);
        let (d_head, n_head) = (128, n_embd / 128);
        let n_query = match self.e.number("minicpmv_query_num") {
            Some(n) if n > 0 => n,
            _ if matches!(self.e.number("minicpmv_version"), Some(3..=6 | 100_045)) => 64,
            _ => 96,
        };
        let project = |part: &str, x: Node<'g>, n: u64| {
            self.linear(&format!("resampler.attn.{part}"), x).reshape(&[d_head, n_head, n])
        };
        let qkv = [project("q", q, n_query), project("k", k, n_pos), project("v", v, n_pos)];
        let rows = self.attn("resampler.attn.out", qkv, None, None);
        self.mm("resampler.proj", self.norm(Norm::Layer, "resampler.ln_post", rows))
    }

    pub(super) fn minicpmv4_6(&self) -> Node<'g> {
        let e = self.e;
        let (n_pos, is_4x) = (self.n_patches, e.n_merge == 2);
        let n_half = (self.px / 2) * (self.py / 2);
        let n_out = if is_4x { n_half } else { (self.px / 4) * (self.py / 4) };
        let pos = self.positions().get_rows(self.ids(n_pos));
        let mut rows = self.patches() + pos;
        if self.maybe("v.pre_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.pre_ln", rows);
        }
        if is_4x {
            rows = self.minicpm_layers(rows, 0..e.n_layer, n_pos);
        } else {
            let insert = self.numbers("vision.wa_layer_indexes").first().copied().unwrap_or(0);
            let after = u64::try_from(insert).unwrap_or(0) + 1;
            rows = self.minicpm_layers(rows, 0..after.min(e.n_layer), n_pos);
            rows = self.minicpm_window(rows, n_pos);
            let [a, b, c, d] = [0; 4].map(|_| rows.get_rows(self.ids(n_half)));
            let mean = (a + b + c + d).scale();
            let normed = self.norm(Norm::Layer, "v.vit_merger.ds_ln", a.concat(b, 0).concat(c, 0).concat(d, 0));
            rows = self.mlp("v.vit_merger.ds_ffn_up", "v.vit_merger.ds_ffn_down", normed) + mean;
            rows = self.minicpm_layers(rows, after..e.n_layer, n_half);
        }
        if self.maybe("v.post_ln").is_some() {
            rows = self.norm(Norm::Layer, "v.post_ln", rows);
        }
        let [a, b, c, d] = [0; 4].map(|_| rows.get_rows(self.ids(n_out)));
        let normed = self.norm(Norm::Layer, "mm.input_norm", a.concat(b, 0).concat(c, 0).concat(d, 0));
        self.mlp("mm.up", "mm.down", normed)
    }

    fn minicpm_layers(&self, mut rows: Node<'g>, layers: std::ops::Range<u64>, n_pos: u64) -> Node<'g> {
        let e = self.e;
        for il in layers.take_while(|_| !self.draft.is_faulty()) {
            let name = |name: &str| self.at(il, name);
            let scaled = |part: &str, x: Node<'g>| self.maybe(&name(part)).map_or(x, |scale| x * scale);
            let normed = self.norm(Norm::Layer, &name("ln1"), rows);
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), normed));
            let qkv = qkv.map(|x| x.reshape(&[e.d_head, e.n_head, n_pos]));
            let attended = scaled("ls1", self.attn(&name("attn_out"), qkv, None, None)) + rows;
            let fed = self.block_ffn(il, self.norm(Norm::Layer, &name("ln2"), attended), self.act);
            rows = attended + scaled("ls2", fed);
        }
        rows
    }

    /// Attention within windows of four.
    fn minicpm_window(&self, rows: Node<'g>, n_pos: u64) -> Node<'g> {
        let mask = self.input(&[n_pos, n_pos]);
        let mask = if self.flash_attn { mask.cast(f16()) } else { mask };
        let normed = self.norm(Norm::Layer, "v.vit_merger.ln1", rows).get_rows(self.ids(n_pos));
        let qkv = ["q", "k", "v"].map(|part| self.linear(&format!("v.vit_merger.attn_{part}"), normed));
        let qkv = qkv.map(|x| x.reshape(&[self.e.d_head, self.e.n_head, n_pos]));
        let attended = self.attn("v.vit_merger.attn_out", qkv, Some(mask), None);
        attended.get_rows(self.ids(n_pos)) + rows
    }
}
