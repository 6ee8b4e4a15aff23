//! The weights that a graph reads, as leafs in the buffers where the placement puts them.

use std::collections::HashMap;

use super::tensor::{Graph, Held, Id};
use crate::model::Model;
use crate::placement::{Buffer, Copy, Placement};

/// Weights by name, each made a leaf when it is first read.
pub(super) struct Weights<'a> {
    model: &'a Model,
    placement: &'a Placement,
    by_name: HashMap<(Option<u32>, &'a str), usize>,
    leafs: HashMap<(usize, Buffer), Id>,
    /// The block of every layer, where layers run blocks again.
    blocks: Vec<u32>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(model: &'a Model, placement: &'a Placement) -> Self {
        let key = |(i, tensor): (usize, &'a crate::model::Tensor)| {
            let suffix = match tensor.block {
                // `enc.blk.N.` and `dec.blk.N.` are of no graph here, whatever they are taken for.
                Some(_) => tensor.name.splitn(3, '.').nth(2).unwrap_or(&tensor.name),
                None => &tensor.name,
            };
            ((tensor.block, suffix), i)
        };
        let by_name = model.tensors.iter().enumerate().map(key).collect();
        Self { model, placement, by_name, leafs: HashMap::new(), blocks: Vec::new() }
    }

    /// The full name of a weight of a layer.
    pub(super) fn name(&self, il: u32, suffix: &str) -> String {
        format!("blk.{}.{suffix}", self.block(il))
    }

    /// The weight that one of `ids` is or comes from by the fewest operations.
    pub(super) fn behind(&self, graph: &Graph, ids: &[Id]) -> Option<&'a str> {
        let mut open = std::collections::VecDeque::from(ids.to_vec());
        let mut met = std::collections::HashSet::new();
        while let Some(id) = open.pop_front() {
            if let Some(((index, _), _)) = self.leafs.iter().find(|(_, leaf)| **leaf == id) {
                return self.model.tensors.get(*index).map(|tensor| tensor.name.as_str());
            }
            if met.insert(id) {
                open.extend(graph.tensor(id).sources());
            }
        }
        None
    }

    /// A weight of a layer: `suffix` is what follows `blk.N.`.
    pub(super) fn layer(&mut self, graph: &mut Graph, il: u32, suffix: &str) -> Option<Id> {
        let index = *self.by_name.get(&(Some(self.block(il)), suffix))?;
        self.leaf(graph, index, self.copies(index).first()?.buffer)
    }

    /// A weight of no layer; the first of its copies.
    pub(super) fn global(&mut self, graph: &mut Graph, name: &str) -> Option<Id> {
        let index = *self.by_name.get(&(None, name))?;
        self.leaf(graph, index, self.copies(index).first()?.buffer)
    }

    /// The last copy of a weight of no layer: the one that the output of a tied model reads.
    pub(super) fn global_for_output(&mut self, graph: &mut Graph, name: &str) -> Option<Id> {
        let index = *self.by_name.get(&(None, name))?;
        self.leaf(graph, index, self.copies(index).last()?.buffer)
    }

    /// The copy of a weight of no layer that lies with a layer (`rope_freqs.weight`).
    pub(super) fn global_for_layer(&mut self, graph: &mut Graph, il: u32, name: &str) -> Option<Id> {
        let index = *self.by_name.get(&(None, name))?;
        let device = self.placement.layers.get(il as usize).copied().flatten().map(Buffer::Device);
        let copies = self.copies(index);
        let is_with_layer = |copy: &&Copy| match device {
            Some(device) => copy.buffer == device,
            None => !matches!(copy.buffer, Buffer::Device(_)),
        };
        let copy = copies.iter().find(is_with_layer).or(copies.first())?;
        self.leaf(graph, index, copy.buffer)
    }

    /// The layers run these blocks.
    pub(super) fn run_blocks(&mut self, blocks: Vec<u32>) {
        self.blocks = blocks;
    }

    fn block(&self, il: u32) -> u32 {
        // A layer is its block, unless blocks run again.
        self.blocks.get(il as usize).copied().unwrap_or(il)
    }

    /// Whether the model has a weight of this layer.
    pub(super) fn has(&self, il: u32, suffix: &str) -> bool {
        self.by_name.contains_key(&(Some(self.block(il)), suffix))
    }

    fn copies(&self, index: usize) -> &'a [Copy] {
        self.placement.copies.get(index).map_or(&[], Vec::as_slice)
    }

    fn leaf(&mut self, graph: &mut Graph, index: usize, buffer: Buffer) -> Option<Id> {
        if let Some(id) = self.leafs.get(&(index, buffer)) {
            return Some(*id);
        }
        let tensor = self.model.tensors.get(index)?;
        let id = graph.hold(tensor.ty, &tensor.shape, Held::Weight(buffer));
        if tensor.shape.contains(&0) {
            graph.refuse("a weight without elements", &[id]);
        }
        self.leafs.insert((index, buffer), id);
        Some(id)
    }
}
