//! The caches of a context: which there are, their cells, streams and the rows of every layer.
//!
//! Source: `src/llama-model.cpp` `create_memory`, `src/llama-kv-cache*.cpp`, `src/llama-memory-*.cpp`, llama.cpp b11434.

use crate::arch::{Arch, Kept, Memory};
use crate::gguf::{GgmlType, ggml_type};
use crate::model::Model;
use crate::model::hparams::{ContextHParams, LayerHParams};
use crate::placement::by_size::{latents, mla};
use crate::run::behaviour::{Latent, Rules};
use crate::run::numbers::{ContextNumbers, padded};
use crate::run::{FlashAttn, RunConfig};

/// The caches of one context and what they were derived from.
#[derive(Debug, Clone)]
pub struct Caches {
    /// In llama.cpp's order of creation; none for a model without memory.
    pub list: Vec<Cache>,
    /// Whether they are of a context in which NextN blocks draft (`LLAMA_CONTEXT_TYPE_MTP`).
    pub is_mtp: bool,
    pub class: MemoryClass,
    pub hparams: ContextHParams,
    /// V is stored transposed, at the widest layer's width (`-fa off`).
    pub v_trans: bool,
}

/// One cache: tensors of the same cells and types, one or two a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    pub kind: CacheKind,
    /// Cells of one stream (rows, for states).
    pub cells: u32,
    /// How many streams of that many cells (planes, for states).
    pub n_stream: u32,
    /// Type of the first tensor of each layer: K, or a state's.
    pub type_k: GgmlType,
    /// Type of the second: V, or a state's.
    pub type_v: GgmlType,
    /// The layers that own cells here.
    pub layers: Vec<CacheLayer>,
    /// Context tokens by cell, for caches that grow with the context; `None` for windows and states.
    pub tokens_per_cell: Option<u32>,
}

/// The side of a Hadamard matrix of keys: the greatest power of 2 in a head's width, 64 at least.
fn rot_size(head: u64) -> u64 {
    (head & head.wrapping_neg()).max(64)
}

impl Cache {
    /// The sides of the matrices that turn quantized keys and values: as wide as all heads allow, 64 for values. An indexer's keys
    /// are always turned, and compressed ones that are as wide.
    pub fn rotations(&self, hparams: &ContextHParams, arch: &Arch) -> [Option<u64>; 2] {
        if let CacheKind::Indexer | CacheKind::Csa | CacheKind::Hca = self.kind {
            let head = self.layers.first().map(|layer| layer.n_embd_k);
            let always = matches!(arch.memory, Memory::Dsa | Memory::DsaIswa | Memory::Dsv4);
            let is_turned = |head: &u64| {
                (always && *head == u64::from(hparams.indexer_head_size))
                    || (self.type_k.is_quantized && head.is_multiple_of(64))
            };
            // minimax-m3's indexer keeps values that nothing reads.
            let has_values = self.layers.iter().any(|layer| layer.n_embd_v > 0) && self.type_v.is_quantized;
            let is_wide = || hparams.layers.first().is_some_and(|layer| layer.n_embd_head_v.is_multiple_of(64));
            return [head.filter(is_turned).map(rot_size), (has_values && is_wide()).then_some(64)];
        }
        if !matches!(self.kind, CacheKind::Base | CacheKind::Swa) {
            return [None; 2];
        }
        let common = |head: fn(&LayerHParams) -> u32, ty: GgmlType| {
            let of = |il: u32| hparams.layers.get(il as usize).map_or(0, head);
            let mut heads = self.layers.iter().map(|layer| of(layer.il));
            let first = heads.next().filter(|n| *n > 0 && ty.is_quantized && of(0).is_multiple_of(64))?;
            heads.all(|head| head == first).then_some(u64::from(first))
        };
        let k = common(|layer| layer.n_embd_head_k, self.type_k).map(rot_size);
        let v = common(|layer| layer.n_embd_head_v, self.type_v).filter(|_| !hparams.is_mla);
        [k, v.map(|_| 64)]
    }
}

