//! A machine in the words of the flags that describe one.

use serde::Deserialize;

use crate::bytes::Bytes;
use crate::machine::processors::{self, Processor};
use crate::machine::{
    Backend, Device, DeviceSize, Error, GpuName, Host, HostRates, Machine, Ram, Slot, cards, possible,
};
use crate::speed::{prices, table};
use crate::suggest::{Hint as _, Refusal, did_you_mean, one_of};

/// A machine, by its devices and host: `{"gpu": ["RTX 4090"], "ram": "64G@ddr5-6000x2"}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[cfg_attr(feature = "cli", command(next_help_heading = "Machine"))]
#[serde(default, deny_unknown_fields)]
pub struct Described {
    /// Memory of each device, in order: 24G,12G.
    ///
    /// A whole number of G or GB is the size that a card is sold with; what an idle system holds of it is subtracted. 24GiB, 23.5G and
    /// 24576M are exact. With --machine, the sizes are exact budgets for its first devices, and the others stay unused.
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE,…", value_delimiter = ','))]
    pub vram: Vec<DeviceSize>,
    /// One device, by llama.cpp's name: CUDA0=24G, SYCL0=12G, `RPC0[HOST:PORT]=8G`; `Vulkan0=96G,shared` uses main memory.
    ///
    /// Repeat the option for each device.
    #[cfg_attr(feature = "cli", arg(long, value_name = "NAME=SIZE", conflicts_with = "vram"))]
    pub device: Vec<String>,
    /// Cards by name, with their real memory and speed: "RTX 4090", "3090=23G".
    ///
    /// Repeat the option, or separate cards with commas; '4x NAME' is four cards. `moeplan devices --known` lists the names. Write
    /// 'NAME=SIZE' if the card is sold with several sizes, or if its memory is not known; a size below these, '3060=10G', is so many GiB
    /// of the card. For graphics that use main memory ("M4 Max",
    /// "Strix Halo"), SIZE is how much of --ram they may take.
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with_all = ["vram", "device"])
    )]
    pub gpu: Vec<String>,
    /// PCIe of the cards' slots, in order: 4x8,3x4 (generation and lanes) [default: what each card was sold with].
    ///
    /// Experts in main memory are copied through the slot for prompts.
    #[cfg_attr(feature = "cli", arg(long, value_name = "GENxN,…", value_delimiter = ',', hide_short_help = true))]
    pub pcie: Vec<Slot>,
    /// Set the devices' budgets, in order: 12G,8G.
    ///
    /// The sizes are exact. A size above the device's memory means a larger device of the same speed. A device with the size 0, or
    /// without a size, is left out.
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE,…", value_delimiter = ',', hide_short_help = true))]
    pub budget: Vec<DeviceSize>,
    /// Main memory: 64G, or with its type and channels: 64G@ddr5-6000x2; see --cpu.
    ///
    /// 64GB is read as 64G, because modules are sold that way. Without a number of channels, --cpu decides; without --cpu, there are
    /// two.
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIZE"))]
    pub ram: Option<Ram>,
    /// Bandwidth of main memory in GB/s, from its data sheet: MT/s × channels × 0.008.
    #[cfg_attr(feature = "cli", arg(long, value_name = "GB/S", hide_short_help = true))]
    pub memory_bandwidth: Option<f64>,
    /// The processor, by name: "Ryzen 7950X".
    #[cfg_attr(feature = "cli", arg(long, value_name = "NAME", hide_short_help = true))]
    pub cpu: Option<String>,
    /// Physical cores of the processor.
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true)
    )]
    pub cores: Option<u32>,
    /// The computer runs Windows: less of a card is free there than under Linux, and only half of main memory can be pinned.
    #[cfg_attr(feature = "cli", arg(long, overrides_with = "windows", hide_short_help = true))]
    pub windows: bool,
    /// Backend of the devices given with --vram [default: cuda].
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub backend: Option<Backend>,
}

/// By which share predictions of a host with several sockets may well be off: nobody measured one.
const OF_SOCKETS: f64 = 0.6;
/// Threads stay with a node, and weights are read from all of them, with `--numa distribute` alone (`ggml-cpu.c`
/// `set_numa_thread_affinity`, b11434).
const NUMA: &str = "with --numa, which is not modelled";

/// Says of a computer that its main memory is in several NUMA nodes: what its processor's row has is of one socket.
pub fn doubt_nodes(host: &mut Host, nodes: usize) {
    if nodes > 1 {
        host.note = Some(format!("main memory is in {nodes} NUMA nodes: llama.cpp uses them evenly only {NUMA}"));
        let basis = table::host(host).basis;
        host.rates = Some(HostRates { uncertainty: OF_SOCKETS, basis, ..HostRates::of_memory(f64::NAN) });
    }
}

