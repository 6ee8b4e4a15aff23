//! What CUDA keeps alive for the sake of fused kernels, and the order it gives to a shared expert.
//!
//! Source: `ggml/src/ggml-cuda/ggml-cuda.cu` `ggml_backend_cuda_graph_optimize` and the matchers it calls,
//! `ggml/src/ggml.c` `ggml_can_fuse_subgraph_ext`, llama.cpp b11434.

use std::collections::HashMap;
use std::ops::Range;

use super::graph::tensor::{Glu, Graph, Held, Id, Op, Tensor, Unary};

/// The most experts that one kernel adds up (`MOE_WEIGHTED_REDUCTION_MAX_EXPERTS`).
const MAX_REDUCED: u64 = 15;

/// Tensors to keep until a node has run.
#[derive(Debug, Default)]
pub struct Keeps {
    /// By the node after which they may go.
    pub until: HashMap<Id, Vec<Id>>,
    /// Whether more is fused: gates with ups, routers that choose groups of experts first, and those of 384 experts.
    pub of_more: bool,
}

impl Keeps {
    pub fn add(&mut self, id: Id, until: Id) {
        let kept = self.until.entry(until).or_default();
        if !kept.contains(&id) {
            kept.push(id);
        }
    }

    /// Keeps nodes and what they read.
    fn add_nodes(&mut self, graph: &Graph, nodes: Range<usize>, until: Id) {
        for id in &graph.nodes[nodes] {
            self.add(*id, until);
            graph.tensor(*id).sources().iter().for_each(|source| self.add(*source, until));
        }
    }
}

/// Reorders the nodes of one part of the graph and notes what has to stay alive; `is_nvidia` tells CUDA from what shares its source.
pub fn optimize(graph: &mut Graph, part: Range<usize>, keeps: &mut Keeps, is_nvidia: bool) {
    group_shared_experts(graph, &part, keeps);
    let mut i = part.start;
    while i < part.end {
        if keeps.of_more && is_nvidia && i + 2 < part.end && is_gated(graph, i) {
            keeps.add_nodes(graph, i..i + 2, graph.nodes[i + 2]);
            i += 3;
            continue;
        }
        if let Some(reduction) = weighted_reduction(graph, i, part.end) {
            keeps.add(reduction.experts, reduction.result);
            keeps.add(reduction.weights, reduction.result);
            reduction.scale.iter().for_each(|scale| keeps.add(*scale, reduction.result));
            i += reduction.n_nodes - 1;
        }
        if let Some(n_nodes) = router(graph, i, part.end, keeps.of_more) {
            if let Some(after) = graph.nodes.get(i + n_nodes) {
                keeps.add_nodes(graph, i..i + n_nodes, *after);
            }
            i += n_nodes - 1;
        }
        i += 1;
    }
}

fn node(graph: &Graph, i: usize) -> &Tensor {
    graph.tensor(graph.nodes[i])
}

fn source(tensor: &Tensor, i: usize) -> Option<Id> {
    tensor.sources().get(i).copied()
}

/// Whether nodes can become one kernel: nobody outside reads what is not among `outputs`.
pub fn can_fuse(graph: &Graph, nodes: &[usize], outputs: &[usize]) -> bool {
    let in_group = |id: Id| nodes.iter().any(|i| graph.nodes[*i] == id);
    nodes.iter().enumerate().filter(|(_, i)| !outputs.contains(i)).all(|(n, i)| {
        let id = graph.nodes[*i];
        let tensor = graph.tensor(id);
        let readers = nodes[n + 1..].iter().flat_map(|j| node(graph, *j).sources()).filter(|s| **s == id).count();
        // Copies that the scheduler added are read by none that counts.
        let uses = graph.uses.get(id.index()).copied().unwrap_or(0);
        let root_is_inside =
            tensor.view_src.is_none_or(|root| in_group(root) || matches!(graph.tensor(root).held, Held::Weight(_)));
        !tensor.is_output && readers == uses as usize && root_is_inside
    })
}

