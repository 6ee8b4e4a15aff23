//! Facts around a measurement: the computer, the file by its header, and whether its weights are real. [I/O]

use std::borrow::Cow;
use std::io::Read as _;
use std::path::Path;

use super::document::{DeviceFacts, Environment, ModelFacts, Weights};
use super::store::hexadecimal;
use crate::bytes::Bytes;
use crate::evidence::store::now;
use crate::gguf::{ModelFile, Value};
use crate::inspection::Inspection;
use crate::machine::Machine;
use crate::model::Model;
use crate::runtime::{detect, nvml};
use crate::synth;

/// The longest header that is hashed, in bytes.
const MAX_HEADER: u64 = 1 << 30;

/// The computer, and the devices of a launch.
pub fn environment(machine: Option<&Machine>) -> Environment {
    let host = detect::host();
    let device = |device: &crate::machine::Device| DeviceFacts {
        name: device.name.clone(),
        description: device.description.clone(),
        total: device.total,
    };
    Environment {
        moeplan: env!("CARGO_PKG_VERSION").to_string(),
        started: now(),
        system: sysinfo::System::long_os_version().ok(),
        processor: host.processor,
        processors: host.threads,
        ram: host.ram,
        devices: machine.map(|machine| machine.devices.iter().map(device).collect()).unwrap_or_default(),
        driver: nvml::driver(),
        runtime: None,
        endpoint: None,
    }
}

pub fn model(path: &Path, model: &Model, files: &[ModelFile]) -> ModelFacts {
    let inspection = Inspection::new(model, &[], None);
    ModelFacts {
        path: path.display().to_string(),
        name: inspection.name,
        architecture: inspection.architecture,
        file_type: inspection.file_type.map(Cow::into_owned),
        file_bytes: files.iter().map(|file| file.bytes).sum(),
        header_sha256: files.first().and_then(hash),
        tensors: inspection.tensors,
        blocks: inspection.block_count,
        parameters: inspection.parameters.total,
        active_parameters: inspection.parameters.active,
        experts: inspection.experts.count,
        experts_used: inspection.experts.used,
        expert_bytes: inspection.experts.bytes,
    }
}

/// SHA-256 of everything before the first tensor.
fn hash(file: &ModelFile) -> Option<String> {
    if file.data_offset > MAX_HEADER {
        return None;
    }
    let mut header = Vec::new();
    std::fs::File::open(&file.path).ok()?.take(file.data_offset).read_to_end(&mut header).ok()?;
    Some(hexadecimal(&header))
}

/// Whether the weights are real, as far as the person, the header or the disk says.
pub fn weights(said_synthetic: bool, metadata: Option<&crate::gguf::Metadata>, files: &[ModelFile]) -> Weights {
    let known = |synthetic, basis: &str| Weights { synthetic, basis: basis.to_string() };
    if said_synthetic {
        return known(Some(true), "--synthetic was given");
    }
    let Some(metadata) = metadata else {
        return known(None, "the model's file is not known here");
    };
    if matches!(metadata.get(synth::MARK), Some(Value::Bool(true))) {
        return known(Some(true), "the header says that moeplan synth wrote the file");
    }
    if hole(files).is_some() {
        return known(Some(true), "the file is a hole: most of its bytes are not on the disk");
    }
    known(Some(false), "nothing in the header or on the disk says that they are made up")
}

/// What of a model is on the disk and how long it is, where one of its files is a hole: less than a quarter of it is stored.
pub fn hole(files: &[ModelFile]) -> Option<(Bytes, Bytes)> {
    let stored: Option<Vec<Bytes>> = files.iter().map(stored).collect();
    let stored = stored?;
    let is_hole = files.iter().zip(&stored).any(|(file, stored)| stored.0 < file.bytes.0 / 4);
    is_hole.then(|| (stored.iter().copied().sum(), files.iter().map(|file| file.bytes).sum()))
}

/// What of a file is on the disk.
#[cfg(unix)]
fn stored(file: &ModelFile) -> Option<Bytes> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(&file.path).ok().map(|metadata| Bytes(metadata.blocks().saturating_mul(512)))
}

/// Nothing is known here.
#[cfg(not(unix))]
fn stored(_file: &ModelFile) -> Option<Bytes> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Metadata;

    #[test]
    fn made_up_weights_are_known_by_the_person_the_header_and_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, stored: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![1_u8; stored]).unwrap();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
            vec![ModelFile { path, bytes: Bytes(1 << 20), data_offset: 64 }]
        };
        let plain = Metadata::default();
        let mut marked = Metadata::default();
        marked.insert(synth::MARK.to_string(), Value::Bool(true));
        let full = file("full", 1 << 20);
        for (said, metadata, files, synthetic) in [
            (true, Some(&plain), &full, Some(true)),
            (false, Some(&plain), &full, Some(false)),
            (false, Some(&marked), &full, Some(true)),
            (false, None, &full, None),
        ] {
            assert_eq!(weights(said, metadata, files).synthetic, synthetic);
        }
        if cfg!(unix) {
            let sparse = file("hole", 4096);
            assert_eq!(weights(false, Some(&plain), &sparse).synthetic, Some(true));
            let (stored, whole) = hole(&[full[0].clone(), sparse[0].clone()]).unwrap();
            assert!(whole == Bytes(2 << 20) && stored < Bytes((1 << 20) + (1 << 18)), "{stored}");
            assert_eq!(hole(&full), None);
        }
        let hash = hash(&full[0]).unwrap();
        assert_eq!((hash.len(), &hash[..8]), (64, "7c8975e1"));
    }
}
