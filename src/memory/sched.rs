//! ggml's scheduler: which backend runs each node, where the graph is split, and what is copied between backends.
//!
//! Source: `ggml/src/ggml-backend.cpp` `ggml_backend_sched_split_graph`, llama.cpp b11434.

use std::collections::HashMap;

use super::alloc::{BufferAllocator, Layout};
use super::backend::Target;
use super::fusion;
use super::graph::tensor::{Graph, Held, Id, Op, Tensor};
use crate::placement::Buffer;
use crate::run::Rules;

/// What a graph is scheduled on.
#[derive(Debug, Clone)]
pub struct Scheduler {
    /// By priority; the last one is the CPU.
    pub targets: Vec<Target>,
    /// Rows from which products go to a device although the weight is in host memory; `None`: they never do.
    pub offload_rows: Option<u32>,
    /// Several micro-batches are in flight.
    pub pipeline: bool,
    pub rules: Rules,
}

/// The result of scheduling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// Bytes of the compute buffer of each target.
    pub sizes: Vec<u64>,
    /// Parts of the graph that run on one backend.
    pub n_splits: usize,
    /// Whether all that is bound to a device is there, although it was forgotten.
    pub is_kept: bool,
    /// Bytes of the largest result of an operation on each target, or of one that reads what the target holds and runs elsewhere because the
    /// target does not run it.
    pub largest: Vec<u64>,
}

/// A part of the graph that one backend runs.
#[derive(Debug)]
struct Split {
    target: usize,
    start: usize,
    end: usize,
    inputs: Vec<Id>,
}

/// A graph being scheduled.
struct Scheduling<'a> {
    scheduler: &'a Scheduler,
    graph: &'a mut Graph,
    target_of: Vec<Option<usize>>,
    /// By tensor and target: its first copy there, the others following it.
    copies: Vec<Option<Id>>,
    splits: Vec<Split>,
    /// Leafs added before the graph's own (pipeline parallelism).
    first_leafs: Vec<(Id, usize)>,
    /// Tensors of the original graph; later ones are copies.
    n_original: usize,
}

impl Scheduler {
    /// Schedules and allocates `graph`, which is left with copies in it. A projection forgets what is bound to a device, since
    /// `ggml_backend_sched_reserve_size` resets the scheduler first; the launch's own `ggml_backend_sched_reserve` does not.
    pub fn reserve(&self, graph: &mut Graph, is_projection: bool) -> Scheduled {
        let bound = if is_projection { std::mem::take(&mut graph.pinned) } else { Vec::new() };
        let (mut scheduling, largest) = self.split(graph);
        let n_splits = scheduling.splits.len();
        let is_kept = bound.iter().all(|(id, target)| scheduling.target_of[id.index()] == Some(*target));
        let [nodes, leafs] = scheduling.with_copies();
        let mut buffers: Vec<_> =
            self.targets.iter().map(|t| BufferAllocator::new(t.alignment(), t.max_chunk)).collect();
        let tensors = graph.tensors.as_slice();
        let alloc_size = |buffer: usize, tensor: &Tensor| {
            self.targets[buffer].alloc_size(tensors, tensor, self.rules.attention_copies)
        };
        let clamps_inplace = self.rules.clamps_inplace;
        Layout { tensors, nodes: &nodes, leafs: &leafs, clamps_inplace, alloc_size }.allocate(&mut buffers);
        Scheduled { sizes: buffers.iter().map(BufferAllocator::size).collect(), n_splits, is_kept, largest }
    }

    /// The target that would run each node that `wanted` picks.
    pub fn targets_of(&self, graph: &mut Graph, wanted: impl Fn(&Tensor) -> bool) -> Vec<(Id, Option<usize>)> {
        let scheduling = self.assign(graph);
        let nodes = scheduling.graph.nodes.iter().filter(|id| wanted(scheduling.graph.tensor(**id)));
        nodes.map(|id| (*id, scheduling.target_of[id.index()])).collect()
    }