/// Whether two nodes are the gate and the up of the third, in weights that one kernel multiplies with many rows
/// (`ggml_cuda_mul_mat_q_fusion_matches`, `ggml_cuda_should_fuse_mul_mat`, b12032; cards from Turing on).
fn is_gated(graph: &Graph, at: usize) -> bool {
    let [first, second, glu] = [at, at + 1, at + 2].map(|i| node(graph, i));
    let is_fused = matches!(glu.op, Op::Glu(kind) if kind != Glu::Reglu);
    let are_products = first.op == second.op && matches!(first.op, Op::MulMat | Op::MulMatId);
    let both = [graph.nodes[at], graph.nodes[at + 1]];
    let (Some(gate), Some(up)) = (source(glu, 0), source(glu, 1)) else { return false };
    if !is_fused || !are_products || both != [gate, up] && both != [up, gate] {
        return false;
    }
    let [a, b] = [first, second].map(|product| graph.tensor(product.sources()[0]));
    first.sources()[1..] == second.sources()[1..]
        && graph.tensor(first.sources()[1]).ty.name == "f32"
        && (a.ty, a.ne, a.nb) == (b.ty, b.ne, b.nb)
        && matches!(a.ty.name, "q4_K" | "q5_K" | "q6_K" | "q8_0" | "iq4_xs")
        && a.ne[1].is_multiple_of(128)
}

/// Kernels that a token's graph starts: its nodes less views and less what runs within a neighbour's kernel.
///
/// Products take the bias and the gate behind them along (`ggml_cuda_op_mul_mat_vec_q` with `ggml_cuda_mm_fusion_args_host`), norms their
/// weight (`ggml_cuda_op_rms_norm_fused`); routers and sums of experts are one each. Vulkan and Metal fuse nearly the same.
pub fn kernels(graph: &Graph) -> usize {
    let end = graph.nodes.len();
    let (mut count, mut i) = (0, 0);
    while i < end {
        let group = weighted_reduction(graph, i, end).map(|sum| sum.n_nodes).or_else(|| router(graph, i, end, false));
        count += usize::from(group.is_some() || starts_kernel(graph, node(graph, i)));
        i += group.unwrap_or(1);
    }
    count
}

fn starts_kernel(graph: &Graph, tensor: &Tensor) -> bool {
    let reads_weight = || tensor.sources().iter().any(|id| matches!(graph.tensor(*id).held, Held::Weight(_)));
    match tensor.op {
        Op::None | Op::Glu(_) => false,
        Op::Mul | Op::Add | Op::AddId => !reads_weight(),
        op => !op.is_view(),
    }
}

/// The sum of weighted experts, as one kernel.
struct Reduction {
    experts: Id,
    scale: Option<Id>,
    weights: Id,
    result: Id,
    n_nodes: usize,
}

/// The two sources of a product: rows of experts, and one weight a row.
fn experts_and_weights(graph: &Graph, product: &Tensor) -> Option<(Id, Id)> {
    let f32 = |t: &Tensor| t.ty.name == "f32" && t.is_contiguous();
    let is_experts = |id: Id| {
        let t = graph.tensor(id);
        f32(t) && t.ne == product.ne
    };
    let is_weights = |id: Id| {
        let t = graph.tensor(id);
        f32(t) && t.ne[0] == 1 && t.ne[1..] == product.ne[1..]
    };
    let (a, b) = (source(product, 0)?, source(product, 1)?);
    if is_experts(a) && is_weights(b) {
        return Some((a, b));
    }
    (is_experts(b) && is_weights(a)).then_some((b, a))
}

/// `ggml_cuda_match_moe_weighted_reduction`.
fn weighted_reduction(graph: &Graph, at: usize, end: usize) -> Option<Reduction> {
    let is_product = |t: &Tensor| t.op == Op::Mul && t.ty.name == "f32" && t.is_contiguous();
    let first = node(graph, at);
    if !is_product(first) {
        return None;
    }
    let scaled = (at + 1 < end && is_product(node(graph, at + 1))).then(|| {
        let (scaled, weights) = experts_and_weights(graph, node(graph, at + 1))?;
        let (experts, scale) = experts_and_weights(graph, first)?;
        (scaled == graph.nodes[at]).then_some((experts, Some(scale), weights))
    });
    let (experts, scale, weights) = match scaled.flatten() {
        Some(found) => found,
        None => experts_and_weights(graph, first).map(|(experts, weights)| (experts, None, weights))?,
    };
    let n_products = 1 + usize::from(scale.is_some());
    let weighted_id = graph.nodes[at + n_products - 1];
    let weighted = *graph.tensor(weighted_id);
    if !(2..=MAX_REDUCED).contains(&weighted.ne[1]) {
        return None;
    }
    let n_used = usize::try_from(weighted.ne[1]).ok()?;
    let n_nodes = 2 * n_used + n_products - 1;
    if at + n_nodes > end {
        return None;
    }
    sums_views(graph, at + n_products..at + n_nodes, weighted_id, n_used)?;
    let nodes: Vec<usize> = (at..at + n_nodes).collect();
    let result = graph.nodes[at + n_nodes - 1];
    can_fuse(graph, &nodes, &nodes[n_nodes - 1..]).then_some(Reduction { experts, scale, weights, result, n_nodes })
}

