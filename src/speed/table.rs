//! Rates of devices and hosts that nobody has measured: by a device's name, else by its size; a guess that says so.

use crate::gguf::source::url::is_this_computer;
use crate::machine::cards::{self, Figures};
use crate::machine::processors;
use crate::machine::{Backend, Device, DeviceRates, Host, HostRates, Isa};

/// How far off predictions by name, and by size alone, may well be, of prompts and of generation: four of five published ones are not
/// farther off.
const NAMED: [f64; 2] = [0.36, 0.35];
const GUESSED: [f64; 2] = [0.5, 0.4];
/// The same of another computer over a network.
const REMOTE: [f64; 2] = [0.8, 0.8];

/// The figures of the row that a device's description names.
pub fn figures(device: &Device) -> Option<Figures> {
    named(device).map(|(_, figures)| figures)
}

fn named(device: &Device) -> Option<(&'static str, Figures)> {
    let rows = cards::named(device.description.as_deref()?);
    rows.into_iter().find_map(|card| Some((card.words, card.figures?))).filter(|_| !is_software(device))
}

/// The rates of a device by its description, else by its backend and size.
pub fn device(device: &Device) -> DeviceRates {
    let card = match named(device) {
        _ if is_software(device) => return software(),
        Some((words, figures)) => derived(figures, device.backend, NAMED, format!("table: {}", words.to_uppercase())),
        None => {
            let (figures, class) = class(device);
            derived(figures, device.backend, GUESSED, format!("guess: {class}"))
        }
    };
    if device.backend == Backend::Rpc { behind_network(&card) } else { card }
}

/// Whether a device is a server on this computer, where it has no address one that moeplan starts: those stand for cards where
/// there are none, on the processor.
fn is_software(device: &Device) -> bool {
    device.backend == Backend::Rpc && device.endpoint().is_none_or(is_this_computer)
}

/// What llama.cpp gets out of data-sheet figures.
///
/// Of the bandwidth, caches get a share of 0.4; weights get 0.97 of it where it is small, and the less the wider memory is, since the
/// matrices of one token do not fill it: as far as published decode speeds of MoE models and two H100 tell. Of the slot's rate
/// copies from pinned memory 0.85, and from mapped files 0.8, which one core of the host copies through a buffer: 30 GB/s at most.
/// Attention: 1.2 times the products of a named CUDA card (an RTX 3090 at 55 TFLOP/s 32,768 tokens deep, llama.cpp pull request 17505),
/// twice elsewhere as far as is known; the products of a class are those of its slower cards. Waits: measured on one H100, alike elsewhere as
/// far as known.
fn derived(figures: Figures, backend: Backend, uncertainty: [f64; 2], basis: String) -> DeviceRates {
    // Vulkan's kernels for products by expert are a little slower than the maker's own.
    let products = if backend == Backend::Vulkan { 0.8 * figures.products } else { figures.products };
    let unified = backend == Backend::Metal;
    DeviceRates {
        weights: figures.bandwidth * 0.97 / (1.0 + figures.bandwidth / FILLED),
        products: WIDE * products,
        attention: if backend == Backend::Cuda && uncertainty == NAMED { 1.2 } else { 2.0 } * products,
        cache: figures.bandwidth * 0.4,
        op: figures.op,
        graph: 200.0,
        pinned: copies(figures.link, unified)[0],
        pageable: copies(figures.link, unified)[1],
        offload: 20.0,
        switch: if unified { 60.0 } else { 30.0 },
        uncertainty: uncertainty[0].max(uncertainty[1]),
        uncertainty_pp: uncertainty[0],
        uncertainty_tg: uncertainty[1],
        basis,
    }
}

/// What copies get out of a slot, GB/s: from pinned memory, and from mapped files.
fn copies(slot: f64, unified: bool) -> [f64; 2] {
    [slot * 0.85, if unified { slot * 0.8 } else { (slot * 0.8).min(30.0) }]
}

/// The device in a slot of so many GB/s, where that is slower than what is known of it.
pub fn in_slot(device: &mut Device, slot: f64) {
    if device.integrated {
        return;
    }
    let [pinned, pageable] = copies(slot, false);
    let mut rates = super::prices::device_rates(device);
    if pinned < rates.pinned {
        rates.basis += ", except the slot";
    }
    (rates.pinned, rates.pageable) = (rates.pinned.min(pinned), rates.pageable.min(pageable));
    device.rates = Some(rates);
}

/// The rate of products without what the ends of rows cost (`work.rs` `ROW_REST`), by that of the table, which is of rows of some
/// 1,500 elements.
const WIDE: f64 = 1.4;