impl Described {
    /// Whether something is said of the host.
    pub fn describes_host(&self) -> bool {
        self.ram.is_some() || self.cpu.is_some() || self.cores.is_some() || self.memory_bandwidth.is_some()
    }

    /// The flags that say this: read back they are the same.
    pub fn words(&self) -> Vec<String> {
        let list = |all: Vec<String>| (!all.is_empty()).then(|| all.join(","));
        let sizes = |sizes: &[DeviceSize]| list(sizes.iter().map(ToString::to_string).collect());
        let said = [
            ("--vram", sizes(&self.vram)),
            ("--gpu", list(self.gpu.clone())),
            ("--backend", self.backend.map(|backend| format!("{backend:?}").to_lowercase())),
            ("--pcie", list(self.pcie.iter().map(ToString::to_string).collect())),
            ("--budget", sizes(&self.budget)),
            ("--ram", self.ram.map(|ram| ram.to_string())),
            ("--memory-bandwidth", self.memory_bandwidth.map(|bandwidth| bandwidth.to_string())),
            ("--cpu", self.cpu.clone()),
            ("--cores", self.cores.map(|cores| cores.to_string())),
        ];
        let devices = self.device.iter().map(|device| ("--device", Some(device.clone())));
        let words = devices.chain(said).filter_map(|(flag, said)| Some([flag.to_string(), said?])).flatten();
        words.chain(self.windows.then(|| "--windows".to_string())).collect()
    }

    /// The devices, in the order they are given; none of them is said to be here or elsewhere.
    pub fn devices(&self) -> Result<Vec<Device>, Error> {
        if !self.gpu.is_empty() {
            let devices = Device::of_cards(&self.gpu, self.backend, self.ram.map(|ram| ram.bytes))?;
            let of_system = |device: Device| if self.windows { device.under_windows() } else { device };
            return Ok(devices.into_iter().map(of_system).collect());
        }
        if !self.device.is_empty() {
            return self.device.iter().map(|text| Device::parse(text)).collect();
        }
        Device::of_sizes(self.backend.unwrap_or(Backend::Cuda), &self.vram)
    }

