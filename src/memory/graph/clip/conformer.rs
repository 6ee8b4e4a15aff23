//! Encoders of sound that mix attention with convolutions.
//!
//! Source: `tools/mtmd/models/gemma4a.cpp`, `conformer.cpp`, `parakeet.cpp`, `granite-speech.cpp`, llama.cpp b11434.

use super::{Act, Clip, HEADS, Node, Norm, Op, Unary, Window};

impl<'g> Clip<'g> {
    /// Frames after one another, each a row of its spectrum.
    fn spectrum(&self) -> Node<'g> {
        self.raw().transpose().cont()
    }

    /// Half of what a feed-forward part gives, added.
    fn half_step(x: Node<'g>, fed: Node<'g>) -> Node<'g> {
        x + fed.scale()
    }

    /// The first half of each row times a gate of the second, channels last.
    fn gated(x: Node<'g>) -> Node<'g> {
        let half = x.ne(0) / 2;
        let gate = x.view(&[half, x.ne(1)], &[x.nb(1)], half * x.nb(0)).sigmoid();
        (x.view(&[half, x.ne(1)], &[x.nb(1)], 0) * gate).transpose().cont()
    }

    /// The feed-forward part `ffn_up…`, `ffn_down…` of a block.
    fn fed(&self, il: u64, suffix: &str, x: Node<'g>) -> Node<'g> {
        let [up, down] = ["ffn_up", "ffn_down"].map(|part| self.at(il, &format!("{part}{suffix}")));
        self.ffn([&up, "", &down], x, Act::Silu)
    }

    /// Without biases.
    fn fed_plain(&self, il: u64, suffix: &str, x: Node<'g>) -> Node<'g> {
        let [up, down] = ["ffn_up", "ffn_down"].map(|part| self.at(il, &format!("{part}{suffix}")));
        self.mm(&down, self.mm(&up, x).silu())
    }

    pub(super) fn lfm2a(&self) -> Node<'g> {
        let (e, n) = (self.e, self.nx);
        let n_positions = n.div_ceil(2).div_ceil(2).div_ceil(2) * 2 - 1;
        let pos = self.input(&[512, n_positions]).expand();
        let add = |name: &str, x: Node<'g>| x + self.need(&format!("{name}.bias"));
        let relu = |x: Node<'g>| x.in_place(Unary::Relu);
        let half = Window::new(2, 1);
        let mut x = add("a.conv1d.0", self.weight("a.conv1d.0").conv_2d(self.spectrum(), half));
        for [wide, point] in [["a.conv1d.2", "a.conv1d.3"], ["a.conv1d.5", "a.conv1d.6"]] {
            x = add(wide, self.weight(wide).conv_2d_dw_direct(relu(x), half));
            x = add(point, self.weight(point).conv_2d_direct(x, Window::new(1, 0)));
        }
        let flat = relu(x).permute(HEADS).cont();
        let ne = flat.shape();
        let mut x = self.linear("a.pre_encode.out", flat.reshape(&[ne[0] * ne[1], ne[2]]));
        for il in self.blocks() {
            let name = |part: &str| self.at(il, part);
            let norm = |part: &str, x: Node<'g>| self.norm(Norm::Layer, &name(part), x);
            x = Self::half_step(x, self.fed(il, "", norm("ffn_norm", x)));
            let normed = norm("ln1", x);
            let n_pos = normed.ne(1);
            let heads = |x: Node<'g>| x.reshape(&[e.d_head, e.n_head, x.ne(1)]);
            let q = heads(self.linear(&name("attn_q"), normed));
            let k = heads(self.linear(&name("attn_k"), normed)).permute(HEADS).cont();
            let v = heads(self.linear(&name("attn_v"), normed)).permute([1, 2, 0, 3]).cont();
            let [by_content, by_place] =
                ["pos_bias_u", "pos_bias_v"].map(|bias| (q + self.need(&name(bias))).permute(HEADS));
            let scores = by_content.mm(k).permute([1, 0, 2, 3]).cont();
            let p = heads(self.mm(&name("linear_pos"), pos)).permute(HEADS);
            let places = by_place.mm(p).permute([1, 0, 2, 3]).cont();
            let [len, rows, n_head, _] = places.shape();
            let shifted = places.pad(1).reshape(&[rows, len + 1, n_head]);
            let shifted = shifted.view(&[rows, len, n_head], &shifted.strides()[1..3], shifted.nb(0) * rows);
            let shifted = shifted.cont_nd(&[len, rows, n_head]);
            let places = shifted.view(&[scores.ne(0), rows, n_head], &shifted.strides()[1..3], 0);
            let rows = (scores + places).scale().soft_max().mm(v).permute([2, 0, 1, 3]);
            let rows = rows.cont_nd(&[rows.ne(0) * rows.ne(1), n_pos]);
            x = x + self.linear(&name("attn_out"), rows);
            let wide = Self::gated(self.linear(&name("conv_pw1"), norm("norm_conv", x)));
            let wide = wide.pad(4).op(Op::Roll).pad(4).ssm_conv(self.weight(&name("conv_dw")));
            let wide = wide + self.need(&name("conv_dw.bias"));
            let wide = self.scaled("conv_norm", il, wide).silu();
            x = x + self.linear(&name("conv_pw2"), wide);
            x = Self::half_step(x, self.fed(il, "_1", norm("ffn_norm_1", x)));
            x = norm("ln2", x);
        }
        self.mlp("mm.a.mlp.1", "mm.a.mlp.3", self.norm(Norm::Layer, "mm.a.mlp.0", x))
    }

    /// Times the weight and plus the bias of a folded norm.
    fn scaled(&self, part: &str, il: u64, x: Node<'g>) -> Node<'g> {
        let name = self.at(il, part);
        x * self.weight(&name) + self.need(&format!("{name}.bias"))
    }

    pub(super) fn granite_speech(&self) -> Node<'g> {
        let (e, n) = (self.e, self.nx);
        let [size, kernel] = ["chunk_size", "conv_kernel_size"].map(|key| self.number(&format!("audio.{key}")));
        let chunks = n.div_ceil(size);
        let padded = chunks * size;
        let distances = self.ids(size * size);
        let mask = (n % size > 0).then(|| self.input(&[size, size, 1, chunks]));
        let mut x = self.linear("a.input_projection", self.spectrum());
        let wanted = self.numbers("audio.feature_layer");
        let mut kept = wanted.contains(&0).then_some(x);
        for il in self.blocks() {
            let name = |part: &str| self.at(il, part);
            let norm = |part: &str, x: Node<'g>| self.norm(Norm::Layer, &name(part), x);
            x = Self::half_step(x, self.fed(il, "", norm("ffn_norm", x)));
            let normed = norm("ln1", x);
            let normed = if n < padded { normed.pad_nd([0, padded - n, 0, 0]) } else { normed };
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.mm(&name(part), normed));
            let [q, k, v] = qkv.map(|x| x.reshape(&[e.d_head, e.n_head, size, chunks]));
            let scores = k.permute(HEADS).cont().mm(q.permute(HEADS));
            let places = self.need(&name("attn_rel_pos_emb")).get_rows(distances);
            let places = places.reshape(&[e.d_head, size, size]).reshape(&[e.d_head, size, 1, size]);
            let places = places.mm(q.permute([0, 1, 3, 2])).permute([0, 2, 3, 1]).cont();
            let scores = scores + places;
            let shares = mask.map_or_else(|| scores.soft_max(), |mask| scores.soft_max_masked(mask));
            let rows = v.permute([1, 2, 0, 3]).cont().mm(shares).permute(HEADS).cont_nd(&[e.n_embd, padded]);
            let rows = if n < padded { rows.view(&[e.n_embd, n], &[rows.nb(1)], 0) } else { rows };
            x = x + self.linear(&name("attn_out"), rows);
            let wide = Self::gated(self.linear(&name("conv_pw1"), norm("norm_conv", x)));
            let wide = wide.pad(kernel / 2 * 2).ssm_conv(self.weight(&name("conv_dw")));
            x = x + self.linear(&name("conv_pw2"), self.scaled("conv_norm", il, wide).silu());
            x = Self::half_step(x, self.fed(il, "_1", norm("ffn_norm_1", x)));
            x = norm("ln2", x);
            if wanted.contains(&i64::try_from(il + 1).unwrap_or(-1)) {
                kept = Some(kept.map_or(x, |all| all.concat(x, 0)));
            }
            if il + 1 == e.n_layer / 2 {
                let middle = self.linear("a.enc_ctc_out", x).soft_max();
                x = x + self.linear("a.enc_ctc_out_mid", middle);
            }
        }
        let x = kept.map_or(x, |all| all.concat(x, 0));
        let [window, rate, n_head] =
            ["window_size", "downsample_rate", "head_count"].map(|key| self.number(&format!("audio.projector.{key}")));
        let (queries, windows) = (window / rate, n.div_ceil(window));
        let padded = windows * window;
        let x = if n < padded { x.pad_nd([0, padded - n, 0, 0]) } else { x };
        let encoded = x.reshape(&[x.ne(0), window, windows]);
        let query = self.norm(Norm::Layer, "a.proj_norm", self.need("a.proj_query"));
        let mut rows = query.reshape(&[e.n_embd, queries, 1]).repeat(&[e.n_embd, queries, windows]);
        for i in 0..2 {
            rows = self.qformer_layer("a", i, rows, encoded, n_head, &|x| x);
        }
        self.linear("a.proj_linear", rows.reshape(&[e.n_embd, queries * windows]))
    }

    pub(super) fn gemma4a(&self) -> Node<'g> {
        const CHUNK: u64 = 12;
        const CONTEXT: u64 = 24;
        const PLACES: u64 = 13;
        let e = self.e;
        let mut x = self.spectrum();
        for i in 0..2 {
            let name = format!("a.conv1d.{i}");
            x = self.biased(&name, self.weight(&name).conv_2d(x, Window::new(2, 1)));
            if let Some(weight) = self.maybe(&format!("{name}.norm")) {
                let normed = x.permute([1, 2, 0, 3]).cont().norm(Norm::Layer, Some(weight), None);
                x = normed.permute([2, 0, 1, 3]).cont();
            }
            x = x.relu();
        }
        let flat = x.permute([1, 2, 0, 3]).cont();
        let ne = flat.shape();
        let mut x = self.linear("a.input_projection", flat.reshape(&[ne[0] * ne[1], ne[2]]));
        let (n, d, n_head) = (x.ne(1), e.d_head, e.n_head);
        let blocks = n.div_ceil(CHUNK);
        let pos = self.input(&[n_head * d, PLACES]);
        let mask = self.input(&[CONTEXT, CHUNK, blocks]);
        for il in self.blocks() {
            let name = |part: &str| self.at(il, part);
            let norm = |part: &str, x: Node<'g>| {
                let weight = self.maybe(&name(part));
                weight.map_or(x, |weight| x.norm(Norm::Rms, Some(weight), None))
            };
            x = Self::half_step(x, norm("ffn_post_norm", self.fed_plain(il, "", norm("ffn_norm", x))));
            let has_own = self.maybe(&name("attn_pre_norm")).is_some();
            let normed = norm(if has_own { "attn_pre_norm" } else { "ln1" }, x);
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.mm(&name(part), normed));
            let [q, k, v] = qkv.map(|x| x.reshape(&[d, n_head, n]));
            let scale = |x: Node<'g>, part: &str| {
                let scale = self.maybe(&name(part)).map(|scale| scale.reshape(&[d, 1, 1]));
                scale.map_or_else(|| x.scale(), |scale| x.scale() * scale)
            };
            let (q, k) = (scale(q, "per_dim_scale"), scale(k, "per_dim_k_scale"));
            let q = q.pad_nd([0, 0, blocks * CHUNK - n, 0]).reshape(&[d, n_head, CHUNK, blocks]);
            let q = q.permute([0, 3, 1, 2]).cont();
            let overlapping = |x: Node<'g>| {
                let x = x.pad_nd([0, 0, CONTEXT * blocks - n, 0]);
                x.view(&[d, n_head, CONTEXT, blocks], &[x.nb(1), x.nb(2), CHUNK * x.nb(2)], 0).cont()
            };
            let k = overlapping(k).permute([0, 3, 1, 2]).cont();
            let v = overlapping(v).permute([1, 3, 0, 2]).cont();
            let mut scores = k.mm(q);
            if let Some(weight) = self.maybe(&name("attn_k_rel")) {
                let p = weight.mm(pos).reshape(&[d, n_head, PLACES]).permute(HEADS).cont();
                let places = p.mm(q.reshape(&[d, CHUNK * blocks, n_head])).reshape(&[PLACES, CHUNK, blocks, n_head]);
                let places = places.pad(CONTEXT + 1 - PLACES).reshape(&[(CONTEXT + 1) * CHUNK, blocks, n_head]);
                let places = places.view(&[CHUNK * CONTEXT, blocks, n_head], &places.strides()[1..3], 0).cont();
                scores = scores + places.reshape(&[CONTEXT, CHUNK, blocks, n_head]);
            }
            let shares = (scores.scale().tanh().scale() + mask).soft_max();
            let rows = v.mm(shares).permute([0, 2, 3, 1]).cont().cont_nd(&[d * n_head, CHUNK * blocks]);
            let is_padded = blocks * CHUNK > n;
            let rows = if is_padded { rows.view(&[d * n_head, n], &[rows.nb(1)], 0).cont() } else { rows };
            x = x + norm("attn_post_norm", self.linear(&name("attn_out"), rows));
            // Norms around the convolution have each other's names.
            if self.maybe(&name("conv_norm")).is_some() {
                let wide = self.mm(&name("conv_pw1"), norm("conv_norm", x));
                let half = wide.ne(0) / 2;
                let gate = wide.view(&[half, wide.ne(1)], &[wide.nb(1)], half * wide.nb(0)).cont().sigmoid();
                let wide = (wide.view(&[half, wide.ne(1)], &[wide.nb(1)], 0) * gate).transpose().cont();
                let wide = wide.pad(4).ssm_conv(self.weight(&name("conv_dw")));
                let wide = norm("norm_conv", self.biased(&name("conv_dw"), wide)).silu();
                x = x + self.mm(&name("conv_pw2"), wide);
            }
            x = Self::half_step(x, norm("ffn_post_norm_1", self.fed_plain(il, "_1", norm("ffn_norm_1", x))));
            x = norm("ln2", x);
        }
        if self.maybe("a.pre_encode.out").is_some() {
            x = self.linear("a.pre_encode.out", x);
        }
        let x = x.rms();
        let x = self.maybe("mm.a.soft_emb_norm").map_or(x, |weight| x * weight);
        if self.maybe("mm.a.input_projection").is_some() { self.mm("mm.a.input_projection", x) } else { x }
    }

    pub(super) fn parakeet(&self) -> Node<'g> {
        let e = self.e;
        let half = Window::new(2, 1);
        let add = |name: &str, x: Node<'g>| x + self.need(&format!("{name}.bias"));
        let mut x = add("a.conv1d.0", self.weight("a.conv1d.0").conv_2d(self.spectrum(), half)).relu();
        for [wide, point] in [["a.conv1d.2", "a.conv1d.3"], ["a.conv1d.5", "a.conv1d.6"]] {
            x = add(wide, self.weight(wide).conv_2d_dw_direct(x, half));
            x = add(point, self.weight(point).conv_2d(x, Window::new(1, 0))).relu();
        }
        let flat = x.permute(HEADS).cont();
        let ne = flat.shape();
        let mut x = self.linear("a.pre_encode.out", flat.reshape(&[ne[0] * ne[1], ne[2]]));
        // What is reserved for is short enough to attend to all of it.
        let n = x.ne(1);
        let len = 2 * n - 1;
        let mask = self.input(&[n, n]);
        let theta = self.input(&[e.n_embd / 2]).repeat(&[e.n_embd / 2, len]) * self.input(&[1, len]);
        let wave = || theta.plain().reshape(&[1, e.n_embd / 2, len]);
        let pos = wave().concat(wave(), 0).cont().reshape(&[e.n_embd, len]);
        let kernel = self.number("audio.conv_kernel_size");
        for il in self.blocks() {
            let name = |part: &str| self.at(il, part);
            let norm = |part: &str, x: Node<'g>| self.norm(Norm::Layer, &name(part), x);
            x = Self::half_step(x, self.fed_plain(il, "", norm("ffn_norm", x)));
            let normed = norm("ln1", x);
            let heads = |x: Node<'g>, n: u64| x.reshape(&[e.d_head, e.n_head, n]);
            let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|part| heads(self.mm(&name(part), normed), n));
            let p = heads(self.mm(&name("linear_pos"), pos), len).permute(HEADS).cont();
            let by_content = q + self.need(&name("pos_bias_u"));
            let scores = k.permute(HEADS).mm(by_content.permute(HEADS));
            let by_place = (q + self.need(&name("pos_bias_v"))).permute(HEADS).cont();
            let places = p.mm(by_place).pad(1).reshape(&[n, len + 1, e.n_head]).cont();
            let offset = places.nb(0) * (len / 2 + 1);
            let places = places.view(&[n, len, e.n_head], &[4 * len, places.nb(2)], offset).cont();
            let places = places.view(&[scores.ne(0), scores.ne(1), e.n_head], &places.strides()[1..3], 0).cont();
            let shares = ((scores + places).scale() + mask).soft_max();
            let rows = shares.mm(v.permute([1, 2, 0, 3]).cont()).permute([2, 0, 1, 3]).cont_nd(&[e.n_embd, n]);
            x = x + self.mm(&name("attn_out"), rows);
            let wide = self.mm(&name("conv_pw1"), norm("norm_conv", x));
            let wide = Self::gated(wide).pad((kernel - 1) / 2 * 2).ssm_conv(self.weight(&name("conv_dw")));
            let [mean, variance] = ["conv_norm_mean", "conv_norm_var"].map(|part| self.need(&name(part)));
            let wide = self.scaled("conv_norm", il, (wide - mean) / variance.sqrt()).silu();
            x = x + self.mm(&name("conv_pw2"), wide);
            x = Self::half_step(x, self.fed_plain(il, "_1", norm("ffn_norm_1", x)));
            x = norm("ln2", x);
        }
        let x = x.rms() * self.weight("mm.a.norm_pre");
        self.ffn(["mm.a.mlp.1", "", "mm.a.mlp.2"], x, Act::ReluSqr)
    }
}
