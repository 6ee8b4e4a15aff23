//! `devices --calibrate`: what this machine does in a second, from llama-bench, saved for every later plan. [I/O]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::devices::Document;
use super::interrupt::PRESSED;
use super::machine::MachineArgs;
use super::{Outcome, Output, interrupt, measuring};
use crate::bytes::Bytes;
use crate::cli::Format;
use crate::evidence;
use crate::files::{self, temporary::Folder};
use crate::machine::{Backend, Machine};
use crate::model::Model;
use crate::runtime::server;
use crate::speed::design;
use crate::speed::fit::{self, Fit, Residual};
use crate::speed::samples::{self, BenchRow};
use crate::speed::{Phase, prices};
use crate::synth::output::{Fill, Watch, write};
use crate::synth::spec::{self, Spec};
use crate::synth::{Wish, synthesize};

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrateArgs {
    /// Measure this machine's speeds, in three minutes at the most, for what later plans predict.
    ///
    /// The llama-bench beside llama-server runs two small models that are made for it (2 GiB each in the cache folder, removed
    /// afterwards) on the devices and on the host: how fast memory is read, how fast copies and products are, what a step waits for.
    /// Saved as machine.json in the folder for settings, or in the file of -o. Every later plan for this machine predicts its speeds
    /// from that and says so; without it they are a table's or a guess. Memory is not measured here: `moeplan verify` does that.
    #[arg(long)]
    pub calibrate: bool,
    /// Measure nothing, take rows that llama-bench wrote before, here or elsewhere (`-o json` or `-o jsonl`); repeatable.
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub from: Vec<PathBuf>,
    /// A model that those rows are of, where its name is none that `moeplan synth --list` knows; repeatable.
    #[arg(long, value_name = "FILE", requires = "from")]
    pub model: Vec<PathBuf>,
    /// The llama-server whose llama-bench, in the same folder, measures.
    #[arg(long, value_name = "PATH", env = "MOEPLAN_LLAMA_SERVER")]
    pub llama_server: Option<PathBuf>,
    /// Start no new measurement after so many seconds; what is left out is said, and keeps its guess.
    #[arg(long, value_name = "N", requires = "calibrate", default_value_t = 170)]
    pub seconds: u64,
}

/// How well the constants meet what they were found from.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Calibration {
    basis: String,
    /// Half of the prompt measurements are met within this share.
    prompt_median_error: Option<f64>,
    generate_median_error: Option<f64>,
    measurements: Vec<Residual>,
}

/// Runs `devices --calibrate`. What is measured is kept until it is whole, so that one that is cut off says how to go on.
pub fn run(args: &CalibrateArgs, machine: &MachineArgs, output: &Output) -> anyhow::Result<Outcome> {
    let path = place(output)?;
    let margin = machine.margin;
    let answer = |here, rows: &[BenchRow]| answer(here, rows, &args.model, margin, path.as_deref(), output);
    if !args.from.is_empty() {
        let mut rows = Vec::new();
        for path in &args.from {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let of_file = samples::rows(&text);
            rows.extend(of_file.with_context(|| format!("`{}` is no output of llama-bench", path.display()))?);
        }
        return answer(machine.machine()?, &rows);
    }
    let _measuring = measuring::begin("devices --calibrate", output)?;
    let kept = evidence::store::path().map(|path| path.with_file_name("calibration.jsonl"));
    let forget = || kept.as_ref().map(std::fs::remove_file);
    // Rows of an earlier one that was cut off are of another time.
    let _ = forget();
    let here = machine.machine()?;
    let done = measure(args, &here, kept.as_deref(), output).and_then(|rows| answer(here, &rows));
    match &kept {
        Some(kept) if done.is_err() && kept.exists() => output.say(&format!(
            "what was measured is kept in {0}: `moeplan devices --calibrate --from {0}` takes it",
            kept.display()
        )),
        _ => drop(forget()),
    }
    done
}