/// One layer of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLayer {
    pub il: u32,
    /// Elements of a cell's first tensor (`n_embd_k_gqa`, `n_embd_r`).
    pub n_embd_k: u64,
    /// Elements of its second tensor (`n_embd_v_gqa`, `n_embd_s`); 0 where there is none.
    pub n_embd_v: u64,
    /// Elements of a row of the first tensor where that is not a cell, and the second is one row.
    pub row: Option<u64>,
}

/// What a cache is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheKind {
    /// Keys and values (or MLA latents) of layers that see the whole context.
    Base,
    /// The same of layers that see a window.
    Swa,
    Indexer,
    /// deepseek4's compressed keys, 4 tokens a cell.
    Csa,
    /// deepseek4's compressed keys, 128 tokens a cell.
    Hca,
    /// deepseek4's state of the compressor behind [`Self::Csa`]: keys and scores.
    CsaState,
    /// deepseek4's state of the compressor behind [`Self::Hca`].
    HcaState,
    /// deepseek4's state of the indexer's compressor.
    IndexerState,
    /// Recurrent states: convolution (R) and state-space (S).
    Recurrent,
    /// The n-gram embedding's history (qwen4exp).
    PleState,
}

impl CacheKind {
    /// llama.cpp's names of a layer's tensors, before `_lN`.
    pub fn tensor_names(self) -> [&'static str; 2] {
        match self {
            Self::Base | Self::Swa => ["cache_k", "cache_v"],
            Self::Recurrent => ["cache_r", "cache_s"],
            // Every device has all of these (`-sm tensor`).
            _ => ["cache_idx_k", "cache_idx_v"],
        }
    }
}

impl std::fmt::Display for CacheKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Base => "attention",
            Self::Swa => "window",
            Self::Indexer => "indexer",
            Self::Csa => "compressed (4)",
            Self::Hca => "compressed (128)",
            Self::CsaState | Self::HcaState | Self::IndexerState => "compressor state",
            Self::Recurrent => "recurrent state",
            Self::PleState => "n-gram state",
        })
    }
}

/// llama.cpp's classes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryClass {
    /// No memory: encoders and diffusion models.
    None,
    /// `llama_kv_cache`.
    Kv,
    /// `llama_kv_cache_iswa`.
    Iswa,
    /// `llama_kv_cache_dsa`.
    Dsa,
    /// `llama_kv_cache_dsa_iswa`.
    DsaIswa,
    /// `llama_kv_cache_msa`.
    Msa,
    /// `llama_kv_cache_dsv4`.
    Dsv4,
    /// `llama_memory_recurrent`.
    Recurrent,
    /// `llama_memory_hybrid`.
    Hybrid,
    /// `llama_memory_hybrid_iswa`.
    HybridIswa,
    /// `llama_memory_hybrid_idx`.
    HybridIdx,
}

/// The caches that the build of `run` creates for `model`, its context resolved to `numbers`.
pub fn caches(model: &Model, run: &RunConfig, numbers: &ContextNumbers) -> Caches {
    of_rules(model, run, numbers, run.rules())
}

/// The caches of the graph: of builds and forks whose own graph is not built those that today's has.
pub fn of_graph(model: &Model, run: &RunConfig, numbers: &ContextNumbers) -> Caches {
    // ik_llama.cpp's layers with a window have masks of their own, as wide as the context.
    let run = &RunConfig { swa_full: run.swa_full || run.rules().one_cache, ..run.clone() };
    let rules = Rules {
        windows: true,
        indexers: true,
        latent: if run.rules().one_cache && model.hparams.arch().mla { Latent::ByFlag } else { Latent::ByKeys },
        nextn_cached: false,
        widest_values: true,
        one_cache: false,
        ..run.rules()
    };
    of_rules(model, run, numbers, rules)
}

fn of_rules(model: &Model, run: &RunConfig, numbers: &ContextNumbers, rules: Rules) -> Caches {
    let hparams = model.context.clone();
    let arch = model.hparams.arch();
    let class = class(arch, &hparams, rules);
    // llama-context.cpp forces flash attention off for grok.
    let v_trans = run.flash_attn == FlashAttn::Off || arch.squashed;
    let snapshots = if arch.rollback { run.n_rs_seq } else { 0 };
    let builder = Builder { model, rules, arch, hparams: &hparams, run, numbers, v_trans, snapshots };
    let (list, class) = match arch.memory {
        // Cells and tensors are the target's.
        Memory::Target => (Vec::new(), class),
        _ if run.mtp_context => builder.list_mtp(class),
        _ => (builder.list(class), class),
    };
    Caches { list, is_mtp: run.mtp_context, class, hparams, v_trans }
}

