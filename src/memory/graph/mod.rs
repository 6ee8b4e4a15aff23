//! The graph of a model as llama.cpp builds it for the reserved prompt: operations, shapes and what they read.
//!
//! A builder reads like its formula: nodes have methods and operators, and what is wrong with a file (a weight, a number or a
//! cache that is missing, sources that an operation refuses) is kept by the builder. From there on nothing is added, and
//! numbers and nodes are stand-ins, until [`build`] returns the error.

#![allow(clippy::many_single_char_names, reason = "q, k, v, x and z are what llama.cpp calls them")]
#![allow(clippy::return_self_not_must_use, reason = "a node that is made without being used does not run")]

pub mod clip;
pub mod ops;
pub mod tensor;

mod attention;
mod cache;
mod conv;
mod error;
mod ffn;
mod inputs;
mod recurrent;
mod models;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

pub use self::error::Error;
use self::tensor::{Draft, Graph, Held, Id, Node, Op, TOO_LARGE};
use super::caches::{CacheKind, Caches};
use crate::arch::{Arch, LayerInputs, Norm, Pick};
use crate::gguf::Value;
use crate::model::Model;
use crate::model::hparams::{HParams, LayerHParams};
use crate::placement::{Buffer, Copy, Placement};
use crate::run::{ContextNumbers, Rules};

/// What a graph is built from.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    pub model: &'a Model,
    pub numbers: &'a ContextNumbers,
    pub caches: &'a Caches,
    pub placement: &'a Placement,
    /// What a draft model reads of the launch that it drafts for.
    pub other: Option<Other<'a>>,
    /// The layers whose input a draft model reads; one more than the last stands for the last one's output.
    pub taps: &'a [u32],
    pub rules: Rules,
    pub batch: Batch,
    pub flash_attn: bool,
    pub fused: Fused,
    /// Caches lie with their layers instead of on the host.
    pub offload_kqv: bool,
    /// Every layer and the output are on devices.
    pub full_offload: bool,
}

/// What is one operation: steps of hyper-connections, masks of chosen cells (`fused_dsv4_hc_pre` and its siblings).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Fused {
    pub pre: bool,
    pub comb: bool,
    pub post: bool,
    pub masks: bool,
}

impl Fused {
    pub const ALL: Self = Self { pre: true, comb: true, post: true, masks: true };
}

/// The context beside a drafting one (`ctx_other`): the target's.
#[derive(Debug, Clone, Copy)]
pub struct Other<'a> {
    pub model: &'a Model,
    pub placement: &'a Placement,
    pub caches: &'a Caches,
}

/// A micro-batch (`llama_ubatch` of `ubatch_reserve`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Tokens in all, a multiple of `n_seqs`.
    pub n_tokens: u64,
    pub n_seqs: u64,
    /// Tokens with an output row.
    pub n_outputs: u64,
    /// What drafts reads every row that comes out of the last layer (`embeddings_nextn`, unmasked).
    pub keeps_rows: bool,
}

/// The largest number among a header's keys that shapes are made of; the largest known is 16 384. Products of three of them,
/// of tokens and of sequences then stay within 64 bits.
const MAX_NUMBER: u64 = 1 << 16;
/// The largest micro-batch, in tokens.
const MAX_TOKENS: u64 = 1 << 24;

/// The graph of `plan`; an error where llama.cpp refuses the file or stops at an assertion.
pub fn build(plan: &Plan<'_>) -> Result<Graph, Error> {
    let draft = Draft::default();
    draft.0.borrow_mut().fuses_norms = plan.rules.fuses_norms;
    let builder = Builder::new(plan, &draft);
    builder.check_numbers()?;
    models::build(&builder);
    builder.finished()?;
    Ok(draft.0.into_inner())
}

/// The tensors of one layer in a cache.
type KvIds = (Id, Option<Id>);

/// A graph in the making (`llm_graph_context`).
struct Builder<'g> {
    plan: &'g Plan<'g>,
    arch: &'g Arch,
    draft: &'g Draft,
    /// Weights by block, name and ending (`weight`, `bias`, `scale` or nothing).
    by_name: HashMap<(Option<u32>, &'g str, &'g str), usize>,
    leafs: RefCell<HashMap<(usize, Buffer), Id>>,
    /// The block of every layer, where layers run blocks again.
    blocks: RefCell<Vec<u32>>,
    kv: RefCell<BTreeMap<(CacheKind, u32), KvIds>>,
    /// The first error that is not an operation's.
    error: RefCell<Option<Error>>,
    n_tokens: u64,
    n_seqs: u64,
    /// Tokens of each sequence.
    n_seq_tokens: u64,
    n_embd: u64,
    /// Layers of the trunk.
    n_layer: u32,
}