/// Finds the constants, writes them down and says them.
fn answer(
    here: Machine,
    rows: &[BenchRow],
    models: &[PathBuf],
    margin: Option<Bytes>,
    path: Option<&Path>,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let basis = samples::basis(rows);
    let here = described_by(here, rows);
    let fit = fit::fit(&here, &samples_of(rows, models, &here)?, &basis)?;
    let calibration = Calibration {
        basis: basis.clone(),
        prompt_median_error: fit::median_error(&fit.residuals, Phase::Prompt),
        generate_median_error: fit::median_error(&fit.residuals, Phase::Generate),
        measurements: fit.residuals.clone(),
    };
    let said = text(&fit, &calibration, path, output);
    let margin = margin.unwrap_or_else(|| fit.machine.margin());
    let document = Document::new(fit.machine.into(), margin, Some(calibration));
    // What names a file is the document's; the answer goes to standard output.
    let answer = output.without_file();
    let json = serde_json::to_string_pretty(&document)? + "\n";
    // Moeplan's own file is written anew each time.
    let replace = output.global.force || output.global.output.is_none();
    let kept = path.map_or(Ok(()), |path| files::write(path, json.as_bytes(), replace));
    match output.format() {
        Format::Text | Format::Markdown | Format::Html if kept.is_ok() => answer.answer(&said)?,
        _ => answer.answer(&json)?,
    }
    kept?;
    Ok(Outcome::Yes)
}

