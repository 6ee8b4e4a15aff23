//! The accuracy ledger: llama.cpp's own projections and real measurements against today's prediction, held by bounds.
//!
//! Fails when an error grows past what is recorded in `testdata/truth/bounds.yaml`; prints docs/accuracy-table.md.
//! `MOEPLAN_UPDATE=1` records today's errors there and writes `docs/accuracy-table.md`.
#![expect(clippy::print_stderr, reason = "a test's report")]

use crate::support::peers;
use crate::support::truth_rows;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::support::truth_rows::{Headers, Row, predict, rows};
use moeplan::bytes::{Bytes, MIB};
use moeplan::gguf;
use moeplan::measurement::Expected;
use moeplan::memory::HOST;
use moeplan::model::Model;
use moeplan::synth::{self, Wish};
use serde::{Deserialize, Serialize};

/// Rows of llama.cpp's projections and the archive of their headers.
const FILES: [(&str, &str, &str); 3] = [
    ("models.jsonl", "truth-models.tar.xz", "7 models of real size, 25 command lines each"),
    ("real-models.jsonl", "real-models.tar.xz", "3 models with real headers, 13 command lines each"),
    ("architectures.jsonl", "architectures.tar.xz", "128 small models of every architecture, 3 command lines each"),
];

/// The errors over the rows of one file: shares of cells, and relative errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Figures {
    /// Rows that were predicted.
    rows: usize,
    /// Cells whose model bytes are right to the MiB, as a share.
    model_right: f64,
    /// The same of context bytes.
    context_right: f64,
    /// |error| of compute on devices: median, 95th percentile, largest.
    compute_median: f64,
    compute_p95: f64,
    compute_max: f64,
    /// The same on the host.
    host_compute_median: f64,
    host_compute_p95: f64,
    /// |error| of a device's total.
    total_median: f64,
    total_p95: f64,
    total_max: f64,
}

/// A device in one row: differences in MiB, and what they are relative to.
struct Cell {
    device: String,
    model: f64,
    context: f64,
    compute: f64,
    compute_of: f64,
    /// What cutting to whole MiB hides of compute and of the total, either way.
    hidden: [f64; 2],
    total: f64,
    total_of: f64,
    name: String,
}

/// The cells of a row. Its table is cut to whole MiB; the compute column is known to two decimals.
#[expect(clippy::cast_precision_loss, reason = "MiB with decimals")]
fn cells(row: &Row, headers: &mut Headers) -> Vec<Cell> {
    let found = predict(headers.model(&row.model), &row.command(), "CUDA0=81079M").unwrap_or_else(|error| {
        panic!("{} {}: llama.cpp took it, we say: {error}", row.model, row.flags);
    });
    let cell = |(device, shown): (&String, &truth_rows::Shown)| {
        let got = found.get(device).copied().unwrap_or_default();
        let exact = row.compute_mib.get(if device == HOST { "CUDA_Host" } else { device }).copied();
        let compute_of = exact.unwrap_or(shown.compute as f64 + 0.5);
        let compute = got.compute.in_mib() - compute_of;
        let (model, context) = (shown.model as f64, shown.context as f64);
        let total_of = model + context + compute_of;
        Cell {
            device: device.clone(),
            model: got.model.in_mib() - model,
            context: got.context.in_mib() - context,
            compute,
            compute_of,
            hidden: if exact.is_some() { [0.0, 1.0] } else { [0.5, 1.5] },
            // Both truncations together hide between 0 and 2 MiB: one in the middle.
            total: got.model.in_mib() + got.context.in_mib() + got.compute.in_mib() - total_of - 1.0,
            total_of,
            name: format!("{} {}", row.model, row.flags),
        }
    };
    row.memory_mib.iter().map(cell).collect()
}

