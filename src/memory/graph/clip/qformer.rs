//! Queries that read what an encoder gives, window by window.
//!
//! Source: `tools/mtmd/models/granite4-vision.cpp`, `granite-speech.cpp`, llama.cpp b11434.

use super::{Clip, Node, Norm};

impl<'g> Clip<'g> {
    pub(super) fn granite4_vision(&self) -> Node<'g> {
        let (e, n) = (self.e, self.n_patches);
        let mut rows = self.patches() + self.positions();
        let mut outputs = Vec::new();
        for il in self.blocks() {
            let name = |name: &str| self.at(il, name);
            let normed = self.norm(Norm::Layer, &name("ln1"), rows);
            let qkv = ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), normed));
            let qkv = qkv.map(|x| x.reshape(&[e.d_head, e.n_head, n]));
            let attended = self.attn(&name("attn_out"), qkv, None, None).reshape(&[e.n_embd, n]) + rows;
            rows = attended + self.block_ffn(il, self.norm(Norm::Layer, &name("ln2"), attended), self.act);
            outputs.push(rows);
        }
        let layers = self.numbers("vision.feature_layer");
        let offsets = self.numbers("vision.projector.spatial_offsets");
        let streams = (0..).zip(layers.iter().zip(offsets)).map_while(|(i, (il, offset))| {
            Some(self.window_block(i, *outputs.get(usize::try_from(*il).ok()?)?, offset >= 0))
        });
        let all = streams.reduce(|all, one| all.concat(one, 0));
        all.unwrap_or_else(|| {
            self.fail(super::Error::Key { key: "clip.vision.feature_layer".to_string(), found: None })
        })
    }

    /// A block of queries over the windows of one layer's output; `is_picked` says how it gets smaller.
    fn window_block(&self, i: u64, h: Node<'g>, is_picked: bool) -> Node<'g> {
        let name = |part: &str| format!("v.proj_blk.{i}.{part}");
        let [window, query] = ["window_side", "query_side"].map(|key| self.number(&format!("vision.projector.{key}")));
        let (d, side) = (h.ne(0), self.px);
        let n = side / window;
        let (windows, small) = (n * n, n * query);
        let gather = |x: Node<'g>, len: u64| x.get_rows(self.draft.input(super::i32(), &[len, 1]));
        let x = self.norm(Norm::Layer, &name("norm"), h);
        let encoded = gather(x, side * side).reshape(&[d, window * window, windows]);
        let down = if is_picked {
            gather(x, small * small)
        } else {
            let grid = x.reshape(&[d, side, side]).permute([2, 0, 1, 3]).cont().reshape(&[side, side, d]);
            let grid = grid.pool_2d(side / small.max(1)).reshape(&[small, small, d]);
            grid.permute([1, 2, 0, 3]).cont().reshape(&[d, small * small])
        };
        let queries = gather(down, small * small).reshape(&[d, query * query, windows]) + self.need(&name("query"));
        let encoded = encoded + self.need(&name("img_pos"));
        let queries = self.norm(Norm::Layer, &name("post_norm"), queries);
        let flat = |x: Node<'g>| x.reshape(&[x.ne(0), x.ne(1) * x.ne(2)]);
        let rows = self.qformer_layer("v", i, queries, encoded, d / 64, &flat);
        let rows = rows.reshape(&[d, query * query * windows]);
        self.linear(&name("linear"), gather(rows, small * small))
    }

    /// Attention among queries, to what was encoded, and a feed-forward part (`prefix.proj_blk.I`).
    pub(super) fn qformer_layer(
        &self,
        prefix: &str,
        i: u64,
        queries: Node<'g>,
        encoded: Node<'g>,
        n_head: u64,
        flat: &dyn Fn(Node<'g>) -> Node<'g>,
    ) -> Node<'g> {
        let name = |part: &str| format!("{prefix}.proj_blk.{i}.{part}");
        let [d, n_query, windows, _] = queries.shape();
        let attend = |kind: &str, queries: Node<'g>, cells: Node<'g>, norm: &str| {
            let part = |what: &str, x: Node<'g>| {
                let rows = self.linear(&name(&format!("{kind}_{what}")), flat(x));
                rows.reshape(&[d / n_head.max(1), n_head, x.ne(1), windows])
            };
            let qkv = [part("q", queries), part("k", cells), part("v", cells)];
            let rows = self.attn(&name(&format!("{kind}_out")), qkv, None, None).reshape(&[d, n_query, windows]);
            self.norm(Norm::Layer, &name(norm), rows + queries)
        };
        let queries = attend("self_attn", queries, queries, "self_attn_norm");
        let queries = attend("cross_attn", queries, encoded, "cross_attn_norm");
        let fed = self.mlp(&name("ffn_up"), &name("ffn_down"), flat(queries));
        let fed = if fed.shape() == queries.shape() { fed } else { fed.reshape(&[d, n_query, windows]) };
        self.norm(Norm::Layer, &name("ffn_norm"), fed + queries)
    }
}
