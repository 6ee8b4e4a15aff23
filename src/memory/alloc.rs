//! ggml's graph allocator: where every tensor of a scheduled graph would lie, and how large the buffers get.
//!
//! Source: `ggml/src/ggml-alloc.c` (`ggml_dyn_tallocr_*`, `ggml_gallocr_alloc_graph_impl`), llama.cpp b11434.

use super::graph::tensor::{Held, Id, Op, Tensor};

/// At most this many buffers of a type that limits their size (`GGML_VBUFFER_MAX_CHUNKS`).
const MAX_CHUNKS: usize = 16;

/// A place: which chunk, and the bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Address {
    chunk: usize,
    offset: u64,
}

#[derive(Debug, Clone, Copy)]
struct FreeBlock {
    offset: u64,
    size: u64,
}

impl FreeBlock {
    fn end(self) -> u64 {
        self.offset + self.size
    }
}

/// One buffer that grows as needed; its free blocks by address.
#[derive(Debug, Clone)]
struct Chunk {
    free: Vec<FreeBlock>,
    max_size: u64,
}

/// The allocator of one buffer type: the smallest free block that fits, the open end only if none does.
#[derive(Debug, Clone)]
pub struct BufferAllocator {
    alignment: u64,
    max_chunk: u64,
    chunks: Vec<Chunk>,
}

impl BufferAllocator {
    /// An empty buffer whose sizes are padded to `alignment`, in chunks of at most `max_chunk` bytes where possible.
    pub fn new(alignment: u64, max_chunk: u64) -> Self {
        Self { alignment, max_chunk: max_chunk.min(u64::MAX / 2), chunks: Vec::new() }
    }

    /// The bytes that the chunks need together.
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.max_size).sum()
    }

    fn padded(&self, size: u64) -> u64 {
        size.next_multiple_of(self.alignment)
    }

    fn alloc(&mut self, size: u64) -> Address {
        let size = self.padded(size);
        let place = self.inner_block(size).or_else(|| self.last_block(size));
        let (chunk, block) = place.unwrap_or_else(|| (self.new_chunk(size), 0));
        let target = &mut self.chunks[chunk];
        let free = &mut target.free[block];
        let offset = free.offset;
        free.offset += size;
        free.size -= size;
        if free.size == 0 {
            target.free.remove(block);
        }
        target.max_size = target.max_size.max(offset + size);
        Address { chunk, offset }
    }

    /// The smallest block that fits, the last one of a chunk left out; the later one of equals.
    fn inner_block(&self, size: u64) -> Option<(usize, usize)> {
        let mut found = None;
        for (c, chunk) in self.chunks.iter().enumerate() {
            let mut best = u64::MAX;
            let inner = chunk.free.split_last().map_or(&[][..], |(_, inner)| inner);
            for (b, block) in inner.iter().enumerate() {
                if block.size >= size && block.size <= best {
                    (found, best) = (Some((c, b)), block.size);
                }
            }
        }
        found
    }

    /// The last block of the chunk that would grow least, or waste least.
    fn last_block(&self, size: u64) -> Option<(usize, usize)> {
        let (mut found, mut best) = (None, i64::MIN);
        for (c, chunk) in self.chunks.iter().enumerate() {
            let Some(block) = chunk.free.last() else { continue };
            let reuse = chunk.max_size.cast_signed() - block.offset.cast_signed() - size.cast_signed();
            let better = (best < 0 && reuse > best) || (reuse >= 0 && reuse < best);
            if block.size >= size && better {
                (found, best) = (Some((c, chunk.free.len() - 1)), reuse);
            }
        }
        found
    }

    fn new_chunk(&mut self, size: u64) -> usize {
        assert!(self.chunks.len() < MAX_CHUNKS, "the last chunk is endless");
        let is_last = self.chunks.len() == MAX_CHUNKS - 1;
        let size = if is_last { u64::MAX / 2 } else { size.max(self.max_chunk) };
        self.chunks.push(Chunk { free: vec![FreeBlock { offset: 0, size }], max_size: 0 });
        self.chunks.len() - 1
    }

    fn free(&mut self, address: Address, size: u64) {
        let size = self.padded(size);
        let free = &mut self.chunks[address.chunk].free;
        for i in 0..free.len() {
            if free[i].end() == address.offset {
                free[i].size += size;
                if i + 1 < free.len() && free[i].end() == free[i + 1].offset {
                    free[i].size += free[i + 1].size;
                    free.remove(i + 1);
                }
                return;
            }
            if address.offset + size == free[i].offset {
                free[i].offset = address.offset;
                free[i].size += size;
                if i > 0 && free[i - 1].end() == free[i].offset {
                    free[i - 1].size += free[i].size;
                    free.remove(i);
                }
                return;
            }
        }
        let at = free.partition_point(|block| block.offset < address.offset);
        free.insert(at, FreeBlock { offset: address.offset, size });
    }
}

