//! Lines that say why a launch failed, in the words of every llama.cpp build seen.

use super::line::{MAX_TEXT, cut, mib, number};
use crate::bytes::Bytes;

/// What a launch asks memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Weights.
    Model,
    /// KV caches and states.
    Context,
    /// Buffers of the graphs.
    Compute,
    /// Rows of logits.
    Output,
}

/// Why a launch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An allocation was refused.
    OutOfMemory {
        /// Which buffer type, where it was said.
        buffer: Option<String>,
        /// How much was asked for.
        bytes: Option<Bytes>,
        /// What for.
        part: Option<Part>,
    },
    /// The model cannot be loaded: missing, cut, of an unknown kind.
    BadModel(String),
    /// A flag that this build does not take, or a value that it refuses.
    InvalidArgument(String),
    /// The address is in use or not allowed.
    Bind(String),
    /// An assertion or an error of a backend ended the process.
    Crash(String),
    /// The server said that it gives up, and no more.
    Other(String),
}

impl Failure {
    /// How much it explains: of several lines the most telling is the reason.
    fn weight(&self) -> u8 {
        match self {
            Self::OutOfMemory { .. } => 5,
            Self::InvalidArgument(_) | Self::Bind(_) => 4,
            Self::BadModel(_) => 3,
            Self::Crash(_) => 2,
            Self::Other(_) => 1,
        }
    }

    /// The failure after one more line: the more telling of two, and what each knows of an allocation.
    #[must_use]
    pub(super) fn and(self, later: Self) -> Self {
        match (self, later) {
            (
                Self::OutOfMemory { buffer, bytes, part },
                Self::OutOfMemory { buffer: more_buffer, bytes: more_bytes, part: more_part },
            ) => Self::OutOfMemory {
                buffer: buffer.or(more_buffer),
                bytes: bytes.or(more_bytes),
                part: part.or(more_part),
            },
            (first, later) if later.weight() > first.weight() => later,
            (first, _) => first,
        }
    }
}

/// The failure that a line tells of.
pub(super) fn failure(text: &str) -> Option<Failure> {
    out_of_memory(text).or_else(|| refusal(text))
}

/// A refused allocation. Sources (b11434): ggml-backend.cpp, ggml-alloc.c, ggml-cuda.cu, ggml-vulkan.cpp,
/// ggml-metal-device.m, llama-model.cpp, llama-kv-cache.cpp, llama-context.cpp.
fn out_of_memory(text: &str) -> Option<Failure> {
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
    let found = |buffer: Option<&str>, bytes, part| {
        let buffer = buffer.map(|name| cut(name.trim(), MAX_TEXT).to_string()).filter(|name| !name.is_empty());
        Some(Failure::OutOfMemory { buffer, bytes, part })
    };
    if let Some((size, rest)) = after("allocating ").and_then(|rest| rest.split_once(" MiB on device "))
        && rest.contains("alloc failed")
    {
        let device: Option<u32> = number(rest);
        return found(device.map(|n| format!("CUDA{n}")).as_deref(), mib(size), None);
    }
    if let Some((name, size)) = after("failed to allocate ").and_then(|rest| rest.split_once("buffer of size ")) {
        if name.trim() == "output" {
            let size = size.split_once(" MiB").and_then(|(size, _)| mib(size));
            return found(None, size, Some(Part::Output));
        }
        let part = text.contains("gallocr").then_some(Part::Compute);
        let host = text.contains("cpu_buffer_type").then_some("CPU");
        return found(Some(name).filter(|name| !name.trim().is_empty()).or(host), number(size).map(Bytes), part);
    }
    if let Some(rest) = after("failed to allocate buffer, size = ") {
        return found(Some("MTL0"), rest.split_once(" MiB").and_then(|(size, _)| mib(size)), None);
    }
    if let Some(rest) = after("Device memory allocation of size ") {
        return found(None, number(rest).map(Bytes), None);
    }
    if let Some((name, _)) = after("unable to allocate ").and_then(|rest| rest.split_once(" buffer")) {
        return found(Some(name), None, Some(Part::Model));
    }
    for (words, part) in [
        ("failed to allocate buffer for", Some(Part::Context)),
        ("failed to allocate compute", Some(Part::Compute)),
        ("failed to reserve initial output buffer", Some(Part::Output)),
        ("CUDA error: out of memory", None),
        ("ErrorOutOfDeviceMemory", None),
        ("OutOfDeviceMemoryError", None),
        ("std::bad_alloc", None),
    ] {
        if text.contains(words) {
            return found(None, None, part);
        }
    }
    None
}

