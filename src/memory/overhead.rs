//! What a process holds on a device beyond llama.cpp's own sums: the driver's context, libraries, growing pools.

use std::borrow::Cow;

use super::caches::{CacheKind, Caches};
use super::pools;
use crate::bytes::Bytes;
use crate::machine::{Backend, Device};
use crate::model::Model;
use crate::placement::Placement;
use crate::run::numbers::ContextNumbers;
use crate::run::{Program, RunConfig};

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overhead {
    /// The row is for devices whose description contains this, in any case; empty = any.
    pub description: &'static str,
    /// The backends it is for.
    pub backends: &'static [Backend],
    /// After loading, nothing pinned.
    pub loaded: Bytes,
    /// After long prompts, which load kernels and grow the pools; they never shrink. Budgets count with this.
    pub peak: Bytes,
    /// Multiprocessors of the card, where `loaded` and `peak` are without what [`super::pools`] says of a launch.
    pub multiprocessors: Option<u64>,
    /// Where the figures come from.
    pub source: Cow<'static, str>,
}

/// First match wins.
pub const OVERHEADS: &[Overhead] = &[
    Overhead {
        description: "H100",
        backends: &[Backend::Cuda],
        loaded: Bytes::mib(600),
        peak: Bytes::mib(705),
        multiprocessors: Some(132),
        source: Cow::Borrowed(
            "measured on an H100 80GB, CUDA 13, llama.cpp b11434: 600 MiB loaded, 105 more after long prompts, \
             the launch's own page tables and pools",
        ),
    },
    Overhead {
        description: "",
        backends: &[Backend::Cuda, Backend::Rocm, Backend::Vulkan, Backend::Metal],
        loaded: Bytes::mib(600),
        peak: Bytes::mib(600),
        multiprocessors: None,
        source: Cow::Borrowed("default: no measurement of this device"),
    },
    Overhead {
        description: "",
        backends: &[Backend::Rpc, Backend::Cpu],
        loaded: Bytes(0),
        peak: Bytes(0),
        multiprocessors: None,
        source: Cow::Borrowed("no context of its own in this process"),
    },
];

/// The row of `device` for micro-batches of `n_ubatch` tokens: what its machine file states, else what was measured of it,
/// else the table's.
pub fn overhead(device: &Device, n_ubatch: u32) -> Overhead {
    if let Some(stated) = device.overhead {
        let source = Cow::Borrowed("stated by the machine file");
        return Overhead {
            description: "",
            backends: &[],
            loaded: stated,
            peak: stated,
            multiprocessors: None,
            source,
        };
    }
    let known = tabled(device);
    match &device.calibration {
        Some(measured) => Overhead {
            loaded: measured.loaded,
            // Pools that no long prompt has grown yet will grow.
            peak: measured.peak_at(n_ubatch).unwrap_or(known.peak.max(measured.loaded)),
            multiprocessors: None,
            source: Cow::Owned(measured.describe()),
            ..known
        },
        None => known,
    }
}

/// What device `at` of a machine holds for a launch beyond llama.cpp's own sums.
pub fn held(device: &Device, at: u16, model: &Model, run: &RunConfig, placement: &Placement) -> Overhead {
    let mut known = overhead(device, run.n_ubatch);
    if let Some(multiprocessors) = known.multiprocessors {
        let tables = pools::page_tables(placement);
        known.loaded += tables;
        known.peak += tables + pools::pool(model, run, placement, at, multiprocessors);
    }
    known
}

/// The table's row of `device`.
fn tabled(device: &Device) -> Overhead {
    let description = device.description.as_deref().unwrap_or_default().to_ascii_lowercase();
    let fits = |row: &&Overhead| {
        row.backends.contains(&device.backend) && description.contains(&row.description.to_ascii_lowercase())
    };
    OVERHEADS.iter().find(fits).cloned().expect("the table has a row for every backend")
}

/// Host memory that llama.cpp lists nowhere: upper bounds, most of it taken only as the server is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostGrowth {
    /// Rows of logits, one a sequence (`llama-context.cpp` `output_reserve`).
    pub logits: Bytes,
    /// Checkpoints of windows and recurrent states, 32 a slot (`common/arg.cpp` `--ctx-checkpoints`).
    pub checkpoints: Bytes,
    /// llama-server's prompt cache (`common/arg.cpp` `--cache-ram`, 8192 MiB).
    pub prompt_cache: Bytes,
}

