//! The lines that say what was allocated: `NAME KIND buffer size = N MiB`, in every wording that llama.cpp had.

use super::line::{MAX_TEXT, cut, mib};
use crate::bytes::{Bytes, MIB};

/// How far a size printed with two decimals may be from the true one, in bytes.
pub const PRINTED: Bytes = Bytes(MIB.div_ceil(200));

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Weights (`load_tensors`, src/llama-model.cpp, b11434).
    Model,
    /// KV caches (src/llama-kv-cache.cpp).
    Kv,
    /// Recurrent states (src/llama-memory-recurrent.cpp).
    Recurrent,
    /// States of a compressed cache (src/llama-kv-cache-dsv4.cpp).
    State,
    /// The cache of experts (`MoE cache size`, b11549); llama.cpp's own table counts it as context.
    Experts,
    /// Buffers of the graphs (`sched_reserve`, src/llama-context.cpp).
    Compute,
    /// Rows of logits; in no sum of llama.cpp.
    Output,
    /// A LoRA adapter (src/llama-adapter.cpp); in no sum of llama.cpp.
    Adapter,
}

/// One buffer that was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// The buffer's name: `CUDA0`, `CPU_Mapped`, `RPC0[127.0.0.1:50052]`.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Its size, known to [`PRINTED`].
    pub size: Bytes,
    /// The llama.cpp function that reported it.
    pub by: String,
    /// Which context it belongs to, from 1; 0 before any.
    pub context: u32,
}

/// A compute buffer that was not as large at exit as when it was reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regrown {
    /// The buffer type.
    pub name: String,
    /// What was reserved.
    pub reserved: Bytes,
    /// What it had grown to.
    pub grown: Bytes,
}

/// A buffer line, but for its context.
pub(super) fn buffer(text: &str) -> Option<Buffer> {
    let (head, size) = sized(text)?;
    let (by, subject) = match head.rsplit_once(": ") {
        Some((before, subject)) => (before.rsplit([' ', ':']).next().unwrap_or_default(), subject),
        None => return None,
    };
    let mut words = subject.split_whitespace();
    let name = words.next()?;
    let kind = match words.collect::<Vec<_>>().as_slice() {
        ["model"] => Kind::Model,
        // llama.cpp before December 2024 and ik_llama.cpp leave the word out.
        [] if by.ends_with("load_tensors") => Kind::Model,
        ["KV"] => Kind::Kv,
        ["RS"] => Kind::Recurrent,
        ["DSV4", .., "state"] => Kind::State,
        ["MoE", "cache"] => Kind::Experts,
        ["compute"] => Kind::Compute,
        ["output"] => Kind::Output,
        ["LoRA"] => Kind::Adapter,
        _ => return None,
    };
    Some(Buffer { name: cut(name, MAX_TEXT).to_string(), kind, size, by: cut(by, MAX_TEXT).to_string(), context: 0 })
}

/// What is before `buffer size = N MiB` or `MoE cache size = N MiB`, and N.
fn sized(text: &str) -> Option<(&str, Bytes)> {
    let (head, tail) = match text.split_once(" buffer size") {
        Some(parts) => parts,
        None if text.contains(" MoE cache size") => text.split_once(" size")?,
        None => return None,
    };
    let (number, _) = tail.trim_start().strip_prefix('=')?.split_once(" MiB")?;
    Some((head, mib(number)?))
}

/// `compute buffer size of A MiB, does not match expectation of B MiB` (`~llama_context`, b11434).
pub(super) fn regrown(text: &str) -> Option<Regrown> {
    let (head, tail) = text.split_once(" compute buffer size of ")?;
    let (_, name) = head.rsplit_once(": ")?;
    let (grown, tail) = tail.split_once(" MiB")?;
    let (reserved, _) = tail.split_once("does not match expectation of ")?.1.split_once(" MiB")?;
    // Four decimals: the last two say less than a page.
    let size = |text: &str| mib(text.trim().get(..text.trim().len().checked_sub(2)?)?);
    let name = cut(name.trim(), MAX_TEXT).to_string();
    Some(Regrown { name, reserved: size(reserved)?, grown: size(grown)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wording_is_read() {
        for (line, name, kind, mib) in [
            ("load_tensors:   CPU_Mapped model buffer size =    14.04 MiB", "CPU_Mapped", Kind::Model, "14.04"),
            (
                "load_tensors: RPC0[127.0.0.1:50052] model buffer size =     2.04 MiB",
                "RPC0[127.0.0.1:50052]",
                Kind::Model,
                "2.04",
            ),
            ("llm_load_tensors:      CUDA0 buffer size =  7168.00 MiB", "CUDA0", Kind::Model, "7168.00"),
            ("llama_kv_cache:      CUDA0 KV buffer size =   384.00 MiB", "CUDA0", Kind::Kv, "384.00"),
            ("llama_kv_cache_init:      CUDA0 KV buffer size =   384.00 MiB", "CUDA0", Kind::Kv, "384.00"),
            ("llama_memory_recurrent:      CUDA1 RS buffer size =     1.50 MiB", "CUDA1", Kind::Recurrent, "1.50"),
            ("llama_dsv4_comp_state:  CPU DSV4 csa state buffer size =  0.25 MiB", "CPU", Kind::State, "0.25"),
            (
                "llama_moe_cache:      CUDA0 MoE cache size =  4495.61 MiB for 15552.00 MiB of host experts",
                "CUDA0",
                Kind::Experts,
                "4495.61",
            ),
            ("sched_reserve:  CUDA_Host compute buffer size =     9.01 MiB", "CUDA_Host", Kind::Compute, "9.01"),
            ("llama_context:        CPU  output buffer size =     0.02 MiB", "CPU", Kind::Output, "0.02"),
            (
                "llama_new_context_with_model:  CUDA_Host  output buffer size =     0.58 MiB",
                "CUDA_Host",
                Kind::Output,
                "0.58",
            ),
            (
                "llama_adapter_lora_init_impl:      CUDA0 LoRA buffer size =    12.00 MiB",
                "CUDA0",
                Kind::Adapter,
                "12.00",
            ),
        ] {
            let found = buffer(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((found.name.as_str(), found.kind, Some(found.size)), (name, kind, super::mib(mib)), "{line}");
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "~llama_context:        CPU compute buffer size is   6.0176 MiB, matches expectation of   6.0176 MiB",
            "llama_kv_cache: size =    1.00 MiB (   512 cells,   4 layers,  4/1 seqs), K (f16):    0.50 MiB",
            "load_tensors: buffer size = 1.00 MiB",
            "x: CUDA0 mystery buffer size = 1.00 MiB",
            "x: CUDA0 model buffer size = 1.00",
            "CUDA0 buffer size = 1.00 MiB",
        ] {
            assert_eq!(buffer(line), None, "{line}");
        }
    }

    #[test]
    fn a_compute_buffer_that_grew_is_seen() {
        let line =
            "~llama_context: CUDA0 compute buffer size of 300.5000 MiB, does not match expectation of 250.2500 MiB";
        let expected =
            Regrown { name: "CUDA0".into(), reserved: Bytes(MIB * 250 + MIB / 4), grown: Bytes(MIB * 300 + MIB / 2) };
        assert_eq!(regrown(line), Some(expected));
    }
}