/// Whether nodes are the views of each expert's rows and their sum, in any mix of both.
fn sums_views(graph: &Graph, nodes: Range<usize>, weighted_id: Id, n_used: usize) -> Option<()> {
    let weighted = graph.tensor(weighted_id);
    let n_tokens = weighted.ne[2] * weighted.ne[3];
    let mut views: Vec<Id> = Vec::with_capacity(n_used);
    let mut sum: Option<Id> = None;
    let mut n_sums = 0;
    for i in nodes {
        let (id, tensor) = (graph.nodes[i], node(graph, i));
        if tensor.op == Op::View {
            let fits = views.len() < n_used
                && source(tensor, 0) == Some(weighted_id)
                && tensor.view_src == Some(weighted_id)
                && tensor.ne == [weighted.ne[0], n_tokens, 1, 1]
                && tensor.nb[1] == weighted.nb[2]
                && tensor.view_offs == views.len() as u64 * weighted.nb[1];
            fits.then(|| views.push(id))?;
            continue;
        }
        let is_next = tensor.op == Op::Add && views.len() >= 2 && n_sums + 1 < views.len();
        let left = sum.or(views.first().copied());
        let adds = is_next && source(tensor, 0) == left && source(tensor, 1) == Some(views[n_sums + 1]);
        adds.then_some(())?;
        sum = Some(id);
        n_sums += 1;
    }
    let result = graph.tensor(sum?);
    (views.len() == n_used
        && n_sums == n_used - 1
        && result.is_contiguous()
        && result.ne == [weighted.ne[0], n_tokens, 1, 1])
    .then_some(())
}

/// The nodes of a router that starts at `at`, if one kernel can do it (`ggml_cuda_topk_moe_fusion` and its use).
fn router(graph: &Graph, at: usize, end: usize, fuses_more: bool) -> Option<usize> {
    let reads = |i: usize, n: usize, source_at: usize| source(node(graph, i), n) == Some(graph.nodes[source_at]);
    let is = |i: usize, op: Op, source_at: usize| i < end && node(graph, i).op == op && reads(i, 0, source_at);
    let probs = match node(graph, at).op {
        Op::SoftMax | Op::Unary(Unary::Sigmoid) => at,
        Op::Unary(Unary::Softplus) if is(at + 1, Op::Sqrt, at) => at + 1,
        _ => return None,
    };
    let reshaped = probs + 1;
    let sorted = if is(reshaped + 1, Op::Add, probs) { reshaped + 1 } else { probs };
    let mut order = sorted.max(reshaped) + 1;
    let mut selection = sorted;
    let first = order;
    let in_groups = |(n, (op, from)): (usize, &(Op, usize))| is(first + n + 1, *op, first + from);
    if fuses_more && is(first, Op::Reshape, sorted) && GROUPS.iter().enumerate().all(in_groups) {
        (selection, order) = (first + GROUPS.len(), first + GROUPS.len() + 1);
    }
    let ids = order + 1;
    let mut last = order + 2;
    let picks = is(reshaped, Op::Reshape, probs)
        && is(order, Op::Argsort, selection)
        && is(ids, Op::View, order)
        && is(last, Op::GetRows, reshaped)
        && reads(last, 1, ids);
    if !picks {
        return None;
    }
    let is_normed = is(last + 1, Op::Reshape, last)
        && is(last + 2, Op::SumRows, last + 1)
        && is(last + 3, Op::Clamp, last + 2)
        && is(last + 4, Op::Div, last + 1)
        && reads(last + 4, 1, last + 3)
        && is(last + 5, Op::Reshape, last + 4);
    // Where a reshape is not a norm's, llama.cpp stops looking before the scale.
    let looks_for_scale = is_normed || last + 1 < end && node(graph, last + 1).op != Op::Reshape;
    last += if is_normed { 5 } else { 0 };
    last += usize::from(looks_for_scale && is(last + 1, Op::Scale, last));
    let nodes: Vec<usize> = (at..=last).collect();
    let has_kernel = has_kernel(graph, at, last, ids, fuses_more);
    (can_fuse(graph, &nodes, &[ids, last]) && has_kernel).then_some(nodes.len())
}