    fn assign<'a>(&'a self, graph: &'a mut Graph) -> Scheduling<'a> {
        let n = graph.tensors.len();
        let mut scheduling = Scheduling {
            scheduler: self,
            target_of: vec![None; n],
            copies: vec![None; n * self.targets.len()],
            splits: Vec::new(),
            first_leafs: Vec::new(),
            n_original: n,
            graph,
        };
        for (id, target) in scheduling.graph.pinned.clone() {
            scheduling.target_of[id.index()] = Some(target);
        }
        scheduling.place_by_weights();
        scheduling.spread(true, false);
        scheduling.spread(true, true);
        scheduling.spread(false, false);
        scheduling.spread(false, true);
        scheduling.place_the_rest();
        scheduling.place_sources();
        scheduling
    }

    /// The graph cut into splits, and [`Scheduled::largest`], which is seen before tensors are copied between backends.
    fn split<'a>(&'a self, graph: &'a mut Graph) -> (Scheduling<'a>, Vec<u64>) {
        let mut scheduling = self.assign(graph);
        let largest = scheduling.largest();
        scheduling.cut();
        if self.pipeline && self.rules.copies_unused_inputs {
            for i in 0..scheduling.graph.leafs.len() {
                scheduling.copy_input(scheduling.graph.leafs[i]);
            }
        }
        (scheduling, largest)
    }

    fn cpu(&self) -> usize {
        self.targets.len() - 1
    }

    fn n_copies(&self) -> usize {
        if self.pipeline { self.rules.pipeline_copies } else { 1 }
    }
}

