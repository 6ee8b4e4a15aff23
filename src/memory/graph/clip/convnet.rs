//! Encoders made of convolutions.
//!
//! Source: `tools/mtmd/models/mobilenetv5.cpp` (gemma 3n), `yasa2.cpp`, llama.cpp b11434.

use super::{Clip, HEADS, Node, Norm, Window};

/// Channels and columns exchanged.
const CHANNELS: [usize; 4] = [2, 1, 0, 3];

impl<'g> Clip<'g> {
    /// A norm over channels (`rms_norm_2d`).
    fn channel_rms(x: Node<'g>, weight: Option<Node<'g>>) -> Node<'g> {
        x.permute(CHANNELS).cont().norm(Norm::Rms, weight, None).permute(CHANNELS).cont()
    }

    /// The same, if its weight is there.
    fn maybe_rms(&self, name: &str, x: Node<'g>) -> Node<'g> {
        self.maybe(name).map_or(x, |weight| Self::channel_rms(x, Some(weight)))
    }

    /// Padded so that a step of `stride` loses nothing (`pad_same_2d`).
    fn pad_same(x: Node<'g>, kernel: u64, stride: u64) -> Node<'g> {
        let more = |n: u64| ((n.div_ceil(stride).saturating_sub(1)) * stride + kernel).saturating_sub(n);
        let [width, height] = [x.ne(0), x.ne(1)].map(more);
        if width + height > 0 { x.pad_nd([width, height, 0, 0]) } else { x }
    }

    fn pointwise(&self, name: &str, x: Node<'g>) -> Node<'g> {
        self.weight(name).conv_2d_direct(x, Window::new(1, 0))
    }

    /// A kernel a channel; of a larger step, padded on both sides as needed.
    fn depthwise(&self, name: &str, x: Node<'g>, stride: u64) -> Node<'g> {
        let weight = self.weight(name);
        let k = weight.ne(0);
        if stride > 1 {
            weight.conv_2d_dw(Self::pad_same(x, k, stride), Window::new(stride, 0))
        } else {
            weight.conv_2d_dw(x, Window::new(1, k / 2))
        }
    }

    /// The first block of a stage and the others, as long as there is one.
    fn has_block(&self, at: &str) -> bool {
        ["conv_exp", "dw_start.conv", "pw_exp.conv", "attn.query.proj"]
            .iter()
            .any(|part| self.maybe(&format!("{at}.{part}")).is_some())
    }

    pub(super) fn mobilenet(&self) -> Node<'g> {
        let stem = self.weight("v.conv_stem.conv").conv_2d_direct(Self::pad_same(self.raw(), 3, 2), Window::new(2, 0));
        let mut x = self.maybe_rms("v.conv_stem.bn", self.biased("v.conv_stem.conv", stem)).gelu();
        let mut ends = Vec::new();
        for stage in 0..4 {
            let blocks = (0..).map(|block| format!("v.blk.{stage}.{block}")).take_while(|at| self.has_block(at));
            let mut found = false;
            for (i, at) in blocks.enumerate() {
                x = self.mobile_net_block(&at, x, if i == 0 { 2 } else { 1 });
                found = true;
            }
            if found {
                ends.push(x);
            }
        }
        // The last two stages, or the last block alone where there are fewer than four.
        let kept = if ends.len() >= 4 { &ends[2..4] } else { &ends[ends.len().saturating_sub(1)..] };
        if let [first, rest @ ..] = kept {
            let width = first.ne(0);
            x = rest.iter().fold(*first, |all, one| {
                let [w, h, c, n] = one.shape();
                let times = width / w.max(1);
                let is_smaller = w < width || h < first.ne(1);
                all.concat(if is_smaller { one.resized(&[w * times, h * times, c, n]) } else { *one }, 2)
            });
            x = self.fused_stages(x);
        }
        let [w, h, c, n] = x.shape();
        let rows = x.permute(CHANNELS).permute(HEADS).cont().reshape(&[c, w * h, n]).cont();
        let rows = rows.scale().rms() * self.weight("mm.soft_emb_norm");
        self.mm("mm.input_projection", rows).rms()
    }

    /// Features of several stages together (`MSFA`), 16 by 16 of them.
    fn fused_stages(&self, mut x: Node<'g>) -> Node<'g> {
        if self.maybe("v.msfa.ffn.pw_exp.conv").is_some() {
            x = self.maybe_rms("v.msfa.ffn.pw_exp.bn", self.pointwise("v.msfa.ffn.pw_exp.conv", x)).gelu();
        }
        if self.maybe("v.msfa.ffn.pw_proj.conv").is_some() {
            x = self.maybe_rms("v.msfa.ffn.pw_proj.bn", self.pointwise("v.msfa.ffn.pw_proj.conv", x));
        }
        if x.ne(0) > 16 {
            x = x.pool_2d(x.ne(0) / 16);
        }
        self.maybe_rms("v.msfa.norm", x)
    }

    fn mobile_net_block(&self, at: &str, input: Node<'g>, stride: u64) -> Node<'g> {
        let name = |part: &str| format!("{at}.{part}");
        if self.maybe(&name("conv_exp")).is_some() {
            let kernel = self.weight(&name("conv_exp"));
            let x = if stride == 2 {
                kernel.conv_2d_direct(Self::pad_same(input, 3, 2), Window::new(2, 0))
            } else {
                kernel.conv_2d_direct(input, Window::new(1, 1))
            };
            let x = self.pointwise(&name("conv_pwl"), self.maybe_rms(&name("bn1"), x).gelu());
            let x = self.maybe_rms(&name("bn2"), x);
            let is_like = stride == 1 && (input.ne(2), input.ne(0)) == (x.ne(2), x.ne(0));
            return if is_like { x + input } else { x };
        }
        let scaled = |x: Node<'g>| self.tensor(&name("layer_scale.gamma")).map_or(x, |gamma| x * gamma);
        if self.maybe(&name("attn.query.proj")).is_some() {
            let x = self.mobile_attention(at, self.maybe_rms(&name("norm"), input));
            let is_like = (input.ne(2), input.ne(0)) == (x.ne(2), x.ne(0));
            return if is_like { scaled(x) + input } else { x };
        }
        let mut x = input;
        if self.maybe(&name("dw_start.conv")).is_some() {
            x = self.maybe_rms(&name("dw_start.bn"), self.depthwise(&name("dw_start.conv"), x, 1));
        }
        if self.maybe(&name("pw_exp.conv")).is_some() {
            x = self.maybe_rms(&name("pw_exp.bn"), self.pointwise(&name("pw_exp.conv"), x)).gelu();
        }
        if self.maybe(&name("dw_mid.conv")).is_some() {
            x = self.maybe_rms(&name("dw_mid.bn"), self.depthwise(&name("dw_mid.conv"), x, stride)).gelu();
        }
        if self.maybe(&name("pw_proj.conv")).is_some() {
            x = self.maybe_rms(&name("pw_proj.bn"), self.pointwise(&name("pw_proj.conv"), x));
        }
        let x = scaled(x);
        if input.shape()[..3] == x.shape()[..3] { x + input } else { x }
    }

    /// One head of keys and values for all queries.
    fn mobile_attention(&self, at: &str, x: Node<'g>) -> Node<'g> {
        let [w, h, _, n] = x.shape();
        let part = |what: &str| {
            let down = format!("{at}.attn.{what}.down_conv");
            let input = if self.maybe(&down).is_some() {
                self.maybe_rms(&format!("{at}.attn.{what}.norm"), self.depthwise(&down, x, 2))
            } else {
                x
            };
            self.pointwise(&format!("{at}.attn.{what}.proj"), input)
        };
        let q = self.pointwise(&format!("{at}.attn.query.proj"), x);
        let (k, v) = (part("key"), part("value"));
        let d = k.ne(2);
        let n_head = q.ne(2) / d.max(1);
        let (all, cells) = (w * h, k.ne(0) * k.ne(1));
        let q = q.reshape(&[all, d * n_head, n]).reshape(&[all, d, n_head, n]).permute([1, 0, 2, 3]).cont();
        let k = k.reshape(&[cells, d, n]).reshape(&[cells, d, 1, n]).permute([1, 0, 2, 3]).cont();
        let v = v.reshape(&[cells, d, n]).reshape(&[cells, d, 1, n]).cont();
        let rows = v.mm(k.mm(q).scale().soft_max()).permute([1, 0, 2, 3]).cont();
        let rows = rows.reshape(&[all, d * n_head, n]).reshape(&[w, h, d * n_head, n]).cont();
        self.pointwise(&format!("{at}.attn.output.proj"), rows)
    }

    /// A factor or a summand by channel.
    fn by_channel(&self, name: &str) -> Option<Node<'g>> {
        self.tensor(name).map(|tensor| tensor.reshape(&[1, 1, tensor.ne(0)]))
    }

    fn channel_scaled(&self, name: &str, x: Node<'g>) -> Node<'g> {
        let x = self.by_channel(&format!("{name}.weight")).map_or(x, |weight| x * weight);
        self.by_channel(&format!("{name}.bias")).map_or(x, |bias| x + bias)
    }

    /// A norm over channels (`layer_norm_channels`).
    fn channel_norm(&self, name: &str, x: Node<'g>) -> Node<'g> {
        let x = x.permute(CHANNELS).cont();
        let centred = x - x.mean();
        let spread = (centred * centred).mean().clamp().sqrt();
        self.channel_scaled(name, (centred / spread).permute(CHANNELS).cont())
    }

    /// A convolution and its bias by channel.
    fn conv_biased(&self, name: &str, x: Node<'g>, window: Window) -> Node<'g> {
        let x = self.weight(name).conv_2d(x, window);
        self.by_channel(&format!("{name}.bias")).map_or(x, |bias| x + bias)
    }

    /// Channels first: `[channels, places, images]`.
    fn channels_first(x: Node<'g>) -> Node<'g> {
        let ne = x.shape();
        x.reshape(&[ne[0] * ne[1], ne[2], ne[3]]).permute([1, 0, 2, 3]).cont()
    }

    pub(super) fn yasa2(&self) -> Node<'g> {
        let mut x = self.conv_biased("v.patch_embd", self.raw(), self.patch_window());
        x = self.channel_norm("v.patch_ln", x);
        for stage in 0.. {
            let down = format!("v.stage.{stage}.down.conv");
            let blocks = (0..).map(|i| format!("v.stage.{stage}.blk.{i}"));
            let blocks: Vec<_> = blocks.take_while(|at| self.maybe(&format!("{at}.dw")).is_some()).collect();
            let is_down = self.maybe(&down).is_some();
            if (blocks.is_empty() && !is_down) || self.draft.is_faulty() {
                break;
            }
            if is_down {
                x = self.channel_norm(&format!("v.stage.{stage}.down.ln"), x);
                x = self.conv_biased(&down, x, Window::new(2, 0));
            }
            x = blocks.iter().fold(x, |x, at| self.conv_next(at, x));
        }
        let [w, h, ..] = x.shape();
        let mut rows = Self::channels_first(x);
        if let Some(pos) = self.tensor("v.vision_pos_embed").filter(|pos| pos.ne(1) == rows.ne(1)) {
            rows = rows + pos.reshape(&[pos.ne(0), pos.ne(1), 1]);
        }
        let flat = rows.permute([1, 0, 2, 3]).cont();
        let grid = flat.reshape(&[w, h, flat.ne(1), flat.ne(2)]);
        let size = |n: u64| (n / n.clamp(1, 8)).max(1);
        let rows = Self::channels_first(grid.pool(size(w), size(h)));
        self.mlp("mm.0", "mm.2", rows)
    }

    /// A block of `ConvNeXt`.
    fn conv_next(&self, at: &str, x: Node<'g>) -> Node<'g> {
        let name = |part: &str| format!("{at}.{part}");
        let wide = self.weight(&name("dw")).conv_2d_dw(x, Window::new(1, 3));
        let wide = self.by_channel(&name("dw.bias")).map_or(wide, |bias| wide + bias);
        let normed = self.channel_norm(&name("ln"), wide);
        let [w, h, _, n] = normed.shape();
        let linear = |part: &str, grid: Node<'g>| {
            let rows = self.weight(&name(part)).mm(Self::channels_first(grid));
            let bias = self.bias(&name(part)).map(|bias| bias.reshape(&[bias.ne(0), 1, 1]));
            let rows = bias.map_or(rows, |bias| rows + bias);
            rows.permute([1, 0, 2, 3]).cont().reshape(&[w, h, rows.ne(0), n])
        };
        let hidden = linear("pw1", normed).gelu();
        let channels = hidden.ne(2);
        let energy = (hidden * hidden).reshape(&[w * h, channels, 1, n]).sum_rows().sqrt();
        let mean = energy.permute([1, 0, 2, 3]).cont().mean().clamp();
        let share = (energy / mean).permute(HEADS).cont();
        let hidden = hidden + self.channel_scaled(&name("grn"), hidden * share);
        x + linear("pw2", hidden)
    }
}
