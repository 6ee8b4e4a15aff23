//! What a process holds on a device beyond llama.cpp's own sums: the driver's context, libraries, growing pools.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::{Part, pools};
use crate::bytes::Bytes;
use crate::machine::cards::{self, CARDS, Card};
use crate::machine::{Backend, Device};
use crate::model::Model;
use crate::placement::Placement;
use crate::run::RunConfig;

/// What a process holds on a device beyond llama.cpp's own sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overhead {
    /// With nothing on the device: a context alone, which asking for its memory creates.
    pub idle: Bytes,
    pub loaded: Bytes,
    /// After long prompts, which load kernels and grow the pools; they never shrink. Budgets count with this.
    pub peak: Bytes,
    /// Multiprocessors of the card, where `peak` is without what [`super::pools`] says of a launch.
    pub multiprocessors: Option<u64>,
    pub source: Cow<'static, str>,
}

/// What a process takes of an NVIDIA card beyond a context that has done nothing yet.
struct Growth {
    generation: &'static str,
    /// Libraries, once a model is loaded.
    loaded: Bytes,
    /// And after long prompts, pools and page tables left out.
    peak: Bytes,
    source: &'static str,
}

/// The growth that is known. Other generations take the most of it.
const GROWTH: &[Growth] = &[
    Growth {
        generation: "hopper",
        loaded: Bytes::mib(73),
        peak: Bytes::mib(178),
        source: "measured on an H100 80GB, CUDA 13, llama.cpp b11434",
    },
    Growth {
        generation: "blackwell",
        loaded: Bytes::mib(73),
        peak: Bytes::mib(151),
        source: "an RTX PRO 6000's 701 to 712 MiB after long prompts, its pools among them",
    },
    Growth {
        generation: "pascal",
        loaded: Bytes(0),
        peak: Bytes::mib(68),
        source: "an 8 GB P104-100's 84 MiB idle and 160 at most after prompts, 8 and more of pools among them",
    },
];

/// The context of a card: its own, else that of the next larger card of its generation, else of the largest, scaled by multiprocessors.
/// `None` where none of its generation is known.
fn context(card: &Card) -> Option<Bytes> {
    let size = card.multiprocessors?;
    let relatives = CARDS.iter().filter(|other| other.generation == card.generation);
    let known = || relatives.clone().filter_map(|other| Some((other.multiprocessors?, other.context?)));
    let larger = || known().filter(|(other, _)| *other >= size).min();
    let scaled = || known().max().map(|(other, context)| Bytes((context.0 * size).div_ceil(other)));
    card.context.or_else(|| larger().map(|(_, context)| context)).or_else(scaled)
}

/// The overhead of an NVIDIA card; `None` where no context of its generation is known.
fn of_card(card: &Card) -> Option<Overhead> {
    let context = context(card)?;
    let most = || GROWTH.iter().max_by_key(|growth| growth.peak);
    let own = GROWTH.iter().find(|growth| growth.generation == card.generation);
    let growth = own.or_else(most)?;
    let (words, generation) = (card.words.to_uppercase(), card.generation);
    let whose = if own.is_some() { "" } else { ", the highest known" };
    let printed = if card.context.is_some() { "as llama.cpp printed it" } else { "for others of its generation" };
    let source = format!(
        "{words} ({generation}): a context of {context} {printed}, {} more after long prompts{whose} ({}), the launch's own page \
         tables and pools",
        growth.peak, growth.source
    );
    Some(Overhead {
        idle: context,
        loaded: context + growth.loaded,
        peak: context + growth.peak,
        multiprocessors: card.multiprocessors,
        source: Cow::Owned(source),
    })
}

/// The upper end of what is known of NVIDIA cards, for one of which nothing is.
static UNKNOWN_CARD: LazyLock<Overhead> = LazyLock::new(|| {
    let known = || CARDS.iter().filter(|card| card.context.is_some()).filter_map(of_card);
    let most = |of: fn(&Overhead) -> Bytes| known().map(|known| of(&known)).max().unwrap_or(DEFAULT);
    let [idle, loaded, peak] = [most(|known| known.idle), most(|known| known.loaded), most(|known| known.peak)];
    let multiprocessors = CARDS.iter().filter_map(|card| card.multiprocessors).max();
    let source = format!(
        "default: no measurement of this device; {peak}, the highest known for any card, and the launch's own page tables and pools"
    );
    Overhead { idle, loaded, peak, multiprocessors, source: Cow::Owned(source) }
});