impl Scheduling<'_> {
    /// [`Scheduled::largest`].
    fn largest(&self) -> Vec<u64> {
        let targets = &self.scheduler.targets;
        let mut largest = vec![0; targets.len()];
        for id in &self.graph.nodes {
            let (here, tensor) = (self.target(*id), self.graph.tensor(*id));
            let read = tensor.sources().iter().filter_map(|source| match self.graph.held(*source) {
                Held::Weight(Buffer::Device(at)) | Held::Cache(Buffer::Device(at)) => {
                    targets.iter().position(|target| target.device == Some(at))
                }
                _ => None,
            });
            let refusing = read.filter(|at| *at != here && !targets[*at].supports_op(&self.graph.tensors, tensor));
            for target in refusing.chain([here]) {
                largest[target] = tensor.bytes().max(largest[target]);
            }
        }
        largest
    }

    fn tensor(&self, id: Id) -> Tensor {
        *self.graph.tensor(id)
    }

    fn supports(&self, target: usize, tensor: &Tensor) -> bool {
        self.scheduler.targets[target].supports_op(&self.graph.tensors, tensor)
    }

    fn set(&mut self, id: Id, target: usize) {
        self.target_of[id.index()] = Some(target);
    }

    /// The first target that can use the buffer and run the operation (`ggml_backend_sched_backend_from_buffer`).
    fn target_of_buffer(&self, buffer: Buffer, tensor: &Tensor) -> Option<usize> {
        let targets = &self.scheduler.targets;
        (0..targets.len()).find(|t| targets[*t].supports_buffer(buffer) && self.supports(*t, tensor))
    }

    /// Pass 1: nodes go where their own bytes or their weights are.
    fn place_by_weights(&mut self) {
        for i in 0..self.graph.leafs.len() + self.graph.nodes.len() {
            let n_leafs = self.graph.leafs.len();
            let id = if i < n_leafs { self.graph.leafs[i] } else { self.graph.nodes[i - n_leafs] };
            if self.target_of[id.index()].is_none() {
                self.target_of[id.index()] = self.current_target(id);
            }
        }
    }

    fn current_target(&self, id: Id) -> Option<usize> {
        let tensor = self.tensor(id);
        if let Held::Weight(buffer) | Held::Cache(buffer) = self.graph.held(id) {
            return self.target_of_buffer(buffer, &tensor);
        }
        if tensor.is_input {
            return Some(self.scheduler.cpu());
        }
        // The rope factors and the sinks are too small to decide.
        if tensor.op == Op::Rope || tensor.op == Op::FlashAttnExt && !self.scheduler.rules.sinks_place_attention {
            return None;
        }
        let weight = |source: &Id| match self.graph.tensor(*source).held {
            Held::Weight(buffer) => Some(buffer),
            _ => None,
        };
        let buffer = tensor.sources().iter().find_map(weight)?;
        let home = self.target_of_buffer(buffer, &tensor);
        let is_host = matches!(buffer, Buffer::Cpu | Buffer::HostPinned);
        if let Some(rows) = self.scheduler.offload_rows
            && is_host
            && home == Some(self.scheduler.cpu())
        {
            let experts = |op| matches!(op, Op::MulMatId | Op::ExpertHidden);
            let is_spread = |tensor: &Tensor| {
                // Rows by token and expert, against those that each of the experts has.
                let all = tensor.sources().first().map_or(1, |weight| self.graph.tensor(*weight).ne[2]);
                tensor.ne[2] >= u64::from(rows) && tensor.ne[1] * tensor.ne[2] >= u64::from(rows) * all
            };
            let is_large = if experts(tensor.op) { is_spread(&tensor) } else { tensor.ne[1] >= u64::from(rows) };
            let is_worth = !self.scheduler.rules.offloads_by_expert || is_large;
            let wants = |t: &usize| {
                is_worth && self.supports(*t, &tensor) && self.scheduler.targets[*t].wants_op(&tensor, rows)
            };
            return (0..self.scheduler.cpu()).find(wants).or(home);
        }
        home
    }

    /// Pass 2: neighbours run on the same backend; first only devices spread, then all.
    fn spread(&mut self, devices_only: bool, upwards: bool) {
        let mut current = None;
        let n = self.graph.nodes.len();
        for i in 0..n {
            let id = self.graph.nodes[if upwards { n - 1 - i } else { i }];
            let tensor = self.tensor(id);
            if tensor.op.is_view() {
                continue;
            }
            match (self.target_of[id.index()], current) {
                (Some(target), _) => {
                    current = (!devices_only || target != self.scheduler.cpu()).then_some(target);
                }
                (None, Some(target)) if self.supports(target, &tensor) => self.set(id, target),
                _ => {}
            }
        }
    }

    /// Pass 3: what no neighbour could run goes where most of its sources are.
    fn place_the_rest(&mut self) {
        for i in 0..self.graph.nodes.len() {
            let id = self.graph.nodes[i];
            let tensor = self.tensor(id);
            if tensor.op.is_view() || self.target_of[id.index()].is_some() {
                continue;
            }
            let mut best = None;
            for target in 0..self.scheduler.targets.len() {
                if !self.supports(target, &tensor) {
                    continue;
                }
                let is_placed = |s: &Id| {
                    let of = |id: Id| self.target_of[id.index()].is_some();
                    of(*s) || self.graph.tensor(*s).view_src.is_some_and(of)
                };
                let usable = |s: &&Id| is_placed(s) && self.is_usable(**s, target);
                let count = tensor.sources().iter().filter(usable).count();
                if best.is_none_or(|(most, _)| count > most) {
                    best = Some((count, target));
                }
            }
            self.target_of[id.index()] = best.map(|(_, target)| target);
        }
    }

    /// Pass 4: views go with what they show, sources without a place go with their reader.
    fn place_sources(&mut self) {
        for i in 0..self.graph.nodes.len() {
            let id = self.graph.nodes[i];
            let tensor = self.tensor(id);
            if self.target_of[id.index()].is_none() {
                self.target_of[id.index()] = tensor.view_src.and_then(|root| self.target_of[root.index()]);
            }
            for source in tensor.sources() {
                if self.target_of[source.index()].is_none() {
                    let root = self.graph.tensor(*source).view_src;
                    self.target_of[source.index()] = self.target_of[root.unwrap_or(id).index()];
                }
            }
            if self.target_of[id.index()].is_none() {
                self.target_of[id.index()] = (0..self.scheduler.targets.len()).find(|t| self.supports(*t, &tensor));
            }
        }
    }

    /// The target that pass 4 left a tensor with; the CPU can run everything.
    fn target(&self, id: Id) -> usize {
        self.target_of[id.index()].unwrap_or(self.scheduler.cpu())
    }

    /// Whether `target` can read `id` where it is (`ggml_backend_sched_buffer_supported`).
    fn is_usable(&self, id: Id, target: usize) -> bool {
        if let Held::Weight(buffer) | Held::Cache(buffer) = self.graph.held(id) {
            return self.scheduler.targets[target].supports_buffer(buffer);
        }
        let of = |id: Id| self.target_of[id.index()];
        of(id).or_else(|| self.graph.tensor(id).view_src.and_then(of)) == Some(target)
    }

    /// Pass 5: a new part where the backend changes, or where another weight has to be copied.
    fn cut(&mut self) {
        let n = self.graph.nodes.len();
        let runs = |id: &Id| !self.graph.tensor(*id).op.is_view();
        let Some(first) = self.graph.nodes.iter().find(|id| runs(id)) else { return };
        let mut target = self.target(*first);
        let mut split = Split { target, start: 0, end: n, inputs: Vec::new() };
        for i in 0..n {
            let id = self.graph.nodes[i];
            let tensor = self.tensor(id);
            if tensor.op.is_view() {
                continue;
            }
            let here = self.target(id);
            let is_full = self.scheduler.rules.most_split_inputs.is_some_and(|most| split.inputs.len() >= most);
            let starts_anew = here == target
                && !split.inputs.is_empty()
                && (self.needs_weight(&tensor, target) || is_full && self.needs_copy(&tensor, target));
            if here != target || starts_anew {
                split.end = i;
                target = here;
                let next = Split { target, start: i, end: n, inputs: Vec::new() };
                self.splits.push(std::mem::replace(&mut split, next));
            }
            self.copy_sources(id, target, &mut split.inputs);
        }
        self.splits.push(split);
    }

    fn needs_weight(&self, tensor: &Tensor, target: usize) -> bool {
        tensor.sources().iter().any(|source| {
            let is_weight = matches!(self.graph.tensor(*source).held, Held::Weight(_));
            is_weight && self.target_of[source.index()] != Some(target) && !self.is_usable(*source, target)
        })
    }

    /// Whether a source has to be copied to `target` that is not yet.
    fn needs_copy(&self, tensor: &Tensor, target: usize) -> bool {
        tensor.sources().iter().any(|source| {
            let slot = source.index() * self.scheduler.targets.len() + target;
            self.target_of[source.index()] != Some(target)
                && self.copies[slot].is_none()
                && !self.is_usable(*source, target)
        })
    }

    /// Replaces the sources that `target` cannot read by copies, made at the start of the part that needs them first.
    fn copy_sources(&mut self, id: Id, target: usize, inputs: &mut Vec<Id>) {
        let sources = self.tensor(id);
        for (j, source) in sources.sources().iter().enumerate() {
            if self.scheduler.pipeline && !self.scheduler.rules.copies_unused_inputs && source.index() < self.n_original
            {
                self.copy_input(*source);
            }
            if source.index() >= self.n_original
                || self.target_of[source.index()] == Some(target)
                || self.is_usable(*source, target)
            {
                continue;
            }
            let slot = source.index() * self.scheduler.targets.len() + target;
            let copy = self.copies[slot].unwrap_or_else(|| {
                inputs.push(*source);
                let copy = self.push_copies(*source, target, self.scheduler.n_copies());
                self.copies[slot] = Some(copy);
                copy
            });
            self.graph.tensors[id.index()].sources_mut()[j] = copy;
        }
    }

    /// `n` tensors like `id`, of which the first is returned.
    fn push_copies(&mut self, id: Id, target: usize, n: usize) -> Id {
        let source = self.tensor(id);
        let mut copy = Tensor::new(source.ty, source.ne);
        copy.nb = source.nb;
        copy.is_input = self.scheduler.pipeline;
        copy.is_output = self.scheduler.pipeline;
        let first = self.graph.append(copy);
        for _ in 1..n {
            self.graph.append(copy);
        }
        self.target_of.resize(self.graph.tensors.len(), Some(target));
        first
    }

    /// An input exists several times in a pipeline, itself the first: pass 6, or pass 5 of older builds.
    fn copy_input(&mut self, id: Id) {
        let tensor = self.tensor(id);
        // What is both already has its copies.
        if !tensor.is_input || tensor.is_output {
            return;
        }
        let target = self.target(id);
        self.graph.tensors[id.index()].is_output = true;
        let others = self.scheduler.n_copies() - 1;
        let first = self.push_copies(id, target, others);
        self.first_leafs.push((id, target));
        self.first_leafs.extend((0..).map(|i| (Id(first.0 + i), target)).take(others));
    }

    /// The nodes and leafs to allocate: copies at the start of each part, and what fusion keeps alive.
    fn with_copies(&mut self) -> [Vec<(Id, usize)>; 2] {
        let keeps = self.fuse();
        let mut nodes = Vec::with_capacity(self.graph.nodes.len() + 64);
        let mut leafs = std::mem::take(&mut self.first_leafs);
        for s in 0..self.splits.len() {
            let Split { target, start, end, .. } = self.splits[s];
            for input in std::mem::take(&mut self.splits[s].inputs) {
                let home = self.target(input);
                nodes.push((self.keep_alive(&[input]), home));
                let copy = self.copies[input.index() * self.scheduler.targets.len() + target];
                let copy = copy.expect("an input of a part has a copy there");
                nodes.push((copy, target));
                if self.scheduler.pipeline {
                    leafs.extend((0..).map(|i| (Id(copy.0 + i), target)).take(self.scheduler.n_copies()));
                }
            }
            for i in start..end {
                let id = self.graph.nodes[i];
                nodes.push((id, self.target(id)));
                if let Some(kept) = keeps.get(&id) {
                    for group in kept.chunks(super::graph::tensor::MAX_SRC) {
                        nodes.push((self.keep_alive(group), target));
                    }
                }
            }
        }
        leafs.extend(self.graph.leafs.iter().map(|id| (*id, self.target(*id))));
        [nodes, leafs]
    }

    /// What the devices keep alive until a node, after they have put the nodes of each part in their order.
    fn fuse(&mut self) -> HashMap<Id, Vec<Id>> {
        let mut keeps = fusion::Keeps { of_more: self.scheduler.rules.fuses_more, ..fusion::Keeps::default() };
        for split in &self.splits {
            let target = &self.scheduler.targets[split.target];
            let keeps = self.scheduler.rules.keeps_fused.then_some(&mut keeps);
            target.optimize(self.graph, split.start..split.end, keeps);
        }
        keeps.until
    }

    /// A node that does nothing but read `ids`.
    fn keep_alive(&mut self, ids: &[Id]) -> Id {
        let source = self.tensor(ids[0]);
        let mut node = Tensor::new(source.ty, source.ne);
        node.view_src = Some(source.view_src.unwrap_or(ids[0]));
        node.push_sources(ids.iter().copied());
        self.graph.append(node)
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tensor::Draft;
    use super::*;
    use crate::gguf::ggml_type::{f16, f32};
    use crate::machine::Backend;

    fn target(device: Option<u16>) -> Target {
        let backend = if device.is_some() { Backend::Cuda } else { Backend::Cpu };
        Target {
            backend,
            device,
            alignment: backend.alignment(),
            max_chunk: backend.max_buffer().0,
            repeats: true,
            is_meta: false,
        }
    }

    fn scheduler(n_devices: u16, pipeline: bool) -> Scheduler {
        let devices = (0..n_devices).map(|device| target(Some(device)));
        let rules = Rules::of(crate::run::Target::default());
        Scheduler { targets: devices.chain([target(None)]).collect(), offload_rows: Some(32), pipeline, rules }
    }

    /// `n_tokens` rows through one matrix in each of `buffers`.
    fn products(n_tokens: u64, buffers: &[Buffer]) -> Graph {
        let draft = Draft::default();
        let mut x = draft.input(f32(), &[64, n_tokens]);
        for buffer in buffers {
            x = draft.hold(f16(), &[64, 64], Held::Weight(*buffer)).mm(x);
        }
        x.expand();
        draft.0.into_inner()
    }

    fn homes(scheduler: &Scheduler, graph: &mut Graph) -> Vec<usize> {
        scheduler.targets_of(graph, |tensor| tensor.op == Op::MulMat).into_iter().filter_map(|(_, t)| t).collect()
    }

    #[test]
    fn products_run_where_their_weights_are() {
        let mut graph = products(4, &[Buffer::Device(0), Buffer::Device(1), Buffer::Cpu]);
        let scheduler = scheduler(2, false);
        assert_eq!(homes(&scheduler, &mut graph), [0, 1, 2]);
        // The input is the host's, hence copied to the first device.
        let scheduled = scheduler.reserve(&mut graph, true);
        assert_eq!(scheduled.n_splits, 3);
    }

    #[test]
    fn large_batches_go_to_the_first_device_although_the_weight_is_on_the_host() {
        let at = |n_tokens, offload_rows| {
            let scheduler = Scheduler { offload_rows, ..scheduler(2, false) };
            homes(&scheduler, &mut products(n_tokens, &[Buffer::Cpu]))
        };
        assert_eq!((at(31, Some(32)), at(32, Some(32)), at(32, None)), (vec![2], vec![0], vec![2]));
        assert_eq!((at(512, Some(1024)), at(1, Some(0))), (vec![2], vec![0]));
    }

    #[test]
    fn a_weight_is_copied_to_the_device_that_runs_its_product() {
        let size = |buffer| scheduler(1, false).reserve(&mut products(32, &[buffer]), true).sizes;
        let (own, offloaded) = (size(Buffer::Device(0)), size(Buffer::Cpu));
        assert_eq!(offloaded[0] - own[0], 64 * 64 * 2);
    }

    #[test]
    fn each_copy_of_an_input_counts_in_a_pipeline() {
        let size = |pipeline| scheduler(1, pipeline).reserve(&mut products(32, &[Buffer::Device(0)]), true).sizes;
        let (once, pipelined) = (size(false), size(true));
        assert!(pipelined[0] >= once[0] + 3 * 64 * 32 * 4, "{once:?} {pipelined:?}");
    }

    fn at(build: u32, scheduler: Scheduler) -> Scheduler {
        Scheduler { rules: crate::run::Target { build, ..Default::default() }.rules(), ..scheduler }
    }

    #[test]
    fn inputs_that_nothing_reads_have_copies_in_newer_builds() {
        let size = |build| {
            let draft = Draft::default();
            draft.input(f32(), &[64, 32]).expand();
            let weight = draft.hold(f16(), &[64, 64], Held::Weight(Buffer::Device(0)));
            weight.mm(draft.input(f32(), &[64, 32])).expand();
            at(build, scheduler(1, true)).reserve(&mut draft.0.into_inner(), true).sizes[1]
        };
        let copies = 4 * 64 * 32 * 4;
        assert_eq!([size(11223), size(11258)], [copies + 64 * 32 * 4, 2 * copies]);
    }

    #[test]
    fn a_part_has_at_most_30_copied_inputs_in_older_builds() {
        let splits = |build| {
            let draft = Draft::default();
            let weight = draft.hold(f16(), &[64, 64], Held::Weight(Buffer::Device(0)));
            for _ in 0..31 {
                weight.mm(draft.input(f32(), &[64, 32])).expand();
            }
            at(build, scheduler(1, false)).reserve(&mut draft.0.into_inner(), true).n_splits
        };
        assert_eq!([splits(10705), splits(11181)], [2, 1]);
    }

    #[test]
    fn sinks_place_attention_in_older_builds() {
        let home = |build| {
            let draft = Draft::default();
            let [q, k, v] = [32, 256, 256].map(|n| draft.input(if n == 32 { f32() } else { f16() }, &[64, n, 4]));
            let rows = q.flash_attn_ext(k, v, None);
            rows.add_sinks(Some(draft.hold(f32(), &[4], Held::Weight(Buffer::Device(0)))));
            rows.expand();
            let attends = |tensor: &Tensor| tensor.op == Op::FlashAttnExt;
            at(build, scheduler(1, false)).targets_of(&mut draft.0.into_inner(), attends)[0].1
        };
        assert_eq!([home(10001), home(10235)], [Some(0), Some(1)]);
    }

    #[test]
    fn what_a_device_cannot_run_falls_to_the_host() {
        let draft = Draft::default();
        let weight = draft.hold(f16(), &[64, 64], Held::Weight(Buffer::Device(0)));
        let squashed = weight.mm(draft.input(f32(), &[64, 4])).cols(32, 0).silu().expand().id;
        let scheduler = scheduler(1, false);
        let found = scheduler.targets_of(&mut draft.0.into_inner(), |tensor| matches!(tensor.op, Op::Unary(_)));
        assert_eq!(found, [(squashed, Some(1))]);
    }
}
