//! ik_llama.cpp's own graphs, where they are unlike llama.cpp's.
//!
//! Source: `src/graphs/build_deepseek2.cpp` `build_deepseek2_layer_attention`, ik-llama-cpp-sys 0.1.7.

use super::super::attention::{Extras, Qkv};
use super::super::ops::HEADS;
use super::super::tensor::{Node, Op};
use super::super::{Builder, Layer};
use super::mla::{SPEC, Sizes};
use super::plain::stack;
use crate::gguf::ggml_type::{f16, f32};
use crate::memory::caches::CacheKind;
use crate::placement::by_size::{halves, heads_at_once, joined};

/// From so many tokens on latents are turned into the keys and values of all heads.
const PROMPT: u64 = 128;

/// deepseek2 and what is built like it.
pub(super) fn mla<'g>(b: &'g Builder<'g>) {
    let rows = b.tokens();
    let (positions, mask) = (b.inp_pos(), b.inp_k(CacheKind::Base).mask);
    stack(b, &SPEC, rows, |l, x| l.mm("attn_output", attention(l, x, positions, mask)));
}

fn sizes(l: Layer<'_>) -> Sizes {
    let head = |stated: &str, plain: u64| match l.hparam_or_0(stated) {
        0 => plain,
        head => head,
    };
    let heads = (head("attention.key_length_mla", l.head_k), head("attention.value_length_mla", l.head_v));
    l.mla_sizes_of(heads, "attention.kv_lora_rank")
}

fn attention<'g>(l: Layer<'g>, x: Node<'g>, positions: Node<'g>, mask: Node<'g>) -> Node<'g> {
    let s = sizes(l);
    let (rules, n_tokens) = (l.plan.rules, l.n_tokens);
    let is_direct = l.has("attn_q");
    let q = l.raw_mm(if is_direct { "attn_q" } else { "attn_q_a" }, x);
    let both = l.raw_mm("attn_kv_a_mqa", x);
    l.draft.expand(&[q, both]);
    let q = if is_direct { q } else { l.raw_mm("attn_q_b", l.norm("attn_q_a_norm", q)) };
    let q_nope = q.split(s.nope, s.n_head, s.k_head, 0);
    let q_rope = q.split(s.rope, s.n_head, s.k_head, s.nope);
    let row = both.nb(1);
    let k_rope = both.view(&[s.rope, 1, n_tokens], &[row, row], 4 * s.latent);
    let latent = both.view(&[s.latent, n_tokens], &[row], 0);
    l.draft.expand(&[q_rope, k_rope]);
    let (q_rope, k_rope) = (q_rope.rope(positions, None), k_rope.rope(positions, None));
    l.draft.expand(&[q_rope, k_rope]);
    let latent = l.norm("attn_kv_a_norm", latent);
    if rules.mla == 0 {
        return heads(l, s, (q_nope, q_rope), (latent, k_rope), mask);
    }
    let cache = l.keys(CacheKind::Base, l.il);
    let n_kv = cache.ne(1);
    let cache = cache.view(&[s.rope + s.latent, n_kv], &[], 0);
    let transposed = (rules.mla == 1 && !l.plan.flash_attn).then(|| {
        let values = l.values(CacheKind::Base, l.il);
        latent.transpose().cpy(values.view(&[n_tokens, s.latent], &[2 * n_kv], 0)).expand();
        values.view(&[n_kv, s.latent], &[], 0)
    });
    let rows = k_rope.permute(HEADS).concat(latent.reshape(&[s.latent, n_tokens, 1]), 0);
    l.store_k(CacheKind::Base, l.il, rows, mask);
    let latents = cache.view(&[s.latent, n_kv], &[cache.nb(1)], 0);
    if rules.mla > 1 && l.plan.flash_attn && n_tokens >= PROMPT {
        return decompressed(l, s, (q_nope, q_rope), (cache, latents), mask);
    }
    let [k_b, _] = split_weights(l, s);
    let q_nope = k_b.mm(q_nope.permute(HEADS));
    let q = q_rope.permute(HEADS).concat(q_nope, 0);
    let found = if l.plan.flash_attn && rules.mla != 2 {
        q.flash_attn_ext(cache.reshape(&[s.rope + s.latent, n_kv, 1]), latents, Some(mask)).permute(HEADS)
    } else {
        let values = transposed.unwrap_or_else(|| latents.transpose().cont());
        scores(l, q, cache, values, mask)
    };
    let [_, v_b] = split_weights(l, s);
    let rows = v_b.mm(found).permute(HEADS).cont();
    rows.reshape(&[rows.ne(0) * rows.ne(1), n_tokens]).expand()
}

/// Scores of all heads, or of as many at a time as `-amb` allows.
fn scores<'g>(l: Layer<'g>, q: Node<'g>, cache: Node<'g>, values: Node<'g>, mask: Node<'g>) -> Node<'g> {
    let [_, n_tokens, n_head, _] = q.shape();
    let n_kv = cache.ne(1);
    let (size, most) = ((n_kv * n_tokens * n_head * 4) >> 20, u64::from(l.plan.rules.attention_mib));
    let is_prompt = l.n_tokens >= PROMPT && l.plan.rules.mla > 1;
    if most == 0 || most >= size {
        let q = if is_prompt { q } else { q.permute(HEADS) };
        let kq = cache.mm(q);
        let kq = if is_prompt { kq } else { kq.permute(HEADS).cont() };
        let kq = kq.soft_max_masked(mask);
        let kq = if is_prompt { kq } else { kq.permute(HEADS) };
        let found = values.mm(kq);
        return if is_prompt { found } else { found.permute(HEADS) };
    }
    let each = n_head.div_ceil(size.div_ceil(most).min(n_head));
    in_parts(q, each, 2, |q, _| values.mm(cache.mm(q).soft_max_masked(mask)))
}

