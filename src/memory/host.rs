//! Main memory beside the table: what the process and its caches may take, and what is left to the system.
//!
//! Source: `src/llama-context.cpp` `output_reserve`; `tools/server/server-context.cpp` `create_checkpoint`, `server-task.cpp`
//! `server_prompt_cache`, llama.cpp b11434. llama-cli runs the server's code.

use serde::{Deserialize, Serialize};

use super::Forecast;
use super::caches::{Cache, CacheKind};
use crate::bytes::{Bytes, GIB};
use crate::machine::Machine;
use crate::model::Model;
use crate::placement::Placement;
use crate::run::{Program, RunConfig};

/// The program itself with a device's runtime: 288 MiB of anonymous and shared memory measured with Qwen3-30B-A3B on CUDA
/// (b11434), of which about 75 are its vocabulary.
const PROGRAM: Bytes = Bytes::mib(224);
/// Of the vocabulary: a token's text twice, its tables and hashes. Estimated from the same run (152 thousand tokens).
const PER_TOKEN: u64 = 512;
/// `--ctx-checkpoints` where it is not given.
const CHECKPOINTS: i32 = 32;
/// `--cache-ram` where it is not given, MiB.
const CACHE_RAM: i32 = 8192;

/// Main memory beside the table, in bytes. Checkpoints and the prompt cache are taken as the server is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostNeeds {
    /// The program with its vocabulary.
    pub process: Bytes,
    /// Output rows: logits, and the hidden states that a draft model reads.
    pub logits: Bytes,
    /// Checkpoints of windows and recurrent states at most (`--ctx-checkpoints`).
    pub checkpoints: Bytes,
    /// One of them of one slot.
    #[serde(skip)]
    pub checkpoint: Bytes,
    /// llama-server's prompt cache at most (`--cache-ram`); absent where nothing limits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_cache: Option<Bytes>,
    /// Left to the system and its desktop.
    #[serde(default)]
    pub reserve: Bytes,
    /// How much of the table is pinned: the system can neither swap nor move it.
    #[serde(default)]
    pub pinned: Bytes,
}

impl HostNeeds {
    pub fn of(model: &Model, machine: &Machine, run: &RunConfig, forecast: &Forecast) -> Self {
        let vocab_size = u64::from(model.hparams.vocab_size);
        let numbers = &forecast.numbers;
        let logits = u64::from(numbers.n_seq_max).saturating_mul(vocab_size);
        // Hidden states that a draft model reads, of every token of a batch.
        let width = u64::from(model.hparams.embedding_length).saturating_mul(super::taps(model, run).len() as u64);
        let logits = Bytes(logits.saturating_add(width.saturating_mul(numbers.n_batch.into())).saturating_mul(4));
        let process = PROGRAM + Bytes(vocab_size.saturating_mul(PER_TOKEN));
        let pinned = pinned(model, machine, forecast, logits);
        // A limit leaves memory outside of it to the system already.
        let outside = machine.host.outside;
        let reserve = |ram: Bytes| reserve(Bytes(ram.0.saturating_add(outside.0)), pinned).saturating_sub(outside);
        let reserve = machine.host.ram.map_or(Bytes(0), reserve);
        let mut needs = Self { process, logits, prompt_cache: Some(Bytes(0)), reserve, pinned, ..Self::default() };
        if matches!(run.program, Program::Server | Program::Cli) {
            let each = checkpoint(forecast);
            let count = u64::try_from(run.ctx_checkpoints.unwrap_or(CHECKPOINTS)).unwrap_or(0); // Less than none is none.
            needs.checkpoints = Bytes(each.saturating_mul(count));
            needs.checkpoint = Bytes(if count > 0 { each / u64::from(numbers.n_seq_max.max(1)) } else { 0 });
            let usual = if run.rules().prompt_cache { CACHE_RAM } else { 0 };
            needs.prompt_cache = match u64::try_from(run.cache_ram.unwrap_or(usual)) {
                Ok(mib) => Some(Bytes::mib(mib)),
                // Without a limit of bytes it is one of tokens: those of the context. Every prompt has windows and states of its own.
                Err(_) => (each == 0).then(|| {
                    forecast.contexts().flat_map(|caches| &caches.list).map(|cache| Bytes(cache.bytes())).sum()
                }),
            };
        }
        needs
    }

