//! Encoders of a speaker's voice.
//!
//! Source: `tools/mtmd/models/qwen3tts-spkenc.cpp`, `pockettts-spkenc.cpp`, `pockettts-seanet.cpp`, llama.cpp b11434.

use super::{Clip, Node, Norm, Op, Unary, Window, f32};

impl<'g> Clip<'g> {
    /// A convolution that keeps the length, channels first (`conv1d_same`).
    fn conv_same(&self, name: &str, x: Node<'g>, dilation: u64) -> Node<'g> {
        let kernel = self.weight(name);
        let [k, channels, out, _] = kernel.shape();
        let pad = (k.saturating_sub(1)) * dilation / 2;
        let mut rows = x.transpose().cont();
        if pad > 0 {
            let ne = rows.shape();
            rows = rows.make(Op::Plain, f32(), [ne[0] + 2 * pad, ne[1], ne[2], ne[3]], &[rows]);
        }
        let rows = rows.reshape(&[rows.ne(0), channels]);
        let window = Window { stride: 1, pad: 0, dilation };
        let patches = self.unset(&[k, channels]).im2col_1d(rows, window, f32());
        let patches = patches.reshape(&[k * channels, patches.ne(1)]);
        kernel.reshape(&[k * channels, out]).mm(patches) + self.need(&format!("{name}.bias")).reshape(&[out, 1])
    }

    pub(super) fn qwen3tts(&self) -> Node<'g> {
        let flat = self.raw().reshape(&[self.nx, self.ny]).transpose().cont();
        let mut x = self.conv_same("a.conv1d.0", flat, 1).relu();
        let mut blocks: Option<Node<'g>> = None;
        for (il, dilation) in [(1, 2), (2, 3), (3, 4)] {
            x = self.res2net(il, x, dilation);
            blocks = Some(blocks.map_or(x, |all| all.concat(x, 0)));
        }
        let x = self.conv_same("a.conv_out", blocks.unwrap_or(x), 1).relu();
        let rows = self.conv_same("mm.a.fc", self.weighted_statistics(x), 1);
        rows.reshape(&[rows.ne(0)]).cont()
    }

    fn res2net(&self, il: u64, input: Node<'g>, dilation: u64) -> Node<'g> {
        let name = |part: &str| format!("a.blk.{il}.{part}");
        let x = self.conv_same(&name("conv_pw1"), input, 1).relu();
        let [channels, frames, ..] = x.shape();
        let width = channels / 8;
        let chunk = |i: u64| x.view(&[width, frames], &[x.nb(1)], i * width * x.nb(0)).cont();
        let mut all = chunk(0);
        let mut before: Option<Node<'g>> = None;
        for i in 1..8 {
            let own = before.map_or_else(|| chunk(i), |before| chunk(i) + before);
            let y = self.conv_same(&name(&format!("res2.{}", i - 1)), own, dilation).relu();
            all = all.concat(y, 0);
            before = Some(y);
        }
        let x = self.conv_same(&name("conv_pw2"), all, 1).relu();
        let mean = x.transpose().cont().mean().transpose().cont();
        let gate = self.conv_same(&name("se_conv1"), mean, 1).relu();
        x * self.conv_same(&name("se_conv2"), gate, 1).sigmoid() + input
    }

    /// The mean and the deviation over time, of what counts (`attentive_stats_pool`).
    fn weighted_statistics(&self, x: Node<'g>) -> Node<'g> {
        let ne = x.shape();
        let over_time = |x: Node<'g>| x.transpose().cont().mean();
        let mean = over_time(x).transpose().cont().repeat(&ne);
        let spread = over_time((x - mean).sqr()).transpose().cont().scale().sqrt();
        let all = x.concat(mean, 0).concat(spread.repeat(&ne), 0);
        let scores = self.conv_same("a.asp_attn", self.conv_same("a.asp_tdnn", all, 1).relu().tanh(), 1);
        let shares = scores.transpose().cont().soft_max().transpose().cont();
        let mean = over_time(shares * x).scale().transpose().cont();
        let spread = over_time(shares * (x - mean.repeat(&ne)).sqr()).scale().transpose().cont();
        mean.concat(spread.scale().sqrt(), 0)
    }

    /// A causal convolution, frames first (`conv1d`).
    fn conv_causal(&self, name: &str, x: Node<'g>, stride: u64, repeats_first: bool) -> Node<'g> {
        let kernel = self.weight(name);
        let size = kernel.ne(0);
        let left = size.saturating_sub(stride);
        let frames = (x.ne(0) + left).saturating_sub(size).div_ceil(stride);
        let right = (frames * stride + size).saturating_sub(left + x.ne(0));
        let x = if repeats_first && left > 0 {
            let first = x.view(&[1, x.ne(1)], &[x.nb(1)], 0).repeat(&[left, x.ne(1)]);
            first.concat(x, 0).pad(right)
        } else {
            x.pad(left + right)
        };
        let y = kernel.conv_1d(x, Window::new(stride, 0));
        let y = y.reshape(&[y.ne(0), y.ne(1)]);
        self.bias(name).map_or(y, |bias| y + bias.reshape(&[1, bias.ne(0)]))
    }

    pub(super) fn pockettts(&self) -> Node<'g> {
        let e = self.e;
        let elu = |x: Node<'g>| x.unary(Unary::Gelu);
        let mut x = self.conv_causal("a.seanet.conv_in", self.raw().reshape(&[self.nx, self.ny]), 1, false);
        for (stage, stride) in [(0, 4), (1, 5), (2, 6)] {
            let name = |part: &str| format!("a.seanet.blk.{stage}.{part}");
            let hidden = self.conv_causal(&name("res_conv1"), elu(x), 1, false);
            x = x + self.conv_causal(&name("res_conv2"), elu(hidden), 1, false);
            x = self.conv_causal(&name("scale_conv"), elu(x), stride, false);
        }
        let x = self.conv_causal("a.seanet.conv_out", elu(x), 1, false);
        let mut rows = x.transpose().cont();
        let n = rows.ne(1);
        let (positions, mask) = (self.ids(n), self.input(&[n, n]));
        for il in self.blocks() {
            let name = |part: &str| self.at(il, part);
            let normed = self.norm(Norm::Layer, &name("ln1"), rows);
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.mm(&name(part), normed));
            let [q, k, v] = qkv.map(|x| x.reshape(&[e.d_head, e.n_head, n]));
            let qkv = [q.rope(positions, None), k.rope(positions, None), v];
            let attended = self.attn(&name("attn_out"), qkv, Some(mask), None) * self.weight(&name("ls1"));
            rows = attended + rows;
            let normed = self.norm(Norm::Layer, &name("ln2"), rows);
            let fed = self.mm(&name("ffn_down"), self.mm(&name("ffn_up"), normed).gelu());
            rows = fed * self.weight(&name("ls2")) + rows;
        }
        let x = self.conv_causal("a.downsample.conv", rows.transpose().cont(), 16, true);
        self.mm("a.speaker_proj", x.transpose().cont())
    }
}