/// What `part` makes of so many heads of `q` at a time, from the first of them on, joined along a dimension.
fn in_parts<'g>(q: Node<'g>, each: u64, dim: u32, part: impl Fn(Node<'g>, u64) -> Node<'g>) -> Node<'g> {
    let [width, n_tokens, n_head, _] = q.shape();
    let firsts = (0..n_head).step_by(usize::try_from(each).unwrap_or(1).max(1));
    let parts = firsts.map(|first| {
        let heads = [width, n_tokens, each.min(n_head - first)];
        part(q.view(&heads, &[q.nb(1), q.nb(2)], q.nb(2) * first), first)
    });
    parts.reduce(|all, next| all.concat(next, dim).expand()).unwrap_or(q)
}

/// Keys and values of every head from all latents, of as many heads at a time as `-amb` allows.
fn decompressed<'g>(
    l: Layer<'g>,
    s: Sizes,
    (q_nope, q_rope): (Node<'g>, Node<'g>),
    (cache, latents): (Node<'g>, Node<'g>),
    mask: Node<'g>,
) -> Node<'g> {
    let n_kv = cache.ne(1);
    let kv_b = joined_weight(l, s);
    let (by_head, weight) = (s.nope + s.v_head, kv_b.tensor());
    let size = (by_head * s.n_head * n_kv * 4) >> 20;
    let n_heads = heads_at_once(s.n_head, size, u64::from(l.plan.rules.attention_mib));
    // Where there are devices, in F16 whatever the cache is.
    let ty = if l.plan.placement.devices.is_empty() { cache.tensor().ty } else { f16() };
    let turned = cache.view(&[s.rope, n_kv, 1], &[cache.nb(1)], 0);
    // Its CUDA copies from every type.
    let same = turned.tensor().ty == ty;
    let turned = if same { turned } else { l.draft.make(Op::Plain, ty, turned.shape(), &[turned]) };
    let turned = turned.repeat(&[s.rope, n_kv, n_heads]);
    let q = q_rope.concat(q_nope, 0).permute(HEADS).expand();
    in_parts(q, n_heads, 0, |q, first| {
        let width = by_head * n_heads;
        let part = kv_b.view(&[s.latent, width], &[weight.nb[1]], weight.nb[1] * by_head * first);
        // CUDA multiplies F16 by quantized weights here.
        let is_plain = weight.ty.is_quantized || weight.ty == f16();
        let kv = if is_plain {
            l.draft.make(Op::Plain, f32(), [width, n_kv, 1, 1], &[part, latents])
        } else {
            part.mm(latents)
        };
        let of = |n: u64, at: u64| kv.view(&[n, n_kv, n_heads], &[4 * width, 4 * by_head], 4 * at);
        let v = of(s.v_head, s.nope).cast(ty);
        let k = of(s.nope, 0).cast(ty);
        l.draft.expand(&[k, v]);
        let k = turned.concat(k, 0).expand();
        q.flash_attn_ext(k, v, Some(mask)).reshape(&[s.v_head * n_heads, l.n_tokens]).expand()
    })
}

/// Keys and values by head in the cache (`-mla 0`).
fn heads<'g>(
    l: Layer<'g>,
    s: Sizes,
    (q_nope, q_rope): (Node<'g>, Node<'g>),
    (latent, k_rope): (Node<'g>, Node<'g>),
    mask: Node<'g>,
) -> Node<'g> {
    let kv = joined_weight(l, s).mm(latent);
    let part = |width, at| kv.split(width, s.n_head, s.nope + s.v_head, at);
    let v = part(s.v_head, s.nope).cont();
    let q = q_nope.concat(q_rope, 0);
    let k = part(s.nope, 0).concat(k_rope.repeat(&[s.rope, s.n_head, l.n_tokens]), 0);
    l.draft.expand(&[q, k, v]);
    l.store_k(CacheKind::Base, l.il, k, mask);
    l.store_v(CacheKind::Base, l.il, v, mask);
    let k = l.get_k(CacheKind::Base, l.il, s.k_head, s.n_head);
    let v = l.get_v(CacheKind::Base, l.il, s.v_head, s.n_head);
    l.mha(Qkv { q, k, v }, mask, None, Extras::default())
}

/// `attn_k_b` and `attn_v_b`, or what is made of `attn_kv_b` (`llm_prepare_mla`).
fn split_weights(l: Layer<'_>, s: Sizes) -> [Node<'_>; 2] {
    let made = |name: &str, dims: [u64; 3], i: usize| {
        l.get(name, "weight").unwrap_or_else(|| {
            let whole = l.weight("attn_kv_b").tensor();
            l.draft.hold(halves(whole.ty)[i], &dims, whole.held)
        })
    };
    [made("attn_k_b", [s.nope, s.latent, s.n_head], 0), made("attn_v_b", [s.latent, s.v_head, s.n_head], 1)]
}

/// `attn_kv_b`, or what is made of its halves.
fn joined_weight(l: Layer<'_>, s: Sizes) -> Node<'_> {
    l.get("attn_kv_b", "weight").unwrap_or_else(|| {
        let [k, v] = ["attn_k_b", "attn_v_b"].map(|name| l.weight(name).tensor());
        l.draft.hold(joined(k.ty, v.ty), &[s.latent, s.n_head * (s.nope + s.v_head)], k.held)
    })
}