/// The file that the document goes to, which can be written: that of `-o`, or this machine's own; none for `-o -`.
fn place(output: &Output) -> anyhow::Result<Option<PathBuf>> {
    if output.global.output.is_some() {
        return Ok(output.file().map(Path::to_path_buf));
    }
    let own = own_file().context("no folder for settings here: give -o FILE")?;
    let folder = own.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`: give -o FILE", folder.display()))?;
    files::check(&own, true)?;
    Ok(Some(own))
}

/// Where this machine's own rates are kept.
pub fn own_file() -> Option<PathBuf> {
    use etcetera::BaseStrategy as _;
    Some(etcetera::choose_base_strategy().ok()?.config_dir().join("moeplan").join("machine.json"))
}

/// Gives a machine that was found here the rates that were saved for it: devices of the same name and description, and the
/// host where it has the same cores.
pub fn apply_own(machine: &mut Machine) {
    let Some(text) = own_file().and_then(|path| std::fs::read_to_string(path).ok()) else { return };
    if let Ok(saved) = serde_json::from_str::<Machine>(&text) {
        take_rates(machine, &saved);
    }
}

fn take_rates(machine: &mut Machine, saved: &Machine) {
    for device in &mut machine.devices {
        let same = saved.devices.iter().find(|s| s.name == device.name && s.description == device.description);
        if let Some(rates) = same.and_then(|same| same.rates.clone()) {
            device.rates = Some(rates);
        }
    }
    let same = (saved.host.isa, saved.host.cores) == (machine.host.isa, machine.host.cores);
    if let Some(rates) = saved.host.rates.clone().filter(|_| same) {
        machine.host.rates = Some(rates);
    }
}

/// Writes small models and lets llama-bench run them. A test that fails is left out, and said.
fn measure(
    args: &CalibrateArgs,
    machine: &Machine,
    keep: Option<&Path>,
    output: &Output,
) -> anyhow::Result<Vec<BenchRow>> {
    let beside = server::find(args.llama_server.as_deref())?;
    let program = server::beside(&beside, &["llama-bench"]).with_context(|| {
        format!("no llama-bench beside `{}`: build llama.cpp's tools, or give rows with --from", beside.display())
    })?;
    let place = files::cache_folder().context("no folder for the models: set XDG_CACHE_HOME")?;
    std::fs::create_dir_all(&place).with_context(|| format!("cannot make `{}`", place.display()))?;
    let folder = Folder::within(&place).with_context(|| format!("cannot write in `{}`", place.display()))?;
    interrupt::arm();
    let tests = design::tests(machine);
    let started = Instant::now();
    let limit = Duration::from_secs(args.seconds);
    let mut measured = Vec::new();
    for (subject, share) in design::SUBJECTS.into_iter().zip([2, 1]) {
        output.say(&format!("writing {} with random weights", subject.spec));
        let path = folder.path().join(format!("{}.gguf", subject.name()));
        write_model(&spec::named(subject.spec)?, subject.blocks, &path, Fill::Random(1))?;
        for test in &tests {
            // Half of the time for each: what one cannot tell the other may.
            if started.elapsed() > limit / share {
                output.say(&format!("no time for: {}", test.tells));
                continue;
            }
            output.say(&format!("{:>4} s  {}: {}", started.elapsed().as_secs(), subject.spec, test.tells));
            match server::bench(&program, &path, &test.args, limit.max(LEAST), interrupt::is_pressed) {
                Ok(rows) => {
                    let lines = rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n"));
                    let lines = lines.collect::<std::io::Result<String>>();
                    let kept = lines.and_then(|lines| keep.map_or(Ok(()), |keep| files::append(keep, &lines)));
                    if let Err(error) = kept {
                        output.say(&format!("warning: these rows are not kept, should this be cut off: {error}"));
                    }
                    measured.extend(rows);
                }
                Err(error) if error.is_interrupted() => return Err(error.into()),
                Err(error) => output.say(&format!("left out: {error}")),
            }
        }
        std::fs::remove_file(&path)?;
    }
    Ok(measured)
}

/// The least time that one test gets: loading may be slow the first time.
const LEAST: Duration = Duration::from_mins(1);

/// The machine with what the rows call its devices, where nothing better is known.
fn described_by(mut machine: Machine, rows: &[BenchRow]) -> Machine {
    let names = rows.iter().map(|row| row.gpu_info.as_str()).find(|names| !names.is_empty()).unwrap_or_default();
    let local = machine.devices.iter_mut().filter(|device| device.backend != Backend::Rpc);
    for (device, name) in local.zip(names.split(", ").filter(|name| !name.is_empty())) {
        device.description.get_or_insert_with(|| name.to_string());
    }
    machine
}

/// The rows as samples; each model's header is read or made once.
fn samples_of(rows: &[BenchRow], models: &[PathBuf], machine: &Machine) -> anyhow::Result<Vec<fit::Sample>> {
    let mut headers: BTreeMap<&str, Model> = BTreeMap::new();
    let mut samples = Vec::new();
    for row in rows {
        let model = match headers.entry(row.model()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(header(row, models)?),
        };
        samples.push(row.sample(model, machine).with_context(|| format!("a row of `{}`", row.model()))?);
    }
    Ok(samples)
}

/// The header of a row's model: a file of `--model`, the row's own file, or the known model of that name.
fn header(row: &BenchRow, models: &[PathBuf]) -> anyhow::Result<Model> {
    let name = row.model();
    let own = Path::new(&row.model_filename);
    let is_named = |path: &&PathBuf| path.file_stem().is_some_and(|stem| stem == name);
    let path = models.iter().find(is_named).map(PathBuf::as_path).or(Some(own).filter(|path| path.is_file()));
    if let Some(path) = path {
        return Ok(Model::from_gguf(crate::gguf::open(path)?)?);
    }
    let own = design::SUBJECTS.into_iter().find(|subject| subject.name() == name);
    let (name, blocks) = own.map_or((name, None), |subject| (subject.spec, subject.blocks));
    let spec = spec::named(name).map_err(|_| {
        anyhow::anyhow!("`{}` is not here and no known model: give it with --model FILE", row.model_filename)
    })?;
    let folder = Folder::new()?;
    let path = folder.path().join("header.gguf");
    write_model(&spec, blocks, &path, Fill::Hole)?;
    Ok(Model::from_gguf(crate::gguf::open(&path)?)?)
}

fn write_model(spec: &Spec, blocks: Option<u32>, path: &Path, fill: Fill) -> anyhow::Result<()> {
    let synthesis = synthesize(spec, &Wish { blocks, ..Wish::default() })?;
    write(&synthesis, path, fill, false, Watch { wrote: &|_| {}, stop: &PRESSED })?;
    Ok(())
}

fn text(fit: &Fit, calibration: &Calibration, path: Option<&Path>, output: &Output) -> String {
    let mut lines = vec![calibration.basis.clone()];
    for device in &fit.machine.devices {
        let r = prices::device_rates(device);
        lines.extend([
            String::new(),
            format!("{}  {}", device.name, device.description.as_deref().unwrap_or_default()),
            format!("  weights {:.0} GB/s, keys and values {:.0} GB/s", r.weights, r.cache),
            format!("  products {:.1} TFLOP/s, attention {:.1} TFLOP/s", r.products, r.attention),
            format!("  copies from pinned memory {:.1} GB/s, from mapped files {:.1} GB/s", r.pinned, r.pageable),
            format!(
                "  waits: {:.1} µs an operation, {:.0} µs a pass, {:.0} µs a copied tensor, {:.0} µs a change of tier",
                r.op, r.graph, r.offload, r.switch
            ),
        ]);
    }
    let r = prices::host_rates(&fit.machine.host);
    let (memory, thread, products) = (r.memory, r.by_thread, r.products);
    let host = format!("  memory {memory:.0} GB/s, {thread:.1} GB/s a thread, {products:.0} GFLOP/s a thread");
    lines.extend([String::new(), "Host".to_string(), host, String::new()]);
    let errors = [("prompt", calibration.prompt_median_error), ("generation", calibration.generate_median_error)];
    for (phase, error) in errors.into_iter().filter_map(|(phase, error)| Some((phase, 100.0 * error?))) {
        lines.push(format!("{phase}: half of the measurements are met within {error:.1}%"));
    }
    if output.is_verbose() {
        lines.extend([String::new(), format!("{:>9} {:>9} {:>6}  measurement", "measured", "by these", "off")]);
        lines.extend(fit.residuals.iter().map(|row| {
            let (seconds, predicted, off) = (row.seconds, row.predicted, 100.0 * row.error());
            format!("{seconds:>8.3}s {predicted:>8.3}s {off:>+5.0}%  {}", row.what)
        }));
    }
    lines.extend(path.into_iter().flat_map(|path| [String::new(), format!("saved in {}", path.display())]));
    lines.iter().map(|line| crate::escape::terminal(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Device, Host};

    fn machine(description: &str, cores: u32) -> Machine {
        let card = Device { description: Some(description.into()), ..Device::parse("CUDA0=8G").unwrap() };
        Machine::new(vec![card], Host { cores: Some(cores), ..Host::default() }).unwrap()
    }

    #[test]
    fn saved_rates_are_for_the_same_card_and_the_same_cores() {
        let mut saved = machine("NVIDIA H100", 16);
        saved.devices[0].rates = Some(prices::device_rates(&saved.devices[0]));
        saved.host.rates = Some(prices::host_rates(&saved.host));
        for (description, cores, expected) in
            [("NVIDIA H100", 16, (true, true)), ("NVIDIA A100", 16, (false, true)), ("NVIDIA H100", 8, (true, false))]
        {
            let mut here = machine(description, cores);
            take_rates(&mut here, &saved);
            assert_eq!(
                (here.devices[0].rates.is_some(), here.host.rates.is_some()),
                expected,
                "{description}, {cores}"
            );
        }
    }

    #[test]
    fn rows_name_the_cards_that_nobody_named_and_ask_for_headers_that_nobody_knows() {
        let rows = include_str!("../../testdata/measured/h100-bench.jsonl").replace("qwen3-30b-a3b", "no-such-model");
        let mut row = samples::rows(&rows).unwrap().remove(0);
        let error = header(&row, &[]).unwrap_err().to_string();
        assert!(error.contains("`no-such-model.gguf` is not here") && error.contains("--model FILE"), "{error}");
        row.gpu_info = "NVIDIA H100, NVIDIA A100".to_string();
        let devices = ["RPC0[h:1]=8G", "CUDA0=8G", "CUDA1=8G"].map(|text| Device::parse(text).unwrap()).to_vec();
        let named = described_by(Machine::new(devices, Host::default()).unwrap(), &[row]);
        let descriptions: Vec<_> = named.devices.iter().map(|device| device.description.as_deref()).collect();
        assert_eq!(descriptions, [None, Some("NVIDIA H100"), Some("NVIDIA A100")]);
    }
}
