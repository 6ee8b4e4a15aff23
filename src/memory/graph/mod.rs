//! The graph of a model as llama.cpp builds it for the reserved prompt: operations, shapes and what they read.

#![allow(clippy::many_single_char_names, reason = "q, k, v, x and z are what llama.cpp calls them")]

pub mod ops;
pub mod tensor;

mod attention;
mod cache;
mod error;
mod ffn;
mod inputs;
mod recurrent;
mod models;
mod weights;

use std::collections::BTreeMap;

use self::cache::KvTensors;
pub use self::error::Error;
use self::tensor::{Graph, Id, Op, TOO_LARGE};
use self::weights::Weights;
use super::caches::{CacheKind, Caches};
use crate::arch::{Arch, Norm};
use crate::hparams::HParams;
use crate::model::Model;
use crate::model::context::LayerHParams;
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

/// The largest number among a header's keys that shapes are made of; the largest known is 16 384. Products of three of them,
/// of tokens and of sequences then stay within 64 bits.
const MAX_NUMBER: u64 = 1 << 16;
/// The largest micro-batch, in tokens.
const MAX_TOKENS: u64 = 1 << 24;

/// The graph of `plan`; an error where llama.cpp refuses the file or stops at an assertion.
pub fn build(plan: &Plan<'_>) -> Result<Graph, Error> {
    let mut builder = Builder::new(plan)?;
    models::build(&mut builder)?;
    builder.finished()
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

impl<'a> Builder<'a> {
    fn new(plan: &'a Plan<'a>) -> Result<Self, Error> {
        let builder = Self {
            plan,
            graph: Graph::default(),
            weights: Weights::new(plan.model, plan.placement),
            kv: BTreeMap::new(),
            n_tokens: plan.batch.n_tokens,
            n_embd: u64::from(plan.model.hparams.embedding_length),
            n_layer: plan.caches.hparams.n_layer,
        };
        builder.check_numbers()?;
        Ok(builder)
    }

    /// Refuses numbers that no shape is made of.
    fn check_numbers(&self) -> Result<(), Error> {
        if self.n_tokens > MAX_TOKENS {
            return Err(Error::Batch { n_tokens: self.n_tokens });
        }
        let resolved = &self.plan.caches.hparams;
        let heads = resolved.layers.iter().flat_map(|layer| {
            [
                ("attention.head_count", layer.n_head),
                ("attention.head_count_kv", layer.n_head_kv),
                ("attention.key_length", layer.n_embd_head_k),
                ("attention.value_length", layer.n_embd_head_v),
            ]
        });
        let others = [
            ("embedding_length", self.hparams().embedding_length),
            ("attention.indexer.key_length", resolved.indexer_head_size),
        ];
        let too_large = heads.chain(others).find(|(_, number)| u64::from(*number) > MAX_NUMBER);
        match too_large {
            Some((key, number)) => Err(self.key_error(key, Some(number.into()))),
            None => Ok(()),
        }
    }

    /// `<arch>.KEY`.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.plan.model.architecture)
    }

    fn key_error(&self, key: &str, found: Option<u64>) -> Error {
        Error::Key { key: self.key(key), found }
    }

    /// The number `<arch>.KEY`, which has to be there and above 0.
    fn hparam(&self, key: &str) -> Result<u64, Error> {
        match self.hparam_or_0(key)? {
            0 => Err(self.key_error(key, self.hparams().u64(key))),
            number => Ok(number),
        }
    }

    /// The number `<arch>.KEY`; 0 where it is absent, as in llama.cpp.
    fn hparam_or_0(&self, key: &str) -> Result<u64, Error> {
        match self.hparams().u64(key) {
            Some(number) if number > MAX_NUMBER => Err(self.key_error(key, Some(number))),
            number => Ok(number.unwrap_or(0)),
        }
    }

    /// The graph, if every operation took its sources.
    fn finished(self) -> Result<Graph, Error> {
        self.sound()?;
        Ok(self.graph)
    }

    /// An error where an operation did not take its sources.
    fn sound(&self) -> Result<(), Error> {
        let Some(fault) = &self.graph.fault else { return Ok(()) };
        if fault.what == TOO_LARGE {
            return Err(Error::TooLarge);
        }
        let shape = |id: &Id| format!("{:?}", self.graph.tensor(*id).ne);
        let shapes = fault.sources.iter().map(shape).collect::<Vec<_>>().join(" and ");
        let tensor = self.weights.behind(&self.graph, &fault.sources).map(str::to_string);
        Err(Error::Operation { what: fault.what, shapes, tensor })
    }

    fn arch(&self) -> &'static Arch {
        self.plan.model.hparams.arch()
    }

    fn hparams(&self) -> &'a HParams {
        &self.plan.model.hparams
    }

    fn layer(&self, il: u32) -> Result<LayerHParams, Error> {
        self.plan.caches.hparams.layers.get(il as usize).copied().ok_or(Error::Layer { il })
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

    /// A weight of a layer that llama.cpp requires: `suffix` is what follows `blk.N.`.
    fn weight(&mut self, il: u32, suffix: &str) -> Result<Id, Error> {
        let id = self.maybe_weight(il, suffix);
        id.ok_or_else(|| self.no_tensor(self.weights.name(il, suffix)))
    }

    /// The same of one that a file may lack (`TENSOR_NOT_REQUIRED`).
    fn maybe_weight(&mut self, il: u32, suffix: &str) -> Option<Id> {
        self.weights.layer(&mut self.graph, il, suffix)
    }

    /// A weight of no layer that llama.cpp requires.
    fn global(&mut self, name: &str) -> Result<Id, Error> {
        let id = self.maybe_global(name);
        id.ok_or_else(|| self.no_tensor(name.to_string()))
    }

    /// The same of one that a file may lack (`TENSOR_NOT_REQUIRED`).
    fn maybe_global(&mut self, name: &str) -> Option<Id> {
        self.weights.global(&mut self.graph, name)
    }

    fn no_tensor(&self, tensor: String) -> Error {
        Error::Tensor { tensor, architecture: self.plan.model.architecture.clone() }
    }

    /// `weight` times `x`, then the scale that an NVFP4 weight has (`build_lora_mm`).
    fn mm(&mut self, il: u32, name: &str, x: Id) -> Result<Id, Error> {
        let product = self.raw_mm(il, name, x)?;
        Ok(match self.maybe_weight(il, &format!("{name}.scale")) {
            Some(scale) => self.graph.mul(product, scale),
            None => product,
        })
    }

    /// `weight` times `x`, whatever scale the weight has (`ggml_mul_mat`).
    fn raw_mm(&mut self, il: u32, name: &str, x: Id) -> Result<Id, Error> {
        let weight = self.weight(il, &format!("{name}.weight"))?;
        Ok(self.graph.mul_mat(weight, x))
    }

    /// `x` plus a bias, if the layer has it.
    fn bias(&mut self, il: u32, name: &str, x: Id) -> Id {
        match self.maybe_weight(il, &format!("{name}.bias")) {
            Some(bias) => self.graph.add(x, bias),
            None => x,
        }
    }

    /// `weight` times `x` plus its bias.
    fn linear(&mut self, il: u32, name: &str, x: Id) -> Result<Id, Error> {
        let product = self.mm(il, name, x)?;
        Ok(self.bias(il, name, product))
    }

    /// The weight of a norm; falcon-h1, plamo2 and plamo3 name some without `.weight`.
    fn norm_weight(&mut self, il: u32, name: &str) -> Result<Id, Error> {
        match self.maybe_weight(il, name) {
            Some(weight) => Ok(weight),
            None => self.weight(il, &format!("{name}.weight")),
        }
    }

    /// A norm with the layer's weight of this name, and the bias that it may have (`build_norm`).
    fn norm(&mut self, il: u32, name: &str, x: Id, kind: Norm) -> Result<Id, Error> {
        let weight = self.norm_weight(il, name)?;
        let bias = self.maybe_weight(il, &format!("{name}.bias"));
        Ok(self.norm_with(Some(il), Some(weight), bias, x, kind))
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
