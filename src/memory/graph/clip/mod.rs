//! The graph of a projector as llama.cpp builds it for the image or sound that it warms up with.
//!
//! Source: `tools/mtmd/clip.cpp` `clip_graph`, `reserve_compute_meta`, `get_dummy_batch`, and a builder of `tools/mtmd/models` a
//! function, llama.cpp b11434.

mod audio;
mod conformer;
mod convnet;
mod fixed;
mod merged;
mod qformer;
mod sam;
mod speech;
mod tiles;

use std::cell::RefCell;
use std::collections::HashMap;

use super::conv::Window;
use super::ffn::Act;
use super::ops::HEADS;
use super::tensor::{Draft, Glu, Graph, Held, Id, Node, Op, Tensor, Unary};
use super::{Error, MAX_NUMBER, Norm, fault};
use crate::gguf::Value;
use crate::gguf::ggml_type::{f16, f32, i32};
use crate::model::projector::{Encoder, Modality};
use crate::placement::Buffer;

/// Frames of the sound that memory is reserved for (`warmup_audio_size`).
const FRAMES: u64 = 3000;

/// Types that do not heed `clip.use_silu`.
const ALWAYS_GELU: [&str; 10] = [
    "ultravox",
    "qwen2a",
    "qwen3a",
    "glma",
    "voxtral",
    "meralion",
    "musicflamingo",
    "mimo_audio",
    "yasa2",
    "hunyuanvl",
];

/// A graph, and what it gives.
#[derive(Debug)]
pub struct Built {
    pub graph: Graph,
    /// Of the image or sound.
    pub tokens: u64,
    /// Elements of each token's embedding.
    pub n_embd: u64,
}

/// The graph of an encoder whose weights lie in `home`, with attention in one operation or several.
///
/// # Errors
/// Where llama.cpp refuses the file or stops at an assertion, and where no builder is here.
pub fn build(encoder: Encoder<'_>, home: Buffer, flash_attn: bool) -> Result<Built, Error> {
    let draft = Draft::default();
    let clip = Clip::new(encoder, &draft, home, flash_attn);
    let [n_embd, n, m, _] = clip.run().expand().shape();
    let leafs = clip.leafs.borrow();
    let name = |id: Id| leafs.iter().find(|(_, leaf)| **leaf == id).map(|(name, _)| *name);
    clip.error.take().map_or_else(|| fault(&draft.0.borrow(), name), Err)?;
    drop(leafs);
    drop(clip);
    Ok(Built { graph: draft.0.into_inner(), tokens: n * m, n_embd })
}

/// A graph in the making (`clip_graph`).
struct Clip<'g> {
    e: Encoder<'g>,
    draft: &'g Draft,
    home: Buffer,
    flash_attn: bool,
    by_name: HashMap<&'g str, &'g crate::model::Tensor>,
    leafs: RefCell<HashMap<&'g str, Id>>,
    /// The first error that is not an operation's.
    error: RefCell<Option<Error>>,
    /// Elements by side of the input: pixels, or frames and mel bins.
    nx: u64,
    ny: u64,
    /// Patches by side, and in all.
    px: u64,
    py: u64,
    n_patches: u64,
    /// What its feed-forward parts do, where the type does not say.
    act: Act,
}

/// What a transformer does beside its usual steps (`build_vit_opts`).
#[derive(Default)]
struct Vit<'a, 'g> {
    /// Added to the input.
    pos: Option<Node<'g>>,
    /// Turns queries and keys.
    turn: Option<&'a dyn Fn(Node<'g>) -> Node<'g>>,
    mask: Option<&'a dyn Fn(u64) -> Option<Node<'g>>>,
    /// The output of this layer is wanted.
    tap: Option<(u64, &'a RefCell<Option<Node<'g>>>)>,
    skip_post_norm: bool,
}

