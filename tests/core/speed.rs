//! Predicted speed beside what an H100 and an H200 measured of the same launches, with and without a past.
//!
//! The launches are those of `scripts/compare-fit` that name their placement; the machine files are calibrations of that kind of
//! card: from llama-bench's rows, and by `moeplan devices --calibrate` itself. No calibration saw the models of the H200.
#![expect(clippy::print_stdout, reason = "the table of docs/speed.md")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use moeplan::machine::Machine;
use moeplan::memory;
use moeplan::model::Model;
use moeplan::run::{Target, parse};
use moeplan::speed::{self, Case, Speed, Turn};
use moeplan::synth::{self, Wish};
use serde_json::Value;

const MOEPLAN: &str = env!("CARGO_BIN_EXE_moeplan");
const DEPTHS: [u32; 3] = [0, 4096, 16384];

fn moeplan(words: &[&str]) -> Vec<u8> {
    let output = Command::new(MOEPLAN).args(words).output().expect("moeplan");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "moeplan {words:?}: {said}");
    output.stdout
}

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
    of_command(model, machine, &words, &BTreeMap::new(), Turn { prompt: 2048, generate: 64, depth, acceptance: None })
}

fn of_command(
    model: &Model,
    machine: &Machine,
    words: &[String],
    variables: &BTreeMap<String, String>,
    turn: Turn,
) -> Speed {
    let run = parse::command_for(words, variables, Target::default()).expect("a command").run;
    let forecast = &memory::forecast(model, machine, &run).expect("a forecast");
    speed::predict(&Case { model, machine, run: &run, placement: &forecast.placement, forecast }, turn).speed
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

/// What one calibration says of the launches of its own machine that it did not see: several requests at once, passes of a few tokens,
/// and prompts of every length with the host's experts copied or left where they are.
#[test]
fn batches_of_every_size_are_predicted() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let read = |path: &str| std::fs::read_to_string(data.join(path)).expect("a file of testdata");
    let machine: Machine = serde_json::from_str(&read("machines/h200-slots.json")).expect("a machine");
    let model = synth::model("qwen3-30b-a3b", &Wish::default()).expect("a model");
    let mut errors: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in read("measured/h200-slots.jsonl").lines() {
        let row: Value = serde_json::from_str(line).expect("a row");
        let number = |key: &str| row[key].as_u64().map_or(0, |n| u32::try_from(n).expect("a small number"));
        let list = |of: &Value| -> Vec<f64> { of.as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
        let words = |program: &str, key: &str| -> Vec<String> {
            let argv = row[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            [program].into_iter().chain(argv).map(String::from).collect()
        };
        let turn = |prompt, generate| Turn { prompt, generate, depth: 0, acceptance: None };
        let of = |words: &[String], turn| of_command(&model, &machine, words, &BTreeMap::new(), turn);
        let (kind, predicted, measured) = match text(&row, "kind") {
            "together" => {
                let sums = row["each"].as_array().into_iter().flatten().map(|each| list(each).iter().sum()).collect();
                let speed = of(&words("llama-server", "argv"), turn(512, 192));
                let together = speed.together.map_or(speed.tg, |together| together.tg);
                ("together", together, median(sums))
            }
            "pass" => {
                let tokens = number("tokens");
                let seconds = list(&row["milliseconds"]).into_iter().fold(f64::INFINITY, f64::min) / 1e3;
                let kind = if tokens <= 8 && row["bench"][2] == "-t" { "vectors" } else { "pass" };
                (kind, of(&words("llama-bench", "bench"), turn(tokens, 0)).pp, f64::from(tokens) / seconds)
            }
            "offload" => {
                let rows = ("GGML_OP_OFFLOAD_MIN_BATCH".to_string(), number("min_batch").to_string());
                let words = words("llama-server", "argv");
                let speed = of_command(&model, &machine, &words, &BTreeMap::from([rows]), turn(number("prompt"), 0));
                let kind = if words.contains(&"none".to_string()) { "pinned" } else { "mapped" };
                (kind, speed.pp, median(list(&row["pp"])))
            }
            _ => continue,
        };
        let error = predicted / measured - 1.0;
        println!(
            "| {kind} | {} | {predicted:.1} | {measured:.1} | {:+.0}% |",
            line.chars().take(100).collect::<String>(),
            100.0 * error
        );
        errors.entry(kind).or_default().push(error.abs());
    }
    for (kind, least, bounds) in [
        ("together", 8, [0.08, 0.15]),
        ("vectors", 6, [0.1, 0.15]),
        ("pass", 30, [0.3, 0.75]),
        ("pinned", 14, [0.15, 0.4]),
        ("mapped", 14, [0.1, 0.4]),
    ] {
        let errors = &errors[kind];
        assert!(errors.len() >= least, "{kind}: {} rows", errors.len());
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let error = median(errors.clone());
        println!("{kind}: median error {:.0}%, worst {:.0}%", 100.0 * error, 100.0 * worst);
        assert!(error <= bounds[0] && worst <= bounds[1], "{kind}");
    }
}

/// The models that were measured with drafts: a name that `synth` knows, blocks, the file.
const SPECULATING: [(&str, &str, &str); 3] = [
    ("qwen3.6-35b-a3b-mtp", "41", "qwen3.5-nextn.gguf"),
    ("qwen3-30b-a3b", "48", "qwen3-30b-a3b.Q4_K_M.gguf"),
    ("qwen3-30b-a3b", "3", "draft.gguf"),
];

/// NextN blocks and a draft model, with the tokens a pass that were measured: generation, and what it gains beside that without drafts.
/// Samples of one launch differ by a factor of two and more, where others load the same memory: the fastest count, as in a calibration.
#[test]
fn speculation_is_predicted() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let folder = tempfile::tempdir().expect("a folder");
    for (model, blocks, file) in SPECULATING {
        let path = folder.path().join(file);
        let path = path.to_str().expect("UTF-8");
        moeplan(&["synth", model, "--recipe", "Q4_K_M", "--blocks", blocks, "-q", "-o", path]);
    }
    let machine = data.join("machines/h200-live.json");
    let (mut errors, mut of_gain) = (Vec::new(), Vec::new());
    for file in ["h200-mtp.jsonl", "h200-draft.jsonl"] {
        let rows = std::fs::read_to_string(data.join("measured").join(file)).expect("measured rows");
        let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
        let of = |kind: &str, config: &str| -> Vec<&Value> {
            rows.iter().filter(|row| text(row, "kind") == kind && text(row, "config") == config).collect()
        };
        let tg = |config: &str, acceptance: Option<f64>| {
            let samples = of("sample", config).into_iter().filter_map(|row| row["tg"].as_f64());
            let loaded = of("loaded", config)[0];
            let argv = loaded["argv"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let model = folder.path().join(text(loaded, "model")).display().to_string();
            let mut asked: Vec<String> = ["check", "--json", "--vram", "140G", "--prompt", "2048", "--generate", "128"]
                .map(String::from)
                .to_vec();
            asked.extend(["--machine".to_string(), machine.display().to_string()]);
            asked.extend(acceptance.into_iter().flat_map(|share| ["--acceptance".to_string(), share.to_string()]));
            asked.extend(["--", "llama-server", "-m", &model].map(String::from));
            asked.extend(argv.map(|word| match word {
                "draft.gguf" => folder.path().join(word).display().to_string(),
                word => word.to_string(),
            }));
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            let document: Value = serde_json::from_slice(&moeplan(&asked)).expect("a check");
            (document["speed"]["tg"].as_f64().expect("a speed"), samples.fold(0.0, f64::max))
        };
        let configs: Vec<&str> =
            rows.iter().filter(|row| text(row, "kind") == "loaded").map(|row| text(row, "config")).collect();
        for config in configs.iter().filter(|config| config.contains("tokens a pass")) {
            let plain = config.split(", ").next().expect("a name");
            let sample = of("sample", config)[0];
            let count = |key: &str| sample[key].as_f64().expect("a count");
            let tokens_per_pass = count("predicted_n") / (count("predicted_n") - count("draft_n_accepted"));
            let acceptance = acceptance(tokens_per_pass);
            let (without, with) = (tg(plain, None), tg(config, Some(acceptance)));
            let (predicted, measured) = (with.0 / without.0, with.1 / without.1);
            println!(
                "| {file} | {config} | {acceptance:.3} | {with:.1?} | {without:.1?} | {predicted:.2} {measured:.2} |"
            );
            of_gain.push((predicted / measured - 1.0).abs());
            errors.push((with.0 / with.1 - 1.0).abs());
        }
    }
    for (what, errors, bounds) in [("the speed", errors, [0.2, 0.35]), ("the gain", of_gain, [0.15, 0.3])] {
        assert_eq!(errors.len(), 10);
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let error = median(errors);
        println!("{what}: median error {:.0}%, worst {:.0}%", 100.0 * error, 100.0 * worst);
        assert!([error, worst].iter().zip(bounds).all(|(error, bound)| *error <= bound), "{what} with speculation");
    }
}

/// The share of drafts of three tokens that yields so many tokens a pass.
fn acceptance(tokens_per_pass: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        let yields = 1.0 + middle * (1.0 + middle * (1.0 + middle));
        (low, high) = if yields < tokens_per_pass { (middle, high) } else { (low, middle) };
    }
    low
}