/// A layer of a graph in the making.
#[derive(Clone, Copy)]
struct Layer<'g> {
    b: &'g Builder<'g>,
    il: u32,
    hp: LayerHParams,
    n_head: u64,
    n_kv: u64,
    /// Elements of a head's keys, and of its values.
    head_k: u64,
    head_v: u64,
}

impl<'g> std::ops::Deref for Layer<'g> {
    type Target = Builder<'g>;

    fn deref(&self) -> &Self::Target {
        self.b
    }
}

impl<'g> Builder<'g> {
    fn new(plan: &'g Plan<'g>, draft: &'g Draft) -> Self {
        let key = |(i, tensor): (usize, &'g crate::model::Tensor)| {
            let suffix = match tensor.block {
                // `enc.blk.N.` and `dec.blk.N.` are of no graph here, whatever they are taken for.
                Some(_) => tensor.name.splitn(3, '.').nth(2).unwrap_or(&tensor.name),
                None => &tensor.name,
            };
            let parts = suffix.rsplit_once('.').filter(|(_, ending)| ["weight", "bias", "scale"].contains(ending));
            let (name, ending) = parts.unwrap_or((suffix, ""));
            ((tensor.block, name, ending), i)
        };
        let batch = plan.batch;
        Self {
            plan,
            arch: plan.model.hparams.arch(),
            draft,
            by_name: plan.model.tensors.iter().enumerate().map(key).collect(),
            leafs: RefCell::default(),
            blocks: RefCell::default(),
            kv: RefCell::default(),
            error: RefCell::default(),
            n_tokens: batch.n_tokens,
            n_seqs: batch.n_seqs,
            n_seq_tokens: batch.n_tokens / batch.n_seqs,
            n_embd: u64::from(plan.model.hparams.embedding_length),
            n_layer: plan.caches.hparams.n_layer,
        }
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
        let (last, kept) = (self.plan.taps.iter().max(), self.arch.layer_inputs);
        if last.is_some_and(|il| *il > self.n_layer || kept < LayerInputs::All)
            || (self.plan.taps.contains(&self.n_layer) && kept < LayerInputs::WithOutput)
        {
            return Err(Error::Taps { architecture: self.plan.model.architecture.clone() });
        }
        let too_large = heads.chain(others).find(|(_, number)| u64::from(*number) > MAX_NUMBER);
        too_large.map_or(Ok(()), |(key, number)| Err(self.key_error(key, Some(number.into()))))
    }

    /// What is wrong with the file, if anything is.
    fn finished(&self) -> Result<(), Error> {
        let leafs = self.leafs.borrow();
        let name = |id: Id| {
            let ((index, _), _) = leafs.iter().find(|(_, leaf)| **leaf == id)?;
            Some(self.plan.model.tensors.get(*index)?.name.as_str())
        };
        self.error.take().map_or_else(|| fault(&self.draft.0.borrow(), name), Err)
    }

