//! Devices as llama.cpp prints them: `--list-devices`, `device_info` at start, `using device` at load.

use super::line::{MAX_TEXT, cut, number, whole_mib};
use crate::bytes::Bytes;
use crate::runtime::DeviceInfo;

/// A device that the model was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedDevice {
    /// `CUDA0`.
    pub name: String,
    /// What it calls itself; for RPC its server, `host:port`.
    pub description: String,
    /// PCI address or the like, where it has one.
    pub id: Option<String>,
    /// What it said was free, in whole MiB.
    pub free: Bytes,
}

/// Every device that `llama-server --list-devices` prints (common/arg.cpp, b11434); other lines are none.
pub fn devices(text: &str) -> Vec<DeviceInfo> {
    let listed = text.lines().skip_while(|line| !line.contains("Available devices")).skip(1);
    number_rpc(listed.take(256).filter_map(listed_device).collect())
}

/// `  NAME: DESCRIPTION (N MiB, N MiB free)`, or `  - NAME   : …` of `device_info`.
pub(super) fn listed_device(line: &str) -> Option<DeviceInfo> {
    let line = line.trim();
    let line = line.split_once("  - ").map_or(line, |(_, rest)| rest);
    let (name, rest) = line.strip_prefix("- ").unwrap_or(line).split_once(':')?;
    let name = name.trim();
    let (description, sizes) = rest.strip_suffix(" MiB free)")?.rsplit_once('(')?;
    let (total, free) = sizes.split_once(" MiB, ")?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    let description = cut(description.trim(), MAX_TEXT).to_string();
    let backend = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let rpc = backend == "RPC";
    Some(DeviceInfo {
        name: cut(name, MAX_TEXT).to_string(),
        buffer: if rpc { format!("RPC0[{description}]") } else { cut(name, MAX_TEXT).to_string() },
        description,
        backend: cut(backend, MAX_TEXT).to_string(),
        gpu: !matches!(backend, "CPU" | "BLAS" | "ACCEL" | "AMX"),
        total: mib(total)?,
        free: mib(free)?,
    })
}

/// The number in an RPC buffer type's name counts the devices of its own server (ggml-rpc.cpp, b11434).
pub(super) fn number_rpc(mut devices: Vec<DeviceInfo>) -> Vec<DeviceInfo> {
    for at in 0..devices.len() {
        let (before, rest) = devices.split_at_mut(at);
        let Some(device) = rest.first_mut().filter(|device| device.backend == "RPC") else { continue };
        let same = before.iter().filter(|other| other.backend == "RPC" && other.description == device.description);
        device.buffer = format!("RPC{}[{}]", same.count(), device.description);
    }
    devices
}

/// `using device NAME (DESCRIPTION) (ID) - N MiB free` (`llama_prepare_model_devices`, src/llama.cpp, b11434; older builds
/// print no id).
pub(super) fn used_device(text: &str) -> Option<UsedDevice> {
    let (_, rest) = text.split_once("using device ")?;
    let (rest, free) = rest.trim_end().strip_suffix(" MiB free")?.rsplit_once(" - ")?;
    let (name, rest) = rest.split_once(" (")?;
    let inner = rest.strip_suffix(')')?;
    let is_id = |id: &str| id == "unknown id" || (!id.contains(' ') && id.matches(':').count() == 2);
    let (description, id) = match inner.rsplit_once(") (") {
        Some((description, id)) if is_id(id) => (description, Some(id)),
        _ => (inner, None),
    };
    Some(UsedDevice {
        name: cut(name, MAX_TEXT).to_string(),
        description: cut(description, MAX_TEXT).to_string(),
        id: id.filter(|id| *id != "unknown id").map(str::to_string),
        free: mib(free)?,
    })
}

/// Whole MiB.
fn mib(text: &str) -> Option<Bytes> {
    whole_mib(number(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_devices_is_read() {
        let text = "load_backend: loaded RPC backend\nAvailable devices:\n\
            \x20 RPC0: 127.0.0.1:50052 (24105 MiB, 24105 MiB free)\n\
            \x20 RPC1: 127.0.0.1:50052 (16000 MiB, 15000 MiB free)\n\
            \x20 RPC2: 10.0.0.2:50052 (8192 MiB, 8000 MiB free)\n\
            \x20 CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80552 MiB free)\n\
            \x20 Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)\n";
        let found = devices(text);
        let names: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.buffer.as_str(), d.total)).collect();
        let expected = [
            ("RPC0", "RPC0[127.0.0.1:50052]", Bytes::mib(24105)),
            ("RPC1", "RPC1[127.0.0.1:50052]", Bytes::mib(16000)),
            ("RPC2", "RPC0[10.0.0.2:50052]", Bytes::mib(8192)),
            ("CUDA0", "CUDA0", Bytes::mib(81079)),
            ("Vulkan0", "Vulkan0", Bytes::mib(2048)),
        ];
        assert_eq!(names, expected);
        assert_eq!(found[4].description, "llvmpipe (LLVM 15.0.6, 256 bits)");
        assert!(devices("Available devices:\n  (none)\n").is_empty() && devices("").is_empty());
    }

    #[test]
    fn the_devices_of_a_model_are_read_with_and_without_an_id() {
        for (line, name, description, id, free) in [
            (
                "llama_prepare_model_devices: using device CUDA0 (NVIDIA H100 80GB HBM3) (0000:00:06.0) - 80552 MiB free",
                "CUDA0",
                "NVIDIA H100 80GB HBM3",
                Some("0000:00:06.0"),
                80552,
            ),
            (
                "x: using device Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) (unknown id) - 2048 MiB free",
                "Vulkan0",
                "llvmpipe (LLVM 15.0.6, 256 bits)",
                None,
                2048,
            ),
            (
                "llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3060) - 11910 MiB free",
                "CUDA0",
                "NVIDIA GeForce RTX 3060",
                None,
                11910,
            ),
        ] {
            let found = used_device(line).unwrap_or_else(|| panic!("{line}"));
            let expected = (name, description, id, Bytes::mib(free));
            assert_eq!((found.name.as_str(), found.description.as_str(), found.id.as_deref(), found.free), expected);
        }
        assert_eq!(used_device("using device CUDA0 - 3 MiB free"), None);
    }
}
