//! The tensors of a model as the planner moves them, routed experts above all: by block, and within a block by kind.

use std::collections::BTreeSet;

use crate::bytes::Bytes;
use crate::model::Model;
use crate::placement::Placement;
use crate::plan::patterns::TensorSet;
use crate::rules::Role;

/// One block's tensors of some roles that the planner may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertBlock {
    /// `N` of `blk.N`.
    pub block: u32,
    /// By kind, in the order of the file.
    pub parts: Vec<ExpertPart>,
}

/// The tensors of one kind in one block: a weight with its biases and scales, always on the same side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertPart {
    /// The name between `blk.N.` and the last suffix (`ffn_up_exps`).
    pub stem: String,
    pub bytes: Bytes,
}

impl ExpertBlock {
    /// Bytes of all its parts.
    pub fn bytes(&self) -> Bytes {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Its tensors by block and stem.
    pub fn tensors(&self) -> impl Iterator<Item = (u32, String)> + '_ {
        self.parts.iter().map(|part| (self.block, part.stem.clone()))
    }
}

/// The stem of an expert tensor's name: `blk.3.ffn_up_exps.bias` gives `ffn_up_exps`.
pub fn stem(name: &str, block: u32) -> Option<&str> {
    name.strip_prefix(&format!("blk.{block}."))?.rsplit_once('.').map(|(stem, _suffix)| stem)
}

/// Every tensor of these roles that is loaded, by block and stem.
pub fn universe(model: &Model, placement: &Placement, roles: &[Role]) -> TensorSet {
    loaded(model, placement, roles).map(|(_, block, stem)| (block, stem.to_string())).collect()
}

/// The blocks with tensors of these roles that no rule claims, in block order.
///
/// `placement` is the law's answer to the rules that are there: what a rule placed there is left alone, and a block part
/// of which is claimed offers the rest.
pub fn movable(model: &Model, placement: &Placement, roles: &[Role]) -> Vec<ExpertBlock> {
    let claimed: BTreeSet<(u32, &str)> = loaded(model, placement, roles)
        .filter(|(index, ..)| placement.copies[*index].iter().any(|copy| copy.rule.is_some()))
        .map(|(_, block, stem)| (block, stem))
        .collect();
    let mut blocks: Vec<ExpertBlock> = Vec::new();
    let free = loaded(model, placement, roles).filter(|(_, block, stem)| !claimed.contains(&(*block, *stem)));
    for (index, block, stem) in free {
        let bytes = model.tensors[index].bytes;
        let at = blocks.iter().position(|known| known.block == block).unwrap_or_else(|| {
            blocks.push(ExpertBlock { block, parts: Vec::new() });
            blocks.len() - 1
        });
        match blocks[at].parts.iter_mut().find(|part| part.stem == stem) {
            Some(part) => part.bytes += bytes,
            None => blocks[at].parts.push(ExpertPart { stem: stem.to_string(), bytes }),
        }
    }
    blocks.sort_by_key(|block| block.block);
    blocks
}

/// Index, block and stem of every tensor of these roles that gets at least one copy.
pub fn loaded<'a>(
    model: &'a Model,
    placement: &'a Placement,
    roles: &'a [Role],
) -> impl Iterator<Item = (usize, u32, &'a str)> {
    model.tensors.iter().enumerate().filter_map(|(index, tensor)| {
        if !roles.contains(&tensor.role) || placement.copies[index].is_empty() {
            return None;
        }
        let block = tensor.block?;
        Some((index, block, stem(&tensor.name, block)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stem_is_what_weight_and_bias_share() {
        assert_eq!(stem("blk.3.ffn_up_exps.weight", 3), Some("ffn_up_exps"));
        assert_eq!(stem("blk.3.ffn_up_exps.bias", 3), Some("ffn_up_exps"));
        assert_eq!(stem("blk.13.ffn_up_exps.bias", 3), None);
    }
}