/// Every other failure.
fn refusal(text: &str) -> Option<Failure> {
    let kept = |text: &str| cut(text.trim(), MAX_TEXT).to_string();
    if let Some((_, reason)) = text.split_once("error loading model: ") {
        return Some(Failure::BadModel(kept(reason)));
    }
    if let Some(at) = text.find("failed to open GGUF file") {
        return Some(Failure::BadModel(kept(text.get(at..)?)));
    }
    for start in ["error: invalid argument", "error while handling argument", "error: unknown argument", "error: "] {
        if text.starts_with(start) {
            return Some(Failure::InvalidArgument(kept(text)));
        }
    }
    if text.contains("couldn't bind") || text.contains("couldn't start HTTP listener") {
        return Some(Failure::Bind(kept(text)));
    }
    if text.contains("GGML_ASSERT(") || text.contains("CUDA error") || text.contains("terminate called") {
        return Some(Failure::Crash(kept(text)));
    }
    let gives_up = ["failed to initialize the context: ", "exiting due to ", "failed to load model"];
    gives_up.iter().any(|words| text.contains(words)).then(|| Failure::Other(kept(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(buffer: Option<&str>, bytes: Option<u64>, part: Option<Part>) -> Failure {
        Failure::OutOfMemory { buffer: buffer.map(str::to_string), bytes: bytes.map(Bytes), part }
    }

    #[test]
    fn refused_allocations_say_which_and_how_much() {
        for (line, expected) in [
            (
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 7168.00 MiB on device 1: cudaMalloc failed: out of memory",
                oom(Some("CUDA1"), Some(7168 << 20), None),
            ),
            (
                "alloc_tensor_range: failed to allocate CUDA0 buffer of size 7516192768",
                oom(Some("CUDA0"), Some(7_516_192_768), None),
            ),
            (
                "ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 500",
                oom(Some("CUDA0"), Some(500), Some(Part::Compute)),
            ),
            (
                "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99",
                oom(Some("CPU"), Some(99), None),
            ),
            (
                "llama_context: failed to allocate output buffer of size 12.50 MiB",
                oom(None, Some(25 << 19), Some(Part::Output)),
            ),
            ("ggml_vulkan: Device memory allocation of size 1073741824 failed.", oom(None, Some(1 << 30), None)),
            (
                "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
                oom(Some("CUDA0"), None, Some(Part::Model)),
            ),
            (
                "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
                oom(None, None, Some(Part::Context)),
            ),
            ("CUDA error: out of memory", oom(None, None, None)),
        ] {
            assert_eq!(failure(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn later_lines_add_what_earlier_ones_left_open() {
        let lines = [
            "x: allocating 2.00 MiB on device 0: cudaMalloc failed: out of memory",
            "y: failed to allocate CUDA0 buffer of size 2097152",
            "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
            "srv  llama_server: exiting due to model loading error",
        ];
        let whole = lines.iter().filter_map(|line| failure(line)).reduce(Failure::and);
        assert_eq!(whole, Some(oom(Some("CUDA0"), Some(2 << 20), Some(Part::Context))));
    }

    #[test]
    fn lines_of_a_good_load_are_none() {
        for line in ["load_tensors: offloaded 5/5 layers to GPU", "srv    load_model: loading model 'error.gguf'", ""] {
            assert_eq!(failure(line), None, "{line}");
        }
    }
}