    /// What must be there beside the table for the launch to fit.
    pub fn least(&self) -> Bytes {
        self.process + self.logits + self.checkpoints + self.reserve
    }

    /// The least main memory that a launch fits into which keeps `table` there.
    pub fn least_ram(&self, table: Bytes) -> Bytes {
        let taken = table + self.process + self.logits + self.checkpoints + for_pinned(self.pinned);
        taken + for_system(Bytes(taken.0.div_ceil(7)))
    }

    /// The prompt cache in MiB that main memory has room for beside `table`, in steps of 256, where the launch may take more.
    pub fn smaller_prompt_cache(&self, table: Bytes, ram: Bytes) -> Option<u64> {
        let room = ram.saturating_sub(table + self.least());
        self.prompt_cache.is_none_or(|most| most > room).then_some(room.0 >> 20 >> 8 << 8)
    }

    /// How many checkpoints a slot may keep for all to take `missing` less; `None` where none is few enough.
    pub fn fewer_checkpoints(&self, run: &RunConfig, missing: Bytes) -> Option<i32> {
        let count = u64::try_from(run.ctx_checkpoints.unwrap_or(CHECKPOINTS)).ok()?;
        let left = self.checkpoints.0.checked_sub(missing.0).filter(|_| missing > Bytes(0))?;
        i32::try_from(left.checked_div(self.checkpoints.0.checked_div(count)?)?).ok()
    }
}

/// An eighth of main memory, 1 GiB at least and 4 at most; and a sixteenth of what is pinned, 12 GiB at most. No source gives these
/// figures: they are what is left to a desktop and its file cache, docs/plan.md says them.
pub fn reserve(ram: Bytes, pinned: Bytes) -> Bytes {
    for_system(Bytes(ram.0 / 8)) + for_pinned(pinned)
}

fn for_system(eighth: Bytes) -> Bytes {
    Bytes(eighth.0.clamp(GIB, 4 * GIB))
}

fn for_pinned(pinned: Bytes) -> Bytes {
    Bytes((pinned.0 / 16).min(12 * GIB))
}

/// One checkpoint of every slot, in bytes. All slots together hold what the caches hold, a state's snapshots for rolling back apart.
fn checkpoint(forecast: &Forecast) -> u64 {
    let n_seq_max = forecast.numbers.n_seq_max.max(1);
    let of = |cache: &Cache| match cache.kind {
        CacheKind::Swa if cache.tokens_per_cell.is_none() => cache.bytes(),
        CacheKind::Recurrent | CacheKind::PleState => cache.bytes() / u64::from(cache.cells / n_seq_max).max(1),
        _ => 0,
    };
    forecast.contexts().flat_map(|caches| &caches.list).map(of).sum()
}

