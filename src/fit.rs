//! What llama.cpp's own fitting makes of a launch (`--fit`, on by default): its algorithm over our forecasts.
//!
//! Source: `common/fit.cpp` `common_params_fit_impl`, llama.cpp b11434.

use crate::bytes::Bytes;
use crate::machine::{Device, Machine};
use crate::memory::overhead::overhead;
use crate::memory::{self, Error, MemoryBreakdown};
use crate::model::Model;
use crate::run::{Override, RunConfig, SplitMode};

/// A launch after fitting.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The launch that is loaded: its context, layers, tensor split and overrides may have changed.
    pub run: RunConfig,
    /// Why fitting stopped half-way, in llama.cpp's words; the launch goes on all the same.
    pub failure: Option<String>,
}

/// What fitting decides of a launch, as llama-fit-params prints it: shares up to the last device with layers, of several.
pub fn args(run: &RunConfig) -> Vec<String> {
    let mut words = vec!["-c".to_string(), run.n_ctx.to_string(), "-ngl".to_string(), run.n_gpu_layers.to_string()];
    let n_devices = run.tensor_split.iter().rposition(|share| *share != 0.0).map_or(0, |last| last + 1);
    let shares = run.tensor_split.iter().take(n_devices).filter(|_| n_devices > 1);
    let lists = [
        ("-ts", shares.map(ToString::to_string).collect::<Vec<_>>()),
        ("-ot", run.overrides.iter().map(|entry| format!("{}={}", entry.pattern, entry.buffer)).collect()),
    ];
    let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
    words.extend(given.flat_map(|(flag, list)| [flag.to_string(), list.join(",")]));
    words
}

/// One fewer than `llama_max_tensor_buft_overrides`: the last ends the list.
const MAX_OVERRIDES: usize = 4095;

/// How a device's layers are kept (`ngl_t`).
#[derive(Debug, Clone, Copy)]
struct Layers {
    n_layer: u32,
    /// Of these the first lack parts of their weights.
    n_part: u32,
    /// What the first of them lacks; the others lack their experts.
    overflow: Overflow,
    /// The device that takes it; `None` = the host.
    overflows_to: Option<u16>,
}

/// What of a layer is elsewhere (`common_layer_fraction_t`, by what is left out).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overflow {
    /// The feed-forward part.
    Attention,
    Up,
    Gate,
    Experts,
}

impl Layers {
    const NONE: Self = Self { n_layer: 0, n_part: 0, overflow: Overflow::Experts, overflows_to: None };

    /// Both are unsigned in llama.cpp, which takes a part from a device without any, and the output from one without a layer.
    fn n_full(self) -> u32 {
        self.n_layer.wrapping_sub(self.n_part)
    }
}

/// The problem that fitting solves.
struct Fit<'a> {
    model: &'a Model,
    machine: &'a Machine,
    run: RunConfig,
    devices: Vec<u16>,
    /// What each device may hold, by llama.cpp's own sums.
    targets: Vec<i64>,
    n_layer: u32,
}

