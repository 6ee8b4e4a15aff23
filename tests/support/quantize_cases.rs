//! Headers that between them reach every branch of llama-quantize's rules, made here: no weights, few keys.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use moeplan::gguf::writer::{NewFile, NewTensor, Scalar};
use moeplan::gguf::{ByteOrder, GgmlType};

/// What a header is made from.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    architecture: &'static str,
    blocks: u32,
    embd: u64,
    ff: u64,
    heads: u32,
    kv_heads: u32,
    experts: u32,
    tied: bool,
    /// The type of its matrices.
    ty: &'static str,
}

const LLAMA: Case = Case {
    name: "llama",
    architecture: "llama",
    blocks: 32,
    embd: 512,
    ff: 1024,
    heads: 8,
    kv_heads: 8,
    experts: 0,
    tied: false,
    ty: "f16",
};

/// Every header.
pub const CASES: [Case; 20] = [
    LLAMA,
    Case { name: "llama-gqa", kv_heads: 2, ..LLAMA },
    Case { name: "llama-tied", tied: true, ..LLAMA },
    Case { name: "llama-80-blocks", blocks: 80, kv_heads: 4, ..LLAMA },
    Case { name: "llama-80-blocks-mha", blocks: 80, ..LLAMA },
    Case { name: "llama-4-blocks", blocks: 4, ..LLAMA },
    Case { name: "llama-rows-of-320", embd: 320, ff: 960, ..LLAMA },
    Case { name: "llama-rows-of-72", embd: 72, ff: 200, tied: true, ..LLAMA },
    Case { name: "llama-f32", ty: "f32", ..LLAMA },
    Case { name: "llama-q8_0", ty: "q8_0", ..LLAMA },
    Case { name: "mixtral", experts: 8, kv_heads: 2, ..LLAMA },
    Case { name: "mixtral-mha-rows-of-320", experts: 8, embd: 320, ff: 448, ..LLAMA },
    Case { name: "llama-80-blocks-8-experts", blocks: 80, experts: 8, kv_heads: 2, ..LLAMA },
    Case { name: "llama-2-experts", experts: 2, ..LLAMA },
    Case { name: "llama-16-experts", experts: 16, blocks: 24, tied: true, ty: "bf16", ..LLAMA },
    Case { name: "falcon", architecture: "falcon", kv_heads: 1, ..LLAMA },
    Case { name: "falcon-tied", architecture: "falcon", blocks: 60, tied: true, ..LLAMA },
    Case { name: "qwen2-80-blocks", architecture: "qwen2", blocks: 80, ..LLAMA },
    Case { name: "olmo-80-blocks", architecture: "olmo", blocks: 80, ..LLAMA },
    Case { name: "jais2-68-blocks", architecture: "jais2", blocks: 68, ..LLAMA },
];

impl Case {
    /// Writes the header over a hole.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.gguf", self.name));
        let file = NewFile {
            version: 3,
            byte_order: ByteOrder::Little,
            alignment: 32,
            metadata: self.metadata(),
            tensors: self.tensors(),
        };
        let (header, _, data) = file.header();
        let mut out = std::fs::File::create(&path).unwrap();
        out.write_all(&header).unwrap();
        out.set_len(header.len() as u64 + data).unwrap();
        path
    }

    fn metadata(&self) -> Vec<(String, Scalar)> {
        let mut keys = vec![("general.architecture".to_string(), Scalar::String(self.architecture.into()))];
        let mut add = |key: &str, value| keys.push((format!("{}.{key}", self.architecture), value));
        add("context_length", Scalar::U32(4096));
        add("embedding_length", Scalar::U32(u32::try_from(self.embd).unwrap()));
        add("feed_forward_length", Scalar::U32(u32::try_from(self.ff).unwrap()));
        add("block_count", Scalar::U32(self.blocks));
        add("attention.head_count", Scalar::U32(self.heads));
        add("attention.head_count_kv", Scalar::U32(self.kv_heads));
        add("attention.layer_norm_epsilon", Scalar::F32(1e-5));
        add("attention.layer_norm_rms_epsilon", Scalar::F32(1e-5));
        if self.experts > 0 {
            add("expert_count", Scalar::U32(self.experts));
            add("expert_used_count", Scalar::U32(2));
        }
        keys
    }

    fn tensors(&self) -> Vec<NewTensor> {
        let matrix = GgmlType::from_name(self.ty).unwrap();
        let f32 = GgmlType::from_name("f32").unwrap();
        let mut tensors = Vec::new();
        let mut add = |name: String, ty: GgmlType, shape: &[u64]| {
            // A file whose rows are no whole blocks cannot be.
            let ty = if shape[0].is_multiple_of(ty.block_size) { ty } else { f32 };
            tensors.push(NewTensor { name, ty, shape: shape.to_vec() });
        };
        let (embd, ff) = (self.embd, self.ff);
        let kv = embd / u64::from(self.heads) * u64::from(self.kv_heads);
        if !self.tied {
            add("output.weight".into(), matrix, &[embd, 96]);
        }
        // From the last block to the first: the order of the file is not that of the rules.
        for block in (0..self.blocks).rev() {
            let name = |part: &str| format!("blk.{block}.{part}.weight");
            add(name("attn_norm"), f32, &[embd]);
            if self.architecture == "falcon" {
                add(name("attn_qkv"), matrix, &[embd, embd + 2 * kv]);
            } else {
                add(name("attn_q"), matrix, &[embd, embd]);
                add(name("attn_k"), matrix, &[embd, kv]);
                add(name("attn_v"), matrix, &[embd, kv]);
                add(format!("blk.{block}.attn_v.bias"), f32, &[kv]);
            }
            add(name("attn_output"), matrix, &[embd, embd]);
            match u64::from(self.experts) {
                0 => {
                    add(name("ffn_gate"), matrix, &[embd, ff]);
                    add(name("ffn_up"), matrix, &[embd, ff]);
                    add(name("ffn_down"), matrix, &[ff, embd]);
                }
                n => {
                    add(name("ffn_gate_inp"), f32, &[embd, n]);
                    add(name("ffn_gate_inp_shexp"), f32, &[embd, 2]);
                    add(name("ffn_gate_up_exps"), matrix, &[embd, 2 * ff, n]);
                    add(name("ffn_up_exps"), matrix, &[embd, ff, n]);
                    add(name("ffn_down_exps"), matrix, &[ff, embd, n]);
                    add(name("ffn_down_shexp"), matrix, &[ff, embd]);
                }
            }
            if block % 7 == 3 {
                add(name("attn_kv_b"), matrix, &[embd, kv]);
                add(name("ssm_conv1d"), f32, &[4, embd]);
                add(name("ssm_in"), matrix, &[embd, embd]);
            }
        }
        add("token_embd.weight".into(), matrix, &[embd, 96]);
        add("per_layer_token_embd.weight".into(), matrix, &[embd, 32]);
        add("rope_freqs.weight".into(), f32, &[16]);
        tensors
    }
}

/// A file that llama-quantize takes for an importance matrix (its older format): one entry, of no tensor of these.
pub fn imatrix(folder: &Path) -> PathBuf {
    let path = folder.join("imatrix.dat");
    let name = b"none";
    let mut bytes = Vec::new();
    for word in [1, 4] {
        bytes.extend_from_slice(&i32::to_le_bytes(word));
    }
    bytes.extend_from_slice(name);
    for word in [1, 1] {
        bytes.extend_from_slice(&i32::to_le_bytes(word));
    }
    bytes.extend_from_slice(&1f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    path
}