fn class(arch: &Arch, hparams: &ContextHParams, rules: Rules) -> MemoryClass {
    let windowed = hparams.swa.is_some() && rules.windows;
    match arch.memory {
        Memory::Msa if rules.one_cache => MemoryClass::Kv,
        Memory::Dsa | Memory::DsaIswa | Memory::Msa | Memory::DsaIfIndexed if !rules.indexers => {
            if windowed {
                MemoryClass::Iswa
            } else {
                MemoryClass::Kv
            }
        }
        Memory::HybridIdx { .. } if !rules.indexers && !windowed => MemoryClass::Hybrid,
        Memory::None => MemoryClass::None,
        Memory::Target => MemoryClass::Iswa,
        Memory::Recurrent => MemoryClass::Recurrent,
        Memory::Msa => MemoryClass::Msa,
        Memory::Dsa => MemoryClass::Dsa,
        Memory::DsaIfIndexed if hparams.indexer_top_k > 0 => MemoryClass::Dsa,
        Memory::DsaIswa => MemoryClass::DsaIswa,
        Memory::Dsv4 => MemoryClass::Dsv4,
        Memory::Hybrid(_) | Memory::HybridIdx { .. } if windowed => MemoryClass::HybridIswa,
        Memory::HybridIdx { .. } => MemoryClass::HybridIdx,
        Memory::Hybrid(_) => MemoryClass::Hybrid,
        Memory::Kv | Memory::DsaIfIndexed if windowed => MemoryClass::Iswa,
        Memory::Kv | Memory::DsaIfIndexed => MemoryClass::Kv,
    }
}

/// What every cache of one context is built from.
#[derive(Clone, Copy)]
struct Builder<'a> {
    model: &'a Model,
    rules: Rules,
    arch: &'a Arch,
    hparams: &'a ContextHParams,
    run: &'a RunConfig,
    numbers: &'a ContextNumbers,
    v_trans: bool,
    /// `n_rs_seq`: earlier states kept for speculation.
    snapshots: u32,
}

/// The row widths of a `llama_kv_cache`: the model's own, or an indexer's.
struct Widths {
    k: Vec<u64>,
    /// Elements of V by layer; empty where V is a view of K.
    v: Vec<u64>,
}