/// The `share` quantile; 0.5 is the median.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn figures(rows: usize, cells: &[Cell]) -> Figures {
    let right = |term: fn(&Cell) -> f64| {
        let right = cells.iter().filter(|cell| (-0.01..1.01).contains(&term(cell))).count();
        right as f64 / cells.len() as f64
    };
    let on_devices = || cells.iter().filter(|cell| cell.device != HOST && cell.device != "CPU_REPACK");
    // Below 16 MiB of compute and 256 MiB in all, errors count as of that much.
    let beyond = |error: f64, hidden: f64| (error.abs() - hidden).max(0.0);
    let compute = |cell: &Cell| beyond(cell.compute, cell.hidden[0]) / cell.compute_of.max(16.0);
    let total = |cell: &Cell| beyond(cell.total, cell.hidden[1]) / cell.total_of.max(256.0);
    let devices: Vec<f64> = on_devices().map(compute).collect();
    let host: Vec<f64> = cells.iter().filter(|cell| cell.device == HOST).map(compute).collect();
    let totals: Vec<f64> = on_devices().map(total).collect();
    Figures {
        rows,
        model_right: right(|cell| cell.model),
        context_right: right(|cell| cell.context),
        compute_median: quantile(devices.clone(), 0.5),
        compute_p95: quantile(devices.clone(), 0.95),
        compute_max: quantile(devices, 1.0),
        host_compute_median: quantile(host.clone(), 0.5),
        host_compute_p95: quantile(host, 0.95),
        total_median: quantile(totals.clone(), 0.5),
        total_p95: quantile(totals.clone(), 0.95),
        total_max: quantile(totals, 1.0),
    }
}