/// How the best groups of experts are chosen: each node behind the first, and which one it reads (`topk_moe_group_pattern`, b12032).
const GROUPS: [(Op, usize); 13] = [
    (Op::Reshape, 0),
    (Op::Argsort, 0),
    (Op::View, 2),
    (Op::GetRows, 1),
    (Op::Reshape, 4),
    (Op::SumRows, 5),
    (Op::Reshape, 6),
    (Op::Argsort, 7),
    (Op::View, 8),
    (Op::GetRows, 0),
    (Op::Fill, 0),
    (Op::SetRows, 10),
    (Op::Reshape, 12),
];

/// `ggml_cuda_should_use_topk_moe`.
fn has_kernel(graph: &Graph, gating: usize, weights: usize, ids: usize, fuses_more: bool) -> bool {
    let (gating, weights, ids) = (node(graph, gating), node(graph, weights), node(graph, ids));
    let Some(logits) = source(gating, 0).map(|id| graph.tensor(id)) else { return false };
    let n_expert = ids.nb[1] / ids.nb[0];
    let has_size = (n_expert.is_power_of_two() && n_expert <= 512)
        || n_expert == 288
        || n_expert == 576
        || fuses_more && n_expert == 384;
    let is_plain = gating.op != Op::SoftMax || gating.sources().len() == 1;
    has_size && is_plain && logits.is_contiguous() && weights.is_contiguous()
}

/// Puts the shared expert's first half behind the routed one's where one kernel can do both.
fn group_shared_experts(graph: &mut Graph, part: &Range<usize>, keeps: &mut Keeps) {
    let mut i = part.start;
    while i + 5 < part.end {
        if node(graph, i).op == Op::MulMatId {
            let mut j = i + 3;
            while j + 2 < part.end {
                if node(graph, j).op == Op::MulMatId && node(graph, j + 1).op == Op::MulMatId {
                    break;
                }
                if node(graph, j).op == Op::MulMat && is_shared_expert(graph, i, j) {
                    graph.nodes[i + 3..j + 3].rotate_left(j - i - 3);
                    let until = graph.nodes[i + 5];
                    if let Some(up) = source(node(graph, i + 2), 1) {
                        let up = *graph.tensor(up);
                        up.sources()[1..].iter().for_each(|s| keeps.add(*s, until));
                    }
                    i += 5;
                    break;
                }
                j += 1;
            }
        }
        i += 1;
    }
}