/// Weights of the host in pinned buffers, and what every context with a device that has such buffers pins: its logits and the
/// host's compute buffer.
fn pinned(model: &Model, machine: &Machine, forecast: &Forecast, logits: Bytes) -> Bytes {
    let mut devices = forecast.placement.taking_part(machine);
    if !devices.any(|(_, device)| device.backend.host_buffer_name().is_some()) {
        return Bytes(0);
    }
    // The model's own NextN blocks are in its placement already.
    let drafting = forecast.drafting.as_ref().filter(|_| model.draft.is_some()).map(|part| &part.placement);
    let weights: Bytes = [Some(&forecast.placement), drafting].into_iter().flatten().map(Placement::pinned).sum();
    let compute = forecast.memory.get(super::HOST).map_or(Bytes(0), |row| row.compute);
    weights + compute + logits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Backend, Device, Host};
    use crate::memory::forecast;
    use crate::run::LoadMode;
    use crate::synth;

    fn needs(name: &str, run: &RunConfig) -> HostNeeds {
        let model = synth::model(name, &synth::Wish::default()).unwrap();
        let devices = Device::of_budgets(Backend::Cuda, &[Bytes(24 * GIB)]).unwrap();
        let machine = Machine::new(devices, Host { ram: Some(Bytes(64 * GIB)), ..Host::default() }).unwrap();
        forecast(&model, &machine, run).unwrap().host_needs
    }

    #[test]
    fn a_server_may_grow_on_the_host() {
        let run = RunConfig { n_ctx: 8192, n_parallel: Some(2), ..RunConfig::default() };
        let usual = needs("gpt-oss-20b", &run);
        assert_eq!(usual.logits, Bytes(2 * 201_088 * 4));
        // 12 layers with a window of 768 cells, K and V of 512 elements in f16, for each of two slots.
        let window = 12 * 768 * 2 * 1024 * 2;
        assert_eq!((usual.checkpoints, usual.prompt_cache), (Bytes(32 * window), Some(Bytes::mib(8192))));
        assert_eq!(usual.fewer_checkpoints(&run, Bytes(2 * window + 1)), Some(29));
        assert_eq!(usual.fewer_checkpoints(&run, usual.checkpoints + Bytes(1)), None);
        let cli = needs("gpt-oss-20b", &RunConfig { program: Program::Cli, ..run.clone() });
        assert_eq!((cli.checkpoints, cli.prompt_cache), (usual.checkpoints, usual.prompt_cache));
        let bench = needs("gpt-oss-20b", &RunConfig { program: Program::Bench, ..run.clone() });
        assert_eq!((bench.checkpoints, bench.prompt_cache), (Bytes(0), Some(Bytes(0))));
        for (checkpoints, expected) in [(0, 0), (-1, 0), (3, 3 * window)] {
            let found = needs("gpt-oss-20b", &RunConfig { ctx_checkpoints: Some(checkpoints), ..run.clone() });
            assert_eq!(found.checkpoints, Bytes(expected));
        }
        // Without a limit: the whole context of a model without windows; nothing limits windows.
        let unlimited = RunConfig { cache_ram: Some(-1), ..run };
        assert_eq!(needs("gpt-oss-20b", &unlimited).prompt_cache, None);
        assert_eq!(needs("qwen3-30b-a3b", &unlimited).prompt_cache, Some(Bytes(48 * 2 * 1024 * 8192)));
    }

    #[test]
    fn buffer_types_that_llama_cpp_lists_apart_are_host_memory() {
        let model = synth::model("qwen3-30b-a3b", &synth::Wish::default()).unwrap();
        let devices = vec![Device::parse("RPC0[h:1]=24G").unwrap()];
        let ram = Bytes(16 * GIB);
        let machine = Machine::new(devices, Host { ram: Some(ram), ..Host::default() }).unwrap();
        let overrides = vec![crate::run::on_host("exps".into(), "-ot")];
        let rpc = vec!["h:1".to_string()];
        let run = RunConfig { n_ctx: 8192, n_gpu_layers: 99, overrides, rpc, ..RunConfig::default() };
        let forecast = forecast(&model, &machine, &run).unwrap();
        let (repacked, host) = (forecast.total("CPU_REPACK"), forecast.total(super::super::HOST));
        assert!(repacked > Bytes(8 * GIB) && host > Bytes(0), "{:?}", forecast.memory);
        let missing = (repacked + host + forecast.host_needs.least()).saturating_sub(ram);
        assert_eq!(forecast.shortfall(&machine, Bytes(0)), [(super::super::HOST.to_string(), missing)].into());
        // Memory of a size that nobody knows is not short, and a margin is kept of devices alone.
        let unknown = Machine { host: Host { ram: None, ..machine.host.clone() }, ..machine.clone() };
        assert_eq!(forecast.shortfall(&unknown, Bytes(0)), [].into());
        assert_eq!(forecast.shortfall(&unknown, Bytes(24 * GIB)).into_keys().collect::<Vec<_>>(), ["RPC0"]);
    }

    #[test]
    fn a_reserve_is_left_and_more_beside_pinned_memory() {
        for (ram, pinned, expected) in [(8, 0, 1024), (16, 0, 2048), (64, 0, 4096), (64, 32, 6144), (1024, 800, 16384)]
        {
            assert_eq!(reserve(Bytes(ram * GIB), Bytes(pinned * GIB)), Bytes::mib(expected), "{ram} {pinned}");
        }
        let run = |load_mode| RunConfig {
            n_ctx: 8192,
            n_gpu_layers: 99,
            overrides: vec![crate::run::on_host("exps".into(), "-ot")],
            load_mode,
            ..RunConfig::default()
        };
        let [mapped, read] = [LoadMode::Mmap, LoadMode::None].map(|mode| needs("qwen3-30b-a3b", &run(mode)));
        assert!(mapped.pinned < Bytes(GIB) && read.pinned > Bytes(15 * GIB), "{mapped:?} {read:?}");
        assert!(read.reserve > mapped.reserve);
    }
}