impl Figures {
    /// The errors by name: those that must not grow.
    fn errors(&self) -> [(&'static str, f64); 8] {
        [
            ("compute_median", self.compute_median),
            ("compute_p95", self.compute_p95),
            ("compute_max", self.compute_max),
            ("host_compute_median", self.host_compute_median),
            ("host_compute_p95", self.host_compute_p95),
            ("total_median", self.total_median),
            ("total_p95", self.total_p95),
            ("total_max", self.total_max),
        ]
    }

    /// What is worse than `bounds`; a ten-thousandth is noise of the log's two decimals.
    fn worse_than(&self, bounds: &Self) -> Vec<String> {
        let errors = self.errors().into_iter().zip(bounds.errors());
        let mut wrong: Vec<String> = errors
            .filter(|((_, now), (_, bound))| *now > bound + 1e-4)
            .map(|((name, now), (_, bound))| format!("{name} {now:.5}, at most {bound:.5}"))
            .collect();
        for (name, now) in [("model_right", self.model_right), ("context_right", self.context_right)] {
            if now < 1.0 {
                wrong.push(format!("{name} {now:.4}, must be 1"));
            }
        }
        if self.rows < bounds.rows {
            wrong.push(format!("{} rows, were {}", self.rows, bounds.rows));
        }
        wrong
    }

    /// Rounded up to what the bounds file shows.
    fn rounded(&self) -> Self {
        let up = |x: f64| (x * 1e5).ceil() / 1e5;
        Self {
            rows: self.rows,
            model_right: self.model_right,
            context_right: self.context_right,
            compute_median: up(self.compute_median),
            compute_p95: up(self.compute_p95),
            compute_max: up(self.compute_max),
            host_compute_median: up(self.host_compute_median),
            host_compute_p95: up(self.host_compute_p95),
            total_median: up(self.total_median),
            total_p95: up(self.total_p95),
            total_max: up(self.total_max),
        }
    }
}

fn in_project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn bounds() -> BTreeMap<String, Figures> {
    let text = std::fs::read_to_string(in_project("testdata/truth/bounds.yaml")).unwrap_or_default();
    serde_yaml::from_str(&text).unwrap_or_default()
}

/// Where this run records instead of judging.
fn updating() -> bool {
    std::env::var_os("MOEPLAN_UPDATE").is_some()
}

/// docs/accuracy-table.md: the recorded bounds, then ours beside the peers'.
fn table(bounds: &BTreeMap<String, Figures>) -> String {
    let mut text = String::from(
        "# Errors against llama.cpp's own projections\n\n| `cargo test --test core accuracy`: error against llama.cpp's own projections | rows | weights, context | compute: median, 95%, max | device total: median, max |\n|---|---:|---|---|---|\n",
    );
    for (file, _, what) in FILES {
        let Some(row) = bounds.get(file) else { continue };
        let right = if row.model_right >= 1.0 && row.context_right >= 1.0 { "all right" } else { "not all right" };
        let percent = |x: f64| format!("{:.2}%", 100.0 * x);
        let compute = [row.compute_median, row.compute_p95, row.compute_max].map(percent).join(", ");
        let total = [row.total_median, row.total_max].map(percent).join(", ");
        let _ = writeln!(text, "| {what} | {} | {right} | {compute} | {total} |", row.rows);
    }
    text.push('\n');
    text.push_str(&peers::table());
    text
}

#[test]
fn projections_of_llama_cpp_are_met_within_the_recorded_bounds() {
    let bounds = bounds();
    let mut found = BTreeMap::new();
    let mut wrong = Vec::new();
    for (file, archive, _) in FILES {
        let rows = rows(file);
        let mut headers = Headers::unpack(archive);
        let cells: Vec<Cell> = rows.iter().flat_map(|row| cells(row, &mut headers)).collect();
        let mut worst: Vec<&Cell> = cells.iter().collect();
        worst.sort_by(|a, b| {
            (b.total.abs() / b.total_of.max(256.0)).total_cmp(&(a.total.abs() / a.total_of.max(256.0)))
        });
        for cell in worst.iter().take(3) {
            let (device, name) = (&cell.device, &cell.name);
            eprintln!("{file} {name}: {device} compute {:+.1} of {:.1} MiB", cell.compute, cell.compute_of);
        }
        let now = figures(rows.len(), &cells);
        let recorded = bounds.get(file);
        if !updating() {
            let worse = recorded.map_or_else(|| vec!["no bounds recorded".to_string()], |b| now.worse_than(b));
            wrong.extend(worse.into_iter().map(|line| format!("{file}: {line}")));
        }
        found.insert(file.to_string(), now.rounded());
    }
    eprintln!("{}", table(&found));
    if updating() {
        let yaml = serde_yaml::to_string(&found).expect("figures are data");
        let head =
            "# Today's errors, which must not grow: written by MOEPLAN_UPDATE=1 cargo test --test core accuracy.\n";
        std::fs::write(in_project("testdata/truth/bounds.yaml"), format!("{head}{yaml}")).expect("written");
        std::fs::write(in_project("docs/accuracy-table.md"), table(&found)).expect("written");
    }
    assert!(wrong.is_empty(), "errors grew:\n{}", wrong.join("\n"));
}

#[test]
fn what_the_readme_shows_is_what_is_recorded() {
    if updating() {
        return;
    }
    let bounds = bounds();
    let shown = std::fs::read_to_string(in_project("docs/accuracy-table.md")).expect("the table is in the repository");
    assert_eq!(shown, table(&bounds), "docs/accuracy-table.md: MOEPLAN_UPDATE=1 cargo test --test core accuracy");
    assert!(bounds.values().all(|row| row.model_right >= 1.0 && row.context_right >= 1.0));
    let rows: usize = bounds.values().map(|row| row.rows).sum();
    let most = bounds.values().map(|row| row.compute_max).fold(0.0, f64::max);
    let claim = format!(
        "The error against {rows} projections of llama.cpp itself: weights and caches none, compute buffers {:.2}% at most",
        100.0 * most
    );
    let readme = std::fs::read_to_string(in_project("README.md")).expect("README.md");
    let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(readme.contains(&claim), "README.md does not say: {claim}");
}

#[test]
fn every_cell_of_the_peers_is_right_to_the_mib() {
    for cell in peers::cells() {
        assert!((cell.ours - cell.truth).abs() <= cell.hidden, "{}: {} MiB of {}", cell.name(), cell.ours, cell.truth);
    }
}

/// A file of `testdata/measured`.
#[derive(Deserialize)]
struct Measured {
    card: String,
    total_mib: u64,
    /// How many such cards the machine has.
    #[serde(default = "one")]
    cards: usize,
    launches: Vec<Measurement>,
    bounds: Bounds,
}

fn one() -> usize {
    1
}

/// A model of the archive, or one that `synth` made in another recipe and with so many blocks.
#[derive(Deserialize)]
struct Made {
    model: String,
    recipe: Option<String>,
    blocks: Option<u32>,
}

impl Made {
    fn model(&self, headers: &mut Headers) -> Model {
        headers.made(&self.model, self.recipe.as_deref(), self.blocks).clone()
    }
}

/// One launch that was loaded and run.
#[derive(Deserialize)]
struct Measurement {
    #[serde(flatten)]
    made: Made,
    draft: Option<Made>,
    /// What `synth` calls the projector that is loaded beside it.
    projector: Option<String>,
    command: String,
    /// llama.cpp's own sums, by device and term.
    #[serde(default)]
    measured_mib: BTreeMap<String, BTreeMap<String, f64>>,
    /// Model, context and compute of the device together.
    self_mib: Option<f64>,
    /// What the process held on the card beyond its own sums, after loading.
    unaccounted_mib: Option<f64>,
    /// What the process held on the card after long prompts.
    after_prompts_mib: Option<f64>,
    /// The most that it held on each card.
    #[serde(default)]
    peak_mib: BTreeMap<String, f64>,
    /// How far those may be off, where that is more than the file's bound.
    peak_percent: Option<f64>,
}

/// How far a prediction may be from a measurement.
#[derive(Deserialize)]
struct Bounds {
    term_mib: f64,
    self_percent: f64,
    unaccounted_mib: f64,
    after_prompts_percent: f64,
}

#[test]
fn measurements_on_real_cards_are_met() {
    let mut headers = Headers::unpack("truth-models.tar.xz");
    let entries = std::fs::read_dir(in_project("testdata/measured")).expect("measurements");
    let (mut wrong, mut compared) = (Vec::new(), 0);
    let is_launches = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    for path in entries.map(|entry| entry.expect("an entry").path()).filter(is_launches) {
        let text = std::fs::read_to_string(&path).expect("readable");
        let file: Measured = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for launch in &file.launches {
            let found = differences(&file, launch, &mut headers);
            for (what, now, measured, bound) in found {
                compared += 1;
                let line = format!("{}: {} {what} {now:.2} MiB, measured {measured:.2}", file.card, launch.command);
                eprintln!("{line}");
                if (now - measured).abs() > bound {
                    wrong.push(line);
                }
            }
        }
    }
    assert!(compared >= 12, "{compared} figures");
    assert!(wrong.is_empty(), "{} figures off:\n{}", wrong.len(), wrong.join("\n"));
}

/// A projector as `synth` makes it.
fn projector(name: &str) -> Model {
    let folder = tempfile::tempdir().expect("a folder");
    let path = synth::hole(name, &Wish::default(), folder.path()).expect("a header");
    Model::as_far_as_readable(gguf::open(&path).expect("a GGUF")).0
}

/// What, predicted, measured, bound: all in MiB.
#[expect(clippy::cast_precision_loss, reason = "MiB with decimals")]
fn differences(file: &Measured, launch: &Measurement, headers: &mut Headers) -> Vec<(String, f64, f64, f64)> {
    let card = |at| truth_rows::device(&format!("CUDA{at}"), file.total_mib, Some(&file.card));
    let mut model = launch.made.model(headers);
    model.projector = launch.projector.as_ref().map(|name| projector(name).into());
    model.draft = launch.draft.as_ref().map(|draft| draft.model(headers).into());
    let forecast = truth_rows::forecast_on(&model, &launch.command, (0..file.cards).map(card).collect());
    let found = Expected::of(&forecast.expect("it ran"), Bytes(0)).memory;
    let row = found["CUDA0"];
    let own = (row.model + row.context + row.compute).in_mib();
    let mut lines = Vec::new();
    for (device, terms) in &launch.measured_mib {
        for (term, mib) in terms {
            let row = found.get(device).copied().unwrap_or_default();
            let now = match term.as_str() {
                "model" => row.model,
                "context" => row.context,
                "compute" => row.compute,
                other => panic!("no term `{other}`"),
            };
            lines.push((format!("{device} {term}"), now.in_mib(), *mib, file.bounds.term_mib));
        }
    }
    if let Some(mib) = launch.self_mib {
        lines.push(("CUDA0 in llama.cpp's sums".to_string(), own, mib, mib * file.bounds.self_percent / 100.0));
    }
    if let Some(mib) = launch.unaccounted_mib {
        let card = Some(file.card.as_str());
        let loaded = truth_rows::device("CUDA0", file.total_mib, card);
        let loaded = moeplan::memory::overhead::overhead(&loaded, 512).loaded.0 as f64 / MIB as f64;
        lines.push(("CUDA0 overhead, loaded".to_string(), loaded, mib, file.bounds.unaccounted_mib));
    }
    let peaks = launch.after_prompts_mib.map(|mib| ("CUDA0".to_string(), mib));
    for (device, mib) in peaks.into_iter().chain(launch.peak_mib.clone()) {
        let bound = mib * launch.peak_percent.unwrap_or(file.bounds.after_prompts_percent) / 100.0;
        lines.push((format!("{device} after long prompts"), found[&device].total().in_mib(), mib, bound));
    }
    lines
}
