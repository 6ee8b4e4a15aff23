//! Models that draft for another one: they read its hidden states, and share its embeddings, its output matrix or its caches.
//!
//! Source: `src/models/dflash.cpp`, `eagle3.cpp`, `gemma4-assistant.cpp`, llama.cpp b11434. Their encoders and the passes that fill
//! their caches are never reserved.

use super::super::attention::{Extras, Qkv};
use super::super::ffn::Act;
use super::super::tensor::{Node, Op};
use super::super::{Builder, Error, Layer, Norm};
use super::{deepseek4, gemma};
use crate::gguf::Value;
use crate::gguf::ggml_type::{f32, i32};
use crate::placement::Copy;

/// eagle3: one layer that attends to a token beside what the target's layers made of the one before.
pub(super) fn eagle3<'g>(b: &'g Builder<'g>) {
    let tokens = b.draft.input(i32(), &[b.n_tokens]);
    let h = b.draft.input(f32(), &[b.n_embd, b.n_tokens]);
    let embedding = embeddings(b).get_rows(tokens);
    let (positions, attn, l) = (b.inp_pos(), b.inp_attn(), b.layer(0));
    let embedding = l.norm("attn_norm", embedding);
    let normed = h.norm(Norm::Rms, Some(l.weight("attn_norm_2")), None);
    let residual = if l.flag("norm_before_residual") { normed } else { h };
    let x = embedding.concat(normed, 0);
    let by_head = |name: &str, head, n| l.raw_mm(name, x).reshape(&[head, n, l.n_tokens]);
    let mut qkv = Qkv {
        q: by_head("attn_q", l.head_k, l.n_head),
        k: by_head("attn_k", l.head_k, l.n_kv),
        v: by_head("attn_v", l.head_v, l.n_kv),
    };
    qkv.rope(positions, l.rope_factors());
    let middle = l.raw_mm("attn_output", l.attn(&attn, qkv, Extras::default())) + residual;
    let rows = l.ffn("", l.norm("ffn_norm", middle), Act::Silu) + middle;
    let scores = scores(b, b.output_norm(rows.mark_output(), Norm::Rms));
    to_target_vocabulary(b, scores).mark_output().expand();
}

/// dflash: a block of masks behind the last token, seen at once; dspark's chain, dflash2's lattice, or deepseek4's layers.
pub(super) fn dflash<'g>(b: &'g Builder<'g>) {
    let has_streams = b.hparam_or_0("hyper_connection.count") > 0;
    let tokens = b.draft.input(i32(), &[b.n_tokens]);
    let embedding = embeddings(b).get_rows(tokens);
    let (rows, selected) = if has_streams {
        let hidden = deepseek4::stages(b, embedding).mark_output();
        (b.output_norm(hidden, Norm::Rms), hidden)
    } else {
        let rows = dflash_layers(b, embedding);
        (rows, rows)
    };
    let selects = b.get("selector_hidden", "weight").filter(|_| !has_streams);
    let mut scores = scores(b, rows);
    if selects.is_some() && b.is_set("logit_scale") {
        scores = scores.scale();
    }
    if selects.is_some() && b.f64_or_0("final_logit_softcapping") > 0.0 {
        scores = scores.scale().tanh().scale();
    }
    if !has_streams {
        scores = to_target_vocabulary(b, scores);
    }
    scores.expand();
    let scores = if b.get("markov_w1", "weight").is_some() { markov(b, tokens, scores, selected) } else { scores };
    scores.mark_output();
    if let Some(gate) = selects {
        lattice(b, tokens, scores, gate.mm(rows)).mark_output().expand();
    }
}