/// What the allocator knows of a tensor (`struct hash_node`).
#[derive(Debug, Clone, Copy, Default)]
struct State {
    n_children: u32,
    n_views: u32,
    buffer: usize,
    address: Address,
    is_allocated: bool,
}

/// A scheduled graph with its buffers.
pub struct Layout<'a, F> {
    pub tensors: &'a [Tensor],
    /// The nodes in order, each with the number of its buffer.
    pub nodes: &'a [(Id, usize)],
    /// The leafs in order, each with the number of its buffer.
    pub leafs: &'a [(Id, usize)],
    /// Whether [`Op::Clamp`] may take the place of its source.
    pub clamps_inplace: bool,
    /// The bytes of a tensor in a buffer (`ggml_backend_buft_get_alloc_size`).
    pub alloc_size: F,
}

/// A layout in progress.
struct Allocator<'a, F> {
    layout: &'a Layout<'a, F>,
    buffers: &'a mut [BufferAllocator],
    states: Vec<State>,
}

impl<F: Fn(usize, &Tensor) -> u64> Layout<'_, F> {
    /// Lays the graph out in `buffers`, which are left as large as they had to grow.
    pub fn allocate(&self, buffers: &mut [BufferAllocator]) {
        let states = vec![State::default(); self.tensors.len()];
        let mut allocator = Allocator { layout: self, buffers, states };
        for (leaf, buffer) in self.leafs {
            allocator.allocate(*leaf, *buffer);
        }
        allocator.count();
        for (node, buffer) in self.nodes {
            let tensor = &self.tensors[node.index()];
            for source in tensor.sources() {
                allocator.allocate(*source, *buffer);
            }
            allocator.allocate(*node, *buffer);
            for source in tensor.sources() {
                allocator.release(*source);
            }
        }
    }
}

