//! The graph of a model as llama.cpp builds it for the reserved prompt: operations, shapes and what they read.

#![allow(clippy::many_single_char_names, reason = "q, k, v, x and z are what llama.cpp calls them")]

pub mod ops;
pub mod tensor;

mod attention;
mod cache;
mod ffn;
mod inputs;
mod recurrent;
mod models;
mod weights;

use std::collections::BTreeMap;

use self::cache::KvTensors;
use self::tensor::{Graph, Id, Op};
use self::weights::Weights;
use super::caches::{CacheKind, Caches};
use super::context_hparams::LayerHParams;
use crate::hparams::HParams;
use crate::model::Model;
use crate::placement::{Buffer, Placement};
use crate::run::ContextNumbers;

/// What a graph is built from.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its context.
    pub numbers: &'a ContextNumbers,
    /// Its caches.
    pub caches: &'a Caches,
    /// Where its tensors are.
    pub placement: &'a Placement,
    /// The micro-batch.
    pub batch: Batch,
    /// Attention in one operation.
    pub flash_attn: bool,
    /// Caches lie with their layers instead of on the host.
    pub offload_kqv: bool,
    /// Every layer and the output are on devices.
    pub full_offload: bool,
}

/// A micro-batch (`llama_ubatch` of `ubatch_reserve`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Tokens in all, a multiple of `n_seqs`.
    pub n_tokens: u64,
    /// Sequences.
    pub n_seqs: u64,
    /// Tokens with an output row.
    pub n_outputs: u64,
}

impl Batch {
    /// Tokens of each sequence.
    pub fn n_seq_tokens(&self) -> u64 {
        self.n_tokens / self.n_seqs
    }
}

/// The graph of `plan`, or `None` for an architecture that is not replayed.
pub fn build(plan: &Plan<'_>) -> Option<Graph> {
    let mut builder = Builder::new(plan);
    models::build(&plan.model.architecture, &mut builder)?;
    Some(builder.graph)
}

/// Whether the architecture is replayed.
pub fn is_known(model: &Model) -> bool {
    models::is_known(&model.architecture)
}

/// A graph in the making (`llm_graph_context`).
struct Builder<'a> {
    plan: &'a Plan<'a>,
    graph: Graph,
    weights: Weights<'a>,
    kv: BTreeMap<(CacheKind, u32), KvTensors>,
    n_tokens: u64,
    n_embd: u64,
    /// Layers of the trunk.
    n_layer: u32,
}

/// How a norm works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Norm {
    /// By mean and variance.
    Layer,
    /// By the mean square.
    Rms,
}

impl<'a> Builder<'a> {
    fn new(plan: &'a Plan<'a>) -> Self {
        Self {
            plan,
            graph: Graph::default(),
            weights: Weights::new(plan.model, plan.placement),
            kv: BTreeMap::new(),
            n_tokens: plan.batch.n_tokens,
            n_embd: u64::from(plan.model.hparams.embedding_length),
            n_layer: plan.caches.hparams.n_layer,
        }
    }

    fn hparams(&self) -> &'a HParams {
        &self.plan.model.hparams
    }

    fn layer(&self, il: u32) -> LayerHParams {
        self.plan.caches.hparams.layers.get(il as usize).copied().unwrap_or_default()
    }

    fn is_last(&self, il: u32) -> bool {
        il + 1 == self.n_layer
    }

    /// The elements along a dimension.
    fn ne(&self, id: Id, dim: usize) -> u64 {
        self.graph.tensor(id).ne[dim]
    }

    /// The bytes between neighbours along a dimension.
    fn nb(&self, id: Id, dim: usize) -> u64 {
        self.graph.tensor(id).nb[dim]
    }

    /// The device of a layer, as a position among the launch's devices.
    fn layer_target(&self, il: u32) -> usize {
        let devices = &self.plan.placement.devices;
        let device = self.plan.placement.layers.get(il as usize).copied().flatten();
        device.and_then(|d| devices.iter().position(|other| *other == d)).unwrap_or(devices.len())
    }

    /// Where a layer's cache lies.
    fn cache_buffer(&self, il: u32) -> Buffer {
        let device = self.plan.placement.layers.get(il as usize).copied().flatten();
        device.filter(|_| self.plan.offload_kqv).map_or(Buffer::Cpu, Buffer::Device)
    }

    /// A weight of a layer: `suffix` is what follows `blk.N.`.
    fn weight(&mut self, il: u32, suffix: &str) -> Option<Id> {
        self.weights.layer(&mut self.graph, il, suffix)
    }

    /// A weight of no layer.
    fn global(&mut self, name: &str) -> Option<Id> {
        self.weights.global(&mut self.graph, name)
    }

    /// `weight` times `x`, then the scale that an NVFP4 weight has (`build_lora_mm`).
    fn mm(&mut self, il: u32, name: &str, x: Id) -> Id {
        let weight = self.weight(il, &format!("{name}.weight"));
        let product = self.graph.mul_mat(weight.unwrap_or(x), x);
        match self.weight(il, &format!("{name}.scale")) {
            Some(scale) => self.graph.mul(product, scale),
            None => product,
        }
    }

    /// `weight` times `x`, whatever scale the weight has (`ggml_mul_mat`).
    fn raw_mm(&mut self, il: u32, name: &str, x: Id) -> Id {
        let weight = self.weight(il, &format!("{name}.weight"));
        self.graph.mul_mat(weight.unwrap_or(x), x)
    }

    /// `x` plus a bias, if the layer has it.
    fn bias(&mut self, il: u32, name: &str, x: Id) -> Id {
        match self.weight(il, &format!("{name}.bias")) {
            Some(bias) => self.graph.add(x, bias),
            None => x,
        }
    }

    /// `weight` times `x` plus its bias.
    fn linear(&mut self, il: u32, name: &str, x: Id) -> Id {
        let product = self.mm(il, name, x);
        self.bias(il, name, product)
    }

    /// A norm with the weight and the bias that the layer has by this name (`build_norm`).
    fn norm(&mut self, il: u32, name: &str, x: Id, kind: Norm) -> Id {
        let weight = self.weight(il, &format!("{name}.weight"));
        let bias = self.weight(il, &format!("{name}.bias"));
        self.norm_with(Some(il), weight, bias, x, kind)
    }

    /// A norm of each row; with a weight or bias, it is bound to its layer's device when all layers are on devices
    /// (`llama_context::graph_get_cb`).
    fn norm_with(&mut self, il: Option<u32>, weight: Option<Id>, bias: Option<Id>, x: Id, kind: Norm) -> Id {
        let op = if kind == Norm::Rms { Op::RmsNorm } else { Op::Norm };
        let mut result = self.graph.like(op, &[x]);
        if let Some(il) = il.filter(|_| weight.is_some() || bias.is_some()) {
            self.pin(il, result);
        }
        if let Some(weight) = weight {
            result = self.graph.mul(result, weight);
        }
        if let Some(bias) = bias {
            result = self.graph.add(result, bias);
        }
        result
    }

    /// Binds a node to its layer's device, where llama.cpp does.
    fn pin(&mut self, il: u32, id: Id) {
        if self.plan.full_offload || self.n_tokens < 32 {
            let target = self.layer_target(il);
            self.graph.pinned.push((id, target));
        }
    }

    /// The RMS norm without weight.
    fn rms(&mut self, x: Id) -> Id {
        self.graph.like(Op::RmsNorm, &[x])
    }
}