/// What fitting makes of `run`; the same launch where all devices keep their margins, or where fitting is off.
pub fn fitted(model: &Model, machine: &Machine, run: &RunConfig) -> Result<Fitted, Error> {
    let mut fitted = Fitted { run: run.clone(), failure: None };
    if !run.fit {
        return Ok(fitted);
    }
    if run.split_mode == SplitMode::Tensor {
        fitted.failure = Some("llama_params_fit is not implemented for SPLIT_MODE_TENSOR, abort".into());
        return Ok(fitted);
    }
    let is_auto = run.n_ctx == 0;
    let (n_seq_max, unified) = crate::run::numbers::sequences(run);
    let n_streams = if unified { 1 } else { n_seq_max };
    let n_ctx_max = model.hparams.context_length.saturating_mul(n_streams);
    let n_ctx_min = run.fit_ctx.saturating_mul(n_streams);
    if is_auto {
        fitted.run.n_ctx = n_ctx_max;
    }
    let devices = crate::placement::place(model, machine, run)?.devices;
    let mut fit = Fit { model, machine, run: fitted.run.clone(), targets: Vec::new(), devices, n_layer: 0 };
    fit.n_layer = model.context.n_layer + if run.mtp { model.hparams.nextn_predict_layers } else { 0 };
    fit.targets = fit.devices.iter().enumerate().map(|(at, device)| fit.free(*device) - fit.margin(at)).collect();
    let full = fit.used(&fit.run)?;
    if fit.devices.is_empty() {
        return fit.fit_host(fitted, &full, [n_ctx_min, n_ctx_max], is_auto);
    }
    let used: i64 = full.iter().sum();
    let target: i64 = fit.targets.iter().sum();
    if full.iter().zip(&fit.targets).all(|(used, target)| used <= target) {
        // The context is the model's own all the same.
        return Ok(fitted);
    }
    if used > target && is_auto && n_ctx_max > n_ctx_min {
        let mut wanted = target;
        if fit.devices.len() > 1 {
            let weights: i64 = fit.weights()?;
            let n_layer = i64::from(fit.n_layer.min(run.n_gpu_layers.cast_unsigned()).max(1));
            let parts = if model.hparams.expert_count == 0 { 2 } else { 6 };
            let n_devices = i64::try_from(fit.devices.len()).unwrap_or(i64::MAX - 1);
            wanted -= (n_devices + 1) * (weights / n_layer) / parts;
        }
        let done = fit.shorten(wanted, used, [n_ctx_min, n_ctx_max], n_streams)?;
        fitted.run.n_ctx = fit.run.n_ctx;
        if done && fit.devices.len() == 1 {
            return Ok(fitted);
        }
    }
    if let Some(reason) = fit.is_fixed() {
        fitted.failure = Some(reason);
        return Ok(fitted);
    }
    match fit.distribute() {
        Ok(run) => fitted.run = run,
        Err(error @ Error::TooManyOverrides) => fitted.failure = Some(error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(fitted)
}

impl Fit<'_> {
    /// Bytes that a device reports as free: its context is there already.
    fn free(&self, device: u16) -> i64 {
        let free = |device: &Device| signed(device.free) - signed(overhead(device, self.run.n_ubatch).idle);
        self.machine.device(device).map_or(0, free)
    }

    /// Bytes to leave free (`-fitt`, 1024 MiB).
    fn margin(&self, at: usize) -> i64 {
        let mib = match self.run.fit_target.as_slice() {
            [one] => *one,
            several => several.get(at).copied().unwrap_or(1024),
        };
        i64::from(mib) << 20
    }

    /// llama.cpp's own sums by device, a second context included.
    fn used(&self, run: &RunConfig) -> Result<Vec<i64>, Error> {
        let forecast = memory::forecast(self.model, self.machine, &projected(run))?;
        // What needs a context of the target is fitted without: there is none yet.
        let unseen = forecast.drafting.filter(|_| self.model.draft.as_ref().is_some_and(|draft| draft.borrows()));
        let unseen = unseen.map(|part| part.memory).unwrap_or_default();
        let seen = |name: &String, row: &MemoryBreakdown| {
            signed(row.own()) - unseen.get(name).map_or(0, |row| signed(row.own()))
        };
        let own = |at: &u16| {
            let row = self.machine.device(*at).and_then(|device| forecast.memory.get_key_value(&device.name));
            row.map_or(0, |(name, row)| seen(name, row))
        };
        if self.devices.is_empty() {
            return Ok(vec![forecast.memory.iter().map(|(name, row)| seen(name, row)).sum()]);
        }
        Ok(self.devices.iter().map(own).collect())
    }

    /// Bytes of weights on all devices.
    fn weights(&self) -> Result<i64, Error> {
        let forecast = memory::forecast(self.model, self.machine, &projected(&self.run))?;
        let names = self.devices.iter().filter_map(|at| self.machine.device(*at));
        Ok(names.filter_map(|device| forecast.memory.get(&device.name)).map(|row| signed(row.model)).sum())
    }

    /// Without a device only the context can give way.
    fn fit_host(
        mut self,
        mut fitted: Fitted,
        full: &[i64],
        bounds @ [n_ctx_min, n_ctx_max]: [u32; 2],
        is_auto: bool,
    ) -> Result<Fitted, Error> {
        let used: i64 = full.iter().sum();
        // Where the host's memory is not known nothing says that it is too little.
        let Some(ram) = self.machine.host.ram else { return Ok(fitted) };
        let target = signed(ram) - self.margin(0);
        if used <= target {
            return Ok(fitted);
        }
        let n_streams = n_ctx_max.checked_div(self.model.hparams.context_length).unwrap_or(1).max(1);
        if is_auto && n_ctx_max > n_ctx_min && self.shorten(target, used, bounds, n_streams)? {
            fitted.run.n_ctx = self.run.n_ctx;
            return Ok(fitted);
        }
        fitted.run.n_ctx = self.run.n_ctx;
        fitted.failure = Some("was unable to fit model into system memory by reducing context, abort".into());
        Ok(fitted)
    }

    /// Step 2: the context between its bounds at which all is used that may be; whether that is above the lower bound.
    fn shorten(&mut self, wanted: i64, used: i64, [min, max]: [u32; 2], n_streams: u32) -> Result<bool, Error> {
        self.run.n_ctx = min;
        let least: i64 = self.used(&self.run)?.iter().sum();
        if wanted <= least {
            return Ok(false);
        }
        // Wider than llama.cpp's int64_t, so that no header overflows it.
        let more = i128::from(max - min) * i128::from(wanted - least) / i128::from((used - least).max(1));
        let n_ctx = u32::try_from(i128::from(min) + more).unwrap_or(u32::MAX);
        self.run.n_ctx = (n_ctx - n_ctx % n_streams.saturating_mul(256)).max(min);
        Ok(true)
    }

    /// What the user said that fitting does not change, in llama.cpp's words.
    fn is_fixed(&self) -> Option<String> {
        let several = self.devices.len() > 1;
        if self.run.n_gpu_layers != -1 {
            return Some(format!("n_gpu_layers already set by user to {}, abort", self.run.n_gpu_layers));
        }
        if several && self.run.tensor_split.iter().any(|share| *share != 0.0) {
            return Some("model_params::tensor_split already set by user, abort".into());
        }
        (!self.run.overrides.is_empty())
            .then(|| "model_params::tensor_buft_overrides already set by user, abort".to_string())
    }

    /// The launch with these layers on the devices (`set_ngl_tensor_split_tbo`).
    fn launch(&self, layers: &[Layers]) -> Result<RunConfig, Error> {
        let mut run = self.run.clone();
        let total = layers.iter().fold(0_u32, |sum, layers| sum.wrapping_add(layers.n_layer));
        run.n_gpu_layers = total.cast_signed();
        if layers.len() > 1 {
            #[expect(clippy::cast_precision_loss, reason = "a count of layers")]
            let shares = layers.iter().map(|layers| layers.n_layer as f32);
            run.tensor_split = shares.collect();
        }
        let mut first = (self.n_layer + 1).wrapping_sub(total);
        for own in layers {
            first = first.wrapping_add(own.n_full());
            for il in first..first.wrapping_add(own.n_part) {
                if run.overrides.len() == MAX_OVERRIDES {
                    return Err(Error::TooManyOverrides);
                }
                let (overflow, to) =
                    if il == first { (own.overflow, own.overflows_to) } else { (Overflow::Experts, None) };
                let pattern = match overflow {
                    Overflow::Attention => format!("blk\\.{il}\\.ffn_(gate|up|gate_up|down).*"),
                    Overflow::Up => format!("blk\\.{il}\\.ffn_(gate|gate_up|down).*"),
                    Overflow::Gate => format!("blk\\.{il}\\.ffn_down.*"),
                    Overflow::Experts => format!("blk\\.{il}\\.ffn_(up|down|gate_up|gate)_(ch|)exps"),
                };
                let device = to.and_then(|at| self.machine.device(at));
                let buffer = device.map_or_else(|| "CPU".to_string(), |device| device.buffer.clone());
                run.overrides.push(Override { pattern, buffer, origin: "--fit".into() });
            }
            first = first.wrapping_add(own.n_part);
        }
        Ok(run)
    }

    fn used_with(&self, layers: &[Layers]) -> Result<Vec<i64>, Error> {
        self.used(&self.launch(layers)?)
    }

    /// Steps 3 and 4: dense layers from the back, then whole layers from the front.
    fn distribute(&self) -> Result<RunConfig, Error> {
        let (n, has_experts) = (self.devices.len(), self.model.hparams.expert_count > 0);
        let mut surplus = 0;
        if has_experts {
            let mut run = self.run.clone();
            let pattern = "blk\\.\\d+\\.ffn_(up|down|gate_up|gate)_(ch|)exps".to_string();
            run.overrides = vec![Override { pattern, buffer: "CPU".into(), origin: "--fit".into() }];
            surplus = self.targets.iter().sum::<i64>() - self.used(&run)?.iter().sum::<i64>();
        }
        let mut layers = vec![Layers::NONE; n];
        let mut mem = self.used_with(&layers)?;
        for id in (0..n).rev() {
            let taken: u32 = layers.iter().skip(id + 1).map(|layers| layers.n_layer).sum();
            let mut high = layers.clone();
            high[id].n_layer = self.n_layer + 1 - taken;
            if has_experts {
                // The last device has the output, which is never partial.
                high[id].n_part = high[id].n_layer - u32::from(id + 1 == n).min(high[id].n_layer);
            }
            if high[id].n_layer == 0 {
                continue;
            }
            let mut mem_high = self.used_with(&high)?;
            if mem_high[id] <= self.targets[id] {
                (layers, mem) = (high, mem_high);
                continue;
            }
            loop {
                let delta = high[id].n_layer - layers[id].n_layer;
                if delta <= 1 {
                    break;
                }
                let step = step(delta, self.targets[id], mem[id], mem_high[id]);
                let mut test = layers.clone();
                test[id].n_layer += step;
                if has_experts {
                    test[id].n_part += if id + 1 == n && test[id].n_part == 0 { step - 1 } else { step };
                }
                let mem_test = self.used_with(&test)?;
                if mem_test[id] <= self.targets[id] {
                    (layers, mem) = (test, mem_test);
                } else {
                    (high, mem_high) = (test, mem_test);
                }
            }
        }
        if has_experts && surplus > 0 {
            self.complete(&mut layers, mem)?;
        }
        self.launch(&layers)
    }

    /// Step 4: layers whose experts are on the host become whole, from the first device on; then a part of one more.
    fn complete(&self, layers: &mut Vec<Layers>, mut mem: Vec<i64>) -> Result<(), Error> {
        let n = self.devices.len();
        let mut dense = layers.iter().rposition(|layers| layers.n_layer == 0).map_or(0, |at| at + 1);
        let mut id = 0;
        while id <= dense && dense < n {
            let mut high = layers.clone();
            for jd in dense..n {
                let moved = high[jd].n_layer.wrapping_sub(u32::from(jd + 1 == n));
                high[id].n_layer = high[id].n_layer.wrapping_add(moved);
                high[jd].n_layer = high[jd].n_layer.wrapping_sub(moved);
                high[jd].n_part = 0;
            }
            let mut mem_high = self.used_with(&high)?;
            if mem_high[id] > self.targets[id] {
                loop {
                    // llama.cpp asserts that it is not negative.
                    let delta = high[id].n_full().saturating_sub(layers[id].n_full());
                    if delta <= 1 {
                        break;
                    }
                    let step = step(delta, self.targets[id], mem[id], mem_high[id]);
                    let (mut test, mut dense_test, mut converted) = (layers.clone(), dense, 0);
                    while dense_test < n {
                        let convert = (step - converted).min(test[dense_test].n_part);
                        test[dense_test].n_layer = test[dense_test].n_layer.wrapping_sub(convert);
                        test[dense_test].n_part -= convert;
                        test[id].n_layer = test[id].n_layer.wrapping_add(convert);
                        converted += convert;
                        if test[dense_test].n_part > 0 {
                            break;
                        }
                        dense_test += 1;
                    }
                    let mem_test = self.used_with(&test)?;
                    if mem_test[id] <= self.targets[id] {
                        (*layers, mem, dense) = (test, mem_test, dense_test);
                    } else {
                        (high, mem_high) = (test, mem_test);
                    }
                }
            } else {
                (*layers, mem, dense) = (high, mem_high, n - 1);
            }
            if dense < n && layers[dense].n_layer > u32::from(id + 1 == n) {
                self.add_part(layers, &mut mem, &mut dense, id)?;
            }
            id += 1;
        }
        Ok(())
    }

    /// Tries one more layer on a device, of which a part goes to the next one or to the host.
    fn add_part(
        &self,
        layers: &mut Vec<Layers>,
        mem: &mut Vec<i64>,
        dense: &mut usize,
        id: usize,
    ) -> Result<(), Error> {
        let n = self.devices.len();
        let (mut test, mut dense_test) = (layers.clone(), *dense);
        test[dense_test].n_layer -= 1;
        test[dense_test].n_part = test[dense_test].n_part.wrapping_sub(1);
        test[id].n_layer = test[id].n_layer.wrapping_add(1);
        test[id].n_part = test[id].n_part.wrapping_add(1);
        if test[dense_test].n_part == 0 {
            dense_test += 1;
        }
        test[id].overflows_to = (id + 1 < n).then(|| self.devices[id + 1]);
        let mut try_part = |overflow| -> Result<bool, Error> {
            test[id].overflow = overflow;
            let used = self.used_with(&test)?;
            let fits = used[id] < self.targets[id] && (id + 1 == n || used[id + 1] < self.targets[id + 1]);
            if fits {
                (*layers, *mem, *dense) = (test.clone(), used, dense_test);
            }
            Ok(fits)
        };
        if try_part(Overflow::Up)? {
            try_part(Overflow::Gate)?
        } else {
            try_part(Overflow::Attention)?
        };
        Ok(())
    }
}

/// The next guess by false position, in llama.cpp's arithmetic.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as llama.cpp, which converts to uint32_t")]
fn step(delta: u32, target: i64, low: i64, high: i64) -> u32 {
    let guess = i128::from(delta) * i128::from(target - low);
    let guess = guess.checked_div(i128::from(high - low)).unwrap_or(1);
    (guess as u32).max(1).min(delta - 1)
}

/// Nothing is mapped in a projection.
fn projected(run: &RunConfig) -> RunConfig {
    RunConfig { load_mode: crate::run::LoadMode::None, fit: false, ..run.clone() }
}

fn signed(bytes: Bytes) -> i64 {
    // Memory tables stay below 2^56.
    i64::try_from(bytes.0).unwrap_or(i64::MAX)
}