/// What is assumed of a device that is no NVIDIA card.
const DEFAULT: Bytes = Bytes::mib(600);

/// What a second context with weights or caches on a CUDA card holds there beside its buffers and pools: libraries' handles. Of
/// seven launches with a draft model or MTP on two H200s the most (driver 580, b11434): 80 to 105 MiB.
const SECOND_CONTEXT: Bytes = Bytes::mib(105);

/// What each card of `-sm tensor` holds beyond what it holds otherwise: 32 MiB for sums over the cards
/// (`ggml-cuda/allreduce.cu` `GGML_CUDA_AR_COPY_MAX_BYTES`), the rest as measured in three launches on two H200s (driver 580, b11434).
const TENSOR_SPLIT: Bytes = Bytes::mib(168);

fn fixed(bytes: Bytes, source: &'static str) -> Overhead {
    Overhead { idle: bytes, loaded: bytes, peak: bytes, multiprocessors: None, source: Cow::Borrowed(source) }
}

/// The overhead of `device` for micro-batches of `n_ubatch` tokens: what its machine file states, else what was measured of it,
/// else the table's.
pub fn overhead(device: &Device, n_ubatch: u32) -> Overhead {
    if let Some(stated) = device.overhead {
        return fixed(stated, "stated by the machine file");
    }
    let known = tabled(device);
    let Some(measured) = &device.calibration else { return known };
    let (loaded, source) = (measured.loaded, Cow::Owned(measured.describe()));
    let idle = known.idle.min(loaded);
    match measured.peak_at(n_ubatch) {
        Some(peak) => Overhead { idle, loaded, peak, multiprocessors: None, source },
        // Pools that no long prompt has grown yet will grow.
        None => Overhead { idle, loaded, peak: known.peak.max(loaded), source, ..known },
    }
}

/// What device `at` of a machine holds for a launch beyond llama.cpp's own sums.
pub fn held(device: &Device, at: u16, model: &Model, run: &RunConfig, placement: &Placement) -> Overhead {
    let mut known = overhead(device, run.n_ubatch);
    if known.multiprocessors.is_some() || device.calibration.is_some() {
        let tables = pools::page_tables(placement);
        known.loaded += tables;
        known.peak += tables;
    }
    if let Some(multiprocessors) = known.multiprocessors {
        known.peak += pools::pool(model, run, placement, at, multiprocessors);
    }
    let is_split = placement.shares.as_ref().is_some_and(|shares| shares.devices.len() > 1);
    if is_split && device.backend.is_cuda_source() && device.overhead.is_none() {
        known.peak += TENSOR_SPLIT;
    }
    known
}

/// What a context that drafts adds to a device: pools, and handles where the device has a context `beside` it.
pub fn second(device: &Device, at: u16, model: &Model, run: &RunConfig, part: &Part, beside: bool) -> Bytes {
    let Some(multiprocessors) = tabled(device).multiprocessors.filter(|_| device.overhead.is_none()) else {
        return Bytes(0);
    };
    let pool = pools::pool(model, run, &part.placement, at, multiprocessors);
    let has_own = part.memory.get(&device.name).is_some_and(|row| row.model + row.context > Bytes(0));
    if beside && has_own { pool + SECOND_CONTEXT } else { pool }
}

/// What a device holds that takes part with nothing on it: `ggml_backend_cuda_device_get_memory`, which llama.cpp asks of every
/// device it may use, creates its context (`src/llama.cpp` `llama_prepare_model_devices`, b11434).
pub fn at_rest(device: &Device, n_ubatch: u32) -> Overhead {
    let known = overhead(device, n_ubatch);
    let source = format!("an empty context; {}", known.source).into();
    Overhead { loaded: known.idle, peak: known.idle, multiprocessors: None, source, ..known }
}