    /// Keeps the first error; the node stands for what is missing.
    fn fail(&self, error: Error) -> Node<'g> {
        self.error.borrow_mut().get_or_insert(error);
        self.draft.refuse("a graph with an error", &[])
    }

    fn hparams(&self) -> &'g HParams {
        &self.plan.model.hparams
    }

    /// `<arch>.KEY`.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.plan.model.architecture)
    }

    fn key_error(&self, key: &str, found: Option<u64>) -> Error {
        Error::Key { key: self.key(key), found }
    }

    /// The number `<arch>.KEY`, which has to be there and above 0.
    fn hparam(&self, key: &str) -> u64 {
        match self.hparam_or_0(key) {
            0 => {
                self.fail(self.key_error(key, self.hparams().u64(key)));
                1
            }
            number => number,
        }
    }

    /// The number `<arch>.KEY`; 0 where it is absent, as in llama.cpp.
    fn hparam_or_0(&self, key: &str) -> u64 {
        match self.hparams().u64(key) {
            Some(number) if number > MAX_NUMBER => {
                self.fail(self.key_error(key, Some(number)));
                1
            }
            number => number.unwrap_or(0),
        }
    }

    /// The number `<arch>.KEY`, or 0.
    fn f64_or_0(&self, key: &str) -> f64 {
        match self.hparams().value(key) {
            Some(Value::F64(x)) => *x,
            #[expect(clippy::cast_precision_loss, reason = "whether it is 0 or 1 is all that is asked")]
            Some(Value::U64(n)) => *n as f64,
            _ => 0.0,
        }
    }

    /// Whether the number `<arch>.KEY` is there and not 0.
    fn is_set(&self, key: &str) -> bool {
        self.f64_or_0(key).abs() > 0.0
    }

    /// The boolean `<arch>.KEY`, or false.
    fn flag(&self, key: &str) -> bool {
        matches!(self.hparams().value(key), Some(Value::Bool(true)))
    }

    fn layer(&'g self, il: u32) -> Layer<'g> {
        let hp = self.plan.caches.hparams.layers.get(il as usize).copied().unwrap_or_else(|| {
            self.fail(Error::Layer { il });
            LayerHParams::default()
        });
        let [n_head, n_kv, head_k, head_v] =
            [hp.n_head, hp.n_head_kv, hp.n_embd_head_k, hp.n_embd_head_v].map(u64::from);
        Layer { b: self, il, hp, n_head, n_kv, head_k, head_v }
    }

    /// The layers, as long as nothing is wrong.
    fn layers(&'g self) -> impl Iterator<Item = Layer<'g>> {
        (0..self.n_layer).map_while(|il| (!self.draft.is_faulty()).then(|| self.layer(il)))
    }

    /// Whether a draft model reads what comes out of the last layer.
    fn taps_output(&self) -> bool {
        self.plan.batch.keeps_rows || self.plan.taps.contains(&self.n_layer)
    }

    /// When rows are picked by this launch: late where a draft reads them, or where the build keeps them anyway.
    fn pick(&self, pick: Pick) -> Pick {
        let is_late = matches!(pick, Pick::BeforeNorm | Pick::AfterNorm);
        let keeps = self.plan.rules.keeps_nextn_rows.contains(&self.arch.name) || self.taps_output();
        if is_late && !keeps { Pick::Early } else { pick }
    }

    /// Layers run these blocks.
    fn run_blocks(&self, blocks: impl Iterator<Item = u32>) {
        *self.blocks.borrow_mut() = blocks.collect();
    }

    /// The device of a layer.
    fn home(&self, il: u32) -> Option<u16> {
        self.plan.placement.layers.get(il as usize).copied().flatten()
    }

    /// Binds a node to a target: a position among the launch's devices, the host after them.
    fn pin(&self, node: Node<'g>, target: usize) {
        self.draft.0.borrow_mut().pinned.push((node.id, target));
    }

    /// A weight, as a leaf in the buffer that `choose` takes of its copies.
    fn leaf(
        &self,
        key: (Option<u32>, &str, &str),
        choose: impl FnOnce(&'g [Copy]) -> Option<&'g Copy>,
    ) -> Option<Node<'g>> {
        let index = *self.by_name.get(&key)?;
        let buffer = choose(self.plan.placement.copies.get(index)?)?.buffer;
        if let Some(id) = self.leafs.borrow().get(&(index, buffer)) {
            return Some(self.draft.node(*id));
        }
        let tensor = self.plan.model.tensors.get(index)?;
        let leaf = self.draft.hold(tensor.ty, &tensor.shape, Held::Weight(buffer));
        if tensor.shape.contains(&0) {
            self.draft.refuse("a weight without elements", &[leaf]);
        }
        self.leafs.borrow_mut().insert((index, buffer), leaf.id);
        Some(leaf)
    }

    /// `NAME.ENDING`, a weight of no layer, if the file has it (`TENSOR_NOT_REQUIRED`); the first of its copies.
    fn get(&self, name: &str, ending: &str) -> Option<Node<'g>> {
        self.leaf((None, name, ending), <[Copy]>::first)
    }

    /// `NAME.weight`, a weight of no layer that llama.cpp requires.
    fn global(&self, name: &str) -> Node<'g> {
        self.get(name, "weight").unwrap_or_else(|| self.no_tensor(format!("{name}.weight")))
    }

    /// `NAME.ENDING` of the target, which lies where the target has it.
    fn theirs(
        &self,
        name: &str,
        ending: &str,
        choose: impl FnOnce(&'g [Copy]) -> Option<&'g Copy>,
    ) -> Option<Node<'g>> {
        let other = self.plan.other?;
        let full = format!("{name}.{ending}");
        let index = other.model.tensors.iter().position(|tensor| tensor.name == full)?;
        let buffer = choose(other.placement.copies.get(index)?)?.buffer;
        if let Buffer::Device(device) = buffer
            && !self.plan.placement.devices.contains(&device)
        {
            return Some(self.fail(Error::Elsewhere { tensor: full }));
        }
        let key = (self.plan.model.tensors.len() + index, buffer);
        if let Some(id) = self.leafs.borrow().get(&key) {
            return Some(self.draft.node(*id));
        }
        let tensor = other.model.tensors.get(index)?;
        let leaf = self.draft.hold(tensor.ty, &tensor.shape, Held::Weight(buffer));
        self.leafs.borrow_mut().insert(key, leaf.id);
        Some(leaf)
    }

    /// The last copy of `NAME.weight`: the one that the output of a tied model reads.
    fn last_copy(&self, name: &str) -> Option<Node<'g>> {
        self.leaf((None, name, "weight"), <[Copy]>::last)
    }

    fn no_tensor(&self, tensor: String) -> Node<'g> {
        self.fail(Error::Tensor { tensor, architecture: self.plan.model.architecture.clone() })
    }
}