/// gemma4-assistant: layers without keys of their own, which read those of the target's last ones.
pub(super) fn gemma4_assistant<'g>(b: &'g Builder<'g>) {
    let Some(other) = b.plan.other else {
        alone(b, "has its caches");
        return;
    };
    let n_embd = match b.hparam_or_0("embedding_length_out") {
        0 => b.n_embd,
        n => n,
    };
    let tokens = b.draft.input(i32(), &[b.n_tokens]);
    let h = b.draft.input(f32(), &[n_embd, b.n_tokens]);
    let embedding = target_embeddings(b).get_rows(tokens).scale();
    let mut rows = b.global("nextn.pre_projection").mm(embedding.concat(h, 0));
    let (attn, positions, out_ids) = (b.inp_attn(), b.inp_pos(), b.inp_out_ids());
    let n_layer = b.hparams().nextn_predict_layers;
    for l in (0..n_layer).map_while(|il| (!b.draft.is_faulty()).then(|| b.layer(il))) {
        let is_swa = l.hp.is_swa;
        let factors = if is_swa { None } else { l.global_here("rope_freqs") };
        let q = l.raw_mm("attn_q", l.norm("attn_norm", rows)).reshape(&[l.head_k, l.n_head, l.n_tokens]);
        let q = l.norm("attn_q_norm", q).rope(positions, factors);
        let Some(shared) = other.caches.hparams.n_layer.checked_sub(if is_swa { 2 } else { 1 }) else {
            b.fail(Error::Layer { il: 0 });
            return;
        };
        let owner = gemma::owner(other.caches, shared, is_swa).unwrap_or(shared);
        let mut x = l.raw_mm("attn_output", l.attn_with(l.cached(&attn, is_swa), q, None, owner, Extras::default()));
        if l.il + 1 == n_layer {
            [x, rows] = [x, rows].map(|rows| rows.get_rows(out_ids));
        }
        let middle = l.norm("post_attention_norm", x) + rows;
        let post_norm = l.weight("post_ffw_norm");
        let x = l.ffn("", l.norm("ffn_norm", middle), Act::Gelu).norm(Norm::Rms, Some(post_norm), None);
        rows = (x + middle) * l.weight("layer_output_scale");
    }
    let rows = b.output_norm(rows, Norm::Rms);
    b.lm_head(rows).mark_output().expand();
    b.global("nextn.post_projection").mm(rows).mark_output().expand();
}

/// The draft model's own token embeddings, else the target's.
fn embeddings<'g>(b: &'g Builder<'g>) -> Node<'g> {
    b.get("token_embd", "weight").unwrap_or_else(|| target_embeddings(b))
}

fn target_embeddings<'g>(b: &'g Builder<'g>) -> Node<'g> {
    b.theirs("token_embd", "weight", <[Copy]>::first).unwrap_or_else(|| alone(b, "has its token embeddings"))
}

fn alone<'g>(b: &'g Builder<'g>, what: &'static str) -> Node<'g> {
    b.fail(Error::Alone { architecture: b.plan.model.architecture.clone(), what })
}

/// The draft model's own output matrix, else the target's, times `rows`; eagle3 heeds no scale of it.
fn scores<'g>(b: &'g Builder<'g>, rows: Node<'g>) -> Node<'g> {
    let is_dflash = b.arch.name == "dflash";
    let own = b.last_copy("output").or_else(|| b.last_copy("token_embd").filter(|_| is_dflash));
    let theirs = |name: &str, ending: &str| b.theirs(name, ending, <[Copy]>::last);
    let weight = own.or_else(|| theirs("output", "weight")).or_else(|| theirs("token_embd", "weight"));
    let scale = if own.is_some() { b.get("output", "scale") } else { theirs("output", "scale") };
    let scores = weight.unwrap_or_else(|| alone(b, "has its output matrix")).mm(rows);
    scale.filter(|_| is_dflash).map_or(scores, |scale| scores * scale)
}

/// Rows of the draft vocabulary as rows of the target's (`d2t`).
fn to_target_vocabulary<'g>(b: &'g Builder<'g>, rows: Node<'g>) -> Node<'g> {
    let Some(places) = b.get("d2t", "") else { return rows };
    let [n_draft, n_rows, ..] = rows.shape();
    let n_vocab = u64::from(b.hparams().vocab_size);
    let all = b.draft.filled(f32(), &[1, n_vocab, n_rows]);
    let all = all.set_rows(rows.reshape(&[1, n_draft, n_rows]), places.reshape(&[n_draft]));
    all.reshape(&[n_vocab, n_rows])
}

