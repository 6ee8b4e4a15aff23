//! Predicted speed beside what an H100 and an H200 measured of the same launches, with and without a past.
//!
//! The launches are those of `scripts/compare-fit` that name their placement; the machine files are calibrations of that kind of
//! card: from llama-bench's rows, and by `moeplan devices --calibrate` itself. No calibration saw the models of the H200.
#![expect(clippy::print_stdout, reason = "the table of docs/speed.md")]

use std::collections::BTreeMap;
use std::path::Path;

use moeplan::machine::Machine;
use moeplan::memory;
use moeplan::model::Model;
use moeplan::run::parse;
use moeplan::speed::{self, Case, Speed, Turn};
use moeplan::synth::{self, Wish};
use serde_json::Value;

const DEPTHS: [u32; 3] = [0, 4096, 16384];

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let half = of.len() / 2;
    if of.len() % 2 == 1 { of[half] } else { f64::midpoint(of[half - 1], of[half]) }
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap_or_default()
}

/// The virtual cards that a row was measured on, as `--vram` has them.
fn vram(row: &Value) -> String {
    let cards = row["vram_mib"].as_array().map_or_else(|| vec![&row["vram_mib"]], |cards| cards.iter().collect());
    cards.into_iter().map(|mib| format!("{mib}M")).collect::<Vec<_>>().join(",")
}

/// The speed of exactly the launch that was measured.
fn predicted(model: &Model, machine: &Machine, argv: &[&str], depth: u32) -> Speed {
    let words: Vec<String> = ["llama-server"].iter().chain(argv).map(ToString::to_string).collect();
    let run = parse::command(&words, &BTreeMap::new()).expect("a command").run;
    let forecast = &memory::forecast(model, machine, &run).expect("a forecast");
    let case = Case { model, machine, run: &run, placement: &forecast.placement, forecast };
    speed::predict(&case, Turn { prompt: 2048, generate: 64, depth }).speed
}

#[test]
fn launches_of_an_h100_are_predicted() {
    let models = [("gpt-oss-20b", "F16", "gpt-oss-20b"), ("qwen3-30b-a3b", "Q4_K_M", "qwen3-30b-a3b")];
    launches_are_predicted("h100-compare.jsonl", &models, (1, &["h100.json", "h100-live.json"]), 12, [0.1, 0.13]);
}

#[test]
fn models_that_no_calibration_saw_are_predicted() {
    let models = [
        ("deepseek-v2-lite", "Q4_K_M", "deepseek-v2-lite"),
        ("glm-4.5-air", "Q3_K_M", "glm-4.5-air.Q3_K_M"),
        ("qwen3.5-35b-a3b", "Q4_K_M", "qwen3.5-skewed"),
    ];
    launches_are_predicted("h200-compare.jsonl", &models, (1, &["h200-live.json"]), 9, [0.06, 0.06]);
}

#[test]
fn launches_on_two_cards_are_predicted() {
    let models = [
        ("qwen3-30b-a3b", "Q4_K_M", "qwen3-30b-a3b.Q4_K_M"),
        ("glm-4.5-air", "Q3_K_M", "glm-4.5-air.Q3_K_M"),
        ("qwen3.5-35b-a3b", "Q4_K_M", "qwen3.5-skewed"),
    ];
    launches_are_predicted("h200-compare.jsonl", &models, (2, &["h200-two.json"]), 8, [0.11, 0.1]);
}

/// Holds the medians of the errors of pp and tg over at least so many launches; `models` are a name, a recipe and a file's stem.
fn launches_are_predicted(
    measured: &str,
    models: &[(&str, &str, &str)],
    (cards, machines): (usize, &[&str]),
    least: usize,
    bounds: [f64; 2],
) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let rows = std::fs::read_to_string(data.join("measured").join(measured)).expect("measured rows");
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("a row"));
    let rows: Vec<Value> = rows.filter(|row| vram(row).matches(',').count() + 1 == cards).collect();
    let mut launches = BTreeMap::new();
    for row in rows.iter().filter(|row| text(row, "kind") == "loaded") {
        let argv: Vec<&str> = row["argv"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !argv.contains(&"-fitt") {
            launches.insert((text(row, "model"), vram(row), text(row, "config")), argv);
        }
    }
    let model = |(name, recipe, stem): &(&str, &str, &str)| {
        let wish = Wish { recipe: Some(synth::recipe::named(recipe).expect("a recipe")), ..Wish::default() };
        (format!("{stem}.gguf"), synth::model(name, &wish).expect("a model"))
    };
    let models: BTreeMap<String, Model> = models.iter().map(model).collect();
    for machine in machines {
        let file = std::fs::read_to_string(data.join("machines").join(machine)).expect("a machine file");
        let here: Machine = serde_json::from_str(&file).expect("a machine");
        let mut errors: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for ((model, budgets, config), argv) in &launches {
            for depth in DEPTHS {
                let same = |row: &&Value| {
                    text(row, "kind") == "sample"
                        && text(row, "model") == *model
                        && vram(row) == *budgets
                        && text(row, "config") == *config
                        && row["depth"] == depth
                };
                let samples: Vec<&Value> = rows.iter().filter(same).collect();
                if samples.is_empty() {
                    continue;
                }
                let predicted = predicted(&models[*model], &here, argv, depth);
                let mut cells = Vec::new();
                for (key, predicted) in [("pp", predicted.pp), ("tg", predicted.tg)] {
                    let measured = median(samples.iter().filter_map(|row| row[key].as_f64()).collect());
                    errors.entry(key).or_default().push((predicted / measured - 1.0).abs());
                    cells
                        .push(format!("{predicted:.1}, {measured:.1} ({:+.0}%)", 100.0 * (predicted / measured - 1.0)));
                }
                println!("| {machine} | {model} | {budgets} | {config} | {depth} | {} | {} |", cells[0], cells[1]);
            }
        }
        for ((key, errors), bound) in errors.into_iter().zip(bounds) {
            assert!(errors.len() >= least, "{} launches have samples", errors.len());
            let error = median(errors);
            println!("{machine}: median error of {key} {:.1}%", 100.0 * error);
            assert!(error <= bound, "{machine}: {key} is off by {:.0}% in the median", 100.0 * error);
        }
    }
}