/// The operation that a graph stopped at, if it did; `name` knows the weights.
fn fault<'m>(graph: &Graph, name: impl Fn(Id) -> Option<&'m str>) -> Result<(), Error> {
    let Some(fault) = &graph.fault else { return Ok(()) };
    if fault.what == TOO_LARGE {
        return Err(Error::TooLarge);
    }
    let shape = |id: &Id| format!("{:?}", graph.tensor(*id).ne);
    let shapes = fault.sources.iter().map(shape).collect::<Vec<_>>().join(" and ");
    Err(Error::Operation { what: fault.what, shapes, tensor: weight_behind(graph, &fault.sources, name) })
}

/// The weight that one of `ids` is or comes from by the fewest operations.
fn weight_behind<'m>(graph: &Graph, ids: &[Id], name: impl Fn(Id) -> Option<&'m str>) -> Option<String> {
    let (mut open, mut met) = (VecDeque::from(ids.to_vec()), HashSet::new());
    while let Some(id) = open.pop_front() {
        if let Some(name) = name(id) {
            return Some(name.to_string());
        }
        if met.insert(id) {
            open.extend(graph.tensor(id).sources());
        }
    }
    None
}

impl Node<'_> {
    /// Brought between two limits; in one operation in ik_llama.cpp (`ggml_softcap`).
    fn capped(self) -> Self {
        if self.draft.0.borrow().fuses_norms { self.op(Op::Plain) } else { self.scale().tanh().scale() }
    }

    /// A norm of each row, then a weight and a bias.
    fn norm(self, kind: Norm, weight: Option<Self>, bias: Option<Self>) -> Self {
        if let Some(weight) = weight.filter(|_| kind == Norm::Rms && self.draft.0.borrow().fuses_norms) {
            // `llm_build_norm` of ik_llama.cpp: not in the place of its source.
            return self.like(Op::Plain, &[self, weight]).weighted(None, bias);
        }
        self.op(if kind == Norm::Rms { Op::RmsNorm } else { Op::Norm }).weighted(weight, bias)
    }

    fn weighted(self, weight: Option<Self>, bias: Option<Self>) -> Self {
        let x = weight.map_or(self, |weight| self * weight);
        bias.map_or(x, |bias| x + bias)
    }
}

impl<'g> Layer<'g> {
    /// Keeps its input for a draft model that reads it.
    fn tap(self, rows: Node<'g>) {
        if self.plan.taps.contains(&self.il) {
            rows.mark_output();
        }
    }

    fn is_last(self) -> bool {
        self.il + 1 == self.n_layer
    }

    /// A layer is its block, unless blocks run again.
    fn block(self) -> u32 {
        self.blocks.borrow().get(self.il as usize).copied().unwrap_or(self.il)
    }

    /// Its device, as a position among the launch's devices; the host after them.
    fn target(self) -> usize {
        let devices = &self.plan.placement.devices;
        self.home(self.il).and_then(|d| devices.iter().position(|other| *other == d)).unwrap_or(devices.len())
    }