impl<'a, F: Fn(usize, &Tensor) -> u64> Allocator<'a, F> {
    fn tensor(&self, id: Id) -> &'a Tensor {
        &self.layout.tensors[id.index()]
    }

    fn size(&self, buffer: usize, id: Id) -> u64 {
        (self.layout.alloc_size)(buffer, self.tensor(id))
    }

    /// Counts who reads and who views each tensor; inputs get their place first.
    fn count(&mut self) {
        for (node, buffer) in self.layout.nodes {
            let tensor = self.tensor(*node);
            // A node without operation only keeps its sources alive.
            if let Some(root) = tensor.view_src.filter(|_| tensor.op != Op::None) {
                self.states[root.index()].n_views += 1;
            }
            if tensor.is_input {
                self.allocate(*node, *buffer);
            }
            for source in tensor.sources() {
                self.states[source.index()].n_children += 1;
                if self.tensor(*source).is_input {
                    self.allocate(*source, *buffer);
                }
            }
        }
    }

    fn allocate(&mut self, id: Id, buffer: usize) {
        let tensor = self.tensor(id);
        let is_held = tensor.held != Held::Not || self.states[id.index()].is_allocated;
        if is_held || tensor.view_src.is_some() {
            return;
        }
        self.states[id.index()].is_allocated = true;
        let can_inplace = tensor.op.can_inplace() && (self.layout.clamps_inplace || tensor.op != Op::Clamp);
        if can_inplace && tensor.sources().iter().any(|source| self.take_place(id, *source)) {
            return;
        }
        let size = self.size(buffer, id);
        let address = self.buffers[buffer].alloc(size);
        let state = &mut self.states[id.index()];
        (state.buffer, state.address) = (buffer, address);
    }

    /// Puts `id` where `parent` is, if nobody else will read that.
    fn take_place(&mut self, id: Id, parent: Id) -> bool {
        let tensor = self.tensor(parent);
        let state = self.states[parent.index()];
        // Views are never allocated themselves, so none is taken over.
        let is_free_after = state.is_allocated && state.n_children == 1 && state.n_views == 0;
        if !is_free_after || tensor.is_output || !self.tensor(id).same_layout(tensor) {
            return false;
        }
        let own = &mut self.states[id.index()];
        (own.buffer, own.address) = (state.buffer, state.address);
        self.states[parent.index()].is_allocated = false;
        self.free_rest(id, parent);
        true
    }

    /// What `parent` took more than `id` needs is free again.
    fn free_rest(&mut self, id: Id, parent: Id) {
        let buffer = self.states[parent.index()].buffer;
        let had = self.buffers[buffer].padded(self.size(buffer, parent));
        let needs = self.buffers[buffer].padded(self.size(self.states[id.index()].buffer, id));
        if had > needs {
            let Address { chunk, offset } = self.states[parent.index()].address;
            self.buffers[buffer].free(Address { chunk, offset: offset + needs }, had - needs);
        }
    }

    /// One reader less of `source`; frees it, or what it views, after the last.
    fn release(&mut self, source: Id) {
        let state = &mut self.states[source.index()];
        state.n_children -= 1;
        if state.n_children > 0 || state.n_views > 0 {
            return;
        }
        match self.tensor(source).view_src {
            Some(root) => {
                let state = &mut self.states[root.index()];
                state.n_views -= 1;
                if state.n_views == 0 && state.n_children == 0 && state.is_allocated {
                    self.free(root);
                }
            }
            None if self.states[source.index()].is_allocated => self.free(source),
            None => {}
        }
    }

    fn free(&mut self, id: Id) {
        if self.tensor(id).is_output {
            return;
        }
        let State { buffer, address, .. } = self.states[id.index()];
        let size = self.size(buffer, id);
        self.buffers[buffer].free(address, size);
        self.states[id.index()].is_allocated = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tensor::Draft;
    use super::*;
    use crate::gguf::ggml_type::f32;

    /// The size that one buffer of alignment 16 gets.
    fn size(draft: &Draft) -> u64 {
        let graph = draft.0.borrow();
        let mut buffers = [BufferAllocator::new(16, u64::MAX)];
        let on_it = |ids: &[Id]| ids.iter().map(|id| (*id, 0)).collect::<Vec<_>>();
        let (nodes, leafs) = (on_it(&graph.nodes), on_it(&graph.leafs));
        let alloc_size = |_, tensor: &Tensor| tensor.bytes();
        Layout { tensors: &graph.tensors, nodes: &nodes, leafs: &leafs, clamps_inplace: true, alloc_size }
            .allocate(&mut buffers);
        buffers[0].size()
    }

    #[test]
    fn the_smallest_block_that_fits_is_taken_and_neighbours_merge() {
        let mut buffer = BufferAllocator::new(16, u64::MAX);
        let places: Vec<_> = [64, 16, 32, 16, 40].map(|size| buffer.alloc(size)).to_vec();
        assert_eq!(places.iter().map(|at| at.offset).collect::<Vec<_>>(), [0, 64, 80, 112, 128]);
        buffer.free(places[0], 64);
        buffer.free(places[2], 32);
        assert_eq!(buffer.alloc(20).offset, 80);
        assert_eq!(buffer.alloc(20).offset, 0);
        buffer.free(places[1], 16);
        // What is left of the first block and the freed one lie side by side.
        assert_eq!(buffer.alloc(48).offset, 32);
        assert_eq!(buffer.size(), 128 + 48);
    }

    #[test]
    fn a_chunk_that_is_full_is_followed_by_another() {
        let mut buffer = BufferAllocator::new(16, 64);
        let places = [48, 48, 100].map(|size| buffer.alloc(size));
        assert_eq!(places.map(|at| (at.chunk, at.offset)), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(buffer.size(), 48 + 48 + 112);
    }

    #[test]
    fn a_result_takes_its_sources_place_unless_that_is_read_again() {
        let draft = Draft::default();
        let a = draft.input(f32(), &[16]).scale();
        let b = a.scale().expand();
        assert_eq!(size(&draft), 64);
        (b + a).expand();
        assert_eq!(size(&draft), 128);
    }

    #[test]
    fn what_is_viewed_stays_until_its_views_are_read() {
        let draft = Draft::default();
        draft.input(f32(), &[16]).cont().cols(8, 0).cont().expand();
        // The input's place is free once it has been copied, and the half is copied into it.
        assert_eq!(size(&draft), 128);
    }

    #[test]
    fn outputs_are_never_freed() {
        let build = |is_output: bool| {
            let draft = Draft::default();
            let a = draft.input(f32(), &[16]).cont();
            a.edit(|tensor| tensor.is_output = is_output);
            a.cont().cont().expand();
            size(&draft)
        };
        assert_eq!((build(false), build(true)), (128, 192));
    }
}