/// The layers of a plain dflash and the last norm.
fn dflash_layers<'g>(b: &'g Builder<'g>, embedding: Node<'g>) -> Node<'g> {
    let mut rows = if b.is_set("embedding_scale") { embedding.scale() } else { embedding };
    let (positions, attn) = (b.inp_pos(), b.inp_attn());
    // One for all layers, wherever they are; turned by sections, none has any.
    let is_sectioned = positions.elements() > b.n_tokens;
    let factors = if is_sectioned { None } else { b.layer(0).global_here("rope_freqs") };
    let act = match b.hparams().value("hidden_activation") {
        Some(Value::String(name)) if name.starts_with("gelu") => Act::Gelu,
        _ => Act::Silu,
    };
    for l in b.layers() {
        let x = l.norm("attn_norm", rows);
        let taps = l.maybe("attn_conv_proj").map(|weight| weight.mm(x));
        let x = taps.map_or(x, |taps| convolve(l, "attn_conv_base", x, taps, 0));
        let [q, k] = ["attn_q", "attn_k"].map(|name| l.mm(name, x));
        let v = if l.has("attn_v") { l.mm("attn_v", x) } else { k };
        let [q, k, v] = [(q, l.n_head), (k, l.n_kv), (v, l.n_kv)].map(|(x, n)| x.reshape(&[l.head_v, n, l.n_tokens]));
        let v = if l.has("attn_v") { v } else { v.rms() };
        let mut qkv = Qkv { q: l.norm("attn_q_norm", q), k: l.norm("attn_k_norm", k), v };
        qkv.rope(positions, factors);
        let mut x = l.attn_out(&attn, qkv);
        if l.is_set("attention.value_scale") {
            x = x.scale();
        }
        let x = taps.map_or(x, |taps| convolve(l, "attn_conv_base", x, taps, 1));
        let x = if l.has("post_attention_norm") { l.norm("post_attention_norm", x) } else { x };
        let middle = x + rows;
        let x = l.norm("ffn_norm", middle);
        let taps = l.maybe("ffn_conv_proj").map(|weight| weight.mm(x));
        let x = taps.map_or(x, |taps| convolve(l, "ffn_conv_base", x, taps, 0));
        let x = l.ffn("", x, act);
        let x = taps.map_or(x, |taps| convolve(l, "ffn_conv_base", x, taps, 1));
        let x = if l.has("post_ffw_norm") { l.norm("post_ffw_norm", x) } else { x };
        rows = x + middle;
        rows = l.maybe("layer_output_scale").map_or(rows, |scale| rows * scale);
    }
    b.output_norm(rows, Norm::Rms).mark_output()
}

/// A short convolution within each block, by weights that the rows themselves say (`build_dflash2_conv`).
fn convolve<'g>(l: Layer<'g>, base: &str, x: Node<'g>, taps: Node<'g>, side: u64) -> Node<'g> {
    let (kernel, group) = (l.hparam("conv_kernel_size"), l.hparam("conv_group_size"));
    let (n, width, n_tokens) = (l.n_seqs, x.ne(0), l.n_tokens);
    let (n_groups, block) = (width / group, n_tokens / n);
    let blocks = x.reshape(&[width, block, n]);
    let taps = taps.reshape(&[n_groups, kernel, 2, n_tokens]);
    let taps = taps.view(&[n_groups, kernel, n_tokens], &[taps.nb(1), taps.nb(3)], side * taps.nb(2)).cont();
    let taps = taps.reshape(&[1, n_groups, kernel, n_tokens]).repeat(&[group, n_groups, kernel, n_tokens]);
    let base = l.need(base, "");
    let base = base.view(&[width * kernel], &[], side * base.nb(2)).reshape(&[group, n_groups, kernel]);
    let weights = taps + base;
    let tap = |i: u64| {
        let values = if i == 0 {
            blocks
        } else {
            blocks.view(&[width, block - i, n], &blocks.strides()[1..3], 0).pad_nd([0, i, 0, 0])
        };
        let values = values.reshape(&[width, n_tokens]);
        let strides = &weights.strides()[1..];
        let weight = weights.view(&[group, n_groups, 1, n_tokens], strides, i * weights.nb(2));
        weight.cont().reshape(&[width, n_tokens]) * values
    };
    let rest = (1..kernel.min(block)).map(tap);
    rest.fold(tap(0), |sum, term| sum + term)
}