    /// `blk.N.NAME.ENDING`, if the file has it (`TENSOR_NOT_REQUIRED`).
    fn get(self, name: &str, ending: &str) -> Option<Node<'g>> {
        // A layer that runs a block again has scales of its own: they are made after its weights (`llama_model_base::load_tensors`).
        let block = if ending == "scale" { self.il } else { self.block() };
        self.b.leaf((Some(block), name, ending), <[Copy]>::first)
    }

    /// `blk.N.NAME.weight`, if the file has it.
    fn maybe(self, name: &str) -> Option<Node<'g>> {
        self.get(name, "weight")
    }

    /// Whether there is a `blk.N.NAME.weight`.
    fn has(self, name: &str) -> bool {
        self.by_name.contains_key(&(Some(self.block()), name, "weight"))
    }

    /// `blk.N.NAME.weight`, which llama.cpp requires.
    fn weight(self, name: &str) -> Node<'g> {
        self.need(name, "weight")
    }

    /// `blk.N.NAME.ENDING`, which llama.cpp requires.
    fn need(self, name: &str, ending: &str) -> Node<'g> {
        self.get(name, ending).unwrap_or_else(|| {
            let dot = if ending.is_empty() { "" } else { "." };
            self.no_tensor(format!("blk.{}.{name}{dot}{ending}", self.block()))
        })
    }

    /// The copy of `NAME.weight` that lies with this layer (`rope_freqs.weight`).
    fn global_here(self, name: &str) -> Option<Node<'g>> {
        let device = self.home(self.il).map(Buffer::Device);
        let is_here = |copy: &&Copy| match device {
            Some(device) => copy.buffer == device,
            None => !matches!(copy.buffer, Buffer::Device(_)),
        };
        self.b.leaf((None, name, "weight"), |copies| copies.iter().find(is_here).or(copies.first()))
    }

    /// A weight times `x`, whatever scale the weight has (`ggml_mul_mat`).
    fn raw_mm(self, name: &str, x: Node<'g>) -> Node<'g> {
        self.weight(name).mm(x)
    }

    /// A weight times `x`, then the scale that an NVFP4 weight has (`build_lora_mm`).
    fn mm(self, name: &str, x: Node<'g>) -> Node<'g> {
        let product = self.raw_mm(name, x);
        self.get(name, "scale").map_or(product, |scale| product * scale)
    }

    /// `x` plus a bias, if the layer has it.
    fn bias(self, name: &str, x: Node<'g>) -> Node<'g> {
        self.get(name, "bias").map_or(x, |bias| x + bias)
    }

    /// A weight times `x` plus its bias.
    fn linear(self, name: &str, x: Node<'g>) -> Node<'g> {
        self.bias(name, self.mm(name, x))
    }

    /// The weight of a norm; falcon-h1, plamo2 and plamo3 name some without `.weight`.
    fn norm_weight(self, name: &str) -> Node<'g> {
        self.get(name, "").unwrap_or_else(|| self.weight(name))
    }

    fn norm(self, name: &str, x: Node<'g>) -> Node<'g> {
        self.norm_of(Norm::Rms, name, x)
    }

    /// A norm with the layer's weight of this name and the bias that it may have (`build_norm`). It is bound to its layer's
    /// device when all layers are on devices (`llama_context::graph_get_cb`).
    fn norm_of(self, kind: Norm, name: &str, x: Node<'g>) -> Node<'g> {
        self.norm_with(kind, Some(self.norm_weight(name)), name, x)
    }

    /// [`Self::norm_of`] where the loader takes the weight as optional: `build_norm` leaves out what is absent.
    fn norm_with(self, kind: Norm, weight: Option<Node<'g>>, name: &str, x: Node<'g>) -> Node<'g> {
        if self.plan.rules.fuses_norms && kind == Norm::Rms && weight.is_some() {
            return x.norm(kind, weight, self.get(name, "bias"));
        }
        self.bound(x.norm(kind, None, None)).weighted(weight, self.get(name, "bias"))
    }

    /// A norm or a layer's last result (`l_last`), which are bound to the layer's device where batches are small or all layers are on
    /// devices (`llama_context::graph_get_cb`).
    fn bound(self, x: Node<'g>) -> Node<'g> {
        if self.plan.full_offload || self.n_tokens < 32 {
            self.pin(x, self.target());
        }
        x
    }
}