/// What a launch may take on the host beyond its row of the table, by llama.cpp b11434's defaults.
pub fn host_growth(run: &RunConfig, numbers: &ContextNumbers, caches: &Caches, vocab_size: u32) -> HostGrowth {
    let rows = u64::from(numbers.n_seq_max);
    let logits = Bytes(rows.saturating_mul(u64::from(vocab_size)).saturating_mul(4));
    if run.program != Program::Server {
        return HostGrowth { logits, checkpoints: Bytes(0), prompt_cache: Bytes(0) };
    }
    let kept = |kind| matches!(kind, CacheKind::Swa | CacheKind::Recurrent | CacheKind::PleState);
    let windows = caches.list.iter().filter(|cache| kept(cache.kind) && cache.tokens_per_cell.is_none());
    let tensors = windows.flat_map(|cache| cache.layers.iter().filter_map(|layer| cache.tensors(layer).ok()).flatten());
    // All slots together hold what the caches hold.
    let all_slots: u64 = tensors.map(|tensor| tensor.bytes.0).sum();
    // Without a limit it is as large as what it saves: nothing here can say how large, so the default is.
    let prompt_cache = Bytes::mib(run.cache_ram.and_then(|mib| u64::try_from(mib).ok()).unwrap_or(8192));
    HostGrowth { logits, checkpoints: Bytes(all_slots.saturating_mul(32)), prompt_cache }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Calibration;
    use crate::memory::caches::{self, tests::model};
    use crate::run::numbers::numbers;

    #[test]
    fn a_server_may_grow_on_the_host() {
        let model = model("gpt-oss", "block_count=2 attention.head_count=8 attention.sliding_window=128");
        let growth = |program| {
            let run = RunConfig { program, n_ctx: 4096, n_parallel: Some(2), ..RunConfig::default() };
            let numbers = numbers(&run, &model.hparams);
            host_growth(&run, &numbers, &caches::caches(&model, &run, &numbers), 1000)
        };
        let nothing = HostGrowth { logits: Bytes(8000), checkpoints: Bytes(0), prompt_cache: Bytes(0) };
        assert_eq!(growth(Program::Cli), nothing);
        // One layer's window of 768 cells, K and V of 512 elements in f16, for each of two streams.
        let window = 2 * 768 * 2 * 1024;
        let grown = HostGrowth { checkpoints: Bytes(32 * window), prompt_cache: Bytes::mib(8192), ..nothing };
        assert_eq!(growth(Program::Server), grown);
    }

    #[test]
    fn every_backend_has_a_row_and_a_known_card_its_own() {
        let device = |backend, description: Option<&str>| Device {
            name: "X0".to_string(),
            buffer: "X0".to_string(),
            backend,
            description: description.map(str::to_string),
            total: Bytes::mib(24576),
            free: Bytes::mib(24576),
            overhead: None,
            calibration: None,
            rates: None,
        };
        for (backend, description, peak) in [
            (Backend::Cuda, Some("NVIDIA H100 80GB HBM3"), 705),
            (Backend::Cuda, Some("NVIDIA GeForce RTX 4090"), 600),
            (Backend::Cuda, None, 600),
            (Backend::Rocm, None, 600),
            (Backend::Vulkan, None, 600),
            (Backend::Metal, None, 600),
            (Backend::Rpc, None, 0),
            (Backend::Cpu, None, 0),
        ] {
            assert_eq!(
                overhead(&device(backend, description), 512).peak,
                Bytes::mib(peak),
                "{backend:?} {description:?}"
            );
        }
        let stated = Device { overhead: Some(Bytes::mib(333)), ..device(Backend::Rpc, None) };
        assert_eq!(overhead(&stated, 512).peak, Bytes::mib(333));
    }

    #[test]
    fn what_was_measured_goes_before_the_table() {
        let mut device = Device::parse("CUDA0=24G").unwrap();
        for (loaded, peak, expected) in [(580, Some(700), 700), (580, None, 600), (650, None, 650)] {
            device.calibration = Some(Calibration {
                runs: 1,
                loaded: Bytes::mib(loaded),
                peaks: peak.map(|mib| (512, Bytes::mib(mib))).into_iter().collect(),
                margin: Bytes::mib(256),
                driver: Some("580.1".to_string()),
                build: 11434,
            });
            let found = overhead(&device, 512);
            assert_eq!((found.loaded, found.peak), (Bytes::mib(loaded), Bytes::mib(expected)));
            assert!(found.source.contains("b11434, driver 580.1"), "{}", found.source);
        }
    }
}