/// GB/s of which the matrices of one token fill half.
const FILLED: f64 = 4000.0;

/// A class of cards by memory and backend, for `--vram 24G`: what is sold with that size.
fn class(device: &Device) -> (Figures, &'static str) {
    let gib = device.sold_as.map_or(device.total.0 >> 30, u64::from);
    let row = |bandwidth, products, link, op| Figures { bandwidth, products, link, op };
    let integrated = "an integrated GPU of its size";
    match (device.backend, gib) {
        (Backend::Metal, 0..32) => (row(200.0, 4.0, 100.0, 7.5), "an Apple device of its size"),
        (Backend::Metal, 32..100) => (row(400.0, 9.0, 200.0, 7.5), "an Apple device of its size"),
        (Backend::Metal, _) => (row(800.0, 20.0, 400.0, 7.5), "an Apple device of its size"),
        (Backend::Cuda, _) if device.integrated => (row(273.0, 35.0, 200.0, 2.5), integrated),
        // Of a DGX Spark's, a Strix Halo's, and a laptop's.
        (_, 40..) if device.integrated => (row(256.0, 18.0, 200.0, 4.0), integrated),
        (_, _) if device.integrated => (row(120.0, 3.0, 60.0, 6.0), integrated),
        // Most cards of other makers run by Vulkan are AMD's.
        (Backend::Rocm | Backend::Vulkan, 0..9) => (row(280.0, 5.0, 16.0, 4.5), "a typical card of up to 8 GiB"),
        (Backend::Rocm | Backend::Vulkan, 9..14) => (row(400.0, 6.0, 32.0, 4.5), "a typical card of 12 GiB"),
        (Backend::Rocm | Backend::Vulkan, 14..20) => (row(600.0, 22.0, 32.0, 4.0), "a typical card of 16 GiB"),
        (Backend::Rocm | Backend::Vulkan, 20..24) => (row(800.0, 42.0, 32.0, 4.0), "a typical card of 20 GiB"),
        (Backend::Rocm | Backend::Vulkan, 24..28) => (row(960.0, 48.0, 32.0, 4.0), "a typical card of 24 GiB"),
        (Backend::Rocm | Backend::Vulkan, 28..40) => (row(640.0, 38.0, 32.0, 4.0), "a typical card of 32 GiB"),
        (Backend::Rocm | Backend::Vulkan, 40..60) => (row(864.0, 44.0, 32.0, 4.0), "a typical card of 48 GiB"),
        (Backend::Rocm | Backend::Vulkan, 60..140) => (row(256.0, 18.0, 200.0, 4.0), integrated),
        (Backend::Rocm | Backend::Vulkan, _) => (row(5300.0, 75.0, 64.0, 4.5), "a card of 192 GiB"),
        (_, 0..9) => (row(360.0, 14.0, 16.0, 2.6), "a typical card of up to 8 GiB"),
        (_, 9..14) => (row(450.0, 22.0, 32.0, 2.6), "a typical card of 12 GiB"),
        (_, 14..20) => (row(600.0, 36.0, 32.0, 2.3), "a typical card of 16 GiB"),
        (_, 20..28) => (row(950.0, 50.0, 32.0, 2.3), "a typical card of 24 GiB"),
        (_, 28..40) => (row(1500.0, 80.0, 64.0, 2.0), "a typical card of 32 GiB"),
        (_, 40..60) => (row(850.0, 40.0, 32.0, 2.5), "a typical card of 48 GiB"),
        (_, 60..110) => (row(1800.0, 70.0, 64.0, 2.5), "a typical card of 80 GiB or more"),
        (_, 110..132) => (row(273.0, 35.0, 200.0, 2.5), integrated),
        (_, _) => (row(4800.0, 110.0, 64.0, 2.5), "a typical card of 140 GiB and more"),
    }
}

/// A card of another computer, behind a network of 1 Gbit/s as nothing else is known.
fn behind_network(card: &DeviceRates) -> DeviceRates {
    let basis = format!("{} behind 1 Gbit/s; calibrate to be sure", card.basis);
    DeviceRates {
        graph: 1000.0,
        pinned: 0.11,
        pageable: 0.11,
        offload: 300.0,
        switch: 500.0,
        uncertainty: REMOTE[0],
        uncertainty_pp: REMOTE[0],
        uncertainty_tg: REMOTE[1],
        basis,
        ..card.clone()
    }
}

/// A server on this computer's processor, reached through the loopback interface.
fn software() -> DeviceRates {
    let figures = Figures { bandwidth: 43.0, products: 0.5, link: 0.0, op: 10.0 };
    let processor = derived(figures, Backend::Cpu, REMOTE, "guess: a processor as a device".to_string());
    DeviceRates { basis: processor.basis.clone(), ..behind_network(&processor) }
}

