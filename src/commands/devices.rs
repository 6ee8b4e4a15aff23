//! `devices`: the machine as moeplan sees it, what it does in a second, and both as a file for `--machine`. [I/O]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::interrupt::PRESSED;
use super::machine::{MachineArgs, found};
use super::{Outcome, Output, interrupt, measuring, model_arg, read};
use crate::ask::known::Known;
use crate::evidence;
use crate::files::{self, temporary::Folder};
use crate::machine::{Backend, Machine};
use crate::model::Model;
use crate::report::page::devices::{Calibration, Devices};
use crate::runtime::server;
use crate::speed::samples::{self, BenchRow};
use crate::speed::{Phase, design, fit};
use crate::synth::output::{Fill, Watch, write};
use crate::synth::spec::{self, Spec};
use crate::synth::{Wish, synthesize};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan devices                                         what is found here
  moeplan devices --calibrate                             how fast it is, for later plans
  moeplan devices --known 4090                            names for --gpu and --cpu
  moeplan devices --vram 24G,12G --ram 128G -o pc.json    another machine, for --machine pc.json")]
pub struct Args {
    /// A machine to describe instead of this one.
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    calibrate: CalibrateArgs,
    /// List the cards and processors that moeplan knows by name, or those with WORD in their name.
    #[arg(long, value_name = "WORD", num_args = 0..=1, default_missing_value = "", conflicts_with = "calibrate")]
    known: Option<String>,
}

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Calibration")]
struct CalibrateArgs {
    /// Measure this machine's speeds, in at most three minutes, for later predictions.
    ///
    /// The llama-bench beside llama-server runs two small models made for this purpose (2 GiB each in the cache folder, removed
    /// afterwards), on the devices and on the host. The results are the speeds of memory reads, copies and matrix products, and waiting
    /// times. They are saved as machine.json in the settings folder, or in the file given with -o. Later plans for this machine use
    /// them and say so; without them, speeds come from a table or are guesses. This does not measure memory use: `moeplan verify` does.
    #[arg(long)]
    calibrate: bool,
    /// Measure nothing; use what llama-bench wrote earlier, here or elsewhere (`-o json` or `-o jsonl`). Repeatable.
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    from: Vec<PathBuf>,
    /// The model that was measured, if `moeplan synth --list` does not have its name. Repeatable.
    #[arg(long, value_name = "FILE", requires = "from")]
    model: Vec<PathBuf>,
    /// The llama-server whose folder has the llama-bench to use.
    #[arg(long, value_name = "PATH", env = "MOEPLAN_LLAMA_SERVER")]
    llama_server: Option<PathBuf>,
    /// Start no new measurement after this many seconds; what was not measured is listed, and stays a guess.
    #[arg(long, value_name = "N", requires = "calibrate", default_value_t = 170)]
    seconds: u64,
    /// Measure nothing; print the commands that would measure.
    #[arg(long, requires = "calibrate", conflicts_with = "from")]
    dry_run: bool,
}

pub fn run(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    if let Some(word) = &args.known {
        let known = Known::of(word);
        output.show(&known)?;
        return Ok(if known.is_empty() { Outcome::No } else { Outcome::Yes });
    }
    if args.calibrate.calibrate {
        return calibrate(args, output);
    }
    output.show(&of(&args.machine)?)?;
    Ok(Outcome::Yes)
}

/// The machine that is described, or this one.
pub fn of(machine: &MachineArgs) -> anyhow::Result<Devices> {
    let mut here = if machine.is_given() { machine.machine()?.into() } else { found()? };
    here.margin = machine.margin(&here.machine);
    Ok(here)
}

/// `--calibrate`: from llama-bench's rows, those of `--from` or new ones. What is measured is kept until it is whole, so that one that
/// is cut off says how to go on.
fn calibrate(args: &Args, output: &Output) -> anyhow::Result<Outcome> {
    let path = place(output)?;
    let answer = |here, rows: &[BenchRow]| answer(args, here, rows, path.as_deref(), output);
    if !args.calibrate.from.is_empty() {
        let mut rows = Vec::new();
        for path in &args.calibrate.from {
            let of_file = samples::rows(&read(path)?);
            rows.extend(of_file.with_context(|| format!("`{}` is not llama-bench output", path.display()))?);
        }
        return answer(args.machine.machine()?, &rows);
    }
    if args.calibrate.dry_run {
        let tests = design::tests(&args.machine.machine()?);
        let command = |subject: &design::Subject, test: &design::Test| {
            format!("llama-bench -m {}.gguf {}    # {}\n", subject.name(), test.args.join(" "), test.tells)
        };
        let commands = design::SUBJECTS.iter().flat_map(|subject| tests.iter().map(move |test| command(subject, test)));
        output.answer(&commands.collect::<String>())?;
        return Ok(Outcome::Yes);
    }
    let _measuring = measuring::begin("devices --calibrate", output)?;
    let kept = evidence::store::path().map(|path| path.with_file_name("calibration.jsonl"));
    let forget = || kept.as_ref().map(std::fs::remove_file);
    // Rows of an earlier one that was cut off are of another time.
    let _ = forget();
    let here = args.machine.machine()?;
    let done = measure(&args.calibrate, &here, kept.as_deref(), output).and_then(|rows| answer(here, &rows));
    match &kept {
        Some(kept) if done.is_err() && kept.exists() => output.say(&format!(
            "the measurements are kept in {0}; `moeplan devices --calibrate --from {0}` uses them",
            kept.display()
        )),
        _ => drop(forget()),
    }
    done
}