/// dspark: each position of a block adds what the token before it says, as long as blocks are no longer than the trained ones
/// (`build_dspark_markov_head`).
fn markov<'g>(b: &'g Builder<'g>, tokens: Node<'g>, scores: Node<'g>, hidden: Node<'g>) -> Node<'g> {
    let (n_blocks, block) = (b.n_seqs, b.n_seq_tokens);
    if block > b.hparam("block_size") {
        return scores;
    }
    let (w1, w2, conf) = (b.global("markov_w1"), b.global("markov_w2"), b.get("conf_proj", "weight"));
    let n_vocab = scores.ne(0);
    let at = |rows: Node<'g>, width: u64, i: u64| rows.view(&[width, n_blocks], &[block * rows.nb(1)], i * rows.nb(1));
    let mut prev = tokens.view(&[1, n_blocks], &[block * tokens.nb(0)], 0).cont_nd(&[n_blocks]);
    let (mut all, mut trust): (Option<Node<'g>>, Option<Node<'g>>) = (None, None);
    let samples_anchor = !matches!(b.hparams().value("sample_from_anchor"), Some(Value::Bool(false)));
    if !samples_anchor {
        all = Some(at(scores, n_vocab, 0).cont());
        trust = conf.map(|_| at(scores, 1, 0).cont().sigmoid());
    }
    for i in u64::from(!samples_anchor)..block {
        let row = w1.get_rows(prev);
        let bias = w2.mm(row);
        let bias = b.get("markov_w2", "scale").map_or(bias, |scale| bias * scale);
        let column = at(scores, n_vocab, i) + to_target_vocabulary(b, bias);
        all = Some(all.map_or(column, |all| all.concat(column, 1)));
        if let Some(weight) = conf {
            let feature = at(hidden, hidden.ne(0), i).cont().concat(row, 0);
            let score = weight.mm(feature);
            let score = b.get("conf_proj", "bias").map_or(score, |bias| score + bias).sigmoid();
            trust = Some(trust.map_or(score, |trust| trust.concat(score, 1)));
        }
        if i + 1 < block {
            prev = column.make(Op::Plain, i32(), [n_blocks, 1, 1, 1], &[column]);
        }
    }
    let Some(all) = all else { return scores };
    // By position, then by block: the other way round again.
    let turned = |x: Node<'g>, width: u64| {
        let x = x.reshape(&[width, n_blocks, block]).permute([0, 2, 1, 3]).cont();
        x.reshape(&[width, n_blocks * block])
    };
    let all = turned(all, n_vocab);
    if let Some(trust) = trust {
        turned(trust, 1).repeat(&hidden.shape()).mark_output().expand();
    }
    all.expand()
}

/// dflash2: the best tokens of each position and how well each follows each (`build_dflash2_selector`).
fn lattice<'g>(b: &'g Builder<'g>, tokens: Node<'g>, scores: Node<'g>, gate: Node<'g>) -> Node<'g> {
    let (k, rank) = (b.hparam("selector_top_k"), b.hparam("selector_rank"));
    let (n, per_block, n_tokens) = (b.n_seqs, b.n_seq_tokens, b.n_tokens);
    let block = per_block.min(b.hparam("block_size"));
    let best = scores.top_k(k);
    let unary = scores.reshape(&[1, scores.ne(0), n_tokens]).get_rows(best).reshape(&[k, n_tokens]);
    let [best, unary, gate] = [(best, k), (unary, k), (gate, rank)].map(|(x, width)| x.reshape(&[width, per_block, n]));
    let part =
        |x: Node<'g>, from: u64, count: u64| x.view(&[x.ne(0), count, n], &x.strides()[1..3], from * x.nb(1)).cont();
    let run = |from: u64, count: u64, before: Node<'g>| {
        let [best, unary, gate] = [best, unary, gate].map(|x| part(x, from, count));
        let n_before = before.ne(0) / (count * n);
        let next = b.global("selector_successor").get_rows(best.reshape(&[k * count * n]));
        let next = next.reshape(&[rank, k, count, n]);
        let prev = b.global("selector_predecessor").get_rows(before).reshape(&[rank, n_before, count, n]);
        let gated = prev * gate.reshape(&[rank, 1, count, n]).repeat(&prev.shape());
        let score = next.mm(gated);
        let score = if n_before == 1 { score.repeat(&[k, k, count, n]) } else { score };
        let score = score + unary.reshape(&[k, 1, count, n]).repeat(&score.shape());
        let row = best.cast(f32()).concat(score.reshape(&[k * k, count, n]), 0);
        row.pad(b.n_embd - row.ne(0).min(b.n_embd))
    };
    let mut packed = b.draft.filled(f32(), &[b.n_embd, 1, n]);
    if block > 1 {
        let anchors = tokens.view(&[1, n], &[per_block * tokens.nb(0)], 0).cont_nd(&[n]);
        packed = packed.concat(run(1, 1, anchors), 1);
    }
    if block > 2 {
        let before = part(best, 1, block - 2);
        packed = packed.concat(run(2, block - 2, before.reshape(&[k * (block - 2) * n])), 1);
    }
    packed.reshape(&[b.n_embd, block * n])
}
