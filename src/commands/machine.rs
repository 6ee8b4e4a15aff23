//! The flags that describe a machine, and what is found here without them. [I/O]

use std::path::PathBuf;

use anyhow::Context as _;

use super::read;
use crate::ask::machine::{Described, doubt_nodes};
use crate::bytes::Bytes;
use crate::evidence;
use crate::machine::{Backend, Device, DeviceSize, Host, Machine, cards};
use crate::number::counted;
use crate::report::page::devices::Devices;
use crate::runtime::{detect, machine_of, nvml};
use crate::suggest::Refusal;

/// How the machine is described; with nothing said, it is this one.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    #[command(flatten)]
    pub described: Described,
    /// Read the machine from FILE, written by `moeplan devices --json`.
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Memory to leave free on every device.
    #[arg(long, value_name = "SIZE")]
    pub margin: Option<Bytes>,
}

impl MachineArgs {
    /// Whether any flag says what the machine is.
    pub fn is_given(&self) -> bool {
        let Described { backend, budget, .. } = &self.described;
        let of_devices = backend.is_some() || !budget.is_empty() || self.margin.is_some();
        self.describes_devices() || self.described.describes_host() || of_devices
    }

    /// Whether flags say which devices there are; else they are found here.
    pub fn describes_devices(&self) -> bool {
        self.names_devices() || self.machine.is_some()
    }

    fn names_devices(&self) -> bool {
        let Described { vram, gpu, device, .. } = &self.described;
        !(vram.is_empty() && gpu.is_empty() && device.is_empty())
    }

    /// The flags that describe it.
    pub fn words(&self) -> Vec<String> {
        let file = self.machine.iter().flat_map(|path| ["--machine".to_string(), path.display().to_string()]);
        file.chain(self.described.words()).collect()
    }

    /// What is to stay free on every device: what was asked for, else what was measured of the devices calls for.
    pub fn margin(&self, machine: &Machine) -> Bytes {
        self.margin.unwrap_or_else(|| machine.margin())
    }

    /// What to say of main memory that nobody gave: that it is this computer's.
    pub fn notes(&self, machine: &Machine) -> Vec<String> {
        self.assumed(machine).into_iter().chain(self.left_out()).collect()
    }

    /// The devices that `--budget` gives nothing.
    fn left_out(&self) -> Option<String> {
        let budget = &self.described.budget;
        let is_out = |at: usize| budget.get(at).is_none_or(|size| size.bytes == Bytes(0));
        let devices = self.described.devices().unwrap_or_default();
        let name = |at: usize| devices.get(at).map_or_else(|| format!("device {at}"), |device| device.name.clone());
        let all = 0..devices.len().max(budget.len());
        let names: Vec<String> = all.filter(|at| !budget.is_empty() && is_out(*at)).map(name).collect();
        (!names.is_empty()).then(|| format!("note: --budget leaves out {}", names.join(", ")))
    }

    fn assumed(&self, machine: &Machine) -> Option<String> {
        let ram = machine.host.ram.filter(|_| self.described.ram.is_none() && self.machine.is_none())?;
        if !self.described.gpu.is_empty() && machine.is_unified() {
            return Some(format!(
                "note: {ram} is assumed to be all of that computer's memory; --ram SIZE gives another size"
            ));
        }
        Some(format!(
            "note: the host is assumed to be this computer, with its processor and {ram} of main memory; --ram SIZE describes another"
        ))
    }