/// What is known without a measurement of the device itself.
fn tabled(device: &Device) -> Overhead {
    match device.backend {
        Backend::Cuda => {
            let named = || cards::named(device.description.as_deref()?).find(|card| card.is_nvidia());
            named().and_then(of_card).unwrap_or_else(|| UNKNOWN_CARD.clone())
        }
        Backend::Rocm | Backend::Vulkan | Backend::Musa | Backend::Sycl | Backend::Cann | Backend::Opencl => {
            fixed(DEFAULT, "default: no measurement of this device")
        }
        Backend::Metal => fixed(Bytes(0), "Metal: load logs show nothing beyond its buffers"),
        Backend::Rpc | Backend::Cpu => fixed(Bytes(0), "no context of its own in this process"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Calibration, Host, Machine};
    use crate::memory::forecast;
    use crate::run::{FlashAttn, LoadMode, SplitMode};

    #[test]
    fn every_backend_has_a_figure_and_a_known_card_its_own() {
        let device = |name: &str, description: &str| Device {
            description: Some(description.to_string()),
            ..Device::parse(&format!("{name}=24576M")).unwrap()
        };
        for (name, description, peak, multiprocessors) in [
            ("CUDA0", "NVIDIA H100 80GB HBM3", 705, Some(132)),
            ("CUDA0", "NVIDIA H200", 705, Some(132)),
            ("CUDA0", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 712, Some(188)),
            ("CUDA0", "NVIDIA P104-100", 152, Some(15)),
            ("CUDA0", "NVIDIA GeForce RTX 4090", 412 + 178, Some(128)),
            // The next larger of its generation is the 3090.
            ("CUDA0", "NVIDIA GeForce RTX 3080", 263 + 178, Some(68)),
            // No context of a Turing card is known.
            ("CUDA0", "Tesla T4", 712, Some(188)),
            ("CUDA0", "Something Else 9000", 712, Some(188)),
            ("ROCm0", "AMD Radeon RX 7900 XTX", 600, None),
            ("Vulkan0", "NVIDIA GeForce RTX 4090", 600, None),
            ("MTL0", "Apple M2 Ultra", 0, None),
            ("RPC0", "", 0, None),
        ] {
            let found = overhead(&device(name, description), 512);
            assert_eq!((found.peak, found.multiprocessors), (Bytes::mib(peak), multiprocessors), "{description}");
        }
        assert!(overhead(&Device::parse("CUDA0=24G").unwrap(), 512).source.starts_with("default: no measurement"));
        let stated = Device { overhead: Some(Bytes::mib(333)), ..device("RPC0", "") };
        assert_eq!(overhead(&stated, 512).peak, Bytes::mib(333));
    }

    #[test]
    fn what_was_measured_goes_before_the_table() {
        let mut device = Device::parse("CUDA0=24576M").unwrap();
        for (loaded, peak, expected) in [(580, Some(700), 700), (580, None, 712), (750, None, 750)] {
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

    #[test]
    fn a_measured_card_has_the_page_tables_of_each_launch() {
        let model = crate::synth::model("qwen3-30b-a3b", &crate::synth::Wish::default()).unwrap();
        let of = |n_gpu_layers: i32| {
            let peaks = [(512, Bytes::mib(700))].into();
            let calibration = Some(Calibration { loaded: Bytes::mib(600), peaks, ..Calibration::default() });
            let device = Device { calibration, ..Device::parse("CUDA0=24GiB").unwrap() };
            let machine = Machine::new(vec![device], Host::default()).unwrap();
            let run = RunConfig { n_ctx: 4096, n_gpu_layers, load_mode: LoadMode::None, ..RunConfig::default() };
            let forecast = forecast(&model, &machine, &run).unwrap();
            (forecast.memory["CUDA0"].overhead, forecast.memory["Host"].model)
        };
        for (overhead, pinned) in [of(99), of(24)] {
            assert_eq!(overhead, Bytes::mib(700) + Bytes(pinned.0 / 512));
        }
    }

    #[test]
    fn cards_that_share_every_tensor_hold_more_unless_it_is_stated() {
        let model = crate::synth::model("qwen3-30b-a3b", &crate::synth::Wish::default()).unwrap();
        let of = |stated: Option<Bytes>, split_mode| {
            let device = |name: &str| Device {
                description: Some("NVIDIA H200".to_string()),
                overhead: stated,
                ..Device::parse(&format!("{name}=24GiB")).unwrap()
            };
            let machine = Machine::new(vec![device("CUDA0"), device("CUDA1")], Host::default()).unwrap();
            let flash_attn = FlashAttn::On;
            let run = RunConfig { n_ctx: 4096, n_gpu_layers: 99, split_mode, flash_attn, ..RunConfig::default() };
            forecast(&model, &machine, &run).unwrap().memory["CUDA1"].overhead
        };
        let known = of(None, SplitMode::Tensor);
        assert!(known > TENSOR_SPLIT + Bytes::mib(705), "{known}");
        assert_eq!(of(Some(Bytes::mib(333)), SplitMode::Tensor), Bytes::mib(333));
    }
}
