//! Feed-forward parts: dense ones and experts.
//!
//! Source: `src/llama-graph.cpp` `build_ffn`, `build_moe_ffn`, llama.cpp b11434.

use super::tensor::{Glu, Id, Op, Unary};
use super::{Builder, Error};
pub(super) use crate::arch::{Act, Gating};
use crate::arch::{FusedClamps, Routing};
use crate::gguf::Value;
use crate::gguf::ggml_type::{f32, i32};
use crate::hparams::MAX_EXPERTS;

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Moe {
    pub(super) act: Act,
    pub(super) gating: Gating,
    /// The weights of the chosen experts are made to add up to 1.
    pub(super) norm_w: bool,
    /// They are multiplied by a number.
    pub(super) scaled: bool,
    /// What the router reads, if not the experts' input (already multiplied: `probs_in`).
    pub(super) logits: Option<Id>,
    /// The experts, if they are chosen elsewhere.
    pub(super) selected: Option<Id>,
    /// The bias that chooses experts but does not weigh them.
    pub(super) selection_bias: bool,
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

impl Default for Moe {
    fn default() -> Self {
        Self {
            act: Act::Silu,
            gating: Gating::Softmax,
            norm_w: true,
            scaled: false,
            logits: None,
            selected: None,
            selection_bias: true,
        }
    }
}

impl Builder<'_> {
    /// Up, a parallel gate if the layer has one, and down: `ffn_up`, `ffn_gate`, `ffn_down` with this suffix.
    pub(super) fn ffn(&mut self, il: u32, suffix: &str, x: Id, act: Act) -> Result<Id, Error> {
        let up = self.weights_of(il, &format!("ffn_up{suffix}"), x)?;
        let has_gate = self.weights.has(il, &format!("ffn_gate{suffix}.weight"));
        let hidden = if has_gate {
            let gate = self.weights_of(il, &format!("ffn_gate{suffix}"), x)?;
            let fused_clamps = self.arch().fused_clamps;
            let has_own = fused_clamps != FusedClamps::Shared || self.hparams().value("swiglu_clamp_shexp").is_some();
            let shared_clamp = if has_own { "swiglu_clamp_shexp" } else { "swiglu_clamp_exp" };
            self.gated(gate, up, act, self.clamp(il, shared_clamp, fused_clamps == FusedClamps::Shared))
        } else if act == Act::SwigluOai {
            self.graph.refuse("swiglu_oai without a gate", &[up])
        } else {
            self.ungated(up, act)
        };
        let name = format!("ffn_down{suffix}");
        if !self.weights.has(il, &format!("{name}.weight")) {
            return Ok(hidden);
        }
        self.weights_of(il, &name, hidden)
    }

    /// A product, its bias, then its scale: the order of `build_ffn`.
    fn weights_of(&mut self, il: u32, name: &str, x: Id) -> Result<Id, Error> {
        let weight = self.weight(il, &format!("{name}.weight"))?;
        let product = self.graph.mul_mat(weight, x);
        let biased = self.bias(il, name, product);
        let scales = self.arch().scales;
        let is_applied = if name.ends_with("_shexp") { scales.shared } else { scales.dense };
        let scale = if is_applied { self.maybe_weight(il, &format!("{name}.scale")) } else { None };
        Ok(match scale {
            Some(scale) => self.graph.mul(biased, scale),
            None => biased,
        })
    }

    /// How the layer's `<arch>.KEY` is heeded.
    fn clamp(&self, il: u32, key: &str, is_fused: bool) -> Clamp {
        let is_set = |value: &Value| matches!(value, Value::F64(limit) if *limit > 1e-6);
        let is_on = match self.hparams().value(key) {
            Some(Value::Array(by_layer)) => by_layer.get(il as usize).is_some_and(is_set),
            Some(value) => is_set(value),
            None => false,
        };
        match is_on {
            false => Clamp::None,
            true if is_fused => Clamp::Fused,
            true => Clamp::Separate,
        }
    }

    fn gated(&mut self, gate: Id, up: Id, act: Act, clamp: Clamp) -> Id {
        match clamp {
            _ if act != Act::Silu => self.graph.glu_split(act.glu(), gate, up),
            Clamp::Separate => {
                let up = self.graph.clamp(up);
                let gate = self.graph.unary(Unary::Silu, gate);
                let gate = self.graph.clamp(gate);
                self.graph.mul(gate, up)
            }
            Clamp::Fused => self.graph.glu_split(Glu::SwigluClamp, gate, up),
            Clamp::None => self.graph.glu_split(act.glu(), gate, up),
        }
    }

    fn ungated(&mut self, up: Id, act: Act) -> Id {
        match act {
            Act::SwigluFused => self.graph.glu(act.glu(), up),
            Act::ReluSqr => {
                let positive = self.graph.unary(Unary::Relu, up);
                self.graph.like(Op::Sqr, &[positive])
            }
            _ => self.graph.unary(act.unary(), up),
        }
    }

    /// Experts used by token in a layer that has some.
    pub(super) fn n_expert_used(&self, il: u32) -> Result<u64, Error> {
        let used = self.hparams().expert_used_count.get(il as usize).copied();
        let takes = |used: &u32| (1..=MAX_EXPERTS).contains(used);
        used.filter(takes).map(u64::from).ok_or_else(|| self.key_error("expert_used_count", used.map(u64::from)))
    }

    /// `expert_gating_func`, or what the architecture does without it.
    pub(super) fn stated_gating(&self, default: Gating) -> Result<Gating, Error> {
        match self.hparams().u32_or_0("expert_gating_func") {
            0 => Ok(default),
            1 => Ok(Gating::Softmax),
            2 => Ok(Gating::Sigmoid),
            3 => Ok(Gating::SoftmaxWeight),
            4 => Ok(Gating::SqrtSoftplus),
            found => Err(Error::Choice { key: self.key("expert_gating_func"), found, high: 4 }),
        }
    }

    /// The experts of a layer: router, chosen experts, weighted sum.
    pub(super) fn moe(&mut self, il: u32, x: Id, moe: &Moe) -> Result<Id, Error> {
        let n_used = self.n_expert_used(il)?;
        let (n_embd, n_tokens) = (self.ne(x, 0), self.ne(x, 1));
        let logits = match moe.logits {
            Some(logits) => logits,
            None => self.linear(il, "ffn_gate_inp", x)?,
        };
        let n_expert = self.ne(logits, 0);
        let (selected, weights) = self.route(il, logits, (n_expert, n_used, n_tokens), moe)?;
        self.graph.expand(weights);
        let mut rows = self.graph.reshape(x, &[n_embd, 1, n_tokens]);
        let weighs_first = self.arch().routing == Routing::WeighsInput;
        if weighs_first {
            rows = self.graph.repeat(rows, &[n_embd, n_used, n_tokens]);
            rows = self.graph.mul(rows, weights);
        }
        let hidden = self.expert_hidden(il, "exps", rows, selected, moe)?;
        let mut experts = self.expert_mm(il, "ffn_down_exps", hidden, selected)?;
        if !weighs_first {
            experts = self.graph.mul(experts, weights);
        }
        Ok(self.add_up(experts, n_used))
    }

    /// Which experts, and how much each counts.
    pub(super) fn route(
        &mut self,
        il: u32,
        logits: Id,
        (n_expert, n_used, n_tokens): (u64, u64, u64),
        moe: &Moe,
    ) -> Result<(Id, Id), Error> {
        let probs = match moe.gating {
            Gating::Softmax => self.graph.soft_max(logits, None),
            Gating::Sigmoid => self.graph.unary(Unary::Sigmoid, logits),
            Gating::SoftmaxWeight => logits,
            Gating::SqrtSoftplus => {
                let soft = self.graph.unary(Unary::Softplus, logits);
                self.graph.like(Op::Sqrt, &[soft])
            }
        };
        let selected = match moe.selected {
            Some(selected) => selected,
            None => self.select(il, logits, probs, (n_expert, n_used, n_tokens), moe)?,
        };
        let weights = self.weigh(probs, selected, (n_expert, n_used, n_tokens), moe);
        Ok((selected, weights))
    }

    /// How much each chosen expert counts.
    pub(super) fn weigh(
        &mut self,
        probs: Id,
        selected: Id,
        (n_expert, n_used, n_tokens): (u64, u64, u64),
        moe: &Moe,
    ) -> Id {
        let probs = self.graph.reshape(probs, &[1, n_expert, n_tokens]);
        let mut weights = self.graph.get_rows(probs, selected);
        if moe.gating == Gating::SoftmaxWeight {
            weights = self.graph.reshape(weights, &[n_used, n_tokens]);
            weights = self.graph.soft_max(weights, None);
            weights = self.graph.reshape(weights, &[1, n_used, n_tokens]);
        }
        if moe.norm_w {
            weights = self.graph.reshape(weights, &[n_used, n_tokens]);
            let sum = self.graph.sum_rows(weights);
            let sum = self.graph.clamp(sum);
            weights = self.graph.div(weights, sum);
            weights = self.graph.reshape(weights, &[1, n_used, n_tokens]);
        }
        if moe.scaled {
            weights = self.graph.scale(weights);
        }
        weights
    }

    /// The best experts, of the best groups where there are groups.
    fn select(
        &mut self,
        il: u32,
        logits: Id,
        probs: Id,
        (n_expert, n_used, n_tokens): (u64, u64, u64),
        moe: &Moe,
    ) -> Result<Id, Error> {
        let mut scores = probs;
        if moe.selection_bias
            && let Some(bias) = self.maybe_weight(il, "exp_probs_b.bias")
        {
            scores = self.graph.add(probs, bias);
        }
        match self.arch().routing {
            Routing::Usual => {}
            Routing::Sigmoid => scores = self.graph.unary(Unary::Sigmoid, logits),
            Routing::WeighsInput => scores = logits,
        }
        let n_groups = self.hparam_or_0("expert_group_count")?;
        if n_groups > 1 {
            let n_group_used = self.hparam("expert_group_used_count")?;
            scores = self.best_groups(scores, n_groups, n_group_used, (n_expert, n_tokens));
        }
        Ok(self.graph.argsort_top_k(scores, n_used))
    }

    /// The scores of all groups but the best masked out.
    fn best_groups(&mut self, scores: Id, n_groups: u64, n_used: u64, (n_expert, n_tokens): (u64, u64)) -> Id {
        let by_group = self.graph.reshape(scores, &[n_expert / n_groups, n_groups, n_tokens]);
        let best = self.graph.argsort_top_k(by_group, 2);
        let ne = self.graph.tensor(by_group).ne;
        let single = self.graph.reshape(by_group, &[1, ne[0], ne[1], ne[2]]);
        let group = self.graph.get_rows(single, best);
        let ne = self.graph.tensor(group).ne;
        let group = self.graph.reshape(group, &[ne[1], ne[2], ne[3]]);
        let group = self.graph.sum_rows(group);
        let ne = self.graph.tensor(group).ne;
        let group = self.graph.reshape(group, &[ne[1], ne[2]]);
        let chosen = self.graph.argsort_top_k(group, n_used);
        let kept = self.graph.get_rows(by_group, chosen);
        let masked = self.graph.like(Op::Fill, &[by_group]);
        let masked = self.graph.set_rows(masked, kept, chosen);
        self.graph.reshape(masked, &[n_expert, n_tokens])
    }

    /// A product with the chosen experts' matrices, its scale and its bias.
    pub(super) fn expert_mm(&mut self, il: u32, name: &str, x: Id, selected: Id) -> Result<Id, Error> {
        let weight = self.weight(il, &format!("{name}.weight"))?;
        let mut product = self.graph.mul_mat_id(weight, x, selected);
        // Asks for F32 sources, which CUDA does not do (`ggml_prec_set_src`).
        let is_precise = self.arch().precise_down && name == "ffn_down_exps";
        self.graph.tensors[product.index()].param = u32::from(is_precise);
        let scale = if self.arch().scales.experts { self.maybe_weight(il, &format!("{name}.scale")) } else { None };
        if let Some(scale) = scale {
            let (n_expert, n_tokens) = (self.ne(scale, 0), self.ne(x, 2));
            let scale = self.graph.reshape(scale, &[1, n_expert, 1]);
            let scale = self.graph.repeat(scale, &[1, n_expert, n_tokens]);
            let scale = self.graph.get_rows(scale, selected);
            product = self.graph.mul(product, scale);
        }
        if let Some(bias) = self.maybe_weight(il, &format!("{name}.bias")) {
            product = self.graph.add_id(product, bias, selected);
        }
        Ok(product)
    }

    /// The experts' rows between up and down.
    pub(super) fn expert_hidden(&mut self, il: u32, kind: &str, x: Id, selected: Id, moe: &Moe) -> Result<Id, Error> {
        let fused = format!("ffn_gate_up_{kind}");
        if self.weights.has(il, &format!("{fused}.weight")) {
            let both = self.expert_mm(il, &fused, x, selected)?;
            let t = *self.graph.tensor(both);
            let half = t.ne[0] / 2;
            let dims = [half, t.ne[1], t.ne[2]];
            let gate = self.graph.view(both, &dims, &[t.nb[1], t.nb[2]], 0);
            let up = self.graph.view(both, &dims, &[t.nb[1], t.nb[2]], half * t.nb[0]);
            return Ok(self.expert_gated(gate, up, moe, Clamp::None));
        }
        let up = self.expert_mm(il, &format!("ffn_up_{kind}"), x, selected)?;
        let gate_name = format!("ffn_gate_{kind}");
        if !self.weights.has(il, &format!("{gate_name}.weight")) {
            return Ok(match moe.act {
                Act::SwigluOai => self.gated(up, up, moe.act, Clamp::None),
                Act::Situ => self.graph.refuse("situ without a gate", &[up]),
                act => self.ungated(up, act),
            });
        }
        let gate = self.expert_mm(il, &gate_name, x, selected)?;
        Ok(self.expert_gated(
            gate,
            up,
            moe,
            self.clamp(il, "swiglu_clamp_exp", self.arch().fused_clamps != FusedClamps::No),
        ))
    }

    fn expert_gated(&mut self, gate: Id, up: Id, moe: &Moe, clamp: Clamp) -> Id {
        match moe.act {
            Act::Situ => self.situ(gate, up),
            Act::ReluSqr => self.graph.refuse("a squared relu with a gate", &[gate]),
            act => self.gated(gate, up, act, clamp),
        }
    }

    /// kimi-k3's product of squashed rows.
    pub(super) fn situ(&mut self, gate: Id, up: Id) -> Id {
        let mut squash = |x: Id| {
            let x = self.graph.scale(x);
            let x = self.graph.unary(Unary::Tanh, x);
            self.graph.scale(x)
        };
        let act = squash(gate);
        let linear = squash(up);
        let open = self.graph.unary(Unary::Sigmoid, gate);
        let act = self.graph.mul(act, open);
        self.graph.mul(act, linear)
    }

    /// The sum over the chosen experts: views first, then one addition after the other.
    pub(super) fn add_up(&mut self, experts: Id, n_used: u64) -> Id {
        self.graph.expand(experts);
        let t = *self.graph.tensor(experts);
        let views: Vec<Id> = (0..n_used)
            .map(|i| {
                let view = self.graph.view(experts, &[t.ne[0], t.ne[2]], &[t.nb[2]], i * t.nb[1]);
                self.graph.expand(view);
                view
            })
            .collect();
        let Some((first, rest)) = views.split_first() else { return experts };
        let sum = rest.iter().fold(*first, |sum, view| {
            let sum = self.graph.add(sum, *view);
            self.graph.expand(sum);
            sum
        });
        if rest.is_empty() { self.graph.cont(sum) } else { sum }
    }

    /// A number by expert and token as whole numbers, by way of floats.
    pub(super) fn scaled_ids(&mut self, ids: Id) -> Id {
        let float = self.graph.cast(ids, f32());
        let float = self.graph.scale(float);
        self.graph.cast(float, i32())
    }
}

impl Builder<'_> {
    /// The number `<arch>.KEY`, or 0.
    pub(super) fn f64_or_0(&self, key: &str) -> f64 {
        match self.hparams().value(key) {
            Some(Value::F64(x)) => *x,
            #[expect(clippy::cast_precision_loss, reason = "whether it is 0 or 1 is all that is asked")]
            Some(Value::U64(n)) => *n as f64,
            _ => 0.0,
        }
    }

    /// Whether the weights of the chosen experts are multiplied (`expert_weights_scale` neither 0 nor 1).
    pub(super) fn expert_weights_scaled(&self) -> bool {
        let scale = self.f64_or_0("expert_weights_scale");
        scale.abs() > 0.0 && (scale - 1.0).abs() > 0.0
    }
}