impl<'g> Clip<'g> {
    fn new(e: Encoder<'g>, draft: &'g Draft, home: Buffer, flash_attn: bool) -> Self {
        let is_vision = e.modality == Modality::Vision;
        let mel = || e.number("audio.num_mel_bins").unwrap_or(0).min(256);
        let (nx, ny) = match e.kind.name {
            "gemma4ua" => (FRAMES, 640),
            _ if is_vision => (e.side, e.side),
            _ => (FRAMES, mel()),
        };
        let (px, py) = (nx / e.patch_size, ny / e.patch_size);
        let is_on = |key: &str| matches!(e.model.hparams.metadata.get(key), Some(Value::Bool(true)));
        Self {
            e,
            draft,
            home,
            flash_attn,
            by_name: e.loaded().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            leafs: RefCell::default(),
            error: RefCell::default(),
            nx,
            ny,
            px,
            py,
            n_patches: px * py,
            // An exact GELU and a quick one take the same room.
            act: if is_on("clip.use_silu") && !ALWAYS_GELU.contains(&e.kind.name) { Act::Silu } else { Act::Gelu },
        }
    }

    /// The encoder's output.
    fn run(&self) -> Node<'g> {
        let e = self.e;
        let sizes = [e.n_embd, e.n_head, e.d_head];
        let has_layers = !matches!(e.kind.name, "gemma3nv" | "yasa2" | "gemma4uv" | "gemma4ua");
        if self.n_patches == 0 || (has_layers && sizes.contains(&0)) {
            return self.fail(Error::Key { key: "clip.vision.image_size".to_string(), found: Some(e.image_size) });
        }
        match e.kind.name {
            "gemma3" | "idefics3" | "lfm2" | "janus_pro" | "phi4" => self.siglip(),
            "mlp" | "ldp" | "ldpv2" | "adapter" => self.llava(),
            "internvl" => self.internvl(),
            "nemotron_v2_vl" => self.nemotron(),
            "llama4" => self.llama4(),
            "cogvlm" => self.cogvlm(),
            "resampler" => self.minicpmv(),
            "minicpmv4_6" => self.minicpmv4_6(),
            "pixtral" | "lightonocr" => self.pixtral(),
            "gemma4v" => self.gemma4v(),
            "gemma4uv" => self.gemma4uv(),
            "gemma4ua" => self.gemma4ua(),
            "kimivl" | "kimik25" => self.kimi(),
            "step3vl" => self.step3vl(),
            "hunyuanvl" => self.hunyuanvl(),
            "deepseek4v" => self.deepseek4v(),
            "muse-glimmer" => self.muse_glimmer(),
            "qwen2vl_merger" | "qwen2.5vl_merger" | "exaone4_5" => self.qwen2vl(),
            "qwen3vl_merger" | "ling3vl" => self.qwen3vl(),
            "glm4v" | "glm5v" => self.glm4v(),
            "paddleocr" | "dots_ocr" | "dots3note_v" => self.paddleocr(),
            "mimovl" => self.mimovl(),
            "minimax_m3" => self.minimax_m3(),
            "youtuvl" => self.youtuvl(),
            "gemma3nv" => self.mobilenet(),
            "yasa2" => self.yasa2(),
            "deepseekocr" => self.deepseekocr(),
            "deepseekocr2" => self.deepseekocr2(),
            "granite4_vision" => self.granite4_vision(),
            "ultravox" | "voxtral" | "qwen2a" | "glma" | "meralion" | "musicflamingo" => self.whisper(),
            "qwen3a" => self.qwen3a(),
            "dots3note_a" => self.dots3note_a(),
            "mimo_audio" => self.mimo_audio(),
            "gemma4a" => self.gemma4a(),
            "lfm2a" => self.lfm2a(),
            "parakeet" => self.parakeet(),
            "granite_speech" => self.granite_speech(),
            "qwen3tts_spkenc" => self.qwen3tts(),
            "pockettts_spkenc" => self.pockettts(),
            name => self.fail(Error::Architecture { architecture: name.to_string() }),
        }
    }

    /// Keeps the first error; the node stands for what is missing.
    fn fail(&self, error: Error) -> Node<'g> {
        self.error.borrow_mut().get_or_insert(error);
        self.draft.refuse("a graph with an error", &[])
    }

    /// The number `clip.KEY`, which has to be there and above 0.
    fn number(&self, key: &str) -> u64 {
        match self.e.number(key) {
            Some(n) if (1..=MAX_NUMBER).contains(&n) => n,
            found => {
                self.fail(Error::Key { key: format!("clip.{key}"), found });
                1
            }
        }
    }

    /// The numbers of the list `clip.KEY`.
    fn numbers(&self, key: &str) -> Vec<i64> {
        let number = |value: &Value| match value {
            Value::U64(n) => i64::try_from(*n).ok(),
            Value::I64(n) => Some(*n),
            _ => None,
        };
        match self.e.model.hparams.metadata.get(&format!("clip.{key}")) {
            Some(Value::Array(items)) => items.iter().filter_map(number).collect(),
            _ => Vec::new(),
        }
    }

    /// A tensor, if the file has it and llama.cpp loads it.
    fn tensor(&self, name: &str) -> Option<Node<'g>> {
        let (name, tensor) = self.by_name.get_key_value(name)?;
        if let Some(id) = self.leafs.borrow().get(name) {
            return Some(self.draft.node(*id));
        }
        let leaf = self.draft.hold(tensor.ty, &tensor.shape, Held::Weight(self.home));
        if tensor.shape.contains(&0) {
            self.draft.refuse("a weight without elements", &[leaf]);
        }
        self.leafs.borrow_mut().insert(name, leaf.id);
        Some(leaf)
    }

    /// A tensor that llama.cpp requires.
    fn need(&self, name: &str) -> Node<'g> {
        let missing = || Error::Tensor { tensor: name.to_string(), architecture: self.e.kind.name.to_string() };
        self.tensor(name).unwrap_or_else(|| self.fail(missing()))
    }

    /// `NAME.weight`, if there is one.
    fn maybe(&self, name: &str) -> Option<Node<'g>> {
        self.tensor(&format!("{name}.weight"))
    }

    /// `NAME.weight`.
    fn weight(&self, name: &str) -> Node<'g> {
        self.need(&format!("{name}.weight"))
    }

    fn bias(&self, name: &str) -> Option<Node<'g>> {
        self.tensor(&format!("{name}.bias"))
    }

    /// `x` plus `NAME.bias`, if there is one.
    fn biased(&self, name: &str, x: Node<'g>) -> Node<'g> {
        self.bias(name).map_or(x, |bias| x + bias)
    }

    /// A weight times `x` (`build_mm`); Gemma 4 keeps both in a range.
    fn mm(&self, name: &str, x: Node<'g>) -> Node<'g> {
        match self.e.kind.name {
            "gemma4v" | "gemma4a" => self.weight(name).mm(x.clamp()).clamp(),
            _ => self.weight(name).mm(x),
        }
    }

    /// A weight times `x`, plus the bias that it may have.
    fn linear(&self, name: &str, x: Node<'g>) -> Node<'g> {
        self.biased(name, self.mm(name, x))
    }

    /// A norm, with the weight and the bias that it may have (`build_norm`).
    fn norm(&self, kind: Norm, name: &str, x: Node<'g>) -> Node<'g> {
        x.norm(kind, self.maybe(name), self.bias(name))
    }

    /// Up, the gate that it may have, and down (`build_ffn`).
    fn ffn(&self, [up, gate, down]: [&str; 3], x: Node<'g>, act: Act) -> Node<'g> {
        let hidden = self.linear(up, x);
        let hidden = if self.maybe(gate).is_some() {
            let gate = self.linear(gate, x);
            let is_clamped = self.e.kind.name == "glm5v";
            match act {
                Act::Silu if is_clamped => gate.glu_split(Glu::SwigluClamp, hidden),
                Act::Silu => gate.glu_split(Glu::Swiglu, hidden),
                _ => gate.glu_split(Glu::Geglu, hidden),
            }
        } else {
            match act {
                Act::Silu => hidden.silu(),
                Act::ReluSqr => hidden.relu().sqr(),
                _ => hidden.gelu(),
            }
        };
        self.linear(down, hidden)
    }

    /// Two matrices with a GELU between them.
    fn mlp(&self, up: &str, down: &str, x: Node<'g>) -> Node<'g> {
        self.ffn([up, "", down], x, Act::Gelu)
    }

    /// Positions or places, set from outside.
    fn ids(&self, n: u64) -> Node<'g> {
        self.draft.input(i32(), &[n])
    }

    fn input(&self, dims: &[u64]) -> Node<'g> {
        self.draft.input(f32(), dims)
    }

    /// The pixels, or the spectrum of a sound.
    fn raw(&self) -> Node<'g> {
        let channels = if self.e.modality == Modality::Vision { 3 } else { 1 };
        self.input(&[self.nx, self.ny, channels])
    }

    fn patch_window(&self) -> Window {
        Window::new(self.e.patch_size, 0)
    }

    /// Pixels to patches (`build_inp`).
    fn patches(&self) -> Node<'g> {
        let patches = self.weight("v.patch_embd").conv_2d(self.raw(), self.patch_window());
        let rows = patches.reshape(&[self.n_patches, self.e.n_embd]).transpose().cont();
        self.biased("v.patch_embd", rows)
    }

    fn positions(&self) -> Node<'g> {
        self.need(&format!("{}.position_embd.weight", self.e.prefix()))
    }

    /// The learned positions, for an image of another size (`resize_position_embeddings`).
    fn resized_positions(&self) -> Node<'g> {
        let (n, table) = (self.e.n_embd, self.positions());
        let side = table.ne(1).isqrt();
        if (self.px, self.py) == (side, side) {
            return table;
        }
        let grid = table.reshape(&[n, side, side]).permute([2, 0, 1, 3]);
        grid.resized(&[self.px, self.py, n]).permute([1, 2, 0, 3]).cont_nd(&[n, self.n_patches])
    }

    /// The name of a part of a block.
    fn at(&self, il: u64, name: &str) -> String {
        format!("{}.blk.{il}.{name}", self.e.prefix())
    }

    /// The blocks, as long as nothing is wrong.
    fn blocks(&self) -> impl Iterator<Item = u64> {
        (0..self.e.n_layer).take_while(|_| !self.draft.is_faulty())
    }

    /// Attention without a cache, and its output projection (`build_attn`).
    fn attn(&self, out: &str, [q, k, v]: [Node<'g>; 3], mask: Option<Node<'g>>, sinks: Option<Node<'g>>) -> Node<'g> {
        self.draft.expand(&[q, k, v]);
        let (q, k) = (q.permute(HEADS), k.permute(HEADS));
        let rows = if self.flash_attn {
            let [k, v] = [k, v.permute(HEADS)].map(|x| x.cast(f16()));
            let rows = q.flash_attn_ext(k, v, mask.map(|mask| mask.cast(f16())));
            rows.add_sinks(sinks);
            let ne = rows.shape();
            rows.reshape(&[ne[0] * ne[1], ne[2] * ne[3]])
        } else {
            let v = v.permute([1, 2, 0, 3]).cont();
            let scores = k.mm(q);
            let scores = mask.map_or_else(|| scores.soft_max(), |mask| scores.soft_max_masked(mask));
            scores.add_sinks(sinks);
            let rows = v.mm(scores).permute(HEADS);
            let ne = rows.shape();
            rows.cont_nd(&[ne[0] * ne[1], ne[2] * ne[3]])
        };
        let rows = if self.maybe(out).is_some() { self.mm(out, rows) } else { rows };
        self.biased(out, rows)
    }

    /// Queries, keys and values of a block, `[head, heads, positions, images]`.
    fn qkv(&self, il: u64, x: Node<'g>, norm: Norm, n_pos: u64, n_images: u64) -> [Node<'g>; 3] {
        let (d, n, n_kv) = (self.e.d_head, self.e.n_head, self.e.n_head_kv);
        let name = |name: &str| self.at(il, name);
        let normed = |part: &str, x: Node<'g>| {
            let weight = self.maybe(&name(part));
            weight.map_or(x, |weight| x.norm(norm, Some(weight), None))
        };
        if self.maybe(&name("attn_qkv")).is_some() {
            let rows = self.linear(&name("attn_qkv"), x);
            let nb = rows.nb(1);
            let part = |i: u64| rows.view(&[d, n, n_pos, n_images], &[4 * d, nb, nb * n_pos], i * 4 * n * d);
            return [normed("attn_q_norm", part(0)), normed("attn_k_norm", part(1)), part(2)];
        }
        let [mut q, mut k, v] = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), x));
        let by_head = self.maybe(&name("attn_q_norm")).is_some_and(|weight| weight.ne(0) == d);
        if !by_head {
            (q, k) = (normed("attn_q_norm", q), normed("attn_k_norm", k));
        }
        let heads = |x: Node<'g>, n: u64| x.reshape(&[d, n, n_pos, n_images]);
        let [q, k, v] = [heads(q, n), heads(k, n_kv), heads(v, n_kv)];
        if by_head { [normed("attn_q_norm", q), normed("attn_k_norm", k), v] } else { [q, k, v] }
    }

    /// The feed-forward part of a block. Old converters exchanged its matrices' names (`is_ffn_swapped`).
    fn block_ffn(&self, il: u64, x: Node<'g>, act: Act) -> Node<'g> {
        let name = |name: &str| self.at(il, name);
        if self.tensor(&name("ffn_gate_exps.weight")).is_some() {
            return self.experts(il, x);
        }
        let [mut up, gate, mut down] = ["ffn_up", "ffn_gate", "ffn_down"].map(name);
        let old = [
            "mlp",
            "ldp",
            "ldpv2",
            "qwen2vl_merger",
            "qwen2.5vl_merger",
            "exaone4_5",
            "adapter",
            "gemma3",
            "idefics3",
            "resampler",
            "minicpmv4_6",
        ];
        if old.contains(&self.e.kind.name) && self.maybe(&down).is_some_and(|down| down.ne(0) == self.e.n_embd) {
            std::mem::swap(&mut up, &mut down);
        }
        self.ffn([&up, &gate, &down], x, act)
    }

    /// Experts of a block (`build_moe_ffn`).
    fn experts(&self, il: u64, x: Node<'g>) -> Node<'g> {
        let weight = |name: &str| self.weight(&self.at(il, name));
        let n_tokens = x.ne(1);
        let probs = self.mm(&self.at(il, "ffn_gate_inp"), x).sigmoid();
        let n_expert = weight("ffn_gate_exps").ne(2);
        let n_used = self.number("vision.expert_used_count").min(n_expert);
        let scores = self.maybe(&self.at(il, "exp_probs_b")).map_or(probs, |bias| probs + bias);
        let chosen = scores.top_k(n_used);
        let weights = probs.reshape(&[1, n_expert, n_tokens]).get_rows(chosen).reshape(&[n_used, n_tokens]);
        let weights = (weights / weights.sum_rows()).reshape(&[1, n_used, n_tokens]);
        let rows = x.reshape(&[x.ne(0), 1, n_tokens]);
        let [gate, up] = ["ffn_gate_exps", "ffn_up_exps"].map(|name| weight(name).mm_id(rows, chosen));
        let experts = weight("ffn_down_exps").mm_id(gate.silu() * up, chosen) * weights;
        let t = experts.tensor();
        let one = |i| experts.view(&[t.ne[0], n_tokens], &[t.nb[2]], i * t.nb[1]);
        let sum = (1..n_used).fold(one(0), |sum, i| sum + one(i));
        if n_used == 1 { sum.cont() } else { sum }
    }

    /// A transformer over `n_pos` rows of each image (`build_vit`).
    fn vit(&self, x: Node<'g>, n_pos: u64, norm: Norm, act: Act, vit: &Vit<'_, 'g>) -> Node<'g> {
        let (n_images, prefix) = (x.ne(2), self.e.prefix());
        let x = vit.pos.map_or(x, |pos| x + pos).reshape(&[self.e.n_embd, n_pos * n_images]);
        let (pre, post) = (format!("{prefix}.pre_ln"), format!("{prefix}.post_ln"));
        let mut rows = if self.maybe(&pre).is_some() { self.norm(norm, &pre, x) } else { x };
        for il in self.blocks() {
            let name = |name: &str| self.at(il, name);
            let scaled = |part: &str, x: Node<'g>| self.maybe(&name(part)).map_or(x, |scale| x * scale);
            let normed = |part: &str, x: Node<'g>| {
                let weight = self.maybe(&name(part));
                weight.map_or(x, |weight| x.norm(norm, Some(weight), None))
            };
            let [mut q, mut k, mut v] = self.qkv(il, self.norm(norm, &name("ln1"), rows), norm, n_pos, n_images);
            if let Some(turn) = vit.turn {
                (q, k) = (turn(q), turn(k));
            }
            if self.e.kind.name == "gemma4v" {
                v = v.rms();
            }
            let mask = vit.mask.and_then(|mask| mask(il));
            let attended = self.attn(&name("attn_out"), [q, k, v], mask, None);
            let attended = normed("attn_post_norm", scaled("ls1", attended)) + rows;
            if let Some((_, found)) = vit.tap.filter(|(layer, _)| *layer == il) {
                found.replace(Some(attended));
            }
            let fed = self.block_ffn(il, self.norm(norm, &name("ln2"), attended), act);
            rows = scaled("out_scale", attended + scaled("ls2", normed("ffn_post_norm", fed)));
        }
        if matches!(self.e.kind.name, "qwen2a" | "voxtral" | "musicflamingo") {
            rows = rows.transpose().cont().pool(2, 1).transpose().cont();
        }
        // Of dots' projectors the last norm has a name of its own.
        let post = if matches!(self.e.kind.name, "dots_ocr" | "dots3note_v") { "mm.post_norm" } else { &post };
        if self.maybe(post).is_some() && !vit.skip_post_norm {
            // Its bias is the encoder's own.
            rows = rows.norm(norm, self.maybe(post), self.bias(&format!("{prefix}.post_ln")));
        }
        rows.reshape(&[self.e.n_embd, rows.ne(1) / n_images, n_images])
    }

    /// Neighbours side by side (`build_patch_merge_permute`).
    fn merge_patches(&self, x: Node<'g>, n: u64) -> Node<'g> {
        let (d, width, height) = (x.ne(0), self.px.next_multiple_of(n), self.py.next_multiple_of(n));
        let mut grid = x.reshape(&[d, self.px, self.py]);
        if (width, height) != (self.px, self.py) {
            grid = grid.pad_nd([0, width - self.px, height - self.py, 0]);
        }
        let wide = grid.reshape(&[d * n, width / n, height]).permute(HEADS);
        let grid = wide.cont_nd(&[d * n * n, height / n, width / n]).permute(HEADS);
        let ne = grid.shape();
        grid.cont_nd(&[ne[0], ne[1] * ne[2]])
    }

    /// Two by two neighbours after one another.
    fn by_square(&self, x: Node<'g>, n: u64) -> Node<'g> {
        let (d, px, py) = (self.e.n_embd, self.px, self.py);
        let pairs = x.cont_nd(&[d * n, px / n, py]).reshape(&[d * n, px / n, n, py / n]);
        pairs.permute(HEADS).cont_nd(&[d, px * py])
    }

    /// A tensor that is not set, such as a kernel of which only the shape counts.
    fn unset(&self, dims: &[u64]) -> Node<'g> {
        let ne = [0, 1, 2, 3].map(|i| dims.get(i).copied().unwrap_or(1));
        self.draft.push(Tensor::new(f32(), ne))
    }

    /// Numbers in a row, as whole ones.
    fn counted(&self, n: u64) -> Node<'g> {
        self.draft.make(Op::Arange, f32(), [n, 1, 1, 1], &[]).cast(i32())
    }
}

impl Node<'_> {
    /// Its bytes in a row of `n` elements.
    fn row_bytes(self, n: u64) -> u64 {
        super::tensor::row_size(self.tensor().ty, n)
    }

    /// An operation that no rule tells from its like, of its shape.
    fn plain(self) -> Self {
        self.op(Op::Plain)
    }

    /// An element-wise function in its place.
    fn in_place(self, function: Unary) -> Self {
        self.into_place(Op::Unary(function), &[self])
    }

    /// `n` rows from row `at` on.
    fn rows_from(self, at: u64, n: u64) -> Self {
        let d = self.ne(0);
        self.view(&[d, n], &[self.row_bytes(d)], at * self.row_bytes(d))
    }
}
