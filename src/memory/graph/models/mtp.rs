//! The graph of a drafting context: the first NextN block, behind the target's hidden state and the token that followed it.
//!
//! Source: `src/models/*.cpp` `graph_mtp::graph_mtp`, llama.cpp b11434.

use super::super::tensor::Node;
use super::super::{Builder, Error, Layer, Norm};
use super::plain::{Pick, Spec, layer};
use super::{deepseek4, delta, kda, mixed, mla, plain, qwen4exp};
use crate::arch::{Graph, Logits, Rope};
use crate::gguf::ggml_type::{f32, i32};
use crate::memory::caches::CacheKind;

/// Builds the graph of the architecture's NextN block.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    let l = b.layer(b.n_layer);
    match &b.arch.graph {
        Graph::Plain(spec) => {
            // Its window or lead decides nothing here (cohere2moe).
            let rope = if spec.rope == Rope::WindowsOrLead { Rope::All } else { spec.rope };
            let spec = Spec { rope, ..*spec };
            let (rows, inputs) = (joined(l), plain::Inputs::of(b, &spec));
            let rows = layer(l, &spec, rows, b.inp_out_ids(), |x| plain::attention(l, &spec, x, &inputs));
            finish(l, &spec, rows);
        }
        Graph::Deepseek2 | Graph::Dsa => {
            let (rows, positions, latent) = (joined(l), b.inp_pos(), b.inp_k(CacheKind::Base));
            let rows = layer(l, &mla::SPEC, rows, b.inp_out_ids(), |x| {
                let sizes = l.mla_sizes();
                l.mm("attn_output", l.attn_latent(latent, l.mla_qkv(l.mla_q(x), x, Some(positions), sizes), None))
            });
            finish(l, &mla::SPEC, rows);
        }
        Graph::BailingMoe3 => {
            let (rows, positions, latent) = (joined(l), b.inp_pos(), b.inp_k(CacheKind::Base));
            let rows = layer(l, &mla::SPEC, rows, b.inp_out_ids(), |x| kda::gated_mla(l, x, latent, positions));
            finish(l, &mla::SPEC, rows);
        }
        Graph::Delta => {
            let (rows, attn, positions, out_ids) = (joined(l), b.inp_attn(), b.inp_pos(), b.inp_out_ids());
            // qwen3next reads the output rows before its experts.
            let is_early = b.arch.name == "qwen3next";
            let mix = |x| delta::gated_attention(l, x, &attn, positions);
            if is_early {
                let [rows, residual] = [mix(l.norm("attn_norm", rows)), rows].map(|rows| rows.get_rows(out_ids));
                let middle = rows + residual;
                let x = plain::feed_forward(l, &delta::SPEC, l.norm("post_attention_norm", middle));
                head(l, head_norm(l, Norm::Rms, x + middle).mark_output());
            } else {
                finish(l, &delta::SPEC, layer(l, &delta::SPEC, rows, out_ids, mix));
            }
        }
        Graph::NemotronH => {
            let (rows, attn, out_ids) = (joined(l), b.inp_attn(), b.inp_out_ids());
            let x = l.attn_out(&attn, l.qkv(l.norm("attn_norm", rows)));
            let middle = (x + rows).get_rows(out_ids);
            let x = mixed::nemotron_ffn(l, l.norm("post_attention_norm", middle));
            let rows = (x + middle).norm(Norm::Layer, Some(l.weight("nextn.shared_head_norm")), None);
            head(l, rows.mark_output());
        }
        Graph::Deepseek4 => {
            let rows = deepseek4::drafted(l, joined_streams(l));
            head(l, head_norm(l, Norm::Rms, rows).mark_output());
        }
        Graph::Qwen4Exp => head(l, qwen4exp::drafted(l, joined_streams(l)).mark_output()),
        _ => _ = b.fail(Error::Architecture { architecture: b.plan.model.architecture.clone() }),
    }
}

/// The embedding of a token beside the hidden state before it, as one row.
fn joined(l: Layer<'_>) -> Node<'_> {
    let (embedding, h) = (token_rows(l), l.draft.input(f32(), &[l.n_embd, l.n_tokens]));
    let h = l.norm("nextn.hnorm", h);
    let rows = l.norm("nextn.enorm", embedding).concat(h, 0);
    l.mm("nextn.eh_proj", rows)
}

/// The same for each residual stream of the target.
fn joined_streams(l: Layer<'_>) -> Node<'_> {
    let n_streams = l.hparam("hyper_connection.count");
    let by_stream = [l.n_embd, n_streams, l.n_tokens];
    let h = l.draft.input(f32(), &[l.n_embd * n_streams, l.n_tokens]);
    let h = l.norm("nextn.hnorm", h.reshape(&by_stream));
    let rows = l.norm("nextn.enorm", token_rows(l)).reshape(&[l.n_embd, 1, l.n_tokens]);
    l.mm("nextn.eh_proj", rows.repeat(&by_stream).concat(h, 0))
}

fn token_rows(l: Layer<'_>) -> Node<'_> {
    let table = l.maybe("nextn.embed_tokens").unwrap_or_else(|| l.global("token_embd"));
    table.get_rows(l.draft.input(i32(), &[l.n_tokens]))
}

/// The last norm: the block's own, or the target's.
fn head_norm<'g>(l: Layer<'g>, kind: Norm, rows: Node<'g>) -> Node<'g> {
    let own = l
        .maybe("nextn.shared_head_norm")
        .or_else(|| l.maybe("layer_output_norm").filter(|_| ["mimo2", "bailingmoe3"].contains(&l.arch.name)));
    rows.norm(kind, Some(own.unwrap_or_else(|| l.global("output_norm"))), None)
}

/// The norm, the output rows and the logits.
fn finish<'g>(l: Layer<'g>, spec: &Spec, rows: Node<'g>) {
    let out_ids = l.inp_out_ids();
    // The hidden state that the next draft reads is an output: before the norm, or all rows after it.
    let rows = if spec.pick == Pick::BeforeNorm {
        head_norm(l, spec.norm, rows.get_rows(out_ids).mark_output())
    } else {
        head_norm(l, spec.norm, rows).mark_output().get_rows(out_ids)
    };
    let scaled = spec.logits == Logits::Scaled && l.is_set("logit_scale");
    let logits = head_product(l, rows);
    let logits = if scaled { logits.scale() } else { logits };
    logits.mark_output().expand();
}

fn head<'g>(l: Layer<'g>, rows: Node<'g>) {
    head_product(l, rows).mark_output().expand();
}

fn head_product<'g>(l: Layer<'g>, rows: Node<'g>) -> Node<'g> {
    if l.has("nextn.shared_head_head") { l.mm("nextn.shared_head_head", rows) } else { l.b.lm_head(rows) }
}
