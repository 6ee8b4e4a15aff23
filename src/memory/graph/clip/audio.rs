//! Encoders of sound like Whisper's: convolutions, then a transformer.
//!
//! Source: `tools/mtmd/models/whisper-enc.cpp`, `qwen3a.cpp`, `dots3note.cpp`, `mimo-audio.cpp`, `clip.cpp` `build_stack`,
//! llama.cpp b11434.

use std::cell::RefCell;

use super::{Act, Clip, Error, Glu, Node, Norm, Op, Vit, Window, i32};

impl<'g> Clip<'g> {
    /// Two convolutions over time, the second halves it; channels first at the end.
    fn halved(&self) -> Node<'g> {
        let conv = |name: &str, x: Node<'g>, stride: u64| {
            let kernel = self.weight(name);
            (kernel.conv_1d(x, Window::new(stride, kernel.ne(0) / 2)) + self.need(&format!("{name}.bias"))).gelu()
        };
        conv("a.conv1d.2", conv("a.conv1d.1", self.raw(), 1), 2).transpose().cont()
    }

    /// `n` frames side by side (`build_stack`).
    fn stacked(&self, x: Node<'g>, n: u64) -> Node<'g> {
        if n <= 1 {
            return x;
        }
        let (all, width) = (x.elements(), self.e.n_embd * n);
        let padded = all.next_multiple_of(width);
        let x = if padded > all { x.view(&[all], &[], 0).pad(padded - all) } else { x };
        x.view(&[width, padded / width], &[4 * width], 0)
    }

    pub(super) fn whisper(&self) -> Node<'g> {
        let (kind, n_pos) = (self.e.kind.name, self.nx / 2);
        let frames = self.halved();
        let table = self.positions();
        let pos = Some(table.view(&[table.ne(0), n_pos], &[table.nb(1)], 0));
        let mut x = self.vit(frames, n_pos, Norm::Layer, self.act, &Vit { pos, ..Vit::default() });
        let factor = self.e.number("audio.projector.stack_factor").unwrap_or(0);
        if matches!(kind, "ultravox" | "voxtral" | "meralion") {
            x = self.stacked(x, factor);
        }
        match kind {
            "ultravox" => {
                let x = x.rms() * self.weight("mm.a.norm_pre");
                let x = self.mm("mm.a.mlp.1", x).glu(Glu::Swiglu);
                self.mm("mm.a.mlp.2", x.rms() * self.weight("mm.a.norm_mid"))
            }
            "qwen2a" => self.linear("mm.a.fc", x),
            "meralion" => {
                let x = self.linear("mm.a.mlp.0", self.norm(Norm::Layer, "mm.a.norm_pre", x)).silu();
                let gate = self.linear("mm.a.mlp.1", x).silu();
                self.linear("mm.a.mlp.3", gate * self.linear("mm.a.mlp.2", x))
            }
            "glma" => {
                let x = self.stacked(self.norm(Norm::Layer, "mm.a.norm_pre", x), factor);
                let rows = self.mlp("mm.a.mlp.1", "mm.a.mlp.2", x);
                self.need("v.boi").concat(rows, 1).concat(self.need("v.eoi"), 1)
            }
            "voxtral" => self.mm("mm.a.mlp.2", self.mm("mm.a.mlp.1", x).gelu()),
            _ => self.mlp("mm.a.mlp.1", "mm.a.mlp.2", x),
        }
    }

    /// Three convolutions that each halve time and pitch, then a matrix.
    fn halved_thrice(&self, mut x: Node<'g>) -> Node<'g> {
        for i in 1..=3 {
            let name = format!("a.conv2d.{i}");
            x = self.weight(&name).conv_2d(x, Window::new(2, 1));
            x = (x + self.need(&format!("{name}.bias")).reshape(&[1, 1, x.ne(2), 1])).gelu();
        }
        let x = x.permute([2, 0, 1, 3]).cont();
        let ne = x.shape();
        self.weight("a.conv_out").mm(x.reshape(&[ne[0] * ne[1], ne[2] * ne[3]]))
    }

    pub(super) fn qwen3a(&self) -> Node<'g> {
        let (n, raw) = (self.nx / 100, self.raw());
        let x = self.halved_thrice(raw.view(&[100, self.ny, 1, n], &[4 * self.nx, 400, 400], 0).cont());
        let (n_pos, table) = (x.ne(1), self.positions());
        let pos = table.view(&[table.ne(0), n_pos / n], &[table.nb(1)], 0).repeat(&[table.ne(0), n_pos]);
        let x = self.vit(x + pos, n_pos, Norm::Layer, self.act, &Vit::default());
        self.mlp("mm.a.mlp.1", "mm.a.mlp.2", x)
    }

    pub(super) fn dots3note_a(&self) -> Node<'g> {
        let x = self.halved_thrice(self.raw());
        let positions = self.ids(x.ne(1));
        let turn = |x: Node<'g>| x.rope(positions, None);
        let x = self.vit(x, x.ne(1), Norm::Rms, self.act, &Vit { turn: Some(&turn), ..Vit::default() });
        self.mlp("mm.a.mlp.1", "mm.a.mlp.3", self.norm(Norm::Layer, "mm.a.norm_pre", x))
    }

    /// Frames as codes of several books, and a transformer over what they stand for.
    pub(super) fn mimo_audio(&self) -> Node<'g> {
        let e = self.e;
        let x = self.halved();
        let n_pos = x.ne(1);
        let positions = self.ids(n_pos);
        let (full, windowed) = (self.input(&[n_pos, n_pos]), self.input(&[n_pos, n_pos]));
        let modes = self.numbers("audio.wa_pattern_mode");
        let is_full = |il: u64| usize::try_from(il).ok().and_then(|il| modes.get(il)) == Some(&-1);
        let masks = |il: u64| Some(if is_full(il) { full } else { windowed });
        let turn = |x: Node<'g>| x.rope(positions, None);
        let skipped = RefCell::new(None);
        let vit = Vit {
            turn: Some(&turn),
            mask: Some(&masks),
            tap: Some((2, &skipped)),
            skip_post_norm: true,
            ..Vit::default()
        };
        let x = self.vit(x, n_pos, Norm::Layer, self.act, &vit).reshape(&[e.n_embd, n_pos]);
        let Some(skipped) = skipped.take() else {
            return self.fail(Error::Key { key: "clip.audio.block_count".to_string(), found: Some(e.n_layer) });
        };
        let x = self.norm(Norm::Layer, "a.post_ln", x + skipped);
        let halved = self.weight("a.downsample.conv").conv_1d(x.transpose().cont(), Window::new(2, 0)).gelu();
        let mut rest = self.norm(Norm::Layer, "a.downsample.norm", halved.transpose().cont());
        let [books, embeddings] = ["a.rvq.codebook", "mm.a.code_embd"].map(|name| self.weight(name));
        let part =
            |table: Node<'g>, n: u64, at: u64| table.view(&[table.ne(0), n], &[table.nb(1)], at * table.nb(2)).cont();
        let mut codes = Vec::new();
        for (at, bins) in (0..).zip(self.numbers("audio.rvq.codebook_size")) {
            let book = part(books, u64::try_from(bins).unwrap_or(0), at);
            let energy = book.sqr().sum_rows().transpose().cont();
            let scores = book.mm(rest).scale() - energy;
            let code = scores.make(Op::Plain, i32(), [scores.ne(1), 1, 1, 1], &[scores]);
            codes.push(code);
            rest = rest - book.get_rows(code);
        }
        let of = |(at, code): (u64, Node<'g>)| part(embeddings, embeddings.ne(1), at).get_rows(code);
        let sum = (0..).zip(codes).map(of).reduce(|sum, one| sum + one);
        let missing = || Error::Key { key: "clip.audio.rvq.codebook_size".to_string(), found: None };
        let x = sum.unwrap_or_else(|| self.fail(missing()));
        self.local_transformer(x)
    }

    /// A transformer within groups of frames.
    fn local_transformer(&self, x: Node<'g>) -> Node<'g> {
        let e = self.e;
        let size = self.number("audio.local_group_size");
        let groups = x.ne(1).div_ceil(size);
        let n = groups * size;
        let mut x = if n == x.ne(1) { x } else { x.pad_nd([0, n - x.ne(1), 0, 0]) };
        let (positions, mask) = (self.ids(n), self.input(&[n, n]));
        let n_layer = self.e.number("audio.local_block_count").unwrap_or(0);
        for il in (0..n_layer).take_while(|_| !self.draft.is_faulty()) {
            let name = |part: &str| format!("mm.a.local_blk.{il}.{part}");
            let normed = x.norm(Norm::Rms, self.maybe(&name("ln1")), None);
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), normed));
            let [q, k, v] = qkv.map(|x| x.reshape(&[e.d_head, e.n_head, n]));
            let qkv = [q.rope(positions, None), k.rope(positions, None), v];
            x = x + self.attn(&name("attn_out"), qkv, Some(mask), None);
            let normed = x.norm(Norm::Rms, self.maybe(&name("ln2")), None);
            let [up, gate, down] = ["ffn_up", "ffn_gate", "ffn_down"].map(name);
            x = x + self.ffn([&up, &gate, &down], normed, Act::Silu);
        }
        let x = x.norm(Norm::Rms, self.maybe("mm.a.local_norm"), None).reshape(&[e.n_embd * size, groups]);
        self.mm("mm.a.mlp.2", self.mm("mm.a.mlp.1", x).gelu())
    }
}