    /// Writes what is said of the host over what is known of it.
    pub fn describe(&self, host: &mut Host) -> Result<(), Refusal> {
        host.windows |= self.windows;
        let mut sockets = 1;
        let mut of_sockets = None;
        if let Some(name) = &self.cpu {
            let is_dual = |name: &&str| name.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("dual "));
            let dual = Some(name.as_str()).filter(is_dual).and_then(|name| Some((2, name.get(5..)?)));
            let counted = || cards::counted(name).filter(|(count, _)| matches!(count, 2 | 4 | 8));
            let (count, one) = dual.or_else(counted).unwrap_or((1, name.as_str()));
            sockets = u32::try_from(count).unwrap_or(1);
            let full = processors::full_name(one);
            let known = processors::named(&full);
            if known == Processor::default() || (known.family.is_some() && self.cores.is_none()) {
                // Of a family's other processors the cores are what is missing, not another name.
                let (of, hint) = match known.family.map(processors::shown) {
                    Some(family) => (
                        format!(", only its family {family}"),
                        format!("--cpu '{name}' --cores N takes the family's figures and its own cores"),
                    ),
                    None => {
                        let rows = || processors::names().filter(|row| processors::is_meant(row, one));
                        let meant: Vec<String> = rows().take(2).map(processors::shown).collect();
                        let meant = one_of(&meant.iter().map(String::as_str).collect::<Vec<_>>());
                        let meant = meant.or_else(|| did_you_mean(name, processors::names())).unwrap_or_default();
                        let lists = "`moeplan devices --known` lists them; --cores N describes another";
                        (String::new(), format!("{meant} {lists}"))
                    }
                };
                return Err(Refusal::new(
                    format!("`--cpu {name}`: no processor of that name is known{of}"),
                    hint.trim(),
                ));
            }
            let isa = known.isa.unwrap_or_default();
            let of_all = |count: Option<u32>| count.map(|count| count * sockets);
            (host.cores, host.threads, host.isa) = (of_all(known.cores), of_all(known.threads), isa);
            let full = if sockets > 1 { format!("{sockets}x {full}") } else { full };
            (host.processor, host.rates) = (Some(full), None);
            of_sockets = known.memory.map(|memory| table::memory(memory) * f64::from(sockets));
        }
        if self.cores == Some(0) {
            return Err(Refusal::new("a processor of 0 cores", "give its physical cores, or leave them out"));
        }
        if self.cores.is_some() {
            (host.cores, host.threads) = (self.cores, host.threads.filter(|_| self.cores == host.cores));
        }
        let known = host.processor.as_deref().map(processors::named).unwrap_or_default();
        let ram = self.ram.map(|ram| known.memory.map_or(ram, |memory| ram.in_channels_of(sockets, memory)));
        // That a desktop's processor has two channels is no guess: four of DDR5 have 150 GB/s and more.
        let is_guessed = |generation: u32| {
            known.takes.is_none() && !(generation > 4 && known.memory.is_some_and(|memory| memory < 100.0))
        };
        let ram = ram.map(|ram| Ram { assumed: ram.assumed.filter(|(generation, ..)| is_guessed(*generation)), ..ram });
        if let Some(ram) = ram {
            (host.ram, host.note) = (Some(ram.bytes), ram.note());
        }
        host.ram = host.ram.or_else(|| self.computer());
        if let Some(bandwidth) = self.memory_bandwidth.or(ram.and_then(|ram| ram.bandwidth)) {
            if !(bandwidth.is_finite() && bandwidth > 0.0) {
                return Err(Refusal::new(format!("a memory bandwidth of {bandwidth}"), "write GB/s, for example 96"));
            }
            possible(bandwidth).map_err(|error| Refusal::new(format!("--memory-bandwidth {bandwidth}"), error))?;
            host.set_memory(table::memory(bandwidth));
            of_sockets = None;
        }
        if sockets > 1 {
            let note = format!("llama.cpp reads all sockets' memory at full speed only {NUMA}");
            host.note = Some(host.note.take().map_or(note.clone(), |before| format!("{before}; {note}")));
            let basis =
                host.processor.as_ref().map(|name| format!("table: {name}, the memory of all sockets together"));
            let given = host.rates.take();
            host.rates = of_sockets.map(HostRates::of_memory).or(given).map(|rates| HostRates {
                uncertainty: OF_SOCKETS,
                basis: basis.filter(|_| of_sockets.is_some()).unwrap_or_default(),
                ..rates
            });
        }
        Ok(())
    }

    /// The main memory of the computer that `--gpu 'M4 Max 64GB'` or `--gpu 'M4 Max=64G'` names.
    fn computer(&self) -> Option<Bytes> {
        let named = self.gpu.iter().filter_map(|text| GpuName::list(text).ok()).flatten();
        let has = |gpu: GpuName| gpu.computer.or(gpu.size.map(|size| size.bytes)).or_else(|| gpu.card.only_computer());
        named.filter(|gpu| gpu.card.is_integrated()).filter_map(has).max()
    }

    /// `machine` with the slots of `--pcie` and what `--budget` gives of its devices, where each device can be what it is said to be.
    pub fn limited(&self, mut machine: Machine) -> Result<Machine, Refusal> {
        at_most_one_each(&machine, "--pcie", self.pcie.len(), "slots")?;
        for (device, slot) in machine.devices.iter_mut().zip(&self.pcie) {
            table::in_slot(device, slot.rate());
        }
        let machine = if self.budget.is_empty() { machine } else { self.budgeted(machine)? };
        let is_beyond = |device: &&Device| device.integrated && machine.host.ram.is_some_and(|ram| device.total > ram);
        if let Some(device) = machine.devices.iter().find(is_beyond) {
            let (name, total, ram) = (&device.name, device.total, machine.host.ram.unwrap_or_default());
            let message = format!("{name} uses main memory, and {total} is more than the {ram} of this machine");
            let hint = "--ram SIZE is all memory of the computer, including what the firmware reserves for graphics; --gpu NAME describes a card with its own memory";
            return Err(Refusal::new(message, hint));
        }
        Ok(machine)
    }

    fn budgeted(&self, machine: Machine) -> Result<Machine, Refusal> {
        at_most_one_each(&machine, "--budget", self.budget.len(), "sizes")?;
        let given = machine.devices.iter().zip(&self.budget).filter(|(_, size)| size.bytes > Bytes(0));
        let devices = given.map(|(device, size)| prices::limited(device, size.bytes)).collect();
        Machine::new(devices, machine.host).map_err(|error| Refusal::new(error.to_string(), ""))
    }

    /// A machine of which nothing else is known.
    pub fn machine(&self) -> Result<Machine, Refusal> {
        let described = self.devices().and_then(|devices| Machine::new(devices, Host::default()));
        let refusal = |error: Error| Refusal::new(error.to_string(), error.hint().unwrap_or_default());
        let mut machine = described.map_err(refusal)?;
        self.describe(&mut machine.host)?;
        self.limited(machine)
    }
}

/// A flag that says something of each device, in order, says it of devices that there are.
fn at_most_one_each(machine: &Machine, flag: &str, given: usize, what: &str) -> Result<(), Refusal> {
    let known = machine.devices.len();
    if given <= known {
        return Ok(());
    }
    let there_are = match known {
        0 => "there is no device".to_string(),
        1 => "there is 1 device".to_string(),
        _ => format!("there are {known} devices"),
    };
    let message = format!("{flag} has {given} {what}, but {there_are}");
    Err(Refusal::new(message, "--vram, --gpu or --device describes more"))
}