/// Up to so much main memory has two channels, GB/s of its data sheet; more has four to twelve.
const TWO_CHANNELS: f64 = 130.0;

/// What llama.cpp gets out of main memory of so many GB/s by its data sheet: small experts keep few channels busy. To the MB/s, as
/// people read it.
pub fn memory(data_sheet: f64) -> f64 {
    (data_sheet * if data_sheet <= TWO_CHANNELS { 600.0 } else { 400.0 }).round() / 1000.0
}

/// The rates of a host by its processor's name, else by its cores and its instruction set.
///
/// A thread: 12 GB/s of `q4_K` in products with one row and 42 GFLOP/s in micro-batches with AVX2, more with wider units, as published
/// runs on desktops tell; memory keeps a host from more than a part of that.
pub fn host(host: &Host) -> HostRates {
    let known = host.processor.as_deref().map(processors::named).unwrap_or_default();
    let cores = host.cores.unwrap_or(super::work::GUESSED_CORES);
    let guessed = match cores {
        0..=4 => 30.0,
        5..=24 => 48.0,
        _ => 120.0,
    };
    let (by_thread, products) = match host.isa {
        Isa::X86Avx512 | Isa::X86Amx => (14.0, 52.0),
        Isa::X86Avx2 => (12.0, 42.0),
        Isa::ArmNeon => (14.0, 60.0),
        Isa::Generic => (3.5, 12.0),
    };
    let (named, about) = match (&host.processor, host.cores) {
        (Some(name), _) if known.memory.is_some() => {
            let family = known.family.map(processors::shown);
            let family = family.map_or(String::new(), |family| format!(", by its family {family}"));
            (true, format!("table: {name}{family}"))
        }
        (_, Some(n)) => (false, format!("guess: host with {n} cores")),
        (_, None) => (false, format!("guess: host with {cores} cores (assumed)")),
    };
    let [uncertainty_pp, uncertainty_tg] = if named { NAMED } else { GUESSED };
    HostRates {
        memory: known.memory.map_or(guessed, memory),
        by_thread,
        products: known.products.unwrap_or(products),
        op: 4.0,
        serial: 0.35,
        disk: 2.0,
        uncertainty: uncertainty_pp.max(uncertainty_tg),
        uncertainty_pp,
        uncertainty_tg,
        basis: about,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(description: &str) -> Device {
        Device { description: Some(description.into()), ..Device::parse("CUDA0=24G").unwrap() }
    }

    #[test]
    fn names_as_drivers_print_them_and_servers_by_where_they_are() {
        for (description, basis) in [
            ("NVIDIA GeForce RTX 3060 Ti", "table: RTX 3060 TI"),
            ("NVIDIA GeForce RTX 3060", "table: RTX 3060"),
            ("NVIDIA H100 80GB HBM3", "table: H100"),
            ("NVIDIA H100 PCIe", "table: H100 PCIE"),
            ("AMD Radeon RX 7900 XTX", "table: 7900 XTX"),
            ("Apple M2 Ultra", "table: M2 ULTRA"),
            ("NVIDIA GeForce RTX 4070 SUPER", "table: RTX 4070 SUPER"),
            ("NVIDIA GB10", "table: GB10"),
            ("Something Else 9000", "guess: a typical card of 24 GiB"),
        ] {
            assert_eq!(device(&described(description)).basis, basis, "{description}");
        }
        let parsed = |text| device(&Device::parse(text).unwrap());
        // Main memory is not as fast as a card's of that size.
        let [shared, card] = ["Vulkan0=16G,shared", "Vulkan0=16G"].map(parsed);
        assert!(shared.weights * 2.0 < card.weights, "{} {}", shared.basis, card.basis);
        let elsewhere = parsed("RPC0[10.0.0.2:1]=24G");
        assert_eq!(elsewhere.basis, "guess: a typical card of 24 GiB behind 1 Gbit/s; calibrate to be sure");
        for server in ["RPC0[127.0.0.1:1]=24G", "RPC0[localhost:50052]=24G", "RPC0[[::1]:1]=24G", "RPC0=24G"] {
            let here = parsed(server);
            assert!(here.weights * 10.0 < elsewhere.weights, "{server}");
            assert_eq!(here.basis, "guess: a processor as a device", "{server}");
        }
        // What is known less is less certain.
        let (unknown, known) = (parsed("CUDA0=24G"), device(&described("NVIDIA GeForce RTX 3090")));
        assert!(known.uncertainty < unknown.uncertainty && unknown.uncertainty < elsewhere.uncertainty);
    }
}