    /// The machine they describe, or this one.
    pub fn machine(&self) -> anyhow::Result<Machine> {
        let mut machine = match &self.machine {
            Some(path) => {
                let file: Machine = serde_json::from_str(&read(path)?).with_context(|| {
                    format!("`{}` is not a machine file written by `moeplan devices --json`", path.display())
                })?;
                let is_replaced = !(self.described.gpu.is_empty() && self.described.device.is_empty());
                let devices = if is_replaced { self.described.devices()? } else { file.devices };
                let machine = Machine::new(devices, file.host)?;
                recognised(if is_replaced { machine } else { budgeted(machine, &self.described.vram)? })?
            }
            None => self.described()?,
        };
        self.described.describe(&mut machine.host)?;
        let machine = self.described.limited(machine)?;
        if let Some(margin) = self.margin
            && let Some(device) = machine.devices.iter().find(|device| device.total <= margin)
        {
            let message = format!("--margin {margin} leaves nothing of {} ({})", device.name, device.total);
            return Err(
                Refusal::new(message, "the margin is what stays free on every device: write for example 512M").into()
            );
        }
        Ok(machine)
    }

    /// From `--vram`, `--device` or `--backend cpu`; with none of them, what is found here.
    fn described(&self) -> anyhow::Result<Machine> {
        let Described { ram, cpu, backend, .. } = &self.described;
        // Other cards in this computer, unless its memory or its processor are another's.
        let is_here = ram.is_none() && cpu.is_none();
        let host = if self.describes_devices() && is_here { this_host()? } else { Host::default() };
        if self.names_devices() {
            let devices = self.described.devices()?;
            let host = if devices.iter().all(|device| may_be_in(device, &host)) { host } else { Host::default() };
            return recognised(Machine::new(devices, host)?);
        }
        if *backend == Some(Backend::Cpu) || ram.is_some() {
            return Ok(Machine::new(Vec::new(), host)?);
        }
        let mut here = found()?.machine;
        // What other programs hold is not there for a launch.
        for device in here.devices.iter_mut().filter(|device| device.free > Bytes(0)) {
            device.total = device.total.min(device.free);
        }
        Ok(here)
    }
}

/// The host of this computer; nothing is known of it where `MOEPLAN_HOST=unknown` says so, for answers that must not depend on where they
/// are given.
fn this_host() -> anyhow::Result<Host> {
    if std::env::var_os("MOEPLAN_HOST").is_some_and(|value| value == "unknown") {
        return Ok(Host::default());
    }
    Ok(found_with(detect::Devices { list: Vec::new(), driver: None, source: None })?.machine.host)
}

/// Whether a device may be in this computer: graphics without memory of their own are in the computer that has their name only, whose
/// main memory they use.
fn may_be_in(device: &Device, host: &Host) -> bool {
    match device.card().filter(|_| device.integrated) {
        _ if device.backend == Backend::Metal => cfg!(target_os = "macos"),
        Some(card) => host.processor.as_deref().is_some_and(|name| cards::named(name).next() == Some(card)),
        None => true,
    }
}

/// The machine with these budgets for its first devices, and no others; as it is without any.
fn budgeted(mut machine: Machine, budgets: &[DeviceSize]) -> anyhow::Result<Machine> {
    if !budgets.is_empty() {
        let (asked, known) = (budgets.len(), machine.devices.len());
        anyhow::ensure!(
            asked <= known,
            "--vram has {}, but the machine file describes {known} devices",
            counted(asked as u64, "size")
        );
        machine.devices.truncate(asked);
        for (device, budget) in machine.devices.iter_mut().zip(budgets) {
            device.limit(budget.bytes);
        }
    }
    Ok(machine)
}

pub fn found() -> anyhow::Result<Devices> {
    found_with(detect::devices(detect::server().ok().as_deref()))
}

/// What is here, with the devices that were detected.
pub fn found_with(devices: detect::Devices) -> anyhow::Result<Devices> {
    let facts = detect::host();
    let mut machine = machine_of(&devices.list);
    let (ram, isa, cores, threads) = (facts.ram, facts.isa, facts.cores, facts.threads);
    let (windows, processor) = (cfg!(windows), facts.processor.clone());
    machine.host = Host { ram, windows, isa, cores, threads, processor, ..Host::default() };
    doubt_nodes(&mut machine.host, facts.nodes);
    super::devices::apply_own(&mut machine);
    evidence::calibrate(&mut machine, &evidence::store::read(), devices.driver.as_deref());
    let here = Devices::from(Machine::new(machine.devices, machine.host)?);
    let (driver, source) = (devices.driver, devices.source);
    Ok(Devices { driver, source, available: facts.available, processor: facts.processor, ..here })
}

