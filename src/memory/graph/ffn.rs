//! Feed-forward parts: dense ones and experts.
//!
//! Source: `src/llama-graph.cpp` `build_ffn`, `build_moe_ffn`, llama.cpp b11434.

use super::tensor::{Glu, Node, Op, Unary};
use super::{Builder, Error, Layer};
pub(super) use crate::arch::{Act, Gating};
use crate::arch::{FusedClamps, Routing};
use crate::gguf::Value;
use crate::gguf::ggml_type::{f32, i32};
use crate::model::hparams::MAX_EXPERTS;

impl Act {
    fn glu(self) -> Glu {
        match self {
            Self::Silu | Self::SwigluFused | Self::ReluSqr | Self::Situ => Glu::Swiglu,
            Self::Gelu => Glu::Geglu,
            Self::Relu => Glu::Reglu,
            Self::SwigluOai => Glu::SwigluOai,
        }
    }

    fn unary(self) -> Unary {
        match self {
            Self::Gelu => Unary::Gelu,
            Self::Relu | Self::ReluSqr => Unary::Relu,
            _ => Unary::Silu,
        }
    }
}

/// The experts of a layer.
#[derive(Clone, Copy)]
pub(super) struct Moe<'g> {
    pub(super) act: Act,
    pub(super) gating: Gating,
    /// The weights of the chosen experts are made to add up to 1.
    pub(super) norm_w: bool,
    /// They are multiplied by a number.
    pub(super) scaled: bool,
    /// What the router reads, if not the experts' input (already multiplied: `probs_in`).
    pub(super) logits: Option<Node<'g>>,
    /// The experts, if they are chosen elsewhere.
    pub(super) selected: Option<Node<'g>>,
}

/// How values are kept in range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clamp {
    None,
    /// Gate and up one by one.
    Separate,
    /// In the operation that multiplies them.
    Fused,
}

impl Default for Moe<'_> {
    fn default() -> Self {
        Self { act: Act::Silu, gating: Gating::Softmax, norm_w: true, scaled: false, logits: None, selected: None }
    }
}

impl<'g> Builder<'g> {
    /// `expert_gating_func`, or what the architecture does without it.
    pub(super) fn stated_gating(&self, default: Gating) -> Gating {
        match self.hparams().u32_or_0("expert_gating_func") {
            0 => default,
            1 => Gating::Softmax,
            2 => Gating::Sigmoid,
            3 => Gating::SoftmaxWeight,
            4 => Gating::SqrtSoftplus,
            found => {
                self.fail(Error::Choice { key: self.key("expert_gating_func"), found, high: 4 });
                default
            }
        }
    }

    /// Whether the weights of the chosen experts are multiplied (`expert_weights_scale` neither 0 nor 1).
    pub(super) fn expert_weights_scaled(&self) -> bool {
        self.is_set("expert_weights_scale") && (self.f64_or_0("expert_weights_scale") - 1.0).abs() > 0.0
    }

