//! Facts around a measurement: the computer, the file by its header, and whether its weights are real. [I/O]

use std::borrow::Cow;
use std::io::Read as _;
use std::path::Path;

use super::document::{DeviceFacts, Environment, ModelFacts, Weights};
use super::store::hexadecimal;
use crate::bytes::Bytes;
use crate::evidence::store::now;
use crate::files;
use crate::gguf::{Metadata, ModelFile, Value};
use crate::inspection::Inspection;
use crate::machine::Machine;
use crate::model::Model;
use crate::runtime::{detect, nvml};
use crate::synth;

/// The longest header that is hashed, in bytes.
const MAX_HEADER: u64 = 1 << 30;

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
pub fn weights(is_said_synthetic: bool, metadata: Option<&Metadata>, files: &[ModelFile]) -> Weights {
    let is_marked = |metadata: &Metadata| matches!(metadata.get(synth::MARK), Some(Value::Bool(true)));
    let (synthetic, basis) = match metadata {
        _ if is_said_synthetic => (Some(true), "--synthetic was given"),
        None => (None, "the model's file is not known here"),
        Some(metadata) if is_marked(metadata) => (Some(true), "the header says that moeplan synth wrote the file"),
        Some(_) if hole(files).is_some() => (Some(true), "the file is sparse: most of its bytes are not on disk"),
        Some(_) => (Some(false), "nothing in the header or on the disk says that they are made up"),
    };
    Weights { synthetic, basis: basis.to_string() }
}

/// What of a model is on the disk and how long it is, where one of its files is a hole: less than a quarter of it is stored.
pub fn hole(files: &[ModelFile]) -> Option<(Bytes, Bytes)> {
    let stored = |file: &ModelFile| files::on_disk(&std::fs::metadata(&file.path).ok()?);
    let stored: Vec<Bytes> = files.iter().map(stored).collect::<Option<_>>()?;
    let is_hole = files.iter().zip(&stored).any(|(file, stored)| stored.0 < file.bytes.0 / 4);
    is_hole.then(|| (stored.iter().copied().sum(), files.iter().map(|file| file.bytes).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (full, sparse) = (file("full", 1 << 20), file("hole", 4096));
        for (said, metadata, files, synthetic) in [
            (true, Some(&plain), &full, Some(true)),
            (false, Some(&plain), &full, Some(false)),
            (false, Some(&marked), &full, Some(true)),
            (false, None, &full, None),
            (false, Some(&plain), &sparse, Some(cfg!(unix))),
        ] {
            assert_eq!(weights(said, metadata, files).synthetic, synthetic);
        }
        assert!(!cfg!(unix) || hole(&[full[0].clone(), sparse[0].clone()]).is_some());
        assert_eq!((hole(&full), hash(&full[0]).unwrap().get(..8)), (None, Some("7c8975e1")));
    }
}