/// A card that is described and is here: what was measured of it and of this host holds, whatever budget it is given.
fn recognised(machine: Machine) -> anyhow::Result<Machine> {
    let list = nvml::listed();
    if list.is_empty() {
        return Ok(machine);
    }
    let here = found_with(detect::Devices { list, driver: nvml::driver(), source: None })?;
    Ok(with_known(machine, &here.machine))
}

/// What is known of the devices of `here`, for those of `machine` that are the same: the name, no other description, and no
/// more memory than is there. What other programs use of such a card now is not part of its budget, and one that was described by the size
/// on its box has the memory that it has. A host of which nothing is said is then this one.
fn with_known(mut machine: Machine, here: &Machine) -> Machine {
    let mut is_here = false;
    for device in &mut machine.devices {
        let same = |other: &&Device| {
            other.name == device.name
                && other.total >= device.total
                && device.description.as_ref().is_none_or(|name| other.description.as_ref() == Some(name))
        };
        let Some(card) = here.devices.iter().find(same) else { continue };
        let sold =
            |gb| cards::named(card.description.as_deref()?).find(|card| card.sold.iter().any(|sold| sold.gb == gb));
        if device.sold_as.and_then(sold).is_some() {
            device.limit(card.total);
        }
        if card.free > Bytes(0) && card.free < device.total {
            device.limit(card.free);
        }
        device.description = device.description.take().or_else(|| card.description.clone());
        device.calibration = device.calibration.take().or_else(|| card.calibration.clone());
        device.rates = device.rates.take().or_else(|| card.rates.clone());
        device.integrated = card.integrated;
        is_here = true;
    }
    if is_here && machine.host == Host::default() {
        machine.host = here.host.clone();
    }
    machine
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Calibration, HostRates, Isa};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        machine: MachineArgs,
    }

    fn machine(devices: &[&str]) -> Machine {
        let devices = devices.iter().map(|text| Device::parse(text).unwrap()).collect();
        Machine::new(devices, Host::default()).unwrap()
    }

    #[test]
    fn budgets_are_for_the_first_devices_of_a_machine_file() {
        let file = machine(&["CUDA0=80M", "CUDA1=40M"]);
        let size = DeviceSize { bytes: Bytes::mib(8), sold_as: Some(24) };
        assert_eq!(budgeted(file.clone(), &[]).unwrap(), file);
        let one = budgeted(file.clone(), &[size]).unwrap();
        assert_eq!(one.devices.iter().map(|device| device.total).collect::<Vec<_>>(), [Bytes::mib(8)]);
        assert!(budgeted(file, &[size; 3]).unwrap_err().to_string().contains("describes 2 devices"));
    }

    #[test]
    fn what_is_known_of_a_card_holds_for_a_budget_of_it_and_for_no_other() {
        let mut here = machine(&["CUDA0=24126M", "CUDA1=24126M"]);
        for device in &mut here.devices {
            device.description = Some("NVIDIA GeForce RTX 3090".to_string());
            device.calibration = Some(Calibration { margin: Bytes(7), ..Calibration::default() });
        }
        let mut asked = machine(&["CUDA0=50M", "CUDA1=24127M", "CUDA2=10M"]);
        let known = |machine: Machine| -> Vec<bool> {
            with_known(machine, &here).devices.iter().map(|device| device.calibration.is_some()).collect()
        };
        assert_eq!(known(asked.clone()), [true, false, false]);
        asked.devices[0].description = Some("another card".to_string());
        assert_eq!(known(asked), [false, false, false]);
        // It has what is free of it, and the memory of a card of the size on its box.
        for (free, budget, expected) in [
            (24_126, "CUDA0=24G", 24_126),
            (24_126, "CUDA0=8192M", 8192),
            (4000, "CUDA0=24G", 4000),
            (4000, "CUDA0=8192M", 4000),
            (4000, "CUDA0=8G", 4000),
        ] {
            here.devices[0].free = Bytes::mib(free);
            let device = with_known(machine(&[budget]), &here).devices.remove(0);
            assert_eq!((device.total, device.sold_as), (Bytes::mib(expected), None), "{budget}");
        }
    }

    #[test]
    fn a_processor_and_memory_by_name_are_the_host() {
        let host = |cpu: Option<&str>, cores, ram: &str| {
            let (cpu, ram) = (cpu.map(str::to_string), Some(ram.parse().unwrap()));
            let vram = vec!["24G".parse().unwrap()];
            Described { vram, ram, cpu, cores, ..Described::default() }.machine().map(|machine| machine.host)
        };
        let named = host(Some("Ryzen 7950X"), None, "64G").unwrap();
        assert_eq!((named.cores, named.threads, named.isa), (Some(16), Some(32), Isa::X86Avx512));
        let rates = |host: &Host| crate::speed::prices::host_rates(host);
        assert!((rates(&named).memory - 83.2 * 0.6).abs() < 1e-9);
        let faster = host(Some("Ryzen 7950X"), Some(8), "64G@ddr5-6000x2").unwrap();
        assert_eq!((faster.cores, faster.threads), (Some(8), None));
        assert!((rates(&faster).memory - 96.0 * 0.6).abs() < 1e-9);
        assert_eq!(rates(&faster).basis, "table: Ryzen 7950X and what you gave");
        let mut calibrated = Host { rates: Some(HostRates { by_thread: 7.0, ..rates(&named) }), ..Host::default() };
        let args = Described { memory_bandwidth: Some(100.0), ..Described::default() };
        args.describe(&mut calibrated).unwrap();
        assert_eq!((rates(&calibrated).memory, rates(&calibrated).by_thread), (60.0, 7.0));
        // What a desktop has of channels is known; a server may have fewer modules than channels.
        for (cpu, ram, note) in [
            ("Ryzen 7950X", "64G@ddr5-6000", None),
            ("Ryzen 5600", "32G@ddr4-3600", None),
            ("EPYC 9374F", "512G@ddr5-4800", Some("12 channels are assumed; for 2, write @ddr5-4800x2")),
        ] {
            assert_eq!(host(Some(cpu), None, ram).unwrap().note.as_deref(), note, "{cpu}");
        }
        let given = host(Some("EPYC 7763"), None, "64G@ddr4-3200x8").unwrap();
        assert_eq!(rates(&given).memory.to_string(), "81.92");
        // What is not known is said, and what was probably meant.
        for (name, cores, expected) in [
            ("Ryzen 99", None, Some(("no processor of that name is known", "--cores N describes another"))),
            (
                "Ryzen 9999",
                None,
                Some(("only its family Ryzen 9xxx", "--cpu 'Ryzen 9999' --cores N takes the family's figures")),
            ),
            ("ryzen5600", None, Some(("no processor of that name is known", "did you mean `ryzen 5600`"))),
            ("Ryzen 9999", Some(12), None),
            ("M4 Max", None, None),
        ] {
            let refused = host(Some(name), cores, "64G").err().map(|error| (error.message, error.hint));
            assert_eq!(refused.is_some(), expected.is_some(), "{name}");
            if let Some(((message, hint), (said, tried))) = refused.zip(expected) {
                assert!(message.contains(name) && message.contains(said) && hint.contains(tried), "{message} {hint}");
            }
        }
        let family = host(Some("Ryzen 9999"), Some(12), "64G").unwrap();
        assert_eq!(rates(&family).basis, "table: Ryzen 9999, by its family Ryzen 9xxx");
        assert_eq!(host(Some("M4 Max"), None, "64G").unwrap().isa, Isa::ArmNeon);
    }

    #[test]
    fn graphics_without_memory_of_their_own_have_a_part_of_main_memory_and_never_that_of_this_computer() {
        let of = |gpu: &str, ram: Option<&str>, backend| {
            let (gpu, ram) = (vec![gpu.to_string()], ram.map(|ram| ram.parse().unwrap()));
            let args = MachineArgs {
                described: Described { gpu, ram, backend, ..Described::default() },
                ..MachineArgs::default()
            };
            let gib = |bytes: Bytes| bytes.0 >> 30;
            let here = args.machine().map(|machine| (gib(machine.devices[0].total), machine.host.ram.map(gib)));
            // The same where nothing else is known, as in a browser.
            let there =
                args.described.machine().map(|machine| (gib(machine.devices[0].total), machine.host.ram.map(gib)));
            assert_eq!(here.as_ref().ok(), there.as_ref().ok());
            there.map_err(|error| error.message + " " + &error.hint)
        };
        for (gpu, ram, total, main) in [
            ("M4 Max", Some("64G"), 48, 64),
            ("M4 Max=56G", Some("64G"), 56, 64),
            ("M4 Max=64G", None, 48, 64),
            ("M2=24G", None, 16, 24),
            ("8060S", Some("128G"), 64, 128),
            ("8060S=96G", Some("128G"), 96, 128),
            ("8060S=96G", None, 48, 96),
            ("DGX Spark", Some("128G"), 119, 128),
        ] {
            assert_eq!(of(gpu, ram, None), Ok((total, Some(main))), "{gpu} {ram:?}");
        }
        assert_eq!(of("8060S=96G", Some("128G"), Some(Backend::Vulkan)), Ok((96, Some(128))));
        assert!(
            of("M4 Max", None, None).is_err_and(|error| error.contains("--ram SIZE") && error.contains("M4 MAX=SIZE"))
        );
        assert!(of("M4 Max=64G", Some("48G"), None).is_err_and(|error| error.contains("more than the 48.00 GiB")));
    }

    #[test]
    fn cards_in_place_of_those_of_a_machine_file_keep_its_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.json");
        let file = Machine {
            host: Host { ram: Some(Bytes::mib(9)), cores: Some(7), ..Host::default() },
            ..machine(&["CUDA0=80M"])
        };
        std::fs::write(&path, serde_json::to_string(&file).unwrap()).unwrap();
        let described = Described { gpu: vec!["2x RTX 3090".to_string()], ..Described::default() };
        let other = MachineArgs { described, machine: Some(path), ..MachineArgs::default() }.machine().unwrap();
        assert_eq!((other.devices.len(), &other.host), (2, &file.host));
    }

    #[test]
    fn a_machine_in_words_reads_back() {
        for words in [
            "--vram 24G,12GiB,24GB,23.5G --backend vulkan --ram 64G@ddr5-6000x2 --cores 8",
            "--gpu RTX_4090,RTX_3090=24G --budget 20G,1000B --cpu Ryzen_7950X --memory-bandwidth 83.2",
            "--device CUDA0=24G --device RPC0[a:1]=8M --ram 63M",
            "--machine h100.json --vram 8G",
            "--machine h100.json --gpu 2x_RTX_4090",
        ] {
            let of = |words: Vec<String>| {
                let words = std::iter::once("x".to_string()).chain(words);
                <Line as clap::Parser>::parse_from(words).machine
            };
            let typed = of(words.split(' ').map(|word| word.replace('_', " ")).collect());
            let again = of(typed.words());
            assert_eq!(format!("{again:?}"), format!("{typed:?}"), "{words}");
        }
    }

    #[test]
    fn several_numa_nodes_are_less_certain() {
        let of = |nodes| {
            let mut host = Host { processor: Some("AMD EPYC 9654 96-Core Processor".into()), ..Host::default() };
            let before = crate::speed::prices::host_rates(&host);
            doubt_nodes(&mut host, nodes);
            (before, crate::speed::prices::host_rates(&host), host.note)
        };
        let (before, one, note) = of(1);
        assert_eq!((before.uncertainty_tg, note), (one.uncertainty_tg, None));
        let (before, two, note) = of(2);
        assert_eq!((before.memory, before.basis), (two.memory, two.basis));
        assert!(two.uncertainty_tg > before.uncertainty_tg && note.unwrap().contains("2 NUMA nodes"));
    }

    #[test]
    fn sockets_add_up_and_are_less_certain() {
        let of = |words: &[&str]| {
            let words = std::iter::once("x").chain(words.iter().copied()).map(str::to_string);
            <Line as clap::Parser>::parse_from(words).machine.machine().unwrap().host
        };
        let one = of(&["--vram", "24G", "--ram", "256G", "--cpu", "EPYC 9654"]);
        assert!(one.note.is_none() && one.rates.is_none());
        let rates = crate::speed::prices::host_rates(&one);
        for name in ["2x EPYC 9654", "EPYC 9654 x2", "dual EPYC 9654", "2xEPYC9654"] {
            let two = of(&["--vram", "24G", "--ram", "256G", "--cpu", name]);
            assert_eq!([two.cores, two.threads], [one.cores, one.threads].map(|count| count.map(|count| 2 * count)));
            let both = crate::speed::prices::host_rates(&two);
            assert!((both.memory - 2.0 * rates.memory).abs() < 1e-9 && both.uncertainty_tg > rates.uncertainty_tg);
            assert_eq!(both.basis, "table: 2x EPYC 9654, the memory of all sockets together");
            assert!(two.note.unwrap().contains("--numa"));
        }
        let given = of(&["--vram", "24G", "--ram", "256G", "--cpu", "2x EPYC 9654", "--memory-bandwidth", "300"]);
        let given = crate::speed::prices::host_rates(&given);
        assert!(given.memory < rates.memory && given.basis.ends_with(" and what you gave"), "{}", given.basis);
        // A model's number is no count.
        assert_eq!(of(&["--vram", "24G", "--ram", "64G", "--cpu", "5900X"]).cores, Some(12));
    }

    #[test]
    fn devices_without_a_budget_are_named() {
        let of = |words: &str| {
            let words = std::iter::once("x").chain(words.split(' ')).map(str::to_string);
            <Line as clap::Parser>::parse_from(words).machine.left_out()
        };
        let out = |names: &str| Some(format!("note: --budget leaves out {names}"));
        assert_eq!(of("--vram 24G,24G,24G --budget 24G,0,8G"), out("CUDA1"));
        assert_eq!(of("--vram 24G,24G,24G --budget 24G"), out("CUDA1, CUDA2"));
        assert_eq!(of("--budget 0,24G"), out("device 0"));
        assert_eq!(of("--vram 24G,24G --budget 24G,8G"), None);
        assert_eq!(of("--vram 24G,24G"), None);
    }

    #[test]
    fn main_memory_that_nobody_gave_is_said_to_be_this_computers() {
        let ram = Some(Bytes::mib(64));
        let of = |ram| Machine { host: Host { ram, ..Host::default() }, ..machine(&[]) };
        assert!(MachineArgs::default().assumed(&of(ram)).is_some_and(|note| note.contains("64.00 MiB")));
        assert_eq!(MachineArgs::default().assumed(&of(None)), None);
        for args in [
            MachineArgs {
                described: Described { ram: ram.map(Bytes::into), ..Described::default() },
                ..MachineArgs::default()
            },
            MachineArgs { machine: Some("h100.json".into()), ..MachineArgs::default() },
        ] {
            assert_eq!(args.assumed(&of(ram)), None);
        }
    }
}