/// Finds the constants, writes them down and shows them.
fn answer(
    args: &Args,
    here: Machine,
    rows: &[BenchRow],
    path: Option<&Path>,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let basis = samples::basis(rows);
    let here = described_by(here, rows);
    // Each model's header is read or made once.
    let mut headers: BTreeMap<&str, Model> = BTreeMap::new();
    let mut samples = Vec::new();
    for row in rows {
        let model = match headers.entry(row.model()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(header(row, &args.calibrate.model)?),
        };
        samples.push(row.sample(model, &here).with_context(|| format!("a row of `{}`", row.model()))?);
    }
    let fit = fit::fit(&here, &samples, &basis)?;
    let is_nonsense = fit.is_nonsense();
    let error = |phase| fit::median_error(&fit.residuals, phase);
    let (prompt_median_error, generate_median_error) = (error(Phase::Prompt), error(Phase::Generate));
    let (measurements, odd) = (fit.residuals, fit.odd);
    let calibration = Calibration { basis, prompt_median_error, generate_median_error, odd, measurements };
    let margin = args.machine.margin(&fit.machine);
    let document = Devices { margin, calibration: Some(calibration), ..fit.machine.into() };
    // What names a file is the document's; the answer goes to standard output.
    let answer = output.without_file();
    if is_nonsense {
        answer.show(&document)?;
        output.say("not kept: for a tenth or more of its own measurements, it is off by more than half");
        return Ok(Outcome::No);
    }
    let json = serde_json::to_string_pretty(&document)? + "\n";
    // Moeplan's own file is written anew each time.
    let replace = output.global.force || output.global.output.is_none();
    match path.map_or(Ok(()), |path| files::write(path, json.as_bytes(), replace)) {
        Ok(()) => answer.show(&document)?,
        Err(error) => {
            answer.answer(&json)?;
            return Err(error.into());
        }
    }
    if let Some(path) = path {
        output.say(&format!("saved in {}", path.display()));
    }
    Ok(Outcome::Yes)
}

/// The file that the document goes to, which can be written: that of `-o`, or this machine's own; none for `-o -`.
fn place(output: &Output) -> anyhow::Result<Option<PathBuf>> {
    if output.global.output.is_some() {
        return Ok(output.file().map(Path::to_path_buf));
    }
    let own = own_file().context("this computer has no settings folder: give -o FILE")?;
    let folder = own.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`: give -o FILE", folder.display()))?;
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
    let mut until = Duration::ZERO;
    for subject in design::SUBJECTS {
        // Each has its part of the time: what one cannot tell the others may.
        until += limit / design::PARTS;
        output.say(&format!("writing {} with random weights", subject.spec));
        let path = folder.path().join(format!("{}.gguf", subject.name()));
        write_model(&spec::named(subject.spec)?, subject.blocks, &path, Fill::Random(1))?;
        for test in &tests {
            if started.elapsed() > until {
                output.say(&format!("no time for: {}", test.tells));
                continue;
            }
            let seconds = started.elapsed().as_secs();
            output.say(&format!("{seconds:>4} of {} s  {}: {}", args.seconds, subject.spec, test.tells));
            match server::bench(&program, &path, &test.args, limit.max(LEAST), interrupt::is_pressed) {
                Ok(rows) => {
                    let lines = rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n"));
                    let lines = lines.collect::<std::io::Result<String>>();
                    let kept = lines.and_then(|lines| keep.map_or(Ok(()), |keep| files::append(keep, &lines)));
                    if let Err(error) = kept {
                        output.say(&format!("warning: an interruption would lose these measurements: {error}"));
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

/// The header of a row's model: a file of `--model`, the row's own file, or the known model of that name.
fn header(row: &BenchRow, models: &[PathBuf]) -> anyhow::Result<Model> {
    let name = row.model();
    let own = Path::new(&row.model_filename);
    let is_named = |path: &&PathBuf| path.file_stem().is_some_and(|stem| stem == name);
    let path = models.iter().find(is_named).map(PathBuf::as_path).or(Some(own).filter(|path| path.is_file()));
    if let Some(path) = path {
        return model_arg::read(path);
    }
    let own = design::SUBJECTS.into_iter().find(|subject| subject.name() == name);
    let (name, blocks) = own.map_or((name, None), |subject| (subject.spec, subject.blocks));
    let spec = spec::named(name).map_err(|_| {
        anyhow::anyhow!(
            "`{}` is neither a file here nor a known model: name its file with --model FILE",
            row.model_filename
        )
    })?;
    let folder = Folder::new()?;
    let path = folder.path().join("header.gguf");
    write_model(&spec, blocks, &path, Fill::Hole)?;
    model_arg::read(&path)
}

fn write_model(spec: &Spec, blocks: Option<u32>, path: &Path, fill: Fill) -> anyhow::Result<()> {
    let synthesis = synthesize(spec, &Wish { blocks, ..Wish::default() })?;
    write(&synthesis, path, fill, false, Watch { wrote: &|_| {}, stop: &PRESSED })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Device, Host};
    use crate::speed::prices;

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
        assert!(
            error.contains("`no-such-model.gguf` is neither a file here") && error.contains("--model FILE"),
            "{error}"
        );
        row.gpu_info = "NVIDIA H100, NVIDIA A100".to_string();
        let devices = ["RPC0[h:1]=8G", "CUDA0=8G", "CUDA1=8G"].map(|text| Device::parse(text).unwrap()).to_vec();
        let named = described_by(Machine::new(devices, Host::default()).unwrap(), &[row]);
        let descriptions: Vec<_> = named.devices.iter().map(|device| device.description.as_deref()).collect();
        assert_eq!(descriptions, [None, Some("NVIDIA H100"), Some("NVIDIA A100")]);
    }
}
