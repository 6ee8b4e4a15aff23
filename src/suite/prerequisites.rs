//! What has to be there before a suite is run.

use super::checklist::item;
use super::document::{Item, Verdict};
use crate::machine::Device;
use crate::runtime::DeviceInfo;

/// Whether the devices of the suite are there: only those that llama.cpp itself lists.
pub fn devices(described: &[Device], listed: &[DeviceInfo]) -> Item {
    let what = "there is a device";
    if described.is_empty() {
        return item(what, Verdict::Fail, "none was found or described (--vram)");
    }
    let of = |device: &Device| listed.iter().find(|found| found.gpu && found.name == device.name);
    let missing: Vec<&str> =
        described.iter().filter(|device| of(device).is_none()).map(|device| device.name.as_str()).collect();
    if !missing.is_empty() {
        let there: Vec<&str> = listed.iter().filter(|found| found.gpu).map(|found| found.name.as_str()).collect();
        let there = if there.is_empty() { "none".to_string() } else { there.join(", ") };
        let detail = format!(
            "{} was described and is not here: llama.cpp lists {there} (`moeplan doctor` says why; --backend rpc starts \
             software devices)",
            missing.join(", ")
        );
        return item(what, Verdict::Fail, detail);
    }
    let seen = |device: &Device| {
        let found = of(device).map_or(String::new(), |found| format!(": {}, {}", found.description, found.total));
        format!("{} with {}{found}", device.name, device.total)
    };
    item(what, Verdict::Pass, format!("llama.cpp lists {}", described.iter().map(seen).collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;

    #[test]
    fn a_device_is_there_when_llama_cpp_lists_it() {
        let described = |names: &[&str]| -> Vec<Device> {
            names.iter().map(|name| Device::parse(&format!("{name}=8GiB")).unwrap()).collect()
        };
        let listed = |name: &str, gpu| DeviceInfo {
            name: name.into(),
            buffer: name.into(),
            description: "a card".into(),
            backend: "CUDA".into(),
            gpu,
            total: Bytes::mib(81_079),
            free: Bytes::mib(80_000),
        };
        let here = [listed("CUDA0", true), listed("CPU", false)];
        for (names, verdict, says) in [
            (&["CUDA0"][..], Verdict::Pass, "llama.cpp lists CUDA0 with 8.00 GiB: a card, 79.18 GiB"),
            (&["CUDA0", "CUDA1"], Verdict::Fail, "CUDA1 was described and is not here: llama.cpp lists CUDA0 ("),
            (&[], Verdict::Fail, "none was found or described"),
        ] {
            let item = devices(&described(names), &here);
            assert!(item.verdict == verdict && item.detail.contains(says), "{item:?}");
        }
        let nowhere = devices(&described(&["CUDA0"]), &here[1..]);
        assert!(nowhere.verdict == Verdict::Fail && nowhere.detail.contains("llama.cpp lists none"), "{nowhere:?}");
    }
}
