//! Rates of devices and hosts that nobody has measured: by a device's name, else by its size; a guess that says so.

use crate::gguf::source::url::is_this_computer;
use crate::machine::cards::{self, Figures};
use crate::machine::{Backend, Device, DeviceRates, Host, HostRates, Isa};

/// How far off predictions by name may well be: drivers, clocks and hosts differ.
const NAMED: f64 = 0.4;
const GUESSED: f64 = 0.6;
/// The same of another computer over a network.
const REMOTE: f64 = 0.8;

/// The rates of a device by its description, else by its backend and size.
pub fn device(device: &Device) -> DeviceRates {
    let named = || cards::named(device.description.as_deref()?).find_map(|card| Some((card.words, card.figures?)));
    let card = match named() {
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
/// Shares of the bandwidth: weights 0.7 and caches 0.5 of it, as far as published decode speeds of MoE models tell; copies from pinned
/// memory 0.8 of the slot's rate; mapped files are copied through a buffer by one core of the host, at 0.35 of it and 10 GB/s at most.
/// Waits: measured on one H100, alike elsewhere as far as known.
fn derived(figures: Figures, backend: Backend, uncertainty: f64, basis: String) -> DeviceRates {
    // Vulkan and Metal have no kernels for the tensor units of most cards in products by expert.
    let less = if backend == Backend::Vulkan { 0.6 } else { 1.0 };
    let unified = backend == Backend::Metal;
    DeviceRates {
        weights: figures.bandwidth * 0.7,
        products: figures.products * less,
        attention: figures.products * less,
        cache: figures.bandwidth * 0.5,
        op: figures.op,
        graph: 200.0,
        pinned: figures.link * 0.8,
        pageable: if unified { figures.link * 0.8 } else { (figures.link * 0.35).min(10.0) },
        offload: 20.0,
        switch: if unified { 60.0 } else { 30.0 },
        uncertainty,
        basis,
    }
}

/// A class of cards by memory, for `--vram 24G`.
fn class(device: &Device) -> (Figures, &'static str) {
    let gib = device.sold_as.map_or(device.total.0 >> 30, u64::from);
    let row = |bandwidth, products, link, op| Figures { bandwidth, products, link, op };
    if device.backend == Backend::Metal {
        return match gib {
            0..32 => (row(200.0, 3.0, 100.0, 7.0), "an Apple device of its size"),
            32..100 => (row(400.0, 7.0, 200.0, 6.0), "an Apple device of its size"),
            _ => (row(800.0, 12.0, 400.0, 6.0), "an Apple device of its size"),
        };
    }
    match gib {
        0..9 => (row(360.0, 10.0, 16.0, 4.0), "a usual card of up to 8 GiB"),
        9..14 => (row(450.0, 15.0, 32.0, 4.0), "a usual card of 12 GiB"),
        14..20 => (row(600.0, 25.0, 32.0, 3.5), "a usual card of 16 GiB"),
        20..28 => (row(950.0, 28.0, 32.0, 3.5), "a usual card of 24 GiB"),
        28..40 => (row(1500.0, 60.0, 64.0, 3.0), "a usual card of 32 GiB"),
        40..60 => (row(850.0, 28.0, 32.0, 4.0), "a usual card of 48 GiB"),
        _ => (row(2000.0, 70.0, 64.0, 5.0), "a usual card of 80 GiB and more"),
    }
}

/// A card of another computer, behind a network of 1 Gbit/s as nothing else is known.
fn behind_network(card: &DeviceRates) -> DeviceRates {
    let basis = format!("{} behind 1 Gbit/s; calibrate to know", card.basis);
    DeviceRates {
        graph: 1000.0,
        pinned: 0.11,
        pageable: 0.11,
        offload: 300.0,
        switch: 500.0,
        uncertainty: REMOTE,
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

/// The rates of a host by its cores and its instruction set.
///
/// Memory: 2 channels behind up to 16 cores, 8 behind more. A thread: measured on a Sapphire Rapids (6 GB/s of `q4_K` in products
/// with one row, 21 GFLOP/s in micro-batches, which is about the same speed), less with narrower units.
pub fn host(host: &Host) -> HostRates {
    let cores = host.cores.unwrap_or(super::work::GUESSED_CORES);
    let memory = match cores {
        0..=4 => 30.0,
        5..=16 => 50.0,
        _ => 150.0,
    };
    let (by_thread, products) = match host.isa {
        Isa::X86Avx512 | Isa::X86Amx => (6.0, 21.0),
        Isa::X86Avx2 => (5.0, 17.0),
        Isa::ArmNeon => (6.0, 25.0),
        Isa::Generic => (1.5, 5.0),
    };
    let known = host.cores.map_or_else(|| format!("{cores} cores assumed"), |n| format!("{n} cores"));
    let basis = format!("guess: a host of {known}");
    HostRates { memory, by_thread, products, op: 8.0, disk: 2.0, uncertainty: GUESSED, basis }
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
            ("NVIDIA GeForce RTX 4070 SUPER", "table: RTX 4070"),
            ("Something Else 9000", "guess: a usual card of 24 GiB"),
        ] {
            assert_eq!(device(&described(description)).basis, basis, "{description}");
        }
        let parsed = |text| device(&Device::parse(text).unwrap());
        let elsewhere = parsed("RPC0[10.0.0.2:1]=24G");
        assert_eq!(elsewhere.basis, "guess: a usual card of 24 GiB behind 1 Gbit/s; calibrate to know");
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