    fn ungated(&self, up: Node<'g>, act: Act) -> Node<'g> {
        match act {
            Act::SwigluFused => up.glu(act.glu()),
            Act::ReluSqr => up.relu().sqr(),
            Act::SwigluOai => self.draft.refuse("swiglu_oai without a gate", &[up]),
            Act::Situ => self.draft.refuse("situ without a gate", &[up]),
            Act::Silu | Act::Gelu | Act::Relu => up.unary(act.unary()),
        }
    }
}

fn gated<'g>(gate: Node<'g>, up: Node<'g>, act: Act, clamp: Clamp) -> Node<'g> {
    match clamp {
        Clamp::Separate if act == Act::Silu => gate.silu().clamp() * up.clamp(),
        Clamp::Fused if act == Act::Silu => gate.glu_split(Glu::SwigluClamp, up),
        _ => gate.glu_split(act.glu(), up),
    }
}

/// kimi-k3's product of squashed rows.
pub(super) fn situ<'g>(gate: Node<'g>, up: Node<'g>) -> Node<'g> {
    let squashed = |x: Node<'g>| x.scale().tanh().scale();
    squashed(gate) * gate.sigmoid() * squashed(up)
}

/// A number by expert and token as whole numbers, by way of floats.
pub(super) fn scaled_ids(ids: Node<'_>) -> Node<'_> {
    ids.cast(f32()).scale().cast(i32())
}

impl<'g> Layer<'g> {
    /// Up, a parallel gate if the layer has one, and down: `ffn_up`, `ffn_gate`, `ffn_down` with this suffix.
    pub(super) fn ffn(self, suffix: &str, x: Node<'g>, act: Act) -> Node<'g> {
        let [up, gate] = ["up", "gate"].map(|part| format!("ffn_{part}{suffix}"));
        let hidden = if let Some(fused) = self.fused_hidden([&up, &gate], x) {
            fused
        } else if self.has(&gate) {
            let up = self.ffn_mm(&up, x);
            let is_fused = self.arch.fused_clamps == FusedClamps::Shared;
            let has_own = !is_fused || self.hparams().value("swiglu_clamp_shexp").is_some();
            let clamp = if has_own { "swiglu_clamp_shexp" } else { "swiglu_clamp_exp" };
            gated(self.ffn_mm(&gate, x), up, act, self.clamp(clamp, is_fused))
        } else {
            self.ungated(self.ffn_mm(&up, x), act)
        };
        let down = format!("ffn_down{suffix}");
        if self.has(&down) { self.ffn_mm(&down, hidden) } else { hidden }
    }

    /// Up and gate in one operation (`ggml_fused_up_gate`): of equal quantized types, without biases.
    fn fused_hidden(self, [up, gate]: [&str; 2], x: Node<'g>) -> Option<Node<'g>> {
        let is_bare = |name: &str| ["bias", "scale"].iter().all(|ending| self.get(name, ending).is_none());
        if !self.plan.rules.fuses_gates || !self.has(gate) || !is_bare(up) || !is_bare(gate) {
            return None;
        }
        let [up, gate] = [self.weight(up), self.weight(gate)];
        let (u, g) = (up.tensor(), gate.tensor());
        let fits = u.ty == g.ty && u.ty.is_quantized && u.ne == g.ne;
        fits.then(|| self.draft.make(Op::Plain, f32(), [u.ne[1], x.ne(1), 1, 1], &[up, gate, x]))
    }

    /// A product, its bias, then its scale: the order of `build_ffn`.
    fn ffn_mm(self, name: &str, x: Node<'g>) -> Node<'g> {
        let biased = self.bias(name, self.raw_mm(name, x));
        let scales = self.arch.scales;
        let is_applied = if name.ends_with("_shexp") { scales.shared } else { scales.dense };
        let scale = self.get(name, "scale").filter(|_| is_applied);
        scale.map_or(biased, |scale| biased * scale)
    }

    /// How the layer's `<arch>.KEY` is heeded.
    fn clamp(self, key: &str, is_fused: bool) -> Clamp {
        let is_set = |value: &Value| matches!(value, Value::F64(limit) if *limit > 1e-6);
        let is_on = match self.hparams().value(key) {
            Some(Value::Array(by_layer)) => by_layer.get(self.il as usize).is_some_and(is_set),
            Some(value) => is_set(value),
            None => false,
        };
        match is_on {
            false => Clamp::None,
            true if is_fused => Clamp::Fused,
            true => Clamp::Separate,
        }
    }

    /// Experts used by token.
    pub(super) fn n_expert_used(self) -> u64 {
        let used = self.hparams().expert_used_count.get(self.il as usize).copied();
        match used {
            Some(used) if (1..=MAX_EXPERTS).contains(&used) => u64::from(used),
            _ => {
                self.fail(self.key_error("expert_used_count", used.map(u64::from)));
                1
            }
        }
    }

    /// The experts: router, chosen experts, weighted sum.
    pub(super) fn moe(self, x: Node<'g>, moe: &Moe<'g>) -> Node<'g> {
        let n_used = self.n_expert_used();
        let [n_embd, n_tokens, ..] = x.shape();
        let logits = moe.logits.unwrap_or_else(|| self.linear("ffn_gate_inp", x));
        let probs = match moe.gating {
            Gating::Softmax => logits.soft_max(),
            Gating::Sigmoid => logits.sigmoid(),
            Gating::SoftmaxWeight => logits,
            Gating::SqrtSoftplus => logits.softplus().sqrt(),
        };
        let selected = moe.selected.unwrap_or_else(|| self.select(logits, probs, n_used));
        let weights = weigh(probs, selected, n_used, moe, !self.plan.rules.plain_routing).expand();
        let mut rows = x.reshape(&[n_embd, 1, n_tokens]);
        let weighs_first = self.arch.routing == Routing::WeighsInput;
        if weighs_first {
            rows = rows.repeat(&[n_embd, n_used, n_tokens]) * weights;
        }
        let hidden = self.expert_hidden("exps", rows, selected, moe);
        let experts = self.expert_mm("ffn_down_exps", hidden, selected);
        if self.plan.rules.fuses_norms {
            // `ggml_mul_multi_add`, or `ggml_multi_add` of what was weighed (`llm_build_moe_ffn` of ik_llama.cpp).
            let apart = !self.plan.rules.fuses_sums && !weighs_first;
            let experts = if apart { experts * weights } else { experts };
            let sources = if apart || weighs_first { vec![experts] } else { vec![experts, weights] };
            return self.draft.make(Op::Plain, f32(), [n_embd, n_tokens, 1, 1], &sources);
        }
        add_up(if weighs_first { experts } else { experts * weights }, n_used)
    }

    /// The best experts, of the best groups where there are groups.
    fn select(self, logits: Node<'g>, probs: Node<'g>, n_used: u64) -> Node<'g> {
        let scores = match self.arch.routing {
            Routing::WeighsInput => logits,
            Routing::Sigmoid => logits.sigmoid(),
            Routing::Usual => self.get("exp_probs_b", "bias").map_or(probs, |bias| probs + bias),
        };
        let n_groups = self.hparam_or_0("expert_group_count");
        if n_groups <= 1 || self.plan.rules.plain_routing {
            return scores.argsort_top_k(n_used);
        }
        // The scores of all groups but the best are masked out.
        let [n_expert, n_tokens, ..] = scores.shape();
        let by_group = scores.reshape(&[n_expert / n_groups, n_groups, n_tokens]);
        let best = by_group.argsort_top_k(2);
        let ne = by_group.shape();
        let group = by_group.reshape(&[1, ne[0], ne[1], ne[2]]).get_rows(best);
        let ne = group.shape();
        let group = group.reshape(&ne[1..]).sum_rows();
        let ne = group.shape();
        let chosen = group.reshape(&ne[1..3]).argsort_top_k(self.hparam("expert_group_used_count"));
        let kept = by_group.get_rows(chosen);
        let masked = by_group.op(Op::Fill).set_rows(kept, chosen);
        masked.reshape(&[n_expert, n_tokens]).argsort_top_k(n_used)
    }

    /// A product with the chosen experts' matrices, its scale and its bias.
    pub(super) fn expert_mm(self, name: &str, x: Node<'g>, selected: Node<'g>) -> Node<'g> {
        let mut product = self.weight(name).mm_id(x, selected);
        // Asks for F32 sources, which CUDA does not do (`ggml_prec_set_src`).
        let is_precise = self.arch.precise_down && name == "ffn_down_exps";
        product.edit(|tensor| tensor.param = u32::from(is_precise));
        if let Some(scale) = self.get(name, "scale").filter(|_| self.arch.scales.experts) {
            let n_expert = scale.ne(0);
            let by_token = scale.reshape(&[1, n_expert, 1]).repeat(&[1, n_expert, x.ne(2)]);
            product = product * by_token.get_rows(selected);
        }
        self.get(name, "bias").map_or(product, |bias| product.add_id(bias, selected))
    }

    /// The experts' rows between up and down.
    pub(super) fn expert_hidden(self, kind: &str, x: Node<'g>, selected: Node<'g>, moe: &Moe<'g>) -> Node<'g> {
        let fused = format!("ffn_gate_up_{kind}");
        if self.has(&fused) && self.plan.rules.fuses_norms {
            let both = self.weight(&fused);
            let ne = [both.ne(1) / 2, selected.ne(0), x.ne(2), 1];
            return self.draft.make(Op::ExpertHidden, f32(), ne, &[both, x, selected]);
        }
        if self.has(&fused) {
            let both = self.expert_mm(&fused, x, selected);
            let half = both.ne(0) / 2;
            return self.expert_gated(both.cols(half, 0), both.cols(half, half), moe, Clamp::None);
        }
        let [up_name, gate] = ["up", "gate"].map(|part| format!("ffn_{part}_{kind}"));
        if self.plan.rules.fuses_experts && self.has(&gate) {
            let [up, gate] = [self.weight(&up_name), self.weight(&gate)];
            let (u, g) = (up.tensor(), gate.tensor());
            if u.ty == g.ty && u.ne == g.ne {
                let ne = [u.ne[1], selected.ne(0), x.ne(2), 1];
                return self.draft.make(Op::ExpertHidden, f32(), ne, &[up, gate, x, selected]);
            }
        }
        let up = self.expert_mm(&up_name, x, selected);
        if !self.has(&gate) {
            return match moe.act {
                Act::SwigluOai => gated(up, up, moe.act, Clamp::None),
                act => self.ungated(up, act),
            };
        }
        let clamp = self.clamp("swiglu_clamp_exp", self.arch.fused_clamps != FusedClamps::No);
        self.expert_gated(self.expert_mm(&gate, x, selected), up, moe, clamp)
    }

    fn expert_gated(self, gate: Node<'g>, up: Node<'g>, moe: &Moe<'g>, clamp: Clamp) -> Node<'g> {
        match moe.act {
            Act::Situ => situ(gate, up),
            Act::ReluSqr => self.draft.refuse("a squared relu with a gate", &[gate]),
            act => gated(gate, up, act, clamp),
        }
    }
}

/// How much each chosen expert counts.
pub(super) fn weigh<'g>(probs: Node<'g>, selected: Node<'g>, n_used: u64, moe: &Moe<'g>, is_clamped: bool) -> Node<'g> {
    let [n_expert, n_tokens, ..] = probs.shape();
    let mut weights = probs.reshape(&[1, n_expert, n_tokens]).get_rows(selected);
    let rows = |weights: Node<'g>| weights.reshape(&[n_used, n_tokens]);
    let by_expert = |weights: Node<'g>| weights.reshape(&[1, n_used, n_tokens]);
    if moe.gating == Gating::SoftmaxWeight {
        weights = by_expert(rows(weights).soft_max());
    }
    if moe.norm_w {
        let chosen = rows(weights);
        let sum = chosen.sum_rows();
        weights = by_expert(chosen / if is_clamped { sum.clamp() } else { sum });
    }
    if moe.scaled { weights.scale() } else { weights }
}

/// The sum over the chosen experts: views first, then one addition after the other.
pub(super) fn add_up(experts: Node<'_>, n_used: u64) -> Node<'_> {
    let t = experts.expand().tensor();
    let view = |i| experts.view(&[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1]).expand();
    let views: Vec<_> = (0..n_used).map(view).collect();
    let sum = views.iter().copied().reduce(|sum, view| (sum + view).expand());
    let sum = sum.unwrap_or(experts);
    if n_used == 1 { sum.cont() } else { sum }
}