impl Builder<'_> {
    fn list(&self, class: MemoryClass) -> Vec<Cache> {
        let n_layer = self.hparams.n_layer;
        let in_trunk = |il: u32| il < n_layer;
        match class {
            MemoryClass::None => Vec::new(),
            MemoryClass::Kv => vec![self.base(|il, _| self.plain(il))],
            MemoryClass::Iswa => self.iswa(|il, _| self.plain(il)),
            MemoryClass::Recurrent => self.states(|_, _| true),
            MemoryClass::Dsa if self.rules.one_cache => {
                // `llama_kv_cache_init`: of layers that state a choice, whose pattern is in no file, in F16 (`-ictk`).
                let is_chosen = |il: u32| mla(self.model, self.run) != 0 && (il < 2 || il % 4 == 2);
                let keys = |il: u32| format!("blk.{il}.indexer.attn_k.weight");
                let has = |il: u32| self.model.tensors.iter().any(|tensor| tensor.name == keys(il));
                let widths = self.indexer_widths(1, true);
                let indexer = self.indexer(&widths, |il, _| in_trunk(il) && is_chosen(il) && has(il));
                vec![self.base(|il, _| self.plain(il)), Cache { type_k: ggml_type::f16(), ..indexer }]
            }
            MemoryClass::Dsa => {
                let mut list = vec![self.base(|il, _| self.arch.memory == Memory::DsaIfIndexed || in_trunk(il))];
                list.push(self.indexer(&self.indexer_widths(1, false), |il, l| in_trunk(il) && l.is_indexer_full));
                list
            }
            MemoryClass::DsaIswa => {
                let mut list = self.iswa(|il, _| in_trunk(il));
                list.insert(1, self.indexer(&self.indexer_widths(1, false), |il, l| in_trunk(il) && l.is_indexer_full));
                list
            }
            MemoryClass::Msa => {
                let lead = self.hparams.n_layer_dense_lead;
                let widths = self.indexer_widths(1, false);
                vec![self.base(|_, _| true), self.indexer(&widths, |il, _| il >= lead)]
            }
            MemoryClass::Dsv4 => self.dsv4(),
            MemoryClass::Hybrid => {
                let mut list = vec![self.base(|il, l| self.attends(il, l))];
                list.extend(self.states(|il, l| self.recurs(il, l)));
                list
            }
            MemoryClass::HybridIswa => {
                let mut list = self.iswa(|il, l| self.attends(il, l));
                list.extend(self.states(|il, l| self.recurs(il, l)));
                list
            }
            MemoryClass::HybridIdx => {
                let mut list = vec![self.base(|il, l| self.attends(il, l))];
                list.extend(self.states(|il, l| self.recurs(il, l)));
                let all = self.arch.memory == Memory::HybridIdx { all: true };
                if !all || self.hparams.indexer_head_size > 0 {
                    list.push(self.indexer(&self.indexer_widths(self.hparams.indexer_rows, true), |il, l| {
                        self.attends(il, l) && (all || l.is_indexer_full)
                    }));
                }
                list
            }
        }
    }

    /// The caches of a context of type MTP, which are of the NextN blocks alone, and the class that they amount to.
    fn list_mtp(&self, class: MemoryClass) -> (Vec<Cache>, MemoryClass) {
        let n_layer = self.hparams.n_layer;
        let drafts = |il: u32, _: &LayerHParams| il >= n_layer;
        match class {
            MemoryClass::None => (Vec::new(), class),
            MemoryClass::Iswa | MemoryClass::Dsv4 | MemoryClass::HybridIswa => (self.iswa(drafts), MemoryClass::Iswa),
            MemoryClass::HybridIdx => {
                let widths = self.indexer_widths(self.hparams.indexer_rows, true);
                (vec![self.base(drafts), self.indexer(&widths, drafts)], class)
            }
            _ => (vec![self.base(drafts)], MemoryClass::Kv),
        }
    }

    /// Whether an architecture without recurrent layers keeps keys for this layer.
    fn plain(&self, il: u32) -> bool {
        let has_trunk = self.hparams.n_layer > 0;
        let owns = self.hparams.n_layer_kv_from_start.is_none_or(|n| il < n);
        let runs = il < self.hparams.n_layer || !has_trunk || self.hparams.has_router_layer;
        let drafts = self.rules.one_cache && self.run.mtp;
        owns && (runs || drafts || self.rules.nextn_cached)
    }

    /// The attention layers of a hybrid.
    fn attends(&self, il: u32, layer: &LayerHParams) -> bool {
        match self.arch.memory {
            Memory::Hybrid(Kept::Both) => true,
            Memory::Hybrid(Kept::WithoutFfn) => !layer.is_recr && layer.no_ffn,
            Memory::Hybrid(Kept::NotRecurrent) => !layer.is_recr,
            _ => il < self.hparams.n_layer && !layer.is_recr,
        }
    }

    /// The recurrent layers of a hybrid; states exist in the trunk only.
    fn recurs(&self, il: u32, layer: &LayerHParams) -> bool {
        let has_state = match self.arch.memory {
            Memory::Hybrid(Kept::Both) => true,
            Memory::Hybrid(Kept::WithoutFfn) => layer.is_recr && layer.no_ffn,
            _ => layer.is_recr,
        };
        il < self.hparams.n_layer && has_state
    }

    fn widths(&self) -> Widths {
        let layers = &self.hparams.layers;
        let width = |heads: u32, head: u32| u64::from(heads) * u64::from(head);
        let v = || layers.iter().map(|l| width(l.n_head_kv, l.n_embd_head_v)).collect();
        let is_view = self.hparams.is_mla && self.rules.latent == Latent::ByKeys;
        if let (Latent::ByFlag, true) = (self.rules.latent, self.arch.mla) {
            let (k, v) = latents(self.model, self.run).into_iter().unzip();
            return Widths { k, v };
        }
        Widths {
            k: layers.iter().map(|l| width(l.n_head_kv, l.n_embd_head_k)).collect(),
            v: if is_view { Vec::new() } else { self.transposed(v()) },
        }
    }

    /// One key head a layer, `rows` indexer keys wide; V as wide as one value head unless `k_only` or MLA.
    fn indexer_widths(&self, rows: u32, k_only: bool) -> Widths {
        let layers = &self.hparams.layers;
        let wide = u64::from(self.hparams.indexer_head_size) * u64::from(rows);
        let v = || layers.iter().map(|l| u64::from(l.n_embd_head_v)).collect();
        Widths {
            // The window's key size is left as it is: `n_embd_head_k_full` alone is replaced.
            k: layers.iter().map(|l| if l.is_swa { u64::from(l.n_embd_head_k) } else { wide }).collect(),
            v: if k_only || self.hparams.is_mla { Vec::new() } else { self.transposed(v()) },
        }
    }

    /// Without flash attention every layer's V is as wide as the widest one's.
    fn transposed(&self, widths: Vec<u64>) -> Vec<u64> {
        let widest = widths.iter().copied().fold(0, u64::max);
        if self.v_trans && self.rules.widest_values { vec![widest; widths.len()] } else { widths }
    }

    /// A `llama_kv_cache` of the layers that `keeps` lets through.
    fn kv(
        &self,
        kind: CacheKind,
        widths: &Widths,
        (cells, n_stream): (u32, u32),
        keeps: impl Fn(u32, &LayerHParams) -> bool,
    ) -> Cache {
        let layers = (0u32..).zip(&self.hparams.layers).zip(&widths.k).filter(|((il, layer), _)| keeps(*il, layer));
        let head = |k: u64, layer: &LayerHParams| k.checked_div(u64::from(layer.n_head_kv)).unwrap_or(k);
        let is_latent = self.rules.latent == Latent::ByFlag && self.arch.mla && mla(self.model, self.run) != 0;
        let layers = layers.map(|((il, layer), k)| CacheLayer {
            il,
            n_embd_k: *k,
            // Without a list V is a view of K.
            n_embd_v: widths.v.get(il as usize).copied().unwrap_or(0),
            row: self.rules.one_cache.then(|| if is_latent { *k } else { head(*k, layer) }),
        });
        Cache {
            kind,
            cells,
            n_stream,
            // ik_llama.cpp's latents without flash attention are of V's type, but for those with V apart.
            type_k: if is_latent && self.v_trans && mla(self.model, self.run) != 1 {
                self.run.type_v
            } else {
                self.run.type_k
            },
            type_v: self.run.type_v,
            layers: layers.collect(),
            tokens_per_cell: (kind != CacheKind::Swa || self.run.swa_full).then_some(1),
        }
    }

    fn base(&self, keeps: impl Fn(u32, &LayerHParams) -> bool) -> Cache {
        self.kv(CacheKind::Base, &self.widths(), (self.numbers.n_ctx_seq, self.numbers.n_stream), keeps)
    }

    fn indexer(&self, widths: &Widths, keeps: impl Fn(u32, &LayerHParams) -> bool) -> Cache {
        self.kv(CacheKind::Indexer, widths, (self.numbers.n_ctx_seq, self.numbers.n_stream), keeps)
    }

    /// `llama_kv_cache_iswa`: a full cache and one of the window.
    fn iswa(&self, keeps: impl Fn(u32, &LayerHParams) -> bool) -> Vec<Cache> {
        let unified = self.numbers.kv_unified;
        let cells = self.window_cells(unified);
        vec![
            self.base(|il, l| !l.is_swa && keeps(il, l)),
            self.kv(CacheKind::Swa, &self.widths(), (cells, self.numbers.n_stream), |il, l| l.is_swa && keeps(il, l)),
        ]
    }

    /// The window of each sequence and a micro-batch, padded to 256, at most the whole context.
    fn window_cells(&self, unified: bool) -> u32 {
        let numbers = self.numbers;
        if self.run.swa_full {
            return numbers.n_ctx_seq;
        }
        let n_swa = self.hparams.swa.map_or(0, |swa| swa.n_swa);
        // Sums past 32 bits are more than any context, which is the bound.
        let sequences = if unified { numbers.n_seq_max } else { 1 };
        let wanted = n_swa.saturating_mul(sequences).saturating_add(numbers.n_ubatch);
        padded(wanted.min(numbers.n_ctx_seq))
    }

    /// `llama_memory_recurrent`: F32 states, a row for each sequence and snapshot.
    fn states(&self, keeps: impl Fn(u32, &LayerHParams) -> bool) -> Vec<Cache> {
        let state = |kind, n_embd_k, n_embd_v, ple: bool| Cache {
            kind,
            // At most 2^32 rows, which fit no memory.
            cells: self.numbers.n_seq_max.max(1).saturating_mul(self.snapshots.saturating_add(1)),
            n_stream: 1,
            type_k: ggml_type::f32(),
            type_v: ggml_type::f32(),
            layers: (0u32..)
                .zip(&self.hparams.layers)
                .filter(|(il, l)| *il < self.hparams.n_layer && keeps(*il, l) && (!ple || l.is_ple))
                .map(|(il, _)| CacheLayer { il, n_embd_k, n_embd_v, row: None })
                .collect(),
            tokens_per_cell: None,
        };
        let (convolved, scanned) = (self.hparams.n_embd_r, self.hparams.n_embd_s);
        let (n_embd_r, n_embd_s) = if self.rules.one_cache { (convolved + scanned, 0) } else { (convolved, scanned) };
        let mut list = vec![state(CacheKind::Recurrent, n_embd_r, n_embd_s, false)];
        if self.hparams.ple_conv_state > 0 {
            list.push(state(CacheKind::PleState, self.hparams.ple_conv_state, 0, true));
        }
        list
    }

    /// `llama_kv_cache_dsv4`: a window of every layer, compressed keys, an indexer, states; one stream a sequence.
    fn dsv4(&self) -> Vec<Cache> {
        let (csa, hca) = (4, 128);
        let streams = self.numbers.n_seq_max.max(1);
        let k_only = |widths: Widths| Widths { v: Vec::new(), ..widths };
        let widths = k_only(self.widths());
        let indexer = u64::from(self.hparams.indexer_head_size);
        let indexer_widths = Widths { k: vec![indexer; widths.k.len()], v: Vec::new() };
        let compressed = |kind, widths: &Widths, ratio: u32| {
            let cells = padded(self.numbers.n_ctx_seq.div_ceil(ratio).max(1));
            let cache = self.kv(kind, widths, (cells, streams), |_, l| l.compress_ratio == ratio);
            Cache { tokens_per_cell: Some(ratio), ..cache }
        };
        let state = |kind, n_embd: u64, rows: u32, ratio: u32| Cache {
            kind,
            cells: rows,
            // At most 2^32 planes, which fit no memory.
            n_stream: streams.saturating_mul(self.snapshots.saturating_add(1)),
            type_k: ggml_type::f32(),
            type_v: ggml_type::f32(),
            layers: (0u32..)
                .zip(&self.hparams.layers)
                .filter(|(il, l)| *il < self.hparams.n_layer && l.compress_ratio == ratio)
                .map(|(il, _)| CacheLayer { il, n_embd_k: n_embd, n_embd_v: n_embd, row: None })
                .collect(),
            tokens_per_cell: None,
        };
        let head = self.hparams.layers.first().map_or(0, |l| u64::from(l.n_embd_head_k));
        vec![
            self.kv(CacheKind::Swa, &widths, (self.window_cells(false), streams), |_, l| l.is_swa),
            compressed(CacheKind::Csa, &widths, csa),
            compressed(CacheKind::Hca, &widths, hca),
            compressed(CacheKind::Indexer, &indexer_widths, csa),
            state(CacheKind::CsaState, 2 * head, 2 * csa, csa),
            state(CacheKind::HcaState, head, hca, hca),
            state(CacheKind::IndexerState, 2 * indexer, 2 * csa, csa),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests;