/// `ggml_cuda_match_shared_expert`.
fn is_shared_expert(graph: &Graph, routed_at: usize, shared_at: usize) -> bool {
    let nodes = [routed_at, routed_at + 1, routed_at + 2, shared_at, shared_at + 1, shared_at + 2];
    let (routed, shared) = (node(graph, nodes[2]), node(graph, nodes[5]));
    let (Op::Glu(kind), Op::Glu(shared_kind)) = (routed.op, shared.op) else { return false };
    let products = [(0, Op::MulMatId), (1, Op::MulMatId), (3, Op::MulMat), (4, Op::MulMat)];
    let are_products = products.iter().all(|(i, op)| node(graph, nodes[*i]).op == *op);
    if kind != shared_kind || kind == Glu::Reglu || !are_products || !can_fuse(graph, &nodes, &[nodes[2], nodes[5]]) {
        return false;
    }
    let pair = |glu: &Tensor, at: usize| {
        let (gate, up) = (source(glu, 0)?, source(glu, 1)?);
        let both = [graph.nodes[at], graph.nodes[at + 1]];
        (both == [gate, up] || both == [up, gate]).then(|| (*graph.tensor(gate), *graph.tensor(up)))
    };
    let (Some((gate, up)), Some((shared_gate, shared_up))) = (pair(routed, nodes[0]), pair(shared, nodes[3])) else {
        return false;
    };
    let weight = |t: &Tensor| *graph.tensor(t.sources()[0]);
    let same_weights = |a: &Tensor, b: &Tensor| {
        let (a, b) = (weight(a), weight(b));
        a.ty == b.ty && a.ne == b.ne && a.nb == b.nb
    };
    let same_inputs = up.sources()[1..] == gate.sources()[1..] && shared_up.sources()[1] == shared_gate.sources()[1];
    let (w, shared_w) = (weight(&up), weight(&shared_up));
    let input = *graph.tensor(up.sources()[1]);
    let shared_input = *graph.tensor(shared_up.sources()[1]);
    same_weights(&up, &gate)
        && same_weights(&shared_up, &shared_gate)
        && same_inputs
        && matches!(w.held, Held::Weight(_))
        && w.ty.is_quantized
        && input.op == Op::Reshape
        && input.sources()[0] == shared_up.sources()[1]
        && (input.ne[1], input.ne[3]) == (1, 1)
        && input.is_contiguous()
        && shared_input.is_contiguous()
        && shared_input.ne[2..] == [1, 1]
        && w.ty == shared_w.ty
        && w.ne[..2] == shared_w.ne[..2]
        && w.nb[1] == shared_w.nb[1]
        && w.ne[3] == 1
        && shared_w.ne[2..] == [1, 1]
        && shared_w.op == Op::None
}

#[cfg(test)]
mod tests {
    use super::super::graph::tensor::Draft;
    use super::*;
    use crate::gguf::GgmlType;
    use crate::gguf::ggml_type::f32;

    /// What is kept, by node, of two experts' rows by their weights, added up; the product can be read elsewhere too.
    fn kept(is_read_again: bool) -> (Keeps, [Id; 3], Graph) {
        let draft = Draft::default();
        let experts = draft.input(f32(), &[64, 2, 8]).cont();
        let weights = draft.input(f32(), &[1, 2, 8]);
        let product = (experts * weights).expand();
        let nb = product.strides();
        let [first, second] = [0, 1].map(|i| product.view(&[64, 8], &[nb[2]], i * nb[1]).expand());
        let sum = (first + second).expand();
        if is_read_again {
            product.cont().expand();
        }
        let ids = [experts.id, weights.id, sum.id];
        let mut graph = draft.0.into_inner();
        let (mut keeps, all) = (Keeps::default(), 0..graph.nodes.len());
        optimize(&mut graph, all, &mut keeps, true);
        (keeps, ids, graph)
    }

    #[test]
    fn what_one_kernel_adds_up_stays_until_it_has_run() {
        let (keeps, [experts, weights, sum], graph) = kept(false);
        assert_eq!(keeps.until.get(&sum), Some(&vec![experts, weights]));
        // The copy of the experts, and their sum.
        assert_eq!(kernels(&graph), 2);
    }

    /// Only NVIDIA's builds from b12032 on fuse them, and only where the rows of the weights fill whole tiles.
    #[test]
    fn what_a_gate_and_an_up_read_stays_until_their_product_is_there() {
        let kept = |of_more, is_nvidia, rows| {
            let draft = Draft::default();
            let weight = || draft.input(GgmlType::from_name("q4_K").unwrap(), &[256, rows]);
            let x = draft.input(f32(), &[256, 8]).cont();
            let (up, gate) = (weight().mm(x).expand(), weight().mm(x).expand());
            let product = gate.glu_split(Glu::Swiglu, up).expand();
            let (x, ids, product) = (x.id, [up.id, gate.id], product.id);
            let mut graph = draft.0.into_inner();
            let (mut keeps, all) = (Keeps { of_more, ..Keeps::default() }, 0..graph.nodes.len());
            optimize(&mut graph, all, &mut keeps, is_nvidia);
            keeps.until.get(&product).is_some_and(|kept| ids.iter().chain([&x]).all(|id| kept.contains(id)))
        };
        assert!(kept(true, true, 128));
        assert!(!kept(false, true, 128) && !kept(true, false, 128) && !kept(true, true, 64));
    }

    #[test]
    fn a_product_that_others_read_is_not_fused() {
        assert!(kept(true).0.until.is_empty());
    }
}
